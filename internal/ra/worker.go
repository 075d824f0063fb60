package ra

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	// What could not be opened or sent is tried again after this time.
	retryInterval = 250 * time.Millisecond
	// Changes that come within this time are told together: an address is added
	// before another one is removed.
	settle = 100 * time.Millisecond
	// Who asks is answered alone, if no more than so many do within answerDelay.
	mostAsking = 32
)

// worker advertises on one interface.
type worker struct {
	device string
	index  int // of the interface, which may be another one of the same name
	cancel context.CancelCauseFunc
	done   chan struct{}
	kick   chan struct{}
	report func()

	mu      sync.Mutex
	content Content
	memory  *memory // of the interface; its workers, one after the other, have it
	status  Status
}

// Status is what was done on an interface.
type Status struct {
	Sent       uint64   // advertisements to everybody
	Answered   uint64   // to somebody who had asked
	Deprecated []Prefix // that are advertised, for as long as they were told; as last advertised
	Error      string   // why nothing is advertised
}

// errLast ends a worker that has a last word, also if its socket is not there yet:
// one before it may have told something.
var errLast = errors.New("no router any more")

func (w *worker) set(c Content) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.content.equal(c) {
		return
	}
	w.content = c.clone()
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// run advertises until ctx ends.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	defer w.last(ctx)
	begun := time.Now()
	for ctx.Err() == nil {
		err := w.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errNoAddress) || time.Since(begun) > patience {
			w.failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}

// last tells everybody that this is no router any more, if that is why it ends.
func (w *worker) last(ctx context.Context) {
	if !errors.Is(context.Cause(ctx), errLast) {
		return
	}
	if s, err := open(w.device); err == nil {
		_ = w.tell(s, allNodes, true)
		s.close()
	}
}

func (w *worker) failed(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	w.mu.Lock()
	news := w.status.Error != text
	w.status.Error = text
	w.mu.Unlock()
	if news {
		w.report()
	}
}

// serve advertises as long as the socket does.
func (w *worker) serve(ctx context.Context) error {
	s, err := open(w.device)
	if err != nil {
		return err
	}
	asking, broken := make(chan netip.Addr), make(chan error, 1)
	var receiver sync.WaitGroup
	receiving, stop := context.WithCancel(ctx)
	defer receiver.Wait()
	defer s.close()
	defer stop()
	receiver.Go(func() { broken <- receive(receiving, s, asking) })

	var plan schedule
	plan.changed(time.Now())
	everybody := time.NewTimer(0)
	defer everybody.Stop()
	answer := time.NewTimer(time.Hour)
	answer.Stop()
	defer answer.Stop()
	waiting := map[netip.Addr]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			return err
		case <-w.kick:
			// A later kick finds it told already, and tells it again: that is rare.
			plan.changed(time.Now().Add(settle))
			everybody.Reset(time.Until(plan.next))
		case <-everybody.C:
			if err := w.tell(s, allNodes, false); err != nil {
				return err
			}
			w.failed(nil)
			plan.told(time.Now(), w.lifetime(), rand.Float64())
			everybody.Reset(time.Until(plan.next))
		case from := <-asking:
			switch {
			case from.IsUnspecified() || len(waiting) >= mostAsking:
				plan.asked(time.Now(), rand.Float64())
				everybody.Reset(time.Until(plan.next))
			case len(waiting) == 0:
				answer.Reset(scaled(answerDelay, rand.Float64()))
				fallthrough
			default:
				waiting[from] = true
			}
		case <-answer.C:
			for to := range waiting {
				// One that is gone is no error of the interface.
				_ = w.tell(s, to, false)
			}
			clear(waiting)
		}
	}
}

func receive(ctx context.Context, s *socket, asking chan<- netip.Addr) error {
	for {
		from, err := s.receive()
		if err != nil {
			return err
		}
		select {
		case asking <- from:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *worker) lifetime() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.content.Lifetime
}

// tell sends an advertisement to everybody or to somebody.
func (w *worker) tell(s *socket, to netip.Addr, last bool) error {
	w.mu.Lock()
	m := w.memory.tell(w.content, time.Now(), last)
	w.status.Deprecated = nil
	for _, p := range m.prefixes[len(w.content.Prefixes):] {
		w.status.Deprecated = append(w.status.Deprecated, p.Prefix)
	}
	w.mu.Unlock()
	if err := s.send(m, to); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if to == allNodes {
		w.status.Sent++
	} else {
		w.status.Answered++
	}
	return nil
}
