// Package pools gives addresses to Services. Assign is pure: no clock, no I/O,
// and the same input in any order gives the same output.
//
//	result := pools.Assign(pools.Input{Pools: ..., Wants: ..., Before: allocations})
//	outcome := result.Of[pools.Place{Service: "shop/web", Zone: "home"}]
//	allocations = result.Allocations // for the next time, without what was held long enough
//
// Who has an address keeps it: what was decided before and what the status of a
// Service says come first, then requests, then whoever has none, each oldest
// first. An address that nobody has any more comes back as held: only the
// Service of that name may have it again, until who calls leaves it out, since
// neighbours and clients still know it as somebody else's.
//
// What a Service has is counted by slots: one for each network of a zone, and
// one for each family of what is in none of them (space.go).
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
// Device: they are routed here by others. An address that is in several is in
// the longest; several interfaces in one network count as the first of them.
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
	// family and network. Where it asks for none, the pools that are Auto serve it.
	// All that a Service asks for may be in each of its Wants: what belongs to
	// another zone that it wants is of no concern here. What belongs to none is
	// missed in each, and there is nothing in its place.
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
	Pools    []Pool    // no two overlap
	Networks []Network // of zones; an interface with addresses of both families has two
	// Away are the zones of which an interface is missing, or has no addresses.
	// What seems to be in no network may be in one of that interface: all that
	// Services have there is theirs until it is back. A zone without a Network is
	// away, too.
	Away map[string]bool
	// Own are the addresses that the interfaces of each zone have for themselves.
	// They are in no pool's gift, and may be asked for.
	Own   map[string][]netip.Addr
	Wants []Want // oldest Service first; no two of one Service and zone
	// Before are the allocations of the last decision, and those that are held.
	Before []edge.Allocation
	// Unusable are addresses that cannot be had, with the reason: somebody else
	// answers for them, or the network has them for itself. What the Networks say
	// of this need not be here.
	Unusable map[netip.Addr]string
}

// Given is an address that a Service has in a zone.
type Given struct {
	Addr netip.Addr
	Pool string
	// Device is the interface in whose network it is; empty: in none.
	Device string
}

// Failure is an address that a Service does not get; with AddressConflict it
// can be one that is among those given, and is to be had once the other one is
// gone.
type Failure struct {
	Code         string // PoolExhausted, AddressInUse, AddressNotInPool, AddressNotAllowed, AddressConflict
	What, Remedy string
	Family       int // 4 or 6; 0: not known
}

// The codes of failures.
const (
	PoolExhausted     = "PoolExhausted"
	AddressInUse      = "AddressInUse"
	AddressNotInPool  = "AddressNotInPool"
	AddressNotAllowed = "AddressNotAllowed"
	AddressConflict   = "AddressConflict"
)

// Outcome is what a Service has in a zone.
type Outcome struct {
	Given []Given // sorted by address
	// Own are the networks whose interface's own address serves it, since no pool
	// does, or since it asks for that.
	Own      []Network
	Failures []Failure
}

// Place is a Service in a zone.
type Place struct{ Service, Zone string }

// Result is who has what.
type Result struct {
	Of map[Place]Outcome // each of Input.Wants has one
	// Allocations are all that were given, sorted by address, then Service; and as
	// Held those of Input.Before that nobody has any more and that are still of a
	// pool, whether they were held or not. Who calls leaves them out of the next
	// Before once they were held long enough.
	Allocations []edge.Allocation
}

// Assign gives every Want its addresses.
func Assign(in Input) Result {
	a := newAssignment(&in)
	a.keep()
	a.fulfil()
	a.serve()
	return a.result()
}
