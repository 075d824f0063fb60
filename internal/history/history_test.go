package history

import (
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

var began = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// site is a frontend with two backends, which is noted again and again.
type site struct {
	*History
	now time.Time
	row status.Frontend
}

func newSite() *site {
	s := &site{History: New(), now: began}
	s.row = status.Frontend{
		Name: "web", Zone: "home", Listen: "@eth1:80", Protocol: edge.TCP, DataPlane: edge.DataPlaneProxy,
		Backends: []status.Backend{{Addr: "10.0.0.1:80", Share: 0.5}, {Addr: "10.0.0.2:80", Share: 0.5}},
	}
	s.note()
	return s
}

// note is what the daemon does at each step.
func (s *site) note() { s.Note(s.now, []status.Frontend{s.row}) }

// step is Every, in which that many connections come to each backend.
func (s *site) step(connections ...uint64) {
	s.now = s.now.Add(Every)
	for i, n := range connections {
		s.row.Backends[i].Total += n
		s.row.Accepted += n
	}
	s.row.Received += 1000
	s.row.Sent += 4000
	s.note()
}

func (s *site) steps(n int, connections ...uint64) {
	for range n {
		s.step(connections...)
	}
}

// told is the row as it would be shown some time after the last Note.
func (s *site) told(later time.Duration) status.Frontend {
	row := s.row
	row.Backends = append([]status.Backend{}, s.row.Backends...)
	rows := []status.Frontend{row}
	s.Fill(s.now.Add(later), rows)
	return rows[0]
}

func wantRates(t *testing.T, got *status.Rates, want status.Rates) {
	t.Helper()
	if got == nil || got.Over != want.Over || !near(got.Connections, want.Connections) || !near(got.Received, want.Received) || !near(got.Sent, want.Sent) {
		t.Errorf("rates %+v, want %+v", got, want)
	}
}

func wantGot(t *testing.T, b status.Backend, connections uint64, share, wanted float64, over time.Duration) {
	t.Helper()
	g := b.Got
	if g == nil || g.Connections != connections || !near(g.Share, share) || !near(g.Wanted, wanted) || time.Duration(g.Over) != over {
		t.Errorf("%s got %+v, want %d connections, share %.3f of %.3f, over %s", b.Addr, g, connections, share, wanted, over)
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 0.001 }

func TestNothingIsSaidBeforeItIsKnown(t *testing.T) {
	s := newSite()
	if row := s.told(Every / 4); row.Rates != nil || row.Backends[0].Rates != nil || row.Backends[0].Got != nil {
		t.Errorf("after half a second: %+v", row)
	}
	s.step(0, 0)
	row := s.told(0)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(2 * time.Second), Received: 500, Sent: 2000})
	if row.Backends[0].Got != nil {
		t.Errorf("of no connections it got %+v", row.Backends[0].Got)
	}
}

func TestRatesAreThoseOfTheLastSeconds(t *testing.T) {
	s := newSite()
	s.steps(100, 400, 0)
	s.steps(5, 6, 2)
	row := s.told(0)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(RatesOver), Connections: 4, Received: 500, Sent: 2000})
	wantRates(t, row.Backends[0].Rates, status.Rates{Over: status.Duration(RatesOver), Connections: 3})
	wantRates(t, row.Backends[1].Rates, status.Rates{Over: status.Duration(RatesOver), Connections: 1})

	// What is asked between two Notes has its own counters.
	s.row.Accepted += 11
	row = s.told(time.Second)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(RatesOver + time.Second), Connections: 51.0 / 11, Received: 5000.0 / 11, Sent: 20000.0 / 11})
	// If they are older than the last Note, nothing has come.
	s.row.Accepted -= 12
	row = s.told(0)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(RatesOver), Connections: 4, Received: 500, Sent: 2000})
}

