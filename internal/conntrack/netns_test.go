package conntrack

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// The doors of the edge, and what is behind them: a backend that answers, and
// one that is silent.
const (
	front4, front6 = "10.11.12.32:80", "[fd12::32]:80"
	alive4, alive6 = "10.0.0.101:9000", "[fd00::101]:9000"
	dead4, dead6   = "10.0.0.101:9001", "[fd00::101]:9001"
)

func nft(t *testing.T, ns *netnstest.NS, script string) {
	t.Helper()
	ns.Do(t, func() {
		command := exec.CommandContext(t.Context(), "nft", "-f", "-")
		command.Stdin = strings.NewReader(script)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	})
}

// newSite has a backend that answers and one that does not, and neighbours that
// know each other: IPv6 takes seconds to find them.
func newSite(t *testing.T) netnstest.Site {
	t.Helper()
	site := netnstest.NewSite(t)
	netnstest.Mirror(t, site.Node, 9000)
	nft(t, site.Node, `table inet test { chain input { type filter hook input priority 0
		meta l4proto { tcp, udp } th dport 9001 drop
	}
	}`)
	send(t, alive4, alive6)
	for _, front := range []string{front4, front6} {
		if _, err := netnstest.LookIn(t, site.Home, "udp", front); err != nil {
			t.Fatalf("by %s: %v", front, err)
		}
	}
	deleted(t, listed(t, Filter{}), 2)
	return site
}

// send has the edge move new connections to these backends.
func send(t *testing.T, to4, to6 string) {
	t.Helper()
	nft(t, nil, `table inet test
	delete table inet test
	table inet test { chain dstnat { type nat hook prerouting priority dstnat
		tcp flags & (fin|syn|rst|ack) != syn return
		meta l4proto { tcp, udp } th dport 80 dnat ip to `+to4+`
		meta l4proto { tcp, udp } th dport 80 dnat ip6 to `+to6+`
	}
	}`)
}

func listed(t *testing.T, f Filter) []Flow {
	t.Helper()
	flows, err := List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		return cmp.Or(a.Client.Compare(b.Client), cmp.Compare(a.Protocol, b.Protocol))
	})
	return flows
}

// unreplied are those that nobody has answered.
func unreplied(t *testing.T, f Filter) []Flow {
	t.Helper()
	return slices.DeleteFunc(listed(t, f), func(f Flow) bool { return f.Replied })
}

func deleted(t *testing.T, flows []Flow, want int) {
	t.Helper()
	got, err := Delete(t.Context(), flows)
	if err != nil || got != want {
		t.Fatalf("Delete returned %d, %v; want %d", got, err, want)
	}
}

// dialUDP returns a socket of the client's.
func dialUDP(t *testing.T, ns *netnstest.NS, to string) net.Conn {
	t.Helper()
	var c net.Conn
	ns.Do(t, func() {
		var err error
		if c, err = net.Dial("udp", to); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// answered says whether a datagram is answered within a time.
func answered(t *testing.T, c net.Conn, patience time.Duration) bool {
	t.Helper()
	if _, err := c.Write([]byte("who am I")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 100))
	return err == nil
}

func addrOf(a net.Addr) netip.AddrPort {
	ap := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// A client with one socket goes on to the backend that has died, whatever the
// rules say, until its entry is deleted.
func TestNetnsUDPIsFreedFromADeadBackend(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t)
		send(t, dead4, dead6)
		for front, backends := range map[string][2]string{front4: {dead4, alive4}, front6: {dead6, alive6}} {
			c := dialUDP(t, site.Home, front)
			if answered(t, c, 100*time.Millisecond) {
				t.Fatal("the silent backend answers")
			}
			stuck := unreplied(t, Filter{DNAT: true, Protocol: edge.UDP})
			if len(stuck) != 1 {
				t.Fatalf("listed are %+v, want one flow", stuck)
			}
			f := stuck[0]
			client, want := addrOf(c.LocalAddr()), netip.MustParseAddrPort(backends[0])
			if f.Protocol != edge.UDP || f.Client != client || f.Front != netip.MustParseAddrPort(front) || f.Backend != want || f.Seen != client ||
				f.Replied || !f.DNAT || f.State != "" || f.ID == 0 || f.Timeout < 20*time.Second || f.Timeout > 30*time.Second {
				t.Errorf("the flow is %+v", f)
			}

			send(t, alive4, alive6)
			if answered(t, c, 300*time.Millisecond) {
				t.Fatal("a flow that the kernel knows follows the new rule")
			}
			deleted(t, stuck, 1)
			deleted(t, stuck, 0)
			if !answered(t, c, time.Second) {
				t.Fatal("after its entry is deleted, the client does not come to the new backend")
			}
			// The entry that is there now is of the same client, and is not the one
			// that was meant. It may have its ID.
			f = listed(t, Filter{DNAT: true, Protocol: edge.UDP})[0]
			stuck[0].ID = f.ID
			deleted(t, stuck, 0)
			if want := netip.MustParseAddrPort(backends[1]); f.Backend != want || !f.Replied {
				t.Errorf("the flow is now %+v", f)
			}
			if rest := unreplied(t, Filter{}); len(rest) != 0 {
				t.Errorf("unreplied are %+v", rest)
			}
			deleted(t, []Flow{f}, 1)
			send(t, dead4, dead6)
		}
	})
}

