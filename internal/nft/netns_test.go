package nft

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

func nftCommand(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What the kernel makes of the table, as nft prints it.
func TestNetnsApply(t *testing.T) {
	netnstest.Run(t, func() {
		nftCommand(t, "add table inet theirs; add chain inet theirs input { type filter hook input priority 0; }; add rule inet theirs input tcp dport 22 accept")
		theirs := nftCommand(t, "list", "ruleset")
		a := New()
		apply(t, a, State{}, false)
		apply(t, a, State{TransparentMark: mark}, true)
		ours := nftCommand(t, "-s", "list", "table", "inet", "gatehouse-transparent")
		for _, want := range []string{"type filter hook prerouting priority mangle; policy accept;", "socket transparent 1", "socket wildcard 0", "0x00001000"} {
			if !strings.Contains(ours, want) {
				t.Errorf("the table lacks %q:\n%s", want, ours)
			}
		}
		apply(t, a, State{TransparentMark: mark}, false)
		// Another process finds what this one has made.
		apply(t, New(), State{TransparentMark: mark}, false)
		apply(t, a, State{TransparentMark: 2 * mark}, true)
		if two := nftCommand(t, "-s", "list", "table", "inet", "gatehouse-transparent"); !strings.Contains(two, "0x00002000") || strings.Contains(two, "0x00001000") {
			t.Errorf("with another mark it is\n%s", two)
		}
		apply(t, a, State{TransparentMark: mark}, true)
		for _, damage := range []string{
			"flush table inet gatehouse-transparent", "delete table inet gatehouse-transparent", "flush ruleset",
			"insert rule inet gatehouse-transparent transparent accept", "add chain inet gatehouse-transparent mine",
		} {
			nftCommand(t, damage)
			apply(t, a, State{TransparentMark: mark}, true)
			if got := nftCommand(t, "-s", "list", "table", "inet", "gatehouse-transparent"); got != ours {
				t.Errorf("after %q it is mended to\n%swant\n%s", damage, got, ours)
			}
		}
		nftCommand(t, "add table inet theirs; add chain inet theirs input { type filter hook input priority 0; }; add rule inet theirs input tcp dport 22 accept")
		apply(t, a, State{}, true)
		if got := nftCommand(t, "list", "ruleset"); got != theirs {
			t.Errorf("left behind\n%swant\n%s", got, theirs)
		}
		apply(t, a, State{}, false)
	})
}

func TestNetnsWatch(t *testing.T) {
	netnstest.Run(t, func() {
		a := New()
		apply(t, a, State{TransparentMark: mark}, true)
		ctx, cancel := context.WithCancel(t.Context())
		lost, ended := make(chan struct{}, 100), make(chan error, 1)
		go func() { ended <- Watch(ctx, Table, func() { lost <- struct{}{} }) }()
		// Until the socket is there nothing is heard.
		netnstest.Eventually(t, 10*time.Second, "a loss is told", func() bool {
			nftCommand(t, "flush ruleset")
			apply(t, a, State{TransparentMark: mark}, true)
			return len(lost) > 0
		})
		// Others may do with theirs what they like: the one after is ours.
		for len(lost) > 0 {
			<-lost
		}
		for range 20 {
			nftCommand(t, "add table inet theirs; add chain inet theirs c; add rule inet theirs c accept; delete table inet theirs; add table ip gatehouse-transparent; delete table ip gatehouse-transparent; add table inet gatehouse; delete table inet gatehouse")
		}
		nftCommand(t, "delete table inet gatehouse-transparent")
		<-lost
		if n := len(lost); n > 5 {
			t.Errorf("told of %d losses more than there were", n)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
}

// A table of the family arp is watched like the one of the same name beside it.
func TestNetnsWatchARP(t *testing.T) {
	netnstest.Run(t, func() {
		lost := make(chan struct{}, 100)
		go func() { _ = Watch(t.Context(), "ours", func() { lost <- struct{}{} }) }()
		netnstest.Eventually(t, 10*time.Second, "a loss is told", func() bool {
			nftCommand(t, "add table arp ours; delete table arp ours")
			return len(lost) > 0
		})
	})
}

// Without the right to change anything the error says so, whatever nft's text
// looks like.
func TestNetnsNotPermitted(t *testing.T) {
	netnstest.Run(t, func() {
		out, err := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
			"nft", "-j", "list", "table", "inet", "gatehouse-transparent").CombinedOutput()
		if err == nil {
			t.Fatal("nft lists tables without the capability")
		}
		if got := Explain(errors.New(string(out))); !errors.Is(got, ErrNotPermitted) {
			t.Errorf("Explain(%q) = %v", out, got)
		}
	})
}
