package names_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/names"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func pos(line int) edge.Pos { return edge.Pos{File: "gatehouse.yaml", Line: line, Col: 3} }

// site is the one of the design: a cluster behind the machine, a home LAN that it
// is in, and the Internet.
func site() names.Inputs {
	return names.Inputs{
		Config: &config.Config{
			Zones: []edge.Zone{
				{Name: "home", Interfaces: []string{"eth1"}}, {Name: "cluster", Interfaces: []string{"eth0"}}, {Name: "internet", Interfaces: []string{"veth0"}},
			},
			Pools: []config.Pool{{Name: "home", Zone: "home", Addresses: []edge.Range{{First: addr("10.11.12.64"), Last: addr("10.11.12.79")}}}},
			DNS: &config.DNS{
				Zones: []string{"home", "cluster", "internet"}, Domain: "home.example", ServiceDomain: "cluster.home.example", TTL: time.Minute,
			},
		},
		Interfaces: []edge.Interface{
			{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00:10::1/64")}},
			{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.11.12.5/24"), netip.MustParsePrefix("10.11.12.64/24")}},
			{Name: "veth0", Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24")}},
		},
		Cluster: &edge.Cluster{},
	}
}

// open is a port of a Service that is open in a zone.
func open(service, zone string, port uint16, addrs ...string) desired.Exposure {
	e := desired.Exposure{Name: fmt.Sprintf("%s:%d", service, port), Service: service, Zone: zone, Protocol: edge.TCP, Port: port, Open: true}
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, addr(a))
	}
	return e
}

// lines are the records of a zone as text, without those of this machine.
func lines(t *testing.T, all []edge.Records, zone string) []string {
	t.Helper()
	i := slices.IndexFunc(all, func(r edge.Records) bool { return r.Zone == zone })
	if i < 0 {
		t.Fatalf("no records of zone %s", zone)
	}
	var text []string
	for _, s := range all[i].Sets {
		if s.Why == "this machine" {
			continue
		}
		if s.TTL != 60 {
			t.Errorf("%s %s has TTL %d", s.Name, s.Type, s.TTL)
		}
		text = append(text, fmt.Sprintf("%s %s %s (%s)", s.Name, s.Type, strings.Join(s.Data, ", "), s.Why))
	}
	return text
}

func TestBuild(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*names.Inputs)
		want   map[string][]string // by zone
	}{
		"a Service has the address of the zone that asks, and is not known where it is closed": {
			func(in *names.Inputs) {
				in.Exposures = []desired.Exposure{
					open("shop/web", "home", 80, "10.11.12.64"), open("shop/web", "home", 443, "10.11.12.64"), open("shop/web", "internet", 80, "198.51.100.7"),
					{Name: "shop/web:80", Service: "shop/web", Zone: "cluster", Protocol: edge.TCP, Port: 80, Addresses: []netip.Addr{addr("10.0.0.1")}},
				}
				in.Cluster.Services = []edge.Service{{Namespace: "shop", Name: "web", Ports: []edge.ServicePort{
					{Name: "http", Protocol: edge.TCP, Port: 80}, {Name: "https", Protocol: edge.TCP, Port: 443}, {Name: "other", Protocol: edge.TCP, Port: 81},
				}}}
			},
			map[string][]string{
				"home": {
					"64.12.11.10.in-addr.arpa PTR web.shop.cluster.home.example (service/shop/web)",
					"_http._tcp.web.shop.cluster.home.example SRV 0 0 80 web.shop.cluster.home.example (service/shop/web)",
					"_https._tcp.web.shop.cluster.home.example SRV 0 0 443 web.shop.cluster.home.example (service/shop/web)",
					"web.shop.cluster.home.example A 10.11.12.64 (service/shop/web)",
				},
				"internet": {
					"_http._tcp.web.shop.cluster.home.example SRV 0 0 80 web.shop.cluster.home.example (service/shop/web)",
					"web.shop.cluster.home.example A 198.51.100.7 (service/shop/web)",
				},
				"cluster": nil,
			},
		},
		"both families": {
			func(in *names.Inputs) {
				in.Exposures = []desired.Exposure{open("a/b", "cluster", 53, "10.0.0.9", "fd00:10::9")}
			},
			map[string][]string{"cluster": {
				"9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa PTR b.a.cluster.home.example (service/a/b)",
				"9.0.0.10.in-addr.arpa PTR b.a.cluster.home.example (service/a/b)",
				"b.a.cluster.home.example A 10.0.0.9 (service/a/b)",
				"b.a.cluster.home.example AAAA fd00:10::9 (service/a/b)",
			}},
		},
		"a static frontend": {
			func(in *names.Inputs) {
				in.Exposures = []desired.Exposure{
					{Name: "git-ssh", Zone: "home", Protocol: edge.TCP, Port: 22, Open: true, Addresses: []netip.Addr{addr("10.11.12.5")}},
					{Name: "everywhere", Protocol: edge.TCP, Port: 23, Open: true, Addresses: []netip.Addr{addr("10.11.12.5"), addr("198.51.100.7")}},
					{Name: "home:22", Zone: "home", Protocol: edge.TCP, Port: 22, Open: true, Addresses: []netip.Addr{addr("10.11.12.5")}},
				}
			},
			map[string][]string{
				"home": {
					"everywhere.cluster.home.example A 10.11.12.5 (frontend/everywhere)",
					"git-ssh.cluster.home.example A 10.11.12.5 (frontend/git-ssh)",
				},
				"internet": {"everywhere.cluster.home.example A 198.51.100.7 (frontend/everywhere)"},
				"cluster":  nil,
			},
		},
		"the file comes before a node, that before a reservation, that before what Services ask for, and all before a lease": {
			func(in *names.Inputs) {
				in.Config.DNS.Records = []config.Record{{Name: "one.home.example", Addresses: []netip.Addr{addr("10.0.0.101")}, Pos: pos(9)}}
				for i, n := range []string{"one", "two"} {
					in.Cluster.Nodes = append(in.Cluster.Nodes, edge.Node{Name: n, Addrs: []netip.Addr{addr(fmt.Sprintf("10.0.0.2%d", i))}})
				}
				in.Config.DHCP = []config.DHCP{{Zone: "cluster", Reservations: []config.Reservation{
					{MAC: "02:00:00:00:00:01", Hostname: "one", Address: addr("10.0.0.31"), Pos: pos(20)},
					{Node: "two", Address: addr("10.0.0.32"), Pos: pos(21)},
					{MAC: "02:00:00:00:00:03", Hostname: "three", Address: addr("10.0.0.33"), Pos: pos(22)},
				}}}
				for i, n := range []string{"one", "two", "three", "four"} {
					in.Leases = append(in.Leases, edge.Lease{Zone: "cluster", Hostname: n, MAC: fmt.Sprint(i), Addr: addr(fmt.Sprintf("10.0.0.4%d", i))})
				}
				in.Exposures = []desired.Exposure{open("shop/web", "cluster", 80, "10.0.0.51")}
				for _, n := range []string{"five", "four", "one", "three", "two"} {
					in.Names = append(in.Names, desired.Name{Name: n + ".home.example", By: []desired.NamedBy{{Service: "shop/web", Why: "service/shop/web"}}})
				}
			},
			map[string][]string{"cluster": {
				"101.0.0.10.in-addr.arpa PTR one.home.example (gatehouse.yaml:9)",
				"21.0.0.10.in-addr.arpa PTR two.home.example (node/two)",
				"33.0.0.10.in-addr.arpa PTR three.home.example (gatehouse.yaml:22)",
				"51.0.0.10.in-addr.arpa PTR web.shop.cluster.home.example (service/shop/web)",
				"five.home.example A 10.0.0.51 (service/shop/web)",
				"four.home.example A 10.0.0.51 (service/shop/web)",
				"one.home.example A 10.0.0.101 (gatehouse.yaml:9)",
				"three.home.example A 10.0.0.33 (gatehouse.yaml:22)",
				"two.home.example A 10.0.0.21 (node/two)",
				"web.shop.cluster.home.example A 10.0.0.51 (service/shop/web)",
			}},
		},
		"of two machines of one name the first one has it, and a machine may have two addresses": {
			func(in *names.Inputs) {
				at := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
				in.Leases = []edge.Lease{
					{Zone: "home", Hostname: "laptop", MAC: "b", Addr: addr("10.11.12.101"), Begun: at.Add(time.Minute)},
					{Zone: "home", Hostname: "laptop", MAC: "a", Addr: addr("10.11.12.100"), Begun: at},
					{Zone: "home", Hostname: "laptop", MAC: "a", Addr: addr("10.11.12.102"), Begun: at.Add(time.Hour)},
					{Zone: "home", Hostname: "gone", MAC: "c", Addr: addr("10.11.12.103"), Declined: true},
					{Zone: "home", Hostname: "www.bank.example", MAC: "d", Addr: addr("10.11.12.104")},
					{Zone: "home", Hostname: "WPAD", MAC: "e", Addr: addr("10.11.12.105")},
					{Zone: "home", Hostname: "isatap", MAC: "f", Addr: addr("10.11.12.106")},
					{Zone: "home", Hostname: "isatap", MAC: "f", Addr: addr("10.11.12.106"), Reserved: true},
				}
			},
			map[string][]string{"home": {
				"100.12.11.10.in-addr.arpa PTR laptop.home.example (dhcp)",
				"102.12.11.10.in-addr.arpa PTR laptop.home.example (dhcp)",
				"laptop.home.example A 10.11.12.100, 10.11.12.102 (dhcp)",
			}},
		},
		"what cannot be reached is not known, unless the file says where it is": {
			func(in *names.Inputs) {
				in.Cluster.Nodes = []edge.Node{{Name: "w1", Addrs: []netip.Addr{addr("10.0.0.11")}}}
				in.Config.DNS.Records = []config.Record{
					{Name: "nas.home.example", Addresses: []netip.Addr{addr("10.0.0.101")}, Pos: pos(9)},
					{Name: "vpn.home.example", Addresses: []netip.Addr{addr("10.0.0.102")}, Zones: []string{"home"}, Pos: pos(10)},
				}
				in.Reaches = func(zone string, a netip.Addr) bool { return zone == "home" && a == addr("10.0.0.101") }
			},
			map[string][]string{
				"cluster": {
					"101.0.0.10.in-addr.arpa PTR nas.home.example (gatehouse.yaml:9)",
					"11.0.0.10.in-addr.arpa PTR w1.home.example (node/w1)",
					"nas.home.example A 10.0.0.101 (gatehouse.yaml:9)",
					"w1.home.example A 10.0.0.11 (node/w1)",
				},
				"home": {
					"101.0.0.10.in-addr.arpa PTR nas.home.example (gatehouse.yaml:9)",
					"102.0.0.10.in-addr.arpa PTR vpn.home.example (gatehouse.yaml:10)",
					"nas.home.example A 10.0.0.101 (gatehouse.yaml:9)",
					"vpn.home.example A 10.0.0.102 (gatehouse.yaml:10)",
				},
				"internet": nil,
			},
		},
		"the firewall says what can be reached": {
			func(in *names.Inputs) {
				in.Config.Firewall = &config.Firewall{Policies: []config.Policy{{From: "home", To: "cluster", Allow: true}}}
				in.Cluster.Nodes = []edge.Node{{Name: "w1", Addrs: []netip.Addr{addr("10.0.0.11")}}}
			},
			map[string][]string{
				"home":     {"11.0.0.10.in-addr.arpa PTR w1.home.example (node/w1)", "w1.home.example A 10.0.0.11 (node/w1)"},
				"internet": nil,
			},
		},
		"what leads nowhere is no machine's address": {
			func(in *names.Inputs) {
				in.Config.DNS.Records = []config.Record{{Name: "ads.home.example", Addresses: []netip.Addr{addr("0.0.0.0"), addr("::1")}, Zones: []string{"home"}, Pos: pos(9)}}
			},
			map[string][]string{"home": {"ads.home.example A 0.0.0.0 (gatehouse.yaml:9)", "ads.home.example AAAA ::1 (gatehouse.yaml:9)"}},
		},
		"the other records of a file": {
			func(in *names.Inputs) {
				in.Config.DNS.Records = []config.Record{
					{Name: "www.home.example", CNAME: "web.shop.cluster.home.example", Pos: pos(9)},
					{Name: "_imap._tcp.home.example", SRV: &config.SRV{Target: "mail.home.example", Port: 143, Priority: 1, Weight: 2}, Pos: pos(10)},
					{Name: "x.home.example", TXT: []string{"b c", "a", "\u00fc; k=\"\\"}, Zones: []string{"home"}, Pos: pos(11)},
				}
				in.Exposures = []desired.Exposure{open("shop/web", "home", 80, "10.11.12.64")}
				in.Names = []desired.Name{
					{Name: "www.home.example", By: []desired.NamedBy{{Service: "shop/web", Why: "service/shop/web"}}},
					{Name: "x.home.example", By: []desired.NamedBy{{Service: "shop/web", Why: "service/shop/web"}}},
				}
			},
			map[string][]string{"home": {
				"64.12.11.10.in-addr.arpa PTR web.shop.cluster.home.example (service/shop/web)",
				"_imap._tcp.home.example SRV 1 2 143 mail.home.example (gatehouse.yaml:10)",
				"web.shop.cluster.home.example A 10.11.12.64 (service/shop/web)",
				"www.home.example CNAME web.shop.cluster.home.example (gatehouse.yaml:9)",
				"x.home.example A 10.11.12.64 (service/shop/web)",
				`x.home.example TXT "\195\188; k=\"\\", "a", "b c" (gatehouse.yaml:11)`,
			}, "cluster": {
				"_imap._tcp.home.example SRV 1 2 143 mail.home.example (gatehouse.yaml:10)",
				"www.home.example CNAME web.shop.cluster.home.example (gatehouse.yaml:9)",
			}},
		},
		"a name that Services of two zones have": {
			func(in *names.Inputs) {
				in.Exposures = []desired.Exposure{
					open("ingress/public", "internet", 443, "198.51.100.7"), open("ingress/public", "home", 443, "10.11.12.64"), open("ingress/internal", "home", 443, "10.11.12.65"),
				}
				in.Names = []desired.Name{{Name: "*.home.example", By: []desired.NamedBy{
					{Service: "ingress/internal", Why: "ingress/shop/inside"}, {Service: "ingress/public", Why: "ingress/shop/web"},
				}}}
			},
			map[string][]string{
				"internet": {
					"*.home.example A 198.51.100.7 (ingress/shop/web)",
					"public.ingress.cluster.home.example A 198.51.100.7 (service/ingress/public)",
				},
				"home": {
					"*.home.example A 10.11.12.65 (ingress/shop/inside)",
					"64.12.11.10.in-addr.arpa PTR public.ingress.cluster.home.example (service/ingress/public)",
					"65.12.11.10.in-addr.arpa PTR internal.ingress.cluster.home.example (service/ingress/internal)",
					"internal.ingress.cluster.home.example A 10.11.12.65 (service/ingress/internal)",
					"public.ingress.cluster.home.example A 10.11.12.64 (service/ingress/public)",
				},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			tc.change(&in)
			all := names.Build(in)
			for zone, want := range tc.want {
				if diff := cmp.Diff(want, lines(t, all, zone)); diff != "" {
					t.Errorf("zone %s: -want +got:\n%s", zone, diff)
				}
			}
		})
	}
}

