package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// quicServer answers each stream with its own name, the server name that it was
// asked for, and what it was sent.
func quicServer(t testing.TB, name string) edge.Backend {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l, err := quic.Listen(c, &tls.Config{Certificates: []tls.Certificate{testCertificate()}, NextProtos: []string{"test"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				for {
					stream, err := conn.AcceptStream(context.Background())
					if err != nil {
						return
					}
					said, _ := io.ReadAll(stream)
					fmt.Fprintf(stream, "%s asked for %s: %s", name, conn.ConnectionState().TLS.ServerName, said)
					stream.Close()
				}
			}()
		}
	}()
	return upAt(netip.MustParseAddrPort(c.LocalAddr().String()))
}

// quicPort is a client's UDP port.
func quicPort(t testing.TB) *quic.Transport {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: c}
	t.Cleanup(func() {
		tr.Close()
		c.Close()
	})
	return tr
}

func dialQUIC(t testing.TB, from *quic.Transport, to netip.AddrPort, serverName string, protocols ...string) (*quic.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return from.Dial(ctx, net.UDPAddrFromAddrPort(to), &tls.Config{ServerName: serverName, InsecureSkipVerify: true, NextProtos: append(protocols, "test")}, nil)
}

func talkQUIC(t testing.TB, c *quic.Conn, say string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := c.OpenStreamSync(ctx)
	if err != nil {
		return "", err
	}
	stream.SetDeadline(time.Now().Add(patience))
	io.WriteString(stream, say)
	stream.Close()
	got, err := io.ReadAll(stream)
	return string(got), err
}

func sharingUDP(backends map[string]edge.Backend, hostnames map[string][]string) []edge.Frontend {
	frontends := sharing(backends, hostnames)
	for i := range frontends {
		frontends[i].Protocol = edge.UDP
	}
	return frontends
}

// A hello that fits into no datagram: its protocols are many.
func manyProtocols() (all []string) {
	for i := range 100 {
		all = append(all, fmt.Sprintf("protocol-%026d", i))
	}
	return all
}

func TestAQUICServerNameDecidesWhoIsAsked(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{"git": quicServer(t, "git"), "wild": quicServer(t, "wild"), "rest": quicServer(t, "rest")}
	addr := openShared(t, r, sharingUDP(backends, map[string][]string{"git": {"git.example.org"}, "wild": {"*.example.org"}, "rest": {"*"}}))
	for asked, want := range map[string]string{"git.example.org": "git", "www.example.org": "wild", "example.net": "rest"} {
		for _, protocols := range [][]string{nil, manyProtocols()} {
			c, err := dialQUIC(t, quicPort(t), addr, asked, protocols...)
			if err != nil {
				t.Fatalf("%s: %v", asked, err)
			}
			got, err := talkQUIC(t, c, "hello")
			if want := fmt.Sprintf("%s asked for %s: hello", want, asked); got != want || err != nil {
				t.Errorf("%d protocols: got %q, %v; want %q", len(protocols), got, err, want)
			}
			c.CloseWithError(0, "")
		}
	}
	if s := statsOf(t, r, "git"); s.Accepted != 2 {
		t.Errorf("git: %+v, want 2 accepted", s)
	}
	if s := statsOf(t, r, ""); s.Accepted != 6 || s.Routed != 6 || s.Active != 0 || !s.Names || s.PacketsDropped != 0 {
		t.Errorf("the door: %+v, want 6 given away, and no packet dropped", s)
	}
}

