package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

// echo is a backend that says its name and then what it is told.
func echo(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, name)
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr().String()
}

// freeAddr is not one of the ports that clients get (ip_local_port_range): one
// of those may be taken, by any test that runs at the same time, between this
// and its use.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := 12000 + rand.IntN(20000)
		if _, given := givenPorts.LoadOrStore(port, true); given {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}

var givenPorts sync.Map // each once, or a test could have one twice

// configFor is a file with frontends as pairs of listen and backend addresses.
func configFor(admin string, frontends ...string) string {
	text := "apiVersion: gatehouse.e13.dev/v1\nadmin: {listen: \"" + admin + "\"}\nfrontends:\n"
	for i := 0; i < len(frontends); i += 2 {
		text += fmt.Sprintf("  - {name: f%d, listen: %q, health: {interval: 100ms, timeout: 1s}, backends: [{address: %q}]}\n", i/2, frontends[i], frontends[i+1])
	}
	return text
}

// start runs a daemon until the test ends.
func start(t *testing.T, files ...string) *Daemon {
	t.Helper()
	d := New(Options{Files: files, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
	})
	return d
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// dial connects and returns the backend's name.
func dial(address string) (conn net.Conn, name string, err error) {
	conn, err = net.Dial("tcp", address)
	if err != nil {
		return nil, "", err
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	name, err = bufio.NewReader(conn).ReadString('\n')
	return conn, strings.TrimSpace(name), err
}

func serves(address, want string) func() error {
	return func() error {
		conn, name, err := dial(address)
		if err != nil {
			return err
		}
		conn.Close()
		if name != want {
			return fmt.Errorf("%s is served by %s, want %s", address, name, want)
		}
		return nil
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Promise 4: whichever way a file is changed, what it did not change is not
// touched: the listener stays open, and connections live on.
func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	one, two := echo(t, "one"), echo(t, "two")
	kept, moved, admin := freeAddr(t), freeAddr(t), freeAddr(t)
	before, after := configFor(admin, kept, one, moved, one), configFor(admin, kept, one, moved, two)

	for name, how := range map[string]struct {
		prepare func(t *testing.T, dir string) (file string)
		change  func(t *testing.T, dir, file string)
	}{
		"written in place": {
			func(t *testing.T, dir string) string {
				file := filepath.Join(dir, "gatehouse.yaml")
				write(t, file, before)
				return file
			},
			func(t *testing.T, _, file string) { write(t, file, after) },
		},
		"renamed over, as editors do": {
			func(t *testing.T, dir string) string {
				file := filepath.Join(dir, "gatehouse.yaml")
				write(t, file, before)
				return file
			},
			func(t *testing.T, dir, file string) {
				write(t, filepath.Join(dir, ".new"), after)
				if err := os.Rename(filepath.Join(dir, ".new"), file); err != nil {
					t.Fatal(err)
				}
			},
		},
		"symlink swapped, as ConfigMaps do": {
			func(t *testing.T, dir string) string {
				mkdir(t, filepath.Join(dir, "..v1"))
				write(t, filepath.Join(dir, "..v1", "gatehouse.yaml"), before)
				link(t, "..v1", filepath.Join(dir, "..data"))
				link(t, filepath.Join("..data", "gatehouse.yaml"), filepath.Join(dir, "gatehouse.yaml"))
				return filepath.Join(dir, "gatehouse.yaml")
			},
			func(t *testing.T, dir, _ string) {
				mkdir(t, filepath.Join(dir, "..v2"))
				write(t, filepath.Join(dir, "..v2", "gatehouse.yaml"), after)
				link(t, "..v2", filepath.Join(dir, "..data_tmp"))
				if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := how.prepare(t, dir)
			d := start(t, file)
			eventually(t, "both frontends serve", serves(moved, "one"))
			conn, _, err := dial(kept)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			loaded := d.Status().Config.LoadedAt

			how.change(t, dir, file)
			eventually(t, "the changed frontend has its new backend", serves(moved, "two"))
			if !d.Status().Config.LoadedAt.After(loaded) {
				t.Error("the status does not say that the configuration was read")
			}
			for _, f := range d.Status().Frontends {
				if f.Name == "f0" && (f.Accepted != 1 || f.Active != 1) {
					t.Errorf("the frontend that did not change was touched: it counts %d connections, %d now; want 1 and 1", f.Accepted, f.Active)
				}
			}
			fmt.Fprintln(conn, "still there?")
			if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "still there?\n" {
				t.Errorf("the connection did not live on: %q %v", line, err)
			}
		})
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// Promise 8: a bad file changes nothing, is reported everywhere, and a good one
// after it is taken. SIGHUP asks for a look.
func TestBadFileKeepsTheLastGoodOne(t *testing.T) {
	one, two := echo(t, "one"), echo(t, "two")
	front, admin := freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, front, one))
	d := start(t, file)
	eventually(t, "served", serves(front, "one"))

	for name, bad := range map[string]string{
		"a typo":            strings.Replace(configFor(admin, front, two), "backends", "backend", 1),
		"half of it":        configFor(admin, front, two)[:90],
		"nothing":           "",
		"not a text at all": "\x00\x01\x02",
	} {
		write(t, file, bad)
		eventually(t, name+" is reported", func() error {
			s := d.Status()
			if s.Config.Current || len(s.Config.Problems) == 0 || s.Config.Problems[0].Pos.File != file || len(s.Problems) == 0 {
				return fmt.Errorf("the status says %+v", s.Config)
			}
			return nil
		})
		if metrics := fetch(t, "http://"+admin+"/metrics"); !strings.Contains(metrics, "gatehouse_config_last_reload_successful 0\n") {
			t.Errorf("%s: the metric does not say so", name)
		}
		if page := fetch(t, "http://"+admin+"/"); !strings.Contains(page, "on disk is bad") {
			t.Errorf("%s: the page does not say so", name)
		}
		// It is reported before it could do harm: look for a while.
		for range 20 {
			<-time.After(10 * time.Millisecond)
			if err := serves(front, "one")(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		write(t, file, configFor(admin, front, one))
		eventually(t, "well again", func() error {
			if s := d.Status(); !s.Config.Current || len(s.Config.Problems) > 0 {
				return fmt.Errorf("the status says %+v", s.Config)
			}
			return nil
		})
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a missing file is reported", func() error {
		if s := d.Status(); s.Config.Current {
			return errors.New("it is not")
		}
		return nil
	})
	if err := serves(front, "one")(); err != nil {
		t.Error(err)
	}
}

// Files merge: what one of them brings goes with it, and the rest stays.
func TestSeveralFilesMerge(t *testing.T) {
	one := echo(t, "one")
	dir, first, second, admin := t.TempDir(), freeAddr(t), freeAddr(t), freeAddr(t)
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, configFor(admin, first, one))
	write(t, b, "apiVersion: v1\nfrontends: [{bind: \""+second+"\", backends: [{address: \""+one+"\"}]}]\n")
	d := start(t, a, b)
	eventually(t, "the gatehouse file", serves(first, "one"))
	eventually(t, "the l4proxy file", serves(second, "one"))
	write(t, b, "apiVersion: v1\nfrontends: []\n")
	eventually(t, "closed", func() error {
		if conn, err := net.Dial("tcp", second); err == nil {
			conn.Close()
			return errors.New("still open")
		}
		return nil
	})
	if s := d.Status(); !s.Config.Current {
		t.Errorf("an empty list of frontends is a problem: %v", s.Config.Problems)
	}
	if err := serves(first, "one")(); err != nil {
		t.Error(err)
	}
}

// A port that somebody else has is a problem with a name, not the end; and it
// is opened when it is free.
func TestTakenPortIsTriedAgain(t *testing.T) {
	one := echo(t, "one")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front, admin := taken.Addr().String(), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, front, one))
	d := start(t, file)
	eventually(t, "reported", func() error {
		s := d.Status()
		if s.Ready || len(s.Exposures) != 1 || s.Exposures[0].Open || !strings.Contains(s.Exposures[0].Reason, "in use") {
			return fmt.Errorf("%+v", s.Exposures)
		}
		return nil
	})
	if code := statusCode(t, "http://"+admin+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d while a listener is missing", code)
	}
	if code := statusCode(t, "http://"+admin+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz answers %d", code)
	}
	taken.Close()
	eventually(t, "opened", serves(front, "one"))
	eventually(t, "ready", func() error {
		if s := d.Status(); !s.Ready || len(s.Problems) > 0 {
			return fmt.Errorf("%v %v", s.NotReady, s.Problems)
		}
		return nil
	})
}

// The shares that are announced are of backends that can be had.
func TestDeadBackendIsNamed(t *testing.T) {
	front, admin, dead := freeAddr(t), freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, front, dead))
	d := start(t, file)
	var f status.Frontend
	eventually(t, "the backend is down", func() error {
		s := d.Status()
		if len(s.Frontends) != 1 || len(s.Frontends[0].Backends) != 1 {
			return fmt.Errorf("%+v", s.Frontends)
		}
		f = s.Frontends[0]
		if f.Backends[0].State != edge.Down || len(s.Problems) == 0 {
			return fmt.Errorf("%+v %v", f.Backends[0], s.Problems)
		}
		return nil
	})
	// It is tried all the same: there is no other.
	if f.Backends[0].Share != 1 || !strings.Contains(f.Backends[0].Error, "refused") {
		t.Errorf("got %+v", f.Backends[0])
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func statusCode(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// While connections drain after a signal, the page, the metrics and readiness
// say what is: closed, and what is left.
func TestStoppingIsShown(t *testing.T) {
	one := echo(t, "one")
	front, admin := freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, front, one))
	d := New(Options{Files: []string{file}, Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	eventually(t, "served", serves(front, "one"))
	conn, _, err := dial(front)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	eventually(t, "closed", func() error {
		if another, err := net.Dial("tcp", front); err == nil {
			another.Close()
			return errors.New("still open")
		}
		return nil
	})
	if code := statusCode(t, "http://"+admin+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz answers %d while stopping", code)
	}
	if metrics := fetch(t, "http://"+admin+"/metrics"); !strings.Contains(metrics, `gatehouse_frontend_connections_active{data_plane="proxy",frontend="f0",listen="`+front+`",protocol="TCP",zone=""} 1`) {
		t.Errorf("the metrics do not count the connection that drains:\n%s", metrics)
	}
	if s := d.Status(); len(s.Frontends) != 1 || !s.Frontends[0].Draining || len(s.Exposures) != 0 {
		t.Errorf("the status says %+v", s.Frontends)
	}
	for _, to := range []string{"f0", front} {
		if answer, err := d.Explain(explain.Question{To: to}); err == nil || !strings.Contains(err.Error(), "gatehouse is stopping") {
			t.Errorf("it explains the way to %s: %+v %v", to, answer, err)
		}
	}
	fmt.Fprintln(conn, "still there?")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "still there?\n" {
		t.Errorf("the connection was cut: %q %v", line, err)
	}
	conn.Close()
	if err := <-done; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}
