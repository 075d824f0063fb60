package relay

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

// An urgent byte ends a splice early, as an end of stream does. What comes
// after it must not be lost, even if the real end is there already.
func TestUrgentByteIsNotAnEnd(t *testing.T) {
	for range 100 {
		eachWay(t, func(t *testing.T, _ *Relay, here, there *net.TCPConn) {
			const before, after = 2 << 20, 1 << 20
			s := &stream{urgent: []int64{before}}
			go func() {
				here.Write(s.piece(0, before))
				sendUrgent(here)
				here.Write(s.piece(before, after))
				here.CloseWrite()
			}()
			buf := make([]byte, 256<<10)
			for {
				n, err := there.Read(buf)
				if wrong := s.arrived(buf[:n]); wrong != nil {
					t.Fatal(wrong)
				}
				if errors.Is(err, io.EOF) && s.got == before+after {
					break
				} else if err != nil {
					t.Fatalf("%d bytes, %v; want %d and the end", s.got, err, before+after)
				}
			}
		})
	}
}

// A connection that is idle because its reader takes nothing was not said all:
// what it gets at the end of its patience must not look like a whole stream.
func TestIdleEndOfAStalledReaderIsNoCleanEnd(t *testing.T) {
	for name, small := range map[string]bool{"copied": true, "spliced": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRelay(t, Options{})
			client, backend := through(t, r, func(f *edge.Frontend) { f.IdleTimeout = 500 * time.Millisecond })
			if small {
				eachConn(r, func(c *conn) { setOption(c.client.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10) })
			}
			stall(t, r, backend)
			if s := settled(t, r); s.IdleTimeouts != 1 {
				t.Errorf("Stats = %+v, want one idle timeout", s)
			}
			if n, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read %d bytes, %v; want a reset", n, err)
			}
		})
	}
}

// However many events come while a source waits for its next turn, it waits
// once: a flow that is never done would wait more often with each of them.
func TestEventsDoNotMultiplyTurns(t *testing.T) {
	r := newRelay(t, Options{})
	through(t, r, nil)
	for _, l := range r.loops {
		l.call(func() {
			l.eachConn(func(c *conn) {
				s := &c.client
				s.queued = true
				l.later(s)
				s.ready(l, unix.EPOLLIN)
				if !s.queued {
					t.Error("an event has it wait for another turn")
				}
			})
		})
	}
}

