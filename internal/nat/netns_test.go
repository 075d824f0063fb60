package nat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/nft"
)

// The backends of these tests are ports of the site's pod.
const (
	pod4  = "10.244.1.5"
	pod6  = "fd44::5"
	edge4 = "10.11.12.32"
	edge6 = "fd12::32"
)

func at(port int) string  { return fmt.Sprintf("%s:%d", pod4, port) }
func at6(port int) string { return fmt.Sprintf("[%s]:%d", pod6, port) }

// newSite is a site whose pod listens on ports and tells who asks and where.
func newSite(t *testing.T, ports ...int) netnstest.Site {
	t.Helper()
	site := netnstest.NewSite(t)
	for _, port := range ports {
		tell(t, site.Pod, fmt.Sprintf(":%d", port))
	}
	return site
}

// tell answers who comes, by TCP and UDP, with the client's address and the
// port that it has come to. TCP clients then hear what they say.
func tell(t *testing.T, ns *netnstest.NS, addr string) {
	t.Helper()
	ns.Do(t, func() {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		_, port, _ := net.SplitHostPort(addr)
		line := func(client net.Addr) string {
			return netip.MustParseAddrPort(client.String()).Addr().Unmap().String() + " " + port + "\n"
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.WriteString(c, line(c.RemoteAddr()))
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			b := make([]byte, 2000)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(line(from)), from)
			}
		}()
	})
}

// answer is what a backend has told a client.
type answer struct {
	client string // as the backend saw it
	port   string // of the backend
}

// talk is one connection, or exchange of datagrams. It stays open until the test
// ends, or close.
type talk struct {
	net.Conn
	answer
}

const soon = 5 * time.Second

// dial makes a connection from an address (empty: any) of a namespace.
func dial(t *testing.T, ns *netnstest.NS, network, from, to string) (talk, error) {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(t, func() { c, err = dialHere(t.Context(), network, from, to) })
	if err != nil {
		return talk{}, err
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return talk{}, err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("who am I")); err != nil {
			return talk{}, err
		}
	}
	text, err := bufio.NewReader(c).ReadString('\n')
	client, port, _ := strings.Cut(strings.TrimSpace(text), " ")
	return talk{c, answer{client, port}}, err
}

// udpPort is the source port that was used last. Of those that the kernel picks
// one may be that of an exchange before, which conntrack still sends where that
// went.
var udpPort atomic.Uint32

func init() { udpPort.Store(10_000) }

func dialHere(ctx context.Context, network, from, to string) (net.Conn, error) {
	d := net.Dialer{Timeout: soon}
	ip, err := netip.ParseAddr(from)
	if network == "tcp" && err == nil {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
	}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: ip.AsSlice(), Port: int(udpPort.Add(1))}
	}
	return d.DialContext(ctx, network, to)
}

// ask is a dial that must work.
func ask(t *testing.T, ns *netnstest.NS, network, from, to string) answer {
	t.Helper()
	c, err := dial(t, ns, network, from, to)
	if err != nil {
		t.Fatalf("%s to %s: %v", network, to, err)
	}
	c.Close()
	return c.answer
}

// lives says that a connection still carries bytes.
func lives(t *testing.T, c talk) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(soon))
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatalf("read: %v", err)
	}
}

func refused(t *testing.T, ns *netnstest.NS, network, to string) {
	t.Helper()
	if c, err := dial(t, ns, network, "", to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s to %s: %v, %v; want it refused", network, to, c.answer, err)
	}
}

var networks = map[edge.Protocol]string{edge.TCP: "tcp", edge.UDP: "udp"}

// Each backend gets its share by weight; all see the client's own address.
func TestNetnsSpreadsByWeight(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001, 8002, 8003)
		var s State
		for protocol := range networks {
			s.Frontends = append(s.Frontends,
				frontend(protocol, 80, at(8001)+"*1", at(8002)+"*2", at(8003)+"*3", at6(8001)+"*10", at6(8003)+"*20"))
		}
		apply(t, New(), s, true)
		for _, network := range networks {
			const n = 600
			got := map[string]float64{}
			for range n {
				a := ask(t, site.Home, network, "", edge4+":80")
				got[a.port]++
				if a.client != "10.11.12.7" {
					t.Fatalf("the backend sees %s", a.client)
				}
			}
			chi := 0.0
			for port, share := range map[string]float64{"8001": 1. / 6, "8002": 2. / 6, "8003": 3. / 6} {
				chi += (got[port] - share*n) * (got[port] - share*n) / (share * n)
			}
			if chi > 18.4 { // 1 in 10,000 for 2 degrees of freedom
				t.Errorf("%s: %v of %d, chi-square %.1f", network, got, n, chi)
			}
			got = map[string]float64{}
			for range 60 {
				a := ask(t, site.Home, network, "", "["+edge6+"]:80")
				got[a.port]++
				if a.client != "fd12::7" {
					t.Fatalf("the backend sees %s", a.client)
				}
			}
			if got["8001"] == 0 || got["8002"] != 0 || got["8003"] < got["8001"] {
				t.Errorf("%s to IPv6: %v of 60", network, got)
			}
		}
	})
}

