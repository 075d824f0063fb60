package relay

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls that only UDP makes, as those in sys.go. Nothing here
// blocks: each call says so itself, whatever the descriptor's own mode, which
// is shared with the process that a socket was handed over by.

// mmsghdr is struct mmsghdr. Its pointers go to buffers of a receiver or a
// sender, which outlive the call.
type mmsghdr struct {
	unix.Msghdr
	bytes uint32 // received
}

// iovec is struct iovec.
type iovec struct{ unix.Iovec }

// set has it stand for p, which may be empty.
func (v *iovec) set(p []byte) {
	v.Base = unsafe.SliceData(p)
	v.SetLen(len(p))
}

// recvmmsg is recvmmsg(2): it returns how many messages there were.
func recvmmsg(fd int32, m []mmsghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
	return count(r, errno)
}

// sendmmsg is sendmmsg(2): it returns how many messages were sent, and an
// error only if the first one was not.
func sendmmsg(fd int32, m []mmsghdr) (n int, errno unix.Errno) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return count(r, errno)
}

// send is send(2) of one datagram, which may be empty.
func send(fd int32, p []byte) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return errno
}

// recverr takes one entry from a socket's queue of errors: how much of the
// datagram that met it there is, and of what is said about it.
func recverr(fd int32, datagram, control []byte) (n, controls int, errno unix.Errno) {
	iov := unix.Iovec{Base: unsafe.SliceData(datagram)}
	iov.SetLen(len(datagram))
	m := unix.Msghdr{Iov: &iov, Control: unsafe.SliceData(control)}
	m.SetIovlen(1)
	m.SetControllen(len(control))
	r, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, 0, errno
	}
	return min(int(r), len(datagram)), int(m.Controllen), 0
}

// datagramSocket is socket(2) for UDP.
func datagramSocket(family int) (fd int32, errno unix.Errno) {
	r, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int32(r), 0
}

// familyOf is the address family that an address needs.
func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dropped is how many datagrams a socket has had no room for.
func dropped(fd int32) uint32 {
	var info [9]uint32 // SK_MEMINFO_DROPS is the last one
	size := uint32(unsafe.Sizeof(info))
	_, _, _ = unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info[8]
}
