package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// site is a network of backends without sockets: what happens when one is
// dialled, and when each was.
type site struct {
	mu      sync.Mutex
	answer  map[string]func(context.Context) error // nil: refused
	talk    map[string]func(net.Conn)              // nil: hangs up
	dialled map[string][]time.Time
	now     int // dials under way
	most    int
	asked   []bool // what Options.Asked was told; guarded by the prober
}

func refuse(context.Context) error { return syscall.ECONNREFUSED }
func accept(context.Context) error { return nil }
func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *site) set(probe edge.Probe, answer func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer[probe.Addr.String()] = answer
}

func (s *site) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	s.mu.Lock()
	s.dialled[addr] = append(s.dialled[addr], time.Now())
	s.now++
	s.most = max(s.most, s.now)
	answer, talk := s.answer[addr], s.talk[addr]
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
	}()
	if answer == nil {
		answer = refuse
	}
	if err := answer(ctx); err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if talk != nil {
			talk(there)
		}
	}()
	return here, nil
}

// says has an address accept, wait for a question and answer it.
func (s *site) says(addr netip.AddrPort, answer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer[addr.String()] = accept
	s.talk[addr.String()] = func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = io.WriteString(conn, answer)
	}
}

// dials returns when an address was dialled, since a time.
func (s *site) dials(probe edge.Probe, since time.Time) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at []time.Duration
	for _, when := range s.dialled[probe.Addr.String()] {
		if !when.Before(since) {
			at = append(at, when.Sub(since))
		}
	}
	return at
}

// inBubble runs a test with a prober that runs, and time that costs nothing.
func inBubble(t *testing.T, test func(t *testing.T, p *Prober, s *site)) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{
			answer: map[string]func(context.Context) error{}, talk: map[string]func(net.Conn){}, dialled: map[string][]time.Time{},
		}
		p := New(slog.New(slog.DiscardHandler), Options{Asked: func(passed bool, _ time.Duration) { s.asked = append(s.asked, passed) }})
		p.dial = s.dial
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v", err)
			}
		}()
		test(t, p, s)
	})
}

// wait lets time pass, and what happens at its end happen.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func tcpProbe(i int) edge.Probe {
	return edge.Probe{
		Kind:        edge.ProbeBackend,
		Addr:        netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80),
		HealthCheck: edge.HealthCheck{Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
	}
}

func wantHealth(t *testing.T, p *Prober, probe edge.Probe, state edge.BackendState, text string) {
	t.Helper()
	got := p.Snapshot()[probe]
	got.Silent, got.Confirmed, got.Since = false, false, time.Time{} // TestWhatAFailureWasLike has these, and the next one
	if want := (edge.Health{State: state, Error: text}); got != want {
		t.Errorf("health = %+v, want %+v", got, want)
	}
}

// timeless is a Health without the time at which the state began.
func timeless(h edge.Health) edge.Health {
	h.Since = time.Time{}
	return h
}

func TestSinceIsWhenTheStateBegan(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		synctest.Wait()
		up := time.Now()
		wait(20 * time.Second)
		if got := p.Snapshot()[probe].Since; !got.Equal(up) {
			t.Errorf("up since %s, want %s: it has not changed", got, up)
		}
		s.set(probe, refuse)
		began := time.Now()
		for p.Snapshot()[probe].State == edge.Up {
			wait(100 * time.Millisecond)
		}
		if got, now := p.Snapshot()[probe].Since, time.Now(); now.Sub(got) > 100*time.Millisecond || got.Before(began) {
			t.Errorf("down since %s, want about %s", got, now)
		}
		passed, failed := 0, 0
		for _, ok := range s.asked {
			if ok {
				passed++
			} else {
				failed++
			}
		}
		if n := len(s.dials(probe, time.Time{})); passed < 4 || failed != 3 || passed+failed != n {
			t.Errorf("told of %d checks that passed and %d that failed, want 3 of %d", passed, failed, n)
		}
	})
}

func changed(p *Prober) bool {
	select {
	case <-p.Changed():
		return true
	default:
		return false
	}
}

func TestFirstSuccessIsEnough(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		synctest.Wait()
		wantHealth(t, p, probe, edge.Up, "")
		if !changed(p) || changed(p) {
			t.Error("Changed was not signalled once")
		}
	})
}

