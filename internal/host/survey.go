package host

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Survey returns the interfaces of this network namespace, sorted by name, with
// what tells what network they lead to.
func Survey() ([]edge.Link, error) {
	links, err := retryInterrupted(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	routes, err := retryInterrupted(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	all := make([]edge.Link, 0, len(links))
	for _, l := range links {
		a := l.Attrs()
		const running = unix.IFF_UP | unix.IFF_RUNNING
		link := edge.Link{
			Name: a.Name, Kind: l.Type(), Up: a.RawFlags&running == running,
			Loopback: a.RawFlags&unix.IFF_LOOPBACK != 0, Wireless: wireless(a.Name),
			Master: byIndex[a.MasterIndex], Addrs: addrsOf(a.Index, addrs),
		}
		// Of a veth it is the other end, and a number of another namespace means nothing here.
		if slices.Contains([]string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"}, link.Kind) && a.NetNsID < 0 {
			link.Parent = byIndex[a.ParentIndex]
		}
		link.Metric, link.Default = defaultRoute(a.Index, routes)
		all = append(all, link)
	}
	slices.SortFunc(all, func(a, b edge.Link) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// wireless says whether the kernel has a radio for an interface.
func wireless(name string) bool {
	_, err := os.Stat("/sys/class/net/" + name + "/phy80211")
	return err == nil
}

// defaultRoute is the smallest metric of the default routes by an interface.
func defaultRoute(index int, routes []netlink.Route) (metric int, found bool) {
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Dst != nil && !isDefault(r.Dst) {
			continue
		}
		by := r.LinkIndex == index || slices.ContainsFunc(r.MultiPath, func(n *netlink.NexthopInfo) bool { return n.LinkIndex == index })
		if by && (!found || r.Priority < metric) {
			metric, found = r.Priority, true
		}
	}
	return metric, found
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0
}

// Towards is the interface that packets to an address leave by.
func Towards(addr netip.Addr) (string, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil {
		return "", fmt.Errorf("the route to %s: %w", addr, err)
	}
	for _, r := range routes {
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			return link.Attrs().Name, nil
		}
	}
	return "", fmt.Errorf("there is no route to %s", addr)
}
