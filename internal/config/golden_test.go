package config

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

var update = flag.Bool("update", false, "rewrite golden files")

// A stanza is one case of a file in testdata/problems: a title, files, and the
// problems they have.
//
//	=== title
//	content of a.yaml
//	+++ b.yaml
//	content of b.yaml
//	---
//	a.yaml:1:1: the first problem
type stanza struct {
	title string
	files []File
	want  string
}

const firstFile = "a.yaml"

func readStanzas(t *testing.T, path string) []stanza {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var stanzas []stanza
	for text := range strings.SplitSeq(string(data), "=== ") {
		if text == "" {
			continue
		}
		title, rest, _ := strings.Cut(text, "\n")
		// The last one: "---" alone also starts a YAML document.
		input, want := rest, ""
		if i := strings.LastIndex("\n"+rest, "\n---\n"); i >= 0 {
			input, want = rest[:i], rest[i+len("---\n"):]
		}
		s := stanza{title: title, want: want}
		name := firstFile
		for {
			content, next, more := strings.Cut(input, "+++ ")
			s.files = append(s.files, File{Name: name, Data: []byte(content)})
			if !more {
				break
			}
			name, input, _ = strings.Cut(next, "\n")
		}
		stanzas = append(stanzas, s)
	}
	return stanzas
}

