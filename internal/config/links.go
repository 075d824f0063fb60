package config

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	// FirstMetric is the metric of the routes of the first link; each link after it
	// has one more.
	FirstMetric = 100
	// mostMetric leaves what is larger to the routes to pods.
	mostMetric = 999_999_999
	// leastMTU is what each host of IPv4 takes (RFC 791 §3.1).
	leastMTU = 576
)

// dhcpWord stands among addresses for the one that DHCP gives.
const dhcpWord = "dhcp"

var linkBlock = block{
	path: "links[]", format: APIVersion, example: "{name: eth0, addresses: [10.0.0.1/24]}",
	doc: "An interface. With `macvlan`, `vlan` or `bridge` gatehouse makes it, and removes it when it leaves the file; without, it has to be there, and gatehouse keeps its addresses. One of that name and kind which is there already is taken as it is, and never removed. Links are set up, and so is what they are on. [More](links.md).",
	fields: []field{
		{"name", "interface name", required, "veth0", "What it is called."},
		{"macvlan", "map", "none", "{parent: eth1}", "An interface with a MAC address of its own on another's cable."},
		{"vlan", "map", "none", "{parent: eth0, id: 20}", "What one VLAN tag of a cable carries."},
		{"bridge", "map", "none", "{ports: [eth2, eth3]}", "A switch of other interfaces."},
		{"mac", "MAC address", "as it is", `"02:00:00:00:00:51"`, "Its MAC address. Give a MACVLAN one, so that the home router knows it again. Quote it."},
		{"mtu", "576 to 65535", "as it is", "1500", "The largest packet that it sends, in bytes. IPv6 takes 1280 at least. Without, a smaller one that DHCP tells is taken."},
		{"addresses", "list of addresses with prefix lengths, and `dhcp`", "`[]`", `[10.0.0.1/24, "fd00:10::1/64"]`, "The addresses that it has. `dhcp` among them: an IPv4 address is asked for. Others that it has are left alone."},
		{"hostname", "hostname", "the machine's", "rpi0", "With `dhcp`: the name that the server is told. Many home routers make it a name in their DNS."},
		{"defaultRoute", "true or false", "`true`", "false", "With `dhcp`: whether the server's router is where everything else goes."},
		{"metric", "1 to 999999999", "100 for the first link in the files, 101 for the second, ...", "100", "Of the routes to its networks, of its default route and of `routes`: where two links lead to the same place, the smallest counts."},
		{"acceptRA", "true or false", "`false`", "true", "Whether it makes itself IPv6 addresses and a default route of what routers advertise there. `false` leaves that as it is."},
		{"forwarding", "true or false", "`false`", "true", "Whether this machine is a router, for both IP families. With a `firewall` it is anyway; without one, everything is let through that has a route."},
		{"routes", "list", "`[]`", "[{to: 10.2.0.0/16, via: 10.0.0.9}]", "What else is behind it."},
	},
	wrong: []refusal{
		{"address", "here it is a list: addresses: [10.0.0.1/24]"},
		{"dhcp", "here it is one of addresses: [dhcp]"},
		{"gateway", "write routes: [{to: default, via: ADDRESS}]"},
	},
}

var macvlanBlock = block{
	path: "links[].macvlan", format: APIVersion, example: "{parent: eth1}",
	fields: []field{
		{"parent", "interface name", required, "eth1", "Whose cable it is on. It may be another link, and may come later than gatehouse."},
		{"mode", "`bridge`, `private`, `vepa` or `passthru`", "`bridge`", "bridge", "Who of those on the same parent hears whom, as `ip link` calls it."},
	},
}

var vlanBlock = block{
	path: "links[].vlan", format: APIVersion, example: "{parent: eth0, id: 20}",
	fields: []field{
		{"parent", "interface name", required, "eth0", "Whose cable it is on."},
		{"id", "1 to 4094", required, "20", "The tag (IEEE 802.1Q)."},
	},
}

var bridgeBlock = block{
	path: "links[].bridge", format: APIVersion, example: "{ports: [eth2, eth3]}",
	fields: []field{
		{"ports", "list of interface names", "`[]`", "[eth2, eth3]", "The interfaces that it switches between. Ports that others add are left alone."},
		{"stp", "true or false", "`false`", "false", "Whether it speaks the spanning tree protocol, which keeps rings of bridges from flooding."},
	},
}

