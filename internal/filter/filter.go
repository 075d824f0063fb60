// Package filter owns the nftables table "inet gatehouse-firewall": it has the
// kernel do what a firewall.Ruleset says, beside what others have in tables of
// their own.
//
//	a := filter.New()
//	changed, err := a.Apply(ctx, &rules, false)
//
// The rules of the table are those that are in every Ruleset, and one or a few for
// each policy; what is open is in elements of sets, so that a packet looks at as
// many rules with ten thousand doors as with one, and a change is as small as
// what changes. It is made by the nft command, in one transaction: packets meet
// the old rules or the new ones, never half of them.
//
// The table outlives the program: what filters goes on to filter.
package filter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/nft"
)

// Table is the name of the table, of the family inet.
const Table = "gatehouse-firewall"

// Applier makes the kernel have what a Ruleset says. It keeps what it has found
// there and done since. Its methods are for one goroutine at a time, and act in
// the network namespace of the caller.
type Applier struct {
	nft   nft.Writer
	want  *content           // of the last Apply; nil: there was none
	have  found              // of the kernel
	known bool               // whether have is so
	keep  bool               // what is open stays so
	past  map[dropKey]uint64 // what was counted in tables that were replaced since
}

// New returns an Applier. It does nothing yet: nft may be installed later.
func New() *Applier {
	return &Applier{
		nft:  nft.NewWriter(Table),
		past: map[dropKey]uint64{},
	}
}

// Render says what the table has in it, in the order in which nft has to see it.
func Render(r *firewall.Ruleset) []knftables.Object {
	return replacement(contentOf(r), nil).objects()
}

// Apply makes the table be what the rules say, and says whether that took a
// change. It believes that the kernel has what it had after the last Apply; the
// first one looks. With keep, what else is open in the kernel stays so.
func (a *Applier) Apply(ctx context.Context, r *firewall.Ruleset, keep bool) (changed bool, err error) {
	a.want, a.keep = contentOf(r), keep
	began := time.Now()
	changed, err = a.reconcile(ctx)
	if err != nil && ctx.Err() == nil && time.Since(began) < nft.Patience {
		// Somebody may have changed what is there: it is read again.
		changed, err = a.reconcile(ctx)
	}
	return changed, err
}

// Verify reads what the kernel has, mends what somebody has changed since the
// last Apply, and says whether there was something to mend.
func (a *Applier) Verify(ctx context.Context) (mended bool, err error) {
	if a.want == nil {
		return false, nil
	}
	a.known = false
	return a.reconcile(ctx)
}

// Remove removes the table, and says whether there was one. Everything may pass
// then that nobody else keeps from it.
func (a *Applier) Remove(ctx context.Context) (removed bool, err error) {
	a.want, a.known = nil, false
	clear(a.past)
	if exists, err := Exists(); err != nil || !exists {
		return false, err
	}
	if err := a.nft.RemoveTable(ctx); err != nil {
		return false, fmt.Errorf("firewall: %w", err)
	}
	return true, nil
}

