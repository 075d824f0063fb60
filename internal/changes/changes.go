// Package changes compares what a configuration would open with what a running
// gatehouse has open. It is pure. What comes and goes by itself is left out:
// whether backends are up, since when, and what follows from it.
//
//	changes.Between(changes.Side{Exposures: running.Exposures, Frontends: running.Frontends}, planned)
package changes

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// Side is one of the two that are compared.
type Side struct {
	Exposures []desired.Exposure
	// Frontends tell what the connections of the exposures are held to. Of those of
	// one exposure, any does.
	Frontends []status.Frontend
}

// Planned is the side of a plan.
func Planned(state desired.State) Side {
	s := Side{Exposures: state.Exposures}
	for _, f := range state.Frontends {
		row := status.Frontend{Name: f.Name, Zone: f.Zone, Protocol: f.Protocol, DataPlane: f.DataPlane, Listen: f.Listen.String()}
		row.Hold(f)
		s.Frontends = append(s.Frontends, row)
	}
	return s
}

// Changes are what differs, each list sorted by zone, port and name.
type Changes struct {
	Opened  []Change `json:"opened"`
	Closed  []Change `json:"closed"`
	Changed []Change `json:"changed"` // open before and after, or closed before and after
	// Blocks are what differs beside that; see [Blocks].
	Blocks []Block `json:"blocks,omitempty"`
}

// None says that nothing would change.
func (c Changes) None() bool { return len(c.Opened)+len(c.Closed)+len(c.Changed)+len(c.Blocks) == 0 }

// Change is what would become of one port of a Service, or of one static
// frontend, in one zone.
type Change struct {
	Zone     string        `json:"zone,omitempty"` // empty: none
	Name     string        `json:"name"`
	Service  string        `json:"service,omitempty"` // namespace/name
	Protocol edge.Protocol `json:"protocol"`
	Port     uint16        `json:"port"`
	Listens  []string      `json:"listens,omitempty"` // of what is opened or closed
	Backends []string      `json:"backends,omitempty"`
	Reason   string        `json:"reason,omitempty"` // why it is closed
	Remedy   string        `json:"remedy,omitempty"`
	// Differences are those of what is changed, and of what was closed for another
	// reason.
	Differences []Difference `json:"differences,omitempty"`
	Why         string       `json:"why,omitempty"` // "service/shop/web", "gatehouse.yaml:14"
}

// Difference is one thing that is not as it was; empty: it is none.
type Difference struct {
	What string `json:"what"` // "backend 10.0.0.7:80", "data plane", "idle timeout"
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

func (d Difference) String() string {
	switch {
	case d.From == "":
		return d.What + ": " + d.To + ", was none"
	case d.To == "":
		return d.What + ": none, was " + d.From
	}
	return d.What + ": " + d.To + ", was " + d.From
}

// key tells an exposure from others.
type key struct {
	zone, name string
	protocol   edge.Protocol
	// reason tells rows apart that are in no zone since there are none of the names
	// that the Service asks for.
	reason string
}

func keyOf(e desired.Exposure) key {
	k := key{zone: e.Zone, name: e.Name, protocol: e.Protocol}
	if e.Code == "UnknownZone" {
		k.reason = e.Reason
	}
	return k
}

// Between tells what would change from what there is to what is planned.
func Between(have, planned Side) Changes {
	c := Changes{Opened: []Change{}, Closed: []Change{}, Changed: []Change{}}
	rows := func(all []desired.Exposure) map[key]desired.Exposure {
		by := make(map[key]desired.Exposure, len(all))
		for _, e := range all {
			by[keyOf(e)] = e
		}
		return by
	}
	terms := func(all []status.Frontend) map[key]status.Frontend {
		by := make(map[key]status.Frontend, len(all))
		for _, f := range all {
			if !f.Draining {
				by[key{zone: f.Zone, name: f.Name, protocol: f.Protocol}] = f
			}
		}
		return by
	}
	before, after := rows(have.Exposures), rows(planned.Exposures)
	termsBefore, termsAfter := terms(have.Frontends), terms(planned.Frontends)
	for k, now := range after {
		was, there := before[k]
		switch {
		case now.Open && !was.Open:
			c.Opened = append(c.Opened, opened(now))
		case now.Open:
			d := differences(was, now)
			if f, ok := termsBefore[k]; ok { // otherwise it could not be opened
				d = append(d, termsDiffer(f, termsAfter[k])...)
			}
			if len(d) > 0 {
				change := changeOf(now)
				change.Differences = d
				c.Changed = append(c.Changed, change)
			}
		case was.Open:
			closed := opened(was)
			closed.Reason, closed.Remedy, closed.Why = now.Reason, now.Remedy, now.Why
			c.Closed = append(c.Closed, closed)
		case !there || was.Reason != now.Reason:
			change := changeOf(now)
			change.Reason, change.Remedy = now.Reason, now.Remedy
			change.Differences = []Difference{{"not open", was.Reason, now.Reason}}
			c.Changed = append(c.Changed, change)
		}
	}
	for k, was := range before {
		if _, there := after[k]; there {
			continue
		}
		if was.Open {
			closed := opened(was)
			closed.Reason = "nothing asks for it any more"
			c.Closed = append(c.Closed, closed)
			continue
		}
		change := changeOf(was)
		change.Differences = []Difference{{What: "not open", From: was.Reason}}
		c.Changed = append(c.Changed, change)
	}
	for _, list := range [][]Change{c.Opened, c.Closed, c.Changed} {
		slices.SortFunc(list, func(a, b Change) int {
			return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol),
				slices.CompareFunc(a.Differences, b.Differences, func(a, b Difference) int { return cmp.Compare(a.String(), b.String()) }))
		})
	}
	return c
}

