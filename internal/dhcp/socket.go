package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// port is where machines are heard on one interface, and answered.
type port struct {
	device Device       // as it was when it was opened: its Addr may be another one by now
	udp    *net.UDPConn // hears, and sends what has a way

	closing sync.RWMutex // against a descriptor that is somebody else's by now
	frames  int          // a packet socket that only sends; -1: it is closed
}

// openPort listens on an interface, and on nothing else. Another process may have
// the port there at the same time, which is what takes this one's place.
func openPort(d Device) (*port, error) {
	p := &port{device: d, frames: -1}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.BindToDevice(int(fd), d.Name),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1),
				// A thousand machines that are switched on at once.
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer),
			)
		})
		return errors.Join(err, failed)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", fmt.Sprintf("0.0.0.0:%d", dhcpv4.ServerPort))
	if err != nil {
		return nil, err
	}
	p.udp = conn.(*net.UDPConn)
	// By protocol 0 it hears nothing.
	p.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = p.udp.Close()
		return nil, noPackets(err)
	}
	return p, nil
}

// noPackets is why there is no packet socket.
func noPackets(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return errors.New("it takes CAP_NET_RAW")
	case errors.Is(err, unix.EAFNOSUPPORT):
		return errors.New("it takes packet sockets (systemd: RestrictAddressFamilies=AF_PACKET, as in net-admin.conf)")
	}
	return fmt.Errorf("open a packet socket: %w", err)
}

const receiveBuffer = 1 << 20

func (p *port) close() {
	_ = p.udp.Close()
	p.closing.Lock()
	defer p.closing.Unlock()
	_ = unix.Close(p.frames)
	p.frames = -1
}

// receive waits for a message. dst is where it was sent to.
func (p *port) receive(b []byte) (n int, src, dst netip.Addr, err error) {
	oob := make([]byte, 128)
	n, oobn, _, from, err := p.udp.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return 0, src, dst, err
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range messages {
			// struct in_pktinfo: the interface, the local address, the one in the header (ip(7)).
			if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12 {
				dst = netip.AddrFrom4([4]byte(m.Data[8:12]))
			}
		}
	}
	return n, from.Addr().Unmap(), dst, nil
}

// send sends a reply to where it is to go.
func (p *port) send(reply *dhcpv4.DHCPv4, to Destination) error {
	message := reply.ToBytes()
	if to.Way == ByRoute {
		info := unix.Inet4Pktinfo{Spec_dst: to.From.As4()}
		_, _, err := p.udp.WriteMsgUDPAddrPort(message, unix.PktInfo4(&info), to.Addr)
		if err != nil { // the address may be one of a relay agent's, and not this machine's
			_, err = p.udp.WriteToUDPAddrPort(message, to.Addr)
		}
		return err
	}
	hardware := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if to.Way == ToHardware && len(reply.ClientHWAddr) == len(hardware) {
		hardware = reply.ClientHWAddr
	}
	return p.frame(unix.ETH_P_IP, hardware, datagram(netip.AddrPortFrom(to.From, dhcpv4.ServerPort), to.Addr, message))
}

// frame sends a packet to a hardware address.
func (p *port) frame(protocol uint16, to net.HardwareAddr, packet []byte) error {
	sa := &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: p.device.Index, Halen: uint8(len(to))}
	copy(sa.Addr[:], to)
	p.closing.RLock()
	defer p.closing.RUnlock()
	return unix.Sendto(p.frames, packet, 0, sa)
}

// swap puts a number in the order of the network.
func swap(protocol uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
}
