// Package daemon introduces the parts to each other and runs the one loop:
// snapshots of files, cluster, interfaces and health go into desired.Build, and
// what comes out goes to the appliers. It decides nothing itself.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/handover"
	"e13.dev/gatehouse/internal/health"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/relay"
	"e13.dev/gatehouse/internal/resolve"
	"e13.dev/gatehouse/internal/status"
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
	admin       slot
	manager     manager
	events      eventLog
	told        problemLog
	probesAt    atomic.Pointer[map[server][]netip.AddrPort]

	cut    context.CancelCauseFunc // ends closed, by force; both are of closeDoors
	closed chan error

	reloading  atomic.Bool // systemd waits for it
	deciding   sync.Mutex
	handedOver bool   // guarded by deciding: no decision is ours any more
	page       page   // likewise
	inherited  page   // likewise: of the process before, in the first decision
	silent     bool   // likewise: the cluster is not told
	said       string // to systemd; the loop's own
	// Doors that have gone from the relay to the kernel, until when the relay
	// keeps them, and how it had them. Guarded by deciding.
	lingering map[edge.Door]lingerer
	relayed   []edge.Frontend // by the last decision; likewise

	mu                 sync.Mutex
	state              desired.State
	decided            []edge.Problem
	ready              bool
	waiting, waitedFor []string
	services, nodes    int // in the last cluster snapshot
	synced             bool
}

// New prepares a daemon; nothing runs or listens before Run.
func New(o Options) *Daemon {
	d := &Daemon{opts: o, log: o.Log, started: time.Now(), wake: make(chan struct{}, 1)}
	d.files = files{log: o.Log, names: o.Files}
	d.cluster = cluster{log: o.Log, changed: d.kick}
	d.names = resolve.New(o.Log)
	d.observer = host.New(o.Log)
	d.prober = health.New(o.Log, health.Options{})
	d.relay = d.newRelay(relay.Handover{})
	d.transparent = newTransparency(o.Log)
	d.kernel = newKernel(o.Log, func(of edge.Protocol, backend netip.AddrPort) {
		d.eachProbe(server{of, backend}, d.prober.Suspect)
	})
	d.kernel.successor = o.Previous != nil
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

// server is what a backend's probes are about. A name server's TCP and UDP ports
// have the same address, and one may be dead without the other.
type server struct {
	protocol edge.Protocol
	addr     netip.AddrPort
}

// eachProbe tells the prober what a connection to a backend has shown.
func (d *Daemon) eachProbe(backend server, tell func(at netip.AddrPort)) {
	if probes := d.probesAt.Load(); probes != nil {
		for _, at := range (*probes)[backend] {
			tell(at)
		}
	}
}

// probesAt maps each backend to the addresses by which the prober knows what its
// connections concern: where its health is asked for, which may be another
// port, and the healthz of its node.
func probesAt(state desired.State) map[server][]netip.AddrPort {
	through := map[netip.AddrPort]bool{}
	healthz := map[netip.Addr]netip.AddrPort{}
	for _, p := range state.Probes {
		if p.Through.IsValid() {
			through[p.Through] = true
		}
		if p.Kind == edge.ProbeHealthz {
			healthz[p.Addr.Addr()] = p.Addr
		}
	}
	probes := map[server][]netip.AddrPort{}
	add := func(backend server, at netip.AddrPort) {
		if at.IsValid() && !slices.Contains(probes[backend], at) {
			probes[backend] = append(probes[backend], at)
		}
	}
	for _, f := range state.Frontends {
		for _, b := range f.Backends {
			s := server{f.Protocol, b.Addr}
			if f.Protocol == edge.TCP && through[b.Addr] {
				add(s, b.Addr)
			} else {
				add(s, b.Probe)
			}
			if b.Target == edge.TargetNodePort {
				add(s, healthz[b.Addr.Addr()])
			}
		}
	}
	return probes
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
	task(g, "loop", func() error { return d.loop(serving, watcher) })
	err = g.Wait()
	if errors.Is(err, errHandedOver) {
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
	awaited := true // by systemd
	for {
		unfinished := d.decide(ctx)
		decided := time.Now()
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
		}
		// What comes first is decided at once.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace - time.Since(decided)):
		}
	}
}

