package site

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A bare lab (Options.Bare) is the site before anybody has configured it. The edge has two interfaces and no address;
// gatehouse, started first of all, makes it a router. Every other machine behind the home router asks for what it needs
// by DHCP: those at home ask the home router, those of the cluster ask gatehouse. So the control plane starts on an
// address that gatehouse has given, and the storage box is there, too.

// What a bare lab has beside the others.
const (
	Storage     = "10.0.0.20" // nas, which listens on StoragePort
	StoragePort = "2049"      // NFS's

	InternetClient6 = "2001:db8:113::10"
	HomePrefix6     = "2001:db8:11:12::/64" // what the provider has given to the home; the home router advertises it
	internetRouter6 = "2001:db8:113::1"

	// The home router knows both of the edge's interfaces by these; veth0 is made by gatehouse.
	homeMAC    = "02:00:00:00:12:32"
	exposedMAC = "02:00:00:00:12:51"
)

// leased is a machine that asks for its address.
type leased struct {
	name, segment string
	last          string   // part of its addresses, as the IPv6 ones have it, too
	mac           string   // which the server may know it by
	routes        []string // ip -batch lines once it has an address
}

// leasedHosts ask by DHCP, in the order of hosts.
func leasedHosts() []leased {
	list := []leased{
		{name: "home1", segment: "home", last: "101", mac: "02:00:00:00:12:01"},
		{name: "home2", segment: "home", last: "102", mac: "02:00:00:00:12:02"},
		{name: "cp", segment: "cluster", last: "10", mac: "02:00:00:00:00:10", routes: podRoutesBut(0)},
	}
	for i, w := range Workers {
		n := i + 1
		list = append(list, leased{name: w, segment: "cluster", last: fmt.Sprintf("10%d", n), mac: fmt.Sprintf("02:00:00:00:01:%02d", n), routes: podRoutesBut(n)})
	}
	return append(list, leased{name: "nas", segment: "cluster", last: "20", mac: "02:00:00:00:00:20"})
}

