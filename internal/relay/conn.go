package relay

import (
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
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

	maxAcceptPause = 100 * time.Millisecond
)

// acceptAll accepts until the listener is closed.
func (r *Relay) acceptAll(d *door, l *net.TCPListener) {
	defer r.running.Done()
	defer d.acceptLoops(-1)
	var pause time.Duration
	for {
		client, err := l.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
			d.accepted()
			r.running.Add(1)
			go r.serve(d, client)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors or memory: the client waits in the queue of the
			// socket, and there is nothing to do until something is given back.
			d.acceptFailed()
			if suppressed, ok := d.complain(time.Now()); ok {
				r.log.Error("accepting failed", "door", d.key.String(), "err", err, "suppressed", suppressed)
			}
			pause = min(max(2*pause, 5*time.Millisecond), maxAcceptPause)
			time.Sleep(pause)
		}
	}
}

// serve takes one accepted connection to its end.
func (r *Relay) serve(d *door, client *net.TCPConn) {
	defer r.running.Done()
	if !d.table.Load().allows(sourceOf(client)) {
		abort(client)
		d.failed(SourceRange)
		return
	}
	c := &conn{client: client}
	r.enter(c)
	defer r.leave(c)

	server, b, why := r.dialAny(d, sourceOf(client))
	if why != "" {
		c.reset()
		d.failed(why)
		if suppressed, ok := d.complain(time.Now()); ok && why != Stopping {
			r.log.Warn("no backend took a connection", "door", d.key.String(), "frontend", d.table.Load().name,
				"client", sourceOf(client).String(), "reason", string(why), "suppressed", suppressed)
		}
		return
	}
	d.connected(b)
	c.attach(server)
	d.ended(b, c.relay(d, b, d.table.Load().idleTimeout))
}

// dialAny connects to a backend: one after the other, by weight, until one
// takes the connection. Its reason is empty if one did. A client that is held
// meanwhile is under the rules of the moment at which it is let through.
func (r *Relay) dialAny(d *door, client netip.Addr) (*net.TCPConn, *backend, Reason) {
	deadline := time.Now().Add(pendingWindow)
	var tried []netip.AddrPort
	why := NoBackend
	for {
		// Each time anew: what has come up meanwhile can be used.
		t := d.table.Load()
		if d.gone.Load() {
			return nil, nil, Closed
		}
		if !t.allows(client) {
			return nil, nil, SourceRange
		}
		chosen, ok := t.choose(tried, rand.Uint64N)
		left := time.Until(deadline)
		switch {
		case !ok && (len(t.up) > 0 || len(t.pending) == 0 || left <= 0):
			return nil, nil, why
		case !ok:
			if !r.pause(min(left, pendingPause)) {
				return nil, nil, Stopping
			}
			tried = tried[:0]
			continue
		}
		timeout := t.connectTimeout
		if chosen.State == edge.Pending {
			if left <= 0 {
				return nil, nil, why
			}
			timeout = min(timeout, pendingAttempt, left)
		}

		b := d.dialling(chosen.Addr)
		dialer := net.Dialer{Timeout: timeout}
		server, err := dialer.DialContext(r.dialing, "tcp", chosen.Addr.String())
		if err == nil && (d.gone.Load() || !d.table.Load().allows(client)) {
			abort(server.(*net.TCPConn))
			d.dialFailed(b, Closed)
			return nil, nil, Closed
		}
		if err == nil {
			return server.(*net.TCPConn), b, ""
		}
		why = reasonOf(err)
		d.dialFailed(b, why)
		if why == Stopping {
			return nil, nil, why
		}
		if r.opts.OnDialError != nil && why != Exhausted {
			r.opts.OnDialError(chosen.Addr, err)
		}
		tried = append(tried, chosen.Addr)
	}
}

// pause waits, and returns false if the relay is closed meanwhile.
func (r *Relay) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.dialing.Done():
		return false
	}
}

func (r *Relay) enter(c *conn) {
	r.connsMu.Lock()
	defer r.connsMu.Unlock()
	r.conns[c] = struct{}{}
	if r.cut {
		c.cut()
	}
}

func (r *Relay) leave(c *conn) {
	r.connsMu.Lock()
	defer r.connsMu.Unlock()
	delete(r.conns, c)
}

// ending is how a connection came to its end.
type ending int32

const (
	endedWell ending = iota
	endedReset
	endedIdle
	endedCut
)

// conn is a client's connection and, once there is one, the backend's.
type conn struct {
	how atomic.Int32 // ending

	mu             sync.Mutex
	client, server *net.TCPConn
	down           bool // reset or closed: what is attached later is reset
}

