package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func balancedService(edit func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "u1", ResourceVersion: "7",
			CreationTimestamp: metav1.NewTime(created.In(time.FixedZone("there", 3600))),
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	edit(s)
	return s
}

func TestConvertService(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*corev1.Service)
		want func(*edge.Service)
	}{
		{"bare", func(*corev1.Service) {}, func(*edge.Service) {}},
		{"class, local, affinity", func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = new("gatehouse.e13.dev/edge")
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.HealthCheckNodePort = 31000
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(int32(90))}}
		}, func(s *edge.Service) {
			s.Class, s.Local, s.HealthCheckNodePort, s.AffinityTimeout = "gatehouse.e13.dev/edge", true, 31000, 90*time.Second
		}},
		{"policy Cluster is not local", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
			s.Spec.SessionAffinity = corev1.ServiceAffinityNone
		}, func(*edge.Service) {}},
		{"annotations: only those that are read", func(s *corev1.Service) {
			s.Annotations = map[string]string{
				"gatehouse.e13.dev/zones":                          "home",
				"l4proxy.e13.dev/health-interval":                  "5",
				"l4proxy.e13.dev/other":                            "x",
				"gatehouse.e13.dev.evil.example/zones":             "internet",
				"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 1000),
			}
			s.Labels = map[string]string{"app": "web"}
		}, func(s *edge.Service) {
			s.Annotations = map[string]string{"gatehouse.e13.dev/zones": "home", "l4proxy.e13.dev/health-interval": "5"}
			s.Labels = map[string]string{"app": "web"}
		}},
		{"ports and families", func(s *corev1.Service) {
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
			s.Spec.Ports = []corev1.ServicePort{
				{Name: "https", Port: 443, NodePort: 30443, Protocol: corev1.ProtocolTCP},
				{Name: "quic", Port: 443, Protocol: corev1.ProtocolUDP},
				{Port: 80},
				{Name: "none", Port: 0},
				{Name: "large", Port: 65536},
			}
		}, func(s *edge.Service) {
			s.IPFamilies = []string{"IPv6", "IPv4"}
			s.Ports = []edge.ServicePort{
				{Name: "https", Port: 443, NodePort: 30443, Protocol: edge.TCP},
				{Name: "quic", Port: 443, Protocol: edge.UDP},
				{Port: 80, Protocol: edge.TCP},
			}
		}},
		{"source ranges are handed on as they are, valid or not", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 10.0.0.0/8 ", "nonsense"}
		}, func(s *edge.Service) { s.SourceRanges = []string{"10.0.0.0/8", "nonsense"} }},
		{"ingress", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "10.11.12.70", IPMode: new(corev1.LoadBalancerIPModeProxy), Ports: []corev1.PortStatus{
					{Port: 80, Protocol: corev1.ProtocolTCP}, {Port: 81, Protocol: corev1.ProtocolTCP, Error: new("PortConflict")},
				}},
				{Hostname: "lb.example.org"},
				{IP: "010.001.000.010"},
				{IP: "nonsense"},
			}
		}, func(s *edge.Service) {
			s.Ingress = []edge.Ingress{
				{IP: netip.MustParseAddr("10.11.12.70"), Mode: "Proxy", Ports: []edge.IngressPort{
					{Port: 80, Protocol: edge.TCP}, {Port: 81, Protocol: edge.TCP, Error: "PortConflict"},
				}},
				{Hostname: "lb.example.org"},
				{IP: netip.MustParseAddr("10.1.0.10")},
			}
		}},
		{"families, the old field", func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
			s.Spec.LoadBalancerIP = " 10.11.12.70 "
		}, func(s *edge.Service) { s.IPFamilyPolicy, s.LoadBalancerIP = "RequireDualStack", "10.11.12.70" }},
		{"what gatehouse has written", func(s *corev1.Service) {
			s.Finalizers = []string{"example.com/other", "gatehouse.e13.dev/closed"}
			s.Status.Conditions = []metav1.Condition{{Type: "gatehouse.e13.dev/Exposed", Status: metav1.ConditionTrue, Reason: "Open", Message: "m"}}
			s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "gatehouse", FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`)}}
		}, func(s *edge.Service) {
			s.Finalizer, s.StatusBy, s.StatusOurs = true, "gatehouse", true
			s.Conditions = []edge.Condition{{Type: "gatehouse.e13.dev/Exposed", True: true, Reason: "Open", Message: "m"}}
		}},
		{"another's finalizer", func(s *corev1.Service) {
			s.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"}
		}, func(*edge.Service) {}},
		{
			"deleting", func(s *corev1.Service) { s.DeletionTimestamp = new(metav1.NewTime(created)) },
			func(s *edge.Service) { s.Deleting = true },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := edge.Service{Namespace: "shop", Name: "web", UID: "u1", ResourceVersion: "7", Created: created}
			tt.want(&want)
			got := convertService(balancedService(tt.edit))
			if !got.balanced || !reflect.DeepEqual(got.Service, want) {
				t.Errorf("got  %+v\nwant %+v", got.Service, want)
			}
		})
	}
}

func TestNothingButTheNameIsKeptOfOtherServices(t *testing.T) {
	for _, typ := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeExternalName, ""} {
		got := convertService(balancedService(func(s *corev1.Service) {
			s.Spec.Type = typ
			s.Labels = map[string]string{"app": "web"}
		}))
		if want := (&service{Service: edge.Service{Namespace: "shop", Name: "web"}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v", typ, got)
		}
	}
}

func TestStatusBy(t *testing.T) {
	entry := func(manager string, second int, fields string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{
			Manager: manager, Subresource: "status", Operation: metav1.ManagedFieldsOperationUpdate,
			Time:     new(metav1.NewTime(created.Add(time.Duration(second) * time.Second))),
			FieldsV1: metav1.NewFieldsV1(fields),
		}
	}
	const ingress = `{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`
	for _, tt := range []struct {
		name    string
		entries []metav1.ManagedFieldsEntry
		want    string
	}{
		{"nobody wrote", nil, ""},
		{"gatehouse wrote", []metav1.ManagedFieldsEntry{entry("gatehouse", 1, ingress)}, "gatehouse"},
		{"another wrote", []metav1.ManagedFieldsEntry{entry("controller", 1, ingress)}, "controller"},
		{"gatehouse wrote, another wrote the same later", []metav1.ManagedFieldsEntry{
			entry("gatehouse", 1, ingress), entry("controller", 2, ingress),
		}, "controller"},
		{"another wrote, gatehouse wrote the same later", []metav1.ManagedFieldsEntry{
			entry("gatehouse", 3, ingress), entry("controller", 2, ingress),
		}, "gatehouse"},
		{"both in the same second", []metav1.ManagedFieldsEntry{entry("gatehouse", 2, ingress), entry("controller", 2, ingress)}, "gatehouse"},
		{"gatehouse wrote, another has written a condition since", []metav1.ManagedFieldsEntry{
			entry("gatehouse", 1, ingress), entry("controller", 2, `{"f:status":{"f:conditions":{}}}`),
		}, "gatehouse"},
		{"gatehouse cleared", []metav1.ManagedFieldsEntry{entry("gatehouse", 1, `{"f:status":{"f:loadBalancer":{}}}`)}, ""},
		{"the word elsewhere", []metav1.ManagedFieldsEntry{entry("gatehouse", 1, `{"f:metadata":{"f:annotations":{"f:ingress":{}}}}`)}, ""},
		{"not JSON", []metav1.ManagedFieldsEntry{entry("gatehouse", 1, `"f:ingress"`)}, ""},
		{"no time", []metav1.ManagedFieldsEntry{{Manager: "gatehouse", FieldsV1: metav1.NewFieldsV1(ingress)}}, "gatehouse"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := statusBy(tt.entries); got != tt.want {
				t.Errorf("got %q", got)
			}
			slices.Reverse(tt.entries)
			if got := statusBy(tt.entries); got != tt.want {
				t.Errorf("in reverse: got %q", got)
			}
		})
	}
}

func TestOwnConditions(t *testing.T) {
	in := []metav1.Condition{
		{Type: "example.com/Other", Status: metav1.ConditionTrue},
		{Type: "gatehouse.e13.dev/Exposed", Status: metav1.ConditionFalse, Reason: "PortConflict", Message: "taken"},
		{Type: "LoadBalancerPortsError", Status: metav1.ConditionTrue, Reason: "PortConflict", Message: "80"},
	}
	entry := func(manager, condition string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:conditions":{".":{},"k:{\"type\":\"` + condition + `\"}":{".":{}}}}}`)}
	}
	exposed := edge.Condition{Type: "gatehouse.e13.dev/Exposed", Reason: "PortConflict", Message: "taken"}
	ports := edge.Condition{Type: "LoadBalancerPortsError", True: true, Reason: "PortConflict", Message: "80"}
	for _, tt := range []struct {
		name    string
		entries []metav1.ManagedFieldsEntry
		want    []edge.Condition
	}{
		{"nobody is known to have written them", nil, []edge.Condition{ports, exposed}},
		{"gatehouse has", []metav1.ManagedFieldsEntry{entry("gatehouse", portsError)}, []edge.Condition{ports, exposed}},
		{"another has", []metav1.ManagedFieldsEntry{entry("cloud", portsError), entry("cloud", exposed.Type)}, []edge.Condition{exposed}},
		{"another and gatehouse have", []metav1.ManagedFieldsEntry{entry("cloud", portsError), entry("gatehouse", portsError)}, []edge.Condition{ports, exposed}},
		{"another has written a third", []metav1.ManagedFieldsEntry{entry("cloud", "example.com/Other")}, []edge.Condition{ports, exposed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ownConditions(in, tt.entries); !slices.Equal(got, tt.want) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAPIServers(t *testing.T) {
	at := func(addr, port string, ready bool) edge.Endpoint {
		return edge.Endpoint{Addr: netip.MustParseAddrPort(addr), PortName: port, Protocol: edge.TCP, Ready: ready}
	}
	for _, tt := range []struct {
		name string
		in   []edge.Endpoint
		want string
	}{
		{"none", nil, "[]"},
		{"three, sorted, one not ready", []edge.Endpoint{at("10.0.0.12:6443", "https", true), at("10.0.0.11:6443", "https", true), at("10.0.0.13:6443", "https", false)}, "[10.0.0.11:6443 10.0.0.12:6443]"},
		{"another port beside", []edge.Endpoint{at("10.0.0.11:6443", "https", true), at("10.0.0.11:9345", "rke2", true)}, "[10.0.0.11:6443]"},
		{"the only port has another name", []edge.Endpoint{at("10.0.0.11:6443", "api", true), at("10.0.0.12:6443", "api", true)}, "[10.0.0.11:6443 10.0.0.12:6443]"},
		{"two ports, neither is https", []edge.Endpoint{at("10.0.0.11:6443", "api", true), at("10.0.0.11:9345", "rke2", true)}, "[]"},
		{"both families", []edge.Endpoint{at("[fd00::11]:6443", "https", true), at("10.0.0.11:6443", "https", true)}, "[10.0.0.11:6443 [fd00::11]:6443]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fmt.Sprint(apiServersOf(tt.in)); got != tt.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

// sliceOf is a slice of Service shop/web on port http/TCP/8080.
func sliceOf(name string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(8080))}},
		Endpoints:   endpoints,
	}
}

func endpointAt(addr string, edit ...func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}}
	for _, f := range edit {
		f(&e)
	}
	return e
}

