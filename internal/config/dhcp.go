package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// DefaultLeaseTime is how long an address is given for: a machine that is away
// for a night keeps it.
const DefaultLeaseTime = 12 * time.Hour

// DefaultRouterLifetime is how long this machine is a default router after its
// last advertisement (RFC 4861 section 6.2.1, AdvDefaultLifetime).
const DefaultRouterLifetime = 30 * time.Minute

// MaxLeases is how many addresses the pools of a zone may have, which bounds
// what is kept of them.
const MaxLeases = 65536

// What can be said in an option, or makes sense.
const (
	shortestLease    = 2 * time.Minute
	shortestLifetime = 30 * time.Second
	longestLifetime  = 18 * time.Hour // it is told in 16 bits of seconds
	smallestMTU4     = 576            // RFC 2132 section 5.1 allows 68, which carries no DHCP message
	smallestMTU6     = 1280           // RFC 8200 section 5
	longestBootFile  = 127            // the field has 128 bytes with the zero at its end (RFC 2131 section 2)
	longestSearch    = 255            // in all, as option 119 has it without compression
)

// A dhcpRange is one that machines are given addresses of, and where it says so.
type dhcpRange struct {
	edge.Range
	at   value
	zone string
}

// keptFor is an address that is reserved, or whom one is for: each is there once.
type keptFor struct {
	what string // "address 10.0.0.11", "mac 02:00:00:00:00:11", "node worker-1"
	at   value
}

// dhcp reads what is given to the machines of zones.
func (f *file) dhcp(v value) {
	for _, e := range v.entries() {
		f.zoneRefs = append(f.zoneRefs, text{e.key, e.keyAt})
		m, ok := e.value.fields(&dhcpBlock)
		if !ok {
			continue
		}
		d := DHCP{Zone: e.key, LeaseTime: DefaultLeaseTime, Probe: true, Pos: e.keyAt.pos()}
		ranges := f.dhcpPools(m.get("pools"), e.key, netip.Prefix{})
		d.Pools = ranges
		m.get("leaseTime").duration(&d.LeaseTime, shortestLease, LongestTimeout, false)
		for _, r := range m.get("reservations").list() {
			f.reservation(r, &d)
		}
		for _, r := range m.get("relayed").list() {
			f.relayed(r, &d)
		}
		m.get("options").dhcpOptions(&d.Options)
		m.get("probe").bool(&d.Probe)
		d.RouterAdvertisements = m.get("routerAdvertisements").routerAdvertisements(m)
		if gives := d.Gives(); !gives && d.RouterAdvertisements == nil && m.get("pools").absent() && m.get("reservations").absent() && m.get("relayed").absent() && m.get("routerAdvertisements").absent() {
			e.value.problem("gives nothing", "write pools: [10.0.0.100-10.0.0.199], reservations, relayed or routerAdvertisements: {}, or remove it")
		} else if gives {
			f.dhcpZones = append(f.dhcpZones, e.keyAt)
			f.claims = append(f.claims, claim{protocol: edge.UDP, zone: e.key, port: DHCPPort, text: "DHCP (UDP port 67) in zone " + e.key, at: e.keyAt})
		}
		if d.RouterAdvertisements != nil {
			f.claims = append(f.claims, claim{protocol: edge.UDP, zone: e.key, port: DHCPv6Port, text: "DHCPv6 (UDP port 547) in zone " + e.key, at: e.keyAt})
		}
		f.cfg.DHCP = append(f.cfg.DHCP, d)
	}
}

// DHCPPort is where servers and relay agents listen (RFC 2131 section 4.1).
const DHCPPort = 67

// DHCPv6Port is where servers of IPv6 listen (RFC 8415 section 7.2), of which
// router advertisements have one for what else there is to know.
const DHCPv6Port = 547

// Gives says whether IPv4 addresses are given to somebody, which takes a server.
func (d *DHCP) Gives() bool {
	return len(d.Pools) > 0 || len(d.Reservations) > 0 || len(d.Relayed) > 0
}

