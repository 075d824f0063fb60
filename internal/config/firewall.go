package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

// AnyZone is what policies call each of the zones. No zone has this name where
// there is a firewall.
const AnyZone = "any"

var firewallBlock = block{
	path: "firewall", format: APIVersion, example: "{policies: [{from: home, to: self, ports: [ssh]}]}",
	doc: "What may pass between zones and to this machine. With this block everything else is dropped, also between interfaces of one zone and on interfaces of no zone; what gatehouse itself opens is opened by itself. See docs/firewall.md.",
	fields: []field{
		{"policies", "list", "`[]`", "[{from: home, to: self, ports: [ssh]}]", "The first that fits the first packet of a connection decides; what none fits is dropped. Answers pass by themselves."},
	},
	wrong: []refusal{
		{"zones", "zones are at the top of the file: zones: {home: {interfaces: [eth1]}}"},
		{"rules", "here they are called policies"},
	},
}

var policyBlock = block{
	path: "firewall.policies[]", format: APIVersion, example: "{from: home, to: self, ports: [ssh]}",
	fields: []field{
		{"from", "zone name, or `any`", required, "home", "Where it comes from: what comes in by an interface of that zone; `any`: of any zone. An interface of no zone is in none of them."},
		{"to", "zone name, `any` or `self`", required, "self", "Where it goes: out by an interface of that zone, or of any zone; `self`: to this machine, at whichever of its addresses."},
		{"allow", "true or false", "`true` with `ports`", "true", "Whether what fits may pass. One of `allow` and `ports` has to be there: `allow: true` alone lets pass everything."},
		{"ports", "list of ports and names", "everything", "[6443, 53/UDP, 8000-8010/TCP, ssh, ping]", "What it is about: `6443` or `6443/TCP`, `53/UDP`, `8000-8010/TCP`, `2905/SCTP`, or one of the names `ssh` (22/TCP), `dns` (53/UDP, 53/TCP), `dhcp` (67/UDP, 547/UDP), `ntp` (123/UDP), `http` (80/TCP), `https` (443/TCP) and `ping` (echo requests of ICMP and ICMPv6)."},
		{"sources", "list of addresses and networks", "all", "[10.11.12.7, fd00:11::/64]", "Only what comes from these addresses. Addresses can be forged by whoever shares a cable; the interface cannot."},
		{"destinations", "list of addresses and networks", "all", "[10.0.0.10]", "Only what goes to these addresses."},
		{"masquerade", "true or false", "`false`", "true", "Whether what it lets pass leaves with this machine's address: of IPv4 everything, of IPv6 what comes from a unique local address (fc00::/7), since others need none."},
	},
	wrong: []refusal{
		{"port", "here it is ports: [6443]"},
		{"protocol", "it goes with the port: ports: [53/UDP]"},
		{"action", "here it is allow: true or allow: false"},
		{"sourceRanges", "here it is called sources"},
	},
}

// firewall reads the block of that name.
func (f *file) firewall(v value, pos edge.Pos) {
	m, ok := v.fields(&firewallBlock)
	if !ok {
		return
	}
	f.cfg.Firewall = &Firewall{Pos: pos}
	for _, v := range m.get("policies").list() {
		f.policy(v)
	}
}

// policy reads one of policies.
func (f *file) policy(v value) {
	m, ok := v.fields(&policyBlock)
	if !ok {
		return
	}
	p := Policy{Pos: v.pos()}
	from, to, allow, ports, masquerade := m.need("from"), m.need("to"), m.get("allow"), m.get("ports"), m.get("masquerade")
	if s, ok := from.text(); ok && s == Self {
		from.problem("what this machine itself sends is not filtered", "write a zone, or any; this policy is not needed")
	} else if ok {
		p.From = f.policyZone(from, s)
	}
	if s, ok := to.text(); ok {
		if p.To = s; s != Self {
			p.To = f.policyZone(to, s)
		}
	}
	p.Services = ports.services()
	p.Allow = !ports.absent()
	allow.bool(&p.Allow)
	if ports.absent() && allow.absent() {
		v.problem("a policy with neither ports nor allow", "write the ports that may pass, such as ports: [ssh], or allow: true for everything")
	}
	p.Sources, p.Destinations = m.get("sources").someAddresses(), m.get("destinations").someAddresses()
	if families := familiesOf(p.Sources) & familiesOf(p.Destinations); families == 0 && p.Sources != nil && p.Destinations != nil {
		m.keys["destinations"].problem("sources are of one IP family, and destinations of the other: no packet is", "write both of one family, or remove one of them")
	}
	if masquerade.bool(&p.Masquerade); p.Masquerade {
		switch {
		case p.To == Self:
			m.keys["masquerade"].problem("what comes to this machine leaves nowhere", "remove masquerade")
		case !p.Allow && !allow.absent():
			m.keys["masquerade"].problem("what may not pass leaves nowhere", "remove masquerade, or write allow: true")
		}
	}
	f.cfg.Firewall.Policies = append(f.cfg.Firewall.Policies, p)
}

// policyZone takes note of a zone that a policy names. Any is none.
func (f *file) policyZone(v value, name string) string {
	if name == AnyZone {
		return ""
	}
	f.zoneRefs = append(f.zoneRefs, text{name, v})
	return name
}

// checkReservedZones runs when all files are read: another may have the firewall.
func (p *parser) checkReservedZones() {
	if p.cfg.Firewall == nil {
		return
	}
	for _, at := range p.wordZones {
		at.problem("this name means something else in policies of the firewall: "+Self+" is this machine, and "+AnyZone+" each of the zones", "give the zone another name")
	}
}

