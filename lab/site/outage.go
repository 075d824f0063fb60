package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Pause freezes a component where it is (SIGSTOP), until Resume. Its connections stay, new ones are accepted by the
// kernel, and nobody answers: what a machine looks like that has run out of memory, or a disk that hangs.
func (s *Site) Pause(ctx context.Context, name string) error {
	return s.change(func() error {
		c, err := s.componentLocked(name)
		if err != nil {
			return err
		}
		if !c.alive() {
			return fmt.Errorf("pause %s: %w", name, errDead)
		}
		return c.pause(ctx)
	})
}

// Resume lets a paused component go on. One that is not paused is left alone.
func (s *Site) Resume(_ context.Context, name string) error {
	return s.change(func() error {
		c, err := s.componentLocked(name)
		if err != nil {
			return err
		}
		if !c.alive() {
			return fmt.Errorf("resume %s: %w", name, errDead)
		}
		return c.signal(syscall.SIGCONT)
	})
}

func (c *component) signal(sig syscall.Signal) error {
	if err := syscall.Kill(c.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s: signal %d: %w", c.Name, sig, err)
	}
	return nil
}

// pause returns when all threads stand still.
func (c *component) pause(ctx context.Context) error {
	if err := c.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return poll(ctx, 5*time.Second, time.Millisecond, func() error {
		if c.alive() && !c.paused() {
			return fmt.Errorf("%s (pid %d) still runs", c.Name, c.PID)
		}
		return nil
	})
}

func (c *component) paused() bool {
	fields := statFields(c.PID)
	return len(fields) > 0 && fields[0] == "T"
}

// Cut lets two hosts of one network no longer reach each other, while each still reaches all others there: no packet
// passes, and neither notices but by the silence. One pair per network can be cut at a time. LinkDown is for a host that
// is cut off from everybody.
func (s *Site) Cut(ctx context.Context, a, b string) error {
	return s.change(func() error {
		network, ports, err := s.between(a, b)
		if err != nil {
			return err
		}
		if other, ok := s.record.Cuts[network]; ok && !slices.Equal(other, ports) {
			return fmt.Errorf("cut %s from %s: in the network %s, %s are cut from each other; mend them first",
				a, b, network, strings.Join(other, " and "))
		}
		// Two isolated ports of a bridge do not talk with each other, but with every other port.
		if err := s.isolate(ctx, network, ports, "on"); err != nil {
			return err
		}
		if s.record.Cuts == nil {
			s.record.Cuts = map[string][]string{}
		}
		s.record.Cuts[network] = ports
		return nil
	})
}

// Mend undoes Cut.
func (s *Site) Mend(ctx context.Context, a, b string) error {
	return s.change(func() error {
		network, ports, err := s.between(a, b)
		if err != nil {
			return err
		}
		if !slices.Equal(s.record.Cuts[network], ports) {
			return fmt.Errorf("mend %s and %s: they are not cut from each other", a, b)
		}
		delete(s.record.Cuts, network)
		return s.isolate(ctx, network, ports, "off")
	})
}

func (s *Site) isolate(ctx context.Context, network string, ports []string, value string) error {
	var lines strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&lines, "link set %s type bridge_slave isolated %s\n", p, value)
	}
	return tool(ctx, lines.String(), "ip", "-n", nsName(s.name, "sw"+network), "-batch", "-")
}

// between finds the network that two hosts share, and the ports of its switch where their cables end, in order.
func (s *Site) between(a, b string) (network string, ports []string, err error) {
	for _, h := range []string{a, b} {
		if !s.isHost(h) {
			return "", nil, s.noSuchHost(h)
		}
	}
	for _, x := range s.cables() {
		for _, y := range s.cables() {
			if x.Host == a && y.Host == b && a != b && x.Network == y.Network {
				ports = []string{portName(x.Host, x.Interface), portName(y.Host, y.Interface)}
				slices.Sort(ports)
				return x.Network, ports, nil
			}
		}
	}
	return "", nil, fmt.Errorf("%s and %s share no network", a, b)
}

