package dhcp

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
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/leases"
	"e13.dev/gatehouse/internal/netnstest"
)

// patience is for what other programs do, on a machine that is busy.
const patience = 30 * time.Second

// served is a server with a disk, on the bridge br0 of the test's namespace.
type served struct {
	*Server
	t     *testing.T
	in    Inputs
	store *leases.Store
	stop  func()
	dir   string
	quiet bool
}

// bridge makes br0 with this machine's address.
func bridge(t *testing.T) {
	t.Helper()
	b := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	b.Name = "br0"
	if err := netlink.LinkAdd(b); err != nil {
		t.Fatal(err)
	}
	netnstest.LinkUp(t, nil, "br0")
	netnstest.Addr(t, nil, "br0", "10.0.0.1/24")
}

// plug makes a machine whose eth0 is on br0. Its hardware address ends in n.
func plug(t *testing.T, n byte) *netnstest.NS {
	t.Helper()
	ns := netnstest.New(t)
	name := fmt.Sprintf("p%d", n)
	netnstest.Cable(t, nil, name, ns, "eth0")
	ns.Do(t, func() {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, n})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	port, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	br, err := netlink.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(port, br); err != nil {
		t.Fatal(err)
	}
	return ns
}

// serve serves a zone on br0.
func serve(t *testing.T, change func(*config.Config)) *served {
	t.Helper()
	c := &config.Config{
		Zones: []edge.Zone{{Name: "cluster", Interfaces: []string{"br0"}}},
		DHCP: []config.DHCP{{
			Zone: "cluster", Pools: []edge.Range{span("10.0.0.100-10.0.0.149")}, LeaseTime: 12 * time.Hour, Probe: true,
			Reservations: []config.Reservation{{Node: "worker-1", Address: addr("10.0.0.12")}},
			Options: config.DHCPOptions{
				Domain: "home.example", Search: []string{"home.example", "cluster.home.example"}, DNS: []netip.Addr{addr("10.0.0.1")},
				NTP: []netip.Addr{addr("10.0.0.2")}, MTU: 1400, NextServer: addr("10.0.0.5"), BootFile: "pxelinux.0",
			},
		}},
	}
	if change != nil {
		change(c)
	}
	s := &served{t: t, dir: t.TempDir(), in: Inputs{Config: c}}
	i, err := net.InterfaceByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	s.in.Interfaces = []edge.Interface{{Name: "br0", Index: i.Index, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *served) start() {
	s.t.Helper()
	store, all, err := leases.Open(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.quiet {
		log = slog.New(slog.DiscardHandler)
	}
	s.store, s.Server = store, NewServer(log, all, store, func() {})
	zones, problems := Plan(s.in)
	if problems = append(problems, s.Apply(zones)...); len(problems) > 0 {
		s.t.Fatal(problems)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go store.Run(ctx)
	go s.Run(ctx)
	s.stop = func() {
		s.Close()
		cancel()
		store.Close()
	}
}

// lease is that of a hardware address that ends in n.
func (s *served) lease(n byte) (edge.Lease, bool) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, n}.String()
	for _, l := range s.Leases(time.Now()) {
		if l.MAC == mac && !l.Declined {
			return l, true
		}
	}
	return edge.Lease{}, false
}

func (s *served) messages() map[string]uint64 { return s.Status(time.Now())[0].Messages }

// private is a shell script, in which what clients write is
// nobody else's.
func private(script string, args ...string) *exec.Cmd {
	// A user namespace of one user has none to become; a /sys that cannot be written
	// says that there is no udev to wait for.
	const mounts = `d=$(mktemp -d)
grep -v _dhcpcd /etc/passwd | sed 's/^systemd-network:.*/systemd-network:x:0:0::\/:\/bin\/sh/' >$d/passwd
sed 's/^systemd-network:.*/systemd-network:x:0:/' /etc/group >$d/group
mount --bind $d/passwd /etc/passwd && mount --bind $d/group /etc/group
mount -t sysfs -o ro none /sys
for d in /var/lib/dhcpcd /run /etc/systemd/network; do [ -d $d ] && mount -t tmpfs none $d; done
mkdir -p /run/dhcpcd /run/systemd/network
`
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", mounts + script, "sh"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// in runs a program in a namespace to its end, and returns what it prints.
func in(t *testing.T, ns *netnstest.NS, script string, args ...string) string {
	t.Helper()
	cmd := private(script, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ns.Do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	timer := time.AfterFunc(patience, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer timer.Stop()
	err := cmd.Wait()
	t.Logf("%s\n%s%v", script, out.String(), err)
	return out.String()
}

// background runs a program in a namespace until the test ends.
func background(t *testing.T, ns *netnstest.NS, script string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := private(script, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	ns.Do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	return cmd
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("GATEHOUSE_NETNS") == "required" {
				t.Fatalf("%s is not here: make deps installs it", p)
			}
			t.Skipf("%s is not here", p)
		}
	}
}

// hook is a script for a client, which prints what it was told.
func hook(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func has(t *testing.T, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("%q is not in\n%s", p, out)
		}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	netnstest.Eventually(t, patience, what, condition)
}

func TestNetnsUdhcpc(t *testing.T) {
	need(t, "udhcpc")
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, nil)
		ns := plug(t, 7)
		const told = `[ "$1" = deconfig ] || env | sort; exit 0`
		script := hook(t, told)
		out := in(t, ns, `exec udhcpc -f -i eth0 -q -n -t 5 -T 2 -s "$1" -x hostname:Laptop.lan -O search -O ntpsrv -O mtu -O tftp -O bootfile -O broadcast`, script)
		l, ok := s.lease(7)
		if !ok || l.Hostname != "laptop" {
			t.Fatalf("the lease is %v, %v", l, ok)
		}
		has(t, out, "ip="+l.Addr.String(), "lease=43200", "mask=24", "router=10.0.0.1", "dns=10.0.0.1", "domain=home.example", "serverid=10.0.0.1",
			"search=home.example cluster.home.example", "ntpsrv=10.0.0.2", "mtu=1400", "broadcast=10.0.0.255", "siaddr=10.0.0.5", "boot_file=pxelinux.0", "tftp=10.0.0.5", "bootfile=pxelinux.0")

		// It renews by unicast from its address, and releases at its end.
		s.stop()
		s.start() // another process goes on
		renewed := hook(t, `case $1 in bound|renew) ip addr replace $ip/$mask dev eth0; echo $1 >>`+filepath.Join(s.dir, "events")+`;; esac; exit 0`)
		cmd := background(t, ns, `exec udhcpc -f -i eth0 -n -R -s "$1"`, renewed)
		events := func() string { b, _ := os.ReadFile(filepath.Join(s.dir, "events")); return string(b) }
		eventually(t, "bound", func() bool { return strings.Contains(events(), "bound") })
		if again, _ := s.lease(7); again.Addr != l.Addr {
			t.Errorf("it got %s, and had %s", again.Addr, l.Addr)
		}
		before, _ := s.lease(7)
		_ = cmd.Process.Signal(syscall.SIGUSR1)
		eventually(t, "renewed", func() bool { return strings.Contains(events(), "renew") })
		if after, _ := s.lease(7); !after.Expires.After(before.Expires) || after.Addr != l.Addr {
			t.Errorf("%v has become %v", before, after)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		eventually(t, "released", func() bool { _, ok := s.lease(7); return !ok })
	})
}

func TestNetnsDhclient(t *testing.T) {
	need(t, "dhclient")
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, nil)
		ns := plug(t, 8)
		dir := t.TempDir()
		script := hook(t, `case $reason in BOUND|REBOOT|RENEW) env | sort; ip addr replace $new_ip_address/24 dev eth0;; esac; exit 0`)
		conf := filepath.Join(dir, "conf")
		if err := os.WriteFile(conf, []byte("send host-name \"worker-1\";\nrequest subnet-mask, routers, domain-name-servers, domain-search, ntp-servers, interface-mtu;\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		dhclient := func(args string) string {
			return in(t, ns, `exec dhclient -v -cf `+conf+` -lf `+dir+`/leases -pf `+dir+`/pid -sf "$1" `+args+` eth0`, script)
		}
		out := dhclient("-1")
		has(t, out, "new_ip_address=10.0.0.12", "new_subnet_mask=255.255.255.0", "new_routers=10.0.0.1", "new_domain_name_servers=10.0.0.1",
			"new_domain_search=home.example. cluster.home.example.", "new_ntp_servers=10.0.0.2", "new_interface_mtu=1400", "new_dhcp_lease_time=43200", "new_dhcp_renewal_time=21600", "new_dhcp_rebinding_time=37800")
		if l, ok := s.lease(8); !ok || l.Addr != addr("10.0.0.12") || l.Hostname != "worker-1" || !l.Reserved {
			t.Errorf("the lease is %v, %v", l, ok)
		}
		dhclient("-r")
		eventually(t, "released", func() bool { _, ok := s.lease(8); return !ok })
	})
}

