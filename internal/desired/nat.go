package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// ofKernel leaves of terms what the kernel keeps. The rest are the relay's
// defaults, or transparent, which asks for what the backends see anyway: what
// else somebody asked for has been refused, or is noted.
func ofKernel(t edge.Terms) edge.Terms {
	return edge.Terms{
		DrainTimeout: t.DrainTimeout, Balance: t.Balance, AffinityTimeout: t.AffinityTimeout, SendProxyProtocol: edge.ProxyProtocolNone,
		Masquerade: t.Masquerade, RefuseWhenDown: t.RefuseWhenDown, CloseWhenDown: t.CloseWhenDown,
	}
}

// byKernel refuses what a Service asks for, and the kernel cannot do.
func (r *request) byKernel(s *edge.Service) refusal {
	isTCP := slices.ContainsFunc(s.Ports, func(p edge.ServicePort) bool { return p.Protocol == edge.TCP })
	for _, relayed := range []struct {
		name string
		asks bool
		why  string
	}{
		{annHostnames, len(r.hostnames) > 0, "names are in the TLS hello, which only the relay reads"},
		{annSendProxy, proxies(r.terms) && isTCP, "only the relay can put a PROXY protocol header in front of a connection"},
		{annTransparent, r.terms.Transparent, "nothing is relayed, transparent or not, and backends see the client's address"},
		{annBalance, r.terms.Balance == edge.BalanceLeastConnections, "only the relay compares how many connections backends have"},
	} {
		if !relayed.asks || !r.said[relayed.name] {
			continue
		}
		asked := "kubernetes.dataPlane: nat"
		if r.said[annDataPlane] {
			asked = "annotation " + annDataPlane + ": nat"
		}
		return refusal{
			"AnnotationInvalid", fmt.Sprintf("annotation %s with %s: %s", relayed.name, asked, relayed.why),
			fmt.Sprintf("annotation %s: proxy, or remove annotation %s", annDataPlane, relayed.name),
		}
	}
	if r.terms.Balance == edge.BalanceLeastConnections {
		r.terms.Balance = edge.BalanceRandom
	}
	return refusal{}
}

// ofRelayOnly closes a Service that asks for the kernel where the operator has
// set limits, or a header that tells who the client is: they hold for it too,
// and only the relay keeps them.
func (b *builder) ofRelayOnly(r request, p edge.Protocol) refusal {
	if r.plane != edge.DataPlaneNAT {
		return refusal{}
	}
	for _, set := range b.in.Config.Kubernetes.OfRelay {
		switch set.Key {
		case "maxConnections", "maxConnectionsPerClient", "maxRatePerClient":
		case "acceptProxyProtocol":
			if p != edge.TCP {
				continue
			}
		case "sendProxyProtocol":
			if p != edge.TCP || !proxies(r.terms) {
				continue
			}
		default: // see unkept
			continue
		}
		remedy := "annotation " + annDataPlane + ": proxy, or the operator removes it"
		if set.Key == "sendProxyProtocol" {
			remedy = "annotation " + annDataPlane + ": proxy, or " + annSendProxy + ": none if it expects no header"
		}
		return refusal{"NotWithNAT", fmt.Sprintf("data plane nat %s, as kubernetes.%s asks (%s)", set.Why, set.Key, set.Pos), remedy}
	}
	return refusal{}
}

// unkept are the notes on what is said of connections for all Services, or by
// this one, and does not hold for one that the kernel moves. It harms nobody.
func (b *builder) unkept(r request) []string {
	var notes []string
	for _, set := range b.in.Config.Kubernetes.OfRelay {
		switch {
		case set.Key == "idleTimeout" && r.said[annIdleTimeout]: // said below
		case set.Key == "balance" && r.said[annBalance]:
		case set.Key == "balance" || set.Key == "connectTimeout" || set.Key == "idleTimeout":
			notes = append(notes, fmt.Sprintf("kubernetes.%s (%s) is without effect: data plane nat %s", set.Key, set.Pos, set.Why))
		}
	}
	if r.said[annIdleTimeout] && r.terms.IdleTimeout > 0 {
		notes = append(notes, fmt.Sprintf("annotation %s is without effect: data plane nat has the idle timeouts of the kernel", annIdleTimeout))
	}
	return notes
}

