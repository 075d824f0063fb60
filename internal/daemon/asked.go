package daemon

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/history"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/status"
)

// Status is what this daemon says of itself now.
func (d *Daemon) Status() status.Status {
	kernel := d.kernel.tell(context.Background())
	d.mu.Lock()
	defer d.mu.Unlock()
	stats := d.relay.Stats()
	errs := d.closedLocked(kernel)
	s := status.Status{
		Version: d.opts.Version, StartedAt: d.started, Ready: d.ready, NotReady: d.waiting,
		Config: d.files.status(), Exposures: d.state.Exposures,
		Frontends: frontends(d.state, errs, stats, kernel.moved), Listeners: listeners(d.state.Frontends, errs, stats),
		Routes: d.state.Routes,
	}
	s.Work = d.work.status(d.journal.savedAt())
	d.history.Fill(time.Now(), s.Frontends)
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
		s.Router = d.router.status(c)
		s.Pools = poolRows(c.Pools, d.interfaces, d.allocations, d.addresses.snapshot())
		if c.Kubernetes != nil {
			s.Cluster = d.cluster.status(d.seen)
		}
	}
	return s
}

// closedLocked are the doors that are not open on this machine, with the error.
func (d *Daemon) closedLocked(kernel telling) map[edge.Door]string {
	errs := failed(d.relay.Doors())
	for door, err := range kernel.closed {
		if errs[door] == "" {
			errs[door] = err
		}
	}
	return errs
}

var errStopping = errors.New("gatehouse is stopping: it takes nothing new, and waits for its last connections; ask again when one is started")

// Explain answers from what was decided last and what the machine has of it.
func (d *Daemon) Explain(q explain.Question) (explain.Answer, error) {
	kernel := d.kernel.tell(context.Background())
	d.mu.Lock()
	facts := explain.Facts{
		Config: d.config, Interfaces: d.interfaces, Cluster: d.seen.snapshot, State: d.state, Closed: d.closedLocked(kernel),
		Hosts: d.names.Snapshot(), Back: host.DeviceTo, Leaves: host.LeavesBy,
	}
	stopping, relay := d.stopping, d.relay
	d.mu.Unlock()
	facts.Bans, facts.Firewall = bansOf(relay.Stats()), d.router.filter.ruleset()
	if stopping {
		return explain.Answer{Question: q}, errStopping
	}
	answer, err := explain.Explain(facts, q)
	answer.At = time.Now()
	return answer, err
}

// bansOf are the clients that the relay names as banned.
func bansOf(stats []relay.Stats) []explain.Ban {
	var bans []explain.Ban
	for _, s := range stats {
		for _, b := range s.Banned {
			client := netip.PrefixFrom(b.Client, b.Client.BitLen())
			if b.Client.Is6() {
				client = netip.PrefixFrom(b.Client, 64)
			}
			bans = append(bans, explain.Ban{Door: s.Door, Frontend: s.Name, Client: client, Until: b.Until})
		}
	}
	return bans
}

// rememberCounts keeps what the counters were in the last minutes. It takes its
// time: with ten thousand frontends it is done less often.
func (d *Daemon) rememberCounts(ctx context.Context) error {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
		began := time.Now()
		d.history.Note(began, d.counts())
		// A percent of the time at most.
		again.Reset(min(max(history.Every, 100*time.Since(began)), history.RatesOver))
	}
}
