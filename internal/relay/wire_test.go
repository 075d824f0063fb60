package relay

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/netnstest"
)

// The oracle of these tests is a wire. Scripts say what both ends of some
// connections do: write, pause, stop reading, close in one way or another.
// Whatever that is, a relay in between must show each end what a wire would:
//
//   - what arrives is what was sent, from its first byte on, in order;
//   - an end of stream that looks clean is one: everything arrived;
//   - ends that both close well lose nothing, and see no error;
//   - a reset is a reset for the other end, not an end;
//   - nothing waits for ever.
//
// The same scripts are played on a connection without a relay: an oracle that
// asks for more than TCP keeps would fail there.

var (
	wireScripts = flag.Int("wire.scripts", 60, "how many random scripts to play")
	wireSeed    = flag.Uint64("wire.seed", 0, "play this script alone")
)

// wire is what every stream is cut from. Its length is a prime, so that what
// is off by any power of two is off by its content too.
const wireSize = 1<<20 - 3

var wire = sync.OnceValue(func() []byte {
	random := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, wireSize+largestWrite)
	for i := range wireSize {
		b[i] = byte(random.IntN(int(urgentByte)))
	}
	for i := wireSize; i < len(b); i++ {
		b[i] = b[i-wireSize]
	}
	return b
})

const (
	largestWrite = 4 << 20
	urgentByte   = 0xff // is in no stream
)

// stream is what one end says to the other.
type stream struct {
	start int
	sent  atomic.Int64 // bytes that write has taken
	got   int64        // bytes that have arrived in order
	raw   int64        // likewise, with urgent bytes that came as common ones

	mu     sync.Mutex
	urgent []int64 // positions before which an urgent byte was sent
}

// piece is the stream from pos on, n bytes at most.
func (s *stream) piece(pos int64, n int) []byte {
	from := (s.start + int(pos%wireSize)) % wireSize
	return wire()[from : from+min(n, largestWrite)]
}

// arrived checks what was read.
func (s *stream) arrived(p []byte) error {
	s.raw += int64(len(p))
	for len(p) > 0 {
		want := s.piece(s.got, len(p))
		if bytes.Equal(p[:len(want)], want) {
			s.got += int64(len(want))
			p = p[len(want):]
			continue
		}
		i := 0
		for p[i] == want[i] {
			i++
		}
		s.got += int64(i)
		if p[i] != urgentByte || !s.wasUrgent() {
			return fmt.Errorf("byte %d is %#02x, want %#02x", s.got, p[i], want[i])
		}
		p = p[i+1:]
	}
	return nil
}

// wasUrgent says whether an urgent byte was sent where the reader is: one that
// is followed by another soon becomes a common byte, as RFC 6093 explains.
func (s *stream) wasUrgent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.urgent, s.got)
	if i < 0 {
		return false
	}
	s.urgent = slices.Delete(s.urgent, i, i+1)
	return true
}

// finish is how an end ends.
type finish string

const (
	well     finish = "well"     // says that it has said all, reads to the end
	goodbye  finish = "goodbye"  // reads all that it is told, and closes without waiting for the end
	abrupt   finish = "abrupt"   // closes with bytes unread, or on their way
	reset    finish = "reset"    // likewise, by SO_LINGER 0
	endReset finish = "endReset" // says that it has said all, and is reset later
)

func (f finish) isWell() bool { return f == well || f == goodbye }

type opKind string

const (
	opWrite    opKind = "write"  // n bytes at once
	opSmall    opKind = "small"  // n times some bytes, a little apart
	opUrgent   opKind = "urgent" // a byte with MSG_OOB
	opRead     opKind = "read"   // once, n bytes at most
	opPause    opKind = "pause"
	opShutRead opKind = "shutRead"
)

type op struct {
	kind opKind
	n    int
}

// plan is what one end does.
type plan struct {
	finish         finish
	rcvbuf, sndbuf int // 0: as the kernel likes
	writes, reads  []op
	patience       time.Duration // of one that does not end well
}

func (p *plan) says() (total int64, urgent bool) {
	for _, o := range p.writes {
		switch o.kind {
		case opWrite:
			total += int64(o.n)
		case opSmall:
			total += int64(o.n) * smallSize
		case opUrgent:
			urgent = true
		default:
		}
	}
	return total, urgent
}

const smallSize = 100

