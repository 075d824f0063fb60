package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNotPermitted is why routing cannot be changed without CAP_NET_ADMIN.
var ErrNotPermitted = errors.New("changing routes is not permitted")

// Delivery routes packets that bear a mark to this machine, whatever address
// they are for: by a rule for the mark, and a table whose only route says that
// every address is local. Both families have them; IPv6 only while it is not
// disabled on lo.
//
//	from all fwmark 0x1000/0x1000 lookup 4096 proto 91    (at Priority)
//	local default dev lo table 4096 proto 91
type Delivery struct {
	Mark            uint32 // the bit that counts, of those that a packet may bear
	Priority, Table int
}

// protocol is the number by which rules and routes are known to be ours
// (rtnetlink(7), rtm_protocol). Neither the kernel's headers nor iproute2's
// rt_protos give it to anybody.
const protocol = 91

// Apply makes the machine have the rules and routes, and says whether that took
// a change. What others have made stays.
func (d Delivery) Apply() (changed bool, err error) { return d.change(d.wanted()) }

// Remove takes them away, and says whether there was something to take.
func (d Delivery) Remove() (changed bool, err error) { return d.change(nil) }

// Present says whether there is a rule or a route of ours.
func (d Delivery) Present() (bool, error) {
	have, err := d.present()
	return len(have) > 0, err
}

func (d Delivery) change(want entries) (changed bool, err error) {
	have, err := d.present()
	if err != nil {
		return false, err
	}
	return have.change(want, func(_ entry, err error) error { return err })
}

