package relay

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// What is watched on every socket of a connection, as edges. EPOLLOUT is
	// added when a write has first had to wait. EPOLLPRI because a read stops at
	// urgent data, and must not be taken for one that has read everything.
	watched = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

	// A direction that has moved so many bytes lets others have their turn.
	fairShare = 4 << 20

	// So many reads in a row that filled the buffer make a flow bulky: it is
	// spliced, until it has so often moved less at a time than would have
	// fitted into the buffer. To splice pays from about a buffer on, and costs
	// two system calls more for a small message.
	bulkAfter, bulkUntil = 3, 8

	// How often an open connection is looked after. The first time is when its
	// dial would have timed out: short ones never see it.
	lookInterval = 30 * time.Second

	// A peer that has acknowledged nothing for so long, with something to
	// acknowledge, is lost. Not TCP_USER_TIMEOUT: that also ends connections
	// whose reader just keeps its window closed (since Linux 5.11), such as a
	// video that is paused. One with nothing to acknowledge is found by
	// keepalives in about the same time.
	lostAfter         = 2 * time.Minute
	keepaliveIdle     = 60 // seconds
	keepaliveInterval = 15 // seconds
	keepaliveProbes   = 4

	// When a side has reset the connection, the other one is reset once it has
	// been given what was said before; it is waited for this long.
	resetPatience = 10 * time.Second
)

// times are those of the above that tests cannot wait for.
type times struct{ look, lost, greeting time.Duration }

// state is where a connection stands.
type state uint8

const (
	greeting state = iota // has to say who it is, or who it wants (names.go)
	held                  // waits for a backend
	dialling              // waits for one to answer
	open
	dying // reset by one side; the other is still given what was said before
	ended
)

// ending is how a connection came to its end.
type ending uint8

const (
	endedWell ending = iota
	endedReset
	endedIdle
	endedDrained
	endedLost
	endedDown      // its backend was found to be down
	endedUntrusted // began with a PROXY protocol header, and may not
	endedCut
)

// conn is a client's connection and, once there is one, the backend's.
type conn struct {
	r        *Relay
	d        *door
	tally    *tally
	backend  *backend
	attempts *attempts // while there is no backend, and only if one has failed
	from     netip.AddrPort
	timer    timer
	active   time.Duration // when a byte last moved
	// When a side was found to be reset; of a dial, or of one that has not said who
	// it wants, when it is given up.
	mark    time.Duration
	via     *via // the proxy that the client has come through; nil: none
	state   state
	counted counted
	proxied bool   // the header of a trusted proxy has been read
	guard   bool   // the client may not begin with such a header, and has not said anything yet
	kept    bool   // the server's keepalives are set
	how     ending // of a dying one

	client, server side
}

// side is one socket of a connection, and what waits to be written to it.
type side struct {
	c          *conn
	pending    []byte // read from the other side
	pipe       *pipe  // likewise, if that is spliced
	fd         int32
	bulk       uint8 // > 0: what is read from it is spliced
	full       uint8 // reads in a row that filled the buffer
	readable   bool  // a read would not, as far as is known, have to wait
	hungUp     bool  // there is an end to be read, or was
	urgent     bool  // a short read does not mean that everything was read
	said       bool  // everything has been read from it
	shut       bool  // its peer has been told that there is no more
	failed     bool  // reset, as epoll says
	dead       bool  // reset, and known to be: nothing can be written to it
	watchesOut bool
	queued     bool // in loop.again
}

func (s *side) other() *side {
	if s == &s.c.client {
		return &s.c.server
	}
	return &s.c.client
}

// note takes in what epoll has said.
func (s *side) note(events uint32) {
	if events&^unix.EPOLLOUT != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hungUp = true
	}
	if events&unix.EPOLLPRI != 0 {
		s.urgent = true
	}
	if events&unix.EPOLLERR != 0 {
		s.failed = true
	}
}

