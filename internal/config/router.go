package config

import (
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Self is what policies call the machine that gatehouse runs on. No zone has this
// name where there is a firewall.
const Self = "self"

// Firewall is the block of that name: what may pass between zones and to this
// machine. Everything else is dropped, but for answers, what IPv4 and IPv6 need to
// work, and what gatehouse itself opens.
type Firewall struct {
	Policies []Policy // in file order; the first that fits a packet decides
	Pos      edge.Pos
}

// Policy is a rule of the firewall for what comes from one zone, or from any, and
// goes to one zone, to any, or to this machine.
type Policy struct {
	From string // a zone; empty: any
	To   string // a zone or Self; empty: any zone, and not this machine
	// Allow is whether it lets pass what fits.
	Allow bool
	// Services are what it is about; nil: everything.
	Services []PortRange
	// Sources and Destinations narrow it down to addresses; nil: all.
	Sources, Destinations []netip.Prefix
	// Masquerade gives what it lets pass this machine's address on the way out.
	Masquerade bool
	Pos        edge.Pos
}

// PortRange is what a policy is about: ports of a transport protocol, or a protocol without ports.
type PortRange struct {
	Protocol edge.Protocol // TCP, UDP, SCTP, or ICMP: the echo requests of both families
	First    uint16        // 0 of ICMP
	Last     uint16
}

// ICMP is the protocol of a PortRange that is about pings (ICMP and ICMPv6 echo requests).
const ICMP edge.Protocol = "ICMP"

// Link is an interface that gatehouse makes, or whose addresses it keeps.
type Link struct {
	Name    string
	Macvlan *Macvlan // at most one of these three; none: it is there already
	VLAN    *VLAN
	Bridge  *Bridge
	MAC     string // "02:00:00:00:00:51"; empty: as it is
	MTU     int    // 0: as it is
	// Addresses are those that it has, with the length of their network's prefix.
	Addresses []netip.Prefix
	// Metric is that of the routes to its networks and of what DHCP brings: between
	// links that lead to the same place the smallest counts. It is never 0.
	Metric int
	// Forwarding makes the machine a router though there is no firewall.
	Forwarding bool
	// DHCP asks for an IPv4 address, and what comes with it.
	DHCP *DHCPClient
	// AcceptRA has it make itself IPv6 addresses and a default route of what routers advertise there.
	AcceptRA bool
	Routes   []LinkRoute
	Pos      edge.Pos
}

// Macvlan is an interface with a MAC address of its own on another's cable.
type Macvlan struct {
	Parent string
	Mode   string // "bridge", "private", "vepa" or "passthru", as ip link calls them
}

// VLAN is what one tag of a cable carries (IEEE 802.1Q).
type VLAN struct {
	Parent string
	ID     int // 1 to 4094
}

// Bridge is a switch of other interfaces.
type Bridge struct {
	Ports []string
	STP   bool
}

// DHCPClient says how an address is asked for.
type DHCPClient struct {
	Hostname string // told to the server (RFC 2132 §3.14); empty: the machine's
	// DefaultRoute takes the server's router as the default route.
	DefaultRoute bool
	Metric       int // of its routes: that of the link
}

// LinkRoute is a route by a link.
type LinkRoute struct {
	To     netip.Prefix
	Via    netip.Addr // zero: neighbours
	Metric int        // never 0
	Pos    edge.Pos
}

// DHCP is what is given to the machines of one zone: addresses by DHCP, and with
// RouterAdvertisements what IPv6 needs.
type DHCP struct {
	Zone         string
	Pools        []edge.Range // IPv4; in file order; no two overlap, nor with pools of Services
	LeaseTime    time.Duration
	Reservations []Reservation
	// Networks of machines behind relay agents (RFC 2131 §4.1, giaddr), beside the zone's own.
	Relayed []RelayedNetwork
	Options DHCPOptions
	// Probe is whether an address is asked for by ARP before it is given (RFC 2131 §2.2).
	Probe                bool
	RouterAdvertisements *RouterAdvertisements // nil: none
	Pos                  edge.Pos
}

// Reservation keeps an address for one machine, known by its MAC address or by
// the name of its Kubernetes node.
type Reservation struct {
	MAC      string // "02:00:00:00:00:11"; empty: by Node
	Node     string // name of a Kubernetes node; empty: by MAC
	Address  netip.Addr
	Hostname string // its name; empty: Node, or what the machine calls itself
	Pos      edge.Pos
}

// RelayedNetwork is a network that a relay agent asks for.
type RelayedNetwork struct {
	Network netip.Prefix
	Router  netip.Addr // zero: the relay agent
	Pools   []edge.Range
	Pos     edge.Pos
}

// DHCPOptions are told to the machines of a zone, in RFC 2132's words.
type DHCPOptions struct {
	Routers    []netip.Addr // nil: this machine's address in the zone; empty but not nil: none
	DNS        []netip.Addr // likewise, if the zone has this machine's DNS server; else none
	Domain     string       // empty: that of DNS.Domain
	Search     []string     // RFC 3397
	NTP        []netip.Addr
	MTU        int        // 0: not said
	NextServer netip.Addr // of PXE: siaddr and option 66; zero: not said
	BootFile   string     // option 67
}

// RouterAdvertisements make IPv6 work for the machines of a zone (RFC 4861, RFC 8106), and answer their
// stateless DHCPv6 (RFC 8415 §18.2.6).
type RouterAdvertisements struct {
	Prefixes []netip.Prefix // /64s that machines make addresses of; nil: those of this machine's addresses in the zone
	Lifetime time.Duration  // as a default router; 0: it is none
	DNS      []netip.Addr   // nil: this machine's address in the zone, if it has this machine's DNS server
	Search   []string
	NTP      []netip.Addr // IPv6; by DHCPv6
	MTU      int          // 0: not said
	Pos      edge.Pos
}

// DNS is the block of that name: a server for the machines of zones, which knows the site's names and asks
// others for the rest.
type DNS struct {
	Zones  []string // where it answers
	Domain string   // "home.example": it is authoritative for it
	// ServiceDomain is where exposures are: "cluster.home.example" has web.shop.cluster.home.example.
	ServiceDomain string
	Records       []Record
	Upstreams     []Upstream // in file order; nil: those of the machine's own resolv.conf; empty but not nil: none
	// Forwards are domains that others are asked for.
	Forwards []Forward
	// Rebinding are the domains whose names may have private addresses though an upstream says so.
	Rebinding []string
	TTL       time.Duration // of names that are this site's
	CacheSize int           // how many answers are kept
	// RatePerClient is how many questions a second one client may ask; 0: any number.
	RatePerClient int
	// IngressClasses say which Service (namespace/name) serves the Ingresses of a class, or the Gateways of
	// one, where their status does not.
	IngressClasses map[string]string
	// Allow says of domains which namespaces may have names in them, by annotation or by the hosts of Ingresses
	// and routes: names in Domain may be had by all if it is not a key; in other domains by nobody. Labels is empty.
	Allow map[string]Allow
	Pos   edge.Pos
}

// Record is a name that is written in the file. One of Addresses, CNAME, SRV, TXT is set.
type Record struct {
	Name      string // in lower case, without a dot at its end
	Addresses []netip.Addr
	CNAME     string
	SRV       *SRV
	TXT       []string
	Zones     []string // where it is known; nil: everywhere
	Pos       edge.Pos
}

// SRV says where a service is (RFC 2782).
type SRV struct {
	Target                 string
	Port, Priority, Weight uint16
}

// Upstream is a server that is asked for what is not known here.
type Upstream struct {
	Addr netip.AddrPort // zero: those that the DHCP lease of Link has told
	Link string
	TLS  string // the name in its certificate (DNS over TLS, RFC 7858); empty: plain
	Pos  edge.Pos
}

// Forward is a domain for which other servers are asked.
type Forward struct {
	Domain    string
	Upstreams []Upstream
	Pos       edge.Pos
}
