// Package links makes and keeps network interfaces, their addresses, routes and
// the sysctls that they need, by netlink.
//
//	a := links.New(log)
//	go a.Watch(ctx, changed)
//	devices, problems := a.Apply(links.Want{Links: wanted, Forwarding: true})
//
// What is to be done is decided by a pure function, plan, from what is wanted and
// what the kernel has; nothing is remembered that the kernel knows. It owns what
// carries its marks:
//
//	interfaces        the alias "gatehouse"
//	ports of bridges  the alias "gatehouse port of BRIDGE", if they had none
//	addresses         protocol 92 (ip address show proto 92), since Linux 5.18
//	routes            protocol 92 (ip route show proto 92), in the main table
//
// An interface, an address or a route that is there already and fits is used as it
// is, gets no mark, and is never removed. What nobody wrote is left alone.
package links

import (
	"log/slog"
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/config"
)

// Marks of what is gatehouse's own. The number is not the 91 of addresses of pools
// and routes to pods, which others look after.
const (
	alias      = "gatehouse"
	portAlias  = "gatehouse port of "
	protocol   = 92
	sysctlRoot = "/proc/sys/net/"
)

// Forever is how long a lease without an end is valid.
const Forever = time.Duration(1<<63 - 1)

// Want is what there should be; the zero Want says that nothing of gatehouse's
// should.
type Want struct {
	Links []Link
	// Forwarding makes the machine a router, for both IP families.
	Forwarding bool
}

// Link is a link of the configuration, with what its DHCP server has said.
type Link struct {
	config.Link
	Lease *Lease // nil: it has none
	// Asking says that no server has answered yet: what a process before has put there
	// for a time stays until that is over.
	Asking bool
}

// Lease is what a DHCP server has said, as far as interfaces go.
type Lease struct {
	Addr   netip.Prefix
	Valid  time.Duration // how long it may be used, from now on; or Forever
	Router netip.Addr    // zero: none
	Routes []Route       // RFC 3442; they go by this link. If there are any, Router is not for a default route.
	MTU    int           // 0: not said
}

// Route is one route; of a lease only To and Via are said.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // zero: neighbours
	Source netip.Addr // of this machine's own packets; zero: the kernel chooses
	Metric int
	index  int // of the interface
	ours   bool
}

// Device is an interface of the machine.
type Device struct {
	Name    string
	Index   int
	Kind    string // "macvlan", "vlan", "bridge", "veth"; "device" of hardware
	MAC     string // "02:00:00:00:00:51"; empty: it has none
	MTU     int
	Up      bool // it is set up
	Running bool // and can pass packets
	Made    bool // by gatehouse
	Addrs   []netip.Prefix

	alias          string
	parent, master int    // indices; 0: none
	mode           string // of a macvlan
	vlan           int
	stp            bool
	firstMTU       int // before it was changed here; 0: it was not
	firstMAC       string
}

// Applier makes the machine of the network namespace that its methods are called
// in have what is wanted.
type Applier struct {
	log     *slog.Logger
	added   map[mark]bool // addresses of ours, for kernels that keep no protocol number
	first   map[string]Device
	before  map[string]string // sysctls that were changed, and what they were
	renewed map[mark]time.Time
	failing map[string]bool // what is tried again and again
}

// mark is an address on an interface.
type mark struct {
	index int
	addr  netip.Prefix
}

// New returns an Applier. It changes nothing.
func New(log *slog.Logger) *Applier {
	return &Applier{log: log, added: map[mark]bool{}, first: map[string]Device{}, before: map[string]string{}, renewed: map[mark]time.Time{}, failing: map[string]bool{}}
}
