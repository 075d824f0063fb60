package nat

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// hashOf is what "jhash … mod 4294967295 seed hashSeed" is in a rule.
func hashOf(b []byte) uint32 {
	const modulus = 1<<32 - 1
	return uint32(uint64(jhash(b, hashSeed)) * modulus >> 32) // reciprocal_scale
}

// hashOfDevice is that of an interface's name.
func hashOfDevice(name string) uint32 {
	b := make([]byte, nameBytes)
	copy(b, name)
	return hashOf(b)
}

func hashOfAddr(a netip.Addr) uint32 { return hashOf(a.AsSlice()) }

// jhash is the kernel's (include/linux/jhash.h): Bob Jenkins' lookup3, which reads
// words as this machine has them. The length is a multiple of 4.
func jhash(k []byte, seed uint32) uint32 {
	a := 0xdeadbeef + uint32(len(k)) + seed
	b, c := a, a
	word := func(i int) uint32 {
		if 4*i >= len(k) {
			return 0
		}
		return binary.NativeEndian.Uint32(k[4*i:])
	}
	rot := bits.RotateLeft32
	for len(k) > 12 {
		a, b, c = a+word(0), b+word(1), c+word(2)
		a = (a - c) ^ rot(c, 4)
		c += b
		b = (b - a) ^ rot(a, 6)
		a += c
		c = (c - b) ^ rot(b, 8)
		b += a
		a = (a - c) ^ rot(c, 16)
		c += b
		b = (b - a) ^ rot(a, 19)
		a += c
		c = (c - b) ^ rot(b, 4)
		b += a
		k = k[12:]
	}
	a, b, c = a+word(0), b+word(1), c+word(2)
	c = (c ^ b) - rot(b, 14)
	a = (a ^ c) - rot(c, 11)
	b = (b ^ a) - rot(a, 25)
	c = (c ^ b) - rot(b, 16)
	a = (a ^ c) - rot(c, 4)
	b = (b ^ a) - rot(a, 14)
	c = (c ^ b) - rot(b, 24)
	return c
}
