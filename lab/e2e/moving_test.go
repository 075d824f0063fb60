package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// movedWithin is what following an address may take on a machine that does much
// else. How long it does take is logged.
const movedWithin = 5 * time.Second

// onEdgeIP runs ip on the edge.
func onEdgeIP(t *testing.T, args ...string) {
	t.Helper()
	if out, err := lab.Exec(t.Context(), "edge", append([]string{"ip"}, args...)...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// afterwards runs commands on the edge when the test has ended. What is there
// already, or gone, is no error.
func afterwards(t *testing.T, commands ...string) {
	t.Cleanup(func() {
		for _, c := range commands {
			_, _ = lab.Exec(context.Background(), "edge", "sh", "-c", c)
		}
	})
}

// Addresses that move: what is open follows them within a second, its status
// too; what goes by other interfaces notices nothing, and what went by the
// address goes on when it is back.
func TestAddressesThatMove(t *testing.T) {
	// A DHCP client on a machine with systemd finds it so: the second address of a
	// network stays when the first is taken away.
	before, err := lab.Exec(t.Context(), "edge", "sysctl", "-n", "net.ipv4.conf.eth1.promote_secondaries")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Exec(t.Context(), "edge", "sysctl", "-qw", "net.ipv4.conf.eth1.promote_secondaries=1"); err != nil {
		t.Fatal(err)
	}
	afterwards(t, "sysctl -qw net.ipv4.conf.eth1.promote_secondaries="+strings.TrimSpace(before))
	for n, plane := range planes {
		t.Run(plane, func(t *testing.T) { addressesMove(t, plane, 8940+n) })
	}
	t.Run("advertised", advertisedPrefixMoves)
}

func addressesMove(t *testing.T, plane string, port int) {
	const otherAddr, homeAddr6, otherAddr6 = "10.11.12.33", "fd00:11:12::32", "fd00:11:13::32"
	ns := namespace(t)
	dual := strings.Replace(service(ns, "web", "web", "home,cluster", "Local", port), "  type:", "  ipFamilyPolicy: RequireDualStack\n  type:", 1)
	apply(t, deployment(ns, "web", "web", "w1", 1)+on(plane, dual))
	awaitPods(t, ns, "web")
	at := func(address string) string { return atPort(address, port) }
	eventually(t, 20*time.Second, "open", opened("home1", at(homeAddr)))
	eventually(t, 10*time.Second, "open in the cluster", opened("w2", at(clusterAddr)))
	has := func(address string, there bool) func() error {
		return func() error {
			// Not by kubectl, which takes its time to start.
			s, err := kube.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			of := func(i corev1.LoadBalancerIngress) bool { return i.IP == address }
			if all := s.Status.LoadBalancer.Ingress; slices.ContainsFunc(all, of) != there {
				return fmt.Errorf("the status is %v", all)
			}
			return nil
		}
	}
	eventually(t, 10*time.Second, "the status is written", has(homeAddr6, true))
	elsewhere := startLoad("w2", at(clusterAddr), 20)
	old := converse(t, "home1", at(homeAddr))
	old.ask(t)

	// As a DHCP client does when its lease is for another address.
	afterwards(t, "ip addr add "+homeAddr+"/24 dev eth1", "ip addr del "+otherAddr+"/24 dev eth1")
	onEdgeIP(t, "addr", "add", otherAddr+"/24", "dev", "eth1")
	old.ask(t)
	onEdgeIP(t, "addr", "del", homeAddr+"/24", "dev", "eth1")
	took := eventually(t, movedWithin, "open at the new address", opened("home1", at(otherAddr)))
	told := took + eventually(t, movedWithin, "the status has the new address", has(otherAddr, true))
	told += eventually(t, movedWithin, "and not the old one", has(homeAddr, false))
	t.Logf("%s: open at another IPv4 address after %s, its status after %s", plane, took.Round(time.Millisecond), told.Round(time.Millisecond))
	moved := converse(t, "home1", at(otherAddr))
	moved.ask(t)

	// And back: what is open at an address follows it, however often.
	onEdgeIP(t, "addr", "add", homeAddr+"/24", "dev", "eth1")
	old.ask(t)
	moved.ask(t)
	onEdgeIP(t, "addr", "del", otherAddr+"/24", "dev", "eth1")
	eventually(t, movedWithin, "open at the old address", opened("home1", at(homeAddr)))
	eventually(t, movedWithin, "the status has the old address", has(homeAddr, true))
	old.ask(t)

	// Another IPv6 prefix.
	for _, host := range []struct{ name, device string }{{"home1", "eth0"}} {
		if _, err := lab.Exec(t.Context(), host.name, "ip", "addr", "add", "fd00:11:13::101/64", "dev", host.device, "nodad"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_, _ = lab.Exec(context.Background(), host.name, "ip", "addr", "del", "fd00:11:13::101/64", "dev", host.device)
		})
	}
	eventually(t, movedWithin, "open at IPv6", opened("home1", at(homeAddr6)))
	afterwards(t, "ip addr add "+homeAddr6+"/64 dev eth1 nodad", "ip addr del "+otherAddr6+"/64 dev eth1")
	onEdgeIP(t, "addr", "add", otherAddr6+"/64", "dev", "eth1", "nodad")
	onEdgeIP(t, "addr", "del", homeAddr6+"/64", "dev", "eth1")
	took = eventually(t, movedWithin, "open in the new prefix", opened("home1", at(otherAddr6)))
	told = took + eventually(t, movedWithin, "the status has the new prefix", has(otherAddr6, true))
	told += eventually(t, movedWithin, "and not the old one", has(homeAddr6, false))
	t.Logf("%s: open in another IPv6 prefix after %s, its status after %s", plane, took.Round(time.Millisecond), told.Round(time.Millisecond))
	onEdgeIP(t, "addr", "add", homeAddr6+"/64", "dev", "eth1", "nodad")
	onEdgeIP(t, "addr", "del", otherAddr6+"/64", "dev", "eth1")
	eventually(t, movedWithin, "the status has the old prefix", has(homeAddr6, true))
	old.ask(t) // IPv4 has not noticed

	// The cable.
	if err := lab.LinkDown("edge", "eth1"); err != nil {
		t.Fatal(err)
	}
	plugged := false
	t.Cleanup(func() {
		if !plugged {
			_ = lab.LinkUp("edge", "eth1")
		}
	})
	eventually(t, movedWithin, "nobody gets through", func() error {
		if _, err := get("home1", at(homeAddr), 200*time.Millisecond); err == nil {
			return errors.New("somebody does")
		}
		return nil
	})
	if err := lab.LinkUp("edge", "eth1"); err != nil {
		t.Fatal(err)
	}
	plugged = true
	took = eventually(t, movedWithin, "open again", opened("home1", at(homeAddr)))
	t.Logf("%s: open %s after the cable was plugged in again", plane, took.Round(time.Millisecond))
	old.ask(t)
	eventually(t, movedWithin, "the status is as before", has(homeAddr, true))

	elsewhere.finish(t) // not one was lost
}

// Neighbours hear of the edge's own prefix, and of another one when that is
// another: the old one is deprecated.
func advertisedPrefixMoves(t *testing.T) {
	const other = "fd00:77::1/64"
	restoreConfig(t)
	if err := writeConfig(config + "dhcp: {cluster: {routerAdvertisements: {}}}\n"); err != nil {
		t.Fatal(err)
	}
	hears := func(words ...string) func() error {
		return func() error {
			out, err := lab.Exec(t.Context(), "w1", "rdisc6", "-1", "-w", "700", "eth0")
			if err != nil {
				return err
			}
			for _, w := range words {
				if !strings.Contains(out, w) {
					return fmt.Errorf("it hears\n%s", out)
				}
			}
			return nil
		}
	}
	eventually(t, 15*time.Second, "the edge advertises", hears("Prefix                   : fd00:10::/64", "from fe80:"))
	advertised := func(prefix string) func() error {
		return func() error {
			_, body := admin(t, "/status.json")
			var s struct {
				Advertised []struct{ Prefixes, Deprecated []string }
			}
			if err := json.Unmarshal([]byte(body), &s); err != nil {
				return err
			}
			if got := fmt.Sprint(s.Advertised); !strings.Contains(got, prefix) {
				return fmt.Errorf("the status has %s", got)
			}
			return nil
		}
	}
	afterwards(t, "ip addr del "+other+" dev eth0")
	start := time.Now()
	onEdgeIP(t, "addr", "add", other, "dev", "eth0", "nodad")
	decided := eventually(t, movedWithin, "it is decided", advertised("fd00:77::/64"))
	eventually(t, movedWithin, "a neighbour hears of it", hears("Prefix                   : fd00:77::/64"))
	t.Logf("another prefix: decided after %s, heard by who asks after %s", decided.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	onEdgeIP(t, "addr", "del", other, "dev", "eth0")
	start = time.Now()
	eventually(t, movedWithin, "a neighbour hears that it is deprecated", hears("Prefix                   : fd00:77::/64", "Pref. time              :            0"))
	t.Logf("a prefix that is gone: deprecated after %s", time.Since(start).Round(time.Millisecond))
	eventually(t, movedWithin, "the status says so", advertised("[fd00:77::/64]"))
}
