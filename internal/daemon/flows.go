package daemon

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nat"
)

// service is what a client has connected to, as far as conntrack tells: not by
// which interface. addr is one of a pool; zero: any other of this machine.
type service struct {
	protocol edge.Protocol
	addr     netip.Addr
	port     uint16
}

// backing are the backends of a service, and how connections to them end.
type backing struct {
	backends map[netip.AddrPort]keeping
	left     map[netip.AddrPort]time.Time // those that are gone, since when
	devices  map[string]bool              // at which it has a door
	shut     map[string]time.Time         // at which it has none any more, since when
	drain    time.Duration                // 0: their connections end by themselves
	closed   time.Time                    // the service itself is gone, since then
}

func newBacking() backing {
	return backing{
		backends: map[netip.AddrPort]keeping{}, left: map[netip.AddrPort]time.Time{},
		devices: map[string]bool{}, shut: map[string]time.Time{},
	}
}

// has says whether an address is that of a backend, or was.
func (b backing) has(addr netip.AddrPort) bool {
	_, there := b.backends[addr]
	_, left := b.left[addr]
	return there || left
}

// keeping says what becomes of the flows of a backend that is there.
type keeping int

const (
	keepAll  keeping = iota
	keepOpen         // it is down: what has not begun, and what is UDP, goes elsewhere
	keepNone         // likewise, and what is open is cut
)

// flows is what went to a backend, and how much of it is there now.
type flows struct {
	nat.Count
	active uint64
}

// answers is what a backend had got and given when it was last looked at.
type answers struct {
	toBackend, toClient uint64    // packets
	silent              time.Time // since when it got some and gave none; zero: it is not
}

func serviceOf(d edge.Door) service { return service{d.Protocol, d.Listen.Addr, d.Listen.Port} }

// serviceAtLocked is the service that a flow would be of, if it is ours. device is
// that of the address that its client has used; empty: it is none of this
// machine's, or of a pool and on none at the moment.
func (k *kernel) serviceAtLocked(f conntrack.Flow) (s service, device string) {
	s = service{protocol: f.Protocol, port: f.Front.Port()}
	addr := f.Front.Addr()
	if k.pool[addr] {
		s.addr = addr
	}
	return s, k.own[addr]
}

// isHere says whether a flow is to an address of this machine. Those of pools are:
// nobody else has translated what came to them.
func (s service) isHere(device string) bool { return s.addr.IsValid() || device != "" }

// poolLocked finds out which addresses are for doors that have them, also for
// those that are gone and have connections. Until the cluster is read, so are those
// of before: this machine still has them, though no Service is known for them.
func (k *kernel) poolLocked(addresses []edge.Address) []netip.Addr {
	k.pool = map[netip.Addr]bool{}
	for _, a := range addresses {
		k.pool[a.Addr] = true
		k.own[a.Addr] = a.Device
	}
	for s := range k.behind {
		if s.addr.IsValid() {
			k.pool[s.addr] = true
		}
	}
	if !k.read {
		for _, addr := range k.nat.Addresses() {
			k.pool[addr] = true
		}
	}
	return slices.SortedFunc(maps.Keys(k.pool), netip.Addr.Compare)
}

