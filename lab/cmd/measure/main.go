// Command measure brings up a lab and prints the numbers of docs/benchmarks.md:
// how soon a Service is reachable and closed, and what gatehouse needs with
// 1,000 Services and 10,000 endpoints, and how soon the kernel has what changes
// of those. Nothing is mocked: the objects are in
// the API server, kube-proxy serves them too.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"e13.dev/gatehouse/lab/site"
)

const config = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
pools:
  - {name: home, zone: home, addresses: [10.11.12.64-10.11.12.79], auto: false}
kubernetes: {}
admin: {listen: "127.0.0.1:9180"}
`

const (
	homeAddr = "10.11.12.32"
	poolAddr = "10.11.12.64"
	class    = "gatehouse.e13.dev/edge"
	// All that one change brings about has come after this time without anything.
	quietTime = 300 * time.Millisecond
)

func main() {
	bin := flag.String("bin", "bin", "folder with gatehouse, lab and labkube")
	rounds := flag.Int("rounds", 100, "how often each latency is measured")
	rest := flag.Duration("rest", 10*time.Minute, "how long requests at rest are counted")
	services := flag.Int("services", 1000, "Services of the memory measurement, with ten endpoints each")
	changes := flag.Bool("changes", false, "measure only how soon the kernel has a change")
	flag.Parse()
	if err := run(*bin, *rounds, *services, *rest, *changes); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
}

type measurement struct {
	lab  *site.Site
	kube *kubernetes.Clientset
	ctx  context.Context
	// kernel has the many Services be the kernel's from the start.
	kernel bool
}

// ofKernel are the annotations of a Service that the kernel moves. That its pods
// are not there is not to be noticed.
var ofKernel = []string{"gatehouse.e13.dev/data-plane=nat", "gatehouse.e13.dev/target=pod", "gatehouse.e13.dev/health-interval=0"}

func run(bin string, rounds, services int, rest time.Duration, changesOnly bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatehouse-measure-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "gatehouse.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	m := measurement{ctx: ctx}
	m.lab, err = site.Up(ctx, site.Options{
		Name: fmt.Sprintf("m%d", os.Getpid()), Lab: filepath.Join(bin, "lab"), Labkube: filepath.Join(bin, "labkube"), PodRoutes: true,
		Gatehouse: filepath.Join(bin, "gatehouse"), Config: file, Manifests: []string{"deploy/rbac.yaml"}, Progress: os.Stderr,
	})
	if m.lab != nil {
		defer func() { err = errors.Join(err, m.lab.Down(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	if m.kube, err = m.lab.Client(); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(bin, "gatehouse"))
	if err != nil {
		return err
	}
	fmt.Printf("size of the binary: %.1f MB (static, stripped)\n", float64(info.Size())/1e6)
	empty, _, err := m.gatehouse()
	if err != nil {
		return err
	}
	fmt.Printf("RSS of gatehouse with an empty cluster: %.1f MB\n", empty)
	if changesOnly {
		m.kernel = true
		if err := m.stopProxies(); err != nil {
			return err
		}
		if err := m.createAll(services); err != nil {
			return err
		}
		return m.changes(services, 4*rounds)
	}
	if err := m.latencies("1 Service", rounds, direct...); err != nil {
		return err
	}
	if err := m.memory(services); err != nil {
		return err
	}
	if err := m.atRest(services, rest); err != nil {
		return err
	}
	if err := m.latencies(fmt.Sprintf("%d Services", services+1), rounds, direct...); err != nil {
		return err
	}
	if err := m.churn(services, 50, time.Minute); err != nil {
		return err
	}
	if err := m.latencies(fmt.Sprintf("%d Services", services+1), rounds/2, throughNodes); err != nil {
		return err
	}
	return m.changes(services, 2*rounds)
}

// gatehouse returns the resident memory in MB and the CPU time used so far.
func (m measurement) gatehouse() (megabytes float64, cpu time.Duration, err error) {
	status, err := m.lab.Status(m.ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, c := range status.Components {
		if c.Name != "gatehouse" {
			continue
		}
		proc := "/proc/" + strconv.Itoa(c.PID)
		text, err := os.ReadFile(proc + "/status")
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(text)) {
			if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &megabytes); err == nil {
				megabytes /= 1000 / 1.024
			}
		}
		stat, err := os.ReadFile(proc + "/stat")
		if err != nil {
			return 0, 0, err
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		return megabytes, time.Duration(user+system) * time.Second / 100, nil // in clock ticks of 10 ms
	}
	return 0, 0, errors.New("no gatehouse in the lab")
}

// get makes one request over a new connection from home.
func (m measurement) get(addr string, port int) error {
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.lab.Dialer("home1")}}
	resp, err := client.Get(fmt.Sprintf("http://%s:%d/", addr, port))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// A way is how a Service is reached: with which target, and at which address.
type way struct {
	name, target, addr string
	addresses          string // annotation
}

var (
	direct = []way{
		{"target pod", "pod", homeAddr, ""},
		{"target pod, address of a pool", "pod", poolAddr, poolAddr},
	}
	throughNodes = way{"target nodePort", "nodePort", homeAddr, ""}
)

// isShut says whether an attempt has met a closed door. An address of a pool goes
// with its Service: then nobody is there to refuse.
func (w way) isShut(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || err != nil && w.addresses != ""
}

func service(name string, w way, port int) string {
	addresses := ""
	if w.addresses != "" {
		addresses = fmt.Sprintf(", gatehouse.e13.dev/addresses: %q", w.addresses)
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: %s, annotations: {gatehouse.e13.dev/zones: home, gatehouse.e13.dev/target: %s%s}}
spec:
  type: LoadBalancer
  loadBalancerClass: %s
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: %d, targetPort: 8080}]
`, name, w.target, addresses, class, port)
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: lab/web
          ports: [{containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`

// latencies are of one Service that comes and goes, beside those that are there.
func (m measurement) latencies(at string, rounds int, ways ...way) error {
	if err := m.lab.Apply(m.ctx, deployment); err != nil {
		return err
	}
	if err := m.lab.AwaitDeployment(m.ctx, "default", "web", time.Minute); err != nil {
		return err
	}
	for _, w := range ways {
		var open, shut []time.Duration
		for i := range rounds {
			port := 8100 + i
			if err := m.lab.Apply(m.ctx, service("web", w, port)); err != nil {
				return err
			}
			start := time.Now()
			for m.get(w.addr, port) != nil {
				if time.Since(start) > 30*time.Second {
					return fmt.Errorf("%s: not open after 30 s", w.name)
				}
			}
			open = append(open, time.Since(start))
			if _, err := m.lab.Kubectl(m.ctx, "delete", "service", "web"); err != nil {
				return err
			}
			start = time.Now()
			tried := start
			for !w.isShut(m.get(w.addr, port)) {
				if tried = time.Now(); tried.Sub(start) > 30*time.Second {
					return fmt.Errorf("%s: not closed after 30 s", w.name)
				}
			}
			shut = append(shut, tried.Sub(start)) // when the first that was turned away began
			fmt.Fprintf(os.Stderr, "\r%s %d/%d ", w.name, i+1, rounds)
		}
		fmt.Fprintln(os.Stderr)
		fmt.Printf("%s, %s: kubectl apply has returned → first answer: median %s, p99 %s of %d\n", at, w.name, quantile(open, 50), quantile(open, 99), rounds)
		fmt.Printf("%s, %s: kubectl delete has returned → closed: median %s, p99 %s of %d\n", at, w.name, quantile(shut, 50), quantile(shut, 99), rounds)
	}
	return nil
}

func quantile(all []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)].Round(time.Millisecond)
}

// createAll makes the Services and their endpoints in the API, and waits until
// gatehouse has all of them.
func (m measurement) createAll(services int) error {
	var wait sync.WaitGroup
	failed := make(chan error, services)
	limit := make(chan struct{}, 16)
	start := time.Now()
	for i := range services {
		limit <- struct{}{}
		wait.Go(func() {
			defer func() { <-limit }()
			if err := m.create(i); err != nil {
				failed <- err
			}
		})
	}
	wait.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	fmt.Fprintf(os.Stderr, "%d Services with %d endpoints made in %s\n", services, 10*services, time.Since(start).Round(time.Second))
	for {
		open, shares, err := m.seen()
		if err != nil {
			return err
		}
		if open >= services && shares >= 10*services {
			break
		}
		if time.Since(start) > 5*time.Minute {
			return fmt.Errorf("after 5 minutes gatehouse has %d Services and %d endpoints", open, shares)
		}
		time.Sleep(500 * time.Millisecond)
	}
	fmt.Printf("%d Services, %d endpoints: all open %s after the first was made\n", services, 10*services, time.Since(start).Round(time.Second))
	return nil
}

// memory looks at gatehouse at rest, with all those.
func (m measurement) memory(services int) error {
	if err := m.createAll(services); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "waiting 60 s, then looking at it for 30 s")
	time.Sleep(time.Minute)
	_, before, err := m.gatehouse()
	if err != nil {
		return err
	}
	time.Sleep(30 * time.Second)
	rss, after, err := m.gatehouse()
	if err != nil {
		return err
	}
	fmt.Printf("%d Services, %d endpoints: RSS %.1f MB, CPU at rest %.1f %% of a core (health checks included)\n", services, 10*services, rss, 100*(after-before).Seconds()/30)
	return nil
}

func (m measurement) create(i int) error {
	name := fmt.Sprintf("many-%04d", i)
	meta := metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{"gatehouse.e13.dev/zones": "home"}}
	if m.kernel {
		for _, a := range ofKernel {
			key, value, _ := strings.Cut(a, "=")
			meta.Annotations[key] = value
		}
	}
	lbClass := class
	spec := corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &lbClass, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
		Ports: []corev1.ServicePort{{Name: "http", Port: int32(10000 + i)}},
	}
	if m.kernel { // there are 2,768 node ports
		spec.AllocateLoadBalancerNodePorts, spec.ExternalTrafficPolicy = new(bool), corev1.ServiceExternalTrafficPolicyCluster
	}
	_, err := m.kube.CoreV1().Services(meta.Namespace).Create(m.ctx, &corev1.Service{ObjectMeta: meta, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ready, portName, port := true, "http", int32(8080)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: meta.Namespace, Labels: map[string]string{
			discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "measure.gatehouse.e13.dev",
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for e := range 10 {
		node := fmt.Sprintf("w%d", e%3+1)
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.244.%d.%d", e%3+1, 2+(i*10+e)%250)},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			NodeName:   &node,
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: meta.Namespace, Name: fmt.Sprintf("%s-%d", name, e)},
		})
	}
	_, err = m.kube.DiscoveryV1().EndpointSlices(meta.Namespace).Create(m.ctx, slice, metav1.CreateOptions{})
	return err
}

// seen counts the Services that gatehouse has open, and the pods behind them.
func (m measurement) seen() (open, shares int, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.lab.Dialer("edge")}}
	resp, err := client.Get("http://127.0.0.1:9180/status.json")
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	var status struct {
		Exposures []struct {
			Open   bool `json:"open"`
			Shares []struct {
				Pod string `json:"pod"`
			} `json:"shares"`
		} `json:"exposures"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return 0, 0, err
	}
	for _, e := range status.Exposures {
		if e.Open {
			open++
			shares += len(e.Shares)
		}
	}
	return open, shares, nil
}
