// Package daemon introduces the parts to each other and runs the one loop:
// snapshots of files, cluster, interfaces and health go into desired.Build, and
// what comes out goes to the appliers. It decides nothing itself.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/handover"
	"e13.dev/gatehouse/internal/health"
	"e13.dev/gatehouse/internal/history"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/laststate"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/resolve"
	"e13.dev/gatehouse/internal/vip"
	"e13.dev/gatehouse/internal/web"
)

const (
	// Files are read once they have been quiet for this long: an editor writes
	// in several steps.
	settle = 200 * time.Millisecond
	// Changes that come within this time of the last decision are decided
	// together: a rollout of a large Deployment is a burst of them.
	pace = 20 * time.Millisecond
	// What could not be done is tried again after this time: a port that is
	// taken, a kubeconfig that is not there.
	retryInterval = 2 * time.Second
	// The first decision waits this long for the names in the files.
	firstLookup = 2 * time.Second
)

// Options are what the command line says.
type Options struct {
	Files   []string // at least one, good when the daemon starts
	Version string
	Log     *slog.Logger

	// Cut ends the wait for connections that drain; nil: nothing does, except
	// the stop timeout.
	Cut <-chan struct{}
	// NotifySocket is where systemd wants to be told how things stand; empty:
	// nobody does.
	NotifySocket string
	// Program is what SIGUSR2 starts to take our place; the zero Program: there
	// is none.
	Program handover.Program
	// Previous is the program whose place we take; nil: none.
	Previous *handover.Previous
}

// Daemon is a gatehouse that serves.
type Daemon struct {
	opts        Options
	log         *slog.Logger
	started     time.Time
	wake        chan struct{}
	files       files
	cluster     cluster
	names       *resolve.Names
	observer    *host.Observer
	prober      *health.Prober
	relay       *relay.Relay // takeOver sets it anew
	transparent *transparency
	kernel      *kernel
	addresses   *addresses
	journal     *journal
	router      router
	site        *web.Server // the status page; who sees it is said by token
	token       token
	history     *history.History
	work        work
	manager     manager
	events      eventLog
	told        problemLog
	probesAt    atomic.Pointer[map[server][]netip.AddrPort]

	cut    context.CancelCauseFunc // ends closed, by force; both are of closeDoors
	closed chan error

	reloading  atomic.Bool // systemd waits for it
	deciding   sync.Mutex
	handedOver bool             // guarded by deciding: no decision is ours any more
	pages      pages            // likewise
	inherited  pages            // likewise: of the process before, in the first decision
	silent     bool             // likewise: the cluster is not told
	guarded    bool             // likewise: the firewall was there before links
	ledger     ledger           // likewise
	others     others           // likewise
	kept       *laststate.State // likewise: what the last decision follows from
	next       time.Time        // likewise: when to decide, though nothing has happened
	said       string           // to systemd; the loop's own
	// Doors that have gone from the relay to the kernel, until when the relay
	// keeps them, and how it had them. Guarded by deciding.
	lingering map[edge.Door]lingerer
	relayed   []edge.Frontend // by the last decision; likewise

	mu                 sync.Mutex
	state              desired.State
	decided            []edge.Problem
	ready              bool
	waiting, waitedFor []string
	stopping           bool // the state is empty, whatever was decided
	seen               view // of the cluster
	interfaces         []edge.Interface
	config             *config.Config
	allocations        []laststate.Allocation
}

// New prepares a daemon; nothing runs or listens before Run.
func New(o Options) *Daemon {
	d := &Daemon{opts: o, log: o.Log, started: time.Now(), wake: make(chan struct{}, 1)}
	d.files = files{log: o.Log, names: o.Files}
	d.cluster = cluster{log: o.Log, changed: d.kick}
	d.names = resolve.New(o.Log)
	d.observer = host.New(o.Log)
	d.prober = health.New(o.Log, health.Options{Asked: d.work.asked})
	d.relay = d.newRelay(relay.Handover{})
	d.transparent = newTransparency(o.Log)
	d.kernel = newKernel(o.Log, func(of edge.Protocol, backend netip.AddrPort) {
		d.eachProbe(server{of, backend}, d.prober.Suspect)
	})
	d.kernel.successor, d.kernel.work = o.Previous != nil, &d.work
	d.addresses = &addresses{log: o.Log, keeper: vip.New(o.Log, vip.Options{}), left: d.addressesLeft, changed: d.kick}
	d.journal = newJournal(d.kick)
	d.router = newRouter(o.Log, d.kick)
	d.history = history.New()
	d.site = web.New(web.Source{Status: d.Status, Explain: d.Explain}, o.Log)
	d.told = problemLog{log: o.Log}
	d.manager = manager{socket: o.NotifySocket, log: o.Log}
	return d
}

