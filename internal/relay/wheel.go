package relay

import (
	"math"
	"math/bits"
	"time"
)

const (
	// Timers fire up to a tick late. What they are for (dials, idle times) is
	// measured in tenths of seconds and more.
	tickLength = 10 * time.Millisecond
	wheelSlots = 1024 // 10 s; what is further away goes round more than once
)

// timer calls its owner once, in the loop's thread. The zero timer is not set.
type timer struct {
	next, prev *timer
	owner      expirer
	at         int64 // tick
}

type expirer interface{ expired(l *loop) }

// wheel is a hashed timer wheel (Varghese and Lauck, 1987): setting and
// clearing a timer costs the same however many there are, and nearly all are
// cleared or set anew before they fire.
type wheel struct {
	slots [wheelSlots]timer // heads of rings; next is nil in one never used
	used  [wheelSlots / 64]uint64
	at    int64 // the tick that has been served
}

func (w *wheel) start(tick int64) { w.at = tick }

func (l *loop) tick() int64 { return int64(l.now / tickLength) }

// set has the timer fire once d has passed; one that is set already is moved.
func (l *loop) set(t *timer, d time.Duration) {
	l.clear(t)
	t.at = max(int64((l.now+d+tickLength-1)/tickLength), l.wheel.at+1)
	l.wheel.add(t)
}

func (w *wheel) add(t *timer) {
	i := t.at % wheelSlots
	head := &w.slots[i]
	if head.next == nil {
		head.next, head.prev = head, head
	}
	t.next, t.prev = head, head.prev
	t.prev.next, head.prev = t, t
	w.used[i/64] |= 1 << (i % 64)
}

// clear takes a timer back; one that is not set is left alone.
func (l *loop) clear(t *timer) {
	if t.next == nil {
		return
	}
	t.next.prev, t.prev.next = t.prev, t.next
	t.next, t.prev = nil, nil
}

// advance fires what is due by now.
func (w *wheel) advance(l *loop, now int64) {
	// After a long sleep every slot is looked at once, not more often.
	if now-w.at > wheelSlots {
		w.at = now - wheelSlots
	}
	for w.at < now {
		w.at++
		i := w.at % wheelSlots
		if w.used[i/64]&(1<<(i%64)) == 0 {
			continue
		}
		head := &w.slots[i]
		for t := head.next; t != head; {
			// What fires may clear or set any timer, this one's neighbours too.
			if t.at > now {
				t = t.next
				continue
			}
			l.clear(t)
			t.owner.expired(l)
			t = head.next
		}
		if head.next == head {
			w.used[i/64] &^= 1 << (i % 64)
		}
	}
}

// next is how long a loop may sleep, in milliseconds; -1: until an event. now
// is the time, which may be later than that of the batch.
func (w *wheel) next(now time.Duration) int {
	slot, ok := w.nextUsed()
	if !ok {
		return -1
	}
	left := time.Duration(slot)*tickLength - now
	return int(max(0, min(math.Ceil(float64(left)/float64(time.Millisecond)), math.MaxInt32)))
}

// nextUsed is the next tick whose slot may hold a timer.
func (w *wheel) nextUsed() (tick int64, ok bool) {
	from := w.at + 1
	for passed := int64(0); passed < wheelSlots; {
		i := (from + passed) % wheelSlots
		word := w.used[i/64] >> (i % 64)
		if word != 0 {
			return from + passed + int64(bits.TrailingZeros64(word)), true
		}
		passed += 64 - i%64
	}
	return 0, false
}
