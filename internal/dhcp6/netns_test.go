package dhcp6

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"e13.dev/gatehouse/internal/netnstest"
)

const limit = 20 * time.Second

// wire is a server's eth0 with fd00:10::1 and, in another namespace, a
// neighbour's eth0.
func wire(t *testing.T) (neighbour *netnstest.NS, index int) {
	t.Helper()
	neighbour = netnstest.New(t)
	for _, ns := range []*netnstest.NS{nil, neighbour} {
		netnstest.Setting(t, ns, "net/ipv6/conf/default/accept_dad", "0")
		netnstest.Setting(t, ns, "net/ipv6/conf/default/dad_transmits", "0")
	}
	netnstest.Cable(t, nil, "eth0", neighbour, "eth0")
	netnstest.Addr(t, nil, "eth0", "fd00:10::1/64")
	for _, ns := range []*netnstest.NS{nil, neighbour} {
		netnstest.Eventually(t, limit, "eth0 has its link-local address", func() bool { return linkLocal(t, ns).IsValid() })
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return neighbour, link.Index
}

func linkLocal(t *testing.T, ns *netnstest.NS) (found netip.Addr) {
	t.Helper()
	ns.Do(t, func() {
		link, err := net.InterfaceByName("eth0")
		if err != nil || link.Flags&net.FlagRunning == 0 {
			return
		}
		addrs, _ := link.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				found = p.Addr()
			}
		}
	})
	return found
}

func serve(t *testing.T, index int, c Content) *Server {
	t.Helper()
	s := New(slog.New(slog.DiscardHandler), Options{})
	t.Cleanup(s.Stop)
	s.Apply(t.Context(), map[string]Link{"eth0": {index, c}})
	return s
}

// dialog is a client's end: a socket at its port.
func dialog(t *testing.T, ns *netnstest.NS) (ask func([]byte) (reply []byte, err error)) {
	t.Helper()
	var conn *net.UDPConn
	ns.Do(t, func() {
		var err error
		if conn, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified, Port: clientPort}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	return func(packet []byte) ([]byte, error) {
		scope := 0 // of the interface that there is now
		ns.Do(t, func() {
			link, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			scope = link.Index
		})
		to := netip.AddrPortFrom(servers.WithZone(strconv.Itoa(scope)), serverPort)
		if _, err := conn.WriteToUDPAddrPort(packet, to); err != nil {
			return nil, err
		}
		b := make([]byte, 1500)
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := conn.Read(b)
		return b[:n], err
	}
}

func insist(t *testing.T, ask func([]byte) ([]byte, error), packet []byte) (reply []byte) {
	t.Helper()
	netnstest.Eventually(t, limit, "an answer", func() bool {
		var err error
		reply, err = ask(packet)
		return err == nil
	})
	return reply
}

// The same questions as dnsmasq is asked have the same answers, but for who it is.
func TestNetnsAnswersAsDnsmasq(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour, index := wire(t)
		ask := dialog(t, neighbour)
		asks := func(codes ...dhcpv6.OptionCode) []byte {
			return request(dhcpv6.OptClientID(client), dhcpv6.OptElapsedTime(0), dhcpv6.OptRequestedOption(codes...))
		}
		questions := [][]byte{
			asks(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList),
			asks(dhcpv6.OptionDNSRecursiveNameServer),
			asks(dhcpv6.OptionNTPServer, dhcpv6.OptionDomainSearchList),
			asks(dhcpv6.OptionSNTPServerList),
		}
		// What it does besides is its own business.
		words := func(b []byte) string {
			var out []string
			for word := range strings.SplitSeq(told(t, b), ", ") {
				if word != "server" && !strings.HasPrefix(word, "again") {
					out = append(out, word)
				}
			}
			return strings.Join(out, ", ")
		}

		dnsmasq := exec.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0",
			"--pid-file=", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"),
			"--dhcp-range=fd00:10::,ra-stateless", "--dhcp-option=option6:dns-server,[fd00:10::1]",
			"--dhcp-option=option6:domain-search,home.example,cluster.home.example",
			"--dhcp-option=option6:ntp-server,[fd00:10::2]", "--dhcp-option=option6:sntp-server,[fd00:10::2]")
		dnsmasq.Stderr = os.Stderr
		if err := dnsmasq.Start(); err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, q := range questions {
			want = append(want, words(insist(t, ask, q)))
		}
		_ = dnsmasq.Process.Kill()
		_ = dnsmasq.Wait()

		serve(t, index, site)
		for i, q := range questions {
			if got := words(insist(t, ask, q)); got != want[i] {
				t.Errorf("question %d: %q, dnsmasq says %q", i, got, want[i])
			} else {
				t.Logf("%q", got)
			}
		}
	})
}

// Nobody is answered by another port than the one of clients, and nothing that is
// no information request.
func TestNetnsOnlyClientsAreAnswered(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour, index := wire(t)
		s := serve(t, index, site)
		ask := dialog(t, neighbour)
		insist(t, ask, request())
		before := s.Status()["eth0"]
		solicit := request(&dhcpv6.OptIANA{})
		solicit[0] = byte(dhcpv6.MessageTypeSolicit)
		for name, packet := range map[string][]byte{"a solicitation": solicit, "with an address": request(&dhcpv6.OptIANA{}), "rubbish": {11, 0}} {
			if reply, err := ask(packet); err == nil {
				t.Errorf("%s is answered: %s", name, told(t, reply))
			}
		}
		var other *net.UDPConn
		neighbour.Do(t, func() {
			link, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if other, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified}); err != nil {
				t.Fatal(err)
			}
			if _, err := other.WriteToUDPAddrPort(request(), netip.AddrPortFrom(servers.WithZone(strconv.Itoa(link.Index)), serverPort)); err != nil {
				t.Fatal(err)
			}
		})
		defer other.Close()
		netnstest.Eventually(t, limit, "that one was counted", func() bool { return s.Status()["eth0"].Replies > before.Replies })
		_ = other.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := other.Read(make([]byte, 1500)); err == nil {
			t.Error("another port is answered")
		}
	})
}

// Who takes the place of another process has the port before that one lets go of
// it, and an interface that comes anew is served.
func TestNetnsTwoProcessesAndANewInterface(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour, index := wire(t)
		first := serve(t, index, Content{})
		ask := dialog(t, neighbour)
		insist(t, ask, request())
		second := serve(t, index, site)
		first.Stop()
		netnstest.Eventually(t, limit, "the second answers", func() bool {
			reply, err := ask(request())
			return err == nil && strings.Contains(told(t, reply), "dns fd00:10::1")
		})
		netnstest.LinkDel(t, nil, "eth0")
		second.Apply(t.Context(), nil)
		netnstest.Cable(t, nil, "eth0", neighbour, "eth0")
		netnstest.Eventually(t, limit, "eth0 has its link-local address", func() bool {
			return linkLocal(t, nil).IsValid() && linkLocal(t, neighbour).IsValid()
		})
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		second.Apply(t.Context(), map[string]Link{"eth0": {link.Index, site}})
		insist(t, ask, request())
	})
}
