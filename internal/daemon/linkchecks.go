package daemon

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/dhcpclient"
	"e13.dev/gatehouse/internal/edge"
	dev "e13.dev/gatehouse/internal/links"
)

// checkAgain is how long an address that somebody else has is left at that.
const checkAgain = 30 * time.Second

// addressCheck finds out whether another machine has a static IPv4 address, when it
// comes to an interface. It is used all the same: a router that leaves its network
// for a stray device would take everybody along. Of IPv6 the kernel finds it out.
type addressCheck struct {
	index  int
	cancel context.CancelFunc
	done   chan struct{}
	who    string // guarded by the mutex of links
}

// checkLocked asks for the static addresses that have come, once.
func (x *links) checkLocked(c *config.Config) {
	wanted := map[netip.Prefix]bool{}
	for _, l := range c.Links {
		i := slices.IndexFunc(x.devices, func(d dev.Device) bool { return d.Name == l.Name && d.Running })
		if i < 0 || x.ctx == nil {
			continue
		}
		d := x.devices[i]
		mac, err := net.ParseMAC(d.MAC)
		if err != nil || len(mac) != 6 {
			continue
		}
		for _, addr := range l.Addresses {
			if !addr.Addr().Is4() || !slices.Contains(d.Addrs, addr) {
				continue
			}
			wanted[addr] = true
			if have := x.checks[addr]; have != nil && have.index == d.Index {
				continue
			} else if have != nil {
				have.cancel()
			}
			x.startCheckLocked(addr, d.Index, [6]byte(mac))
		}
	}
	for addr, check := range x.checks {
		if !wanted[addr] {
			check.cancel()
			delete(x.checks, addr)
		}
	}
}

func (x *links) startCheckLocked(addr netip.Prefix, index int, mac [6]byte) {
	ctx, cancel := context.WithCancel(x.ctx)
	check := &addressCheck{index: index, cancel: cancel, done: make(chan struct{})}
	x.checks[addr] = check
	go func() {
		defer close(check.done)
		for {
			who, err := dhcpclient.Holder(ctx, index, mac, addr.Addr())
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				x.log.Debug("nobody asked for an address", "address", addr, "err", err)
			}
			if x.found(check, who) {
				x.changed()
			}
			if who == "" {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(checkAgain):
			}
		}
	}()
}

// found notes who has an address, and says whether that is news. This machine's own
// other interfaces are nobody.
func (x *links) found(check *addressCheck, who string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if slices.ContainsFunc(x.devices, func(d dev.Device) bool { return d.MAC == who }) {
		who = ""
	}
	news := check.who != who
	check.who = who
	return news
}

func (x *links) conflictsLocked(c *config.Config) (problems []edge.Problem) {
	for _, l := range c.Links {
		for _, addr := range l.Addresses {
			if check := x.checks[addr]; check != nil && check.who != "" {
				problems = append(problems, edge.Problem{
					Pos: l.Pos, Object: "link/" + l.Name, What: addr.Addr().String() + " is also had by the machine with MAC address " + check.who,
					Remedy: "give one of the two another address",
				})
			}
		}
	}
	return problems
}

func (x *links) stopChecksLocked() {
	for _, check := range x.checks {
		check.cancel()
	}
	clear(x.checks)
}
