package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/kube"
	"e13.dev/gatehouse/internal/laststate"
	"e13.dev/gatehouse/internal/status"
)

// userAgent is how the API server's audit log knows us; the field manager of
// status writes has the same name.
const userAgent = "gatehouse"

// cluster is the connection to the Kubernetes API that the running
// configuration asks for. A connection that takes the place of another serves
// the old one's last snapshot until it has read its own; so does the first one,
// with what a process before has kept.
type cluster struct {
	log     *slog.Logger
	changed func()
	task    slot

	mu     sync.Mutex
	block  *config.Kubernetes
	client *kube.Client
	err    error // why there is no client
	last   *edge.Cluster
	origin origin // of last
	guard  guard
}

// origin says where a snapshot is from.
type origin struct {
	source     string    // as laststate.State has it
	file       string    // the directory it was read from; empty: from the API
	at         time.Time // when the cluster was last known to be so
	staleSince time.Time
}

// view is the cluster as it is to be taken.
type view struct {
	snapshot *edge.Cluster // nil: there is none yet
	client   *kube.Client
	// synced: the snapshot is what the present connection says, and is believed,
	// so that the cluster may be told what follows from it.
	synced bool
	// answered: the present connection has read all, whether or not it is believed.
	answered bool
	origin   origin
}

// sourceOf tells clusters apart.
func sourceOf(block *config.Kubernetes, server string) string { return block.Kubeconfig + " " + server }

// use makes the cluster the one of a configuration, or none.
func (c *cluster) use(ctx context.Context, conf *config.Config) {
	block := conf.Kubernetes
	if block == nil {
		c.task.stop()
		c.mu.Lock()
		c.block, c.client, c.err, c.last, c.origin, c.guard = nil, nil, nil, nil, origin{}, guard{}
		c.mu.Unlock()
		return
	}
	options := kube.Options{Kubeconfig: block.Kubeconfig, UserAgent: userAgent, Logger: c.log}
	options.Namespaces, options.Routes = asksForNamespaces(conf), conf.DNS != nil
	key := fmt.Sprintf("kubeconfig:%s namespaces:%t routes:%t", block.Kubeconfig, options.Namespaces, options.Routes)
	c.mu.Lock()
	if c.block != nil && c.block.Kubeconfig != block.Kubeconfig {
		c.guard = guard{} // of another cluster nothing is expected
	}
	c.block = block
	if !c.task.holds(key) {
		c.client = nil // it ends now; its last snapshot is kept
	}
	c.mu.Unlock()
	c.task.set(ctx, key, func(ctx context.Context) {
		if err := c.run(ctx, options); err != nil && !errors.Is(err, context.Canceled) {
			c.log.Error("following the cluster ended", "err", err)
		}
	})
}

// asksForNamespaces says whether somebody chooses Services by the labels of
// their namespaces.
func asksForNamespaces(c *config.Config) bool {
	if slices.ContainsFunc(c.Pools, func(p config.Pool) bool { return p.NamespaceLabels != "" }) {
		return true
	}
	if c.DNS != nil && slices.ContainsFunc(slices.Collect(maps.Values(c.DNS.Allow)), func(a config.Allow) bool { return a.NamespaceLabels != "" }) {
		return true
	}
	for _, allow := range c.Kubernetes.Allow {
		if allow.NamespaceLabels != "" {
			return true
		}
	}
	return false
}

// run keeps a client running. What keeps it from starting (a kubeconfig that is
// not there yet) is tried again, since the file may still come.
func (c *cluster) run(ctx context.Context, options kube.Options) error {
	for {
		client, err := kube.New(options)
		c.mu.Lock()
		c.client, c.err = client, err
		if err == nil {
			c.forgetOtherLocked(sourceOf(c.block, client.Server()))
		}
		c.mu.Unlock()
		c.changed()
		if err == nil {
			return c.follow(ctx, client)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryInterval):
		}
	}
}

func (c *cluster) follow(ctx context.Context, client *kube.Client) error {
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	for {
		select {
		case <-client.Changed():
			c.changed()
		case err := <-done:
			return err
		}
	}
}

