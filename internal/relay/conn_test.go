package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// through opens a connection and returns both of its ends.
func through(t testing.TB, r *Relay, change func(*edge.Frontend)) (client, backend *net.TCPConn) {
	t.Helper()
	l := listenLoopback(t)
	f := loopback(upAt(addrOf(l)))
	if change != nil {
		change(&f)
	}
	client = dial(t, openDoor(t, r, f))
	l.SetDeadline(time.Now().Add(patience))
	backend, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	backend.SetDeadline(time.Now().Add(patience))
	return client, backend
}

// eachWay runs a test from the client's side and from the backend's.
func eachWay(t *testing.T, test func(t *testing.T, r *Relay, here, there *net.TCPConn)) {
	t.Run("client", func(t *testing.T) {
		r := newRelay(t, Options{})
		client, backend := through(t, r, nil)
		test(t, r, client, backend)
	})
	t.Run("backend", func(t *testing.T) {
		r := newRelay(t, Options{})
		client, backend := through(t, r, nil)
		test(t, r, backend, client)
	})
}

func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		io.WriteString(here, "question")
		here.CloseWrite()
		if got, err := io.ReadAll(there); string(got) != "question" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		for range 3 {
			if _, err := io.WriteString(there, "answer"); err != nil {
				t.Fatal(err)
			}
		}
		there.Close()
		if got, err := io.ReadAll(here); string(got) != "answeransweranswer" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		if s := settled(t, r); s.Finished != 1 || s.BytesToBackend+s.BytesToClient != uint64(len("question")+3*len("answer")) {
			t.Errorf("Stats = %+v, want one finished connection and all its bytes", s)
		}
	})
}

func TestResetIsPassedOn(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		io.WriteString(here, "hello")
		if _, err := io.ReadFull(there, make([]byte, len("hello"))); err != nil {
			t.Fatal(err)
		}
		here.SetLinger(0)
		here.Close()
		if _, err := there.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
		if s := settled(t, r); s.Resets != 1 {
			t.Errorf("Stats = %+v, want one reset", s)
		}
	})
}

func TestResetAfterHalfCloseIsPassedOn(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		there.CloseWrite()
		if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("read: %v, want the end", err)
		}
		here.SetLinger(0)
		here.Close()
		if _, err := there.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
		settled(t, r)
	})
}

// A server may answer a request without reading all of it, and close: what it
// has said arrives, and then the reset.
func TestAnswerBeforeAResetArrives(t *testing.T) {
	answer := strings.Repeat("request too large\n", 2000)
	for range 20 {
		r := newRelay(t, Options{})
		client, backend := through(t, r, nil)
		go func() {
			chunk := make([]byte, 64<<10)
			for {
				if _, err := client.Write(chunk); err != nil {
					return
				}
			}
		}()
		if _, err := io.ReadFull(backend, make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(backend, answer); err != nil {
			t.Fatal(err)
		}
		backend.Close() // with bytes unread: a reset
		// The reset may be reported to the goroutine that writes instead.
		got, err := io.ReadAll(client)
		if string(got) != answer || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("read %d bytes of %d, %v; want all, then a reset", len(got), len(answer), err)
		}
		if s := settled(t, r); s.Resets != 1 {
			t.Errorf("Stats = %+v, want one reset", s)
		}
	}
}

