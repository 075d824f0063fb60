package hello

import "sync"

const (
	recordHandshake = 22
	recordHeader    = 5
	maxFragment     = 16 << 10
)

// TLS reads the server name of the hello that b begins with. The name is empty
// if the hello has none. ErrShort asks to be called with more bytes, again from
// the first: there are fewer than MaxHello so far, and MaxHello are enough.
// ErrNotTLS comes with the first byte that no TLS client sends; hellos of
// SSLv2 are not TLS either. ErrBad is TLS, whose hello is malformed or does not
// fit into MaxHello. What is not ErrShort stays as it is, whatever follows.
func TLS(b []byte) (name string, err error) {
	var (
		header [typeLen]byte // of the message, which may be in pieces, too
		got    int           // bytes of the message so far
		total  = typeLen     // bytes of the message, as far as is known
		off    int           // of the record in b
	)
	for off+recordHeader+total-got <= MaxHello {
		record := b[off:]
		wrong := ErrBad
		if off == 0 {
			wrong = ErrNotTLS
		}
		// Versions are 3.x, of whichever x (RFC 5246, appendix E.1; RFC 8446,
		// section 5.1).
		if len(record) > 0 && record[0] != recordHandshake || len(record) > 1 && record[1] != 3 {
			return "", wrong
		}
		if len(record) < recordHeader {
			return "", ErrShort
		}
		size := int(record[3])<<8 | int(record[4])
		if size == 0 || size > maxFragment {
			return "", ErrBad
		}
		fragment := record[recordHeader:min(recordHeader+size, len(record))]
		if got < typeLen {
			n := copy(header[got:], fragment)
			if n > 0 && header[0] != typeClientHello {
				return "", wrong
			}
			if got+n == typeLen {
				total += bodyLen(header[:])
				if off+recordHeader+total-got > MaxHello {
					return "", ErrBad
				}
			}
		}
		switch {
		case got+len(fragment) < total && len(fragment) < size:
			return "", ErrShort
		case got+len(fragment) < total:
		case got == 0:
			return serverName(fragment[typeLen:total])
		default:
			return assembled(b, total)
		}
		got += size
		off += recordHeader + size
	}
	return "", ErrBad
}

var buffers = sync.Pool{New: func() any { return new([MaxHello]byte) }}

// assembled reads the name of a message of total bytes that is in several
// records of b, which has all of them.
func assembled(b []byte, total int) (string, error) {
	buffer := buffers.Get().(*[MaxHello]byte)
	defer buffers.Put(buffer)
	message := buffer[:0]
	for len(message) < total {
		size := min(int(b[3])<<8|int(b[4]), total-len(message))
		message = append(message, b[recordHeader:recordHeader+size]...)
		b = b[recordHeader+size:]
	}
	return serverName(message[typeLen:])
}
