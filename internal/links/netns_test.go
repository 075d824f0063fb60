package links

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// parse reads a links block.
func parse(t *testing.T, links string) Want {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "g.yaml", Data: []byte("apiVersion: gatehouse.e13.dev/v1\n" + links)}})
	if c == nil {
		t.Fatal(problems)
	}
	var want Want
	for _, l := range c.Links {
		want.Links = append(want.Links, Link{Link: l})
		want.Forwarding = want.Forwarding || l.Forwarding
	}
	return want
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// apply applies, and wants no problems.
func apply(t *testing.T, a *Applier, want Want) {
	t.Helper()
	if _, problems := a.Apply(want, time.Now()); len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
}

// has wants each line to be part of a line that ip prints.
func has(t *testing.T, output string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !slices.ContainsFunc(strings.Split(output, "\n"), func(line string) bool { return strings.Contains(line, w) }) {
			t.Errorf("no %q in\n%s", w, output)
		}
	}
}

func hasNot(t *testing.T, output string, unwanted ...string) {
	t.Helper()
	for _, w := range unwanted {
		if strings.Contains(output, w) {
			t.Errorf("%q in\n%s", w, output)
		}
	}
}

// changesDuring counts what the kernel tells of changes of links, addresses and
// routes while f runs.
func changesDuring(t *testing.T, f func()) []string {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, netconf4, netconf6)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f()
	// What the kernel tells comes in order: after this one there is no more of f.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetAlias(lo, "the end"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkSetAlias(lo, "") }()
	var seen []string
	for {
		messages, _, err := s.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_NEWLINK && bytes.Contains(m.Data, []byte("the end")) {
				return seen
			}
			text := "?"
			switch m.Header.Type {
			case unix.RTM_NEWLINK, unix.RTM_DELLINK:
				d, _ := parseDevice(m.Data)
				text = "link " + d.Name
			case unix.RTM_NEWADDR, unix.RTM_DELADDR:
				a, _ := parseAddress(m.Data)
				text = "address " + a.addr.String()
			case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
				text = "route"
			}
			seen = append(seen, text)
		}
	}
}

// settled waits until IPv6 addresses are no more on trial, which the kernel tells of
// when it likes.
func settled(t *testing.T) {
	t.Helper()
	netnstest.Eventually(t, 10*time.Second, "addresses that are no more tentative", func() bool {
		return !strings.Contains(ip(t, "-6", "addr"), "tentative")
	})
}

const everything = `links:
  - {name: eth0, addresses: [10.0.0.1/24, "fd00:10::1/64"], mtu: 1400}
  - {name: eth1, addresses: [10.11.12.32/24]}
  - name: veth0
    macvlan: {parent: eth1}
    mac: "02:00:00:00:00:51"
    addresses: [10.11.12.51/24]
    routes: [{to: default, via: 10.11.12.1}]
  - {name: br0, bridge: {ports: [eth2, eth3]}, addresses: [10.1.0.1/24], routes: [{to: 10.2.0.0/16, via: 10.1.0.9, metric: 7}, {to: 10.3.0.0/16}]}
`

func site(t *testing.T) *netnstest.NS {
	t.Helper()
	others := netnstest.New(t)
	for _, name := range []string{"eth0", "eth1", "eth2", "eth3"} {
		netnstest.Cable(t, nil, name, others, name)
	}
	return others
}

