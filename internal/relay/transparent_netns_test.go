package relay

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

const (
	nodeAddr4          = "10.0.0.101"
	podAddr4, podAddr6 = "10.244.1.5", "fd44::5"
)

func shell(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
}

// deliver is what the daemon sets up: see docs/client-address.md.
func deliver(t *testing.T) {
	t.Helper()
	shell(t,
		`nft 'table inet gatehouse { chain transparent { type filter hook prerouting priority mangle;
			meta l4proto { tcp, udp, icmp, icmpv6 } socket transparent 1 socket wildcard 0 meta mark set meta mark or 0x1000; }; }'`,
		"ip rule add fwmark 0x1000/0x1000 lookup 4096 priority 4096", "ip route add local default dev lo table 4096",
		"ip -6 rule add fwmark 0x1000/0x1000 lookup 4096 priority 4096", "ip -6 route add local default dev lo table 4096",
	)
}

// transparentAt is a frontend of each protocol on an interface.
func transparentAt(device string, port uint16, backend string) []edge.Frontend {
	var frontends []edge.Frontend
	for _, protocol := range []edge.Protocol{edge.TCP, edge.UDP} {
		frontends = append(frontends, edge.Frontend{
			Door: edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Port: port}}, Name: fmt.Sprint(protocol, port),
			Terms:    edge.Terms{Transparent: true, ConnectTimeout: 2 * time.Second},
			Backends: []edge.Backend{upAt(netip.MustParseAddrPort(backend))},
		})
	}
	return frontends
}

func sees(t *testing.T, ns *netnstest.NS, addr, want string) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if got, err := netnstest.LookIn(t, ns, network, addr); got != want || err != nil {
			t.Errorf("%s to %s: the backend sees %q, %v; want %s", network, addr, got, err, want)
		}
	}
}

func TestNetnsTransparent(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		home, node, pod := site.Home, site.Node, site.Pod
		netnstest.Mirror(t, node, 8080)
		netnstest.Mirror(t, pod, 8080)
		netnstest.Mirror(t, nil, 8080)
		r := newRelay(t, Options{})
		var frontends []edge.Frontend
		for port, backend := range map[uint16]string{
			80: podAddr4 + ":8080", 81: "[" + podAddr6 + "]:8080", 82: nodeAddr4 + ":8080",
			83: "127.0.0.1:8080", 84: "10.0.0.1:8080", 85: podAddr4 + ":9", // nothing listens
		} {
			frontends = append(frontends, transparentAt("", port, backend)...)
		}
		plain := transparentAt("", 90, podAddr4+":8080")
		for i := range plain {
			plain[i].Transparent = false
		}
		for _, d := range r.Apply(append(frontends, plain...)) {
			if d.Error != "" {
				t.Fatalf("%+v", d)
			}
		}
		// Without the rules nothing comes back, and nobody is lied to.
		if seen, err := netnstest.LookIn(t, home, "udp", homeEdge4+":80"); err == nil {
			t.Errorf("without rules there is an answer: the backend sees %s", seen)
		}
		deliver(t)

		sees(t, home, homeEdge4+":80", "10.11.12.7")
		sees(t, home, "["+homeEdge6+"]:81", "fd12::7")
		sees(t, home, homeEdge4+":82", "10.11.12.7")
		sees(t, home, homeEdge4+":90", "10.0.0.1")

		// Where it cannot be, the backend sees what it does of other frontends.
		sees(t, home, "["+homeEdge6+"]:80", "10.0.0.1")
		sees(t, home, homeEdge4+":81", "fd00::1")
		sees(t, home, homeEdge4+":83", "127.0.0.1")
		sees(t, home, homeEdge4+":84", "10.0.0.1")
		sees(t, nil, "127.0.0.1:80", "10.0.0.1")
		sees(t, nil, homeEdge4+":80", "10.0.0.1")
		sees(t, nil, "["+homeEdge6+"]:81", "fd00::1")
		sees(t, node, "10.0.0.1:80", "10.0.0.1") // a neighbour of the pod's
		sees(t, node, "10.0.0.1:82", "10.0.0.1") // the backend itself
		sees(t, pod, "10.0.0.1:80", "10.0.0.1")

		// What routers say of a connection, by ICMP, comes back as well.
		for range 2 { // the first datagram of a session only finds out
			_, _ = netnstest.LookIn(t, home, "udp", homeEdge4+":85")
		}
		for _, s := range r.Stats() {
			if s.Name == "UDP85" && s.Backends[0].Failures[Refused] == 0 {
				t.Errorf("a refused datagram went unnoticed: %+v", s)
			}
		}

		// Strict and loose reverse path filters are in nobody's way.
		for _, filter := range []string{"0", "1", "2"} {
			for _, device := range []string{"all", "eth0", "eth1", "lo"} {
				netnstest.Setting(t, nil, "net/ipv4/conf/"+device+"/rp_filter", filter)
			}
			sees(t, home, homeEdge4+":80", "10.11.12.7")
			sees(t, home, homeEdge4+":90", "10.0.0.1")
		}

		// src_valid_mark is: host.Undeliverable knows.
		netnstest.Setting(t, nil, "net/ipv4/conf/all/src_valid_mark", "1")
		if seen, err := netnstest.LookIn(t, home, "tcp", homeEdge4+":80"); err == nil {
			t.Errorf("with src_valid_mark it works, too: the backend sees %s", seen)
		}
		netnstest.Setting(t, nil, "net/ipv4/conf/all/src_valid_mark", "0")
		sees(t, home, homeEdge4+":80", "10.11.12.7")
	})
}

