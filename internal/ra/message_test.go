package ra

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var whole = message{
	hopLimit: 64, other: true, lifetime: 30 * time.Minute, source: []byte{2, 0, 0, 0, 0, 1}, mtu: 1492,
	prefixes: []prefixInformation{
		{Prefix{netip.MustParsePrefix("fd00:10::/64"), 90 * time.Minute, 45 * time.Minute}, true, true},
		{Prefix{netip.MustParsePrefix("2001:db8:1::/64"), 2 * time.Hour, 0}, true, true},
	},
	dns: []netip.Addr{netip.MustParseAddr("fd00:10::1")}, dnsLifetime: 30 * time.Minute,
	search: []string{"home.example", "cluster.home.example"}, goneDNS: []netip.Addr{netip.MustParseAddr("2001:db8:1::1")},
}

// The bytes are those of the figures in RFC 4861 §4.2 and §4.6, RFC 8106 §5.
func TestEncode(t *testing.T) {
	want := strings.Join([]string{
		"86000000", "40400708", "00000000", "00000000",
		"0101020000000001",
		"05010000000005d4",
		"030440c0", "00001518", "00000a8c", "00000000", "fd000010000000000000000000000000",
		"030440c0", "00001c20", "00000000", "00000000", "20010db8000100000000000000000000",
		"19030000", "00000708", "fd000010000000000000000000000001",
		"19030000", "00000000", "20010db8000100000000000000000001",
		"1f060000", "00000708", "04686f6d65076578616d706c6500", "07636c757374657204686f6d65076578616d706c6500", "00000000",
	}, "")
	if got := hex.EncodeToString(whole.encode()); got != want {
		t.Errorf("encode =\n%s, want\n%s", got, want)
	}
	got, err := parse(whole.encode())
	if err != nil || !reflect.DeepEqual(got, whole) {
		t.Errorf("parse = %+v, %v\nwant %+v", got, err, whole)
	}
	if got, err := parse(message{}.encode()); err != nil || !reflect.DeepEqual(got, message{}) {
		t.Errorf("parse of nothing said = %+v, %v", got, err)
	}
}

func TestEncodeBounds(t *testing.T) {
	m := message{lifetime: 100 * time.Hour, dnsLifetime: time.Second, search: []string{"", "a..b", strings.Repeat("x", 64), "ok", strings.Repeat("y.", 130)}}
	for i := range 300 {
		m.dns = append(m.dns, netip.AddrFrom16([16]byte{0xfd, 14: byte(i / 256), 15: byte(i)}))
		m.search = append(m.search, strings.Repeat("n", 40))
	}
	m.prefixes = []prefixInformation{{Prefix: Prefix{netip.MustParsePrefix("fd00::/64"), 1 << 62, -1}}}
	got, err := parse(m.encode())
	if err != nil {
		t.Fatal(err)
	}
	if got.lifetime != most16*time.Second || got.prefixes[0].Valid != most32*time.Second || got.prefixes[0].Preferred != 0 {
		t.Errorf("lifetimes %s, %+v", got.lifetime, got.prefixes)
	}
	if len(got.dns) != 300 || got.search[0] != "ok" || len(got.search) != 1+(mostNames-4)/42 {
		t.Errorf("%d servers, %d domains, the first %q", len(got.dns), len(got.search), got.search[0])
	}
}

func TestCheckSolicitation(t *testing.T) {
	plain := []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0}
	withSource := append(bytes.Clone(plain), 1, 1, 2, 0, 0, 0, 0, 7)
	neighbour, nobody := netip.MustParseAddr("fe80::7"), netip.IPv6Unspecified()
	for _, c := range []struct {
		name string
		b    []byte
		from netip.Addr
		hops int
		want string
	}{
		{"plain", plain, neighbour, 255, ""},
		{"with its address", withSource, neighbour, 255, ""},
		{"before it has an address", plain, nobody, 255, ""},
		{"nobody's address", withSource, nobody, 255, "a link-layer address of nobody"},
		{"from elsewhere", plain, neighbour, 254, "it comes from elsewhere: hop limit 254"},
		{"short", plain[:7], neighbour, 255, "not a router solicitation"},
		{"another type", append([]byte{134}, plain[1:]...), neighbour, 255, "not a router solicitation"},
		{"another code", append([]byte{133, 1}, plain[2:]...), neighbour, 255, "not a router solicitation"},
		{"option of length 0", append(bytes.Clone(plain), 1, 0, 0, 0, 0, 0, 0, 0), neighbour, 255, "an option is cut short, or of length 0: 8 bytes are left"},
		{"option cut short", append(bytes.Clone(plain), 1, 2, 0, 0, 0, 0, 0, 0), neighbour, 255, "an option is cut short, or of length 0: 8 bytes are left"},
	} {
		got := ""
		if err := checkSolicitation(c.b, c.from, c.hops); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What can be read is read again from what is written.
func FuzzParse(f *testing.F) {
	f.Add(whole.encode())
	f.Add(message{}.encode())
	f.Add([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = checkSolicitation(b, netip.IPv6Unspecified(), 255)
		m, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(m.encode())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		third, err := parse(again.encode())
		if err != nil || !reflect.DeepEqual(again, third) {
			t.Errorf("%+v is read as %+v, %v", again, third, err)
		}
		if again.lifetime != m.lifetime || len(again.prefixes) != len(m.prefixes) || len(again.dns) != len(m.dns) || len(again.goneDNS) != len(m.goneDNS) {
			t.Errorf("%+v is read as %+v", m, again)
		}
	})
}
