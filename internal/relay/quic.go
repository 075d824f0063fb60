package relay

import (
	"bytes"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/hello"
)

// # QUIC
//
// A UDP door that is shared by names reads them from QUIC Initial packets. A
// hello may be scattered over several datagrams: until it is whole the client is
// an asker, and what it has sent is kept, and then sent on as it came.
//
// A client may have several connections from one port, to several names: those
// are sessions of their own, in slots of the port. Which one a packet is for is
// said by its connection ID, which the server has chosen; those are read from
// the long headers of what backends answer. The ones that servers hand out
// later are encrypted, and nobody in between can know them. Where there is a
// choice, a packet with such a one goes to all connections of its port: the
// servers that do not know it either drop it, or answer with a stateless reset
// that means nothing to the client (RFC 9000, section 10.3).
//
// A client whose port or address has changed (a NAT has forgotten it, a phone
// has left the house) is found by its connection ID, too. It gets a session of
// its own with that backend, which so sees that the client has moved, and makes
// sure that it is the same one (ibid., section 9). If the ID is not known, all
// backends that anybody has sessions with are asked, until one answers as only
// the right one does; or, if they are many, those that the client's address has
// sessions with. The default is among them. Otherwise the client goes there or
// nowhere, and connects anew when it has waited long enough.

const (
	// Those who have not said who they want yet, of one loop and door. Their
	// hellos come within milliseconds, so that more of them are a flood.
	maxAskers      = 1000
	maxAskersBytes = 4 << 20
	askingTimeout  = 3 * time.Second

	// A server names itself in the first datagrams that it sends.
	learnsFrom = 32
	maxIDs     = 4 // of a session: after a Retry it names itself anew

	// What a server says to a client that has moved is made to fill so many bytes
	// (RFC 9000, section 8.2.1), unless the client has sent too little for that.
	leastChallenge = 1200

	// A guess is given up that is not confirmed by then; and of one door and loop
	// there are no more than this, or strangers could have us open a session with
	// each backend for a packet of twenty bytes.
	guessTimeout = 3 * time.Second
	maxGuesses   = 256
)

// asker is a QUIC client whose hello is not whole yet.
type asker struct {
	socket   *udpSocket
	flow     flow
	opening  string // see session
	timer    timer
	initials hello.Initials
	held     [][]byte
	counted  counted
}

// The connections of one client port are told apart by a number that is kept
// above the port.
const (
	slotShift = 16
	maxSlots  = 8
)

func (f flow) slot(i int) flow {
	f.port = f.port&(1<<slotShift-1) | uint32(i)<<slotShift
	return f
}

// sessionByName is session for a door that is shared by names.
func (u *udpSocket) sessionByName(l *loop, n *names, f flow, d *datagram) (s *session, kept bool) {
	slots, several := u.slots[f]
	if d.segment > 0 && (several || u.flows[f] == nil) {
		// The kernel has put together what came from one port, of whatever
		// connection.
		for part := range parts(d) {
			one := *d
			one.data, one.segment = part, 0
			if s, kept := u.sessionByName(l, n, f, &one); s != nil {
				u.resend(l, s, part, 0)
			} else if !kept {
				u.drop(1)
			}
		}
		return nil, true
	}
	dcid, initial := opens(d.data)
	if !several {
		s, a := u.flows[f], u.asking[f]
		switch {
		case s != nil && (!initial || s.knows(dcid) || !begins(d.data)):
			return u.live(l, s, d), false
		case s == nil && (a == nil || !initial || a.opening == string(dcid)):
			return u.ask(l, n, f, a, dcid, d)
		}
		slots = 1
	} else if s, a, one := u.slotOf(f, slots, dcid, initial, d.data); one {
		if a != nil {
			return u.ask(l, n, a.flow, a, dcid, d)
		}
		return u.live(l, s, d), false
	} else if !initial || !begins(d.data) {
		return u.all(l, f, slots, d), false
	}
	free := bits.TrailingZeros8(^slots)
	if free >= maxSlots {
		// Of most of them their ends have been said, in a way that only they can read.
		if free = u.mostIdle(l, f); free < 0 {
			return nil, false
		}
		u.flows[f.slot(free)].end(l, endedIdle)
	}
	return u.ask(l, n, f.slot(free), nil, dcid, d)
}

// mostIdle is the slot of a port in which nothing has been said for longest; -1:
// there are only askers.
func (u *udpSocket) mostIdle(l *loop, f flow) int {
	longest, at := time.Duration(-1), -1
	for i := range maxSlots {
		if s := u.flows[f.slot(i)]; s != nil && s.first == 0 && s.idle(l) > longest {
			longest, at = s.idle(l), i
		}
	}
	return at
}