// The same client gets the same backend, from another edge with the same
// backends too; and of IPv6, all of a /64 is one client.
func TestNetnsSourceKeepsItsBackend(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001, 8002, 8003)
		var s State
		for protocol := range networks {
			s.Frontends = append(s.Frontends, with(frontend(protocol, 80, at(8001), at(8002), at(8003), at6(8001), at6(8002), at6(8003)),
				func(f *edge.Frontend) { f.Balance = edge.BalanceSource }))
		}
		a := New()
		apply(t, a, s, true)
		homes := map[string]string{}
		look := func() map[string]string {
			got := map[string]string{}
			for client, to := range homes {
				for protocol, network := range networks {
					for range 3 {
						port := ask(t, site.Home, network, client, to).port
						key := client + " " + string(protocol)
						if got[key] == "" {
							got[key] = port
						} else if got[key] != port {
							t.Errorf("%s is sent to %s and to %s", key, got[key], port)
						}
					}
				}
			}
			return got
		}
		for i := range 20 {
			addr := fmt.Sprintf("10.11.12.%d", 100+i)
			netnstest.Addr(t, site.Home, "eth0", addr+"/24")
			homes[addr] = edge4 + ":80"
		}
		for i := range 3 {
			addr := fmt.Sprintf("fd12::%d", 100+i)
			netnstest.Addr(t, site.Home, "eth0", addr+"/64")
			homes[addr] = "[" + edge6 + "]:80"
		}
		first := look()
		ports := map[string]bool{}
		for client, port := range first {
			if strings.HasPrefix(client, "fd12::") {
				if port != first["fd12::100 TCP"] {
					t.Errorf("%s is sent to %s, its neighbour to %s", client, port, first["fd12::100 TCP"])
				}
				continue
			}
			ports[port] = true
		}
		if len(ports) != 3 {
			t.Errorf("20 clients get %d backends of 3", len(ports))
		}
		if _, err := a.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(s.Frontends[0].Backends)
		apply(t, New(), s, true)
		if again := look(); !maps.Equal(again, first) {
			t.Errorf("another edge sends clients to\n%v\nthe first to\n%v", again, first)
		}
	})
}

