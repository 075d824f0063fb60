// Package health probes backends and says which of them are up. Which
// addresses to probe, and what follows from an answer, is decided elsewhere.
//
//	p := health.New(log, health.Options{})
//	go p.Run(ctx)
//	p.Apply(probes) // as often as they change
//	for range p.Changed() {
//		for probe, health := range p.Snapshot() { ... }
//	}
//
// A probe is pending until it first succeeds, and until then it is made often:
// somebody waits for a node to be ready. One that has not succeeded after a
// while is down, and up at once with its first success; one that was up is down
// after Fall failures in a row, and up again after Rise successes.
//
// What happens to connections is told to the Prober as well: one that failed
// counts like a probe that failed (Failed), one that waits for its answer only
// has the backend probed now (Suspect).
package health

import (
	"cmp"
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

const (
	// Probes that run at the same time. A thousand backends on a node that has
	// gone silent take a second each: at an interval of 5 s that is 200 at once.
	defaultConcurrency = 256
	// More of them for those that a connection asked for: they do not queue
	// behind a thousand timeouts, and a node that dies may be the backend of a
	// thousand frontends.
	hurriedReserve = 1024

	// A new backend is waited for: probed after 50 ms, then each 100 ms, until it
	// is this old or has succeeded. kube-proxy may take more than a second to
	// learn of a Service, and whoever connects meanwhile should be held, not
	// turned away: failures do not make it down before pendingFor is over.
	firstPause   = 50 * time.Millisecond
	eagerPause   = 100 * time.Millisecond
	eagerFor     = 10 * time.Second
	pendingFor   = 5 * time.Second
	spreadEach   = 500 * time.Microsecond // between two of many new probes
	spreadMost   = 2 * time.Second
	jitterPart   = 10                     // of the interval: a tenth, either way
	batchEach    = 100 * time.Millisecond // probes at rest are made together, this far apart
	hurriedPause = 200 * time.Millisecond // at least, between two probes of a hurried backend
)

// Options are what a Prober can be told once. The zero Options work.
type Options struct {
	Concurrency int // probes at the same time; 0: 256
	// Asked is told of each probe that has ended; nil: nobody is. It must not block.
	Asked func(passed bool, took time.Duration)
}

// Prober makes the probes it was given, from one goroutine per probe that is
// under way. Its methods may be called from any goroutine.
type Prober struct {
	log         *slog.Logger
	began       time.Time // where the grid of batches starts
	concurrency int
	changed     chan struct{}
	wake        chan struct{}
	dial        dialFunc
	asked       func(passed bool, took time.Duration)

	mu      sync.Mutex
	targets map[edge.Probe]*target
	byAddr  map[netip.AddrPort][]*target // by target.connects
	due     schedule                     // those that wait for their time
	hurried schedule                     // likewise, of those that a connection asked for
	running int
	eager   int // targets that are
}

// target is a probe and what is known about it.
type target struct {
	edge.Probe
	health    edge.Health
	since     time.Time // of Apply
	succeeded bool      // ever
	spoke     bool      // ever, whatever it said
	eager     bool      // new, and waited for
	tries     int
	failures  int  // in a row
	successes int  // in a row
	blamed    bool // for a failed connection, since the last probe

	started time.Time // of the last probe
	running bool
	ask     edge.Probe // what the probe under way asks for
	hurried bool       // the last probe was
	hurry   bool       // the next one is to be
	gone    bool       // by Apply

	at    time.Time // of the next probe
	index int       // in the schedule
}

// connects is the address whose connections say something about a target: where
// they go, or where its health is asked for if nobody connects there.
func (t *target) connects() netip.AddrPort {
	if t.Through.IsValid() {
		return t.Through
	}
	return t.Addr
}

// question is the check as the log names it: of one address several may be made,
// and not all come to the same.
func (t *target) question() string {
	words := string(cmp.Or(t.Type, edge.CheckTCP))
	if t.Path != "" {
		words += " " + t.Path
	}
	if t.Host != "" {
		words += " of " + t.Host
	}
	if t.SendProxyProtocol != "" && t.SendProxyProtocol != edge.ProxyProtocolNone {
		words += " with PROXY protocol " + string(t.SendProxyProtocol)
	}
	return words
}

// New returns a Prober without probes. It starts nothing.
func New(log *slog.Logger, opts Options) *Prober {
	p := &Prober{
		began:       time.Now(),
		log:         log,
		concurrency: opts.Concurrency,
		asked:       opts.Asked,
		changed:     make(chan struct{}, 1),
		wake:        make(chan struct{}, 1),
		dial:        new(net.Dialer).DialContext,
		targets:     map[edge.Probe]*target{},
		byAddr:      map[netip.AddrPort][]*target{},
	}
	if p.concurrency <= 0 {
		p.concurrency = defaultConcurrency
	}
	return p
}

// Apply makes these the probes, and no others. Those that were there before
// keep what is known about them; those that are gone are forgotten, so that an
// address that comes back is pending again.
func (p *Prober) Apply(probes []edge.Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := make(map[edge.Probe]bool, len(probes))
	for _, probe := range probes {
		wanted[probe] = true
	}
	for probe, t := range p.targets {
		if !wanted[probe] {
			p.removeLocked(t)
		}
	}

	now := time.Now()
	fresh := len(wanted) - len(p.targets)
	spread := min(time.Duration(fresh-1)*spreadEach, spreadMost)
	for probe := range wanted {
		if p.targets[probe] != nil {
			continue
		}
		t := &target{Probe: probe, since: now, health: edge.Health{State: edge.Pending, Since: now}}
		p.targets[probe] = t
		p.byAddr[t.connects()] = append(p.byAddr[t.connects()], t)
		if probe.Interval <= 0 {
			t.health.State = edge.Up
			signal(p.changed)
			continue
		}
		t.eager = true
		p.eager++
		p.scheduleLocked(t, now.Add(rand.N(max(spread, 1))))
	}
	signal(p.wake)
}

func (p *Prober) removeLocked(t *target) {
	t.gone = true
	p.calmLocked(t)
	delete(p.targets, t.Probe)
	at := t.connects()
	same := slices.DeleteFunc(p.byAddr[at], func(other *target) bool { return other == t })
	if len(same) == 0 {
		delete(p.byAddr, at)
	} else {
		p.byAddr[at] = same
	}
	if !t.running && t.Interval > 0 {
		heap.Remove(p.scheduleOf(t), t.index)
	}
}

// Snapshot returns what is known about every probe.
func (p *Prober) Snapshot() map[edge.Probe]edge.Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[edge.Probe]edge.Health, len(p.targets))
	for probe, t := range p.targets {
		all[probe] = t.health
	}
	return all
}

