package relay

import (
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ratelimit"
)

// door is a frontend's place in the machine: its sockets, and the table that
// what comes through them goes by. It outlives its sockets while connections
// drain. What it counts is kept by the loops, in a tally each.
type door struct {
	key   edge.Door
	table atomic.Pointer[table]
	gone  atomic.Bool // closed: who is held gets no backend any more

	// Guarded by Relay.mu.
	wanted    bool
	sockets   []int        // TCP: one, that all loops accept from; UDP: one for each loop
	servers   []doorServer // of the loops, in their order
	ifindex   int          // that the sockets are bound to; 0: none
	addr      netip.AddrPort
	left      map[netip.AddrPort]time.Time // backends that have left the table, and since when
	named     map[string]*door             // of a shared door: those of its frontends, which have no sockets
	hostnames []string                     // of one of these: the names that it takes
	loads     map[netip.AddrPort]*atomic.Int64
	closed    time.Time // since when the door is not wanted

	active  atomic.Int64 // connections or sessions, of all loops
	clients clients
	// Of a shared door: those of active that have no frontend yet, and their
	// clients. What else it has is of when it was not shared.
	asking   atomic.Int64
	askers   clients
	limiter  atomic.Pointer[ratelimit.Limiter] // nil: there has been no rate to hold clients to
	affinity affinity
	ids      connectionIDs // of a shared UDP door

	mu     sync.Mutex // guards mutter
	mutter limiter
}

func newDoor(key edge.Door) *door {
	return &door{key: key, left: map[netip.AddrPort]time.Time{}}
}

// doorServer is a door's part in one loop: the source of its socket. Its methods
// are called in the loop's thread.
type doorServer interface {
	start(l *loop) error
	// shut ends it. The socket is closed by others.
	shut(l *loop)
}

func (d *door) open() bool { return d.sockets != nil }

func (d *door) setSockets(fds []int, addr netip.AddrPort, loops int) {
	d.sockets, d.addr, d.servers = fds, addr, make([]doorServer, loops)
}

// serve starts the door in a loop.
func (d *door) serve(r *Relay, l *loop, i int) error {
	if d.key.Protocol == edge.UDP {
		d.servers[i] = newUDPSocket(r, d, d.sockets[i])
	} else {
		d.servers[i] = &acceptor{r: r, d: d, fd: d.sockets[0]}
	}
	return d.servers[i].start(l)
}

// want notes since when the door is not wanted, if it is not.
func (d *door) want(wanted bool) {
	if d.wanted && !wanted {
		d.closed = time.Now()
		for _, b := range d.table.Load().backends {
			d.leave(b.Addr)
		}
	} else if wanted {
		d.closed = time.Time{}
	}
	d.wanted = wanted
}

// setTable notes which backends have left with the table before, and returns
// that.
func (d *door) setTable(t *table) (before *table) {
	for _, c := range []*candidates{&t.up, &t.pending, &t.down} {
		c.prepare(t.Balance, d)
	}
	if t.MaxRatePerClient.Connections > 0 && d.limiter.Load() == nil {
		d.limiter.Store(ratelimit.New())
	}
	if before = d.table.Swap(t); before != nil {
		for _, b := range before.backends {
			d.leave(b.Addr)
		}
	}
	maps.DeleteFunc(d.left, func(addr netip.AddrPort, _ time.Time) bool { return t.serves(addr) })
	return before
}

// load is how many connections a backend has, in all loops.
func (d *door) load(addr netip.AddrPort) *atomic.Int64 {
	n := d.loads[addr]
	if n == nil {
		if d.loads == nil {
			d.loads = map[netip.AddrPort]*atomic.Int64{}
		}
		n = new(atomic.Int64)
		d.loads[addr] = n
	}
	return n
}

// leave notes since when a backend gets no new connections; setTable takes
// back those that still do.
func (d *door) leave(addr netip.AddrPort) {
	if _, already := d.left[addr]; !already {
		d.left[addr] = time.Now()
	}
}

