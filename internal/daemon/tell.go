package daemon

import (
	"log/slog"

	"e13.dev/gatehouse/internal/desired"
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

// changeLog writes what an operator wants to know at 3 a.m.: doors that open
// and close, problems that appear and clear.
type changeLog struct {
	log      *slog.Logger
	doors    map[edge.Door]string
	problems map[edge.Problem]bool
}

func (l *changeLog) tell(state desired.State, problems []edge.Problem) {
	doors := make(map[edge.Door]string, len(state.Frontends))
	for _, f := range state.Frontends {
		doors[f.Door] = f.Name
		if l.doors[f.Door] != f.Name {
			l.log.Info("frontend opened", "frontend", f.Name, "zone", f.Zone, "listen", f.Door.String(), "why", f.Why)
		}
	}
	for door, name := range l.doors {
		if doors[door] != name {
			l.log.Info("frontend closed", "frontend", name, "listen", door.String())
		}
	}
	l.doors = doors
	now := make(map[edge.Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !l.problems[p] {
			l.log.Warn("problem", "problem", p.String())
		}
	}
	for p := range l.problems {
		if !now[p] {
			l.log.Info("problem cleared", "problem", p.String())
		}
	}
	l.problems = now
}
