package teardown

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filter"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/links"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/vip"
)

const mark = 0x1000

var delivery = host.Delivery{Mark: mark, Priority: mark, Table: mark}

// The test binary is also a process that has checked in, until its standard
// input ends.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "stay" {
		if _, err := host.CheckIn(); err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("here\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine is all that could be left behind.
func machine(t *testing.T) string {
	t.Helper()
	return command(t, "nft", "-s", "list", "ruleset") +
		command(t, "ip", "-o", "address") + command(t, "ip", "rule") + command(t, "ip", "-6", "rule") +
		command(t, "ip", "route", "show", "table", "all") + command(t, "ip", "-6", "route", "show", "table", "all")
}

func frontend(protocol edge.Protocol, port uint16, backend string) edge.Frontend {
	f := edge.Frontend{
		Door: edge.Door{Protocol: protocol, Listen: edge.Listen{Device: "eth1", Port: port}}, DataPlane: edge.DataPlaneNAT,
		Name: "web", Terms: edge.Terms{Balance: edge.BalanceRandom},
	}
	if backend != "" {
		f.Backends = []edge.Backend{{Addr: netip.MustParseAddrPort(backend), Weight: 1, State: edge.Up, Share: 1}}
	}
	return f
}

// client is a connection of the home client's.
type client struct{ net.Conn }

func dial(t *testing.T, ns *netnstest.NS, network, to string) client {
	t.Helper()
	var c net.Conn
	ns.Do(t, func() {
		var err error
		if c, err = net.DialTimeout(network, to, 3*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = c.Close() })
	if network == "tcp" {
		if seen, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatalf("the backend says %q, %v", seen, err)
		}
	}
	return client{c}
}

// answered says whether the backend says something back.
func (c client) answered(t *testing.T) error {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 100))
	return err
}