var linkRouteBlock = block{
	path: "links[].routes[]", format: APIVersion, example: "{to: 10.2.0.0/16, via: 10.0.0.9}",
	fields: []field{
		{"to", "network, or `default`", required, "10.2.0.0/16", "Where it leads. `default` is everything, of the family of `via`."},
		{"via", "IP address", "neighbours", "10.0.0.9", "The router that it goes by, in a network of the link. Without, those behind it are on the cable itself."},
		{"metric", "1 to 999999999", "that of the link", "100", "Of routes to the same network the one with the smallest counts."},
	},
}

// A linkValue is a link with where its parts are written.
type linkValue struct {
	name, parent value
	ports        []text
	addresses    []text
	mac          value
	routes       []fields
}

// link reads one of links.
func (f *file) link(v value) {
	m, ok := v.fields(&linkBlock)
	if !ok {
		return
	}
	// By its place among all that are written, good or bad.
	l := Link{Metric: FirstMetric + len(f.cfg.Links), Pos: v.pos()}
	at := linkValue{name: m.need("name")}
	at.name.checked(&l.Name, checkInterface)
	if l.Name == "lo" {
		at.name.problem("the loopback interface is not gatehouse's to keep", "leave it to the system")
	}
	for _, other := range f.cfg.Links {
		if l.Name != "" && other.Name == l.Name {
			at.name.problem("two links are called "+quote(l.Name), "the other one is at "+other.Pos.String()+"; write what there is to say in one of them")
		}
	}
	f.linkKind(m, &l, &at)
	at.mac = m.get("mac")
	parsed(at.mac, &l.MAC, parseMAC)
	m.get("mtu").int(&l.MTU, leastMTU, 65535)
	m.get("metric").int(&l.Metric, 1, mostMetric)
	m.get("acceptRA").bool(&l.AcceptRA)
	m.get("forwarding").bool(&l.Forwarding)
	at.addresses = m.linkAddresses(&l)
	m.linkDHCP(&l)
	for _, e := range m.get("routes").list() {
		m.linkRoute(e, &l, &at)
	}
	if l.MTU > 0 && l.MTU < 1280 && (l.AcceptRA || slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })) {
		m.get("mtu").problem("IPv6 takes an MTU of 1280 at least", "write mtu: 1280 or more, or leave IPv6 out")
	}
	f.cfg.Links = append(f.cfg.Links, l)
	f.links = append(f.links, at)
}

// linkKind reads what a link is, if gatehouse is to make it.
func (f *file) linkKind(m fields, l *Link, at *linkValue) {
	var first string
	for _, kind := range []string{"macvlan", "vlan", "bridge"} {
		key, ok := m.keys[kind]
		if !ok {
			continue
		}
		if first != "" {
			key.problem("a link is one thing", first+" is at "+m.keys[first].pos().String()+"; keep one of them")
			continue
		}
		first = kind
	}
	switch v := m.get(cmp.Or(first, "macvlan")); first {
	case "macvlan":
		l.Macvlan = &Macvlan{Mode: "bridge"}
		if b, ok := v.fields(&macvlanBlock); ok {
			at.parent = b.need("parent")
			at.parent.checked(&l.Macvlan.Parent, checkInterface)
			if mode, ok := choice(b.get("mode"), "mode", []string{"bridge", "private", "vepa", "passthru"}); ok {
				l.Macvlan.Mode = mode
			}
		}
	case "vlan":
		l.VLAN = &VLAN{}
		if b, ok := v.fields(&vlanBlock); ok {
			at.parent = b.need("parent")
			at.parent.checked(&l.VLAN.Parent, checkInterface)
			b.need("id").int(&l.VLAN.ID, 1, 4094)
		}
	case "bridge":
		l.Bridge = &Bridge{}
		if b, ok := v.fields(&bridgeBlock); ok {
			at.ports = b.get("ports").texts(checkInterface)
			l.Bridge.Ports = plain(at.ports)
			b.get("stp").bool(&l.Bridge.STP)
		}
	}
}

// linkAddresses reads the addresses of a link, and whether it asks for one.
func (m fields) linkAddresses(l *Link) []text {
	var all []text
	for _, t := range m.get("addresses").texts(nil) {
		if t.text == dhcpWord {
			l.DHCP = &DHCPClient{DefaultRoute: true}
			continue
		}
		p, flt := parseLinkAddress(t.text)
		if flt != nil {
			t.at.fault(flt)
			continue
		}
		l.Addresses = append(l.Addresses, p)
		all = append(all, text{p.Addr().String(), t.at})
	}
	return all
}

