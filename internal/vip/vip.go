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
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

// grace is how long packets of UDP and SCTP pass a door that has gone: nobody
// can tell those of a session that is to end in peace.
const grace = time.Minute

// Options change what is usual; the zero Options do not.
type Options struct {
	// AskAgain is how long an address is left alone that somebody else has. 0: 30
	// seconds.
	AskAgain time.Duration
	// LookAgain is how often is looked whether an address is still used that is
	// not wanted any more. 0: 5 seconds.
	LookAgain time.Duration
}

// Keeper keeps addresses in the network namespace that its methods are called
// in.
type Keeper struct {
	log     *slog.Logger
	options Options
	changed chan struct{}
	poked   chan struct{} // the loop has something to do

	walling sync.Mutex // held by who changes the wall, before mu
	wall    wall

	mu        sync.Mutex
	entries   map[netip.Addr]*entry
	devices   map[string]*device
	machine   machine
	openings  map[opening]bool
	lingering map[opening]time.Time // until when packets pass that are of no opening
	dirty     bool                  // the machine is to be read again
	leaving   bool                  // there are entries that nobody wants
	added     []string              // since it was last said
	told      bool                  // of what Snapshot and Problems return now
	readError string
	wallError string
	problems  []edge.Problem
	changer   *changer
}

// New returns a Keeper. It starts nothing.
func New(log *slog.Logger, options Options) *Keeper {
	if options.AskAgain == 0 {
		options.AskAgain = 30 * time.Second
	}
	if options.LookAgain == 0 {
		options.LookAgain = 5 * time.Second
	}
	return &Keeper{
		log: log, options: options, changed: make(chan struct{}, 1), poked: make(chan struct{}, 1),
		entries: map[netip.Addr]*entry{}, devices: map[string]*device{},
		openings: map[opening]bool{}, lingering: map[opening]time.Time{}, told: true,
	}
}

// Adopt takes over what a process before has left: those addresses are ready,
// and stay until Apply says what is wanted.
func (k *Keeper) Adopt(ctx context.Context) error {
	k.walling.Lock()
	defer k.walling.Unlock()
	m, err := readMachine()
	if err != nil {
		return fmt.Errorf("vip: %w", err)
	}
	k.mu.Lock()
	for addr, places := range m.where {
		for _, p := range places {
			if p.ours && k.entries[addr] == nil {
				k.entries[addr] = &entry{addr: addr, device: m.names[p.index], wanted: true, walled: true, phase: on, queued: -1}
			}
		}
	}
	k.settle(m, time.Now())
	n := len(k.entries)
	k.mu.Unlock()
	if n == 0 {
		return nil
	}
	k.log.Info("addresses of pools are here already", "addresses", n)
	if err := k.wall.look(ctx); err != nil {
		return fmt.Errorf("vip: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range k.wall.openings {
		k.openings[o] = true
	}
	return nil
}

// Apply makes the addresses those of this machine, in the background, and has
// them answer for doors that name them, at the doors' devices. What is not among
// the addresses any more is taken off its interface once no connection uses it.
// The error is of the wall around them: nothing is to be opened at them then.
func (k *Keeper) Apply(ctx context.Context, addresses []edge.Address, doors []edge.Door) error {
	k.want(addresses, doors, time.Now())
	err := k.raise(ctx)
	k.poke()
	if err != nil {
		return fmt.Errorf("vip: %w", err)
	}
	return nil
}

// want takes down what is wanted.
func (k *Keeper) want(addresses []edge.Address, doors []edge.Door, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wanted := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		addr := a.Addr.Unmap()
		if !addr.IsValid() || addr.Zone() != "" {
			continue
		}
		wanted[addr] = true
		e := k.entries[addr]
		if e == nil {
			e = &entry{addr: addr, queued: -1}
			k.entries[addr] = e
		}
		if !e.wanted || e.device != a.Device {
			k.dirty = true
		}
		if e.device != a.Device {
			k.unqueue(e)
			e.device, e.phase, e.walled, e.conflict, e.err = a.Device, waiting, false, "", ""
		}
		if !e.wanted {
			e.err = "" // of leaving
		}
		e.wanted, e.why = true, a.Why
		k.note(e)
	}
	for addr, e := range k.entries {
		switch {
		case wanted[addr] || !e.wanted:
		case e.phase == on:
			e.wanted, e.leaveBy = false, now.Add(longestStay)
			k.leaving = true
		default:
			k.forget(e)
		}
	}
	openings := map[opening]bool{}
	for _, d := range doors {
		if o, ok := openingOf(d); ok && wanted[o.addr] {
			openings[o] = true
			delete(k.lingering, o)
		}
	}
	for o := range k.openings {
		if !openings[o] && o.protocol != unix.IPPROTO_TCP {
			k.lingering[o] = now.Add(grace)
		}
	}
	k.openings = openings
}

