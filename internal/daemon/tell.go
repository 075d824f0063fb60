package daemon

import (
	"log/slog"

	"e13.dev/gatehouse/internal/edge"
)

// eventLog remembers what the owners of Services were told, so that each thing
// is said when it begins and not at every decision.
type eventLog struct{ told map[edge.Event]bool }

// fresh returns the events that were not there at the last decision. After a
// restart a Service whose status already says where it is open needs no news.
func (l *eventLog) fresh(events []edge.Event, cluster *edge.Cluster) []edge.Event {
	first := l.told == nil
	known := map[string]bool{}
	if first {
		for i := range cluster.Services {
			known[cluster.Services[i].Key()] = cluster.Services[i].StatusOurs && len(cluster.Services[i].Ingress) > 0
		}
	}
	now := make(map[edge.Event]bool, len(events))
	var fresh []edge.Event
	for _, e := range events {
		now[e] = true
		if !l.told[e] && (e.Warning || !known[e.Namespace+"/"+e.Name]) {
			fresh = append(fresh, e)
		}
	}
	l.told = now
	return fresh
}

// problemLog writes a problem to the log when it appears and when it clears.
type problemLog struct {
	log  *slog.Logger
	last map[edge.Problem]bool
}

func (l *problemLog) tell(problems []edge.Problem) {
	now := make(map[edge.Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !l.last[p] {
			l.log.Warn("problem appeared", "problem", p.String())
		}
	}
	for p := range l.last {
		if !now[p] {
			l.log.Info("problem cleared", "problem", p.String())
		}
	}
	l.last = now
}
