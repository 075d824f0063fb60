package daemon

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// site is a cluster with so many Services of so many endpoints each, and nodes.
func site(services, endpoints, nodes int) *edge.Cluster {
	c := &edge.Cluster{}
	for i := range services {
		c.Services = append(c.Services, edge.Service{Namespace: "shop", Name: fmt.Sprintf("s%02d", i), Endpoints: make([]edge.Endpoint, endpoints)})
	}
	for i := range nodes {
		c.Nodes = append(c.Nodes, edge.Node{Name: fmt.Sprintf("w%d", i)})
	}
	return c
}

func TestMissing(t *testing.T) {
	renamed := site(4, 1, 0)
	for i := range renamed.Services {
		renamed.Services[i].Name += "-other"
	}
	otherNodes := site(0, 0, 4)
	for i := range otherNodes.Nodes {
		otherNodes.Nodes[i].Name += "-other"
	}
	grown := site(10, 1, 0)
	grown.Services[0].Endpoints = make([]edge.Endpoint, 100)
	for i := 1; i < 7; i++ {
		grown.Services[i].Endpoints = nil
	}
	for name, tc := range map[string]struct {
		before, now *edge.Cluster
		want        string
	}{
		"nothing":                             {site(10, 10, 10), site(10, 10, 10), ""},
		"all":                                 {site(10, 10, 10), site(0, 0, 0), "10 of 10 Services, 100 of 100 endpoints and 10 of 10 nodes"},
		"half":                                {site(10, 10, 10), site(5, 10, 5), ""},
		"one more":                            {site(10, 1, 11), site(4, 1, 5), "6 of 10 Services, 6 of 10 endpoints and 6 of 11 nodes"},
		"endpoints":                           {site(4, 3, 4), site(4, 1, 4), "8 of 12 endpoints"},
		"two kinds":                           {site(4, 0, 4), site(1, 0, 1), "3 of 4 Services and 3 of 4 nodes"},
		"of few":                              {site(3, 1, 3), site(0, 0, 0), ""},
		"of the least that is many":           {site(4, 0, 4), site(1, 0, 4), "3 of 4 Services"},
		"other Services in their place":       {site(4, 1, 0), renamed, "4 of 4 Services and 4 of 4 endpoints"},
		"other nodes in their place":          {site(0, 0, 4), otherNodes, ""},
		"one Service's gain is not another's": {site(10, 1, 0), grown, "6 of 10 endpoints"},
		"more":                                {site(4, 1, 4), site(40, 1, 40), ""},
	} {
		if got := missing(tc.before, tc.now); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// What a list suddenly lacks is not believed for a while; what was deleted, is.
func TestSuddenLossesAreNotBelieved(t *testing.T) {
	const hold = 5 * time.Minute
	many, few, none := site(10, 1, 4), site(2, 1, 4), site(0, 0, 4)
	type step struct {
		wait   time.Duration
		read   *edge.Cluster
		list   int
		agree  bool // the operator says so before
		want   *edge.Cluster
		listed bool // it is held
	}
	for name, steps := range map[string][]step{
		"the first is believed":            {{read: none, want: none}, {read: many, list: 1, want: many}},
		"what was deleted is gone":         {{read: many, want: many}, {read: none, want: none}},
		"a list that lacks most":           {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}},
		"held until time is up":            {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {wait: hold - 1, read: few, list: 1, want: many, listed: true}, {wait: 1, read: few, list: 1, want: few}},
		"more lists do not prolong it":     {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {wait: hold - 1, read: none, list: 2, want: many, listed: true}, {wait: 1, read: few, list: 3, want: few}},
		"held no longer than it lasts":     {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {wait: time.Second, read: many, list: 2, want: many}, {wait: hold, read: few, list: 3, want: many, listed: true}},
		"it comes back by watching":        {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {wait: time.Second, read: many, list: 1, want: many}, {read: none, list: 1, want: none}},
		"what happens meanwhile waits":     {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {read: none, list: 1, want: many, listed: true}},
		"believed since the operator says": {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {wait: time.Second, read: few, list: 1, agree: true, want: few}, {read: few, list: 1, want: few}},
		"not before there is a loss":       {{read: many, want: many}, {read: few, list: 1, agree: true, want: many, listed: true}, {wait: time.Second, read: few, list: 1, want: many, listed: true}},
		"nor the next one":                 {{read: many, want: many}, {read: few, list: 1, want: many, listed: true}, {read: few, list: 1, agree: true, want: few}, {read: many, list: 2, want: many}, {read: few, list: 3, want: many, listed: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var g guard
				for i, s := range steps {
					time.Sleep(s.wait)
					if s.agree {
						g.agree()
					}
					got := g.take(time.Now(), s.read, s.list, hold)
					if got != s.want || (g.loss != nil) != s.listed {
						t.Fatalf("step %d: %d Services, held %t; want %d, %t", i, len(got.Services), g.loss != nil, len(s.want.Services), s.listed)
					}
				}
			})
		})
	}
}

func TestLossesAreBelievedAtOnceIfSo(t *testing.T) {
	var g guard
	many, none := site(10, 1, 4), site(0, 0, 0)
	g.take(time.Now(), many, 0, 0)
	if got := g.take(time.Now(), none, 1, 0); got != none || g.loss != nil {
		t.Errorf("held: %+v", g.loss)
	}
	// Also if that is said while something is held.
	g = guard{accepted: many, list: 0}
	if got := g.take(time.Now(), none, 1, time.Minute); got != many {
		t.Fatal("not held")
	}
	if got := g.take(time.Now(), none, 1, 0); got != none || g.loss != nil {
		t.Errorf("held: %+v", g.loss)
	}
}

// While the API is away, too, what goes on is what was accepted.
func TestHeldAndAway(t *testing.T) {
	var g guard
	many, away := site(10, 1, 4), site(0, 0, 0)
	away.Stale = true
	g.take(time.Now(), many, 0, time.Minute)
	got := g.take(time.Now(), away, 1, time.Minute)
	if len(got.Services) != 10 || !got.Stale || many.Stale {
		t.Errorf("%d Services, stale %t; what was accepted is stale: %t", len(got.Services), got.Stale, many.Stale)
	}
}

func TestLossIsExplained(t *testing.T) {
	since := time.Date(2026, 11, 22, 21, 3, 12, 0, time.UTC)
	l := loss{What: "7 of 9 Services", Since: since, Until: since.Add(5 * time.Minute)}
	const want = "gatehouse.yaml:7:3: kubernetes.holdLosses: the Kubernetes API suddenly lacks 7 of 9 Services since 21:03:12, which is not believed until 21:08:12: " +
		"what was there before is served, and nothing is written to the cluster; look whether the API server has the right data; " +
		"if they are gone for good, systemctl reload gatehouse (SIGHUP) has it believed now"
	if got := l.problem(edge.Pos{File: "gatehouse.yaml", Line: 7, Col: 3}).String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