func TestNetnsLinksAreMadeKeptAndTakenAway(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		netnstest.Addr(t, nil, "eth0", "192.168.7.1/24") // somebody else's
		ip(t, "route", "add", "192.168.8.0/24", "via", "192.168.7.9")
		a := New(logger(t))
		want := parse(t, everything)
		apply(t, a, want)
		settled(t)

		has(t, ip(t, "-d", "link", "show", "veth0"), "link/ether 02:00:00:00:00:51", "macvlan mode bridge", "alias gatehouse")
		has(t, ip(t, "link", "show", "eth0"), "mtu 1400")
		has(t, ip(t, "link", "show", "eth2"), "master br0", "alias gatehouse port of br0")
		has(t, ip(t, "addr"), "inet 10.0.0.1/24 metric 100", "inet6 fd00:10::1/64", "inet 10.11.12.32/24 metric 101", "inet 10.11.12.51/24 metric 102", "inet 10.1.0.1/24")
		has(t, ip(t, "route"), "default via 10.11.12.1 dev veth0 proto 92 metric 102", "10.2.0.0/16 via 10.1.0.9 dev br0 proto 92 metric 7", "10.3.0.0/16 dev br0 proto 92 scope link metric 103")
		for _, dev := range []string{"eth1", "veth0"} {
			for name, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2", "rp_filter": "2"} {
				if got := sysctl(t, "ipv4/conf/"+dev+"/"+name); got != value {
					t.Errorf("%s of %s is %s, want %s", name, dev, got, value)
				}
			}
		}
		if got := sysctl(t, "ipv4/conf/eth0/arp_ignore"); got != "0" {
			t.Errorf("arp_ignore of eth0, which shares nothing, is %s", got)
		}

		if changes := changesDuring(t, func() { apply(t, a, want) }); len(changes) > 0 {
			t.Errorf("twice changes %v", changes)
		}
		// Another process knows no more than the kernel.
		if changes := changesDuring(t, func() { apply(t, New(logger(t)), want) }); len(changes) > 0 {
			t.Errorf("the next process changes %v", changes)
		}

		apply(t, a, Want{})
		out := ip(t, "-d", "link") + ip(t, "addr") + ip(t, "route")
		hasNot(t, out, "veth0", "br0", "gatehouse", "proto 92", "mtu 1400", "10.0.0.1", "fd00:10::1")
		has(t, out, "inet 192.168.7.1/24", "192.168.8.0/24 via 192.168.7.9")
		if got := sysctl(t, "ipv4/conf/eth1/arp_ignore"); got != "0" {
			t.Errorf("arp_ignore is left at %s", got)
		}
	})
}

func sysctl(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// What works is not cut: the interface stays the one it is.
func TestNetnsAChangeDoesNotRemakeTheLink(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		a := New(logger(t))
		apply(t, a, parse(t, everything))
		before := map[string]int{}
		for _, d := range devices(t, a) {
			before[d.Name] = d.Index
		}
		changed := strings.NewReplacer("02:00:00:00:00:51", "02:00:00:00:00:52", "[10.11.12.51/24]", "[10.11.12.51/24, 10.11.12.53/24]", "mtu: 1400", "mtu: 1300",
			"ports: [eth2, eth3]", "ports: [eth2], stp: true", "metric: 7", "metric: 8", "10.1.0.9", "10.1.0.8").Replace(everything)
		apply(t, a, parse(t, changed))
		for _, d := range devices(t, a) {
			if before[d.Name] != d.Index {
				t.Errorf("%s was made anew", d.Name)
			}
		}
		has(t, ip(t, "-d", "link", "show", "br0"), "stp_state 1")
		hasNot(t, ip(t, "link", "show", "eth3"), "master", "alias")
		has(t, ip(t, "link", "show", "veth0"), "02:00:00:00:00:52")
		has(t, ip(t, "addr"), "10.11.12.51/24", "10.11.12.53/24")
		routes := ip(t, "route")
		has(t, routes, "10.2.0.0/16 via 10.1.0.8 dev br0 proto 92 metric 8")
		hasNot(t, routes, "10.1.0.9")
		// The first address of the network goes, and the other stays.
		apply(t, a, parse(t, strings.ReplaceAll(changed, "10.11.12.51/24, ", "")))
		out := ip(t, "addr", "show", "veth0")
		has(t, out, "10.11.12.53/24")
		hasNot(t, out, "10.11.12.51/24")
		has(t, ip(t, "route"), "default via 10.11.12.1 dev veth0")
		// What it is, is another: only then it is made anew.
		apply(t, a, parse(t, strings.ReplaceAll(changed, "macvlan: {parent: eth1}", "macvlan: {parent: eth0, mode: private}")))
		has(t, ip(t, "-d", "link", "show", "veth0"), "veth0@eth0", "macvlan mode private")
	})
}

