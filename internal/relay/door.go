package relay

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// door is a listening socket, the table that its connections go by and what
// has been counted. It outlives its socket while connections drain.
type door struct {
	key   edge.Door
	table atomic.Pointer[table]
	gone  atomic.Bool // closed: who is held gets no backend any more

	// Guarded by Relay.mu.
	wanted   bool
	listener *net.TCPListener
	ifindex  int // that the listener is bound to; 0: none

	mu       sync.Mutex
	loops    int // accept loops that run
	count    Stats
	backends map[netip.AddrPort]*backend
	mutter   limiter
}

// backend is what a door has counted of one backend. It is kept while the
// table has the backend or a connection uses it.
type backend struct {
	users int // connections and dials
	count BackendStats
}

func newDoor(key edge.Door) *door {
	return &door{
		key:      key,
		count:    Stats{Door: key, Failures: map[Reason]uint64{}},
		backends: map[netip.AddrPort]*backend{},
	}
}

func (d *door) acceptLoops(delta int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.loops += delta
}

// inUse says whether a connection lives or may still come. An accept loop
// counts what it has accepted before it ends.
func (d *door) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.loops > 0 || d.count.Active > 0
}

func (d *door) draining() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count.Active
}

func (d *door) accepted() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Accepted++
	d.count.Active++
}

func (d *door) acceptFailed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.AcceptErrors++
}

// failed ends a connection that never got a backend.
func (d *door) failed(why Reason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Active--
	d.count.Failures[why]++
}

// dialling says that a connection is about to use a backend: settle its
// outcome with connected and ended, or with dialFailed.
func (d *door) dialling(addr netip.AddrPort) *backend {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.backendLocked(addr)
	b.users++
	return b
}

func (d *door) backendLocked(addr netip.AddrPort) *backend {
	b := d.backends[addr]
	if b == nil {
		b = &backend{count: BackendStats{Addr: addr, Failures: map[Reason]uint64{}}}
		d.backends[addr] = b
	}
	return b
}

func (d *door) dialFailed(b *backend, why Reason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b.users--
	b.count.Failures[why]++
}

func (d *door) connected(b *backend) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b.count.Connected++
	b.count.Active++
}

// moved adds the bytes that one direction of a connection has moved.
func (d *door) moved(b *backend, toBackend, toClient int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b.count.BytesToBackend += uint64(toBackend)
	b.count.BytesToClient += uint64(toClient)
	d.count.BytesToBackend += uint64(toBackend)
	d.count.BytesToClient += uint64(toClient)
}

func (d *door) ended(b *backend, how ending) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b.users--
	b.count.Active--
	d.count.Active--
	switch how {
	case endedIdle:
		d.count.IdleTimeouts++
	case endedReset:
		d.count.Resets++
	case endedCut:
		d.count.Cut++
	default:
		d.count.Finished++
	}
}

// forgetBackends drops the counters of backends that the table does not name
// any more, once nothing uses them.
func (d *door) forgetBackends() {
	t := d.table.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.backends, func(addr netip.AddrPort, b *backend) bool {
		return b.users == 0 && !t.has(addr)
	})
}

func (d *door) stats() Stats {
	t := d.table.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range t.backends {
		d.backendLocked(b.Addr)
	}
	s := d.count
	s.Name, s.Zone = t.name, t.zone
	s.Failures = maps.Clone(s.Failures)
	for _, b := range d.backends {
		c := b.count
		c.Failures = maps.Clone(c.Failures)
		c.Draining = !t.has(c.Addr)
		s.Backends = append(s.Backends, c)
	}
	slices.SortFunc(s.Backends, func(a, b BackendStats) int { return a.Addr.Compare(b.Addr) })
	return s
}

// complain says whether a line about this door may be logged now, and how many
// could not be since the last one.
func (d *door) complain(now time.Time) (suppressed int, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mutter.allow(now)
}

// limiter lets one through per limiterPeriod: what goes wrong for one
// connection goes wrong for the next thousand.
type limiter struct {
	last       time.Time
	suppressed int
}

const limiterPeriod = 10 * time.Second

func (l *limiter) allow(now time.Time) (suppressed int, ok bool) {
	if !l.last.IsZero() && now.Sub(l.last) < limiterPeriod {
		l.suppressed++
		return 0, false
	}
	suppressed = l.suppressed
	l.last, l.suppressed = now, 0
	return suppressed, true
}
