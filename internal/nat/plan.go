package nat

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/maglev"
)

// randomSlots is how many slots the backends of a door that chooses at random
// share at most, unless there are more backends.
const randomSlots = 1024

// row is all that the table says of one door.
type row struct {
	open        bool // it is ours, with or without backends
	v4, v6      way
	restricted  bool           // to sources
	sources     []netip.Prefix // sorted, none inside another
	masqueraded bool
	remember    string // the chain that remembers which client has which backend; empty: none
}

// way is where a door leads clients of one IP family. The zero way leads
// nowhere.
type way struct {
	chain string
	slots []netip.AddrPort // a zero one is none; sorted out by the chain
}

func (r row) equal(other row) bool {
	return r.open == other.open && r.v4.equal(other.v4) && r.v6.equal(other.v6) &&
		r.restricted == other.restricted && slices.Equal(r.sources, other.sources) &&
		r.masqueraded == other.masqueraded && r.remember == other.remember
}

func (w way) equal(other way) bool {
	return w.chain == other.chain && slices.Equal(w.slots, other.slots)
}

// remembers says whether clients keep their backends at this door.
func (r row) remembers() bool { return r.remember != "" }

// backends returns those that have a slot, sorted.
func (r row) backends() []netip.AddrPort {
	seen := map[netip.AddrPort]bool{}
	var backends []netip.AddrPort
	for _, slots := range [][]netip.AddrPort{r.v4.slots, r.v6.slots} {
		for _, addr := range slots {
			if addr.IsValid() && !seen[addr] {
				seen[addr] = true
				backends = append(backends, addr)
			}
		}
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	return backends
}

// spec is what of a frontend a row is made from.
type spec struct {
	restricted, masqueraded bool
	source                  bool          // the client's address chooses
	affinity                time.Duration // of source; 0: none
	sources                 []netip.Prefix
	backends                []maglev.Backend // that get something, sorted
}

func (s spec) equal(other spec) bool {
	return s.restricted == other.restricted && s.masqueraded == other.masqueraded && s.source == other.source &&
		s.affinity == other.affinity && slices.Equal(s.sources, other.sources) && slices.Equal(s.backends, other.backends)
}

// plan says what the table is to have. What of it has not changed since the
// last time is not made again: it is tables of hundreds of slots.
func (a *Applier) plan(s State) *content {
	specs := make(map[edge.Door]spec, len(s.Frontends))
	want := &content{
		rows: make(map[edge.Door]row, len(s.Frontends)), hairpins: map[[2]string]bool{}, addresses: map[netip.Addr]bool{}, chains: map[string]bool{},
	}
	named, first := map[edge.Door]string{}, map[told]netip.Addr{}
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if f.DataPlane != edge.DataPlaneNAT || f.Listen.Device == "" {
			continue
		}
		// There is one frontend to a door; should there be two, it is always the same.
		if name, taken := named[f.Door]; taken && name <= f.Name {
			continue
		}
		named[f.Door] = f.Name
		spec := specOf(f)
		specs[f.Door] = spec
		if spec.affinity > 0 && namesOf(f.Door).version == 6 {
			at := toldOf(f.Door)
			if other, taken := first[at]; !taken || f.Listen.Addr.Less(other) {
				first[at] = f.Listen.Addr
			}
		}
	}
	for door, spec := range specs {
		// Clients of two addresses would have each other's backends.
		if other, taken := first[toldOf(door)]; taken && other != door.Listen.Addr {
			spec.affinity = 0
			specs[door] = spec
		}
		if before, ok := a.specs[door]; ok && before.equal(spec) && a.want != nil {
			want.rows[door] = a.want.rows[door]
		} else {
			want.rows[door] = rowOf(door, spec)
		}
		want.addChains(want.rows[door])
		if door.Listen.Addr.IsValid() {
			want.addresses[door.Listen.Addr] = true
		}
	}
	for _, addr := range s.Addresses {
		want.addresses[addr] = true
	}
	for _, pair := range s.Hairpins {
		want.hairpins[pair] = true
	}
	a.specs = specs
	return want
}

// told is how the doors of addresses of IPv6 are told apart where clients are
// remembered.
type told struct {
	protocol edge.Protocol
	port     uint16
	hash     uint32
}

func toldOf(d edge.Door) told {
	if namesOf(d).version != 6 {
		return told{}
	}
	return told{d.Protocol, d.Listen.Port, hashOfAddr(d.Listen.Addr)}
}

func (c *content) addChains(r row) {
	for _, chain := range []string{r.v4.chain, r.v6.chain, r.remember} {
		for chain != "" {
			c.chains[chain] = true
			chain = next(chain)
		}
	}
}

