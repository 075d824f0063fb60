package ra

import "time"

// Times of RFC 4861 §6.2.1 and §10.
const (
	// Everybody is told at random times between a third of this and this.
	mostInterval = 10 * time.Minute
	// At the beginning, and when something has changed, so many times no later than
	// so long after each other (MAX_INITIAL_RTR_ADVERTISEMENTS). It may be 16 s
	// (MAX_INITIAL_RTR_ADVERT_INTERVAL), in which who has missed one, since his cable
	// was plugged in at that moment, would be on his own.
	initialCount    = 3
	initialInterval = 4 * time.Second
	// Who asks is answered after a random time up to this (MAX_RA_DELAY_TIME).
	answerDelay = 500 * time.Millisecond
	// Everybody is never told twice within this time (MIN_DELAY_BETWEEN_RAS).
	leastInterval = 3 * time.Second
)

// schedule says when everybody is told. Random numbers are from 0 to 1.
type schedule struct {
	next    time.Time
	last    time.Time // when everybody was told last; zero: never
	initial int       // how many of the next follow each other fast
}

// intervals are the longest and the shortest time between two advertisements: a
// router's lifetime must not end because one of them was lost.
func intervals(lifetime time.Duration) (most, least time.Duration) {
	most = mostInterval
	if lifetime > 0 {
		most = max(min(most, lifetime/3), 4*time.Second)
	}
	return most, max(most/3, leastInterval)
}

// changed is called at the beginning, and when what is told is another thing.
func (s *schedule) changed(now time.Time) {
	s.initial = initialCount
	s.next = now
	s.obey()
}

// asked has everybody told because of somebody who asked and cannot be answered
// alone.
func (s *schedule) asked(now time.Time, random float64) {
	at := now.Add(scaled(answerDelay, random))
	if at.Before(s.next) {
		s.next = at
		s.obey()
	}
}

// told is called when everybody was.
func (s *schedule) told(now time.Time, lifetime time.Duration, random float64) {
	most, least := intervals(lifetime)
	interval := least + scaled(most-least, random)
	if s.initial > 0 {
		s.initial--
	}
	if s.initial > 0 {
		interval = min(interval, initialInterval)
	}
	s.last, s.next = now, now.Add(interval)
}

// obey keeps the least time after the last.
func (s *schedule) obey() {
	if earliest := s.last.Add(leastInterval); !s.last.IsZero() && s.next.Before(earliest) {
		s.next = earliest
	}
}

func scaled(d time.Duration, random float64) time.Duration {
	return time.Duration(float64(d) * random)
}
