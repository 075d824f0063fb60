package relay

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/rendezvous"
)

// candidates are backends of one state, made ready for choosing among them.
type candidates struct {
	backends []edge.Backend // their weights are not 0
	loads    []*atomic.Int64
	bySource *rendezvous.Table
}

func (c *candidates) add(b edge.Backend) { c.backends = append(c.backends, b) }
func (c *candidates) none() bool         { return len(c.backends) == 0 }

// prepare gets ready for a way to balance.
func (c *candidates) prepare(balance edge.Balance, d *door) {
	if c.none() {
		return
	}
	switch balance {
	case edge.BalanceLeastConnections:
		for _, b := range c.backends {
			c.loads = append(c.loads, d.load(b.Addr))
		}
	case edge.BalanceSource:
		of := make([]rendezvous.Backend, len(c.backends))
		for i, b := range c.backends {
			of[i] = rendezvous.Backend{Addr: b.Addr, Weight: b.Weight}
		}
		c.bySource = rendezvous.New(of)
	default:
	}
}

// choice is a backend that was chosen.
type choice struct {
	edge.Backend
	load *atomic.Int64 // that its connections are counted in; nil: nobody asks
}

// chooser is who a backend is chosen for.
type chooser struct {
	client netip.Addr
	tried  []netip.AddrPort // those that could not be dialled
	now    time.Duration
	random func(n uint64) uint64 // uniform in [0, n)
}

// choose picks a backend that has not been tried. Pending ones are chosen from
// when none that is up is left: for the connection at hand one that could not
// be dialled is not up, whatever the last probe said. Those that are down are
// there when there are no others.
func (t *table) choose(who chooser) (choice, bool) {
	for _, from := range []*candidates{&t.up, &t.pending, &t.down} {
		if b, ok := from.pick(who); ok {
			return b, true
		}
	}
	return choice{}, false
}

func (c *candidates) pick(who chooser) (choice, bool) {
	switch {
	case c.none():
		return choice{}, false
	case c.bySource != nil:
		return c.pickBySource(who)
	case c.loads != nil:
		return c.pickLeastLoaded(who)
	}
	at := c.pickAtRandom(who, -1)
	if at < 0 {
		return choice{}, false
	}
	return choice{Backend: c.backends[at]}, true
}

// pickAtRandom returns one that has not been tried and is not the excepted one,
// each with the probability of its weight among those; -1: there is none.
func (c *candidates) pickAtRandom(who chooser, except int) int {
	out := func(i int) bool {
		return i == except || len(who.tried) > 0 && slices.Contains(who.tried, c.backends[i].Addr)
	}
	var total uint64
	for i := range c.backends {
		if !out(i) {
			total += uint64(c.backends[i].Weight)
		}
	}
	if total == 0 {
		return -1
	}
	at := who.random(total)
	for i := range c.backends {
		if out(i) {
			continue
		}
		if w := uint64(c.backends[i].Weight); at >= w {
			at -= w
			continue
		}
		return i
	}
	panic("relay: a random number was not below its bound")
}

// pickLeastLoaded takes two at random, and of them the one with fewer
// connections for its weight. To take the least loaded of all would send
// everything to one that has just come, until the counters are looked at again;
// two are nearly as good as all (Mitzenmacher, 2001).
func (c *candidates) pickLeastLoaded(who chooser) (choice, bool) {
	first := c.pickAtRandom(who, -1)
	if first < 0 {
		return choice{}, false
	}
	second := c.pickAtRandom(who, first)
	if second >= 0 {
		// load/weight, without division. Where they are equal it is the first, so
		// that idle backends are chosen by weight.
		mine := c.loads[first].Load() * int64(c.backends[second].Weight)
		other := c.loads[second].Load() * int64(c.backends[first].Weight)
		if other < mine {
			first = second
		}
	}
	return choice{c.backends[first], c.loads[first]}, true
}

// pickBySource takes the backend that the client's address stands for, and if
// that has been tried the next in the client's own order.
func (c *candidates) pickBySource(who chooser) (choice, bool) {
	key := clientKey(who.client)
	for attempt := range c.backends {
		if b := c.backends[c.bySource.Next(key, attempt)]; !slices.Contains(who.tried, b.Addr) {
			return choice{Backend: b}, true
		}
	}
	return choice{}, false
}

// get returns the candidate with that address that has not been tried.
func (c *candidates) get(addr netip.AddrPort, tried []netip.AddrPort) (choice, bool) {
	i := slices.IndexFunc(c.backends, func(b edge.Backend) bool { return b.Addr == addr })
	if i < 0 || slices.Contains(tried, addr) {
		return choice{}, false
	}
	chosen := choice{Backend: c.backends[i]}
	if c.loads != nil {
		chosen.load = c.loads[i]
	}
	return chosen, true
}

// choose is table.choose, unless the client has a backend already that it is to
// keep.
func (d *door) choose(t *table, who chooser) (choice, bool) {
	if t.AffinityTimeout <= 0 || t.Balance != edge.BalanceSource {
		return t.choose(who)
	}
	key := clientKey(who.client)
	if addr, ok := d.affinity.get(key, who.now, t.AffinityTimeout); ok {
		if b, ok := t.up.get(addr, who.tried); ok {
			d.affinity.set(key, addr, who.now, t.AffinityTimeout)
			return b, true
		}
	}
	b, ok := t.choose(who)
	if ok {
		d.affinity.set(key, b.Addr, who.now, t.AffinityTimeout)
	}
	return b, ok
}

// affinity remembers which backend each client has, for a time. The zero
// affinity remembers nobody.
type affinity struct {
	mu sync.Mutex
	of map[netip.Addr]kept
	// When those that have been forgotten are looked for.
	sweep time.Duration
}

type kept struct {
	addr netip.AddrPort
	used time.Duration
}

// A client that cannot be remembered goes where its address says, which is
// where it was unless a backend has come or gone.
const maxKept = 100_000

func (a *affinity) get(client netip.Addr, now, timeout time.Duration) (netip.AddrPort, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.of[client]
	return k.addr, ok && now-k.used < timeout
}

func (a *affinity) set(client netip.Addr, addr netip.AddrPort, now, timeout time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[netip.Addr]kept{}
	}
	_, known := a.of[client]
	if !known && len(a.of) >= maxKept && now >= a.sweep {
		// Not for each client, or a full table would cost a walk for each.
		a.sweep = now + max(timeout/16, time.Second)
		for client, k := range a.of {
			if now-k.used >= timeout {
				delete(a.of, client)
			}
		}
	}
	if known || len(a.of) < maxKept {
		a.of[client] = kept{addr, now}
	}
}