// opens returns the connection ID that a datagram is for, if it says so, and
// whether it may begin a connection.
func opens(data []byte) (dcid []byte, initial bool) {
	dcid, _, long := hello.LongHeaderIDs(data)
	return dcid, long && hello.Initial(data)
}

// begins says whether there is part of a hello in an Initial packet, by the keys
// of a first packet. Clients may take another connection ID while they still
// send Initials (quic-go does), to acknowledge those of the server.
func begins(data []byte) bool {
	var first hello.Initials
	_, _, err := first.Add(data)
	return err != nil || first.Begun()
}

// slotOf finds the one connection of a port that a packet is for.
func (u *udpSocket) slotOf(f flow, slots uint8, dcid []byte, initial bool, data []byte) (s *session, a *asker, one bool) {
	for i := range maxSlots {
		if slots&(1<<i) == 0 {
			continue
		}
		key := f.slot(i)
		if a := u.asking[key]; a != nil && dcid != nil && a.opening == string(dcid) {
			return nil, a, true
		}
		if s := u.flows[key]; s != nil && (dcid != nil && s.knows(dcid) || dcid == nil && s.isFor(data)) {
			return s, nil, true
		}
	}
	if slots&(slots-1) != 0 || initial {
		return nil, nil, false
	}
	key := f.slot(bits.TrailingZeros8(slots))
	s, a = u.flows[key], u.asking[key]
	return s, a, s != nil || a != nil
}

// all sends a packet to all the connections of a port, and returns one of them,
// to which it is still to be sent.
func (u *udpSocket) all(l *loop, f flow, slots uint8, d *datagram) (last *session) {
	for i := range maxSlots {
		s := u.flows[f.slot(i)]
		if slots&(1<<i) == 0 || s == nil {
			continue
		}
		if last != nil {
			for part := range parts(d) {
				u.resend(l, last, part, 0)
			}
		}
		last = s
	}
	return last
}

// occupy notes that a slot of a port is in use, if it can have more than one.
func (u *udpSocket) occupy(f flow) {
	base, slot := f.slot(0), f.port>>slotShift
	slots, several := u.slots[base]
	if !several && (u.flows[base] != nil || u.asking[base] != nil) {
		slots = 1
	}
	if several || slot > 0 {
		u.slots[base] = slots | 1<<slot
	}
}

// vacate gives a slot of a port back.
func (u *udpSocket) vacate(f flow) {
	base := f.slot(0)
	slots, several := u.slots[base]
	if !several {
		return
	}
	if slots &^= 1 << (f.port >> slotShift); slots == 0 {
		delete(u.slots, base)
	} else {
		u.slots[base] = slots
	}
}

// knows says whether a packet with a long header is of this connection.
func (s *session) knows(dcid []byte) bool {
	return s.opening == string(dcid) || slices.Contains(s.ids, string(dcid))
}

// isFor says whether a packet with a short header has an ID that is known to be
// this connection's.
func (s *session) isFor(data []byte) bool {
	return hello.ShortHeader(data) && slices.ContainsFunc(s.ids, func(id string) bool { return len(data) > len(id) && string(data[1:1+len(id)]) == id })
}

// ask reads the server name of a client that has no session. It returns one
// once the name is known, having sent on what came before. The names are those
// by which it was found that the door is shared: by now it may not be.
func (u *udpSocket) ask(l *loop, n *names, f flow, a *asker, dcid []byte, d *datagram) (s *session, kept bool) {
	if a == nil {
		if s, known := u.moved(l, f, d.data); known {
			return s, false
		}
		var why Reason
		if a, why = u.asks(l, f); why != "" {
			u.turnAway(l, u.d, u.tally, &f, a.counted, why, d.data)
			return nil, false
		}
		a.opening = string(dcid)
	}
	name, done, err := a.initials.Add(d.data)
	if !done && err == nil {
		return nil, u.keep(a, d.data)
	}
	to := n.rest
	if err == nil && name != "" {
		to = n.find(name)
	}
	switch {
	case to != nil:
		return a.give(l, to, d.data), false
	case err != nil || name == "":
		a.end(l, NotTLS, d.data)
	default:
		a.end(l, UnknownName, d.data)
	}
	return nil, false
}

// parts are the datagrams that were received as one.
func parts(d *datagram) func(yield func([]byte) bool) {
	size := d.segment
	if size <= 0 {
		size = max(len(d.data), 1)
	}
	return func(yield func([]byte) bool) {
		for part := range slices.Chunk(d.data, size) {
			if !yield(part) {
				return
			}
		}
	}
}

