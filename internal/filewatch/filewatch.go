// Package filewatch reads whole files, again when they change. It watches their
// directories, since editors and Kubernetes replace files rather than write
// them, and waits until they have been quiet, so that a half-written file is
// not read. It knows nothing of what is in them.
//
//	w := filewatch.New(paths, 200*time.Millisecond, log)
//	go w.Run(ctx)
//	for contents := range w.Changed() { ... } // all files, each time one changed
package filewatch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
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
	log     *slog.Logger
	changed chan []Content
	reload  chan struct{}
}

// New returns a watcher of the files, which need not exist. settle is how long
// they must have been quiet before they are read. It starts nothing.
func New(paths []string, settle time.Duration, log *slog.Logger) *Watcher {
	return &Watcher{paths: paths, settle: settle, log: log, changed: make(chan []Content, 1), reload: make(chan struct{}, 1)}
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

// Read reads one file, up to a size that no configuration has.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
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

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer notify.Close()
	w.watchDirectories(notify)
	last := w.readAll()
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-notify.Events:
			quiet.Reset(w.settle)
		case err := <-notify.Errors:
			w.log.Warn("file notifications lost", "err", err)
			quiet.Reset(w.settle)
		case <-tick.C:
			w.watchDirectories(notify)
			if !same(last, w.readAll()) {
				quiet.Reset(w.settle)
			}
		case <-quiet.C:
			w.watchDirectories(notify)
			if now := w.readAll(); !same(last, now) {
				last = now
				w.publish(now)
			}
		case <-w.reload:
			last = w.readAll()
			w.publish(last)
		}
	}
}

// watchDirectories watches the directory of each file and of what it links to.
// Directories that are not there yet are tried again at the next poll.
func (w *Watcher) watchDirectories(notify *fsnotify.Watcher) {
	for _, path := range w.paths {
		dirs := []string{filepath.Dir(path)}
		if target, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
		for _, dir := range dirs {
			if err := notify.Add(dir); err != nil {
				w.log.Debug("directory not watched", "dir", dir, "err", err)
			}
		}
	}
}

func (w *Watcher) readAll() []Content {
	var all []Content
	for _, path := range w.paths {
		data, err := Read(path)
		all = append(all, Content{Path: path, Data: data, Err: err})
	}
	return all
}

func (w *Watcher) publish(now []Content) {
	select {
	case <-w.changed: // nobody took the last one
	default:
	}
	w.changed <- now
}

func same(x, y []Content) bool {
	for i := range x {
		if !bytes.Equal(x[i].Data, y[i].Data) || (x[i].Err == nil) != (y[i].Err == nil) {
			return false
		}
	}
	return true
}
