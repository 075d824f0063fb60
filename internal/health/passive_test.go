package health

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

// ordinary is a probe as the file's defaults have it.
func ordinary(i int) edge.Probe {
	probe := tcpProbe(i)
	probe.HealthCheck = edge.HealthCheck{Type: edge.CheckTCP, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 2}
	return probe
}

// A backend's SYNs are dropped from some moment on, while connections keep
// coming: the relay says so of each after a quarter of a second. Whenever that
// moment is between two probes, and also if a probe is under way.
func TestSilentDeathIsFoundInThreeSeconds(t *testing.T) {
	const suspectAfter = 250 * time.Millisecond
	for after := time.Duration(0); after < 6*time.Second; after += 170 * time.Millisecond {
		inBubble(t, func(t *testing.T, p *Prober, s *site) {
			probe := ordinary(1)
			s.set(probe, accept)
			p.Apply([]edge.Probe{probe})
			wait(10*time.Second + after)
			s.set(probe, silent)
			died := time.Now()
			wait(suspectAfter)
			for p.Snapshot()[probe].State != edge.Down {
				p.Suspect(probe.Addr)
				wait(10 * time.Millisecond)
				if took := time.Since(died); took > 3*time.Second {
					t.Fatalf("%v after its death the backend is %+v", took, p.Snapshot()[probe])
				}
			}
			if took := time.Since(died); took > 2500*time.Millisecond {
				t.Errorf("that took %v, want two timeouts and a quarter of a second, and at most another", took)
			}
			wantHealth(t, p, probe, edge.Down, "no answer within 1s")
		})
	}
}

// The node had a port open for each of a thousand frontends, all in use, and
// another thousand elsewhere have been silent for long.
func TestSilentDeathOfAThousandBackends(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		var dying, dead []edge.Probe
		for i := range 1000 {
			dying, dead = append(dying, ordinary(i)), append(dead, ordinary(1000+i))
			s.set(dying[i], accept)
			s.set(dead[i], silent)
		}
		p.Apply(append(dying, dead...))
		wait(time.Minute)
		for _, probe := range dying {
			s.set(probe, silent)
		}
		died := time.Now()
		wait(250 * time.Millisecond)
		for time.Since(died) < 3*time.Second {
			for _, probe := range dying {
				p.Suspect(probe.Addr)
			}
			wait(50 * time.Millisecond)
		}
		left := 0
		for _, probe := range dying {
			if p.Snapshot()[probe].State != edge.Down {
				left++
			}
		}
		if left > 0 {
			t.Errorf("3 s after their death %d are not down", left)
		}
		if s.most > defaultConcurrency+hurriedReserve {
			t.Errorf("%d probes at once, want at most %d", s.most, defaultConcurrency+hurriedReserve)
		}
	})
}

func TestSuspicionIsNoFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Fall = 1
		s.set(probe, acceptLater)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		changed(p)
		began := time.Now()
		for range 100 {
			p.Suspect(probe.Addr)
		}
		wantHealth(t, p, probe, edge.Up, "")
		wait(time.Second)
		// Once, and once more for those that came when that was under way.
		if at := s.dials(probe, began); len(at) < 1 || len(at) > 2 {
			t.Errorf("probed at %v, want once or twice", at)
		}
		if changed(p) {
			t.Error("Changed was signalled, and nothing has")
		}
	})
}

func TestFailedConnectionCountsAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		changed(p)
		s.set(probe, silent)
		for range 100 { // one event
			p.Failed(probe.Addr, unix.ECONNREFUSED)
		}
		wantHealth(t, p, probe, edge.Up, "refused a connection")
		if !changed(p) {
			t.Error("Changed was not signalled")
		}
		// It was the first failure, and one probe is the second.
		wait(990 * time.Millisecond)
		wantHealth(t, p, probe, edge.Up, "refused a connection")
		wait(20 * time.Millisecond)
		wantHealth(t, p, probe, edge.Down, "no answer within 1s")
	})
}

