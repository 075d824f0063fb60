package dhcpclient

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// state is one of RFC 2131 §4.4, figure 5, and two that it has no name for.
type state int

const (
	off        state = iota // the interface is not there, or cannot pass packets
	selecting               // who gives an address?
	requesting              // one is taken
	rebooting               // is that of before still good?
	checking                // does somebody else have it?
	bound
	renewing
	rebinding
	waiting // after a refusal
)

var stateNames = map[state]string{
	off: "off", selecting: "selecting", requesting: "requesting", rebooting: "rebooting", checking: "checking",
	bound: "bound", renewing: "renewing", rebinding: "rebinding", waiting: "waiting",
}

func (s state) String() string { return stateNames[s] }

const (
	// firstRetry is when a question that nobody has answered is asked again; then in
	// twice that time, and so on up to lastRetry. RFC 2131 §4.1 begins with 4 s, for
	// the networks of 1997.
	firstRetry = time.Second
	lastRetry  = 64 * time.Second
	// So often is asked for an address that was offered, or had before.
	mostRequests = 4
	mostReboots  = 3
	// afterDecline is how long it waits after an address that somebody else had (RFC
	// 2131 §3.1.5), and after a second refusal in a row.
	afterDecline = 10 * time.Second
	// leastRenewal is the shortest time between two requests for more time (RFC 2131
	// §4.4.5).
	leastRenewal = time.Minute
	// checkFor is when there has to be an answer whether an address is free.
	checkFor = 5 * time.Second
)

// action is what is to be done.
type action struct {
	send    *ask
	unicast bool       // to the server, from the address that it has given
	probe   netip.Addr // find out whether somebody has it; then call checked
	tell    netip.Addr // let neighbours know that it is here
	changed bool       // the lease is another, or none
}

// machine decides what a client does. It has no clock, and is told what happens.
type machine struct {
	link     string
	hostname string
	random   func() uint32

	mac      [6]byte
	state    state
	xid      [4]byte
	began    time.Time // the attempt
	asked    time.Time // the last question
	tries    int
	due      time.Time // when to call timer; zero: never
	refusals int       // in a row
	answered bool      // there was a lease, or a refusal

	lease     *Lease // in use, or of before
	used      bool   // it may be used
	candidate *Lease // to be used once it is known that nobody has it
	offer     reply
	problem   string // for people
}

// active is the lease that may be used now; nil: none.
func (m *machine) active() *Lease {
	if m.used {
		return m.lease
	}
	return nil
}

// up is called when the interface can pass packets, perhaps others than before.
func (m *machine) up(now time.Time, l Link) []action {
	var out []action
	if m.mac != l.MAC {
		if m.mac != [6]byte{} {
			out = m.drop() // it was given to another
		}
		m.mac = l.MAC
	}
	if m.lease != nil && (m.lease.expired(now) || m.lease.MAC != net.HardwareAddr(l.MAC[:]).String()) {
		out = append(out, m.drop()...)
	}
	if m.lease == nil {
		return append(out, m.discover(now)...)
	}
	for _, a := range l.Addrs {
		if !m.used && a == m.lease.Addr { // of a process before
			m.used = true
			out = append(out, action{changed: true})
		}
	}
	m.begin(now, rebooting)
	return append(out, m.request(now))
}

// down is called when the interface has gone, or cannot pass packets. The address
// stays: cables are put back.
func (m *machine) down(now time.Time) []action {
	m.state, m.candidate = off, nil
	m.due = time.Time{}
	if m.used {
		m.due = m.lease.Expires
	}
	return m.expire(now)
}

func (m *machine) begin(now time.Time, s state) {
	m.state, m.began, m.tries = s, now, 0
	r := m.random()
	m.xid = [4]byte{byte(r >> 24), byte(r >> 16), byte(r >> 8), byte(r)}
}

// drop forgets the lease, and says so if it was used.
func (m *machine) drop() []action {
	was := m.used
	m.answered = m.answered || was
	m.lease, m.used, m.candidate = nil, false, nil
	if !was {
		return nil
	}
	return []action{{changed: true}}
}

// expire drops a lease that is over.
func (m *machine) expire(now time.Time) []action {
	if m.lease == nil || !m.lease.expired(now) {
		return nil
	}
	m.problem = fmt.Sprintf("its lease of %s has expired, and no DHCP server has answered", m.lease.Addr.Addr())
	return m.drop()
}

func (m *machine) discover(now time.Time) []action {
	m.begin(now, selecting)
	return []action{m.message(now, ask{kind: dhcpv4.MessageTypeDiscover})}
}

// message completes a question, and says when it is asked again.
func (m *machine) message(now time.Time, a ask) action {
	a.xid, a.mac, a.hostname = m.xid, m.mac, m.hostname
	a.secs = uint16(min(now.Sub(m.began)/time.Second, 0xffff))
	m.asked = now
	wait := min(firstRetry<<min(m.tries, 6), lastRetry)
	m.tries++
	// Somewhat more or less, so that many do not ask at the same time.
	m.due = now.Add(wait*7/8 + time.Duration(m.random()%1000)*wait/4000)
	return action{send: &a}
}

// request asks for the address that was offered, or was had before.
func (m *machine) request(now time.Time) action {
	a := ask{kind: dhcpv4.MessageTypeRequest}
	switch m.state {
	case requesting:
		a.requested, a.server = m.offer.addr, m.offer.server
	case rebooting:
		a.requested = m.lease.Addr.Addr()
	default:
		a.own = m.lease.Addr.Addr()
	}
	out := m.message(now, a)
	out.unicast = m.state == renewing
	if end := m.lease; m.state == renewing {
		m.due = later(now, end.Rebind)
	} else if m.state == rebinding {
		m.due = later(now, end.Expires)
	}
	return out
}

