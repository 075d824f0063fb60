// Package leases keeps the leases of a DHCP server on disk, so that none is
// forgotten that a machine was told of, whatever happens to this program or to
// the power. What a lease means is no matter of it.
//
//	store, leases, err := leases.Open(dir)
//	go store.Run(ctx)
//	store.Commit(changes, func(err error) { /* tell the machine, if err is nil */ })
//
// The file is "leases" in the directory: a line that says what it is, and a line
// for each change, with its checksum. Changes are appended, and are on the disk
// before somebody is told of them; those that come while the disk is busy are
// written together. A file with many lines that no longer matter is written anew
// and put in the place of the old one.
package leases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	fileName = "leases"
	newName  = "leases.new" // while it is written
	lockName = "leases.lock"

	// The file is written anew when it has this many lines more than twice those
	// that matter.
	slack = 1000
	// More than all addresses that a server may give (config.MaxLeases, for each
	// zone) take, many times over.
	maxSize = 1 << 30
)

// ErrLocked is why a store cannot be opened that another process has.
var ErrLocked = errors.New("another process has it")

// errClosed is why a change is not kept.
var errClosed = errors.New("the store is closed")

// disk is where files are.
type disk interface {
	// create makes an empty file.
	create(name string) (file, error)
	// replace gives a file another name, which lasts when it returns.
	replace(from, to string) error
}

// file is one that is written.
type file interface {
	io.Writer
	Sync() error // what is written lasts when it returns
	Close() error
}

// commit is what is to be on the disk before somebody is told.
type commit struct {
	changes []edge.Lease
	done    func(error)
}

// Store keeps leases by their address.
type Store struct {
	disk   disk
	lock   *os.File
	damage string

	wake chan struct{}

	mu     sync.Mutex
	queue  []commit
	closed bool

	writing sync.Mutex // one writes at a time; it guards what follows
	all     map[netip.Addr]edge.Lease
	log     file // nil: it has to be written anew
	lines   int
	buffer  []byte
	syncs   int // how often the disk was waited for
}

// Open opens the store in a directory, which is made if it is not there, and
// returns the leases that it has. Only one process can have it open: see
// ErrLocked.
func Open(dir string) (*Store, []edge.Lease, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	s := &Store{disk: directory(dir), lock: lock, wake: make(chan struct{}, 1)}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", lock.Name(), err), lock.Close())
	}
	data, err := read(filepath.Join(dir, fileName))
	var leases []edge.Lease
	if err == nil {
		leases, err = s.start(data)
	}
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return s, leases, nil
}

// start takes what a file holds, and begins a new one: nothing is appended to
// half a line.
func (s *Store) start(data []byte) ([]edge.Lease, error) {
	content, err := Decode(data)
	if err != nil {
		return nil, err
	}
	if content.Damaged > 0 {
		s.damage = fmt.Sprintf("%d lines of the file of leases are damaged", content.Damaged)
	}
	s.all = make(map[netip.Addr]edge.Lease, len(content.Leases))
	for _, l := range content.Leases {
		s.all[l.Addr] = l
	}
	return content.Leases, s.rewrite()
}

// Damage says what was lost of the file when it was opened; empty: nothing that
// anybody was told of.
func (s *Store) Damage() string { return s.damage }

// Commit keeps leases; one without Expires is forgotten. When they are on the
// disk, or cannot be kept, done is called, in the order of commits, from Run. It
// does not wait for the disk.
func (s *Store) Commit(changes []edge.Lease, done func(error)) {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.queue = append(s.queue, commit{changes, done})
	}
	s.mu.Unlock()
	if closed {
		done(errClosed)
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
			s.flush()
		}
	}
}

// Close writes what is left and leaves the file to others.
func (s *Store) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.flush()
	s.writing.Lock()
	defer s.writing.Unlock()
	var err error
	if s.log != nil {
		err, s.log = s.log.Close(), nil
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// flush writes all that has come so far.
func (s *Store) flush() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	if len(queue) == 0 {
		return
	}
	err := s.write(queue)
	for _, c := range queue {
		c.done(err)
	}
}

// write appends changes. After a failure nothing is known of what the disk has of
// the file (an error of fsync is told once, and the pages count as clean from then
// on), so that the next time all is written anew.
func (s *Store) write(queue []commit) error {
	s.buffer = s.buffer[:0]
	for _, c := range queue {
		for _, l := range c.changes {
			s.buffer = appendLine(s.buffer, l)
			s.lines++
			if l.Expires.IsZero() {
				delete(s.all, l.Addr)
			} else {
				s.all[l.Addr] = l
			}
		}
	}
	if s.log == nil || s.lines > 2*len(s.all)+slack {
		return s.rewrite()
	}
	_, err := s.log.Write(s.buffer)
	if err == nil {
		s.syncs++
		err = s.log.Sync()
	}
	if err != nil {
		_ = s.log.Close()
		s.log = nil
	}
	return err
}

// rewrite puts a new file in the place of the old one.
func (s *Store) rewrite() error {
	if s.log != nil {
		_ = s.log.Close()
		s.log = nil
	}
	data := []byte(header)
	for _, l := range sorted(s.all) {
		data = appendLine(data, l)
	}
	f, err := s.disk.create(newName)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		s.syncs++
		err = f.Sync()
	}
	if err == nil {
		err = s.disk.replace(newName, fileName)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	s.log, s.lines = f, len(s.all)
	return nil
}

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // not to wait at a pipe
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = &fs.PathError{Op: "read", Path: path, Err: unix.EFBIG}
	}
	return data, err
}

// directory is a disk.
type directory string

func (d directory) create(name string) (file, error) {
	return os.OpenFile(filepath.Join(string(d), name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
}

func (d directory) replace(from, to string) error {
	if err := os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to)); err != nil {
		return err
	}
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
