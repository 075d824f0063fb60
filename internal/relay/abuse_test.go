package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// An urgent byte ends a splice early, as an end of stream does. What comes
// after it must not be lost, even if the real end is there already.
func TestUrgentByteIsNotAnEnd(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		l := listenLoopback(t)
		addr := openDoor(t, r, loopback(upAt(addrOf(l))))
		for range 200 {
			c := dial(t, addr)
			b, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			s := new(stream)
			go func() {
				c.Write(s.piece(0, 2<<20))
				sendUrgent(c)
				c.Write(s.piece(2<<20, 1<<20))
				c.CloseWrite()
			}()
			s.urgent = []int64{2 << 20}
			buf := make([]byte, 256<<10)
			for {
				n, err := b.Read(buf)
				if wrong := s.arrived(buf[:n]); wrong != nil {
					t.Fatal(wrong)
				}
				if err != nil {
					if err != io.EOF || s.got != 3<<20 {
						t.Fatalf("%d bytes, %v; want %d and the end", s.got, err, 3<<20)
					}
					break
				}
			}
			c.Close()
			b.Close()
		}
	})
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