func (s *side) ready(l *loop, events uint32) {
	c := s.c
	if events == 0 { // its turn; one that waits for it waits once
		s.queued = false
	}
	switch c.state {
	case ended:
		return
	case greeting:
		s.note(events)
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			c.turnAway(l, ClientGone)
			return
		}
		c.greet(l)
		return
	case held, dialling:
		if s == &c.server {
			c.dialEvent(l, events)
			return
		}
		s.note(events)
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			c.abandonDial(l, ClientGone)
			c.turnAway(l, ClientGone)
		}
		return
	case open, dying:
	}
	c.active = l.now
	s.note(events)
	c.pump(l, s, s.other())
	if events&unix.EPOLLOUT != 0 && c.state != ended {
		c.pump(l, s.other(), s)
	}
	if s.failed && !s.dead && c.state != ended {
		// Nothing came across it: after its end nothing is read from a side, and
		// it may be long before something is to be written to it, or before the
		// other side has room. There will be no other event.
		c.broken(l, s, socketError(s.fd))
	}
}

// pump moves bytes one way for as long as there are some and they are taken,
// and passes the end on.
func (c *conn) pump(l *loop, from, to *side) {
	for moved := 0; ; {
		if to.dead || to.holds() && !c.flush(l, to) {
			return
		}
		if from.said {
			c.passEnd(l, from, to)
			return
		}
		if !from.readable || c.guard && from == &c.client && !c.guarded(l) {
			return
		}
		if moved >= fairShare {
			if !from.queued {
				from.queued = true
				l.later(from)
			}
			return
		}
		n, errno := c.move(l, from, to)
		switch {
		case errno == unix.EAGAIN:
			from.readable = false
			return
		case errno == unix.EINTR:
		case errno != 0:
			c.broken(l, from, errno)
			return
		case n == 0:
			from.said = true
		}
		if c.state == ended {
			return
		}
		moved += n
	}
}

// move moves some bytes, and returns how many were read; 0: that was the end.
func (c *conn) move(l *loop, from, to *side) (int, unix.Errno) {
	if from.bulk > 0 && !from.urgent { // a splice does not get past urgent data
		if p, err := l.pipes.borrow(); err == nil {
			if n, errno := c.moveBulk(l, from, to, p); n > 0 || errno != 0 {
				return n, errno
			}
			// The end; or urgent data that epoll has not told of yet, with the end
			// somewhere behind it, which looks the same. To read is to know.
		}
	}
	n, errno := read(from.fd, l.buffer)
	// A read that begins at urgent data says EAGAIN, too, if a signal is pending,
	// and Go's scheduler sends many. The next one is as unlikely to meet one.
	for tries := 0; errno == unix.EAGAIN && from.urgent && tries < 10 && atMark(from.fd); tries++ {
		n, errno = read(from.fd, l.buffer)
	}
	if errno != 0 || n == 0 {
		return n, errno
	}
	if n == len(l.buffer) {
		if from.full++; from.full >= bulkAfter {
			from.bulk, from.full = bulkUntil, 0
		}
	} else {
		from.full = 0
		// Less than there was room for: that was all, and what comes later is
		// another edge. An end that has been announced is still to be read.
		from.readable = from.hungUp || from.urgent
	}
	written, errno := write(to.fd, l.buffer[:n])
	c.moved(to, written)
	switch {
	case errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR:
		c.broken(l, to, errno)
	case written < n:
		to.pending = append([]byte(nil), l.buffer[written:n]...)
		c.awaitRoom(l, to)
	}
	return n, 0
}

// moveBulk is move by way of a pipe, which is given back unless bytes are left
// in it.
func (c *conn) moveBulk(l *loop, from, to *side, p *pipe) (int, unix.Errno) {
	n, errno := splice(from.fd, p.in, pipeSize)
	if errno != 0 || n == 0 {
		l.pipes.giveBack(p)
		return n, errno
	}
	if n < bufferSize {
		from.bulk--
	} else {
		from.bulk = bulkUntil
	}
	p.held = n
	to.pipe = p
	c.flush(l, to)
	return n, 0
}

func (s *side) holds() bool { return len(s.pending) > 0 || s.pipe != nil }

