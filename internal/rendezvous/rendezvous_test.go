package rendezvous

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// some makes n backends with weights from 1 to most. Every third shares its
// address with the one before, and has another port.
func some(rnd *rand.Rand, n, most int) []Backend {
	backends := make([]Backend, n)
	base := rnd.Uint32()
	for i := range backends {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+uint32(i-i%3/2))
		backends[i] = Backend{netip.AddrPortFrom(netip.AddrFrom4(b), 8080+uint16(i%3)), 1 + rnd.IntN(most)}
	}
	return backends
}

// clients calls f with n clients of networks next to each other.
func clients(n int, f func(netip.Addr)) {
	c := netip.MustParseAddr("198.51.0.0")
	for range n {
		f(c)
		c = c.Next()
	}
}

func shares(t *Table, n int) []float64 {
	shares := make([]float64, len(t.backends))
	clients(n, func(c netip.Addr) { shares[t.Pick(c)] += 1 / float64(n) })
	return shares
}

func ideal(backends []Backend, i int) float64 {
	sum := 0
	for _, b := range backends {
		sum += b.Weight
	}
	return float64(backends[i].Weight) / float64(sum)
}

// sigmas is how far off a share may be that was found by asking n clients:
// chance has it off by one of these, five are once in two million.
func sigmas(share float64, n int) float64 {
	return 5 * math.Sqrt(share*(1-share)/float64(n))
}

// The shares are exact, so that nothing but the clients' own chance is seen in
// them.
func TestEveryBackendGetsItsShare(t *testing.T) {
	for _, most := range []int{1, 2, 10, 1000, 65535} {
		for seed := range uint64(8) {
			rnd := rand.New(rand.NewPCG(seed, uint64(most)))
			backends := some(rnd, 1+rnd.IntN(200), most)
			const n = 50_000
			for i, got := range shares(New(backends), n) {
				want := ideal(backends, i)
				if math.Abs(got-want) > sigmas(want, n)+1e-3*want {
					t.Errorf("seed %d: backend %d of %d with weights to %d has a share of %.5f, want %.5f ± %.5f", seed, i, len(backends), most, got, want, sigmas(want, n))
				}
			}
		}
	}
}

// With enough clients for 1 % to be seen.
func TestSharesAreWithinOnePercent(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1}, {1, 2, 3}, {1, 10}, {7, 7, 8}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}} {
		const n = 3_000_000
		backends := some(rand.New(rand.NewPCG(1, 1)), len(weights), 1)
		for i := range backends {
			backends[i].Weight = weights[i]
		}
		for i, got := range shares(New(backends), n) {
			if want := ideal(backends, i); math.Abs(got/want-1) > 0.01 {
				t.Errorf("weights %v: backend %d has a share of %.4f, want %.4f", weights, i, got, want)
			}
		}
	}
}

// Neighbours are not of one mind: 256 clients of a /24 are spread like 256 of
// anywhere, and so are those of one /48 that differ in their /64 only.
func TestNeighboursAreSpread(t *testing.T) {
	for _, n := range []int{2, 3, 4, 8, 10, 16} {
		table := New(some(rand.New(rand.NewPCG(2, 2)), n, 1))
		for _, family := range []struct {
			name   string
			client func(net, host int) netip.Addr
		}{
			{"IPv4", func(net, host int) netip.Addr {
				return netip.AddrFrom4([4]byte{10, 11, byte(net), byte(host)})
			}},
			{"IPv6", func(net, host int) netip.Addr {
				return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(net), 0, byte(host)})
			}},
		} {
			// Chi-squared of each network, with n-1 degrees of freedom: its mean over
			// many is n-1, and that of a poor hash is far off on either side.
			const nets = 256
			var sum float64
			for net := range nets {
				counts := make([]float64, n)
				for host := range 256 {
					counts[table.Pick(family.client(net, host))]++
				}
				for _, c := range counts {
					want := 256 / float64(n)
					sum += (c - want) * (c - want) / want
				}
			}
			mean, want := sum/nets, float64(n-1)
			if off := 5 * math.Sqrt(2*want/nets); math.Abs(mean-want) > off {
				t.Errorf("%s, %d backends: mean chi-squared %.2f, want %.2f ± %.2f", family.name, n, mean, want, off)
			}
		}
	}
}

