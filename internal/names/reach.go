package names

import (
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Reach says whether the firewall of a configuration lets anything pass from
// machines of a zone to an address: to some port, from some of them. Without a
// firewall everything passes.
func Reach(c *config.Config, interfaces []edge.Interface) func(zone string, addr netip.Addr) bool {
	if c.Firewall == nil {
		return func(string, netip.Addr) bool { return true }
	}
	zoneOf := map[string]string{}
	for _, z := range c.Zones {
		for _, i := range z.Interfaces {
			zoneOf[i] = z.Name
		}
	}
	// Where an address is: this machine, or the zone of the network it is in. The
	// narrowest counts, as it does for routes.
	place := func(addr netip.Addr) (zone string, known bool) {
		bits := -1
		for _, i := range interfaces {
			for _, p := range i.Addrs {
				switch {
				case p.Addr() == addr:
					return config.Self, true
				case p.Contains(addr) && p.Bits() > bits && zoneOf[i.Name] != "":
					zone, known, bits = zoneOf[i.Name], true, p.Bits()
				}
			}
		}
		for _, d := range c.DHCP {
			for _, r := range d.Relayed {
				if !known && r.Network.Contains(addr) {
					return d.Zone, true
				}
			}
		}
		return zone, known
	}
	return func(zone string, addr netip.Addr) bool {
		to, known := place(addr)
		for i := range c.Firewall.Policies {
			p := &c.Firewall.Policies[i]
			fits := (p.From == "" || p.From == zone) && goesTo(p.To, to, known) &&
				(p.Destinations == nil || slices.ContainsFunc(p.Destinations, func(n netip.Prefix) bool { return n.Contains(addr) }))
			switch {
			case !fits:
			case p.Allow:
				return true
			case known && p.Services == nil && p.Sources == nil:
				return false // whatever it is, from whomever
			}
		}
		return false
	}
}

// goesTo says whether a policy is about what goes to a zone, or to this machine.
// What is behind some router may be in each zone.
func goesTo(policy, to string, known bool) bool {
	switch {
	case policy == config.Self || to == config.Self:
		return policy == to
	default:
		return policy == "" || policy == to || !known
	}
}
