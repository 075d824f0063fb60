package explain

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// everything is a site with one of each.
func everything(t testing.TB) *site {
	s := newSite(t, siteFile,
		service("shop/web", 1),
		service("shop/younger", 0),
		service("shop/both", 1, port(81), annotate("zones", "home,cluster")),
		service("shop/kernel", 1, port(82), kernel, annotate("target", "pod")),
		service("shop/greedy", 1, port(83), annotate("zones", "internet")),
		service("shop/nowhere", 1, port(84), annotate("zones", "")),
		service("shop/lost", 1, port(85), annotate("zones", "lan2")),
		service("shop/strange", 1, port(86), func(s *edge.Service) { s.Class = "example.org/other" }),
		service("shop/classless", 1, port(87), func(s *edge.Service) { s.Class = "" }),
		service("shop/ranged", 1, port(88), func(s *edge.Service) { s.SourceRanges = []string{"10.11.12.101/32"} }),
		service("shop/empty", 1, port(89), func(s *edge.Service) { s.Endpoints = nil }),
		service("shop/git", 1, port(443), annotate("hostnames", "git.example.org")),
		service("shop/wiki", 1, port(443), annotate("hostnames", "*.wiki.example.org")),
		service("shop/dns", 1, port(53), over(edge.UDP)),
		service("shop/pooled", 1, port(90), labelled("pool", "small"), annotate("zones", "home,cluster")),
		service("shop/sick", 1, port(91), annotate("target", "pod")),
		service("public/web", 1, port(92), annotate("zones", "home,internet")),
		service("shop/sctp", 1, port(93), over(edge.SCTP)),
		service("shop/unread", 1, port(94), annotate("balance", "fair")),
		service("shop/none", 1, port(95), labelled("tier", "none")),
		service("shop/followed", 1, port(96), func(s *edge.Service) {
			s.Class, s.Ingress = "", []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.200")}}
		}),
		service("shop/refused", 1, port(97)),
	)
	for i := range s.Cluster.Services {
		if v := &s.Cluster.Services[i]; v.Name == "sick" { // pods of its own
			for n := range v.Endpoints {
				v.Endpoints[n].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 9, byte(n)}), 8080)
			}
		}
	}
	s.down("10.244.9.0")
	s.down("10.244.9.1")
	s.down("10.244.9.2")
	s.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 97}}] = "listen on @eth1:97: address already in use by sshd (process 512)"
	return s
}

