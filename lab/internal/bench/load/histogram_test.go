package load

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A bucket must hold what it says, and nothing may fall between two.
func TestEveryDurationIsInItsBucket(t *testing.T) {
	t.Parallel()
	for i := range buckets {
		if got := bucket(least(i)); got != i {
			t.Fatalf("the least value of bucket %d, %d, is in bucket %d", i, least(i), got)
		}
		if i > 0 && bucket(least(i)-1) != i-1 {
			t.Fatalf("%d is not in the bucket before %d", least(i)-1, i)
		}
	}
	if got := bucket(1<<64 - 1); got != buckets-1 {
		t.Errorf("the greatest value is in bucket %d of %d", got, buckets)
	}
}

func TestQuantilesAreWithinABucketOfTheTruth(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	var all []int64
	for range 10_000 {
		v := int64(r.ExpFloat64() * 1e5)
		all = append(all, v)
		h.Add(v)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999, 1} {
		want := time.Duration(all[max(int(q*float64(len(all)))-1, 0)])
		got := h.Quantile(q)
		if d := (got - want).Abs(); d > want/256+1 {
			t.Errorf("quantile %g is %v, not %v", q, got, want)
		}
	}
}

func TestHistogramWithoutAnythingInIt(t *testing.T) {
	t.Parallel()
	var h Histogram
	if got := h.Quantile(0.99); got != 0 {
		t.Errorf("p99 of nothing is %v", got)
	}
}

func TestSubLeavesWhatCameSince(t *testing.T) {
	t.Parallel()
	var h Histogram
	h.Add(1000)
	earlier := h
	h.Add(5)
	d := h.Sub(&earlier)
	if d.Count() != 1 || d.Quantile(1) != 5 {
		t.Errorf("%d since, the greatest %v", d.Count(), d.Quantile(1))
	}
}

func TestMessagesDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for conn := range uint64(4) {
		for n := range uint64(100) {
			p := make([]byte, 61)
			fill(p, conn, n)
			if seen[string(p)] {
				t.Fatalf("message %d of connection %d has been sent already", n, conn)
			}
			seen[string(p)] = true
		}
	}
}

func TestSinkNoticesWrongBytes(t *testing.T) {
	t.Parallel()
	var count Counters
	s := newSink(&count)
	at := uint64(patternSize) - 100 // the pattern begins anew in the middle
	page := append(slices.Clone(s.pattern[at:]), s.pattern[:lookSize-100]...)
	s.check(page, at)
	if count.Errors != 0 {
		t.Fatal("the pattern is taken for wrong")
	}
	page[2000] ^= 1
	s.check(page, at)
	if count.Errors != 1 {
		t.Errorf("a wrong bit is counted %d times", count.Errors)
	}
}
