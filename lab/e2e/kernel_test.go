package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leftOnEdge is what gatehouse has made on the edge box and is there now.
func leftOnEdge(t *testing.T) string {
	t.Helper()
	var there []string
	for what, argv := range map[string][]string{
		"routes":    {"ip", "route", "show", "table", "all", "proto", "91"},
		"routes v6": {"ip", "-6", "route", "show", "table", "all", "proto", "91"},
		"rules":     {"ip", "-details", "rule", "show"},
		"rules v6":  {"ip", "-6", "-details", "rule", "show"},
		"tables":    {"nft", "list", "tables"},
	} {
		out, err := lab.Exec(t.Context(), "edge", argv...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(what, "rules") && !strings.Contains(line, "proto 91") || what == "tables" && !strings.Contains(line, "gatehouse") {
				continue // others'
			}
			there = append(there, what+": "+line)
		}
	}
	slices.Sort(there)
	return strings.Join(there, "; ")
}

// isReadyAgain is a condition for eventually.
func isReadyAgain() error {
	resp, err := httpFrom("edge").Get("http://127.0.0.1:9180/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return errors.New(readAll(resp))
	}
	return nil
}

// withoutGatehouse has no gatehouse run on the edge box from now until the test ends.
func withoutGatehouse(t *testing.T) {
	t.Helper()
	if err := lab.Stop(t.Context(), "gatehouse"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Start(context.Background(), "gatehouse"); err != nil {
			t.Error(err)
		}
		eventually(t, 20*time.Second, "gatehouse is ready again", isReadyAgain)
	})
}

