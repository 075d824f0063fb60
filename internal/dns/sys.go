package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr. Its pointers go to buffers that outlive the calls.
type mmsghdr struct {
	unix.Msghdr
	bytes uint32 // received
}

// recvmmsg is recvmmsg(2): it returns how many messages there were.
func recvmmsg(fd uintptr, m []mmsghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// sendmmsg is sendmmsg(2): it returns how many messages were sent, and an error
// only if the first one was not.
func sendmmsg(fd uintptr, m []mmsghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// envelope is one datagram with the buffers of all that is said about it. What
// a question's control message says (to which address of ours it came) is what
// an answer's has to say (from which it goes).
type envelope struct {
	name    [unix.SizeofSockaddrInet6]byte
	control [48]byte // IPV6_PKTINFO takes 40, IP_PKTINFO 32
	iov     unix.Iovec
	data    [2048]byte
}

// point has m stand for the envelope.
func (e *envelope) point(m *mmsghdr) {
	m.Name, m.Namelen = &e.name[0], uint32(len(e.name))
	m.Control = &e.control[0]
	m.SetControllen(len(e.control))
	e.iov.Base = &e.data[0]
	e.iov.SetLen(len(e.data))
	m.Iov = &e.iov
	m.SetIovlen(1)
	m.Flags = 0
}

// client is who has sent it.
func (e *envelope) client(nameLength uint32) (netip.Addr, bool) {
	switch binary.NativeEndian.Uint16(e.name[:]) {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(e.name[4:8])), nameLength >= 8
	case unix.AF_INET6:
		return netip.AddrFrom16([16]byte(e.name[8:24])).Unmap(), nameLength >= 24
	}
	return netip.Addr{}, false
}

// port of who has sent it. One that is 0 cannot be answered.
func (e *envelope) port() uint16 { return binary.BigEndian.Uint16(e.name[2:]) }

// openUDP makes a socket for one address of a device, or all of them, with
// others beside it that share its port.
func openUDP(d door) (file *os.File, err error) {
	const kind = unix.SOCK_DGRAM | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	fd, err := -1, error(unix.EAFNOSUPPORT)
	v6 := &unix.SockaddrInet6{Port: int(d.port)}
	v4 := &unix.SockaddrInet4{Port: int(d.port)}
	var at unix.Sockaddr = v6
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO // also of IPv4, by mapped addresses
	if d.addr.Is4() {
		v4.Addr = d.addr.As4()
	} else {
		if d.addr.IsValid() {
			v6.Addr = d.addr.As16()
		}
		fd, err = unix.Socket(unix.AF_INET6, kind, 0)
	}
	if errors.Is(err, unix.EAFNOSUPPORT) && !d.addr.Is6() {
		fd, err = unix.Socket(unix.AF_INET, kind, 0)
		at, level, option = v4, unix.IPPROTO_IP, unix.IP_PKTINFO
	}
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := setUp(fd, d.device); err != nil {
		return nil, err
	}
	if level == unix.IPPROTO_IPV6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return nil, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt PKTINFO", err)
	}
	// Answers are not fragmented by a path MTU that somebody has made up.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_OMIT)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	if err := unix.Bind(fd, at); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "dns"), nil
}

// setUp binds a socket to a device, beside those of other loops and of a process that goes.
func setUp(fd int, device string) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
	}
	if device != "" {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device); err != nil {
			return os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
		}
	}
	return nil
}

// control is setUp for sockets that the net package makes.
func control(device string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		if err := c.Control(func(fd uintptr) { failed = setUp(int(fd), device) }); err != nil {
			return err
		}
		return failed
	}
}
