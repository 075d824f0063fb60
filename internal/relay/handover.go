package relay

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Handover is what one process gives to the next, so that no connection is
// refused and no UDP session loses its backend between the two. The files are
// duplicates: closing them ends nothing in the process that gave them.
type Handover struct {
	Doors    []HandedDoor
	Sessions []HandedSession // of UDP doors; TCP connections end where they began
}

// HandedDoor is a listening socket.
type HandedDoor struct {
	Door    edge.Door `json:"door"`
	Ifindex int       `json:"ifindex,omitempty"` // that it is bound to; 0: none
	File    *os.File  `json:"-"`
}

// HandedSession is one client of a UDP door and its socket to the backend.
type HandedSession struct {
	Door    edge.Door      `json:"door"`
	Name    string         `json:"name,omitempty"` // of the frontend, if it shares the door
	IDs     [][]byte       `json:"ids,omitempty"`  // QUIC connection IDs that the backend has given itself
	Slot    int            `json:"slot,omitempty"` // of the client's port, which can have several QUIC connections
	Client  netip.AddrPort `json:"client"`
	Local   netip.Addr     `json:"local"` // the address that the client spoke to
	Ifindex int            `json:"ifindex,omitempty"`
	Socket  int            `json:"socket"` // of the door's, in their order
	Backend netip.AddrPort `json:"backend"`
	Idle    time.Duration  `json:"idle"`
	File    *os.File       `json:"-"`
}

// Close closes the files.
func (h *Handover) Close() {
	for _, d := range h.Doors {
		_ = d.File.Close()
	}
	for _, s := range h.Sessions {
		_ = s.File.Close()
	}
}

// Handover returns the sockets of the doors that are open, and the UDP
// sessions. From then on UDP datagrams wait in their sockets for whoever has
// been given them, until Resume; TCP doors go on accepting. When the next
// process accepts, Close this relay.
func (r *Relay) Handover() (Handover, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var h Handover
	for _, d := range r.doors {
		for _, fd := range d.sockets {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				h.Close()
				return Handover{}, fmt.Errorf("relay: hand over %s: %w", d.key, os.NewSyscallError("fcntl", err))
			}
			h.Doors = append(h.Doors, HandedDoor{Door: d.key, Ifindex: d.ifindex, File: os.NewFile(uintptr(dup), d.key.String())})
		}
	}
	for i, l := range r.loops {
		l.call(func() {
			r.eachUDPLocked(i, func(u *udpSocket) {
				u.pause(l)
				for _, s := range u.sessions(l) {
					s.Socket = i
					h.Sessions = append(h.Sessions, s)
				}
			})
		})
	}
	return h, nil
}

// Resume takes back what Handover has given up: the next process did not start.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, l := range r.loops {
		l.call(func() { r.eachUDPLocked(i, func(u *udpSocket) { u.unpause(l) }) })
	}
}

func (r *Relay) eachUDPLocked(i int, f func(*udpSocket)) {
	for _, d := range r.doors {
		if d.open() {
			if u, ok := d.servers[i].(*udpSocket); ok {
				f(u)
			}
		}
	}
}

// udpSockets is how many sockets each UDP door has. The kernel spreads clients
// over them: whoever takes them over needs as many loops.
func (h *Handover) udpSockets() int {
	n := map[edge.Door]int{}
	most := 0
	for _, d := range h.Doors {
		if d.Door.Protocol == edge.UDP {
			n[d.Door]++
			most = max(most, n[d.Door])
		}
	}
	return most
}

// take returns the sockets of a door, or nil: none fits.
func (h *Handover) take(key edge.Door, ifindex int) (fds []int) {
	for _, d := range h.Doors {
		if d.Door != key || d.Ifindex != ifindex {
			continue
		}
		if fd, err := duplicate(d.File); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds
}
