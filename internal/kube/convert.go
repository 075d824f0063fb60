package kube

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netutils "k8s.io/utils/net"

	"e13.dev/gatehouse/internal/edge"
)

// leavingTaint is put on a node by the cluster autoscaler before it takes the
// node away; KEP-3458 asks load balancers to honour it.
const leavingTaint = "ToBeDeletedByClusterAutoscaler"

// service is what is kept of a Service. Of one that is not type LoadBalancer
// only the name is filled in: it must be seen, to forget what it was before.
type service struct {
	edge.Service
	balanced bool
}

// slice is what is kept of an EndpointSlice.
type slice struct {
	namespace, name string
	service         string // namespace/name; empty: belongs to none
	endpoints       []edge.Endpoint
}

// node is what is kept of a Node.
type node struct{ edge.Node }

// The reflector keys what it holds by namespace and name; it asks for them
// through this method of metav1.ObjectMetaAccessor.

func (s *service) GetObjectMeta() metav1.Object { return nameOnly(s.Namespace, s.Name) }
func (s *slice) GetObjectMeta() metav1.Object   { return nameOnly(s.namespace, s.name) }
func (n *node) GetObjectMeta() metav1.Object    { return nameOnly("", n.Name) }

func nameOnly(namespace, name string) metav1.Object {
	return &metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func convertService(in *corev1.Service) *service {
	out := &service{Service: edge.Service{Namespace: in.Namespace, Name: in.Name}}
	if in.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return out
	}
	out.balanced = true
	out.UID = string(in.UID)
	out.ResourceVersion = in.ResourceVersion
	out.Created = in.CreationTimestamp.UTC()
	out.Class = deref(in.Spec.LoadBalancerClass)
	out.Annotations = readAnnotations(in.Annotations)
	out.Labels = in.Labels
	out.Local = in.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	out.HealthCheckNodePort, _ = portNumber(in.Spec.HealthCheckNodePort)
	if in.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.AffinityTimeout = affinityTimeout(in.Spec.SessionAffinityConfig)
	}
	for _, r := range in.Spec.LoadBalancerSourceRanges {
		out.SourceRanges = append(out.SourceRanges, strings.TrimSpace(r))
	}
	for _, f := range in.Spec.IPFamilies {
		out.IPFamilies = append(out.IPFamilies, intern(string(f)))
	}
	for _, p := range in.Spec.Ports {
		port, ok := portNumber(p.Port)
		if !ok {
			continue
		}
		nodePort, _ := portNumber(p.NodePort)
		out.Ports = append(out.Ports, edge.ServicePort{
			Name: intern(p.Name), Protocol: protocol(p.Protocol), Port: port, NodePort: nodePort,
		})
	}
	out.Ingress = convertIngress(in.Status.LoadBalancer.Ingress)
	out.StatusOurs = statusOurs(in.ManagedFields)
	if len(out.SourceRanges) == 0 {
		// The older way, which the API server still checks; it was never removed.
		for r := range strings.SplitSeq(in.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey], ",") {
			if r = strings.TrimSpace(r); r != "" {
				out.SourceRanges = append(out.SourceRanges, r)
			}
		}
	}
	out.Deleting = in.DeletionTimestamp != nil
	return out
}

// readAnnotations keeps those that gatehouse reads: others can be large
// (kubectl's last-applied-configuration repeats the whole object).
func readAnnotations(in map[string]string) map[string]string {
	var out map[string]string
	for k, v := range in {
		if strings.HasPrefix(k, edge.AnnotationPrefix) || k == edge.OldHealthInterval {
			if out == nil {
				out = make(map[string]string)
			}
			out[k] = v
		}
	}
	return out
}

func convertIngress(in []corev1.LoadBalancerIngress) []edge.Ingress {
	var out []edge.Ingress
	for _, i := range in {
		ip, ok := parseAddr(i.IP)
		if !ok && i.Hostname == "" {
			continue
		}
		e := edge.Ingress{IP: ip, Hostname: i.Hostname}
		if i.IPMode != nil {
			e.Mode = intern(string(*i.IPMode))
		}
		for _, p := range i.Ports {
			if port, ok := portNumber(p.Port); ok {
				e.Ports = append(e.Ports, edge.IngressPort{Port: port, Protocol: protocol(p.Protocol), Error: deref(p.Error)})
			}
		}
		out = append(out, e)
	}
	return out
}

// statusOurs says whether gatehouse was the last to write
// status.loadBalancer.ingress. The API server keeps that in managedFields: a
// writer that changes the list takes it away from its owner, and writers of
// equal lists own it together, told apart by time.
func statusOurs(entries []metav1.ManagedFieldsEntry) bool {
	var last time.Time
	ours := false
	for i := range entries {
		e := &entries[i]
		if !ownsIngress(e) {
			continue
		}
		var at time.Time
		if e.Time != nil {
			at = e.Time.Time
		}
		switch mine := e.Manager == FieldManager; {
		case at.After(last):
			last, ours = at, mine
		case at.Equal(last):
			ours = ours || mine // times are in seconds: in doubt it is ours, as we look at it at all
		}
	}
	return ours
}

