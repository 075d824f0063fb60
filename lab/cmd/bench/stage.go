package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/internal/bench/load"
)

// The three hosts, in a row: client, edge, backend. The edge forwards, which is the routed path, and runs the proxies.
const (
	clientHost = iota
	edgeHost
	backendHost
	hosts
)

// Several addresses on each side: four backends, and four times as many ports for connections that have just ended.
var (
	edgeAddrs    = addrs("10.1.0.1", "10.1.0.11", "10.1.0.12", "10.1.0.13")
	backendAddrs = addrs("10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5")
)

// names are the TLS server names of the first backends, in order.
var names = []string{"git.example.org", "shop.example.org", "www.example.net"}

// backends are those that serve a port.
func backends(port int) []netip.AddrPort {
	addrs := backendAddrs
	if port == load.HelloPort || port == load.NamePort {
		addrs = addrs[:len(names)]
	}
	return at(addrs, port)
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func at(addrs []netip.Addr, port int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, uint16(port)))
	}
	return out
}

var cabling = [hosts]string{
	clientHost: `
link set lo up
addr add 10.1.0.2/24 dev eth0
link set eth0 up
route add default via 10.1.0.1
`,
	edgeHost: `
link set lo up
link add lan type veth peer name eth0 netns %[1]s
link add cluster type veth peer name eth0 netns %[2]s
addr add 10.1.0.1/24 dev lan
addr add 10.1.0.11/24 dev lan
addr add 10.1.0.12/24 dev lan
addr add 10.1.0.13/24 dev lan
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
addr add 10.2.0.7/24 dev eth0
link set eth0 up
route add default via 10.2.0.1
`,
}

// sysctls are the same for all hosts and all contenders: no limit of the machine shall be what is measured.
var sysctls = []string{
	"ipv4/ip_forward=1",
	"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
	"ipv4/ip_local_port_range=1024 65535",
	"ipv4/tcp_max_syn_backlog=65535",
	"ipv4/tcp_tw_reuse=1",
	"core/somaxconn=65535",
}

// stage is three fresh namespaces. They have no names: they go when the last process in them has gone, whatever
// becomes of this one. So a run leaves no state to the next one (ports in TIME_WAIT, TCP metrics) and nothing to clean.
//
// All its processes are started by one thread, and the kernel kills them when that thread ends.
type stage struct {
	calls chan func()
	ended sync.WaitGroup
	ns    [hosts]int // descriptors
	procs []*process
}

func newStage(congestion string) (*stage, error) {
	s := &stage{calls: make(chan func())}
	s.ended.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		for f := range s.calls {
			f()
		}
	})
	var err error
	s.call(func() { err = s.build("ipv4/tcp_congestion_control=" + congestion) })
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stage) call(f func()) {
	done := make(chan struct{})
	s.calls <- func() { defer close(done); f() }
	<-done
}

// in runs f on the stage's thread, in the network namespace of a host.
func (s *stage) in(host int, f func() error) (err error) {
	s.call(func() {
		if err = unix.Setns(s.ns[host], unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

func (s *stage) build(more ...string) error {
	for i := range s.ns {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (needs root): %w", err)
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.ns[i] = fd
	}
	for _, host := range []int{edgeHost, clientHost, backendHost} { // the edge makes the cables
		if err := unix.Setns(s.ns[host], unix.CLONE_NEWNET); err != nil {
			return err
		}
		for _, line := range slices.Concat(sysctls, more) {
			path, value, _ := strings.Cut(line, "=")
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
				return fmt.Errorf("sysctl net/%s: %w", line, err)
			}
		}
		text := cabling[host]
		if host == edgeHost {
			text = fmt.Sprintf(text, s.path(clientHost), s.path(backendHost))
		}
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip -batch: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// pin keeps all that is started from now on on one processor.
func (s *stage) pin() (err error) {
	s.call(func() {
		var all, one unix.CPUSet
		if err = unix.SchedGetaffinity(0, &all); err != nil {
			return
		}
		for cpu := range len(all) * 64 {
			if all.IsSet(cpu) {
				one.Set(cpu)
				break
			}
		}
		err = unix.SchedSetaffinity(0, &one)
	})
	return err
}

func (s *stage) path(host int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns[host]) }

// close ends all processes.
func (s *stage) close() {
	for _, p := range s.procs {
		p.stop()
	}
	close(s.calls)
	s.ended.Wait()
	for _, fd := range s.ns {
		if fd > 0 {
			unix.Close(fd)
		}
	}
}

// filter loads nftables on a host.
func (s *stage) filter(host int, rules string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	return s.in(host, func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// process is a program on a host, with what it has started itself.
type process struct {
	name   string
	cmd    *exec.Cmd
	stderr tail
	done   chan struct{}
}

// start runs a program in a PID namespace of its own, so that its workers go with it.
func (s *stage) start(host int, argv []string, files ...*os.File) (*process, error) {
	p := &process{name: argv[0], cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.ExtraFiles = &p.stderr, &p.stderr, files
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := s.in(host, p.cmd.Start); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // it is ended by a signal, or it has failed, which its output tells
		close(p.done)
	}()
	s.procs = append(s.procs, p)
	return p, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill() // gone already is fine
	<-p.done
}

// err tells when a process has ended that should not have.
func (p *process) err() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s: %s", p.name, p.cmd.ProcessState, p.stderr.String())
	default:
		return nil
	}
}

// tail keeps the beginning of what a process complains about.
type tail struct {
	mu    sync.Mutex
	text  []byte
	limit int // in bytes; 0: 2000
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := cmp.Or(t.limit, 2000) - len(t.text); room > 0 {
		t.text = append(t.text, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// grow has it keep more.
func (t *tail) grow(limit int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limit = limit
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}

// awaitAnswer waits until every target answers the client.
func (s *stage) awaitAnswer(targets []netip.AddrPort, proxy *process) error {
	deadline := time.Now().Add(10 * time.Second)
	for _, t := range targets {
		for {
			err := s.in(clientHost, func() error { return load.Try(t) })
			if err == nil {
				break
			}
			if proxy != nil {
				err = errors.Join(proxy.err(), err)
			}
			if time.Now().After(deadline) || proxy != nil && proxy.err() != nil {
				said := ""
				if proxy != nil {
					said = "; it said: " + proxy.stderr.String()
				}
				return fmt.Errorf("no answer at %s: %w%s", t, err, said)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