// TestOwn has this machine known by the address that each zone has of it, and
// never by those of Services.
func TestOwn(t *testing.T) {
	all := names.Build(site())
	want := map[string]string{"home": "10.11.12.5", "cluster": "10.0.0.1", "internet": "198.51.100.7"}
	for _, r := range all {
		i := slices.IndexFunc(r.Sets, func(s edge.RecordSet) bool { return s.Name == "gatehouse.home.example" && s.Type == "A" })
		if i < 0 || !slices.Equal(r.Sets[i].Data, []string{want[r.Zone]}) {
			t.Errorf("zone %s: %+v", r.Zone, r.Sets)
		}
	}
	if got, want := names.Reverse(addr("2001:db8::567:89ab")), "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"; got != want {
		t.Errorf("reverse: %s, want %s (RFC 3596 §2.5)", got, want)
	}
}

// many is a cluster of n Services, each open in two zones.
func many(n int) names.Inputs {
	in := site()
	for i := range n {
		key := fmt.Sprintf("ns%d/web%d", i%100, i)
		in.Exposures = append(in.Exposures, open(key, "home", 80, "10.11.12.5"), open(key, "cluster", 80, "10.0.0.1", "fd00:10::1"))
		in.Cluster.Services = append(in.Cluster.Services, edge.Service{
			Namespace: fmt.Sprintf("ns%d", i%100), Name: fmt.Sprintf("web%d", i), Ports: []edge.ServicePort{{Name: "http", Protocol: edge.TCP, Port: 80}},
		})
		in.Names = append(in.Names, desired.Name{Name: fmt.Sprintf("web%d.home.example", i), By: []desired.NamedBy{{Service: key, Why: "service/" + key}}})
		in.Leases = append(in.Leases, edge.Lease{Zone: "home", Hostname: fmt.Sprintf("pc%d", i%(n/2+1)), MAC: fmt.Sprint(i), Addr: netip.AddrFrom4([4]byte{10, 11, byte(i >> 8), byte(i)})})
		in.Cluster.Nodes = append(in.Cluster.Nodes, edge.Node{Name: fmt.Sprintf("w%d", i%50), Addrs: []netip.Addr{addr("10.0.0.11")}})
	}
	return in
}

