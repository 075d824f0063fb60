package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/nft"
)

func notReady(s edge.AddressState) bool { return !s.Ready && s.Error != "" }

// Whatever is done to an address or its interface, it is back at once, and the
// neighbours are told.
func TestNetnsAddressComesBack(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		listenAt(t, nil, ":80")
		k, _ := keep(t, Options{})
		addrs, doors := addresses("eth1", vip4, vip6), []edge.Door{door(edge.TCP, "eth1", vip4, 80), door(edge.TCP, "eth1", vip6, 80)}
		apply(t, k, addrs, doors...)
		awaitReady(t, k, vip4, vip6)
		works := func(what string) {
			t.Helper()
			for _, a := range []string{vip4, vip6} {
				if _, err := dial(t, client, "tcp", net.JoinHostPort(a, "80")); err != nil {
					t.Errorf("%s: %s: %v", what, a, err)
				}
			}
		}
		works("in the beginning")

		for _, a := range []string{vip4, vip6} {
			before := time.Now()
			run1(t, nil, "ip address del "+a+" dev eth1")
			netnstest.Eventually(t, soon, "it is back", func() bool { return has(t, "eth1", a) })
			if took := time.Since(before); took > time.Second {
				t.Errorf("%s was back after %v", a, took)
			}
		}
		works("after somebody had removed them")

		// There is no race with who does that all the time.
		removed, until := 0, time.Now().Add(time.Second)
		for time.Now().Before(until) {
			if has(t, "eth1", vip4) {
				run1(t, nil, "ip address del "+vip4+" dev eth1")
				removed++
			}
		}
		if removed > 8 {
			t.Errorf("in a second it was put back %d times", removed)
		}

		netnstest.LinkDown(t, nil, "eth1")
		for _, a := range []string{vip4, vip6} {
			await(t, k, a, "not ready", func(s edge.AddressState) bool { return s.Error == "interface eth1 is down" && !s.Ready })
		}
		netnstest.LinkUp(t, nil, "eth1")
		netnstest.Addr(t, nil, "eth1", "fd12::32/64") // which the kernel forgets
		awaitReady(t, k, vip4, vip6)
		works("after it was down")

		netnstest.LinkDel(t, nil, "eth1")
		for _, a := range []string{vip4, vip6} {
			await(t, k, a, "not ready", func(s edge.AddressState) bool { return s.Error == "there is no interface eth1" && !s.Ready })
		}
		l.plug(nil, "eth1", "10.11.12.32/24", "fd12::32/64")
		awaitReady(t, k, vip4, vip6)
		told := func(what string) {
			t.Helper()
			for _, a := range []string{vip4, vip6} {
				netnstest.Eventually(t, soon, what+": the client knows "+a, func() bool { return neighbour(t, client, a) == mac(t, nil, "eth1") })
			}
		}
		told("made anew")
		works("after it was made anew")

		quiet(k)
		run1(t, nil, "ip link set eth1 address 02:00:00:00:00:77")
		told("another hardware address")

		// Nobody is asked, and nothing put there, while the cable is pulled.
		netnstest.LinkDown(t, l.sw, fmt.Sprintf("p%d", l.n))
		const more = "10.11.12.72"
		apply(t, k, append(addresses("eth1", more), addrs...), doors...)
		await(t, k, more, "waiting", func(s edge.AddressState) bool { return s.Error == "interface eth1 has no carrier" && !s.Ready })
		awaitReady(t, k, vip4)
		quiet(k)
		run1(t, client, "ip neigh flush all")
		for _, a := range []string{vip4, vip6} {
			run1(t, client, "ip neigh add "+a+" lladdr 02:00:00:00:00:88 nud stale dev eth0")
		}
		netnstest.LinkUp(t, l.sw, fmt.Sprintf("p%d", l.n))
		awaitReady(t, k, more)
		told("the cable is back")
	})
}

// An interface that was away for longer is not sure to have its addresses still.
func TestNetnsAskedAgainAfterAWhile(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		owner := l.host(8)
		k, _ := keep(t, Options{})
		apply(t, k, addresses("eth1", vip4))
		awaitReady(t, k, vip4)
		netnstest.LinkDel(t, nil, "eth1")
		await(t, k, vip4, "not ready", notReady)
		netnstest.Addr(t, owner, "eth0", vip4+"/24")
		k.mu.Lock()
		k.entries[netip.MustParseAddr(vip4)].lost = time.Now().Add(-away)
		k.mu.Unlock()
		l.plug(nil, "eth1", "10.11.12.32/24")
		await(t, k, vip4, "in conflict", func(s edge.AddressState) bool { return s.Conflict == mac(t, owner, "eth0") && !s.Ready })
		if has(t, "eth1", vip4) {
			t.Error("it was put there")
		}
	})
}

