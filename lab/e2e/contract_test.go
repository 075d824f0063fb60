package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"e13.dev/gatehouse/lab/site"
)

// contractRow is a row of "The contract" in docs/kubernetes.md, which names its
// test.
type contractRow struct {
	name string
	// test looks at the row. Those that disturb nobody run beside each other, after
	// those that do: they change nodes, or what gatehouse runs with.
	test   func(t *testing.T)
	alone  bool
	planes func(t *testing.T, plane string) // the same for both data planes, if there is no test
}

// What Kubernetes asks of a load balancer, line by line, against a real API server
// and real kube-proxies.
func TestContract(t *testing.T) {
	rows := []contractRow{
		{name: "loadBalancerClass", test: contractClass, alone: true},
		{name: "allocateLoadBalancerNodePorts", planes: contractNoNodePorts},
		{name: "externalTrafficPolicy: Cluster", planes: contractCluster, alone: true},
		{name: "externalTrafficPolicy: Local", planes: contractLocal},
		{name: "healthCheckNodePort", planes: contractHealthCheckNodePort},
		{name: "terminating endpoints", planes: contractTerminating},
		{name: "publishNotReadyAddresses", planes: contractNotReadyAddresses},
		{name: "node changes", planes: contractNodeChanges, alone: true},
		{name: "exclude-from-external-load-balancers", test: contractExcludedNode, alone: true},
		{name: "sessionAffinity: ClientIP", planes: contractAffinity},
		{name: "loadBalancerSourceRanges", planes: contractSourceRanges},
		{name: "ingress ip and ipMode", planes: contractIPMode},
		{name: "ports error and LoadBalancerPortsError", planes: contractPortsError},
		{name: "status updates", test: contractStatus},
		{name: "loadBalancerIP", planes: contractLoadBalancerIP},
		{name: "externalIPs", planes: contractExternalIPs},
		{name: "ipFamilyPolicy and ipFamilies", planes: contractFamilies},
		{name: "family that is missing", test: contractFamilyMissing, alone: true},
		{name: "finalizer", planes: contractFinalizer},
		{name: "finalizer without gatehouse", test: contractUninstall, alone: true},
		{name: "trafficDistribution", planes: contractTrafficDistribution},
		{name: "EndpointSlice only", planes: contractSlices},
		{name: "kube-proxy mode", test: contractKubeProxyMode, alone: true},
		{name: "Events", test: contractEvents},
		{name: "changes while in use", planes: contractChangesInUse},
	}
	isDocumented(t, rows)
	startTellers(t)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if !row.alone {
				t.Parallel()
			}
			if row.test != nil {
				row.test(t)
				return
			}
			for _, plane := range planes {
				t.Run(plane, func(t *testing.T) {
					if !row.alone {
						t.Parallel()
					}
					row.planes(t, plane)
				})
			}
		})
	}
}

// isDocumented compares the rows with those of the documentation.
func isDocumented(t *testing.T, rows []contractRow) {
	t.Helper()
	text, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## The contract\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if !found {
		t.Error("docs/kubernetes.md has no section The contract")
	}
	var named []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && strings.Contains(cells[4], "`") {
			for name := range strings.SplitSeq(cells[4], ",") {
				named = append(named, strings.Trim(name, " `"))
			}
		}
	}
	for _, row := range rows {
		if !slices.Contains(named, row.name) {
			t.Errorf("docs/kubernetes.md, The contract: no line names the test %q", row.name)
		}
	}
	for _, name := range named {
		if !slices.ContainsFunc(rows, func(r contractRow) bool { return r.name == name }) {
			t.Errorf("docs/kubernetes.md, The contract: there is no test %q", name)
		}
	}
}

// tellerPort is where each worker tells who it is, by HTTP as lab/web does: the
// endpoints of Services whose EndpointSlices the test writes.
const tellerPort = 7130

func startTellers(t *testing.T) {
	t.Helper()
	for _, worker := range site.Workers {
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = json.NewEncoder(w).Encode(answer{Pod: worker, Node: worker, Client: r.RemoteAddr})
		})}
		listener := listen(t, worker, fmt.Sprintf(":%d", tellerPort))
		go func() { _ = server.Serve(listener) }()
	}
}

