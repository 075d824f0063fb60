package host

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// DeviceTo is the interface by which packets to an address leave, as the
// kernel's routes say; empty: by none.
func DeviceTo(to netip.Addr) string {
	name, err := Towards(to)
	if err != nil {
		return ""
	}
	return name
}

// LeavesBy says whether the kernel has a way to an address for a socket that is
// bound to an interface. Of IPv4 it always has one: without a route it takes
// everybody for a neighbour (ip_route_output_key_hash_rcu).
func LeavesBy(to netip.Addr, device string) bool {
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Oif: device})
	return err == nil && len(routes) > 0
}
