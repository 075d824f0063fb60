package dhcpclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	filePrefix, fileSuffix = "dhcp-client-", ".json"
	mostBytes              = 64 << 10
)

// File is where the last lease of an interface is kept in a directory.
func File(dir, link string) string { return filepath.Join(dir, filePrefix+link+fileSuffix) }

// Forget removes the leases of interfaces that are none of these.
func Forget(dir string, links []string) error {
	files, err := filepath.Glob(filepath.Join(dir, filePrefix+"*"+fileSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range files {
		link := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), filePrefix), fileSuffix)
		if !slices.Contains(links, link) {
			errs = append(errs, os.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// load reads the last lease; nil: there is none that is good at that time.
func load(name, link string, now time.Time) (*Lease, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Size() > mostBytes {
		return nil, fmt.Errorf("%s has %d bytes: it is not a lease", name, info.Size())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return parseLease(data, link, now)
}

// parseLease reads what save has written. A lease that is over, or is of another
// interface, is none.
func parseLease(data []byte, link string, now time.Time) (*Lease, error) {
	l := new(Lease)
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("read the last lease: %w", err)
	}
	if l.Link != link || !isHost(l.Addr.Addr()) || !l.Addr.Addr().Is4() || !isHost(l.Server) || l.expired(now) || l.Begun.After(now) {
		return nil, nil
	}
	return l, nil
}

// save keeps a lease, all of it or what was there before; nil: none.
func save(name string, l *Lease) error {
	if l == nil {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".dhcp-client-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // in vain, once it has its name
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
