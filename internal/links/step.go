package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// op is what a step does.
type op int

const (
	linkAdd op = iota
	linkDel
	linkUp
	linkMAC
	linkMTU
	linkMaster // into the bridge text, or out of the one that it is in
	linkAlias
	linkSTP
	addrAdd
	addrChange
	addrRenew // asks once more whether somebody has it
	addrDel
	routeAdd
	routeChange
	routeDel
)

// step is one change of the machine.
type step struct {
	op     op
	device string
	link   Link // of linkAdd
	text   string
	n      int // MTU, or metric
	on     bool
	addr   netip.Prefix
	valid  uint32
	route  Route
}

// String prints what ip -batch would be told.
func (s step) String() string {
	switch s.op {
	case linkAdd:
		return "link add " + s.device + " type " + kindOf(s.link)
	case linkDel:
		return "link delete " + s.device
	case linkUp:
		return "link set " + s.device + " up"
	case linkMAC:
		return "link set " + s.device + " address " + s.text
	case linkMTU:
		return "link set " + s.device + " mtu " + strconv.Itoa(s.n)
	case linkMaster:
		if s.text == "" {
			return "link set " + s.device + " nomaster"
		}
		return "link set " + s.device + " master " + s.text
	case linkAlias:
		return fmt.Sprintf("link set %s alias %q", s.device, s.text)
	case linkSTP:
		return fmt.Sprintf("link set %s type bridge stp_state %d", s.device, boolToInt(s.on))
	case addrAdd, addrChange, addrRenew, addrDel:
		return s.addrString()
	case routeAdd, routeChange, routeDel:
		verb := map[op]string{routeAdd: "add", routeChange: "replace", routeDel: "delete"}[s.op]
		text := "route " + verb + " " + s.route.To.String()
		if s.route.Via.IsValid() {
			text += " via " + s.route.Via.String()
		}
		text += " dev " + s.device + " metric " + strconv.Itoa(s.route.Metric)
		if s.route.Source.IsValid() {
			text += " src " + s.route.Source.String()
		}
		return text
	}
	return "nothing"
}

func (s step) addrString() string {
	verb := map[op]string{addrAdd: "add", addrChange: "change", addrRenew: "replace", addrDel: "delete"}[s.op]
	text := "addr " + verb + " " + s.addr.String() + " dev " + s.device
	if s.op == addrDel {
		return text
	}
	text += " metric " + strconv.Itoa(s.n)
	if s.valid != forever {
		text += fmt.Sprintf(" valid_lft %d", s.valid)
	}
	return text
}

// run does a step.
func (a *Applier) run(s step, have *machine) error {
	d := have.device(s.device)
	if s.op == linkAdd {
		return addDevice(s.link, have)
	}
	if d == nil {
		return unix.ENODEV
	}
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: d.Name, Index: d.Index}, LinkType: d.Kind}
	switch s.op {
	case linkAdd:
	case linkDel:
		return netlink.LinkDel(link)
	case linkUp:
		return netlink.LinkSetUp(link)
	case linkMAC:
		mac, err := net.ParseMAC(s.text)
		if err != nil {
			return err
		}
		a.remember(d)
		return netlink.LinkSetHardwareAddr(link, mac)
	case linkMTU:
		a.remember(d)
		return netlink.LinkSetMTU(link, s.n)
	case linkMaster:
		return setMaster(link, d, s.text, have)
	case linkAlias:
		return netlink.LinkSetAlias(link, s.text)
	case linkSTP:
		return setSTP(d.Index, s.on)
	case addrAdd, addrChange, addrRenew, addrDel:
		return a.runAddr(s, d)
	case routeAdd, routeChange, routeDel:
		return runRoute(s, d)
	}
	return nil
}

// remember keeps what an interface that others have made was like.
func (a *Applier) remember(d *Device) {
	if _, known := a.first[d.Name]; !known && !d.Made {
		a.first[d.Name] = *d
	}
}