func TestFailedConnectionsDoNotOutweighProbes(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		began := time.Now()
		for range 1000 { // every tenth of a second some client is refused
			p.Failed(probe.Addr, unix.ECONNREFUSED)
			p.Failed(probe.Addr, unix.ETIMEDOUT)
			if state := p.Snapshot()[probe].State; state != edge.Up {
				t.Fatalf("a backend whose probes all succeed is %s", state)
			}
			wait(100 * time.Millisecond)
		}
		for _, gap := range gaps(s.dials(probe, began)) {
			if gap < hurriedPause {
				t.Fatalf("two probes were %v apart, want at least %v", gap, hurriedPause)
			}
		}
		wait(time.Minute)
		wantHealth(t, p, probe, edge.Up, "")
	})
}

func gaps(at []time.Duration) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(at); i++ {
		out = append(out, at[i]-at[i-1])
	}
	return out
}

// acceptLater is accept that takes its time, as on a network: no answer comes
// before a test has looked, unless it waits.
func acceptLater(context.Context) error {
	<-time.After(time.Millisecond)
	return nil
}

// One between two probes, and one again after the next.
func TestFailedConnectionsCountAfterEachProbe(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		s.set(probe, acceptLater)
		p.Apply([]edge.Probe{probe})
		for range 3 {
			wait(time.Second)
			wantHealth(t, p, probe, edge.Up, "")
			p.Failed(probe.Addr, unix.ECONNREFUSED)
			wantHealth(t, p, probe, edge.Up, "refused a connection")
		}
	})
}

// Fall: 1 says that one failure is enough, and so it is. The backend that was
// only busy comes back as soon as probes can tell.
func TestFallOneTakesAFailedConnectionAtItsWord(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Fall, probe.Rise = 1, 1
		s.set(probe, acceptLater)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		p.Failed(probe.Addr, unix.ETIMEDOUT)
		wantHealth(t, p, probe, edge.Down, "did not answer a connection")
		wait(10 * time.Millisecond)
		wantHealth(t, p, probe, edge.Up, "")
	})
}

func TestFailedConnectionsToABackendThatIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		s.set(probe, silent)
		wait(15 * time.Second)
		wantHealth(t, p, probe, edge.Down, "no answer within 1s")
		changed(p)
		// All are down, and tried all the same.
		began := time.Now()
		for range 300 {
			p.Failed(probe.Addr, unix.ECONNREFUSED)
			p.Suspect(probe.Addr)
			wait(100 * time.Millisecond)
			wantHealth(t, p, probe, edge.Down, "no answer within 1s")
		}
		if at := s.dials(probe, began); len(at) > 7 {
			t.Errorf("in 30 s it was probed %d times, want one each interval", len(at))
		}
		if changed(p) {
			t.Error("Changed was signalled, and nothing has")
		}
		// A failure between two successes: they are not in a row.
		s.set(probe, accept)
		n := len(s.dials(probe, time.Time{}))
		for len(s.dials(probe, time.Time{})) == n {
			wait(10 * time.Millisecond)
		}
		p.Failed(probe.Addr, unix.ECONNREFUSED)
		wait(5600 * time.Millisecond)
		wantHealth(t, p, probe, edge.Down, "")
		wait(5600 * time.Millisecond)
		wantHealth(t, p, probe, edge.Up, "")
	})
}

// A backend that is new is waited for, whoever has failed to connect to it.
func TestFailedConnectionsToANewBackend(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		s.set(probe, silent)
		p.Apply([]edge.Probe{probe})
		began := time.Now()
		for time.Since(began) < pendingFor-time.Millisecond {
			p.Failed(probe.Addr, unix.ETIMEDOUT)
			if state := p.Snapshot()[probe].State; state != edge.Pending {
				t.Fatalf("%s after %v", state, time.Since(began))
			}
			wait(10 * time.Millisecond)
		}
		wait(20 * time.Millisecond)
		p.Failed(probe.Addr, unix.ETIMEDOUT)
		if state := p.Snapshot()[probe].State; state != edge.Down {
			t.Errorf("%s after %v, want down", state, time.Since(began))
		}
	})
}

