package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Where to write is what the daemon says, who may have fewer rights than we have.
// So only what is a file of gatehouse already is written over, and it stays one:
// what config.Parse has accepted.
var (
	version    = regexp.MustCompile(`(?m)^[ \t{]*["']?apiVersion["']?[ \t]*:[ \t]*["']?(gatehouse\.e13\.dev/v1|v1)["']?[ \t]*(,|#|}|$)`)
	kubernetes = regexp.MustCompile(`(?m)^[ \t{]*["']?kind["']?[ \t]*:`)
)

func isOurs(data []byte) bool {
	found := version.FindSubmatch(data)
	// "v1" is l4proxy's, and Kubernetes'.
	return found != nil && (string(found[1]) != "v1" || !kubernetes.Match(data))
}

// mayReplace says what is in the way of replace.
func mayReplace(path string) error {
	real, _, err := replaceable(path)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(real), ".gatehouse-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Unwrap(err))
	}
	return errors.Join(temp.Close(), os.Remove(temp.Name()))
}

// replaceable finds the file that a path leads to: a link stays where it is.
func replaceable(path string) (real string, info fs.FileInfo, err error) {
	if real, err = filepath.EvalSymlinks(path); err != nil {
		return "", nil, fmt.Errorf("the file of the daemon is not here: %w", err)
	}
	// A ConfigMap or Secret that kubelet has mounted: FILE -> ..data/FILE, ..data -> ..2026_01_01.
	for dir := filepath.Dir(real); dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if strings.HasPrefix(filepath.Base(dir), "..") {
			return "", nil, fmt.Errorf("%s is of a ConfigMap, and cannot be written here; change that, such as with kubectl apply", path)
		}
	}
	if isMount(real) {
		return "", nil, fmt.Errorf("%s is mounted by itself, so that it cannot be replaced as a whole; change it where it comes from, or mount its directory", path)
	}
	if info, err = os.Stat(real); err != nil {
		return "", nil, err
	}
	if !info.Mode().IsRegular() {
		return "", nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := os.ReadFile(real)
	if err != nil {
		return "", nil, err
	}
	if !isOurs(data) {
		return "", nil, fmt.Errorf("%s is no configuration of gatehouse, which has a line apiVersion: gatehouse.e13.dev/v1; it is not written over", path)
	}
	return real, info, nil
}

// isMount says whether something is mounted at a file, as containers do.
func isMount(path string) bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false // rename says so, then
	}
	defer f.Close()
	escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(path)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && fields[4] == escaped {
			return true
		}
	}
	return false
}

// replace gives a file of the daemon new content: the old one or the new one is
// there, whatever happens, with the mode and the owner that it had.
func replace(path string, data []byte) error {
	real, info, err := replaceable(path)
	if err != nil {
		return err
	}
	if !isOurs(data) {
		return fmt.Errorf("%s: what would be written is no configuration of gatehouse, which has a line apiVersion: gatehouse.e13.dev/v1", path)
	}
	temp, err := os.CreateTemp(filepath.Dir(real), ".gatehouse-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Unwrap(err))
	}
	defer func() { _ = os.Remove(temp.Name()) }() // unless it has moved
	_, err = temp.Write(data)
	if s, ok := info.Sys().(*syscall.Stat_t); ok && err == nil {
		// Before the mode: it may be open to a group.
		err = temp.Chown(int(s.Uid), int(s.Gid))
	}
	err = errors.Join(err, temp.Chmod(info.Mode().Perm()), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), real)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// So that the name outlives a loss of power, too.
	dir, err := os.Open(filepath.Dir(real))
	if err != nil {
		return nil //nolint:nilerr // the file is written; its directory can be used and not read
	}
	return errors.Join(dir.Sync(), dir.Close())
}