// attach adds the backend's side.
func (c *conn) attach(server *net.TCPConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server = server
	if c.down {
		abort(server)
	}
}

// relay copies both ways until both directions have ended.
func (c *conn) relay(d *door, b *backend, idleTimeout time.Duration) ending {
	if idleTimeout > 0 {
		w := &idleWatch{conn: c, timeout: idleTimeout}
		// Set going only once look can see it.
		w.timer = time.AfterFunc(math.MaxInt64, w.look)
		w.timer.Reset(idleTimeout)
		defer w.timer.Stop()
	}
	toClient := make(chan struct{})
	go c.relayToClient(d, b, toClient)
	d.moved(b, c.copy(c.server, c.client), 0)
	<-toClient
	if ending(c.how.Load()) == endedReset {
		c.reset()
	}
	c.close()
	return ending(c.how.Load())
}

func (c *conn) relayToClient(d *door, b *backend, done chan<- struct{}) {
	defer close(done)
	d.moved(b, 0, c.copy(c.client, c.server))
}

// copy moves bytes one way until there is an end or an error, and passes that
// on. Its arguments are of this type, and go to io.Copy as they are, because
// only then are the bytes spliced and never seen by this process.
func (c *conn) copy(to, from *net.TCPConn) (n int64) {
	n, err := io.Copy(to, from)
	if err == nil && ending(c.how.Load()) == endedReset {
		return n // the end of a socket that was reset: not one to pass on
	}
	if err == nil {
		// The other direction lives on: a half-closed connection is a
		// connection (RFC 9293, section 3.6).
		err = to.CloseWrite()
	}
	if err == nil {
		return n
	}
	c.end(endedReset)
	// A side that reset the connection may have said something before, such as
	// an answer to a request too large to be read: the other direction still
	// passes that on, finds the end, and relay resets what is left.
	if !isClosed(to) || isClosed(from) {
		c.reset()
	}
	return n
}

// end notes how the connection ends; what comes first counts.
func (c *conn) end(how ending) { c.how.CompareAndSwap(int32(endedWell), int32(how)) }

// cut resets the connection because nobody waits for it any longer.
func (c *conn) cut() {
	c.end(endedCut)
	c.reset()
}

// reset closes both sides so that their peers see a reset.
func (c *conn) reset() {
	c.shut(abort)
}

// close closes both sides.
func (c *conn) close() {
	c.shut(func(side *net.TCPConn) { _ = side.Close() })
}

func (c *conn) shut(shut func(*net.TCPConn)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
	shut(c.client)
	if c.server != nil {
		shut(c.server)
	}
}

// abort closes a side by a reset: its peer learns at once that the connection
// has failed, and does not take it for a complete one. Errors mean that the
// side is closed already.
func abort(side *net.TCPConn) {
	_ = side.SetLinger(0)
	_ = side.Close()
}

// isClosed says whether the kernel has given up a socket: its peer reset it.
func isClosed(side *net.TCPConn) bool {
	info, err := tcpInfo(side)
	const tcpClose = 7 // TCP_CLOSE in the kernel's include/net/tcp_states.h
	return err != nil || info.State == tcpClose
}

func tcpInfo(side *net.TCPConn) (*unix.TCPInfo, error) {
	raw, err := side.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	var infoErr error
	err = raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info, errors.Join(err, infoErr)
}

// idleWatch closes a connection that nothing has moved through for a while. It
// asks the kernel when a byte was last sent or received: spliced bytes are not
// seen here, and a deadline on the sockets would have to be moved for each.
type idleWatch struct {
	conn    *conn
	timeout time.Duration
	timer   *time.Timer
}

// look closes the connection, or comes back when it could be idle at the
// earliest. With the connection closed there is nothing to come back for.
func (w *idleWatch) look() {
	idle, err := w.conn.idle()
	if err != nil {
		return
	}
	if left := w.timeout - idle; left > 0 {
		w.timer.Reset(left)
		return
	}
	// A plain close, as servers do it with idle connections: nothing failed.
	w.conn.end(endedIdle)
	w.conn.close()
}

// idle is for how long neither side has sent or received.
func (c *conn) idle() (time.Duration, error) {
	var idle time.Duration
	for i, side := range []*net.TCPConn{c.client, c.server} {
		info, err := tcpInfo(side)
		if err != nil {
			return 0, err
		}
		since := time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
		if i == 0 || since < idle {
			idle = since
		}
	}
	return idle, nil
}
