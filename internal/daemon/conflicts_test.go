package daemon

import (
	"errors"
	"maps"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// An address that somebody else has is not given again for a minute, though
// nobody wants it any more: who has moved on would get it back at once.
func TestConflictsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looked atomic.Int32
		a := &addresses{changed: func() { looked.Add(1) }}
		addr := netip.MustParseAddr("10.0.0.64")
		taken := map[netip.Addr]edge.AddressState{addr: {Conflict: "52:54:00:00:00:01"}}
		look := func(states map[netip.Addr]edge.AddressState) map[netip.Addr]edge.AddressState {
			return a.withConflicts(maps.Clone(states), time.Now())
		}
		check := func(when string, got, want map[netip.Addr]edge.AddressState) {
			t.Helper()
			if !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
		check("taken", look(taken), taken)
		time.Sleep(10 * time.Second)
		check("not wanted", look(nil), taken)
		time.Sleep(49 * time.Second)
		check("not wanted for almost a minute", look(nil), taken)
		if looked.Load() > 0 {
			t.Error("it is decided anew before that changes something")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if looked.Load() != 1 {
			t.Errorf("decided anew %d times when it is over, want once", looked.Load())
		}
		check("not wanted for a minute", look(nil), nil)

		look(taken)
		asked := map[netip.Addr]edge.AddressState{addr: {}}
		check("asked for again", look(asked), asked)
		check("and not wanted", look(nil), nil)
	})
}

// Nor while there can be no wall, which has the decision made once more.
func TestConflictsAreRememberedWithoutAWall(t *testing.T) {
	k := newFakeKeeper()
	k.err = errors.New("nft: no memory")
	a := &addresses{keeper: k, adopted: true, changed: func() {}}
	addr := netip.MustParseAddr("10.0.0.64")
	taken := edge.AddressState{Conflict: "52:54:00:00:00:01"}
	a.withConflicts(map[netip.Addr]edge.AddressState{addr: taken}, time.Now())
	if failed := a.apply(t.Context(), desired.State{}, nil, nil); failed[addr] != taken {
		t.Errorf("%v", failed)
	}
}
