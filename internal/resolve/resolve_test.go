package resolve

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestNamesFollowChangesAndKeepTheLastAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dns atomic.Pointer[[]netip.Addr] // what nas resolves to; nil: to nothing
		answer := func(addrs ...string) {
			list := []netip.Addr{}
			for _, a := range addrs {
				list = append(list, netip.MustParseAddr(a))
			}
			dns.Store(&list)
		}
		answer("2001:db8::1", "192.0.2.7")
		n := New(slog.New(slog.DiscardHandler))
		n.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if addrs := dns.Load(); addrs != nil && host == "nas" {
				return slices.Clone(*addrs), nil
			}
			return nil, errors.New("no such host")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.Run(ctx) }()
		n.Follow([]string{"nas", "gone"})
		<-n.Changed()
		if got := n.Snapshot(); len(got) != 1 || got["nas"] != netip.MustParseAddr("192.0.2.7") {
			t.Fatalf("got %v, want the IPv4 address of nas and nothing of gone", got)
		}
		dns.Store(nil)
		time.Sleep(5 * interval)
		if got := n.Snapshot()["nas"]; got != netip.MustParseAddr("192.0.2.7") {
			t.Fatalf("a name that stopped resolving lost its address: %v", got)
		}
		answer("192.0.2.8")
		<-n.Changed()
		if got := n.Snapshot()["nas"]; got != netip.MustParseAddr("192.0.2.8") {
			t.Fatalf("got %v after the name moved", got)
		}
		n.Follow(nil)
		if got := n.Snapshot(); len(got) != 0 {
			t.Fatalf("names no longer followed are still there: %v", got)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}
