package vip

import (
	"container/heap"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What an interface is burdened with at most: broadcasts are everybody's work.
const (
	framesPerMillisecond = 10
	mostFrames           = 250 // at once
)

// device is an interface that addresses are wanted on.
type device struct {
	name  string
	there bool
	link
	wants4, wants6 bool // addresses of either family
	arpIgnore      int  // net.ipv4.conf.*.arp_ignore
	arp, nd        *socket
	socketError    string
	queue          queue
	tokens         float64 // frames that may be sent now
	filled         time.Time
}

func (d *device) hardware() net.HardwareAddr { return net.HardwareAddr(d.mac) }

// reread looks at the machine and does what follows.
func (k *Keeper) reread(now time.Time) {
	m, err := readMachine()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != k.readError {
		k.readError, k.told = text, false
	}
	if err == nil {
		k.dirty = false
		k.settle(m, now)
	}
}

// settle brings the devices and the entries in line with the machine.
func (k *Keeper) settle(m machine, now time.Time) {
	k.machine = m
	came := k.settleDevices()
	for _, e := range k.entries {
		k.settleEntry(e, came[e.device], now)
		k.note(e)
	}
	for addr, places := range m.where {
		for _, p := range places {
			if e := k.entries[addr]; p.ours && e == nil {
				// A process before has left it, and nobody wants it.
				k.entries[addr] = &entry{
					addr: addr, device: m.names[p.index], walled: true, phase: on, queued: -1,
					leaveBy: now.Add(longestStay), sent: len(announceGaps) + 1,
				}
				k.told, k.leaving = false, true
			} else if p.ours && m.names[p.index] != e.device && k.changer != nil {
				if err := k.changer.remove(addr, p.index); err != nil {
					k.log.Warn("cannot remove an address", "address", addr, "interface", m.names[p.index], "err", err)
				}
			}
		}
	}
	k.openSockets()
}

// settleDevices returns those that neighbours are to be told about: they have
// come, or have another hardware address.
func (k *Keeper) settleDevices() (came map[string]bool) {
	came = map[string]bool{}
	for _, e := range k.entries {
		if k.devices[e.device] == nil {
			k.devices[e.device] = &device{name: e.device}
		}
	}
	for name, d := range k.devices {
		l, there := k.machine.links[name]
		if d.index != l.index {
			d.close()
		}
		came[name] = there && l.up && l.carrier && (!d.up || !d.carrier || d.mac != l.mac || d.index != l.index)
		d.there, d.link = there, l
		d.wants4, d.wants6, d.arpIgnore = false, false, arpIgnore(name)
	}
	return came
}

// settleEntry compares an entry with where its address is.
func (k *Keeper) settleEntry(e *entry, came bool, now time.Time) {
	d := k.devices[e.device]
	if e.addr.Is4() {
		d.wants4 = true
	} else {
		d.wants6 = true
	}
	here, other := false, ""
	for _, p := range k.machine.where[e.addr] {
		switch {
		case !p.ours:
			other = k.machine.names[p.index]
		case d.there && p.index == d.index:
			here = true
		}
	}
	switch {
	case here && e.phase != on: // it was put there before, and this is another attempt
		k.unqueue(e)
		e.phase, e.err, e.sent = on, "", 0
		k.schedule(e, now)
	case here && came:
		e.sent = 0
		k.schedule(e, now)
	case here:
	case !e.wanted:
		k.forget(e)
	case other != "":
		k.unqueue(e)
		e.phase, e.conflict, e.lost = blocked, "this machine itself, on interface "+other, time.Time{}
		e.err = "it is on interface " + other + ", where somebody else has put it"
	default:
		k.settleAbsent(e, d, now)
	}
}

// settleAbsent is for an entry that is wanted and not on the machine.
func (k *Keeper) settleAbsent(e *entry, d *device, now time.Time) {
	if e.phase == on {
		e.phase, e.err, e.lost = waiting, "", now
	}
	switch {
	case !d.there || !d.up:
		k.unqueue(e)
		e.phase, e.err = waiting, ""
	case !e.walled:
		return
	case !e.lost.IsZero() && now.Sub(e.lost) < away:
		// Somebody has taken it away, or the interface had to be made anew.
		if e.phase == waiting {
			e.phase, e.sent = probing, probes
			k.schedule(e, e.putBack(now))
		}
	case !d.carrier:
		k.unqueue(e)
		e.phase, e.err = waiting, ""
	case e.phase == waiting || e.phase == blocked:
		k.ask(e, now)
	}
}

// openSockets opens what is needed and missing.
func (k *Keeper) openSockets() {
	for name, d := range k.devices {
		if k.changer == nil { // it does not run yet
			return
		}
		var err error
		for _, s := range []struct {
			socket   **socket
			wanted   bool
			protocol uint16
		}{{&d.arp, d.wants4 && d.mac != "", unix.ETH_P_ARP}, {&d.nd, d.wants6 && d.mac != "", unix.ETH_P_IPV6}} {
			if *s.socket != nil && !s.wanted {
				(*s.socket).close()
				*s.socket = nil
			}
			if *s.socket != nil || !s.wanted || !d.there {
				continue
			}
			opened, openErr := openSocket(d.index, s.protocol)
			if openErr != nil {
				err = openErr
				continue
			}
			*s.socket = opened
			go opened.receive(func(c claim) { k.heard(name, c) })
		}
		d.socketError = ""
		if err != nil {
			d.socketError = err.Error()
		}
	}
}

func (d *device) close() {
	for _, s := range []**socket{&d.arp, &d.nd} {
		if *s != nil {
			(*s).close()
			*s = nil
		}
	}
}

func (k *Keeper) closeSockets() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		d.close()
	}
	k.changer = nil
}

