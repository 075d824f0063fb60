package pools

import (
	"cmp"
	"net/netip"
	"slices"
)

// space is what a zone has to give.
type space struct {
	slots    []*slot
	segments []*segment // sorted by first
	pools    map[string]*Pool
	away     bool
}

// slot is where a Service has one address: a network, or what is in none.
type slot struct {
	index    int          // in the space
	prefix   netip.Prefix // masked; zero: what is in no network
	ipv6     bool
	networks []Network  // with this prefix; none: what is in no network
	segments []*segment // in the order of pools, then of addresses
}

func (s *slot) device() string {
	if len(s.networks) == 0 {
		return ""
	}
	return s.networks[0].Device
}

// segment is the part of one of a pool's ranges that is in one slot.
type segment struct {
	pool        *Pool
	rank        int // of the pool, among all
	slot        *slot
	first, last netip.Addr
	next        netip.Addr // no lower one is free; zero: none is
	given, held int        // addresses
	// sharedBy are addresses that somebody has who shares them, by the key: the
	// lowest that can be used.
	sharedBy map[string]netip.Addr
}

func newSpaces(in *Input) map[string]*space {
	spaces := map[string]*space{}
	of := func(zone string) *space {
		z := spaces[zone]
		if z == nil {
			z = &space{pools: map[string]*Pool{}, away: true}
			spaces[zone] = z
		}
		return z
	}
	for i := range in.Wants {
		of(in.Wants[i].Zone)
	}
	for i := range in.Pools {
		of(in.Pools[i].Zone)
	}
	for _, n := range in.Networks {
		of(n.Zone).addNetwork(n)
	}
	for name, z := range spaces {
		z.away = z.away || in.Away[name]
		z.slots = append(z.slots, &slot{index: len(z.slots)}, &slot{index: len(z.slots) + 1, ipv6: true})
	}
	for rank := range in.Pools {
		of(in.Pools[rank].Zone).addPool(&in.Pools[rank], rank)
	}
	for _, z := range spaces {
		slices.SortStableFunc(z.segments, func(a, b *segment) int { return a.first.Compare(b.first) })
		for _, s := range z.segments {
			s.slot.segments = append(s.slot.segments, s)
		}
		for _, s := range z.slots {
			slices.SortStableFunc(s.segments, func(a, b *segment) int { return cmp.Compare(a.rank, b.rank) })
		}
	}
	return spaces
}

func (z *space) addNetwork(n Network) {
	z.away = false
	prefix := n.Prefix.Masked()
	for _, s := range z.slots {
		if s.prefix == prefix {
			s.networks = append(s.networks, n)
			return
		}
	}
	z.slots = append(z.slots, &slot{index: len(z.slots), prefix: prefix, ipv6: prefix.Addr().Is6(), networks: []Network{n}})
}

// addPool divides a pool's ranges among the slots, once those are known.
func (z *space) addPool(p *Pool, rank int) {
	if z.pools[p.Name] == nil {
		z.pools[p.Name] = p
	}
	type piece struct{ first, last netip.Addr }
	var left []piece
	for _, r := range p.Ranges {
		if r.First.IsValid() && r.First.BitLen() == r.Last.BitLen() && r.First.Compare(r.Last) <= 0 {
			left = append(left, piece{r.First, r.Last})
		}
	}
	take := func(s *slot, first, last netip.Addr) {
		z.segments = append(z.segments, &segment{pool: p, rank: rank, slot: s, first: first, last: last, next: first})
	}
	for _, s := range z.longestFirst() {
		begin, end := s.prefix.Addr(), lastOf(s.prefix)
		var rest []piece
		for _, r := range left {
			if r.first.BitLen() != begin.BitLen() || end.Less(r.first) || r.last.Less(begin) {
				rest = append(rest, r)
				continue
			}
			first, last := r.first, r.last
			if first.Less(begin) {
				rest = append(rest, piece{first, begin.Prev()})
				first = begin
			}
			if end.Less(last) {
				rest = append(rest, piece{end.Next(), last})
				last = end
			}
			take(s, first, last)
		}
		left = rest
	}
	for _, r := range left {
		take(z.routed(r.first.Is6()), r.first, r.last)
	}
}

// routed is the slot of what is in no network.
func (z *space) routed(ipv6 bool) *slot {
	i := len(z.slots) - 2
	if ipv6 {
		i++
	}
	return z.slots[i]
}

func (z *space) longestFirst() []*slot {
	networks := slices.Clone(z.slots[:len(z.slots)-2])
	slices.SortStableFunc(networks, func(a, b *slot) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return networks
}

// network is the slot that an address is in by its network, whether a pool has
// it or not; nil: it is in none.
func (z *space) network(a netip.Addr) (found *slot) {
	for _, s := range z.slots[:len(z.slots)-2] {
		if s.prefix.Contains(a) && (found == nil || s.prefix.Bits() > found.prefix.Bits()) {
			found = s
		}
	}
	return found
}

// at is the segment that an address is in; nil: it is in none.
func (z *space) at(a netip.Addr) *segment {
	i, exact := slices.BinarySearchFunc(z.segments, a, func(s *segment, a netip.Addr) int { return s.first.Compare(a) })
	if !exact {
		i--
	}
	if i < 0 || z.segments[i].last.Less(a) || z.segments[i].first.BitLen() != a.BitLen() {
		return nil
	}
	return z.segments[i]
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		switch ones := p.Bits() - 8*i; {
		case ones <= 0:
			b[i] = 0xff
		case ones < 8:
			b[i] |= 0xff >> ones
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// never are the addresses that no pool gives, with what they are: the
// machine's own, and those that a network has for itself. That is the first one,
// of IPv6 too (it is any router's, RFC 4291 2.6.1), and of IPv4 the last one; where
// there are only two, both are of hosts (RFC 3021, RFC 6164).
func never(in *Input) map[netip.Addr]string {
	what := map[netip.Addr]string{}
	for _, n := range in.Networks {
		p := n.Prefix.Masked()
		if p.Addr().BitLen()-p.Bits() < 2 {
			continue
		}
		what[p.Addr()] = "is the network address of " + p.String()
		if p.Addr().Is4() {
			what[lastOf(p)] = "is the broadcast address of " + p.String()
		}
	}
	for _, own := range in.Own {
		for _, a := range own {
			what[a] = "is an address of this machine's own"
		}
	}
	return what
}
