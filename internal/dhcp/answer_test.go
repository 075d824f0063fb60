package dhcp

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

var begin = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func span(s string) edge.Range {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		last = first
	}
	return edge.Range{First: addr(first), Last: addr(last)}
}

// site is a zone with a cable, and a network behind a relay agent.
func site(change func(*config.Config)) Zone {
	c := &config.Config{
		Zones: []edge.Zone{{Name: "cluster", Interfaces: []string{"eth0"}}},
		DHCP: []config.DHCP{{
			Zone: "cluster", Pools: []edge.Range{span("10.0.0.100-10.0.0.103")}, LeaseTime: 12 * time.Hour, Probe: true,
			Reservations: []config.Reservation{
				{MAC: "02:00:00:00:00:0a", Address: addr("10.0.0.11"), Hostname: "nas"},
				{Node: "worker-1", Address: addr("10.0.0.12")},
			},
			Relayed: []config.RelayedNetwork{{Network: netip.MustParsePrefix("10.2.0.0/24"), Pools: []edge.Range{span("10.2.0.50-10.2.0.59")}}},
		}},
	}
	if change != nil {
		change(c)
	}
	zones, problems := Plan(Inputs{Config: c, Interfaces: []edge.Interface{{
		Name: "eth0", Index: 2, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")},
	}}})
	if len(zones) != 1 || len(problems) > 0 {
		panic(fmt.Sprint(zones, problems))
	}
	return zones[0]
}

// play is a server and the machines of its zone.
type play struct {
	t     testing.TB
	book  *Book
	zone  Zone
	now   time.Time
	kept  []edge.Lease // in the order of changes
	taken map[netip.Addr]string
	last  *dhcpv4.DHCPv4 // the last reply
}

func newPlay(t testing.TB, zone Zone) *play {
	return &play{t: t, book: NewBook(nil), zone: zone, now: begin, taken: map[netip.Addr]string{}}
}

// message reads what a machine sends: "a DISCOVER requested=10.0.0.5". Its name,
// a letter, is the end of its hardware address.
func (p *play) message(line string) Packet {
	p.t.Helper()
	words := strings.Fields(line)
	last, err := strconv.ParseUint(words[0], 16, 8)
	if err != nil {
		p.t.Fatal(err)
	}
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4},
		ClientHWAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(last)}, Options: dhcpv4.Options{},
	}
	types := map[string]dhcpv4.MessageType{
		"DISCOVER": dhcpv4.MessageTypeDiscover, "REQUEST": dhcpv4.MessageTypeRequest, "DECLINE": dhcpv4.MessageTypeDecline,
		"RELEASE": dhcpv4.MessageTypeRelease, "INFORM": dhcpv4.MessageTypeInform, "OFFER": dhcpv4.MessageTypeOffer,
	}
	m.UpdateOption(dhcpv4.OptMessageType(types[words[1]]))
	in := Packet{Device: "eth0", DHCPv4: m}
	for _, word := range words[2:] {
		key, v, _ := strings.Cut(word, "=")
		ip := net.ParseIP(v).To4()
		switch key {
		case "requested":
			m.UpdateOption(dhcpv4.OptRequestedIPAddress(ip))
		case "server":
			m.UpdateOption(dhcpv4.OptServerIdentifier(ip))
		case "ciaddr":
			m.ClientIPAddr = ip
		case "relay":
			m.GatewayIPAddr = ip
		case "src":
			in.Src = addr(v)
		case "host":
			m.UpdateOption(dhcpv4.OptHostName(v))
		case "id":
			m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, []byte("\x00"+v)))
		case "lease":
			d, _ := time.ParseDuration(v)
			m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(d))
		case "link":
			m.UpdateOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.LinkSelectionSubOption, ip)))
		case "override":
			m.UpdateOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.ServerIdentifierOverrideSubOption, ip)))
		case "rapid":
			m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRapidCommit, nil))
		case "broadcast":
			m.SetBroadcast()
		case "anonymous":
			m.ClientHWAddr = nil
		case "device":
			in.Device = v
		default:
			p.t.Fatalf("what is %s?", word)
		}
	}
	return in
}

