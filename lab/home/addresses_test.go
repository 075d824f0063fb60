package home

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// The box has what its configuration says, and the home router gave it the rest.
func TestTheBoxHasItsAddresses(t *testing.T) {
	for _, want := range []string{"eth0 10.0.0.1/24", "eth0 fd00:10::1/64", "eth1 10.11.12.32/24", "eth1 fd00:11:12::32/64", "veth0 10.11.12.51/24"} {
		iface, addr, _ := strings.Cut(want, " ")
		if out := shell(t, "edge", "ip -br addr show dev "+iface); !strings.Contains(out+" ", " "+addr+" ") {
			t.Errorf("%s lacks %s: %s", iface, addr, out)
		}
	}
	if out := shell(t, "edge", "ip -4 route show default"); !strings.HasPrefix(out, "default via 10.11.12.1 dev veth0") || strings.Contains(out, "eth1") {
		t.Errorf("the way to the Internet is not by veth0: %s", out)
	}
	if out := shell(t, "router", "cat /run/dnsmasq.leases"); !strings.Contains(out, " 10.11.12.32 rpi0 ") || !strings.Contains(out, " 10.11.12.51 rpi0-internet ") {
		t.Errorf("the home router does not know the box by its names:\n%s", out)
	}
}

// All machines of the cluster were given their addresses and names before there was a cluster, and what they need
// beside them.
func TestMachinesGetTheirAddresses(t *testing.T) {
	for host, want := range map[string]string{"cp": site.ControlPlane, "nas": site.Storage, "w1": "10.0.0.101", "w2": "10.0.0.102", "w3": "10.0.0.103"} {
		told, err := lab.LeaseOf(host)
		if err != nil {
			t.Error(err)
			continue
		}
		for key, value := range map[string]string{
			"ip": want, "mask": "24", "router": "10.0.0.1", "dns": "10.0.0.1", "domain": "home.example", "serverid": "10.0.0.1", "lease": "43200",
		} {
			if told[key] != value {
				t.Errorf("%s is told %s %q, want %q", host, key, told[key], value)
			}
		}
		if told["hostname"] != host {
			t.Errorf("%s is told that it is called %q", host, told["hostname"])
		}
		six := netip.MustParseAddr("fd00:10::" + want[strings.LastIndex(want, ".")+1:])
		eventually(t, 10*time.Second, host+" has an IPv6 address and a way out", func() error {
			addrs, routes := shell(t, host, "ip -6 addr show dev eth0"), shell(t, host, "ip -6 route show default")
			if !strings.Contains(addrs, six.String()+"/64") || !strings.Contains(routes, "proto ra") {
				return fmt.Errorf("%s\n%s", addrs, routes)
			}
			return nil
		})
	}
	if told, err := lab.LeaseOf("home1"); err != nil || told["serverid"] != site.RouterHome {
		t.Errorf("at home, somebody else than the home router gives addresses: %v, %v", told, err)
	}
}

// A machine that nobody has written down gets an address of the pool, and the name by which it calls itself.
func TestAStrangerGetsAnAddress(t *testing.T) {
	if err := lab.Attach(t.Context(), "home2", "eth9", "cluster"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Detach(context.WithoutCancel(t.Context()), "home2", "eth9"); err != nil {
			t.Error(err)
		}
	})
	out := shell(t, "home2", `printf '#!/bin/sh\n[ $1 = bound ] && echo "got $ip"\nexit 0\n' >/run/said && chmod +x /run/said &&
		udhcpc -n -q -i eth9 -t 10 -T 1 -x hostname:printer -s /run/said 2>&1`)
	_, got, _ := strings.Cut(out, "got ")
	got, _, _ = strings.Cut(got, "\n")
	addr, err := netip.ParseAddr(got)
	if err != nil || addr.Less(netip.MustParseAddr("10.0.0.150")) || netip.MustParseAddr("10.0.0.199").Less(addr) {
		t.Fatalf("it gets %q, which is not of the pool:\n%s", got, out)
	}
	eventually(t, 5*time.Second, "its name is known", func() error {
		if said := shell(t, "w1", "dig +short @10.0.0.1 printer.home.example"); said != addr.String() {
			return fmt.Errorf("printer.home.example is %q", said)
		}
		return nil
	})
}
