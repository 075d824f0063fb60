// Package dhcp gives IPv4 addresses to the machines of zones (RFC 2131). What is
// answered is decided by a Book, which is pure: it has the leases in memory, and
// knows no clock and no socket. A Server hears machines, has a Journal keep what
// was decided, and answers once that is done.
//
//	zones, problems := dhcp.Plan(dhcp.Inputs{Config: c, Interfaces: interfaces})
//	server := dhcp.NewServer(log, leases, journal, changed)
//	problems = append(problems, server.Apply(zones)...)
//
// Where leases are kept, and what else follows from them, is left to others.
package dhcp

import (
	"net"
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

const (
	// OfferTime is how long an address is held for a machine that it was offered
	// to: those that want it say so within a few seconds.
	OfferTime = 30 * time.Second
	// DeclineTime is how long an address is set aside that somebody was found at who
	// was not given it. It is asked for again before somebody gets it.
	DeclineTime = 10 * time.Minute
	// shortestLease is given to whoever asks for less.
	shortestLease = 2 * time.Minute
	// longestID is how many bytes an identifier of a client has at most: those of one
	// option (RFC 2132 section 9.14).
	longestID = 255
	// fullTime is how long a pool counts as used up that was found to be.
	fullTime = time.Second
	// rivalTime is how long another server is remembered that was heard of.
	rivalTime = time.Hour
)

// Zone is what is given to the machines of one.
type Zone struct {
	Name         string
	LeaseTime    time.Duration
	Probe        bool
	Devices      []Device
	Networks     []Network // those of interfaces, then those behind relay agents
	Reservations []config.Reservation
	reserved     map[netip.Addr]config.Reservation // the same
	// Own are this machine's IPv4 addresses, by all of which it is meant.
	Own []netip.Addr
	Pos edge.Pos
}

// Device is an interface that machines of a zone are heard on.
type Device struct {
	Name  string
	Index int
	Addr  netip.Addr // this machine's first one there
}

// Network is one that machines of a zone are in.
type Network struct {
	Prefix netip.Prefix
	Device string     // empty: it is behind a relay agent
	Self   netip.Addr // this machine's address in it; zero: it has none
	Router netip.Addr // of one behind a relay agent; zero: that agent
	Pools  []edge.Range
	// Options are those of the zone, with Routers and DNS as they are in this
	// network if that can be said without asking who relays.
	Options config.DHCPOptions
	// DNSHere says that DNS is this machine.
	DNSHere bool
	// Taken are addresses in Pools that are given to nobody: this machine's, and
	// those that Options name.
	Taken map[netip.Addr]bool
}

// pooled says whether an address is given to whoever comes.
func (n *Network) pooled(a netip.Addr) bool {
	if n.Taken[a] {
		return false
	}
	for _, r := range n.Pools {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// size is how many addresses are given to whoever comes.
func (n *Network) size() int {
	size := -len(n.Taken)
	for _, r := range n.Pools {
		size += config.RangeSize(r)
	}
	return size
}

// device is the one with that name, or nil.
func (z *Zone) device(name string) *Device {
	for i := range z.Devices {
		if z.Devices[i].Name == name {
			return &z.Devices[i]
		}
	}
	return nil
}

// addr4 is the address in a field of a message; zero if there is none.
func addr4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsValid() && a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// broadcastOf is the address of all machines of a network.
func broadcastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
