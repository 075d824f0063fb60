// Package filewatch reads whole files, again when they change. It watches their
// directories, since editors and Kubernetes replace files rather than write
// them, and waits until two reads some time apart are equal, so that a
// half-written file is not handed out. It knows nothing of what is in them.
//
//	w := filewatch.New(paths, 200*time.Millisecond, log)
//	now := w.Read()
//	go w.Run(ctx)
//	for contents := range w.Changed() { ... } // all files, each time one changed
package filewatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"
)

const (
	// maxSize keeps a wrong path (a disk image) from being read into memory.
	maxSize = 16 << 20
	// poll is the net below the notifications: network file systems send none.
	poll = 5 * time.Second
)

// Content is one file as it was read.
type Content struct {
	Path string
	Data []byte
	Err  error // why it could not be read; Data is then nil
}

// Watcher follows a list of files.
type Watcher struct {
	paths   []string
	settle  time.Duration
	poll    time.Duration
	log     *slog.Logger
	changed chan []Content
	reload  chan struct{}
	last    []Content // that the receiver knows
}

// New returns a watcher of the files, which need not exist. settle is how long
// they must have been equal before they are handed out. It starts nothing.
func New(paths []string, settle time.Duration, log *slog.Logger) *Watcher {
	return &Watcher{paths: paths, settle: settle, poll: poll, log: log, changed: make(chan []Content, 1), reload: make(chan struct{}, 1)}
}

// Changed receives the content of all files after one of them changed, and
// after each Reload. Only the latest is kept for a slow receiver.
func (w *Watcher) Changed() <-chan []Content { return w.changed }

// Reload asks for the files to be read now, changed or not.
func (w *Watcher) Reload() {
	select {
	case w.reload <- struct{}{}:
	default:
	}
}

// Read returns the files as they are now. Called before Run, it is what Run
// compares with, so that no change between the two is missed.
func (w *Watcher) Read() []Content {
	w.last = w.readAll()
	return w.last
}

// Run watches until ctx ends. Where the system has no notifications to give,
// which is a limit of inotify instances more often than not, it polls.
func (w *Watcher) Run(ctx context.Context) error {
	watches, err := openWatches(w.paths, w.log)
	if err != nil {
		w.log.Warn("file notifications not available, files are polled", "interval", w.poll, "err", err)
	}
	defer watches.close()
	if w.last == nil {
		w.Read()
	}
	candidate := w.last // handed out if it is still there when the timer ends
	settled := time.NewTimer(0)
	defer settled.Stop()
	waiting := true // for the timer
	look := func() {
		if waiting {
			return // it looks when it ends; a directory with much going on must not hold it up
		}
		candidate, waiting = w.readAll(), true
		settled.Reset(w.settle)
	}
	tick := time.NewTicker(w.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-watches.events():
			look()
		case err := <-watches.errors():
			w.log.Warn("file notifications lost", "err", err)
			look()
		case <-tick.C:
			look()
		case <-settled.C:
			waiting = false
			watches.follow() // before the read: what changes after it is notified
			now := w.readAll()
			switch {
			case !same(now, candidate):
				candidate, waiting = now, true
				settled.Reset(w.settle)
			case !same(now, w.last):
				w.publish(now)
			}
		case <-w.reload:
			w.publish(w.readAll())
		}
	}
}

// publish replaces what nobody has taken yet.
func (w *Watcher) publish(now []Content) {
	select {
	case <-w.changed:
	default:
	}
	w.last = now
	w.changed <- now
}

func (w *Watcher) readAll() []Content {
	all := make([]Content, len(w.paths))
	for i, path := range w.paths {
		data, err := readRegular(path)
		all[i] = Content{Path: path, Data: data, Err: err}
	}
	return all
}

// Read reads one file, up to a size that no configuration has. Unlike a
// Watcher it also reads pipes: `gatehouse check -c <(kubectl get ...)`.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return readAndClose(f)
}

var errNotRegular = errors.New("it is not a regular file, and cannot be read again and again")

// readRegular does not wait for somebody to write into a pipe.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return nil, errors.Join(&os.PathError{Op: "read", Path: path, Err: errNotRegular}, f.Close())
	}
	return readAndClose(f)
}

func readAndClose(f *os.File) ([]byte, error) {
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("it is larger than %d MiB", maxSize>>20)
	}
	return data, nil
}

func same(x, y []Content) bool {
	for i := range x {
		if !bytes.Equal(x[i].Data, y[i].Data) || !sameError(x[i].Err, y[i].Err) {
			return false
		}
	}
	return true
}

func sameError(x, y error) bool {
	if x == nil || y == nil {
		return x == nil && y == nil
	}
	return x.Error() == y.Error()
}
