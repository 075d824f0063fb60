package daemon

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
)

func allocation(addr, service, uid string) edge.Allocation {
	return edge.Allocation{Addr: netip.MustParseAddr(addr), Pool: "home", Zone: "home", Service: service, UID: uid}
}

// An address that a Service has left is nobody else's for a minute.
func TestAddressesAreHeldForAMinute(t *testing.T) {
	start := time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)
	after := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	web, mail := allocation("10.0.0.64", "shop/web", "1"), allocation("10.0.0.65", "shop/mail", "2")
	shared := allocation("10.0.0.64", "shop/api", "3")
	held := func(a edge.Allocation) edge.Allocation { a.Held = true; return a }

	type all = []edge.Allocation
	for name, tc := range map[string]struct {
		steps []struct {
			at            int
			before, after all // what is given to the decision, and what it says
		}
		next int // when the first one is free; 0: none is held
	}{
		"kept": {steps: []struct {
			at            int
			before, after all
		}{{0, nil, all{web, mail}}, {100, all{web, mail}, all{web, mail}}}},
		"left, held, free": {steps: []struct {
			at            int
			before, after all
		}{
			{0, nil, all{web, mail}},
			{10, all{web, mail}, all{mail}},
			{20, all{held(web), mail}, all{held(web), mail}},
			{69, all{held(web), mail}, all{held(web), mail}},
			{70, all{mail}, all{mail}},
		}},
		"a decision says itself that it is held": {steps: []struct {
			at            int
			before, after all
		}{{0, nil, all{web}}, {10, all{web}, all{held(web)}}, {30, all{held(web)}, all{held(web)}}}, next: 70},
		"back again by the same name": {steps: []struct {
			at            int
			before, after all
		}{
			{0, nil, all{web}},
			{10, all{web}, nil},
			{20, all{held(web)}, all{allocation("10.0.0.64", "shop/web", "9")}},
			{200, all{allocation("10.0.0.64", "shop/web", "9")}, all{allocation("10.0.0.64", "shop/web", "9")}},
		}},
		"one of two that share it": {steps: []struct {
			at            int
			before, after all
		}{{0, nil, all{shared, web}}, {10, all{shared, web}, all{shared}}, {20, all{shared, held(web)}, all{shared}}}, next: 70},
	} {
		t.Run(name, func(t *testing.T) {
			var l ledger
			for _, step := range tc.steps {
				if got := l.before(after(step.at)); !reflect.DeepEqual(got, step.before) {
					t.Fatalf("after %d s: got\n%+v\nwant\n%+v", step.at, got, step.before)
				}
				l.note(after(step.at), step.after)
				// The next process goes on from there.
				var again ledger
				again.take(after(step.at), l.all)
				l = again
			}
			want := time.Time{}
			if tc.next > 0 {
				want = after(tc.next)
			}
			if got := l.next(); !got.Equal(want) {
				t.Errorf("the first one is free at %s, want %s", got, want)
			}
		})
	}
}

// A clock that was wrong when the state was saved does not hold addresses for
// ever.
func TestHeldInTheFuture(t *testing.T) {
	now := time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)
	a := allocation("10.0.0.64", "shop/web", "1")
	a.Held = true
	var l ledger
	l.take(now, []laststate.Allocation{{Allocation: a, Left: now.AddDate(1, 0, 0)}})
	if got := l.next(); !got.Equal(now.Add(holdAddresses)) {
		t.Errorf("free at %s", got)
	}
}

// What time alone does not change is not decided again and again.
func TestWithoutAClusterNothingIsDue(t *testing.T) {
	past := time.Now().Add(-2 * holdAddresses)
	a := allocation("10.0.0.64", "shop/web", "1")
	a.Held = true
	d := &Daemon{journal: newJournal(func() {})}
	d.ledger.all = []laststate.Allocation{{Allocation: a, Left: past}}
	d.cluster.guard.loss = &loss{Since: past, Until: past}
	d.remember(&config.Config{Kubernetes: &config.Kubernetes{}}, view{}, nil)
	if !d.next.IsZero() {
		t.Errorf("due at %s", d.next)
	}
}
