package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/internal/workload"
)

// The site's clients.
const (
	home1Addr = "10.11.12.101"
	home2Addr = "10.11.12.102"
	inetAddr  = "203.0.113.10"
)

// seen is a condition for eventually: the pod sees the client with this address.
func seen(host, address, client string) func() error {
	return func() error {
		a, err := get(host, address, 2*time.Second)
		if err != nil {
			return err
		}
		if ip, _, _ := net.SplitHostPort(a.Client); ip != client {
			return fmt.Errorf("%s sees %s, asked by %s", a.Pod, a.Client, client)
		}
		return nil
	}
}

// sees makes some connections, and wants each to be seen with this address.
func sees(t *testing.T, host, address, client string) {
	t.Helper()
	for range 10 {
		if err := seen(host, address, client)(); err != nil {
			t.Errorf("%s at %s: %v", host, address, err)
		}
	}
}

// planned is what the plan says of whose address the pods of a Service see.
func planned(t *testing.T, service, zone string) (address, remedy string, isSeen bool) {
	t.Helper()
	for _, e := range planNow(t).Exposures {
		if e.Service == service && e.Zone == zone {
			return e.Client, e.ClientRemedy, e.ClientSeen
		}
	}
	t.Fatalf("the plan has no %s in %s", service, zone)
	return "", "", false
}

// annotated adds annotations to a manifest.
func annotated(manifest, annotations string) string {
	return strings.Replace(manifest, "annotations: {", "annotations: {"+annotations+", ", 1)
}

// An nginx in a pod is told the client's own address, through node ports of both
// policies and directly; and that of a client behind an HAProxy in front of
// gatehouse, which is believed, and nobody else.
func TestProxyProtocol(t *testing.T) {
	const port, accepting = 8620, 8625
	ns := namespace(t)
	apply(t, nginxPods(ns, "one", "w1", 1, "proxy_protocol", "$proxy_protocol_addr:$proxy_protocol_port")+
		nginxPods(ns, "two", "w2", 1, "proxy_protocol", "$proxy_protocol_addr:$proxy_protocol_port"))
	made := []struct{ name, policy, annotations string }{
		{"local", "Local", "gatehouse.e13.dev/send-proxy-protocol: v2"},
		{"cluster", "Cluster", "gatehouse.e13.dev/send-proxy-protocol: v2"},
		{"pod", "Local", "gatehouse.e13.dev/send-proxy-protocol: v1, gatehouse.e13.dev/target: pod"},
		{"told", "Local", "gatehouse.e13.dev/send-proxy-protocol: v2, gatehouse.e13.dev/health-check: http:/"},
	}
	for i, m := range made {
		text := strings.Replace(annotated(service(ns, m.name, "one", "home", m.policy, port+i), m.annotations), "targetPort: 8080", "targetPort: 8443", 1)
		apply(t, strings.Replace(text, "selector: {app: one}", "selector: {proxied: 'true'}", 1))
	}
	for _, name := range []string{"one", "two"} {
		kubectl(t, "patch", "deployment", "-n", ns, name, "-p", `{"spec":{"template":{"metadata":{"labels":{"proxied":"true"}}}}}`)
	}
	awaitPods(t, ns, "one", "two")
	for i, m := range made {
		eventually(t, 15*time.Second, m.name+" is up", func() error { return backendsUp(t, ns+"/"+m.name) })
		at := fmt.Sprintf("%s:%d", homeAddr, port+i)
		sees(t, "home1", at, home1Addr)
		sees(t, "home2", at, home2Addr)
		version := "v2"
		if m.name == "pod" {
			version = "v1"
		}
		if address, _, isSeen := planned(t, ns+"/"+m.name, "home"); !isSeen || !strings.Contains(address, "PROXY protocol "+version) {
			t.Errorf("plan says that the pods of %s see %q", m.name, address)
		}
	}

	nodePort := nodePortOf(t, ns, "local")
	restoreConfig(t)
	err := writeConfig(config + fmt.Sprintf(`frontends:
  - name: behind-haproxy
    zones: [home]
    port: %d
    acceptProxyProtocol: [10.11.12.102/32]
    sendProxyProtocol: v2
    sourceRanges: [10.11.12.101/32]
    backends: [{address: "10.0.0.101:%s"}, {address: "10.0.0.102:%s"}]
`, accepting, nodePort, nodePort))
	if err != nil {
		t.Fatal(err)
	}
	proxy := filepath.Join(t.TempDir(), "haproxy.cfg")
	err = os.WriteFile(proxy, fmt.Appendf(nil, `defaults
  mode tcp
  timeout connect 5s
  timeout client 10s
  timeout server 10s
listen v2
  bind :8001
  server edge %[1]s:%[2]d send-proxy-v2
listen v1
  bind :8002
  server edge %[1]s:%[2]d send-proxy
`, homeAddr, accepting), 0o644)
	if err == nil {
		err = lab.Run(t.Context(), "haproxy", "home2", nil, "haproxy", "-db", "-f", proxy)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "haproxy"); err != nil {
			t.Error(err)
		}
	})
	at := fmt.Sprintf("%s:%d", homeAddr, accepting)
	eventually(t, 10*time.Second, "open behind HAProxy", seen("home1", home2Addr+":8001", home1Addr))
	for _, v := range []string{":8001", ":8002"} {
		sees(t, "home1", home2Addr+v, home1Addr)
		// The header says who the client is, and that one may not connect.
		if a, err := get("home2", home2Addr+v, 2*time.Second); err == nil {
			t.Errorf("who is out of the source ranges is served behind HAProxy: %+v", a)
		}
	}
	sees(t, "home1", at, home1Addr) // not by way of a proxy, and without a header
	for reason, say := range map[string]struct{ host, words string }{
		"proxy_untrusted": {"home1", "PROXY TCP4 10.11.12.101 10.11.12.32 1000 8625\r\nGET / HTTP/1.0\r\n\r\n"},
		"proxy_header":    {"home2", "GET / HTTP/1.0\r\n\r\n"},
	} {
		if answer, err := sayTo(t, say.host, at, say.words); err == nil {
			t.Errorf("%s is answered %q; want it closed: %s", say.host, answer, reason)
		}
		eventually(t, 2*time.Second, "it is counted as "+reason, func() error {
			if f, _ := openAt(t, accepting); f.Failures[reason] != 1 {
				return fmt.Errorf("the status counts %v", f.Failures)
			}
			return nil
		})
	}
}

