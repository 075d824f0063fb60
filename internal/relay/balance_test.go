package relay

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// balanced is a door's table, without a relay.
func balanced(balance edge.Balance, backends []edge.Backend) (*door, *table) {
	d := newDoor(edge.Door{})
	t := newTable(edge.Frontend{Backends: backends, Terms: edge.Terms{Balance: balance}})
	d.setTable(t)
	return d, t
}

func randomClient(random *rand.Rand) netip.Addr {
	if random.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
	}
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	for i := 4; i < 16; i++ {
		a[i] = byte(random.Uint32())
	}
	return netip.AddrFrom16(a)
}

// Whatever the weights, each way to balance gives everybody its share: of the
// connections, or of those there are at a time. Who is down gets none.
func TestSharesFollowRandomWeights(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		backends := weighted(2+random.IntN(12), func(int) int { return 1 + random.IntN(20) })
		out := random.IntN(len(backends))
		backends[out].State = edge.Down
		var weights float64
		for i, b := range backends {
			if i != out {
				weights += float64(b.Weight)
			}
		}
		for _, balance := range []edge.Balance{edge.BalanceRandom, edge.BalanceLeastConnections, edge.BalanceSource} {
			d, table := balanced(balance, backends)
			counts := map[netip.AddrPort]int{}
			const n = 40_000
			for range n {
				chosen, ok := d.choose(table, chooser{client: randomClient(random), random: random.Uint64N})
				if !ok {
					t.Fatal("nothing was chosen")
				}
				counts[chosen.Addr]++
				if chosen.load != nil {
					chosen.load.Add(1) // and it stays
				}
			}
			for i, b := range backends {
				share := float64(counts[b.Addr]) / n
				want := float64(b.Weight) / weights
				if i == out {
					want = 0
				}
				// Five standard deviations of chance; to count connections leaves none.
				tolerance := 5 * math.Sqrt(want*(1-want)/n)
				if balance == edge.BalanceLeastConnections {
					tolerance = 0.002
				}
				if math.Abs(share-want) > tolerance {
					t.Errorf("%s, seed %d: %d of weight %d has %.4f, want %.4f ± %.4f", balance, seed, i, b.Weight, share, want, tolerance)
				}
			}
		}
	}
}

// A backend whose connections take longer gets fewer of them.
func TestLeastConnectionsSparesTheSlow(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	backends := weighted(4, func(int) int { return 1 })
	d, table := balanced(edge.BalanceLeastConnections, backends)
	type connection struct {
		until int
		of    choice
	}
	var connections []connection
	given, most := map[netip.AddrPort]int{}, int64(0)
	for now := range 20_000 {
		kept := connections[:0]
		for _, c := range connections {
			if c.until <= now {
				c.of.load.Add(-1)
			} else {
				kept = append(kept, c)
			}
		}
		connections = kept
		c, _ := d.choose(table, chooser{random: random.Uint64N})
		c.load.Add(1)
		given[c.Addr]++
		lasts := 40
		if c.Addr == backends[0].Addr {
			lasts = 400
		}
		connections = append(connections, connection{now + lasts, c})
		if now > 2000 {
			for i := range backends {
				for j := range backends {
					most = max(most, d.load(backends[i].Addr).Load()-d.load(backends[j].Addr).Load())
				}
			}
		}
	}
	if slow, quick := given[backends[0].Addr], given[backends[1].Addr]; slow*5 > quick {
		t.Errorf("the slow one got %d connections, another one %d", slow, quick)
	}
	if most > 12 {
		t.Errorf("at a time one had %d connections more than another", most)
	}
}

// The count is over all loops, and comes back to nothing.
func TestConnectionsAreCountedOverAllLoops(t *testing.T) {
	r := newRelay(t, Options{})
	a, b := upAt(server(t, echo)), upAt(server(t, echo))
	f := loopback(a, b)
	f.Balance = edge.BalanceLeastConnections
	addr := openDoor(t, r, f)
	var open []*net.TCPConn
	for range 101 {
		c := dial(t, addr)
		io.WriteString(c, "x")
		io.ReadFull(c, make([]byte, 1))
		open = append(open, c)
	}
	load := func(b edge.Backend) int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.doors[f.Door].load(b.Addr).Load()
	}
	if x, y := load(a), load(b); x+y != 101 || max(x-y, y-x) != 1 {
		t.Errorf("%d and %d connections, want 50 and 51", x, y)
	}
	for _, c := range open {
		c.Close()
	}
	netnstest.Eventually(t, patience, "nothing is left", func() bool { return load(a)+load(b) == 0 })
}

func TestAClientKeepsItsBackendByItsAddress(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	backends := weighted(10, func(int) int { return 1 })
	d, table := balanced(edge.BalanceSource, backends)
	fewer := append([]edge.Backend{}, backends[1:]...)
	other, without := balanced(edge.BalanceSource, fewer)
	moved := 0
	for range 20_000 {
		client := randomClient(random)
		who := chooser{client: client, random: random.Uint64N}
		was, _ := d.choose(table, who)
		if again, _ := d.choose(table, who); again.Addr != was.Addr {
			t.Fatalf("%s went to %s and to %s", client, was.Addr, again.Addr)
		}
		// An IPv6 host has many addresses.
		if client.Is6() {
			a := client.As16()
			a[15]++
			if again, _ := d.choose(table, chooser{client: netip.AddrFrom16(a)}); again.Addr != was.Addr {
				t.Fatalf("%s and its neighbour went to %s and %s", client, was.Addr, again.Addr)
			}
		}
		now, _ := other.choose(without, who)
		if now.Addr != was.Addr {
			moved++
			if was.Addr != backends[0].Addr {
				t.Fatalf("%s moved from %s, which is still there", client, was.Addr)
			}
		}
		// One that could not be dialled: as if it were not there.
		if next, _ := d.choose(table, chooser{client: client, tried: []netip.AddrPort{backends[0].Addr}}); next.Addr != now.Addr {
			t.Fatalf("%s goes to %s next, want %s", client, next.Addr, now.Addr)
		}
	}
	if moved < 1900 || moved > 2100 {
		t.Errorf("%d of 20000 clients moved, want a tenth", moved)
	}
}

