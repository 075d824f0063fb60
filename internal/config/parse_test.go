package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

func parseOne(text string) (*Config, []edge.Problem) {
	return Parse([]File{{Name: "f.yaml", Data: []byte(text)}})
}

// TestBytesThatAreNoYAML has what gets into configuration files by accident.
func TestBytesThatAreNoYAML(t *testing.T) {
	const good = "apiVersion: gatehouse.e13.dev/v1\n"
	utf16 := func(s string) string {
		var b strings.Builder
		for _, c := range []byte(s) {
			b.WriteByte(c)
			b.WriteByte(0)
		}
		return b.String()
	}
	tests := []struct{ name, data, want string }{
		{"empty", "", "f.yaml:1:1: the file is empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"whitespace", " \n\n  \n", "f.yaml:1:1: the file is empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"comments", "# apiVersion: v1\n# nothing\n", "f.yaml:1:1: the file is empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"only a BOM", bom, "f.yaml:1:1: the file is empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"only ---", "---\n", "f.yaml:1:1: the file is empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"null", "null\n", "f.yaml:1:1: the file must be a map, not empty; start it with apiVersion: gatehouse.e13.dev/v1\n"},
		{"UTF-16 with a mark", "\xff\xfe" + utf16(good), "f.yaml:1:1: the file is UTF-16; save it as UTF-8\n"},
		{"UTF-16 without a mark", utf16(good), "f.yaml:1:1: the file is UTF-16; save it as UTF-8\n"},
		{"UTF-16, high byte first", "\xfe\xff\x00a", "f.yaml:1:1: the file is UTF-16; save it as UTF-8\n"},
		{"a program", "\x7fELF\x02\x01\x01\x00\x00", "f.yaml:1:1: control character 0x7f; the file must be text\n"},
		{"a gzip file", "\x1f\x8b\x08\x00\x00", "f.yaml:1:1: control character 0x1f; the file must be text\n"},
		{"Latin-1", good + "# ä\n# \xe4\n", "f.yaml:3:3: byte 0xe4 is not UTF-8; the file must be text, saved as UTF-8\n"},
		{"a control character", good + "zones: \x01\n", "f.yaml:2:8: control character 0x01; the file must be text\n"},
		{"a control character after a BOM", bom + "a\x01", "f.yaml:1:2: control character 0x01; the file must be text\n"},
		{"too big", good + strings.Repeat("#", MaxFileSize), "f.yaml:1:1: the file has 1048609 bytes; the limit is 1048576 (1 MiB)\n"},
		{"10 MB", strings.Repeat("#", 10<<20), "f.yaml:1:1: the file has 10485760 bytes; the limit is 1048576 (1 MiB)\n"},
		{"deep", good + "zones: " + strings.Repeat("[", 20000), "f.yaml:2:1: not YAML: exceeded max depth of 10000; no field is this deep\n"},
		{
			"deep and complete", good + "zones: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
			"f.yaml:2:8: zones: must be a map, not a list; write zones: {home: {interfaces: [eth1]}}\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, problems := parseOne(tt.data)
			if cfg != nil {
				t.Error("accepted")
			}
			if got := printProblems(problems); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// TestMarksAndLineEndsOfOtherSystemsAreFine: such a file says the same, at the
// same positions.
func TestMarksAndLineEndsOfOtherSystemsAreFine(t *testing.T) {
	site, err := os.ReadFile("testdata/good/site.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want, problems := parseOne(string(site))
	if want == nil {
		t.Fatal(problems)
	}
	got, problems := parseOne(bom + strings.ReplaceAll(string(site), "\n", "\r\n"))
	if got == nil {
		t.Fatalf("refused:\n%s", printProblems(problems))
	}
	if dump(got) != dump(want) {
		t.Errorf("got\n%swant\n%s", dump(got), dump(want))
	}
	bad := "apiVersion: gatehouse.e13.dev/v1\nzones:\n  home: {interface: [eth0]}\n"
	_, wantProblems := parseOne(bad)
	_, problems = parseOne(bom + strings.ReplaceAll(bad, "\n", "\r\n"))
	if got, want := printProblems(problems), printProblems(wantProblems); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestAnyMebibyteIsReadInTime has what is slow to parse or check.
func TestAnyMebibyteIsReadInTime(t *testing.T) {
	head := "apiVersion: gatehouse.e13.dev/v1\n"
	bomb := "a: &a0 [x]\n"
	for i := 1; i < 60; i++ {
		prev := "*a" + strconv.Itoa(i-1)
		bomb += "b" + strconv.Itoa(i) + ": &a" + strconv.Itoa(i) + " [" + prev + strings.Repeat(","+prev, 20) + "]\n"
	}
	var frontends strings.Builder
	frontends.WriteString(head + "frontends:\n")
	for i := range 15000 {
		frontends.WriteString(`- {listen: "10.0.` + strconv.Itoa(i/256) + "." + strconv.Itoa(i%256) + `:80", backends: [{address: "a:1"}]}` + "\n")
	}
	var names strings.Builder
	names.WriteString(head + "frontends:\n")
	for i := range 12000 {
		names.WriteString(`- {listen: ":443", hostnames: [a` + strconv.Itoa(i) + `.lan], backends: [{address: "a:1"}]}` + "\n")
	}
	fill := func(start, unit string) string {
		return start + strings.Repeat(unit, (MaxFileSize-len(start))/len(unit))
	}
	if testing.Short() {
		t.Skip("takes seconds")
	}
	tests := map[string]string{
		"aliases":            head + bomb,
		"frontends":          frontends.String(),
		"names":              names.String(),
		"unknown fields":     fill(head, "a: \n"),
		"one long key":       fill(head, "x") + ": 1",
		"comments":           fill(head, "#\n"),
		"comments in a list": fill(head+"zones:\n", "- a\n# b\n\n# c\n"),
		"empty lists":        fill(head+"zones: [", "[],"),
		"open lists":         fill(head+"zones: ", "["),
		"open maps":          fill(head+"zones: ", "{a: "),
		"dashes":             fill(head+"zones:\n", "- "),
		"questions":          fill(head+"zones:\n", "? "),
		"quotes":             fill(head+"zones: ", "\"\\n"),
		"colons":             fill(head+"zones: ", ": "),
		"anchors":            fill(head+"zones: [", "&a a,"),
		"tags":               fill(head+"zones: [", "!a a,"),
		"folded":             fill(head+"zones: >\n", "  a\n\n"),
		"documents":          fill(head, "---\n"),
		"zones":              fill(head+"frontends: [{port: 80, zones: [", "a,"),
		"stars":              fill(head+"zones: [", "*a,"),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			if len(text) > MaxFileSize+3 {
				t.Fatalf("%d bytes", len(text))
			}
			done := make(chan struct{})
			start := time.Now()
			go func() {
				parseOne(text)
				close(done)
			}()
			select {
			case <-done:
				if d := time.Since(start); d > time.Second {
					t.Logf("took %s", d)
				}
			case <-time.After(60 * time.Second):
				t.Fatal("still at it")
			}
		})
	}
}

// TestFilesAreMerged: what one file names, another may define, and the order
// of what appends is that of the files.
func TestFilesAreMerged(t *testing.T) {
	cfg, problems := Parse([]File{
		{"frontends.yaml", []byte("apiVersion: gatehouse.e13.dev/v1\nfrontends: [{zones: [home], port: 80, backends: [{address: \"a:1\"}]}]\n")},
		{"old.yaml", []byte("apiVersion: v1\nfrontends: [{bind: \":81\", backends: [{address: \"b:1\"}]}]\n")},
		{"zones.yaml", []byte("apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth1]}}\nkubernetes: {}\n")},
		{"admin.yaml", []byte("apiVersion: gatehouse.e13.dev/v1\nadmin: {listen: \"[::1]:9180\"}\n")},
	})
	if cfg == nil {
		t.Fatalf("refused:\n%s", printProblems(problems))
	}
	want := `zone home: ["eth1"] (zones.yaml:2:9)
frontend "home:80" (frontends.yaml:2:13)
  zones: ["home"]
  port: 80
  protocol: TCP, data plane: proxy
  sources: all
  proxies: []
  health: tcp, every 5s, timeout 1s, rise 1, fall 2
  terms: connect 3s, idle 0s, drain 0s, at most 20000, 2000 per client
  rate: 0/0s, ban 0s
  balance: random, affinity 0s
  to backends: PROXY protocol none, transparent false
  refuse when all down: false, close when down: false, masquerade: false
  backend: "a" port 1 weight 1 (frontends.yaml:2:50)
frontend ":81" (old.yaml:2:13)
  listen: device "" host "" port 81 (old.yaml:2:20)
  protocol: TCP, data plane: proxy
  sources: all
  proxies: []
  health: tcp, every 5s, timeout 1s, rise 1, fall 2
  terms: connect 3s, idle 0s, drain 0s, at most 20000, 2000 per client
  rate: 0/0s, ban 0s
  balance: random, affinity 0s
  to backends: PROXY protocol none, transparent false
  refuse when all down: false, close when down: false, masquerade: false
  backend: "b" port 1 weight 1 (old.yaml:2:38)
kubernetes (zones.yaml:3:1)
  kubeconfig: ""
  class: "gatehouse.e13.dev/edge", classless false, follow addresses true
  selector: ""
  default zones: []
  target: auto, data plane: proxy, pod routes: true
  terms: connect 3s, idle 0s, drain 0s, at most 20000, 2000 per client
  rate: 0/0s, ban 0s
  balance: random, affinity 0s
  to backends: PROXY protocol none, transparent false
  refuse when all down: false, close when down: false, masquerade: false
  proxies: []
  health: tcp, every 5s, timeout 1s, rise 1, fall 2
  healthz: 10256
  ignore exclude label: false, finalizer: true, hold losses: 5m0s
admin: "[::1]:9180" (admin.yaml:2:1)
  socket "", zones [], port 9180, token ""
`
	if got := dump(cfg); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestNoFilesAreAnEmptyConfig(t *testing.T) {
	cfg, problems := Parse(nil)
	if cfg == nil || !reflect.DeepEqual(*cfg, Config{StopTimeout: DefaultStopTimeout}) {
		t.Errorf("got %+v, %v", cfg, problems)
	}
}

// TestProblemsAreInFileOrder: in the order of the files given, although two
// have one name and problems across files are found last.
func TestProblemsAreInFileOrder(t *testing.T) {
	zone := "apiVersion: gatehouse.e13.dev/v1\nzones: {a: {interfaces: [%]}}\nfrontends: [{zones: [x], port: 80}]\nfoo: 1\n"
	_, problems := Parse([]File{
		{"z.yaml", []byte(strings.ReplaceAll(zone, "%", "eth0"))},
		{"a.yaml", []byte(strings.ReplaceAll(zone, "%", "eth0"))},
		{"a.yaml", []byte("apiVersion: gatehouse.e13.dev/v1\nbar: 1\n")},
	})
	want := `z.yaml:3:13: frontends[0].backends: missing; write backends: [{address: "10.0.0.101:22"}]
z.yaml:3:22: frontends[0].zones[0]: no zone named "x"; have a
z.yaml:4:1: foo: unknown field; known: KNOWN
a.yaml:2:9: zones.a: defined twice; the other one is at z.yaml:2; give one of them another name
a.yaml:3:13: frontends[0].backends: missing; write backends: [{address: "10.0.0.101:22"}]
a.yaml:3:22: frontends[0].zones[0]: no zone named "x"; have a
a.yaml:4:1: foo: unknown field; known: KNOWN
a.yaml:2:1: bar: unknown field; known: KNOWN
`
	want = strings.ReplaceAll(want, "KNOWN", strings.Join(topBlock.keys(), ", "))
	if got := printProblems(problems); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// TestEveryFieldOfTheReferenceMatters changes each leaf of reference.yaml: a
// field that can be changed without any effect is dead. Where there is another
// valid value, the Config has to change; where there is none, it is refused.
func TestEveryFieldOfTheReferenceMatters(t *testing.T) {
	other := map[string]string{ // "": there is no other valid value
		"apiVersion":                                    "",
		"zones.cluster.interfaces[0]":                   "eth7",
		"zones.home.interfaces[0]":                      "eth7",
		"zones.internet.interfaces[0]":                  "eth7",
		"frontends[0].name":                             "other",
		"frontends[0].zones[0]":                         "internet",
		"frontends[0].port":                             "23",
		"frontends[0].protocol":                         "",
		"frontends[0].dataPlane":                        "",
		"frontends[0].balance":                          "leastConnections",
		"frontends[0].acceptProxyProtocol[0]":           "10.11.12.0/24",
		"frontends[0].sendProxyProtocol":                "v2",
		"frontends[0].transparent":                      "true",
		"frontends[0].sourceRanges[0]":                  "10.0.0.0/8",
		"frontends[0].connectTimeout":                   "1s",
		"frontends[0].idleTimeout":                      "1h",
		"frontends[0].drainTimeout":                     "1h",
		"frontends[0].maxConnections":                   "0",
		"frontends[0].maxConnectionsPerClient":          "0",
		"frontends[0].maxRatePerClient":                 "20/s",
		"frontends[0].banTime":                          "1h",
		"frontends[0].health.type":                      "tls",
		"frontends[0].health.interval":                  "6s",
		"frontends[0].health.timeout":                   "2s",
		"frontends[0].health.rise":                      "3",
		"frontends[0].health.fall":                      "3",
		"frontends[0].health.whenAllDown":               "refuse",
		"frontends[0].health.onDown":                    "close",
		"frontends[0].backends[0].address":              "10.0.0.109:22",
		"frontends[0].backends[0].weight":               "2",
		"frontends[0].backends[1].address":              "[fd00::109]:22",
		"frontends[1].listen":                           "127.0.0.1:2223",
		"frontends[1].backends[0].address":              "git.example.org:23",
		"frontends[2].name":                             "other",
		"frontends[2].zones[0]":                         "internet",
		"frontends[2].port":                             "54",
		"frontends[2].protocol":                         "TCP",
		"frontends[2].idleTimeout":                      "10s",
		"frontends[2].backends[0].address":              "10.0.0.54:53",
		"frontends[3].name":                             "other",
		"frontends[3].zones[0]":                         "cluster",
		"frontends[3].zones[1]":                         "cluster",
		"frontends[3].port":                             "444",
		"frontends[3].hostnames[0]":                     "git2.example.org",
		"frontends[3].balance":                          "",
		"frontends[3].affinityTimeout":                  "0",
		"frontends[3].health.type":                      "http",
		"frontends[3].health.port":                      "8444",
		"frontends[3].health.path":                      "/",
		"frontends[3].health.host":                      "git2.example.org",
		"frontends[3].health.status":                    "200",
		"frontends[3].backends[0].address":              "10.0.0.109:443",
		"frontends[3].backends[1].address":              "10.0.0.109:443",
		"frontends[4].name":                             "other",
		"frontends[4].zones[0]":                         "cluster",
		"frontends[4].zones[1]":                         "cluster",
		"frontends[4].port":                             "444",
		"frontends[4].hostnames[0]":                     "*.example.com",
		"frontends[4].hostnames[1]":                     "example.com",
		"frontends[4].health.type":                      "",
		"frontends[4].health.send":                      "HELLO",
		"frontends[4].health.expect":                    "WORLD",
		"frontends[4].backends[0].address":              "10.0.0.109:443",
		"frontends[5].name":                             "other",
		"frontends[5].zones[0]":                         "internet",
		"frontends[5].port":                             "2906",
		"frontends[5].protocol":                         "TCP",
		"frontends[5].dataPlane":                        "",
		"frontends[5].masquerade":                       "always",
		"frontends[5].backends[0].address":              "10.0.0.109:2905",
		"kubernetes.kubeconfig":                         "/etc/kubernetes/gatehouse.conf",
		"kubernetes.loadBalancerClass":                  "example.org/other",
		"kubernetes.classless":                          "true",
		"kubernetes.followAddresses":                    "false",
		"kubernetes.selector":                           "app=web",
		"kubernetes.defaultZones[0]":                    "cluster",
		"kubernetes.allow.internet.namespaces[0]":       "other",
		"kubernetes.dataPlane":                          "",
		"kubernetes.masquerade":                         "always",
		"kubernetes.podRoutes":                          "false",
		"kubernetes.target":                             "pod",
		"kubernetes.connectTimeout":                     "1s",
		"kubernetes.idleTimeout":                        "1h",
		"kubernetes.drainTimeout":                       "1h",
		"kubernetes.maxConnections":                     "0",
		"kubernetes.maxConnectionsPerClient":            "0",
		"kubernetes.maxRatePerClient":                   "20/s",
		"kubernetes.banTime":                            "1h",
		"kubernetes.balance":                            "source",
		"kubernetes.acceptProxyProtocol[0]":             "10.11.12.0/24",
		"kubernetes.sendProxyProtocol":                  "v1",
		"kubernetes.transparent":                        "true",
		"kubernetes.health.type":                        "tls",
		"kubernetes.health.interval":                    "6s",
		"kubernetes.health.timeout":                     "2s",
		"kubernetes.health.rise":                        "3",
		"kubernetes.health.fall":                        "3",
		"kubernetes.health.whenAllDown":                 "refuse",
		"kubernetes.health.onDown":                      "close",
		"kubernetes.healthzPort":                        "0",
		"kubernetes.ignoreExcludeLabel":                 "true",
		"kubernetes.finalizer":                          "false",
		"kubernetes.holdLosses":                         "1m",
		"kubernetes.apiServer.zones[0]":                 "internet",
		"kubernetes.apiServer.zones[1]":                 "internet",
		"kubernetes.apiServer.port":                     "6444",
		"links[0].name":                                 "lan0",
		"links[0].addresses[0]":                         "10.0.0.2/24",
		"links[0].addresses[1]":                         "fd00:10::2/64",
		"links[0].mtu":                                  "1400",
		"links[0].forwarding":                           "false",
		"links[1].name":                                 "lan1",
		"links[1].addresses[0]":                         "",
		"links[1].hostname":                             "rpi1",
		"links[1].defaultRoute":                         "true",
		"links[2].name":                                 "",
		"links[2].macvlan.parent":                       "eth7",
		"links[2].macvlan.mode":                         "private",
		"links[2].mac":                                  "02:00:00:00:00:52",
		"links[2].addresses[0]":                         "",
		"links[2].hostname":                             "rpi1",
		"links[2].metric":                               "91",
		"links[2].acceptRA":                             "false",
		"links[3].name":                                 "lan3",
		"links[3].vlan.parent":                          "eth7",
		"links[3].vlan.id":                              "21",
		"links[4].name":                                 "lan4",
		"links[4].bridge.ports[0]":                      "eth7",
		"links[4].bridge.ports[1]":                      "eth7",
		"links[4].bridge.stp":                           "true",
		"links[4].addresses[0]":                         "10.1.0.2/24",
		"links[4].routes[0].to":                         "10.3.0.0/16",
		"links[4].routes[0].via":                        "10.1.0.8",
		"links[4].routes[0].metric":                     "101",
		"dhcp.cluster.pools[0]":                         "10.0.0.100-10.0.0.198",
		"dhcp.cluster.leaseTime":                        "13h",
		"dhcp.cluster.reservations[0].mac":              "02:00:00:00:00:12",
		"dhcp.cluster.reservations[0].address":          "10.0.0.13",
		"dhcp.cluster.reservations[0].hostname":         "storage",
		"dhcp.cluster.reservations[1].node":             "worker-2",
		"dhcp.cluster.reservations[1].address":          "10.0.0.13",
		"dhcp.cluster.relayed[0].network":               "10.2.0.0/23",
		"dhcp.cluster.relayed[0].router":                "10.2.0.2",
		"dhcp.cluster.relayed[0].pools[0]":              "10.2.0.100-10.2.0.198",
		"dhcp.cluster.options.routers[0]":               "10.0.0.2",
		"dhcp.cluster.options.dns[0]":                   "10.0.0.2",
		"dhcp.cluster.options.domain":                   "other.example",
		"dhcp.cluster.options.search[0]":                "other.example",
		"dhcp.cluster.options.search[1]":                "other.example",
		"dhcp.cluster.options.ntp[0]":                   "10.0.0.2",
		"dhcp.cluster.options.mtu":                      "1400",
		"dhcp.cluster.options.nextServer":               "10.0.0.6",
		"dhcp.cluster.options.bootFile":                 "other.0",
		"dhcp.cluster.probe":                            "false",
		"dhcp.cluster.routerAdvertisements.prefixes[0]": "fd00:11::/64",
		"dhcp.cluster.routerAdvertisements.lifetime":    "31m",
		"dhcp.cluster.routerAdvertisements.dns[0]":      "fd00:10::2",
		"dhcp.cluster.routerAdvertisements.search[0]":   "other.example",
		"dhcp.cluster.routerAdvertisements.ntp[0]":      "fd00:10::2",
		"dhcp.cluster.routerAdvertisements.mtu":         "1400",
		"firewall.policies[0].from":                     "home",
		"firewall.policies[0].to":                       "any",
		"firewall.policies[0].ports[0]":                 "26",
		"firewall.policies[0].allow":                    "true",
		"firewall.policies[1].from":                     "any",
		"firewall.policies[1].to":                       "home",
		"firewall.policies[1].allow":                    "",
		"firewall.policies[1].masquerade":               "false",
		"firewall.policies[2].from":                     "",
		"firewall.policies[2].to":                       "",
		"firewall.policies[2].ports[0]":                 "6444",
		"firewall.policies[2].ports[1]":                 "8000-8011/TCP",
		"firewall.policies[2].ports[2]":                 "53/SCTP",
		"firewall.policies[2].destinations[0]":          "10.0.0.11",
		"firewall.policies[3].from":                     "internet",
		"firewall.policies[3].to":                       "cluster",
		"firewall.policies[3].ports[0]":                 "http",
		"firewall.policies[3].ports[1]":                 "",
		"firewall.policies[3].sources[0]":               "10.11.12.0/25",
		"firewall.policies[4].from":                     "home",
		"firewall.policies[4].to":                       "any",
		"firewall.policies[4].ports[0]":                 "ntp",
		"dns.zones[0]":                                  "",
		"dns.domain":                                    "other.example",
		"dns.serviceDomain":                             "svc.home.example",
		"dns.records[0].name":                           "other",
		"dns.records[0].address":                        "10.0.0.102",
		"dns.records[0].zones[0]":                       "",
		"dns.records[1].name":                           "other",
		"dns.records[1].addresses[0]":                   "10.11.12.8",
		"dns.records[1].addresses[1]":                   "fd00:11::8",
		"dns.records[2].name":                           "other",
		"dns.records[2].cname":                          "nas",
		"dns.records[3].name":                           "_pop3._tcp",
		"dns.records[3].srv.target":                     "other",
		"dns.records[3].srv.port":                       "110",
		"dns.records[3].srv.priority":                   "1",
		"dns.records[3].srv.weight":                     "1",
		"dns.records[4].name":                           "other",
		"dns.records[4].txt[0]":                         "other",
		"dns.upstreams[0]":                              "9.9.9.10:5353",
		"dns.upstreams[1]":                              "tls://[2620:fe::fe]:853#dns.quad9.net",
		"dns.upstreams[2]":                              "dhcp:eth1",
		"dns.forwards.corp.example[0]":                  "10.9.0.54",
		"dns.rebinding[0]":                              "other.example",
		"dns.ttl":                                       "61s",
		"dns.cacheSize":                                 "10001",
		"dns.ratePerClient":                             "1001",
		"dns.ingressClasses.public":                     "ingress-public/other",
		"dns.allow.example.org.namespaces[0]":           "other",
		"dns.allow.example.org.namespaceLabels":         "tier",
		"pools[0].name":                                 "other",
		"pools[0].zone":                                 "cluster",
		"pools[0].addresses[0]":                         "10.11.12.65-10.11.12.79",
		"pools[0].addresses[1]":                         "10.11.12.96/29",
		"pools[0].addresses[2]":                         "fd00:11:12::1000",
		"pools[0].auto":                                 "false",
		"pools[0].namespaces[0]":                        "other",
		"pools[0].namespaces[1]":                        "other",
		"pools[0].namespaceLabels":                      "tier",
		"pools[0].labels":                               "!expose",
		"stateDir":                                      "/var/lib/other",
		"admin.listen":                                  "127.0.0.1:9181",
		"admin.socket":                                  "/run/other.sock",
		"admin.zones[0]":                                "internet",
		"admin.port":                                    "9181",
		"admin.tokenFile":                               "/etc/other",
		"stopTimeout":                                   "11s",
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(Reference, &doc); err != nil {
		t.Fatal(err)
	}
	parse := func() (*Config, []edge.Problem) {
		data, err := yaml.Marshal(&doc)
		if err != nil {
			t.Fatal(err)
		}
		return Parse([]File{{Name: "reference.yaml", Data: data}})
	}
	original, problems := parse()
	if original == nil {
		t.Fatal(problems)
	}
	seen := map[string]bool{}
	walkLeaves(doc.Content[0], "", func(path string, leaf *yaml.Node) {
		seen[path] = true
		value, known := other[path]
		if !known {
			t.Errorf("%s: add a row with another value", path)
			return
		}
		before := leaf.Value
		defer func() { leaf.Value = before }()
		if value == "" {
			leaf.Value += "x"
			if cfg, _ := parse(); cfg != nil {
				t.Errorf("%s: %q is accepted", path, leaf.Value)
			}
			return
		}
		leaf.Value = value
		cfg, problems := parse()
		switch {
		case cfg == nil:
			t.Errorf("%s: %q is refused: %v", path, value, problems)
		case withoutColumns(dump(cfg)) == withoutColumns(dump(original)):
			t.Errorf("%s: %q changes nothing", path, value)
		}
	})
	for path := range other {
		if !seen[path] {
			t.Errorf("%s: not in reference.yaml", path)
		}
	}
}

// TestTheReferenceHasEveryField of gatehouse's own format.
func TestTheReferenceHasEveryField(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal(Reference, &doc); err != nil {
		t.Fatal(err)
	}
	var paths []string
	walkLeaves(doc.Content[0], "", func(path string, _ *yaml.Node) { paths = append(paths, path) })
	keys := strings.FieldsFunc(strings.Join(paths, " "), func(r rune) bool { return strings.ContainsRune(".[] ", r) })
	for _, b := range blocks {
		for _, f := range b.fields {
			if b.format == APIVersion && !slices.Contains(keys, f.key) {
				t.Errorf("%s %s is missing", b.path, f.key)
			}
		}
	}
}

func walkLeaves(n *yaml.Node, path string, leaf func(string, *yaml.Node)) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			walkLeaves(n.Content[i+1], strings.TrimPrefix(path+"."+n.Content[i].Value, "."), leaf)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			walkLeaves(c, path+"["+strconv.Itoa(i)+"]", leaf)
		}
	default:
		leaf(path, n)
	}
}

// withoutColumns removes what a value of another length moves.
func withoutColumns(dump string) string {
	var lines []string
	for line := range strings.SplitSeq(dump, "\n") {
		if i := strings.LastIndex(line, " ("); i >= 0 {
			line = line[:i]
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestDocsAreUpToDate(t *testing.T) {
	const path = "../../docs/config.md"
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != Docs() {
		t.Error("docs/config.md is not what internal/config says; run: make gen")
	}
}

// TestExamplesOfTheFieldsAreValid: a remedy that is refused in turn is none.
func TestExamplesOfTheFieldsAreValid(t *testing.T) {
	zones := "zones: {home: {interfaces: [eth1]}, internet: {interfaces: [eth2]}}\n"
	around := map[string]string{
		"zones":                          "zones: {home: {interfaces: [eth0]}, internet: %}\n",
		"frontends[]":                    zones + "frontends: [%]\n",
		"frontends[].health":             zones + "frontends: [{listen: \":80\", backends: [{address: \"a:1\"}], health: %}]\n",
		"frontends[].backends[]":         zones + "frontends: [{listen: \":80\", backends: [%]}]\n",
		"kubernetes.health":              zones + "kubernetes: {health: %}\n",
		"kubernetes":                     zones + "kubernetes: %\n",
		"kubernetes.allow.ZONE":          zones + "kubernetes: {allow: {home: %}}\n",
		"kubernetes.apiServer":           zones + "kubernetes: {apiServer: %}\n",
		"pools[]":                        zones + "pools: [%]\n",
		"admin":                          zones + "admin: %\n",
		"zones.NAME":                     "zones: {home: %}\n",
		"links[]":                        "links: [%]\n",
		"links[].macvlan":                "links: [{name: veth0, macvlan: %}]\n",
		"links[].vlan":                   "links: [{name: eth0.20, vlan: %}]\n",
		"links[].bridge":                 "links: [{name: br0, bridge: %}]\n",
		"links[].routes[]":               "links: [{name: br0, addresses: [10.0.0.1/24], routes: [%]}]\n",
		"dhcp.ZONE":                      "stateDir: /s\n" + zones + "dhcp: {home: %}\n",
		"dhcp.ZONE.reservations[]":       "stateDir: /s\n" + zones + "dhcp: {home: {reservations: [%]}}\n",
		"dhcp.ZONE.relayed[]":            "stateDir: /s\n" + zones + "dhcp: {home: {relayed: [%]}}\n",
		"dhcp.ZONE.options":              zones + "dhcp: {home: {routerAdvertisements: {}, options: %}}\n",
		"dhcp.ZONE.routerAdvertisements": zones + "dhcp: {home: {routerAdvertisements: %}}\n",
		"firewall":                       zones + "firewall: %\n",
		"firewall.policies[]":            zones + "firewall: {policies: [%]}\n",
		"dns":                            zones + "links: [{name: veth0, addresses: [dhcp]}]\ndns: %\n",
		"dns.records[]":                  zones + "dns: {zones: [home], domain: home.example, records: [%]}\n",
		"dns.records[].srv":              zones + "dns: {zones: [home], domain: home.example, records: [{name: _a._tcp, srv: %}]}\n",
		"dns.allow.DOMAIN":               zones + "dns: {zones: [home], domain: home.example, allow: {example.org: %}}\n",
		"v1 frontends[]":                 "frontends: [%]\n",
		"v1 frontends[].backends[]":      "frontends: [{bind: \":80\", backends: [%]}]\n",
	}
	const dns = "zones: [home], domain: home.example"
	others := map[string]string{ // what is required beside the field
		"frontends[] name": `port: 1, zones: [home], backends: [{address: "a:1"}]`, "frontends[] zones": `port: 1, backends: [{address: "a:1"}]`,
		"frontends[] port": `zones: [home], backends: [{address: "a:1"}]`, "frontends[] backends": `port: 1, zones: [home]`,
		"frontends[]": `listen: ":80", backends: [{address: "a:1"}]`, "frontends[] listen": `backends: [{address: "a:1"}]`,
		"frontends[] affinityTimeout": `balance: source, listen: ":80", backends: [{address: "a:1"}]`, "frontends[] banTime": `maxRatePerClient: 20/s, listen: ":80", backends: [{address: "a:1"}]`,
		"kubernetes banTime": "maxRatePerClient: 20/s",
		"links[]":            "name: br0, addresses: [dhcp]", "links[] name": "mtu: 1500", "links[] addresses": "name: br0", "links[].macvlan mode": "parent: eth1", "links[].vlan parent": "id: 20",
		"links[].vlan id": "parent: eth0", "links[].routes[] via": "to: 10.2.0.0/16", "links[].routes[] metric": "to: 10.2.0.0/16", "links[] routes": "name: br0, addresses: [10.0.0.1/24]",
		"dhcp": "stateDir: /s\n", "dhcp.ZONE pools": "probe: true", "dhcp.ZONE": "pools: [10.0.0.5]", "dhcp.ZONE leaseTime": "pools: [10.0.0.5]", "dhcp.ZONE probe": "pools: [10.0.0.5]", "dhcp.ZONE options": "pools: [10.0.0.5]",
		"dhcp.ZONE.reservations[] mac": "address: 10.0.0.5", "dhcp.ZONE.reservations[] node": "address: 10.0.0.5",
		"dhcp.ZONE.reservations[] address": "node: worker-1", "dhcp.ZONE.reservations[] hostname": "node: worker-1, address: 10.0.0.5",
		"dhcp.ZONE.relayed[] router": "network: 10.2.0.0/24", "dhcp.ZONE.relayed[] pools": "network: 10.2.0.0/24",
		"firewall.policies[]": "from: home, to: self, ports: [ssh]", "firewall.policies[] from": "to: self, ports: [ssh]", "firewall.policies[] to": "from: home, ports: [ssh]",
		"firewall.policies[] ports": "from: home, to: self", "firewall.policies[] masquerade": "from: home, to: internet, allow: true",
		"dns zones": "domain: home.example", "dns domain": "zones: [home]",
		"dns serviceDomain": dns, "dns records": dns, "dns upstreams": dns, "dns forwards": dns, "dns rebinding": dns, "dns ttl": dns, "dns cacheSize": dns, "dns ratePerClient": dns, "dns ingressClasses": dns, "dns allow": dns,
		"dns.records[] name": "address: 10.0.0.1", "dns.records[] zones": "name: nas, address: 10.0.0.1", "dns.records[] srv": "name: _imap._tcp", "dns.records[]": "name: nas",
		"dns.records[].srv": "target: mail, port: 143", "dns.records[].srv target": "port: 143", "dns.records[].srv port": "target: mail",
		"admin zones": "tokenFile: /t", "admin port": "zones: [home], tokenFile: /t", "admin tokenFile": "zones: [home]",
		"pools[]": "name: a, zone: home, addresses: [10.0.0.1]", "pools[] name": "zone: home, addresses: [10.0.0.1]",
		"pools[] zone": "name: a, addresses: [10.0.0.1]", "pools[] addresses": "name: a, zone: home",
		"kubernetes.apiServer": "zones: [home]", "kubernetes.apiServer zones": "port: 6443",
		"frontends[].health path": "type: http", "frontends[].health host": "type: tls", "frontends[].health status": "type: https",
		"frontends[].health send": "type: exchange, expect: PONG", "frontends[].health expect": "type: exchange",
		"kubernetes.health path": "type: http", "kubernetes.health host": "type: tls", "kubernetes.health status": "type: https",
		"kubernetes.health send": "type: exchange, expect: PONG", "kubernetes.health expect": "type: exchange",
		"frontends[].backends[]": `address: "a:1"`, "frontends[].backends[] address": "weight: 1",
		"v1 frontends[]": `bind: ":80", backends: [{address: "a:1"}]`, "v1 frontends[] bind": `backends: [{address: "a:1"}]`, "v1 frontends[] backends": `bind: ":80"`,
	}
	for _, b := range blocks {
		prefix := ""
		if b.format == L4ProxyVersion {
			prefix = "v1 "
		}
		if b.path != "" && around[prefix+b.path] == "" {
			t.Errorf("%s: add what is around it", b.path)
		}
		for _, f := range b.fields {
			if f.key == "apiVersion" {
				continue
			}
			name := strings.TrimSpace(prefix + b.path + " " + f.key)
			text := f.key + ": " + f.example + "\n"
			if b.path != "" {
				inner := f.key + ": " + f.example
				more, ok := others[name]
				if !ok {
					more = others[prefix+b.path]
				}
				if more != "" {
					inner += ", " + more
				}
				text = strings.ReplaceAll(around[prefix+b.path], "%", "{"+inner+"}")
			} else if f.key != "zones" && b.format == APIVersion {
				text = zones + others[name] + text
			}
			t.Run(name, func(t *testing.T) {
				if cfg, problems := parseOne("apiVersion: " + b.format + "\n" + text); cfg == nil {
					t.Errorf("%s%s", text, printProblems(problems))
				}
			})
		}
		if b.example != "" {
			t.Run(prefix+b.path, func(t *testing.T) {
				text := strings.ReplaceAll(around[prefix+b.path], "%", b.example)
				if cfg, problems := parseOne("apiVersion: " + b.format + "\n" + text); cfg == nil {
					t.Errorf("%s%s", text, printProblems(problems))
				}
			})
		}
	}
}

// isCanonical says what is not as edge.Frontend promises it.
func isCanonical(t *testing.T, f *Frontend) {
	t.Helper()
	for i, h := range f.Hostnames {
		if name, fault := ParseHostname(h); fault != nil || name != h || i > 0 && f.Hostnames[i-1] >= h {
			t.Fatalf("%s: hostnames %q", f.Name, f.Hostnames)
		}
	}
	if f.Hostnames != nil && len(f.Hostnames) == 0 || len(f.Hostnames) > MaxHostnames {
		t.Fatalf("%s: %d hostnames", f.Name, len(f.Hostnames))
	}
	if !slices.IsSortedFunc(f.AcceptProxyProtocol, netip.Prefix.Compare) {
		t.Fatalf("%s: proxies %s", f.Name, f.AcceptProxyProtocol)
	}
	if f.Transparent && f.SendProxyProtocol != edge.ProxyProtocolNone || f.BanTime > 0 && f.MaxRatePerClient == (edge.Rate{}) || f.AffinityTimeout > 0 && f.Balance != edge.BalanceSource {
		t.Fatalf("%s: %+v", f.Name, f.Terms)
	}
	if f.DataPlane == edge.DataPlaneNAT {
		relayed := f.Hostnames != nil || f.AcceptProxyProtocol != nil || f.Transparent || f.SendProxyProtocol != edge.ProxyProtocolNone || f.Balance == edge.BalanceLeastConnections
		if relayed || f.MaxRatePerClient != (edge.Rate{}) || f.Listen != nil && (f.Listen.Device == "" || f.Listen.Host != "") {
			t.Fatalf("%s is the kernel's: %+v", f.Name, f)
		}
	} else if f.DataPlane != edge.DataPlaneProxy || f.Protocol == edge.SCTP || f.Masquerade {
		t.Fatalf("%s is relayed: %+v", f.Name, f)
	}
	if h := f.Health; (h.Expect != "") != (h.Type == edge.CheckExchange) || (h.Path != "") != isHTTP(h.Type) || h.StatusMin > h.StatusMax {
		t.Fatalf("%s: %+v", f.Name, h)
	}
}

// FuzzParse: whatever the bytes, there is a Config or a problem, and every
// problem has a position in one of the files, in their order. What is accepted
// is in the form that others compare.
func FuzzParse(f *testing.F) {
	f.Add(Reference, []byte("apiVersion: v1\nfrontends: [{bind: \":1313\", backends: [{address: \"localhost:1314\"}]}]\n"))
	paths, err := filepath.Glob("testdata/problems/*.txt")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for s := range strings.SplitSeq(string(data), "\n---\n") {
			_, s, _ = strings.Cut(s, "=== ")
			_, s, _ = strings.Cut(s, "\n")
			f.Add([]byte(s), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		files := []File{{"a.yaml", a}, {"b.yaml", b}}
		cfg, problems := Parse(files)
		if (cfg == nil) != (len(problems) > 0) {
			t.Fatalf("Config %v with problems %v", cfg, problems)
		}
		again, againProblems := Parse(files)
		if !reflect.DeepEqual(cfg, again) || !reflect.DeepEqual(problems, againProblems) {
			t.Fatal("parsed twice, two results")
		}
		if cfg != nil {
			for _, f := range cfg.Frontends {
				isCanonical(t, &f)
			}
		}
		last := edge.Pos{File: "a.yaml", Line: 1, Col: 1}
		for _, p := range problems {
			lines := strings.Count(string(a), "\n") + strings.Count(string(a), "\r") + 1
			if p.Pos.File == "b.yaml" {
				lines = strings.Count(string(b), "\n") + strings.Count(string(b), "\r") + 1
			}
			if p.Pos.Line < 1 || p.Pos.Col < 1 || p.What == "" || strings.ContainsAny(p.String(), "\n\r") {
				t.Fatalf("%q has no position, no text or more than a line", p)
			}
			// Unicode's line ends count as such in YAML.
			if p.Pos.Line > lines+1 && !strings.ContainsAny(string(a)+string(b), "\u0085\u2028\u2029") {
				t.Fatalf("%q is after the end", p)
			}
			if p.Pos.File < last.File || p.Pos.File == last.File && (p.Pos.Line < last.Line || p.Pos.Line == last.Line && p.Pos.Col < last.Col) {
				t.Fatalf("%q comes after %v", p, last)
			}
			last = p.Pos
		}
	})
}