// sayTo says something on a new connection, and returns the first line of the answer.
func sayTo(t *testing.T, host, address, words string) (string, error) {
	t.Helper()
	conn, err := lab.Dialer(host)(t.Context(), "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte(words)); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

// backendsUp says whether all backends of a Service are up.
func backendsUp(t *testing.T, service string) error {
	t.Helper()
	open := false
	for _, e := range statusNow(t).Exposures {
		if e.Service != service {
			continue
		}
		open = open || e.Open && len(e.Backends) > 0
		for _, b := range e.Backends {
			if b.State != "up" {
				return fmt.Errorf("backend %s is %s: %s", b.Addr, b.State, b.Error)
			}
		}
	}
	if !open {
		return fmt.Errorf("%s is not open", service)
	}
	return nil
}

// transparency is what gatehouse has set up on the edge box for transparent
// connections, as far as it is there.
func transparency(t *testing.T) string {
	t.Helper()
	var there []string
	for what, argv := range map[string][]string{
		"nft":      {"nft", "list", "table", "inet", "gatehouse-transparent"},
		"rules":    {"ip", "rule", "show", "fwmark", "0x1000/0x1000"},
		"rules v6": {"ip", "-6", "rule", "show", "fwmark", "0x1000/0x1000"},
		"routes":   {"ip", "route", "show", "table", "4096"},
		"v6":       {"ip", "-6", "route", "show", "table", "4096"},
	} {
		out, err := lab.Exec(t.Context(), "edge", argv...)
		if err == nil && strings.TrimSpace(out) != "" {
			there = append(there, what)
		}
	}
	slices.Sort(there)
	return strings.Join(there, ", ")
}

// Transparent Services: pods see the clients' own addresses, TCP and UDP, from
// home and from the Internet. Where they cannot, the plan says why, and it is as
// it says. Nothing is left behind.
func TestTransparent(t *testing.T) {
	const port = 8630
	const transparent = `gatehouse.e13.dev/transparent: "true"`
	ns := namespace(t)
	if there := transparency(t); there != "" {
		t.Fatalf("before anybody is transparent there are: %s", there)
	}
	apply(t, deployment(ns, "web", "web", "w1", 1)+deployment(ns, "web2", "web", "w2", 1)+echoPods(ns, "echo", "w1", 1)+echoPods(ns, "echo2", "w2", 1)+
		deployment("public", "seen", "seen", "w3", 1))
	t.Cleanup(func() { remove(t, "service,deployment", "-n", "public", "--all") })
	awaitPods(t, ns, "web", "web2", "echo", "echo2")
	awaitPods(t, "public", "seen")
	pod := transparent + ", gatehouse.e13.dev/target: pod"
	made := []struct {
		name, key, manifest string
		client              string // what the plan says the pods see; empty: the client's own
	}{
		{"pod", "", annotated(service(ns, "pod", "web", "home", "Cluster", port), pod), ""},
		{"local", "", annotated(service(ns, "local", "web", "home", "Local", port+1), transparent), ""},
		{"cluster", "", annotated(service(ns, "cluster", "web", "home", "Cluster", port+2), transparent), "a node's: kube-proxy replaces it"},
		{"relayed", "", service(ns, "relayed", "web", "home", "Local", port+3), "this machine's address"},
		{"udp-pod", "", annotated(udpService(ns, "udp-pod", "pod", port+4, ""), transparent), ""},
		{"udp-local", "", annotated(udpService(ns, "udp-local", "nodePort", port+5, ""), transparent), ""},
		{"public", "public", annotated(service("public", "public", "seen", "home,internet,cluster", "Local", port+6), pod), ""},
	}
	for i := range made {
		if made[i].key == "" {
			made[i].key = ns
		}
		made[i].key += "/" + made[i].name
		apply(t, made[i].manifest)
	}
	for _, m := range made {
		eventually(t, 15*time.Second, m.name+" is up", func() error { return backendsUp(t, m.key) })
		address, remedy, isSeen := planned(t, m.key, "home")
		if m.client == "" && !(isSeen && strings.HasPrefix(address, "the client's own")) || m.client != "" && (isSeen || !strings.HasPrefix(address, m.client) || remedy == "") {
			t.Errorf("plan says that the pods of %s see %q (%v); %s", m.name, address, isSeen, remedy)
		} else {
			t.Logf("%s: the pods see %s; %s", m.name, address, remedy)
		}
	}
	if there := transparency(t); there != "nft, routes, rules, rules v6, v6" {
		t.Errorf("of what transparent connections need there are: %s", there)
	}

	at := func(i int) string { return fmt.Sprintf("%s:%d", homeAddr, port+i) }
	for host, client := range map[string]string{"home1": home1Addr, "home2": home2Addr} {
		sees(t, host, at(0), client)
		sees(t, host, at(1), client)
		sees(t, host, at(3), clusterAddr)
		sees(t, host, at(6), client)
		for i := 4; i <= 5; i++ {
			for range 5 {
				pod, from, err := whence(host, at(i))
				if err != nil || !strings.HasPrefix(pod, "echo") || from != client {
					t.Errorf("UDP, %s: %s sees %q asked by %s: %v", host, pod, from, client, err)
				}
			}
		}
	}
	nodes := netip.MustParsePrefix("10.0.0.96/28") // and the nodes' ends of their pods' cables: 10.244.N.1
	for range 10 {
		a, err := get("home1", at(2), 2*time.Second)
		client, _ := netip.ParseAddrPort(a.Client)
		if err != nil || !nodes.Contains(client.Addr()) && !strings.HasPrefix(a.Client, "10.244.") {
			t.Errorf("policy Cluster: the pod sees %s, which is no node: %v", a.Client, err)
		}
	}
	sees(t, "inet", fmt.Sprintf("%s:%d", publicAddr, port+6), inetAddr)
	// A neighbour of the backends, and a client of another IP family.
	sees(t, "w1", fmt.Sprintf("%s:%d", clusterAddr, port+6), clusterAddr)
	sees(t, "home1", fmt.Sprintf("[fd00:11:12::32]:%d", port), clusterAddr)
	if address, _, isSeen := planned(t, "public/public", "cluster"); isSeen || !strings.Contains(address, "cannot be transparent") {
		t.Errorf("plan says that pods see %q of their neighbours (%v)", address, isSeen)
	}

	// What is there goes on while a Service is changed, and new ones are seen as it now says.
	c := converse(t, "home1", at(0))
	c.ask(t)
	kubectl(t, "annotate", "service", "-n", ns, "pod", "--overwrite", "gatehouse.e13.dev/transparent=false")
	eventually(t, 2*time.Second, "relayed now", seen("home1", at(0), clusterAddr))
	c.ask(t)
	kubectl(t, "delete", "service", "-n", ns, "pod", "local", "cluster", "udp-pod", "udp-local")
	c.ask(t)
	kubectl(t, "delete", "service", "-n", "public", "public")
	c.ask(t)
	c.conn.Close()
	took := eventually(t, 30*time.Second, "nothing is left of it", func() error {
		if there := transparency(t); there != "" {
			return errors.New(there)
		}
		return nil
	})
	t.Logf("rules and routes were gone %d ms after the last connection", took.Milliseconds())
	sees(t, "home1", at(3), clusterAddr)
}

// whence asks a pod of lab/echo who it is and where the question came from.
func whence(host, address string) (pod, from string, err error) {
	return whenceBy(host, address, 0)
}

// whenceBy asks from a port of the client's; 0: any.
func whenceBy(host, address string, port int) (pod, from string, err error) {
	var conn net.Conn
	err = lab.Do(host, func() error {
		var err error
		conn, err = (&net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}).Dial("udp", address)
		return err
	})
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte(workload.Whence)); err != nil {
		return "", "", err
	}
	buf := make([]byte, 200)
	n, err := conn.Read(buf)
	pod, from, _ = strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	from, _, _ = net.SplitHostPort(from)
	return pod, from, err
}
