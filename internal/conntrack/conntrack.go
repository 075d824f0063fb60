// Package conntrack owns what gatehouse asks the kernel's connection tracking:
// which connections it knows, and to forget some of them. It makes no entries
// and changes none.
//
//	flows, err := conntrack.List(ctx, conntrack.Filter{DNAT: true})
//	deleted, err := conntrack.Delete(ctx, flows)
//
// Entries of zones other than the default one are not seen: no rule of
// gatehouse's puts a packet there.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Why the kernel does not do what it is asked, where that is known.
var (
	ErrNotPermitted = errors.New("reading and deleting entries of conntrack is not permitted")
	ErrNoNetlink    = errors.New("the kernel lacks nf_conntrack_netlink")
)

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

	State   TCPState      // empty unless it is TCP
	Replied bool          // a packet of the reply direction has been seen
	DNAT    bool          // the destination is rewritten
	ID      uint32        // another entry has it only if it is of the same client and front, later
	Timeout time.Duration // until it is forgotten, if nothing comes
}

// Filter says which flows are wanted.
type Filter struct {
	DNAT     bool          // only those whose destination is rewritten
	Protocol edge.Protocol // empty: TCP, UDP and SCTP
}

// List returns the flows that the filter lets through, of both IP families. A
// kernel without connection tracking has none.
//
// The kernel walks all entries, and hands over those with the status that is
// asked for (Linux 5.15; an older one all). Measured with 262,144 hash buckets
// and 100,000 entries, of which 10,000 are rewritten:
//
//	filter  flows    by the kernel  here
//	none    100,000  175 ms         175 ms
//	DNAT     10,000   40 ms         125 ms
//
// With no entries at all it takes 4 ms. The CPU that the kernel does it on
// handles no packets until it has 32 KB to hand over, which a filter makes rare:
// do not list without a reason.
func List(ctx context.Context, f Filter) ([]Flow, error) {
	return list(ctx, f, listRequest(f))
}

// list makes sure itself that only what is wanted comes back: kernels before
// Linux 5.15 ignore what the request says of the status, and none is asked for a
// protocol.
func list(ctx context.Context, f Filter, request []byte) (flows []Flow, err error) {
	s, err := open()
	if err != nil {
		return nil, explain("list", err)
	}
	defer s.close()
	if err := s.send(request); err != nil {
		return nil, explain("list", err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		messages, err := s.receive()
		if err != nil {
			return nil, explain("list", err)
		}
		for m := range messages.all {
			if end, err := m.end(); err != nil {
				return nil, explain("list", err)
			} else if end {
				return flows, nil
			}
			if flow, ok := parse(m.payload); ok && f.wants(&flow) {
				flows = append(flows, flow)
			}
		}
	}
}

func (f Filter) wants(flow *Flow) bool {
	return (!f.DNAT || flow.DNAT) && (f.Protocol == "" || f.Protocol == flow.Protocol)
}

// Delete makes the kernel forget flows, and says how many of them it still had.
// Where one has gone since, and its client has come again and been sent to
// another backend, that entry stays.
//
// 10,000 of 100,000 entries are deleted in 25 to 50 ms.
func Delete(ctx context.Context, flows []Flow) (deleted int, err error) {
	if len(flows) == 0 {
		return 0, nil
	}
	s, err := open()
	if err != nil {
		return 0, explain("delete", err)
	}
	defer s.close()
	var failures error
	for some := range slices.Chunk(flows, together) {
		if err := ctx.Err(); err != nil {
			return deleted, errors.Join(failures, err)
		}
		gone, err := s.delete(some)
		deleted += gone
		if err != nil {
			failures = explain("delete", err)
		}
		if errors.Is(failures, ErrNotPermitted) {
			break
		}
	}
	return deleted, failures
}

// So many entries are deleted by one message. Each that is not there is told of
// with some hundred bytes, of which the socket holds 200 KB.
const together = 64

// delete returns how many of the flows there were. Only the last request wants
// an answer in any case, which comes after those about what has failed.
func (s *socket) delete(flows []Flow) (deleted int, failed error) {
	var requests []byte
	for i := range flows {
		requests = appendDelete(requests, &flows[i], uint32(i), i == len(flows)-1)
	}
	if err := s.send(requests); err != nil {
		return 0, err
	}
	deleted = len(flows)
	for {
		messages, err := s.receive()
		if err != nil {
			return 0, err
		}
		for m := range messages.all {
			switch _, err := m.end(); {
			case errors.Is(err, unix.EPERM): // said once, of all
				return 0, err
			case err != nil:
				deleted--
				if !errors.Is(err, unix.ENOENT) {
					failed = err
				}
			}
			if m.sequence == uint32(len(flows)-1) {
				return deleted, failed
			}
		}
	}
}

// Usage returns how many entries there are and how many there can be, in the
// network namespace of the caller; 0 and 0 where the kernel tracks nothing.
func Usage() (entries, limit int, err error) {
	if entries, err = number("nf_conntrack_count"); err == nil {
		limit, err = number("nf_conntrack_max")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("conntrack: %w", err)
	}
	return entries, limit, nil
}

func number(name string) (int, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
