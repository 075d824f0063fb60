package daemon

import (
	"log/slog"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/status"
)

// files holds the configuration that runs: the last good one.
type files struct {
	log   *slog.Logger
	names []string

	mu       sync.Mutex
	running  *config.Config
	loadedAt time.Time
	problems []edge.Problem // of what is on disk now
}

// read reads the files once, and says whether they are good.
func (f *files) read() bool {
	var contents []filewatch.Content
	for _, name := range f.names {
		data, err := filewatch.Read(name)
		contents = append(contents, filewatch.Content{Path: name, Data: data, Err: err})
	}
	return f.reload(contents)
}

// reload takes what is on disk now, and says whether it is good. Bad files
// change nothing but what is reported.
func (f *files) reload(contents []filewatch.Content) bool {
	var good []config.File
	var problems []edge.Problem
	for _, c := range contents {
		if c.Err != nil {
			problems = append(problems, edge.Problem{Pos: edge.Pos{File: c.Path}, What: "cannot be read: " + c.Err.Error()})
			continue
		}
		good = append(good, config.File{Name: c.Path, Data: c.Data})
	}
	next, bad := config.Parse(good)
	problems = append(problems, bad...)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = problems
	if len(problems) > 0 {
		for _, p := range problems {
			f.log.Error("configuration is bad, the last good one goes on", "problem", p.String())
		}
		return false
	}
	f.running, f.loadedAt = next, time.Now()
	f.log.Info("configuration read", "files", f.names)
	return true
}

func (f *files) current() *config.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

func (f *files) status() status.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return status.Config{Files: f.names, LoadedAt: f.loadedAt, Current: len(f.problems) == 0, Problems: f.problems}
}
