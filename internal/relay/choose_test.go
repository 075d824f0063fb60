package relay

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

func weighted(n int, weight func(i int) int) []edge.Backend {
	backends := make([]edge.Backend, n)
	for i := range backends {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		backends[i] = edge.Backend{Addr: addr, Weight: weight(i), State: edge.Up}
	}
	return backends
}

// chiSquare says how far counts are from what weights promise.
func chiSquare(backends []edge.Backend, counts map[netip.AddrPort]int) float64 {
	var weights, total float64
	for _, b := range backends {
		weights += float64(b.Weight)
		total += float64(counts[b.Addr])
	}
	var sum float64
	for _, b := range backends {
		want := total * float64(b.Weight) / weights
		sum += (float64(counts[b.Addr]) - want) * (float64(counts[b.Addr]) - want) / want
	}
	return sum
}

func TestChoiceFollowsTheWeights(t *testing.T) {
	// With 4 degrees of freedom one run in a million is beyond 33; the seed
	// makes each run the same.
	const limit = 33
	random := rand.New(rand.NewPCG(1, 2))
	backends := weighted(5, func(i int) int { return i + 1 })
	draw := func(from []edge.Backend, tried ...netip.AddrPort) map[netip.AddrPort]int {
		table := newTable(edge.Frontend{Backends: from})
		counts := map[netip.AddrPort]int{}
		for range 60_000 {
			b, ok := table.choose(chooser{tried: tried, random: random.Uint64N})
			if !ok {
				t.Fatal("nothing was chosen")
			}
			counts[b.Addr]++
		}
		return counts
	}
	if chi := chiSquare(backends, draw(backends)); chi > limit {
		t.Errorf("chi-square is %.1f, more than %d", chi, limit)
	}
	// Those left after a failed dial keep their proportions.
	if chi := chiSquare(slices.Delete(slices.Clone(backends), 3, 4), draw(backends, backends[3].Addr)); chi > limit {
		t.Errorf("chi-square without one that was tried is %.1f, more than %d", chi, limit)
	}
	// The measure can fail: weights wrong by one are seen.
	wrong := slices.Clone(backends)
	wrong[4].Weight--
	if chi := chiSquare(backends, draw(wrong)); chi <= limit {
		t.Errorf("chi-square of a wrong weighting is %.1f, not more than %d", chi, limit)
	}
}

func TestOnlyUpOrElsePendingAreChosen(t *testing.T) {
	addr := func(i int) netip.AddrPort { return weighted(i+1, func(int) int { return 1 })[i].Addr }
	const up, pending, down = edge.Up, edge.Pending, edge.Down
	for _, c := range []struct {
		states  []edge.BackendState
		weights []int
		tried   []int
		want    []int
	}{
		{[]edge.BackendState{up, up, down}, []int{1, 1, 1}, nil, []int{0, 1}},
		{[]edge.BackendState{up, up, pending}, []int{1, 1, 1}, nil, []int{0, 1}},
		{[]edge.BackendState{up, up, up}, []int{0, 1, -1}, nil, []int{1}},
		{[]edge.BackendState{down, pending, pending}, []int{1, 1, 1}, nil, []int{1, 2}},
		{[]edge.BackendState{up, pending, down}, []int{0, 1, 1}, nil, []int{1}},
		{[]edge.BackendState{up, up, pending}, []int{1, 1, 1}, []int{0}, []int{1}},
		{[]edge.BackendState{up, up, pending}, []int{1, 1, 1}, []int{0, 1}, []int{2}},
		{[]edge.BackendState{up, up, down}, []int{1, 1, 1}, []int{0, 1}, nil},
		{[]edge.BackendState{down, down, up}, []int{1, 1, 0}, nil, nil},
		{nil, nil, nil, nil},
	} {
		var backends []edge.Backend
		for i, state := range c.states {
			backends = append(backends, edge.Backend{Addr: addr(i), Weight: c.weights[i], State: state})
		}
		var tried []netip.AddrPort
		for _, i := range c.tried {
			tried = append(tried, addr(i))
		}
		table := newTable(edge.Frontend{Backends: backends, Terms: edge.Terms{RefuseWhenDown: true}})
		seen := map[netip.AddrPort]bool{}
		for range 1000 {
			if b, ok := table.choose(chooser{tried: tried, random: rand.Uint64N}); ok {
				seen[b.Addr] = true
			}
		}
		want := map[netip.AddrPort]bool{}
		for _, i := range c.want {
			want[addr(i)] = true
		}
		if fmt.Sprint(seen) != fmt.Sprint(want) {
			t.Errorf("%v with weights %v, tried %v: chosen %v, want %v", c.states, c.weights, c.tried, seen, want)
		}
	}
}

