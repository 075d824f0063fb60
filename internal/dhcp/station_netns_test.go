package dhcp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/netnstest"
)

// station is any number of machines at one end of a cable: it sends messages of
// DHCP as they are, and hears all that comes back.
type station struct {
	t      testing.TB
	file   *os.File
	fd     int
	index  int
	mac    net.HardwareAddr
	heard  chan *dhcpv4.DHCPv4
	mu     sync.Mutex
	answer map[netip.Addr]bool // addresses that it has
}

// newStation opens one at eth0 of a namespace.
func newStation(t testing.TB, ns *netnstest.NS) *station {
	t.Helper()
	s := &station{t: t, heard: make(chan *dhcpv4.DHCPv4, 4096), answer: map[netip.Addr]bool{}}
	tt, ok := t.(*testing.T)
	if !ok {
		t.Fatal("in a test only")
	}
	ns.Do(tt, func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		s.index, s.mac = l.Attrs().Index, l.Attrs().HardwareAddr
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
		if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: s.index}); err != nil {
			t.Fatal(err)
		}
	})
	s.file = os.NewFile(uintptr(s.fd), "station")
	t.Cleanup(func() { s.file.Close() })
	go s.hear()
	return s
}

// hear answers ARP for its addresses, and keeps what comes for DHCP clients.
func (s *station) hear() {
	b := make([]byte, 4096)
	for {
		n, err := s.file.Read(b)
		if errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return
		}
		frame := b[:n]
		if n < 14+ipBytes {
			continue
		}
		body := frame[14:]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case unix.ETH_P_ARP:
			target := netip.AddrFrom4([4]byte(body[24:28]))
			s.mu.Lock()
			mine := s.answer[target]
			s.mu.Unlock()
			if mine && body[7] == arpRequest {
				reply := append([]byte{}, body[:6]...)
				reply = append(append(append(reply, 0, arpReply), s.mac...), target.AsSlice()...)
				reply = append(reply, body[8:18]...)
				s.frame(net.HardwareAddr(body[8:14]), unix.ETH_P_ARP, reply)
			}
		case unix.ETH_P_IP:
			if body[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(body[ipBytes+2:]) != dhcpv4.ClientPort {
				continue
			}
			length := int(binary.BigEndian.Uint16(body[2:]))
			if checksum(0, body[:ipBytes]) != 0 || length > len(body) {
				s.t.Errorf("a bad header: % x", body[:ipBytes])
			}
			m, err := dhcpv4.FromBytes(append([]byte{}, body[ipBytes+udpBytes:length]...))
			if err != nil {
				s.t.Errorf("not DHCP: %v", err)
			}
			s.heard <- m
		}
	}
}

func (s *station) frame(to net.HardwareAddr, protocol uint16, packet []byte) {
	frame := binary.BigEndian.AppendUint16(append(append([]byte{}, to...), s.mac...), protocol)
	for {
		err := unix.Sendto(s.fd, append(frame, packet...), 0, &unix.SockaddrLinklayer{Ifindex: s.index, Protocol: swap(protocol)})
		if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
			return
		}
	}
}

// say sends a message as a client does: by unicast if it has an address and knows
// its server.
func (s *station) say(m *dhcpv4.DHCPv4, unicast bool) {
	from, to := netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpv4.ClientPort), netip.AddrPortFrom(everybody, dhcpv4.ServerPort)
	if a := addr4(m.ClientIPAddr); a.IsValid() {
		from = netip.AddrPortFrom(a, dhcpv4.ClientPort)
	}
	if unicast {
		to = netip.AddrPortFrom(addr("10.0.0.1"), dhcpv4.ServerPort)
	}
	s.frame(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, unix.ETH_P_IP, datagram(from, to, m.ToBytes()))
}

// hears waits for an answer; nil: there is none.
func (s *station) hears(wait time.Duration) *dhcpv4.DHCPv4 {
	select {
	case m := <-s.heard:
		return m
	case <-time.After(wait):
		return nil
	}
}
