package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) keeps named network namespaces, so that ip netns shows the lab's too.
const netnsDir = "/run/netns"

// Do runs f on an operating-system thread that is inside the host's network namespace and is thrown away
// afterwards. Sockets that f itself makes (net.Dial, net.Listen) belong to the host, and stay so after f has
// returned; goroutines that f starts do not run there.
func (s *Site) Do(host string, f func() error) error {
	ns, err := s.netns(host)
	if err != nil {
		return err
	}
	return InNetns(filepath.Join(netnsDir, ns), f)
}

// Dialer returns a dial function for connections that start at the host, fit for http.Transport.DialContext. It is for
// addresses, not names: the resolver would ask from outside.
func (s *Site) Dialer(host string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var conn net.Conn
		err := s.Do(host, func() error {
			var err error
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// InNetns is Do for a namespace given by its file.
func InNetns(path string, f func() error) error {
	done := make(chan error, 1)
	go elsewhere(func() {
		err := errors.New("the function ended its goroutine; t.Fatal and the like belong after Do, not in it")
		defer func() { done <- err }()
		err = enterAndRun(path, f)
	})
	return <-done
}

// elsewhere runs f on a locked thread that is not the process's first one. The first one does not end with its
// goroutine, and /proc/PID/ns/net is its namespace: this whole process would pass for one of the lab's.
func elsewhere(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return // locked: the thread ends here, so nothing else can ever run in the namespace by mistake
	}
	// While this goroutine holds the first thread, the other one gets another.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
	runtime.UnlockOSThread()
}

func enterAndRun(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return f()
}

// writeSysctls writes settings of the form "ipv4/ip_forward=1"; to be called inside the namespace.
func writeSysctls(settings []string) error {
	for _, line := range settings {
		path, value, _ := strings.Cut(line, "=")
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			return fmt.Errorf("sysctl net/%s: %w", line, err)
		}
	}
	return nil
}

// tool runs a program of the machine with text on its standard input. The error holds what it complained about.
func tool(ctx context.Context, stdin string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// namespaces lists the lab's named network namespaces, pods' included.
func namespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), nsName(lab, "")) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// RemoveNamespace takes the name away. The namespace itself goes once no process is in it.
func RemoveNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	// EINVAL: not a mount point, left by somebody killed between making the file and mounting on it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// processesIn returns the processes whose network namespace is one of the named ones.
func processesIn(names []string) ([]int, error) {
	type inode struct{ dev, ino uint64 }
	wanted := map[inode]bool{}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(netnsDir, n), &st); err == nil {
			wanted[inode{st.Dev, st.Ino}] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && wanted[inode{st.Dev, st.Ino}] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// processesOf returns the processes whose executable is in the directory: a lab's programs are copies of its own.
func processesOf(dir string) ([]int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	var pids []int
	for _, l := range links {
		exe, err := os.Readlink(l)
		if err != nil || !strings.HasPrefix(exe, dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(l, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// killAllIn ends every process in the namespaces, and those that they start meanwhile.
func killAllIn(ctx context.Context, names []string) error {
	return poll(ctx, 20*time.Second, 10*time.Millisecond, func() error {
		pids, err := processesIn(names)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is fine; the next round looks again
		}
		return fmt.Errorf("%d processes are still alive in the lab's namespaces: %v", len(pids), pids)
	})
}

// poll calls f until it succeeds, the limit has passed or the context has ended; the error then is f's last one.
func poll(ctx context.Context, limit, interval time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up: %w)", err, ctx.Err())
		case <-tick.C:
		}
	}
}

// NetnsPath is the file of a named network namespace.
func NetnsPath(name string) string { return filepath.Join(netnsDir, name) }

// EmptyNamespace ends every process in one named namespace.
func EmptyNamespace(ctx context.Context, name string) error { return killAllIn(ctx, []string{name}) }
