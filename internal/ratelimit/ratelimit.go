// Package ratelimit owns how often each client may come: a token bucket for
// each, and bans that expire. It has no clock and no goroutine, and forgets by
// itself. A Limiter stands for one door, whatever number of loops serve it:
//
//	switch limiter.Allow(client, ratelimit.Rate{N: 100, Per: 10 * time.Second}, time.Hour, now) {
//	case ratelimit.OK:
//	case ratelimit.Limited, ratelimit.Banned: // turn it away
//	}
//
// Whoever has many addresses has many buckets; what stands for a client (the
// /64 of an IPv6 address, say) is up to the caller.
package ratelimit

import (
	"cmp"
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Rate is N in a time, all at once or one by one. It is no limit unless both
// are positive.
type Rate struct {
	N   int
	Per time.Duration
}

// Verdict is what becomes of a client.
type Verdict uint8

// A client is Limited when it finds its bucket empty. That may have it banned,
// and then it is Banned from the next time on.
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

	// MaxClients is how many clients a Limiter remembers at most, which takes
	// 12 MB. Chance fills some shards before others, so that of nearly as many
	// some are forgotten already.
	MaxClients = shards * perShard

	// maxBans is how many Bans names.
	maxBans = 100
	// looks is how many clients are looked at, for some to forget, when there is
	// a new one and no room for it.
	looks = 8
)

// Limiter knows the clients that have come lately.
type Limiter struct {
	seed   maphash.Seed // nobody can choose addresses that meet in one shard
	shards [shards]shard
}

// New makes a Limiter that knows nobody.
func New() *Limiter {
	l := &Limiter{seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].free, l.shards[i].banned = list{none, none}, list{none, none}
	}
	return l
}

// Allow is called when a client comes. now is the time since any moment, the
// same for all calls; that of one loop may be a little behind that of another.
//
// A bucket holds rate.N tokens and starts full; each time takes one, and they
// come back at rate.N in rate.Per. If ban is not 0, who finds it empty is banned
// until now+ban, and does not prolong that by trying further. The zone of an
// address makes no difference.
//
// Rate and ban may differ from one call to the next: the tokens that a client
// has used stay used, as far as the bucket now holds as many, and a ban ends at
// now+ban at the latest, which with 0 lifts it.
//
// When there is no room for another client, one that has its tokens back is
// forgotten, which changes nothing for it; if there is none at hand, the one
// that has not come for the longest time; and only if all are banned, the one
// that was banned first.
func (l *Limiter) Allow(client netip.Addr, rate Rate, ban, now time.Duration) Verdict {
	if rate.N <= 0 || rate.Per <= 0 {
		return OK
	}
	k := key(client.As16())
	s := &l.shards[maphash.Bytes(l.seed, k[:])%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allow(k, rate, ban, now)
}

// Bans counts the clients that are banned now, and names those whose bans end
// first, 100 at most, in this order.
func (l *Limiter) Bans(now time.Duration) (n int, first []Ban) {
	latest := time.Duration(math.MaxInt64) // that may still be named
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for at := s.banned.newest; at != none; at = s.buckets[at].older {
			b := &s.buckets[at]
			if b.until <= now {
				continue
			}
			n++
			if b.until <= latest {
				first = append(first, Ban{netip.AddrFrom16(b.client).Unmap(), b.until})
			}
		}
		s.mu.Unlock()
		if len(first) > maxBans {
			first = earliest(first)
			latest = first[maxBans-1].Until
		}
	}
	return n, earliest(first)
}

func earliest(bans []Ban) []Ban {
	slices.SortFunc(bans, func(a, b Ban) int {
		return cmp.Or(cmp.Compare(a.Until, b.Until), a.Client.Compare(b.Client))
	})
	return bans[:min(len(bans), maxBans)]
}

// key is an address, an IPv4 one as its IPv4-mapped one. A netip.Addr has a
// pointer, which the garbage collector would follow for every client.
type key [16]byte

// shard has some of the clients, each in one of two lists: free ones, the one
// that came last first, and banned ones, the one banned last first.
type shard struct {
	mu           sync.Mutex
	index        map[key]int32 // into buckets
	buckets      []bucket
	free, banned list
	hand         int // where to look next for someone to forget
}

// bucket is what is remembered of a client. It says what is missing, so that one
// that is not remembered is as one that has not come.
type bucket struct {
	client       key
	used         int           // tokens, the one that is coming back included
	back         time.Duration // how much of that one is, in parts of 1/rate.Per
	per          time.Duration // the rate.Per of these parts
	fullIn       time.Duration // after last
	last         time.Duration // when it was last counted
	until        time.Duration // of the ban
	isBanned     bool          // it is in that list
	newer, older int32
}

