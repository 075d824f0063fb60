package daemon

import (
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/status"
)

// work counts what is done, wherever it is done. A nil work counts nothing.
type work struct {
	mu   sync.Mutex
	done status.Work
}

func (w *work) note(add func(*status.Work)) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	add(&w.done)
}

// decided notes a decision that was applied, and when what it follows from had
// been noticed.
func (w *work) decided(noticed time.Time) {
	took := time.Since(noticed)
	w.note(func(done *status.Work) { done.Decisions.Took(took) })
}

// asked notes a health check.
func (w *work) asked(passed bool, took time.Duration) {
	w.note(func(done *status.Work) {
		if passed {
			done.ChecksPassed.Took(took)
		} else {
			done.ChecksFailed.Took(took)
		}
	})
}

// applied notes that rules were to be changed.
func (w *work) applied(began time.Time, changed bool, err error) {
	if !changed && err == nil {
		return
	}
	took := time.Since(began)
	w.note(func(done *status.Work) {
		done.NATApplied.Took(took)
		if err != nil {
			done.NATFailures++
		}
	})
}

func (w *work) mended() { w.note(func(done *status.Work) { done.NATMended++ }) }

func (w *work) status(savedAt time.Time) *status.Work {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.done
	s.StateSavedAt = savedAt
	for _, t := range []*status.Timing{&s.Decisions, &s.NATApplied, &s.ChecksPassed, &s.ChecksFailed} {
		t.Within = slices.Clone(t.Within)
	}
	return &s
}
