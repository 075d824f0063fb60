package firstfile

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// ofContainers are interfaces that container engines, network plugins and
// hypervisors make for what runs on this machine, by the names that they give.
var ofContainers = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12}|podman[0-9]+|cni[-0-9].*|cni-podman[0-9]+|cbr0|crio[0-9]*|kube-bridge|` +
	`virbr[0-9]+(-nic)?|lxcbr[0-9]+|lxdbr[0-9]+|incusbr[0-9]+|vnet[0-9]+|tap[0-9a-f]+.*|` +
	`flannel.*|cali[0-9a-f]+|vxlan(-v6)?\.calico|wireguard\.cali|tunl0|cilium_.*|lxc[0-9a-f_]+|weave|antrea-.*|ovn-.*|ovs-.*|genev_.*|kube-ipvs0|nodelocaldns|` +
	`veth[0-9a-f]{7,}.*)$`)

// leaveOut says why an interface is not one that clients come from; empty if it
// may be.
func leaveOut(l edge.Link) string {
	switch {
	case l.Loopback:
		return "the loopback"
	case !plain(l.Name):
		return "its name cannot be written into a file"
	case ofContainers.MatchString(l.Name):
		return "made for containers of this machine"
	case slices.Contains([]string{"dummy", "ifb", "nlmon", "vcan", "netkit"}, l.Kind):
		return "a " + l.Kind + ", which leads nowhere"
	case slices.Contains([]string{"ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "vti", "vti6", "vxlan", "geneve", "erspan"}, l.Kind):
		return "a tunnel (" + l.Kind + ")"
	case l.Master != "":
		return "a part of " + spelled(l.Master)
	case len(l.Addrs) == 0 && !l.Up:
		return "down, and without an address"
	case len(l.Addrs) == 0:
		return "without an address"
	}
	return ""
}

// plain names are those that can be written anywhere: printable ASCII, and what
// the kernel does not take in names (dev_valid_name) is not in them.
func plain(name string) bool {
	return name != "" && len(name) <= 15 && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' })
}

// spelled is a name as it can be written into a comment.
func spelled(name string) string {
	if plain(name) {
		return name
	}
	return strconv.QuoteToASCII(name)
}

func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, name)
}

// tunnel says whether what comes in by an interface has come through a tunnel to
// this machine: one of those that people make, with addresses of its own.
func tunnel(l edge.Link) bool {
	return slices.Contains([]string{"wireguard", "tun", "tuntap", "ppp"}, l.Kind) && !public(l)
}

// public says whether anybody reaches an interface. With IPv6 every machine at
// home has such an address: there it is the IPv4 one that tells, if there is one.
func public(l edge.Link) bool {
	four := slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return a.Addr().Is4() })
	return slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return a.Addr().Is4() == four && isPublic(a.Addr()) })
}

// shared is what providers use towards their customers (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}
