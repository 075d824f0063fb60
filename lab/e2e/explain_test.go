package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// explained is what the running gatehouse answers at /explain.json.
type explained struct {
	Verdict string         `json:"verdict"`
	Ways    []explainedWay `json:"ways"`
}

type explainedWay struct {
	Zone    string `json:"zone"`
	From    string `json:"from"`
	Verdict string `json:"verdict"`
	Summary string `json:"summary"`
	Remedy  string `json:"remedy"`
}

const (
	reachable    = "reachable"
	notReachable = "not reachable"
	some         = "reachable by some"
)

// explainNow asks the running gatehouse.
func explainNow(from, to string) (explained, error) {
	var e explained
	resp, err := httpFrom("edge").Get("http://127.0.0.1:9180/explain.json?" + url.Values{"from": {from}, "to": {to}}.Encode())
	if err != nil {
		return e, err
	}
	defer resp.Body.Close()
	body := readAll(resp)
	if resp.StatusCode != http.StatusOK {
		return e, errors.New(body)
	}
	return e, json.Unmarshal([]byte(body), &e)
}

// verdictFrom is what it says to somebody who comes in by a zone: a client can be
// in the networks of several.
func verdictFrom(from, zone, to string) (verdict, why string, err error) {
	e, err := explainNow(from, to)
	for _, w := range e.Ways {
		if w.Zone == zone {
			return w.Verdict, w.Summary, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("no way of %+v is from zone %q", e.Ways, zone)
	}
	return "", "", err
}

// trial is one attempt to connect, and what is asked beforehand.
type trial struct {
	host   string
	client string // its address, as it comes in
	zone   string // that it comes in by; empty: it is the edge itself
	at     string // address and port that it connects to
	to     string // and what that is for the edge
	kind   string // "http", "udp", "api"
	name   string // TLS server name
}

// connects says whether a backend answers. What answers and is none does not
// count; a connection that is closed at once does not either.
func (c trial) connects(t *testing.T) bool {
	const patience = time.Second
	switch c.kind {
	case "udp":
		conn, err := lab.Dialer(c.host)(t.Context(), "udp", c.at)
		if err != nil {
			return false
		}
		defer conn.Close()
		who, err := question(conn, patience)
		return err == nil && who != "the program"
	case "api":
		conn, err := lab.Dialer(c.host)(t.Context(), "tcp", c.at)
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()) == nil
	case "tls":
		_, err := getTLS(c.host, c.at, c.name, nil)
		return err == nil
	default:
		_, err := get(c.host, c.at, patience)
		return err == nil
	}
}

// staticServer answers as lab/web does, on a host.
func staticServer(t *testing.T, host, address string) {
	t.Helper()
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(answer{Pod: host, Client: r.RemoteAddr})
	})}
	listener := listen(t, host, address)
	go func() { _ = server.Serve(listener) }()
}

const (
	explainPort = 8520 // and the hundred after it
	nobodyPort  = explainPort + 90
	programPort = explainPort + 91
	takenPort   = explainPort + 92
	namesPort   = explainPort + 93
	pagePort    = 9180
)

// explainSite is what the test opens: Services of both data planes, and frontends
// of files.
type explainSite struct {
	ns    string
	ports map[string][]int // by kind of trial
	pool  []string         // addresses of pools
}

