package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	packetfilter "e13.dev/gatehouse/internal/filter"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/status"
)

const (
	// How soon it is noticed that the rules are not ours any more, if nobody says
	// so.
	filterInterval = 10 * time.Second
	// What somebody takes away again is mended no sooner than this.
	filterMendPace = time.Second
	// The counters are read at most this often.
	filterCountAge = time.Second
)

// filter is the packet filter between zones: a table that outlives this process.
type filter struct {
	log     *slog.Logger
	changed func()        // asks for a new decision
	needed  chan struct{} // closed when it is wanted for the first time
	once    sync.Once
	running func() ([]int, error)

	mu       sync.Mutex
	table    *packetfilter.Applier
	rules    *firewall.Ruleset // as decided last; nil: there is no firewall
	kept     bool              // with what is open from before
	settled  bool              // the kernel has them
	swept    bool              // it was seen to that nothing is left of before
	retired  bool              // another process has taken over
	problems []edge.Problem    // of applying
	open     []edge.Problem    // interfaces of no zone
	failing  string            // what went wrong when it was last verified
	counted  time.Time
	counts   packetfilter.Counts
}

func newFilter(log *slog.Logger, changed func()) *filter {
	return &filter{log: log, changed: changed, needed: make(chan struct{}), running: host.Running, table: packetfilter.New()}
}

// retire is called when another process is about to take over, and with false if
// that came to nothing.
func (x *filter) retire(yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.retired = yes
	x.settled = x.settled && !yes
}

// apply has the kernel filter what was decided, and not what was not. While the
// kernel goes on as before with its doors (held), or Services are not known, what
// is open stays so.
func (x *filter) apply(ctx context.Context, now decision, held bool) []edge.Problem {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.retired {
		return nil
	}
	c := now.in.Config
	if c.Firewall == nil {
		x.removeLocked(ctx)
		return slices.Clone(x.problems)
	}
	x.once.Do(func() { close(x.needed) })
	rules := firewall.Compile(firewallInputs(now))
	keep := held || now.in.Cluster == nil && c.Kubernetes != nil
	if x.settled && x.kept == keep && reflect.DeepEqual(*x.rules, rules) {
		return nil
	}
	before := x.rules
	x.rules, x.kept, x.open = &rules, keep, unzoned(&rules, now.in.Interfaces, c.Firewall.Pos)
	changed, err := x.table.Apply(ctx, &rules, keep)
	if ctx.Err() != nil {
		return nil // it is over: the error says nothing of the machine
	}
	x.problems, x.settled = nil, err == nil
	switch {
	case err != nil:
		x.problems = []edge.Problem{explainFilter(err, c.Firewall.Pos)}
	case before == nil:
		x.log.Info("firewall set up", "policies", len(c.Firewall.Policies), "opened", len(rules.Pinholes))
	case changed:
		x.log.Debug("firewall changed", "policies", len(c.Firewall.Policies), "opened", len(rules.Pinholes))
	}
	return slices.Clone(x.problems)
}

// stands says that the kernel has the rules.
func (x *filter) stands() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rules != nil && x.settled
}

// firewallInputs are what rules follow from. A door that could not be opened is
// not let through: whoever has its port is somebody else.
func firewallInputs(now decision) firewall.Inputs {
	in := firewall.Inputs{Config: now.in.Config, Interfaces: now.in.Interfaces}
	for _, f := range now.state.Frontends {
		if _, shut := now.in.Doors[f.Door]; !shut {
			in.Frontends = append(in.Frontends, f)
		}
	}
	for _, a := range now.state.Addresses {
		in.Addresses = append(in.Addresses, a.Addr)
	}
	return in
}

