package load

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// HelloSize is what a browser's ClientHello takes that has a post-quantum key share: more than a packet.
	HelloSize = 1800
	// firstSegment is how much of it goes ahead where it comes in two segments.
	firstSegment = 1400
	// answerSize is what a backend says to a ClientHello: which one it is, three zeros, and the checksum of what it got.
	answerSize = 8
	// waiting is how many connections can be under way where the rate is given.
	waiting = 1024
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ClientHello returns what crypto/tls says first to a server of that name, padded to HelloSize as browsers pad theirs
// (RFC 7685).
func ClientHello(name string) ([]byte, error) {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_ = tls.Client(client, &tls.Config{ServerName: name, NextProtos: []string{"h2", "http/1.1"}}).Handshake() // nobody answers
	}()
	hello := make([]byte, 5, HelloSize)
	if _, err := io.ReadFull(server, hello); err != nil {
		return nil, fmt.Errorf("ClientHello: %w", err)
	}
	hello = append(hello, make([]byte, binary.BigEndian.Uint16(hello[3:]))...)
	if _, err := io.ReadFull(server, hello[5:]); err != nil {
		return nil, fmt.Errorf("ClientHello: %w", err)
	}
	return pad(hello)
}

// pad adds the extension that is for it, and corrects the three lengths that it is part of: those of the record, of
// the message, and of all extensions.
func pad(hello []byte) ([]byte, error) {
	const extension = 21
	more := HelloSize - len(hello)
	if more < 4 {
		return nil, fmt.Errorf("ClientHello: it has %d bytes already, which is not to be padded to %d", len(hello), HelloSize)
	}
	extensions := 5 + 4 + 2 + 32 // record, message, version, random
	extensions += 1 + int(hello[extensions])
	extensions += 2 + int(binary.BigEndian.Uint16(hello[extensions:])) // cipher suites
	extensions += 1 + int(hello[extensions])                           // compression
	if end := extensions + 2 + int(binary.BigEndian.Uint16(hello[extensions:])); end != len(hello) {
		return nil, fmt.Errorf("ClientHello: its extensions end at %d of %d", end, len(hello))
	}
	hello = binary.BigEndian.AppendUint16(hello, extension)
	hello = binary.BigEndian.AppendUint16(hello, uint16(more-4))
	hello = append(hello, make([]byte, more-4)...)
	binary.BigEndian.PutUint16(hello[3:], uint16(len(hello)-5))
	binary.BigEndian.PutUint16(hello[7:], uint16(len(hello)-9)) // the third byte, above these two, is zero
	binary.BigEndian.PutUint16(hello[extensions:], uint16(len(hello)-extensions-2))
	return hello, nil
}

// hello answers a ClientHello that has come as a whole.
func (b *backend) hello(fd int, k *peer, events uint32) (bool, syscall.Errno) {
	for {
		n, errno := recv(fd, b.buf, 0)
		if errno == unix.EAGAIN {
			return true, 0
		}
		if errno != 0 || n == 0 {
			return false, errno
		}
		k.got += uint64(n)
		k.sum = crc32.Update(k.sum, castagnoli, b.buf[:n])
		if k.got > HelloSize {
			b.count.Errors++
			complain("hello: %d bytes instead of %d", k.got, HelloSize)
			return false, 0
		}
		if k.got == HelloSize {
			answer := b.buf[:answerSize]
			clear(answer)
			answer[0] = k.id
			binary.BigEndian.PutUint32(answer[4:], k.sum)
			if sent, errno := send(fd, answer); errno != 0 || sent != answerSize {
				return false, errno
			}
			b.count.Ops++
		}
		if n < len(b.buf) && events&closed == 0 {
			return true, 0
		}
	}
}

// greeter is a client that connects, sends a ClientHello, looks at who has answered what, and closes.
type greeter struct {
	*client
	hellos  [][]byte // by name
	sums    []uint32
	targets []*unix.RawSockaddrInet4
	slots   []greeting
	free    []int  // slots without a connection
	rest    []rest // second segments to be sent, in order of time
	turn    int
}

type greeting struct {
	fd, turn int
	name     int
	said     bool
	started  int64 // what its time is counted from
}

type rest struct {
	at         int64
	slot, turn int
}

func (c *client) hello() error {
	g := &greeter{client: c}
	for _, name := range c.Names {
		h, err := ClientHello(name)
		if err != nil {
			return err
		}
		g.hellos, g.sums = append(g.hellos, h), append(g.sums, crc32.Checksum(h, castagnoli))
	}
	for _, t := range c.Targets {
		g.targets = append(g.targets, rawAddr(t))
	}
	g.slots = make([]greeting, c.Conns)
	if c.Rate > 0 {
		g.slots = make([]greeting, waiting)
		// What is waited for is less than the 50 µs that the kernel may add.
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("timer slack: %w", err)
		}
	}
	for i := range g.slots {
		g.slots[i].fd = -1
		g.free = append(g.free, i)
	}
	next, checked := now(), now()
	for {
		if c.Rate > 0 {
			next = g.keepPace(next)
		} else {
			for len(g.free) > 0 {
				g.open(now())
			}
		}
		until := g.sendRests(next)
		events, err := g.events(until)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := g.event(int(e.Fd), e.Events); err != nil {
				return err
			}
		}
		if t := now(); t-checked > 1e9 {
			checked = t
			g.stalled(t)
		}
	}
}

