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
