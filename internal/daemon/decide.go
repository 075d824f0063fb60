package daemon

import (
	"context"
	"maps"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/laststate"
)

// decision is what was decided, and from what.
type decision struct {
	in       desired.Inputs
	state    desired.State
	problems []edge.Problem
}

// build decides, anew once more of the inputs is known.
func (d *decision) build() { d.state, d.problems = desired.Build(d.in) }

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
	d.cluster.use(ctx, c)
	cluster := d.cluster.look()
	if !d.guarded {
		// Before an interface has an address: nobody comes in by it who is to stay out.
		d.guarded = true
		d.router.filter.apply(ctx, decision{in: desired.Inputs{Config: c}}, true)
	}
	linkProblems := d.router.links.apply(ctx, c)
	if len(c.Pools) > 0 || len(d.ledger.all) > 0 || d.addresses.areLeft() {
		d.addresses.want(ctx)
	}
	in, err := d.inputs(c, cluster.snapshot)
	if err != nil {
		d.log.Error("interfaces not read", "err", err)
		return true
	}
	now := decision{in: in}
	now.build()
	var lacking []edge.Problem
	if now.state.Transparent {
		// Before a door opens whose answers would not find their way.
		var failure string
		if failure, lacking = d.transparent.apply(ctx, true); failure != in.NoTransparency {
			now.in.NoTransparency = failure
			now.build()
		}
	}
	// Without Services it is not known what should be.
	whole := cluster.snapshot != nil || c.Kubernetes == nil
	// A kernel that goes on as before is not told what follows from half of what
	// is to be known.
	read := cluster.synced || c.Kubernetes == nil
	held := d.kernel.hold(ctx, read, c.Zones, now.state)
	if whole {
		// Before a door opens at an address that no wall is around.
		if failed := d.addresses.apply(ctx, now.state, in.Doors, d.kernel.forwarded()); failed != nil {
			now.in.Addresses = failed
			now.build()
		}
	}
	if !held {
		// Before the relay closes a door: somebody takes each connection.
		if now.in.NoNAT = d.kernel.open(ctx, now.state, in.Interfaces); now.in.NoNAT != "" {
			now.build()
		}
		if whole {
			d.kernel.setRoutes(now.state.Routes, nodesToRoute(c, cluster.snapshot))
		}
	}
	// Before a door opens that it would keep shut, and after the kernel's doors are
	// known.
	filterProblems := d.router.filter.apply(ctx, now, held)
	if d.router.filter.stands() {
		d.router.links.wall()
	}
	d.prober.Apply(now.state.Probes)
	probes := probesAt(now.state)
	d.probesAt.Store(&probes)
	d.relay.Apply(d.toRelay(now.state, held))
	if !held {
		d.kernel.close(ctx)
	}
	if !now.state.Transparent {
		_, lacking = d.transparent.apply(ctx, false)
	}
	doors, around := d.notOpened()
	lacking = append(lacking, around...)
	if !sameDoors(in.Doors, doors) {
		// What the machine refused is an input of the decision: decide again,
		// so that nobody is told that a door is open which is not.
		now.in.Doors = doors
		now.build()
		filterProblems = d.router.filter.apply(ctx, now, held)
	}
	if kept := d.kernel.forwarded(); whole && d.addresses.differs(now.state, doors, kept) {
		d.addresses.apply(ctx, now.state, doors, kept)
	}
	d.remember(c, cluster, now.state.Allocations)
	d.tellCluster(cluster, now.state)
	admin := d.serveAdmin(ctx, c, now.in.Interfaces)
	routing := slices.Concat(linkProblems, filterProblems, d.router.serve(ctx, now))
	unwalled := d.addresses.problems()
	beside := d.others.problem(time.Now(), d.alone(), now.state.NAT || now.state.Transparent || len(c.Pools) > 0)
	now.problems = slices.Concat(now.problems, admin, lacking, routing, unwalled, beside, d.journal.problems(), d.cluster.problems(), d.router.filter.notes())
	slices.SortStableFunc(now.problems, desired.ComparePositions)
	d.told.tell(now.problems)
	d.publish(now, cluster, len(doors))
	return len(doors) > 0 || len(admin) > 0 || len(lacking) > 0 || len(routing) > 0 || held || len(d.lingering) > 0 || d.addresses.failing() || len(beside) > 0
}

// remember keeps who has which address, and the cluster that it follows from.
// The next decision has to be made when that or what is believed changes by
// itself.
func (d *Daemon) remember(c *config.Config, cluster view, allocations []edge.Allocation) {
	d.next = time.Time{}
	if cluster.snapshot != nil || c.Kubernetes == nil { // else it is not known who has left
		d.ledger.note(time.Now(), allocations)
		d.next = d.ledger.next()
	}
	if cluster.answered { // else time alone changes nothing
		d.next = earlier(d.next, d.cluster.heldUntil())
	}
	d.kept = nil
	if cluster.snapshot != nil {
		d.kept = &laststate.State{
			Source: cluster.origin.source, SavedAt: cluster.origin.at, Cluster: *cluster.snapshot, Allocations: d.ledger.all,
		}
	}
	d.journal.note(c.StateDir, d.kept)
}

// saveLast saves what was decided from last, and that it was so until now.
func (d *Daemon) saveLast() {
	d.deciding.Lock()
	defer d.deciding.Unlock()
	if now := d.cluster.look(); d.kept != nil && now.synced {
		d.kept.SavedAt = now.origin.at
		d.journal.note(d.files.current().StateDir, d.kept)
	}
	d.journal.flush()
}

// nodesToRoute are the nodes to whose pods there may be routes.
func nodesToRoute(c *config.Config, snapshot *edge.Cluster) []edge.Node {
	if snapshot == nil || c.Kubernetes == nil || !c.Kubernetes.PodRoutes {
		return nil
	}
	return snapshot.Nodes
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
		Addresses: d.addresses.snapshot(), Allocations: d.ledger.before(time.Now()),
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