var lastPort atomic.Int32

// freshPort is one that no other test of the contract uses.
func freshPort() int { return 8800 + int(lastPort.Add(1)) }

func atHome(port int) string { return fmt.Sprintf("%s:%d", homeAddr, port) }

// room makes a namespace for the test, and removes it afterwards.
func room(t *testing.T) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(strings.TrimPrefix(t.Name(), "Test")))
	name = strings.Trim(name[:min(len(name), 50)], "-")
	if _, err := kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		services, err := kube.CoreV1().Services(name).List(ctx, metav1.ListOptions{})
		if err == nil {
			for _, s := range services.Items {
				_ = kube.CoreV1().Services(name).Delete(ctx, s.Name, metav1.DeleteOptions{})
			}
			err = kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
		}
		if err != nil {
			t.Log(err)
		}
	})
	return name
}

// told is a Service without a selector whose endpoints are the workers' tellers.
// change, if there is one, is made before it is created.
func told(ns, name, plane string, port int, change func(*corev1.Service)) *corev1.Service {
	s := bare(ns, name, "TCP", port, tellerPort, map[string]string{"gatehouse.e13.dev/data-plane": plane})
	if change != nil {
		change(s)
	}
	return s
}

// byNodePort has a Service served through node ports.
func byNodePort(policy corev1.ServiceExternalTrafficPolicy) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Annotations["gatehouse.e13.dev/target"] = "nodePort"
		s.Spec.AllocateLoadBalancerNodePorts, s.Spec.ExternalTrafficPolicy = nil, policy
	}
}

// serviceNow is a Service as the API has it.
func serviceNow(t *testing.T, ns, name string) *corev1.Service {
	t.Helper()
	s, err := kube.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ingressIs is a condition for eventually: the status names these addresses, as
// "ip,ip".
func ingressIs(t *testing.T, ns, name, addresses string) func() error {
	return func() error {
		var ips []string
		for _, in := range serviceNow(t, ns, name).Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		return want(strings.Join(ips, ","), addresses)
	}
}

// eventsIn are those on a Service, as "Type Reason: Message".
func eventsIn(t *testing.T, ns, name string) []string {
	t.Helper()
	list, err := kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=Service,involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list.Items {
		all = append(all, e.Type+" "+e.Reason+": "+e.Message)
	}
	return all
}

// saidTo is a condition for eventually: an Event begins so, "Warning NoTarget: target".
func saidTo(t *testing.T, ns, name, event string) func() error {
	return func() error {
		all := eventsIn(t, ns, name)
		if !slices.ContainsFunc(all, func(e string) bool { return strings.HasPrefix(e, event) }) {
			return fmt.Errorf("the events are %q", all)
		}
		return nil
	}
}

// answeredBy makes n connections and says who answered how many.
func answeredBy(t *testing.T, host, address string, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		a, err := get(host, address, 5*time.Second)
		if err != nil {
			t.Fatalf("%s from %s: %v", address, host, err)
		}
		counts[a.Pod]++
	}
	return counts
}

// onlyBy is a condition for eventually: these answer, each of them, and nobody else.
func onlyBy(host, address string, who ...string) func() error {
	return func() error {
		counts := map[string]int{}
		for range 12 * len(who) {
			a, err := get(host, address, time.Second)
			if err != nil {
				return err
			}
			counts[a.Pod]++
		}
		for _, name := range who {
			if counts[name] == 0 {
				return fmt.Errorf("%v answer, want %v", counts, who)
			}
		}
		if len(counts) != len(who) {
			return fmt.Errorf("%v answer, want %v", counts, who)
		}
		return nil
	}
}

// unserved is a condition for eventually: a client is turned away, in whatever way.
func unserved(host, address string) func() error {
	return func() error {
		if a, err := get(host, address, time.Second); err == nil {
			return fmt.Errorf("%s answers %s at %s", a.Pod, host, address)
		}
		return nil
	}
}

// dialog is a connection on which one asks again and again who is there.
type dialog struct {
	conn net.Conn
	read *bufio.Reader
}

