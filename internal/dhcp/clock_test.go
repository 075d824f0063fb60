package dhcp

import (
	"log/slog"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// A machine without a battery for its clock begins in 1970, until it has heard
// what time it is. Nobody loses an address by that.
func TestLeasesOutliveAClockThatIsSet(t *testing.T) {
	for name, at := range map[string]time.Time{"forward": time.Unix(0, 0).UTC(), "back": begin.AddDate(10, 0, 0)} {
		t.Run(name, func(t *testing.T) {
			p := newPlay(t, site(noProbe))
			p.book = NewBook([]edge.Lease{{Zone: "cluster", Addr: addr("10.0.0.103"), MAC: "02:00:00:00:00:03", Begun: begin, Expires: begin.Add(2 * time.Hour)}})
			p.now = at
			p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.100")
			p.now = begin
			changes := p.book.ClockSet(begin.Sub(at))
			if len(changes) != 1 || changes[0].Addr != addr("10.0.0.100") || !changes[0].Expires.Equal(begin.Add(12*time.Hour)) || !changes[0].Begun.Equal(begin) {
				t.Errorf("kept of that: %v", changes)
			}
			p.do("wait 11h")
			if got := p.do("leases"); got != "10.0.0.100 1" {
				t.Errorf("after 11 hours there are: %s", got)
			}
			if got := p.do("2 REQUEST server=10.0.0.1 requested=10.0.0.100"); got != "NAK (address is another's) to all" {
				t.Errorf("somebody else: %s", got)
			}
			p.do("wait 2h")
			if got := p.do("leases"); got != "" {
				t.Errorf("after 13 hours there are: %s", got)
			}
		})
	}
}

type ready struct{ kept []edge.Lease }

func (r *ready) Commit(changes []edge.Lease, done func(error)) {
	r.kept = append(r.kept, changes...)
	done(nil)
}

func TestTheServerSeesThatTheClockIsSet(t *testing.T) {
	journal := &ready{}
	s := NewServer(slog.New(slog.DiscardHandler), nil, journal, func() {})
	p := newPlay(t, site(noProbe))
	p.book, p.now = s.book, s.begun
	p.do("1 REQUEST server=10.0.0.1 requested=10.0.0.100")
	until := s.book.Leases(s.begun)[0].Expires
	for _, step := range []struct{ ahead, want time.Duration }{{0, 0}, {time.Hour, time.Hour}, {time.Hour, time.Hour}, {-time.Hour, -time.Hour}, {-time.Hour + time.Millisecond, -time.Hour}} {
		s.lookAtClock(s.begun.Round(0).Add(time.Minute+step.ahead), time.Minute)
		if got := s.book.Leases(time.Time{})[0].Expires.Sub(until); got != step.want {
			t.Errorf("%s ahead: it ends %s later", step.ahead, got)
		}
	}
	if len(journal.kept) != 2 {
		t.Errorf("kept: %v", journal.kept)
	}
}
