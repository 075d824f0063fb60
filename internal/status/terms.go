package status

import "e13.dev/gatehouse/internal/edge"

// Hold says what the connections of a frontend are held to.
func (row *Frontend) Hold(f edge.Frontend) {
	row.Hostnames = f.Hostnames
	row.DrainTimeout, row.IdleTimeout = Duration(f.DrainTimeout), Duration(f.IdleTimeout)
	row.MaxConnections, row.MaxConnectionsPerClient = f.MaxConnections, f.MaxConnectionsPerClient
	row.MaxRatePerClient, row.BanTime = Rate(f.MaxRatePerClient), Duration(f.BanTime)
	row.Balance, row.AffinityTimeout = f.Balance, Duration(f.AffinityTimeout)
	row.AcceptProxyProtocol, row.Transparent = f.AcceptProxyProtocol, f.Transparent
	if f.SendProxyProtocol != edge.ProxyProtocolNone {
		row.SendProxyProtocol = f.SendProxyProtocol
	}
	row.Health = CheckOf(f.Health)
	if f.RefuseWhenDown {
		row.WhenAllDown = "refuse"
	}
	if f.CloseWhenDown {
		row.OnDown = "close"
	}
}
