package changes

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

func backend(addr string, weight int, pods ...string) edge.Backend {
	return edge.Backend{Addr: netip.MustParseAddrPort(addr), Weight: weight, State: edge.Up, Target: edge.TargetPod, Node: "w1", Pods: pods}
}

// web is one Service, as a plan has it.
func web() Side {
	return Side{
		Exposures: []desired.Exposure{{
			Name: "shop/web:80", Service: "shop/web", Zone: "home", Protocol: edge.TCP, Port: 80, Open: true,
			Listens:   []edge.Listen{{Device: "eth1", Port: 80}},
			Addresses: []netip.Addr{netip.MustParseAddr("10.11.12.32")},
			Target:    edge.TargetPod, DataPlane: edge.DataPlaneProxy, Balance: edge.BalanceRandom,
			Client: "this machine's address", Why: "service/shop/web",
			Backends: []edge.Backend{backend("10.244.1.7:80", 1, "shop/web-a"), backend("10.244.2.7:80", 1, "shop/web-b")},
		}, {
			Name: "shop/admin", Service: "shop/admin", Reason: "it asks for no zone", Remedy: "annotate it", Why: "service/shop/admin",
		}},
		Frontends: []status.Frontend{{Name: "shop/web:80", Zone: "home", Protocol: edge.TCP, Drain: status.Drain{DrainTimeout: status.Duration(time.Hour)}, Health: "tcp every 5s"}},
	}
}

// told is what changed, a line for each thing.
func told(c Changes) []string {
	var lines []string
	for _, change := range c.Opened {
		lines = append(lines, "+ "+change.Name+" in "+change.Zone+" at "+join(change.Listens)+" for "+join(change.Backends))
	}
	for _, change := range c.Closed {
		lines = append(lines, "- "+change.Name+" in "+change.Zone+": "+change.Reason)
	}
	for _, change := range c.Changed {
		for _, d := range change.Differences {
			lines = append(lines, "~ "+change.Name+" in "+change.Zone+": "+d.String())
		}
	}
	return lines
}

