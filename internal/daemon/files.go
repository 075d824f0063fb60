package daemon

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/status"
)

// files holds the configuration that runs: the last good one, or one that is on
// trial instead.
type files struct {
	log   *slog.Logger
	names []string

	mu       sync.Mutex
	good     *config.Config      // the last good one of the disk
	contents []filewatch.Content // that good was made of
	loadedAt time.Time
	problems []edge.Problem // of what is on disk now
	attempt  *attempt       // on trial; nil: nothing is
	last     string         // how the last trial ended
}

// take takes what is on disk now, and says whether it is good. Bad files change
// nothing but what is reported. While a trial runs, good ones are what it goes
// back to.
func (f *files) take(contents []filewatch.Content) bool {
	next, problems := parse(contents)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = problems
	if len(problems) > 0 {
		for _, p := range problems {
			f.log.Error("configuration is bad, the last good one goes on", "problem", p.String())
		}
		return false
	}
	f.good, f.contents, f.loadedAt = next, contents, time.Now()
	f.log.Info("configuration read", "files", f.names, "zones", len(next.Zones), "frontends", len(next.Frontends), "kubernetes", next.Kubernetes != nil)
	if f.attempt != nil {
		f.log.Info("the trial goes on, and goes back to what was read", "until", f.attempt.until)
	}
	return true
}

// ReadFiles reads and parses files once: a configuration, or every problem.
func ReadFiles(names []string) (*config.Config, []edge.Problem) {
	return parse(readAll(names))
}

// parse turns what was read into a configuration. While a file cannot be read
// the others are not looked at: what it defines would be missing in them.
func parse(contents []filewatch.Content) (*config.Config, []edge.Problem) {
	var files []config.File
	var unreadable []edge.Problem
	for _, c := range contents {
		if c.Err != nil {
			unreadable = append(unreadable, edge.Problem{Pos: edge.Pos{File: c.Path}, What: "cannot be read: " + reason(c.Err)})
			continue
		}
		files = append(files, config.File{Name: c.Path, Data: c.Data})
	}
	if len(unreadable) > 0 {
		return nil, unreadable
	}
	return config.Parse(files)
}

// reason is an error without the path that os puts in front of it.
func reason(err error) string {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

func (f *files) current() *config.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt != nil {
		return f.attempt.config
	}
	return f.good
}

func (f *files) status() status.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return status.Config{Files: f.names, LoadedAt: f.loadedAt, Current: len(f.problems) == 0, Problems: f.problems, Trial: f.trialLocked()}
}
