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

// Running returns the processes that have checked in, sorted. Anybody can take a
// name, so that one counts as 0 whose process is not seen to hold it: that is in
// another container, or of a user whose descriptors cannot be seen, or a lie.
func Running() (pids []int, err error) {
	// By way of thread-self: /proc/net is the namespace of the main thread.
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look who runs: %w", err)
	}
	// Num       RefCount Protocol Flags    Type St Inode Path
	for line := range strings.Lines(string(text)) {
		before, name, ok := strings.Cut(strings.TrimSpace(line), " "+runName)
		f := strings.Fields(before)
		if !ok || len(f) != 7 {
			continue
		}
		number, _, _ := strings.Cut(name, "/")
		pid, err := strconv.Atoi(number)
		if err != nil || !holds(pid, "socket:["+f[6]+"]") {
			pid = 0
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// holds reads a few descriptors at a time: there may be many thousands, and the
// one that was opened first thing is among the first.
func holds(pid int, socket string) bool {
	path := fmt.Sprintf("/proc/%d/fd", pid)
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(64)
		for _, name := range names {
			if target, err := os.Readlink(path + "/" + name); err == nil && target == socket {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
}
