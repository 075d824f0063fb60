package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// givenTo notes on the edge box, by its kernel, each connection that is begun to
// one of these addresses ("10.0.0.103 . 30080"): to a node that is dead no
// packet would leave. Of what the kernel moves only clients' are counted; probes
// are not. It returns how many there have been, by IP address.
func givenTo(t *testing.T, plane string, addresses ...string) func() map[string]int {
	t.Helper()
	whose := ""
	if plane == nat {
		whose = `iifname "eth1" `
	}
	edgeNft(t, `table inet e2e {
	set given {
		type ipv4_addr . inet_service . inet_service
		flags dynamic, timeout
		timeout 10m
		size 65535
	}
	chain out {
		type filter hook postrouting priority filter
		`+whose+`ip daddr . tcp dport { `+strings.Join(addresses, ", ")+` } tcp flags & (syn | ack) == syn add @given { ip daddr . tcp dport . tcp sport }
	}
}
`)
	return func() map[string]int {
		t.Helper()
		out, err := lab.Exec(t.Context(), "edge", "nft", "-j", "list", "set", "inet", "e2e", "given")
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Nftables []struct {
				Set struct {
					Elem []struct {
						Elem struct {
							Val struct {
								Concat []any `json:"concat"`
							} `json:"val"`
						} `json:"elem"`
					} `json:"elem"`
				} `json:"set"`
			} `json:"nftables"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		counts := map[string]int{}
		for _, n := range list.Nftables {
			for _, e := range n.Set.Elem {
				counts[fmt.Sprint(e.Elem.Val.Concat[0])]++
			}
		}
		return counts
	}
}

// edgeNft loads a table "inet e2e" on the edge box, until the test ends.
func edgeNft(t *testing.T, table string) {
	t.Helper()
	if err := nft("edge", "table inet e2e\ndelete table inet e2e\n"+table); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noEdgeNft(t) })
}

func noEdgeNft(t *testing.T) {
	if err := nft("edge", "table inet e2e\ndelete table inet e2e\n"); err != nil {
		t.Error(err)
	}
}

// nft loads rules on a host.
func nft(host, text string) error {
	cmd, err := lab.Command(context.Background(), host, "nft", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// podIPOn is the address of the pod of an app on a node.
func podIPOn(t *testing.T, ns, app, node string) string {
	t.Helper()
	return kubectl(t, "get", "pods", "-n", ns, "-l", "app="+app, "--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0].status.podIP}")
}

func nodePortOf(t *testing.T, ns, name string) string {
	t.Helper()
	return kubectl(t, "get", "service", "-n", ns, name, "-o", "jsonpath={.spec.ports[0].nodePort}")
}

// isReady says whether the API says that a node is Ready.
func isReady(t *testing.T, name string) bool {
	t.Helper()
	node, err := kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// A node dies without a word while a hundred connections a second come: later
// than three seconds after that none is given to it, through its node port or to
// its pod, though the API says that it is Ready. Those that it was given are
// taken by other pods. It comes back.
func TestNodeThatDiesSilently(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane, func(t *testing.T) { nodeThatDiesSilently(t, plane) })
	}
}

func nodeThatDiesSilently(t *testing.T, plane string) {
	const nodePort, pod, limit = 8600, 8601, 3 * time.Second
	ns := namespace(t)
	// What probes connect to is not what is counted: of nodes it is the
	// healthCheckNodePort anyway, and pods have another port for it.
	restoreConfig(t)
	if err := writeConfig(strings.Replace(config, "kubernetes:\n", "kubernetes:\n  health: {port: 8081}\n", 1)); err != nil {
		t.Fatal(err)
	}
	manifests := ""
	for _, node := range []string{"w1", "w2", "w3"} {
		manifests += strings.Replace(deployment(ns, node, "web", node, 1), "        - name: web\n",
			"        - {name: aside, image: lab/web, ports: [{containerPort: 8081}]}\n        - name: web\n", 1)
	}
	apply(t, manifests+on(plane, service(ns, "node-port", "web", "home", "Local", nodePort)+
		annotated(service(ns, "pod", "web", "home", "Local", pod), "gatehouse.e13.dev/target: pod")))
	awaitPods(t, ns, "w1", "w2", "w3")
	for _, name := range []string{"node-port", "pod"} {
		eventually(t, 15*time.Second, name+" is up", func() error { return allUp(t, ns+"/"+name, 3) })
	}
	podAddr := podIPOn(t, ns, "web", "w3")
	given := givenTo(t, plane, "10.0.0.103 . "+nodePortOf(t, ns, "node-port"), podAddr+" . 8080")
	targets := map[string]string{"10.0.0.103": "node port", podAddr: "pod"}

	loads := []*load{startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, nodePort), 100), startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, pod), 100)}
	more := func(than map[string]int) func() error {
		return func() error {
			now := given()
			for addr, what := range targets {
				if now[addr] < than[addr]+20 {
					return fmt.Errorf("the %s was given %d connections, and %d before", what, now[addr], than[addr])
				}
			}
			return nil
		}
	}
	eventually(t, 10*time.Second, "it is given connections", more(nil))

	if err := lab.LinkDown("w3", "eth0"); err != nil {
		t.Fatal(err)
	}
	pulled := time.Now()
	t.Cleanup(func() {
		if err := lab.LinkUp("w3", "eth0"); err != nil {
			t.Error(err)
		}
	})
	before := given()
	last, counts := map[string]time.Duration{}, maps.Clone(before)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for time.Since(pulled) < limit+5*time.Second {
		<-tick.C
		looked := time.Since(pulled)
		now := given()
		for addr := range targets {
			if now[addr] != counts[addr] {
				last[addr] = looked
			}
		}
		counts = now
	}
	if !isReady(t, "w3") {
		t.Error("the API says that the node is not Ready; so anybody would have known")
	}
	for addr, what := range targets {
		t.Logf("the %s was given its last connection %d ms after the cable was pulled, and %d in that time", what, last[addr].Milliseconds(), counts[addr]-before[addr])
		if last[addr] > limit {
			t.Errorf("the dead %s was given connections %s after the cable was pulled", what, last[addr])
		}
		if counts[addr] == before[addr] {
			t.Errorf("the dead %s was given no connection at all: this test has seen nothing", what)
		}
	}
	if err := lab.LinkUp("w3", "eth0"); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 20*time.Second, "it is given connections again", more(counts))
	t.Logf("both are in use %d ms after the cable is back", took.Milliseconds())
	for _, l := range loads {
		slowest := l.end(t)
		for _, f := range l.failed {
			// Whoever has a pod goes with it.
			if f.began.After(pulled) {
				t.Errorf("a connection after the cable was pulled failed: %s", f)
			} else {
				t.Logf("a connection from before the cable was pulled failed: %s", f)
			}
		}
		// The relay tries another one after as long as a backend may take to answer.
		// With nat it is the client that tries again, when it does.
		if plane == proxy && slowest > limit+time.Second {
			t.Errorf("the slowest connection took %s", slowest)
		}
		if len(l.pods) != 3 {
			t.Errorf("%d pods answered, want 3", len(l.pods))
		}
	}
}

// backendAt is what the status says of a backend of the frontend at a port.
func backendAt(t *testing.T, port int, addr string) (b backendNow, there bool) {
	t.Helper()
	f, _ := openAt(t, port)
	for _, b := range f.Backends {
		if strings.HasPrefix(b.Addr, addr+":") {
			return b, true
		}
	}
	return b, false
}

// given is how many connections a backend was given.
func (b backendNow) given() uint64 { return b.Total + b.Failures }

// backendIs is a condition for eventually.
func backendIs(t *testing.T, port int, addr, state, why string) func() error {
	return func() error {
		if b, _ := backendAt(t, port, addr); b.State != state || !strings.Contains(b.Error, why) {
			return fmt.Errorf("it is %q: %q", b.State, b.Error)
		}
		return nil
	}
}

// noneTo makes connections and says whether a backend was given one of them.
func noneTo(t *testing.T, port int, addr string) {
	t.Helper()
	before, _ := backendAt(t, port, addr)
	for range 200 {
		if _, err := get("home1", fmt.Sprintf("%s:%d", homeAddr, port), 5*time.Second); err != nil {
			t.Errorf("a connection failed: %v", err)
		}
	}
	if after, _ := backendAt(t, port, addr); after.given() != before.given() {
		t.Errorf("%s was given %d of 200 connections, and is %s: %s", addr, after.given()-before.given(), after.State, after.Error)
	}
}

// What kube-proxy says of its node counts. A node on which it has not programmed
// a Service gets no connections, and one on which it does not answer for its
// health gets none either, though its rules are there still.
func TestKubeProxySaysWhoIsHealthy(t *testing.T) {
	const local, cluster = 8605, 8606
	const w3 = "10.0.0.103"
	ns := namespace(t)
	restoreConfig(t)
	if err := writeConfig(strings.Replace(config, "kubernetes:\n", "kubernetes:\n  health: {interval: 1s}\n", 1)); err != nil {
		t.Fatal(err)
	}
	apply(t, deployment(ns, "w1", "web", "w1", 1)+deployment(ns, "w2", "web", "w2", 1)+deployment(ns, "w3", "web", "w3", 1)+
		service(ns, "cluster", "web", "home", "Cluster", cluster))
	awaitPods(t, ns, "w1", "w2", "w3")
	eventually(t, 10*time.Second, "all are up", func() error { return allUp(t, ns+"/cluster", 3) })

	pid := componentPID(t, "kube-proxy-w3")
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(pid, s); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	stopped := time.Now()
	eventually(t, 15*time.Second, "the node of the kube-proxy that says nothing is down", backendIs(t, cluster, w3, "down", "healthz"))
	t.Logf("kube-proxy's silence counts after %d ms", time.Since(stopped).Milliseconds())
	noneTo(t, cluster, w3)

	// It has not heard of this one either.
	apply(t, service(ns, "local", "web", "home", "Local", local))
	for _, addr := range []string{"10.0.0.101", "10.0.0.102"} {
		eventually(t, 10*time.Second, addr+" is up", backendIs(t, local, addr, "up", ""))
	}
	noneTo(t, local, w3)

	signal(syscall.SIGCONT)
	for _, port := range []int{local, cluster} {
		took := eventually(t, 20*time.Second, "the node is up again", backendIs(t, port, w3, "up", ""))
		t.Logf("port %d: it is up %d ms after kube-proxy goes on", port, took.Milliseconds())
		eventually(t, 5*time.Second, "and gets connections", func() error {
			if _, err := get("home1", fmt.Sprintf("%s:%d", homeAddr, port), 5*time.Second); err != nil {
				return err
			}
			if b, _ := backendAt(t, port, w3); b.Total == 0 {
				return errors.New("none yet")
			}
			return nil
		})
	}
}

func componentPID(t *testing.T, name string) int {
	t.Helper()
	s, err := lab.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Components {
		if c.Name == name && c.PID != 0 {
			return c.PID
		}
	}
	t.Fatalf("%s does not run", name)
	return 0
}

// Pods that are Ready and fail every check: the status says so and why, and they
// are tried all the same, unless the operator wants clients turned away.
func TestAllBackendsDown(t *testing.T) {
	const wrong, deaf = 8610, 8611
	ns := namespace(t)
	toPods := func(manifest, more string) string {
		return strings.Replace(manifest, "annotations: {", "annotations: {gatehouse.e13.dev/target: pod, gatehouse.e13.dev/health-interval: 1s, "+more, 1)
	}
	// The first are well, and asked for what they do not speak. Nothing listens in the others.
	silent := strings.NewReplacer("image: lab/web\n          args: []", "image: lab/host\n          command: [sleep, '600']",
		"          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}\n", "").Replace(deployment(ns, "deaf", "deaf", "", 2))
	apply(t, deployment(ns, "web", "web", "", 2)+silent+
		toPods(service(ns, "wrong", "web", "home", "Local", wrong), "gatehouse.e13.dev/health-check: tls, ")+
		toPods(service(ns, "deaf", "deaf", "home", "Local", deaf), ""))
	awaitPods(t, ns, "web", "deaf")
	down := func(name, why string) func() error {
		return func() error {
			for _, e := range statusNow(t).Exposures {
				if e.Service != ns+"/"+name {
					continue
				}
				if len(e.Backends) != 2 {
					return fmt.Errorf("%d backends", len(e.Backends))
				}
				for _, b := range e.Backends {
					if b.State != "down" || !strings.Contains(b.Error, why) {
						return fmt.Errorf("%s is %s: %s", b.Addr, b.State, b.Error)
					}
				}
			}
			if _, body := admin(t, "/status.json"); !strings.Contains(body, "service/"+ns+"/"+name) {
				return errors.New("no problem is said")
			}
			return nil
		}
	}
	eventually(t, 15*time.Second, "those that are asked for something else are down", down("wrong", "tls"))
	eventually(t, 15*time.Second, "those in which nothing listens are down", down("deaf", "refused"))
	for _, name := range []string{"wrong", "deaf"} {
		t.Log(problemsOf(t, ns+"/"+name))
	}
	for range 20 {
		if _, err := get("home1", fmt.Sprintf("%s:%d", homeAddr, wrong), 2*time.Second); err != nil {
			t.Fatalf("they are not tried: %v", err)
		}
	}
	before, _ := openAt(t, deaf)
	if _, err := get("home1", fmt.Sprintf("%s:%d", homeAddr, deaf), 2*time.Second); err == nil {
		t.Error("somebody answers")
	}
	eventually(t, time.Second, "they were tried", func() error {
		after, _ := openAt(t, deaf)
		for i := range after.Backends {
			if after.Backends[i].Failures == before.Backends[i].Failures {
				return fmt.Errorf("%s was not", after.Backends[i].Addr)
			}
		}
		return nil
	})

	restoreConfig(t)
	if err := writeConfig(strings.Replace(config, "kubernetes:\n", "kubernetes:\n  health: {whenAllDown: refuse}\n", 1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "clients are turned away", func() error {
		if a, err := get("home1", fmt.Sprintf("%s:%d", homeAddr, wrong), 2*time.Second); err == nil {
			return fmt.Errorf("%s answers", a.Pod)
		}
		return nil
	})
	t.Log(problemsOf(t, ns+"/wrong"))
}

// problemsOf are those that the status has of a Service.
func problemsOf(t *testing.T, service string) string {
	t.Helper()
	var all []string
	for _, p := range statusNow(t).Problems {
		if p.Object == "service/"+service {
			all = append(all, p.What+"; "+p.Remedy)
		}
	}
	return strings.Join(all, "\n")
}

// Under Cluster, kube-proxy of every node goes on to send connections to the pods
// of the dead one until Kubernetes says otherwise. So the node ports of all seem
// dead now and then; those that live are used on, and the dead one is not.
func TestNodeThatDiesUnderCluster(t *testing.T) {
	const port, limit = 8602, 3 * time.Second
	ns := namespace(t)
	manifests := ""
	for _, node := range []string{"w1", "w2", "w3"} {
		manifests += deployment(ns, node, "web", node, 1)
	}
	apply(t, manifests+service(ns, "web", "web", "home", "Cluster", port))
	awaitPods(t, ns, "w1", "w2", "w3")
	dead := "10.0.0.103:" + nodePortOf(t, ns, "web")
	given := func() (connections uint64, states map[string]string) {
		states = map[string]string{}
		f, _ := openAt(t, port)
		for _, b := range f.Backends {
			states[b.Addr] = b.State
			if b.Addr == dead {
				connections = b.Total + b.Failures
			}
		}
		return connections, states
	}
	eventually(t, 20*time.Second, "all nodes are up", func() error {
		return allUp(t, ns+"/web", 3)
	})
	l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, port), 50)
	eventually(t, 10*time.Second, "it is given connections", func() error {
		if n, _ := given(); n < 20 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	if err := lab.LinkDown("w3", "eth0"); err != nil {
		t.Fatal(err)
	}
	pulled := time.Now()
	t.Cleanup(func() {
		if err := lab.LinkUp("w3", "eth0"); err != nil {
			t.Error(err)
		}
	})
	count, _ := given()
	var last time.Duration
	fallen := map[string]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for time.Since(pulled) < 15*time.Second {
		<-tick.C
		// Connections that wait are counted when they fail, a connect timeout later.
		looked := time.Since(pulled)
		n, states := given()
		if n != count {
			count, last = n, looked
		}
		for addr, state := range states {
			if addr != dead && state != "up" {
				fallen[addr] = true
			}
		}
	}
	if !isReady(t, "w3") {
		t.Error("the API says that the node is not Ready; so anybody would have known")
	}
	t.Logf("the dead node's last connection ended %d ms after the cable was pulled", last.Milliseconds())
	if last > limit+3*time.Second {
		t.Errorf("the dead node was given connections: the last one ended %s after the cable was pulled", last)
	}
	if len(fallen) > 0 {
		t.Errorf("nodes that live were taken out: %v", slices.Sorted(maps.Keys(fallen)))
	}
	slowest := l.end(t)
	t.Logf("%d of %d connections failed, the slowest took %s: kube-proxy had sent them to the dead node's pod", len(l.failed), len(l.took), slowest)
}
