package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// status is the part of /status.json that tests look at.
type status struct {
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady"`
	Config   struct {
		Current  bool `json:"current"`
		Problems []struct {
			What string `json:"what"`
		} `json:"problems"`
	} `json:"config"`
	Cluster struct {
		Synced bool   `json:"synced"`
		Error  string `json:"error"`
	} `json:"cluster"`
	Exposures []struct {
		Name     string `json:"name"`
		Service  string `json:"service"`
		Open     bool   `json:"open"`
		Reason   string `json:"reason"`
		Backends []struct {
			Addr   string `json:"addr"`
			State  string `json:"state"`
			Error  string `json:"error"`
			Weight int    `json:"weight"`
		} `json:"backends"`
		Shares []struct {
			Pod string `json:"pod"`
		} `json:"shares"`
	} `json:"exposures"`
	Problems []struct {
		Object string `json:"object"`
		What   string `json:"what"`
		Remedy string `json:"remedy"`
	} `json:"problems"`
}

func statusNow(t *testing.T) status {
	t.Helper()
	_, body := admin(t, "/status.json")
	var s status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// load is a steady stream of new connections, and what became of them.
type load struct {
	stop chan struct{}
	done chan struct{}

	mu     sync.Mutex
	took   []time.Duration
	failed []failure
	pods   map[string]bool
	nodes  map[string]bool
}

// failure is a connection that failed.
type failure struct {
	began time.Time
	err   error
}

func (f failure) String() string { return fmt.Sprintf("%s: %v", f.began.Format("15:04:05.000"), f.err) }

// startLoad makes perSecond new connections a second until finish.
func startLoad(host, address string, perSecond int) *load {
	l := &load{stop: make(chan struct{}), done: make(chan struct{}), pods: map[string]bool{}, nodes: map[string]bool{}}
	go func() {
		defer close(l.done)
		var flying sync.WaitGroup
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		// The first is made at once, so that there is one, however soon it ends.
		for {
			flying.Go(func() {
				start := time.Now()
				a, err := get(host, address, 10*time.Second)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.took = append(l.took, time.Since(start))
				if err != nil {
					l.failed = append(l.failed, failure{start, err})
				}
				if err == nil {
					l.pods[a.Pod], l.nodes[a.Node] = true, true
				}
			})
			select {
			case <-l.stop:
				flying.Wait()
				return
			case <-tick.C:
			}
		}
	}()
	return l
}

// end waits for the last connections, and says how it was.
func (l *load) end(t *testing.T) (slowest time.Duration) {
	t.Helper()
	close(l.stop)
	<-l.done
	slices.Sort(l.took)
	slowest = l.took[len(l.took)-1]
	t.Logf("%d connections, %d failed, median %s, p99 %s, slowest %s, %d pods answered", len(l.took), len(l.failed),
		l.took[len(l.took)/2].Round(time.Microsecond), l.took[len(l.took)*99/100].Round(time.Microsecond), slowest.Round(time.Millisecond), len(l.pods))
	return slowest
}

func (l *load) finish(t *testing.T) {
	t.Helper()
	slowest := l.end(t)
	if len(l.failed) > 0 {
		t.Errorf("%d of %d connections failed, first: %s", len(l.failed), len(l.took), l.failed[0])
	}
	// A SYN that is dropped is sent again after a second: that is what waiting
	// for a node whose kube-proxy does not know yet looks like.
	if slowest > 900*time.Millisecond {
		t.Errorf("the slowest connection took %s", slowest)
	}
}

// A rollout under 200 new connections a second: none fails, and none waits for
// a node that was added before its kube-proxy knew: the old pods are all on one
// node, and the new ones come to nodes that had none. The pods serve on for 3 s
// after SIGTERM, as servers that shut down in order do.
func TestRollingUpdateUnderLoad(t *testing.T) {
	ns := namespace(t)
	apply(t, strings.Replace(deployment(ns, "web", "web", "", 2, "--linger", "3s"), "  replicas: 2\n", "  replicas: 2\n  minReadySeconds: 2\n", 1))
	uncordon := func() { kubectl(t, "uncordon", "w1", "w2", "w3") }
	t.Cleanup(func() {
		if _, err := lab.Kubectl(context.Background(), "uncordon", "w1", "w2", "w3"); err != nil {
			t.Error(err)
		}
	})
	for i, c := range []struct{ plane, policy, target string }{
		{proxy, "Local", "nodePort"},
		{proxy, "Cluster", "nodePort"},
		{proxy, "Local", "pod"},
		{nat, "Local", "nodePort"},
		{nat, "Cluster", "nodePort"},
		{nat, "Local", "pod"},
	} {
		t.Run(c.plane+" "+c.policy+" "+c.target, func(t *testing.T) {
			// All pods on the first node, by way of none.
			kubectl(t, "scale", "deployment", "-n", ns, "web", "--replicas", "0")
			kubectl(t, "cordon", "w2", "w3")
			kubectl(t, "scale", "deployment", "-n", ns, "web", "--replicas", "2")
			awaitPods(t, ns, "web")
			uncordon()
			kubectl(t, "cordon", "w1")
			name, port := fmt.Sprintf("web-%d", i), 8090+i
			apply(t, on(c.plane, annotated(service(ns, name, "web", "home", c.policy, port), "gatehouse.e13.dev/target: "+c.target)))
			eventually(t, 10*time.Second, "all up", func() error { return allUp(t, ns+"/"+name, 2) })
			l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, port), 200)
			kubectl(t, "rollout", "restart", "deployment", "-n", ns, "web")
			kubectl(t, "rollout", "status", "deployment", "-n", ns, "web", "--timeout", "60s")
			eventually(t, 20*time.Second, "the old pods are gone", func() error {
				return want(kubectl(t, "get", "pods", "-n", ns, "-o", "jsonpath={range .items[?(@.metadata.deletionTimestamp)]}{.metadata.name} {end}"), "")
			})
			l.finish(t)
			uncordon()
			if len(l.pods) < 4 || len(l.nodes) < 2 {
				t.Errorf("%d pods on %d nodes answered, want 2 old ones, 2 new ones, and a node that had none", len(l.pods), len(l.nodes))
			}
		})
	}
}

