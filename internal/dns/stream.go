package dns

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// streamIdle is how long a connection to an upstream is kept that nothing is
// asked on. Servers close them after some ten seconds.
const streamIdle = 15 * time.Second

var (
	errClosed = errors.New("it closed the connection")
	errBusy   = errors.New("too many questions wait for it")
)

// stream is a connection to an upstream, by TCP or TLS (RFC 7766, RFC 7858),
// that questions share: each is sent when it comes, and the answers come in any
// order. It is made when something is asked, and made anew once it was closed.
type stream struct {
	addr netip.AddrPort
	tls  *tls.Config // nil: TCP

	mu      sync.Mutex
	current *pipe

	caseBroken atomic.Bool // in the last answer
}

func (s *stream) broken() bool        { return s.caseBroken.Load() }
func (s *stream) sawCase(broken bool) { s.caseBroken.Store(broken) }

// exchange sends a question, whose ID may change, and returns its answer. A
// connection that was closed while nobody looked is not an error: the question
// is asked again on a new one.
func (s *stream) exchange(ctx context.Context, q []byte) ([]byte, error) {
	for {
		p, fresh := s.pipe(ctx)
		msg, err := p.exchange(ctx, q)
		if err == nil || fresh || ctx.Err() != nil || errors.Is(err, errBusy) {
			return msg, err
		}
	}
}

// pipe returns the connection, which may still be about to be made.
func (s *stream) pipe(ctx context.Context) (p *pipe, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && !s.current.over() {
		return s.current, false
	}
	p = &pipe{ready: make(chan struct{}), waiting: map[uint16]chan []byte{}}
	s.current = p
	// For all who wait, not only for who came first.
	made, cancel := context.WithTimeout(context.WithoutCancel(ctx), streamTimeout)
	go func() {
		defer cancel()
		p.connect(made, s.addr, s.tls)
	}()
	return p, true
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.end(errClosed)
	}
}

// pipe is one connection.
type pipe struct {
	ready chan struct{} // closed once it is there, or failed
	conn  net.Conn

	mu      sync.Mutex
	err     error
	next    uint16
	waiting map[uint16]chan []byte // by ID
	answers uint64
}

func (p *pipe) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *pipe) connect(ctx context.Context, addr netip.AddrPort, secure *tls.Config) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	if err == nil && secure != nil {
		t := tls.Client(conn, secure)
		if err = t.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
		}
		conn = t
	}
	if err != nil {
		p.end(err)
		close(p.ready)
		return
	}
	p.mu.Lock()
	p.conn = conn
	over := p.err != nil
	p.mu.Unlock()
	close(p.ready)
	if over {
		_ = conn.Close()
		return
	}
	p.read()
}

// read hands answers to those who wait for them, until the connection ends.
func (p *pipe) read() {
	for {
		_ = p.conn.SetReadDeadline(time.Now().Add(streamIdle))
		var length [2]byte
		if _, err := io.ReadFull(p.conn, length[:]); err != nil {
			p.end(errClosed)
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(p.conn, msg); err != nil {
			p.end(errClosed)
			return
		}
		if len(msg) < headerSize {
			continue
		}
		id := binary.BigEndian.Uint16(msg)
		p.mu.Lock()
		p.answers++
		answer := p.waiting[id]
		delete(p.waiting, id)
		p.mu.Unlock()
		if answer != nil {
			answer <- msg
		}
	}
}

func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	if p.conn != nil {
		_ = p.conn.Close()
	}
	for _, answer := range p.waiting {
		close(answer)
	}
	p.waiting = nil
}

func (p *pipe) exchange(ctx context.Context, q []byte) ([]byte, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, errNoAnswer
	}
	answer := make(chan []byte, 1)
	id, before, err := p.enter(answer)
	if err != nil {
		return nil, err
	}
	// Nobody else sees the connection: IDs need not be guessed, but be different.
	binary.BigEndian.PutUint16(q, id)
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(q)), uint16(len(q)))
	if deadline, ok := ctx.Deadline(); ok {
		_ = p.conn.SetWriteDeadline(deadline)
	}
	if _, err := p.conn.Write(append(framed, q...)); err != nil { // whole, or it is the end
		p.end(errClosed)
		return nil, errClosed
	}
	select {
	case msg, ok := <-answer:
		if !ok {
			p.mu.Lock()
			defer p.mu.Unlock()
			return nil, p.err
		}
		return msg, nil
	case <-ctx.Done():
		p.mu.Lock()
		delete(p.waiting, id)
		silent := p.answers == before
		p.mu.Unlock()
		if silent && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			p.end(errNoAnswer) // a way that was cut; the next question finds another
		}
		return nil, errNoAnswer
	}
}

// enter takes an ID that nobody waits with, and says how many answers there were before.
func (p *pipe) enter(answer chan []byte) (id uint16, before uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, 0, p.err
	}
	if len(p.waiting) >= 1<<12 {
		return 0, 0, errBusy
	}
	for p.waiting[p.next] != nil {
		p.next++
	}
	id = p.next
	p.next++
	p.waiting[id] = answer
	return id, p.answers, nil
}
