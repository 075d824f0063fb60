package site

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// SampleManifests are two Services with three pods each: home/web, open at home, and ingress-public/shop, open to
// the Internet.
//
//go:embed samples.yaml
var SampleManifests string

// FindSystemPrograms adds the directories of ip and nft to the PATH: a root who came by su, or a cron job, may have
// none of them in it. Up does it too.
func FindSystemPrograms() {
	path := os.Getenv("PATH")
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if !slices.Contains(filepath.SplitList(path), dir) {
			path += ":" + dir
		}
	}
	_ = os.Setenv("PATH", strings.TrimPrefix(path, ":")) // fails for names with "=" or NUL only
}

// checkMachine says everything that is missing at once, and what to do about it.
func checkMachine(o Options) error {
	errs := []error{checkBare(o)}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("a lab makes network namespaces: run it as root"))
	}
	switch o.ProxyMode {
	case "nftables", "iptables":
	default:
		errs = append(errs, fmt.Errorf("kube-proxy mode %q: want nftables or iptables", o.ProxyMode))
	}
	tools := map[string]string{"ip": "iproute2", "nft": "nftables"}
	if o.ProxyMode == "iptables" {
		tools["iptables"] = "iptables"
	}
	for program, pkg := range tools {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, fmt.Errorf("the program %s is missing: install the package %s", program, pkg))
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		errs = append(errs, errors.New("/dev/shm is no tmpfs, and a lab keeps its state there: mount -t tmpfs tmpfs /dev/shm"))
	} else if free := fs.Bavail * uint64(fs.Bsize); free < 512<<20 {
		errs = append(errs, fmt.Errorf("/dev/shm has %d MB free, a lab wants 512: mount -o remount,size=2G /dev/shm", free>>20))
	}
	return errors.Join(errs...)
}

// controlPlaneLabel is what kubeadm gives a control-plane node, by its admin: a kubelet may not.
const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// awaitNodes waits until all nodes are Ready, and until a pod can be made in the namespace default.
func (s *Site) awaitNodes(ctx context.Context) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	return poll(ctx, 2*time.Minute, 50*time.Millisecond, func() error {
		list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list nodes: %w", err)
		}
		ready := 0
		for i := range list.Items {
			node := &list.Items[i]
			own := 0 // taints
			if node.Name == "cp" {
				own = 1
				if err := labelControlPlane(ctx, client, node); err != nil {
					return err
				}
			}
			// The taint of a node that is not ready goes a little later; until then pods crowd on the others.
			if nodeReady(node) && len(node.Spec.Taints) == own {
				ready++
			}
		}
		if all := len(nodes()); ready < all {
			return fmt.Errorf("%d of %d nodes are Ready", ready, all)
		}
		if _, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return fmt.Errorf("no pod can be made yet: %w", err)
		}
		return nil
	})
}

