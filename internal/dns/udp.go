package dns

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// batch is how many questions are taken at once at most.
const batch = 32

// udpLoop serves one UDP socket.
type udpLoop struct {
	server *Server
	zone   *zone
	file   *os.File
	raw    syscall.RawConn

	in, out   []mmsghdr
	questions []envelope
	answers   [batch][]byte
	iovecs    [batch]unix.Iovec
	q         query
	tally     tally
	slips     uint
}

func (s *Server) newUDPLoop(z *zone, at door) (*udpLoop, error) {
	file, err := openUDP(at)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	l := &udpLoop{server: s, zone: z, file: file, raw: raw}
	l.in, l.out, l.questions = make([]mmsghdr, batch), make([]mmsghdr, batch), make([]envelope, batch)
	for i := range batch {
		l.answers[i] = make([]byte, 0, udpSize+optSize(1))
	}
	return l, nil
}

// run serves until the socket is closed.
func (l *udpLoop) run(ctx context.Context) {
	for {
		err := l.raw.Read(func(fd uintptr) bool {
			for errs := 0; ; {
				for i := range l.in {
					l.questions[i].point(&l.in[i])
				}
				n, errno := recvmmsg(fd, l.in)
				switch errno {
				case 0:
					errs = 0
					l.answer(ctx, fd, n)
				case unix.EAGAIN:
					return false
				default:
					// Of a datagram that was sent, or of the interface: the next call is
					// about the next, but for errors that do not end.
					if errs++; errs > batch {
						return false
					}
				}
				if ctx.Err() != nil {
					return true
				}
			}
		})
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}

// answer answers n questions, as far as nobody has to be asked for it.
func (l *udpLoop) answer(ctx context.Context, fd uintptr, n int) {
	v, now := l.zone.view.Load(), l.server.now()
	sends := 0
	for i := range n {
		m, e := &l.in[i], &l.questions[i]
		l.tally.udp++
		client, ok := e.client(m.Namelen)
		if !ok || m.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || e.port() == 0 {
			continue
		}
		msg := e.data[:m.bytes]
		out, reply, later := l.one(v, client, msg, l.answers[sends][:0], now)
		if later {
			l.ask(ctx, v, client, m, e, reply)
			continue
		}
		if len(out) == 0 {
			continue
		}
		l.tally.answers[rcodeOf(out)]++
		l.answers[sends] = out
		to := &l.out[sends]
		to.Msghdr = m.Msghdr
		l.iovecs[sends].Base = &out[0]
		l.iovecs[sends].SetLen(len(out))
		to.Iov = &l.iovecs[sends]
		to.Flags = 0
		sends++
	}
	for at := 0; at < sends; {
		sent, errno := sendmmsg(fd, l.out[at:sends])
		if errno != 0 {
			sent = 1 // this one cannot be sent: a client that has gone, or no room
		}
		at += sent
	}
	v.counters.add(&l.tally)
}

// rcodeOf is the code of an answer, without what EDNS adds to it.
func rcodeOf(out []byte) int { return int(out[3] & 0xf) }

// one answers a message, appending to out, or says that somebody has to be
// asked, and about what.
func (l *udpLoop) one(v *view, client netip.Addr, msg, out []byte, now time.Duration) (answer []byte, reply Reply, later bool) {
	s, q := l.server, &l.q
	rate := v.rate
	may := v.may(client)
	if !may {
		rate = refusals
	}
	limited := s.limited(s.udpLimit, client, rate, now)
	if limited {
		l.tally.limited++
		// Every other one is asked to come by TCP: who only claims to have this
		// address cannot, and who has it is not shut out.
		if l.slips++; l.slips%2 == 0 || !may {
			return out, reply, false
		}
	}
	what, rcode := q.parse(msg, l.zone.id)
	switch {
	case what == drop:
		return out, reply, false
	case !may:
		return appendFailure(out, msg, q, dns.RcodeRefused), reply, false
	case what == fail:
		return appendFailure(out, msg, q, rcode), reply, false
	case limited:
		return appendTruncated(out, msg, q), reply, false
	}
	if p := s.fresh(v, q, now); p != nil {
		l.tally.hit(p)
		return p.appendTo(out, msg, q, now, q.size), reply, false
	}
	p, rcode, reply := s.local(v, q, now)
	switch {
	case p != nil:
		l.tally.hit(p)
		return p.appendTo(out, msg, q, now, q.size), reply, false
	case reply.Asks && rcode == 0:
		return out, reply, true
	}
	return appendFailure(out, msg, q, rcode), reply, false
}

// ask has a question answered that others have to be asked for.
func (l *udpLoop) ask(ctx context.Context, v *view, client netip.Addr, m *mmsghdr, e *envelope, reply Reply) {
	s := l.server
	if !s.waiting.enter(client) {
		l.tally.limited++
		return
	}
	q := l.q
	msg := slices.Clone(e.data[:m.bytes])
	to := &envelope{name: e.name, control: e.control}
	head := m.Msghdr
	go func() {
		defer s.waiting.leave(client)
		p := s.elsewhere(ctx, v, &q, client, reply)
		if p == nil {
			return
		}
		out := p.appendTo(make([]byte, 0, udpSize), msg, &q, s.now(), q.size)
		var count tally
		count.answers[rcodeOf(out)]++
		v.counters.add(&count)
		to.iov.Base = &out[0]
		to.iov.SetLen(len(out))
		head.Name, head.Control, head.Iov, head.Flags = &to.name[0], &to.control[0], &to.iov, 0
		_ = l.raw.Control(func(fd uintptr) { _, _ = sendmmsg(fd, []mmsghdr{{Msghdr: head}}) })
	}()
}