// Whatever is written in whatever pieces, with the directions closed in any
// order, arrives as it was, and is counted.
func TestEveryByteArrives(t *testing.T) {
	r := newRelay(t, Options{})
	l := listenLoopback(t)
	addr := openDoor(t, r, loopback(upAt(addrOf(l))))
	var wantToBackend, wantToClient uint64
	for seed := range uint64(40) {
		client := dial(t, addr)
		backend, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		backend.SetDeadline(time.Now().Add(patience))
		random := rand.New(rand.NewPCG(seed, 0))
		request, answer := randomBytes(random), randomBytes(random)
		var work sync.WaitGroup
		for _, end := range []struct {
			conn            *net.TCPConn
			sends, receives []byte
			seed            uint64
		}{{client, request, answer, seed}, {backend, answer, request, seed + 1000}} {
			work.Go(func() {
				writeInPieces(end.conn, end.sends, rand.New(rand.NewPCG(end.seed, 1)))
				end.conn.CloseWrite()
			})
			work.Go(func() {
				if got, err := io.ReadAll(end.conn); !bytes.Equal(got, end.receives) || err != nil {
					t.Errorf("seed %d: %d bytes arrived, %v; want %d", seed, len(got), err, len(end.receives))
				}
			})
		}
		work.Wait()
		client.Close()
		backend.Close()
		wantToBackend += uint64(len(request))
		wantToClient += uint64(len(answer))
	}
	s := settled(t, r)
	if s.BytesToBackend != wantToBackend || s.BytesToClient != wantToClient || s.Finished != 40 {
		t.Errorf("Stats = %+v, want 40 finished, %d bytes to the backend and %d to the client", s, wantToBackend, wantToClient)
	}
	if b := s.Backends[0]; b.BytesToBackend != wantToBackend || b.BytesToClient != wantToClient || b.Connected != 40 || b.Active != 0 {
		t.Errorf("backend = %+v, want the same", b)
	}
}

