package daemon

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

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
			Terms: edge.Terms{IdleTimeout: time.Hour, DrainTimeout: 5 * time.Minute, MaxConnections: 100, MaxConnectionsPerClient: 10},
			Backends: []edge.Backend{
				{Addr: at("10.0.0.1:80"), State: edge.Down, Error: "refused", Weight: 2, Share: 0.5, Node: "w1", Probe: at("10.0.0.1:32000")},
				{Addr: at("10.0.0.2:80"), State: edge.Up, Weight: 1, Share: 0.5},
				{Addr: at("10.0.0.3:80"), State: edge.Up, Probe: at("10.0.0.3:80")},
			},
		},
		{Door: dns, Name: "dns", Zone: "home", Terms: edge.Terms{IdleTimeout: 30 * time.Second}},
	}
	stats := []relay.Stats{
		{
			Door: web, Name: "web", Accepted: 1, Active: 2, Waiting: 3, Finished: 4, Resets: 5, IdleTimeouts: 6, DrainTimeouts: 7, Lost: 8, Cut: 9,
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
	got, err := json.MarshalIndent(frontends(wanted, []relay.DoorStatus{{Door: dns, Error: "in use"}}, stats), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	minute := status.Drain{Draining: true, DrainTimeout: status.Duration(time.Minute)}
	until := func(d status.Drain, since, until time.Time) status.Drain {
		d.DrainingSince, d.DrainingUntil = since, until
		return d
	}
	none := map[status.Ending]uint64{
		status.Finished: 0, status.Reset: 0, status.IdleTimeout: 0, status.DrainTimeout: 0, status.Lost: 0, status.Cut: 0,
	}
	want, err := json.MarshalIndent([]status.Frontend{
		{
			Name: "web", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:80", Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			IdleTimeout: status.Duration(time.Hour), Drain: status.Drain{DrainTimeout: status.Duration(5 * time.Minute)},
			MaxConnections: 100, MaxConnectionsPerClient: 10,
			Accepted: 1, Active: 2, Waiting: 3, AcceptErrors: 12, Received: 13, Sent: 14,
			Ended: map[status.Ending]uint64{
				status.Finished: 4, status.Reset: 5, status.IdleTimeout: 6, status.DrainTimeout: 7, status.Lost: 8, status.Cut: 9,
			},
			Failures: map[string]uint64{"limit": 10, "client_limit": 11},
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
			Name: "dns", Zone: "home", Protocol: edge.UDP, Listen: "@eth1:80", Error: "in use", IdleTimeout: status.Duration(30 * time.Second),
			Accepted: 20, Ended: none, Packets: &status.Packets{Received: 21, Sent: 22, Dropped: 23},
		},
		{
			Name: "old", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:81", Active: 24, Ended: none,
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
