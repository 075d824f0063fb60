// Package nat owns the nftables table "inet gatehouse": the data plane in the
// kernel, which rewrites the addresses of what comes to a frontend so that it
// goes to a backend.
package nat

import (
	"context"
	"net/netip"

	"e13.dev/gatehouse/internal/edge"
)

// Table is the name of the table, of the family inet.
const Table = "gatehouse"

// State is what the table is for.
type State struct {
	// Frontends are those of edge.DataPlaneNAT; others are left out.
	Frontends []edge.Frontend
	// Hairpins are pairs of interfaces, from and to which packets are masqueraded.
	Hairpins [][2]string
}

// Count is what has gone through one door to and from one backend.
type Count struct {
	Door        edge.Door
	Backend     netip.AddrPort
	Connections uint64

	PacketsToBackend, BytesToBackend uint64
	PacketsToClient, BytesToClient   uint64
}

// Lack is something that this machine cannot do, and what can ("Linux 5.7").
type Lack struct{ What, Needs string }

// Applier makes the kernel have what a State says. Its methods are for one
// goroutine at a time, and act in the network namespace of the caller.
type Applier struct{}

// New returns an Applier. It does nothing yet.
func New() *Applier { return &Applier{} }

// Apply makes the table be what the state says.
func (a *Applier) Apply(context.Context, State) (changed bool, err error) { return false, nil }

// Verify reads what the kernel has, and mends what somebody has changed.
func (a *Applier) Verify(context.Context) (mended bool, err error) { return false, nil }

// Adopt says what the table in the kernel has, if there is one.
func (a *Applier) Adopt(context.Context) ([]edge.Door, map[edge.Door][]netip.AddrPort, error) {
	return nil, nil, nil
}

// Remove removes the table.
func (a *Applier) Remove(context.Context) (removed bool, err error) { return false, nil }

// Counters reads what has been counted.
func (a *Applier) Counters(context.Context) ([]Count, error) { return nil, nil }

// Forget deletes the counts that are not to be kept.
func (a *Applier) Forget(context.Context, func(edge.Door, netip.AddrPort) bool) error { return nil }

// Lacking says what nft and the kernel of this machine cannot do.
func Lacking(context.Context) ([]Lack, error) { return nil, nil }

// Obstacles are the chains of others that drop what is forwarded.
func Obstacles(context.Context) ([]string, error) { return nil, nil }