// prepare opens what changes are made with.
func (a *Applier) prepare() error {
	if err := a.nft.Prepare(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	return nil
}

// reconcile makes the kernel have what is wanted.
func (a *Applier) reconcile(ctx context.Context) (changed bool, err error) {
	if !a.known {
		if a.have, err = readKernel(); err != nil {
			return false, fmt.Errorf("firewall: read the table: %w", explain(err))
		}
	}
	a.known = false // until all has gone well
	anew := !a.have.exists || !slices.Equal(a.have.fixed, outline(a.want.fixed))
	var s steps
	if !anew {
		if a.keep {
			a.want.keep(&a.have)
		}
		s = difference(&a.have, a.want)
		anew = s.dear > tooDear && !a.keep
	}
	if anew {
		s = *replacement(a.want, a.keepCounts())
		if a.have.exists {
			// Added before it is deleted: somebody else may have done that, and not
			// every nft knows "destroy" (1.0.6 does not).
			s.structure = slices.Concat([]step{{add, &knftables.Table{}}, {remove, &knftables.Table{}}}, s.structure)
		}
	}
	if changed = s.size() > 0; changed {
		if err := a.take(ctx, s); err != nil {
			return false, err
		}
	}
	a.have = a.want.found()
	a.known = true
	return changed, nil
}

// A transaction is one message to the kernel. Whoever has CAP_NET_ADMIN in the
// first user namespace can make it large, and what bounds it is the memory that
// nft takes, of about 4 KiB for a command (1.0.6). Others have net.core.wmem_max,
// of which 1,000 commands is too much by default.
const (
	transactionCommands = 100_000
	smallTransaction    = 500
)

// take makes the steps, in one transaction if it can be. Otherwise the rules come
// first, and elements later: what is not open yet is shut.
func (a *Applier) take(ctx context.Context, s steps) error {
	if err := a.prepare(); err != nil {
		return err
	}
	most := transactionCommands
	for parts := [][]step{slices.Concat(s.structure, s.elements)}; len(parts) > 0; {
		if len(parts[0]) > most {
			parts = slices.Concat(split(parts[0], len(s.structure), most), parts[1:])
			s.structure = nil
		}
		tx := a.nft.NewTransaction()
		for _, step := range parts[0] {
			step.addTo(tx)
		}
		err := a.nft.Run(ctx, tx)
		switch {
		case err == nil:
			parts = parts[1:]
		case strings.Contains(err.Error(), "Message too long") && most > smallTransaction && len(parts[0]) > smallTransaction:
			most = smallTransaction
		default:
			return fmt.Errorf("firewall: apply: %w", nft.Explain(err))
		}
	}
	return nil
}

// split takes a transaction apart, but for its first steps.
func split(all []step, together, most int) [][]step {
	together = max(together, min(most, len(all)))
	return slices.Concat([][]step{all[:together]}, slices.Collect(slices.Chunk(all[together:], most)))
}

// explain finds out what an error of netlink means. Not all of them are wrapped.
func explain(err error) error {
	if strings.Contains(err.Error(), "operation not permitted") {
		return nft.ErrNotPermitted
	}
	return err
}

// Exists says whether there is a table.
func Exists() (bool, error) {
	exists, err := nft.Exists(Table)
	if err != nil {
		return false, fmt.Errorf("firewall: %w", explain(err))
	}
	return exists, nil
}

// keepCounts returns what policies have counted, and keeps what was dropped: the
// table is about to be replaced. What cannot be read begins again.
func (a *Applier) keepCounts() map[string]nft.Count {
	if !a.have.exists {
		return nil
	}
	if drops, err := readDrops(); err == nil {
		for key, n := range drops {
			a.past[key] += n
		}
	}
	counts, _ := nft.Counters(Table)
	return counts
}

// Counts are what the table has counted since it was made.
type Counts struct {
	Policies []uint64 // the packets that each has decided about: the first of connections
	Dropped  []Drop   // sorted
}

// Drop is what no rule let pass.
type Drop struct {
	In, Out string // interfaces; Out is empty of what was for this machine
	Packets uint64
}

type dropKey struct{ in, out string }

// Counts reads what was counted, of the policies of the last Apply.
func (a *Applier) Counts() (Counts, error) {
	if a.want == nil {
		return Counts{}, nil
	}
	counters, err := nft.Counters(Table)
	if err != nil {
		return Counts{}, fmt.Errorf("firewall: read counters: %w", explain(err))
	}
	var c Counts
	for _, name := range a.want.counters {
		c.Policies = append(c.Policies, counters[name].Packets)
	}
	drops, err := readDrops()
	if err != nil && !errors.Is(err, errLayout) {
		return Counts{}, fmt.Errorf("firewall: read counters: %w", explain(err))
	}
	for key, n := range a.past {
		if drops == nil {
			drops = map[dropKey]uint64{}
		}
		drops[key] += n
	}
	for _, key := range slices.SortedFunc(maps.Keys(drops), func(x, y dropKey) int {
		return strings.Compare(x.in+"\x00"+x.out, y.in+"\x00"+y.out)
	}) {
		c.Dropped = append(c.Dropped, Drop{key.in, key.out, drops[key]})
	}
	return c, nil
}