// Who is killed leaves everything as it is, and the next one takes it over
// without asking who has it.
func TestNetnsAdopt(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		listenAt(t, nil, ":80")
		k, stop := keep(t, Options{})
		all := []string{vip4, vip6, "10.11.12.71"}
		addrs := addresses("eth1", all...)
		web := door(edge.TCP, "eth1", vip4, 80)
		apply(t, k, addrs, web, door(edge.UDP, "eth1", vip4, 53), door(edge.SCTP, "", vip6, 9))
		awaitReady(t, k, all...)
		netnstest.Addr(t, nil, "eth1", "10.11.12.90/32") // somebody else's
		netnstest.Addr(t, nil, "eth1", "fd12::90/128")
		stop()
		if _, err := dial(t, client, "tcp", vip4+":80"); err != nil {
			t.Errorf("while nobody runs: %v", err)
		}

		before := run1(t, nil, "nft list ruleset") + run1(t, nil, "ip -o address")
		next, stopNext := keep(t, Options{LookAgain: 50 * time.Millisecond})
		for _, a := range all {
			if s := next.Snapshot()[netip.MustParseAddr(a)]; s != (edge.AddressState{Ready: true}) {
				t.Errorf("%s is at once %+v", a, s)
			}
		}
		if n := len(next.Snapshot()); n != len(all) {
			t.Errorf("it has %d addresses, want %d", n, len(all))
		}
		// Until it is told what is wanted it changes nothing.
		next.poke()
		if after := run1(t, nil, "nft list ruleset") + run1(t, nil, "ip -o address"); after != before {
			t.Errorf("it has changed\n%s\nto\n%s", before, after)
		}
		apply(t, next, addrs[:2], web)
		netnstest.Eventually(t, soon, "what is not wanted goes", func() bool { return !has(t, "eth1", all[2]) })
		awaitReady(t, next, vip4, vip6)
		if rules := run1(t, nil, "nft list table inet gatehouse-addresses"); !strings.Contains(rules, "udp . 53") || !strings.Contains(rules, "sctp . 9") {
			t.Errorf("sessions through doors of the one before are cut at once:\n%s", rules)
		}
		for _, a := range []string{"10.11.12.90", "fd12::90", "10.11.12.32", "fd12::32"} {
			if !has(t, "eth1", a) {
				t.Errorf("%s, which is somebody else's, is gone", a)
			}
		}
		stopNext()

		// Without a table everything is made anew.
		run1(t, nil, "nft flush ruleset")
		third, _ := keep(t, Options{LookAgain: 50 * time.Millisecond})
		apply(t, third, addrs[:1], web)
		netnstest.Eventually(t, soon, "what is not wanted goes", func() bool { return !has(t, "eth1", vip6) })
		awaitReady(t, third, vip4)
	})
}

// A kernel before Linux 5.18 does not keep the protocol of an address.
func TestNetnsAdoptOnAnOldKernel(t *testing.T) {
	netnstest.Run(t, func() {
		newLAN(t)
		run1(t, nil, "ip address add "+vip4+"/32 dev eth1 scope host metric 9191")
		run1(t, nil, "ip address add "+vip6+"/128 dev eth1 metric 9191")
		run1(t, nil, "ip address add 10.11.12.72/24 dev eth1 metric 9191")
		k, _ := keep(t, Options{})
		if s := k.Snapshot(); len(s) != 2 || !s[netip.MustParseAddr(vip4)].Ready || !s[netip.MustParseAddr(vip6)].Ready {
			t.Errorf("ours are %v", s)
		}
	})
}

