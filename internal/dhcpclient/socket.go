package dhcpclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var broadcastMAC = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// answers lets in UDP to the port of DHCP clients, and nothing of what else an
// interface has to do: classic BPF, for packets of IPv4.
var answers = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protocolUDP, Jf: 4},
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: clientPort, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
	{Code: unix.BPF_RET | unix.BPF_K},
}

// packets is a socket for packets of one protocol of an interface, without their
// Ethernet headers. It hears what comes in whatever addresses the machine has, and
// before any firewall.
type packets struct {
	file  *os.File
	fd    int
	index int
	kind  uint16
}

func openPackets(index int, kind uint16) (*packets, error) {
	// By protocol 0 it hears nothing until the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, errors.New("it takes CAP_NET_RAW")
	}
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errors.New("it takes AF_PACKET: with systemd, gatehouse.service.d/net-admin.conf gives it")
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if kind == unix.ETH_P_IP {
		program := unix.SockFprog{Len: uint16(len(answers)), Filter: &answers[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("filter packets: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: onWire(kind), Ifindex: index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind to the interface: %w", err)
	}
	return &packets{os.NewFile(uintptr(fd), "packet"), fd, index, kind}, nil
}

func onWire(kind uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, kind))
}

func (p *packets) close() { _ = p.file.Close() }

// broadcast does not wait. It is not for after close, or beside it.
func (p *packets) broadcast(b []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: onWire(p.kind), Ifindex: p.index, Halen: 6}
	copy(to.Addr[:], broadcastMAC[:])
	return unix.Sendto(p.fd, b, unix.MSG_DONTWAIT, to)
}

// receive calls heard with each packet until the socket is closed.
func (p *packets) receive(heard func([]byte)) {
	b := make([]byte, 4096)
	for {
		n, err := p.file.Read(b)
		switch {
		case errors.Is(err, unix.ENETDOWN): // once for each time that it goes down
			continue
		case err != nil:
			return
		}
		heard(b[:n])
	}
}

// unicast sends a message to a server, from the address that it has given.
func unicast(ctx context.Context, link string, from, to netip.Addr, message []byte) (net.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var errs error
		err := c.Control(func(fd uintptr) {
			errs = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.BindToDevice(int(fd), link))
		})
		return errors.Join(err, errs)
	}}
	c, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(from, clientPort).String())
	if err != nil {
		return nil, err
	}
	if _, err := c.WriteTo(message, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, serverPort))); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

const (
	// An address is asked for so often, so far apart; and so long is waited for the
	// last answer. RFC 5227 §1.1 takes seconds, in which nothing could be reached here.
	probes    = 3
	probeGap  = 100 * time.Millisecond
	probeWait = 150 * time.Millisecond

	arpBytes             = 28
	arpRequest, arpReply = 1, 2
)

// Holder finds out who else on an interface's cable has an address, by ARP, without
// telling anybody anything. It is empty if nobody answers.
func Holder(ctx context.Context, index int, mac [6]byte, addr netip.Addr) (who string, err error) {
	p, err := openPackets(index, unix.ETH_P_ARP)
	if err != nil {
		return "", err
	}
	found := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.receive(func(b []byte) {
			if other, ok := claims(b, addr, mac); ok {
				select {
				case found <- other:
				default:
				}
			}
		})
	}()
	defer func() { p.close(); <-done }()
	for i := range probes {
		if err := p.broadcast(arp(arpRequest, mac, netip.IPv4Unspecified(), addr)); err != nil {
			return "", err
		}
		wait := probeGap
		if i == probes-1 {
			wait = probeWait
		}
		select {
		case who := <-found:
			return who, nil
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(wait):
		}
	}
	return "", nil
}

// announce tells neighbours where an address is now (RFC 5227 §2.3).
func announce(index int, mac [6]byte, addr netip.Addr) error {
	p, err := openPackets(index, unix.ETH_P_ARP)
	if err != nil {
		return err
	}
	defer p.close()
	return p.broadcast(arp(arpRequest, mac, addr, addr))
}

// arp is a message of RFC 826.
func arp(op uint16, mac [6]byte, sender, target netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16(nil, unix.ARPHRD_ETHER)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac[:]...), sender.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}

// claims says whether a message says that somebody else has the address.
func claims(b []byte, addr netip.Addr, own [6]byte) (who string, ok bool) {
	header := []byte{0, unix.ARPHRD_ETHER, unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff, 6, 4}
	if len(b) < arpBytes || !bytes.Equal(b[:len(header)], header) {
		return "", false
	}
	op := binary.BigEndian.Uint16(b[6:])
	mac, sender := [6]byte(b[8:14]), netip.AddrFrom4([4]byte(b[14:18]))
	if op != arpRequest && op != arpReply || sender != addr || mac == own {
		return "", false
	}
	return net.HardwareAddr(mac[:]).String(), true
}
