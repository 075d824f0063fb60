package vip

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	hardwareBytes = 6 // of an Ethernet address
	etherBytes    = 14
	arpBytes      = 28
	ipv6Bytes     = 40
	ndBytes       = 24 // of a neighbour solicitation or advertisement without options
	optionBytes   = 8  // of a link-layer address option, for Ethernet

	arpRequest, arpReply = 1, 2

	solicitation, advertisement = 135, 136 // ICMPv6 types, RFC 4861 section 4
	sourceOption, targetOption  = 1, 2     // RFC 4861 section 4.6.1
	overrideFlag                = 0x20     // RFC 4861 section 4.4
	ndHopLimit                  = 255      // others come from behind a router: RFC 4861 section 7.1
)

var (
	broadcast    = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noHardware   = make(net.HardwareAddr, hardwareBytes)
	allNodes     = netip.MustParseAddr("ff02::1")
	unspecified4 = netip.AddrFrom4([4]byte{})
)

// claim is what a frame says of an address: that somebody has it or, if probe,
// that somebody is about to take it unless it is had already.
type claim struct {
	addr  netip.Addr
	mac   [hardwareBytes]byte
	probe bool
}

// probe asks whether somebody has the address, without saying a word of who
// asks: nobody learns anything from it. (RFC 5227 section 2.1.1; RFC 4862
// section 5.4.2)
func probe(addr netip.Addr, mac net.HardwareAddr) []byte {
	if addr.Is4() {
		return arpFrame(arpRequest, mac, unspecified4, noHardware, addr)
	}
	group := solicitedNode(addr)
	return ndFrame(solicitation, 0, mac, netip.IPv6Unspecified(), group, addr, 0)
}

// announcement tells everybody on the link who has the address. There are two
// for IPv4, since some learn from requests only and some from replies. (RFC
// 5227 section 2.3; RFC 4861 section 7.2.6)
func announcement(addr netip.Addr, mac net.HardwareAddr) [][]byte {
	if addr.Is4() {
		return [][]byte{
			arpFrame(arpRequest, mac, addr, noHardware, addr),
			// Linux takes a reply for a gratuitous one, which it always believes, if the
			// hardware addresses are the same (arp_is_garp).
			arpFrame(arpReply, mac, addr, mac, addr),
		}
	}
	return [][]byte{ndFrame(advertisement, overrideFlag, mac, addr, allNodes, addr, targetOption)}
}

// arpFrame is a broadcast. (RFC 826)
func arpFrame(op uint16, mac net.HardwareAddr, sender netip.Addr, target net.HardwareAddr, addr netip.Addr) []byte {
	b := etherHeader(broadcast, mac, unix.ETH_P_ARP, arpBytes)
	b = binary.BigEndian.AppendUint16(b, unix.ARPHRD_ETHER)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, hardwareBytes, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, target...), addr.AsSlice()...)
}

// ndFrame is a multicast, with mac as the link-layer address option unless that
// is 0.
func ndFrame(kind, flags byte, mac net.HardwareAddr, src, dst, target netip.Addr, option byte) []byte {
	message := append(make([]byte, 0, ndBytes+optionBytes), kind, 0, 0, 0, flags, 0, 0, 0)
	message = append(message, target.AsSlice()...)
	if option != 0 {
		message = append(append(message, option, 1), mac...)
	}
	to := dst.As16()
	b := etherHeader(net.HardwareAddr{0x33, 0x33, to[12], to[13], to[14], to[15]}, mac, unix.ETH_P_IPV6, ipv6Bytes+len(message))
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, unix.IPPROTO_ICMPV6, ndHopLimit)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(message[2:], checksum(src, dst, message))
	return append(b, message...)
}

func etherHeader(dst, src net.HardwareAddr, kind uint16, room int) []byte {
	b := make([]byte, 0, etherBytes+room)
	return binary.BigEndian.AppendUint16(append(append(b, dst...), src...), kind)
}

// solicitedNode is the group that whoever has the address listens to. (RFC 4291
// section 2.7.1)
func solicitedNode(addr netip.Addr) netip.Addr {
	a := addr.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}

// checksum is that of ICMPv6, over the message with zero in its place and the
// pseudo-header. (RFC 4443 section 2.3; RFC 8200 section 8.1)
func checksum(src, dst netip.Addr, message []byte) uint16 {
	sum := uint32(len(message)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), message} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse reads a frame as it came, with its Ethernet header. What is no ARP and
// no neighbour discovery of this link claims nothing.
func parse(frame []byte) (claim, bool) {
	if len(frame) < etherBytes {
		return claim{}, false
	}
	switch body := frame[etherBytes:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		return parseARP(body)
	case unix.ETH_P_IPV6:
		return parseND(body, frame[6:12])
	}
	return claim{}, false
}

func parseARP(b []byte) (claim, bool) {
	header := []byte{0, unix.ARPHRD_ETHER, unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff, hardwareBytes, 4}
	if len(b) < arpBytes || !bytes.Equal(b[:len(header)], header) {
		return claim{}, false
	}
	op := binary.BigEndian.Uint16(b[6:])
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	c := claim{addr: sender, mac: [hardwareBytes]byte(b[8:14])}
	switch {
	case op != arpRequest && op != arpReply:
		return claim{}, false
	case sender != unspecified4:
		return c, true
	case op == arpRequest && target != unspecified4:
		c.addr, c.probe = target, true
		return c, true
	}
	return claim{}, false
}

// parseND does not look at the checksum: what the link has passed is believed.
func parseND(b, from []byte) (claim, bool) {
	if len(b) < ipv6Bytes+ndBytes || b[0]>>4 != 6 || b[6] != unix.IPPROTO_ICMPV6 || b[7] != ndHopLimit {
		return claim{}, false
	}
	src, message := netip.AddrFrom16([16]byte(b[8:24])), b[ipv6Bytes:]
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < ndBytes || length > len(message) {
		return claim{}, false
	}
	message = message[:length] // the rest of a short frame is padding
	target := netip.AddrFrom16([16]byte(message[8:24]))
	c := claim{mac: [hardwareBytes]byte(from)}
	option := byte(sourceOption)
	switch message[0] {
	case advertisement:
		c.addr, option = target, targetOption
	case solicitation:
		c.addr, c.probe = src, false
		if src.IsUnspecified() {
			c.addr, c.probe = target, true
		}
	default:
		return claim{}, false
	}
	if !c.addr.IsValid() || c.addr.Is4In6() || c.addr.IsUnspecified() || c.addr.IsMulticast() {
		return claim{}, false
	}
	if mac, ok := linkOption(message[ndBytes:], option); ok {
		c.mac = mac
	}
	return c, true
}

// linkOption finds the link-layer address of a kind among the options.
func linkOption(options []byte, kind byte) (mac [hardwareBytes]byte, ok bool) {
	for len(options) >= optionBytes {
		length := int(options[1]) * 8
		if length == 0 || length > len(options) {
			break
		}
		if options[0] == kind && length == optionBytes {
			return [hardwareBytes]byte(options[2:8]), true
		}
		options = options[length:]
	}
	return mac, false
}

// neighbourDiscovery lets in what parseND reads, and nothing of what else an
// interface has to do: classic BPF, for frames of IPv6.
var neighbourDiscovery = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherBytes + 6},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 4},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherBytes + ipv6Bytes},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: solicitation, Jt: 1},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: advertisement, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
	{Code: unix.BPF_RET | unix.BPF_K},
}
