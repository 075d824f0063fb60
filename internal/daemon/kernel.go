package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/nft"
	"e13.dev/gatehouse/internal/ports"
	"e13.dev/gatehouse/internal/status"
)

const (
	// How often the counters are looked at for backends that do not answer, if
	// reading them takes no longer than a twentieth of that; and how long it rests
	// if it takes somewhat longer. Who has not answered for so long is known to the
	// prober, and need not be asked about any more.
	kernelPace   = 250 * time.Millisecond
	kernelRest   = 400 * time.Millisecond
	kernelSilent = 10 * time.Second
	// How soon it is noticed that the rules are not ours any more, if nobody says
	// so; likewise who else is in the way, and how full conntrack is.
	kernelInterval = 10 * time.Second
	// What somebody takes away again is mended no sooner than this.
	kernelMendPace = time.Second
	// What a process before has left in the kernel is what holds, until the
	// cluster is read and the probes of the backends have answered, or this long
	// after.
	kernelHold = 3 * time.Second
	// A door that goes from the relay to the kernel is kept open by the relay for
	// this long: for clients whose handshake has begun.
	lingerTime = 2 * time.Second
	// The counters are read at most this often.
	kernelCountAge = time.Second
)

// kernel is the nat data plane: rules and routes that outlive this process, and
// what the kernel does not do by itself, which is to forget flows to backends
// that are gone and to notice that nobody answers.
type kernel struct {
	log       *slog.Logger
	successor bool // it takes the place of another process
	running   func() ([]int, error)
	suspect   func(edge.Protocol, netip.AddrPort) // a client waits for that backend
	needed    chan struct{}                       // closed when nat is wanted for the first time
	once      sync.Once
	lacks     sync.Once // it was said what this machine lacks
	told      atomic.Pointer[telling]
	work      *work
	failing   map[string]string // what is tried again and again, and why it fails; guarded by mu

	mu         sync.Mutex
	nat        *nat.Applier
	routes     host.Routes
	lastCounts []nat.Count // as the last look had them
	heard      map[server]answers
	adopted    bool        // the kernel was asked what there is from before
	there      bool        // there is a table
	read       bool        // all that there is to decide from was read
	swept      bool        // it was seen to that nothing is left of before
	inherits   bool        // not all is known that what a process before has left was made from
	holding    bool        // the kernel goes on as it does
	retired    bool        // another process has taken over
	since      time.Time   // when that was adopted
	known      time.Time   // since when the cluster has been read, while it inherits
	keep       []edge.Door // of a process before, which may be Services'
	wanted     nat.State   // what was decided last, without what is taken
	applied    nat.State   // what the kernel has
	taken      map[edge.Door]string
	refused    map[edge.Door]string // new doors that the kernel would not take, while it goes on with others
	failure    string               // why there is no nat data plane
	problems   []edge.Problem       // of applying
	around     []edge.Problem       // of the machine, when last looked at
	routed     []edge.Problem       // of routes
	wantsVia   []edge.Route         // the routes that were applied last
	settled    bool                 // they are as they should be, as far as is known
	behind     map[service]backing
	stale      map[service]bool      // the relay had them, or nobody; their UDP flows are to come to the kernel
	own        map[netip.Addr]string // this machine's addresses, and their interfaces
	pool       map[netip.Addr]bool   // addresses of pools that doors have, or may have
	passed     struct {
		nat.Count
		yes bool
	}
	purges  int           // so many looks still purge
	hurry   chan struct{} // they are to begin now
	drained []time.Time   // when drain timeouts are over
	counted time.Time
	counts  map[edge.Door]map[netip.AddrPort]flows
	past    map[edge.Door]nat.Count // of backends whose counters were deleted
}

func newKernel(log *slog.Logger, suspect func(edge.Protocol, netip.AddrPort)) *kernel {
	k := &kernel{
		log: log, suspect: suspect, running: host.Running, needed: make(chan struct{}), hurry: make(chan struct{}, 1), nat: nat.New(),
		taken: map[edge.Door]string{}, behind: map[service]backing{}, stale: map[service]bool{}, past: map[edge.Door]nat.Count{},
		failing: map[string]string{},
	}
	k.told.Store(&telling{})
	return k
}

// byDataPlane are the frontends of the relay, and those of the kernel.
func byDataPlane(all []edge.Frontend) (relayed, translated []edge.Frontend) {
	for _, f := range all {
		if f.DataPlane == edge.DataPlaneNAT {
			translated = append(translated, f)
		} else {
			relayed = append(relayed, f)
		}
	}
	return relayed, translated
}