// followLocked notes which backends are gone, so that flows to them are
// forgotten. What moves to the relay is no longer the kernel's: connections end
// by themselves, and UDP clients, who may go on for ever, come to the relay.
func (k *kernel) followLocked(moving map[edge.Door]bool) {
	now := time.Now()
	next := map[service]backing{}
	for _, f := range k.wanted.Frontends {
		s := serviceOf(f.Door)
		b, ok := next[s]
		if !ok {
			b = newBacking()
		}
		b.devices[f.Listen.Device] = true
		b.drain = max(b.drain, f.DrainTimeout)
		for _, backend := range f.Backends {
			keep := keepAll
			switch {
			case backend.State != edge.Down || backend.Share > 0:
			case f.CloseWhenDown:
				keep = keepNone
			default:
				keep = keepOpen
			}
			if before, ok := b.backends[backend.Addr]; !ok || keep < before { // in another zone
				b.backends[backend.Addr] = keep
			}
		}
		for _, addr := range f.Terminating {
			b.backends[addr] = keepAll
		}
		next[s] = b
	}
	for _, door := range k.wanted.Keep {
		s := serviceOf(door)
		b, ok := next[s]
		if !ok {
			b = newBacking()
			next[s] = b
		}
		b.devices[door.Listen.Device] = true
		for addr := range k.behind[s].backends {
			if _, ok := b.backends[addr]; !ok {
				b.backends[addr] = keepAll
			}
		}
	}
	gone := map[service]bool{}
	for door := range moving {
		gone[serviceOf(door)] = true
	}
	for s, before := range k.behind {
		b, ok := next[s]
		switch {
		case !ok && gone[s] && s.protocol == edge.TCP:
			continue
		case !ok:
			b = before
			if b.closed.IsZero() {
				b.closed = now
				k.purgeSoonLocked()
				k.drainLocked(now, b.drain)
			}
			next[s] = b
			continue
		}
		maps.Copy(b.shut, before.shut)
		for device := range before.devices {
			if !b.devices[device] {
				b.shut[device] = now
				k.purgeSoonLocked()
			}
		}
		maps.DeleteFunc(b.shut, func(device string, since time.Time) bool { return b.devices[device] || now.Sub(since) > shutTime })
		for addr, since := range before.left {
			if _, back := b.backends[addr]; !back {
				b.left[addr] = since
			}
		}
		for addr, kept := range before.backends {
			keep, ok := b.backends[addr]
			if !ok {
				b.left[addr] = now
				k.drainLocked(now, b.drain)
			}
			if !ok || keep > kept {
				k.purgeSoonLocked()
			}
		}
	}
	k.behind = next
}

// purgeSoonLocked has flows purged as soon as the rules have changed, and some
// times more.
func (k *kernel) purgeSoonLocked() {
	k.purges = purgeLooks
	select {
	case k.hurry <- struct{}{}:
	default:
	}
}

// drainLocked has flows purged when the drain timeout is over that begins now.
func (k *kernel) drainLocked(now time.Time, timeout time.Duration) {
	if timeout > 0 {
		k.drained = append(k.drained, now.Add(timeout))
	}
}

// purgeLooks is for how many looks flows to backends that have gone are still
// purged at once: some begin while the rules change, and a client may send its
// SYN again.
const purgeLooks = 8

// A door that is closed while another has its port and backends is known by its
// interface, of which clients mostly use an address: what is UDP would go on for
// ever. A client that uses one of another interface, where the door is open, is
// sent to a backend once more, and so only for a while.
const shutTime = kernelInterval

// doomed says whether a flow is to be forgotten.
func (k *kernel) doomedLocked(f conntrack.Flow, now time.Time) bool {
	s, device := k.serviceAtLocked(f)
	b, ours := k.behind[s]
	if !ours || !s.isHere(device) {
		return false
	}
	open := isOpen(f)
	keep, there := b.backends[f.Backend]
	since, left := b.left[f.Backend]
	switch {
	case !there && !left:
		return false // somebody else's, who has the port at another interface
	case !b.closed.IsZero():
		since = b.closed
	case there:
		return keep == keepNone || !open && (keep == keepOpen || b.isShut(s, device, now))
	}
	return !open || b.drain > 0 && now.Sub(since) >= b.drain
}

// isShut says whether a flow may have come through a door that was closed a while
// ago. Clients of an address of a pool come by any interface.
func (b backing) isShut(s service, device string, now time.Time) bool {
	for at, since := range b.shut {
		if (at == device || s.addr.IsValid()) && now.Sub(since) <= shutTime {
			return true
		}
	}
	return false
}

