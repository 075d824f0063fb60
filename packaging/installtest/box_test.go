package installtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// box is a machine of its own, in namespaces, on which systemd has been booted.
type box struct {
	t   *testing.T
	pid int // of its process 1, as seen from here
}

// need skips a test that this machine cannot do, unless it must.
func need(t *testing.T) {
	t.Helper()
	if os.Getenv("GATEHOUSE_PACKAGE") != "required" {
		t.Skip("installs packages and boots a systemd, as root: make test-package")
	}
}

func newBox(t *testing.T) *box {
	t.Helper()
	root := t.TempDir()
	group := fmt.Sprintf("gatehouse-box-%d", os.Getpid())
	boot, err := filepath.Abs("boot")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "boot.log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", boot, root, group)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &box{t: t}
	t.Cleanup(func() {
		if t.Failed() && b.pid != 0 {
			t.Logf("its journal:\n%s", b.try("journalctl --no-pager -u gatehouse -n 80"))
			said, _ := os.ReadFile(log.Name())
			t.Logf("its console:\n%s", said)
		}
		cancel()
		_ = cmd.Wait()
		removeGroup(t, group)
	})
	// Process 1 is what unshare has forked; the namespaces are whole when
	// systemd answers.
	b.until(30*time.Second, "systemd is up", func() error {
		if b.pid == 0 {
			children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
			var err error
			if b.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil || b.pid == 0 {
				said, _ := os.ReadFile(log.Name())
				return fmt.Errorf("it is not started yet; it says: %s", said)
			}
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", b.pid))
		if strings.TrimSpace(string(name)) != "systemd" {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("process 1 is %s; it says: %s", name, said)
		}
		out, _ := b.command("systemctl is-system-running").CombinedOutput()
		if state := strings.TrimSpace(string(out)); state != "running" {
			failed := b.try("systemctl --no-pager --failed")
			return fmt.Errorf("systemd is %q\n%s", state, failed)
		}
		return nil
	})
	return b
}

// removeGroup removes the control group of a box, once the kernel has seen that
// nobody is in it any more.
func removeGroup(t *testing.T, group string) {
	for _, at := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		dir := filepath.Join(at, group)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if _, err := os.Stat(dir); err != nil {
				break
			}
			out, _ := exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").CombinedOutput()
			if time.Now().After(deadline) {
				t.Errorf("the control group of the box stays: %s", out)
				break
			}
		}
	}
}

func (b *box) command(script string, args ...any) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(b.pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd", "bash", "-c", fmt.Sprintf(script, args...))
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "HOME=/root"}
	return cmd
}

// run runs a script in the box, as root, and returns what it says.
func (b *box) run(script string, args ...any) string {
	b.t.Helper()
	var out, problem bytes.Buffer
	cmd := b.command(script, args...)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%s: %v\n%s%s", fmt.Sprintf(script, args...), err, out.String(), problem.String())
	}
	return out.String()
}

// try is run for what may fail; it returns all that it says.
func (b *box) try(script string, args ...any) string {
	out, _ := b.command(script, args...).CombinedOutput()
	return string(out)
}

// put writes a file into the box.
func (b *box) put(name, text string) {
	b.t.Helper()
	cmd := b.command("cat > %s", name)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("write %s: %v %s", name, err, out)
	}
}

// copyIn copies a file of this machine into the box.
func (b *box) copyIn(file, name string) {
	b.t.Helper()
	from, err := os.Open(file)
	if err != nil {
		b.t.Fatal(err)
	}
	defer from.Close()
	cmd := b.command("cat > %s && chmod 755 %s", name, name)
	cmd.Stdin = from
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("copy %s: %v %s", name, err, out)
	}
}

// until asks again until there is no error.
func (b *box) until(patience time.Duration, what string, ask func() error) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// same fails unless two texts are equal.
func (b *box) same(what, got, want string) {
	b.t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		b.t.Fatalf("%s: %q, want %q", what, strings.TrimSpace(got), want)
	}
}
