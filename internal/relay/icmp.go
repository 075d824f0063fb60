package relay

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What is told to clients goes out no faster than this, for each loop. Most of
// it answers datagrams whose senders may be made up.
const (
	icmpRate  = 200 // per second
	icmpBurst = 50
)

// Types and codes of ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443).
const (
	icmpUnreachable, icmpPort, icmpFragment = 3, 3, 4
	icmp6Unreachable, icmp6Port, icmp6Big   = 1, 4, 2
)

// icmp tells clients what a kernel tells those who reach no socket: that
// nobody is there, and how much the path takes. Only a raw socket can, which
// needs CAP_NET_RAW; without, clients have to find out by themselves.
type icmp struct {
	sockets [2]int32 // by family; 0: not opened yet, -1: not to be had
	tokens  float64
	since   time.Duration // that the tokens are of
}

var sayNoICMP sync.Once

// refuse says that what is behind the door cannot be reached. data is the
// beginning of the datagram in question, as far as it is known.
func (c *icmp) refuse(l *loop, u *udpSocket, f *flow, data []byte) {
	if f.is4() {
		c.send(l, u, f, icmpUnreachable, icmpPort, 0, data)
	} else {
		c.send(l, u, f, icmp6Unreachable, icmp6Port, 0, data)
	}
}

// tooBig says what is the largest datagram that reaches the backend whole, as
// the size of the packet that the client has to send for it.
func (c *icmp) tooBig(l *loop, s *session, limit int, data []byte) {
	if limit <= 0 {
		return
	}
	if s.flow.is4() {
		c.send(l, s.socket, &s.flow, icmpUnreachable, icmpFragment, uint32(limit+20+8), data)
	} else {
		c.send(l, s.socket, &s.flow, icmp6Big, 0, uint32(max(limit+40+8, 1280)), data)
	}
}

func (c *icmp) send(l *loop, u *udpSocket, f *flow, kind, code byte, mtu uint32, data []byte) {
	c.tokens = min(icmpBurst, c.tokens+(l.now-c.since).Seconds()*icmpRate)
	if c.since == 0 {
		c.tokens = icmpBurst
	}
	c.since = l.now
	if c.tokens < 1 {
		return
	}
	fd := c.socket(u, f.is4())
	if fd < 0 {
		return
	}
	c.tokens--
	var buffer [1280]byte
	message := appendICMP(buffer[:0], f, u.port, kind, code, mtu, data)
	device := f.scope
	if u.device != 0 {
		device = uint32(u.device)
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.client, ZoneId: f.scope}
	if f.is4() {
		to = &unix.SockaddrInet4{Addr: [4]byte(f.client[12:])}
	}
	var from control
	from.addSource(!f.is4(), f.local, device)
	_, _ = unix.SendmsgN(int(fd), message, from.bytes[:from.used], to, unix.MSG_DONTWAIT)
}

// socket returns a raw socket, or -1.
func (c *icmp) socket(u *udpSocket, is4 bool) int32 {
	family, protocol, i := unix.AF_INET6, unix.IPPROTO_ICMPV6, 0
	if is4 {
		family, protocol, i = unix.AF_INET, unix.IPPROTO_ICMP, 1
	}
	if c.sockets[i] != 0 {
		return c.sockets[i]
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		c.sockets[i] = -1
		sayNoICMP.Do(func() {
			u.r.log.Info("clients of UDP frontends are not told by ICMP what cannot be reached: that needs CAP_NET_RAW", "err", err)
		})
		return -1
	}
	// It is for sending only. Whatever arrives would be copied to it.
	if is4 {
		const icmpFilter = 1
		_ = unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, -1)
	} else {
		all := unix.ICMPv6Filter{}
		for i := range all.Data {
			all.Data[i] = ^uint32(0)
		}
		_ = unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &all)
	}
	c.sockets[i] = int32(fd)
	return c.sockets[i]
}

func (c *icmp) close() {
	for i, fd := range c.sockets {
		if fd > 0 {
			closeFD(fd)
		}
		c.sockets[i] = -1
	}
}

// appendICMP makes a message about a datagram that the client has sent to port.
// The headers of the datagram are made anew from what is known of it; those
// who get the message look for addresses and ports in them.
func appendICMP(b []byte, f *flow, port uint16, kind, code byte, mtu uint32, data []byte) []byte {
	start := len(b)
	b = append(b, kind, code, 0, 0)
	b = binary.BigEndian.AppendUint32(b, mtu)
	// RFC 1812, section 4.3.2.3: 576 bytes in all; RFC 4443, section 2.4: 1,280.
	size := min(len(data), 1280-40-8-40-8)
	if f.is4() {
		size = min(len(data), 576-20-8-20-8)
	}
	length := uint16(8 + len(data))
	if f.is4() {
		header := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, 20+length)
		b = append(b, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0) // may not be fragmented
		b = append(b, f.client[12:]...)
		b = append(b, f.local[12:]...)
		binary.BigEndian.PutUint16(b[header+10:], checksum(b[header:]))
	} else {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, length)
		b = append(b, unix.IPPROTO_UDP, 64)
		b = append(b, f.client[:]...)
		b = append(b, f.local[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(f.port))
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, length)
	b = append(b, 0, 0) // its checksum: unknown
	b = append(b, data[:size]...)
	if f.is4() {
		// Linux computes that of ICMPv6.
		binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:]))
	}
	return b
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
