package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/dhcpclient"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	dev "e13.dev/gatehouse/internal/links"
	"e13.dev/gatehouse/internal/status"
)

// linksRetry is how soon it is tried again what went wrong.
const linksRetry = time.Second

// links keeps the interfaces of the configuration, and asks DHCP servers for
// addresses of theirs.
type links struct {
	log      *slog.Logger
	changed  func() // asks for a new decision
	deciding func() ([]int, error)
	dirty    atomic.Bool // something may have changed

	mu       sync.Mutex
	ctx      context.Context // of run; nil: it does not run yet
	applier  *dev.Applier
	clients  map[string]*linkClient
	checks   map[netip.Prefix]*addressCheck
	looked   bool // it was looked what a process before has left
	active   bool // there may be something of ours
	retired  bool // another process has taken over
	walled   bool // the kernel has had the firewall's rules
	from     *config.Config
	tried    time.Time
	devices  []dev.Device
	problems []edge.Problem
}

// linkClient is the DHCP client of a link.
type linkClient struct {
	*dhcpclient.Client
	hostname, file string
	cancel         context.CancelFunc
	done           chan struct{} // nil: it does not run
}

func newLinks(log *slog.Logger, changed func()) *links {
	return &links{log: log, changed: changed, deciding: host.Deciding, applier: dev.New(log), clients: map[string]*linkClient{}, checks: map[netip.Prefix]*addressCheck{}}
}

// kick has the next decision look at everything, and asks for one.
func (x *links) kick() {
	x.dirty.Store(true)
	x.changed()
}