// What somebody else has put on this machine is no address of ours, whatever is
// wanted.
func TestNetnsForeignAddress(t *testing.T) {
	netnstest.Run(t, func() {
		newLAN(t)
		other := netnstest.New(t)
		netnstest.Cable(t, nil, "eth0", other, "eth0")
		here, there := map[string]string{vip4: "eth1", vip6: "eth1"}, map[string]string{"10.11.12.71": "eth0", "fd12::71": "eth0"}
		var all []string
		for _, where := range []map[string]string{here, there} {
			for a, device := range where {
				bits := "/32"
				if strings.Contains(a, ":") {
					bits = "/128"
				}
				netnstest.Addr(t, nil, device, a+bits)
				all = append(all, a)
			}
		}
		k, _ := keep(t, Options{LookAgain: 50 * time.Millisecond})
		apply(t, k, addresses("eth1", all...))
		for _, a := range all {
			await(t, k, a, "blocked", func(s edge.AddressState) bool {
				return !s.Ready && strings.Contains(s.Error, "somebody else") && strings.HasPrefix(s.Conflict, "this machine itself")
			})
		}
		apply(t, k, nil)
		await(t, k, vip4, "forgotten", func(s edge.AddressState) bool { return s == edge.AddressState{} })
		for _, where := range []map[string]string{here, there} {
			for a, device := range where {
				if !has(t, device, a) {
					t.Errorf("%s was removed from %s", a, device)
				}
			}
		}
		apply(t, k, addresses("eth1", all...))
		await(t, k, vip4, "blocked", notReady)
		for _, where := range []map[string]string{here, there} {
			for a, device := range where {
				run1(t, nil, "ip address del "+a+" dev "+device)
			}
		}
		awaitReady(t, k, all...)
	})
}

func TestNetnsMoves(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		l.plug(nil, "eth2")
		k, _ := keep(t, Options{})
		apply(t, k, addresses("eth1", vip4, vip6))
		awaitReady(t, k, vip4, vip6)
		apply(t, k, addresses("eth2", vip4, vip6))
		for _, a := range []string{vip4, vip6} {
			netnstest.Eventually(t, soon, a+" is at the other interface", func() bool { return has(t, "eth2", a) && !has(t, "eth1", a) })
		}
		awaitReady(t, k, vip4, vip6)
		if rules := run1(t, nil, "nft list table arp gatehouse-addresses"); strings.Contains(rules, "eth1") {
			t.Errorf("it answers where it was:\n%s", rules)
		}
	})
}

// An address goes once nobody uses it, and until then lets in nobody.
func TestNetnsLeavesWhenUnused(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		listenAt(t, nil, ":80")
		k, _ := keep(t, Options{LookAgain: 20 * time.Millisecond})
		var open []net.Conn
		all := []string{vip4, vip6}
		apply(t, k, addresses("eth1", all...), door(edge.TCP, "eth1", vip4, 80), door(edge.TCP, "eth1", vip6, 80))
		awaitReady(t, k, all...)
		for _, a := range all {
			c, err := dial(t, client, "tcp", net.JoinHostPort(a, "80"))
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		apply(t, k, addresses("eth1", "10.11.12.71"))
		awaitReady(t, k, "10.11.12.71") // the loop has been round
		for i, a := range all {
			if err := echo(open[i], 5); err != nil || !has(t, "eth1", a) {
				t.Errorf("%s: a connection has ended: %v", a, err)
			}
			if _, err := dial(t, client, "tcp", net.JoinHostPort(a, "80")); !refusedBy(err) {
				t.Errorf("%s: a new one: %v", a, err)
			}
			if s, there := k.Snapshot()[netip.MustParseAddr(a)]; !there || !s.Ready {
				t.Errorf("%s is %+v, %t", a, s, there)
			}
			open[i].Close()
		}
		for _, a := range all {
			netnstest.Eventually(t, soon, a+" goes", func() bool { return !has(t, "eth1", a) })
		}
		if rules := run1(t, nil, "nft list ruleset"); strings.Contains(rules, vip4) {
			netnstest.Eventually(t, soon, "the wall forgets it", func() bool { return !strings.Contains(run1(t, nil, "nft list ruleset"), vip4) })
		}

		// Nobody can tell a session of UDP that has ended.
		dns := door(edge.UDP, "eth1", "10.11.12.71", 53)
		apply(t, k, addresses("eth1", "10.11.12.71"), dns)
		apply(t, k, addresses("eth1", vip4))
		awaitReady(t, k, vip4) // which takes longer than to look
		if !has(t, "eth1", "10.11.12.71") {
			t.Error("the address of a session went before it")
		}
		k.mu.Lock()
		for o := range k.lingering {
			k.lingering[o] = time.Now()
		}
		k.mu.Unlock()
		apply(t, k, nil)
		netnstest.Eventually(t, soon, "nothing is left", func() bool { return run1(t, nil, "nft list ruleset") == "" && len(k.Snapshot()) == 0 })
	})
}