func TestNetnsDhcpcd(t *testing.T) {
	need(t, "dhcpcd")
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, noProbe) // it looks by itself
		ns := plug(t, 9)
		script := hook(t, `echo "reason $reason"; env | grep ^new_; exit 0`)
		out := in(t, ns, `dhcpcd -1 -4 -B -d -h phone -c "$1" -o domain_search,ntp_servers,interface_mtu -f /dev/null eth0; ip -4 -o addr show eth0
			echo AGAIN; ip addr flush eth0; dhcpcd -1 -4 -B -d -h phone -c "$1" -f /dev/null eth0`, script)
		l, ok := s.lease(9)
		if !ok || l.Hostname != "phone" {
			t.Fatalf("the lease is %v, %v", l, ok)
		}
		has(t, out, "new_ip_address="+l.Addr.String(), "new_domain_search=home.example cluster.home.example", "new_ntp_servers=10.0.0.2", "new_interface_mtu=1400", "new_dhcp_lease_time=43200")
		_, again, _ := strings.Cut(out, "AGAIN")
		has(t, again, "new_ip_address="+l.Addr.String())
		if got := s.messages(); got["DISCOVER"] != 1 || got["REQUEST"] != 2 || got["ACK"] != 2 || got["NAK"] != 0 {
			t.Errorf("messages: %v, want one INIT-REBOOT", got)
		}
		out = in(t, ns, `ip addr flush eth0; ip addr add 10.0.0.200/24 dev eth0; dhcpcd -1 -4 -B -d -o domain_name_servers -s 10.0.0.200/24 -c "$1" -f /dev/null eth0`, script)
		has(t, out, "reason INFORM", "new_domain_name_servers=10.0.0.1", "new_routers=10.0.0.1")
	})
}