// asks counts a new client, and says why it may not be one.
func (u *udpSocket) asks(l *loop, f flow) (*asker, Reason) {
	u.tally.accepted()
	a := &asker{socket: u, flow: f}
	var why Reason
	if why, a.counted = u.d.admit(u.d.table.Load(), f.addr().Addr(), l.now, true); why != "" {
		return a, why
	}
	if len(u.asking) >= maxAskers {
		// Any of them: hardly one that has come just now, and will be done in a
		// moment. Those who never are must not keep out who comes.
		for _, other := range u.asking {
			other.end(l, Limit, nil)
			break
		}
	}
	a.timer.owner = a
	u.asking[f] = a
	u.occupy(f)
	l.set(&a.timer, askingTimeout)
	return a, ""
}

// keep keeps what is to be sent on once the name is known. What there is no room
// for QUIC sends again.
func (u *udpSocket) keep(a *asker, data []byte) bool {
	if u.asked+len(data) > maxAskersBytes {
		return false
	}
	u.asked += len(data)
	a.held = append(a.held, bytes.Clone(data))
	return true
}

// leave takes an asker out of the books of those who ask.
func (a *asker) leave(l *loop) {
	u := a.socket
	l.clear(&a.timer)
	delete(u.asking, a.flow)
	u.vacate(a.flow)
	for _, part := range a.held {
		u.asked -= len(part)
	}
}

// give makes a session of a frontend of an asker.
func (a *asker) give(l *loop, to *door, data []byte) *session {
	u := a.socket
	a.leave(l)
	u.tally.routed()
	u.d.release(a.flow.addr().Addr(), a.counted)
	s := u.open(l, a.flow, data, to)
	if s == nil {
		u.drop(len(a.held))
		return nil
	}
	s.learns, s.opening = learnsFrom, a.opening
	for _, part := range a.held {
		u.resend(l, s, part, 0)
	}
	return u.flows[a.flow] // it may have been refused meanwhile
}

// end turns an asker away.
func (a *asker) end(l *loop, why Reason, data []byte) {
	a.leave(l)
	a.socket.drop(len(a.held))
	a.socket.turnAway(l, a.socket.d, a.socket.tally, &a.flow, a.counted, why, data)
}

func (a *asker) expired(l *loop) { a.end(l, HelloTimeout, nil) }

// moved returns the session of a client that has been here from another
// address or port. known says that it was.
func (u *udpSocket) moved(l *loop, f flow, data []byte) (last *session, known bool) {
	id, owners, sure := u.d.ids.find(f.addr().Addr(), data)
	if !sure && len(owners) > 0 {
		if n := u.d.table.Load().names; n != nil && n.rest != nil {
			owners = append(owners, idOwner{d: n.rest}) // it may be no QUIC at all
		}
		if u.guesses+len(owners) > maxGuesses {
			return nil, false
		}
	}
	for i, of := range owners {
		if of.d.gone.Load() {
			continue
		}
		key := f
		if len(owners) > 1 {
			key = f.slot(i)
		}
		count := l.tally(of.d)
		count.accepted()
		why, as := of.d.admit(of.d.table.Load(), f.addr().Addr(), l.now, true)
		s := u.begin(l, &session{socket: u, d: of.d, tally: count, flow: key, counted: as, guess: !sure}, why, data, of.backend)
		known = true
		if s == nil {
			continue
		}
		u.d.ids.add(s, id)
		if s.guess {
			u.guesses++
			l.set(&s.timer, guessTimeout)
		}
		if last != nil {
			u.resend(l, last, data, 0)
		}
		last = s
	}
	return last, known
}

// confirm is told how much the backend of a guess has answered at once. Who does
// not know a connection answers with less than it was sent (RFC 9000, section
// 10.3.3); so that this one does, and the other guesses were wrong.
func (s *session) confirm(l *loop, size int) {
	if s.sent == 0 || size < min(s.sent, leastChallenge) {
		return
	}
	u := s.socket
	s.guess = false
	u.guesses--
	for i := range maxSlots {
		if other := u.flows[s.flow.slot(i)]; other != nil && other.guess {
			other.end(l, endedWell)
		}
	}
}

// learn looks for connection IDs that the backend has given itself.
func (s *session) learn(data []byte) {
	s.learns--
	if _, id, ok := hello.LongHeaderIDs(data); ok && len(id) > 0 && len(s.ids) < maxIDs && !slices.Contains(s.ids, string(id)) {
		s.socket.d.ids.add(s, string(id))
	}
}