// script is what happens to some connections at once.
type script struct {
	buffers int // of the relay's own sockets; 0: as the kernel likes
	conns   [][2]plan
}

// tape is the bytes that a script is made from. Beyond its end are zeros.
type tape []byte

func (t *tape) next() int {
	if len(*t) == 0 {
		return 0
	}
	b := (*t)[0]
	*t = (*t)[1:]
	return int(b)
}

func newScript(data []byte) script {
	t := tape(data)
	head := t.next()
	least, most := 0, 17 // powers of two
	if head%8 == 7 {
		least, most = 16, 22
	}
	s := script{buffers: []int{0, 4 << 10, 16 << 10, 0}[head/16%4]}
	for range 1 + head/64%3 {
		client, backend := newPlan(&t, least, most), newPlan(&t, least, most)
		client.reconcile(&backend)
		backend.reconcile(&client)
		s.conns = append(s.conns, [2]plan{client, backend})
	}
	return s
}

// reconcile lets an end say goodbye only to one that allows it: what is on its
// way from that must be known to be nothing.
func (p *plan) reconcile(peer *plan) {
	if _, urgent := peer.says(); p.finish == goodbye && (peer.finish != well || urgent) {
		p.finish = well
	}
}

func newPlan(t *tape, least, most int) plan {
	var p plan
	kinds := []finish{well, well, well, well, well, goodbye, goodbye, abrupt, reset, endReset}
	p.finish = kinds[t.next()%len(kinds)]
	switch t.next() % 8 {
	case 5:
		p.rcvbuf, p.sndbuf = 16<<10, 16<<10
	case 6:
		p.rcvbuf = 4 << 10
		least, most = 0, min(most, 14)
	case 7:
		p.sndbuf = 4 << 10
	}
	p.patience = time.Duration(t.next()%16) * time.Millisecond
	size := func() int {
		e, m := least+t.next()%(most-least), t.next()
		return 1<<e + m<<e>>8
	}
	for range t.next() % 8 {
		switch kind := t.next(); {
		case kind%16 < 10:
			p.writes = append(p.writes, op{opWrite, size()})
			if least > 0 && kind >= 128 {
				p.writes = append(p.writes, op{opSmall, bulkUntil + 2}) // no bulky flow any more
			}
		case kind%16 < 12:
			p.writes = append(p.writes, op{opSmall, 1 + t.next()%32})
		case kind%16 < 15:
			p.writes = append(p.writes, op{opPause, t.next() % 8})
		default:
			p.writes = append(p.writes, op{opUrgent, 1})
		}
	}
	for range t.next() % 6 {
		switch kind := t.next(); {
		case kind%8 < 5:
			p.reads = append(p.reads, op{opRead, size()})
		case kind%8 == 7 && !p.finish.isWell():
			p.reads = append(p.reads, op{opShutRead, 1})
		default:
			p.reads = append(p.reads, op{opPause, t.next() % 24})
		}
	}
	return p
}

// narrow says whether any buffer is small.
func (s script) narrow() bool {
	return s.buffers > 0 || slices.ContainsFunc(s.conns, func(c [2]plan) bool { return c[0].rcvbuf+c[0].sndbuf+c[1].rcvbuf+c[1].sndbuf > 0 })
}

func (s script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "relay's buffers %d\n", s.buffers)
	for i, c := range s.conns {
		for side, p := range c {
			fmt.Fprintf(&b, "  connection %d, %s: %s, buffers %d and %d, patience %v\n    writes %v\n    reads %v\n",
				i, []string{"client", "backend"}[side], p.finish, p.rcvbuf, p.sndbuf, p.patience, p.writes, p.reads)
		}
	}
	return b.String()
}

// end is one end of a connection that plays its plan.
type end struct {
	plan
	name     string
	conn     *net.TCPConn
	out, in  *stream
	expects  int64 // goodbye: so much, and then it closes
	readErr  error // nil: an end of stream, or it did not read so far
	writeErr error
	wrong    error         // what has arrived is not what was sent
	stop     chan struct{} // closed when it goes, whatever it was doing
}