func TestUpAndDownTakeFallAndRise(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		// One answer, after another, each an interval (and its jitter) apart.
		const interval = 5500 * time.Millisecond
		const refused = "connection refused"
		for i, step := range []struct {
			answer func(context.Context) error
			state  edge.BackendState
			text   string
		}{
			{refuse, edge.Up, refused},
			{accept, edge.Up, ""},
			{refuse, edge.Up, refused},
			{refuse, edge.Up, refused},
			{refuse, edge.Down, refused},
			{accept, edge.Down, ""},
			{refuse, edge.Down, refused},
			{accept, edge.Down, ""},
			{accept, edge.Up, ""},
			{refuse, edge.Up, refused},
		} {
			s.set(probe, step.answer)
			n := len(s.dials(probe, time.Time{}))
			for began := time.Now(); len(s.dials(probe, time.Time{})) == n; wait(10 * time.Millisecond) {
				if time.Since(began) > interval {
					t.Fatalf("step %d: no probe within %v", i, interval)
				}
			}
			wantHealth(t, p, probe, step.state, step.text)
		}
	})
}

func TestNewBackendIsProbedEagerly(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		began := time.Now()
		p.Apply([]edge.Probe{probe})
		wait(pendingFor - time.Millisecond)
		wantHealth(t, p, probe, edge.Pending, "connection refused")
		wait(eagerPause + time.Millisecond)
		wantHealth(t, p, probe, edge.Down, "connection refused")
		wait(40 * time.Second)
		at := s.dials(probe, began)
		for i, want := range []int64{0, 50, 150, 250, 350} {
			if i >= len(at) || at[i].Milliseconds() != want {
				t.Fatalf("probed at %v, want the first at 0, 50, 150, 250, 350 ms", at)
			}
		}
		for i := 1; i < len(at); i++ {
			gap := at[i] - at[i-1]
			if at[i-1] < eagerFor && gap > eagerPause {
				t.Errorf("in the first %v there is a gap of %v", eagerFor, gap)
			}
			// Onto the grid of batches a probe is moved forwards.
			if at[i-1] > eagerFor && (gap <= 4500*time.Millisecond-batchEach || gap > 5500*time.Millisecond) {
				t.Errorf("after the first %v there is a gap of %v, want 5 s and a tenth either way, and up to %v less", eagerFor, gap, batchEach)
			}
		}
		// Rise is for those that were up.
		s.set(probe, accept)
		wait(5500 * time.Millisecond)
		wantHealth(t, p, probe, edge.Up, "")
	})
}

func TestSilenceIsATimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, silent)
		p.Apply([]edge.Probe{probe})
		wait(990 * time.Millisecond)
		wantHealth(t, p, probe, edge.Pending, "")
		wait(20 * time.Millisecond)
		wantHealth(t, p, probe, edge.Pending, "no answer within 1s")
	})
}

func TestWithoutIntervalEverythingIsUp(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		probe.Interval = 0
		p.Apply([]edge.Probe{probe})
		wantHealth(t, p, probe, edge.Up, "")
		if !changed(p) {
			t.Error("Changed was not signalled")
		}
		p.Suspect(probe.Addr)
		wait(time.Minute)
		if at := s.dials(probe, time.Time{}); len(at) > 0 {
			t.Errorf("probed at %v, want never", at)
		}
		p.Apply(nil)
		if all := p.Snapshot(); len(all) > 0 {
			t.Errorf("Snapshot = %v, want nothing", all)
		}
	})
}

func TestApplyKeepsWhatIsKnownAndForgetsTheRest(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		stays, goes, slow := tcpProbe(1), tcpProbe(2), tcpProbe(3)
		s.set(stays, accept)
		s.set(goes, accept)
		s.set(slow, silent)
		p.Apply([]edge.Probe{stays, goes, slow})
		wait(100 * time.Millisecond)
		wantHealth(t, p, goes, edge.Up, "")
		// One of them goes while its probe is under way.
		p.Apply([]edge.Probe{stays})
		wantHealth(t, p, stays, edge.Up, "")
		if n := len(p.Snapshot()); n != 1 {
			t.Errorf("%d probes are known, want 1", n)
		}
		gone := time.Now()
		wait(time.Minute)
		for _, probe := range []edge.Probe{goes, slow} {
			if at := s.dials(probe, gone.Add(time.Nanosecond)); len(at) > 0 {
				t.Errorf("%v was probed %v after it was removed", probe.Addr, at)
			}
		}
		s.set(goes, silent)
		p.Apply([]edge.Probe{stays, goes})
		wantHealth(t, p, stays, edge.Up, "")
		wantHealth(t, p, goes, edge.Pending, "")
	})
}