// do plays a line, and says what has come of it.
func (p *play) do(line string) string {
	p.t.Helper()
	switch words := strings.Fields(line); words[0] {
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			p.t.Fatal(err)
		}
		p.now = p.now.Add(d)
		return ""
	case "taken":
		p.taken[addr(words[1])] = words[2]
		return ""
	case "leases":
		var all []string
		for _, l := range p.book.Leases(p.now) {
			s := l.Addr.String() + " " + l.MAC[max(0, len(l.MAC)-1):] + " " + l.Hostname
			if l.Declined {
				s += "declined"
			}
			all = append(all, strings.TrimSpace(s))
		}
		return strings.Join(all, ", ")
	}
	return p.send(p.message(line))
}

func (p *play) send(in Packet) string {
	probed := ""
	for range 10 {
		r := p.book.Answer(&p.zone, in, p.now)
		p.kept = append(p.kept, r.Changes...)
		if r.Probe.IsValid() {
			p.kept = append(p.kept, p.book.Probed(&p.zone, r.Probe, p.taken[r.Probe], p.now)...)
			probed = ", probed"
			if r.Relayed {
				probed += " by ICMP"
			}
			continue
		}
		p.last = r.Reply
		if r.Reply == nil {
			return "- " + r.Why
		}
		s := r.Reply.MessageType().String()
		if a := addr4(r.Reply.YourIPAddr); a.IsValid() {
			s += " " + a.String()
		}
		if s == "NAK" {
			s += " (" + r.Why + ")"
		}
		switch r.To.Way {
		case Broadcast:
			s += " to all"
		case ToHardware:
			if r.To.Addr.Addr() != addr4(r.Reply.YourIPAddr) {
				s += " to hardware of " + r.To.Addr.String()
			}
		case ByRoute:
			s += " to " + r.To.Addr.String()
		}
		return s + probed
	}
	p.t.Fatal("probes without end")
	return ""
}