// HTTP/3 clients in Go have one port for all their connections.
func TestQUICConnectionsOfOnePortGoToSeveralServers(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{"a": quicServer(t, "a"), "b": quicServer(t, "b"), "c": quicServer(t, "c")}
	addr := openShared(t, r, sharingUDP(backends, map[string][]string{"a": {"a.test"}, "b": {"b.test"}, "c": {"c.test"}}))
	port := quicPort(t)
	conns := map[string]*quic.Conn{}
	for _, name := range []string{"a", "b", "c"} {
		c, err := dialQUIC(t, port, addr, name+".test", manyProtocols()...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		conns[name] = c
	}
	big := string(make([]byte, 200_000))
	for range 5 {
		for name, c := range conns {
			got, err := talkQUIC(t, c, big)
			if want := fmt.Sprintf("%s asked for %s.test: %s", name, name, big); got != want || err != nil {
				t.Fatalf("%s: got %.30q and %d bytes, %v", name, got, len(got), err)
			}
		}
	}
	conns["b"].CloseWithError(0, "")
	for i := range 2 * maxSlots { // those that are over do not keep others out
		c, err := dialQUIC(t, port, addr, "b.test")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if got, err := talkQUIC(t, c, "short"); got != "b asked for b.test: short" || err != nil {
			t.Errorf("connection %d: got %q, %v", i, got, err)
		}
		c.CloseWithError(0, "")
		for _, name := range []string{"a", "c"} { // are not idle
			talkQUIC(t, conns[name], "still")
		}
	}
	for _, name := range []string{"a", "c"} {
		if got, err := talkQUIC(t, conns[name], "still"); got != fmt.Sprintf("%s asked for %s.test: still", name, name) || err != nil {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// newNAT sends what comes to the address that it returns on to another one, from
// one port at first. move has it take another one, of the given address.
func newNAT(t testing.TB, to netip.AddrPort) (at netip.AddrPort, move func(from string)) {
	t.Helper()
	listen := func(ip string) *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(ip)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	inside := listen("127.0.0.1")
	var client atomic.Pointer[netip.AddrPort]
	var outside atomic.Pointer[net.UDPConn]
	move = func(from string) {
		next := listen(from)
		go func() {
			b := make([]byte, 65536)
			for {
				n, _, err := next.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				inside.WriteToUDPAddrPort(b[:n], *client.Load())
			}
		}()
		if old := outside.Swap(next); old != nil {
			old.Close()
		}
	}
	move("127.0.0.1")
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := inside.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			client.Store(&from)
			outside.Load().WriteToUDPAddrPort(b[:n], to)
		}
	}()
	return netip.MustParseAddrPort(inside.LocalAddr().String()), move
}

// The client does not notice; the server sees that it has moved.
func TestAQUICClientBehindANATKeepsItsBackend(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{"a": quicServer(t, "a"), "b": quicServer(t, "b"), "c": quicServer(t, "c")}
	addr := openShared(t, r, sharingUDP(backends, map[string][]string{"a": {"a.test"}, "b": {"b.test"}, "c": {"c.test"}}))
	for _, name := range []string{"a", "b", "c"} {
		at, move := newNAT(t, addr)
		c, err := dialQUIC(t, quicPort(t), at, name+".test")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 { // quic-go follows a client to three addresses at a time
			got, err := talkQUIC(t, c, "hello")
			if got != fmt.Sprintf("%s asked for %s.test: hello", name, name) || err != nil {
				t.Fatalf("%s, after %d moves: got %q, %v", name, i, got, err)
			}
			move(fmt.Sprintf("127.0.0.%d", i%2+1)) // another port, or another address as well
		}
		if s := statsOf(t, r, name); s.Accepted < 3 {
			t.Errorf("%s: %+v, want a session for each move", name, s)
		}
	}
}

// By its connection ID a client is found at any address. quic-go takes another
// one as soon as it can, so that this client is made by hand: what it has of
// QUIC is what can be seen from outside.
func TestAQUICConnectionIDIsFoundAtAnyAddress(t *testing.T) {
	r := newRelay(t, Options{})
	server := func(name string, id string) edge.Backend {
		l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				n, from, err := l.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				if b[0]&0x80 != 0 { // answers with an ID of its own
					l.WriteToUDPAddrPort(append([]byte{0xe0, 0, 0, 0, 1, 0, byte(len(id))}, id...), from)
					continue
				}
				l.WriteToUDPAddrPort(append([]byte(name+" "), b[:n]...), from)
			}
		}()
		return upAt(netip.MustParseAddrPort(l.LocalAddr().String()))
	}
	backends := map[string]edge.Backend{"a": server("a", "\xe0aaaaaaa"), "b": server("b", "\xe0bbbbbbbbbb")}
	addr := openShared(t, r, sharingUDP(backends, map[string][]string{"a": {"a.test"}, "b": {"b.test"}}))
	// What nobody knows goes nowhere.
	stranger := dialUDP(t, addr)
	stranger.Write([]byte("\x41\xe0unknownunknown, protected, whatever"))
	netnstest.Eventually(t, patience, "the stranger is turned away", func() bool { return statsOf(t, r, "").Failures[NotTLS] == 1 })
	for name, id := range map[string]string{"a": "\xe0aaaaaaa", "b": "\xe0bbbbbbbbbb"} {
		first := firstFlight(t, name+".test")
		c := dialUDP(t, addr)
		for _, datagram := range first {
			c.Write(datagram)
		}
		if n, err := c.Read(make([]byte, 2048)); err != nil || n != 7+len(id) {
			t.Fatalf("%s: %d bytes, %v", name, n, err)
		}
		// From other addresses, so that nothing else tells who it is.
		for _, from := range []string{"127.0.0.9", "127.0.0.10"} {
			moved, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(addr))
			if err != nil {
				t.Fatal(err)
			}
			moved.SetDeadline(time.Now().Add(patience))
			packet := "\x41" + id + "protected, whatever it is"
			moved.Write([]byte(packet))
			b := make([]byte, 2048)
			n, err := moved.Read(b)
			if string(b[:n]) != name+" "+packet || err != nil {
				t.Errorf("%s from %s: %q, %v", name, from, b[:n], err)
			}
			moved.Close()
		}
		if s := statsOf(t, r, name); s.Active != 3 {
			t.Errorf("%s: %+v, want 3 sessions", name, s)
		}
	}
}

