package kube

import (
	"context"
	"fmt"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shortestWatch is what client-go asks the API server for at least: a watch that
// ended earlier was ended by something else than time.
const shortestWatch = 5 * time.Minute

// checkVersion sees that the API server has got as far as a watch that is to
// begin there. One with old data, restored from a backup or with an empty disk,
// does not say so: it waits for that version, and is silent. Then the error is
// that the version is gone, after which everything is listed anew. Versions are
// numbers that grow (KEP-5504); what is none is not compared.
func (c *Client) checkVersion(ctx context.Context, k kind, from string) error {
	want, err := strconv.ParseUint(from, 10, 64)
	if err != nil {
		return nil
	}
	list, err := c.listPage(ctx, k, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	have, err := strconv.ParseUint(list.GetResourceVersion(), 10, 64)
	if err != nil || have >= want {
		return nil
	}
	c.log.Warn("the API server has older data than before, it is read anew", "resource", k.resource, "version", have, "before", want)
	return apierrors.NewResourceExpired(fmt.Sprintf("version %d is later than the API server's %d", want, have))
}
