package relay

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	// So many messages are received or sent with one system call.
	messages = 64

	// A message is a datagram, or several of one sender that the kernel has put
	// together (UDP_GRO): never more than 65,535 bytes. The 64 more keep the
	// beginnings of all buffers, which is all that small datagrams touch, from
	// competing for the same lines of the processor's cache.
	messageSpace = 64<<10 + 64

	// What the kernel takes at once to be cut into datagrams (UDP_SEGMENT,
	// Linux 4.18): 64 of them (128 since Linux 6.9), and what fits in a packet.
	segmentsMax, segmentedMax = 64, 65000

	// For all the control messages asked for, with room to spare.
	controlSpace = 160
)

// datagram is what a message has brought: one datagram, or several, each
// segment bytes long and the last one perhaps shorter.
type datagram struct {
	data     []byte
	segment  int      // 0: one datagram
	local    [16]byte // the address that it was sent to, if that was asked for; IPv4 mapped into IPv6
	ifindex  uint32   // of the interface it came in on, likewise
	overflow uint32   // how many the socket has had no room for so far; 0: unknown
	marks    byte     // the TOS or traffic class byte: DSCP and ECN
	cut      bool     // it was longer
	next     int8     // of the same session, in the order in which they came; 0: none
}

// count is how many datagrams it is.
func (d *datagram) count() int {
	if d.segment <= 0 || len(d.data) <= d.segment {
		return 1
	}
	return (len(d.data) + d.segment - 1) / d.segment
}

// readControl takes in what the kernel says about a message beside its bytes.
func (d *datagram) readControl(b []byte) {
	d.segment, d.local, d.ifindex, d.overflow, d.marks = 0, [16]byte{}, 0, 0, 0
	for len(b) > 0 {
		var kind controlKind
		var data []byte
		kind, data, b = nextControl(b)
		switch {
		case kind == controlKind{unix.SOL_IPV6, unix.IPV6_PKTINFO} && len(data) >= unix.SizeofInet6Pktinfo:
			d.local = [16]byte(data)
			d.ifindex = binary.NativeEndian.Uint32(data[16:])
		case kind == controlKind{unix.SOL_IP, unix.IP_PKTINFO} && len(data) >= unix.SizeofInet4Pktinfo:
			d.ifindex = binary.NativeEndian.Uint32(data)
			d.local = mapped([4]byte(data[8:]))
		case kind == controlKind{unix.SOL_UDP, unix.UDP_GRO} && len(data) >= 4:
			d.segment = max(int(int32(binary.NativeEndian.Uint32(data))), 0)
		case kind == controlKind{unix.SOL_IP, unix.IP_TOS} && len(data) >= 1:
			d.marks = data[0]
		case kind == controlKind{unix.SOL_IPV6, unix.IPV6_TCLASS} && len(data) >= 4:
			d.marks = byte(binary.NativeEndian.Uint32(data))
		case kind == controlKind{unix.SOL_SOCKET, unix.SO_RXQ_OVFL} && len(data) >= 4:
			d.overflow = binary.NativeEndian.Uint32(data)
		}
	}
}

// controlKind is the level and type of a control message.
type controlKind struct{ level, kind int32 }

// The header of a control message: its length, in a machine word, and its kind.
const (
	controlWord   = 4 << (^uintptr(0) >> 63)
	controlHeader = controlWord + 8
)

// nextControl splits off the first control message of b. What makes no sense is
// the last one, of no kind that there is.
func nextControl(b []byte) (kind controlKind, data, rest []byte) {
	if len(b) < controlHeader {
		return controlKind{}, nil, nil
	}
	size := uint64(binary.NativeEndian.Uint32(b))
	if controlWord == 8 {
		size = binary.NativeEndian.Uint64(b)
	}
	if size < controlHeader || size > uint64(len(b)) {
		return controlKind{}, nil, nil
	}
	kind.level = int32(binary.NativeEndian.Uint32(b[controlWord:]))
	kind.kind = int32(binary.NativeEndian.Uint32(b[controlWord+4:]))
	aligned := min((int(size)+controlWord-1)&^(controlWord-1), len(b))
	return kind, b[controlHeader:size], b[aligned:]
}

func mapped(addr [4]byte) (in6 [16]byte) {
	in6[10], in6[11] = 0xff, 0xff
	copy(in6[12:], addr[:])
	return in6
}

