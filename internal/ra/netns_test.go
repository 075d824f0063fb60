package ra

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"e13.dev/gatehouse/internal/netnstest"
)

const limit = 20 * time.Second

// wire is a router's eth0 and, in another namespace, a neighbour's eth0, which
// configures itself as every Linux machine does.
func wire(t *testing.T) (neighbour *netnstest.NS) {
	t.Helper()
	neighbour = netnstest.New(t)
	for _, s := range []string{"accept_dad", "dad_transmits", "router_solicitations"} {
		netnstest.Setting(t, neighbour, "net/ipv6/conf/default/"+s, "0") // each test says when it asks
	}
	netnstest.Setting(t, nil, "net/ipv6/conf/default/accept_dad", "0")
	netnstest.Setting(t, nil, "net/ipv6/conf/all/forwarding", "1")
	plug(t, neighbour)
	return neighbour
}

// plug connects the two and waits until the neighbour hears.
func plug(t *testing.T, neighbour *netnstest.NS) {
	t.Helper()
	netnstest.Cable(t, nil, "eth0", neighbour, "eth0")
	awaitUp(t, neighbour)
}

func awaitUp(t *testing.T, ns *netnstest.NS) {
	t.Helper()
	netnstest.Eventually(t, limit, "eth0 is up", func() (up bool) {
		ns.Do(t, func() {
			link, err := net.InterfaceByName("eth0")
			if err != nil || link.Flags&net.FlagRunning == 0 {
				return
			}
			_, err = linkLocal(link)
			up = err == nil
		})
		return up
	})
}

func newAdvertiser(t *testing.T) *Advertiser {
	a := New(slog.New(slog.DiscardHandler), Options{})
	t.Cleanup(func() { a.Stop(false) })
	return a
}

func on(t *testing.T, device string, c Content) map[string]Link {
	t.Helper()
	link, err := net.InterfaceByName(device)
	netnstest.Eventually(t, limit, device+" is up", func() bool {
		link, err = net.InterfaceByName(device)
		return err == nil && link.Flags&net.FlagRunning != 0
	})
	return map[string]Link{device: {link.Index, c}}
}

// address is one of `ip -j -6 addr`.
type address struct {
	Local      string `json:"local"`
	Prefix     int    `json:"prefixlen"`
	Dynamic    bool   `json:"dynamic"`
	Deprecated bool   `json:"deprecated"`
	Valid      int    `json:"valid_life_time"`
	Preferred  int    `json:"preferred_life_time"`
}

