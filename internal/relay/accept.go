package relay

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// So many connections are accepted before others have their turn.
	acceptBatch = 16

	// A loop that has so many connections more than the least busy one gives it
	// those that it accepts. Giving costs two system calls and a thread's
	// waking; a little imbalance costs nothing, unless there are few: two bulky
	// flows in one loop are a core's work, with another core idle.
	acceptSlack = 4
	acceptFew   = 8

	// Without a descriptor, or memory, even for turning a client away, there is
	// nothing to do until something is given back.
	acceptPause = 50 * time.Millisecond
)

// acceptor is the source of a TCP door's socket in one loop. All loops watch
// the same socket, and the kernel wakes one of them (EPOLLEXCLUSIVE, Linux 4.5).
// One socket for all, unlike one each (SO_REUSEPORT), strands no client when
// it is closed, and shares no port with another program.
type acceptor struct {
	r      *Relay
	d      *door
	fd     int
	resume timer
}

func (a *acceptor) start(l *loop) error {
	a.resume.owner = a
	return l.watch(a.fd, a, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
}

func (a *acceptor) shut(l *loop) {
	l.clear(&a.resume)
	l.unwatch(a.fd)
}

func (a *acceptor) ready(l *loop, _ uint32) {
	for range acceptBatch {
		fd, from, errno := accept(a.fd)
		switch errno {
		case 0:
			a.accepted(l, fd, from)
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.exhausted(l, errno)
			return
		case unix.EAGAIN:
			return
		default:
			// What has happened to one connection while it waited (accept(2),
			// "Error handling"): the next one may be well.
		}
	}
}

func (a *acceptor) accepted(l *loop, fd int32, from netip.AddrPort) {
	why, as := a.d.admit(a.d.table.Load(), from.Addr(), l.now, false)
	a.r.live.Add(1)
	to := a.r.leastBusy(l)
	to.load.Add(1)
	c := &conn{r: a.r, d: a.d, from: from, counted: as}
	c.client = side{c: c, fd: fd}
	c.server = side{c: c, fd: -1}
	if to == l {
		c.begin(l, why)
	} else {
		to.post(func() { c.begin(to, why) })
	}
}

// leastBusy is l itself, unless another loop has much less to do.
func (r *Relay) leastBusy(l *loop) *loop {
	least, load := l, l.load.Load()
	if load >= acceptFew {
		load -= acceptSlack
	}
	for _, other := range r.loops {
		if n := other.load.Load(); n < load {
			least, load = other, n
		}
	}
	return least
}

// exhausted turns a client away for want of a descriptor: one that is kept for
// this is given up for a moment. The alternative is to let the client wait for
// a connection to end, which may take hours.
func (a *acceptor) exhausted(l *loop, errno unix.Errno) {
	t := l.tally(a.d)
	t.count.AcceptErrors++
	if suppressed, ok := a.d.complain(time.Now()); ok {
		a.r.log.Error("accepting failed", "door", a.d.key.String(), "err", errno, "suppressed", suppressed)
	}
	if l.spare >= 0 {
		_ = unix.Close(l.spare)
		l.spare = -1
		if fd, _, errno := accept(a.fd); errno == 0 {
			abort(fd)
			t.accepted()
			t.failed(Exhausted)
		}
	}
	if l.saveSpare() != nil {
		l.unwatch(a.fd)
		l.set(&a.resume, acceptPause)
	}
}

// expired goes on after a pause.
func (a *acceptor) expired(l *loop) {
	if l.spare < 0 {
		_ = l.saveSpare()
	}
	if a.start(l) != nil {
		l.set(&a.resume, acceptPause)
	}
}
