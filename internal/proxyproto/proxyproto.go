// Package proxyproto owns the headers of the PROXY protocol, versions 1 and 2
// (proxy-protocol.txt of HAProxy): what a proxy says, before the first byte of
// the client, of who is at either end of the connection.
//
// It reads and writes bytes; sockets, and whose word is taken for it, are the
// caller's business:
//
//	h, n, err := proxyproto.Parse(peeked)
//	switch {
//	case errors.Is(err, proxyproto.ErrShort): // wait for more
//	case err != nil: // close
//	default: // discard n bytes; the client is h.Src, unless h.Local
//	}
package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"strconv"
)

// MaxHeader is how long a header may be, in bytes: a buffer of this size is
// enough to parse any. A header of version 1 has at most 107 bytes. Version 2
// could have 16+65535; the addresses take 36, and what else proxies say fits
// into 4096 many times over.
const MaxHeader = 4096

const (
	maxV1  = 107 // with the CRLF
	sizeV2 = 16  // before the addresses
)

var (
	beginV1 = []byte("PROXY ")
	beginV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

// What Parse says of bytes that are no header. ErrBad comes wrapped, with what
// is wrong.
var (
	ErrShort = errors.New("PROXY protocol: the header is not complete yet")
	ErrNone  = errors.New("PROXY protocol: no header")
	ErrBad   = errors.New("PROXY protocol: malformed header")
)

// Header is what a header says.
type Header struct {
	// Local says that the header names no addresses: the connection's own are
	// to be used.
	Local bool
	// Src is the client, and Dst is what it has connected to. IPv4-mapped
	// addresses are unmapped.
	Src, Dst netip.AddrPort
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBad, fmt.Sprintf(format, args...))
}

// Begins reports whether b begins like a header (is), or may yet do so once
// there is more of it (maybe). Of no bytes at all it is maybe.
func Begins(b []byte) (is, maybe bool) {
	for _, begin := range [][]byte{beginV1, beginV2} {
		if len(b) >= len(begin) {
			is = is || bytes.Equal(b[:len(begin)], begin)
		} else {
			maybe = maybe || bytes.Equal(b, begin[:len(b)])
		}
	}
	return is, maybe
}

// Parse reads the header that a connection begins with, and says how many
// bytes it takes. It is called with all bytes since the first, and again with
// more of them after ErrShort. ErrNone comes with the first byte that no header
// can have there. ErrBad is about a header that must not be used, nor what
// follows it.
func Parse(b []byte) (h Header, n int, err error) {
	is, maybe := Begins(b)
	switch {
	case maybe:
		return Header{}, 0, ErrShort
	case !is:
		return Header{}, 0, ErrNone
	case b[0] == beginV1[0]:
		return parseV1(b)
	default:
		return parseV2(b)
	}
}

// What follows beginV1.
var familiesV1 = []string{"TCP4 ", "TCP6 ", "UNKNOWN ", "UNKNOWN\r"}

func parseV1(b []byte) (Header, int, error) {
	rest := b[len(beginV1):]
	family := slices.IndexFunc(familiesV1, func(f string) bool {
		n := min(len(f), len(rest))
		return string(rest[:n]) == f[:n]
	})
	if family < 0 {
		word, _, _ := bytes.Cut(rest[:min(len(rest), len("UNKNOWN "))], []byte(" "))
		return Header{}, 0, bad("family %q, want TCP4, TCP6 or UNKNOWN", word)
	}
	end := bytes.IndexByte(b[:min(len(b), maxV1)], '\n')
	switch {
	case end < 0 && len(b) >= maxV1:
		return Header{}, 0, bad("no end of the line in the first %d bytes", maxV1)
	case end < 0:
		return Header{}, 0, ErrShort
	case b[end-1] != '\r':
		return Header{}, 0, bad("the line ends with LF, want CRLF")
	case family > 1: // UNKNOWN, and whatever follows
		return Header{Local: true}, end + 1, nil
	}
	fields := bytes.Split(b[len(beginV1)+len("TCP4 "):end-1], []byte(" "))
	if len(fields) != 4 {
		return Header{}, 0, bad("%d fields after the family, want two addresses and two ports", len(fields))
	}
	var addrs [2]netip.AddrPort
	for i := range addrs {
		addr, err := netip.ParseAddr(string(fields[i]))
		if err != nil || addr.Is4() != (family == 0) || addr.Zone() != "" {
			return Header{}, 0, bad("address %q of family %s", fields[i], familiesV1[family][:4])
		}
		port, ok := parsePort(fields[2+i])
		if !ok {
			return Header{}, 0, bad("port %q", fields[2+i])
		}
		addrs[i] = netip.AddrPortFrom(addr.Unmap(), port)
	}
	return Header{Src: addrs[0], Dst: addrs[1]}, end + 1, nil
}