// change makes what is wanted of what there is. It goes on after an error that
// failed returns none for.
func (all entries) change(want entries, failed func(entry, error) error) (changed bool, err error) {
	have, wanted := all.set(), want.set()
	for _, w := range want {
		if have[w.String()] {
			continue
		}
		if err := w.add(); err == nil {
			changed = true
		} else if err := failed(w, refused("add "+w.String(), err)); err != nil {
			return changed, err
		}
	}
	// Rules first: one without its table looks like a mistake.
	for _, h := range slices.Backward(all) {
		if wanted[h.String()] {
			continue
		}
		if err := h.remove(); err == nil {
			changed = true
		} else if err := failed(h, refused("remove "+h.String(), err)); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// entry is a rule or a route of ours: one of the two.
type entry struct {
	rule  *netlink.Rule
	route *netlink.Route
	why   string // who a route is for, if anybody asks
}

type entries []entry // routes before rules

func (d Delivery) wanted() entries {
	var routes, rules entries
	for _, family := range families() {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.Protocol = family, d.Priority, d.Table, protocol
		rule.Mark, rule.Mask = d.Mark, &d.Mark
		rules = append(rules, entry{rule: rule})
		routes = append(routes, entry{route: &netlink.Route{
			Family: family, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, Table: d.Table, Protocol: protocol,
			LinkIndex: loopbackIndex, Dst: everything(family),
		}})
	}
	return append(routes, rules...)
}

// loopbackIndex is that of lo, which is the first interface of every network
// namespace.
const loopbackIndex = 1

func everything(family int) *net.IPNet {
	if family == unix.AF_INET {
		return &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

func families() []int {
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	if err != nil || strings.TrimSpace(string(off)) != "0" {
		return []int{unix.AF_INET}
	}
	return []int{unix.AF_INET, unix.AF_INET6}
}

// present is what the machine has of ours: rules anywhere, and the routes of
// the tables that those and this Delivery name.
func (d Delivery) present() (entries, error) {
	var routes, rules entries
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := retryInterrupted(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		tables := []int{d.Table}
		for _, r := range list {
			if r.Protocol != protocol {
				continue
			}
			r.Family = family
			rules = append(rules, entry{rule: &r})
			if r.Table != unix.RT_TABLE_MAIN && !slices.Contains(tables, r.Table) {
				tables = append(tables, r.Table)
			}
		}
		for _, table := range tables {
			list, err := routesOf(family, table)
			if err != nil {
				return nil, err
			}
			routes = append(routes, list...)
		}
	}
	return append(routes, rules...), nil
}

// routesOf are the routes of ours in a table.
func routesOf(family, table int) (routes entries, err error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("ask for routes: %w", err)
	}
	defer handle.Close()
	// The kernel is to send those, not the hundred thousands that a router may
	// have. Before Linux 4.20 it sends them all.
	_ = handle.SetStrictCheck(true)
	list, err := retryInterrupted(func() ([]netlink.Route, error) {
		return handle.RouteListFiltered(family, &netlink.Route{Table: table, Protocol: protocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // there is no such table
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range list {
		r.Family = family
		routes = append(routes, entry{route: &r})
	}
	return routes, nil
}

func (all entries) set() map[string]bool {
	set := make(map[string]bool, len(all))
	for _, e := range all {
		set[e.String()] = true
	}
	return set
}

// String prints all that an entry consists of, as ip does.
func (e entry) String() string {
	if r := e.rule; r != nil {
		mask := ^uint32(0)
		if r.Mask != nil {
			mask = *r.Mask
		}
		text := fmt.Sprintf("%s rule priority %d fwmark %#x/%#x lookup %d", ip(r.Family), r.Priority, r.Mark, mask, r.Table)
		if r.Invert || r.Src != nil || r.Dst != nil || r.IifName != "" || r.OifName != "" {
			text += " and more" // not as we make them
		}
		return text
	}
	r := e.route
	dst := "default"
	if r.Dst != nil {
		if bits, _ := r.Dst.Mask.Size(); bits > 0 {
			dst = r.Dst.String()
		}
	}
	device := fmt.Sprint(r.LinkIndex)
	if r.LinkIndex == loopbackIndex {
		device = "lo"
	}
	if r.Gw != nil {
		return fmt.Sprintf("%s route %s via %s dev %s table %d metric %d", ip(r.Family), dst, r.Gw, device, r.Table, r.Priority)
	}
	kind := fmt.Sprint("type ", r.Type)
	if r.Type == unix.RTN_LOCAL {
		kind = "local"
	}
	return fmt.Sprintf("%s route %s %s dev %s table %d", ip(r.Family), kind, dst, device, r.Table)
}

func ip(family int) string {
	if family == unix.AF_INET6 {
		return "ip -6"
	}
	return "ip"
}

func (e entry) add() error {
	if e.rule != nil {
		return ignore(unix.EEXIST, netlink.RuleAdd(e.rule))
	}
	if e.route.Gw != nil {
		// Instead of one by another way, so that there is no moment without.
		return netlink.RouteReplace(e.route)
	}
	return netlink.RouteAdd(e.route)
}

func (e entry) remove() error {
	if e.rule != nil {
		return ignore(unix.ENOENT, netlink.RuleDel(e.rule))
	}
	return ignore(unix.ESRCH, netlink.RouteDel(e.route))
}

// ignore is for what somebody else has done in between.
func ignore(errno unix.Errno, err error) error {
	if errors.Is(err, errno) {
		return nil
	}
	return err
}

func refused(what string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		err = ErrNotPermitted
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Undeliverable names the settings of the machine, such as
// "net.ipv4.conf.all.src_valid_mark", with which the kernel throws away what a
// Delivery is for: it looks for the way back to the sender, and with the mark
// finds this machine, which cannot be the sender (fib_frontend.c,
// __fib_validate_source).
func Undeliverable() []string {
	var names []string
	files, _ := filepath.Glob("/proc/sys/net/ipv4/conf/*/src_valid_mark")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if device := filepath.Base(filepath.Dir(file)); err == nil && strings.TrimSpace(string(text)) == "1" && device != "default" && device != "lo" {
			names = append(names, "net.ipv4.conf."+device+".src_valid_mark")
		}
	}
	if slices.Contains(names, "net.ipv4.conf.all.src_valid_mark") {
		return []string{"net.ipv4.conf.all.src_valid_mark"} // it counts for every interface
	}
	return names
}

// WatchRules calls changed each time that a routing rule is removed: programs
// that manage the network take away what they do not know (systemd-networkd
// does when it starts, unless ManageForeignRoutingPolicyRules=no). It returns
// when ctx ends, or when the kernel does not tell.
func WatchRules(ctx context.Context, changed func()) error {
	return watch(ctx, []uint{unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE}, func(m syscall.NetlinkMessage) bool {
		return m.Header.Type == unix.RTM_DELRULE
	}, changed)
}

// watch calls changed for messages that are relevant, and when some were lost.
func watch(ctx context.Context, groups []uint, relevant func(syscall.NetlinkMessage) bool, changed func()) error {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, socket.Close)
	defer stop()
	for {
		messages, _, err := socket.Receive()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("receive: %w", err)
		}
		if err != nil || slices.ContainsFunc(messages, relevant) {
			changed()
		}
	}
}
