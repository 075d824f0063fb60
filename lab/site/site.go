package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUp says that a lab of this name is up already; ErrNotUp that there is none.
var (
	ErrUp    = errors.New("the lab is up already")
	ErrNotUp = errors.New("no lab of this name is up")
)

// Options of a lab. The zero value is a lab named "lab", without a gatehouse in it.
type Options struct {
	Name      string `json:"name"`
	ProxyMode string `json:"proxyMode"` // of kube-proxy: nftables (the default) or iptables
	PodRoutes bool   `json:"podRoutes"` // the edge knows the way to the pods
	IPv4Nodes bool   `json:"ipv4Nodes"` // Nodes do not tell of their IPv6 addresses, and kube-proxies have none

	// Bare leaves the edge as it comes out of its box: gatehouse is the site's router, which Config says, and runs before
	// the cluster does. The storage box nas is there, and all machines but the home router get their addresses by DHCP.
	Bare bool `json:"bare,omitempty"`

	Gatehouse string   `json:"gatehouse,omitempty"` // program to run on the edge as `GATEHOUSE run -c Config`
	Config    string   `json:"config,omitempty"`
	Manifests []string `json:"manifests,omitempty"` // files that are kubectl-applied before gatehouse starts
	Samples   bool     `json:"samples,omitempty"`   // two Deployments with Services

	// Images are further images that pods may have: by name, without a tag, the program that stands for it and its first
	// arguments. In a container's command, /NAME is the program of that name.
	Images map[string][]string `json:"images,omitempty"`

	// Programs; empty: from LAB and LABKUBE, beside this program, in ./bin or a parent's, in the PATH.
	Lab     string `json:"lab"`
	Labkube string `json:"labkube"`

	Progress io.Writer `json:"-"` // a line per step, with the seconds since the start
}

// Site is a lab that is up.
type Site struct {
	name  string
	dir   string
	began time.Time

	mu     sync.Mutex // guards record and, with the lab's lock, what is written of it
	record record
}

func newSite(name string) *Site {
	return &Site{name: name, dir: filepath.Join(stateRoot, name), began: time.Now()}
}

// Name of the lab.
func (s *Site) Name() string { return s.name }

// Dir is where the lab keeps its state; it is gone after Down.
func (s *Site) Dir() string { return s.dir }

func (s *Site) path(elem ...string) string { return filepath.Join(append([]string{s.dir}, elem...)...) }

func (s *Site) logPath(component string) string { return s.path("logs", component+".log") }

// LogPath is the file with what a component printed.
func (s *Site) LogPath(component string) string { return s.logPath(component) }