func TestSameProbeTwiceIsOne(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe, probe})
		p.Apply([]edge.Probe{probe})
		wait(100 * time.Millisecond)
		if n := len(s.dials(probe, time.Time{})); n != 1 {
			t.Errorf("probed %d times, want once", n)
		}
	})
}

func TestSuspicionFindsOutAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe, other := tcpProbe(1), tcpProbe(2)
		s.set(probe, accept)
		s.set(other, accept)
		p.Apply([]edge.Probe{probe, other})
		wait(time.Second)
		s.set(probe, refuse)
		began := time.Now()
		for range 1000 { // as many connections wait
			p.Suspect(probe.Addr)
		}
		synctest.Wait()
		wantHealth(t, p, probe, edge.Up, "connection refused")
		wait(2 * hurriedPause)
		wantHealth(t, p, probe, edge.Down, "connection refused")
		wait(time.Second)
		if at := s.dials(probe, began); len(at) != 3 || at[0] != 0 || at[1] != hurriedPause || at[2] != 2*hurriedPause {
			t.Errorf("probed at %v, want at once and every %v until it is down", at, hurriedPause)
		}
		if at := s.dials(other, began); len(at) != 0 {
			t.Errorf("another backend was probed at %v", at)
		}
		// A success ends the hurry: one probe for each.
		began = time.Now()
		p.Suspect(other.Addr)
		wait(time.Second)
		if at := s.dials(other, began); len(at) != 1 {
			t.Errorf("a backend that is well was probed at %v, want once", at)
		}
	})
}

// The probe under way may have begun before what hurries.
func TestSuspicionDuringAProbeAsksOnceMore(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		release := make(chan struct{})
		s.set(probe, func(context.Context) error { <-release; return nil })
		p.Apply([]edge.Probe{probe})
		synctest.Wait()
		p.Suspect(probe.Addr)
		s.set(probe, refuse)
		close(release)
		wait(hurriedPause)
		wantHealth(t, p, probe, edge.Up, "connection refused")
	})
}

// For those that have been up failing is different from not being there yet.
func TestFailuresCountAtOnceAfterASuccess(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		synctest.Wait()
		s.set(probe, refuse)
		p.Suspect(probe.Addr)
		wait(3 * hurriedPause)
		wantHealth(t, p, probe, edge.Down, "connection refused")
	})
}

// An eager probe is sooner than a hurried one would be.
func TestSuspicionNeverDelays(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		began := time.Now()
		p.Apply([]edge.Probe{probe})
		synctest.Wait()
		p.Suspect(probe.Addr)
		wait(time.Second)
		if at := s.dials(probe, began); len(at) < 4 || at[1] != 50*time.Millisecond || at[2] != 150*time.Millisecond {
			t.Errorf("probed at %v", at)
		}
	})
}

func TestHurriedPassThousandsOfTimeouts(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		const n = 3000
		var probes []edge.Probe
		for i := range n {
			probes = append(probes, tcpProbe(i))
			s.set(probes[i], accept)
		}
		p.Apply(probes)
		wait(10 * time.Second)
		for probe, health := range p.Snapshot() {
			if health.State != edge.Up {
				t.Fatalf("%v is %s, want up", probe.Addr, health.State)
			}
			s.set(probe, silent)
		}
		wait(5 * time.Second)
		if s.most > defaultConcurrency {
			t.Errorf("%d probes at once, want at most %d", s.most, defaultConcurrency)
		}
		// All are busy with those that are silent, and more of them wait.
		var failed edge.Probe
		p.mu.Lock()
		if p.running != defaultConcurrency {
			t.Errorf("%d probes are under way, want %d", p.running, defaultConcurrency)
		}
		for _, target := range p.due {
			if target.health.State == edge.Up && time.Since(target.started) > hurriedPause {
				failed = target.Probe
				break
			}
		}
		p.mu.Unlock()
		s.set(failed, refuse)
		began := time.Now()
		p.Suspect(failed.Addr)
		synctest.Wait()
		if at := s.dials(failed, began); len(at) != 1 || at[0] != 0 {
			t.Errorf("the hurried one was probed at %v, want at once", at)
		}
		wait(time.Minute)
		for probe, health := range p.Snapshot() {
			if health.State != edge.Down {
				t.Fatalf("%v is %s, want down", probe.Addr, health.State)
			}
		}
	})
}

