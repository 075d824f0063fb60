// Package laststate keeps the last good snapshot of the cluster in a file:
// versioned, checksummed and written atomically, so that a program that is
// started while the API server is away goes on from it.
//
//	last, err := laststate.Load(dir) // nil: there is none
//	...
//	err = laststate.Save(dir, laststate.State{Source: source, SavedAt: now, Cluster: cluster})
//
// The file is "cluster" in the directory: a line that says what it is
// ("gatehouse-state 1 sha256:..."), and JSON, compressed. It is for the
// administrator's eyes only, as the names of Services and pods may be.
package laststate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	fileName = "cluster"
	newName  = "cluster.new" // while it is written
	asideFor = "cluster.damaged-"
)

// State is what is kept.
type State struct {
	// Source tells clusters apart: the kubeconfig's path and the server in it.
	Source string
	// SavedAt is when the cluster was last known to be so.
	SavedAt     time.Time
	Cluster     edge.Cluster
	Allocations []Allocation
}

// Allocation is an address that a Service has, or had until Left.
type Allocation struct {
	edge.Allocation
	Left time.Time `json:"left,omitzero"` // of one that is held
}

// Load returns the state in a directory, or nil if there is none. A file that is
// damaged, or of a version that is not known, is set aside; the error says where,
// and what is wrong with it.
func Load(dir string) (*State, error) {
	path := filepath.Join(dir, fileName)
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, pathErr // of the file system: nothing is known of the content
	}
	var s *State
	if err == nil {
		s, err = Decode(data)
	}
	if err == nil {
		return s, nil
	}
	aside := filepath.Join(dir, asideFor+strconv.FormatInt(time.Now().Unix(), 10))
	if moveErr := os.Rename(path, aside); moveErr != nil {
		return nil, fmt.Errorf("%s: %w; it cannot be set aside: %w", path, err, moveErr)
	}
	return nil, fmt.Errorf("%s: %w; it was set aside as %s", path, err, aside)
}

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // not to wait at a pipe
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = errTooLarge
	}
	return data, err
}

// Save writes the state: whoever reads finds this one or the one before, also
// after a loss of power. The directory is made if it is not there. There must be
// one writer at a time.
func Save(dir string, s State) error {
	data, err := Encode(s)
	if err != nil {
		return err
	}
	if err := Prepare(dir); err != nil {
		return err
	}
	next := filepath.Join(dir, newName)
	if err := write(next, data); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	if err := os.Rename(next, filepath.Join(dir, fileName)); err != nil {
		return err
	}
	return sync(dir)
}

// Prepare makes the directory if it is not there, and says why nothing could be
// saved in it.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write in", Path: dir, Err: err}
	}
	return nil
}

// write leaves the content on the disk, and not only in the page cache.
func write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// sync makes a rename in the directory last.
func sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