func setUpExplain(t *testing.T) explainSite {
	s := explainSite{ns: namespace(t), ports: map[string][]int{"api": {6443}, "http": {22, 80, 8000, pagePort, 10250, nobodyPort, programPort, takenPort}}}
	staticServer(t, "w1", "10.0.0.101:7130")
	for _, port := range []int{programPort, takenPort} {
		program := listen(t, "edge", fmt.Sprintf(":%d", port))
		go func() {
			for {
				conn, err := program.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte("the program\n"))
				conn.Close()
			}
		}()
	}
	startEcho(t, "edge", programPort)
	s.ports["udp"] = []int{programPort, nobodyPort}
	next := explainPort
	port := func(kind string) int {
		next++
		s.ports[kind] = append(s.ports[kind], next)
		return next
	}
	manifests := deployment(s.ns, "web", "web", "", 2) + deployment("public", "web", "web", "", 1) + deployment(s.ns, "gone", "gone", "", 1) +
		echoPods(s.ns, "echo", "", 1) + tlsPods(s.ns, "tls", 1)
	var pooled []string
	for _, plane := range planes {
		add := func(name, ns, app, zones, policy string, more ...string) {
			text := service(ns, name+"-"+plane, app, zones, policy, port("http"))
			for i := 0; i+1 < len(more); i += 2 {
				text = strings.Replace(text, more[i], more[i+1], 1)
			}
			manifests += on(plane, text)
		}
		add("at-home", s.ns, "web", "home", "Local")
		add("in-cluster", s.ns, "web", "cluster", "Cluster")
		add("both", s.ns, "web", "home, cluster", "Cluster")
		add("everywhere", "public", "web", "home,internet,cluster", "Local")
		add("nowhere", s.ns, "web", "", "Cluster")
		add("greedy", s.ns, "web", "internet", "Local") // its namespace may not
		add("lost", s.ns, "web", "lan2", "Local")
		add("strange", s.ns, "web", "home", "Local", "loadBalancerClass: gatehouse.e13.dev/edge", "loadBalancerClass: example.org/other")
		add("ranged", s.ns, "web", "home", "Local", "spec:\n", "spec:\n  loadBalancerSourceRanges: ["+home1Addr+"/32, 'fd00:11:12::102/128']\n")
		add("ranged-public", "public", "web", "home,internet", "Local", "spec:\n", "spec:\n  loadBalancerSourceRanges: ["+inetAddr+"/32]\n")
		add("empty", s.ns, "nobody", "home", "Cluster")
		add("gone", s.ns, "gone", "home", "Local")
		add("invalid", s.ns, "web", "home", "Local", "annotations: {", "annotations: {gatehouse.e13.dev/balance: fair, ")
		add("pool", s.ns, "web", "home, cluster", "Cluster", "  namespace:", "  labels: {e2e: pool}\n  namespace:")
		pooled = append(pooled, "pool-"+plane)
		s.ports["http"] = append(s.ports["http"], next)
		manifests += on(plane, udpService(s.ns, "echo-"+plane, "pod", port("udp"), ""))
		manifests += on(plane, udpService(s.ns, "echo-ranged-"+plane, "pod", port("udp"), "  loadBalancerSourceRanges: ["+home1Addr+"/32]\n"))
	}
	contested := port("http")
	manifests += service(s.ns, "older", "web", "home", "Local", contested)
	named := func(name, hostnames string) {
		text := strings.Replace(service(s.ns, name, "tls", "home", "Local", namesPort), "targetPort: 8080", "targetPort: 8443", 1)
		manifests += strings.Replace(text, "annotations: {", fmt.Sprintf("annotations: {gatehouse.e13.dev/hostnames: %q, ", hostnames), 1)
	}
	named("named", "a.example.org")
	named("named-more", "'*.b.example.org'")
	manifests = strings.ReplaceAll(manifests, `"'`, `"`)
	manifests = strings.ReplaceAll(manifests, `'"`, `"`)
	apply(t, manifests)
	t.Cleanup(func() { remove(t, "service,deployment", "-n", "public", "--all") })

	var frontends strings.Builder
	frontends.WriteString("frontends:\n")
	static := func(name, where string, ports ...any) {
		fmt.Fprintf(&frontends, "  - {name: %s, %s, backends: [{address: \"10.0.0.101:7130\"}]}\n", name, fmt.Sprintf(where, ports...))
	}
	static("zoned", "zones: [home, internet], port: %d", port("http"))
	static("zoned-nat", "zones: [home, internet], dataPlane: nat, port: %d", port("http"))
	static("anywhere", "listen: ':%d'", port("http"))
	static("one-address", "listen: '"+clusterAddr+":%d'", port("http"))
	static("looped", "listen: '127.0.0.1:%d'", port("http"))
	static("one-device", "listen: '@eth1:%d'", port("http"))
	static("ranged-static", "zones: [home, cluster], sourceRanges: [10.11.12.102/32, 10.0.0.0/24], port: %d", port("http"))
	static("taken", "zones: [home], port: %d", takenPort)
	fmt.Fprintf(&frontends, "  - {name: weightless, zones: [home], port: %d, backends: [{address: \"10.0.0.101:7130\", weight: 0}]}\n", port("http"))
	fmt.Fprintf(&frontends, "  - {name: down, zones: [home], port: %d, backends: [{address: \"10.0.0.101:7131\"}]}\n", port("http"))
	fmt.Fprintf(&frontends, "  - {name: down-refusing, zones: [home], port: %d, health: {whenAllDown: refuse}, backends: [{address: \"10.0.0.101:7131\"}]}\n", port("http"))
	restoreConfig(t)
	text := strings.Replace(config, "kubernetes:\n", "kubernetes:\n  apiServer: {zones: [home], port: 6443}\n", 1)
	if err := writeConfig(text + frontends.String()); err != nil {
		t.Fatal(err)
	}
	awaitPods(t, s.ns, "web", "gone", "echo", "tls")
	awaitPods(t, "public", "web")
	// Younger by a second, which is what ages are counted in.
	eventually(t, 5*time.Second, "a second has passed", func() error {
		if made := serviceNow(t, s.ns, "older").CreationTimestamp; time.Since(made.Time) < time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	apply(t, service(s.ns, "younger", "web", "home", "Local", contested))
	for _, name := range pooled {
		s.pool = append(s.pool, given(t, s.ns, name, 2)[0])
	}
	kubectl(t, "scale", "deployment", "-n", s.ns, "gone", "--replicas=0")
	eventually(t, 40*time.Second, "its pods are gone", func() error {
		pods, err := kube.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=gone"})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are there", len(pods.Items))
		}
		return err
	})
	return s
}

