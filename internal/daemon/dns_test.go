package daemon

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	dnsserver "e13.dev/gatehouse/internal/dns"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/names"
)

const dnsFile = `apiVersion: gatehouse.e13.dev/v1
stateDir: /var/lib/gatehouse
zones: {home: {interfaces: [eth1]}, internet: {interfaces: [veth0]}, cluster: {interfaces: [eth0]}}
links:
- {name: eth0, addresses: [10.0.0.1/24], routes: [{to: 10.2.0.0/16, via: 10.0.0.9}]}
- {name: veth0, addresses: [dhcp]}
dhcp:
  cluster: {pools: [10.0.0.100-10.0.0.199], relayed: [{network: 10.3.0.0/24, router: 10.3.0.1, pools: [10.3.0.100-10.3.0.199]}]}
dns:
  zones: [home, cluster]
  domain: home.example
  records: [{name: nas, address: 10.0.0.101}]
`

func dnsDecision(t *testing.T, file string) decision {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(file)}})
	for _, p := range problems {
		t.Fatal(p)
	}
	return decision{in: desired.Inputs{
		Config: c,
		Interfaces: []edge.Interface{
			{Name: "eth0", Index: 2, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}},
			{Name: "eth1", Index: 3, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.11.12.32/24"), netip.MustParsePrefix("10.11.12.64/32")}},
			{Name: "veth0", Index: 4, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/24")}},
		},
		Cluster: &edge.Cluster{Nodes: []edge.Node{
			{Name: "w1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.21")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
			{Name: "far", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.9.0/24")}},
		}},
	}}
}

func texts[T interface{ String() string }](list []T) string {
	var all []string
	for _, one := range list {
		all = append(all, one.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// Who may ask is who is in a zone's networks, or behind a neighbour in them.
func TestDNSClients(t *testing.T) {
	now := dnsDecision(t, dnsFile)
	want, absent := dnsZones(now.in.Config, now, names.Build(names.Inputs{Config: now.in.Config, Interfaces: now.in.Interfaces}))
	got := map[string]string{}
	for _, z := range want.Zones {
		got[z.Name] = texts(z.Clients)
	}
	if got["home"] != "10.11.12.0/24" || got["cluster"] != "10.0.0.0/24 10.2.0.0/16 10.244.1.0/24 10.3.0.0/24 fd00::/64" || len(got) != 2 {
		t.Errorf("%v", got)
	}
	if got := texts(want.Reverse); got != "10.0.0.0/24 10.11.12.0/24 10.3.0.0/24 fd00::/64" {
		t.Errorf("names of addresses in %s", got)
	}
	if got := texts(want.Self); got != "10.0.0.1 10.11.12.32 10.11.12.64 203.0.113.9 fd00::1" {
		t.Errorf("own addresses: %s", got)
	}
	if absent["home"] || absent["cluster"] {
		t.Errorf("absent: %v", absent)
	}
	now.in.Interfaces = now.in.Interfaces[:1]
	if _, absent = dnsZones(now.in.Config, now, []edge.Records{{Zone: "home"}}); !absent["home"] {
		t.Error("an interface that is not there is not missed")
	}
}

// Whom to ask follows from the file, leases of interfaces, and resolv.conf.
func TestDNSUpstreams(t *testing.T) {
	x := newDNS(slog.New(slog.DiscardHandler), func() {})
	x.resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	told := []edge.LinkLease{{Link: "veth0", DNS: []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}}, {Link: "eth7", DNS: []netip.Addr{netip.MustParseAddr("10.7.0.1")}}}
	for _, c := range []struct{ file, resolv, want, problem string }{
		{`["9.9.9.9", "tls://9.9.9.9#dns.quad9.net", "dhcp:veth0"]`, "", "203.0.113.1:53 203.0.113.2:53 9.9.9.9:53 9.9.9.9:853 (dns.quad9.net)", ""},
		{"[]", "nameserver 9.9.9.9", "", ""},
		{"", "# by hand\nnameserver 9.9.9.9\nsearch x\noptions y\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver", "9.9.9.9:53 [fe80::1%eth0]:53", ""},
		{"", "search x", "", "there is nobody to ask"},
	} {
		file := dnsFile
		if c.file != "" {
			file += "  upstreams: " + c.file + "\n"
		}
		if err := os.WriteFile(x.resolvConf, []byte(c.resolv), 0o600); err != nil {
			t.Fatal(err)
		}
		list, problems := x.upstreams(dnsDecision(t, file).in.Config.DNS, told)
		if got := texts(list); got != c.want {
			t.Errorf("%s %q: %s, want %s", c.file, c.resolv, got, c.want)
		}
		if len(problems) > 0 != (c.problem != "") || c.problem != "" && !strings.HasPrefix(problems[0].What, c.problem) {
			t.Errorf("%s %q: %v", c.file, c.resolv, problems)
		}
	}
}

// What the kernel refuses is a problem for as long as it lasts, and in the status.
func TestDNSProblems(t *testing.T) {
	x := newDNS(slog.New(slog.DiscardHandler), func() {})
	now := dnsDecision(t, dnsFile+"  upstreams: [10.0.0.1]\n")
	now.in.Interfaces[0].Name, now.in.Interfaces[1].Name = "gone-0", "gone-1"
	now.in.Config.Zones[2].Interfaces, now.in.Config.Zones[0].Interfaces = []string{"gone-0"}, []string{"gone-1"}
	problems := x.apply(t.Context(), now, nil, nil)
	var all []string
	for _, p := range problems {
		all = append(all, p.What)
	}
	slices.Sort(all)
	want := []string{"DNS is not served on gone-0: UDP: there is no such interface", "DNS is not served on gone-1: UDP: there is no such interface", "the upstream 10.0.0.1:53 is this machine"}
	if !slices.Equal(all, want) {
		t.Errorf("%q, want %q", all, want)
	}
	s := x.status(now.in.Config)
	if len(s.Zones) != 2 || s.Zones[0].Zone != "home" || s.Zones[0].Error != "gone-1: UDP: there is no such interface" || s.Zones[0].Names == 0 {
		t.Errorf("%+v", s)
	}
	now.in.Config.DNS = nil
	if problems := x.apply(t.Context(), now, nil, nil); len(problems) > 0 || x.status(now.in.Config) != nil {
		t.Errorf("without the block: %v", problems)
	}
}

// A resolv.conf that changes asks for a new decision.
func TestDNSFollowsResolvConf(t *testing.T) {
	changed := make(chan struct{}, 10)
	x := newDNS(slog.New(slog.DiscardHandler), func() { changed <- struct{}{} })
	x.resolvConf, x.lookEvery = filepath.Join(t.TempDir(), "resolv.conf"), time.Millisecond
	if err := os.WriteFile(x.resolvConf, []byte("nameserver 9.9.9.9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &config.DNS{}
	if list, _ := x.upstreams(d, nil); !slices.Equal(list, []dnsserver.Upstream{{Addr: netip.MustParseAddrPort("9.9.9.9:53")}}) {
		t.Fatal(list)
	}
	go func() { _ = x.run(t.Context()) }()
	if err := os.WriteFile(x.resolvConf, []byte("nameserver 9.9.9.10\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was asked for")
	}
}

// A resolver of this machine's own, at 127.0.0.1, is not this server, which is
// not there unless a zone has that interface.
func TestAResolverOnLoopbackIsAsked(t *testing.T) {
	now := dnsDecision(t, strings.Replace(dnsFile, "  domain: home.example", "  domain: home.example\n  upstreams: [127.0.0.1]", 1))
	now.in.Interfaces = append(now.in.Interfaces, edge.Interface{Name: "lo", Index: 1, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("10.9.9.9/32")}})
	usable := func(text string) bool {
		want, _ := dnsZones(now.in.Config, now, nil)
		return dnsserver.Upstream{Addr: netip.MustParseAddrPort(text)}.Usable(want.Self, dnsPort)
	}
	for text, want := range map[string]bool{"127.0.0.1:53": true, "10.9.9.9:53": false, "10.0.0.1:53": false} {
		if got := usable(text); got != want {
			t.Errorf("%s: usable is %t", text, got)
		}
	}
	now.in.Config.Zones[0].Interfaces = append(now.in.Config.Zones[0].Interfaces, "lo")
	if usable("127.0.0.1:53") {
		t.Error("127.0.0.1 is this server, in zone home")
	}
}