// Three thousand at once do not go out in one burst, and one does not wait.
func TestManyNewProbesAreSpread(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		var probes []edge.Probe
		for i := range 3000 {
			probes = append(probes, tcpProbe(i))
			s.set(probes[i], accept)
		}
		began := time.Now()
		p.Apply(probes)
		wait(spreadMost)
		tenths := map[int]int{}
		for _, probe := range probes {
			at := s.dials(probe, began)
			if len(at) != 1 {
				t.Fatalf("%v was probed at %v, want once in the first %v", probe.Addr, at, spreadMost)
			}
			tenths[int(at[0]*10/(3000*spreadEach))]++
		}
		for i, n := range tenths {
			if n > 450 {
				t.Errorf("%d probes in tenth %d of the start, want about 300", n, i)
			}
		}
		one := tcpProbe(5000)
		s.set(one, accept)
		p.Apply(append(probes, one))
		synctest.Wait()
		wantHealth(t, p, one, edge.Up, "")
	})
}

// Thousands that nobody answers for, all new, are probed eagerly in turn.
func TestManyNewBackendsShareTheEagerness(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		var probes []edge.Probe
		for i := range 3000 {
			probes = append(probes, tcpProbe(i))
		}
		p.Apply(probes)
		wait(eagerFor)
		total := 0
		for _, probe := range probes {
			total += len(s.dials(probe, time.Time{}))
		}
		// Five quick ones each, then 2,000 a second among them.
		if most := 5*3000 + 10*2000; total > most {
			t.Errorf("%d probes in the first %v, want at most %d", total, eagerFor, most)
		}
		// Those do not slow down the next that comes.
		wait(eagerFor)
		began := time.Now()
		one := tcpProbe(5000)
		p.Apply(append(probes, one))
		wait(time.Second)
		if at := s.dials(one, began); len(at) < 9 {
			t.Errorf("a new one is probed at %v, want each %v", at, eagerPause)
		}
		p.Apply(nil)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.eager != 0 {
			t.Errorf("%d are counted as new, and there is none", p.eager)
		}
	})
}

// A shortage here is no news about the backend.
func TestShortageHereTakesNothingDown(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := tcpProbe(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		s.set(probe, func(context.Context) error {
			return &net.OpError{Op: "dial", Err: fmt.Errorf("socket: %w", syscall.EMFILE)}
		})
		wait(time.Minute)
		wantHealth(t, p, probe, edge.Up, "too many open files")
		s.set(probe, refuse)
		wait(time.Minute)
		wantHealth(t, p, probe, edge.Down, "connection refused")
	})
}

func BenchmarkApplyUnchanged(b *testing.B) {
	for _, n := range []int{30, 3000} {
		b.Run(fmt.Sprintf("probes=%d", n), func(b *testing.B) {
			p := New(slog.New(slog.DiscardHandler), Options{})
			var probes []edge.Probe
			for i := range n {
				probes = append(probes, tcpProbe(i))
			}
			for b.Loop() {
				p.Apply(probes)
			}
		})
	}
}

func TestTheLogSaysWhichCheckFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{answer: map[string]func(context.Context) error{}, talk: map[string]func(net.Conn){}, dialled: map[string][]time.Time{}}
		var log bytes.Buffer
		p := New(slog.New(slog.NewTextHandler(&log, nil)), Options{})
		p.dial = s.dial
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		connects := tcpProbe(1)
		asks := connects
		asks.Type, asks.Path, asks.Host = edge.CheckHTTP, "/healthz", "git.example.org"
		asks.StatusMin, asks.StatusMax = 200, 399
		asks.SendProxyProtocol = edge.ProxyProtocolV2
		s.says(connects.Addr, "HTTP/1.1 503 No\r\n\r\n")
		p.Apply([]edge.Probe{connects, asks})
		wait(10 * time.Second)
		cancel()
		<-ended
		for _, want := range []string{
			`addr=10.0.0.1:80 probe=backend check=tcp state=up`,
			`addr=10.0.0.1:80 probe=backend check="http /healthz of git.example.org with PROXY protocol v2" state=down`,
		} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %s:\n%s", want, log.String())
			}
		}
	})
}
