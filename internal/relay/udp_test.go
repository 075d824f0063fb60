package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// udpLoopback is a UDP frontend on a free port of 127.0.0.1.
func udpLoopback(backends ...edge.Backend) edge.Frontend {
	f := loopback(backends...)
	f.Protocol = edge.UDP
	f.Name = "shop/dns:53/UDP"
	return f
}

// udpServer calls handle for each datagram to the address it returns, and
// sends back what that returns, unless it is nil.
func udpServer(t testing.TB, handle func(from netip.AddrPort, p []byte) []byte) netip.AddrPort {
	t.Helper()
	return serveUDP(t, netip.MustParseAddrPort("127.0.0.1:0"), handle)
}

func serveUDP(t testing.TB, at netip.AddrPort, handle func(from netip.AddrPort, p []byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	t.Cleanup(func() { c.Close() })
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			if reply := handle(from, buffer[:n]); reply != nil {
				c.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func echoUDP(_ netip.AddrPort, p []byte) []byte { return p }

// named is a server that answers its name.
func named(t testing.TB, name string) netip.AddrPort {
	return udpServer(t, func(netip.AddrPort, []byte) []byte { return []byte(name) })
}

// refusingUDP is an address that nothing listens on.
func refusingUDP(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dialUDP(t testing.TB, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// exchange sends a datagram and returns the next one that comes.
func exchange(t testing.TB, c *net.UDPConn, word string) string {
	t.Helper()
	if _, err := c.Write([]byte(word)); err != nil {
		t.Fatalf("send %q: %v", word, err)
	}
	buffer := make([]byte, 1<<16)
	n, err := c.Read(buffer)
	if err != nil {
		t.Fatalf("answer to %q: %v", word, err)
	}
	return string(buffer[:n])
}

// onlyDoor returns the counters of the only door.
func onlyDoor(t testing.TB, r *Relay) Stats {
	t.Helper()
	all := r.Stats()
	if len(all) != 1 {
		t.Fatalf("Stats = %+v, want one door", all)
	}
	checkSums(t, all[0])
	return all[0]
}

func TestUDPASessionKeepsItsBackend(t *testing.T) {
	backends := []edge.Backend{upAt(named(t, "a")), upAt(named(t, "b")), upAt(named(t, "c"))}
	r := newRelay(t, Options{})
	f := udpLoopback(backends...)
	addr := openDoor(t, r, f)
	seen := map[string]int{}
	var clients []*net.UDPConn
	var first []string
	for range 60 {
		c := dialUDP(t, addr)
		clients, first = append(clients, c), append(first, exchange(t, c, "who"))
		seen[first[len(first)-1]]++
	}
	if len(seen) != 3 {
		t.Errorf("60 clients got %v, want some at each backend", seen)
	}
	// The table changes: a is removed, b gets no new ones.
	f.Backends = []edge.Backend{{Addr: backends[1].Addr, State: edge.Up}, backends[2]}
	openDoor(t, r, f)
	for i, c := range clients {
		if got := exchange(t, c, "who"); got != first[i] {
			t.Fatalf("client %d was at %s, and then at %s", i, first[i], got)
		}
	}
	for range 20 {
		if got := exchange(t, dialUDP(t, addr), "who"); got != "c" {
			t.Errorf("a new client got %s, want the only backend that takes any", got)
		}
	}
	s := onlyDoor(t, r)
	if s.Accepted != 80 || s.Active != 80 || s.PacketsToBackend != 140 || s.PacketsToClient != 140 || s.PacketsDropped != 0 ||
		s.BytesToBackend != 140*3 || s.BytesToClient != 140 {
		t.Errorf("Stats = %+v", s)
	}
	for _, b := range s.Backends {
		if draining := b.Addr == backends[0].Addr || b.Addr == backends[1].Addr; b.Draining != draining {
			t.Errorf("backend %+v, want draining %v", b, draining)
		}
	}
}

func TestUDPShareFollowsTheWeights(t *testing.T) {
	a, b := upAt(named(t, "a")), upAt(named(t, "b"))
	a.Weight, b.Weight = 3, 1
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(a, b, inState(upAt(named(t, "pending")), edge.Pending), inState(upAt(named(t, "down")), edge.Down)))
	seen := map[string]int{}
	for range 400 {
		c := dialUDP(t, addr)
		seen[exchange(t, c, "who")]++
		c.Close()
	}
	// Seven standard deviations.
	if len(seen) != 2 || seen["a"] < 240 || seen["a"] > 360 {
		t.Errorf("got %v, want 3:1 between a and b", seen)
	}
}

// What arrives is what was sent, from the empty datagram to the largest.
func TestUDPDatagramsOfEverySizeAreIntact(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, echoUDP))))
	c := dialUDP(t, addr)
	sizes := []int{0, 1, 2, 63, 64, 511, 1231, 1232, 1233, 1472, 1473, 9000, 65506, 65507}
	for _, size := range sizes {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(rand.Int())
		}
		if got := exchange(t, c, string(p)); got != string(p) {
			t.Errorf("of %d bytes %d came back, equal: %v", size, len(got), got == string(p))
		}
	}
	if s := onlyDoor(t, r); s.Accepted != 1 || s.PacketsToClient != uint64(len(sizes)) || s.PacketsDropped != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// Bursts of every mixture of sizes stay what they are and in order, although