func (d dialog) ask() (answer, error) {
	var a answer
	if err := d.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return a, err
	}
	if _, err := fmt.Fprint(d.conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(d.read, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// goesOn fails the test if the connection does not.
func (d dialog) goesOn(t *testing.T, when string) {
	t.Helper()
	if _, err := d.ask(); err != nil {
		t.Errorf("%s, an established connection was cut: %v", when, err)
	}
}

// dialogWith connects until that one answers, and stays connected.
func dialogWith(t *testing.T, host, address, who string) dialog {
	t.Helper()
	for range 100 {
		conn, err := lab.Dialer(host)(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		d := dialog{conn, bufio.NewReader(conn)}
		a, err := d.ask()
		if err == nil && (who == "" || a.Pod == who) {
			t.Cleanup(func() { conn.Close() })
			return d
		}
		conn.Close()
	}
	t.Fatalf("%s never answers at %s", who, address)
	return dialog{}
}

// putSlice creates an EndpointSlice, or changes it.
func putSlice(t *testing.T, e *discoveryv1.EndpointSlice) {
	t.Helper()
	slices := kube.DiscoveryV1().EndpointSlices(e.Namespace)
	_, err := slices.Create(t.Context(), e, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = slices.Update(t.Context(), e, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// makeService creates a Service only.
func makeService(t *testing.T, s *corev1.Service) {
	t.Helper()
	if _, err := kube.CoreV1().Services(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// patchNode changes a node, or a subresource of it.
func patchNode(t *testing.T, node, text string, subresources ...string) {
	t.Helper()
	_, err := kube.CoreV1().Nodes().Patch(context.Background(), node, types.StrategicMergePatchType, []byte(text), metav1.PatchOptions{}, subresources...)
	if err != nil {
		t.Fatal(err)
	}
}

// taint puts a taint on a node until the test ends; what it returns takes it off.
func taint(t *testing.T, node, key string) (untaint func()) {
	t.Helper()
	set := func(without bool) error {
		n, err := kube.CoreV1().Nodes().Get(context.Background(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
		if !without {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: "1", Effect: corev1.TaintEffectNoSchedule})
		}
		_, err = kube.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{})
		return err
	}
	again := func(without bool) {
		eventually(t, 10*time.Second, "the node takes the change", func() error { return set(without) })
	}
	again(false)
	t.Cleanup(func() { again(true) })
	return func() { again(true) }
}

// label puts a label on a node until the test ends.
func label(t *testing.T, node, key string) {
	t.Helper()
	patchNode(t, node, fmt.Sprintf(`{"metadata":{"labels":{%q:""}}}`, key))
	t.Cleanup(func() { patchNode(t, node, fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, key)) })
}

// edgeLoses has the edge box lose what it sends to these addresses
// ("10.0.0.102 . 30080"), until the test ends or what it returns is called.
func edgeLoses(t *testing.T, table string, addresses ...string) (noMore func()) {
	t.Helper()
	load := func(rules string) {
		if err := nft("edge", fmt.Sprintf("table inet %[1]s\ndelete table inet %[1]s\n%s", table, rules)); err != nil {
			t.Error(err)
		}
	}
	load(fmt.Sprintf(`table inet %s {
	chain out {
		type filter hook output priority filter
		ip daddr . tcp dport { %s } drop
	}
}
`, table, strings.Join(addresses, ", ")))
	t.Cleanup(func() { load("") })
	return func() { load("") }
}

// configured has gatehouse run with another configuration until the test ends.
func configured(t *testing.T, text string) {
	t.Helper()
	runs := func(text string) {
		t.Helper()
		before := configLoaded(t)
		if err := writeConfig(text); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the file is taken", func() error {
			if now := configLoaded(t); now == before {
				return errors.New("that of " + now + " runs")
			}
			return nil
		})
	}
	runs(text)
	t.Cleanup(func() { runs(config) })
}

// configLoaded is when gatehouse has read the configuration that it runs with.
func configLoaded(t *testing.T) string {
	t.Helper()
	_, body := admin(t, "/status.json")
	var s struct {
		Config struct {
			LoadedAt string `json:"loadedAt"`
		} `json:"config"`
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	return s.Config.LoadedAt
}

// withKubernetes is the configuration with more in its kubernetes block.
func withKubernetes(more string) string {
	return strings.Replace(config, "kubernetes:\n", "kubernetes:\n  "+more+"\n", 1)
}
