package conntrack

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// Entries as Linux 6.18 sends them to a little-endian machine.
const (
	tcp4 = "020000003400018014000180080001000a0b0c07080002000a0b0c201c000280050001000600000006000200a98c000006000300005000003400028014000180080001000a000065080002000a0b0c071c0002800500010006000000060002002328000006000300a98c000008000300000001ae080008000000000008000c0084a8008508000b0000000001080007000006977f300004802c0001800500010003000000050002000a000000050003000a000000060004002300000006000500230000001c0009800c00010000000000000000030c00020000000000000000a41c000a800c00010000000000000000020c000200000000000000007b100014800c00010018ea70dd652b9df1"
	udp6 = "0a0000004c0001802c00018014000300fd12000000000000000000000000000714000400fd1200000000000000000000000000321c000280050001001100000006000200afe8000006000300005000004c0002802c00018014000300fd00000000000000000000000000010114000400fd1200000000000000000000000000071c0002800500010011000000060002002329000006000300afe8000008000300000001a8080008000000000008000c002e0644c208000b0000000001080007000000001e1c0009800c00010000000000000000010c00020000000000000000381c000a800c00010000000000000000000c0002000000000000000000100014800c00010018ea70dd66110498"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Flow{
		tcp4: {
			Protocol: edge.TCP,
			Client:   netip.MustParseAddrPort("10.11.12.7:43404"), Front: netip.MustParseAddrPort("10.11.12.32:80"),
			Backend: netip.MustParseAddrPort("10.0.0.101:9000"), Seen: netip.MustParseAddrPort("10.11.12.7:43404"),
			State: Established, Replied: true, DNAT: true, ID: 2225602693, Timeout: 431999 * time.Second,
		},
		udp6: {
			Protocol: edge.UDP,
			Client:   netip.MustParseAddrPort("[fd12::7]:45032"), Front: netip.MustParseAddrPort("[fd12::32]:80"),
			Backend: netip.MustParseAddrPort("[fd00::101]:9001"), Seen: netip.MustParseAddrPort("[fd12::7]:45032"),
			DNAT: true, ID: 772162754, Timeout: 30 * time.Second,
		},
	} {
		got, ok := parse(unhex(t, text))
		if !ok || got != want {
			t.Errorf("parsed is %+v, %v; want %+v", got, ok, want)
		}
	}
}

// What is none of ours, or no entry, is none.
func TestParseRefuses(t *testing.T) {
	good := func() []byte { return unhex(t, tcp4) }
	protocol, otherProtocol, address := 36, 88, 12 // where they are in it
	damage := map[string]func() []byte{
		"nothing":         func() []byte { return nil },
		"no attributes":   func() []byte { return good()[:4] },
		"half a tuple":    func() []byte { return good()[:30] },
		"one direction":   func() []byte { return good()[:56] },
		"an own zone":     func() []byte { return appendAttribute(good(), nl.CTA_ZONE, []byte{0, 7}) },
		"ICMP":            func() []byte { b := good(); b[protocol], b[otherProtocol] = 1, 1; return b },
		"two protocols":   func() []byte { b := good(); b[protocol] = 17; return b },
		"a short address": func() []byte { b := good(); b[address] = 7; return b },
		"a zone of one direction": func() []byte {
			t := appendAttribute(good()[8:56:56], ctaTupleZone, []byte{0, 7})
			return appendAttribute(good(), nl.CTA_TUPLE_ORIG, t)
		},
		"two families": func() []byte {
			return append(good()[:56:56], unhex(t, udp6)[80:156]...)
		},
	}
	if b := good(); b[protocol] != 6 || b[otherProtocol] != 6 {
		t.Fatalf("the protocols are elsewhere: %d and %d", b[protocol], b[otherProtocol])
	}
	for name, make := range damage {
		if f, ok := parse(make()); ok {
			t.Errorf("of %s is made %+v", name, f)
		}
	}
}

// Whatever comes, what is made of it is a flow that makes sense, and the request
// to delete it names that flow and no other.
func FuzzEntry(f *testing.F) {
	f.Add(unhex(f, tcp4))
	f.Add(unhex(f, udp6))
	f.Add(unhex(f, tcp4)[:100])
	f.Add(appendDelete(nil, &Flow{}, 0, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		size := 0
		for m := range messages(b).all {
			size += unix.NLMSG_HDRLEN + len(m.payload)
			m.end()
		}
		if size > len(b) {
			t.Errorf("messages of %d bytes in %d", size, len(b))
		}
		flow, ok := parse(b)
		if !ok {
			if flow != (Flow{}) {
				t.Errorf("no flow is %+v", flow)
			}
			return
		}
		for _, a := range []netip.AddrPort{flow.Client, flow.Front, flow.Backend, flow.Seen} {
			if !a.IsValid() || a.Addr().Is4() != flow.Client.Addr().Is4() {
				t.Errorf("%v is no address like those of %+v", a, flow)
			}
		}
		var requests []messages
		for m := range messages(appendDelete(nil, &flow, 1, true)).all {
			requests = append(requests, m.payload)
		}
		if len(requests) != 1 {
			t.Fatalf("the request to delete %+v is %d messages", flow, len(requests))
		}
		var named tuple
		var id uint32
		for kind, value := range attributes(requests[0][nl.SizeofNfgenmsg:]).all {
			switch kind {
			case nl.CTA_TUPLE_REPLY:
				named = parseTuple(value)
			case nl.CTA_ID:
				id = be32(value)
			}
		}
		if want := (tuple{flow.Protocol, flow.Backend, flow.Seen}); named != want || id != flow.ID {
			t.Errorf("the request is to delete %+v with ID %d, want %+v with ID %d", named, id, want, flow.ID)
		}
	})
}

// The kernel refuses a mask that is empty.
func TestListRequest(t *testing.T) {
	for _, test := range []struct {
		f          Filter
		want, mask uint32
	}{
		{Filter{Protocol: edge.UDP}, 0, 0},
		{Filter{DNAT: true}, 0x20, 0x20},
		{Filter{DNAT: true, Protocol: edge.TCP}, 0x20, 0x20},
	} {
		var want []byte
		if test.mask != 0 {
			want = appendAttribute(want, 3, binary.BigEndian.AppendUint32(nil, test.want))
			want = appendAttribute(want, 26, binary.BigEndian.AppendUint32(nil, test.mask))
		}
		if got := listRequest(test.f)[unix.NLMSG_HDRLEN+nl.SizeofNfgenmsg:]; !bytes.Equal(got, want) {
			t.Errorf("%+v asks for %x, want %x", test.f, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	if err := explain("list", unix.EPERM); !errors.Is(err, ErrNotPermitted) || err.Error() != "conntrack: list: reading and deleting entries of conntrack is not permitted" {
		t.Error(err)
	}
	if err := explain("list", unix.EPROTONOSUPPORT); err != nil {
		t.Errorf("without netfilter there is nothing to list: %v", err)
	}
	if err := explain("delete", unix.EBUSY); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
}

func TestDeleteNothing(t *testing.T) {
	if n, err := Delete(t.Context(), nil); n != 0 || err != nil {
		t.Errorf("Delete returned %d, %v", n, err)
	}
}

func BenchmarkParse(b *testing.B) {
	entry := unhex(b, tcp4)
	for b.Loop() {
		parse(entry)
	}
}
