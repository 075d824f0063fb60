package daemon

import (
	"context"
	"errors"
	"io/fs"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
)

const (
	// What has changed is saved this long after: changes come together.
	savePause = time.Second
	// Endpoints come and go all the time, and what a program that is started
	// remembers of them is put right by the API, or by its own probes.
	saveEndpointsPause = time.Minute
	// What could not be saved is tried again after this time.
	saveAgain = 10 * time.Second
)

// journal keeps the last good snapshot of the cluster in the state directory.
type journal struct {
	save    func(dir string, s laststate.State) error // laststate.Save, or a test's
	wake    chan struct{}
	changed func() // problems have

	mu      sync.Mutex
	next    *entry // what is to be saved, if it is not what was; nil: nothing is known
	read    string // why what was there could not be read; of no matter once something is saved
	failure error  // why it could not be saved
	retired bool   // another process has taken over
	saved   time.Time

	// One writes at a time.
	writing sync.Mutex
	last    *entry // saved
	at      time.Time
}

// entry is a state, and where it is kept.
type entry struct {
	dir   string
	state laststate.State
}

func newJournal(changed func()) *journal {
	return &journal{save: laststate.Save, wake: make(chan struct{}, 1), changed: changed}
}

// open returns what a process before has kept in a directory, if there is
// something, and sees whether more can be.
func (j *journal) open(dir string) *laststate.State {
	s, err := laststate.Load(dir)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.read = err.Error()
	}
	j.failure = laststate.Prepare(dir)
	return s
}

// note says what is to be kept, and where: nil is nothing yet, and an empty dir
// is nowhere. It does not wait for the disk.
func (j *journal) note(dir string, s *laststate.State) {
	j.mu.Lock()
	switch {
	case dir == "":
		j.next, j.failure, j.read = nil, nil, ""
	case s == nil:
		j.next = nil
	default:
		next := &entry{dir, *s}
		next.state.Cluster.Lists, next.state.Cluster.Stale = 0, false // these are of this process
		j.next = next
	}
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// run saves until ctx ends; what is left then is for flush.
func (j *journal) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	timer.Stop()
	var due time.Time // when the timer ends; zero: it does not run
	set := func(wait time.Duration) {
		if at := time.Now().Add(wait); due.IsZero() || at.Before(due) {
			due = at
			timer.Reset(wait)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-j.wake:
			set(savePause)
		case <-timer.C:
			due = time.Time{}
			if wait := j.write(false); wait > 0 {
				set(wait)
			}
		}
	}
}

// flush saves what is not saved.
func (j *journal) flush() { j.write(true) }

// write saves what is new if it is time, or at the end. Otherwise it returns how
// long that takes.
func (j *journal) write(end bool) (wait time.Duration) {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	next, retired := j.next, j.retired
	j.mu.Unlock()
	if next == nil || retired {
		return 0
	}
	if !end && j.last != nil && j.last.dir == next.dir {
		switch changed, endpoints := differ(&j.last.state, &next.state); {
		case !changed && !endpoints:
			return 0
		case !changed:
			if wait := saveEndpointsPause - time.Since(j.at); wait > 0 {
				return wait
			}
		}
	}
	err := j.save(next.dir, next.state)
	j.mu.Lock()
	news := (err == nil) != (j.failure == nil) || err == nil && j.read != ""
	j.failure = err
	if err == nil {
		j.read, j.saved = "", time.Now()
	}
	j.mu.Unlock()
	if news {
		j.changed()
	}
	if err != nil {
		return saveAgain
	}
	j.last, j.at = next, time.Now()
	return 0
}

// savedAt is when something was last written; zero: not by this process.
func (j *journal) savedAt() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.saved
}

// retire leaves the file to another process, once nothing is written any more;
// or takes it back.
func (j *journal) retire(retired bool) {
	j.mu.Lock()
	j.retired = retired
	j.mu.Unlock()
	j.writing.Lock() // whoever had begun has ended
	defer j.writing.Unlock()
	j.last = nil // that one may have written
}

// differ says whether two states differ in more than the endpoints of their
// Services, or in those.
func differ(x, y *laststate.State) (changed, endpoints bool) {
	if x.Source != y.Source || !slices.Equal(x.Allocations, y.Allocations) {
		return true, false
	}
	a, b := x.Cluster, y.Cluster
	nodes := !same(a.Nodes, b.Nodes) && !reflect.DeepEqual(a.Nodes, b.Nodes)
	if nodes || !slices.Equal(a.APIServers, b.APIServers) || !reflect.DeepEqual(a.Namespaces, b.Namespaces) || !slices.Equal(a.Hosts, b.Hosts) {
		return true, false
	}
	if same(a.Services, b.Services) {
		return false, false
	}
	if len(a.Services) != len(b.Services) {
		return true, false
	}
	for i := range a.Services {
		s, o := a.Services[i], b.Services[i]
		endpoints = endpoints || !slices.Equal(s.Endpoints, o.Endpoints)
		s.Endpoints, o.Endpoints = nil, nil
		if !reflect.DeepEqual(s, o) {
			return true, false
		}
	}
	return false, endpoints
}

// same says whether two lists are one and the same, which saves a look at them.
func same[T any](x, y []T) bool {
	return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}

// problems say why nothing is kept, or what was is not used.
func (j *journal) problems() []edge.Problem {
	j.mu.Lock()
	defer j.mu.Unlock()
	var problems []edge.Problem
	if j.read != "" {
		problems = append(problems, edge.Problem{
			Path: "stateDir", What: "the last state was not used: " + j.read, Remedy: "it is written anew once the Kubernetes API was read",
		})
	}
	if j.failure != nil {
		problems = append(problems, edge.Problem{
			Path: "stateDir", What: "the state of the cluster cannot be kept: " + j.failure.Error(), Remedy: stateRemedy(j.failure),
		})
	}
	return problems
}

// stateRemedy is for what the file system says.
func stateRemedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "make it a directory of the user that gatehouse runs as, with mode 0700 (systemd: StateDirectory=gatehouse)"
	case errors.Is(err, syscall.EROFS):
		return "name a directory that gatehouse may write (systemd: StateDirectory=gatehouse)"
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		return "there is a file of that name: name a directory"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on its file system"
	}
	return "it is tried again"
}
