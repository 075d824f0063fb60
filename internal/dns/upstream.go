package dns

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// Who has not answered so many questions in a row is down: it is asked after
	// those that are not.
	downAfter = 3
	// And it is tried this often.
	lookAfter = 5 * time.Second
	// How long nobody tries to hide in the case of names from who breaks it.
	caseBroken = time.Hour
	// A spoofer sends many answers, in the hope that one fits. After so many that
	// do not, we ask by TCP.
	wrongAnswers = 8
	// One exchange by TCP or TLS, the handshake included.
	streamTimeout = 4 * time.Second
	// What an answer by UDP may be long: we ask for udpSize.
	udpBuffer = 4096
)

var (
	errSpoofed   = errors.New("answers came that it cannot have sent")
	errTruncated = errors.New("the answer is truncated")
	errCase      = errors.New("the answer spells the name in another way than the question")
)

// upstream is a server that is asked, with what is known of it. It outlives
// changes of the configuration.
type upstream struct {
	Upstream

	stream *stream // its connection, by TLS or for what UDP truncates

	mu        sync.Mutex
	rtt       time.Duration // smoothed
	misses    int           // questions in a row without an answer
	looked    time.Time     // when it was last tried, being down
	lastError string
	keepCase  time.Time // until then its answers are known to break the case of names
	loops     time.Time // when it last asked us what we had asked it

	queries, failed atomic.Uint64
}

func newUpstream(u Upstream, roots *x509.CertPool) *upstream {
	up := &upstream{Upstream: u}
	up.stream = &stream{addr: u.Addr}
	if u.TLS != "" {
		up.stream.tls = &tls.Config{
			ServerName: u.TLS, RootCAs: roots, MinVersion: tls.VersionTLS12,
			NextProtos: []string{"dot"}, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		}
	}
	return up
}

// place is how it stands among others: whether it is down, and then whether it is
// time to see if it is back; and how fast it is.
func (u *upstream) place(now time.Time) (down, due bool, rtt time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	down = u.misses >= downAfter
	if down && now.Sub(u.looked) >= lookAfter {
		u.looked, due = now, true
	}
	return down, due, u.rtt
}

func (u *upstream) passOver() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rtt = u.rtt * 98 / 100
}

// patience is how long it is waited for until another is asked as well.
func (u *upstream) patience() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.misses > 0 || u.rtt == 0 {
		return 300 * time.Millisecond
	}
	return min(max(4*u.rtt, 100*time.Millisecond), time.Second)
}

func (u *upstream) note(took time.Duration, err error) {
	u.queries.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		u.failed.Add(1)
		u.misses++
		u.lastError = err.Error()
		return
	}
	u.misses = 0
	if u.rtt == 0 {
		u.rtt = took
	} else {
		u.rtt = (7*u.rtt + took) / 8
	}
}

// ask asks it once. The answer is to the question: the ID, the name in its very
// case and the type are those that were sent. Its name is in lower case again.
func (u *upstream) ask(ctx context.Context, wireName []byte, qtype uint16, do, cd bool) (*dns.Msg, error) {
	if u.TLS != "" {
		return u.byStream(ctx, wireName, qtype, do, cd)
	}
	u.mu.Lock()
	mix := time.Now().After(u.keepCase)
	u.mu.Unlock()
	m, err := u.byUDP(ctx, wireName, qtype, do, cd, mix)
	switch {
	case errors.Is(err, errTruncated), errors.Is(err, errSpoofed):
		return u.byStream(ctx, wireName, qtype, do, cd)
	case errors.Is(err, errCase):
		// Either it breaks the case of every name, or that was not its answer. By
		// TCP nobody else can answer.
		m, err := u.byStream(ctx, wireName, qtype, do, cd)
		if err == nil || ctx.Err() != nil {
			u.breaksCase(err == nil && u.stream.broken())
			return m, err
		}
		// It does not speak TCP. Another port and ID have to do.
		if m, err = u.byUDP(ctx, wireName, qtype, do, cd, false); err == nil {
			u.breaksCase(true)
		}
		return m, err
	}
	return m, err
}

func (u *upstream) breaksCase(yes bool) {
	if yes {
		u.mu.Lock()
		u.keepCase = time.Now().Add(caseBroken)
		u.mu.Unlock()
	}
}

// byUDP asks from a port that is used for nothing else.
func (u *upstream) byUDP(ctx context.Context, wireName []byte, qtype uint16, do, cd, mix bool) (*dns.Msg, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", u.Addr.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	q := question(wireName, qtype, do, cd, mix, false)
	if _, err := conn.Write(q); err != nil {
		return nil, err
	}
	buf := make([]byte, udpBuffer)
	for range wrongAnswers {
		n, err := conn.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				err = errNoAnswer
			}
			return nil, err
		}
		switch err := answers(buf[:n], q, len(wireName)); {
		case err == nil:
			return unpackAnswer(buf[:n], wireName)
		case errors.Is(err, errCase):
			return nil, err
		}
	}
	return nil, errSpoofed
}