func devices(t *testing.T, a *Applier) []Device {
	t.Helper()
	all, err := a.Devices()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestNetnsWhatFitsIsAdoptedAndNeverRemoved(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		ip(t, "link", "add", "veth0", "link", "eth1", "type", "macvlan", "mode", "bridge")
		ip(t, "link", "set", "veth0", "up")
		ip(t, "addr", "add", "10.11.12.51/24", "dev", "veth0")
		ip(t, "route", "add", "10.5.0.0/16", "via", "10.11.12.1", "dev", "veth0", "metric", "5")
		want := parse(t, `links: [{name: veth0, macvlan: {parent: eth1}, addresses: [10.11.12.51/24], routes: [{to: 10.5.0.0/16, via: 10.11.12.1, metric: 5}]}]`)
		a := New(logger(t))
		if changes := changesDuring(t, func() { apply(t, a, want) }); !slices.Equal(slices.Compact(changes), []string{"?"}) { // sysctls alone
			t.Errorf("changed %v", changes)
		}
		if d := devices(t, a); d[slices.IndexFunc(d, func(d Device) bool { return d.Name == "veth0" })].Made {
			t.Error("it has our mark")
		}
		apply(t, a, Want{})
		if _, err := Remove(); err != nil {
			t.Fatal(err)
		}
		has(t, ip(t, "addr", "show", "veth0"), "10.11.12.51/24")
		has(t, ip(t, "route"), "10.5.0.0/16 via 10.11.12.1 dev veth0 metric 5")
	})
}

func TestNetnsWhatAProcessBeforeHasLeftGoes(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		apply(t, New(logger(t)), parse(t, everything))
		apply(t, New(logger(t)), parse(t, `links: [{name: eth1, addresses: [10.11.12.32/24]}]`))
		out := ip(t, "link") + ip(t, "addr") + ip(t, "route")
		hasNot(t, out, "veth0", "br0", "10.0.0.1", "alias")
		has(t, out, "10.11.12.32/24")
		if left, err := Left(); !left || err != nil {
			t.Errorf("left: %t, %v", left, err)
		}
		removed, err := Remove()
		if err != nil || !slices.Contains(removed, "10.11.12.32/24 on eth1") {
			t.Errorf("removed %q, %v", removed, err)
		}
		if left, err := Left(); left || err != nil {
			t.Errorf("left: %t, %v", left, err)
		}
	})
}

func TestNetnsWhatIsInTheWayIsSaidAndTriedAgain(t *testing.T) {
	netnstest.Run(t, func() {
		others := netnstest.New(t)
		ip(t, "link", "add", "br1", "type", "bridge")
		ip(t, "link", "add", "taken", "type", "bridge")
		a := New(logger(t))
		want := parse(t, `links:
  - {name: eth9, addresses: [10.9.0.1/24]}
  - {name: m0, macvlan: {parent: eth9}}
  - {name: taken, macvlan: {parent: br1}}
  - {name: v0, vlan: {parent: br1, id: 20}}
  - {name: br0, bridge: {ports: [eth8]}}
`)
		_, problems := a.Apply(want, time.Now())
		text := texts(problems)
		for _, p := range []string{
			"g.yaml:3:5: link/eth9: there is no interface eth9; plug it in, or say what gatehouse is to make: macvlan, vlan or bridge",
			"g.yaml:4:5: link/m0: there is no interface eth9 for it to be on; plug it in, or correct parent",
			"g.yaml:5:5: link/taken: there is an interface of that name already, which is of kind bridge; ip link delete taken, or give the link another name",
			"g.yaml:7:5: link/br0: its port eth8 is not there; plug it in, or take it out of ports",
		} {
			has(t, text, p)
		}
		if ips := ip(t, "link"); !strings.Contains(ips, "v0@br1") { // a kernel without 8021q
			has(t, text, "g.yaml:6:5: link/v0: the kernel makes no interface of kind vlan; modprobe 8021q, or a kernel that has it")
		}
		ip(t, "link", "del", "taken")
		netnstest.Cable(t, nil, "eth9", others, "eth9")
		netnstest.Cable(t, nil, "eth8", others, "eth8")
		_, problems = a.Apply(want, time.Now())
		hasNot(t, texts(problems), "eth9", "taken", "eth8")
		out := ip(t, "-d", "addr")
		has(t, out, "m0@eth9", "taken@br1", "inet 10.9.0.1/24")

		// Plugged out, and in again.
		netnstest.LinkDel(t, nil, "eth9")
		_, problems = a.Apply(want, time.Now())
		has(t, texts(problems), "there is no interface eth9")
		netnstest.Cable(t, nil, "eth9", others, "eth9")
		_, problems = a.Apply(want, time.Now())
		hasNot(t, texts(problems), "eth9")
		has(t, ip(t, "-d", "addr"), "m0@eth9", "inet 10.9.0.1/24")
		// Somebody sets it down, with which its routes go.
		netnstest.LinkDown(t, nil, "eth9")
		a.Apply(want, time.Now())
		has(t, ip(t, "link", "show", "eth9"), "UP")
	})
}

