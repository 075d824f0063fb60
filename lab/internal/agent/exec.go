package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"e13.dev/gatehouse/lab/site"
)

// exec answers kubectl exec: a program of the machine, in the network and the environment of the container.
func (a *Agent) exec(w http.ResponseWriter, r *http.Request) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	uid := a.uidOf(namespace, name)
	if uid == "" {
		http.Error(w, "no such pod on this node", http.StatusNotFound)
		return
	}
	in, err := a.insideOf(string(uid), r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, in, name, string(uid), r.PathValue("container"), r.URL.Query()["command"],
		options, 4*time.Hour, 30*time.Second, remotecommand.SupportedStreamingProtocols)
}

// inside is what makes a program belong to a container.
type inside struct {
	agent *Agent
	image []string // the words before the program's: how to get in
	env   []string
}

// insideOf goes by what is on disk: the pod's goroutine owns what is in memory.
func (a *Agent) insideOf(uid, name string) (inside, error) {
	data, err := os.ReadFile(filepath.Join(a.podsDir(), uid, "pod.json"))
	if err != nil {
		return inside{}, err
	}
	var rec site.PodRecord
	if err := json.Unmarshal(data, &rec); err != nil {
		return inside{}, err
	}
	c, ok := rec.Containers[name]
	if !ok || site.StartTime(c.PID) != c.Started {
		return inside{}, fmt.Errorf("container %s does not run", name)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.PID))
	if err != nil {
		return inside{}, err
	}
	dir := filepath.Join(a.podsDir(), uid)
	way := a.wayIn(rec, dir)
	// Volumes are in the view of the file system that its process has.
	if _, err := os.Stat(filepath.Join(dir, "volumes")); err == nil {
		way = []string{"nsenter", "--target", strconv.Itoa(c.PID), "--mount", "--net", "--uts", "--"}
	}
	return inside{
		agent: a,
		image: way,
		env:   strings.Split(strings.TrimRight(string(env), "\x00"), "\x00"),
	}, nil
}

// ExecInContainer is remotecommand.Executor.
func (in inside) ExecInContainer(ctx context.Context, _, _, _ string, argv []string, stdin io.Reader, stdout, stderr io.WriteCloser,
	tty bool, _ <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	switch {
	case tty:
		return errors.New("the lab has no terminals: kubectl exec without -t")
	case len(argv) == 0:
		return errors.New("no program given")
	}
	argv = append(append([]string{}, in.image...), in.agent.program(argv)...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = in.env, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 2 * time.Second // what it has started may hold the pipes open for ever
	if stdout != nil {
		cmd.Stdout = stdout
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	if stdin != nil {
		pipe, err := cmd.StdinPipe() // and not cmd.Stdin: Wait would wait for the client to end its input
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(pipe, stdin)
			pipe.Close()
		}()
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: int(exitCode(exit.ProcessState))}
	}
	return err
}
