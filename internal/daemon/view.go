package daemon

import (
	"net/netip"

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
		row := frontend(f.Name, f.Door, counted[f.Door])
		row.Zone, row.Sources, row.Error = f.Zone, f.SourceRanges, errs[f.Door]
		perBackend := map[netip.AddrPort]relay.BackendStats{}
		for _, b := range counted[f.Door].Backends {
			perBackend[b.Addr] = b
		}
		for _, b := range f.Backends {
			s := perBackend[b.Addr]
			row.Backends = append(row.Backends, status.Backend{
				Addr: b.Addr.String(), Node: b.Node, State: b.State, Error: b.Error, Weight: b.Weight, Share: b.Share,
				Total: s.Connected, Active: s.Active, Failures: sum(s.Failures),
			})
			delete(perBackend, b.Addr)
		}
		for _, s := range counted[f.Door].Backends {
			if _, left := perBackend[s.Addr]; left && s.Active > 0 {
				row.Backends = append(row.Backends, status.Backend{Addr: s.Addr.String(), State: status.Draining, Total: s.Connected, Active: s.Active, Failures: sum(s.Failures)})
			}
		}
		rows = append(rows, row)
	}
	for _, s := range stats {
		if s.Draining && !here[s.Door] {
			row := frontend(s.Name, s.Door, s)
			row.Zone, row.Draining = s.Zone, true
			rows = append(rows, row)
		}
	}
	return rows
}

func frontend(name string, door edge.Door, s relay.Stats) status.Frontend {
	row := status.Frontend{
		Name: name, Protocol: door.Protocol, Listen: door.Listen.String(),
		Accepted: s.Accepted, Active: s.Active, Received: s.BytesToBackend, Sent: s.BytesToClient,
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
