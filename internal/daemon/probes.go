package daemon

import (
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// server is what a backend's probes are about. A name server's TCP and UDP ports
// have the same address, and one may be dead without the other.
type server struct {
	protocol edge.Protocol
	addr     netip.AddrPort
}

// eachProbe tells the prober what a connection to a backend has shown.
func (d *Daemon) eachProbe(backend server, tell func(at netip.AddrPort)) {
	if probes := d.probesAt.Load(); probes != nil {
		for _, at := range (*probes)[backend] {
			tell(at)
		}
	}
}

// probesAt maps each backend to the addresses by which the prober knows what its
// connections concern: where its health is asked for, which may be another
// port, and the healthz of its node.
func probesAt(state desired.State) map[server][]netip.AddrPort {
	through := map[netip.AddrPort]bool{}
	healthz := map[netip.Addr]netip.AddrPort{}
	for _, p := range state.Probes {
		if p.Through.IsValid() {
			through[p.Through] = true
		}
		if p.Kind == edge.ProbeHealthz {
			healthz[p.Addr.Addr()] = p.Addr
		}
	}
	probes := map[server][]netip.AddrPort{}
	add := func(backend server, at netip.AddrPort) {
		if at.IsValid() && !slices.Contains(probes[backend], at) {
			probes[backend] = append(probes[backend], at)
		}
	}
	for _, f := range state.Frontends {
		for _, b := range f.Backends {
			s := server{f.Protocol, b.Addr}
			if f.Protocol == edge.TCP && through[b.Addr] {
				add(s, b.Addr)
			} else {
				add(s, b.Probe)
			}
			if b.Target == edge.TargetNodePort {
				add(s, healthz[b.Addr.Addr()])
			}
		}
	}
	return probes
}
