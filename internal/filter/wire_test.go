package filter

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// Packets are made by hand here, sent as they are, and known by a number in
// them, whatever has become of their addresses and ports.

// sent is a packet on the wire.
type sent struct {
	id                 uint32
	src, dst           netip.Addr
	protocol           edge.Protocol // empty: number
	number             byte
	sport, dport       uint16
	icmpType, icmpCode byte
	tcpFlags           byte
	hops               byte
	inner              []byte // of an error of ICMP: the packet that it is about
	acks               uint32 // of TCP: the sequence number that it has seen
}

const (
	syn = 0x02
	ack = 0x10
)

var numbers = map[edge.Protocol]byte{edge.TCP: unix.IPPROTO_TCP, edge.UDP: unix.IPPROTO_UDP, edge.SCTP: 132}

func (p sent) header() byte {
	switch {
	case p.protocol == config.ICMP && p.src.Is4():
		return unix.IPPROTO_ICMP
	case p.protocol == config.ICMP:
		return unix.IPPROTO_ICMPV6
	case p.protocol == "":
		return p.number
	}
	return numbers[p.protocol]
}

// idAt is where the number is behind the IP header.
func idAt(protocol, icmpType byte) int {
	switch protocol {
	case unix.IPPROTO_TCP:
		return 4 // the sequence number
	case unix.IPPROTO_UDP, unix.IPPROTO_IGMP:
		return 8
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if protocol == unix.IPPROTO_ICMP && icmpType == 3 || protocol == unix.IPPROTO_ICMPV6 && icmpType == 1 {
			return 4 // behind it is the packet that it is about
		}
		return 8 // the identifier of an echo may be translated
	case 132:
		return 16 // the initiate tag
	}
	return -1
}

// bytes is the packet, from its IP header.
func (p sent) bytes() []byte {
	var b []byte
	be := binary.BigEndian
	switch p.header() {
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		b[12], b[13] = 5<<4, p.tcpFlags
		be.PutUint16(b[14:], 65535)
		if p.acks != 0 {
			be.PutUint32(b[8:], p.acks+1)
		}
	case unix.IPPROTO_UDP:
		b = make([]byte, 12)
		be.PutUint16(b[4:], uint16(len(b)))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b = append(make([]byte, 24), p.inner...)
		if p.inner != nil {
			b = append(b[:8], p.inner...)
		}
		b[0], b[1] = p.icmpType, p.icmpCode
		if p.inner == nil {
			be.PutUint16(b[4:], uint16(p.id)) // of an echo: its identifier
		}
	case unix.IPPROTO_IGMP:
		b = make([]byte, 12)
		b[0] = 0x16
	case 132:
		b = make([]byte, 32)
		b[12] = 1 // INIT
		be.PutUint16(b[14:], 20)
		be.PutUint32(b[20:], 65536)
		be.PutUint16(b[24:], 1)
		be.PutUint16(b[26:], 1)
	}
	be.PutUint32(b[idAt(p.header(), p.icmpType):], p.id)
	switch p.protocol {
	case edge.TCP, edge.UDP, edge.SCTP:
		be.PutUint16(b, p.sport)
		be.PutUint16(b[2:], p.dport)
	}
	pseudo := slices.Concat(p.src.AsSlice(), p.dst.AsSlice(), []byte{0, 0, 0, p.header()}, be.AppendUint32(nil, uint32(len(b))))
	switch p.header() {
	case unix.IPPROTO_TCP:
		be.PutUint16(b[16:], checksum(pseudo, b))
	case unix.IPPROTO_UDP:
		be.PutUint16(b[6:], checksum(pseudo, b))
	case unix.IPPROTO_ICMP, unix.IPPROTO_IGMP:
		be.PutUint16(b[2:], checksum(b))
	case unix.IPPROTO_ICMPV6:
		be.PutUint16(b[2:], checksum(pseudo, b))
	case 132:
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	}
	if p.src.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, p.hops, p.header()
		be.PutUint16(h[2:], uint16(20+len(b)))
		copy(h[12:], p.src.AsSlice())
		copy(h[16:], p.dst.AsSlice())
		be.PutUint16(h[10:], checksum(h))
		return append(h, b...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, p.header(), p.hops
	be.PutUint16(h[4:], uint16(len(b)))
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	return append(h, b...)
}

// checksum is that of the Internet (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	b := slices.Concat(parts...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arrival is a packet that has come somewhere.
type arrival struct {
	id       uint32
	at       string // the interface of the edge whose cable it came by; empty: the edge itself
	src, dst netip.Addr
	packet   []byte // from its IP header; nil at the edge of IPv6
}

// wire is all that can be seen of packets: what comes to each host, and to the
// edge itself.
type wire struct {
	arrivals chan arrival
	fences   chan string
	hosts    map[string]*host // by the interface of the edge
	closed   atomic.Bool
	readers  sync.WaitGroup
}

// host is at the end of a cable.
type host struct {
	device    string // of the edge
	fd, index int
	mac, edge net.HardwareAddr
	ipv4      netip.Addr // of the edge
	ns        *netnstest.NS
}

const frameHeader = 14

// newWire listens everywhere.
func newWire(t *testing.T, hosts []*host) *wire {
	w := &wire{arrivals: make(chan arrival, 1<<16), fences: make(chan string, 1<<10), hosts: map[string]*host{}}
	for _, h := range hosts {
		w.hosts[h.device] = h
		h.ns.Do(t, func() {
			device, err := net.InterfaceByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			h.mac, h.index = device.HardwareAddr, device.Index
			h.fd = rawSocket(t, unix.AF_PACKET, int(htons(unix.ETH_P_ALL)))
			if err := unix.Bind(h.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: h.index}); err != nil {
				t.Fatal(err)
			}
		})
		device, err := net.InterfaceByName(h.device)
		if err != nil {
			t.Fatal(err)
		}
		h.edge = device.HardwareAddr
		w.read(h.fd, func(b []byte, from unix.Sockaddr) {
			if at, ok := from.(*unix.SockaddrLinklayer); !ok || at.Pkttype == unix.PACKET_OUTGOING || len(b) < frameHeader {
				return
			}
			if binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_ARP {
				if len(b) >= 42 && b[21] == 2 {
					w.fences <- h.device
				}
				return
			}
			w.saw(h.device, b[frameHeader:])
		})
	}
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_IGMP, 132} {
		w.read(rawSocket(t, unix.AF_INET, protocol), func(b []byte, _ unix.Sockaddr) { w.saw("", b) })
	}
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, 132} {
		w.read(rawSocket(t, unix.AF_INET6, int(protocol)), func(b []byte, from unix.Sockaddr) {
			if at := idAt(protocol, b[0]); len(b) >= at+4 {
				src := netip.AddrFrom16(from.(*unix.SockaddrInet6).Addr)
				w.arrivals <- arrival{id: binary.BigEndian.Uint32(b[at:]), src: src}
			}
		})
	}
	t.Cleanup(func() { w.closed.Store(true); w.readers.Wait() })
	return w
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func rawSocket(t *testing.T, family, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	return fd
}