// dhcpPools reads ranges of a zone, or of a network behind a relay agent.
func (f *file) dhcpPools(v value, zone string, network netip.Prefix) []edge.Range {
	if v.emptyList() {
		v.problem("a list without addresses", "write pools: [10.0.0.100-10.0.0.199], or remove it")
	}
	var ranges []edge.Range
	for _, t := range v.texts(nil) {
		r, flt := parseRange(t.text)
		switch {
		case flt != nil:
			t.at.fault(flt)
			continue
		case !r.First.Is4():
			t.at.problem(quote(t.text)+" is IPv6, of which machines make themselves addresses", "write routerAdvertisements: {} for that, and IPv4 addresses here")
			continue
		case network.IsValid() && (!network.Contains(r.First) || !network.Contains(r.Last)):
			t.at.problem(quote(t.text)+" is not in the network "+network.String(), "write addresses of that network")
			continue
		}
		if other := f.givenBefore(r); other != nil {
			t.at.problem(quote(t.text)+" overlaps with "+other.String(), "the other one is at "+other.at.pos().String()+"; an address is in one pool")
			continue
		}
		f.dhcpRanges = append(f.dhcpRanges, dhcpRange{r, t.at, zone})
		size := 0
		for _, o := range f.dhcpRanges {
			if o.zone == zone {
				size += RangeSize(o.Range)
			}
		}
		if size > MaxLeases {
			t.at.problem("the pools of zone "+zone+" have "+strconv.Itoa(size)+" addresses", "the limit is "+strconv.Itoa(MaxLeases)+"; write smaller ranges")
			f.dhcpRanges = f.dhcpRanges[:len(f.dhcpRanges)-1]
			continue
		}
		ranges = append(ranges, r)
	}
	return ranges
}

// RangeSize is how many addresses a range of IPv4 has.
func RangeSize(r edge.Range) int {
	number := func(a netip.Addr) int {
		b := a.As4()
		return int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	}
	return number(r.Last) - number(r.First) + 1
}

func (p *parser) givenBefore(r edge.Range) *dhcpRange {
	for i := range p.dhcpRanges {
		if o := &p.dhcpRanges[i]; o.Contains(r.First) || o.Contains(r.Last) || r.Contains(o.First) {
			return o
		}
	}
	return nil
}

// reservation reads the address that is kept for one machine.
func (f *file) reservation(v value, d *DHCP) {
	m, ok := v.fields(&reservationBlock)
	if !ok {
		return
	}
	r := Reservation{Pos: v.pos()}
	mac, node := m.get("mac"), m.get("node")
	switch {
	case mac.absent() && node.absent():
		v.problem("is for nobody", `write mac: "02:00:00:00:00:11", or node: worker-1`)
	case !mac.absent() && !node.absent():
		m.keys["node"].problem("a reservation is by mac or by node, not both", "mac is at "+m.keys["mac"].pos().String()+"; remove one of them")
		return
	}
	parsed(mac, &r.MAC, parseEthernet)
	parsed(node, &r.Node, parseDNSName)
	parsed(m.need("address"), &r.Address, parseAddress4)
	m.get("hostname").checked(&r.Hostname, func(s string) *Fault { return checkLabel("host name", s) })
	once := func(what string, at value) bool {
		for _, o := range f.dhcpReserved {
			if o.what == what {
				at.problem(what+" is reserved twice", "the other one is at "+o.at.pos().String()+"; keep one of them")
				return false
			}
		}
		f.dhcpReserved = append(f.dhcpReserved, keptFor{what, at})
		return true
	}
	ok = r.Address.IsValid() && once("address "+r.Address.String(), m.get("address"))
	switch {
	case r.MAC != "": // a machine can move between zones
		ok = once("mac "+r.MAC+" in zone "+d.Zone, mac) && ok
	case r.Node != "":
		ok = once("node "+r.Node+" in zone "+d.Zone, node) && ok
	default:
		ok = false
	}
	if ok {
		d.Reservations = append(d.Reservations, r)
	}
}