// trials are all ways by which the hosts of the site get to an address of the
// edge, with every port.
func (s explainSite) trials() []trial {
	clients := map[string]string{"home1": home1Addr, "home2": home2Addr, "inet": inetAddr, "w1": "10.0.0.101", "edge": "127.0.0.1"}
	six := map[string]string{"home1": "fd00:11:12::101", "home2": "fd00:11:12::102", "w1": "fd00:10::101", "edge": "::1"}
	ways := slices.Clone(routes)
	ways = append(ways, route{"home2", clusterAddr, "home"}, route{"home2", internetAddr, "internet"}, route{"home1", "fd00:11:12::51", "internet"},
		route{"home2", homeAddr6, "home"}, route{"w1", "fd00:10::1", "cluster"}, route{"w1", homeAddr6, "cluster"})
	for _, address := range []string{homeAddr, internetAddr, clusterAddr, "127.0.0.1", homeAddr6, "::1"} {
		ways = append(ways, route{"edge", address, ""})
	}
	for _, address := range s.pool {
		ways = append(ways, route{"home1", address, "home"}, route{"home2", address, "home"}, route{"inet", address, "internet"},
			route{"w1", address, "cluster"}, route{"edge", address, ""})
	}
	var all []trial
	for kind, ports := range s.ports {
		for _, r := range ways {
			c := trial{host: r.host, client: clients[r.host], zone: r.zone, kind: kind}
			if strings.Contains(r.address, ":") {
				c.client = six[r.host]
			}
			own := r.address
			if own == publicAddr {
				own = internetAddr // to which the router forwards it
			}
			for _, port := range ports {
				if port == pagePort && r.address == "127.0.0.1" {
					continue // the status page answers, and is no backend: see servicesAgree
				}
				c.at, c.to = net.JoinHostPort(r.address, fmt.Sprint(port)), net.JoinHostPort(own, fmt.Sprint(port))
				if kind == "udp" {
					c.to += "/udp"
				}
				all = append(all, c)
			}
		}
	}
	return all
}

// What explain says of a connection is what becomes of it: from every zone, at
// every address of the machine and at every port.
func TestExplainAgreesWithConnections(t *testing.T) {
	s := setUpExplain(t)
	var once sync.Once
	disagreements := func(all []trial) (wrong []string, count map[string]int) {
		count = map[string]int{}
		var mu sync.Mutex
		var tried sync.WaitGroup
		limit := make(chan struct{}, 16)
		for _, c := range all {
			tried.Add(1)
			limit <- struct{}{}
			go func() {
				defer func() { <-limit; tried.Done() }()
				verdict, why, err := verdictFrom(c.client, c.zone, c.to)
				does := c.connects(t)
				mu.Lock()
				defer mu.Unlock()
				count[verdict]++
				switch {
				case err != nil:
					wrong = append(wrong, fmt.Sprintf("%s (%s) to %s: %v", c.host, c.client, c.to, err))
				case (verdict == reachable) != does || verdict == some:
					wrong = append(wrong, fmt.Sprintf("%s (%s, zone %q) to %s by %s: explain says %q (%s), and that it is reached is %t", c.host, c.client, c.zone, c.to, c.kind, verdict, why, does))
				}
				once.Do(func() { t.Logf("%s to %s: %s: %s", c.client, c.to, verdict, why) })
			}()
		}
		tried.Wait()
		return wrong, count
	}
	// Pods, checks and rules settle in the first seconds.
	all := s.trials()
	var counts map[string]int
	eventually(t, time.Minute, "explain and connections agree", func() error {
		wrong, count := disagreements(all)
		counts = count
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return fmt.Errorf("%d of %d disagree:\n%s", len(wrong), len(all), strings.Join(wrong[:min(len(wrong), 60)], "\n"))
		}
		return nil
	})
	t.Logf("%d connections are as explain says: %v", len(all), counts)
	if counts[reachable] < 100 || counts[notReachable] < 100 {
		t.Errorf("%v: too few of one kind to show anything", counts)
	}

	t.Run("zones", func(t *testing.T) { s.zonesAgree(t, all) })
	t.Run("names", s.namesAgree)
	t.Run("services", s.servicesAgree)
	t.Run("command", s.commandAgrees)
}

