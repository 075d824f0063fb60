package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// besides is a gatehouse that runs beside the one that serves all tests, with a
// class of Services of its own and an API server that tests can take away.
type besides struct {
	name, class, admin string
	file, state        string
	front              *apiFront
}

func runBesides(t *testing.T, name, adminAddress, more string) *besides {
	t.Helper()
	dir := t.TempDir()
	b := &besides{
		name: name, class: "gatehouse.e13.dev/" + name, admin: adminAddress,
		file: filepath.Join(dir, "gatehouse.yaml"), state: filepath.Join(dir, "state"), front: newAPIFront(t),
	}
	b.write(t, more)
	b.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			data, _ := os.ReadFile(lab.LogPath(name))
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			t.Logf("the log of %s:\n%s", name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		if err := lab.Stop(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	return b
}

// write makes the file; more goes into the kubernetes block.
func (b *besides) write(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf(`apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
  cluster:  {interfaces: [eth0]}
kubernetes: {loadBalancerClass: %s, kubeconfig: %s%s}
stateDir: %s
admin: {listen: %q}
`, b.class, b.front.kubeconfig, more, b.state, b.admin)
	if err := os.WriteFile(b.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *besides) start(t *testing.T) {
	t.Helper()
	if err := lab.Run(t.Context(), b.name, "edge", nil, gatehouse, "run", "-c", b.file); err != nil {
		t.Fatal(err)
	}
}

func (b *besides) kill(t *testing.T) {
	t.Helper()
	if err := lab.Kill(t.Context(), b.name); err != nil {
		t.Fatal(err)
	}
}

func (b *besides) status() (s status, err error) {
	resp, err := httpFrom("edge").Get("http://" + b.admin + "/status.json")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// saysProblem waits for a problem that has these words, or for there to be none.
func (b *besides) saysProblem(t *testing.T, limit time.Duration, there bool, words ...string) (text string) {
	t.Helper()
	eventually(t, limit, fmt.Sprintf("a problem with %q: %v", words, there), func() error {
		s, err := b.status()
		if err != nil {
			return err
		}
		found := false
		var all []string
		for _, p := range s.Problems {
			line := p.Object + ": " + p.What + "; " + p.Remedy
			all = append(all, line)
			has := true
			for _, w := range words {
				has = has && strings.Contains(line, w)
			}
			if has {
				found, text = true, line
			}
		}
		if found != there {
			return fmt.Errorf("the problems are %q", all)
		}
		return nil
	})
	return text
}

// stateSays waits until the last state on disk is younger than a time.
func (b *besides) stateYounger(t *testing.T, than time.Time) string {
	t.Helper()
	var file string
	eventually(t, 20*time.Second, "the state is written", func() error {
		files, _ := filepath.Glob(filepath.Join(b.state, "*"))
		if len(files) != 1 {
			return fmt.Errorf("there is %q", files)
		}
		file = files[0]
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		if info.ModTime().Before(than) {
			return fmt.Errorf("it is of %s", info.ModTime())
		}
		return nil
	})
	return file
}

// weights are those of a Service's backends, as "address=weight …".
func weights(b *besides, service string) string {
	s, err := b.status()
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range s.Exposures {
		for _, backend := range e.Backends {
			if e.Service == service && backend.Weight > 0 {
				out = append(out, fmt.Sprintf("%s=%d", strings.Split(backend.Addr, ":")[0], backend.Weight))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (b *besides) service(ns, name string, port int) string {
	return strings.Replace(service(ns, name, "web", "home", "Local", port), "gatehouse.e13.dev/edge", b.class, 1)
}

// Promise 6: what is known of the cluster outlives the program. A gatehouse that
// is killed and started while the API server is away serves on, goes by what
// kube-proxies say of pods that move meanwhile, and tells nobody anything twice.
func TestRestartWithoutTheAPI(t *testing.T) {
	const port = 8660
	ns := namespace(t)
	b := runBesides(t, "restart", "127.0.0.1:9195", "")
	apply(t, deployment(ns, "one", "web", "w1", 1)+deployment(ns, "two", "web", "w2", 2)+b.service(ns, "web", port))
	awaitPods(t, ns, "one", "two")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	eventually(t, 10*time.Second, "the status is written", func() error { return want(ingressOf(t, ns, "web"), homeAddr) })
	b.stateYounger(t, time.Now().Add(-time.Second))
	told := eventsOf(t, ns, "web")

	b.front.behave(cut)
	b.kill(t)
	start := time.Now()
	b.start(t)
	eventually(t, 10*time.Second, "open again, without the API", opened("home1", at))
	t.Logf("open %d ms after it was started without an API server", time.Since(start).Milliseconds())
	b.saysProblem(t, 20*time.Second, true, "kubernetes")
	kubectl(t, "scale", "deployment", "-n", ns, "one", "--replicas", "3")
	awaitPods(t, ns, "one")
	// Nobody but kube-proxy says that there are more pods on w1.
	eventually(t, time.Minute, "each pod has its share", func() error {
		if counts := spread(t, "home1", []string{at}, 200); len(counts) != 5 {
			return fmt.Errorf("%d pods answer", len(counts))
		}
		return want(weights(b, ns+"/web"), "10.0.0.101=3 10.0.0.102=2")
	})

	b.front.behave(nil)
	b.saysProblem(t, 20*time.Second, false, "kubernetes")
	apply(t, b.service(ns, "later", port+1))
	eventually(t, 10*time.Second, "what is new is open", opened("home1", fmt.Sprintf("%s:%d", homeAddr, port+1)))
	if now := eventsOf(t, ns, "web"); now != told {
		t.Errorf("events of web are now\n%s\nwere\n%s", now, told)
	}
}

// A state that is damaged is set aside and said, and nothing is made up from it.
func TestDamagedState(t *testing.T) {
	const port = 8665
	ns := namespace(t)
	b := runBesides(t, "damaged", "127.0.0.1:9196", "")
	apply(t, deployment(ns, "web", "web", "", 1)+b.service(ns, "web", port))
	awaitPods(t, ns, "web")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	file := b.stateYounger(t, time.Now().Add(-time.Second))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; want a file for its owner only", file, info, err)
	}
	if info, err := os.Stat(b.state); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v; want a directory for its owner only", b.state, info, err)
	}
	b.front.behave(cut)
	b.kill(t)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	t.Log(b.saysProblem(t, 20*time.Second, true, b.state, "set aside"))
	if err := closed("home1", at)(); err != nil {
		t.Errorf("a damaged state opens something: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.state, "*damaged*")); len(left) != 1 {
		t.Errorf("set aside: %q", left)
	}
	b.front.behave(nil)
	eventually(t, 20*time.Second, "open by the API's word", opened("home1", at))
}

// An API server that comes back empty is not believed at once: traffic goes on,
// a problem says so, and nothing is lost when it is put right. Who is sure
// believes it by SIGHUP; and when time is up it is believed anyway.
func TestEmptyAPIServerIsNotBelieved(t *testing.T) {
	const port, services = 8670, 5
	ns := namespace(t)
	b := runBesides(t, "empty", "127.0.0.1:9197", ", holdLosses: 10m")
	manifests := deployment(ns, "web", "web", "", 2)
	for i := range services {
		manifests += b.service(ns, fmt.Sprintf("web-%d", i), port+i)
	}
	apply(t, manifests)
	awaitPods(t, ns, "web")
	each := func(holds func(host, address string) func() error) func() error {
		return func() error {
			for i := range services {
				if err := holds("home1", fmt.Sprintf("%s:%d", homeAddr, port+i))(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	eventually(t, 20*time.Second, "all open", each(opened))
	empty := emptyAPIServer(t)

	l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, port), 50)
	b.front.switchTo(empty)
	t.Log(b.saysProblem(t, 30*time.Second, true, "Services", "SIGHUP"))
	if err := each(opened)(); err != nil {
		t.Errorf("an empty list was acted upon: %v", err)
	}
	b.kill(t) // who is started anew does not believe it either: what is kept says more
	b.start(t)
	b.saysProblem(t, 30*time.Second, true, "Services", "SIGHUP")
	if err := each(opened)(); err != nil {
		t.Errorf("an empty list was acted upon after a restart: %v", err)
	}
	b.front.switchTo("10.0.0.10:6443")
	b.saysProblem(t, 30*time.Second, false, "Services", "SIGHUP")
	l.end(t) // it was killed meanwhile: some failed
	if err := each(opened)(); err != nil {
		t.Error(err)
	}
	for i := range services {
		if got := ingressOf(t, ns, fmt.Sprintf("web-%d", i)); got != homeAddr {
			t.Errorf("the status of web-%d is now %q", i, got)
		}
	}

	b.front.switchTo(empty)
	b.saysProblem(t, 30*time.Second, true, "Services", "SIGHUP")
	signalComponent(t, b.name, syscall.SIGHUP)
	eventually(t, 10*time.Second, "believed by SIGHUP", each(closed))
	b.front.switchTo("10.0.0.10:6443")
	eventually(t, 30*time.Second, "all open again", each(opened))

	b.write(t, ", holdLosses: 3s")
	eventually(t, 10*time.Second, "the file is read", func() error {
		s, err := b.status()
		if err == nil && !s.Config.Current {
			err = errors.New("the file is bad")
		}
		return err
	})
	b.front.switchTo(empty)
	b.saysProblem(t, 30*time.Second, true, "Services", "SIGHUP")
	eventually(t, 20*time.Second, "believed in time", each(closed))
	b.saysProblem(t, 10*time.Second, false, "Services", "SIGHUP")
	b.front.switchTo("10.0.0.10:6443")
	eventually(t, 30*time.Second, "all open once more", each(opened))
}

// Busy, slow and absent API servers: traffic goes on, and what has changed is
// there afterwards.
func TestAPIServerInTrouble(t *testing.T) {
	const port = 8680
	ns := namespace(t)
	b := runBesides(t, "trouble", "127.0.0.1:9198", "")
	apply(t, deployment(ns, "web", "web", "", 2)+b.service(ns, "web", port))
	awaitPods(t, ns, "web")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	c := converse(t, "home1", at)
	next := port
	changed := func(t *testing.T, limit time.Duration) {
		t.Helper()
		next++
		name := fmt.Sprintf("web-%d", next)
		eventually(t, limit, "a Service can be made", func() error { return lab.Apply(t.Context(), b.service(ns, name, next)) })
		took := eventually(t, limit, "it is open", opened("home1", fmt.Sprintf("%s:%d", homeAddr, next)))
		eventually(t, limit, "its status is written", func() error { return want(ingressOf(t, ns, name), homeAddr) })
		t.Logf("a change is open after %d ms", took.Milliseconds())
	}
	for _, trouble := range []struct {
		name       string
		begin, end func(t *testing.T)
		// meanwhile says that changes come through all the time.
		meanwhile bool
	}{
		{"slow", func(*testing.T) { b.front.behave(slowly(time.Second)) }, func(*testing.T) { b.front.behave(nil) }, true},
		{"throttled", func(*testing.T) { b.front.behave(throttled) }, func(*testing.T) { b.front.behave(nil) }, false},
		{"cut off", func(*testing.T) { b.front.behave(cut) }, func(*testing.T) { b.front.behave(nil) }, false},
		{"etcd is paused", func(t *testing.T) { pause(t, "etcd") }, func(t *testing.T) { resume(t, "etcd") }, false},
	} {
		t.Run(trouble.name, func(t *testing.T) {
			l := startLoad("home1", at, 50)
			trouble.begin(t)
			ended := false
			t.Cleanup(func() {
				if !ended {
					trouble.end(t)
				}
			})
			if trouble.meanwhile {
				changed(t, 30*time.Second)
			} else {
				wait := time.NewTimer(8 * time.Second)
				<-wait.C
			}
			c.ask(t)
			trouble.end(t)
			ended = true
			changed(t, 30*time.Second)
			l.finish(t)
		})
	}
	t.Run("history is compacted", func(t *testing.T) {
		l := startLoad("home1", at, 50)
		b.front.behave(cut)
		kubectl(t, "annotate", "service", "-n", ns, "web", "example.org/changed=yes")
		compact(t)
		b.front.behave(nil)
		changed(t, 30*time.Second)
		l.finish(t)
		c.ask(t)
	})
}

// The control plane itself is a frontend: in the zones named, and nowhere else.
func TestAPIServerAsFrontend(t *testing.T) {
	b := runBesides(t, "apiserver", "127.0.0.1:9199", ", apiServer: {zones: [cluster, home]}")
	asks := func(host, address string) func() error {
		return func() error {
			_, err := lab.Exec(t.Context(), host, "curl", "-fsS", "--max-time", "5", "--cacert", filepath.Join(lab.Dir(), "pki", "ca.crt"), "https://"+address+"/readyz")
			return err
		}
	}
	eventually(t, 20*time.Second, "open in home", asks("home1", homeAddr+":6443"))
	eventually(t, 5*time.Second, "open in the cluster", asks("w1", clusterAddr+":6443"))
	for _, address := range []string{publicAddr, internetAddr, homeAddr, clusterAddr} {
		if err := asks("inet", address+":6443")(); err == nil {
			t.Errorf("the Internet reaches the API server at %s", address)
		}
	}
	// A client of the API, a watch included.
	kubeconfig, err := os.ReadFile(lab.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(kubeconfig), "10.0.0.10:6443", homeAddr+":6443")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(t.Context(), "home1", filepath.Join(lab.Dir(), "bin", "kubectl"), "--kubeconfig", file, "get", "nodes", "-o", "name")
	if err != nil || !strings.Contains(out, "node/w1") {
		t.Errorf("kubectl through gatehouse: %s %v", out, err)
	}
	s, err := b.status()
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range s.Exposures {
		if e.Name == "kubernetes-api" {
			found++
			if len(e.Backends) != 1 || e.Backends[0].Addr != "10.0.0.10:6443" || e.Backends[0].State != "up" {
				t.Errorf("backends are %+v", e.Backends)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d rows, want one in home and one in cluster", found)
	}
}
