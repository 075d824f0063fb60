package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

func route(node, dst, via string) edge.Route {
	return edge.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Why: "node/" + node}
}

// apply wants the routes, and those problems in lines of text.
func apply(t *testing.T, want []edge.Route, wantChanged bool, wantProblems ...string) {
	t.Helper()
	problems, changed := Routes{}.Apply(want)
	var got []string
	for _, p := range problems {
		got = append(got, p.String())
	}
	if changed != wantChanged || strings.Join(got, "\n") != strings.Join(wantProblems, "\n") {
		t.Fatalf("Apply: changed %t, want %t\n%s\nwant\n%s", changed, wantChanged, strings.Join(got, "\n"), strings.Join(wantProblems, "\n"))
	}
}

// leads wants that packets to the address go that way.
func leads(t *testing.T, to, want string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", "route", "get", to).CombinedOutput()
	if err != nil {
		out = []byte("nowhere")
	}
	if got := string(out); !strings.Contains(got, want) {
		t.Errorf("to %s: %s, want %s", to, got, want)
	}
}

// clusterSide gives the machine eth0 in the cluster's network, and eth1.
func clusterSide(t *testing.T) {
	t.Helper()
	other := netnstest.New(t)
	// No link-local addresses, whose coming is told a while later.
	netnstest.Setting(t, nil, "net/ipv6/conf/default/addr_gen_mode", "1")
	for _, name := range []string{"eth0", "eth1"} {
		netnstest.Cable(t, nil, name, other, name)
		// Else the addresses go with the interface when that is set down.
		netnstest.Setting(t, nil, "net/ipv6/conf/"+name+"/keep_addr_on_down", "1")
	}
	netnstest.Addr(t, nil, "eth0", "10.0.0.1/24")
	netnstest.Addr(t, nil, "eth1", "10.11.12.32/24")
	ipCommand(t, "addr add fd00::1/64 dev eth0 nodad")
	netnstest.Eventually(t, patience, "fd00::1 is there", func() bool { return strings.Contains(routing(t), "local fd00::1 ") })
}

var pods = []edge.Route{
	route("w1", "10.244.1.0/24", "10.0.0.101"), route("w1", "fd00:244:1::/64", "fd00::101"),
	route("w2", "10.244.2.0/24", "10.0.0.102"), route("w2", "fd00:244:2::/64", "fd00::102"),
}

func TestNetnsRoutes(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		ipCommand(t, "route add default via 10.11.12.1")
		ipCommand(t, "route add 192.0.2.0/24 via 10.0.0.200 metric 1000000000")
		before := routing(t)
		present := func(want bool) {
			t.Helper()
			if got, err := (Routes{}).Present(); got != want || err != nil {
				t.Errorf("Present = %t, %v; want %t", got, err, want)
			}
		}
		present(false)
		apply(t, nil, false)
		apply(t, pods, true)
		present(true)
		after := routing(t)
		for _, want := range []string{
			"10.244.1.0/24 via 10.0.0.101 dev eth0 proto 91 metric 1000000000", "fd00:244:2::/64 via fd00::102 dev eth0 proto 91 metric 1000000000",
		} {
			if !strings.Contains(after, want) {
				t.Errorf("it lacks %q:\n%s", want, after)
			}
		}
		apply(t, []edge.Route{pods[3], pods[1], pods[0], pods[2], pods[0]}, false)

		for _, damage := range []string{"route del 10.244.1.0/24", "-6 route del fd00:244:2::/64", "route replace 10.244.1.0/24 via 10.11.12.9 proto 91 metric 1000000000"} {
			ipCommand(t, damage)
			apply(t, pods, true)
			if got := routing(t); got != after {
				t.Errorf("after %q it is mended to\n%swant\n%s", damage, got, after)
			}
		}
		// What another version may have left.
		ipCommand(t, "route add 10.244.9.0/24 via 10.0.0.109 proto 91 metric 7")
		apply(t, pods, true)
		apply(t, pods[:2], true)
		leads(t, "10.244.1.5", "via 10.0.0.101")
		leads(t, "10.244.2.5", "via 10.11.12.1 ")
		deliver(t, Routes{}.Remove, true)
		present(false)
		if got := routing(t); got != before {
			t.Errorf("left behind\n%swant\n%s", got, before)
		}
		deliver(t, Routes{}.Remove, false)
	})
}