func TestEachDifferenceIsTold(t *testing.T) {
	const row = "~ shop/web:80 in home: "
	for name, c := range map[string]struct {
		change func(e *desired.Exposure, f *status.Frontend)
		want   []string
	}{
		"nothing":   {func(*desired.Exposure, *status.Frontend) {}, nil},
		"listens":   {func(e *desired.Exposure, _ *status.Frontend) { e.Listens[0].Device = "eth2" }, []string{row + "listens: @eth2:80, was @eth1:80"}},
		"addresses": {func(e *desired.Exposure, _ *status.Frontend) { e.Addresses = nil }, []string{row + "reached at: none, was 10.11.12.32"}},
		"names":     {func(e *desired.Exposure, _ *status.Frontend) { e.Hostnames = []string{"a.example", "b.example"} }, []string{row + "server names: a.example b.example, was none"}},
		"source ranges": {func(e *desired.Exposure, _ *status.Frontend) {
			e.Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}, []string{row + "source ranges: 10.0.0.0/8, was all"}},
		"target":     {func(e *desired.Exposure, _ *status.Frontend) { e.Target = edge.TargetNodePort }, []string{row + "target: nodePort, was pod"}},
		"data plane": {func(e *desired.Exposure, _ *status.Frontend) { e.DataPlane = edge.DataPlaneNAT }, []string{row + "data plane: nat, was proxy"}},
		"client":     {func(e *desired.Exposure, _ *status.Frontend) { e.Client = "the client's own" }, []string{row + "the backends see: the client's own, was this machine's address"}},
		"a backend more": {
			func(e *desired.Exposure, _ *status.Frontend) {
				e.Backends = append(e.Backends, backend("10.244.3.7:80", 2))
			},
			[]string{
				row + "backend 10.244.3.7:80 w1: weight 2, share 50.0%, was none",
				row + "backend 10.244.1.7:80 w1: weight 1, share 25.0%, was weight 1, share 50.0%",
				row + "backend 10.244.2.7:80 w1: weight 1, share 25.0%, was weight 1, share 50.0%",
			},
		},
		"a backend less": {
			func(e *desired.Exposure, _ *status.Frontend) { e.Backends = e.Backends[:1] },
			[]string{
				row + "backend 10.244.1.7:80 w1: weight 1, share 100.0%, was weight 1, share 50.0%",
				row + "backend 10.244.2.7:80 w1: none, was weight 1, share 50.0%",
			},
		},
		"weights, of the same share": {
			func(e *desired.Exposure, _ *status.Frontend) { e.Backends[0].Weight, e.Backends[1].Weight = 2, 2 },
			[]string{
				row + "backend 10.244.1.7:80 w1: weight 2, share 50.0%, was weight 1, share 50.0%",
				row + "backend 10.244.2.7:80 w1: weight 2, share 50.0%, was weight 1, share 50.0%",
			},
		},
		"pods": {func(e *desired.Exposure, _ *status.Frontend) {
			e.Backends[0].Pods = []string{"shop/web-z", "shop/web-c"}
		}, []string{row + "pods behind 10.244.1.7:80 w1: shop/web-c shop/web-z, was shop/web-a"}},
		"balance":      {func(_ *desired.Exposure, f *status.Frontend) { f.Balance = edge.BalanceSource }, []string{row + "balance: source, was random"}},
		"affinity":     {func(_ *desired.Exposure, f *status.Frontend) { f.AffinityTimeout = status.Duration(time.Minute) }, []string{row + "affinity timeout: 1m, was none"}},
		"health":       {func(_ *desired.Exposure, f *status.Frontend) { f.Health = "" }, []string{row + "health check: none, was tcp every 5s"}},
		"all down":     {func(_ *desired.Exposure, f *status.Frontend) { f.WhenAllDown = "refuse" }, []string{row + "when all are down: refuse, was try"}},
		"on down":      {func(_ *desired.Exposure, f *status.Frontend) { f.OnDown = "close" }, []string{row + "connections of a backend that is down: close, was keep"}},
		"idle":         {func(_ *desired.Exposure, f *status.Frontend) { f.IdleTimeout = status.Duration(time.Hour) }, []string{row + "idle timeout: 1h, was none"}},
		"drain":        {func(_ *desired.Exposure, f *status.Frontend) { f.DrainTimeout = 0 }, []string{row + "drain timeout: none, was 1h"}},
		"limit":        {func(_ *desired.Exposure, f *status.Frontend) { f.MaxConnections = 7 }, []string{row + "connections at most: 7, was none"}},
		"client limit": {func(_ *desired.Exposure, f *status.Frontend) { f.MaxConnectionsPerClient = 7 }, []string{row + "connections of a client at most: 7, was none"}},
		"rate": {func(_ *desired.Exposure, f *status.Frontend) {
			f.MaxRatePerClient = status.Rate{Connections: 5, Per: time.Second}
		}, []string{row + "new connections of a client at most: 5/1s, was none"}},
		"ban": {func(_ *desired.Exposure, f *status.Frontend) { f.BanTime = status.Duration(time.Hour) }, []string{row + "ban time: 1h, was none"}},
		"accept": {func(_ *desired.Exposure, f *status.Frontend) {
			f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("10.0.0.8/29")}
		}, []string{row + "PROXY protocol is accepted from: 10.0.0.8/29, was none"}},
		"send":        {func(_ *desired.Exposure, f *status.Frontend) { f.SendProxyProtocol = edge.ProxyProtocolV2 }, []string{row + "PROXY protocol is sent: v2, was none"}},
		"transparent": {func(_ *desired.Exposure, f *status.Frontend) { f.Transparent = true }, []string{row + "transparent: true, was false"}},

		"closed": {
			func(e *desired.Exposure, _ *status.Frontend) { e.Open, e.Reason = false, "port 80 is another's" },
			[]string{"- shop/web:80 in home: port 80 is another's"},
		},
		"gone": {func(e *desired.Exposure, _ *status.Frontend) { e.Zone = "" }, []string{
			"+ shop/web:80 in  at @eth1:80 for 10.244.1.7:80 w1 10.244.2.7:80 w1",
			"- shop/web:80 in home: nothing asks for it any more",
		}},

		// What comes and goes by itself.
		"health states": {func(e *desired.Exposure, _ *status.Frontend) {
			e.Backends[0].State, e.Backends[0].Share, e.Backends[0].Error, e.Backends[0].Since = edge.Down, 0, "refused", time.Unix(1, 0)
			e.Backends[1].Share, e.Reason, e.Shares = 1, "no backend is up", []desired.PodShare{{Pod: "shop/web-b", Share: 1}}
		}, nil},
		"counters": {func(_ *desired.Exposure, f *status.Frontend) {
			f.Accepted, f.Active, f.Rates, f.Bans = 7, 1, &status.Rates{}, 3
		}, nil},
		"where it is written": {func(e *desired.Exposure, _ *status.Frontend) { e.Why = "gatehouse.yaml:99" }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			planned := web()
			c.change(&planned.Exposures[0], &planned.Frontends[0])
			got := told(Between(web(), planned))
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestReasonsOfWhatIsNotOpen(t *testing.T) {
	const row = "~ shop/admin in : not open: "
	for name, c := range map[string]struct {
		have, planned func(*Side)
		want          string
	}{
		"another": {nil, func(s *Side) { s.Exposures[1].Reason = "it may not" }, row + "it may not, was it asks for no zone"},
		"new":     {func(s *Side) { s.Exposures = s.Exposures[:1] }, nil, row + "it asks for no zone, was none"},
		"gone":    {nil, func(s *Side) { s.Exposures = s.Exposures[:1] }, row + "none, was it asks for no zone"},
		"opened":  {nil, func(s *Side) { s.Exposures[1].Open = true }, "+ shop/admin in  at  for "},
	} {
		have, planned := web(), web()
		if c.have != nil {
			c.have(&have)
		}
		if c.planned != nil {
			c.planned(&planned)
		}
		if got := told(Between(have, planned)); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// A Service may ask for several zones that there are not.
func TestZonesThatThereAreNot(t *testing.T) {
	side := func(zones ...string) (s Side) {
		for _, zone := range zones {
			s.Exposures = append(s.Exposures, desired.Exposure{Name: "shop/web", Service: "shop/web", Code: "UnknownZone", Reason: "no zone named " + zone})
		}
		return s
	}
	for range 20 { // the order of maps is none
		got := told(Between(side("lan2", "lan3", "lan4"), side("lan2", "lan5", "lan6")))
		want := []string{
			"~ shop/web in : not open: no zone named lan5, was none", "~ shop/web in : not open: no zone named lan6, was none",
			"~ shop/web in : not open: none, was no zone named lan3", "~ shop/web in : not open: none, was no zone named lan4",
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// The daemon's side has been JSON.
func TestWhatTheDaemonSaysIsTheSame(t *testing.T) {
	text, err := json.Marshal(status.Status{Exposures: web().Exposures, Frontends: web().Frontends})
	if err != nil {
		t.Fatal(err)
	}
	var s status.Status
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if c := Between(Side{Exposures: s.Exposures, Frontends: s.Frontends}, web()); !c.None() {
		t.Errorf("%q", told(c))
	}
}

func TestChangesAreSorted(t *testing.T) {
	planned := Side{}
	for _, name := range []string{"c", "a", "b"} {
		for _, zone := range []string{"internet", "home"} {
			planned.Exposures = append(planned.Exposures, desired.Exposure{Name: name, Zone: zone, Port: 80, Open: true})
		}
	}
	planned.Exposures = append(planned.Exposures, desired.Exposure{Name: "z", Zone: "home", Port: 22, Open: true})
	var got []string
	for _, c := range Between(Side{}, planned).Opened {
		got = append(got, c.Zone+"/"+c.Name)
	}
	if want := []string{"home/z", "home/a", "home/b", "home/c", "internet/a", "internet/b", "internet/c"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
