package relay

import (
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/proxyproto"
)

const (
	// While every backend is pending a connection waits for one, this long in
	// all: a node drops the SYNs of a Service that it has not programmed yet,
	// for up to a second.
	pendingWindow = 5 * time.Second
	// A SYN that was dropped is sent again after a second by itself: a new
	// attempt by then, with another backend if there is one, is no later.
	pendingAttempt = 250 * time.Millisecond
	pendingPause   = 50 * time.Millisecond

	// A backend that has not answered for this long is perhaps dead: within one
	// network it takes a millisecond, and the first SYN is sent again only after
	// a second.
	suspectAfter = 250 * time.Millisecond
)

// attempts are the dials of a connection that have failed.
type attempts struct {
	tried []netip.AddrPort
	why   Reason        // of the last one
	until time.Duration // backends that are pending are waited for
}

// begin takes over an accepted connection, in the loop that it belongs to from
// now on. why says that it may not stay.
func (c *conn) begin(l *loop, why Reason) {
	c.tally = l.tally(c.d)
	c.tally.accepted()
	c.timer.owner = c
	if why != "" {
		c.turnAway(l, why)
		return
	}
	if l.watch(int(c.client.fd), &c.client, watched) != nil {
		c.turnAway(l, Exhausted)
		return
	}
	if t := c.d.table.Load(); t.names != nil || t.isProxy(c.from.Addr()) {
		c.awaitGreeting(l)
		c.greet(l) // when there is much to do, it has come by now
		return
	}
	c.greeted(l)
}

// dial connects to a backend: one after the other, by weight, until one takes
// the connection. A client that is held meanwhile is under the rules of the
// moment at which it is let through.
func (c *conn) dial(l *loop) {
	for {
		// Each time anew: what has come up meanwhile can be used.
		t := c.d.table.Load()
		if why := c.refusal(t); why != "" {
			c.turnAway(l, why)
			return
		}
		if t.names != nil {
			// It is shared since the client has come, which now has to say its name.
			c.attempts = nil
			c.awaitGreeting(l)
			c.greet(l)
			return
		}
		var tried []netip.AddrPort
		why, left := NoBackend, pendingWindow
		if c.attempts != nil {
			tried, why, left = c.attempts.tried, c.attempts.why, c.attempts.until-l.now
		}
		chosen, ok := c.d.choose(t, chooser{c.from.Addr(), tried, l.now, l.random})
		switch {
		case !ok && (!t.up.none() || t.pending.none() || left <= 0):
			c.turnAway(l, why)
			return
		case !ok:
			c.attempted(l).tried = tried[:0]
			c.state = held
			l.set(&c.timer, min(left, pendingPause))
			return
		}
		timeout := t.ConnectTimeout
		if chosen.State == edge.Pending {
			if left <= 0 {
				c.turnAway(l, why)
				return
			}
			timeout = min(timeout, pendingAttempt, left)
		}
		c.backend = c.tally.backend(chosen.Addr)
		c.backend.use(chosen.load)
		errno := c.connect(l, t, chosen.Addr)
		if errno == 0 {
			c.state, c.mark = dialling, l.now+timeout
			l.set(&c.timer, min(timeout, suspectAfter))
			return
		}
		c.dialFailed(l, errno)
	}
}

// refusal is why a client must not be let through now, if it must not.
func (c *conn) refusal(t *table) Reason {
	if c.d.gone.Load() {
		return Closed
	}
	if !t.allows(c.from.Addr()) && !c.awaitsHeader(t) {
		return SourceRange
	}
	return ""
}

// attempted is what has been tried so far.
func (c *conn) attempted(l *loop) *attempts {
	if c.attempts == nil {
		c.attempts = &attempts{why: NoBackend, until: l.now + pendingWindow}
	}
	return c.attempts
}

// connect sends the SYN.
func (c *conn) connect(l *loop, t *table, to netip.AddrPort) unix.Errno {
	fd, errno := streamSocket(to.Addr())
	if errno != 0 {
		return errno
	}
	if t.vicinity.seesClient(c.from.Addr(), to.Addr()) {
		if errno := bindTransparent(fd, c.from.Addr()); errno != 0 {
			closeFD(fd)
			return errno
		}
	}
	if errno := connect(fd, to); errno != 0 && errno != unix.EINPROGRESS {
		closeFD(fd)
		return errno
	}
	c.server = side{c: c, fd: fd, watchesOut: true}
	if err := l.watch(int(fd), &c.server, watched|unix.EPOLLOUT); err != nil {
		closeFD(fd)
		c.server.fd = -1
		return unix.ENOMEM
	}
	return 0
}