// Changed is signalled when Snapshot returns something else than before.
// Several changes may be one signal.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Failed says that a connection could not be made. The address is Through of
// the probes that it concerns, or their Addr if they have none. It counts as a
// failure, though only once between two probes: a hundred connections that fail
// in one moment are one event. Then the probes are made now, ahead of the
// others, and every 200 ms until one succeeds or the backend is down.
//
// A ProbeHealthz is asked then and not blamed: a node can be well whose backend
// is not. Failed does not block.
func (p *Prober) Failed(addr netip.AddrPort, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, t := range p.byAddr[addr] {
		p.blameLocked(t, err, now)
		p.hurryLocked(t, now)
	}
}

// Suspect says that a connection to the address has not been answered yet: its
// probes are made as after a failure, which it is not. It does not block.
func (p *Prober) Suspect(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, t := range p.byAddr[addr] {
		if t.health.State != edge.Down {
			p.hurryLocked(t, now)
		}
	}
}

// blameLocked counts a failed connection against a target.
func (p *Prober) blameLocked(t *target, err error, now time.Time) {
	switch {
	case t.Interval <= 0 || t.Kind == edge.ProbeHealthz || t.blamed || isOwn(err):
		return
	case t.health.State == edge.Down:
		// Its probes know better why. But this is no series of successes.
		t.successes = 0
		return
	}
	t.blamed = true
	before := t.health
	t.fail(ofConnection(err), now)
	t.health.Silent = isTimeout(err) || isSilence(err)
	p.tellLocked(t, before, now)
}

// hurryLocked has a target probed as soon as may be, if that has a use.
func (p *Prober) hurryLocked(t *target, now time.Time) {
	if t.Interval <= 0 || t.hurry || t.health.State == edge.Down && !t.blamed {
		return
	}
	if t.running {
		// What runs may have begun before the failure: once more afterwards.
		t.hurry = true
		return
	}
	heap.Remove(&p.due, t.index)
	t.hurry = true
	p.scheduleLocked(t, t.sooner(t.at, now))
	signal(p.wake)
}

// scheduleLocked puts a target that waits into its schedule.
func (p *Prober) scheduleLocked(t *target, at time.Time) {
	t.at = at
	heap.Push(p.scheduleOf(t), t)
}

func (p *Prober) scheduleOf(t *target) *schedule {
	if t.hurry {
		return &p.hurried
	}
	return &p.due
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	var probing sync.WaitGroup
	defer probing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ready, next := p.take(time.Now())
		for _, t := range ready {
			probing.Add(1)
			go p.probe(ctx, t, &probing)
		}
		// With nothing to wait for a result or Apply wakes us.
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-p.wake:
		}
	}
}

// take removes the targets that are due and may run, and returns when the next
// one is; zero if there is none, or it waits for a probe to end.
func (p *Prober) take(now time.Time) (ready []*target, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range []struct {
		schedule *schedule
		limit    int
	}{{&p.hurried, p.concurrency + hurriedReserve}, {&p.due, p.concurrency}} {
		for len(*s.schedule) > 0 && p.running < s.limit {
			t := (*s.schedule)[0]
			if t.at.After(now) {
				if next.IsZero() || t.at.Before(next) {
					next = t.at
				}
				break
			}
			heap.Pop(s.schedule)
			t.running, t.started = true, now
			t.hurried, t.hurry = t.hurry, false
			t.ask = t.Probe
			if t.health.State == edge.Up && !t.hurried && isConnect(t.Type) {
				// Its pods need not be troubled with a connection each time.
				t.ask.Through = netip.AddrPort{}
			}
			p.running++
			ready = append(ready, t)
		}
	}
	return ready, next
}

