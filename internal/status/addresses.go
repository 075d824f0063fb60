package status

import (
	"math"
	"net/netip"
	"strconv"
	"time"
)

// AddressState is how far an address of a pool is.
type AddressState string

// An address is pending until it was asked for whether somebody else has it, and
// it was announced.
const (
	AddressReady    AddressState = "ready"
	AddressPending  AddressState = "pending"
	AddressConflict AddressState = "conflict" // somebody else answers for it
	AddressFailed   AddressState = "failed"
	AddressHeld     AddressState = "held" // nobody has it, and it is not free yet
)

// AddressStates are all there are.
var AddressStates = []AddressState{AddressReady, AddressPending, AddressConflict, AddressFailed, AddressHeld}

// Address is an address of a pool that Services have or, until a while ago, had.
type Address struct {
	Addr     netip.Addr   `json:"addr"`
	Pool     string       `json:"pool"`
	Zone     string       `json:"zone"`
	Device   string       `json:"device,omitempty"` // absent: it is on none
	Services []string     `json:"services"`         // namespace/name
	State    AddressState `json:"state"`
	Conflict string       `json:"conflict,omitempty"` // the hardware address of who answers for it
	Error    string       `json:"error,omitempty"`    // why it is not ready
	Until    time.Time    `json:"until,omitzero"`     // of one that is held: when it is free
}

// Says is its state in words.
func (a Address) Says(now time.Time) string {
	switch {
	case a.State == AddressHeld:
		return "held, free in " + Age(max(a.Until.Sub(now), 0))
	case a.Conflict != "":
		return string(a.State) + ": " + a.Conflict + " answers for it"
	case a.Error != "":
		return string(a.State) + ": " + a.Error
	}
	return string(a.State)
}

// Pool says how much of a pool is used. Numbers of addresses are cut off at
// Many.
type Pool struct {
	Name string `json:"name"`
	Zone string `json:"zone"`
	// Addresses are all of it: Given, Held, Free and Unusable, which are those that
	// the network or this machine has for itself, or that somebody else answers for.
	Addresses uint64 `json:"addresses"`
	Given     uint64 `json:"given"`
	Held      uint64 `json:"held"`
	Free      uint64 `json:"free"`
	Unusable  uint64 `json:"unusable"`
	// Families are the same numbers, of IPv4 and IPv6 apart: those that it has.
	Families []PoolFamily `json:"families,omitempty"`
}

// PoolFamily says how much of a pool's addresses of one family is used.
type PoolFamily struct {
	Family    string `json:"family"` // "ipv4", "ipv6"
	Addresses uint64 `json:"addresses"`
	Given     uint64 `json:"given"`
	Held      uint64 `json:"held"`
	Free      uint64 `json:"free"`
	Unusable  uint64 `json:"unusable"`
}

// Many is a number of addresses that nobody counts.
const Many = math.MaxUint64

// Says is how much of it is used, in words.
func (p Pool) Says() string {
	text := Count(p.Given) + " given, "
	if p.Held > 0 {
		text += Count(p.Held) + " held, "
	}
	text += Count(p.Free) + " free"
	if p.Unusable > 0 {
		text += ", " + Count(p.Unusable) + " unusable"
	}
	return text
}

// Count prints a number of addresses.
func Count(n uint64) string {
	if n == Many {
		return "very many"
	}
	return strconv.FormatUint(n, 10)
}
