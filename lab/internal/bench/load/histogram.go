package load

import (
	"math/bits"
	"time"
)

const (
	subBits = 8 // 256 buckets for each power of two: a bucket is at most 1/256 wide of what it holds
	sub     = 1 << subBits
	buckets = (64 - subBits + 1) * sub
)

// Histogram counts durations in buckets whose width grows with the duration. Its size is fixed and adding to it
// allocates nothing. The zero value is empty.
type Histogram [buckets]uint64

func bucket(v uint64) int {
	if v < sub {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift*sub + int(v>>shift)
}

// least is the smallest value of a bucket.
func least(i int) uint64 {
	if i < 2*sub {
		return uint64(i)
	}
	shift := i/sub - 1
	return uint64(i-shift*sub) << shift
}

// Add counts one duration.
func (h *Histogram) Add(nanoseconds int64) { h[bucket(uint64(max(nanoseconds, 0)))]++ }

// Sub returns what was added since an earlier copy of h was made.
func (h *Histogram) Sub(earlier *Histogram) *Histogram {
	var d Histogram
	for i := range h {
		d[i] = h[i] - earlier[i]
	}
	return &d
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h {
		n += c
	}
	return n
}

// Quantile returns the duration that the share q of all is not above, as the middle of its bucket; 0 if h is empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	rank := min(max(uint64(q*float64(n)+0.999999), 1), n)
	var seen uint64
	for i, c := range h {
		if seen += c; seen >= rank {
			low, high := least(i), least(i)
			if i < buckets-1 {
				high = least(i+1) - 1
			}
			return time.Duration(low + (high-low)/2)
		}
	}
	return 0
}
