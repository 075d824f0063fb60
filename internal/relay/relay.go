// Package relay is the userspace data plane for TCP and UDP: it owns the
// sockets of the frontends it is given, and the connections and sessions that
// come through them. What should be open, and which backends are up, is
// decided elsewhere; relay never reads a configuration.
//
//	r := relay.New(log, relay.Options{OnDialError: hurry})
//	for _, door := range r.Apply(frontends) { // as often as the frontends change
//		if door.Error != "" { ... }
//	}
//	defer r.Close(ctx) // drains until ctx ends
//
// A connection keeps the backend it was given for as long as it lives: no
// Apply cuts it, not even one that removes its frontend, unless that has a
// drain time.
//
// # The engine
//
// There is one loop (loop.go) for each core: a thread that waits in epoll_wait
// and hands each event to the source that the descriptor belongs to. A source
// is a door's socket (acceptor, udpSocket), one side of a connection, or a
// session. What a loop has accepted it keeps to its end, with its counters, so
// that nothing on the way of a byte needs a lock.
//
//	           Apply, Stats, Close: any goroutine
//	               │ post, call
//	┌──────────────▼─────────────────────────── loop, one per core ─┐
//	│ epoll ──► acceptor ──► conn: held ◄─► dialling ──► open        │
//	│   │        admit        begin     dial             │           │
//	│   │                       └► greeting ┘ (names.go) │           │
//	│   │                                                ▼           │
//	│   ├─────► side.ready ───────────► pump: read, write; or, for   │
//	│   │                                bulky flows, splice ─► pipe │
//	│   ├─────► udpSocket ──► session                                │
//	│   └─────► wakeup (the inbox)                                   │
//	│ wheel ──► expired: dials, waiting, looking after, dying        │
//	│ tally: counters of each door and backend                       │
//	└────────────────────────────────────────────────────────────────┘
//
// pump is the heart: it moves bytes from one side to the other until there are
// none, the other side takes no more, or others should have their turn. What
// was read and not taken (at most a buffer, or a pipe) is kept in the side that
// it is for, and nothing more is read for it: that is the back-pressure. An end
// is passed on as an end, a reset as a reset, each after what was said before.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Options are what a Relay can be told once. The zero Options work.
type Options struct {
	// OnDialError is called, if set, each time a backend could not be dialled,
	// by a loop: it must not block. Failures that are this machine's (no
	// descriptor or port left) are not reported.
	OnDialError func(of edge.Protocol, addr netip.AddrPort, err error)

	// OnSlowDial is called, if set, likewise, when a backend has not answered for
	// suspectAfter; the connection goes on to wait.
	OnSlowDial func(addr netip.AddrPort) // of TCP

	// Adopt is what the process before this one has handed over. Apply uses its
	// sockets instead of opening new ones; those that the first Apply has no use
	// for are closed by it.
	Adopt Handover
}

// DoorStatus is what has become of one frontend.
type DoorStatus struct {
	edge.Door
	Name  string         `json:"name"`
	Addr  netip.AddrPort `json:"addr,omitzero"`   // what the socket is bound to; zero: nothing listens
	Error string         `json:"error,omitempty"` // why nothing listens
}

// Relay relays connections and datagrams from doors to backends. Its methods
// may be called from any goroutine.
type Relay struct {
	log   *slog.Logger
	opts  Options
	times times
	began time.Time // what the loops' times are counted from

	// live is how many TCP connections there are. Once closing, whoever makes it
	// zero closes drained.
	live     atomic.Int64
	closing  atomic.Bool
	drained  chan struct{}
	sayDrain sync.Once

	loops []*loop // set by the first Apply; read by the loops

	mu     sync.Mutex
	closed bool
	doors  map[edge.Door]*door // wanted ones, and removed ones with connections left
	status []DoorStatus        // of the frontends of the last Apply, in their order
	fallen []fallenOf          // in the Apply at hand
	drain  *time.Timer         // set if something's drain time runs

	holders map[edge.Door]holders // of taken ports
}

// New returns a Relay without doors. It starts nothing.
func New(log *slog.Logger, opts Options) *Relay {
	return &Relay{
		log: log, opts: opts, times: times{lookInterval, lostAfter, greetingTimeout}, began: time.Now(), drained: make(chan struct{}),
		doors: map[edge.Door]*door{}, holders: map[edge.Door]holders{},
	}
}

// A machine with more cores than this has better uses for them.
const maxLoops = 16

