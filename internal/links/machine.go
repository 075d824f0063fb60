package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes that x/sys does not have: linux/if_link.h and linux/if_addr.h.
const (
	infoKind, infoData = 1, 2 // IFLA_INFO_KIND, IFLA_INFO_DATA
	macvlanMode        = 1    // IFLA_MACVLAN_MODE
	vlanID             = 1    // IFLA_VLAN_ID
	bridgeSTP          = 5    // IFLA_BR_STP_STATE
	addressProtocol    = 11   // IFA_PROTO
	routeByRA          = 9    // RTPROT_RA
	linkInfo           = 18   // IFLA_LINKINFO
	attributeMask      = 1<<14 - 1
)

// modes are those of a macvlan, by their numbers in linux/if_link.h.
var modes = map[uint32]string{1: "private", 2: "vepa", 4: "bridge", 8: "passthru"}

// machine is what the kernel has.
type machine struct {
	devices   []Device
	addresses []address
	routes    []Route // of the main table, through one interface each
	// advertised are the interfaces with a default route that a router has advertised.
	advertised map[int]bool
}

// address is an address of an interface.
type address struct {
	mark
	ours   bool
	peer   bool   // it is one end of a line
	metric int    // of the route to its network; 0: not said
	valid  uint32 // in seconds; forever
	failed bool   // somebody else has it (RFC 4862 §5.4)
}

const forever = ^uint32(0)

func (m *machine) device(name string) *Device {
	for i := range m.devices {
		if m.devices[i].Name == name {
			return &m.devices[i]
		}
	}
	return nil
}

func (m *machine) name(index int) string {
	for _, d := range m.devices {
		if d.Index == index {
			return d.Name
		}
	}
	return ""
}

// read reads it all.
func (a *Applier) read() (*machine, error) {
	m := &machine{advertised: map[int]bool{}}
	var err error
	if m.devices, err = again(listDevices); err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	if m.addresses, err = again(listAddresses); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for i := range m.addresses {
		found := &m.addresses[i]
		found.ours = found.ours || a.added[found.mark]
		for j := range m.devices {
			if d := &m.devices[j]; d.Index == found.index {
				d.Addrs = append(d.Addrs, found.addr)
			}
		}
	}
	for i := range m.devices {
		d := &m.devices[i]
		first := a.first[d.Name]
		d.firstMTU, d.firstMAC = first.MTU, first.MAC
	}
	return m, m.readRoutes()
}

// again reads a list once more that has changed while it was read.
func again[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func listDevices() ([]Device, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	var all []Device
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, func(m []byte) bool {
		if d, ok := parseDevice(m); ok {
			all = append(all, d)
		}
		return true
	})
	return all, err
}

// parseDevice reads a message of RTM_NEWLINK. (rtnetlink(7))
func parseDevice(m []byte) (Device, bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return Device{}, false
	}
	flags := binary.NativeEndian.Uint32(m[8:])
	d := Device{
		Index: int(int32(binary.NativeEndian.Uint32(m[4:]))), Kind: "device",
		Up: flags&unix.IFF_UP != 0, Running: flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0,
	}
	elsewhere := false
	for kind, v := range attributes(m[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			d.Name = text(v)
		case unix.IFLA_IFALIAS:
			d.alias = text(v)
		case unix.IFLA_ADDRESS:
			if len(v) == 6 {
				d.MAC = net.HardwareAddr(v).String()
			}
		case unix.IFLA_MTU:
			d.MTU = int(number(v))
		case unix.IFLA_LINK:
			d.parent = int(number(v))
		case unix.IFLA_LINK_NETNSID: // the parent is in another network namespace
			elsewhere = true
		case unix.IFLA_MASTER:
			d.master = int(number(v))
		case linkInfo:
			d.parseKind(v)
		}
	}
	if elsewhere || d.parent == d.Index {
		d.parent = 0
	}
	d.Made = d.alias == alias
	return d, d.Name != ""
}

func (d *Device) parseKind(info []byte) {
	var data []byte
	for kind, v := range attributes(info) {
		switch kind {
		case infoKind:
			d.Kind = text(v)
		case infoData:
			data = v
		}
	}
	for kind, v := range attributes(data) {
		switch {
		case d.Kind == kindMacvlan && kind == macvlanMode:
			d.mode = modes[number(v)]
		case d.Kind == kindVLAN && kind == vlanID && len(v) >= 2:
			d.vlan = int(binary.NativeEndian.Uint16(v))
		case d.Kind == kindBridge && kind == bridgeSTP:
			d.stp = number(v) != 0
		}
	}
}

// attributes are those of a message, by their kinds; what is not whole ends them.
// (netlink(7))
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			length := int(binary.NativeEndian.Uint16(b))
			if length < unix.SizeofRtAttr || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attributeMask, b[unix.SizeofRtAttr:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// text is that of an attribute, which ends with a zero byte or without.
func text(v []byte) string {
	if i := slices.Index(v, 0); i >= 0 {
		v = v[:i]
	}
	return string(v)
}

func number(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

func listAddresses() ([]address, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	var all []address
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(m []byte) bool {
		if a, ok := parseAddress(m); ok {
			all = append(all, a)
		}
		return true
	})
	return all, err
}

// parseAddress reads a message of RTM_NEWADDR. (rtnetlink(7))
func parseAddress(m []byte) (address, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return address{}, false
	}
	head := nl.DeserializeIfAddrmsg(m)
	a := address{mark: mark{index: int(head.Index)}, valid: forever, failed: head.Flags&unix.IFA_F_DADFAILED != 0}
	var local, other netip.Addr
	for kind, v := range attributes(m[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS: // of a point-to-point link it is the other end
			other, _ = netip.AddrFromSlice(v)
		case unix.IFA_RT_PRIORITY:
			a.metric = int(number(v))
		case unix.IFA_FLAGS:
			a.failed = number(v)&unix.IFA_F_DADFAILED != 0
		case unix.IFA_CACHEINFO: // struct ifa_cacheinfo: preferred, valid
			if len(v) >= 8 {
				a.valid = binary.NativeEndian.Uint32(v[4:])
			}
		case addressProtocol:
			a.ours = len(v) == 1 && v[0] == protocol
		}
	}
	if !local.IsValid() {
		local = other
	}
	a.peer = other.IsValid() && other != local
	a.addr = netip.PrefixFrom(local, int(head.Prefixlen))
	return a, a.addr.IsValid()
}

func (m *machine) readRoutes() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := again(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			m.addRoute(family, r)
		}
	}
	return nil
}

func (m *machine) addRoute(family int, r netlink.Route) {
	to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == unix.AF_INET6 {
		to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		a, _ := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if to.Addr().Is4() {
			a = a.Unmap()
		}
		to = netip.PrefixFrom(a, bits)
	}
	if r.Protocol == routeByRA && to.Bits() == 0 {
		m.advertised[r.LinkIndex] = true
	}
	if r.Type != unix.RTN_UNICAST || r.LinkIndex == 0 {
		return // nowhere, or several ways: not ours
	}
	found := Route{To: to, Metric: r.Priority, index: r.LinkIndex, ours: r.Protocol == protocol}
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		found.Via = via.Unmap()
	}
	if source, ok := netip.AddrFromSlice(r.Src); ok {
		found.Source = source.Unmap()
	}
	m.routes = append(m.routes, found)
}
