// Package hello reads the name of the server that a client asks for, before
// anybody has answered: of the first bytes of a TLS connection, and of the
// first datagrams of QUIC. It is given bytes and has no sockets, clock or
// goroutines; how long one waits for the rest, and what becomes of what has no
// name, is up to the caller.
//
//	name, err := hello.TLS(peeked)
//	if err == hello.ErrShort { // wait for more bytes, and peek again
//
// Only so much of a hello is checked as it takes to find the name where a
// server would: the rest is between the client and that server.
//
// A name is a DNS name, in lower case and without the dot at its end. What is
// no DNS name, such as an IP address (RFC 6066, section 3) or something with a
// NUL or a space in it, counts as no name: servers may go on without
// (ibid.), and what is decided by names must not be decided by anything else.
// With Encrypted Client Hello the name is that of the outer hello: the public
// name of the provider, not the one that is encrypted.
package hello

import (
	"errors"
	"math"
	"strings"
)

// MaxHello is how many bytes a hello may take: those on the wire, with record
// headers, for TLS; those of CRYPTO frames for QUIC. Hellos of today have 0.3
// to 2 kB; those with keys and signatures against quantum computers may have
// some more.
const MaxHello = 32 << 10

// What can be wrong. They come as they are, and not wrapped.
var (
	ErrShort          = errors.New("the hello goes on: wait for more bytes")
	ErrNotTLS         = errors.New("not the beginning of a TLS connection")
	ErrNotQUIC        = errors.New("not the beginning of a QUIC connection")
	ErrUnknownVersion = errors.New("QUIC of a version that is neither 1 nor 2")
	ErrBad            = errors.New("not a well-formed hello, or too large")
)

const (
	typeClientHello = 1
	// typeLen is the type and the length that precede the body of a handshake
	// message.
	typeLen = 4

	extServerName = 0
	nameTypeHost  = 0
)

// bodyLen is the length of the body of a handshake message.
func bodyLen(message []byte) int {
	return int(message[1])<<16 | int(message[2])<<8 | int(message[3])
}

// serverName reads the body of a ClientHello (RFC 8446, section 4.1.2).
func serverName(body []byte) (string, error) {
	r := reader{b: body}
	r.skip(2 + 32)      // legacy_version, random
	r.skip(r.uint(1))   // legacy_session_id
	suites := r.uint(2) // cipher_suites
	r.skip(suites)
	r.skip(r.uint(1)) // legacy_compression_methods
	if r.bad || suites%2 != 0 {
		return "", ErrBad
	}
	if len(r.b) == 0 {
		return "", nil // no extensions, as TLS 1.2 allows
	}
	extensions := reader{b: r.bytes(r.uint(2))}
	if r.bad || len(r.b) != 0 {
		return "", ErrBad
	}
	var names []byte
	seen := false
	for len(extensions.b) != 0 {
		kind := extensions.uint(2)
		data := extensions.bytes(extensions.uint(2))
		if extensions.bad || kind == extServerName && seen {
			return "", ErrBad
		}
		if kind == extServerName {
			names, seen = data, true
		}
	}
	if !seen {
		return "", nil
	}
	return hostName(names)
}

// hostName reads a ServerNameList (RFC 6066, section 3).
func hostName(data []byte) (string, error) {
	r := reader{b: data}
	list := reader{b: r.bytes(r.uint(2))}
	if r.bad || len(r.b) != 0 || len(list.b) == 0 {
		return "", ErrBad
	}
	var host []byte
	for len(list.b) != 0 {
		kind := list.uint(1)
		name := list.bytes(list.uint(2))
		// There is one name of a type, and it is not empty.
		if len(name) == 0 || kind == nameTypeHost && host != nil {
			return "", ErrBad
		}
		if kind == nameTypeHost {
			host = name
		}
	}
	if n := len(host); n > 1 && host[n-1] == '.' {
		host = host[:n-1]
	}
	if !isName(host) {
		return "", nil
	}
	return strings.ToLower(string(host)), nil
}

// isName reports whether s can be a DNS name. The underscore is none of a
// hostname, and clients send it all the same. A name that ends in a number is
// an IPv4 address, of whatever notation.
func isName(s []byte) bool {
	if len(s) > 253 {
		return false
	}
	label, digits := 0, 0
	for _, c := range s {
		switch {
		case c == '.' && label == 0:
			return false
		case c == '.':
			label, digits = -1, 0
		case '0' <= c && c <= '9':
			digits++
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return digits < label
}

// A reader takes what it is asked for from the front of b. Once b had less, it
// is bad and yields nothing.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	taken := r.b[:n:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) skip(n int) { r.bytes(n) }

// uint takes a number of n bytes.
func (r *reader) uint(n int) int {
	v := 0
	for _, c := range r.bytes(n) {
		v = v<<8 | int(c)
	}
	return v
}

// varint takes a number as QUIC writes them (RFC 9000, section 16). Those that
// nothing here can be as large as are math.MaxInt32.
func (r *reader) varint() int {
	if r.bad || len(r.b) == 0 {
		r.bad = true
		return 0
	}
	n := 1 << (r.b[0] >> 6)
	v := uint64(0)
	for _, c := range r.bytes(n) {
		v = v<<8 | uint64(c)
	}
	return int(min(v&(1<<(8*n-2)-1), math.MaxInt32))
}
