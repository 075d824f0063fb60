package kube

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Cleaning is what Uninstall did, or would do, with one Service.
type Cleaning struct {
	Service string   `json:"service"`           // namespace/name
	Removed []string `json:"removed,omitempty"` // "the finalizer", "the address 10.11.12.70", "the condition …"
	Error   string   `json:"error,omitempty"`   // why it is still there
}

// Uninstall takes everything that gatehouse has written in Services of any type,
// or with dryRun says what that is. It tells of each Service as soon as that is
// done, and goes on past those that fail.
func (c *Client) Uninstall(ctx context.Context, dryRun bool, tell func(Cleaning)) error {
	found, err := c.findWritten(ctx)
	if err != nil {
		p := c.conn.Load().explain("list services", err)
		return fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
	}
	for _, w := range found {
		did := Cleaning{Service: w.namespace + "/" + w.name, Removed: w.taken}
		if !dryRun {
			did.Removed, err = c.uninstallFrom(ctx, w)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			p := c.conn.Load().explain("patch services/status", err)
			if _, answered := answer(err); !answered {
				return fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
			}
			did.Error = p.What + "; " + p.Remedy
		}
		if len(did.Removed) > 0 || did.Error != "" {
			tell(did)
		}
	}
	return nil
}

// written is a Service that has something of gatehouse's.
type written struct {
	namespace, name string
	uid             types.UID
	taken           []string
}

// findWritten reads them all before anything is written: the API server does
// not wait for long with the next page.
func (c *Client) findWritten(ctx context.Context) ([]written, error) {
	var found []written
	o := metav1.ListOptions{Limit: listPage}
	for {
		page := &corev1.ServiceList{}
		if err := c.conn.Load().core.Get().Resource("services").VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(page); err != nil {
			return nil, err
		}
		for i := range page.Items {
			svc := &page.Items[i]
			if _, taken := cleaned(svc); len(taken) > 0 {
				found = append(found, written{svc.Namespace, svc.Name, svc.UID, taken})
			}
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return found, nil
		}
	}
}

func (c *Client) uninstallFrom(ctx context.Context, w written) ([]string, error) {
	for {
		taken, err := c.clean(ctx, w.namespace, w.name, func(now *corev1.Service) bool { return now.UID == w.uid })
		seconds, ok := apierrors.SuggestsClientDelay(err)
		if !ok || ctx.Err() != nil {
			return taken, err
		}
		select { // as long as the API server says
		case <-ctx.Done():
		case <-time.After(time.Duration(max(1, seconds)) * time.Second):
		}
	}
}