// notByKernel is why a row cannot be moved by the kernel of this machine. What
// it cannot do for one IP family only leaves the backends of the other.
func (b *builder) notByKernel(row *Exposure) refusal {
	remedy := "it opens once this machine has what that takes; " + fieldOf(row, "dataPlane", "proxy") + " does without"
	if b.in.NoNAT != "" {
		return refusal{"NoNAT", "the kernel is to move it (data plane nat): " + b.in.NoNAT, remedy}
	}
	if i := slices.IndexFunc(row.Backends, func(k edge.Backend) bool { return k.Addr.Addr().IsLoopback() }); i >= 0 {
		return refusal{
			"NoTarget", fmt.Sprintf("backend %s is a loopback address, and the kernel drops packets from elsewhere for those (data plane nat)", row.Backends[i].Addr),
			"use another address of this machine, or " + fieldOf(row, "dataPlane", "proxy"),
		}
	}
	// kube-proxy on this machine would have to rewrite what has been rewritten.
	if i := slices.IndexFunc(row.Backends, func(k edge.Backend) bool { return k.Target == edge.TargetNodePort && b.own[k.Addr.Addr()] }); i >= 0 {
		return refusal{
			"NoTarget", fmt.Sprintf("node %s is this machine, and the kernel rewrites a packet only once: for data plane nat, or for kube-proxy", row.Backends[i].Node),
			fieldOf(row, "target", "pod") + ", or " + fieldOf(row, "dataPlane", "proxy"),
		}
	}
	if !b.in.NoForwarding4 && !b.in.NoForwarding6 {
		return refusal{}
	}
	var reasons []string
	var backends []edge.Backend
	for f, none := range []bool{b.in.NoForwarding4, b.in.NoForwarding6} {
		lost := 0
		for _, k := range row.Backends {
			switch {
			case family(k.Addr.Addr()) != f:
			case none && !b.own[k.Addr.Addr()]:
				lost++
			default:
				backends = append(backends, k)
			}
		}
		if lost > 0 {
			reasons = append(reasons, fmt.Sprintf("this machine forwards no %s packets (sysctl %s is 0)", familyNames[f], []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"}[f]))
		}
	}
	switch {
	case len(reasons) == 0: // it is the other family
	case len(backends) == 0:
		return refusal{"NoForwarding", strings.Join(reasons, ", and "), "set it to 1, or have gatehouse do it (links: forwarding: true), or " + fieldOf(row, "dataPlane", "proxy")}
	default:
		row.Backends = backends
		row.Notes = append(row.Notes, reasons...)
		b.problem(edge.Problem{Object: objectOf(*row), What: reasons[0], Remedy: "set it to 1, or have gatehouse do it (links: forwarding: true), or " + fieldOf(row, "dataPlane", "proxy")})
	}
	return refusal{}
}

var familyNames = []string{"IPv4", "IPv6"}

// sharesByFamily are the shares of backends of which clients only get those of
// their own IP family: those of each family are a whole. A pod has its share of
// IPv4 clients, or if there is no such backend, of IPv6 ones.
func sharesByFamily(backends []edge.Backend, given []PodShare, refuse bool) ([]edge.Backend, []PodShare) {
	n := slices.IndexFunc(backends, func(k edge.Backend) bool { return family(k.Addr.Addr()) == 1 }) // they are sorted
	if n <= 0 || n == len(backends) {
		return shares(backends, given, refuse)
	}
	four, pods := shares(backends[:n], given, refuse)
	six, _ := shares(backends[n:], given, refuse)
	return append(four, six...), pods
}

// sayFamilies notes whose clients find nobody, at no address then, and whose
// find others than the shares of pods say.
func (b *builder) sayFamilies(row *Exposure) {
	var has [2]bool
	for _, k := range row.Backends {
		has[family(k.Addr.Addr())] = true
	}
	for f, name := range familyNames {
		of := func(a netip.Addr) bool { return family(a) == f }
		if !has[f] && has[1-f] && slices.ContainsFunc(row.Addresses, of) {
			row.Addresses = slices.DeleteFunc(row.Addresses, of)
			row.Notes = append(row.Notes, fmt.Sprintf("%s clients are refused: it has no %s backend", name, name))
		}
	}
	if !has[0] || !has[1] || row.behind == nil || row.behind.spread != nil {
		return
	}
	ofSix := map[string]float64{}
	for _, k := range row.Backends {
		for _, pod := range k.Pods {
			if family(k.Addr.Addr()) == 1 {
				ofSix[pod] += k.Share / float64(len(k.Pods))
			}
		}
	}
	for _, p := range row.Shares {
		if d := ofSix[p.Pod] - p.Share; d > 1e-9 || d < -1e-9 {
			row.Notes = append(row.Notes, "the shares of pods are those of IPv4 clients; those of IPv6 clients are different")
			return
		}
	}
}

// masquerading is of which clients the backends of a row see this machine's
// address, because they would answer them without it.
type masquerading struct {
	always bool
	pairs  int    // of backends, and interfaces that clients come in on
	of     int    // how many of those pairs are masqueraded
	device string // of the first of them
	place  string
}

func (m masquerading) all() bool { return m.always || m.of > 0 && m.of == m.pairs }

// masqueradingOf tells what the kernel will do (State.Hairpins), as far as the
// addresses say where a backend is.
func (b *builder) masqueradingOf(row Exposure, f edge.Frontend, listens []edge.Listen) masquerading {
	m := masquerading{always: f.Masquerade}
	sides := b.sidesOf(listens)
	for i := range sides {
		for _, backend := range row.Backends {
			m.pairs++
			if b.own[backend.Addr.Addr()] {
				continue // it answers through this machine, which it is on
			}
			if device := b.onLink(backend, sides[i:i+1]); device != "" {
				if m.of == 0 {
					m.device, m.place = device, placeOfBackend(backend)
				}
				m.of++
			}
		}
	}
	return m
}

// sayClientOfKernel is sayClient for rows that the kernel moves.
func (b *builder) sayClientOfKernel(row *Exposure, masked masquerading) {
	switch {
	case atKubeProxy(row.Target) && !row.of.local:
		row.Client = "a node's: kube-proxy replaces it (externalTrafficPolicy: Cluster)"
		row.ClientRemedy = "externalTrafficPolicy: Local, or " + fieldOf(row, "target", "pod")
	case masked.always:
		row.Client = "this machine's address: masqueraded (masquerade: always)"
		row.ClientRemedy = "masquerade: auto, if the backends' way to clients is through this machine"
	case masked.all():
		row.Client = fmt.Sprintf("this machine's address: masqueraded, as %s is in the network of %s, where its clients are, and would answer them past this machine", masked.place, masked.device)
		if row.Protocol == edge.TCP {
			row.ClientRemedy = fieldOf(row, "dataPlane", "proxy") + " with " + fieldOf(row, "sendProxyProtocol", "v2") + " (if the application understands it)"
		}
	case masked.of > 0:
		row.Client = fmt.Sprintf("the client's own, if this machine is the backends' way to it; this machine's where it is masqueraded, as %s is in the network of %s, where clients are too", masked.place, masked.device)
	default:
		row.Client, row.ClientSeen = "the client's own, if this machine is the backends' way to it", true
	}
}

// hairpins are the ways by which a packet would go back into the network that it
// came from.
func (b *builder) hairpins() {
	for _, in := range b.in.Interfaces {
		if !b.natDevices[in.Name] {
			continue
		}
		for _, out := range b.in.Interfaces {
			if in.Name == out.Name || inOneNetwork(in, out) {
				b.state.Hairpins = append(b.state.Hairpins, [2]string{in.Name, out.Name})
			}
		}
	}
	slices.SortFunc(b.state.Hairpins, func(x, y [2]string) int { return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1])) })
}

