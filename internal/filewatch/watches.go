package filewatch

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watches are the notifications for the directories that files are found
// through. A nil *watches has none.
type watches struct {
	paths  []string
	log    *slog.Logger
	notify *fsnotify.Watcher
}

func openWatches(paths []string, log *slog.Logger) (*watches, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &watches{paths: paths, log: log, notify: notify}
	w.follow()
	return w, nil
}

func (w *watches) close() {
	if w != nil {
		_ = w.notify.Close() // nothing was written
	}
}

func (w *watches) events() <-chan fsnotify.Event {
	if w == nil {
		return nil
	}
	return w.notify.Events
}

func (w *watches) errors() <-chan error {
	if w == nil {
		return nil
	}
	return w.notify.Errors
}

// follow watches the directories that matter now, and no others.
func (w *watches) follow() {
	if w == nil {
		return
	}
	wanted := map[string]bool{}
	for _, path := range w.paths {
		maps.Copy(wanted, directories(path))
	}
	for dir := range wanted {
		// Also those that are watched already: another directory may have
		// taken the name.
		if err := w.notify.Add(dir); err != nil {
			w.log.Debug("directory not watched", "dir", dir, "err", err)
		}
	}
	for _, dir := range w.notify.WatchList() {
		if !wanted[dir] {
			_ = w.notify.Remove(dir) // it went by itself if the directory did
		}
	}
}

// directories are those in which something can happen that makes the path lead
// to other content: that of the file, and that of each link on the way to it
// (a ConfigMap is file -> ..data/file, ..data -> ..2026_11_22). Of a directory
// that does not exist, the nearest one above that does.
func directories(path string) map[string]bool {
	dirs := map[string]bool{}
	for range 40 { // the kernel follows as many links
		dir := filepath.Dir(path)
		dirs[nearest(dir)] = true
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dirs[resolved] = true
		}
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return dirs
}

func nearest(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return dir
		}
		dir = parent
	}
}
