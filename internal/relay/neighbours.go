package relay

import (
	"os"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ports"
)

// neighbours are the doors of one protocol, interface and port: some for one
// address each, and one for all others. The kernel gives a client to the door
// of the address that it speaks to, if there is one. But it lets the port be
// bound for an address and for all of them only by sockets that share it
// (SO_REUSEPORT) at the time; and then also beside another program of the same
// user that would share it.
//
// So a door is first opened as if the port were nobody's. If it is somebody's,
// and that may be a neighbour, it is asked for who else has it; and if nobody
// does, the sockets share it while the new one is bound. Those of a UDP door
// do so anyway, with one another. Afterwards they are as they were: who comes
// later does not get the port, be it another gatehouse or a server that would
// take a share.
type neighbours struct {
	r      *Relay
	wanted map[edge.Door]bool

	homes map[street][]home // that are open; nil: not looked up yet
	// taken are those of the wanted doors that have neighbours, and that others
	// have; nil: not looked up yet. All at once, since it is the sockets of the
	// whole machine that are looked at.
	taken map[edge.Door]string
}

// street is where a door's neighbours are across: it has one side for doors of
// an address, and one for that of all others.
type street struct {
	protocol edge.Protocol
	device   string
	port     uint16
	one      bool
}

func streetOf(at edge.Door) street {
	return street{at.Protocol, at.Listen.Device, at.Listen.Port, at.Listen.Addr.IsValid()}
}

func (s street) across() street {
	s.one = !s.one
	return s
}

// home is a door that is open: here, or only in the process before.
type home struct {
	sockets []int
	file    *os.File
}

func newNeighbours(r *Relay, wanted map[edge.Door]bool) *neighbours {
	return &neighbours{r: r, wanted: wanted}
}

// opened notes a door that has been opened meanwhile.
func (n *neighbours) opened(d *door) {
	if n.homes != nil {
		n.homes[streetOf(d.key)] = append(n.homes[streetOf(d.key)], home{sockets: d.sockets})
	}
}

// of returns those that are open and are in the way of a door.
func (n *neighbours) of(at edge.Door) []home {
	if n.homes == nil {
		n.homes = map[street][]home{}
		for _, d := range n.r.doors {
			if d.open() {
				n.opened(d)
			}
		}
		for _, h := range n.r.opts.Adopt.Doors {
			if d := n.r.doors[h.Door]; d == nil || !d.open() {
				n.homes[streetOf(h.Door)] = append(n.homes[streetOf(h.Door)], home{file: h.File})
			}
		}
	}
	return n.homes[streetOf(at).across()]
}

// beside opens a door again, that could not be since the port is in use,
// if it is by its neighbours alone. Otherwise the error remains.
func (n *neighbours) beside(at edge.Door, inUse error, open func() error) error {
	// Without an interface it is not known whose the other addresses are to be.
	if at.Listen.Device == "" {
		return inUse
	}
	found := n.of(at)
	if len(found) == 0 || n.others(at) {
		return inUse
	}
	for _, h := range found {
		defer h.share()()
	}
	err := open()
	if err == nil && at.Protocol == edge.TCP {
		forgetShared(at.Listen.Port)
	}
	return err
}

// forgetShared has the kernel forget that the last socket that was bound to a
// TCP port would share it: while that is so, it lets anybody of the same user
// bind the same address who would as well, whatever the other sockets say
// (tb->fastreuseport in net/ipv4/inet_connection_sock.c, since Linux 4.11). That
// ends with one that would not, wherever it is bound: this one is where no door
// is, and never listens. If somebody is in its way, nothing is lost but this.
func forgetShared(port uint16) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	setOption(int32(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if unix.BindToDevice(fd, "lo") == nil {
		_ = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port)})
	}
	_ = unix.Close(fd)
}

// others says whether another program has some of what a door is for.
func (n *neighbours) others(at edge.Door) bool {
	if n.taken == nil {
		seen := map[street]bool{}
		for d := range n.wanted {
			seen[streetOf(d)] = true
		}
		var doors []edge.Door
		for d := range n.wanted {
			if mine := n.r.doors[d]; d.Listen.Device != "" && (mine == nil || !mine.open()) && (seen[streetOf(d).across()] || len(n.of(d)) > 0) {
				doors = append(doors, d)
			}
		}
		if n.taken = ports.Taken(doors); n.taken == nil {
			n.taken = map[edge.Door]string{}
		}
	}
	_, taken := n.taken[at]
	return taken
}

// share has the sockets share their port, until what it returns is called.
func (h home) share() (undo func()) {
	var before []int
	h.each(func(_, fd int) {
		value, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
		before = append(before, value)
		setOption(int32(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return func() {
		h.each(func(i, fd int) { setOption(int32(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, int32(before[i])) })
	}
}

func (h home) each(do func(i, fd int)) {
	for i, fd := range h.sockets {
		do(i, fd)
	}
	if h.file != nil {
		// Not by Fd, which would have the socket block, in the process before too.
		if raw, err := h.file.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { do(0, int(fd)) })
		}
	}
}