// A signal that is pending while a read begins at urgent data makes the kernel
// say that there is nothing to be read (tcp_recvmsg). Go's scheduler sends
// signals to its threads; here they rain.
func TestSignalsDoNotHideUrgentData(t *testing.T) {
	r := newRelay(t, Options{})
	client, backend := through(t, r, nil)
	go echo(backend)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var rain sync.WaitGroup
	rain.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, thread := range threads {
				if tid, err := strconv.Atoi(thread.Name()); err == nil {
					unix.Tgkill(unix.Getpid(), tid, unix.SIGURG) // which Go takes for a wish to yield
				}
			}
		}
	})
	defer rain.Wait()
	defer close(stop)
	for i := range 7000 {
		if err := sendUrgent(client); err != nil {
			t.Fatal(err)
		}
		client.SetDeadline(time.Now().Add(patience))
		io.WriteString(client, "x")
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

// A window that stays closed is asked about every two minutes in the end, and
// a question is without an answer until that has come.
func TestAQuestionOnItsWayIsNoSilence(t *testing.T) {
	const long = 121_000
	for _, c := range []struct {
		name string
		info unix.TCPInfo
		lost bool
	}{
		{"nothing to answer", unix.TCPInfo{Last_ack_recv: long, Last_data_recv: long}, false},
		{"one question", unix.TCPInfo{Probes: 1, Last_ack_recv: long, Last_data_recv: long}, false},
		{"the second question", unix.TCPInfo{Probes: 2, Last_ack_recv: long, Last_data_recv: long}, true},
		{"data without an answer", unix.TCPInfo{Unacked: 1, Last_ack_recv: long, Last_data_recv: long}, true},
		{"it speaks", unix.TCPInfo{Unacked: 1, Last_ack_recv: long, Last_data_recv: 100}, false},
		{"it answers", unix.TCPInfo{Unacked: 1, Last_ack_recv: 100, Last_data_recv: long}, false},
	} {
		if lost := silentFor(&c.info) > lostAfter; lost != c.lost {
			t.Errorf("%s: lost %t, want %t", c.name, lost, c.lost)
		}
	}
}

// cut drops, from now on, everything that comes into a namespace.
func cut(t *testing.T, ns *netnstest.NS) {
	t.Helper()
	ns.Do(t, func() {
		out, err := exec.CommandContext(t.Context(), "nft",
			"table inet cut { chain input { type filter hook input priority 0; policy drop; }; }").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	})
}

// fromHome opens a connection from the home network, and returns both its ends.
// Losses are looked for every 50 ms.
func fromHome(t *testing.T, r *Relay, home *netnstest.NS, lost time.Duration) (client, backend *net.TCPConn) {
	t.Helper()
	r.times = times{look: 50 * time.Millisecond, lost: lost}
	l := listenLoopback(t)
	f := loopback(upAt(addrOf(l)))
	f.Listen = edge.Listen{Device: "eth1", Port: 80}
	f.ConnectTimeout = r.times.look
	openDoor(t, r, f)
	home.Do(t, func() { client = dial(t, netip.MustParseAddrPort(homeEdge4+":80")) })
	l.SetDeadline(time.Now().Add(patience))
	backend, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	backend.SetDeadline(time.Now().Add(patience))
	return client, backend
}

// A client that is gone without a word is lost, whatever its backend does.
func TestNetnsClientThatVanishesIsLost(t *testing.T) {
	for name, backendDoes := range map[string]func(backend *net.TCPConn, over <-chan struct{}){
		"waits": func(*net.TCPConn, <-chan struct{}) {},
		"answers": func(backend *net.TCPConn, _ <-chan struct{}) {
			io.WriteString(backend, "answer")
		},
		"speaks on and on": func(backend *net.TCPConn, over <-chan struct{}) {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					io.WriteString(backend, "tick")
				case <-over:
					return
				}
			}
		},
		"sends all it has": func(backend *net.TCPConn, _ <-chan struct{}) {
			io.Copy(backend, zeros{})
		},
		"has said all": func(backend *net.TCPConn, _ <-chan struct{}) {
			io.WriteString(backend, "answer")
			backend.CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each in its own process
			netnstest.Run(t, func() {
				home, _ := newSite(t)
				r := newRelay(t, Options{})
				client, backend := fromHome(t, r, home, time.Second)
				go echo(client)
				say(t, backend, "hello")
				eachConn(r, func(c *conn) {
					// As its door has set it, only faster.
					for option, value := range map[int]int32{unix.TCP_KEEPIDLE: 1, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 2} {
						setOption(c.client.fd, unix.IPPROTO_TCP, option, value)
					}
				})
				cut(t, home)
				began := time.Now()
				over := make(chan struct{})
				var work sync.WaitGroup
				work.Go(func() { backendDoes(backend, over) })
				if s := settled(t, r); s.Lost != 1 {
					t.Errorf("Stats = %+v, want one lost", s)
				}
				if took := time.Since(began); took > 6*time.Second {
					t.Errorf("it took %v", took)
				}
				close(over)
				work.Wait()
				netnstest.Eventually(t, patience, "the backend is told", func() bool { return stateOf(t, backend) == tcpClose })
			})
		})
	}
}

// One that keeps its window closed for longer than that is there.
func TestNetnsPausedClientIsNotLost(t *testing.T) {
	netnstest.Run(t, func() {
		home, _ := newSite(t)
		r := newRelay(t, Options{})
		const lost = 300 * time.Millisecond
		client, backend := fromHome(t, r, home, lost)
		stall(t, r, backend)
		// The kernel asks after 0.2, 0.4, 0.8, 1.6 s ...: longer and longer than that.
		pause := time.NewTimer(8 * lost)
		defer pause.Stop()
		<-pause.C
		backend.Close()
		if n, err := io.Copy(io.Discard, client); n == 0 || err != nil {
			t.Errorf("read %d bytes, %v; want all", n, err)
		}
		client.Close()
		if s := settled(t, r); s.Finished != 1 {
			t.Errorf("Stats = %+v, want one finished", s)
		}
	})
}

