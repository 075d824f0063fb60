package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	heartbeat     = 10 * time.Second // as a kubelet does
	leaseSeconds  = int32(40)
	reportEvery   = 5 * time.Minute
	nodeNamespace = corev1.NamespaceNodeLease
	kubeletPort   = 10250
)

// keepNode registers the node and renews its lease.
func (a *Agent) keepNode(ctx context.Context) {
	var reported time.Time
	for {
		wait := heartbeat
		if err := a.beat(ctx, &reported); err != nil {
			if ctx.Err() != nil {
				return
			}
			a.log.Warn("node heartbeat failed", "error", err)
			wait = 200 * time.Millisecond // at start it decides how soon the node is Ready
			if !reported.IsZero() {
				wait = time.Second
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (a *Agent) beat(ctx context.Context, reported *time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	nodes := a.client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, a.cfg.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		node, err = nodes.Create(ctx, a.node(), metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	if !ready(node) || time.Since(*reported) > reportEvery {
		patch, err := statusPatch(a.nodeStatus(node))
		if err != nil {
			return err
		}
		if _, err := nodes.Patch(ctx, a.cfg.Node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			return err
		}
		*reported = time.Now()
		a.log.Info("node reported ready")
	}
	return a.renew(ctx, node)
}

// statusPatch replaces the addresses as a whole, as kubelets do: a strategic merge goes by their type, and finds the
// second InternalIP twice.
func statusPatch(status corev1.NodeStatus) ([]byte, error) {
	type inner corev1.NodeStatus
	whole := struct {
		inner
		Addresses []any `json:"addresses"` // hides the inner one
	}{inner: inner(status)}
	for _, address := range status.Addresses {
		whole.Addresses = append(whole.Addresses, address)
	}
	whole.Addresses = append(whole.Addresses, map[string]string{"$patch": "replace"})
	return json.Marshal(map[string]any{"status": whole})
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (a *Agent) node() *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: a.cfg.Node,
			Labels: map[string]string{
				corev1.LabelHostname:   a.cfg.Node,
				corev1.LabelOSStable:   runtime.GOOS,
				corev1.LabelArchStable: runtime.GOARCH,
			},
		},
	}
	if a.cfg.PodCIDR.IsValid() {
		node.Spec.PodCIDR = a.cfg.PodCIDR.String()
		node.Spec.PodCIDRs = []string{a.cfg.PodCIDR.String(), a.cfg.PodCIDR6.String()}
	}
	if a.cfg.ControlPlane {
		node.Labels[corev1.LabelNodeExcludeBalancers] = ""
		node.Spec.Taints = []corev1.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule}}
	}
	return node
}

func (a *Agent) nodeStatus(old *corev1.Node) corev1.NodeStatus {
	now := metav1.Now()
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("250"),
	}
	since := now
	for _, c := range old.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			since = c.LastTransitionTime
		}
	}
	addresses := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: a.cfg.Address.String()}}
	if !a.cfg.IPv4Node {
		addresses = append(addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.cfg.Address6.String()})
	}
	return corev1.NodeStatus{
		Capacity: capacity, Allocatable: capacity,
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "AgentReady", Message: "the lab's agent is there",
			LastHeartbeatTime: now, LastTransitionTime: since,
		}},
		Addresses:       append(addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: a.cfg.Node}),
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion: "v1.36.1", OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
			OSImage: "gatehouse lab", ContainerRuntimeVersion: "lab://1", MachineID: a.cfg.Node, SystemUUID: a.cfg.Node,
		},
	}
}

func (a *Agent) renew(ctx context.Context, node *corev1.Node) error {
	leases := a.client.CoordinationV1().Leases(nodeNamespace)
	now, seconds, name := metav1.NowMicro(), leaseSeconds, a.cfg.Node
	spec := coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Name: name, Namespace: nodeNamespace,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}},
			},
			Spec: spec,
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec = spec
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

// serveHealth answers that the agent runs; `lab status` asks.
func (a *Agent) serveHealth(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) })
	server := &http.Server{Addr: "127.0.0.1:10248", Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); ctx.Err() == nil {
		a.log.Error("health server", "error", err)
	}
}
