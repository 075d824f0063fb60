package relay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// To the site of the other tests these add what is behind the edge:
//
//	edge  10.0.0.1, fd00::1 eth0 --- router 10.0.0.254, fd00::fe
//	                                 router 10.1.0.254, fd01::fe --- node 10.1.0.101, fd01::101
const (
	node4, node6 = "10.1.0.101", "fd01::101"
)

func newNode(t *testing.T) (router, node *netnstest.NS) {
	t.Helper()
	router, node = netnstest.New(t), netnstest.New(t)
	netnstest.Cable(t, nil, "eth0", router, "toedge")
	netnstest.Cable(t, router, "tonode", node, "eth0")
	for prefix, at := range map[string]struct {
		ns   *netnstest.NS
		name string
	}{
		"10.0.0.1/24": {nil, "eth0"}, "fd00::1/64": {nil, "eth0"},
		"10.0.0.254/24": {router, "toedge"}, "fd00::fe/64": {router, "toedge"},
		"10.1.0.254/24": {router, "tonode"}, "fd01::fe/64": {router, "tonode"},
		node4 + "/24": {node, "eth0"}, node6 + "/64": {node, "eth0"},
	} {
		netnstest.Addr(t, at.ns, at.name, prefix)
	}
	netnstest.Route(t, nil, "10.1.0.0/24", "10.0.0.254")
	netnstest.Route(t, nil, "fd01::/64", "fd00::fe")
	netnstest.Route(t, node, "default", "10.1.0.254")
	netnstest.Route(t, node, "fd00::/64", "fd01::fe")
	setSysctl(t, router, "net/ipv4/ip_forward", "1")
	setSysctl(t, router, "net/ipv6/conf/all/forwarding", "1")
	return router, node
}

func setSysctl(t *testing.T, ns *netnstest.NS, name, value string) {
	t.Helper()
	ns.Do(t, func() {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	})
}

func setMTU(t *testing.T, ns *netnstest.NS, name string, mtu uint32) {
	t.Helper()
	ns.Do(t, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		req, _ := unix.NewIfreq(name)
		req.SetUint32(mtu)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req); err != nil {
			t.Fatal(err)
		}
	})
}

func nodeServer(t *testing.T, node *netnstest.NS, at string, handle func(netip.AddrPort, []byte) []byte) (addr netip.AddrPort) {
	t.Helper()
	node.Do(t, func() { addr = serveUDP(t, netip.MustParseAddrPort(at), handle) })
	return addr
}

func clientAt(t *testing.T, ns *netnstest.NS, addr string) (c *net.UDPConn) {
	t.Helper()
	ns.Do(t, func() { c = dialUDP(t, netip.MustParseAddrPort(addr)) })
	return c
}

func udpAt(device, addr string, port uint16, backends ...edge.Backend) edge.Frontend {
	f := udpLoopback(backends...)
	f.Listen = edge.Listen{Device: device, Port: port}
	if addr != "" {
		f.Listen.Addr = netip.MustParseAddr(addr)
	}
	return f
}

// wantSilence expects that nothing comes back, or a refusal.
func wantSilence(t *testing.T, what string, c *net.UDPConn) {
	t.Helper()
	c.Write([]byte("hello"))
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 100)); err == nil {
		t.Errorf("%s: got an answer of %d bytes", what, n)
	}
}