// For the time of its affinity a client stays though its address would have it
// elsewhere, and not with one that is gone.
func TestAffinityOutlivesNewBackends(t *testing.T) {
	const minute = time.Minute
	all := weighted(10, func(int) int { return 1 })
	d := newDoor(edge.Door{})
	set := func(backends []edge.Backend) *table {
		table := newTable(edge.Frontend{Backends: backends, Terms: edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: minute}})
		d.setTable(table)
		return table
	}
	at := func(table *table, i int, now time.Duration) netip.AddrPort {
		client := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		c, ok := d.choose(table, chooser{client: client, now: now})
		if !ok {
			t.Fatal("nothing was chosen")
		}
		return c.Addr
	}
	table := set(all[:5])
	first := make([]netip.AddrPort, 1000)
	for i := range first {
		first[i] = at(table, i, 0)
	}
	table = set(all)
	stay, moved := 0, 0
	for i, was := range first {
		if at(table, i, minute/2) == was { // and that is its last connection now
			stay++
		}
	}
	if stay != len(first) {
		t.Errorf("%d of %d stayed", stay, len(first))
	}
	for i, was := range first {
		if at(table, i, minute+minute/4) != was {
			t.Fatalf("client %d moved before its time", i)
		}
	}
	for i, was := range first {
		if at(table, i, 5*minute) != was {
			moved++
		}
	}
	if moved < 400 || moved > 600 {
		t.Errorf("%d of %d moved when their time was over, want half", moved, len(first))
	}
	down := append([]edge.Backend{}, all...)
	down[0].State = edge.Down
	table = set(down)
	for i := range first {
		if at(table, i, 5*minute) == all[0].Addr {
			t.Fatal("a client was sent to a backend that is down")
		}
	}
}

func TestOnlySoManyClientsAreRemembered(t *testing.T) {
	var a affinity
	backend := netip.MustParseAddrPort("10.0.0.1:80")
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxKept + 1000 {
		a.set(client(i), backend, 0, time.Minute)
	}
	if len(a.of) != maxKept {
		t.Errorf("%d are remembered, want %d", len(a.of), maxKept)
	}
	// When their time is over there is room again.
	a.set(client(maxKept+1), backend, 2*time.Minute, time.Minute)
	if _, ok := a.get(client(maxKept+1), 2*time.Minute, time.Minute); !ok || len(a.of) != 1 {
		t.Errorf("%d are remembered, want the last one", len(a.of))
	}
}

// Whoever waits for a backend that is found down goes elsewhere at once, and the
// connections that it has are closed if that is wanted.
func TestConnectionsOfABackendThatFalls(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("closes=%v", closes), func(t *testing.T) {
			r := newRelay(t, Options{})
			falls, stays := upAt(server(t, echo)), upAt(server(t, echo))
			f := loopback(falls)
			f.CloseWhenDown = closes
			addr := openDoor(t, r, f)
			c := dial(t, addr)
			io.WriteString(c, "x")
			io.ReadFull(c, make([]byte, 1))
			f.Backends = []edge.Backend{inState(falls, edge.Down), stays}
			r.Apply([]edge.Frontend{f})
			io.WriteString(c, "y")
			_, err := io.ReadFull(c, make([]byte, 1))
			if closes != (err != nil) {
				t.Errorf("the connection: %v", err)
			}
			if !closes {
				return
			}
			s := settled(t, r)
			if s.BackendDown != 1 || s.Resets != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}

func TestWhoWaitsForABackendThatFallsGoesElsewhere(t *testing.T) {
	slow := make(chan netip.AddrPort, 10)
	r := newRelay(t, Options{OnSlowDial: func(addr netip.AddrPort) { slow <- addr }})
	silent, stays := upAt(deaf(t)), upAt(greeter(t, "alive"))
	stays.Weight = 0
	f := loopback(silent, stays)
	f.ConnectTimeout = time.Minute
	addr := openDoor(t, r, f)
	c := dial(t, addr)
	if got := <-slow; got != silent.Addr {
		t.Errorf("%s is slow, want %s", got, silent.Addr)
	}
	stays.Weight = 1
	f.Backends = []edge.Backend{inState(silent, edge.Down), stays}
	r.Apply([]edge.Frontend{f})
	if got, err := io.ReadAll(c); string(got) != "alive" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A backend has left and come back between two looks: its connections are
// counted in another place.
func TestABackendIsCountedWhereItIsLookedFor(t *testing.T) {
	var b backend
	var before, after atomic.Int64
	b.use(&before)
	b.use(&before)
	b.use(&after)
	if before.Load() != 0 || after.Load() != 3 {
		t.Errorf("%d and %d connections, want 0 and 3", before.Load(), after.Load())
	}
}