func randomBytes(random *rand.Rand) []byte {
	b := make([]byte, random.IntN(1<<random.IntN(20)))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func writeInPieces(c *net.TCPConn, b []byte, random *rand.Rand) {
	for len(b) > 0 {
		n := min(len(b), 1+random.IntN(1<<random.IntN(18)))
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

func TestSourceRangesAreAWall(t *testing.T) {
	f := loopback(upAt(greeter(t, "hello")))
	for _, c := range []struct {
		ranges []string // nil: no list
		dual   bool     // the client's address comes as ::ffff:127.0.0.1
		allows bool
	}{
		{nil, false, true},
		{[]string{}, false, false},
		{[]string{"127.0.0.0/8"}, false, true},
		{[]string{"127.0.0.0/8"}, true, true},
		{[]string{"10.0.0.0/8", "127.0.0.1/32"}, false, true},
		{[]string{"10.0.0.0/8"}, false, false},
		{[]string{"10.0.0.0/8"}, true, false},
		{[]string{"::/0"}, true, false},
	} {
		f.Listen.Addr = netip.MustParseAddr("127.0.0.1")
		if c.dual {
			f.Listen.Addr = netip.Addr{}
		}
		f.SourceRanges = nil
		if c.ranges != nil {
			f.SourceRanges = []netip.Prefix{}
		}
		for _, p := range c.ranges {
			f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(p))
		}
		r := newRelay(t, Options{})
		port := openDoor(t, r, f).Port()
		got, err := ask(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
		if c.allows && (got != "hello" || err != nil) {
			t.Errorf("%+v: got %q, %v; want the greeting", c, got, err)
		}
		if !c.allows {
			if got != "" || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%+v: got %q, %v; want a reset", c, got, err)
			}
			if s := settled(t, r); s.Failures[SourceRange] != 1 {
				t.Errorf("%+v: failures %v, want one of the source", c, s.Failures)
			}
		}
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	const idle = 500 * time.Millisecond
	r := newRelay(t, Options{})
	client, backend := through(t, r, func(f *edge.Frontend) { f.IdleTimeout = idle })
	// Bytes in one direction alone keep both open, for longer than the timeout.
	tick := time.NewTicker(idle / 10)
	defer tick.Stop()
	var gap time.Duration
	for began, last := time.Now(), time.Now(); time.Since(began) < 3*idle; <-tick.C {
		gap, last = max(gap, time.Since(last)), time.Now()
		if _, err := io.WriteString(backend, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Fatalf("a connection was closed that was never idle for more than %v: %v", gap, err)
		}
	}
	last := time.Now()
	io.WriteString(client, "x")
	io.ReadFull(backend, make([]byte, 1))
	for _, side := range []*net.TCPConn{client, backend} {
		if _, err := side.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v, want the end", err)
		}
	}
	// The kernel counts in ticks of up to 10 ms.
	if took := time.Since(last); took < idle-20*time.Millisecond {
		t.Errorf("closed after %v, want %v", took, idle)
	}
	if s := settled(t, r); s.IdleTimeouts != 1 {
		t.Errorf("Stats = %+v, want one idle timeout", s)
	}
}

// A slow reader takes what the backend sent long ago: that is not idle.
func TestSlowReaderIsNotIdle(t *testing.T) {
	const idle = 500 * time.Millisecond
	r := newRelay(t, Options{})
	l := listenLoopback(t)
	f := loopback(upAt(addrOf(l)))
	f.IdleTimeout = idle
	narrow := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	}}
	client, err := narrow.Dial("tcp", openDoor(t, r, f).String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	backend, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	for _, c := range []net.Conn{client, backend} {
		c.SetDeadline(time.Now().Add(patience))
	}
	if _, err := backend.Write(make([]byte, 256<<10)); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < 3*idle; <-tick.C {
		if _, err := io.ReadFull(client, make([]byte, 2<<10)); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(client, "x")
	if n, err := backend.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the connection was closed: %v", err)
	}
}

// The backend's socket is made ready for waiting only once the connection is
// no short one: when its dial would have timed out.
func TestSocketsAreTunedForWaiting(t *testing.T) {
	r := newRelay(t, Options{})
	client, backend := through(t, r, func(f *edge.Frontend) { f.ConnectTimeout = 200 * time.Millisecond })
	io.WriteString(client, "x")
	io.ReadFull(backend, make([]byte, 1))
	options := func(fd int32) string {
		value := func(level, option int) int {
			n, err := unix.GetsockoptInt(int(fd), level, option)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		return fmt.Sprint(value(unix.SOL_SOCKET, unix.SO_PROTOCOL), value(unix.IPPROTO_TCP, unix.TCP_NODELAY),
			value(unix.SOL_SOCKET, unix.SO_KEEPALIVE), value(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE),
			value(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), value(unix.IPPROTO_TCP, unix.TCP_KEEPCNT))
	}
	want := fmt.Sprint(unix.IPPROTO_TCP, 1, 1, keepaliveIdle, keepaliveInterval, keepaliveProbes)
	for _, name := range []string{"client", "server"} {
		var got string
		netnstest.Eventually(t, patience, name+" is tuned", func() bool {
			eachConn(r, func(c *conn) {
				s := c.client
				if name == "server" {
					s = c.server
				}
				got = options(s.fd)
			})
			return got == want
		})
	}
}

// eachConn calls f for every connection, in its loop's thread.
func eachConn(r *Relay, f func(*conn)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.loops {
		l.call(func() { l.eachConn(f) })
	}
}

// What one round of the daemon's loop costs when nothing has changed.
func BenchmarkApplyUnchanged(b *testing.B) {
	const doors = 1000
	r := newRelay(b, Options{})
	var frontends []edge.Frontend
	for i := range doors {
		f := loopback(weighted(3, func(int) int { return 1 })...)
		f.Listen.Addr = netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)})
		frontends = append(frontends, f)
	}
	r.Apply(frontends)
	for b.Loop() {
		r.Apply(frontends)
	}
}

func BenchmarkPingPong(b *testing.B) {
	for _, size := range []int{64, 16 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			r := newRelay(b, Options{})
			c := dial(b, openDoor(b, r, loopback(upAt(server(b, func(c *net.TCPConn) {
				buf := make([]byte, size)
				for {
					if _, err := io.ReadFull(c, buf); err != nil {
						return
					}
					c.Write(buf)
				}
			})))))
			c.SetDeadline(time.Time{})
			buf := make([]byte, size)
			b.SetBytes(int64(2 * size))
			for b.Loop() {
				c.Write(buf)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkConnect(b *testing.B) {
	r := newRelay(b, Options{})
	addr := openDoor(b, r, loopback(upAt(greeter(b, "hello"))))
	for b.Loop() {
		if got, err := ask(b, addr); got != "hello" || err != nil {
			b.Fatal(got, err)
		}
	}
}
