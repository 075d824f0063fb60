package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/ratelimit"
)

const (
	// A client sends four messages for a lease, and repeats them after seconds.
	clientMessages, clientTime = 20, 10 * time.Second
	// Relay agents and interfaces carry up to this much (RFC 2131 section 2 has no
	// limit; option 57 of clients has at most an Ethernet frame).
	longestMessage = 4096
	// Leases that nobody can get any more are dropped this often.
	forgetInterval = time.Hour
	// A clock that is set by less makes no difference to anybody.
	leastClockStep = time.Second
)

// What is counted beside types of messages.
const (
	Malformed = "MALFORMED" // is no DHCP message
	Limited   = "LIMITED"   // its client sends too many
	Unkept    = "UNKEPT"    // not answered: the lease could not be written
)

// Journal keeps leases; one without Expires is forgotten. done is called in the
// order of commits, and tells whether they are kept.
type Journal interface {
	Commit(changes []edge.Lease, done func(error))
}

// Server answers the machines of zones.
type Server struct {
	log     *slog.Logger
	journal Journal
	changed func() // leases have, or problems
	limiter *ratelimit.Limiter
	prober  *prober
	begun   time.Time

	mu     sync.Mutex
	ahead  time.Duration // of the clock, of where it would be had nobody set it since begun
	book   *Book
	zones  []Zone
	ports  map[string]*port // by interface
	failed map[string]error // why there is none
	wants  error            // why nobody can be looked for
	full   map[string]bool  // zones that have had no address left

	tally    sync.Mutex // nothing else is locked while it is
	messages map[string]map[string]uint64
	unkept   error // why leases are not written; nil: they are
}

// NewServer makes a server that has given these leases, and serves nobody.
func NewServer(log *slog.Logger, leases []edge.Lease, journal Journal, changed func()) *Server {
	return &Server{
		log: log, journal: journal, changed: changed, limiter: ratelimit.New(), prober: newProber(), begun: time.Now(),
		book: NewBook(leases), ports: map[string]*port{}, failed: map[string]error{},
		messages: map[string]map[string]uint64{}, full: map[string]bool{},
	}
}

// Apply serves these zones from now on, and says what is wrong. Twice the same
// changes nothing.
func (s *Server) Apply(zones []Zone) []edge.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zones = zones
	want := map[string]Device{}
	for _, z := range zones {
		for _, d := range z.Devices {
			want[d.Name] = d
		}
	}
	for name, p := range s.ports {
		if want[name].Index != p.device.Index {
			p.close()
			delete(s.ports, name)
		}
	}
	clear(s.failed)
	s.prober.keep(s.ports)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if s.ports[name] != nil {
			continue
		}
		p, err := openPort(want[name])
		if err != nil {
			s.failed[name] = err
			continue
		}
		s.ports[name] = p
		go s.hear(p, name)
	}
	return s.problemsLocked(time.Now())
}

// Close stops hearing. What was decided is with the Journal.
func (s *Server) Close() { s.Apply(nil) }

// Run tells of leases that have ended until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	forget := time.NewTicker(forgetInterval)
	defer forget.Stop()
	look := time.NewTicker(10 * time.Second)
	defer look.Stop()
	next := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-forget.C:
			s.mu.Lock()
			if changes := s.book.Forget(s.zones, time.Now()); len(changes) > 0 {
				s.journal.Commit(changes, func(error) {})
			}
			s.mu.Unlock()
		case now := <-look.C:
			if !next.IsZero() && !now.Before(next) {
				s.changed()
			}
			s.mu.Lock()
			s.lookAtClock(time.Now(), time.Since(s.begun))
			next = s.book.Next(now)
			s.mu.Unlock()
		}
	}
}

// hear answers what comes in on an interface until it is closed.
func (s *Server) hear(p *port, name string) {
	b := make([]byte, longestMessage)
	for {
		n, src, dst, err := p.receive(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // the interface is down, or away
			time.Sleep(10 * time.Millisecond)
			continue
		}
		message, err := dhcpv4.FromBytes(b[:n])
		s.mu.Lock()
		s.handle(p, Packet{Device: name, Src: src, Dst: dst, DHCPv4: message}, err)
		s.mu.Unlock()
	}
}