func ip[T any](t *testing.T, ns *netnstest.NS, args ...string) (all []T) {
	t.Helper()
	ns.Do(t, func() {
		out, err := exec.Command("ip", append([]string{"-j", "-6"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &all); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	return all
}

// addressIn is the address that a machine has made itself in a network.
func addressIn(t *testing.T, ns *netnstest.NS, prefix string) (found address, there bool) {
	t.Helper()
	network := netip.MustParsePrefix(prefix)
	for _, link := range ip[struct {
		Addrs []address `json:"addr_info"`
	}](t, ns, "addr", "show", "dev", "eth0") {
		for _, a := range link.Addrs {
			if addr, err := netip.ParseAddr(a.Local); err == nil && network.Contains(addr) {
				return a, true
			}
		}
	}
	return address{}, false
}

func defaultRoutes(t *testing.T, ns *netnstest.NS) int {
	t.Helper()
	return len(ip[struct{}](t, ns, "route", "show", "default"))
}

// heard are advertisements as they come to a neighbour.
func hear(t *testing.T, ns *netnstest.NS) <-chan message {
	t.Helper()
	var conn *ipv6.PacketConn
	ns.Do(t, func() {
		raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
		if err != nil {
			t.Fatal(err)
		}
		conn = ipv6.NewPacketConn(raw)
		if err := conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagDst|ipv6.FlagSrc, true); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { conn.Close() })
	all := make(chan message, 100)
	go func() {
		b := make([]byte, 1500)
		for {
			n, control, _, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if m, err := parse(slices.Clone(b[:n])); err == nil && control.HopLimit == 255 {
				all <- m
			}
		}
	}()
	return all
}

func await(t *testing.T, all <-chan message, what string, is func(message) bool) message {
	t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case m := <-all:
			if is(m) {
				return m
			}
		case <-timeout:
			t.Fatalf("not heard: %s", what)
		}
	}
}

// A machine makes itself addresses and a default route; those of a prefix that
// goes are deprecated and stay; at the end the default route goes.
func TestNetnsMachinesConfigureThemselves(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour := wire(t)
		a := newAdvertiser(t)
		old, now := "fd00:10::/64", "fd00:20::/64"
		c := content(30*time.Minute, "fd00:10::1", "home.example", old)
		c.MTU, c.Other = 1400, true
		heard := hear(t, neighbour)
		a.Apply(t.Context(), on(t, "eth0", c))
		netnstest.Eventually(t, limit, "an address and a default route", func() bool {
			_, there := addressIn(t, neighbour, old)
			return there && defaultRoutes(t, neighbour) == 1
		})
		m := await(t, heard, "the first", func(message) bool { return true })
		if said(m) != "router 30m0s, fd00:10::/64 24h0m0s/4h0m0s, dns fd00:10::1, home.example" || !m.other || m.managed || m.mtu != 1400 || len(m.source) != 6 {
			t.Errorf("it says %s: %+v", said(m), m)
		}
		if got, _ := addressIn(t, neighbour, old); !got.Dynamic || got.Prefix != 64 || got.Valid < 86000 || got.Preferred < 14000 {
			t.Errorf("the address is %+v", got)
		}

		next := content(30*time.Minute, "fd00:20::1", "home.example", now)
		a.Apply(t.Context(), on(t, "eth0", next))
		netnstest.Eventually(t, limit, "an address in the new prefix, and the old one deprecated", func() bool {
			_, there := addressIn(t, neighbour, now)
			was, still := addressIn(t, neighbour, old)
			return there && still && was.Deprecated && was.Valid <= 7200 && was.Valid > 7100
		})
		netnstest.Eventually(t, limit, "both are counted, which is done after they were sent", func() bool {
			s := a.Status()["eth0"]
			return s.Sent >= 2 && len(s.Deprecated) == 1 && s.Error == ""
		})
		m = await(t, heard, "the change", func(m message) bool { return len(m.goneDNS) > 0 })
		if said(m) != "router 30m0s, fd00:20::/64 24h0m0s/4h0m0s, fd00:10::/64 2h0m0s/0s, dns fd00:20::1, no dns fd00:10::1, home.example" {
			t.Errorf("it says %s", said(m))
		}

		a.Apply(t.Context(), nil)
		netnstest.Eventually(t, limit, "no default route", func() bool { return defaultRoutes(t, neighbour) == 0 })
		if _, there := addressIn(t, neighbour, now); !there {
			t.Error("the address has gone with the router")
		}
	})
}

// Another process takes over: nobody is told an end, and the prefixes that this
// one told are taken back by that one.
func TestNetnsAnotherProcessGoesOn(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour := wire(t)
		before := newAdvertiser(t)
		before.Apply(t.Context(), on(t, "eth0", content(30*time.Minute, "", "", "fd00:10::/64")))
		heard := hear(t, neighbour)
		await(t, heard, "the first", func(message) bool { return true })
		before.Stop(false)
		after := newAdvertiser(t)
		after.Recall(before.Told())
		after.Apply(t.Context(), on(t, "eth0", content(30*time.Minute, "", "", "fd00:20::/64")))
		m := await(t, heard, "the next", func(message) bool { return true })
		if want := "router 30m0s, fd00:20::/64 24h0m0s/4h0m0s, fd00:10::/64 2h0m0s/0s"; said(m) != want {
			t.Errorf("it says %s, want %s", said(m), want)
		}
		after.Stop(true)
		if m = await(t, heard, "the end", func(message) bool { return true }); m.lifetime != 0 {
			t.Errorf("it says %s", said(m))
		}
	})
}