// isOpen says whether a flow is a connection that has begun and not ended. What
// has no connections, and what is only an attempt or a leftover, pins a client
// to its backend for nothing.
func isOpen(f conntrack.Flow) bool {
	return f.Protocol == edge.TCP && f.State != conntrack.SynSent && f.State != conntrack.SynSent2 && f.State != conntrack.SynRecv && !isOver(f)
}

// isOver says whether a flow is what is left of a connection.
func isOver(f conntrack.Flow) bool {
	return f.State == conntrack.TimeWait || f.State == conntrack.Close
}

func add(to *nat.Count, c nat.Count) {
	to.Connections += c.Connections
	to.PacketsToBackend += c.PacketsToBackend
	to.BytesToBackend += c.BytesToBackend
	to.PacketsToClient += c.PacketsToClient
	to.BytesToClient += c.BytesToClient
}

// look finds who does not answer, and forgets flows to who is gone. It says how
// long to wait before the next look, at least.
func (k *kernel) look(ctx context.Context, now time.Time) (pause time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.there || k.holding || k.retired {
		return 0
	}
	began := time.Now()
	counts, err := k.nat.Counters(ctx)
	took := time.Since(began)
	pause = min(20*took, max(kernelRest, 4*took))
	if err == nil {
		k.lastCounts = counts
		k.listenLocked(counts, now)
	}
	if n := len(k.drained); n > 0 {
		if k.drained = slices.DeleteFunc(k.drained, now.After); len(k.drained) < n {
			k.purges = max(k.purges, 2)
		}
	}
	if err == nil && k.purges > 0 {
		if k.purges--; k.purges%2 == 1 { // at once, and at every other look
			err = errors.Join(k.purgeUntranslatedLocked(ctx), k.purgeLocked(ctx, now))
		}
	}
	if k.isNewsLocked("look", err) && ctx.Err() == nil {
		k.log.Warn("the kernel's counters and connections not read", "err", err)
	}
	return pause
}

// listenLocked finds the backends that got packets since the last look, and gave
// none, through whichever interface. It is the counters that tell, and not
// conntrack: to look for what is not answered there, the kernel walks through
// all of it, and forwards nothing meanwhile on that processor, some milliseconds
// each time.
func (k *kernel) listenLocked(counts []nat.Count, now time.Time) {
	heard := map[server]answers{}
	var asked []server
	for _, c := range counts {
		b, ours := k.behind[serviceOf(c.Door)]
		if _, there := b.backends[c.Backend]; !ours || !there {
			continue
		}
		at := server{c.Door.Protocol, c.Backend}
		n, again := heard[at]
		if !again {
			asked = append(asked, at)
		}
		n.toBackend += c.PacketsToBackend
		n.toClient += c.PacketsToClient
		heard[at] = n
	}
	for _, at := range asked {
		n, last := heard[at], k.heard[at]
		isSent, isAnswered := n.toBackend != last.toBackend, n.toClient != last.toClient
		switch {
		case k.heard == nil || isAnswered: // who has been silent so far is not known
		case isSent && last.silent.IsZero():
			n.silent = now
		default:
			n.silent = last.silent
		}
		heard[at] = n
		if isSent && !n.silent.IsZero() && now.Sub(n.silent) < kernelSilent {
			k.suspect(at.protocol, at.addr)
		}
	}
	k.heard = heard
}

// forgetBackendsLocked is for backends that are gone, and services, once the
// last flow is. As long as some may begin, they are kept.
func (k *kernel) forgetBackendsLocked(flows []conntrack.Flow) {
	if k.purges > 0 || len(k.problems) > 0 {
		return
	}
	has := map[service]map[netip.AddrPort]bool{}
	for _, f := range flows {
		s, _ := k.serviceAtLocked(f)
		if has[s] == nil {
			has[s] = map[netip.AddrPort]bool{}
		}
		has[s][f.Backend] = true
	}
	for s, b := range k.behind {
		maps.DeleteFunc(b.left, func(addr netip.AddrPort, _ time.Time) bool { return !has[s][addr] })
		if !b.closed.IsZero() {
			maps.DeleteFunc(b.backends, func(addr netip.AddrPort, _ keeping) bool { return !has[s][addr] })
			if len(b.left)+len(b.backends) == 0 {
				delete(k.behind, s)
			}
		}
	}
}

