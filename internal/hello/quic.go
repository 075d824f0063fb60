package hello

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"slices"
	"sync"
)

// MaxInitials is how many datagrams, and how many Initial packets, are looked
// at for the name of one client. MaxHello bytes are in 28 datagrams of 1200.
const MaxInitials = 32

const (
	version1 = 0x00000001 // RFC 9001
	version2 = 0x6b3343cf // RFC 9369

	maxConnectionID = 20 // of both versions
	// A client that scatters its hello does so into some dozen pieces.
	maxPieces = 256
)

// LongHeaderIDs returns the connection IDs of a packet with a long header, of
// whatever version (RFC 8999, section 5.1). They are part of the packet.
func LongHeaderIDs(packet []byte) (dcid, scid []byte, ok bool) {
	if len(packet) == 0 || packet[0]&0x80 == 0 {
		return nil, nil, false
	}
	r := reader{b: packet}
	r.skip(1 + 4)
	dcid = r.bytes(r.uint(1))
	scid = r.bytes(r.uint(1))
	if r.bad {
		return nil, nil, false
	}
	return dcid, scid, true
}

// Initial reports whether a packet may begin a connection: it is an Initial of a
// known version, or of a version that is not known.
func Initial(packet []byte) bool {
	if len(packet) < 5 || packet[0]&0x80 == 0 {
		return false
	}
	kind := packet[0] >> 4 & 3
	switch binary.BigEndian.Uint32(packet[1:]) {
	case 0: // Version Negotiation, which clients do not send
		return false
	case version1:
		return kind == 0
	case version2:
		return kind == 1
	}
	return true
}

// ShortHeader reports whether a packet may be one of QUIC with a short header,
// which is all of a connection but its beginning: the form bit says short, the
// QUIC bit is set, and it is as long as any that can be decrypted. Whose
// connection ID it has, only its server knows. Peers that have agreed on it may
// clear the QUIC bit in half of their packets (RFC 9287): those are not
// reported, so that what is not QUIC is told apart; a client that has moved is
// found by the next packet that has the bit.
func ShortHeader(packet []byte) bool {
	// One byte, a packet number and sample behind it (RFC 9001, section 5.4.2).
	return len(packet) >= 1+4+16 && packet[0]&0xc0 == 0x40
}

// Initials reads the server name of the first datagrams of a QUIC client. The
// zero value is ready. It is for one client at a time.
type Initials struct {
	datagrams, packets int

	keys initialKeys // that have opened a packet last

	// CRYPTO frames as they came, by offset: memory is taken for what has been
	// received and not for what it claims to be part of.
	data   []byte
	pieces []piece

	name string
	done bool
	err  error
}

type piece struct{ offset, at, len int32 } // at: in data

// Begun says whether anything of a hello has been found.
func (q *Initials) Begun() bool { return q.done || len(q.pieces) > 0 }

// Add takes the next datagram of the client and says whether the name is known
// by now: it is empty if the hello has none. Neither is the datagram written
// to, nor kept. Datagrams may come in any order and more than once; what does
// not decrypt is passed over, and so are packets that have no hello in them.
//
// Of the first datagram, ErrNotQUIC says that it does not begin with a long
// header, or that no client begins so; ErrUnknownVersion, that the version is
// not known and so neither where the hello is. ErrBad comes when there are more
// than MaxInitials and no name, when the hello does not fit into MaxHello, and
// when it is malformed. What was once said is said again for datagrams that
// follow.
func (q *Initials) Add(datagram []byte) (name string, done bool, err error) {
	if !q.done && q.err == nil {
		q.name, q.done, q.err = q.add(datagram)
		if q.done || q.err != nil {
			q.data, q.pieces = nil, nil
		}
	}
	return q.name, q.done, q.err
}

func (q *Initials) add(datagram []byte) (name string, done bool, err error) {
	if q.datagrams++; q.datagrams > MaxInitials {
		return "", false, ErrBad
	}
	first := q.datagrams == 1
	known := false // there was a packet that a client may begin with
	pieces := len(q.pieces)
	dcid, _, _ := LongHeaderIDs(datagram)
	for len(datagram) != 0 {
		p, rest, ok := parsePacket(datagram)
		if !ok {
			break
		}
		if !p.known() && first && !known {
			return "", false, ErrUnknownVersion
		}
		// Packets of one datagram are of one connection (RFC 9000, section 12.2).
		if !bytes.Equal(p.dcid, dcid) {
			break
		}
		switch p.kind {
		case initial:
			known = true
			if q.packets++; q.packets > MaxInitials {
				return "", false, ErrBad
			}
			if err := q.open(p); err != nil {
				return "", false, err
			}
		case zeroRTT: // it may overtake the Initial
			known = true
		default:
		}
		datagram = rest
	}
	if first && !known {
		return "", false, ErrNotQUIC
	}
	if len(q.pieces) == pieces {
		return "", false, nil
	}
	return q.read()
}

