package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// tmux is a terminal that a test can type into and look at.
type tmux struct {
	t   *testing.T
	dir string // of the server's socket, and for what the shell writes
}

// newTmux starts a shell in a terminal of that size.
func newTmux(t *testing.T, width, height int) *tmux {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Fatalf("there is no tmux: %v; scripts/deps installs it", err)
	}
	dir, err := os.MkdirTemp("", "tmux") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &tmux{t, dir}
	m.run("new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), "-e", "PS1=$ ", "-e", "ENV=", "exec sh")
	t.Cleanup(func() { m.run("kill-server") })
	m.wait("a prompt", func(screen []string) bool { return strings.HasPrefix(screen[0], "$") })
	return m
}

func (m *tmux) run(args ...string) string {
	m.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", filepath.Join(m.dir, "s"), "-f", "/dev/null", "-u"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color", "SHELL=/bin/sh")
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// keys types keys, by tmux' names.
func (m *tmux) keys(keys ...string) {
	m.t.Helper()
	m.run(append([]string{"send-keys"}, keys...)...)
}

// command types a command line.
func (m *tmux) command(line string) {
	m.t.Helper()
	m.run("send-keys", "-l", line)
	m.keys("Enter")
}

func (m *tmux) screen() []string {
	m.t.Helper()
	return strings.Split(strings.TrimSuffix(m.run("capture-pane", "-p"), "\n"), "\n")
}

func (m *tmux) wait(what string, holds func(screen []string) bool) {
	m.t.Helper()
	late := time.Now().Add(15 * time.Second)
	for {
		screen := m.screen()
		if holds(screen) {
			return
		}
		if time.Now().After(late) {
			m.t.Fatalf("not seen: %s, but\n%s", what, strings.Join(screen, "\n"))
		}
		<-time.After(20 * time.Millisecond)
	}
}

// waitFor waits for a pattern in one of the lines; "^" is its beginning.
func (m *tmux) waitFor(pattern string) {
	m.t.Helper()
	found := regexp.MustCompile(pattern)
	m.wait(pattern, func(screen []string) bool { return slices.ContainsFunc(screen, found.MatchString) })
}

// onLine waits for a pattern in a line, counted from 0; from the end if negative.
func (m *tmux) onLine(n int, pattern string) {
	m.t.Helper()
	found := regexp.MustCompile(pattern)
	m.wait(fmt.Sprintf("%s on line %d", pattern, n), func(screen []string) bool {
		if n < 0 {
			return found.MatchString(screen[len(screen)+n])
		}
		return found.MatchString(screen[n])
	})
}

// terminal is all that is set of the shell's terminal.
func (m *tmux) terminal() string {
	m.t.Helper()
	file := filepath.Join(m.dir, "stty")
	_ = os.Remove(file)
	m.command("stty -g > " + file + ".new && mv " + file + ".new " + file)
	var text []byte
	m.wait("what stty says", func([]string) bool {
		var err error
		text, err = os.ReadFile(file)
		return err == nil
	})
	alternate := strings.TrimSpace(m.run("display-message", "-p", "alternate=#{alternate_on} cursor=#{cursor_flag}"))
	return strings.TrimSpace(string(text)) + " " + alternate
}

// serveFile runs a gatehouse until stop is called.
func serveFile(t *testing.T, file string) (stop func()) {
	t.Helper()
	gatehouse := exec.Command("gatehouse", "run", "-c", file)
	gatehouse.Stderr = t.Output()
	if err := gatehouse.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = gatehouse.Process.Signal(os.Interrupt)
			_ = gatehouse.Wait()
		}
	}
	t.Cleanup(stop)
	netnstest.Eventually(t, 10*time.Second, "gatehouse runs", func() bool {
		return strings.HasPrefix(called("status", "-c", file), "gatehouse      ready")
	})
	return stop
}

