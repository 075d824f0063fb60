package kube

import (
	"context"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"e13.dev/gatehouse/internal/edge"
)

const (
	concurrentWrites = 4
	firstRetry       = time.Second
	longestRetry     = 16 * time.Second
	// tryRemembered is for how long a write is remembered after it was seen to
	// be in effect. Within that, having to repeat it means that somebody else
	// writes the same status.
	tryRemembered = time.Minute
	// toleratedOverwrites is how often that may happen before it is a problem:
	// once is another writer's last word before it stops.
	toleratedOverwrites = 2
)

// try is the last attempt to write the status of one Service.
type try struct {
	status   edge.ServiceStatus
	version  string    // the Service's resourceVersion before the write
	at       time.Time // zero: not tried yet
	written  bool
	failures int       // in a row, overwritten ones included
	next     time.Time // not before, if it failed
	problem  *edge.Problem
	global   bool // the problem is not with this Service
}

// due says whether to write now.
func (t *try) due(ch change, now time.Time) bool {
	if t.at.IsZero() || t.status.UID != ch.status.UID || !slices.EqualFunc(t.status.Ingress, ch.status.Ingress, sameIngress) {
		*t = try{}
		return true
	}
	if t.written {
		if t.version == ch.have.ResourceVersion {
			return false // the watch has not told of the write yet
		}
		t.written = false
		t.failed(now)
		if t.failures > toleratedOverwrites {
			t.problem = &edge.Problem{
				Object: "service/" + ch.key, Path: "status.loadBalancer",
				What:   "another controller keeps changing it",
				Remedy: "let one of both own the Service: set another loadBalancerClass, or take the class from the other",
			}
		}
	}
	return !now.Before(t.next)
}

func (t *try) failed(now time.Time) {
	delay := longestRetry
	if t.failures < 4 {
		delay = firstRetry << t.failures
	}
	t.failures++
	t.next = now.Add(delay)
}

// wrote notes how a write went.
func (c *Client) wrote(t *try, ch change, err error) {
	now := time.Now()
	t.status, t.version, t.at = ch.status, ch.have.ResourceVersion, now
	t.written = err == nil
	if err == nil {
		c.log.Debug("service_status_written", "service", ch.key, "ingress", len(ch.status.Ingress))
		if t.failures <= toleratedOverwrites || t.global {
			t.problem = nil
		}
		return
	}
	c.log.Debug("service_status_not_written", "service", ch.key, "err", err)
	t.failed(now)
	if _, answered := answer(err); !answered || apierrors.IsUnauthorized(err) {
		return // those who read report the same
	}
	p := c.conn.Load().explain("patch services/status", err)
	t.global = !apierrors.IsInvalid(err)
	if !t.global {
		p.Object, p.Path = "service/"+ch.key, "status.loadBalancer"
	}
	t.problem = &p
}

// retryWrites tries at once what has failed while the API server was away.
func (c *Client) retryWrites() {
	c.writer.hurry.Store(true)
	c.writer.wakeUp()
}

// writeDue writes what differs and is not to wait; it returns when to look again.
func (c *Client) writeDue(ctx context.Context) (wait time.Duration, again bool) {
	w := c.writer
	w.mu.Lock()
	given, want := w.given, w.want
	w.mu.Unlock()
	if !given {
		return 0, false
	}
	cluster, _ := c.state.snapshot()
	now := time.Now()
	if w.hurry.Swap(false) {
		for _, t := range w.tries {
			t.next = now
		}
	}
	maps.DeleteFunc(w.tries, func(_ string, t *try) bool { return t.written && now.Sub(t.at) >= tryRemembered })
	differ := changes(cluster.Services, want)
	waiting := make(map[string]*try, len(differ))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrentWrites)
	for _, ch := range differ {
		t := w.tries[ch.key]
		if t == nil {
			t = &try{}
			w.tries[ch.key] = t
		}
		waiting[ch.key] = t
		if !t.due(ch, now) {
			continue
		}
		g.Go(func() error {
			if err := c.SetStatus(gctx, ch.status); ctx.Err() == nil {
				c.wrote(t, ch, err)
			}
			return nil
		})
	}
	_ = g.Wait() // each outcome is in its try
	// A failed write that is not wanted any more is no problem any more.
	maps.DeleteFunc(w.tries, func(key string, t *try) bool { return waiting[key] == nil && !t.written })
	c.report("patch services/status", writeProblems(w.tries)...)

	now = time.Now()
	for key, t := range w.tries {
		next := t.at.Add(tryRemembered)
		if waiting[key] != nil && !t.written {
			next = t.next
		} else if t.problem == nil {
			continue // what was written and undisputed can be forgotten at any time
		}
		if d := max(next.Sub(now), 0); !again || d < wait {
			wait, again = d, true
		}
	}
	return wait, again
}

// writeProblems is one problem for each Service whose status is refused, and
// one for all of them that are in the way for another reason.
func writeProblems(tries map[string]*try) []edge.Problem {
	var all []edge.Problem
	global := false
	for _, key := range slices.Sorted(maps.Keys(tries)) {
		t := tries[key]
		if t.problem == nil || t.global && global {
			continue
		}
		global = global || t.global
		all = append(all, *t.problem)
	}
	return all
}
