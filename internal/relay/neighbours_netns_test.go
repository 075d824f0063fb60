package relay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
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

// A socket for another process: "TCP eth1 10.11.12.70:80", and whether it would
// share its port.
const holdPort = "GATEHOUSE_TEST_HOLD_PORT"

func TestMain(m *testing.M) {
	if text := os.Getenv(holdPort); text != "" {
		err := hold(strings.Fields(text))
		fmt.Println(err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
		}
		return
	}
	os.Exit(m.Run())
}

func hold(text []string) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		_ = c.Control(func(fd uintptr) {
			if text[1] != "any" {
				_ = unix.BindToDevice(int(fd), text[1])
			}
			if len(text) > 3 {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		})
		return nil
	}}
	network := strings.ToLower(text[0])
	if strings.HasPrefix(text[2], "0.0.0.0") {
		network += "4"
	}
	var err error
	if text[0] == "UDP" {
		_, err = config.ListenPacket(context.Background(), network, text[2])
	} else {
		_, err = config.Listen(context.Background(), network, text[2])
	}
	return err
}

// another has a process hold a socket until it is let go, and returns what kept
// it from that.
func another(t *testing.T, socket string) (err string, letGo func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holdPort+"="+socket)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	letGo = func() { in.Close(); _ = cmd.Wait() }
	t.Cleanup(letGo)
	line, _ := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line), letGo
}

// Another program that has the port is noticed, though a neighbour is there and
// the program would share it.
func TestNetnsNeighboursDoNotShareWithOthers(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		for _, share := range []string{"", " share"} {
			for _, c := range []struct{ first, other, then string }{
				{"", "eth1 " + vip4 + ":80", vip4}, {"", "any " + vip4 + ":80", vip4}, {vip4, "eth1 " + far4 + ":80", ""},
				{vip4, "any " + far4 + ":80", ""}, {"", "eth1 [" + vip6 + "]:80", vip6}, {vip6, "eth1 0.0.0.0:80", ""}, {far4, "any [" + vip6 + "]:80", ""},
			} {
				t.Run(fmt.Sprint(protocol, share, " ", c), func(t *testing.T) {
					netnstest.Run(t, func() {
						home, _ := newSite(t)
						addVIPs(t)
						r := newRelay(t, Options{})
						all := neighboursAt(t, protocol, append(vips, "")...)
						// The other one is first: then it has a share, and not the only one.
						said, letGo := another(t, string(protocol)+" "+c.other+share)
						if said != "<nil>" {
							t.Fatal(said)
						}
						applied := r.Apply([]edge.Frontend{all[c.first]})
						if applied[0].Error != "" && c.first != "" {
							t.Fatal(applied[0].Error)
						}
						wanted := []edge.Frontend{all[c.first], all[c.then]}
						doors := r.Apply(wanted)
						if c.first != "" && doors[0].Error != "" {
							t.Error(doors[0].Error)
						}
						if !strings.Contains(doors[1].Error, "address already in use: port 80 is held by relay.test (process ") {
							t.Errorf("beside %s: %+v", c.other, doors[1])
						}
						letGo()
						for _, d := range r.Apply(wanted) {
							if d.Error != "" {
								t.Errorf("after it has gone: %s", d.Error)
							}
						}
						if got := whoAnswers(t, home, protocol, vip4); (c.first == vip4 || c.then == vip4) && got != vip4 {
							t.Errorf("%s: %q", vip4, got)
						}
					})
				})
			}
		}
	}
}

// Whoever comes later does not get what is the doors' own: what comes to their
// interface.
func TestNetnsNeighboursKeepWhatTheyHave(t *testing.T) {
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		for _, order := range [][]string{{"", vip4}, {vip4, ""}} {
			t.Run(fmt.Sprint(protocol, order), func(t *testing.T) {
				netnstest.Run(t, func() {
					home, _ := newSite(t)
					addVIPs(t)
					r := newRelay(t, Options{})
					all := neighboursAt(t, protocol, "", vip4)
					applyAll(t, r, all, order)
					everywhere := []string{"any :80", "any " + vip4 + ":80", "eth1 :80", "eth1 " + vip4 + ":80", "eth1 [" + vip6 + "]:80"}
					for _, at := range everywhere {
						if said, letGo := another(t, string(protocol)+" "+at); !strings.Contains(said, "address already in use") {
							t.Errorf("%s: %q", at, said)
							letGo()
						}
					}
					// A second gatehouse has no neighbours there.
					second := newRelay(t, Options{})
					for _, d := range second.Apply([]edge.Frontend{all[vip4], all[""]}) {
						if !strings.Contains(d.Error, "address already in use") {
							t.Errorf("a second one: %+v", d)
						}
					}
					// Nor does who would share: of TCP. Sockets of UDP doors share anyway, and
					// what is for other interfaces is not theirs.
					if protocol == edge.UDP {
						everywhere = everywhere[:1]
					}
					for _, at := range everywhere {
						if said, _ := another(t, string(protocol)+" "+at+" share"); (said == "<nil>") != (protocol == edge.UDP) {
							t.Errorf("%s, shared: %q", at, said)
						}
					}
					for range 10 {
						for addr, want := range map[string]string{homeEdge4: "own", vip4: vip4, vip6: "own"} {
							if got := whoAnswers(t, home, protocol, addr); got != want {
								t.Errorf("%s: %q", addr, got)
							}
						}
					}
				})
			})
		}
	}
}
