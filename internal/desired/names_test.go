package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// withDNS is a site with a DNS server in zone home.
func withDNS() Inputs {
	in := site()
	in.Config.DNS = &config.DNS{
		Zones: []string{"home"}, Domain: "home.example", ServiceDomain: "cluster.home.example",
		Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 1},
		Records: []config.Record{
			{Name: "nas.home.example", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.101")}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 32, Col: 5}},
			{Name: "text.home.example", TXT: []string{"x"}},
		},
		Forwards:       []config.Forward{{Domain: "corp.home.example"}},
		IngressClasses: map[string]string{"public": "ingress/nginx"},
		Allow: map[string]config.Allow{
			"example.org":      {Who: config.Who{Namespaces: []string{"shop", "ingress"}}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 40, Col: 5}},
			"open.example.org": {Pos: edge.Pos{File: "gatehouse.yaml", Line: 41, Col: 5}},
		},
	}
	in.Config.DHCP = []config.DHCP{{Zone: "cluster", Reservations: []config.Reservation{
		{MAC: "02:00:00:00:00:11", Address: netip.MustParseAddr("10.0.0.11"), Hostname: "tv", Pos: edge.Pos{File: "gatehouse.yaml", Line: 50, Col: 5}},
		{Node: "w9", Address: netip.MustParseAddr("10.0.0.12"), Pos: edge.Pos{File: "gatehouse.yaml", Line: 51, Col: 5}},
	}}}
	return in
}

func externalDNS(names string) func(*edge.Service) {
	return func(s *edge.Service) { s.Annotations[edge.ExternalDNSHostname] = names }
}

// host is a name of an Ingress, made age minutes before the others.
func host(name, service, ingress string, age int) edge.HostRule {
	namespace, _, _ := strings.Cut(ingress, "/")
	return edge.HostRule{Host: name, Service: service, Why: "ingress/" + ingress, Namespace: namespace, Created: time.Date(2026, 1, 1, 12, -age, 0, 0, time.UTC)}
}

// namesOf are who has which name, and what others are told of them.
func namesOf(state State, problems []edge.Problem) (text []string) {
	for _, n := range state.Names {
		line := n.Name + ":"
		for _, by := range n.By {
			line += " " + by.Service + " (" + by.Why + ")"
		}
		text = append(text, line)
	}
	for _, e := range state.Events {
		if strings.HasPrefix(e.Reason, "DNS") || strings.Contains(e.Message, "dns-names") {
			text = append(text, fmt.Sprintf("event %s/%s %s: %s", e.Namespace, e.Name, e.Reason, e.Message))
		}
	}
	for _, p := range problems {
		if strings.Contains(p.What, " name") {
			text = append(text, "problem "+p.String())
		}
	}
	return text
}