// hold says whether the kernel is to go on as it does, whatever was decided: a
// process before has left rules, and not all is known yet that they were made
// from. If the cluster is not read for long, only doors stay as they are that no
// frontend is for, in a zone, for a Service might be.
func (k *kernel) hold(ctx context.Context, read bool, zones []edge.Zone, state desired.State) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.read = read
	if !k.adopted {
		k.adopted, k.since = true, now
		doors, err := k.adoptLocked(ctx)
		if err != nil {
			k.log.Warn("rules of before not read", "err", err)
		}
		k.inherits = len(doors) > 0
		if k.inherits {
			k.log.Info("the kernel forwards as before, until enough is known", "doors", len(doors))
		}
	}
	k.keep = nil
	if !k.inherits {
		return false
	}
	since := k.since
	if read {
		if k.known.IsZero() {
			k.known = now
		}
		since = k.known
	}
	pending := slices.ContainsFunc(state.Frontends, func(f edge.Frontend) bool {
		return f.DataPlane == edge.DataPlaneNAT && slices.ContainsFunc(f.Backends, func(b edge.Backend) bool { return b.State == edge.Pending })
	})
	k.holding = (!read || pending) && now.Sub(since) < kernelHold
	k.inherits = k.holding || !read
	if k.inherits && !k.holding {
		k.keepLocked(zones, state)
	}
	return k.holding
}

func (k *kernel) keepLocked(zones []edge.Zone, state desired.State) {
	known := map[edge.Door]bool{}
	for _, f := range state.Frontends {
		known[f.Door] = true
	}
	for _, f := range k.applied.Frontends {
		inZone := slices.ContainsFunc(zones, func(z edge.Zone) bool { return slices.Contains(z.Interfaces, f.Listen.Device) })
		if f.Name == "" && inZone && !known[f.Door] {
			k.keep = append(k.keep, f.Door)
		}
	}
}