// the kernel is given several datagrams at once where it can be.
func TestUDPBurstsStayInOrder(t *testing.T) {
	const clients, rounds, burst = 8, 40, 40
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, echoUDP))))
	type client struct {
		conn *net.UDPConn
		sent [][]byte
	}
	var all []*client
	for range clients {
		c := &client{conn: dialUDP(t, addr)}
		c.conn.SetReadBuffer(4 << 20)
		all = append(all, c)
	}
	random := rand.New(rand.NewPCG(1, 2))
	total := 0
	for round := range rounds {
		for range burst {
			c := all[random.IntN(clients)]
			size := []int{0, 7, 100, 100, 100, 100, 1200, 1200, 1200, 3000}[random.IntN(10)]
			p := bytes.Repeat([]byte{byte(random.IntN(256))}, size)
			copy(p, fmt.Sprintf("%d", total))
			total++
			c.sent = append(c.sent, p)
			if _, err := c.conn.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range all {
			buffer := make([]byte, 1<<16)
			for _, want := range c.sent {
				n, err := c.conn.Read(buffer)
				if err != nil || !bytes.Equal(buffer[:n], want) {
					t.Fatalf("round %d, client %d: %d bytes, %v; want %d bytes", round, i, n, err, len(want))
				}
			}
			c.sent = c.sent[:0]
		}
	}
	if s := onlyDoor(t, r); s.PacketsToBackend != rounds*burst || s.PacketsToClient != rounds*burst || s.PacketsDropped != 0 {
		t.Errorf("Stats = %+v, want %d each way", s, rounds*burst)
	}
}

// Senders and receivers that use the kernel's own batches (QUIC does) get
// through with them: many datagrams, one message.
func TestUDPSegmentedBurstsStayWhole(t *testing.T) {
	r := newRelay(t, Options{})
	got := make(chan int, 1000)
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, func(_ netip.AddrPort, p []byte) []byte {
		got <- len(p)
		return p
	}))))
	c := dialUDP(t, addr)
	c.SetReadBuffer(4 << 20)
	var oob control
	oob.addSegment(1000)
	p := make([]byte, 30*1000+1)
	for i := range p {
		p[i] = byte(i / 1000)
	}
	if _, _, err := c.WriteMsgUDP(p, oob.bytes[:oob.used], nil); err != nil {
		t.Fatal(err)
	}
	var back []byte
	buffer := make([]byte, 1<<16)
	for i := range 31 {
		n, err := c.Read(buffer)
		if want := 1000; err != nil || i < 30 && n != want || i == 30 && n != 1 {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
		back = append(back, buffer[:n]...)
	}
	if !bytes.Equal(back, p) {
		t.Error("what came back is not what was sent")
	}
	for i := range 31 {
		if n := <-got; i < 30 && n != 1000 || i == 30 && n != 1 {
			t.Errorf("the backend got %d bytes as datagram %d", n, i)
		}
	}
	if s := onlyDoor(t, r); s.PacketsToBackend != 31 || s.PacketsToClient != 31 || s.BytesToClient != 30001 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestUDPIdleSessionsEnd(t *testing.T) {
	f := udpLoopback(upAt(udpServer(t, echoUDP)))
	f.IdleTimeout = 300 * time.Millisecond
	r := newRelay(t, Options{})
	addr := openDoor(t, r, f)
	idle, busy := dialUDP(t, addr), dialUDP(t, addr)
	exchange(t, idle, "hello")
	for deadline := time.Now().Add(900 * time.Millisecond); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		exchange(t, busy, "hello")
	}
	if s := onlyDoor(t, r); s.IdleTimeouts != 1 || s.Active != 1 || s.Accepted != 2 {
		t.Errorf("Stats = %+v, want one session ended and the other kept", s)
	}
	s := settled(t, r)
	if s.IdleTimeouts != 2 {
		t.Errorf("Stats = %+v, want both ended", s)
	}
	exchange(t, idle, "again")
}