// The live view in a real terminal, of a gatehouse that runs.
func TestNetnsWatch(t *testing.T) {
	netnstest.Run(t, func() {
		backend, err := net.Listen("tcp", "127.0.0.1:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer backend.Close()
		go func() {
			for {
				conn, err := backend.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		text := "apiVersion: gatehouse.e13.dev/v1\nadmin: {listen: \"127.0.0.1:9180\"}\nfrontends:\n"
		for i := range 12 {
			text += fmt.Sprintf("  - {name: web%02d, listen: \"127.0.0.1:%d\", backends: [{address: \"127.0.0.1:9000\"}, {address: \"127.0.0.1:9001\"}]}\n", i, 8000+i)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := serveFile(t, file)
		m := newTmux(t, 100, 24)
		m.command("echo was here before")
		m.waitFor("^was here before")
		before := m.terminal()
		watch := func() {
			t.Helper()
			m.command("gatehouse status --watch -c " + file + "; echo it ended with $?")
			m.onLine(0, "^gatehouse      ready, up")
			if now := m.run("display-message", "-p", "alternate=#{alternate_on} cursor=#{cursor_flag}"); now != "alternate=1 cursor=0\n" {
				t.Errorf("the screen is %s", now)
			}
		}
		round := 0
		ended := func(how string) {
			t.Helper()
			m.waitFor("it ended with 0$")
			m.waitFor("^was here before")
			if after := m.terminal(); after != before {
				t.Errorf("after %s the terminal is %s, and was %s", how, after, before)
			}
			round++ // or what is there already would do
			m.command(fmt.Sprintf("clear; echo was here before %d", round))
			m.onLine(0, fmt.Sprintf("^was here before %d", round))
		}

		watch()
		m.onLine(-1, `^q quit  j/k line  space/b page  g/G ends  lines 1-23 of \d\d$`)
		m.waitFor("^  127.0.0.1:9001 of web00: down for .*connection refused")
		// It is live.
		if conn, err := net.Dial("tcp", "127.0.0.1:8000"); err == nil {
			conn.Close()
		}
		m.keys("G")
		m.onLine(-2, "^    down for")
		m.keys("g")
		m.onLine(0, "^gatehouse      ready, up")
		m.keys("j", "j")
		m.onLine(-1, "lines 3-25 of")
		m.keys("Up")
		m.onLine(-1, "lines 2-24 of")
		m.keys("NPage")
		m.onLine(-1, "lines 24-46 of")
		m.keys("PPage")
		m.onLine(-1, "lines 2-24 of")
		m.waitFor(`^web00 127.0.0.1:8000 +open .* 1 +\d+ B +\d+ B`)
		m.waitFor(`127.0.0.1:9000 +up +100.0%  █████████▌ 100.0%`)

		// It fits, also when that changes.
		m.run("resize-window", "-x", "40", "-y", "10")
		m.onLine(-1, "^q quit  j/k line  space/b page  g/G ends$")
		m.wait("lines that are cut", func(screen []string) bool {
			return len(screen) == 10 && slices.ContainsFunc(screen, func(line string) bool {
				return cellsOf(line) == 40 && strings.Contains(line, "  127.0.0.1:9001 of web0")
			})
		})
		m.run("resize-window", "-x", "120", "-y", "60")
		m.onLine(-1, `^q quit .* lines 2-60 of \d+$`)
		m.wait("all lines", func(screen []string) bool {
			return len(screen) == 60 && strings.HasPrefix(screen[0], "gatehouse") || screen[0] == ""
		})
		m.run("resize-window", "-x", "100", "-y", "24")
		m.keys("g")

		// A daemon that is gone for a while.
		stop()
		m.onLine(0, "^no answer for .*this is from before: nothing listens at 127.0.0.1:9180")
		m.onLine(1, "^gatehouse      ready")
		stop = serveFile(t, file)
		m.onLine(0, `^gatehouse      ready, up \ds,`)

		m.keys("q")
		ended("q")
		watch()
		m.keys("C-c")
		ended("Ctrl-C")

		// However it ends, the terminal is what it was.
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT} {
			watch()
			pane, err := strconv.Atoi(strings.TrimSpace(m.run("display-message", "-p", "#{pane_pid}")))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(childOf(t, pane), s); err != nil {
				t.Fatal(err)
			}
			ended(s.String())
		}
		m.command("watch-and-panic 2>/dev/null; echo it ended with $(($? - 2))")
		ended("a panic")

		// Nobody is there from the start.
		stop()
		m.command("gatehouse status --watch -c " + file + "; echo it ended with $(($? - 1))")
		m.waitFor("^gatehouse: nothing listens at 127.0.0.1:9180")
		ended("no answer")
	})
}

// childOf is the process that a shell has started.
func childOf(t *testing.T, shell int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shell, shell))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("children of the shell: %q", text)
	}
	return pid
}

// watchAndPanic is a live view with a mistake in it, which shows after a while.
func watchAndPanic() {
	shown := false
	err := live(context.Background(), os.Stdin, os.Stdout, false, func(_ context.Context, w io.Writer) error {
		if shown {
			panic("a mistake")
		}
		shown = true
		_, err := io.WriteString(w, "gatehouse\n")
		return err
	})
	panic(errors.Join(errors.New("it did not panic"), err))
}
