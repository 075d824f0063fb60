package maglev

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// some returns backends in a row, as the pods of a node have addresses in a row,
// with these weights in turn.
func some(n int, weights ...int) []Backend {
	backends := make([]Backend, n)
	for i := range backends {
		ip := binary.BigEndian.AppendUint32(nil, 10<<24+244<<16+1<<8+uint32(i))
		addr, _ := netip.AddrFromSlice(ip)
		backends[i] = Backend{Addr: netip.AddrPortFrom(addr, 8080), Weight: weights[i%len(weights)]}
	}
	return backends
}

func counts(t *testing.T, backends []Backend, table []int32) []int {
	t.Helper()
	n := make([]int, len(backends))
	for slot, b := range table {
		if b < 0 || int(b) >= len(backends) {
			t.Fatalf("slot %d is of backend %d", slot, b)
		}
		n[b]++
	}
	return n
}

// The table must never change by accident: two edges, or one before and after
// an upgrade, would send clients to different backends.
func TestTableIsTheOneItWas(t *testing.T) {
	backends := []Backend{
		{netip.MustParseAddrPort("10.244.1.5:8080"), 1},
		{netip.MustParseAddrPort("10.244.2.5:8080"), 2},
		{netip.MustParseAddrPort("[fd44::5]:8080"), 3},
		{netip.MustParseAddrPort("10.244.1.5:8081"), 1},
		{netip.MustParseAddrPort("10.244.1.6:8080"), 0},
	}
	var got strings.Builder
	for i, b := range Table(backends, 101) {
		if i%26 == 0 {
			got.WriteByte('\n')
		}
		fmt.Fprint(&got, b)
	}
	const want = `
23133332333321120323223112
23222201012122320211211202
01112222200121121200211112
20022112122022211210022`
	if got.String() != want {
		t.Errorf("the table is%s\nwant%s", got.String(), want)
	}
}

func TestSharesAreTheWeights(t *testing.T) {
	for _, backends := range [][]Backend{
		some(1, 1), some(2, 1), some(2, 1, 99), some(3, 1), some(10, 1, 2, 3), some(40, 1, 100),
		some(100, 1), some(101, 1000, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), some(163, 7, 0, 5), some(300, 1), some(5, 1<<20, 1),
	} {
		size := Size(len(backends))
		n := counts(t, backends, Table(backends, size))
		total := 0
		for _, b := range backends {
			total += b.Weight
		}
		for i, b := range backends {
			if due := float64(size) * float64(b.Weight) / float64(total); math.Abs(float64(n[i])-due) >= 1 {
				t.Errorf("%d backends: the one of weight %d has %d of %d slots, want %.1f", len(backends), b.Weight, n[i], size, due)
			}
		}
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	backends := some(30, 1, 5, 1, 2, 0)
	want := Table(backends, Size(30))
	for seed := range uint64(20) {
		shuffled := slices.Clone(backends)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		for slot, b := range Table(shuffled, Size(30)) {
			if shuffled[b].Addr != backends[want[slot]].Addr {
				t.Fatalf("shuffled, slot %d is of %v, not of %v", slot, shuffled[b].Addr, backends[want[slot]].Addr)
			}
		}
	}
}

func TestMappedAddressIsTheIPv4Address(t *testing.T) {
	backends := some(5, 1, 2)
	want := Table(backends, 251)
	for i, b := range backends[:3] {
		backends[i].Addr = netip.AddrPortFrom(netip.AddrFrom16(b.Addr.Addr().As16()), b.Addr.Port())
	}
	if got := Table(backends, 251); !slices.Equal(got, want) {
		t.Error("with IPv4-mapped addresses it is another table")
	}
}

func TestNobodyToChoose(t *testing.T) {
	for _, backends := range [][]Backend{nil, some(3, 0), some(2, -1)} {
		if got := Table(backends, 251); got != nil {
			t.Errorf("Table(%v) has %d slots", backends, len(got))
		}
	}
}

func TestSize(t *testing.T) {
	for backends, want := range map[int]int{0: 251, 2: 251, 3: 1009, 10: 1009, 11: 4093, 40: 4093, 41: 16381, 163: 16381, 1000: 16381} {
		got := Size(backends)
		if got != want {
			t.Errorf("Size(%d) = %d, want %d", backends, got, want)
		}
		for d := 2; d*d <= got; d++ {
			if got%d == 0 {
				t.Errorf("Size(%d) = %d, which is %d times %d", backends, got, d, got/d)
			}
		}
	}
}

// needless returns how many slots change hands although they need not when one
// backend goes, in proportion to those that must.
func needless(t *testing.T, backends []Backend, gone, size int) float64 {
	t.Helper()
	before := Table(backends, size)
	left := slices.Delete(slices.Clone(backends), gone, gone+1)
	must, moved := 0, 0
	for slot, b := range Table(left, size) {
		switch was := backends[before[slot]].Addr; {
		case was == backends[gone].Addr:
			must++
		case was != left[b].Addr:
			moved++
		}
	}
	return float64(moved) / float64(must)
}

// These are the numbers of the package's comment.
func TestFewOthersMoveWhenOneGoes(t *testing.T) {
	for _, test := range []struct {
		backends []Backend
		size     int
		most     float64
	}{
		{some(2, 1), 251, 0},
		{some(3, 1), 1009, 0.013},
		{some(10, 1), 1009, 0.25},
		{some(10, 1, 2, 3), 1009, 0.28},
		{some(40, 1), 4093, 0.84},
		{some(100, 1), 16381, 1.29},
		{some(163, 1), 16381, 2.57},
	} {
		sum, worst := 0.0, 0.0
		for gone := range test.backends {
			n := needless(t, test.backends, gone, test.size)
			sum, worst = sum+n, max(worst, n)
		}
		mean := sum / float64(len(test.backends))
		t.Logf("%d backends, %d slots: %.1f %%, at worst %.1f %%; %.2f %% of all", len(test.backends), test.size, 100*mean, 100*worst, 100*mean/float64(len(test.backends)))
		if mean > test.most {
			t.Errorf("%d backends, %d slots: %.2f move needlessly for each that must, want no more than %.2f", len(test.backends), test.size, mean, test.most)
		}
	}
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{2, 10, 40, 163} {
		backends := some(n, 1, 2, 3)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				Table(backends, Size(n))
			}
		})
	}
}
