package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// Addresses that Services have for themselves at the home network; the last one
// is on the interface of the internet.
const vip4, vip6, far4, far6 = "10.11.12.70", "fd12::70", "10.11.13.70", "fd13::70"

var vips = []string{vip4, vip6, far4, far6}

func addVIPs(t *testing.T) {
	t.Helper()
	for addr, device := range map[string]string{vip4 + "/32": "eth1", vip6 + "/128": "eth1", far4 + "/32": "veth0", far6 + "/128": "veth0"} {
		netnstest.Addr(t, nil, device, addr)
	}
}

// neighboursAt are doors of port 80 of eth1, by their addresses ("": for all);
// who is behind them says so.
func neighboursAt(t *testing.T, protocol edge.Protocol, addrs ...string) map[string]edge.Frontend {
	all := map[string]edge.Frontend{}
	for _, addr := range addrs {
		name := "own"
		if addr != "" {
			name = addr
		}
		f := edge.Frontend{Door: edge.Door{Protocol: protocol, Listen: edge.Listen{Device: "eth1", Port: 80}}, Name: name}
		if protocol == edge.UDP {
			f.Backends = []edge.Backend{upAt(named(t, name))}
		} else {
			f.Backends = []edge.Backend{upAt(greeter(t, name))}
		}
		if addr != "" {
			f.Listen.Addr = netip.MustParseAddr(addr)
		}
		all[addr] = f
	}
	return all
}

func wantNobody(t *testing.T, ns *netnstest.NS, protocol edge.Protocol, addr string) {
	t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
	if protocol == edge.TCP {
		from(t, ns, "nobody", at.String(), false)
	} else {
		wantSilence(t, at.String(), clientAt(t, ns, at.String()))
	}
}

// whoAnswers says who answers a client at an address.
func whoAnswers(t *testing.T, ns *netnstest.NS, protocol edge.Protocol, addr string) (who string) {
	t.Helper()
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
	ns.Do(t, func() {
		if protocol == edge.TCP {
			var err error
			if who, err = ask(t, at); err != nil {
				t.Errorf("%s: %v", addr, err)
			}
			return
		}
		who = exchange(t, dialUDP(t, at), "who") // it does not hear what comes from another address
	})
	return who
}

func applyAll(t *testing.T, r *Relay, all map[string]edge.Frontend, addrs []string) {
	t.Helper()
	var frontends []edge.Frontend
	for _, addr := range addrs {
		frontends = append(frontends, all[addr])
	}
	for _, d := range r.Apply(frontends) {
		want := netip.AddrPortFrom(netip.IPv6Unspecified(), 80)
		if d.Listen.Addr.IsValid() {
			want = netip.AddrPortFrom(d.Listen.Addr, 80)
		}
		if d.Error != "" || d.Addr != want {
			t.Fatalf("with %q: %+v", addrs, d)
		}
	}
}

// notShared: no TCP socket is left as one that others could share the port of.
func notShared(t *testing.T, r *Relay) {
	t.Helper()
	for _, d := range r.doors {
		for _, fd := range d.sockets {
			if shared, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT); d.key.Protocol == edge.TCP && (shared != 0 || err != nil) {
				t.Errorf("%s is left shared: %d, %v", d.key, shared, err)
			}
		}
	}
}

// The kernel gives a client to the door of the address that it speaks to, and
// everybody else to the one of all addresses, in whatever order they were opened;
// and what is closed is the other one's again.
func TestNetnsNeighboursOpenAndCloseInAnyOrder(t *testing.T) {
	orders := [][]string{
		append([]string{""}, vips...), append(append([]string{}, vips...), ""), {vip6, "", far4, vip4, far6}, {vip4, vip6, "", far6, far4},
	}
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		for _, order := range orders {
			t.Run(fmt.Sprint(protocol, order), func(t *testing.T) {
				netnstest.Run(t, func() {
					home, internet := newSite(t)
					addVIPs(t)
					r := newRelay(t, Options{})
					all := neighboursAt(t, protocol, append(vips, "")...)
					check := func(open []string) {
						t.Helper()
						applyAll(t, r, all, open)
						notShared(t, r)
						is := map[string]bool{}
						for _, addr := range open {
							is[addr] = true
						}
						for _, addr := range append([]string{homeEdge4, homeEdge6, internetEdge4}, vips...) {
							want := ""
							switch {
							case is[addr]:
								want = addr
							case is[""]:
								want = "own"
							}
							if want == "" {
								wantNobody(t, home, protocol, addr)
							} else if got := whoAnswers(t, home, protocol, addr); got != want {
								t.Errorf("with %q at %s: %q, want %q", open, addr, got, want)
							}
							wantNobody(t, internet, protocol, addr)
						}
					}
					for n := 1; n <= len(order); n++ {
						check(order[:n])
					}
					for n := 1; n < len(order); n++ {
						check(order[n:])
					}
					check(order) // all but one at once
				})
			})
		}
	}
}

