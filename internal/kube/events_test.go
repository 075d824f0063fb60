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
	first, ok := l.add(opened, now)
	if !ok || first.Count != 1 || first.Type != "Normal" || first.Name != "web.de0b6b3a7640000" ||
		first.InvolvedObject.UID != "u1" || first.Source.Component != "gatehouse" {
		t.Fatalf("first: %v %+v", ok, first)
	}
	now = now.Add(time.Minute)
	second, _ := l.add(opened, now)
	if second.Name != first.Name || second.Count != 2 || !second.LastTimestamp.Time.Equal(now) || !second.FirstTimestamp.Time.Equal(now.Add(-time.Minute)) {
		t.Errorf("second: %+v", second)
	}
	conflict := opened
	conflict.Warning, conflict.Reason = true, "PortConflict"
	if other, _ := l.add(conflict, now); other.Name == first.Name || other.Count != 1 || other.Type != "Warning" {
		t.Errorf("another: %+v", other)
	}
	if later, _ := l.add(opened, now.Add(2*time.Hour)); later.Count != 1 || later.Name == first.Name {
		t.Errorf("after the API server has dropped it: %+v", later)
	}
}

func TestAFloodOfEventsIsLimitedForEachService(t *testing.T) {
	l, now := newEventLog(), time.Unix(1e9, 0)
	written := func(uid string, n int) int {
		count := 0
		for i := range n {
			e, ok := l.add(edge.Event{Namespace: "shop", Name: "web", UID: uid, Reason: "R", Message: fmt.Sprint(now, i)}, now)
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

func TestEmitNeverBlocks(t *testing.T) {
	c := client(t, "https://127.0.0.1:1")
	for range 3 * maxQueuedEvents {
		c.Emit(edge.Event{Namespace: "shop", Name: "web"})
	}
	if len(c.events) != maxQueuedEvents {
		t.Errorf("%d events wait", len(c.events))
	}
}
