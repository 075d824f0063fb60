package vip

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

var (
	ours   = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{0x02, 0, 0, 0, 0, 2}
	addr4  = netip.MustParseAddr("10.11.12.70")
	addr6  = netip.MustParseAddr("fd00:11:12::1:70")
)

// The frames as Wireshark would show them.
func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"ARP probe", probe(addr4, ours), `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0001
			020000000001 00000000
			000000000000 0a0b0c46`},
		{"ARP announcement", announcement(addr4, ours)[0], `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0001
			020000000001 0a0b0c46
			000000000000 0a0b0c46`},
		{"gratuitous ARP reply", announcement(addr4, ours)[1], `
			ffffffffffff 020000000001 0806
			0001 0800 06 04 0002
			020000000001 0a0b0c46
			020000000001 0a0b0c46`},
		{"solicitation", probe(addr6, ours), `
			3333ff010070 020000000001 86dd
			60000000 0018 3a ff
			00000000000000000000000000000000
			ff0200000000000000000001ff010070
			87 00 7ca2 00000000
			fd000011001200000000000000010070`},
		{"advertisement", announcement(addr6, ours)[0], `
			333300000001 020000000001 86dd
			60000000 0020 3a ff
			fd000011001200000000000000010070
			ff020000000000000000000000000001
			88 00 5975 20000000
			fd000011001200000000000000010070
			02 01 020000000001`},
	} {
		want := strings.Join(strings.Fields(c.want), "")
		if got := hex.EncodeToString(c.frame); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, want)
		}
	}
}

// Over a sound message, the checksum is zero.
func TestChecksum(t *testing.T) {
	for _, frame := range [][]byte{probe(addr6, ours), announcement(addr6, ours)[0]} {
		src, dst := netip.AddrFrom16([16]byte(frame[22:38])), netip.AddrFrom16([16]byte(frame[38:54]))
		if got := checksum(src, dst, frame[54:]); got != 0 {
			t.Errorf("checksum = %#04x", got)
		}
	}
}

func TestParse(t *testing.T) {
	mac := [hardwareBytes]byte(theirs)
	changed := func(frame []byte, at int, to ...byte) []byte {
		frame = bytes.Clone(frame)
		copy(frame[at:], to)
		return frame
	}
	arp, na, ns := announcement(addr4, theirs)[0], announcement(addr6, theirs)[0], probe(addr6, theirs)
	said := ndFrame(solicitation, 0, theirs, addr6, solicitedNode(addr6), netip.MustParseAddr("fd00::9"), sourceOption)
	for _, c := range []struct {
		name  string
		frame []byte
		want  claim // the zero claim: none
	}{
		{"ARP probe", probe(addr4, theirs), claim{addr4, mac, true}},
		{"ARP request", arp, claim{addr4, mac, false}},
		{"ARP reply", announcement(addr4, theirs)[1], claim{addr4, mac, false}},
		{"ARP, padded", append(bytes.Clone(arp), make([]byte, 18)...), claim{addr4, mac, false}},
		{"DAD", ns, claim{addr6, mac, true}},
		{"advertisement", na, claim{addr6, mac, false}},
		{"advertisement, by somebody for another", changed(na, 6, ours...), claim{addr6, mac, false}},
		{"advertisement without an option", ndFrame(advertisement, 0, theirs, addr6, allNodes, addr6, 0), claim{addr6, mac, false}},
		{"solicitation by the address", said, claim{addr6, mac, false}},
		{"nothing", nil, claim{}},
		{"ARP, cut off", arp[:len(arp)-1], claim{}},
		{"ARP of another network", changed(arp, 16, 0x86, 0xdd), claim{}},
		{"RARP", changed(arp, 21, 3), claim{}},
		{"ARP reply by nobody", changed(announcement(addr4, theirs)[1], 28, 0, 0, 0, 0), claim{}},
		{"ARP of nobody for nobody", changed(probe(addr4, theirs), 38, 0, 0, 0, 0), claim{}},
		{"from behind a router", changed(na, 21, 254), claim{}},
		{"UDP", changed(na, 20, 17), claim{}},
		{"router advertisement", changed(na, 54, 134), claim{}},
		{"longer than it is", changed(na, 18, 0, 33), claim{}},
		{"shorter than one", changed(na, 18, 0, 23), claim{}},
		{"a group", changed(na, 62, 0xff), claim{}},
		{"an option of no length", changed(na, 79, 0), claim{addr6, mac, false}},
		{"an option longer than the frame", changed(na, 79, 2), claim{addr6, mac, false}},
	} {
		got, ok := parse(c.frame)
		if got != c.want || ok != (c.want != claim{}) {
			t.Errorf("%s: %v, %t; want %v", c.name, got, ok, c.want)
		}
	}
}

// What a frame claims is an address that an interface can have, by one that can
// be told to have it: the frame of that claim is read as the same.
func FuzzFrame(f *testing.F) {
	f.Add(probe(addr4, theirs))
	f.Add(probe(addr6, theirs))
	f.Add(announcement(addr4, theirs)[1])
	f.Add(announcement(addr6, theirs)[0])
	f.Fuzz(func(t *testing.T, frame []byte) {
		c, ok := parse(frame)
		if !ok {
			if c != (claim{}) {
				t.Fatalf("%x is no claim, and %v", frame, c)
			}
			return
		}
		if !c.addr.IsValid() || c.addr.IsUnspecified() || c.addr.Is4In6() {
			t.Fatalf("%x claims %v", frame, c.addr)
		}
		same := announcement(c.addr, c.mac[:])[0]
		if c.probe {
			same = probe(c.addr, c.mac[:])
		}
		if again, ok := parse(same); !ok || again != c {
			t.Fatalf("%x is %v; written once more it is %v, %t", frame, c, again, ok)
		}
	})
}