func addDevice(l Link, have *machine) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU = l.Name, l.MTU
	if l.MAC != "" {
		mac, err := net.ParseMAC(l.MAC)
		if err != nil {
			return err
		}
		attributes.HardwareAddr = mac
	}
	if parent := have.device(parentOf(l)); parent != nil {
		attributes.ParentIndex = parent.Index
	}
	var device netlink.Link
	switch {
	case l.Macvlan != nil:
		mode := map[string]netlink.MacvlanMode{
			"private": netlink.MACVLAN_MODE_PRIVATE, "vepa": netlink.MACVLAN_MODE_VEPA,
			"bridge": netlink.MACVLAN_MODE_BRIDGE, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
		}[l.Macvlan.Mode]
		device = &netlink.Macvlan{LinkAttrs: attributes, Mode: mode}
	case l.VLAN != nil:
		device = &netlink.Vlan{LinkAttrs: attributes, VlanId: l.VLAN.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	default:
		device = &netlink.Bridge{LinkAttrs: attributes}
	}
	if err := netlink.LinkAdd(device); err != nil {
		return err
	}
	// The kernel takes no alias with the rest of a new interface.
	if err := netlink.LinkSetAlias(device, alias); err != nil {
		return errors.Join(err, netlink.LinkDel(device))
	}
	return nil
}

// setMaster makes an interface a port of a bridge, and marks it, if nobody has
// written something else there.
func setMaster(link netlink.Link, d *Device, bridge string, have *machine) error {
	if bridge == "" {
		return netlink.LinkSetNoMaster(link)
	}
	master := have.device(bridge)
	if master == nil {
		return unix.ENODEV
	}
	if err := netlink.LinkSetMasterByIndex(link, master.Index); err != nil {
		return err
	}
	if d.alias == "" || strings.HasPrefix(d.alias, portAlias) {
		return netlink.LinkSetAlias(link, portAlias+bridge)
	}
	return nil
}

// setSTP changes a bridge, which the library cannot.
func setSTP(index int, on bool) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index = int32(index)
	req.AddData(head)
	info := nl.NewRtAttr(linkInfo, nil)
	info.AddRtAttr(infoKind, nl.NonZeroTerminated(kindBridge))
	info.AddRtAttr(infoData, nil).AddRtAttr(bridgeSTP, nl.Uint32Attr(uint32(boolToInt(on))))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (a *Applier) runAddr(s step, d *Device) error {
	at := mark{d.Index, s.addr}
	switch s.op {
	case addrDel:
		// Or else the kernel would take others' addresses of the same network with it.
		defer a.promote(d.Name)()
		delete(a.added, at)
		return changeAddress(unix.RTM_DELADDR, 0, s, d.Index)
	case addrRenew:
		if err := changeAddress(unix.RTM_DELADDR, 0, s, d.Index); err != nil {
			return err
		}
	case addrChange:
		return changeAddress(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, s, d.Index)
	default:
	}
	err := changeAddress(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, s, d.Index)
	if err == nil {
		a.added[at] = true
	}
	return err
}

// promote has the kernel keep the other addresses of a network when the first of
// them goes (ip-sysctl.rst, promote_secondaries), until what it returns is called.
func (a *Applier) promote(device string) func() {
	name := sysctlRoot + "ipv4/conf/" + device + "/promote_secondaries"
	before, err := os.ReadFile(name)
	if err != nil || strings.TrimSpace(string(before)) != "0" {
		return func() {}
	}
	if err := os.WriteFile(name, []byte("1"), 0); err != nil {
		return func() {}
	}
	return func() { _ = os.WriteFile(name, []byte("0"), 0) }
}

