package dns

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	// Who asks for what is kept, but is over its time, is answered from it when
	// nobody else has answered by then (RFC 8767 §5).
	staleAnswerAfter = 1800 * time.Millisecond
	// And nobody is asked again for so long, unless somebody has answered anything.
	staleRetryAfter = 30 * time.Second
	// Questions that wait for upstreams at a time, and answers that are awaited.
	mostWaiting = 4096
	mostAsked   = 1024
	// And of one client: upstreams that take their time over the names that one of
	// them asks for leave room for those of others.
	mostWaitingPerClient = mostAsked / 4
)

var errTooMany = errors.New("too many questions wait for upstreams")

// fresh returns what is kept for a question if it may be given as it is.
func (s *Server) fresh(v *view, q *query, now time.Duration) *packed {
	p := s.cache.get(q.cacheKey(), now)
	if p == nil || p.view != v || p.pool != nil && q.flags&bitRD == 0 {
		return nil
	}
	if p.lasting || now < p.expires {
		return p
	}
	return nil
}

// local answers without asking anybody, or says who is to be asked, and what.
func (s *Server) local(v *view, q *query, now time.Duration) (p *packed, rcode int, reply Reply) {
	name := q.name()
	reply = v.table.Answer(name, q.qtype)
	if reply.Asks {
		switch {
		case q.flags&bitRD == 0:
			return nil, dns.RcodeRefused, reply // what others have asked is nobody's business
		case q.qtype == dns.TypeANY:
			m := message(q, name)
			m.Answer = []dns.RR{minimalAny(name, v.table.ttl)}
			return s.keep(v, q, m, now, now+time.Hour), 0, Reply{}
		}
		if p := s.cache.get(q.cacheKey(), now); p != nil && p.pool == v.poolOf(reply.Ask) && len(reply.Answer) == 0 && !p.aliased && now < p.expires {
			// The names have changed, and not how this is answered.
			again := p.with(v)
			s.cache.put(q.cacheKey(), again, now)
			return again, 0, Reply{}
		}
		return nil, 0, reply
	}
	m := message(q, name)
	m.Rcode, m.Authoritative = reply.Rcode, reply.Authoritative
	m.Answer, m.Ns, m.Extra = reply.Answer, reply.Authority, reply.Extra
	p = s.keep(v, q, m, now, now)
	if p == nil {
		return nil, dns.RcodeServerFailure, Reply{}
	}
	return p, 0, Reply{}
}

func message(q *query, name string) *dns.Msg {
	m := new(dns.Msg)
	m.Response, m.RecursionAvailable = true, true
	m.Question = []dns.Question{{Name: name + ".", Qtype: q.qtype, Qclass: dns.ClassINET}}
	return m
}

// keep packs what needs nobody else, and keeps it for as long as the names are those.
func (s *Server) keep(v *view, q *query, m *dns.Msg, now, expires time.Duration) *packed {
	p, err := pack(m)
	if err != nil {
		s.log.Debug("answer not sent", "name", m.Question[0].Name, "err", err)
		return nil
	}
	p.view, p.stored, p.expires, p.lasting = v, now, expires, true
	s.cache.put(q.cacheKey(), p, now)
	return p
}

// resolve answers by asking others, or with what is kept though it is old. It
// returns nil if the question is to be dropped. Who asks the same meanwhile
// waits for the same answer.
func (s *Server) resolve(ctx context.Context, v *view, q *query, reply Reply) *packed {
	now := s.now()
	pool := v.poolOf(reply.Ask)
	old := s.cache.get(q.cacheKey(), now)
	if old != nil && (old.gone(now) || old.failed || old.pool != pool || old.view != v && (old.aliased || len(reply.Answer) > 0)) {
		old = nil
	}
	if old != nil && now < old.retry() && pool.answered.Load() <= old.failedAt.Load() {
		return old
	}
	f := s.flights.join(q.cacheKey(), pool, func() *packed {
		asked := *q // the caller's is its own
		return s.ask(ctx, v, &asked, reply, pool, old)
	})
	if old == nil {
		select {
		case <-f.done:
			return f.answer
		case <-ctx.Done():
			return nil
		}
	}
	patience := time.NewTimer(staleAnswerAfter)
	defer patience.Stop()
	select {
	case <-f.done:
		return f.answer
	case <-patience.C:
		return old
	case <-ctx.Done():
		return nil
	}
}

