package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

const patience = 10 * time.Second

func newObserver() *Observer { return New(slog.New(slog.DiscardHandler)) }

// snapshot returns the interfaces by name, without lo.
func snapshot(t *testing.T, o *Observer) map[string]edge.Interface {
	t.Helper()
	all, err := o.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(all, func(a, b edge.Interface) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	}) {
		t.Errorf("not sorted by name: %v", all)
	}
	byName := map[string]edge.Interface{}
	for _, i := range all {
		if i.Name != "lo" {
			byName[i.Name] = i
		}
	}
	return byName
}

func TestNetnsSnapshot(t *testing.T) {
	netnstest.Run(t, func() {
		o := newObserver()
		all, err := o.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		lo := []edge.Interface{{Name: "lo", Index: 1, Up: true, Addrs: []netip.Prefix{
			netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128"),
		}}}
		if !reflect.DeepEqual(all, lo) {
			t.Errorf("Snapshot = %+v, want %+v", all, lo)
		}

		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", other, "eth0")
		netnstest.Cable(t, nil, "eth0", other, "eth1")
		// Out of order; IPv6 brings its link-local address as well.
		for _, a := range []string{"fd12::32/64", "10.11.12.51/24", "10.11.12.32/24", "169.254.7.7/16"} {
			netnstest.Addr(t, nil, "eth1", a)
		}
		// A link that was set up says so a little later.
		netnstest.Eventually(t, patience, "both up", func() bool { now := snapshot(t, o); return now["eth0"].Up && now["eth1"].Up })
		eth1 := snapshot(t, o)["eth1"]
		want := []netip.Prefix{
			netip.MustParsePrefix("10.11.12.32/24"), netip.MustParsePrefix("10.11.12.51/24"), netip.MustParsePrefix("fd12::32/64"),
		}
		if !eth1.Up || eth1.Index == 0 || !slices.Equal(eth1.Addrs, want) {
			t.Errorf("eth1 = %+v, want it up with %v", eth1, want)
		}
		if eth0 := snapshot(t, o)["eth0"]; !eth0.Up || len(eth0.Addrs) != 0 || eth0.Index == eth1.Index {
			t.Errorf("eth0 = %+v, want it up without addresses", eth0)
		}
		// The cable is pulled at the other end.
		netnstest.LinkDown(t, other, "eth0")
		netnstest.Eventually(t, patience, "eth1 down", func() bool { return !snapshot(t, o)["eth1"].Up })
	})
}

func TestNetnsAnswersForOthers(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Cable(t, nil, "eth1", netnstest.New(t), "eth0")
		o := newObserver()
		// The larger of the two counts.
		for _, c := range []struct {
			all, eth1 int
			want      bool
		}{{0, 0, true}, {1, 0, false}, {0, 1, false}, {2, 1, false}, {0, 8, false}, {0, 0, true}} {
			arpIgnoreIs(t, "all", c.all)
			arpIgnoreIs(t, "eth1", c.eth1)
			if got := snapshot(t, o)["eth1"].AnswersForOthers; got != c.want {
				t.Errorf("arp_ignore %d for all, %d for eth1: %t, want %t", c.all, c.eth1, got, c.want)
			}
		}
	})
}

func arpIgnoreIs(t *testing.T, name string, n int) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/arp_ignore", fmt.Append(nil, n), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNetnsChangesAreSignalled(t *testing.T) {
	netnstest.Run(t, func() {
		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", other, "eth0")
		o := newObserver()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- o.Run(ctx) }()
		// until waits for a signal after which the condition holds.
		until := func(what string, condition func(edge.Interface) bool) {
			t.Helper()
			deadline := time.NewTimer(patience)
			defer deadline.Stop()
			for !condition(snapshot(t, o)["eth1"]) {
				select {
				case <-o.Changed():
				case <-deadline.C:
					t.Fatalf("no signal within %v: %s", patience, what)
				}
			}
		}
		has := func(prefix string) func(edge.Interface) bool {
			return func(i edge.Interface) bool { return slices.Contains(i.Addrs, netip.MustParsePrefix(prefix)) }
		}
		signalled := func(what string, change func(), condition func(edge.Interface) bool) {
			t.Helper()
			drain(t, o)
			change()
			select {
			case <-o.Changed():
			case <-time.After(patience):
				t.Fatalf("no signal within %v: %s", patience, what)
			}
			until(what, condition)
		}
		signalled("IPv4 address", func() { netnstest.Addr(t, nil, "eth1", "10.0.0.1/24") }, has("10.0.0.1/24"))
		signalled("IPv6 address", func() { netnstest.Addr(t, nil, "eth1", "fd00::1/64") }, has("fd00::1/64"))
		signalled("address gone", func() { netnstest.AddrDel(t, nil, "eth1", "10.0.0.1/24") },
			func(i edge.Interface) bool { return !has("10.0.0.1/24")(i) })
		signalled("cable pulled", func() { netnstest.LinkDown(t, other, "eth0") },
			func(i edge.Interface) bool { return !i.Up })
		signalled("cable back", func() { netnstest.LinkUp(t, other, "eth0") },
			func(i edge.Interface) bool { return i.Up })
		signalled("interface gone", func() { netnstest.LinkDel(t, nil, "eth1") },
			func(i edge.Interface) bool { return i.Index == 0 })
		signalled("interface back", func() { netnstest.Cable(t, nil, "eth1", other, "eth0") },
			func(i edge.Interface) bool { return i.Up })
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	})
}

// drain waits until nothing more is signalled of what happened before: an
// interface that has just come up gets its link-local address a little later.
func drain(t *testing.T, o *Observer) {
	t.Helper()
	quiet := time.NewTimer(10 * settle)
	defer quiet.Stop()
	for {
		select {
		case <-o.Changed():
			quiet.Reset(10 * settle)
		case <-quiet.C:
			return
		}
	}
}

// A burst is a few signals, and none is missing at its end.
func TestNetnsManyChangesAreNotLost(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Cable(t, nil, "eth1", netnstest.New(t), "eth0")
		o := newObserver()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- o.Run(ctx) }()
		const n = 2000
		began := time.Now()
		signals := make(chan int)
		go func() { signals <- signalsUntil(ctx, o, "eth1", n) }()
		for i := range n {
			netnstest.Addr(t, nil, "eth1", fmt.Sprintf("10.%d.%d.1/24", i/250, i%250))
		}
		select {
		case got := <-signals:
			if took := time.Since(began); got > int(took/settle)+2 {
				t.Errorf("%d signals for %d changes in %v: want one each %v", got, n, took, settle)
			}
		case <-time.After(patience):
			t.Fatalf("no signal when the last of %d addresses was there", n)
		}
		cancel()
		<-ended
	})
}

// signalsUntil counts signals until one comes with that many addresses there.
func signalsUntil(ctx context.Context, o *Observer, name string, addrs int) (signals int) {
	for {
		select {
		case <-o.Changed():
			signals++
		case <-ctx.Done():
			return signals
		}
		all, err := o.Snapshot()
		if err == nil && slices.ContainsFunc(all, func(i edge.Interface) bool { return i.Name == name && len(i.Addrs) == addrs }) {
			return signals
		}
	}
}
