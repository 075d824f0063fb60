package dhcp

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestDatagramsAreAsOnTheCable(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.0.0.1:67"), netip.MustParseAddrPort("255.255.255.255:68")
	// The sums are those of another program.
	const want = "4500 001f 0000 4000 4011 30ce 0a00 0001 ffff ffff 0043 0044 000b 30ee 616263"
	got := datagram(from, to, []byte("abc"))
	if checksum(0, got[:ipBytes]) != 0 {
		t.Errorf("the sum of the header is wrong: % x", got)
	}
	pseudo := append(append([]byte{}, got[12:20]...), 0, 17, 0, 11)
	if sum := checksum(sumOf(0, pseudo), got[ipBytes:]); sum != 0 {
		t.Errorf("the sum of the datagram is wrong by %x: % x", sum, got)
	}
	if text := hex.EncodeToString(got); text != strings.ReplaceAll(want, " ", "") {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestWhoHasAnAddressByARP(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if _, _, ok := arpSender(arpProbe(addr("10.0.0.7"), mac)); ok {
		t.Error("who only asks has it")
	}
	b := arpProbe(addr("10.0.0.7"), mac)
	copy(b[14:], addr("10.0.0.9").AsSlice())
	for _, op := range []byte{arpRequest, arpReply} {
		b[7] = op
		if a, who, ok := arpSender(b); !ok || a != addr("10.0.0.9") || who != mac.String() {
			t.Errorf("operation %d: %s %s %v", op, a, who, ok)
		}
	}
	b[7] = 3
	if _, _, ok := arpSender(b); ok {
		t.Error("another operation says it")
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arpProbe(addr("10.0.0.7"), net.HardwareAddr{2, 0, 0, 0, 0, 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, mac, ok := arpSender(b); ok && (!a.Is4() || a.IsUnspecified() || len(mac) != 17) {
			t.Errorf("%s %s of % x", a, mac, b)
		}
	})
}