// The routes of one are not the other's, though both know theirs by a number.
func TestNetnsRoutesBesideADelivery(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		apply(t, pods, true)
		routes := routing(t)
		ipCommand(t, "rule add priority 77 lookup main protocol 91") // which leads to the pods' routes
		deliver(t, delivery.Apply, true)
		both := routing(t)
		apply(t, pods, false)
		deliver(t, delivery.Apply, false)
		deliver(t, Routes{}.Remove, true)
		if got, err := delivery.Present(); !got || err != nil {
			t.Errorf("the Delivery is gone with the routes: %v", err)
		}
		apply(t, pods, true)
		if got := routing(t); got != both {
			t.Errorf("it is\n%swant\n%s", got, both)
		}
		deliver(t, delivery.Remove, true)
		if got := routing(t); got != routes {
			t.Errorf("left is\n%swant\n%s", got, routes)
		}
	})
}

// Somebody else's route is the one that counts, and ours is there when it goes.
func TestNetnsRoutesOfOthersComeFirst(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		for _, theirs := range []string{"10.244.1.0/24 via 10.0.0.200", "10.244.1.0/24 via 10.0.0.200 metric 20000", "-6 fd00:244:1::/64 via fd00::200"} {
			family, rest, ok := strings.Cut(theirs, " ")
			if family != "-6" || !ok {
				family, rest = "-4", theirs
			}
			to, via, ours := "10.244.1.5", "via 10.0.0.200", "via 10.0.0.101"
			if family == "-6" {
				to, via, ours = "fd00:244:1::5", "via fd00::200", "via fd00::101"
			}
			ipCommand(t, family+" route add "+rest)
			apply(t, pods, true)
			leads(t, to, via)
			apply(t, pods, false)
			leads(t, to, via)
			ipCommand(t, family+" route del "+rest)
			leads(t, to, ours)
			// It comes back.
			ipCommand(t, family+" route add "+rest)
			leads(t, to, via)
			apply(t, nil, true)
			leads(t, to, via)
			ipCommand(t, family+" route del "+rest)
		}
	})
}

