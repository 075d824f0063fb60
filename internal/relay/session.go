package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	// A session lets others have their turn after so many messages.
	sessionBatch = 256

	// One that has so many messages at once carries more than questions and
	// answers: it gets more room, and the kernel is asked to put them together.
	busyAfter  = 8
	busyBuffer = 1 << 20

	// A datagram that every path takes (IPv6 asks for 1,280 bytes, headers
	// included): the path's own limit need not be known.
	smallest = 1280 - 48
)

// session is a client port and its socket to a backend. It keeps the backend as
// long as it lives, whatever tables come and go, with four exceptions, after
// which the client's next datagram chooses anew:
//
//   - the backend refuses: an ICMP port unreachable comes back;
//   - an ICMP error says that there is no way to it, or the table says that it is
//     down while another one is not, and it has not answered for some time;
//   - it has left the table while there is another one, and does not answer what
//     the client asks;
//   - its drain time is over.
//
// Nothing else tells that a UDP backend is dead, and a client port that is
// used on and on, by a resolver or a tunnel, would stick to it for ever.
type session struct {
	socket  *udpSocket
	d       *door // of its frontend: the socket's, or one of those that share it
	tally   *tally
	backend *backend
	timer   timer
	flow    flow
	asked   time.Duration // when the client last spoke
	heard   time.Duration // when the backend last did; 0: never
	waits   time.Duration // since when the client has spoken without an answer; 0: the last one to speak was the backend
	fd      int32
	// Of the datagrams at hand, plus one; 0: none. See datagrams.queue.
	first, final int8

	counted  counted
	shared   bool // another process has the socket too
	busy     bool
	marked   bool // the TOS or traffic class of answers is passed on
	measured bool // the path's limit was compared with what the client sends
	plain    bool // no UDP_SEGMENT: a path, or an interface, does not take it
	queued   bool // in loop.again

	learns uint8    // QUIC: in so many datagrams more of the backend connection IDs are looked for
	ids    []string // those that were found
	known  bool     // by door.ids
	guess  bool     // it may be another backend that the client has moved away from
	sent   int      // the largest datagram that a guess has been sent
	// The connection ID that the client has made up for its first packets.
	opening string
}

// The sessions of this process. Each has a descriptor and a local port, which
// are also what everything else on the machine needs: a flood of new clients
// must not take them all.
var sessionsAlive atomic.Int64

var sessionsMax = sync.OnceValue(func() int64 {
	most := int64(localPorts())
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < uint64(most) {
		most = int64(files.Cur)
	}
	return most * 3 / 4
})

// localPorts is how many ports there are for sockets that ask for none: all
// sessions share them.
func localPorts() int {
	first, last := 32768, 60999 // the kernel's defaults
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &first, &last)
	}
	return last - first + 1
}

func takeSession() bool {
	if sessionsAlive.Add(1) > sessionsMax() {
		giveSessionBack()
		return false
	}
	return true
}

func giveSessionBack() { sessionsAlive.Add(-1) }

// dial chooses a backend and connects to it. That sends nothing: what fails
// here is this machine, or there is no route.
func (s *session) dial(l *loop, t *table) Reason {
	u := s.socket
	u.tried = u.tried[:0]
	for _, r := range u.refused {
		if r.until > l.now {
			u.tried = append(u.tried, r.addr)
		}
	}
	avoided := len(u.tried)
	why := NoBackend
	for {
		chosen, ok := s.d.choose(t, chooser{s.flow.addr().Addr(), u.tried, l.now, l.random})
		if !ok && avoided > 0 {
			u.tried = u.tried[:copy(u.tried, u.tried[avoided:])]
			avoided = 0
			continue
		}
		if !ok {
			return why
		}
		if why = s.tryThe(l, t, chosen); why == "" || why == Exhausted {
			return why
		}
		u.tried = append(u.tried, chosen.Addr)
	}
}

// dialThe connects to the backend that what the client says is for.
func (s *session) dialThe(l *loop, t *table, backend netip.AddrPort) Reason {
	chosen, _ := t.up.get(backend, nil)
	chosen.Addr = backend // in whatever state it is
	return s.tryThe(l, t, chosen)
}

