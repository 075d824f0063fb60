package links

import (
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
)

// leastSpecific is how much of an address a route of a DHCP server has to say at
// least, where its default route is not wanted: two halves of everything are
// everything.
const leastSpecific = 8

// bound takes out of leases what other links have by the file: a DHCP server has to
// do with its own network, and whoever is on that cable can be one. Links on one
// cable have one network in common.
func (p *planner) bound() {
	for i := range p.links {
		l := &p.links[i]
		if l.Lease == nil {
			continue
		}
		lease := *l.Lease
		l.Lease = &lease
		foreign := func(a netip.Addr) bool {
			return !lease.Addr.Contains(a) && p.isOfAnother(l, netip.PrefixFrom(a, a.BitLen()))
		}
		if len(lease.Routes) > 0 { // they take the place of the router, whatever is left of them
			lease.Router = netip.Addr{}
		}
		lease.Routes = slices.DeleteFunc(slices.Clone(lease.Routes), func(r Route) bool { return p.isOfAnother(l, r.To) || foreign(r.Via) })
		if lease.Router.IsValid() && foreign(lease.Router) {
			lease.Router = netip.Addr{}
		}
		p.refuse(l)
	}
}

// refuse takes a lease from a link whose address is another's, or whose network is
// part of another's: it would be the way to that part.
func (p *planner) refuse(l *Link) {
	for i := range p.links {
		other := &p.links[i]
		for _, a := range other.Addresses {
			within := a.Overlaps(l.Lease.Addr) && a.Bits() < l.Lease.Addr.Bits()
			if other.Name == l.Name || a.Addr() != l.Lease.Addr.Addr() && (!within || onOneCable(l, other)) {
				continue
			}
			p.problem(*l, "look at the DHCP server, or give "+other.Name+" another network",
				"a DHCP server gives %s, which belongs to link %s (%s), so that it is not used", l.Lease.Addr, other.Name, a)
			l.Lease = nil
			return
		}
	}
}

// isOfAnother says whether a network is part of what another link has by the file.
func (p *planner) isOfAnother(l *Link, network netip.Prefix) bool {
	has := func(n netip.Prefix) bool {
		return n.Overlaps(network) && leastSpecific <= n.Bits() && n.Bits() <= network.Bits()
	}
	return slices.ContainsFunc(p.links, func(o Link) bool {
		return o.Name != l.Name && !onOneCable(l, &o) &&
			(slices.ContainsFunc(o.Addresses, has) || slices.ContainsFunc(o.Routes, func(r config.LinkRoute) bool { return has(r.To) }))
	})
}

// onOneCable says whether two are a MACVLAN and its parent, or two of one parent.
func onOneCable(a, b *Link) bool {
	cable := func(l *Link) string {
		if l.Macvlan != nil {
			return l.Macvlan.Parent
		}
		return l.Name
	}
	return cable(a) == cable(b)
}