func ownsIngress(e *metav1.ManagedFieldsEntry) bool {
	if e.FieldsV1 == nil || !bytes.Contains(e.FieldsV1.GetRawBytes(), []byte(`"f:ingress"`)) {
		return false
	}
	var fields struct {
		Status struct {
			LoadBalancer struct {
				Ingress json.RawMessage `json:"f:ingress"`
			} `json:"f:loadBalancer"`
		} `json:"f:status"`
	}
	return json.Unmarshal(e.FieldsV1.GetRawBytes(), &fields) == nil && fields.Status.LoadBalancer.Ingress != nil
}

func convertSlice(in *discoveryv1.EndpointSlice) *slice {
	out := &slice{namespace: in.Namespace, name: in.Name}
	owner := in.Labels[discoveryv1.LabelServiceName]
	if owner == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return out
	}
	out.service = in.Namespace + "/" + owner
	for i := range in.Endpoints {
		e := &in.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// All addresses of one endpoint are the same backend; taking more than
		// the first would give it more than its share. kube-proxy does the same.
		addr, ok := parseAddr(e.Addresses[0])
		if !ok {
			continue
		}
		base := edge.Endpoint{Node: intern(deref(e.NodeName)), Ready: true}
		if t := e.TargetRef; t != nil && t.Kind == "Pod" {
			base.Pod = cmp.Or(t.Namespace, in.Namespace) + "/" + t.Name
		}
		if r := e.Conditions.Ready; r != nil {
			base.Ready = *r
		}
		base.Serving = base.Ready
		if s := e.Conditions.Serving; s != nil {
			base.Serving = *s
		}
		if t := e.Conditions.Terminating; t != nil {
			base.Terminating = *t
		}
		for _, p := range in.Ports {
			// A port without a number stands for every port: nothing to dial.
			port, ok := portNumber(deref(p.Port))
			if !ok {
				continue
			}
			e := base
			e.PortName = intern(deref(p.Name))
			e.Protocol = protocol(deref(p.Protocol))
			e.Addr = netip.AddrPortFrom(addr, port)
			out.endpoints = append(out.endpoints, e)
		}
	}
	out.endpoints = mergeEndpoints(out.endpoints)
	return out
}

// mergeEndpoints sorts the endpoints of one Service in place and removes
// duplicates: while an endpoint moves from one slice to another it can be in
// both. The one that can take more traffic wins.
func mergeEndpoints(all []edge.Endpoint) []edge.Endpoint {
	slices.SortFunc(all, func(a, b edge.Endpoint) int {
		return cmp.Or(
			compareBackend(a, b),
			compareBool(b.Ready, a.Ready),
			compareBool(b.Serving, a.Serving),
			compareBool(a.Terminating, b.Terminating),
			-cmp.Compare(a.Pod, b.Pod), // one that names its pod and node first
			-cmp.Compare(a.Node, b.Node),
		)
	})
	return slices.Clip(slices.CompactFunc(all, func(a, b edge.Endpoint) bool { return compareBackend(a, b) == 0 }))
}

// compareBackend orders by what makes two endpoints the same backend.
func compareBackend(a, b edge.Endpoint) int {
	return cmp.Or(
		cmp.Compare(a.PortName, b.PortName),
		cmp.Compare(a.Protocol, b.Protocol),
		a.Addr.Compare(b.Addr),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

func convertNode(in *corev1.Node) *node {
	out := &node{edge.Node{Name: in.Name}}
	for _, a := range in.Status.Addresses {
		if addr, ok := parseAddr(a.Address); ok && a.Type == corev1.NodeInternalIP {
			out.Addrs = append(out.Addrs, addr)
		}
	}
	cidrs := in.Spec.PodCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{in.Spec.PodCIDR} // of an API server that knows only this one
	}
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out.PodCIDRs = append(out.PodCIDRs, p.Masked())
		}
	}
	// The label counts whatever its value, as in the service controller.
	_, out.Excluded = in.Labels[corev1.LabelNodeExcludeBalancers]
	out.Leaving = slices.ContainsFunc(in.Spec.Taints, func(t corev1.Taint) bool { return t.Key == leavingTaint })
	return out
}

// parseAddr also reads what the API accepted in old days (leading zeros).
func parseAddr(s string) (netip.Addr, bool) {
	if s == "" {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		ok := false
		if addr, ok = netip.AddrFromSlice(netutils.ParseIPSloppy(s)); !ok {
			return netip.Addr{}, false
		}
	}
	return addr.Unmap().WithZone(""), true
}

func portNumber(n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

// protocol applies the API's default.
func protocol(p corev1.Protocol) edge.Protocol {
	return edge.Protocol(intern(cmp.Or(string(p), string(edge.TCP))))
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// intern makes equal strings share memory: the decoder allocates a node's name
// anew for each of its endpoints.
func intern(s string) string { return unique.Make(s).Value() }

// affinityTimeout is what the API server puts in where nothing is said, too.
func affinityTimeout(c *corev1.SessionAffinityConfig) time.Duration {
	if c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil || *c.ClientIP.TimeoutSeconds <= 0 {
		return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
	}
	return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
}