// unzoned names the interfaces in use that are in no zone: nothing comes in there.
func unzoned(r *firewall.Ruleset, interfaces []edge.Interface, at edge.Pos) []edge.Problem {
	var names []string
	for _, i := range interfaces {
		if i.Up && len(i.Addrs) > 0 && slices.Contains(r.Unzoned, i.Name) {
			names = append(names, i.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	what := "interface " + names[0] + " is in no zone: the firewall lets nothing in there"
	if len(names) > 1 {
		what = "interfaces " + strings.Join(names, ", ") + " are in no zone: the firewall lets nothing in there"
	}
	return []edge.Problem{{Pos: at, Path: "firewall", What: what, Remedy: "give each a zone; one that no policy names stays shut"}}
}

// notes are what is to be known and cannot be tried again.
func (x *filter) notes() []edge.Problem {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Clone(x.open)
}

// removeLocked takes away what this process has set up, or one before. What
// another gatehouse has that runs here is left alone.
func (x *filter) removeLocked(ctx context.Context) {
	x.open, x.problems = nil, nil
	if x.rules == nil && x.swept {
		return
	}
	if x.rules == nil && x.isOfAnother() {
		return
	}
	removed, err := x.table.Remove(ctx)
	switch {
	case ctx.Err() != nil:
		return
	case x.rules == nil && (errors.Is(err, nft.ErrNotPermitted) || errors.Is(err, nft.ErrNotInstalled)):
		// Whoever may not look has left nothing, nor without the command.
	case err != nil:
		p := explainFilter(err, edge.Pos{})
		p.What += "; the firewall of before goes on"
		x.problems = []edge.Problem{p}
		return
	case removed:
		x.log.Info("firewall taken down: the configuration has none")
	}
	x.rules, x.settled, x.swept = nil, false, true
}

func (x *filter) isOfAnother() bool {
	processes, err := x.running()
	return err == nil && slices.ContainsFunc(processes, func(pid int) bool { return pid != os.Getpid() })
}

// run looks after it until ctx ends.
func (x *filter) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-x.needed:
	}
	lost := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		err := nft.Watch(ctx, packetfilter.Table, func() {
			select {
			case lost <- struct{}{}:
			default:
			}
		})
		if err != nil && ctx.Err() == nil {
			x.log.Warn("changes are noticed late", "of", "firewall", "err", err, "interval", filterInterval.String())
		}
	})
	tick := time.NewTicker(filterInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
		case <-tick.C:
		}
		mended, failed := x.verify(ctx)
		if failed {
			x.changed()
		}
		if !mended && !failed {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(filterMendPace):
		}
	}
}

// verify mends what somebody has changed. What fails is tried again with the
// next decision, which says what is wrong.
func (x *filter) verify(ctx context.Context) (mended, failed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.rules == nil || !x.settled || x.retired {
		return false, false
	}
	mended, err := x.table.Verify(ctx)
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case ctx.Err() != nil:
		return false, false
	case err != nil && text != x.failing:
		x.log.Warn("firewall not verified", "err", err)
	case mended:
		x.log.Warn("firewall mended: somebody had changed its rules")
	}
	x.failing = text
	x.settled = err == nil
	return mended, err != nil
}

// status is what the page shows.
func (x *filter) status(c *config.Config) *status.Firewall {
	if c == nil || c.Firewall == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s := &status.Firewall{Applied: x.settled, Policies: []status.Policy{}}
	if len(x.problems) > 0 {
		s.Error = x.problems[0].What
	}
	if x.rules != nil {
		s.Pinholes = len(x.rules.Pinholes)
		if now := time.Now(); now.Sub(x.counted) >= filterCountAge {
			if counts, err := x.table.Counts(); err == nil {
				x.counted, x.counts = now, counts
			}
		}
	}
	for i, p := range c.Firewall.Policies {
		one := status.Policy{What: p.String(), Allow: p.Allow, Pos: p.Pos}
		if i < len(x.counts.Policies) {
			one.Packets = x.counts.Policies[i]
		}
		s.Policies = append(s.Policies, one)
	}
	s.Dropped = x.droppedLocked()
	return s
}

// droppedLocked sums up what was dropped by zones.
func (x *filter) droppedLocked() []status.Dropped {
	if x.rules == nil {
		return nil
	}
	var all []status.Dropped
	for _, d := range x.counts.Dropped {
		one := status.Dropped{From: x.rules.ZoneOf(d.In), To: config.Self, Packets: d.Packets}
		if d.Out != "" {
			one.To = x.rules.ZoneOf(d.Out)
		}
		i := slices.IndexFunc(all, func(o status.Dropped) bool { return o.From == one.From && o.To == one.To })
		if i < 0 {
			all = append(all, one)
			continue
		}
		all[i].Packets += one.Packets
	}
	slices.SortFunc(all, func(a, b status.Dropped) int { return strings.Compare(a.From+"\x00"+a.To, b.From+"\x00"+b.To) })
	return all
}

// explainFilter says what would be right.
func explainFilter(err error, at edge.Pos) edge.Problem {
	p := edge.Problem{Pos: at, Path: "firewall", What: fmt.Sprintf("the kernel does not have these rules: %v", err), Remedy: "it is tried again; gatehouse check says what this machine lacks"}
	switch {
	case errors.Is(err, nft.ErrNotInstalled):
		p.What, p.Remedy = nft.ErrNotInstalled.Error()+", so that nothing is filtered", "apt install nftables, or what your distribution calls it"
	case errors.Is(err, nft.ErrNotPermitted):
		p.What = nft.ErrNotPermitted.Error() + ", so that these rules are not there"
		p.Remedy = "it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"
	}
	return p
}
