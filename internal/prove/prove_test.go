package prove

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// Where random rules and packets meet: few values, so that they often do, and
// those beside them.
var (
	randomZones    = []string{"home", "internet", "cluster"}
	randomDevices  = map[string][]string{"home": {"eth1", "eth3"}, "internet": {"veth0"}, "cluster": {"eth0"}}
	randomNetworks = []string{"10.0.0.0/24", "10.0.0.10/32", "10.0.0.0/8", "0.0.0.0/0", "10.0.0.128/25", "fd00::/64", "fd00::10/128", "::/0", "192.0.2.0/24", "255.255.255.255/32"}
	randomAddrs    = []string{"10.0.0.10", "10.0.0.9", "10.0.0.11", "10.0.0.200", "10.1.2.3", "192.0.2.7", "0.0.0.0", "255.255.255.255", "fd00::10", "fd00::11", "2001:db8::1", "10.0.0.70", "10.0.0.71"}
	randomPorts    = []uint16{0, 1, 22, 23, 80, 443, 6443, 65534, 65535}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func maybe[T any](r *rand.Rand, n int, one func() T) (all []T) {
	for range r.IntN(n + 1) {
		all = append(all, one())
	}
	return all
}

// randomSite makes rules of all kinds.
func randomSite(r *rand.Rand) (*Site, firewall.Inputs) {
	c := &config.Config{Firewall: &config.Firewall{}}
	for _, name := range randomZones {
		c.Zones = append(c.Zones, edge.Zone{Name: name, Interfaces: randomDevices[name]})
	}
	prefix := func() netip.Prefix { return netip.MustParsePrefix(pick(r, randomNetworks)) }
	for i := range r.IntN(8) {
		c.Firewall.Policies = append(c.Firewall.Policies, config.Policy{
			From: pick(r, append([]string{""}, randomZones...)), To: pick(r, append([]string{"", config.Self, config.Self}, randomZones...)),
			Allow: r.IntN(3) > 0, Sources: maybe(r, 2, prefix), Destinations: maybe(r, 2, prefix),
			Services: maybe(r, 3, func() config.PortRange {
				p := config.PortRange{Protocol: pick(r, protocols[:4])}
				if p.Protocol != config.ICMP {
					p.First = pick(r, randomPorts)
					p.Last = max(p.First, pick(r, randomPorts))
				}
				return p
			}),
			Pos: edge.Pos{File: "f", Line: i + 1, Col: 1},
		})
	}
	in := firewall.Inputs{Config: c}
	var exposures []desired.Exposure
	for i := range r.IntN(6) {
		zone := pick(r, randomZones)
		f := edge.Frontend{
			Door:      edge.Door{Protocol: pick(r, protocols[:2]), Listen: edge.Listen{Device: pick(r, append([]string{""}, randomDevices[zone]...)), Port: pick(r, randomPorts[1:])}},
			DataPlane: pick(r, []edge.DataPlane{edge.DataPlaneProxy, edge.DataPlaneNAT}), SourceRanges: maybe(r, 2, prefix), Why: fmt.Sprintf("service/a/s%d", i), Zone: zone,
		}
		if r.IntN(2) == 0 {
			f.Listen.Addr = netip.MustParseAddr(pick(r, []string{"10.0.0.70", "10.0.0.71", "fd00::10"}))
		}
		in.Frontends = append(in.Frontends, f)
		exposures = append(exposures, desired.Exposure{Name: fmt.Sprintf("a/s%d:%d", i, f.Listen.Port), Service: fmt.Sprintf("a/s%d", i), Zone: zone, Protocol: f.Protocol, Port: f.Listen.Port, Open: true, Listens: []edge.Listen{f.Listen}, Why: f.Why})
	}
	in.Addresses = maybe(r, 1, func() netip.Addr { return netip.MustParseAddr("10.0.0.71") })
	return New(Inputs{Config: c, Rules: firewall.Compile(in), Exposures: exposures}), in
}

// randomPacket is the first of a connection, and the box that has it alone.
func randomPacket(r *rand.Rand) (p firewall.Packet, from, to string, b box) {
	from, to = pick(r, randomZones), pick(r, append([]string{config.Self, config.Self}, randomZones...))
	b = box{protocol: pick(r, protocols)}
	if b.protocol != config.ICMP && b.protocol != other {
		b.first = pick(r, randomPorts)
		b.last = b.first
	}
	src := netip.MustParseAddr(pick(r, randomAddrs))
	dst := netip.MustParseAddr(pick(r, randomAddrs))
	for src.Is4() != dst.Is4() {
		dst = netip.MustParseAddr(pick(r, randomAddrs))
	}
	b.src, b.dst = single(src), single(dst)
	p = packet(pick(r, randomDevices[from]), b)
	if to != config.Self {
		p.Out = pick(r, randomDevices[to])
	}
	return p, from, to, b
}

// passes is what the firewall does with a packet that is for this machine, or for
// another: the kernel rewrites what is for a door of its own.
func passes(rules *firewall.Ruleset, p firewall.Packet) bool {
	if rules.Verdict(p).Accept {
		return true
	}
	if p.Out != "" {
		return false
	}
	p.Asked = netip.AddrPortFrom(p.Dst, p.DstPort)
	return rules.Verdict(p).Accept
}

// What is said to pass is what Verdict lets pass, whatever the rules are.
func TestMatrixAgreesWithVerdict(t *testing.T) {
	accepted, dropped := 0, 0
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, _ := randomSite(r)
		for range 60 {
			p, from, to, b := randomPacket(r)
			_, said := overlaps([]box{b}, s.open(from, p.In, to, []box{b}))
			if want := passes(&s.Rules, p); said != want {
				t.Fatalf("seed %d: %s -> %s %s: said %v, and the rules say %v (%s)", seed, from, to, b, said, want, s.Rules.Verdict(p).Why)
			}
			if said {
				accepted++
			} else {
				dropped++
			}
		}
	}
	t.Logf("%d packets pass, %d do not", accepted, dropped)
	if accepted < 5000 || dropped < 10000 {
		t.Errorf("%d packets pass and %d do not: the test does not look right", accepted, dropped)
	}
}

