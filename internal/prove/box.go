package prove

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// other are protocols without ports, and of ICMP what is no echo request.
const other edge.Protocol = ""

// protocols are all that packets can be of.
var protocols = []edge.Protocol{edge.TCP, edge.UDP, edge.SCTP, config.ICMP, other}

// span is a range of addresses of one family, both ends included.
type span struct{ lo, hi netip.Addr }

var (
	all4 = spanOf(netip.MustParsePrefix("0.0.0.0/0"))
	all6 = spanOf(netip.MustParsePrefix("::/0"))
)

func spanOf(p netip.Prefix) span {
	p = p.Masked()
	bytes := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(bytes); i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	hi, _ := netip.AddrFromSlice(bytes)
	return span{p.Addr(), hi}
}

func single(a netip.Addr) span { return span{a, a} }

// spansOf are those of prefixes; nil are all addresses.
func spansOf(prefixes []netip.Prefix) []span {
	if prefixes == nil {
		return []span{all4, all6}
	}
	var all []span
	for _, p := range prefixes {
		all = append(all, spanOf(p))
	}
	return all
}

func (s span) is4() bool { return s.lo.Is4() }

// overlap is what two have in common.
func (s span) overlap(t span) (span, bool) {
	if s.is4() != t.is4() {
		return span{}, false
	}
	o := span{s.lo, s.hi}
	if t.lo.Compare(o.lo) > 0 {
		o.lo = t.lo
	}
	if t.hi.Compare(o.hi) < 0 {
		o.hi = t.hi
	}
	return o, o.lo.Compare(o.hi) <= 0
}

// String prints an address, a network, or a range.
func (s span) String() string {
	if s.lo == s.hi {
		return s.lo.String()
	}
	for bits := range s.lo.BitLen() {
		if p := netip.PrefixFrom(s.lo, bits); p.Masked().Addr() == s.lo && spanOf(p).hi == s.hi {
			return p.String()
		}
	}
	return s.lo.String() + "-" + s.hi.String()
}

// box is a set of first packets of connections: those of a protocol to ports, from
// addresses to addresses. Ports are 0 where there are none. Both spans are of one
// family.
type box struct {
	protocol    edge.Protocol
	first, last uint16
	src, dst    span
}

// boxes makes all that there are of services (nil: everything), sources and
// destinations.
func boxes(services []config.PortRange, sources, destinations []span) []box {
	if services == nil {
		for _, p := range protocols {
			r := config.PortRange{Protocol: p}
			if p != config.ICMP && p != other {
				r.Last = 65535
			}
			services = append(services, r)
		}
	}
	var all []box
	for _, s := range services {
		for _, src := range sources {
			for _, dst := range destinations {
				if src.is4() == dst.is4() {
					all = append(all, box{s.Protocol, s.First, s.Last, src, dst})
				}
			}
		}
	}
	return all
}

// overlap is what two have in common.
func (b box) overlap(c box) (box, bool) {
	src, same := b.src.overlap(c.src)
	dst, alike := b.dst.overlap(c.dst)
	o := box{b.protocol, max(b.first, c.first), min(b.last, c.last), src, dst}
	return o, same && alike && b.protocol == c.protocol && o.first <= o.last
}

// without is what is left of a box outside another, in boxes that have nothing in
// common: beside it by ports, then by sources, then by destinations.
func (b box) without(c box) []box {
	o, any := b.overlap(c)
	if !any {
		return []box{b}
	}
	var left []box
	add := func(change func(*box)) {
		piece := b
		change(&piece)
		left = append(left, piece)
	}
	if b.first < o.first {
		add(func(p *box) { p.last = o.first - 1 })
	}
	if b.last > o.last {
		add(func(p *box) { p.first = o.last + 1 })
	}
	b.first, b.last = o.first, o.last
	if b.src.lo != o.src.lo {
		add(func(p *box) { p.src.hi = o.src.lo.Prev() })
	}
	if b.src.hi != o.src.hi {
		add(func(p *box) { p.src.lo = o.src.hi.Next() })
	}
	b.src = o.src
	if b.dst.lo != o.dst.lo {
		add(func(p *box) { p.dst.hi = o.dst.lo.Prev() })
	}
	if b.dst.hi != o.dst.hi {
		add(func(p *box) { p.dst.lo = o.dst.hi.Next() })
	}
	return left
}

// subtract is what is left of boxes outside others.
func subtract(all, others []box) []box {
	for _, o := range others {
		var left []box
		for _, b := range all {
			left = append(left, b.without(o)...)
		}
		all = left
	}
	return all
}

// overlaps says whether boxes have something in common, and what first.
func overlaps(all, others []box) (box, bool) {
	for _, b := range all {
		for _, o := range others {
			if common, any := b.overlap(o); any {
				return common, true
			}
		}
	}
	return box{}, false
}

// ports prints what of a protocol is in a box.
func (b box) ports() string {
	switch {
	case b.protocol == other:
		return "other protocols"
	case b.protocol != config.ICMP && b.first == 0 && b.last == 65535:
		return "all of " + string(b.protocol)
	}
	return config.PortRange{Protocol: b.protocol, First: b.first, Last: b.last}.String()
}

// String prints what a packet in a box is, where that is not whatever packet.
func (b box) String() string {
	s := b.ports()
	if b.src != all4 && b.src != all6 {
		s += " from " + b.src.String()
	}
	if b.dst != all4 && b.dst != all6 {
		s += " to " + b.dst.String()
	}
	return s
}

// described prints boxes: ports that go from and to the same are said together.
func described(all []box) []Passing {
	type where struct{ src, dst span }
	at := map[where]int{}
	var rows []Passing
	var covered [][]box
	for _, b := range all {
		k := where{b.src, b.dst}
		i, known := at[k]
		if !known {
			i = len(rows)
			at[k] = i
			rows = append(rows, Passing{Source: b.src.String(), Destination: b.dst.String()})
			covered = append(covered, nil)
		}
		covered[i] = append(covered[i], b)
	}
	for i := range rows {
		rows[i].Ports = portsOf(covered[i])
	}
	return rows
}

// portsOf prints the ports of boxes, those together that have no gap between them.
func portsOf(all []box) []string {
	order := func(b box) int { return slices.Index(protocols, b.protocol) }
	all = slices.Clone(all)
	slices.SortFunc(all, func(x, y box) int { return cmp.Or(order(x)-order(y), cmp.Compare(x.first, y.first)) })
	var joined []box
	for _, b := range all {
		if n := len(joined); n > 0 && joined[n-1].protocol == b.protocol && int(b.first) <= int(joined[n-1].last)+1 {
			joined[n-1].last = max(joined[n-1].last, b.last)
			continue
		}
		joined = append(joined, b)
	}
	var words []string
	for _, b := range joined {
		words = append(words, b.ports())
	}
	if strings.Join(words, ",") == everything {
		return []string{"everything"}
	}
	return words
}

var everything = func() string {
	var words []string
	for _, b := range boxes(nil, []span{all4}, []span{all4}) {
		words = append(words, b.ports())
	}
	return strings.Join(words, ",")
}()
