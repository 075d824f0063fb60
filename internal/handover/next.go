package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A program that runs at all says hello at once.
	helloTime = 10 * time.Second
	// A process that was killed is gone after this time, or stuck in the kernel.
	killTime = 5 * time.Second
)

// Program is how to start what takes our place: whatever is at Path then.
type Program struct {
	Path string
	Args []string // the name it is called by first
	Env  []string
}

// Self is the program that runs, by the path it was started by: a symbolic link
// is followed when the next one is started, not now. To be called early, while
// the path still leads to this program.
func Self() (Program, error) {
	p := Program{Args: slices.Clone(os.Args), Env: os.Environ()}
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return p, fmt.Errorf("find the program that runs: %w", err)
	}
	if path, err := exec.LookPath(os.Args[0]); err == nil {
		if path, err = filepath.Abs(path); err == nil {
			//nolint:gosec // G703: whoever chooses the name also chooses the program
			if there, err := os.Stat(path); err == nil && os.SameFile(there, running) {
				p.Path = path
				return p, nil
			}
		}
	}
	// Called by another name than its file's. Once the file is replaced the
	// kernel adds something to its path, which os takes off again.
	p.Path, err = os.Executable()
	return p, err
}

// Next is a program that is to take our place.
type Next struct {
	Version string

	process *os.Process
	conn    conn
}

// Start starts the program and waits for its hello. It is a child of our
// parent, not of ours: systemd has to be told when it ends, also while we live.
func (p Program) Start(ctx context.Context) (*Next, error) {
	if os.Getpid() == 1 {
		return nil, errors.New("process 1 of a container cannot be replaced: the container ends with it")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "to the old program")
	defer theirs.Close()
	ours, err := newConn(os.NewFile(uintptr(pair[0]), "to the new program"))
	if err != nil {
		return nil, err
	}
	const descriptor = 3 // its place in Files
	env := slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return strings.HasPrefix(v, variable+"=") })
	process, err := os.StartProcess(p.Path, p.Args, &os.ProcAttr{
		Env:   append(env, variable+"="+strconv.Itoa(descriptor)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, theirs},
		Sys:   &syscall.SysProcAttr{Cloneflags: syscall.CLONE_PARENT},
	})
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start it: %w", err)
	}
	_ = theirs.Close() // or its end would go unnoticed
	n := &Next{process: process, conn: ours}
	if err := n.greet(ctx); err != nil {
		n.Abort()
		return nil, err
	}
	return n, nil
}

// greet hears its hello.
func (n *Next) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, helloTime, fmt.Errorf("it said nothing within %s; is it a gatehouse that can take over?", helloTime))
	defer cancel()
	return n.conn.within(ctx, func() error {
		m, err := n.conn.expect(hello)
		if err == nil && m.Protocol != Protocol {
			err = fmt.Errorf("it is version %s, which hands over by protocol %d, and this one by protocol %d: restart instead", m.Version, m.Protocol, Protocol)
		}
		n.Version = m.Version
		return err
	})
}

// PID is the new program's.
func (n *Next) PID() int { return n.process.Pid }

// AwaitReady waits until it needs nothing but the sockets.
func (n *Next) AwaitReady(ctx context.Context) error {
	return n.conn.within(ctx, func() error {
		_, err := n.conn.expect(ready)
		return err
	})
}

// Give gives it the sockets, and waits until it serves. They stay ours too.
func (n *Next) Give(ctx context.Context, sockets []Socket) error {
	return n.conn.within(ctx, func() error {
		for _, part := range batches(sockets) {
			if err := n.conn.send(message{Kind: batch, Sockets: part}); err != nil {
				return n.explain(err)
			}
			// One at a time: the kernel limits how many descriptors may be
			// on their way.
			if _, err := n.conn.expect(taken); err != nil {
				return err
			}
		}
		if err := n.conn.send(message{Kind: all, Total: len(sockets)}); err != nil {
			return n.explain(err)
		}
		_, err := n.conn.expect(serving)
		return err
	})
}

// explain looks whether a message that could not be sent has met a program
// that has said why it is gone.
func (n *Next) explain(err error) error {
	if !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("tell it: %w", err)
	}
	_, err = n.conn.expect(serving)
	return err
}

// Farewell tells it that we accept nothing and write nothing any more.
func (n *Next) Farewell() {
	// Whoever does not hear it goes on a few seconds later.
	_ = n.conn.send(message{Kind: farewell})
	_ = n.conn.Close()
	_ = n.process.Release()
}

// Abort ends it, and returns when it is gone.
func (n *Next) Abort() {
	_ = n.conn.Close()
	_ = n.process.Kill()
	// Not ours to wait for: its descriptor tells when it has ended.
	_ = n.process.WithHandle(func(handle uintptr) {
		deadline := time.Now().Add(killTime)
		for {
			left := time.Until(deadline)
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, int(max(left, 0).Milliseconds()))
			if !errors.Is(err, unix.EINTR) || left <= 0 {
				return
			}
		}
	})
	_ = n.process.Release()
}
