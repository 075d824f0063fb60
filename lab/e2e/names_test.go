package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"e13.dev/gatehouse/lab/internal/workload"
)

// tlsPods is a manifest of lab/tls pods, on 8443.
func tlsPods(namespace, name string, replicas int) string {
	return strings.NewReplacer("image: lab/web", "image: lab/tls", "containerPort: 8080", "containerPort: 8443",
		"httpGet: {path: /, port: 8080}", "tcpSocket: {port: 8443}").
		Replace(deployment(namespace, name, name, "", replicas, "--linger", "0s"))
}

// nginxPods is a manifest of pods in which this machine's nginx answers what lab/web does, on 8443. listen is what its
// server is told beside the port, and client the variables that make up the client's address.
func nginxPods(namespace, name, node string, replicas int, listen, client string) string {
	const script = `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab -keyout /run/key.pem -out /run/cert.pem
              sed "s/POD/$LAB_POD/; s/NODE/$LAB_NODE/" >/run/nginx.conf <<'END'
              daemon off;
              user root;
              pid /run/nginx.pid;
              error_log stderr;
              events {}
              http {
                access_log off;
                client_body_temp_path /run/1;
                proxy_temp_path /run/2;
                fastcgi_temp_path /run/3;
                uwsgi_temp_path /run/4;
                scgi_temp_path /run/5;
                server {
                  listen 8443 LISTEN;
                  ssl_certificate /run/cert.pem;
                  ssl_certificate_key /run/key.pem;
                  location / { return 200 '{"pod":"POD","node":"NODE","client":"CLIENT","serverName":"$ssl_server_name"}'; }
                }
              }
              END
              exec nginx -e stderr -c /run/nginx.conf
`
	text := deployment(namespace, name, name, node, replicas)
	text = strings.NewReplacer("image: lab/web\n          args: []\n", "image: lab/host\n          command:\n            - sh\n            - -c\n            - |\n              "+
		strings.NewReplacer("LISTEN", listen, "CLIENT", client).Replace(script),
		"containerPort: 8080", "containerPort: 8443", "httpGet: {path: /, port: 8080}", "tcpSocket: {port: 8443}").Replace(text)
	return text
}

// named is a manifest of a Service that has some TLS server names of port 443.
func named(namespace, name, app, hostnames string, protocols ...string) string {
	var ports []string
	for _, p := range protocols {
		ports = append(ports, fmt.Sprintf("{name: %s, protocol: %s, port: 443, targetPort: 8443}", strings.ToLower(p), p))
	}
	text := strings.Replace(service(namespace, name, app, "home", "Local", 443), "{port: 443, targetPort: 8080}", strings.Join(ports, ", "), 1)
	return strings.Replace(text, "annotations: {", fmt.Sprintf("annotations: {gatehouse.e13.dev/hostnames: %q, ", hostnames), 1)
}

// getTLS makes one request over one new TLS connection. wire is what the bytes go through, if anything.
func getTLS(host, address, serverName string, wire func(net.Conn) net.Conn) (answer, error) {
	dial := lab.Dialer(host)
	return ask(&http.Transport{DisableKeepAlives: true, DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if wire != nil {
			conn = wire(conn)
		}
		return tls.Client(conn, &tls.Config{ServerName: serverName, InsecureSkipVerify: true}), nil
	}}, "https://"+address+"/", 3*time.Second)
}

// segments sends what is written in segments of n bytes.
type segments struct {
	net.Conn
	n int
}

func (c segments) Write(p []byte) (written int, err error) {
	for part := range slices.Chunk(p, c.n) {
		n, err := c.Conn.Write(part)
		if written += n; err != nil {
			return written, err
		}
	}
	return written, nil
}

// records sends the hello in TLS records of n bytes.
type records struct {
	net.Conn
	n    int
	done *bool
}