func texts(problems []edge.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// An address that somebody else has is said of IPv6 by the kernel.
func TestNetnsAnotherMachineHasTheAddress(t *testing.T) {
	netnstest.Run(t, func() {
		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth0", other, "eth0")
		netnstest.Addr(t, other, "eth0", "fd00::1/64")
		a := New(logger(t))
		want := parse(t, `links: [{name: eth0, addresses: ["fd00::1/64"]}]`)
		apply(t, a, want)
		start := time.Now()
		netnstest.Eventually(t, 10*time.Second, "a problem", func() bool {
			_, problems := a.Apply(want, start)
			return strings.Contains(texts(problems), "g.yaml:2:9: link/eth0: another machine there has fd00::1; give one of the two another address")
		})
		// It gives it up, and it is tried again.
		netnstest.AddrDel(t, other, "eth0", "fd00::1/64")
		netnstest.Eventually(t, 10*time.Second, "no problem", func() bool {
			_, problems := a.Apply(want, start.Add(2*askAgain))
			return len(problems) == 0 && !strings.Contains(ip(t, "-6", "addr", "show", "eth0"), "tentative")
		})
		has(t, ip(t, "-6", "addr", "show", "eth0"), "fd00::1/64")
	})
}

// advertise sends what a router says: that everything else goes by it, and which
// network it is.
func advertise(t *testing.T, router *netnstest.NS, device string, prefix byte) {
	t.Helper()
	router.Do(t, func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		for _, o := range [][2]int{{unix.IPV6_MULTICAST_HOPS, 255}, {unix.IPV6_MULTICAST_IF, link.Attrs().Index}} {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o[0], o[1]); err != nil {
				t.Fatal(err)
			}
		}
		message := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0} // for 1800 s
		message = append(message, 3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0, 0xfd, prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		// A link-local address comes a while after the cable.
		netnstest.Eventually(t, 10*time.Second, "an address to send from", func() bool {
			err = unix.Sendto(fd, message, 0, &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(link.Attrs().Index)})
			return !errors.Is(err, unix.EADDRNOTAVAIL)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A router takes no advertisements, unless it is told to; and who becomes one does
// not lose its own way out.
func TestNetnsForwardingLeavesTheWayOut(t *testing.T) {
	netnstest.Run(t, func() {
		router := netnstest.New(t)
		for _, name := range []string{"eth0", "eth1", "eth2"} {
			netnstest.Cable(t, nil, name, router, name)
			netnstest.Setting(t, nil, "net/ipv6/conf/"+name+"/accept_ra", "1")
		}
		netnstest.Setting(t, nil, "net/"+forwarding4, "0")
		netnstest.Setting(t, nil, "net/"+forwarding6, "0")
		netnstest.Setting(t, nil, "net/ipv6/conf/eth2/accept_ra", "0")
		settled(t)
		router.Do(t, func() { settled(t) })
		routed := func(names ...string) {
			t.Helper()
			netnstest.Eventually(t, 10*time.Second, "default routes", func() bool {
				out := ip(t, "-6", "route", "show", "default")
				return !slices.ContainsFunc(names, func(n string) bool { return !strings.Contains(out, "dev "+n) })
			})
		}
		advertise(t, router, "eth0", 1)
		routed("eth0")
		a := New(logger(t))
		want := parse(t, `links: [{name: eth1, acceptRA: true, forwarding: true}]`)
		apply(t, a, want)
		if sysctl(t, forwarding4) != "1" || sysctl(t, forwarding6) != "1" {
			t.Error("it does not forward")
		}
		for _, name := range []string{"eth0", "eth1", "eth2"} {
			advertise(t, router, name, 2)
		}
		routed("eth0", "eth1")
		hasNot(t, ip(t, "-6", "route", "show", "default"), "eth2")
		if changes := changesDuring(t, func() { apply(t, a, want) }); len(changes) > 0 {
			t.Errorf("twice changes %v", changes)
		}
		apply(t, a, Want{})
		for name, before := range map[string]string{forwarding4: "0", forwarding6: "0", "ipv6/conf/eth0/accept_ra": "1", "ipv6/conf/eth1/accept_ra": "1"} {
			if got := sysctl(t, name); got != before {
				t.Errorf("%s is %s, want %s as before", name, got, before)
			}
		}
	})
}

// A machine that already forwards is left so.
func TestNetnsWhatWasSetBeforeStays(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Setting(t, nil, "net/"+forwarding4, "1")
		netnstest.Setting(t, nil, "net/"+forwarding6, "1")
		a := New(logger(t))
		apply(t, a, Want{Forwarding: true})
		netnstest.Setting(t, nil, "net/"+forwarding4, "0") // somebody
		apply(t, a, Want{Forwarding: true})
		if sysctl(t, forwarding4) != "1" {
			t.Error("it does not forward any more")
		}
		apply(t, a, Want{})
		if sysctl(t, forwarding6) != "1" {
			t.Error("it was forwarding before")
		}
	})
}

func TestNetnsALeaseIsPutThereWithItsRoutes(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		a := New(logger(t))
		want := parse(t, `links:
  - {name: eth1, addresses: [dhcp]}
  - {name: veth0, macvlan: {parent: eth1}, addresses: [dhcp], metric: 50}
`)
		lease := func(i int, addr string, valid time.Duration) {
			want.Links[i].Lease = &Lease{Addr: netip.MustParsePrefix(addr), Valid: valid, Router: netip.MustParseAddr("10.11.12.1"), MTU: 1400}
		}
		lease(0, "10.11.12.32/24", time.Hour)
		lease(1, "10.11.12.51/24", Forever)
		apply(t, a, want)
		out := ip(t, "addr") + ip(t, "route")
		has(t, out, "inet 10.11.12.32/24", "inet 10.11.12.51/24", "default via 10.11.12.1 dev eth1 proto 92 src 10.11.12.32 metric 100", "default via 10.11.12.1 dev veth0 proto 92 src 10.11.12.51 metric 50",
			"10.11.12.0/24 dev veth0 proto kernel scope link src 10.11.12.51 metric 50", "10.11.12.0/24 dev eth1 proto kernel scope link src 10.11.12.32 metric 100", "valid_lft 3600sec", "mtu 1400")
		if changes := changesDuring(t, func() { apply(t, a, want) }); len(changes) > 0 {
			t.Errorf("twice changes %v", changes)
		}
		// Another address in the same network, more time, no lease any more.
		lease(0, "10.11.12.33/24", time.Hour)
		apply(t, a, want)
		out = ip(t, "addr") + ip(t, "route")
		has(t, out, "inet 10.11.12.33/24", "default via 10.11.12.1 dev eth1 proto 92 src 10.11.12.33 metric 100")
		hasNot(t, out, "10.11.12.32")
		lease(0, "10.11.12.33/24", 2*time.Hour)
		apply(t, a, want)
		has(t, ip(t, "addr"), "valid_lft 7200sec")
		want.Links[0].Lease = nil
		apply(t, a, want)
		hasNot(t, ip(t, "addr")+ip(t, "route"), "10.11.12.33")
		has(t, ip(t, "link", "show", "eth1"), "mtu 1500")
		// RFC 3442: its routes, and not the router.
		want.Links[0].DHCP.DefaultRoute = false
		want.Links[0].Lease = &Lease{Addr: netip.MustParsePrefix("10.11.12.34/32"), Valid: Forever, Router: netip.MustParseAddr("10.11.12.9"), Routes: []Route{
			{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.11.12.1")},
			{To: netip.MustParsePrefix("10.7.0.0/16"), Via: netip.MustParseAddr("192.168.1.1")},
			{To: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.IPv4Unspecified()},
		}}
		apply(t, a, want)
		out = ip(t, "route", "show", "dev", "eth1")
		has(t, out, "10.7.0.0/16 via 192.168.1.1", "192.168.1.1 proto 92 scope link", "10.8.0.0/16 proto 92 scope link")
		hasNot(t, out, "default", "10.11.12.9")
	})
}

