package vip

import (
	"container/heap"
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// How an address is asked for and announced. RFC 5227 section 1.1 takes up to
// seven seconds to ask: it was made for a host that nobody waits for.
const (
	probes   = 3
	probeGap = 100 * time.Millisecond
	// An address that was here so short a time ago is not asked for again.
	away = 10 * time.Second
	// DEFEND_INTERVAL of RFC 5227.
	defendInterval = 10 * time.Second
	defendDelay    = 50 * time.Millisecond
	// An address that stays is looked for again this often while somebody else has
	// claimed it, and is ours alone after so long a silence.
	suspectGap, suspectFor = 20 * time.Second, time.Minute
	// longestStay is how long connections keep an address that nobody wants.
	longestStay = time.Hour
)

// announceGaps are the times between announcements: frames get lost, and a
// switch may forward nothing in the first seconds.
var announceGaps = []time.Duration{time.Second, time.Second, 3 * time.Second}

// phase is how far an address is.
type phase int

const (
	waiting phase = iota // for its interface, or the wall
	blocked              // somebody has put it on this machine
	probing
	refused // somebody else has it; asked again when due
	failed  // the kernel does not take it; tried again when due
	on      // its interface
)

// entry is an address that is wanted, or that was and is still there.
type entry struct {
	addr    netip.Addr
	device  string
	why     string
	wanted  bool
	leaveBy time.Time // not wanted: when it goes at the latest
	walled  bool      // it may be put on its interface
	phase   phase
	err     string
	sent    int       // probes, or announcements
	lost    time.Time // when it was seen to have left its interface, with that; zero: it has not
	put     time.Time // when it was put there last
	quick   int       // how often it was lost soon after that

	conflict   string    // the hardware address of somebody else
	conflictAt time.Time // when that one was last heard
	announced  time.Time // last
	defendAt   time.Time // when it is to be announced against somebody's claim; zero: nobody has made one since

	published edge.AddressState
	due       time.Time // when there is something to do; it is in its device's queue
	queued    int       // its place there; -1: it is not
}

// state is what the world is to know.
func (e *entry) state(d *device, wallError string) edge.AddressState {
	s := edge.AddressState{Ready: e.phase == on, Conflict: e.conflict, Error: e.err}
	switch {
	case d == nil: // not looked at
		s.Ready = false
	case !d.there:
		s.Ready, s.Error = false, "there is no interface "+e.device
	case !d.up:
		s.Ready, s.Error = false, "interface "+e.device+" is down"
	case e.phase == on:
	case !e.walled && wallError != "":
		s.Error = "it cannot be walled off: " + wallError
	case e.phase == waiting && !d.carrier:
		s.Error = "interface " + e.device + " has no carrier"
	}
	return s
}

// putBack says when an address is to be where it was: at once, unless somebody
// takes it away again and again.
func (e *entry) putBack(now time.Time) time.Time {
	const soon, few, pause = 10 * time.Second, 3, time.Second
	if e.quick++; now.Sub(e.put) > soon {
		e.quick = 0
	}
	if e.quick > few {
		return now.Add(pause)
	}
	return now
}

// note takes down that the state may have changed.
func (k *Keeper) note(e *entry) {
	if s := e.state(k.devices[e.device], k.wallError); s != e.published {
		e.published, k.told = s, false
	}
}

// forget drops an address that is not on the machine.
func (k *Keeper) forget(e *entry) {
	k.unqueue(e)
	delete(k.entries, e.addr)
	k.told = false
}

// queue is the entries of a device that have something to do, the next one first.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].queued, q[j].queued = i, j
}

func (q *queue) Push(x any) {
	e := x.(*entry)
	e.queued = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1], *q, e.queued = nil, old[:len(old)-1], -1
	return e
}

// schedule has something done for an entry at a time.
func (k *Keeper) schedule(e *entry, due time.Time) {
	k.unqueue(e)
	e.due = due
	heap.Push(&k.devices[e.device].queue, e)
}

func (k *Keeper) unqueue(e *entry) {
	if d := k.devices[e.device]; e.queued >= 0 && d != nil {
		heap.Remove(&d.queue, e.queued)
	}
	e.queued = -1
}
