package site

import (
	"fmt"
	"slices"
	"strings"
)

// Addresses of the site. They are constants, not options: every lab has the same ones, in namespaces of its own.
const (
	InternetClient = "203.0.113.10" // inet
	PublicAddress  = "203.0.113.1"  // router, the side that faces the Internet
	RouterHome     = "10.11.12.1"   // router, the side that faces the home LAN
	EdgeHome       = "10.11.12.32"  // edge, eth1: what home clients use
	EdgeExposed    = "10.11.12.51"  // edge, veth0: what the router hands everything from the Internet to
	EdgeCluster    = "10.0.0.1"     // edge, eth0
	ControlPlane   = "10.0.0.10"    // cp
	APIServer      = "10.0.0.10:6443"

	HomeNet    = "10.11.12.0/24"
	ClusterNet = "10.0.0.0/24"
	PodNet     = "10.244.0.0/16"
	ServiceNet = "10.96.0.0/16"

	// The same in IPv6; last numbers are those of IPv4.
	EdgeHome6    = "fd00:11:12::32"
	EdgeExposed6 = "fd00:11:12::51"
	EdgeCluster6 = "fd00:10::1"
	HomeNet6     = "fd00:11:12::/64"
	ClusterNet6  = "fd00:10::/64"
	PodNet6      = "fd00:244::/32"
	ServiceNet6  = "fd00:96::/112"

	controlPlane6 = "fd00:10::10"
)

// nic is one interface of a host, on one end of a cable whose other end is in a switch.
type nic struct {
	name    string
	segment string
	addrs   []string // with prefix length
	mac     string   // empty: any
	down    bool     // left as a machine finds it that nobody has configured
}

// host is a machine of the site: a network namespace.
type host struct {
	name    string
	nics    []nic
	sysctls []string // path under /proc/sys/net = value, written before the addresses
	setup   []string // lines for ip -batch, once all links and addresses are there
	nft     string
}

// segments are the three networks; each is a bridge in a namespace of its own, so that pulling a cable is
// taking down one port of it, and so that no host sees another's end.
var segments = []string{"inet", "home", "cluster"}

// Workers are the worker nodes' host names; worker N has the addresses 10.0.0.10N and fd00:10::10N, and the pods
// 10.244.N.0/24 and fd00:244:N::/64.
var Workers = []string{"w1", "w2", "w3"}

func workerAddr(n int) string  { return fmt.Sprintf("10.0.0.10%d", n) }
func workerAddr6(n int) string { return fmt.Sprintf("fd00:10::10%d", n) }
func podCIDR(n int) string     { return fmt.Sprintf("10.244.%d.0/24", n) }
func podCIDR6(n int) string    { return fmt.Sprintf("fd00:244:%d::/64", n) }

// baseline is written first on every host: a new namespace inherits what the machine's own one is set to, and a
// lab must be the same on a laptop with containers on it (which forwards) and on a server.
var baseline = []string{
	"ipv4/ip_forward=0",
	"ipv4/conf/all/rp_filter=0", "ipv4/conf/default/rp_filter=0",
	"ipv4/conf/all/arp_ignore=0", "ipv4/conf/default/arp_ignore=0",
	"ipv4/conf/all/arp_announce=0", "ipv4/conf/default/arp_announce=0",
	"ipv6/conf/all/disable_ipv6=0", "ipv6/conf/default/disable_ipv6=0", "ipv6/conf/default/accept_ra=0",
}

// hosts returns the machines of the site in the order of the picture in docs/lab.md.
func hosts(o Options) []host {
	if o.Bare {
		return bareHosts()
	}
	return handmadeHosts(o.PodRoutes)
}

