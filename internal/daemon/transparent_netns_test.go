package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// transparentConfig has pods in front of the home network: by TCP and UDP, by
// IPv4 (80) and IPv6 (81), and once as ever (90).
const transparentConfig = `apiVersion: gatehouse.e13.dev/v1
admin: {listen: "127.0.0.1:9180"}
stopTimeout: 2s
zones:
  home: {interfaces: [eth1]}
frontends:
  - {name: web4, zones: [home], port: 80, transparent: true, backends: [{address: "10.244.1.5:8080"}]}
  - {name: udp4, zones: [home], port: 80, protocol: UDP, idleTimeout: 1s, transparent: true, backends: [{address: "10.244.1.5:8080"}]}
  - {name: web6, zones: [home], port: 81, transparent: true, backends: [{address: "[fd44::5]:8080"}]}
  - {name: udp6, zones: [home], port: 81, protocol: UDP, idleTimeout: 1s, transparent: true, backends: [{address: "[fd44::5]:8080"}]}
  - {name: plain, zones: [home], port: 90, backends: [{address: "10.244.1.5:8080"}]}
  - {name: here, listen: ":70", transparent: true, backends: [{address: "10.244.1.5:8080"}]}
`

var plainConfig = strings.ReplaceAll(transparentConfig, "transparent: true, ", "")

func sh(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// rules is all of the machine that transparent relaying could change.
func rules(t *testing.T) string {
	t.Helper()
	return sh(t, "nft list ruleset; ip rule; ip -6 rule; ip route show table all | grep -v 'table local'; ip -6 route show table all type local | grep -v 'table local' || true")
}

func is(t *testing.T, want string) func() error {
	return func() error {
		if got := rules(t); got != want {
			return fmt.Errorf("the machine has\n%swant\n%s", got, want)
		}
		return nil
	}
}

func sees(t *testing.T, ns *netnstest.NS, network, addr, want string) func() error {
	return func() error {
		if got, err := netnstest.LookIn(t, ns, network, addr); err != nil || got != want {
			return fmt.Errorf("%s to %s: the backend sees %q (%w), want %s", network, addr, got, err, want)
		}
		return nil
	}
}

// everybodySees checks all frontends of transparentConfig.
func everybodySees(t *testing.T, site netnstest.Site) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		eventually(t, "IPv4", sees(t, site.Home, network, "10.11.12.32:80", "10.11.12.7"))
		eventually(t, "IPv6", sees(t, site.Home, network, "[fd12::32]:81", "fd12::7"))
	}
	eventually(t, "not transparent", sees(t, site.Home, "tcp", "10.11.12.32:90", "10.0.0.1"))
	eventually(t, "from this machine", sees(t, nil, "tcp", "127.0.0.1:70", "10.0.0.1"))
}

const someoneElses = "table inet theirs { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }"

func transparentSite(t *testing.T) (site netnstest.Site, file string) {
	t.Helper()
	site = netnstest.NewSite(t)
	netnstest.Mirror(t, site.Pod, 8080)
	sh(t, "nft '"+someoneElses+"'; ip rule add fwmark 0x4000/0x4000 lookup 77 priority 4096")
	file = filepath.Join(t.TempDir(), "gatehouse.yaml")
	return site, file
}

