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

// The annotations that are read. One that cannot be read closes the Service,
// since ignoring it would open something else than what was asked for.
const (
	annZones          = edge.AnnotationPrefix + "zones"
	annTarget         = edge.AnnotationPrefix + "target"
	annDataPlane      = edge.AnnotationPrefix + "data-plane"
	annBalance        = edge.AnnotationPrefix + "balance"
	annSendProxy      = edge.AnnotationPrefix + "send-proxy-protocol"
	annTransparent    = edge.AnnotationPrefix + "transparent"
	annHostnames      = edge.AnnotationPrefix + "hostnames"
	annAddresses      = edge.AnnotationPrefix + "addresses"
	annSharingKey     = edge.AnnotationPrefix + "sharing-key"
	annHealthCheck    = edge.AnnotationPrefix + "health-check"
	annHealthInterval = edge.AnnotationPrefix + "health-interval"
	annIdleTimeout    = edge.AnnotationPrefix + "idle-timeout"
	annDrainTimeout   = edge.AnnotationPrefix + "drain-timeout"
	annDNSNames       = edge.AnnotationPrefix + "dns-names" // does not close it: it opens nothing
)

// annRead are the names of those that are read, without the prefix.
var annRead = []string{
	"addresses", "balance", "data-plane", "dns-names", "drain-timeout", "health-check", "health-interval", "hostnames", "idle-timeout",
	"send-proxy-protocol", "sharing-key", "target", "transparent", "zones",
}

// maxZones is how many zones a Service may name, or addresses.
const maxZones = 64

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
	// addresses and pools are what it asks to be found at; key says with which
	// Services of its namespace it shares addresses of pools.
	addresses []netip.Addr
	pools     []string
	key       string
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

// sayUnknown tells of an annotation that has gatehouse's prefix and that nobody
// reads: whoever wrote it believes that it does something.
func (b *builder) sayUnknown(s *edge.Service) {
	var unknown []string
	for key := range s.Annotations {
		if name, ours := strings.CutPrefix(key, edge.AnnotationPrefix); ours && !slices.Contains(annRead, name) {
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

// request takes what a Service asks for from its annotations and spec.
func (b *builder) request(s *edge.Service) (request, refusal) {
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
	if bad := b.readAddresses(s, &req); bad.reason != "" {
		return req, bad
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

// readAddresses takes at which addresses the Service wants to be found. Of one
// that is another controller's, spec.loadBalancerIP is a request to that one.
func (b *builder) readAddresses(s *edge.Service, req *request) refusal {
	// First: a mistake in what follows must not part those who share an address.
	if v := s.Annotations[annSharingKey]; v != "" {
		if len(v) > maxKey {
			return refusal{"AnnotationInvalid", fmt.Sprintf("annotation %s has %d bytes, more than %d", annSharingKey, len(v), maxKey), "any short text will do: Services of a namespace with the same one share their addresses"}
		}
		req.key = s.Namespace + "/" + v // no namespace has a slash in its name
	}
	from := "annotation " + annAddresses
	text, said := s.Annotations[annAddresses]
	if !said && b.owns(s) {
		from, text = "spec.loadBalancerIP", s.LoadBalancerIP
	}
	if n := strings.Count(text, ",") + 1; n > maxZones {
		return refusal{"AnnotationInvalid", fmt.Sprintf("%s names %d addresses, more than %d", from, n, maxZones), "name the addresses wanted, or pools"}
	}
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		a, err := netip.ParseAddr(word)
		isPool := slices.ContainsFunc(b.in.Config.Pools, func(p config.Pool) bool { return p.Name == word })
		switch {
		case word == "":
		case err == nil && a.Zone() == "":
			if a = a.Unmap(); !slices.Contains(req.addresses, a) {
				req.addresses = append(req.addresses, a)
			}
		case isPool && said:
			if !slices.Contains(req.pools, word) {
				req.pools = append(req.pools, word)
			}
		case said:
			return refusal{"AnnotationInvalid", fmt.Sprintf("%s: %q is neither an address nor the name of a pool", from, word), "write addresses as 10.11.12.70 or fd00:11:12::1001; " + b.poolHint(s)}
		default:
			return refusal{"AnnotationInvalid", fmt.Sprintf("%s: %q is no address", from, word), "write annotation " + annAddresses + ", which can have several, and names of pools"}
		}
	}
	if asks := len(req.addresses) + len(req.pools); asks > 0 && !b.owns(s) {
		return refusal{
			"AddressNotAllowed", from + " is for Services that gatehouse owns, and another controller has given this one its address",
			"remove the annotation, or create the Service with loadBalancerClass: " + b.in.Config.Kubernetes.LoadBalancerClass,
		}
	}
	return refusal{}
}

// maxKey is how many bytes a sharing key may have.
const maxKey = 253

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