// Open finds a lab that is up, by its name.
func Open(name string) (*Site, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s := newSite(name)
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// Up makes a lab and returns when its nodes are Ready. Half a lab, left by an Up that was killed, is removed
// first; when Up itself fails, what it made is removed too.
func Up(ctx context.Context, o Options) (*Site, error) {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.ProxyMode == "" {
		o.ProxyMode = "nftables"
	}
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	FindSystemPrograms()
	if err := checkMachine(o); err != nil {
		return nil, err
	}
	if err := o.complete(); err != nil {
		return nil, err
	}
	unlock, err := lock(o.Name, 0)
	if err != nil {
		return nil, err
	}
	defer unlock()

	s := newSite(o.Name)
	switch err := s.load(); {
	case err == nil && s.record.Ready:
		return nil, fmt.Errorf("%w: %s, since %s", ErrUp, s.name, s.record.Created.Format(time.DateTime))
	default:
		if err := teardown(ctx, s.name); err != nil {
			return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
		}
	}
	s.record = record{Created: s.began, Options: o}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.upLocked(ctx); err != nil {
		if derr := teardown(context.WithoutCancel(ctx), s.name); derr != nil {
			err = errors.Join(err, fmt.Errorf("and while cleaning up: %w", derr))
		}
		return nil, err
	}
	return s, nil
}

// complete finds the programs and makes paths absolute: the lab's programs run in another directory.
func (o *Options) complete() error {
	var err error
	if o.Lab == "" {
		if o.Lab, err = findProgram("lab", "LAB"); err != nil {
			return err
		}
	}
	if o.Labkube == "" {
		if o.Labkube, err = findProgram("labkube", "LABKUBE"); err != nil {
			return err
		}
	}
	if (o.Gatehouse == "") != (o.Config == "") {
		return errors.New("gatehouse needs both: the program and its configuration file")
	}
	o.Manifests = slices.Clone(o.Manifests)
	paths := []*string{&o.Lab, &o.Labkube, &o.Gatehouse, &o.Config}
	for i := range o.Manifests {
		paths = append(paths, &o.Manifests[i])
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
		if _, err := os.Stat(*p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) progress(format string, args ...any) {
	if w := s.record.Options.Progress; w != nil {
		fmt.Fprintf(w, "%5.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

func (s *Site) upLocked(ctx context.Context) error {
	// The directory and its record come first: from here on, Down knows that there is something to remove.
	for _, d := range []string{"bin", "logs", "pki", "kubeconfig", "config", "pods"} {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			return err
		}
	}
	for _, h := range s.hostNames() {
		if err := os.MkdirAll(s.path("hosts", h, "run"), 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(s.path("hosts", h, "lib"), 0o755); err != nil {
			return err
		}
	}
	if err := s.saveLocked(); err != nil {
		return err
	}

	hh := hosts(s.record.Options)
	err := together(
		func() error { return s.wire(ctx, hh) },
		s.installPrograms,
		s.writeKeys,
		s.writeProxyConfigs,
	)
	if err != nil {
		return err
	}
	s.progress("%d hosts in 3 networks", len(hh))
	if s.record.Options.Bare {
		if err := s.bareLocked(ctx); err != nil {
			return err
		}
	}

	cluster := s.planComponents()
	s.record.Components = append(s.record.Components, cluster...)
	storage, front, rest := cluster[0], cluster[1], cluster[2:]
	for _, c := range []*component{storage, front} {
		if err := s.startLocked(c); err != nil {
			return err
		}
	}
	if err := s.awaitHealthy(ctx, storage, time.Minute); err != nil {
		return err
	}
	s.progress("etcd answers")
	if err := s.awaitHealthy(ctx, front, 2*time.Minute); err != nil {
		return err
	}
	s.progress("kube-apiserver is ready")
	for _, c := range rest {
		if err := s.startLocked(c); err != nil {
			return err
		}
	}
	var waits []func() error
	for _, c := range rest {
		waits = append(waits, func() error { return s.awaitHealthy(ctx, c, 2*time.Minute) })
	}
	if err := together(append(waits, func() error { return s.awaitNodes(ctx) })...); err != nil {
		return err
	}
	s.progress("controllers, scheduler, %d nodes Ready", len(nodes()))

	if err := s.applyExtrasLocked(ctx); err != nil {
		return err
	}
	s.record.Ready = true
	return s.saveLocked()
}

// together runs all at once and returns all errors.
func together(ff ...func() error) error {
	errs := make([]error, len(ff))
	var wg sync.WaitGroup
	for i, f := range ff {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// wire makes the namespaces, cables, addresses, routes and rules.
func (s *Site) wire(ctx context.Context, hh []host) error {
	if err := tool(ctx, cabling(s.name, hh), "ip", "-batch", "-"); err != nil {
		return err
	}
	var jobs []func() error
	for _, seg := range segments {
		jobs = append(jobs, func() error {
			return tool(ctx, switchSetup(seg, hh), "ip", "-n", nsName(s.name, "sw"+seg), "-batch", "-")
		})
	}
	for _, h := range hh {
		jobs = append(jobs, func() error {
			ns := nsName(s.name, h.name)
			err := InNetns(filepath.Join(netnsDir, ns), func() error { return writeSysctls(slices.Concat(baseline, h.sysctls)) })
			if err == nil {
				err = tool(ctx, hostSetup(h), "ip", "-n", ns, "-batch", "-")
			}
			if err == nil && h.nft != "" {
				err = tool(ctx, h.nft, "ip", "netns", "exec", ns, "nft", "-f", "-")
			}
			if err != nil {
				return fmt.Errorf("host %s: %w", h.name, err)
			}
			return nil
		})
	}
	return together(jobs...)
}

// installPrograms puts copies on the tmpfs: a lab keeps running while its programs are built anew.
func (s *Site) installPrograms() error {
	o := s.record.Options
	for name, from := range map[string]string{"lab": o.Lab, "labkube": o.Labkube} {
		if err := copyProgram(from, s.path("bin", name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubectl"} {
		if err := os.Symlink("labkube", s.path("bin", name)); err != nil {
			return err
		}
	}
	return s.installImages()
}

// ImagesFile is where the agents find Options.Images, in the lab's directory.
const ImagesFile = "config/images.json"

func (s *Site) installImages() error {
	images := map[string][]string{}
	for name, argv := range s.record.Options.Images {
		if len(argv) == 0 {
			return fmt.Errorf("image %s: no program given", name)
		}
		to := s.path("bin", filepath.Base(argv[0]))
		if err := copyProgram(argv[0], to); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("image %s: %w", name, err)
		}
		images[name] = append([]string{to}, argv[1:]...)
	}
	data, err := json.Marshal(images)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path(ImagesFile), data, 0o644)
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *Site) startLocked(c *component) error {
	if err := s.spawnLocked(c); err != nil {
		return err
	}
	return s.saveLocked()
}

// Down removes the lab. See the function Down.
func (s *Site) Down(ctx context.Context) error { return Down(ctx, s.name) }

// Down ends every process of the lab and removes its namespaces and files. It goes by what is there, not by what
// should be: it is right after a crash, after half an Up, and when there is nothing to remove.
func Down(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	unlock, err := lock(name, time.Minute)
	if err != nil {
		return err
	}
	defer unlock()
	return teardown(ctx, name)
}

func teardown(ctx context.Context, name string) error {
	s := newSite(name)
	if s.load() == nil {
		for _, c := range s.record.Components {
			if c.alive() {
				_ = killHard(c.PID)
			}
		}
	}
	// And those of a lab whose record or namespaces somebody has removed.
	strays, err := processesOf(s.dir)
	if err != nil {
		return err
	}
	for _, pid := range strays {
		_ = killHard(pid)
	}
	// An agent that is just making a pod can add a namespace after we looked; so look until nothing is left.
	err = poll(ctx, 30*time.Second, 10*time.Millisecond, func() error {
		names, err := namespaces(name)
		if err != nil || len(names) == 0 {
			return err
		}
		if err := killAllIn(ctx, names); err != nil {
			return err
		}
		for _, n := range names {
			if err := RemoveNamespace(n); err != nil {
				return err
			}
		}
		return fmt.Errorf("%d namespaces are still there", len(names))
	})
	if err != nil {
		return fmt.Errorf("take lab %s down: %w", name, err)
	}
	return os.RemoveAll(s.dir)
}

// netns returns the name of the network namespace of a host, or of a pod given as NAMESPACE/POD.
func (s *Site) netns(hostName string) (string, error) {
	if s.isHost(hostName) {
		return nsName(s.name, hostName), nil
	}
	if strings.Contains(hostName, "/") {
		return s.podNetns(hostName)
	}
	return "", s.noSuchHost(hostName)
}

// Command prepares a program to be run on a host (or in a pod: NAMESPACE/POD), with the host's own /run.
func (s *Site) Command(ctx context.Context, hostName string, argv ...string) (*exec.Cmd, error) {
	ns, err := s.netns(hostName)
	if err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, errors.New("no program given")
	}
	var binds []string
	if s.isHost(hostName) {
		binds = s.hostBinds(hostName)
	}
	cmd := exec.CommandContext(ctx, s.path("bin", "lab"), EnterArgs(ns, binds, argv)...)
	cmd.WaitDelay = 2 * time.Second // a grandchild may hold the pipes open for ever
	return cmd, nil
}

// Exec runs a program on a host to its end and returns what it printed. The error holds its standard error.
func (s *Site) Exec(ctx context.Context, hostName string, argv ...string) (string, error) {
	cmd, err := s.Command(ctx, hostName, argv...)
	if err != nil {
		return "", err
	}
	return capture(cmd, hostName+": "+strings.Join(argv, " "))
}

func capture(cmd *exec.Cmd, what string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", what, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// LinkDown pulls the cable of a host's interface: both ends lose the carrier. LinkUp puts it back. veth0 of the
// edge has no cable of its own; it is on eth1's.
func (s *Site) LinkDown(hostName, iface string) error { return s.setCable(hostName, iface, "down") }

// LinkUp undoes LinkDown.
func (s *Site) LinkUp(hostName, iface string) error { return s.setCable(hostName, iface, "up") }

func (s *Site) setCable(hostName, iface, state string) error {
	now := newSite(s.name) // somebody else may have attached it
	if err := now.load(); err != nil {
		return err
	}
	segment, port, err := now.cable(hostName, iface)
	if err != nil {
		return err
	}
	return tool(context.Background(), "", "ip", "-n", nsName(s.name, "sw"+segment), "link", "set", port, state)
}
