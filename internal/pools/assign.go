package pools

import (
	"cmp"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/edge"
)

// assignment is an Assign at work. What has been given is not taken back, so
// that what a segment has left never begins before where it did.
type assignment struct {
	in     *Input
	spaces map[string]*space
	never  map[netip.Addr]string
	asks   []*ask // of Input.Wants, in their order
	owners map[netip.Addr]*owner
	// held are the addresses that nobody has any more, with the names of the
	// Services that may have them.
	held   map[netip.Addr][]string
	before []edge.Allocation // sorted
	claims map[Place][]int   // of before
}

// owner is who has an address: the oldest of those that share it by their key.
type owner struct {
	key string
	*ask
}

func newAssignment(in *Input) *assignment {
	a := &assignment{
		in: in, spaces: newSpaces(in), never: never(in),
		owners: map[netip.Addr]*owner{}, held: map[netip.Addr][]string{}, claims: map[Place][]int{},
	}
	a.before = slices.SortedFunc(slices.Values(in.Before), compareAllocations)
	for i, b := range a.before {
		at := Place{b.Service, b.Zone}
		a.claims[at] = append(a.claims[at], i)
	}
	zones := make(map[string][]string, len(in.Wants))
	for i := range in.Wants {
		zones[in.Wants[i].Service] = append(zones[in.Wants[i].Service], in.Wants[i].Zone)
	}
	for i := range in.Wants {
		a.asks = append(a.asks, a.newAsk(i, zones[in.Wants[i].Service]))
	}
	return a
}

func compareAllocations(a, b edge.Allocation) int {
	order := cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Zone, b.Zone))
	if order == 0 && a.Held != b.Held {
		if a.Held {
			return 1
		}
		return -1
	}
	return cmp.Or(order, cmp.Compare(a.UID, b.UID), cmp.Compare(a.Pool, b.Pool))
}

// keep leaves everybody what they have: what was decided before, then what is
// held for who is there again, then what the status of Services says.
func (a *assignment) keep() {
	settled := make([]bool, len(a.before))
	for _, w := range a.asks {
		for _, i := range a.claimsOf(w) {
			if b := &a.before[i]; !b.Held && b.UID == w.UID {
				settled[i] = a.claim(w, b.Addr) != refused
			}
		}
		for i := range w.uses {
			w.uses[i].kept = w.uses[i].filled
		}
	}
	for i := range a.before {
		if b := &a.before[i]; !settled[i] && a.owners[b.Addr] == nil && a.segmentOf(b) != nil {
			a.hold(b)
		}
	}
	for _, w := range a.asks {
		for _, i := range a.claimsOf(w) {
			a.claim(w, a.before[i].Addr)
		}
	}
	for _, w := range a.asks {
		for _, addr := range w.Status {
			a.claim(w, addr.Unmap())
		}
	}
}

// claimsOf are what a Service had or may have again, what its status says first.
func (a *assignment) claimsOf(w *ask) []int {
	of := a.claims[Place{w.Service, w.Zone}]
	if len(of) < 2 {
		return of
	}
	rank := func(i int) uint { return uint(slices.Index(w.Status, a.before[i].Addr)) } // none: the most
	return slices.SortedStableFunc(slices.Values(of), func(i, j int) int { return cmp.Compare(rank(i), rank(j)) })
}

// segmentOf is where an allocation of before is now; nil: it is of no pool.
func (a *assignment) segmentOf(b *edge.Allocation) *segment {
	if z := a.spaces[b.Zone]; z != nil && a.never[b.Addr] == "" {
		return z.at(b.Addr)
	}
	return nil
}

func (a *assignment) hold(b *edge.Allocation) {
	if a.held[b.Addr] == nil {
		a.segmentOf(b).held++
	}
	a.held[b.Addr] = append(a.held[b.Addr], b.Service)
}

// verdict is what has become of a claim.
type verdict int

const (
	refused verdict = iota
	granted
	forgotten // it is in conflict, and nobody knows it as this Service's
)

// claim gives a Service an address that it has already, if that is what it
// wants. Of several in one slot it keeps the first, but for those that it asks
// for, and while it is not known where they are: then all that it had last.
func (a *assignment) claim(w *ask, addr netip.Addr) verdict {
	if w.has(addr) {
		return granted
	}
	s := w.space.at(addr)
	if s == nil || a.never[addr] != "" || !w.may(s.pool) || !w.wants(s.slot) || !a.free(w, addr) {
		return refused
	}
	use := &w.uses[s.slot.index]
	requested := slices.Contains(w.requested, addr)
	switch {
	case requested:
	case slices.Contains(use.named, s.pool) && !w.hasOf(s.pool, s.slot):
	case w.closed(s.slot):
		return refused
	case w.space.away && len(s.slot.networks) == 0 && !use.kept:
	case use.asked || use.filled:
		return refused
	}
	if !requested && a.in.Unusable[addr] != "" && !slices.Contains(w.Status, addr) {
		w.spoilt = append(w.spoilt, grant{addr, s})
		return forgotten
	}
	a.give(w, s, addr)
	return granted
}

// free says that a Service can have an address: nobody has it, or somebody who
// shares it, and nobody else may have it again.
func (a *assignment) free(w *ask, addr netip.Addr) bool {
	if o := a.owners[addr]; o != nil {
		return o.key != "" && o.key == w.Key
	}
	held := a.held[addr]
	return held == nil || slices.Contains(held, w.Service)
}