// What comes for an address and is rewritten by the kernel keeps it, too.
func TestNetnsKeptByFlows(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client, pod := l.host(7), l.host(9)
		listenUDP(t, pod, ":9000")
		netnstest.Setting(t, nil, "net/ipv4/ip_forward", "1")
		run1(t, nil, `nft add table ip theirs; add chain ip theirs d { type nat hook prerouting priority dstnat; }; add rule ip theirs d ip daddr `+vip4+` udp dport 53 dnat to 10.11.12.9:9000; add chain ip theirs s { type nat hook postrouting priority srcnat; }; add rule ip theirs s masquerade`)
		k, _ := keep(t, Options{LookAgain: 20 * time.Millisecond})
		apply(t, k, addresses("eth1", vip4), door(edge.UDP, "eth1", vip4, 53))
		awaitReady(t, k, vip4)
		if _, err := dial(t, client, "udp", vip4+":53"); err != nil {
			t.Fatal(err)
		}
		used, err := inUse()
		if err != nil || !used[netip.MustParseAddr(vip4)] || len(used) != 1 {
			t.Errorf("in use are %v, %v", used, err)
		}
		run1(t, nil, "conntrack -F")
		if used, err := inUse(); err != nil || len(used) > 0 {
			t.Errorf("in use are %v, %v", used, err)
		}
	})
}

// What has become of the wall while nobody ran, or while another process did that
// was to take over and could not, is seen at once.
func TestNetnsWallIsMendedAtTheStart(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		listenAt(t, nil, ":22")
		k, stop := keep(t, Options{})
		apply(t, k, addresses("eth1", vip4))
		awaitReady(t, k, vip4)
		stop()
		run1(t, nil, "nft flush ruleset")
		if _, err := dial(t, client, "tcp", vip4+":22"); err != nil {
			t.Fatalf("there is a wall still: %v", err)
		}
		refused := func() bool { _, err := dial(t, client, "tcp", vip4+":22"); return refusedBy(err) }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		netnstest.Eventually(t, soon, "mended by the same process", refused)
		cancel()
		<-ended
		run1(t, nil, "nft flush ruleset")
		keep(t, Options{})
		netnstest.Eventually(t, soon, "mended by the next one", refused)
	})
}

func TestNetnsWallIsMended(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		client := l.host(7)
		listenAt(t, nil, ":22")
		k, _ := keep(t, Options{})
		addrs := addresses("eth1", vip4, vip6)
		apply(t, k, addrs, door(edge.TCP, "eth1", vip4, 80))
		awaitReady(t, k, vip4, vip6)
		rules := func() string { return run1(t, nil, "nft list ruleset") }
		sound := rules()
		handles := run1(t, nil, "nft -a list ruleset")
		apply(t, k, addrs, door(edge.TCP, "eth1", vip4, 80))
		k.mend(t.Context())
		if got := run1(t, nil, "nft -a list ruleset"); got != handles {
			t.Errorf("nothing has changed, and it was made anew:\n%s", got)
		}
		// Until the watch has begun nothing is heard; and what was mended is heard of, too.
		for _, damage := range []string{
			"nft flush ruleset", "nft delete table inet " + Table, "nft delete table arp " + Table,
			"nft flush chain inet " + Table + " prerouting", "nft flush chain arp " + Table + " input",
		} {
			netnstest.Eventually(t, soon, "mended: "+damage, func() bool {
				run1(t, nil, damage)
				deadline := time.Now().Add(time.Second)
				for time.Now().Before(deadline) {
					if rules() == sound {
						return true
					}
				}
				return false
			})
		}
		// What nobody tells of is found sooner or later.
		for _, damage := range []string{
			"nft flush set inet " + Table + " addresses4", "nft flush set arp " + Table + " places",
			"nft add element inet " + Table + ` openings4 { "eth1" . 10.11.12.70 . tcp . 22 }`,
			"nft insert rule inet " + Table + " prerouting accept", "nft add chain arp " + Table + " mine",
			"nft add set inet " + Table + " mine { type ether_addr; elements = { 02:00:00:00:00:01 }; }",
			// Of another version of this program.
			"nft delete table inet " + Table + "; add table inet " + Table + "; add set inet " + Table + " openings4 { type mark; elements = { 1 }; }",
		} {
			run1(t, nil, damage)
			k.mend(t.Context())
			if got := rules(); got != sound {
				t.Errorf("after %q it is mended to\n%swant\n%s", damage, got, sound)
			}
		}
		if _, err := dial(t, client, "tcp", vip4+":22"); !refusedBy(err) {
			t.Error(err)
		}
	})
}

