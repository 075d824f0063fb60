package kube

import (
	"sync"
	"time"
)

// staleAfter is how long reading may fail before the snapshot is called stale:
// longer than an API server takes to be replaced by another one behind the same
// address, and shorter than pods take to move.
const staleAfter = 5 * time.Second

// freshness knows of which resources the snapshot may be out of date. A
// resource is fresh with each answer that has it, and stale once none has come
// for staleAfter since the first that failed; so a server that comes and goes
// makes no more than one change in that time.
type freshness struct {
	changed func() // called without the lock

	mu      sync.Mutex
	failing map[string]*failure
}

// failure is the time in which a resource could not be read.
type failure struct {
	timer *time.Timer
	long  bool // more than staleAfter
}

func newFreshness(changed func()) *freshness {
	return &freshness{changed: changed, failing: make(map[string]*failure)}
}

// failed notes that a resource could not be read.
func (f *freshness) failed(resource string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing[resource] != nil {
		return
	}
	now := &failure{}
	f.failing[resource] = now
	now.timer = time.AfterFunc(staleAfter, func() {
		f.mu.Lock()
		current := f.failing[resource] == now
		now.long = current
		f.mu.Unlock()
		if current {
			f.changed()
		}
	})
}

// read notes that it could.
func (f *freshness) read(resource string) {
	f.mu.Lock()
	before := f.failing[resource]
	long := false
	if before != nil {
		before.timer.Stop()
		long = before.long
		delete(f.failing, resource)
	}
	f.mu.Unlock()
	if long {
		f.changed()
	}
}

func (f *freshness) stale() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, failing := range f.failing {
		if failing.long {
			return true
		}
	}
	return false
}