// bareHosts are the machines as they are when they are switched on.
func bareHosts() []host {
	hh := []host{
		{
			name:  "inet",
			nics:  []nic{{name: "eth0", segment: "inet", addrs: []string{InternetClient + "/24", InternetClient6 + "/64"}}},
			setup: []string{"route add default via " + PublicAddress, "route add " + HomePrefix6 + " via " + internetRouter6},
		},
		{
			name: "router",
			nics: []nic{
				{name: "wan", segment: "inet", addrs: []string{PublicAddress + "/24", internetRouter6 + "/64"}},
				{name: "lan", segment: "home", addrs: []string{RouterHome + "/24", "fd00:11:12::1/64", "2001:db8:11:12::1/64"}},
			},
			sysctls: []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"},
			setup:   careless,
			nft:     routerRules,
		},
		{
			name: "edge",
			nics: []nic{{name: "eth0", segment: "cluster", down: true}, {name: "eth1", segment: "home", mac: homeMAC, down: true}},
		},
	}
	for _, l := range leasedHosts() {
		h := host{
			name: l.name,
			nics: []nic{{name: "eth0", segment: l.segment, mac: l.mac}},
			// A token is the last part of the addresses that it makes itself of what routers advertise (RFC 7217's
			// would be random); nobody else has it, so there is no need to wait for an objection.
			sysctls: []string{"ipv6/conf/eth0/accept_ra=2", "ipv6/conf/eth0/accept_dad=0"},
			setup:   []string{"token set ::" + l.last + " dev eth0"},
		}
		if n := workerNumber(l.name); n > 0 {
			h.sysctls = append([]string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"}, h.sysctls...)
			h.setup = append(h.setup, "route add blackhole "+podCIDR(n), "route add blackhole "+podCIDR6(n))
			h.nft = workerRules
		}
		hh = append(hh, h)
	}
	return hh
}

// provider is the DNS of the Internet: a name of a server there, and one that somebody bad has pointed at the
// cluster's storage box.
const provider = `port=53
no-resolv
no-hosts
user=root
address=/www.example.net/203.0.113.10
address=/rebind.example.net/10.0.0.20
`

// homeRouter is what people set in theirs: two addresses for the edge, which it asks by; the edge as everybody's DNS
// server, and as the way to the cluster.
func homeRouter() string {
	var b strings.Builder
	fmt.Fprintf(&b, `port=53
interface=lan
except-interface=lo
bind-interfaces
no-resolv
no-hosts
no-ping
user=root
server=%s
address=/router.lan/%s
dhcp-authoritative
dhcp-leasefile=/run/dnsmasq.leases
pid-file=/run/dnsmasq.pid
dhcp-range=10.11.12.150,10.11.12.199,255.255.255.0,1h
dhcp-host=%s,set:edge,%s
dhcp-host=%s,set:edge,%s
dhcp-option=option:router,%s
dhcp-option=tag:edge,option:dns-server,%s
dhcp-option=tag:!edge,option:dns-server,%s
dhcp-option=tag:!edge,option:classless-static-route,%s,%s,0.0.0.0/0,%s
dhcp-option=tag:!edge,option:domain-search,home.example
enable-ra
dhcp-range=::,constructor:lan,ra-only,64,1h
`, InternetClient, RouterHome, homeMAC, EdgeHome, exposedMAC, EdgeExposed, RouterHome, RouterHome, EdgeHome, ClusterNet, EdgeHome, RouterHome)
	for _, l := range leasedHosts() {
		if l.segment == "home" {
			fmt.Fprintf(&b, "dhcp-host=%s,10.11.12.%s,%s\n", l.mac, l.last, l.name)
		}
	}
	return b.String()
}

// onLease is what a machine does with what it is given: %s are lines of ip(8), and where its resolv.conf is.
const onLease = `#!/bin/sh
set -e
case $1 in
deconfig)
	ip -4 addr flush dev "$interface"
	;;
bound|renew)
	if ! ip -4 -o addr show dev "$interface" | grep -q " $ip/$mask "; then
		ip -4 addr flush dev "$interface"
		ip addr add "$ip/$mask" dev "$interface"
	fi
	set -- $staticroutes
	[ $# = 0 ] && for r in $router; do set -- 0.0.0.0/0 "$r"; done # RFC 3442: routers are for who has no routes
	while [ $# -gt 1 ]; do
		ip route replace "$1" via "$2" dev "$interface"
		shift 2
	done
	ip -batch - <<'END'
%sEND
	{ [ -z "$search$domain" ] || echo "search ${search:-$domain}"; for s in $dns; do echo "nameserver $s"; done; } >%s
	env | grep -E '^(ip|mask|router|dns|domain|search|hostname|ntpsrv|lease|serverid|mtu)=' | sort >/run/lease.new
	mv /run/lease.new /run/lease
	;;
esac
`

// etc is where a host of a bare lab has its own files of /etc.
func (s *Site) etc(hostName string) string { return s.path("hosts", hostName, "etc") }

// EdgeFiles is the directory that stands for /etc/gatehouse on the edge of a bare lab: with the configuration, in
// which it is named instead of /etc/gatehouse, and a kubeconfig.
func (s *Site) EdgeFiles() string { return s.etc("edge") }

// EdgeConfig is the configuration that gatehouse runs with in a bare lab.
func (s *Site) EdgeConfig() string { return filepath.Join(s.EdgeFiles(), "gatehouse.yaml") }

// bareLocked switches on what the machines of the cluster need before there is a cluster.
func (s *Site) bareLocked(ctx context.Context) error {
	if err := s.writeBareFiles(); err != nil {
		return err
	}
	gatehouse := s.gatehouse(s.record.Options.Gatehouse, s.EdgeConfig(), filepath.Join(s.EdgeFiles(), "kubeconfig"))
	gatehouse.Argv = append(slices.Clone(unitRights), gatehouse.Argv...)
	cc := []*component{
		{Name: "dns-inet", Host: "inet", Argv: []string{"dnsmasq", "-k", "--conf-file=" + s.path("config", "dns-inet.conf"), "--pid-file=/run/dnsmasq.pid"}},
		{Name: "dnsmasq", Host: "router", Argv: []string{"dnsmasq", "-k", "--conf-file=" + s.path("config", "dnsmasq.conf")}},
		gatehouse,
		{Name: "storage", Host: "nas", Argv: []string{s.path("bin", "lab"), "_pod", "echo", "--port", StoragePort}, Env: []string{"LAB_POD=nas"}},
	}
	for _, l := range leasedHosts() {
		cc = append(cc, &component{Name: "dhcp-" + l.name, Host: l.name, Argv: []string{
			// Once a second, for as long as it takes: whom it asks may have been switched on a moment ago.
			"udhcpc", "-f", "-i", "eth0", "-t", "1", "-T", "1", "-A", "1", "-x", "hostname:" + l.name,
			"-O", "staticroutes", "-O", "search", "-O", "ntpsrv", "-O", "mtu", "-s", filepath.Join(s.etc(l.name), "on-lease"),
		}})
	}
	for _, c := range cc {
		s.record.Components = append(s.record.Components, c)
		if err := s.startLocked(c); err != nil {
			return err
		}
	}
	if err := s.survives(ctx, gatehouse, 300*time.Millisecond); err != nil {
		return err
	}
	for _, l := range leasedHosts() {
		err := poll(ctx, 30*time.Second, 20*time.Millisecond, func() error {
			_, err := s.LeaseOf(l.name)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s gets no address: %w; the end of %s:\n%s\nand of gatehouse's:\n%s",
				l.name, err, s.logPath("dhcp-"+l.name), s.tail("dhcp-"+l.name, 5), s.tail("gatehouse", 15))
		}
	}
	s.progress("gatehouse runs on the edge, and all machines have addresses")
	return nil
}

// nobody stands for the user that the unit makes.
const nobody = 65534

// unitRights make a program run with what deploy/gatehouse.service and the files beside it give, and no more.
var unitRights = func() []string {
	rights := "+net_bind_service,+net_raw,+net_admin"
	return []string{
		"setpriv", fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "--no-new-privs",
		"--bounding-set=-all," + rights, "--inh-caps=-all," + rights, "--ambient-caps=-all," + rights,
	}
}()

func (s *Site) writeBareFiles() error {
	for _, h := range s.hostNames() {
		if err := os.MkdirAll(s.etc(h), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(s.resolvConf(h), nil, 0o644); err != nil {
			return err
		}
	}
	for _, l := range leasedHosts() {
		routes := ""
		for _, r := range l.routes {
			routes += strings.Replace(r, "route add", "route replace", 1) + " dev eth0 onlink\n"
		}
		script := fmt.Sprintf(onLease, routes, s.resolvConf(l.name))
		if err := os.WriteFile(filepath.Join(s.etc(l.name), "on-lease"), []byte(script), 0o755); err != nil {
			return err
		}
	}
	// As systemd does, by the unit's RuntimeDirectory.
	if err := os.MkdirAll(s.path("hosts", "edge", "run", "gatehouse"), 0o750); err != nil {
		return err
	}
	config, err := os.ReadFile(s.record.Options.Config)
	if err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(s.path("kubeconfig", "gatehouse"))
	if err != nil {
		return err
	}
	files := map[string][]byte{
		s.EdgeConfig(): []byte(strings.ReplaceAll(string(config), "/etc/gatehouse/", s.EdgeFiles()+"/")),
		filepath.Join(s.EdgeFiles(), "kubeconfig"): kubeconfig,
		s.path("config", "dns-inet.conf"):          []byte(provider),
		s.path("config", "dnsmasq.conf"):           []byte(homeRouter()),
	}
	for file, text := range files {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
	}
	for _, path := range []string{filepath.Join(s.EdgeFiles(), "kubeconfig"), s.EdgeConfig(), s.path("hosts", "edge", "run", "gatehouse"), s.path("hosts", "edge", "lib")} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) resolvConf(hostName string) string {
	return filepath.Join(s.etc(hostName), "resolv.conf")
}

// LeaseOf is what DHCP has told a machine of a bare lab, in the words of udhcpc: ip, mask, router, dns, domain, search,
// hostname, ntpsrv, lease, serverid, mtu.
func (s *Site) LeaseOf(hostName string) (map[string]string, error) {
	data, err := os.ReadFile(s.path("hosts", hostName, "run", "lease"))
	if err != nil {
		return nil, err
	}
	told := map[string]string{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		told[key] = value
	}
	return told, nil
}

// MovePublicAddress gives the home router another address in the Internet instead of the one that it has, as a provider
// does every night. from is PublicAddress at first.
func (s *Site) MovePublicAddress(ctx context.Context, from, to netip.Addr) error {
	router := nsName(s.name, "router")
	if err := tool(ctx, fmt.Sprintf("addr del %s/24 dev wan\naddr add %s/24 dev wan\n", from, to), "ip", "-n", router, "-batch", "-"); err != nil {
		return err
	}
	rules := fmt.Sprintf("add element ip site public { %s }\ndelete element ip site public { %s }\n", to, from)
	if err := tool(ctx, rules, "ip", "netns", "exec", router, "nft", "-f", "-"); err != nil {
		return err
	}
	return tool(ctx, "", "ip", "-n", nsName(s.name, "inet"), "route", "replace", "default", "via", to.String())
}

// MoveExposed has the home router give veth0 another address at home from the next time that it is asked, and forward
// what comes from the Internet there: what somebody does who clicks through its menus, or a new router. from is
// EdgeExposed at first.
func (s *Site) MoveExposed(ctx context.Context, from, to netip.Addr) error {
	router := nsName(s.name, "router")
	rules := "flush chain ip site pre\nadd rule ip site pre iifname { wan, lan } ip daddr @public meta l4proto { tcp, udp } dnat to " + to.String() + "\n"
	if err := tool(ctx, rules, "ip", "netns", "exec", router, "nft", "-f", "-"); err != nil {
		return err
	}
	if err := tool(ctx, "", "ip", "-n", router, "route", "replace", "default", "via", to.String(), "dev", "lan", "table", "100"); err != nil {
		return err
	}
	return s.lend(ctx, exposedMAC, from, to)
}

// MoveHome has the home router give eth1 another address at home from the next time that it is asked. from is EdgeHome at
// first. Home's machines still ask for names at the one that they were told.
func (s *Site) MoveHome(ctx context.Context, from, to netip.Addr) error {
	return s.lend(ctx, homeMAC, from, to)
}

// lend has the home router give a card of the edge another address.
func (s *Site) lend(ctx context.Context, mac string, from, to netip.Addr) error {
	file := s.path("config", "dnsmasq.conf")
	config, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed := strings.ReplaceAll(string(config), mac+",set:edge,"+from.String()+"\n", mac+",set:edge,"+to.String()+"\n")
	if changed == string(config) {
		return fmt.Errorf("the home router does not give %s to %s", from, mac)
	}
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		return err
	}
	if err := s.Stop(ctx, "dnsmasq"); err != nil {
		return err
	}
	return s.Start(ctx, "dnsmasq")
}

// MovePrefix has the provider give the home another IPv6 prefix: the home router advertises it, and no longer the other
// one, which leads nowhere any more. from is HomePrefix6 at first.
func (s *Site) MovePrefix(ctx context.Context, from, to netip.Prefix) error {
	router := func(p netip.Prefix) string { return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits()).String() }
	lines := fmt.Sprintf("addr del %s dev lan\naddr add %s dev lan nodad\n", router(from), router(to))
	if err := tool(ctx, lines, "ip", "-n", nsName(s.name, "router"), "-batch", "-"); err != nil {
		return err
	}
	lines = fmt.Sprintf("route del %s via %s\nroute add %s via %s\n", from, internetRouter6, to, internetRouter6)
	return tool(ctx, lines, "ip", "-n", nsName(s.name, "inet"), "-batch", "-")
}

// checkBare says what a bare lab needs that others do not.
func checkBare(o Options) error {
	if !o.Bare {
		return nil
	}
	var errs []error
	if o.Gatehouse == "" || o.PodRoutes {
		errs = append(errs, errors.New("a bare lab has no router without gatehouse, and no routes but its own: give it the program and its configuration, and no pod routes"))
	}
	for program, pkg := range map[string]string{"dnsmasq": "dnsmasq-base", "udhcpc": "udhcpc", "setpriv": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, fmt.Errorf("the program %s is missing: install the package %s", program, pkg))
		}
	}
	return errors.Join(errs...)
}
