package edge

import "net/netip"

// Link is a network interface as it is told to people who have to say what
// network it leads to.
type Link struct {
	Name     string
	Kind     string // as ip -details link calls it: "veth", "macvlan", "vlan"; "device" of hardware
	Up       bool   // set up, and with a carrier
	Loopback bool
	Wireless bool
	Parent   string         // of a VLAN or MACVLAN: the interface that it is on, if that is in this network namespace
	Master   string         // the bridge, bond or VRF that it is a part of
	Addrs    []netip.Prefix // sorted; link-local ones are left out
	Default  bool           // a default route leaves by it
	Metric   int            // of that route; the smallest is used
}