// firstFlight is what a QUIC client begins with.
func firstFlight(t testing.TB, serverName string) (datagrams [][]byte) {
	t.Helper()
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	tr := quicPort(t)
	go func() {
		defer close(done)
		tr.Dial(ctx, l.LocalAddr(), &tls.Config{ServerName: serverName, InsecureSkipVerify: true, NextProtos: []string{"test"}}, nil)
	}()
	for range 2 { // with a post-quantum key share it takes two
		b := make([]byte, 2048)
		l.SetReadDeadline(time.Now().Add(patience))
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		datagrams = append(datagrams, b[:n])
	}
	cancel()
	<-done
	return datagrams
}

func TestWhatIsNotQUICIsTurnedAway(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openShared(t, r, sharingUDP(map[string]edge.Backend{"a": quicServer(t, "a")}, map[string][]string{"a": {"a.test"}}))
	c := dialUDP(t, addr)
	c.Write([]byte("a question to a name server"))
	other := dialUDP(t, addr)
	for _, datagram := range firstFlight(t, "b.test") {
		other.Write(datagram)
	}
	half := dialUDP(t, addr)
	half.Write(firstFlight(t, "a.test")[0])
	netnstest.Eventually(t, patience, "they are counted", func() bool {
		s := statsOf(t, r, "")
		return s.Failures[NotTLS] == 1 && s.Failures[UnknownName] == 1 && s.Failures[HelloTimeout] == 1 && s.Active == 0
	})
}

// Half a hello from each of ten thousand ports takes bounded memory, and leaves
// room for those who come after them.
func TestAFloodOfHalfHellosIsHeld(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openShared(t, r, sharingUDP(map[string]edge.Backend{"a": quicServer(t, "a")}, map[string][]string{"a": {"a.test"}}))
	half := firstFlight(t, "a.test")[0]
	for range 3000 {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatal(err)
		}
		c.Write(half)
		c.Close()
	}
	netnstest.Eventually(t, patience, "the flood is over", func() bool {
		s := statsOf(t, r, "")
		return s.Failures[Limit] > 0 && s.Active == 0
	})
	c, err := dialQUIC(t, quicPort(t), addr, "a.test")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := talkQUIC(t, c, "hello"); got != "a asked for a.test: hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// The next process knows whose each connection is, and each connection ID.
func TestQUICHandoverKeepsBackends(t *testing.T) {
	backends := map[string]edge.Backend{"a": quicServer(t, "a"), "b": quicServer(t, "b"), "c": quicServer(t, "c")}
	names := map[string][]string{"a": {"a.test"}, "b": {"b.test"}, "c": {"c.test"}}
	before := New(slog.New(slog.DiscardHandler), Options{})
	addr := openShared(t, before, sharingUDP(backends, names))
	frontends := sharingUDP(backends, names)
	for i := range frontends {
		frontends[i].Listen.Port = addr.Port()
	}
	port := quicPort(t)
	conns, moves := map[string]*quic.Conn{}, []func(string){}
	for name := range names {
		for i, from := range []netip.AddrPort{addr, {}} {
			if i == 1 {
				var move func(string)
				from, move = newNAT(t, addr)
				moves = append(moves, move)
			}
			c, err := dialQUIC(t, port, from, name+".test")
			if err != nil {
				t.Fatal(err)
			}
			conns[fmt.Sprint(name, i)] = c
		}
	}
	talk := func(when string) {
		t.Helper()
		for name, c := range conns {
			if got, err := talkQUIC(t, c, "hello"); got != fmt.Sprintf("%c asked for %c.test: hello", name[0], name[0]) || err != nil {
				t.Errorf("%s %s: got %q, %v", name, when, got, err)
			}
		}
	}
	talk("before")
	h, err := before.Handover()
	if err != nil {
		t.Fatal(err)
	}
	for i := range h.Doors {
		h.Doors[i].Door = frontends[0].Door // it was opened as port 0
	}
	for i := range h.Sessions {
		h.Sessions[i].Door = frontends[0].Door
	}
	after := newRelay(t, Options{Adopt: h})
	openShared(t, after, frontends)
	before.Close(context.Background())
	talk("after")
	for _, move := range moves {
		move("127.0.0.1")
	}
	talk("after a move")
	if s := statsOf(t, after, "a"); s.Accepted < 3 || s.Failures[NotTLS] > 0 {
		t.Errorf("a: %+v", s)
	}
}