// relayed reads a network of machines behind a relay agent.
func (f *file) relayed(v value, d *DHCP) {
	m, ok := v.fields(&relayedBlock)
	if !ok {
		return
	}
	r := RelayedNetwork{Pos: v.pos()}
	network := m.need("network")
	parsed(network, &r.Network, func(s string) (netip.Prefix, *Fault) {
		p, flt := parseNetwork(s)
		if flt == nil && (!p.Addr().Is4() || p.Bits() > 30) {
			return p, &Fault{quote(s) + " is no network of IPv4 that machines could be in", "write one such as 10.2.0.0/24"}
		}
		return p, flt
	})
	parsed(m.get("router"), &r.Router, parseAddress4)
	if r.Network.IsValid() && r.Router.IsValid() && !r.Network.Contains(r.Router) {
		m.get("router").problem(r.Router.String()+" is not in the network "+r.Network.String(), "write the address that the router has there")
	}
	r.Pools = f.dhcpPools(m.get("pools"), d.Zone, r.Network)
	for i := range f.relayedNetworks {
		if o := &f.relayedNetworks[i]; r.Network.IsValid() && o.Network.Overlaps(r.Network) {
			network.problem(r.Network.String()+" overlaps with "+o.Network.String(), "the other one is at "+o.Pos.String()+"; a relay agent's address has to say which it is")
			return
		}
	}
	if r.Network.IsValid() {
		f.relayedNetworks = append(f.relayedNetworks, r)
		d.Relayed = append(d.Relayed, r)
	}
}

// dhcpOptions reads what machines are told beside their address.
func (v value) dhcpOptions(o *DHCPOptions) {
	m, ok := v.fields(&dhcpOptionsBlock)
	if !ok {
		return
	}
	o.Routers = m.get("routers").addresses4()
	o.DNS = m.get("dns").addresses4()
	parsed(m.get("domain"), &o.Domain, parseDNSName)
	o.Search = m.get("search").searchList()
	o.NTP = m.get("ntp").addresses4()
	m.get("mtu").int(&o.MTU, smallestMTU4, 65535)
	parsed(m.get("nextServer"), &o.NextServer, parseAddress4)
	m.get("bootFile").checked(&o.BootFile, func(s string) *Fault {
		if s == "" || len(s) > longestBootFile || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return &Fault{quote(s) + " is not a boot file", "write a name of 1 to " + strconv.Itoa(longestBootFile) + " bytes, such as pxelinux.0"}
		}
		return nil
	})
}

// routerAdvertisements reads what IPv6 takes. An empty block has all defaults.
func (v value) routerAdvertisements(of fields) *RouterAdvertisements {
	m, ok := v.fields(&advertisementsBlock)
	if !ok {
		return nil
	}
	r := &RouterAdvertisements{Lifetime: DefaultRouterLifetime, Pos: of.keys["routerAdvertisements"].pos()}
	prefixes := m.get("prefixes")
	if prefixes.emptyList() {
		prefixes.problem("an empty list is no prefix", `write prefixes: ["fd00:10::/64"], or leave it out for those of this machine's addresses`)
	}
	for _, t := range prefixes.texts(nil) {
		p, flt := parseNetwork(t.text)
		switch {
		case flt != nil:
			t.at.fault(flt)
		case p.Addr().Is4() || p.Bits() != 64:
			t.at.problem(quote(t.text)+" is not a prefix that machines make themselves an address of", "write an IPv6 network of 64 bits, such as fd00:10::/64")
		case p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified() || p.Addr().IsLoopback():
			t.at.problem(quote(t.text)+" is not for machines to have", "write a network such as fd00:10::/64")
		default:
			r.Prefixes = append(r.Prefixes, p)
		}
	}
	m.get("lifetime").duration(&r.Lifetime, shortestLifetime, longestLifetime, true)
	r.DNS = addressesOf(m.get("dns"), parseAddress6)
	r.Search = m.get("search").searchList()
	r.NTP = addressesOf(m.get("ntp"), parseAddress6)
	if mtu := m.get("mtu"); !mtu.says("0") {
		mtu.int(&r.MTU, smallestMTU6, 65535)
	}
	return r
}

