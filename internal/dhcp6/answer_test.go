package dhcp6

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	mac  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	site = Content{
		DNS: []netip.Addr{netip.MustParseAddr("fd00:10::1")}, Search: []string{"home.example", "cluster.home.example"},
		NTP: []netip.Addr{netip.MustParseAddr("fd00:10::2"), netip.MustParseAddr("10.0.0.1")},
	}
	client = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 7}}
)

func request(more ...dhcpv6.Option) []byte {
	m := dhcpv6.Message{MessageType: dhcpv6.MessageTypeInformationRequest, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range more {
		m.AddOption(o)
	}
	return m.ToBytes()
}

// told is what a reply says, in words.
func told(t *testing.T, b []byte) string {
	t.Helper()
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	if m.MessageType != dhcpv6.MessageTypeReply || m.TransactionID != (dhcpv6.TransactionID{1, 2, 3}) {
		t.Errorf("it is a %s of %s", m.MessageType, m.TransactionID)
	}
	var out []string
	if id := m.Options.ServerID(); id != nil && id.Equal(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac}) {
		out = append(out, "server")
	}
	if id := m.Options.ClientID(); id != nil && id.Equal(client) {
		out = append(out, "client")
	}
	for _, ip := range m.Options.DNS() {
		out = append(out, "dns "+ip.String())
	}
	if l := m.Options.DomainSearchList(); l != nil {
		out = append(out, "search "+strings.Join(l.Labels, " "))
	}
	for _, ip := range m.Options.NTPServers() {
		out = append(out, "ntp "+ip.String())
	}
	for _, ip := range m.Options.SNTP() {
		out = append(out, "sntp "+ip.String())
	}
	if d := m.Options.InformationRefreshTime(0); d > 0 {
		out = append(out, "again in "+d.String())
	}
	return strings.Join(out, ", ")
}

func TestAnswer(t *testing.T) {
	wants := func(codes ...dhcpv6.OptionCode) dhcpv6.Option { return dhcpv6.OptRequestedOption(codes...) }
	for _, c := range []struct {
		name    string
		packet  []byte
		content Content
		want    string // a reply, or an error
	}{
		{"all", request(dhcpv6.OptClientID(client)), site, "" +
			"server, client, dns fd00:10::1, search home.example cluster.home.example, ntp fd00:10::2, sntp fd00:10::2, again in 10m0s"},
		{"what it asks for", request(dhcpv6.OptClientID(client), wants(dhcpv6.OptionDNSRecursiveNameServer)), site, "server, client, dns fd00:10::1, again in 10m0s"},
		{"the time of the next question", request(wants(dhcpv6.OptionInformationRefreshTime, dhcpv6.OptionNTPServer)), site, "server, ntp fd00:10::2, again in 10m0s"},
		{"nothing that there is", request(wants(dhcpv6.OptionBootfileURL)), site, "server, again in 10m0s"},
		{"nothing is there", request(dhcpv6.OptClientID(client)), Content{}, "server, client, again in 10m0s"},
		{"for us", request(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac}), wants(dhcpv6.OptionDNSRecursiveNameServer)), site, "server, dns fd00:10::1, again in 10m0s"},
		{"for another server", request(dhcpv6.OptServerID(client)), site, "it is for another server"},
		{"with an address", request(&dhcpv6.OptIANA{}), site, "it asks for an address"},
		{"with a prefix", request(&dhcpv6.OptIAPD{}), site, "it asks for an address"},
		{"another type", append([]byte{byte(dhcpv6.MessageTypeSolicit)}, request()[1:]...), site, errNotAsked.Error()},
		{"short", []byte{11, 1, 2}, site, errNotAsked.Error()},
	} {
		b, err := answer(c.packet, mac, c.content)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = told(t, b)
		}
		if got != c.want {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
		}
	}
	if _, err := answer(append(request(), 0, 1, 0, 9, 1), mac, site); err == nil || errors.Is(err, errNotAsked) {
		t.Errorf("an option that is cut short: %v", err)
	}
}

// Whatever is answered is a reply to that request, and no longer than what there
// is to say: nobody can have it sent much to somebody else.
func FuzzAnswer(f *testing.F) {
	f.Add(request(dhcpv6.OptClientID(client), dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionNTPServer)))
	f.Add(request(&dhcpv6.OptIANA{}))
	f.Add(request(dhcpv6.OptServerID(client)))
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, err := answer(b, mac, site)
		if err != nil {
			return
		}
		m, err := dhcpv6.MessageFromBytes(reply)
		if err != nil || m.MessageType != dhcpv6.MessageTypeReply || !slices.Equal(m.TransactionID[:], b[1:4]) {
			t.Errorf("the reply to %x is %x: %v", b, reply, err)
		}
		if len(reply) > len(b)+300 {
			t.Errorf("%d bytes are answered with %d", len(b), len(reply))
		}
	})
}
