package names_test

import (
	"net/netip"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/names"
)

func TestReach(t *testing.T) {
	in := site()
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	ssh := []config.PortRange{{Protocol: edge.TCP, First: 22, Last: 22}}
	policies := []config.Policy{
		{From: "home", To: "cluster", Allow: true, Services: ssh, Destinations: prefixes("10.0.0.10/32")},
		{From: "home", To: "cluster"}, // nothing else
		{From: "home", To: "cluster", Allow: true},
		{From: "home", To: config.Self, Allow: true, Services: ssh},
		{To: "internet", Allow: true, Sources: prefixes("10.0.0.0/8")},
		{From: "cluster", To: "home", Services: ssh}, // not all of it
		{From: "cluster", To: "home", Allow: true},
	}
	in.Config.DHCP = []config.DHCP{{Zone: "cluster", Relayed: []config.RelayedNetwork{{Network: netip.MustParsePrefix("10.2.0.0/24")}}}}
	for _, tc := range []struct {
		zone, addr string
		want       bool
	}{
		{"home", "10.0.0.10", true},
		{"home", "10.0.0.11", false},
		{"home", "10.0.0.1", true}, // this machine
		{"cluster", "10.11.12.9", true},
		{"cluster", "10.11.12.5", false},
		{"cluster", "198.51.100.9", true},
		{"internet", "10.0.0.10", false},
		{"home", "192.0.2.1", true}, // behind some router, of the Internet for one
		{"internet", "fd00:10::9", false},
		{"home", "10.2.0.9", false}, // behind a relay agent in zone cluster
	} {
		in.Config.Firewall = &config.Firewall{Policies: policies}
		if got := names.Reach(in.Config, in.Interfaces)(tc.zone, addr(tc.addr)); got != tc.want {
			t.Errorf("from %s to %s: %t", tc.zone, tc.addr, got)
		}
		in.Config.Firewall = nil
		if !names.Reach(in.Config, in.Interfaces)(tc.zone, addr(tc.addr)) {
			t.Errorf("from %s to %s: not without a firewall", tc.zone, tc.addr)
		}
	}
}
