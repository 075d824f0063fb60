package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// linksUnderTest is the part of a daemon that keeps links, with a loop like its.
type linksUnderTest struct {
	*links
	t        *testing.T
	stop     func()
	mu       sync.Mutex
	config   *config.Config
	problems []edge.Problem
	wake     chan struct{}
}

func startLinks(t *testing.T, file string) *linksUnderTest {
	t.Helper()
	l := &linksUnderTest{t: t, wake: make(chan struct{}, 1)}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	kick := func() {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	l.links = newLinks(log, kick)
	l.use(file)
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = l.run(ctx) })
	tasks.Go(func() {
		retry := time.NewTicker(100 * time.Millisecond)
		defer retry.Stop()
		for {
			l.mu.Lock()
			l.problems = l.apply(ctx, l.config)
			again := len(l.problems) > 0
			l.mu.Unlock()
			timer := retry.C
			if !again {
				timer = nil
			}
			select {
			case <-ctx.Done():
				return
			case <-l.wake:
			case <-timer:
			}
		}
	})
	l.stop = sync.OnceFunc(func() { cancel(); tasks.Wait() })
	t.Cleanup(l.stop)
	return l
}

// use has it follow another file.
func (l *linksUnderTest) use(file string) {
	l.t.Helper()
	c, problems := config.Parse([]config.File{{Name: "g.yaml", Data: []byte("apiVersion: gatehouse.e13.dev/v1\n" + file)}})
	if c == nil {
		l.t.Fatal(problems)
	}
	l.mu.Lock()
	l.config = c
	l.mu.Unlock()
	l.changed()
}

