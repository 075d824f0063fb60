package dhcpclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/netnstest"
)

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// linkOf is how an interface is.
func linkOf(t *testing.T, name string) Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	a := l.Attrs()
	out := Link{Index: a.Index, MAC: [6]byte(a.HardwareAddr), Running: a.RawFlags&unix.IFF_RUNNING != 0}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		out.Addrs = append(out.Addrs, netip.MustParsePrefix(addr.IPNet.String()))
	}
	return out
}

// kept is a client whose lease is put on its interface, as the daemon does.
type kept struct {
	*Client
	t    *testing.T
	name string
	stop func()
	seen chan struct{}
}

func keep(t *testing.T, name, hostname, file string) *kept {
	t.Helper()
	k := &kept{t: t, name: name, seen: make(chan struct{}, 1)}
	k.Client = New(Options{Link: name, Hostname: hostname, File: file, Log: logger(t), Changed: func() {
		select {
		case k.seen <- struct{}{}:
		default:
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	k.Link(linkOf(t, name))
	go func() {
		defer close(done)
		k.Run(ctx)
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-k.seen:
				k.put()
			}
		}
	}()
	k.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(k.stop)
	return k
}

// put has the interface have the address of the lease, and no other.
func (k *kept) put() {
	l, err := netlink.LinkByName(k.name)
	if err != nil {
		return
	}
	lease, ok := k.Lease()
	addrs, _ := netlink.AddrList(l, netlink.FAMILY_V4)
	for _, a := range addrs {
		if !ok || a.IPNet.String() != lease.Addr.String() {
			_ = netlink.AddrDel(l, &netlink.Addr{IPNet: a.IPNet})
		}
	}
	if ok {
		p := lease.Addr
		_ = netlink.AddrReplace(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}})
	}
}

func (k *kept) waitFor(what string, good func(Lease, bool) bool) Lease {
	k.t.Helper()
	var last Lease
	netnstest.Eventually(k.t, 30*time.Second, what, func() bool {
		l, ok := k.Lease()
		last = l
		return good(l, ok)
	})
	return last
}

func (k *kept) waitForLease() Lease {
	k.t.Helper()
	return k.waitFor("a lease", func(_ Lease, ok bool) bool { return ok })
}

// dnsmasq serves a namespace until the test is over or stop is called.
func dnsmasq(t *testing.T, ns *netnstest.NS, args ...string) (log func() string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{
		"--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--no-ping", "--user=root", "--group=root",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--pid-file=" + filepath.Join(dir, "pid"), "--dhcp-authoritative",
	}, args...)
	cmd := exec.Command("dnsmasq", args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	ended := make(chan struct{})
	go ns.Do(t, func() { // its thread has to live as long as it does
		started <- cmd.Start()
		_ = cmd.Wait()
		close(ended)
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = cmd.Process.Kill(); <-ended; out.Close() })
	t.Cleanup(stop)
	log = func() string {
		text, _ := os.ReadFile(out.Name())
		return string(text)
	}
	netnstest.Eventually(t, 10*time.Second, "dnsmasq", func() bool {
		return strings.Contains(log(), "DHCP, sockets bound") || strings.Contains(log(), "IP range")
	})
	return log, stop
}

func TestNetnsALeaseOfDnsmasq(t *testing.T) {
	netnstest.Run(t, func() {
		server := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", server, "lan")
		netnstest.Addr(t, server, "lan", "10.11.12.1/24")
		log, _ := dnsmasq(t, server, "--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,2m", "--dhcp-option=6,10.11.12.1,9.9.9.9",
			"--domain=home.example", "--dhcp-option=26,1400", "--dhcp-option=121,10.7.0.0/16,10.11.12.9,0.0.0.0/0,10.11.12.1", "--dhcp-host=rpi0,10.11.12.32")
		file := filepath.Join(t.TempDir(), "lease.json")
		k := keep(t, "eth1", "rpi0", file)
		first := k.waitForLease()
		if first.Addr.String() != "10.11.12.32/24" || first.Router.String() != "10.11.12.1" || first.Domain != "home.example" || first.MTU != 1400 || first.Server.String() != "10.11.12.1" ||
			fmt.Sprint(first.DNS) != "[10.11.12.1 9.9.9.9]" || fmt.Sprint(first.Routes) != "[{10.7.0.0/16 10.11.12.9} {0.0.0.0/0 10.11.12.1}]" || first.Expires.Sub(first.Begun) != 2*time.Minute {
			t.Errorf("lease %+v", first)
		}
		if !strings.Contains(log(), "client provides name: rpi0") {
			t.Errorf("no name in\n%s", log())
		}
		// It is asked for more, by unicast, from the address, as if half of the time were
		// over.
		k.mu.Lock()
		k.machine.due = time.Now()
		k.timer.Reset(time.Millisecond)
		k.mu.Unlock()
		k.waitFor("a renewal", func(l Lease, ok bool) bool { return ok && l.Begun.After(first.Begun) && l.Addr == first.Addr })
		if k.state() != bound {
			t.Errorf("it is %s", k.state())
		}
		k.stop()
		first, _ = k.Lease()
		// The next process has it at once, and asks whether it is good.
		next := keep(t, "eth1", "rpi0", file)
		if l, ok := next.Lease(); !ok || l.Addr != first.Addr {
			t.Errorf("the next process begins with %+v, %t", l, ok)
		}
		before := strings.Count(log(), "DHCPDISCOVER")
		next.waitFor("an answer", func(l Lease, ok bool) bool {
			return ok && l.Begun.After(first.Begun) && next.state() == bound
		})
		if strings.Count(log(), "DHCPDISCOVER") != before {
			t.Errorf("it has begun anew:\n%s", log())
		}
		// Given back, it is nobody's.
		next.Release()
		netnstest.Eventually(t, 10*time.Second, "a release", func() bool { return strings.Contains(log(), "DHCPRELEASE") })
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lease is still on disk: %v", err)
		}
	})
}

