package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

const soon = 10 * time.Second

// lan is a switch in a namespace of its own, with the edge (the namespace of the
// test) and hosts on it.
//
//	edge  eth1 10.11.12.32, fd12::32
//	hosts eth0 10.11.12.7, fd12::7, and so on
type lan struct {
	t  *testing.T
	sw *netnstest.NS
	n  int
}

func newLAN(t *testing.T) *lan {
	l := &lan{t: t, sw: netnstest.New(t)}
	run1(t, l.sw, "ip link add br0 type bridge forward_delay 0 mcast_snooping 0")
	run1(t, l.sw, "ip link set br0 up")
	l.plug(nil, "eth1", "10.11.12.32/24", "fd12::32/64")
	return l
}

// plug connects an interface of a namespace with the switch, and gives it
// addresses.
func (l *lan) plug(ns *netnstest.NS, device string, addrs ...string) {
	l.t.Helper()
	l.n++
	port := fmt.Sprintf("p%d", l.n)
	netnstest.Cable(l.t, ns, device, l.sw, port)
	run1(l.t, l.sw, "ip link set "+port+" master br0")
	for _, a := range addrs {
		netnstest.Addr(l.t, ns, device, a)
	}
}

// host is one more on the switch.
func (l *lan) host(number int) *netnstest.NS {
	l.t.Helper()
	ns := netnstest.New(l.t)
	l.plug(ns, "eth0", fmt.Sprintf("10.11.12.%d/24", number), fmt.Sprintf("fd12::%d/64", number))
	return ns
}

// run1 runs one command in a namespace.
func run1(t *testing.T, ns *netnstest.NS, line string) string {
	t.Helper()
	var out []byte
	ns.Do(t, func() {
		var err error
		args := strings.Fields(line)
		if out, err = exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	})
	return string(out)
}

func mac(t *testing.T, ns *netnstest.NS, device string) string {
	t.Helper()
	var text string
	ns.Do(t, func() {
		l, err := netlink.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		text = l.Attrs().HardwareAddr.String()
	})
	return text
}

// neighbour is the hardware address that a host knows somebody by.
func neighbour(t *testing.T, ns *netnstest.NS, addr string) string {
	t.Helper()
	fields := strings.Fields(run1(t, ns, "ip neigh show "+addr+" dev eth0"))
	for i, f := range fields {
		if f == "lladdr" {
			return fields[i+1]
		}
	}
	return ""
}

// keep runs a Keeper until the test ends, or stop.
func keep(t *testing.T, options Options) (k *Keeper, stop func()) {
	t.Helper()
	k = New(slog.New(slog.NewTextHandler(t.Output(), nil)), options)
	if err := k.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return k, stop
}

func addresses(device string, addrs ...string) []edge.Address {
	var all []edge.Address
	for _, a := range addrs {
		all = append(all, edge.Address{Addr: netip.MustParseAddr(a), Device: device, Why: "service/shop/web"})
	}
	return all
}

func door(protocol edge.Protocol, device, addr string, port uint16) edge.Door {
	return edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Addr: netip.MustParseAddr(addr), Port: port}}
}

func apply(t *testing.T, k *Keeper, addrs []edge.Address, doors ...edge.Door) {
	t.Helper()
	if err := k.Apply(t.Context(), addrs, doors); err != nil {
		t.Fatal(err)
	}
}

// await waits for changes until an address is in a state.
func await(t *testing.T, k *Keeper, addr, what string, is func(edge.AddressState) bool) {
	t.Helper()
	deadline := time.After(soon)
	for !is(k.Snapshot()[netip.MustParseAddr(addr)]) {
		select {
		case <-k.Changed():
		case <-deadline:
			t.Fatalf("%s is not %s: %+v; problems %v", addr, what, k.Snapshot()[netip.MustParseAddr(addr)], k.Problems())
		}
	}
}

func awaitReady(t *testing.T, k *Keeper, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		await(t, k, a, "ready", func(s edge.AddressState) bool { return s.Ready })
	}
}

// quiet has all addresses announced for the last time.
func quiet(k *Keeper) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.entries {
		k.unqueue(e)
		e.sent = len(announceGaps) + 1
	}
}

// has says whether the edge has an address on an interface.
func has(t *testing.T, device, addr string) bool {
	t.Helper()
	return strings.Contains(run1(t, nil, "ip -o address show dev "+device), " "+addr+"/")
}