// When a backend goes its clients move, by weight to all of those that are
// left, and no other; when it comes it takes its share of each and nothing else
// changes; when its weight changes clients move to it only, or from it only.
func TestOnlyThoseMoveThatMust(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		backends := some(rnd, 2+rnd.IntN(199), 1+9*int(seed%2))
		gone := rnd.IntN(len(backends))
		without := slices.Delete(slices.Clone(backends), gone, gone+1)
		heavier := slices.Clone(backends)
		heavier[gone].Weight += 1 + rnd.IntN(10)

		all, rest, heavy := New(backends), New(without), New(heavier)
		var came []float64
		const n = 20_000
		came = make([]float64, len(without))
		var moved float64
		clients(n, func(c netip.Addr) {
			before, after := backends[all.Pick(c)], without[rest.Pick(c)]
			if before == backends[gone] {
				came[rest.Pick(c)]++
				moved++
			} else if before != after {
				t.Fatalf("seed %d: without %v, %v moves from %v to %v", seed, backends[gone], c, before, after)
			}
			if to := heavy.Pick(c); to != all.Pick(c) && to != gone {
				t.Fatalf("seed %d: with a heavier %v, %v moves from %v to %v", seed, backends[gone], c, before, backends[to])
			}
		})
		if want := ideal(backends, gone); math.Abs(moved/n-want) > sigmas(want, n)+1e-3*want {
			t.Errorf("seed %d: %.4f of the clients move, want %.4f", seed, moved/n, want)
		}
		if got, want := shares(heavy, n)[gone], ideal(heavier, gone); math.Abs(got-want) > sigmas(want, n)+1e-3*want {
			t.Errorf("seed %d: the heavier one has a share of %.4f, want %.4f", seed, got, want)
		}
		for i := range came {
			if want := ideal(without, i); math.Abs(came[i]/moved-want) > sigmas(want, int(moved))+0.01 {
				t.Errorf("seed %d: %v gets %.4f of the clients of the one that went, want %.4f", seed, without[i], came[i]/moved, want)
			}
		}
	}
}

func TestNextIsPickWithoutThoseBefore(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		backends := some(rnd, 1+rnd.IntN(20), 1+4*int(seed%2))
		table := New(backends)
		clients(200, func(c netip.Addr) {
			left := slices.Clone(backends)
			for attempt := range backends {
				got, at := table.Next(c, attempt), New(left).Pick(c)
				if got < 0 || backends[got] != left[at] {
					t.Fatalf("seed %d: attempt %d of %v: backend %d, want %v", seed, attempt, c, got, left[at])
				}
				left = slices.Delete(left, at, at+1)
			}
			if got := table.Next(c, len(backends)); got != -1 {
				t.Fatalf("seed %d: Next after all backends = %d, want -1", seed, got)
			}
		})
	}
	if empty := New(nil); empty.Pick(netip.IPv4Unspecified()) != -1 || empty.Next(netip.IPv4Unspecified(), 0) != -1 || empty.Next(netip.IPv4Unspecified(), 1) != -1 {
		t.Error("there is a backend in an empty table")
	}
}

// Even when two draw the same number, each comes up once.
func TestNextHasEveryBackendOnce(t *testing.T) {
	b := Backend{netip.MustParseAddrPort("10.0.0.1:80"), 1}
	table := New([]Backend{b, b, b})
	for attempt := range 3 {
		if got := table.Next(netip.MustParseAddr("192.0.2.1"), attempt); got != attempt {
			t.Errorf("attempt %d: backend %d", attempt, got)
		}
	}
}

func TestOrderOfBackendsDoesNotMatter(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	for _, most := range []int{1, 9} {
		backends := some(rnd, 50, most)
		shuffled := slices.Clone(backends)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		a, b := New(backends), New(shuffled)
		clients(10_000, func(c netip.Addr) {
			if backends[a.Pick(c)] != shuffled[b.Pick(c)] {
				t.Fatalf("%v goes to %v, and in another order to %v", c, backends[a.Pick(c)], shuffled[b.Pick(c)])
			}
		})
	}
}