// leavesNothing checks, once everything that the test has opened is closed,
// that neither a descriptor nor a goroutine is left of it. It is called first.
func leavesNothing(t *testing.T) {
	t.Helper()
	descriptors, goroutines := openDescriptors(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		netnstest.Eventually(t, patience, "everything is given back", func() bool {
			runtime.GC() // of the pipes that io.Copy keeps for later
			return openDescriptors(t) <= descriptors && runtime.NumGoroutine() <= goroutines
		})
	})
}

// dialFrom is dial from one of the many addresses that loopback has.
func dialFrom(t testing.TB, from string, to netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), nil
}

// answers says whether there is an echo at the other end.
func answers(c *net.TCPConn) bool {
	if _, err := io.WriteString(c, "?"); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// Limits may change while connections live. What they were counted under is
// taken back when they end, and nothing else.
func TestLimitsAreBalancedWhateverChanges(t *testing.T) {
	leavesNothing(t)
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, echo)))
	var addr netip.AddrPort
	limit := func(all, each int) {
		f.MaxConnections, f.MaxConnectionsPerClient = all, each
		addr = openDoor(t, r, f)
	}
	live := map[string][]*net.TCPConn{}
	comesIn := func(from string) bool {
		c, err := dialFrom(t, from, addr)
		if err != nil || !answers(c) {
			return false
		}
		live[from] = append(live[from], c)
		return true
	}
	expect := func(from string, want bool) {
		t.Helper()
		if got := comesIn(from); got != want {
			t.Fatalf("limits %d and %d, %d connections of %s: another one comes in: %t, want %t",
				f.MaxConnections, f.MaxConnectionsPerClient, len(live[from]), from, got, want)
		}
	}
	leave := func(from string) {
		t.Helper()
		active := r.Stats()[0].Active
		live[from][0].Close()
		live[from] = live[from][1:]
		netnstest.Eventually(t, patience, "it has left", func() bool { return r.Stats()[0].Active == active-1 })
	}
	const a, b = "127.0.0.1", "127.0.0.2"
	limit(0, 2)
	expect(a, true)
	expect(a, true)
	expect(a, false)
	expect(b, true)
	limit(0, 0) // these are not counted
	expect(a, true)
	expect(a, true)
	limit(0, 3) // two are
	expect(a, true)
	expect(a, false)
	limit(6, 3)
	expect(b, false) // by the other limit
	limit(7, 3)
	expect(b, true)
	limit(0, 1)
	for _, from := range []string{a, a, a, a, a, b, b} {
		leave(from)
	}
	expect(a, true)
	expect(a, false)
	leave(a)
	if n := len(r.doors[f.Door].clients.of); n != 0 {
		t.Errorf("%d clients are counted, and none is there", n)
	}
	s := settled(t, r)
	if s.Failures[ClientLimit] != 3 || s.Failures[Limit] != 1 {
		t.Errorf("failures = %v, want 3 and 1 by the limits", s.Failures)
	}
}

// An IPv6 host has as many addresses as it likes, in its network.
func TestAnIPv6NetworkIsOneClient(t *testing.T) {
	d := newDoor(edge.Door{})
	table := newTable(edge.Frontend{Terms: edge.Terms{MaxConnectionsPerClient: 1}})
	in := func(client string) bool {
		why, as := d.admit(table, netip.MustParseAddr(client), 0, false)
		if (as == byClient) != (why == "") {
			t.Errorf("%s: refused for %q, and counted as %d", client, why, as)
		}
		return why == ""
	}
	if !in("fd00::1") || in("fd00::ffff:2") || !in("fd00:0:0:1::1") || !in("10.0.0.1") || !in("10.0.0.2") || in("10.0.0.1") {
		t.Error("clients are not told apart by their /64, or not by their IPv4 address")
	}
	d.release(netip.MustParseAddr("fd00::1"), byClient)
	if !in("fd00::3") {
		t.Error("a network that has left does not come in again")
	}
}

