package dhcp

import (
	"net/netip"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

type edgeRange = edge.Range

// planned are inputs with interfaces such as "eth0 10.0.0.1/24 10.0.0.2/32, eth1".
func planned(interfaces string, change func(*config.DHCP)) Inputs {
	d := config.DHCP{Zone: "cluster", LeaseTime: time.Hour, Pools: []edge.Range{span("10.0.0.100-10.0.0.199")}, Pos: edge.Pos{File: "f.yaml", Line: 7, Col: 3}}
	if change != nil {
		change(&d)
	}
	in := Inputs{Config: &config.Config{DHCP: []config.DHCP{d}, Zones: []edge.Zone{{Name: "cluster"}}}}
	for n, text := range strings.Split(interfaces, ", ") {
		words := strings.Fields(text)
		i := edge.Interface{Name: words[0], Index: n + 2, Up: true}
		for _, w := range words[1:] {
			i.Addrs = append(i.Addrs, netip.MustParsePrefix(w))
		}
		in.Interfaces = append(in.Interfaces, i)
		in.Config.Zones[0].Interfaces = append(in.Config.Zones[0].Interfaces, i.Name)
	}
	return in
}