func (e *end) play() {
	var reader, writer sync.WaitGroup
	writer.Go(e.write)
	reader.Go(e.read)
	done := make(chan struct{})
	go func() { writer.Wait(); close(done) }()
	if e.finish.isWell() {
		<-done
		reader.Wait()
	} else {
		patience := time.NewTimer(e.patience)
		defer patience.Stop()
		select {
		case <-done:
			// A reader that is not stopped may read what is left of its plan.
			if e.patience%2 == 0 {
				<-patience.C
			}
		case <-patience.C:
		}
		if e.finish == reset || e.finish == endReset {
			e.conn.SetLinger(0)
		}
	}
	close(e.stop)
	e.conn.Close()
	writer.Wait()
	reader.Wait()
}

// pause says whether there is still something to be done afterwards.
func (e *end) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.stop:
		return false
	}
}

func (e *end) write() {
	for _, o := range e.writes {
		switch o.kind {
		case opPause:
			e.pause(time.Duration(o.n) * time.Millisecond)
		case opUrgent:
			e.out.mu.Lock()
			e.out.urgent = append(e.out.urgent, e.out.sent.Load())
			e.out.mu.Unlock()
			e.writeErr = sendUrgent(e.conn)
		case opSmall:
			for range o.n {
				e.say(smallSize)
				e.pause(100 * time.Microsecond)
			}
		default:
			e.say(o.n)
		}
		if e.writeErr != nil {
			return
		}
	}
	if e.finish == well || e.finish == endReset {
		e.writeErr = e.conn.CloseWrite()
	}
}

func (e *end) say(n int) {
	if e.writeErr != nil {
		return
	}
	var took int
	took, e.writeErr = e.conn.Write(e.out.piece(e.out.sent.Load(), n))
	e.out.sent.Add(int64(took))
}

func sendUrgent(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Send(int(fd), []byte{urgentByte}, unix.MSG_OOB|unix.MSG_NOSIGNAL)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	return errors.Join(err, sendErr)
}

func (e *end) read() {
	buf := make([]byte, 128<<10)
	for _, o := range e.reads {
		switch o.kind {
		case opPause:
			if !e.pause(time.Duration(o.n) * time.Millisecond) {
				return
			}
		case opShutRead:
			e.conn.CloseRead()
			return
		default:
			if !e.hear(buf[:min(o.n, len(buf))]) {
				return
			}
		}
	}
	if e.finish == abrupt || e.finish == reset {
		return // the rest stays unread
	}
	for e.hear(buf) { //revive:disable-line:empty-block
	}
}

// hear reads once, and says whether there may be more.
func (e *end) hear(buf []byte) bool {
	if e.finish == goodbye && e.in.got == e.expects {
		return false
	}
	n, err := e.conn.Read(buf)
	if e.wrong = e.in.arrived(buf[:n]); e.wrong != nil {
		e.conn.Close()
		return false
	}
	if err != nil {
		if err != io.EOF { //nolint:errorlint // net says io.EOF itself
			e.readErr = err
		}
		return false
	}
	return true
}

// complaints are what a wire would not have done, as seen by this end.
func (e *end) complaints(peer *end) (said []string) {
	complain := func(format string, args ...any) { said = append(said, e.name+": "+fmt.Sprintf(format, args...)) }
	sent := e.in.sent.Load()
	if e.wrong != nil {
		complain("%v", e.wrong)
	}
	for _, err := range []error{e.readErr, e.writeErr} {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			complain("hangs after %d bytes read of %d, and %d written: %v", e.in.got, sent, e.out.sent.Load(), err)
		}
	}
	if e.in.got > sent {
		complain("read %d bytes, and the other end wrote %d", e.in.got, sent)
	}
	noError := e.readErr == nil && e.writeErr == nil
	switch {
	case e.finish.isWell() && peer.finish.isWell():
		if e.in.got != sent || !noError {
			complain("read %d bytes of %d (%v), wrote %d (%v); want all and no error", e.in.got, sent, e.readErr, e.out.sent.Load(), e.writeErr)
		}
	// A side that goes by itself has errors of its own making.
	case e.finish == well && noError:
		if peer.finish == reset {
			complain("took a reset for an end, after %d bytes of %d", e.in.got, sent)
		}
		if e.in.got != sent {
			complain("saw a clean end after %d bytes of %d", e.in.got, sent)
		}
	case e.finish == well && !errors.Is(e.readErr, syscall.ECONNRESET) && !errors.Is(e.writeErr, syscall.ECONNRESET) &&
		!errors.Is(e.writeErr, syscall.EPIPE) && !errors.Is(e.writeErr, syscall.ENOTCONN):
		complain("read: %v, write: %v; want a reset", e.readErr, e.writeErr)
	}
	return said
}