// linkDHCP reads what goes with dhcp.
func (m fields) linkDHCP(l *Link) {
	if l.DHCP == nil {
		for _, key := range []string{"hostname", "defaultRoute"} {
			if at, ok := m.keys[key]; ok && !m.get("addresses").hasText(dhcpWord) {
				at.problem("it is about DHCP, which is not asked", "write addresses: [dhcp], or remove "+key)
			}
		}
		return
	}
	l.DHCP.Metric = l.Metric
	m.get("hostname").checked(&l.DHCP.Hostname, func(s string) *Fault { return checkLabel("hostname", s) })
	m.get("defaultRoute").bool(&l.DHCP.DefaultRoute)
}

func (v value) hasText(s string) bool {
	return !v.absent() && slices.ContainsFunc(v.list(), func(e value) bool { return e.says(s) })
}

// linkRoute reads a route by a link.
func (m fields) linkRoute(v value, l *Link, at *linkValue) {
	b, ok := v.fields(&linkRouteBlock)
	if !ok {
		return
	}
	r := LinkRoute{Metric: l.Metric, Pos: v.pos()}
	via := b.get("via")
	parsed(via, &r.Via, parseRouter)
	to := b.need("to")
	switch {
	case to.absent():
	case to.says("default") && r.Via.Is6():
		r.To = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	case to.says("default") && r.Via.IsValid():
		r.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	case to.says("default") && via.absent():
		to.problem("a default route goes by a router", `write via: ADDRESS; or to: 0.0.0.0/0 or "::/0", if everybody is on the cable itself`)
	case to.says("default"): // via has a problem of its own
	default:
		parsed(to, &r.To, parseNetwork)
	}
	b.get("metric").int(&r.Metric, 1, mostMetric)
	if r.To.IsValid() && r.Via.IsValid() {
		switch {
		case r.To.Addr().Is4() != r.Via.Is4():
			via.problem("a router of the other IP family than "+r.To.String(), "write one of the same family")
			return
		case !l.reaches(r.Via):
			via.problem(r.Via.String()+" is in no network of "+cmp.Or(l.Name, "the link"), "write a router that is, or give the link an address in its network")
			return
		}
	}
	if r.To.IsValid() {
		l.Routes = append(l.Routes, r)
		at.routes = append(at.routes, b)
	}
}

// reaches says whether a router may be a neighbour, as far as a file can say.
func (l *Link) reaches(a netip.Addr) bool {
	if l.DHCP != nil && a.Is4() || l.AcceptRA && a.Is6() || a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Contains(a) && p.Addr() != a })
}

// parent is the interface that a link is on; empty: none.
func (l *Link) parent() string {
	switch {
	case l.Macvlan != nil:
		return l.Macvlan.Parent
	case l.VLAN != nil:
		return l.VLAN.Parent
	}
	return ""
}

// checkLinks runs when all files are read: links are on each other.
func (p *parser) checkLinks() {
	p.checkTakenTwice()
	ports := map[string]text{}
	owner := map[string]string{}
	for i, l := range p.cfg.Links {
		for _, port := range p.links[i].ports {
			if other, ok := ports[port.text]; ok {
				port.at.problem(port.text+" is a port of two bridges", "the other one is at "+other.at.pos().String()+"; keep it in one of them")
				continue
			}
			if port.text == l.Name {
				port.at.problem("a bridge is no port of itself", "remove it")
				continue
			}
			ports[port.text], owner[port.text] = port, l.Name
		}
	}
	for i, l := range p.cfg.Links {
		at := p.links[i]
		if parent := l.parent(); parent != "" && owner[parent] != "" && l.Macvlan != nil {
			at.parent.problem(parent+" is a port of bridge "+owner[parent]+", and the kernel lets it be one thing", "write parent: "+owner[parent])
		}
		if port, ok := ports[l.Name]; ok && (len(l.Addresses) > 0 || l.DHCP != nil) {
			at.name.problem("a port of a bridge has no addresses: nothing comes in there", "give them to the bridge, which is at "+port.at.pos().String())
		}
		p.checkCircle(i)
	}
}