func TestNetnsRoutesThatCannotBe(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		ipCommand(t, "route add default via 10.11.12.1")
		far := route("far", "10.244.3.0/24", "192.168.9.9")
		const noNetwork = "node/far: 192.168.9.9 is in no network of this machine: there is no way to its pods, 10.244.3.0/24; " +
			"give this machine an address in the node's network, or have routes to the pods made by others"
		apply(t, []edge.Route{far, pods[0]}, true, noNetwork)
		leads(t, "10.244.1.5", "via 10.0.0.101")
		leads(t, "10.244.3.5", "via 10.11.12.1 ")
		for _, theirs := range []string{"10.244.3.0/24", "10.244.0.0/16"} {
			ipCommand(t, "route add "+theirs+" via 10.11.12.9")
			apply(t, []edge.Route{far, pods[0]}, false)
			ipCommand(t, "route del "+theirs)
		}
		// What ours was before counts for nothing.
		apply(t, []edge.Route{route("far", "10.244.1.0/24", "192.168.9.9")}, true, strings.ReplaceAll(noNetwork, "10.244.3.0", "10.244.1.0"))
		ipCommand(t, "-6 route add unreachable fd00:244:3::/64")
		apply(t, []edge.Route{route("far", "fd00:244:3::/64", "fd99::9")}, false,
			strings.NewReplacer("192.168.9.9", "fd99::9", "10.244.3.0/24", "fd00:244:3::/64").Replace(noNetwork))
		apply(t, pods[:1], true)
		ipCommand(t, "route add 10.244.3.0/26 via 10.11.12.9") // some of them
		ipCommand(t, "route add unreachable 10.244.3.0/24")
		apply(t, []edge.Route{far, pods[0]}, false, noNetwork)

		apply(t, []edge.Route{
			pods[0], route("w3", "10.244.1.0/24", "10.0.0.103"), // of one network, the first by name has it
			route("here", "10.244.7.0/24", "10.0.0.1"), // this machine's pods are no problem, and have no route
			route("bad", "10.11.12.128/25", "10.0.0.104"), route("worse", "0.0.0.0/0", "10.0.0.105"),
		}, false,
			"node/worse: 0.0.0.0/0, of its pods, overlaps 10.0.0.0/24, the network of eth0: it has no route; pods need networks of their own",
			"node/bad: 10.11.12.128/25, of its pods, overlaps 10.11.12.0/24, the network of eth1: it has no route; pods need networks of their own",
			"node/w3: 10.244.1.0/24, of its pods, is also of node/w1: only that one has a route; give each node a pod CIDR of its own")
		leads(t, "10.244.7.5", "via 10.11.12.1 ")
		leads(t, "10.11.12.200", "10.11.12.200 dev eth1")

		// The other end of a line is a network.
		ipCommand(t, "addr add 10.9.9.1 peer 10.9.9.2/32 dev eth1")
		apply(t, []edge.Route{pods[0], route("line", "10.244.8.0/24", "10.9.9.2")}, true)
		leads(t, "10.244.8.5", "via 10.9.9.2 dev eth1")

		// What the kernel refuses is told for the node, and the others have theirs.
		ipCommand(t, "route flush 10.0.0.0/24")
		apply(t, []edge.Route{pods[1], pods[2]}, true,
			fmt.Sprintf("node/w2: add ip route 10.244.2.0/24 via 10.0.0.102 dev %s table 254 metric 1000000000: network is unreachable; it is tried again", indexOf(t, "eth0")))
		leads(t, "fd00:244:1::5", "via fd00::101")
	})
}

func indexOf(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + name + "/ifindex")
	if err != nil {
		// /sys is that of the namespace it was mounted in.
		line := ipCommand(t, "-o link show "+name)
		index, _, _ := strings.Cut(line, ":")
		return index
	}
	return strings.TrimSpace(string(text))
}

// A node with another address, or this machine in the network by another
// interface: the new way takes the place of the old one.
func TestNetnsRoutesAreReplacedWithoutAGap(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		apply(t, pods[:2], true)
		socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		apply(t, []edge.Route{route("w1", "10.244.1.0/24", "10.11.12.101"), route("w1", "fd00:244:1::/64", "fd00::111")}, true)
		leads(t, "10.244.1.5", "via 10.11.12.101 dev eth1")
		leads(t, "fd00:244:1::5", "via fd00::111")
		if n := strings.Count(routing(t), "proto 91"); n != 2 {
			t.Errorf("%d routes, want 2", n)
		}
		deliver(t, Routes{}.Remove, true)
		var got []string
		for len(got) < 4 {
			messages, _, err := socket.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				if m.Data[5] == protocol {
					got = append(got, map[uint16]string{unix.RTM_NEWROUTE: "new", unix.RTM_DELROUTE: "gone"}[m.Header.Type])
				}
			}
		}
		if want := "new new gone gone"; strings.Join(got, " ") != want {
			t.Errorf("the kernel told %v, want %s", got, want)
		}
	})
}

