package daemon

import (
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// frontends puts what was decided, what listens and what was counted side by
// side. Doors that were removed and have connections left come last.
func frontends(wanted []edge.Frontend, doors []relay.DoorStatus, stats []relay.Stats) []status.Frontend {
	errs := failed(doors)
	counted := make(map[edge.Door]relay.Stats, len(stats))
	for _, s := range stats {
		counted[s.Door] = s
	}
	rows := make([]status.Frontend, 0, len(wanted))
	here := make(map[edge.Door]bool, len(wanted))
	for _, f := range wanted {
		here[f.Door] = true
		s := counted[f.Door]
		row := frontend(f.Name, f.Door, s)
		row.Zone, row.Sources, row.Error = f.Zone, f.SourceRanges, errs[f.Door]
		row.DrainTimeout, row.IdleTimeout = status.Duration(f.DrainTimeout), status.Duration(f.IdleTimeout)
		row.MaxConnections, row.MaxConnectionsPerClient = f.MaxConnections, f.MaxConnectionsPerClient
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
				Addr: b.Addr.String(), Node: b.Node, State: b.State, Error: b.Error, Unprobed: !b.Probe.IsValid(), Weight: b.Weight, Share: b.Share,
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
	for _, s := range stats {
		if !s.Draining || here[s.Door] {
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
	row := status.Frontend{
		Name: name, Protocol: door.Protocol, Listen: door.Listen.String(),
		Accepted: s.Accepted, Active: s.Active, Waiting: s.Waiting, AcceptErrors: s.AcceptErrors,
		Received: s.BytesToBackend, Sent: s.BytesToClient,
		Ended: map[status.Ending]uint64{
			status.Finished: s.Finished, status.Reset: s.Resets, status.IdleTimeout: s.IdleTimeouts,
			status.DrainTimeout: s.DrainTimeouts, status.Lost: s.Lost, status.Cut: s.Cut,
		},
	}
	if door.Protocol == edge.UDP {
		row.Packets = &status.Packets{Received: s.PacketsToBackend, Sent: s.PacketsToClient, Dropped: s.PacketsDropped}
	}
	if len(s.Failures) > 0 {
		row.Failures = make(map[string]uint64, len(s.Failures))
		for reason, n := range s.Failures {
			row.Failures[string(reason)] = n
		}
	}
	return row
}

func sum(failures map[relay.Reason]uint64) uint64 {
	total := uint64(0)
	for _, n := range failures {
		total += n
	}
	return total
}
