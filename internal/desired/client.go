package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// atKubeProxy says whether it is kube-proxy that gets what goes to a target, or
// may be: what another controller's address leads to is not known.
func atKubeProxy(t edge.Target) bool { return t == edge.TargetNodePort || t == edge.TargetAddress }

// sayClient says whose address the backends of an open row see as the client's,
// and what would make it the client's own. Transparency may have been asked for
// and be blocked by the side that the backends are on.
func (b *builder) sayClient(row *Exposure, f edge.Frontend, listens []edge.Listen, proxyAsked bool, side string, blocked bool) {
	const relayed = "this machine's address: "
	isTCP := row.Protocol == edge.TCP
	switch {
	case isTCP && proxies(f.Terms):
		row.Client, row.ClientSeen = "the client's, in a PROXY protocol "+string(f.SendProxyProtocol)+" header", true
	case f.Transparent && atKubeProxy(row.Target) && !row.of.local:
		row.Client = "a node's: kube-proxy replaces it (externalTrafficPolicy: Cluster)"
		row.ClientRemedy = "externalTrafficPolicy: Local, or " + fieldOf(row, "target", "pod") + " where pods can be reached from this machine"
	case f.Transparent:
		row.Client, row.ClientSeen = "the client's own"+familiesOf(*row, listens)+b.neighboursOf(*row, listens), true
	case blocked:
		row.Client = relayed + "connections cannot be transparent, as " + side
		row.ClientRemedy = b.clientRemedy(row, isTCP, false)
	default:
		row.Client = relayed + "the connection is relayed"
		if !isTCP && proxyAsked {
			row.Client += ", and the PROXY protocol is for TCP"
		}
		row.ClientRemedy = b.clientRemedy(row, isTCP, side == "")
	}
}

// clientRemedy offers what can work for a row.
func (b *builder) clientRemedy(row *Exposure, proxy, transparent bool) string {
	if row.Service == "" && row.Name == config.APIServerName && b.in.Config.Kubernetes != nil && b.in.Config.Kubernetes.APIServer != nil {
		return "" // it has none of these fields
	}
	var ways []string
	if proxy {
		ways = append(ways, fieldOf(row, "sendProxyProtocol", "v2")+" (if the application understands it)")
	}
	if transparent {
		way := fieldOf(row, "transparent", "true")
		if atKubeProxy(row.Target) && !row.of.local {
			way += " with externalTrafficPolicy: Local"
		}
		ways = append(ways, way)
	}
	return strings.Join(ways, ", or ")
}

// fieldOf is a field of a file, or the annotation that a Service has for it.
func fieldOf(row *Exposure, field, value string) string {
	if row.Service == "" {
		return field + ": " + value
	}
	names := map[string]string{"sendProxyProtocol": annSendProxy, "transparent": annTransparent, "target": annTarget, "dataPlane": annDataPlane}
	if value == "true" {
		value = `"true"` // annotations are text
	}
	return "annotation " + names[field] + ": " + value
}

// sameSide says why the backends of a row would answer its clients without this
// machine in between, were they to see the clients' own addresses; empty: they
// would not. A backend in a network of an interface that clients come from has
// them as neighbours, and one on this machine answers them by itself.
func (b *builder) sameSide(row Exposure, listens []edge.Listen) string {
	from := b.sidesOf(listens)
	for _, backend := range row.Backends {
		if b.isHere(backend.Addr.Addr()) {
			return fmt.Sprintf("backend %s is on this machine, and would answer clients past the relay", backend.Addr)
		}
		if device := b.onLink(backend, from); device != "" {
			return fmt.Sprintf("%s is in the network of %s, where its clients are, and would answer them past this machine", placeOfBackend(backend), device)
		}
	}
	return ""
}

func (b *builder) isHere(a netip.Addr) bool { return a.IsLoopback() || b.own[a] }