// A client keeps its backend when others come, and gets another when its own
// goes.
func TestNetnsAffinity(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001, 8002, 8003, 8004)
		behind := func(ports ...int) (s State) {
			for protocol := range networks {
				f := frontend(protocol, 80)
				for _, port := range ports {
					f.Backends = append(f.Backends, frontend(protocol, 80, at(port), at6(port)).Backends...)
				}
				f.Balance, f.AffinityTimeout = edge.BalanceSource, 1500*time.Millisecond
				if protocol == edge.TCP {
					f.AffinityTimeout = time.Hour
				}
				s.Frontends = append(s.Frontends, f)
			}
			return s
		}
		var clients [][2]string
		for i := range 12 {
			addr4, addr6 := fmt.Sprintf("10.11.12.%d", 100+i), fmt.Sprintf("fd13:%x::7", 100+i)
			netnstest.Addr(t, site.Home, "eth0", addr4+"/24")
			netnstest.Addr(t, site.Home, "lo", addr6+"/128")
			netnstest.Route(t, nil, addr6+"/128", "fd12::7")
			clients = append(clients, [2]string{addr4, edge4 + ":80"}, [2]string{addr6, "[" + edge6 + "]:80"})
		}
		look := func(network string) map[string]string {
			got := map[string]string{}
			for _, c := range clients {
				got[c[0]] = ask(t, site.Home, network, c[0], c[1]).port
			}
			return got
		}
		a := New()
		apply(t, a, behind(8001), true)
		look("tcp")
		look("udp")
		apply(t, a, behind(8001, 8002, 8003, 8004), true)
		for client, port := range look("tcp") {
			if port != "8001" {
				t.Errorf("%s has moved to %s", client, port)
			}
		}
		// Its time is short.
		netnstest.Eventually(t, 10*time.Second, "UDP clients are spread", func() bool {
			time.Sleep(1600 * time.Millisecond)
			return len(slices.Compact(slices.Sorted(maps.Values(look("udp"))))) > 2
		})
		apply(t, a, behind(8002, 8003, 8004), true)
		elsewhere := look("tcp")
		if got := slices.Compact(slices.Sorted(maps.Values(elsewhere))); slices.Contains(got, "8001") || len(got) < 2 {
			t.Errorf("without their backend clients go to %v", got)
		}
		// It does not draw its clients back.
		apply(t, a, behind(8001, 8002, 8003, 8004), true)
		if got := look("tcp"); !maps.Equal(got, elsewhere) {
			t.Errorf("once it is back they go to\n%v\nbefore to\n%v", got, elsewhere)
		}
		// A process that was killed in between has forgotten nobody.
		nftCommand(t, `add element inet gatehouse tcp4-affinity { "eth1" . 80 . 10.11.12.99 timeout 1h : 10.244.1.5 . 9 }`,
			`; add element inet gatehouse tcp4-affinity { "eth1" . 81 . 10.11.12.100 timeout 1h : 10.244.1.5 . 8001 }`)
		half := fmt.Sprintf(`"eth1" . 80 . 0x%x`, netip.MustParseAddr("fd13:64::7").As16())[:len(`"eth1" . 80 . 0x`)+16]
		nftCommand(t, "delete element inet gatehouse tcp6-affinity-port { "+half+" }")
		apply(t, New(), behind(8001, 8002, 8003, 8004), false)
		if text := nftCommand(t, "list map inet gatehouse tcp4-affinity"); strings.Contains(text, ". 9,") || strings.Contains(text, ". 9 }") || strings.Contains(text, ". 81 .") {
			t.Errorf("clients of nobody are remembered:\n%s", text)
		}
		if text := nftCommand(t, "list map inet gatehouse tcp6-affinity"); strings.Contains(text, half) {
			t.Errorf("half a backend is remembered:\n%s", text)
		}
	})
}

func TestNetnsSourceRanges(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001)
		netnstest.Addr(t, site.Home, "eth0", "10.11.12.8/24")
		netnstest.Addr(t, site.Home, "eth0", "fd12::8/64")
		ranges := func(prefixes ...string) State {
			f := frontend(edge.TCP, 80, at(8001), at6(8001))
			f.SourceRanges = []netip.Prefix{}
			for _, p := range prefixes {
				f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(p))
			}
			return State{Frontends: []edge.Frontend{f}}
		}
		may := func(want string) {
			t.Helper()
			var got []string
			for _, c := range [][2]string{{"10.11.12.7", edge4 + ":80"}, {"10.11.12.8", edge4 + ":80"}, {"fd12::7", "[" + edge6 + "]:80"}, {"fd12::8", "[" + edge6 + "]:80"}} {
				if _, err := dial(t, site.Home, "tcp", c[0], c[1]); err == nil {
					got = append(got, c[0])
				} else if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: %v", c[0], err)
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%v may connect, want %s", got, want)
			}
		}
		a := New()
		apply(t, a, ranges("10.11.12.0/24", "10.11.12.7/32", "fd12::8/128"), true)
		may("10.11.12.7 10.11.12.8 fd12::8")
		apply(t, a, ranges("10.11.12.7/32", "fd12::/64"), true)
		may("10.11.12.7 fd12::7 fd12::8")
		apply(t, a, ranges("10.11.12.8/31", "::/0"), true)
		may("10.11.12.8 fd12::7 fd12::8")
		apply(t, New(), ranges("10.11.12.8/31", "::/0"), false)
		apply(t, a, ranges(), true)
		may("")
		s := ranges()
		s.Frontends[0].SourceRanges = nil
		apply(t, a, s, true)
		may("10.11.12.7 10.11.12.8 fd12::7 fd12::8")
	})
}