// talk opens a connection that lives on; alive says whether it does.
func talk(t *testing.T, site netnstest.Site, addr string) (alive func(), closeIt func()) {
	t.Helper()
	var c net.Conn
	site.Home.Do(t, func() {
		var err error
		if c, err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	said := bufio.NewReader(c)
	if _, err := said.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		fmt.Fprintln(c, "still there?")
		if line, err := said.ReadString('\n'); err != nil || line != "still there?\n" {
			t.Fatalf("the connection was cut: %q, %v", line, err)
		}
	}, func() { c.Close() }
}

// The backends see the clients' own addresses, with nothing prepared by hand,
// and nothing is left behind.
func TestNetnsTransparent(t *testing.T) {
	netnstest.Run(t, func() {
		site, file := transparentSite(t)
		before := rules(t)
		write(t, file, transparentConfig)
		_, log, ended, stop := upgradable(t, file, file)
		everybodySees(t, site)
		for _, filter := range []string{"0", "1", "2"} {
			for _, device := range []string{"all", "eth0", "eth1"} {
				netnstest.Setting(t, nil, "net/ipv4/conf/"+device+"/rp_filter", filter)
			}
			everybodySees(t, site)
		}
		set := rules(t)

		// Whoever takes something away finds it there again, soon, and connections
		// live on.
		alive, _ := talk(t, site, "10.11.12.32:80")
		for _, damage := range []string{
			"nft 'flush ruleset; " + someoneElses + "'", // as nftables.service does
			"nft delete table inet gatehouse-transparent", "nft flush chain inet gatehouse-transparent transparent",
			"ip rule del priority 4096 lookup 4096", "ip -6 rule del priority 4096", "ip route flush table 4096; ip rule del priority 4096 lookup 4096",
		} {
			sh(t, damage)
			// By far sooner than it is looked at without being told.
			netnstest.Eventually(t, transparentInterval/2, "mended: "+damage, func() bool { return is(t, set)() == nil })
			alive()
		}
		everybodySees(t, site)

		// SIGTERM; what drains needs it to the end.
		stop()
		eventually(t, "stopping", log.has("connections drain"))
		alive()
		if err := is(t, set)(); err != nil {
			t.Errorf("while connections drain: %v", err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := is(t, before)(); err != nil {
			t.Error(err)
		}
	})
}

// A connection outlives that its frontend is transparent. What it needs goes
// when it has ended.
func TestNetnsTransparentNoMore(t *testing.T) {
	netnstest.Run(t, func() {
		site, file := transparentSite(t)
		before := rules(t)
		write(t, file, transparentConfig)
		d := start(t, file)
		everybodySees(t, site)
		set := rules(t)
		alive, end := talk(t, site, "10.11.12.32:80")
		write(t, file, plainConfig)
		eventually(t, "no more", sees(t, site.Home, "tcp", "10.11.12.32:80", "10.0.0.1"))
		eventually(t, "decided", func() error {
			d.transparent.mu.Lock()
			defer d.transparent.mu.Unlock()
			if d.transparent.claim != nil {
				return errors.New("there is a claim")
			}
			return nil
		})
		alive()
		if err := is(t, set)(); err != nil {
			t.Errorf("with a connection left: %v", err)
		}
		end()
		// It is looked at every now and then; here, more often.
		eventually(t, "gone", func() error {
			d.transparent.look(t.Context())
			return is(t, before)()
		})
		write(t, file, transparentConfig)
		eventually(t, "again", is(t, set))
		everybodySees(t, site)
	})
}

// What a crash has left is used by the next process, or removed if it has no
// use for it; what another process needs is not.
func TestNetnsTransparentLeftovers(t *testing.T) {
	netnstest.Run(t, func() {
		site, file := transparentSite(t)
		before := rules(t)
		other := filepath.Join(t.TempDir(), "gatehouse.yaml")
		write(t, file, transparentConfig)
		write(t, other, "apiVersion: gatehouse.e13.dev/v1\nfrontends:\n  - {name: x, listen: \":1000\", backends: [{address: \"10.244.1.5:8080\"}]}\n")

		// The successor is a process that can be killed.
		_, log, ended, _ := upgradable(t, file, file)
		everybodySees(t, site)
		set := rules(t)
		alive, end := talk(t, site, "10.11.12.32:80")
		signalSelf(t, syscall.SIGUSR2)
		eventually(t, "handed over", log.has("upgrade done"))
		everybodySees(t, site)
		alive()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		// The old one has ended, and has left everything to the new one.
		if err := is(t, set)(); err != nil {
			t.Error(err)
		}
		everybodySees(t, site)
		run(t, other, func(d *Daemon) {
			eventually(t, "a second process", func() error { d.transparent.look(t.Context()); return is(t, set)() })
		})
		if err := is(t, set)(); err != nil {
			t.Errorf("the end of another process took it away: %v", err)
		}

		endSuccessor(t, log)
		if err := is(t, set)(); err != nil {
			t.Errorf("nobody could have: %v", err)
		}
		run(t, file, func(*Daemon) { everybodySees(t, site) })
		if err := is(t, before)(); err != nil {
			t.Errorf("used: %v", err)
		}

		leftByACrash(t)
		run(t, other, func(*Daemon) { eventually(t, "removed", is(t, before)) })
	})
}

// leftByACrash is what is there when nobody could clean up.
func leftByACrash(t *testing.T) {
	t.Helper()
	tr := newTransparency(slog.New(slog.DiscardHandler))
	if failure, _ := tr.apply(t.Context(), true); failure != "" {
		t.Fatal(failure)
	}
	_ = tr.claim.Close()
}

// run has a daemon, with an orderly end.
func run(t *testing.T, file string, during func(*Daemon)) {
	t.Helper()
	d := New(Options{Files: []string{file}, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	during(d)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Where it cannot be had, doors are closed rather than served from the wrong
// address, and what is wrong is said.
func TestNetnsTransparencyIsNotToBeHad(t *testing.T) {
	netnstest.Run(t, func() {
		site, file := transparentSite(t)
		before := rules(t)
		write(t, file, transparentConfig)
		path := os.Getenv("PATH")
		t.Setenv("PATH", "/nowhere")
		d := start(t, file)
		eventually(t, "said", lacks(d, "the nft command is not installed", "apt install nftables"))
		for _, network := range []string{"tcp", "udp"} {
			if seen, err := netnstest.LookIn(t, site.Home, network, "10.11.12.32:80"); err == nil {
				t.Errorf("served by %s: the backend sees %s", network, seen)
			}
		}
		eventually(t, "not transparent", sees(t, site.Home, "tcp", "10.11.12.32:90", "10.0.0.1"))
		// Nobody asks for it any more, so that nothing is lacking.
		write(t, file, plainConfig)
		eventually(t, "nothing is lacking", noProblems(d))
		t.Setenv("PATH", path)
		if err := is(t, before)(); err != nil {
			t.Error(err)
		}
		t.Setenv("PATH", "/nowhere")
		write(t, file, transparentConfig)
		eventually(t, "said again", lacks(d, "the nft command is not installed", "apt install nftables"))
		t.Setenv("PATH", path)
		everybodySees(t, site)
		eventually(t, "the problem is gone", noProblems(d))

		netnstest.Setting(t, nil, "net/ipv4/conf/all/src_valid_mark", "1")
		d.transparent.look(t.Context())
		d.kick()
		eventually(t, "said", func() error {
			for _, p := range d.Status().Problems {
				if strings.HasPrefix(p.What, "net.ipv4.conf.all.src_valid_mark is 1") {
					return nil
				}
			}
			return fmt.Errorf("problems: %v", d.Status().Problems)
		})
	})
}

func TestNetnsTransparencyIsNotPermitted(t *testing.T) {
	const unprivileged = "GATEHOUSE_TEST_UNPRIVILEGED"
	if file := os.Getenv(unprivileged); file != "" {
		d := start(t, file)
		eventually(t, "said", lacks(d, "changing routes is not permitted", "CAP_NET_ADMIN"))
		return
	}
	netnstest.Run(t, func() {
		_, file := transparentSite(t)
		before := rules(t)
		write(t, file, transparentConfig)
		t.Setenv(unprivileged, file)
		out, err := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
			os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		if err := is(t, before)(); err != nil {
			t.Error(err)
		}
	})
}

func noProblems(d *Daemon) func() error {
	return func() error {
		if problems := d.Status().Problems; len(problems) > 0 {
			return fmt.Errorf("problems: %v", problems)
		}
		return nil
	}
}

// lacks is that the status says so, and that what is transparent is closed.
func lacks(d *Daemon, what, remedy string) func() error {
	return func() error {
		s := d.Status()
		said := false
		for _, p := range s.Problems {
			said = said || p.Object == "transparent" && strings.Contains(p.What, what) && strings.Contains(p.Remedy, remedy)
		}
		if !said {
			return fmt.Errorf("problems: %v", s.Problems)
		}
		for _, e := range s.Exposures {
			if e.Open != (e.Name == "plain") || !e.Open && !strings.Contains(e.Reason, what) {
				return fmt.Errorf("%s is open: %t, since %s", e.Name, e.Open, e.Reason)
			}
		}
		return nil
	}
}
