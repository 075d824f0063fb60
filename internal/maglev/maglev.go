// Package maglev owns which backend a client's address stands for: the same in
// every process and on every machine, in equal shares, and with few clients
// moving when the backends change.
package maglev

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Backend is one of those to choose from. Its Weight is at least 1.
type Backend struct {
	Addr   netip.AddrPort
	Weight int
}

// Table says which backend a client's address stands for.
type Table struct {
	backends []Backend
	keys     []uint64
}

// New makes the table for some backends, in any order.
func New(backends []Backend) *Table {
	t := &Table{backends: backends, keys: make([]uint64, len(backends))}
	for i, b := range backends {
		t.keys[i] = mix(hash(b.Addr.Addr()) ^ uint64(b.Addr.Port()))
	}
	return t
}

func hash(a netip.Addr) uint64 {
	b := a.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])^0x9e3779b97f4a7c15) ^ binary.BigEndian.Uint64(b[8:]))
}

func mix(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0xa0761d6478bd642f, 0xe7037ed1a0b428db)
	x = hi ^ lo
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

// Pick returns the index of the client's backend, in the slice given to New;
// -1 if that was empty.
func (t *Table) Pick(client netip.Addr) int { return t.Next(client, 0) }

// Next returns the index of the backend that is the client's choice after the
// first attempt ones; -1 when there is none left. Next(client, 0) is
// Pick(client).
func (t *Table) Next(client netip.Addr, attempt int) int {
	if attempt >= len(t.backends) {
		return -1
	}
	// To be replaced.
	h := hash(client)
	n := 0
	best := -1
	taken := map[int]bool{}
	for ; n <= attempt; n++ {
		best = -1
		var top uint64
		for i, k := range t.keys {
			if v := mix(h ^ k); !taken[i] && (best < 0 || v > top) {
				best, top = i, v
			}
		}
		taken[best] = true
	}
	return best
}
