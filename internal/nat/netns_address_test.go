package nat

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// Others of pools, which no door of the kernel has.
const (
	relayed4 = "10.11.12.71"
	relayed6 = "fd12::71"
)

// newPoolSite is a site with addresses of pools at eth1.
func newPoolSite(t *testing.T, ports ...int) netnstest.Site {
	t.Helper()
	site := newSite(t, ports...)
	for _, addr := range []string{vip4 + "/32", relayed4 + "/32", vip6 + "/128", relayed6 + "/128"} {
		netnstest.Addr(t, nil, "eth1", addr)
	}
	return site
}

// both are two frontends, at the address of each IP family.
func both(protocol edge.Protocol, port uint16, to ...int) []edge.Frontend {
	var backends4, backends6 []string
	for _, p := range to {
		backends4, backends6 = append(backends4, at(p)), append(backends6, at6(p))
	}
	return []edge.Frontend{atAddr(vip4, frontend(protocol, port, backends4...)), atAddr(vip6, frontend(protocol, port, backends6...))}
}

func anywhere(protocol edge.Protocol, port uint16, to ...int) edge.Frontend {
	f := frontend(protocol, port)
	for _, p := range to {
		f.Backends = append(f.Backends, frontend(protocol, port, at(p), at6(p)).Backends...)
	}
	return f
}

// What comes to an address of a pool is for the doors of that address alone, at
// their interface.
func TestNetnsAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		site := newPoolSite(t, 8001, 8002, 8003)
		for _, port := range []string{":80", ":81", ":83"} {
			tell(t, nil, port)
		}
		s := State{Hairpins: [][2]string{{"eth0", "eth0"}}, Addresses: []netip.Addr{netip.MustParseAddr(relayed4), netip.MustParseAddr(relayed6)}}
		for protocol := range networks {
			s.Frontends = append(s.Frontends, anywhere(protocol, 80, 8001), anywhere(protocol, 82, 8001))
			s.Frontends = append(s.Frontends, both(protocol, 80, 8002)...)
			s.Frontends = append(s.Frontends, both(protocol, 83)...)
			for _, f := range both(protocol, 84, 8003) {
				f.Listen.Device = "eth0"
				s.Frontends = append(s.Frontends, f)
			}
			s.Frontends = append(s.Frontends, both(protocol, 84, 8002)...)
			s.Frontends = append(s.Frontends, with(anywhere(protocol, 83, 8001), func(f *edge.Frontend) { f.Listen.Device = "eth0" }))
		}
		apply(t, New(), s, true)
		check := func(what, network string, ns *netnstest.NS, to, want string) {
			t.Helper()
			if got := ask(t, ns, network, "", to); got.port != want {
				t.Errorf("%s: %s to %s went to %v, want %s", what, network, to, got, want)
			}
		}
		for _, network := range networks {
			for _, a := range []struct{ own, vip, relayed, other string }{
				{edge4, vip4, relayed4, "10.0.0.1"}, {edge6, vip6, relayed6, "fd00::1"},
			} {
				check("an own address", network, site.Home, net.JoinHostPort(a.own, "80"), "8001")
				check("another own address", network, site.Home, net.JoinHostPort(a.other, "82"), "8001")
				check("an address with a door", network, site.Home, net.JoinHostPort(a.vip, "80"), "8002")
				check("from the other side", network, site.Node, net.JoinHostPort(a.vip, "84"), "8003")
				check("at another interface", network, site.Home, net.JoinHostPort(a.vip, "84"), "8002")
				// What has no door is not for the frontends of other addresses.
				refused(t, site.Home, network, net.JoinHostPort(a.vip, "82"))
				refused(t, site.Home, network, net.JoinHostPort(a.relayed, "82"))
				if network == "tcp" { // UDP would answer from another address
					check("an address without doors", network, site.Home, net.JoinHostPort(a.relayed, "80"), "80")
					check("a port without a door", network, site.Home, net.JoinHostPort(a.vip, "81"), "81")
					check("an interface without a door", network, site.Node, net.JoinHostPort(a.vip, "80"), "80")
					check("a door without a backend of another address", network, site.Home, net.JoinHostPort(a.own, "83"), "83")
				}
				// Nobody else gets what a door without a backend refuses.
				refused(t, site.Home, network, net.JoinHostPort(a.vip, "83"))
			}
		}
		// What goes through this machine to somebody else who has the address is not
		// for a frontend.
		netnstest.AddrDel(t, nil, "eth1", vip4+"/32")
		netnstest.Addr(t, site.Node, "lo", vip4+"/32")
		netnstest.Route(t, nil, vip4+"/32", "10.0.0.101")
		netnstest.Route(t, site.Home, vip4+"/32", edge4)
		refused(t, site.Home, "tcp", net.JoinHostPort(vip4, "80"))
	})
}