func handmadeHosts(podRoutes bool) []host {
	forward := []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1"}
	hh := []host{
		{
			name:  "inet",
			nics:  []nic{{name: "eth0", segment: "inet", addrs: []string{InternetClient + "/24"}}},
			setup: []string{"route add default via " + PublicAddress},
		},
		{
			name: "router",
			nics: []nic{
				{name: "wan", segment: "inet", addrs: []string{PublicAddress + "/24"}},
				{name: "lan", segment: "home", addrs: []string{RouterHome + "/24", "fd00:11:12::1/64"}},
			},
			sysctls: forward,
			setup:   careless,
			nft:     routerRules,
		},
		{
			name: "home1",
			nics: []nic{{name: "eth0", segment: "home", addrs: []string{"10.11.12.101/24", "fd00:11:12::101/64"}}},
			setup: []string{
				"route add default via " + RouterHome,
				"route add " + ClusterNet + " via " + EdgeHome,
			},
		},
		{
			name: "home2",
			nics: []nic{{name: "eth0", segment: "home", addrs: []string{"10.11.12.102/24", "fd00:11:12::102/64"}}},
			setup: []string{
				"route add default via " + RouterHome,
				"route add " + ClusterNet + " via " + EdgeHome,
			},
		},
		edge(podRoutes),
		{
			name: "cp",
			nics: []nic{{name: "eth0", segment: "cluster", addrs: []string{ControlPlane + "/24", controlPlane6 + "/64"}}},
			setup: append([]string{
				"route add default via " + EdgeCluster,
				"route add default via " + EdgeCluster6,
			}, podRoutesBut(0)...),
		},
	}
	for i, w := range Workers {
		n := i + 1
		hh = append(hh, host{
			name:    w,
			nics:    []nic{{name: "eth0", segment: "cluster", addrs: []string{workerAddr(n) + "/24", workerAddr6(n) + "/64"}}},
			sysctls: forward,
			setup: append([]string{
				"route add default via " + EdgeCluster,
				"route add default via " + EdgeCluster6,
				// An address of ours without a pod must not travel to the edge and back until its TTL ends.
				"route add blackhole " + podCIDR(n),
				"route add blackhole " + podCIDR6(n),
			}, podRoutesBut(n)...),
			nft: workerRules,
		})
	}
	return hh
}

func edge(podRoutes bool) host {
	h := host{
		name: "edge",
		nics: []nic{
			{name: "eth0", segment: "cluster", addrs: []string{EdgeCluster + "/24", EdgeCluster6 + "/64"}},
			{name: "eth1", segment: "home", addrs: []string{EdgeHome + "/24", EdgeHome6 + "/64"}},
		},
		// eth1 and veth0 are in one subnet. Without these each would answer ARP for the other's address, and
		// Internet traffic would move over to eth1 whenever a neighbour happens to learn it so.
		sysctls: []string{
			"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1",
			"ipv4/conf/all/arp_ignore=1", "ipv4/conf/default/arp_ignore=1",
			"ipv4/conf/all/arp_announce=2", "ipv4/conf/default/arp_announce=2",
			"ipv4/conf/all/rp_filter=2", "ipv4/conf/default/rp_filter=2",
		},
		setup: []string{
			"link add veth0 link eth1 type macvlan mode bridge",
			"addr add " + EdgeExposed + "/24 dev veth0 noprefixroute",
			"addr add " + EdgeExposed6 + "/64 dev veth0 noprefixroute nodad",
			"link set veth0 up",
			// A socket bound to a device needs a route out of that device; the metrics say who goes first.
			"route add " + HomeNet + " dev veth0 src " + EdgeExposed + " metric 100",
			"route add default via " + RouterHome + " dev veth0 metric 100",
			"route add default via " + RouterHome + " dev eth1 metric 200",
		},
		nft: edgeRules,
	}
	if podRoutes {
		h.setup = append(h.setup, podRoutesBut(0)...)
	}
	return h
}

// podRoutesBut returns the routes to every worker's pods, through that worker, except worker n's.
func podRoutesBut(n int) []string {
	var lines []string
	for i := range Workers {
		if i+1 != n {
			lines = append(lines,
				"route add "+podCIDR(i+1)+" via "+workerAddr(i+1),
				"route add "+podCIDR6(i+1)+" via "+workerAddr6(i+1))
		}
	}
	return lines
}

// careless is the router's way of forwarding: whatever comes from the Internet, for any destination, goes to the edge.
var careless = []string{
	"rule add iif wan fwmark 1 lookup 100",
	"route add default via " + EdgeExposed + " dev lan table 100",
}

// routerRules: the mark is on the connection, so that answers to what home itself asked of the Internet find
// their way home, and everything else is handed to the exposed host. So is what comes from home for the public
// address, as most routers do it (NAT loopback).
const routerRules = `
table ip site {
	set public { type ipv4_addr; elements = { 203.0.113.1 }; }
	chain pre {
		type nat hook prerouting priority dstnat;
		iifname { wan, lan } ip daddr @public meta l4proto { tcp, udp } dnat to 10.11.12.51
	}
	chain remember {
		type filter hook prerouting priority mangle;
		iifname wan ct state new ct mark set 1
		iifname wan ct mark 1 meta mark set 1
	}
	chain post {
		type nat hook postrouting priority srcnat;
		iifname lan oifname wan masquerade
		iifname lan oifname lan ct status dnat masquerade
	}
}
`

