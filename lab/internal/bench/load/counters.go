package load

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counters is what a generator tells while it runs. One process writes and another one reads: each field is a machine
// word, so a reader sees a value that was true a moment ago.
type Counters struct {
	Ops      uint64 // messages that came back, or connections made, used and closed
	Bytes    uint64 // bulk: what has arrived
	Errors   uint64 // wrong content, refused, reset, stalled
	Lost     uint64 // datagrams that did not come back in time
	Open     uint64 // idle: connections that have carried a message and are still there
	Expected uint64 // idle: how many there shall be, written by the reader
	Latency  Histogram
}

// NewCounters makes counters that can be handed to another process: pass the file to it.
func NewCounters() (*Counters, *os.File, error) {
	fd, err := unix.MemfdCreate("bench-counters", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "bench-counters")
	if err := f.Truncate(int64(unsafe.Sizeof(Counters{}))); err != nil {
		f.Close()
		return nil, nil, err
	}
	c, err := MapCounters(f)
	if err != nil {
		f.Close()
	}
	return c, f, err
}

// MapCounters opens counters that another process has made.
func MapCounters(f *os.File) (*Counters, error) {
	memory, err := unix.Mmap(int(f.Fd()), 0, int(unsafe.Sizeof(Counters{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map counters: %w", err)
	}
	return (*Counters)(unsafe.Pointer(&memory[0])), nil
}

// Unmap gives the memory back.
func (c *Counters) Unmap() {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))) // fails only for memory that is not mapped
}
