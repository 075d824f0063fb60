package relay

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// The site of these tests: the edge is the namespace of the test, with a
// network on each of two interfaces. Both clients know the edge as the way to
// the other network, as a neighbour who wants to get in would.
//
//	home client     10.11.12.7, fd12::7 --- eth1  10.11.12.32, fd12::32  edge
//	internet client 10.11.13.7, fd13::7 --- veth0 10.11.13.51, fd13::51  edge
const (
	homeEdge4, homeEdge6         = "10.11.12.32", "fd12::32"
	internetEdge4, internetEdge6 = "10.11.13.51", "fd13::51"
)

func newSite(t *testing.T) (home, internet *netnstest.NS) {
	t.Helper()
	home, internet = netnstest.New(t), netnstest.New(t)
	cableHome(t, home)
	netnstest.Cable(t, nil, "veth0", internet, "eth0")
	netnstest.Addr(t, nil, "veth0", internetEdge4+"/24")
	netnstest.Addr(t, nil, "veth0", internetEdge6+"/64")
	netnstest.Addr(t, internet, "eth0", "10.11.13.7/24")
	netnstest.Addr(t, internet, "eth0", "fd13::7/64")
	netnstest.Route(t, internet, "default", internetEdge4)
	netnstest.Route(t, internet, "fd12::/64", internetEdge6)
	netnstest.Route(t, home, "default", homeEdge4)
	netnstest.Route(t, home, "fd13::/64", homeEdge6)
	return home, internet
}

func cableHome(t *testing.T, home *netnstest.NS) {
	t.Helper()
	netnstest.Cable(t, nil, "eth1", home, "eth0")
	netnstest.Addr(t, nil, "eth1", homeEdge4+"/24")
	netnstest.Addr(t, nil, "eth1", homeEdge6+"/64")
	netnstest.Addr(t, home, "eth0", "10.11.12.7/24")
	netnstest.Addr(t, home, "eth0", "fd12::7/64")
}

// from asks an address from a namespace, and expects the greeting or a refusal.
func from(t *testing.T, ns *netnstest.NS, who, addr string, wantIn bool) {
	t.Helper()
	ns.Do(t, func() {
		got, err := ask(t, netip.MustParseAddrPort(addr))
		if in := got == "hello" && err == nil; wantIn && !in {
			t.Errorf("%s at %s: %q, %v; want the greeting", who, addr, got, err)
		}
		if !wantIn && (got != "" || !errors.Is(err, syscall.ECONNREFUSED)) {
			t.Errorf("%s at %s: %q, %v; want refused", who, addr, got, err)
		}
	})
}

func atDevice(t *testing.T, device string) edge.Frontend {
	f := loopback(upAt(greeter(t, "hello")))
	f.Listen = edge.Listen{Device: device, Port: 80}
	return f
}

func TestNetnsDeviceIsAWall(t *testing.T) {
	netnstest.Run(t, func() {
		home, internet := newSite(t)
		r := newRelay(t, Options{})

		// The attack is real here: a door bound to the home address alone is
		// open to the internet.
		byAddress := atDevice(t, "")
		byAddress.Listen.Addr = netip.MustParseAddr(homeEdge4)
		openDoor(t, r, byAddress)
		from(t, internet, "the internet", homeEdge4+":80", true)

		openDoor(t, r, atDevice(t, "eth1"))
		for _, addr := range []string{homeEdge4 + ":80", "[" + homeEdge6 + "]:80", internetEdge4 + ":80", "[" + internetEdge6 + "]:80"} {
			from(t, home, "home", addr, true)
			from(t, internet, "the internet", addr, false)
		}

		both := atDevice(t, "eth1")
		both.Listen.Addr = netip.MustParseAddr(homeEdge4)
		openDoor(t, r, both)
		from(t, home, "home", homeEdge4+":80", true)
		from(t, home, "home", internetEdge4+":80", false)
		from(t, home, "home", "["+homeEdge6+"]:80", false)
		from(t, internet, "the internet", homeEdge4+":80", false)
	})
}