// One client that opens all it can gets what is its, and others do not notice.
func TestFloodOfOneClientLeavesOthersAlone(t *testing.T) {
	leavesNothing(t)
	const each = 10
	var most, now atomic.Int64
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, func(c *net.TCPConn) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		echo(c)
	})))
	f.MaxConnectionsPerClient = each
	addr := openDoor(t, r, f)
	var in, out atomic.Int64
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for range 30 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := dialFrom(t, "127.0.0.9", addr)
				if err == nil && answers(c) {
					in.Add(1)
				} else {
					out.Add(1)
				}
				if err == nil {
					c.Close()
				}
			}
		})
	}
	for range 100 {
		began := time.Now()
		c, err := dialFrom(t, "127.0.0.1", addr)
		if err != nil || !answers(c) {
			t.Errorf("another client was turned away: %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("another client waited %v", took)
		}
		if err == nil {
			c.Close()
		}
	}
	close(stop)
	flood.Wait()
	s := settled(t, r)
	if out.Load() == 0 || in.Load() == 0 || s.Failures[ClientLimit] == 0 || len(s.Failures) != 1 {
		t.Errorf("%d came in, %d did not; failures %v", in.Load(), out.Load(), s.Failures)
	}
	// One that has ended may still be known to its backend.
	if most.Load() > 3*each {
		t.Errorf("there were %d at once, with a limit of %d", most.Load(), each)
	}
}

