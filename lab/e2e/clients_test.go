package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// guests gives home1 more addresses, as many clients as a test wants.
func guests(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for i := range n {
		addrs = append(addrs, fmt.Sprintf("10.11.12.%d", 120+i))
	}
	all := func(verb string) {
		cmd, err := lab.Command(context.Background(), "home1", "ip", "-batch", "-")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = strings.NewReader("addr " + verb + " " + strings.Join(addrs, "/24 dev eth0\naddr "+verb+" ") + "/24 dev eth0\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	all("add")
	t.Cleanup(func() { all("del") })
	return addrs
}

// getAs makes one request over one new connection of a guest.
func getAs(guest, address string) (answer, error) {
	return ask(&http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = lab.Do("home1", func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(guest)}}
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}, "http://"+address+"/", 3*time.Second)
}

// sessionAffinity: ClientIP is kept: each of twenty clients keeps its pod, also
// when another pod comes. When a pod goes, its clients go elsewhere, and nobody
// else does; when the timeout is over, the clients are spread anew.
func sessionAffinity(t *testing.T, plane string) {
	const port, timeout = 8650, 5 * time.Second
	ns := namespace(t)
	clients := guests(t, 60)
	first, later := clients[:20], clients[20:]
	apply(t, deployment(ns, "one", "web", "w1", 1, "--linger", "0s")+deployment(ns, "two", "web", "w2", 2, "--linger", "0s")+deployment(ns, "more", "web", "w3", 0)+
		on(plane, strings.Replace(annotated(service(ns, "web", "web", "home", "Cluster", port), "gatehouse.e13.dev/target: pod"), "spec:\n",
			fmt.Sprintf("spec:\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: %d}}\n", int(timeout.Seconds())), 1)))
	awaitPods(t, ns, "one", "two")
	eventually(t, 10*time.Second, "three pods are up", func() error { return allUp(t, ns+"/web", 3) })
	if out := planText(t); !strings.Contains(out, "source") {
		t.Errorf("plan says nothing of the source:\n%s", out)
	}
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	podOf := func(guest string) string {
		t.Helper()
		a, err := getAs(guest, at)
		if err != nil {
			t.Fatalf("%s: %v", guest, err)
		}
		client := map[string]string{proxy: clusterAddr, nat: guest}[plane]
		if ip, _, _ := net.SplitHostPort(a.Client); ip != client {
			t.Fatalf("the pod sees %s, not %s", a.Client, client)
		}
		return a.Pod
	}
	pods, counts := map[string]string{}, map[string]int{}
	for _, guest := range first {
		pods[guest] = podOf(guest)
		counts[pods[guest]]++
	}
	t.Logf("clients by pod: %v", counts)
	if x, bound := chiSquare(counts, 3); x > bound || len(counts) != 3 {
		t.Errorf("the clients are not spread evenly: chi-square %.1f, at most %.1f", x, bound)
	}
	keep := func(when string) {
		t.Helper()
		for range 10 {
			for _, guest := range first {
				if pod := podOf(guest); pod != pods[guest] {
					t.Fatalf("%s, %s was moved from %s to %s", when, guest, pods[guest], pod)
				}
			}
		}
	}
	keep("with nothing changed")

	kubectl(t, "scale", "deployment", "-n", ns, "more", "--replicas", "1")
	eventually(t, 10*time.Second, "the new pod is up", func() error {
		for _, guest := range first { // they come all the time
			if pod := podOf(guest); pod != pods[guest] {
				t.Fatalf("while a pod was added, %s was moved from %s to %s", guest, pods[guest], pod)
			}
		}
		return allUp(t, ns+"/web", 4)
	})
	keep("with a pod more")
	if !slices.ContainsFunc(later, func(guest string) bool { return strings.HasPrefix(podOf(guest), "more") }) {
		t.Error("of forty new clients none is with the pod that was added")
	}

	kubectl(t, "scale", "deployment", "-n", ns, "one", "--replicas", "0")
	eventually(t, 10*time.Second, "the pod is gone", func() error { return allUp(t, ns+"/web", 3) })
	moved := map[string]int{}
	for _, guest := range first {
		switch pod := podOf(guest); {
		case strings.HasPrefix(pod, "one"):
			t.Errorf("%s is with %s, which is gone", guest, pod)
		case strings.HasPrefix(pods[guest], "one"):
			moved[pod]++
			pods[guest] = pod
		case pod != pods[guest]:
			t.Errorf("%s was moved from %s to %s, as another pod went", guest, pods[guest], pod)
		}
	}
	t.Logf("the clients of the pod that went are with: %v", moved)
	keep("where a pod has gone")

	over := time.NewTimer(timeout + time.Second)
	<-over.C
	if !slices.ContainsFunc(first, func(guest string) bool { return strings.HasPrefix(podOf(guest), "more") }) {
		t.Error("after the timeout no client is with the pod that was added: it is never over")
	}
}

// A client that comes more often than the operator has said is turned away, for
// as long as was said, and nobody else is. The status says who, and until when.
func TestRateAndBan(t *testing.T) {
	const port, ban = 8660, 3 * time.Second
	ns := namespace(t)
	restoreConfig(t)
	if err := writeConfig(strings.Replace(config, "kubernetes:\n", fmt.Sprintf("kubernetes:\n  maxRatePerClient: 20/s\n  banTime: %s\n", ban), 1)); err != nil {
		t.Fatal(err)
	}
	apply(t, deployment(ns, "web", "web", "", 2)+annotated(service(ns, "web", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod"))
	awaitPods(t, ns, "web")
	eventually(t, 10*time.Second, "all are up", func() error { return allUp(t, ns+"/web", 2) })
	eventually(t, 5*time.Second, "the status says how often who may come", func() error {
		f, _ := openAt(t, port)
		return want(f.MaxRatePerClient+", "+f.BanTime, "20/1s, 3s")
	})
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	banned := func() (clients []string, until time.Time) {
		f, _ := openAt(t, port)
		for _, b := range f.Banned {
			clients, until = append(clients, b.Client), b.Until
		}
		return clients, until
	}
	slow := startLoad("home2", at, 10) // half of what it may
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 40 { // twice what is too many at once
		if _, err := get("home1", at, time.Second); err != nil {
			break
		}
	}
	began := time.Now()
	if _, err := get("home1", at, time.Second); err == nil {
		t.Fatal("a client that hammers is served")
	}
	clients, until := banned()
	if !slices.Equal(clients, []string{home1Addr}) || until.Before(began.Add(ban-2*time.Second)) || until.After(began.Add(ban+time.Second)) {
		t.Errorf("the status says that until %s these are banned: %v", until, clients)
	}
	f, _ := openAt(t, port)
	if f.Failures["rate_limit"]+f.Failures["banned"] == 0 {
		t.Errorf("the status counts %v", f.Failures)
	}
	if _, metrics := admin(t, "/metrics"); !strings.Contains(metrics, `reason="banned"`) {
		t.Error("no metric counts the banned")
	}
	took := eventually(t, ban+2*time.Second, "the ban ends", func() error {
		<-tick.C
		_, err := get("home1", at, time.Second)
		return err
	})
	if left := time.Until(until); left > 0 {
		t.Errorf("it was let in %s before the end of its ban", left)
	}
	t.Logf("served again %.1f s after it was banned", took.Seconds())
	eventually(t, 2*time.Second, "the status says so", func() error {
		if clients, _ := banned(); len(clients) > 0 {
			return fmt.Errorf("banned are %v", clients)
		}
		return nil
	})
	slow.finish(t)
}