func TestMappedAddressIsTheIPv4Address(t *testing.T) {
	table := New(some(rand.New(rand.NewPCG(6, 6)), 100, 3))
	clients(1000, func(c netip.Addr) {
		if table.Pick(c) != table.Pick(netip.AddrFrom16(c.As16())) {
			t.Fatalf("%v goes elsewhere when it is mapped", c)
		}
	})
}

// Two machines, or a gatehouse and the one after it, agree: these are written
// down.
func TestPicksAreTheSameEverywhere(t *testing.T) {
	for _, weights := range [][]int{{1, 1, 1, 1, 1}, {1, 2, 3, 4, 5}} {
		var backends []Backend
		for i, w := range weights {
			backends = append(backends, Backend{netip.MustParseAddrPort(fmt.Sprintf("10.0.0.%d:80", 101+i)), w})
		}
		table := New(backends)
		var got []byte
		for i := range 40 {
			got = append(got, '0'+byte(table.Pick(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))))
		}
		for i := range 24 {
			got = append(got, '0'+byte(table.Pick(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 7: byte(i)}))))
		}
		want := map[int]string{1: "4244022342403134124034010403223340002302213343200314202421441434", 2: "4244322342433134134034013444223440334302413443242314212423441434"}[weights[1]]
		if string(got) != want {
			t.Errorf("weights %v: clients go to\n%s, want\n%s", weights, got, want)
		}
	}
}

func TestExponential(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	check := func(u uint64) {
		t.Helper()
		want := -math.Log2(float64(u|1) / (1 << 64))
		if u > 1<<63 { // where float64 would round it away
			want = -math.Log1p(-float64(-u)/(1<<64)) / math.Ln2
		}
		// In the last steps before 0, one is all that is left of the number.
		if got := float64(exponential(u)) / one; math.Abs(got-want) > 1e-3*want+4.0/one {
			t.Errorf("exponential(%#x) = %.12f, want %.12f", u, got, want)
		}
	}
	for _, u := range []uint64{0, 1, 2, 3, 1 << 32, 1<<63 - 1, 1 << 63, 1<<63 + 1, 1<<64 - 1, 1<<64 - 2, 1<<64 - 1<<30} {
		check(u)
	}
	for range 100_000 {
		check(rnd.Uint64() >> rnd.IntN(64))
		check(-(rnd.Uint64() >> rnd.IntN(64)))
	}
	before := exponential(0)
	for u := uint64(1); u != 0; u += max(1, u>>12) {
		if u+max(1, u>>12) < u {
			break
		}
		e := exponential(u)
		if e > before {
			t.Fatalf("exponential(%#x) = %d is more than that of a smaller number, %d", u, e, before)
		}
		before = e
	}
}

var sink int

func BenchmarkPick(b *testing.B) {
	for _, most := range []int{1, 10} {
		for _, n := range []int{1, 3, 10, 50, 200} {
			b.Run(fmt.Sprintf("backends=%d/weights=%d", n, most), func(b *testing.B) {
				table := New(some(rand.New(rand.NewPCG(8, 8)), n, most))
				c := netip.MustParseAddr("192.0.2.1")
				b.ReportAllocs()
				for b.Loop() {
					sink += table.Pick(c)
				}
			})
		}
	}
}

func BenchmarkNext(b *testing.B) {
	table := New(some(rand.New(rand.NewPCG(8, 8)), 10, 10))
	c := netip.MustParseAddr("192.0.2.1")
	b.ReportAllocs()
	for b.Loop() {
		sink += table.Next(c, 1)
	}
}

// All Services of a large cluster: 1000 with 10 backends each.
func BenchmarkNew1000(b *testing.B) {
	backends := some(rand.New(rand.NewPCG(8, 8)), 10, 65535)
	b.ReportAllocs()
	for b.Loop() {
		for range 1000 {
			sink += len(New(backends).backends)
		}
	}
}
