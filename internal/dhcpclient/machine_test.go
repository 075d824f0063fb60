package dhcpclient

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/edge"
)

var (
	start  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	ownMAC = [6]byte{2, 0, 0, 0, 0, 0x51}
)

// play is a machine with a clock that tests move.
type play struct {
	t   *testing.T
	m   machine
	now time.Time
	did []string
}

func newPlay(t *testing.T, last *Lease) *play {
	n := uint32(0)
	return &play{t: t, now: start, m: machine{link: "eth0", lease: last, random: func() uint32 { n++; return n * 1000 }}}
}

// note writes down what is to be done.
func (p *play) note(actions []action) {
	for _, a := range actions {
		switch {
		case a.send != nil:
			text := strings.TrimPrefix(a.send.kind.String(), "MessageType")
			for _, part := range []struct {
				name string
				addr netip.Addr
			}{{" own ", a.send.own}, {" wants ", a.send.requested}, {" of ", a.send.server}} {
				if part.addr.IsValid() {
					text += part.name + part.addr.String()
				}
			}
			if a.unicast {
				text += " unicast"
			}
			p.did = append(p.did, text)
		case a.probe.IsValid():
			p.did = append(p.did, "probe "+a.probe.String())
		case a.tell.IsValid():
			p.did = append(p.did, "tell "+a.tell.String())
		case a.changed:
			text := "none"
			if l := p.m.active(); l != nil {
				text = l.Addr.String()
			}
			p.did = append(p.did, "lease "+text)
		}
	}
}

func (p *play) up(addrs ...string) {
	l := Link{Index: 1, MAC: ownMAC, Running: true}
	for _, a := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParsePrefix(a))
	}
	p.note(p.m.up(p.now, l))
}

// wait lets time pass until that, with its timers.
func (p *play) wait(d time.Duration) {
	end := p.now.Add(d)
	for range 1000 {
		if p.m.due.IsZero() || p.m.due.After(end) {
			p.now = end
			return
		}
		p.now = p.m.due
		p.note(p.m.timer(p.now))
	}
	p.t.Fatal("it does not rest")
}

func (p *play) hear(kind dhcpv4.MessageType, addr string, options ...dhcpv4.Option) {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, ClientHWAddr: ownMAC[:], TransactionID: p.m.xid, Options: dhcpv4.Options{}}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1)))
	if addr != "" {
		m.YourIPAddr = net.ParseIP(addr).To4()
		m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(24, 32)))
	}
	for _, o := range options {
		m.UpdateOption(o)
	}
	r, err := parseReply(m.ToBytes())
	if err != nil {
		p.t.Fatal(err)
	}
	p.note(p.m.packet(p.now, r))
}

func hour() dhcpv4.Option { return dhcpv4.OptIPAddressLeaseTime(time.Hour) }

func (p *play) free() { p.note(p.m.checked(p.now, "")) }

// expect compares with what was done since the last time.
func (p *play) expect(want ...string) {
	p.t.Helper()
	if got, want := strings.Join(p.did, "\n"), strings.Join(want, "\n"); got != want {
		p.t.Errorf("in state %s: got\n%s\nwant\n%s", p.m.state, got, want)
	}
	p.did = nil
}

// lease has one of an hour.
func (p *play) lease() {
	p.t.Helper()
	p.up()
	p.hear(dhcpv4.MessageTypeOffer, "10.0.0.50")
	p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
	p.free()
	p.expect("DISCOVER", "REQUEST wants 10.0.0.50 of 10.0.0.1", "probe 10.0.0.50", "lease 10.0.0.50/24", "tell 10.0.0.50")
}

