package dhcp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	ipBytes  = 20
	udpBytes = 8
	arpBytes = 28
	hopLimit = 64

	arpRequest, arpReply = 1, 2
	echoRequest          = 8 // ICMP types (RFC 792)
	echoReply            = 0
	echoBytes            = 8
)

// datagram is a message in UDP in IPv4, as it is on the cable behind its header.
// (RFC 768, RFC 791)
func datagram(from, to netip.AddrPort, message []byte) []byte {
	b := make([]byte, ipBytes+udpBytes, ipBytes+udpBytes+len(message))
	b[0] = 4<<4 | ipBytes/4
	binary.BigEndian.PutUint16(b[2:], uint16(ipBytes+udpBytes+len(message)))
	b[6] = 0x40 // it is not to be cut in pieces
	b[8], b[9] = hopLimit, unix.IPPROTO_UDP
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:ipBytes]))
	udp := b[ipBytes:]
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpBytes+len(message)))
	b = append(b, message...)
	pseudo := append(bytes.Clone(b[12:ipBytes]), 0, unix.IPPROTO_UDP, b[ipBytes+4], b[ipBytes+5])
	sum := checksum(sumOf(0, pseudo), b[ipBytes:])
	if sum == 0 {
		sum = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(b[ipBytes+6:], sum)
	return b
}

func sumOf(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum is that of RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	sum = sumOf(sum, b)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arpProbe asks whether somebody has an address, without saying who asks. (RFC
// 5227 section 2.1.1)
func arpProbe(a netip.Addr, mac net.HardwareAddr) []byte {
	b := make([]byte, 0, arpBytes)
	b = binary.BigEndian.AppendUint16(b, unix.ARPHRD_ETHER)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, byte(len(mac)), 4)
	b = binary.BigEndian.AppendUint16(b, arpRequest)
	b = append(append(b, mac...), 0, 0, 0, 0)
	b = append(b, make([]byte, len(mac))...)
	return append(b, a.AsSlice()...)
}

// arpSender is who says in an ARP packet that it has an address.
func arpSender(b []byte) (a netip.Addr, mac string, ok bool) {
	header := []byte{0, unix.ARPHRD_ETHER, unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff, 6, 4}
	if len(b) < arpBytes || !bytes.Equal(b[:len(header)], header) {
		return a, "", false
	}
	if op := binary.BigEndian.Uint16(b[6:]); op != arpRequest && op != arpReply {
		return a, "", false
	}
	a = netip.AddrFrom4([4]byte(b[14:18]))
	return a, net.HardwareAddr(b[8:14]).String(), !a.IsUnspecified()
}

// echo asks whether somebody has an address that is not on a cable of this
// machine. (RFC 792)
func echo(id uint16) []byte {
	b := make([]byte, echoBytes)
	b[0] = echoRequest
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[2:], checksum(0, b))
	return b
}
