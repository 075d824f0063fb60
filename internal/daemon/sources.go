package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/kube"
	"e13.dev/gatehouse/internal/resolve"
)

// userAgent is how the API server's audit log knows us; the field manager of
// status writes has the same name.
const userAgent = "gatehouse"

// cluster is the connection to the Kubernetes API that the running
// configuration asks for. A connection that takes the place of another serves
// the old one's last snapshot until it has read its own.
type cluster struct {
	log     *slog.Logger
	changed func()
	task    slot

	mu     sync.Mutex
	client *kube.Client
	err    error // why there is no client
	last   *edge.Cluster
}

// use makes the cluster the one of a configuration block, or none.
func (c *cluster) use(ctx context.Context, block *config.Kubernetes) {
	if block == nil {
		c.task.stop()
		c.mu.Lock()
		c.client, c.err, c.last = nil, nil, nil
		c.mu.Unlock()
		return
	}
	key := "kubeconfig:" + block.Kubeconfig
	if !c.task.holds(key) {
		c.mu.Lock()
		c.client = nil // it ends now; its last snapshot is kept
		c.mu.Unlock()
	}
	c.task.set(ctx, key, func(ctx context.Context) {
		if err := c.run(ctx, block.Kubeconfig); err != nil && !errors.Is(err, context.Canceled) {
			c.log.Error("following the cluster ended", "err", err)
		}
	})
}

// run keeps a client running. What keeps it from starting (a kubeconfig that is
// not there yet) is tried again, since the file may still come.
func (c *cluster) run(ctx context.Context, kubeconfig string) error {
	for {
		client, err := kube.New(kube.Options{Kubeconfig: kubeconfig, UserAgent: userAgent, Logger: c.log})
		c.mu.Lock()
		c.client, c.err = client, err
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

// look returns the cluster's snapshot, nil before the first one, and whether it
// is the present connection's own. One of a connection before is stale once the
// present one cannot be made, or gets no answer.
func (c *cluster) look() (snapshot *edge.Cluster, client *kube.Client, synced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	away := c.err != nil
	if c.client != nil {
		s, ok := c.client.Snapshot()
		if ok {
			c.last = &s
			return c.last, c.client, true
		}
		away = s.Stale
	}
	if away && c.last != nil && !c.last.Stale {
		stale := *c.last
		stale.Stale = true
		c.last = &stale
	}
	return c.last, c.client, false
}

func (c *cluster) problems(pos edge.Pos) []edge.Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return []edge.Problem{{Pos: pos, Path: "kubernetes", What: c.err.Error(), Remedy: fmt.Sprintf("it is tried again every %s", retryInterval)}}
	case c.client != nil:
		return c.client.Problems()
	default:
		return nil
	}
}

// hostNames are the names in a configuration that have to be resolved.
func hostNames(c *config.Config) []string {
	var names []string
	add := func(h string) {
		if _, err := netip.ParseAddr(h); h != "" && err != nil && !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	for _, f := range c.Frontends {
		if f.Listen != nil {
			add(f.Listen.Host)
		}
		for _, b := range f.Backends {
			add(b.Address.Host)
		}
	}
	slices.Sort(names)
	return names
}

// Look takes one snapshot of everything a decision needs, without following
// it: what `plan` decides from. Nothing is probed, so every backend is pending.
func Look(ctx context.Context, c *config.Config, log *slog.Logger) (desired.Inputs, error) {
	in := desired.Inputs{Config: c}
	interfaces, err := host.New(log).Snapshot()
	if err != nil {
		return in, err
	}
	in.Interfaces = interfaces
	ipv4, ipv6 := host.Forwarding()
	in.NoForwarding4, in.NoForwarding6 = !ipv4, !ipv6
	if names := hostNames(c); len(names) > 0 {
		n := resolve.New(log)
		n.Follow(names)
		n.Resolve(ctx)
		in.Hosts = n.Snapshot()
	}
	if c.Kubernetes != nil {
		client, err := kube.New(kube.Options{Kubeconfig: c.Kubernetes.Kubeconfig, UserAgent: userAgent, Logger: log})
		if err != nil {
			return in, err
		}
		snapshot, err := client.List(ctx)
		if err != nil {
			return in, err
		}
		in.Cluster = &snapshot
	}
	return in, nil
}
