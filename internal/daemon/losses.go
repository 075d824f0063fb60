package daemon

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Of fewer than this of a kind the loss of more than half is nothing special.
const lossLeast = 4

// guard does not believe a list that suddenly lacks most of what was there: an
// API server that was restored from an old backup, or has lost its data, says
// that all is well. What was seen to be deleted is gone, however much it is.
type guard struct {
	accepted *edge.Cluster // that was believed last; nil: nothing was
	list     any           // which list that was after
	loss     *loss         // nil: what is said is believed
	believe  bool          // the operator says that the loss is one
}

// loss is what is not believed.
type loss struct {
	What  string // "7 of 9 Services and 12 of 20 endpoints"
	Since time.Time
	Until time.Time
}

// take returns what to go on with: what was read, or what was accepted last.
// list tells apart when something was read as a whole; hold is for how long a
// loss is not believed.
func (g *guard) take(now time.Time, read *edge.Cluster, list any, hold time.Duration) *edge.Cluster {
	what := ""
	if g.accepted != nil && (g.loss != nil || g.list != list) {
		what = missing(g.accepted, read)
	}
	switch {
	case what == "":
		g.loss = nil
	case g.loss == nil:
		g.loss = &loss{Since: now}
	}
	if g.loss != nil {
		g.loss.What, g.loss.Until = what, g.loss.Since.Add(hold)
		if now.Before(g.loss.Until) && !g.believe {
			last := g.accepted
			if read.Stale && !last.Stale {
				stale := *last
				stale.Stale = true
				last = &stale
			}
			return last
		}
	}
	*g = guard{accepted: read, list: list}
	return read
}

// agree says that what is missing now is gone; not what will be.
func (g *guard) agree() bool {
	g.believe = g.loss != nil
	return g.believe
}

// missing says what more than half of is gone; empty: nothing. Services are told
// by name. Endpoints are counted by Service, and nodes altogether: those that are
// replaced by others while nobody looks are not lost.
func missing(before, now *edge.Cluster) string {
	type count struct{ lost, of int }
	var services, endpoints count
	there := make(map[string]int, len(now.Services)) // endpoints, and one
	for i := range now.Services {
		there[now.Services[i].Key()] = 1 + len(now.Services[i].Endpoints)
	}
	for i := range before.Services {
		s := &before.Services[i]
		n := there[s.Key()]
		services.of++
		if n == 0 {
			services.lost++
		}
		endpoints.of += len(s.Endpoints)
		endpoints.lost += max(len(s.Endpoints)-max(n-1, 0), 0)
	}
	nodes := count{max(len(before.Nodes)-len(now.Nodes), 0), len(before.Nodes)}
	var what []string
	for _, kind := range []struct {
		name string
		count
	}{{"Services", services}, {"endpoints", endpoints}, {"nodes", nodes}} {
		if kind.of >= lossLeast && 2*kind.lost > kind.of {
			what = append(what, fmt.Sprintf("%d of %d %s", kind.lost, kind.of, kind.name))
		}
	}
	if n := len(what); n > 2 {
		what = slices.Concat([]string{strings.Join(what[:n-1], ", ")}, what[n-1:])
	}
	return strings.Join(what, " and ")
}

// problem tells the operator.
func (l *loss) problem(pos edge.Pos) edge.Problem {
	const clock = "15:04:05"
	return edge.Problem{
		Pos: pos, Path: "kubernetes.holdLosses",
		What: fmt.Sprintf("the Kubernetes API suddenly lacks %s since %s, which is not believed until %s: what was there before is served, and nothing is written to the cluster",
			l.What, l.Since.Format(clock), l.Until.Format(clock)),
		Remedy: "look whether the API server has the right data; if they are gone for good, systemctl reload gatehouse (SIGHUP) has it believed now",
	}
}
