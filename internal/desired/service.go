package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// The annotations that are read now, and annAddresses, that later work will:
// asking for it is refused, since ignoring it would open something else than
// what was asked for.
const (
	annZones          = edge.AnnotationPrefix + "zones"
	annTarget         = edge.AnnotationPrefix + "target"
	annDataPlane      = edge.AnnotationPrefix + "data-plane"
	annBalance        = edge.AnnotationPrefix + "balance"
	annSendProxy      = edge.AnnotationPrefix + "send-proxy-protocol"
	annTransparent    = edge.AnnotationPrefix + "transparent"
	annHostnames      = edge.AnnotationPrefix + "hostnames"
	annAddresses      = edge.AnnotationPrefix + "addresses"
	annHealthCheck    = edge.AnnotationPrefix + "health-check"
	annHealthInterval = edge.AnnotationPrefix + "health-interval"
	annIdleTimeout    = edge.AnnotationPrefix + "idle-timeout"
	annDrainTimeout   = edge.AnnotationPrefix + "drain-timeout"
)

// annRead are the names of those that are read, without the prefix.
var annRead = []string{
	"balance", "data-plane", "drain-timeout", "health-check", "health-interval", "hostnames", "idle-timeout",
	"send-proxy-protocol", "target", "transparent", "zones",
}

// maxZones is how many zones a Service may name.
const maxZones = 64

// services decides every Service, oldest first: who was there first keeps a port.
func (b *builder) services() {
	selector, err := edge.ParseSelector(b.in.Config.Kubernetes.Selector)
	if err != nil {
		b.problem(edge.Problem{Pos: b.in.Config.Kubernetes.Pos, Path: "kubernetes.selector", What: err.Error(), Remedy: "no Service is exposed until it is mended"})
		return
	}
	order := make([]*edge.Service, 0, len(b.in.Cluster.Services))
	for i := range b.in.Cluster.Services {
		if s := &b.in.Cluster.Services[i]; !s.Deleting {
			order = append(order, s)
		}
	}
	slices.SortFunc(order, func(x, y *edge.Service) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	b.state.Exposures = slices.Grow(b.state.Exposures, len(order)) // most have one row
	b.state.Frontends = slices.Grow(b.state.Frontends, len(order))
	for _, s := range order {
		b.service(s, selector)
	}
}

// request is what a Service asks for, read and checked.
type request struct {
	zones     []string
	target    edge.Target
	hostnames []string
	health    edge.HealthCheck
	sources   []netip.Prefix
	terms     edge.Terms
	plane     edge.DataPlane
	said      map[string]bool // annotations that it has
}

// of are the terms for one protocol. Silence is all that ends a UDP session.
// Of the two ways to tell who the client is, the one that the Service asks for
// comes before the one that is said for all; UDP has only one.
func (r *request) of(p edge.Protocol) edge.Terms {
	t := r.terms
	if r.plane == edge.DataPlaneNAT {
		return t
	}
	t.Masquerade = false // it is for who asks for nat
	switch {
	case p == edge.UDP:
		if t.IdleTimeout == 0 {
			t.IdleTimeout = config.DefaultUDPIdleTimeout
		}
	case t.Transparent && proxies(t) && r.said[annSendProxy]:
		t.Transparent = false
	case t.Transparent && proxies(t):
		t.SendProxyProtocol = edge.ProxyProtocolNone
	}
	return t
}

func proxies(t edge.Terms) bool {
	return t.SendProxyProtocol != "" && t.SendProxyProtocol != edge.ProxyProtocolNone
}

func (b *builder) service(s *edge.Service, selector edge.Selector) {
	k := b.in.Config.Kubernetes
	own := s.Class == k.LoadBalancerClass || s.Class == "" && k.Classless
	addresses := b.foreignAddresses(s)
	if own {
		addresses = nil // whoever wrote them: the status will be ours
	} else if s.Class == "" && s.StatusOurs {
		// Owned while kubernetes.classless was on.
		b.state.Statuses = append(b.state.Statuses, edge.ServiceStatus{Namespace: s.Namespace, Name: s.Name, UID: s.UID})
	}
	switch {
	case !selector.Matches(s.Labels):
		b.notOurs(s, fmt.Sprintf("its labels do not match kubernetes.selector (%s)", k.Selector), "")
		return
	case own:
	case len(addresses) > 0 && k.FollowAddresses:
	case len(addresses) > 0:
		b.notOurs(s, "another controller has given it its address, and kubernetes.followAddresses is off", "switch followAddresses on")
		return
	case s.Class != "":
		b.notOurs(s, "it belongs to loadBalancerClass "+s.Class+", which has given it no address", "")
		return
	default:
		b.notOurs(s, "it names no loadBalancerClass, and no controller has given it an address",
			"create it with loadBalancerClass: "+k.LoadBalancerClass+", or set kubernetes.classless: true")
		return
	}

	b.sayUnknown(s)
	req, no := b.read(s)
	if no.reason != "" {
		b.refuse(s, no)
		b.status(s, own)
		return
	}
	if len(req.zones) == 0 {
		b.refuse(s, refusal{"NoZone", "it asks for no zone", b.zoneRemedy(s)})
		b.status(s, own)
		return
	}
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
			b.closed(b.row(s, "", edge.ServicePort{Protocol: edge.TCP}), "UnknownZone", fmt.Sprintf("no zone named %q", zone), zoneHint(zone, b.zoneNames()))
			continue
		}
		if allow, limited := k.Allow[zone]; limited && !slices.Contains(allow.Namespaces, s.Namespace) {
			b.closed(b.row(s, zone, edge.ServicePort{Protocol: edge.TCP}), "ZoneNotAllowed",
				fmt.Sprintf("namespace %s may not open zone %s", s.Namespace, zone), "the operator allows it in kubernetes.allow."+zone+" ("+allow.Pos.String()+")")
			continue
		}
		for _, port := range s.Ports {
			row := b.row(s, zone, port)
			row.Sources, row.Hostnames = req.sources, req.hostnames
			row.of = policy{local: s.Local, affinity: s.AffinityTimeout > 0}
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
				to = b.backing(s, port, req, addresses)
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
			b.openInZone(row, edge.Frontend{
				Name: row.Name, DataPlane: req.plane, SourceRanges: req.sources, AcceptProxyProtocol: k.AcceptProxyProtocol,
				Terms: req.of(port.Protocol), Health: req.health, Why: row.Why,
			}, z)
		}
	}
	b.status(s, own)
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
		to.target = edge.TargetNodePort
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
		to.remedy = "look for the label node.kubernetes.io/exclude-from-external-load-balancers and for missing node addresses"
	}
	return to
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