func (c records) Write(p []byte) (int, error) {
	const header = 5
	if *c.done || len(p) < header {
		return c.Conn.Write(p)
	}
	*c.done = true
	for part := range slices.Chunk(p[header:], c.n) {
		record := append([]byte{p[0], p[1], p[2], byte(len(part) >> 8), byte(len(part))}, part...)
		if _, err := c.Conn.Write(record); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// quicConn is a QUIC connection from a host of the site, by a socket of its own.
func quicConn(t *testing.T, host, address, serverName string, patience time.Duration) (*quic.Conn, error) {
	t.Helper()
	socket, err := udpSocket(t, host)
	if err != nil {
		return nil, err
	}
	transport := &quic.Transport{Conn: socket}
	t.Cleanup(func() { transport.Close() })
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return transport.Dial(ctx, to, &tls.Config{ServerName: serverName, InsecureSkipVerify: true, NextProtos: []string{workload.Protocol}},
		&quic.Config{MaxIdleTimeout: 20 * time.Second})
}

func udpSocket(t *testing.T, host string) (socket net.PacketConn, err error) {
	err = lab.Do(host, func() (err error) {
		socket, err = net.ListenPacket("udp", ":0")
		return err
	})
	if err == nil {
		t.Cleanup(func() { socket.Close() })
	}
	return socket, err
}

// askQUIC asks on a new stream of a connection.
func askQUIC(conn *quic.Conn) (a answer, err error) {
	ctx, cancel := context.WithTimeout(conn.Context(), 5*time.Second)
	defer cancel()
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return a, err
	}
	_ = stream.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := stream.Write([]byte("who?")); err != nil {
		return a, err
	}
	_ = stream.Close()
	return a, json.NewDecoder(stream).Decode(&a)
}

// getQUIC asks over a connection of its own.
func getQUIC(t *testing.T, host, address, serverName string) (answer, error) {
	t.Helper()
	conn, err := quicConn(t, host, address, serverName, 3*time.Second)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	return askQUIC(conn)
}

// by says whether pods of a Deployment answered, which saw the server name.
func by(a answer, err error, deployment, serverName string) error {
	switch {
	case err != nil:
		return err
	case !strings.HasPrefix(a.Pod, deployment+"-"):
		return fmt.Errorf("%s answered, not %s", a.Pod, deployment)
	case a.ServerName != serverName:
		return fmt.Errorf("%s was asked for %q, not %q", a.Pod, a.ServerName, serverName)
	}
	return nil
}

// Services of two namespaces share port 443 by TLS server name, and by that of
// QUIC: an exact name, a wildcard, and an nginx for whatever else comes. TLS is
// the pods', so that what they say of the server name is what they read.
func TestNamesShareAPort(t *testing.T) {
	const at = homeAddr + ":443"
	ns, other := namespace(t), "names-of-others"
	makeNamespace(t, other)
	apply(t, tlsPods(ns, "git", 2)+tlsPods(other, "wild", 2)+tlsPods(ns, "late", 1)+nginxPods(other, "rest", "", 1, "ssl", "$remote_addr:$remote_port")+
		named(ns, "git", "git", "git.example.org", "TCP", "UDP")+named(other, "wild", "wild", "*.example.org", "TCP", "UDP")+named(other, "rest", "rest", "*", "TCP"))
	awaitPods(t, ns, "git", "late")
	awaitPods(t, other, "wild", "rest")
	for service, pods := range map[string]int{ns + "/git": 2, other + "/wild": 2, other + "/rest": 1} {
		eventually(t, 10*time.Second, service+" is up", func() error { return allUp(t, service, pods) })
	}

	// Whom a name leads to. QUIC has no default here.
	leads := []struct{ name, pods string }{
		{"git.example.org", "git"},
		{"wiki.example.org", "wild"},
		{"a.b.example.org", "wild"},
		{"www.git.example.org", "wild"},
		{"example.org", "rest"},
		{"www.example.com", "rest"},
	}
	t.Run("curl", func(t *testing.T) {
		for _, l := range leads {
			for _, how := range [][]string{{"--resolve", l.name + ":443:" + homeAddr}, {"--connect-to", "::" + at, "--tls-max", "1.2"}} {
				out, err := lab.Exec(t.Context(), "home1", append([]string{"curl", "-sSk", "--max-time", "5", "https://" + l.name + "/"}, how...)...)
				var a answer
				if err == nil {
					err = json.Unmarshal([]byte(out), &a)
				}
				if err := by(a, err, l.pods, l.name); err != nil {
					t.Errorf("%s, %s: %v", l.name, how[0], err)
				}
			}
		}
	})
	t.Run("openssl", func(t *testing.T) {
		for _, l := range append(slices.Clone(leads), struct{ name, pods string }{"", "rest"}) {
			server := []string{"-servername", l.name}
			if l.name == "" {
				server = []string{"-noservername"}
			}
			cmd, err := lab.Command(t.Context(), "home1", append([]string{"openssl", "s_client", "-quiet", "-connect", at}, server...)...)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
			out, err := cmd.Output()
			_, body, _ := strings.Cut(string(out), "\r\n\r\n")
			var a answer
			if err == nil {
				err = json.Unmarshal([]byte(body), &a)
			}
			if err := by(a, err, l.pods, l.name); err != nil {
				t.Errorf("%q: %v", l.name, err)
			}
		}
	})
	t.Run("hellos in pieces", func(t *testing.T) {
		for _, l := range leads {
			for what, wire := range map[string]func(net.Conn) net.Conn{
				"in one":                       nil,
				"in segments of 3":             func(c net.Conn) net.Conn { return segments{c, 3} },
				"in records of 40":             func(c net.Conn) net.Conn { return records{c, 40, new(bool)} },
				"records of 7, segments of 11": func(c net.Conn) net.Conn { return records{segments{c, 11}, 7, new(bool)} },
			} {
				a, err := getTLS("home1", at, l.name, wire)
				if err := by(a, err, l.pods, l.name); err != nil {
					t.Errorf("%s, %s: %v", l.name, what, err)
				}
			}
		}
	})
	t.Run("what is no TLS", func(t *testing.T) {
		resp, err := httpFrom("home1").Get("http://" + at + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body := readAll(resp); !strings.Contains(body, "plain HTTP request was sent to HTTPS port") {
			t.Errorf("it did not come to nginx: %d %s", resp.StatusCode, body)
		}
	})
	t.Run("QUIC", func(t *testing.T) {
		pods := map[string]bool{}
		for range 10 {
			for _, l := range leads[:4] {
				a, err := getQUIC(t, "home1", at, l.name)
				if err := by(a, err, l.pods, l.name); err != nil {
					t.Errorf("%s: %v", l.name, err)
				}
				pods[a.Pod] = true
			}
		}
		if len(pods) != 4 {
			t.Errorf("%d pods answered, want all 4", len(pods))
		}
		if conn, err := quicConn(t, "home1", at, "www.example.com", 500*time.Millisecond); err == nil {
			t.Errorf("a name that nobody has: %v", conn.RemoteAddr())
		}
		eventually(t, 2*time.Second, "that one is counted", func() error {
			if _, metrics := admin(t, "/metrics"); !strings.Contains(metrics, `reason="unknown_name"`) {
				return errors.New("no metric has the reason")
			}
			return nil
		})
	})
	t.Run("zones are walls", func(t *testing.T) {
		var tried sync.WaitGroup
		for _, r := range routes {
			if r.zone == "home" {
				continue
			}
			for _, l := range leads[:2] {
				address := net.JoinHostPort(r.address, "443")
				tried.Go(func() {
					if a, err := getTLS(r.host, address, l.name, nil); !refused(err) {
						t.Errorf("%s (zone %s) asks %s for %s: %+v %v", r.host, r.zone, address, l.name, a, err)
					}
				})
				tried.Go(func() {
					if conn, err := quicConn(t, r.host, address, l.name, 500*time.Millisecond); err == nil {
						t.Errorf("%s (zone %s) has a QUIC connection with %s at %s", r.host, r.zone, l.name, conn.RemoteAddr())
					}
				})
			}
		}
		tried.Wait()
	})
	t.Run("a QUIC client that moves", func(t *testing.T) { quicClientMoves(t, at) })
	t.Run("a name that is taken", func(t *testing.T) { nameIsTaken(t, ns, other, at) })
}

// quicClientMoves puts a NAT in front of a client, which forgets it again and
// again, so that its port changes. Then it moves by itself, to another socket.
// (quic-go's client takes an encrypted connection ID with it as soon as it has
// one. So its address stays: nobody in between could know it at another one.)
func quicClientMoves(t *testing.T, at string) {
	port := 41000
	nat := func() (to string) {
		t.Helper()
		port++ // one that no connection has had: the NAT would not give it away again
		to = fmt.Sprintf("10.11.12.101:%d", port)
		cmd, err := lab.Command(t.Context(), "home1", "nft", "-f", "-")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = strings.NewReader("table ip e2e\ndelete table ip e2e\ntable ip e2e {\n chain post {\n type nat hook postrouting priority srcnat;\n udp dport 443 snat to " + to + "\n }\n}\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// It says so when there was nothing to forget.
		_, _ = lab.Exec(t.Context(), "home1", "conntrack", "-D", "-p", "udp", "--dport", "443")
		return to
	}
	host := func(args ...string) {
		if _, err := lab.Exec(context.Background(), "home1", args...); err != nil {
			t.Error(err)
		}
	}
	nat()
	defer host("nft", "delete", "table", "ip", "e2e")

	for _, name := range []string{"git.example.org", "wiki.example.org"} {
		nat()
		conn, err := quicConn(t, "home1", at, name, 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		first, err := askQUIC(conn)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			to := nat()
			for i := range 5 {
				start := time.Now()
				a, err := askQUIC(conn)
				if err != nil || a.Pod != first.Pod {
					t.Fatalf("%s, from %s: %s answered before, now %q: %v", name, to, first.Pod, a.Pod, err)
				}
				if i == 0 {
					t.Logf("%s: the first answer to %s came after %d ms", name, to, time.Since(start).Milliseconds())
				}
			}
			_, port, _ := net.SplitHostPort(to)
			if seen, err := lab.Exec(t.Context(), "home1", "conntrack", "-L", "-p", "udp"); err != nil || !strings.Contains(seen, "dport="+port) {
				t.Fatalf("the client has not moved to %s: %v %s", to, err, seen)
			}
		}
		_ = conn.CloseWithError(0, "")
	}

	host("nft", "flush", "table", "ip", "e2e")
	_, _ = lab.Exec(t.Context(), "home1", "conntrack", "-D", "-p", "udp", "--dport", "443")
	conn, err := quicConn(t, "home1", at, "wiki.example.org", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseWithError(0, "") }()
	first, err := askQUIC(conn)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := udpSocket(t, "home1")
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: socket}
	defer transport.Close()
	path, err := conn.AddPath(transport)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		t.Fatalf("the way from another port: %v", err)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if a, err := askQUIC(conn); err != nil || a.Pod != first.Pod {
			t.Fatalf("from another port: %s answered before, now %q: %v", first.Pod, a.Pod, err)
		}
	}
}

// nameIsTaken: a younger Service loses the name that an older one has, and
// nothing else; one that wants the whole port is closed. When the older one
// goes, the name is the younger one's.
func nameIsTaken(t *testing.T, ns, other, at string) {
	answers := func(name, pods string) error {
		a, err := getTLS("home1", at, name, nil)
		return by(a, err, pods, name)
	}
	anotherSecond(t, ns, "git")
	apply(t, named(ns, "a-younger", "late", "git.example.org,late.example.org", "TCP")+service(other, "a-whole", "wild", "home", "Local", 443))
	eventually(t, 10*time.Second, "the younger has the name that is free", func() error { return answers("late.example.org", "late") })
	for range 10 {
		if err := answers("git.example.org", "git"); err != nil {
			t.Fatalf("the younger has the name: %v", err)
		}
	}
	const taken = "hostname git.example.org at TCP port 443 in zone home is taken by service "
	for _, e := range []struct{ ns, name, event string }{
		{ns, "a-younger", "Warning PortConflict: " + taken + ns + "/git, which is older"},
		{ns, "git", "Warning PortConflict: service " + ns + "/a-younger also wants hostname git.example.org at TCP port 443 in zone home"},
		{other, "a-whole", "Warning PortConflict: TCP port 443 in zone home is shared by TLS server name"},
	} {
		eventually(t, 5*time.Second, e.name+" is told", func() error {
			if got := eventsOf(t, e.ns, e.name); !strings.Contains(got, e.event) {
				return fmt.Errorf("it is told %q, not %q", got, e.event)
			}
			return nil
		})
	}
	if got := eventsOf(t, other, "wild"); strings.Contains(got, "a-younger") {
		t.Errorf("who has no part in it is told: %s", got)
	}
	if got := ingressOf(t, ns, "a-younger"); got != homeAddr {
		t.Errorf("the younger is open for its other name, and has the address %q", got)
	}
	if got := ingressOf(t, other, "a-whole"); got != "" {
		t.Errorf("who has no part of the port has the address %s", got)
	}
	for _, what := range []string{taken, "TCP port 443 in zone home is shared by TLS server name"} {
		if _, body := admin(t, "/status.json"); !strings.Contains(body, what) {
			t.Errorf("the status does not say %q", what)
		}
		if out := planText(t); !strings.Contains(out, what) {
			t.Errorf("plan does not say %q:\n%s", what, out)
		}
	}
	kubectl(t, "delete", "service", "-n", ns, "git")
	took := eventually(t, 3*time.Second, "the younger has the name", func() error { return answers("git.example.org", "late") })
	t.Logf("the name is the younger one's %d ms after kubectl delete returned", took.Milliseconds())
	if err := answers("wiki.example.org", "wild"); err != nil {
		t.Errorf("another name at that: %v", err)
	}
	eventually(t, 2*time.Second, "the status has forgotten it", func() error {
		if _, body := admin(t, "/status.json"); strings.Contains(body, taken) {
			return errors.New("it says that the name is taken")
		}
		return nil
	})
	// QUIC went with the older one, and the wildcard has that name now.
	a, err := getQUIC(t, "home1", at, "git.example.org")
	if err := by(a, err, "wild", "git.example.org"); err != nil {
		t.Error(err)
	}
}