// The kernel goes on while gatehouse is killed, every second and in the middle
// of what it does; while it is stopped; and when it comes back, which takes over
// what it finds. What it has made is gone only when it is told so.
func TestKernelGoesOn(t *testing.T) {
	const port, kills, perSecond = 8720, 10, 200
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 3)+echoPods(ns, "echo", "", 3)+
		on(nat, annotated(service(ns, "web", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod")+udpService(ns, "echo", "pod", port, "")))
	awaitPods(t, ns, "web", "echo")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 10*time.Second, "all are up", func() error { return allUp(t, ns+"/web", 3) })
	eventually(t, 10*time.Second, "open", opened("home1", at))
	eventually(t, 10*time.Second, "open for UDP", answers(t, "home1", at))
	c, client := converse(t, "home1", at), asker(t, "home1", at)
	pod, err := question(client, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	same := func(when string) {
		t.Helper()
		c.ask(t)
		if now, err := question(client, time.Second); err != nil || now != pod {
			t.Errorf("%s, the UDP client of %s is answered by %q: %v", when, pod, now, err)
		}
	}
	if out, err := lab.Exec(t.Context(), "edge", gatehouse, "down"); err == nil {
		t.Errorf("down while gatehouse runs: %s", out)
	} else {
		t.Log(err)
	}

	t.Run("killed", func(t *testing.T) {
		l := startLoad("home1", at, perSecond)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for range kills {
			if err := errors.Join(lab.Kill(t.Context(), "gatehouse"), lab.Start(t.Context(), "gatehouse")); err != nil {
				t.Error(err)
			}
			same("after gatehouse was killed")
			<-tick.C
		}
		eventually(t, 20*time.Second, "ready", isReadyAgain)
		l.finish(t)
		if len(l.pods) != 3 {
			t.Errorf("%d pods have answered, want 3", len(l.pods))
		}
		same("after all")
	})

	t.Run("stopped", func(t *testing.T) {
		l := startLoad("home1", at, perSecond)
		if err := lab.Stop(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		still := time.NewTimer(3 * time.Second)
		<-still.C
		same("while gatehouse is stopped")
		l.finish(t)
	})

	t.Run("down", func(t *testing.T) {
		there := leftOnEdge(t)
		for _, what := range []string{"10.244.1.0/24 via 10.0.0.101", "10.244.2.0/24 via 10.0.0.102", "10.244.3.0/24 via 10.0.0.103", "table inet gatehouse"} {
			if !strings.Contains(there, what) {
				t.Errorf("of %s there is nothing to take down: %s", what, there)
			}
		}
		out, err := lab.Exec(t.Context(), "edge", gatehouse, "down")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(strings.TrimSpace(out))
		if there := leftOnEdge(t); there != "" {
			t.Errorf("this is left: %s", there)
		}
		if err := closed("home1", at)(); err != nil {
			t.Error(err)
		}
		if out, err := lab.Exec(t.Context(), "edge", gatehouse, "down"); err != nil {
			t.Errorf("with nothing to take down: %s %v", out, err)
		}
		if err := lab.Start(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "open again", opened("home1", at))
		eventually(t, 20*time.Second, "open again for UDP", answers(t, "home1", at))
	})
}

// The program is replaced under load: the next one takes over what is in the
// kernel, and nobody hears of it.
func TestUpgradeLeavesTheKernelAlone(t *testing.T) {
	const upgrades = 4
	withoutGatehouse(t)
	ns := namespace(t)
	startPatient(t, "w1", "10.0.0.101:7130")
	apply(t, deployment(ns, "web", "web", "", 2)+on(nat, strings.NewReplacer("gatehouse.e13.dev/edge", "gatehouse.e13.dev/upgrade", "annotations: {", "annotations: {gatehouse.e13.dev/target: pod, ").
		Replace(service(ns, "web", "web", "home", "Local", upgradeKube))))
	awaitPods(t, ns, "web")
	u := runUpgradable(t, fmt.Sprintf("frontends: [{name: patient, zones: [home], dataPlane: nat, port: %d, backends: [{address: \"10.0.0.101:7130\"}]}]\n", upgradeStatic))
	static, viaKube := fmt.Sprintf("%s:%d", homeAddr, upgradeStatic), fmt.Sprintf("%s:%d", homeAddr, upgradeKube)
	eventually(t, 10*time.Second, "the Service is open", opened("home1", viaKube))
	main := u.processes(t)[0]
	idle := startTalk(t, static)
	idle.say(t, "before")
	connections, services := startFlood("home1", static, 2), startLoad("home1", viaKube, 100)
	for i := range upgrades {
		u.install(t, gatehouse)
		main = u.upgrade(t, main)
		idle.say(t, fmt.Sprintf("after upgrade %d", i+1))
	}
	connections.finish(t)
	services.finish(t)
	idle.say(t, "at the end")
	eventually(t, 5*time.Second, "the old processes have ended", func() error {
		return want(fmt.Sprint(u.processes(t)), fmt.Sprint([]int{main}))
	})
}

// A Service is moved from one data plane to the other and back again, under new
// connections. None is refused or lost, and those of before live on. Clients of
// UDP, too, are where the Service is.
func TestMovesBetweenDataPlanes(t *testing.T) {
	const port, moves, perSecond = 8725, 10, 150
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 3)+echoPods(ns, "echo", "", 2)+
		annotated(service(ns, "web", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod")+udpService(ns, "udp", "pod", port, ""))
	awaitPods(t, ns, "web", "echo")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 10*time.Second, "all are up", func() error { return allUp(t, ns+"/web", 3) })
	eventually(t, 5*time.Second, "open for UDP", answers(t, "home1", at))
	client := asker(t, "home1", at)
	l := startLoad("home1", at, perSecond)
	all := []*conversation{converse(t, "home1", at)}
	var slowest time.Duration
	pace := time.NewTicker(300 * time.Millisecond)
	defer pace.Stop()
	for i := range moves {
		<-pace.C
		plane, sees := nat, home1Addr
		if i%2 == 1 {
			plane, sees = proxy, clusterAddr
		}
		for _, name := range []string{"web", "udp"} {
			annotate(t, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}, map[string]string{"gatehouse.e13.dev/data-plane": plane})
		}
		slowest = max(slowest, eventually(t, 3*time.Second, "the pods see that "+plane+" moves the bytes", seen("home1", at, sees)))
		eventually(t, 3*time.Second, "the UDP client of before is answered", func() error {
			_, err := question(client, 200*time.Millisecond)
			return err
		})
		eventually(t, 3*time.Second, "new UDP clients are where the Service is", func() error {
			_, from, err := whence("home1", at)
			return errors.Join(err, want(from, sees))
		})
		all = append(all, converse(t, "home1", at))
		for _, c := range all {
			c.ask(t)
		}
	}
	l.finish(t)
	for _, c := range all {
		c.ask(t)
	}
	t.Logf("%d moves, each within %d ms of the annotation", moves, slowest.Milliseconds())
}

// A backend that leaves gets no new connection, and the kernel keeps those it
// has until the drain timeout is over. Then the client is told with its next word.
func TestDrainTimeoutOfTheKernel(t *testing.T) {
	const port, backends, timeout = 8730, 7131, 3 * time.Second
	ns := namespace(t)
	startSpeaker(t, "w1", backends)
	startSpeaker(t, "w2", backends)
	s := bare(ns, "drained", "TCP", port, backends, map[string]string{"gatehouse.e13.dev/drain-timeout": timeout.String(), "gatehouse.e13.dev/data-plane": nat})
	create(t, s, ready, ready)
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 10*time.Second, "both are up", func() error {
		f, _ := openAt(t, port)
		if w := f.weights(); strings.Count(w, "=1") != 2 {
			return errors.New(w)
		}
		return echoed("home1", at)()
	})
	calls := ringN(t, "home1", at, 40)
	stay, leave := calls["w1"], calls["w2"]
	if len(stay) == 0 || len(leave) == 0 {
		t.Fatalf("%d calls to w1, %d to w2", len(stay), len(leave))
	}
	gone := func() (since time.Time) {
		t.Helper()
		since = time.Now()
		set(t, s, ready, absent)
		eventually(t, 2*time.Second, "it gets nothing new", func() error {
			for range 20 {
				c, err := ring("home1", at)
				if err != nil {
					return err
				}
				if c.conn.Close(); c.worker != "w1" {
					return fmt.Errorf("%s answers", c.worker)
				}
			}
			return nil
		})
		return since
	}
	gone()
	set(t, s, ready, ready)
	back := time.NewTimer(timeout + 2*time.Second)
	<-back.C
	sayAll(t, leave, "after the backend had left and come back")

	since := gone()
	if left := timeout - 500*time.Millisecond - time.Since(since); left > 0 {
		<-time.After(left)
		sayAll(t, leave, "half a second before the drain timeout")
	} else {
		t.Logf("the machine is too slow to look before the drain timeout: %s", left)
	}
	<-time.After(time.Until(since.Add(timeout + 2*time.Second)))
	for _, c := range leave {
		if err := c.try("too late"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("after the drain timeout: %v, want a reset", err)
		}
	}
	sayAll(t, stay, "after the drain timeout")
}

// foreign is what others have on such a machine: what iptables has made of
// Docker's wishes, a kube-proxy, a firewalld.
const foreign = `
table ip nat {
	chain DOCKER {
		iifname "docker0" return
		iifname != "docker0" tcp dport 8899 dnat to 172.17.0.2:80
	}
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump DOCKER
	}
	chain OUTPUT {
		type nat hook output priority -100; policy accept;
		ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER
	}
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
	}
}
table ip kube-proxy {
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30999 : goto service-other }
	}
	chain service-other {
		meta l4proto tcp dnat to 10.244.1.250:80
	}
	chain mark-for-masquerade {
		meta mark set mark or 0x4000
	}
	chain services {
		fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 != 0 meta mark set mark xor 0x4000 masquerade fully-random
	}
	chain filter-forward {
		type filter hook forward priority -110; policy accept;
		ct state new jump services-endpoints
	}
	chain services-endpoints {
		ip daddr 172.31.0.1 reject
	}
}
table inet firewalld {
	chain mangle_PREROUTING {
		type filter hook prerouting priority mangle + 10; policy accept;
	}
	chain nat_PREROUTING {
		type nat hook prerouting priority dstnat + 10; policy accept;
		jump nat_PREROUTING_ZONES
	}
	chain nat_PREROUTING_ZONES {
		iifname "wlan0" goto nat_PRE_public
	}
	chain nat_PRE_public {
		tcp dport 8898 redirect to :80
	}
	chain nat_POSTROUTING {
		type nat hook postrouting priority srcnat + 10; policy accept;
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		reject with icmpx admin-prohibited
	}
}
`

var foreignTables = []string{"ip nat", "ip kube-proxy", "inet firewalld"}

// Beside the rules of others everything works, and theirs are afterwards what
// they were. Where one of them drops what is forwarded, the operator is told.
func TestBesideForeignRules(t *testing.T) {
	const port = 8735
	if err := nft("edge", foreign); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nft("edge", "delete table "+strings.Join(foreignTables, "\ndelete table ")+"\n"); err != nil {
			t.Error(err)
		}
	})
	theirs := func() (text string) {
		t.Helper()
		for _, table := range foreignTables {
			out, err := lab.Exec(t.Context(), "edge", append([]string{"nft", "-a", "list", "table"}, strings.Fields(table)...)...)
			if err != nil {
				t.Fatal(err)
			}
			text += out
		}
		return text
	}
	before := theirs()
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 2)+echoPods(ns, "echo", "", 1)+
		on(nat, annotated(service(ns, "pod", "web", "home,cluster", "Local", port), "gatehouse.e13.dev/target: pod")+
			service(ns, "node-port", "web", "home", "Local", port+1)+udpService(ns, "udp", "pod", port, "")))
	awaitPods(t, ns, "web", "echo")
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 5*time.Second, "the pods", opened("home1", at))
	eventually(t, 5*time.Second, "the node ports", opened("home1", fmt.Sprintf("%s:%d", homeAddr, port+1)))
	eventually(t, 5*time.Second, "UDP", answers(t, "home1", at))
	sees(t, "home1", at, home1Addr)
	sees(t, "w1", fmt.Sprintf("%s:%d", clusterAddr, port), clusterAddr)
	kubectl(t, "scale", "deployment", "-n", ns, "web", "--replicas", "3")
	awaitPods(t, ns, "web")
	eventually(t, 5*time.Second, "a change", func() error { return allUp(t, ns+"/pod", 3) })
	if problem := obstacle(t); problem != "" {
		t.Errorf("those who drop nothing are an obstacle: %s", problem)
	}

	const docker = `
table ip filter {
	chain DOCKER-USER {
		return
	}
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
		jump DOCKER-USER
		iifname "docker0" accept
	}
}
`
	if err := nft("edge", docker); err != nil {
		t.Fatal(err)
	}
	dropped := true
	t.Cleanup(func() {
		if dropped {
			_ = nft("edge", "delete table ip filter\n")
		}
	})
	var timeout net.Error
	took := eventually(t, time.Minute, "the operator is told who drops what is forwarded", func() error {
		if _, err := get("home1", at, 200*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("nothing is dropped: then there is no obstacle: %v", err)
		}
		if problem := obstacle(t); !strings.Contains(problem, "FORWARD") || !strings.Contains(problem, "ip filter") {
			return fmt.Errorf("the problem is %q", problem)
		}
		return nil
	})
	t.Logf("told after %.1f s: %s", took.Seconds(), obstacle(t))
	if err := nft("edge", "delete table ip filter\n"); err != nil {
		t.Fatal(err)
	}
	dropped = false
	eventually(t, 5*time.Second, "open again", opened("home1", at))
	eventually(t, time.Minute, "the problem is gone", func() error {
		_, err := get("home1", at, time.Second)
		return errors.Join(err, want(obstacle(t), ""))
	})

	kubectl(t, "delete", "service", "-n", ns, "pod", "node-port", "udp")
	eventually(t, 2*time.Second, "closed", closed("home1", at))
	if after := theirs(); after != before {
		t.Errorf("their rules were\n%s\nand are\n%s", before, after)
	}
}