// TestAnswers holds what is said, as people read it.
func TestAnswers(t *testing.T) {
	facts := everything(t).facts()
	var b strings.Builder
	for _, q := range []Question{
		{"home", "10.11.12.32:80"},
		{"", "10.11.12.32:80"},
		{"internet", "10.11.12.32:80"}, // the weak host
		{"home", "[fd00:11:12::32]:80"},
		{"home", "10.11.12.32:22"},
		{"cluster", "10.11.12.32:22"},
		{"home", "10.11.12.32:25"},
		{"home", "shop/web"},
		{"internet", "shop/web:http"},
		{"home", "shop/younger"},
		{"", "shop/both"},
		{"home", "shop/kernel"},
		{"home", "[fd00:11:12::32]:82"},
		{"127.0.0.1", "10.11.12.32:82"},
		{"127.0.0.1", "10.11.12.32:80"},
		{"127.0.0.1", "shop/both"},
		{"internet", "shop/greedy"},
		{"home", "shop/nowhere"},
		{"home", "shop/lost"},
		{"home", "shop/strange"},
		{"home", "shop/classless"},
		{"home", "shop/none"},
		{"home", "shop/unread"},
		{"home", "shop/sctp:93/sctp"},
		{"home", "shop/ranged"},
		{"10.11.12.101", "shop/ranged"},
		{"10.11.12.102", "10.11.12.32:88"},
		{"10.11.12.101", "10.11.12.51:92"}, // in two networks: the address says which
		{"203.0.113.10", "10.11.12.51:92"},
		{"172.17.0.2", "10.11.12.51:92"},
		{"172.17.0.2", "everywhere"},
		{"fd00:11:12::7", "shop/web"},
		{"home", "shop/empty"},
		{"home", "shop/sick"},
		{"home", "shop/refused"},
		{"home", "10.11.12.32:97"},
		{"home", "shop/followed"},
		{"home", "10.11.12.32:443"},
		{"home", "git.example.org:443"},
		{"", "a.wiki.example.org"},
		{"internet", "git.example.org"},
		{"home", "git.example.org:8443"},
		{"home", "shop/wiki"},
		{"home", "10.11.12.32:53/udp"},
		{"home", "10.11.12.32:53"},
		{"home", "shop/dns"},
		{"home", "10.11.12.64:90"},
		{"cluster", "10.11.12.64:90"},
		{"internet", "10.11.12.64:90"},
		{"home", "10.11.12.32:90"},
		{"home", "10.11.12.64:8080"}, // the wall
		{"127.0.0.1", "10.11.12.64:90"},
		{"cluster", "shop/pooled"},
		{"home", "10.11.12.65:90"},
		{"internet", "everywhere"},
		{"internet", "10.0.0.1:8081"},
		{"internet", "10.11.12.51:8081"},
		{"", "looped"},
		{"home", "127.0.0.1:8082"},
		{"", "127.0.0.1:8082"},
		{"internet", "git-ssh"},
		{"home", "edge.example.org:8083"},
		{"home", "kubernetes-api"},
		{"internet", "kubernetes-api"},
		{"127.0.0.1", "127.0.0.1:9180"},
		{"home", "10.11.12.32:9180"},
		{"cluster", "10.0.0.1:9180"},
		// What is no question.
		{"lan2", "shop/web"},
		{"0.0.0.0", "shop/web"},
		{"192.0.2.9", "shop/web"},
		{"home", "shop/wbe"},
		{"home", "shop/web:81"},
		{"home", "10.0.0.101:80"},
		{"home", "10.0.0.200:96"},
		{"home", "192.0.2.1:80"},
		{"home", "gti.example.org"},
		{"home", "http://10.11.12.32"},
		{"home", "10.11.12.32"},
		{"home", "fd00:11:12::32:80"},
		{"home", ""},
	} {
		fmt.Fprintf(&b, "=== from %q to %q\n", q.From, q.To)
		answer, err := Explain(facts, q)
		if err != nil {
			fmt.Fprintln(&b, "error:", err)
			continue
		}
		checkAnswer(t, answer)
		write(&b, answer)
	}
	compareWith(t, "testdata/answers.golden", func(out *strings.Builder) { out.WriteString(b.String()) })
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d:\n%s", i+1, strings.Join(g[i:min(len(g), i+5)], "\n"))
		}
	}
	return "shorter than before"
}

func write(b *strings.Builder, a Answer) {
	fmt.Fprintf(b, "%s\n", a.Verdict)
	for _, w := range a.Ways {
		fmt.Fprintf(b, "- %s from %s: %s: %s\n", w.To, w.From, w.Verdict, w.Summary)
		for _, s := range w.Steps {
			mark := "ok"
			if !s.OK {
				mark = "NO"
			}
			fmt.Fprintf(b, "  %s %s: %s", mark, s.Check, s.What)
			if s.Source != "" {
				fmt.Fprintf(b, " (%s)", s.Source)
			}
			b.WriteString("\n")
		}
		for _, r := range w.Backend {
			fmt.Fprintf(b, "  -> %s %s weight %d share %.3f %v\n", r.Addr, r.State, r.Weight, r.Share, r.Shares)
		}
		if w.Remedy != "" {
			fmt.Fprintf(b, "  remedy: %s\n", w.Remedy)
		}
	}
}