// parsePort reads a decimal number without sign or leading zeros.
func parsePort(s []byte) (uint16, bool) {
	n, err := strconv.ParseUint(string(s), 10, 16)
	return uint16(n), err == nil && (len(s) == 1 || s[0] != '0')
}

// Families and transports of version 2, in one byte.
const (
	afUnspec, afInet, afInet6, afUnix = 0x0, 0x1, 0x2, 0x3
	unspec, stream, dgram             = 0x0, 0x1, 0x2

	tlvCRC32C = 0x03
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func parseV2(b []byte) (Header, int, error) {
	if len(b) > 12 && b[12]>>4 != 2 {
		return Header{}, 0, bad("version %d, want 2", b[12]>>4)
	}
	if len(b) > 12 && b[12]&0xf > 1 {
		return Header{}, 0, bad("command %d, want 0 (LOCAL) or 1 (PROXY)", b[12]&0xf)
	}
	if len(b) < sizeV2 {
		return Header{}, 0, ErrShort
	}
	local, family, transport := b[12]&0xf == 0, b[13]>>4, b[13]&0xf
	n := sizeV2 + int(binary.BigEndian.Uint16(b[14:]))
	size := 0 // of the addresses
	switch {
	case n > MaxHeader:
		return Header{}, 0, bad("%d bytes, want %d at most", n, MaxHeader)
	case local: // whatever the family
	case family > afUnix || transport > dgram:
		return Header{}, 0, bad("family and transport %#02x", b[13])
	case family == afUnspec || transport == unspec:
		// Accepted as LOCAL, which the protocol leaves open. What follows could be
		// anything.
		local = true
	default:
		size = [...]int{afInet: 12, afInet6: 36, afUnix: 216}[family]
		if n-sizeV2 < size {
			return Header{}, 0, bad("%d bytes after the first %d, want %d for the addresses", n-sizeV2, sizeV2, size)
		}
	}
	switch {
	case len(b) < n:
		return Header{}, 0, ErrShort
	case local:
		return Header{Local: true}, n, nil
	}
	if err := checkTLVs(b[:n], sizeV2+size); err != nil {
		return Header{}, 0, err
	}
	if transport == dgram || family == afUnix {
		// Nothing that a connection here could have come from. The protocol wants
		// such a header taken as UNSPEC, instead of refused.
		return Header{Local: true}, n, nil
	}
	addrs, half := b[sizeV2:], (size-4)/2
	src, _ := netip.AddrFromSlice(addrs[:half])
	dst, _ := netip.AddrFromSlice(addrs[half : 2*half])
	return Header{
		Src: netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(addrs[2*half:])),
		Dst: netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(addrs[2*half+2:])),
	}, n, nil
}

