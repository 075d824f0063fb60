package daemon

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// What the page, the metrics and the JSON say comes from here: each number has
// to end up under its own name.
func TestFrontendsAreShown(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	web := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 80}}
	dns := edge.Door{Protocol: edge.UDP, Listen: edge.Listen{Device: "eth1", Port: 80}}
	old := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 81}}
	quiet := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 82}}
	wanted := []edge.Frontend{
		{
			Door: web, Name: "web", Zone: "home", SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			AcceptProxyProtocol: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")},
			Terms: edge.Terms{
				IdleTimeout: time.Hour, DrainTimeout: 5 * time.Minute, MaxConnections: 100, MaxConnectionsPerClient: 10,
				MaxRatePerClient: edge.Rate{Connections: 100, Per: 10 * time.Second}, BanTime: time.Hour,
				Balance: edge.BalanceSource, AffinityTimeout: 3 * time.Hour, SendProxyProtocol: edge.ProxyProtocolV2,
				RefuseWhenDown: true, CloseWhenDown: true,
			},
			Health: edge.HealthCheck{Interval: 5 * time.Second},
			Backends: []edge.Backend{
				{Addr: at("10.0.0.1:80"), State: edge.Down, Error: "refused", Weight: 2, Share: 0.5, Node: "w1", Probe: at("10.0.0.1:32000")},
				{Addr: at("10.0.0.2:80"), State: edge.Up, Weight: 1, Share: 0.5},
				{Addr: at("10.0.0.3:80"), State: edge.Up, Probe: at("10.0.0.3:80")},
			},
		},
		{Door: dns, Name: "dns", Zone: "home", Terms: edge.Terms{
			IdleTimeout: 30 * time.Second, Transparent: true, Balance: edge.BalanceRandom, SendProxyProtocol: edge.ProxyProtocolNone,
		}},
	}
	stats := []relay.Stats{
		{
			Door: web, Name: "web", Accepted: 1, Active: 2, Waiting: 3, Finished: 4, Resets: 5, IdleTimeouts: 6, DrainTimeouts: 7, Lost: 8, Cut: 9, BackendDown: 28,
			Bans: 30, Banned: []relay.Ban{{Client: netip.MustParseAddr("192.0.2.1"), Until: noon}, {Client: netip.MustParseAddr("2001:db8::"), Until: noon}},
			Failures: map[relay.Reason]uint64{relay.Limit: 10, relay.ClientLimit: 11}, AcceptErrors: 12, BytesToBackend: 13, BytesToClient: 14,
			Backends: []relay.BackendStats{
				{Addr: at("10.0.0.1:80"), Connected: 15, Active: 16, Failures: map[relay.Reason]uint64{relay.Refused: 17, relay.Timeout: 1}},
				{Addr: at("10.0.0.3:80"), Draining: true, DrainingSince: noon, Active: 27},
				{Addr: at("10.0.0.8:80"), Draining: true, DrainingSince: noon, Connected: 18, Active: 19},
				{Addr: at("10.0.0.9:80"), Draining: true, DrainingSince: noon},
			},
		},
		{Door: dns, Name: "dns", Accepted: 20, PacketsToBackend: 21, PacketsToClient: 22, PacketsDropped: 23},
		{
			Door: old, Name: "old", Zone: "home", Draining: true, DrainingSince: noon, DrainTimeout: time.Minute, Active: 24,
			Backends: []relay.BackendStats{
				{Addr: at("10.0.0.1:81"), Active: 25},
				{Addr: at("10.0.0.2:81"), Active: 26, Draining: true, DrainingSince: noon.Add(-time.Second)},
				{Addr: at("10.0.0.3:81")},
			},
		},
		{Door: quiet, Name: "quiet"}, // wanted a moment ago, and not closed yet
	}
	exposures := []desired.Exposure{
		{Name: "web", Zone: "home", Protocol: edge.TCP, Client: "the client's own", ClientSeen: true},
		{Name: "web", Zone: "internet", Protocol: edge.TCP, Client: "of another zone"},
		{Name: "web", Zone: "home", Protocol: edge.UDP, Client: "of another protocol"},
		{Name: "dns", Zone: "home", Protocol: edge.UDP, Client: "this machine's", ClientRemedy: "transparent would change it"},
	}
	got, err := json.MarshalIndent(frontends(desired.State{Frontends: wanted, Exposures: exposures}, map[edge.Door]string{dns: "in use"}, stats, moved{}), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	minute := status.Drain{Draining: true, DrainTimeout: status.Duration(time.Minute)}
	until := func(d status.Drain, since, until time.Time) status.Drain {
		d.DrainingSince, d.DrainingUntil = since, until
		return d
	}
	none := map[status.Ending]uint64{
		status.Finished: 0, status.Reset: 0, status.IdleTimeout: 0, status.DrainTimeout: 0, status.Lost: 0, status.BackendDown: 0, status.Cut: 0,
	}
	want, err := json.MarshalIndent([]status.Frontend{
		{
			DataPlane: edge.DataPlaneProxy, Name: "web", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:80", Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			IdleTimeout: status.Duration(time.Hour), Drain: status.Drain{DrainTimeout: status.Duration(5 * time.Minute)},
			MaxConnections: 100, MaxConnectionsPerClient: 10,
			MaxRatePerClient: status.Rate{Connections: 100, Per: 10 * time.Second}, BanTime: status.Duration(time.Hour),
			Balance: edge.BalanceSource, AffinityTimeout: status.Duration(3 * time.Hour),
			Health: "tcp every 5s", WhenAllDown: "refuse", OnDown: "close",
			AcceptProxyProtocol: []netip.Prefix{netip.MustParsePrefix("10.0.0.9/32")}, SendProxyProtocol: edge.ProxyProtocolV2,
			Client: "the client's own", ClientSeen: true,
			Traffic: status.Traffic{
				Accepted: 1, Active: 2, Waiting: 3, AcceptErrors: 12, Received: 13, Sent: 14,
				Ended: map[status.Ending]uint64{
					status.Finished: 4, status.Reset: 5, status.IdleTimeout: 6, status.DrainTimeout: 7, status.Lost: 8, status.Cut: 9, status.BackendDown: 28,
				},
				Failures: map[string]uint64{"limit": 10, "client_limit": 11},
			},
			Bans: 30, Banned: []status.Ban{{Client: "192.0.2.1", Until: noon}, {Client: "2001:db8::/64", Until: noon}},
			Backends: []status.Backend{
				{Addr: "10.0.0.1:80", State: edge.Down, Error: "refused", Weight: 2, Share: 0.5, Node: "w1", Total: 15, Active: 16, Failures: 18},
				{Addr: "10.0.0.2:80", State: edge.Up, Unprobed: true, Weight: 1, Share: 0.5},
				{
					Addr: "10.0.0.3:80", State: edge.Up, Active: 27,
					Drain: until(status.Drain{Draining: true, DrainTimeout: status.Duration(5 * time.Minute)}, noon, noon.Add(5*time.Minute)),
				},
				{
					Addr: "10.0.0.8:80", State: status.Draining, Total: 18, Active: 19,
					Drain: until(status.Drain{Draining: true, DrainTimeout: status.Duration(5 * time.Minute)}, noon, noon.Add(5*time.Minute)),
				},
			},
		},
		{
			DataPlane: edge.DataPlaneProxy, Name: "dns", Zone: "home", Protocol: edge.UDP, Listen: "@eth1:80", Error: "in use", IdleTimeout: status.Duration(30 * time.Second),
			Transparent: true, Balance: edge.BalanceRandom, Client: "this machine's", ClientRemedy: "transparent would change it",
			Traffic: status.Traffic{Accepted: 20, Ended: none, Packets: &status.Packets{Received: 21, Sent: 22, Dropped: 23}},
		},
		{
			DataPlane: edge.DataPlaneProxy, Name: "old", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:81", Traffic: status.Traffic{Active: 24, Ended: none},
			Drain: until(minute, noon, noon.Add(time.Minute)),
			Backends: []status.Backend{
				{Addr: "10.0.0.1:81", State: status.Draining, Active: 25, Drain: until(minute, noon, noon.Add(time.Minute))},
				{Addr: "10.0.0.2:81", State: status.Draining, Active: 26, Drain: until(minute, noon.Add(-time.Second), noon.Add(59*time.Second))},
			},
		},
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Frontends that share a door have counters of their own, whatever the order;
// what has no name yet is the door's; nothing is counted twice.
func TestEachConnectionIsOfOneRow(t *testing.T) {
	tls := edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 443}}
	quic := edge.Door{Protocol: edge.UDP, Listen: edge.Listen{Device: "eth1", Port: 443}}
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	named := func(name string, hostnames ...string) edge.Frontend {
		return edge.Frontend{Door: tls, Name: name, Zone: "home", Hostnames: hostnames}
	}
	at := netip.MustParseAddrPort
	old := func(addr string, active uint64) []relay.BackendStats {
		return []relay.BackendStats{{Addr: at(addr), Active: active, Draining: true, DrainingSince: noon}}
	}
	for name, c := range map[string]struct {
		wanted []edge.Frontend
		doors  []relay.DoorStatus
		stats  []relay.Stats
		want   string
	}{
		"shared": {
			[]edge.Frontend{named("git", "git.example.org"), named("rest", "*"), {Door: quic, Name: "git/UDP", Zone: "home", Hostnames: []string{"git.example.org"}}},
			nil,
			[]relay.Stats{
				{Door: tls, Name: "rest", Accepted: 1, Active: 2},
				{Door: tls, Names: true, Accepted: 10, Active: 3, Waiting: 3, Routed: 6, Failures: map[relay.Reason]uint64{relay.NotTLS: 1}},
				{Door: tls, Name: "git", Accepted: 5, Active: 4},
				{Door: quic, Name: "git/UDP", Accepted: 7},
				{Door: quic, Names: true, Accepted: 8, PacketsDropped: 9},
			},
			`
git: 5 accepted, 4 active
rest: 1 accepted, 2 active
git/UDP: 7 accepted, 0 active
listener home TCP @eth1:443: 10 accepted, 3 waiting, 6 routed, map[not_tls:1]
listener home UDP @eth1:443: 8 accepted, 0 waiting, 0 routed, map[], 9 dropped`,
		},
		"shared, one left, and another's counters are not its own": {
			[]edge.Frontend{named("new", "*")},
			nil,
			[]relay.Stats{
				{Door: tls, Name: "git", Draining: true, DrainingSince: noon, Accepted: 5, Active: 4, Backends: old("10.0.0.1:1", 4)},
				{Door: tls, Names: true, Accepted: 10, Routed: 5},
			},
			`
new: 0 accepted, 0 active
git: 5 accepted, 4 active, draining, 10.0.0.1:1 draining 4
listener home TCP @eth1:443: 10 accepted, 0 waiting, 5 routed, map[]`,
		},
		"shared, and could not be opened": {
			[]edge.Frontend{named("git", "git.example.org")},
			[]relay.DoorStatus{{Door: tls, Name: "git", Error: "in use"}},
			nil,
			`
git: 0 accepted, 0 active, in use
listener home TCP @eth1:443: 0 accepted, 0 waiting, 0 routed, map[], in use`,
		},
		"renamed, which the relay does not know yet": {
			[]edge.Frontend{named("new")}, nil, []relay.Stats{{Door: tls, Name: "old", Accepted: 5, Active: 4}}, `
new: 5 accepted, 4 active`,
		},
		"not shared yet, for the relay does": {
			[]edge.Frontend{named("old")}, nil, []relay.Stats{{Door: tls, Name: "git", Accepted: 5}, {Door: tls, Names: true, Accepted: 6}}, `
old: 0 accepted, 0 active`,
		},
		"shared, which the relay does not know yet": {
			[]edge.Frontend{named("git", "git.example.org")}, nil, []relay.Stats{{Door: tls, Name: "old", Accepted: 5}}, `
git: 0 accepted, 0 active
listener home TCP @eth1:443: 0 accepted, 0 waiting, 0 routed, map[]`,
		},
		"of one frontend before, now shared": {
			[]edge.Frontend{named("git", "git.example.org")},
			nil,
			[]relay.Stats{
				{Door: tls, Names: true, Accepted: 10, Active: 3, Waiting: 1, Routed: 1, Backends: old("10.0.0.1:1", 2)},
				{Door: tls, Name: "git", Accepted: 1, Active: 1},
			},
			`
git: 1 accepted, 1 active
listener home TCP @eth1:443: 10 accepted, 1 waiting, 1 routed, map[], 10.0.0.1:1 draining 2`,
		},
		"shared before, now of one frontend": {
			[]edge.Frontend{named("git")},
			nil,
			[]relay.Stats{
				{Door: tls, Name: "git", Draining: true, DrainingSince: noon, Accepted: 6, Active: 5, Waiting: 1, Backends: append(old("10.0.0.1:1", 1), old("10.0.0.2:1", 3)...)},
				{Door: tls, Name: "rest", Draining: true, Accepted: 1, Active: 1},
				{Door: tls, Name: "git", Accepted: 10, Active: 2, Routed: 7, Backends: []relay.BackendStats{{Addr: at("10.0.0.2:1"), Active: 2}}},
			},
			`
git: 3 accepted, 7 active, 10.0.0.1:1 draining 1, 10.0.0.2:1 draining 5
rest: 1 accepted, 1 active, draining`,
		},
		"gone, and names may still come": {
			nil, nil, []relay.Stats{{Door: tls, Zone: "home", Names: true, Draining: true, Accepted: 10, Waiting: 1}, {Door: quic, Names: true}}, `
listener home TCP @eth1:443: 10 accepted, 1 waiting, 0 routed, map[], draining`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got strings.Builder
			end := func(drain bool, err string, backends []status.Backend) {
				if drain {
					got.WriteString(", draining")
				}
				if err != "" {
					got.WriteString(", " + err)
				}
				for _, b := range backends {
					fmt.Fprintf(&got, ", %s %s %d", b.Addr, b.State, b.Active)
				}
			}
			for _, f := range frontends(desired.State{Frontends: c.wanted}, failed(c.doors), c.stats, moved{}) {
				fmt.Fprintf(&got, "\n%s: %d accepted, %d active", f.Name, f.Accepted, f.Active)
				end(f.Draining, f.Error, f.Backends)
			}
			for _, l := range listeners(c.wanted, failed(c.doors), c.stats) {
				fmt.Fprintf(&got, "\nlistener %s %s %s: %d accepted, %d waiting, %d routed, %v", l.Zone, l.Protocol, l.Listen, l.Accepted, l.Waiting, l.Routed, l.Failures)
				if l.Packets != nil {
					fmt.Fprintf(&got, ", %d dropped", l.Packets.Dropped)
				}
				end(l.Draining, l.Error, l.Backends)
			}
			if got.String() != c.want {
				t.Errorf("got%s\nwant%s", got.String(), c.want)
			}
		})
	}
}

// docs/api.md says what each reason is and each way to end.
func TestReasonsAreDocumented(t *testing.T) {
	docs, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for file, constant := range map[string]string{
		"../relay/stats.go":   `(?m)^\t\w+ +Reason += "(\w+)"`,
		"../status/status.go": `(?m)^\t\w+ +Ending += "(\w+)"`,
	} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(constant).FindAllStringSubmatch(string(source), -1)
		if len(found) < 7 {
			t.Errorf("%s: found %v: the test does not look right", file, found)
		}
		for _, m := range found {
			if !strings.Contains(string(docs), "`"+m[1]+"`") {
				t.Errorf("docs/api.md does not say what %s is", m[1])
			}
		}
	}
}
