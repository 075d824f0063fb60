package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode is who may ask: our user and our group. (On a socket it is the
// right to write that counts, unix(7).)
const socketMode = 0o660

// listenSocket makes a Unix socket. One that is left from a process that has
// ended is replaced, one that somebody listens at is not.
func listenSocket(path string) (*net.UnixListener, error) {
	if err := clearAway(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		// Before it has a name: nobody may be quicker than the chmod below. The
		// kernel gives the file what the socket has of its mode (unix_bind_bsd).
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	listener, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return nil, err
	}
	l := listener.(*net.UnixListener)
	l.SetUnlinkOnClose(false) // or it would go with an upgrade
	if err := os.Chmod(path, socketMode); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// clearAway removes a socket that nobody listens at, and says what else is in
// the way.
func clearAway(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // or its directory does not; that is said by who binds
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something else than a socket")
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).Dial("unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return errors.New("another process listens there")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("there is a socket, and whether somebody listens at it is not known: %w", err)
	}
	return os.Remove(path)
}

// socketFile is the name of a socket in the file system, by which it is found.
type socketFile struct {
	path          string // empty: it is no Unix socket
	device, inode uint64
}

// fileOf is what has the path now.
func fileOf(path string) socketFile {
	f := socketFile{path: path}
	if info, err := os.Lstat(path); err == nil {
		s := info.Sys().(*syscall.Stat_t)
		f.device, f.inode = s.Dev, s.Ino
	}
	return f
}

// there says whether the path still leads to this socket: its directory may have
// been emptied.
func (f socketFile) there() bool {
	return f.path == "" || f.inode != 0 && fileOf(f.path) == f
}

// remove takes the name away, unless it is another socket's.
func (f socketFile) remove() {
	if f.path != "" && f.there() {
		_ = os.Remove(f.path)
	}
}