// checkCircle finds links that are on themselves.
func (p *parser) checkCircle(i int) {
	l := &p.cfg.Links[i]
	next := l.parent()
	for range p.cfg.Links {
		if next == "" {
			return
		}
		if next == l.Name {
			p.links[i].parent.problem("it would be on itself", "write the interface that has the cable")
			return
		}
		j := slices.IndexFunc(p.cfg.Links, func(o Link) bool { return o.Name == next })
		if j < 0 {
			return
		}
		next = p.cfg.Links[j].parent()
	}
}

// checkTakenTwice finds what only one link can have.
func (p *parser) checkTakenTwice() {
	taken := map[string]value{}
	take := func(key, what, remedy string, at value) {
		if other, ok := taken[key]; ok {
			at.problem(what, "the other one is at "+other.pos().String()+"; "+remedy)
			return
		}
		taken[key] = at
	}
	for i, l := range p.cfg.Links {
		at := p.links[i]
		for _, a := range at.addresses {
			take(a.text, "two links have "+a.text, "an address belongs to one", a.at)
		}
		if l.MAC != "" {
			take(l.MAC, "two links have the MAC address "+l.MAC, "give one of them another", at.mac)
		}
		if l.VLAN != nil && l.VLAN.ID > 0 && l.VLAN.Parent != "" {
			id := strconv.Itoa(l.VLAN.ID)
			take("vlan "+l.VLAN.Parent+" "+id, "two links are VLAN "+id+" of "+l.VLAN.Parent, "keep one of them", at.name)
		}
		for j, r := range l.Routes {
			metric := strconv.Itoa(r.Metric)
			take("route "+r.To.String()+" "+metric, "two routes to "+r.To.String()+" with metric "+metric, "give one of them another metric", at.routes[j].of)
		}
	}
}

// parseLinkAddress reads an address of an interface, with the length of its
// network's prefix.
func parseLinkAddress(s string) (netip.Prefix, *Fault) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			bits := "24"
			if a.Is6() {
				bits = "64"
			}
			return p, &Fault{quote(s) + " does not say how large its network is", "write " + quote(s+"/"+bits) + ", with the length of the network's prefix"}
		}
		return p, &Fault{quote(s) + " is not an address with a prefix length", "write ADDRESS/BITS, such as 10.0.0.1/24, or dhcp"}
	}
	a := p.Addr()
	const right = "write one that a machine can have, such as 10.0.0.1/24"
	switch {
	case a.Is4In6():
		return p, &Fault{quote(s) + " is an IPv4 address written as IPv6", "write it as IPv4"}
	case a.IsUnspecified() || p.Bits() == 0:
		return p, &Fault{quote(s) + " is no address of a machine", right}
	case a.IsMulticast():
		return p, &Fault{quote(s) + " is a multicast address", right}
	case a.IsLoopback():
		return p, &Fault{quote(s) + " is a loopback address", right}
	case a.Is4() && p.Bits() < 31 && a == p.Masked().Addr():
		return p, &Fault{quote(s) + " is the address of the network itself", "write " + netip.PrefixFrom(a.Next(), p.Bits()).String() + ", or another of the network"}
	case a.Is4() && p.Bits() < 31 && a == lastOf(p.Masked()):
		return p, &Fault{quote(s) + " is the broadcast address of its network", "write " + netip.PrefixFrom(a.Prev(), p.Bits()).String() + ", or another of the network"}
	}
	return p, nil
}

// parseRouter reads the address of a router.
func parseRouter(s string) (netip.Addr, *Fault) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Addr{}, &Fault{quote(s) + " is not the address of a router", "write one such as 10.0.0.9"}
	}
	return a, nil
}

// parseMAC reads a MAC address, in small letters.
func parseMAC(s string) (string, *Fault) {
	const right = `write six bytes in quotes, such as "02:00:00:00:00:51"`
	parts := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r == ':' || r == '-' })
	var first, all uint64
	for i, part := range parts {
		b, err := strconv.ParseUint(part, 16, 8)
		if err != nil || len(part) != 2 {
			parts = nil
			break
		}
		if i == 0 {
			first = b
		}
		all |= b
	}
	switch {
	case len(parts) != 6 || len(s) != 17:
		return "", &Fault{quote(s) + " is not a MAC address", right}
	case first&1 != 0:
		return "", &Fault{quote(s) + " is the address of a group", right + "; the first byte is even"}
	case all == 0:
		return "", &Fault{quote(s) + " is nobody's MAC address", right}
	}
	return strings.Join(parts, ":"), nil
}
