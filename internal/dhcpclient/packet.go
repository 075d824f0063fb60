package dhcpclient

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"e13.dev/gatehouse/internal/edge"
)

const (
	clientPort, serverPort = 68, 67

	ipBytes, udpBytes = 20, 8
	protocolUDP       = 17
	// largest is what fits into a packet of Ethernet (option 57, RFC 2132 §9.10).
	largest = 1500
	// shortestPacket is what relay agents of old take (RFC 1542 §2.1).
	shortestPacket = 300
)

// wanted is what is asked for: the routes of RFC 3442 first, which take the place of
// the routers.
var wanted = []dhcpv4.OptionCode{
	dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName,
	dhcpv4.OptionInterfaceMTU, dhcpv4.OptionBroadcastAddress, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionServerIdentifier,
	dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
}

// ask is a message of the client.
type ask struct {
	kind      dhcpv4.MessageType
	xid       [4]byte
	mac       [6]byte
	secs      uint16
	own       netip.Addr // ciaddr: an address that it has
	requested netip.Addr // option 50
	server    netip.Addr // option 54
	hostname  string
}

// bytes is the message as it is sent, without the headers of UDP and IP.
func (a ask) bytes() []byte {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: a.mac[:], TransactionID: a.xid, NumSeconds: a.secs,
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero, Options: dhcpv4.Options{},
	}
	m.UpdateOption(dhcpv4.OptMessageType(a.kind))
	// The same for as long as the interface has its address (RFC 2131 §4.2).
	m.UpdateOption(dhcpv4.OptClientIdentifier(append([]byte{1}, a.mac[:]...)))
	if a.own.IsValid() {
		m.ClientIPAddr = a.own.AsSlice()
	}
	if a.requested.IsValid() {
		m.UpdateOption(dhcpv4.OptRequestedIPAddress(a.requested.AsSlice()))
	}
	if a.server.IsValid() {
		m.UpdateOption(dhcpv4.OptServerIdentifier(a.server.AsSlice()))
	}
	if a.kind == dhcpv4.MessageTypeDiscover || a.kind == dhcpv4.MessageTypeRequest {
		if a.hostname != "" {
			m.UpdateOption(dhcpv4.OptHostName(a.hostname))
		}
		m.UpdateOption(dhcpv4.OptMaxMessageSize(largest))
		m.UpdateOption(dhcpv4.OptParameterRequestList(wanted...))
	}
	b := m.ToBytes()
	return append(b, make([]byte, max(0, shortestPacket-len(b)))...)
}

// reply is a message of a server.
type reply struct {
	kind   dhcpv4.MessageType
	xid    [4]byte
	mac    [6]byte
	addr   netip.Addr // yiaddr
	server netip.Addr // option 54
	text   string     // option 56: why
	all    *dhcpv4.DHCPv4
}

var errNoReply = errors.New("not a reply of a DHCP server")

// parseReply reads a message of a server. What it is not sure of is an error.
func parseReply(b []byte) (reply, error) {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		return reply{}, err
	}
	if m.OpCode != dhcpv4.OpcodeBootReply || m.HWType != iana.HWTypeEthernet || len(m.ClientHWAddr) != 6 {
		return reply{}, errNoReply
	}
	r := reply{kind: m.MessageType(), xid: m.TransactionID, mac: [6]byte(m.ClientHWAddr), addr: address(m.YourIPAddr), server: address(m.ServerIdentifier()), text: printable(m.Message()), all: m}
	switch r.kind {
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck:
		if !r.addr.IsValid() || r.addr.IsUnspecified() || r.addr.IsMulticast() || r.addr.IsLoopback() || r.addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return reply{}, errors.New("the address that a DHCP server gives is none")
		}
		if !r.server.IsValid() || r.server.IsUnspecified() {
			return reply{}, errors.New("a DHCP server does not say who it is")
		}
	case dhcpv4.MessageTypeNak:
	default:
		return reply{}, errNoReply
	}
	return r, nil
}

// address is an IPv4 address of a message; zero: none.
func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

// printable keeps what a server says fit for a log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 100)]
}

const (
	// leastLease keeps a server that gives addresses for no time from being asked
	// without end.
	leastLease = 2 * time.Second
	// assumedLease is that of a server that says none.
	assumedLease = time.Hour
	endless      = 0xffffffff * time.Second
	leastMTU     = 576 // RFC 791 §3.1
	mostMTU      = 65535
	mostServers  = 8
	// leastBits is the length of the prefix of the largest network there is: one that
	// is half of everything would be the way to it.
	leastBits  = 8
	mostRoutes = 64
)

