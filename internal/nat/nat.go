// Package nat owns the nftables table "inet gatehouse": the data plane in the
// kernel, which rewrites the addresses of what comes to a frontend so that it
// goes to a backend, also while this program does not run. It leaves alone what
// others have in tables of their own, and packets' marks, which others use.
//
//	a := nat.New()
//	changed, err := a.Apply(ctx, nat.State{Frontends: frontends})
//
// The table is a fixed layout of chains, maps and sets. What the configuration
// says is in elements of those: a door is one, each of its backends some slots,
// so that a packet looks at as many rules with ten thousand doors as with one,
// and a change is as small as what changes. It is made by the nft command, in
// one transaction: packets meet a door as it was or as it is now.
//
// The table is meant to outlive the program. The next one reads it and goes on.
package nat

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

// Table is the name of the table, of the family inet.
const Table = "gatehouse"

const family = knftables.InetFamily

// State is what the table is for. The zero State is for nothing.
type State struct {
	// Frontends are those of edge.DataPlaneNAT, each with a Listen.Device; others
	// are passed over. One with a Listen.Addr takes what comes to that address, one
	// without what comes to any other address of this machine.
	Frontends []edge.Frontend
	// Addresses are those that frontends without a Listen.Addr leave alone, beside
	// those that frontends have.
	Addresses []netip.Addr
	// Hairpins are pairs of interfaces: what comes in through the first to a
	// frontend and goes out through the second gets this machine's address.
	Hairpins [][2]string
	// Keep are doors that stay as the kernel has them, if it has, and no frontend is
	// for them; while there are any, so do the hairpins and the addresses.
	Keep []edge.Door
}

// Applier makes the kernel have what a State says. It keeps what it has found
// there and done since. Its methods are for one goroutine at a time, and act in
// the network namespace of the caller.
type Applier struct {
	// What the kernel has is read by netlink: the nft command would print each
	// element as text.
	exists func() (bool, error)
	read   func() (found, error)
	// prune deletes what the kernel remembers of clients that is not so any more.
	prune func(map[edge.Door]row) error

	nft   nft.Writer
	specs map[edge.Door]spec // that want was made from
	want  *content           // of the last Apply; nil: there was none
	have  found              // of the kernel
	known bool               // whether have is so
	doubt bool               // whether clients may be remembered wrongly
	most  int                // commands that one transaction takes
}

// found is what is in the kernel.
type found struct {
	exists bool // the table
	other  bool // it has another layout, or somebody has changed it
	content
}

// content is what the elements of the table say.
type content struct {
	rows      map[edge.Door]row
	hairpins  map[[2]string]bool
	addresses map[netip.Addr]bool
	counting  map[lane]string // the chain
	chains    map[string]bool // those that are not of the fixed layout
}

// New returns an Applier. It does nothing yet: nft may be installed later.
func New() *Applier {
	return &Applier{
		nft:    nft.NewWriter(Table),
		exists: tableExists,
		read:   readKernel,
		prune:  forgetClients,
		most:   transactionCommands,
	}
}

// Apply makes the table be what the state says, and says whether that took a
// change. It believes that the kernel has what it had after the last Apply; the
// first one looks. With the zero State a table that is there stays, empty.
func (a *Applier) Apply(ctx context.Context, s State) (changed bool, err error) {
	if len(s.Keep) > 0 {
		if err := a.look(); err != nil {
			return false, err
		}
	}
	a.want = a.plan(s)
	a.want.keep(s.Keep, a.have.content)
	a.want.counting = countingChains(a.want.addresses)
	began := time.Now()
	changed, err = a.reconcile(ctx)
	if err != nil && ctx.Err() == nil && time.Since(began) < nft.Patience {
		// Somebody may have changed what is there: it is read again.
		changed, err = a.reconcile(ctx)
	}
	return changed, err
}

// Verify reads what the kernel has, mends what somebody has changed since the
// last Apply, and says whether there was something to mend. It also clears away
// what is not needed any more.
func (a *Applier) Verify(ctx context.Context) (mended bool, err error) {
	if a.want == nil {
		return false, nil
	}
	a.known = false
	if mended, err = a.reconcile(ctx); mended || err != nil {
		return mended, err
	}
	return false, a.collect(ctx)
}

// Adopt says which doors the table in the kernel has, sorted, and the backends
// of each. There are none if there is no table, or one of another layout, which
// the next Apply replaces.
func (a *Applier) Adopt(context.Context) ([]edge.Door, map[edge.Door][]netip.AddrPort, error) {
	if err := a.look(); err != nil {
		return nil, nil, err
	}
	var doors []edge.Door
	backends := map[edge.Door][]netip.AddrPort{}
	for door, row := range a.have.rows {
		doors = append(doors, door)
		if to := row.backends(); len(to) > 0 {
			backends[door] = to
		}
	}
	slices.SortFunc(doors, compareDoors)
	return doors, backends, nil
}

// Addresses are those that the table has for doors that have an address, sorted,
// as far as is known: after Adopt or Apply.
func (a *Applier) Addresses() []netip.Addr {
	return slices.SortedFunc(maps.Keys(a.have.addresses), netip.Addr.Compare)
}

// Remove removes the table, and says whether there was one. What goes through it
// ends, unless others have the kernel translate addresses as well.
func (a *Applier) Remove(ctx context.Context) (removed bool, err error) {
	a.want, a.specs, a.known = nil, nil, false
	if exists, err := a.exists(); err != nil || !exists {
		return false, err
	}
	if err := a.nft.RemoveTable(ctx); err != nil {
		return false, fmt.Errorf("nat: %w", err)
	}
	return true, nil
}

// prepare opens what changes are made with.
func (a *Applier) prepare() error {
	if err := a.nft.Prepare(); err != nil {
		return fmt.Errorf("nat: %w", err)
	}
	return nil
}

