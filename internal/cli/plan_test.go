package cli

import (
	"net/netip"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// A row is named with its zone where that makes a difference, and what is so of
// all is said once.
func TestPlanSaysOnceWhoSeesTheClient(t *testing.T) {
	row := func(name, zone, client, remedy string) desired.Exposure {
		return desired.Exposure{Name: name, Zone: zone, Open: true, Client: client, ClientRemedy: remedy}
	}
	for name, c := range map[string]struct {
		rows []desired.Exposure
		want string
	}{
		"one": {
			[]desired.Exposure{row("web", "home", "the client's own", "")},
			"web: the client's own",
		},
		"all the same": {
			[]desired.Exposure{row("web", "home", "a node's", "Local"), row("web", "internet", "a node's", "Local"), row("git", "internet", "a node's", "Local")},
			"all: a node's; to change it: Local",
		},
		"one in two zones": {
			[]desired.Exposure{row("web", "home", "a node's", "Local"), row("web", "internet", "a node's", "Local")},
			"web: a node's; to change it: Local",
		},
		"different by zone": {
			[]desired.Exposure{row("web", "home", "this machine's", ""), row("git", "home", "this machine's", ""), row("web", "internet", "the client's own", ""), row("git", "internet", "this machine's", "")},
			"web in zone home, git: this machine's\nweb in zone internet: the client's own",
		},
		"different by remedy": {
			[]desired.Exposure{row("web", "", "this machine's", "this"), row("git", "", "this machine's", "that")},
			"web: this machine's; to change it: this\ngit: this machine's; to change it: that",
		},
	} {
		if got := strings.Join(clientsSeen(c.rows), "\n"); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// What a frontend of another zone or protocol is held to is not said of a row,
// and what a problem says with its remedy is not said without.
func TestPlanNotesAreThoseOfTheRow(t *testing.T) {
	row := desired.Exposure{
		Name: "web", Zone: "home", Protocol: edge.TCP, Open: true, Client: "this machine's",
		Notes: []string{"two nodes are left out", "hostname a is taken"}, Hostnames: []string{"a", "b"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Target: edge.TargetStatic,
		Listens: []edge.Listen{{Device: "eth0", Port: 443}},
	}
	limited := edge.Terms{MaxRatePerClient: edge.Rate{Connections: 5, Per: 1e9}, CloseWhenDown: true}
	tcp := edge.Door{Protocol: edge.TCP}
	state := desired.State{Exposures: []desired.Exposure{row}, Frontends: []edge.Frontend{
		{Door: tcp, Name: "git", Zone: "home", Terms: limited},
		{Door: tcp, Name: "web", Zone: "internet", Terms: limited},
		{Door: edge.Door{Protocol: edge.UDP}, Name: "web", Zone: "home", Terms: limited},
		{Door: tcp, Name: "web", Zone: "home", Health: edge.HealthCheck{Interval: 5e9}},
	}}
	var out strings.Builder
	if err := printPlan(&out, state, []edge.Problem{{Object: "service/web", What: "hostname a is taken", Remedy: "use another"}}); err != nil {
		t.Fatal(err)
	}
	const want = `ZONE  FRONTEND  LISTENS    REACHED AT  TARGET  BACKEND  WEIGHT  SHARE  PODS
home  web       @eth0:443  10.0.0.1    static  -        -       -      -
        a
        b
web in zone home: two nodes are left out

What the backends see as the client's address:
  web: this machine's

Problems:
  service/web: hostname a is taken; use another
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// Whose bytes the kernel moves is a column where there is one such row, and said
// nowhere else.
func TestPlanShowsTheDataPlane(t *testing.T) {
	row := func(name string, plane edge.DataPlane, target edge.Target, share float64, pods []string, backends ...string) desired.Exposure {
		e := desired.Exposure{
			Name: name, Zone: "home", Protocol: edge.TCP, Open: true, Client: "the client's own", DataPlane: plane, Target: target,
			Listens: []edge.Listen{{Device: "eth1", Port: 80}},
		}
		for _, pod := range pods {
			e.Shares = append(e.Shares, desired.PodShare{Pod: pod, Share: share})
		}
		for i, b := range backends {
			backend := edge.Backend{Addr: netip.MustParseAddrPort(b), Weight: 1, Share: share}
			if len(pods) > 0 {
				backend.Pods = pods[i%len(pods) : i%len(pods)+1]
			}
			e.Backends = append(e.Backends, backend)
		}
		return e
	}
	state := desired.State{
		Exposures: []desired.Exposure{
			row("git", edge.DataPlaneProxy, edge.TargetStatic, 1, nil, "10.0.0.7:22"),
			row("shop/web:80", edge.DataPlaneNAT, edge.TargetPod, 0.5, []string{"shop/a", "shop/b"}, "10.244.1.5:80", "10.244.2.5:80", "[fd00:244:1::5]:80", "[fd00:244:2::5]:80"),
		},
		Hairpins: [][2]string{{"eth1", "eth1"}, {"eth1", "veth0"}},
		Routes:   []edge.Route{{Dst: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.0.0.101"), Why: "node/w1"}},
	}
	state.Exposures[0].Hostnames = []string{"git.example.org"}
	given := func(addr, zone string) edge.Allocation {
		return edge.Allocation{Addr: netip.MustParseAddr(addr), Pool: zone + "-v4", Zone: zone, Service: "shop/web"}
	}
	state.Allocations = []edge.Allocation{given("10.11.12.70", "home"), given("10.99.0.7", "away")}
	state.Addresses = []edge.Address{{Addr: netip.MustParseAddr("10.11.12.70"), Device: "eth1", Why: "service/shop/web"}}
	var out strings.Builder
	if err := printPlan(&out, state, nil); err != nil {
		t.Fatal(err)
	}
	const want = `ZONE  FRONTEND           LISTENS   REACHED AT  DATA PLANE  TARGET  BACKEND             WEIGHT  SHARE   PODS
home  git                @eth1:80  -           proxy       static  10.0.0.7:22         1       100.0%  -
        git.example.org
home  shop/web:80        @eth1:80  -           nat         pod     10.244.1.5:80       1       50.0%   1 × 50.0%
                                                                   10.244.2.5:80       1       50.0%   1 × 50.0%
                                                                   [fd00:244:1::5]:80  1       50.0%   1 × 50.0%
                                                                   [fd00:244:2::5]:80  1       50.0%   1 × 50.0%

What the backends see as the client's address:
  all: the client's own

Addresses of pools:
  10.11.12.70 on eth1 for shop/web, of pool home-v4, in zone home
  10.99.0.7 on no interface for shop/web, of pool away-v4, in zone away

Masqueraded by data plane nat, as answers would not come back through this machine:
  what goes from eth1 to eth1, eth1 to veth0

Routes to pods:
  10.244.1.0/24 via 10.0.0.101 (node/w1)
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	state.Exposures, state.Hairpins, state.Routes = state.Exposures[:1], nil, nil
	out.Reset()
	if err := printPlan(&out, state, nil); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Contains(text, "DATA PLANE") || strings.Contains(text, "proxy") || strings.Contains(text, "Routes") {
		t.Errorf("got\n%s", text)
	}
}