// work does what is due on a device, as far as it may be burdened, and says in
// what time there is more.
func (k *Keeper) work(d *device, now time.Time) (next time.Duration, any bool) {
	d.tokens = min(mostFrames, d.tokens+framesPerMillisecond*float64(now.Sub(d.filled))/float64(time.Millisecond))
	d.filled = now
	for len(d.queue) > 0 {
		e := d.queue[0]
		if e.due.After(now) {
			return e.due.Sub(now), true
		}
		if d.tokens <= 0 {
			return tick, true
		}
		heap.Pop(&d.queue)
		k.advance(e, d, now)
		k.note(e)
	}
	return 0, false
}

// advance does the next thing for an entry.
func (k *Keeper) advance(e *entry, d *device, now time.Time) {
	switch e.phase {
	case refused, failed:
		k.ask(e, now)
	case probing:
		if d.mac == "" || e.sent >= probes { // without neighbours there is nobody to ask
			k.put(e, d, now)
			return
		}
		if k.send(e, d, now, probe(e.addr, d.hardware())) {
			e.sent++
			k.schedule(e, now.Add(probeGap))
		}
	case on:
		k.tell(e, d, now)
	case waiting, blocked:
	}
}

// ask begins to find out whether somebody has the address. What was found out
// the last time stays until then.
func (k *Keeper) ask(e *entry, now time.Time) {
	e.phase, e.sent, e.lost = probing, 0, time.Time{}
	k.schedule(e, now)
}

func (k *Keeper) refuse(e *entry, who string, now time.Time) {
	e.phase, e.conflict, e.conflictAt = refused, who, now
	e.err = "somebody else has it"
	// Two that have asked at the same time do not do so again.
	k.schedule(e, now.Add(k.options.AskAgain+rand.N(k.options.AskAgain/10+1)))
}

// put puts an address on its interface.
func (k *Keeper) put(e *entry, d *device, now time.Time) {
	d.tokens--
	if err := k.changer.add(e.addr, d.index); err != nil {
		if errors.Is(err, errTaken) || isGone(err) {
			k.dirty = true
		}
		e.phase, e.err = failed, "it cannot be put on interface "+e.device+": "+err.Error()
		k.schedule(e, now.Add(k.options.AskAgain))
		return
	}
	k.added = append(k.added, e.addr.String())
	e.phase, e.err, e.conflict, e.sent, e.lost, e.put = on, "", "", 0, time.Time{}, now
	k.tell(e, d, now)
}

// tell announces an address some times over, and asks who else has it as long as
// somebody seems to.
func (k *Keeper) tell(e *entry, d *device, now time.Time) {
	if d.mac == "" {
		return
	}
	switch defends := !e.defendAt.IsZero(); {
	case e.sent <= len(announceGaps):
		k.announce(e, d, now)
		if e.sent++; e.sent <= len(announceGaps) {
			k.schedule(e, now.Add(announceGaps[e.sent-1]))
			return
		}
	case defends && now.Before(e.defendAt):
		k.schedule(e, e.defendAt)
		return
	case defends:
		k.announce(e, d, now)
	}
	switch {
	case e.conflict == "":
	case now.Sub(e.conflictAt) > suspectFor:
		k.log.Info("nobody else claims the address any more", "address", e.addr, "interface", e.device)
		e.conflict = ""
	default:
		k.send(e, d, now, probe(e.addr, d.hardware()))
		k.schedule(e, now.Add(suspectGap))
	}
}

// defend has an address announced that somebody else has claimed: a moment later,
// since claims come by twos, and not too often (RFC 5227 section 2.4 (c)).
func (k *Keeper) defend(e *entry, now time.Time) {
	if !e.defendAt.IsZero() {
		return
	}
	e.defendAt = now.Add(defendDelay)
	if next := e.announced.Add(defendInterval); e.sent > len(announceGaps) && next.After(e.defendAt) {
		e.defendAt = next
	}
	if e.queued < 0 || e.defendAt.Before(e.due) {
		k.schedule(e, e.defendAt)
	}
}

// announce sends what neighbours learn the address from.
func (k *Keeper) announce(e *entry, d *device, now time.Time) {
	if !d.up || !d.carrier {
		return
	}
	e.announced, e.defendAt = now, time.Time{}
	for _, frame := range announcement(e.addr, d.hardware()) {
		d.tokens--
		if s := d.socketFor(e.addr); s != nil {
			_ = s.send(frame)
		}
	}
}

func (d *device) socketFor(addr netip.Addr) *socket {
	if addr.Is4() {
		return d.arp
	}
	return d.nd
}

// send says whether a frame was sent. If not it is to be tried again.
func (k *Keeper) send(e *entry, d *device, now time.Time, frame []byte) bool {
	d.tokens--
	s := d.socketFor(e.addr)
	if s == nil {
		e.err = "nobody can be asked whether it is free: " + d.socketError
		k.schedule(e, now.Add(time.Second))
		return false
	}
	err := s.send(frame)
	switch {
	case err == nil:
		if e.phase == probing && e.conflict == "" {
			e.err = ""
		}
		return true
	case errors.Is(err, errBusy):
		k.schedule(e, now.Add(2*tick))
	default:
		e.err = "nobody can be asked whether it is free: " + err.Error()
		k.schedule(e, now.Add(probeGap))
		k.dirty = k.dirty || isGone(err)
	}
	return false
}

// arpIgnore is what the kernel goes by: the larger of two settings (ip-sysctl.rst).
func arpIgnore(name string) int {
	largest := 0
	for _, which := range []string{"all", name} {
		if text, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + which + "/arp_ignore"); err == nil {
			n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			largest = max(largest, n)
		}
	}
	return largest
}