// lease is what an ACK says, from a question of that time.
func (r reply) lease(link string, asked time.Time) *Lease {
	m := r.all
	bits, size := m.SubnetMask().Size()
	if size != 32 || bits < leastBits {
		bits, _ = net.IP(r.addr.AsSlice()).DefaultMask().Size() // as before masks were said
	}
	l := &Lease{
		LinkLease: edge.LinkLease{Link: link, Addr: netip.PrefixFrom(r.addr, bits), Server: r.server, Begun: asked},
		MAC:       net.HardwareAddr(r.mac[:]).String(),
	}
	for _, ip := range m.Router() {
		if a := address(ip); isHost(a) && a != r.addr {
			l.Router = a
			break
		}
	}
	for _, ip := range m.DNS() {
		if a := address(ip); isHost(a) && !slices.Contains(l.DNS, a) && len(l.DNS) < mostServers {
			l.DNS = append(l.DNS, a)
		}
	}
	l.Domain = domain(m.DomainName())
	l.Routes = routes(m)
	if v := m.Options.Get(dhcpv4.OptionInterfaceMTU); len(v) == 2 {
		if mtu := int(binary.BigEndian.Uint16(v)); mtu >= leastMTU && mtu <= mostMTU {
			l.MTU = mtu
		}
	}
	l.times(m, asked)
	return l
}

func (l *Lease) times(m *dhcpv4.DHCPv4, asked time.Time) {
	d := m.IPAddressLeaseTime(assumedLease)
	if d >= endless {
		return
	}
	d = max(d, leastLease)
	renew, rebind := m.IPAddressRenewalTime(0), m.IPAddressRebindingTime(0)
	// Sooner than this a server is not asked whatever it says: each time the lease is
	// written down, and all is decided anew.
	soonest := min(leastRenewal, d/2)
	if rebind < soonest || rebind >= d {
		rebind = d - d/8
	}
	if renew < soonest || renew >= rebind {
		renew = min(d/2, rebind/7*4)
	}
	l.Expires, l.Renew, l.Rebind = asked.Add(d), asked.Add(renew), asked.Add(rebind)
}

func isHost(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// routes are those of option 121.
func routes(m *dhcpv4.DHCPv4) (all []Route) {
	for _, r := range m.ClasslessStaticRoute() {
		if r.Dest == nil || len(all) == mostRoutes {
			continue
		}
		to, via := address(r.Dest.IP), address(r.Router)
		bits, _ := r.Dest.Mask.Size()
		if !to.IsValid() || !via.IsValid() || !via.IsUnspecified() && !isHost(via) || to.IsMulticast() {
			continue
		}
		route := Route{To: netip.PrefixFrom(to, bits).Masked(), Via: via}
		if !slices.ContainsFunc(all, func(o Route) bool { return o.To == route.To }) {
			all = append(all, route)
		}
	}
	return all
}

// domain is a name that has nothing in it but what names have; else empty.
func domain(s string) string {
	s = strings.ToLower(strings.Trim(s, ". \x00"))
	if len(s) > 253 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || strings.Contains(s, "..") {
		return ""
	}
	return s
}

// datagram puts the headers of UDP and IP around a message, for who has no address
// yet.
func datagram(src, dst netip.Addr, message []byte) []byte {
	b := make([]byte, 0, ipBytes+udpBytes+len(message))
	b = append(b, 0x45, 0x10) // of low delay, as others do
	b = binary.BigEndian.AppendUint16(b, uint16(ipBytes+udpBytes+len(message)))
	b = append(b, 0, 0, 0, 0, 64, protocolUDP, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], ^sum(0, b))
	udp := binary.BigEndian.AppendUint16(nil, clientPort)
	udp = binary.BigEndian.AppendUint16(udp, serverPort)
	udp = binary.BigEndian.AppendUint16(udp, uint16(udpBytes+len(message)))
	udp = append(append(udp, 0, 0), message...)
	check := ^sum(uint32(sum(protocolUDP+uint32(len(udp)), b[12:20])), udp)
	if check == 0 {
		check = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return append(b, udp...)
}

// sum is the checksum of the Internet, before it is inverted (RFC 1071).
func sum(start uint32, b []byte) uint16 {
	total := start
	for i := 0; i+1 < len(b); i += 2 {
		total += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		total += uint32(b[len(b)-1]) << 8
	}
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// payload takes the headers off a packet of a DHCP server, as the interface has it.
// Checksums are not looked at: from another interface of the same machine they come
// unfinished.
func payload(b []byte) ([]byte, bool) {
	if len(b) < ipBytes || b[0]>>4 != 4 {
		return nil, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	fragment := binary.BigEndian.Uint16(b[6:])&0x3fff != 0
	if header < ipBytes || total > len(b) || total < header+udpBytes || b[9] != protocolUDP || fragment {
		return nil, false
	}
	udp := b[header:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp) != serverPort || binary.BigEndian.Uint16(udp[2:]) != clientPort || length < udpBytes || length > len(udp) {
		return nil, false
	}
	return udp[udpBytes:length], true
}
