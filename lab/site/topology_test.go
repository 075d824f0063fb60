package site

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite testdata")

// The whole wiring as text that a person can check against the pictures in docs/lab.md and docs/guides/home.md.
func TestWiring(t *testing.T) {
	for name, o := range map[string]Options{"wiring": {PodRoutes: true}, "wiring-bare": {Bare: true}} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			hh := hosts(o)
			b.WriteString("# machine\n" + cabling("x", hh))
			for _, s := range segments {
				b.WriteString("# switch " + s + "\n" + switchSetup(s, hh))
			}
			for _, h := range hh {
				b.WriteString("# host " + h.name + "\n" + hostSetup(h))
				for _, s := range h.sysctls {
					b.WriteString("sysctl " + s + "\n")
				}
			}
			if o.Bare {
				b.WriteString("# dnsmasq.conf of router\n" + homeRouter())
			}
			golden(t, name+".txt", b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s (go test -update rewrites it):\n%s", path, got)
	}
}

// The kernel refuses longer interface names, and the mistake shows only at the first `lab up`.
func TestInterfaceNamesFit(t *testing.T) {
	for _, h := range slices.Concat(hosts(Options{}), hosts(Options{Bare: true})) {
		for _, n := range h.nics {
			if port := portName(h.name, n.name); len(port) > 15 {
				t.Errorf("%s: longer than 15 characters", port)
			}
		}
	}
}

func TestPodRoutesOnlyWhenAsked(t *testing.T) {
	for _, asked := range []bool{false, true} {
		has := false
		for _, h := range hosts(Options{PodRoutes: asked}) {
			if h.name == "edge" {
				has = strings.Contains(hostSetup(h), "10.244.")
			}
		}
		if has != asked {
			t.Errorf("PodRoutes %v: the edge has routes to pods: %v", asked, has)
		}
	}
}

// A lab's namespaces are found by the beginning of their name: no lab's may begin like another's.
func TestNames(t *testing.T) {
	for name, good := range map[string]bool{
		"lab": true, "a": true, "e2e": true, "x1234567890123456789": true,
		"": false, "a-b": false, "Lab": false, "1a": false, "a/b": false, "../x": false, "x12345678901234567890": false,
	} {
		if err := checkName(name); (err == nil) != good {
			t.Errorf("checkName(%q) = %v", name, err)
		}
	}
	for file, want := range map[string]string{"ghlab-a-edge": "a", "ghlab-ab-p-01234567": "ab", "ghlab-A-x": "", "other": ""} {
		got := ""
		if m := nsLab.FindStringSubmatch(file); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("%s belongs to lab %q, want %q", file, got, want)
		}
	}
}

func TestCable(t *testing.T) {
	for _, tt := range []struct {
		host, iface, port, err string
		bare                   bool
	}{
		{"edge", "eth1", "home:edge-eth1", "", false},
		{"w2", "eth0", "cluster:w2-eth0", "", false},
		{"edge", "veth0", "", "edge has no cable at veth0; it has eth0, eth1", false},
		{"nas", "eth0", "", `no host named "nas"; there are inet, router, home1, home2, edge, cp, w1, w2, w3`, false},
		{"nas", "eth0", "cluster:nas-eth0", "", true},
	} {
		s := newSite("x")
		s.record.Options.Bare = tt.bare
		segment, port, err := s.cable(tt.host, tt.iface)
		got, message := segment+":"+port, ""
		if err != nil {
			got, message = "", err.Error()
		}
		if got != tt.port || message != tt.err {
			t.Errorf("cable(%s, %s) = %q, %q; want %q, %q", tt.host, tt.iface, got, message, tt.port, tt.err)
		}
	}
}

func TestStartTime(t *testing.T) {
	self := startTime(os.Getpid())
	if self == 0 {
		t.Error("this process has no start time")
	}
	if c := (&component{PID: os.Getpid(), Started: self}); !c.alive() {
		t.Error("this process is not alive")
	}
	if c := (&component{PID: os.Getpid(), Started: self + 1}); c.alive() {
		t.Error("a process of another start time passes for the component: its pid was reused")
	}
	if startTime(1<<22+1) != 0 {
		t.Error("a process that cannot exist has a start time")
	}
}

// Two processes, one lock; and a lock file that a holder removes must not be taken for the lock.
func TestLockExcludes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the lock is in a directory of root's")
	}
	unlock, err := lock("locktest", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock("locktest", 0); err == nil {
		t.Error("two holders")
	}
	unlock()
	again, err := lock("locktest", 0)
	if err != nil {
		t.Fatal(err)
	}
	again()
	if _, err := os.Stat(filepath.Join(stateRoot, "locktest.lock")); err == nil {
		t.Error("the lock file is left over")
	}
}

// The test's process must not look as if it lived where one of its threads has been.
func TestDoLeavesTheProcessWhereItWas(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a namespace needs root")
	}
	before, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	// Its own namespace will do to see which threads are used.
	for range 200 {
		err := InNetns("/proc/self/ns/net", func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("on the process's first thread")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid())); after != before {
		t.Errorf("was in %s, is in %s", before, after)
	}
}

func TestFatalInDoDoesNotHang(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a namespace needs root")
	}
	err := InNetns("/proc/self/ns/net", func() error { runtime.Goexit(); return nil })
	if err == nil || !strings.Contains(err.Error(), "ended its goroutine") {
		t.Errorf("error: %v", err)
	}
}