// sayUnknown tells of an annotation that has gatehouse's prefix and that nobody
// reads: whoever wrote it believes that it does something.
func (b *builder) sayUnknown(s *edge.Service) {
	var unknown []string
	for key := range s.Annotations {
		if name, ours := strings.CutPrefix(key, edge.AnnotationPrefix); ours && !slices.Contains(annRead, name) && key != annAddresses {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return
	}
	slices.Sort(unknown) // an owner can have thousands: the first one stands for all
	p := edge.Problem{
		Object: "service/" + s.Key(), What: fmt.Sprintf("annotation %s%s is unknown and without effect", edge.AnnotationPrefix, unknown[0]),
		Remedy: config.Suggest(unknown[0], "have", annRead),
	}
	b.problem(p)
	b.event(s.Key(), true, "AnnotationUnknown", p.What+"; "+p.Remedy)
}

type refusal struct{ code, reason, remedy string }

// read takes what a Service asks for from its annotations and spec.
func (b *builder) read(s *edge.Service) (request, refusal) {
	k := b.in.Config.Kubernetes
	req := request{zones: k.DefaultZones, target: k.Target, health: k.Health, terms: k.Terms, plane: cmp.Or(k.DataPlane, edge.DataPlaneProxy)}
	if text, ok := s.Annotations[annZones]; ok {
		req.zones = nil
		// Each unknown one is told to the owner; a megabyte of them is nonsense.
		if n := strings.Count(text, ",") + 1; n > maxZones {
			return req, refusal{"AnnotationInvalid", fmt.Sprintf("annotation %s names %d zones, more than %d", annZones, n, maxZones), "name the zones wanted"}
		}
		for zone := range strings.SplitSeq(text, ",") {
			if zone = strings.TrimSpace(zone); zone != "" && !slices.Contains(req.zones, zone) {
				req.zones = append(req.zones, zone)
			}
		}
	}
	if v, ok := s.Annotations[annAddresses]; ok && v != "" {
		return req, refusal{"NotSupported", fmt.Sprintf("annotation %s: %q is not supported yet", annAddresses, v), "remove the annotation to open the Service without it"}
	}
	if v, ok := s.Annotations[annTarget]; ok {
		req.target = edge.Target(v)
		if !slices.Contains([]edge.Target{edge.TargetAuto, edge.TargetAddress, edge.TargetNodePort, edge.TargetPod}, req.target) {
			return req, refusal{"AnnotationInvalid", fmt.Sprintf("annotation %s: %q is no target", annTarget, v), "use auto, address, nodePort or pod"}
		}
	}
	if bad := req.readConnections(s); bad.reason != "" {
		return req, bad
	}
	interval, bad := healthInterval(s.Annotations)
	if bad.reason != "" {
		return req, bad
	}
	if interval >= 0 {
		req.health.Interval = interval
	}
	for _, t := range []struct {
		name string
		to   *time.Duration
	}{{annIdleTimeout, &req.terms.IdleTimeout}, {annDrainTimeout, &req.terms.DrainTimeout}} {
		if text := s.Annotations[t.name]; text != "" {
			d, ok := timeout(text)
			if !ok {
				return req, refusal{"AnnotationInvalid", fmt.Sprintf("annotation %s: %q is no time", t.name, text), `write a duration from 100ms to 8760h, such as "30s" or "1h30m"; 0 for none`}
			}
			*t.to, req.said[t.name] = d, true
		}
	}
	for _, text := range s.SourceRanges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return req, refusal{"SourceRangesInvalid", fmt.Sprintf("loadBalancerSourceRanges: %q is no network", text), "write networks as 192.0.2.0/24 or 2001:db8::/32; until then nobody may connect"}
		}
		req.sources = append(req.sources, p.Masked())
	}
	return req, refusal{}
}