// conversation is a connection that asks again and again.
type conversation struct {
	conn net.Conn
	read *bufio.Reader
}

func converse(t *testing.T, host, address string) *conversation {
	t.Helper()
	conn, err := lab.Dialer(host)(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &conversation{conn, bufio.NewReader(conn)}
}

func (c *conversation) ask(t *testing.T) {
	t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(c.conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatalf("an established connection was cut: %v", err)
	}
	length := 0
	for {
		line, err := c.read.ReadString('\n')
		if err != nil {
			t.Fatalf("an established connection was cut: %v", err)
		}
		if _, err := fmt.Sscanf(line, "Content-Length: %d", &length); err == nil {
			continue
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	if _, err := c.read.Discard(length); err != nil || length == 0 {
		t.Fatalf("an established connection was cut: %v (%d bytes)", err, length)
	}
}

// Promise 6: without the API server traffic goes on, and what changes when it
// is back is picked up.
func TestAPIServerOutage(t *testing.T) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 3)+service(ns, "web", "web", "home", "Local", 8100))
	awaitPods(t, ns, "web")
	eventually(t, 10*time.Second, "all up", func() error { return allUp(t, ns+"/web", 3) })
	c := converse(t, "home1", homeAddr+":8100")
	c.ask(t)

	if err := lab.Stop(t.Context(), "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	l := startLoad("home1", homeAddr+":8100", 50)
	away := time.NewTimer(30 * time.Second)
	<-away.C
	c.ask(t)
	if s := statusNow(t); !s.Ready || s.Cluster.Error == "" {
		t.Errorf("ready %v, cluster error %q; want ready, and the error", s.Ready, s.Cluster.Error)
	}
	if err := lab.Start(t.Context(), "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "a change after it is back", func() error {
		return lab.Apply(t.Context(), service(ns, "later", "web", "home", "Local", 8101))
	})
	took := eventually(t, 5*time.Second, "gatehouse picks the change up", func() error {
		for _, e := range statusNow(t).Exposures {
			if e.Service == ns+"/later" && e.Open {
				return nil
			}
		}
		return fmt.Errorf("no exposure of later")
	})
	t.Logf("a Service made after the outage is in gatehouse %d ms after kubectl apply returned", took.Milliseconds())
	l.finish(t)
	// Whoever makes pods, endpoints and node ports asks again after one to three
	// minutes, each its own time; started anew, they ask at once.
	for _, name := range []string{
		"kube-controller-manager", "kube-scheduler", "agent-w1", "agent-w2", "agent-w3", "kube-proxy-w1", "kube-proxy-w2", "kube-proxy-w3",
	} {
		if err := errors.Join(lab.Stop(t.Context(), name), lab.Start(t.Context(), name)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "every node has it", func() error { return allUp(t, ns+"/later", 3) })
	if err := opened("home1", homeAddr+":8101")(); err != nil {
		t.Error(err)
	}
	c.ask(t)
	eventually(t, 10*time.Second, "the error clears", func() error { return want(statusNow(t).Cluster.Error, "") })
}

// Promises 4 and 8: a bad file changes nothing and says where it is bad; a good
// one is taken however it was written, and leaves what did not change alone.
func TestFilesAreFollowed(t *testing.T) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 1)+service(ns, "web", "web", "home", "Local", 8110))
	awaitPods(t, ns, "web")
	eventually(t, 10*time.Second, "open", opened("home1", homeAddr+":8110"))
	c := converse(t, "home1", homeAddr+":8110")
	c.ask(t)
	port := kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
	static := config + "frontends:\n  - {name: extra, zones: [cluster], port: 8111, backends: [{address: \"10.0.0.101:" + port + "\"}, {address: \"10.0.0.102:" + port + "\"}, {address: \"10.0.0.103:" + port + "\"}]}\n"
	t.Cleanup(func() {
		if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
			t.Error(err)
		}
		eventually(t, 10*time.Second, "the first file is back", func() error { return closed("w1", clusterAddr+":8111")() })
	})

	if err := os.WriteFile(configFile, []byte(strings.Replace(config, "eth1", "[", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the bad file is reported", func() error {
		s := statusNow(t)
		if s.Config.Current || len(s.Config.Problems) == 0 {
			return fmt.Errorf("status says %+v", s.Config)
		}
		if _, metrics := admin(t, "/metrics"); !strings.Contains(metrics, "gatehouse_config_last_reload_successful 0") {
			return fmt.Errorf("the metric says nothing")
		}
		return nil
	})
	// It is reported before it could do harm: look for a while.
	still := time.NewTicker(50 * time.Millisecond)
	defer still.Stop()
	for range 20 {
		<-still.C
		c.ask(t)
		if _, err := get("home1", homeAddr+":8110", time.Second); err != nil {
			t.Fatalf("a bad file closed a frontend: %v", err)
		}
	}

	// As an editor does it: a new file takes the name of the old one.
	next := filepath.Join(filepath.Dir(configFile), ".gatehouse.yaml.swp")
	if err := os.WriteFile(next, []byte(static), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, configFile); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Second, "the new frontend is open", opened("w1", clusterAddr+":8111"))
	c.ask(t)
	eventually(t, 2*time.Second, "the metric is well again", func() error {
		if _, metrics := admin(t, "/metrics"); !strings.Contains(metrics, "gatehouse_config_last_reload_successful 1") {
			return fmt.Errorf("it is not 1")
		}
		return nil
	})
}

