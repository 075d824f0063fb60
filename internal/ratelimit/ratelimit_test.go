package ratelimit

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

func client(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(i))
	return netip.AddrFrom4(b)
}

// network is the i-th of many /64s.
func network(i int) netip.Addr {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	binary.BigEndian.PutUint32(b[4:], uint32(i))
	return netip.AddrFrom16(b)
}

func TestBucket(t *testing.T) {
	const s = time.Second
	type try struct {
		at   time.Duration
		want Verdict
	}
	for _, row := range []struct {
		name string
		rate Rate
		ban  time.Duration
		try  []try
	}{
		{"no rate is no limit", Rate{}, 0, []try{{0, OK}, {0, OK}, {0, OK}}},
		{"no time is no limit", Rate{N: 1}, s, []try{{0, OK}, {0, OK}}},
		{"all at once, then one by one", Rate{2, 10 * s}, 0, []try{{0, OK}, {0, OK}, {0, Limited}, {5*s - 1, Limited}, {5 * s, OK}, {5 * s, Limited}, {10 * s, OK}}},
		{"full again after the time", Rate{2, 10 * s}, 0, []try{{0, OK}, {0, OK}, {10 * s, OK}, {10 * s, OK}, {10 * s, Limited}}},
		{"no more than full", Rate{2, 10 * s}, 0, []try{{0, OK}, {1000 * s, OK}, {1000 * s, OK}, {1000 * s, Limited}}},
		{"thirds add up", Rate{3, s}, 0, []try{{0, OK}, {0, OK}, {0, OK}, {s / 3, Limited}, {s/3 + 1, OK}, {2 * s / 3, Limited}, {2*s/3 + 1, OK}, {s - 1, Limited}, {s, OK}}},
		{"a ban, which trying does not prolong", Rate{1, s}, 10 * s, []try{{0, OK}, {0, Limited}, {0, Banned}, {9 * s, Banned}, {10*s - 1, Banned}, {10 * s, OK}, {10 * s, Limited}, {20*s - 1, Banned}, {20 * s, OK}}},
		{"a ban that is shorter than what it takes to have a token", Rate{1, 10 * s}, s, []try{{0, OK}, {s, Limited}, {2*s - 1, Banned}, {2 * s, Limited}, {3 * s, Limited}, {4*s - 1, Banned}, {10 * s, OK}}},
		{"a clock that is behind", Rate{2, 10 * s}, 0, []try{{5 * s, OK}, {4 * s, OK}, {5 * s, Limited}, {9 * s, Limited}, {10 * s, OK}}},
		{"the largest numbers", Rate{1 << 62, 1<<63 - 1}, 0, []try{{0, OK}, {1, OK}, {1<<63 - 1, OK}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := New()
			for i, try := range row.try {
				if got := l.Allow(client(1), row.rate, row.ban, try.at); got != try.want {
					t.Fatalf("try %d, at %v: verdict %d, want %d", i, try.at, got, try.want)
				}
			}
		})
	}
}

func TestRateAndBanMayChange(t *testing.T) {
	const s = time.Second
	l, c := New(), client(1)
	verdict := func(rate Rate, ban, now time.Duration, want ...Verdict) {
		t.Helper()
		for i, want := range want {
			if got := l.Allow(c, rate, ban, now); got != want {
				t.Fatalf("at %v, try %d: verdict %d, want %d", now, i, got, want)
			}
		}
	}
	verdict(Rate{10, 10 * s}, 0, 0, OK, OK, OK, OK)
	verdict(Rate{5, 10 * s}, 0, 0, OK, Limited)     // 4 of 5 are used
	verdict(Rate{7, 10 * s}, 0, 0, OK, OK, Limited) // 5 of 7
	verdict(Rate{2, 10 * s}, 0, 0, Limited)         // all of 2, and no debt
	verdict(Rate{2, 10 * s}, 0, 5*s, OK, Limited)

	verdict(Rate{2, 10 * s}, 0, 9*s, Limited) // 0.8 of a token are back
	verdict(Rate{2, 100 * s}, 0, 19*s-1, Limited)
	verdict(Rate{2, 100 * s}, 0, 19*s, OK, Limited) // and 0.2 more after 10 s

	verdict(Rate{2, s}, 100*s, 20*s, OK, OK, Limited, Banned)
	verdict(Rate{2, s}, 10*s, 25*s, Banned) // until 35, instead of 120
	verdict(Rate{2, s}, 10*s, 34*s, Banned)
	verdict(Rate{2, s}, 10*s, 35*s, OK, OK, Limited, Banned)
	verdict(Rate{2, s}, 0, 36*s, OK) // no bans any more
}

