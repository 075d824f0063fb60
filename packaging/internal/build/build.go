// Package build makes the program that is packaged: which version it is of, and
// how it is compiled so that everybody gets the same bytes.
//
//	release, err := build.Of("..")
//	program, err := release.Program(ctx, "arm64")
package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Architectures are those that there are packages and images for, as Go and
// Debian both call them.
var Architectures = []string{"amd64", "arm64"}

// Release is what is packaged.
type Release struct {
	Root    string    // the directory with the source
	Version string    // as git describes it: v1.2.3, v1.2.3-4-g0123abc, 0123abc, each perhaps with -dirty
	Commit  string    // empty if it is not known
	Time    time.Time // of the commit; every file of a package says so
}

// Of reads the release of the source in root from git, or from VERSION, COMMIT
// and SOURCE_DATE_EPOCH (reproducible-builds.org), which come first: a source
// without git is built with these.
func Of(ctx context.Context, root string) (Release, error) {
	r := Release{Version: os.Getenv("VERSION"), Commit: os.Getenv("COMMIT")}
	var err error
	if r.Root, err = filepath.Abs(root); err != nil {
		return r, err
	}
	for _, value := range []struct {
		to   *string
		args []string
	}{
		{&r.Version, []string{"describe", "--tags", "--always", "--dirty"}},
		{&r.Commit, []string{"rev-parse", "HEAD"}},
	} {
		if *value.to == "" {
			if *value.to, err = r.git(ctx, value.args...); err != nil {
				return r, fmt.Errorf("which version is it? set VERSION, COMMIT and SOURCE_DATE_EPOCH, or build from a clone: %w", err)
			}
		}
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		if epoch, err = r.git(ctx, "show", "--no-patch", "--format=%ct", "HEAD"); err != nil {
			return r, fmt.Errorf("when was it made? set SOURCE_DATE_EPOCH, or build from a clone: %w", err)
		}
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return r, fmt.Errorf("SOURCE_DATE_EPOCH: %q is no number of seconds since 1970", epoch)
	}
	r.Time = time.Unix(seconds, 0).UTC()
	return r, nil
}

func (r Release) git(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, r.Root, nil, "git", args...)
	return strings.TrimSpace(string(out)), err
}

var (
	tagged    = regexp.MustCompile(`^v?(\d+\.\d+\.\d+)(?:-((?:alpha|beta|rc)[.\d]*))?(?:-(\d+)-g([0-9a-f]+))?(-dirty)?$`)
	untagged  = regexp.MustCompile(`^([0-9a-f]{7,40})(-dirty)?$`)
	forDebian = regexp.MustCompile(`^\d[A-Za-z0-9.+~]*$`)
)

// Debian is the version in names of packages, ordered as dpkg orders them: a
// release candidate before its release, a commit after the release that it is
// behind, and one without any release before all.
func (r Release) Debian() (string, error) {
	version := r.Version
	if m := tagged.FindStringSubmatch(version); m != nil {
		version = m[1]
		if m[2] != "" {
			version += "~" + m[2]
		}
		if m[3] != "" {
			version += "+" + m[3] + ".g" + m[4]
		}
		if m[5] != "" {
			version += "+dirty"
		}
	} else if m := untagged.FindStringSubmatch(version); m != nil {
		version = "0.0.0~" + r.Time.Format("20060102.150405") + "." + m[1]
		if m[2] != "" {
			version += "+dirty"
		}
	}
	if !forDebian.MatchString(version) {
		return "", fmt.Errorf("VERSION %s: write v1.2.3, v1.2.3-rc.1 or what git describe says", r.Version)
	}
	return version, nil
}

// Program compiles gatehouse for Linux on an architecture. The same source, Go
// and release give the same bytes in any directory, by any user.
func (r Release) Program(ctx context.Context, architecture string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "gatehouse-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "gatehouse")
	env := []string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + architecture, "GOFLAGS=", "GOEXPERIMENT=",
		"GOAMD64=v1", "GOARM64=v8.0", "GOWORK=off", "GO111MODULE=on",
	}
	// The state of a working directory is no part of it: a source without git
	// has to give the same. The version says the commit.
	const set = " -X e13.dev/gatehouse/internal/cli."
	args := []string{
		"build", "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w" + set + "Version=" + r.Version + set + "Commit=" + r.Commit,
		"-o", file, "./cmd/gatehouse",
	}
	if _, err := run(ctx, r.Root, env, "go", args...); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// Completions returns what gatehouse writes for each shell, by its name. The
// program is one for the machine that this runs on.
func (r Release) Completions(ctx context.Context, program []byte) (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "gatehouse-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "gatehouse")
	if err := os.WriteFile(file, program, 0o700); err != nil {
		return nil, err
	}
	scripts := map[string][]byte{}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if scripts[shell], err = run(ctx, dir, nil, file, "completion", shell); err != nil {
			return nil, err
		}
	}
	return scripts, nil
}

// Manuals returns the manual pages by file name.
func (r Release) Manuals(ctx context.Context) (map[string][]byte, error) {
	dir, err := os.MkdirTemp("", "gatehouse-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if _, err := run(ctx, r.Root, nil, "go", "run", "./internal/cli/gen", "man", dir); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(dir)
	pages := map[string][]byte{}
	for _, name := range names {
		if pages[name.Name()], err = os.ReadFile(filepath.Join(dir, name.Name())); err != nil {
			return nil, err
		}
	}
	if len(pages) == 0 && err == nil {
		err = fmt.Errorf("%s: no manual pages were written", r.Root)
	}
	return pages, err
}

func run(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // our own words
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out, nil
}
