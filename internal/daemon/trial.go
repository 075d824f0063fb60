package daemon

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/filewatch"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/status"
	"e13.dev/gatehouse/internal/trial"
)

// attempt is a configuration on trial. It is in memory only: a process that
// starts, for whatever reason, reads the files.
type attempt struct {
	id         string
	config     *config.Config
	candidates []trial.Candidate
	until      time.Time
	by         string
	socket     string // of the files when it began: whoever began it answers there
	timer      *time.Timer
}

// How a trial has ended, in words that follow "the last trial".
const (
	confirmed    = "was confirmed"
	notConfirmed = "was not confirmed in time"
	reverted     = "was ended by its operator"
)

var (
	errOneRuns = errors.New("another configuration is on trial")
	errNoTrial = errors.New("no configuration is on trial")
)

// match says which of the daemon's files each candidate stands for: the one file
// there is, or the one of the same name.
func (f *files) match(candidates []trial.Candidate) ([]trial.Candidate, error) {
	candidates = slices.Clone(candidates)
	if len(candidates) == 0 {
		return nil, errors.New("no file was given")
	}
	have := strings.Join(f.names, ", ")
	taken := map[int]string{}
	for i := range candidates {
		c := &candidates[i]
		var fits []int
		for k, name := range f.names {
			if len(f.names) == 1 || filepath.Base(name) == filepath.Base(c.Name) {
				fits = append(fits, k)
			}
		}
		switch {
		case len(f.names) == 1 && len(candidates) > 1:
			return nil, fmt.Errorf("gatehouse runs with one file, %s, and %d were given; give one", have, len(candidates))
		case len(fits) == 0:
			return nil, fmt.Errorf("%s: gatehouse runs with %s; call it as the one that it stands for", c.Name, have)
		case len(fits) > 1:
			return nil, fmt.Errorf("%s: several files of gatehouse have this name, %s; which it stands for cannot be told", c.Name, have)
		case taken[fits[0]] != "":
			return nil, fmt.Errorf("%s and %s: both stand for %s; give one", taken[fits[0]], c.Name, f.names[fits[0]])
		}
		taken[fits[0]] = c.Name
		c.Path = absolute(f.names[fits[0]])
	}
	return candidates, nil
}

// merge is what the files would be with the candidates. Those that are not
// offered are as they are on disk.
func merge(onDisk []filewatch.Content, candidates []trial.Candidate) []filewatch.Content {
	all := slices.Clone(onDisk)
	for i := range all {
		for _, c := range candidates {
			if c.Path == absolute(all[i].Path) {
				all[i] = filewatch.Content{Path: c.Name, Data: c.Data}
			}
		}
	}
	return all
}

// absolute is how an operator elsewhere finds a file. (It fails if the working
// directory is gone.)
func absolute(name string) string {
	path, err := filepath.Abs(name)
	if err != nil {
		return name
	}
	return path
}

// try has candidates run instead of the files, for a time. over is called when it
// has ended by itself. Candidates with problems change nothing.
func (f *files) try(candidates []trial.Candidate, patience time.Duration, by string, over func()) (trial.State, error) {
	candidates, err := f.match(candidates)
	if err != nil {
		return trial.State{}, err
	}
	// What is on disk now is what it is merged with, and what it is gone back to.
	onDisk := readAll(f.names)
	for _, file := range onDisk {
		for i := range candidates {
			if c := &candidates[i]; file.Err == nil && c.Path == absolute(file.Path) {
				c.Was = sumOf(file.Data)
			}
		}
	}
	next, problems := parse(merge(onDisk, candidates))
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(problems) > 0:
		s := f.stateLocked()
		s.Problems = problems
		return s, nil
	case f.attempt != nil:
		return f.stateLocked(), fmt.Errorf("%w until %s, by %s; confirm it with gatehouse confirm, end it with gatehouse confirm --no, or wait",
			errOneRuns, f.attempt.until.Format(time.TimeOnly), f.attempt.by)
	case patience == 0:
		s := f.stateLocked()
		s.Candidates = candidates
		return s, nil
	}
	a := &attempt{id: rand.Text(), config: next, candidates: candidates, until: time.Now().Add(patience), by: by}
	if f.good != nil {
		a.socket = f.good.Admin.Socket
	}
	a.timer = time.AfterFunc(patience, func() {
		if f.end(a.id, notConfirmed) == nil {
			over()
		}
	})
	f.attempt, f.last = a, ""
	f.log.Warn("a configuration is on trial", "files", namesOf(candidates), "by", by, "until", a.until)
	return f.stateLocked(), nil
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func namesOf(candidates []trial.Candidate) []string {
	var names []string
	for _, c := range candidates {
		names = append(names, c.Name)
	}
	return names
}