// One side is enough to keep a session: a stream to a client that does not
// speak, or from one that gets no answer.
func TestUDPEitherDirectionKeepsASession(t *testing.T) {
	clients := make(chan netip.AddrPort, 1)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		buffer := make([]byte, 100)
		for {
			_, from, err := c.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			select {
			case clients <- from:
			default:
			}
		}
	}()
	f := udpLoopback(upAt(c.LocalAddr().(*net.UDPAddr).AddrPort()))
	f.IdleTimeout = 250 * time.Millisecond
	r := newRelay(t, Options{})
	addr := openDoor(t, r, f)
	client := dialUDP(t, addr)
	client.Write([]byte("subscribe"))
	from := <-clients
	for range 40 {
		time.Sleep(20 * time.Millisecond)
		c.WriteToUDPAddrPort([]byte("news"), from)
		if n, err := client.Read(make([]byte, 10)); n != 4 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	for range 40 {
		time.Sleep(20 * time.Millisecond)
		client.Write([]byte("telemetry"))
	}
	if s := onlyDoor(t, r); s.Accepted != 1 || s.IdleTimeouts != 0 {
		t.Errorf("Stats = %+v, want the one session", s)
	}
}

func TestUDPNobodyThereIsTold(t *testing.T) {
	for _, state := range []edge.BackendState{edge.Down, ""} {
		r := newRelay(t, Options{})
		f := udpLoopback()
		f.RefuseWhenDown = true
		if state != "" {
			f.Backends = []edge.Backend{inState(upAt(named(t, "a")), state)}
		}
		addr := openDoor(t, r, f)
		c := dialUDP(t, addr)
		c.Write([]byte("hello"))
		if canICMP() {
			if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the client got %v, want refused", err)
			}
		}
		netnstest.Eventually(t, patience, "the datagram is counted", func() bool { return onlyDoor(t, r).PacketsDropped == 1 })
		if s := onlyDoor(t, r); s.Accepted != 1 || s.Failures[NoBackend] != 1 || s.Active != 0 || s.PacketsToBackend != 0 {
			t.Errorf("Stats = %+v", s)
		}
	}
}

// canICMP says whether this test may open raw sockets.
func canICMP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// A backend that refuses is left, and the client is told as it would be
// without a gatehouse. Its next datagram goes elsewhere.
func TestUDPARefusedSessionMoves(t *testing.T) {
	dead := refusingUDP(t)
	reported := make(chan netip.AddrPort, 100)
	r := newRelay(t, Options{OnDialError: func(_ edge.Protocol, addr netip.AddrPort, err error) {
		if errors.Is(err, unix.ECONNREFUSED) {
			reported <- addr
		}
	}})
	bad, good := upAt(dead), upAt(named(t, "good"))
	bad.Weight, good.Weight = 1_000_000, 1
	addr := openDoor(t, r, udpLoopback(bad, good))
	c := dialUDP(t, addr)
	c.Write([]byte("one"))
	if got := <-reported; got != dead {
		t.Errorf("%v is reported, want %v", got, dead)
	}
	if canICMP() {
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the client got %v, want refused", err)
		}
	}
	if got := exchange(t, c, "two"); got != "good" {
		t.Errorf("the next datagram was answered by %q", got)
	}
	s := onlyDoor(t, r)
	if s.Accepted != 2 || s.Resets != 1 || s.Active != 1 {
		t.Errorf("Stats = %+v", s)
	}
	i := slices.IndexFunc(s.Backends, func(b BackendStats) bool { return b.Addr == dead })
	if s.Backends[i].Failures[Refused] != 1 {
		t.Errorf("Stats = %+v, want the refusal counted at the backend", s)
	}
}