func TestNetnsTwoZonesShareAPort(t *testing.T) {
	netnstest.Run(t, func() {
		home, internet := newSite(t)
		r := newRelay(t, Options{})
		inside, outside := atDevice(t, "eth1"), atDevice(t, "veth0")
		outside.Backends = []edge.Backend{upAt(greeter(t, "public"))}
		for _, d := range r.Apply([]edge.Frontend{inside, outside}) {
			if d.Error != "" {
				t.Fatalf("%+v", d)
			}
		}
		from(t, home, "home", homeEdge4+":80", true)
		internet.Do(t, func() {
			if got, err := ask(t, netip.MustParseAddrPort(homeEdge4+":80")); got != "public" || err != nil {
				t.Errorf("the internet got %q, %v; want what is public", got, err)
			}
		})
		// From everywhere to one interface, in one call.
		wide := atDevice(t, "")
		openDoor(t, r, wide)
		from(t, nil, "the edge itself", internetEdge4+":80", true)
		openDoor(t, r, inside)
		from(t, home, "home", homeEdge4+":80", true)
		from(t, internet, "the internet", homeEdge4+":80", false)
	})
}

func TestNetnsInterfaceGoesAndComesBack(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		f := atDevice(t, "eth1")
		openDoor(t, r, f)
		from(t, home, "home", homeEdge4+":80", true)

		netnstest.LinkDel(t, nil, "eth1")
		doors := r.Apply([]edge.Frontend{f})
		if want := "listen on @eth1:80: there is no interface eth1"; doors[0].Error != want || doors[0].Addr.IsValid() {
			t.Errorf("without its interface the door is %+v, want error %q", doors[0], want)
		}
		cableHome(t, home)
		openDoor(t, r, f)
		from(t, home, "home", homeEdge4+":80", true)

		// Both between two calls: nothing but the index tells.
		netnstest.LinkDel(t, nil, "eth1")
		cableHome(t, home)
		openDoor(t, r, f)
		from(t, home, "home", homeEdge4+":80", true)
		if s := r.Stats(); len(s) != 1 || s[0].Accepted != 3 {
			t.Errorf("Stats = %+v, want the three connections counted on", s)
		}
	})
}

func TestNetnsAddressOfADeviceChanges(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		f := atDevice(t, "eth1")
		openDoor(t, r, f)
		var c net.Conn
		f.Backends = []edge.Backend{upAt(server(t, echo))}
		openDoor(t, r, f)
		home.Do(t, func() { c = dial(t, netip.MustParseAddrPort("["+homeEdge6+"]:80")) })
		say(t, c.(*net.TCPConn), "before")
		f.Backends = []edge.Backend{upAt(greeter(t, "hello"))}
		netnstest.AddrDel(t, nil, "eth1", homeEdge4+"/24")
		netnstest.Addr(t, nil, "eth1", "10.11.12.99/24")
		openDoor(t, r, f)
		from(t, home, "home", "10.11.12.99:80", true)
		say(t, c.(*net.TCPConn), "after")

		// An address that is not there yet is tried again.
		f.Listen = edge.Listen{Addr: netip.MustParseAddr("10.11.12.100"), Port: 81}
		if doors := r.Apply([]edge.Frontend{f}); doors[0].Error == "" {
			t.Fatal("a door opened at an address that the machine does not have")
		}
		netnstest.Addr(t, nil, "eth1", "10.11.12.100/24")
		openDoor(t, r, f)
		from(t, home, "home", "10.11.12.100:81", true)
	})
}

func TestNetnsSourceRangesSeeTheClient(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		f := atDevice(t, "eth1")
		for _, c := range []struct {
			sources string
			v4, v6  bool
		}{{"10.11.12.0/24", true, false}, {"fd12::7/128", false, true}, {"10.11.13.0/24", false, false}} {
			f.SourceRanges = []netip.Prefix{netip.MustParsePrefix(c.sources)}
			openDoor(t, r, f)
			home.Do(t, func() {
				_, err4 := ask(t, netip.MustParseAddrPort(homeEdge4+":80"))
				_, err6 := ask(t, netip.MustParseAddrPort("["+homeEdge6+"]:80"))
				if (err4 == nil) != c.v4 || (err6 == nil) != c.v6 {
					t.Errorf("from %s alone: IPv4 %v, IPv6 %v", c.sources, err4, err6)
				}
			})
		}
	})
}
