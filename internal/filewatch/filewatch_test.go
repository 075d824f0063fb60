package filewatch

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	settle = 50 * time.Millisecond
	// patience is for a machine that is busy with other tests.
	patience = 20 * time.Second
	// never is a poll interval for tests in which notifications have to do.
	never = time.Hour
)

// watch runs a watcher of files in a directory of its own.
func watch(t *testing.T, poll time.Duration, paths ...string) *Watcher {
	t.Helper()
	w := New(paths, settle, slog.New(slog.DiscardHandler))
	w.poll = poll
	w.Read()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return w
}

// next waits for contents, each printed as its text or "!".
func next(t *testing.T, w *Watcher) string {
	t.Helper()
	select {
	case contents := <-w.Changed():
		var texts []string
		for _, c := range contents {
			if c.Err != nil {
				texts = append(texts, "!")
			} else {
				texts = append(texts, string(c.Data))
			}
		}
		return strings.Join(texts, "|")
	case <-time.After(patience):
		t.Fatal("no change noticed")
		return ""
	}
}

func expect(t *testing.T, w *Watcher, want string) {
	t.Helper()
	if got := next(t, w); got != want {
		t.Fatalf("got %.100q, want %.100q", got, want)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAllFilesAreHandedOutWhenOneIsWritten(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "1")
	write(t, b, "2")
	w := watch(t, never, a, b)
	write(t, b, "3")
	expect(t, w, "1|3")
	write(t, a, "4")
	expect(t, w, "4|3")
}

func TestEditorsReplaceFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "1")
	w := watch(t, never, path)
	for i := range 3 {
		text := strconv.Itoa(i + 2)
		write(t, path+".swp", text)
		must(t, os.Rename(path+".swp", path))
		expect(t, w, text)
	}
}

// TestConfigMapsSwapALink as the kubelet does it (AtomicWriter): a new
// directory, a new link, renamed over the old one, the old directory removed.
func TestConfigMapsSwapALink(t *testing.T) {
	dir := t.TempDir()
	version := func(n int) {
		data := filepath.Join(dir, "..2026_"+strconv.Itoa(n))
		must(t, os.Mkdir(data, 0o700))
		write(t, filepath.Join(data, "a"), strconv.Itoa(n))
		must(t, os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		must(t, os.RemoveAll(filepath.Join(dir, "..2026_"+strconv.Itoa(n-1))))
	}
	version(1)
	path := filepath.Join(dir, "a")
	must(t, os.Symlink("..data/a", path))
	w := watch(t, never, path)
	for n := 2; n < 5; n++ {
		version(n)
		expect(t, w, strconv.Itoa(n))
	}
}

func TestLinksAreFollowedToOtherDirectories(t *testing.T) {
	from, between, to := t.TempDir(), t.TempDir(), t.TempDir()
	target, link, path := filepath.Join(to, "a"), filepath.Join(between, "a"), filepath.Join(from, "a")
	write(t, target, "1")
	must(t, os.Symlink(target, link))
	must(t, os.Symlink(link, path))
	w := watch(t, never, path)
	write(t, target, "2")
	expect(t, w, "2")
	other := filepath.Join(to, "b")
	write(t, other, "3")
	must(t, os.Symlink(other, link+".new"))
	must(t, os.Rename(link+".new", link))
	expect(t, w, "3")
}

func TestAFileMayGoAndComeBack(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "1")
	w := watch(t, never, path)
	must(t, os.Remove(path))
	expect(t, w, "!")
	write(t, path, "1")
	expect(t, w, "1")
}

func TestADirectoryMayComeLater(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x", "y")
	path := filepath.Join(dir, "a")
	w := New([]string{path}, settle, slog.New(slog.DiscardHandler))
	if c := w.Read(); !errors.Is(c[0].Err, fs.ErrNotExist) {
		t.Fatalf("%v", c[0].Err)
	}
	w = watch(t, never, path)
	must(t, os.MkdirAll(dir, 0o700))
	write(t, path, "1")
	expect(t, w, "1")
	must(t, os.RemoveAll(filepath.Dir(dir)))
	expect(t, w, "!")
	must(t, os.MkdirAll(dir, 0o700))
	write(t, path, "2")
	expect(t, w, "2")
}

func TestADirectoryMayBeReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "conf", "a")
	must(t, os.Mkdir(filepath.Join(dir, "conf"), 0o700))
	write(t, path, "1")
	w := watch(t, 100*time.Millisecond, path)
	must(t, os.Mkdir(filepath.Join(dir, "new"), 0o700))
	write(t, filepath.Join(dir, "new", "a"), "2")
	must(t, os.Rename(filepath.Join(dir, "conf"), filepath.Join(dir, "old")))
	must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "conf")))
	for next(t, w) != "2" { // "!" between the renames, if it was that slow
	}
	write(t, path, "3")
	expect(t, w, "3")
}

// TestHalfWrittenFilesAreNotHandedOut: the file grows for longer than it takes
// to settle, and is handed out when it has stopped growing.
func TestHalfWrittenFilesAreNotHandedOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "old")
	w := watch(t, never, path)
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	grow := time.NewTicker(settle / 10)
	defer grow.Stop()
	for range 30 {
		if _, err := f.WriteString("line\n"); err != nil {
			t.Fatal(err)
		}
		<-grow.C
	}
	expect(t, w, strings.Repeat("line\n", 30))
}

// TestABusyDirectoryHoldsNothingUp: a log file beside the configuration.
func TestABusyDirectoryHoldsNothingUp(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "1")
	w := watch(t, never, path)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		busy := time.NewTicker(settle / 50)
		defer busy.Stop()
		for {
			select {
			case <-stop:
				return
			case <-busy.C:
				_ = os.WriteFile(filepath.Join(dir, "log"), []byte(time.Now().String()), 0o600)
			}
		}
	}()
	write(t, path, "2")
	expect(t, w, "2")
	close(stop)
	<-stopped
}

func TestWhatChangesNothingIsNotHandedOut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "1")
	w := watch(t, never, path)
	write(t, filepath.Join(dir, "b"), "1")
	must(t, os.Chmod(path, 0o640))
	write(t, path, "1")
	select {
	case c := <-w.Changed():
		t.Errorf("handed out %q", c[0].Data)
	case <-time.After(10 * settle): // not a wait for something: nothing is to happen
	}
	write(t, path, "2")
	expect(t, w, "2")
}

func TestReloadHandsOutWhatHasNotChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "1")
	w := watch(t, never, path)
	w.Reload()
	expect(t, w, "1")
	w.Reload()
	expect(t, w, "1")
}

// TestChangesBetweenReadAndRunAreNoticed: starting takes time.
func TestChangesBetweenReadAndRunAreNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	write(t, path, "1")
	w := New([]string{path}, settle, slog.New(slog.DiscardHandler))
	w.poll = never
	w.Read()
	write(t, path, "2")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	expect(t, w, "2")
	cancel()
	<-done
}

// TestFilesArePolledWithoutNotifications: on file systems that have none.
func TestFilesArePolledWithoutNotifications(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "1")
	// A second name of the file, in a directory that nobody watches.
	other := filepath.Join(t.TempDir(), "a")
	must(t, os.Link(path, other))
	w := watch(t, 100*time.Millisecond, path)
	write(t, other, "2")
	expect(t, w, "2")
}

// TestASlowReceiverGetsTheLatest and not what was true some time ago.
func TestASlowReceiverGetsTheLatest(t *testing.T) {
	w := New([]string{"a"}, settle, slog.New(slog.DiscardHandler))
	w.publish([]Content{{Path: "a", Data: []byte("1")}})
	w.publish([]Content{{Path: "a", Data: []byte("2")}})
	expect(t, w, "2")
}

func TestWhatIsNoFileIsAnError(t *testing.T) {
	dir := t.TempDir()
	pipe, big := filepath.Join(dir, "pipe"), filepath.Join(dir, "big")
	must(t, syscall.Mkfifo(pipe, 0o600))
	f, err := os.Create(big)
	must(t, err)
	must(t, f.Truncate(maxSize+1))
	must(t, f.Close())
	contents := New([]string{dir, pipe, big}, settle, slog.New(slog.DiscardHandler)).Read()
	want := []string{
		"read " + dir + ": it is not a regular file, and cannot be read again and again",
		"read " + pipe + ": it is not a regular file, and cannot be read again and again",
		"it is larger than 16 MiB",
	}
	for i, c := range contents {
		if c.Err == nil || c.Err.Error() != want[i] || c.Data != nil {
			t.Errorf("got %v with %d bytes, want %q", c.Err, len(c.Data), want[i])
		}
	}
}
