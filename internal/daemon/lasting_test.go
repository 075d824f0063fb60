package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

func TestRoutesLastWithTheirNodes(t *testing.T) {
	node := func(name, cidr, addr string) edge.Node {
		return edge.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
	}
	route := func(cidr, via string) edge.Route {
		return edge.Route{Dst: netip.MustParsePrefix(cidr), Via: netip.MustParseAddr(via)}
	}
	one, two, three := route("10.244.1.0/24", "10.0.0.101"), route("10.244.2.0/24", "10.0.0.102"), route("10.244.3.0/24", "10.0.0.103")
	nodes := []edge.Node{node("w1", "10.244.1.0/24", "10.0.0.101"), node("w2", "10.244.2.0/24", "10.0.0.102"), node("w3", "10.244.3.0/24", "10.0.0.103")}
	for _, c := range []struct {
		name                 string
		needed, before, want []edge.Route
		nodes                []edge.Node
	}{
		{"nobody needs it any more", nil, []edge.Route{one, two}, []edge.Route{one, two}, nodes},
		{"others are needed", []edge.Route{three}, []edge.Route{two}, []edge.Route{two, three}, nodes},
		{"the node is gone", nil, []edge.Route{one, two}, []edge.Route{one}, nodes[:1]},
		{"the node has another address", nil, []edge.Route{one}, nil, []edge.Node{node("w1", "10.244.1.0/24", "10.0.0.111")}},
		{"it has pods of another network", nil, []edge.Route{one}, nil, []edge.Node{node("w1", "10.244.9.0/24", "10.0.0.101")}},
		{"somebody else has its network", []edge.Route{route("10.244.1.0/24", "10.0.0.102")}, []edge.Route{one}, []edge.Route{route("10.244.1.0/24", "10.0.0.102")}, nodes},
		{"there are no nodes", []edge.Route{one}, []edge.Route{one, two}, []edge.Route{one}, nil},
	} {
		if got := lasting(c.needed, c.before, c.nodes); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
