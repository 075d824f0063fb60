package kube

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

// A Service whose type changes leaves what is watched, with gatehouse's
// finalizer on it: nobody could delete it any more. The API server clears its
// addresses then, and nothing else.

const (
	// listPage is how many Services the API server is asked for at a time.
	listPage = 500
	// betweenListings is the least time between two looks for leftovers: an API
	// server that makes everything be read anew again and again has other worries.
	betweenListings = 10 * time.Minute
)

// leftover is a Service that is not of type LoadBalancer any more, or gone.
type leftover struct {
	uid      string
	next     time.Time // not before
	failures int
	problem  *edge.Problem
}

// releaseLeftovers takes what gatehouse has left on Services that are not of
// type LoadBalancer any more; it returns when to look again. Those that leave
// are known from the watch, and those that have left unseen are looked for at
// the start and whenever all Services were read anew.
func (c *Client) releaseLeftovers(ctx context.Context) (wait time.Duration, again bool) {
	w := c.writer
	_, list := c.state.turn()
	_, turn, ok := w.decided(list)
	if _, synced := c.state.snapshot(); !ok || !synced {
		return 0, false
	}
	left, lists := c.state.takeLeft(turn)
	for key, uid := range left {
		w.leftovers[key] = &leftover{uid: uid}
	}
	now := time.Now()
	if lists != w.listed {
		due := maxTime(w.listFailed.until, w.pause.until)
		if !w.listedAt.IsZero() {
			due = maxTime(due, w.listedAt.Add(betweenListings))
		}
		if now.Before(due) {
			wait, again = sooner(wait, again, due, now)
		} else if err := c.findLeftovers(ctx); err == nil {
			w.listed, w.listedAt, w.listFailed = lists, now, pause{}
		} else if ctx.Err() == nil {
			c.log.Debug("leftovers_not_listed", "err", err)
			w.listFailed.failed(now)
			w.listFailed.asked(now, err)
			wait, again = sooner(wait, again, w.listFailed.until, now)
		}
	}
	var problems []edge.Problem
	round := &round{pause: &w.pause}
	for _, key := range slices.Sorted(maps.Keys(w.leftovers)) {
		l := w.leftovers[key]
		if due := maxTime(l.next, w.pause.until); now.Before(due) {
			wait, again = sooner(wait, again, due, now)
		} else if err := c.release(ctx, key, l); err == nil {
			round.note(nil)
			delete(w.leftovers, key)
			continue
		} else {
			round.note(err)
			wait, again = sooner(wait, again, maxTime(l.next, w.pause.until), time.Now())
		}
		if l.problem != nil && !slices.Contains(problems, *l.problem) {
			problems = append(problems, *l.problem)
		}
	}
	if ctx.Err() == nil {
		c.report("release finalizers", problems...)
	}
	return wait, again
}

// release takes what gatehouse has left on one Service.
func (c *Client) release(ctx context.Context, key string, l *leftover) error {
	if c.state.isBalanced(key) {
		return nil // it is again, and decided upon as such
	}
	namespace, name, _ := strings.Cut(key, "/")
	released, err := c.clean(ctx, namespace, name, func(s *corev1.Service) bool {
		return string(s.UID) == l.uid && s.Spec.Type != corev1.ServiceTypeLoadBalancer
	})
	if len(released) > 0 {
		c.log.Debug("service_released", "service", key)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Debug("service_not_released", "service", key, "err", err)
		l.failures++
		l.next = time.Now().Add(min(firstRetry<<min(l.failures-1, 10), longestPause))
		l.problem, _ = c.writeProblem(key, err)
	}
	return err
}

// clean reads a Service, and takes what gatehouse has written there if it still
// is as it ought to be for that. It returns what was taken.
func (c *Client) clean(ctx context.Context, namespace, name string, still func(*corev1.Service) bool) (taken []string, err error) {
	for range 3 { // somebody may change it meanwhile
		var svc *corev1.Service
		svc, err = c.readService(ctx, namespace, name)
		if apierrors.IsNotFound(err) || err == nil && !still(svc) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var ch change
		if ch, taken = cleaned(svc); len(taken) == 0 {
			return nil, nil
		}
		if _, err = c.writeStatus(ctx, ch, true); !apierrors.IsConflict(err) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return taken, nil
}

func (c *Client) readService(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	svc := &corev1.Service{}
	err := c.conn.Load().core.Get().Namespace(namespace).Resource("services").Name(name).MaxRetries(0).Do(ctx).Into(svc)
	return svc, err
}

// cleaned is a Service without anything of gatehouse's, and what that takes away.
func cleaned(svc *corev1.Service) (change, []string) {
	have := &edge.Service{Namespace: svc.Namespace, Name: svc.Name}
	convertWritten(svc, have)
	if !slices.ContainsFunc(have.Conditions, func(c edge.Condition) bool { return strings.HasPrefix(c.Type, edge.AnnotationPrefix) }) {
		have.Conditions = nil // gatehouse writes no other type alone: it is somebody else's
	}
	want := edge.ServiceStatus{Namespace: svc.Namespace, Name: svc.Name, UID: have.UID, Ingress: have.Ingress}
	var taken []string
	if have.Finalizer {
		taken = append(taken, "the finalizer")
	}
	if have.StatusOurs && len(have.Ingress) > 0 {
		want.Ingress = nil
		for _, i := range have.Ingress {
			if i.IP.IsValid() {
				taken = append(taken, "the address "+i.IP.String())
			} else {
				taken = append(taken, "the address "+i.Hostname)
			}
		}
	}
	for _, cond := range have.Conditions {
		taken = append(taken, "the condition "+cond.Type)
	}
	return change{have.Key(), want, have}, taken
}

// findLeftovers looks through the metadata of all Services.
func (c *Client) findLeftovers(ctx context.Context) error {
	o := metav1.ListOptions{Limit: listPage}
	for {
		page, err := c.listMetadata(ctx, o)
		if err != nil {
			return err
		}
		for i := range page.Items {
			m := &page.Items[i]
			key := m.Namespace + "/" + m.Name
			if l := c.writer.leftovers[key]; slices.Contains(m.Finalizers, Finalizer) && !c.state.isBalanced(key) && (l == nil || l.uid != string(m.UID)) {
				c.writer.leftovers[key] = &leftover{uid: string(m.UID)}
			}
		}
		if o.Continue = page.Continue; o.Continue == "" {
			return nil
		}
	}
}

func (c *Client) listMetadata(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	page := &metav1.PartialObjectMetadataList{}
	err := c.conn.Load().core.Get().Resource("services").VersionedParams(&o, metav1.ParameterCodec).
		SetHeader("Accept", metadataOnlyList).MaxRetries(0).Do(ctx).Into(page)
	return page, err
}
