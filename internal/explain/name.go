package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// frontendNames are those of the frontends that are not of Services.
func (e *engine) frontendNames() []string {
	var names []string
	for i := range e.Config.Frontends {
		names = append(names, e.Config.Frontends[i].Name)
	}
	if k := e.Config.Kubernetes; k != nil && k.APIServer != nil {
		names = append(names, apiServerName)
	}
	return names
}

// hostnames are all TLS server names that somebody has, or wants.
func (e *engine) hostnames() []string {
	var names []string
	for i := range e.State.Exposures {
		names = append(names, e.State.Exposures[i].Hostnames...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// toHost explains NAME:PORT: a TLS server name, or else a machine's.
func (e *engine) toHost(t target, origins []origin) ([]Way, error) {
	if ways := e.toServerName(t.host, t.port, t.over(), origins); len(ways) > 0 {
		return ways, nil
	}
	if addr, ok := e.Hosts[t.host]; ok {
		return e.toAddress(origins, netip.AddrPortFrom(addr.Unmap(), t.port), t.over(), t.host)
	}
	if t.host == "localhost" {
		return e.toAddress(origins, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.port), t.over(), "")
	}
	if slices.Contains(e.frontendNames(), t.host) {
		if err := e.hasPort(t); err != nil {
			return nil, err
		}
		return e.toFrontend(t.host, origins)
	}
	for i := range e.State.Exposures {
		if row := &e.State.Exposures[i]; len(row.Hostnames) > 0 && choose([]*edge.Frontend{{Hostnames: row.Hostnames}}, t.host) != nil {
			return nil, fmt.Errorf("%s is a TLS server name at %s port %d, and not at %s port %d; ask for %s:%d", t.host, row.Protocol, row.Port, t.over(), t.port, t.host, row.Port)
		}
	}
	return nil, e.unknownName(t.host)
}

func (e *engine) unknownName(name string) error {
	hint := "ask for the address that it stands for"
	if have := slices.Concat(e.frontendNames(), e.hostnames()); len(have) > 0 {
		hint += "; " + config.Suggest(name, "frontends and TLS server names here:", have)
	}
	return fmt.Errorf("nobody takes the name %s here, and what it stands for is not known; %s", name, hint)
}

// toName explains what is only a name: a frontend's, or a TLS server's at
// whichever port.
func (e *engine) toName(t target, origins []origin) ([]Way, error) {
	if slices.Contains(e.frontendNames(), t.name) {
		return e.toFrontend(t.name, origins)
	}
	host := strings.TrimSuffix(strings.ToLower(t.name), ".")
	if ways := e.toServerName(exampleOf(host), 0, "", origins); len(ways) > 0 {
		return ways, nil
	}
	return nil, e.unknownName(t.name)
}

// place is a door that is shared by name, as one looks for it.
type place struct {
	port     uint16
	protocol edge.Protocol
}

// toServerName explains the ways to whoever takes a TLS server name; none if
// nobody does, or wants to. port 0 is whichever.
func (e *engine) toServerName(name string, port uint16, protocol edge.Protocol, origins []origin) []Way {
	var places []place
	var wanted []*desired.Exposure
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		at := place{row.Port, row.Protocol}
		if len(row.Hostnames) == 0 || port != 0 && at != (place{port, protocol}) || choose([]*edge.Frontend{{Hostnames: row.Hostnames}}, name) == nil {
			continue
		}
		if wanted = append(wanted, row); !slices.Contains(places, at) {
			places = append(places, at)
		}
	}
	// Who has the name by the longest pattern comes first, as at the door.
	slices.SortStableFunc(wanted, func(x, y *desired.Exposure) int {
		if x.Open != y.Open {
			return map[bool]int{true: -1, false: 1}[x.Open]
		}
		return closeness(y.Hostnames, name) - closeness(x.Hostnames, name)
	})
	var ways []Way
	for i := range origins {
		for _, at := range places {
			ways = append(ways, e.toNameAt(&origins[i], name, at, wanted))
		}
	}
	return ways
}

// toNameAt explains one way to a TLS server name, at one port.
func (e *engine) toNameAt(o *origin, name string, at place, wanted []*desired.Exposure) Way {
	c := newChain(o, fmt.Sprintf("%s:%d/%s", name, at.port, at.protocol))
	if c.over {
		return c.done()
	}
	var there []*desired.Exposure
	for _, row := range wanted {
		isHere := row.Zone == o.zoneName() || o.local || row.Zone == "" && len(e.packetsTo(o, row)) > 0
		if isHere && row.Port == at.port && row.Protocol == at.protocol {
			there = append(there, row)
		}
	}
	if len(there) == 0 {
		row := wanted[slices.IndexFunc(wanted, func(row *desired.Exposure) bool { return row.Port == at.port && row.Protocol == at.protocol })]
		zones := strings.Join(e.zonesOf(row.Name), ", ")
		switch {
		case !row.Open && zones == "":
			c.stop(checkOf(row.Code), sourceOf(e, row), e.remedyFor(row), "%s, which wants the name, is closed: %s", row.Name, row.Reason)
		default:
			c.stop("zone", row.Why, e.openHere(row, o.zoneName()), "%s, which has the name, is open in zone %s, and not %s", row.Name, zones, hereText(o.zoneName()))
		}
		return c.done()
	}
	e.toRow(c, o, there[0])
	return c.done()
}

// closeness is how much of a name a pattern of hostnames has: 0 is none.
func closeness(hostnames []string, name string) int {
	best := 0
	for _, h := range hostnames {
		suffix, wild := strings.CutPrefix(h, "*")
		switch {
		case h == name:
			best = max(best, 1000)
		case h == "*":
			best = max(best, 1)
		case wild && strings.HasSuffix(name, suffix):
			best = max(best, 1+len(suffix))
		}
	}
	return best
}

// hasPort refuses FRONTEND:PORT where the frontend has another one.
func (e *engine) hasPort(t target) error {
	var have []string
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		if row.Name != t.host || row.Service != "" {
			continue
		}
		if row.Port == t.port && (t.protocol == "" || row.Protocol == t.protocol) {
			return nil
		}
		have = append(have, fmt.Sprintf("%d/%s", row.Port, strings.ToLower(string(row.Protocol))))
	}
	if len(have) == 0 { // nothing is known of it yet
		return nil
	}
	return fmt.Errorf("frontend %s has no port %s; it has %s", t.host, strings.TrimPrefix(t.String(), t.host+":"), listed(compact(have)))
}