// control is a buffer for control messages to be sent.
type control struct {
	bytes [controlSpace]byte
	used  int
}

// add makes room for one more, and returns where its data goes.
func (c *control) add(level, kind int32, size int) []byte {
	b := c.bytes[c.used:]
	c.used += unix.CmsgSpace(size)
	if controlWord == 8 {
		binary.NativeEndian.PutUint64(b, uint64(controlHeader+size))
	} else {
		binary.NativeEndian.PutUint32(b, uint32(controlHeader+size))
	}
	binary.NativeEndian.PutUint32(b[controlWord:], uint32(level))
	binary.NativeEndian.PutUint32(b[controlWord+4:], uint32(kind))
	return b[controlHeader:][:size]
}

// addSource says which of this machine's addresses a message comes from, and
// by which interface it leaves; 0: by the one that the routes say. ipv6 is of
// the socket: one that is open to both families takes an IPv4 address mapped
// into IPv6.
func (c *control) addSource(ipv6 bool, local [16]byte, ifindex uint32) {
	if ipv6 {
		b := c.add(unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		copy(b, local[:])
		binary.NativeEndian.PutUint32(b[16:], ifindex)
		return
	}
	b := c.add(unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
	binary.NativeEndian.PutUint32(b, ifindex)
	copy(b[4:8], local[12:])
	clear(b[8:])
}

func (c *control) addSegment(size int) {
	binary.NativeEndian.PutUint16(c.add(unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(size))
}

func (c *control) addMarks(ipv6 bool, marks byte) {
	level, kind := int32(unix.SOL_IP), int32(unix.IP_TOS)
	if ipv6 {
		level, kind = unix.SOL_IPV6, unix.IPV6_TCLASS
	}
	binary.NativeEndian.PutUint32(c.add(level, kind, 4), uint32(marks))
}

// sockaddr is a struct sockaddr_in or sockaddr_in6.
type sockaddr [unix.SizeofSockaddrInet6]byte

// put sets it and returns its size. As with addSource, ipv6 is of the socket.
func (a *sockaddr) put(ipv6 bool, addr [16]byte, port uint16, scope uint32) uint32 {
	binary.BigEndian.PutUint16(a[2:], port)
	if !ipv6 {
		binary.NativeEndian.PutUint16(a[:], unix.AF_INET)
		copy(a[4:8], addr[12:])
		clear(a[8:unix.SizeofSockaddrInet4])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(a[:], unix.AF_INET6)
	clear(a[4:8])
	copy(a[8:24], addr[:])
	binary.NativeEndian.PutUint32(a[24:], scope)
	return unix.SizeofSockaddrInet6
}

// get returns what the kernel has put there; IPv4 addresses are mapped into IPv6.
func (a *sockaddr) get() (addr [16]byte, port uint16) {
	if binary.NativeEndian.Uint16(a[:]) == unix.AF_INET {
		addr = mapped([4]byte(a[4:8]))
	} else {
		copy(addr[:], a[8:24])
	}
	return addr, binary.BigEndian.Uint16(a[2:])
}

// receiver is where a loop receives messages.
type receiver struct {
	space     []byte
	headers   [messages]mmsghdr // as they have to be for a call
	iovecs    [messages]unix.Iovec
	names     [messages]sockaddr
	controls  [messages]control
	datagrams [messages]datagram
}

// newReceiver's space is so large that it is only backed by memory as far as
// it has been used. named: it notes who has sent a message.
func newReceiver(named bool) *receiver {
	r := &receiver{space: make([]byte, messages*messageSpace)}
	for i := range r.headers {
		h := &r.headers[i]
		r.iovecs[i].Base = &r.space[i*messageSpace]
		r.iovecs[i].SetLen(64 << 10)
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
		if named {
			h.Name = &r.names[i][0]
		}
		h.Control = &r.controls[i].bytes[0]
		h.reset()
	}
	return r
}

// reset says how much room there is, where the kernel has said how much it took.
func (h *mmsghdr) reset() {
	h.Namelen = unix.SizeofSockaddrInet6
	h.SetControllen(controlSpace)
}

// receive fills datagrams from the given one on, as far as there are messages.
func (r *receiver) receive(fd int32, from, most int) (n int, errno unix.Errno) {
	n, errno = recvmmsg(fd, r.headers[from:from+most])
	for i := from; i < from+n; i++ {
		h, d := &r.headers[i], &r.datagrams[i]
		d.data = r.space[i*messageSpace:][:h.bytes:h.bytes]
		d.cut = h.Flags&unix.MSG_TRUNC != 0
		d.readControl(r.controls[i].bytes[:h.Controllen])
		h.reset()
	}
	return n, errno
}

// sender collects datagrams and sends them with few system calls. Those in a
// row that have one destination and one size are sent as one message, which
// goes through the kernel once.
type sender struct {
	n        int // messages
	pieces   int
	headers  [messages]mmsghdr
	iovecs   [messages]iovec
	names    [messages]sockaddr
	controls [messages]control
	parcels  [messages]parcel
	datas    [messages][]byte // of the iovecs
}

// parcel is what the sender knows of one of its messages.
type parcel struct {
	session *session
	first   int // of datas
	pieces  int
	bytes   int
	count   int // datagrams
	segment int // the size of each of them but the last, which may be shorter
	marks   byte
	full    bool // the last one is not
}

func newSender() *sender {
	s := new(sender)
	for i := range s.headers {
		s.headers[i].Name = &s.names[i][0]
		s.headers[i].Control = &s.controls[i].bytes[0]
	}
	return s
}

// add puts a datagram behind the others. There must be room: as many fit as
// a receiver holds. toClient: of the session, or else to its backend.
func (x *sender) add(s *session, d *datagram, toClient bool) {
	size := len(d.data)
	x.datas[x.pieces] = d.data
	iov := &x.iovecs[x.pieces]
	iov.set(d.data)
	x.pieces++

	if x.n > 0 {
		h, p := &x.headers[x.n-1], &x.parcels[x.n-1]
		if p.session == s && p.full && p.marks == d.marks && d.segment == 0 && size <= p.segment && size > 0 &&
			p.count < segmentsMax && p.bytes+size <= segmentedMax && !s.plain {
			p.pieces++
			p.count++
			p.bytes += size
			p.full = size == p.segment
			h.SetIovlen(p.pieces)
			return
		}
	}

	h, p, c := &x.headers[x.n], &x.parcels[x.n], &x.controls[x.n]
	x.n++
	segment := d.segment
	if segment == 0 || segment > size {
		segment = size
	}
	*p = parcel{
		session: s, first: x.pieces - 1, pieces: 1, bytes: size, count: d.count(), segment: segment, marks: d.marks,
		full: size > 0 && size%segment == 0,
	}
	h.Iov = &iov.Iovec
	h.SetIovlen(1)
	c.used = 0
	if !toClient {
		h.Namelen = 0
		if d.marks != 0 {
			c.addMarks(!s.backend.count.Addr.Addr().Is4(), d.marks)
		}
		return
	}
	h.Namelen = x.names[x.n-1].put(s.socket.ipv6, s.flow.client, uint16(s.flow.port), s.flow.scope)
	c.addSource(s.socket.ipv6, s.flow.local, s.flow.scope)
	if d.marks != 0 {
		c.addMarks(!s.flow.is4(), d.marks)
	}
}

// finish completes the messages, and empties the sender: they can be sent
// until something is added again.
func (x *sender) finish() (n int) {
	for i := range x.n {
		h, c := &x.headers[i], &x.controls[i]
		if p := &x.parcels[i]; p.count > 1 {
			c.addSegment(p.segment)
		}
		h.SetControllen(c.used)
	}
	n = x.n
	x.n, x.pieces = 0, 0
	return n
}

// single has the message of a parcel carry one datagram of it, and nothing else.
func (x *sender) single(i int, data []byte) []mmsghdr {
	h, c := &x.headers[i], &x.controls[i]
	if p := &x.parcels[i]; p.count > 1 && c.used == int(h.Controllen) {
		h.SetControllen(c.used - unix.CmsgSpace(2)) // without the segment, which comes last
	}
	iov := &x.iovecs[x.parcels[i].first]
	iov.set(data)
	h.Iov = &iov.Iovec
	h.SetIovlen(1)
	return x.headers[i : i+1]
}

// each calls f for each datagram of a parcel.
func (x *sender) each(i int, f func(data []byte)) {
	p := &x.parcels[i]
	for _, data := range x.datas[p.first : p.first+p.pieces] {
		for len(data) > p.segment {
			f(data[:p.segment])
			data = data[p.segment:]
		}
		f(data)
	}
}