// Without a backend a door refuses, though something else listens there, and the
// door is in one zone alone.
func TestNetnsRefuses(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001)
		for _, port := range []string{":80", ":81"} {
			tell(t, nil, port)
		}
		var s State
		for protocol := range networks {
			s.Frontends = append(s.Frontends, frontend(protocol, 80), frontend(protocol, 82, at(8001), at6(8001)), frontend(protocol, 83, at(9), at6(9)),
				frontend(protocol, 84, "10.0.0.1:80", "[fd00::1]:80"))
		}
		apply(t, New(), s, true)
		for _, network := range networks {
			for _, addr := range []string{edge4, "[" + edge6 + "]"} {
				refused(t, site.Home, network, addr+":80")
				refused(t, site.Home, network, addr+":83") // by the pod
				if a := ask(t, site.Home, network, "", addr+":81"); a.port != "81" {
					t.Errorf("what is no door of ours went to %v", a)
				}
				// A backend on this machine is one, though there is a door at its port.
				if network == "tcp" { // UDP would answer from another address
					if a := ask(t, site.Home, network, "", addr+":84"); a.port != "80" {
						t.Errorf("it went to %v", a)
					}
				}
				// From the other side it is no door, at whatever address.
				refused(t, site.Node, network, addr+":82")
				if network == "tcp" { // likewise
					if a := ask(t, site.Node, network, "", addr+":80"); a.port != "80" {
						t.Errorf("from the other side it went to %v", a)
					}
				}
				if a := ask(t, site.Home, network, "", addr+":82"); a.port != "8001" {
					t.Errorf("it went to %v", a)
				}
			}
			// All of this machine's addresses are the frontend's, as with a socket
			// that is bound to the interface.
			if a := ask(t, site.Home, network, "", "10.0.0.1:82"); a.port != "8001" {
				t.Errorf("at the other side's address it went to %v", a)
			}
		}
		// What is for everybody in the network is not for the frontend either.
		var all net.PacketConn
		var err error
		site.Home.Do(t, func() { all, err = net.ListenPacket("udp4", "10.11.12.7:0") })
		if err != nil {
			t.Fatal(err)
		}
		defer all.Close()
		_ = all.SetDeadline(time.Now().Add(soon))
		if _, err := all.WriteTo([]byte("who is there"), &net.UDPAddr{IP: net.IPv4(10, 11, 12, 255), Port: 80}); err != nil {
			t.Fatal(err)
		}
		if _, from, err := all.ReadFrom(make([]byte, 100)); err != nil {
			t.Errorf("to the network's broadcast address: %v, %v", from, err)
		}
		// What goes through this machine to somebody else is not for the frontend.
		refused(t, site.Home, "tcp", pod4+":82")
	})
}

// Where answers would not come back, and nowhere else, the backend sees this
// machine.
func TestNetnsMasquerades(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001)
		inside := func(f *edge.Frontend) { f.Listen.Device = "eth0" }
		all := func(f *edge.Frontend) { f.Masquerade = true }
		s := State{Hairpins: [][2]string{{"eth0", "eth0"}}}
		for protocol := range networks {
			f := frontend(protocol, 80, at(8001), at6(8001))
			g := frontend(protocol, 81, at(8001), at6(8001))
			s.Frontends = append(s.Frontends, f, with(f, inside), with(g, all))
		}
		a := New()
		apply(t, a, s, true)
		for _, network := range networks {
			for _, c := range []struct {
				ns       *netnstest.NS
				to, want string
			}{
				{site.Home, edge4 + ":80", "10.11.12.7"},
				{site.Home, "[" + edge6 + "]:80", "fd12::7"},
				{site.Node, "10.0.0.1:80", "10.0.0.1"},
				{site.Node, "[fd00::1]:80", "fd00::1"},
				{site.Pod, "10.0.0.1:80", "10.0.0.1"},
				{site.Pod, "[fd00::1]:80", "fd00::1"},
				{site.Home, edge4 + ":81", "10.0.0.1"},
				{site.Home, "[" + edge6 + "]:81", "fd00::1"},
			} {
				if got := ask(t, c.ns, network, "", c.to); got.client != c.want {
					t.Errorf("%s to %s: the backend sees %s, want %s", network, c.to, got.client, c.want)
				}
			}
		}
		// Not what is no frontend's.
		nftCommand(t, "table inet theirs { chain c { type nat hook prerouting priority dstnat; iifname eth1 tcp dport 90 dnat ip to 10.244.1.5:8001; }; }")
		s.Hairpins = [][2]string{{"eth1", "eth0"}}
		apply(t, a, s, true)
		for port, want := range map[string]string{":80": "10.0.0.1", ":90": "10.11.12.7"} {
			if got := ask(t, site.Home, "tcp", "", edge4+port); got.client != want {
				t.Errorf("at %s the backend sees %s, want %s", port, got.client, want)
			}
		}
	})
}

