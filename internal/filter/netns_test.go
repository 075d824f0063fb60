package filter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/nft"
)

func apply(t testing.TB, a *Applier, r firewall.Ruleset, wantChanged bool) {
	t.Helper()
	changed, err := a.Apply(t.Context(), &r, false)
	if err != nil || changed != wantChanged {
		t.Fatalf("Apply = %t, %v; want %t", changed, err, wantChanged)
	}
}

func verify(t testing.TB, a *Applier, wantMended bool) {
	t.Helper()
	mended, err := a.Verify(t.Context())
	if err != nil || mended != wantMended {
		t.Fatalf("Verify = %t, %v; want %t", mended, err, wantMended)
	}
}

func listed(t testing.TB) string {
	t.Helper()
	return command(t, "nft", "-s", "list", "table", "inet", Table)
}

// Others' tables stay as they are, whatever becomes of this one, and what somebody
// has done to this one is mended.
func TestNetnsTheTableIsMended(t *testing.T) {
	netnstest.Run(t, func() {
		command(t, "nft", `table inet theirs { set zones { type ifname; }; chain input { type filter hook input priority 0; tcp dport 22 accept; }; }; table ip gatehouse-firewall { chain input { counter accept; }; }`)
		theirs := command(t, "nft", "-s", "list", "ruleset")
		if exists, err := Exists(); exists || err != nil {
			t.Errorf("there is a table: %t, %v", exists, err)
		}
		a := New()
		verify(t, a, false) // it has nothing to be
		apply(t, a, siteRules(t), true)
		apply(t, a, siteRules(t), false)
		verify(t, a, false)
		another := New()
		apply(t, another, siteRules(t), false)
		ours := listed(t)
		for _, damage := range []string{
			"flush table inet gatehouse-firewall", "delete table inet gatehouse-firewall", "flush ruleset",
			"insert rule inet gatehouse-firewall forward accept", "add rule inet gatehouse-firewall policies-self accept",
			"add chain inet gatehouse-firewall mine", "add set inet gatehouse-firewall mine { type mark; }",
			`add element inet gatehouse-firewall doors { "eth9" . tcp . 22 }`, `delete element inet gatehouse-firewall doors { "eth1" . tcp . 80 }`,
			`add element inet gatehouse-firewall zone-home { "eth9" }`, "add set inet gatehouse-firewall zone-mine { type ifname; }",
			`add element inet gatehouse-firewall doors-from4 { "veth0" . tcp . 8443 . 203.0.113.0/24 }`,
			"add counter inet gatehouse-firewall mine", "flush chain inet gatehouse-firewall policies-through",
		} {
			command(t, "nft", damage)
			verify(t, a, true)
			if got := listed(t); got != ours {
				t.Fatalf("after %q it is mended to\n%swant\n%s", damage, got, ours)
			}
			verify(t, a, false)
		}
		command(t, "nft", `table inet theirs { set zones { type ifname; }; chain input { type filter hook input priority 0; tcp dport 22 accept; }; }; table ip gatehouse-firewall { chain input { counter accept; }; }`)
		if removed, err := a.Remove(t.Context()); !removed || err != nil {
			t.Errorf("Remove = %t, %v", removed, err)
		}
		if got := command(t, "nft", "-s", "list", "ruleset"); got != theirs {
			t.Errorf("left behind\n%swant\n%s", got, theirs)
		}
		if removed, err := a.Remove(t.Context()); removed || err != nil {
			t.Errorf("the second time: Remove = %t, %v", removed, err)
		}
	})
}

// This machine has what it takes; nothing is left of finding out.
func TestNetnsNothingLacks(t *testing.T) {
	netnstest.Run(t, func() {
		if lacks, err := Lacking(t.Context()); len(lacks) > 0 || err != nil {
			t.Errorf("it lacks %v, %v", lacks, err)
		}
		if got := command(t, "nft", "list", "ruleset"); got != "" {
			t.Errorf("left behind:\n%s", got)
		}
	})
}

// Without the right, the error says so.
func TestNetnsNotPermitted(t *testing.T) {
	netnstest.Run(t, func() {
		// Not to be seen by other tests: this one has the process to itself.
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Fatal(err)
		}
		rules := siteRules(t)
		if _, err := New().Apply(t.Context(), &rules, false); !errors.Is(err, nft.ErrNotPermitted) {
			t.Errorf("Apply: %v", err)
		}
		if _, err := New().Remove(t.Context()); !errors.Is(err, nft.ErrNotPermitted) {
			t.Errorf("Remove: %v", err)
		}
	})
}