// TestOddSites holds what is said where zones, interfaces and routes are not as
// in most places.
func TestOddSites(t *testing.T) {
	const zoned = `apiVersion: gatehouse.e13.dev/v1
zones:
  home: {interfaces: [eth1, veth0]}
  away: {interfaces: [eth7]}
  cluster: {interfaces: [eth0]}
frontends:
  - {name: web, zones: [home], port: 80, backends: [{address: "10.0.0.101:80"}]}
  - {name: all, zones: [home], port: 443, hostnames: ["*"], backends: [{address: "10.0.0.101:443"}]}
  - {name: git, zones: [home], port: 443, hostnames: [git.example.org], backends: [{address: "10.0.0.102:443"}]}
  - {name: proxied, zones: [home], port: 81, acceptProxyProtocol: [10.11.12.7/32], sourceRanges: [192.0.2.0/24], backends: [{address: "10.0.0.101:80"}]}
  - {name: anybody, zones: [home], port: 82, sourceRanges: [0.0.0.0/0], backends: [{address: "10.0.0.101:80"}]}
  - {name: absent, zones: [away], port: 83, backends: [{address: "10.0.0.101:80"}]}
  - {name: six, zones: [cluster], port: 84, backends: [{address: "10.0.0.101:80"}]}
`
	const zoneless = `apiVersion: gatehouse.e13.dev/v1
frontends:
  - {name: web, listen: ":80", backends: [{address: "10.0.0.101:80"}]}
  - {listen: "@eth1:81", backends: [{address: "10.0.0.101:80"}]}
`
	shut := func(s *site) {
		s.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "veth0", Port: 80}}] = "listen on @veth0:80: address already in use"
	}
	compareWith(t, "testdata/odd.golden", func(b *strings.Builder) {
		for _, c := range []struct {
			what   string
			file   string
			change func(*site, *Facts)
			ask    []Question
		}{
			{"a zone of two interfaces", zoned, nil, []Question{{"home", "10.11.12.32:80"}, {"home", "web"}, {"", "10.11.12.51:25"}}},
			{"one of which is taken", zoned, func(s *site, _ *Facts) { shut(s) }, []Question{{"home", "10.11.12.32:80"}, {"home", "web"}}},
			{"one of which has no cable", zoned, func(_ *site, f *Facts) { down(f, "veth0") }, []Question{{"home", "10.11.12.32:80"}}},
			{"a zone without cables", zoned, func(_ *site, f *Facts) { down(f, "eth0") }, []Question{{"cluster", "10.0.0.1:84"}, {"cluster", "six"}, {"10.0.0.7", "six"}}},
			{"an interface that is not there", zoned, nil, []Question{{"away", "10.11.12.32:80"}, {"away", "absent"}}},
			{"interfaces that answer for each other", siteFile, func(_ *site, f *Facts) {
				for i := range f.Interfaces {
					f.Interfaces[i].AnswersForOthers = true
				}
			}, []Question{{"10.11.12.101", "10.11.12.51:22"}}},
			{"a name for whatever else comes", zoned, nil, []Question{{"home", "10.11.12.32:443"}, {"home", "git.example.org:443"}, {"home", "else.example.org:443"}, {"cluster", "git.example.org"}}},
			{"a proxy in front", zoned, nil, []Question{{"10.11.12.7", "10.11.12.32:81"}, {"10.11.12.8", "10.11.12.32:81"}, {"home", "10.11.12.32:81"}}},
			{"ranges of one family", zoned, nil, []Question{{"home", "10.11.12.32:82"}, {"home", "[fd00:11:12::32]:82"}, {"10.11.12.7", "[fd00:11:12::32]:82"}}},
			{"no way out by the interface", zoned, func(_ *site, f *Facts) {
				f.Leaves = func(netip.Addr, string) bool { return false }
			}, []Question{{"fd00:10::7", "[fd00:10::1]:84"}, {"cluster", "[fd00:10::1]:84"}, {"cluster", "10.0.0.1:84"}, {"cluster", "six"}}},
			{"no zones", zoneless, nil, []Question{{"", "10.11.12.32:80"}, {"", "web"}, {"", "@eth1:81"}, {"10.11.12.7", "10.11.12.32:81"}, {"10.0.0.7", "10.11.12.32:81"}, {"home", "web"}, {"", "shop/web"}}},
			{"a cluster that is not known", siteFile, func(_ *site, f *Facts) { f.Cluster, f.State.Exposures = nil, nil }, []Question{{"home", "shop/web"}, {"home", "kubernetes-api"}}},
			{"nothing decided", siteFile, func(_ *site, f *Facts) { f.Config = nil }, []Question{{"home", "shop/web"}}},
		} {
			s := newSite(t, c.file)
			before := s.facts()
			if c.change != nil {
				c.change(s, &before)
			}
			facts := s.facts()
			if c.change != nil {
				c.change(s, &facts)
			}
			for _, q := range c.ask {
				fmt.Fprintf(b, "=== %s: from %q to %q\n", c.what, q.From, q.To)
				answer, err := Explain(facts, q)
				if err != nil {
					fmt.Fprintln(b, "error:", err)
					continue
				}
				checkAnswer(t, answer)
				write(b, answer)
			}
		}
	})
}

// down pulls the cable of an interface.
func down(f *Facts, device string) {
	f.Interfaces = slices.Clone(f.Interfaces)
	for i := range f.Interfaces {
		f.Interfaces[i].Up = f.Interfaces[i].Up && f.Interfaces[i].Name != device
	}
}

// compareWith compares what is printed with a golden.
func compareWith(t *testing.T, golden string, print func(*strings.Builder)) {
	t.Helper()
	var b strings.Builder
	print(&b)
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("answers changed; look at them with go test ./internal/explain -update and git diff:\n%s", firstDifference(b.String(), string(want)))
	}
}
