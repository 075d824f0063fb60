package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	patternSize = 8 << 20  // what senders send again and again
	sendChunk   = 1 << 20  // at most so much in one call
	recvChunk   = 4 << 20  // discarded in one call at most
	lookEvery   = 64 << 20 // how much is discarded unseen between two looks at the content
	lookSize    = 4096
)

// pattern is the content of bulk transfers: words that say where they are.
func pattern() []byte {
	p := make([]byte, patternSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(i)*0x9e3779b97f4a7c15+1)
	}
	return p
}

// source sends the pattern from the page cache: the processor does not touch the bytes.
type source struct{ file int }

func newSource() (*source, error) {
	fd, err := unix.MemfdCreate("bench-pattern", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	if _, err := unix.Write(fd, pattern()); err != nil {
		return nil, fmt.Errorf("write the pattern: %w", err)
	}
	return &source{file: fd}, nil
}

// fill sends until the socket takes no more.
func (s *source) fill(fd int, offset *int64) syscall.Errno {
	for {
		if *offset >= patternSize {
			*offset = 0
		}
		want := int(min(sendChunk, patternSize-*offset))
		if _, errno := sendfile(fd, s.file, offset, want); errno != 0 {
			if errno == unix.EAGAIN {
				return 0
			}
			return errno
		}
	}
}

// sink receives the pattern, and looks at a page of it now and then.
type sink struct {
	buf     []byte
	pattern []byte
	count   *Counters
}

func newSink(count *Counters) *sink {
	return &sink{buf: make([]byte, recvChunk), pattern: pattern(), count: count}
}

// drain receives all that is there; got is how much this connection has received so far, look when to look next.
// It returns false at the end of the connection.
func (s *sink) drain(fd int, got, look *uint64) (bool, syscall.Errno) {
	for {
		p, flags := s.buf, uintptr(unix.MSG_TRUNC)
		if *got >= *look {
			p, flags = s.buf[:lookSize], 0
		}
		n, errno := recv(fd, p, flags)
		if errno == unix.EAGAIN {
			return true, 0
		}
		if errno != 0 || n == 0 {
			return false, errno
		}
		if flags == 0 {
			s.check(p[:n], *got)
			*look = *got + lookEvery
		}
		*got += uint64(n)
		s.count.Bytes += uint64(n)
		if n < len(p) {
			return true, 0
		}
	}
}

func (s *sink) check(p []byte, offset uint64) {
	for len(p) > 0 {
		want := s.pattern[offset%patternSize:]
		n := min(len(p), len(want))
		if !bytes.Equal(p[:n], want[:n]) {
			s.count.Errors++
			complain("bulk: wrong content within %d bytes after %d", n, offset)
			return
		}
		p, offset = p[n:], offset+uint64(n)
	}
}
