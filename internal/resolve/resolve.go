// Package resolve turns the host names of a configuration into addresses, again
// and again, since names move. What a name last resolved to is kept while it
// does not resolve.
package resolve

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	interval = 30 * time.Second
	// A name that has no address yet is asked for more often: the box may have
	// booted before its DNS server.
	retry   = 2 * time.Second
	timeout = 5 * time.Second
)

// Names is the set of host names to follow.
type Names struct {
	log     *slog.Logger
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	changed chan struct{}
	wake    chan struct{}

	mu    sync.Mutex
	want  []string
	addrs map[string]netip.Addr
}

// New follows no names yet.
func New(log *slog.Logger) *Names {
	return &Names{
		log: log, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), addrs: map[string]netip.Addr{},
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
	}
}

// Follow sets which names are resolved from now on.
func (n *Names) Follow(names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(n.want, names) {
		return
	}
	n.want = slices.Clone(names)
	maps.DeleteFunc(n.addrs, func(name string, _ netip.Addr) bool { return !slices.Contains(names, name) })
	notify(n.wake)
}

// Snapshot returns the address of each name that has one.
func (n *Names) Snapshot() map[string]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.addrs)
}

// Changed receives after an address changed.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Run resolves until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	for {
		wait := n.Resolve(ctx)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
		case <-time.After(wait):
		}
	}
}

// Resolve asks for every name once, and returns how long to wait until the next time.
func (n *Names) Resolve(ctx context.Context) time.Duration {
	n.mu.Lock()
	want := n.want
	n.mu.Unlock()
	wait := interval
	for _, name := range want {
		addr, err := n.resolveOne(ctx, name)
		if err != nil {
			n.log.Debug("name not resolved", "name", name, "err", err)
			wait = retry
			continue
		}
		n.mu.Lock()
		if old := n.addrs[name]; old != addr && slices.Contains(n.want, name) {
			n.addrs[name] = addr
			n.log.Info("name resolved", "name", name, "addr", addr, "before", old)
			notify(n.changed)
		}
		n.mu.Unlock()
	}
	return wait
}

// resolveOne picks one address: the lowest IPv4 one if there is any, so that a
// name with several does not change at every look.
func (n *Names) resolveOne(ctx context.Context, name string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs, err := n.lookup(ctx, name)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(addrs) == 0 {
		return netip.Addr{}, &net.DNSError{Err: "no address", Name: name}
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return slices.MinFunc(addrs, netip.Addr.Compare), nil // IPv4 sorts before IPv6
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
