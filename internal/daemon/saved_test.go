package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
)

// written is what a journal has saved, and when.
type written struct {
	at    time.Duration
	state laststate.State
}

// journals runs a journal, and returns what it writes.
func journals(t *testing.T, fail func() error) (j *journal, writes *[]written) {
	t.Helper()
	start := time.Now()
	writes = &[]written{}
	j = newJournal(func() {})
	j.save = func(_ string, s laststate.State) error {
		if err := fail(); err != nil {
			return err
		}
		*writes = append(*writes, written{time.Since(start), s})
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = j.run(ctx)
	}()
	t.Cleanup(func() { stop(); <-done })
	return j, writes
}

func never() error { return nil }

func stateWith(change func(*laststate.State)) *laststate.State {
	s := &laststate.State{Source: "here", SavedAt: time.Now(), Cluster: *site(2, 1, 1)}
	if change != nil {
		change(s)
	}
	return s
}

// A change is saved a second later, whatever comes after it; endpoints alone
// once a minute; and what is no change, not at all.
func TestWhenStateIsSaved(t *testing.T) {
	endpoint := func(s *laststate.State) { s.Cluster.Services[0].Endpoints[0].Ready = true }
	another := func(s *laststate.State) { s.Cluster.Services[0].Endpoints[0].Serving = true }
	for name, tc := range map[string]struct {
		changes []func(*laststate.State) // a hundred milliseconds apart, and the last one stays
		want    []time.Duration          // when it is saved after the first of them
	}{
		"nothing":           {[]func(*laststate.State){nil, func(s *laststate.State) { s.Cluster.Lists, s.Cluster.Stale = 7, true }}, nil},
		"a label":           {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.Services[1].Labels = map[string]string{"a": "b"} }}, []time.Duration{time.Second}},
		"a Service":         {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.Services = s.Cluster.Services[:1] }}, []time.Duration{time.Second}},
		"a node":            {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.Nodes[0].Excluded = true }}, []time.Duration{time.Second}},
		"a namespace":       {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.Namespaces = map[string]map[string]string{} }}, []time.Duration{time.Second}},
		"a host":            {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.Hosts = []edge.HostRule{{Host: "a.example"}} }}, []time.Duration{time.Second}},
		"an API server":     {[]func(*laststate.State){func(s *laststate.State) { s.Cluster.APIServers = make([]netip.AddrPort, 1) }}, []time.Duration{time.Second}},
		"an address":        {[]func(*laststate.State){func(s *laststate.State) { s.Allocations = make([]laststate.Allocation, 1) }}, []time.Duration{time.Second}},
		"another cluster":   {[]func(*laststate.State){func(s *laststate.State) { s.Source = "there" }}, []time.Duration{time.Second}},
		"an endpoint":       {[]func(*laststate.State){endpoint}, []time.Duration{time.Minute - 10*time.Second}},
		"endpoints, always": {[]func(*laststate.State){endpoint, another, endpoint, another}, []time.Duration{time.Minute - 10*time.Second}},
		"both":              {[]func(*laststate.State){endpoint, func(s *laststate.State) { s.Cluster.Nodes[0].Excluded = true }}, []time.Duration{time.Second}},
		"many": {[]func(*laststate.State){
			func(s *laststate.State) { s.Source = "a" }, func(s *laststate.State) { s.Source = "b" }, func(s *laststate.State) { s.Source = "c" },
		}, []time.Duration{time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j, writes := journals(t, never)
				j.note("/state", stateWith(nil))
				time.Sleep(time.Second + 10*time.Second) // it is saved after the first
				synctest.Wait()
				if len(*writes) != 1 || (*writes)[0].at != time.Second {
					t.Fatalf("the first was saved %+v", *writes)
				}
				first := time.Second + 10*time.Second
				for _, change := range tc.changes {
					j.note("/state", stateWith(change))
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				var got []time.Duration
				for _, w := range (*writes)[1:] {
					got = append(got, w.at-first)
				}
				if fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("saved after %v, want %v", got, tc.want)
				}
				last := (*writes)[len(*writes)-1].state
				want := stateWith(tc.changes[len(tc.changes)-1])
				if changed, endpoints := differ(&last, want); changed || endpoints || last.Cluster.Stale || last.Cluster.Lists != 0 {
					t.Errorf("saved was %+v, want %+v", last, want)
				}
			})
		})
	}
}

func TestWhatIsNotSavedYetIsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, writes := journals(t, never)
		j.flush() // nothing is known yet
		j.note("/state", stateWith(nil))
		j.flush()
		if len(*writes) != 1 {
			t.Errorf("%d were saved, want 1", len(*writes))
		}
		j.note("", stateWith(nil)) // not any more
		j.flush()
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(*writes) != 1 {
			t.Errorf("%d were saved, want 1", len(*writes))
		}
	})
}

// One process writes: the one that took over, or this one again.
func TestARetiredJournalIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, writes := journals(t, never)
		j.note("/state", stateWith(nil))
		j.retire(true)
		time.Sleep(time.Hour)
		j.flush()
		if len(*writes) != 0 {
			t.Fatal("it has written over the other's")
		}
		j.retire(false)
		j.note("/state", stateWith(nil))
		time.Sleep(time.Second)
		synctest.Wait()
		if len(*writes) != 1 {
			t.Errorf("%d were saved, want 1", len(*writes))
		}
	})
}

func TestSavingIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mended atomic.Bool
		j, writes := journals(t, func() error {
			if mended.Load() {
				return nil
			}
			return &fs.PathError{Op: "open", Path: "/state/cluster.new", Err: syscall.EROFS}
		})
		var told atomic.Int32
		j.changed = func() { told.Add(1) }
		j.note("/state", stateWith(nil))
		time.Sleep(time.Minute)
		synctest.Wait()
		if p := j.problems(); len(p) != 1 || p[0].Path != "stateDir" || !strings.Contains(p[0].String(), "read-only") || !strings.Contains(p[0].Remedy, "StateDirectory=") || told.Load() != 1 {
			t.Errorf("%v, told %d times", p, told.Load())
		}
		mended.Store(true)
		time.Sleep(saveAgain)
		synctest.Wait()
		if p := j.problems(); len(*writes) != 1 || len(p) != 0 || told.Load() != 2 {
			t.Errorf("%d were saved, %v, told %d times", len(*writes), p, told.Load())
		}
	})
}

// What the file system says is said at the start, and what would be right.
func TestStateDirThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "")
	damaged := filepath.Join(dir, "damaged")
	mkdir(t, damaged)
	write(t, filepath.Join(damaged, "cluster"), "?")
	for path, want := range map[string]string{
		file:                         "stateDir: the state of the cluster cannot be kept: mkdir " + file + ": not a directory; there is a file of that name: name a directory",
		filepath.Join(dir, "new"):    "",
		filepath.Join(file, "below"): "not a directory; there is a file",
		damaged:                      "stateDir: the last state was not used: " + filepath.Join(damaged, "cluster") + ": it does not begin with",
	} {
		j := newJournal(func() {})
		if s := j.open(path); s != nil {
			t.Errorf("%s: %+v", path, s)
		}
		got := ""
		for _, p := range j.problems() {
			got += p.String()
		}
		if !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s:\n%s\nwant\n%s", path, got, want)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "new")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	for _, err := range []error{fs.ErrPermission, syscall.EROFS, syscall.ENOSPC, errors.New("something")} {
		if stateRemedy(err) == "" {
			t.Errorf("%v: nothing would be right", err)
		}
	}
}
