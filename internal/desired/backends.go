package desired

import (
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// asked is how the health of a backend is asked for.
type asked struct {
	check edge.HealthCheck
	proxy edge.ProxyProtocol // that connections to the backend begin with
	// healthCheckNodePort and healthz are where kube-proxy tells of the Service
	// on its node, and of its node; zero: it is not asked.
	healthCheckNodePort, healthz netip.AddrPort
	// alive is the healthz of the node of a pod that is not asked itself. kube-proxy
	// is not in its way: only that nobody answers there says something of the pod.
	alive netip.AddrPort
}

// probed registers the probes of a backend and takes its state from what they
// have found: at the health check node port if there is one, else by the check
// of the backend, and besides from what kube-proxy says of the node. A check of
// a UDP port is not made: one cannot connect to it, and what one could send
// there each application would take for something else, so that a backend of
// which nothing else tells counts as up.
func (b *builder) probed(backend edge.Backend, protocol edge.Protocol, how asked) edge.Backend {
	backend.State = edge.Up
	if how.check.Interval == 0 {
		return backend
	}
	var own edge.Health
	if p, ok := probeOf(backend, protocol, how); ok {
		own = b.ask(p)
		backend.Probe, backend.State, backend.Error, backend.Since = p.Addr, own.State, own.Error, own.Since
	}
	if k := b.in.Config.Kubernetes; how.alive.IsValid() && k.Health.Interval > 0 {
		p := edge.Probe{Kind: edge.ProbeHealthz, Addr: how.alive, HealthCheck: plain(k.Health)}
		backend.Probe = p.Addr
		if h := b.ask(p); h.State == edge.Down && h.Silent {
			backend.State, backend.Since, backend.Error = edge.Down, h.Since, "its node does not answer: "+h.Error
		}
	}
	if k := b.in.Config.Kubernetes; how.healthz.IsValid() && k.Health.Interval > 0 {
		// Whatever the Service wants checked: it is one probe for the whole node.
		p := edge.Probe{Kind: edge.ProbeHealthz, Addr: how.healthz, HealthCheck: plain(k.Health)}
		h := b.ask(p)
		if !backend.Probe.IsValid() {
			backend.Probe = p.Addr
		}
		switch isConnect := how.check.Type == "" || how.check.Type == edge.CheckTCP; {
		case worse(h.State, backend.State):
			backend.State, backend.Error, backend.Since = h.State, h.Error, h.Since
		case backend.State == edge.Down && own.Silent && isConnect && h.Confirmed:
			// kube-proxy sends what comes to any node to any pod. When a node dies,
			// the ports of all others swallow the connections that are for its pods,
			// until Kubernetes ends their readiness: that is nothing against the
			// others, and without them there would be nobody.
			backend.State = edge.Up
			backend.Error = "its kube-proxy is well, and a pod behind its port does not answer: " + own.Error
		}
	}
	return backend
}

// ask registers a probe and returns what it has found.
func (b *builder) ask(p edge.Probe) edge.Health {
	b.probes[p] = true
	h, ok := b.in.Health[p]
	if !ok {
		h.State = edge.Pending
	}
	return h
}

// probeOf is the probe of a backend itself, if there is one.
func probeOf(backend edge.Backend, protocol edge.Protocol, how asked) (edge.Probe, bool) {
	check := how.check
	port := check.Port
	check.Port = 0 // the address has it
	p := edge.Probe{Kind: edge.ProbeBackend, Addr: backend.Addr, HealthCheck: check}
	switch {
	case how.healthCheckNodePort.IsValid():
		p.Kind, p.Addr = edge.ProbeHealthCheckNodePort, how.healthCheckNodePort
		if protocol == edge.TCP {
			p.Through = backend.Addr
		} else {
			p.HealthCheck = plain(check)
		}
	case protocol != edge.TCP:
		return edge.Probe{}, false
	case port != 0 && backend.Target != edge.TargetNodePort:
		p.Addr = netip.AddrPortFrom(backend.Addr.Addr(), port)
		return p, true // who listens there is not told of clients
	}
	if p.Type != "" && p.Type != edge.CheckTCP && how.proxy != edge.ProxyProtocolNone {
		p.SendProxyProtocol = how.proxy
	}
	return p, true
}

// plain is when a check is made, without what it asks.
func plain(c edge.HealthCheck) edge.HealthCheck {
	return edge.HealthCheck{Interval: c.Interval, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall}
}

// worse says whether a backend in the first state is of less use.
func worse(x, y edge.BackendState) bool {
	order := []edge.BackendState{edge.Up, edge.Pending, edge.Down}
	return slices.Index(order, x) > slices.Index(order, y)
}

// finishBackends sorts backends by address. The same address twice is one
// backend with the sum of the weights.
func finishBackends(backends []edge.Backend) []edge.Backend {
	slices.SortStableFunc(backends, func(x, y edge.Backend) int { return x.Addr.Compare(y.Addr) })
	merged := backends[:0]
	for _, next := range backends {
		if n := len(merged); n > 0 && merged[n-1].Addr == next.Addr {
			merged[n-1].Weight += next.Weight
			merged[n-1].Pods = append(merged[n-1].Pods, next.Pods...)
			continue
		}
		merged = append(merged, next)
	}
	for i := range merged {
		slices.Sort(merged[i].Pods)
	}
	return merged
}

// inTurn is the state of the backends that take new connections: those that
// are up, or if there are none, those not known yet, or else those that are
// down: it may be the checks that are wrong. With refuse the last are not
// asked, and the state is one that no backend with a weight has.
func inTurn(backends []edge.Backend, refuse bool) edge.BackendState {
	for _, state := range []edge.BackendState{edge.Up, edge.Pending} {
		if slices.ContainsFunc(backends, func(b edge.Backend) bool { return b.State == state && b.Weight > 0 }) {
			return state
		}
	}
	if refuse {
		return edge.Pending
	}
	return edge.Down
}

// shares computes the part of new connections that each backend gets now, and
// from it, where the pods behind a backend are known, what each pod gets.
// Given pods are those that kube-proxy spreads over whichever node is chosen.
func shares(backends []edge.Backend, given []PodShare, refuse bool) ([]edge.Backend, []PodShare) {
	state, total := inTurn(backends, refuse), 0
	for _, backend := range backends {
		if backend.State == state {
			total += backend.Weight
		}
	}
	// A new slice: the rows of other zones hold the same backends.
	out := slices.Clone(backends)
	for i := range out {
		if out[i].State == state && total > 0 {
			out[i].Share = float64(out[i].Weight) / float64(total)
		}
	}
	if given != nil {
		each := 0.0
		if total > 0 {
			each = 1 / float64(len(given))
		}
		pods := slices.Clone(given)
		for i := range pods {
			pods[i].Share = each
		}
		return out, pods
	}
	n := 0
	for _, backend := range out {
		n += len(backend.Pods)
	}
	var pods []PodShare
	if n > 0 {
		pods = make([]PodShare, 0, n)
	}
	for _, backend := range out {
		for _, pod := range backend.Pods {
			pods = append(pods, PodShare{Pod: pod, Node: backend.Node, Share: backend.Share / float64(len(backend.Pods))})
		}
	}
	slices.SortFunc(pods, func(x, y PodShare) int { return strings.Compare(x.Pod, y.Pod) })
	return out, pods
}

// endpointsOf are those of a port, in whatever condition. They belong to the
// cluster: most Services have one port, and all of them.
func endpointsOf(s *edge.Service, port edge.ServicePort) []edge.Endpoint {
	return of(s.Endpoints, func(e edge.Endpoint) bool { return e.PortName == port.Name && e.Protocol == port.Protocol })
}

// of returns the endpoints that are so: the same slice if all are.
func of(endpoints []edge.Endpoint, isSo func(edge.Endpoint) bool) []edge.Endpoint {
	n := 0
	for _, e := range endpoints {
		if isSo(e) {
			n++
		}
	}
	if n == len(endpoints) {
		return endpoints
	}
	some := make([]edge.Endpoint, 0, n)
	for _, e := range endpoints {
		if isSo(e) {
			some = append(some, e)
		}
	}
	return some
}

// usable returns those of the endpoints of a port that take new connections: the
// ready ones, or if the whole Service has none for the port, those that serve
// while they terminate (KEP-1669).
func usable(all []edge.Endpoint) (endpoints []edge.Endpoint, terminating bool) {
	if ready := of(all, func(e edge.Endpoint) bool { return e.Ready }); len(ready) > 0 {
		return ready, false
	}
	return of(all, func(e edge.Endpoint) bool { return e.Serving && e.Terminating }), true
}

// ofOneFamily leaves out the second address of pods that have two, which are one
// endpoint to the relay: those of the first IP family that has any count.
func ofOneFamily(endpoints []edge.Endpoint, families []string) []edge.Endpoint {
	for _, family := range families {
		if some := of(endpoints, func(e edge.Endpoint) bool { return e.Addr.Addr().Is4() == (family == "IPv4") }); len(some) > 0 {
			return some
		}
	}
	return endpoints
}

// podBackends are the endpoints themselves.
func (b *builder) podBackends(endpoints []edge.Endpoint, protocol edge.Protocol, how asked) []edge.Backend {
	backends, pods := make([]edge.Backend, 0, len(endpoints)), make([]string, len(endpoints))
	for i, e := range endpoints {
		backend := edge.Backend{Addr: e.Addr, Weight: 1, Target: edge.TargetPod, Node: e.Node}
		if pods[i] = e.Pod; e.Pod != "" {
			backend.Pods = pods[i : i+1 : i+1]
		}
		how := how
		if n, k := b.nodes[e.Node], b.in.Config.Kubernetes; protocol != edge.TCP && n != nil && len(n.Addrs) > 0 && k.HealthzPort != 0 {
			how.alive = netip.AddrPortFrom(n.Addrs[0], k.HealthzPort)
		}
		backends = append(backends, b.probed(backend, protocol, how))
	}
	return finishBackends(backends)
}

// staleNote is what an exposure says whose weights are not those of the API.
const staleNote = "the Kubernetes API does not answer; weights are what kube-proxy says on each node"

// nodeBackends are the node ports of the nodes that should get connections.
// With externalTrafficPolicy Local a node weighs as many ready pods as it
// holds, so that each pod gets the same. With Cluster, or where no endpoint
// names its node, any node can take a connection and all weigh the same; the
// pods are then returned too, since kube-proxy spreads over all of them. No
// probe takes out a node whose UDP (or SCTP) port is dead; so nodes with pods come first
// there: Kubernetes ends the readiness of pods on a dead node.
//
// What the API has said may be long over when it does not answer. kube-proxy
// has what is true on its node, so that under Local each node is asked, and
// weighs what kube-proxy says there, or what the API said last.
func (b *builder) nodeBackends(s *edge.Service, port edge.ServicePort, endpoints []edge.Endpoint, terminating bool, families []string, how asked) (to backing) {
	perNode := map[string][]string{}
	for _, e := range endpoints {
		if e.Node != "" {
			perNode[e.Node] = append(perNode[e.Node], e.Pod)
		}
	}
	named := len(perNode) > 0
	askAll := b.in.Cluster.Stale && s.Local && s.HealthCheckNodePort != 0 && how.check.Interval > 0 && (named || len(endpoints) == 0)
	if len(endpoints) == 0 && !askAll {
		return to
	}
	local := s.Local && named || askAll
	isHolding := func(n edge.Node) bool { return len(perNode[n.Name]) > 0 }
	nodes := slices.DeleteFunc(slices.Clone(b.in.Cluster.Nodes), func(n edge.Node) bool {
		_, ok := nodeAddr(n, families)
		return !ok || n.Excluded && !b.in.Config.Kubernetes.IgnoreExcludeLabel || n.Leaving || local && !askAll && !isHolding(n)
	})
	if port.Protocol != edge.TCP && !local && slices.ContainsFunc(nodes, isHolding) {
		nodes = slices.DeleteFunc(nodes, func(n edge.Node) bool { return !isHolding(n) })
	}
	for _, n := range nodes {
		addr, _ := nodeAddr(n, families)
		pods := perNode[n.Name]
		backend := edge.Backend{Addr: netip.AddrPortFrom(addr, port.NodePort), Weight: 1, Target: edge.TargetNodePort, Node: n.Name}
		how := how
		if local {
			backend.Weight = len(pods)
			backend.Pods = slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return p == "" })
			// kube-proxy learns of a pod up to a second after the API does, and
			// drops what comes before; it answers here once it is ready. It counts
			// no terminating pods, though it still sends connections to them; how
			// long they do is not known while the API does not answer.
			if s.HealthCheckNodePort != 0 && (!terminating || askAll) {
				how.healthCheckNodePort = netip.AddrPortFrom(addr, s.HealthCheckNodePort)
			}
		} else if k := b.in.Config.Kubernetes; k.HealthzPort != 0 {
			how.healthz = netip.AddrPortFrom(addr, k.HealthzPort)
		}
		if askAll {
			to.note = staleNote
			p, _ := probeOf(backend, port.Protocol, how)
			if told := b.in.Health[p].Weight; told > 0 && told != backend.Weight {
				backend.Weight, backend.Pods = told, nil // which ones is not told
			}
		}
		to.backends = append(to.backends, b.probed(backend, port.Protocol, how))
	}
	to.backends = finishBackends(to.backends)
	if local {
		return to
	}
	to.spread = []PodShare{}
	for _, e := range endpoints {
		if e.Pod != "" {
			to.spread = append(to.spread, PodShare{Pod: e.Pod, Node: e.Node})
		}
	}
	slices.SortFunc(to.spread, func(x, y PodShare) int { return strings.Compare(x.Pod, y.Pod) })
	return to
}

// nodeAddr picks the node's address of the first of the IP families that it has.
func nodeAddr(n edge.Node, families []string) (netip.Addr, bool) {
	for _, family := range families {
		for _, a := range n.Addrs {
			if a.Is4() == (family == "IPv4") {
				return a, true
			}
		}
	}
	if len(n.Addrs) > 0 && len(families) == 0 {
		return n.Addrs[0], true
	}
	return netip.Addr{}, false
}