// stage is where scripts are played: through a relay or, without one, directly.
type stage struct {
	relay  *Relay // nil: none
	played int64  // bytes that ends have read
	watch  switches
}

func newStage(t testing.TB, relayed bool) *stage {
	s := new(stage)
	if relayed {
		s.relay = newRelay(t, Options{})
		openDoor(t, s.relay, loopback()) // has it start its loops
		// Package testing sets this back before it comes to the fuzz targets, and
		// once more for -count, and makeRoom does what it does only once.
		runtime.GOMAXPROCS(2 * len(s.relay.loops))
		s.relay.Apply(nil)
	}
	return s
}

// play plays a script and returns what was wrong with it.
func (s *stage) play(t testing.TB, sc script) (complaints []string) {
	t.Helper()
	descriptors := s.descriptors(t)
	// New ones for each script: that sizes of their buffers were once chosen
	// cannot be taken back.
	listener := listenLoopback(t)
	addr := addrOf(listener)
	if s.relay != nil {
		f := loopback(upAt(addr))
		addr = openDoor(t, s.relay, f)
		if sc.buffers > 0 {
			// Accepted sockets inherit them.
			fd := int32(s.relay.doors[f.Door].sockets[0])
			setOption(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int32(sc.buffers))
			setOption(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int32(sc.buffers))
		}
	}
	var ends [][2]*end
	for i, plans := range sc.conns {
		client, backend := connectEnds(t, addr, listener, plans, sc.narrow())
		there, back := &stream{start: (i*7919 + 1) % wireSize}, &stream{start: (i*104729 + 500_000) % wireSize}
		// One that says goodbye is spoken to without urgent bytes.
		toBackend, _ := plans[0].says()
		toClient, _ := plans[1].says()
		ends = append(ends, [2]*end{
			{plan: plans[0], name: fmt.Sprintf("client %d", i), conn: client, out: there, in: back, expects: toClient, stop: make(chan struct{})},
			{plan: plans[1], name: fmt.Sprintf("backend %d", i), conn: backend, out: back, in: there, expects: toBackend, stop: make(chan struct{})},
		})
	}
	if s.relay != nil {
		// A backend that resets before that has not taken the connection.
		netnstest.Eventually(t, patience, "all are connected", func() bool { return s.relay.Stats()[0].Waiting == 0 })
	}
	if s.relay != nil && sc.buffers > 0 {
		eachConn(s.relay, func(c *conn) {
			setOption(c.server.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int32(sc.buffers))
			setOption(c.server.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int32(sc.buffers))
		})
	}
	var work sync.WaitGroup
	for _, pair := range ends {
		work.Go(pair[0].play)
		work.Go(pair[1].play)
	}
	s.watchUntilDone(&work)
	allWell := true
	var toBackend, toClient uint64
	for _, pair := range ends {
		complaints = append(complaints, pair[0].complaints(pair[1])...)
		complaints = append(complaints, pair[1].complaints(pair[0])...)
		allWell = allWell && pair[0].finish.isWell() && pair[1].finish.isWell()
		toBackend += uint64(pair[1].in.raw)
		toClient += uint64(pair[0].in.raw)
	}
	s.played += int64(toBackend + toClient)
	if s.relay == nil {
		return complaints
	}
	now := settled(t, s.relay)
	complain := func(format string, args ...any) { complaints = append(complaints, fmt.Sprintf(format, args...)) }
	if now.Accepted != uint64(len(ends)) || len(now.Failures) > 0 {
		complain("%d connections were accepted, of %d; failures %v", now.Accepted, len(ends), now.Failures)
	}
	if allWell && (now.BytesToBackend != toBackend || now.BytesToClient != toClient || now.Finished != uint64(len(ends))) {
		complain("%d bytes to the backend and %d to the client were counted, %d finished; want %d, %d, %d",
			now.BytesToBackend, now.BytesToClient, now.Finished, toBackend, toClient, len(ends))
	}
	if now.BytesToBackend < toBackend || now.BytesToClient < toClient {
		complain("%d bytes to the backend and %d to the client were counted, and %d and %d arrived",
			now.BytesToBackend, now.BytesToClient, toBackend, toClient)
	}
	if b := now.Backends[0]; b.BytesToBackend != now.BytesToBackend || b.BytesToClient != now.BytesToClient || b.Active != 0 {
		complain("the backend's counters are %+v, want those of the door: %+v", b, now)
	}
	s.relay.Apply(nil)
	listener.Close()
	if n := s.descriptors(t); n != descriptors {
		complain("%d descriptors are open, there were %d", n, descriptors)
	}
	return complaints
}