// Who has connections at an address does not keep its door from being opened
// again.
func TestNetnsNeighboursReopenBesideConnections(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		addVIPs(t)
		r := newRelay(t, Options{})
		all := neighboursAt(t, edge.TCP, "", vip4)
		for addr, f := range all {
			f.Backends = []edge.Backend{upAt(server(t, echo))}
			all[addr] = f
		}
		var conns []*net.TCPConn
		talk := func() {
			t.Helper()
			for _, addr := range []string{homeEdge4, vip4} {
				home.Do(t, func() { conns = append(conns, dial(t, netip.AddrPortFrom(netip.MustParseAddr(addr), 80))) })
			}
			for _, c := range conns {
				say(t, c, "alive")
			}
		}
		for _, open := range [][]string{{""}, {"", vip4}, {""}, {"", vip4}} {
			applyAll(t, r, all, open)
			talk()
		}
		applyAll(t, r, all, []string{vip4})
		applyAll(t, r, all, []string{vip4, ""})
		talk()
		byDoor := map[string]uint64{}
		for _, s := range r.Stats() {
			byDoor[s.Listen.String()] += s.Active
		}
		if byDoor["@eth1:80"] != 7 || byDoor[vip4+":80@eth1"] != 3 || len(byDoor) != 2 {
			t.Errorf("active by door: %v, want 7 of all addresses and 3 of %s", byDoor, vip4)
		}
	})
}

// An address may come only after its door; until then the door says so, and
// its neighbour is open.
func TestNetnsNeighbourWaitsForItsAddress(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			netnstest.Run(t, func() {
				home, _ := newSite(t)
				r := newRelay(t, Options{})
				all := neighboursAt(t, protocol, "", vip4, vip6)
				wanted := []edge.Frontend{all[vip4], all[""], all[vip6]}
				doors := r.Apply(wanted)
				for i, addr := range map[int]string{0: vip4, 2: vip6} {
					want := fmt.Sprintf("listen on %s: cannot assign requested address: %s is not an address of this machine", wanted[i].Listen, addr)
					if doors[i].Error != want || doors[i].Addr.IsValid() {
						t.Errorf("without its address: %+v, want %q", doors[i], want)
					}
				}
				if doors[1].Error != "" {
					t.Error(doors[1].Error)
				}
				addVIPs(t)
				for _, d := range r.Apply(wanted) {
					if d.Error != "" {
						t.Error(d.Error)
					}
				}
				for _, addr := range []string{vip4, vip6} {
					if got := whoAnswers(t, home, protocol, addr); got != addr {
						t.Errorf("%s: %q", addr, got)
					}
				}
			})
		})
	}
}

