package firstfile

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// YAML is the file. Prose begins with "# " and the examples with "#" alone, so
// that an example is switched on by taking away the first character of its
// lines.
func (f File) YAML() []byte {
	var b strings.Builder
	b.WriteString(`# A first configuration of gatehouse, proposed from the interfaces of this machine.
#
# Lines that begin with "#" and no space after it, or several, are examples: take
# the "#" away to have them. All fields are in docs/config.md. After each change:
#
# gatehouse check -c THIS-FILE      is it right?
# gatehouse plan -c THIS-FILE       what would be open, and why is something not?
apiVersion: gatehouse.e13.dev/v1

`)
	f.zones(&b)
	f.kubernetes(&b)
	b.WriteString(`
# What is known of the cluster, for a start while the API server is away.
stateDir: /var/lib/gatehouse

# What gatehouse tells of itself, on this machine only: gatehouse status and explain
# ask the socket, browsers and Prometheus http://127.0.0.1:9180/.
admin:
  socket: /run/gatehouse/api.sock
  listen: "127.0.0.1:9180"
`)
	f.examples(&b)
	return []byte(b.String())
}

func (f File) zones(b *strings.Builder) {
	b.WriteString(`# The networks that Services are opened in, each by its interfaces. Nothing is open
# in a zone unless a Service asks for it:
# kubectl annotate service NAME gatehouse.e13.dev/zones=` + f.example() + "\n")
	if len(f.Zones) == 0 {
		b.WriteString("# None was found that leads anywhere. This is how one is written:\n#zones:\n#  home: {interfaces: [eth1]}\n")
	} else {
		b.WriteString("zones:\n")
	}
	for _, z := range f.Zones {
		fmt.Fprintf(b, "  # %s\n", printable(z.Why))
		var names []string
		for _, l := range z.Links {
			fmt.Fprintf(b, "  # %s\n", Describe(l))
			names = append(names, scalar(l.Name))
		}
		fmt.Fprintf(b, "  %s: {interfaces: [%s]}\n", scalar(z.Name), strings.Join(names, ", "))
	}
	if len(f.LeftOut) > 0 {
		b.WriteString("# Left out:\n")
		for _, l := range f.LeftOut {
			fmt.Fprintf(b, "# %s: %s\n", spelled(l.Name), l.Why)
		}
	}
}

// Describe is an interface in a line.
func Describe(l edge.Link) string {
	var parts []string
	for _, a := range l.Addrs {
		parts = append(parts, a.String())
	}
	if l.Kind != "" && l.Kind != "device" {
		kind := l.Kind
		if l.Parent != "" {
			kind += " on " + l.Parent
		}
		parts = append(parts, kind)
	}
	if l.Wireless {
		parts = append(parts, "wireless")
	}
	if !l.Up {
		parts = append(parts, "down now")
	}
	return printable(l.Name + ": " + strings.Join(parts, ", "))
}

// example is the zone that examples are about.
func (f File) example() string {
	if len(f.Zones) == 0 {
		return home
	}
	return f.Zones[0].Name
}

func (f File) kubernetes(b *strings.Builder) {
	// The Internet is nobody's unless it is said whose. In other networks the reader
	// may decide.
	allow := "  # Who may ask for a zone at all; one that is not named here is for all.\n" +
		"#  allow:\n#    " + scalar(f.example()) + ":\n#      namespaces: [ingress-public]"
	if slices.ContainsFunc(f.Zones, func(z Zone) bool { return z.Name == internet }) {
		allow = "  # Who may ask for a zone at all; one that is not named here is for all. On the\n" +
			"  # Internet only Services of this namespace are opened: name yours.\n" +
			"  allow:\n    internet:\n      namespaces: [ingress-public]"
	}
	fmt.Fprintf(b, `
# The cluster whose Services of type LoadBalancer are opened: those of the class
# gatehouse.e13.dev/edge, and those that another controller gave an address.
kubernetes:
  # gatehouse kubeconfig writes it, with no more rights than are needed.
  kubeconfig: %s
%s
  # Services without a class as well, if nothing else answers them.
#  classless: true
  # Where Services are opened that name no zone.
#  defaultZones: [%s]
`, scalar(f.Kubeconfig), allow, scalar(f.example()))
}

