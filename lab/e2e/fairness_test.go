package e2e

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/internal/fairness"
)

// chiSquare is fairness.ChiSquare of so many pods, some of which may have got
// nothing.
func chiSquare(counts map[string]int, pods int) (statistic, bound float64) {
	all := make([]int, max(pods-len(counts), 0), pods)
	return fairness.ChiSquare(slices.AppendSeq(all, maps.Values(counts)))
}

// spread makes connections in parallel and counts which pod answered each.
func spread(t *testing.T, host string, addresses []string, n int) map[string]int {
	t.Helper()
	counts, _ := census(t, n, func(i int) (pod, client string, err error) {
		a, err := get(host, addresses[i%len(addresses)], 5*time.Second)
		client, _, _ = net.SplitHostPort(a.Client)
		return a.Pod, client, err
	})
	return counts
}

// census asks n times, in parallel, and counts by pod that answered, and by
// client's address that it has seen.
func census(t *testing.T, n int, ask func(i int) (pod, client string, err error)) (pods, clients map[string]int) {
	t.Helper()
	var mu sync.Mutex
	pods, clients = map[string]int{}, map[string]int{}
	failed := 0
	var workers sync.WaitGroup
	jobs := make(chan int)
	for range 12 {
		workers.Go(func() {
			for i := range jobs {
				pod, client, err := ask(i)
				mu.Lock()
				if err != nil {
					failed++
					if failed < 4 {
						t.Errorf("connection %d: %v", i, err)
					}
				} else {
					pods[pod]++
					clients[client]++
				}
				mu.Unlock()
			}
		})
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	workers.Wait()
	if failed > 0 {
		t.Errorf("%d of %d connections failed", failed, n)
	}
	return pods, clients
}

func printShares(t *testing.T, title string, counts map[string]int) {
	total := 0
	for _, n := range counts {
		total += n
	}
	line := title + ":"
	for _, pod := range slices.Sorted(maps.Keys(counts)) {
		line += fmt.Sprintf("  %s %.1f %%", pod, 100*float64(counts[pod])/float64(total))
	}
	t.Log(line)
}

// equal wants each of the pods to have an equal share.
func equal(t *testing.T, counts map[string]int, pods int) {
	t.Helper()
	if x, bound := chiSquare(counts, pods); x > bound || len(counts) != pods {
		t.Errorf("shares are not equal: chi-square %.1f, at most %.1f: %v", x, bound, counts)
	} else {
		t.Logf("chi-square %.1f, at most %.1f", x, bound)
	}
}

// Promise 2: one pod on w1, two on w2, three on w3. Each pod gets a sixth,
// whatever moves the bytes and however the pods are reached, and sees the
// client's own address where the plan says so, and nowhere else. The same test
// fails what an equal split over nodes gives: the textbook 1/3, 1/6, 1/9.
func TestEveryPodGetsItsShare(t *testing.T) {
	const connections, warm, pods = 6000, 60, 6
	ns := namespace(t)
	manifests := ""
	for i, node := range []string{"w1", "w2", "w3"} {
		manifests += deployment(ns, "web-"+node, "web", node, i+1) + echoPods(ns, "echo-"+node, node, i+1)
	}
	apply(t, manifests)
	awaitPods(t, ns, "web-w1", "web-w2", "web-w3", "echo-w1", "echo-w2", "echo-w3")
	for i, c := range []struct {
		plane, target, policy, protocol string
		client                          string // as the plan has it
	}{
		{proxy, "nodePort", "Local", "TCP", "this machine's address"},
		{proxy, "pod", "Local", "TCP", "this machine's address"},
		{nat, "nodePort", "Local", "TCP", "the client's own"},
		{nat, "nodePort", "Cluster", "TCP", "a node's: kube-proxy replaces it"},
		{nat, "pod", "Local", "TCP", "the client's own"},
		{nat, "nodePort", "Local", "UDP", "the client's own"},
		{nat, "nodePort", "Cluster", "UDP", "a node's: kube-proxy replaces it"},
		{nat, "pod", "Local", "UDP", "the client's own"},
	} {
		t.Run(strings.Join([]string{c.plane, c.target, c.policy, c.protocol}, " "), func(t *testing.T) {
			port, name := 8080+i, fmt.Sprintf("web-%d", i)
			at, key := fmt.Sprintf("%s:%d", homeAddr, port), ns+"/"+name
			manifest := on(c.plane, annotated(service(ns, name, "web", "home", c.policy, port), "gatehouse.e13.dev/target: "+c.target))
			ask := func(int) (pod, client string, err error) {
				a, err := get("home1", at, 5*time.Second)
				client, _, _ = net.SplitHostPort(a.Client)
				return a.Pod, client, err
			}
			if c.protocol == "UDP" {
				manifest = strings.NewReplacer("ports: [{", "ports: [{protocol: UDP, ", "selector: {app: web}", "selector: {app: echo}").Replace(manifest)
				// A port that is used again would be the old session.
				ask = func(i int) (pod, client string, err error) { return whenceBy("home1", at, 20000+i) }
			}
			apply(t, manifest)
			eventually(t, 15*time.Second, "six pods in six shares, all up", func() error { return allUp(t, key, pods) })
			address, _, isSeen := planned(t, key, "home")
			if !strings.HasPrefix(address, c.client) || isSeen != (c.client == "the client's own") {
				t.Errorf("plan says that the pods see %q (%v)", address, isSeen)
			}
			asked := 0
			if c.policy == "Cluster" { // nothing tells of each node whether its kube-proxy knows of the Service
				eventually(t, 10*time.Second, "open on every node", func() error {
					for range warm {
						asked++
						if _, _, err := ask(-asked); err != nil {
							return err
						}
					}
					return nil
				})
			}
			counts, clients := census(t, connections, ask)
			printShares(t, fmt.Sprintf("gatehouse, %s, target %s, policy %s, %s", c.plane, c.target, c.policy, c.protocol), counts)
			equal(t, counts, pods)
			if n := clients[home1Addr]; isSeen && n != connections || !isSeen && n != 0 {
				t.Errorf("the plan says that the pods see %s; they have seen %v, and the client is %s", address, clients, home1Addr)
			}
			eventually(t, 10*time.Second, "every connection is counted", func() error { return counted(t, port, uint64(asked+connections)) })
		})
	}
	t.Run("an equal split over nodes fails", func(t *testing.T) {
		port := nodePortOf(t, ns, "web-0")
		counts := spread(t, "edge", []string{"10.0.0.101:" + port, "10.0.0.102:" + port, "10.0.0.103:" + port}, connections/2)
		printShares(t, "nodes equal", counts)
		if x, bound := chiSquare(counts, pods); x <= bound {
			t.Errorf("the test does not see a wrong weighting: chi-square %.1f, at most %.1f: %v", x, bound, counts)
		}
	})
}

// counted says whether the status counts so many connections, as a whole and by
// backend. The kernel counts a few twice: a pod that sees clients' own ports may
// take one that was used lately, by way of another Service, for the connection of
// before, and the client has to try again.
func counted(t *testing.T, port int, connections uint64) error {
	t.Helper()
	f, _ := openAt(t, port)
	var total uint64
	var each []string
	for _, b := range f.Backends {
		total += b.Total
		each = append(each, fmt.Sprintf("%s %d", b.Addr, b.Total))
	}
	if f.Accepted != total || total < connections || total > connections+connections/100 {
		return fmt.Errorf("%d, and %d by backend, of %d: %v", f.Accepted, total, connections, each)
	}
	return nil
}

// allUp says whether the running gatehouse has all backends of a Service up,
// with that many pods behind them.
func allUp(t *testing.T, service string, pods int) error {
	t.Helper()
	s := statusNow(t)
	for _, e := range s.Exposures {
		if e.Service != service {
			continue
		}
		if len(e.Shares) != pods {
			return fmt.Errorf("%d pods in the shares, want %d", len(e.Shares), pods)
		}
		for _, b := range e.Backends {
			if b.State != "up" {
				return fmt.Errorf("backend %s is %s: %s", b.Addr, b.State, b.Error)
			}
		}
		return nil
	}
	return fmt.Errorf("no exposure of %s", service)
}
