package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// socket is a conversation with the kernel, in the network namespace of the
// thread that opened it. The kernel answers at once, so it blocks.
type socket struct {
	fd     int
	buffer []byte
}

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, buffer: make([]byte, 64<<10)} // the kernel sends 32 KB at most
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

func (s *socket) send(b []byte) error {
	return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive returns messages that are good until it is called again.
func (s *socket) receive() (messages, error) {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Another process can send to this socket as well.
		if kernel, ok := from.(*unix.SockaddrNetlink); ok && kernel.Pid == 0 {
			return s.buffer[:n], nil
		}
	}
}

// messages are those of netlink that came together.
type messages []byte

type message struct {
	kind     uint16
	sequence uint32
	payload  []byte
}

// all calls yield for each message, up to one whose length is wrong.
func (b messages) all(yield func(message) bool) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int64(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > int64(len(b)) {
			return
		}
		m := message{
			kind:     binary.NativeEndian.Uint16(b[4:]),
			sequence: binary.NativeEndian.Uint32(b[8:]),
			payload:  b[unix.NLMSG_HDRLEN:size],
		}
		if !yield(m) {
			return
		}
		b = b[min(align(int(size)), len(b)):]
	}
}

// end says whether a message is the last one of an answer, or about a failure.
func (m message) end() (bool, error) {
	if m.kind != unix.NLMSG_DONE && m.kind != unix.NLMSG_ERROR {
		return false, nil
	}
	if len(m.payload) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(m.payload)); errno < 0 {
			return true, unix.Errno(-errno)
		}
	}
	return true, nil
}

// align returns where what follows n bytes begins.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// explain returns the error for people; none if there is nothing to ask, since
// then there is nothing to list or to delete.
func explain(doing string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		err = ErrNotPermitted
	case errors.Is(err, unix.EPROTONOSUPPORT): // no netfilter at all
		return nil
	case errors.Is(err, unix.EINVAL):
		// There is nobody to ask. Whether there is something to ask about is to be
		// seen; older kernels do not show it in a user namespace.
		if _, tracked := number("nf_conntrack_count"); tracked != nil {
			return nil
		}
		err = ErrNoNetlink
	}
	return fmt.Errorf("conntrack: %s: %w", doing, err)
}