// TestMachinesGetWhatRFC2131Says has the tables of RFC 2131 section 4.3, as plays
// of two columns: what is sent, and what comes of it.
func TestMachinesGetWhatRFC2131Says(t *testing.T) {
	tests := []struct {
		name   string
		change func(*config.Config)
		script [][2]string
	}{
		{"a new machine", noProbe, [][2]string{
			{"1 DISCOVER", "OFFER 10.0.0.103"},
			{"1 DISCOVER", "OFFER 10.0.0.103"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.103", "ACK 10.0.0.103"},
			{"leases", "10.0.0.103 1"},
		}},
		{"the address it asks for, if it is free", noProbe, [][2]string{
			{"1 DISCOVER requested=10.0.0.103", "OFFER 10.0.0.103"},
			{"2 DISCOVER requested=10.0.0.103", "OFFER 10.0.0.102"},
			{"3 DISCOVER requested=10.0.0.7", "OFFER 10.0.0.101"},
			{"4 DISCOVER requested=192.168.0.7", "OFFER 10.0.0.100"},
			{"5 DISCOVER", "- no address is left"},
			{"wait 31s", ""},
			{"5 DISCOVER", "OFFER 10.0.0.103"},
		}},
		{"how it is told", noProbe, [][2]string{
			{"1 DISCOVER broadcast requested=10.0.0.101", "OFFER 10.0.0.101 to all"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.101 broadcast", "ACK 10.0.0.101 to all"},
			{"1 REQUEST ciaddr=10.0.0.101 broadcast", "ACK 10.0.0.101"}, // it has an address: it takes unicast
			{"1 REQUEST requested=10.0.0.103", "NAK (another address is its own) to all"},
		}},
		{"another server is chosen", noProbe, [][2]string{
			{"1 DISCOVER", "OFFER 10.0.0.103"},
			{"1 REQUEST server=10.0.0.9 requested=10.0.0.7", "- is for another server"},
			{"2 DISCOVER requested=10.0.0.103", "OFFER 10.0.0.103"},
		}},
		{"chosen after this program has forgotten what it offered", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.102", "ACK 10.0.0.102"},
			{"2 REQUEST server=10.0.0.1 requested=10.0.0.102", "NAK (address is another's) to all"},
			{"2 REQUEST server=10.0.0.1 requested=10.0.0.7", "NAK (address is not given any more) to all"},
			{"2 DISCOVER requested=10.0.0.103", "OFFER 10.0.0.103"},
			{"3 REQUEST server=10.0.0.1 requested=10.0.0.103", "NAK (address is another's) to all"},
			{"3 REQUEST server=10.0.0.1", "- asks for no address"},
		}},
		{"INIT-REBOOT", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.102", "ACK 10.0.0.102"},
			{"wait 1h", ""},
			{"1 REQUEST requested=10.0.0.102", "ACK 10.0.0.102"},
			{"1 REQUEST requested=192.168.1.5", "NAK (wrong network) to all"},
			{"2 REQUEST requested=10.0.0.102", "NAK (address is another's) to all"},
			{"2 REQUEST requested=10.0.0.77", "- is for an address that is not given here"},
			{"2 REQUEST requested=10.0.0.103", "ACK 10.0.0.103"}, // of a pool, and nobody's: another server's of before
		}},
		{"RENEWING and REBINDING", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.102", "ACK 10.0.0.102"},
			{"wait 11h", ""},
			{"1 REQUEST ciaddr=10.0.0.102", "ACK 10.0.0.102"},
			{"wait 11h", ""},
			{"leases", "10.0.0.102 1"},
			{"2 REQUEST ciaddr=10.0.0.102", "NAK (address is another's) to all"},
			{"2 REQUEST ciaddr=10.0.0.77", "- is for an address that is not given here"},
			{"2 REQUEST ciaddr=192.168.0.5", "NAK (wrong network) to all"},
			{"wait 2h", ""},
			{"leases", ""},
			{"1 REQUEST ciaddr=10.0.0.102", "ACK 10.0.0.102"}, // late, and nobody else has it
		}},
		{"a machine gets its former address again", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.102", "ACK 10.0.0.102"},
			{"wait 100h", ""},
			{"2 DISCOVER", "OFFER 10.0.0.103"},
			{"1 DISCOVER requested=10.0.0.101", "OFFER 10.0.0.102"},
		}},
		{"the address that nobody has had for the longest time goes first", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.100", "ACK 10.0.0.100"},
			{"wait 1m", ""},
			{"2 REQUEST server=10.0.0.1 requested=10.0.0.101", "ACK 10.0.0.101"},
			{"3 REQUEST server=10.0.0.1 requested=10.0.0.102", "ACK 10.0.0.102"},
			{"4 REQUEST server=10.0.0.1 requested=10.0.0.103", "ACK 10.0.0.103"},
			{"wait 1m", ""},
			{"5 DISCOVER", "- no address is left"},
			{"4 RELEASE ciaddr=10.0.0.103 server=10.0.0.1", "- needs no answer"},
			{"wait 13h", ""},
			{"5 DISCOVER", "OFFER 10.0.0.103"},
			{"6 DISCOVER", "OFFER 10.0.0.100"},
		}},
		{"RELEASE", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.100", "ACK 10.0.0.100"},
			{"2 RELEASE ciaddr=10.0.0.100 server=10.0.0.1", "- releases what it does not have"},
			{"1 RELEASE ciaddr=10.0.0.100 server=10.0.0.9", "- releases what it does not have"},
			{"leases", "10.0.0.100 1"},
			{"1 RELEASE ciaddr=10.0.0.100 server=10.0.0.1", "- needs no answer"},
			{"leases", ""},
			{"1 RELEASE ciaddr=10.0.0.100 server=10.0.0.1", "- releases what it does not have"},
			{"1 DISCOVER", "OFFER 10.0.0.100"},
		}},
		{"DECLINE", noProbe, [][2]string{
			{"1 DISCOVER", "OFFER 10.0.0.103"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.103", "ACK 10.0.0.103"},
			{"2 DECLINE server=10.0.0.1 requested=10.0.0.103", "- declines what it does not have"},
			{"1 DECLINE server=10.0.0.9 requested=10.0.0.103", "- declines what it does not have"},
			{"1 DECLINE server=10.0.0.1 requested=10.0.0.103", "- needs no answer"},
			{"leases", "10.0.0.103  declined"},
			{"1 DISCOVER", "OFFER 10.0.0.100"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.103", "NAK (address is in use) to all"},
			{"wait 11m", ""},
			{"2 DISCOVER requested=10.0.0.103", "OFFER 10.0.0.103"},
		}},
		{"INFORM", noProbe, [][2]string{
			{"1 INFORM ciaddr=10.0.0.200", "ACK to hardware of 10.0.0.200:68"},
			{"1 INFORM src=10.0.0.200", "ACK to hardware of 10.0.0.200:68"},
			{"1 INFORM ciaddr=10.9.0.200", "- is of a network that nothing is given in"},
			{"1 INFORM ciaddr=10.2.0.7 src=10.2.0.7", "ACK to 10.2.0.7:68"},
			{"leases", ""},
		}},
		{"somebody is there who was not given the address", nil, [][2]string{
			{"taken 10.0.0.103 02:00:00:00:00:ee", ""},
			{"taken 10.0.0.100 02:00:00:00:00:ef", ""},
			{"1 DISCOVER", "OFFER 10.0.0.101, probed"},
			{"1 DISCOVER", "OFFER 10.0.0.101"},
			{"leases", "10.0.0.100 f declined, 10.0.0.103 e declined"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.101", "ACK 10.0.0.101"},
			{"1 DISCOVER", "OFFER 10.0.0.101"}, // its own, which needs no look
			{"2 DISCOVER", "OFFER 10.0.0.102, probed"},
			{"3 DISCOVER", "- no address is left"},
		}},
		{"reserved by MAC", noProbe, [][2]string{
			{"a DISCOVER", "OFFER 10.0.0.11"},
			{"a DISCOVER id=loader", "OFFER 10.0.0.11"},
			{"a REQUEST server=10.0.0.1 requested=10.0.0.11 host=whatever", "ACK 10.0.0.11"},
			{"1 DISCOVER requested=10.0.0.11", "OFFER 10.0.0.103"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.11", "NAK (address is another's) to all"},
			{"a DISCOVER id=pxe", "OFFER 10.0.0.11"}, // the same machine while it boots
			{"a REQUEST server=10.0.0.1 requested=10.0.0.11 id=pxe", "ACK 10.0.0.11"},
			{"leases", "10.0.0.11 a nas"},
		}},
		{"an address that is in use is not reserved", nil, [][2]string{
			{"taken 10.0.0.11 02:00:00:00:00:ee", ""},
			{"a DISCOVER", "OFFER 10.0.0.103, probed"},
			{"a REQUEST server=10.0.0.1 requested=10.0.0.103", "ACK 10.0.0.103"},
			{"a REQUEST ciaddr=10.0.0.103", "ACK 10.0.0.103"},
			{"wait 11m", ""}, // another look
			{"a REQUEST ciaddr=10.0.0.103", "NAK (another address is reserved) to all"},
		}},
		{"reserved for a node", noProbe, [][2]string{
			{"1 DISCOVER host=worker-1", "OFFER 10.0.0.12"},
			{"2 DISCOVER host=WORKER-1.cluster.example.", "OFFER 10.0.0.102"}, // the second to say so
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.12 host=worker-1", "ACK 10.0.0.12"},
			{"2 REQUEST server=10.0.0.1 requested=10.0.0.12 host=worker-1", "NAK (address is another's) to all"},
			{"1 REQUEST ciaddr=10.0.0.12 host=worker-1", "ACK 10.0.0.12"},
			{"leases", "10.0.0.12 1 worker-1"},
			{"wait 13h", ""},
			{"2 DISCOVER host=worker-1", "OFFER 10.0.0.12"},
			{"3 DISCOVER host=worker-11", "OFFER 10.0.0.101"},
		}},
		{"one lease in a network", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.100", "ACK 10.0.0.100"},
			{"1 DISCOVER host=worker-1", "OFFER 10.0.0.12"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.12 host=worker-1", "ACK 10.0.0.12"},
			{"leases", "10.0.0.12 1 worker-1"},
		}},
		{"client identifiers", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.100 id=x", "ACK 10.0.0.100"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.101 id=y", "ACK 10.0.0.101"},
			{"2 DISCOVER id=x", "OFFER 10.0.0.100"}, // another card in the same machine
			{"1 DISCOVER", "OFFER 10.0.0.103"},
			{"1 DISCOVER anonymous id=z", "OFFER 10.0.0.102 to all"},
			{"1 DISCOVER anonymous", "- does not say who asks"},
		}},
		{"relay agents", nil, [][2]string{
			{"1 DISCOVER relay=10.2.0.1", "OFFER 10.2.0.59 to 10.2.0.1:67, probed by ICMP"},
			{"1 REQUEST relay=10.2.0.1 server=10.0.0.1 requested=10.2.0.59", "ACK 10.2.0.59 to 10.2.0.1:67"},
			{"1 REQUEST ciaddr=10.2.0.59 src=10.2.0.59", "ACK 10.2.0.59 to 10.2.0.59:68"}, // past the relay agent
			{"1 REQUEST relay=10.2.0.1 requested=10.0.0.100", "NAK (wrong network) to 10.2.0.1:67"},
			{"1 REQUEST ciaddr=10.2.0.59", "NAK (wrong network) to all"}, // it was brought to this cable
			{"1 DISCOVER relay=10.3.0.1", "- is of a network that nothing is given in"},
			{"2 DISCOVER relay=10.3.0.1 link=10.2.0.0", "OFFER 10.2.0.58 to 10.3.0.1:67, probed by ICMP"},
			{"3 DISCOVER relay=10.0.0.77", "OFFER 10.0.0.101 to 10.0.0.77:67, probed"},
			{"4 DISCOVER relay=10.2.0.1 override=10.2.0.1", "OFFER 10.2.0.54 to 10.2.0.1:67, probed by ICMP"},
			{"4 REQUEST relay=10.2.0.1 override=10.2.0.1 server=10.2.0.1 requested=10.2.0.54", "ACK 10.2.0.54 to 10.2.0.1:67"},
		}},
		{"rapid commit", nil, [][2]string{
			{"1 DISCOVER rapid host=laptop", "ACK 10.0.0.103, probed"},
			{"leases", "10.0.0.103 1 laptop"},
			{"2 REQUEST server=10.0.0.9 requested=10.0.0.7", "- is for another server"},
			{"3 DISCOVER rapid", "OFFER 10.0.0.101, probed"}, // not beside another server
			{"wait 2h", ""},
			{"3 DISCOVER rapid", "ACK 10.0.0.101, probed"},
		}},
		{"names", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.103 host=Laptop.lan", "ACK 10.0.0.103"},
			{"wait 1m", ""},
			{"2 REQUEST server=10.0.0.1 requested=10.0.0.100 host=laptop", "ACK 10.0.0.100"},
			{"3 REQUEST server=10.0.0.1 requested=10.0.0.101 host=nas", "ACK 10.0.0.101"},
			{"4 REQUEST server=10.0.0.1 requested=10.0.0.102 host=-Ann's_Phone!", "ACK 10.0.0.102"},
			{"leases", "10.0.0.100 2, 10.0.0.101 3 nas, 10.0.0.102 4 ann-s-phone, 10.0.0.103 1 laptop"},
			{"a REQUEST server=10.0.0.1 requested=10.0.0.11", "ACK 10.0.0.11"},
			{"1 REQUEST ciaddr=10.0.0.103", "ACK 10.0.0.103"},
			{"leases", "10.0.0.11 a nas, 10.0.0.100 2, 10.0.0.101 3, 10.0.0.102 4 ann-s-phone, 10.0.0.103 1 laptop"},
			{"1 RELEASE ciaddr=10.0.0.103", "- needs no answer"},
			{"leases", "10.0.0.11 a nas, 10.0.0.100 2 laptop, 10.0.0.101 3, 10.0.0.102 4 ann-s-phone"},
		}},
		{"what is for nobody here", noProbe, [][2]string{
			{"1 OFFER", "- is not for servers"},
			{"1 DISCOVER device=eth9", "- came by no interface of the zone"},
		}},
		{"one that holds another address in the pool", noProbe, [][2]string{
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.100", "ACK 10.0.0.100"},
			{"1 REQUEST requested=10.0.0.101", "NAK (another address is its own) to all"},
			{"1 REQUEST server=10.0.0.1 requested=10.0.0.101", "ACK 10.0.0.101"}, // it moves
			{"leases", "10.0.0.101 1"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlay(t, site(tt.change))
			for i, step := range tt.script {
				if got := p.do(step[0]); got != step[1] {
					t.Errorf("%d. %s\n got %s\nwant %s", i+1, step[0], got, step[1])
				}
			}
			// What is kept is what there is.
			again := NewBook(nil)
			for _, l := range p.kept {
				again.put(l)
			}
			if got, want := again.Leases(p.now), p.book.Leases(p.now); !slices.Equal(got, want) {
				t.Errorf("kept %v, want %v", got, want)
			}
		})
	}
}

func noProbe(c *config.Config) { c.DHCP[0].Probe = false }

// TestALeaseThatGoesOnIsNoNews: a thousand machines renew all the time, and what
// follows from leases stays as it is.
func TestALeaseThatGoesOnIsNoNews(t *testing.T) {
	p := newPlay(t, site(noProbe))
	for i, step := range []struct {
		line string
		news bool
	}{
		{"1 REQUEST server=10.0.0.1 requested=10.0.0.100 host=a", true},
		{"1 REQUEST ciaddr=10.0.0.100 host=a", false},
		{"1 REQUEST ciaddr=10.0.0.100", false},
		{"1 REQUEST ciaddr=10.0.0.100 host=b", true},
		{"1 RELEASE ciaddr=10.0.0.100", true},
		{"1 REQUEST ciaddr=10.0.0.100 host=b", true},
		{"1 DECLINE requested=10.0.0.100", true},
	} {
		r := p.book.Answer(&p.zone, p.message(step.line), p.now)
		if r.News != step.news || len(r.Changes) == 0 {
			t.Errorf("%d. %s: news %v, %v", i+1, step.line, r.News, r.Changes)
		}
	}
}

// TestManyWhoGetNothingCostLittle: once there was nothing for anybody new, that is
// believed for a second.
func TestManyWhoGetNothingCostLittle(t *testing.T) {
	p := newPlay(t, site(noProbe))
	for i := range 4 {
		p.do(fmt.Sprintf("%d REQUEST server=10.0.0.1 requested=10.0.0.10%d", i, i))
	}
	for i, step := range [][2]string{
		{"5 DISCOVER", "- no address is left"},
		{"1 RELEASE ciaddr=10.0.0.101", "- needs no answer"},
		{"5 DISCOVER", "- no address is left"},
		{"1 DISCOVER", "OFFER 10.0.0.101"}, // its own
		{"2 DISCOVER", "OFFER 10.0.0.102"},
		{"wait 31s", ""},
		{"5 DISCOVER", "OFFER 10.0.0.101"},
	} {
		if got := p.do(step[0]); got != step[1] {
			t.Errorf("%d. %s: got %s, want %s", i+1, step[0], got, step[1])
		}
	}
}
