package dhcpclient

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options say whom a client asks for.
type Options struct {
	Link     string // the interface
	Hostname string // empty: the machine's
	File     string // where the last lease is kept; empty: nowhere
	Log      *slog.Logger
	Changed  func() // the lease is another, or none; or the problem is. It is called with locks held, and must not call back.
}

// Client asks for an address of one interface.
type Client struct {
	options Options
	timer   *time.Timer

	mu      sync.Mutex
	ctx     context.Context // of Run; nil: it does not run
	machine machine
	link    Link
	socket  *packets
	unicast net.PacketConn // for as long as an answer is waited for
	failure string         // why it cannot ask
	told    string         // the failure and the problem that Changed was called for
	ended   bool
	tasks   sync.WaitGroup
}

// New returns a client that knows the last lease. It asks nobody before Run.
func New(o Options) *Client {
	c := &Client{options: o, timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	host := o.Hostname
	if host == "" {
		name, _ := os.Hostname()
		host, _, _ = strings.Cut(name, ".")
	}
	c.machine = machine{link: o.Link, hostname: host, random: rand.Uint32}
	if o.File != "" {
		last, err := load(o.File, o.Link, time.Now())
		if err != nil {
			o.Log.Warn("last lease not read", "interface", o.Link, "err", err)
		}
		c.machine.lease = last
	}
	return c
}

// Run asks, and keeps what it is given, until ctx ends. The lease stays, for who
// comes next.
func (c *Client) Run(ctx context.Context) {
	c.mu.Lock()
	c.ctx = ctx
	if c.link.Running {
		c.upLocked()
	}
	c.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			c.mu.Lock()
			c.ended = true
			c.closeLocked()
			c.mu.Unlock()
			c.tasks.Wait()
			return
		case <-c.timer.C:
			c.mu.Lock()
			c.doLocked(c.machine.timer(time.Now()))
			c.mu.Unlock()
		}
	}
}

// Link tells how the interface is. It is asked at once when it can pass packets
// again: it may be in another network.
func (c *Client) Link(l Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.link
	c.link = l
	if c.ended || before.Index == l.Index && before.MAC == l.MAC && before.Running == l.Running {
		return
	}
	if !l.Running {
		c.closeLocked()
		c.doLocked(c.machine.down(time.Now()))
		return
	}
	if before.Index != l.Index || !before.Running {
		c.closeLocked()
	}
	c.upLocked()
}

func (c *Client) upLocked() {
	if c.ctx == nil || c.ended {
		// What a process before has put there stays until it is known better.
		if last := c.machine.lease; last != nil && !last.expired(time.Now()) {
			for _, a := range c.link.Addrs {
				c.machine.used = c.machine.used || a == last.Addr
			}
		}
		return
	}
	c.openLocked()
	c.doLocked(c.machine.up(time.Now(), c.link))
}

