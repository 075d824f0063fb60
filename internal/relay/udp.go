package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// # UDP
//
// A UDP door has a socket for each loop, and the kernel gives each client to
// one of them (SO_REUSEPORT), so that a session belongs to one loop. What one
// client port sends to one address of this machine is a session (session.go):
// it has a backend, chosen with its first datagram, and a connected socket of
// its own, so that the backend sees a port for each client and the kernel
// sorts the answers. It ends when nothing has been said either way for a while.
//
//	door's socket ─ recvmmsg ─► udpSocket.ready ─ by session ─► forward ─ send ──► backend
//	              ◄─ sendmmsg ─ datagrams.flush ◄── session.ready ◄─ recvmmsg ─
//
// What is sent is what was received: a datagram is dropped, and counted, where
// there is no room for it, as on a wire, and never cut. Several in a row of one
// size go through the kernel as one (UDP_GRO and UDP_SEGMENT).

const (
	// The kernel keeps datagrams here while a loop is busy with something else:
	// some milliseconds' worth, as the kernel counts about 1 kB for a small one.
	doorBuffer = 4 << 20

	// A backend that refuses is not chosen for this long, if there is another.
	// By then its probe has been made.
	refusedPause = time.Second

	// A backend that is said to be down or unreachable, and has not answered
	// for this long, is believed to be: its sessions move.
	silence = 3 * time.Second
)

// flow is what makes a session: who speaks to which address. IPv4 addresses
// are mapped into IPv6. It has no padding, which makes it cheap to look up.
type flow struct {
	client, local [16]byte
	port          uint32 // the client's
	scope         uint32 // the interface, if one of the addresses is link-local
}

