package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// stateRoot holds a directory per lab. It is on a tmpfs because etcd's writes would otherwise wear the disk, and
// because small machines page out idle programs that live on one: then a lab answers late after every pause.
const stateRoot = "/dev/shm/gatehouse-lab"

// names have no dash: "ghlab-a-" must never be the beginning of another lab's namespaces.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

// record is what lab.json holds: all that another process needs to know to use or remove a lab.
type record struct {
	Created    time.Time    `json:"created"`
	Ready      bool         `json:"ready"` // Up has come to its end
	Options    Options      `json:"options"`
	Components []*component `json:"components"`
	// Attached are interfaces that hosts got later; Cuts the pairs of switch ports that Cut has parted, by network.
	Attached []attachment        `json:"attached,omitempty"`
	Cuts     map[string][]string `json:"cuts,omitempty"`
}

func checkName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("lab name %q: want a lower-case letter, then up to 19 lower-case letters or digits", name)
	}
	return nil
}

// lock takes the lab's lock, or says who could not be waited for. unlock also takes the file away: a removed lab
// leaves nothing.
func lock(name string, limit time.Duration) (unlock func(), err error) {
	path := filepath.Join(stateRoot, name+".lock")
	deadline := time.Now().Add(limit)
	for {
		if err := os.MkdirAll(stateRoot, 0o755); err != nil {
			return nil, err
		}
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, unix.ENOENT) {
			continue // the last other lab has just removed the directory
		}
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Whoever held it may have removed the file while we opened it; then the lock we hold means nothing.
			var ours, there unix.Stat_t
			if unix.Fstat(fd, &ours) == nil && unix.Stat(path, &there) == nil && ours.Ino == there.Ino {
				return func() {
					_ = os.Remove(path)
					_ = os.Remove(stateRoot) // refused while anything is in it, which is what we want
					unix.Close(fd)
				}, nil
			}
		}
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lab %q is being changed by another process", name)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *Site) load() error {
	data, err := os.ReadFile(s.path("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotUp, s.name)
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("%s: %w", s.path("lab.json"), err)
	}
	s.record = r
	return nil
}

// saveLocked replaces lab.json in one step, so that a reader never sees half of one.
func (s *Site) saveLocked() error {
	data, err := json.MarshalIndent(s.record, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(s.path("lab.json"), data, 0o600)
}

func writeFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(tmp.Name(), mode)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

// Names lists the labs that have state on this machine, up or half up, and those of which only namespaces are left.
func Names() ([]string, error) {
	seen := map[string]bool{}
	var names []string
	add := func(n string) {
		if validName.MatchString(n) && !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	for _, dir := range []string{stateRoot, netnsDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			switch {
			case dir == netnsDir:
				if m := nsLab.FindStringSubmatch(e.Name()); m != nil {
					add(m[1])
				}
			case e.IsDir():
				add(e.Name())
			}
		}
	}
	return names, nil
}

var nsLab = regexp.MustCompile(`^ghlab-([a-z][a-z0-9]{0,19})-`)