// Each has its own source ranges and its own masquerading.
func TestNetnsAddressesDoNotMix(t *testing.T) {
	netnstest.Run(t, func() {
		site := newPoolSite(t, 8001, 8002)
		netnstest.Addr(t, site.Home, "eth0", "10.11.12.8/24")
		netnstest.Addr(t, site.Home, "eth0", "fd12::8/64")
		ranges := func(f edge.Frontend, prefixes ...string) edge.Frontend {
			f.SourceRanges = []netip.Prefix{}
			for _, p := range prefixes {
				f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(p))
			}
			return f
		}
		seen := func(network string) string {
			var got []string
			for _, c := range [][2]string{
				{"10.11.12.7", edge4},
				{"10.11.12.8", edge4},
				{"10.11.12.7", vip4},
				{"10.11.12.8", vip4},
				{"fd12::7", edge6},
				{"fd12::8", edge6},
				{"fd12::7", vip6},
				{"fd12::8", vip6},
			} {
				answer, err := dial(t, site.Home, network, c[0], net.JoinHostPort(c[1], "80"))
				switch {
				case err == nil && answer.client == c[0]:
					got = append(got, answer.port)
				case err == nil:
					got = append(got, "+"+answer.port)
				case errors.Is(err, syscall.ECONNREFUSED):
					got = append(got, "-")
				default:
					t.Errorf("%s from %s to %s: %v", network, c[0], c[1], err)
				}
			}
			return strings.Join(got, " ")
		}
		a := New()
		for i, c := range []struct {
			of   func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend)
			want string
		}{
			{func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend) {
				return ranges(own, "10.11.12.7/32", "fd12::7/128"), vips
			}, "8001 - 8002 8002 8001 - 8002 8002"},
			{func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend) {
				return own, []edge.Frontend{ranges(vips[0], "10.11.12.0/29", "fd12::/64"), ranges(vips[1], "10.11.12.8/32", "fd12::8/128")}
			}, "8001 8001 8002 - 8001 8001 - 8002"},
			{func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend) {
				own.Masquerade = true
				return own, vips
			}, "+8001 +8001 8002 8002 +8001 +8001 8002 8002"},
			{func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend) {
				vips[0].Masquerade, vips[1].Masquerade = true, true
				return ranges(own), vips
			}, "- - +8002 +8002 - - +8002 +8002"},
			{func(own edge.Frontend, vips []edge.Frontend) (edge.Frontend, []edge.Frontend) {
				return own, []edge.Frontend{ranges(vips[0]), vips[1]}
			}, "8001 8001 - - 8001 8001 8002 8002"},
		} {
			var s State
			for protocol := range networks {
				own, vips := c.of(anywhere(protocol, 80, 8001), both(protocol, 80, 8002))
				s.Frontends = append(append(s.Frontends, own), vips...)
			}
			apply(t, a, s, true)
			for _, network := range networks {
				if got := seen(network); got != c.want {
					t.Errorf("%d: %s: %s, want %s", i, network, got, c.want)
				}
			}
			apply(t, New(), s, false)
		}
		// From one network back into it, also for those of an address.
		s := State{Hairpins: [][2]string{{"eth1", "eth0"}}, Frontends: both(edge.TCP, 80, 8002)}
		apply(t, a, s, true)
		for _, c := range [][2]string{{vip4, "10.0.0.1"}, {vip6, "fd00::1"}} {
			if got := ask(t, site.Home, "tcp", "", net.JoinHostPort(c[0], "80")); got.client != c[1] {
				t.Errorf("at %s the backend sees %s, want %s", c[0], got.client, c[1])
			}
		}
	})
}

