package daemon

import (
	"slices"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// tellCluster has the API told what follows from a decision, or nothing while
// what it says is not believed.
func (d *Daemon) tellCluster(cluster view, state desired.State) {
	switch {
	case d.silent || !cluster.answered:
	case !cluster.synced:
		cluster.client.Withhold()
	default:
		cluster.client.Apply(d.kernel.closed(state.Statuses, cluster.snapshot.Services))
		for _, e := range d.events.fresh(state.Events, cluster.snapshot) {
			cluster.client.Emit(e)
		}
	}
}

// closed leaves out the statuses that let a Service go whose doors the kernel has
// still: it goes on for a moment as a process before has left it, or does not
// take what it is told.
func (k *kernel) closed(statuses []edge.ServiceStatus, services []edge.Service) []edge.ServiceStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.holding && len(k.applied.Frontends) == 0 {
		return statuses
	}
	has := make(map[string]bool, len(k.applied.Frontends))
	for _, f := range k.applied.Frontends {
		has[f.Why] = true
	}
	open := map[string]bool{} // and would be let go
	for i := range services {
		if s := &services[i]; s.Finalizer && (k.holding || has["service/"+s.Key()]) {
			open[s.UID] = true
		}
	}
	isEarly := func(s edge.ServiceStatus) bool { return !s.Finalizer && open[s.UID] }
	if !slices.ContainsFunc(statuses, isEarly) {
		return statuses
	}
	return slices.DeleteFunc(slices.Clone(statuses), isEarly)
}