func (a *assignment) give(w *ask, s *segment, addr netip.Addr) {
	if o := a.owners[addr]; o != nil {
		if w.rank < o.rank {
			o.ask = w
		}
	} else {
		a.owners[addr] = &owner{w.Key, w}
		s.given++
		if a.held[addr] != nil {
			s.held--
		}
	}
	if w.Key != "" && a.in.Unusable[addr] == "" {
		if s.sharedBy == nil {
			s.sharedBy = map[string]netip.Addr{}
		}
		if lowest, ok := s.sharedBy[w.Key]; !ok || addr.Less(lowest) {
			s.sharedBy[w.Key] = addr
		}
	}
	w.given = append(w.given, grant{addr, s})
	w.uses[s.slot.index].filled = true
}

// fulfil gives Services what they ask for.
func (a *assignment) fulfil() {
	for _, w := range a.asks {
		for _, addr := range w.requested {
			switch {
			case w.has(addr):
			case a.free(w, addr):
				a.give(w, w.space.at(addr), addr)
			default:
				w.lost = append(w.lost, addr)
			}
		}
		for i, use := range w.uses {
			for _, p := range use.named {
				slot := w.space.slots[i]
				of := func(s *segment) bool { return s.pool == p }
				if !w.hasOf(p, slot) && !a.take(w, slot, of) {
					w.fail(exhausted(slot, of))
				}
			}
		}
	}
}

// serve gives Services an address where they ask for none.
func (a *assignment) serve() {
	for _, w := range a.asks {
		may := func(s *segment) bool { return s.pool.Auto && w.may(s.pool) }
		for i, use := range w.uses {
			slot := w.space.slots[i]
			switch {
			case use.own:
				w.own = append(w.own, slot.networks...)
			case use.asked, use.filled, w.closed(slot), !w.wants(slot):
			case !slices.ContainsFunc(slot.segments, may):
				w.own = append(w.own, slot.networks...)
			case !a.take(w, slot, may):
				w.fail(exhausted(slot, may))
			}
		}
	}
}

// take gives a Service an address of some segments of a slot: one that it can
// share, or else the lowest of the first pool that has one. If there is none, one
// that it had and that is in conflict is better than nothing: as long as it has
// that, it is asked for, and its owner told who else does.
func (a *assignment) take(w *ask, slot *slot, of func(*segment) bool) bool {
	if w.Key != "" {
		for _, s := range slot.segments {
			if addr, ok := s.sharedBy[w.Key]; ok && of(s) {
				a.give(w, s, addr)
				return true
			}
		}
	}
	for _, s := range slot.segments {
		if !of(s) {
			continue
		}
		if addr := a.lowest(s); addr.IsValid() {
			a.give(w, s, addr)
			return true
		}
	}
	for _, g := range w.spoilt {
		if g.segment.slot == slot && of(g.segment) && a.free(w, g.addr) {
			a.give(w, g.segment, g.addr)
			return true
		}
	}
	return false
}

// lowest is the lowest address of a segment that is free for anybody. It passes
// over what has been given or cannot be, once, however large the segment is.
func (a *assignment) lowest(s *segment) netip.Addr {
	for ; s.next.IsValid(); s.pass() {
		if addr := s.next; a.owners[addr] == nil && a.held[addr] == nil && a.never[addr] == "" && a.in.Unusable[addr] == "" {
			return addr
		}
	}
	return netip.Addr{}
}

func (s *segment) pass() {
	if s.next == s.last {
		s.next = netip.Addr{}
	} else {
		s.next = s.next.Next()
	}
}

func (a *assignment) result() Result {
	r := Result{Of: make(map[Place]Outcome, len(a.asks))}
	for _, w := range a.asks {
		for _, addr := range w.lost {
			w.fail(a.inUse(addr))
		}
		o := Outcome{Own: w.own}
		slices.SortFunc(w.given, func(a, b grant) int { return a.addr.Compare(b.addr) })
		for _, g := range w.given {
			if reason := a.in.Unusable[g.addr]; reason != "" {
				w.fail(conflict(g.addr, reason))
			}
			o.Given = append(o.Given, Given{g.addr, g.segment.pool.Name, g.segment.slot.device()})
			r.Allocations = append(r.Allocations, edge.Allocation{Addr: g.addr, Pool: g.segment.pool.Name, Zone: w.Zone, Service: w.Service, UID: w.UID})
		}
		o.Failures = w.failures
		r.Of[Place{w.Service, w.Zone}] = o
	}
	var last Place
	for _, b := range a.before { // those of one Service and zone are side by side
		at := Place{b.Service, b.Zone}
		known := len(r.Allocations) > 0 && at == last && r.Allocations[len(r.Allocations)-1].Addr == b.Addr
		if s := a.segmentOf(&b); !known && s != nil && a.owners[b.Addr] == nil && slices.Contains(a.held[b.Addr], b.Service) {
			b.Held, b.Pool, last = true, s.pool.Name, at
			r.Allocations = append(r.Allocations, b)
		}
	}
	slices.SortFunc(r.Allocations, compareAllocations)
	return r
}