// A client that tries to connect to a backend that has died goes on trying with
// it, also from the same port again, until its entry is deleted.
func TestNetnsSYNIsFreedFromADeadBackend(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t)
		for front, backends := range map[string][2]string{front4: {dead4, alive4}, front6: {dead6, alive6}} {
			const port = 40000
			connect := func(patience time.Duration) (err error) {
				d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: port}}
				site.Home.Do(t, func() {
					var c net.Conn
					if c, err = d.Dial("tcp", front); err == nil {
						c.Close()
					}
				})
				return err
			}
			send(t, dead4, dead6)
			if err := connect(200 * time.Millisecond); err == nil {
				t.Fatal("the silent backend answers")
			}
			stuck := unreplied(t, Filter{DNAT: true, Protocol: edge.TCP})
			if len(stuck) != 1 {
				t.Fatalf("listed are %+v, want one flow", stuck)
			}
			if f := stuck[0]; f.State != SynSent || f.Replied || !f.DNAT || f.Client.Port() != port || f.Front.String() != front || f.Backend.String() != backends[0] {
				t.Errorf("the flow is %+v", f)
			}
			send(t, alive4, alive6)
			if err := connect(500 * time.Millisecond); err == nil {
				t.Fatal("a flow that the kernel knows follows the new rule")
			}
			deleted(t, stuck, 1)
			if err := connect(3 * time.Second); err != nil {
				t.Fatalf("after its entry is deleted, the client does not come to the new backend: %v", err)
			}
			if rest := unreplied(t, Filter{}); len(rest) != 0 {
				t.Errorf("unreplied are %+v", rest)
			}
		}
	})
}

// What an edge does to an established connection whose entry is deleted: the
// client's next packet is for the edge itself, which knows nothing of it.
func TestNetnsEstablishedConnectionIsReset(t *testing.T) {
	netnstest.Run(t, func() {
		site := newSite(t)
		send(t, alive4, alive6)
		for front, backend := range map[string]string{front4: alive4, front6: alive6} {
			var c net.Conn
			site.Home.Do(t, func() {
				var err error
				if c, err = net.DialTimeout("tcp", front, 3*time.Second); err != nil {
					t.Fatal(err)
				}
			})
			defer c.Close()
			r := bufio.NewReader(c)
			say := func() error {
				if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("hello\n")); err != nil {
					return err
				}
				_, err := r.ReadString('\n')
				return err
			}
			if _, err := r.ReadString('\n'); err != nil { // who we are
				t.Fatal(err)
			}
			if err := say(); err != nil {
				t.Fatal(err)
			}
			flows := slices.DeleteFunc(listed(t, Filter{DNAT: true, Protocol: edge.TCP}), func(f Flow) bool {
				return f.Front.String() != front
			})
			if len(flows) != 1 {
				t.Fatalf("listed are %+v, want one flow", flows)
			}
			f := flows[0]
			if f.Protocol != edge.TCP || f.State != Established || !f.Replied || f.Client != addrOf(c.LocalAddr()) || f.Backend.String() != backend || f.Seen != f.Client {
				t.Errorf("the flow is %+v", f)
			}
			deleted(t, flows, 1)
			if err := say(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client gets %v, want a reset", err)
			}
		}
	})
}

// appendNew makes an entry as ctnetlink does on request.
func appendNew(b []byte, f *Flow, last bool) []byte {
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if last {
		flags |= unix.NLM_F_ACK
	}
	start := len(b)
	b = appendHeader(b, nl.IPCTNL_MSG_CT_NEW, flags, 0, unix.AF_INET)
	b = appendTuple(b, nl.CTA_TUPLE_ORIG, tuple{f.Protocol, f.Client, f.Front})
	b = appendTuple(b, nl.CTA_TUPLE_REPLY, tuple{f.Protocol, f.Front, f.Client})
	b = appendAttribute(b, nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, uint32(f.Timeout/time.Second)))
	const assured, confirmed = 1 << 2, 1 << 3
	status := uint32(confirmed)
	if f.Replied {
		status |= statusSeenReply | assured
	}
	b = appendAttribute(b, nl.CTA_STATUS, binary.BigEndian.AppendUint32(nil, status))
	if f.DNAT {
		const ctaNATDst, ctaNATMinIP, ctaNATProto, ctaNATPortMin, ctaNATPortMax = 13, 1, 3, 1, 2
		port := binary.BigEndian.AppendUint16(nil, f.Backend.Port())
		ports := appendAttribute(appendAttribute(nil, ctaNATPortMin, port), ctaNATPortMax, port)
		nat := appendAttribute(nil, ctaNATMinIP, f.Backend.Addr().AsSlice())
		nat = appendAttribute(nat, ctaNATProto|unix.NLA_F_NESTED, ports)
		b = appendAttribute(b, ctaNATDst|unix.NLA_F_NESTED, nat)
	}
	return finish(b, start)
}

