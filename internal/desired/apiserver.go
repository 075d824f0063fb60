package desired

import (
	"fmt"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// apiServerPort is where API servers are where nothing says it.
const apiServerPort = 6443

// apiServerHealth is what an API server says of itself, also to who does not say
// who asks (ClusterRole system:public-info-viewer).
var apiServerHealth = edge.HealthCheck{
	Type: edge.CheckHTTPS, Path: "/readyz", StatusMin: 200, StatusMax: 200,
	Interval: config.DefaultHealth.Interval, Timeout: config.DefaultHealth.Timeout, Rise: config.DefaultHealth.Rise, Fall: config.DefaultHealth.Fall,
}

// apiServer opens the control plane's API servers in the zones that the operator
// names. It comes before Services, as a frontend of a file does.
func (b *builder) apiServer() {
	k := b.in.Config.Kubernetes.APIServer
	if k == nil {
		return
	}
	row := Exposure{
		Name: config.APIServerName, Protocol: edge.TCP, Port: k.Port, Target: edge.TargetStatic, DataPlane: edge.DataPlaneProxy, Why: k.Pos.String(),
	}
	f := edge.Frontend{Name: row.Name, DataPlane: row.DataPlane, Terms: config.DefaultTerms, Health: apiServerHealth, Why: row.Why}
	servers, circular := b.apiServers(k.Port)
	for _, a := range servers {
		row.Backends = append(row.Backends, b.probed(edge.Backend{Addr: a, Weight: 1, Target: edge.TargetStatic}, edge.TCP, asked{check: f.Health}))
	}
	row.Backends = finishBackends(row.Backends)
	switch {
	case len(servers) > 0:
	case circular.IsValid():
		row.Reason = fmt.Sprintf("the API server says that it is at %s, which is this machine: connections would go in a circle", circular)
		row.Remedy = "have it say its own address (--advertise-address), or use another port"
	default:
		row.Reason = "no API server is known: the Service default/kubernetes has no endpoint, and no node is of the control plane; " + turnedAway(edge.TCP, row.DataPlane)
		row.Remedy = "look for " + controlPlaneLabel + " on the nodes"
	}
	for _, zone := range k.Zones {
		if z := b.zones[zone]; z != nil {
			row := row
			row.Zone = zone
			b.openInZone(row, f, z)
		}
	}
}

const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// apiServers are where the API servers say that they are, or if they say
// nothing, the nodes of the control plane. This machine's own addresses are left
// out where the frontend itself is.
func (b *builder) apiServers(port uint16) (servers []netip.AddrPort, circular netip.AddrPort) {
	all := slices.Clone(b.in.Cluster.APIServers)
	if len(all) == 0 {
		for _, n := range b.in.Cluster.Nodes {
			for _, a := range n.Addrs {
				if n.ControlPlane {
					all = append(all, netip.AddrPortFrom(a, apiServerPort))
				}
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	for _, a := range slices.Compact(all) {
		if a.Port() == port && b.own[a.Addr()] {
			circular = a
			continue
		}
		servers = append(servers, a)
	}
	return servers, circular
}
