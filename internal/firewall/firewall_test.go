package firewall

import (
	"net/netip"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

const site = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}, internet: {interfaces: [veth0]}, cluster: {interfaces: [eth0, eth2]}}
firewall:
  policies:
    - {from: cluster, to: internet, ports: [25], allow: false}
    - {from: cluster, to: internet, allow: true, masquerade: true}
    - {from: home, to: cluster, ports: [6443, 8000-8010/UDP], destinations: [10.0.0.10]}
    - {from: home, to: self, ports: [ssh, ping], sources: [10.11.12.0/28, "fd12::/64"]}
    - {from: any, to: self, ports: [ntp]}
    - {from: home, to: any, ports: [2905/SCTP]}
admin: {zones: [home], tokenFile: /etc/gatehouse/token}
`

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(text)}})
	if c == nil {
		t.Fatal(problems)
	}
	return c
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func door(plane edge.DataPlane, protocol edge.Protocol, device, at string, port uint16, why string, sources ...string) edge.Frontend {
	f := edge.Frontend{Door: edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Port: port}}, DataPlane: plane, Why: why}
	if at != "" {
		f.Listen.Addr = addr(at)
	}
	for _, s := range sources {
		f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(s))
	}
	return f
}

func siteRules(t testing.TB) Ruleset {
	t.Helper()
	return Compile(Inputs{
		Config: parse(t, site),
		Frontends: []edge.Frontend{
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80, "service/shop/web"),
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "10.11.12.70", 443, "service/shop/vip"),
			door(edge.DataPlaneProxy, edge.TCP, "veth0", "", 8443, "service/shop/few", "192.0.2.0/24"),
			door(edge.DataPlaneNAT, edge.UDP, "veth0", "", 53, "service/shop/dns"),
			door(edge.DataPlaneNAT, edge.TCP, "eth1", "10.11.12.71", 80, "service/shop/nat", "10.11.12.0/24"),
			door(edge.DataPlaneProxy, edge.TCP, "", "10.0.0.1", 2222, "gatehouse.yaml:9"),
			door(edge.DataPlaneProxy, edge.TCP, "", "0.0.0.0", 2223, "gatehouse.yaml:10"),
			door(edge.DataPlaneProxy, edge.TCP, "", "::", 2224, "gatehouse.yaml:11"),
			door(edge.DataPlaneProxy, edge.TCP, "", "127.0.0.1", 2225, "gatehouse.yaml:12"),
		},
		Interfaces: []edge.Interface{{Name: "lo"}, {Name: "eth1"}, {Name: "wg0"}, {Name: "docker0"}},
		Addresses:  []netip.Addr{addr("10.11.12.72")},
	})
}

func TestVerdict(t *testing.T) {
	r := siteRules(t)
	tcp := func(in, out, src, dst string, port uint16) Packet {
		return Packet{In: in, Out: out, Src: addr(src), Dst: addr(dst), Protocol: edge.TCP, SrcPort: 40000, DstPort: port, HopLimit: 64}
	}
	change := func(p Packet, f func(*Packet)) Packet { f(&p); return p }
	udp := func(p *Packet) { p.Protocol = edge.UDP }
	echo := func(kind uint8) func(*Packet) {
		return func(p *Packet) { p.Protocol, p.ICMPType, p.SrcPort, p.DstPort = config.ICMP, kind, 0, 0 }
	}
	asked := func(s string) func(*Packet) { return func(p *Packet) { p.Asked = netip.MustParseAddrPort(s) } }
	for _, c := range []struct {
		name   string
		packet Packet
		want   string // "accept", "accept masquerade" or "drop", and a part of Why
	}{
		{"the first policy that fits", tcp("eth0", "veth0", "10.0.0.101", "192.0.2.1", 25), "drop cluster -> internet: 25/TCP (gatehouse.yaml:5)"},
		{"everything else", tcp("eth2", "veth0", "10.0.0.101", "192.0.2.1", 443), "accept masquerade cluster -> internet: everything (gatehouse.yaml:6)"},
		{"of a unique local address", tcp("eth2", "veth0", "fd00::101", "2001:db8::1", 443), "accept masquerade cluster -> internet: everything"},
		{"of a global address", tcp("eth2", "veth0", "2001:db8:1::1", "2001:db8::1", 443), "accept cluster -> internet: everything"},
		{"back", tcp("veth0", "eth2", "192.0.2.1", "10.0.0.101", 443), "drop nothing"},
		{"an answer", change(tcp("veth0", "eth2", "192.0.2.1", "10.0.0.101", 443), func(p *Packet) { p.State = Established }), "accept part of a connection"},
		{"an error", change(change(tcp("veth0", "eth2", "192.0.2.1", "10.0.0.101", 0), echo(3)), func(p *Packet) { p.State = Related }), "accept part of a connection"},
		{"invalid", change(tcp("eth2", "veth0", "10.0.0.101", "192.0.2.1", 443), func(p *Packet) { p.State = Invalid }), "drop part of no"},
		{"a port", tcp("eth1", "eth0", "10.11.12.7", "10.0.0.10", 6443), "accept home -> cluster: 6443/TCP, 8000-8010/UDP to 10.0.0.10 (gatehouse.yaml:7)"},
		{"of another protocol", change(tcp("eth1", "eth0", "10.11.12.7", "10.0.0.10", 6443), udp), "drop nothing"},
		{"the last of a range", change(tcp("eth1", "eth0", "10.11.12.7", "10.0.0.10", 8010), udp), "accept home -> cluster"},
		{"behind a range", change(tcp("eth1", "eth0", "10.11.12.7", "10.0.0.10", 8011), udp), "drop nothing"},
		{"another destination", tcp("eth1", "eth0", "10.11.12.7", "10.0.0.11", 6443), "drop nothing"},
		{"within a zone", tcp("eth0", "eth2", "10.0.0.101", "10.0.1.7", 80), "drop nothing"},
		{"to any zone", change(tcp("eth1", "veth0", "10.11.12.7", "192.0.2.1", 2905), func(p *Packet) { p.Protocol = edge.SCTP }), "accept home -> any"},
		{"to no zone", change(tcp("eth1", "wg0", "10.11.12.7", "192.0.2.1", 2905), func(p *Packet) { p.Protocol = edge.SCTP }), "drop nothing"},
		{"from no zone", change(tcp("wg0", "", "10.11.12.7", "10.0.0.1", 123), udp), "drop nothing"},
		{"from any zone", change(tcp("veth0", "", "192.0.2.1", "10.11.12.51", 123), udp), "accept any -> self"},
		{"ssh from a source", tcp("eth1", "", "10.11.12.7", "10.0.0.1", 22), "accept home -> self: 22/TCP, ping from 10.11.12.0/28"},
		{"ssh from another", tcp("eth1", "", "10.11.12.17", "10.0.0.1", 22), "drop nothing"},
		{"ssh through this machine", tcp("eth1", "eth0", "10.11.12.7", "10.0.0.10", 22), "drop nothing"},
		{"ping", change(tcp("eth1", "", "10.11.12.7", "10.0.0.1", 0), echo(8)), "accept home -> self"},
		{"ping of IPv6", change(tcp("eth1", "", "fd12::7", "fd12::32", 0), echo(128)), "accept home -> self"},
		{"no ping: a timestamp", change(tcp("eth1", "", "10.11.12.7", "10.0.0.1", 0), echo(13)), "drop nothing"},
		{"to itself", tcp("lo", "", "127.0.0.1", "127.0.0.1", 9), "accept this machine"},
		{"a door", tcp("eth1", "", "10.11.12.200", "10.11.12.32", 80), "accept service/shop/web"},
		{"from elsewhere", tcp("veth0", "", "192.0.2.1", "10.11.12.32", 80), "drop nothing"},
		{"a door of an address", tcp("eth1", "", "10.11.12.200", "10.11.12.70", 443), "accept service/shop/vip"},
		{"that port at another", tcp("eth1", "", "10.11.12.200", "10.11.12.32", 443), "drop nothing"},
		{"an address of its own is at no other door", tcp("eth1", "", "10.11.12.200", "10.11.12.70", 80), "drop nothing"},
		{"nor one that no door has yet", tcp("eth1", "", "10.11.12.200", "10.11.12.72", 80), "drop nothing"},
		{"a door for few", tcp("veth0", "", "192.0.2.77", "10.11.12.51", 8443), "accept service/shop/few"},
		{"a door for few, and others", tcp("veth0", "", "198.51.100.1", "10.11.12.51", 8443), "drop nothing"},
		{"a door for few of IPv4, and IPv6", tcp("veth0", "", "2001:db8::7", "2001:db8::1", 8443), "drop nothing"},
		{"listening everywhere", tcp("veth0", "", "192.0.2.1", "10.0.0.1", 2222), "accept gatehouse.yaml:9"},
		{"listening at all addresses of IPv4", tcp("veth0", "", "192.0.2.1", "10.0.0.1", 2223), "accept gatehouse.yaml:10"},
		{"not of IPv6", tcp("veth0", "", "2001:db8::7", "fd12::32", 2223), "drop nothing"},
		{"listening at all addresses of IPv6", tcp("veth0", "", "2001:db8::7", "fd12::32", 2224), "accept gatehouse.yaml:11"},
		{"not of IPv4", tcp("veth0", "", "192.0.2.1", "10.0.0.1", 2224), "drop nothing"},
		{"listening for this machine alone", tcp("veth0", "", "192.0.2.1", "127.0.0.1", 2225), "drop nothing"},
		{"but where no zone is", tcp("wg0", "", "192.0.2.1", "10.0.0.1", 2222), "drop nothing"},
		{"its address is no other's", tcp("eth1", "", "10.11.12.7", "10.0.0.1", 80), "accept service/shop/web"},
		{"admin", tcp("eth1", "", "10.11.12.200", "10.11.12.32", 9180), "accept admin in zone home"},
		{"translated", change(change(tcp("veth0", "eth0", "192.0.2.1", "10.244.1.5", 5353), udp), asked("10.11.12.51:53")), "accept service/shop/dns"},
		{"to a backend on this machine", change(change(tcp("veth0", "", "192.0.2.1", "127.0.0.1", 5353), udp), asked("10.11.12.51:53")), "accept service/shop/dns"},
		{"what looks like it, by nobody translated", change(tcp("veth0", "eth0", "192.0.2.1", "10.244.1.5", 53), udp), "drop nothing"},
		{"translated by another, from another port", change(change(tcp("veth0", "eth0", "192.0.2.1", "10.244.1.5", 53), udp), asked("10.11.12.51:5353")), "drop nothing"},
		{"from another interface", change(change(tcp("eth1", "eth0", "10.11.12.7", "10.244.1.5", 5353), udp), asked("10.11.12.51:53")), "drop nothing"},
		{"translated at an address", change(tcp("eth1", "eth0", "10.11.12.7", "10.244.1.5", 8080), asked("10.11.12.71:80")), "accept service/shop/nat"},
		{"translated, and not for others", change(tcp("eth1", "eth0", "192.0.2.1", "10.244.1.5", 8080), asked("10.11.12.71:80")), "drop nothing"},
		{"a translated door is none of this machine", tcp("eth1", "", "10.11.12.7", "10.11.12.71", 80), "drop nothing"},
		{"neighbours", change(change(tcp("wg0", "", "fe80::1", "ff02::1", 0), echo(135)), func(p *Packet) { p.HopLimit, p.State = 255, Untracked }), "accept neighbour"},
		{"neighbours from afar", change(change(tcp("eth1", "", "fe80::1", "ff02::1", 0), echo(135)), func(p *Packet) { p.HopLimit, p.State = 254, Untracked }), "drop neighbour"},
		{"no neighbours of IPv4", change(change(tcp("eth1", "", "10.11.12.7", "10.11.12.32", 0), echo(135)), func(p *Packet) { p.HopLimit = 255 }), "drop nothing"},
		{"listeners", change(change(tcp("eth1", "", "fe80::1", "ff02::16", 0), echo(143)), func(p *Packet) { p.HopLimit, p.State = 1, Untracked }), "accept multicast"},
		{"groups", change(tcp("eth1", "", "10.11.12.7", "224.0.0.22", 0), func(p *Packet) { p.Protocol, p.Number, p.HopLimit = "", 2, 1 }), "accept multicast"},
		{"a DHCP server's answer", change(tcp("wg0", "", "10.11.12.1", "255.255.255.255", 68), func(p *Packet) { p.Protocol, p.SrcPort = edge.UDP, 67 }), "accept answers"},
		{"something else", change(tcp("wg0", "", "10.11.12.1", "255.255.255.255", 68), func(p *Packet) { p.Protocol, p.SrcPort = edge.UDP, 68 }), "drop nothing"},
		{"a DHCPv6 server's answer", change(tcp("wg0", "", "fe80::1", "fe80::2", 546), func(p *Packet) { p.Protocol, p.SrcPort = edge.UDP, 547 }), "accept answers"},
		{"from afar", change(tcp("wg0", "", "2001:db8::1", "fe80::2", 546), func(p *Packet) { p.Protocol, p.SrcPort = edge.UDP, 547 }), "drop nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := r.Verdict(c.packet)
			got := "drop "
			if v.Accept {
				got = "accept "
			}
			if v.Masquerade {
				got += "masquerade "
			}
			if got += v.Why; !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if (v.Rule >= 0) == (v.Why == Nothing) || v.Rule >= 0 && r.Rules[v.Rule].Accept != v.Accept {
				t.Errorf("rule %d: %+v", v.Rule, v)
			}
		})
	}
	if want := []string{"docker0", "wg0"}; strings.Join(r.Unzoned, " ") != strings.Join(want, " ") {
		t.Errorf("in no zone are %q, want %q", r.Unzoned, want)
	}
}
