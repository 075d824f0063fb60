// Package image makes the container image: gatehouse, the nft that it runs, and
// what that needs, from packages of Debian that a lock file names by checksum.
//
//	lock, err := image.ReadLock("image.lock")
//	packages, err := lock.Fetch(ctx, "arm64", cache, mirrors)
//	img, err := image.Build(packages, tree, about)
package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Locked is one package of Debian as it was when the lock was written.
type Locked struct {
	Architecture string // that of the image, also for packages of "all"
	Name         string
	Version      string
	Path         string // below the mirror's root
	Size         int64  // bytes
	SHA256       string // hexadecimal
}

// Lock is what images are made of.
type Lock []Locked

// ReadLock reads a lock file: a line for each package, "#" for comments.
func ReadLock(file string) (Lock, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lock Lock
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 6 {
			return nil, fmt.Errorf("%s:%d: %d words; write ARCHITECTURE NAME VERSION SHA256 SIZE PATH", file, n, len(f))
		}
		size, err := strconv.ParseInt(f[4], 10, 64)
		if sum, bad := hex.DecodeString(f[3]); err != nil || bad != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("%s:%d: a checksum of 64 hexadecimal digits and a size are wanted; have %s %s", file, n, f[3], f[4])
		}
		lock = append(lock, Locked{Architecture: f[0], Name: f[1], Version: f[2], SHA256: f[3], Size: size, Path: f[5]})
	}
	return lock, lines.Err()
}

// Mirrors are the roots of archives that this machine has packages from, as apt
// has them, or those in DEBIAN_MIRRORS.
func Mirrors(ctx context.Context) ([]string, error) {
	if set := strings.Fields(os.Getenv("DEBIAN_MIRRORS")); len(set) > 0 {
		return set, nil
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(CREATED_BY) $(REPO_URI)").Output()
	if err != nil {
		return nil, fmt.Errorf("which mirrors are there? apt does not say: %w; set DEBIAN_MIRRORS to the URLs of a mirror of debian and one of debian-security", err)
	}
	var mirrors []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "Packages" && strings.HasPrefix(f[1], "http") && !slices.Contains(mirrors, f[1]) {
			mirrors = append(mirrors, f[1])
		}
	}
	return mirrors, nil
}

// Fetch returns the packages of one architecture, from the directory cache or
// else from a mirror. Whatever was sent has to have the checksum of the lock.
func (l Lock) Fetch(ctx context.Context, architecture, cache string, mirrors []string) (map[string][]byte, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // packages are public
		return nil, err
	}
	packages := map[string][]byte{}
	for _, p := range l {
		if p.Architecture != architecture {
			continue
		}
		file := filepath.Join(cache, p.SHA256+".deb")
		data, err := os.ReadFile(file)
		if err != nil || !p.is(data) {
			if data, err = p.download(ctx, mirrors); err != nil {
				return nil, err
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				return nil, err
			}
		}
		packages[p.Name] = data
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("image: the lock has no packages for %s", architecture)
	}
	return packages, nil
}

func (p Locked) is(data []byte) bool {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]) == p.SHA256
}

func (p Locked) download(ctx context.Context, mirrors []string) ([]byte, error) {
	var problems []error
	for _, mirror := range mirrors {
		url := strings.TrimRight(mirror, "/") + "/" + p.Path
		data, err := get(ctx, url, p.Size)
		if err == nil && !p.is(data) {
			err = errors.New("it has another checksum than the lock says")
		}
		if err == nil {
			return data, nil
		}
		problems = append(problems, fmt.Errorf("%s: %w", url, err))
	}
	return nil, fmt.Errorf("%s %s (%s) is at none of the mirrors, which keep the newest only: write the lock anew with 'make image-lock', and look at what it changes; or name an archive that keeps all in DEBIAN_MIRRORS\n%w",
		p.Name, p.Version, p.Architecture, errors.Join(problems...))
}

func get(ctx context.Context, url string, size int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, size+1))
}