// sidesOf are the interfaces through which clients come to where a row listens,
// as far as that says: through which they come to an address that is on no
// interface, or to all addresses, it does not.
func (b *builder) sidesOf(listens []edge.Listen) []edge.Interface {
	var sides []edge.Interface
	for _, i := range b.in.Interfaces {
		for _, l := range listens {
			has := func(p netip.Prefix) bool { return p.Addr() == l.Addr }
			if l.Device == i.Name || l.Device == "" && l.Addr.IsValid() && slices.ContainsFunc(i.Addrs, has) {
				sides = append(sides, i)
				break
			}
		}
	}
	slices.SortFunc(sides, func(x, y edge.Interface) int { return strings.Compare(x.Name, y.Name) })
	return sides
}

// onLink is the interface in whose network a backend is, or the node of its pod.
func (b *builder) onLink(backend edge.Backend, sides []edge.Interface) string {
	addrs := []netip.Addr{backend.Addr.Addr()}
	if n := b.nodes[backend.Node]; n != nil && backend.Target == edge.TargetPod {
		addrs = append(addrs, n.Addrs...)
	}
	for _, i := range sides {
		for _, p := range i.Addrs {
			if slices.ContainsFunc(addrs, p.Contains) {
				return i.Name
			}
		}
	}
	return ""
}

func placeOfBackend(backend edge.Backend) string {
	if backend.Node == "" {
		return "backend " + backend.Addr.String()
	}
	return "backend " + backend.Addr.String() + " (node " + backend.Node + ")"
}

// neighboursOf says which clients' addresses a backend cannot see of a row that
// listens everywhere: those of its own network, which it would answer by itself.
func (b *builder) neighboursOf(row Exposure, listens []edge.Listen) string {
	if !everywhere(listens) {
		return ""
	}
	sides := slices.SortedFunc(slices.Values(b.in.Interfaces), func(x, y edge.Interface) int { return strings.Compare(x.Name, y.Name) })
	for _, backend := range row.Backends {
		if device := b.onLink(backend, sides); device != "" {
			return fmt.Sprintf("; of clients in the network of %s this machine's, as %s is there too", device, placeOfBackend(backend))
		}
	}
	return ""
}

func everywhere(listens []edge.Listen) bool {
	return slices.ContainsFunc(listens, func(l edge.Listen) bool { return l.Device == "" && !l.Addr.IsValid() })
}

// familiesOf says which clients' addresses a backend cannot see, for want of an
// address of their IP family.
func familiesOf(row Exposure, listens []edge.Listen) string {
	var clients, backends [2]bool // IPv4, IPv6
	for _, a := range row.Addresses {
		clients[family(a)] = true
	}
	if everywhere(listens) {
		clients = [2]bool{true, true}
	}
	for _, backend := range row.Backends {
		backends[family(backend.Addr.Addr())] = true
	}
	for f := range familyNames {
		if only := backends[1-f] && !backends[f]; clients[f] && only {
			return fmt.Sprintf("; of %s clients this machine's, as the backends have %s addresses", familyNames[f], familyNames[1-f])
		}
	}
	if backends[0] && backends[1] {
		return ", where client and backend are of one IP family; else this machine's"
	}
	return ""
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// affinityLost: kube-proxy keeps a client's pod by what it takes for the
// client's address, which is that of this machine for all of them.
func (b *builder) affinityLost(row Exposure, side string) {
	remedy := "use annotation " + annTarget + ": pod where pods can be reached from this machine"
	if nat := row.DataPlane == edge.DataPlaneNAT; side == "" && !nat {
		remedy += ", or annotation " + annTransparent + `: "true"`
	}
	b.problem(edge.Problem{
		Object: objectOf(row),
		What:   fmt.Sprintf("sessionAffinity: ClientIP with target %s: kube-proxy takes this machine for the one client there is, and sends all that a node gets to one of its pods", row.Target),
		Remedy: remedy,
	})
}
