package daemon

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// frontends puts what was decided, what listens and what was counted side by
// side. Those that were removed and have connections left come last.
func frontends(state desired.State, errs map[edge.Door]string, stats []relay.Stats, moved moved) []status.Frontend {
	stats = merged(stats)
	counted := countersOf(stats)
	exposures := make(map[exposureKey]desired.Exposure, len(state.Exposures))
	for _, e := range state.Exposures {
		exposures[exposureKey{e.Protocol, e.Zone, e.Name}] = e
	}
	rows := make([]status.Frontend, 0, len(state.Frontends))
	for _, f := range state.Frontends {
		e := exposures[exposureKey{f.Protocol, f.Zone, f.Name}]
		describe := func(row *status.Frontend) {
			row.Zone, row.Sources, row.Error = f.Zone, f.SourceRanges, errs[f.Door]
			row.Hold(f)
			row.Client, row.ClientSeen, row.ClientRemedy = e.Client, e.ClientSeen, e.ClientRemedy
		}
		if f.DataPlane == edge.DataPlaneNAT {
			row := moved.frontend(f)
			describe(&row)
			rows = append(rows, row)
			continue
		}
		s := counted.of(f)
		row := frontend(f.Name, f.Door, s)
		describe(&row)
		perBackend := map[netip.AddrPort]relay.BackendStats{}
		for _, b := range s.Backends {
			perBackend[b.Addr] = b
		}
		for _, b := range f.Backends {
			s := perBackend[b.Addr]
			var drain status.Drain
			if s.Draining && s.Active > 0 { // its weight is 0 now
				drain = status.DrainFrom(s.DrainingSince, f.DrainTimeout)
			}
			row.Backends = append(row.Backends, status.Backend{
				Addr: b.Addr.String(), Node: b.Node, Pods: b.Pods, Target: b.Target, State: b.State, Error: b.Error, Since: b.Since,
				Unprobed: !b.Probe.IsValid(), Weight: b.Weight, Share: b.Share,
				Drain: drain, Total: s.Connected, Active: s.Active, Failures: sum(s.Failures),
			})
			delete(perBackend, b.Addr)
		}
		for _, b := range s.Backends {
			if _, left := perBackend[b.Addr]; left && b.Active > 0 {
				row.Backends = append(row.Backends, draining(b, status.DrainFrom(b.DrainingSince, f.DrainTimeout)))
			}
		}
		rows = append(rows, row)
	}
	for i, s := range stats {
		if !s.Draining || s.Names || counted.found[i] {
			continue
		}
		row := frontend(s.Name, s.Door, s)
		row.Zone, row.Drain = s.Zone, status.DrainFrom(s.DrainingSince, s.DrainTimeout)
		for _, b := range s.Backends {
			if b.Active > 0 {
				// It may have left before the door did.
				row.Backends = append(row.Backends, draining(b, status.DrainFrom(earlier(b.DrainingSince, s.DrainingSince), s.DrainTimeout)))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// counts are the frontends with what history needs of them, as they were counted
// a moment ago. It asks the kernel for nothing, which is done some times a second
// anyway, to see who does not answer; and lets decisions go on meanwhile.
func (d *Daemon) counts() []status.Frontend {
	moved := d.kernel.glance()
	d.mu.Lock()
	state, relay := d.state, d.relay
	d.mu.Unlock()
	return frontends(state, nil, relay.Stats(), moved)
}

// moved is what the kernel has moved, by door and backend, and what of it was
// for backends that are forgotten.
type moved struct {
	now  map[edge.Door]map[netip.AddrPort]flows
	past map[edge.Door]nat.Count
}

// frontend is the row of a frontend of the nat data plane.
func (m moved) frontend(f edge.Frontend) status.Frontend {
	row := status.Frontend{Name: f.Name, Protocol: f.Protocol, Listen: f.Listen.String(), DataPlane: edge.DataPlaneNAT}
	total := m.past[f.Door]
	row.Packets = &status.Packets{}
	left := map[netip.AddrPort]flows{}
	for addr, n := range m.now[f.Door] {
		left[addr] = n
		add(&total, n.Count)
		row.Active += n.active
	}
	row.Accepted, row.Received, row.Sent = total.Connections, total.BytesToBackend, total.BytesToClient
	row.Packets.Received, row.Packets.Sent = total.PacketsToBackend, total.PacketsToClient
	backend := func(addr netip.AddrPort, n flows) status.Backend {
		return status.Backend{
			Addr: addr.String(), Total: n.Connections, Active: n.active, Received: n.BytesToBackend, Sent: n.BytesToClient,
			Packets: &status.Packets{Received: n.PacketsToBackend, Sent: n.PacketsToClient},
		}
	}
	for _, b := range f.Backends {
		r := backend(b.Addr, left[b.Addr])
		r.Node, r.Pods, r.Target, r.State, r.Error, r.Since = b.Node, b.Pods, b.Target, b.State, b.Error, b.Since
		r.Unprobed, r.Weight, r.Share = !b.Probe.IsValid(), b.Weight, b.Share
		row.Backends = append(row.Backends, r)
		delete(left, b.Addr)
	}
	for _, addr := range slices.SortedFunc(maps.Keys(left), netip.AddrPort.Compare) {
		if left[addr].active > 0 {
			r := backend(addr, left[addr])
			r.State, r.Drain = status.Draining, status.DrainFrom(time.Time{}, f.DrainTimeout)
			row.Backends = append(row.Backends, r)
		}
	}
	return row
}

// merged has one row for each name at a door. There are two when a frontend
// shared its door and now has it for itself, as long as connections are left
// from before: they are added to what there is now, and what had been counted
// of them is not, so that counters go on where they were.
func merged(stats []relay.Stats) []relay.Stats {
	type key struct {
		edge.Door
		name  string
		names bool
	}
	at := make(map[key]int, len(stats))
	rows := make([]relay.Stats, 0, len(stats))
	for _, s := range stats {
		k := key{s.Door, s.Name, s.Names}
		i, again := at[k]
		if !again {
			at[k] = len(rows)
			rows = append(rows, s)
			continue
		}
		now, before := rows[i], s
		if now.Draining && !before.Draining {
			now, before = before, now
		}
		now.Active += before.Active
		now.Waiting += before.Waiting
		now.Backends = slices.Clone(now.Backends)
		for _, b := range before.Backends {
			if have := slices.IndexFunc(now.Backends, func(x relay.BackendStats) bool { return x.Addr == b.Addr }); have >= 0 {
				now.Backends[have].Active += b.Active
			} else if b.Active > 0 {
				b.Draining, b.DrainingSince = true, earlier(b.DrainingSince, before.DrainingSince)
				now.Backends = append(now.Backends, b)
			}
		}
		slices.SortFunc(now.Backends, func(a, b relay.BackendStats) int { return a.Addr.Compare(b.Addr) })
		rows[i] = now
	}
	return rows
}

// exposureKey is what an Exposure and its frontends have in common.
type exposureKey struct {
	protocol   edge.Protocol
	zone, name string
}

// counters finds what was counted for a frontend.
type counters struct {
	stats  []relay.Stats
	found  []bool // parallel to stats: it is some frontend's
	at     map[edge.Door][]int
	shared map[edge.Door]bool
}

func countersOf(stats []relay.Stats) *counters {
	c := &counters{stats: stats, found: make([]bool, len(stats)), at: map[edge.Door][]int{}, shared: map[edge.Door]bool{}}
	for i, s := range stats {
		switch {
		case !s.Names:
			c.at[s.Door] = append(c.at[s.Door], i)
		case !s.Draining:
			c.shared[s.Door] = true
		}
	}
	return c
}

// of returns the counters of a frontend, which no other gets then. Behind a
// door that is shared they go by the name. One that has the door for itself
// finds them by the door: it may have been renamed since.
func (c *counters) of(f edge.Frontend) relay.Stats {
	alone := len(f.Hostnames) == 0 && !c.shared[f.Door]
	for _, fits := range []func(relay.Stats) bool{
		func(s relay.Stats) bool { return !s.Draining && s.Name == f.Name },
		func(s relay.Stats) bool { return !s.Draining && alone },
		func(s relay.Stats) bool { return s.Name == f.Name },
	} {
		for _, i := range c.at[f.Door] {
			if !c.found[i] && fits(c.stats[i]) {
				c.found[i] = true
				return c.stats[i]
			}
		}
	}
	return relay.Stats{}
}

// listeners are the doors that are shared by name.
func listeners(wanted []edge.Frontend, errs map[edge.Door]string, stats []relay.Stats) []status.Listener {
	counted := make(map[edge.Door]relay.Stats)
	for _, s := range stats {
		if s.Names {
			counted[s.Door] = s
		}
	}
	var rows []status.Listener
	here := make(map[edge.Door]bool)
	for _, f := range wanted {
		if len(f.Hostnames) == 0 || here[f.Door] {
			continue
		}
		here[f.Door] = true
		row := listener(f.Door, counted[f.Door])
		row.Zone, row.Error = f.Zone, errs[f.Door]
		rows = append(rows, row)
	}
	for _, s := range stats {
		if s.Names && s.Draining && !here[s.Door] {
			row := listener(s.Door, s)
			row.Zone, row.Drain = s.Zone, status.DrainFrom(s.DrainingSince, s.DrainTimeout)
			rows = append(rows, row)
		}
	}
	return rows
}

func listener(door edge.Door, s relay.Stats) status.Listener {
	row := status.Listener{Protocol: door.Protocol, Listen: door.Listen.String(), Traffic: traffic(door, s), Routed: s.Routed}
	for _, b := range s.Backends {
		if b.Active > 0 {
			row.Backends = append(row.Backends, draining(b, status.DrainFrom(b.DrainingSince, s.DrainTimeout)))
		}
	}
	return row
}

// draining is a backend that is gone and has connections left.
func draining(b relay.BackendStats, d status.Drain) status.Backend {
	return status.Backend{Addr: b.Addr.String(), State: status.Draining, Drain: d, Total: b.Connected, Active: b.Active, Failures: sum(b.Failures)}
}

// earlier is the earlier of two times of which one may not be known.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func frontend(name string, door edge.Door, s relay.Stats) status.Frontend {
	row := status.Frontend{Name: name, Protocol: door.Protocol, Listen: door.Listen.String(), DataPlane: edge.DataPlaneProxy, Traffic: traffic(door, s), Bans: s.Bans}
	// From when it shared the door: others have accepted those.
	row.Accepted -= s.Routed
	for _, b := range s.Banned {
		row.Banned = append(row.Banned, status.Ban{Client: clientOf(b.Client), Until: b.Until})
	}
	return row
}

func traffic(door edge.Door, s relay.Stats) status.Traffic {
	t := status.Traffic{
		Accepted: s.Accepted, Active: s.Active, Waiting: s.Waiting, AcceptErrors: s.AcceptErrors,
		Received: s.BytesToBackend, Sent: s.BytesToClient,
		Ended: map[status.Ending]uint64{
			status.Finished: s.Finished, status.Reset: s.Resets, status.IdleTimeout: s.IdleTimeouts,
			status.DrainTimeout: s.DrainTimeouts, status.Lost: s.Lost, status.BackendDown: s.BackendDown, status.Cut: s.Cut,
		},
	}
	if door.Protocol == edge.UDP {
		t.Packets = &status.Packets{Received: s.PacketsToBackend, Sent: s.PacketsToClient, Dropped: s.PacketsDropped}
	}
	if len(s.Failures) > 0 {
		t.Failures = make(map[string]uint64, len(s.Failures))
		for reason, n := range s.Failures {
			t.Failures[string(reason)] = n
		}
	}
	return t
}

// clientOf is how a client is told apart from others: an IPv6 client has all of
// its /64.
func clientOf(addr netip.Addr) string {
	if addr.Is4() {
		return addr.String()
	}
	return netip.PrefixFrom(addr, 64).String()
}

func sum(failures map[relay.Reason]uint64) uint64 {
	total := uint64(0)
	for _, n := range failures {
		total += n
	}
	return total
}
