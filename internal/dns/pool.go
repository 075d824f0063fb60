package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// askTimeout is how long an answer is waited for, of all who are asked.
const askTimeout = 5 * time.Second

// enough is how long who is up takes for an answer at most; more is a failure,
// also if another has answered meanwhile.
const enough = 2 * time.Second

var errNobody = errors.New("there is nobody to ask")

// pool are the servers that are asked for a domain. They are asked one after the
// other, the fastest that answers first; the next one joins when the one before
// has taken longer than it should, or has nothing to say.
type pool struct {
	domain  string // empty: everything
	servers []*upstream
	// trusts says that addresses of the site are well in its answers.
	trusts bool
	// answered is when somebody last answered, on the clock of the server.
	answered atomic.Int64
}

// answerOf is an answer with who gave it.
type answerOf struct {
	msg  *dns.Msg
	from *upstream
	err  error
}

// order is who is asked first: who is due for a look whether it is back, then
// who is up, the fastest first. Who was never asked counts as fast, and who is
// passed over gets faster in memory, so that each is tried now and then.
func (p *pool) order() (due, list []*upstream) {
	type place struct {
		u    *upstream
		down bool
		rtt  time.Duration
	}
	places := make([]place, 0, len(p.servers))
	for _, u := range p.servers {
		down, isDue, rtt := u.place(time.Now())
		if isDue {
			due = append(due, u)
		}
		places = append(places, place{u, down, rtt})
	}
	slices.SortStableFunc(places, func(a, b place) int {
		if a.down != b.down {
			if a.down {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.rtt, b.rtt)
	})
	for i, at := range places {
		list = append(list, at.u)
		if i > 0 {
			at.u.passOver()
		}
	}
	return due, list
}

// ask returns the first answer that says something. One that is only a failure
// is returned if nobody has a better one.
func (p *pool) ask(ctx context.Context, wireName []byte, qtype uint16, do, cd bool) (*dns.Msg, *upstream, error) {
	if len(p.servers) == 0 {
		return nil, nil, errNobody
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	due, order := p.order()
	// Each is asked twice: a datagram may be lost.
	order = append(order, order...)
	answers := make(chan answerOf, len(due)+len(order))
	one := func(ctx context.Context, u *upstream) {
		start := time.Now()
		msg, err := u.ask(ctx, wireName, qtype, do, cd)
		took := time.Since(start)
		// Who was not given its time has not failed.
		if err == nil || !errors.Is(ctx.Err(), context.Canceled) || took > enough {
			u.note(took, err)
		}
		answers <- answerOf{msg, u, err}
	}
	for _, u := range due {
		// Though others answer before: it is about whether it answers at all.
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enough)
			defer cancel()
			one(ctx, u)
		}()
	}
	var failure answerOf
	begun, ended := 0, -len(due)
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			if begun == len(order) {
				continue
			}
			u := order[begun]
			begun++
			wait := u.patience()
			if begun >= len(p.servers) {
				wait *= 3 // all have been asked; they may have to ask others
			}
			next.Reset(wait)
			go one(ctx, u)
		case a := <-answers:
			ended++
			if a.err == nil && says(a.msg) {
				return a.msg, a.from, nil
			}
			if failure.msg == nil {
				failure = a
			}
			all := ended == begun && begun >= len(p.servers)
			if ended == len(order) || all && failure.msg != nil {
				return failure.msg, failure.from, failure.err
			}
			if all || begun < len(p.servers) {
				next.Reset(0)
			}
		case <-ctx.Done():
			if failure.msg != nil {
				return failure.msg, failure.from, failure.err
			}
			return nil, nil, fmt.Errorf("%w within %s", errNoAnswer, askTimeout)
		}
	}
}

// says tells answers from failures.
func says(m *dns.Msg) bool { return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError }
