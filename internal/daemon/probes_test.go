package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// A connection that fails is told to the probes that it says something about.
func TestProbesOfABackend(t *testing.T) {
	at := netip.MustParseAddrPort
	static := edge.Backend{Addr: at("192.0.2.7:80"), Probe: at("192.0.2.7:9000"), Target: edge.TargetStatic}
	cluster := edge.Backend{Addr: at("10.0.0.101:30080"), Probe: at("10.0.0.101:30080"), Target: edge.TargetNodePort}
	local := edge.Backend{Addr: at("10.0.0.101:30081"), Probe: at("10.0.0.101:32000"), Target: edge.TargetNodePort}
	localUDP := edge.Backend{Addr: at("10.0.0.101:30053"), Probe: at("10.0.0.101:32000"), Target: edge.TargetNodePort}
	clusterUDP := edge.Backend{Addr: at("10.0.0.101:30054"), Probe: at("10.0.0.101:10256"), Target: edge.TargetNodePort}
	onNode := edge.Backend{Addr: at("10.0.0.101:22"), Target: edge.TargetStatic} // not probed
	state := desired.State{
		Probes: []edge.Probe{
			{Kind: edge.ProbeBackend, Addr: static.Probe},
			{Kind: edge.ProbeBackend, Addr: cluster.Probe},
			{Kind: edge.ProbeHealthCheckNodePort, Addr: local.Probe, Through: local.Addr},
			{Kind: edge.ProbeHealthCheckNodePort, Addr: localUDP.Probe},
			{Kind: edge.ProbeHealthz, Addr: at("10.0.0.101:10256")},
			{Kind: edge.ProbeHealthz, Addr: at("10.0.0.102:10256")},
		},
		Frontends: []edge.Frontend{
			{Backends: []edge.Backend{static, onNode}},
			{Backends: []edge.Backend{cluster, local}},
			{Backends: []edge.Backend{cluster, localUDP, clusterUDP}},
		},
	}
	for backend, want := range map[netip.AddrPort][]netip.AddrPort{
		static.Addr:     {static.Probe},
		cluster.Addr:    {cluster.Probe, at("10.0.0.101:10256")},
		local.Addr:      {local.Addr, at("10.0.0.101:10256")},
		localUDP.Addr:   {localUDP.Probe, at("10.0.0.101:10256")},
		clusterUDP.Addr: {at("10.0.0.101:10256")},
		onNode.Addr:     nil,
	} {
		if got := probesAt(state)[backend]; !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", backend, got, want)
		}
	}
}