// flush writes what waits for a side, and says whether that was all.
func (c *conn) flush(l *loop, to *side) bool {
	for to.holds() {
		var n int
		var errno unix.Errno
		if to.pipe != nil {
			n, errno = splice(to.pipe.out, to.fd, to.pipe.held)
			to.pipe.held -= n
		} else {
			n, errno = write(to.fd, to.pending)
			to.pending = to.pending[n:]
		}
		c.moved(to, n)
		switch {
		case errno == unix.EAGAIN:
			c.awaitRoom(l, to)
			return false
		case errno == unix.EINTR:
		case errno != 0:
			c.broken(l, to, errno)
			return false
		}
		if to.pipe != nil && to.pipe.held == 0 {
			l.pipes.giveBack(to.pipe)
			to.pipe = nil
		}
		if len(to.pending) == 0 {
			to.pending = nil
		}
	}
	return true
}

// awaitRoom sees that an event comes once the side can be written to. To ask
// for it reports one at once if that is so already.
func (c *conn) awaitRoom(l *loop, to *side) {
	if !to.watchesOut {
		to.watchesOut = true
		epollChange(l.epoll, to.fd, watched|unix.EPOLLOUT, l.slots[to.fd].serial)
	}
}

func (c *conn) moved(to *side, n int) {
	if to == &c.server {
		c.backend.count.BytesToBackend += uint64(n)
		c.tally.count.BytesToBackend += uint64(n)
	} else {
		c.backend.count.BytesToClient += uint64(n)
		c.tally.count.BytesToClient += uint64(n)
	}
}

// passEnd tells a side that the other has said all it wanted, and that was
// written. The other direction lives on: a half-closed connection is a
// connection (RFC 9293, section 3.6).
func (c *conn) passEnd(l *loop, from, to *side) {
	switch {
	case from.dead:
		c.resetWhenDelivered(l, to)
	case to.shut:
	case from.shut:
		// Both have, and to close is to tell the second one.
		c.end(l, endedWell)
	default:
		to.shut = true
		if errno := shutdownWrite(to.fd); errno != 0 {
			c.broken(l, to, errno)
		}
	}
}

// broken is told that a side was reset by its peer, or given up by the kernel.
// The side may have said something before, such as an answer to a request too
// large to be read: the other one is still given that, and then it is reset.
func (c *conn) broken(l *loop, s *side, errno unix.Errno) {
	if s.dead {
		// Its last words have been read.
		s.said = true
	}
	if c.state != dying {
		c.state, c.mark, c.how = dying, l.now, endedReset
		if errno == unix.ETIMEDOUT || errno == unix.EHOSTUNREACH {
			c.how = endedLost
		}
		l.set(&c.timer, resetPatience)
	}
	c.drop(l, s)
	s.dead, s.readable, s.hungUp = true, true, true
	if s.other().dead {
		c.end(l, c.how)
		return
	}
	c.pump(l, s, s.other())
}

// drop forgets what waits to be written to a side.
func (c *conn) drop(l *loop, s *side) {
	s.pending = nil
	if s.pipe != nil {
		l.pipes.giveBack(s.pipe)
		s.pipe = nil
	}
}

// resetWhenDelivered ends a dying connection once its other side has been
// given everything: a reset throws away what the kernel has not sent yet.
func (c *conn) resetWhenDelivered(l *loop, to *side) {
	left := resetPatience - (l.now - c.mark)
	if left <= 0 || unsent(to.fd) == 0 {
		c.end(l, c.how)
		return
	}
	l.set(&c.timer, min(left, tickLength))
}

func (c *conn) expired(l *loop) {
	switch c.state {
	case greeting:
		c.greetingExpired(l)
	case held:
		c.dial(l)
	case dialling:
		c.dialExpired(l)
	case open:
		c.look(l)
	case dying:
		survivor := &c.client
		if survivor.dead {
			survivor = &c.server
		}
		if l.now-c.mark >= resetPatience {
			c.end(l, c.how)
			return
		}
		l.set(&c.timer, resetPatience-(l.now-c.mark))
		c.pump(l, survivor.other(), survivor)
	case ended:
	}
}