// decide takes the snapshots, builds the desired state and applies it. It
// reports whether something is left to try again.
func (d *Daemon) decide(ctx context.Context) (unfinished bool) {
	d.deciding.Lock()
	defer d.deciding.Unlock()
	if d.handedOver {
		return false
	}
	c := d.files.current()
	d.names.Follow(hostNames(c))
	d.cluster.use(ctx, c.Kubernetes)
	snapshot, client, synced := d.cluster.look()
	in, err := d.inputs(c, snapshot)
	if err != nil {
		d.log.Error("interfaces not read", "err", err)
		return true
	}
	state, problems := desired.Build(in)
	var lacking []edge.Problem
	if state.Transparent {
		// Before a door opens whose answers would not find their way.
		var failure string
		if failure, lacking = d.transparent.apply(ctx, true); failure != in.NoTransparency {
			in.NoTransparency = failure
			state, problems = desired.Build(in)
		}
	}
	// A kernel that goes on as before is not told what follows from half of what
	// is to be known.
	read := synced || c.Kubernetes == nil
	held := d.kernel.hold(ctx, read, c.Zones, state)
	if !held {
		// Before the relay closes a door: somebody takes each connection.
		if in.NoNAT = d.kernel.open(ctx, state, in.Interfaces); in.NoNAT != "" {
			state, problems = desired.Build(in)
		}
		var nodes []edge.Node
		if in.Cluster != nil && c.Kubernetes != nil && c.Kubernetes.PodRoutes {
			nodes = in.Cluster.Nodes
		}
		if read {
			d.kernel.setRoutes(state.Routes, nodes)
		}
	}
	d.prober.Apply(state.Probes)
	probes := probesAt(state)
	d.probesAt.Store(&probes)
	d.relay.Apply(d.toRelay(state, held))
	if !held {
		d.kernel.close(ctx)
	}
	if !state.Transparent {
		_, lacking = d.transparent.apply(ctx, false)
	}
	doors, around := d.notOpened()
	lacking = append(lacking, around...)
	if !sameDoors(in.Doors, doors) {
		// What the machine refused is an input of the decision: decide again,
		// so that nobody is told that a door is open which is not.
		in.Doors = doors
		state, problems = desired.Build(in)
	}
	if synced && !d.silent {
		client.Apply(state.Statuses)
		for _, e := range d.events.fresh(state.Events, snapshot) {
			client.Emit(e)
		}
	}
	admin := d.serveAdmin(ctx, c.Admin)
	problems = append(append(problems, admin...), lacking...)
	if c.Kubernetes != nil {
		problems = append(problems, d.cluster.problems(c.Kubernetes.Pos)...)
	}
	slices.SortStableFunc(problems, desired.ComparePositions)
	d.told.tell(problems)
	d.publish(c, state, problems, snapshot, synced, len(doors), in.NoNAT)
	return len(doors) > 0 || len(admin) > 0 || len(lacking) > 0 || held || len(d.lingering) > 0
}

// inputs is everything that a decision follows from, as it is now.
func (d *Daemon) inputs(c *config.Config, snapshot *edge.Cluster) (desired.Inputs, error) {
	interfaces, err := d.observer.Snapshot()
	if err != nil {
		return desired.Inputs{}, err
	}
	doors, _ := d.notOpened()
	ipv4, ipv6 := host.Forwarding()
	return desired.Inputs{
		Config: c, Interfaces: interfaces, Cluster: snapshot, Hosts: d.names.Snapshot(),
		Health: d.prober.Snapshot(), Doors: doors, NoTransparency: d.transparent.failing(),
		NoForwarding4: !ipv4, NoForwarding6: !ipv6,
	}, nil
}

// notOpened are the doors that neither data plane could open, with the reason;
// and what is wrong around the kernel's.
func (d *Daemon) notOpened() (doors map[edge.Door]string, problems []edge.Problem) {
	doors, problems = d.kernel.state()
	maps.Copy(doors, failed(d.relay.Doors()))
	return doors, problems
}

// A lingerer is how the relay had a door that the kernel has now.
type lingerer struct {
	frontends []edge.Frontend
	until     time.Time
}

