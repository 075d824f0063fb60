package site

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// controllers are those that a Service and its pods need, and what keeps the cluster tidy. The others cost
// start-up time, and none of them has anything to do in a lab.
var controllers = []string{
	"clusterrole-aggregation-controller", "cronjob-controller", "daemonset-controller", "deployment-controller",
	"disruption-controller", "endpoints-controller", "endpointslice-controller", "endpointslice-mirroring-controller",
	"garbage-collector-controller", "job-controller", "namespace-controller", "node-lifecycle-controller",
	"pod-garbage-collector-controller", "replicaset-controller", "root-ca-certificate-publisher-controller",
	"serviceaccount-controller", "serviceaccount-token-controller", "statefulset-controller", "taint-eviction-controller", "ttl-after-finished-controller",
}

// storage and controlPlane come first, in this order; workers' programs after them.
func (s *Site) planComponents() []*component {
	kubeconfig := func(name string) string { return s.path("kubeconfig", name) }
	cc := []*component{
		{
			Name: "etcd", Host: "cp", Health: "http://127.0.0.1:2379/health",
			Argv: []string{
				s.path("bin", "etcd"),
				"--name=lab", "--data-dir=" + s.path("etcd"),
				"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
				"--initial-cluster=lab=http://127.0.0.1:2380",
				"--unsafe-no-fsync", "--log-level=warn",
			},
		},
		{
			Name: "kube-apiserver", Host: "cp", Health: "https://" + APIServer + "/readyz", Patience: time.Second,
			Argv: []string{
				s.path("bin", "kube-apiserver"),
				"--etcd-servers=http://127.0.0.1:2379",
				"--advertise-address=" + ControlPlane, "--secure-port=6443",
				"--tls-cert-file=" + s.path("pki", "apiserver.crt"), "--tls-private-key-file=" + s.path("pki", "apiserver.key"),
				"--client-ca-file=" + s.path("pki", "ca.crt"),
				"--kubelet-certificate-authority=" + s.path("pki", "ca.crt"),
				"--kubelet-client-certificate=" + s.path("pki", "kubelet-client.crt"),
				"--kubelet-client-key=" + s.path("pki", "kubelet-client.key"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
				"--service-account-key-file=" + s.path("pki", "tokens.key"),
				"--service-account-signing-key-file=" + s.path("pki", "tokens.key"),
				"--service-cluster-ip-range=" + ServiceNet + "," + ServiceNet6,
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
				"--allow-privileged=true",
				// The default waits for load balancers to notice; a lab that stops its API server wants it stopped.
				"--shutdown-delay-duration=0s",
			},
		},
		{
			Name: "kube-controller-manager", Host: "cp", Health: "https://127.0.0.1:10257/healthz",
			Argv: []string{
				s.path("bin", "kube-controller-manager"),
				"--kubeconfig=" + kubeconfig("kube-controller-manager"),
				"--use-service-account-credentials=true", "--leader-elect=false",
				"--controllers=" + strings.Join(controllers, ","),
				"--root-ca-file=" + s.path("pki", "ca.crt"),
				"--service-account-private-key-file=" + s.path("pki", "tokens.key"),
				"--cluster-cidr=" + PodNet + "," + PodNet6, "--allocate-node-cidrs=false",
				"--bind-address=127.0.0.1", "--kube-api-qps=200", "--kube-api-burst=400",
			},
		},
		{
			Name: "kube-scheduler", Host: "cp", Health: "https://127.0.0.1:10259/healthz",
			Argv: []string{
				s.path("bin", "kube-scheduler"),
				"--kubeconfig=" + kubeconfig("kube-scheduler"),
				"--leader-elect=false", "--bind-address=127.0.0.1", "--kube-api-qps=200", "--kube-api-burst=400",
			},
		},
	}
	cc = append(cc, s.agent("cp", ControlPlane, controlPlane6, "--control-plane"))
	for i, w := range Workers {
		cc = append(cc,
			s.agent(w, workerAddr(i+1), workerAddr6(i+1), "--pod-cidr="+podCIDR(i+1), "--pod-cidr6="+podCIDR6(i+1)),
			&component{
				Name: "kube-proxy-" + w, Host: w, Health: "http://127.0.0.1:10256/livez",
				Argv: []string{s.path("bin", "kube-proxy"), "--config=" + s.path("config", "kube-proxy-"+w+".yaml")},
			})
	}
	return cc
}

func (s *Site) agent(node, address, address6 string, more ...string) *component {
	return &component{
		Name: "agent-" + node, Host: node, Machine: true, Health: "http://127.0.0.1:10248/healthz",
		Argv: append([]string{
			s.path("bin", "lab"), "_agent",
			"--lab=" + s.name, "--node=" + node, "--address=" + address, "--address6=" + address6,
			"--kubeconfig=" + s.path("kubeconfig", "agent-"+node), "--dir=" + s.dir,
			fmt.Sprintf("--ipv4-node=%v", s.record.Options.IPv4Nodes),
		}, more...),
	}
}

func workerNumber(name string) int { return slices.Index(Workers, name) + 1 }

// nodes are the hosts that have a Node object.
func nodes() []string { return append([]string{"cp"}, Workers...) }

// writeProxyConfigs: kube-proxy as kubeadm would configure it. Zero conntrack values mean "leave the kernel's
// alone": they are the machine's, and a namespace may not write them.
func (s *Site) writeProxyConfigs() error {
	for _, w := range Workers {
		text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clusterCIDR: %s
hostnameOverride: %s
healthzBindAddress: 0.0.0.0:10256
clientConnection:
  kubeconfig: %s
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
`, s.record.Options.ProxyMode, PodNet+","+PodNet6, w, s.path("kubeconfig", "kube-proxy"))
		if err := os.WriteFile(s.path("config", "kube-proxy-"+w+".yaml"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// healthy asks the component once.
func (s *Site) healthy(ctx context.Context, c *component) error {
	if !c.alive() {
		if c.Stopped {
			return errors.New("stopped")
		}
		return errDead
	}
	if c.Health == "" {
		return nil
	}
	transport := &http.Transport{
		DialContext:       s.Dialer(c.Host),
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // asks our own child whether it is up; some use self-signed certificates
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Health, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode != http.StatusOK {
		line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		return fmt.Errorf("answers %d: %s", resp.StatusCode, line)
	}
	return nil
}

var errDead = errors.New("not running")

// awaitHealthy waits until the component answers, and gives up at once when its process has ended.
func (s *Site) awaitHealthy(ctx context.Context, c *component, limit time.Duration) error {
	var dead error
	err := poll(ctx, limit, 20*time.Millisecond, func() error {
		err := s.healthy(ctx, c)
		if errors.Is(err, errDead) {
			dead = err
			return nil
		}
		return err
	})
	if dead != nil {
		err = dead
	}
	if err != nil {
		return fmt.Errorf("%s: %w; the end of %s:\n%s", c.Name, err, s.logPath(c.Name), s.tail(c.Name, 15))
	}
	return nil
}