func (c *Client) openLocked() {
	if c.socket != nil {
		return
	}
	s, err := openPackets(c.link.Index, unix.ETH_P_IP)
	c.failure = ""
	if err != nil {
		c.failure = "no DHCP server can be asked: " + err.Error()
		return
	}
	c.socket = s
	c.tasks.Go(func() {
		s.receive(func(b []byte) {
			message, ok := payload(b)
			if !ok {
				return
			}
			r, err := parseReply(message)
			if err != nil {
				return
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.socket == s {
				c.doLocked(c.machine.packet(time.Now(), r))
			}
		})
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.socket == s { // it hears nothing any more; the next question takes another
			s.close()
			c.socket = nil
		}
	})
}

func (c *Client) closeLocked() {
	if c.socket != nil {
		c.socket.close()
		c.socket = nil
	}
	c.hangUpLocked()
	c.timer.Stop()
}

func (c *Client) hangUpLocked() {
	if c.unicast != nil {
		_ = c.unicast.Close()
		c.unicast = nil
	}
}

// doLocked does what the machine says, and waits for what it waits for.
func (c *Client) doLocked(actions []action) {
	changed := false
	for _, a := range actions {
		switch {
		case a.send != nil:
			c.sendLocked(a)
		case a.probe.IsValid():
			c.probeLocked(a.probe)
		case a.tell.IsValid():
			if err := announce(c.link.Index, c.link.MAC, a.tell); err != nil {
				c.options.Log.Debug("address not announced", "interface", c.options.Link, "err", err)
			}
		}
		changed = changed || a.changed
	}
	if c.machine.state != renewing {
		c.hangUpLocked()
	}
	c.timer.Stop()
	if due := c.machine.due; !due.IsZero() && !c.ended {
		c.timer.Reset(max(time.Until(due), time.Millisecond))
	}
	if changed {
		c.keepLocked()
	}
	if said := c.failure + c.machine.problem; changed || said != c.told {
		c.told = said
		c.options.Changed()
	}
}

func (c *Client) sendLocked(a action) {
	message := a.send.bytes()
	c.options.Log.Debug("DHCP message sent", "interface", c.options.Link, "kind", a.send.kind.String(), "state", c.machine.state.String())
	if l := c.machine.lease; a.unicast && (l != nil || a.send.server.IsValid()) {
		server := a.send.server
		if l != nil {
			server = l.Server
		}
		ctx := c.ctx
		if ctx == nil {
			ctx = context.Background()
		}
		c.hangUpLocked()
		conn, err := unicast(ctx, c.options.Link, a.send.own, server, message)
		if err == nil {
			c.unicast = conn
			return
		}
		c.options.Log.Debug("DHCP message not sent by the routes", "interface", c.options.Link, "err", err)
	}
	if c.socket == nil && !c.ended && c.ctx != nil && c.link.Running {
		c.openLocked() // it has failed before
	}
	if c.socket == nil {
		return
	}
	source := netip.IPv4Unspecified()
	if a.send.own.IsValid() {
		source = a.send.own
	}
	if err := c.socket.broadcast(datagram(source, netip.AddrFrom4([4]byte{255, 255, 255, 255}), message)); err != nil {
		c.options.Log.Debug("DHCP message not sent", "interface", c.options.Link, "err", err)
	}
}

func (c *Client) probeLocked(addr netip.Addr) {
	ctx, link := c.ctx, c.link
	if ctx == nil || c.ended {
		return
	}
	c.tasks.Go(func() {
		who, err := Holder(ctx, link.Index, link.MAC, addr)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.options.Log.Debug("nobody asked for an address", "interface", c.options.Link, "err", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.link.Index == link.Index && c.machine.candidate != nil && c.machine.candidate.Addr.Addr() == addr {
			if who != "" {
				c.options.Log.Warn("another machine has the address that a DHCP server gives", "interface", c.options.Link, "address", addr, "mac", who)
			}
			c.doLocked(c.machine.checked(time.Now(), who))
		}
	})
}

// keepLocked writes the lease down, and says what it is.
func (c *Client) keepLocked() {
	l := c.machine.active()
	if l != nil {
		c.options.Log.Info("DHCP lease", "interface", c.options.Link, "address", l.Addr, "server", l.Server, "expires", l.Expires)
	} else {
		c.options.Log.Warn("no DHCP lease any more", "interface", c.options.Link, "why", c.machine.problem)
	}
	if c.options.File == "" {
		return
	}
	if err := save(c.options.File, l); err != nil {
		c.options.Log.Warn("lease not saved", "interface", c.options.Link, "err", err)
	}
}

// Lease is what may be used now.
func (c *Client) Lease() (Lease, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.machine.active(); l != nil && !l.expired(time.Now()) {
		return *l, true
	}
	return Lease{}, false
}

// Asking says that it does not know yet which address the interface is given: no
// server has said so since it was made, or refused one.
func (c *Client) Asking() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.machine.answered && c.machine.active() == nil
}

// Problem is why there is no lease, or will not be soon; empty: nothing is wrong.
func (c *Client) Problem() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != "" {
		return c.failure
	}
	return c.machine.problem
}

// Release gives the address back. It is for an interface that is not to have one any
// more, before it is taken from there.
func (c *Client) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.options.Changed
	c.options.Changed = func() {}
	c.doLocked(c.machine.release(time.Now()))
	c.options.Changed = changed
	c.hangUpLocked()
}
