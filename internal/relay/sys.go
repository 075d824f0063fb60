package relay

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the hot paths, made without telling Go's scheduler:
// their descriptors do not block, so there is nothing it could do meanwhile,
// and telling it costs more than some of the calls. Unsafe is used here and in
// sys_udp.go only, to pass the addresses of buffers: the system calls do not
// keep them.

// read is recv(2), which is cheaper than read(2) by what the file layer does.
// n is never negative.
func read(fd int32, p []byte) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	return count(r, errno)
}

// peek is read that leaves the bytes where they are.
func peek(fd int32, p []byte) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_PEEK, 0, 0)
	return count(r, errno)
}

// write is send(2) with MSG_NOSIGNAL: a peer that is gone is an error, not a signal.
func write(fd int32, p []byte) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	return count(r, errno)
}

// splice is splice(2), which moves what it can at once.
func splice(from, to int32, size int) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(size), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	return count(r, errno)
}

func count(r uintptr, errno unix.Errno) (int, unix.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return int(r), 0
}

// epollWait is epoll_wait(2), with a timeout in milliseconds that must be short.
// There is one error: EINTR, and no event is lost by it.
func epollWait(epoll int, events []unix.EpollEvent, timeout int) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	return count(r, errno)
}

func epollAdd(epoll, fd int, events uint32, serial int32) error {
	e := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: serial}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func epollChange(epoll int, fd int32, events uint32, serial int32) {
	e := unix.EpollEvent{Events: events, Fd: fd, Pad: serial}
	_, _, _ = unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_MOD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

// accept is accept4(2). The address is without what the socket's family adds
// to it: ::ffff:10.0.0.1 is 10.0.0.1, and fe80::1%eth0 is fe80::1 (a prefix
// with a zone contains nothing).
func accept(listener int) (fd int32, from netip.AddrPort, errno unix.Errno) {
	var raw unix.RawSockaddrInet6 // the larger one
	size := uint32(unsafe.Sizeof(raw))
	r, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	if raw.Family == unix.AF_INET {
		raw4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&raw))
		return int32(r), netip.AddrPortFrom(netip.AddrFrom4(raw4.Addr), swapped(raw4.Port)), 0
	}
	return int32(r), netip.AddrPortFrom(netip.AddrFrom16(raw.Addr).Unmap(), swapped(raw.Port)), 0
}

// connect is connect(2).
func connect(fd int32, to netip.AddrPort) unix.Errno {
	if to.Addr().Is4() {
		raw := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(to.Port()), Addr: to.Addr().As4()}
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unsafe.Sizeof(raw))
		return errno
	}
	raw := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: swapped(to.Port()), Addr: to.Addr().As16()}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unsafe.Sizeof(raw))
	return errno
}

// bindTransparent has a socket that is not connected yet speak from the
// client's address. Its port is chosen with the connect, which may be one that
// another connection of the client has to another backend. Without
// CAP_NET_ADMIN or CAP_NET_RAW the error is EPERM.
func bindTransparent(fd int32, client netip.Addr) unix.Errno {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if !client.Is4() {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if errno := setOption(fd, level, option, 1); errno != 0 {
		return errno
	}
	setOption(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if client.Is4() {
		raw := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: client.As4()}
		_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unsafe.Sizeof(raw))
		return errno
	}
	raw := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: client.As16()}
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&raw)), unsafe.Sizeof(raw))
	return errno
}

// swapped is a port between the machine's byte order and the network's.
func swapped(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// streamSocket is socket(2) for TCP, which does not block, and does not wait
// for more to send.
func streamSocket(to netip.Addr) (fd int32, errno unix.Errno) {
	family := unix.AF_INET
	if !to.Is4() {
		family = unix.AF_INET6
	}
	r, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	setOption(int32(r), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return int32(r), 0
}

func setOption(fd int32, level, option int, value int32) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

func shutdownWrite(fd int32) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

func closeFD(fd int32) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// abort closes a socket by a reset: its peer learns at once that the
// connection has failed, and does not take it for a complete one.
func abort(fd int32) {
	linger := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	closeFD(fd)
}

// socketError is why a connect has failed.
func socketError(fd int32) unix.Errno {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return unix.ECONNRESET
	case n == 0:
		return unix.ECONNREFUSED // has been reported already
	}
	return unix.Errno(n)
}

// atMark says whether what is to be read next of a socket is urgent.
func atMark(fd int32) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCATMARK)
	return err == nil && n != 0
}

// unsent is how many bytes the peer of a socket has not acknowledged.
func unsent(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// unheard is for how long a peer that has something to answer has been silent.
func unheard(fd int32) time.Duration {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return silentFor(info)
}

// silentFor is unheard. A peer that keeps its window closed is asked ever more seldom whether it
// still does, in the end every two minutes: one question without an answer may
// be on its way. Data is a sign of life, and is not counted as an answer.
func silentFor(info *unix.TCPInfo) time.Duration {
	if info.Unacked == 0 && info.Probes < 2 {
		return 0
	}
	return time.Duration(min(info.Last_ack_recv, info.Last_data_recv)) * time.Millisecond
}

// unmoved is for how long the kernel has neither sent nor received a byte.
func unmoved(fd int32) time.Duration {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return math.MaxInt64
	}
	return time.Duration(min(info.Last_data_sent, info.Last_data_recv)) * time.Millisecond
}

func keepAlive(fd int32) {
	setOption(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepaliveIdle)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepaliveInterval)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveProbes)
}