// A statement about a zone holds if and only if it does of each packet that we
// try; one that is said to be broken names a packet for which it is.
func TestStatementsAgreeWithVerdict(t *testing.T) {
	count := map[string]int{}
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 2))
		s, _ := randomSite(r)
		for range 10 {
			st := Statement{From: pick(r, randomZones), Verb: pick(r, []Verb{Can, Cannot})}
			if r.IntN(2) == 0 {
				st.Sources = []netip.Prefix{netip.MustParsePrefix(pick(r, randomNetworks))}
			}
			target := Target{Self: r.IntN(2) == 0}
			if !target.Self {
				target.Zone = pick(r, randomZones)
			}
			if r.IntN(3) > 0 {
				port := pick(r, randomPorts)
				target.Services = []config.PortRange{{Protocol: pick(r, protocols[:2]), First: port, Last: port}}
			}
			st.Targets = []Target{target}
			because := s.because(st, st.From)
			count[fmt.Sprint(st.Verb, because == "")]++
			if because != "" {
				continue
			}
			for range 40 {
				p, from, to, b := randomPacket(r)
				parts, _, _ := s.parts(st, from, target)
				if from != st.From || len(parts) != 1 || parts[0].to != to || !within(b, parts[0].boxes) {
					continue
				}
				if got := passes(&s.Rules, p); got != (st.Verb == Can) {
					t.Fatalf("seed %d: %+v is said to hold, and for %s %s it is %v", seed, st, p.In, b, got)
				}
				count["tried"]++
			}
		}
	}
	t.Log(count)
	for _, k := range []string{"0 true", "0 false", "1 true", "1 false", "tried"} {
		if count[k] < 100 {
			t.Errorf("%s: %d: the test does not look right", k, count[k])
		}
	}
}

