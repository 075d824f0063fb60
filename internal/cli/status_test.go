package cli

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// The example of the documents is what the command prints.
func TestStatusIsAsTheDocsShow(t *testing.T) {
	now := time.Now()
	backend := func(addr, node string, active, total uint64) status.Backend {
		return status.Backend{
			Addr: addr, Node: node, State: edge.Up, Weight: 1, Share: 0.5, Active: active, Total: total,
			Received: 750, Sent: 1_500_000, Since: now.Add(-53 * time.Hour),
			Rates: &status.Rates{Connections: 0.4, Received: 190, Sent: 41_000},
			Got:   &status.Got{Over: status.Duration(5 * time.Minute), Connections: total, Share: float64(total) / 120, Wanted: 0.5},
		}
	}
	route := func(dst, via, node string) edge.Route {
		return edge.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Why: "node/" + node}
	}
	s := status.Status{
		Version: "v1", StartedAt: now.Add(-53 * time.Hour), Ready: true,
		Config:    status.Config{Files: []string{"gatehouse.yaml"}, LoadedAt: now.Add(-53 * time.Hour), Current: true},
		Cluster:   &status.Cluster{Synced: true, Services: 2, Nodes: 3},
		Conntrack: &status.Conntrack{Entries: 240, Max: 262144},
		Routes:    []edge.Route{route("10.244.1.0/24", "10.0.0.101", "w1"), route("10.244.2.0/24", "10.0.0.102", "w2")},
		Frontends: []status.Frontend{{
			Name: "shop/web:80", Zone: "home", DataPlane: edge.DataPlaneNAT, Protocol: edge.TCP, Listen: "@eth1:80",
			Traffic:  status.Traffic{Accepted: 120, Active: 12, Received: 1500, Sent: 3_000_000},
			Rates:    &status.Rates{Connections: 0.8, Received: 380, Sent: 82_000},
			Backends: []status.Backend{backend("10.244.1.7:8080", "w1", 7, 61), backend("10.244.2.7:8080", "w2", 5, 59)},
		}, {
			Name: "git", Zone: "internet", DataPlane: edge.DataPlaneProxy, Protocol: edge.TCP, Listen: "@veth0:443",
			Traffic:  status.Traffic{Accepted: 7, Active: 2, Received: 10, Sent: 999, Failures: map[string]uint64{"no_backend": 4}},
			Rates:    &status.Rates{},
			Backends: []status.Backend{{Addr: "10.0.0.7:443", State: edge.Down, Error: "connection refused", Since: now.Add(-130 * time.Second), Weight: 1, Share: 1, Active: 2, Total: 3, Rates: &status.Rates{}}},
		}},
	}
	var out strings.Builder
	if err := printStatus(&out, s, now, false); err != nil {
		t.Fatal(err)
	}
	const file = "gen/text/status.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "$ gatehouse status -c gatehouse.yaml\n"+out.String()+"```") {
		t.Errorf("%s does not show what is printed:\n%s", file, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if cellsOf(line) > 100 {
			t.Errorf("wider than 100 columns: %s", line)
		}
	}
}

// Colours are only that: columns are where they are without.
func TestStatusInColourIsTheSame(t *testing.T) {
	now := time.Now()
	s := status.Status{
		NotReady: []string{"@eth1:80"}, Conntrack: &status.Conntrack{Entries: 95, Max: 100}, Problems: []edge.Problem{{What: "x"}},
		Frontends: []status.Frontend{{Name: "web", Protocol: edge.TCP, Listen: "@eth1:80", Backends: []status.Backend{
			{Addr: "10.0.0.1:80", State: edge.Up},
			{Addr: "10.0.0.2:80", State: edge.Down},
			{Addr: "10.0.0.3:80", State: edge.Pending},
			{Addr: "10.0.0.4:80", State: status.Draining, Drain: status.DrainFrom(now, 0)},
		}}},
	}
	var coloured, without strings.Builder
	if err := printStatus(&coloured, s, now, true); err != nil {
		t.Fatal(err)
	}
	if err := printStatus(&without, s, now, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x1b[31mwaiting for @eth1:80\x1b[0m", "\x1b[32mup\x1b[0m", "\x1b[31mdown\x1b[0m", "\x1b[90mdraining\x1b[0m", "\x1b[31m95 of 100 entries\x1b[0m"} {
		if !strings.Contains(coloured.String(), want) {
			t.Errorf("there is no %q", want)
		}
	}
	if got := regexp.MustCompile(`\x1b\[\d+m`).ReplaceAllString(coloured.String(), ""); got != without.String() {
		t.Errorf("without its colours it is\n%swant\n%s", got, without.String())
	}
	if strings.Contains(without.String(), "\x1b") {
		t.Errorf("there are colours in\n%q", without.String())
	}
}

// It may come while the daemon is asked.
func TestWatchEndsWellWithCtrlC(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	err := repeat(ctx, &out, "---\n", func(ctx context.Context, _ io.Writer) error {
		cancel()
		return ctx.Err()
	})
	if err != nil || out.Len() > 0 {
		t.Errorf("got %q %v, want nothing", out.String(), err)
	}
}

func TestSilenceSaysHowLongWasWaited(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := newClient(listener.Addr().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	c.http.Timeout = 50 * time.Millisecond
	_, err = c.get(t.Context(), "/status.json", nil)
	if want := listener.Addr().String() + " has not answered within 50ms"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestTheDaemonIsAskedWhereItListens(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9180":                   "http://127.0.0.1:9180",
		"10.0.0.1:9180":                    "http://10.0.0.1:9180",
		"localhost:9180":                   "http://localhost:9180",
		"0.0.0.0:9180":                     "http://127.0.0.1:9180",
		"[::]:9180":                        "http://[::1]:9180",
		"[fd00::1]:9180":                   "http://[fd00::1]:9180",
		"http://10.0.0.1:9180/status.json": "http://10.0.0.1:9180",
		"http://10.0.0.1:9180/":            "http://10.0.0.1:9180",
	} {
		if c, err := newClient(reachable(listen), ""); err != nil || c.base.String() != want {
			t.Errorf("%s: got %v %v, want %s", listen, c, err, want)
		}
	}
}

func TestStatusSaysWhatTheRouterDoes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := status.Status{Ready: true, StartedAt: now, Router: status.Router{
		Links: []status.Link{
			{Name: "veth0", Kind: "macvlan", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.11.12.51/24")}, Lease: &edge.LinkLease{Server: netip.MustParseAddr("10.11.12.1"), Expires: now.Add(90 * time.Minute)}},
			{Name: "eth7", Kind: "device", Error: "there is no interface eth7"},
		},
		Firewall: &status.Firewall{Applied: true, Pinholes: 1, Policies: []status.Policy{{}, {}}, Dropped: []status.Dropped{{To: "self", Packets: 1}, {From: "home", To: "cluster"}}},
		DHCP:     []status.DHCPZone{{Zone: "cluster", Size: 100, Free: 97, Leases: []edge.Lease{{}, {}, {Declined: true}}}},
		Advertised: []status.Advertised{{
			Zone: "cluster", Interface: "eth0", Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:10::/64")}, Deprecated: []netip.Prefix{netip.MustParsePrefix("fd00:9::/64")},
			Sent: 7, Answered: 5, Replies: 1,
		}},
		DNS: &status.DNS{
			Zones:     []status.DNSZone{{Zone: "home", Names: 12, Queries: map[string]uint64{"UDP": 9, "TCP": 1}, Own: 2, CacheHits: 7, Forwarded: 1}},
			Upstreams: []status.Upstream{{Server: "10.11.12.1:53", Queries: 4, Failed: 4, Error: "no answer within 2s"}},
		},
	}}
	var out strings.Builder
	if err := printStatus(&out, s, now, false); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"links          veth0: macvlan, 10.11.12.51/24, by DHCP from 10.11.12.1, for 1h30m",
		"               eth7: there is no interface eth7",
		"firewall       2 policies, 1 pinhole, 1 packet dropped",
		"               dropped (no zone) -> self: 1 packet",
		"dhcp           zone cluster: 2 leases, 97 of 100 addresses free, 1 taken by somebody who was not given it",
		"ipv6           zone cluster, eth0: fd00:10::/64, fd00:9::/64 (not any more); 12 advertisements, 1 answer by DHCPv6",
		"dns            zone home: 12 names, 10 questions: 2 about them, 7 from the cache, 1 asked further",
		"dns asks       10.11.12.1:53: 4 questions, 4 without an answer, down: no answer within 2s",
	} {
		if !strings.Contains("\n"+out.String(), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
}