// zonesAgree asks for a whole zone: what it says holds for all clients of it, or
// for some.
func (s explainSite) zonesAgree(t *testing.T, all []trial) {
	type question struct{ zone, to string }
	got := map[question]map[bool]bool{}
	for _, c := range all {
		q := question{c.zone, c.to}
		if c.zone == "" {
			continue
		}
		if got[q] == nil {
			got[q] = map[bool]bool{}
		}
		verdict, _, err := verdictFrom(c.client, c.zone, c.to)
		if err != nil {
			t.Fatal(err)
		}
		got[q][verdict == reachable] = true
	}
	for q, by := range got {
		verdict, why, err := verdictFrom(q.zone, q.zone, q.to)
		if err != nil {
			t.Error(err)
			continue
		}
		if verdict == reachable && by[false] || verdict == notReachable && by[true] {
			t.Errorf("zone %s to %s: %s (%s), and of its clients: %v", q.zone, q.to, verdict, why, by)
		}
		if len(by) == 2 && verdict != some {
			t.Errorf("zone %s to %s: %s (%s), and some get through and some do not", q.zone, q.to, verdict, why)
		}
	}
	t.Logf("%d questions about zones", len(got))
}

// namesAgree tries the TLS server names of a port that is shared.
func (s explainSite) namesAgree(t *testing.T) {
	for _, name := range []string{"a.example.org", "x.b.example.org", "b.example.org", "nobody.example.org"} {
		for _, c := range []trial{
			{host: "home1", client: home1Addr, zone: "home", at: atPort(homeAddr, namesPort)},
			{host: "inet", client: inetAddr, zone: "internet", at: atPort(publicAddr, namesPort)},
			{host: "w1", client: "10.0.0.101", zone: "cluster", at: atPort(clusterAddr, namesPort)},
		} {
			c.kind, c.name, c.to = "tls", name, fmt.Sprintf("%s:%d", name, namesPort)
			verdict, why, err := verdictFrom(c.client, c.zone, c.to)
			known := name == "a.example.org" || name == "x.b.example.org"
			if does := c.connects(t); err == nil && (verdict == reachable) != does || (err != nil) == known {
				t.Errorf("%s to %s: %s (%s, %v), and that it is reached is %t", c.host, c.to, verdict, why, err, does)
			}
		}
	}
	if verdict, why, err := verdictFrom("home", "home", atPort(homeAddr, namesPort)); err != nil || verdict != some || !strings.Contains(why, "a.example.org") {
		t.Errorf("without a name: %s (%s, %v)", verdict, why, err)
	}
	if verdict, why, err := verdictFrom("internet", "internet", atPort(internetAddr, namesPort)); err != nil || verdict != notReachable {
		t.Errorf("without a name, from elsewhere: %s (%s, %v)", verdict, why, err)
	}
}

