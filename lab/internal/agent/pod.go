package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/lab/site"
)

// pod is one Pod on this node. Its goroutine owns everything but the inbox.
type pod struct {
	agent   *Agent
	started bool // its goroutine runs; guarded by agent.mu
	adopted bool // an earlier agent started it

	mu   sync.Mutex
	next *corev1.Pod // newest version, nil: the object is gone
	kick chan struct{}

	rec        site.PodRecord
	obj        *corev1.Pod
	containers []*container
	exits      chan exit
	probes     chan probeResult
	stopProbes context.CancelFunc
	failure    string // why it cannot run at all
	reported   string // the status last written
	since      map[corev1.PodConditionType]corev1.PodCondition
	ending     bool
}

func newPod(a *Agent, rec site.PodRecord) *pod {
	if rec.Containers == nil {
		rec.Containers = map[string]site.ContainerRecord{}
	}
	return &pod{
		agent: a, rec: rec,
		kick:   make(chan struct{}, 1),
		exits:  make(chan exit, 16),
		probes: make(chan probeResult, 16),
		since:  map[corev1.PodConditionType]corev1.PodCondition{},
	}
}

// offer leaves a version of the object for the goroutine, which looks only at the newest.
func (p *pod) offer(obj *corev1.Pod) {
	p.mu.Lock()
	p.next = obj
	p.mu.Unlock()
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

func (p *pod) newest() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

func (p *pod) dir() string { return filepath.Join(p.agent.podsDir(), p.rec.UID) }

// run is the pod's life. It returns when nothing of it is left, or when the agent ends.
func (p *pod) run(ctx context.Context) {
	probeCtx, stopProbes := context.WithCancel(ctx)
	defer stopProbes()
	p.stopProbes = stopProbes

	<-p.kick
	if p.obj = p.newest(); p.obj != nil && p.obj.DeletionTimestamp == nil || p.adopted {
		if err := p.begin(probeCtx); err != nil {
			p.failure = err.Error()
			p.agent.log.Warn("pod cannot run", "pod", p.rec.Name, "error", err)
		}
	}
	var kill, retry, restart, term <-chan time.Time
	for {
		if p.obj == nil && !p.ending {
			p.ending = true
			p.signal(syscall.SIGKILL)
		}
		if p.obj != nil && p.obj.DeletionTimestamp != nil && !p.ending {
			p.ending = true
			kill = time.After(grace(p.obj))
			term = time.After(preStop(p.obj))
		}
		if p.ending && !p.running() {
			if p.remove(ctx) {
				return
			}
			retry = time.After(200 * time.Millisecond)
		} else if p.obj != nil {
			restart = p.restartDue(probeCtx)
			if !p.report(ctx) {
				retry = time.After(200 * time.Millisecond)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			p.obj = p.newest()
		case e := <-p.exits:
			p.exited(e)
		case r := <-p.probes:
			p.probed(r)
		case <-term:
			p.signal(syscall.SIGTERM)
		case <-kill:
			p.signal(syscall.SIGKILL)
		case <-restart:
		case <-retry:
		}
	}
}

// begin makes the pod's network and starts its containers, or finds those that an earlier agent started.
func (p *pod) begin(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(p.dir(), "run"), 0o755); err != nil {
		return err
	}
	if p.rec.IP == "" {
		if p.rec.Hostname = p.obj.Spec.Hostname; p.rec.Hostname == "" {
			p.rec.Hostname = p.rec.Name
		}
		if err := p.connect(ctx); err != nil {
			return err
		}
		resolv := p.agent.resolvConf(p.rec.Namespace)
		if err := os.WriteFile(filepath.Join(p.dir(), "resolv.conf"), []byte(resolv), 0o644); err != nil {
			return err
		}
		p.save()
	}
	if p.obj == nil {
		// Nobody tells us any more what it should be; the record says what there is to end.
		for name, r := range p.rec.Containers {
			c := &container{spec: corev1.Container{Name: name}, rec: r}
			p.containers = append(p.containers, c)
			p.watchAdopted(c)
		}
		return nil
	}
	if err := p.makeVolumes(ctx); err != nil {
		return err
	}
	for _, spec := range p.obj.Spec.Containers {
		c := &container{spec: spec}
		p.containers = append(p.containers, c)
		if r, ok := p.rec.Containers[spec.Name]; ok {
			c.rec = r
			p.watchAdopted(c)
			if c.running {
				p.probe(ctx, c)
			}
			continue
		}
		p.start(ctx, c)
	}
	p.save()
	return nil
}

// connect gives the pod an address, and unless it uses its node's network a namespace with a cable to the node.
func (p *pod) connect(ctx context.Context) error {
	if p.obj.Spec.HostNetwork {
		p.rec.IP, p.rec.IP6 = p.agent.cfg.Address.String(), p.agent.cfg.Address6.String()
		return nil
	}
	ip, err := p.agent.takeIP(types.UID(p.rec.UID))
	if err != nil {
		return err
	}
	netns := "ghlab-" + p.agent.cfg.Lab + "-p-" + p.rec.UID[:8]
	// An agent killed between making it and writing it down may have left it.
	if err := site.RemoveNamespace(netns); err != nil {
		return err
	}
	ip6 := p.agent.sixth(ip)
	gateway, gateway6 := p.agent.cfg.PodCIDR.Masked().Addr().Next(), p.agent.cfg.PodCIDR6.Masked().Addr().Next()
	port := "v" + p.rec.UID[:8]
	err = ipBatch(ctx, "", fmt.Sprintf(`netns add %[1]s
link add %[2]s type veth peer name eth0 netns %[1]s
addr add %[3]s/32 dev %[2]s
addr add %[5]s/128 dev %[2]s nodad
link set %[2]s up
route add %[4]s/32 dev %[2]s
route add %[6]s/128 dev %[2]s
`, netns, port, gateway, ip, gateway6, ip6))
	if err == nil {
		err = ipBatch(ctx, netns, fmt.Sprintf(`link set lo up
addr add %[1]s/32 dev eth0
addr add %[3]s/128 dev eth0 nodad
link set eth0 up
route add %[2]s dev eth0 scope link
route add default via %[2]s
route add %[4]s dev eth0
route add default via %[4]s dev eth0
`, ip, gateway, ip6, gateway6))
	}
	if err != nil {
		return fmt.Errorf("connect pod: %w", err)
	}
	p.rec.Netns, p.rec.IP, p.rec.IP6 = netns, ip.String(), ip6.String()
	return nil
}

func (p *pod) save() {
	for _, c := range p.containers {
		p.rec.Containers[c.spec.Name] = c.rec
	}
	data, err := json.Marshal(p.rec)
	if err == nil {
		tmp := filepath.Join(p.dir(), ".pod.json")
		if err = os.WriteFile(tmp, data, 0o644); err == nil {
			err = os.Rename(tmp, filepath.Join(p.dir(), "pod.json"))
		}
	}
	if err != nil {
		p.agent.log.Error("write down pod", "pod", p.rec.Name, "error", err)
	}
}

// remove takes away what is left of the pod here, then the object; true when both are gone.
func (p *pod) remove(ctx context.Context) bool {
	p.stopProbes()
	if p.rec.Netns != "" {
		// Whatever a container's process left behind in it would keep the namespace and its address.
		if err := site.EmptyNamespace(ctx, p.rec.Netns); err != nil {
			p.agent.log.Error("remove pod", "pod", p.rec.Name, "error", err)
			return false
		}
		// The route goes with the cable, yet only when the kernel gets to it; an address given out again must not wait.
		_ = ipBatch(ctx, "", "link del v"+p.rec.UID[:8]+"\n")
		if err := site.RemoveNamespace(p.rec.Netns); err != nil {
			p.agent.log.Error("remove pod", "pod", p.rec.Name, "error", err)
			return false
		}
		p.rec.Netns = ""
	}
	if p.obj != nil {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		zero, uid := int64(0), types.UID(p.rec.UID)
		err := p.agent.client.CoreV1().Pods(p.rec.Namespace).Delete(ctx, p.rec.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid},
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			p.agent.log.Warn("delete pod object", "pod", p.rec.Name, "error", err)
			return false
		}
	}
	_ = os.RemoveAll(p.dir())
	p.agent.forget(p)
	return true
}