func TestShortageHereIsNobodysFailure(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Fall = 1
		s.set(probe, accept)
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		p.Failed(probe.Addr, unix.EADDRNOTAVAIL)
		wantHealth(t, p, probe, edge.Up, "")
	})
}

// A node can be well whose backend is not: it is asked, and not blamed.
func TestFailedConnectionsAskHealthz(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Kind, probe.Fall = edge.ProbeHealthz, 1
		s.set(probe, refuse) // no kube-proxy
		p.Apply([]edge.Probe{probe})
		wait(time.Second)
		began := time.Now()
		p.Failed(probe.Addr, unix.ECONNREFUSED)
		wantHealth(t, p, probe, edge.Up, "")
		wait(10 * time.Millisecond)
		if at := s.dials(probe, began); len(at) != 1 {
			t.Errorf("probed at %v, want at once", at)
		}
		s.set(probe, silent)
		p.Suspect(probe.Addr)
		wait(time.Second + hurriedPause)
		wantHealth(t, p, probe, edge.Down, "kube-proxy's healthz: no answer within 1s")
	})
}

// A firewall that lets nobody ask kube-proxy must not cost all nodes. Who has
// answered once, and does so no more, is another matter.
func TestAHealthzThatNobodyHasSeenSaysNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Kind = edge.ProbeHealthz
		s.set(probe, silent)
		p.Apply([]edge.Probe{probe})
		wait(time.Minute)
		wantHealth(t, p, probe, edge.Up, "")
		s.set(probe, refuse)
		wait(10 * time.Second)
		s.set(probe, silent)
		wait(time.Minute)
		wantHealth(t, p, probe, edge.Down, "kube-proxy's healthz: no answer within 1s")
	})
}

// Packets that are lost tell something else of a node than a port that is
// closed, and kube-proxy's own word something else than its absence.
func TestWhatAFailureWasLike(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		node, healthz := ordinary(1), ordinary(2)
		healthz.Kind = edge.ProbeHealthz
		s.says(node.Addr, "")
		s.says(healthz.Addr, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
		p.Apply([]edge.Probe{node, healthz})
		look := func(what string, silent, confirmed bool) {
			t.Helper()
			wait(30 * time.Second)
			now := p.Snapshot()
			if now[node].Silent != silent || now[healthz].Confirmed != confirmed {
				t.Errorf("%s: %+v and %+v, want silent=%v confirmed=%v", what, now[node], now[healthz], silent, confirmed)
			}
		}
		look("well", false, true)
		s.set(node, refuse)
		s.set(healthz, refuse)
		look("refused", false, false)
		s.set(node, silent)
		s.says(healthz.Addr, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}")
		look("silent", true, false)
		s.says(node.Addr, "")
		look("well again", false, false)
		s.set(node, acceptLater)
		p.Failed(node.Addr, unix.ETIMEDOUT)
		if h := p.Snapshot()[node]; !h.Silent {
			t.Errorf("after a connection that was lost: %+v", h)
		}
	})
}

const (
	kubeProxy200 = "HTTP/1.1 200 OK\r\nX-Load-Balancing-Endpoint-Weight: %s\r\nContent-Length: 2\r\n\r\n{}"
	kubeProxy503 = "HTTP/1.1 503 Service Unavailable\r\nX-Load-Balancing-Endpoint-Weight: 0\r\nContent-Length: 2\r\n\r\n{}"
)