func TestALeaseIsRenewedReboundAndDropped(t *testing.T) {
	p := newPlay(t, nil)
	p.lease()
	p.wait(30*time.Minute - time.Second)
	p.expect()
	p.wait(time.Second)
	p.expect("REQUEST own 10.0.0.50 unicast")
	p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
	p.expect("lease 10.0.0.50/24")
	p.wait(29 * time.Minute)
	p.expect()
	// From now on nobody answers: asked in half of what is left each time, then all are,
	// and at the end the address goes.
	p.wait(23 * time.Minute)
	p.expect("REQUEST own 10.0.0.50 unicast", "REQUEST own 10.0.0.50 unicast", "REQUEST own 10.0.0.50 unicast", "REQUEST own 10.0.0.50 unicast", "REQUEST own 10.0.0.50 unicast")
	p.wait(30 * time.Second)
	p.expect("REQUEST own 10.0.0.50 unicast", "REQUEST own 10.0.0.50")
	p.wait(7*time.Minute + 25*time.Second)
	p.expect("REQUEST own 10.0.0.50", "REQUEST own 10.0.0.50", "REQUEST own 10.0.0.50")
	if !strings.Contains(p.m.problem, "does not answer; the lease of 10.0.0.50 ends 2026-11-23T13:30:00Z") {
		t.Errorf("problem %q", p.m.problem)
	}
	p.wait(5 * time.Second)
	p.expect("lease none", "DISCOVER")
	p.hear(dhcpv4.MessageTypeOffer, "10.0.0.51")
	p.hear(dhcpv4.MessageTypeAck, "10.0.0.51", hour())
	p.free()
	p.expect("REQUEST wants 10.0.0.51 of 10.0.0.1", "probe 10.0.0.51", "lease 10.0.0.51/24", "tell 10.0.0.51")
	if p.m.problem != "" {
		t.Errorf("problem %q", p.m.problem)
	}
}

func TestNobodyAnswers(t *testing.T) {
	p := newPlay(t, nil)
	p.up()
	var gaps []string
	last := p.now
	for range 9 {
		p.now = p.m.due
		p.note(p.m.timer(p.now))
		gaps = append(gaps, fmt.Sprint(p.now.Sub(last).Round(time.Second)))
		last = p.now
	}
	if got := strings.Join(gaps, " "); got != "1s 2s 4s 7s 14s 28s 56s 56s 56s" {
		t.Errorf("asked after %s", got)
	}
	if p.m.problem != "no DHCP server answers" {
		t.Errorf("problem %q", p.m.problem)
	}
}

func TestTheLastLeaseIsAskedForFirst(t *testing.T) {
	last := func() *Lease {
		return &Lease{
			LinkLease: edge.LinkLease{Link: "eth0", Addr: netip.MustParsePrefix("10.0.0.50/24"), Server: netip.MustParseAddr("10.0.0.1"), Begun: start.Add(-time.Minute), Expires: start.Add(time.Hour)},
			MAC:       "02:00:00:00:00:51", Renew: start.Add(30 * time.Minute), Rebind: start.Add(50 * time.Minute),
		}
	}
	t.Run("good", func(t *testing.T) {
		p := newPlay(t, last())
		p.up()
		p.expect("REQUEST wants 10.0.0.50")
		p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
		p.free()
		p.expect("probe 10.0.0.50", "lease 10.0.0.50/24", "tell 10.0.0.50")
	})
	t.Run("still on the interface", func(t *testing.T) {
		p := newPlay(t, last())
		p.up("10.0.0.50/24")
		p.expect("lease 10.0.0.50/24", "REQUEST wants 10.0.0.50")
		p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
		p.expect("lease 10.0.0.50/24")
	})
	t.Run("of another network", func(t *testing.T) {
		p := newPlay(t, last())
		p.up("10.0.0.50/24")
		p.hear(dhcpv4.MessageTypeNak, "")
		p.expect("lease 10.0.0.50/24", "REQUEST wants 10.0.0.50", "lease none", "DISCOVER")
	})
	t.Run("refused twice", func(t *testing.T) {
		p := newPlay(t, last())
		p.up()
		p.hear(dhcpv4.MessageTypeNak, "")
		p.hear(dhcpv4.MessageTypeOffer, "10.0.0.51")
		p.hear(dhcpv4.MessageTypeNak, "", dhcpv4.OptMessage("no\x1b[1m"))
		p.expect("REQUEST wants 10.0.0.50", "DISCOVER", "REQUEST wants 10.0.0.51 of 10.0.0.1")
		if p.m.problem != "a DHCP server has refused the address that was asked for: no[1m" {
			t.Errorf("problem %q", p.m.problem)
		}
		p.wait(afterDecline - time.Second)
		p.expect()
		p.wait(time.Second)
		p.expect("DISCOVER")
	})
	t.Run("nobody answers", func(t *testing.T) {
		p := newPlay(t, last())
		p.up()
		p.wait(10 * time.Second)
		p.expect("REQUEST wants 10.0.0.50", "REQUEST wants 10.0.0.50", "REQUEST wants 10.0.0.50", "probe 10.0.0.50")
		p.free()
		p.expect("lease 10.0.0.50/24", "tell 10.0.0.50")
		p.wait(30 * time.Minute)
		p.expect("REQUEST own 10.0.0.50 unicast")
	})
	t.Run("over", func(t *testing.T) {
		p := newPlay(t, last())
		p.now = start.Add(2 * time.Hour)
		p.up()
		p.expect("DISCOVER")
	})
	t.Run("of another interface", func(t *testing.T) {
		l := last()
		l.MAC = "02:00:00:00:00:99"
		p := newPlay(t, l)
		p.up()
		p.expect("DISCOVER")
	})
}