// inOneNetwork says whether what two interfaces are connected to is one network.
// An address alone (/32) says nothing of that.
func inOneNetwork(x, y edge.Interface) bool {
	for _, p := range x.Addrs {
		for _, q := range y.Addrs {
			if !p.IsSingleIP() && !q.IsSingleIP() && p.Overlaps(q) {
				return true
			}
		}
	}
	return false
}

// nodeBackendsByFamily are the node ports at all addresses that clients of each
// IP family of the Service can be sent to.
func (b *builder) nodeBackendsByFamily(s *edge.Service, port edge.ServicePort, endpoints []edge.Endpoint, terminating bool, how asked) (to backing) {
	for _, name := range familiesOfService(s) {
		some := of(endpoints, func(e edge.Endpoint) bool { return familyNames[family(e.Addr.Addr())] == name })
		part := b.nodeBackends(s, port, some, terminating, []string{name}, how)
		to.backends = append(to.backends, part.backends...)
		to.note = cmp.Or(to.note, part.note)
		if len(to.spread) == 0 {
			to.spread = part.spread
		}
	}
	to.backends = finishBackends(to.backends)
	return to
}

func familiesOfService(s *edge.Service) []string {
	if len(s.IPFamilies) == 0 {
		return familyNames
	}
	return s.IPFamilies
}

