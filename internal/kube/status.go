package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/internal/edge"
)

const (
	writeTimeout = 10 * time.Second
)

// writer holds what Apply was last given, and what came of writing it.
type writer struct {
	wake  chan struct{}
	hurry atomic.Bool // do not wait to try again

	mu    sync.Mutex
	given bool
	want  []edge.ServiceStatus

	tries map[string]*try // by Service; the worker's own
}

func newWriter() *writer {
	return &writer{wake: make(chan struct{}, 1), tries: make(map[string]*try)}
}

// Apply makes the statuses in the API those in want, in the background, and
// clears those that gatehouse once wrote and that are not in it. want must have
// been decided from a Snapshot that was synced: a Service that was not known
// then would lose its status.
func (c *Client) Apply(want []edge.ServiceStatus) {
	c.writer.mu.Lock()
	c.writer.given, c.writer.want = true, slices.Clone(want)
	c.writer.mu.Unlock()
	c.writer.wakeUp()
}

func (w *writer) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// change is a status to be written, and the Service as it was seen to need it.
type change struct {
	key    string
	status edge.ServiceStatus
	have   *edge.Service
}

// changes compares what the API has with what is wanted. Services of which
// nothing is wanted, that are gone, or that are another object of the same name
// by now, are left alone.
func changes(have []edge.Service, want []edge.ServiceStatus) []change {
	wanted := make(map[string]edge.ServiceStatus, len(want))
	for _, w := range want {
		wanted[w.Namespace+"/"+w.Name] = w
	}
	var out []change
	for i := range have {
		svc := &have[i]
		key := svc.Key()
		w, ok := wanted[key]
		switch {
		case ok && w.UID != svc.UID:
		case ok && !slices.EqualFunc(w.Ingress, svc.Ingress, sameIngress):
			out = append(out, change{key, w, svc})
		}
	}
	return out
}

// sameIngress compares after the API's defaults.
func sameIngress(a, b edge.Ingress) bool {
	return a.IP == b.IP && a.Hostname == b.Hostname && modeOf(a) == modeOf(b) &&
		slices.EqualFunc(a.Ports, b.Ports, func(a, b edge.IngressPort) bool {
			return a.Port == b.Port && a.Error == b.Error && cmp.Or(a.Protocol, edge.TCP) == cmp.Or(b.Protocol, edge.TCP)
		})
}

func modeOf(i edge.Ingress) string {
	if !i.IP.IsValid() {
		return "" // refused by the API without an ip
	}
	return cmp.Or(i.Mode, string(corev1.LoadBalancerIPModeVIP))
}

// statusPatch is the body of a JSON merge patch. It replaces the list as a
// whole, needs the verb patch only, and records the writer in managedFields.
// Server-side apply could do no more: the list is atomic, and what others wrote
// into it would have to be forced away in any case.
func statusPatch(s edge.ServiceStatus) []byte {
	ingress := make([]corev1.LoadBalancerIngress, 0, len(s.Ingress))
	for _, i := range s.Ingress {
		e := corev1.LoadBalancerIngress{Hostname: i.Hostname}
		if i.IP.IsValid() {
			e.IP = i.IP.String()
			if i.Mode != "" {
				e.IPMode = new(corev1.LoadBalancerIPMode(i.Mode))
			}
		}
		for _, p := range i.Ports {
			port := corev1.PortStatus{Port: int32(p.Port), Protocol: corev1.Protocol(cmp.Or(p.Protocol, edge.TCP))}
			if p.Error != "" {
				port.Error = &p.Error
			}
			e.Ports = append(e.Ports, port)
		}
		ingress = append(ingress, e)
	}
	type uid struct {
		UID string `json:"uid"`
	}
	type loadBalancer struct {
		Ingress []corev1.LoadBalancerIngress `json:"ingress"`
	}
	type status struct {
		LoadBalancer loadBalancer `json:"loadBalancer"`
	}
	body, err := json.Marshal(struct {
		Metadata uid    `json:"metadata"`
		Status   status `json:"status"`
	}{uid{s.UID}, status{loadBalancer{ingress}}})
	if err != nil {
		panic(fmt.Sprintf("kube: status patch: %v", err)) // strings and numbers always marshal
	}
	return body
}

// SetStatus writes the status of one Service now. A Service that is gone, or
// that was created anew under the same name, is left alone without an error.
func (c *Client) SetStatus(ctx context.Context, s edge.ServiceStatus) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	for range 3 { // conflicts are with other writers, and over at once
		err = c.conn.Load().core.Patch(types.MergePatchType).
			Namespace(s.Namespace).Resource("services").Name(s.Name).SubResource("status").
			Param("fieldManager", FieldManager).
			Body(statusPatch(s)).
			Do(ctx).Error()
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if apierrors.IsNotFound(err) || otherObject(err) {
		return nil
	}
	return err
}

// otherObject says whether the API server refused because the uid in the patch
// is not that of the Service.
func otherObject(err error) bool {
	cause, ok := apierrors.StatusCause(err, "FieldValueInvalid")
	return ok && apierrors.IsInvalid(err) && cause.Field == "metadata.uid"
}

// writeStatuses writes what is due whenever Apply was called, and again what
// failed after a while.
func (c *Client) writeStatuses(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait, again := c.writeDue(ctx); again {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.writer.wake:
		case <-timer.C:
		}
	}
}
