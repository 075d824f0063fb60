package firewall

import (
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Verdict says what becomes of a packet.
func (r *Ruleset) Verdict(p Packet) Verdict {
	p.Src, p.Dst = p.Src.Unmap(), p.Dst.Unmap()
	way := Through
	if p.Out == "" {
		way = ToSelf
	}
	for i := range r.Rules {
		rule := &r.Rules[i]
		if rule.Way&way == 0 {
			continue
		}
		why, fits := r.fits(&rule.Fits, p)
		if !fits {
			continue
		}
		v := Verdict{Accept: rule.Accept, Why: rule.Why, Pos: rule.Pos, Rule: i}
		if why != "" {
			v.Why = why
		}
		v.Masquerade = rule.Masquerade && p.State == New && (p.Src.Is4() || ULA.Contains(p.Src))
		return v
	}
	return Verdict{Why: Nothing, Rule: -1}
}

// fits says whether a packet does, and by which pinhole if it is by one.
func (r *Ruleset) fits(m *Match, p Packet) (why string, _ bool) {
	switch version := versionOf(p); {
	case m.In != "" && m.In != p.In,
		!r.inZone(m.From, p.In), !r.inZone(m.To, p.Out),
		m.States != nil && !slices.Contains(m.States, p.State),
		m.IsIP != 0 && m.IsIP != version,
		m.HopLimit != 0 && m.HopLimit != p.HopLimit,
		m.Number != 0 && m.Number != p.Number,
		m.ICMP != nil && (p.Protocol != config.ICMP || !slices.Contains(m.ICMP, p.ICMPType)),
		m.SrcPort != 0 && m.SrcPort != p.SrcPort,
		m.Services != nil && !slices.ContainsFunc(m.Services, func(s config.PortRange) bool { return isAbout(s, p, version) }),
		m.Sources != nil && !within(m.Sources, p.Src),
		m.Destinations != nil && !within(m.Destinations, p.Dst):
		return "", false
	}
	switch m.Pinholes {
	case Door:
		return r.through(false, p, netip.AddrPortFrom(p.Dst, p.DstPort))
	case Translated:
		if !p.Asked.IsValid() {
			return "", false
		}
		return r.through(true, p, netip.AddrPortFrom(p.Asked.Addr().Unmap(), p.Asked.Port()))
	case NoPinhole:
	}
	return "", true
}

// through finds the pinhole for what was sent to an address and port: one that
// has the address, or else one that is at whichever, if those count there.
func (r *Ruleset) through(translated bool, p Packet, to netip.AddrPort) (why string, ok bool) {
	at := Pinhole{Translated: translated, Protocol: p.Protocol, Device: p.In, Addr: to.Addr(), Port: to.Port()}
	if why, ok := r.at(at, p.Src); ok || r.own[to.Addr()] {
		return why, ok
	}
	at.Addr = netip.Addr{}
	return r.at(at, p.Src)
}

// at finds the pinhole at a place for a source.
func (r *Ruleset) at(place Pinhole, src netip.Addr) (why string, ok bool) {
	i, _ := slices.BinarySearchFunc(r.Pinholes, place, func(x, y Pinhole) int { return comparePlaces(&x, &y) })
	for ; i < len(r.Pinholes) && comparePlaces(&r.Pinholes[i], &place) == 0; i++ {
		if hole := &r.Pinholes[i]; hole.Sources == nil || within(hole.Sources, src) {
			return hole.Why, true
		}
	}
	return "", false
}

// ZoneOf is the zone of an interface; empty if it is in none.
func (r *Ruleset) ZoneOf(device string) string { return r.zones[device] }

func (r *Ruleset) inZone(z ZoneMatch, device string) bool {
	if z.isZero() {
		return true
	}
	zone := r.zones[device]
	return zone != "" && (z.Any || zone == z.Zone)
}

func versionOf(p Packet) int {
	if p.Src.Is4() || !p.Src.IsValid() && p.Dst.Is4() {
		return 4
	}
	return 6
}

func isAbout(s config.PortRange, p Packet, version int) bool {
	if s.Protocol != p.Protocol {
		return false
	}
	if s.Protocol == config.ICMP {
		return version == 4 && p.ICMPType == EchoRequest4 || version == 6 && p.ICMPType == EchoRequest6
	}
	return s.First <= p.DstPort && p.DstPort <= s.Last && p.Protocol != edge.Protocol("")
}

func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}