func writeStanzas(t *testing.T, path string, stanzas []stanza) {
	t.Helper()
	var b strings.Builder
	for _, s := range stanzas {
		b.WriteString("=== " + s.title + "\n")
		for i, f := range s.files {
			if i > 0 {
				b.WriteString("+++ " + f.Name + "\n")
			}
			b.Write(f.Data)
		}
		b.WriteString("---\n" + s.want)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func printProblems(problems []edge.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// TestEveryProblemSaysWhereAndWhatWouldBeRight holds the exact text of
// problems, as operators see it.
func TestEveryProblemSaysWhereAndWhatWouldBeRight(t *testing.T) {
	paths, err := filepath.Glob("testdata/problems/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		stanzas := readStanzas(t, path)
		for i, s := range stanzas {
			t.Run(strings.TrimSuffix(filepath.Base(path), ".txt")+"/"+s.title, func(t *testing.T) {
				cfg, problems := Parse(s.files)
				if len(problems) == 0 {
					t.Fatal("accepted")
				}
				if cfg != nil {
					t.Error("both a Config and problems")
				}
				got := printProblems(problems)
				if got != s.want && !*update {
					t.Errorf("got\n%swant\n%s", got, s.want)
				}
				stanzas[i].want = got
			})
		}
		if *update {
			writeStanzas(t, path, stanzas)
		}
	}
}

// TestGoodFilesMeanWhatTheySay compares what each file in testdata/good is
// parsed to.
func TestGoodFilesMeanWhatTheySay(t *testing.T) {
	paths, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range append(paths, "reference.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			cfg, problems := Parse([]File{{Name: filepath.Base(path), Data: data}})
			if cfg == nil {
				t.Fatalf("refused:\n%s", printProblems(problems))
			}
			golden := filepath.Join("testdata/good", strings.TrimSuffix(filepath.Base(path), ".yaml")+".golden")
			got := dump(cfg)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// dump prints all of a Config, a field to a line.
func dump(c *Config) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	at := func(p edge.Pos) string { return fmt.Sprintf("%s:%d", p, p.Col) }
	terms := func(t edge.Terms) {
		line("  terms: connect %s, idle %s, drain %s, at most %d, %d per client", t.ConnectTimeout, t.IdleTimeout, t.DrainTimeout, t.MaxConnections, t.MaxConnectionsPerClient)
		line("  rate: %s, ban %s", t.MaxRatePerClient, t.BanTime)
		line("  balance: %s, affinity %s", t.Balance, t.AffinityTimeout)
		line("  to backends: PROXY protocol %s, transparent %t", t.SendProxyProtocol, t.Transparent)
		line("  refuse when all down: %t, close when down: %t, masquerade: %t", t.RefuseWhenDown, t.CloseWhenDown, t.Masquerade)
	}
	health := func(h edge.HealthCheck) {
		line("  health: %s, every %s, timeout %s, rise %d, fall %d", h.Type, h.Interval, h.Timeout, h.Rise, h.Fall)
		if rest := (edge.HealthCheck{Port: h.Port, Path: h.Path, Host: h.Host, StatusMin: h.StatusMin, StatusMax: h.StatusMax, Send: h.Send, Expect: h.Expect}); rest != (edge.HealthCheck{}) {
			line("    port %d, path %q, host %q, status %d-%d, send %q, expect %q", h.Port, h.Path, h.Host, h.StatusMin, h.StatusMax, h.Send, h.Expect)
		}
	}
	for _, z := range c.Zones {
		line("zone %s: %q (%s)", z.Name, z.Interfaces, at(z.Pos))
	}
	for _, l := range c.Links {
		line("link %s: mac %q, mtu %d, metric %d, addresses %s, accept RA %t, forwarding %t (%s)", l.Name, l.MAC, l.MTU, l.Metric, l.Addresses, l.AcceptRA, l.Forwarding, at(l.Pos))
		switch {
		case l.Macvlan != nil:
			line("  macvlan: %+v", *l.Macvlan)
		case l.VLAN != nil:
			line("  vlan: %+v", *l.VLAN)
		case l.Bridge != nil:
			line("  bridge: %+v", *l.Bridge)
		}
		if l.DHCP != nil {
			line("  dhcp: %+v", *l.DHCP)
		}
		for _, r := range l.Routes {
			line("  route: %s via %s metric %d (%s)", r.To, r.Via, r.Metric, at(r.Pos))
		}
	}
	who := func(w Who) string {
		return fmt.Sprintf("namespaces %s, with labels %q, labels %q", allOr(w.Namespaces == nil, w.Namespaces), w.NamespaceLabels, w.Labels)
	}
	for _, p := range c.Pools {
		line("pool %s in zone %s: %s, auto %t (%s)", p.Name, p.Zone, p.Addresses, p.Auto, at(p.Pos))
		line("  %s", who(p.Who))
	}
	for _, f := range c.Frontends {
		line("frontend %q (%s)", f.Name, at(f.Pos))
		if l := f.Listen; l != nil {
			line("  listen: device %q host %q port %d (%s)", l.Device, l.Host, l.Port, at(l.Pos))
		} else {
			line("  zones: %q", f.Zones)
			line("  port: %d", f.Port)
		}
		line("  protocol: %s, data plane: %s", f.Protocol, f.DataPlane)
		if f.Hostnames != nil {
			line("  hostnames: %q", f.Hostnames)
		}
		line("  sources: %s", allOr(f.SourceRanges == nil, f.SourceRanges))
		line("  proxies: %s", f.AcceptProxyProtocol)
		health(f.Health)
		terms(f.Terms)
		for _, be := range f.Backends {
			line("  backend: %q port %d weight %d (%s)", be.Address.Host, be.Address.Port, be.Weight, at(be.Pos))
		}
	}
	if k := c.Kubernetes; k != nil {
		line("kubernetes (%s)", at(k.Pos))
		line("  kubeconfig: %q", k.Kubeconfig)
		line("  class: %q, classless %t, follow addresses %t", k.LoadBalancerClass, k.Classless, k.FollowAddresses)
		line("  selector: %q", k.Selector)
		line("  default zones: %q", k.DefaultZones)
		for _, zone := range slices.Sorted(maps.Keys(k.Allow)) {
			line("  allow in %s: %s (%s)", zone, who(k.Allow[zone].Who), at(k.Allow[zone].Pos))
		}
		line("  target: %s, data plane: %s, pod routes: %t", k.Target, k.DataPlane, k.PodRoutes)
		for _, s := range k.OfRelay {
			line("  of the relay: %s (%s)", s.Key, at(s.Pos))
		}
		terms(k.Terms)
		line("  proxies: %s", k.AcceptProxyProtocol)
		health(k.Health)
		line("  healthz: %d", k.HealthzPort)
		line("  ignore exclude label: %t, finalizer: %t, hold losses: %s", k.IgnoreExcludeLabel, k.Finalizer, k.HoldLosses)
		if a := k.APIServer; a != nil {
			line("  API server: zones %q, port %d (%s)", a.Zones, a.Port, at(a.Pos))
		}
	}
	for _, d := range c.DHCP {
		line("dhcp in %s: %s for %s, probe %t (%s)", d.Zone, d.Pools, d.LeaseTime, d.Probe, at(d.Pos))
		for _, r := range d.Reservations {
			line("  %s is for mac %q, node %q, called %q (%s)", r.Address, r.MAC, r.Node, r.Hostname, at(r.Pos))
		}
		for _, r := range d.Relayed {
			line("  relayed %s by %s: %s (%s)", r.Network, r.Router, r.Pools, at(r.Pos))
		}
		o := d.Options
		line("  routers %s, dns %s, ntp %s, domain %q, search %q", allOr(o.Routers == nil, o.Routers), allOr(o.DNS == nil, o.DNS), o.NTP, o.Domain, o.Search)
		line("  mtu %d, next server %s, boot file %q", o.MTU, o.NextServer, o.BootFile)
		if r := d.RouterAdvertisements; r != nil {
			line("  advertised: %s for %s, dns %s, search %q, ntp %s, mtu %d (%s)", r.Prefixes, r.Lifetime, allOr(r.DNS == nil, r.DNS), r.Search, r.NTP, r.MTU, at(r.Pos))
		}
	}
	if f := c.Firewall; f != nil {
		line("firewall (%s)", at(f.Pos))
		for _, p := range f.Policies {
			line("  from %q to %q: allow %t, services %s, sources %s, destinations %s, masquerade %t (%s)", p.From, p.To, p.Allow,
				allOr(p.Services == nil, p.Services), allOr(p.Sources == nil, p.Sources), allOr(p.Destinations == nil, p.Destinations), p.Masquerade, at(p.Pos))
		}
	}
	if d := c.DNS; d != nil {
		line("dns in %s: %s, Services in %s, ttl %s, cache %d, rate %d (%s)", d.Zones, d.Domain, d.ServiceDomain, d.TTL, d.CacheSize, d.RatePerClient, at(d.Pos))
		for _, r := range d.Records {
			line("  %s: addresses %s, alias of %q, texts %q, in %s (%s)", r.Name, r.Addresses, r.CNAME, r.TXT, allOr(r.Zones == nil, r.Zones), at(r.Pos))
			if r.SRV != nil {
				line("    service %+v", *r.SRV)
			}
		}
		line("  upstreams %s, rebinding %q", allOr(d.Upstreams == nil, d.Upstreams), d.Rebinding)
		for _, f := range d.Forwards {
			line("  forward %s: %s (%s)", f.Domain, f.Upstreams, at(f.Pos))
		}
		for _, class := range slices.Sorted(maps.Keys(d.IngressClasses)) {
			line("  class %s: %s", class, d.IngressClasses[class])
		}
		for _, domain := range slices.Sorted(maps.Keys(d.Allow)) {
			line("  allow in %s: %s (%s)", domain, who(d.Allow[domain].Who), at(d.Allow[domain].Pos))
		}
	}
	if c.StateDir != "" {
		line("state: %q", c.StateDir)
	}
	if c.Admin.Pos != (edge.Pos{}) {
		line("admin: %q (%s)", c.Admin.Listen, at(c.Admin.Pos))
		line("  socket %q, zones %q, port %d, token %q", c.Admin.Socket, c.Admin.Zones, c.Admin.Port, c.Admin.TokenFile)
	}
	if c.StopTimeout != DefaultStopTimeout {
		line("stop timeout: %s", c.StopTimeout)
	}
	return b.String()
}

func allOr(all bool, v any) string {
	if all {
		return "all"
	}
	return fmt.Sprint(v)
}