func (f File) examples(b *strings.Builder) {
	zone := f.example()
	if pool, in, ok := f.pool(); ok {
		fmt.Fprintf(b, `
# Addresses that Services get for themselves, instead of sharing that of this machine
# by port. They have to be free: keep them out of the range of the DHCP server.
#pools:
#  - name: %[1]s
#    zone: %[1]s
#    addresses: [%[2]s]
`, scalar(in), pool)
	}
	fmt.Fprintf(b, `
# What is not in the cluster, by its address.
#frontends:
#  - name: nas
#    zones: [%s]
#    port: 8443
#    backends:
#      - address: "10.0.0.101:443"
`, scalar(zone))
	f.router(b)
}

// router is what this machine can be for the cluster's, if there is another zone
// to keep it apart from.
func (f File) router(b *strings.Builder) {
	has := func(name string) bool {
		return slices.ContainsFunc(f.Zones, func(z Zone) bool { return z.Name == name })
	}
	out, from := internet, home
	switch {
	case !has(cluster) || !has(home) && !has(internet):
		return
	case !has(internet):
		out = home
	case !has(home):
		from = cluster
	}
	fmt.Fprintf(b, `
# This machine as the router of the cluster, block by block; docs/guides/home.md has
# all of them. With a firewall nothing passes between zones, and nothing reaches this
# machine, but what policies say and gatehouse opens. So that you do not lock yourself
# out: gatehouse apply --confirm 60s NEW-FILE goes back by itself unless you confirm.
#firewall:
#  policies:
#    - {from: %[1]s, to: %[2]s, allow: true, masquerade: true}
#    - {from: %[3]s, to: self, ports: [ssh, ping]}
#dns:
#  zones: [%[1]s]
#  domain: home.example
`, cluster, out, from)
}

// pool is eight addresses at the end of a private network, where few DHCP servers
// are told to begin, without those of this machine.
func (f File) pool() (addresses, zone string, ok bool) {
	for _, z := range f.Zones {
		for _, l := range z.Links {
			for _, a := range l.Addrs {
				if !a.Addr().Is4() || !a.Addr().IsPrivate() || a.Bits() < 8 {
					continue
				}
				if block, ok := f.freeBlock(a.Masked()); ok {
					return block, z.Name, true
				}
			}
		}
	}
	return "", "", false
}

func (f File) freeBlock(network netip.Prefix) (string, bool) {
	const size = 8
	base := network.Addr().As4()
	first := binary.BigEndian.Uint32(base[:])
	last := first | (1<<(32-network.Bits()) - 1)
	// From the last but one, since the last ends with the broadcast address.
	for at := last + 1 - 2*size; at > first+size; at -= size {
		from, to := address4(at), address4(at+size-1)
		if !f.has(from, to) {
			return from.String() + "-" + to.String(), true
		}
	}
	return "", false
}

func (f File) has(from, to netip.Addr) bool {
	for _, z := range f.Zones {
		for _, l := range z.Links {
			if slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return a.Addr().Compare(from) >= 0 && a.Addr().Compare(to) <= 0 }) {
				return true
			}
		}
	}
	return false
}

func address4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

var (
	bare     = regexp.MustCompile(`^[A-Za-z/][-A-Za-z0-9_./]*$`)
	keywords = []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
)

// scalar is a word as YAML has to have it.
func scalar(s string) string {
	if bare.MatchString(s) && !slices.Contains(keywords, strings.ToLower(s)) {
		return s
	}
	return strconv.Quote(s)
}