func (c *Client) state() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.machine.state
}

// As the site has it: what is at home, and what faces the Internet, on one cable.
func TestNetnsTwoNamesOnOneCable(t *testing.T) {
	netnstest.Run(t, func() {
		server := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", server, "lan")
		netnstest.Addr(t, server, "lan", "10.11.12.1/24")
		parent, err := netlink.LinkByName("eth1")
		if err != nil {
			t.Fatal(err)
		}
		attributes := netlink.NewLinkAttrs()
		attributes.Name, attributes.ParentIndex = "veth0", parent.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attributes, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			t.Fatal(err)
		}
		netnstest.LinkUp(t, nil, "veth0")
		dnsmasq(t, server, "--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,1h", "--dhcp-host=rpi0,10.11.12.32", "--dhcp-host=rpi0-internet,10.11.12.51")
		home, internet := keep(t, "eth1", "rpi0", ""), keep(t, "veth0", "rpi0-internet", "")
		if l := home.waitForLease(); l.Addr.String() != "10.11.12.32/24" {
			t.Errorf("eth1 has %s", l.Addr)
		}
		if l := internet.waitForLease(); l.Addr.String() != "10.11.12.51/24" {
			t.Errorf("veth0 has %s", l.Addr)
		}
	})
}

// A cable that is pulled leaves the address there; one that leads to another network
// brings another at once.
func TestNetnsAnotherNetworkIsFollowed(t *testing.T) {
	netnstest.Run(t, func() {
		server := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", server, "lan")
		netnstest.Addr(t, server, "lan", "10.11.12.1/24")
		_, stop := dnsmasq(t, server, "--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,1h")
		k := keep(t, "eth1", "", "")
		first := k.waitForLease()
		netnstest.LinkDown(t, server, "lan")
		netnstest.Eventually(t, 10*time.Second, "no carrier", func() bool { return !linkOf(t, "eth1").Running })
		k.Link(linkOf(t, "eth1"))
		if l, ok := k.Lease(); !ok || l.Addr != first.Addr {
			t.Errorf("without a cable it has %v, %t", l.Addr, ok)
		}
		stop()
		netnstest.AddrDel(t, server, "lan", "10.11.12.1/24")
		netnstest.LinkUp(t, server, "lan")
		netnstest.Addr(t, server, "lan", "192.168.1.1/24")
		dnsmasq(t, server, "--interface=lan", "--dhcp-range=192.168.1.100,192.168.1.199,255.255.255.0,1h")
		netnstest.Eventually(t, 10*time.Second, "a carrier", func() bool { return linkOf(t, "eth1").Running })
		k.Link(linkOf(t, "eth1"))
		k.waitFor("the other network's", func(l Lease, ok bool) bool { return ok && l.Router.String() == "192.168.1.1" })
	})
}

// scripted answers as it is told to, in a namespace.
type scripted struct {
	mu     sync.Mutex
	answer func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4
	heard  []*dhcpv4.DHCPv4
}

func (s *scripted) set(answer func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *scripted) count(kind dhcpv4.MessageType) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.heard {
		if m.MessageType() == kind {
			n++
		}
	}
	return n
}

// gives answers with an address for so many seconds.
func gives(addr string, seconds uint32) func(*dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	return func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		kind := dhcpv4.MessageTypeOffer
		switch m.MessageType() {
		case dhcpv4.MessageTypeDiscover:
		case dhcpv4.MessageTypeRequest:
			kind = dhcpv4.MessageTypeAck
		default:
			return nil
		}
		asked := m.RequestedIPAddress()
		if asked == nil || asked.IsUnspecified() {
			asked = m.ClientIPAddr
		}
		if kind == dhcpv4.MessageTypeAck && !asked.Equal(net.ParseIP(addr)) {
			kind = dhcpv4.MessageTypeNak
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(net.IPv4(10, 0, 0, 1)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1))))
		if err != nil {
			return nil
		}
		if kind == dhcpv4.MessageTypeNak {
			r.UpdateOption(dhcpv4.OptMessage("not yours"))
			return r
		}
		r.YourIPAddr = net.ParseIP(addr).To4()
		r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)))
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(time.Duration(seconds) * time.Second))
		return r
	}
}