// Who asks is answered, alone; what does not come from a neighbour is not.
func TestNetnsWhoAsksIsAnswered(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour := wire(t)
		a := newAdvertiser(t)
		a.Apply(t.Context(), on(t, "eth0", content(30*time.Minute, "fd00:10::1", "home.example", "fd00:10::/64")))
		netnstest.Eventually(t, limit, "it advertises", func() bool { return a.Status()["eth0"].Sent > 0 })
		var out []byte
		netnstest.Eventually(t, limit, "rdisc6 is answered", func() bool {
			var err error
			neighbour.Do(t, func() { out, err = exec.Command("rdisc6", "-1", "-w", "2000", "eth0").CombinedOutput() })
			return err == nil && a.Status()["eth0"].Answered > 0 // alone: not what everybody was told meanwhile
		})
		for _, want := range []string{
			"Router lifetime           :         1800", "Prefix                   : fd00:10::/64", "On-link                 :          Yes",
			"Autonomous address conf.:          Yes", "Valid time              :        86400", "Pref. time              :        14400",
			"Recursive DNS server     : fd00:10::1", "DNS search list          : home.example", "Stateful address conf.    :           No",
		} {
			if !strings.Contains(string(out), want) {
				t.Errorf("rdisc6 does not say %q:\n%s", want, out)
			}
		}

		// By a hop limit that says that a router has passed it on, then by a right one.
		answered := a.Status()["eth0"].Answered
		neighbour.Do(t, func() {
			raw, err := net.ListenPacket("ip6:ipv6-icmp", "::")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			conn := ipv6.NewPacketConn(raw)
			for _, hops := range []int{64, 255} {
				if err := conn.SetMulticastHopLimit(hops); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.WriteTo([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}, nil, &net.IPAddr{IP: allRouters.AsSlice(), Zone: "eth0"}); err != nil {
					t.Fatal(err)
				}
			}
		})
		netnstest.Eventually(t, limit, "one is answered", func() bool { return a.Status()["eth0"].Answered > answered })
		if got := a.Status()["eth0"].Answered; got != answered+1 {
			t.Errorf("%d were answered, want one", got-answered)
		}
	})
}

// A cable that is pulled, an interface that goes and one of the same name that
// comes: it goes on as soon as it can.
func TestNetnsInterfacesComeAndGo(t *testing.T) {
	netnstest.Run(t, func() {
		neighbour := wire(t)
		a := newAdvertiser(t)
		c := content(30*time.Minute, "", "", "fd00:10::/64")
		a.Apply(t.Context(), on(t, "eth0", c))
		sent := func(n uint64) {
			t.Helper()
			netnstest.Eventually(t, limit, "it advertises", func() bool { return a.Status()["eth0"].Sent >= n })
		}
		sent(1)
		netnstest.LinkDown(t, neighbour, "eth0")
		a.Apply(t.Context(), nil)
		netnstest.LinkUp(t, neighbour, "eth0")
		awaitUp(t, neighbour)
		heard := hear(t, neighbour)
		next := content(30*time.Minute, "", "", "fd00:20::/64")
		a.Apply(t.Context(), on(t, "eth0", next))
		m := await(t, heard, "after the cable was pulled", func(m message) bool { return m.lifetime > 0 })
		if want := "router 30m0s, fd00:20::/64 24h0m0s/4h0m0s, fd00:10::/64 "; !strings.HasPrefix(said(m), want) || m.prefixes[1].Preferred != 0 {
			t.Errorf("it says %s, want %s and its two hours", said(m), want)
		}

		netnstest.LinkDel(t, nil, "eth0")
		a.Apply(t.Context(), nil)
		plug(t, neighbour)
		heard = hear(t, neighbour)
		a.Apply(t.Context(), on(t, "eth0", next))
		await(t, heard, "on the new interface", func(m message) bool { return m.lifetime > 0 })
	})
}

// Without IPv6 on the interface that is said, and it begins when there is.
func TestNetnsWithoutALinkLocalAddress(t *testing.T) {
	netnstest.Run(t, func() {
		wire(t)
		netnstest.Setting(t, nil, "net/ipv6/conf/eth0/disable_ipv6", "1")
		changed := make(chan struct{}, 10)
		a := New(slog.New(slog.DiscardHandler), Options{Changed: func() { changed <- struct{}{} }})
		defer a.Stop(false)
		a.Apply(context.Background(), on(t, "eth0", content(30*time.Minute, "", "", "fd00:10::/64")))
		<-changed
		if s := a.Status()["eth0"]; s.Error != errNoAddress.Error() || s.Sent != 0 {
			t.Errorf("the status is %+v", s)
		}
		netnstest.Setting(t, nil, "net/ipv6/conf/eth0/disable_ipv6", "0")
		<-changed
		if s := a.Status()["eth0"]; s.Error != "" || s.Sent == 0 {
			t.Errorf("the status is %+v", s)
		}
	})
}
