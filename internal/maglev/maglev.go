// Package maglev owns tables that say which backend a client stands for, for
// those who can look at one slot of a table and do nothing else: the kernel.
// Where there is a program to ask, internal/rendezvous does it better.
//
//	table := maglev.Table(backends, maglev.Size(len(backends)))
//	b := backends[table[hash(client)%len(table)]]
//
// It is Maglev hashing (Eisenbud et al., NSDI 2016): each backend prefers the
// slots in an order of its own, which follows from its address alone, and they
// take turns to take the one that they like best of those that are left. The
// same backends make the same table on every machine.
//
// Shares are exact to a slot. When a backend goes, slots of others change hands
// as well. Measured when one of N goes, with the size that Size says, in per
// cent of all slots:
//
//	backends                 slots  must move  move needlessly
//	2                          251  50         0
//	3                         1009  33         0.4
//	10                        1009  10         2.4
//	10 with weights 1, 2, 3   1009  10         2.7
//	40                        4093   2.5       2.1
//	100                      16381   1         1.3
//	163                      16381   0.6       1.6
//
// A table takes 40 µs to make for 10 backends and 1.5 ms for 163.
package maglev

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
)

// Backend is one of those to choose from.
type Backend struct {
	Addr   netip.AddrPort
	Weight int // 0: it gets nothing
}

// Size returns how many slots the table of some backends should have, which is
// a prime: at least 100 for each of them, as long as they are not too many.
func Size(backends int) int {
	sizes := []int{251, 1009, 4093, 16381}
	for _, size := range sizes {
		if size >= 100*backends {
			return size
		}
	}
	return sizes[len(sizes)-1]
}

// Table returns for each of size slots the index of its backend, or nil if no
// backend has a weight. The backends' addresses differ, and their order does
// not matter; an IPv4-mapped address is the IPv4 address. Size is a prime.
//
// Each backend has the slots that are due to its weight, rounded up or down.
func Table(backends []Backend, size int) []int32 {
	takers, most := share(backends, size)
	if len(takers) == 0 {
		return nil
	}
	table := make([]int32, size)
	for i := range table {
		table[i] = -1
	}
	// Whoever is due the most takes a slot in each round, the others as often as
	// they are due: all come to their last turn together.
	for round := 1; round <= most; round++ {
		for i := range takers {
			t := &takers[i]
			if (2*t.due*round+most)/(2*most) > t.taken {
				table[t.next(table)] = t.index
				t.taken++
			}
		}
	}
	return table
}

// taker is a backend on its way through its permutation of the slots.
type taker struct {
	index      int32
	addr       netip.AddrPort
	due, taken int // slots
	rest       int // what was cut off when due was rounded, for comparison
	at, step   int
}

// share returns the backends with a weight, in an order that is always the same,
// with the slots that are due to each, which are size together; and the most
// that are due to one of them.
func share(backends []Backend, size int) (takers []taker, most int) {
	total := 0
	for i, b := range backends {
		if b.Weight <= 0 {
			continue
		}
		total += b.Weight
		addr := netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port())
		at, step := permutation(addr, size)
		takers = append(takers, taker{index: int32(i), addr: addr, at: at, step: step})
	}
	if total == 0 {
		return nil, 0
	}
	left := size
	for i := range takers {
		t := &takers[i]
		slots := size * backends[t.index].Weight
		t.due, t.rest = slots/total, slots%total
		left -= t.due
	}
	// The largest remainders are rounded up.
	slices.SortFunc(takers, func(a, b taker) int {
		return cmp.Or(cmp.Compare(b.rest, a.rest), a.addr.Compare(b.addr))
	})
	for i := range left {
		takers[i].due++
	}
	for _, t := range takers {
		most = max(most, t.due)
	}
	return takers, most
}

// permutation returns where a backend's order of the slots begins, and how far
// apart two that follow each other are. The hash is one that makes of addresses
// in a row numbers that have nothing to do with each other.
func permutation(addr netip.AddrPort, size int) (at, step int) {
	ip := addr.Addr().As16()
	sum := sha256.Sum256(binary.BigEndian.AppendUint16(ip[:], addr.Port()))
	at = int(binary.BigEndian.Uint64(sum[:]) % uint64(size))
	step = int(binary.BigEndian.Uint64(sum[8:])%uint64(size-1)) + 1
	return at, step
}

// next returns the slot that a backend likes best of those that nobody has.
func (t *taker) next(table []int32) int {
	for table[t.at] >= 0 {
		t.at = (t.at + t.step) % len(table)
	}
	return t.at
}