// dueLocked says whether there may be flows that are to be forgotten some time.
func (k *kernel) dueLocked() bool {
	for _, b := range k.behind {
		if !b.closed.IsZero() || len(b.left) > 0 {
			return true
		}
	}
	return len(k.wanted.Frontends) == 0
}

func (k *kernel) purgeLocked(ctx context.Context, now time.Time) error {
	all, err := conntrack.List(ctx, conntrack.Filter{DNAT: true})
	if err != nil {
		return err
	}
	var doomed []conntrack.Flow
	ours := false
	for _, f := range all {
		if k.doomedLocked(f, now) {
			doomed = append(doomed, f)
		} else if s, _ := k.serviceAtLocked(f); k.behind[s].has(f.Backend) {
			ours = true
		}
	}
	n, err := conntrack.Delete(ctx, doomed)
	if n > 0 {
		k.log.Info("flows to backends that are gone were forgotten", "flows", n)
	}
	k.forgetBackendsLocked(all)
	if !ours && err == nil && len(k.wanted.Frontends) == 0 && len(k.applied.Frontends) == 0 && !k.isOfAnother() {
		if removed, err := k.nat.Remove(ctx); err != nil {
			return err
		} else if removed {
			k.log.Info("data plane nat taken down: nothing needs it")
		}
		k.there = false
		clear(k.behind)
	}
	return err
}

// purgeUntranslated forgets, at the next look, the UDP flows of a door that the
// relay has given up, or that nobody had: they would lead to nobody for as long
// as their client goes on.
func (k *kernel) purgeUntranslated(door edge.Door) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.purgeDoorLocked(door)
}

func (k *kernel) purgeDoorLocked(door edge.Door) {
	if door.Protocol == edge.UDP {
		k.stale[serviceOf(door)] = true
		k.purgeSoonLocked()
	}
}

func (k *kernel) purgeUntranslatedLocked(ctx context.Context) error {
	if len(k.stale) == 0 {
		return nil
	}
	all, err := conntrack.List(ctx, conntrack.Filter{Protocol: edge.UDP})
	if err != nil {
		return err
	}
	stale := slices.DeleteFunc(all, func(f conntrack.Flow) bool {
		s, device := k.serviceAtLocked(f)
		return f.DNAT || !k.stale[s] || !s.isHere(device)
	})
	clear(k.stale)
	_, err = conntrack.Delete(ctx, stale)
	return err
}

// telling is what there is to say of the kernel.
type telling struct {
	moved
	inUse  bool                 // there is a nat data plane
	closed map[edge.Door]string // doors that could not be opened
}

// tell says what went through each door to each backend, not older than a
// second; or what was said the last time, if nft takes long.
func (k *kernel) tell(ctx context.Context) telling {
	for late := time.Now().Add(kernelCountAge); !k.mu.TryLock(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			return *k.told.Load()
		}
	}
	defer k.mu.Unlock()
	if k.there && time.Since(k.counted) >= kernelCountAge {
		k.counted = time.Now()
		counts, err := k.countLocked(ctx)
		if err == nil {
			k.counts = counts
		}
		if k.isNewsLocked("count", err) {
			k.log.Warn("the kernel's counters and connections not read", "err", err)
		}
	}
	closed, _ := k.stateLocked()
	t := telling{moved{k.counts, maps.Clone(k.past)}, k.there, closed}
	k.told.Store(&t)
	return t
}

