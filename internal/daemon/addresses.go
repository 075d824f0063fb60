package daemon

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/vip"
)

// keeper keeps addresses of pools on the machine: a vip.Keeper, or a test's.
type keeper interface {
	Adopt(ctx context.Context) error
	Apply(ctx context.Context, addresses []edge.Address, doors []edge.Door) error
	Snapshot() map[netip.Addr]edge.AddressState
	Changed() <-chan struct{}
	Problems() []edge.Problem
	Run(ctx context.Context) error
}

// addresses are those of pools, as this machine has them. Where there never was
// a pool the keeper is not asked for anything.
type addresses struct {
	log     *slog.Logger
	keeper  keeper
	left    func() (bool, error) // a process before has left some
	changed func()
	task    slot

	mu      sync.Mutex
	adopted bool   // the keeper is wanted, and knows what was there before
	looked  bool   // it was looked whether a process before has left something
	retired bool   // another process has taken over
	failure string // why the keeper could not do what it was told last
	// What it has done: the wall around these addresses stands, and these doors are
	// in it.
	walled map[netip.Addr]bool
	doors  []edge.Door

	conflicts map[netip.Addr]conflict // some of which nobody wants any more
}

// conflict is what was seen of an address that somebody else has.
type conflict struct {
	state edge.AddressState
	seen  time.Time
	timed bool // it is looked at once more when it is over
}

// conflictKept is how long an address is not given to anybody after somebody
// else was seen to have it. The keeper knows only of those that are wanted: who
// has moved on to another one would get the same again, and again.
const conflictKept = time.Minute

// keeperTask is the one task of the slot.
const keeperTask = "keeper"

// want starts the keeper, once.
func (a *addresses) want(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.adopted {
		if err := a.keeper.Adopt(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("addresses of before not read", "err", err)
		}
		a.adopted = true
	}
	if !a.retired {
		a.task.set(ctx, keeperTask, a.run)
	}
}

// areLeft says whether a process before has left addresses, though there may be no
// pool any more: they would be open to whoever has the ports now.
func (a *addresses) areLeft() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.looked || a.adopted {
		return a.adopted
	}
	a.looked = true
	left, err := a.left()
	if err != nil {
		a.log.Warn("addresses of before not read", "err", err)
	}
	return left
}

// addressesLeft says whether there are addresses that nobody looks after: those of
// another gatehouse that runs here are its own.
func (d *Daemon) addressesLeft() (bool, error) {
	left, err := vip.Left()
	return left && !d.kernel.isOfAnother(), err
}

func (a *addresses) wanted() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.adopted
}

// run keeps the keeper running.
func (a *addresses) run(ctx context.Context) {
	forwarding, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for {
			select {
			case <-forwarding.Done():
				return
			case <-a.keeper.Changed():
				a.changed()
			}
		}
	}()
	for {
		if err := a.keeper.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			a.log.Error("keeping addresses ended, it is tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryInterval):
		}
	}
}

// retire leaves the addresses to another process, or takes them back: then the
// next decision starts the keeper again.
func (a *addresses) retire(retired bool) {
	a.mu.Lock()
	a.retired = retired
	a.mu.Unlock()
	if retired {
		a.task.stop()
	}
	a.changed()
}

// snapshot says how far each is.
func (a *addresses) snapshot() map[netip.Addr]edge.AddressState {
	if !a.wanted() {
		return nil
	}
	return a.withConflicts(a.keeper.Snapshot(), time.Now())
}

// withConflicts adds those that were seen a short while ago.
func (a *addresses) withConflicts(states map[netip.Addr]edge.AddressState, now time.Time) map[netip.Addr]edge.AddressState {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr, s := range states {
		if !s.Ready && s.Conflict != "" {
			if a.conflicts == nil {
				a.conflicts = map[netip.Addr]conflict{}
			}
			a.conflicts[addr] = conflict{state: s, seen: now}
		} else {
			delete(a.conflicts, addr)
		}
	}
	for addr, c := range a.conflicts {
		if _, wanted := states[addr]; wanted {
			continue
		}
		left := conflictKept - now.Sub(c.seen)
		if left <= 0 {
			delete(a.conflicts, addr)
			continue
		}
		if !c.timed {
			c.timed = true
			a.conflicts[addr] = c
			time.AfterFunc(left, a.changed)
		}
		if states == nil {
			states = map[netip.Addr]edge.AddressState{}
		}
		states[addr] = c.state
	}
	return states
}

