package dns

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// netnsSite is a server with two zones, and a client in each: home, 10.0.0.2 on
// eth0, and guests, 10.1.0.2 on eth1.
func netnsSite(t *testing.T, change func(*Config)) (s *Server, home, guests *netnstest.NS) {
	t.Helper()
	home, guests = netnstest.New(t), netnstest.New(t)
	netnstest.Cable(t, nil, "eth0", home, "eth0")
	netnstest.Cable(t, nil, "eth1", guests, "eth0")
	for _, a := range []struct {
		ns         *netnstest.NS
		name, addr string
	}{
		{nil, "eth0", "10.0.0.1/24"},
		{nil, "eth0", "10.0.0.51/24"},
		{nil, "eth0", "fd00::1/64"},
		{nil, "eth1", "10.1.0.1/24"},
		{home, "eth0", "10.0.0.2/24"},
		{home, "eth0", "10.7.0.2/24"},
		{home, "eth0", "fd00::2/64"},
		{guests, "eth0", "10.1.0.2/24"},
	} {
		netnstest.Addr(t, a.ns, a.name, a.addr)
	}
	netnstest.Route(t, home, "10.1.0.0/24", "10.0.0.1")
	netnstest.Route(t, guests, "10.0.0.0/24", "10.1.0.1")
	netnstest.Route(t, nil, "10.7.0.0/24", "10.0.0.2")
	c := Config{
		Domain: "home.example", TTL: time.Minute, CacheSize: 1000, Reverse: prefixes("10.0.0.0/24"),
		Zones: []Zone{
			{Name: "home", Devices: []Device{{Name: "eth0", Index: 2}}, Clients: prefixes("10.0.0.0/24", "fd00::/64"), Records: edge.Records{Sets: []edge.RecordSet{
				set("web.home.example", "A", "10.0.0.51"), set("51.0.0.10.in-addr.arpa", "PTR", "web.home.example"),
				set("_http._tcp.web.home.example", "SRV", "0 0 80 web.home.example"),
			}}},
			{Name: "guests", Devices: []Device{{Name: "eth1", Index: 3}}, Clients: prefixes("10.1.0.0/24"), Records: edge.Records{Sets: []edge.RecordSet{
				set("web.home.example", "A", "10.1.0.51"),
			}}},
		},
	}
	if change != nil {
		change(&c)
	}
	s = New(slog.New(slog.DiscardHandler), Options{})
	start(t, s)
	if failures := s.Apply(c); len(failures) > 0 {
		t.Fatal(failures)
	}
	return s, home, guests
}

// run runs a program in a namespace, and returns what it prints.
func run(t *testing.T, ns *netnstest.NS, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	var out []byte
	ns.Do(t, func() {
		out, _ = exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	})
	return strings.TrimSpace(string(out))
}

func dig(t *testing.T, ns *netnstest.NS, args ...string) string {
	t.Helper()
	return run(t, ns, append([]string{"dig", "+time=5", "+tries=1"}, args...)...)
}

// A question is one of the interface that it came in on, whatever addresses it
// has; the answer comes from the address that was asked.
func TestNetnsSplitHorizon(t *testing.T) {
	netnstest.Run(t, func() {
		_, home, guests := netnsSite(t, nil)
		for _, c := range []struct {
			ns   *netnstest.NS
			args string
			want string
		}{
			{home, "+short @10.0.0.1 web.home.example", "10.0.0.51"},
			{home, "+short @10.0.0.51 web.home.example", "10.0.0.51"}, // dig wants the answer from there
			{home, "+short @fd00::1 web.home.example", "10.0.0.51"},
			{home, "+short +tcp @10.0.0.51 web.home.example", "10.0.0.51"},
			{home, "+short +tcp @fd00::1 web.home.example", "10.0.0.51"},
			{home, "+short @10.1.0.1 web.home.example", "10.0.0.51"}, // the other zone's address, this zone's names
			{guests, "+short @10.1.0.1 web.home.example", "10.1.0.51"},
			{guests, "+short +tcp @10.1.0.1 web.home.example", "10.1.0.51"},
			{guests, "+short @10.0.0.1 web.home.example", "10.1.0.51"},
			{home, "+short @10.0.0.1 -x 10.0.0.51", "web.home.example."},
			{home, "+short @10.0.0.1 SRV _http._tcp.web.home.example", "0 0 80 web.home.example."},
			{home, "+short +noedns @10.0.0.1 WEB.home.example", "10.0.0.51"},
		} {
			if got := dig(t, c.ns, strings.Fields(c.args)...); got != c.want {
				t.Errorf("dig %s: %s, want %s", c.args, got, c.want)
			}
		}
		for _, network := range []string{"+notcp", "+tcp"} {
			// A client of another network on the same cable.
			if got := dig(t, home, network, "-b", "10.7.0.2", "@10.0.0.1", "web.home.example"); !strings.Contains(got, "status: REFUSED") {
				t.Errorf("of another network, %s: %s", network, got)
			}
		}
		if got := dig(t, home, "@10.0.0.1", "nix.home.example"); !strings.Contains(got, "status: NXDOMAIN") || !strings.Contains(got, "IN\tSOA\t") || !strings.Contains(got, "flags: qr aa rd ra;") {
			t.Error(got)
		}
		if got := dig(t, home, "+short", "+nssearch", "@10.0.0.1", "version.bind", "CH", "TXT"); strings.Contains(got, "gatehouse") {
			t.Error(got)
		}
	})
}