func changeAddress(kind, flags int, s step, index int) error {
	req := nl.NewNetlinkRequest(kind, unix.NLM_F_ACK|flags)
	family := unix.AF_INET6
	addr := s.addr.Addr()
	if addr.Is4() {
		family = unix.AF_INET
	}
	head := nl.NewIfAddrmsg(family)
	head.Prefixlen, head.Index = uint8(s.addr.Bits()), uint32(index)
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, addr.AsSlice()))
	if kind == unix.RTM_DELADDR {
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}
	if addr.Is4() && s.addr.Bits() < 31 {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, lastOf(s.addr).AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.IFA_RT_PRIORITY, nl.Uint32Attr(uint32(s.n))))
	req.AddData(nl.NewRtAttr(addressProtocol, []byte{protocol}))
	life := make([]byte, 16) // struct ifa_cacheinfo: preferred, valid, two stamps
	binary.NativeEndian.PutUint32(life, s.valid)
	binary.NativeEndian.PutUint32(life[4:], s.valid)
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, life))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// lastOf is the last address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func runRoute(s step, d *Device) error {
	r := s.route
	family, scope := unix.AF_INET, netlink.SCOPE_UNIVERSE
	switch {
	case r.To.Addr().Is6():
		family = unix.AF_INET6
	case !r.Via.IsValid():
		scope = netlink.SCOPE_LINK
	}
	route := &netlink.Route{
		Family: family, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, Protocol: protocol, Scope: scope, Priority: r.Metric, LinkIndex: d.Index,
		Dst: &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())},
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	switch s.op {
	case routeChange:
		return netlink.RouteReplace(route)
	case routeDel:
		err := netlink.RouteDel(route)
		if errors.Is(err, unix.ESRCH) {
			return nil // gone already
		}
		return err
	default:
		return netlink.RouteAdd(route)
	}
}

// explain says why a step failed, and what would be right.
func explain(s step, err error) (what, remedy string) {
	remedy = "it is tried again"
	made := kindOf(s.link)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !s.addr.IsValid():
		return s.String() + ": not permitted", "it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"
	case errors.Is(err, unix.EACCES):
		return s.addr.String() + " cannot be put there: IPv6 is switched off", "sysctl -w net.ipv6.conf." + s.device + ".disable_ipv6=0"
	case s.op == linkAdd && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTSUP)):
		module := map[string]string{kindVLAN: "8021q"}[made]
		if module == "" {
			module = made
		}
		return "the kernel makes no interface of kind " + made, "modprobe " + module + ", or a kernel that has it"
	case s.op == linkAdd && errors.Is(err, unix.EBUSY):
		return s.String() + ": " + parentOf(s.link) + " is a port of a bridge, or has something on it that wants it alone", "have it on the bridge, or take the other away"
	case s.op == linkAdd && errors.Is(err, unix.EEXIST) && made == kindVLAN:
		return fmt.Sprintf("there is an interface of VLAN %d on %s already", s.link.VLAN.ID, parentOf(s.link)), "ip link delete it, or give this link its name"
	case s.op == linkMAC && errors.Is(err, unix.EBUSY):
		return "its MAC address cannot be changed while it is up", "ip link set " + s.device + " down; gatehouse sets it up again"
	case errors.Is(err, unix.EADDRINUSE):
		return s.String() + ": another interface on that cable has the MAC address", "give it another"
	case s.op == linkMTU || s.op == linkAdd && errors.Is(err, unix.ERANGE):
		return s.String() + ": " + err.Error(), "write an mtu that the interface, and what it is on, can have"
	case s.op == addrAdd && errors.Is(err, unix.EEXIST):
		return s.addr.Addr().String() + " is there with another prefix length", "ip addr del that, or write the same here"
	case (s.op == routeAdd || s.op == routeChange) && (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)):
		return s.String() + ": " + s.route.Via.String() + " is no neighbour there", "write a router in a network of the link"
	case s.op == routeAdd && errors.Is(err, unix.EEXIST):
		return s.String() + ": there is such a route already", "remove that, or give this one another metric"
	}
	return s.String() + ": " + err.Error(), remedy
}
