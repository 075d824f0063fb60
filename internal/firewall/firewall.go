// Package firewall decides what may pass between zones and to this machine. It is
// pure: Compile makes a Ruleset of the configuration and of what is open, and
// Verdict says what that does with a packet, and by which of its rules. Another
// package has the kernel do the same.
//
//	rules := firewall.Compile(firewall.Inputs{Config: c, Frontends: state.Frontends})
//	v := rules.Verdict(firewall.Packet{In: "eth1", Out: "eth0", Dst: addr, Protocol: edge.TCP, DstPort: 6443})
//	fmt.Println(v.Accept, v.Why)
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
}

// Packet is the one that a verdict is about: the first of a connection, unless
// State says something else.
type Packet struct {
	In  string // the interface that it comes in by
	Out string // the one that it leaves by; empty: it is for this machine
	Src netip.Addr
	Dst netip.Addr
	// Asked is what the client sent it to, before DNAT; zero: Dst and DstPort.
	Asked    netip.AddrPort
	Protocol edge.Protocol // TCP, UDP, SCTP or config.ICMP
	SrcPort  uint16        // 0 of ICMP
	DstPort  uint16
	ICMPType uint8 // of ICMP or ICMPv6, by the family of Src
	HopLimit uint8 // of IPv6; neighbour discovery wants 255
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