// listenAt listens in a namespace and says its name to who connects, then what
// that one says.
func listenAt(t *testing.T, ns *netnstest.NS, addr string) {
	t.Helper()
	ns.Do(t, func() {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 100)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						_, _ = c.Write(b[:n])
					}
				}()
			}
		}()
	})
}

// listenUDP says back what is said.
func listenUDP(t *testing.T, ns *netnstest.NS, addr string) {
	t.Helper()
	ns.Do(t, func() {
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 60000)
			for {
				n, from, err := u.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				} else if err == nil {
					_, _ = u.WriteTo(b[:n], from)
				}
			}
		}()
	})
}

// dial connects from a namespace and has an echo of some bytes.
func dial(t *testing.T, ns *netnstest.NS, network, addr string) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(t, func() { c, err = net.DialTimeout(network, addr, 3*time.Second) })
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, echo(c, 5)
}

func echo(c net.Conn, n int) error {
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write(make([]byte, n)); err != nil {
		return err
	}
	for got := 0; got < n; {
		some, err := c.Read(make([]byte, 60000))
		if err != nil {
			return err
		}
		got += some
	}
	return nil
}

func refusedBy(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

const (
	vip4, vip6 = "10.11.12.70", "fd12::70"
)

func TestNetnsAddressIsReachable(t *testing.T) {
	for _, arp := range []struct{ ignore, announce string }{{"0", "0"}, {"1", "2"}, {"2", "1"}} {
		t.Run("arp_ignore="+arp.ignore, func(t *testing.T) {
			netnstest.Run(t, func() {
				l := newLAN(t)
				client := l.host(7)
				netnstest.Setting(t, nil, "net/ipv4/conf/all/arp_ignore", arp.ignore)
				netnstest.Setting(t, nil, "net/ipv4/conf/all/arp_announce", arp.announce)
				listenAt(t, nil, ":80")
				listenAt(t, nil, ":22")
				k, _ := keep(t, Options{})
				apply(t, k, addresses("eth1", vip4, vip6), door(edge.TCP, "eth1", vip4, 80), door(edge.TCP, "eth1", vip6, 80))
				awaitReady(t, k, vip4, vip6)
				for _, a := range []string{vip4, vip6} {
					if _, err := dial(t, client, "tcp", net.JoinHostPort(a, "80")); err != nil {
						t.Errorf("the door at %s: %v", a, err)
					}
					if got := neighbour(t, client, a); got != mac(t, nil, "eth1") {
						t.Errorf("the client knows %s as %q", a, got)
					}
					if _, err := dial(t, client, "tcp", net.JoinHostPort(a, "22")); !refusedBy(err) {
						t.Errorf("what else listens at %s: %v", a, err)
					}
				}
				// Never the source of what this machine itself begins.
				run1(t, nil, "ip route add 192.0.2.0/24 dev eth1")
				run1(t, nil, "ip -6 route add 2001:db8::/64 dev eth1")
				for to, own := range map[string]string{"10.11.12.9": "10.11.12.32", "192.0.2.7": "10.11.12.32", "fd12::71": "fd12::32", "2001:db8::1": "fd12::32"} {
					if got := run1(t, nil, "ip route get "+to); !strings.Contains(got, "src "+own+" ") {
						t.Errorf("to %s: %s", to, got)
					}
				}
			})
		})
	}
}

func TestNetnsWall(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		other := netnstest.New(t) // comes in by another interface
		netnstest.Cable(t, nil, "eth0", other, "eth0")
		netnstest.Addr(t, nil, "eth0", "10.0.0.1/24")
		netnstest.Addr(t, nil, "eth0", "fd00::1/64")
		netnstest.Addr(t, other, "eth0", "10.0.0.2/24")
		netnstest.Addr(t, other, "eth0", "fd00::2/64")
		netnstest.Route(t, other, "default", "10.0.0.1")
		netnstest.Route(t, other, "::/0", "fd00::1")
		for _, a := range []string{":80", ":22"} {
			listenAt(t, nil, a)
		}
		k, _ := keep(t, Options{LookAgain: 50 * time.Millisecond})
		for _, vip := range []string{vip4, vip6} {
			at := func(port string) string { return net.JoinHostPort(vip, port) }
			addrs := addresses("eth1", vip)
			web, dns := door(edge.TCP, "eth1", vip, 80), door(edge.UDP, "eth1", vip, 53)
			// These do not name the address.
			own := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 22}}
			apply(t, k, addrs, web, dns, own)
			awaitReady(t, k, vip)
			listenUDP(t, nil, at("22")) // at all addresses it would answer from another
			listenUDP(t, nil, at("53"))
			open, err := dial(t, client, "tcp", at("80"))
			if err != nil {
				t.Fatalf("%s: an open door: %v", vip, err)
			}
			session, err := dial(t, client, "udp", at("53"))
			if err != nil {
				t.Errorf("%s: an open door of UDP: %v", vip, err)
			}
			if err := echo(session, 5000); err != nil {
				t.Errorf("%s: in fragments: %v", vip, err)
			}
			expect := func(name string, ns *netnstest.NS, network, to string, want func(error) bool) {
				t.Helper()
				if _, err := dial(t, ns, network, to); !want(err) {
					t.Errorf("%s: %s: %v", vip, name, err)
				}
			}
			works := func(err error) bool { return err == nil }
			expect("a listener at all addresses", client, "tcp", at("22"), refusedBy)
			expect("a listener at all addresses, UDP", client, "udp", at("22"), refusedBy)
			expect("the door, at another interface", other, "tcp", at("80"), refusedBy)
			expect("the door, at another interface, UDP", other, "udp", at("53"), refusedBy)
			expect("this machine itself", nil, "tcp", at("22"), works)
			expect("the listener at its own address", client, "tcp", "10.11.12.32:22", works)

			// By way of another interface, and by all of them.
			apply(t, k, addrs, web, door(edge.TCP, "eth0", vip, 80), door(edge.TCP, "", vip, 22), door(edge.UDP, "", vip, 22), dns)
			expect("a door at another interface", other, "tcp", at("80"), works)
			expect("a door at every interface", other, "tcp", at("22"), works)
			expect("a door at every interface, UDP", client, "udp", at("22"), works)

			apply(t, k, addrs)
			expect("a door that has closed", client, "tcp", at("80"), refusedBy)
			if err := echo(open, 5); err != nil {
				t.Errorf("%s: what had begun at a door that has closed: %v", vip, err)
			}
			if err := echo(session, 5); err != nil {
				t.Errorf("%s: a session at a door that has closed: %v", vip, err)
			}
			k.mu.Lock()
			for o := range k.lingering {
				k.lingering[o] = time.Now()
			}
			k.mu.Unlock()
			k.poke()
			netnstest.Eventually(t, soon, "the session is over", func() bool { return echo(session, 5) != nil })
			ping(t, client, vip)
		}
	})
}

