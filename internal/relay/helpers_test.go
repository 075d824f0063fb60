package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

const patience = 10 * time.Second

// newRelay returns a relay that is closed with the test: Close waits for every
// goroutine, so a leak is a test that does not end.
func newRelay(t testing.TB, opts Options) *Relay {
	r := New(slog.New(slog.DiscardHandler), opts)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.Close(ctx)
	})
	return r
}

// loopback is a frontend on a free port of 127.0.0.1.
func loopback(backends ...edge.Backend) edge.Frontend {
	return edge.Frontend{
		Door:     edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Addr: netip.MustParseAddr("127.0.0.1")}},
		Name:     "shop/web:80",
		Backends: backends,
	}
}

func upAt(addr netip.AddrPort) edge.Backend {
	return edge.Backend{Addr: addr, Weight: 1, State: edge.Up}
}

func inState(b edge.Backend, state edge.BackendState) edge.Backend {
	b.State = state
	return b
}

// openDoor applies one frontend and returns where its door is.
func openDoor(t testing.TB, r *Relay, f edge.Frontend) netip.AddrPort {
	t.Helper()
	doors := r.Apply([]edge.Frontend{f})
	if len(doors) != 1 || doors[0].Error != "" {
		t.Fatalf("Apply = %+v, want one open door", doors)
	}
	return doors[0].Addr
}

func listenLoopback(t testing.TB) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// server runs handle for each connection to the address it returns.
func server(t testing.TB, handle func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l := listenLoopback(t)
	go serveAll(l, handle)
	return addrOf(l)
}

func serveAll(l *net.TCPListener, handle func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// greeter is a server that says its name and closes.
func greeter(t testing.TB, name string) netip.AddrPort {
	return server(t, func(c *net.TCPConn) { io.WriteString(c, name) })
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// refusing is an address that nothing listens on.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	l := listenLoopback(t)
	l.Close()
	return addrOf(l)
}

// freePort is free at every address, and none of those that clients get: one of
// these may be taken, by any test that runs at the same time, before it is used.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 100 {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{Port: 12000 + rand.IntN(20000)})
		if err == nil {
			defer l.Close()
			return addrOf(l).Port()
		}
	}
	t.Fatal("no port is free")
	return 0
}

func dial(t testing.TB, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// ask connects and returns all that is said.
func ask(t testing.TB, addr netip.AddrPort) (string, error) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr.String(), patience)
	if err != nil {
		return "", err // a door may reset before the dial has returned
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	said, err := io.ReadAll(c)
	return string(said), err
}

// say writes and expects an echo, to show that a connection lives.
func say(t testing.TB, c *net.TCPConn, word string) {
	t.Helper()
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatal(err)
	}
	heard := make([]byte, len(word))
	if _, err := io.ReadFull(c, heard); err != nil || string(heard) != word {
		t.Fatalf("echo = %q, %v; want %q", heard, err, word)
	}
}

// settled returns the counters of the only door once no connection is left.
func settled(t testing.TB, r *Relay) Stats {
	t.Helper()
	var s Stats
	netnstest.Eventually(t, patience, "connections ended", func() bool {
		all := r.Stats()
		if len(all) != 1 {
			t.Fatalf("Stats = %+v, want one door", all)
		}
		s = all[0]
		return s.Active == 0
	})
	checkSums(t, s)
	return s
}

// checkSums checks what the comment of Stats promises.
func checkSums(t testing.TB, s Stats) {
	t.Helper()
	sum := s.Active + s.Finished + s.Resets + s.IdleTimeouts + s.DrainTimeouts + s.Lost + s.Cut + s.BackendDown + s.Routed
	for _, n := range s.Failures {
		sum += n
	}
	if s.Accepted != sum {
		t.Errorf("accepted %d connections, and %d are accounted for: %+v", s.Accepted, sum, s)
	}
}

// startAt is server at an address that was refusing.
func startAt(t testing.TB, addr netip.AddrPort, handle func(*net.TCPConn)) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveAll(l, handle)
}

func addrOf(l *net.TCPListener) netip.AddrPort {
	return l.Addr().(*net.TCPAddr).AddrPort()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