// adoptLocked reads what a process before has left. What connections there are
// to its backends is purged, once it is known which of them are gone.
func (k *kernel) adoptLocked(ctx context.Context) ([]edge.Door, error) {
	doors, backends, err := k.nat.Adopt(ctx)
	if errors.Is(err, nft.ErrNotPermitted) || errors.Is(err, nft.ErrNotInstalled) {
		return nil, nil // whoever may not look has left nothing
	}
	if err != nil {
		return nil, err
	}
	for _, door := range doors {
		k.applied.Frontends = append(k.applied.Frontends, adopted(door))
		b := k.backingLocked(serviceOf(door))
		b.devices[door.Listen.Device] = true
		for _, addr := range backends[door] {
			b.backends[addr] = keepAll
		}
	}
	// What it had counted tells which backends it had besides, if they were given
	// connections and not only others' packets.
	counts, err := k.nat.Counters(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range counts {
		if b := k.backingLocked(serviceOf(c.Door)); c.Connections > 0 {
			b.backends[c.Backend] = keepAll
		}
	}
	k.poolLocked(nil)
	if k.there = len(doors)+len(counts) > 0; k.there {
		k.swept = true // it goes with its last flow
		k.once.Do(func() { close(k.needed) })
	}
	return doors, nil
}

// adopted is the frontend of a door of which no more is known: it has no name.
func adopted(door edge.Door) edge.Frontend {
	return edge.Frontend{Door: door, DataPlane: edge.DataPlaneNAT}
}

func (k *kernel) backingLocked(s service) backing {
	b, ok := k.behind[s]
	if !ok {
		b = newBacking()
		k.behind[s] = b
	}
	return b
}

// open makes the kernel take what was decided for it. What it is to give up it
// keeps until close, if the relay is to take it. failure says why there is no
// nat data plane at all.
func (k *kernel) open(ctx context.Context, state desired.State, interfaces []edge.Interface) (failure string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	relayed, translated := byDataPlane(state.Frontends)
	k.wanted = nat.State{Hairpins: state.Hairpins, Keep: k.keep}
	if !state.NAT && (!k.there || !k.hasNamedLocked() && k.isOfAnother()) {
		clear(k.taken)
		k.failure, k.problems, k.refused = "", nil, nil
		k.wanted = k.applied
		k.sweepLocked(ctx)
		return ""
	}
	k.once.Do(func() { close(k.needed) })
	k.lacks.Do(func() { k.sayLackingLocked(ctx) })
	k.own = map[netip.Addr]string{}
	for _, i := range interfaces {
		for _, p := range i.Addrs {
			k.own[p.Addr()] = i.Name
		}
	}
	k.checkPortsLocked(translated)
	for _, f := range translated {
		if k.taken[f.Door] == "" {
			k.wanted.Frontends = append(k.wanted.Frontends, f)
		}
	}
	ofRelay, moving := map[edge.Door]bool{}, map[edge.Door]bool{}
	for _, f := range relayed {
		ofRelay[f.Door] = true
	}
	for _, f := range k.applied.Frontends {
		if ofRelay[f.Door] {
			moving[f.Door] = true
		}
	}
	isNew := map[edge.Door]bool{}
	for _, f := range k.wanted.Frontends {
		isNew[f.Door] = true
	}
	for _, f := range k.applied.Frontends {
		delete(isNew, f.Door)
	}
	for door := range isNew {
		k.purgeDoorLocked(door) // of who has asked in vain, and goes on
	}
	k.followLocked(moving)
	k.wanted.Addresses = k.poolLocked(state.Addresses)
	both := k.wanted
	for _, f := range k.applied.Frontends {
		if moving[f.Door] {
			both.Keep = append(slices.Clip(both.Keep), f.Door)
		}
	}
	k.applyLocked(ctx, both)
	return k.failure
}

// hasNamedLocked says whether the kernel has a door that this process has given it.
func (k *kernel) hasNamedLocked() bool {
	return slices.ContainsFunc(k.applied.Frontends, func(f edge.Frontend) bool { return f.Name != "" })
}

// sweepLocked removes what a process of another version has left, whose doors
// cannot be told: nobody is to look after the table.
func (k *kernel) sweepLocked(ctx context.Context) {
	if k.swept || !k.read || k.isOfAnother() {
		return
	}
	k.swept = true
	switch removed, err := k.nat.Remove(ctx); {
	case removed:
		k.log.Info("data plane nat taken down: nothing needs it")
	case err != nil && !errors.Is(err, nft.ErrNotPermitted) && ctx.Err() == nil:
		k.log.Warn("rules of before not removed", "err", err)
	}
}

// isOfAnother says whether another gatehouse runs here, whose the table may be:
// one that drains, or one that somebody has started besides, with other frontends.
// What the process before has left at an upgrade is ours.
func (k *kernel) isOfAnother() bool {
	processes, err := k.running()
	return !k.successor && err == nil && slices.ContainsFunc(processes, func(pid int) bool { return pid != os.Getpid() })
}

// close makes the kernel give up what the relay has taken.
func (k *kernel) close(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.there && len(k.applied.Frontends) != len(k.wanted.Frontends)+len(k.wanted.Keep) && len(k.problems) == 0 {
		k.applyLocked(ctx, k.wanted)
	}
}

func (k *kernel) applyLocked(ctx context.Context, s nat.State) {
	began := time.Now()
	changed, err := k.nat.Apply(ctx, s)
	if ctx.Err() != nil {
		return // it is over: the error says nothing of the machine
	}
	k.work.applied(began, changed, err)
	k.failure, k.problems, k.refused = "", nil, nil
	if err == nil {
		before := k.applied.Frontends
		k.there = k.there || len(s.Frontends) > 0
		k.applied = s
		for _, door := range s.Keep {
			k.applied.Frontends = append(slices.Clip(k.applied.Frontends), adopted(door))
		}
		k.sayDoors(before, k.applied.Frontends)
		return
	}
	p := explainKernel(err)
	k.problems = []edge.Problem{p}
	if k.there {
		k.problems[0].What += "; what the kernel has goes on"
		k.refused = map[edge.Door]string{}
		for _, f := range k.wanted.Frontends {
			k.refused[f.Door] = p.What
		}
		for _, f := range k.applied.Frontends {
			delete(k.refused, f.Door)
		}
	} else {
		k.failure = p.What
	}
}

// sayDoors logs what the kernel has taken and given up, as the relay does. One
// that was adopted has no name until it is known whose it is.
func (k *kernel) sayDoors(before, after []edge.Frontend) {
	had, has := map[edge.Door]string{}, map[edge.Door]bool{}
	for _, f := range before {
		had[f.Door] = f.Name
	}
	for _, f := range after {
		has[f.Door] = true
		if f.Name != had[f.Door] && f.Name != "" {
			k.log.Info("frontend opened", "frontend", f.Name, "zone", f.Zone, "data_plane", edge.DataPlaneNAT, "listen", f.String(), "why", f.Why)
		}
	}
	for _, f := range before {
		if !has[f.Door] {
			k.log.Info("frontend closed", "frontend", f.Name, "data_plane", edge.DataPlaneNAT, "listen", f.String(), "reason", "removed")
		}
	}
}

// checkPortsLocked finds the new doors whose port a program has. One that was
// there first keeps it: the kernel would take its clients away. One that comes
// later is in the same place as one that comes after the relay.
func (k *kernel) checkPortsLocked(frontends []edge.Frontend) {
	has := map[edge.Door]bool{}
	for _, f := range k.applied.Frontends {
		has[f.Door] = true
	}
	var doors []edge.Door
	for _, f := range frontends {
		if !has[f.Door] {
			doors = append(doors, f.Door)
		}
	}
	clear(k.taken)
	if len(doors) == 0 {
		return
	}
	// Of an upgrade, the process before still has its sockets.
	processes, err := k.running()
	if err != nil {
		k.log.Warn("it is not known who else runs", "err", err)
	}
	maps.Copy(k.taken, ports.Taken(doors, processes...))
}

// sayLackingLocked logs once what this machine has not.
func (k *kernel) sayLackingLocked(ctx context.Context) {
	lacking, err := nat.Lacking(ctx)
	if err != nil {
		return // Apply will say it
	}
	for _, l := range lacking {
		k.log.Warn("the kernel or nft lacks what data plane nat takes", "what", l.What, "needs", l.Needs)
	}
}

// retire leaves the kernel to another process, or takes it back.
func (k *kernel) retire(retired bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retired = retired
}

// setRoutes keeps the routes to pods, and those to pods of before on these nodes.
func (k *kernel) setRoutes(routes []edge.Route, nodes []edge.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	routes = lasting(routes, k.wantsVia, nodes)
	if k.settled && slices.Equal(routes, k.wantsVia) {
		return
	}
	if len(routes) > 0 {
		k.once.Do(func() { close(k.needed) })
	}
	k.wantsVia = slices.Clone(routes)
	k.routed, _ = k.routes.Apply(routes)
	k.settled = len(k.routed) == 0
}

// unsettle has the routes looked at again with the next decision.
func (k *kernel) unsettle() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.settled = false
}

