package daemon

import (
	"context"
	"sync"
)

// A slot holds one task that a reload may replace: the connection to a cluster,
// the admin server. Setting another key ends the old task and starts the new
// one; the same key again changes nothing.
type slot struct {
	mu     sync.Mutex
	key    string
	cancel context.CancelFunc
	done   chan struct{}
}

// set makes run the task of the slot. An empty key leaves the slot empty.
func (s *slot) set(ctx context.Context, key string, run func(context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == s.key {
		return
	}
	s.stopLocked()
	s.key = key
	if key == "" {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	s.cancel, s.done = cancel, done
	go func() {
		defer close(done)
		run(ctx)
	}()
}

// holds says whether key is the one that was set last.
func (s *slot) holds(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key == key
}

func (s *slot) stopLocked() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	<-s.done
	s.cancel, s.done = nil, nil
}

// stop ends the task and waits for it.
func (s *slot) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopLocked()
	s.key = ""
}
