package relay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Whatever is read, a datagram is at least one, and its parts make it up.
func FuzzReadControl(f *testing.F) {
	var c control
	c.addSource(true, [16]byte{1, 2}, 3)
	c.addMarks(false, 4)
	binary.NativeEndian.PutUint32(c.add(unix.SOL_UDP, unix.UDP_GRO, 4), 1200)
	f.Add(c.bytes[:c.used], 64000)
	c.used = 0
	c.addSource(false, mapped([4]byte{10, 0, 0, 1}), 7)
	c.addMarks(true, 5)
	binary.NativeEndian.PutUint32(c.add(unix.SOL_UDP, unix.UDP_GRO, 4), ^uint32(0))
	f.Add(c.bytes[:c.used], 0)
	f.Add([]byte{16, 0, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		size = min(max(size, 0), 65535)
		d := datagram{data: make([]byte, size)}
		d.readControl(b)
		if n := d.count(); n < 1 || d.segment > 0 && n > 1 && (n-1)*d.segment >= size || n > max(size, 1) {
			t.Errorf("%d bytes in segments of %d are %d datagrams", size, d.segment, n)
		}
		errno, ok := readError(b)
		if ok == (errno == 0) {
			t.Errorf("readError = %d, %v", errno, ok)
		}
	})
}

func TestControlIsReadAsItWasWritten(t *testing.T) {
	local := netip.MustParseAddr("fd12::32").As16()
	for _, ipv6 := range []bool{true, false} {
		if !ipv6 {
			local = netip.MustParseAddr("10.11.12.32").As16()
		}
		var c control
		c.addSource(ipv6, local, 9)
		c.addMarks(ipv6, 0xb9)
		if !ipv6 {
			// struct in_pktinfo has two addresses: the one to answer from, which is
			// what is written, and the one in the header, which is what is read.
			copy(c.bytes[unix.CmsgLen(0)+8:], local[12:])
		}
		var d datagram
		d.readControl(c.bytes[:c.used])
		if d.local != local || d.ifindex != 9 || d.marks != 0xb9 {
			t.Errorf("read %+v", d)
		}
	}
}

// However datagrams are put together, the kernel takes them apart into the
// same ones, in the same order, for the same sessions.
func FuzzSenderKeepsDatagrams(f *testing.F) {
	f.Add([]byte{10, 10, 10, 3, 0, 10}, []byte{0, 0, 0, 0, 0, 0}, true)
	f.Add([]byte{200, 200, 200, 200}, []byte{0, 64, 0, 128}, false)
	f.Add(bytes.Repeat([]byte{255}, 64), make([]byte, 64), true)
	f.Fuzz(func(t *testing.T, sizes, kinds []byte, toClient bool) {
		u := &udpSocket{ipv6: true}
		sessions := [4]*session{}
		for i := range sessions {
			sessions[i] = &session{socket: u, flow: flow{port: uint32(i + 1)}, plain: i == 3, backend: &backend{}}
		}
		type sent struct {
			session *session
			marks   byte
			data    string
		}
		var want, got []sent
		x := newSender()
		for i := range min(len(sizes), len(kinds), messages) {
			kind := kinds[i]
			d := &datagram{data: bytes.Repeat([]byte{byte(i)}, int(sizes[i])*int(kind&3+1)*20), marks: kind >> 2 & 1}
			if kind&8 != 0 {
				d.segment = int(sizes[i])*7 + 1
			}
			s := sessions[kind>>4&3]
			x.add(s, d, toClient)
			for rest, one := d.data, d.segment; ; rest = rest[one:] {
				if one == 0 || len(rest) <= one {
					want = append(want, sent{s, d.marks, string(rest)})
					break
				}
				want = append(want, sent{s, d.marks, string(rest[:one])})
			}
		}
		n := x.finish()
		for i := range n {
			h, p := &x.headers[i], &x.parcels[i]
			// As the kernel sees it: iovecs one after another, cut at what the
			// control message says.
			var all []byte
			for _, iov := range unsafe.Slice(h.Iov, int(h.Iovlen)) {
				all = append(all, unsafe.Slice(iov.Base, int(iov.Len))...)
			}
			segment, marks := 0, byte(0)
			controls, err := unix.ParseSocketControlMessage(bytes.Clone(x.controls[i].bytes[:h.Controllen]))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range controls {
				switch m.Header.Type {
				case unix.UDP_SEGMENT:
					segment = int(binary.NativeEndian.Uint16(m.Data))
				case unix.IP_TOS, unix.IPV6_TCLASS:
					marks = m.Data[0]
				}
			}
			before := len(got)
			if segment > 0 {
				for len(all) > segment {
					got = append(got, sent{p.session, marks, string(all[:segment])})
					all = all[segment:]
				}
				if len(all) == 0 {
					t.Error("a message with segments ends with none")
				}
			}
			got = append(got, sent{p.session, marks, string(all)})
			if sent := len(got) - before; sent != p.count {
				t.Errorf("message %d has %d datagrams and is counted as %d", i, sent, p.count)
			}
			if int(h.Iovlen) > 1 && (p.count > segmentsMax || p.bytes > segmentedMax || p.session.plain) {
				t.Errorf("message %d: %d datagrams, %d bytes put together for %+v", i, p.count, p.bytes, p.session)
			}
			single := 0
			x.each(i, func(data []byte) {
				if string(data) != got[before+single].data {
					t.Errorf("message %d: its datagram %d is another", i, single)
				}
				single++
			})
			if single != p.count {
				t.Errorf("message %d: %d datagrams one by one, want %d", i, single, p.count)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d datagrams, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("datagram %d: %d bytes for %p, want %d for %p", i, len(got[i].data), got[i].session, len(want[i].data), want[i].session)
			}
		}
	})
}