// An MTU that a DHCP server has told once is not for ever, on an interface that is
// made here either.
func TestNetnsAnMTUGoesWithTheLease(t *testing.T) {
	netnstest.Run(t, func() {
		site(t)
		a := New(logger(t))
		want := parse(t, "links: [{name: veth0, macvlan: {parent: eth1}, addresses: [dhcp]}]\n")
		for _, tt := range []struct{ said, want int }{{600, 600}, {1400, 1400}, {0, 1500}, {9000, 1500}} {
			want.Links[0].Lease = &Lease{Addr: netip.MustParsePrefix("10.11.12.51/24"), Valid: time.Hour, MTU: tt.said}
			apply(t, a, want)
			has(t, ip(t, "link", "show", "veth0"), fmt.Sprintf("mtu %d ", tt.want))
		}
		// Made anew, it is another interface.
		want.Links[0].Lease.MTU = 1400
		apply(t, a, want)
		ip(t, "link", "set", "eth1", "mtu", "1450")
		want.Links[0].Macvlan.Mode, want.Links[0].Lease = "private", nil
		apply(t, a, want)
		has(t, ip(t, "link", "show", "veth0"), "mtu 1450 ")
	})
}

// Not every kernel has VLANs (module 8021q): then that is what it says.
func TestNetnsVLANs(t *testing.T) {
	netnstest.Run(t, func() {
		other := site(t)
		const file = `links:
  - {name: eth0, addresses: [10.0.0.1/24]}
  - {name: eth0.20, vlan: {parent: eth0, id: 20}, addresses: [10.0.20.1/24], mtu: 1400}
  - {name: eth0.21, vlan: {parent: eth0, id: 21}, addresses: [10.0.21.1/24]}
  - {name: m0, macvlan: {parent: eth0.21}, addresses: [10.0.22.1/24]}
`
		a := New(logger(t))
		want := parse(t, file)
		if _, problems := a.Apply(want, time.Now()); len(problems) > 0 {
			has(t, texts(problems), "g.yaml:4:5: link/eth0.20: the kernel makes no interface of kind vlan; modprobe 8021q, or a kernel that has it")
			t.Log("this kernel has no VLANs")
			return
		}
		has(t, ip(t, "-d", "addr"), "eth0.20@eth0", "vlan protocol 802.1Q id 20", "inet 10.0.20.1/24", "m0@eth0.21", "alias gatehouse")
		if changes := changesDuring(t, func() { apply(t, a, want) }); len(changes) > 0 {
			t.Errorf("twice changes %v", changes)
		}
		other.Do(t, func() {
			ip(t, "link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", "20")
			ip(t, "link", "set", "tagged", "up")
			ip(t, "addr", "add", "10.0.20.2/24", "dev", "tagged")
		})
		netnstest.Eventually(t, 10*time.Second, "a neighbour of the VLAN", func() bool {
			_, err := net.DialTimeout("tcp", "10.0.20.2:9", time.Second)
			return errors.Is(err, syscall.ECONNREFUSED) // nobody listens, and it has answered
		})
		// Another tag is another interface, and what is on it comes back.
		apply(t, a, parse(t, strings.ReplaceAll(file, "id: 21", "id: 22")))
		has(t, ip(t, "-d", "addr"), "vlan protocol 802.1Q id 22", "m0@eth0.21", "inet 10.0.22.1/24", "inet 10.0.21.1/24")
		apply(t, a, Want{})
		hasNot(t, ip(t, "link"), "eth0.2", "m0")
		// Somebody else's, of the same tag.
		ip(t, "link", "add", "link", "eth0", "name", "theirs", "type", "vlan", "id", "20")
		_, problems := a.Apply(want, time.Now())
		has(t, texts(problems), "g.yaml:4:5: link/eth0.20: there is an interface of VLAN 20 on eth0 already; ip link delete it, or give this link its name")
	})
}
