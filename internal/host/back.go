package host

import (
	"net/netip"

	"github.com/vishvananda/netlink"
)

// DeviceTo is the interface by which packets to an address leave, as the
// kernel's routes say; empty: by none.
func DeviceTo(to netip.Addr) string {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}
