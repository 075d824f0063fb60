package dns

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	cacheShards = 64
	// What an answer takes on average at most; nearly all take less than half of it.
	// Who asks for nothing but large ones has fewer of them kept.
	averageSize = 1 << 10
	leastBytes  = 1 << 16 // of a shard: one answer, whatever its size
)

// staleTime is how long an answer is kept beyond its time, to be given while
// nobody can be asked (RFC 8767 §5).
const staleTime = 24 * time.Hour

// cache keeps packed answers, by what was asked and by whose zone. Two zones
// share none: how fast one is answered would tell it what the other asks.
type cache struct {
	seed   maphash.Seed // nobody can choose names that meet in one shard
	most   atomic.Int64 // in each shard
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu      sync.RWMutex
	entries map[string]*cached
	bytes   int // of their answers
}

type cached struct {
	answer *packed
	used   atomic.Int64 // seconds on the clock of the server
}

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

// resize has it keep size answers at most, by and by.
func (c *cache) resize(size int) {
	c.most.Store(int64((size + cacheShards - 1) / cacheShards))
	if size == 0 {
		c.clear()
	}
}

func (c *cache) clear() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.entries, s.bytes = nil, 0
		s.mu.Unlock()
	}
}

func (c *cache) shard(key []byte) *cacheShard {
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

// get returns what is kept, though it may be over its time.
func (c *cache) get(key []byte, now time.Duration) *packed {
	s := c.shard(key)
	s.mu.RLock()
	e := s.entries[string(key)]
	s.mu.RUnlock()
	if e == nil {
		return nil
	}
	if seconds := int64(now / time.Second); e.used.Load() != seconds {
		e.used.Store(seconds)
	}
	return e.answer
}

// put keeps an answer. Where there is no room, the one of a few goes that was
// asked for the longest time ago, or is too old to be given.
func (c *cache) put(key []byte, p *packed, now time.Duration) {
	most := int(c.most.Load())
	if most == 0 {
		return
	}
	s := c.shard(key)
	e := &cached{answer: p}
	e.used.Store(int64(now / time.Second))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries == nil {
		s.entries = map[string]*cached{}
	}
	s.drop(string(key))
	room := max(most*averageSize, leastBytes) - len(p.wire)
	for len(s.entries) >= most || len(s.entries) > 0 && s.bytes > room {
		s.evict(now)
	}
	s.entries[string(key)] = e
	s.bytes += len(p.wire)
}

func (s *cacheShard) drop(key string) {
	if e := s.entries[key]; e != nil {
		s.bytes -= len(e.answer.wire)
		delete(s.entries, key)
	}
}

// evict takes one away. A map is gone through from anywhere.
func (s *cacheShard) evict(now time.Duration) {
	const looks = 8
	worst, oldest, n := "", int64(0), 0
	for key, e := range s.entries {
		if n++; n > looks {
			break
		}
		if e.answer.gone(now) {
			worst = key
			break
		}
		if used := e.used.Load(); n == 1 || used < oldest {
			worst, oldest = key, used
		}
	}
	s.drop(worst)
}

// gone says that an answer cannot be given any more, however old it may be.
func (p *packed) gone(now time.Duration) bool {
	return now >= p.expires+staleTime || p.failed && now >= p.expires
}

func (c *cache) len() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}