func (s *shard) allow(client key, rate Rate, ban, now time.Duration) Verdict {
	at, known := s.index[client]
	if !known {
		at = s.room(now)
		s.index[client] = at
		s.buckets[at].client, s.buckets[at].last = client, now
		s.free.push(s.buckets, at)
	}
	b := &s.buckets[at]
	if b.isBanned {
		b.until = min(b.until, now+ban)
		if now < b.until {
			return Banned
		}
	}
	b.refill(rate, now)
	verdict := OK
	if b.used < rate.N {
		b.used++
	} else {
		verdict = Limited
	}
	b.fullIn = b.timeToFull(rate)
	s.listOf(b).remove(s.buckets, at)
	b.isBanned = verdict == Limited && ban > 0
	if b.isBanned {
		b.until = now + ban
	}
	s.listOf(b).push(s.buckets, at)
	return verdict
}

func (s *shard) listOf(b *bucket) *list {
	if b.isBanned {
		return &s.banned
	}
	return &s.free
}

// refill counts what has come back since the last time, to the last part of a
// token: who comes often is not to lose what is rounded away each time.
func (b *bucket) refill(rate Rate, now time.Duration) {
	if b.per != rate.Per {
		if b.per > 0 {
			hi, lo := bits.Mul64(uint64(b.back), uint64(rate.Per))
			back, _ := bits.Div64(hi, lo, uint64(b.per)) // less than rate.Per, since b.back is less than b.per
			b.back = time.Duration(back)
		}
		b.per = rate.Per
	}
	elapsed := now - b.last
	switch {
	case elapsed >= rate.Per:
		b.used, b.back, b.last = 0, 0, now
	case elapsed > 0:
		hi, lo := bits.Mul64(uint64(elapsed), uint64(rate.N))
		lo, carry := bits.Add64(lo, uint64(b.back), 0)
		tokens, back := bits.Div64(hi+carry, lo, uint64(rate.Per)) // rate.N tokens at most, since elapsed < rate.Per
		b.used, b.back, b.last = b.used-int(tokens), time.Duration(back), now
	}
	if b.used <= 0 {
		b.used, b.back = 0, 0
	}
	b.used = min(b.used, rate.N)
}

// timeToFull returns when all tokens will be back, rounded up.
func (b *bucket) timeToFull(rate Rate) time.Duration {
	hi, lo := bits.Mul64(uint64(b.used), uint64(rate.Per))
	lo, borrow := bits.Sub64(lo, uint64(b.back), 0)
	lo, carry := bits.Add64(lo, uint64(rate.N-1), 0)
	t, _ := bits.Div64(hi-borrow+carry, lo, uint64(rate.N)) // rate.Per at most, since used is rate.N at most
	return time.Duration(t)
}

// forgettable says that it makes no difference whether b is remembered.
func (b *bucket) forgettable(now time.Duration) bool {
	return now-b.last >= b.fullIn && (!b.isBanned || now >= b.until)
}

// room returns an empty bucket, which is in no list.
func (s *shard) room(now time.Duration) int32 {
	if s.index == nil {
		s.index = map[key]int32{}
	}
	if len(s.buckets) < perShard {
		s.buckets = append(s.buckets, bucket{})
		return int32(len(s.buckets) - 1)
	}
	// As long as one in eight can be forgotten at no loss, this finds one nearly
	// always; to find every one would take an order that costs more than it saves.
	for range looks {
		s.hand = (s.hand + 1) % perShard
		if s.buckets[s.hand].forgettable(now) {
			return s.forget(int32(s.hand))
		}
	}
	if s.free.oldest != none {
		return s.forget(s.free.oldest)
	}
	return s.forget(s.banned.oldest)
}

func (s *shard) forget(at int32) int32 {
	b := &s.buckets[at]
	s.listOf(b).remove(s.buckets, at)
	delete(s.index, b.client)
	*b = bucket{}
	return at
}

// list is a list of buckets, by index.
type list struct{ newest, oldest int32 }

const none = -1

func (l *list) push(buckets []bucket, at int32) {
	b := &buckets[at]
	b.newer, b.older = none, l.newest
	if b.older == none {
		l.oldest = at
	} else {
		buckets[b.older].newer = at
	}
	l.newest = at
}

func (l *list) remove(buckets []bucket, at int32) {
	b := &buckets[at]
	if b.newer == none {
		l.newest = b.older
	} else {
		buckets[b.newer].older = b.older
	}
	if b.older == none {
		l.oldest = b.newer
	} else {
		buckets[b.older].newer = b.newer
	}
}