// with is the same answer, by the names of another view.
func (p *packed) with(v *view) *packed {
	return &packed{
		wire: p.wire, ttls: p.ttls, nameEnd: p.nameEnd, view: v, pool: p.pool,
		stored: p.stored, expires: p.expires, lasting: p.lasting, ede: p.ede, failed: p.failed,
	}
}

// retry is when to ask again, after it failed.
func (p *packed) retry() time.Duration {
	if at := p.failedAt.Load(); at > 0 {
		return time.Duration(at) + staleRetryAfter
	}
	return 0
}

// ask asks the upstreams, and keeps what they say.
func (s *Server) ask(ctx context.Context, v *view, q *query, reply Reply, from *pool, old *packed) *packed {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return s.failure(v, q, from, old, errTooMany)
	}
	wire := q.wireName()
	if len(reply.Answer) > 0 { // an alias of ours leads outside
		wire = wireOf(reply.Ask)
		if wire == nil {
			return s.failure(v, q, from, old, errNoMatch)
		}
	}
	m, u, err := from.ask(ctx, wire, q.qtype, q.do, q.flags&bitCD != 0)
	if err != nil {
		return s.failure(v, q, from, old, err)
	}
	now := s.now()
	from.answered.Store(int64(now))
	if !says(m) {
		if old != nil {
			return s.failure(v, q, from, old, errServer)
		}
		return s.refused(v, q, from, now, m.Rcode)
	}
	ttl := clean(m, reply.Ask, q.qtype, q.do)
	held := !from.trusts && !v.exempt(q.name()) && holdBack(m)
	m.Rcode = min(m.Rcode, dns.RcodeNameError)
	name := q.name()
	out := message(q, name)
	out.Rcode = m.Rcode
	// Nobody here has looked at signatures: what an upstream says of them is as
	// good as the way to it.
	out.AuthenticatedData = m.AuthenticatedData && u.trusted() && len(reply.Answer) == 0 && !held
	out.Answer, out.Ns = append(slices.Clip(reply.Answer), m.Answer...), m.Ns
	for _, rr := range reply.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	p, err := pack(out)
	if err != nil {
		return s.failure(v, q, from, old, err)
	}
	p.view, p.pool, p.stored, p.expires, p.aliased = v, from, now, now+ttl, len(reply.Answer) > 0
	if held {
		v.counters.rebinding.Add(1)
		p.ede = edeFiltered
	}
	if ttl > 0 {
		s.cache.put(q.cacheKey(), p, now)
	} else {
		p.expires = now + time.Second // it is not stale for those who have waited
	}
	return p
}

var errServer = errors.New("the server failed")

// failure is the answer when there is none.
func (s *Server) failure(v *view, q *query, from *pool, old *packed, err error) *packed {
	now := s.now()
	if old != nil {
		old.failedAt.Store(int64(now))
		return old
	}
	s.log.Debug("no answer", "name", q.name(), "type", dns.TypeToString[q.qtype], "err", err)
	if errors.Is(err, errTooMany) {
		return nil
	}
	return s.refused(v, q, from, now, dns.RcodeServerFailure)
}

func (s *Server) refused(v *view, q *query, from *pool, now time.Duration, rcode int) *packed {
	p := failed(v, q, from, now, rcode)
	if p != nil {
		s.cache.put(q.cacheKey(), p, now)
	}
	return p
}

func failed(v *view, q *query, from *pool, now time.Duration, rcode int) *packed {
	m := message(q, q.name())
	m.Rcode = dns.RcodeServerFailure // whatever it is to them: it is not this server that refuses
	if rcode == dns.RcodeNotImplemented {
		m.Rcode = rcode
	}
	p, err := pack(m)
	if err != nil {
		return nil
	}
	p.view, p.pool, p.stored, p.expires, p.failed, p.ede = v, from, now, now+failureTTL, true, edeNoReachable
	return p
}

// wireOf is a name as it is in a message.
func wireOf(name string) []byte {
	buf := make([]byte, maxName)
	n, err := dns.PackDomainName(name+".", buf, 0, nil, false)
	if err != nil {
		return nil
	}
	return buf[:n]
}
