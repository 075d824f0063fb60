package nft

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

const mark = 0x1000

// newFake has the semantics of a table, without a kernel.
func newFake() (*Applier, *knftables.Fake) {
	fake := knftables.NewFake(family, Table)
	return &Applier{open: func() (knftables.Interface, error) { return fake, nil }}, fake
}

func apply(t *testing.T, a *Applier, s State, wantChanged bool) {
	t.Helper()
	changed, err := a.Apply(t.Context(), s)
	if err != nil || changed != wantChanged {
		t.Fatalf("Apply(%+v) = %t, %v; want %t", s, changed, err, wantChanged)
	}
}

func TestRender(t *testing.T) {
	for name, s := range map[string]State{
		"nothing":     {},
		"transparent": {TransparentMark: mark},
	} {
		t.Run(name, func(t *testing.T) {
			tx := knftables.NewFake(family, Table).NewTransaction()
			for _, o := range Render(s) {
				tx.Add(o)
			}
			golden := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(golden, []byte(tx.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got := tx.String(); got != string(want) {
				t.Errorf("rendered\n%swant\n%s", got, want)
			}
		})
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	a, fake := newFake()
	apply(t, a, State{}, false)
	apply(t, a, State{TransparentMark: mark}, true)
	dump := fake.Dump()
	apply(t, a, State{TransparentMark: mark}, false)
	if fake.Dump() != dump {
		t.Errorf("the second time it made\n%s", fake.Dump())
	}
	apply(t, a, State{TransparentMark: 2 * mark}, true)
	apply(t, a, State{TransparentMark: mark}, true)
	apply(t, a, State{}, true)
	if fake.Table != nil {
		t.Errorf("left behind\n%s", fake.Dump())
	}
	apply(t, a, State{}, false)
}

// Whatever others have done to the table is undone.
func TestApplyMends(t *testing.T) {
	for name, damage := range map[string]func(tx *knftables.Transaction){
		"table deleted": func(tx *knftables.Transaction) { tx.Delete(&knftables.Table{}) },
		"chain flushed": func(tx *knftables.Transaction) { tx.Flush(&knftables.Chain{Name: "transparent"}) },
		"rule in front": func(tx *knftables.Transaction) {
			tx.Insert(&knftables.Rule{Chain: "transparent", Rule: "meta l4proto tcp accept"})
		},
		"rule behind": func(tx *knftables.Transaction) {
			tx.Add(&knftables.Rule{Chain: "transparent", Rule: "drop", Comment: new("mine")})
		},
		"another chain": func(tx *knftables.Transaction) { tx.Add(&knftables.Chain{Name: "mine"}) },
		"a map":         func(tx *knftables.Transaction) { tx.Add(&knftables.Map{Name: "m", Type: "mark : verdict"}) },
		"of an older version": func(tx *knftables.Transaction) {
			tx.Flush(&knftables.Chain{Name: "transparent"})
			tx.Add(&knftables.Rule{Chain: "transparent", Rule: "meta mark set 1", Comment: new("answers to clients' own addresses 00000000")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, fake := newFake()
			apply(t, a, State{TransparentMark: mark}, true)
			sound := withoutHandles(fake.Dump())
			tx := fake.NewTransaction()
			damage(tx)
			if err := fake.Run(t.Context(), tx); err != nil {
				t.Fatal(err)
			}
			apply(t, a, State{TransparentMark: mark}, true)
			if got := withoutHandles(fake.Dump()); got != sound {
				t.Errorf("mended to\n%swant\n%s", got, sound)
			}
		})
	}
}

func withoutHandles(dump string) string {
	var lines []string
	for line := range strings.Lines(dump) {
		before, _, _ := strings.Cut(line, " # handle")
		lines = append(lines, strings.TrimSuffix(before, "\n"))
	}
	return strings.Join(lines, "\n") + "\n"
}

// Somebody who knows nft finds what to do in the error.
func TestErrorsSayWhatIsWrong(t *testing.T) {
	const denied = "netlink: Error: cache initialization failed: Operation not permitted\n"
	const refused = "/dev/stdin:3:1-9: Error: Could not process rule: No such file or directory\nadd rule\n^^^^^^\n"
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("could not find nftables binary: %w", &exec.Error{Name: "nft", Err: exec.ErrNotFound}), ErrNotInstalled.Error()},
		{errors.New(denied), ErrNotPermitted.Error()},
		{errors.New(refused), "3:1-9: Error: Could not process rule: No such file or directory"},
	} {
		if got := Explain(c.err).Error(); got != c.want {
			t.Errorf("Explain(%q) = %q, want %q", c.err, got, c.want)
		}
	}
	// It may be installed later.
	a, installed := New(), false
	_, fake := newFake()
	a.open = func() (knftables.Interface, error) {
		if !installed {
			return nil, exec.ErrNotFound
		}
		return fake, nil
	}
	if _, err := a.Apply(context.Background(), State{TransparentMark: mark}); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Apply without nft: %v", err)
	}
	installed = true
	apply(t, a, State{TransparentMark: mark}, true)
}
