package firewall

import (
	"cmp"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Types of ICMPv6 that a machine cannot do without on its own links (RFC 4890
// §4.4.1): errors are related to a connection, and pass with it.
const (
	listenerQuery         = 130 // RFC 2710
	listenerReport        = 131
	listenerDone          = 132
	routerSolicitation    = 133 // RFC 4861
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	listenerReport2       = 143 // RFC 3810
)

// Types of echo requests.
const (
	EchoRequest4 = 8
	EchoRequest6 = 128
)

const igmp = 2 // RFC 3376

// discoveryHopLimit is that of neighbour discovery: no router has let it pass
// (RFC 4861 §6.1, §7.1).
const discoveryHopLimit = 255

const (
	dhcpServerPort   = 67 // RFC 2131
	dhcpClientPort   = 68
	dhcpv6ClientPort = 546 // RFC 8415 §7.2
	dhcpv6ServerPort = 547
	dnsPort          = 53
)

var linkLocal6 = []netip.Prefix{netip.MustParsePrefix("fe80::/10")}

// Compile makes the rules of a configuration that has a firewall; of one that has
// none it makes the rules of one without policies. The same inputs in any order
// make the same rules.
func Compile(in Inputs) Ruleset {
	r := Ruleset{Rules: slices.Clone(always), zones: map[string]string{}, own: map[netip.Addr]bool{}}
	for _, z := range in.Config.Zones {
		r.Zones = append(r.Zones, Zone{Name: z.Name, Interfaces: slices.Sorted(slices.Values(z.Interfaces))})
		for _, device := range z.Interfaces {
			r.zones[device] = z.Name
		}
	}
	slices.SortFunc(r.Zones, func(x, y Zone) int { return cmp.Compare(x.Name, y.Name) })
	if in.Config.Firewall != nil {
		for i, p := range in.Config.Firewall.Policies {
			r.Rules = append(r.Rules, policyRule(i, p))
		}
	}
	for _, i := range in.Interfaces {
		if i.Name != Loopback && r.zones[i.Name] == "" {
			r.Unzoned = append(r.Unzoned, i.Name)
		}
	}
	slices.Sort(r.Unzoned)
	r.open(in)
	for _, a := range in.Addresses {
		r.own[a] = true
	}
	for a := range r.own {
		r.Own = append(r.Own, a)
	}
	slices.SortFunc(r.Own, netip.Addr.Compare)
	return r
}

// always are the rules before any policy.
var always = []Rule{
	{Way: ToSelf, Fits: Match{In: Loopback}, Accept: true, Why: "this machine talks to itself"},
	{
		Way: ToSelf, Accept: true, Why: "neighbour discovery",
		Fits: Match{IsIP: 6, HopLimit: discoveryHopLimit, ICMP: []uint8{routerSolicitation, routerAdvertisement, neighborSolicitation, neighborAdvertisement}},
	},
	{
		Way: ToSelf, Why: "neighbour discovery from beyond the link (RFC 4861)",
		Fits: Match{IsIP: 6, ICMP: []uint8{routerSolicitation, routerAdvertisement, neighborSolicitation, neighborAdvertisement}},
	},
	{Way: ToSelf | Through, Fits: Match{States: []State{Established, Related}}, Accept: true, Why: "part of a connection that was let pass"},
	{Way: ToSelf | Through, Fits: Match{States: []State{Invalid}}, Why: "part of no connection that is known"},
	{
		Way: ToSelf, Accept: true, Why: "multicast listener discovery",
		Fits: Match{IsIP: 6, HopLimit: 1, ICMP: []uint8{listenerQuery, listenerReport, listenerDone, listenerReport2}},
	},
	{Way: ToSelf, Fits: Match{IsIP: 4, HopLimit: 1, Number: igmp}, Accept: true, Why: "multicast groups (IGMP)"},
	{
		Way: ToSelf, Accept: true, Why: "answers of DHCP servers",
		Fits: Match{IsIP: 4, SrcPort: dhcpServerPort, Services: []config.PortRange{{Protocol: edge.UDP, First: dhcpClientPort, Last: dhcpClientPort}}},
	},
	{
		Way: ToSelf, Accept: true, Why: "answers of DHCPv6 servers",
		Fits: Match{
			IsIP: 6, SrcPort: dhcpv6ServerPort, Sources: linkLocal6,
			Services: []config.PortRange{{Protocol: edge.UDP, First: dhcpv6ClientPort, Last: dhcpv6ClientPort}},
		},
	},
	{Way: ToSelf | Through, Fits: Match{Pinholes: Translated}, Accept: true, Why: "opened in the kernel"},
	{Way: ToSelf, Fits: Match{Pinholes: Door}, Accept: true, Why: "opened by gatehouse"},
}

func init() {
	for i := range always {
		always[i].Policy = -1
	}
}

func policyRule(i int, p config.Policy) Rule {
	r := Rule{
		Way: Through, Accept: p.Allow, Masquerade: p.Masquerade && p.Allow && p.To != config.Self, Pos: p.Pos, Policy: i,
		Fits: Match{From: zoneMatch(p.From), Services: p.Services, Sources: outermost(p.Sources), Destinations: outermost(p.Destinations)},
	}
	if r.Why = p.String(); p.Pos.File != "" {
		r.Why += " (" + p.Pos.String() + ")"
	}
	if p.To == config.Self {
		r.Way = ToSelf
	} else {
		r.Fits.To = zoneMatch(p.To)
	}
	return r
}

func zoneMatch(name string) ZoneMatch { return ZoneMatch{Any: name == "", Zone: name} }

// open makes the pinholes.
func (r *Ruleset) open(in Inputs) {
	for _, f := range in.Frontends {
		r.openFrontend(f)
	}
	r.openAdmin(in.Config.Admin)
	for _, d := range in.Config.DHCP {
		if len(d.Pools) > 0 || len(d.Reservations) > 0 || len(d.Relayed) > 0 {
			r.openInZone(d.Zone, Pinhole{Protocol: edge.UDP, Port: dhcpServerPort, Why: "dhcp of zone " + d.Zone})
		}
		if d.RouterAdvertisements != nil {
			r.openInZone(d.Zone, Pinhole{Protocol: edge.UDP, Port: dhcpv6ServerPort, Sources: linkLocal6, Why: "router advertisements of zone " + d.Zone})
		}
	}
	if in.Config.DNS != nil {
		for _, zone := range in.Config.DNS.Zones {
			for _, protocol := range []edge.Protocol{edge.UDP, edge.TCP} {
				r.openInZone(zone, Pinhole{Protocol: protocol, Port: dnsPort, Why: "dns in zone " + zone})
			}
		}
	}
	slices.SortFunc(r.Pinholes, comparePinholes)
	r.Pinholes = slices.CompactFunc(r.Pinholes, func(x, y Pinhole) bool { return comparePinholes(x, y) == 0 })
}

// openInZone opens something at the interfaces of a zone.
func (r *Ruleset) openInZone(zone string, p Pinhole) {
	for _, z := range r.Zones {
		if z.Name != zone {
			continue
		}
		for _, device := range z.Interfaces {
			p.Device = device
			r.Pinholes = append(r.Pinholes, p)
		}
	}
}

// openAnywhere opens something at the interfaces of all zones.
func (r *Ruleset) openAnywhere(p Pinhole) {
	for _, z := range r.Zones {
		r.openInZone(z.Name, p)
	}
}

// openFrontend opens the door of a frontend. One that names no interface is at
// those of all zones.
func (r *Ruleset) openFrontend(f edge.Frontend) {
	p := Pinhole{
		Translated: f.DataPlane == edge.DataPlaneNAT, Protocol: f.Protocol, Device: f.Listen.Device, Addr: f.Listen.Addr.Unmap(), Port: f.Listen.Port,
		Sources: outermost(f.SourceRanges), Why: f.Why,
	}
	if p.Sources != nil {
		// The client is the one that a proxy names, and comes from the proxy.
		p.Sources = outermost(slices.Concat(f.SourceRanges, f.AcceptProxyProtocol))
	}
	if p.Addr.IsValid() && p.Addr.IsUnspecified() {
		p.Sources, p.Addr = ofFamily(p.Addr, p.Sources), netip.Addr{}
	}
	switch {
	case p.Sources != nil && len(p.Sources) == 0:
	case p.Device == "" && p.Addr.IsLoopback(): // nobody else can come to it
	case p.Device == "" && p.Translated: // nobody has it: see nat.State
	case p.Device == "":
		r.openAnywhere(p)
	default:
		r.Pinholes = append(r.Pinholes, p)
	}
	if p.Device != "" && p.Addr.IsValid() {
		r.own[p.Addr] = true
	}
}

// ofFamily are the sources of the family of an address that stands for all of them:
// who listens at 0.0.0.0 does not do so for IPv6, nor the other way round.
func ofFamily(all netip.Addr, sources []netip.Prefix) []netip.Prefix {
	if sources == nil {
		return []netip.Prefix{netip.PrefixFrom(all, 0)}
	}
	return slices.DeleteFunc(slices.Clone(sources), func(p netip.Prefix) bool { return p.Addr().Is4() != all.Is4() })
}

func (r *Ruleset) openAdmin(a config.Admin) {
	for _, zone := range a.Zones {
		r.openInZone(zone, Pinhole{Protocol: edge.TCP, Port: a.Port, Why: "admin in zone " + zone})
	}
	if at, ok := a.ListenAddr(); ok && !a.OnLoopback() {
		p := Pinhole{Protocol: edge.TCP, Addr: at.Addr().Unmap(), Port: at.Port(), Why: "admin"}
		if at.Addr().IsUnspecified() {
			p.Addr = netip.Addr{}
		}
		r.openAnywhere(p)
	}
}

func comparePinholes(x, y Pinhole) int {
	if c := comparePlaces(&x, &y); c != 0 {
		return c
	}
	if (x.Sources == nil) != (y.Sources == nil) {
		return less(x.Sources == nil)
	}
	return cmp.Or(cmp.Compare(x.Why, y.Why), slices.CompareFunc(x.Sources, y.Sources, ComparePrefixes))
}

// comparePlaces compares what a pinhole is found by. It looks at what differs most
// first: there can be many.
func comparePlaces(x, y *Pinhole) int {
	if c := cmp.Compare(x.Device, y.Device); c != 0 {
		return c
	}
	if c := x.Addr.Compare(y.Addr); c != 0 {
		return c
	}
	if c := cmp.Compare(x.Port, y.Port); c != 0 {
		return c
	}
	if c := cmp.Compare(x.Protocol, y.Protocol); c != 0 {
		return c
	}
	if x.Translated != y.Translated {
		return less(y.Translated)
	}
	return 0
}

func less(yes bool) int {
	if yes {
		return -1
	}
	return 1
}

// outermost returns the prefixes sorted, without those that are inside another:
// the kernel's interval sets have none of them. Nil stays nil.
func outermost(prefixes []netip.Prefix) []netip.Prefix {
	if prefixes == nil {
		return nil
	}
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, ComparePrefixes)
	outer := sorted[:0]
	for _, p := range sorted {
		if n := len(outer); n == 0 || !outer[n-1].Overlaps(p) {
			outer = append(outer, p)
		}
	}
	return outer
}

// ComparePrefixes puts a prefix before those inside it.
func ComparePrefixes(x, y netip.Prefix) int {
	return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
}