// readConnections takes which connections the Service wants, to which of its
// backends they go, and whom those see.
func (r *request) readConnections(s *edge.Service) refusal {
	r.said = map[string]bool{}
	for _, a := range []struct {
		name string
		read func(string) *config.Fault
	}{
		{annDataPlane, func(v string) (f *config.Fault) { r.plane, f = config.ParseDataPlane(v); return f }},
		{annHostnames, func(v string) (f *config.Fault) { r.hostnames, f = config.ParseHostnames(v); return f }},
		{annBalance, func(v string) (f *config.Fault) { r.terms.Balance, f = config.ParseBalance(v); return f }},
		{annSendProxy, func(v string) (f *config.Fault) {
			r.terms.SendProxyProtocol, f = config.ParseProxyProtocol(v)
			return f
		}},
		{annTransparent, func(v string) (f *config.Fault) { r.terms.Transparent, f = config.ParseBool(v); return f }},
		{annHealthCheck, func(v string) (f *config.Fault) { r.health, f = config.ParseHealthCheck(v, r.health); return f }},
	} {
		v, ok := s.Annotations[a.name]
		if !ok {
			continue
		}
		r.said[a.name] = true
		if f := a.read(v); f != nil {
			return refusal{"AnnotationInvalid", "annotation " + a.name + ": " + f.What, f.Remedy}
		}
	}
	if r.terms.Transparent && r.said[annTransparent] && proxies(r.terms) && r.said[annSendProxy] {
		return refusal{
			"AnnotationInvalid", fmt.Sprintf("annotations %s and %s: %s: one of the two tells the backend who the client is", annTransparent, annSendProxy, r.terms.SendProxyProtocol),
			"remove one of them",
		}
	}
	switch {
	case s.AffinityTimeout > 0 && (!r.said[annBalance] || r.terms.Balance == edge.BalanceSource):
		r.terms.Balance, r.terms.AffinityTimeout = edge.BalanceSource, s.AffinityTimeout
	case r.terms.Balance != edge.BalanceSource:
		r.terms.AffinityTimeout = 0
	}
	if r.plane == edge.DataPlaneNAT {
		return r.byKernel(s)
	}
	return refusal{}
}

// healthInterval is -1 where nothing is said. The old annotation is in seconds.
func healthInterval(annotations map[string]string) (time.Duration, refusal) {
	name, text := annHealthInterval, annotations[annHealthInterval]
	if text == "" {
		name, text = edge.OldHealthInterval, annotations[edge.OldHealthInterval]
	}
	if text == "" {
		return -1, refusal{}
	}
	d, err := time.ParseDuration(text)
	if seconds, numeric := strconv.Atoi(text); numeric == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || d < 0 || d > time.Hour || d > 0 && d < 100*time.Millisecond {
		return 0, refusal{"AnnotationInvalid", fmt.Sprintf("annotation %s: %q is no interval", name, text), `write "5s" or a number of seconds, between 100ms and 1h; 0 switches the check off`}
	}
	return d, refusal{}
}

// timeout reads what a file could say too.
func timeout(text string) (time.Duration, bool) {
	d, err := time.ParseDuration(text)
	return d, err == nil && (d == 0 || d >= config.ShortestTimeout && d <= config.LongestTimeout)
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
	row.Reason, row.Remedy = why.reason, why.remedy
	b.state.Exposures = append(b.state.Exposures, row)
	b.event(s.Key(), true, why.code, why.reason+"; "+why.remedy)
	if why.code != "NoZone" {
		b.problem(edge.Problem{Object: row.Why, What: why.reason, Remedy: why.remedy})
	}
}

func (b *builder) zoneNames() []string {
	var names []string
	for _, z := range b.in.Config.Zones {
		names = append(names, z.Name)
	}
	slices.Sort(names)
	return names
}

// zoneRemedy names the zones that a Service may ask for, and picks none: a
// command that can be pasted must not open what was not thought about.
func (b *builder) zoneRemedy(s *edge.Service) string {
	var may []string
	for _, zone := range b.zoneNames() {
		if allow, limited := b.in.Config.Kubernetes.Allow[zone]; !limited || slices.Contains(allow.Namespaces, s.Namespace) {
			may = append(may, zone)
		}
	}
	if len(may) == 0 {
		return "there is no zone that namespace " + s.Namespace + " may open"
	}
	return fmt.Sprintf("kubectl annotate --overwrite service -n %s %s %s=ZONE, with one or more of %s", s.Namespace, s.Name, annZones, strings.Join(may, ","))
}

func zoneHint(asked string, have []string) string {
	switch {
	case len(have) == 0:
		return "the operator has defined no zones"
	case strings.ContainsAny(asked, " \t"):
		return "separate zones with commas; have " + strings.Join(have, ", ")
	default:
		return "have " + strings.Join(have, ", ")
	}
}
