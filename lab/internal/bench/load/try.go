package load

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Try tells whether a target answers: whether it takes a connection or, at the port for datagrams, sends one back.
func Try(to netip.AddrPort) error {
	kind := unix.SOCK_STREAM
	if to.Port() == UDPPort {
		kind = unix.SOCK_DGRAM
	}
	fd, err := dial(to, kind)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if kind == unix.SOCK_STREAM {
		return nil
	}
	if _, err := unix.Write(fd, []byte("there?")); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(pfd, 100); n == 0 || err != nil {
		return errors.Join(errors.New("no datagram came back"), err)
	}
	_, err = unix.Read(fd, make([]byte, 64))
	return err
}
