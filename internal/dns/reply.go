package dns

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// packed is an answer as it is kept: the message without EDNS, to which what
// differs between two who ask the same is added when it is sent.
type packed struct {
	wire    []byte   // ID 0; the question's name in lower case
	ttls    []uint16 // where TTLs are in wire
	nameEnd int

	view    *view // by whose names and ways it was answered
	pool    *pool // who was asked; nil: nobody, it is the site's own
	stored  time.Duration
	expires time.Duration // on the clock of the server, like stored
	lasting bool          // its TTLs do not count down
	ede     uint16        // RFC 8914; 0: nothing is said
	failed  bool          // no answer was to be had; this says so
	aliased bool          // it begins with an alias of the site's: good for view alone
	// failedAt is when a newer one was not to be had; 0: that has not happened.
	failedAt atomic.Int64
}

// Codes of RFC 8914 that are said.
const (
	edeStale       = dns.ExtendedErrorCodeStaleAnswer
	edeFiltered    = dns.ExtendedErrorCodeFiltered
	edeNoReachable = dns.ExtendedErrorCodeNoReachableAuthority
)

// staleTTL is said of what is older than it should be (RFC 8767 §4).
const staleTTL = 30

var errTooLarge = errors.New("larger than a DNS message")

// pack makes what is kept of a message with a question.
func pack(m *dns.Msg) (*packed, error) {
	m.Compress = true
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	if len(wire) > dns.MaxMsgSize {
		return nil, errTooLarge
	}
	p := &packed{wire: wire}
	at := skipName(wire, headerSize)
	p.nameEnd = at
	at += 4
	for range len(m.Answer) + len(m.Ns) + len(m.Extra) {
		at = skipName(wire, at)
		p.ttls = append(p.ttls, uint16(at+4))
		at += 10 + int(binary.BigEndian.Uint16(wire[at+8:]))
	}
	return p, nil
}

// skipName returns where the name ends that begins at. The message is one that
// we have packed.
func skipName(wire []byte, at int) int {
	for {
		switch length := int(wire[at]); {
		case length >= 0xc0:
			return at + 2
		case length == 0:
			return at + 1
		default:
			at += 1 + length
		}
	}
}

// appendTo appends the answer to q, which is msg, in at most limit bytes. An
// answer that does not fit is cut to nothing: who asks comes again by TCP.
func (p *packed) appendTo(out, msg []byte, q *query, now time.Duration, limit int) []byte {
	start := len(out)
	stale := !p.lasting && now >= p.expires
	ede := p.ede
	if stale && !p.failed {
		ede = edeStale
	}
	extra := 0
	if q.edns {
		extra = optSize(ede)
	}
	flags := bitQR | bitRA | q.flags&(bitRD|bitCD) | binary.BigEndian.Uint16(p.wire[2:])&(bitAA|0xf)
	if p.wire[3]&bitAD != 0 && (q.do || q.flags&bitAD != 0) { // RFC 6840 §5.8
		flags |= bitAD
	}
	if len(p.wire)+extra > limit {
		if extra > 0 {
			ede = 0
		}
		out = append(out, p.wire[:p.nameEnd+4]...)
		clear(out[start+6 : start+12])
		flags |= bitTC
	} else {
		out = append(out, p.wire...)
		elapsed := uint32(0)
		if !p.lasting {
			elapsed = uint32((now - p.stored) / time.Second)
		}
		for _, at := range p.ttls {
			ttl := out[start+int(at):]
			left := binary.BigEndian.Uint32(ttl)
			switch {
			case stale:
				left = staleTTL
			case left > elapsed:
				left -= elapsed
			default:
				left = 0
			}
			binary.BigEndian.PutUint32(ttl, left)
		}
	}
	binary.BigEndian.PutUint16(out[start:], q.id)
	binary.BigEndian.PutUint16(out[start+2:], flags)
	copy(out[start+headerSize:], msg[headerSize:q.nameEnd]) // in the client's own case (0x20)
	if q.edns {
		out = appendOPT(out, start, q, 0, ede)
	}
	return out
}

// appendFailure appends an answer that is only a code.
func appendFailure(out, msg []byte, q *query, rcode int) []byte {
	start := len(out)
	end := headerSize
	if q.hasQuestion {
		end = q.nameEnd + 4
	}
	out = append(out, msg[:end]...)
	flags := bitQR | bitRA | q.flags&(0xf<<opcodeShift|bitRD|bitCD) | uint16(rcode&0xf)
	binary.BigEndian.PutUint16(out[start+2:], flags)
	clear(out[start+4 : start+12])
	if q.hasQuestion {
		out[start+5] = 1
	}
	if q.edns {
		out = appendOPT(out, start, q, rcode>>4, 0)
	}
	return out
}

// appendTruncated asks a client to come by TCP.
func appendTruncated(out, msg []byte, q *query) []byte {
	start := len(out)
	out = appendFailure(out, msg, q, dns.RcodeSuccess)
	out[start+2] |= bitTC >> 8
	return out
}

func optSize(ede uint16) int {
	if ede != 0 {
		return 11 + 6
	}
	return 11
}

// appendOPT appends the record of EDNS to the message that begins at start (RFC 6891 §6.1.2).
func appendOPT(out []byte, start int, q *query, extendedRcode int, ede uint16) []byte {
	do := byte(0)
	if q.do {
		do = 0x80
	}
	out = append(out, 0, 0, byte(dns.TypeOPT), udpSize>>8, udpSize&0xff, byte(extendedRcode), 0, do, 0, 0, 0)
	if ede != 0 {
		out[len(out)-1] = 6
		out = append(out, 0, dns.EDNS0EDE, 0, 2, byte(ede>>8), byte(ede))
	}
	n := binary.BigEndian.Uint16(out[start+10:])
	binary.BigEndian.PutUint16(out[start+10:], n+1)
	return out
}