// admit says whether one more connection of a client may come, and counts it
// if so: release takes it back. How it was counted goes to release. Of one that
// comes from a proxy the client is not known yet, unless its header has been
// read: then it is admitClient's.
func (d *door) admit(t *table, client netip.Addr, now time.Duration, known bool) (why Reason, as counted) {
	n := d.active.Add(1)
	if t.names != nil {
		as, n = asAsker, d.asking.Add(1)
	}
	proxied := !known && t.isProxy(client)
	switch {
	case !proxied && !t.allows(client):
		return SourceRange, as
	case t.MaxConnections > 0 && n > int64(t.MaxConnections):
		return Limit, as
	case proxied:
		return "", as
	}
	return d.admitClient(t, client, now, as)
}

// counted is where a connection is counted, besides in door.active.
type counted uint8

const (
	asAsker  counted = 1 << iota // in door.asking
	byClient                     // in clientsOf
)

// clientsOf are those that a connection is counted among.
func (d *door) clientsOf(as counted) *clients {
	if as&asAsker != 0 {
		return &d.askers
	}
	return &d.clients
}

// admitClient is the part of admit that is about the client.
func (d *door) admitClient(t *table, client netip.Addr, now time.Duration, as counted) (Reason, counted) {
	if !t.allows(client) {
		return SourceRange, as
	}
	if rate := t.MaxRatePerClient; rate.Connections > 0 {
		switch d.limiter.Load().Allow(clientKey(client), ratelimit.Rate{N: rate.Connections, Per: rate.Per}, t.BanTime, now) {
		case ratelimit.Limited:
			return RateLimit, as
		case ratelimit.Banned:
			return Banned, as
		default:
		}
	}
	if t.MaxConnectionsPerClient > 0 {
		if !d.clientsOf(as).add(client, t.MaxConnectionsPerClient) {
			return ClientLimit, as
		}
		as |= byClient
	}
	return "", as
}

// readmit is admit for who is there already. It is no new connection, and there
// may be more of them than may come at once.
func (d *door) readmit(t *table, client netip.Addr) (as counted) {
	d.active.Add(1)
	if t.MaxConnectionsPerClient > 0 && d.clients.add(client, t.MaxConnectionsPerClient) {
		as = byClient
	}
	return as
}

// release undoes admit, whatever that has said.
func (d *door) release(client netip.Addr, as counted) {
	d.active.Add(-1)
	if as&asAsker != 0 {
		d.asking.Add(-1)
	}
	d.releaseClient(client, as)
}

// releaseClient undoes admitClient.
func (d *door) releaseClient(client netip.Addr, as counted) {
	if as&byClient != 0 {
		d.clientsOf(as).remove(client)
	}
}

// clients counts the connections of each client.
type clients struct {
	mu sync.Mutex
	of map[netip.Addr]int
}

func (c *clients) add(client netip.Addr, most int) bool {
	key := clientKey(client)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[netip.Addr]int{}
	}
	if c.of[key] >= most {
		return false
	}
	c.of[key]++
	return true
}

func (c *clients) remove(client netip.Addr) {
	key := clientKey(client)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[key]--; c.of[key] == 0 {
		delete(c.of, key)
	}
}

