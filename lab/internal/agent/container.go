package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/lab/site"
)

// container is one process of a pod.
type container struct {
	spec    corev1.Container
	rec     site.ContainerRecord
	running bool
	ready   bool
	since   metav1.Time
	ended   *exit
	refused string // why it cannot be started
	backoff time.Duration
	due     time.Time // of the next start
	stop    context.CancelFunc
}

type exit struct {
	name string
	pid  int
	code int32
	at   metav1.Time
}

// start runs the container's program. What goes wrong is kept for the status: a pod that cannot run is not an
// error of the agent.
func (p *pod) start(ctx context.Context, c *container) {
	c.refused, c.ended, c.due = "", nil, time.Time{}
	argv, err := p.argv(c.spec)
	if err != nil {
		c.refused = err.Error()
		return
	}
	log, err := os.OpenFile(filepath.Join(p.dir(), c.spec.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		c.refused = err.Error()
		return
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, err = p.environment(c.spec)
	if err != nil {
		c.refused = err.Error()
		return
	}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if p.rec.Netns != "" {
		start = func() error { return site.InNetns(site.NetnsPath(p.rec.Netns), cmd.Start) }
	}
	if err := start(); err != nil {
		c.refused = err.Error()
		return
	}
	pid := cmd.Process.Pid
	c.rec = site.ContainerRecord{PID: pid, Started: site.StartTime(pid), Restarts: c.rec.Restarts, ID: "lab://" + strings.ToLower(rand.Text())}
	c.running, c.since = true, metav1.Now()
	go func() {
		_ = cmd.Wait()
		p.exits <- exit{c.spec.Name, pid, exitCode(cmd.ProcessState), metav1.Now()}
	}()
	p.probe(ctx, c)
}

func exitCode(s *os.ProcessState) int32 {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int32(w.Signal())
	}
	return int32(s.ExitCode())
}

// watchAdopted watches a process that is not our child.
func (p *pod) watchAdopted(c *container) {
	c.since = metav1.Now()
	pid := c.rec.PID
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil || site.StartTime(pid) != c.rec.Started {
		if err == nil {
			unix.Close(fd)
		}
		// What it ended with went to somebody else.
		c.ended = &exit{c.spec.Name, pid, 255, metav1.Now()}
		return
	}
	c.running = true
	go func() {
		defer unix.Close(fd)
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		p.exits <- exit{c.spec.Name, pid, 255, metav1.Now()}
	}()
}

// argv turns the image's name into a command line.
func (p *pod) argv(spec corev1.Container) ([]string, error) {
	image := imageName(spec.Image)
	lab := filepath.Join(p.agent.cfg.Dir, "bin", "lab")
	env, err := p.variables(spec)
	if err != nil {
		return nil, err
	}
	args := expand(spec.Args, env)
	switch image {
	case "lab/web", "lab/tls", "lab/echo":
		argv := []string{lab, "_pod", strings.TrimPrefix(image, "lab/")}
		if len(spec.Ports) > 0 {
			argv = append(argv, fmt.Sprintf("--port=%d", spec.Ports[0].ContainerPort))
		}
		return append(argv, args...), nil
	case "lab/host":
		argv := append(expand(spec.Command, env), args...)
		if len(argv) == 0 {
			return nil, errors.New("image lab/host: no command given; it runs a program of the machine")
		}
		return append(p.agent.wayIn(p.rec, p.dir(), p.confinement(spec)...), argv...), nil
	}
	if entry := p.agent.images()[image]; len(entry) > 0 {
		if len(spec.Command) > 0 {
			entry = p.agent.program(expand(spec.Command, env))
		}
		return slices.Concat(p.agent.wayIn(p.rec, p.dir(), p.confinement(spec)...), entry, args), nil
	}
	return nil, fmt.Errorf("image %q: the lab has lab/web, lab/tls, lab/echo and lab/host", spec.Image)
}

var reference = regexp.MustCompile(`\$\(([A-Za-z_][A-Za-z0-9_]*)\)`)

// expand replaces $(NAME), as Kubernetes does in commands and arguments; unknown names stay as they are.
func expand(words []string, env map[string]string) []string {
	var out []string
	for _, w := range words {
		out = append(out, reference.ReplaceAllStringFunc(w, func(m string) string {
			if v, ok := env[m[2:len(m)-1]]; ok {
				return v
			}
			return m
		}))
	}
	return out
}

func (p *pod) environment(spec corev1.Container) ([]string, error) {
	vars, err := p.variables(spec)
	if err != nil {
		return nil, err
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/", "HOSTNAME=" + p.rec.Name,
		"LAB_POD=" + p.rec.Name, "LAB_NODE=" + p.agent.cfg.Node,
	}
	if wantsVolumes(p.obj) {
		env = append(env, apiServerEnv()...)
	}
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	return env, nil
}

func (p *pod) variables(spec corev1.Container) (map[string]string, error) {
	vars := map[string]string{}
	for _, e := range spec.Env {
		v := e.Value
		if from := e.ValueFrom; from != nil {
			if from.FieldRef == nil {
				return nil, fmt.Errorf("env %s: the lab knows plain values and fieldRef", e.Name)
			}
			var ok bool
			if v, ok = p.field(from.FieldRef.FieldPath); !ok {
				return nil, fmt.Errorf("env %s: the lab does not know fieldRef %s", e.Name, from.FieldRef.FieldPath)
			}
		}
		vars[e.Name] = v
	}
	return vars, nil
}

func (p *pod) field(path string) (string, bool) {
	switch path {
	case "metadata.name":
		return p.rec.Name, true
	case "metadata.namespace":
		return p.rec.Namespace, true
	case "metadata.uid":
		return p.rec.UID, true
	case "spec.nodeName":
		return p.agent.cfg.Node, true
	case "spec.serviceAccountName":
		return p.obj.Spec.ServiceAccountName, true
	case "status.podIP":
		return p.rec.IP, true
	case "status.podIPs":
		return p.rec.IP + "," + p.rec.IP6, true
	case "status.hostIP":
		return p.agent.cfg.Address.String(), true
	case "status.hostIPs":
		return p.agent.cfg.Address.String() + "," + p.agent.cfg.Address6.String(), true
	}
	return "", false
}

func (p *pod) running() bool {
	for _, c := range p.containers {
		if c.running {
			return true
		}
	}
	return false
}

func (p *pod) signal(sig syscall.Signal) {
	for _, c := range p.containers {
		if c.running && site.StartTime(c.rec.PID) == c.rec.Started {
			_ = syscall.Kill(c.rec.PID, sig)
		}
	}
}

func (p *pod) exited(e exit) {
	for _, c := range p.containers {
		if c.spec.Name != e.name || c.rec.PID != e.pid {
			continue
		}
		c.running, c.ready, c.ended = false, false, &e
		if c.stop != nil {
			c.stop()
		}
		if time.Since(c.since.Time) > 10*time.Minute {
			c.backoff = 0
		}
		c.due = time.Now().Add(c.backoff)
		c.backoff = min(max(2*c.backoff, time.Second), time.Minute)
	}
}

// restartDue starts again what has ended and should run, and returns a channel that says when to look again.
func (p *pod) restartDue(ctx context.Context) <-chan time.Time {
	if p.ending || p.failure != "" {
		return nil
	}
	var soonest time.Time
	for _, c := range p.containers {
		if c.running || c.ended == nil || !p.shouldRestart(c) {
			continue
		}
		if time.Now().Before(c.due) {
			if soonest.IsZero() || c.due.Before(soonest) {
				soonest = c.due
			}
			continue
		}
		c.rec.Restarts++
		p.start(ctx, c)
		p.save()
	}
	if soonest.IsZero() {
		return nil
	}
	return time.After(time.Until(soonest))
}

func (p *pod) shouldRestart(c *container) bool {
	switch p.obj.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return c.ended.code != 0
	}
	return true
}