func conditions(ready, serving, terminating *bool) func(*discoveryv1.Endpoint) {
	return func(e *discoveryv1.Endpoint) {
		e.Conditions = discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
	}
}

func TestConvertSlice(t *testing.T) {
	yes, no := new(true), new(false)
	http := func(addr string, ready, serving, terminating bool) edge.Endpoint {
		return edge.Endpoint{PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort(addr), Ready: ready, Serving: serving, Terminating: terminating}
	}
	for _, tt := range []struct {
		name string
		in   *discoveryv1.EndpointSlice
		want []edge.Endpoint
	}{
		{"no conditions: ready", sliceOf("a", endpointAt("10.244.1.5")), []edge.Endpoint{http("10.244.1.5:8080", true, true, false)}},
		{
			"not ready: not serving unless it says so", sliceOf("a", endpointAt("10.244.1.5", conditions(no, nil, nil))),
			[]edge.Endpoint{http("10.244.1.5:8080", false, false, false)},
		},
		{
			"terminating, still serving", sliceOf("a", endpointAt("10.244.1.5", conditions(no, yes, yes))),
			[]edge.Endpoint{http("10.244.1.5:8080", false, true, true)},
		},
		{"node and pod", sliceOf("a", endpointAt("10.244.1.5", func(e *discoveryv1.Endpoint) {
			e.NodeName = new("w1")
			e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: "web-1"}
		})), []edge.Endpoint{{
			PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort("10.244.1.5:8080"),
			Node: "w1", Pod: "shop/web-1", Ready: true, Serving: true,
		}}},
		{"a target that is no pod", sliceOf("a", endpointAt("10.244.1.5", func(e *discoveryv1.Endpoint) {
			e.TargetRef = &corev1.ObjectReference{Kind: "VirtualMachine", Name: "web-1"}
		})), []edge.Endpoint{http("10.244.1.5:8080", true, true, false)}},
		{
			"one backend for each endpoint, however many addresses", sliceOf("a", discoveryv1.Endpoint{Addresses: []string{"10.244.1.5", "10.244.1.6"}}),
			[]edge.Endpoint{http("10.244.1.5:8080", true, true, false)},
		},
		{"an IPv4 address in IPv6 clothes", sliceOf("a", endpointAt("::ffff:10.244.1.5")), []edge.Endpoint{http("10.244.1.5:8080", true, true, false)}},
		{"no address", sliceOf("a", discoveryv1.Endpoint{}), nil},
		{"no such address", sliceOf("a", endpointAt("web.example.org")), nil},
		{"names", withSlice(sliceOf("a", endpointAt("10.244.1.5")), func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN }), nil},
		{"of no Service", withSlice(sliceOf("a", endpointAt("10.244.1.5")), func(s *discoveryv1.EndpointSlice) { s.Labels = nil }), nil},
		{"ports: unnamed, without a number, two protocols", withSlice(sliceOf("a", endpointAt("10.244.1.5")), func(s *discoveryv1.EndpointSlice) {
			s.Ports = []discoveryv1.EndpointPort{
				{Name: new("all")},
				{Name: new("zero"), Port: new(int32(0))},
				{Name: new("dns"), Protocol: new(corev1.ProtocolUDP), Port: new(int32(53))},
				{Name: new("dns"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(53))},
				{Port: new(int32(80))},
			}
		}), []edge.Endpoint{
			{Protocol: edge.TCP, Addr: netip.MustParseAddrPort("10.244.1.5:80"), Ready: true, Serving: true},
			{PortName: "dns", Protocol: edge.TCP, Addr: netip.MustParseAddrPort("10.244.1.5:53"), Ready: true, Serving: true},
			{PortName: "dns", Protocol: edge.UDP, Addr: netip.MustParseAddrPort("10.244.1.5:53"), Ready: true, Serving: true},
		}},
		{
			"duplicates: the ready one wins", sliceOf("a", endpointAt("10.244.1.6"),
				endpointAt("10.244.1.5", conditions(no, yes, yes)), endpointAt("10.244.1.5", conditions(yes, nil, nil)), endpointAt("10.244.1.5", conditions(no, no, nil))),
			[]edge.Endpoint{http("10.244.1.5:8080", true, true, false), http("10.244.1.6:8080", true, true, false)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := convertSlice(tt.in).endpoints; !slices.Equal(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func withSlice(s *discoveryv1.EndpointSlice, edit func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	edit(s)
	return s
}

func TestConvertNode(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   corev1.Node
		want edge.Node
	}{
		{"whole", corev1.Node{
			Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:244:1::/64"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeExternalIP, Address: "203.0.113.9"},
				{Type: corev1.NodeInternalIP, Address: "10.0.0.101"},
				{Type: corev1.NodeHostName, Address: "w1"},
				{Type: corev1.NodeInternalIP, Address: "fd00::101"},
			}},
		}, edge.Node{
			Addrs:    []netip.Addr{netip.MustParseAddr("10.0.0.101"), netip.MustParseAddr("fd00::101")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
		}},
		{"one pod network, not masked", corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.244.1.7/24"}}, edge.Node{
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		}},
		{"pod networks that are none", corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0", "", "fd00:244:1::/64"}}}, edge.Node{
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00:244:1::/64")},
		}},
		{"nothing known", corev1.Node{}, edge.Node{}},
		{"excluded, whatever the label's value", corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{"node.kubernetes.io/exclude-from-external-load-balancers": ""},
		}}, edge.Node{Excluded: true}},
		{"leaving", corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: "node.kubernetes.io/unschedulable"}, {Key: "ToBeDeletedByClusterAutoscaler"},
		}}}, edge.Node{Leaving: true}},
		{"control plane", corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{"node-role.kubernetes.io/control-plane": ""},
		}}, edge.Node{ControlPlane: true}},
		{"control plane, as it was called", corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{"node-role.kubernetes.io/master": "true"},
		}}, edge.Node{ControlPlane: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Name, tt.want.Name = "w1", "w1"
			if got := convertNode(&tt.in).Node; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// FuzzConvert feeds objects as they come over the wire. Whatever they hold,
// what is made of them must be usable: sorted, without duplicates, never a zero
// port or an address that is none.
func FuzzConvert(f *testing.F) {
	seed := func(m interface{ Marshal() ([]byte, error) }) {
		b, err := m.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(sliceOf("a", endpointAt("10.244.1.5"), endpointAt("10.244.1.5", conditions(new(false), nil, nil)), endpointAt("::1")))
	seed(balancedService(func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.0.0.1"}, {}}
		s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: FieldManager, FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`)}}
	}))
	seed(&corev1.Node{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.7/24"}}})
	seed(&corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.101"}}}})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var slice discoveryv1.EndpointSlice
		if slice.Unmarshal(wire) == nil {
			got := convertSlice(&slice).endpoints
			for i, e := range got {
				if e.Addr.Port() == 0 || !e.Addr.Addr().IsValid() || e.Addr.Addr().Is4In6() || e.Protocol == "" {
					t.Errorf("unusable endpoint %+v", e)
				}
				if i > 0 && compareBackend(got[i-1], e) >= 0 {
					t.Errorf("%+v is not before %+v", got[i-1], e)
				}
			}
			slices.Reverse(slice.Endpoints)
			slices.Reverse(slice.Ports)
			if again := convertSlice(&slice).endpoints; !slices.Equal(got, again) {
				t.Errorf("order matters: %+v and %+v", got, again)
			}
		}
		var svc corev1.Service
		if svc.Unmarshal(wire) == nil {
			svc.Spec.Type = corev1.ServiceTypeLoadBalancer
			got := convertService(&svc)
			for _, p := range got.Ports {
				if p.Port == 0 || p.Protocol == "" {
					t.Errorf("unusable port %+v", p)
				}
			}
			for _, i := range got.Ingress {
				if !i.IP.IsValid() && i.Hostname == "" {
					t.Errorf("empty ingress %+v", i)
				}
			}
			for k := range got.Annotations {
				if !strings.HasPrefix(k, edge.AnnotationPrefix) && k != edge.OldHealthInterval {
					t.Errorf("annotation %q kept", k)
				}
			}
		}
		var n corev1.Node
		if n.Unmarshal(wire) == nil {
			got := convertNode(&n)
			if i := slices.IndexFunc(got.Addrs, func(a netip.Addr) bool { return !a.IsValid() }); i >= 0 {
				t.Errorf("address %d is none", i)
			}
			if i := slices.IndexFunc(got.PodCIDRs, func(p netip.Prefix) bool { return !p.IsValid() || p.Masked() != p }); i >= 0 {
				t.Errorf("pod network %s", got.PodCIDRs[i])
			}
		}
	})
}