func TestBackendThatRefusesIsFollowedByTheNext(t *testing.T) {
	var mu sync.Mutex
	reported := map[netip.AddrPort]int{}
	r := newRelay(t, Options{OnDialError: func(_ edge.Protocol, addr netip.AddrPort, err error) {
		mu.Lock()
		defer mu.Unlock()
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("reported %v, want refused", err)
		}
		reported[addr]++
	}})
	dead := []edge.Backend{upAt(refusing(t)), upAt(refusing(t))}
	alive := upAt(greeter(t, "alive"))
	addr := openDoor(t, r, loopback(dead[0], dead[1], alive))
	const n = 50
	for range n {
		if got, err := ask(t, addr); got != "alive" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	s := settled(t, r)
	if s.Finished != n || len(s.Failures) != 0 {
		t.Errorf("Stats = %+v, want %d finished and no failure", s, n)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, b := range s.Backends {
		switch {
		case b.Addr == alive.Addr && (b.Connected != n || reported[b.Addr] != 0):
			t.Errorf("backend %+v, reported %d times; want %d connections", b, reported[b.Addr], n)
		case b.Addr != alive.Addr && (b.Failures[Refused] == 0 || b.Failures[Refused] != uint64(reported[b.Addr])):
			t.Errorf("backend %+v, reported %d times; want as many refused", b, reported[b.Addr])
		}
	}
}

// It may be the checks that are wrong.
func TestWhenAllAreDownTheyAreTriedAllTheSame(t *testing.T) {
	alive := inState(upAt(greeter(t, "alive")), edge.Down)
	r := newRelay(t, Options{})
	addr := openDoor(t, r, loopback(inState(upAt(refusing(t)), edge.Down), alive))
	for range 10 {
		if got, err := ask(t, addr); got != "alive" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	// They are no alternative to one that is up, or may be.
	for _, state := range []edge.BackendState{edge.Up, edge.Pending} {
		table := newTable(edge.Frontend{Backends: []edge.Backend{alive, inState(upAt(refusing(t)), state)}})
		if b, ok := table.choose(chooser{tried: []netip.AddrPort{table.backends[1].Addr}, random: rand.Uint64N}); ok {
			t.Errorf("with one that is %s: %v", state, b.Addr)
		}
	}
}

func TestWithoutBackendTheClientIsResetAtOnce(t *testing.T) {
	alive := upAt(greeter(t, "alive"))
	idle := alive
	idle.Weight = 0
	for name, c := range map[string]struct {
		backends []edge.Backend
		want     Reason
	}{
		"none":     {nil, NoBackend},
		"down":     {[]edge.Backend{inState(alive, edge.Down)}, NoBackend},
		"weight 0": {[]edge.Backend{idle}, NoBackend},
		"refusing": {[]edge.Backend{upAt(refusing(t)), upAt(refusing(t)), inState(alive, edge.Down)}, Refused},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, Options{})
			f := loopback(c.backends...)
			f.RefuseWhenDown = true
			addr := openDoor(t, r, f)
			began := time.Now()
			if got, err := ask(t, addr); got != "" || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q, %v; want a reset", got, err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %v", took)
			}
			if s := settled(t, r); s.Failures[c.want] != 1 {
				t.Errorf("failures = %v, want one %s", s.Failures, c.want)
			}
		})
	}
}

func TestPendingBackendIsWaitedFor(t *testing.T) {
	late := refusing(t)
	failed := make(chan struct{}, 1000)
	r := newRelay(t, Options{OnDialError: func(edge.Protocol, netip.AddrPort, error) { failed <- struct{}{} }})
	addr := openDoor(t, r, loopback(inState(upAt(late), edge.Pending)))
	c := dial(t, addr)
	for range 3 {
		<-failed
	}
	startAt(t, late, echo)
	say(t, c, "hello")
}

// A connection that waits for a pending backend takes one that comes up, and
// does not go on waiting.
func TestWaitingConnectionSeesTheNewTable(t *testing.T) {
	failed := make(chan struct{}, 1000)
	r := newRelay(t, Options{OnDialError: func(edge.Protocol, netip.AddrPort, error) { failed <- struct{}{} }})
	dead := inState(upAt(refusing(t)), edge.Pending)
	addr := openDoor(t, r, loopback(dead))
	c := dial(t, addr)
	<-failed
	openDoor(t, r, loopback(inState(dead, edge.Down), upAt(server(t, echo))))
	say(t, c, "hello")
}

func TestWaitingForPendingEndsWhenNothingIsLeft(t *testing.T) {
	failed := make(chan struct{}, 1000)
	r := newRelay(t, Options{OnDialError: func(edge.Protocol, netip.AddrPort, error) { failed <- struct{}{} }})
	dead := inState(upAt(refusing(t)), edge.Pending)
	addr := openDoor(t, r, loopback(dead))
	began := time.Now()
	c := dial(t, addr)
	<-failed
	openDoor(t, r, loopback(inState(dead, edge.Down)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
	if took := time.Since(began); took > pendingWindow/2 {
		t.Errorf("it took %v", took)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{1, 3, 30, 300} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			table := newTable(edge.Frontend{Backends: weighted(n, func(i int) int { return i%3 + 1 })})
			for b.Loop() {
				table.choose(chooser{random: rand.Uint64N})
			}
		})
	}
}

// Who is held while backends are pending is under the rules of the moment at
// which a backend is there: not let through a door that was closed meanwhile,
// or closed to this client.
func TestHeldClientsAreUnderTheRulesOfNow(t *testing.T) {
	for name, change := range map[string]func(f edge.Frontend) []edge.Frontend{
		"the door is closed": func(edge.Frontend) []edge.Frontend { return nil },
		"closed to the client": func(f edge.Frontend) []edge.Frontend {
			f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			return []edge.Frontend{f}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, Options{})
			late := refusing(t)
			f := loopback(inState(upAt(late), edge.Pending))
			addr := openDoor(t, r, f)
			client := dial(t, addr)
			netnstest.Eventually(t, patience, "the client is held", func() bool { s := r.Stats(); return len(s) > 0 && s[0].Active == 1 })
			r.Apply(change(f))
			startAt(t, late, func(c *net.TCPConn) { io.WriteString(c, "secret") })
			if said, err := io.ReadAll(client); err == nil || len(said) > 0 {
				t.Errorf("the client was let through: %q, %v", said, err)
			}
		})
	}
}
