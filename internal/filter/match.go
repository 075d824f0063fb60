package filter

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// match is how nft says that a packet fits.
type match struct {
	text    string
	version int    // of IP; 0: either
	jump    string // to where the pinholes are that it has to fit; empty: to none
}

// matches says what fits in nft's words; each packet that does fits one of them.
func matches(m *firewall.Match) []match {
	var head []string
	if m.In != "" {
		head = append(head, "iifname "+m.In)
	}
	head = append(head, zoneMatch("iifname", m.From)...)
	head = append(head, zoneMatch("oifname", m.To)...)
	if m.States != nil {
		head = append(head, "ct state "+states(m.States))
	}
	if m.Pinholes == firewall.Translated {
		return []match{{text: words(append(head, "ct status dnat")), jump: translated}}
	}
	var all []match
	for _, v := range versionsOf(m) {
		for _, of := range about(m, v) {
			if v == nil {
				all = append(all, match{text: words(append(slices.Clip(head), of.text)), version: of.version})
				continue
			}
			parts := append(slices.Clip(head), "meta nfproto ipv"+strconv.Itoa(v.number))
			parts = append(parts, networks(v, "saddr", m.Sources), networks(v, "daddr", m.Destinations), hopLimit(v, m.HopLimit), of.text)
			one := match{text: words(parts), version: v.number}
			if m.Pinholes == firewall.Door {
				one.jump = numbered(doors, v.number)
			}
			all = append(all, one)
		}
	}
	return all
}

func words(parts []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(parts), func(s string) bool { return s == "" }), " ")
}

func zoneMatch(word string, z firewall.ZoneMatch) []string {
	switch {
	case z.Any:
		return []string{word + " @" + zones}
	case z.Zone != "":
		return []string{word + " @" + zonePrefix + z.Zone}
	}
	return nil
}

func states(all []firewall.State) string {
	names := map[firewall.State]string{
		firewall.New: "new", firewall.Established: "established", firewall.Related: "related",
		firewall.Invalid: "invalid", firewall.Untracked: "untracked",
	}
	parts := make([]string, len(all))
	for i, s := range all {
		parts[i] = names[s]
	}
	return strings.Join(parts, ",")
}

// versionsOf are the IP versions of what can fit, if that matters; nil stands for
// both at once.
func versionsOf(m *firewall.Match) []*version {
	isOf := func(networks []netip.Prefix, v version) bool {
		return networks == nil || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Addr().Is4() == (v.number == 4) })
	}
	if m.IsIP == 0 && m.Sources == nil && m.Destinations == nil && m.HopLimit == 0 && m.ICMP == nil && m.Pinholes == firewall.NoPinhole {
		return []*version{nil}
	}
	var all []*version
	for i, v := range versions {
		if (m.IsIP == 0 || m.IsIP == v.number) && isOf(m.Sources, v) && isOf(m.Destinations, v) {
			all = append(all, &versions[i])
		}
	}
	return all
}

func networks(v *version, word string, all []netip.Prefix) string {
	var parts []string
	for _, p := range all {
		if p.Addr().Is4() == (v.number == 4) {
			parts = append(parts, p.String())
		}
	}
	if parts == nil {
		return ""
	}
	return v.word + " " + word + " " + set(parts)
}

func set(parts []string) string {
	if len(parts) == 1 {
		return parts[0]
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

func hopLimit(v *version, n uint8) string {
	switch {
	case n == 0:
		return ""
	case v.number == 4:
		return fmt.Sprintf("ip ttl %d", n)
	default:
		return fmt.Sprintf("ip6 hoplimit %d", n)
	}
}

// about says which protocols and ports fit: one of these. v is nil where the
// version of IP does not matter.
func about(m *firewall.Match, v *version) []match {
	switch {
	case m.Number != 0:
		// nft finds few names of protocols without /etc/protocols.
		return []match{{text: fmt.Sprintf("meta l4proto %d", m.Number)}}
	case m.ICMP != nil:
		parts := make([]string, len(m.ICMP))
		for i, n := range m.ICMP {
			parts[i] = strconv.Itoa(int(n))
		}
		return []match{{text: v.icmp + " type " + set(parts)}}
	case m.Services == nil:
		return []match{{}}
	}
	var all []match
	for _, protocol := range transports {
		ranges := rangesOf(m.Services, protocol)
		if ranges == nil {
			continue
		}
		source := ""
		if m.SrcPort != 0 {
			source = fmt.Sprintf("%s sport %d ", wordOf(protocol), m.SrcPort)
		}
		all = append(all, match{text: source + wordOf(protocol) + " dport " + set(ranges)})
	}
	if slices.ContainsFunc(m.Services, func(s config.PortRange) bool { return s.Protocol == config.ICMP }) {
		for _, each := range versions {
			switch {
			case v == nil:
				all = append(all, match{text: fmt.Sprintf("meta nfproto ipv%d %s type echo-request", each.number, each.icmp), version: each.number})
			case v.number == each.number:
				all = append(all, match{text: each.icmp + " type echo-request"})
			}
		}
	}
	return all
}

// rangesOf are the ports of a protocol: sorted, and none in two of them, which nft
// would not take.
func rangesOf(services []config.PortRange, protocol edge.Protocol) []string {
	var ranges []config.PortRange
	for _, s := range services {
		if s.Protocol == protocol {
			ranges = append(ranges, s)
		}
	}
	slices.SortFunc(ranges, func(x, y config.PortRange) int {
		return cmp.Or(cmp.Compare(x.First, y.First), cmp.Compare(x.Last, y.Last))
	})
	var apart []config.PortRange
	for _, r := range ranges {
		if n := len(apart); n > 0 && int(r.First) <= int(apart[n-1].Last)+1 {
			apart[n-1].Last = max(apart[n-1].Last, r.Last)
			continue
		}
		apart = append(apart, r)
	}
	var parts []string
	for _, r := range apart {
		text := strconv.Itoa(int(r.First))
		if r.Last != r.First {
			text += "-" + strconv.Itoa(int(r.Last))
		}
		parts = append(parts, text)
	}
	return parts
}