// obstacle is the problem that somebody drops what is forwarded, if there is one.
func obstacle(t *testing.T) string {
	t.Helper()
	for _, p := range statusNow(t).Problems {
		if strings.Contains(p.What, "forward") && strings.Contains(p.What, "drop") {
			return p.What + "; " + p.Remedy
		}
	}
	return ""
}

// The client's port is bound to a pod for as long as it asks. When the node of
// that pod dies without a word, it is with another one three seconds later.
func TestUDPClientOfANodeThatDies(t *testing.T) {
	const port, limit = 8740, 3 * time.Second
	ns := namespace(t)
	manifests := ""
	for _, node := range []string{"w1", "w2", "w3"} {
		manifests += echoPods(ns, "on-"+node, node, 1)
	}
	apply(t, manifests+on(nat, udpService(ns, "node-port", "nodePort", port, "")+udpService(ns, "pod", "pod", port+1, "")))
	awaitPods(t, ns, "on-w1", "on-w2", "on-w3")
	clients := map[string]net.Conn{}
	for i, name := range []string{"node-port", "pod"} {
		at := fmt.Sprintf("%s:%d", homeAddr, port+i)
		eventually(t, 10*time.Second, name+" is up", func() error { return allUp(t, ns+"/"+name, 3) })
		eventually(t, 10*time.Second, "a client of the node that will die", func() error {
			conn := asker(t, "home1", at)
			pod, err := question(conn, time.Second)
			if err == nil && !strings.HasPrefix(pod, "on-w3") {
				err = fmt.Errorf("%s answers", pod)
			}
			clients[name] = conn
			return err
		})
	}
	t.Cleanup(func() {
		if err := lab.LinkUp("w3", "eth0"); err != nil {
			t.Error(err)
		}
		eventually(t, 30*time.Second, "the node is back", func() error { return errors.Join(allUp(t, ns+"/node-port", 3), allUp(t, ns+"/pod", 3)) })
	})
	var others sync.WaitGroup // who begin to ask meanwhile; that they hear nothing is what is noticed
	stop := make(chan struct{})
	others.Go(func() {
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-pace.C:
				others.Go(func() { _, _, _ = whence("home2", fmt.Sprintf("%s:%d", homeAddr, port+i%2)) })
			}
		}
	})
	defer others.Wait()
	defer close(stop)
	if err := lab.LinkDown("w3", "eth0"); err != nil {
		t.Fatal(err)
	}
	pulled := time.Now()
	moved := map[string]time.Duration{}
	eventually(t, 20*time.Second, "other pods answer", func() error {
		for name, conn := range clients {
			if moved[name] != 0 {
				continue
			}
			if pod, err := question(conn, 50*time.Millisecond); err == nil && !strings.HasPrefix(pod, "on-w3") {
				moved[name] = time.Since(pulled)
			}
		}
		if len(moved) != len(clients) {
			return fmt.Errorf("only of %v", moved)
		}
		return nil
	})
	for name, took := range moved {
		t.Logf("through %s, another pod answers %d ms after the cable was pulled", name, took.Milliseconds())
		if took > limit {
			t.Errorf("through %s, its client was with the dead pod for %s", name, took)
		}
	}
}
