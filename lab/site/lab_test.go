package site_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/site"
)

// The tests of this file share one lab, made by the first that needs it; TestMain takes it down.
var shared struct {
	once sync.Once
	site *site.Site
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if s := shared.site; s != nil {
		if err := s.Down(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// needLab skips where labs are not asked for; where they are, a missing prerequisite is a failure of Up.
func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("GATEHOUSE_LAB") != "required" {
		t.Skip("needs root and the built programs; GATEHOUSE_LAB=required runs it")
	}
}

func lab(t *testing.T) *site.Site {
	t.Helper()
	needLab(t)
	shared.once.Do(func() {
		shared.site, shared.err = site.Up(t.Context(), site.Options{Name: "labtest", Progress: os.Stderr})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func kubectl(t *testing.T, s *site.Site, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := s.Kubectl(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

type answer struct{ Pod, Node, Client, Local string }

func ask(s *site.Site, from, url string) (answer, error) {
	client := &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{DialContext: s.Dialer(from), DisableKeepAlives: true},
	}
	resp, err := client.Get(url)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var a answer
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// deploy makes a namespace with a Deployment and a NodePort Service in it, both named web, and waits for the pods.
func deploy(t *testing.T, s *site.Site, namespace string, replicas int, container string) (nodePort string) {
	t.Helper()
	err := s.Apply(t.Context(), fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, nodeTaintsPolicy: Honor, labelSelector: {matchLabels: {app: web}}}
      containers: [%[3]s]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: %[1]s}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`, namespace, replicas, container))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.Kubectl(context.Background(), "delete", "namespace", namespace, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	if err := s.AwaitDeployment(t.Context(), namespace, "web", time.Minute); err != nil {
		t.Fatal(err)
	}
	return kubectl(t, s, "-n", namespace, "get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
}

const webContainer = `{name: web, image: lab/web, ports: [{containerPort: 8080}], readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}}`

// Scheduler, ReplicaSet, EndpointSlice, kube-proxy and the pods' network, all in one: each worker's NodePort leads to
// the pod on it, and that pod sees the edge's own address, as externalTrafficPolicy Local promises.
func TestNodePortLeadsToTheNodesOwnPod(t *testing.T) {
	s := lab(t)
	port := deploy(t, s, "nodeport", 3, webContainer)
	for i, w := range site.Workers {
		url := fmt.Sprintf("http://10.0.0.10%d:%s/", i+1, port)
		eventually(t, 30*time.Second, url, func() error {
			a, err := ask(s, "edge", url)
			if err != nil {
				return err
			}
			if client, _, _ := net.SplitHostPort(a.Client); a.Node != w || client != site.EdgeCluster {
				return fmt.Errorf("answered by %+v, want node %s and client %s", a, w, site.EdgeCluster)
			}
			return nil
		})
	}
	if out := kubectl(t, s, "-n", "nodeport", "logs", "deployment/web"); !strings.Contains(out, "serving on port 8080") {
		t.Errorf("kubectl logs: %q", out)
	}
}

// The same in IPv6: pods, node ports and the ways between them. A Service is IPv4 alone unless it asks for more.
func TestDualStack(t *testing.T) {
	s := lab(t)
	port := deploy(t, s, "dual", 3, webContainer)
	if families := kubectl(t, s, "-n", "dual", "get", "service", "web", "-o", "jsonpath={.spec.ipFamilies}"); families != `["IPv4"]` {
		t.Errorf("a Service that does not ask has the families %s", families)
	}
	kubectl(t, s, "-n", "dual", "patch", "service", "web", "-p", `{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`)
	for i, w := range site.Workers {
		url := fmt.Sprintf("http://[fd00:10::10%d]:%s/", i+1, port)
		eventually(t, 30*time.Second, url, func() error {
			a, err := ask(s, "edge", url)
			if err != nil {
				return err
			}
			if client, _, _ := net.SplitHostPort(a.Client); a.Node != w || client != site.EdgeCluster6 {
				return fmt.Errorf("answered by %+v, want node %s and client %s", a, w, site.EdgeCluster6)
			}
			return nil
		})
	}
	ips := strings.Fields(kubectl(t, s, "-n", "dual", "get", "pods", "-o", "jsonpath={.items[*].status.podIPs[1].ip}"))
	names := strings.Fields(kubectl(t, s, "-n", "dual", "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(ips) != 3 {
		t.Fatalf("IPv6 addresses of three pods: %v", ips)
	}
	for _, ip := range ips {
		out, err := s.Exec(t.Context(), "dual/"+names[0], "curl", "-s", "-m", "2", "http://["+ip+"]:8080/")
		if client := `"client":"[` + ips[0] + `]`; err != nil || !strings.Contains(out, client) {
			t.Errorf("from pod to pod: %q, want %s (%v)", out, client, err)
		}
	}
	// What leaves the pods' network leaves as the node.
	listener := listenAll(t, s, "edge", 9996)
	if out, err := s.Exec(t.Context(), "dual/"+names[0], "curl", "-s", "-m", "2", fmt.Sprintf("http://[%s]:%d/", site.EdgeCluster6, listener)); err != nil || !strings.HasPrefix(out, "[fd00:10::10") {
		t.Errorf("the edge sees the pod as %q (%v)", out, err)
	}
}

// The control plane's machine is a node as kubeadm makes one, so that nobody may take it for a way to pods.
func TestControlPlaneNode(t *testing.T) {
	s := lab(t)
	var node struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			PodCIDRs []string
			Taints   []struct{ Key, Effect string }
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, s, "get", "node", "cp", "-o", "json")), &node); err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"node-role.kubernetes.io/control-plane", "node.kubernetes.io/exclude-from-external-load-balancers"} {
		if _, ok := node.Metadata.Labels[label]; !ok {
			t.Errorf("no label %s: %v", label, node.Metadata.Labels)
		}
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Effect != "NoSchedule" || len(node.Spec.PodCIDRs) != 0 {
		t.Errorf("taints %v, pod networks %v", node.Spec.Taints, node.Spec.PodCIDRs)
	}
}

// listenAll is an HTTP server on a host that says where a question came from.
func listenAll(t *testing.T, s *site.Site, host string, port int) int {
	t.Helper()
	var listener net.Listener
	err := s.Do(host, func() (err error) {
		listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		_ = http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) }))
	}()
	return port
}

