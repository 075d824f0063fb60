package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// What Kubernetes expects of whoever implements a Service of type LoadBalancer,
// as far as it is decided here: which backends there are, with which weight.
func TestContractOfEndpoints(t *testing.T) {
	endpoint := func(addr, node string, ready, serving, terminating bool) edge.Endpoint {
		return edge.Endpoint{PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort(addr), Node: node, Ready: ready, Serving: serving, Terminating: terminating}
	}
	has := func(endpoints ...edge.Endpoint) func(*edge.Service) {
		return func(s *edge.Service) { s.Endpoints = endpoints }
	}
	pods := annotate("target", "pod")
	for name, tc := range map[string]struct {
		change []func(*edge.Service)
		site   func(*Inputs)
		want   string // backends and weights, or why there is none
	}{
		"no selector: a slice written by hand": {
			change: []func(*edge.Service){pods, has(endpoint("192.0.2.7:80", "", true, true, false), endpoint("10.0.0.9:81", "", true, true, false))},
			want:   "10.0.0.9:81*1 192.0.2.7:80*1",
		},
		"no selector, Local: it is on no node, so that all of them have it": {
			change: []func(*edge.Service){has(endpoint("192.0.2.7:80", "", true, true, false))},
			want:   "10.0.0.101:30080*1 10.0.0.102:30080*1 10.0.0.103:30080*1",
		},
		"no selector, Cluster": {
			change: []func(*edge.Service){cluster, has(endpoint("192.0.2.7:80", "", true, true, false))},
			want:   "10.0.0.101:30080*1 10.0.0.102:30080*1 10.0.0.103:30080*1",
		},
		"Local: those that name no node are on none, where others do": {
			change: []func(*edge.Service){has(endpoint("192.0.2.7:80", "", true, true, false), endpoint("10.244.2.1:80", "w2", true, true, false))},
			want:   "10.0.0.102:30080*1",
		},
		"no selector, and no slice": {change: []func(*edge.Service){pods, has()}, want: "no endpoint is ready; connections are closed at once"},
		"a slice leads to this machine's own door": {
			change: []func(*edge.Service){pods, has(endpoint("10.0.0.1:80", "", true, true, false), endpoint("192.0.2.7:80", "", true, true, false))},
			want:   "192.0.2.7:80*1",
		},
		"a slice leads to this machine's own door alone": {
			change: []func(*edge.Service){pods, has(endpoint("10.11.12.51:80", "w1", true, true, false))},
			want:   "no endpoint is ready; connections are closed at once",
		},
		"a slice leads to another program on this machine": {
			change: []func(*edge.Service){pods, has(endpoint("10.0.0.1:8053", "", true, true, false))},
			want:   "10.0.0.1:8053*1",
		},
		// With publishNotReadyAddresses the slice says ready of all of them.
		"publishNotReadyAddresses: pods that are not": {
			change: []func(*edge.Service){pods, has(endpoint("10.244.1.1:80", "w1", true, false, false), endpoint("10.244.2.1:80", "w2", true, false, true))},
			want:   "10.244.1.1:80*1 10.244.2.1:80*1",
		},
		"not ready": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:80", "w1", false, false, false), endpoint("10.244.2.1:80", "w2", true, true, false))},
			want:   "10.0.0.102:30080*1",
		},
		"terminating, and others are ready": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:80", "w1", false, true, true), endpoint("10.244.2.1:80", "w2", true, true, false))},
			want:   "10.0.0.102:30080*1",
		},
		"terminating, all of them": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:80", "w1", false, true, true), endpoint("10.244.2.1:80", "w2", false, false, true))},
			want:   "10.0.0.101:30080*1",
		},
		"a node of which all pods terminate": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:80", "w1", false, true, true), endpoint("10.244.1.2:80", "w1", false, true, true), endpoint("10.244.2.1:80", "w2", true, true, false))},
			want:   "10.0.0.102:30080*1",
		},
		"a named target port that is another one in some pods": {
			change: []func(*edge.Service){pods, has(endpoint("10.244.1.1:8080", "w1", true, true, false), endpoint("10.244.2.1:9090", "w2", true, true, false))},
			want:   "10.244.1.1:8080*1 10.244.2.1:9090*1",
		},
		"a named target port that is another one in some pods, node ports": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:8080", "w1", true, true, false), endpoint("10.244.1.2:9090", "w1", true, true, false), endpoint("10.244.2.1:9090", "w2", true, true, false))},
			want:   "10.0.0.101:30080*2 10.0.0.102:30080*1",
		},
		"the same address in two slices": {
			change: []func(*edge.Service){pods, has(endpoint("10.244.1.1:8080", "w1", true, true, false))},
			want:   "10.244.1.1:8080*1",
		},
		"no node port (allocateLoadBalancerNodePorts: false)": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:8080", "w1", true, true, false)), func(s *edge.Service) { s.Ports[0].NodePort = 0 }},
			want:   "10.244.1.1:8080*1",
		},
		"a node without an address": {
			change: []func(*edge.Service){cluster},
			site:   func(in *Inputs) { in.Cluster.Nodes[1].Addrs = nil },
			want:   "10.0.0.101:30080*1 10.0.0.103:30080*1",
		},
		"nodes without an address of the Service's family": {
			change: []func(*edge.Service){cluster, families("SingleStack", "IPv6"), has(endpoint("[fd00:244::1]:80", "w1", true, true, false))},
			want:   "no node may take connections for it; connections are closed at once; look for missing node addresses, and nodes that are leaving (taint ToBeDeletedByClusterAutoscaler)",
		},
		"no node": {
			change: []func(*edge.Service){cluster},
			site:   func(in *Inputs) { in.Cluster.Nodes = nil },
			want:   "no node may take connections for it; connections are closed at once; there is no node",
		},
		"a pod's node is not known": {
			change: []func(*edge.Service){has(endpoint("10.244.9.1:80", "w9", true, true, false))},
			want:   "no node may take connections for it; connections are closed at once; no node that holds its pods is known",
		},
		"a node is excluded": {
			change: []func(*edge.Service){cluster},
			site:   func(in *Inputs) { in.Cluster.Nodes[0].Excluded = true },
			want:   "10.0.0.102:30080*1 10.0.0.103:30080*1",
		},
		"the label is ignored": {
			change: []func(*edge.Service){cluster},
			site: func(in *Inputs) {
				in.Cluster.Nodes[0].Excluded, in.Config.Kubernetes.IgnoreExcludeLabel = true, true
			},
			want: "10.0.0.101:30080*1 10.0.0.102:30080*1 10.0.0.103:30080*1",
		},
		"the only node is excluded": {
			change: []func(*edge.Service){cluster},
			site: func(in *Inputs) {
				in.Cluster.Nodes = in.Cluster.Nodes[:1]
				in.Cluster.Nodes[0].Excluded = true
			},
			want: "no node may take connections for it; connections are closed at once; each node for it has the label node.kubernetes.io/exclude-from-external-load-balancers: set kubernetes.ignoreExcludeLabel: true, or remove the label",
		},
		"Local: the only node that holds its pods is excluded": {
			change: []func(*edge.Service){has(endpoint("10.244.1.1:80", "w1", true, true, false))},
			site:   func(in *Inputs) { in.Cluster.Nodes[0].Excluded = true },
			want:   "no node may take connections for it; connections are closed at once; each node for it has the label node.kubernetes.io/exclude-from-external-load-balancers: set kubernetes.ignoreExcludeLabel: true, or remove the label",
		},
		"a node is leaving": {
			change: []func(*edge.Service){cluster},
			site:   func(in *Inputs) { in.Cluster.Nodes[0].Leaving = true },
			want:   "10.0.0.102:30080*1 10.0.0.103:30080*1",
		},
		"pods on an excluded node are reached themselves": {
			change: []func(*edge.Service){pods, has(endpoint("10.244.1.1:80", "w1", true, true, false))},
			site:   func(in *Inputs) { in.Cluster.Nodes[0].Excluded = true },
			want:   "10.244.1.1:80*1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Cluster.Services = []edge.Service{service("shop/web", 0, append([]func(*edge.Service){annotate("zones", "cluster")}, tc.change...)...)}
			if tc.site != nil {
				tc.site(&in)
			}
			state, problems := Build(in)
			e := state.Exposures[0]
			var parts []string
			for _, b := range e.Backends {
				parts = append(parts, fmt.Sprintf("%s*%d", b.Addr, b.Weight))
			}
			got := strings.Join(parts, " ")
			if got == "" {
				got = strings.TrimSuffix(e.Reason+"; "+e.Remedy, "; ")
			}
			if got != tc.want || !e.Open {
				t.Errorf("open %t:\n%s\nwant\n%s\n%s", e.Open, got, tc.want, render(state, problems))
			}
			if strings.Contains(name, "own door") != slices.ContainsFunc(e.Notes, func(n string) bool { return strings.Contains(n, "in a circle") }) {
				t.Errorf("notes %q", e.Notes)
			}
		})
	}
}
