package health

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// start runs a server that somebody else has written until the test ends, and
// waits until its last port answers. The function returned stops it and returns
// what it has said.
func start(t *testing.T, last netip.AddrPort, name string, args ...string) (stop func() string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
		if _, err := os.Stat(path); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var said lines
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop = func() string {
		cancel()
		<-ended
		return said.String()
	}
	t.Cleanup(func() { stop() })
	deadline := time.Now().Add(10 * time.Second)
	for checked(t, last, edge.HealthCheck{}) != "ok" {
		select {
		case <-ended:
			t.Fatalf("%s has ended: %s", name, said.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %s", name, stop())
		}
	}
	return stop
}

// ports are some that nothing listens on.
func ports(t *testing.T, n int) []netip.AddrPort {
	t.Helper()
	var addrs []netip.AddrPort
	for range n {
		l := listenLoopback(t)
		defer l.Close()
		addrs = append(addrs, addrOf(l))
	}
	return addrs
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

type question struct {
	addr  netip.AddrPort
	proxy edge.ProxyProtocol
	check edge.HealthCheck
	want  string
}

func askAll(t *testing.T, questions []question) {
	t.Helper()
	for _, q := range questions {
		q.check.Timeout = 2 * time.Second
		_, got := asksAt(t, edge.Probe{Kind: edge.ProbeBackend, Addr: q.addr, SendProxyProtocol: q.proxy, HealthCheck: q.check})
		if got != q.want {
			t.Errorf("%+v: got %q", q, got)
		}
	}
}

func TestNginx(t *testing.T) {
	dir, at := t.TempDir(), ports(t, 3)
	_, cert, key := certificate(t)
	conf := writeFile(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`
daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/error.log info;
events { worker_connections 64; }
http {
	access_log %[1]s/access.log;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server { listen %[2]s default_server; return 444; }
	server {
		listen %[2]s;
		listen %[3]s ssl http2;
		listen %[4]s proxy_protocol;
		server_name shop.example.org 127.0.0.1;
		ssl_certificate %[5]s;
		ssl_certificate_key %[6]s;
		location = /healthz { return 200 "fine\n"; }
		location = /busy { return 503; }
		location = /moved { return 301 /healthz; }
	}
}
`, dir, at[0], at[1], at[2], writeFile(t, filepath.Join(dir, "cert.pem"), string(cert)), writeFile(t, filepath.Join(dir, "key.pem"), string(key))))
	stop := start(t, at[2], "nginx", "-e", filepath.Join(dir, "error.log"), "-c", conf)
	shop := func(kind edge.CheckType, path string) edge.HealthCheck {
		return edge.HealthCheck{Type: kind, Host: "shop.example.org", Path: path}
	}
	askAll(t, []question{
		{at[0], "", shop(edge.CheckHTTP, "/healthz"), "ok"},
		{at[0], "", edge.HealthCheck{Type: edge.CheckHTTP, Path: "/healthz"}, "ok"},
		{at[0], "", shop(edge.CheckHTTP, "/busy"), "answered 503, want 200-399"},
		{at[0], "", shop(edge.CheckHTTP, "/moved"), "ok"},
		{at[0], "", edge.HealthCheck{Type: edge.CheckHTTP, Host: "other.example.org"}, "closed the connection without an answer"},
		{at[0], "", edge.HealthCheck{Type: edge.CheckExchange, Send: "GET /healthz HTTP/1.1\r\nHost: shop.example.org\r\n\r\n", Expect: "fine"}, "ok"},
		{at[1], "", edge.HealthCheck{Type: edge.CheckTLS}, "ok"},
		{at[1], "", shop(edge.CheckTLS, ""), "ok"},
		{at[1], "", shop(edge.CheckHTTPS, "/healthz"), "ok"},
		{at[1], "", shop(edge.CheckHTTPS, "/busy"), "answered 503, want 200-399"},
		{at[1], "", shop(edge.CheckHTTP, "/healthz"), "answered 400, want 200-399"},
		{at[2], edge.ProxyProtocolV1, shop(edge.CheckHTTP, "/healthz"), "ok"},
		{at[2], edge.ProxyProtocolV2, shop(edge.CheckHTTP, "/healthz"), "ok"},
	})
	// Each conversation was heard to its end.
	stop()
	complaints, err := os.ReadFile(filepath.Join(dir, "error.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(complaints)) {
		if strings.Contains(line, "reset by peer") || strings.Contains(line, "prematurely") {
			t.Errorf("nginx has complained: %s", line)
		}
	}
	access, err := os.ReadFile(filepath.Join(dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(access), `"GET /healthz HTTP/1.1" 200`); n != 6 {
		t.Errorf("nginx has answered %d times with 200, want 6:\n%s", n, access)
	}
}

func TestHAProxy(t *testing.T) {
	dir, at := t.TempDir(), ports(t, 4)
	_, cert, key := certificate(t)
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`
defaults
	mode http
	timeout client 5s
	timeout server 5s
	timeout connect 5s
frontend plain
	bind %[1]s
	http-request return status 200 content-type text/plain string "fine" if { path /healthz }
	http-request return status 503
frontend secure
	bind %[2]s ssl crt %[5]s alpn h2,http/1.1
	http-request return status 200 if { ssl_fc_sni shop.example.org }
	http-request return status 421
frontend behind
	bind %[3]s accept-proxy
	http-request return status 200
frontend last
	bind %[4]s
`, at[0], at[1], at[2], at[3], writeFile(t, filepath.Join(dir, "both.pem"), string(cert)+string(key))))
	start(t, at[3], "haproxy", "-db", "-f", conf)
	shop := edge.HealthCheck{Type: edge.CheckHTTPS, Host: "shop.example.org"}
	askAll(t, []question{
		{at[0], "", edge.HealthCheck{Type: edge.CheckHTTP, Path: "/healthz"}, "ok"},
		{at[0], "", edge.HealthCheck{Type: edge.CheckHTTP, StatusMin: 200, StatusMax: 299}, "answered 503, want 200-299"},
		{at[1], "", edge.HealthCheck{Type: edge.CheckTLS}, "ok"},
		{at[1], "", shop, "ok"},
		{at[1], "", edge.HealthCheck{Type: edge.CheckHTTPS}, "answered 421, want 200-399"},
		{at[2], edge.ProxyProtocolV1, edge.HealthCheck{Type: edge.CheckHTTP}, "ok"},
		{at[2], edge.ProxyProtocolV2, edge.HealthCheck{Type: edge.CheckHTTP}, "ok"},
	})
}
