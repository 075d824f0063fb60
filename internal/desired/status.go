package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/pools"
)

// portErrorPrefix makes a port error a name of ours, as the API wants it
// (KEP-1435: names that are not Kubernetes' own are DOMAIN/CamelCase).
const portErrorPrefix = "gatehouse.e13.dev/"

// status decides what the API should say of a Service that gatehouse owns, from
// the rows just added, and tells its owner where it is open.
func (b *builder) status(s *asking) {
	rows := map[string][]Exposure{}
	for i := len(b.state.Exposures) - 1; i >= 0 && b.state.Exposures[i].Service == s.Key(); i-- {
		e := b.state.Exposures[i]
		rows[e.Zone] = append(rows[e.Zone], e)
	}
	status := edge.ServiceStatus{Namespace: s.Namespace, Name: s.Name, UID: s.UID}
	var said exposed
	slices.Reverse(rows[""])
	said.add("", rows[""], nil, nil, nil)
	for i := range b.in.Config.Zones {
		zone := &b.in.Config.Zones[i]
		ports, open, bad := portsOf(rows[zone.Name])
		var addrs []netip.Addr
		if len(open) > 0 {
			addrs = b.zoneAddrs(s, rows[zone.Name], zone)
		}
		said.add(zone.Name, rows[zone.Name], addrs, open, b.without(s, zone.Name))
		for _, a := range addrs {
			in := edge.Ingress{IP: a, Mode: "Proxy"}
			if bad {
				in.Ports = ports
			}
			status.Ingress = append(status.Ingress, in)
		}
		if len(addrs) == 0 {
			continue // nobody can reach it before the interface has an address
		}
		b.event(s.Key(), false, "ZoneOpened", fmt.Sprintf("open in zone %s at %s, port %s", zone.Name, addrText(addrs), strings.Join(open, ", ")))
	}
	if !s.own {
		return
	}
	status.Conditions = said.conditions()
	// It stays while a door is open at an address that is away for a moment.
	status.Finalizer = b.in.Config.Kubernetes.Finalizer && (len(status.Ingress) > 0 || s.Finalizer && said.lasting)
	b.state.Statuses = append(b.state.Statuses, status)
}

// leave gives up what was written in a Service that is not open any more: it is
// being deleted, or it was ours until its class, its labels or the configuration
// changed. What is another gatehouse's, of another class or on another machine,
// has the same field manager and is left alone; but it cannot keep a Service
// from being deleted.
func (b *builder) leave(s *asking) {
	status := edge.ServiceStatus{Namespace: s.Namespace, Name: s.Name, UID: s.UID}
	written := s.StatusOurs || s.Finalizer || len(s.Conditions) > 0
	k := b.in.Config.Kubernetes
	switch {
	case s.own && s.chosen: // it is being deleted
	case s.Class == "" && !k.Classless && written: // owned while kubernetes.classless was on
	case s.own && s.StatusOurs && b.isHereOnly(s): // owned while its labels matched
	case s.Deleting && s.Finalizer:
		status.Ingress, status.Conditions = s.Ingress, s.Conditions
	case isForlorn(s.Service):
	default:
		return
	}
	b.state.Statuses = append(b.state.Statuses, status)
}

// isForlorn says whether what is written contradicts itself, so that nobody
// stands by it: open, without an address. The API server clears the addresses
// when the type changes; by the time that it is one of a load balancer again, of
// another class, the rest is there still.
func isForlorn(s *edge.Service) bool {
	return len(s.Ingress) == 0 && slices.ContainsFunc(s.Conditions, func(c edge.Condition) bool { return c.Type == conditionExposed && c.True })
}

// isHereOnly says whether all that a status says is an address of this machine.
func (b *builder) isHereOnly(s *asking) bool {
	elsewhere := func(in edge.Ingress) bool { return !b.own[in.IP] && b.poolOf(in.IP) == nil }
	return len(s.Ingress) > 0 && !slices.ContainsFunc(s.Ingress, elsewhere)
}

// portsOf reports on every port of one zone; the API wants all of them listed
// where one has an error.
func portsOf(rows []Exposure) (ports []edge.IngressPort, open []string, bad bool) {
	slices.SortFunc(rows, func(x, y Exposure) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), cmp.Compare(x.Protocol, y.Protocol))
	})
	for _, e := range rows {
		p := edge.IngressPort{Port: e.Port, Protocol: e.Protocol}
		if e.Open {
			open = append(open, portText(e.Protocol, e.Port))
		} else {
			p.Error, bad = portErrorPrefix+e.code, true
		}
		ports = append(ports, p)
	}
	return ports, open, bad
}

// portText is a port for people, who mean TCP when they say nothing else.
func portText(p edge.Protocol, port uint16) string {
	text := strconv.Itoa(int(port))
	if p != edge.TCP {
		text += "/" + string(p)
	}
	return text
}

// zoneAddrs are the addresses at which a zone's clients find a Service, for each
// of its IP families, in its order: those that it has of pools, and the first of
// each interface that serves it with its own, if one of the rows listens there.
func (b *builder) zoneAddrs(s *asking, rows []Exposure, z *edge.Zone) []netip.Addr {
	families := s.IPFamilies
	if len(families) == 0 {
		families = familyNames[:1]
	}
	at := s.zones[z.Name]
	if at == nil {
		return nil
	}
	listens := func(device string, a netip.Addr) bool {
		return slices.ContainsFunc(rows, func(e Exposure) bool {
			return e.Open && slices.ContainsFunc(e.at, func(l edge.Listen) bool { return l.Device == device && l.Addr == a })
		})
	}
	var addrs []netip.Addr
	add := func(a netip.Addr) {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	for _, family := range families {
		isOf := func(a netip.Addr) bool { return a.Is4() == (family == "IPv4") }
		for _, device := range z.Interfaces {
			for _, g := range at.given {
				if g.Device == device && isOf(g.Addr) && listens(device, g.Addr) {
					add(g.Addr)
				}
			}
			if !listens(device, netip.Addr{}) {
				continue
			}
			serves := func(p netip.Prefix) bool {
				return isOf(p.Addr()) && slices.ContainsFunc(at.own, func(n pools.Network) bool { return n.Device == device && n.Prefix == p.Masked() })
			}
			if i := slices.IndexFunc(b.devices[device].Addrs, serves); i >= 0 {
				add(b.devices[device].Addrs[i].Addr())
			}
		}
	}
	return addrs
}

func addrText(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// finishEvents adds the Services' UIDs, and says a thing once.
func (b *builder) finishEvents() {
	if b.in.Cluster == nil {
		return
	}
	uids := make(map[string]string, len(b.in.Cluster.Services))
	for i := range b.in.Cluster.Services {
		uids[b.in.Cluster.Services[i].Key()] = b.in.Cluster.Services[i].UID
	}
	for i := range b.state.Events {
		e := &b.state.Events[i]
		e.UID = uids[e.Namespace+"/"+e.Name]
	}
	slices.SortFunc(b.state.Events, func(x, y edge.Event) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Reason, y.Reason), cmp.Compare(x.Message, y.Message))
	})
	b.state.Events = slices.Compact(b.state.Events)
}