func (s *session) tryThe(l *loop, t *table, chosen choice) Reason {
	b := s.tally.backend(chosen.Addr)
	b.use(chosen.load)
	errno := s.connect(l, t, chosen.Addr)
	if errno == 0 {
		s.backend = b
		s.tally.connected(b)
		return ""
	}
	why := reasonOf(errno)
	s.tally.dialFailed(b, why)
	if why != Exhausted {
		s.report(chosen.Addr, errno)
	}
	return why
}

func (s *session) connect(l *loop, t *table, to netip.AddrPort) unix.Errno {
	fd, errno := datagramSocket(familyOf(to.Addr()))
	if errno != 0 {
		return errno
	}
	// Errors that pass, such as a host that does not answer, are reported too,
	// and all with what they are about.
	if to.Addr().Is4() {
		setOption(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
	} else {
		setOption(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
	}
	if client := s.flow.addr().Addr(); t.vicinity.seesClient(client, to.Addr()) {
		if errno := bindTransparent(fd, client); errno != 0 {
			closeFD(fd)
			return errno
		}
	}
	errno = connect(fd, to)
	if errno == unix.EAGAIN {
		errno = unix.EADDRNOTAVAIL // that is how UDP says it
	}
	if errno == 0 {
		errno = s.watch(l, fd)
	}
	if errno != 0 {
		closeFD(fd)
	}
	return errno
}

func (s *session) watch(l *loop, fd int32) unix.Errno {
	if l.watch(int(fd), s, unix.EPOLLIN|unix.EPOLLET) != nil {
		return unix.ENOMEM // or what a user may watch (max_user_watches)
	}
	s.fd = fd
	return 0
}

func (s *session) report(addr netip.AddrPort, errno unix.Errno) {
	if report := s.socket.r.opts.OnDialError; report != nil {
		report(edge.UDP, addr, errno)
	}
}

// silent says whether the backend has not answered lately.
func (s *session) silent(l *loop) bool { return s.heard == 0 || l.now-s.heard >= silence }

// forward sends what the client has sent in the batch at hand.
func (s *session) forward(l *loop) {
	u, in := s.socket, l.udp.requests
	first := &in.datagrams[s.first-1]
	s.first, s.final = 0, 0
	if !s.marked && first.marks != 0 {
		// Whoever marks what it sends wants to see the marks of what it gets.
		s.marked = true
		setOption(s.fd, unix.SOL_IP, unix.IP_RECVTOS, 1)
		setOption(s.fd, unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1)
	}
	if !s.measured && len(first.data) > smallest {
		s.measured = true
		s.measure(l, first)
	}
	if first.next == 0 && first.segment == 0 && first.marks == 0 {
		if errno := send(s.fd, first.data); errno != 0 {
			u.resend(l, s, first.data, errno)
			return
		}
		u.forwarded(s, 1, len(first.data))
		return
	}

	x := l.udp.toBackend
	for d := first; ; d = &in.datagrams[d.next-1] {
		x.add(s, d, false)
		if d.next == 0 {
			break
		}
	}
	n := x.finish()
	for i := 0; i < n; {
		sent, errno := sendmmsg(s.fd, x.headers[i:n])
		for ; sent > 0; sent-- {
			u.forwarded(s, x.parcels[i].count, x.parcels[i].bytes)
			i++
		}
		switch {
		case i == n:
		case errno == 0 && !s.errors(l):
			// Why the rest could not be sent was not said, and may have passed.
		case full(errno):
			s.drop(x.parcels[i].count)
			i++
		default:
			if x.parcels[i].count > 1 {
				s.plain = true
			}
			// One by one, which also finds out what is wrong.
			for ; i < n; i++ {
				x.each(i, func(data []byte) { u.resend(l, s, data, 0) })
			}
		}
	}
}

// resend sends a datagram that could not be sent for the given reason: a send
// first fails with an error that an earlier datagram has met. If that was the
// end of the session, another one begins.
func (u *udpSocket) resend(l *loop, of *session, data []byte, errno unix.Errno) {
	for range 2 {
		if full(errno) {
			break
		}
		s := u.flows[of.flow]
		if errno != 0 && s != nil && s.errors(l) || s == nil {
			s = u.reopen(l, of, data)
		}
		if s == nil {
			break
		}
		if errno = send(s.fd, data); errno == 0 {
			u.forwarded(s, 1, len(data))
			return
		}
	}
	of.drop(1)
}

func (u *udpSocket) forwarded(s *session, packets, bytes int) {
	s.tally.count.PacketsToBackend += uint64(packets)
	s.tally.count.BytesToBackend += uint64(bytes)
	if s.guess {
		s.sent = max(s.sent, bytes/packets)
	}
	s.backend.count.BytesToBackend += uint64(bytes)
}

// ready takes what the backend has sent, to be sent on with what others have.
func (s *session) ready(l *loop, events uint32) {
	if s.fd < 0 || events&unix.EPOLLERR != 0 && s.errors(l) || events != 0 && s.queued {
		return
	}
	s.queued = false
	g := l.udp
	failures := 0
	for got := 0; got < sessionBatch; {
		if g.used == messages {
			g.flush(l)
		}
		room := messages - g.used
		n, errno := g.replies.receive(s.fd, g.used, room)
		if errno == unix.EAGAIN {
			return
		}
		if errno != 0 {
			// Each is reported once, before what can be read.
			if failures++; s.errors(l) || failures > 16 {
				return
			}
			continue
		}
		s.heard, s.waits = l.now, 0
		for i := g.used; i < g.used+n; i++ {
			d := &g.replies.datagrams[i]
			if d.cut {
				s.drop(d.count())
				continue
			}
			if s.learns > 0 {
				s.learn(d.data)
			}
			if s.guess {
				s.confirm(l, len(d.data))
			}
			g.toClient.add(s, d, true)
		}
		g.used += n
		if !g.queued {
			g.queued = true
			l.later(g)
		}
		got += n
		if n >= busyAfter && !s.busy {
			s.busy = true
			setOption(s.fd, unix.SOL_UDP, unix.UDP_GRO, 1)
			setBuffers(s.fd, busyBuffer)
		}
		if n < room {
			return
		}
	}
	s.queued = true
	l.later(s)
}

// errors takes note of the ICMP errors that have come back, and says whether
// the session has ended by one.
func (s *session) errors(l *loop) bool {
	var quoted [512]byte
	var controls [controlSpace]byte
	for i := range 16 {
		n, size, errno := recverr(s.fd, quoted[:], controls[:])
		if errno != 0 {
			if i > 0 {
				return false
			}
			// One for which there was no room in the queue.
			pending, err := unix.GetsockoptInt(int(s.fd), unix.SOL_SOCKET, unix.SO_ERROR)
			return err == nil && pending != 0 && s.failed(l, unix.Errno(pending), nil)
		}
		if met, ok := readError(controls[:size]); ok && s.failed(l, met, quoted[:n]) {
			return true
		}
	}
	return false
}

// readError finds what an entry of the queue of errors is about.
func readError(b []byte) (unix.Errno, bool) {
	for len(b) > 0 {
		var kind controlKind
		var data []byte
		kind, data, b = nextControl(b)
		about := kind == controlKind{unix.SOL_IP, unix.IP_RECVERR} || kind == controlKind{unix.SOL_IPV6, unix.IPV6_RECVERR}
		if about && len(data) >= 16 { // struct sock_extended_err
			errno := unix.Errno(binary.NativeEndian.Uint32(data))
			return errno, errno != 0
		}
	}
	return 0, false
}

// failed is told of an error that one of the session's datagrams has met, and
// says whether that ends the session. quoted is the beginning of the datagram.
func (s *session) failed(l *loop, errno unix.Errno, quoted []byte) bool {
	u := s.socket
	switch {
	case errno == unix.EMSGSIZE:
		// The kernel has noted the path's limit, and cuts what comes next.
		l.udp.icmp.tooBig(l, s, s.limit(), quoted)
		return false
	case errno != unix.ECONNREFUSED && !s.silent(l):
		return false
	}
	addr, why := s.backend.count.Addr, reasonOf(errno)
	s.backend.count.Failures[why]++
	u.avoid(l, addr)
	s.report(addr, errno)
	if suppressed, ok := s.d.complain(time.Now()); ok {
		u.r.log.Warn("a backend refused a session", "door", s.d.key.String(), "frontend", s.d.table.Load().name,
			"backend", addr.String(), "err", errno, "suppressed", suppressed)
	}
	l.udp.icmp.refuse(l, u, &s.flow, quoted)
	if errno == unix.ECONNREFUSED {
		s.end(l, endedReset)
	} else {
		s.end(l, endedLost)
	}
	return true
}

// measure tells a client that sends more at once than the path to the backend
// takes. The datagram is cut into fragments all the same, as by any host that
// sends it: whether the client allows that is not to be seen here, and a client
// that does not listen would lose all of them.
func (s *session) measure(l *loop, d *datagram) {
	size := len(d.data)
	if d.segment > 0 {
		size = min(size, d.segment)
	}
	if limit := s.limit(); limit > 0 && size > limit {
		l.udp.icmp.tooBig(l, s, limit, d.data)
	}
}

// limit is the largest datagram that the path to the backend takes whole, as
// far as the kernel knows; 0: unknown.
func (s *session) limit() int {
	level, option, headers := unix.SOL_IP, unix.IP_MTU, 20+8
	if !s.backend.count.Addr.Addr().Is4() {
		level, option, headers = unix.SOL_IPV6, unix.IPV6_MTU, 40+8
	}
	mtu, err := unix.GetsockoptInt(int(s.fd), level, option)
	if err != nil {
		return 0
	}
	return max(mtu-headers, 0)
}

// expired ends the session if it is idle. The timer is not moved for each
// datagram: it comes when the session could be idle at the earliest. A guess has
// had its time.
func (s *session) expired(l *loop) {
	if left := s.d.table.Load().IdleTimeout - s.idle(l); left > 0 && !s.guess {
		l.set(&s.timer, left)
		return
	}
	s.end(l, endedIdle)
}

func (s *session) idle(l *loop) time.Duration { return l.now - max(s.asked, s.heard) }

func (s *session) end(l *loop, how ending) {
	u := s.socket
	l.clear(&s.timer)
	if s.shared {
		l.unwatch(int(s.fd))
	} else {
		l.forget(int(s.fd))
	}
	closeFD(s.fd)
	s.fd = -1
	delete(u.flows, s.flow)
	if s.guess {
		u.guesses--
	}
	if len(u.slots) > 0 {
		u.vacate(s.flow)
	}
	if s.known {
		u.d.ids.forget(s)
	}
	s.tally.ended(s.backend, how)
	s.d.release(s.flow.addr().Addr(), s.counted)
	giveSessionBack()
}

// sessions returns them for the next process. They go on here too: until that
// one has them it does not matter who passes an answer on.
func (u *udpSocket) sessions(l *loop) []HandedSession {
	var all []HandedSession
	for f, s := range u.flows {
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			// No descriptor left: the client will be given a backend anew.
			continue
		}
		s.shared = true
		all = append(all, HandedSession{
			Door: u.d.key, Name: s.name(), IDs: s.handedIDs(), Slot: int(f.port >> slotShift), Client: f.addr(), Local: netip.AddrFrom16(f.local).Unmap(), Ifindex: int(f.scope),
			Backend: s.backend.count.Addr, Idle: s.idle(l), File: os.NewFile(uintptr(fd), u.d.key.String()),
		})
	}
	return all
}

// adopt goes on with a session of the process before, whatever the limits say
// by now.
func (u *udpSocket) adopt(l *loop, h HandedSession) {
	fd, err := duplicate(h.File)
	if err != nil {
		return
	}
	d := u.d
	if h.Name != "" {
		if d = u.d.named[h.Name]; d == nil {
			closeFD(int32(fd))
			return // its frontend is gone
		}
	}
	f := flow{client: h.Client.Addr().As16(), local: h.Local.As16(), port: uint32(h.Client.Port()), scope: uint32(h.Ifindex)}.slot(h.Slot)
	since := l.now - h.Idle
	s := &session{socket: u, d: d, tally: l.tally(d), flow: f, asked: since, heard: since, shared: true}
	s.timer.owner = s
	if s.watch(l, int32(fd)) != 0 {
		closeFD(int32(fd))
		return
	}
	sessionsAlive.Add(1)
	s.counted = d.readmit(d.table.Load(), h.Client.Addr())
	s.tally.accepted()
	s.backend = s.tally.backend(h.Backend)
	s.backend.use(nil)
	s.tally.connected(s.backend)
	u.flows[f] = s
	u.occupy(f)
	if s.d != u.d {
		u.d.ids.add(s, "")
	}
	for _, id := range h.IDs {
		u.d.ids.add(s, string(id))
	}
	l.set(&s.timer, d.table.Load().IdleTimeout-h.Idle)
}
