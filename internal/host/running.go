package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// runName is how the abstract names of the sockets begin that say who runs:
// each network namespace has its own.
const runName = "@gatehouse/"

// CheckIn says that a gatehouse runs in this network namespace, for Running to
// find until it is closed. Several may, as during an upgrade. It goes with its
// process, however that ends.
func CheckIn() (io.Closer, error) {
	// Nobody can connect to it, as it does not listen.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("say that gatehouse runs: %w", err)
	}
	// In containers that share a network namespace several are process 1.
	for n := 0; ; n++ {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("%s%d/%d", runName, os.Getpid(), n)})
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("say that gatehouse runs: %w", err)
	}
	return os.NewFile(uintptr(fd), "running"), nil
}

// Running returns the processes that have checked in, by the numbers that they
// have for themselves, sorted.
func Running() (pids []int, err error) {
	// By way of thread-self: /proc/net is the namespace of the main thread.
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look who runs: %w", err)
	}
	// Num       RefCount Protocol Flags    Type St Inode Path
	for line := range strings.Lines(string(text)) {
		_, name, _ := strings.Cut(strings.TrimSpace(line), " "+runName)
		number, _, ok := strings.Cut(name, "/")
		if pid, err := strconv.Atoi(number); ok && err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