// TestNetnsAConflictIsDeclined has somebody on the cable who took the address that
// a machine is about to get. The server does not look here; the client does.
func TestNetnsAConflictIsDeclined(t *testing.T) {
	need(t, "dhcpcd")
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, func(c *config.Config) {
			noProbe(c)
			c.DHCP[0].Pools = []edge.Range{span("10.0.0.100-10.0.0.101")}
		})
		squatter, ns := plug(t, 0xee), plug(t, 9)
		netnstest.Addr(t, squatter, "eth0", "10.0.0.100/24")
		in(t, ns, `exec dhcpcd -1 -4 -B -d -r 10.0.0.100 -c /bin/true -f /dev/null -t 25 eth0`)
		eventually(t, "the other address is its", func() bool { l, ok := s.lease(9); return ok && l.Addr == addr("10.0.0.101") })
		if got := s.messages(); got["DECLINE"] == 0 {
			t.Errorf("messages: %v, want a DECLINE", got)
		}
		all := s.Leases(time.Now())
		if len(all) != 2 || !all[0].Declined || all[0].Addr != addr("10.0.0.100") {
			t.Errorf("leases: %v", all)
		}
	})
}

// TestNetnsAnAddressInUseIsNotOffered: the server looks first, and finds it.
func TestNetnsAnAddressInUseIsNotOffered(t *testing.T) {
	need(t, "udhcpc")
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, func(c *config.Config) { c.DHCP[0].Pools = []edge.Range{span("10.0.0.100-10.0.0.101")} })
		squatter, ns := plug(t, 0xee), plug(t, 9)
		netnstest.Addr(t, squatter, "eth0", "10.0.0.100/24")
		in(t, ns, `exec udhcpc -f -i eth0 -q -n -t 5 -T 3 -s /bin/true -r 10.0.0.100`)
		if l, ok := s.lease(9); !ok || l.Addr != addr("10.0.0.101") {
			t.Errorf("the lease is %v, %v", l, ok)
		}
		all := s.Leases(time.Now())
		if len(all) != 2 || !all[0].Declined || all[0].MAC != "02:00:00:00:00:ee" {
			t.Errorf("leases: %v", all)
		}
	})
}