// dialEvent is what has become of a connect.
func (c *conn) dialEvent(l *loop, events uint32) {
	var errno unix.Errno
	switch {
	case events&(unix.EPOLLERR|unix.EPOLLHUP) != 0:
		errno = socketError(c.server.fd)
	case events&unix.EPOLLOUT == 0:
		return
	case c.reachedItself():
		errno = unix.ECONNREFUSED
	}
	if errno != 0 {
		c.dropServer(l)
		c.dialFailed(l, errno)
		c.dial(l)
		return
	}
	t := c.d.table.Load()
	if why := c.refusal(t); why != "" {
		c.abandonDial(l, why)
		c.turnAway(l, why)
		return
	}
	c.tally.connected(c.backend)
	next := c.mark - l.now
	if t.IdleTimeout > 0 {
		next = min(next, t.IdleTimeout, c.r.times.look)
	}
	l.set(&c.timer, next)
	c.state, c.attempts, c.active = open, nil, l.now
	c.server.note(events)
	if t.SendProxyProtocol == edge.ProxyProtocolV1 || t.SendProxyProtocol == edge.ProxyProtocolV2 {
		c.sendHeader(t.SendProxyProtocol)
	}
	c.pump(l, &c.client, &c.server)
	if c.state == open {
		c.pump(l, &c.server, &c.client)
	}
}

// reachedItself says whether there is no backend: a connect to a port of this
// machine that nothing listens on succeeds if it is made from that very port,
// which the kernel may choose (simultaneous open, RFC 9293, section 3.5).
func (c *conn) reachedItself() bool {
	to := c.backend.count.Addr
	return to.Addr().IsLoopback() && boundTo(int(c.server.fd)) == to
}

// sendHeader tells the backend who the client is, before anything else. What
// waits for a side is written to it first.
func (c *conn) sendHeader(version edge.ProxyProtocol) {
	to := boundTo(int(c.client.fd))
	if c.via != nil {
		to = c.via.dst
	}
	if version == edge.ProxyProtocolV1 {
		c.server.pending = proxyproto.AppendV1(nil, c.from, to)
	} else {
		c.server.pending = proxyproto.AppendV2(nil, c.from, to)
	}
}

// dialExpired is called when a backend has not answered for a while, and when
// it has not in time.
func (c *conn) dialExpired(l *loop) {
	if left := c.mark - l.now; left > 0 {
		if c.r.opts.OnSlowDial != nil {
			c.r.opts.OnSlowDial(c.backend.count.Addr)
		}
		l.set(&c.timer, left)
		return
	}
	c.dropServer(l)
	c.dialFailed(l, unix.ETIMEDOUT)
	c.dial(l)
}

func (c *conn) dialFailed(l *loop, errno unix.Errno) {
	why := reasonOf(errno)
	addr := c.backend.count.Addr
	c.tally.dialFailed(c.backend, why)
	c.backend = nil
	a := c.attempted(l)
	a.why = why
	a.tried = append(a.tried, addr)
	if c.r.opts.OnDialError != nil && why != Exhausted {
		c.r.opts.OnDialError(edge.TCP, addr, errno)
	}
}

// abandonDial gives up a backend that has done nothing wrong.
func (c *conn) abandonDial(l *loop, why Reason) {
	c.dropServer(l)
	if c.backend != nil {
		c.tally.dialFailed(c.backend, why)
		c.backend = nil
	}
}

// dropServer resets the backend's side, if there is one.
func (c *conn) dropServer(l *loop) {
	if c.server.fd >= 0 {
		l.forget(int(c.server.fd))
		abort(c.server.fd)
		c.server.fd = -1
	}
}

// turnAway ends a connection that got no backend. The attrs are for the log.
func (c *conn) turnAway(l *loop, why Reason, attrs ...any) {
	c.tally.failed(why)
	c.closeSides(l, abort)
	c.leave(l)
	switch why {
	case Stopping, SourceRange, Closed, ClientGone, Banned:
		return // what the operator, or the client, has asked for
	default:
	}
	suppressed, ok := c.d.complain(time.Now())
	if !ok {
		return
	}
	log := c.r.log.With("door", c.d.key.String(), "frontend", c.d.table.Load().name, "client", c.from.Addr().String(), "reason", string(why), "suppressed", suppressed).With(attrs...)
	if !c.d.tellRefusal(log, why) {
		log.Warn("no backend took a connection")
	}
}

// tellRefusal says why a client was turned away without asking for a backend;
// false: it was not.
func (d *door) tellRefusal(log *slog.Logger, why Reason) bool {
	t := d.table.Load()
	switch why {
	case Limit, ClientLimit:
		log.Warn("connection limit reached", "max_connections", t.MaxConnections, "max_connections_per_client", t.MaxConnectionsPerClient)
	case RateLimit:
		log.Warn("a client connects too often", "max_rate_per_client", t.MaxRatePerClient.String(), "ban_time", t.BanTime.String())
	case NotTLS, UnknownName, HelloTimeout, ProxyHeader:
		log.Info("a connection turned away")
	default:
		return false
	}
	return true
}
