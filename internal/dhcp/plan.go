package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Inputs are what zones are planned from.
type Inputs struct {
	Config     *config.Config
	Interfaces []edge.Interface
}

// Plan is what is to be served, and what of the configuration cannot be.
func Plan(in Inputs) ([]Zone, []edge.Problem) {
	var zones []Zone
	p := planner{in: in}
	for _, i := range in.Interfaces {
		for _, a := range i.Addrs {
			if a.Addr().Is4() && !slices.Contains(p.own, a.Addr()) {
				p.own = append(p.own, a.Addr())
			}
		}
	}
	slices.SortFunc(p.own, netip.Addr.Compare)
	for i := range in.Config.DHCP {
		if d := &in.Config.DHCP[i]; d.Gives() {
			if z := in.Config.Zone(d.Zone); z != nil { // else config.Parse has refused it
				zones = append(zones, p.zone(d, z))
			}
		}
	}
	return zones, p.problems
}

type planner struct {
	in       Inputs
	own      []netip.Addr
	problems []edge.Problem
}

func (p *planner) problem(pos edge.Pos, path, what, remedy string) {
	p.problems = append(p.problems, edge.Problem{Pos: pos, Path: path, What: what, Remedy: remedy})
}

func (p *planner) zone(d *config.DHCP, of *edge.Zone) Zone {
	z := Zone{Name: d.Zone, LeaseTime: d.LeaseTime, Probe: d.Probe, Own: p.own, Pos: d.Pos}
	path := "dhcp." + d.Zone
	options := d.Options
	here := false
	if dns := p.in.Config.DNS; dns != nil {
		if options.Domain == "" {
			options.Domain = dns.Domain
		}
		here = slices.Contains(dns.Zones, d.Zone)
	}
	for _, name := range of.Interfaces {
		i := slices.IndexFunc(p.in.Interfaces, func(i edge.Interface) bool { return i.Name == name })
		if i < 0 {
			continue // which is said elsewhere
		}
		p.device(&z, d, &p.in.Interfaces[i], options, here)
	}
	for _, r := range d.Relayed {
		n := Network{Prefix: r.Network.Masked(), Router: r.Router, Options: options, DNSHere: here && options.DNS == nil}
		for _, pool := range r.Pools {
			if clipped, ok := clip(pool, n.Prefix); ok {
				n.Pools = append(n.Pools, clipped)
			}
		}
		if n.Options.Routers == nil && r.Router.IsValid() {
			n.Options.Routers = []netip.Addr{r.Router}
		}
		n.take(p.own, r.Router)
		z.Networks = append(z.Networks, n)
	}
	p.uncovered(&z, d, path)
	for _, a := range p.own {
		for _, r := range slices.Concat(d.Pools, relayedPools(d)) {
			if r.Contains(a) {
				p.problem(d.Pos, path, fmt.Sprintf("the pool %s has %s, which this machine has itself", r, a), "nobody gets it; write a range without it")
			}
		}
	}
	z.Reservations = p.reservations(&z, d)
	z.reserved = map[netip.Addr]config.Reservation{}
	for _, r := range z.Reservations {
		z.reserved[r.Address] = r
	}
	return z
}

func relayedPools(d *config.DHCP) []edge.Range {
	var all []edge.Range
	for _, r := range d.Relayed {
		all = append(all, r.Pools...)
	}
	return all
}

// device adds an interface of a zone, with the networks there that something of
// is given.
func (p *planner) device(z *Zone, d *config.DHCP, i *edge.Interface, options config.DHCPOptions, here bool) {
	device := Device{Name: i.Name, Index: i.Index}
	for _, a := range i.Addrs {
		if !a.Addr().Is4() || a.Bits() > 30 { // as those of Services are
			continue
		}
		if !device.Addr.IsValid() {
			device.Addr = a.Addr()
		}
		n := Network{Prefix: a.Masked(), Device: i.Name, Self: a.Addr(), Options: options}
		if slices.ContainsFunc(z.Networks, func(o Network) bool { return o.Prefix == n.Prefix && o.Device == n.Device }) {
			continue
		}
		for _, pool := range d.Pools {
			if clipped, ok := clip(pool, n.Prefix); ok {
				n.Pools = append(n.Pools, clipped)
			}
		}
		reserved := slices.ContainsFunc(d.Reservations, func(r config.Reservation) bool { return n.Prefix.Contains(r.Address) })
		if len(n.Pools) == 0 && !reserved {
			continue
		}
		if options.Routers == nil {
			n.Options.Routers = []netip.Addr{n.Self}
		}
		if options.DNS == nil && here {
			n.Options.DNS = []netip.Addr{n.Self}
		}
		n.take(p.own, netip.Addr{})
		z.Networks = append(z.Networks, n)
	}
	if device.Addr.IsValid() {
		z.Devices = append(z.Devices, device)
	}
}

