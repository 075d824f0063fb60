package kube

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// withRoutes makes the names of Ingresses and routes part of the snapshot. It is
// for before the first is read.
func (s *state) withRoutes(read bool) {
	if read {
		s.routes = make(map[string]map[string]*route)
		s.asked = make(map[string]bool)
	}
}

// routeAsked notes that it is known whether a kind can be read; routesAsked that
// nobody waits for it any more.
func (s *state) routeAsked(resource string) { s.noteAsked(resource) }

func (s *state) routesAsked() {
	for _, k := range routeKinds {
		s.noteAsked(k.resource)
	}
}

func (s *state) noteAsked(resource string) {
	s.mu.Lock()
	before := s.routesReadLocked()
	s.asked[resource] = true
	news := before != s.routesReadLocked()
	s.mu.Unlock()
	if news {
		s.changed()
	}
}

// routesReadLocked says whether all that there is has been read, or need not be.
func (s *state) routesReadLocked() bool { return s.routes == nil || len(s.asked) == len(routeKinds) }

func (s *state) putRouteLocked(resource string, r *route) {
	if s.routes[resource] == nil {
		s.routes[resource] = make(map[string]*route)
	}
	if old := s.routes[resource][r.key()]; old != nil && reflect.DeepEqual(old, r) {
		return // controllers write conditions all the time
	}
	s.routes[resource][r.key()] = r
	s.stale, s.staleHosts = true, true
}

func (s *state) dropRouteLocked(resource, key string) {
	if _, ok := s.routes[resource][key]; ok {
		delete(s.routes[resource], key)
		s.stale, s.staleHosts = true, true
	}
}

func (s *state) routeKeysLocked(resource string) []string {
	return slices.Collect(maps.Keys(s.routes[resource]))
}

// webPorts are where Ingresses are served.
var webPorts = []uint16{80, 443}

// hostsOf are the names that Ingresses and routes answer to, and which Services
// take their connections: those whose addresses they have.
func hostsOf(routes map[string]map[string]*route, services []edge.Service) []edge.HostRule {
	at := byAddress(routes, services)
	var rules []edge.HostRule
	rule := func(r *route, host, service, class string) {
		rules = append(rules, edge.HostRule{
			Host: host, Service: service, Class: class, Why: r.kind + "/" + r.key(), Namespace: r.namespace, Created: r.created,
		})
	}
	for _, kind := range routeKinds {
		for _, r := range routes[kind.resource] {
			if kind.group == networkingGroup {
				service := serviceOf(at, r.addrs, webPorts)
				for _, host := range r.hosts {
					rule(r, host, service, r.class)
				}
				continue
			}
			for _, p := range r.parents {
				gateway := routes["gateways"][p.namespace+"/"+p.name]
				if gateway == nil {
					continue
				}
				hosts, ports := gateway.meet(p, r.hosts)
				service := serviceOf(at, gateway.addrs, ports)
				for _, host := range hosts {
					rule(r, host, service, gateway.class)
				}
			}
		}
	}
	slices.SortFunc(rules, func(x, y edge.HostRule) int {
		return cmp.Or(strings.Compare(x.Host, y.Host), strings.Compare(x.Service, y.Service), strings.Compare(x.Class, y.Class), strings.Compare(x.Why, y.Why))
	})
	return slices.Compact(rules)
}

// meet are the names that a route has at a Gateway: those of both (Gateway API,
// HTTPRouteSpec.hostnames), with the ports of the listeners.
func (r *route) meet(p parent, hosts []string) (names []string, ports []uint16) {
	for _, l := range r.listeners {
		if p.section != "" && p.section != l.name || p.port != 0 && p.port != l.port {
			continue
		}
		ports = append(ports, l.port)
		if len(hosts) == 0 && l.host != "" {
			names = append(names, l.host)
		}
		for _, h := range hosts {
			switch {
			case l.host == "" || within(h, l.host):
				names = append(names, h)
			case within(l.host, h):
				names = append(names, l.host)
			}
		}
	}
	return names, ports
}

// within says whether a name is another one, or one of those that a wildcard is for.
func within(name, of string) bool {
	suffix, wildcard := strings.CutPrefix(of, "*")
	return name == of || wildcard && strings.HasSuffix(name, suffix) && name != suffix
}

// byAddress are the Services that have one of the addresses that Ingresses and
// Gateways have.
func byAddress(routes map[string]map[string]*route, services []edge.Service) map[netip.Addr][]*edge.Service {
	at := map[netip.Addr][]*edge.Service{}
	for _, of := range []string{"ingresses", "gateways"} {
		for _, r := range routes[of] {
			for _, a := range r.addrs {
				at[a] = nil
			}
		}
	}
	for i := range services {
		for _, in := range services[i].Ingress {
			if found, wanted := at[in.IP]; wanted {
				at[in.IP] = append(found, &services[i])
			}
		}
	}
	return at
}

// serviceOf is the Service that has most of some addresses, and one of the ports;
// empty if that may be several.
func serviceOf(at map[netip.Addr][]*edge.Service, addrs []netip.Addr, ports []uint16) string {
	shared := map[*edge.Service]int{}
	for _, a := range addrs {
		for _, s := range at[a] {
			if slices.ContainsFunc(s.Ports, func(p edge.ServicePort) bool { return slices.Contains(ports, p.Port) }) {
				shared[s]++
			}
		}
	}
	best, most, several := "", 0, false
	for s, n := range shared {
		// Of two that have them all, the one that has no others.
		switch score := 1000*n - len(s.Ingress); {
		case best == "" || score > most:
			best, most, several = s.Key(), score, false
		case score == most:
			several = true
		}
	}
	if several {
		return ""
	}
	return best
}
