// Package agent owns what a kubelet would do in the lab: it registers a Node and keeps it Ready, and turns every Pod
// bound to the node into a network namespace with processes in it, whose state it reports. It leaves networks between
// nodes to package site and Services to kube-proxy.
//
// It is no kubelet: no images, exec, liveness probes or resource limits, and volumes only for pods with a ServiceAccount
// of their own. What it does do, it does as fast as it can, since everything that tests wait for goes through it.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/lab/site"
)

// Config of one worker's agent.
type Config struct {
	Lab        string
	Node       string
	Address    netip.Addr   // of the node, IPv4
	Address6   netip.Addr   // and IPv6
	IPv4Node   bool         // the Node does not tell of Address6
	PodCIDR    netip.Prefix // for its pods, a /24; zero: none but those with hostNetwork
	PodCIDR6   netip.Prefix // and IPv6: a pod has the same last number in both
	Kubeconfig string
	// ControlPlane registers the node with the taint and the label of one that takes neither pods nor their traffic.
	ControlPlane bool
	Dir          string // of the lab
}

// Agent runs the pods of one node.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	client kubernetes.Interface

	mu   sync.Mutex
	pods map[types.UID]*pod
	ips  map[netip.Addr]types.UID
	last netip.Addr // given out most recently: the next one is behind it, so an address rests before its reuse
	wg   sync.WaitGroup
}

// New makes an agent; Run starts it.
func New(cfg Config, log *slog.Logger) (*Agent, error) {
	config, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 200, 400
	config.UserAgent = "lab-agent"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: log, client: client,
		pods: map[types.UID]*pod{},
		ips:  map[netip.Addr]types.UID{},
	}
	if cfg.PodCIDR.IsValid() {
		a.last = cfg.PodCIDR.Masked().Addr().Next() // .1 is the node's end of every pod's cable
	}
	return a, nil
}

// Run works until the context ends. Pods keep running then, and the next agent goes on with them.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.podsDir(), 0o755); err != nil {
		return err
	}
	a.adopt()
	go a.serveHealth(ctx)
	go a.serveLogs(ctx)
	if a.cfg.PodCIDR.IsValid() {
		go a.serveDNS(ctx)
	}
	go a.keepNode(ctx)

	factory := informers.NewSharedInformerFactoryWithOptions(a.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", a.cfg.Node).String()
	}))
	informer := factory.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { a.changed(ctx, o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { a.changed(ctx, o.(*corev1.Pod)) },
		DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			if p, ok := o.(*corev1.Pod); ok {
				a.gone(p.UID)
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		a.dropUnknown(informer.GetStore())
	}
	<-ctx.Done()
	a.wg.Wait()
	return nil
}

func (a *Agent) podsDir() string { return filepath.Join(a.cfg.Dir, "pods", a.cfg.Node) }

// changed hands the newest version of a pod to the goroutine that owns it.
func (a *Agent) changed(ctx context.Context, obj *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pods[obj.UID]
	if p == nil {
		if done(obj) && obj.DeletionTimestamp == nil {
			return // it ran to its end under an earlier agent
		}
		p = newPod(a, site.PodRecord{Namespace: obj.Namespace, Name: obj.Name, UID: string(obj.UID)})
		a.pods[obj.UID] = p
	}
	p.offer(obj)
	if !p.started {
		p.started = true
		a.wg.Go(func() {
			p.run(ctx)
		})
	}
}

func done(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// gone: the object is no more, without having waited for us.
func (a *Agent) gone(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pods[uid]; p != nil {
		p.offer(nil)
	}
}

// forget is called by a pod's goroutine when nothing of the pod is left.
func (a *Agent) forget(p *pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, types.UID(p.rec.UID))
	for ip, uid := range a.ips {
		if uid == types.UID(p.rec.UID) {
			delete(a.ips, ip)
		}
	}
}

// adopt reads what an earlier agent of this node left running.
func (a *Agent) adopt() {
	entries, err := os.ReadDir(a.podsDir())
	if err != nil {
		a.log.Error("read pods of an earlier agent", "error", err)
		return
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(a.podsDir(), e.Name(), "pod.json"))
		var rec site.PodRecord
		if err == nil {
			err = json.Unmarshal(data, &rec)
		}
		if err != nil {
			_ = os.RemoveAll(filepath.Join(a.podsDir(), e.Name()))
			continue
		}
		p := newPod(a, rec)
		p.adopted = true
		a.pods[types.UID(rec.UID)] = p
		if ip, err := netip.ParseAddr(rec.IP); err == nil {
			a.ips[ip] = types.UID(rec.UID)
		}
	}
}

// dropUnknown ends the pods that were deleted while no agent ran.
func (a *Agent) dropUnknown(store cache.Store) {
	known := map[types.UID]bool{}
	for _, o := range store.List() {
		known[o.(*corev1.Pod).UID] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, p := range a.pods {
		if !known[uid] && !p.started {
			p.started = true
			p.offer(nil)
			a.wg.Go(func() {
				p.run(context.Background())
			})
		}
	}
}

// takeIP reserves an address for a pod.
func (a *Agent) takeIP(uid types.UID) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.cfg.PodCIDR.IsValid() {
		return netip.Addr{}, errors.New("this node has no addresses for pods, it runs those with hostNetwork")
	}
	first := a.cfg.PodCIDR.Masked().Addr().Next().Next()
	ip := a.last
	for range 253 {
		ip = ip.Next()
		if !a.cfg.PodCIDR.Contains(ip.Next()) { // the last address is the broadcast address
			ip = first
		}
		if _, used := a.ips[ip]; !used {
			a.ips[ip] = uid
			a.last = ip
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address is free in %s", a.cfg.PodCIDR)
}

// sixth returns the pod's IPv6 address: the last number of the IPv4 address, as it is written (10.244.1.17,
// fd00:244:1::17), so that a person sees at once whose it is.
func (a *Agent) sixth(ip netip.Addr) netip.Addr {
	last := ip.As4()[3]
	addr := a.cfg.PodCIDR6.Masked().Addr().As16()
	addr[14], addr[15] = last/100, last/10%10<<4|last%10
	return netip.AddrFrom16(addr)
}

const apiTimeout = 5 * time.Second