// take keeps addresses of machines that are known to have one from being given.
func (n *Network) take(own []netip.Addr, router netip.Addr) {
	n.Taken = map[netip.Addr]bool{}
	o := &n.Options
	for _, a := range slices.Concat(own, o.Routers, o.DNS, o.NTP, []netip.Addr{o.NextServer, router}) {
		if slices.ContainsFunc(n.Pools, func(r edge.Range) bool { return r.Contains(a) }) {
			n.Taken[a] = true
		}
	}
}

// clip is what of a range machines of a network can have.
func clip(r edge.Range, network netip.Prefix) (edge.Range, bool) {
	first, last := network.Masked().Addr().Next(), broadcastOf(network).Prev()
	if r.First.Less(first) {
		r.First = first
	}
	if last.Less(r.Last) {
		r.Last = last
	}
	return r, !r.Last.Less(r.First)
}

// uncovered finds what is in no network of this machine.
func (p *planner) uncovered(z *Zone, d *config.DHCP, path string) {
	var networks []string
	for _, n := range z.Networks {
		if n.Device != "" {
			networks = append(networks, n.Prefix.String()+" on "+n.Device)
		}
	}
	in := func(a netip.Addr) bool {
		return slices.ContainsFunc(z.Networks, func(n Network) bool { return n.Device != "" && n.Prefix.Contains(a) })
	}
	remedy := "give an interface of the zone an address in that network, such as links: [{name: eth0, addresses: [10.0.0.1/24]}]"
	if len(networks) > 0 {
		remedy = "write addresses of " + strings.Join(networks, " or ")
	}
	for _, r := range d.Pools {
		switch first, last := in(r.First), in(r.Last); {
		case !first && !last:
			p.problem(d.Pos, path, fmt.Sprintf("no interface of the zone has an IPv4 address in the network of %s, so that nobody gets one of these", r), remedy)
		case !first || !last:
			p.problem(d.Pos, path, fmt.Sprintf("some of %s are not in a network of this zone's interfaces, and nobody gets them", r), remedy)
		}
	}
	if len(z.Devices) == 0 && len(d.Pools) == 0 {
		p.problem(d.Pos, path, "no interface of the zone has an IPv4 address, so that nobody can be answered", "give one an address, such as links: [{name: eth0, addresses: [10.0.0.1/24]}]")
	}
}

// reservations are those that somebody can get.
func (p *planner) reservations(z *Zone, d *config.DHCP) []config.Reservation {
	var all []config.Reservation
	for _, r := range d.Reservations {
		i := slices.IndexFunc(z.Networks, func(n Network) bool { return n.Prefix.Contains(r.Address) })
		switch {
		case slices.Contains(p.own, r.Address):
			p.problem(r.Pos, "", r.Address.String()+" is reserved, and this machine has it itself", "write another address")
		case i < 0 && len(z.Networks) == 0 && len(d.Pools) > 0: // which is said once
		case i < 0:
			p.problem(r.Pos, "", r.Address.String()+" is reserved, and in no network of zone "+z.Name, "write an address of a network that an interface of the zone has an address in, or that is relayed")
		case r.Address == z.Networks[i].Prefix.Addr() || r.Address == broadcastOf(z.Networks[i].Prefix):
			p.problem(r.Pos, "", r.Address.String()+" is reserved, and stands for all of the network "+z.Networks[i].Prefix.String(), "write another address")
		default:
			all = append(all, r)
		}
	}
	return all
}