// A reader that takes a byte now and then costs a buffer, however much there
// is to be read.
func TestStalledReadersCostLittle(t *testing.T) {
	leavesNothing(t)
	const n = 300
	r := newRelay(t, Options{})
	var said atomic.Int64
	f := loopback(upAt(server(t, func(c *net.TCPConn) {
		c.SetWriteBuffer(16 << 10)
		c.SetDeadline(time.Now().Add(3 * patience))
		chunk := make([]byte, 16<<10)
		for {
			n, err := c.Write(chunk)
			said.Add(int64(n))
			if err != nil {
				return
			}
		}
	})))
	addr := openDoor(t, r, f)
	setOption(int32(r.doors[f.Door].sockets[0]), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10)
	narrow := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10) })
	}}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var clients []net.Conn
	for range n {
		c, err := narrow.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		clients = append(clients, c)
	}
	// Until no more goes.
	last, since := int64(0), time.Now()
	netnstest.Eventually(t, 3*patience, "they are stalled", func() bool {
		if now := said.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
	for range 5 {
		for _, c := range clients {
			c.Read(make([]byte, 1))
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	var held, pipes, connections int
	eachConn(r, func(c *conn) {
		connections++
		for _, s := range []*side{&c.client, &c.server} {
			held += len(s.pending)
			if cap(s.pending) > 64<<10 {
				t.Errorf("a side keeps %d bytes", cap(s.pending))
			}
			if s.pipe != nil {
				pipes++
			}
		}
	})
	heap := int(after.HeapAlloc) - int(before.HeapAlloc)
	t.Logf("%d connections hold %d kB in memory, %d pipes; the heap has grown by %d kB; backends said %d kB each",
		connections, held>>10, pipes, heap>>10, said.Load()/n>>10)
	if connections != n || held == 0 {
		t.Errorf("%d connections hold %d bytes, want %d that hold some", connections, held, n)
	}
	// Half of it is the backends' chunks.
	if most := n * 96 << 10; heap > most {
		t.Errorf("the heap has grown by %d bytes, more than %d", heap, most)
	}
	if each := said.Load() / n; each > 8<<20 {
		t.Errorf("each backend could say %d bytes that nobody reads", each)
	}
	for _, c := range clients {
		c.Close()
	}
	settled(t, r)
}

// A backend that takes a connection and says nothing keeps it, and nothing
// else; with an idle timeout, so long.
func TestBackendThatNeverAnswers(t *testing.T) {
	leavesNothing(t)
	silent := server(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	r := newRelay(t, Options{})
	f := loopback(upAt(silent))
	addr := openDoor(t, r, f)
	before := openDescriptors(t)
	c := dial(t, addr)
	io.WriteString(c, "question")
	netnstest.Eventually(t, patience, "the question is passed on", func() bool { return r.Stats()[0].BytesToBackend == 8 })
	c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want nothing", err)
	}
	// The client's end and the backend's are in this process, too.
	if n := openDescriptors(t); n != before+4 {
		t.Errorf("%d descriptors more, want 4", n-before)
	}
	f.IdleTimeout = 200 * time.Millisecond
	openDoor(t, r, f)
	impatient := dial(t, addr)
	io.WriteString(impatient, "question")
	began := time.Now()
	if _, err := impatient.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want the end", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if s := r.Stats()[0]; s.IdleTimeouts != 1 {
		t.Errorf("Stats = %+v, want one idle timeout", s)
	}
}

// deaf listens, and answers no SYN any more.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	addr := boundTo(fd)
	for range 10 {
		c, err := net.DialTimeout("tcp", addr.String(), 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("its backlog does not fill up")
	return addr
}

func TestBackendWithAFullBacklogIsFollowedByTheNext(t *testing.T) {
	leavesNothing(t)
	var mu sync.Mutex
	reported := map[netip.AddrPort]int{}
	stuck := deaf(t)
	r := newRelay(t, Options{OnDialError: func(_ edge.Protocol, addr netip.AddrPort, err error) {
		mu.Lock()
		defer mu.Unlock()
		if !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("reported %v, want a timeout", err)
		}
		reported[addr]++
	}})
	f := loopback(upAt(stuck), upAt(server(t, echo)))
	f.ConnectTimeout = 50 * time.Millisecond
	addr := openDoor(t, r, f)
	for range 20 {
		c := dial(t, addr)
		say(t, c, "hello")
		c.Close()
	}
	f.Backends = f.Backends[:1]
	openDoor(t, r, f)
	if got, err := ask(t, addr); got != "" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v; want a reset", got, err)
	}
	s := settled(t, r)
	mu.Lock()
	defer mu.Unlock()
	if s.Finished != 20 || s.Failures[Timeout] != 1 || reported[stuck] < 2 || len(reported) != 1 {
		t.Errorf("Stats = %+v, reported %v; want 20 finished, one without a backend, and only %v", s, reported, stuck)
	}
}

// Clients that go while a backend is dialled, or waited for, are gone at once.
func TestClientsThatGoBeforeThereIsABackend(t *testing.T) {
	for name, backend := range map[string]func(*testing.T) edge.Backend{
		"dialling": func(t *testing.T) edge.Backend { return upAt(deaf(t)) },
		"held":     func(t *testing.T) edge.Backend { return inState(upAt(refusing(t)), edge.Pending) },
	} {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			r := newRelay(t, Options{})
			f := loopback(backend(t))
			f.ConnectTimeout = time.Minute
			addr := openDoor(t, r, f)
			const n = 20
			for range n {
				c := dial(t, addr)
				io.WriteString(c, "question")
				c.SetLinger(0)
				c.Close()
			}
			netnstest.Eventually(t, time.Second, "they are gone", func() bool {
				s := r.Stats()[0]
				return s.Accepted == n && s.Active == 0
			})
			if s := settled(t, r); s.Failures[ClientGone] != n || s.Waiting != 0 || s.Backends[0].Active != 0 {
				t.Errorf("Stats = %+v, want %d clients gone", s, n)
			}
			// Who has said all and waits for the answer has not gone.
			c := dial(t, addr)
			c.CloseWrite()
			netnstest.Eventually(t, patience, "one waits", func() bool { return r.Stats()[0].Waiting == 1 })
			f.Backends = []edge.Backend{upAt(greeter(t, "hello"))}
			if name == "held" {
				openDoor(t, r, f)
				if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
			}
		})
	}
}

// A client that comes while its door is closed is served or refused.
func TestDoorClosesWhileClientsCome(t *testing.T) {
	leavesNothing(t)
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, echo)))
	f.Listen = edge.Listen{Addr: netip.MustParseAddr("127.0.0.77"), Port: refusing(t).Port()} // no client's port, ever
	addr := openDoor(t, r, f)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served, refused atomic.Int64
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", addr.String(), patience)
				if err == nil {
					c.SetDeadline(time.Now().Add(patience))
					// It speaks first: the kernel forgets some of those whose handshake
					// ends while the socket is closed, and tells them when they do.
					if _, err = io.WriteString(c, "?"); err == nil {
						_, err = c.Read(make([]byte, 1))
					}
					c.Close()
				}
				switch {
				case err == nil:
					served.Add(1)
				case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
					refused.Add(1)
				default:
					t.Errorf("a client got %v", err)
					return
				}
			}
		})
	}
	for range 100 {
		r.Apply(nil)
		openDoor(t, r, f)
	}
	for _, s := range r.Stats() {
		checkSums(t, s)
	}
	close(stop)
	clients.Wait()
	if served.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d clients were served, %d refused; want some of both", served.Load(), refused.Load())
	}
	settled(t, r)
}