func within(b box, in []box) bool { return len(subtract([]box{b}, in)) == 0 }

// What is taken out of a box and what is left are the box, without a packet twice.
func TestBoxesAreParted(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	one := func() box {
		b := box{protocol: edge.TCP, first: pick(r, randomPorts)}
		b.last = max(b.first, pick(r, randomPorts))
		b.src, b.dst = spanOf(netip.MustParsePrefix(pick(r, randomNetworks[:5]))), spanOf(netip.MustParsePrefix(pick(r, randomNetworks[:5])))
		return b
	}
	for range 2000 {
		a, b := one(), one()
		pieces := a.without(b)
		for i, p := range pieces {
			if _, some := p.overlap(b); some || !within(p, []box{a}) {
				t.Fatalf("%s without %s: %s", a, b, p)
			}
			for _, q := range pieces[:i] {
				if _, some := p.overlap(q); some {
					t.Fatalf("%s without %s: %s and %s", a, b, p, q)
				}
			}
		}
		if o, any := a.overlap(b); any {
			pieces = append(pieces, o)
		}
		if !within(a, pieces) {
			t.Fatalf("%s without %s: something is lost in %v", a, b, pieces)
		}
	}
}

const site = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}, internet: {interfaces: [veth0]}, cluster: {interfaces: [eth0]}}
links:
  - {name: eth0, addresses: [10.0.0.1/24, "fd00:10::1/64"], routes: [{to: 10.2.0.0/16, via: 10.0.0.2}]}
  - {name: eth1, addresses: [10.11.12.32/24]}
firewall:
  policies:
    - {from: cluster, to: internet, ports: [25], allow: false}
    - {from: cluster, to: internet, allow: true, masquerade: true}
    - {from: home, to: cluster, ports: [6443], destinations: [10.0.0.10]}
    - {from: home, to: self, ports: [ssh, ping]}
    - {from: home, to: self, ports: [9090], sources: [10.11.12.7]}