func TestSomebodyHasTheAddress(t *testing.T) {
	p := newPlay(t, nil)
	p.up()
	p.hear(dhcpv4.MessageTypeOffer, "10.0.0.50")
	p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
	p.note(p.m.checked(p.now, "02:00:00:00:00:07"))
	p.expect("DISCOVER", "REQUEST wants 10.0.0.50 of 10.0.0.1", "probe 10.0.0.50", "DECLINE wants 10.0.0.50 of 10.0.0.1")
	if p.m.problem != "the DHCP server 10.0.0.1 gives 10.0.0.50, which 02:00:00:00:00:07 has; it was told, and is asked for another" {
		t.Errorf("problem %q", p.m.problem)
	}
	p.wait(afterDecline)
	p.expect("DISCOVER")
}

func TestACableThatIsPutBackIsAskedAtOnce(t *testing.T) {
	p := newPlay(t, nil)
	p.lease()
	p.note(p.m.down(p.now))
	p.wait(time.Minute)
	p.expect()
	if p.m.active() == nil {
		t.Error("the address is gone with the cable")
	}
	p.up("10.0.0.50/24")
	p.expect("REQUEST wants 10.0.0.50")
	p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", hour())
	p.expect("lease 10.0.0.50/24")
	// It is not put back before its time is over.
	p.note(p.m.down(p.now))
	p.wait(2 * time.Hour)
	p.expect("lease none")
	p.up()
	p.expect("DISCOVER")
}

func TestAnotherMACIsAnotherClient(t *testing.T) {
	p := newPlay(t, nil)
	p.lease()
	p.note(p.m.up(p.now, Link{Index: 1, MAC: [6]byte{2, 9}, Running: true}))
	p.expect("lease none", "DISCOVER")
}

func TestAnswersToOthersAreNotListenedTo(t *testing.T) {
	p := newPlay(t, nil)
	p.up()
	m := reply{kind: dhcpv4.MessageTypeOffer, xid: p.m.xid, mac: [6]byte{2, 9}, addr: netip.MustParseAddr("10.0.0.9"), server: netip.MustParseAddr("10.0.0.1")}
	p.note(p.m.packet(p.now, m))
	m.mac, m.xid = ownMAC, [4]byte{9, 9, 9, 9}
	p.note(p.m.packet(p.now, m))
	p.expect("DISCOVER")
}

func TestItIsGivenBackOnlyWhenTold(t *testing.T) {
	p := newPlay(t, nil)
	p.lease()
	p.note(p.m.release(p.now))
	p.expect("RELEASE own 10.0.0.50 of 10.0.0.1 unicast", "lease none")
	p.note(p.m.release(p.now))
	p.expect()
}

