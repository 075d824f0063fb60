package host

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// runName is how the abstract names of the sockets begin that say who runs:
// each network namespace has its own.
const runName = "@gatehouse/"

// leaving ends the names of those who only wait for their last connections.
const leaving = "/leaving"

// Presence is what others see of this process.
type Presence struct{ fd int }

// CheckIn says that a gatehouse runs in this network namespace, for Running and
// Deciding to find until it is closed. Several may, as during an upgrade. It goes
// with its process, however that ends.
func CheckIn() (*Presence, error) {
	fd, err := takeName("")
	if err != nil {
		return nil, err
	}
	return &Presence{fd}, nil
}

// Leave says that this process decides nothing any more.
func (p *Presence) Leave() error {
	fd, err := takeName(leaving)
	if err != nil {
		return err
	}
	p.Close() // second: it never seems not to run
	p.fd = fd
	return nil
}

// Close says that it does not run any more.
func (p *Presence) Close() { _ = unix.Close(p.fd) }

// takeName binds a socket to a name with this process in it. Nobody can connect
// to it, as it does not listen.
func takeName(end string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("say that gatehouse runs: %w", err)
	}
	// In containers that share a network namespace several are process 1.
	for n := 0; ; n++ {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("%s%d/%d%s", runName, os.Getpid(), n, end)})
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("say that gatehouse runs: %w", err)
	}
	return fd, nil
}

// Deciding are those of Running who are not leaving.
func Deciding() (pids []int, err error) {
	return present(func(name string) bool { return !strings.HasSuffix(name, leaving) })
}

// Running returns the processes that have checked in, sorted. Anybody can take a
// name, so that one counts as 0 whose process is not seen to hold it: that is in
// another container, or of a user whose descriptors cannot be seen, or a lie.
func Running() (pids []int, err error) { return present(func(string) bool { return true }) }

func present(counts func(name string) bool) (pids []int, err error) {
	// By way of thread-self: /proc/net is the namespace of the main thread.
	text, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look who runs: %w", err)
	}
	// Num       RefCount Protocol Flags    Type St Inode Path
	for line := range strings.Lines(string(text)) {
		before, name, ok := strings.Cut(strings.TrimSpace(line), " "+runName)
		f := strings.Fields(before)
		if !ok || len(f) != 7 || !counts(name) {
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
