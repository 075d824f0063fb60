package daemon

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
)

// holdAddresses is for how long nobody else gets an address that a Service has
// left: neighbours and clients still know it as that one's, and a Service that is
// made anew by the same name is to have it again.
const holdAddresses = time.Minute

// ledger knows who has which address of a pool, and who had until a while ago.
type ledger struct {
	all []laststate.Allocation // sorted as Build has them
}

// holder tells allocations apart. A Service that is made anew has another UID.
type holder struct {
	addr          netip.Addr
	zone, service string
}

func holderOf(a edge.Allocation) holder { return holder{a.Addr, a.Zone, a.Service} }

// before are the allocations that a decision is made from.
func (l *ledger) before(now time.Time) []edge.Allocation {
	var all []edge.Allocation
	for _, a := range l.all {
		if !a.Held || now.Before(a.Left.Add(holdAddresses)) {
			all = append(all, a.Allocation)
		}
	}
	return all
}

// note takes what was decided of all Services. What somebody had, and nobody has
// now, is held.
func (l *ledger) note(now time.Time, decided []edge.Allocation) {
	next := make([]laststate.Allocation, 0, len(decided))
	has := make(map[holder]bool, len(decided))
	for _, a := range decided {
		if !a.Held {
			next = append(next, laststate.Allocation{Allocation: a})
			has[holderOf(a)] = true
		}
	}
	for _, a := range l.all {
		if has[holderOf(a.Allocation)] {
			continue
		}
		if !a.Held {
			a.Held, a.Left = true, now
		}
		if now.Before(a.Left.Add(holdAddresses)) {
			next = append(next, a)
		}
	}
	slices.SortStableFunc(next, func(x, y laststate.Allocation) int {
		return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Service, y.Service), cmp.Compare(x.Zone, y.Zone))
	})
	l.all = next
}

// take goes on from what a process before has noted. Its clock may have been
// another.
func (l *ledger) take(now time.Time, all []laststate.Allocation) {
	l.all = slices.Clone(all)
	for i := range l.all {
		if a := &l.all[i]; a.Held && a.Left.After(now) {
			a.Left = now
		}
	}
}

// next is when the first of those that are held is free; zero: none is held.
func (l *ledger) next() time.Time {
	var first time.Time
	for _, a := range l.all {
		if a.Held {
			first = earlier(first, a.Left.Add(holdAddresses))
		}
	}
	return first
}
