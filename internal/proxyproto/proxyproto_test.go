package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

var (
	client4 = netip.MustParseAddrPort("192.0.2.7:56324")
	server4 = netip.MustParseAddrPort("10.11.12.51:443")
	client6 = netip.MustParseAddrPort("[2001:db8::7]:56324")
	server6 = netip.MustParseAddrPort("[2001:db8::1]:443")
)

// v2 is a header of version 2 with the length that it has.
func v2(command, family byte, rest ...byte) string {
	b := append(bytes.Clone(beginV2), command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(append(b, rest...))
}

func tlv(kind byte, value ...byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value))), value...)
}

// addrs4 and addrs6 are client4 and server4, client6 and server6.
var (
	addrs4 = []byte{192, 0, 2, 7, 10, 11, 12, 51, 0xdc, 0x04, 0x01, 0xbb}
	addrs6 = []byte{
		0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
		0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb,
	}
)

func with(addrs []byte, tlvs ...[]byte) []byte {
	return append(bytes.Clone(addrs), bytes.Join(tlvs, nil)...)
}

// sealed has a checksum between two other values, made as section 2.2.3 says.
func sealed(addrs []byte, family byte) string {
	rest := with(addrs, tlv(0x02, []byte("git.example.org")...), tlv(0x03, 0, 0, 0, 0), tlv(0x04, 1, 2, 3))
	b := []byte(v2(0x21, family, rest...))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-6-4:], sum)
	return string(b)
}

var local = Header{Local: true}

var valid = []struct {
	name, header string
	want         Header
}{
	{"v1 IPv4", "PROXY TCP4 192.0.2.7 10.11.12.51 56324 443\r\n", Header{Src: client4, Dst: server4}},
	{"v1 IPv6", "PROXY TCP6 2001:db8::7 2001:DB8:0:0:0::1 56324 443\r\n", Header{Src: client6, Dst: server6}},
	{"v1 mapped, with dots", "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:10.11.12.51 56324 443\r\n", Header{Src: client4, Dst: server4}},
	{"v1 mapped, and one that is not", "PROXY TCP6 ::ffff:c000:207 2001:db8::1 56324 443\r\n", Header{Src: client4, Dst: server6}},
	{"v1 ports 0 and 65535", "PROXY TCP4 192.0.2.7 10.11.12.51 0 65535\r\n", Header{Src: netip.AddrPortFrom(client4.Addr(), 0), Dst: netip.AddrPortFrom(server4.Addr(), 65535)}},
	{"v1 longest TCP6", "PROXY TCP6 " + strings.Repeat("ffff:", 7) + "ffff " + strings.Repeat("ffff:", 7) + "ffff 65535 65535\r\n", Header{
		Src: netip.AddrPortFrom(netip.MustParseAddr(strings.Repeat("ffff:", 7)+"ffff"), 65535), Dst: netip.AddrPortFrom(netip.MustParseAddr(strings.Repeat("ffff:", 7)+"ffff"), 65535),
	}},
	{"v1 unknown", "PROXY UNKNOWN\r\n", local},
	{"v1 unknown, with anything", "PROXY UNKNOWN TCP4 \r whatever\x00\xff\r\n", local},
	{"v1 longest", "PROXY UNKNOWN " + strings.Repeat("f", 107-14-2) + "\r\n", local},
	{"v2 IPv4", v2(0x21, 0x11, addrs4...), Header{Src: client4, Dst: server4}},
	{"v2 IPv6", v2(0x21, 0x21, addrs6...), Header{Src: client6, Dst: server6}},
	{"v2 mapped", v2(0x21, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 11, 12, 51, 0xdc, 0x04, 0x01, 0xbb), Header{Src: client4, Dst: server4}},
	{"v2 with values", v2(0x21, 0x11, with(addrs4, tlv(0x01, 'h', '2'), tlv(0x04), tlv(0xea, make([]byte, 300)...))...), Header{Src: client4, Dst: server4}},
	{"v2 IPv4 with a checksum", sealed(addrs4, 0x11), Header{Src: client4, Dst: server4}},
	{"v2 IPv6 with a checksum", sealed(addrs6, 0x21), Header{Src: client6, Dst: server6}},
	{"v2 longest", v2(0x21, 0x11, with(addrs4, tlv(0x04, make([]byte, MaxHeader-16-12-3)...))...), Header{Src: client4, Dst: server4}},
	{"v2 local", v2(0x20, 0x00), local},
	{"v2 local with addresses", v2(0x20, 0x11, addrs4...), local},
	{"v2 local of any family, with anything", v2(0x20, 0xff, 1, 2, 3), local},
	{"v2 unspecified", v2(0x21, 0x00), local},
	{"v2 unspecified with anything", v2(0x21, 0x00, 1, 2, 3, 4), local},
	{"v2 IPv4 with unspecified transport", v2(0x21, 0x10), local},
	{"v2 UDP over IPv4", v2(0x21, 0x12, addrs4...), local},
	{"v2 UDP over IPv6", v2(0x21, 0x22, addrs6...), local},
	{"v2 UNIX stream", v2(0x21, 0x31, make([]byte, 216)...), local},
	{"v2 UNIX datagram", v2(0x21, 0x32, make([]byte, 216)...), local},
}

