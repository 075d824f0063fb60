// Package netnstest runs tests in network namespaces of their own, so that
// they may make interfaces, move addresses and open any port without leaving a
// trace. It owns the namespaces and the cables between them, and leaves what
// runs in them to the test:
//
//	func TestNetnsDoorIsAWall(t *testing.T) {
//		netnstest.Run(t, func() {
//			client := netnstest.New(t)
//			netnstest.Cable(t, nil, "eth1", client, "eth0")
//			netnstest.Addr(t, nil, "eth1", "10.0.0.1/24")
//			client.Do(t, func() { ... net.Dial ... })
//		})
//	}
//
// Run starts the test binary once more, as a process in a new namespace: a
// goroutine is moved between threads, so a program under test that starts
// goroutines can be held in a namespace by nothing less than its process. The
// other namespaces of a test are visited by a thread at a time (NS.Do).
package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// required is the environment variable that turns a skip into a failure when
// it says "required".
const (
	required = "GATEHOUSE_NETNS"
	inside   = "GATEHOUSE_NETNS_INSIDE"
)

// Run runs f in a new network namespace with the loopback interface up, in a
// process of its own whose output becomes the test's. Without the right to
// make namespaces it skips, or fails when GATEHOUSE_NETNS=required.
//
// Call it once, from the goroutine of the test, with nothing before it that
// must not be done twice.
func Run(t *testing.T, f func()) {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		LinkUp(t, nil, "lo")
		f()
		return
	}
	out, err := runAgain(t)
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC):
		if os.Getenv(required) == "required" {
			t.Fatalf("cannot make a network namespace: %v", err)
		}
		t.Skipf("cannot make a network namespace (run as root, or allow user namespaces): %v", err)
	case err != nil:
		t.Fatalf("in a network namespace: %v\n%s", err, out)
	// A child that ran nothing passes as well: only the line of this test counts.
	case !strings.Contains(out, "--- PASS: "+t.Name()+" "):
		t.Fatalf("in a network namespace: the test did not pass:\n%s", out)
	case testing.Verbose():
		t.Logf("in a network namespace:\n%s", out)
	}
}

// runAgain runs this test in a new process in a new network namespace, and
// where that takes it (not root) in a new user namespace.
func runAgain(t *testing.T) (string, error) {
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	args := []string{"-test.run=" + strings.Join(pattern, "/"), "-test.v=true", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		// A little earlier than our own, to see the goroutines of the child.
		args = append(args, "-test.timeout="+max(time.Until(deadline)*9/10, time.Second).String())
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	// Pdeathsig is sent when the *thread* that started the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// NS is one more network namespace, with its loopback interface up. It goes
// away with the test.
type NS struct{ file *os.File }

// New makes a network namespace beside the one of the test. A nil *NS stands
// for the one of the test, wherever an NS is asked for.
func New(t *testing.T) *NS {
	t.Helper()
	ns := new(NS)
	err := onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.file.Close() })
	LinkUp(t, ns, "lo")
	return ns
}

// Do runs f on a thread in the namespace and waits for it. Sockets that f
// itself opens stay in the namespace for as long as they live; goroutines that
// f starts run elsewhere, so a net/http client must be given a connection.
// f may call t.Fatal.
func (ns *NS) Do(t *testing.T, f func()) {
	t.Helper()
	if ns == nil {
		f()
		return
	}
	finished := false
	err := onThrowawayThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		f()
		finished = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !finished { // f ended its goroutine by t.Fatal or t.Skip
		t.FailNow()
	}
}

// onThrowawayThread runs f on a thread that no other goroutine will see again:
// it is never unlocked, so the runtime ends it with its goroutine.
func onThrowawayThread(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		err = f()
	}()
	<-done
	return err
}

// Cable makes a veth pair with one end in each namespace, both up.
func Cable(t *testing.T, a *NS, aName string, b *NS, bName string) {
	t.Helper()
	a.Do(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: bName}
		veth.Name = aName
		if b != nil {
			veth.PeerNamespace = netlink.NsFd(int(b.file.Fd()))
		} else if a != nil {
			veth.PeerNamespace = netlink.NsPid(os.Getpid())
		}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatalf("add veth %s: %v", aName, err)
		}
	})
	LinkUp(t, a, aName)
	LinkUp(t, b, bName)
}

// LinkUp sets an interface up.
func LinkUp(t *testing.T, ns *NS, name string) {
	t.Helper()
	ns.Do(t, func() {
		if err := netlink.LinkSetUp(link(t, name)); err != nil {
			t.Fatalf("set %s up: %v", name, err)
		}
	})
}

// LinkDown sets an interface down, which pulls the cable for the other end.
func LinkDown(t *testing.T, ns *NS, name string) {
	t.Helper()
	ns.Do(t, func() {
		if err := netlink.LinkSetDown(link(t, name)); err != nil {
			t.Fatalf("set %s down: %v", name, err)
		}
	})
}

// LinkDel deletes an interface, and with it the other end of its cable.
func LinkDel(t *testing.T, ns *NS, name string) {
	t.Helper()
	ns.Do(t, func() {
		if err := netlink.LinkDel(link(t, name)); err != nil {
			t.Fatalf("delete %s: %v", name, err)
		}
	})
}

// Addr gives an interface an address, such as "10.0.0.1/24" or "fd00::1/64".
// An IPv6 address can be used at once.
func Addr(t *testing.T, ns *NS, name, prefix string) {
	t.Helper()
	ns.Do(t, func() {
		// Without duplicate address detection, which takes a second.
		addr := parseAddr(t, prefix)
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link(t, name), addr); err != nil {
			t.Fatalf("add %s to %s: %v", prefix, name, err)
		}
	})
}

// AddrDel takes an address from an interface.
func AddrDel(t *testing.T, ns *NS, name, prefix string) {
	t.Helper()
	ns.Do(t, func() {
		if err := netlink.AddrDel(link(t, name), parseAddr(t, prefix)); err != nil {
			t.Fatalf("delete %s from %s: %v", prefix, name, err)
		}
	})
}

// Route sends what goes to prefix ("default" for everything) by way of a
// gateway.
func Route(t *testing.T, ns *NS, prefix, gateway string) {
	t.Helper()
	ns.Do(t, func() {
		via := parseAddr(t, gateway+"/32")
		route := &netlink.Route{Gw: via.IP}
		if prefix != "default" {
			route.Dst = parseAddr(t, prefix).IPNet
		}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("route %s via %s: %v", prefix, gateway, err)
		}
	})
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("find interface %s: %v", name, err)
	}
	return l
}

func parseAddr(t *testing.T, prefix string) *netlink.Addr {
	t.Helper()
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// Eventually polls until the condition holds. What other hosts and the kernel
// do takes its time.
func Eventually(t testing.TB, patience time.Duration, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