// state is what there is to say: doors that could not be opened, and what is
// wrong.
func (k *kernel) state() (doors map[edge.Door]string, problems []edge.Problem) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stateLocked()
}

func (k *kernel) stateLocked() (doors map[edge.Door]string, problems []edge.Problem) {
	doors = maps.Clone(k.taken)
	maps.Copy(doors, k.refused)
	return doors, slices.Concat(k.problems, k.around, k.routed)
}

// leave says whether the relay is to keep a door for now that it had: one that
// the kernel has taken, until its handshakes are over, and one that the kernel
// would not take, which is not closed then.
func (k *kernel) leave(door edge.Door) (taken, refused bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, refused = k.refused[door]
	delete(k.refused, door)
	return k.taken[door] == "" && !refused, refused
}

// run looks after the kernel until ctx ends, and calls changed when there is
// news.
func (k *kernel) run(ctx context.Context, changed func()) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-k.needed:
	}
	lost := make(chan struct{}, 1)
	tell := func() {
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	for what, watch := range map[string]func() error{
		"rules":  func() error { return nft.Watch(ctx, nat.Table, tell) },
		"routes": func() error { return host.WatchRoutes(ctx, func() { k.unsettle(); changed() }) },
	} {
		watching.Go(func() {
			if err := watch(); err != nil && ctx.Err() == nil {
				k.log.Warn("changes are noticed late", "of", what, "err", err, "interval", kernelInterval.String())
			}
		})
	}
	pace := time.NewTicker(kernelPace)
	defer pace.Stop()
	verify := time.NewTicker(kernelInterval)
	defer verify.Stop()
	var mended, rested time.Time
	ipv4, ipv6 := host.Forwarding()
	for {
		again := lost
		if time.Since(mended) < kernelMendPace {
			again = nil // at the next pace
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.hurry:
			if now := time.Now(); now.After(rested) {
				rested = now.Add(k.look(ctx, now))
			}
		case now := <-pace.C:
			if now.After(rested) {
				rested = now.Add(k.look(ctx, now))
			}
			before4, before6 := ipv4, ipv6
			if ipv4, ipv6 = host.Forwarding(); ipv4 != before4 || ipv6 != before6 {
				changed()
			}
		case <-again:
			hasMended, failed := k.verify(ctx)
			if hasMended || failed {
				mended = time.Now()
			}
			if failed {
				changed()
			}
		case <-verify.C:
			_, failed := k.verify(ctx)
			if k.lookAround(ctx) || failed {
				changed()
			}
		}
	}
}