func (w *wire) read(fd int, take func([]byte, unix.Sockaddr)) {
	w.readers.Go(func() {
		for !w.closed.Load() {
			b := make([]byte, 2048)
			if n, from, err := unix.Recvfrom(fd, b, 0); err == nil && n > 0 {
				take(b[:n], from)
			}
		}
	})
}

// saw reads a packet from its IP header.
func (w *wire) saw(at string, b []byte) {
	if len(b) < 20 {
		return
	}
	a := arrival{at: at, packet: b}
	var rest []byte
	var protocol byte
	switch b[0] >> 4 {
	case 4:
		size := int(b[0]&15) * 4
		if len(b) < size+4 {
			return
		}
		a.src, _ = netip.AddrFromSlice(b[12:16])
		a.dst, _ = netip.AddrFromSlice(b[16:20])
		protocol, rest = b[9], b[size:]
	case 6:
		if len(b) < 44 {
			return
		}
		a.src, _ = netip.AddrFromSlice(b[8:24])
		a.dst, _ = netip.AddrFromSlice(b[24:40])
		protocol, rest = b[6], b[40:]
	}
	isAnswer := protocol == unix.IPPROTO_ICMP && (rest[0] == 0 || rest[0] == 14) || protocol == unix.IPPROTO_ICMPV6 && rest[0] == 129
	if i := idAt(protocol, rest[0]); i >= 0 && !isAnswer && len(rest) >= i+4 {
		a.id = binary.BigEndian.Uint32(rest[i:])
		w.arrivals <- a
	}
}

// send puts a packet on the cable of an interface.
func (w *wire) send(t *testing.T, device string, p sent) {
	t.Helper()
	h := w.hosts[device]
	kind := uint16(unix.ETH_P_IP)
	to := slices.Clone(h.edge)
	b := p.bytes()
	if p.src.Is6() {
		kind = unix.ETH_P_IPV6
	}
	if p.dst.IsMulticast() {
		a := p.dst.AsSlice()
		if p.dst.Is4() {
			to = net.HardwareAddr{1, 0, 0x5e, a[1] & 0x7f, a[2], a[3]}
		} else {
			to = append(net.HardwareAddr{0x33, 0x33}, a[12:]...)
		}
	}
	h.put(t, slices.Concat(to, h.mac, binary.BigEndian.AppendUint16(nil, kind), b))
}

func (h *host) put(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(h.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: h.index, Halen: 6}); err != nil {
		t.Fatal(err)
	}
}

// fence waits until the edge has answered each host something that came behind
// all packets: it is done with those.
func (w *wire) fence(t *testing.T) {
	t.Helper()
	for _, h := range w.hosts {
		own := h.ipv4.As4()
		own[3] = 2
		h.put(t, slices.Concat(h.edge, h.mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, h.mac, own[:], make([]byte, 6), h.ipv4.AsSlice(), make([]byte, 18)))
	}
	for range w.hosts {
		<-w.fences
	}
}
