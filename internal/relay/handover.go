package relay

import (
	"errors"
	"net/netip"
	"os"
	"time"

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
	Client  netip.AddrPort `json:"client"`
	Local   netip.Addr     `json:"local"` // the address that the client spoke to
	Ifindex int            `json:"ifindex,omitempty"`
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
	return Handover{}, errors.New("not handed over: not built yet")
}

// Resume takes back what Handover has given up: the next process did not start.
func (r *Relay) Resume() {}
