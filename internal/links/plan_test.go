package links

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
)

// steps are what a plan comes to, a line each, and its problems.
func steps(want Want, have *machine) string {
	all, problems := plan(want, have)
	var b strings.Builder
	for _, s := range all {
		b.WriteString(s.String() + "\n")
	}
	return b.String() + texts(problems)
}

func dev(index int, name, kind string, change ...func(*Device)) Device {
	d := Device{Index: index, Name: name, Kind: kind, Up: true, Running: true, MTU: 1500, MAC: "02:00:00:00:00:01"}
	for _, f := range change {
		f(&d)
	}
	return d
}

func made(d *Device) { d.Made, d.alias = true, alias }

func on(parent int) func(*Device) { return func(d *Device) { d.parent = parent } }

// The kernel that tests run on may have no VLANs: what is asked of it is known.
func TestPlanOfVLANs(t *testing.T) {
	want := parse(t, `links: [{name: eth0.20, vlan: {parent: eth0, id: 20}, addresses: [10.0.20.1/24]}]`)
	tag := func(id int) func(*Device) { return func(d *Device) { d.vlan = id } }
	for _, tt := range []struct {
		name string
		have []Device
		want string
	}{
		{"no parent", nil, "g.yaml:2:9: link/eth0.20: there is no interface eth0 for it to be on; plug it in, or correct parent\n"},
		{"nothing", []Device{dev(1, "eth0", "device")}, "link add eth0.20 type vlan\n"},
		{"ours", []Device{dev(1, "eth0", "device"), dev(2, "eth0.20", kindVLAN, made, on(1), tag(20))}, "addr add 10.0.20.1/24 dev eth0.20 metric 100\n"},
		{"ours, down", []Device{dev(1, "eth0", "device", func(d *Device) { d.Up = false }), dev(2, "eth0.20", kindVLAN, made, on(1), tag(20), func(d *Device) { d.Up = false })}, "link set eth0 up\nlink set eth0.20 up\naddr add 10.0.20.1/24 dev eth0.20 metric 100\n"},
		{"ours, another tag", []Device{dev(1, "eth0", "device"), dev(2, "eth0.20", kindVLAN, made, on(1), tag(21))}, "link delete eth0.20\n"},
		{"ours, on another", []Device{dev(1, "eth0", "device"), dev(3, "eth1", "device"), dev(2, "eth0.20", kindVLAN, made, on(3), tag(20))}, "link delete eth0.20\n"},
		{"somebody's", []Device{dev(1, "eth0", "device"), dev(2, "eth0.20", kindVLAN, on(1), tag(20))}, "addr add 10.0.20.1/24 dev eth0.20 metric 100\n"},
		{"somebody's, another tag", []Device{dev(1, "eth0", "device"), dev(2, "eth0.20", kindVLAN, on(1), tag(21))}, "g.yaml:2:9: link/eth0.20: there is an interface of that name already, which is VLAN 21; ip link delete eth0.20, or give the link another name\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := steps(want, &machine{devices: tt.have}); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func at(index int, addr string, ours bool, metric int) address {
	return address{mark: mark{index, netip.MustParsePrefix(addr)}, ours: ours, metric: metric, valid: forever}
}

func TestPlanOfAddressesAndRoutes(t *testing.T) {
	want := parse(t, `links: [{name: eth0, addresses: [10.0.0.1/24], routes: [{to: 10.2.0.0/16, via: 10.0.0.9}]}]`)
	route := func(index, metric int, to, via string, ours bool) Route {
		return Route{To: netip.MustParsePrefix(to), Via: netip.MustParseAddr(via), Metric: metric, index: index, ours: ours}
	}
	good := route(1, 100, "10.2.0.0/16", "10.0.0.9", true)
	ownAddr := at(1, "10.0.0.1/24", true, 100)
	for _, tt := range []struct {
		name      string
		addresses []address
		routes    []Route
		want      string
	}{
		{"all there", []address{ownAddr}, []Route{good}, ""},
		{"somebody's", []address{at(1, "10.0.0.1/24", false, 0)}, []Route{route(1, 0, "10.2.0.0/16", "10.0.0.9", false)}, ""},
		{"nothing", nil, nil, "addr add 10.0.0.1/24 dev eth0 metric 100\nroute add 10.2.0.0/16 via 10.0.0.9 dev eth0 metric 100\n"},
		{"another metric", []address{at(1, "10.0.0.1/24", true, 101)}, []Route{good}, "addr change 10.0.0.1/24 dev eth0 metric 100\n"},
		{"of before", []address{ownAddr, at(1, "10.0.0.2/24", true, 100)}, []Route{good, route(1, 100, "10.3.0.0/16", "10.0.0.9", true)}, "addr delete 10.0.0.2/24 dev eth0\nroute delete 10.3.0.0/16 via 10.0.0.9 dev eth0 metric 100\n"},
		{"others beside", []address{ownAddr, at(1, "10.0.0.2/24", false, 100)}, []Route{good, route(1, 100, "10.3.0.0/16", "10.0.0.9", false)}, ""},
		{"by another router", []address{ownAddr}, []Route{route(1, 100, "10.2.0.0/16", "10.0.0.8", true)}, "route replace 10.2.0.0/16 via 10.0.0.9 dev eth0 metric 100\n"},
		{"of another metric", []address{ownAddr}, []Route{route(1, 99, "10.2.0.0/16", "10.0.0.9", true)}, "route add 10.2.0.0/16 via 10.0.0.9 dev eth0 metric 100\nroute delete 10.2.0.0/16 via 10.0.0.9 dev eth0 metric 99\n"},
		{"on another interface", []address{at(2, "10.0.0.1/24", true, 100)}, []Route{good}, "addr add 10.0.0.1/24 dev eth0 metric 100\naddr delete 10.0.0.1/24 dev eth1\n"},
		{
			"somebody has it elsewhere",
			[]address{at(2, "10.0.0.1/24", false, 0)},
			[]Route{good},
			"g.yaml:2:9: link/eth0: its address 10.0.0.1 is on interface eth1, where somebody else has put it; take it from there, or out of addresses\n",
		},
		{
			"somebody's route",
			[]address{ownAddr},
			[]Route{route(2, 100, "10.2.0.0/16", "10.9.0.9", false)},
			"g.yaml:2:9: link/eth0: somebody else has a route to 10.2.0.0/16 with metric 100, by eth1; remove that, or give this one another metric\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := &machine{devices: []Device{dev(1, "eth0", "device"), dev(2, "eth1", "device")}, addresses: tt.addresses, routes: tt.routes}
			if got := steps(want, have); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func TestPlanOfAPortThatSomebodyHas(t *testing.T) {
	want := parse(t, `links: [{name: br0, bridge: {ports: [eth2]}}]`)
	in := func(master int) func(*Device) { return func(d *Device) { d.master = master } }
	have := &machine{devices: []Device{dev(1, "br0", kindBridge, made), dev(2, "docker0", kindBridge), dev(3, "eth2", "device", in(2))}}
	if got, want := steps(want, have), "g.yaml:2:9: link/br0: its port eth2 belongs to docker0; ip link set eth2 nomaster, or take it out of ports\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	// What somebody has put into the bridge stays there.
	have = &machine{devices: []Device{dev(1, "br0", kindBridge, made), dev(3, "eth2", "device", in(1), func(d *Device) { d.alias = portAlias + "br0" }), dev(4, "vnet0", "tun", in(1))}}
	if got := steps(want, have); got != "" {
		t.Errorf("got\n%s", got)
	}
	want.Links[0].Bridge.Ports = nil
	if got, want := steps(want, have), "link set eth2 nomaster\nlink set eth2 alias \"\"\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestLifetimesAreSetAnewWhenTheyDiffer(t *testing.T) {
	want := parse(t, `links: [{name: eth0, addresses: [dhcp]}]`)
	for _, tt := range []struct {
		valid  time.Duration
		kernel uint32
		want   string
	}{
		{time.Hour, 3598, ""},
		{time.Hour, 1800, "addr change 10.0.0.50/24 dev eth0 metric 100 valid_lft 3600\n"},
		{time.Hour, forever, "addr change 10.0.0.50/24 dev eth0 metric 100 valid_lft 3600\n"},
		{Forever, 3600, "addr change 10.0.0.50/24 dev eth0 metric 100\n"},
		{Forever, forever, ""},
		{0, 1, "addr delete 10.0.0.50/24 dev eth0\n"},
	} {
		want.Links[0].Lease = &Lease{Addr: netip.MustParsePrefix("10.0.0.50/24"), Valid: tt.valid}
		a := at(1, "10.0.0.50/24", true, 100)
		a.valid = tt.kernel
		if got := steps(want, &machine{devices: []Device{dev(1, "eth0", "device")}, addresses: []address{a}}); got != tt.want {
			t.Errorf("valid %s, in the kernel %d: got\n%swant\n%s", tt.valid, tt.kernel, got, tt.want)
		}
	}
}

func TestNothingConfiguredWantsNothing(t *testing.T) {
	have := &machine{devices: []Device{dev(1, "eth0", "device"), dev(2, "br0", kindBridge)}, addresses: []address{at(1, "10.0.0.1/24", false, 0)}}
	if got := steps(Want{}, have); got != "" || len(settings(Want{}, have)) > 0 {
		t.Errorf("got %s", got)
	}
}

// FuzzMessages: what the kernel tells is read, or left.
func FuzzMessages(f *testing.F) {
	link := make([]byte, unix.SizeofIfInfomsg)
	attribute := func(kind uint16, v []byte) {
		link = binary.NativeEndian.AppendUint16(link, uint16(4+len(v)))
		link = binary.NativeEndian.AppendUint16(link, kind)
		link = append(link, v...)
		link = append(link, make([]byte, (4-len(v)%4)%4)...)
	}
	attribute(unix.IFLA_IFNAME, []byte("eth0\x00"))
	attribute(linkInfo, []byte{9, 0, infoKind, 0, 'v', 'l', 'a', 'n', 0, 0, 0, 0})
	f.Add(link)
	f.Add([]byte{2, 24, 0, 0, 1, 0, 0, 0, 8, 0, 2, 0, 10, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, ok := parseDevice(b); ok && d.Name == "" {
			t.Error("an interface without a name")
		}
		if a, ok := parseAddress(b); ok && !a.addr.IsValid() {
			t.Errorf("address %v", a.addr)
		}
	})
}

func TestSysctlsOfInterfacesThatShareANetwork(t *testing.T) {
	addrs := func(all ...string) func(*Device) {
		return func(d *Device) {
			for _, a := range all {
				d.Addrs = append(d.Addrs, netip.MustParsePrefix(a))
			}
		}
	}
	want := Want{Links: []Link{{Link: config.Link{Name: "eth1"}}, {Link: config.Link{Name: "eth2", AcceptRA: true}}, {Link: config.Link{Name: "m0"}}}, Forwarding: true}
	have := &machine{devices: []Device{
		dev(1, "lo", "device", addrs("127.0.0.1/8")), dev(2, "eth0", "device", addrs("10.11.12.5/24", "fd00::5/64")), dev(3, "eth1", "device", addrs("10.11.12.32/16", "fd00::1/64")),
		dev(4, "eth2", "device", addrs("10.0.0.1/24", "fd00::2/64")), dev(5, "eth3", "device"), dev(6, "m0", kindMacvlan, on(5)),
	}, advertised: map[int]bool{2: true}}
	var got []string
	for _, s := range settings(want, have) {
		got = append(got, dotted(s.name)+"="+string(rune('0'+s.value)))
	}
	wanted := "net.ipv4.conf.eth0.arp_ignore=1 net.ipv4.conf.eth0.arp_announce=2 net.ipv4.conf.eth0.rp_filter=2 net.ipv6.conf.eth0.accept_ra=2 " +
		"net.ipv4.conf.eth1.arp_ignore=1 net.ipv4.conf.eth1.arp_announce=2 net.ipv4.conf.eth1.rp_filter=2 net.ipv6.conf.eth2.accept_ra=2 " +
		"net.ipv4.conf.eth3.arp_ignore=1 net.ipv4.conf.eth3.arp_announce=2 net.ipv4.conf.eth3.rp_filter=2 " +
		"net.ipv4.conf.m0.arp_ignore=1 net.ipv4.conf.m0.arp_announce=2 net.ipv4.conf.m0.rp_filter=2 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
	if s := strings.Join(got, " "); s != wanted {
		t.Errorf("got\n%s\nwant\n%s", s, wanted)
	}
}

// What a DHCP server says is about its own network, and takes nothing from others.
func TestPlanOfAServerThatSaysTooMuch(t *testing.T) {
	want := parse(t, `links:
  - {name: eth0, addresses: [10.0.0.1/24], metric: 200}
  - {name: eth1, addresses: [dhcp], defaultRoute: false}
`)
	have := func() *machine {
		return &machine{
			devices:   []Device{dev(1, "eth0", "device", func(d *Device) { d.Addrs = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")} }), dev(2, "eth1", "device")},
			addresses: []address{at(1, "10.0.0.1/24", true, 200)},
		}
	}
	route := func(to, via string) Route {
		return Route{To: netip.MustParsePrefix(to), Via: netip.MustParseAddr(via)}
	}
	for _, tt := range []struct {
		name, addr string
		routes     []Route
		want       string
	}{
		{
			"halves of everything", "10.11.12.32/24",
			[]Route{route("0.0.0.0/1", "10.11.12.1"), route("128.0.0.0/1", "10.11.12.1"), route("64.0.0.0/6", "10.11.12.1"), route("10.0.0.0/8", "10.11.12.1")},
			"addr add 10.11.12.32/24 dev eth1 metric 101\nroute add 10.0.0.0/8 via 10.11.12.1 dev eth1 metric 101 src 10.11.12.32\n",
		},
		{
			"part of another network", "10.11.12.32/24",
			[]Route{route("10.0.0.0/24", "10.11.12.1"), route("10.0.0.128/25", "10.11.12.1"), route("10.0.0.9/32", "0.0.0.0"), route("10.1.0.0/24", "10.0.0.9")},
			"addr add 10.11.12.32/24 dev eth1 metric 101\n",
		},
		{"an address of another link", "10.0.0.1/24", nil, "g.yaml:4:5: link/eth1: a DHCP server gives 10.0.0.1/24, which belongs to link eth0 (10.0.0.1/24), so that it is not used; look at the DHCP server, or give eth0 another network\n"},
		{"its network", "10.0.0.99/25", nil, "g.yaml:4:5: link/eth1: a DHCP server gives 10.0.0.99/25, which belongs to link eth0 (10.0.0.1/24), so that it is not used; look at the DHCP server, or give eth0 another network\n"},
		{"the same network, as two cables to one switch have", "10.0.0.99/24", nil, "addr add 10.0.0.99/24 dev eth1 metric 101\n"},
		{"a larger network", "10.9.9.9/8", nil, "addr add 10.9.9.9/8 dev eth1 metric 101\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want.Links[1].Lease = &Lease{Addr: netip.MustParsePrefix(tt.addr), Valid: Forever, Router: netip.MustParseAddr("10.11.12.1"), Routes: tt.routes}
			if got := steps(want, have()); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}
