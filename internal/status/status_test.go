package status

import (
	"encoding/json"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

func TestChecksAreSaidInWords(t *testing.T) {
	for want, h := range map[string]edge.HealthCheck{
		"":                                   {Type: edge.CheckTCP, Timeout: time.Second},
		"tcp every 5s":                       {Interval: 5 * time.Second},
		"tls of git.example.org every 1m30s": {Type: edge.CheckTLS, Host: "git.example.org", Interval: 90 * time.Second},
		"http /healthz every 5s, wants 200-399": {
			Type: edge.CheckHTTP, Path: "/healthz", Interval: 5 * time.Second, StatusMin: 200, StatusMax: 399,
		},
		"https /live of shop.example.org at port 8443 every 500ms, wants 204": {
			Type: edge.CheckHTTPS, Path: "/live", Host: "shop.example.org", Port: 8443, Interval: 500 * time.Millisecond, StatusMin: 204, StatusMax: 204,
		},
		`exchange every 1h, wants "+PONG\r\n"`: {
			Type: edge.CheckExchange, Interval: time.Hour, Send: "AUTH secret\r\nPING\r\n", Expect: "+PONG\r\n",
		},
	} {
		if got := CheckOf(h); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What is not limited is not there in JSON.
func TestRatesAreThoseOfTheFile(t *testing.T) {
	for want, r := range map[string]Rate{
		`{"Rate":"100/10s"}`: {Connections: 100, Per: 10 * time.Second},
		`{"Rate":"20/1m"}`:   {Connections: 20, Per: time.Minute},
		`{}`:                 {},
	} {
		got, err := json.Marshal(struct {
			Rate Rate `json:",omitzero"`
		}{r})
		if err != nil || string(got) != want {
			t.Errorf("got %s %v, want %s", got, err, want)
		}
	}
	if got := (Rate{Connections: 1, Per: time.Minute}).PerSecond(); got != 1.0/60 {
		t.Errorf("one a minute is %v a second", got)
	}
	if got := (Rate{}).PerSecond(); got != 0 {
		t.Errorf("no limit is %v a second", got)
	}
}

// Where what is decided from comes from is said of each moment.
func TestClusterSays(t *testing.T) {
	now := time.Date(2026, 11, 22, 21, 10, 0, 0, time.UTC)
	early := now.Add(-7 * time.Minute)
	for want, c := range map[string]Cluster{
		"not read yet":                      {},
		"connection refused":                {Error: "connection refused"},
		"0 services, 0 nodes, from the API": {Synced: true},
		"2 services, 3 nodes, from the API": {Synced: true, Services: 2, Nodes: 3},
		"2 services, 3 nodes, from the API, stale since 21:03; no route": {Synced: true, Services: 2, Nodes: 3, StaleSince: early, Error: "no route"},
		"2 services, 3 nodes, from /var/lib/gatehouse of 21:03":          {From: "/var/lib/gatehouse", SavedAt: early, Services: 2, Nodes: 3},
		"0 services, 3 nodes, from /s of 2026-11-20 21:10, stale since 21:03; no route": {
			From: "/s", SavedAt: now.Add(-48 * time.Hour), Nodes: 3, StaleSince: early, Error: "no route",
		},
		"9 services, 3 nodes, from the API; it lacks 7 of 9 Services since 21:03, which is not believed until 21:08": {
			Synced: true, Services: 9, Nodes: 3, Held: &Loss{Missing: "7 of 9 Services", Since: early, Until: early.Add(5 * time.Minute)},
		},
	} {
		if got := c.Says(now); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if c.Well() != (c.Error == "" && c.Held == nil) {
			t.Errorf("%s: well %t", want, c.Well())
		}
	}
}
