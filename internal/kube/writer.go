package kube

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"e13.dev/gatehouse/internal/edge"
)

const (
	concurrentWrites = 8
	firstRetry       = time.Second
	longestRetry     = 16 * time.Second
	// givenUp is after how many writes in a row that have failed the others are
	// not tried: it is not about these Services. They are tried a while later,
	// which is up to longestPause.
	givenUp      = 2 * concurrentWrites
	longestPause = time.Minute
	// tryRemembered is for how long a write is remembered after it was made.
	// Within that, having to repeat it means that somebody else writes the same
	// status.
	tryRemembered = time.Minute
	// toleratedOverwrites is how often that may happen before it is a contest:
	// once is another writer's last word before it stops.
	toleratedOverwrites = 2
	// contestPause is how long nothing is written to a Service that somebody else
	// keeps writing to.
	contestPause = 10 * time.Minute
)

// try is the last attempt to write the status of one Service.
type try struct {
	status     edge.ServiceStatus
	spec       *edge.Service // if contested: see specOf
	version    string        // the Service's resourceVersion with it, if it was written
	same       bool          // the API server saw nothing to change
	at         time.Time     // zero: not tried yet
	written    bool
	failures   int // in a row
	overwrites int // by others, in a row
	contested  bool
	next       time.Time // not before
	problem    *edge.Problem
	global     bool // the problem is not with this Service
}

// specOf is a Service without what follows from being served: as long as that is
// the same, a status that was contested has no other fate.
func specOf(s *edge.Service) *edge.Service {
	out := *s
	out.ResourceVersion, out.Endpoints = "", nil
	out.Ingress, out.StatusBy, out.StatusOurs, out.Conditions, out.Finalizer = nil, "", false, nil, false
	return &out
}

// due says whether to write now, and whether it has just turned out that
// somebody else keeps changing what was written.
func (t *try) due(ch change, now time.Time) (due, contest bool) {
	if t.at.IsZero() || !sameWish(t.status, ch.status) || t.contested && !reflect.DeepEqual(t.spec, specOf(ch.have)) {
		*t = try{}
		return true, false
	}
	if t.written {
		if !reached(ch.have.ResourceVersion, t.version) || t.same && ch.have.ResourceVersion == t.version {
			return false, false // the watch has not told of the write yet
		}
		if now.Sub(t.at) >= tryRemembered {
			*t = try{} // it has lasted
			return true, false
		}
		t.written = false
		t.overwrites++
		t.next = now.Add(delayAfter(t.overwrites))
		if t.contested || t.overwrites > toleratedOverwrites {
			contest = !t.contested
			t.contested, t.spec = true, specOf(ch.have)
			t.next = now.Add(contestPause)
			t.problem = contestOver(ch)
		}
	}
	return !now.Before(t.next), contest
}

// sameWish says whether the same is to be written.
func sameWish(a, b edge.ServiceStatus) bool {
	return a.UID == b.UID && a.Finalizer == b.Finalizer && sameConditions(a.Conditions, b.Conditions) &&
		slices.EqualFunc(a.Ingress, b.Ingress, sameIngress)
}

// reached says whether a resourceVersion is that of a write, or a later one.
// Kubernetes compares them as numbers (KEP-5504); of an API server that has
// others, any but the one before would do.
func reached(version, written string) bool {
	v, err := strconv.ParseUint(version, 10, 64)
	w, werr := strconv.ParseUint(written, 10, 64)
	if err != nil || werr != nil {
		return version == written
	}
	return v >= w
}

// contestOver is the problem of a Service that somebody else writes to.
func contestOver(ch change) *edge.Problem {
	path, by := "status.loadBalancer", "another controller"
	switch {
	case !slices.EqualFunc(ch.status.Ingress, ch.have.Ingress, sameIngress):
		switch ch.have.StatusBy {
		case FieldManager:
			by = "another gatehouse of the same loadBalancerClass"
		case "":
		default:
			by = strconv.Quote(ch.have.StatusBy)
		}
	case !sameConditions(ch.status.Conditions, ch.have.Conditions):
		path = "status.conditions"
	default:
		path = "metadata.finalizers"
	}
	return &edge.Problem{
		Object: "service/" + ch.key, Path: path,
		What:   fmt.Sprintf("%s keeps changing it; gatehouse writes nothing there for %s, or until the Service changes", by, minutes(contestPause)),
		Remedy: "let one of both own the Service: set another loadBalancerClass, or take the class from the other",
	}
}

func minutes(d time.Duration) string { return fmt.Sprintf("%d minutes", int(d.Minutes())) }

func delayAfter(failures int) time.Duration {
	if failures > 4 {
		return longestRetry
	}
	return firstRetry << (failures - 1)
}

// pause is a time in which nothing is tried.
type pause struct {
	until    time.Time
	failures int
}

func (p *pause) failed(now time.Time) {
	p.failures++
	p.until = now.Add(min(firstRetry<<min(p.failures-1, 10), longestPause))
}

// asked is for an API server that says when to come back; it is believed within
// reason.
func (p *pause) asked(now time.Time, err error) bool {
	seconds, ok := apierrors.SuggestsClientDelay(err)
	if ok && seconds > 0 {
		p.until = now.Add(min(time.Duration(seconds)*time.Second, 5*longestPause))
	}
	return ok && seconds > 0
}