// Connections outlive their backend's slots, their door and the table.
func TestNetnsEstablishedSurvive(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001, 8002)
		before := State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, at(8001), at6(8001))}}
		after := State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, at(8002), at6(8002))}}
		a := New()
		apply(t, a, before, true)
		var alive []talk
		for _, to := range []string{edge4 + ":80", "[" + edge6 + "]:80"} {
			c, err := dial(t, site.Home, "tcp", "", to)
			if err != nil {
				t.Fatal(err)
			}
			alive = append(alive, c)
		}
		survive := func(what string) {
			t.Helper()
			for _, c := range alive {
				lives(t, c)
			}
			t.Log("alive after", what)
		}
		apply(t, a, after, true)
		survive("the backend has gone")
		if got := ask(t, site.Home, "tcp", "", edge4+":80"); got.port != "8002" {
			t.Errorf("a new connection goes to %v", got)
		}
		apply(t, a, State{Frontends: []edge.Frontend{frontend(edge.TCP, 80)}}, true)
		survive("all backends have gone")
		apply(t, a, State{}, true)
		survive("the door has gone")
		apply(t, a, before, true)
		nftCommand(t, "add chain inet gatehouse mine")
		verify(t, a, true)
		survive("the table was replaced")
		// Without any NAT the kernel does not go on with what it has.
		nftCommand(t, `table inet theirs {
			chain c { type nat hook prerouting priority dstnat; }; chain d { type nat hook postrouting priority srcnat; };
			chain e { type filter hook forward priority filter; ct state established accept; }; }`)
		if removed, err := a.Remove(t.Context()); !removed || err != nil {
			t.Fatalf("Remove = %t, %v", removed, err)
		}
		survive("the table has gone")
		nftCommand(t, "delete table inet theirs")
		if removed, err := a.Remove(t.Context()); removed || err != nil {
			t.Fatalf("Remove again = %t, %v", removed, err)
		}
		if rules := nftCommand(t, "list ruleset"); strings.TrimSpace(rules) != "" {
			t.Errorf("left behind:\n%s", rules)
		}
	})
}

// A connection of the relay, which the kernel takes up in the middle once it has
// forgotten it, is not sent to a backend.
func TestNetnsConnectionsOfTheRelayAreItsOwn(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001)
		tell(t, nil, ":80")
		relayed, err := dial(t, site.Home, "tcp", "", edge4+":80")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []State{
			{Frontends: []edge.Frontend{frontend(edge.TCP, 80, at(8001))}},
			{Frontends: []edge.Frontend{frontend(edge.TCP, 80)}},
		} {
			if _, err := New().Apply(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
				t.Fatal(err)
			}
			lives(t, relayed)
		}
	})
}

// What others have beside it.
const theirs = `
table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.10 . tcp . 80 : goto service }
	}
	chain service {
		meta l4proto tcp dnat to 10.244.1.9:80
	}
	chain services {
		type nat hook prerouting priority dstnat
		ip daddr . meta l4proto . th dport vmap @service-ips
	}
	chain masquerading {
		type nat hook postrouting priority srcnat
		mark & 0x4000 != 0 masquerade
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop
		oifname "eth0" accept
		iifname "eth0" accept
	}
}
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10
		ct state established accept
	}
}
table inet gatehouse-transparent {
	chain transparent {
		type filter hook prerouting priority mangle
		meta mark 0x1000 accept
	}
}
table ip gatehouse {
	set frontends {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}
	chain dstnat {
		accept
	}
}
`