// startLocked starts the loops, once there is something for them to do.
func (r *Relay) startLocked() error {
	if r.loops != nil {
		return nil
	}
	var loops []*loop
	for range cmp.Or(r.opts.Adopt.udpSockets(), min(cores, maxLoops)) {
		l, err := newLoop(r.began, rand.Uint64N)
		if err != nil {
			for _, l := range loops {
				l.close()
			}
			return err
		}
		loops = append(loops, l)
	}
	makeRoom()
	r.loops = loops
	for _, l := range loops {
		go l.run()
	}
	return nil
}

// Apply makes the doors of the frontends, and no others, accept connections.
// When it returns removed doors are closed, and every frontend either accepts
// or its status says why not; calling Apply again tries those anew. A door that
// was there before keeps its socket and its connections; new connections go by
// the new table. The sockets are opened in the network namespace of the caller.
//
// A door bound to an interface is closed when that interface is gone, and
// bound anew when there is one of that name again: a socket stays bound to the
// index that the name stood for, and would hear nothing.
func (r *Relay) Apply(frontends []edge.Frontend) []DoorStatus {
	r.mu.Lock()
	defer r.mu.Unlock()

	wanted := make(map[edge.Door]bool, len(frontends))
	groups := make(map[edge.Door][]edge.Frontend) // that share a door
	for _, f := range frontends {
		wanted[f.Door] = true
		if len(f.Hostnames) > 0 {
			groups[f.Door] = append(groups[f.Door], f)
		}
	}
	m := newMachine(r.holders, newNeighbours(r, wanted))
	// Close first: a port may move from one interface to another in one call.
	removed, moved := map[*door]bool{}, map[*door]bool{}
	for key, d := range r.doors {
		switch {
		case !wanted[key] || r.closed:
			d.gone.Store(true)
			removed[d] = true
			r.ungroupLocked(d, nil)
		case d.open() && key.Listen.Device != "" && d.ifindex != m.device(key.Listen.Device):
			moved[d] = true
		}
		d.want(wanted[key] && !r.closed)
	}
	r.shutLocked(removed, "removed")
	r.shutLocked(moved, "interface has gone or changed")

	var opened []*door
	r.status = make([]DoorStatus, 0, len(frontends))
	seen := make(map[edge.Door]DoorStatus, len(frontends))
	for _, f := range frontends {
		s := DoorStatus{Door: f.Door, Name: f.Name}
		first, again := seen[f.Door]
		group := groups[f.Door]
		switch {
		case again && len(f.Hostnames) > 0 && group != nil:
			s.Addr, s.Error = first.Addr, first.Error
		case again:
			s.Error = fmt.Sprintf("%s is already the door of %s", f.Door, cmp.Or(first.Name, "another frontend"))
		default:
			if len(f.Hostnames) == 0 {
				delete(groups, f.Door) // who comes first has it
				group = nil
			}
			d, fresh, err := r.openLocked(f, group, m)
			if err != nil {
				s.Error = err.Error()
			} else if s.Addr = d.addr; fresh {
				opened = append(opened, d)
				if group == nil {
					group = []edge.Frontend{f}
				}
				for _, f := range group {
					r.log.Info("frontend opened", "frontend", f.Name, "zone", f.Zone, "data_plane", edge.DataPlaneProxy, "listen", d.key.String(), "hostnames", f.Hostnames, "why", f.Why)
				}
			}
			seen[f.Door] = s
		}
		r.status = append(r.status, s)
	}
	r.serveLocked(opened)
	r.fellLocked()
	r.opts.Adopt.Close()
	r.opts.Adopt = Handover{}
	maps.DeleteFunc(r.holders, func(_ edge.Door, h holders) bool { return time.Since(h.seen) > holdersAge })
	r.collectLocked()
	r.drainLocked()
	return slices.Clone(r.status)
}