func readAll(names []string) []filewatch.Content {
	var contents []filewatch.Content
	for _, name := range names {
		data, err := filewatch.Read(name)
		contents = append(contents, filewatch.Content{Path: name, Data: data, Err: err})
	}
	return contents
}

// end goes back to the files.
func (f *files) end(id, how string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt == nil || f.attempt.id != id {
		return errNoTrial
	}
	f.endLocked(how)
	f.log.Warn("the trial is over, the files on disk go on", "trial", how, "files", f.names)
	return nil
}

func (f *files) endLocked(how string) {
	f.attempt.timer.Stop()
	f.attempt, f.last = nil, how
}

// confirm ends a trial whose candidates are in the files by now.
func (f *files) confirm(id string) error {
	contents := readAll(f.names)
	f.mu.Lock()
	a := f.attempt
	f.mu.Unlock()
	if a == nil || a.id != id {
		return errNoTrial
	}
	for _, c := range a.candidates {
		for _, on := range contents {
			if absolute(on.Path) == c.Path && (on.Err != nil || !bytes.Equal(on.Data, c.Data)) {
				return fmt.Errorf("%s does not have what is on trial; write it there first, as gatehouse confirm does", c.Path)
			}
		}
	}
	if !f.take(contents) {
		// Another file was changed meanwhile.
		return errors.New("the files on disk have problems together with what is on trial; gatehouse check tells which, and the trial goes on")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt != a {
		return errNoTrial // it was over just now; the files have it all the same
	}
	f.endLocked(confirmed)
	f.log.Info("the trial is over, it was confirmed", "files", f.names)
	return nil
}

// state is what runs, with what is on trial.
func (f *files) state() trial.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stateLocked()
	if f.attempt != nil {
		s.Candidates = f.attempt.candidates
	}
	return s
}

func (f *files) stateLocked() trial.State {
	s := trial.State{Last: f.last, Problems: []edge.Problem{}}
	contents := f.contents
	if a := f.attempt; a != nil {
		contents = merge(contents, a.candidates)
		s.Candidates = a.candidates
		s.Trial = &trial.Trial{ID: a.id, Until: a.until, Left: time.Until(a.until).Seconds(), By: a.by}
	}
	for i, c := range contents {
		s.Files = append(s.Files, trial.File{Path: absolute(f.names[i]), SHA256: sumOf(c.Data)})
	}
	return s
}

// answeredAt is the socket at which a trial is answered, besides those that it says
// itself; empty: there is none.
func (f *files) answeredAt() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.attempt == nil {
		return ""
	}
	return f.attempt.socket
}

// trialLocked is for the status.
func (f *files) trialLocked() *status.Trial {
	if f.attempt == nil {
		return nil
	}
	return &status.Trial{Until: f.attempt.until, By: f.attempt.by, Files: namesOf(f.attempt.candidates)}
}

// Apply tries a configuration instead of the files, or checks it.
func (d *Daemon) Apply(offer trial.Offer, by string) (trial.State, error) {
	patience := time.Duration(offer.Seconds * float64(time.Second))
	if patience != 0 && (patience < trial.Shortest || patience > trial.Longest) {
		return trial.State{}, fmt.Errorf("a trial of %gs: write %s to %s", offer.Seconds, status.Duration(trial.Shortest), status.Duration(trial.Longest))
	}
	s, err := d.files.try(offer.Files, patience, by, d.kick)
	if err == nil && s.Trial != nil {
		d.kick()
	}
	return s, err
}

// Confirm ends a trial whose files are written.
func (d *Daemon) Confirm(id string) error {
	err := d.files.confirm(id)
	if err == nil {
		d.kick()
	}
	return err
}

// Revert ends a trial and goes back.
func (d *Daemon) Revert(id string) error {
	err := d.files.end(id, reverted)
	if err == nil {
		d.kick()
	}
	return err
}

// Trial says what runs, and what is tried.
func (d *Daemon) Trial() trial.State {
	s := d.files.state()
	c := d.files.current()
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Decided = d.config == c
	s.Problems = append(s.Problems, d.decided...)
	return s
}

// ruleset are the rules of the firewall as decided last; nil: there is none.
func (x *filter) ruleset() *firewall.Ruleset {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rules
}
