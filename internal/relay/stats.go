package relay

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ratelimit"
)

// Reason is why a connection got no backend, or why a backend could not be
// dialled. It is a label: there are few, and they do not change.
type Reason string

// The reasons. SourceRange, the limits and NoBackend end connections only, the
// others are of dials, and of connections whose last dial ended so.
const (
	SourceRange Reason = "source_range" // the client may not connect
	Limit       Reason = "limit"        // Frontend.MaxConnections are there
	ClientLimit Reason = "client_limit" // Frontend.MaxConnectionsPerClient of this client are there
	NoBackend   Reason = "no_backend"   // none is up or pending
	Refused     Reason = "refused"
	Timeout     Reason = "timeout"
	Unreachable Reason = "unreachable"
	Exhausted   Reason = "exhausted"   // this machine has no descriptor, port or memory left
	ClientGone  Reason = "client_gone" // before a backend had been found
	Stopping    Reason = "stopping"    // the relay was closed meanwhile
	Closed      Reason = "closed"      // the frontend was closed, or closed to the client, meanwhile
	OtherError  Reason = "other"

	// Of doors that are shared by names, before a frontend was found.
	NotTLS       Reason = "not_tls"       // and no frontend takes what has no name
	UnknownName  Reason = "unknown_name"  // no frontend takes it
	HelloTimeout Reason = "hello_timeout" // the name did not come in time

	ProxyHeader    Reason = "proxy_header"    // a trusted proxy has sent none, or a bad one, or not in time
	ProxyUntrusted Reason = "proxy_untrusted" // a client that is no trusted proxy has sent one
	RateLimit      Reason = "rate_limit"      // Frontend.MaxRatePerClient
	Banned         Reason = "banned"          // for Frontend.BanTime, after that
)

// Stats are the counters of one door since it was first opened. For each
// moment at which they are read,
//
//	Accepted = Active + Finished + Resets + IdleTimeouts + DrainTimeouts + Lost + BackendDown + Cut + Routed + sum of Failures
//
// Bytes are counted as they are written to the other side. A UDP session counts
// as a connection: accepted with its first datagram, and ended by IdleTimeouts;
// or Finished, if it was a wrong guess of where a QUIC client has moved from.
type Stats struct {
	edge.Door
	Name             string            `json:"name"`
	Zone             string            `json:"zone"`
	Draining         bool              `json:"draining"`                // removed; its last connections live on
	DrainingSince    time.Time         `json:"draining_since,omitzero"` // zero: not draining
	DrainTimeout     time.Duration     `json:"drain_timeout,omitzero"`  // how long it drains; 0: until they end by themselves
	Accepted         uint64            `json:"accepted"`
	Active           uint64            `json:"active"`
	Waiting          uint64            `json:"waiting"`        // those of Active that have no backend yet
	Finished         uint64            `json:"finished"`       // both sides had said all they wanted
	Resets           uint64            `json:"resets"`         // one side reset it, and so was the other
	IdleTimeouts     uint64            `json:"idle_timeouts"`  // no byte for Frontend.IdleTimeout
	DrainTimeouts    uint64            `json:"drain_timeouts"` // their backend or door left, Frontend.DrainTimeout ago
	Lost             uint64            `json:"lost"`           // a side did not answer any more
	BackendDown      uint64            `json:"backend_down"`   // their backend was found down (Frontend.CloseWhenDown)
	Cut              uint64            `json:"cut"`            // left when Close had waited long enough
	Routed           uint64            `json:"routed"`         // given to the frontend that has their name, where they count again
	Failures         map[Reason]uint64 `json:"failures"`       // connections that got no backend
	AcceptErrors     uint64            `json:"accept_errors"`
	BytesToBackend   uint64            `json:"bytes_to_backend"`
	BytesToClient    uint64            `json:"bytes_to_client"`
	PacketsToBackend uint64            `json:"packets_to_backend"` // of UDP doors, like the next two
	PacketsToClient  uint64            `json:"packets_to_client"`
	PacketsDropped   uint64            `json:"packets_dropped"` // for want of a session, a backend or room
	Backends         []BackendStats    `json:"backends"`        // sorted by address

	// Names says that this is what comes through a door that is shared by names,
	// before it is given to one of the frontends. Its Name is empty then.
	Names  bool  `json:"names,omitempty"`
	Banned []Ban `json:"banned,omitempty"` // clients, sorted by when that ends; the first maxBansShown of them
	Bans   int   `json:"bans,omitempty"`   // how many clients are banned now
}

// Ban is a client that is turned away until a time: an IPv4 address, or the
// first address of an IPv6 /64.
type Ban struct {
	Client netip.Addr `json:"client"`
	Until  time.Time  `json:"until"`
}

