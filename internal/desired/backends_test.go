package desired

import (
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