// verify mends what somebody has changed. What fails is tried again with the
// next decision, which says what is wrong.
func (k *kernel) verify(ctx context.Context) (mended, failed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.there || k.holding || k.retired {
		return false, false
	}
	mended, err := k.nat.Verify(ctx)
	isNews := k.isNewsLocked("verify", err)
	switch {
	case ctx.Err() != nil:
	case isNews:
		k.log.Warn("rules of data plane nat not verified", "err", err)
	case mended:
		k.work.mended()
		k.log.Warn("rules of data plane nat mended: somebody had changed them")
	}
	return mended, err != nil
}

// isNewsLocked says whether an error is another than the last time: what goes on
// failing is logged once.
func (k *kernel) isNewsLocked(doing string, err error) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	isNews := err != nil && k.failing[doing] != text
	k.failing[doing] = text
	return isNews
}

// lookAround sees what else on this machine is in the way, and says whether that
// is news.
func (k *kernel) lookAround(ctx context.Context) (news bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.around
	k.around = nil
	if !k.there || k.holding || k.retired {
		return len(before) > 0
	}
	obstacles, err := nat.Obstacles(ctx)
	if k.isNewsLocked("others", err) && ctx.Err() == nil {
		k.log.Warn("rules of others not read", "err", err)
	}
	if k.passLocked() {
		obstacles = nil // they let it through
	}
	for _, o := range obstacles {
		k.around = append(k.around, edge.Problem{
			Object: "nat", What: o + " drops what none of its rules accepts: it may drop what data plane nat forwards",
			Remedy: "have it accept translated connections (ct status dnat accept; for Docker: iptables -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT)",
		})
	}
	if entries, most, err := conntrack.Usage(); err == nil && most > 0 && (status.Conntrack{Entries: entries, Max: most}).Full() {
		k.around = append(k.around, edge.Problem{
			Object: "nat", What: fmt.Sprintf("conntrack is nearly full, of %d entries; new connections are dropped when it is", most),
			Remedy: "raise the sysctl net.netfilter.nf_conntrack_max",
		})
	}
	if k.dueLocked() {
		if err := k.purgeLocked(ctx, time.Now()); k.isNewsLocked("purge", err) && ctx.Err() == nil {
			k.log.Warn("conntrack not read", "err", err)
		}
	}
	if err := k.forgetLocked(ctx); k.isNewsLocked("forget", err) && ctx.Err() == nil {
		k.log.Warn("counters not deleted", "err", err)
	}
	return !slices.Equal(before, k.around)
}

// passLocked says whether connections get through what others have in the
// forward path. They are counted behind that, and their packets before it: when
// packets came for backends since the last look and no connection was made, and
// nothing was answered, they do not.
func (k *kernel) passLocked() bool {
	var sum nat.Count
	for _, c := range k.lastCounts {
		if _, ours := k.behind[serviceOf(c.Door)]; ours {
			add(&sum, c)
		}
	}
	last := k.passed
	k.passed.Count = sum
	switch {
	case sum.Connections > last.Connections || sum.PacketsToClient > last.PacketsToClient:
		k.passed.yes = true
	case sum.PacketsToBackend > last.PacketsToBackend:
		k.passed.yes = false
	}
	return k.passed.yes
}

// explainKernel says what would be right.
func explainKernel(err error) edge.Problem {
	p := edge.Problem{Object: "nat", What: err.Error(), Remedy: "it is tried again; gatehouse check says what this machine lacks"}
	switch {
	case errors.Is(err, nft.ErrNotInstalled):
		p.What, p.Remedy = nft.ErrNotInstalled.Error(), "apt install nftables, or what your distribution calls it"
	case errors.Is(err, nft.ErrNotPermitted):
		p.What = nft.ErrNotPermitted.Error()
		p.Remedy = "it takes CAP_NET_ADMIN, as an ambient capability: with systemd, gatehouse.service.d/net-admin.conf gives it"
	}
	return p
}
