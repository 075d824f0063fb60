package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// portErrorPrefix makes a port error a name of ours, as the API wants it
// (KEP-1435: names that are not Kubernetes' own are DOMAIN/CamelCase).
const portErrorPrefix = "gatehouse.e13.dev/"

// status decides what the API should say of a Service that gatehouse owns, from
// the rows just added, and tells its owner where it is open.
func (b *builder) status(s *edge.Service, own bool) {
	rows := map[string][]Exposure{}
	for i := len(b.state.Exposures) - 1; i >= 0 && b.state.Exposures[i].Service == s.Key(); i-- {
		e := b.state.Exposures[i]
		rows[e.Zone] = append(rows[e.Zone], e)
	}
	status := edge.ServiceStatus{Namespace: s.Namespace, Name: s.Name, UID: s.UID}
	for _, zone := range b.in.Config.Zones {
		ports, open, bad := portsOf(rows[zone.Name])
		if len(open) == 0 {
			continue
		}
		addrs := b.zoneAddrs(rows[zone.Name], zone, s.IPFamilies)
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
	if own {
		b.state.Statuses = append(b.state.Statuses, status)
	}
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

// zoneAddrs are the addresses at which a zone's clients find a Service: the
// first of each interface that listens for one of the rows, for each IP family
// of the Service, in its order.
func (b *builder) zoneAddrs(rows []Exposure, z edge.Zone, families []string) []netip.Addr {
	if len(families) == 0 {
		families = []string{"IPv4"}
	}
	var addrs []netip.Addr
	for _, family := range families {
		for _, device := range z.Interfaces {
			if !slices.ContainsFunc(rows, func(e Exposure) bool { return e.Open && slices.Contains(e.devices, device) }) {
				continue
			}
			for _, p := range b.devices[device].Addrs {
				if p.Addr().Is4() == (family == "IPv4") && !slices.Contains(addrs, p.Addr()) {
					addrs = append(addrs, p.Addr())
					break
				}
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
