package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/handover"
	"e13.dev/gatehouse/internal/relay"
)

const (
	// The new program has to have read files and cluster, and probed every
	// backend, within this time.
	prepareTime = 60 * time.Second
	// The cluster's part of it.
	clusterTime = 30 * time.Second
	// And the probes': a backend that does not answer is known to be down after
	// five seconds.
	probeTime = 6 * time.Second
	// From then on no decision is made and UDP waits, until it serves.
	serveTime = 15 * time.Second
)

// Kinds of sockets that are handed over. What belongs to doors and sessions is
// the relay's.
const (
	doorSocket    = "door"
	sessionSocket = "session"
	adminSocket   = "admin"
)

// errHandedOver ends the daemon's tasks: another process serves.
var errHandedOver = errors.New("handed over")

// errNotTwice is why an upgrade is refused.
var errNotTwice = errors.New("one is under way")

// onSignals asks for a look at the files at SIGHUP, and starts an upgrade at
// SIGUSR2.
func (d *Daemon) onSignals(ctx context.Context, signals <-chan os.Signal, reload func()) error {
	var upgraded chan error // while one is under way
	for {
		select {
		case <-ctx.Done():
			if upgraded != nil {
				if err := <-upgraded; errors.Is(err, errHandedOver) {
					return err
				}
			}
			return ctx.Err()
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				d.reloading.Store(true)
				d.manager.tell("RELOADING=1")
				reload()
			case upgraded != nil:
				d.log.Warn("upgrade refused", "err", errNotTwice)
			default:
				upgraded = make(chan error, 1)
				go func() { upgraded <- d.upgrade(ctx) }()
			}
		case err := <-upgraded:
			upgraded = nil
			if errors.Is(err, errHandedOver) {
				return err
			}
			d.log.Error("upgrade failed, this process serves on", "program", d.opts.Program.Path, "err", err)
		}
	}
}

// upgrade starts the program that is now where this one was, and gives it the
// sockets. Until that one serves nothing changes here; then the error is
// errHandedOver, and nothing is decided or written any more.
func (d *Daemon) upgrade(ctx context.Context) error {
	if d.opts.Program.Path == "" {
		return errors.New("it is not known which program to start")
	}
	d.log.Info("upgrade begins", "program", d.opts.Program.Path)
	next, err := d.opts.Program.Start(ctx)
	if err != nil {
		return err
	}
	if err := d.give(ctx, next); err != nil {
		next.Abort()
		return err
	}
	d.log.Info("upgrade done, this process drains", "pid", next.PID(), "version", next.Version)
	d.closeDoors()
	d.manager.tell(fmt.Sprintf("MAINPID=%d", next.PID()))
	d.cluster.task.stop()
	next.Farewell() // no port is in its way now, and nobody else writes
	d.admin.stop()
	return errHandedOver
}

func (d *Daemon) give(ctx context.Context, next *handover.Next) error {
	prepared, cancel := context.WithTimeoutCause(ctx, prepareTime, fmt.Errorf("it was not ready to serve within %s", prepareTime))
	defer cancel()
	if err := next.AwaitReady(prepared); err != nil {
		return err
	}
	// What is handed over must not change under the new program.
	d.deciding.Lock()
	defer d.deciding.Unlock()
	h, err := d.relay.Handover()
	if err != nil {
		return err
	}
	sockets, err := pack(h, d.page)
	defer handover.Close(sockets)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, serveTime, fmt.Errorf("it had the sockets and did not serve within %s", serveTime))
		defer cancel()
		d.kernel.retire(true) // or it would mend what the new program changes
		err = next.Give(ctx, sockets)
	}
	if err != nil {
		next.Abort() // first: nobody else may read from what is taken back
		d.kernel.retire(false)
		d.relay.Resume()
		return err
	}
	d.handedOver = true
	return nil
}

// page is the listener of the status page.
type page struct {
	Listen   string           `json:"listen"` // as configured
	listener *net.TCPListener // nil: none
}

// pack is the one way from what the parts hand over to sockets; unpack is the
// way back. What pack returns has to be closed, also with an error.
func pack(h relay.Handover, p page) (sockets []handover.Socket, err error) {
	var errs []error
	add := func(kind string, file *os.File, about any) {
		data, err := json.Marshal(about)
		errs = append(errs, err)
		sockets = append(sockets, handover.Socket{Kind: kind, About: data, File: file})
	}
	for _, door := range h.Doors {
		add(doorSocket, door.File, door)
	}
	for _, session := range h.Sessions {
		add(sessionSocket, session.File, session)
	}
	if p.listener != nil {
		if file, err := p.listener.File(); err != nil {
			errs = append(errs, err)
		} else {
			add(adminSocket, file, p)
		}
	}
	return sockets, errors.Join(errs...)
}

// unpack takes over all files of the sockets.
func unpack(sockets []handover.Socket) (h relay.Handover, p page, err error) {
	var errs []error
	for _, s := range sockets {
		switch s.Kind {
		case doorSocket:
			door := relay.HandedDoor{File: s.File}
			errs = append(errs, json.Unmarshal(s.About, &door))
			h.Doors = append(h.Doors, door)
		case sessionSocket:
			session := relay.HandedSession{File: s.File}
			errs = append(errs, json.Unmarshal(s.About, &session))
			h.Sessions = append(h.Sessions, session)
		case adminSocket:
			errs = append(errs, json.Unmarshal(s.About, &p))
			listener, err := net.FileListener(s.File)
			_ = s.File.Close()
			if l, ok := listener.(*net.TCPListener); ok {
				p.listener = l
			}
			errs = append(errs, err)
		default:
			_ = s.File.Close() // of a later version; it opens its own
		}
	}
	if err := errors.Join(errs...); err != nil {
		h.Close()
		p.close()
		return relay.Handover{}, page{}, fmt.Errorf("sockets not understood: %w", err)
	}
	return h, p, nil
}

