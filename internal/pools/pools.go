// Package pools gives addresses to Services. Assign is pure: no clock, no I/O,
// and the same input in any order gives the same output.
//
// Who has an address keeps it: what was decided before and what the status of a
// Service says come first, then requests, then whoever has none, each oldest
// first. An address that nobody has any more is held for a while by who decides
// when to call, since neighbours and clients still know it as somebody else's.
package pools

import (
	"net/netip"

	"e13.dev/gatehouse/internal/edge"
)

// Pool is a set of addresses of one zone.
type Pool struct {
	Name, Zone string
	Ranges     []edge.Range
	Auto       bool // for who asks for none
}

// Network is one network of a zone: that of an interface of it. Of each a
// Service gets an address for each of its families, from a pool that has some
// there, or the one that the interface has for itself. Addresses of pools that
// are in none of the networks of their zone are in one more, which has no
// Device: they are routed here by others.
type Network struct {
	Zone   string
	Device string
	Prefix netip.Prefix
}

// Want is what one Service wants in one zone.
type Want struct {
	Service, UID string // namespace/name
	Zone         string
	IPv4, IPv6   bool     // families that it is to have
	Pools        []string // names of the zone's pools that it may have addresses of
	// Addresses and Named are what it asks for: addresses, of pools of this zone or
	// the zone's own, and names of pools, of each of which it wants an address per
	// family and network. Without either, the pools that are Auto serve it.
	Addresses []netip.Addr
	Named     []string
	// Key says with whom it shares its addresses: with those of the same Key. It
	// has the namespace in it. Empty: with nobody.
	Key string
	// Status are the addresses that its status names.
	Status []netip.Addr
}

// Input is all that is known.
type Input struct {
	Pools    []Pool
	Networks []Network // of zones; an interface with addresses of both families has two
	// Own are the addresses that the interfaces of each zone have for themselves.
	// They are in no pool's gift, and may be asked for.
	Own   map[string][]netip.Addr
	Wants []Want // oldest Service first
	// Before are the allocations of the last decision, and those that are held.
	Before []edge.Allocation
	// Unusable are addresses that cannot be had, with the reason: somebody else
	// answers for them, or the network has them for itself.
	Unusable map[netip.Addr]string
}

// Given is an address that a Service has in a zone.
type Given struct {
	Addr netip.Addr
	Pool string
	// Device is the interface in whose network it is; empty: in none.
	Device string
}

// Failure is an address that a Service does not get.
type Failure struct {
	Code         string // PoolExhausted, AddressInUse, AddressNotInPool, AddressNotAllowed, AddressConflict
	What, Remedy string
	Family       int // 4 or 6; 0: not known
}

// Outcome is what a Service has in a zone.
type Outcome struct {
	Given []Given // sorted by address
	// Own are the networks whose interface's own address serves it, since no pool
	// does.
	Own      []Network
	Failures []Failure
}

// Place is a Service in a zone.
type Place struct{ Service, Zone string }

// Result is who has what.
type Result struct {
	Of map[Place]Outcome // each of Input.Wants has one
	// Allocations are all that were given, sorted by address, then Service; and
	// those of Input.Before that are held.
	Allocations []edge.Allocation
}

// Assign gives every Want its addresses.
func Assign(in Input) Result {
	r := Result{Of: make(map[Place]Outcome, len(in.Wants))}
	for _, w := range in.Wants {
		r.Of[Place{w.Service, w.Zone}] = Outcome{Own: in.Networks}
	}
	return r
}
