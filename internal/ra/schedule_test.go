package ra

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s schedule
	is := func(when string, want time.Duration) {
		t.Helper()
		if got := s.next.Sub(start); got != want {
			t.Errorf("%s: next at %s, want %s", when, got, want)
		}
	}
	s.changed(start)
	is("at the beginning", 0)
	s.told(start, 30*time.Minute, 1)
	is("after the first", 4*time.Second)
	s.asked(start.Add(time.Second), 1)
	is("asked within the least time", 3*time.Second)
	s.told(start.Add(3*time.Second), 30*time.Minute, 0)
	is("after the second", 7*time.Second)
	s.asked(start.Add(6900*time.Millisecond), 1)
	is("asked just before the next", 7*time.Second)
	s.told(start.Add(7*time.Second), 30*time.Minute, 0)
	is("after the third, at the earliest", 207*time.Second)
	s.told(start.Add(207*time.Second), 30*time.Minute, 1)
	is("at the latest", 807*time.Second)
	s.asked(start.Add(300*time.Second), 0.5)
	is("asked in between", 300*time.Second+250*time.Millisecond)
	s.told(start.Add(301*time.Second), 30*time.Minute, 1)
	s.changed(start.Add(302 * time.Second))
	is("changed within the least time", 304*time.Second)
	s.told(start.Add(304*time.Second), 30*time.Minute, 1)
	is("after a change", 308*time.Second)
	s.changed(start.Add(310 * time.Second))
	is("changed", 310*time.Second)
}

func TestIntervals(t *testing.T) {
	for _, c := range []struct{ lifetime, most, least time.Duration }{
		{0, 10 * time.Minute, 200 * time.Second},
		{30 * time.Minute, 10 * time.Minute, 200 * time.Second},
		{time.Minute, 20 * time.Second, 20 * time.Second / 3},
		{time.Second, 4 * time.Second, 3 * time.Second},
	} {
		if most, least := intervals(c.lifetime); most != c.most || least != c.least {
			t.Errorf("intervals(%s) = %s, %s; want %s, %s", c.lifetime, most, least, c.most, c.least)
		}
	}
}

// Whatever happens when: never two within the least time, and never none for
// longer than the longest.
func TestScheduleKeepsItsBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s schedule
	s.changed(now)
	for n := range 100_000 {
		if now.Before(s.next) && random.IntN(3) > 0 {
			now = now.Add(time.Duration(random.Int64N(int64(s.next.Sub(now)) + 1)))
			if random.IntN(4) == 0 {
				s.changed(now)
			} else {
				s.asked(now, random.Float64())
			}
			continue
		}
		now = s.next
		if since := now.Sub(s.last); !s.last.IsZero() && (since < leastInterval || since > mostInterval) {
			t.Fatalf("step %d: %s after the last", n, since)
		}
		s.told(now, 30*time.Minute, random.Float64())
	}
}
