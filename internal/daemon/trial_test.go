package daemon

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/trial"
)

func refuses(address string) func() error {
	return func() error {
		conn, name, err := dial(address)
		if err != nil {
			return nil
		}
		conn.Close()
		return fmt.Errorf("%s is served by %s", address, name)
	}
}

// tries has a configuration on trial.
func tries(t *testing.T, d *Daemon, file, text string, patience time.Duration) *trial.Trial {
	t.Helper()
	s, err := d.Apply(trial.Offer{Files: []trial.Candidate{{Name: file, Data: []byte(text)}}, Seconds: patience.Seconds()}, "uid 0")
	if err != nil || len(s.Problems) > 0 || s.Trial == nil {
		t.Fatalf("the trial: %+v, %v", s, err)
	}
	return s.Trial
}

// What is on trial runs, connections that it does not touch live on, and without
// a word the files go on: as they are on disk by then.
func TestTrialGoesBackToTheFiles(t *testing.T) {
	one, two, three := echo(t, "one"), echo(t, "two"), echo(t, "three")
	kept, tried, admin := freeAddr(t), freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, kept, one))
	d := start(t, file)
	eventually(t, "the file runs", serves(kept, "one"))
	conn, _, err := dial(kept)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	now := tries(t, d, "new.yaml", configFor(admin, kept, one, tried, two), time.Hour)
	eventually(t, "the trial runs", serves(tried, "two"))
	eventually(t, "it is said to", func() error {
		s := d.Status().Config
		if s.Trial == nil || s.Trial.By != "uid 0" || s.Trial.Files[0] != "new.yaml" || !d.Trial().Decided {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})

	running := d.files.current()

	// The file changes meanwhile: the trial goes on.
	write(t, file, configFor(admin, kept, one, tried, three))
	eventually(t, "the new file is known", func() error {
		d.files.mu.Lock()
		defer d.files.mu.Unlock()
		if !strings.Contains(string(d.files.contents[0].Data), three) {
			return errors.New("it is not")
		}
		return nil
	})
	if err := serves(tried, "two")(); err != nil {
		t.Error(err)
	}
	// What is not in the file is not believed to be.
	if err := d.Confirm(now.ID); err == nil || !strings.Contains(err.Error(), "does not have what is on trial") {
		t.Errorf("confirmed without being written: %v", err)
	}
	if err := d.Confirm("another"); !errors.Is(err, errNoTrial) {
		t.Errorf("confirmed another one: %v", err)
	}
	// A bad file is no end either.
	write(t, file, "zones: 7\n")
	eventually(t, "the bad file is told", func() error {
		if s := d.Status().Config; s.Current || s.Trial == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if d.files.current() != running {
		t.Error("what runs is another one since the file is bad")
	}

	if err := d.files.end(now.ID, notConfirmed); err != nil {
		t.Fatal(err)
	}
	d.kick()
	eventually(t, "the last good file runs", serves(tried, "three"))
	if s := d.Trial(); s.Trial != nil || s.Last != notConfirmed {
		t.Errorf("after its end: %+v", s)
	}
	if _, err := fmt.Fprintln(conn, "still here"); err != nil {
		t.Errorf("a connection that nothing was about: %v", err)
	}
}

// Its time is kept by the daemon itself.
func TestTrialEndsByItself(t *testing.T) {
	one, two := echo(t, "one"), echo(t, "two")
	kept, tried, admin := freeAddr(t), freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, kept, one))
	d := start(t, file)
	eventually(t, "the file runs", serves(kept, "one"))
	tries(t, d, "new.yaml", configFor(admin, tried, two), trial.Shortest)
	eventually(t, "it is over", func() error {
		if s := d.Trial(); s.Trial != nil || s.Last != notConfirmed {
			return fmt.Errorf("%+v", s)
		}
		return errors.Join(refuses(tried)(), serves(kept, "one")())
	})
}