// Where there is only one, it is tried again and again.
func TestUDPTheOnlyBackendIsTriedAgain(t *testing.T) {
	dead := refusingUDP(t)
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(dead)))
	c := dialUDP(t, addr)
	for i := range 3 {
		c.Write([]byte("hello"))
		netnstest.Eventually(t, patience, "refused", func() bool { return onlyDoor(t, r).Resets == uint64(i+1) })
		if canICMP() {
			c.Read(make([]byte, 1)) // the refusal
		}
	}
	serveUDP(t, dead, echoUDP)
	if got := exchange(t, c, "back"); got != "back" {
		t.Errorf("got %q", got)
	}
}

// A session leaves a backend that is down, but not one that answers.
func TestUDPASessionLeavesADownBackend(t *testing.T) {
	heard := make(chan string, 100)
	mute := udpServer(t, func(_ netip.AddrPort, p []byte) []byte {
		heard <- string(p)
		return nil
	})
	speaks := named(t, "speaks")
	other := named(t, "other")
	for _, before := range []netip.AddrPort{mute, speaks} {
		r := newRelay(t, Options{})
		addr := openDoor(t, r, udpLoopback(upAt(before)))
		c := dialUDP(t, addr)
		c.Write([]byte("one"))
		want := "other"
		if before == mute {
			<-heard
		} else {
			c.Read(make([]byte, 10))
			want = "speaks"
		}
		// With nowhere else to go it stays.
		openDoor(t, r, udpLoopback(inState(upAt(before), edge.Down)))
		c.Write([]byte("two"))
		if before == mute {
			if got := <-heard; got != "two" {
				t.Errorf("the backend heard %q", got)
			}
		} else {
			c.Read(make([]byte, 10))
		}
		openDoor(t, r, udpLoopback(inState(upAt(before), edge.Down), upAt(other)))
		if got := exchange(t, c, "three"); got != want {
			t.Errorf("answered by %q, want %q", got, want)
		}
		if s := onlyDoor(t, r); s.Active != 1 || before == mute && s.Lost != 1 {
			t.Errorf("Stats = %+v", s)
		}
	}
}

// A session leaves a backend that has left the table and does not answer, but
// not one that drains: that one answers, also after a long silence of both.
func TestUDPASessionLeavesABackendThatIsGone(t *testing.T) {
	heard := make(chan struct{}, 1000)
	mute := udpServer(t, func(netip.AddrPort, []byte) []byte {
		heard <- struct{}{}
		return nil
	})
	speaks, other := named(t, "speaks"), named(t, "other")
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(mute)))
	gone := dialUDP(t, addr)
	gone.Write([]byte("one"))
	<-heard
	openDoor(t, r, udpLoopback(upAt(speaks)))
	drains := dialUDP(t, addr)
	exchange(t, drains, "one")
	openDoor(t, r, udpLoopback(upAt(other)))

	began := time.Now()
	buf := make([]byte, 10)
	for {
		gone.Write([]byte("again"))
		gone.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := gone.Read(buf); err == nil {
			if took := time.Since(began); string(buf[:n]) != "other" || took < silence/2 {
				t.Errorf("after %s, %q answers", took, buf[:n])
			}
			break
		}
		if time.Since(began) > 2*silence {
			t.Fatal("it sticks to a backend that is gone")
		}
	}
	if got := exchange(t, drains, "two"); got != "speaks" {
		t.Errorf("a session left a backend that drains, for %q", got)
	}
}

