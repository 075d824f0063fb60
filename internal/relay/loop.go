package relay

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// As many events are taken from the kernel at once. A loop comes back to
	// its timers and its inbox after each batch.
	batchSize = 256

	// One read takes this much at most. It is the most that a direction of a
	// connection ever keeps in memory, while its reader is slow.
	bufferSize = 64 << 10

	// How long a loop waits for events before it lets the Go scheduler know
	// that it does, in milliseconds, where no signal comes (asyncpreemptoff). A
	// shorter time would be the machine's next timer, and setting that costs
	// more than the call.
	shortWait = 50

	// A loop gives other goroutines their turn so often, just before Go's
	// scheduler would ask for it by a signal (forcePreemptNS, 10 ms).
	yieldAfter = 9 * time.Millisecond
)

// makeRoom lets the rest of the program run beside loops that wait without
// telling the scheduler.
var makeRoom = sync.OnceFunc(func() { runtime.GOMAXPROCS(2 * cores) })

// cores is how many loops there are: as many as the program was given, before
// makeRoom.
var cores = runtime.GOMAXPROCS(0)

// source is a descriptor that a loop watches.
type source interface {
	// ready is told of events, in the loop's thread. They are edges: what was
	// reported is not reported again before it has changed.
	ready(l *loop, events uint32)
}

// loop is one thread of the data plane: an epoll instance, and the connections
// and sessions that belong to it. Everything in it is touched by that thread
// only, except where it says otherwise; others ask by post or call. Nothing in
// it may block.
type loop struct {
	epoll int
	wake  int // eventfd: something is in the inbox
	spare int // given up for a moment to turn away a client when there is no descriptor left

	now     time.Duration // since the relay began; of the batch at hand
	began   time.Time
	events  [batchSize]unix.EpollEvent
	slots   []slot   // by descriptor
	serial  int32    // of the last slot taken
	again   []source // have more to do than is fair in one go
	wheel   wheel
	pipes   pipes
	buffer  []byte
	udp     *datagrams // once there is a UDP door
	random  func(n uint64) uint64
	doors   map[*door]*tally
	stopped bool

	load atomic.Int64 // connections: for whoever accepts one and looks for the least busy loop

	mu     sync.Mutex // guards what follows
	inbox  []func()
	awake  bool // the eventfd is set already
	closed bool // nothing is run any more
	ended  chan struct{}
}

// slot is what is known of a descriptor. The serial tells an event of what has
// been closed in the same batch from one of its successor with that number.
type slot struct {
	source source
	serial int32
}

func newLoop(began time.Time, random func(n uint64) uint64) (*loop, error) {
	l := &loop{
		began: began, random: random, buffer: make([]byte, bufferSize), doors: map[*door]*tally{},
		epoll: -1, wake: -1, spare: -1, ended: make(chan struct{}),
	}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("relay: %w", os.NewSyscallError("epoll_create1", err))
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		err = l.watch(l.wake, wakeup{}, unix.EPOLLIN|unix.EPOLLET)
	}
	if err == nil {
		err = l.saveSpare()
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("relay: %w", err)
	}
	l.wheel.start(l.tick())
	return l, nil
}

func (l *loop) close() {
	for _, fd := range []int{l.epoll, l.wake, l.spare} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	l.pipes.close()
	if l.udp != nil {
		l.udp.icmp.close()
	}
}

// watch starts to report events of a descriptor to a source.
func (l *loop) watch(fd int, s source, events uint32) error {
	l.serial++
	for fd >= len(l.slots) {
		l.slots = append(l.slots, slot{})
	}
	l.slots[fd] = slot{s, l.serial}
	if err := epollAdd(l.epoll, fd, events, l.serial); err != nil {
		l.slots[fd] = slot{}
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// forget ends that, for a descriptor that is about to be closed.
func (l *loop) forget(fd int) {
	if fd < len(l.slots) {
		l.slots[fd] = slot{}
	}
}

// unwatch ends that for a descriptor that lives on, here or, duplicated, in
// another process: closing such a one does not take it from the epoll instance.
func (l *loop) unwatch(fd int) {
	l.forget(fd)
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
}

// run serves until stop.
func (l *loop) run() {
	defer close(l.ended)
	yielded := l.now
	for !l.stopped {
		n := l.wait()
		l.now = time.Since(l.began)
		if l.now-yielded > yieldAfter {
			yielded = l.now
			runtime.Gosched()
		}
		for i := range n {
			e := &l.events[i]
			// Pad carries what watch has put there.
			if s := l.slots[e.Fd]; s.serial == e.Pad && s.source != nil {
				s.source.ready(l, e.Events)
			}
		}
		l.runAgain()
		l.wheel.advance(l, l.tick())
	}
	l.mu.Lock()
	l.closed = true
	rest := l.inbox
	l.mu.Unlock()
	for _, f := range rest {
		f()
	}
	l.close()
}

// wait returns how many events there are, and waits for one if nothing else is
// to be done.
//
// At first it waits without telling Go's scheduler, which takes whoever is
// found in a system call for blocked after 20 µs: it would take the thread's
// right to run Go away, and give it back microseconds later, with a thread of
// its own awake all the time to do so. That cost a fifth of the time at 100,000
// messages a second. Nobody has to wait for a loop that waits so: the garbage
// collector, and the scheduler after 10 ms, send a signal, and that ends the
// call.
func (l *loop) wait() int {
	timeout := 0
	if len(l.again) == 0 {
		timeout = l.wheel.next(l.now)
	}
	short := timeout
	if timeout < 0 || timeout > shortWait {
		short = shortWait
	}
	n, errno := epollWait(l.epoll, l.events[:], short)
	if n > 0 || errno == 0 && timeout == short {
		return n
	}
	// A signal came, or none and no event either: there is time.
	n, err := unix.EpollWait(l.epoll, l.events[:], timeout)
	if err != nil {
		return 0 // EINTR: a signal
	}
	return n
}

// later has the source run once more after the others had their turn.
func (l *loop) later(s source) { l.again = append(l.again, s) }

func (l *loop) runAgain() {
	n := len(l.again)
	for i := range n {
		l.again[i].ready(l, 0)
	}
	l.again = l.again[:copy(l.again, l.again[n:])]
}

// post has f run in the loop's thread. It returns at once, and may be called
// from any goroutine. After the loop's end f is run by the caller.
func (l *loop) post(f func()) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		f()
		return
	}
	l.inbox = append(l.inbox, f)
	wake := !l.awake
	l.awake = true
	l.mu.Unlock()
	if wake {
		one := [8]byte{0: 1}
		_, _ = unix.Write(l.wake, one[:])
	}
}

// call is post that waits until f has run. Not from the loop's own thread.
func (l *loop) call(f func()) {
	done := make(chan struct{})
	l.post(func() {
		f()
		close(done)
	})
	<-done
}

// stop ends run after what is at hand.
func (l *loop) stop() { l.post(func() { l.stopped = true }) }

// wakeup is the source of a loop's eventfd.
type wakeup struct{}

func (wakeup) ready(l *loop, _ uint32) {
	var count [8]byte
	_, _ = unix.Read(l.wake, count[:])
	l.mu.Lock()
	inbox := l.inbox
	l.inbox, l.awake = nil, false
	l.mu.Unlock()
	for _, f := range inbox {
		f()
	}
}

// saveSpare takes the descriptor that turnAway gives up.
func (l *loop) saveSpare() (err error) {
	l.spare, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	return os.NewSyscallError("eventfd", err)
}