// TestOrder has the same names whatever the order of what they follow from.
func TestOrder(t *testing.T) {
	in := many(60)
	want := names.Build(in)
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		r.Shuffle(len(in.Exposures), func(i, j int) { in.Exposures[i], in.Exposures[j] = in.Exposures[j], in.Exposures[i] })
		r.Shuffle(len(in.Names), func(i, j int) { in.Names[i], in.Names[j] = in.Names[j], in.Names[i] })
		r.Shuffle(len(in.Leases), func(i, j int) { in.Leases[i], in.Leases[j] = in.Leases[j], in.Leases[i] })
		r.Shuffle(len(in.Interfaces), func(i, j int) { in.Interfaces[i], in.Interfaces[j] = in.Interfaces[j], in.Interfaces[i] })
		r.Shuffle(len(in.Cluster.Services), func(i, j int) {
			in.Cluster.Services[i], in.Cluster.Services[j] = in.Cluster.Services[j], in.Cluster.Services[i]
		})
		r.Shuffle(len(in.Cluster.Nodes), func(i, j int) { in.Cluster.Nodes[i], in.Cluster.Nodes[j] = in.Cluster.Nodes[j], in.Cluster.Nodes[i] })
		if diff := cmp.Diff(want, names.Build(in)); diff != "" {
			t.Fatalf("another order, other names: -want +got:\n%s", diff)
		}
	}
}