func serve(t *testing.T, ns *netnstest.NS, device string) *scripted {
	t.Helper()
	s := &scripted{}
	var conn net.PacketConn
	ns.Do(t, func() {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.BindToDevice(int(fd), device)
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			})
		}}
		var err error
		if conn, err = config.ListenPacket(t.Context(), "udp4", ":67"); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			m, err := dhcpv4.FromBytes(b[:n])
			if err != nil {
				continue
			}
			s.mu.Lock()
			s.heard = append(s.heard, m)
			answer := s.answer
			s.mu.Unlock()
			if answer == nil {
				continue
			}
			if r := answer(m); r != nil {
				_, _ = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
			}
		}
	}()
	return s
}

func cable(t *testing.T) *netnstest.NS {
	t.Helper()
	ns := netnstest.New(t)
	netnstest.Cable(t, nil, "eth0", ns, "eth0")
	netnstest.Addr(t, ns, "eth0", "10.0.0.1/24")
	return ns
}

// What keeps a client from asking for a moment does so for a moment.
func TestNetnsItIsTriedAgainToAsk(t *testing.T) {
	netnstest.Run(t, func() {
		c := New(Options{Link: "eth9", Log: logger(t), Changed: func() {}})
		c.Link(Link{Index: 4242, MAC: [6]byte{2, 0, 0, 0, 0, 9}, Running: true})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Run(ctx) }()
		defer func() { cancel(); <-done }()
		said := func(what string) func() bool {
			return func() bool { return strings.Contains(c.Problem(), what) }
		}
		netnstest.Eventually(t, 10*time.Second, "it cannot", said("no DHCP server can be asked: bind to the interface"))
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth9", Index: 4242}, PeerName: "peer9"}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		netnstest.Eventually(t, 10*time.Second, "it asks", said("no DHCP server answers"))
	})
}

// A server that has gone: the address stays until its time is over, and no longer.
func TestNetnsTheServerIsGone(t *testing.T) {
	netnstest.Run(t, func() {
		s := serve(t, cable(t), "eth0")
		s.set(gives("10.0.0.50", 6))
		k := keep(t, "eth0", "", "")
		first := k.waitForLease()
		k.waitFor("a renewal", func(l Lease, ok bool) bool { return ok && l.Begun.After(first.Begun) })
		s.set(nil)
		last, _ := k.Lease()
		k.waitFor("the end of the lease", func(_ Lease, ok bool) bool { return !ok })
		if now := time.Now(); now.Before(last.Expires) {
			t.Errorf("dropped %s before its time", last.Expires.Sub(now))
		}
		netnstest.Eventually(t, 10*time.Second, "a problem", func() bool { return strings.Contains(k.Problem(), "10.0.0.50 has expired") })
		netnstest.Eventually(t, 10*time.Second, "no address", func() bool { return len(linkOf(t, "eth0").Addrs) == 0 })
		s.set(gives("10.0.0.50", 6))
		k.waitForLease()
		if p := k.Problem(); p != "" {
			t.Errorf("problem %q", p)
		}
	})
}

// The server gives another address, after it has refused the one that is had.
func TestNetnsAnotherAddressAfterARefusal(t *testing.T) {
	netnstest.Run(t, func() {
		s := serve(t, cable(t), "eth0")
		s.set(gives("10.0.0.50", 4))
		k := keep(t, "eth0", "", "")
		k.waitForLease()
		s.set(gives("10.0.0.60", 3600))
		k.waitFor("the other", func(l Lease, ok bool) bool { return ok && l.Addr.String() == "10.0.0.60/24" })
	})
}

// Somebody has the address that is given: the server is told.
func TestNetnsAnAddressThatSomebodyHasIsDeclined(t *testing.T) {
	netnstest.Run(t, func() {
		server := cable(t)
		netnstest.Addr(t, server, "eth0", "10.0.0.50/24")
		s := serve(t, server, "eth0")
		s.set(func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			if s.declined() {
				return gives("10.0.0.51", 3600)(m)
			}
			return gives("10.0.0.50", 3600)(m)
		})
		k := keep(t, "eth0", "", "")
		netnstest.Eventually(t, 20*time.Second, "a DECLINE", func() bool { return s.count(dhcpv4.MessageTypeDecline) == 1 })
		netnstest.Eventually(t, 10*time.Second, "a problem", func() bool { return strings.Contains(k.Problem(), "gives 10.0.0.50, which ") })
		k.waitFor("another", func(l Lease, ok bool) bool { return ok && l.Addr.String() == "10.0.0.51/24" })
	})
}

func (s *scripted) declined() bool { return s.count(dhcpv4.MessageTypeDecline) > 0 }
