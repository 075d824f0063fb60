package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The hosts.
const (
	clientHost = iota
	edgeHost
	backendHost
	hostCount
)

const edgeAddr = "10.1.0.1"

var cabling = [hostCount]string{
	clientHost: `
link set lo up
addr add 10.1.0.2/24 dev eth0
link set eth0 up
`,
	edgeHost: `
link set lo up
link add lan type veth peer name eth0 netns %[1]s
link add cluster type veth peer name eth0 netns %[2]s
addr add 10.1.0.1/24 dev lan
addr add 10.2.0.1/24 dev cluster
link set lan up
link set cluster up
`,
	backendHost: `
link set lo up
addr add 10.2.0.2/24 dev eth0
addr add 10.2.0.3/24 dev eth0
addr add 10.2.0.4/24 dev eth0
addr add 10.2.0.5/24 dev eth0
addr add 10.2.0.6/24 dev eth0
link set eth0 up
`,
}

// hosts are network namespaces without names: they go with the last process in them, whatever becomes of this one, and
// nothing that looks for names finds them. All processes are started by one thread, and the kernel kills them when
// it ends.
type hosts struct {
	calls chan func()
	ended sync.WaitGroup
	ns    [hostCount]int // descriptors
}

func newHosts() (*hosts, error) {
	h := &hosts{calls: make(chan func())}
	h.ended.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		for f := range h.calls {
			f()
		}
	})
	var err error
	h.call(func() { err = h.build() })
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *hosts) call(f func()) {
	done := make(chan struct{})
	h.calls <- func() { defer close(done); f() }
	<-done
}

// in runs f in the network of a host.
func (h *hosts) in(host int, f func() error) (err error) {
	h.call(func() {
		if err = unix.Setns(h.ns[host], unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// dialer makes connections from a host.
func (h *hosts) dialer(host int) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.in(host, func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

func (h *hosts) build() error {
	for i := range h.ns {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (needs root): %w", err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		h.ns[i] = fd
	}
	for _, host := range []int{edgeHost, clientHost, backendHost} { // the edge makes the cables
		if err := unix.Setns(h.ns[host], unix.CLONE_NEWNET); err != nil {
			return err
		}
		text := cabling[host]
		if host == edgeHost {
			text = fmt.Sprintf(text, h.path(clientHost), h.path(backendHost))
		}
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip -batch: %w: %s", err, bytes.TrimSpace(out))
		}
		// The kernel's own limit for ICMP is one a second for each host that gets it.
		for name, value := range map[string]string{"ip_local_port_range": "10000 65535", "icmp_ratelimit": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *hosts) path(host int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns[host]) }

func (h *hosts) close() {
	close(h.calls)
	h.ended.Wait()
	for _, fd := range h.ns {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// process is a program on a host.
type process struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.Reader
	done chan struct{}
}

func (h *hosts) start(host int, stderr io.Writer, argv ...string) (*process, error) {
	p := &process{name: strings.Join(argv, " "), cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	// Pipes by hand: exec's own close their reading end when the process ends, read or not.
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inRead, outWrite, stderr
	p.in, p.out = inWrite, outRead
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	err = h.in(host, p.cmd.Start)
	inRead.Close()
	outWrite.Close()
	if err != nil {
		inWrite.Close()
		outRead.Close()
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // a signal ends it; one that ends by itself is missed by whoever talks to it
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) } // gone already is fine

func (p *process) stop() {
	p.signal(syscall.SIGKILL)
	<-p.done
	p.in.Close()
}

// err tells when a process has ended that should not have.
func (p *process) err() error {
	select {
	case <-p.done:
		return errors.New(p.name + " has ended: " + p.cmd.ProcessState.String())
	default:
		return nil
	}
}
