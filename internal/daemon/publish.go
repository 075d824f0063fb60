package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// report tells systemd what is new, and that it may go on if it waits for us.
func (d *Daemon) report(awaited bool) {
	d.mu.Lock()
	open := 0
	for _, e := range d.state.Exposures {
		if e.Open {
			open++
		}
	}
	now := fmt.Sprintf("open: %d, problems: %d", open, len(d.decided))
	if len(d.waiting) > 0 {
		now += ", waiting for " + strings.Join(d.waiting, ", ")
	}
	d.mu.Unlock()
	if problems := d.files.status().Problems; len(problems) > 0 {
		now += "; the configuration on disk is bad: " + problems[0].String()
	}
	var lines []string
	if awaited {
		lines = append(lines, "READY=1")
	}
	if now != d.said {
		d.said = now
		lines = append(lines, "STATUS="+strings.ReplaceAll(now, "\n", " "))
	}
	if len(lines) > 0 {
		d.manager.tell(lines...)
	}
}

func (d *Daemon) publish(now decision, cluster view, closedDoors int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.decided, d.seen = now.state, now.problems, cluster
	d.interfaces, d.allocations = now.in.Interfaces, d.ledger.all
	d.waiting = nil
	if now.in.Config.Kubernetes != nil && cluster.snapshot == nil {
		d.waiting = append(d.waiting, "the Kubernetes API")
	}
	if closedDoors > 0 {
		d.waiting = append(d.waiting, fmt.Sprintf("listeners that could not be opened: %d", closedDoors))
	}
	if noNAT := now.in.NoNAT; noNAT != "" {
		d.waiting = append(d.waiting, "data plane nat: "+noNAT)
	}
	if why := d.addresses.whyNot(); why != "" {
		d.waiting = append(d.waiting, "addresses of pools: "+why)
	}
	for _, e := range now.state.Exposures {
		// A Service that is closed is its owner's business, a file's frontend is ours.
		if e.Service == "" && !e.Open {
			d.waiting = append(d.waiting, "frontend "+e.Name)
		}
	}
	ready := len(d.waiting) == 0
	if ready != d.ready || !slices.Equal(d.waiting, d.waitedFor) {
		d.log.Info("readiness", "ready", ready, "waiting_for", d.waiting)
	}
	d.ready, d.waitedFor = ready, d.waiting
}

// Status is what this daemon says of itself now.
func (d *Daemon) Status() status.Status {
	kernel := d.kernel.tell(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := d.relay.Stats()
	errs := failed(d.relay.Doors())
	for door, err := range kernel.closed {
		if errs[door] == "" {
			errs[door] = err
		}
	}
	s := status.Status{
		Version: d.opts.Version, StartedAt: d.started, Ready: d.ready, NotReady: d.waiting,
		Config: d.files.status(), Exposures: d.state.Exposures,
		Frontends: frontends(d.state, errs, stats, kernel.moved), Listeners: listeners(d.state.Frontends, errs, stats),
		Routes: d.state.Routes,
	}
	if kernel.inUse {
		if entries, most, err := conntrack.Usage(); err == nil && most > 0 {
			s.Conntrack = &status.Conntrack{Entries: entries, Max: most}
		}
	}
	s.Problems = append(append([]edge.Problem{}, s.Config.Problems...), d.decided...)
	if s.Exposures == nil {
		s.Exposures = []desired.Exposure{} // in JSON [], not null
	}
	if c := d.files.current(); c != nil {
		s.Addresses = addressRows(d.state, d.allocations, d.addresses.snapshot())
		s.Pools = poolRows(c.Pools, d.interfaces, d.allocations, d.addresses.snapshot())
		if c.Kubernetes != nil {
			s.Cluster = d.cluster.status(d.seen)
		}
	}
	return s
}

// failed are the doors that could not be opened, with the reason.
func failed(doors []relay.DoorStatus) map[edge.Door]string {
	bad := map[edge.Door]string{}
	for _, s := range doors {
		if s.Error != "" {
			bad[s.Door] = s.Error
		}
	}
	return bad
}

func sameDoors(x, y map[edge.Door]string) bool {
	if len(x) != len(y) {
		return false
	}
	for door, err := range x {
		if y[door] != err {
			return false
		}
	}
	return true
}