// look finds out what the kernel has, if that is not known.
func (a *Applier) look() (err error) {
	if a.known {
		return nil
	}
	if a.have, err = a.read(); err != nil {
		return fmt.Errorf("nat: read the table: %w", explain(err))
	}
	a.known, a.doubt = true, true
	return nil
}

// reconcile makes the kernel have what is wanted.
func (a *Applier) reconcile(ctx context.Context) (changed bool, err error) {
	if err := a.look(); err != nil {
		return false, err
	}
	if !a.have.exists && len(a.want.rows) == 0 {
		return false, nil
	}
	a.known = false // until all has gone well
	if !a.have.exists || a.have.other {
		err = a.replace(ctx)
		changed = true
	} else {
		steps := difference(a.have.content, *a.want)
		if len(steps) > 0 {
			changed = true
			a.doubt = a.doubt || losesClients(a.have.rows, a.want.rows)
			err = a.take(ctx, steps, missing(a.have.chains, a.want.chains))
		}
	}
	if err != nil {
		return false, err
	}
	chains := maps.Clone(a.want.chains)
	if !a.have.other {
		maps.Copy(chains, a.have.chains)
	}
	a.have = found{exists: true, content: *a.want}
	a.have.rows, a.have.chains = maps.Clone(a.want.rows), chains
	a.known = true
	if a.doubt {
		if err := a.prune(a.want.rows); err != nil {
			return changed, fmt.Errorf("nat: forget clients of former backends: %w", explain(err))
		}
		a.doubt = false
	}
	return changed, nil
}

// replace makes the table anew with all that is in it, in one transaction if it
// can be.
func (a *Applier) replace(ctx context.Context) error {
	if err := a.prepare(); err != nil {
		return err
	}
	steps, chains := difference(content{}, *a.want), slices.Sorted(maps.Keys(a.want.chains))
	tx := a.nft.NewTransaction()
	if a.have.exists {
		// Added before it is deleted: somebody else may have done that, and not
		// every nft knows "destroy" (1.0.6 does not).
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
	}
	for _, o := range layout() {
		tx.Add(o)
	}
	if a.have.exists { // no moment without it
		all := a.nft.NewTransaction()
		*all = *tx
		addChains(all, chains)
		addSteps(all, steps)
		err := a.nft.Run(ctx, all)
		if err == nil {
			return nil
		}
		if !tooLong(err) {
			return fmt.Errorf("nat: make the table: %w", nft.Explain(err))
		}
	}
	// Nothing goes to its doors, which come last.
	if err := a.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nat: make the table: %w", nft.Explain(err))
	}
	return a.take(ctx, steps, chains)
}

// take makes the steps in as few transactions as it can, each door's in one.
func (a *Applier) take(ctx context.Context, steps []step, chains []string) error {
	if err := a.prepare(); err != nil {
		return err
	}
	for len(steps) > 0 {
		n, size := 0, 0
		for n < len(steps) && (n == 0 || size+len(steps[n].commands) <= a.most) {
			size += len(steps[n].commands)
			n++
		}
		tx := a.nft.NewTransaction()
		addChains(tx, chains)
		addSteps(tx, steps[:n])
		err := a.nft.Run(ctx, tx)
		switch {
		case err == nil:
			steps, chains = steps[n:], nil
		case tooLong(err) && n > 1:
			a.most = smallTransaction
		case tooLong(err) && size > smallTransaction:
			// One door is too much. It is closed for a moment, which is better than
			// to send clients to what is there by halves.
			a.most = smallTransaction
			if err := a.nft.Run(ctx, justChains(&a.nft, chains)); err != nil {
				return fmt.Errorf("nat: apply: %w", nft.Explain(err))
			}
			steps, chains = append(steps[0].apart(smallTransaction), steps[1:]...), nil
		default:
			return fmt.Errorf("nat: apply: %w", nft.Explain(err))
		}
	}
	return nil
}

func justChains(nft knftables.Interface, chains []string) *knftables.Transaction {
	tx := nft.NewTransaction()
	addChains(tx, chains)
	return tx
}

// collect removes chains that no door goes to.
func (a *Applier) collect(ctx context.Context) error {
	unused := missing(a.want.chains, a.have.chains)
	if !a.have.exists || len(unused) == 0 {
		return nil
	}
	if err := a.prepare(); err != nil {
		return err
	}
	tx := a.nft.NewTransaction()
	// Their rules first: some go to others.
	for _, name := range unused {
		tx.Flush(&knftables.Chain{Name: name})
	}
	for _, name := range unused {
		tx.Delete(&knftables.Chain{Name: name})
	}
	a.known = false
	if err := a.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("nat: remove unused chains: %w", nft.Explain(err))
	}
	a.have.chains = maps.Clone(a.want.chains)
	a.known = true
	return nil
}

// missing returns what of want is not in have, sorted.
func missing(have, want map[string]bool) []string {
	var names []string
	for name := range want {
		if !have[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// A transaction is one message to the kernel. Whoever has CAP_NET_ADMIN in the
// first user namespace can make it large, and what bounds it is the memory that
// nft takes, of about 4 KiB for a command (1.0.6). Others have net.core.wmem_max,
// of which 1,000 commands is too much by default.
const (
	transactionCommands = 100_000
	smallTransaction    = 500
)

func tooLong(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Message too long")
}

// explain finds out what an error of netlink means. Not all of them are wrapped.
func explain(err error) error {
	if strings.Contains(err.Error(), unix.EPERM.Error()) {
		return nft.ErrNotPermitted
	}
	return err
}

// errLayout says that the table is not one of ours, or was changed.
var errLayout = errors.New("another layout")
