package l4proxyfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// WriteFile replaces the file at path in one step, so that whoever reads it
// gets the old content or the new, also after a crash. It keeps the mode of a
// file that is there, follows a link to it, and does nothing when the content
// is the same. It says whether the content was new.
func WriteFile(path string, data []byte) (changed bool, err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	mode := fs.FileMode(0o644)
	var owner *syscall.Stat_t
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		owner, _ = info.Sys().(*syscall.Stat_t)
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			return false, nil
		}
	}
	removeLeftovers(path)
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix(path)+"*")
	if err != nil {
		return false, fmt.Errorf("replace %s: %w", path, err)
	}
	if err := fill(temp, data, mode, owner); err != nil {
		return false, errors.Join(fmt.Errorf("replace %s: %w", path, err), os.Remove(temp.Name()))
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return false, errors.Join(fmt.Errorf("replace %s: %w", path, err), os.Remove(temp.Name()))
	}
	// Without it the name may lead to the old file after a power failure.
	if err := syncDir(filepath.Dir(path)); err != nil {
		return true, fmt.Errorf("replace %s: %w", path, err)
	}
	return true, nil
}

// fill writes and closes the temporary file. The data has to be on disk before
// the name is, or a power failure leaves an empty file (ext4 without
// auto_da_alloc, xfs).
func fill(temp *os.File, data []byte, mode fs.FileMode, owner *syscall.Stat_t) error {
	_, err := temp.Write(data)
	if err == nil && owner != nil && os.Geteuid() == 0 {
		err = temp.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	return errors.Join(err, temp.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func tempPrefix(path string) string { return "." + filepath.Base(path) + ".tmp-" }

// removeLeftovers removes what a crash between writing and renaming left. A
// second writer of the same file loses its temporary file by it, and has its
// rename fail, which is better than files that nobody ever removes.
func removeLeftovers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // CreateTemp will say so
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix(path)) && e.Type().IsRegular() {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name())) // tried again next time
		}
	}
}