// edgeRules are what the owner of such a box writes by hand. What is forwarded because of somebody's DNAT rule
// passes: that rule said who may come in. The rest of the world does not get into the cluster.
const edgeRules = `
table inet site {
	chain forward {
		type filter hook forward priority filter;
		ct state established,related accept
		ct status dnat accept
		iifname eth1 oifname eth0 ip daddr 10.0.0.10 tcp dport 6443 accept
		iifname { veth0, eth1 } oifname eth0 counter drop
	}
	chain post {
		type nat hook postrouting priority srcnat;
		iifname eth0 oifname { eth1, veth0 } masquerade
	}
}
`

const workerRules = `
table inet site {
	chain post {
		type nat hook postrouting priority srcnat;
		ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
		ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade
	}
}
`

// hostNames returns all hosts, in order.
func (s *Site) hostNames() []string {
	var names []string
	for _, h := range hosts(s.record.Options) {
		names = append(names, h.name)
	}
	return names
}

// addresses returns the IPv4 addresses by interface, for people ("eth1 10.11.12.32").
func (h host) addresses() []string {
	var out []string
	for _, n := range h.nics {
		if len(n.addrs) == 0 {
			out = append(out, n.name+" dhcp")
			continue
		}
		out = append(out, n.name+" "+strings.Split(n.addrs[0], "/")[0])
	}
	if h.name == "edge" && h.nft != "" {
		out = append(out, "veth0 "+EdgeExposed)
	}
	return out
}

// cabling returns the ip -batch text, for the machine's own namespace, that makes all namespaces, switches and
// cables of a lab.
func cabling(lab string, hh []host) string {
	var b strings.Builder
	for _, s := range segments {
		fmt.Fprintf(&b, "netns add %s\n", nsName(lab, "sw"+s))
	}
	for _, h := range hh {
		fmt.Fprintf(&b, "netns add %s\n", nsName(lab, h.name))
	}
	for _, s := range segments {
		fmt.Fprintf(&b, "link add br0 netns %s type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n", nsName(lab, "sw"+s))
	}
	for _, h := range hh {
		for _, n := range h.nics {
			fmt.Fprintf(&b, "link add %s netns %s type veth peer name %s netns %s\n",
				portName(h.name, n.name), nsName(lab, "sw"+n.segment), n.name, nsName(lab, h.name))
		}
	}
	return b.String()
}

// switchSetup returns the ip -batch text for inside the namespace of one switch.
func switchSetup(segment string, hh []host) string {
	var b strings.Builder
	b.WriteString("link set br0 up\n")
	for _, h := range hh {
		for _, n := range h.nics {
			if n.segment == segment {
				fmt.Fprintf(&b, "link set %s master br0 up\n", portName(h.name, n.name))
			}
		}
	}
	return b.String()
}

// hostSetup returns the ip -batch text for inside the namespace of one host.
func hostSetup(h host) string {
	var b strings.Builder
	b.WriteString("link set lo up\n")
	for _, n := range h.nics {
		b.WriteString(nicSetup(n))
	}
	for _, l := range h.setup {
		b.WriteString(l + "\n")
	}
	return b.String()
}

func nicSetup(n nic) string {
	var b strings.Builder
	if n.mac != "" {
		fmt.Fprintf(&b, "link set %s address %s\n", n.name, n.mac)
	}
	for _, a := range n.addrs {
		nodad := ""
		if strings.Contains(a, ":") {
			nodad = " nodad" // the addresses are ours by construction; waiting for the check is a second per lab
		}
		fmt.Fprintf(&b, "addr add %s dev %s%s\n", a, n.name, nodad)
	}
	if !n.down {
		fmt.Fprintf(&b, "link set %s up\n", n.name)
	}
	return b.String()
}

// portName is the name of a cable's end in the switch. At most 15 characters, as the kernel wants it.
func portName(host, nic string) string { return host + "-" + nic }

func nsName(lab, host string) string { return "ghlab-" + lab + "-" + host }

func (s *Site) noSuchHost(name string) error {
	return fmt.Errorf("no host named %q; there are %s", name, strings.Join(s.hostNames(), ", "))
}

func (s *Site) isHost(name string) bool { return slices.Contains(s.hostNames(), name) }