// The file for those who keep l4proxy follows the cluster, down to nothing.
func TestAnnounce(t *testing.T) {
	ns := namespace(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "l4proxy.yaml")
	kubeconfig, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Run(t.Context(), "announcer", "edge", []string{"KUBECONFIG=" + kubeconfig}, gatehouse, "announce", "-c", configFile, "-o", out); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "announcer"); err != nil {
			t.Error(err)
		}
	})
	has := func(text string, want bool) func() error {
		return func() error {
			data, err := os.ReadFile(out)
			if err == nil && strings.Contains(string(data), text) != want {
				err = fmt.Errorf("contains %s: %v; the file:\n%s", text, !want, data)
			}
			return err
		}
	}
	eventually(t, 10*time.Second, "a file without the Service", has("@eth1:8120", false))
	apply(t, deployment(ns, "web", "web", "", 2)+service(ns, "web", "web", "home", "Local", 8120))
	awaitPods(t, ns, "web")
	eventually(t, 5*time.Second, "the Service is in the file", has("@eth1:8120", true))
	if text, err := lab.Exec(t.Context(), "edge", gatehouse, "check", "-c", out); err != nil {
		t.Errorf("the file is not what run takes: %v %s", err, text)
	}
	kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"type":"NodePort","loadBalancerClass":null}}`)
	eventually(t, 2*time.Second, "gone with its type", has("@eth1:8120", false))
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("files are left behind: %v", left)
	}
}

// A token that is not accepted is said in plain words, and one that is takes
// over without a restart.
func TestExpiredToken(t *testing.T) {
	good, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kubeconfig, file := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "gatehouse.yaml")
	broken := []byte{}
	for line := range strings.Lines(string(data)) {
		if before, _, found := strings.Cut(line, "token: "); found {
			line = before + "token: eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl\n"
		}
		broken = append(broken, line...)
	}
	for path, content := range map[string][]byte{
		kubeconfig: broken,
		file:       []byte("apiVersion: gatehouse.e13.dev/v1\nzones: {cluster: {interfaces: [eth0]}}\nkubernetes: {kubeconfig: " + kubeconfig + "}\nadmin: {listen: \"127.0.0.1:9181\"}\n"),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := lab.Exec(t.Context(), "edge", gatehouse, "plan", "-c", file); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("plan with a bad token: %s %v", out, err)
	} else {
		t.Log(err)
	}
	if err := lab.Run(t.Context(), "second", "edge", nil, gatehouse, "run", "-c", file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "second"); err != nil {
			t.Error(err)
		}
	})
	ready := func() (code int, err error) {
		resp, err := httpFrom("edge").Get("http://127.0.0.1:9181/readyz")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	eventually(t, 10*time.Second, "not ready with a bad token", func() error {
		if code, err := ready(); err != nil || code != 503 {
			return fmt.Errorf("%d %v", code, err)
		}
		resp, err := httpFrom("edge").Get("http://127.0.0.1:9181/status.json")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body := readAll(resp); !strings.Contains(body, "401") {
			return fmt.Errorf("the status does not name the cause")
		}
		return nil
	})
	if err := os.WriteFile(kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "ready with a good one", func() error {
		if code, err := ready(); err != nil || code != 200 {
			return fmt.Errorf("%d %v", code, err)
		}
		return nil
	})
}