// FuzzBuild has whatever machines and objects call themselves: every name is one,
// there is nothing beside an alias, and nothing twice.
func FuzzBuild(f *testing.F) {
	f.Add("web", "shop", "node.home.example", "Laptop", "x.home.example", "www.bank.example", "http")
	f.Add("", ".", "-", "a..b", "*.", "*", "_")
	f.Add("ä", "a b", "\x00", "WWW", "x.home.example", "x.home.example", "http")
	f.Fuzz(func(t *testing.T, service, namespace, node, hostname, record, asked, port string) {
		in := site()
		key := namespace + "/" + service
		in.Cluster.Nodes = []edge.Node{{Name: node, Addrs: []netip.Addr{addr("10.0.0.11")}}}
		in.Cluster.Services = []edge.Service{{Namespace: namespace, Name: service, Ports: []edge.ServicePort{{Name: port, Protocol: edge.TCP, Port: 80}}}}
		in.Exposures = []desired.Exposure{open(key, "home", 80, "10.11.12.64"), {Name: hostname, Zone: "home", Open: true, Addresses: []netip.Addr{addr("10.11.12.5")}}}
		in.Leases = []edge.Lease{{Zone: "home", Hostname: hostname, MAC: "a", Addr: addr("10.11.12.100")}}
		in.Names = []desired.Name{{Name: asked, By: []desired.NamedBy{{Service: key, Why: "service/" + key}}}}
		if config.IsDomainName(record) { // config.Parse takes no other
			in.Config.DNS.Records = []config.Record{
				{Name: record, TXT: []string{"x"}}, {Name: record, CNAME: "nas.home.example", Zones: []string{"home"}}, {Name: record, TXT: []string{"y"}}, {Name: record, Addresses: []netip.Addr{addr("10.0.0.7")}},
			}
		}
		for _, r := range names.Build(in) {
			seen, alias := map[string]bool{}, map[string]bool{}
			for _, s := range r.Sets {
				if s.Type == "CNAME" {
					alias[s.Name] = true
				}
			}
			for _, s := range r.Sets {
				if !config.IsDomainName(s.Name) {
					t.Errorf("%q is no name", s.Name)
				}
				if seen[s.Name+" "+s.Type] || s.Type != "CNAME" && alias[s.Name] {
					t.Errorf("%q has %s beside something else", s.Name, s.Type)
				}
				seen[s.Name+" "+s.Type] = true
				if data := slices.Clone(s.Data); len(data) == 0 || !slices.IsSorted(data) || len(slices.Compact(data)) != len(s.Data) {
					t.Errorf("%q has %q", s.Name, s.Data)
				}
			}
		}
	})
}

func BenchmarkBuild10000(b *testing.B) {
	in := many(10_000)
	for b.Loop() {
		names.Build(in)
	}
}
