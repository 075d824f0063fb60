// Package dhcpclient asks DHCP servers for an IPv4 address of an interface, and
// keeps it (RFC 2131).
//
//	c := dhcpclient.New(dhcpclient.Options{Link: "veth0", Hostname: "rpi0", File: "/var/lib/gatehouse/dhcp-client-veth0.json", Log: log, Changed: kick})
//	go c.Run(ctx)
//	c.Link(dhcpclient.Link{Index: 7, MAC: mac, Running: true})
//	lease, ok := c.Lease()
//
// It sends and receives packets, and puts no address anywhere: that, and telling it
// how the interface is, is for who uses it. What to do when is decided by machine,
// which has no clock and no socket. The last lease is kept in a file, so that the
// next process asks for the same address and goes on with it meanwhile. It is given
// back by Release alone, not by stopping.
package dhcpclient

import (
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Lease is what a server has said.
type Lease struct {
	edge.LinkLease         // Expires is zero if it has no end
	MAC            string  `json:"mac"` // of the interface that it was given to
	Routes         []Route `json:"routes,omitempty"`
	MTU            int     `json:"mtu,omitempty"`
	// When it is asked for more time: the server that gave it, then any.
	Renew  time.Time `json:"renew,omitzero"`
	Rebind time.Time `json:"rebind,omitzero"`
}

// Route is one of option 121 (RFC 3442).
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"` // 0.0.0.0: neighbours
}

// expired says whether it may not be used any more.
func (l *Lease) expired(now time.Time) bool {
	return !l.Expires.IsZero() && !now.Before(l.Expires)
}

// Link is how the interface is.
type Link struct {
	Index   int
	MAC     [6]byte
	Running bool // it can pass packets
	Addrs   []netip.Prefix
}