func TestUDPDrainTimeMovesSessions(t *testing.T) {
	old, next := upAt(named(t, "old")), upAt(named(t, "next"))
	r := newRelay(t, Options{})
	f := udpLoopback(old)
	f.DrainTimeout = 300 * time.Millisecond
	addr := openDoor(t, r, f)
	c := dialUDP(t, addr)
	if got := exchange(t, c, "who"); got != "old" {
		t.Fatal(got)
	}
	f.Backends = []edge.Backend{next}
	openDoor(t, r, f)
	began := time.Now()
	for answer := "old"; answer != "next"; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatal("the session has not left its backend")
		}
		// The answer that was on its way when the session ended is lost.
		c.Write([]byte("who"))
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		buffer := make([]byte, 10)
		n, _ := c.Read(buffer)
		answer = string(buffer[:n])
	}
	if after := time.Since(began); after < 200*time.Millisecond {
		t.Errorf("the session left after %v, want its drain time", after)
	}
	if s := onlyDoor(t, r); s.DrainTimeouts != 1 || s.Accepted != 2 {
		t.Errorf("Stats = %+v", s)
	}
}

func TestUDPLimitsKeepWhoIsThere(t *testing.T) {
	f := udpLoopback(upAt(udpServer(t, echoUDP)))
	f.MaxConnections = 5
	r := newRelay(t, Options{})
	addr := openDoor(t, r, f)
	var clients []*net.UDPConn
	for range 5 {
		c := dialUDP(t, addr)
		exchange(t, c, "in")
		clients = append(clients, c)
	}
	for range 50 {
		dialUDP(t, addr).Write([]byte("flood"))
	}
	netnstest.Eventually(t, patience, "50 turned away", func() bool { return onlyDoor(t, r).Failures[Limit] == 50 })
	for _, c := range clients {
		exchange(t, c, "still in")
	}
	if s := onlyDoor(t, r); s.Active != 5 || s.PacketsDropped != 50 || s.PacketsToBackend != 10 {
		t.Errorf("Stats = %+v", s)
	}

	f.MaxConnections, f.MaxConnectionsPerClient = 0, 7
	openDoor(t, r, f)
	for range 20 {
		dialUDP(t, addr).Write([]byte("flood"))
	}
	netnstest.Eventually(t, patience, "13 turned away", func() bool {
		s := onlyDoor(t, r)
		return s.Failures[ClientLimit] == 13 && s.Active == 12
	})

	f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	openDoor(t, r, f)
	dialUDP(t, addr).Write([]byte("outsider"))
	netnstest.Eventually(t, patience, "an outsider is turned away", func() bool { return onlyDoor(t, r).Failures[SourceRange] == 1 })
	exchange(t, clients[0], "still in")
}

// The reason is in the log in the same words as with TCP: it is not for want of
// a backend.
func TestUDPTheLogSaysWhyAClientIsTurnedAway(t *testing.T) {
	outsider := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for want, terms := range map[string]edge.Terms{
		`msg="connection limit reached" .* reason=client_limit .* max_connections_per_client=1`: {MaxConnectionsPerClient: 1},
		`msg="a client connects too often" .* reason=rate_limit .* max_rate_per_client=1/1h`:    {MaxRatePerClient: edge.Rate{Connections: 1, Per: time.Hour}},
	} {
		var log bytes.Buffer
		r := newRelay(t, Options{})
		r.log = slog.New(slog.NewTextHandler(&log, nil))
		f := udpLoopback(upAt(udpServer(t, echoUDP)))
		f.Terms, f.SourceRanges = terms, outsider
		addr := openDoor(t, r, f)
		dialUDP(t, addr).Write([]byte("outsider"))
		netnstest.Eventually(t, patience, "an outsider is turned away", func() bool { return onlyDoor(t, r).Failures[SourceRange] == 1 })
		f.SourceRanges = nil
		openDoor(t, r, f)
		exchange(t, dialUDP(t, addr), "in")
		dialUDP(t, addr).Write([]byte("out"))
		netnstest.Eventually(t, patience, "and another", func() bool { return len(onlyDoor(t, r).Failures) == 2 })
		r.Close(t.Context()) // nobody writes any more
		if !regexp.MustCompile(want).MatchString(log.String()) || strings.Contains(log.String(), "source_range") {
			t.Errorf("the log does not say %s, or says too much:\n%s", want, log.String())
		}
	}
}

