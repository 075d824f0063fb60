package host

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Routes are the routes to the pods of the cluster's nodes, in the main table:
// each by way of its node, which has to be in a network of this machine.
//
//	10.244.1.0/24 via 10.0.0.101 dev eth0 proto 91 metric 1000000000
type Routes struct{}

// routeMetric is higher than anybody else's: where somebody else has a route to
// the same prefix, that is the one the kernel takes, and when it goes ours is
// there.
const routeMetric = 1_000_000_000

// Apply makes the machine have the routes, and none of ours beside them, and
// says whether that took a change. It does what it can: the problems are those
// of the others, by the objects that they are for.
func (Routes) Apply(want []edge.Route) (problems []edge.Problem, changed bool) {
	fail := func(object string, err error) {
		remedy := "it is tried again"
		if errors.Is(err, ErrNotPermitted) {
			remedy = "it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"
		}
		problems = append(problems, edge.Problem{Object: object, What: err.Error(), Remedy: remedy})
	}
	have, err := podRoutes()
	if err != nil {
		fail("routes", err)
		return problems, false
	}
	var wanted entries
	if len(want) > 0 {
		networks, err := connected()
		if err != nil {
			fail("routes", err)
			return problems, false
		}
		wanted, problems = plan(want, networks)
	}
	changed, err = have.change(wanted, func(e entry, err error) error {
		if errors.Is(err, ErrNotPermitted) {
			return err // so it is with all
		}
		fail(cmp.Or(e.why, "routes"), err)
		return nil
	})
	if err != nil {
		fail("routes", err)
	}
	return problems, changed
}

// Remove takes them away, and says whether there was something to take.
func (Routes) Remove() (changed bool, err error) {
	have, err := podRoutes()
	if err != nil {
		return false, err
	}
	return have.change(nil, func(_ entry, err error) error { return err })
}

// Present says whether there is a route of ours.
func (Routes) Present() (bool, error) {
	have, err := podRoutes()
	return len(have) > 0, err
}

func podRoutes() (routes entries, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := routesOf(family, unix.RT_TABLE_MAIN)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		routes = append(routes, list...)
	}
	return routes, nil
}

// plan decides how each node is reached. A node that is this machine has its
// pods here.
func plan(want []edge.Route, networks []network) (routes entries, problems []edge.Problem) {
	want = slices.SortedFunc(slices.Values(want), func(a, b edge.Route) int {
		return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()), cmp.Compare(a.Why, b.Why), a.Via.Compare(b.Via))
	})
	var last edge.Route
	for _, r := range want {
		problem := func(remedy, what string, args ...any) {
			problems = append(problems, edge.Problem{Object: r.Why, What: fmt.Sprintf(what, args...), Remedy: remedy})
		}
		if slices.ContainsFunc(networks, func(n network) bool { return n.own == r.Via }) {
			continue
		}
		if r.Dst == last.Dst {
			if r.Via != last.Via {
				problem("give each node a pod CIDR of its own", "%s, of its pods, is also of %s: only that one has a route", r.Dst, last.Why)
			}
			continue
		}
		last = r
		if i := slices.IndexFunc(networks, func(n network) bool { return n.prefix.Overlaps(r.Dst) }); i >= 0 {
			problem("pods need networks of their own", "%s, of its pods, overlaps %s, the network of %s: it has no route", r.Dst, networks[i].prefix, networks[i].device)
			continue
		}
		i := slices.IndexFunc(networks, func(n network) bool { return n.prefix.Contains(r.Via) })
		switch {
		case i >= 0 && networks[i].up:
			routes = append(routes, podRoute(r, networks[i].index))
		case othersLeadTo(r.Dst):
		case i >= 0:
			problem("ip link set "+networks[i].device+" up", "%s is down, and so is the way to its pods, %s by %s", networks[i].device, r.Dst, r.Via)
		default:
			problem("give this machine an address in the node's network, or have routes to the pods made by others",
				"%s is in no network of this machine: there is no way to its pods, %s", r.Via, r.Dst)
		}
	}
	return routes, problems
}

func podRoute(r edge.Route, device int) entry {
	family := unix.AF_INET
	if r.Dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	return entry{why: r.Why, route: &netlink.Route{
		Family: family, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, Protocol: protocol, Priority: routeMetric, LinkIndex: device,
		Dst: &net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())},
		Gw:  r.Via.AsSlice(),
	}}
}

// network is one that this machine is in.
type network struct {
	prefix  netip.Prefix
	own     netip.Addr // this machine's address in it
	device  string
	index   int
	up      bool // set up, with a carrier or not
	carrier bool
}

// connected are the machine's networks, with the one first that a packet to an
// address in several of them goes to.
func connected() (networks []network, err error) {
	links, err := retryInterrupted(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := retryInterrupted(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byIndex := map[int]*netlink.LinkAttrs{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	for _, a := range addrs {
		link := byIndex[a.LinkIndex]
		if link == nil || link.RawFlags&unix.IFF_LOOPBACK != 0 || a.IP.IsLinkLocalUnicast() {
			continue
		}
		own, _ := netip.AddrFromSlice(a.IP)
		there := a.IPNet
		if a.Peer != nil { // the other end of a line
			there = a.Peer
		}
		first, _ := netip.AddrFromSlice(there.IP)
		bits, _ := there.Mask.Size()
		networks = append(networks, network{
			prefix: netip.PrefixFrom(first.Unmap(), bits).Masked(), own: own.Unmap(), device: link.Name, index: link.Index,
			up: link.RawFlags&unix.IFF_UP != 0, carrier: link.RawFlags&unix.IFF_RUNNING != 0,
		})
	}
	slices.SortFunc(networks, func(a, b network) int {
		return cmp.Or(compareBool(b.up, a.up), cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), compareBool(b.carrier, a.carrier), cmp.Compare(a.index, b.index))
	})
	return networks, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// othersLeadTo says whether a route of somebody else is for the network, or for
// one that it is part of. Where everything else goes does not count.
func othersLeadTo(dst netip.Prefix) bool {
	routes, err := netlink.RouteGetWithOptions(dst.Addr().AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil || r.Protocol == protocol {
			return false
		}
		bits, _ := r.Dst.Mask.Size()
		return bits > 0 && bits <= dst.Bits()
	})
}

// WatchRoutes calls changed each time that routes of ours may be gone, or that
// one may be had which could not be had before: the kernel removes them with
// the interface that is set down, which it tells of that alone, and brings none
// back. It returns when ctx ends, or when the kernel does not tell.
func WatchRoutes(ctx context.Context, changed func()) error {
	groups := []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}
	return watch(ctx, groups, concernsRoutes, changed)
}

func concernsRoutes(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	case unix.RTM_NEWLINK: // struct ifinfomsg: of its flags, those that have changed
		return len(m.Data) >= unix.SizeofIfInfomsg && binary.NativeEndian.Uint32(m.Data[12:])&unix.IFF_UP != 0
	case unix.RTM_DELROUTE: // struct rtmsg
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[4] == unix.RT_TABLE_MAIN && m.Data[5] == protocol
	default:
		return false
	}
}

// Forwarding says for which families the machine is a router.
func Forwarding() (ipv4, ipv6 bool) {
	return isOn("ipv4/ip_forward"), isOn("ipv6/conf/all/forwarding")
}

func isOn(setting string) bool {
	text, err := os.ReadFile("/proc/sys/net/" + setting)
	return err == nil && strings.TrimSpace(string(text)) != "0"
}