// A second process finds what the first has made and changes nothing; what
// others have beside it is not touched.
func TestNetnsAdopt(t *testing.T) {
	netnstest.Run(t, func() {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(theirs); err != nil {
			t.Fatal(err)
		}
		nftCommand(t, "-f", f.Name())
		others := nftCommand(t, "-s", "list", "ruleset")
		table := func() string { return nftCommand(t, "-s", "list", "table", "inet", "gatehouse") }

		a := New()
		apply(t, a, State{}, false)
		if doors, backends, err := New().Adopt(t.Context()); doors != nil || len(backends) != 0 || err != nil {
			t.Errorf("of no table it adopts %v, %v, %v", doors, backends, err)
		}
		apply(t, a, mix(), true)
		made := table()
		apply(t, a, mix(), false)
		verify(t, a, false)
		b := New()
		doors, backends, err := b.Adopt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantDoors := []edge.Door{}
		for _, f := range mix().Frontends {
			wantDoors = append(wantDoors, f.Door)
			var want []netip.AddrPort
			for _, b := range f.Backends {
				want = append(want, b.Addr)
			}
			slices.SortFunc(want, netip.AddrPort.Compare)
			if got := backends[f.Door]; !slices.Equal(got, want) {
				t.Errorf("adopted of %v: %v, want %v", f.Door, got, want)
			}
		}
		slices.SortFunc(wantDoors, compareDoors)
		if !slices.Equal(doors, wantDoors) {
			t.Errorf("adopted %v, want %v", doors, wantDoors)
		}
		apply(t, b, mix(), false)
		verify(t, b, false)
		apply(t, New(), mix(), false)
		if got := table(); got != made {
			t.Errorf("the table has become\n%s", got)
		}
		// Some of it is another's now.
		less := mix()
		less.Frontends = less.Frontends[:2]
		less.Frontends[0].Backends = less.Frontends[0].Backends[:1]
		apply(t, New(), less, true)
		apply(t, New(), less, false)
		// The first process does not know, and finds out.
		apply(t, a, with2(mix(), 8080), true)
		verify(t, a, true)
		apply(t, New(), with2(mix(), 8080), false)
		apply(t, a, mix(), true)
		if !strings.Contains(table(), "chain tcp4-random-7 ") {
			t.Error("chains are removed when something else changes")
		}
		verify(t, a, false)
		if got := table(); sorted(got) != sorted(made) {
			t.Errorf("once cleared up the table is\n%s", got)
		}
		nftCommand(t, "table inet gatehouse-firewall { chain forward { type filter hook forward priority filter; policy drop; }; }")
		obstacles, err := Obstacles(t.Context())
		if err != nil || !slices.Equal(obstacles, []string{"chain FORWARD of table ip filter"}) {
			t.Errorf("Obstacles = %v, %v", obstacles, err)
		}
		nftCommand(t, "delete table inet gatehouse-firewall")
		apply(t, a, State{}, true)
		apply(t, New(), State{}, false)
		if removed, err := New().Remove(t.Context()); !removed || err != nil {
			t.Errorf("Remove = %t, %v", removed, err)
		}
		if got := nftCommand(t, "-s", "list", "ruleset"); got != others {
			t.Errorf("of the others is left\n%swant\n%s", got, others)
		}
		// A table that was made by another version.
		nftCommand(t, "table inet gatehouse { chain transparent { type filter hook prerouting priority mangle; accept; }; }")
		apply(t, New(), mix(), true)
		if got := table(); got != made {
			t.Errorf("an older table has become\n%swant\n%s", got, made)
		}
	})
}

// with2 is with one door more.
func with2(s State, port uint16) State {
	s.Frontends = append(s.Frontends, frontend(edge.TCP, port, "10.0.0.101:8080*4", "10.0.0.102:8080*3"))
	return s
}