// fill makes n entries, of which one in 10 is rewritten. A few are not replied.
func fill(t *testing.T, n int) {
	t.Helper()
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for i := 0; i < n; i += together {
		var b []byte
		for j := i; j < i+together && j < n; j++ {
			client := netip.AddrFrom4([4]byte{10, 50, byte(j >> 14), byte(j >> 6)})
			f := Flow{
				Protocol: edge.UDP, Timeout: time.Hour,
				Client: netip.AddrPortFrom(client, uint16(30000+j%64)), Front: netip.MustParseAddrPort(front4), Backend: netip.MustParseAddrPort(alive4),
				DNAT: j%10 == 0, Replied: j%100 > 1,
			}
			b = appendNew(b, &f, j == i+together-1 || j == n-1)
		}
		if err := s.send(b); err != nil {
			t.Fatal(err)
		}
		messages, err := s.receive()
		if err != nil {
			t.Fatal(err)
		}
		for m := range messages.all {
			if _, err := m.end(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What the kernel filters is what is filtered here. These are the numbers of
// the comment on List.
func TestNetnsManyEntries(t *testing.T) {
	netnstest.Run(t, func() {
		const n = 100_000
		began := time.Now()
		if flows := listed(t, Filter{}); len(flows) != 0 {
			t.Fatalf("listed are %+v", flows)
		}
		t.Logf("none in %v", time.Since(began))
		fill(t, n)
		if entries, limit, err := Usage(); entries != n || limit < n || err != nil {
			t.Fatalf("Usage returned %d, %d, %v; want %d", entries, limit, err, n)
		}
		var flows []Flow
		for _, test := range []struct {
			f    Filter
			want int
		}{
			{Filter{}, n},
			{Filter{DNAT: true}, n / 10},
			{Filter{Protocol: edge.TCP}, 0},
		} {
			var times [2]time.Duration
			var both [2][]Flow
			for i, request := range [][]byte{listRequest(Filter{}), listRequest(test.f)} {
				times[i] = time.Hour
				for range 2 {
					began := time.Now()
					var err error
					if both[i], err = list(t.Context(), test.f, request); err != nil {
						t.Fatal(err)
					}
					times[i] = min(times[i], time.Since(began))
				}
			}
			if len(both[0]) != test.want || len(both[1]) != test.want {
				t.Errorf("%+v: %d flows filtered here and %d filtered by the kernel, want %d", test.f, len(both[0]), len(both[1]), test.want)
			}
			t.Logf("%+v: %d of %d in %v when they are filtered here, %v by the kernel", test.f, test.want, n, times[0], times[1])
			if test.f == (Filter{DNAT: true}) {
				flows = both[1]
			}
		}
		began = time.Now()
		library, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil || len(library) != n {
			t.Fatalf("the library lists %d, %v", len(library), err)
		}
		t.Logf("the library lists them in %v", time.Since(began))
		began = time.Now()
		deleted(t, append(slices.Clone(flows), flows[:1000]...), n/10)
		t.Logf("%d are deleted in %v", n/10, time.Since(began))
		if entries, _, _ := Usage(); entries != n-n/10 {
			t.Errorf("%d entries are left, want %d", entries, n-n/10)
		}
		if rest := listed(t, Filter{DNAT: true}); len(rest) != 0 {
			t.Errorf("%d are left of those that were deleted", len(rest))
		}
	})
}

// Without the right to ask, the errors say so.
func TestNetnsNotPermitted(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.New(t).Do(t, func() { // on a thread that is thrown away
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				t.Fatal(err)
			}
			if flows, err := List(t.Context(), Filter{DNAT: true}); len(flows) != 0 || !errors.Is(err, ErrNotPermitted) {
				t.Errorf("List returned %v, %v", flows, err)
			}
			one := Flow{Protocol: edge.UDP, Client: netip.MustParseAddrPort(front4), Front: netip.MustParseAddrPort(alive4)}
			if n, err := Delete(t.Context(), slices.Repeat([]Flow{one}, 200)); n != 0 || !errors.Is(err, ErrNotPermitted) {
				t.Errorf("Delete returned %d, %v", n, err)
			}
		})
	})
}