// Clients connect their sockets: what comes from another address than the one
// they spoke to they do not hear.
func TestNetnsUDPAnswersComeFromWhereTheClientSpokeTo(t *testing.T) {
	netnstest.Run(t, func() {
		home, internet := newSite(t)
		for _, second := range []string{"10.11.12.33/24", "fd12::33/64", "fe80::33/64"} {
			netnstest.Addr(t, nil, "eth1", second)
		}
		netnstest.Addr(t, home, "eth0", "fe80::7/64")
		backend := upAt(udpServer(t, echoUDP))
		r := newRelay(t, Options{})
		everywhere := []string{
			homeEdge4 + ":53", "10.11.12.33:53", "[" + homeEdge6 + "]:53", "[fd12::33]:53", "[fe80::33%eth0]:53",
			internetEdge4 + ":53", "[" + internetEdge6 + "]:53",
		}
		for _, f := range []edge.Frontend{udpAt("", "", 53, backend), udpAt("eth1", "", 53, backend)} {
			openDoor(t, r, f)
			for _, addr := range everywhere {
				c := clientAt(t, home, addr)
				for range 3 {
					if got := exchange(t, c, addr); got != addr {
						t.Errorf("%s at %s: %q", f.Listen, addr, got)
					}
				}
				if strings.HasPrefix(addr, "[fe80") {
					continue // another link
				}
				inside := f.Listen.Device == ""
				if c := clientAt(t, internet, addr); inside {
					exchange(t, c, "in")
				} else {
					wantSilence(t, "the internet at "+addr, c)
				}
			}
		}
		for _, addr := range []string{homeEdge4, "fd12::33", "fe80::33"} {
			device := ""
			if addr == "fe80::33" {
				device = "eth1"
			}
			f := udpAt(device, addr, 53, backend)
			openDoor(t, r, f)
			for _, at := range everywhere {
				c := clientAt(t, home, at)
				if strings.HasPrefix(strings.Trim(at, "["), addr) && strings.ContainsAny(strings.Trim(at, "[")[len(addr):][:1], ":]%") {
					exchange(t, c, at)
				} else {
					wantSilence(t, f.Listen.String()+" at "+at, c)
				}
			}
		}
	})
}

func TestNetnsUDPClosedZoneIsNotAnswered(t *testing.T) {
	netnstest.Run(t, func() {
		home, internet := newSite(t)
		r := newRelay(t, Options{})
		inside, outside := udpAt("eth1", "", 53, upAt(named(t, "private"))), udpAt("veth0", "", 53, upAt(named(t, "public")))
		for _, d := range r.Apply([]edge.Frontend{inside, outside}) {
			if d.Error != "" {
				t.Fatal(d.Error)
			}
		}
		for _, addr := range []string{homeEdge4 + ":53", "[" + internetEdge6 + "]:53"} {
			if got := exchange(t, clientAt(t, home, addr), "who"); got != "private" {
				t.Errorf("home at %s: %q", addr, got)
			}
			if got := exchange(t, clientAt(t, internet, addr), "who"); got != "public" {
				t.Errorf("the internet at %s: %q", addr, got)
			}
		}
	})
}

// What was sent to everybody has no answer that could come from there.
func TestNetnsUDPMulticastIsNotForwarded(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		openDoor(t, r, udpAt("eth1", "", 53, upAt(named(t, "a"))))
		c := clientAt(t, home, "[ff02::1%eth0]:53")
		wantSilence(t, "multicast", c)
		// Every socket of the door has got one.
		if s := onlyDoor(t, r); s.PacketsDropped == 0 || s.Accepted != 0 {
			t.Errorf("Stats: dropped %d, accepted %d; want it dropped", s.PacketsDropped, s.Accepted)
		}
	})
}

func TestNetnsUDPRefusalReachesTheClient(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		_, node := newNode(t)
		gone4 := netip.AddrPortFrom(netip.MustParseAddr(node4), 5300)
		gone6 := netip.AddrPortFrom(netip.MustParseAddr(node6), 5300)
		r := newRelay(t, Options{})
		for _, device := range []string{"eth1", ""} {
			for _, backends := range [][]edge.Backend{nil, {upAt(gone4)}, {upAt(gone6)}} {
				openDoor(t, r, udpAt(device, "", 53, backends...))
				for _, addr := range []string{homeEdge4 + ":53", "[" + homeEdge6 + "]:53", "[" + internetEdge6 + "]:53"} {
					c := clientAt(t, home, addr)
					c.Write([]byte("hello"))
					if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("on %q with %d backends, at %s: %v, want refused", device, len(backends), addr, err)
					}
				}
			}
		}
		// The next datagram finds the backend that is there by now.
		openDoor(t, r, udpAt("eth1", "", 53, upAt(gone4)))
		c := clientAt(t, home, homeEdge4+":53")
		c.Write([]byte("hello"))
		c.Read(make([]byte, 10))
		nodeServer(t, node, gone4.String(), echoUDP)
		if got := exchange(t, c, "back"); got != "back" {
			t.Errorf("got %q", got)
		}
	})
}

