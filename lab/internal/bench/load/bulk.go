package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	patternSize = 8 << 20  // what senders send again and again
	sendChunk   = 1 << 20  // at most so much in one call; patternSize is a multiple of it
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

// source sends the pattern without copying it: a pipe takes references to the pages, and the socket takes them over.
type source struct {
	memory []byte
	pipes  map[int]*pipe
}

// pipe is what a connection has in front of it: the kernel takes from it what the socket has room for.
type pipe struct {
	r, w   int
	inside int
	offset int // in the pattern, of what goes in next
}

func newSource() (*source, error) {
	memory, err := unix.Mmap(-1, 0, patternSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	// Single pages, as a network card delivers them; a kernel without huge pages refuses, and is right.
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE)
	copy(memory, pattern())
	return &source{memory: memory, pipes: map[int]*pipe{}}, nil
}

func (s *source) open(fd int) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, sendChunk); err != nil {
		return fmt.Errorf("pipe of %d bytes: %w", sendChunk, err)
	}
	s.pipes[fd] = &pipe{r: p[0], w: p[1]}
	return nil
}

func (s *source) close(fd int) {
	if p := s.pipes[fd]; p != nil {
		closeFD(p.r)
		closeFD(p.w)
		delete(s.pipes, fd)
	}
}

// fill sends until the socket takes no more.
func (s *source) fill(fd int) syscall.Errno {
	p := s.pipes[fd]
	for {
		if p.inside == 0 {
			iov := unix.Iovec{Base: &s.memory[p.offset]}
			iov.SetLen(min(sendChunk, patternSize-p.offset))
			n, _, errno := unix.RawSyscall6(unix.SYS_VMSPLICE, uintptr(p.w), uintptr(unsafe.Pointer(&iov)), 1, unix.SPLICE_F_NONBLOCK, 0, 0)
			if errno != 0 {
				return errno
			}
			p.inside = int(n)
			p.offset = (p.offset + int(n)) % patternSize
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(p.r), 0, uintptr(fd), 0, uintptr(p.inside), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if errno == unix.EAGAIN {
			return 0
		}
		if errno != 0 {
			return errno
		}
		p.inside -= int(n)
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
