// Package nft owns the nftables table "inet gatehouse-transparent", and nothing
// else of the machine's rules. What should be in it comes as a State; Render says which
// chains and rules that is, and an Applier compares those with what the kernel
// has. The zero State means that there is no table.
//
//	a := nft.New()
//	changed, err := a.Apply(ctx, nft.State{TransparentMark: 0x1000})
//
// The table is changed by the nft command, in one transaction each time: packets
// meet the old rules or the new ones, never half of them.
package nft

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// Table is the name of the table that this package owns, of the family inet.
const Table = "gatehouse-transparent"

const family = knftables.InetFamily

// The nft command takes milliseconds. It reads all tables of the machine first,
// and those can be large.
const patience = 10 * time.Second

// Why the rules cannot be applied, where that is known.
var (
	ErrNotInstalled = errors.New("the nft command is not installed")
	ErrNotPermitted = errors.New("changing nftables is not permitted")
)

// Lack is something that this machine has not.
type Lack struct {
	What  string // "packet sockets (operation not supported)"
	Needs string // what would be right: "a kernel with CONFIG_PACKET"
}

// Applier makes the kernel have what a State says. Its methods are for one
// goroutine at a time, and act in the network namespace of the caller.
type Applier struct {
	open func() (knftables.Interface, error)
	nft  knftables.Interface // nil: not opened yet
}

// New returns an Applier. It does nothing yet: nft may be installed later.
func New() *Applier {
	return &Applier{open: func() (knftables.Interface, error) { return knftables.New(family, Table) }}
}

// Apply makes the table be what the state says, and says whether that took a
// change. With the zero State the table is removed.
func (a *Applier) Apply(ctx context.Context, s State) (changed bool, err error) {
	if a.nft == nil {
		if a.nft, err = a.open(); err != nil {
			a.nft = nil
			return false, fmt.Errorf("nft: %w", Explain(err))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	want := Render(s)
	exists, same, err := compare(ctx, a.nft, want)
	if err != nil {
		return false, fmt.Errorf("nft: list the table: %w", Explain(err))
	}
	if same {
		return false, nil
	}
	if err := a.nft.Run(ctx, transaction(a.nft, want, exists)); err != nil {
		return false, fmt.Errorf("nft: apply: %w", Explain(err))
	}
	return true, nil
}

// transaction replaces the table, whatever is in it. That nft may not know
// "destroy" (1.0.6 does not) is why it is added before it is deleted.
func transaction(nft knftables.Interface, want []knftables.Object, exists bool) *knftables.Transaction {
	tx := nft.NewTransaction()
	if exists {
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
	}
	for _, o := range want {
		tx.Add(o)
	}
	return tx
}

// compare says whether the kernel has the table, and whether it is the one that
// is wanted: the same chains, with the same rules in the same order. Rules are
// compared by their comments, which have a sum of the whole table: what nft
// prints of a rule differs between its versions.
func compare(ctx context.Context, nft knftables.Interface, want []knftables.Object) (exists, same bool, err error) {
	objects, err := nft.ListAll(ctx)
	if knftables.IsNotFound(err) {
		return false, len(want) == 0, nil
	}
	if err != nil {
		return false, false, err
	}
	rules, err := nft.ListRules(ctx, "")
	if knftables.IsNotFound(err) { // it has gone in between
		return false, len(want) == 0, nil
	}
	if err != nil {
		return false, false, err
	}
	return true, len(want) > 0 && slices.Equal(outline(want), listed(objects, rules)), nil
}

// outline is what listed would say of a table of these objects.
func outline(want []knftables.Object) []string {
	names := map[string][]string{}
	var rules []*knftables.Rule
	for _, o := range want {
		switch o := o.(type) {
		case *knftables.Chain:
			names["chain"] = append(names["chain"], o.Name)
		case *knftables.Rule:
			rules = append(rules, o)
		}
	}
	return listed(names, rules)
}

// listed is a line for each object of a table: names sorted, and the rules of a
// chain in their order.
func listed(objects map[string][]string, rules []*knftables.Rule) []string {
	var lines []string
	for kind, names := range objects {
		if kind == "table" || kind == "rule" {
			continue // the one that is listed; and no rule has a name
		}
		for _, name := range names {
			lines = append(lines, kind+" "+name)
		}
	}
	for _, r := range rules {
		comment := "" // not ours
		if r.Comment != nil {
			comment = *r.Comment
		}
		lines = append(lines, "rule "+r.Chain+" "+comment)
	}
	slices.SortStableFunc(lines, func(x, y string) int {
		return strings.Compare(head(x), head(y))
	})
	return lines
}

// head is what a line of listed is sorted by.
func head(line string) string {
	if fields := strings.SplitN(line, " ", 3); fields[0] == "rule" {
		return fields[0] + " " + fields[1]
	}
	return line
}

// Explain finds out what nft could mean: it says everything by text.
func Explain(err error) error {
	text := strings.TrimSpace(err.Error())
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return ErrNotInstalled
	case strings.Contains(text, "Operation not permitted"):
		return ErrNotPermitted
	}
	// It shows the line that it is about, with a mark below; one line is enough.
	first, _, _ := strings.Cut(text, "\n")
	return errors.New(strings.TrimPrefix(first, "/dev/stdin:"))
}
