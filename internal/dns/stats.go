package dns

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Stats are what was asked and answered.
type Stats struct {
	Zones     []ZoneStats // sorted by name
	Upstreams []UpstreamStats
	Cached    int
}

// ZoneStats are those of one zone.
type ZoneStats struct {
	Zone                                          string
	Names                                         int
	UDP, TCP                                      uint64
	Answers                                       [16]uint64 // by code
	Own, CacheHits, Forwarded, Limited, Rebinding uint64
}

// UpstreamStats are those of one upstream.
type UpstreamStats struct {
	Server          string
	Up              bool
	Queries, Failed uint64
	Error           string // the last one; empty: it is up
}

// tally is counted by one loop, and added to the counters now and then.
type tally struct {
	udp, tcp, own, hits, forwarded, limited uint64
	answers                                 [16]uint64
}

func (t *tally) hit(p *packed) {
	if p.pool == nil {
		t.own++
	} else {
		t.hits++
	}
}

type counters struct {
	udp, tcp, own, hits, forwarded, limited, rebinding atomic.Uint64
	answers                                            [16]atomic.Uint64
}

// add adds a tally, and clears it.
func (c *counters) add(t *tally) {
	for _, one := range []struct {
		to *atomic.Uint64
		n  uint64
	}{{&c.udp, t.udp}, {&c.tcp, t.tcp}, {&c.own, t.own}, {&c.hits, t.hits}, {&c.forwarded, t.forwarded}, {&c.limited, t.limited}} {
		if one.n > 0 {
			one.to.Add(one.n)
		}
	}
	for i, n := range t.answers {
		if n > 0 {
			c.answers[i].Add(n)
		}
	}
	*t = tally{}
}

// loopShown is how long it is said of an upstream that it asks us back.
const loopShown = 10 * time.Minute

func (u *upstream) looped() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.loops = time.Now()
}

// Loop says that an upstream asks this server what this server asks it.
const Loop = "it asks this server what this server asks it"

// Stats returns what was asked and answered.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stats{Cached: s.cache.len()}
	for name, z := range s.zones {
		c := z.counters
		one := ZoneStats{
			Zone: name, UDP: c.udp.Load(), TCP: c.tcp.Load(), Own: c.own.Load(), CacheHits: c.hits.Load(), Forwarded: c.forwarded.Load(),
			Limited: c.limited.Load(), Rebinding: c.rebinding.Load(),
		}
		if v := z.view.Load(); v != nil {
			one.Names = v.names()
		}
		for i := range c.answers {
			one.Answers[i] = c.answers[i].Load()
		}
		out.Zones = append(out.Zones, one)
	}
	slices.SortFunc(out.Zones, func(a, b ZoneStats) int { return cmp.Compare(a.Zone, b.Zone) })
	for _, u := range s.upstreams {
		u.mu.Lock()
		one := UpstreamStats{Server: u.String(), Up: u.misses < downAfter, Queries: u.queries.Load(), Failed: u.failed.Load()}
		if u.misses > 0 {
			one.Error = u.lastError
		}
		if !u.loops.IsZero() && time.Since(u.loops) < loopShown {
			one.Error = Loop
		}
		u.mu.Unlock()
		out.Upstreams = append(out.Upstreams, one)
	}
	slices.SortFunc(out.Upstreams, func(a, b UpstreamStats) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// names counts the site's names that a zone knows.
func (v *view) names() int {
	n := 0
	for i, r := range v.records.Records.Sets {
		if i == 0 || r.Name != v.records.Records.Sets[i-1].Name {
			n++
		}
	}
	return n
}

// Rcode is what a code of an answer is called: "NXDOMAIN".
func Rcode(code int) string { return dns.RcodeToString[code] }
