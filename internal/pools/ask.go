package pools

import (
	"net/netip"
	"slices"
)

// ask is a Want, and what it gets.
type ask struct {
	*Want
	rank  int // by age
	space *space
	uses  []use // of the space's slots
	// requested are addresses that it asks for and may have.
	requested        []netip.Addr
	closed4, closed6 bool // it asks for what no zone has: nobody knows in place of what

	given    []grant
	spoilt   []grant      // it had them without asking, and they are in conflict
	lost     []netip.Addr // of those requested: somebody else has them
	own      []Network
	failures []Failure
}

// use is what a Service does with a slot.
type use struct {
	asked  bool // it asks for something there, which it may not get
	own    bool // it asks for the interface's own address
	filled bool
	kept   bool    // it has what it had at the last decision
	named  []*Pool // of each of which it wants an address
}

type grant struct {
	addr    netip.Addr
	segment *segment
}

func (a *assignment) newAsk(i int, zones []string) *ask {
	want := &a.in.Wants[i]
	z := a.spaces[want.Zone]
	w := &ask{Want: want, rank: i, space: z, uses: make([]use, len(z.slots))}
	for i, addr := range w.Addresses {
		if !slices.Contains(w.Addresses[:i], addr) {
			a.request(w, addr.Unmap(), zones)
		}
	}
	var nowhere []*Pool
	for i, name := range w.Named {
		p := z.pools[name]
		switch {
		case slices.Contains(w.Named[:i], name):
		case p == nil && slices.ContainsFunc(zones, func(zone string) bool { return a.spaces[zone].pools[name] != nil }):
		case p == nil:
			w.fail(noPool(name, zones))
			w.closed4, w.closed6 = true, true
		case !w.name(p):
			nowhere = append(nowhere, p)
		case !w.may(p):
			w.fail(poolNotAllowed(p))
		}
	}
	// Who prefers two families and has one may name a pool for each.
	if len(nowhere) > 0 && !slices.ContainsFunc(w.uses, func(u use) bool { return u.asked }) {
		w.fail(noFamily(nowhere[0], want))
		w.closed4, w.closed6 = true, true
	}
	return w
}

// request notes an address that is asked for.
func (a *assignment) request(w *ask, addr netip.Addr, zones []string) {
	has := func(zone string) bool {
		return slices.Contains(a.in.Own[zone], addr) || a.never[addr] == "" && a.spaces[zone].at(addr) != nil
	}
	near := func(zone string) bool { return a.spaces[zone].network(addr) != nil }
	network := w.space.network(addr)
	here := has(w.Zone)
	if !here && (slices.ContainsFunc(zones, has) || network == nil && slices.ContainsFunc(zones, near)) {
		return // another zone's
	}
	if addr.Is4() && !w.IPv4 || addr.Is6() && !w.IPv6 {
		w.fail(familyNotWanted(addr))
		return
	}
	switch s := w.space.at(addr); {
	case here && network != nil && slices.Contains(a.in.Own[w.Zone], addr):
		w.uses[network.index].asked, w.uses[network.index].own = true, true
	case here && s != nil && a.never[addr] == "":
		w.uses[s.slot.index].asked = true
		if !w.may(s.pool) {
			w.fail(notAllowed(addr, s.pool))
			return
		}
		w.requested = append(w.requested, addr)
	default:
		w.fail(notInPool(addr, a.never[addr], zones))
		switch {
		case network != nil:
			w.uses[network.index].asked = true
		case addr.Is4():
			w.closed4 = true
		default:
			w.closed6 = true
		}
	}
}

// name notes that an address of a pool is asked for wherever that has some of
// a family that is wanted, and says whether it has.
func (w *ask) name(p *Pool) (somewhere bool) {
	for _, slot := range w.space.slots {
		of := func(s *segment) bool { return s.pool == p }
		if !w.wants(slot) || !slices.ContainsFunc(slot.segments, of) {
			continue
		}
		somewhere = true
		use := &w.uses[slot.index]
		use.asked = true
		// An address of it that is asked for will do.
		one := slices.ContainsFunc(w.requested, func(addr netip.Addr) bool {
			s := w.space.at(addr)
			return s.pool == p && s.slot == slot
		})
		if w.may(p) && !one {
			use.named = append(use.named, p)
		}
	}
	return somewhere
}

func (w *ask) may(p *Pool) bool { return slices.Contains(w.Pools, p.Name) }

// wants says whether a slot is of a family that the Service is to have.
func (w *ask) wants(s *slot) bool { return s.ipv6 && w.IPv6 || !s.ipv6 && w.IPv4 }

// closed says whether the Service gets nothing in a slot but what it asks for.
func (w *ask) closed(s *slot) bool { return s.ipv6 && w.closed6 || !s.ipv6 && w.closed4 }

func (w *ask) has(addr netip.Addr) bool {
	return slices.ContainsFunc(w.given, func(g grant) bool { return g.addr == addr })
}

func (w *ask) hasOf(p *Pool, s *slot) bool {
	return slices.ContainsFunc(w.given, func(g grant) bool { return g.segment.pool == p && g.segment.slot == s })
}

func (w *ask) fail(f Failure) { w.failures = append(w.failures, f) }