// toRelay are the frontends that the relay is to have: its own, and for a while
// those whose doors the kernel has taken over, since a client whose handshake
// has begun is still the relay's. While the kernel goes on as before that is
// nobody's.
func (d *Daemon) toRelay(state desired.State, held bool) []edge.Frontend {
	relayed, translated := byDataPlane(state.Frontends)
	own := map[edge.Door]bool{}
	for _, f := range relayed {
		own[f.Door] = true
	}
	if !held {
		had := map[edge.Door][]edge.Frontend{}
		for _, f := range d.relayed {
			had[f.Door] = append(had[f.Door], f)
		}
		lingering := map[edge.Door]lingerer{}
		for _, f := range translated {
			l, lingers := d.lingering[f.Door]
			before, moves := had[f.Door]
			if !lingers && !moves {
				continue
			}
			taken, refused := d.kernel.leave(f.Door)
			if moves {
				l.frontends = before
			}
			if moves && taken || refused {
				l.until = time.Now().Add(lingerTime)
			}
			if lingers || taken || refused {
				lingering[f.Door] = l
			}
		}
		// What is neither plane's any more is closed at once.
		d.lingering, d.relayed = lingering, relayed
	}
	all := slices.Clone(relayed)
	for door, l := range d.lingering {
		if own[door] || time.Now().After(l.until) {
			delete(d.lingering, door)
			if !own[door] {
				d.kernel.purgeUntranslated(door)
			}
			continue
		}
		all = append(all, l.frontends...)
	}
	return all
}

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

// serveAdmin keeps the status page where the configuration wants it. A page
// that cannot be served is a problem, and no reason to serve no traffic.
func (d *Daemon) serveAdmin(ctx context.Context, a config.Admin) []edge.Problem {
	if a.Listen == "" {
		d.page = page{}
		if d.admin.stop() {
			d.log.Info("status page closed")
		}
		return nil
	}
	if d.admin.holds(a.Listen) {
		return nil
	}
	d.admin.stop() // before listening: the new address may overlap the old one
	d.page = page{}
	listener, err := d.listenAdmin(a.Listen)
	if err != nil {
		return []edge.Problem{{Pos: a.Pos, Path: "admin.listen", What: "no status page: " + err.Error(), Remedy: "it is tried again"}}
	}
	d.page = page{a.Listen, listener}
	d.log.Info("status page", "url", "http://"+listener.Addr().String()+"/")
	// The page outlives ctx, to show connections draining.
	d.admin.set(context.WithoutCancel(ctx), a.Listen, func(ctx context.Context) {
		if err := web.New(d.Status, d.log).Serve(ctx, listener); err != nil && !errors.Is(err, context.Canceled) {
			d.log.Error("status page ended", "err", err)
		}
	})
	return nil
}

// listenAdmin opens the address, unless the process before had it open.
func (d *Daemon) listenAdmin(address string) (*net.TCPListener, error) {
	if p := d.inherited; p.listener != nil && p.Listen == address {
		d.inherited = page{}
		return p.listener, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

func (d *Daemon) publish(c *config.Config, state desired.State, problems []edge.Problem, snapshot *edge.Cluster, synced bool, closedDoors int, noNAT string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.decided, d.synced = state, problems, synced
	d.services, d.nodes = 0, 0
	if snapshot != nil {
		d.services, d.nodes = len(snapshot.Services), len(snapshot.Nodes)
	}
	d.waiting = nil
	if c.Kubernetes != nil && snapshot == nil {
		d.waiting = append(d.waiting, "the Kubernetes API")
	}
	if closedDoors > 0 {
		d.waiting = append(d.waiting, fmt.Sprintf("listeners that could not be opened: %d", closedDoors))
	}
	if noNAT != "" {
		d.waiting = append(d.waiting, "data plane nat: "+noNAT)
	}
	for _, e := range state.Exposures {
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
	if c := d.files.current(); c != nil && c.Kubernetes != nil {
		s.Cluster = &status.Cluster{Synced: d.synced, Services: d.services, Nodes: d.nodes}
		if problems := d.cluster.problems(c.Kubernetes.Pos); len(problems) > 0 {
			s.Cluster.Error = problems[0].What
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
