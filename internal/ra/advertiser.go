package ra

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Link is what is advertised on an interface, and which one that is.
type Link struct {
	Index   int // of the interface that has the name now
	Content Content
}

// Told is until when addresses in prefixes may be used that were advertised, by
// interface: what has to be taken back if it is not so any more.
type Told map[string]map[netip.Prefix]time.Time

// Options say what an Advertiser does beside its work.
type Options struct {
	// Changed is called when Status says another error; nil: nobody is.
	Changed func()
}

// Advertiser advertises on interfaces. Its methods may be called at any time.
type Advertiser struct {
	log     *slog.Logger
	changed func()

	mu      sync.Mutex
	workers map[string]*worker
	memory  map[string]*memory
	ended   sync.WaitGroup
	// Of workers that are gone.
	counts map[string]Status
}

// New makes an Advertiser, which does nothing before Apply.
func New(log *slog.Logger, o Options) *Advertiser {
	a := &Advertiser{log: log, changed: o.Changed, workers: map[string]*worker{}, memory: map[string]*memory{}, counts: map[string]Status{}}
	if a.changed == nil {
		a.changed = func() {}
	}
	return a
}

// Recall says what was told by a process before, on interfaces where this one has
// told nothing. It is for before the first Apply.
func (a *Advertiser) Recall(before Told) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for device, prefixes := range before {
		if a.memory[device] == nil {
			m := newMemory()
			maps.Copy(m.prefixes, prefixes)
			a.memory[device] = m
		}
	}
}

// Told is what was told and holds still.
func (a *Advertiser) Told() Told {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := Told{}
	for device, m := range a.memory {
		unlock := func() {}
		if w := a.workers[device]; w != nil {
			w.mu.Lock()
			unlock = w.mu.Unlock
		}
		if len(m.prefixes) > 0 {
			told[device] = maps.Clone(m.prefixes)
		}
		unlock()
	}
	return told
}

// Apply advertises on these interfaces and no others, by name; on those that are
// not among them any more everybody is told that this is no router. Interfaces
// that are down are to be left out: when they are up again, it begins anew there,
// and what was told before and is not so any more is taken back.
func (a *Advertiser) Apply(ctx context.Context, links map[string]Link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for device, w := range a.workers {
		if link, wanted := links[device]; !wanted || link.Index != w.index {
			a.endLocked(w, errLast)
		}
	}
	for _, device := range slices.Sorted(maps.Keys(links)) {
		link := links[device]
		if w := a.workers[device]; w != nil {
			w.set(link.Content)
			continue
		}
		if a.memory[device] == nil {
			a.memory[device] = newMemory()
		}
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		w := &worker{
			device: device, index: link.Index, cancel: cancel, done: make(chan struct{}), kick: make(chan struct{}, 1),
			report: a.changed, content: link.Content.clone(), memory: a.memory[device], status: a.counts[device],
		}
		a.workers[device] = w
		a.ended.Go(func() { w.run(ctx) })
		a.log.Info("router advertisements", "interface", device)
	}
}

// endLocked ends a worker and keeps what it has counted.
func (a *Advertiser) endLocked(w *worker, cause error) {
	w.cancel(cause)
	// It has at most one packet to send. Another worker of the interface has the
	// same memory.
	<-w.done
	w.status.Error, w.status.Deprecated = "", nil
	a.counts[w.device] = w.status
	delete(a.workers, w.device)
	a.log.Info("router advertisements ended", "interface", w.device)
}

// Stop ends all. With last everybody is told that this is no router any more;
// without, another process goes on. Apply begins again.
func (a *Advertiser) Stop(last bool) {
	cause := errors.New("another process goes on")
	if last {
		cause = errLast
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		a.endLocked(w, cause)
	}
	a.ended.Wait()
}

// Status is what was done, by interface, where advertisements are sent now.
func (a *Advertiser) Status() map[string]Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string]Status, len(a.workers))
	for device, w := range a.workers {
		w.mu.Lock()
		s := w.status
		s.Deprecated = slices.Clone(s.Deprecated)
		all[device] = s
		w.mu.Unlock()
	}
	return all
}