// Nothing established is cut by what is decided meanwhile.
func TestThousandTablesUnderLoad(t *testing.T) {
	leavesNothing(t)
	r := newRelay(t, Options{})
	var backends []edge.Backend
	for range 4 {
		backends = append(backends, upAt(server(t, echo)))
	}
	f, other := loopback(backends...), loopback(backends[0])
	other.Listen.Addr = netip.MustParseAddr("127.0.0.3")
	doors := r.Apply([]edge.Frontend{f, other})
	addr := doors[0].Addr
	var idle []*net.TCPConn
	for i := range 60 {
		c := dial(t, doors[min(i/50, 1)].Addr)
		say(t, c, "hello")
		idle = append(idle, c)
	}
	stop := make(chan struct{})
	var load sync.WaitGroup
	var moved atomic.Int64
	for i := range 4 {
		c := dial(t, addr)
		c.SetDeadline(time.Now().Add(6 * patience))
		s := &stream{start: i}
		load.Go(func() {
			defer c.CloseWrite()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				n, err := c.Write(s.piece(s.sent.Load(), 100_000))
				s.sent.Add(int64(n))
				if err != nil {
					t.Errorf("after %d bytes: %v", s.sent.Load(), err)
					return
				}
			}
		})
		load.Go(func() {
			buf := make([]byte, 256<<10)
			for {
				n, err := c.Read(buf)
				moved.Add(int64(n))
				if wrong := s.arrived(buf[:n]); wrong != nil {
					t.Error(wrong)
					return
				}
				if errors.Is(err, io.EOF) && s.got == s.sent.Load() {
					return
				} else if err != nil {
					t.Errorf("after %d bytes of %d: %v", s.got, s.sent.Load(), err)
					return
				}
			}
		})
	}
	load.Go(func() { // and clients who come and go
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := dialFrom(t, "127.0.0.1", addr)
			if err != nil || !answers(c) {
				t.Errorf("a new client was turned away: %v", err)
				return
			}
			c.Close()
		}
	})
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 1000 {
		random.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
		g := f
		g.Backends = backends[:1+random.IntN(len(backends))]
		g.MaxConnections = random.IntN(2) * 1000
		g.MaxConnectionsPerClient = random.IntN(2) * 500
		all := []edge.Frontend{g, other}[:1+i%2]
		for _, d := range r.Apply(all) {
			if d.Error != "" {
				t.Fatal(d)
			}
		}
		if i%10 == 0 {
			r.Stats()
		}
	}
	close(stop)
	load.Wait()
	for _, c := range idle {
		c.SetDeadline(time.Now().Add(patience))
		say(t, c, "still here")
		c.Close()
	}
	r.Apply([]edge.Frontend{f})
	netnstest.Eventually(t, patience, "the other door is forgotten", func() bool { return len(r.Stats()) == 1 })
	s := settled(t, r)
	if s.Finished != s.Accepted || len(s.Failures) > 0 {
		t.Errorf("%d connections of %d finished, failures %v; want all of them", s.Finished, s.Accepted, s.Failures)
	}
	t.Logf("%d bytes, %d connections", moved.Load(), s.Accepted)
}

