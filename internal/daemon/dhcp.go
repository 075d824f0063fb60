package daemon

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	dhcpserver "e13.dev/gatehouse/internal/dhcp"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/leases"
	"e13.dev/gatehouse/internal/status"
)

// dhcp gives addresses to the machines of zones.
type dhcp struct {
	log     *slog.Logger
	changed func() // asks for a new decision

	mu      sync.Mutex
	over    bool // it has ended, or another process has taken over
	dir     string
	store   *leases.Store // nil: it is not open
	server  *dhcpserver.Server
	stop    func()         // what runs for them
	running sync.WaitGroup // that
	failure error          // why leases cannot be read
}

func newDHCP(log *slog.Logger, changed func()) *dhcp { return &dhcp{log: log, changed: changed} }

// run looks after it until ctx ends.
func (x *dhcp) run(ctx context.Context) error {
	<-ctx.Done()
	x.retire(true)
	return ctx.Err()
}

// retire is called when another process is about to take over, and with false if
// that came to nothing. Once it returns nobody is answered any more, and nothing
// is written.
func (x *dhcp) retire(yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = yes
	if yes {
		x.closeLocked()
	} else {
		x.changed()
	}
}

func (x *dhcp) closeLocked() {
	if x.store == nil {
		return
	}
	x.server.Close()
	x.stop()
	x.running.Wait()
	if err := x.store.Close(); err != nil {
		x.log.Warn("leases not closed", "err", err)
	}
	x.store, x.server = nil, nil
}

// apply serves what was decided.
func (x *dhcp) apply(_ context.Context, now decision) []edge.Problem {
	c := now.in.Config
	x.mu.Lock()
	defer x.mu.Unlock()
	x.failure = nil
	zones, problems := dhcpserver.Plan(dhcpserver.Inputs{Config: c, Interfaces: now.in.Interfaces})
	if x.over || len(zones) == 0 || c.StateDir != x.dir {
		x.closeLocked()
	}
	if x.over || len(zones) == 0 {
		return nil
	}
	if x.store == nil {
		if x.failure = x.openLocked(c.StateDir); x.failure != nil {
			remedy := stateRemedy(x.failure)
			if errors.Is(x.failure, leases.ErrLocked) {
				remedy = "stop the other gatehouse, or give it another stateDir"
			}
			return append(problems, edge.Problem{Path: "stateDir", What: "nobody gets an address, since leases cannot be kept: " + x.failure.Error(), Remedy: remedy})
		}
	}
	if damage := x.store.Damage(); damage != "" {
		problems = append(problems, edge.Problem{Path: "stateDir", What: damage, Remedy: "look after the disk; machines keep their addresses when they ask again, and it is not said any more after the next start"})
	}
	return append(problems, x.server.Apply(zones)...)
}

// openLocked reads the leases of a directory, and starts to keep them.
func (x *dhcp) openLocked(dir string) error {
	store, all, err := leases.Open(dir)
	if err != nil {
		return err
	}
	x.dir, x.store = dir, store
	x.server = dhcpserver.NewServer(x.log, all, store, x.changed)
	ctx, cancel := context.WithCancel(context.Background())
	x.stop = cancel
	for _, run := range []func(context.Context) error{store.Run, x.server.Run} {
		x.running.Go(func() { _ = run(ctx) }) // until it is stopped, without another end
	}
	return nil
}

// leases are those that there are, sorted by address.
func (x *dhcp) leases() []edge.Lease {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.server == nil {
		return nil
	}
	return slices.DeleteFunc(x.server.Leases(time.Now()), func(l edge.Lease) bool { return l.Declined })
}

func (x *dhcp) status(c *config.Config) []status.DHCPZone {
	x.mu.Lock()
	defer x.mu.Unlock()
	var zones []status.DHCPZone
	if x.server == nil {
		for i := range c.DHCP {
			if d := &c.DHCP[i]; d.Gives() && x.failure != nil {
				zones = append(zones, status.DHCPZone{Zone: d.Zone, Leases: []edge.Lease{}, Error: x.failure.Error()})
			}
		}
		return zones
	}
	now := time.Now()
	all := x.server.Leases(now)
	for _, s := range x.server.Status(now) {
		z := status.DHCPZone{Zone: s.Zone, Size: s.Size, Free: s.Free, Messages: s.Messages, Error: s.Error, Leases: []edge.Lease{}}
		for _, l := range all {
			if l.Zone == s.Zone {
				z.Leases = append(z.Leases, l)
			}
		}
		zones = append(zones, z)
	}
	return zones
}
