package e2e

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"
)

// chiSquare returns how far the counts are from equal shares, and the bound
// that equal shares exceed once in 10,000 times (Wilson and Hilferty's
// approximation of the quantile).
func chiSquare(counts map[string]int, pods int) (statistic, bound float64) {
	total := 0
	for _, n := range counts {
		total += n
	}
	expected := float64(total) / float64(pods)
	for _, n := range counts {
		statistic += (float64(n) - expected) * (float64(n) - expected) / expected
	}
	statistic += float64(pods-len(counts)) * expected // pods that got nothing
	const z = 3.719
	k := float64(pods - 1)
	return statistic, k * math.Pow(1-2/(9*k)+z*math.Sqrt(2/(9*k)), 3)
}

// spread makes connections in parallel and counts which pod answered each.
func spread(t *testing.T, host string, addresses []string, n int) map[string]int {
	t.Helper()
	var mu sync.Mutex
	counts := map[string]int{}
	failed := 0
	var workers sync.WaitGroup
	jobs := make(chan int)
	for range 12 {
		workers.Go(func() {
			for i := range jobs {
				a, err := get(host, addresses[i%len(addresses)], 5*time.Second)
				mu.Lock()
				if err != nil {
					failed++
					if failed < 4 {
						t.Errorf("connection %d: %v", i, err)
					}
				} else {
					counts[a.Pod]++
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
	return counts
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

// Promise 2: one pod on w1, two on w2, three on w3, externalTrafficPolicy
// Local. Each pod gets a sixth. The same test fails what an equal split over
// nodes gives: the textbook 1/3, 1/6, 1/9.
func TestEveryPodGetsItsShare(t *testing.T) {
	const connections = 6000
	ns := namespace(t)
	apply(t, deployment(ns, "one", "web", "w1", 1)+deployment(ns, "two", "web", "w2", 2)+deployment(ns, "three", "web", "w3", 3))
	awaitPods(t, ns, "one", "two", "three")
	for i, target := range []string{"nodePort", "pod"} {
		t.Run(target, func(t *testing.T) {
			at := fmt.Sprintf("%s:%d", homeAddr, 8080+i)
			name := fmt.Sprintf("web-%d", i)
			apply(t, service(ns, name, "web", "home", "Local", 8080+i))
			kubectl(t, "annotate", "service", "-n", ns, name, "gatehouse.e13.dev/target="+target)
			eventually(t, 10*time.Second, "six pods in six shares, all up", func() error { return allUp(t, ns+"/"+name, 6) })
			counts := spread(t, "home1", []string{at}, connections)
			printShares(t, "gatehouse, target "+target, counts)
			if x, bound := chiSquare(counts, 6); x > bound || len(counts) != 6 {
				t.Errorf("shares are not equal: chi-square %.1f, at most %.1f: %v", x, bound, counts)
			} else {
				t.Logf("chi-square %.1f, at most %.1f", x, bound)
			}
		})
	}
	t.Run("an equal split over nodes fails", func(t *testing.T) {
		port := kubectl(t, "get", "service", "-n", ns, "web-0", "-o", "jsonpath={.spec.ports[0].nodePort}")
		counts := spread(t, "edge", []string{"10.0.0.101:" + port, "10.0.0.102:" + port, "10.0.0.103:" + port}, connections/2)
		printShares(t, "nodes equal", counts)
		if x, bound := chiSquare(counts, 6); x <= bound {
			t.Errorf("the test does not see a wrong weighting: chi-square %.1f, at most %.1f: %v", x, bound, counts)
		}
	})
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