// many are rules with so many doors, of all kinds.
func many(t testing.TB, n int) firewall.Inputs {
	in := firewall.Inputs{Config: parse(t, siteFile)}
	for i := range n {
		plane := []edge.DataPlane{edge.DataPlaneProxy, edge.DataPlaneNAT}[i%2]
		f := door(plane, edge.TCP, "eth1", "", uint16(1000+i))
		switch i % 4 {
		case 1:
			f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		case 2:
			f.Listen.Addr, f.Listen.Port = netip.AddrFrom4([4]byte{10, 11, byte(i >> 8), byte(i)}), 443
		}
		in.Frontends = append(in.Frontends, f)
	}
	return in
}

// Ten thousand doors are loaded, whatever one message to the kernel can hold, and
// one of them is changed by as little as that is.
func TestNetnsTenThousandDoors(t *testing.T) {
	netnstest.Run(t, func() {
		a, in := New(), many(t, 10_000)
		apply(t, a, firewall.Compile(in), true)
		verify(t, a, false)
		one, err := nft.Elements(Table, doors)
		if err != nil || len(one) != 2500 { // one of them is that of admin
			t.Fatalf("%d doors, %v", len(one), err)
		}
		in.Frontends[0].Listen.Port, in.Frontends[1].SourceRanges[0] = 999, netip.MustParsePrefix("172.16.0.0/12")
		rules := firewall.Compile(in)
		want := contentOf(&rules)
		if s := difference(&a.have, want); s.size() != 4 {
			t.Errorf("two doors are changed by %d commands: %v", s.size(), s)
		}
		apply(t, a, rules, true)
		verify(t, a, false)
		none := firewall.Compile(many(t, 0))
		if s := difference(&a.have, contentOf(&none)); s.dear <= tooDear {
			t.Errorf("that 2,500 doors for few go costs %d", s.dear)
		}
		apply(t, a, none, true)
		verify(t, a, false)
	})
}

// home is a site with a firewall: what policies say is put into the list.
func home(t testing.TB, frontends []edge.Frontend, policies ...string) firewall.Ruleset {
	t.Helper()
	return firewall.Compile(firewall.Inputs{Config: parse(t, `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}, cluster: {interfaces: [eth0]}}
firewall: {policies: [`+strings.Join(policies, ", ")+`]}
`), Frontends: frontends})
}

func dial(t *testing.T, ns *netnstest.NS, network, to string) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var err error
	ns.Do(t, func() { c, err = net.DialTimeout(network, to, 500*time.Millisecond) })
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// echoes says whether a connection goes on.
func echoes(t *testing.T, c net.Conn) error {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 100))
	return err
}

// What was opened is closed for those who come then, and goes on for those who
// have come before: of both data planes, and of policies.
func TestNetnsPinholesClose(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 9000)
		netnstest.Mirror(t, nil, 8080) // as the relay would listen
		translated := door(edge.DataPlaneNAT, edge.TCP, "eth1", "", 80)
		translated.Name, translated.Balance = "web", edge.BalanceRandom
		translated.Backends = []edge.Backend{{Addr: netip.MustParseAddrPort("10.244.1.5:9000"), Weight: 1, State: edge.Up, Share: 1}}
		relayed := door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 8080)
		if _, err := nat.New().Apply(t.Context(), nat.State{Frontends: []edge.Frontend{translated}}); err != nil {
			t.Fatal(err)
		}
		a := New()
		ways := []string{"10.11.12.32:80", "10.11.12.32:8080", "10.244.1.5:9000"}
		try := func(want bool) (conns []net.Conn) {
			t.Helper()
			for _, to := range ways {
				c, err := dial(t, site.Home, "tcp", to)
				if (err == nil) != want {
					t.Fatalf("to %s: %v", to, err)
				}
				conns = append(conns, c)
			}
			return conns
		}
		shut := home(t, nil)
		apply(t, a, shut, true)
		try(false)
		apply(t, a, home(t, []edge.Frontend{translated, relayed}, "{from: home, to: cluster, ports: [9000]}"), true)
		before := try(true)
		apply(t, a, shut, true)
		try(false)
		for i, c := range before {
			if err := echoes(t, c); err != nil {
				t.Errorf("what has begun to %s does not go on: %v", ways[i], err)
			}
		}
		counts, err := a.Counts()
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range []string{"", "eth0"} {
			if !slices.ContainsFunc(counts.Dropped, func(d Drop) bool { return d.In == "eth1" && d.Out == in && d.Packets > 0 }) {
				t.Errorf("dropped from eth1 to %q: %v", in, counts.Dropped)
			}
		}
	})
}