// look is taken at a connection now and then.
func (c *conn) look(l *loop) {
	if !c.kept {
		// The client's socket has this from its door's.
		c.kept = true
		keepAlive(c.server.fd)
	}
	idle := l.now - c.active
	next := c.r.times.look
	if timeout := c.d.table.Load().IdleTimeout; timeout > 0 {
		if idle >= timeout {
			// The kernel may still be sending what it was given long ago.
			idle = min(idle, unmoved(c.client.fd), unmoved(c.server.fd))
		}
		if idle >= timeout {
			// A plain close, as servers do it with idle connections: nothing failed.
			c.end(l, endedIdle)
			return
		}
		next = min(next, timeout-idle)
	}
	// Not only when it is idle: who speaks to a peer that is gone does not know.
	if lost := c.r.times.lost; unheard(c.client.fd) > lost || unheard(c.server.fd) > lost {
		c.end(l, endedLost)
		return
	}
	l.set(&c.timer, next)
}

// end closes both sides: by a reset, unless all is well.
func (c *conn) end(l *loop, how ending) {
	c.tally.ended(c.backend, how)
	shut := abort
	// Who has not taken all that was said must not take this for the end of it.
	if how == endedWell || how == endedIdle && !c.client.holds() && !c.server.holds() {
		shut = closeFD
	}
	c.closeSides(l, shut)
	c.leave(l)
}

func (c *conn) closeSides(l *loop, shut func(fd int32)) {
	for _, s := range []*side{&c.client, &c.server} {
		c.drop(l, s)
		if s.fd >= 0 {
			l.forget(int(s.fd))
			shut(s.fd)
			s.fd = -1
		}
	}
}

// leave is the last that a connection does.
func (c *conn) leave(l *loop) {
	c.state = ended
	l.clear(&c.timer)
	l.load.Add(-1)
	c.d.release(c.from.Addr(), c.counted)
	c.r.left()
}

// cut ends a connection because nobody waits for it any longer.
func (c *conn) cut(l *loop) {
	switch c.state {
	case greeting, held, dialling:
		c.abandonDial(l, Stopping)
		c.turnAway(l, Stopping)
	case open, dying:
		c.end(l, endedCut)
	case ended:
	}
}

// eachConn calls f for the connections of a loop.
func (l *loop) eachConn(f func(*conn)) {
	for i := range l.slots {
		if s, ok := l.slots[i].source.(*side); ok && s == &s.c.client {
			f(s.c)
		}
	}
}

// drained resets the connections to a backend whose drain time is over. One
// that it has not taken yet goes elsewhere.
func (l *loop) drained(d *door, addr netip.AddrPort) {
	l.eachConn(func(c *conn) {
		if c.d != d || c.backend == nil || c.backend.count.Addr != addr {
			return
		}
		switch c.state {
		case dialling:
			c.abandonDial(l, Closed)
			c.dial(l)
		case open, dying:
			c.end(l, endedDrained)
		case greeting, held, ended:
		}
	})
}

// fell is told that backends have been found down. A connection that waits for
// one to answer goes elsewhere if it can; those that are open live on, unless
// they are to be closed.
func (l *loop) fell(d *door, backends []netip.AddrPort, closes bool) {
	l.eachConn(func(c *conn) {
		if c.d != d || c.backend == nil || !slices.Contains(backends, c.backend.count.Addr) {
			return
		}
		switch {
		case c.state == dialling && c.hasOther(l):
			c.dropServer(l)
			c.dialFailed(l, unix.ETIMEDOUT)
			c.dial(l)
		case closes && (c.state == open || c.state == dying):
			c.end(l, endedDown)
		}
	})
}

// hasOther says whether there is a backend besides the one being dialled.
func (c *conn) hasOther(l *loop) bool {
	who := chooser{client: c.from.Addr(), tried: []netip.AddrPort{c.backend.count.Addr}, now: l.now, random: l.random}
	if c.attempts != nil {
		who.tried = append(who.tried, c.attempts.tried...)
	}
	_, ok := c.d.table.Load().choose(who)
	return ok
}