// Whatever somebody else does to the table is undone.
func TestNetnsMends(t *testing.T) {
	netnstest.Run(t, func() {
		a := New()
		apply(t, a, mix(), true)
		table := func() string { return nftCommand(t, "-s", "list", "ruleset") }
		sound := table()
		for _, damage := range []string{
			"flush ruleset", "delete table inet gatehouse", "flush table inet gatehouse", "add chain inet gatehouse mine",
			"add set inet gatehouse mine { type ipv4_addr; }", "insert rule inet gatehouse dstnat accept", "flush chain inet gatehouse tcp4-random-6",
			"flush map inet gatehouse doors4", "flush map inet gatehouse tcp4-backends", "flush set inet gatehouse frontends",
			"flush set inet gatehouse sources4", "flush set inet gatehouse sources6", "flush set inet gatehouse hairpins", "flush map inet gatehouse remembered",
			`delete element inet gatehouse tcp4-backends { "eth1" . 80 . 5 }`,
			`delete element inet gatehouse tcp4-backends { "eth1" . 80 . 2 }`,
			`add element inet gatehouse tcp4-backends { "eth1" . 80 . 6 : 192.0.2.1 . 80 }`,
			`add element inet gatehouse tcp6-backends { "eth1" . 81 . 0 : 2001:db8::1 . 80 }`,
			`delete element inet gatehouse tcp4-backends { "eth1" . 80 . 1 }; add element inet gatehouse tcp4-backends { "eth1" . 80 . 1 : 192.0.2.1 . 80 }`,
			`delete element inet gatehouse doors4 { "eth1" . tcp . 80 }; add element inet gatehouse doors4 { "eth1" . tcp . 80 : goto tcp4-random-3 }`,
			`add element inet gatehouse doors4 { "eth9" . tcp . 80 : goto tcp4-random-3 }`,
			`add element inet gatehouse doors4 { "eth9" . tcp . 81 : drop }`,
			`add element inet gatehouse doors4 { "eth9" . 1 . 81 : goto tcp4-random-3 }`,
			`add element inet gatehouse sources4 { "eth1" . tcp . 443 . 203.0.113.0/24 }`,
			`add element inet gatehouse sources4 { "eth1" . tcp . 443 . 203.0.113.1-203.0.113.7 }`,
			`add element inet gatehouse sources4 { "eth1" . tcp . 1-65535 . 203.0.113.1 }`,
			`add element inet gatehouse restricted { "eth1" . tcp . 80 }`, `add element inet gatehouse masqueraded { "eth1" . tcp . 80 }`,
			"flush set inet gatehouse addresses4", "flush set inet gatehouse addresses6", "flush map inet gatehouse counting",
			"flush map inet gatehouse address-doors6", "flush map inet gatehouse tcp6-address-backends", "flush set inet gatehouse address-frontends4",
			"flush set inet gatehouse address-sources4", "flush set inet gatehouse address-sources6", "flush map inet gatehouse address-remembered6",
			"flush set inet gatehouse address-restricted6", "flush set inet gatehouse address-masqueraded6", "flush chain inet gatehouse tcp4-address-random-3",
			"add element inet gatehouse addresses4 { 10.11.12.99 }", "add element inet gatehouse addresses6 { fd12::99 }",
			`delete element inet gatehouse tcp4-address-backends { "eth1" . 10.11.12.70 . 80 . 2 }`,
			`add element inet gatehouse tcp4-address-backends { "eth1" . 10.11.12.70 . 81 . 0 : 192.0.2.1 . 80 }`,
			`add element inet gatehouse tcp6-address-backends { 1 . fd12::70 . 81 . 0 : 2001:db8::1 . 80 }`,
			`add element inet gatehouse address-doors4 { "eth9" . 10.11.12.70 . tcp . 80 : goto tcp4-address-random-3 }`,
			`add element inet gatehouse address-masqueraded4 { "eth1" . 10.11.12.70 . tcp . 80 }`,
			`delete element inet gatehouse counting { reply . ipv6 . tcp }; add element inet gatehouse counting { reply . ipv6 . tcp : goto tcp6-to-clients }`,
			`delete element inet gatehouse masqueraded { "eth1" . sctp . 3868 }`, `add element inet gatehouse hairpins { "eth7" . "eth8" }`,
		} {
			nftCommand(t, damage)
			if nftCommand(t, "-s", "list", "ruleset") == sound {
				t.Errorf("%s: does nothing", damage)
			}
			verify(t, a, true)
			if got := table(); sorted(got) != sorted(sound) {
				t.Errorf("after %s it is mended to\n%s", damage, got)
			}
			verify(t, a, false)
		}
	})
}