// Refusals are not sent faster than clients of any number can make us.
func TestNetnsUDPRefusalsAreLimited(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		openDoor(t, r, udpAt("eth1", "", 53))
		const sent = 2000
		home.Do(t, func() {
			raw, err := net.ListenPacket("ip4:icmp", "0.0.0.0")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			began := time.Now()
			for range sent {
				c.WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(homeEdge4+":53"))
			}
			netnstest.Eventually(t, patience, "all dropped", func() bool { return onlyDoor(t, r).PacketsDropped == sent })
			took := time.Since(began)
			told := 0
			for raw.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); ; told++ {
				if _, _, err := raw.ReadFrom(make([]byte, 1500)); err != nil {
					break
				}
			}
			if most := int(icmpBurst + took.Seconds()*icmpRate + 1); told == 0 || told > most {
				t.Errorf("%d datagrams in %v were answered by %d refusals, want at most %d", sent, took, told, most)
			}
		})
	})
}

// A client that wants to know learns how large a datagram may be, and the
// others get theirs through in fragments.
func TestNetnsUDPPathMTUReachesTheClient(t *testing.T) {
	for _, c := range []struct{ name, at, backend string }{
		{"IPv4", homeEdge4 + ":53", node4},
		{"IPv6", "[" + homeEdge6 + "]:53", node6},
		{"IPv4 to IPv6", homeEdge4 + ":53", node6},
		{"IPv6 to IPv4", "[" + homeEdge6 + "]:53", node4},
	} {
		for _, where := range []string{"behind a router", "on the edge"} {
			t.Run(c.name+" "+where, func(t *testing.T) {
				netnstest.Run(t, func() {
					home, _ := newSite(t)
					router, node := newNode(t)
					const mtu = 1400
					if where == "on the edge" {
						setMTU(t, nil, "eth0", mtu)
						setMTU(t, router, "toedge", mtu)
					} else {
						setMTU(t, router, "tonode", mtu)
						setMTU(t, node, "eth0", mtu)
					}
					backend := nodeServer(t, node, netip.AddrPortFrom(netip.MustParseAddr(c.backend), 5300).String(),
						func(netip.AddrPort, []byte) []byte { return []byte("ok") })
					r := newRelay(t, Options{})
					openDoor(t, r, udpAt("eth1", "", 53, upAt(backend)))
					headers := map[bool]int{true: 28, false: 48}
					largest := mtu - headers[backend.Addr().Is4()]
					own := headers[strings.HasPrefix(c.at, "10.")]

					asks := clientAt(t, home, c.at)
					setDiscover(t, asks, own == 28, unix.IP_PMTUDISC_DO)
					asks.SetDeadline(time.Now().Add(patience))
					asks.Write(make([]byte, largest+1))
					netnstest.Eventually(t, patience, "the client learns of it", func() bool {
						_, err := asks.Write(make([]byte, largest+1))
						return errors.Is(err, syscall.EMSGSIZE)
					})
					drain(asks)
					if got := exchange(t, asks, strings.Repeat("x", largest)); got != "ok" {
						t.Errorf("the largest datagram that fits: %q", got)
					}

					careless := clientAt(t, home, c.at)
					setDiscover(t, careless, own == 28, unix.IP_PMTUDISC_DONT)
					for range 3 {
						if got := exchange(t, careless, strings.Repeat("x", 1450)); got != "ok" {
							t.Errorf("a larger one: %q", got)
						}
					}
				})
			})
		}
	}
}

func setDiscover(t *testing.T, c *net.UDPConn, is4 bool, mode int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if is4 {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, mode)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, mode)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// drain reads what waits, errors included.
func drain(c *net.UDPConn) {
	for {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 2000)); errors.Is(err, os.ErrDeadlineExceeded) {
			c.SetReadDeadline(time.Now().Add(patience))
			return
		}
	}
}

