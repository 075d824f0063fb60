package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/host"
	"e13.dev/gatehouse/internal/l4proxyfile"
)

// Announcer keeps an l4proxy file written from what a Daemon would open for
// Services. It serves nothing, probes nothing and writes nothing to the cluster:
// l4proxy checks its backends itself, and may run on another machine, so every
// interface of the configuration is taken to exist.
type Announcer struct {
	opts    Options
	output  string
	log     *slog.Logger
	wake    chan struct{}
	files   files
	cluster cluster
	told    problemLog
}

// NewAnnouncer prepares an announcer that writes to the file output.
func NewAnnouncer(o Options, output string) *Announcer {
	a := &Announcer{opts: o, output: output, log: o.Log, wake: make(chan struct{}, 1)}
	a.files = files{log: o.Log, names: o.Files}
	a.cluster = cluster{log: o.Log, changed: func() {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}}
	a.told = problemLog{log: o.Log}
	return a
}

// Run writes until ctx ends. The file stays as it is then.
func (a *Announcer) Run(ctx context.Context) error {
	watcher := filewatch.New(a.opts.Files, settle, a.log)
	if !a.files.take(watcher.Read()) {
		return errBadStart
	}
	g, ctx := errgroup.WithContext(ctx)
	task(g, "files", func() error { return watcher.Run(ctx) })
	task(g, "signals", func() error {
		return onHangup(ctx, func() {
			a.cluster.agree()
			watcher.Reload()
		})
	})
	task(g, "loop", func() error { return a.loop(ctx, watcher) })
	err := g.Wait()
	a.cluster.task.stop()
	return err
}

func (a *Announcer) loop(ctx context.Context, watcher *filewatch.Watcher) error {
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		again := retry.C
		if done := a.decide(ctx); done {
			again = nil
		}
		select {
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		case contents := <-watcher.Changed():
			a.files.take(contents)
		case <-a.wake:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pace):
		}
	}
}

// decide writes the file anew if it is not what it should be. It reports whether
// nothing is left to be tried again.
func (a *Announcer) decide(ctx context.Context) (done bool) {
	c := a.files.current()
	a.cluster.use(ctx, c)
	snapshot := a.cluster.look().snapshot
	problems := a.cluster.problems()
	if snapshot == nil && c.Kubernetes != nil {
		a.told.tell(problems) // an old file is better than one that closes everything
		return true
	}
	if snapshot != nil && snapshot.Stale {
		// Weights are the API's: nobody asks kube-proxy here.
		last := *snapshot
		last.Stale = false
		snapshot = &last
	}
	interfaces, err := a.interfaces(c)
	if err != nil {
		a.log.Error("interfaces not read", "err", err)
		return false
	}
	// l4proxy keeps no addresses: there Services are where they would be without
	// pools.
	poolless := *c
	poolless.Pools = nil
	c = &poolless
	// With the static frontends and the admin address, which keep their ports.
	state, decided := desired.Build(desired.Inputs{Config: c, Interfaces: interfaces, Cluster: snapshot})
	frontends, left := announceable(state.Frontends)
	decided = slices.DeleteFunc(decided, func(p edge.Problem) bool { return !strings.HasPrefix(p.Object, "service/") })
	problems = append(append(problems, decided...), left...)
	data := l4proxyfile.Render(frontends)
	changed, err := l4proxyfile.WriteFile(a.output, data)
	switch {
	case err != nil:
		problems = append(problems, edge.Problem{Pos: edge.Pos{File: a.output}, What: "cannot be written: " + err.Error()})
	case changed:
		a.log.Info("file written", "file", a.output, "frontends", len(frontends))
	}
	a.told.tell(problems)
	return err == nil
}

// announceable leaves out what an l4proxy file cannot say. A frontend that only
// some clients may use stays out: there it would be open to all. So does one
// that shares its port by name, or whose backends expect a PROXY header.
func announceable(all []edge.Frontend) (frontends []edge.Frontend, left []edge.Problem) {
	for _, f := range all {
		if !strings.HasPrefix(f.Why, "service/") {
			continue // of a file: who keeps l4proxy has these in its own file
		}
		object := "service/" + f.Name
		if f.Protocol != edge.TCP {
			left = append(left, edge.Problem{Object: object, What: "left out: l4proxy speaks TCP only", Remedy: "use gatehouse run for it"})
			continue
		}
		if f.SourceRanges != nil {
			left = append(left, edge.Problem{Object: object, What: "left out: l4proxy knows no source ranges, and would open it to everybody", Remedy: "use gatehouse run for it"})
			continue
		}
		if f.Hostnames != nil {
			left = append(left, edge.Problem{Object: object, What: "left out: l4proxy does not tell TLS server names apart", Remedy: "use gatehouse run for it"})
			continue
		}
		if v := f.SendProxyProtocol; v == edge.ProxyProtocolV1 || v == edge.ProxyProtocolV2 || len(f.AcceptProxyProtocol) > 0 {
			left = append(left, edge.Problem{Object: object, What: "left out: l4proxy does not speak the PROXY protocol", Remedy: "use gatehouse run for it"})
			continue
		}
		var v4 []edge.Backend
		for _, b := range f.Backends {
			if b.Addr.Addr().Is4() {
				v4 = append(v4, b)
			}
		}
		if len(v4) < len(f.Backends) {
			left = append(left, edge.Problem{Object: object, What: fmt.Sprintf("%d IPv6 backends left out: l4proxy speaks IPv4 only", len(f.Backends)-len(v4)), Remedy: "use gatehouse run for it"})
		}
		if slices.ContainsFunc(v4, func(b edge.Backend) bool { return b.Weight != v4[0].Weight }) {
			left = append(left, edge.Problem{Object: object, What: "its shares are not kept: l4proxy knows no weights, and gives every backend the same", Remedy: "use gatehouse run for it"})
		}
		if len(v4) == 0 {
			continue // closed is what a frontend without backends should be
		}
		f.Backends = v4
		frontends = append(frontends, f)
	}
	return frontends, left
}

// interfaces are this machine's, so that its own addresses are known, and those
// of the configuration that it does not have.
func (a *Announcer) interfaces(c *config.Config) ([]edge.Interface, error) {
	all, err := host.New(a.log).Snapshot()
	if err != nil {
		return nil, err
	}
	for _, z := range c.Zones {
		for _, name := range z.Interfaces {
			if !slices.ContainsFunc(all, func(i edge.Interface) bool { return i.Name == name }) {
				all = append(all, edge.Interface{Name: name, Up: true})
			}
		}
	}
	return all, nil
}

// errBadStart is returned when there is no configuration to begin with. What is
// wrong with the files was logged.
var errBadStart = errors.New("the configuration is bad, and there is no earlier one to go on with")

func onHangup(ctx context.Context, reload func()) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hangup:
			reload()
		}
	}
}