func TestNetnsNeighboursAreHandedOver(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		t.Run(string(protocol), func(t *testing.T) {
			netnstest.Run(t, func() {
				home, _ := newSite(t)
				addVIPs(t)
				all := neighboursAt(t, protocol, append(vips, "")...)
				expect := func(want map[string]string) {
					t.Helper()
					for addr, who := range want {
						if who == "" {
							wantNobody(t, home, protocol, addr)
						} else if got := whoAnswers(t, home, protocol, addr); got != who {
							t.Errorf("at %s: %q, want %q", addr, got, who)
						}
					}
				}
				next := func(before *Relay, open ...string) *Relay {
					t.Helper()
					h, err := before.Handover()
					if err != nil {
						t.Fatal(err)
					}
					after := New(slog.New(slog.DiscardHandler), Options{Adopt: h})
					applyAll(t, after, all, open)
					notShared(t, after)
					if err := before.Close(context.Background()); err != nil {
						t.Error(err)
					}
					return after
				}
				first := New(slog.New(slog.DiscardHandler), Options{})
				applyAll(t, first, all, []string{"", vip4, vip6})
				// The same, and one more beside them.
				second := next(first, vip4, vip6, "", far4)
				expect(map[string]string{homeEdge4: "own", homeEdge6: "own", vip4: vip4, vip6: vip6, far4: far4})
				// One that is not wanted any more is open until the process before ends.
				third := next(second, far4, far6)
				expect(map[string]string{homeEdge4: "", vip4: "", far4: far4, far6: far6})
				fourth := next(third, "")
				expect(map[string]string{homeEdge6: "own", vip4: "own", far4: "own", far6: "own"})
				if err := fourth.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// At its address a door is as any other: answers and refusals come from there,
// names are its own, a transparent backend sees the client, and what it counts is
// its own.
func TestNetnsNeighboursAreDoorsOfTheirOwn(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		addVIPs(t)
		r := newRelay(t, Options{})
		var wanted []edge.Frontend
		names := func(addr string, names ...string) {
			for _, name := range names {
				f := neighboursAt(t, edge.TCP, addr)[addr]
				f.Name, f.Hostnames, f.Listen.Port = name+" at "+addr, []string{name}, 443
				f.Backends = []edge.Backend{tlsServer(t, f.Name)}
				wanted = append(wanted, f)
			}
		}
		names("", "a.example", "b.example")
		names(vip4, "a.example", "c.example")
		names(vip6, "b.example")
		for _, addr := range []string{"", vip4, vip6} {
			refusing := neighboursAt(t, edge.UDP, addr)[addr]
			refusing.Backends = nil
			wanted = append(wanted, refusing)
		}
		for _, d := range r.Apply(wanted) {
			if d.Error != "" {
				t.Fatal(d.Error)
			}
		}
		counted := map[string]uint64{}
		home.Do(t, func() {
			for _, c := range []struct{ at, name, want string }{
				{homeEdge4, "a.example", "a.example at "},
				{homeEdge6, "b.example", "b.example at "},
				{homeEdge4, "c.example", ""},
				{vip4, "a.example", "a.example at " + vip4},
				{vip4, "c.example", "c.example at " + vip4},
				{vip4, "b.example", ""},
				{vip6, "b.example", "b.example at " + vip6},
				{vip6, "a.example", ""},
			} {
				got, err := askTLS(t, netip.AddrPortFrom(netip.MustParseAddr(c.at), 443), c.name)
				want := c.want + " was asked for " + c.name
				if c.want == "" {
					want = ""
				} else {
					counted[c.want]++
				}
				if got != want || (err != nil) != (want == "") {
					t.Errorf("%s at %s: %q, %v; want %q", c.name, c.at, got, err, want)
				}
			}
		})
		for _, addr := range []string{homeEdge4, homeEdge6, vip4, vip6} {
			c := clientAt(t, home, netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String())
			c.Write([]byte("who"))
			if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a datagram to %s: %v, want refused", addr, err)
			}
		}
		got, labels := map[string]uint64{}, map[string]bool{}
		dropped := map[netip.Addr]uint64{}
		for _, s := range r.Stats() {
			label := s.String() + " " + s.Name
			if labels[label] {
				t.Errorf("two have the label %s", label)
			}
			labels[label] = true
			if s.Protocol == edge.UDP {
				dropped[s.Listen.Addr] = s.Accepted
			} else if s.Name != "" {
				got[s.Name] = s.Accepted
			}
		}
		if !maps.Equal(got, counted) {
			t.Errorf("counted %v, want %v", got, counted)
		}
		if want := map[netip.Addr]uint64{{}: 2, netip.MustParseAddr(vip4): 1, netip.MustParseAddr(vip6): 1}; !maps.Equal(dropped, want) {
			t.Errorf("datagrams by door: %v, want %v", dropped, want)
		}
	})
}

func TestNetnsNeighboursAreTransparent(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Addr(t, nil, "eth1", vip4+"/32")
		netnstest.Addr(t, nil, "eth1", vip6+"/128")
		netnstest.Mirror(t, site.Pod, 8080)
		deliver(t)
		// While its link-local address is new, the edge cannot ask in the name of
		// somebody else who its neighbours are.
		if _, err := netnstest.LookIn(t, nil, "tcp", "["+podAddr6+"]:8080"); err != nil {
			t.Fatal(err)
		}
		r := newRelay(t, Options{})
		var wanted []edge.Frontend
		for addr, backend := range map[string]string{"": podAddr4 + ":8080", vip4: podAddr4 + ":8080", vip6: "[" + podAddr6 + "]:8080"} {
			for _, f := range transparentAt("eth1", 80, backend) {
				if addr != "" {
					f.Listen.Addr = netip.MustParseAddr(addr)
				} else {
					f.Transparent = false
				}
				f.Name += addr
				wanted = append(wanted, f)
			}
		}
		for _, d := range r.Apply(wanted) {
			if d.Error != "" {
				t.Fatal(d.Error)
			}
		}
		sees(t, site.Home, vip4+":80", "10.11.12.7")
		sees(t, site.Home, "["+vip6+"]:80", "fd12::7")
		sees(t, site.Home, homeEdge4+":80", "10.0.0.1")
		sees(t, site.Home, "["+homeEdge6+"]:80", "10.0.0.1")
	})
}