// toFrontend explains the ways to a static frontend.
func (e *engine) toFrontend(name string, origins []origin) ([]Way, error) {
	var rows []*desired.Exposure
	loopback := false
	for i := range e.State.Exposures {
		if row := &e.State.Exposures[i]; row.Name == name && row.Service == "" {
			rows = append(rows, row)
			loopback = loopback || slices.ContainsFunc(row.Listens, func(l edge.Listen) bool { return l.Addr.IsLoopback() || l.Device == "lo" })
		}
	}
	if len(rows) == 0 {
		if e.Cluster == nil {
			return nil, fmt.Errorf("%s is decided once the cluster is known, which it is not yet; ask again in a moment", name)
		}
		return nil, e.unknownName(name)
	}
	if loopback && !slices.ContainsFunc(origins, func(o origin) bool { return o.client.IsValid() || o.local }) {
		origins = append([]origin{e.itself(netip.Addr{})}, origins...)
	}
	var ways []Way
	for i := range origins {
		o := &origins[i]
		c := newChain(o, name)
		here := slices.DeleteFunc(slices.Clone(rows), func(row *desired.Exposure) bool {
			return !o.local && row.Zone != o.zoneName() && (row.Zone != "" || row.Open && len(e.packetsTo(o, row)) == 0)
		})
		here = slices.DeleteFunc(here, func(row *desired.Exposure) bool { return row.Zone == "" && row.Open && len(e.packetsTo(o, row)) == 0 })
		switch zones := e.zonesOf(name); {
		case c.over:
		case len(here) > 0:
			e.toRows(c, o, here)
		case len(zones) == 0 && rows[0].Open:
			c.stop("zone", rows[0].Why, "ask from where it listens, or change its listen", "it listens at %s, which is not reached from there", listensText(rows[0].Listens))
		case len(zones) == 0:
			c.stop(checkOf(rows[0].Code), rows[0].Why, e.remedyFor(rows[0]), "%s", rows[0].Reason)
		default:
			c.stop("zone", rows[0].Why, e.openHere(rows[0], o.zoneName()), "it is open in zone %s, and not %s", strings.Join(zones, ", "), hereText(o.zoneName()))
		}
		ways = append(ways, c.done())
	}
	return ways, nil
}