// model is a bucket as one would write it down, with fractions of any length.
type model struct {
	tokens      *big.Rat // nil: full
	last, until time.Duration
	banned      bool
}

func (m *model) allow(rate Rate, ban, now time.Duration) Verdict {
	if m.banned && now < m.until {
		return Banned
	}
	full := big.NewRat(int64(rate.N), 1)
	if m.tokens == nil {
		m.tokens = full
	} else {
		more := new(big.Rat).Mul(big.NewRat(int64(now-m.last), int64(rate.Per)), full)
		if m.tokens = more.Add(more, m.tokens); m.tokens.Cmp(full) > 0 {
			m.tokens = full
		}
	}
	m.last, m.banned = now, false
	one := big.NewRat(1, 1)
	if m.tokens.Cmp(one) < 0 {
		m.banned, m.until = ban > 0, now+ban
		return Limited
	}
	m.tokens = new(big.Rat).Sub(m.tokens, one)
	return OK
}

// full says whether all tokens are back.
func (m *model) full(rate Rate, now time.Duration) bool {
	full := big.NewRat(int64(rate.N), 1)
	more := new(big.Rat).Mul(big.NewRat(int64(now-m.last), int64(rate.Per)), full)
	return more.Add(more, m.tokens).Cmp(full) >= 0
}

// Random clients come at random times, now and then exactly when a token or the
// end of a ban is due.
func TestLimiterIsAsTheModel(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		rate := Rate{1 + rnd.IntN(20), time.Duration(1 + rnd.Int64N(int64(time.Minute)))}
		var ban time.Duration
		if seed%2 == 0 {
			ban = time.Duration(rnd.Int64N(int64(2 * rate.Per)))
		}
		l, models := New(), make([]model, 20)
		seen := map[Verdict]int{}
		var now time.Duration
		for i := range 5000 {
			switch rnd.IntN(4) {
			case 0:
				now += time.Duration(rnd.Int64N(int64(rate.Per)/int64(rate.N)/10 + 1))
			case 1:
				now += time.Duration((int64(rate.Per) + int64(rate.N) - 1) / int64(rate.N) / 4)
			case 2:
				if m := models[rnd.IntN(len(models))]; m.banned && m.until > now && rnd.IntN(20) == 0 {
					now = m.until - time.Duration(rnd.IntN(2))
				}
			}
			c := rnd.IntN(1+rnd.IntN(len(models))) % len(models)
			got, want := l.Allow(client(c), rate, ban, now), models[c].allow(rate, ban, now)
			if got != want {
				t.Fatalf("seed %d, rate %v, ban %v, step %d, at %v: client %d: verdict %d, want %d", seed, rate, ban, i, now, c, got, want)
			}
			seen[got]++
			// What makes no difference may be forgotten, and nothing else.
			c = rnd.IntN(len(models))
			k := key(client(c).As16())
			shard := &l.shards[maphash.Bytes(l.seed, k[:])%shards]
			if at, known := shard.index[k]; known {
				m := models[c]
				want := m.full(rate, now) && (!m.banned || now >= m.until)
				if got := shard.buckets[at].forgettable(now); got != want {
					t.Fatalf("seed %d, rate %v, step %d, at %v: client %d can be forgotten: %v, want %v", seed, rate, i, now, c, got, want)
				}
			}
			if i%100 == 0 {
				var want []Ban
				for c, m := range models {
					if m.banned && m.until > now {
						want = append(want, Ban{client(c), m.until})
					}
				}
				want = earliest(want)
				if n, got := l.Bans(now); n != len(want) || !slices.Equal(got, want) {
					t.Fatalf("seed %d, step %d: bans %v (%d), want %v", seed, i, got, n, want)
				}
			}
		}
		if seen[OK] == 0 || seen[Limited] == 0 || ban > 0 && seen[Banned] == 0 {
			t.Errorf("seed %d: verdicts %v: not all kinds came up", seed, seen)
		}
	}
}