// terminating are the addresses that get nothing new and keep what they have:
// pods that terminate, or the nodes that only hold such pods, or that leave.
func (b *builder) terminating(s *edge.Service, port edge.ServicePort, all []edge.Endpoint, to backing) []netip.AddrPort {
	var addrs []netip.AddrPort
	add := func(a netip.AddrPort) {
		if !slices.ContainsFunc(to.backends, func(k edge.Backend) bool { return k.Addr == a }) {
			addrs = append(addrs, a)
		}
	}
	for _, e := range all {
		ending := e.Serving && e.Terminating && !e.Ready
		switch n := b.nodes[e.Node]; {
		case to.target == edge.TargetPod && ending:
			add(e.Addr)
		case to.target == edge.TargetNodePort && n != nil && (ending || e.Ready && n.Leaving):
			for _, family := range familiesOfService(s) {
				if a, ok := nodeAddr(*n, []string{family}); ok {
					add(netip.AddrPortFrom(a, port.NodePort))
				}
			}
		}
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return slices.Compact(addrs)
}

// routesTo keeps the ways to the pods of a row: also to those that take nothing
// new, which may have connections still.
func (b *builder) routesTo(row *Exposure) {
	if row.behind == nil || len(row.behind.pods) == 0 || !b.in.Config.Kubernetes.PodRoutes {
		return
	}
	var unknown []string
	for _, e := range row.behind.pods {
		if route, why := b.routeTo(e); why != "" {
			unknown = append(unknown, why)
		} else if route.Dst.IsValid() {
			b.routes[route.Dst] = route
		}
	}
	if len(unknown) > 0 {
		row.Notes = append(row.Notes, slices.Min(unknown)+": routes are yours to keep")
	}
}

// routeTo is the route to a pod, or none if it takes none, or why it is not
// known.
func (b *builder) routeTo(e edge.Endpoint) (_ edge.Route, unknown string) {
	addr := e.Addr.Addr()
	for _, i := range b.in.Interfaces {
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return edge.Route{}, ""
		}
	}
	n := b.nodes[e.Node]
	if n == nil {
		return edge.Route{}, fmt.Sprintf("pod %s names no node that is known", addr)
	}
	if slices.Contains(n.Addrs, addr) || slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return b.own[a] }) {
		return edge.Route{}, "" // it has the network of its node, or that is this machine
	}
	i := slices.IndexFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(addr) })
	if i < 0 {
		return edge.Route{}, fmt.Sprintf("pod %s is in no pod network of its node %s", addr, n.Name)
	}
	dst := n.PodCIDRs[i].Masked()
	if b.podNetworks[dst] > 1 {
		return edge.Route{}, fmt.Sprintf("pod network %s of node %s is that of another node, too", dst, n.Name)
	}
	for _, d := range b.in.Interfaces {
		if slices.ContainsFunc(d.Addrs, dst.Overlaps) {
			return edge.Route{}, fmt.Sprintf("pod network %s of node %s overlaps with the network of %s", dst, n.Name, d.Name)
		}
	}
	via, ok := nodeAddr(*n, []string{familyNames[family(addr)]})
	if !ok {
		return edge.Route{}, fmt.Sprintf("node %s, where pod %s is, has no %s address", n.Name, addr, familyNames[family(addr)])
	}
	return edge.Route{Dst: dst, Via: via, Why: "node/" + n.Name}, ""
}
