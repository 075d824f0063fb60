package dhcp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

const (
	// IP and UDP have 28 bytes of what a client says a message may have; all take
	// 576 (RFC 2132 section 9.10). More than Ethernet carries is not sent.
	headers     = 28
	smallest    = 576
	largest     = 1500
	fixedBytes  = 240 // of a message in front of its options
	broadcastIP = "255.255.255.255"
)

var everybody = netip.MustParseAddr(broadcastIP)

// reply is a message back to the client. Without a lease time it is one about
// options only.
func (r *request) reply(kind dhcpv4.MessageType, n *Network, a netip.Addr, length time.Duration) *dhcpv4.DHCPv4 {
	if !r.relay.IsValid() && n.Self.IsValid() {
		r.self = n.Self // a cable can have several networks
	}
	m := r.bare(kind)
	if a.IsValid() {
		m.YourIPAddr = a.AsSlice()
	}
	if kind == dhcpv4.MessageTypeAck {
		m.ClientIPAddr = r.ClientIPAddr
	}
	o := &n.Options
	if o.NextServer.IsValid() {
		m.ServerIPAddr = o.NextServer.AsSlice()
	}
	m.BootFileName = o.BootFile
	if length > 0 {
		m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(length))
		m.UpdateOption(dhcpv4.OptRenewTimeValue(length / 2))
		m.UpdateOption(dhcpv4.OptRebindingTimeValue(length * 7 / 8))
	}
	r.fill(m, r.options(n, a))
	return m
}

// bare is a message back with what each one has.
func (r *request) bare(kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: r.HWType, TransactionID: r.TransactionID, Flags: r.Flags,
		ClientHWAddr: r.ClientHWAddr, GatewayIPAddr: r.GatewayIPAddr, Options: dhcpv4.Options{},
	}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptServerIdentifier(r.self.AsSlice()))
	// RFC 6842 and RFC 3046: as they came.
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if v := r.Options.Get(code); v != nil {
			m.UpdateOption(dhcpv4.OptGeneric(code, v))
		}
	}
	return m
}

// refuse has the client begin anew.
func (r *request) refuse(why string) Result {
	m := r.bare(dhcpv4.MessageTypeNak)
	m.UpdateOption(dhcpv4.OptMessage(why))
	to := Destination{Way: Broadcast, Addr: netip.AddrPortFrom(everybody, dhcpv4.ClientPort), From: r.self}
	if r.relay.IsValid() {
		m.SetBroadcast() // the client may be unable to take what is sent to its address
		to = Destination{Way: ByRoute, Addr: netip.AddrPortFrom(r.relay, dhcpv4.ServerPort), From: r.self}
	}
	return Result{Reply: m, To: to, Why: why}
}

// way is how a client is told of its address. (RFC 2131 section 4.1)
func (r *request) way(a netip.Addr) Destination {
	to := Destination{Way: ToHardware, Addr: netip.AddrPortFrom(a, dhcpv4.ClientPort), From: r.self}
	switch n := r.networkOf(a); {
	case r.relay.IsValid():
		to.Way, to.Addr = ByRoute, netip.AddrPortFrom(r.relay, dhcpv4.ServerPort)
	case r.ciaddr.IsValid() && n != nil && n.Device == "":
		to.Way = ByRoute
	case r.ciaddr.IsValid() && r.mac != "":
	case r.IsBroadcast() || r.mac == "":
		to.Way, to.Addr = Broadcast, netip.AddrPortFrom(everybody, dhcpv4.ClientPort)
	}
	return to
}

// options are those that there are for a client, by code.
func (r *request) options(n *Network, a netip.Addr) map[uint8][]byte {
	o := &n.Options
	all := map[uint8][]byte{}
	set := func(code dhcpv4.OptionCode, value []byte) {
		if len(value) > 0 {
			all[code.Code()] = value
		}
	}
	routers, dns := o.Routers, o.DNS
	if routers == nil && n.Device == "" {
		routers = []netip.Addr{r.relay}
		if !r.relay.IsValid() || !n.Prefix.Contains(r.relay) {
			routers = nil
		}
	}
	if dns == nil && n.DNSHere {
		dns = []netip.Addr{r.device.Addr}
	}
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-n.Prefix.Bits()))
	set(dhcpv4.OptionSubnetMask, mask)
	set(dhcpv4.OptionRouter, join(routers))
	set(dhcpv4.OptionDomainNameServer, join(dns))
	set(dhcpv4.OptionDomainName, []byte(o.Domain))
	set(dhcpv4.OptionBroadcastAddress, broadcastOf(n.Prefix).AsSlice())
	set(dhcpv4.OptionNTPServers, join(o.NTP))
	if len(o.Search) > 0 {
		set(dhcpv4.OptionDNSDomainSearchList, (&rfc1035label.Labels{Labels: o.Search}).ToBytes())
	}
	if o.MTU > 0 {
		set(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(o.MTU)))
	}
	if o.NextServer.IsValid() {
		set(dhcpv4.OptionTFTPServerName, []byte(o.NextServer.String()))
	}
	set(dhcpv4.OptionBootfileName, []byte(o.BootFile))
	if res, ok := r.zone.reserved[a]; ok {
		set(dhcpv4.OptionHostName, []byte(r.named(&res, "")))
	}
	return all
}

func join(addrs []netip.Addr) []byte {
	var all []byte
	for _, a := range addrs {
		all = append(all, a.AsSlice()...)
	}
	return all
}

// fill adds those options that the client asks for, in its order, as far as there
// is room in what it takes. One that does not say gets all.
func (r *request) fill(m *dhcpv4.DHCPv4, all map[uint8][]byte) {
	order := r.Options.Get(dhcpv4.OptionParameterRequestList)
	if len(order) == 0 {
		for _, code := range []dhcpv4.OptionCode{
			dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionBroadcastAddress,
			dhcpv4.OptionHostName, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, dhcpv4.OptionNTPServers, dhcpv4.OptionDNSDomainSearchList,
		} {
			order = append(order, code.Code())
		}
	}
	room := smallest
	if v := r.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		room = min(max(int(binary.BigEndian.Uint16(v)), smallest), largest)
	}
	room -= headers + fixedBytes + 1 // the end
	for _, v := range m.Options {
		room -= size(v)
	}
	room -= size(nil) // of rapid commit
	for i, code := range order {
		v, ok := all[code]
		if !ok || slices.Contains(order[:i], code) || size(v) > room {
			continue
		}
		room -= size(v)
		m.Options[code] = v
	}
}

// size of an option; one that is longer than 255 bytes is several. (RFC 3396)
func size(v []byte) int { return len(v) + 2*max((len(v)+254)/255, 1) }