// checkTLVs walks over what follows the addresses, from at on. A checksum that is
// there has to be right, or the header is not to be believed.
func checkTLVs(header []byte, at int) error {
	for at < len(header) {
		value := header[at:]
		if len(value) < 3 || len(value)-3 < int(binary.BigEndian.Uint16(value[1:])) {
			return bad("the last type-length-value is cut off")
		}
		kind := value[0]
		value = value[3 : 3+int(binary.BigEndian.Uint16(value[1:]))]
		at += 3 + len(value)
		if kind != tlvCRC32C {
			continue
		}
		if len(value) != 4 {
			return bad("a CRC32C of %d bytes, want 4", len(value))
		}
		// The sum is that of the header with zeros in its place.
		sum := crc32.Update(0, castagnoli, header[:at-4])
		sum = crc32.Update(sum, castagnoli, zeros)
		sum = crc32.Update(sum, castagnoli, header[at:])
		if got := binary.BigEndian.Uint32(value); got != sum {
			return bad("CRC32C %08x, want %08x", got, sum)
		}
	}
	return nil
}

var zeros = make([]byte, 4)

// AppendV1 appends a header of version 1 to dst, which takes 104 bytes at most.
//
// IPv4-mapped addresses are unmapped, and zones left out. If then one of the two
// is IPv4 and the other IPv6, both are written as IPv6, as HAProxy does: the
// header has one family, and without the client's address it would be of no use.
// An address that is missing makes it UNKNOWN.
func AppendV1(dst []byte, src, dest netip.AddrPort) []byte {
	s, d := common(src.Addr(), dest.Addr())
	switch {
	case !s.IsValid():
		return append(dst, "PROXY UNKNOWN\r\n"...)
	case s.Is4():
		dst = append(dst, "PROXY TCP4 "...)
	default:
		dst = append(dst, "PROXY TCP6 "...)
	}
	dst = append(appendAddr(dst, s), ' ')
	dst = append(appendAddr(dst, d), ' ')
	dst = append(strconv.AppendUint(dst, uint64(src.Port()), 10), ' ')
	dst = strconv.AppendUint(dst, uint64(dest.Port()), 10)
	return append(dst, "\r\n"...)
}

func appendAddr(dst []byte, a netip.Addr) []byte {
	if !a.Is4In6() {
		return a.AppendTo(dst)
	}
	// The protocol has groups of hexadecimal digits only, and this would end with
	// dots.
	b := a.As16()
	dst = append(dst, "::ffff:"...)
	dst = strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[12:])), 16)
	dst = append(dst, ':')
	return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[14:])), 16)
}

// AppendV2 appends a header of version 2 to dst, which takes 52 bytes at most.
// The families are those of AppendV1; an address that is missing makes it LOCAL.
func AppendV2(dst []byte, src, dest netip.AddrPort) []byte {
	s, d := common(src.Addr(), dest.Addr())
	dst = append(dst, beginV2...)
	switch {
	case !s.IsValid():
		return append(dst, 0x20, afUnspec<<4|unspec, 0, 0)
	case s.Is4():
		s4, d4 := s.As4(), d.As4()
		dst = append(dst, 0x21, afInet<<4|stream, 0, 12)
		dst = append(append(dst, s4[:]...), d4[:]...)
	default:
		s6, d6 := s.As16(), d.As16()
		dst = append(dst, 0x21, afInet6<<4|stream, 0, 36)
		dst = append(append(dst, s6[:]...), d6[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, src.Port())
	return binary.BigEndian.AppendUint16(dst, dest.Port())
}

// common returns two addresses in the form that they have in common: IPv4, or
// else IPv6 with IPv4-mapped addresses. If one is missing, so are both.
func common(src, dest netip.Addr) (s, d netip.Addr) {
	s, d = src.Unmap().WithZone(""), dest.Unmap().WithZone("")
	switch {
	case !s.IsValid() || !d.IsValid():
		return netip.Addr{}, netip.Addr{}
	case s.Is4() != d.Is4():
		return netip.AddrFrom16(s.As16()), netip.AddrFrom16(d.As16())
	}
	return s, d
}
