package desired

import (
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// A backend that expects a PROXY protocol header turns away who speaks without.
// A check that says nothing needs none, and one probe serves whoever connects.
func TestChecksBeginAsConnectionsDo(t *testing.T) {
	for name, c := range map[string]struct {
		change []func(*edge.Service)
		port   uint16
		want   edge.ProxyProtocol
	}{
		"no header":    {change: []func(*edge.Service){annotate("health-check", "http:/healthz")}},
		"header":       {change: []func(*edge.Service){annotate("health-check", "http:/healthz"), annotate("send-proxy-protocol", "v2")}, want: edge.ProxyProtocolV2},
		"pods":         {change: []func(*edge.Service){annotate("target", "pod"), annotate("health-check", "tls"), annotate("send-proxy-protocol", "v1")}, want: edge.ProxyProtocolV1},
		"said none":    {change: []func(*edge.Service){annotate("health-check", "tls"), annotate("send-proxy-protocol", "none")}},
		"only connect": {change: []func(*edge.Service){annotate("send-proxy-protocol", "v2")}},
		"another port": {
			change: []func(*edge.Service){annotate("target", "pod"), annotate("send-proxy-protocol", "v2")}, port: 9000,
		},
	} {
		in := site()
		if c.port != 0 {
			in.Config.Kubernetes.Health.Type, in.Config.Kubernetes.Health.Port = edge.CheckHTTP, c.port
		}
		in.Cluster.Services = []edge.Service{service("shop/web", 0, c.change...)}
		state, _ := Build(in)
		if len(state.Probes) == 0 {
			t.Errorf("%s: no probes", name)
		}
		for _, p := range state.Probes {
			if p.SendProxyProtocol != c.want {
				t.Errorf("%s: %s %s begins with %q, want %q", name, p.Kind, p.Addr, p.SendProxyProtocol, c.want)
			}
		}
	}
}

// When a node dies without a word, the ports of the others swallow what kube-proxy
// sends to its pods: they are no less alive for that. It is, and only for as
// long as their kube-proxy says so itself.
func TestNodesOutliveThePodsOfAnother(t *testing.T) {
	const lost = "no answer within 1s"
	for name, c := range map[string]struct {
		own, healthz edge.Health
		check        string
		want         edge.BackendState
	}{
		"alive, and lost behind it": {edge.Health{State: edge.Down, Silent: true, Error: lost}, edge.Health{State: edge.Up, Confirmed: true}, "tcp", edge.Up},
		"refused":                   {edge.Health{State: edge.Down, Error: "connection refused"}, edge.Health{State: edge.Up, Confirmed: true}, "tcp", edge.Down},
		"nobody confirms it":        {edge.Health{State: edge.Down, Silent: true, Error: lost}, edge.Health{State: edge.Up}, "tcp", edge.Down},
		"dead":                      {edge.Health{State: edge.Down, Silent: true, Error: lost}, edge.Health{State: edge.Down, Error: lost}, "tcp", edge.Down},
		"asked for more":            {edge.Health{State: edge.Down, Silent: true, Error: lost}, edge.Health{State: edge.Up, Confirmed: true}, "http:/", edge.Down},
		"not programmed yet":        {edge.Health{State: edge.Pending, Silent: true, Error: lost}, edge.Health{State: edge.Up, Confirmed: true}, "tcp", edge.Pending},
	} {
		in := site()
		s := service("shop/web", 0, annotate("health-check", c.check))
		s.Local = false
		in.Cluster.Services = []edge.Service{s}
		state, _ := Build(in)
		for _, p := range state.Probes {
			if p.Kind == edge.ProbeHealthz {
				in.Health[p] = c.healthz
			} else {
				in.Health[p] = c.own
			}
		}
		state, _ = Build(in)
		seen := 0
		for _, f := range state.Frontends {
			for _, b := range f.Backends {
				seen++
				if b.State != c.want || (c.want == edge.Up) != strings.HasPrefix(b.Error, "its kube-proxy is well") {
					t.Errorf("%s: %s is %s (%s), want %s", name, b.Addr, b.State, b.Error, c.want)
				}
			}
		}
		if seen == 0 {
			t.Errorf("%s: no backends", name)
		}
	}
}