// searchList reads domains in the order in which they are tried.
func (v value) searchList() []string {
	names := plain(v.parsedTexts(parseDNSName))
	size := 0
	for _, n := range names {
		size += len(n) + 2 // a length in front, and a zero at its end
	}
	if size > longestSearch {
		v.problem("the domains have "+strconv.Itoa(size)+" bytes", "write fewer, of "+strconv.Itoa(longestSearch)+" bytes in all")
	}
	return names
}

func (v value) addresses4() []netip.Addr { return addressesOf(v, parseAddress4) }

// addressesOf reads addresses. An empty list is not nil.
func addressesOf(v value, parse func(string) (netip.Addr, *Fault)) []netip.Addr {
	if v.emptyList() {
		return []netip.Addr{}
	}
	var addrs []netip.Addr
	for _, t := range v.texts(nil) {
		a, flt := parse(t.text)
		switch {
		case flt != nil:
			t.at.fault(flt)
		case slices.Contains(addrs, a):
			t.at.problem(a.String()+" is in the list twice", "remove one of them")
		default:
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func parseAddress4(s string) (netip.Addr, *Fault) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() || a.IsMulticast() || a.IsLoopback() || isThisNetwork(a) {
		return netip.Addr{}, &Fault{quote(s) + " is not an IPv4 address of a machine", "write one such as 10.0.0.11"}
	}
	return a, nil
}

func parseAddress6(s string) (netip.Addr, *Fault) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() {
		return netip.Addr{}, &Fault{quote(s) + " is not an IPv6 address of a machine", `write one such as "fd00:10::1"`}
	}
	return a, nil
}

// parseEthernet reads a hardware address as it is written on a label or printed
// by a tool: with colons or dashes, in either case.
func parseEthernet(s string) (string, *Fault) {
	parts := strings.Split(strings.ReplaceAll(strings.ToLower(s), "-", ":"), ":")
	bad := len(parts) != 6 || slices.ContainsFunc(parts, func(p string) bool {
		_, err := strconv.ParseUint(p, 16, 8)
		return len(p) != 2 || err != nil
	})
	mac := strings.Join(parts, ":")
	if bad || mac == "00:00:00:00:00:00" {
		return "", &Fault{quote(s) + " is not a MAC address", `write one such as "02:00:00:00:00:11", in quotes`}
	}
	if first, _ := strconv.ParseUint(parts[0], 16, 8); first&1 != 0 {
		return "", &Fault{quote(s) + " is a group's MAC address, which no machine has", `write one such as "02:00:00:00:00:11", in quotes`}
	}
	return mac, nil
}

// checkDHCP runs when all files are read: what is in the way of addresses, or
// needed, may be in a later one.
func (p *parser) checkDHCP() {
	for i := range p.dhcpRanges {
		r := &p.dhcpRanges[i]
		if other := p.pooledBefore(r.Range); other != nil {
			r.at.problem(r.String()+" overlaps with "+other.String()+" of pool "+other.pool+", which Services get", "the other one is at "+other.at.pos().String()+"; an address is for machines or for Services")
		}
	}
	for _, r := range p.dhcpReserved {
		text, ok := strings.CutPrefix(r.what, "address ")
		if !ok {
			continue
		}
		a := netip.MustParseAddr(text)
		if other := p.pooledBefore(edge.Range{First: a, Last: a}); other != nil {
			r.at.problem(text+" is in "+other.String()+" of pool "+other.pool+", which Services get", "the other one is at "+other.at.pos().String()+"; an address is for machines or for Services")
		}
	}
	if _, ok := p.blocks["stateDir"]; ok {
		return
	}
	for _, at := range p.dhcpZones {
		at.problem("leases have to outlive this program, and there is no stateDir to keep them in", "write stateDir: /var/lib/gatehouse")
	}
}
