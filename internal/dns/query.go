package dns

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// Bits of the second 16 of a header (RFC 1035 §4.1.1, RFC 4035 §3.1.6).
const (
	bitQR = 1 << 15
	bitAA = 1 << 10
	bitTC = 1 << 9
	bitRD = 1 << 8
	bitRA = 1 << 7
	bitAD = 1 << 5
	bitCD = 1 << 4

	opcodeShift = 11
	headerSize  = 12
	maxName     = 255
)

// query is a message of a client as far as it matters. Its name is not a string:
// what is answered from the cache makes none.
type query struct {
	id, flags   uint16
	qtype       uint16
	nameEnd     int // of the message: where the name ends; the question ends 4 bytes later
	hasQuestion bool
	edns        bool
	do          bool
	version     byte // of EDNS
	size        int  // that the client takes by UDP

	key  [keyHead + maxName]byte
	keyN int
}

// A key is zone, bits that make answers differ, type and name: what an answer
// depends on.
const keyHead = 2 + 1 + 2

func (q *query) cacheKey() []byte { return q.key[:q.keyN] }

// wireName is the name in lower case.
func (q *query) wireName() []byte { return q.key[keyHead:q.keyN] }

// name is the name in lower case, as it is written, without a dot at its end.
func (q *query) name() string {
	s, _, err := dns.UnpackDomainName(q.wireName(), 0)
	if err != nil {
		return "" // cannot be: parse has read it
	}
	return s[:len(s)-1]
}

// verdict is what becomes of a message.
type verdict int

const (
	drop verdict = iota // not even an answer: it is no question
	take
	fail // answered with the code that comes with it
)

// parse reads a message, for a zone. It allocates nothing.
func (q *query) parse(msg []byte, zone uint16) (verdict, int) {
	if len(msg) < headerSize {
		return drop, 0
	}
	q.id, q.flags = binary.BigEndian.Uint16(msg), binary.BigEndian.Uint16(msg[2:])
	q.hasQuestion, q.edns, q.do, q.version, q.size = false, false, false, 0, plainSize
	if q.flags&bitQR != 0 {
		return drop, 0 // two servers would answer each other for ever
	}
	if q.flags>>opcodeShift&0xf != dns.OpcodeQuery {
		return fail, dns.RcodeNotImplemented
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return fail, dns.RcodeFormatError
	}
	// The name. In a question it is not compressed: there is nothing before it.
	at, n := headerSize, keyHead
	for {
		if at >= len(msg) {
			return fail, dns.RcodeFormatError
		}
		length := int(msg[at])
		if length > 63 || at+1+length > len(msg) || n+1+length > keyHead+maxName {
			return fail, dns.RcodeFormatError
		}
		q.key[n] = msg[at]
		for i := 1; i <= length; i++ {
			c := msg[at+i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			q.key[n+i] = c
		}
		at, n = at+1+length, n+1+length
		if length == 0 {
			break
		}
	}
	if at+4 > len(msg) {
		return fail, dns.RcodeFormatError
	}
	q.nameEnd, q.keyN = at, n
	q.qtype = binary.BigEndian.Uint16(msg[at:])
	qclass := binary.BigEndian.Uint16(msg[at+2:])
	q.hasQuestion = true
	if code := q.readOPT(msg, at+4); code != dns.RcodeSuccess {
		return fail, code
	}
	if q.version != 0 {
		return fail, dns.RcodeBadVers
	}
	if qclass != dns.ClassINET {
		return fail, dns.RcodeRefused
	}
	switch {
	case q.qtype == dns.TypeAXFR || q.qtype == dns.TypeIXFR:
		return fail, dns.RcodeRefused // nobody is told all names
	case q.qtype == dns.TypeOPT || q.qtype == 0:
		return fail, dns.RcodeFormatError
	case q.qtype >= 128 && q.qtype < dns.TypeANY: // meta types (RFC 6895 §3.1)
		return fail, dns.RcodeNotImplemented
	}
	binary.BigEndian.PutUint16(q.key[0:], zone)
	q.key[2] = 0
	if q.do {
		q.key[2] |= 1
	}
	if q.flags&bitCD != 0 {
		q.key[2] |= 2
	}
	binary.BigEndian.PutUint16(q.key[3:], q.qtype)
	return take, dns.RcodeSuccess
}

// readOPT reads what is behind the question, where only EDNS matters (RFC 6891 §6.1).
func (q *query) readOPT(msg []byte, at int) int {
	before := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:]))
	records := before + int(binary.BigEndian.Uint16(msg[10:]))
	for i := range records {
		start := at
		for { // the owner's name
			if at >= len(msg) {
				return dns.RcodeFormatError
			}
			length := int(msg[at])
			at++
			if length >= 0xc0 {
				at++
				break
			}
			if length == 0 {
				break
			}
			at += length
		}
		if at+10 > len(msg) {
			return dns.RcodeFormatError
		}
		rtype, class := binary.BigEndian.Uint16(msg[at:]), binary.BigEndian.Uint16(msg[at+2:])
		ttl, length := binary.BigEndian.Uint32(msg[at+4:]), int(binary.BigEndian.Uint16(msg[at+8:]))
		if rtype == dns.TypeOPT {
			if q.edns || i < before || at != start+1 {
				return dns.RcodeFormatError
			}
			q.edns, q.version, q.do = true, byte(ttl>>16), ttl&(1<<15) != 0
			q.size = min(max(int(class), plainSize), udpSize)
		}
		at += 10 + length
		if at > len(msg) {
			return dns.RcodeFormatError
		}
	}
	return dns.RcodeSuccess
}
