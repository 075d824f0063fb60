package desired

import (
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// probed registers the probe of a backend and takes its state from what the
// probe has found: at the health check node port if there is one, else by
// connecting to the backend. To a UDP port one cannot connect, and what one
// could send there each application would take for something else, so that
// such a backend counts as up.
func (b *builder) probed(backend edge.Backend, protocol edge.Protocol, healthCheckNodePort netip.AddrPort, check edge.HealthCheck) edge.Backend {
	p := edge.Probe{Kind: edge.ProbeBackend, Addr: backend.Addr, HealthCheck: check}
	if healthCheckNodePort.IsValid() {
		p.Kind, p.Addr = edge.ProbeHealthCheckNodePort, healthCheckNodePort
		if protocol == edge.TCP {
			p.Through = backend.Addr
		}
	}
	if check.Interval == 0 || protocol != edge.TCP && p.Kind == edge.ProbeBackend {
		backend.State = edge.Up
		return backend
	}
	b.probes[p] = true
	backend.Probe = p.Addr
	h, ok := b.in.Health[p]
	if !ok {
		h.State = edge.Pending
	}
	backend.State, backend.Error = h.State, h.Error
	return backend
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
// are up, or if there are none, those not known yet.
func inTurn(backends []edge.Backend) edge.BackendState {
	for _, backend := range backends {
		if backend.State == edge.Up && backend.Weight > 0 {
			return edge.Up
		}
	}
	return edge.Pending
}

func anyUsable(backends []edge.Backend) bool {
	state := inTurn(backends)
	return slices.ContainsFunc(backends, func(b edge.Backend) bool { return b.State == state && b.Weight > 0 })
}

// shares computes the part of new connections that each backend gets now, and
// from it, where the pods behind a backend are known, what each pod gets.
// Given pods are those that kube-proxy spreads over whichever node is chosen.
func shares(backends []edge.Backend, given []PodShare) ([]edge.Backend, []PodShare) {
	state, total := inTurn(backends), 0
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
	var pods []PodShare
	for _, backend := range out {
		for _, pod := range backend.Pods {
			pods = append(pods, PodShare{Pod: pod, Node: backend.Node, Share: backend.Share / float64(len(backend.Pods))})
		}
	}
	slices.SortFunc(pods, func(x, y PodShare) int { return strings.Compare(x.Pod, y.Pod) })
	return out, pods
}

// usable returns the endpoints of a port that take new connections: the ready
// ones, or if the whole Service has none for the port, those that serve while
// they terminate (KEP-1669). A pod with two addresses is one endpoint: those of
// the first IP family that has any count.
func usable(s *edge.Service, port edge.ServicePort) (endpoints []edge.Endpoint, terminating bool) {
	var ready, ending []edge.Endpoint
	for _, e := range s.Endpoints {
		switch {
		case e.PortName != port.Name || e.Protocol != port.Protocol:
		case e.Ready:
			ready = append(ready, e)
		case e.Serving && e.Terminating:
			ending = append(ending, e)
		}
	}
	if len(ready) > 0 {
		return ofOneFamily(ready, s.IPFamilies), false
	}
	return ofOneFamily(ending, s.IPFamilies), true
}

func ofOneFamily(endpoints []edge.Endpoint, families []string) []edge.Endpoint {
	for _, family := range families {
		of := slices.DeleteFunc(slices.Clone(endpoints), func(e edge.Endpoint) bool { return e.Addr.Addr().Is4() != (family == "IPv4") })
		if len(of) > 0 {
			return of
		}
	}
	return endpoints
}

// podBackends are the endpoints themselves.
func (b *builder) podBackends(endpoints []edge.Endpoint, protocol edge.Protocol, check edge.HealthCheck) []edge.Backend {
	var backends []edge.Backend
	for _, e := range endpoints {
		backend := edge.Backend{Addr: e.Addr, Weight: 1, Target: edge.TargetPod, Node: e.Node}
		if e.Pod != "" {
			backend.Pods = []string{e.Pod}
		}
		backends = append(backends, b.probed(backend, protocol, netip.AddrPort{}, check))
	}
	return finishBackends(backends)
}

// nodeBackends are the node ports of the nodes that should get connections.
// With externalTrafficPolicy Local a node weighs as many ready pods as it
// holds, so that each pod gets the same. With Cluster, or where no endpoint
// names its node, any node can take a connection and all weigh the same; the
// pods are then returned too, since kube-proxy spreads over all of them. No
// probe takes out a node whose UDP port is dead; so nodes with pods come first
// there: Kubernetes ends the readiness of pods on a dead node.
func (b *builder) nodeBackends(s *edge.Service, port edge.ServicePort, endpoints []edge.Endpoint, terminating bool, check edge.HealthCheck) ([]edge.Backend, []PodShare) {
	if len(endpoints) == 0 {
		return nil, nil
	}
	perNode := map[string][]string{}
	for _, e := range endpoints {
		if e.Node != "" {
			perNode[e.Node] = append(perNode[e.Node], e.Pod)
		}
	}
	local := s.Local && len(perNode) > 0
	isHolding := func(n edge.Node) bool { return len(perNode[n.Name]) > 0 }
	nodes := slices.DeleteFunc(slices.Clone(b.in.Cluster.Nodes), func(n edge.Node) bool {
		_, ok := nodeAddr(n, s.IPFamilies)
		return !ok || n.Excluded || n.Leaving || local && !isHolding(n)
	})
	if port.Protocol == edge.UDP && slices.ContainsFunc(nodes, isHolding) {
		nodes = slices.DeleteFunc(nodes, func(n edge.Node) bool { return !isHolding(n) })
	}
	var backends []edge.Backend
	for _, n := range nodes {
		addr, _ := nodeAddr(n, s.IPFamilies)
		pods := perNode[n.Name]
		backend := edge.Backend{Addr: netip.AddrPortFrom(addr, port.NodePort), Weight: 1, Target: edge.TargetNodePort, Node: n.Name}
		var at netip.AddrPort
		if local {
			backend.Weight = len(pods)
			backend.Pods = slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return p == "" })
			// kube-proxy learns of a pod up to a second after the API does, and
			// drops what comes before; it answers here once it is ready. It counts
			// no terminating pods, though it still sends connections to them.
			if s.HealthCheckNodePort != 0 && !terminating {
				at = netip.AddrPortFrom(addr, s.HealthCheckNodePort)
			}
		}
		backends = append(backends, b.probed(backend, port.Protocol, at, check))
	}
	backends = finishBackends(backends)
	if local {
		return backends, nil
	}
	spread := []PodShare{}
	for _, e := range endpoints {
		if e.Pod != "" {
			spread = append(spread, PodShare{Pod: e.Pod, Node: e.Node})
		}
	}
	slices.SortFunc(spread, func(x, y PodShare) int { return strings.Compare(x.Pod, y.Pod) })
	return backends, spread
}

// nodeAddr picks the node's address of the Service's first IP family that it has.
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