func TestNetnsRoutesComeBack(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		wanted := pods
		apply(t, wanted, true)
		ours := func() (lines string) {
			for line := range strings.Lines(routing(t)) {
				if strings.Contains(line, "proto 91") {
					lines += line
				}
			}
			return lines
		}
		after := ours()
		ctx, cancel := context.WithCancel(t.Context())
		heard, ended := make(chan struct{}, 1000), make(chan error, 1)
		go func() { ended <- WatchRoutes(ctx, func() { heard <- struct{}{} }) }()
		// Until the socket is there nothing is heard.
		netnstest.Eventually(t, patience, "a removal is told", func() bool {
			ipCommand(t, "route del 10.244.1.0/24")
			apply(t, wanted, true)
			return len(heard) > 0
		})
		told := func(what string, damage ...string) {
			t.Helper()
			for len(heard) > 0 {
				<-heard
			}
			for _, args := range damage {
				ipCommand(t, args)
			}
			netnstest.Eventually(t, patience, what+": is told", func() bool { return len(heard) > 0 })
			netnstest.Eventually(t, patience, what+": is mended", func() bool {
				problems, _ := Routes{}.Apply(wanted)
				return len(problems) == 0 && ours() == after
			})
		}
		told("IPv6 route gone", "-6 route del fd00:244:1::/64")
		told("down and up again", "link set eth0 down", "link set eth0 up")
		apply(t, wanted, false)
		netnstest.Setting(t, nil, "net/ipv6/conf/eth0/disable_ipv6", "1")
		wanted = []edge.Route{pods[0], pods[2]}
		apply(t, wanted, false)
		after = ours()
		told("IPv4 alone, down and up again", "link set eth0 down", "link set eth0 up")
		told("IPv4 route gone", "route del 10.244.1.0/24")
		told("address gone and back", "addr del 10.0.0.1/24 dev eth0", "addr add 10.0.0.1/24 dev eth0")

		ipCommand(t, "link set eth0 down")
		const way = " is down, and so is the way to its pods, "
		apply(t, wanted, false,
			"node/w1: eth0"+way+"10.244.1.0/24 by 10.0.0.101; ip link set eth0 up", "node/w2: eth0"+way+"10.244.2.0/24 by 10.0.0.102; ip link set eth0 up")
		told("up after a while", "link set eth0 up")
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("WatchRoutes ended with %v", err)
		}
	})
}

func TestNetnsRoutesNotPermitted(t *testing.T) {
	const unprivileged = "GATEHOUSE_TEST_UNPRIVILEGED"
	if os.Getenv(unprivileged) != "" {
		apply(t, pods, false, fmt.Sprintf("routes: add ip route 10.244.1.0/24 via 10.0.0.101 dev %s table 254 metric 1000000000: changing routes is not permitted; "+
			"it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it", indexOf(t, "eth0")))
		return
	}
	netnstest.Run(t, func() {
		clusterSide(t)
		t.Setenv(unprivileged, "1")
		out, err := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
			os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

func TestNetnsForwarding(t *testing.T) {
	netnstest.Run(t, func() {
		for _, c := range [][2]string{{"0", "0"}, {"1", "0"}, {"0", "1"}, {"1", "1"}} {
			netnstest.Setting(t, nil, "net/ipv4/ip_forward", c[0])
			netnstest.Setting(t, nil, "net/ipv6/conf/all/forwarding", c[1])
			if ipv4, ipv6 := Forwarding(); ipv4 != (c[0] == "1") || ipv6 != (c[1] == "1") {
				t.Errorf("Forwarding = %t, %t; want %v", ipv4, ipv6, c)
			}
		}
	})
}

// A way to each of many nodes is found at once.
func TestNetnsManyRoutes(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		netnstest.Addr(t, nil, "eth0", "10.1.0.1/16")
		var many []edge.Route
		for i := range 5000 {
			many = append(many, route(fmt.Sprint("w", i), fmt.Sprintf("10.%d.%d.0/24", 100+i/250, i%250), fmt.Sprintf("10.1.%d.%d", 1+i/250, 1+i%250)))
		}
		apply(t, many, true)
		apply(t, many, false)
		deliver(t, Routes{}.Remove, true)
	})
}