// What has ended makes room, and nothing is left of a door that is closed.
func TestUDPEndedSessionsMakeRoom(t *testing.T) {
	f := udpLoopback(upAt(udpServer(t, echoUDP)))
	f.MaxConnections, f.MaxConnectionsPerClient, f.IdleTimeout = 3, 2, 100*time.Millisecond
	r := newRelay(t, Options{})
	addr := openDoor(t, r, f)
	for range 3 {
		a, b := dialUDP(t, addr), dialUDP(t, addr)
		exchange(t, a, "in")
		exchange(t, b, "in")
		settled(t, r)
	}
	exchange(t, dialUDP(t, addr), "in")
	r.Apply(nil)
	if all := r.Stats(); len(all) != 0 {
		t.Errorf("Stats of a door that is closed: %v", all)
	}
	if addr := openDoor(t, r, f); onlyDoor(t, r).Accepted != 0 {
		t.Errorf("%v begins with counters of the door before", addr)
	}
}

// A burst that meets a refusal is not lost with it: what could not be sent any
// more goes elsewhere, or is counted.
func TestUDPABurstThatIsRefusedMovesOn(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		r := newRelay(t, Options{})
		f := udpLoopback(upAt(c.LocalAddr().(*net.UDPAddr).AddrPort()))
		client := dialUDP(t, openDoor(t, r, f))
		client.Write([]byte("first"))
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		f.Backends = nil
		if elsewhere {
			f.Backends = []edge.Backend{upAt(udpServer(t, echoUDP))}
		}
		openDoor(t, r, f)
		// All at once, and of sizes that cannot go as one message.
		h, err := r.Handover()
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		for _, word := range []string{"a", "bb", "ccc", "dddd"} {
			client.Write([]byte(word))
		}
		r.Resume()
		netnstest.Eventually(t, patience, "all accounted for", func() bool {
			s := onlyDoor(t, r)
			return s.PacketsToBackend+s.PacketsDropped == 5
		})
		s := onlyDoor(t, r)
		if s.Resets != 1 || elsewhere && (s.PacketsDropped != 0 || s.Active != 1) || !elsewhere && (s.PacketsDropped != 3 || s.Failures[NoBackend] != 3) {
			t.Errorf("with another backend: %v: to backends %d, dropped %d, %d resets, failures %v", elsewhere, s.PacketsToBackend, s.PacketsDropped, s.Resets, s.Failures)
		}
		for i := 0; elsewhere && i < 3; i++ {
			buffer := make([]byte, 10)
			n, err := client.Read(buffer)
			if errors.Is(err, syscall.ECONNREFUSED) {
				i-- // the first one was
				continue
			}
			if want := []string{"bb", "ccc", "dddd"}[i]; string(buffer[:n]) != want {
				t.Errorf("answer %q, %v; want %q", buffer[:n], err, want)
			}
		}
	}
}

// Without a descriptor left there is no new session; those that are there go on.
func TestUDPExhaustedDescriptorsKeepSessions(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, echoUDP))))
	in, out := dialUDP(t, addr), dialUDP(t, addr)
	exchange(t, in, "in")

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	next, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	none := limit
	none.Cur = uint64(next)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	restore := func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
	defer restore()
	out.Write([]byte("out"))
	netnstest.Eventually(t, patience, "no descriptor", func() bool { return onlyDoor(t, r).Failures[Exhausted] == 1 })
	for range 10 {
		exchange(t, in, "still in")
	}
	restore()
	if got := exchange(t, out, "now"); got != "now" {
		t.Errorf("got %q", got)
	}
	if s := onlyDoor(t, r); s.Active != 2 || s.Accepted != 3 || s.PacketsDropped != 1 {
		t.Errorf("Stats = %+v", s)
	}
}