// listenOn is a TCP listener on the edge that hears only one interface; it answers its name and hangs up.
func listenOn(t *testing.T, s *site.Site, iface string, port int) {
	t.Helper()
	var listener net.Listener
	err := s.Do("edge", func() error {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), iface) })
			return errors.Join(err, cerr)
		}}
		var err error
		listener, err = config.Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, iface)
			conn.Close()
		}
	}()
}

func heardOn(s *site.Site, from, address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := s.Dialer(from)(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	data, err := io.ReadAll(conn)
	return string(data), err
}

// Whatever address of the edge the Internet aims at, it comes in on veth0; home comes in on eth1. This is the weak
// host model at work, and what a test of the zones' walls stands on.
func TestWhereAConnectionComesIn(t *testing.T) {
	s := lab(t)
	for _, iface := range []string{"eth0", "eth1", "veth0"} {
		listenOn(t, s, iface, 9999)
	}
	for _, tt := range []struct{ from, address, want string }{
		{"inet", site.PublicAddress, "veth0"},
		{"inet", site.EdgeExposed, "veth0"},
		{"inet", site.EdgeHome, "veth0"},
		{"inet", site.EdgeCluster, "veth0"},
		{"home1", site.EdgeHome, "eth1"},
		{"home2", site.EdgeCluster, "eth1"},
		{"home1", site.EdgeExposed, "veth0"},
		{"w1", site.EdgeCluster, "eth0"},
		{"w3", site.EdgeHome, "eth0"},
	} {
		// Once more after each other's ARP entries are known: they must not move anything.
		for range 2 {
			got, err := heardOn(s, tt.from, tt.address+":9999")
			if err != nil || got != tt.want {
				t.Errorf("from %s to %s: came in on %q, want %q (%v)", tt.from, tt.address, got, tt.want, err)
			}
		}
	}
}

// The hand-written rules of the edge: home may talk to the API server and to nothing else in the cluster, the
// Internet to nothing at all; the cluster may talk to everybody.
func TestWhatTheEdgeForwards(t *testing.T) {
	s := lab(t)
	get := func(from, url string) error {
		_, err := s.Exec(t.Context(), from, "curl", "-sk", "-m", "2", "-o", "/dev/null", url)
		return err
	}
	api := "https://" + site.APIServer + "/version"
	kubeProxy := "http://10.0.0.101:10256/livez"
	if err := get("home1", api); err != nil {
		t.Errorf("home to the API server: %v", err)
	}
	if get("inet", api) == nil {
		t.Error("the Internet reaches the API server")
	}
	if get("home1", kubeProxy) == nil {
		t.Error("home reaches a worker")
	}
	if err := get("edge", kubeProxy); err != nil {
		t.Errorf("the edge to a worker: %v", err)
	}
	listenAll(t, s, "inet", 8000)
	for _, from := range []string{"home1", "w1", "edge"} {
		out, err := s.Exec(t.Context(), from, "curl", "-s", "-m", "2", "http://"+site.InternetClient+":8000/")
		if err != nil || !strings.HasPrefix(out, site.PublicAddress+":") {
			t.Errorf("%s to the Internet: seen as %q, %v", from, out, err)
		}
	}
}

func TestTokenKubeconfigIsThatAccount(t *testing.T) {
	s := lab(t)
	path, err := s.TokenKubeconfig(t.Context(), "default", "default", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	out := kubectl(t, s, "--kubeconfig", path, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
	if out != "system:serviceaccount:default:default" {
		t.Errorf("the token is %s's", out)
	}
	if out, err := s.Kubectl(t.Context(), "--kubeconfig", path, "get", "nodes"); err == nil {
		t.Errorf("a ServiceAccount without rights may list nodes: %s", out)
	}
}

// Without an API server pods go on; with it back, everything else does.
func TestAPIServerStoppedAndStarted(t *testing.T) {
	s := lab(t)
	port := deploy(t, s, "apistop", 3, webContainer)
	url := "http://10.0.0.101:" + port + "/"
	up := func() error {
		_, err := ask(s, "edge", url)
		return err
	}
	eventually(t, 30*time.Second, "served", up)
	if err := s.Stop(t.Context(), "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	if err := up(); err != nil {
		t.Errorf("without an API server: %v", err)
	}
	if _, err := s.Kubectl(t.Context(), "get", "nodes", "--request-timeout=2s"); err == nil {
		t.Error("kubectl works without an API server")
	}
	if err := s.Start(t.Context(), "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, s, "-n", "apistop", "scale", "deployment", "web", "--replicas=6")
	if err := s.AwaitDeployment(t.Context(), "apistop", "web", time.Minute); err != nil {
		t.Error(err)
	}
}

// An agent that comes back finds the processes of the pods that it started, and ends those deleted meanwhile.
func TestAgentComesBack(t *testing.T) {
	s := lab(t)
	deploy(t, s, "agentback", 3, webContainer)
	pods := func() map[string]int {
		pids := map[string]int{}
		records, err := s.PodRecords()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if r.Namespace == "agentback" {
				pids[r.Name] = r.Containers["web"].PID
			}
		}
		return pids
	}
	before := pods()
	for _, w := range site.Workers {
		if err := s.Kill(t.Context(), "agent-"+w); err != nil {
			t.Fatal(err)
		}
	}
	var victim string
	for name := range before {
		victim = name
	}
	kubectl(t, s, "-n", "agentback", "delete", "pod", victim, "--force", "--grace-period=0")
	again := time.Now().Truncate(time.Second) // as precise as a heartbeat's time is
	for _, w := range site.Workers {
		if err := s.Start(t.Context(), "agent-"+w); err != nil {
			t.Fatal(err)
		}
	}
	const beat = `jsonpath={.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}`
	for _, w := range site.Workers {
		eventually(t, 20*time.Second, "node "+w+" is reported anew", func() error {
			at, err := time.Parse(time.RFC3339, kubectl(t, s, "get", "node", w, "-o", beat))
			if err == nil && at.Before(again) {
				err = fmt.Errorf("last reported at %s, the agent is back since %s", at, again)
			}
			return err
		})
	}
	if err := s.AwaitDeployment(t.Context(), "agentback", "web", time.Minute); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the deleted pod's process ends", func() error {
		if site.StartTime(before[victim]) != 0 {
			return fmt.Errorf("pid %d is there", before[victim])
		}
		return nil
	})
	after := pods()
	for name, pid := range before {
		if name != victim && (after[name] != pid || site.StartTime(pid) == 0) {
			t.Errorf("pod %s had process %d and now has %d", name, pid, after[name])
		}
	}
}

// A pod serves while it lingers, is not ready in the EndpointSlice meanwhile, and its address is gone afterwards.
func TestDeletedPodLingers(t *testing.T) {
	s := lab(t)
	deploy(t, s, "linger", 1, `{name: web, image: lab/web, args: ["--linger", "2s"], ports: [{containerPort: 8080}]}`)
	name := kubectl(t, s, "-n", "linger", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
	node := kubectl(t, s, "-n", "linger", "get", "pod", name, "-o", "jsonpath={.spec.nodeName}")
	url := "http://" + kubectl(t, s, "-n", "linger", "get", "pod", name, "-o", "jsonpath={.status.podIP}") + ":8080/"
	eventually(t, 10*time.Second, "served", func() error { _, err := ask(s, node, url); return err })
	kubectl(t, s, "-n", "linger", "delete", "pod", name, "--wait=false")
	eventually(t, 10*time.Second, "told to end", func() error {
		data, err := os.ReadFile(podLog(s, name))
		if err == nil && !strings.Contains(string(data), "told to end") {
			err = errors.New(string(data))
		}
		return err
	})
	if a, err := ask(s, node, url); err != nil || a.Pod != name {
		t.Errorf("while it lingers: %+v, %v", a, err)
	}
	eventually(t, 20*time.Second, "gone", func() error {
		if _, err := s.Kubectl(t.Context(), "-n", "linger", "get", "pod", name); err == nil {
			return errors.New("the object is there")
		}
		if _, err := ask(s, node, url); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})
}

func podLog(s *site.Site, name string) string {
	records, _ := s.PodRecords()
	for _, r := range records {
		if r.Name == name {
			found, _ := filepath.Glob(filepath.Join(s.Dir(), "pods", "*", r.UID, "web.log"))
			return strings.Join(found, "")
		}
	}
	return "no record of " + name
}

// echo answers TCP and UDP with the pod's name, and host runs a program of the machine in the pod's network.
func TestEchoAndHostImages(t *testing.T) {
	s := lab(t)
	manifest := `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  hostname: called-%[1]s
  terminationGracePeriodSeconds: 0
  containers: [%[2]s]
`
	for name, container := range map[string]string{
		"echo":   `{name: c, image: lab/echo, ports: [{containerPort: 7}], readinessProbe: {tcpSocket: {port: 7}}}`,
		"host":   `{name: c, image: lab/host, command: [sh, -c, "ip -4 -o addr show eth0; echo $IP $(NODE); sleep 600"], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}`,
		"failed": `{name: c, image: nginx}`,
	} {
		if err := s.Apply(t.Context(), fmt.Sprintf(manifest, name, container)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := s.Kubectl(context.Background(), "delete", "pod", name, "--wait=false"); err != nil {
				t.Error(err)
			}
		})
	}
	kubectl(t, s, "wait", "--for=condition=Ready", "pod/echo", "pod/host", "--timeout=30s")
	get := func(pod, path string) string { return kubectl(t, s, "get", "pod", pod, "-o", "jsonpath={"+path+"}") }

	ip, node := get("echo", ".status.podIP"), get("echo", ".spec.nodeName")
	conn, err := s.Dialer(node)(t.Context(), "tcp", ip+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	if data, err := io.ReadAll(conn); err != nil || string(data) != "echo\nhello" {
		t.Errorf("echo over TCP: %q, %v", data, err)
	}
	packets, err := s.Dialer(node)(t.Context(), "udp", ip+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	_ = packets.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(packets, "hello")
	buf := make([]byte, 100)
	if n, err := packets.Read(buf); err != nil || string(buf[:n]) != "echo\n" {
		t.Errorf("echo over UDP: %q, %v", buf[:n], err)
	}

	ip, node = get("host", ".status.podIP"), get("host", ".spec.nodeName")
	eventually(t, 10*time.Second, "the program's output", func() error {
		out := kubectl(t, s, "logs", "host")
		if !strings.Contains(out, "inet "+ip+"/32") || !strings.Contains(out, ip+" "+node) {
			return fmt.Errorf("want address %s and node %s in: %s", ip, node, out)
		}
		return nil
	})
	out, err := s.Exec(t.Context(), "default/host", "hostname", "-I")
	if err != nil || !slices.Contains(strings.Fields(out), ip) {
		t.Errorf("exec in the pod: %q, %v", out, err)
	}
	if out := kubectl(t, s, "exec", "host", "--", "sh", "-c", "hostname; echo $IP; hostname -I"); !strings.HasPrefix(out, "called-host\n"+ip+"\n"+ip+" ") {
		t.Errorf("kubectl exec: %q", out)
	}
	if out := kubectl(t, s, "exec", "host", "--", "getent", "ahostsv4", "kubernetes.default"); !strings.HasPrefix(out, "10.96.0.1 ") {
		t.Errorf("the API server's name in a pod: %q", out)
	}
	input := s.KubectlCommand(t.Context(), "exec", "-i", "host", "--", "sh", "-c", "cat; echo to stderr >&2; exit 7")
	input.Stdin = strings.NewReader("from stdin")
	var exit *exec.ExitError
	if out, err := input.CombinedOutput(); !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(string(out), "from stdin") || !strings.Contains(string(out), "to stderr") {
		t.Errorf("kubectl exec with input: %q, %v", out, err)
	}
	eventually(t, 10*time.Second, "an unknown image is explained", func() error {
		if m := get("failed", ".status.containerStatuses[0].state.waiting.message"); !strings.Contains(m, "lab/web, lab/tls, lab/echo and lab/host") {
			return errors.New(m)
		}
		return nil
	})
}

func TestPulledCable(t *testing.T) {
	s := lab(t)
	listenOn(t, s, "eth1", 9998)
	if got, err := heardOn(s, "home1", site.EdgeHome+":9998"); got != "eth1" {
		t.Fatalf("before: %q, %v", got, err)
	}
	if err := s.LinkDown("edge", "eth1"); err != nil {
		t.Fatal(err)
	}
	if _, err := heardOn(s, "home1", site.EdgeHome+":9998"); err == nil {
		t.Error("reached without a cable")
	}
	if out, err := s.Exec(t.Context(), "edge", "ip", "link", "show", "eth1"); !strings.Contains(out, "NO-CARRIER") {
		t.Errorf("the edge has not noticed: %s%v", out, err)
	}
	if err := s.LinkUp("edge", "eth1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "after", func() error {
		got, err := heardOn(s, "home1", site.EdgeHome+":9998")
		if err == nil && got != "eth1" {
			err = errors.New(got)
		}
		return err
	})
}

// Thousands of connections from a client without a process or a thread left per connection.
func TestDoHoldsManyConnections(t *testing.T) {
	s := lab(t)
	listenOn(t, s, "eth1", 9997)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	err := s.Do("home1", func() error {
		for range 2000 {
			c, err := net.DialTimeout("tcp", site.EdgeHome+":9997", 5*time.Second)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("after %d: %v", len(conns), err)
	}
}