// Rules take the place of others at once: while they change all the time, and the
// table is made anew, nothing gets in that neither lets pass, and everything that
// both do.
func TestNetnsReplacementIsAtomic(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 9000)
		netnstest.Mirror(t, site.Pod, 9001)
		a := New()
		some := []firewall.Ruleset{
			home(t, nil, "{from: home, to: cluster, ports: [9000]}"),
			home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80)}, "{from: home, to: self, ports: [1000-2000]}", "{from: home, to: cluster, ports: [8000-9000]}"),
			home(t, nil, "{from: home, to: cluster, ports: [9000], sources: [10.0.0.0/8]}", "{from: cluster, to: home, allow: true}"),
		}
		apply(t, a, some[0], true)
		var open, shut, wrong atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 2)
		for port, count := range map[int]*atomic.Int64{9000: &open, 9001: &shut} {
			go func() {
				var failure error
				site.Home.Do(t, func() { // one namespace, on one thread
					for ctx.Err() == nil && failure == nil {
						c, err := net.DialTimeout("tcp", fmt.Sprintf("10.244.1.5:%d", port), 30*time.Millisecond)
						if err == nil {
							_ = c.Close()
						}
						switch {
						case port == 9001 && err == nil:
							wrong.Add(1)
						case port == 9000 && err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL):
							// A busy machine may take longer than that: once more, with patience.
							if c, err = net.DialTimeout("tcp", "10.244.1.5:9000", 10*time.Second); err != nil {
								failure = err
							} else {
								_ = c.Close()
							}
						}
						count.Add(1)
					}
				})
				ended <- failure
			}()
		}
		for i := 0; i < 60 || open.Load() < 300 || shut.Load() < 20; i++ {
			switch i % 6 {
			case 5: // with all that is in it
				a.have.fixed = nil
				apply(t, a, some[i%3], true)
			default:
				if _, err := a.Apply(t.Context(), &some[i%3], false); err != nil {
					t.Fatal(err)
				}
			}
			if t.Context().Err() != nil {
				t.Fatal("too late")
			}
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("a connection that all rules let pass: %v", err)
			}
		}
		t.Logf("%d connections, and %d that had to fail", open.Load(), shut.Load())
		if n := wrong.Load(); n > 0 {
			t.Errorf("%d connections were let pass that no rules do", n)
		}
	})
}

// What was counted stays when rules change, and when the table is made anew.
func TestNetnsCountersStay(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 9000)
		a := New()
		apply(t, a, home(t, nil, "{from: home, to: cluster, ports: [9000]}"), true)
		for range 3 {
			if _, err := dial(t, site.Home, "tcp", "10.244.1.5:9000"); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = dial(t, site.Home, "tcp", "10.244.1.5:9001")
		check := func(when string, want ...uint64) {
			t.Helper()
			counts, err := a.Counts()
			if err != nil || !slices.Equal(counts.Policies, want) {
				t.Errorf("%s: policies have counted %d, %v; want %d", when, counts.Policies, err, want)
			}
			if !slices.ContainsFunc(counts.Dropped, func(d Drop) bool { return d.In == "eth1" && d.Out == "eth0" && d.Packets > 0 }) {
				t.Errorf("%s: dropped are %v", when, counts.Dropped)
			}
		}
		check("at first", 3)
		two := home(t, nil, "{from: home, to: self, ports: [ssh]}", "{from: home, to: cluster, ports: [9000]}", "{from: home, to: cluster, ports: [9000]}")
		apply(t, a, two, true)
		check("with others", 0, 3, 0)
		a.have.fixed = nil // as of another version
		apply(t, a, two, true)
		check("anew", 0, 3, 0)
		verify(t, a, false)
		command(t, "nft", "delete table inet "+Table)
		verify(t, a, true)
		if counts, err := a.Counts(); err != nil || !slices.Equal(counts.Policies, []uint64{0, 0, 0}) {
			t.Errorf("after somebody has deleted it: %v, %v", counts, err)
		}
	})
}

// While it is not known what should be open, what is open stays so; and closes
// when it is.
func TestNetnsWhatIsOpenIsKept(t *testing.T) {
	netnstest.Run(t, func() {
		before := home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80), door(edge.DataPlaneNAT, edge.UDP, "eth1", "", 53, "10.0.0.0/8")})
		apply(t, New(), before, true)
		a, after := New(), home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 81)}, "{from: home, to: self, ports: [ssh]}")
		if changed, err := a.Apply(t.Context(), &after, true); err != nil || !changed {
			t.Fatalf("%t, %v", changed, err)
		}
		verify(t, a, false)
		for _, want := range []string{`"eth1" . tcp . 80`, `"eth1" . tcp . 81`, `"eth1" . udp . 53 . 10.0.0.0/8`, "tcp dport 22"} {
			if got := listed(t); !strings.Contains(got, want) {
				t.Errorf("it lacks %s:\n%s", want, got)
			}
		}
		apply(t, a, after, true)
		if got := listed(t); strings.Contains(got, ". 80") || strings.Contains(got, ". 53") || !strings.Contains(got, "tcp . 81") {
			t.Errorf("it is not closed:\n%s", got)
		}
		verify(t, a, false)
	})
}

