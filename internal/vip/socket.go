package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// errBusy is why a frame was not sent that may be sent later.
var errBusy = errors.New("the interface has no room for a frame")

// socket sends frames by one interface, and receives those of ARP or of IPv6
// neighbour discovery.
type socket struct {
	file *os.File
	fd   int
}

// openSocket opens one for an Ethernet protocol, ETH_P_ARP or ETH_P_IPV6. Such a
// socket costs what comes in by that protocol a few instructions, and what goes
// out nothing.
func openSocket(index int, protocol uint16) (*socket, error) {
	// By protocol 0 it hears nothing until the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, errors.New("it takes CAP_NET_RAW")
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	fail := func(what string, err error) (*socket, error) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if protocol == unix.ETH_P_IPV6 {
		program := unix.SockFprog{Len: uint16(len(neighbourDiscovery)), Filter: &neighbourDiscovery[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			return fail("filter frames", err)
		}
		// Until the address is on the interface, nobody listens to the group that
		// others ask in.
		mreq := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_ALLMULTI}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &mreq); err != nil {
			return fail("listen to groups", err)
		}
	}
	onWire := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: onWire, Ifindex: index}); err != nil {
		return fail("bind to the interface", err)
	}
	return &socket{os.NewFile(uintptr(fd), "packet"), fd}, nil
}

func (s *socket) close() { _ = s.file.Close() }

// send does not wait. It is not for after close, or beside it.
func (s *socket) send(frame []byte) error {
	err := unix.Send(s.fd, frame, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
		return errBusy
	}
	return err
}

// receive calls heard for each claim until the socket is closed.
func (s *socket) receive(heard func(claim)) {
	frame := make([]byte, 2048) // of a longer one the rest is of no interest
	for {
		n, err := s.file.Read(frame)
		switch {
		case errors.Is(err, unix.ENETDOWN): // once for each time that it goes down
			continue
		case err != nil:
			return
		}
		if c, ok := parse(frame[:n]); ok {
			heard(c)
		}
	}
}

func hardware(mac [hardwareBytes]byte) string { return net.HardwareAddr(mac[:]).String() }
