package daemon

import (
	"slices"

	"e13.dev/gatehouse/internal/edge"
)

// lasting adds to the routes that are needed those of before whose node is as it
// was: connections to its pods may outlive the Service that they came through.
// Nobody is led astray by such a route; it leads to who has the pods.
func lasting(routes, before []edge.Route, nodes []edge.Node) []edge.Route {
	routes = slices.Clone(routes)
	for _, r := range before {
		isHis := func(n edge.Node) bool { return slices.Contains(n.PodCIDRs, r.Dst) && slices.Contains(n.Addrs, r.Via) }
		isThere := func(o edge.Route) bool { return o.Dst == r.Dst }
		if slices.ContainsFunc(nodes, isHis) && !slices.ContainsFunc(routes, isThere) {
			routes = append(routes, r)
		}
	}
	slices.SortFunc(routes, func(x, y edge.Route) int { return x.Dst.Compare(y.Dst) })
	return routes
}