func TestBansNamesThoseThatEndFirst(t *testing.T) {
	l := New()
	if n, first := l.Bans(0); n != 0 || len(first) != 0 {
		t.Fatalf("a new Limiter has %d bans: %v", n, first)
	}
	const many = 5000
	for i := range many {
		at := time.Duration(i * 7919 % many) // in any order
		for range 2 {
			l.Allow(client(i), Rate{1, time.Hour}, time.Hour, at)
		}
	}
	n, first := l.Bans(time.Hour + 100)
	if n != many-101 || len(first) != 100 { // those until time.Hour+100 are over
		t.Fatalf("%d bans, %d named, want %d and 100", n, len(first), many-101)
	}
	for i, b := range first {
		if want := time.Hour + 101 + time.Duration(i); b.Until != want {
			t.Fatalf("ban %d is until %d, want %d", i, b.Until, want)
		}
	}
}

func TestMappedAddressIsTheSameClient(t *testing.T) {
	l := New()
	l.Allow(client(1), Rate{1, time.Hour}, time.Hour, 0)
	l.Allow(netip.AddrFrom16(client(1).As16()), Rate{1, time.Hour}, time.Hour, 0)
	if _, got := l.Bans(0); len(got) != 1 || got[0].Client != client(1) {
		t.Errorf("bans %v, want one of %v", got, client(1))
	}
}

// check looks for a shard that has lost or doubled a client.
func check(t *testing.T, l *Limiter) (clients int) {
	t.Helper()
	for i := range l.shards {
		s := &l.shards[i]
		if len(s.buckets) > perShard || len(s.index) > perShard {
			t.Fatalf("a shard has %d buckets and %d clients, want %d at most", len(s.buckets), len(s.index), perShard)
		}
		seen := map[int32]bool{}
		for _, list := range []*list{&s.free, &s.banned} {
			newer := int32(none)
			for at := list.newest; at != none; at = s.buckets[at].older {
				b := &s.buckets[at]
				if seen[at] || s.index[b.client] != at || b.newer != newer || s.listOf(b) != list {
					t.Fatalf("bucket %d of shard %d is out of place: %+v", at, i, *b)
				}
				seen[at], newer = true, at
			}
			if list.oldest != newer {
				t.Fatalf("shard %d: the oldest is %d, want %d", i, list.oldest, newer)
			}
		}
		if len(seen) != len(s.index) {
			t.Fatalf("shard %d has %d clients in lists and %d in the index", i, len(seen), len(s.index))
		}
		clients += len(seen)
	}
	return clients
}

// A million /64s, each of which may be a client's own, take what MaxClients do.
func TestFloodTakesBoundedMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	l := New()
	for i := range 1 << 20 {
		for range 1 + i%3 { // some get banned
			l.Allow(network(i), Rate{1, time.Hour}, time.Hour*time.Duration(i&8), time.Duration(i))
		}
	}
	took := int64(heap() - before)
	if n := check(t, l); n != MaxClients {
		t.Errorf("%d clients are remembered, want %d", n, MaxClients)
	}
	t.Logf("%d clients take %.1f MB", MaxClients, float64(took)/1e6)
	if took > 12e6 {
		t.Errorf("they take %d bytes, want 12 MB at most", took)
	}
	runtime.KeepAlive(l)
}

// While most of a flood have their tokens back already, those that have not
// are not forgotten for them, however long they have not come.
func TestFloodOfIdleClientsForgetsNobodyElse(t *testing.T) {
	l, rate := New(), Rate{100, 100 * time.Second} // one used token is back after 1 s
	for i := range 100 {
		for range 50 {
			l.Allow(client(i), rate, 0, 0)
		}
	}
	var now time.Duration
	for i := range 400_000 { // 20000 of them have not got their token back
		now = time.Duration(i) * 50 * time.Microsecond
		l.Allow(network(i), rate, 0, now)
	}
	for i := range 100 { // 20 of 50 are back
		for range 70 {
			if got := l.Allow(client(i), rate, 0, now+time.Millisecond); got != OK {
				t.Fatalf("client %d: verdict %d, want OK", i, got)
			}
		}
		if got := l.Allow(client(i), rate, 0, now+time.Millisecond); got != Limited {
			t.Errorf("client %d: verdict %d, want Limited: it has been forgotten", i, got)
		}
	}
	check(t, l)
}

