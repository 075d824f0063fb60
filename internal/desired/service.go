package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/edge"
)

// services decides every Service, oldest first: who was there first keeps a port.
func (b *builder) services() {
	selector, err := edge.ParseSelector(b.in.Config.Kubernetes.Selector)
	if err != nil {
		b.problem(edge.Problem{Pos: b.in.Config.Kubernetes.Pos, Path: "kubernetes.selector", What: err.Error(), Remedy: "no Service is exposed until it is mended"})
		return
	}
	order := make([]*edge.Service, 0, len(b.in.Cluster.Services))
	for i := range b.in.Cluster.Services {
		order = append(order, &b.in.Cluster.Services[i])
	}
	slices.SortFunc(order, func(x, y *edge.Service) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	b.state.Exposures = slices.Grow(b.state.Exposures, len(order)) // most have one row
	b.state.Frontends = slices.Grow(b.state.Frontends, len(order))
	services := make([]asking, len(order))
	for i, s := range order {
		services[i] = b.read(s, selector)
	}
	b.assign(services)
	for key := range b.doors { // of files
		key.addr = netip.Addr{}
		b.wanted[key] = true
	}
	for i := range services {
		b.service(&services[i])
	}
}

// want notes which ports a Service wants doors at. They come oldest first, so that
// no younger one can take the endpoints of another by wanting their port.
func (b *builder) want(s *asking) {
	for _, p := range s.Ports {
		b.wanted[doorKey{protocol: p.Protocol, port: p.Port}] = true
	}
}

// owns says whether a Service is of our class.
func (b *builder) owns(s *edge.Service) bool {
	k := b.in.Config.Kubernetes
	return s.Class == k.LoadBalancerClass || s.Class == "" && k.Classless
}

// read says what a Service asks for, and in which zones it may have that.
func (b *builder) read(s *edge.Service, selector edge.Selector) asking {
	a := asking{Service: s, own: b.owns(s), chosen: selector.Matches(s.Labels)}
	if s.Deleting || !a.chosen || !a.own && len(s.Ingress) == 0 {
		return a
	}
	a.req, a.no = b.request(s)
	a.zones = make(map[string]*place, len(a.req.zones))
	for _, zone := range a.req.zones {
		if _, why := b.mayOpen(s, zone); b.zones[zone] != nil && why == "" {
			a.zones[zone] = &place{}
		}
	}
	return a
}

func (b *builder) service(s *asking) {
	k := b.in.Config.Kubernetes
	if s.Deleting {
		b.notOurs(s.Service, "it is being deleted", "")
		b.leave(s)
		return
	}
	addresses := b.foreignAddresses(s.Service)
	if s.own {
		addresses = nil // whoever wrote them: the status will be ours
	}
	if !s.own || !s.chosen {
		b.leave(s)
	}
	switch {
	case !s.chosen:
		b.notOurs(s.Service, fmt.Sprintf("its labels do not match kubernetes.selector (%s)", k.Selector), "")
		return
	case s.own:
	case len(addresses) > 0 && k.FollowAddresses:
	case len(addresses) > 0:
		b.notOurs(s.Service, "another controller has given it its address, and kubernetes.followAddresses is off", "switch followAddresses on")
		return
	case s.Class != "":
		b.notOurs(s.Service, "it belongs to loadBalancerClass "+s.Class+", which has given it no address", "")
		return
	default:
		b.notOurs(s.Service, "it names no loadBalancerClass, and no controller has given it an address",
			"create it with loadBalancerClass: "+k.LoadBalancerClass+", or set kubernetes.classless: true")
		return
	}

	b.sayUnknown(s.Service)
	req := s.req
	switch {
	case s.no.code != "":
		b.refuse(s.Service, s.no)
	case len(req.zones) == 0:
		b.refuse(s.Service, refusal{"NoZone", "it asks for no zone", b.zoneRemedy(s.Service)})
	default:
		b.rows(s, addresses)
		b.askNames(s.Service)
	}
	b.status(s)
}

// rows decides each port of a Service in each zone that it asks for.
func (b *builder) rows(s *asking, addresses []netip.Addr) {
	k, req := b.in.Config.Kubernetes, s.req
	b.want(s)
	if s.AffinityTimeout > 0 && req.terms.Balance != edge.BalanceSource {
		b.problem(edge.Problem{
			Object: "service/" + s.Key(), What: fmt.Sprintf("sessionAffinity: ClientIP is not kept: annotation %s asks for %s", annBalance, req.terms.Balance),
			Remedy: "remove the annotation, or the sessionAffinity",
		})
	}
	behind := map[edge.ServicePort]backing{} // the same in each zone
	for _, zone := range req.zones {
		z := b.zones[zone]
		if z == nil {
			// The row is in no zone: what a Service's owner invents must not become
			// a name that metrics count by.
			b.closed(b.row(s.Service, "", edge.ServicePort{Protocol: edge.TCP}), "UnknownZone", fmt.Sprintf("no zone named %q", zone), zoneHint(zone, b.zoneNames()))
			continue
		}
		if allow, why := b.mayOpen(s.Service, zone); why != "" {
			b.closed(b.row(s.Service, zone, edge.ServicePort{Protocol: edge.TCP}), "ZoneNotAllowed",
				why+" open zone "+zone, "the operator allows it in kubernetes.allow."+zone+" ("+allow.Pos.String()+")")
			continue
		}
		at := s.zones[zone]
		for _, port := range s.Ports {
			row := b.row(s.Service, zone, port)
			row.Sources, row.Hostnames = req.sources, req.hostnames
			row.of = policy{local: s.Local, affinity: s.AffinityTimeout > 0}
			row.shut, row.vips = cmp.Or(s.shut, at.shut), s.vips
			for _, g := range at.given {
				row.here = append(row.here, g.Addr)
			}
			if port.Protocol == edge.SCTP && req.plane != edge.DataPlaneNAT {
				b.closed(row, "ProtocolNotSupported", "SCTP is not relayed: only the kernel moves it", "annotation "+annDataPlane+": nat")
				continue
			}
			if why := b.ofRelayOnly(req, port.Protocol); why.reason != "" {
				b.closed(row, why.code, why.reason, why.remedy)
				continue
			}
			to, done := behind[port]
			if !done {
				to = b.backing(s.Service, port, req, addresses)
				behind[port] = to
			}
			if to.refused != "" {
				b.closed(row, "NoTarget", to.refused, "use another "+annTarget)
				continue
			}
			row.Target, row.DataPlane, row.behind = to.target, req.plane, &to
			row.Backends, row.Shares, row.Reason, row.Remedy = to.backends, to.spread, to.reason, to.remedy
			if to.note != "" {
				row.Notes = append(row.Notes, to.note)
			}
			if req.plane == edge.DataPlaneNAT {
				row.Notes = append(row.Notes, b.unkept(req)...)
			}
			b.open(row, edge.Frontend{
				Name: row.Name, DataPlane: req.plane, SourceRanges: req.sources, AcceptProxyProtocol: k.AcceptProxyProtocol,
				Terms: req.of(port.Protocol), Health: req.health, Why: row.Why,
			}, b.listensOf(s, z, port.Port))
		}
	}
}

// backing is what stands behind one port of a Service, or why there is nothing.
type backing struct {
	target         edge.Target
	backends       []edge.Backend
	spread         []PodShare // pods that kube-proxy spreads over; nil: each backend names its own
	refused        string     // it asks for what cannot be
	reason, remedy string     // it has no backend
	note           string

	pods        []edge.Endpoint  // of target pod: all there are, in whatever condition
	terminating []netip.AddrPort // what is no backend any more, and keeps what it has
}

func (b *builder) backing(s *edge.Service, port edge.ServicePort, req request, addresses []netip.Addr) backing {
	var to backing
	to.target, to.refused = targetOf(req.target, port, addresses)
	all := endpointsOf(s, port)
	if ours := slices.IndexFunc(all, b.isCircular); ours >= 0 {
		to.note = fmt.Sprintf("its endpoint %s is this machine, and left out: connections would go in a circle", all[ours].Addr)
		all = of(all, func(e edge.Endpoint) bool { return !b.isCircular(e) })
	}
	note := to.note
	endpoints, terminating := usable(all)
	how := asked{check: req.health, proxy: req.of(port.Protocol).SendProxyProtocol}
	switch to.target {
	case edge.TargetAddress:
		to.backends = b.addressBackends(addresses, port, how)
	case edge.TargetPod:
		if req.plane != edge.DataPlaneNAT {
			endpoints = ofOneFamily(endpoints, s.IPFamilies)
		}
		to.backends = b.podBackends(endpoints, port.Protocol, how)
		to.pods = all
	case edge.TargetNodePort:
		if req.plane == edge.DataPlaneNAT {
			to = b.nodeBackendsByFamily(s, port, endpoints, terminating, how)
		} else {
			to = b.nodeBackends(s, port, ofOneFamily(endpoints, s.IPFamilies), terminating, s.IPFamilies, how)
		}
		to.target, to.note = edge.TargetNodePort, cmp.Or(to.note, note)
		if at := req.health.Port; at != 0 && req.health.Interval > 0 && port.Protocol == edge.TCP {
			b.problem(edge.Problem{
				Object: "service/" + s.Key(), What: fmt.Sprintf("health.port %d is not asked: of target nodePort the node port itself is checked", at),
				Remedy: "use target: pod where pods can be reached from this machine, or a check without a port (annotation " + annHealthCheck + ")",
			})
		}
	default: // refused
	}
	if req.plane == edge.DataPlaneNAT {
		to.terminating = b.terminating(s, port, all, to)
	}
	switch {
	case len(to.backends) > 0:
	case len(endpoints) == 0:
		to.reason = "no endpoint is ready; " + turnedAway(port.Protocol, req.plane)
	default:
		to.reason = "no node may take connections for it; " + turnedAway(port.Protocol, req.plane)
		to.remedy = b.nodeRemedy(endpoints, s.Local)
	}
	return to
}

// excludeLabel keeps load balancers off a node. kubeadm gives it to control
// planes, so that in a cluster of one node there is no other.
const excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"

// nodeRemedy is for when there are endpoints, and no node may take connections
// for them.
func (b *builder) nodeRemedy(endpoints []edge.Endpoint, local bool) string {
	hasNode := func(e edge.Endpoint) bool { return e.Node != "" }
	local = local && slices.ContainsFunc(endpoints, hasNode) // else all nodes have them
	excluded := 0
	for _, n := range b.in.Cluster.Nodes {
		holds := slices.ContainsFunc(endpoints, func(e edge.Endpoint) bool { return e.Node == n.Name })
		switch {
		case local && !holds:
		case n.Excluded && !b.in.Config.Kubernetes.IgnoreExcludeLabel:
			excluded++
		default:
			return "look for missing node addresses, and nodes that are leaving (taint ToBeDeletedByClusterAutoscaler)"
		}
	}
	switch {
	case excluded > 0:
		return "each node for it has the label " + excludeLabel + ": set kubernetes.ignoreExcludeLabel: true, or remove the label"
	case len(b.in.Cluster.Nodes) == 0:
		return "there is no node"
	default:
		return "no node that holds its pods is known"
	}
}

// isCircular says whether an endpoint, of a slice that somebody has written by
// hand, is a door of ours: an address of a pool that is on this machine, or one
// of its own at a port that this Service or an older one wants to open.
func (b *builder) isCircular(e edge.Endpoint) bool {
	a := e.Addr.Addr()
	return b.pooled[a] || b.own[a] && b.wanted[doorKey{protocol: e.Protocol, port: e.Addr.Port()}]
}

// foreignAddresses are the addresses that another controller has assigned.
// This machine's own are not among them: relaying to oneself never ends.
func (b *builder) foreignAddresses(s *edge.Service) []netip.Addr {
	if s.StatusOurs {
		return nil
	}
	var addrs []netip.Addr
	for _, in := range s.Ingress {
		local := in.IP.IsLoopback() || in.IP.IsUnspecified() || in.IP.IsLinkLocalUnicast() || in.IP.IsMulticast()
		if in.IP.IsValid() && !local && !b.own[in.IP] {
			addrs = append(addrs, in.IP)
		}
	}
	return addrs
}

func targetOf(asked edge.Target, port edge.ServicePort, addresses []netip.Addr) (target edge.Target, why string) {
	if asked == edge.TargetAuto || asked == "" {
		switch {
		case len(addresses) > 0:
			return edge.TargetAddress, ""
		case port.NodePort != 0:
			return edge.TargetNodePort, ""
		default:
			return edge.TargetPod, ""
		}
	}
	if asked == edge.TargetAddress && len(addresses) == 0 {
		return "", "target address: no other controller has given it an address"
	}
	if asked == edge.TargetNodePort && port.NodePort == 0 {
		return "", "target nodePort: the port has none (allocateLoadBalancerNodePorts: false)"
	}
	return asked, ""
}

func (b *builder) addressBackends(addresses []netip.Addr, port edge.ServicePort, how asked) []edge.Backend {
	var backends []edge.Backend
	for _, a := range addresses {
		backends = append(backends, b.probed(edge.Backend{
			Addr: netip.AddrPortFrom(a, port.Port), Weight: 1, Target: edge.TargetAddress,
		}, port.Protocol, how))
	}
	return finishBackends(backends)
}

func (b *builder) row(s *edge.Service, zone string, port edge.ServicePort) Exposure {
	name := s.Key()
	if port.Port != 0 {
		name += ":" + portText(port.Protocol, port.Port)
	}
	return Exposure{Name: name, Service: s.Key(), Zone: zone, Protocol: port.Protocol, Port: port.Port, Why: "service/" + s.Key()}
}

// notOurs adds the row of a Service that gatehouse leaves alone: to be seen in
// the plan, but no problem, and no event.
func (b *builder) notOurs(s *edge.Service, reason, remedy string) {
	row := b.row(s, "", edge.ServicePort{Protocol: edge.TCP})
	row.Reason, row.Remedy = reason, remedy
	b.state.Exposures = append(b.state.Exposures, row)
}

// refuse closes a whole Service.
func (b *builder) refuse(s *edge.Service, why refusal) {
	row := b.row(s, "", edge.ServicePort{Protocol: edge.TCP})
	row.code, row.Reason, row.Remedy = why.code, why.reason, why.remedy
	b.state.Exposures = append(b.state.Exposures, row)
	b.event(s.Key(), true, why.code, why.reason+"; "+why.remedy)
	if why.code != "NoZone" {
		b.problem(edge.Problem{Object: row.Why, What: why.reason, Remedy: why.remedy})
	}
}
