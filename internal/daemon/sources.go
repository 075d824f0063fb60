package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/kube"
	"e13.dev/gatehouse/internal/resolve"
)

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
		client, err := kube.New(kube.Options{Kubeconfig: c.Kubernetes.Kubeconfig, UserAgent: userAgent, Logger: log, Namespaces: asksForNamespaces(c), Routes: c.DNS != nil})
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