// BackendStats are the counters of one backend of one door.
type BackendStats struct {
	Addr           netip.AddrPort    `json:"addr"`
	Draining       bool              `json:"draining"`                // not in the table any more
	DrainingSince  time.Time         `json:"draining_since,omitzero"` // zero: not draining
	Connected      uint64            `json:"connected"`
	Active         uint64            `json:"active"`
	Failures       map[Reason]uint64 `json:"failures"` // dials that failed
	BytesToBackend uint64            `json:"bytes_to_backend"`
	BytesToClient  uint64            `json:"bytes_to_client"`
}

// Stats returns the counters of every door that is wanted or has connections
// left, sorted by door.
func (r *Relay) Stats() []Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.collectLocked()
	slices.SortFunc(all, func(a, b Stats) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), compareListen(a.Listen, b.Listen), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// A loop is asked for the counters of so many doors at a time: it moves no
// bytes meanwhile.
const statsBatch = 64

// collectLocked sums up what the loops have counted, and forgets the doors and
// backends that are neither wanted nor used any more.
func (r *Relay) collectLocked() []Stats {
	all := make([]Stats, 0, len(r.doors))
	for doors := range slices.Chunk(slices.Collect(r.allLocked()), statsBatch) {
		sums := make([]sum, len(doors))
		for i, d := range doors {
			sums[i] = newSum(d)
		}
		for _, l := range r.loops {
			l.call(func() {
				for i, d := range doors {
					if t := l.doors[d]; t != nil {
						t.forgetBackends(d.table.Load())
						sums[i].add(t)
					}
				}
			})
		}
		for i, d := range doors {
			if s, ok := r.finishLocked(d, sums[i].Stats); ok {
				all = append(all, s)
			}
		}
	}
	return all
}

// finishLocked adds what the loops do not know, or drops a door that is done.
func (r *Relay) finishLocked(d *door, s Stats) (Stats, bool) {
	if !d.wanted && d.active.Load() == 0 {
		r.forgetLocked(d)
		for _, l := range r.loops {
			l.post(func() { delete(l.doors, d) })
		}
		return Stats{}, false
	}
	t := d.table.Load()
	if limiter := d.limiter.Load(); limiter != nil && t.MaxRatePerClient.Connections > 0 && t.BanTime > 0 {
		s.Bans, s.Banned = r.bans(limiter)
	}
	s.Draining, s.DrainingSince, s.DrainTimeout = !d.wanted, d.closed, t.DrainTimeout
	for i := range s.Backends {
		b := &s.Backends[i]
		if since, left := d.left[b.Addr]; left && (b.Active > 0 || !t.has(b.Addr)) {
			b.Draining, b.DrainingSince = true, since
		}
	}
	maps.DeleteFunc(d.loads, func(addr netip.AddrPort, n *atomic.Int64) bool { return n.Load() == 0 && !t.has(addr) })
	maps.DeleteFunc(d.left, func(addr netip.AddrPort, _ time.Time) bool {
		return !t.has(addr) && !slices.ContainsFunc(s.Backends, func(b BackendStats) bool { return b.Addr == addr })
	})
	slices.SortFunc(s.Backends, func(a, b BackendStats) int { return a.Addr.Compare(b.Addr) })
	return s, true
}

// forgetLocked drops a door that is done. A shared one is kept as long as one of
// its frontends.
func (r *Relay) forgetLocked(d *door) {
	parent := r.doors[d.key]
	switch {
	case parent != d:
		maps.DeleteFunc(parent.named, func(_ string, named *door) bool { return named == d })
	case len(d.named) == 0:
		delete(r.doors, d.key)
	}
}

// bans are the clients that are banned now, with the times as clocks show them.
func (r *Relay) bans(l *ratelimit.Limiter) (int, []Ban) {
	now := time.Since(r.began)
	n, first := l.Bans(now)
	var bans []Ban
	for _, b := range first {
		bans = append(bans, Ban{Client: b.Client, Until: r.began.Add(b.Until)})
	}
	return n, bans
}

// compareListen orders the doors of one protocol.
func compareListen(a, b edge.Listen) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Device, b.Device), a.Addr.Compare(b.Addr))
}

// reasonOf tells why a dial failed.
func reasonOf(errno unix.Errno) Reason {
	switch errno {
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return Refused
	case unix.EHOSTUNREACH, unix.ENETUNREACH:
		return Unreachable
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM,
		unix.EADDRNOTAVAIL: // every local port has a connection to that backend
		return Exhausted
	case unix.ETIMEDOUT:
		return Timeout
	default:
		return OtherError
	}
}