// someAddresses reads addresses and networks, outermost first by where they are
// written.
func (v value) someAddresses() []netip.Prefix {
	if v.emptyList() {
		v.problem("an empty list fits nothing", "write addresses or networks, or leave it out for all")
	}
	var all []netip.Prefix
	for _, t := range v.texts(nil) {
		if a, err := netip.ParseAddr(t.text); err == nil && a.Zone() == "" && !a.Is4In6() {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		network, flt := parseNetwork(t.text)
		if flt != nil {
			if !strings.Contains(t.text, "/") {
				flt = &Fault{quote(t.text) + " is neither an address nor a network", "write one such as 10.0.0.10 or 10.11.12.0/24"}
			}
			t.at.fault(flt)
			continue
		}
		all = append(all, network)
	}
	return all
}

// familiesOf is a bit for each IP family that there is an address of; all of
// them if none are given.
func familiesOf(prefixes []netip.Prefix) (families int) {
	if prefixes == nil {
		return 3
	}
	for _, p := range prefixes {
		if p.Addr().Is4() {
			families |= 1
		} else {
			families |= 2
		}
	}
	return families
}

// namedServices are what ports can be called.
var namedServices = map[string][]PortRange{
	"ssh":   {{edge.TCP, 22, 22}},
	"dns":   {{edge.UDP, 53, 53}, {edge.TCP, 53, 53}},
	"dhcp":  {{edge.UDP, 67, 67}, {edge.UDP, 547, 547}},
	"ntp":   {{edge.UDP, 123, 123}},
	"http":  {{edge.TCP, 80, 80}},
	"https": {{edge.TCP, 443, 443}},
	"ping":  {{ICMP, 0, 0}},
}

// services reads what a policy is about.
func (v value) services() []PortRange {
	if v.emptyList() {
		v.problem("an empty list is about nothing", "write the ports, such as ports: [6443, ssh], or leave it out for everything")
	}
	var all []PortRange
	said := map[PortRange]edge.Pos{}
	for _, e := range v.list() {
		n := e.node
		if n.Kind != yaml.ScalarNode || n.Style&yaml.TaggedStyle != 0 || n.Tag != "!!int" && n.Tag != "!!str" {
			e.wrongKind("a port or a name", "6443, 53/UDP, 8000-8010/TCP or ssh")
			continue
		}
		ranges, flt := ParseServices(n.Value)
		if flt != nil {
			e.fault(flt)
			continue
		}
		for _, r := range ranges {
			if first, ok := said[r]; ok {
				e.problem(r.String()+" is in the list twice", "the first is at "+first.String())
				break
			}
			said[r] = e.pos()
			all = append(all, r)
		}
	}
	return all
}

// ParseServices reads "6443", "53/UDP", "8000-8010/TCP" or a name such as
// "ssh", which may stand for several ports.
func ParseServices(s string) ([]PortRange, *Fault) {
	if named, ok := namedServices[s]; ok {
		return slices.Clone(named), nil
	}
	ports, protocol, explicit := strings.Cut(s, "/")
	if ports == "" || strings.Trim(ports, "0123456789-") != "" {
		names := make([]string, 0, len(namedServices))
		for name := range namedServices {
			names = append(names, name)
		}
		slices.Sort(names)
		return nil, &Fault{quote(s) + " is no port", "write a number, 53/UDP, 8000-8010/TCP, or a name; " + Suggest(strings.ToLower(s), "names are", names)}
	}
	r := PortRange{Protocol: edge.TCP}
	if explicit {
		switch r.Protocol = edge.Protocol(protocol); r.Protocol {
		case edge.TCP, edge.UDP, edge.SCTP:
		default:
			return nil, &Fault{quote(protocol) + " is not a protocol with ports", "write TCP, UDP or SCTP, such as " + ports + "/UDP"}
		}
	}
	first, last, isRange := strings.Cut(ports, "-")
	if first == "" || isRange && (last == "" || strings.Contains(last, "-")) {
		return nil, &Fault{quote(ports) + " is not a range of ports", "write FIRST-LAST, such as 8000-8010"}
	}
	var flt *Fault
	if r.First, flt = parsePort(first); flt != nil {
		return nil, flt
	}
	if r.Last = r.First; isRange {
		if r.Last, flt = parsePort(last); flt != nil {
			return nil, flt
		}
	}
	if r.Last < r.First {
		return nil, &Fault{quote(ports) + " ends before it begins", "write " + last + "-" + first}
	}
	return []PortRange{r}, nil
}

// String prints what the file would say: "6443/TCP", "8000-8010/UDP", "ping".
func (r PortRange) String() string {
	if r.Protocol == ICMP {
		return "ping"
	}
	s := strconv.Itoa(int(r.First))
	if r.Last != r.First {
		s += "-" + strconv.Itoa(int(r.Last))
	}
	return s + "/" + string(r.Protocol)
}

// String prints what fits the policy: "home -> cluster: 6443/TCP to 10.0.0.10".
func (p Policy) String() string {
	what := "everything"
	if p.Services != nil {
		parts := make([]string, len(p.Services))
		for i, r := range p.Services {
			parts[i] = r.String()
		}
		what = strings.Join(parts, ", ")
	}
	return cmp.Or(p.From, AnyZone) + " -> " + cmp.Or(p.To, AnyZone) + ": " + what + listed(" from ", p.Sources) + listed(" to ", p.Destinations)
}

// listed are networks behind a word; nothing, if they are all.
func listed(word string, networks []netip.Prefix) string {
	if networks == nil {
		return ""
	}
	parts := make([]string, len(networks))
	for i, n := range networks {
		if parts[i] = n.String(); n.IsSingleIP() {
			parts[i] = n.Addr().String()
		}
	}
	return word + strings.Join(parts, ", ")
}