// What a host looks at in an ICMP message: that it is intact, and whose
// datagram it is about.
func FuzzICMPNamesTheDatagram(f *testing.F) {
	f.Add([]byte("hello"), uint16(40000), uint16(53), true, uint32(1400))
	f.Add(make([]byte, 600), uint16(1), uint16(65535), false, uint32(0))
	f.Fuzz(func(t *testing.T, data []byte, client, port uint16, is4 bool, mtu uint32) {
		flow := flow{client: netip.MustParseAddr("fd12::7").As16(), local: netip.MustParseAddr("fd12::32").As16(), port: uint32(client)}
		kind, code, header, protocol, addrs, most := byte(icmp6Big), byte(0), 40, 6, 8, 1280-40
		if is4 {
			flow.client, flow.local = netip.MustParseAddr("10.11.12.7").As16(), netip.MustParseAddr("10.11.12.32").As16()
			kind, code, header, protocol, addrs, most = icmpUnreachable, icmpFragment, 20, 9, 12, 576-20
		}
		m := appendICMP(nil, &flow, port, kind, code, mtu, data)
		if len(m) > most {
			t.Fatalf("%d bytes", len(m))
		}
		if m[0] != kind || m[1] != code || binary.BigEndian.Uint32(m[4:]) != mtu {
			t.Errorf("message % x", m[:8])
		}
		if is4 && (checksum(m) != 0 || checksum(m[8:28]) != 0) {
			t.Errorf("checksums leave %x and %x", checksum(m), checksum(m[8:28]))
		}
		ip, udp := m[8:8+header], m[8+header:]
		size := (header - addrs) / 2
		source, local := flow.client[16-size:], flow.local[16-size:]
		if ip[protocol] != unix.IPPROTO_UDP || !bytes.Equal(ip[addrs:addrs+size], source) || !bytes.Equal(ip[addrs+size:], local) {
			t.Errorf("header % x", ip)
		}
		if binary.BigEndian.Uint16(udp) != client || binary.BigEndian.Uint16(udp[2:]) != port || !bytes.HasPrefix(data, udp[8:]) {
			t.Errorf("datagram % x", udp[:8])
		}
	})
}