// A node that has vanished answers nothing at all: that there is no way to it
// is found out by this machine. Its sessions move then.
func TestNetnsUDPASessionLeavesAHostThatVanished(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		_, node := newNode(t)
		alive := upAt(nodeServer(t, node, node4+":5300", func(netip.AddrPort, []byte) []byte { return []byte("alive") }))
		vanished := upAt(netip.MustParseAddrPort("10.0.0.77:5300")) // nobody answers for it
		vanished.Weight = 1_000_000
		nowhere := upAt(netip.MustParseAddrPort("10.99.0.1:5300")) // no route
		nowhere.Weight = 1_000_000
		setSysctl(t, nil, "net/ipv4/neigh/eth0/mcast_solicit", "1")
		setSysctl(t, nil, "net/ipv4/neigh/eth0/retrans_time_ms", "100")
		setSysctl(t, home, "net/ipv4/icmp_ratelimit", "0")
		failed := make(chan netip.AddrPort, 1000)
		r := newRelay(t, Options{OnDialError: func(_ edge.Protocol, addr netip.AddrPort, _ error) { failed <- addr }})
		openDoor(t, r, udpAt("eth1", "", 53, vanished, alive, nowhere))
		c := clientAt(t, home, homeEdge4+":53")
		netnstest.Eventually(t, patience, "an answer from the host that is there", func() bool {
			c.Write([]byte("who"))
			c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			buffer := make([]byte, 10)
			n, err := c.Read(buffer)
			return err == nil && string(buffer[:n]) == "alive"
		})
		seen := map[netip.AddrPort]bool{}
		for len(failed) > 0 {
			seen[<-failed] = true
		}
		if !seen[vanished.Addr] {
			t.Errorf("reported: %v, want the host that vanished", seen)
		}
		s := onlyDoor(t, r)
		for _, b := range s.Backends {
			if b.Addr == vanished.Addr && b.Failures[Unreachable] == 0 || b.Addr == nowhere.Addr && seen[nowhere.Addr] && b.Failures[Unreachable] == 0 {
				t.Errorf("%v: failures %v, want it unreachable", b.Addr, b.Failures)
			}
		}
	})
}

// The mark of congestion that a router has made reaches who can slow down.
func TestNetnsUDPMarksPass(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		_, node := newNode(t)
		const mark = 0b101110_01 // expedited forwarding; able to note congestion
		for _, c := range []struct{ at, backend string }{
			{homeEdge4 + ":53", node4},
			{"[" + homeEdge6 + "]:53", node6},
			{homeEdge4 + ":53", node6},
			{"[" + homeEdge6 + "]:53", node4},
		} {
			var server *net.UDPConn
			node.Do(t, func() {
				var err error
				if server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.backend), 0))); err != nil {
					t.Fatal(err)
				}
			})
			t.Cleanup(func() { server.Close() })
			r := newRelay(t, Options{})
			openDoor(t, r, udpAt("eth1", "", 53, upAt(server.LocalAddr().(*net.UDPAddr).AddrPort())))
			client := clientAt(t, home, c.at)
			for _, end := range []*net.UDPConn{server, client} {
				setMarks(t, end, mark)
			}
			client.Write([]byte("hello"))
			from, got := readMarks(t, server)
			if got != mark {
				t.Errorf("%s to %s: the backend sees %08b, want %08b", c.at, c.backend, got, mark)
			}
			server.WriteToUDPAddrPort([]byte("hello"), from)
			if _, got := readMarks(t, client); got != mark {
				t.Errorf("%s from %s: the client sees %08b, want %08b", c.at, c.backend, got, mark)
			}
			r.Apply(nil)
		}
	})
}

func setMarks(t *testing.T, c *net.UDPConn, mark int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for _, option := range [][3]int{
			{unix.SOL_IP, unix.IP_TOS, mark},
			{unix.SOL_IPV6, unix.IPV6_TCLASS, mark},
			{unix.SOL_IP, unix.IP_RECVTOS, 1},
			{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1},
		} {
			unix.SetsockoptInt(int(fd), option[0], option[1], option[2])
		}
	})
}

func readMarks(t *testing.T, c *net.UDPConn) (netip.AddrPort, byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	oob := make([]byte, 100)
	_, n, _, from, err := c.ReadMsgUDPAddrPort(make([]byte, 100), oob)
	if err != nil {
		t.Fatal(err)
	}
	var d datagram
	d.readControl(oob[:n])
	return from, d.marks
}

// With an interface that goes and comes back the door does too, and clients
// get new sessions.
func TestNetnsUDPInterfaceGoesAndComesBack(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		f := udpAt("eth1", "", 53, upAt(udpServer(t, echoUDP)))
		openDoor(t, r, f)
		exchange(t, clientAt(t, home, homeEdge4+":53"), "hello")
		netnstest.LinkDel(t, nil, "eth1")
		if doors := r.Apply([]edge.Frontend{f}); doors[0].Error != "listen on @eth1:53: there is no interface eth1" {
			t.Errorf("without its interface: %q", doors[0].Error)
		}
		cableHome(t, home)
		openDoor(t, r, f)
		exchange(t, clientAt(t, home, homeEdge4+":53"), "hello")
		if s := onlyDoor(t, r); s.Cut != 1 || s.Active != 1 {
			t.Errorf("Stats: cut %d, active %d; want one of each", s.Cut, s.Active)
		}
	})
}