// Two ports of one Service have one healthCheckNodePort. A connection says
// something about one of them.
func TestFailedConnectionConcernsWhereItWent(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		web, mail := ordinary(1), ordinary(1)
		for i, probe := range []*edge.Probe{&web, &mail} {
			probe.Kind, probe.Through, probe.Fall = edge.ProbeHealthCheckNodePort, ordinary(10+i).Addr, 1
			s.says(probe.Through, "")
		}
		s.says(web.Addr, fmt.Sprintf(kubeProxy200, "3"))
		p.Apply([]edge.Probe{web, mail})
		wait(time.Second)
		for _, probe := range []edge.Probe{web, mail} {
			if got, want := timeless(p.Snapshot()[probe]), (edge.Health{State: edge.Up, Weight: 3}); got != want {
				t.Fatalf("health = %+v, want %+v", got, want)
			}
		}
		p.Failed(web.Through, unix.ETIMEDOUT)
		if state := p.Snapshot()[web].State; state != edge.Down {
			t.Errorf("the port that failed is %s", state)
		}
		if state := p.Snapshot()[mail].State; state != edge.Up {
			t.Errorf("the other is %s", state)
		}
		p.Apply(nil)
		if len(p.byAddr) > 0 {
			t.Errorf("%d addresses are remembered", len(p.byAddr))
		}
	})
}

func TestWeightIsTheLastThatWasTold(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Prober, s *site) {
		probe := ordinary(1)
		probe.Kind, probe.Through = edge.ProbeHealthCheckNodePort, ordinary(2).Addr
		s.says(probe.Through, "")
		p.Apply([]edge.Probe{probe})
		const noPods = "no ready pods there (healthCheckNodePort answers 503)"
		for i, step := range []struct {
			answer string // empty: refused
			want   edge.Health
		}{
			{fmt.Sprintf(kubeProxy200, "2"), edge.Health{State: edge.Up, Weight: 2}},
			{fmt.Sprintf(kubeProxy200, "3"), edge.Health{State: edge.Up, Weight: 3}},
			{"", edge.Health{State: edge.Up, Weight: 3, Error: "connection refused"}},
			{fmt.Sprintf(kubeProxy200, "garbage"), edge.Health{State: edge.Up}},
			{fmt.Sprintf(kubeProxy200, "1"), edge.Health{State: edge.Up, Weight: 1}},
			{kubeProxy503, edge.Health{State: edge.Up, Error: noPods}},
			{kubeProxy503, edge.Health{State: edge.Down, Error: noPods}},
		} {
			s.says(probe.Addr, step.answer)
			if step.answer == "" {
				s.set(probe, refuse)
			}
			for n := len(s.dials(probe, time.Time{})); len(s.dials(probe, time.Time{})) == n; {
				wait(10 * time.Millisecond)
			}
			if got := timeless(p.Snapshot()[probe]); got != step.want {
				t.Errorf("step %d: health = %+v, want %+v", i, got, step.want)
			}
			if !changed(p) {
				t.Errorf("step %d: Changed was not signalled", i)
			}
		}
	})
}

// What connects does so only if there is a doubt; what asks a question asks it
// each time.
func TestHealthCheckNodePortWithAnotherCheck(t *testing.T) {
	for kind, want := range map[edge.CheckType]int{edge.CheckTCP: 1, edge.CheckHTTP: 10} {
		inBubble(t, func(t *testing.T, p *Prober, s *site) {
			probe := ordinary(1)
			probe.Kind, probe.Through, probe.Type = edge.ProbeHealthCheckNodePort, ordinary(2).Addr, kind
			s.says(probe.Addr, fmt.Sprintf(kubeProxy200, "1"))
			s.says(probe.Through, "HTTP/1.1 204 No Content\r\n\r\n")
			p.Apply([]edge.Probe{probe})
			for len(s.dials(probe, time.Time{})) < 10 {
				wait(10 * time.Millisecond)
			}
			at := probe
			at.Addr = probe.Through
			if n := len(s.dials(at, time.Time{})); n != want {
				t.Errorf("%s: in 10 probes the node port was asked %d times, want %d", kind, n, want)
			}
			s.says(probe.Through, "HTTP/1.1 500 Oops\r\n\r\n")
			p.Suspect(probe.Through)
			wait(time.Second)
			if h := p.Snapshot()[probe]; (h.State == edge.Down) != (kind == edge.CheckHTTP) {
				t.Errorf("%s: the node port answers 500, and the backend is %+v", kind, h)
			}
		})
	}
}