// The next relay goes on with the sessions of this one: no flow changes its
// backend, and no datagram is lost between the two.
func TestUDPHandoverKeepsBackends(t *testing.T) {
	const clients = 40
	f := udpLoopback(upAt(named(t, "a")), upAt(named(t, "b")), upAt(named(t, "c")), upAt(named(t, "d")))
	before := New(slog.New(slog.DiscardHandler), Options{})
	addr := openDoor(t, before, f)
	f.Listen.Port = addr.Port()
	var conns []*net.UDPConn
	var names []string
	for range clients {
		c := dialUDP(t, addr)
		conns, names = append(conns, c), append(names, exchange(t, c, "who"))
	}

	// A successor that does not start takes nothing away.
	h, err := before.Handover()
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	before.Resume()
	for i, c := range conns {
		if got := exchange(t, c, "who"); got != names[i] {
			t.Fatalf("after Resume: client %d was at %s and is at %s", i, names[i], got)
		}
	}

	if h, err = before.Handover(); err != nil {
		t.Fatal(err)
	}
	if len(h.Sessions) != clients {
		t.Fatalf("%d sessions handed over, want %d", len(h.Sessions), clients)
	}
	for _, c := range conns { // to be answered by the next one
		c.Write([]byte("meanwhile"))
	}
	for i := range h.Doors {
		h.Doors[i].Door = f.Door // it was opened as port 0
	}
	for i := range h.Sessions {
		h.Sessions[i].Door = f.Door
	}
	after := newRelay(t, Options{Adopt: h})
	openDoor(t, after, f)
	before.Close(context.Background())
	for i, c := range conns {
		buffer := make([]byte, 10)
		n, err := c.Read(buffer)
		if err != nil || string(buffer[:n]) != names[i] {
			t.Fatalf("in between: client %d got %q, %v; want %s", i, buffer[:n], err, names[i])
		}
		if got := exchange(t, c, "who"); got != names[i] {
			t.Errorf("after: client %d was at %s and is at %s", i, names[i], got)
		}
	}
	if s := onlyDoor(t, after); s.Active != clients || s.PacketsDropped != 0 || s.PacketsToBackend < 2*clients {
		t.Errorf("Stats = %+v", s)
	}
}

// Another program that has the port is noticed, even one that would share it,
// and so is a second gatehouse.
func TestUDPPortIsNotSharedWithOthers(t *testing.T) {
	r := newRelay(t, Options{})
	f := udpLoopback(upAt(named(t, "a")))
	addr := openDoor(t, r, f)
	f.Listen.Port = addr.Port()
	second := newRelay(t, Options{})
	doors := second.Apply([]edge.Frontend{f})
	if want := "address already in use: port " + fmt.Sprint(addr.Port()) + " is held by this gatehouse"; !strings.HasSuffix(doors[0].Error, want) {
		t.Errorf("a second gatehouse: %q, want %q", doors[0].Error, want)
	}
	other := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	}}
	c, err := other.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f.Listen.Port = uint16(c.LocalAddr().(*net.UDPAddr).Port)
	if doors := second.Apply([]edge.Frontend{f}); !strings.Contains(doors[0].Error, "address already in use") {
		t.Errorf("beside a program that shares its port: %q", doors[0].Error)
	}
}

// TCP and UDP can have the same port.
func TestUDPAndTCPShareAPort(t *testing.T) {
	r := newRelay(t, Options{})
	tcp := loopback(upAt(greeter(t, "stream")))
	addr := openDoor(t, r, tcp)
	udp := udpLoopback(upAt(named(t, "datagram")))
	udp.Listen.Port = addr.Port()
	tcp.Listen.Port = addr.Port()
	for _, d := range r.Apply([]edge.Frontend{udp}) {
		if d.Error != "" {
			t.Fatal(d.Error)
		}
	}
	for _, d := range r.Apply([]edge.Frontend{udp, tcp}) {
		if d.Error != "" {
			t.Fatal(d.Error)
		}
	}
	if got := exchange(t, dialUDP(t, addr), "who"); got != "datagram" {
		t.Error(got)
	}
	if got, err := ask(t, addr); got != "stream" || err != nil {
		t.Error(got, err)
	}
}

