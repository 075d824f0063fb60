package host

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/netnstest"
)

var delivery = Delivery{Mark: 0x1000, Priority: 4096, Table: 4096}

func ipCommand(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// routing is all that ip says of both families. A table that does not exist has
// no routes.
func routing(t *testing.T) string {
	t.Helper()
	text := ipCommand(t, "-4 rule") + ipCommand(t, "-6 rule")
	for _, family := range []string{"-4", "-6"} {
		text += ipCommand(t, family+" route show table all")
	}
	return text
}

func deliver(t *testing.T, do func() (bool, error), wantChanged bool) {
	t.Helper()
	if changed, err := do(); err != nil || changed != wantChanged {
		t.Fatalf("changed %t, %v; want %t", changed, err, wantChanged)
	}
}

func TestNetnsDelivery(t *testing.T) {
	netnstest.Run(t, func() {
		for _, theirs := range []string{
			"rule add fwmark 0x4000/0x4000 lookup 4096 priority 4096", "-6 rule add fwmark 0x1000/0x1000 lookup 77 priority 4096",
			"route add local 192.0.2.0/24 dev lo table 4096", "route add local default dev lo table 100 protocol 91",
		} {
			ipCommand(t, theirs)
		}
		before := routing(t)
		present := func(want bool) {
			t.Helper()
			if got, err := delivery.Present(); got != want || err != nil {
				t.Errorf("Present = %t, %v; want %t", got, err, want)
			}
		}
		present(false)
		deliver(t, delivery.Remove, false)
		deliver(t, delivery.Apply, true)
		present(true)
		after := routing(t)
		for _, want := range []string{
			"4096:	from all fwmark 0x1000/0x1000 lookup 4096 proto 91",
			"local default dev lo table 4096 proto 91 scope host",
			"local default dev lo table 4096 proto 91 metric 1024",
		} {
			if !strings.Contains(after, want) {
				t.Errorf("it lacks %q:\n%s", want, after)
			}
		}
		if got := ipCommand(t, "route get 203.0.113.7 mark 0x5001"); !strings.HasPrefix(got, "local ") {
			t.Errorf("with the mark among others: %s", got)
		}
		deliver(t, delivery.Apply, false)

		for _, damage := range []string{
			"rule del priority 4096 fwmark 0x1000/0x1000", "-6 rule del priority 4096 protocol 91", "route del local default dev lo table 4096",
			"-6 route flush table 4096",
		} {
			ipCommand(t, damage)
			deliver(t, delivery.Apply, true)
			if got := routing(t); got != after {
				t.Errorf("after %q it is mended to\n%swant\n%s", damage, got, after)
			}
		}
		// What a version with other numbers has left is known, and replaced.
		old := Delivery{Mark: 0x10, Priority: 99, Table: 990}
		deliver(t, delivery.Remove, true)
		if got := routing(t); got != before {
			t.Errorf("left behind\n%swant\n%s", got, before)
		}
		deliver(t, old.Apply, true)
		present(true)
		deliver(t, delivery.Apply, true)
		if got := routing(t); got != after {
			t.Errorf("of the old version is left\n%swant\n%s", got, after)
		}
		deliver(t, delivery.Remove, true)
		if got := routing(t); got != before {
			t.Errorf("left behind\n%swant\n%s", got, before)
		}
		present(false)
	})
}

func TestNetnsDeliveryWithoutIPv6(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Setting(t, nil, "net/ipv6/conf/all/disable_ipv6", "1")
		deliver(t, delivery.Apply, true)
		deliver(t, delivery.Apply, false)
		if rules := ipCommand(t, "-6 rule"); strings.Contains(rules, "4096") {
			t.Errorf("with IPv6 disabled: %s", rules)
		}
		netnstest.Setting(t, nil, "net/ipv6/conf/all/disable_ipv6", "0")
		deliver(t, delivery.Apply, true)
		if rules := ipCommand(t, "-6 rule"); !strings.Contains(rules, "4096") {
			t.Errorf("with IPv6 enabled: %s", rules)
		}
		// The kernel removes routes, and no rules.
		netnstest.Setting(t, nil, "net/ipv6/conf/all/disable_ipv6", "1")
		deliver(t, delivery.Remove, true)
		if rules := ipCommand(t, "-6 rule"); strings.Contains(rules, "4096") {
			t.Errorf("left behind: %s", rules)
		}
	})
}

func TestNetnsUndeliverable(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Cable(t, nil, "eth1", netnstest.New(t), "eth0")
		is := func(want string) {
			t.Helper()
			if got := strings.Join(Undeliverable(), " "); got != want {
				t.Errorf("Undeliverable = %q, want %q", got, want)
			}
		}
		is("")
		netnstest.Setting(t, nil, "net/ipv4/conf/lo/src_valid_mark", "1")
		is("")
		netnstest.Setting(t, nil, "net/ipv4/conf/eth1/src_valid_mark", "1")
		is("net.ipv4.conf.eth1.src_valid_mark")
		netnstest.Setting(t, nil, "net/ipv4/conf/all/src_valid_mark", "1")
		is("net.ipv4.conf.all.src_valid_mark")
	})
}

func TestNetnsWatchRules(t *testing.T) {
	netnstest.Run(t, func() {
		ctx, cancel := context.WithCancel(t.Context())
		heard, ended := make(chan struct{}, 100), make(chan error, 1)
		go func() { ended <- WatchRules(ctx, func() { heard <- struct{}{} }) }()
		// Until the socket is there nothing is heard.
		for _, family := range []string{"-4", "-6"} {
			netnstest.Eventually(t, patience, "a rule's removal is told", func() bool {
				ipCommand(t, family+" rule add priority 7 lookup 7")
				ipCommand(t, family+" rule del priority 7")
				return len(heard) > 0
			})
			for len(heard) > 0 {
				<-heard
			}
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("WatchRules ended with %v", err)
		}
	})
}

func TestNetnsDeliveryNotPermitted(t *testing.T) {
	const unprivileged = "GATEHOUSE_TEST_UNPRIVILEGED"
	if os.Getenv(unprivileged) != "" {
		_, err := delivery.Apply()
		if want := "add ip route local default dev lo table 4096: changing routes is not permitted"; !errors.Is(err, ErrNotPermitted) || err.Error() != want {
			t.Errorf("Apply = %v, want %s", err, want)
		}
		return
	}
	netnstest.Run(t, func() {
		t.Setenv(unprivileged, "1")
		out, err := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
			os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