// The backends of an address get their shares, at random and by client.
func TestNetnsAddressesSpread(t *testing.T) {
	netnstest.Run(t, func() {
		site := newPoolSite(t, 8001, 8002, 8003)
		var s State
		for protocol := range networks {
			s.Frontends = append(s.Frontends, atAddr(vip4, frontend(protocol, 80, at(8001)+"*1", at(8002)+"*5")),
				atAddr(vip6, frontend(protocol, 80, at6(8001)+"*1", at6(8002)+"*5")), anywhere(protocol, 80, 8003))
			for _, f := range both(protocol, 81, 8001, 8002, 8003) {
				s.Frontends = append(s.Frontends, with(f, func(f *edge.Frontend) { f.Balance = edge.BalanceSource }))
			}
		}
		apply(t, New(), s, true)
		for i := range 12 {
			netnstest.Addr(t, site.Home, "eth0", fmt.Sprintf("10.11.12.%d/24", 100+i))
			addr6 := fmt.Sprintf("fd13:%x::7", 100+i)
			netnstest.Addr(t, site.Home, "lo", addr6+"/128")
			netnstest.Route(t, nil, addr6+"/128", "fd12::7")
		}
		for _, network := range networks {
			for _, addr := range []string{vip4, vip6} {
				const n = 300
				got := map[string]int{}
				for range n {
					got[ask(t, site.Home, network, "", net.JoinHostPort(addr, "80")).port]++
				}
				// 50 are due; 4 standard deviations are 26.
				if off := got["8001"] - n/6; off < -26 || off > 26 || got["8001"]+got["8002"] != n {
					t.Errorf("%s to %s: %v", network, addr, got)
				}
				ports := map[string]bool{}
				for i := range 12 {
					client := fmt.Sprintf("10.11.12.%d", 100+i)
					if addr == vip6 {
						client = fmt.Sprintf("fd13:%x::7", 100+i)
					}
					first := ask(t, site.Home, network, client, net.JoinHostPort(addr, "81")).port
					for range 2 {
						if port := ask(t, site.Home, network, client, net.JoinHostPort(addr, "81")).port; port != first {
							t.Errorf("%s: %s is sent to %s and to %s", network, client, first, port)
						}
					}
					ports[first] = true
				}
				if len(ports) != 3 {
					t.Errorf("%s to %s: 12 clients get %d backends of 3", network, addr, len(ports))
				}
			}
		}
	})
}