func (f *flow) is4() bool {
	return [12]byte(f.client[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

func (f *flow) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(f.client).Unmap(), uint16(f.port))
}

// datagrams is what the UDP sockets of one loop share.
type datagrams struct {
	requests, replies   *receiver
	toBackend, toClient *sender
	used                int // of replies: they wait in toClient
	queued              bool
	touched             []*session // that requests were received for
	icmp                icmp
}

func (l *loop) datagrams() *datagrams {
	if l.udp == nil {
		l.udp = &datagrams{requests: newReceiver(true), replies: newReceiver(false), toBackend: newSender(), toClient: newSender()}
	}
	return l.udp
}

// udpSocket is the source of a UDP door's socket in one loop.
type udpSocket struct {
	r        *Relay
	d        *door
	fd       int32
	ipv6     bool   // its family: then it takes IPv4 too, if it is bound to no address
	port     uint16 // it is bound to
	device   int    // likewise; 0: none
	watching bool
	queued   bool
	overflow uint32 // datagram.overflow of the last one
	tally    *tally
	flows    map[flow]*session
	asking   map[flow]*asker // clients whose names are not known yet (quic.go)
	guesses  int             // sessions that are
	asked    int             // bytes that are kept for them
	slots    map[flow]uint8  // of ports that have had more than one QUIC connection: those in use
	refused  []refusal
	tried    []netip.AddrPort // of the dial at hand
}

// refusal is a backend that has lately refused.
type refusal struct {
	addr  netip.AddrPort
	until time.Duration
}

func newUDPSocket(r *Relay, d *door, fd int) *udpSocket {
	family, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return &udpSocket{
		r: r, d: d, fd: int32(fd), ipv6: family == unix.AF_INET6, port: boundTo(fd).Port(), device: d.ifindex,
		flows: map[flow]*session{}, asking: map[flow]*asker{}, slots: map[flow]uint8{}, overflow: dropped(int32(fd)),
	}
}

func (u *udpSocket) start(l *loop) error {
	l.datagrams()
	u.tally = l.tally(u.d)
	return u.watch(l)
}

func (u *udpSocket) watch(l *loop) error {
	// What has come meanwhile is reported at once.
	if err := l.watch(int(u.fd), u, unix.EPOLLIN|unix.EPOLLET); err != nil {
		return err
	}
	u.watching = true
	return nil
}

// shut ends the sessions: they cannot answer their clients any more.
func (u *udpSocket) shut(l *loop) {
	l.udp.flush(l)
	u.pause(l)
	for _, s := range u.flows {
		s.end(l, endedCut)
	}
	for _, a := range u.asking {
		a.end(l, Closed, nil)
	}
}

// pause leaves datagrams of clients where they are. Answers go on to clients.
func (u *udpSocket) pause(l *loop) {
	if u.watching {
		u.watching = false
		l.unwatch(int(u.fd))
	}
}

func (u *udpSocket) unpause(l *loop) {
	if u.watching {
		return
	}
	if err := u.watch(l); err != nil {
		u.r.log.Error("a loop cannot serve a frontend", "door", u.d.key.String(), "err", err)
	}
}

// drained ends the sessions of a backend that has left long enough ago. Their
// clients' next datagrams go elsewhere.
func (u *udpSocket) drained(l *loop, d *door, backend netip.AddrPort) {
	u.endAll(l, d, endedDrained, backend)
}

func (u *udpSocket) endAll(l *loop, d *door, how ending, backends ...netip.AddrPort) {
	for _, s := range u.flows {
		if s.d == d && slices.Contains(backends, s.backend.count.Addr) {
			s.end(l, how)
		}
	}
}

func (u *udpSocket) ready(l *loop, events uint32) {
	if events == 0 { // its turn, though it may be over
		u.queued = false
	}
	if !u.watching || u.queued {
		return
	}
	in := l.udp.requests
	n, errno := in.receive(u.fd, 0, messages)
	if errno != 0 && errno != unix.EAGAIN {
		u.tally.count.AcceptErrors++
	}
	var last *session
	var lastFlow flow
	shared := u.d.table.Load().names != nil // and a port may have several sessions
	for i := range n {
		d := &in.datagrams[i]
		f, ok := u.flowOf(&in.names[i], d)
		if !ok {
			u.drop(d.count())
			continue
		}
		s := last
		if s == nil || f != lastFlow {
			var kept bool
			if s, kept = u.session(l, f, d); kept {
				continue
			}
		}
		if s == nil {
			u.drop(d.count())
			continue
		}
		if !shared {
			last, lastFlow = s, f
		}
		s.asked = l.now
		if s.waits == 0 {
			s.waits = l.now
		}
		l.udp.queue(s, i)
	}
	l.udp.forward(l)
	// Less than there was room for: that was all, and what comes later is
	// another edge.
	if n == messages {
		u.queued = true
		l.later(u)
	}
}

// flowOf says what a datagram belongs to, if it can be answered: it came whole,
// and was sent to one address of this machine, not to many.
func (u *udpSocket) flowOf(name *sockaddr, d *datagram) (f flow, ok bool) {
	if d.overflow != 0 {
		u.drop(int(d.overflow - u.overflow))
		u.overflow = d.overflow
	}
	client, port := name.get()
	f = flow{client: client, local: d.local, port: uint32(port)}
	if linkLocal(&f.client) || linkLocal(&f.local) {
		f.scope = d.ifindex
	}
	return f, !d.cut && port != 0 && f.local != [16]byte{} && !forMany(&f.local)
}

func linkLocal(a *[16]byte) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

// forMany says whether it is a multicast address, or the broadcast address.
// That of a subnet it does not know: nothing can be sent from such a one.
func forMany(a *[16]byte) bool {
	is4 := [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
	return a[0] == 0xff || is4 && (a[12]&0xf0 == 0xe0 || [4]byte(a[12:]) == [4]byte{255, 255, 255, 255})
}

func (u *udpSocket) drop(n int) { u.tally.count.PacketsDropped += uint64(n) }

func (s *session) drop(n int) { s.tally.count.PacketsDropped += uint64(n) }

// session returns the flow's session. It opens one if there is none, or if the
// backend of that one is down: a client port that is used on and on would
// stick to a dead backend for ever. Unless the backend answers all the same:
// then it is the probe that is wrong. There is none for what nobody takes, and
// for what is kept until more is known.
func (u *udpSocket) session(l *loop, f flow, d *datagram) (s *session, kept bool) {
	if n := u.d.table.Load().names; n != nil {
		return u.sessionByName(l, n, f, d)
	}
	if s := u.flows[f]; s != nil {
		return u.live(l, s, d), false
	}
	return u.open(l, f, d.data, u.d), false
}

// live returns a session that is there, or another one if its backend is dead.
func (u *udpSocket) live(l *loop, s *session, d *datagram) *session {
	if s.first == 0 && (s.isDown(l) || s.hasLeft(l)) {
		s.end(l, endedLost)
		return u.reopen(l, s, d.data)
	}
	return s
}

func (s *session) isDown(l *loop) bool {
	t := s.d.table.Load()
	return len(t.dead) > 0 && s.silent(l) && slices.Contains(t.dead, s.backend.count.Addr)
}

// hasLeft says that a session's backend has left the table, and is gone: one
// that drains would answer. Nobody probes it any more, and what is sent to a
// pod that is no more is lost without a word on many networks.
func (s *session) hasLeft(l *loop) bool {
	if s.waits == 0 || l.now-s.waits < silence {
		return false
	}
	t := s.d.table.Load()
	return t.hasOthers() && !t.serves(s.backend.count.Addr)
}

// open begins a session of a frontend, or tells the client why not if it may
// know. data is of the datagram that wants it.
func (u *udpSocket) open(l *loop, f flow, data []byte, d *door) *session {
	count := l.tally(d)
	count.accepted()
	why, as := d.admit(d.table.Load(), f.addr().Addr(), l.now, true)
	return u.begin(l, &session{socket: u, d: d, tally: count, flow: f, counted: as}, why, data, netip.AddrPort{})
}

// reopen begins a session in place of one that has ended. Of QUIC it is still
// the connection that began with the same packet.
func (u *udpSocket) reopen(l *loop, of *session, data []byte) *session {
	s := u.open(l, of.flow, data, of.d)
	if s != nil && of.opening != "" {
		s.learns, s.opening = learnsFrom, of.opening
	}
	return s
}

// begin connects a session that has been counted, with the given backend or any.
func (u *udpSocket) begin(l *loop, s *session, why Reason, data []byte, backend netip.AddrPort) *session {
	t := s.d.table.Load()
	s.fd, s.asked, s.timer.owner = -1, l.now, s
	if why == "" && s.d.gone.Load() {
		why = Closed
	}
	if why == "" && !takeSession() {
		why = Exhausted
	}
	if why == "" {
		if backend.IsValid() {
			why = s.dialThe(l, t, backend)
		} else {
			why = s.dial(l, t)
		}
		if why == "" {
			u.flows[s.flow] = s
			u.occupy(s.flow)
			l.set(&s.timer, t.IdleTimeout)
			return s
		}
		giveSessionBack()
	}
	u.turnAway(l, s.d, s.tally, &s.flow, s.counted, why, data)
	return nil
}

// turnAway ends what has not become a session.
func (u *udpSocket) turnAway(l *loop, d *door, count *tally, f *flow, as counted, why Reason, data []byte) {
	client := f.addr().Addr()
	d.release(client, as)
	count.failed(why)
	switch why {
	case NoBackend, Refused, Unreachable, UnknownName:
		l.udp.icmp.refuse(l, u, f, data)
	case Closed, Banned, HelloTimeout, NotTLS, SourceRange:
		return
	default:
	}
	if suppressed, ok := d.complain(time.Now()); ok {
		log := u.r.log.With("door", d.key.String(), "frontend", d.table.Load().name, "client", client.String(), "reason", string(why), "suppressed", suppressed)
		if !d.tellRefusal(log, why) {
			log.Warn("no backend took a session")
		}
	}
}

// avoid notes that a backend has refused.
func (u *udpSocket) avoid(l *loop, addr netip.AddrPort) {
	u.refused = slices.DeleteFunc(u.refused, func(r refusal) bool { return r.addr == addr || r.until <= l.now })
	u.refused = append(u.refused, refusal{addr, l.now + refusedPause})
}

// queue puts a received datagram behind the others of its session.
func (g *datagrams) queue(s *session, i int) {
	at := int8(i + 1)
	g.requests.datagrams[i].next = 0
	if s.first == 0 {
		s.first = at
		g.touched = append(g.touched, s)
	} else {
		g.requests.datagrams[s.final-1].next = at
	}
	s.final = at
}

// forward sends what was queued.
func (g *datagrams) forward(l *loop) {
	for i, s := range g.touched {
		g.touched[i] = nil
		s.forward(l)
	}
	g.touched = g.touched[:0]
}

// ready sends the replies that the sessions with events at hand had.
func (g *datagrams) ready(l *loop, _ uint32) {
	g.queued = false
	g.flush(l)
}

func (g *datagrams) flush(l *loop) {
	x := g.toClient
	n := x.finish()
	for from := 0; from < n; {
		u := x.parcels[from].session.socket
		to := from + 1
		for to < n && x.parcels[to].session.socket == u {
			to++
		}
		u.reply(l, x, from, to)
		from = to
	}
	g.used = 0
}

// reply sends some of the messages to clients.
func (u *udpSocket) reply(_ *loop, x *sender, from, to int) {
	for from < to {
		n, errno := sendmmsg(u.fd, x.headers[from:to])
		for i := from; i < from+n; i++ {
			p := &x.parcels[i]
			u.replied(p.session, p.count, p.bytes)
		}
		from += n
		if n > 0 {
			continue
		}
		p := &x.parcels[from]
		switch {
		case full(errno):
			// For the rest of them as well.
			for ; from < to; from++ {
				x.parcels[from].session.drop(x.parcels[from].count)
			}
			return
		case p.count > 1:
			p.session.plain = true
			x.each(from, func(data []byte) {
				if _, errno := sendmmsg(u.fd, x.single(from, data)); errno == 0 {
					u.replied(p.session, 1, len(data))
				} else {
					p.session.drop(1)
				}
			})
		default:
			// The address that the client spoke to is not there any more, there is
			// no way to the client, or a rule of this machine forbids it.
			p.session.drop(1)
		}
		from++
	}
}

func (u *udpSocket) replied(s *session, packets, bytes int) {
	s.tally.count.PacketsToClient += uint64(packets)
	s.tally.count.BytesToClient += uint64(bytes)
	s.backend.count.BytesToClient += uint64(bytes)
}

// full says whether there was no room for a datagram.
func full(errno unix.Errno) bool {
	return errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM
}

// listenUDP opens n sockets for one door. The first is bound alone, so that
// another program, or another gatehouse, that has the port is noticed: a port
// can be shared only by sockets that were all made to (SO_REUSEPORT), and
// that is said of the first one once it is bound.
//
// While the others are added the kernel spreads clients anew. That is over
// before the first datagram is read; one client that sends meanwhile may get
// two sessions.
func listenUDP(at edge.Listen, m *machine, n int) (fds []int, addr netip.AddrPort, err error) {
	if at.Device != "" && m.device(at.Device) == 0 {
		return nil, netip.AddrPort{}, fmt.Errorf("listen on %s: there is no interface %s", at, at.Device)
	}
	defer func() {
		if err != nil {
			for _, fd := range fds {
				closeFD(int32(fd))
			}
			fds, err = nil, fmt.Errorf("listen on %s: %w", at, explainListen(err, edge.Door{Protocol: edge.UDP, Listen: at}, m))
		}
	}()
	port := at.Port
	for i := range n {
		fd, err := bindUDP(at, m, port, i > 0)
		if i == 0 && errors.Is(err, unix.EADDRINUSE) {
			err = m.neighbours.beside(edge.Door{Protocol: edge.UDP, Listen: at}, err, func() (err error) {
				fd, err = bindUDP(at, m, port, true)
				return err
			})
		}
		if err != nil {
			return fds, netip.AddrPort{}, err
		}
		fds = append(fds, fd)
		if i == 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, min(n-1, 1)); err != nil {
				return fds, netip.AddrPort{}, os.NewSyscallError("setsockopt", err)
			}
		}
		addr = boundTo(fd)
		port = addr.Port()
	}
	return fds, addr, nil
}