// servicesAgree asks for Services and frontends by their names.
func (s explainSite) servicesAgree(t *testing.T) {
	for _, c := range []struct{ from, to, verdict, why, remedy string }{
		{"home", s.ns + "/at-home-proxy", reachable, "takes it", ""},
		{"internet", s.ns + "/at-home-proxy", notReachable, "it asks for zone home, and not for internet", "kubectl annotate"},
		{"internet", s.ns + "/greedy-nat", notReachable, "may not open zone internet", "kubernetes.allow.internet"},
		{"home", s.ns + "/nowhere-proxy", notReachable, "it asks for no zone", "kubectl annotate"},
		{"home", s.ns + "/lost-proxy", notReachable, `no zone named "lan2"`, "cluster, home, internet"},
		{"home", s.ns + "/strange-proxy", notReachable, "it belongs to loadBalancerClass example.org/other", "create it anew with loadBalancerClass: gatehouse.e13.dev/edge"},
		{"home", s.ns + "/younger", notReachable, "is taken by service " + s.ns + "/older, which is older", "use another port"},
		{"home", s.ns + "/older", reachable, "takes it", ""},
		{"home", s.ns + "/ranged-proxy", some, "only clients of " + home1Addr + "/32 may connect", ""},
		{home2Addr, s.ns + "/ranged-nat", notReachable, home2Addr + " is in none of " + home1Addr + "/32", "add " + home2Addr + "/32"},
		{"home", s.ns + "/gone-proxy", notReachable, "no endpoint is ready; connections are closed at once", "kubectl get endpointslices"},
		{"home", s.ns + "/gone-nat", notReachable, "no endpoint is ready; connections are refused", "kubectl get endpointslices"},
		{"home", s.ns + "/invalid-proxy", notReachable, "gatehouse.e13.dev/balance", "random"},
		{"cluster", s.ns + "/pool-nat", reachable, "takes it", ""},
		{"internet", s.ns + "/pool-nat", notReachable, "and not for internet", "kubectl annotate"},
		{home1Addr, s.ns + "/echo-ranged-nat", reachable, "takes it", ""},
		{"home", "kubernetes-api", reachable, "kubernetes-api takes it", ""},
		{"internet", "kubernetes-api", notReachable, "it is open in zone home", "kubernetes.apiServer.zones"},
		// By IPv6 the lab has no way out of veth0: its route there is eth1's.
		{"internet", "zoned", some, "at fd00:11:12::51 no route leads to the network", "ip -6 route add"},
		{inetAddr, "zoned", reachable, "zoned takes it", ""},
		{"home", "taken", notReachable, "in use", "stop what has the port"},
		{"home", "weightless", notReachable, "every backend has weight 0", "give one of them a weight"},
		{"home", "down", notReachable, "every backend fails its checks", "mend"},
		{"127.0.0.1", "looped", reachable, "looped takes it", ""},
	} {
		e, err := explainNow(c.from, c.to)
		if err != nil {
			t.Errorf("from %s to %s: %v", c.from, c.to, err)
			continue
		}
		// Of a client in two networks the way from home counts.
		i := max(0, slices.IndexFunc(e.Ways, func(w explainedWay) bool { return w.Zone == "home" }))
		if w := e.Ways[i]; w.Verdict != c.verdict || !strings.Contains(w.Summary, c.why) || !strings.Contains(w.Remedy, c.remedy) {
			t.Errorf("from %s to %s: %s: %s; %s", c.from, c.to, w.Verdict, w.Summary, w.Remedy)
		}
	}
	if e, err := explainNow("127.0.0.1", "127.0.0.1:9180"); err != nil || e.Verdict != reachable {
		t.Errorf("the status page: %+v %v", e, err)
	}
	if _, err := explainNow("home", s.ns+"/at-hone-proxy"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("did you mean %q", s.ns+"/at-home-proxy")) {
		t.Errorf("a Service that there is not: %v", err)
	}
}

// commandAgrees asks by the command, on the edge.
func (s explainSite) commandAgrees(t *testing.T) {
	run := func(args ...string) (string, error) {
		return lab.Exec(t.Context(), "edge", append([]string{gatehouse, "explain", "-c", configFile}, args...)...)
	}
	out, err := run("--from", "home", s.ns+"/at-home-proxy")
	if err != nil || !strings.Contains(out, "reachable from zone home") || !strings.Contains(out, "service/"+s.ns+"/at-home-proxy") {
		t.Errorf("%v:\n%s", err, out)
	}
	t.Log("\n" + out)
	if out, err := run("--from", "internet", s.ns+"/at-home-proxy"); err == nil {
		t.Errorf("exit code 0 of what is not reachable:\n%s", out)
	}
	if _, err := run("--from", "lan2", s.ns+"/at-home-proxy"); err == nil || !strings.Contains(err.Error(), `no zone named "lan2"`) {
		t.Errorf("a zone that there is not: %v", err)
	}
}