func grace(obj *corev1.Pod) time.Duration {
	if s := obj.DeletionGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return 30 * time.Second
}

// preStop is the longest sleep that a container asks for before it is told to end. Other hooks are not run.
func preStop(obj *corev1.Pod) time.Duration {
	var d time.Duration
	for _, c := range obj.Spec.Containers {
		if c.Lifecycle != nil && c.Lifecycle.PreStop != nil && c.Lifecycle.PreStop.Sleep != nil {
			d = max(d, time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second)
		}
	}
	return d
}

// report writes the status if it differs from what was written last; false: try again.
func (p *pod) report(ctx context.Context) bool {
	status := p.status()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.rec.UID}, "status": status})
	if err != nil {
		p.agent.log.Error("pod status", "pod", p.rec.Name, "error", err)
		return true
	}
	if string(patch) == p.reported && !p.overruled(status) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	obj, err := p.agent.client.CoreV1().Pods(p.rec.Namespace).Patch(ctx, p.rec.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) && p.ending:
		return true // its end is on the way to us
	case err != nil:
		p.agent.log.Warn("write pod status", "pod", p.rec.Name, "error", err)
		return false
	}
	p.reported = string(patch)
	if p.obj != nil && p.newest() == p.obj {
		p.obj = obj
	}
	return true
}

// overruled: somebody else wrote another readiness. The node controller does when a node was away for a while.
func (p *pod) overruled(status corev1.PodStatus) bool {
	for _, c := range p.obj.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status != conditionOf(status, corev1.PodReady)
		}
	}
	return false
}

func conditionOf(s corev1.PodStatus, t corev1.PodConditionType) corev1.ConditionStatus {
	i := slices.IndexFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == t })
	if i < 0 {
		return corev1.ConditionUnknown
	}
	return s.Conditions[i].Status
}
