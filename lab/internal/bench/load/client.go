package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mode is what a client does.
type Mode string

// The modes.
const (
	PingPong Mode = "pingpong" // a message there and back, again and again, on each connection
	Download Mode = "download" // receive from the backend's source port
	Upload   Mode = "upload"   // send to the backend's sink port
	Connect  Mode = "connect"  // connect, a byte there and back, close
	Hello    Mode = "hello"    // connect, a ClientHello there, an answer back, close
	Idle     Mode = "idle"     // connections that carry a message and then nothing
	UDP      Mode = "udp"      // datagrams there and back
)

// Options say what a client does.
type Options struct {
	Mode    Mode
	Targets []netip.AddrPort // taken in turn
	Conns   int              // connections, or flows of datagrams, at a time
	Size    int              // of a message, in bytes
	Window  int              // UDP: datagrams under way in each flow
	Names   []string         // Hello: the server names, taken in turn
	ByName  bool             // Hello: the backend whose number is that of the name has to answer, not any
	Rate    int              // Hello: connections a second, instead of Conns at a time
	Pause   time.Duration    // Hello: between the two segments of a ClientHello; 0: it comes in one
}

// Client generates load until it is killed.
func Client(o Options, count *Counters) error {
	alone()
	p, err := newPoller()
	if err != nil {
		return err
	}
	c := &client{Options: o, poller: p, count: count}
	switch o.Mode {
	case PingPong:
		return c.pingPong()
	case Download, Upload:
		return c.bulk()
	case Connect:
		return c.connect()
	case Hello:
		return c.hello()
	case Idle:
		return c.idle()
	case UDP:
		return c.udp()
	}
	return fmt.Errorf("no mode %q", o.Mode)
}

type client struct {
	Options
	*poller
	count *Counters
}

func (c *client) target(i int) netip.AddrPort { return c.Targets[i%len(c.Targets)] }

// fill writes message number n of a connection: other bytes each time, so that an echo can be told from an older one.
func fill(p []byte, conn, n uint64) {
	x := n*0x9e3779b97f4a7c15 + conn<<48 + 1
	i := 0
	for ; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], x)
		x += 0x0101010101010101
	}
	for ; i < len(p); i++ {
		p[i] = byte(x)
	}
}

const stallAfter = 2e9 // an answer that takes longer counts as an error, in nanoseconds