// When nobody can be forgotten at no loss, it is one that has not come for
// long, and no banned one before those.
func TestFloodOfBusyClients(t *testing.T) {
	l, rate, ban := New(), Rate{1, time.Hour}, 10*time.Hour
	for i := range 100 { // banned
		l.Allow(client(i), rate, ban, 0)
		l.Allow(client(i), rate, ban, 0)
	}
	for i := 100; i < 200; i++ { // not banned, and come again and again
		l.Allow(client(i), rate, 0, 0)
	}
	l.Allow(client(200), rate, 0, 0) // comes once
	for i := range 8 * MaxClients {
		l.Allow(network(i), rate, 0, time.Duration(i))
		if i%(perShard/4) == 0 {
			for i := 100; i < 200; i++ {
				if got := l.Allow(client(i), rate, 0, time.Duration(i)); got != Limited {
					t.Fatalf("client %d, which comes often: verdict %d, want Limited", i, got)
				}
			}
		}
	}
	if n, _ := l.Bans(time.Minute); n != 100 {
		t.Errorf("%d bans are left, want 100", n)
	}
	if got := l.Allow(client(200), rate, 0, time.Minute); got != OK {
		t.Errorf("the client that has not come for longest: verdict %d, want OK: forgotten", got)
	}
	check(t, l)
}

// If everybody is banned, there is room for a new client all the same.
func TestFloodOfBans(t *testing.T) {
	l, rate := New(), Rate{1, time.Hour}
	for i := range 4 * MaxClients {
		for range 2 {
			l.Allow(network(i), rate, time.Hour, time.Duration(i))
		}
	}
	n, first := l.Bans(4 * MaxClients)
	if n != MaxClients || len(first) != maxBans {
		t.Errorf("%d bans, %d named, want %d and %d", n, len(first), MaxClients, maxBans)
	}
	// Those banned first have gone first.
	if oldest := first[0].Until - time.Hour; oldest < 2*MaxClients {
		t.Errorf("the oldest ban is of client %d of %d, want one of the second half", oldest, 4*MaxClients)
	}
	check(t, l)
}

// However many loops a client comes through, it gets its tokens once.
func TestManyLoops(t *testing.T) {
	l, rate := New(), Rate{1000, time.Hour}
	var mu sync.Mutex
	ok := map[netip.Addr]int{}
	var loops sync.WaitGroup
	for loop := range 8 {
		loops.Go(func() {
			mine := map[netip.Addr]int{}
			for i := range 4000 {
				c := client(i % 10)
				if l.Allow(c, rate, 0, time.Duration(i)) == OK {
					mine[c]++
				}
				l.Allow(network(loop<<20|i*16), rate, time.Hour, 0)
				if i%1000 == 0 {
					l.Bans(0)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for c, n := range mine {
				ok[c] += n
			}
		})
	}
	loops.Wait()
	for i := range 10 {
		if got := ok[client(i)]; got != rate.N {
			t.Errorf("client %d got %d, want %d", i, got, rate.N)
		}
	}
	check(t, l)
}

var sink Verdict

func BenchmarkAllow(b *testing.B) {
	rate := Rate{100, 10 * time.Second}
	for _, clients := range []int{1, 1000, MaxClients / 2, 1 << 20} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			l, i := New(), 0
			b.ReportAllocs()
			for b.Loop() {
				sink = l.Allow(network(i%clients), rate, time.Minute, time.Duration(i)*time.Microsecond)
				i++
			}
		})
	}
	b.Run("loops", func(b *testing.B) {
		l := New()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(1 << 20); pb.Next(); i++ {
				l.Allow(network(i%10000), rate, time.Minute, time.Duration(i)*time.Microsecond)
			}
		})
	})
}

func BenchmarkBans(b *testing.B) {
	l := New()
	for i := range 2 * MaxClients {
		l.Allow(network(i), Rate{1, time.Hour}, time.Hour, 0)
		l.Allow(network(i), Rate{1, time.Hour}, time.Hour, time.Duration(i))
	}
	for b.Loop() {
		l.Bans(0)
	}
}
