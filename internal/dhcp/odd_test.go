package dhcp

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

func TestWhoIsWhichNode(t *testing.T) {
	for _, tt := range []struct {
		node, says string
		want       bool
	}{
		{"worker-1", "worker-1", true},
		{"worker-1", "worker-1.home.example", true},
		{"worker-1.home.example", "worker-1", true},
		{"worker-1.home.example", "worker-1.home.example", true},
		{"worker-1.home.example", "worker-1.other.example", false},
		{"worker-1", "worker-11", false},
		{"worker-1", "", false},
	} {
		r := request{hostname: tt.says}
		if got := r.matches(&config.Reservation{Node: tt.node}); got != tt.want {
			t.Errorf("%s for one that says %q: %v", tt.node, tt.says, got)
		}
	}
}

func TestTheNameOfRFC4702(t *testing.T) {
	for option, want := range map[string]string{
		"\x00\x00\x00Laptop.home.example":           "laptop.home.example",
		"\x05\x00\x00\x06Laptop\x04home\x07example": "laptop.home.example", // without its end
		"\x04\x00\x00\x06Laptop\x04home\x00":        "laptop.home",
		"\x04\x00\x00\x3f":                          "",
		"\x04\x00":                                  "",
	} {
		if got := fqdn([]byte(option)); got != want {
			t.Errorf("%q: %q, want %q", option, got, want)
		}
	}
}

func TestAnAddressThatWasGivenWhileItWasLookedAtStays(t *testing.T) {
	p := newPlay(t, site(nil))
	r := p.book.Answer(&p.zone, p.message("1 DISCOVER"), p.now)
	if !r.Probe.IsValid() {
		t.Fatal("nobody is looked for")
	}
	p.do("1 REQUEST server=10.0.0.1 requested=" + r.Probe.String())
	if changes := p.book.Probed(&p.zone, r.Probe, "02:00:00:00:00:01", p.now.Add(time.Second)); len(changes) > 0 {
		t.Errorf("it is set aside: %v", changes)
	}
}

func TestAMachineLeavesAPoolThatHasMoved(t *testing.T) {
	p := newPlay(t, site(noProbe))
	p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.103")
	p.zone = site(func(c *config.Config) {
		noProbe(c)
		c.DHCP[0].Pools = []edge.Range{span("10.0.0.200-10.0.0.201")}
	})
	if got := p.do("1 REQUEST ciaddr=10.0.0.103"); got != "NAK (address is not given any more) to all" {
		t.Error(got)
	}
	p.now = p.now.Add(13 * time.Hour)
	if forgotten := p.book.Forget([]Zone{p.zone}, p.now); len(forgotten) != 1 || !forgotten[0].Expires.IsZero() || forgotten[0].Addr != addr("10.0.0.103") {
		t.Errorf("forgotten: %v", forgotten)
	}
}

func TestHeadersOfReplies(t *testing.T) {
	zone := site(noProbe)
	zone.Own = append(zone.Own, addr("10.7.0.1"))
	p := newPlay(t, zone)
	p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.103")
	p.do("1 REQUEST ciaddr=10.0.0.103")
	if got := addr4(p.last.ClientIPAddr); got != addr("10.0.0.103") {
		t.Errorf("ciaddr of an ACK: %s", got)
	}
	p.do("2 REQUEST relay=10.2.0.1 requested=10.9.0.1")
	if p.last.MessageType() != dhcpv4.MessageTypeNak || !p.last.IsBroadcast() {
		t.Errorf("a relay agent is not told to send a refusal to all: %v", p.last)
	}
	in := p.message("2 DISCOVER relay=10.2.0.1")
	in.Dst = netip.MustParseAddr("10.7.0.1")
	p.send(in)
	if got := addr4(p.last.ServerIdentifier()); got != addr("10.7.0.1") {
		t.Errorf("a relay agent that knows this machine as 10.7.0.1 hears of %s", got)
	}
}

// An option can come in many parts, which are one (RFC 3396): an identifier of
// kilobytes for each address of a pool would fill the file of leases.
func TestIdentifiersAreShort(t *testing.T) {
	p := newPlay(t, site(noProbe))
	p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.100 id=" + strings.Repeat("x", 254))
	if l := p.kept[len(p.kept)-1]; len(l.ClientID) != 2*255 {
		t.Errorf("the longest one is kept as %q", l.ClientID)
	}
	if got := p.do("2 DISCOVER id=" + strings.Repeat("x", 255)); got != "- does not say who asks" {
		t.Error(got)
	}
}

// Whoever declines all that he is offered does not have the pool for himself: what
// he has only said is looked at again when nothing else is left. What was seen to
// be somebody's stays so.
func TestWhoDeclinesEverythingLeavesSomething(t *testing.T) {
	p := newPlay(t, site(nil))
	p.taken[addr("10.0.0.103")] = "02:00:00:00:00:99"
	for range 10 {
		if offer := p.do("1 DISCOVER"); strings.HasPrefix(offer, "OFFER") {
			p.do("1 DECLINE server=10.0.0.1 requested=" + addr4(p.last.YourIPAddr).String())
		}
	}
	p.do("wait 2s")
	got := p.do("2 DISCOVER")
	if !strings.HasPrefix(got, "OFFER 10.0.0.10") || !strings.HasSuffix(got, ", probed") {
		t.Fatalf("somebody else: %s", got)
	}
	a := addr4(p.last.YourIPAddr)
	if a == addr("10.0.0.103") {
		t.Errorf("%s is offered, where somebody was seen", a)
	}
	if got := p.do("2 REQUEST server=10.0.0.1 requested=" + a.String()); got != "ACK "+a.String() {
		t.Error(got)
	}
	// Without a look nobody knows better than who has declined.
	p = newPlay(t, site(noProbe))
	for range 10 {
		if offer := p.do("1 DISCOVER"); strings.HasPrefix(offer, "OFFER") {
			p.do("1 DECLINE server=10.0.0.1 requested=" + addr4(p.last.YourIPAddr).String())
		}
	}
	p.do("wait 2s")
	if got := p.do("2 DISCOVER"); got != "- no address is left" {
		t.Error(got)
	}
}
