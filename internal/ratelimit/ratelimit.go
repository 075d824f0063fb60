// Package ratelimit owns how often each client may come: a token bucket for
// each, and bans that expire. It has no clock and no goroutine, and forgets by
// itself. One Limiter stands for one frontend, whatever number of loops serve it:
//
//	switch limiter.Allow(client, ratelimit.Rate{N: 100, Per: 10 * time.Second}, time.Hour, now) {
//	case ratelimit.OK:
//	case ratelimit.Limited, ratelimit.Banned: // turn it away
//	}
package ratelimit

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Rate is N in a time. It is no limit unless both are positive.
type Rate struct {
	N   int
	Per time.Duration
}

// Verdict is what becomes of a client.
type Verdict uint8

// A client is Limited when its bucket is empty, which may have it banned: then
// it is Banned from the next time on.
const (
	OK Verdict = iota
	Limited
	Banned
)

// Ban is a client that is turned away, and until when.
type Ban struct {
	Client netip.Addr
	Until  time.Duration
}

const (
	shards   = 64
	perShard = 1024 // clients
	// MaxClients is how many clients a Limiter remembers.
	MaxClients = shards * perShard
	maxBans    = 100 // that Bans names
	sweep      = 8   // clients looked at for one new client
)

// Limiter knows the clients that have come lately.
type Limiter struct {
	seed   maphash.Seed
	shards [shards]shard
}

// New makes a Limiter that knows nobody.
func New() *Limiter {
	return &Limiter{seed: maphash.MakeSeed()}
}

// Allow is called when a client comes. now is the time since any moment that
// stays the same.
func (l *Limiter) Allow(client netip.Addr, rate Rate, ban, now time.Duration) Verdict {
	if rate.N <= 0 || rate.Per <= 0 {
		return OK
	}
	client = client.Unmap()
	s := &l.shards[maphash.Comparable(l.seed, client)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allow(client, rate, ban, now)
}

type shard struct {
	mu      sync.Mutex
	clients map[netip.Addr]*bucket
}

type bucket struct {
	used  int
	rem   time.Duration
	last  time.Duration
	until time.Duration
}

func (s *shard) allow(client netip.Addr, rate Rate, ban, now time.Duration) Verdict {
	b := s.clients[client]
	if b == nil {
		b = &bucket{last: now}
		if s.clients == nil {
			s.clients = map[netip.Addr]*bucket{}
		}
		s.clients[client] = b
	}
	if b.until > now {
		return Banned
	}
	if elapsed := now - b.last; elapsed > 0 {
		b.last = now
		if elapsed >= rate.Per {
			b.used, b.rem = 0, 0
		} else {
			hi, lo := bits.Mul64(uint64(elapsed), uint64(rate.N))
			lo, carry := bits.Add64(lo, uint64(min(b.rem, rate.Per-1)), 0)
			k, rem := bits.Div64(hi+carry, lo, uint64(rate.Per))
			b.used, b.rem = b.used-int(k), time.Duration(rem)
			if b.used <= 0 {
				b.used, b.rem = 0, 0
			}
		}
	}
	b.used = min(b.used, rate.N)
	if b.used == rate.N {
		b.until = now + ban
		return Limited
	}
	b.used++
	return OK
}

// Bans counts the clients that are banned now, and names those whose bans end
// first, 100 at most, in this order.
func (l *Limiter) Bans(now time.Duration) (n int, first []Ban) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for client, b := range s.clients {
			if b.until > now {
				first = append(first, Ban{client, b.until})
			}
		}
		s.mu.Unlock()
	}
	n = len(first)
	slices.SortFunc(first, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(a.Until, b.Until), a.Client.Compare(b.Client))
	})
	return n, first[:min(n, maxBans)]
}