func TestAPauseIsNotAveragedOver(t *testing.T) {
	s := newSite()
	s.steps(10, 100, 100)
	s.now = s.now.Add(time.Hour) // the machine slept
	s.step(2, 2)
	s.step(2, 2)
	row := s.told(0)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(Every), Connections: 2, Received: 500, Sent: 2000})
	wantGot(t, row.Backends[0], 4, 0.5, 0.5, 4*time.Minute+54*time.Second)
}

func TestCountersThatBeginAnewGoOn(t *testing.T) {
	s := newSite()
	s.steps(10, 2, 2)
	s.row.Accepted, s.row.Received, s.row.Sent = 0, 0, 0
	s.row.Backends[0].Total, s.row.Backends[1].Total = 0, 0
	s.step(2, 2)
	row := s.told(0)
	wantRates(t, row.Rates, status.Rates{Over: status.Duration(RatesOver), Connections: 2, Received: 500, Sent: 2000})
	wantGot(t, row.Backends[0], 22, 0.5, 0.5, 22*time.Second)
}

func TestTheOtherDataPlaneCountsOnItsOwn(t *testing.T) {
	s := newSite()
	s.steps(10, 2, 2)
	s.row.DataPlane = edge.DataPlaneNAT
	s.row.Accepted, s.row.Backends[0].Total, s.row.Received = 1e9, 1e9, 1e12
	if row := s.told(0); row.Rates != nil || row.Backends[0].Got != nil {
		t.Errorf("before it was noted there: %+v", row)
	}
	s.note()
	s.step(2, 2)
	row := s.told(0)
	if row.Rates == nil || row.Rates.Connections > 2 {
		t.Errorf("rates %+v, want at most 2 connections a second", row.Rates)
	}
	wantGot(t, row.Backends[0], 22, 0.5, 0.5, 22*time.Second)
}

func TestWantedIsWhatHeldWhileConnectionsCame(t *testing.T) {
	s := newSite()
	s.steps(10, 15, 15) // 300, half of them wanted
	s.row.Backends[0].Share, s.row.Backends[1].Share = 0.9, 0.1
	s.step(0, 0)
	s.steps(10, 9, 1) // 100
	row := s.told(0)
	wantGot(t, row.Backends[0], 240, 240.0/400, (150+90)/400.0, 42*time.Second)
	wantGot(t, row.Backends[1], 160, 160.0/400, (150+10)/400.0, 42*time.Second)
}

func TestSharesThatChangeBetweenTwoNotesCountHalf(t *testing.T) {
	s := newSite()
	s.row.Backends[0].Share, s.row.Backends[1].Share = 1, 0
	s.step(3, 1)
	wantGot(t, s.told(0).Backends[0], 3, 0.75, 0.75, Every)
}

func TestABackendIsMeasuredFromItsFirstMoment(t *testing.T) {
	s := newSite()
	s.steps(30, 5, 5)
	s.row.Backends = append([]status.Backend{{Addr: "10.0.0.0:80", Total: 7}}, s.row.Backends...)
	for i := range s.row.Backends {
		s.row.Backends[i].Share = 1.0 / 3
	}
	s.step(7, 1, 1) // its first moment: what came to it before is not known
	s.steps(10, 2, 2, 2)
	row := s.told(0)
	wantGot(t, row.Backends[0], 20, 1.0/3, 1.0/3, 20*time.Second)
	wantGot(t, row.Backends[1], 171, 171.0/362, (301+20.0)/2/362+20.0/362-19.0/2/362, 82*time.Second)
	// One that goes is forgotten; the others had what they had.
	s.row.Backends = s.row.Backends[1:]
	s.step(0, 0)
	if n := len(s.frontends[keyOf(&s.row)].backends); n != 2 {
		t.Errorf("%d backends are remembered", n)
	}
	wantGot(t, s.told(0).Backends[0], 171, 171.0/362, (301+20.0)/2/362+20.0/362-19.0/2/362, 84*time.Second)
}

func TestWhatIsOlderThanTheWindowIsForgotten(t *testing.T) {
	s := newSite()
	s.steps(150, 90, 10)
	s.steps(151, 5, 5)
	wantGot(t, s.told(0).Backends[0], 5*144, 0.5, 0.5, 4*time.Minute+47*time.Second)
}

