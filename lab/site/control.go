package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// change runs f with the lab's lock held and the newest record loaded, and saves what f made of it.
func (s *Site) change(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unlock, err := lock(s.name, time.Minute)
	if err != nil {
		return err
	}
	defer unlock()
	progress := s.record.Options.Progress
	if err := s.load(); err != nil {
		return err
	}
	s.record.Options.Progress = progress
	err = f()
	return errors.Join(err, s.saveLocked())
}

func (s *Site) componentLocked(name string) (*component, error) {
	var names []string
	for _, c := range s.record.Components {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return nil, fmt.Errorf("no component named %q; there are %s", name, strings.Join(names, ", "))
}

// Stop ends a component: SIGTERM, and SIGKILL if it is still there ten seconds later (the API server: one, it
// would wait for its watchers for a minute).
func (s *Site) Stop(ctx context.Context, name string) error {
	return s.change(func() error {
		c, err := s.componentLocked(name)
		if err != nil {
			return err
		}
		c.Stopped = true
		return s.stopLocked(ctx, c)
	})
}

// Kill ends a component without letting it do anything about it.
func (s *Site) Kill(ctx context.Context, name string) error {
	return s.change(func() error {
		c, err := s.componentLocked(name)
		if err != nil {
			return err
		}
		c.Stopped = true
		if !c.alive() {
			return nil
		}
		if err := killHard(c.PID); err != nil {
			return err
		}
		return s.stopLocked(ctx, c)
	})
}

func killHard(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	return nil
}

// Start starts a component that is not running and waits until it is healthy. One that runs is left alone.
func (s *Site) Start(ctx context.Context, name string) error {
	return s.change(func() error {
		c, err := s.componentLocked(name)
		if err != nil {
			return err
		}
		return s.runLocked(ctx, c)
	})
}

func (s *Site) runLocked(ctx context.Context, c *component) error {
	if !c.alive() {
		if err := s.startLocked(c); err != nil {
			return err
		}
	}
	return s.awaitHealthy(ctx, c, time.Minute)
}

// Run adds a component to the lab, or replaces the one of that name: a long-running program on a host, which
// Stop, Start and status then know. env holds additions, as KEY=VALUE.
func (s *Site) Run(ctx context.Context, name, hostName string, env []string, argv ...string) error {
	return s.change(func() error { return s.addLocked(ctx, &component{Name: name, Host: hostName, Env: env, Argv: argv}) })
}

func (s *Site) addLocked(ctx context.Context, c *component) error {
	if !s.isHost(c.Host) {
		return s.noSuchHost(c.Host)
	}
	if len(c.Argv) == 0 || c.Name == "" || strings.ContainsAny(c.Name, "/ ") {
		return fmt.Errorf("component %q: want a name without slashes and a program", c.Name)
	}
	cc := s.record.Components
	if i := slices.IndexFunc(cc, func(o *component) bool { return o.Name == c.Name }); i >= 0 {
		if err := s.stopLocked(ctx, cc[i]); err != nil {
			return err
		}
		cc[i] = c
	} else {
		s.record.Components = append(cc, c)
	}
	if err := s.runLocked(ctx, c); err != nil {
		return err
	}
	// A program without a health address can only be asked whether it has survived reading its configuration.
	return s.survives(ctx, c, 300*time.Millisecond)
}

// survives returns an error if the component ends within the time.
func (s *Site) survives(ctx context.Context, c *component, d time.Duration) error {
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
	}
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINTR) {
		return err
	}
	if !c.alive() {
		return fmt.Errorf("%s: %w; the end of %s:\n%s", c.Name, errDead, s.logPath(c.Name), s.tail(c.Name, 15))
	}
	return ctx.Err()
}

// RunGatehouse starts a gatehouse on the edge, as the component gatehouse, instead of the one that was there. It
// talks to the API server as the ServiceAccount gatehouse/gatehouse, and has its own /run and /var/lib.
func (s *Site) RunGatehouse(ctx context.Context, program, config string) error {
	kubeconfig, err := s.gatehouseKubeconfig(ctx)
	if err != nil {
		return err
	}
	return s.change(func() error { return s.addLocked(ctx, s.gatehouse(program, config, kubeconfig)) })
}

func (s *Site) gatehouse(program, config, kubeconfig string) *component {
	return &component{
		Name: "gatehouse", Host: "edge",
		Argv: []string{program, "run", "-c", config},
		Env:  []string{"KUBECONFIG=" + kubeconfig},
		Bind: []string{s.path("hosts", "edge", "lib") + ":/var/lib"},
	}
}

func (s *Site) gatehouseKubeconfig(ctx context.Context) (string, error) {
	client, err := s.Client()
	if err != nil {
		return "", err
	}
	meta := metav1.ObjectMeta{Name: "gatehouse", Namespace: "gatehouse"}
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: meta.Namespace}}, metav1.CreateOptions{})
	if err == nil || apierrors.IsAlreadyExists(err) {
		_, err = client.CoreV1().ServiceAccounts(meta.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	return s.TokenKubeconfig(ctx, meta.Namespace, meta.Name, 30*24*time.Hour)
}

// AdminKubeconfig is the file of somebody who may do everything. Its server address is that of the control
// plane, which only the lab's hosts reach.
func (s *Site) AdminKubeconfig() string { return s.path("kubeconfig", "admin") }

// TokenKubeconfig makes a kubeconfig with a fresh token of a ServiceAccount that exists, and returns its file.
func (s *Site) TokenKubeconfig(ctx context.Context, namespace, serviceAccount string, ttl time.Duration) (string, error) {
	client, err := s.Client()
	if err != nil {
		return "", err
	}
	seconds := int64(ttl.Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	token, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s/%s: %w", namespace, serviceAccount, err)
	}
	ca, err := os.ReadFile(s.path("pki", "ca.crt"))
	if err != nil {
		return "", err
	}
	path := s.path("kubeconfig", "token-"+namespace+"-"+serviceAccount)
	return path, writeKubeconfig(path, ca, serviceAccount, &clientcmdapi.AuthInfo{Token: token.Status.Token})
}

// RESTConfig is for a client in this process: it speaks as the admin and dials from the host. Not for
// thousands of connections, each dial takes a thread while it lasts.
func (s *Site) RESTConfig(hostName string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", s.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	config.Dial = s.Dialer(hostName)
	config.QPS, config.Burst = 200, 400
	return config, nil
}

// Client is a client of the lab's API server, as the admin, from the control-plane host.
func (s *Site) Client() (*kubernetes.Clientset, error) {
	config, err := s.RESTConfig("cp")
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// KubectlCommand prepares a kubectl, as the admin, on the control-plane host but with the machine's files.
func (s *Site) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{s.path("bin", "kubectl")}, args...)
	cmd := exec.CommandContext(ctx, s.path("bin", "lab"), EnterArgs(nsName(s.name, "cp"), nil, argv)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.AdminKubeconfig(), "HOME="+s.path("hosts", "cp", "run"))
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Kubectl runs a kubectl to its end and returns what it printed. The error holds its standard error.
func (s *Site) Kubectl(ctx context.Context, args ...string) (string, error) {
	return capture(s.KubectlCommand(ctx, args...), "kubectl "+strings.Join(args, " "))
}

// Apply is kubectl apply of a text.
func (s *Site) Apply(ctx context.Context, manifests string) error {
	cmd := s.KubectlCommand(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	_, err := capture(cmd, "kubectl apply")
	return err
}