var (
	errNoAnswer = errors.New("no answer")
	errNoMatch  = errors.New("not an answer to the question")
)

// answers says whether a message is the answer to a question.
func answers(msg, q []byte, nameLength int) error {
	end := headerSize + nameLength + 4
	if len(msg) < headerSize || msg[0] != q[0] || msg[1] != q[1] || msg[2]&(bitQR>>8) == 0 || msg[2]>>3&0xf != 0 {
		return errNoMatch
	}
	if len(msg) < end || binary.BigEndian.Uint16(msg[4:]) != 1 {
		// Some servers that understand nothing say so without a question.
		if rcode := int(msg[3] & 0xf); len(msg) == headerSize && (rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented || rcode == dns.RcodeRefused || rcode == dns.RcodeServerFailure) {
			return nil
		}
		return errNoMatch
	}
	if string(msg[end-4:end]) != string(q[end-4:end]) {
		return errNoMatch
	}
	same := true
	for i := headerSize; i < end-4; i++ {
		if msg[i] != q[i] {
			same = false
			if lower(msg[i]) != lower(q[i]) {
				return errNoMatch
			}
		}
	}
	if !same {
		return errCase
	}
	return nil
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// unpackAnswer reads an answer. The name that was asked for gets its own case
// back first, so that whatever points to it in the message has it too.
func unpackAnswer(msg, wireName []byte) (*dns.Msg, error) {
	if len(msg) == headerSize {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: int(msg[3] & 0xf)}}, nil
	}
	if msg[2]&(bitTC>>8) != 0 {
		return nil, errTruncated
	}
	copy(msg[headerSize:], wireName)
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return m, nil
}

// question makes a message that asks, with a random ID, and the name in a random case (0x20).
func question(wireName []byte, qtype uint16, do, cd, mix, pad bool) []byte {
	var dice [2 + maxName/8 + 1]byte
	_, _ = rand.Read(dice[:]) // does not fail
	q := make([]byte, headerSize, headerSize+len(wireName)+4+11+4+128)
	q[0], q[1] = dice[0], dice[1]
	flags := uint16(bitRD | bitAD) // AD: we understand it (RFC 6840 §5.7)
	if cd {
		flags |= bitCD
	}
	binary.BigEndian.PutUint16(q[2:], flags)
	q[5], q[11] = 1, 1
	q = append(q, wireName...)
	if mix {
		for i := headerSize; i < len(q); i++ {
			n := i - headerSize
			// Lengths are 63 at most, which is below any letter.
			if c := q[i]; 'a' <= c && c <= 'z' && dice[2+n/8]>>(n%8)&1 == 1 {
				q[i] = c - ('a' - 'A')
			}
		}
	}
	q = binary.BigEndian.AppendUint16(q, qtype)
	q = binary.BigEndian.AppendUint16(q, dns.ClassINET)
	do8 := byte(0)
	if do {
		do8 = 0x80
	}
	q = append(q, 0, 0, byte(dns.TypeOPT), udpSize>>8, udpSize&0xff, 0, 0, do8, 0, 0, 0)
	if pad { // to a multiple of 128 bytes (RFC 8467 §4.1)
		const block = 128
		padding := (block - (len(q)+4)%block) % block
		q[len(q)-1] = byte(4 + padding)
		q = append(q, 0, dns.EDNS0PADDING, 0, byte(padding))
		q = append(q, make([]byte, padding)...)
	}
	return q
}

// byStream asks over a connection that stays open for the next question.
func (u *upstream) byStream(ctx context.Context, wireName []byte, qtype uint16, do, cd bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	q := question(wireName, qtype, do, cd, u.TLS == "", u.TLS != "")
	msg, err := u.stream.exchange(ctx, q)
	if err != nil {
		return nil, err
	}
	err = answers(msg, q, len(wireName))
	u.stream.sawCase(errors.Is(err, errCase))
	if err != nil && !errors.Is(err, errCase) {
		return nil, err
	}
	msg[2] &^= bitTC >> 8 // there is no more to be had
	return unpackAnswer(msg, wireName)
}

// trusted says that nobody between here and it can have changed what it says.
func (u *upstream) trusted() bool { return u.TLS != "" || u.Addr.Addr().IsLoopback() }

// Usable says that asking it, at this server's port, is not asking this server,
// which has self's addresses.
func (u Upstream) Usable(self []netip.Addr, port uint16) bool {
	if u.Addr.Port() != port || u.TLS != "" {
		return true
	}
	for _, a := range self {
		if a == u.Addr.Addr().Unmap().WithZone("") {
			return false
		}
	}
	return true
}
