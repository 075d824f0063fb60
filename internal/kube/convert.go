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

// The labels that kubeadm puts on the nodes of the control plane; the old one
// went with Kubernetes 1.24.
const (
	controlPlaneLabel    = "node-role.kubernetes.io/control-plane"
	oldControlPlaneLabel = "node-role.kubernetes.io/master"
)

// portsError is the condition type of ports that cannot be served (KEP-1435).
const portsError = corev1.LoadBalancerPortsError

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

// namespace is what is kept of a Namespace.
type namespace struct {
	name   string
	labels map[string]string
}

// The reflector keys what it holds by namespace and name; it asks for them
// through this method of metav1.ObjectMetaAccessor.

func (s *service) GetObjectMeta() metav1.Object { return nameOnly(s.Namespace, s.Name) }
func (s *slice) GetObjectMeta() metav1.Object   { return nameOnly(s.namespace, s.name) }
func (n *node) GetObjectMeta() metav1.Object    { return nameOnly("", n.Name) }

// GetObjectMeta implements metav1.ObjectMetaAccessor.
func (n *namespace) GetObjectMeta() metav1.Object { return nameOnly("", n.name) }

func nameOnly(namespace, name string) metav1.Object {
	return &metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func convertService(in *corev1.Service) *service {
	out := &service{Service: edge.Service{Namespace: in.Namespace, Name: in.Name}}
	if in.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return out
	}
	out.balanced = true
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
	out.IPFamilyPolicy = intern(string(deref(in.Spec.IPFamilyPolicy)))
	out.LoadBalancerIP = strings.TrimSpace(in.Spec.LoadBalancerIP)
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
	convertWritten(in, &out.Service)
	if len(out.SourceRanges) == 0 {
		// The older way, which the API server still checks; it was never removed.
		for r := range strings.SplitSeq(in.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey], ",") {
			if r = strings.TrimSpace(r); r != "" {
				out.SourceRanges = append(out.SourceRanges, r)
			}
		}
	}
	return out
}

// convertWritten reads what gatehouse writes, and what that depends on.
func convertWritten(in *corev1.Service, out *edge.Service) {
	out.UID, out.ResourceVersion = string(in.UID), in.ResourceVersion
	out.Ingress = convertIngress(in.Status.LoadBalancer.Ingress)
	out.StatusBy = statusBy(in.ManagedFields)
	out.StatusOurs = out.StatusBy == FieldManager
	out.Conditions = ownConditions(in.Status.Conditions, in.ManagedFields)
	out.Finalizer = slices.Contains(in.Finalizers, Finalizer)
	out.Deleting = in.DeletionTimestamp != nil
}

// readAnnotations keeps those that gatehouse reads: others can be large
// (kubectl's last-applied-configuration repeats the whole object).
func readAnnotations(in map[string]string) map[string]string {
	var out map[string]string
	for k, v := range in {
		if strings.HasPrefix(k, edge.AnnotationPrefix) || k == edge.OldHealthInterval || k == edge.ExternalDNSHostname {
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

// statusBy is the manager that was the last to write
// status.loadBalancer.ingress. The API server keeps that in managedFields: a
// writer that changes the list takes it away from its owner, and writers of
// equal lists own it together, told apart by time.
func statusBy(entries []metav1.ManagedFieldsEntry) string {
	var last time.Time
	manager := ""
	for i := range entries {
		e := &entries[i]
		if !ownsIngress(e) {
			continue
		}
		var at time.Time
		if e.Time != nil {
			at = e.Time.Time
		}
		// Times are in seconds: in doubt it is ours, as we look at it at all.
		if manager == "" || at.After(last) || at.Equal(last) && e.Manager == FieldManager {
			last, manager = at, e.Manager
		}
	}
	return intern(manager)
}

func ownsIngress(e *metav1.ManagedFieldsEntry) bool {
	owned, ok := ownedStatus(e, `"f:ingress"`)
	return ok && owned.LoadBalancer.Ingress != nil
}

// ownedFields is what managedFields say of who has written a Service's status.
type ownedFields struct {
	LoadBalancer struct {
		Ingress json.RawMessage `json:"f:ingress"`
	} `json:"f:loadBalancer"`
	Conditions map[string]json.RawMessage `json:"f:conditions"`
}

// ownedStatus reads an entry if it has the word: most have not, and there are
// several of each Service.
func ownedStatus(e *metav1.ManagedFieldsEntry, word string) (ownedFields, bool) {
	var fields struct {
		Status ownedFields `json:"f:status"`
	}
	if e.FieldsV1 == nil || !bytes.Contains(e.FieldsV1.GetRawBytes(), []byte(word)) {
		return fields.Status, false
	}
	return fields.Status, json.Unmarshal(e.FieldsV1.GetRawBytes(), &fields) == nil
}

// ownConditions are those of the types that gatehouse writes, sorted by type.
// LoadBalancerPortsError belongs to whoever implements the Service (KEP-1435):
// it is left out if managedFields name somebody else.
func ownConditions(in []metav1.Condition, entries []metav1.ManagedFieldsEntry) []edge.Condition {
	var out []edge.Condition
	for i := range in {
		c := &in[i]
		if !strings.HasPrefix(c.Type, edge.AnnotationPrefix) && (c.Type != portsError || ofAnother(c.Type, entries)) {
			continue
		}
		out = append(out, edge.Condition{Type: intern(c.Type), True: c.Status == metav1.ConditionTrue, Reason: intern(c.Reason), Message: c.Message})
	}
	slices.SortFunc(out, func(a, b edge.Condition) int { return cmp.Compare(a.Type, b.Type) })
	return out
}

// ofAnother says whether somebody else has written a condition, and gatehouse
// has no part in it.
func ofAnother(condition string, entries []metav1.ManagedFieldsEntry) bool {
	key := `k:{"type":"` + condition + `"}`
	another := false
	for i := range entries {
		owned, _ := ownedStatus(&entries[i], `"f:conditions"`)
		if _, ok := owned.Conditions[key]; !ok {
			continue
		}
		if entries[i].Manager == FieldManager {
			return false
		}
		another = true
	}
	return another
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
	for _, label := range []string{controlPlaneLabel, oldControlPlaneLabel} {
		if _, ok := in.Labels[label]; ok {
			out.ControlPlane = true
		}
	}
	out.Leaving = slices.ContainsFunc(in.Spec.Taints, func(t corev1.Taint) bool { return t.Key == leavingTaint })
	return out
}

func convertNamespace(in *corev1.Namespace) *namespace {
	return &namespace{name: in.Name, labels: in.Labels}
}

// apiServersOf are where the API servers say that they listen: the ready
// endpoints of the port named https, or of the only port that there is.
func apiServersOf(endpoints []edge.Endpoint) []netip.AddrPort {
	name, several, https := "", false, false
	for i, e := range endpoints {
		several = several || i > 0 && e.PortName != endpoints[0].PortName
		https = https || e.PortName == "https"
		name = e.PortName
	}
	if https {
		name = "https"
	} else if several {
		return nil
	}
	var out []netip.AddrPort
	for _, e := range endpoints {
		if e.PortName == name && e.Protocol == edge.TCP && e.Ready {
			out = append(out, e.Addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
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