func TestNames(t *testing.T) {
	for name, tc := range map[string]struct {
		services []edge.Service
		hosts    []edge.HostRule
		want     []string
	}{
		"those of both annotations": {
			[]edge.Service{service("shop/web", 0, annotate("dns-names", "Www.Home.Example., *.shop.home.example"), externalDNS("a.example.org,"))},
			nil,
			[]string{
				"*.shop.home.example: shop/web (service/shop/web)", "a.example.org: shop/web (service/shop/web)", "www.home.example: shop/web (service/shop/web)",
			},
		},
		"nobody else's": {
			[]edge.Service{service("bad/web", 0, annotate("dns-names", strings.Join([]string{
				"nas.home.example", "tv.home.example", "w1.home.example", "w9.home.example", "gatehouse.home.example", "home.example", "*.home.example",
				"wpad.home.example", "isatap.home.example", "bank.example", "api.bank.cluster.home.example", "web.bad.cluster.home.example", "x.corp.home.example",
				"text.home.example", "shop.example.org", "x.open.example.org", "*.example",
			}, ",")))},
			nil,
			[]string{
				"text.home.example: bad/web (service/bad/web)",
				"x.open.example.org: bad/web (service/bad/web)",
				"event bad/web DNSNameNotAllowed: namespace bad may not have names in example.org; the operator allows it in dns.allow (gatehouse.yaml:40)",
				"event bad/web DNSNameNotAllowed: the name *.example is in no domain of this site; use one in home.example, or have the operator name its domain in dns.allow (gatehouse.yaml:30)",
				"event bad/web DNSNameNotAllowed: the name *.home.example stands for the whole site; use one below home.example, or have the operator name home.example in dns.allow (gatehouse.yaml:30)",
				"event bad/web DNSNameNotAllowed: the name api.bank.cluster.home.example is in cluster.home.example, where names follow from namespaces and Services; use one that is not",
				"event bad/web DNSNameNotAllowed: the name bank.example is in no domain of this site; use one in home.example, or have the operator name its domain in dns.allow (gatehouse.yaml:30)",
				"event bad/web DNSNameNotAllowed: the name gatehouse.home.example is that of this machine; use another one",
				"event bad/web DNSNameNotAllowed: the name home.example stands for the whole site; use one below home.example, or have the operator name home.example in dns.allow (gatehouse.yaml:30)",
				"event bad/web DNSNameNotAllowed: the name isatap.home.example is one that machines look for by themselves, and believe; use another one",
				"event bad/web DNSNameNotAllowed: the name nas.home.example is that of the record at gatehouse.yaml:32; use another one",
				"event bad/web DNSNameNotAllowed: the name tv.home.example is that of the reservation at gatehouse.yaml:50; use another one",
				"event bad/web DNSNameNotAllowed: the name w1.home.example is that of node w1; use another one",
				"event bad/web DNSNameNotAllowed: the name w9.home.example is that of the reservation at gatehouse.yaml:51; use another one",
				"event bad/web DNSNameNotAllowed: the name wpad.home.example is one that machines look for by themselves, and believe; use another one",
				"event bad/web DNSNameNotAllowed: the name x.corp.home.example is in a domain for which other servers are asked; use another one, or have the operator name the domain in dns.allow (gatehouse.yaml:30)",
			},
		},
		"who is older keeps it, and both are told": {
			[]edge.Service{
				service("a/young", 0, annotate("dns-names", "www.home.example")), service("b/old", 5, annotate("dns-names", "www.home.example")),
				service("b/older", 9, annotate("zones", "cluster"), annotate("dns-names", "www.home.example")),
			},
			nil,
			[]string{
				"www.home.example: b/older (service/b/older) b/old (service/b/old)",
				"event a/young DNSNameConflict: the name www.home.example is taken by service b/older, which is older; use another name for one of the two",
				"event b/older DNSNameConflict: service a/young also wants the name www.home.example; this one is older and keeps it",
				"problem service/a/young: the name www.home.example is taken by service b/older, which is older; use another name for one of the two",
			},
		},
		"what cannot be read": {
			[]edge.Service{
				service("shop/web", 0, annotate("dns-names", "not a name")), service("shop/all", 0, annotate("dns-names", "*")), service("shop/others", 0, externalDNS("not a name")),
			},
			nil,
			[]string{
				`event shop/all AnnotationInvalid: annotation gatehouse.e13.dev/dns-names: "*" is no name; write one such as "*.shop.home.example"`,
				`event shop/web AnnotationInvalid: annotation gatehouse.e13.dev/dns-names: "not a name" is not a hostname; hostnames have letters, digits, - and dots, 1 to 63 characters between dots and 253 in all, and do not end in a number`,
				`problem service/shop/all: annotation gatehouse.e13.dev/dns-names: "*" is no name; write one such as "*.shop.home.example"`,
				`problem service/shop/web: annotation gatehouse.e13.dev/dns-names: "not a name" is not a hostname; hostnames have letters, digits, - and dots, 1 to 63 characters between dots and 253 in all, and do not end in a number`,
			},
		},
		"hosts of Ingresses, and what others may mean for somebody else": {
			[]edge.Service{service("shop/web", 0, externalDNS("www.elsewhere.example"))},
			[]edge.HostRule{
				host("www.home.example", "ingress/nginx", "shop/one", 3), host("www.home.example", "ingress/nginx", "other/two", 2), host("www.home.example", "ingress/internal", "shop/three", 1),
				host("www.elsewhere.example", "ingress/nginx", "shop/one", 3), host("nas.home.example", "ingress/nginx", "shop/one", 3),
				host("mine.home.example", "ingress/nginx", "shop/one", 3), host("mine.home.example", "other/nginx", "other/two", 4),
				{Host: "class.home.example", Class: "public", Why: "ingress/shop/class", Namespace: "shop"},
				{Host: "none.home.example", Class: "unknown", Why: "ingress/shop/none", Namespace: "shop"},
			},
			[]string{
				"class.home.example: ingress/nginx (ingress/shop/class)",
				"mine.home.example: other/nginx (ingress/other/two)",
				"www.home.example: ingress/nginx (ingress/shop/one) ingress/internal (ingress/shop/three)",
				"problem ingress/shop/one: the name mine.home.example is taken by ingress other/two, which is older; use another name for one of the two",
				"problem ingress/shop/one: the name nas.home.example is that of the record at gatehouse.yaml:32; use another one",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := withDNS()
			in.Cluster.Services, in.Cluster.Hosts = tc.services, tc.hosts
			got := namesOf(Build(in))
			if name == "nobody else's" { // each event has its problem, which says the same
				got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "problem") })
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			in.Config.DNS = nil
			if got := namesOf(Build(in)); got != nil {
				t.Errorf("without dns: %q", got)
			}
		})
	}
}

// TestNamesIgnoreOrder has the same names whatever is seen first.
func TestNamesIgnoreOrder(t *testing.T) {
	in := withDNS()
	for i := range 12 {
		in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("ns%d/s%d", i%3, i), i%4, annotate("dns-names", fmt.Sprintf("a%d.home.example,b%d.home.example", i%3, i%5))))
		in.Cluster.Hosts = append(in.Cluster.Hosts, host(fmt.Sprintf("a%d.home.example", i%4), fmt.Sprintf("ns%d/s%d", i%3, i), fmt.Sprintf("ns%d/i%d", i%2, i), i%4))
	}
	want := namesOf(Build(in))
	for i := range in.Cluster.Services {
		slices.Reverse(in.Cluster.Services[i:])
		slices.Reverse(in.Cluster.Hosts[i:])
		if diff := cmp.Diff(want, namesOf(Build(in))); diff != "" {
			t.Fatalf("-want +got:\n%s", diff)
		}
	}
}

// TestPort53IsTaken where gatehouse answers questions, at addresses of pools, too.
func TestPort53IsTaken(t *testing.T) {
	in := withDNS()
	withPools(&in)
	in.Cluster.Services = []edge.Service{service("shop/names", 0, dns, cluster, annotate("zones", "home,cluster"))}
	state, _ := Settled(in)
	for _, e := range state.Exposures {
		switch {
		case e.Zone == "cluster" && !e.Open:
			t.Errorf("closed in zone cluster: %s", e.Reason)
		case e.Zone == "home" && (e.Open || e.Code != "PortConflict" || !strings.Contains(e.Reason, "is taken by dns.zones (gatehouse.yaml:30)")):
			t.Errorf("in zone home: open %t, %s %s", e.Open, e.Code, e.Reason)
		}
	}
	if len(state.Exposures) != 4 {
		t.Errorf("%d rows", len(state.Exposures))
	}
}
