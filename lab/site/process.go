package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// component is one long-running program of a lab.
type component struct {
	Name string   `json:"name"`
	Host string   `json:"host"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Bind []string `json:"bind,omitempty"` // SOURCE:TARGET directories, seen so by this program only
	// Health is asked inside the host; http, https (any certificate) or empty where running is all one can ask.
	Health string `json:"health,omitempty"`
	// Machine means: sees the machine's own mounts, not the host's private ones. The agents make namespaces.
	Machine bool `json:"machine,omitempty"`

	// Patience between SIGTERM and SIGKILL, when ten seconds are not right.
	Patience time.Duration `json:"patience,omitempty"`

	PID     int    `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"` // clock ticks since boot: tells a reused pid from ours
	Stopped bool   `json:"stopped,omitempty"` // by Stop; so its absence is no fault
}

// startTime returns when a process started, in clock ticks since boot; 0 if there is no such process or it is dead
// and only waits to be reaped.
func startTime(pid int) uint64 {
	fields := statFields(pid)
	if len(fields) < 20 || fields[0] == "X" || fields[0] == "Z" && !hasOtherThreads(pid) {
		return 0
	}
	t, _ := strconv.ParseUint(fields[19], 10, 64)
	return t
}

// hasOtherThreads says whether more than the first thread of a process is there: that one passes for dead before the
// last one has closed the files and sockets of all.
func hasOtherThreads(pid int) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && len(tasks) > 1
}

// statFields are those of /proc/PID/stat from the third one on, the state; none if there is no such process.
func statFields(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The second field is the program's name in parentheses, and may hold anything; count from behind it.
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')'):]), " ")
	if !ok {
		return nil
	}
	return strings.Fields(rest)
}

func (c *component) alive() bool {
	return c.PID != 0 && c.Started != 0 && startTime(c.PID) == c.Started
}

// EnterArgs is the command line, without the program, that makes `lab` go into a namespace and become argv. See
// e13.dev/gatehouse/lab/internal/enter for what it does.
func EnterArgs(netns string, binds []string, argv []string) []string {
	args := []string{"_enter", netns}
	for _, b := range binds {
		args = append(args, "--bind", b)
	}
	return append(append(args, "--"), argv...)
}

// hostBinds are the directories that each host has for itself, because programs in them use fixed names there.
func (s *Site) hostBinds(host string) []string {
	binds := []string{s.path("hosts", host, "run") + ":/run"}
	if s.record.Options.Bare {
		binds = append([]string{s.resolvConf(host) + ":/etc/resolv.conf"}, binds...)
	}
	return binds
}

// spawn starts the component and records its pid; the caller saves the record and holds the lock.
func (s *Site) spawnLocked(c *component) error {
	log, err := os.OpenFile(s.logPath(c.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	ns, err := s.netns(c.Host)
	if err != nil {
		return err
	}
	var cmd *exec.Cmd
	if c.Machine {
		cmd = exec.Command(c.Argv[0], c.Argv[1:]...)
	} else {
		binds := append(s.hostBinds(c.Host), c.Bind...)
		cmd = exec.Command(s.path("bin", "lab"), EnterArgs(ns, binds, c.Argv)...)
	}
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // survives the terminal, and Ctrl-C in it
	start := cmd.Start
	if c.Machine {
		// A child is born in the namespace of the thread that forks it.
		start = func() error { return InNetns(filepath.Join(netnsDir, ns), cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	c.PID, c.Started, c.Stopped = cmd.Process.Pid, startTime(cmd.Process.Pid), false
	go func() { _ = cmd.Wait() }() // reap it, should it end before we do
	return nil
}

// stopLocked ends the component: SIGTERM, and after its patience SIGKILL.
func (s *Site) stopLocked(ctx context.Context, c *component) error {
	if !c.alive() {
		return nil
	}
	patience := c.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	gone := func() error {
		if c.alive() {
			return fmt.Errorf("%s (pid %d) is still running", c.Name, c.PID)
		}
		return nil
	}
	if err := syscall.Kill(c.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop %s: %w", c.Name, err)
	}
	if err := c.signal(syscall.SIGCONT); err != nil { // a paused one hears of its end only so
		return err
	}
	if poll(ctx, patience, 5*time.Millisecond, gone) == nil {
		return nil
	}
	_ = syscall.Kill(c.PID, syscall.SIGKILL)
	return poll(context.WithoutCancel(ctx), 10*time.Second, 5*time.Millisecond, gone)
}

// tail returns the last lines of a component's log, for an error message.
func (s *Site) tail(name string, lines int) string {
	data, err := os.ReadFile(s.logPath(name))
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// findProgram looks for one of our executables: where the variable says, in the directory LAB_BIN, beside this
// program, in a directory bin of this directory or one above it (a test runs in its package's directory), in the PATH.
func findProgram(name, variable string) (string, error) {
	if p := os.Getenv(variable); p != "" {
		if err := executable(p); err != nil {
			return "", fmt.Errorf("%s: %w", variable, err)
		}
		return filepath.Abs(p)
	}
	var tried []string
	try := func(dir string) (string, bool) {
		p := filepath.Join(dir, name)
		tried = append(tried, p)
		return p, executable(p) == nil
	}
	if dir := os.Getenv("LAB_BIN"); dir != "" {
		if p, ok := try(dir); ok {
			return filepath.Abs(p)
		}
	}
	if self, err := os.Executable(); err == nil {
		if p, ok := try(filepath.Dir(self)); ok {
			return p, nil
		}
	}
	if dir, err := os.Getwd(); err == nil {
		for {
			if p, ok := try(filepath.Join(dir, "bin")); ok {
				return p, nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	return "", fmt.Errorf("the program %s is missing; build it (make labs) or set %s to its path; looked at %s",
		name, variable, strings.Join(tried, ", "))
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not executable", path)
	}
	return nil
}