// Compact makes etcd forget all history: whoever asks for an older resourceVersion, or to watch from there, is answered
// 410 Gone. The API server itself remembers some minutes of it until it is started anew, so for a client that is to see
// that: Cut it off, change something, Compact, Stop and Start kube-apiserver, Mend.
func (s *Site) Compact(ctx context.Context) error {
	var status struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := s.etcd(ctx, "maintenance/status", struct{}{}, &status); err != nil {
		return err
	}
	return s.etcd(ctx, "kv/compaction", map[string]any{"revision": status.Header.Revision, "physical": true}, nil)
}

// AccessKeys are the keys in etcd of what lets gatehouse talk to the API server at all: its account and the rights in
// deploy/rbac.yaml.
var AccessKeys = []string{
	"/registry/namespaces/gatehouse",
	"/registry/serviceaccounts/gatehouse/",
	"/registry/clusterroles/gatehouse",
	"/registry/clusterrolebindings/gatehouse",
	"/registry/validatingadmissionpolicies/gatehouse",
	"/registry/validatingadmissionpolicybindings/gatehouse",
}

// EmptyStore starts the API server anew over an empty etcd: no Service, no Node, and resourceVersions from 1. What
// had the given prefixes of keys is carried over; see AccessKeys. The cluster's own programs are paused meanwhile: pods
// and what kube-proxy has written go on, as if only our client had met the wrong API server. RestoreStore ends it.
func (s *Site) EmptyStore(ctx context.Context, carry ...string) error {
	return s.change(func() error {
		if _, err := os.Stat(s.path("etcd.kept")); err == nil {
			return errors.New("the store is empty already: RestoreStore first")
		}
		var carried []keyValue
		for _, prefix := range carry {
			kvs, err := s.readKeys(ctx, prefix)
			if err != nil {
				return err
			}
			carried = append(carried, kvs...)
		}
		for _, c := range s.clusterPrograms() {
			if !c.alive() {
				continue
			}
			if err := c.pause(ctx); err != nil {
				return err
			}
		}
		return s.withStoreStopped(ctx,
			func() error { return os.Rename(s.path("etcd"), s.path("etcd.kept")) },
			func() error { return s.putKeys(ctx, carried) })
	})
}

// RestoreStore puts back what EmptyStore took away, and returns when the cluster goes on: its nodes are Ready.
func (s *Site) RestoreStore(ctx context.Context) error {
	return s.change(func() error {
		if _, err := os.Stat(s.path("etcd.kept")); err != nil {
			return fmt.Errorf("no store has been put aside: %w", err)
		}
		err := s.withStoreStopped(ctx, func() error {
			if err := os.RemoveAll(s.path("etcd")); err != nil {
				return err
			}
			return os.Rename(s.path("etcd.kept"), s.path("etcd"))
		}, nil)
		if err != nil {
			return err
		}
		for _, c := range s.clusterPrograms() {
			if !c.alive() {
				continue
			}
			if err := c.signal(syscall.SIGCONT); err != nil {
				return err
			}
		}
		return s.awaitNodes(ctx)
	})
}

// clusterPrograms are those that act on what the API server says.
func (s *Site) clusterPrograms() []*component {
	var cc []*component
	for _, c := range s.record.Components {
		if strings.HasPrefix(c.Name, "agent-") || strings.HasPrefix(c.Name, "kube-") && c.Name != "kube-apiserver" {
			cc = append(cc, c)
		}
	}
	return cc
}

// withStoreStopped runs then between stopping and starting etcd, and filled before the API server reads it.
func (s *Site) withStoreStopped(ctx context.Context, then, filled func() error) error {
	front, err := s.componentLocked("kube-apiserver")
	if err != nil {
		return err
	}
	storage, err := s.componentLocked("etcd")
	if err != nil {
		return err
	}
	for _, c := range []*component{front, storage} {
		if err := s.stopLocked(ctx, c); err != nil {
			return err
		}
	}
	if err := then(); err != nil {
		return err
	}
	if err := s.runLocked(ctx, storage); err != nil {
		return err
	}
	if filled != nil {
		if err := filled(); err != nil {
			return err
		}
	}
	return s.runLocked(ctx, front)
}