// connectEnds opens a connection of two ends with the buffers they want. Small
// ones come with small segments: a window that no segment fits into moves by
// timeouts, which is slow.
func connectEnds(t testing.TB, addr netip.AddrPort, listener *net.TCPListener, plans [2]plan, small bool) (client, backend *net.TCPConn) {
	t.Helper()
	tune := func(fd uintptr, p plan) {
		if small {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1000)
		}
		if p.rcvbuf > 0 {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, p.rcvbuf)
		}
		if p.sndbuf > 0 {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, p.sndbuf)
		}
	}
	raw, err := listener.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { tune(fd, plans[1]) })
	d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { tune(fd, plans[0]) })
	}}
	conn, err := d.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	listener.SetDeadline(time.Now().Add(patience))
	backend, err = listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	client = conn.(*net.TCPConn)
	for _, c := range []*net.TCPConn{client, backend} {
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
	}
	return client, backend
}

// descriptors is how many are open, without the pipes that the loops keep for
// later: no connection may leave one behind, or a pipe that is not empty.
func (s *stage) descriptors(t testing.TB) int {
	t.Helper()
	n := openDescriptors(t)
	if s.relay == nil {
		return n
	}
	s.relay.mu.Lock()
	defer s.relay.mu.Unlock()
	for _, l := range s.relay.loops {
		l.call(func() {
			for _, p := range l.pipes.spare {
				n -= 2
				if held, err := unix.IoctlGetInt(int(p.out), unix.TIOCINQ); err != nil || held != 0 || p.held != 0 {
					t.Errorf("a spare pipe holds %d bytes (%v), and says %d", held, err, p.held)
				}
			}
		})
	}
	return n
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries) - 1 // this directory
}

// switches is what was seen of the ways that bytes go.
type switches struct {
	spliced             map[*side]bool
	toSplice, backAgain int
	held, piped         int // bytes that waited in memory, or in a pipe
}

// watchUntilDone looks at the relay's connections while a script is played.
func (s *stage) watchUntilDone(work *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	if s.relay == nil {
		<-done
		return
	}
	w := &s.watch
	w.spliced = map[*side]bool{}
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		eachConn(s.relay, func(c *conn) {
			for _, side := range []*side{&c.client, &c.server} {
				if is, was := side.bulk > 0, w.spliced[side]; is && !was {
					w.toSplice++
				} else if was && !is {
					w.backAgain++
				}
				w.spliced[side] = side.bulk > 0
				w.held = max(w.held, len(side.pending))
				if side.pipe != nil {
					w.piped = max(w.piped, side.pipe.held)
				}
			}
		})
	}
}

// tapeOf is the script of a seed.
func tapeOf(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, 200)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	if seed%5 == 0 {
		b[0] |= 7 // a large one
	}
	return b
}

func playAll(t *testing.T, s *stage, first uint64, scripts int) {
	t.Helper()
	last := first + uint64(scripts) - 1
	if *wireSeed != 0 {
		first, last = *wireSeed, *wireSeed
	}
	for seed := first; seed <= last; seed++ {
		sc := newScript(tapeOf(seed))
		if complaints := s.play(t, sc); len(complaints) > 0 {
			t.Fatalf("-wire.seed=%d\n%s\n%v", seed, strings.Join(complaints, "\n"), sc)
		}
	}
}

func TestRelayIsAWire(t *testing.T) {
	s := newStage(t, true)
	everywhere := func() bool { return s.watch.toSplice > 0 && s.watch.held > 0 && s.watch.piped > 0 }
	// That flows go back again is for TestFlowsAreSplicedWhileTheyAreBulky: few
	// do here, and it takes luck to see them. Of the rest a busy machine may show
	// little, so that more is played until it was seen.
	for round := range 10 {
		playAll(t, s, 1+uint64(round**wireScripts), *wireScripts)
		if *wireSeed != 0 || everywhere() {
			break
		}
	}
	t.Logf("%d bytes arrived; %d flows were seen to go over to splicing, %d back again; %d bytes waited in memory, %d in a pipe",
		s.played, s.watch.toSplice, s.watch.backAgain, s.watch.held, s.watch.piped)
	if *wireSeed == 0 && !everywhere() {
		t.Error("the scripts do not go everywhere")
	}
}