// What programs ask, which know nothing of DNS.
func TestNetnsGetent(t *testing.T) {
	netnstest.Run(t, func() {
		_, home, _ := netnsSite(t, nil)
		conf := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(conf, []byte("nameserver 10.0.0.1\nsearch home.example\noptions timeout:5 attempts:1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		getent := func(args string) string {
			script := "mount --bind " + conf + " /etc/resolv.conf && exec getent " + args
			return run(t, home, "unshare", "-m", "sh", "-c", script)
		}
		for args, want := range map[string]string{
			"ahostsv4 web": "10.0.0.51", "hosts web.home.example": "10.0.0.51", "hosts 10.0.0.51": "web.home.example", "hosts nix.home.example": "",
		} {
			got := getent(args)
			if !strings.Contains(got, want) || want == "" && got != "" {
				t.Errorf("getent %s: %q, want %s", args, got, want)
			}
		}
	})
}

// background runs a server in the namespace of the test.
func background(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // which has to live for as long as its child
		started <- cmd.Start()
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Log(out.String())
		}
	})
}

// dnsmasq as an upstream: a name of it, an answer that takes TCP, one that is
// held back; it is ended, and comes back.
func TestNetnsDnsmasqIsAsked(t *testing.T) {
	netnstest.Run(t, func() {
		const at = "127.0.0.9"
		dnsmasq := []string{
			"dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--listen-address=" + at, "--bind-interfaces", "--port=5353",
			"--host-record=www.example.net,198.51.100.7", "--host-record=evil.example.net,10.0.0.51", "--cname=alias.example.net,www.example.net", "--local-ttl=300", "--auth-ttl=300",
		}
		for i := range 150 {
			dnsmasq = append(dnsmasq, fmt.Sprintf("--host-record=big.example.net,198.51.100.%d", i))
		}
		s, home, _ := netnsSite(t, func(c *Config) { c.Upstreams = []Upstream{{Addr: netip.MustParseAddrPort(at + ":5353")}} })
		if got := dig(t, home, "@10.0.0.1", "www.example.net"); !strings.Contains(got, "status: SERVFAIL") {
			t.Errorf("nobody is there: %s", got)
		}
		background(t, dnsmasq...)
		until(t, func() bool { return dig(t, home, "+short", "@10.0.0.1", "www.example.net") == "198.51.100.7" })
		if got := dig(t, home, "+short", "@10.0.0.1", "ALIAS.example.net"); got != "www.example.net.\n198.51.100.7" {
			t.Error(got)
		}
		if got := dig(t, home, "@10.0.0.1", "evil.example.net"); strings.Contains(got, "10.0.0.51") || !strings.Contains(got, "EDE: 17 (Filtered)") {
			t.Error(got)
		}
		for _, how := range []string{"+tcp", "+notcp"} { // the second falls back to TCP by itself
			if got := strings.Count(dig(t, home, how, "+short", "@10.0.0.1", "big.example.net"), "198.51.100."); got != 150 {
				t.Errorf("%s: %d addresses", how, got)
			}
		}
		if got := dig(t, home, "+ignore", "@10.0.0.1", "big.example.net"); !strings.Contains(got, "flags: qr tc rd ra;") {
			t.Error(got)
		}
		if u := s.Stats().Upstreams[0]; !u.Up || u.Queries == 0 {
			t.Errorf("%+v", u)
		}
	})
}

// A server whose interface was taken away and made anew serves there again.
func TestNetnsInterfaceIsMadeAnew(t *testing.T) {
	netnstest.Run(t, func() {
		s, _, _ := netnsSite(t, nil)
		netnstest.LinkDel(t, nil, "eth0")
		anew := netnstest.New(t)
		netnstest.Cable(t, nil, "eth0", anew, "eth0")
		netnstest.Addr(t, nil, "eth0", "10.0.0.1/24")
		netnstest.Addr(t, anew, "eth0", "10.0.0.2/24")
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		again(t, s, func(c *Config) {
			zone := c.Zones[0]
			zone.Devices = []Device{{Name: "eth0", Index: i.Index}}
			c.Zones = []Zone{zone, c.Zones[1]}
		})
		if got := dig(t, anew, "+short", "@10.0.0.1", "web.home.example"); got != "10.0.0.51" {
			t.Error(got)
		}
		failures := s.Apply(Config{Port: 53, Zones: []Zone{{Name: "x", Devices: []Device{{Name: "eth9"}}}}})
		if len(failures) != 1 || failures[0].Err.Error() != "UDP: there is no such interface" {
			t.Errorf("%v", failures)
		}
	})
}