// run looks after it until ctx ends. Addresses and leases stay.
func (x *links) run(ctx context.Context) error {
	x.mu.Lock()
	x.ctx = ctx
	if !x.retired {
		x.startLocked()
	}
	x.mu.Unlock()
	err := x.applier.Watch(ctx, func() {
		if x.isActive() {
			x.kick()
		}
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stopLocked()
	x.stopChecksLocked()
	return err
}

func (x *links) isActive() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.active && !x.retired
}

// retire is called when another process is about to take over, and with false if
// that came to nothing. It asks for the same leases then.
func (x *links) retire(yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.retired = yes
	if yes {
		x.stopLocked()
		return
	}
	x.clients = map[string]*linkClient{} // those that have ended do not begin again
	x.dirty.Store(true)
}

func (x *links) startLocked() {
	for _, c := range x.clients {
		if c.done != nil || x.ctx == nil {
			continue
		}
		ctx, cancel := context.WithCancel(x.ctx)
		done := make(chan struct{})
		c.cancel, c.done = cancel, done
		go func() {
			defer close(done)
			c.Run(ctx)
		}()
	}
}

func (x *links) stopLocked() {
	for _, c := range x.clients {
		c.stop()
	}
}

func (c *linkClient) stop() {
	if c.done != nil {
		c.cancel()
		<-c.done
	}
}

// wantOf is what the configuration says of interfaces. Where there is to be a
// firewall, the machine is made a router when it stands: before, or where nft is not
// installed, everything would be let through.
func wantOf(c *config.Config, walled bool) dev.Want {
	want := dev.Want{Forwarding: c.Firewall != nil}
	for _, l := range c.Links {
		want.Links = append(want.Links, dev.Link{Link: l})
		want.Forwarding = want.Forwarding || l.Forwarding
	}
	want.Forwarding = want.Forwarding && (walled || c.Firewall == nil)
	return want
}

// wall says that the kernel has the firewall's rules. What somebody does to them
// later is mended, and no reason to stop forwarding.
func (x *links) wall() {
	x.mu.Lock()
	was := x.walled
	x.walled = true
	x.mu.Unlock()
	if !was {
		x.kick()
	}
}

// apply sees that the interfaces are as they should be.
func (x *links) apply(_ context.Context, c *config.Config) []edge.Problem {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.walled = x.walled && c.Firewall != nil
	want := wantOf(c, x.walled)
	if x.retired || !x.concernedLocked(want) {
		return nil
	}
	now := time.Now()
	dirty := x.dirty.Swap(false)
	if c == x.from && !dirty && (len(x.problems) == 0 || now.Sub(x.tried) < linksRetry) {
		return x.allLocked(c)
	}
	x.from, x.tried = c, now
	if x.devices == nil { // what is there already may be kept on
		x.devices, _ = x.applier.Devices()
	}
	x.followLocked(c)
	for i := range want.Links {
		name := want.Links[i].Name
		want.Links[i].Lease = x.leaseLocked(name, now)
		want.Links[i].Asking = x.clients[name] != nil && x.clients[name].Asking()
	}
	x.devices, x.problems = x.applier.Apply(want, now)
	x.tellClientsLocked()
	x.checkLocked(c)
	x.active = len(want.Links) > 0 || want.Forwarding || len(x.problems) > 0
	return x.allLocked(c)
}

// concernedLocked says whether there is, or may be, something to do. Where nothing
// is configured it is looked once whether a process before has left something; what
// another gatehouse that decides here has made is its own.
func (x *links) concernedLocked(want dev.Want) bool {
	if len(want.Links) > 0 || want.Forwarding || x.active {
		x.looked = true
		return true
	}
	if x.looked {
		return false
	}
	x.looked = true
	left, err := dev.Left()
	if err != nil {
		x.log.Warn("interfaces of before not read", "err", err)
		return false
	}
	if !left {
		return false
	}
	pids, err := x.deciding()
	return err == nil && !slices.ContainsFunc(pids, func(pid int) bool { return pid != os.Getpid() })
}

// followLocked sees that each link that asks for an address has a client, and no
// other.
func (x *links) followLocked(c *config.Config) {
	wanted := map[string]*config.Link{}
	for i := range c.Links {
		if l := &c.Links[i]; l.DHCP != nil {
			wanted[l.Name] = l
		}
	}
	if x.from == nil || c.StateDir != "" {
		x.forgetLocked(c.StateDir, wanted)
	}
	for name, client := range x.clients {
		l := wanted[name]
		if l != nil && l.DHCP.Hostname == client.hostname && leaseFile(c, name) == client.file {
			continue
		}
		if l == nil { // the block has gone: somebody else may have the address
			client.Release()
		}
		client.stop()
		delete(x.clients, name)
	}
	for name, l := range wanted {
		if x.clients[name] == nil {
			file := leaseFile(c, name)
			x.clients[name] = &linkClient{
				Client:   dhcpclient.New(dhcpclient.Options{Link: name, Hostname: l.DHCP.Hostname, File: file, Log: x.log, Changed: x.kick}),
				hostname: l.DHCP.Hostname, file: file,
			}
		}
	}
	x.tellClientsLocked()
	x.startLocked()
}

func leaseFile(c *config.Config, link string) string {
	if c.StateDir == "" {
		return ""
	}
	return dhcpclient.File(c.StateDir, link)
}

// forgetLocked removes leases of links that ask for none any more.
func (x *links) forgetLocked(dir string, wanted map[string]*config.Link) {
	if dir == "" {
		return
	}
	var names []string
	for name := range wanted {
		names = append(names, name)
	}
	if err := dhcpclient.Forget(dir, names); err != nil {
		x.log.Warn("old leases not removed", "err", err)
	}
}

// tellClientsLocked says how the interfaces are.
func (x *links) tellClientsLocked() {
	for name, client := range x.clients {
		var l dhcpclient.Link
		if i := slices.IndexFunc(x.devices, func(d dev.Device) bool { return d.Name == name }); i >= 0 {
			d := x.devices[i]
			mac, err := net.ParseMAC(d.MAC)
			l = dhcpclient.Link{Index: d.Index, Running: d.Running && err == nil && len(mac) == 6, Addrs: d.Addrs}
			copy(l.MAC[:], mac)
		}
		client.Link(l)
	}
}

// leaseLocked is what the DHCP server of a link has said, as far as interfaces go.
func (x *links) leaseLocked(name string, now time.Time) *dev.Lease {
	client := x.clients[name]
	if client == nil {
		return nil
	}
	l, ok := client.Lease()
	if !ok {
		return nil
	}
	lease := &dev.Lease{Addr: l.Addr, Valid: dev.Forever, Router: l.Router, MTU: l.MTU}
	if !l.Expires.IsZero() {
		lease.Valid = l.Expires.Sub(now)
	}
	for _, r := range l.Routes {
		lease.Routes = append(lease.Routes, dev.Route{To: r.To, Via: r.Via})
	}
	return lease
}

// allLocked are the problems of interfaces, of DHCP and of addresses that others have.
func (x *links) allLocked(c *config.Config) []edge.Problem {
	problems := slices.Clone(x.problems)
	for _, l := range c.Links {
		if client := x.clients[l.Name]; client != nil {
			if what := client.Problem(); what != "" {
				problems = append(problems, edge.Problem{Pos: l.Pos, Object: "link/" + l.Name, What: what, Remedy: "look at the DHCP server and the cable; it is asked again and again"})
			}
		}
	}
	return append(problems, x.conflictsLocked(c)...)
}

// leases are what DHCP servers have told for interfaces of this machine, sorted by interface.
func (x *links) leases() []edge.LinkLease {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []edge.LinkLease
	for _, client := range x.clients {
		if l, ok := client.Lease(); ok {
			all = append(all, l.LinkLease)
		}
	}
	slices.SortFunc(all, func(a, b edge.LinkLease) int { return strings.Compare(a.Link, b.Link) })
	return all
}

func (x *links) status(c *config.Config) []status.Link {
	x.mu.Lock()
	defer x.mu.Unlock()
	problems := x.allLocked(c)
	var all []status.Link
	for _, l := range c.Links {
		s := status.Link{Name: l.Name}
		if i := slices.IndexFunc(x.devices, func(d dev.Device) bool { return d.Name == l.Name }); i >= 0 {
			d := x.devices[i]
			s.Kind, s.Made, s.Up = d.Kind, d.Made, d.Running
			s.Addrs = slices.DeleteFunc(slices.Clone(d.Addrs), func(p netip.Prefix) bool {
				return p.Addr().IsLinkLocalUnicast() && !slices.Contains(l.Addresses, p)
			})
		}
		if client := x.clients[l.Name]; client != nil {
			if lease, ok := client.Lease(); ok {
				s.Lease = &lease.LinkLease
			}
		}
		if i := slices.IndexFunc(problems, func(p edge.Problem) bool { return p.Object == "link/"+l.Name }); i >= 0 {
			s.Error = problems[i].What
		}
		all = append(all, s)
	}
	return all
}