// When its time is over a backend that has left loses its connections, and
// nobody else does; one that has come back in time is as before.
func TestDrainTimeEndsWhatItIsOf(t *testing.T) {
	for name, leave := range map[string]func(edge.Backend) []edge.Backend{
		"gone":     func(edge.Backend) []edge.Backend { return nil },
		"weight 0": func(b edge.Backend) []edge.Backend { b.Weight = 0; return []edge.Backend{b} },
	} {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			const drain = 150 * time.Millisecond
			r := newRelay(t, Options{})
			stays, goes, returns := upAt(server(t, echo)), upAt(server(t, echo)), upAt(server(t, echo))
			f := loopback()
			f.DrainTimeout = drain
			connect := func(to edge.Backend) *net.TCPConn {
				f.Backends = []edge.Backend{to}
				c := dial(t, openDoor(t, r, f))
				say(t, c, "hello")
				return c
			}
			a, b, c := connect(stays), connect(goes), connect(returns)
			f.Backends = []edge.Backend{stays, goes, returns}
			openDoor(t, r, f)
			f.Backends = append(leave(goes), stays)
			began := time.Now()
			openDoor(t, r, f)
			f.Backends = append(leave(goes), stays, returns)
			openDoor(t, r, f)
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v, want a reset", err)
			}
			if took := time.Since(began); took < drain || took > drain+2*time.Second {
				t.Errorf("reset after %v, want %v", took, drain)
			}
			later := time.NewTimer(2 * drain)
			<-later.C
			say(t, a, "still here")
			say(t, c, "still here")
			if s := r.Stats()[0]; s.DrainTimeouts != 1 || s.Active != 2 {
				t.Errorf("Stats = %+v, want one that was drained and two", s)
			}
			// A door that is removed drains all of its.
			r.Apply(nil)
			for _, c := range []*net.TCPConn{a, c} {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("read: %v, want a reset", err)
				}
			}
			netnstest.Eventually(t, patience, "the door is forgotten", func() bool { return len(r.Stats()) == 0 })
		})
	}
}

// A dial that is under way when the drain time of its backend ends would make
// a connection that nothing ends.
func TestDrainTimeEndsDials(t *testing.T) {
	leavesNothing(t)
	r := newRelay(t, Options{})
	stuck := deaf(t)
	f := loopback(upAt(stuck))
	f.ConnectTimeout, f.DrainTimeout = time.Minute, 200*time.Millisecond
	addr := openDoor(t, r, f)
	c := dial(t, addr)
	netnstest.Eventually(t, patience, "it is dialled", func() bool { return r.Stats()[0].Waiting == 1 })
	f.Backends = []edge.Backend{upAt(server(t, echo))}
	openDoor(t, r, f)
	say(t, c, "hello")
	if s := r.Stats()[0]; s.Active != 1 || s.DrainTimeouts != 0 {
		t.Errorf("Stats = %+v, want the connection", s)
	}
}

