package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// udhcpc runs a client at eth0 of a namespace until it has a lease, or gives up.
func udhcpc(t *testing.T, ns *netnstest.NS, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("udhcpc"); err != nil {
		if os.Getenv("GATEHOUSE_NETNS") == "required" {
			t.Fatal("udhcpc is not here: make deps installs it")
		}
		t.Skip("udhcpc is not here")
	}
	script := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = deconfig ] || echo \"has $ip from $serverid dns $dns\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "udhcpc", append([]string{"-f", "-i", "eth0", "-q", "-n", "-t", "4", "-T", "2", "-s", script}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	ns.Do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	_ = cmd.Wait() // it says so
	t.Log(out.String())
	return out.String()
}

func dhcpDecision(t *testing.T, file string) decision {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(file)}})
	if c == nil {
		t.Fatal(problems)
	}
	d := decision{in: desired.Inputs{Config: c}}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		is := edge.Interface{Name: i.Name, Index: i.Index, Up: true}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				is.Addrs = append(is.Addrs, p)
			}
		}
		d.in.Interfaces = append(d.in.Interfaces, is)
	}
	return d
}

const dhcpFile = `apiVersion: gatehouse.e13.dev/v1
stateDir: %s
zones: {cluster: {interfaces: [lan0]}}
dhcp: {cluster: {pools: [10.0.0.100-10.0.0.109], probe: false}}
`

// TestNetnsDHCPGoesOnInAnotherProcess hands leases over and back.
func TestNetnsDHCPGoesOnInAnotherProcess(t *testing.T) {
	netnstest.Run(t, func() {
		ns := netnstest.New(t)
		netnstest.Cable(t, nil, "lan0", ns, "eth0")
		netnstest.Addr(t, nil, "lan0", "10.0.0.1/24")
		now := dhcpDecision(t, fmt.Sprintf(dhcpFile, t.TempDir()))
		log := slog.New(slog.NewTextHandler(t.Output(), nil))
		apply := func(x *dhcp, want string) {
			t.Helper()
			var got []string
			for _, p := range x.apply(context.Background(), now) {
				got = append(got, p.String())
			}
			if text := strings.Join(got, "\n"); text != want && (want == "" || !strings.Contains(text, want)) {
				t.Fatalf("problems:\n%s\nwant %s", text, want)
			}
		}
		first, second := newDHCP(log, func() {}), newDHCP(log, func() {})
		apply(first, "")
		out := udhcpc(t, ns, "-x", "hostname:laptop")
		lease := first.leases()
		if len(lease) != 1 || lease[0].Hostname != "laptop" || !strings.Contains(out, "has "+lease[0].Addr.String()+" from 10.0.0.1") {
			t.Fatalf("leases %v\n%s", lease, out)
		}
		apply(second, "another process has it; stop the other gatehouse, or give it another stateDir")
		first.retire(true)
		if apply(first, ""); first.leases() != nil {
			t.Error("the first serves on")
		}
		apply(second, "")
		if got := second.leases(); len(got) != 1 || got[0] != lease[0] {
			t.Errorf("leases %v, want %v", got, lease)
		}
		udhcpc(t, ns, "-r", lease[0].Addr.String())
		got := second.leases()
		if len(got) != 1 || got[0].Addr != lease[0].Addr || !got[0].Expires.After(lease[0].Expires) {
			t.Errorf("leases %v, want a later one than %v", got, lease)
		}
		second.retire(true)
		first.retire(false)
		apply(first, "")
		if again := first.leases(); len(again) != 1 || again[0] != got[0] {
			t.Errorf("leases %v, want %v", again, got)
		}
		// Without the block nothing is left, and nobody is answered.
		now = dhcpDecision(t, "apiVersion: gatehouse.e13.dev/v1\nzones: {cluster: {interfaces: [lan0]}}\n")
		apply(first, "")
		if first.leases() != nil || first.status(now.in.Config) != nil {
			t.Error("it serves on")
		}
		c, err := net.ListenPacket("udp4", ":67")
		if err != nil {
			t.Errorf("the port is not free: %v", err)
		} else {
			c.Close()
		}
	})
}

// TestNetnsTheDaemonGivesAddresses has all of it, from a file to a machine, and a
// change of the file.
func TestNetnsTheDaemonGivesAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		ns := netnstest.New(t)
		netnstest.Cable(t, nil, "lan0", ns, "eth0")
		netnstest.Addr(t, nil, "lan0", "10.0.0.1/24")
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		text := fmt.Sprintf(dhcpFile, t.TempDir())
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		d := start(t, file)
		zone := func() error {
			zones := d.Status().DHCP
			if len(zones) != 1 || zones[0].Size != 10 || zones[0].Error != "" {
				return fmt.Errorf("status: %+v", zones)
			}
			return nil
		}
		eventually(t, "it serves", zone)
		if out := udhcpc(t, ns, "-x", "hostname:worker-1"); !strings.Contains(out, "has 10.0.0.10") {
			t.Errorf("no lease:\n%s", out)
		}
		eventually(t, "the page has it", func() error {
			z := d.Status().DHCP
			if len(z) != 1 || z[0].Free != 9 || len(z[0].Leases) != 1 || z[0].Messages["ACK"] != 1 {
				return fmt.Errorf("status: %+v", z)
			}
			return nil
		})
		text = strings.Replace(text, "probe: false", "probe: false, reservations: [{node: worker-1, address: 10.0.0.12}]", 1)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has the address that is reserved", func() error {
			if out := udhcpc(t, ns, "-x", "hostname:worker-1"); !strings.Contains(out, "has 10.0.0.12 from 10.0.0.1") {
				return fmt.Errorf("it has another:\n%s", out)
			}
			return nil
		})
		netnstest.AddrDel(t, nil, "lan0", "10.0.0.1/24")
		eventually(t, "a problem", func() error {
			for _, p := range d.Status().Problems {
				if strings.Contains(p.What, "no interface of the zone has an IPv4 address in the network of 10.0.0.100-10.0.0.109") {
					return nil
				}
			}
			return fmt.Errorf("problems: %v", d.Status().Problems)
		})
	})
}
