package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal (pty(7)) with a command in it.
type terminal struct {
	master *os.File
	cmd    *exec.Cmd

	mu    sync.Mutex
	shown bytes.Buffer
}

func inTerminal(t *testing.T, name string, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	x := &terminal{master: master, cmd: exec.CommandContext(t.Context(), name, args...)}
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=")
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // until nobody has the other side any more: EIO
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			x.mu.Lock()
			x.shown.Write(buffer[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *terminal) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shown.String()
}

func (x *terminal) shows(t *testing.T, want string) {
	t.Helper()
	await(t, "it shows "+want, func() error {
		if got := x.String(); !strings.Contains(got, want) {
			return errors.New(got)
		}
		return nil
	})
}

func await(t *testing.T, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// gatehouseRuns starts a gatehouse that runs until the test ends.
func gatehouseRuns(t *testing.T, file string) {
	t.Helper()
	gatehouse := exec.CommandContext(t.Context(), "gatehouse", "run", "-c", file)
	if err := gatehouse.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = gatehouse.Process.Kill()
		_ = gatehouse.Wait()
	})
	await(t, "gatehouse runs", func() error {
		if got := called("status", "-c", file); !strings.HasPrefix(got, "gatehouse      ready") {
			return errors.New(got)
		}
		return nil
	})
}

// What somebody else has written during a trial is not written over.
func TestConfirmKeepsWhatOthersWrote(t *testing.T) {
	dir := t.TempDir()
	socket, file, next := filepath.Join(dir, "api.sock"), filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "new.yaml")
	text := "apiVersion: gatehouse.e13.dev/v1\nadmin: {socket: " + socket + "}\n"
	put := func(name, content string) {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(file, text)
	put(next, text+"# new\n")
	gatehouseRuns(t, file)
	if got := called("apply", "-c", file, "--confirm", "10m", next); !strings.Contains(got, "gatehouse confirm") {
		t.Fatal(got)
	}
	put(file, text+"# somebody else's\n")
	if got := called("confirm", "-c", file); !strings.Contains(got, file+": somebody has written it since the trial began") {
		t.Errorf("confirm says %q", got)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != text+"# somebody else's\n" {
		t.Errorf("the file has %q %v", now, err)
	}
	put(file, text)
	if got := called("confirm", "-c", file); !strings.Contains(got, "wrote "+file) {
		t.Errorf("confirm says %q", got)
	}
}

// Who sits at a terminal is asked. Yes keeps it, no ends it, and somebody who is
// interrupted, or whose terminal is gone, leaves it to the daemon.
func TestQuestionAtATerminal(t *testing.T) {
	dir := t.TempDir()
	socket, file, next := filepath.Join(dir, "api.sock"), filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "new.yaml")
	text := "apiVersion: gatehouse.e13.dev/v1\nadmin: {socket: " + socket + "}\n"
	for name, content := range map[string]string{file: text, next: text + "# new\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gatehouseRuns(t, file)
	onTrial := func() bool { return strings.Contains(called("status", "-c", file), next+" is on trial for") }
	apply := func() *terminal {
		x := inTerminal(t, "gatehouse", "apply", "-c", file, "--confirm", "10m", next)
		x.shows(t, "Keep it? [yes/no] (back to the files in")
		if !onTrial() {
			t.Error("status does not say that it is on trial")
		}
		return x
	}
	for _, c := range []struct {
		name    string
		do      func(*terminal)
		code    int // -1: a signal
		shows   string
		onTrial bool
	}{
		{"no", func(x *terminal) { fmt.Fprintln(x.master, "no") }, exitNo, "gone back to the files", false},
		{"something else, and no", func(x *terminal) {
			fmt.Fprintln(x.master, "what?")
			await(t, "it asks again", func() error {
				if strings.Count(x.String(), "Keep it?") < 2 {
					return errors.New(x.String())
				}
				return nil
			})
			fmt.Fprintln(x.master, "n")
		}, exitNo, "gone back to the files", false},
		{"interrupted", func(x *terminal) { _, _ = io.WriteString(x.master, "\x03") }, exitNo, "still on trial until", true},
		{"the end of input", func(x *terminal) { _, _ = io.WriteString(x.master, "\x04") }, exitNo, "still on trial until", true},
		{"hung up", func(x *terminal) { x.master.Close() }, -1, "", true},
		{"confirmed elsewhere", func(*terminal) { called("confirm", "-c", file) }, exitOK, "it was confirmed elsewhere", false},
		{"yes", func(x *terminal) { fmt.Fprintln(x.master, "yes") }, exitOK, "wrote " + file, false},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		x := apply()
		c.do(x)
		_ = x.cmd.Wait()
		if got := x.cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", c.name, got, c.code, x)
		}
		if c.shows != "" {
			x.shows(t, c.shows)
		}
		if got := onTrial(); got != c.onTrial {
			t.Errorf("%s: it is on trial: %v", c.name, got)
		}
		if c.onTrial {
			called("confirm", "-c", file, "--no")
		}
		await(t, c.name+": it is over", func() error {
			if onTrial() {
				return errors.New("it is not")
			}
			return nil
		})
	}
	if got, _ := os.ReadFile(file); string(got) != text+"# new\n" {
		t.Errorf("the file has %q", got)
	}
}