// What is read of a client and what it is held against may be of two tables.
func TestHellosComeWhileADoorIsNoLongerShared(t *testing.T) {
	r := newRelay(t, Options{})
	f := udpLoopback(upAt(udpServer(t, echoUDP)))
	f.Listen.Port = refusingUDP(t).Port()
	named := f
	named.Hostnames = []string{"a.test"}
	addr := openDoor(t, r, f)
	hello := firstFlight(t, "a.test")
	end := time.Now().Add(2 * time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for time.Now().Before(end) {
			c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
			if err != nil {
				continue
			}
			for _, datagram := range hello {
				c.Write(datagram)
			}
			c.Close()
		}
	}()
	for i := 0; time.Now().Before(end); i++ {
		if i%2 == 0 {
			r.Apply([]edge.Frontend{named})
		} else {
			r.Apply([]edge.Frontend{f})
		}
	}
	<-done
}

// One client sends half hellos from ever new ports.
func TestHalfHellosDoNotKeepOthersOut(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openShared(t, r, sharingUDP(map[string]edge.Backend{"a": quicServer(t, "a")}, map[string][]string{"a": {"a.test"}}))
	half := firstFlight(t, "a.test")[0]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		often := time.NewTicker(time.Millisecond) // a thousand a second for each loop
		defer often.Stop()
		for {
			select {
			case <-stop:
				return
			case <-often.C:
			}
			for range len(r.loops) {
				c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
				if err != nil {
					continue
				}
				c.Write(half)
				c.Close()
			}
		}
	}()
	netnstest.Eventually(t, patience, "there is no room", func() bool { return statsOf(t, r, "").Failures[Limit] > 0 })
	began := time.Now()
	for range 5 {
		c, err := dialQUIC(t, quicPort(t), addr, "a.test")
		if err != nil {
			t.Error(err)
			break
		}
		c.CloseWithError(0, "")
	}
	if took := time.Since(began); took > askingTimeout/2 {
		t.Errorf("five clients took %v", took)
	}
	close(stop)
	<-done
	netnstest.Eventually(t, patience, "the flood is over", func() bool { return statsOf(t, r, "").Active == 0 })
	checkSums(t, statsOf(t, r, ""))
}

// The first backend refuses half a hello. What the client sends again is of the
// same connection.
func TestAQUICClientWhoseBackendRefusesHasOneSession(t *testing.T) {
	r := newRelay(t, Options{})
	refusing, good := upAt(refusingUDP(t)), upAt(udpServer(t, func(netip.AddrPort, []byte) []byte { return nil }))
	refusing.Weight = 1_000_000
	f := sharingUDP(map[string]edge.Backend{"a": good}, map[string][]string{"a": {"a.test"}})
	f[0].Backends = append(f[0].Backends, refusing)
	addr := openShared(t, r, f)
	c := dialUDP(t, addr)
	hello := firstFlight(t, "a.test")
	for i := range 3 {
		for _, datagram := range hello {
			if _, err := c.Write(datagram); err != nil {
				c.Write(datagram) // it was told of the refusal, by ICMP
			}
		}
		// The first datagram is lost with the backend that refuses it.
		netnstest.Eventually(t, patience, "they are on their way", func() bool { return statsOf(t, r, "a").PacketsToBackend == uint64(2*i+2) })
	}
	if s := statsOf(t, r, "a"); s.Accepted != 2 || s.Active != 1 || s.Resets != 1 {
		t.Errorf("Stats = %+v, want one session after one that was refused", s)
	}
	if s := statsOf(t, r, ""); s.Accepted != 1 || s.Active != 0 {
		t.Errorf("the door: %+v, want one client", s)
	}
}

// Packets of twenty bytes from anywhere must not take the machine's ports.
func TestGuessesAreFew(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{"a": quicServer(t, "a"), "b": quicServer(t, "b")}
	addr := openShared(t, r, sharingUDP(backends, map[string][]string{"a": {"a.test"}, "b": {"b.test"}}))
	conns := map[string]*quic.Conn{}
	for name := range backends {
		c, err := dialQUIC(t, quicPort(t), addr, name+".test")
		if err != nil {
			t.Fatal(err)
		}
		conns[name] = c
	}
	most := uint64(0)
	for i := range 2000 {
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))}, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("\x41unknown, protected, whatever it is"))
		c.Close()
		if i%100 == 99 {
			most = max(most, statsOf(t, r, "a").Active+statsOf(t, r, "b").Active)
		}
	}
	if limit := uint64(len(r.loops)*maxGuesses + 2); most > limit || most < 100 {
		t.Errorf("there were %d sessions, want some, and at most %d", most, limit)
	}
	netnstest.Eventually(t, 2*patience, "the guesses are given up", func() bool {
		return statsOf(t, r, "a").Active+statsOf(t, r, "b").Active == 2
	})
	for name, c := range conns {
		if got, err := talkQUIC(t, c, "still"); got != fmt.Sprintf("%s asked for %s.test: still", name, name) || err != nil {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}
