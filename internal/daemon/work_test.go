package daemon

import (
	"errors"
	"testing"
	"time"
)

func TestWorkIsCounted(t *testing.T) {
	var w work
	w.decided(time.Now().Add(-time.Second))
	w.asked(true, time.Millisecond)
	w.asked(false, 2*time.Second)
	w.applied(time.Now(), false, nil) // there was nothing to change
	w.applied(time.Now().Add(-time.Second), true, nil)
	w.applied(time.Now(), false, errors.New("the kernel said no"))
	w.mended()
	saved := time.Unix(1700000000, 0)
	s := w.status(saved)
	w.decided(time.Now()) // which s is not to know
	if s.Decisions.Count != 1 || s.Decisions.Seconds < 1 || s.Decisions.Within[8] != 0 || s.Decisions.Within[10] != 1 {
		t.Errorf("decisions: %+v", s.Decisions)
	}
	if s.ChecksPassed.Count != 1 || s.ChecksFailed.Count != 1 || s.ChecksFailed.Seconds != 2 {
		t.Errorf("checks: %+v, %+v", s.ChecksPassed, s.ChecksFailed)
	}
	if s.NATApplied.Count != 2 || s.NATApplied.Seconds < 1 || s.NATFailures != 1 || s.NATMended != 1 || !s.StateSavedAt.Equal(saved) {
		t.Errorf("got %+v", s)
	}
	var none *work
	none.mended() // of a kernel that nobody looks at
}