// haveAddresses puts addresses of pools on eth1.
func haveAddresses(t *testing.T, addrs ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	k, ended := vip.New(slog.New(slog.DiscardHandler), vip.Options{}), make(chan error)
	go func() { ended <- k.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	var wanted []edge.Address
	for _, a := range addrs {
		wanted = append(wanted, edge.Address{Addr: netip.MustParseAddr(a), Device: "eth1"})
	}
	if err := k.Apply(ctx, wanted, nil); err != nil {
		t.Fatal(err)
	}
	netnstest.Eventually(t, 10*time.Second, "addresses are ready", func() bool {
		states := k.Snapshot()
		return !slices.ContainsFunc(wanted, func(a edge.Address) bool { return !states[a.Addr].Ready })
	})
}

// Everything of gatehouse's goes, what has begun is cut, and what is of others
// stays as it was.
func TestNetnsNothingIsLeft(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 9000)
		netnstest.Mirror(t, site.Pod, 9001)
		command(t, "nft", `table inet theirs { chain dstnat { type nat hook prerouting priority dstnat; iifname eth1 tcp dport 8080 dnat ip to 10.244.1.5:9000; }; }`)
		command(t, "ip", "route", "add", "10.244.9.0/24", "via", "10.0.0.101", "proto", "static")
		theirs := dial(t, site.Home, "tcp", "10.11.12.32:8080")
		// The kernel writes down link-local addresses once nobody else was heard to have them.
		netnstest.Eventually(t, 10*time.Second, "addresses that are no more tentative", func() bool {
			return !strings.Contains(command(t, "ip", "-6", "address"), "tentative")
		})
		before := machine(t)

		if removed, err := Run(t.Context(), delivery); err != nil || len(removed) > 0 {
			t.Errorf("where nothing is, it has removed %q, %v", removed, err)
		}

		a := nat.New()
		state := func(backend string) nat.State {
			return nat.State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, backend), frontend(edge.UDP, 53, "10.244.1.5:9000")}}
		}
		if _, err := a.Apply(t.Context(), state("10.244.1.5:9000")); err != nil {
			t.Fatal(err)
		}
		former := dial(t, site.Home, "tcp", "10.11.12.32:80")
		if _, err := a.Apply(t.Context(), state("10.244.1.5:9001")); err != nil {
			t.Fatal(err)
		}
		now := dial(t, site.Home, "tcp", "10.11.12.32:80")
		session := dial(t, site.Home, "udp", "10.11.12.32:53")
		for name, c := range map[string]client{"to a former backend": former, "to a backend": now, "UDP": session, "somebody else's": theirs} {
			if err := c.answered(t); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if _, err := nft.New().Apply(t.Context(), nft.State{TransparentMark: mark}); err != nil {
			t.Fatal(err)
		}
		if _, err := delivery.Apply(); err != nil {
			t.Fatal(err)
		}
		var routes host.Routes
		problems, changed := routes.Apply([]edge.Route{
			{Dst: netip.MustParsePrefix("10.244.2.0/24"), Via: netip.MustParseAddr("10.0.0.101")},
			{Dst: netip.MustParsePrefix("fd44:2::/64"), Via: netip.MustParseAddr("fd00::101")},
		})
		if len(problems) > 0 || !changed {
			t.Fatalf("the routes: %v, changed %t", problems, changed)
		}

		haveAddresses(t, "10.11.12.70", "fd12::70")
		rules := firewall.Compile(firewall.Inputs{Config: &config.Config{Zones: []edge.Zone{{Name: "home", Interfaces: []string{"eth1"}}}}})
		if changed, err := filter.New().Apply(t.Context(), &rules, false); err != nil || !changed {
			t.Fatalf("the firewall: %t, %v", changed, err)
		}

		// The interface that gatehouse makes, and an address on one of somebody else's.
		_, problems = links.New(slog.New(slog.DiscardHandler)).Apply(links.Want{Links: []links.Link{
			{Link: config.Link{Name: "m0", Macvlan: &config.Macvlan{Parent: "eth1", Mode: "bridge"}, Metric: 100}},
			{Link: config.Link{Name: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}, Metric: 101}},
		}}, time.Now())
		if len(problems) > 0 {
			t.Fatalf("links: %v", problems)
		}

		removed, err := Run(t.Context(), delivery)
		want := []string{
			"nftables table inet gatehouse, which had UDP @eth1:53, TCP @eth1:80", "3 connections that the kernel followed",
			"nftables table inet gatehouse-firewall: what it kept out may come in now",
			"addresses of pools, and nftables tables inet and arp gatehouse-addresses", "links: interface m0, 192.0.2.1/24 on eth1", "routes to pods",
			"nftables table inet gatehouse-transparent", "rules and routes of transparent relaying",
		}
		if err != nil || !slices.Equal(removed, want) {
			t.Errorf("removed %q, %v; want %q", removed, err, want)
		}
		if after := machine(t); after != before {
			t.Errorf("the machine has\n%s\nand had before\n%s", after, before)
		}
		for name, c := range map[string]client{"to a former backend": former, "to a backend": now} {
			if err := c.answered(t); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", name, err)
			}
		}
		if err := session.answered(t); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP: %v, want a refusal", err)
		}
		if err := theirs.answered(t); err != nil {
			t.Errorf("somebody else's: %v", err)
		}
		flows, err := conntrack.List(t.Context(), conntrack.Filter{DNAT: true})
		if err != nil || len(flows) != 1 || flows[0].Front.Port() != 8080 {
			t.Errorf("the kernel follows %v, %v; want somebody else's alone", flows, err)
		}
		if removed, err := Run(t.Context(), delivery); err != nil || len(removed) > 0 {
			t.Errorf("the second time it has removed %q, %v", removed, err)
		}
	})
}

// While a gatehouse runs here nothing is touched; one in another namespace does
// not matter.
func TestNetnsNothingIsRemovedUnderARunningOne(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.NewSite(t)
		a := nat.New()
		if _, err := a.Apply(t.Context(), nat.State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, "")}}); err != nil {
			t.Fatal(err)
		}
		before := machine(t)
		stay := exec.CommandContext(t.Context(), os.Args[0], "stay")
		in, err := stay.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := stay.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := stay.Start(); err != nil {
			t.Fatal(err)
		}
		if said, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("it says %q, %v", said, err)
		}
		removed, err := Run(t.Context(), delivery)
		running, ok := errors.AsType[*RunningError](err)
		if !ok || !reflect.DeepEqual(running.Pids, []int{stay.Process.Pid}) || len(removed) > 0 {
			t.Errorf("removed %q, %v; want process %d to be told", removed, err, stay.Process.Pid)
		}
		if want := "gatehouse runs here (process " + strconv.Itoa(stay.Process.Pid) + ")"; ok && err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
		if after := machine(t); after != before {
			t.Errorf("the machine has\n%s\nand had before\n%s", after, before)
		}
		_ = in.Close()
		if err := stay.Wait(); err != nil {
			t.Fatal(err)
		}
		removed, err = Run(t.Context(), delivery)
		if want := []string{"nftables table inet gatehouse, which had TCP @eth1:80"}; err != nil || !slices.Equal(removed, want) {
			t.Errorf("once it is gone, it has removed %q, %v; want %q", removed, err, want)
		}
	})
}