func TestParseValid(t *testing.T) {
	for _, row := range valid {
		for _, after := range []string{"", "GET / HTTP/1.1\r\n\r\n", row.header, "\n"} {
			h, n, err := Parse([]byte(row.header + after))
			if err != nil || n != len(row.header) || h != row.want {
				t.Errorf("%s, followed by %q: %+v, %d, %v; want %+v, %d", row.name, after, h, n, err, row.want, len(row.header))
			}
		}
	}
}

// A header may come in pieces, and is none before the last one.
func TestEveryPrefixIsShort(t *testing.T) {
	for _, row := range valid {
		for i := range row.header {
			if h, n, err := Parse([]byte(row.header[:i])); !errors.Is(err, ErrShort) || n != 0 || h != (Header{}) {
				t.Errorf("%s: %q: %+v, %d, %v; want ErrShort", row.name, row.header[:i], h, n, err)
			}
		}
	}
}

func TestParseBad(t *testing.T) {
	crc := []byte(sealed(addrs4, 0x11))
	const tcp4 = "PROXY TCP4 192.0.2.7 10.11.12.51 "
	rows := []struct {
		header, want string
		at           int // bytes it takes to see that; 0: all
	}{
		{"PROXY tcp4 ", `family "tcp4", want TCP4, TCP6 or UNKNOWN`, 7},
		{"PROXY TCP5 ", `family "TCP5", want TCP4, TCP6 or UNKNOWN`, 10},
		{"PROXY  TCP4 ", `family "", want TCP4, TCP6 or UNKNOWN`, 7},
		{"PROXY UNKNOWNS\r\n", `family "UNKNOWNS", want TCP4, TCP6 or UNKNOWN`, 14},
		{"PROXY \r\n", `family "\r\n", want TCP4, TCP6 or UNKNOWN`, 7},
		{"PROXY TCP4\r\n", `family "TCP4\r\n", want TCP4, TCP6 or UNKNOWN`, 11},
		{"PROXY UNKNOWN \n", "the line ends with LF, want CRLF", 0},
		{tcp4 + "56324 443\n", "the line ends with LF, want CRLF", 0},
		{"PROXY UNKNOWN " + strings.Repeat("f", 107-14-1) + "\r\n", "no end of the line in the first 107 bytes", 107},
		{"PROXY TCP4 \r\n", "1 fields after the family, want two addresses and two ports", 0},
		{tcp4 + "56324\r\n", "3 fields after the family, want two addresses and two ports", 0},
		{tcp4 + "56324 443 \r\n", "5 fields after the family, want two addresses and two ports", 0},
		{tcp4 + "56324  443\r\n", "5 fields after the family, want two addresses and two ports", 0},
		{tcp4 + "56324 443\r\r\n", `port "443\r"`, 0},
		{tcp4 + "56324 \r\n", `port ""`, 0},
		{tcp4 + "056324 443\r\n", `port "056324"`, 0},
		{tcp4 + "00 443\r\n", `port "00"`, 0},
		{tcp4 + "+1 443\r\n", `port "+1"`, 0},
		{tcp4 + "1_0 443\r\n", `port "1_0"`, 0},
		{tcp4 + "1 65536\r\n", `port "65536"`, 0},
		{tcp4 + "1 0x1\r\n", `port "0x1"`, 0},
		{"PROXY TCP4 192.0.2.07 10.11.12.51 56324 443\r\n", `address "192.0.2.07" of family TCP4`, 0},
		{"PROXY TCP4 192.0.2 10.11.12.51 56324 443\r\n", `address "192.0.2" of family TCP4`, 0},
		{"PROXY TCP4 192.0.2.7 2001:db8::1 56324 443\r\n", `address "2001:db8::1" of family TCP4`, 0},
		{"PROXY TCP4 ::ffff:192.0.2.7 10.11.12.51 56324 443\r\n", `address "::ffff:192.0.2.7" of family TCP4`, 0},
		{"PROXY TCP6 2001:db8::7 10.11.12.51 56324 443\r\n", `address "10.11.12.51" of family TCP6`, 0},
		{"PROXY TCP6 fe80::1%eth0 2001:db8::1 56324 443\r\n", `address "fe80::1%eth0" of family TCP6`, 0},
		{"PROXY TCP6 1::2::3 2001:db8::1 56324 443\r\n", `address "1::2::3" of family TCP6`, 0},

		{v2(0x11, 0x11, addrs4...), "version 1, want 2", 13},
		{v2(0x22, 0x11, addrs4...), "command 2, want 0 (LOCAL) or 1 (PROXY)", 13},
		{v2(0x21, 0x41, addrs4...), "family and transport 0x41", 16},
		{v2(0x21, 0x13, addrs4...), "family and transport 0x13", 16},
		{v2(0x21, 0x11, addrs4[:11]...), "11 bytes after the first 16, want 12 for the addresses", 16},
		{v2(0x21, 0x21, addrs6[:35]...), "35 bytes after the first 16, want 36 for the addresses", 16},
		{v2(0x21, 0x31, make([]byte, 215)...), "215 bytes after the first 16, want 216 for the addresses", 16},
		{v2(0x21, 0x11, make([]byte, MaxHeader-15)...), "4097 bytes, want 4096 at most", 16},
		{v2(0x20, 0x00, make([]byte, 65535)...), "65551 bytes, want 4096 at most", 16},
		{v2(0x21, 0x11, with(addrs4, []byte{4, 0})...), "the last type-length-value is cut off", 0},
		{v2(0x21, 0x11, with(addrs4, tlv(4), []byte{4, 0, 2, 0})...), "the last type-length-value is cut off", 0},
		{v2(0x21, 0x12, with(addrs4, []byte{4, 1, 0})...), "the last type-length-value is cut off", 0},
		{v2(0x21, 0x11, with(addrs4, tlv(3, 0, 0, 0))...), "a CRC32C of 3 bytes, want 4", 0},
		{v2(0x21, 0x11, with(addrs4, tlv(3, 1, 2, 3, 4))...), "CRC32C 01020304, want dde3ebb0", 0},
	}
	for i := range crc {
		// Whichever byte is changed, it is found: but that which says that there is
		// a checksum.
		if i == len(crc)-6-4-3 {
			continue
		}
		wrong := bytes.Clone(crc)
		wrong[i] ^= 0x80
		if h, n, err := Parse(wrong); err == nil || h != (Header{}) || n != 0 {
			t.Errorf("byte %d of a header with a checksum is changed, and Parse returns %+v, %d, %v", i, h, n, err)
		}
	}
	for _, row := range rows {
		at := row.at
		if at == 0 {
			at = len(row.header)
		}
		for i := range len(row.header) + 1 {
			if i > 300 && i < len(row.header)-1 {
				continue
			}
			h, n, err := Parse([]byte(row.header[:i]))
			switch {
			case i < at && !errors.Is(err, ErrShort):
				t.Errorf("%q: %v, want ErrShort", row.header[:i], err)
			case i >= at && (!errors.Is(err, ErrBad) || h != (Header{}) || n != 0):
				t.Errorf("%q: %+v, %d, %v; want ErrBad", row.header[:i], h, n, err)
			case i >= at && i == len(row.header) && err.Error() != ErrBad.Error()+": "+row.want:
				t.Errorf("%q: %v, want %s", row.header, err, row.want)
			}
		}
	}
}