// later is when more time is asked for again: in half of what is left.
func later(now, end time.Time) time.Time {
	next := now.Add(max(leastRenewal, end.Sub(now)/2))
	if next.After(end) {
		return end
	}
	return next
}

// timer is called when due is over.
func (m *machine) timer(now time.Time) []action {
	if m.due.IsZero() || now.Before(m.due) {
		return nil
	}
	m.due = time.Time{}
	gone := m.expire(now)
	if m.lease == nil && m.state != off && (gone != nil || m.state == rebooting || m.state == bound || m.state == renewing || m.state == rebinding) {
		return append(gone, m.discover(now)...)
	}
	switch m.state {
	case off:
		return gone
	case waiting:
		return m.discover(now)
	case selecting:
		m.problem = "no DHCP server answers"
		return []action{m.message(now, ask{kind: dhcpv4.MessageTypeDiscover})}
	case requesting:
		if m.tries < mostRequests {
			return []action{m.request(now)}
		}
		return m.discover(now)
	case rebooting:
		if m.tries < mostReboots {
			return []action{m.request(now)}
		}
		return m.goOn(now)
	case checking: // nobody has found out: as if it were free
		return m.checked(now, "")
	case bound:
		m.begin(now, renewing)
		return []action{m.request(now)}
	case renewing, rebinding:
		if m.state == renewing && !now.Before(m.lease.Rebind) {
			m.begin(now, rebinding)
		}
		m.problem = fmt.Sprintf("the DHCP server %s does not answer; the lease of %s ends %s", m.lease.Server, m.lease.Addr.Addr(), m.lease.Expires.UTC().Format(time.RFC3339))
		return []action{m.request(now)}
	}
	return nil
}

// goOn uses the lease of before though nobody has said that it is good (RFC 2131
// §3.2 (4)).
func (m *machine) goOn(now time.Time) []action {
	if m.lease == nil || m.lease.expired(now) {
		return append(m.drop(), m.discover(now)...)
	}
	m.problem = fmt.Sprintf("no DHCP server answers; the lease of %s, of before, is used", m.lease.Addr.Addr())
	if m.used {
		return m.settle(now)
	}
	return m.check(m.lease, now)
}

// settle waits until more time is to be asked for.
func (m *machine) settle(now time.Time) []action {
	m.state, m.due = bound, m.lease.Renew
	if !m.lease.Renew.IsZero() && now.After(m.lease.Renew) {
		m.due = now
	}
	return nil
}

// check has it found out whether somebody else has the address.
func (m *machine) check(l *Lease, now time.Time) []action {
	m.candidate, m.state, m.due = l, checking, now.Add(checkFor)
	return []action{{probe: l.Addr.Addr()}}
}

// checked is called with the MAC address of who else has the address, or none.
func (m *machine) checked(now time.Time, who string) []action {
	if m.state != checking || m.candidate == nil {
		return nil
	}
	l := m.candidate
	m.candidate = nil
	if who == "" {
		m.lease, m.used, m.problem, m.refusals, m.answered = l, true, "", 0, true
		return append(m.settle(now), action{changed: true}, action{tell: l.Addr.Addr()})
	}
	m.begin(now, waiting)
	out := append(m.drop(), m.message(now, ask{kind: dhcpv4.MessageTypeDecline, requested: l.Addr.Addr(), server: l.Server}))
	m.problem = fmt.Sprintf("the DHCP server %s gives %s, which %s has; it was told, and is asked for another", l.Server, l.Addr.Addr(), who)
	m.due = now.Add(afterDecline)
	return out
}

// packet is called with what servers say.
func (m *machine) packet(now time.Time, r reply) []action {
	if r.xid != m.xid || r.mac != m.mac {
		return nil
	}
	switch {
	case m.state == selecting && r.kind == dhcpv4.MessageTypeOffer:
		m.offer = r
		began := m.began
		m.state, m.tries = requesting, 0
		m.began = began // the servers are told how long it takes in all
		return []action{m.request(now)}
	case m.state != requesting && m.state != rebooting && m.state != renewing && m.state != rebinding:
		return nil
	case r.kind == dhcpv4.MessageTypeNak:
		return m.refused(now, r)
	case r.kind != dhcpv4.MessageTypeAck || m.state == requesting && r.server != m.offer.server:
		return nil
	}
	l := r.lease(m.link, m.asked)
	if l.expired(now) {
		return nil
	}
	if m.used && m.lease.Addr == l.Addr {
		m.lease, m.problem, m.refusals = l, "", 0
		return append(m.settle(now), action{changed: true})
	}
	return m.check(l, now)
}

// refused is called when a server says that an address is not good any more: it is
// not used from now on.
func (m *machine) refused(now time.Time, r reply) []action {
	if m.state == requesting && r.server.IsValid() && r.server != m.offer.server {
		return nil
	}
	out := m.drop()
	m.refusals++
	m.answered = true
	m.problem = "a DHCP server has refused the address that was asked for"
	if r.text != "" {
		m.problem += ": " + r.text
	}
	if m.refusals == 1 {
		return append(out, m.discover(now)...)
	}
	m.begin(now, waiting)
	m.due = now.Add(afterDecline)
	return out
}

// release gives the address back.
func (m *machine) release(now time.Time) []action {
	if m.lease == nil || !m.used {
		return nil
	}
	l := m.lease
	m.begin(now, off)
	out := action{send: &ask{kind: dhcpv4.MessageTypeRelease, xid: m.xid, mac: m.mac, own: l.Addr.Addr(), server: l.Server}, unicast: true}
	return append([]action{out}, m.drop()...)
}