// A client keeps the backend that it has at an address, whatever it has at
// others, and as long as it is one.
func TestNetnsAffinityOfAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		site := newPoolSite(t, 8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008)
		const other6 = "fd12::72"
		netnstest.Addr(t, nil, "eth1", other6+"/128")
		// Backends of each of the doors: of an own address, and of addresses.
		behind := func(own, vip, other []int) (s State) {
			for protocol := range networks {
				s.Frontends = append(append(s.Frontends, anywhere(protocol, 80, own...)), both(protocol, 80, vip...)...)
				f := both(protocol, 80, other...)[1]
				f.Listen.Addr = netip.MustParseAddr(other6)
				s.Frontends = append(s.Frontends, f)
			}
			for i := range s.Frontends {
				s.Frontends[i].Balance, s.Frontends[i].AffinityTimeout = edge.BalanceSource, time.Hour
			}
			return s
		}
		var clients []string
		for i := range 8 {
			addr4, addr6 := fmt.Sprintf("10.11.12.%d", 100+i), fmt.Sprintf("fd13:%x::7", 100+i)
			netnstest.Addr(t, site.Home, "eth0", addr4+"/24")
			netnstest.Addr(t, site.Home, "lo", addr6+"/128")
			netnstest.Route(t, nil, addr6+"/128", "fd12::7")
			clients = append(clients, addr4, addr6)
		}
		look := func(addr4, addr6 string) map[string]string {
			got := map[string]string{}
			for _, network := range networks {
				for _, c := range clients {
					addr := addr4
					if netip.MustParseAddr(c).Is6() {
						addr = addr6
					}
					if addr != "" {
						got[network+" "+c] = ask(t, site.Home, network, c, net.JoinHostPort(addr, "80")).port
					}
				}
			}
			return got
		}
		is := func(what string, got map[string]string, want ...string) {
			t.Helper()
			if ports := slices.Compact(slices.Sorted(maps.Values(got))); !slices.Equal(ports, want) {
				t.Errorf("%s: clients are sent to %v, want %v", what, ports, want)
			}
		}
		a := New()
		apply(t, a, behind([]int{8001}, []int{8002}, []int{8003}), true)
		is("an own address", look(edge4, edge6), "8001")
		is("an address", look(vip4, vip6), "8002")
		is("another address", look("", other6), "8003")
		all := []int{8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008}
		for range 2 { // the second process has all in mind, too
			if _, err := a.Apply(t.Context(), behind(all, all, all)); err != nil {
				t.Fatal(err)
			}
			is("an own address, with more backends", look(edge4, edge6), "8001")
			is("an address, with more backends", look(vip4, vip6), "8002")
			is("another address, with more backends", look("", other6), "8003")
			a = New()
		}
		// One backend goes from one door.
		apply(t, a, behind(all, slices.Delete(slices.Clone(all), 1, 2), all), true)
		elsewhere := look(vip4, vip6)
		if ports := slices.Compact(slices.Sorted(maps.Values(elsewhere))); slices.Contains(ports, "8002") || len(ports) < 2 {
			t.Errorf("without their backend clients go to %v", ports)
		}
		is("an own address, with all backends", look(edge4, edge6), "8001")
		is("another address, with all backends", look("", other6), "8003")
		// It does not draw its clients back.
		apply(t, a, behind(all, all, all), true)
		if got := look(vip4, vip6); !maps.Equal(got, elsewhere) {
			t.Errorf("once it is back they go to\n%v\nbefore to\n%v", got, elsewhere)
		}
	})
}