// name is that of a session's frontend, if it shares the door.
func (s *session) name() string {
	if s.d == s.socket.d {
		return ""
	}
	return s.d.table.Load().name
}

func (s *session) handedIDs() (ids [][]byte) {
	for _, id := range s.ids {
		ids = append(ids, []byte(id))
	}
	return ids
}

// connectionIDs are those by which QUIC servers are known to the clients of one
// door. All loops share them: a client that moves comes to another loop. The
// zero connectionIDs are none.
type connectionIDs struct {
	mu      sync.Mutex
	of      map[string]idOwner
	lengths [maxIDLength + 1]int // how many there are of each
	// Which backends a client address has sessions with; the latest is the last.
	clients map[netip.Addr][]idOwner
	all     []idOwner // that anybody has sessions with
}

const maxIDLength = 20 // RFC 9000, section 17.2

// idOwner is where what has a connection ID goes.
type idOwner struct {
	d       *door
	backend netip.AddrPort
	users   int // sessions
}

// add notes an ID of a session's backend; the empty ID, that the session is
// there.
func (c *connectionIDs) add(s *session, id string) {
	if len(id) > maxIDLength {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of, c.clients = map[string]idOwner{}, map[netip.Addr][]idOwner{}
	}
	if !s.known {
		s.known = true
		client := s.flow.addr().Addr()
		owners := c.clients[client]
		mine := idOwner{s.d, s.backend.count.Addr, 1}
		if i := slices.IndexFunc(owners, mine.is); i >= 0 {
			mine.users += owners[i].users
			owners = slices.Delete(owners, i, i+1)
		}
		c.clients[client] = append(owners, mine)
		if i := slices.IndexFunc(c.all, mine.is); i >= 0 {
			c.all[i].users++
		} else {
			c.all = append(c.all, idOwner{mine.d, mine.backend, 1})
		}
	}
	if id == "" {
		return
	}
	mine := idOwner{s.d, s.backend.count.Addr, 1}
	owner, known := c.of[id]
	switch {
	case !known:
		c.lengths[len(id)]++
	case !owner.is(mine):
		return // two servers call themselves the same: who was first is found
	}
	mine.users += owner.users
	s.ids = append(s.ids, id)
	c.of[id] = mine
}

func (o idOwner) is(other idOwner) bool { return o.d == other.d && o.backend == other.backend }

// forget ends what a session has added.
func (c *connectionIDs) forget(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range s.ids {
		owner := c.of[id]
		if owner.users--; owner.users > 0 {
			c.of[id] = owner
			continue
		}
		delete(c.of, id)
		c.lengths[len(id)]--
	}
	s.ids = nil
	mine := idOwner{d: s.d, backend: s.backend.count.Addr}
	if i := slices.IndexFunc(c.all, mine.is); i >= 0 {
		if c.all[i].users--; c.all[i].users == 0 {
			c.all = slices.Delete(c.all, i, i+1)
		}
	}
	client := s.flow.addr().Addr()
	owners := c.clients[client]
	if i := slices.IndexFunc(owners, mine.is); i >= 0 {
		if owners[i].users--; owners[i].users == 0 {
			owners = slices.Delete(owners, i, i+1)
		}
	}
	if len(owners) == 0 {
		delete(c.clients, client)
	} else {
		c.clients[client] = owners
	}
}

// find returns who can be meant by a packet of a client that has no session: who
// has its connection ID, whose length a short header does not say; or those that
// anybody has sessions with; or, if these are many, the client's address. Sure
// is whether it was by the ID.
func (c *connectionIDs) find(client netip.Addr, packet []byte) (id string, owners []idOwner, sure bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.of) == 0 && len(c.clients) == 0 {
		return "", nil, true
	}
	if dcid, _, long := hello.LongHeaderIDs(packet); long {
		if of, ok := c.of[string(dcid)]; ok {
			return string(dcid), []idOwner{of}, true
		}
		return "", nil, true
	}
	if !hello.ShortHeader(packet) {
		return "", nil, true
	}
	for n := maxIDLength; n > 0; n-- {
		if c.lengths[n] == 0 || len(packet) <= n {
			continue
		}
		if of, ok := c.of[string(packet[1:1+n])]; ok {
			return string(packet[1 : 1+n]), []idOwner{of}, true
		}
	}
	owners = c.all
	if len(owners) >= maxSlots { // and one is left for the default
		owners = c.clients[client]
	}
	return "", slices.Clone(owners[max(len(owners)-maxSlots+1, 0):]), false
}
