package vip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

const (
	tick = 5 * time.Millisecond // between bursts of frames
	// rereadInterval is for messages that were lost, and settings of which there is
	// none.
	rereadInterval = 30 * time.Second
	rereadPause    = 20 * time.Millisecond
	mendInterval   = 5 * time.Minute
	wallRetry      = 5 * time.Second
	subscribeAgain = time.Second
	// Who follows the changes of ten thousand addresses has time to.
	tellInterval = 50 * time.Millisecond
)

// Run probes, announces and watches until ctx ends. It leaves what is there.
func (k *Keeper) Run(ctx context.Context) error {
	c, err := newChanger()
	if err != nil {
		return fmt.Errorf("vip: %w", err)
	}
	defer c.close()
	k.mu.Lock()
	k.changer = c
	here := len(k.entries) > 0
	k.mu.Unlock()
	defer k.closeSockets()
	var watchers sync.WaitGroup
	defer watchers.Wait() // ctx has ended
	lost := make(chan struct{}, 1)
	watchers.Go(func() { k.listen(ctx) })
	l := loop{keeper: k, reread: time.Now(), mend: time.Now().Add(mendInterval)}
	if here { // nobody has looked after their wall until now, or another process has
		l.mend = time.Now()
	}
	k.markDirty()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-k.poked:
		case <-lost:
			l.mend = time.Now()
		}
		if l.active() && !l.watching {
			l.watching = true
			watchers.Go(func() { k.watchWall(ctx, lost) })
		}
		timer.Reset(l.step(ctx))
	}
}

// listen has the machine read again when it has changed.
func (k *Keeper) listen(ctx context.Context) {
	concerns := func(addr netip.Addr) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.entries[addr] != nil
	}
	for ctx.Err() == nil {
		if err := listen(ctx, concerns, k.markDirty); err != nil && ctx.Err() == nil {
			k.log.Warn("interfaces and addresses are not watched", "err", err)
		}
		wait(ctx, subscribeAgain)
		k.markDirty() // it may have missed something
	}
}