// content says what the wall is to be about.
func (k *Keeper) content(now time.Time) content {
	c := content{places: make(map[netip.Addr]string, len(k.entries)), openings: maps.Clone(k.openings)}
	for addr, e := range k.entries {
		if nameable(e.device) && e.device != "" {
			c.places[addr] = e.device
		}
	}
	for o, until := range k.lingering {
		if c.places[o.addr] == "" || !now.Before(until) {
			delete(k.lingering, o)
		} else {
			c.openings[o] = true
		}
	}
	return c
}

// inWords is why there is no wall, as people are told it.
func inWords(err error) string {
	for _, known := range []error{nft.ErrNotInstalled, nft.ErrNotPermitted} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// raise makes the wall what it is to be. Only then are addresses put behind it.
func (k *Keeper) raise(ctx context.Context) error {
	k.walling.Lock()
	defer k.walling.Unlock()
	k.mu.Lock()
	c := k.content(time.Now())
	k.mu.Unlock()
	changed, err := k.wall.apply(ctx, c)
	if err == nil && changed {
		k.log.Debug("wall changed", "addresses", len(c.places), "openings", len(c.openings))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	text := ""
	if err != nil {
		text = inWords(err)
	}
	if k.wallError != text {
		k.wallError, k.told = text, false
	}
	for addr, e := range k.entries {
		if err == nil && !e.walled && c.places[addr] == e.device {
			e.walled, k.dirty = true, true
		}
		k.note(e)
	}
	return err
}

// mend looks whether the wall is what it is to be, and makes it so.
func (k *Keeper) mend(ctx context.Context) {
	k.walling.Lock()
	k.wall.known, k.wall.sound = false, false
	k.walling.Unlock()
	_ = k.raise(ctx) // the error is among the problems
}

// Snapshot says how far each address is. Those that are leaving are among them.
func (k *Keeper) Snapshot() map[netip.Addr]edge.AddressState {
	k.mu.Lock()
	defer k.mu.Unlock()
	states := make(map[netip.Addr]edge.AddressState, len(k.entries))
	for addr, e := range k.entries {
		states[addr] = e.published
	}
	return states
}

// Changed is signalled when Snapshot or Problems would return something else.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Problems says what is wrong with the machine as a whole.
func (k *Keeper) Problems() []edge.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.problems)
}

func (k *Keeper) poke() {
	select {
	case k.poked <- struct{}{}:
	default:
	}
}

// Left says whether there are addresses that a process before has left. It takes
// no rights, and runs nothing.
func Left() (bool, error) {
	addresses, err := again(listAddresses)
	if err != nil {
		return false, fmt.Errorf("vip: list addresses: %w", err)
	}
	return slices.ContainsFunc(addresses, func(a address) bool { return a.ours }), nil
}

// Remove takes all that is ours off this machine, and says whether there was
// something.
func Remove(ctx context.Context) (removed bool, err error) {
	addresses, err := again(listAddresses)
	if err != nil {
		return false, fmt.Errorf("vip: list addresses: %w", err)
	}
	c, err := newChanger()
	if err != nil {
		return false, fmt.Errorf("vip: %w", err)
	}
	defer c.close()
	var errs []error
	for _, a := range addresses {
		if !a.ours {
			continue
		}
		if err := c.remove(a.addr, a.index); err != nil {
			errs = append(errs, fmt.Errorf("vip: remove %s: %w", a.addr, err))
			continue
		}
		removed = true
	}
	if len(errs) > 0 { // behind their wall
		return removed, errors.Join(errs...)
	}
	w, err := readWall(ctx)
	if errors.Is(err, nft.ErrNotInstalled) && !removed {
		return false, nil // there was never a wall
	}
	if err == nil && w.exists {
		removed = true
		err = run(ctx, replacement(nil))
	}
	if err != nil {
		return removed, fmt.Errorf("vip: remove the wall: %w", err)
	}
	return removed, nil
}