func TestRowsThatAreGoneAreForgotten(t *testing.T) {
	s := newSite()
	s.step(1, 1)
	s.Note(s.now.Add(Every), nil)
	if row := s.told(Every); row.Rates != nil || len(s.frontends) != 0 {
		t.Errorf("%+v of %d", row.Rates, len(s.frontends))
	}
}

func TestWhatDrainsIsAnotherRow(t *testing.T) {
	s := newSite()
	left := s.row
	left.Draining, left.Accepted, left.Backends = true, 50, nil
	for range 5 {
		s.now = s.now.Add(Every)
		s.row.Accepted += 20
		left.Received += 200
		s.Note(s.now, []status.Frontend{s.row, left})
	}
	rows := []status.Frontend{s.row, left}
	s.Fill(s.now, rows)
	if rows[0].Rates == nil || !near(rows[0].Rates.Connections, 10) || rows[1].Rates == nil || rows[1].Rates.Connections != 0 || !near(rows[1].Rates.Received, 100) {
		t.Errorf("%+v and %+v", rows[0].Rates, rows[1].Rates)
	}
}

// many are rows of a large site.
func many(n int) []status.Frontend {
	rows := make([]status.Frontend, n)
	for i := range rows {
		rows[i] = status.Frontend{Name: fmt.Sprintf("ns/web-%d:80", i), Zone: "home", Listen: fmt.Sprintf("@eth1:%d", i), Protocol: edge.TCP}
		rows[i].Backends = []status.Backend{{Addr: fmt.Sprintf("10.0.%d.%d:80", i/256, i%256), Share: 1}}
	}
	return rows
}

func TestTenThousandBackendsAreRememberedInTwentyMegabytes(t *testing.T) {
	rows := many(10_000)
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	h := New()
	for i := range 200 {
		h.Note(began.Add(time.Duration(i)*Every), rows)
	}
	grown := int64(used()) - int64(before)
	runtime.KeepAlive(h)
	runtime.KeepAlive(rows)
	t.Logf("%d bytes for each frontend with one backend", grown/10_000)
	if grown > 20e6 || grown < 1e6 {
		t.Errorf("%d bytes for 10000 backends", grown)
	}
}

func BenchmarkNote(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rows, h, now := many(n), New(), began
			for b.Loop() {
				now = now.Add(Every)
				h.Note(now, rows)
			}
		})
	}
}

// While a backend is not noted yet, those that are have its part as well.
func TestWantedIsAllOfWhatIsCounted(t *testing.T) {
	s := newSite()
	s.row.Backends[0].Share, s.row.Backends[1].Share = 0.1, 0.3
	s.step(0, 0)
	s.steps(5, 2, 6)
	wantGot(t, s.told(0).Backends[0], 10, 0.25, 0.25, 12*time.Second)
}

// With data plane nat a client of one IP family gets a backend of that family.
func TestEachIPFamilyIsAWholeForTheKernel(t *testing.T) {
	s := newSite()
	s.row.DataPlane = edge.DataPlaneNAT
	s.row.Backends = []status.Backend{
		{Addr: "10.0.0.1:80", Share: 0.5}, {Addr: "10.0.0.2:80", Share: 0.5}, {Addr: "[fd00::1]:80", Share: 0.5}, {Addr: "[fd00::2]:80", Share: 0.5},
	}
	s.note()
	s.steps(10, 5, 5, 0, 0)
	for i, b := range s.told(0).Backends {
		switch got := b.Got; {
		case i < 2 && (got == nil || got.Of != 100 || got.Share != 0.5 || math.Abs(got.Wanted-0.5) > 1e-6):
			t.Errorf("%s got %+v, want half of 100, as wanted", b.Addr, got)
		case i >= 2 && got != nil:
			t.Errorf("%s got %+v, though nobody came by IPv6", b.Addr, got)
		}
	}
}