// clientKey is what counts as one client: an IPv4 address, or the /64 that an
// IPv6 host picks its addresses from (RFC 8981).
func clientKey(client netip.Addr) netip.Addr {
	if client.Is6() {
		if p, err := client.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return client
}

// tally is what one loop has counted of one door. It belongs to the loop.
type tally struct {
	count    Stats // only the counters
	backends map[netip.AddrPort]*backend
}

// backend is what a loop has counted of one backend of a door. It is kept
// while the table has the backend or a connection uses it.
type backend struct {
	users int // connections, sessions and dials
	count BackendStats
	load  *atomic.Int64 // of all loops together; nil: nobody asks
}

// use counts one more connection, session or dial. load is where those of all
// loops are counted, if somebody asks for them. That may be another place than
// before: one is forgotten when the backend has left and nobody uses it, which
// the loops hear of one after the other.
func (b *backend) use(load *atomic.Int64) {
	if load != nil && b.load != load {
		if b.load != nil {
			b.load.Add(-int64(b.users))
		}
		b.load = load
		load.Add(int64(b.users))
	}
	b.users++
	if b.load != nil {
		b.load.Add(1)
	}
}

func (b *backend) unuse() {
	b.users--
	if b.load != nil {
		b.load.Add(-1)
	}
}

// tally returns the loop's counters of a door.
func (l *loop) tally(d *door) *tally {
	t := l.doors[d]
	if t == nil {
		t = &tally{count: Stats{Failures: map[Reason]uint64{}}, backends: map[netip.AddrPort]*backend{}}
		l.doors[d] = t
	}
	return t
}

func (t *tally) backend(addr netip.AddrPort) *backend {
	b := t.backends[addr]
	if b == nil {
		b = &backend{count: BackendStats{Addr: addr, Failures: map[Reason]uint64{}}}
		t.backends[addr] = b
	}
	return b
}

// accepted counts a connection that is there, and has no backend yet.
func (t *tally) accepted() {
	t.count.Accepted++
	t.count.Active++
	t.count.Waiting++
}

// failed ends a connection that never got a backend.
func (t *tally) failed(why Reason) {
	t.count.Active--
	t.count.Waiting--
	t.count.Failures[why]++
}

// routed ends a connection that now is another door's.
func (t *tally) routed() {
	t.count.Active--
	t.count.Waiting--
	t.count.Routed++
}

// dialFailed ends the use of a backend that was being dialled.
func (t *tally) dialFailed(b *backend, why Reason) {
	b.unuse()
	b.count.Failures[why]++
}

func (t *tally) connected(b *backend) {
	t.count.Waiting--
	b.count.Connected++
	b.count.Active++
}

// ended ends a connection that had a backend.
func (t *tally) ended(b *backend, how ending) {
	b.unuse()
	b.count.Active--
	t.count.Active--
	switch how {
	case endedIdle:
		t.count.IdleTimeouts++
	case endedReset:
		t.count.Resets++
	case endedDrained:
		t.count.DrainTimeouts++
	case endedLost:
		t.count.Lost++
	case endedDown:
		t.count.BackendDown++
	case endedUntrusted:
		t.count.Failures[ProxyUntrusted]++
	case endedCut:
		t.count.Cut++
	default:
		t.count.Finished++
	}
}

// forgetBackends drops the counters of backends that the table does not name
// any more, once nothing uses them.
func (t *tally) forgetBackends(current *table) {
	maps.DeleteFunc(t.backends, func(addr netip.AddrPort, b *backend) bool {
		return b.users == 0 && !current.has(addr)
	})
}

// sum is what all loops together have counted of one door.
type sum struct {
	Stats
	at map[netip.AddrPort]int // in Backends
}

func newSum(d *door) sum {
	t := d.table.Load()
	s := sum{Stats{Door: d.key, Name: t.name, Zone: t.zone, Names: t.names != nil, Failures: map[Reason]uint64{}}, map[netip.AddrPort]int{}}
	for _, b := range t.backends {
		s.backend(b.Addr)
	}
	return s
}

func (s *sum) backend(addr netip.AddrPort) *BackendStats {
	i, ok := s.at[addr]
	if !ok {
		i = len(s.Backends)
		s.at[addr] = i
		s.Backends = append(s.Backends, BackendStats{Addr: addr, Failures: map[Reason]uint64{}})
	}
	return &s.Backends[i]
}

func (s *sum) add(t *tally) {
	c := &t.count
	s.Accepted += c.Accepted
	s.Active += c.Active
	s.Waiting += c.Waiting
	s.Finished += c.Finished
	s.Resets += c.Resets
	s.IdleTimeouts += c.IdleTimeouts
	s.DrainTimeouts += c.DrainTimeouts
	s.Lost += c.Lost
	s.BackendDown += c.BackendDown
	s.Routed += c.Routed
	s.Cut += c.Cut
	s.AcceptErrors += c.AcceptErrors
	s.BytesToBackend += c.BytesToBackend
	s.BytesToClient += c.BytesToClient
	s.PacketsToBackend += c.PacketsToBackend
	s.PacketsToClient += c.PacketsToClient
	s.PacketsDropped += c.PacketsDropped
	addReasons(s.Failures, c.Failures)
	for addr, b := range t.backends {
		of := s.backend(addr)
		of.Connected += b.count.Connected
		of.Active += b.count.Active
		of.BytesToBackend += b.count.BytesToBackend
		of.BytesToClient += b.count.BytesToClient
		addReasons(of.Failures, b.count.Failures)
	}
}

func addReasons(to, from map[Reason]uint64) {
	for why, n := range from {
		to[why] += n
	}
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
