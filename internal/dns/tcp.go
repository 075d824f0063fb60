package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of what clients may open (RFC 7766 §6.2).
const (
	mostConns          = 512 // of a listener
	mostConnsPerClient = 32
	// A connection that asks nothing for so long is closed, and one that does not
	// take its answers.
	tcpIdle = 10 * time.Second
	// A question is longer only if somebody wants our memory.
	mostQuestion = 4096
	// Questions of a connection that are answered at a time; the next waits.
	mostPipelined = 32
)

// tcpLoop serves one TCP socket.
type tcpLoop struct {
	server   *Server
	zone     *zone
	listener net.Listener

	mu        sync.Mutex
	conns     map[net.Conn]netip.Addr
	perClient map[netip.Addr]int
}

func (s *Server) newTCPLoop(z *zone, at door) (*tcpLoop, error) {
	config := net.ListenConfig{Control: control(at.device)}
	config.SetMultipathTCP(false)
	addr := at.addr
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified() // with IPv4
	}
	listener, err := config.Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, at.port).String())
	if err != nil && !at.addr.IsValid() { // a machine without IPv6
		if again, err4 := config.Listen(context.Background(), "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), at.port).String()); err4 == nil {
			listener, err = again, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return &tcpLoop{server: s, zone: z, listener: listener, conns: map[net.Conn]netip.Addr{}, perClient: map[netip.Addr]int{}}, nil
}

// run serves until the listener is closed, and ends its connections then.
func (l *tcpLoop) run(ctx context.Context) {
	var served sync.WaitGroup
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			// No descriptor is free. Those that are idle end by themselves.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		client, ok := l.take(conn)
		if !ok {
			_ = conn.Close()
			continue
		}
		served.Go(func() {
			l.serve(ctx, conn, client)
			l.leave(conn)
		})
	}
	l.mu.Lock()
	for conn := range l.conns {
		_ = conn.Close()
	}
	l.mu.Unlock()
	served.Wait()
}

// take counts a connection, unless there are enough of them.
func (l *tcpLoop) take(conn net.Conn) (netip.Addr, bool) {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}, false
	}
	client := at.Addr().Unmap().WithZone("")
	who := clientKey(client)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= mostConns || l.perClient[who] >= mostConnsPerClient {
		return client, false
	}
	l.conns[conn] = who
	l.perClient[who]++
	return client, true
}

func (l *tcpLoop) leave(conn net.Conn) {
	_ = conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	who := l.conns[conn]
	delete(l.conns, conn)
	if l.perClient[who]--; l.perClient[who] == 0 {
		delete(l.perClient, who)
	}
}

// serve answers what is asked on a connection, each question as soon as its
// answer is known.
func (l *tcpLoop) serve(ctx context.Context, conn net.Conn, client netip.Addr) {
	var asked sync.WaitGroup
	defer asked.Wait()
	var writing sync.Mutex
	pipelined := make(chan struct{}, mostPipelined)
	r := bufio.NewReaderSize(conn, 2048)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(tcpIdle))
		var length [2]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return
		}
		size := binary.BigEndian.Uint16(length[:])
		if size > mostQuestion {
			return
		}
		msg := make([]byte, size)
		if _, err := io.ReadFull(r, msg); err != nil {
			return
		}
		select {
		case pipelined <- struct{}{}:
		case <-ctx.Done():
			return
		}
		asked.Go(func() {
			defer func() { <-pipelined }()
			out := l.answer(ctx, client, msg, make([]byte, 2, 2+udpSize))
			if len(out) == 2 { // not even an answer
				_ = conn.SetReadDeadline(time.Now())
				return
			}
			binary.BigEndian.PutUint16(out, uint16(len(out)-2))
			writing.Lock()
			defer writing.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(tcpIdle))
			if _, err := conn.Write(out); err != nil {
				_ = conn.Close()
			}
		})
	}
}

// answer appends the answer to msg.
func (l *tcpLoop) answer(ctx context.Context, client netip.Addr, msg, out []byte) []byte {
	s, v, now := l.server, l.zone.view.Load(), l.server.now()
	var count tally
	count.tcp++
	var q query
	what, rcode := q.parse(msg, l.zone.id)
	defer func() {
		if len(out) > 2 {
			count.answers[rcodeOf(out[2:])]++
		}
		v.counters.add(&count)
	}()
	send := func(p *packed) []byte {
		out = p.appendTo(out, msg, &q, s.now(), dns.MaxMsgSize)
		return out
	}
	refuse := func(rcode int) []byte {
		out = appendFailure(out, msg, &q, rcode)
		return out
	}
	switch {
	case what == drop:
		return out
	case !v.may(client):
		return refuse(dns.RcodeRefused)
	case s.limited(s.tcpLimit, client, v.rate, now):
		count.limited++
		return refuse(dns.RcodeRefused)
	case what == fail:
		return refuse(rcode)
	}
	if p := s.fresh(v, &q, now); p != nil {
		count.hit(p)
		return send(p)
	}
	p, rcode, reply := s.local(v, &q, now)
	switch {
	case p != nil:
		count.hit(p)
		return send(p)
	case !reply.Asks || rcode != 0:
		return refuse(rcode)
	case !s.waiting.enter(client):
		count.limited++
		return refuse(dns.RcodeServerFailure)
	}
	defer s.waiting.leave(client)
	if p = s.elsewhere(ctx, v, &q, client, reply); p == nil {
		return refuse(dns.RcodeServerFailure)
	}
	return send(p)
}
