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
	besides := edge.Backend{Addr: static.Addr, Target: edge.TargetStatic}        // its UDP port, which is not probed
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
			{Door: edge.Door{Protocol: edge.TCP}, Backends: []edge.Backend{static, onNode}},
			{Door: edge.Door{Protocol: edge.TCP}, Backends: []edge.Backend{cluster, local}},
			{Door: edge.Door{Protocol: edge.UDP}, Backends: []edge.Backend{localUDP, clusterUDP, besides}},
		},
	}
	for backend, want := range map[server][]netip.AddrPort{
		{edge.TCP, static.Addr}:     {static.Probe},
		{edge.UDP, besides.Addr}:    nil,
		{edge.TCP, cluster.Addr}:    {cluster.Probe, at("10.0.0.101:10256")},
		{edge.TCP, local.Addr}:      {local.Addr, at("10.0.0.101:10256")},
		{edge.UDP, localUDP.Addr}:   {localUDP.Probe, at("10.0.0.101:10256")},
		{edge.UDP, clusterUDP.Addr}: {at("10.0.0.101:10256")},
		{edge.TCP, onNode.Addr}:     nil,
	} {
		if got := probesAt(state)[backend]; !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", backend, got, want)
		}
	}
}