// glance says what the last look has counted, without what lives. It asks nobody,
// and is empty while there is no nat data plane.
func (k *kernel) glance() moved {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.there {
		return moved{}
	}
	rows, _ := k.sortLocked(k.lastCounts)
	return moved{rows, maps.Clone(k.past)}
}

// sortLocked puts counters under the doors that there are, which it also returns
// by service.
func (k *kernel) sortLocked(counts []nat.Count) (map[edge.Door]map[netip.AddrPort]flows, map[service][]edge.Door) {
	rows := map[edge.Door]map[netip.AddrPort]flows{}
	doors := map[service][]edge.Door{}
	for _, f := range k.applied.Frontends {
		rows[f.Door] = map[netip.AddrPort]flows{}
		s := serviceOf(f.Door)
		doors[s] = append(doors[s], f.Door)
	}
	for _, c := range counts {
		if row := rows[c.Door]; row != nil {
			n := row[c.Backend]
			add(&n.Count, c)
			row[c.Backend] = n
		} else if of := doors[serviceOf(c.Door)]; len(of) == 1 {
			// Answers that leave by another interface than clients come in by (a MACVLAN
			// and its parent in one network) are of the only door that there is.
			n := rows[of[0]][c.Backend]
			add(&n.Count, nat.Count{PacketsToClient: c.PacketsToClient, BytesToClient: c.BytesToClient})
			rows[of[0]][c.Backend] = n
		}
	}
	return rows, doors
}

// countLocked reads the counters of the doors that there are, and which flows
// live.
func (k *kernel) countLocked(ctx context.Context) (map[edge.Door]map[netip.AddrPort]flows, error) {
	counts, err := k.nat.Counters(ctx)
	if err != nil {
		return nil, err
	}
	rows, doors := k.sortLocked(counts)
	live, err := conntrack.List(ctx, conntrack.Filter{DNAT: true})
	if err != nil {
		return nil, err
	}
	for _, f := range live {
		s, device := k.serviceAtLocked(f)
		of := doors[s]
		if len(of) == 0 || !s.isHere(device) || isOver(f) {
			continue
		}
		// Clients may use any address of this machine at any interface. Most use the
		// interface's own.
		door := of[0]
		if i := slices.IndexFunc(of, func(d edge.Door) bool { return d.Listen.Device == device }); i >= 0 {
			door = of[i]
		}
		n := rows[door][f.Backend]
		n.active++
		rows[door][f.Backend] = n
	}
	return rows, nil
}

// forgetLocked deletes the counters of backends that are gone with their last
// flow. What they had counted still belongs to the door.
func (k *kernel) forgetLocked(ctx context.Context) error {
	needed := map[edge.Door]map[netip.AddrPort]bool{}
	for _, f := range k.applied.Frontends {
		needed[f.Door] = map[netip.AddrPort]bool{}
		for _, b := range f.Backends {
			needed[f.Door][b.Addr] = true
		}
		for _, addr := range f.Terminating {
			needed[f.Door][addr] = true
		}
	}
	maps.DeleteFunc(k.past, func(d edge.Door, _ nat.Count) bool { return needed[d] == nil })
	idle := func(d edge.Door, addr netip.AddrPort) bool { return !needed[d][addr] }
	if !slices.ContainsFunc(k.lastCounts, func(c nat.Count) bool { return idle(c.Door, c.Backend) }) {
		return nil
	}
	rows, err := k.countLocked(ctx)
	if err != nil {
		return err
	}
	done := func(d edge.Door, addr netip.AddrPort) bool { return idle(d, addr) && rows[d][addr].active == 0 }
	if err := k.nat.Forget(ctx, func(d edge.Door, addr netip.AddrPort) bool { return !done(d, addr) }); err != nil {
		return err
	}
	for door, row := range rows {
		for addr, n := range row {
			if done(door, addr) {
				sum := k.past[door]
				add(&sum, n.Count)
				k.past[door] = sum
				delete(row, addr)
			}
		}
	}
	k.counts = rows
	return nil
}