// wrote notes how a write went.
func (c *Client) wrote(t *try, ch change, version string, err error) {
	now := time.Now()
	t.status, t.version, t.at = ch.status, version, now
	t.written, t.same = err == nil, err == nil && version == ch.have.ResourceVersion
	if err == nil {
		c.log.Debug("service_status_written", "service", ch.key, "ingress", len(ch.status.Ingress))
		t.failures = 0
		if !t.contested {
			t.problem = nil
		}
		return
	}
	c.log.Debug("service_status_not_written", "service", ch.key, "err", err)
	t.failures++
	t.next = now.Add(delayAfter(t.failures))
	t.problem, t.global = c.writeProblem(ch.key, err)
}

// writeProblem is what is to be said of a write that failed, and whether it is
// not about the one Service. Nothing, if those who read say the same.
func (c *Client) writeProblem(key string, err error) (p *edge.Problem, global bool) {
	if _, answered := answer(err); !answered || apierrors.IsUnauthorized(err) {
		return nil, true
	}
	said := c.conn.Load().explain("patch services/status", err)
	if global = !apierrors.IsInvalid(err); !global {
		said.Object, said.Path = "service/"+key, "status.loadBalancer"
	}
	return &said, global
}

// retryWrites tries at once what has failed while the API server was away.
func (c *Client) retryWrites() {
	c.writer.hurry.Store(true)
	c.writer.wakeUp()
}

// writeDue writes what differs and is not to wait; it returns when to look again.
func (c *Client) writeDue(ctx context.Context) (wait time.Duration, again bool) {
	w := c.writer
	cluster, _ := c.state.snapshot()
	_, list := c.state.turn() // not before: what it has is decided upon
	want, _, ok := w.decided(list)
	if !ok {
		return 0, false
	}
	now := time.Now()
	if w.hurry.Swap(false) {
		w.pause, w.listFailed = pause{}, pause{}
		for _, t := range w.tries {
			if !t.contested {
				t.next = now
			}
		}
		for _, l := range w.leftovers {
			l.next = now
		}
	}
	differ := changes(cluster.Services, want)
	waiting := make(map[string]*try, len(differ))
	type dueChange struct {
		change
		*try
	}
	var due []dueChange
	for _, ch := range differ {
		t := w.tries[ch.key]
		if t == nil {
			t = &try{}
			w.tries[ch.key] = t
		}
		waiting[ch.key] = t
		isDue, contest := t.due(ch, now)
		if contest {
			c.log.Warn("service_status_contested", "service", ch.key, "by", ch.have.StatusBy)
			c.Emit(edge.Event{
				Namespace: ch.status.Namespace, Name: ch.status.Name, UID: ch.status.UID, Warning: true, Reason: "StatusContested",
				Message: t.problem.Path + ": " + t.problem.What + "; " + t.problem.Remedy,
			})
		}
		if isDue {
			due = append(due, dueChange{ch, t})
		}
	}
	// Those that have waited longest come first, so that each has its turn when
	// most of them fail.
	slices.SortStableFunc(due, func(a, b dueChange) int { return a.at.Compare(b.at) })
	if now.Before(w.pause.until) {
		due = nil
	}
	round := &round{pause: &w.pause}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(concurrentWrites)
	for _, d := range due {
		if round.over() {
			break
		}
		g.Go(func() error {
			version, err := c.writeStatus(gctx, d.change, false)
			if ctx.Err() == nil {
				c.wrote(d.try, d.change, version, err)
				round.note(err)
			}
			return nil
		})
	}
	_ = g.Wait() // each outcome is in its try
	now = time.Now()
	maps.DeleteFunc(w.tries, func(key string, t *try) bool {
		// What was written is forgotten once it has lasted, and a failed write
		// that is not wanted any more is no problem any more. With a Service that
		// leaves its status goes, which the API server itself clears with the type:
		// if it comes back, that was no contest.
		return waiting[key] == nil && (!t.written || now.Sub(t.at) >= tryRemembered || !isWanted(want, &t.status))
	})
	c.report("patch services/status", writeProblems(w.tries)...)

	for key, t := range w.tries {
		var next time.Time
		switch {
		case waiting[key] != nil && t.written:
			continue // the watch tells when there is something to do
		case waiting[key] != nil:
			next = maxTime(t.next, w.pause.until)
		case t.problem != nil:
			next = t.at.Add(tryRemembered)
		default:
			continue // what was written and undisputed can be forgotten at any time
		}
		wait, again = sooner(wait, again, next, now)
	}
	return wait, again
}

// isWanted says whether something is wanted of the Service that a status was
// written to. want is sorted.
func isWanted(want []edge.ServiceStatus, written *edge.ServiceStatus) bool {
	i, found := slices.BinarySearchFunc(want, *written, compareStatuses)
	return found && want[i].UID == written.UID
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// round is one go at all that is due, which ends early when nothing works.
type round struct {
	mu       sync.Mutex
	pause    *pause
	failures int // in a row
	ended    bool
}

func (r *round) note(err error) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.failures, r.pause.failures = 0, 0
	case r.ended:
	case r.pause.asked(now, err):
		r.ended = true
	case apierrors.IsInvalid(err): // says nothing of the others
	default:
		if r.failures++; r.failures >= givenUp {
			r.pause.failed(now)
			r.ended = true
		}
	}
}

func (r *round) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
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

// sooner is how long to wait with one more thing to wait for.
func sooner(wait time.Duration, again bool, next, now time.Time) (time.Duration, bool) {
	if d := max(next.Sub(now), 0); !again || d < wait {
		return d, true
	}
	return wait, again
}
