package dhcp

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
)

// told prints the options of a reply by code.
func told(m *dhcpv4.DHCPv4) string {
	var all []string
	for _, code := range slices.Sorted(maps.Keys(m.Options)) {
		all = append(all, fmt.Sprintf("%d:%x", code, m.Options[code]))
	}
	return strings.Join(all, " ")
}

func everything(c *config.Config) {
	c.DHCP[0].Probe = false
	c.DHCP[0].Options = config.DHCPOptions{
		Domain: "home.example", Search: []string{"home.example", "a.example"}, NTP: []netip.Addr{addr("10.0.0.2"), addr("10.0.0.3")},
		MTU: 1400, NextServer: addr("10.0.0.5"), BootFile: "pxelinux.0",
	}
	c.DNS = &config.DNS{Zones: []string{"cluster"}, Domain: "other.example"}
}

func TestOptionsAreThoseThatAreAskedFor(t *testing.T) {
	const always = "51:0000a8c0 53:05 54:0a000001 58:00005460 59:000093a8"
	tests := []struct {
		name   string
		change func(*config.Config)
		asks   []byte
		line   string
		want   string
	}{
		{
			"one that does not say gets all", everything, nil, "1 REQUEST server=10.0.0.1 requested=10.0.0.100",
			"1:ffffff00 3:0a000001 6:0a000001 15:686f6d652e6578616d706c65 26:0578 28:0a0000ff 42:0a0000020a000003 51:0000a8c0 53:05 54:0a000001 58:00005460 59:000093a8 66:31302e302e302e35 67:7078656c696e75782e30 119:04686f6d65076578616d706c6500016107" + "6578616d706c6500",
		},
		{"nothing that is not asked for", everything, []byte{1, 3}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100", "1:ffffff00 3:0a000001 " + always},
		{"nothing that there is not", noProbe, []byte{1, 6, 15, 26, 42, 66, 67, 119, 252}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100", "1:ffffff00 " + always},
		{"a router by the relay agent's address", noProbe, []byte{1, 3}, "1 REQUEST relay=10.2.0.9 server=10.0.0.1 requested=10.2.0.50", "1:ffffff00 3:0a020009 " + always},
		{
			"the router of a relayed network", func(c *config.Config) {
				noProbe(c)
				c.DHCP[0].Relayed[0].Router = addr("10.2.0.1")
			},
			[]byte{3},
			"1 REQUEST relay=10.2.0.9 server=10.0.0.1 requested=10.2.0.50", "3:0a020001 " + always,
		},
		{
			"no router", func(c *config.Config) {
				noProbe(c)
				c.DHCP[0].Options.Routers, c.DHCP[0].Options.DNS = []netip.Addr{}, []netip.Addr{}
				c.DNS = &config.DNS{Zones: []string{"cluster"}, Domain: "other.example"}
			}, []byte{3, 6, 15}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100", "15:6f746865722e6578616d706c65 " + always,
		},
		{"this machine's DNS behind a relay agent", everything, []byte{6}, "1 REQUEST relay=10.2.0.9 server=10.0.0.1 requested=10.2.0.50", "6:0a000001 " + always},
		{"a name that is reserved", noProbe, []byte{12}, "a REQUEST server=10.0.0.1 requested=10.0.0.11 host=x", "12:6e6173 " + always},
		{"a node's name", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.12 host=worker-1", "12:776f726b65722d31 " + always},
		{"its own name is not told", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100 host=x", always},
		{"a client identifier goes back", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100 id=x", "51:0000a8c0 53:05 54:0a000001 58:00005460 59:000093a8 61:0078"},
		{"less time, if it wants less", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100 lease=1h", "51:00000e10 53:05 54:0a000001 58:00000708 59:00000c4e"},
		{"not more", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100 lease=1000h", always},
		{"not much less", noProbe, []byte{12}, "1 REQUEST server=10.0.0.1 requested=10.0.0.100 lease=1s", "51:00000078 53:05 54:0a000001 58:0000003c 59:00000069"},
		{"a refusal has nothing", everything, nil, "1 REQUEST requested=10.9.0.1 id=x", "53:06 54:0a000001 56:77726f6e67206e6574776f726b 61:0078"},
		{"what is told without a lease", noProbe, []byte{1, 3, 51, 58}, "1 INFORM ciaddr=10.0.0.7", "1:ffffff00 3:0a000001 53:05 54:0a000001"},
		{"rapid commit", noProbe, []byte{1}, "1 DISCOVER rapid", "1:ffffff00 51:0000a8c0 53:05 54:0a000001 58:00005460 59:000093a8 80:"},
		{"what a relay agent adds goes back", noProbe, []byte{1}, "1 DISCOVER relay=10.2.0.1 override=10.2.0.1", "1:ffffff00 51:0000a8c0 53:02 54:0a020001 58:00005460 59:000093a8 82:0b040a020001"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlay(t, site(tt.change))
			in := p.message(tt.line)
			if tt.asks != nil {
				in.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, tt.asks))
			}
			p.send(in)
			if p.last == nil {
				t.Fatal("no answer")
			}
			if got := told(p.last); got != tt.want {
				t.Errorf(" got %s\nwant %s", got, tt.want)
			}
			m := p.last
			if m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != in.TransactionID || !bytes.Equal(m.ClientHWAddr, in.ClientHWAddr) || !m.GatewayIPAddr.Equal(in.GatewayIPAddr) {
				t.Errorf("its header is %v", m)
			}
			pxe := tt.change != nil && p.zone.Networks[0].Options.BootFile != "" && m.MessageType() != dhcpv4.MessageTypeNak
			if got := m.BootFileName == "pxelinux.0" && addr4(m.ServerIPAddr) == addr("10.0.0.5"); got != pxe {
				t.Errorf("boot file %q of %s", m.BootFileName, m.ServerIPAddr)
			}
			// What the relay agent has added is the last before the end.
			if v := m.Options[82]; v != nil && !bytes.Contains(m.ToBytes(), append([]byte{82, byte(len(v))}, append(slices.Clone(v), 255)...)) {
				t.Error("option 82 is not the last")
			}
		})
	}
}

// TestAReplyIsNotLongerThanItsClientTakes gives more options than there is room for.
func TestAReplyIsNotLongerThanItsClientTakes(t *testing.T) {
	zone := site(func(c *config.Config) {
		everything(c)
		o := &c.DHCP[0].Options
		for i := range 60 {
			o.NTP = append(o.NTP, netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}))
		}
		for i := range 12 {
			o.Search = append(o.Search, fmt.Sprintf("a-long-name-%d.example", i))
		}
	})
	for _, takes := range []int{0, 300, 576, 700, 1000, 1500, 65535} {
		p := newPlay(t, zone)
		in := p.message("1 DISCOVER id=" + strings.Repeat("x", 100))
		if takes > 0 {
			in.UpdateOption(dhcpv4.OptMaxMessageSize(uint16(takes)))
		}
		p.send(in)
		most := min(max(takes, 576), 1500) - 28
		got := len(p.last.ToBytes())
		if got > most {
			t.Errorf("one that takes %d gets %d bytes", takes, got+28)
		}
		if has := p.last.Options.Has(dhcpv4.OptionNTPServers) && p.last.Options.Has(dhcpv4.OptionDNSDomainSearchList); has != (takes >= 1500) {
			t.Errorf("one that takes %d gets the long options: %v", takes, has)
		}
		if !p.last.Options.Has(dhcpv4.OptionRouter) {
			t.Errorf("one that takes %d gets no router", takes)
		}
	}
}

func TestPlanSaysWhatCannotBeServed(t *testing.T) {
	c := &config.Config{}
	*c = config.Config{DHCP: nil}
	zones, problems := Plan(Inputs{Config: c})
	if len(zones) > 0 || len(problems) > 0 {
		t.Errorf("nothing: %v, %v", zones, problems)
	}
	tests := []struct {
		name, interfaces string
		change           func(*config.DHCP)
		want             []string
	}{
		{"no address", "eth0", nil, []string{
			"f.yaml:7:3: dhcp.cluster: no interface of the zone has an IPv4 address in the network of 10.0.0.100-10.0.0.199, so that nobody gets one of these; give an interface of the zone an address in that network, such as links: [{name: eth0, addresses: [10.0.0.1/24]}]",
		}},
		{"the wrong address", "eth0 10.1.0.1/24", nil, []string{
			"f.yaml:7:3: dhcp.cluster: no interface of the zone has an IPv4 address in the network of 10.0.0.100-10.0.0.199, so that nobody gets one of these; give an interface of the zone an address in that network, such as links: [{name: eth0, addresses: [10.0.0.1/24]}]",
		}},
		{"a small network", "eth0 10.0.0.97/27", nil, []string{
			"f.yaml:7:3: dhcp.cluster: some of 10.0.0.100-10.0.0.199 are not in a network of this zone's interfaces, and nobody gets them; write addresses of 10.0.0.96/27 on eth0",
		}},
		{"its own address", "eth0 10.0.0.1/24 10.0.0.150/32", nil, []string{
			"f.yaml:7:3: dhcp.cluster: the pool 10.0.0.100-10.0.0.199 has 10.0.0.150, which this machine has itself; nobody gets it; write a range without it",
		}},
		{"reservations", "eth0 10.0.0.1/24", func(d *config.DHCP) {
			d.Reservations = []config.Reservation{{MAC: "a", Address: addr("10.0.0.1")}, {MAC: "b", Address: addr("10.5.0.1")}, {MAC: "c", Address: addr("10.0.0.255")}}
		}, []string{
			": 10.0.0.1 is reserved, and this machine has it itself; write another address",
			": 10.5.0.1 is reserved, and in no network of zone cluster; write an address of a network that an interface of the zone has an address in, or that is relayed",
			": 10.0.0.255 is reserved, and stands for all of the network 10.0.0.0/24; write another address",
		}},
		{"relayed without an address", "eth0", func(d *config.DHCP) {
			d.Pools, d.Relayed = nil, []config.RelayedNetwork{{Network: netip.MustParsePrefix("10.2.0.0/24")}}
		}, []string{
			"f.yaml:7:3: dhcp.cluster: no interface of the zone has an IPv4 address, so that nobody can be answered; give one an address, such as links: [{name: eth0, addresses: [10.0.0.1/24]}]",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := Plan(planned(tt.interfaces, tt.change))
			var got []string
			for _, p := range problems {
				got = append(got, strings.TrimPrefix(p.String(), "f.yaml:7:3: :"))
			}
			want := slices.Clone(tt.want)
			for i := range want {
				want[i] = strings.TrimPrefix(want[i], ": ")
			}
			if !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

func TestNobodyGetsAnAddressThatIsKnownToBeTaken(t *testing.T) {
	in := planned("eth0 10.0.0.1/24 10.0.0.102/24", func(d *config.DHCP) {
		d.Pools = []edgeRange{span("10.0.0.0-10.0.0.3"), span("10.0.0.100-10.0.0.104"), span("10.0.0.254-10.0.0.255")}
		d.Options = config.DHCPOptions{Routers: []netip.Addr{addr("10.0.0.254")}, DNS: []netip.Addr{addr("10.0.0.100")}, NTP: []netip.Addr{addr("10.0.0.101")}, NextServer: addr("10.0.0.103")}
		d.Reservations = []config.Reservation{{MAC: "02:00:00:00:00:ff", Address: addr("10.0.0.2")}}
		d.Probe = false
	})
	zones, _ := Plan(in)
	p := newPlay(t, zones[0])
	var got []string
	for i := range 5 {
		got = append(got, p.do(fmt.Sprintf("%d DISCOVER", i)))
	}
	slices.Sort(got)
	if want := []string{"- no address is left", "- no address is left", "- no address is left", "OFFER 10.0.0.104", "OFFER 10.0.0.3"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for line, want := range map[string]string{
		"8 DISCOVER requested=10.0.0.102":                "- no address is left", // this machine's
		"8 REQUEST requested=10.0.0.100":                 "- is for an address that is not given here",
		"8 REQUEST ciaddr=10.0.0.254":                    "- is for an address that is not given here",
		"8 REQUEST server=10.0.0.1 requested=10.0.0.103": "NAK (address is not given any more) to all",
		"ff REQUEST server=10.0.0.1 requested=10.0.0.2":  "ACK 10.0.0.2",
	} {
		if got := p.do(line); got != want {
			t.Errorf("%s: got %s, want %s", line, got, want)
		}
	}
	p.now = p.now.Add(2 * time.Hour)
	p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.3")
	if size, free := p.book.Usage(&p.zone, p.now); size != 3 || free != 1 {
		t.Errorf("%d of %d are free, want 1 of 3: one is reserved", free, size)
	}
}

// TestACableCanHaveTwoNetworks: machines are told of the one that their address is of.
func TestACableCanHaveTwoNetworks(t *testing.T) {
	zones, problems := Plan(planned("eth0 10.0.0.1/24 10.1.0.1/16", func(d *config.DHCP) {
		d.Pools = []edgeRange{span("10.0.0.100"), span("10.1.0.100")}
		d.Probe = false
	}))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := newPlay(t, zones[0])
	for i, want := range []string{"OFFER 10.0.0.100", "OFFER 10.1.0.100", "- no address is left"} {
		if got := p.do(fmt.Sprintf("%d DISCOVER", i)); got != want {
			t.Errorf("machine %d: %s, want %s", i, got, want)
		}
	}
	if got := p.do("1 REQUEST server=10.1.0.1 requested=10.1.0.100"); got != "ACK 10.1.0.100" {
		t.Error(got)
	}
	if got, want := told(p.last), "1:ffff0000 3:0a010001 28:0a01ffff 51:00000e10 53:05 54:0a010001 58:00000708 59:00000c4e"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