// keep takes over what is said of doors in what there is.
func (c *content) keep(doors []edge.Door, have content) {
	for _, door := range doors {
		row, there := have.rows[door]
		if _, wanted := c.rows[door]; there && !wanted {
			c.rows[door] = row
			c.addChains(row)
			maps.Copy(c.hairpins, have.hairpins)
			maps.Copy(c.addresses, have.addresses)
		}
	}
}

func specOf(f *edge.Frontend) spec {
	s := spec{
		restricted:  f.SourceRanges != nil,
		masqueraded: f.Masquerade,
		source:      f.Balance == edge.BalanceSource,
		sources:     outermost(f.SourceRanges),
	}
	if s.source {
		s.affinity = f.AffinityTimeout
	}
	// Clients of an address are of its family.
	n := namesOf(f.Door)
	isOther := func(a netip.Addr) bool { return n.version != 0 && versionOf(a) != n.version }
	s.sources = slices.DeleteFunc(s.sources, func(p netip.Prefix) bool { return isOther(p.Addr()) })
	for _, b := range f.Backends {
		if addr := netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port()); b.Share > 0 && !isOther(addr.Addr()) {
			s.backends = append(s.backends, maglev.Backend{Addr: addr, Weight: max(b.Weight, 1)})
		}
	}
	slices.SortFunc(s.backends, func(x, y maglev.Backend) int {
		return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Weight, y.Weight))
	})
	return s
}

func rowOf(door edge.Door, s spec) row {
	r := row{open: true, restricted: s.restricted, sources: s.sources, masqueraded: s.masqueraded}
	var v4, v6 []maglev.Backend
	for _, b := range s.backends {
		if b.Addr.Addr().Is4() {
			v4 = append(v4, b)
		} else {
			v6 = append(v6, b)
		}
	}
	word, n := wordOf(door.Protocol), namesOf(door)
	r.v4, r.v6 = s.way(v4, n, word, 4), s.way(v6, n, word, 6)
	if s.affinity > 0 && len(s.backends) > 0 {
		r.remember = n.rememberChain(word, s.affinity)
	}
	return r
}

// way leads clients of an IP version to the backends, which are of that version
// too: the kernel does not translate between them.
func (s spec) way(backends []maglev.Backend, n names, protocol string, version int) way {
	if len(backends) == 0 {
		return way{}
	}
	if !s.source || len(backends) == 1 {
		slots := randomTable(backends)
		return way{chain: n.chain(protocol, version, random, len(slots)), slots: slots}
	}
	size := maglev.Size(len(backends))
	slots := make([]netip.AddrPort, 0, size)
	for _, i := range maglev.Table(backends, size) {
		slots = append(slots, backends[i].Addr)
	}
	kind := source
	if s.affinity > 0 {
		kind = affine
	}
	return way{chain: n.chain(protocol, version, kind, size), slots: slots}
}

// randomTable gives each backend slots for its weight: as few as that can be
// said with, or rounded, so that they are not too many. Who would get less than
// one slot of those may get none.
func randomTable(backends []maglev.Backend) []netip.AddrPort {
	divisor, total := 0, 0
	for _, b := range backends {
		divisor = gcd(divisor, b.Weight)
		total += b.Weight
	}
	counts := make([]int, len(backends))
	if size := max(randomSlots, len(backends)); total/divisor > size {
		largestRemainders(backends, total, size, counts)
	} else {
		for i, b := range backends {
			counts[i] = b.Weight / divisor
		}
	}
	var slots []netip.AddrPort
	for i, b := range backends {
		slots = append(slots, slices.Repeat([]netip.AddrPort{b.Addr}, counts[i])...)
	}
	return slots
}

func largestRemainders(backends []maglev.Backend, total, size int, counts []int) {
	left, order := size, make([]int, len(backends))
	for i, b := range backends {
		order[i] = i
		counts[i] = b.Weight * size / total
		left -= counts[i]
	}
	slices.SortStableFunc(order, func(x, y int) int {
		return cmp.Compare(backends[y].Weight*size%total, backends[x].Weight*size%total)
	})
	for _, i := range order[:left] {
		counts[i]++
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// outermost returns the prefixes sorted, without those that are inside another:
// the kernel's interval sets have none of them.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, comparePrefixes)
	var outer []netip.Prefix
	for _, p := range sorted {
		if n := len(outer); n == 0 || !outer[n-1].Overlaps(p) {
			outer = append(outer, p)
		}
	}
	return outer
}

// comparePrefixes puts a prefix before those inside it.
func comparePrefixes(x, y netip.Prefix) int {
	return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
}

func compareDoors(x, y edge.Door) int {
	return cmp.Or(cmp.Compare(x.Listen.Device, y.Listen.Device), x.Listen.Addr.Compare(y.Listen.Addr),
		cmp.Compare(x.Listen.Port, y.Listen.Port), cmp.Compare(x.Protocol, y.Protocol))
}
