package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// refuseToOverwrite says no to a file that is there, unless that is meant.
func refuseToOverwrite(path string, force bool) error {
	if path == "" || force {
		return nil
	}
	switch _, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s is there already; give another file with -o, or write over it with --force", path)
}

// mayWrite says no to a file that writeNew could not write.
func mayWrite(path string, force bool) error {
	if path == "" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory; give a file with -o", path)
	}
	if err := refuseToOverwrite(path, force); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".gatehouse-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Unwrap(err))
	}
	return errors.Join(temp.Close(), os.Remove(temp.Name()))
}

// writeNew writes a file that is there as a whole or not at all, with exactly
// the mode. What a link at its place points to stays as it is.
func writeNew(path string, data []byte, mode fs.FileMode, force bool) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".gatehouse-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }() // unless it has moved
	_, err = temp.Write(data)
	err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := refuseToOverwrite(path, force); err != nil {
		return err // made meanwhile
	}
	return os.Rename(temp.Name(), path)
}