func (k *Keeper) watchWall(ctx context.Context, lost chan<- struct{}) {
	for ctx.Err() == nil {
		err := nft.Watch(ctx, Table, func() {
			select {
			case lost <- struct{}{}:
			default:
			}
		})
		if ctx.Err() == nil {
			k.log.Debug("nftables is not watched", "err", err)
		}
		wait(ctx, rereadInterval)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (k *Keeper) markDirty() {
	k.mu.Lock()
	k.dirty = true
	k.mu.Unlock()
	k.poke()
}

// loop is what Run knows from one step to the next: when to do what.
type loop struct {
	keeper             *Keeper
	watching           bool
	read, told         time.Time // last
	reread, mend, look time.Time // next; zero: not
	raise              time.Time
}

func (l *loop) active() bool {
	l.keeper.mu.Lock()
	defer l.keeper.mu.Unlock()
	return len(l.keeper.entries) > 0
}

// step does what there is to do, and says when there is more.
func (l *loop) step(ctx context.Context) time.Duration {
	k := l.keeper
	now := time.Now()
	k.mu.Lock()
	if (k.dirty || !now.Before(l.reread)) && now.Sub(l.read) >= rereadPause {
		k.reread(now)
		l.read, l.reread = now, now.Add(rereadInterval)
	}
	busy := time.Duration(-1)
	for _, d := range k.devices {
		if next, any := k.work(d, now); any && (busy < 0 || next < busy) {
			busy = next
		}
	}
	k.say("addresses added", k.added)
	k.added = nil
	leaving, behind := k.leaving, k.wallError != ""
	for o, until := range k.lingering {
		behind = behind || !now.Before(until) || k.entries[o.addr] == nil
	}
	k.mu.Unlock()

	next := now.Add(rereadInterval)
	at := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if leaving && !now.Before(l.look) {
		if k.takeOff(now) {
			_ = k.raise(ctx) // the error is among the problems
		}
		l.look = now.Add(k.options.LookAgain)
	}
	if leaving {
		at(l.look)
	}
	if !now.Before(l.mend) && l.watching {
		k.mend(ctx)
		l.mend = now.Add(mendInterval)
	}
	if behind && !now.Before(l.raise) {
		_ = k.raise(ctx)
		l.raise = now.Add(wallRetry)
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.lingering) > 0 || k.wallError != "" {
		at(now.Add(wallRetry))
	}
	k.judge()
	if !k.told {
		if now.Sub(l.told) < tellInterval {
			at(l.told.Add(tellInterval))
		} else {
			k.told, l.told = true, now
			select {
			case k.changed <- struct{}{}:
			default:
			}
		}
	}
	if k.dirty {
		at(l.read.Add(rereadPause))
	}
	at(l.reread)
	if busy >= 0 {
		at(now.Add(busy))
	}
	return max(time.Until(next), time.Millisecond)
}

// takeOff removes addresses that nobody wants and nobody uses, and says whether
// there were any.
func (k *Keeper) takeOff(now time.Time) bool {
	used, err := inUse()
	if err != nil {
		k.log.Warn("cannot tell which addresses are used", "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leaving = false
	lingering := map[netip.Addr]bool{}
	for o, until := range k.lingering {
		if now.Before(until) {
			lingering[o.addr] = true
		}
	}
	var removed []string
	for addr, e := range k.entries {
		if e.wanted {
			continue
		}
		if now.Before(e.leaveBy) && (err != nil || used[addr] || lingering[addr]) {
			k.leaving = true
			continue
		}
		if d := k.devices[e.device]; d != nil && d.there {
			if err := k.changer.remove(addr, d.index); err != nil {
				if text := err.Error(); e.err != text { // and again with the next look
					e.err = text
					k.log.Warn("cannot remove an address", "address", addr, "interface", e.device, "err", err)
				}
				k.leaving = true
				continue
			}
		}
		removed = append(removed, addr.String())
		k.forget(e)
	}
	k.say("addresses removed", removed)
	return len(removed) > 0
}

// say logs what has happened to addresses. They may be thousands.
func (k *Keeper) say(what string, addresses []string) {
	const most = 10
	if n := len(addresses); n > 0 {
		slices.Sort(addresses)
		k.log.Info(what, "count", n, "addresses", addresses[:min(n, most)])
	}
}

// judge says what is wrong with the machine.
func (k *Keeper) judge() {
	var problems []edge.Problem
	add := func(object, what, remedy string) {
		problems = append(problems, edge.Problem{Object: object, What: what, Remedy: remedy})
	}
	if len(k.entries) > 0 {
		if k.wallError != "" {
			remedy := ""
			switch k.wallError {
			case nft.ErrNotInstalled.Error():
				remedy = "apt install nftables, or what your distribution calls it"
			case nft.ErrNotPermitted.Error():
				remedy = "give gatehouse CAP_NET_ADMIN, as an ambient capability since nft needs it too: with systemd, gatehouse.service.d/net-admin.conf does"
			}
			add("", "addresses of pools cannot be walled off, so that new ones are not used: "+k.wallError, remedy)
		}
		if k.readError != "" {
			add("", "addresses of pools are not looked after: "+k.readError, "")
		}
	}
	for name, d := range k.devices {
		if d.socketError != "" {
			add("interface/"+name, "nobody can be asked whether an address of a pool is free: "+d.socketError,
				"it takes CAP_NET_RAW and packet sockets: with systemd, gatehouse.service.d/net-admin.conf gives both")
		}
		if n := d.arpIgnore; d.there && d.mac != "" && d.wants4 && (n == 3 || n > 7) {
			add("interface/"+name, fmt.Sprintf("the kernel does not answer ARP for addresses of pools there (net.ipv4.conf.*.arp_ignore is %d)", n),
				"set it to 0, 1 or 2")
		}
	}
	slices.SortFunc(problems, func(x, y edge.Problem) int {
		return cmp.Or(cmp.Compare(x.Object, y.Object), cmp.Compare(x.What, y.What))
	})
	if !slices.Equal(problems, k.problems) {
		k.problems, k.told = problems, false
	}
}

// heard is called for what somebody says of an address on a device's link.
func (k *Keeper) heard(name string, c claim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, d := k.entries[c.addr], k.devices[name]
	if e == nil || d == nil || e.device != name || k.machine.macs[string(c.mac[:])] {
		return
	}
	now, who := time.Now(), hardware(c.mac)
	switch {
	case e.phase == probing:
		if e.conflict != who {
			k.log.Warn("address is used by somebody else", "address", e.addr, "interface", name, "hardware_address", who)
		}
		k.refuse(e, who, now)
	case e.phase == refused && !c.probe:
		e.conflict = who
	case e.phase == on && !c.probe: // a probe the kernel answers
		if e.conflict != who {
			k.log.Warn("address is claimed by somebody else, too", "address", e.addr, "interface", name, "hardware_address", who)
		}
		e.conflict, e.conflictAt = who, now
		k.defend(e, now)
	}
	k.note(e)
	k.poke()
}

// isGone says whether an error is of an interface that is away, or down.
func isGone(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}
