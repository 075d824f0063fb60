package proxyproto

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"

	pires "github.com/pires/go-proxyproto"
)

// FuzzHeader holds Parse against another parser of the protocol, and against
// itself with fewer bytes.
func FuzzHeader(f *testing.F) {
	for _, row := range valid {
		f.Add([]byte(row.header + "after"))
	}
	f.Add([]byte("PROXY TCP4 192.0.2.07 10.11.12.51 56324 443\r\n"))
	f.Add([]byte(v2(0x21, 0x11, with(addrs4, tlv(3, 1, 2, 3, 4))...)))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		switch is, maybe := Begins(b); {
		case err == nil && (n <= 0 || n > len(b) || n > MaxHeader || !is):
			t.Fatalf("Parse(%q) = %+v, %d", b, h, n)
		case err != nil && (n != 0 || h != Header{}):
			t.Fatalf("Parse(%q) = %+v, %d, %v", b, h, n, err)
		case errors.Is(err, ErrNone) && (is || maybe), errors.Is(err, ErrBad) && !is, errors.Is(err, ErrShort) && !is && !maybe:
			t.Fatalf("Begins(%q) = %v, %v, and Parse returns %v", b, is, maybe, err)
		case err == nil && !h.Local && (h.Src.Addr().Is4In6() || h.Src.Addr().Zone() != "" || !h.Src.IsValid() || !h.Dst.IsValid()):
			t.Fatalf("Parse(%q) = %+v", b, h)
		case errors.Is(err, ErrShort) && len(b) >= MaxHeader:
			t.Fatalf("Parse wants more than %d bytes", len(b))
		}

		// More bytes change nothing once it is decided. Before, it is short.
		for i := range min(len(b), 200) {
			switch hi, ni, erri := Parse(b[:i]); {
			case erri == nil && (err != nil || hi != h || ni != n || i < n):
				t.Fatalf("Parse(%q) = %+v, %d; with more it is %+v, %d, %v", b[:i], hi, ni, h, n, err)
			case errors.Is(erri, ErrNone) && !errors.Is(err, ErrNone), errors.Is(erri, ErrBad) && !errors.Is(err, ErrBad):
				t.Fatalf("Parse(%q) = %v; with more it is %+v, %d, %v", b[:i], erri, h, n, err)
			case errors.Is(erri, ErrShort) && err == nil && i >= n:
				t.Fatalf("Parse(%q) is short; with more it is %+v, %d", b[:i], h, n)
			}
		}

		if err == nil {
			compare(t, b[:n], h)
		} else if their, theirErr := pires.Read(bufio.NewReader(bytes.NewReader(b))); theirErr == nil && !stricter(b, their) {
			t.Fatalf("Parse(%q) = %v; theirs is %+v", b, err, their)
		}
	})
}

// compare says whether the other parser reads all of a header, and the same.
func compare(t *testing.T, header []byte, h Header) {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(header))
	their, err := pires.Read(r)
	if err != nil {
		// It refuses what need not be accepted.
		if v2 := header[0] == '\r'; !v2 || !h.Local {
			t.Fatalf("Parse(%q) = %+v; theirs fails: %v", header, h, err)
		}
		return
	}
	if r.Buffered() != 0 {
		t.Fatalf("Parse(%q): theirs leaves %d bytes", header, r.Buffered())
	}
	src, srcTCP := their.SourceAddr.(*net.TCPAddr)
	dst, _ := their.DestinationAddr.(*net.TCPAddr)
	if their.Command.IsLocal() || !srcTCP {
		if !h.Local {
			t.Fatalf("Parse(%q) = %+v; theirs is %+v", header, h, their)
		}
		return
	}
	plain := func(a *net.TCPAddr) netip.AddrPort {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	if want := (Header{Src: plain(src), Dst: plain(dst)}); h != want {
		t.Fatalf("Parse(%q) = %+v; theirs is %+v", header, h, want)
	}
}

// stricter says whether the other parser accepts a header of version 2 only
// because it does not look at what follows the addresses, or allows it to be
// longer.
func stricter(b []byte, their *pires.Header) bool {
	if their.Version != 2 {
		return false
	}
	if n := sizeV2 + int(b[14])<<8 + int(b[15]); n > MaxHeader {
		return true
	}
	tlvs, err := their.TLVs()
	if err != nil {
		return true
	}
	for _, tlv := range tlvs {
		if tlv.Type == pires.PP2_TYPE_CRC32C {
			return true
		}
	}
	return false
}

func FuzzAppend(f *testing.F) {
	f.Add([]byte{192, 0, 2, 7}, uint16(1), []byte{10, 11, 12, 51}, uint16(443))
	f.Add(addrs6[:16], uint16(1), []byte{10, 11, 12, 51}, uint16(443))
	f.Fuzz(func(t *testing.T, src []byte, srcPort uint16, dest []byte, destPort uint16) {
		s, okS := netip.AddrFromSlice(src)
		d, okD := netip.AddrFromSlice(dest)
		for _, header := range [][]byte{
			AppendV1(nil, netip.AddrPortFrom(s, srcPort), netip.AddrPortFrom(d, destPort)),
			AppendV2(nil, netip.AddrPortFrom(s, srcPort), netip.AddrPortFrom(d, destPort)),
		} {
			want := Header{Local: true}
			if okS && okD {
				want = Header{Src: netip.AddrPortFrom(s.Unmap(), srcPort), Dst: netip.AddrPortFrom(d.Unmap(), destPort)}
			}
			compare(t, header, want)
			if h, n, err := Parse(header); err != nil || n != len(header) || h != want {
				t.Fatalf("Parse(%q) = %+v, %d, %v; want %+v", header, h, n, err, want)
			}
		}
	})
}