func labelControlPlane(ctx context.Context, client kubernetes.Interface, node *corev1.Node) error {
	if _, ok := node.Labels[controlPlaneLabel]; ok {
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:""}}}`, controlPlaneLabel)
	_, err := client.CoreV1().Nodes().Patch(ctx, node.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("label node %s: %w", node.Name, err)
	}
	return nil
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// applyExtrasLocked does what Options asks for beyond the bare cluster.
func (s *Site) applyExtrasLocked(ctx context.Context) error {
	o := s.record.Options
	for _, m := range o.Manifests {
		if _, err := s.Kubectl(ctx, "apply", "-f", m); err != nil {
			return err
		}
		s.progress("applied %s", m)
	}
	if o.Gatehouse != "" && !o.Bare {
		kubeconfig, err := s.gatehouseKubeconfig(ctx)
		if err != nil {
			return err
		}
		if err := s.addLocked(ctx, s.gatehouse(o.Gatehouse, o.Config, kubeconfig)); err != nil {
			return err
		}
		s.progress("gatehouse runs on the edge")
	}
	if o.Samples {
		if err := s.Apply(ctx, SampleManifests); err != nil {
			return err
		}
		if err := s.AwaitDeployment(ctx, "home", "web", time.Minute); err != nil {
			return err
		}
		if err := s.AwaitDeployment(ctx, "ingress-public", "shop", time.Minute); err != nil {
			return err
		}
		if err := s.awaitSamples(ctx); err != nil {
			return err
		}
		s.progress("samples: home/web, ingress-public/shop, 3 pods each")
	}
	return nil
}

// AwaitDeployment waits until all pods of a Deployment are up to date and available.
func (s *Site) AwaitDeployment(ctx context.Context, namespace, name string, limit time.Duration) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	return poll(ctx, limit, 50*time.Millisecond, func() error {
		d, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		st := d.Status
		if st.ObservedGeneration < d.Generation || st.UpdatedReplicas != want || st.AvailableReplicas != want || st.Replicas != want {
			return fmt.Errorf("deployment %s/%s: %d of %d pods available, %d updated, %d in all",
				namespace, name, st.AvailableReplicas, want, st.UpdatedReplicas, st.Replicas)
		}
		return nil
	})
}

// awaitSamples waits until what is ready is also served: kube-proxy writes its rules up to a second after the
// EndpointSlice, and the commands that `lab up` prints are tried at once.
func (s *Site) awaitSamples(ctx context.Context) error {
	client, err := s.Client()
	if err != nil {
		return err
	}
	for _, key := range [][2]string{{"home", "web"}, {"ingress-public", "shop"}} {
		service, err := client.CoreV1().Services(key[0]).Get(ctx, key[1], metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range Workers {
			url := fmt.Sprintf("http://%s:%d/", workerAddr(i+1), service.Spec.Ports[0].NodePort)
			if err := poll(ctx, 30*time.Second, 50*time.Millisecond, func() error { return s.get(ctx, "edge", url) }); err != nil {
				return fmt.Errorf("sample %s/%s: %w", key[0], key[1], err)
			}
		}
	}
	if s.record.Options.Gatehouse == "" {
		return nil
	}
	for from, url := range map[string]string{"home1": "http://" + EdgeHome + "/", "inet": "http://" + PublicAddress + ":8080/"} {
		// No error: with a configuration of one's own the samples may well be closed.
		if err := poll(ctx, 10*time.Second, 50*time.Millisecond, func() error { return s.get(ctx, from, url) }); err != nil {
			s.progress("note: %s does not answer %s yet: %v", url, from, err)
		}
	}
	return nil
}

// get is nil when the URL answers 200 to the host.
func (s *Site) get(ctx context.Context, from, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: s.Dialer(from), DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %d", url, resp.StatusCode)
	}
	return nil
}

// PodRecord is what an agent keeps on disk about a pod that it runs: enough for the next agent to go on with it.
type PodRecord struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Netns     string `json:"netns"` // empty: the node's own
	IP        string `json:"ip"`
	IP6       string `json:"ip6"`
	Hostname  string `json:"hostname"`
	// Containers by name.
	Containers map[string]ContainerRecord `json:"containers"`
}

// ContainerRecord is one container's process.
type ContainerRecord struct {
	PID      int    `json:"pid"`
	Started  uint64 `json:"started"`
	Restarts int32  `json:"restarts"`
	ID       string `json:"id"`
}

// StartTime of a process in clock ticks since boot, or 0 when it does not run. With the pid it names a process for
// good; the pid alone can be somebody else's by now.
func StartTime(pid int) uint64 { return startTime(pid) }

// PodRecords reads what the agents have written, all nodes'.
func (s *Site) PodRecords() ([]PodRecord, error) {
	var all []PodRecord
	for _, n := range nodes() {
		entries, err := os.ReadDir(s.path("pods", n))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			data, err := os.ReadFile(s.path("pods", n, e.Name(), "pod.json"))
			if err != nil {
				continue // just going, or just coming
			}
			var r PodRecord
			if json.Unmarshal(data, &r) == nil {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

func (s *Site) podNetns(name string) (string, error) {
	records, err := s.PodRecords()
	if err != nil {
		return "", err
	}
	for _, r := range records {
		if r.Namespace+"/"+r.Name == name && r.Netns != "" {
			return r.Netns, nil
		}
	}
	return "", fmt.Errorf("no pod %s runs in this lab", name)
}

// ComponentStatus is one row of Status.
type ComponentStatus struct {
	Name, Host, Log string
	PID             int
	State           string // healthy, running (cannot be asked), paused, stopped, dead, or what its health address says
}

// HostStatus is one host and its addresses, as "eth1 10.11.12.32".
type HostStatus struct {
	Name      string
	Addresses []string
	Processes int
}

// Status is what there is, looked at now.
type Status struct {
	Name       string
	Dir        string
	Created    time.Time
	Ready      bool
	Hosts      []HostStatus
	Components []ComponentStatus
}

// Status looks at every host and component.
func (s *Site) Status(ctx context.Context) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(); err != nil {
		return Status{}, err
	}
	st := Status{Name: s.name, Dir: s.dir, Created: s.record.Created, Ready: s.record.Ready}
	for _, h := range hosts(s.record.Options) {
		pids, err := processesIn([]string{nsName(s.name, h.name)})
		if err != nil {
			return st, err
		}
		st.Hosts = append(st.Hosts, HostStatus{Name: h.name, Addresses: h.addresses(), Processes: len(pids)})
	}
	st.Components = make([]ComponentStatus, len(s.record.Components))
	var asks []func() error
	for i, c := range s.record.Components {
		asks = append(asks, func() error {
			row := ComponentStatus{Name: c.Name, Host: c.Host, PID: c.PID, Log: s.logPath(c.Name), State: "healthy"}
			err := s.healthy(ctx, c)
			switch {
			case errors.Is(err, errDead):
				row.State, row.PID = "dead", 0
			case err != nil && !c.alive():
				row.State, row.PID = "stopped", 0
			case c.paused():
				row.State = "paused"
			case err != nil:
				row.State = strings.Join(strings.Fields(err.Error()), " ")
			case c.Health == "":
				row.State = "running"
			}
			st.Components[i] = row
			return nil
		})
	}
	return st, together(asks...)
}