// A door that listens at all addresses of one family is one of a source: all of them.
func TestNetnsAllAddressesOfAFamily(t *testing.T) {
	netnstest.Run(t, func() {
		a, rules := New(), home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "", "0.0.0.0", 80), door(edge.DataPlaneProxy, edge.TCP, "", "::", 81)})
		apply(t, a, rules, true)
		verify(t, a, false)
		for _, want := range []string{`"eth1" . tcp . 80 . 0.0.0.0/0`, `"eth1" . tcp . 81 . ::/0`} {
			if got := listed(t); !strings.Contains(got, want) {
				t.Errorf("it lacks %s:\n%s", want, got)
			}
		}
	})
}

// What two have opened at one place is open for the clients of both.
func TestNetnsOpenedTwice(t *testing.T) {
	netnstest.Run(t, func() {
		a, rules := New(), home(t, []edge.Frontend{
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80, "10.0.0.0/16", "10.2.0.0/16", "fd00::/64"), door(edge.DataPlaneProxy, edge.TCP, "", "0.0.0.0", 80),
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 81, "10.0.0.0/8"), door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 81, "10.0.0.0/16", "192.0.2.0/24"),
		})
		apply(t, a, rules, true)
		verify(t, a, false)
		for _, want := range []string{`"eth1" . tcp . 80 . 0.0.0.0/0`, `"eth1" . tcp . 80 . fd00::/64`, `"eth1" . tcp . 81 . 10.0.0.0/8`, `"eth1" . tcp . 81 . 192.0.2.0/24`} {
			if got := listed(t); !strings.Contains(got, want) {
				t.Errorf("it lacks %s:\n%s", want, got)
			}
		}
	})
}

// While what is open stays so, what is to be open for others than before is.
func TestNetnsWhatIsOpenIsKeptForOthers(t *testing.T) {
	netnstest.Run(t, func() {
		before := home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80, "10.0.0.0/8"), door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 82, "10.0.0.0/16", "10.9.0.0/16")})
		apply(t, New(), before, true)
		command(t, "nft", "add element inet "+Table+` doors-from4 { "eth1" . tcp . 83 . 10.3.0.0-10.3.0.9, "eth1" . tcp . 83 . 10.3.0.20 }`)
		a, after := New(), home(t, []edge.Frontend{door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80, "10.1.0.0/16"), door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 82, "10.0.0.0/8")})
		if changed, err := a.Apply(t.Context(), &after, true); err != nil || !changed {
			t.Fatalf("%t, %v", changed, err)
		}
		verify(t, a, false)
		got := listed(t)
		for _, want := range []string{`. 80 . 10.1.0.0/16`, `. 82 . 10.0.0.0/8`, `. 83 . 10.3.0.0-10.3.0.9`, `. 83 . 10.3.0.20`} {
			if !strings.Contains(got, want) {
				t.Errorf("it lacks %s:\n%s", want, got)
			}
		}
		if strings.Contains(got, ". 80 . 10.0.0.0/8") || strings.Contains(got, "10.9.0.0/16") {
			t.Errorf("it has what is not to be open any more:\n%s", got)
		}
	})
}

// nft finds no fault with any interface that a file can name, or zone.
func TestNetnsOddNames(t *testing.T) {
	netnstest.Run(t, func() {
		in := firewall.Inputs{Config: &config.Config{Firewall: &config.Firewall{}}}
		for i, name := range []string{"eth0.20", "br-lan", "wlan0@x", "veth*", "Ünïcøde", "drop", "a,b", "x;y", "1", `back\slash`, "$x", "#x", "{x}", "it's"} {
			in.Config.Zones = append(in.Config.Zones, edge.Zone{Name: []string{"drop", "1", "dnat", "ip", "a-b"}[i%5] + strings.Repeat("x", i/5), Interfaces: []string{name}})
			in.Frontends = append(in.Frontends, door(edge.DataPlaneProxy, edge.TCP, name, "", 80))
			in.Config.Firewall.Policies = append(in.Config.Firewall.Policies, config.Policy{From: in.Config.Zones[i].Name, To: config.Self, Allow: true})
		}
		a := New()
		apply(t, a, firewall.Compile(in), true)
		verify(t, a, false)
	})
}
