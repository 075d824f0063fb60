package load

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The raw calls do not tell the scheduler that a thread may block. Nothing else runs in these processes, and a switch
// for each of three calls a message is what the generator is to save.

func recv(fd int, p []byte, flags uintptr) (int, syscall.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), flags, 0, 0)
	return int(n), e
}

func send(fd int, p []byte) (int, syscall.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

var epoch = time.Now()

// now is the monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }

const (
	edge   = unix.EPOLLET & 0xffffffff
	in     = unix.EPOLLIN | unix.EPOLLRDHUP | edge
	inOut  = in | unix.EPOLLOUT
	closed = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
)

// poller is an epoll set whose events carry an index.
type poller struct {
	fd     int
	events [256]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) add(fd, index int, events uint32) syscall.Errno {
	e := unix.EpollEvent{Events: events, Fd: int32(index)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// wait returns what has happened, or nothing after the time in milliseconds.
func (p *poller) wait(milliseconds int) []unix.EpollEvent {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), uintptr(milliseconds), 0, 0)
	if errno != 0 {
		return nil // EINTR
	}
	return p.events[:n]
}

// waitFor is wait with a time in nanoseconds; it needs Linux 5.11.
func (p *poller) waitFor(nanoseconds int64) ([]unix.EpollEvent, error) {
	ts := unix.NsecToTimespec(nanoseconds)
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return nil, fmt.Errorf("epoll_pwait2: %w", errno)
	}
	if errno != 0 {
		return nil, nil
	}
	return p.events[:n], nil
}

// alone makes this process the one thread that it is meant to be.
func alone() {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// rawAddr is the same in the form that the kernel reads, for calls that must not allocate.
func rawAddr(a netip.AddrPort) *unix.RawSockaddrInet4 {
	r := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&r.Port))
	port[0], port[1] = byte(a.Port()>>8), byte(a.Port())
	return r
}

func noDelay(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // a socket that is gone already says so when it is used
}

// dial opens a connection, waits for it, and makes it non-blocking.
func dial(to netip.AddrPort, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	if kind == unix.SOCK_STREAM {
		noDelay(fd)
	}
	return fd, unix.SetNonblock(fd, true)
}

// complaints limits what is said about errors: the first ones tell what is wrong, the counter how often.
var complaints = 5

func complain(format string, args ...any) {
	if complaints > 0 {
		complaints--
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}
