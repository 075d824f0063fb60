package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"e13.dev/gatehouse/internal/edge"
)

func TestRepeatedEventsAreCounted(t *testing.T) {
	l, now := newEventLog(), time.Unix(1e9, 0)
	opened := edge.Event{Namespace: "shop", Name: "web", UID: "u1", Reason: "ZoneOpened", Message: "open in home"}
	first, ok := l.add(opened, 1, now)
	if !ok || first.Count != 1 || first.Type != "Normal" || first.Name != "web.de0b6b3a7640000" ||
		first.InvolvedObject.UID != "u1" || first.Source.Component != "gatehouse" {
		t.Fatalf("first: %v %+v", ok, first)
	}
	now = now.Add(time.Minute)
	second, _ := l.add(opened, 1, now)
	if second.Name != first.Name || second.Count != 2 || !second.LastTimestamp.Time.Equal(now) || !second.FirstTimestamp.Time.Equal(now.Add(-time.Minute)) {
		t.Errorf("second: %+v", second)
	}
	conflict := opened
	conflict.Warning, conflict.Reason = true, "PortConflict"
	if other, _ := l.add(conflict, 1, now); other.Name == first.Name || other.Count != 1 || other.Type != "Warning" {
		t.Errorf("another: %+v", other)
	}
	if later, _ := l.add(opened, 1, now.Add(2*time.Hour)); later.Count != 1 || later.Name == first.Name {
		t.Errorf("after the API server has dropped it: %+v", later)
	}
}

func TestAFloodOfEventsIsLimitedForEachService(t *testing.T) {
	l, now := newEventLog(), time.Unix(1e9, 0)
	written := func(uid string, n int) int {
		count := 0
		for i := range n {
			e, ok := l.add(edge.Event{Namespace: "shop", Name: "web", UID: uid, Reason: "R", Message: fmt.Sprint(now, i), Warning: true}, 1, now)
			if ok && e.Count != 1 {
				t.Errorf("count %d of one that is new", e.Count)
			}
			if ok {
				count++
			}
		}
		return count
	}
	if got := written("u1", 100); got != 25 {
		t.Errorf("%d of 100 written", got)
	}
	if got := written("u2", 3); got != 3 {
		t.Errorf("%d of 3 written for another Service", got)
	}
	now = now.Add(10 * time.Minute)
	if got := written("u1", 100); got != 2 {
		t.Errorf("%d of 100 written after ten minutes", got)
	}
	if now = now.Add(24 * time.Hour); written("u3", 1) != 1 || len(l.told) != 1 || len(l.budget) != 1 {
		t.Errorf("%d events and %d budgets remembered for a day", len(l.told), len(l.budget))
	}
}

func TestLongEventMessagesAreCut(t *testing.T) {
	for _, message := range []string{strings.Repeat("x", 5000), "x" + strings.Repeat("é", 3000)} {
		e := newEvent(edge.Event{Message: message}, time.Unix(0, 0))
		if len(e.Message) > 1024 || len(e.Message) < 1000 || !utf8.ValidString(e.Message) || !strings.HasSuffix(e.Message, " ...") {
			t.Errorf("%d bytes: %q", len(e.Message), e.Message[len(e.Message)-10:])
		}
	}
	if e := newEvent(edge.Event{Message: strings.Repeat("x", 1024)}, time.Unix(0, 0)); strings.HasSuffix(e.Message, "...") {
		t.Error("a message that fits was cut")
	}
}

// What tells of trouble is not kept from a Service by what tells of nothing.
func TestWarningsHaveTheLastOfWhatAServiceIsTold(t *testing.T) {
	l, now := newEventLog(), time.Unix(1e9, 0)
	tell := func(warning bool, n int) (written int) {
		for i := range n {
			if _, ok := l.add(edge.Event{UID: "u1", Warning: warning, Message: fmt.Sprint(i)}, 1, now); ok {
				written++
			}
		}
		return written
	}
	if got := tell(false, 100); got != 20 {
		t.Errorf("%d of 100 normal ones written", got)
	}
	if got := tell(true, 100); got != 5 {
		t.Errorf("%d of 100 warnings written", got)
	}
}

func TestAFloodOfEventsIsBounded(t *testing.T) {
	c := client(t, "https://127.0.0.1:1")
	put := func(warning bool, n int) {
		for i := range n {
			c.Emit(edge.Event{Namespace: "shop", Name: fmt.Sprint("web-", i), Warning: warning})
		}
	}
	put(false, 10_000)
	put(true, 5_000)
	if normal, warnings := len(c.events.waiting[0]), len(c.events.waiting[1]); normal != 1024 || warnings != 5_000 {
		t.Fatalf("%d normal ones and %d warnings wait", normal, warnings)
	}
	put(true, 100_000)
	if len(c.events.waiting[1]) != 8192 || len(c.events.times) != 8192+1024 {
		t.Errorf("%d warnings wait, of %d different ones", len(c.events.waiting[1]), len(c.events.times))
	}
	for i := range 8192 + 1024 {
		e, _, ok := c.events.take()
		if want := i < 8192; !ok || e.Warning != want {
			t.Fatalf("%d: %+v %v", i, e, ok)
		}
	}
	if _, _, ok := c.events.take(); ok || len(c.events.times) != 0 {
		t.Error("there is more")
	}
}

func TestWhatIsToldAgainWhileItWaitsIsCounted(t *testing.T) {
	q := newEventQueue()
	one, other := edge.Event{UID: "u1", Reason: "ZoneOpened"}, edge.Event{UID: "u1", Reason: "ZoneClosed"}
	for range 1000 { // a Service that flaps while the API server is away
		q.put(one)
		q.put(other)
	}
	for _, want := range []edge.Event{one, other} {
		if got, times, _ := q.take(); got != want || times != 1000 {
			t.Errorf("%+v, %d times", got, times)
		}
	}
	l := newEventLog()
	if e, _ := l.add(one, 1000, time.Unix(1e9, 0)); e.Count != 1000 || e.created {
		t.Errorf("%+v", e)
	}
}

func TestDroppedEventsAreSaidOnce(t *testing.T) {
	q := newEventQueue()
	said := 0
	flood := func() {
		for i := range 3 * maxQueuedEvents {
			if q.put(edge.Event{Name: fmt.Sprint(i)}) {
				said++
			}
		}
	}
	flood()
	flood()
	if said != 1 {
		t.Errorf("said %d times", said)
	}
	for ok := true; ok; _, _, ok = q.take() {
	}
	flood()
	if said != 2 {
		t.Errorf("said %d times, of two floods", said)
	}
}