func TestTheOracleIsAWire(t *testing.T) {
	playAll(t, newStage(t, false), 1, *wireScripts/2)
}

// What an end has said before it says that this was all is whole, whatever
// happens to it later. That it was reset is to be known all the same: nobody
// will read the answer.
func TestResetAfterItsEndIsPassedOn(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		io.WriteString(here, "question")
		here.CloseWrite()
		if got, err := io.ReadAll(there); string(got) != "question" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		here.SetLinger(0)
		here.Close()
		netnstest.Eventually(t, patience, "the other end is reset", func() bool { return stateOf(t, there) == tcpClose })
		if s := settled(t, r); s.Resets != 1 {
			t.Errorf("Stats = %+v, want one reset", s)
		}
	})
}

// A reader that takes nothing must not hide that the other end is gone: it is
// waited for, but not for ever.
func TestResetIsSeenBehindAStalledReader(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		stall(t, r, here)
		here.SetLinger(0)
		here.Close()
		netnstest.Eventually(t, patience, "the connection is dying", func() (dies bool) {
			eachConn(r, func(c *conn) { dies = c.state == dying })
			return dies
		})
		// What was written to it arrives, and then the reset.
		n, err := io.Copy(io.Discard, there)
		s := settled(t, r)
		if said := s.BytesToBackend + s.BytesToClient; uint64(n) != said || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %d bytes, %v; want %d and a reset", n, err, said)
		}
		if s.Resets != 1 {
			t.Errorf("%d resets, want 1", s.Resets)
		}
	})
}

// stall writes until nothing goes any more: the relay holds what its buffers
// for the other end have no room for.
func stall(t testing.TB, r *Relay, from *net.TCPConn) {
	t.Helper()
	from.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := io.Copy(from, zeros{}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes, %v; want no room for more", n, err)
	}
	from.SetWriteDeadline(time.Now().Add(patience))
	held := false
	eachConn(r, func(c *conn) { held = held || c.client.holds() || c.server.holds() })
	if !held {
		t.Fatal("the relay holds nothing")
	}
}

const tcpClose = 7 // TCP_CLOSE in <netinet/tcp.h>

func stateOf(t testing.TB, c *net.TCPConn) (state uint8) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Error(err)
			return
		}
		state = info.State
	})
	return state
}

func FuzzRelayIsAWire(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(tapeOf(1000 + seed))
	}
	relayed, direct := newStage(f, true), newStage(f, false)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 400 {
			t.Skip("longer than any script")
		}
		sc := newScript(data)
		if complaints := direct.play(t, sc); len(complaints) > 0 {
			t.Fatalf("without a relay:\n%s\n%v", strings.Join(complaints, "\n"), sc)
		}
		if complaints := relayed.play(t, sc); len(complaints) > 0 {
			t.Fatalf("%s\n%v", strings.Join(complaints, "\n"), sc)
		}
	})
}

// A flow is spliced while it is bulky, and copied while it is not, whichever
// way it goes.
func TestFlowsAreSplicedWhileTheyAreBulky(t *testing.T) {
	eachWay(t, func(t *testing.T, r *Relay, here, there *net.TCPConn) {
		bulky := func() (is bool) {
			eachConn(r, func(c *conn) { is = c.client.bulk > 0 || c.server.bulk > 0 })
			return is
		}
		for range 3 {
			heard := make([]byte, largestWrite)
			for tries := 0; !bulky(); tries++ {
				// A sender that does not keep up with the relay is not bulky.
				if tries == 20 {
					t.Fatal("large messages did not make the flow bulky")
				}
				go here.Write(wire()[:largestWrite])
				if _, err := io.ReadFull(there, heard); err != nil || !bytes.Equal(heard, wire()[:largestWrite]) {
					t.Fatalf("a large message: %v, or it is another", err)
				}
			}
			for range bulkUntil + 2 {
				io.WriteString(here, "small")
				if _, err := io.ReadFull(there, heard[:5]); err != nil || string(heard[:5]) != "small" {
					t.Fatalf("read %q, %v", heard[:5], err)
				}
			}
			if bulky() {
				t.Fatal("small messages are spliced")
			}
		}
	})
}
