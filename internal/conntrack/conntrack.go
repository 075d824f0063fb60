// Package conntrack owns what gatehouse asks the kernel's connection tracking:
// which connections it knows, and to forget some of them. It makes no entries
// and changes none.
//
//	flows, err := conntrack.List(ctx, conntrack.Filter{DNAT: true, Unreplied: true})
//	deleted, err := conntrack.Delete(ctx, flows)
//
// Entries of zones other than the default one are not seen: no rule of
// gatehouse's puts a packet there.
package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// ErrNotPermitted says that the process may not ask.
var ErrNotPermitted = errors.New("reading the kernel's connections is not permitted")

// TCPState is the state of a TCP connection as the kernel has it, in the words
// of conntrack(8).
type TCPState string

// The states that the tracking has of a TCP connection. SynSent2 is a
// simultaneous open.
const (
	SynSent     TCPState = "SYN_SENT"
	SynRecv     TCPState = "SYN_RECV"
	Established TCPState = "ESTABLISHED"
	FinWait     TCPState = "FIN_WAIT"
	CloseWait   TCPState = "CLOSE_WAIT"
	LastAck     TCPState = "LAST_ACK"
	TimeWait    TCPState = "TIME_WAIT"
	Close       TCPState = "CLOSE"
	SynSent2    TCPState = "SYN_SENT2"
)

// Flow is a connection that the kernel tracks: the client sends to Front, and
// the backend sees Seen and answers it. Without NAT, Backend is Front and Seen is
// Client.
type Flow struct {
	Protocol      edge.Protocol
	Client, Front netip.AddrPort // the original direction
	Backend, Seen netip.AddrPort // the reply direction: its source and destination

	State     TCPState      // empty unless it is TCP
	Replied   bool          // a packet of the reply direction has been seen
	DNAT      bool          // the destination is rewritten
	ID        uint32        // no other entry has it as long as this one is there
	Timeout   time.Duration // until it is forgotten, if nothing comes
	Started   time.Time     // zero unless the kernel keeps it (nf_conntrack_timestamp)
	ToBackend Count         // zero unless the kernel counts (nf_conntrack_acct)
	ToClient  Count
}

// Count is what has passed in one direction.
type Count struct{ Packets, Bytes uint64 }

// Filter says which flows are wanted.
type Filter struct {
	DNAT      bool          // only those whose destination is rewritten
	Unreplied bool          // only those that nobody has answered
	Protocol  edge.Protocol // empty: TCP, UDP and SCTP
}

// List returns the flows that the filter lets through, of both IP families. A
// kernel without connection tracking has none.
func List(ctx context.Context, f Filter) ([]Flow, error) { return nil, nil }

// Delete makes the kernel forget flows, and says how many of them it still had.
// An entry that has come since in place of one of them stays.
func Delete(ctx context.Context, flows []Flow) (deleted int, err error) { return 0, nil }

// Usage returns how many entries there are and how many there can be, in the
// network namespace of the caller; 0 and 0 where the kernel tracks nothing.
func Usage() (entries, limit int, err error) { return 0, 0, nil }

// Watcher finds connections that nobody answers. The zero Watcher is ready; its
// methods are for one goroutine at a time.
type Watcher struct{}

// Unanswered returns the rewritten flows that have waited for a first reply for
// at least that long: by the kernel's clock where it keeps the start of a flow,
// else since an earlier look that saw it.
func (w *Watcher) Unanswered(ctx context.Context, now time.Time, least time.Duration) ([]Flow, error) {
	return nil, nil
}
