// Package e2e tests gatehouse as its users meet it: a real API server, real
// kube-proxies, kubectl, and clients in the networks of the lab's site.
//
// One lab and one gatehouse, with exactly the rights of deploy/rbac.yaml, serve
// all tests. Each test has a namespace and ports of its own.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"e13.dev/gatehouse/lab/site"
)

const config = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
  cluster:  {interfaces: [eth0]}
kubernetes:
  allow: {internet: {namespaces: [public]}}
admin: {listen: "127.0.0.1:9180"}
` + poolsConfig

// The site's addresses of the edge box.
const (
	homeAddr     = "10.11.12.32"
	internetAddr = "10.11.12.51"
	clusterAddr  = "10.0.0.1"
	publicAddr   = "203.0.113.1" // of the router, which forwards to internetAddr
)

var (
	lab        *site.Site
	kube       *kubernetes.Clientset
	gatehouse  string // the program
	configFile string // what it runs with
)

func TestMain(m *testing.M) {
	required := os.Getenv("GATEHOUSE_LAB") == "required"
	if os.Geteuid() != 0 || !required {
		if required {
			fmt.Fprintln(os.Stderr, "e2e: the lab needs root")
			os.Exit(1)
		}
		fmt.Println("e2e: skipped; make test-e2e runs these tests, as root")
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	gatehouse = filepath.Join(bin, "gatehouse")
	dir, err := os.MkdirTemp("", "gatehouse-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	configFile = filepath.Join(dir, "gatehouse.yaml")
	if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	lab, err = site.Up(ctx, site.Options{
		Name: fmt.Sprintf("e2e%d", os.Getpid()), Lab: filepath.Join(bin, "lab"), Labkube: filepath.Join(bin, "labkube"),
		Gatehouse: gatehouse, Config: configFile, Manifests: []string{"../../deploy/rbac.yaml"}, Progress: os.Stdout,
		Images: map[string][]string{"gatehouse": {gatehouse}},
	})
	if lab != nil {
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if code != 0 {
				keepLog()
			}
			err = errors.Join(err, lab.Down(ctx))
		}()
	}
	if err != nil {
		return 0, err
	}
	if kube, err = lab.Client(); err != nil {
		return 0, err
	}
	if _, err := lab.Kubectl(ctx, "create", "namespace", "public"); err != nil {
		return 0, err
	}
	// What runs in parallel waits for the cluster, not for processors.
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// keepLog prints the end of gatehouse's log, which goes with the lab.
func keepLog() {
	data, err := os.ReadFile(lab.LogPath("gatehouse"))
	if err != nil {
		fmt.Println("no log of gatehouse:", err)
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	fmt.Printf("--- the last lines of gatehouse's log\n%s\n", strings.Join(lines[max(0, len(lines)-60):], "\n"))
}

// answer is what a pod of lab/web says of itself and of the connection.
type answer struct {
	Pod        string `json:"pod"`
	Node       string `json:"node"`
	Client     string `json:"client"`
	ServerName string `json:"serverName"`
}

// get makes one request over one new connection from a host of the site.
func get(host, address string, timeout time.Duration) (answer, error) {
	return ask(&http.Transport{DisableKeepAlives: true, DialContext: lab.Dialer(host)}, "http://"+address+"/", timeout)
}

func ask(transport *http.Transport, url string, timeout time.Duration) (answer, error) {
	client := http.Client{Timeout: timeout, Transport: transport}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("answer from %s: %w", url, err)
	}
	if a.Pod == "" {
		return a, fmt.Errorf("answer from %s names no pod", url)
	}
	return a, nil
}

// refused says whether an attempt met a closed door, at once or by silence.
func refused(err error) bool {
	var timeout net.Error
	return errors.Is(err, errConnRefused) || errors.As(err, &timeout) && timeout.Timeout()
}

// eventually polls until the condition holds, and returns how long it took.
func eventually(t *testing.T, limit time.Duration, what string, holds func() error) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds()
		took := time.Since(start)
		if err == nil && took <= limit {
			return took
		}
		if took > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		<-tick.C
	}
}

// kubectl runs kubectl, or fails the test.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func apply(t *testing.T, manifests string) {
	t.Helper()
	if err := lab.Apply(t.Context(), manifests); err != nil {
		t.Fatal(err)
	}
}

// namespace makes a namespace for the test, and removes it afterwards.
func namespace(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	name = strings.NewReplacer("/", "-", "_", "-").Replace(name)
	name = strings.Trim(name[:min(len(name), 50)], "-")
	makeNamespace(t, name)
	return name
}

func makeNamespace(t *testing.T, name string) {
	t.Helper()
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		// Not left to the namespace: its contents go one after the other, in seconds.
		remove(t, "service,deployment", "-n", name, "--all")
		remove(t, "namespace", name)
	})
}

func remove(t *testing.T, args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := lab.Kubectl(ctx, append([]string{"delete", "--wait=false", "--ignore-not-found"}, args...)...); err != nil {
		t.Log(err)
	}
}

// deployment is a manifest of lab/web pods that the Service of the same app selects.
func deployment(namespace, name, app, node string, replicas int, args ...string) string {
	place := ""
	if node != "" {
		place = "      nodeName: " + node + "\n"
	}
	list, _ := json.Marshal(args)
	if args == nil {
		list = []byte("[]")
	}
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s, namespace: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: %s, part: %s}}
  template:
    metadata: {labels: {app: %s, part: %s}}
    spec:
%s      terminationGracePeriodSeconds: 10
      containers:
        - name: web
          image: lab/web
          args: %s
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, name, namespace, replicas, app, name, app, name, place, list)
}

// service is a manifest of a Service of gatehouse's class.
func service(namespace, name, app, zones, policy string, port int) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: %s
  annotations: {gatehouse.e13.dev/zones: %q}
spec:
  type: LoadBalancer
  loadBalancerClass: gatehouse.e13.dev/edge
  externalTrafficPolicy: %s
  selector: {app: %s}
  ports: [{port: %d, targetPort: 8080}]
`, name, namespace, zones, policy, app, port)
}

// The data planes. What is promised holds for both of them.
const (
	proxy = "proxy"
	nat   = "nat"
)

var planes = []string{proxy, nat}

// on puts the Services of manifests on a data plane.
func on(plane, manifests string) string {
	return strings.ReplaceAll(manifests, "annotations: {", "annotations: {gatehouse.e13.dev/data-plane: "+plane+", ")
}

func awaitPods(t *testing.T, namespace string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := lab.AwaitDeployment(t.Context(), namespace, name, 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
}

// eventsOf are the reasons and messages of the events on a Service.
func eventsOf(t *testing.T, namespace, name string) string {
	t.Helper()
	return kubectl(t, "get", "events", "-n", namespace, "--field-selector", "involvedObject.kind=Service,involvedObject.name="+name,
		"-o", `jsonpath={range .items[*]}{.type} {.reason}: {.message}{"\n"}{end}`)
}

// ingressOf is what the status of a Service says, as "ip,ip".
func ingressOf(t *testing.T, namespace, name string) string {
	t.Helper()
	return strings.Join(strings.Fields(kubectl(t, "get", "service", "-n", namespace, name, "-o", `jsonpath={range .status.loadBalancer.ingress[*]}{.ip} {end}`)), ",")
}

// httpFrom is an HTTP client on a host of the site, one connection per request.
func httpFrom(host string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Dialer(host)}}
}

// admin asks the running gatehouse for a path of its admin address.
func admin(t *testing.T, path string) (code int, body string) {
	t.Helper()
	resp, err := httpFrom("edge").Get("http://127.0.0.1:9180" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, readAll(resp)
}
