package host

import (
	"net/netip"
	"testing"

	"e13.dev/gatehouse/internal/netnstest"
)

func TestNetnsTheWayBackIsThatOfTheRoutes(t *testing.T) {
	netnstest.Run(t, func() {
		clusterSide(t)
		for to, want := range map[string]string{
			"10.0.0.7": "eth0", "127.0.0.1": "lo", "10.0.0.1": "lo", "192.0.2.1": "",
		} {
			if got := DeviceTo(netip.MustParseAddr(to)); got != want {
				t.Errorf("to %s by %q, want %q", to, got, want)
			}
		}
		for _, c := range []struct {
			to, device string
			want       bool
		}{
			{"fd00::7", "eth0", true},
			{"fd00::7", "eth1", false},
			{"2001:db8::1", "eth0", false},
			{"10.0.0.7", "eth1", true}, // of IPv4 everybody is a neighbour
			{"10.0.0.7", "eth9", false},
		} {
			if got := LeavesBy(netip.MustParseAddr(c.to), c.device); got != c.want {
				t.Errorf("to %s by %s: %t, want %t", c.to, c.device, got, c.want)
			}
		}
	})
}