// openLocked gives the frontend's door its new table and sees that it has its
// sockets. fresh says that they are new, and serveLocked is to be called. The
// group is of those that share the door, f among them; nil: it does not.
func (r *Relay) openLocked(f edge.Frontend, group []edge.Frontend, m *machine) (d *door, fresh bool, err error) {
	if r.closed {
		return nil, false, errors.New("the relay is closed")
	}
	if err := r.startLocked(); err != nil {
		return nil, false, err
	}
	d = r.doors[f.Door]
	if d == nil {
		d = newDoor(f.Door)
		r.doors[f.Door] = d
	}
	d.want(true)
	// The table before the socket: the first connection must find it.
	if group == nil {
		r.ungroupLocked(d, nil)
		if before := d.table.Load(); d.open() && before.name != f.Name {
			r.log.Info("frontend takes the whole port", "frontend", f.Name, "zone", f.Zone, "listen", d.key.String(), "why", f.Why)
		}
		r.setTableLocked(d, m.table(f))
	} else {
		t := r.groupLocked(d, group, m)
		if before := d.table.Load(); before != nil {
			t.DrainTimeout, t.IdleTimeout = before.DrainTimeout, before.IdleTimeout // for what came while one frontend had all of it
		}
		r.setTableLocked(d, t)
	}
	d.gone.Store(false)
	if d.open() {
		return d, false, nil
	}
	d.ifindex = m.device(f.Listen.Device)
	if fds := r.opts.Adopt.take(f.Door, d.ifindex); fds != nil {
		d.setSockets(fds, boundTo(fds[0]), len(r.loops))
		m.neighbours.opened(d)
		return d, true, nil
	}
	var fds []int
	var addr netip.AddrPort
	switch f.Protocol {
	case edge.TCP:
		fds, addr, err = listen(f.Listen, m)
	case edge.UDP:
		fds, addr, err = listenUDP(f.Listen, m, len(r.loops))
	default:
		err = fmt.Errorf("the relay does not speak %s", f.Protocol)
	}
	if err != nil {
		return nil, false, err
	}
	d.setSockets(fds, addr, len(r.loops))
	m.neighbours.opened(d)
	return d, true, nil
}

// groupLocked gives each of the frontends that share a door a door of its own,
// without a socket, and returns the table of the shared one.
func (r *Relay) groupLocked(shared *door, group []edge.Frontend, m *machine) *table {
	keep := make(map[string]bool, len(group))
	n := newNames()
	for _, f := range group {
		d := shared.named[f.Name]
		if d == nil {
			d = newDoor(f.Door)
			if shared.named == nil {
				shared.named = map[string]*door{}
			}
			shared.named[f.Name] = d
		}
		// Of a door that is not open yet, that is said of all of them.
		if news := !d.wanted || !slices.Equal(d.hostnames, f.Hostnames); news && shared.open() {
			r.log.Info("frontend takes names", "frontend", f.Name, "zone", f.Zone, "listen", d.key.String(), "hostnames", f.Hostnames, "why", f.Why)
		}
		d.hostnames = slices.Clone(f.Hostnames)
		keep[f.Name] = true
		r.setTableLocked(d, m.table(f))
		d.want(true)
		d.gone.Store(false)
		if taken := n.add(d, f.Hostnames); len(taken) > 0 {
			r.log.Error("another frontend has these names", "frontend", f.Name, "listen", d.key.String(), "hostnames", taken)
		}
	}
	r.ungroupLocked(shared, keep)
	return newSharedTable(group, n)
}

// ungroupLocked closes the frontends of a shared door that are not to be kept:
// what they have drains.
func (r *Relay) ungroupLocked(shared *door, keep map[string]bool) {
	for name, d := range shared.named {
		if !keep[name] && d.wanted {
			d.gone.Store(true)
			d.want(false)
			r.log.Info("frontend closed", "frontend", name, "data_plane", edge.DataPlaneProxy, "listen", d.key.String(), "reason", "removed", "draining", d.active.Load())
		}
	}
}

// setTableLocked notes, besides, which backends have fallen.
func (r *Relay) setTableLocked(d *door, t *table) {
	if fallen := t.fallen(d.setTable(t)); len(fallen) > 0 {
		r.fallen = append(r.fallen, fallenOf{d, fallen, t.CloseWhenDown})
	}
}

// fallenOf are backends of a door that have been found down.
type fallenOf struct {
	d        *door
	backends []netip.AddrPort
	closes   bool
}

// fellLocked tells the loops, once all doors have their tables.
func (r *Relay) fellLocked() {
	for _, f := range r.fallen {
		for i, l := range r.loops {
			u := r.udpSocketLocked(f.d, i)
			l.post(func() {
				l.fell(f.d, f.backends, f.closes)
				if u != nil && f.closes {
					u.endAll(l, f.d, endedDown, f.backends...)
				}
			})
		}
	}
	r.fallen = nil
}

// udpSocketLocked is the source that a door's sessions have in a loop; nil: it
// has none.
func (r *Relay) udpSocketLocked(d *door, loop int) *udpSocket {
	if parent := r.doors[d.key]; parent != nil && parent.open() {
		u, _ := parent.servers[loop].(*udpSocket)
		return u
	}
	return nil
}

// allLocked are the doors, and those of the frontends that share them.
func (r *Relay) allLocked() iter.Seq[*door] {
	return func(yield func(*door) bool) {
		for _, d := range r.doors {
			if !yield(d) {
				return
			}
			for _, named := range d.named {
				if !yield(named) {
					return
				}
			}
		}
	}
}

