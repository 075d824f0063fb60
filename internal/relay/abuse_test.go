package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
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
	for i := range 10_000 {
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
		const lost = 500 * time.Millisecond
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