dns: {zones: [home], domain: home.example}
`

func siteOf(t testing.TB) *Site {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(site)}})
	if c == nil {
		t.Fatal(problems)
	}
	door := func(name, zone, device string, port uint16, sources ...netip.Prefix) (edge.Frontend, desired.Exposure) {
		service, _, _ := strings.Cut(name, ":")
		l := edge.Listen{Device: device, Port: port}
		f := edge.Frontend{Door: edge.Door{Protocol: edge.TCP, Listen: l}, Name: name, Zone: zone, SourceRanges: sources, Why: "service/" + service}
		return f, desired.Exposure{Name: name, Service: service, Zone: zone, Protocol: edge.TCP, Port: port, Open: true, Listens: []edge.Listen{l}, Sources: sources, Why: f.Why}
	}
	web, webRow := door("shop/web:80", "home", "eth1", 80)
	public, publicRow := door("public/web:443", "internet", "veth0", 443)
	few, fewRow := door("shop/few:81", "home", "eth1", 81, netip.MustParsePrefix("10.11.12.0/28"))
	closed := desired.Exposure{Name: "shop/closed:82", Service: "shop/closed", Zone: "home", Protocol: edge.TCP, Port: 82, Reason: "the port is taken"}
	public.DataPlane = edge.DataPlaneNAT
	return New(Inputs{
		Config: c, Exposures: []desired.Exposure{webRow, publicRow, fewRow, closed},
		Rules: firewall.Compile(firewall.Inputs{Config: c, Frontends: []edge.Frontend{web, public, few}}),
	})
}

func TestStatements(t *testing.T) {
	s := siteOf(t)
	zones := []string{"home", "internet", "cluster"}
	for _, c := range []struct{ statement, because string }{ // empty: it holds
		{"home can reach 10.0.0.10:6443", ""},
		{"home can reach 10.0.0.10:6443/UDP", `6443/UDP to 10.0.0.10 from zone home to zone cluster is dropped: nothing allows it`},
		{"home can reach 10.0.0.10", "0-6442/TCP to 10.0.0.10 from zone home to zone cluster is dropped: nothing allows it"},
		{"home cannot reach 10.0.0.11", ""},
		{"home cannot reach 10.0.0.10:6443", `6443/TCP to 10.0.0.10 from zone home to zone cluster may pass: home -> cluster: 6443/TCP to 10.0.0.10 (gatehouse.yaml:10)`},
		{"home cannot reach 10.0.0.0/24", "6443/TCP to 10.0.0.10 from zone home to zone cluster may pass"},
		{"internet cannot reach 10.0.0.0/24", "443/TCP to 10.0.0.1 from zone internet to this machine may pass: service/public/web"},
		{"internet cannot reach 10.0.0.0/24:6443", ""},
		{"internet cannot reach cluster", ""},
		{"home can reach self:ssh, self:ping, self:dns", ""},
		{"home can reach self:9090", "9090/TCP from 0.0.0.0-10.11.12.6 from zone home to this machine is dropped: nothing allows it"},
		{"home from 10.11.12.7 can reach self:9090", ""},
		{"home from 10.11.12.8 cannot reach self:9090", ""},
		{"home from 10.11.12.0/24 cannot reach self:9090", "from 10.11.12.7 from zone home to this machine may pass"},
		{"home can reach shop/web:80", ""},
		{"home can reach shop/web", ""},
		{"home can reach shop/web:81", "there is no Service or frontend shop/web:81"},
		{"home cannot reach shop/web", `shop/web:80 is open there: 80/TCP from zone home to this machine may pass, for service/shop/web`},
		{"internet cannot reach shop/web", ""},
		{"internet can reach shop/web", "shop/web is not open in zone internet"},
		{"home can reach shop/few", "shop/few:81 is open there only for clients from 10.11.12.0/28"},
		{"home from 10.11.12.3 can reach shop/few", ""},
		{"home from 10.11.13.0/24 cannot reach shop/few", ""},
		{"home can reach shop/closed", "shop/closed:82 is not open there: the port is taken"},
		{"home cannot reach shop/closed, shop/never", ""},
		{"internet can reach only public/web:443", ""},
		{"internet can reach only self:443", ""},
		{"internet can reach nothing", "443/TCP from zone internet to this machine may pass: service/public/web"},
		{"internet cannot reach anything", "443/TCP from zone internet to this machine may pass: service/public/web"},
		{"internet can reach only public/web:443, self:80", "80/TCP from zone internet to this machine is dropped: nothing allows it"},
		{"home can reach only self", "0-21/TCP from zone home to this machine is dropped: nothing allows it"},
		{"home can reach only shop/web, shop/few, self:ssh, self:ping, self:dns", "shop/few:81 is open there only for clients from 10.11.12.0/28"},
		{"home from 10.11.12.3 can reach only shop/web, shop/few, self:ssh, self:ping, self:dns, 10.0.0.10:6443", ""},
		{"home from 10.11.12.3 can reach only shop/web, shop/few, self:ssh, self:ping, self:dns", "6443/TCP from 10.11.12.3 to 10.0.0.10 from zone home to zone cluster may pass, too: home -> cluster: 6443/TCP to 10.0.0.10 (gatehouse.yaml:10)"},
		{"cluster can reach 203.0.113.10:443", ""},
		{"cluster can reach 203.0.113.10:25", "25/TCP to 203.0.113.10 from zone cluster to zone internet is dropped: cluster -> internet: 25/TCP (gatehouse.yaml:8)"},
		{"cluster can reach internet", "25/TCP from zone cluster to zone internet is dropped: cluster -> internet: 25/TCP (gatehouse.yaml:8)"},
		{"cluster cannot reach internet:25", ""},
		{"cluster cannot reach 10.11.12.101", ""},
		{"cluster cannot reach 10.0.0.10", "10.0.0.10 is in zone cluster itself: what goes there does not come by this machine"},
		{"home cannot reach 10.2.3.4", ""},
		{"any cannot reach 10.0.0.10:22", "from cluster, 10.0.0.10 is in zone cluster itself: what goes there does not come by this machine"},
		{"any cannot reach self:23", ""},
		{"any cannot reach self:ssh", "from home, 22/TCP from zone home to this machine may pass: home -> self: 22/TCP, ping (gatehouse.yaml:11)"},
	} {
		statements, problems := Parse("expect.txt", []byte(c.statement+"\n"), zones)
		if len(problems) > 0 || len(statements) != 1 {
			t.Errorf("%s: %v", c.statement, problems)
			continue
		}
		broken := s.Check(statements)
		switch {
		case c.because == "" && len(broken) > 0:
			t.Errorf("it should hold: %s", broken[0])
		case c.because != "" && (len(broken) == 0 || !strings.Contains(broken[0].Because, c.because)):
			t.Errorf("%s: got %v, want %q", c.statement, broken, c.because)
		}
	}
}

// What nobody reaches since it is not there is named: it may be misspelt.
func TestUnknown(t *testing.T) {
	s := siteOf(t)
	for statement, unknown := range map[string]bool{
		"home cannot reach shpo/web": true, "home cannot reach shop/web:81": true, "internet cannot reach shop/web:80": false, "internet cannot reach shop/web": false,
		"internet cannot reach self, nowhere:80": true, "internet cannot reach self, cluster, 10.0.0.10:6443": false, "home can reach shpo/web": false,
	} {
		statements, problems := Parse("expect.txt", []byte(statement+"\n"), []string{"home", "internet", "cluster"})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if got := s.Unknown(statements); unknown != (len(got) == 1) || unknown && !strings.HasPrefix(got[0], "expect.txt:1: there is no Service or frontend ") {
			t.Errorf("%s: %q", statement, got)
		}
	}
}

func TestMatrix(t *testing.T) {
	m := siteOf(t).Matrix()
	var got []string
	for _, c := range m.Cells {
		for _, p := range c.Passes {
			for _, q := range p.Passing {
				got = append(got, fmt.Sprintf("%s>%s %v from %s to %s by %s except %v", c.From, c.To, q.Ports, q.Source, q.Destination, p.Why, p.Except))
			}
		}
		if c.Everything {
			t.Errorf("%s reaches everything of %s", c.From, c.To)
		}
	}
	for _, want := range []string{
		"cluster>internet [0-24/TCP 26-65535/TCP all of UDP all of SCTP ping other protocols] from 0.0.0.0/0 to 0.0.0.0/0 by cluster -> internet: everything (gatehouse.yaml:9) except [cluster -> internet: 25/TCP (gatehouse.yaml:8)]",
		"home>cluster [6443/TCP] from 0.0.0.0/0 to 10.0.0.10 by home -> cluster: 6443/TCP to 10.0.0.10 (gatehouse.yaml:10) except []",
		"home>self [80/TCP] from ::/0 to ::/0 by service/shop/web except []",
		"home>self [53/UDP] from 0.0.0.0/0 to 0.0.0.0/0 by dns in zone home except []",
		"internet>self [443/TCP] from 0.0.0.0/0 to 0.0.0.0/0 by service/public/web except []",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("missing %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if want := "[{public/web:443 [{internet [@veth0:443] []}]} {shop/few:81 [{home [@eth1:81] [10.11.12.0/28]}]} {shop/web:80 [{home [@eth1:80] []}]}]"; fmt.Sprint(m.Exposures) != want {
		t.Errorf("exposures: got %v, want %s", m.Exposures, want)
	}
	if !slices.Contains(m.Always, "neighbour discovery") {
		t.Errorf("always: %v", m.Always)
	}
}