// A proxy of somebody else that listens by TPROXY on every address does not get
// what is forwarded to its port on other machines.
func TestNetnsTransparentListenersOfOthersStayOut(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 8080)
		deliver(t)
		for _, network := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(unix.AF_INET, network, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 8080}); err != nil {
				t.Fatal(err)
			}
			if network == unix.SOCK_STREAM {
				if err := unix.Listen(fd, 10); err != nil {
					t.Fatal(err)
				}
			}
		}
		sees(t, site.Home, podAddr4+":8080", "10.11.12.7") // routed
	})
}

func TestSeesClient(t *testing.T) {
	v := &vicinity{
		own: map[netip.Addr]bool{},
		networks: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.11.12.0/24"), netip.MustParsePrefix("fd00::/64"),
		},
		speaker: map[netip.Addr]netip.Addr{netip.MustParseAddr("10.244.1.5"): netip.MustParseAddr("10.0.0.1")},
	}
	for _, own := range []string{"127.0.0.1", "10.0.0.1", "10.11.12.32", "fd00::1"} {
		v.own[netip.MustParseAddr(own)] = true
	}
	for _, c := range []struct {
		client, backend string
		want            bool
	}{
		{"203.0.113.7", "10.0.0.101", true},
		{"10.11.12.7", "10.244.1.5", true},
		{"10.11.12.7", "192.0.2.1", true}, // reached by a way that is not known
		{"2001:db8::7", "fd00::101", true},
		{"2001:db8::7", "10.0.0.101", false},
		{"203.0.113.7", "fd00::101", false},
		{"127.0.0.1", "10.0.0.101", false},
		{"169.254.7.7", "10.0.0.101", false},
		{"0.0.0.0", "10.0.0.101", false},
		{"::", "fd00::101", false},
		{"224.0.0.1", "10.0.0.101", false},
		{"fe80::7", "fd00::101", false},
		{"10.11.12.32", "10.0.0.101", false},
		{"10.244.1.5", "10.244.1.5", false},
		{"203.0.113.7", "127.0.0.1", false},
		{"203.0.113.7", "10.0.0.1", false},
		{"10.0.0.102", "10.0.0.101", false},
		{"10.0.0.102", "10.244.1.5", false},
		{"10.11.12.8", "10.11.12.7", false},
		{"10.11.12.8", "10.11.13.7", true},
	} {
		if got := v.seesClient(netip.MustParseAddr(c.client), netip.MustParseAddr(c.backend)); got != c.want {
			t.Errorf("seesClient(%s, %s) = %t, want %t", c.client, c.backend, got, c.want)
		}
	}
	if (*vicinity)(nil).seesClient(netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("10.0.0.101")) {
		t.Error("a frontend that is not transparent is")
	}
}

func TestBindTransparentNeedsTheCapability(t *testing.T) {
	for _, client := range []string{"192.0.2.7", "2001:db8::7"} {
		addr := netip.MustParseAddr(client)
		fd, errno := streamSocket(addr)
		if errno != 0 {
			t.Fatal(errno)
		}
		defer closeFD(fd)
		bound := make(chan unix.Errno)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends without its rights
			none := [2]unix.CapUserData{}
			if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
				t.Error(err)
			}
			bound <- bindTransparent(fd, addr)
		}()
		if errno := <-bound; errno != unix.EPERM {
			t.Errorf("bindTransparent(%s) = %v, want EPERM", client, errno)
		}
	}
}

// It is asked for each connection of a transparent frontend; of others it is a
// comparison with nil.
func BenchmarkSeesClient(b *testing.B) {
	v := look().of(nil)
	client, backend := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("192.0.2.1")
	for b.Loop() {
		v.seesClient(client, backend)
	}
}