// serveLocked has the loops serve doors that have been opened, and go on with
// the UDP sessions of theirs that were handed over.
func (r *Relay) serveLocked(doors []*door) {
	for i, l := range r.loops {
		l.call(func() {
			for _, d := range doors {
				if err := d.serve(r, l, i); err != nil {
					// Out of memory, or of what a user may watch (max_user_watches).
					r.log.Error("a loop cannot serve a frontend", "door", d.key.String(), "err", err)
				}
			}
			// Before the loop reads the first datagram, which may be of one of them.
			for _, s := range r.opts.Adopt.Sessions {
				if d := r.doors[s.Door]; s.Socket == i && d != nil && slices.Contains(doors, d) {
					d.servers[i].(*udpSocket).adopt(l, s)
				}
			}
		})
	}
}

// shutLocked closes the doors' sockets; their connections live on. Nothing is
// accepted afterwards.
func (r *Relay) shutLocked(doors map[*door]bool, why string) {
	maps.DeleteFunc(doors, func(d *door, _ bool) bool { return !d.open() })
	if len(doors) == 0 {
		return
	}
	for i, l := range r.loops {
		l.call(func() {
			for d := range doors {
				d.servers[i].shut(l)
			}
		})
	}
	for d := range doors {
		for _, fd := range d.sockets {
			closeFD(int32(fd))
		}
		d.sockets, d.servers, d.addr = nil, nil, netip.AddrPort{}
		t := d.table.Load()
		if t.names == nil {
			r.log.Info("frontend closed", "frontend", t.name, "data_plane", edge.DataPlaneProxy, "listen", d.key.String(), "reason", why, "draining", d.active.Load())
			continue
		}
		for name, f := range d.named {
			if f.wanted { // else it was said
				r.log.Info("frontend closed", "frontend", name, "data_plane", edge.DataPlaneProxy, "listen", d.key.String(), "reason", why, "draining", f.active.Load())
			}
		}
		r.log.Info("listener closed", "listen", d.key.String(), "reason", why, "draining", d.active.Load())
	}
}

// drainLocked ends what has had its drain time, and sees that it is called
// again when the next has.
func (r *Relay) drainLocked() {
	if r.drain != nil {
		r.drain.Stop()
	}
	if r.closed {
		return
	}
	now := time.Now()
	var next time.Duration
	for d := range r.allLocked() {
		t := d.table.Load()
		if t.DrainTimeout <= 0 {
			continue
		}
		for addr, since := range d.left {
			left := t.DrainTimeout - now.Sub(since)
			if left > 0 {
				if next == 0 || left < next {
					next = left
				}
				continue
			}
			for i, l := range r.loops {
				u := r.udpSocketLocked(d, i)
				l.post(func() {
					l.drained(d, addr)
					if u != nil {
						u.drained(l, d, addr)
					}
				})
			}
		}
	}
	if next > 0 {
		r.drain = time.AfterFunc(next, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.drainLocked()
		})
	}
}

// Doors returns what Apply returned last.
func (r *Relay) Doors() []DoorStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.status)
}

// Close stops accepting at once, waits for the connections to end by
// themselves, and resets those that are left when ctx ends; it returns how
// many as an error. UDP sessions have no end to wait for. A closed Relay
// cannot be opened again.
func (r *Relay) Close(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	all := map[*door]bool{}
	for d := range r.allLocked() {
		all[d] = true
		d.want(false)
	}
	r.shutLocked(all, "stopping")
	for i := range r.status {
		r.status[i].Addr, r.status[i].Error = netip.AddrPort{}, "the relay is closed"
	}
	r.closing.Store(true)
	if r.live.Load() > 0 {
		r.mu.Unlock() // Stats shows how it goes
		select {
		case <-r.drained:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	n := r.cutLocked()
	if r.drain != nil {
		r.drain.Stop()
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d connections cut: %w", n, context.Cause(ctx))
}

// cutLocked resets every connection and ends the loops. It returns how many
// there were.
func (r *Relay) cutLocked() (n int) {
	for _, l := range r.loops {
		l.call(func() {
			l.eachConn(func(c *conn) {
				n++
				c.cut(l)
			})
		})
	}
	for _, l := range r.loops {
		l.stop()
		<-l.ended
	}
	return n
}

// left is called when a connection is no more.
func (r *Relay) left() {
	if r.live.Add(-1) == 0 && r.closing.Load() {
		r.sayDrain.Do(func() { close(r.drained) })
	}
}