// ping has an echo by ICMP.
func ping(t *testing.T, ns *netnstest.NS, addr string) {
	t.Helper()
	network, kind := "ip4:icmp", []byte{8, 0, 0, 0, 0, 1, 0, 1}
	if strings.Contains(addr, ":") {
		network, kind = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 1, 0, 1}
	} else {
		kind[2], kind[3] = 0xf7, 0xfd
	}
	ns.Do(t, func() {
		c, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Write(kind); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		for {
			// Which leaves out the header of IPv4, that Read does not.
			if _, _, err := c.(*net.IPConn).ReadFrom(b); err != nil {
				t.Fatalf("%s answers no ping: %v", addr, err)
			}
			if b[0] == 0 || b[0] == 129 {
				return
			}
		}
	})
}

// Somebody else has the address, gives it up, and claims it again.
func TestNetnsConflict(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		owner, client := l.host(8), l.host(7)
		netnstest.Addr(t, owner, "eth0", vip4+"/24")
		netnstest.Addr(t, owner, "eth0", vip6+"/64")
		listenAt(t, owner, ":80")
		listenAt(t, nil, ":80")
		k, _ := keep(t, Options{AskAgain: time.Second})
		apply(t, k, addresses("eth1", vip4, vip6), door(edge.TCP, "eth1", vip4, 80))
		for _, a := range []string{vip4, vip6} {
			await(t, k, a, "in conflict", func(s edge.AddressState) bool {
				return s.Conflict == mac(t, owner, "eth0") && !s.Ready && s.Error != ""
			})
			if has(t, "eth1", a) {
				t.Errorf("%s is here all the same", a)
			}
		}
		if _, err := dial(t, client, "tcp", vip4+":80"); err != nil {
			t.Error(err)
		}
		if got := neighbour(t, client, vip4); got != mac(t, owner, "eth0") {
			t.Errorf("the client knows it as %q: asking has told it so", got)
		}
		netnstest.AddrDel(t, owner, "eth0", vip4+"/24")
		netnstest.AddrDel(t, owner, "eth0", vip6+"/64")
		awaitReady(t, k, vip4, vip6)
		if s := k.Snapshot()[netip.MustParseAddr(vip4)]; s != (edge.AddressState{Ready: true}) {
			t.Errorf("it is %+v", s)
		}
		// The client, who knows somebody else by it, is told.
		netnstest.Eventually(t, soon, "the client knows the new one", func() bool { return neighbour(t, client, vip4) == mac(t, nil, "eth1") })

		quiet(k)
		// Whoever takes it nevertheless is noted, and does not get through with it.
		owner.Do(t, func() {
			s, err := openSocket(index(t, "eth0"), 0x0806)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			nd, err := openSocket(index(t, "eth0"), 0x86dd)
			if err != nil {
				t.Fatal(err)
			}
			defer nd.close()
			from, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range announcement(netip.MustParseAddr(vip4), from.HardwareAddr) {
				if err := s.send(f); err != nil {
					t.Fatal(err)
				}
			}
			if err := nd.send(announcement(netip.MustParseAddr(vip6), from.HardwareAddr)[0]); err != nil {
				t.Fatal(err)
			}
		})
		for _, a := range []string{vip4, vip6} {
			await(t, k, a, "claimed", func(s edge.AddressState) bool { return s.Ready && s.Conflict == mac(t, owner, "eth0") })
		}
		netnstest.Eventually(t, soon, "the client knows the right one", func() bool { return neighbour(t, client, vip4) == mac(t, nil, "eth1") })
	})
}

