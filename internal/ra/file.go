package ra

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fileName = "advertised-prefixes.json"
	newName  = fileName + ".new"
	maxSize  = 1 << 20
	// maxPrefixes is how many an interface had at most (mostPrefixes is less).
	maxPrefixes = 32
)

// Load reads what Save has written. That there is nothing is no error. A file that
// cannot be used is one, and is replaced by the next Save.
func Load(dir string) (Told, error) {
	f, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	told, err := decodeTold(data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return told, nil
}

// decodeTold reads a file as far as it says what can have been told: prefixes of
// machines, for two hours at most from now on, since who was told is not asked.
func decodeTold(data []byte, now time.Time) (Told, error) {
	if len(data) > maxSize {
		return nil, errors.New("it is too large")
	}
	var all Told
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	for device, prefixes := range all {
		if len(prefixes) > maxPrefixes {
			return nil, fmt.Errorf("%d prefixes on %s", len(prefixes), device)
		}
		for p, until := range prefixes {
			if !CanHave(p) {
				return nil, fmt.Errorf("%s is not a prefix that machines have addresses in", p)
			}
			if !until.After(now) {
				delete(prefixes, p)
			} else if latest := now.Add(twoHours); until.After(latest) {
				prefixes[p] = latest
			}
		}
		if len(prefixes) == 0 {
			delete(all, device)
		}
	}
	return all, nil
}

// CanHave says whether machines can make themselves addresses in a network: it is
// of 64 bits, and not for something else.
func CanHave(p netip.Prefix) bool {
	a := p.Addr()
	return a.Is6() && !a.Is4In6() && p.Bits() == 64 && p == p.Masked() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.IsUnspecified() && !a.IsLoopback()
}

// Save writes what was told: whoever reads finds this or what was there before.
// There must be one writer at a time.
func Save(dir string, told Told) error {
	data, err := json.Marshal(told)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	next := filepath.Join(dir, newName)
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, filepath.Join(dir, fileName))
}