// What is no header is so from its first wrong byte on.
func TestParseNone(t *testing.T) {
	for _, row := range []struct {
		bytes string
		at    int
	}{
		{"GET / HTTP/1.1\r\n", 1},
		{"\x16\x03\x01\x02\x00", 1},
		{"\x00", 1},
		{"PROXIES", 5},
		{"PROPFIND / HTTP/1.1\r\n", 4},
		{"PROXY\tTCP4", 6},
		{"proxy ", 1},
		{"\r\n\r\n\r\n", 5},
		{"\r\n\r\n\x00\r\nQUIT\r\n", 12},
		{"\r\n\r\n\x00\r\nQUIZ\n", 11},
		{"\n", 1},
	} {
		for i := range len(row.bytes) + 1 {
			b := []byte(row.bytes[:i])
			_, n, err := Parse(b)
			is, maybe := Begins(b)
			want := ErrShort
			if i >= row.at {
				want = ErrNone
			}
			if !errors.Is(err, want) || n != 0 || is || maybe != (i < row.at) {
				t.Errorf("%q: %v, is %v, maybe %v; want %v", b, err, is, maybe, want)
			}
		}
	}
}

func TestBegins(t *testing.T) {
	for _, row := range valid {
		begin := len("PROXY ")
		if row.header[0] == '\r' {
			begin = 12
		}
		for i := range len(row.header) + 1 {
			if is, maybe := Begins([]byte(row.header[:i])); is != (i >= begin) || maybe != (i < begin) {
				t.Errorf("%q: is %v, maybe %v", row.header[:i], is, maybe)
			}
		}
	}
}