func index(t *testing.T, device string) int {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// Two that ask at the same time hear each other, and neither gets it.
func TestNetnsBothAsk(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		rival := l.host(8)
		k, _ := keep(t, Options{AskAgain: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rival.Do(t, func() {
			for addr, protocol := range map[string]uint16{vip4: 0x0806, vip6: 0x86dd} {
				s, err := openSocket(index(t, "eth0"), protocol)
				if err != nil {
					t.Fatal(err)
				}
				from, err := net.InterfaceByName("eth0")
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					defer s.close()
					for ctx.Err() == nil {
						_ = s.send(probe(netip.MustParseAddr(addr), from.HardwareAddr))
						time.Sleep(20 * time.Millisecond)
					}
				}()
			}
		})
		apply(t, k, addresses("eth1", vip4, vip6))
		for _, a := range []string{vip4, vip6} {
			await(t, k, a, "in conflict", func(s edge.AddressState) bool { return s.Conflict == mac(t, rival, "eth0") && !s.Ready })
		}
	})
}

// A MACVLAN and its parent are two zones in one network. Whatever the kernel is
// set to, neighbours never learn that an address is at the other one.
func TestNetnsAnswersAtItsInterfaceOnly(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		run1(t, nil, "ip link add mv0 link eth1 type macvlan mode bridge")
		netnstest.LinkUp(t, nil, "mv0")
		netnstest.Addr(t, nil, "mv0", "10.11.12.33/24")
		for _, name := range []string{"all", "eth1", "mv0"} {
			netnstest.Setting(t, nil, "net/ipv4/conf/"+name+"/arp_ignore", "0")
			netnstest.Setting(t, nil, "net/ipv4/conf/"+name+"/arp_announce", "0")
			netnstest.Setting(t, nil, "net/ipv4/conf/"+name+"/rp_filter", "0")
		}
		listenAt(t, nil, ":80")
		k, _ := keep(t, Options{})
		// Of all who say that they have the address: a neighbour that is asked by two
		// learns from one of them.
		said := make(chan claim, 1000)
		client.Do(t, func() {
			s, err := openSocket(index(t, "eth0"), 0x0806)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.close)
			go s.receive(func(c claim) { said <- c })
		})
		const vip = "10.11.12.71"
		apply(t, k, addresses("mv0", vip), door(edge.TCP, "mv0", vip, 80))
		awaitReady(t, k, vip)
		right, parent := mac(t, nil, "mv0"), mac(t, nil, "eth1")
		for range 20 {
			run1(t, client, "ip neigh flush all")
			if _, err := dial(t, client, "tcp", vip+":80"); err != nil {
				t.Fatal(err)
			}
			if got := neighbour(t, client, vip); got != right {
				t.Fatalf("the client knows it as %q, want %q", got, right)
			}
			// The way back is by the parent, which has to ask for the client.
			run1(t, nil, "ip neigh flush all")
			ping(t, client, vip)
		}
		heard := 0
		for len(said) > 0 {
			c := <-said
			if c.addr.String() != vip || c.probe {
				continue
			}
			heard++
			if hardware(c.mac) == parent {
				t.Fatalf("the parent says that it has %s", vip)
			}
		}
		if heard == 0 {
			t.Error("nobody says that it has it")
		}
	})
}