// What is counted of an address is told from the rest, also when that was there
// before it.
func TestNetnsCountersOfAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		site := newPoolSite(t, 8001, 8002)
		s := State{}
		for protocol := range networks {
			s.Frontends = append(s.Frontends, anywhere(protocol, 80, 8001))
		}
		a := New()
		apply(t, a, s, true)
		rules := func() string { return nftCommand(t, "-s", "list", "map", "inet", "gatehouse", "counting") }
		if strings.Contains(rules(), addressPrefix) {
			t.Errorf("without addresses they are looked up:\n%s", rules())
		}
		early, err := dial(t, site.Home, "tcp", "", net.JoinHostPort(edge4, "80"))
		if err != nil {
			t.Fatal(err)
		}
		less := s
		for protocol := range networks {
			s.Frontends = append(s.Frontends, both(protocol, 80, 8001)...)
		}
		apply(t, a, s, true)
		lives(t, early)
		for _, addr := range []string{edge4, edge6, vip4, vip4, vip6, vip6} {
			ask(t, site.Home, "udp", "", net.JoinHostPort(addr, "80"))
		}
		late, err := dial(t, site.Home, "tcp", "", net.JoinHostPort(vip6, "80"))
		if err != nil {
			t.Fatal(err)
		}
		lives(t, late)
		text := func() string {
			t.Helper()
			counts, err := a.Counters(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, c := range counts {
				line := fmt.Sprintf("%v %v %d", c.Door, c.Backend, c.Connections)
				if c.Door.Protocol == edge.UDP {
					line += fmt.Sprintf(" %d/%d %d/%d", c.PacketsToBackend, c.BytesToBackend, c.PacketsToClient, c.BytesToClient)
				} else if c.PacketsToBackend < 3 || c.BytesToBackend < c.PacketsToBackend*52 || c.PacketsToClient < 3 || c.BytesToClient < c.PacketsToClient*52 {
					line += fmt.Sprintf(" too little: %+v", c)
				}
				lines = append(lines, line)
			}
			return strings.Join(lines, "\n")
		}
		want := strings.Join([]string{
			"TCP @eth1:80 10.244.1.5:8001 1",
			"UDP @eth1:80 10.244.1.5:8001 1 1/36 1/44",
			"UDP @eth1:80 [fd44::5]:8001 1 1/56 1/61",
			"UDP 10.11.12.70:80@eth1 10.244.1.5:8001 2 2/72 2/88",
			"TCP [fd12::70]:80@eth1 [fd44::5]:8001 1",
			"UDP [fd12::70]:80@eth1 [fd44::5]:8001 2 2/112 2/122",
		}, "\n")
		if got := text(); got != want {
			t.Errorf("counted\n%s\nwant\n%s", got, want)
		}
		// The door has gone, the address stays for whoever is connected.
		less.Addresses = []netip.Addr{netip.MustParseAddr(vip6)}
		apply(t, a, less, true)
		lives(t, late)
		lives(t, early)
		if got := text(); got != want {
			t.Errorf("after the doors have gone\n%s\nwant\n%s", got, want)
		}
		if text := rules(); strings.Contains(text, "tcp4-"+addressPrefix) || !strings.Contains(text, "tcp6-"+addressPrefix) {
			t.Errorf("with addresses of IPv6 alone:\n%s", text)
		}
		if err := a.Forget(t.Context(), func(d edge.Door, _ netip.AddrPort) bool { return d.Protocol == edge.TCP && d.Listen.Addr.IsValid() }); err != nil {
			t.Fatal(err)
		}
		if got, want := text(), "TCP [fd12::70]:80@eth1 [fd44::5]:8001 1"; got != want {
			t.Errorf("after Forget\n%s\nwant\n%s", got, want)
		}
	})
}

// A door that is kept keeps its address, and others theirs.
func TestNetnsKeepsAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		newPoolSite(t)
		before := State{Frontends: append(both(edge.TCP, 80, 8001), anywhere(edge.TCP, 80, 8002)), Addresses: []netip.Addr{netip.MustParseAddr(relayed4)}}
		apply(t, New(), before, true)
		made := nftCommand(t, "-s", "list", "table", "inet", "gatehouse")
		var doors []edge.Door
		for _, f := range before.Frontends {
			doors = append(doors, f.Door)
		}
		a := New()
		apply(t, a, State{Keep: doors}, false)
		if got := nftCommand(t, "-s", "list", "table", "inet", "gatehouse"); got != made {
			t.Errorf("the table has become\n%s", got)
		}
		apply(t, a, State{Keep: doors[2:]}, true)
		for set, want := range map[string]bool{"addresses4": true, "addresses6": true, "address-doors4": false, "doors4": true} {
			kind := "map"
			if strings.HasPrefix(set, "addresses") {
				kind = "set"
			}
			if text := nftCommand(t, "list", kind, "inet", "gatehouse", set); strings.Contains(text, "elements") != want {
				t.Errorf("%s is\n%s", set, text)
			}
		}
	})
}