// apply makes the addresses those of this machine, and has it answer at them for
// what is decided and not known to be shut, and for what the kernel still
// forwards. It returns how far the addresses are if that fails: at those that no
// wall is around nothing may be opened, and what is in the wall goes on.
func (a *addresses) apply(ctx context.Context, state desired.State, shut map[edge.Door]string, kept []edge.Door) (failed map[netip.Addr]edge.AddressState) {
	if !a.wanted() {
		return nil
	}
	doors := doorsAt(state, shut, kept)
	err := a.keeper.Apply(ctx, state.Addresses, doors)
	if ctx.Err() != nil {
		return nil // it is over: the error says nothing of the machine
	}
	if err != nil {
		failed = a.snapshot() // with what was seen of others: nobody is to be given that now
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.failure, a.walled, a.doors = "", make(map[netip.Addr]bool, len(state.Addresses)), doors
		for _, addr := range state.Addresses {
			a.walled[addr.Addr] = true
		}
		return nil
	}
	a.failure = inWords(err)
	if failed == nil {
		failed = map[netip.Addr]edge.AddressState{}
	}
	for _, addr := range state.Addresses {
		if !a.walled[addr.Addr] {
			failed[addr.Addr] = edge.AddressState{Error: "it cannot be walled off: " + a.failure}
		}
	}
	return failed
}

// differs says whether the wall is to have other doors than it has: some could
// not be opened, or can now.
func (a *addresses) differs(state desired.State, shut map[edge.Door]string, kept []edge.Door) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.adopted && a.failure == "" && !slices.Equal(a.doors, doorsAt(state, shut, kept))
}

// doorsAt are the doors at addresses of pools, and those of kept that are. One
// that is shut may be open to somebody else's program.
func doorsAt(state desired.State, shut map[edge.Door]string, kept []edge.Door) []edge.Door {
	there := make(map[netip.Addr]bool, len(state.Addresses))
	for _, a := range state.Addresses {
		there[a.Addr] = true
	}
	var doors []edge.Door
	for _, f := range state.Frontends {
		if _, closed := shut[f.Door]; !closed {
			doors = append(doors, f.Door)
		}
	}
	doors = slices.DeleteFunc(append(doors, kept...), func(d edge.Door) bool { return !there[d.Listen.Addr] })
	slices.SortFunc(doors, func(x, y edge.Door) int {
		return cmp.Or(x.Listen.Addr.Compare(y.Listen.Addr), cmp.Compare(x.Listen.Device, y.Listen.Device),
			cmp.Compare(x.Listen.Port, y.Listen.Port), cmp.Compare(x.Protocol, y.Protocol))
	})
	return slices.Compact(doors)
}

// inWords is an error of the keeper as people are told it.
func inWords(err error) string {
	for _, known := range []error{nft.ErrNotInstalled, nft.ErrNotPermitted} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// failing says whether the keeper is to be told once more.
func (a *addresses) failing() bool { return a.whyNot() != "" }

// whyNot is why it could not do what it was told; empty: it could.
func (a *addresses) whyNot() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failure
}

func (a *addresses) problems() []edge.Problem {
	if !a.wanted() {
		return nil
	}
	problems := slices.Clone(a.keeper.Problems())
	a.mu.Lock()
	defer a.mu.Unlock()
	said := func(p edge.Problem) bool { return strings.HasSuffix(p.What, a.failure) }
	if a.failure != "" && !slices.ContainsFunc(problems, said) {
		problems = append(problems, edge.Problem{
			Object: "addresses", What: "nothing more is opened at addresses of pools: " + a.failure, Remedy: "it is tried again",
		})
	}
	return problems
}

// forwarded are the doors that the kernel has from before, as long as not all is
// known that they were made from.
func (k *kernel) forwarded() []edge.Door {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.inherits {
		return nil
	}
	var doors []edge.Door
	for _, f := range k.applied.Frontends {
		if f.Listen.Addr.IsValid() {
			doors = append(doors, f.Door)
		}
	}
	return doors
}