type kind int

const (
	other kind = iota
	initial
	zeroRTT
)

// A packet with a long header.
type packet struct {
	kind
	version uint32
	dcid    []byte
	raw     []byte // of a known version: up to the end of the payload
	pn      int    // where in raw the packet number is
}

func (p packet) known() bool { return p.version == version1 || p.version == version2 }

// parsePacket takes the first packet of a datagram. Those whose end is not
// known are its last.
func parsePacket(b []byte) (p packet, rest []byte, ok bool) {
	dcid, scid, ok := LongHeaderIDs(b)
	if !ok {
		return p, nil, false
	}
	p.version, p.dcid = binary.BigEndian.Uint32(b[1:]), dcid
	if p.version == 0 { // Version Negotiation, which servers send
		return p, nil, false
	}
	if !p.known() {
		return p, nil, true
	}
	if len(dcid) > maxConnectionID || len(scid) > maxConnectionID {
		return p, nil, false
	}
	bits := b[0] >> 4 & 3
	if p.version == version2 { // RFC 9369, section 3.2
		bits = (bits + 3) & 3
	}
	r := reader{b: b}
	r.skip(1 + 4 + 1 + len(dcid) + 1 + len(scid))
	switch bits {
	case 0:
		p.kind = initial
		r.skip(r.varint()) // token
	case 1:
		p.kind = zeroRTT
	case 2: // Handshake
	case 3: // Retry, which servers send
		return p, nil, false
	}
	size := r.varint()
	p.pn = len(b) - len(r.b)
	r.skip(size)
	if r.bad {
		return p, nil, false
	}
	p.raw = b[:len(b)-len(r.b)]
	return p, r.b, true
}

// open decrypts a packet and takes what there is of the hello in it.
func (q *Initials) open(p packet) error {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	// Keys follow from the destination connection ID of the client's first packet.
	// They stay the same when the server has given itself another, and not when
	// that was by a Retry (RFC 9001, section 5.2).
	if q.keys.aead != nil {
		payload, ok := q.keys.open(s, p)
		switch {
		case ok:
			return q.frames(payload)
		case q.keys.are(p):
			return nil
		}
	}
	keys := newInitialKeys(p.version, p.dcid)
	payload, ok := keys.open(s, p)
	if !ok {
		return nil
	}
	q.keys = keys
	return q.frames(payload)
}

// A scratch is what a packet is decrypted in.
type scratch struct {
	packet []byte
	mask   [aes.BlockSize]byte
	nonce  [12]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// frames takes the CRYPTO frames of an Initial packet (RFC 9000, section 17.2.2).
func (q *Initials) frames(payload []byte) error {
	r := reader{b: payload}
	for len(r.b) != 0 {
		switch r.uint(1) {
		case 0x00: // PADDING
			r.b = bytes.TrimLeft(r.b, "\x00")
		case 0x01: // PING
		case 0x02:
			r.ack()
		case 0x03: // with ECN counts
			r.ack()
			r.varint()
			r.varint()
			r.varint()
		case 0x06:
			offset := r.varint()
			data := r.bytes(r.varint())
			if r.bad {
				return ErrBad
			}
			// The rest may also be of the hello.
			q.data = slices.Grow(q.data, min(len(data)+len(r.b), MaxHello))
			if err := q.keep(offset, data); err != nil {
				return err
			}
		case 0x1c: // CONNECTION_CLOSE
			r.varint()
			r.varint()
			r.skip(r.varint())
		default:
			return ErrBad
		}
	}
	if r.bad {
		return ErrBad
	}
	return nil
}

// ack passes over an ACK frame (RFC 9000, section 19.3).
func (r *reader) ack() {
	r.varint()
	r.varint()
	n := r.varint()
	r.varint()
	for ; n > 0 && !r.bad; n-- {
		r.varint()
		r.varint()
	}
}

// keep takes a piece of the hello.
func (q *Initials) keep(offset int, data []byte) error {
	if offset > MaxHello-len(data) {
		return ErrBad
	}
	i, _ := slices.BinarySearchFunc(q.pieces, offset, func(p piece, offset int) int { return int(p.offset) - offset })
	for _, p := range q.pieces[i:] {
		if int(p.offset) != offset {
			break
		}
		if bytes.HasPrefix(q.data[p.at:p.at+p.len], data) {
			return nil
		}
	}
	if len(data) == 0 {
		return nil
	}
	if len(q.pieces) == maxPieces || len(q.data)+len(data) > MaxHello {
		return ErrBad
	}
	if q.pieces == nil {
		q.pieces = make([]piece, 0, 16)
	}
	q.pieces = slices.Insert(q.pieces, i, piece{int32(offset), int32(len(q.data)), int32(len(data))})
	q.data = append(q.data, data...)
	return nil
}

// read puts the pieces together and reads the name, if they are all there.
func (q *Initials) read() (name string, done bool, err error) {
	buffer := buffers.Get().(*[MaxHello]byte)
	defer buffers.Put(buffer)
	message := buffer[:0]
	for _, p := range q.pieces {
		data, offset := q.data[p.at:p.at+p.len], int(p.offset)
		if offset > len(message) {
			break
		}
		// What was sent once does not change (RFC 9000, section 19.6).
		again := min(len(message)-offset, len(data))
		if !bytes.Equal(message[offset:offset+again], data[:again]) {
			return "", false, ErrBad
		}
		message = append(message, data[again:]...)
	}
	if len(message) > 0 && message[0] != typeClientHello {
		return "", false, ErrBad
	}
	if len(message) < typeLen {
		return "", false, nil
	}
	total := typeLen + bodyLen(message)
	if total > MaxHello {
		return "", false, ErrBad
	}
	if len(message) < total {
		return "", false, nil
	}
	name, err = serverName(message[typeLen:total])
	return name, err == nil, err
}

// initialKeys are those that a client protects Initial packets with.
type initialKeys struct {
	version uint32
	dcid    [maxConnectionID]byte
	dcidLen int
	aead    cipher.AEAD
	header  cipher.Block
	iv      [12]byte
}

func (k *initialKeys) are(p packet) bool {
	return k.version == p.version && bytes.Equal(k.dcid[:k.dcidLen], p.dcid)
}

var (
	salt1 = []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a}
	salt2 = []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9}
)

