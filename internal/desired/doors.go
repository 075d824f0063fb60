package desired

import (
	"net/netip"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// A claim is a door that somebody has. Who comes first has it: the admin
// address, then the files in their order, then Services by age and name.
// Interfaces need not exist to be claimed, or a cable that is pulled would
// decide a conflict anew.
type claim struct {
	name    string // for people: "service shop/web", "frontend git-ssh (gatehouse.yaml:9)"
	service string
	listen  edge.Listen
}

type claimKey struct {
	protocol edge.Protocol
	port     uint16
}

// claim takes all the doors of a row, or none and returns who has one of them.
func (b *builder) claim(row Exposure, listens []edge.Listen) *claim {
	key := claimKey{row.Protocol, row.Port}
	for _, l := range listens {
		for i, other := range b.claims[key] {
			if overlap(l, other.listen) {
				return &b.claims[key][i]
			}
		}
	}
	name := "frontend " + row.Name + " (" + row.Why + ")"
	if row.Service != "" {
		name = "service " + row.Service
	}
	for _, l := range listens {
		b.claims[key] = append(b.claims[key], claim{name: name, service: row.Service, listen: l})
	}
	return nil
}

// overlap says whether the kernel would refuse to bind both: a socket bound to
// no device is in the way on each of them, and one bound to no address likewise.
func overlap(x, y edge.Listen) bool {
	if x.Port != y.Port || x.Device != "" && y.Device != "" && x.Device != y.Device {
		return false
	}
	return !x.Addr.IsValid() || !y.Addr.IsValid() || x.Addr == y.Addr
}

// claimAdmin keeps frontends off the port of the status page.
func (b *builder) claimAdmin() {
	admin := b.in.Config.Admin
	if admin.Listen == "" {
		return
	}
	// config.Parse lets no other name through.
	ap, err := netip.ParseAddrPort(strings.Replace(admin.Listen, "localhost:", "127.0.0.1:", 1))
	if err != nil {
		return
	}
	key := claimKey{edge.TCP, ap.Port()}
	b.claims[key] = append(b.claims[key], claim{
		name: "admin.listen (" + admin.Pos.String() + ")", listen: edge.Listen{Addr: ap.Addr(), Port: ap.Port()},
	})
}