// lookAtClock has leases last for as long as was said though the clock was set.
// passed is since begun, which nobody sets. The lock is held.
func (s *Server) lookAtClock(now time.Time, passed time.Duration) {
	ahead := now.Round(0).Sub(s.begun.Round(0)) - passed
	by := ahead - s.ahead
	if by.Abs() < leastClockStep {
		return
	}
	s.ahead = ahead
	if changes := s.book.ClockSet(by); len(changes) > 0 {
		s.log.Info("clock set, leases last as long as was said", "by", by, "leases", len(changes))
		s.journal.Commit(changes, func(err error) { s.kept(err) })
		s.changed()
	}
}

// handle answers a message. The lock is held.
func (s *Server) handle(p *port, in Packet, err error) {
	s.lookAtClock(time.Now(), time.Since(s.begun))
	z := s.zoneOf(in.Device)
	if z == nil || s.ports[in.Device] != p {
		return
	}
	switch {
	case err != nil || in.OpCode != dhcpv4.OpcodeBootRequest || in.MessageType() == dhcpv4.MessageTypeNone:
		s.count(z.Name, Malformed)
		return
	case s.limiter.Allow(bucket(in), ratelimit.Rate{N: clientMessages, Per: clientTime}, 0, time.Since(s.begun)) != ratelimit.OK:
		s.count(z.Name, Limited)
		return
	}
	s.count(z.Name, in.MessageType().String())
	s.answer(p, z, in)
}

// bucket stands for a client; those that are the same behind a relay agent are.
func bucket(in Packet) netip.Addr {
	var b [16]byte
	copy(b[:], in.ClientHWAddr)
	if len(in.ClientHWAddr) == 0 {
		copy(b[:], in.Options.Get(dhcpv4.OptionClientIdentifier))
	}
	return netip.AddrFrom16(b)
}

func (s *Server) zoneOf(device string) *Zone {
	for i := range s.zones {
		if s.zones[i].device(device) != nil {
			return &s.zones[i]
		}
	}
	return nil
}

// answer decides on a message, and does what follows. The lock is held.
func (s *Server) answer(p *port, z *Zone, in Packet) {
	now := time.Now()
	rival := s.book.Rival(z.Name, now)
	r := s.book.Answer(z, in, now)
	if s.book.Rival(z.Name, now).Addr != rival.Addr {
		s.changed()
	}
	s.log.Debug("DHCP message", "zone", z.Name, "type", in.MessageType().String(), "mac", in.ClientHWAddr.String(), "not_answered", r.Why, "probe", r.Probe.IsValid())
	if r.Why == "no address is left" {
		if !s.full[z.Name] {
			s.changed()
		}
		s.full[z.Name] = true
	}
	switch {
	case r.Probe.IsValid():
		s.probe(p, in, r)
	case len(r.Changes) > 0:
		s.keep(p, z.Name, r)
	case r.Reply != nil:
		s.send(p, z.Name, r)
	}
}

// probe looks for somebody at an address, and answers then.
func (s *Server) probe(p *port, in Packet, r Result) {
	err := s.prober.look(r.Probe, p, r.Relayed, in.ClientHWAddr.String(), func(somebody string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		z := s.zoneOf(in.Device)
		if z == nil || s.ports[in.Device] != p {
			return // not served any more
		}
		if changes := s.book.Probed(z, r.Probe, somebody, time.Now()); len(changes) > 0 {
			s.log.Warn("address in use that was not given", "zone", z.Name, "address", r.Probe, "by", somebody)
			s.journal.Commit(changes, func(error) {})
			s.changed()
		}
		s.answer(p, z, in)
	})
	if (err == nil) != (s.wants == nil) {
		s.wants = err
		s.changed()
	}
}

// keep has changes written, and answers then. The lock is held.
func (s *Server) keep(p *port, zone string, r Result) {
	if r.News {
		s.changed()
	}
	s.journal.Commit(r.Changes, func(err error) {
		if s.kept(err); err != nil {
			s.count(zone, Unkept)
		} else if r.Reply != nil {
			s.send(p, zone, r)
		}
	})
}