func (l *linksUnderTest) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, p := range l.problems {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func inTime(t *testing.T, what string, good func() bool) {
	t.Helper()
	netnstest.Eventually(t, 30*time.Second, what, good)
}

func startDnsmasq(t *testing.T, ns *netnstest.NS, args ...string) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("dnsmasq", append([]string{
		"--no-daemon", "--conf-file=/dev/null", "--port=0", "--no-ping", "--user=root", "--group=root", "--dhcp-authoritative",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--pid-file=" + filepath.Join(dir, "pid"),
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go ns.Do(t, func() { // its thread has to live as long as it does
		started <- cmd.Start()
		_ = cmd.Wait()
		close(ended)
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = cmd.Process.Kill(); <-ended })
	t.Cleanup(stop)
	return stop
}

// watchAddresses returns what says which IPv4 addresses were removed since.
func watchAddresses(t *testing.T) (lost func() []string) {
	t.Helper()
	updates := make(chan netlink.AddrUpdate, 1000)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		t.Fatal(err)
	}
	return func() (gone []string) {
		for {
			select {
			case u := <-updates:
				if !u.NewAddr && u.LinkAddress.IP.To4() != nil {
					gone = append(gone, u.LinkAddress.String())
				}
			default:
				return gone
			}
		}
	}
}

// The site: home and the Internet on one cable, each with a lease of its own name.
func TestNetnsLinksOfTheSite(t *testing.T) {
	netnstest.Run(t, func() {
		router := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", router, "lan")
		netnstest.Addr(t, router, "lan", "10.11.12.1/24")
		hosts := []string{"--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,1h", "--dhcp-option=6,10.11.12.1", "--dhcp-host=rpi0,10.11.12.32"}
		stopServer := startDnsmasq(t, router, append(hosts, "--dhcp-host=rpi0-internet,10.11.12.51")...)
		dir := t.TempDir()
		site := "stateDir: " + dir + `
links:
  - {name: eth1, addresses: [dhcp], hostname: rpi0, defaultRoute: false}
  - {name: veth0, macvlan: {parent: eth1}, mac: "02:00:00:00:00:51", addresses: [dhcp], hostname: rpi0-internet}
`
		l := startLinks(t, site)
		addresses := func() string { return output(t, "ip", "addr") }
		inTime(t, "both addresses", func() bool {
			return strings.Contains(addresses(), "10.11.12.32/24") && strings.Contains(addresses(), "10.11.12.51/24")
		})
		inTime(t, "the default route", func() bool {
			return strings.Contains(output(t, "ip", "route"), "default via 10.11.12.1 dev veth0 proto 92 src 10.11.12.51 metric 101")
		})
		leases := l.leases()
		if len(leases) != 2 || leases[0].Link != "eth1" || leases[1].Addr != netip.MustParsePrefix("10.11.12.51/24") || !slices.Equal(leases[1].DNS, []netip.Addr{netip.MustParseAddr("10.11.12.1")}) {
			t.Errorf("leases %+v", leases)
		}
		state := l.status(l.config)
		if len(state) != 2 || !state[1].Made || state[0].Made || state[1].Kind != "macvlan" || !state[1].Up || state[1].Lease == nil || !slices.Contains(state[1].Addrs, netip.MustParsePrefix("10.11.12.51/24")) {
			t.Errorf("status %+v", state)
		}
		if p := l.said(); p != "" {
			t.Errorf("problems %s", p)
		}
		// Connections go out by each with its own address, though they share a network.
		for dev, addr := range map[string]string{"eth1": "10.11.12.32", "veth0": "10.11.12.51"} {
			if out := output(t, "ip", "route", "get", "10.11.12.1", "oif", dev); !strings.Contains(out, "src "+addr) {
				t.Errorf("by %s: %s", dev, out)
			}
		}

		// A stop leaves everything; the next process goes on with it, without a gap.
		l.stop()
		if out := addresses(); !strings.Contains(out, "10.11.12.32/24") || !strings.Contains(out, "10.11.12.51/24") {
			t.Errorf("a stop takes addresses away:\n%s", out)
		}
		index := output(t, "cat", "/proc/net/dev") // the interfaces that there are
		begun := leases[1].Begun
		lost := watchAddresses(t)
		l = startLinks(t, site)
		inTime(t, "the leases, which the server has said are good", func() bool {
			leases := l.leases()
			return len(leases) == 2 && leases[1].Begun.After(begun) && leases[0].Begun.After(begun)
		})
		if gone := lost(); len(gone) > 0 {
			t.Errorf("the next process has removed %v for a while", gone)
		}
		if again := output(t, "cat", "/proc/net/dev"); strings.Count(again, "\n") != strings.Count(index, "\n") {
			t.Errorf("interfaces\n%s, before\n%s", again, index)
		}

		// The server moves the machine: the new address is there, and the old one is not.
		stopServer()
		startDnsmasq(t, router, append(hosts, "--dhcp-host=rpi0-internet,10.11.12.52")...)
		netnstest.LinkDown(t, router, "lan")
		inTime(t, "a cable that is pulled", func() bool { return !l.status(l.config)[0].Up })
		if out := addresses(); !strings.Contains(out, "10.11.12.32/24") {
			t.Errorf("a cable that is pulled takes the address along:\n%s", out)
		}
		netnstest.LinkUp(t, router, "lan")
		inTime(t, "the other address", func() bool {
			out := addresses()
			return strings.Contains(out, "10.11.12.52/24") && !strings.Contains(out, "10.11.12.51/24")
		})
		inTime(t, "its route", func() bool {
			out := output(t, "ip", "route")
			return strings.Contains(out, "dev veth0 proto 92 src 10.11.12.52") && !strings.Contains(out, "10.11.12.51")
		})

		// Somebody removes the interface: it comes back, with its address.
		output(t, "ip", "link", "del", "veth0")
		inTime(t, "the interface again", func() bool { return strings.Contains(addresses(), "10.11.12.52/24") })

		// The block goes, and everything with it.
		l.use("stateDir: " + dir + "\n")
		inTime(t, "nothing", func() bool {
			out := addresses()
			return !strings.Contains(out, "veth0") && !strings.Contains(out, "10.11.12.32")
		})
		inTime(t, "no lease on disk", func() bool { files, _ := os.ReadDir(dir); return len(files) == 0 })
		if l.isActive() {
			t.Error("it goes on looking at interfaces")
		}
	})
}

// A process that knows nothing of links takes away what one before has left, unless
// another gatehouse decides here.
func TestNetnsLinksOfAProcessBefore(t *testing.T) {
	netnstest.Run(t, func() {
		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth0", other, "eth0")
		l := startLinks(t, "links: [{name: eth0, addresses: [10.0.0.1/24]}, {name: m0, macvlan: {parent: eth0}}]\n")
		inTime(t, "the interface", func() bool { return strings.Contains(output(t, "ip", "addr"), "m0@eth0") })
		l.stop()
		another := newLinks(slog.New(slog.DiscardHandler), func() {})
		another.deciding = func() ([]int, error) { return []int{1, os.Getpid()}, nil }
		another.apply(t.Context(), &config.Config{})
		if out := output(t, "ip", "addr"); !strings.Contains(out, "m0@eth0") {
			t.Errorf("another gatehouse's is gone:\n%s", out)
		}
		alone := newLinks(slog.New(slog.DiscardHandler), func() {})
		alone.apply(t.Context(), &config.Config{})
		if out := output(t, "ip", "addr"); strings.Contains(out, "m0@eth0") || strings.Contains(out, "10.0.0.1/24") {
			t.Errorf("left:\n%s", out)
		}
	})
}

// A static address that somebody else has is used, and said.
func TestNetnsAStaticAddressThatSomebodyHas(t *testing.T) {
	netnstest.Run(t, func() {
		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth0", other, "eth0")
		netnstest.Addr(t, other, "eth0", "10.0.0.1/24")
		l := startLinks(t, "links: [{name: eth0, addresses: [10.0.0.1/24]}]\n")
		inTime(t, "a problem", func() bool {
			return strings.Contains(l.said(), "g.yaml:2:9: link/eth0: 10.0.0.1 is also had by the machine with MAC address ")
		})
		if out := output(t, "ip", "addr"); !strings.Contains(out, "10.0.0.1/24") {
			t.Errorf("it is not there:\n%s", out)
		}
	})
}

// Another process takes over, or does not.
func TestNetnsLinksAreHandedOver(t *testing.T) {
	netnstest.Run(t, func() {
		router := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", router, "lan")
		netnstest.Addr(t, router, "lan", "10.11.12.1/24")
		startDnsmasq(t, router, "--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,1h")
		file := "stateDir: " + t.TempDir() + "\nlinks: [{name: eth1, addresses: [dhcp]}]\n"
		old := startLinks(t, file)
		inTime(t, "a lease", func() bool { return len(old.leases()) == 1 })
		addr, begun := old.leases()[0].Addr, old.leases()[0].Begun
		old.retire(true)
		successor := startLinks(t, file)
		inTime(t, "the lease", func() bool { return len(successor.leases()) == 1 })
		if got := successor.leases()[0].Addr; got != addr {
			t.Errorf("the successor has %s, the one before had %s", got, addr)
		}
		// It comes to nothing.
		successor.stop()
		old.retire(false)
		old.changed()
		inTime(t, "that it asks again", func() bool { l := old.leases(); return len(l) == 1 && l[0].Addr == addr && l[0].Begun.After(begun) })
		if !strings.Contains(output(t, "ip", "addr"), addr.String()) {
			t.Error("the address is gone")
		}
	})
}

// Where no lease is kept, the next process finds the address, and leaves it there
// until it has one.
func TestNetnsAnAddressOfAProcessBefore(t *testing.T) {
	netnstest.Run(t, func() {
		router := netnstest.New(t)
		netnstest.Cable(t, nil, "eth1", router, "lan")
		netnstest.Addr(t, router, "lan", "10.11.12.1/24")
		args := []string{"--interface=lan", "--dhcp-range=10.11.12.100,10.11.12.199,255.255.255.0,1h"}
		stop := startDnsmasq(t, router, args...)
		const file = "links: [{name: eth1, addresses: [dhcp]}]\n"
		old := startLinks(t, file)
		inTime(t, "the address", func() bool { return strings.Contains(output(t, "ip", "route"), "default") })
		addr := old.leases()[0].Addr
		stop()
		lost := watchAddresses(t)
		old.retire(true)
		old.stop()
		successor := startLinks(t, file)
		inTime(t, "that it asks", func() bool { return strings.Contains(successor.said(), "no DHCP server answers") })
		if out := output(t, "ip", "addr") + output(t, "ip", "route"); !strings.Contains(out, addr.String()) || !strings.Contains(out, "default via 10.11.12.1") {
			t.Errorf("left is\n%s", out)
		}
		startDnsmasq(t, router, args...)
		inTime(t, "the lease", func() bool { return len(successor.leases()) == 1 })
		if got := successor.leases()[0].Addr; got != addr {
			t.Fatalf("it has %s, the one before had %s", got, addr)
		}
		if gone := lost(); len(gone) > 0 {
			t.Errorf("removed: %q", gone)
		}
		// One that is another's now goes.
		successor.use("links: [{name: eth1}]\n")
		inTime(t, "that it goes", func() bool { return !strings.Contains(output(t, "ip", "addr"), addr.String()) })
	})
}