// probe makes one probe and notes what it found.
func (p *Prober) probe(ctx context.Context, t *target, probing *sync.WaitGroup) {
	defer probing.Done()
	heard, err := p.ask(ctx, t.ask)
	if ctx.Err() != nil {
		return // stopped in the middle: says nothing about the backend
	}
	p.note(t, heard, err, time.Now())
}

// note takes a result and says when the next probe is made.
func (p *Prober) note(t *target, heard heard, err error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	t.running, t.blamed = false, false
	if p.asked != nil {
		p.asked(err == nil, now.Sub(t.started))
	}
	signal(p.wake)
	if t.gone {
		return
	}
	before := t.health
	if !heard.silence {
		t.spoke = true
	} else if t.Kind == edge.ProbeHealthz && !t.spoke {
		// A firewall, perhaps: nobody has ever seen this healthz, and whether the
		// node is alive others tell.
		err = nil
	}
	t.judge(err, now)
	t.health.Silent, t.health.Confirmed = err != nil && heard.silence, heard.confirmed
	if heard.endpoints {
		t.health.Weight = heard.weight
	}
	if t.succeeded || now.Sub(t.since) >= eagerFor {
		p.calmLocked(t)
	}
	switch {
	case t.health.State == edge.Down:
		t.hurry = false
	case err != nil && t.hurried:
		t.hurry = true
	}
	p.scheduleLocked(t, p.nextLocked(t, now))
	p.tellLocked(t, before, now)
}

// tellLocked says what has changed about a target.
func (p *Prober) tellLocked(t *target, before edge.Health, now time.Time) {
	if t.health.State != before.State {
		t.health.Since = now
	}
	if t.health != before {
		signal(p.changed)
	}
	if t.health.State != before.State {
		p.log.Info("backend changed its state", "addr", t.Addr.String(), "probe", string(t.Kind), "check", t.question(),
			"state", string(t.health.State), "error", t.health.Error)
	}
}

// calmLocked ends the time in which a new target is probed eagerly.
func (p *Prober) calmLocked(t *target) {
	if t.eager {
		t.eager = false
		p.eager--
	}
}

// judge is the rule of the package comment.
func (t *target) judge(err error, now time.Time) {
	t.tries++
	if err == nil {
		t.failures, t.successes = 0, t.successes+1
		t.health.Error = ""
		if !t.succeeded || t.successes >= t.Rise {
			t.health.State = edge.Up
		}
		t.succeeded = true
		return
	}
	if isOwn(err) {
		t.health.Error = err.Error()
		return
	}
	t.fail(err, now)
}

// fail counts a failure.
func (t *target) fail(err error, now time.Time) {
	t.health.Error = err.Error()
	t.failures, t.successes = t.failures+1, 0
	if t.failures >= t.Fall && (t.succeeded || now.Sub(t.since) >= pendingFor) {
		t.health.State = edge.Down
	}
}

// nextLocked is when the next probe of the target is made.
func (p *Prober) nextLocked(t *target, now time.Time) time.Time {
	var at time.Time
	if t.eager {
		// Thousands that are waited for at once would make a machine of this busy.
		pause := max(eagerPause, time.Duration(p.eager)*spreadEach)
		at = now.Add(min(t.Interval, pause, firstPause<<min(t.tries-1, 10)))
	} else {
		tenth := t.Interval / jitterPart
		at = t.started.Add(t.Interval - tenth + rand.N(max(2*tenth, 1)))
		// Onto a grid: a probe that comes alone costs several times one of a batch,
		// most of it waking threads up.
		// (Not by Time.Truncate, which drops the monotonic clock.)
		if grid := min(batchEach, tenth); grid > 0 {
			at = at.Add(-(at.Sub(p.began) % grid))
		}
	}
	if t.hurry {
		at = t.sooner(at, now)
	}
	if at.Before(now) { // the probe took longer than the interval
		return now
	}
	return at
}

// sooner is at, or the time of a hurried probe if that is earlier.
func (t *target) sooner(at, now time.Time) time.Time {
	hurried := t.started.Add(hurriedPause)
	if hurried.Before(now) {
		hurried = now
	}
	if hurried.Before(at) {
		return hurried
	}
	return at
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// schedule is a heap of targets by the time of their next probe.
type schedule []*target

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].at.Before(s[j].at) }
func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push is for container/heap.
func (s *schedule) Push(x any) {
	t := x.(*target)
	t.index = len(*s)
	*s = append(*s, t)
}

// Pop is for container/heap.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	t := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return t
}
