package names

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

func decimal(c byte) string { return strconv.Itoa(int(c)) }

// compareHosts puts who comes first first; of one rank those of the file stay in
// its order.
func compareHosts(x, y host) int {
	if c := cmp.Compare(x.rank, y.rank); c != 0 || x.rank == ofFile || x.rank == ofReservation {
		return c
	}
	return cmp.Or(strings.Compare(x.name, y.name), strings.Compare(x.why, y.why), slices.CompareFunc(x.addrs, y.addrs, netip.Addr.Compare))
}

// ofExposures are Services and static frontends by their own names.
func (b *builder) ofExposures() {
	seen := map[string]bool{}
	for i := range b.in.Exposures {
		e := &b.in.Exposures[i]
		what, name := e.Service, e.Name
		if what == "" {
			// A frontend without a name is called as what it listens at, which is none.
			what = "frontend " + e.Name
		} else {
			namespace, service, _ := strings.Cut(e.Service, "/")
			name = service + "." + namespace
		}
		if e.Open {
			b.opened(what, e.Zone, e.Addresses)
		}
		if seen[what] || e.Service == "" && strings.Contains(name, ".") {
			continue
		}
		seen[what] = true
		why := "frontend/" + e.Name
		if e.Service != "" {
			why = "service/" + e.Service
		}
		b.add(host{name: name + "." + b.dns.ServiceDomain, rank: ofExposure, why: why, in: func(zone string) ([]netip.Addr, string) {
			return b.open[place{what, zone}], ""
		}})
	}
}

// opened notes where something is found. What is in no zone is in those that its
// addresses are in.
func (b *builder) opened(what, zone string, addrs []netip.Addr) {
	if zone != "" {
		b.open[place{what, zone}] = append(b.open[place{what, zone}], addrs...)
		return
	}
	for name, g := range b.zone {
		for _, a := range addrs {
			if slices.Contains(g.own, a) {
				b.open[place{what, name}] = append(b.open[place{what, name}], a)
			}
		}
	}
}

// ofServices are names that Services have asked for, and those of Ingresses and
// routes that they serve.
func (b *builder) ofServices() {
	for _, n := range b.in.Names {
		b.add(host{name: n.Name, rank: ofClaim, in: func(zone string) ([]netip.Addr, string) {
			for _, by := range n.By {
				if addrs := b.open[place{by.Service, zone}]; len(addrs) > 0 {
					return addrs, by.Why
				}
			}
			return nil, ""
		}})
	}
}

// A service is a named port of a Service (RFC 2782).
type service struct {
	name, data, why string
	of              string          // namespace/name
	open            map[string]bool // by zone
}

// services are the named ports of Services.
func (b *builder) services() []service {
	if b.in.Cluster == nil {
		return nil
	}
	type port struct {
		service  string
		protocol edge.Protocol
		port     uint16
	}
	open := map[port]map[string]bool{}
	for i := range b.in.Exposures {
		if e := &b.in.Exposures[i]; e.Open && e.Service != "" && len(e.Addresses) > 0 {
			p := port{e.Service, e.Protocol, e.Port}
			if open[p] == nil {
				open[p] = map[string]bool{}
			}
			open[p][e.Zone] = true
		}
	}
	var all []service
	for i := range b.in.Cluster.Services {
		s := &b.in.Cluster.Services[i]
		for _, p := range s.Ports {
			zones := open[port{s.Key(), p.Protocol, p.Port}]
			if p.Name == "" || zones == nil {
				continue
			}
			target := s.Name + "." + s.Namespace + "." + b.dns.ServiceDomain
			name := "_" + p.Name + "._" + strings.ToLower(string(p.Protocol)) + "." + target
			if config.IsDomainName(name) && b.owners[target] == ofExposure {
				all = append(all, service{name, srvData(config.SRV{Target: target, Port: p.Port}), "service/" + s.Key(), s.Key(), zones})
			}
		}
	}
	return all
}
