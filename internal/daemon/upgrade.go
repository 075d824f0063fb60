package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/handover"
	"e13.dev/gatehouse/internal/laststate"
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
	adminSocket   = "admin"    // of admin.listen
	adminPlace    = "admin at" // of the other places; versions before know only the one
	stateFile     = "state"    // what this process has decided from
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
				d.cluster.agree()
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
	if d.files.status().Trial != nil {
		// The next process reads the files, and has nothing else.
		d.log.Warn("an upgrade ends the trial", "files", d.opts.Files)
	}
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
	d.pages.stop()
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
	sockets, err := pack(h, d.pages, d.kept)
	defer handover.Close(sockets)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, serveTime, fmt.Errorf("it had the sockets and did not serve within %s", serveTime))
		defer cancel()
		d.retire(true) // or it would mend what the new program changes
		err = next.Give(ctx, sockets)
	}
	if err != nil {
		next.Abort() // first: nobody else may read from what is taken back
		d.retire(false)
		d.relay.Resume()
		return err
	}
	d.handedOver = true
	return nil
}

// retire leaves to another process what outlives this one, or takes it back.
func (d *Daemon) retire(retired bool) {
	d.kernel.retire(retired)
	d.addresses.retire(retired)
	d.journal.retire(retired)
	d.router.retire(retired)
}

// pack is the one way from what the parts hand over to sockets; unpack is the
// way back. What pack returns has to be closed, also with an error.
func pack(h relay.Handover, open pages, kept *laststate.State) (sockets []handover.Socket, err error) {
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
	for _, p := range open {
		kind := adminPlace
		if p.Listen != "" {
			kind = adminSocket
		}
		if file, err := p.listener.(interface{ File() (*os.File, error) }).File(); err != nil {
			errs = append(errs, err)
		} else {
			add(kind, file, p.place)
		}
	}
	if kept != nil {
		if file, err := toFile(*kept); err != nil {
			errs = append(errs, err)
		} else {
			add(stateFile, file, struct{}{})
		}
	}
	return sockets, errors.Join(errs...)
}

// unpack takes over all files of the sockets.
func unpack(sockets []handover.Socket) (h relay.Handover, open pages, kept *laststate.State, err error) {
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
		case adminSocket, adminPlace:
			p := &page{}
			errs = append(errs, json.Unmarshal(s.About, &p.place))
			listener, err := net.FileListener(s.File)
			_ = s.File.Close()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if l, ok := listener.(*net.UnixListener); ok {
				l.SetUnlinkOnClose(false)
			}
			p.listener = listener
			open = append(open, p)
		case stateFile:
			var err error
			kept, err = fromFile(s.File)
			errs = append(errs, err)
		default:
			_ = s.File.Close() // of a later version; it opens its own
		}
	}
	if err := errors.Join(errs...); err != nil {
		h.Close()
		open.close()
		return relay.Handover{}, nil, nil, fmt.Errorf("sockets not understood: %w", err)
	}
	return h, open, kept, nil
}

// toFile puts the state where another process can read it, and no disk is needed.
func toFile(s laststate.State) (*os.File, error) {
	data, err := laststate.Encode(s)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("gatehouse state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "state")
	if _, err := file.WriteAt(data, 0); err != nil { // whose position both would share
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func fromFile(file *os.File) (*laststate.State, error) {
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, info.Size()))
	if err != nil {
		return nil, err
	}
	return laststate.Decode(data)
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
	h, admin, kept, err := unpack(sockets)
	if err != nil {
		return err
	}
	d.inherit(kept)
	d.log.Info("taking over", "doors", len(h.Doors), "sessions", len(h.Sessions))
	d.mu.Lock()
	d.relay = d.newRelay(h)
	d.mu.Unlock()
	d.inherited = admin
	d.silent = true // the one before still writes
	d.decide(ctx)
	d.inherited.close()
	for _, p := range d.inherited { // that the files do not want any more
		fileOf(p.Socket).remove()
	}
	d.silent, d.inherited = false, nil
	return d.opts.Previous.Serving(ctx)
}

// inherit goes on from what the process before has decided from, which is newer
// than what it has saved.
func (d *Daemon) inherit(kept *laststate.State) {
	if kept == nil || kept.Source != d.cluster.look().origin.source {
		return
	}
	d.ledger.take(time.Now(), kept.Allocations)
	d.cluster.expect(&kept.Cluster)
}

// awaitCluster waits until the cluster has been read: a decision without its
// Services would close them.
func (d *Daemon) awaitCluster(ctx context.Context) error {
	c := d.files.current()
	if c.Kubernetes == nil {
		return nil
	}
	d.cluster.use(ctx, c)
	late := time.NewTimer(clusterTime)
	defer late.Stop()
	for {
		if d.cluster.look().answered {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wake:
		case <-late.C:
			err := fmt.Errorf("the cluster was not read within %s", clusterTime)
			if problems := d.cluster.problems(); len(problems) > 0 {
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
	in, err := d.inputs(c, d.cluster.look().snapshot)
	if err != nil {
		return err
	}
	state, _ := desired.Settled(in)
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
	d.ready, d.waiting, d.stopping = false, []string{"its end: it is stopping"}, true
	d.mu.Unlock()
	d.saveLast()
	d.cluster.task.stop()
	d.addresses.task.stop()
	d.closeDoors()
	defer d.cut(nil)
	d.drain(ctx, signals)
	d.transparent.leave()
	d.closePages(func(*page) bool { return true })
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
