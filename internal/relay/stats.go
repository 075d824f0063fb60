package relay

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
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
	Exhausted   Reason = "exhausted" // this machine has no descriptor, port or memory left
	Stopping    Reason = "stopping"  // the relay was closed meanwhile
	Closed      Reason = "closed"    // the frontend was closed, or closed to the client, meanwhile
	OtherError  Reason = "other"
)

// Stats are the counters of one door since it was first opened. For each
// moment at which they are read,
//
//	Accepted = Active + Finished + Resets + IdleTimeouts + DrainTimeouts + Lost + Cut + sum of Failures
//
// Bytes are counted as they are written to the other side. A UDP session counts
// as a connection: accepted with its first datagram, and ended by IdleTimeouts.
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
	Cut              uint64            `json:"cut"`            // left when Close had waited long enough
	Failures         map[Reason]uint64 `json:"failures"`       // connections that got no backend
	AcceptErrors     uint64            `json:"accept_errors"`
	BytesToBackend   uint64            `json:"bytes_to_backend"`
	BytesToClient    uint64            `json:"bytes_to_client"`
	PacketsToBackend uint64            `json:"packets_to_backend"` // of UDP doors, like the next two
	PacketsToClient  uint64            `json:"packets_to_client"`
	PacketsDropped   uint64            `json:"packets_dropped"` // for want of a session, a backend or room
	Backends         []BackendStats    `json:"backends"`        // sorted by address
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
	r.forgetLocked()
	all := make([]Stats, 0, len(r.doors))
	for _, d := range r.doors {
		s := d.stats()
		s.Draining = !d.wanted
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Stats) int { return compareListen(a.Listen, b.Listen) })
	return all
}

// compareListen orders the doors of one protocol, the only one there is here.
func compareListen(a, b edge.Listen) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Device, b.Device), a.Addr.Compare(b.Addr))
}

// reasonOf tells why a dial failed.
func reasonOf(err error) Reason {
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return Stopping
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return Refused
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Unreachable
	// EADDRNOTAVAIL: every local port has a connection to that backend.
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS),
		errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EADDRNOTAVAIL):
		return Exhausted
	case errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	default:
		return OtherError
	}
}
