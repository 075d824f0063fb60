// Package names decides which names the machines of each zone know, and what
// they stand for. It is pure.
//
//	records := names.Build(names.Inputs{Config: c, Exposures: state.Exposures, Names: state.Names, Leases: leases})
//
// One name can stand for different addresses in different zones: those that can
// be reached from there; where there is none, the name is not known there.
//
// A name belongs to who comes first: what is written in the file, then this
// machine, the nodes of the cluster, reservations, leases, what is open, and at
// last what Services ask for. It is then nobody else's in any zone.
package names

import (
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// Own is what this machine is called in the site's domain.
const Own = config.OwnName

// Inputs are what names follow from. Their order is of no effect, but for that of
// the zones and records of the file.
type Inputs struct {
	Config     *config.Config // with DNS
	Interfaces []edge.Interface
	Exposures  []desired.Exposure
	Names      []desired.Name // of Services, beside SERVICE.NAMESPACE
	Cluster    *edge.Cluster  // nil: none, or not read yet
	Leases     []edge.Lease   // that have not expired
	// Reaches says whether machines of a zone can send something to an address of another; nil: Reach of Config.
	Reaches func(zone string, addr netip.Addr) bool
}

// A rank is how much a name is worth: the lowest has it.
type rank int

const (
	ofFile rank = iota
	ofSelf
	ofNode
	ofReservation
	ofExposure
	ofClaim
	ofLease // last: who is on the cable may call himself as he likes
)

// A host is a name with addresses, for one reason.
type host struct {
	name  string
	rank  rank
	addrs []netip.Addr // nil: those of in
	in    func(zone string) (addrs []netip.Addr, why string)
	zones []string // where it is known, whether or not the firewall lets anything pass; nil: where it can be reached
	why   string
}

type builder struct {
	in     Inputs
	dns    *config.DNS
	ttl    uint32
	hosts  []host
	owners map[string]rank // of names with addresses, or with a CNAME
	// open are the addresses of Services and static frontends in zones.
	open map[place][]netip.Addr
	zone map[string]ground
}

// A place is a Service or static frontend in a zone.
type place struct{ what, zone string }

// ground is what a zone has of this machine.
type ground struct {
	networks []netip.Prefix
	own      []netip.Addr // without addresses of pools
}

// Build returns what each of the zones of dns.zones knows, in their order.
func Build(in Inputs) []edge.Records {
	b := &builder{
		in: in, dns: in.Config.DNS, ttl: uint32(in.Config.DNS.TTL.Seconds()),
		owners: map[string]rank{}, open: map[place][]netip.Addr{}, zone: map[string]ground{},
	}
	if in.Reaches == nil {
		b.in.Reaches = Reach(in.Config, in.Interfaces)
	}
	b.survey()
	b.ofFile()
	b.add(host{name: Own + "." + b.dns.Domain, rank: ofSelf, why: "this machine", in: func(zone string) ([]netip.Addr, string) {
		return b.zone[zone].own, ""
	}})
	b.ofNodes()
	b.ofDHCP()
	b.ofExposures()
	b.ofServices()
	slices.SortStableFunc(b.hosts, compareHosts)
	srv := b.services()
	all := make([]edge.Records, 0, len(b.dns.Zones))
	for _, zone := range b.dns.Zones {
		all = append(all, b.records(zone, srv))
	}
	return all
}

// survey learns what this machine has in each zone.
func (b *builder) survey() {
	pooled := func(a netip.Addr) bool {
		return slices.ContainsFunc(b.in.Config.Pools, func(p config.Pool) bool {
			return slices.ContainsFunc(p.Addresses, func(r edge.Range) bool { return r.Contains(a) })
		})
	}
	for _, z := range b.in.Config.Zones {
		var g ground
		for _, i := range b.in.Interfaces {
			if !slices.Contains(z.Interfaces, i.Name) {
				continue
			}
			for _, p := range i.Addrs {
				g.networks = append(g.networks, p.Masked())
				if !pooled(p.Addr()) {
					g.own = append(g.own, p.Addr())
				}
			}
		}
		b.zone[z.Name] = g
	}
}

// add takes a host if its name is one.
func (b *builder) add(h host) {
	if !config.IsDomainName(h.name) {
		return
	}
	b.own(h.name, h.rank)
	b.hosts = append(b.hosts, h)
}

// own gives a name to the lowest of the ranks that want it.
func (b *builder) own(name string, r rank) {
	if has, ok := b.owners[name]; !ok || r < has {
		b.owners[name] = r
	}
}

// under is a name in a domain: one that is there already stays.
func under(name, domain string) string {
	if name == domain || strings.HasSuffix(name, "."+domain) {
		return name
	}
	return name + "." + domain
}

func (b *builder) ofFile() {
	for i := range b.dns.Records {
		r := &b.dns.Records[i]
		switch {
		case r.CNAME != "":
			b.own(r.Name, ofFile)
		case len(r.Addresses) > 0:
			b.add(host{name: r.Name, rank: ofFile, addrs: r.Addresses, zones: r.Zones, why: r.Pos.String()})
		}
	}
}

func (b *builder) ofNodes() {
	if b.in.Cluster == nil {
		return
	}
	for i := range b.in.Cluster.Nodes {
		n := &b.in.Cluster.Nodes[i]
		b.add(host{name: under(n.Name, b.dns.Domain), rank: ofNode, addrs: n.Addrs, why: "node/" + n.Name})
	}
}

// records are those of one zone.
func (b *builder) records(zone string, srv []service) edge.Records {
	s := newSets(b.ttl, 2*len(b.hosts))
	for i := range b.dns.Records {
		if r := &b.dns.Records[i]; r.Zones == nil || slices.Contains(r.Zones, zone) {
			s.written(r)
		}
	}
	named := map[netip.Addr]bool{} // has a PTR record
	for i := range b.hosts {
		h := &b.hosts[i]
		if b.owners[h.name] != h.rank {
			continue
		}
		addrs, why := h.addrs, h.why
		if h.in != nil {
			own, whose := h.in(zone)
			addrs = own
			if whose != "" {
				why = whose
			}
		}
		for _, a := range addrs {
			if h.in == nil && !b.known(h, zone, a) {
				continue
			}
			a = a.Unmap().WithZone("")
			typ := "A"
			if a.Is6() {
				typ = "AAAA"
			}
			if s.add(h.name, typ, a.String(), why) && !named[a] && ofMachine(a) && !strings.HasPrefix(h.name, "*.") {
				named[a] = true
				s.add(Reverse(a), "PTR", h.name, why)
			}
		}
	}
	for i := range srv {
		if v := &srv[i]; len(b.open[place{v.of, zone}]) > 0 && v.open[zone] {
			s.add(v.name, "SRV", v.data, v.why)
		}
	}
	return edge.Records{Zone: zone, Sets: s.sorted()}
}

// ofMachine says whether an address is one of a machine, which can have a name:
// records that lead nowhere have others.
func ofMachine(a netip.Addr) bool { return !a.IsUnspecified() && !a.IsLoopback() }

// known says whether a zone is told an address that somebody has wherever he is.
func (b *builder) known(h *host, zone string, a netip.Addr) bool {
	if h.zones != nil {
		return slices.Contains(h.zones, zone)
	}
	if slices.ContainsFunc(b.zone[zone].networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return true
	}
	return b.in.Reaches(zone, a)
}