// A configuration that is confirmed is the file's, to the last word.
func TestTrialIsConfirmed(t *testing.T) {
	one, two := echo(t, "one"), echo(t, "two")
	kept, tried, admin := freeAddr(t), freeAddr(t), freeAddr(t)
	dir := t.TempDir()
	file, other := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "other.yaml")
	write(t, file, configFor(admin, kept, one))
	write(t, other, "apiVersion: gatehouse.e13.dev/v1\n")
	d := start(t, file, other)
	eventually(t, "the file runs", serves(kept, "one"))
	text := configFor(admin, kept, one, tried, two)
	now := tries(t, d, "/elsewhere/gatehouse.yaml", text, time.Hour)
	eventually(t, "the trial runs", serves(tried, "two"))
	if d.Trial().Candidates[0].Path != file {
		t.Errorf("it is for %s, not %s", d.Trial().Candidates[0].Path, file)
	}
	// Together with another file as it is by now it would be bad.
	write(t, file, text)
	write(t, other, "apiVersion: gatehouse.e13.dev/v1\nzones: 7\n")
	if err := d.Confirm(now.ID); err == nil || d.Trial().Trial == nil {
		t.Errorf("confirmed with a bad file beside it: %v", err)
	}
	write(t, other, "apiVersion: gatehouse.e13.dev/v1\n")
	if err := d.Confirm(now.ID); err != nil {
		t.Fatal(err)
	}
	if s := d.Trial(); s.Trial != nil || s.Last != confirmed {
		t.Errorf("after its end: %+v", s)
	}
	eventually(t, "it goes on from the file", func() error {
		for _, e := range d.Status().Exposures {
			if !strings.HasPrefix(e.Why, file) {
				return fmt.Errorf("%s is of %s", e.Name, e.Why)
			}
		}
		return serves(tried, "two")()
	})
}

// What says yes or no to a trial comes by the socket of the files, wherever the
// one on trial has it.
func TestTrialIsAnsweredWhereItBegan(t *testing.T) {
	dir := t.TempDir()
	file, socket, other := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "api.sock"), filepath.Join(dir, "other.sock")
	write(t, file, adminFile("socket: "+socket))
	d := start(t, file)
	at := func(path string, want int) func() error {
		return asks(overSocket(path), "http://localhost/status.json", "", want)
	}
	eventually(t, "the file runs", at(socket, 200))
	tried := adminFile("socket: " + other)
	now := tries(t, d, file, tried, time.Hour)
	eventually(t, "the trial runs", at(other, 200))
	if err := at(socket, 200)(); err != nil {
		t.Errorf("the way back: %v", err)
	}
	// Written, and not confirmed yet.
	write(t, file, tried)
	d.files.take(readAll(d.files.names))
	d.kick()
	eventually(t, "decided", func() error {
		if s := d.Trial(); !s.Decided {
			return errors.New("it is not")
		}
		return at(socket, 200)()
	})
	if err := d.Confirm(now.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only there", func() error { return errors.Join(at(socket, 0)(), at(other, 200)()) })
}

// Which file a candidate stands for is told by its name, where there are several.
func TestCandidatesStandForFiles(t *testing.T) {
	for _, c := range []struct {
		name       string
		files      []string
		candidates []string
		want       string // paths, or what the error says
	}{
		{"the only one", []string{"/etc/g/gatehouse.yaml"}, []string{"new.yaml"}, "/etc/g/gatehouse.yaml"},
		{"by its name", []string{"/etc/g/a.yaml", "/etc/g/b.yaml"}, []string{"/tmp/b.yaml"}, "/etc/g/b.yaml"},
		{"both", []string{"/etc/g/a.yaml", "/etc/g/b.yaml"}, []string{"b.yaml", "a.yaml"}, "/etc/g/b.yaml /etc/g/a.yaml"},
		{"none", []string{"/etc/g/a.yaml"}, nil, "no file was given"},
		{"one too many", []string{"/etc/g/a.yaml"}, []string{"a.yaml", "b.yaml"}, "runs with one file, /etc/g/a.yaml, and 2 were given"},
		{"unknown", []string{"/etc/g/a.yaml", "/etc/g/b.yaml"}, []string{"c.yaml"}, "c.yaml: gatehouse runs with /etc/g/a.yaml, /etc/g/b.yaml"},
		{"ambiguous", []string{"/etc/g/a.yaml", "/etc/h/a.yaml"}, []string{"a.yaml"}, "several files of gatehouse have this name"},
		{"twice", []string{"/etc/g/a.yaml", "/etc/g/b.yaml"}, []string{"x/a.yaml", "y/a.yaml"}, "x/a.yaml and y/a.yaml: both stand for /etc/g/a.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var offered []trial.Candidate
			for _, name := range c.candidates {
				offered = append(offered, trial.Candidate{Name: name})
			}
			f := files{names: c.files}
			matched, err := f.match(offered)
			var paths []string
			for _, m := range matched {
				paths = append(paths, m.Path)
			}
			if got := strings.Join(paths, " "); err == nil && got != c.want || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}