// bindUDP opens one socket: for both families, unless there is an address or
// IPv6 is disabled.
func bindUDP(at edge.Listen, m *machine, port uint16, shared bool) (_ int, err error) {
	host := at.Addr.Unmap()
	ipv6 := !host.Is4()
	family := unix.AF_INET6
	if !ipv6 {
		family = unix.AF_INET
	}
	fd, errno := datagramSocket(family)
	if errno == unix.EAFNOSUPPORT && !host.IsValid() {
		ipv6 = false
		fd, errno = datagramSocket(unix.AF_INET)
	}
	if errno != 0 {
		return -1, os.NewSyscallError("socket", errno)
	}
	defer func() {
		if err != nil {
			closeFD(fd)
		}
	}()
	if at.Device != "" {
		if err := unix.BindToDevice(int(fd), at.Device); err != nil {
			return -1, os.NewSyscallError("bind to device", err)
		}
	}
	if shared {
		setOption(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	var sa unix.Sockaddr
	if ipv6 {
		only := int32(0)
		in6 := &unix.SockaddrInet6{Port: int(port)}
		if host.IsValid() {
			only = 1
			in6.Addr = host.As16()
			switch {
			case host.Zone() != "":
				in6.ZoneId = uint32(m.device(host.Zone()))
			case host.IsLinkLocalUnicast() && at.Device != "":
				in6.ZoneId = uint32(m.device(at.Device))
			}
		}
		setOption(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, only)
		setOption(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		setOption(fd, unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1)
		setOption(fd, unix.SOL_IP, unix.IP_RECVTOS, 1)
		sa = in6
	} else {
		in4 := &unix.SockaddrInet4{Port: int(port)}
		if host.IsValid() {
			in4.Addr = host.As4()
		}
		setOption(fd, unix.SOL_IP, unix.IP_PKTINFO, 1)
		setOption(fd, unix.SOL_IP, unix.IP_RECVTOS, 1)
		sa = in4
	}
	setOption(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // Linux 5.0
	setOption(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	setBuffers(fd, doorBuffer)
	if err := unix.Bind(int(fd), sa); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	return int(fd), nil
}

// setBuffers asks for room; without CAP_NET_ADMIN there is no more of it than
// net.core.rmem_max and wmem_max say.
func setBuffers(fd int32, size int32) {
	setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
	setOption(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
	setOption(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size)
}