// sorted has the lines of a listing in an order of their own: nft prints chains
// in the order in which they were made, and elements as they are hashed.
func sorted(listing string) string {
	lines := strings.Split(strings.NewReplacer("elements = { ", "", " }", "", ",", "", "\t", "", " ", "").Replace(listing), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Everything that goes to a backend and back is counted, once.
func TestNetnsCounters(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t, 8001, 8002)
		s := State{Hairpins: [][2]string{{"eth0", "eth0"}}}
		for protocol := range networks {
			s.Frontends = append(s.Frontends, frontend(protocol, 80, at(8001), at6(8001)), frontend(protocol, 81, at(8002)),
				with(frontend(protocol, 80, at(8001)), func(f *edge.Frontend) { f.Listen.Device = "eth0" }))
		}
		a := New()
		if counts, err := a.Counters(t.Context()); counts != nil || err != nil {
			t.Fatalf("without a table: %v, %v", counts, err)
		}
		if err := a.Forget(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		apply(t, a, s, true)
		for range 3 {
			ask(t, site.Home, "udp", "", edge4+":80")
			ask(t, site.Home, "udp", "", "["+edge6+"]:80")
		}
		ask(t, site.Home, "udp", "", edge4+":81")
		ask(t, site.Home, "udp", "", at(8001)) // past the frontends
		ask(t, site.Pod, "udp", "", "10.0.0.1:80")
		c, err := dial(t, site.Home, "tcp", "", edge4+":81")
		if err != nil {
			t.Fatal(err)
		}
		lives(t, c)
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
		// "who am I" is 8 bytes, the answers are "10.11.12.7 8001\n", "fd12::7 8001\n",
		// "10.0.0.1 8001\n": 16, 13 and 14; IPv4 and UDP headers are 28, IPv6's 48.
		want := strings.Join([]string{
			"UDP @eth0:80 10.244.1.5:8001 1 1/36 1/42",
			"UDP @eth1:80 10.244.1.5:8001 3 3/108 3/132",
			"UDP @eth1:80 [fd44::5]:8001 3 3/168 3/183",
			"TCP @eth1:81 10.244.1.5:8002 1",
			"UDP @eth1:81 10.244.1.5:8002 1 1/36 1/44",
		}, "\n")
		if got := text(); got != want {
			t.Errorf("counted\n%s\nwant\n%s", got, want)
		}
		// They outlive the process and a change.
		a = New()
		s.Frontends = s.Frontends[1:]
		apply(t, a, s, true)
		if got := text(); got != want {
			t.Errorf("after a change\n%s\nwant\n%s", got, want)
		}
		if err := a.Forget(t.Context(), func(_ edge.Door, b netip.AddrPort) bool { return b.Port() == 8002 }); err != nil {
			t.Fatal(err)
		}
		if got, want := text(), "TCP @eth1:81 10.244.1.5:8002 1\nUDP @eth1:81 10.244.1.5:8002 1 1/36 1/44"; got != want {
			t.Errorf("after Forget\n%s\nwant\n%s", got, want)
		}
		netnstest.LinkDel(t, nil, "eth1")
		if got := text(); got != "" {
			t.Errorf("of an interface that is gone there is\n%s", got)
		}
	})
}

// SCTP goes where the kernel has it.
func TestNetnsSCTP(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t)
		a := New()
		apply(t, a, State{Frontends: []edge.Frontend{frontend(edge.SCTP, 3868, at(3869)), frontend(edge.SCTP, 3870)}}, true)
		listen, err := -1, error(nil)
		site.Pod.Do(t, func() { listen, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP) })
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
			t.Log("this kernel has no SCTP: the rules were loaded, and no more")
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(listen)
		if err := errors.Join(unix.Bind(listen, &unix.SockaddrInet4{Port: 3869}), unix.Listen(listen, 1)); err != nil {
			t.Fatal(err)
		}
		connect := func(port int) (err error) {
			site.Home.Do(t, func() {
				fd, e := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
				if e != nil {
					t.Fatal(e)
				}
				defer unix.Close(fd)
				err = unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{10, 11, 12, 32}})
			})
			return err
		}
		if err := connect(3868); err != nil {
			t.Errorf("connect: %v", err)
		}
		if err := connect(3870); err == nil {
			t.Error("a door without a backend takes connections")
		}
	})
}

func TestNetnsLacking(t *testing.T) {
	netnstest.Run(t, func() {
		before := nftCommand(t, "list ruleset")
		if lacks, err := Lacking(t.Context()); len(lacks) > 0 || err != nil {
			t.Errorf("Lacking = %v, %v", lacks, err)
		}
		if after := nftCommand(t, "list ruleset"); after != before {
			t.Errorf("it has left\n%s", after)
		}
	})
}

// Without the right to it nothing is found out, and the error says why.
func TestNetnsNotPermitted(t *testing.T) {
	netnstest.Run(t, func() {
		apply(t, New(), mix(), true)
		runtime.LockOSThread() // and never unlocked: the thread is thrown away
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Fatal(err)
		}
		_, _, adopted := New().Adopt(t.Context())
		_, applied := New().Apply(t.Context(), mix())
		_, removed := New().Remove(t.Context())
		_, counted := New().Counters(t.Context())
		_, obstructed := Obstacles(t.Context())
		for what, err := range map[string]error{
			"Adopt": adopted, "Apply": applied, "Remove": removed, "Counters": counted, "Obstacles": obstructed,
		} {
			if !errors.Is(err, nft.ErrNotPermitted) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}