// The sums hold at each moment, and in the end every datagram is accounted for.
func TestUDPCountersAddUp(t *testing.T) {
	const clients, each = 50, 200
	f := udpLoopback(upAt(udpServer(t, echoUDP)), upAt(refusingUDP(t)))
	f.IdleTimeout = 100 * time.Millisecond
	f.MaxConnections = 30
	r := newRelay(t, Options{})
	addr := openDoor(t, r, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var all []*net.UDPConn
		for range clients {
			all = append(all, dialUDP(t, addr))
		}
		for range each {
			for _, c := range all {
				for {
					// A refusal that has come back is reported once, instead of sending.
					if _, err := c.Write([]byte("payload")); err == nil {
						break
					}
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
			onlyDoor(t, r)
		}
	}
	var s Stats
	netnstest.Eventually(t, patience, "all datagrams accounted for", func() bool {
		s = onlyDoor(t, r)
		return s.PacketsToBackend+s.PacketsDropped == clients*each
	})
	if s = settled(t, r); s.PacketsToBackend+s.PacketsDropped != clients*each || s.BytesToBackend != 7*s.PacketsToBackend {
		t.Errorf("Stats = %+v", s)
	}
}

// A session that is there costs a descriptor and little memory.
func TestUDPSessionsAreSmall(t *testing.T) {
	const clients = 1000
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, echoUDP))))
	exchange(t, dialUDP(t, addr), "hello") // what is made once
	fds := make([]int32, clients)
	for i := range fds {
		fd, errno := datagramSocket(unix.AF_INET)
		if errno != 0 {
			t.Fatal(errno)
		}
		defer closeFD(fd)
		connect(fd, addr)
		fds[i] = fd
	}
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	descriptors := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	memoryBefore, descriptorsBefore := memory(), descriptors()
	for i, fd := range fds {
		send(fd, []byte("hello"))
		netnstest.Eventually(t, patience, "a session", func() bool {
			return onlyDoor(t, r).Active == uint64(i)+2
		})
	}
	if n := descriptors() - descriptorsBefore; n != clients {
		t.Errorf("%d sessions hold %d descriptors", clients, n)
	}
	if each := (memory() - memoryBefore) / clients; each > 512 {
		t.Errorf("a session takes %d bytes of memory", each)
	} else {
		t.Logf("a session takes %d bytes of memory", each)
	}
}

// What a client has had for long did not come at once, though it is handed over
// at once.
func TestUDPHandoverBansNobody(t *testing.T) {
	f := udpLoopback(upAt(udpServer(t, echoUDP)))
	f.Listen.Port = refusingUDP(t).Port()
	before := New(slog.New(slog.DiscardHandler), Options{})
	addr := openDoor(t, before, f)
	clients := make([]*net.UDPConn, 20)
	for i := range clients {
		clients[i] = dialUDP(t, addr)
		exchange(t, clients[i], "hello")
	}
	h, err := before.Handover()
	if err != nil {
		t.Fatal(err)
	}
	f.MaxRatePerClient, f.BanTime = edge.Rate{Connections: 10, Per: time.Hour}, time.Hour
	after := newRelay(t, Options{Adopt: h})
	openDoor(t, after, f)
	before.Close(context.Background())
	if s := onlyDoor(t, after); s.Bans != 0 || s.Active != 20 {
		t.Errorf("%d bans, %d sessions", s.Bans, s.Active)
	}
	exchange(t, dialUDP(t, addr), "hello")
}

// The next process did not start, and there was much to do at that moment.
func TestUDPResumeUnderLoad(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openDoor(t, r, udpLoopback(upAt(udpServer(t, echoUDP))))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var flood []*net.UDPConn
		for range 16 {
			flood = append(flood, dialUDP(t, addr))
		}
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, c := range flood {
				c.Write([]byte("more"))
			}
		}
	}()
	for range 200 {
		h, err := r.Handover()
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		r.Resume()
	}
	close(stop)
	<-done
	for range 16 { // some for each loop
		c := dialUDP(t, addr)
		netnstest.Eventually(t, patience, "an answer", func() bool { // the flood may have left no room
			c.Write([]byte("hello"))
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, err := c.Read(make([]byte, 10))
			return err == nil
		})
	}
}