type labels struct{ key, iv, hp string }

var (
	labels1 = labels{"quic key", "quic iv", "quic hp"}
	labels2 = labels{"quicv2 key", "quicv2 iv", "quicv2 hp"}
)

// newInitialKeys derives them (RFC 9001, section 5.2; RFC 9369, section 3.3).
func newInitialKeys(version uint32, dcid []byte) initialKeys {
	salt, labels := salt1, &labels1
	if version == version2 {
		salt, labels = salt2, &labels2
	}
	k := initialKeys{version: version, dcidLen: len(dcid)}
	copy(k.dcid[:], dcid)
	extracted := mac(salt, dcid)
	secret := expand(extracted, "client in", 32)
	key, hp, iv := expand(secret, labels.key, 16), expand(secret, labels.hp, 16), expand(secret, labels.iv, 12)
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err) // of a key's length
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	if k.header, err = aes.NewCipher(hp[:16]); err != nil {
		panic(err)
	}
	copy(k.iv[:], iv[:])
	return k
}

// expand is HKDF-Expand-Label (RFC 8446, section 7.1) with no context, for what
// is not longer than one hash: the rest of that is to be ignored.
func expand(secret [sha256.Size]byte, label string, size byte) [sha256.Size]byte {
	info := make([]byte, 0, macMessage)
	info = append(info, 0, size, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	return mac(secret[:], append(info, 0, 1))
}

// macMessage is how long a message and a key of mac may be.
const macMessage = 32

// mac is HMAC with SHA-256 (RFC 2104). That of the standard library takes
// memory, and five times as long: each datagram that somebody makes up costs
// five of them.
func mac(key, message []byte) [sha256.Size]byte {
	var inner [sha256.BlockSize + macMessage]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	copy(inner[:], key)
	copy(outer[:], key)
	for i := range sha256.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	n := copy(inner[sha256.BlockSize:], message)
	sum := sha256.Sum256(inner[:sha256.BlockSize+n])
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}

// open decrypts a packet. The payload is part of the scratch.
func (k *initialKeys) open(s *scratch, p packet) (payload []byte, ok bool) {
	if len(p.raw) < p.pn+4+aes.BlockSize {
		return nil, false
	}
	s.packet = append(s.packet[:0], p.raw...)
	b := s.packet
	// Header protection: RFC 9001, section 5.4.
	k.header.Encrypt(s.mask[:], b[p.pn+4:p.pn+4+aes.BlockSize])
	b[0] ^= s.mask[0] & 0x0f
	size := int(b[0]&3) + 1
	number := b[p.pn : p.pn+size]
	subtle.XORBytes(number, number, s.mask[1:])
	// A client's first packets have small numbers: they are not cut off.
	s.nonce = k.iv
	nonce := s.nonce[len(s.nonce)-size:]
	subtle.XORBytes(nonce, nonce, number)
	payload, err := k.aead.Open(b[p.pn+size:p.pn+size], s.nonce[:], b[p.pn+size:], b[:p.pn+size])
	return payload, err == nil
}