func (p page) close() {
	if p.listener != nil {
		_ = p.listener.Close()
	}
}

// takeOver does the first decision as the successor of a program that serves:
// only once this one knows all that one knows, and with its sockets.
func (d *Daemon) takeOver(ctx context.Context) error {
	if err := d.awaitCluster(ctx); err != nil {
		return err
	}
	if err := d.awaitProbes(ctx); err != nil {
		return err
	}
	sockets, err := d.opts.Previous.Take(ctx)
	if err != nil {
		return err
	}
	h, admin, err := unpack(sockets)
	if err != nil {
		return err
	}
	d.log.Info("taking over", "doors", len(h.Doors), "sessions", len(h.Sessions))
	d.mu.Lock()
	d.relay = d.newRelay(h)
	d.mu.Unlock()
	d.inherited = admin
	d.silent = true // the one before still writes
	d.decide(ctx)
	d.inherited.close()
	d.silent, d.inherited = false, page{}
	return d.opts.Previous.Serving(ctx)
}

// awaitCluster waits until the cluster has been read: a decision without its
// Services would close them.
func (d *Daemon) awaitCluster(ctx context.Context) error {
	block := d.files.current().Kubernetes
	if block == nil {
		return nil
	}
	d.cluster.use(ctx, block)
	late := time.NewTimer(clusterTime)
	defer late.Stop()
	for {
		if _, _, synced := d.cluster.look(); synced {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wake:
		case <-late.C:
			err := fmt.Errorf("the cluster was not read within %s", clusterTime)
			if problems := d.cluster.problems(block.Pos); len(problems) > 0 {
				err = fmt.Errorf("%w: %s", err, problems[0].What)
			}
			return err
		}
	}
}

// awaitProbes waits until it is known which backends are up, so that the first
// connection does not have to.
func (d *Daemon) awaitProbes(ctx context.Context) error {
	c := d.files.current()
	d.names.Follow(hostNames(c))
	snapshot, _, _ := d.cluster.look()
	in, err := d.inputs(c, snapshot)
	if err != nil {
		return err
	}
	state, _ := desired.Build(in)
	d.prober.Apply(state.Probes)
	late := time.NewTimer(probeTime)
	defer late.Stop()
	for {
		health := d.prober.Snapshot()
		if !slices.ContainsFunc(state.Probes, func(p edge.Probe) bool { return health[p].State == edge.Pending }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.prober.Changed():
		case <-late.C:
			return nil
		}
	}
}

// stop closes the doors at once, and lets what is open end.
func (d *Daemon) stop(ctx context.Context, signals <-chan os.Signal) {
	d.manager.tell("STOPPING=1", "STATUS=stopping: connections drain")
	d.mu.Lock()
	d.state.Frontends, d.state.Exposures, d.decided = nil, nil, nil
	d.ready, d.waiting = false, []string{"its end: it is stopping"}
	d.mu.Unlock()
	d.cluster.task.stop()
	d.closeDoors()
	defer d.cut(nil)
	d.drain(ctx, signals)
	d.transparent.leave()
	d.admin.stop()
	d.log.Info("stopped")
}

// closeDoors returns when no door accepts any more.
func (d *Daemon) closeDoors() {
	closing, cut := context.WithCancelCause(context.Background())
	d.cut, d.closed = cut, make(chan error, 1)
	go func() { d.closed <- d.relay.Close(closing) }()
	open := func(s relay.DoorStatus) bool { return s.Addr.IsValid() }
	for slices.ContainsFunc(d.relay.Doors(), open) {
		time.Sleep(time.Millisecond)
	}
}

// drain waits, after closeDoors, until the connections have ended. Once ctx has,
// they have the stop timeout left.
func (d *Daemon) drain(ctx context.Context, signals <-chan os.Signal) {
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	stopped, late, cut := ctx.Done(), (<-chan time.Time)(nil), d.opts.Cut
	for {
		select {
		case err := <-d.closed:
			if err != nil {
				d.log.Warn("connections were cut", "err", err)
			}
			return
		case <-minute.C:
			d.log.Info("draining", "connections", d.connections())
		case <-stopped:
			stopped = nil
			timeout := d.files.current().StopTimeout
			timer := time.NewTimer(timeout)
			defer timer.Stop()
			late = timer.C
			if n := d.connections(); n > 0 {
				d.log.Info("stopping, connections drain", "connections", n, "timeout", timeout.String())
			}
		case <-late:
			d.cut(fmt.Errorf("the stop timeout of %s is over", d.files.current().StopTimeout))
		case <-cut:
			cut = nil
			d.cut(errors.New("told to stop a second time"))
		case s := <-signals:
			if s == syscall.SIGUSR2 {
				d.log.Warn("upgrade refused", "err", errNotServing)
			}
		}
	}
}

var errNotServing = errors.New("this process does not serve any more, it drains")

func (d *Daemon) connections() uint64 {
	n := uint64(0)
	for _, s := range d.relay.Stats() {
		n += s.Active
	}
	return n
}
