// Package relay is the userspace TCP data plane: it owns the listening sockets
// of the frontends it is given and the connections that come through them. What
// should be open, and which backends are up, is decided elsewhere; relay never
// reads a configuration.
//
//	r := relay.New(log, relay.Options{OnDialError: hurry})
//	for _, door := range r.Apply(frontends) { // as often as the frontends change
//		if door.Error != "" { ... }
//	}
//	defer r.Close(ctx) // drains until ctx ends
//
// A connection keeps the backend it was given for as long as it lives: no
// Apply cuts it, not even one that removes its frontend.
package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Options are what a Relay can be told once. The zero Options work.
type Options struct {
	// OnDialError is called, if set, each time a backend could not be dialled,
	// from the goroutine of the connection: it must not block. Failures that
	// are this machine's (no descriptor or port left) are not reported.
	OnDialError func(addr netip.AddrPort, err error)

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

// Relay relays TCP connections from doors to backends. Its methods may be
// called from any goroutine.
type Relay struct {
	log  *slog.Logger
	opts Options

	// dialing ends when Close has waited long enough.
	dialing     context.Context
	stopDialing context.CancelFunc
	running     sync.WaitGroup // accept loops and connections

	mu     sync.Mutex
	closed bool
	doors  map[edge.Door]*door // wanted ones, and removed ones with connections left
	status []DoorStatus        // of the frontends of the last Apply, in their order

	holders map[edge.Listen]holders // of taken ports

	connsMu sync.Mutex
	cut     bool
	conns   map[*conn]struct{}
}

// New returns a Relay without doors. It starts nothing.
func New(log *slog.Logger, opts Options) *Relay {
	r := &Relay{log: log, opts: opts, doors: map[edge.Door]*door{}, holders: map[edge.Listen]holders{}, conns: map[*conn]struct{}{}}
	r.dialing, r.stopDialing = context.WithCancel(context.Background())
	return r
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
	for _, f := range frontends {
		wanted[f.Door] = true
	}
	m := newMachine(r.holders)
	// Close first: a port may move from one interface to another in one call.
	for key, d := range r.doors {
		switch {
		case !wanted[key] || r.closed:
			d.gone.Store(true)
			r.shutLocked(d, "removed")
		case d.listener != nil && key.Listen.Device != "" && d.ifindex != m.device(key.Listen.Device):
			r.shutLocked(d, "interface has gone or changed")
		}
		d.wanted = wanted[key] && !r.closed
	}

	r.status = make([]DoorStatus, 0, len(frontends))
	seen := make(map[edge.Door]string, len(frontends))
	for _, f := range frontends {
		s := DoorStatus{Door: f.Door, Name: f.Name}
		if first, again := seen[f.Door]; again {
			s.Error = fmt.Sprintf("%s is already the door of %s", f.Door, first)
		} else if addr, err := r.openLocked(f, m); err != nil {
			s.Error = err.Error()
		} else {
			s.Addr = addr
		}
		seen[f.Door] = cmp.Or(seen[f.Door], f.Name, "another frontend")
		r.status = append(r.status, s)
	}
	maps.DeleteFunc(r.holders, func(_ edge.Listen, h holders) bool { return time.Since(h.seen) > holdersAge })
	r.forgetLocked()
	return slices.Clone(r.status)
}

// openLocked gives the frontend's door its new table and sees that it accepts.
func (r *Relay) openLocked(f edge.Frontend, m *machine) (netip.AddrPort, error) {
	if r.closed {
		return netip.AddrPort{}, errors.New("the relay is closed")
	}
	if f.Protocol != edge.TCP {
		return netip.AddrPort{}, fmt.Errorf("the relay does not speak %s", f.Protocol)
	}
	d := r.doors[f.Door]
	if d == nil {
		d = newDoor(f.Door)
		r.doors[f.Door] = d
	}
	d.wanted = true
	d.gone.Store(false)
	// The table before the socket: the first connection must find it.
	d.table.Store(newTable(f))
	if d.listener != nil {
		return addrOf(d.listener), nil
	}
	l, err := listen(f.Listen, m)
	if err != nil {
		return netip.AddrPort{}, err
	}
	d.listener, d.ifindex = l, m.devices[f.Listen.Device]
	d.acceptLoops(+1)
	r.running.Add(1)
	go r.acceptAll(d, l)
	r.log.Info("frontend opened", "frontend", f.Name, "zone", f.Zone, "listen", d.key.String(), "why", f.Why)
	return addrOf(l), nil
}

// shutLocked closes the door's socket; its connections live on.
func (r *Relay) shutLocked(d *door, why string) {
	if d.listener == nil {
		return
	}
	// Returns when the descriptor is closed: nothing is accepted afterwards.
	if err := d.listener.Close(); err != nil {
		r.log.Warn("closing a door failed", "door", d.key.String(), "err", err)
	}
	d.listener, d.ifindex = nil, 0
	r.log.Info("frontend closed", "frontend", d.table.Load().name, "listen", d.key.String(), "reason", why,
		"draining", d.draining())
}

// forgetLocked drops removed doors that have no connection left, and likewise
// the counters of removed backends.
func (r *Relay) forgetLocked() {
	for key, d := range r.doors {
		if !d.wanted && !d.inUse() {
			delete(r.doors, key)
			continue
		}
		d.forgetBackends()
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
// many as an error. A closed Relay cannot be opened again.
func (r *Relay) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	for _, d := range r.doors {
		r.shutLocked(d, "stopping")
		d.wanted = false
	}
	for i := range r.status {
		r.status[i].Addr, r.status[i].Error = netip.AddrPort{}, "the relay is closed"
	}
	r.mu.Unlock()

	drained := make(chan struct{})
	go r.signalDrained(drained)
	select {
	case <-drained:
		r.stopDialing()
		return nil
	case <-ctx.Done():
	}
	r.stopDialing()
	n := r.cutAll()
	<-drained
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d connections cut: %w", n, context.Cause(ctx))
}

func (r *Relay) signalDrained(drained chan<- struct{}) {
	r.running.Wait()
	close(drained)
}

// cutAll resets every connection and lets no other begin.
func (r *Relay) cutAll() int {
	r.connsMu.Lock()
	defer r.connsMu.Unlock()
	r.cut = true
	for c := range r.conns {
		c.reset()
	}
	return len(r.conns)
}

func addrOf(l *net.TCPListener) netip.AddrPort {
	a := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
