package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	packetfilter "e13.dev/gatehouse/internal/filter"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/status"
)

// filterConfig has doors of both data planes, and a program of somebody else's on
// a port that a frontend asks for.
const filterConfig = `apiVersion: gatehouse.e13.dev/v1
stopTimeout: 1s
zones:
  home: {interfaces: [eth1]}
frontends:
  - {name: relayed, zones: [home], port: 80, backends: [{address: "10.244.1.5:8080"}]}
  - {name: translated, zones: [home], port: 81, dataPlane: nat, backends: [{address: "10.244.1.5:8080"}]}
  - {name: taken, zones: [home], port: 22, backends: [{address: "10.244.1.5:8080"}]}
firewall:
  policies:
    - {from: home, to: self, ports: [8022]}
`

func connects(t *testing.T, ns *netnstest.NS, addr string, want bool) func() error {
	return func() (err error) {
		ns.Do(t, func() {
			var c net.Conn
			if c, err = net.DialTimeout("tcp", addr, 300*time.Millisecond); err == nil {
				_ = c.Close()
			}
		})
		switch {
		case want && err != nil:
			return fmt.Errorf("%s: %w", addr, err)
		case !want && err == nil:
			return fmt.Errorf("%s can be reached", addr)
		}
		return nil
	}
}

// What is open can be reached and nothing else, whatever somebody does to the
// table; that stays so when the daemon ends, and ends with the block.
func TestNetnsFirewall(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 8080)
		for _, port := range []int{22, 8022, 8023} {
			netnstest.Mirror(t, nil, port) // others' programs
		}
		sh(t, "nft '"+someoneElses+"'")
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		write(t, file, filterConfig)
		reach := func(when string, relay bool) {
			t.Helper()
			for addr, want := range map[string]bool{
				"10.11.12.32:80": relay, "10.11.12.32:81": true, "10.11.12.32:8022": true, "[fd12::32]:8022": true,
				"10.11.12.32:8023": false, "10.0.0.1:8023": false, "10.11.12.32:22": false, "10.244.1.5:8080": false, "[fd44::5]:8080": false,
			} {
				eventually(t, when, connects(t, site.Home, addr, want))
			}
		}
		run(t, file, func(d *Daemon) {
			reach("at first", true)
			for _, damage := range []string{"flush ruleset", "delete table inet " + packetfilter.Table, "flush chain inet " + packetfilter.Table + " input"} {
				sh(t, "nft '"+damage+"'")
				reach("after "+damage, true)
			}
			f := d.Status().Firewall
			if f == nil || !f.Applied || f.Error != "" || len(f.Policies) != 1 || f.Policies[0].What != "home -> self: 8022/TCP" || f.Pinholes != 2 {
				t.Errorf("the status has %+v", f)
			}
			eventually(t, "counted", func() error {
				f := d.Status().Firewall
				if f.Policies[0].Packets == 0 || !slices.ContainsFunc(f.Dropped, func(d status.Dropped) bool { return d.From == "home" && d.To == "self" && d.Packets > 0 }) ||
					!slices.ContainsFunc(f.Dropped, func(d status.Dropped) bool { return d.From == "home" && d.To == "" && d.Packets > 0 }) {
					return fmt.Errorf("%+v", f)
				}
				return nil
			})
			found := false
			for _, p := range d.Status().Problems {
				found = found || strings.HasSuffix(p.String(), "firewall: interface eth0 is in no zone: the firewall lets nothing in there; give each a zone; one that no policy names stays shut")
			}
			if !found {
				t.Errorf("no problem says that eth0 is in no zone: %v", d.Status().Problems)
			}
		})
		reach("after its end", false)
		before, _, _ := strings.Cut(filterConfig, "firewall:")
		write(t, file, before)
		run(t, file, func(*Daemon) {
			eventually(t, "without the block", connects(t, site.Home, "10.11.12.32:8023", true))
			if got := sh(t, "nft list ruleset"); strings.Contains(got, packetfilter.Table) {
				t.Errorf("left behind:\n%s", got)
			}
			write(t, file, filterConfig)
			eventually(t, "with the block again", connects(t, site.Home, "10.11.12.32:8023", false))
			write(t, file, before)
			eventually(t, "and without", connects(t, site.Home, "10.11.12.32:8023", true))
		})
	})
}

// A machine is made a router behind its firewall: where that cannot be, it lets
// nothing through that it did not before.
func TestNetnsNoForwardingWithoutTheFirewall(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.NewSite(t)
		netnstest.Setting(t, nil, "net/ipv4/ip_forward", "0")
		netnstest.Setting(t, nil, "net/ipv6/conf/all/forwarding", "0")
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		write(t, file, "apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth1]}}\nlinks: [{name: eth0, forwarding: true}]\nfirewall: {policies: []}\n")
		forwards := func() string {
			return sh(t, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding")
		}
		path := os.Getenv("PATH")
		t.Setenv("PATH", t.TempDir())
		run(t, file, func(d *Daemon) {
			eventually(t, "a firewall without nft", func() error {
				if f := d.Status().Firewall; f == nil || f.Applied || !strings.Contains(f.Error, "nft command is not installed") {
					return fmt.Errorf("%+v", f)
				}
				return nil
			})
			t.Setenv("PATH", path)
			if got := forwards(); got != "0\n0\n" {
				t.Errorf("it forwards (%q) and filters nothing", got)
			}
			write(t, file, "apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth1]}}\nfirewall: {policies: [{from: home, to: self, ports: [ssh]}]}\n")
			eventually(t, "a firewall", func() error {
				if got := forwards(); got != "1\n1\n" {
					return fmt.Errorf("forwarding is %q", got)
				}
				return nil
			})
		})
	})
}
