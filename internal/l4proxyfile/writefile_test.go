package l4proxyfile

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func expect(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	info, err := os.Lstat(path)
	must(t, err)
	if string(got) != content || info.Mode() != mode {
		t.Errorf("%s has %q, mode %s; want %q, %s", path, got, info.Mode(), content, mode)
	}
}

func TestWriteFileKeepsTheMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.yaml")
	changed, err := WriteFile(path, []byte("1"))
	if !changed || err != nil {
		t.Fatal(changed, err)
	}
	expect(t, path, "1", 0o644)
	must(t, os.Chmod(path, 0o600))
	changed, err = WriteFile(path, []byte("2"))
	if !changed || err != nil {
		t.Fatal(changed, err)
	}
	expect(t, path, "2", 0o600)
	if got := names(t, dir); !slices.Equal(got, []string{"out.yaml"}) {
		t.Errorf("directory has %q", got)
	}
}

// TestWriteFileLeavesEqualContentAlone: l4proxy restarts when the time of its
// file changes.
func TestWriteFileLeavesEqualContentAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.yaml")
	must(t, os.WriteFile(path, []byte("1"), 0o600))
	before, err := os.Stat(path)
	must(t, err)
	changed, err := WriteFile(path, []byte("1"))
	if changed || err != nil {
		t.Fatal(changed, err)
	}
	after, err := os.Stat(path)
	must(t, err)
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("written")
	}
}

func TestWriteFileFollowsALink(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	target, path := filepath.Join(other, "real.yaml"), filepath.Join(dir, "out.yaml")
	must(t, os.WriteFile(target, []byte("1"), 0o600))
	must(t, os.Symlink(target, path))
	if changed, err := WriteFile(path, []byte("2")); !changed || err != nil {
		t.Fatal(changed, err)
	}
	expect(t, target, "2", 0o600)
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v %v", info, err)
	}
}

// TestWriteFileRemovesWhatACrashLeft, and nothing else.
func TestWriteFileRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.yaml")
	keep := []string{".other.yaml.tmp-1", ".out.yaml.swp", "out.yaml.tmp-1"}
	for _, name := range append([]string{".out.yaml.tmp-123", ".out.yaml.tmp-"}, keep...) {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600))
	}
	if _, err := WriteFile(path, []byte("1")); err != nil {
		t.Fatal(err)
	}
	want := append(keep, "out.yaml")
	slices.Sort(want)
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("directory has %q, want %q", got, want)
	}
}

func TestWriteFileLeavesNothingBehindWhenItFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.yaml")
	must(t, os.Mkdir(path, 0o700)) // cannot be renamed over
	changed, err := WriteFile(path, []byte("1"))
	if changed || err == nil || !strings.HasPrefix(err.Error(), "replace "+path+": rename ") {
		t.Errorf("changed %t, error %v", changed, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"out.yaml"}) {
		t.Errorf("directory has %q", got)
	}
	changed, err = WriteFile(filepath.Join(dir, "missing", "out.yaml"), []byte("1"))
	if changed || err == nil {
		t.Errorf("changed %t, error %v", changed, err)
	}
}

// TestReadersSeeOneContentOrTheOther at any moment.
func TestReadersSeeOneContentOrTheOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.yaml")
	contents := [][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if _, err := WriteFile(path, contents[0]); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
				t.Errorf("read %d bytes, %v", len(got), err)
				return
			}
		}
	}()
	for i := range 50 {
		if _, err := WriteFile(path, contents[(i+1)%2]); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
}
