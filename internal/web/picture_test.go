package web

import (
	"fmt"
	"testing"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// However large the site is, boxes have room, and what is in them is inside.
func TestPictureHasRoom(t *testing.T) {
	for _, zones := range []int{1, 2, 6, 30} {
		for _, nodes := range []int{1, 3, 8, 9, 100} {
			for _, pods := range []int{1, 3, 17, 300} {
				name := fmt.Sprintf("%d zones, %d nodes, %d pods", zones, nodes, pods)
				site := siteOf(large(5*zones, zones, nodes, pods))
				for _, shape := range []shape{wideScene, narrowScene} {
					d := site.draw(shape)
					if len(d.Zones) != min(zones, shape.mostZones) || len(d.Nodes) != min(nodes, pods, shape.mostNodes) || d.Height > 1100 {
						t.Errorf("%s: %d zones, %d nodes, height %g", name, len(d.Zones), len(d.Nodes), d.Height)
					}
					for _, column := range [][]box{d.Zones, d.Nodes} {
						bottom := 0.0
						for _, b := range column {
							if b.Y < bottom || b.X < 0 || b.X+b.W > d.Width || b.Y+b.H > d.Height {
								t.Errorf("%s: box %+v in %g x %g", name, b, d.Width, d.Height)
							}
							bottom = b.Y + b.H
							for _, p := range b.Pods {
								if p.X < b.X || p.X+p.Size > b.X+b.W || p.Y < b.Y+24 || p.Y+p.Size > b.Y+b.H {
									t.Errorf("%s: pod %+v in box %+v", name, p, b)
								}
							}
							if len([]rune(b.Name)) > max(shape.letters, shape.nodeLetters) {
								t.Errorf("%s: name %s", name, b.Name)
							}
						}
					}
				}
			}
		}
	}
}

// Lines are as thick as the traffic, grey without any, and red where something
// is wrong.
func TestPictureLines(t *testing.T) {
	front := func(zone string, bytes float64, backends ...status.Backend) status.Frontend {
		return status.Frontend{Name: zone, Zone: zone, Rates: &status.Rates{Received: bytes / 4, Sent: bytes * 3 / 4}, Backends: backends}
	}
	back := func(node string, state edge.BackendState, active uint64) status.Backend {
		return status.Backend{Addr: "10.0.0.1:80", Node: node, Pods: []string{"shop/" + node}, State: state, Active: active}
	}
	s := status.Status{
		Exposures: []desired.Exposure{{Zone: "home", Open: true}, {Zone: "home"}, {Zone: "idle", Open: true}, {Zone: "shut"}},
		Frontends: []status.Frontend{
			front("home", 1e6, back("w1", edge.Up, 3), back("w2", edge.Down, 1), back("w3", edge.Up, 0)), front("idle", 0, back("w4", edge.Up, 0)),
		},
	}
	d := siteOf(s).draw(wideScene)
	type want struct{ class, width string }
	got := map[string]want{}
	for _, l := range d.Lines {
		if _, twice := got[l.Says]; twice {
			t.Errorf("two lines for %s", l.Says)
		}
		got[l.Says] = want{l.Class, l.Width}
	}
	for says, w := range map[string]want{
		"zone home: 1 open, 1.0 MB/s": {"busy", "9.5"},
		"zone home: 1 not open":       {"bad", "1.5"},
		"zone idle: 1 open, 0 B/s":    {"idle", "1.5"},
		"zone shut: 1 not open":       {"bad", "1.5"},
		"w1: 750.0 kB/s ":             {"busy", "9.3"},
		"w2: 250.0 kB/s 1 of 1 down":  {"bad", "8.3"},
		"w3: 0 B/s ":                  {"idle", "1.5"},
		"w4: 0 B/s ":                  {"idle", "1.5"},
		"shop/w1: up":                 {"busy", "9.3"},
		"shop/w2: down":               {"bad", "8.3"},
		"shop/w3: up":                 {"idle", "1.5"},
		"shop/w4: up":                 {"idle", "1.5"},
	} {
		if got[says] != w {
			t.Errorf("%q: got %v, want %v", says, got[says], w)
		}
		delete(got, says)
	}
	if len(got) > 0 {
		t.Errorf("also %v", got)
	}
	if want := "Clients come from home (1 open, 1 not open), idle (1 open), shut (0 open, 1 not open), through gatehouse, to " +
		"w1 (1 behind it), w2 (1 behind it, 1 down), w3 (1 behind it), w4 (1 behind it)."; d.Desc != want {
		t.Errorf("got  %s\nwant %s", d.Desc, want)
	}
}

// What the kernel counts for a backend is its part; else connections are.
func TestPictureSharesOutBytes(t *testing.T) {
	rates := func(received, connections float64) *status.Rates {
		return &status.Rates{Received: received, Connections: connections}
	}
	for name, c := range map[string]struct {
		backends []status.Backend
		want     string
	}{
		"counted":          {[]status.Backend{{Rates: rates(30, 0), Active: 9}, {Rates: rates(10, 0)}}, "[0.75 0.25]"},
		"connections":      {[]status.Backend{{Rates: rates(0, 2), Active: 1}, {Rates: rates(0, 1)}}, "[0.75 0.25]"},
		"open connections": {[]status.Backend{{Active: 1, Share: 1}, {Active: 3}}, "[0.25 0.75]"},
		"wanted":           {[]status.Backend{{Share: 0.5}, {Share: 0.5}}, "[0.5 0.5]"},
		"nothing":          {[]status.Backend{{}, {}}, "[0 0]"},
	} {
		if got := fmt.Sprint(partsOf(&status.Frontend{Backends: c.backends})); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestNamesAreCutInTheMiddle(t *testing.T) {
	for name, want := range map[string]string{"shop/web": "shop/web", "shop/web-5d8f7c9b6f-x2z0": "shop/…f-x2z0", "zwölf-ä-Zeichen": "zwölf…eichen"} {
		if got := short(name, 12); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