func TestAppend(t *testing.T) {
	mapped4 := netip.AddrPortFrom(netip.AddrFrom16(client4.Addr().As16()), client4.Port())
	zoned := netip.AddrPortFrom(netip.MustParseAddr("fe80::7%eth1"), 7)
	mappedBytes := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7}
	for _, row := range []struct {
		name      string
		src, dest netip.AddrPort
		v1, v2    string
	}{
		{"IPv4", client4, server4, "PROXY TCP4 192.0.2.7 10.11.12.51 56324 443\r\n", v2(0x21, 0x11, addrs4...)},
		{"IPv6", client6, server6, "PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", v2(0x21, 0x21, addrs6...)},
		{"mapped", mapped4, server4, "PROXY TCP4 192.0.2.7 10.11.12.51 56324 443\r\n", v2(0x21, 0x11, addrs4...)},
		{"mixed", client4, server6, "PROXY TCP6 ::ffff:c000:207 2001:db8::1 56324 443\r\n", v2(0x21, 0x21, append(bytes.Clone(mappedBytes), addrs6[16:]...)...)},
		{"mixed, mapped", mapped4, server6, "PROXY TCP6 ::ffff:c000:207 2001:db8::1 56324 443\r\n", v2(0x21, 0x21, append(bytes.Clone(mappedBytes), addrs6[16:]...)...)},
		{"zone", zoned, zoned, "PROXY TCP6 fe80::7 fe80::7 7 7\r\n", v2(0x21, 0x21, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 7, 0, 7)},
		{"no client", netip.AddrPort{}, server4, "PROXY UNKNOWN\r\n", v2(0x20, 0)},
		{"no destination", client6, netip.AddrPort{}, "PROXY UNKNOWN\r\n", v2(0x20, 0)},
	} {
		if got := AppendV1([]byte("before"), row.src, row.dest); string(got) != "before"+row.v1 {
			t.Errorf("%s: %q, want %q", row.name, got[6:], row.v1)
		}
		if got := AppendV2([]byte("before"), row.src, row.dest); string(got) != "before"+row.v2 {
			t.Errorf("%s: %q, want %q", row.name, got[6:], row.v2)
		}
	}
}

// anyAddr makes addresses of all kinds: those of few bits as well, where the
// short forms of IPv6 are.
func anyAddr(rnd *rand.Rand) netip.AddrPort {
	var b [16]byte
	for i := range b {
		if rnd.IntN(2) == 0 {
			b[i] = byte(rnd.Uint32())
		}
	}
	addr := netip.AddrFrom16(b)
	switch rnd.IntN(4) {
	case 0:
		addr = netip.AddrFrom4([4]byte(b[:4]))
	case 1:
		addr = netip.AddrFrom16(netip.AddrFrom4([4]byte(b[:4])).As16())
	case 2:
		addr = addr.WithZone("eth1")
	}
	return netip.AddrPortFrom(addr, uint16(rnd.Uint32()>>rnd.IntN(32)))
}

func TestWhatIsAppendedIsParsed(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	plain := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	for range 20_000 {
		src, dest := anyAddr(rnd), anyAddr(rnd)
		for _, header := range [][]byte{AppendV1(nil, src, dest), AppendV2(nil, src, dest)} {
			h, n, err := Parse(append(header, "after"...))
			if want := (Header{Src: plain(src), Dst: plain(dest)}); err != nil || n != len(header) || h != want {
				t.Fatalf("%v to %v: %q is parsed as %+v, %d, %v", src, dest, header, h, n, err)
			}
			if len(header) > 104 {
				t.Fatalf("%q has %d bytes, want 104 at most", header, len(header))
			}
		}
	}
}

func TestNothingIsAllocatedForMost(t *testing.T) {
	buffer := make([]byte, 0, 128)
	v2, none := AppendV2(nil, client4, server4), []byte("GET /")
	for name, f := range map[string]func(){
		"AppendV1":         func() { AppendV1(buffer, client6, server4) },
		"AppendV2":         func() { AppendV2(buffer, client6, server4) },
		"Parse of v2":      func() { _, _, _ = Parse(v2) },
		"Parse of none":    func() { _, _, _ = Parse(none) },
		"Parse of a piece": func() { _, _, _ = Parse(v2[:20]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for name, header := range map[string][]byte{
		"v1": AppendV1(nil, client4, server4), "v2": AppendV2(nil, client4, server4), "v2-crc": []byte(sealed(addrs4, 0x11)), "none": []byte("GET / HTTP/1.1"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _ = Parse(header)
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	buffer := make([]byte, 0, 128)
	b.Run("v1", func(b *testing.B) {
		for b.Loop() {
			AppendV1(buffer, client6, server6)
		}
	})
	b.Run("v2", func(b *testing.B) {
		for b.Loop() {
			AppendV2(buffer, client6, server6)
		}
	})
}
