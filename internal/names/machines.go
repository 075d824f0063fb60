package names

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// ofDHCP are machines that have an address by DHCP, and those that one is kept for.
func (b *builder) ofDHCP() {
	for i := range b.in.Config.DHCP {
		for _, r := range b.in.Config.DHCP[i].Reservations {
			if name := cmp.Or(r.Hostname, r.Node); name != "" && r.Address.IsValid() {
				b.add(host{name: under(strings.ToLower(name), b.dns.Domain), rank: ofReservation, addrs: []netip.Addr{r.Address}, why: r.Pos.String()})
			}
		}
	}
	leases := slices.Clone(b.in.Leases)
	slices.SortFunc(leases, func(x, y edge.Lease) int {
		return cmp.Or(x.Begun.Compare(y.Begun), strings.Compare(x.MAC, y.MAC), x.Addr.Compare(y.Addr))
	})
	first := map[string]string{} // whose a name is, by MAC
	for _, l := range leases {
		// A machine calls itself as it likes, but in the site's domain only, and not
		// as one that all others would believe.
		if l.Hostname == "" || l.Declined || strings.Contains(l.Hostname, ".") || config.Believed(strings.ToLower(l.Hostname)) {
			continue
		}
		name := strings.ToLower(l.Hostname) + "." + b.dns.Domain
		if mac, taken := first[name]; taken && mac != l.MAC {
			continue
		}
		first[name] = l.MAC
		r := ofLease
		if l.Reserved {
			r = ofReservation
		}
		b.add(host{name: name, rank: r, addrs: []netip.Addr{l.Addr}, why: "dhcp"})
	}
}

// Reverse is where the name of an address is (RFC 1035 §3.5, RFC 3596 §2.5).
func Reverse(a netip.Addr) string {
	const hex = "0123456789abcdef"
	bytes := a.Unmap().AsSlice()
	parts := make([]string, 0, 32)
	for _, c := range slices.Backward(bytes) {
		if len(bytes) == 4 {
			parts = append(parts, decimal(c))
			continue
		}
		parts = append(parts, hex[c&15:c&15+1], hex[c>>4:c>>4+1])
	}
	if len(bytes) == 4 {
		return strings.Join(parts, ".") + ".in-addr.arpa"
	}
	return strings.Join(parts, ".") + ".ip6.arpa"
}