func (c *client) pingPong() error {
	type conn struct {
		fd      int
		n       uint64
		started int64
		got     int
		msg     []byte
	}
	conns := make([]conn, c.Conns)
	for i := range conns {
		fd, err := dial(c.target(i), unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		conns[i] = conn{fd: fd, msg: make([]byte, c.Size)}
		if errno := c.add(fd, i, in); errno != 0 {
			return errno
		}
	}
	say := func(k *conn, i int) bool {
		k.n++
		k.got = 0
		fill(k.msg, uint64(i), k.n)
		n, errno := send(k.fd, k.msg)
		if errno != 0 || n != len(k.msg) {
			c.count.Errors++
			complain("ping-pong: send: %d of %d bytes: %v", n, len(k.msg), errno)
			return false
		}
		return true
	}
	for i := range conns {
		conns[i].started = now()
		say(&conns[i], i)
	}
	buf := make([]byte, c.Size+1)
	checked := now()
	for {
		for _, e := range c.wait(100) {
			i := int(e.Fd)
			k := &conns[i]
			n, errno := recv(k.fd, buf, 0)
			t := now()
			if errno == unix.EAGAIN {
				continue
			}
			if errno != 0 || n == 0 || !bytes.Equal(buf[:n], k.msg[k.got:min(k.got+n, len(k.msg))]) {
				c.count.Errors++
				complain("ping-pong: after %d messages: %d bytes: %v", k.n, n, errno)
				closeFD(k.fd)
				continue
			}
			if k.got += n; k.got < len(k.msg) {
				continue
			}
			c.count.Latency.Add(t - k.started)
			c.count.Ops++
			k.started = t
			say(k, i)
		}
		if t := now(); t-checked > 1e9 {
			checked = t
			for i := range conns {
				if t-conns[i].started > stallAfter {
					c.count.Errors++
					complain("ping-pong: no answer for %d ms", (t-conns[i].started)/1e6)
				}
			}
		}
	}
}

func (c *client) bulk() error {
	src, err := newSource()
	if err != nil {
		return err
	}
	snk := newSink(c.count)
	type conn struct {
		fd        int
		got, look uint64
	}
	conns := make([]conn, c.Conns)
	for i := range conns {
		fd, err := dial(c.target(i), unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		conns[i].fd = fd
		if err := src.open(fd); err != nil {
			return err
		}
		if errno := c.add(fd, i, inOut); errno != 0 {
			return errno
		}
	}
	for {
		for _, e := range c.wait(-1) {
			k := &conns[e.Fd]
			alive, errno := e.Events&closed == 0, syscall.Errno(0)
			switch {
			case !alive:
			case c.Mode == Download:
				alive, errno = snk.drain(k.fd, &k.got, &k.look)
			default:
				errno = src.fill(k.fd)
			}
			if !alive || errno != 0 {
				c.count.Errors++
				complain("bulk: a connection ended: %v", errno)
				closeFD(k.fd)
			}
		}
	}
}

func (c *client) connect() error {
	type slot struct {
		fd      int
		started int64
		said    bool
		b       byte
	}
	slots := make([]slot, c.Conns)
	raw := make([]*unix.RawSockaddrInet4, len(c.Targets))
	for i, t := range c.Targets {
		raw[i] = rawAddr(t)
	}
	turn := 0
	open := func(i int) {
		s := &slots[i]
		turn++
		*s = slot{fd: -1, started: now(), b: byte(turn)}
		fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if errno == 0 {
			s.fd = int(fd)
			_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(raw[turn%len(raw)])), unix.SizeofSockaddrInet4)
			if errno == unix.EINPROGRESS {
				errno = c.add(s.fd, i, inOut)
			}
		}
		if errno != 0 {
			c.count.Errors++
			complain("connect: %v", errno)
			if s.fd >= 0 {
				closeFD(s.fd)
				s.fd = -1
			}
		}
	}
	for i := range slots {
		open(i)
	}
	buf := make([]byte, 8)
	out := make([]byte, 1)
	checked := now()
	for {
		for _, e := range c.wait(100) {
			i := int(e.Fd)
			s := &slots[i]
			if !s.said && e.Events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 {
				if e.Events&unix.EPOLLOUT == 0 {
					continue
				}
				s.said = true
				out[0] = s.b
				if _, errno := send(s.fd, out); errno == 0 {
					continue
				}
			} else if e.Events&unix.EPOLLIN == 0 && e.Events&closed == 0 {
				continue
			}
			n, errno := recv(s.fd, buf, 0)
			if errno == unix.EAGAIN {
				continue
			}
			if n == 1 && errno == 0 && buf[0] == s.b {
				c.count.Latency.Add(now() - s.started)
				c.count.Ops++
			} else {
				c.count.Errors++
				complain("connect: %d bytes instead of one: %v", n, errno)
			}
			closeFD(s.fd)
			open(i)
		}
		if t := now(); t-checked > 1e9 {
			checked = t
			for i := range slots {
				if s := &slots[i]; s.fd < 0 || t-s.started > stallAfter {
					c.count.Errors++
					complain("connect: nothing for %d ms", (t-s.started)/1e6)
					if s.fd >= 0 {
						closeFD(s.fd)
					}
					open(i)
				}
			}
		}
	}
}

// idle opens as many connections as Counters.Expected asks for; when it is 0, it closes all.
func (c *client) idle() error {
	var fds []int
	msg, buf := make([]byte, c.Size), make([]byte, c.Size)
	for {
		expected := int(c.count.Expected)
		switch {
		case expected == 0 && len(fds) > 0:
			for _, fd := range fds {
				closeFD(fd)
			}
			fds = nil
		case len(fds) < expected:
			fd, err := dial(c.target(len(fds)), unix.SOCK_STREAM)
			if err != nil {
				return err
			}
			fill(msg, uint64(fd), 1)
			_, errno := send(fd, msg)
			if errno != 0 {
				return errno
			}
			if err := unix.SetNonblock(fd, false); err != nil {
				return err
			}
			if n, errno := recv(fd, buf, unix.MSG_WAITALL); n != c.Size || errno != 0 || !bytes.Equal(buf, msg) {
				return fmt.Errorf("idle: %d bytes back: %w", n, errno)
			}
			fds = append(fds, fd)
		default:
			c.wait(10)
		}
		c.count.Open = uint64(len(fds))
	}
}
