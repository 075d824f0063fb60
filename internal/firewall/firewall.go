// Package firewall decides what may pass between zones and to this machine. It is
// pure: Compile makes a Ruleset of the configuration and of what is open, and
// Verdict says what that does with a packet, and by which of its rules. Another
// package has the kernel do the same.
//
//	rules := firewall.Compile(firewall.Inputs{Config: c, Frontends: state.Frontends})
//	v := rules.Verdict(firewall.Packet{In: "eth1", Out: "eth0", Dst: addr, Protocol: edge.TCP, DstPort: 6443})
//	fmt.Println(v.Accept, v.Why)
//
// A Ruleset is a list of rules, of which the first that fits a packet decides;
// what none fits is dropped. Some of the rules do not say themselves what fits,
// but have it in Pinholes, which can be ten thousand: the kernel has those in
// sets.
package firewall

import (
	"net/netip"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Inputs are what a Ruleset is made from.
type Inputs struct {
	Config     *config.Config // with a firewall
	Frontends  []edge.Frontend
	Interfaces []edge.Interface
	// Addresses are those of pools that Services have: what comes to them is for
	// frontends that have them alone.
	Addresses []netip.Addr
}

// Loopback is the interface by which this machine talks to itself.
const Loopback = "lo"

// Ruleset is what the firewall does. Two that are equal (reflect.DeepEqual) do
// the same.
type Ruleset struct {
	Zones    []Zone    // sorted by name
	Rules    []Rule    // the first that fits decides
	Pinholes []Pinhole // sorted
	// Own are addresses at which only pinholes count that have them, as Addresses of
	// Inputs, sorted.
	Own []netip.Addr
	// Unzoned are the interfaces of this machine that are in no zone, sorted, but
	// for loopback: nothing that policies or pinholes let pass comes in there.
	Unzoned []string

	own   map[netip.Addr]bool
	zones map[string]string // by interface
}

// Zone is one of the configuration's.
type Zone struct {
	Name       string
	Interfaces []string // sorted
}

// Way is where a packet goes.
type Way uint8

// A packet comes to this machine, or goes through it.
const (
	ToSelf Way = 1 << iota
	Through
)

// Rule is one of a Ruleset.
type Rule struct {
	Way    Way // both ways, if both bits are set
	Fits   Match
	Accept bool
	// Masquerade gives the packet this machine's address on its way out: of IPv4 any,
	// of IPv6 one that comes from a unique local address.
	Masquerade bool
	Why        string   // "home -> cluster: 6443/TCP (gatehouse.yaml:14)"
	Pos        edge.Pos // of the policy; zero: none
	Policy     int      // index in Config.Firewall.Policies; -1: it is none
}

// Match says which packets fit a rule. Each part that is not zero has to.
type Match struct {
	In       string // the interface
	From, To ZoneMatch
	States   []State // of these
	IsIP     int     // 4 or 6: packets of that version
	// HopLimit is what the packet has to have: of IPv4 the time to live. 0: any.
	HopLimit uint8
	// Number is that of a protocol in the header: 2 is IGMP. Nothing else is known of
	// such a packet.
	Number uint8
	// ICMP are types of ICMP, or of ICMPv6, by IsIP.
	ICMP []uint8
	// Services are ports, or pings.
	Services []config.PortRange
	SrcPort  uint16 // of UDP
	// Sources and Destinations are networks.
	Sources, Destinations []netip.Prefix
	Pinholes              PinholeMatch
}

// ZoneMatch is a zone, or any.
type ZoneMatch struct {
	Any  bool   // of the zones
	Zone string // empty, and not Any: every interface, in a zone or not
}

func (z ZoneMatch) isZero() bool { return !z.Any && z.Zone == "" }

// PinholeMatch says what has to be found among the pinholes.
type PinholeMatch uint8

// Nothing; what it is now, of a door of this machine; and what it was sent to
// before the kernel rewrote that.
const (
	NoPinhole PinholeMatch = iota
	Door
	Translated
)

// Pinhole is something that gatehouse itself has opened.
type Pinhole struct {
	// Translated says that the kernel rewrites what comes there: it is for packets
	// that were sent there, wherever they go now.
	Translated bool
	Protocol   edge.Protocol
	Device     string
	Addr       netip.Addr // zero: any that is not among the Ruleset's Own
	Port       uint16
	Sources    []netip.Prefix // nil: all; sorted, none inside another
	Why        string         // "service/shop/web", "gatehouse.yaml:14", "dhcp of zone home"
}

// ULA are the unique local addresses of IPv6 (RFC 4193), which mean nothing
// beyond a site.
var ULA = netip.MustParsePrefix("fc00::/7")

// Packet is the one that a verdict is about: the first of a connection, unless
// State says something else.
type Packet struct {
	In  string // the interface that it comes in by
	Out string // the one that it leaves by; empty: it is for this machine
	Src netip.Addr
	Dst netip.Addr
	// Asked is what the client sent it to, before DNAT; zero: Dst and DstPort.
	Asked    netip.AddrPort
	Protocol edge.Protocol // TCP, UDP, SCTP or config.ICMP; empty: another
	SrcPort  uint16        // 0 of ICMP
	DstPort  uint16
	ICMPType uint8 // of ICMP or ICMPv6, by the family of Src
	HopLimit uint8 // of IPv6, and the time to live of IPv4; neighbour discovery wants 255
	Number   uint8 // of another protocol, in the IP header; 0: not known
	State    State
}

// State is what conntrack makes of a packet (nft(8), CONNTRACK EXPRESSIONS).
type State uint8

// The states of packets. The zero State is New.
const (
	New State = iota
	Established
	Related
	Invalid
	Untracked
)

// Verdict is what becomes of a packet.
type Verdict struct {
	Accept     bool
	Masquerade bool     // it leaves with this machine's address
	Why        string   // "home -> cluster: 6443/TCP (gatehouse.yaml:14)", "service/shop/web", "nothing allows it"
	Pos        edge.Pos // of the policy; zero: none
	Rule       int      // index in the Ruleset; -1: none fits
}

// Nothing is the Why of a Verdict where no rule fits.
const Nothing = "nothing allows it"