// remember goes on from what a process before has kept, if it is of the cluster
// of this block. While the kubeconfig cannot be read, the same file is taken to
// be the same cluster.
func (c *cluster) remember(s laststate.State, dir string, block *config.Kubernetes) bool {
	server, err := kube.Server(block.Kubeconfig)
	if source := sourceOf(block, server); err == nil && s.Source != source {
		c.log.Info("the last state is of another cluster", "dir", dir, "of", s.Source, "now", source)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	snapshot := s.Cluster
	c.block, c.last, c.origin = block, &snapshot, origin{source: s.Source, file: dir, at: s.SavedAt}
	c.guard = guard{accepted: &snapshot}
	c.log.Info("going on from the last state, until the Kubernetes API is read", "dir", dir, "saved_at", s.SavedAt,
		"services", len(snapshot.Services), "nodes", len(snapshot.Nodes))
	return true
}

// expect has what is missing of a snapshot held, as if this process had had it.
func (c *cluster) expect(snapshot *edge.Cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guard = guard{accepted: snapshot}
}

// forgetOtherLocked drops what was kept of a cluster that turns out to be another.
func (c *cluster) forgetOtherLocked(source string) {
	if c.origin.file != "" && c.origin.source != source {
		c.log.Info("the last state is of another cluster", "dir", c.origin.file, "of", c.origin.source, "now", source)
		c.last, c.origin, c.guard = nil, origin{}, guard{}
	}
}

// reading is one list of one connection.
type reading struct {
	client *kube.Client
	lists  int
}

// look returns the cluster as it is to be taken. A snapshot of a connection
// before is stale once the present one cannot be made, or gets no answer.
func (c *cluster) look() view {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	away := c.err != nil
	v := view{client: c.client}
	if c.client != nil {
		var s edge.Cluster
		if s, v.answered = c.client.Snapshot(); v.answered {
			c.takeLocked(now, &s)
			v.synced = c.guard.loss == nil
		}
		away = s.Stale
	}
	if !v.answered && away && c.last != nil && !c.last.Stale {
		stale := *c.last
		stale.Stale = true
		c.last = &stale
	}
	switch {
	case c.last == nil || !c.last.Stale:
		c.origin.staleSince = time.Time{}
	case c.origin.staleSince.IsZero():
		c.origin.staleSince = now
	}
	v.snapshot, v.origin = c.last, c.origin
	return v
}

// takeLocked takes what the present connection has read, or does not believe it.
func (c *cluster) takeLocked(now time.Time, s *edge.Cluster) {
	before := c.guard.loss
	c.last = c.guard.take(now, s, reading{c.client, s.Lists}, c.block.HoldLosses)
	switch held := c.guard.loss; {
	case before == nil && held != nil:
		c.log.Warn("loss not believed", "missing", held.What, "until", held.Until)
	case before != nil && held == nil:
		c.log.Info("the cluster is believed again")
	}
	if c.guard.loss == nil && !s.Stale {
		c.origin = origin{source: sourceOf(c.block, c.client.Server()), at: now}
	}
}

// agree has a loss believed that is not.
func (c *cluster) agree() {
	c.mu.Lock()
	agreed := c.guard.agree()
	c.mu.Unlock()
	if agreed {
		c.changed()
	}
}

// heldUntil is when a loss will be believed; zero: there is none.
func (c *cluster) heldUntil() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guard.loss == nil {
		return time.Time{}
	}
	return c.guard.loss.Until
}

// problems are those of the connection, and then a loss that is not believed.
func (c *cluster) problems() []edge.Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	problems := slices.Clone(c.unreachableLocked())
	if c.guard.loss != nil {
		problems = append(problems, c.guard.loss.problem(c.block.Pos))
	}
	return problems
}

func (c *cluster) unreachableLocked() []edge.Problem {
	switch {
	case c.block == nil:
		return nil
	case c.err != nil:
		return []edge.Problem{{Pos: c.block.Pos, Path: "kubernetes", What: c.err.Error(), Remedy: fmt.Sprintf("it is tried again every %s", retryInterval)}}
	case c.client != nil:
		return c.client.Problems()
	default:
		return nil
	}
}

// status says how things stand with a cluster that was decided from.
func (c *cluster) status(v view) *status.Cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &status.Cluster{Synced: v.answered, From: v.origin.file, StaleSince: v.origin.staleSince}
	if v.origin.file != "" {
		s.SavedAt = v.origin.at
	}
	if v.snapshot != nil {
		s.Services, s.Nodes = len(v.snapshot.Services), len(v.snapshot.Nodes)
	}
	if problems := c.unreachableLocked(); len(problems) > 0 {
		s.Error = problems[0].What
	}
	if c.client != nil {
		for kind, n := range c.client.Requests() {
			s.Requests = append(s.Requests, status.Requests{Verb: kind.Verb, Resource: kind.Resource, Code: kind.Code, Count: n})
		}
		slices.SortFunc(s.Requests, func(x, y status.Requests) int {
			return cmp.Or(cmp.Compare(x.Resource, y.Resource), cmp.Compare(x.Verb, y.Verb), cmp.Compare(x.Code, y.Code))
		})
	}
	if l := c.guard.loss; l != nil {
		s.Held = &status.Loss{Missing: l.What, Since: l.Since, Until: l.Until}
	}
	return s
}