// Without a descriptor for its backend a client is turned away; what is there
// goes on, in memory where pipes are not to be had.
func TestExhaustionWhileDialling(t *testing.T) {
	leavesNothing(t)
	reported := make(chan error, 100)
	r := newRelay(t, Options{OnDialError: func(_ edge.Protocol, _ netip.AddrPort, err error) { reported <- err }})
	addr := openDoor(t, r, loopback(upAt(server(t, echo))))
	bulk := dial(t, addr)
	say(t, bulk, "hello")
	var spare []int
	for range 4 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)})
		spare = append(spare, fd)
	}
	giveBack := exhaustDescriptors(t, highestDescriptor(t)+2)
	var fill []int
	for {
		fd, err := unix.Dup(spare[0])
		if err != nil {
			break
		}
		fill = append(fill, fd)
	}
	unix.Close(fill[0]) // one is left, which the accepted connection takes
	fill = fill[1:]

	s := new(stream)
	const size = 32 << 20
	var work sync.WaitGroup
	work.Go(func() {
		for s.sent.Load() < size {
			n, err := bulk.Write(s.piece(s.sent.Load(), 1<<20))
			if s.sent.Add(int64(n)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	work.Go(func() {
		buf := make([]byte, 256<<10)
		for s.got < size {
			n, err := bulk.Read(buf)
			if wrong := s.arrived(buf[:n]); wrong != nil || err != nil {
				t.Errorf("after %d bytes: %v, %v", s.got, err, wrong)
				return
			}
		}
	})
	for _, fd := range spare {
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err == nil {
			_, err = unix.Read(fd, make([]byte, 1))
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("a client without a descriptor read %v, want a reset", err)
			}
		}
	}
	work.Wait()
	st := r.Stats()[0]
	checkSums(t, st)
	if st.Failures[Exhausted] != uint64(len(spare)) {
		t.Errorf("Stats = %+v, want %d exhausted", st, len(spare))
	}
	if st.AcceptErrors == uint64(len(spare)) {
		t.Log("nobody was accepted: something of the bulk had taken the descriptor first")
	}
	giveBack()
	for _, fd := range fill {
		unix.Close(fd)
	}
	say(t, dial(t, addr), "after")
	if len(reported) > 0 {
		t.Errorf("the backend was reported for %v", <-reported)
	}
}

// Everything that may be called is called at once, while clients come and go.
func TestApplyStatsCloseUnderLoad(t *testing.T) {
	for range 3 {
		r := newRelay(t, Options{})
		f := loopback(upAt(server(t, echo)), upAt(refusing(t)))
		f.DrainTimeout, f.IdleTimeout = 50*time.Millisecond, 100*time.Millisecond
		f.MaxConnections, f.MaxConnectionsPerClient = 50, 40
		f.Listen = edge.Listen{Addr: netip.MustParseAddr("127.0.0.77"), Port: refusing(t).Port()} // no client's port, ever
		addr := openDoor(t, r, f)
		stop := make(chan struct{})
		var work sync.WaitGroup
		again := func(do func()) {
			work.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						do()
					}
				}
			})
		}
		for i := range 6 {
			again(func() {
				c, err := net.DialTimeout("tcp", addr.String(), patience)
				if err != nil {
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Second))
				if i%2 == 0 {
					c.Write(wire()[:300_000])
				} else {
					answers(c.(*net.TCPConn))
				}
			})
		}
		again(func() { r.Stats() })
		again(func() { r.Doors() })
		again(func() { r.Apply([]edge.Frontend{f}) })
		again(func() {
			g := f
			g.Backends = f.Backends[:1]
			r.Apply([]edge.Frontend{g})
			r.Apply(nil)
		})
		pause := time.NewTimer(300 * time.Millisecond)
		<-pause.C
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		var closes sync.WaitGroup
		for range 3 {
			closes.Go(func() { r.Close(ctx) })
		}
		closes.Wait()
		cancel()
		close(stop)
		work.Wait()
		if n := r.live.Load(); n != 0 {
			t.Errorf("%d connections are left of a closed relay", n)
		}
		for _, s := range r.Stats() {
			checkSums(t, s)
			if s.Active != 0 {
				t.Errorf("Stats = %+v of a closed relay", s)
			}
		}
	}
}

// Close ends what its context does not leave time for: who waits for a
// backend, who stalls, who is about to be reset.
func TestCloseEndsConnectionsOfEveryState(t *testing.T) {
	leavesNothing(t)
	r := newRelay(t, Options{})
	good, waits, pending := loopback(upAt(server(t, echo))), loopback(upAt(deaf(t))), loopback(inState(upAt(refusing(t)), edge.Pending))
	waits.Listen.Addr, pending.Listen.Addr = netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	waits.ConnectTimeout = time.Minute
	doors := r.Apply([]edge.Frontend{good, waits, pending})
	var clients []*net.TCPConn
	for _, d := range doors {
		clients = append(clients, dial(t, d.Addr))
	}
	say(t, clients[0], "hello")
	stalled := dial(t, doors[0].Addr)
	stall(t, r, stalled)
	clients = append(clients, stalled)
	netnstest.Eventually(t, patience, "all of them are there", func() bool { return r.live.Load() == 4 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := r.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "4 connections cut") {
		t.Errorf("Close = %v, want 4 connections cut", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, c := range clients {
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}

// A relay that comes to itself would echo what a client says.
func TestNetnsABackendIsNotItself(t *testing.T) {
	netnstest.Run(t, func() {
		// The kernel has but one port to connect from.
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40000"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := newRelay(t, Options{})
		f := loopback(upAt(netip.MustParseAddrPort("127.0.0.1:40000")))
		f.Listen.Port = 80
		addr := openDoor(t, r, f)
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000}}
		c, err := d.Dial("tcp", addr.String())
		if err == nil { // it may be reset before that
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			io.WriteString(c, "hello")
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a client got %v, want a reset", err)
		}
		if s := settled(t, r); s.Failures[Refused] != 1 {
			t.Errorf("failures = %v, want one refused", s.Failures)
		}
	})
}