func changeOf(e desired.Exposure) Change {
	return Change{Zone: e.Zone, Name: e.Name, Service: e.Service, Protocol: e.Protocol, Port: e.Port, Why: e.Why}
}

func opened(e desired.Exposure) Change {
	c := changeOf(e)
	c.Listens = texts(e.Listens)
	for _, b := range e.Backends {
		c.Backends = append(c.Backends, nameOf(b))
	}
	return c
}

// differences are those of two rows that are open.
func differences(was, now desired.Exposure) []Difference {
	var all []Difference
	differ := func(what, from, to string) {
		if from != to {
			all = append(all, Difference{what, from, to})
		}
	}
	differ("listens", join(texts(was.Listens)), join(texts(now.Listens)))
	differ("reached at", join(texts(was.Addresses)), join(texts(now.Addresses)))
	differ("server names", join(was.Hostnames), join(now.Hostnames))
	differ("source ranges", sources(was.Sources), sources(now.Sources))
	differ("target", string(was.Target), string(now.Target))
	differ("data plane", string(was.DataPlane), string(now.DataPlane))
	all = append(all, backendsDiffer(was.Backends, now.Backends)...)
	differ("the backends see", was.Client, now.Client)
	return all
}

// backendsDiffer compares them with what they would get if all were up.
func backendsDiffer(was, now []edge.Backend) []Difference {
	var all []Difference
	before, after := byAddr(was), byAddr(now)
	for _, b := range now {
		if _, there := before[b.Addr]; !there {
			all = append(all, Difference{What: "backend " + nameOf(b), To: after[b.Addr].String()})
		}
	}
	for _, b := range was {
		to, there := after[b.Addr]
		from := before[b.Addr]
		switch {
		case !there:
			all = append(all, Difference{What: "backend " + nameOf(b), From: from.String()})
		case from.weight != to.weight || from.share != to.share:
			all = append(all, Difference{"backend " + nameOf(b), from.String(), to.String()})
		}
		if there && from.pods != to.pods {
			all = append(all, Difference{"pods behind " + nameOf(b), from.pods, to.pods})
		}
	}
	return all
}

// part is what a backend gets.
type part struct {
	weight int
	share  string // of new connections, if all are up
	pods   string
}

func (p part) String() string { return fmt.Sprintf("weight %d, share %s", p.weight, p.share) }

func byAddr(backends []edge.Backend) map[netip.AddrPort]part {
	sum := 0
	for _, b := range backends {
		sum += b.Weight
	}
	by := make(map[netip.AddrPort]part, len(backends))
	for _, b := range backends {
		pods := slices.Sorted(slices.Values(b.Pods))
		by[b.Addr] = part{b.Weight, fmt.Sprintf("%.1f%%", 100*float64(b.Weight)/float64(max(1, sum))), join(pods)}
	}
	return by
}

// termsDiffer compares what connections are held to.
func termsDiffer(was, now status.Frontend) []Difference {
	var all []Difference
	for _, t := range []struct {
		what string
		of   func(status.Frontend) string
	}{
		{"balance", func(f status.Frontend) string { return string(cmp.Or(f.Balance, edge.BalanceRandom)) }},
		{"affinity timeout", func(f status.Frontend) string { return duration(f.AffinityTimeout) }},
		{"health check", func(f status.Frontend) string { return f.Health }},
		{"when all are down", func(f status.Frontend) string { return cmp.Or(f.WhenAllDown, "try") }},
		{"connections of a backend that is down", func(f status.Frontend) string { return cmp.Or(f.OnDown, "keep") }},
		{"idle timeout", func(f status.Frontend) string { return duration(f.IdleTimeout) }},
		{"drain timeout", func(f status.Frontend) string { return duration(f.DrainTimeout) }},
		{"connections at most", func(f status.Frontend) string { return number(f.MaxConnections) }},
		{"connections of a client at most", func(f status.Frontend) string { return number(f.MaxConnectionsPerClient) }},
		{"new connections of a client at most", func(f status.Frontend) string { return rate(f.MaxRatePerClient) }},
		{"ban time", func(f status.Frontend) string { return duration(f.BanTime) }},
		{"PROXY protocol is accepted from", func(f status.Frontend) string { return join(texts(f.AcceptProxyProtocol)) }},
		{"PROXY protocol is sent", func(f status.Frontend) string { return string(f.SendProxyProtocol) }},
		{"transparent", func(f status.Frontend) string { return strconv.FormatBool(f.Transparent) }},
	} {
		if from, to := t.of(was), t.of(now); from != to {
			all = append(all, Difference{t.what, from, to})
		}
	}
	return all
}

func nameOf(b edge.Backend) string {
	if b.Node == "" {
		return b.Addr.String()
	}
	return b.Addr.String() + " " + b.Node
}

// sources are in words, as nobody and everybody are easily confused.
func sources(ranges []netip.Prefix) string {
	if len(ranges) == 0 {
		return "all"
	}
	return join(texts(ranges))
}

func texts[T fmt.Stringer](items []T) []string {
	var all []string
	for _, i := range items {
		all = append(all, i.String())
	}
	return all
}

func join(items []string) string { return strings.Join(items, " ") }

func duration(d status.Duration) string {
	if time.Duration(d) == 0 {
		return ""
	}
	return d.String()
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func rate(r status.Rate) string {
	if r.Connections == 0 {
		return ""
	}
	return r.String()
}