func (d *Daemon) newRelay(adopt relay.Handover) *relay.Relay {
	return relay.New(d.log, relay.Options{
		OnDialError: func(of edge.Protocol, backend netip.AddrPort, err error) {
			d.eachProbe(server{of, backend}, func(at netip.AddrPort) { d.prober.Failed(at, err) })
		},
		OnSlowDial: func(backend netip.AddrPort) { d.eachProbe(server{edge.TCP, backend}, d.prober.Suspect) },
		Adopt:      adopt,
	})
}

// kick asks the loop for a new decision.
func (d *Daemon) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends, then lets connections end for a while; or until
// another process has taken its place, then it lets them end however long that
// takes. Files that are bad from the start are an error.
func (d *Daemon) Run(ctx context.Context) error {
	err := d.run(ctx)
	d.opts.Previous.GiveUp(err)
	return err
}

func (d *Daemon) run(ctx context.Context) error {
	// To the end: without, SIGHUP would end the process while it drains.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals)

	present, err := host.CheckIn()
	if err != nil {
		return err
	}
	defer present.Close()
	watcher := filewatch.New(d.opts.Files, settle, d.log)
	if !d.files.take(watcher.Read()) {
		return errBadStart
	}
	d.restore(d.files.current())
	// Once before the first decision: a name that is there is no problem.
	d.names.Follow(hostNames(d.files.current()))
	first, cancel := context.WithTimeout(ctx, firstLookup)
	d.names.Resolve(first)
	cancel()
	g, serving := errgroup.WithContext(ctx)
	task(g, "files", func() error { return watcher.Run(serving) })
	task(g, "signals", func() error { return d.onSignals(serving, signals, watcher.Reload) })
	task(g, "interfaces", func() error { return d.observer.Run(serving) })
	task(g, "names", func() error { return d.names.Run(serving) })
	task(g, "health", func() error { return d.prober.Run(serving) })
	task(g, "transparency", func() error { return d.transparent.run(serving, d.kick) })
	task(g, "data plane nat", func() error { return d.kernel.run(serving, d.kick) })
	task(g, "history", func() error { return d.rememberCounts(serving) })
	task(g, "token", func() error { return d.token.run(serving, d.kick) })
	task(g, "links", func() error { return d.router.links.run(serving) })
	task(g, "firewall", func() error { return d.router.filter.run(serving) })
	task(g, "dhcp", func() error { return d.router.dhcp.run(serving) })
	task(g, "router advertisements", func() error { return d.router.adverts.run(serving) })
	task(g, "dns", func() error { return d.router.dns.run(serving) })
	task(g, "state", func() error { return d.journal.run(serving) })
	task(g, "loop", func() error { return d.loop(serving, watcher) })
	err = g.Wait()
	if errors.Is(err, errHandedOver) {
		if err := present.Leave(); err != nil {
			d.log.Warn("still seems to decide", "err", err)
		}
		defer d.cut(nil)
		d.drain(ctx, signals)
		d.transparent.leave()
		d.log.Info("drained, the end")
		return nil
	}
	// Before anything is waited for: somebody waits to serve on.
	d.opts.Previous.GiveUp(err)
	d.stop(ctx, signals)
	return err
}

// restore goes on from what a process before has kept.
func (d *Daemon) restore(c *config.Config) {
	if c.StateDir == "" || c.Kubernetes == nil {
		return
	}
	if s := d.journal.open(c.StateDir); s != nil && d.cluster.remember(*s, c.StateDir, c.Kubernetes) {
		d.ledger.take(time.Now(), s.Allocations)
	}
}

// task runs part of the daemon. Being stopped is success; anything else names
// the part.
func task(g *errgroup.Group, name string, run func() error) {
	g.Go(func() error {
		if err := run(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// loop decides whenever something has changed.
func (d *Daemon) loop(ctx context.Context, watcher *filewatch.Watcher) error {
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	if d.opts.Previous != nil {
		if err := d.takeOver(ctx); err != nil {
			if ctx.Err() == nil {
				d.opts.Previous.GiveUp(err)
			}
			return fmt.Errorf("take over: %w", err)
		}
	}
	awaited, noticed := true, time.Now() // by systemd; why there is a decision
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		unfinished := d.decide(ctx)
		decided := time.Now()
		d.work.decided(noticed)
		if later.Stop(); !d.next.IsZero() {
			later.Reset(time.Until(d.next))
		}
		d.report(awaited)
		again := retry.C
		if !unfinished {
			again = nil
		}
		awaited = false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case contents := <-watcher.Changed():
			d.files.take(contents)
			awaited = d.reloading.Swap(false)
		case <-d.wake:
		case <-d.observer.Changed():
		case <-d.names.Changed():
		case <-d.prober.Changed():
		case <-again:
		case <-later.C:
		}
		noticed = time.Now()
		// What comes first is decided at once.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace - time.Since(decided)):
		}
	}
}