func TestWhatALeaseSays(t *testing.T) {
	get := func(t *testing.T, options ...dhcpv4.Option) *Lease {
		p := newPlay(t, nil)
		p.up()
		p.hear(dhcpv4.MessageTypeOffer, "10.0.0.50")
		p.hear(dhcpv4.MessageTypeAck, "10.0.0.50", options...)
		if p.m.candidate == nil {
			t.Fatal("no lease")
		}
		return p.m.candidate
	}
	for _, tt := range []struct {
		name                   string
		options                []dhcpv4.Option
		expires, renew, rebind time.Duration
	}{
		{"an hour", []dhcpv4.Option{hour()}, time.Hour, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{"times of its own", []dhcpv4.Option{hour(), dhcpv4.OptRenewTimeValue(time.Minute), dhcpv4.OptRebindingTimeValue(2 * time.Minute)}, time.Hour, time.Minute, 2 * time.Minute},
		{"times that cannot be", []dhcpv4.Option{hour(), dhcpv4.OptRenewTimeValue(3 * time.Hour), dhcpv4.OptRebindingTimeValue(2 * time.Hour)}, time.Hour, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{"times without rest", []dhcpv4.Option{hour(), dhcpv4.OptRenewTimeValue(time.Second), dhcpv4.OptRebindingTimeValue(2 * time.Second)}, time.Hour, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{"more time at once", []dhcpv4.Option{hour(), dhcpv4.OptRenewTimeValue(time.Second)}, time.Hour, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{"a short one", []dhcpv4.Option{dhcpv4.OptIPAddressLeaseTime(40 * time.Second), dhcpv4.OptRenewTimeValue(20 * time.Second)}, 40 * time.Second, 20 * time.Second, 35 * time.Second},
		{"nothing", nil, time.Hour, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{"no time at all", []dhcpv4.Option{dhcpv4.OptIPAddressLeaseTime(0)}, leastLease, leastLease / 2, leastLease * 7 / 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := get(t, tt.options...)
			if l.Expires.Sub(start) != tt.expires || l.Renew.Sub(start) != tt.renew || l.Rebind.Sub(start) != tt.rebind {
				t.Errorf("expires %s, renew %s, rebind %s", l.Expires.Sub(start), l.Renew.Sub(start), l.Rebind.Sub(start))
			}
		})
	}
	if l := get(t, dhcpv4.OptIPAddressLeaseTime(endless)); !l.Expires.IsZero() || !l.Renew.IsZero() {
		t.Errorf("a lease without an end: %+v", l)
	}
	// A network that is half of everything would be a default route by another name.
	for mask, want := range map[[4]byte]string{{255, 255, 254, 0}: "10.0.0.50/23", {255}: "10.0.0.50/8", {254}: "10.0.0.50/8", {128}: "10.0.0.50/8", {}: "10.0.0.50/8", {255, 0, 255, 0}: "10.0.0.50/8"} {
		if l := get(t, hour(), dhcpv4.OptSubnetMask(mask[:])); l.Addr.String() != want {
			t.Errorf("with the mask %d it is %s, want %s", mask, l.Addr, want)
		}
	}
	l := get(t, hour(), dhcpv4.OptRouter(net.IPv4(0, 0, 0, 0), net.IPv4(10, 0, 0, 50), net.IPv4(10, 0, 0, 1)), dhcpv4.OptDNS(net.IPv4(9, 9, 9, 9), net.IPv4(9, 9, 9, 9), net.IPv4(127, 0, 0, 1)),
		dhcpv4.OptDomainName("Home.Example."), dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 68}))
	if got := fmt.Sprintf("%s %s %s %d", l.Router, l.DNS, l.Domain, l.MTU); got != "10.0.0.1 [9.9.9.9] home.example 0" {
		t.Errorf("got %s", got)
	}
	if l := get(t, hour(), dhcpv4.OptDomainName("a b\n; rm")); l.Domain != "" {
		t.Errorf("domain %q", l.Domain)
	}
}
