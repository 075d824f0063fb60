package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// weightsUp is who is up and in turn for new connections, as "node=weight …".
func weightsUp(t *testing.T, port int) string {
	t.Helper()
	f, _ := openAt(t, port)
	var out []string
	for _, b := range f.Backends {
		if b.State == "up" && !b.Draining && b.Weight > 0 {
			out = append(out, fmt.Sprintf("%s=%d", strings.Split(b.Addr, ":")[0], b.Weight))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// The edge box cannot reach the API server, and nobody tells it so: what it sends
// is lost. Then pods move. Node ports weigh what their kube-proxies say, also
// those of a node that had no pod, so that each pod still gets its share; a node
// that is to be deleted gets no connection, by what kube-proxy says of it.
func TestPodsMoveWhileTheAPIIsAway(t *testing.T) {
	const local, cluster, connections = 8640, 8641, 2000
	ns := namespace(t)
	apply(t, deployment(ns, "one", "web", "w1", 0)+deployment(ns, "two", "web", "w2", 2)+deployment(ns, "three", "web", "w3", 2)+
		service(ns, "local", "web", "home", "Local", local)+service(ns, "cluster", "web", "home", "Cluster", cluster))
	awaitPods(t, ns, "two", "three")
	for _, name := range []string{"local", "cluster"} {
		eventually(t, 10*time.Second, name+" is up", func() error { return allUp(t, ns+"/"+name, 4) })
	}
	if err := want(weightsUp(t, local), "10.0.0.102=2 10.0.0.103=2"); err != nil {
		t.Fatal(err)
	}

	edgeNft(t, `table inet e2e {
	chain out {
		type filter hook output priority filter
		ip daddr 10.0.0.10 drop
	}
	chain in {
		type filter hook input priority filter
		ip saddr 10.0.0.10 drop
	}
}
`)
	cut := time.Now()
	l := startLoad("home1", fmt.Sprintf("%s:%d", homeAddr, local), 50)
	eventually(t, 40*time.Second, "the row says that weights are kube-proxy's", func() error {
		if _, body := admin(t, "/status.json"); !strings.Contains(body, "weights are what kube-proxy says on each node") {
			return errors.New("it does not")
		}
		return nil
	})
	t.Logf("the API's silence counts after %.1f s", time.Since(cut).Seconds())

	for name, replicas := range map[string]string{"one": "3", "two": "1", "three": "0"} {
		kubectl(t, "scale", "deployment", "-n", ns, name, "--replicas", replicas)
	}
	awaitPods(t, ns, "one", "two", "three")
	took := eventually(t, 20*time.Second, "the weights follow", func() error {
		return want(weightsUp(t, local), "10.0.0.101=3 10.0.0.102=1")
	})
	t.Logf("the weights follow %.1f s after the pods", took.Seconds())
	if s := statusNow(t); !s.Ready || s.Cluster.Error == "" {
		t.Errorf("ready %v, cluster error %q; want ready, and the error", s.Ready, s.Cluster.Error)
	}
	counts := spread(t, "home1", []string{fmt.Sprintf("%s:%d", homeAddr, local)}, connections)
	printShares(t, "without the API", counts)
	equal(t, counts, 4)
	l.finish(t)

	const w2 = "10.0.0.102"
	taint := func(value string) {
		if _, err := lab.Kubectl(context.Background(), "taint", "node", "w2", "ToBeDeletedByClusterAutoscaler"+value); err != nil {
			t.Error(err)
		}
	}
	taint("=1:NoSchedule")
	tainted := true
	t.Cleanup(func() {
		if tainted {
			taint("-")
		}
	})
	took = eventually(t, 20*time.Second, "the node that is to go is down", backendIs(t, cluster, w2, "down", "healthz answers 503"))
	t.Logf("a node that is to be deleted is down %.1f s after its taint", took.Seconds())
	noneTo(t, cluster, w2)

	noEdgeNft(t)
	took = eventually(t, 30*time.Second, "the API is back", func() error { return want(statusNow(t).Cluster.Error, "") })
	t.Logf("the API is back after %d ms", took.Milliseconds())
	eventually(t, 10*time.Second, "the node is left by the API's word, too", func() error { return want(weightsUp(t, local), "10.0.0.101=3") })
	taint("-")
	tainted = false
	for _, name := range []string{"local", "cluster"} {
		eventually(t, 20*time.Second, name+" is as the API says", func() error { return allUp(t, ns+"/"+name, 4) })
	}
}