func TestNetnsRemove(t *testing.T) {
	netnstest.Run(t, func() {
		newLAN(t)
		if removed, err := Remove(t.Context()); removed || err != nil {
			t.Errorf("where nothing is: %t, %v", removed, err)
		}
		before := run1(t, nil, "ip -o address")
		k, stop := keep(t, Options{})
		apply(t, k, addresses("eth1", vip4, vip6))
		awaitReady(t, k, vip4, vip6)
		stop()
		if removed, err := Remove(t.Context()); !removed || err != nil {
			t.Errorf("Remove = %t, %v", removed, err)
		}
		if after := run1(t, nil, "ip -o address") + run1(t, nil, "nft list ruleset"); after != before {
			t.Errorf("left are\n%swant\n%s", after, before)
		}
		if removed, err := Remove(t.Context()); removed || err != nil {
			t.Errorf("once more: %t, %v", removed, err)
		}
	})
}

// Without nft nothing is put anywhere, and what has no pools does not mind.
func TestNetnsNoWallNoAddress(t *testing.T) {
	netnstest.Run(t, func() {
		newLAN(t)
		path := os.Getenv("PATH")
		t.Setenv("PATH", t.TempDir())
		k, _ := keep(t, Options{})
		apply(t, k, nil)
		if p := k.Problems(); len(p) > 0 {
			t.Errorf("nothing is wanted, and yet %v", p)
		}
		err := k.Apply(t.Context(), addresses("eth1", vip4), nil)
		if err == nil || !strings.Contains(err.Error(), "nft command is not installed") {
			t.Errorf("Apply: %v", err)
		}
		await(t, k, vip4, "without a wall", func(s edge.AddressState) bool { return !s.Ready && strings.Contains(s.Error, "walled off") })
		netnstest.Eventually(t, soon, "the problem says what to do", func() bool {
			p := k.Problems()
			return len(p) == 1 && strings.Contains(p[0].String(), "apt install nftables")
		})
		os.Setenv("PATH", path)
		if has(t, "eth1", vip4) {
			t.Error("it is there without a wall")
		}
		apply(t, k, addresses("eth1", vip4))
		awaitReady(t, k, vip4)
		netnstest.Eventually(t, soon, "the problem is over", func() bool { return len(k.Problems()) == 0 })
	})
}

func TestNetnsLacking(t *testing.T) {
	netnstest.Run(t, func() {
		if lacking, err := Lacking(t.Context()); err != nil || len(lacking) > 0 {
			t.Errorf("this machine, that can, lacks %v, %v", lacking, err)
		}
		if rules := run1(t, nil, "nft list ruleset"); rules != "" {
			t.Errorf("to look has left behind\n%s", rules)
		}
		t.Setenv("PATH", t.TempDir())
		if _, err := Lacking(t.Context()); !errors.Is(err, nft.ErrNotInstalled) {
			t.Errorf("without nft: %v", err)
		}
	})
}

// Many addresses are there in seconds, and whoever watches is not told of each.
func TestNetnsMany(t *testing.T) {
	netnstest.Run(t, func() {
		l := newLAN(t)
		owner := l.host(7)
		netnstest.Addr(t, owner, "eth0", "10.20.0.5/32")
		k, _ := keep(t, Options{LookAgain: 50 * time.Millisecond})
		var all []edge.Address
		var doors []edge.Door
		for i := range 2000 {
			a, port := fmt.Sprintf("10.20.%d.%d", i/250, i%250), uint16(80)
			if i%4 == 0 {
				a = fmt.Sprintf("fd20::%x", i+1)
			}
			all = append(all, addresses("eth1", a)...)
			doors = append(doors, door(edge.TCP, "eth1", a, port), door(edge.TCP, "eth1", a, port+1))
		}
		apply(t, k, all, doors...)
		began, signals := time.Now(), 0
		for ready := 0; ready < len(all)-1; signals++ {
			select {
			case <-k.Changed():
			case <-time.After(soon):
				t.Fatalf("%d are ready", ready)
			}
			ready = 0
			for _, s := range k.Snapshot() {
				if s.Ready {
					ready++
				}
			}
		}
		t.Logf("ready after %v, %d signals", time.Since(began), signals)
		await(t, k, "10.20.0.5", "in conflict", func(s edge.AddressState) bool { return s.Conflict == mac(t, owner, "eth0") })
		apply(t, k, nil)
		netnstest.Eventually(t, soon, "all are gone", func() bool { return len(k.Snapshot()) == 0 })
		if left := run1(t, nil, "nft list ruleset"); left != "" {
			netnstest.Eventually(t, soon, "the wall is gone", func() bool { return run1(t, nil, "nft list ruleset") == "" })
		}
	})
}