func TestNetnsNetworkd(t *testing.T) {
	const networkd = "/usr/lib/systemd/systemd-networkd"
	need(t, networkd)
	netnstest.Run(t, func() {
		bridge(t)
		s := serve(t, nil)
		ns := plug(t, 10)
		background(t, ns, `printf "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[DHCPv4]\nHostname=worker-1\nUseMTU=yes\n" >/run/systemd/network/a.network
			exec `+networkd)
		eventually(t, "it has its address", func() bool {
			found := false
			ns.Do(t, func() {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					t.Fatal(err)
				}
				addrs, _ := netlink.AddrList(l, netlink.FAMILY_V4)
				found = len(addrs) == 1 && addrs[0].IPNet.String() == "10.0.0.12/24" && l.Attrs().MTU == 1400
			})
			return found
		})
		if l, ok := s.lease(10); !ok || l.Addr != addr("10.0.0.12") || l.ClientID == "" {
			t.Errorf("the lease is %v, %v", l, ok)
		}
	})
}

// TestNetnsRelayAgent has a machine two cables away, behind dnsmasq.
func TestNetnsRelayAgent(t *testing.T) {
	need(t, "udhcpc", "dnsmasq")
	netnstest.Run(t, func() {
		bridge(t)
		agent, ns := plug(t, 2), netnstest.New(t)
		netnstest.Cable(t, agent, "eth1", ns, "eth0")
		netnstest.Addr(t, agent, "eth0", "10.0.0.2/24")
		netnstest.Addr(t, agent, "eth1", "10.2.0.1/24")
		netnstest.Route(t, nil, "10.2.0.0/24", "10.0.0.2")
		netnstest.Route(t, agent, "default", "10.0.0.1")
		agent.Do(t, func() {
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil { // of the thread's namespace
				t.Fatal(err)
			}
		})
		s := serve(t, func(c *config.Config) {
			c.DHCP[0].Relayed = []config.RelayedNetwork{{Network: netip.MustParsePrefix("10.2.0.0/24"), Pools: []edge.Range{span("10.2.0.50-10.2.0.51")}}}
		})
		background(t, agent, `exec dnsmasq -C /dev/null -d -p 0 --user=root --pid-file --dhcp-relay=10.2.0.1,10.0.0.1`)
		// Somebody behind the relay agent has one of the addresses.
		netnstest.Addr(t, agent, "eth1", "10.2.0.50/24")
		events := filepath.Join(t.TempDir(), "events")
		happened := func(what string) bool { b, _ := os.ReadFile(events); return strings.Contains(string(b), what) }
		script := hook(t, `[ "$1" = deconfig ] || env | sort; [ -z "$ip" ] || ip addr replace $ip/$mask dev eth0; [ -z "$router" ] || ip route replace default via $router; echo $1 >>`+events+`; exit 0`)
		out := in(t, ns, `for i in 1 2 3 4 5; do udhcpc -f -i eth0 -q -n -t 5 -T 3 -s "$1" -r 10.2.0.50 && break; done`, script)
		has(t, out, "ip=10.2.0.51", "router=10.2.0.1", "dns=10.0.0.1", "serverid=10.0.0.1", "mask=24")
		all := s.Leases(time.Now())
		if len(all) != 2 || !all[0].Declined || all[1].Addr != addr("10.2.0.51") {
			t.Errorf("leases: %v", all)
		}
		// Renewed by unicast, past the relay agent.
		if err := os.Remove(events); err != nil {
			t.Fatal(err)
		}
		cmd := background(t, ns, `exec udhcpc -f -i eth0 -s "$1" -r 10.2.0.51`, script)
		eventually(t, "bound", func() bool { return happened("bound") })
		before := s.messages()["ACK"]
		_ = cmd.Process.Signal(syscall.SIGUSR1)
		eventually(t, "renewed", func() bool { return happened("renew") })
		if got := s.messages()["ACK"]; got != before+1 {
			t.Errorf("%d ACKs, want one more than %d", got, before)
		}
	})
}