// keepPace opens what is due, and returns when something is due next. A connection counts from when it was due: if this
// process or the machine is late, so is the connection, and who waits for it would not care why.
func (g *greeter) keepPace(due int64) int64 {
	for ; due <= now(); due += 1e9 / int64(g.Rate) {
		if len(g.free) == 0 {
			g.count.Errors++
			complain("hello: %d connections are under way, and another one is due", waiting)
			continue
		}
		g.open(due)
	}
	return due
}

// sendRests sends the second segments that are due, and returns when to be back at the latest.
func (g *greeter) sendRests(until int64) int64 {
	n := 0
	for _, r := range g.rest {
		t := now()
		if r.at > t {
			until = min(until, r.at)
			break
		}
		n++
		s := &g.slots[r.slot]
		if s.fd < 0 || s.turn != r.turn {
			continue
		}
		s.started = t
		if _, errno := send(s.fd, g.hellos[s.name][firstSegment:]); errno != 0 {
			g.failed(r.slot, "send the second segment", errno)
		}
	}
	g.rest = g.rest[:copy(g.rest, g.rest[n:])]
	return until
}

// events waits for events, or until something is due.
func (g *greeter) events(until int64) ([]unix.EpollEvent, error) {
	if g.Rate == 0 {
		return g.wait(100), nil
	}
	return g.waitFor(max(until-now(), 0))
}

func (g *greeter) open(started int64) {
	i := g.free[len(g.free)-1]
	g.free = g.free[:len(g.free)-1]
	g.turn++
	s := &g.slots[i]
	*s = greeting{fd: -1, turn: g.turn, name: g.turn % len(g.hellos), started: started}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno == 0 {
		s.fd = int(fd)
		if g.Pause > 0 {
			noDelay(s.fd) // the second segment does not wait until the first is acknowledged
		}
		to := g.targets[g.turn%len(g.targets)]
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
		if errno == 0 || errno == unix.EINPROGRESS {
			errno = g.add(s.fd, i, inOut)
		}
	}
	if errno != 0 {
		g.failed(i, "connect", errno)
	}
}

func (g *greeter) failed(slot int, what string, errno syscall.Errno) {
	g.count.Errors++
	complain("hello: %s: %v", what, errno)
	g.close(slot)
}

func (g *greeter) close(slot int) {
	if s := &g.slots[slot]; s.fd >= 0 {
		closeFD(s.fd)
		s.fd = -1
	}
	g.free = append(g.free, slot)
}

// event returns an error where an answer is wrong: what is measured then is not what it is taken for.
func (g *greeter) event(slot int, events uint32) error {
	s := &g.slots[slot]
	if !s.said && events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		if events&unix.EPOLLOUT == 0 {
			return nil
		}
		s.said = true
		out := g.hellos[s.name]
		if g.Pause > 0 {
			out = out[:firstSegment]
			g.rest = append(g.rest, rest{now() + int64(g.Pause), slot, s.turn})
		}
		if _, errno := send(s.fd, out); errno != 0 {
			g.failed(slot, "send", errno)
		}
		return nil
	}
	if events&unix.EPOLLIN == 0 && events&closed == 0 {
		return nil
	}
	var answer [answerSize + 1]byte
	n, errno := recv(s.fd, answer[:], 0)
	switch {
	case errno == unix.EAGAIN:
		return nil
	case errno != 0:
		g.failed(slot, "answer", errno)
		return nil
	case n == 0:
		g.count.Errors++
		complain("hello: closed without an answer")
		g.close(slot)
		return nil
	}
	if err := g.check(answer[:n], s.name); err != nil {
		return err
	}
	g.count.Latency.Add(now() - s.started)
	g.count.Ops++
	g.close(slot)
	return nil
}

func (g *greeter) check(answer []byte, name int) error {
	switch {
	case len(answer) != answerSize:
		return fmt.Errorf("hello: an answer of %d bytes instead of %d", len(answer), answerSize)
	case g.ByName && int(answer[0]) != name:
		return fmt.Errorf("hello: backend %d has answered for %s, which is that of backend %d", answer[0], g.Names[name], name)
	case binary.BigEndian.Uint32(answer[4:]) != g.sums[name]:
		return errors.New("hello: something else has arrived at the backend than what was sent")
	}
	return nil
}

// stalled gives up what has had no answer for long.
func (g *greeter) stalled(t int64) {
	for i := range g.slots {
		if s := &g.slots[i]; s.fd >= 0 && t-s.started > stallAfter {
			g.count.Errors++
			complain("hello: nothing for %v", time.Duration(t-s.started).Round(time.Millisecond))
			g.close(i)
		}
	}
}
