package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is buffers for several datagrams, for recvmmsg(2) and sendmmsg(2).
type batch struct {
	msgs  []mmsghdr
	iovs  []unix.Iovec
	bufs  [][]byte
	names []unix.RawSockaddrInet4
}

const maxDatagram = 2048

func newBatch(n int) *batch {
	b := &batch{msgs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), bufs: make([][]byte, n), names: make([]unix.RawSockaddrInet4, n)}
	for i := range n {
		b.bufs[i] = make([]byte, maxDatagram)
		b.iovs[i].Base = &b.bufs[i][0]
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

// receive fills at most n buffers; each then has msgs[i].n bytes. With names, it is noted who sent them.
func (b *batch) receive(fd, n int, names bool) (int, syscall.Errno) {
	for i := range n {
		b.iovs[i].SetLen(maxDatagram)
		if names {
			b.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
			b.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
	}
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	return int(r), errno
}

// send sends the first n messages and says how many the kernel took.
func (b *batch) send(fd, n int) (int, syscall.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(r), errno
}

// echo sends back all that is there.
func (b *batch) echo(fd int, count *Counters) {
	for {
		n, errno := b.receive(fd, len(b.msgs), true)
		if errno != 0 {
			return
		}
		for i := range n {
			b.iovs[i].SetLen(int(b.msgs[i].n))
		}
		if sent, errno := b.send(fd, n); errno != 0 || sent < n {
			count.Lost += uint64(n - max(sent, 0)) // the client waits for them, and counts them too
		}
		count.Ops += uint64(n)
		if n < len(b.msgs) {
			return
		}
	}
}

func (b *backend) listenUDP(at netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	roomy(fd)
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return fmt.Errorf("bind to %s: %w", at, err)
	}
	b.peers[fd] = peer{kind: datagrams}
	if errno := b.add(fd, fd, unix.EPOLLIN|edge); errno != 0 {
		return errno
	}
	return nil
}

// roomy keeps the generator from being what loses datagrams.
func roomy(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // without the right to, the default has to do
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
}

const (
	lostAfter  = 5e8 // a datagram that has not come back after so many nanoseconds is lost
	headerSize = 16  // slot and generation
)

// udp keeps Window datagrams under way in each of Conns flows. Each has a slot, and a generation that is counted up
// when it comes back or is given up, so that what comes back late is not taken for what was sent since.
func (c *client) udp() error {
	type slot struct {
		generation uint64
		sent       int64
	}
	type flow struct {
		fd    int
		slots []slot
	}
	if c.Size < headerSize || c.Size > maxDatagram {
		return fmt.Errorf("datagrams of %d bytes; %d to %d can be sent", c.Size, headerSize, maxDatagram)
	}
	body := make([]byte, c.Size-headerSize)
	fill(body, 1, 1)
	flows := make([]flow, c.Conns)
	b := newBatch(c.Window)
	write := func(f int, s int, i int, t int64) {
		k := &flows[f].slots[s]
		k.generation++
		k.sent = t
		p := b.bufs[i]
		binary.LittleEndian.PutUint64(p, uint64(f)<<32|uint64(s))
		binary.LittleEndian.PutUint64(p[8:], k.generation)
		b.iovs[i].SetLen(c.Size)
	}
	deliver := func(fd, n int) {
		if sent, errno := b.send(fd, n); errno != 0 || sent < n {
			complain("udp: sent %d of %d: %v", sent, n, errno) // counted as lost when they do not come back
		}
	}
	for f := range flows {
		fd, err := dial(c.target(f), unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		roomy(fd)
		flows[f] = flow{fd: fd, slots: make([]slot, c.Window)}
		if errno := c.add(fd, f, unix.EPOLLIN|edge); errno != 0 {
			return errno
		}
	}
	for f := range flows {
		for s := range c.Window {
			copy(b.bufs[s][headerSize:], body)
			write(f, s, s, now())
		}
		deliver(flows[f].fd, c.Window)
	}
	checked := now()
	again := make([]int, c.Window)
	for {
		for _, e := range c.wait(20) {
			f := int(e.Fd)
			k := &flows[f]
			n, errno := b.receive(k.fd, c.Window, false)
			if errno == unix.EAGAIN {
				continue
			}
			if errno != 0 {
				c.count.Errors++
				complain("udp: receive: %v", errno)
				continue
			}
			t := now()
			m := 0
			for i := range n {
				p := b.bufs[i][:b.msgs[i].n]
				if len(p) != c.Size || !bytes.Equal(p[headerSize:], body) {
					c.count.Errors++
					complain("udp: wrong content, %d bytes", len(p))
					copy(b.bufs[i][headerSize:], body)
					continue
				}
				where, generation := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
				s := int(uint32(where))
				if int(where>>32) != f || s >= c.Window {
					c.count.Errors++
					complain("udp: a datagram of flow %d in flow %d", where>>32, f)
					continue
				}
				if k.slots[s].generation != generation {
					continue // late: it was counted as lost
				}
				c.count.Latency.Add(t - k.slots[s].sent)
				c.count.Ops++
				again[m] = s
				m++
			}
			for i := range m {
				write(f, again[i], i, t)
			}
			if m > 0 {
				deliver(k.fd, m)
			}
		}
		if t := now(); t-checked > 1e8 {
			checked = t
			for f := range flows {
				m := 0
				for s := range flows[f].slots {
					if t-flows[f].slots[s].sent > lostAfter {
						c.count.Lost++
						write(f, s, m, t)
						m++
					}
				}
				if m > 0 {
					deliver(flows[f].fd, m)
				}
			}
		}
	}
}