// kept takes note of whether leases are written.
func (s *Server) kept(err error) {
	s.tally.Lock()
	news := (err == nil) != (s.unkept == nil)
	s.unkept = err
	s.tally.Unlock()
	if news {
		s.changed()
	}
}

// send answers.
func (s *Server) send(p *port, zone string, r Result) {
	if err := p.send(r.Reply, r.To); err != nil {
		s.log.Debug("DHCP answer not sent", "zone", zone, "to", r.To.Addr, "err", err)
		return
	}
	s.count(zone, r.Reply.MessageType().String())
}

func (s *Server) count(zone, what string) {
	s.tally.Lock()
	defer s.tally.Unlock()
	if s.messages[zone] == nil {
		s.messages[zone] = map[string]uint64{}
	}
	s.messages[zone][what]++
}

// problemsLocked are those of the moment. The lock is held.
func (s *Server) problemsLocked(now time.Time) []edge.Problem {
	var problems []edge.Problem
	leases := s.book.Leases(now)
	for i := range s.zones {
		z := &s.zones[i]
		add := func(what, remedy string) {
			problems = append(problems, edge.Problem{Pos: z.Pos, Path: "dhcp." + z.Name, What: what, Remedy: remedy})
		}
		for _, d := range z.Devices {
			if err := s.failed[d.Name]; err != nil {
				add(fmt.Sprintf("machines on %s are not answered: %v", d.Name, err), "it is tried again")
			}
		}
		if r := s.book.Rival(z.Name, now); r.Addr.IsValid() {
			add("another DHCP server answers there, "+r.Addr.String(), "stop one of the two, or machines get now this and now that; it is forgotten an hour after a machine has last chosen it")
		}
		if _, free := s.book.Usage(z, now); free > 0 {
			delete(s.full, z.Name)
		} else if s.full[z.Name] {
			add("no address is left for a machine that asks", "write a larger pool, or a shorter leaseTime")
		}
		for _, l := range leases {
			if _, ok := z.reserved[l.Addr]; ok && l.Declined {
				add(fmt.Sprintf("%s is reserved, and somebody has it who was not given it%s", l.Addr, by(l.MAC)), "find that machine, and have it ask for an address; until then the one that it is for gets another")
			}
		}
	}
	s.tally.Lock()
	unkept := s.unkept
	s.tally.Unlock()
	if unkept != nil {
		problems = append(problems, edge.Problem{Path: "stateDir", What: "leases cannot be written, so that nobody gets one: " + unkept.Error(), Remedy: "it is tried again with the next one"})
	}
	if s.wants != nil {
		problems = append(problems, edge.Problem{Path: "dhcp", What: "addresses are offered to nobody, since it cannot be seen whether somebody has them: " + s.wants.Error(), Remedy: "it takes CAP_NET_RAW and AF_PACKET; or write probe: false"})
	}
	return problems
}

func by(mac string) string {
	if mac == "" {
		return ""
	}
	return " (" + mac + ")"
}

// Leases are those that have not ended, sorted by address.
func (s *Server) Leases(now time.Time) []edge.Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.Leases(now)
}

// Status is what a zone has, and what has come and gone there.
type Status struct {
	Zone       string
	Size, Free int
	Messages   map[string]uint64
	Error      string
}

// Status of each zone, in their order.
func (s *Server) Status(now time.Time) []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Status
	for i := range s.zones {
		z := &s.zones[i]
		s.tally.Lock()
		st := Status{Zone: z.Name, Messages: maps.Clone(s.messages[z.Name])}
		s.tally.Unlock()
		st.Size, st.Free = s.book.Usage(z, now)
		for _, d := range z.Devices {
			if err := s.failed[d.Name]; err != nil {
				st.Error = fmt.Sprintf("machines on %s are not answered: %v", d.Name, err)
			}
		}
		if len(z.Devices) == 0 {
			st.Error = "no interface of the zone has an IPv4 address"
		}
		all = append(all, st)
	}
	return all
}