// While another process takes over there are two, and no question is lost.
func TestNetnsUpgrade(t *testing.T) {
	netnstest.Run(t, func() {
		s, home, _ := netnsSite(t, nil)
		s.mu.Lock()
		c := s.config
		s.mu.Unlock()
		lost := make(chan int)
		stop := make(chan struct{})
		var conns []*dns.Conn
		home.Do(t, func() {
			for range 8 { // the kernel spreads them over the sockets that there are
				conn, err := dns.Dial("udp", "10.0.0.1:53")
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
		})
		go func() {
			n, bad := 0, 0
			for {
				select {
				case <-stop:
					lost <- bad
					return
				default:
				}
				conn := conns[n%len(conns)]
				n++
				m := new(dns.Msg)
				m.SetQuestion("web.home.example.", dns.TypeA)
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				if err := conn.WriteMsg(m); err != nil {
					bad++
					continue
				}
				if r, err := conn.ReadMsg(); err != nil || len(r.Answer) != 1 {
					bad++
				}
			}
		}()
		next := New(slog.New(slog.DiscardHandler), Options{})
		start(t, next)
		if failures := next.Apply(c); len(failures) > 0 {
			t.Fatal(failures)
		}
		until(t, func() bool { return next.Stats().Zones[1].UDP > 100 })
		s.Apply(Config{})
		before := next.Stats().Zones[1].UDP
		until(t, func() bool { return next.Stats().Zones[1].UDP > before+100 })
		close(stop)
		// One may have been in a socket that was closed.
		if n := <-lost; n > 1 {
			t.Errorf("%d questions were not answered", n)
		}
	})
}

// Another server has an address of another interface.
func TestNetnsBesideAnotherServer(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Cable(t, nil, "virbr0", nil, "virbr0-port")
		netnstest.Addr(t, nil, "virbr0", "192.168.122.1/24")
		background(t, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--interface=virbr0", "--except-interface=lo", "--bind-interfaces")
		until(t, func() bool { return strings.Contains(dig(t, nil, "@192.168.122.1", "x.example"), "status: ") })
		s, home, guests := netnsSite(t, func(c *Config) {
			c.Zones[0].Devices[0].Addrs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
			c.Zones[1].Devices[0].Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.1")}
		})
		check := func() {
			t.Helper()
			for _, c := range []struct {
				ns       *netnstest.NS
				at, want string
			}{{home, "10.0.0.1", "10.0.0.51"}, {home, "fd00::1", "10.0.0.51"}, {guests, "10.1.0.1", "10.1.0.51"}} {
				for _, how := range []string{"+notcp", "+tcp"} {
					if got := dig(t, c.ns, "+short", how, "@"+c.at, "web.home.example"); got != c.want {
						t.Errorf("@%s %s: %s, want %s", c.at, how, got, c.want)
					}
				}
			}
		}
		check()
		again(t, s, func(*Config) {})
		check()
		// An address that comes is served, one that goes is not any more.
		again(t, s, func(c *Config) {
			c.Zones = slices.Clone(c.Zones)
			c.Zones[0].Devices = []Device{{Name: "eth0", Index: 2, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.51")}}}
		})
		if got := dig(t, home, "+short", "@10.0.0.51", "web.home.example"); got != "10.0.0.51" {
			t.Error(got)
		}
		if got := dig(t, home, "+short", "@fd00::1", "web.home.example"); strings.Contains(got, "10.0.0.51") {
			t.Error(got)
		}
	})
}

// A client that asks and goes leaves nothing behind that stops the others.
func TestNetnsClientThatGoes(t *testing.T) {
	netnstest.Run(t, func() {
		_, home, guests := netnsSite(t, nil)
		m := new(dns.Msg)
		m.SetQuestion("web.home.example.", dns.TypeA)
		wire, _ := m.Pack()
		home.Do(t, func() {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				_ = unix.Sendto(fd, wire, 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{10, 0, 0, 1}})
			}
			_ = unix.Close(fd)
		})
		for range 3 {
			if got := dig(t, home, "+short", "@10.0.0.1", "web.home.example"); got != "10.0.0.51" {
				t.Error(got)
			}
		}
		netnstest.LinkDown(t, home, "eth0")
		if got := dig(t, guests, "+short", "@10.1.0.1", "web.home.example"); got != "10.1.0.51" {
			t.Error(got)
		}
	})
}
