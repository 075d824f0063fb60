package proxyproto

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// The addresses of these tests, in a network namespace: a proxy listens on
// 127.0.0.1 and ::1, and connects to the backend, which is the test.
const (
	backendAddr = "127.0.0.1:9000"
	checkedAddr = "127.0.0.1:9001"

	sendsV1, sendsV2     = 8001, 8002 // the proxy sends a header
	acceptsV1, acceptsV2 = 8003, 8004 // it accepts one of either version, and sends one of the version named
	tells                = 8005       // it accepts one and answers with what that says
)

const haproxyConfig = `
defaults
	mode tcp
	timeout connect 5s
	timeout client 5s
	timeout server 5s
listen sends-v1
	bind 127.0.0.1:8001
	bind ::1:8001
	server backend 127.0.0.1:9000 send-proxy
listen sends-v2
	bind 127.0.0.1:8002
	bind ::1:8002
	unique-id-format %Ts-%rt
	server backend 127.0.0.1:9000 send-proxy-v2 proxy-v2-options crc32c,unique-id
listen accepts-v1
	bind 127.0.0.1:8003 accept-proxy
	server backend 127.0.0.1:9000 send-proxy
listen accepts-v2
	bind 127.0.0.1:8004 accept-proxy
	server backend 127.0.0.1:9000 send-proxy-v2 proxy-v2-options crc32c
listen checks
	bind 127.0.0.1:8006
	server backend 127.0.0.1:9001 check inter 100ms send-proxy-v2 check-send-proxy
`

const nginxConfig = `
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {}
stream {
	server {
		listen 127.0.0.1:8001;
		listen [::1]:8001;
		proxy_protocol on;
		proxy_pass 127.0.0.1:9000;
	}
	server {
		listen 127.0.0.1:8005 proxy_protocol;
		return "$proxy_protocol_addr $proxy_protocol_server_addr $proxy_protocol_port $proxy_protocol_server_port";
	}
}
`

func TestNetnsHAProxySends(t *testing.T) {
	needs(t, "haproxy")
	netnstest.Run(t, func() {
		backend := listen(t, backendAddr)
		start(t, sendsV1, "haproxy", "-db", "-f", write(t, "haproxy.cfg", haproxyConfig))
		sends(t, backend, sendsV1, sendsV2)
	})
}

func TestNetnsNginxSends(t *testing.T) {
	needs(t, "nginx")
	netnstest.Run(t, func() {
		backend := listen(t, backendAddr)
		startNginx(t, sendsV1)
		sends(t, backend, sendsV1)
	})
}

// sends connects through a proxy that sends headers.
func sends(t *testing.T, backend net.Listener, ports ...uint16) {
	t.Helper()
	for _, port := range ports {
		for _, addr := range []string{"127.0.0.1", "::1"} {
			front := netip.AddrPortFrom(netip.MustParseAddr(addr), port)
			client := dial(t, front, "hello")
			h, rest := receive(t, backend)
			want := Header{Src: client.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: front}
			if h != want || rest != "hello" {
				t.Errorf("through %v: %+v and %q, want %+v", front, h, rest, want)
			}
		}
	}
}

// HAProxy's health checks come from nobody.
func TestNetnsHAProxyChecks(t *testing.T) {
	needs(t, "haproxy")
	netnstest.Run(t, func() {
		backend := listen(t, checkedAddr)
		start(t, sendsV1, "haproxy", "-db", "-f", write(t, "haproxy.cfg", haproxyConfig))
		if h, rest := receive(t, backend); h != local || rest != "" {
			t.Errorf("%+v and %q, want a local header alone", h, rest)
		}
	})
}

// What is appended here HAProxy understands, and sends on as it understands it.
func TestNetnsHAProxyAccepts(t *testing.T) {
	needs(t, "haproxy")
	netnstest.Run(t, func() {
		backend := listen(t, backendAddr)
		start(t, sendsV1, "haproxy", "-db", "-f", write(t, "haproxy.cfg", haproxyConfig))
		for _, port := range []uint16{acceptsV1, acceptsV2} {
			front := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
			for _, row := range peers {
				for _, header := range [][]byte{AppendV1(nil, row.src, row.dest), AppendV2(nil, row.src, row.dest)} {
					client := dial(t, front, string(header)+"hello")
					h, rest := receive(t, backend)
					want := Header{Src: row.src, Dst: row.dest}
					if !row.src.IsValid() {
						want = Header{Src: client.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: front}
					}
					if h != want || rest != "hello" {
						t.Errorf("%q comes out of HAProxy as %+v and %q, want %+v", header, h, rest, want)
					}
				}
			}
			// Both refuse the same, and with the same checksums.
			dial(t, front, sealed(addrs4, 0x11)+"hello")
			if h, rest := receive(t, backend); h != (Header{Src: client4, Dst: server4}) || rest != "hello" {
				t.Errorf("a header with a checksum comes out of HAProxy as %+v and %q", h, rest)
			}
			for _, header := range refused() {
				if _, _, err := Parse(header); !errors.Is(err, ErrBad) && !errors.Is(err, ErrNone) {
					t.Errorf("Parse(%q): %v, want ErrBad or ErrNone", header, err)
				}
				if n, err := dial(t, front, string(header)+"hello").Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%q is not refused by HAProxy: %d, %v", header, n, err)
				}
			}
		}
	})
}

func TestNetnsNginxAccepts(t *testing.T) {
	needs(t, "nginx")
	netnstest.Run(t, func() {
		startNginx(t, tells)
		front := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tells)
		for _, row := range peers {
			for _, header := range [][]byte{AppendV1(nil, row.src, row.dest), AppendV2(nil, row.src, row.dest)} {
				got, err := io.ReadAll(dial(t, front, string(header)))
				if err != nil {
					t.Fatal(err)
				}
				want := "   "
				if row.src.IsValid() {
					// As addresses, for they have more than one form.
					var src, dest string
					var srcPort, destPort uint16
					if _, err := fmt.Sscanf(string(got), "%s %s %d %d", &src, &dest, &srcPort, &destPort); err == nil {
						s, _ := netip.ParseAddr(src)
						d, _ := netip.ParseAddr(dest)
						got = fmt.Appendf(nil, "%v %v %d %d", s.Unmap(), d.Unmap(), srcPort, destPort)
					}
					want = fmt.Sprintf("%v %v %d %d", row.src.Addr(), row.dest.Addr(), row.src.Port(), row.dest.Port())
				}
				if string(got) != want {
					t.Errorf("nginx reads %q as %q, want %q", header, got, want)
				}
			}
		}
	})
}

// peers is what is sent to other programs.
var peers = []struct{ src, dest netip.AddrPort }{
	{client4, server4},
	{client6, server6},
	{client4, server6},
	{client6, server4},
	{netip.AddrPort{}, server4},
}

// refused are headers that HAProxy refuses.
func refused() [][]byte {
	wrong := []byte(sealed(addrs4, 0x11))
	wrong[17]++
	return [][]byte{
		wrong,
		[]byte("GET / HTTP/1.1\r\nHost: git.example.org\r\n\r\n"),
		[]byte("PROXY TCP4 192.0.2.7 10.11.12.51 56324\r\n"),
		[]byte("PROXY TCP7 192.0.2.7 10.11.12.51 56324 443\r\n"),
		[]byte(v2(0x22, 0x11, addrs4...)),
		[]byte(v2(0x31, 0x11, addrs4...)),
		[]byte(v2(0x21, 0x11, addrs4[:11]...)),
		[]byte(v2(0x21, 0x11, with(addrs4, tlv(4), []byte{4, 0, 2, 0})...)),
	}
}

// needs skips a test where a program is not installed, or fails it where the
// test is required.
func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := lookPath(program); err != nil {
		if os.Getenv("GATEHOUSE_NETNS") == "required" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if module := "/usr/lib/nginx/modules/ngx_stream_module.so"; program == "nginx" {
		if _, err := os.Stat(module); err != nil {
			if os.Getenv("GATEHOUSE_NETNS") == "required" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// lookPath looks where Debian has its servers, too.
func lookPath(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", program))
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func startNginx(t *testing.T, port uint16) {
	t.Helper()
	config := write(t, "nginx.conf", nginxConfig)
	start(t, port, "nginx", "-p", filepath.Dir(config), "-e", "stderr", "-c", config)
}

// start runs a proxy until the end of the test, and waits for its port.
func start(t *testing.T, port uint16, program string, args ...string) {
	t.Helper()
	path, err := lookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s:\n%s", program, out.String())
		}
	})
	deadline := time.After(10 * time.Second)
	for {
		// A connection that is made here would be seen by the backend.
		if listens(t, port) {
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ends:\n%s", program, out.String())
		case <-deadline:
			t.Fatalf("%s does not listen on port %d", program, port)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// listens says whether there is a listener on 127.0.0.1, without connecting.
func listens(t *testing.T, port uint16) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Contains(table, fmt.Appendf(nil, " 0100007F:%04X 00000000:0000 0A ", port))
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dial connects and sends something. The connection has 5 s.
func dial(t *testing.T, addr netip.AddrPort, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	return c
}

// receive accepts a connection, and reads its header and the rest.
func receive(t *testing.T, l net.Listener) (Header, string) {
	t.Helper()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	all, err := io.ReadAll(c)
	if err != nil && len(all) == 0 {
		t.Fatal(err)
	}
	h, n, err := Parse(all)
	if err != nil {
		t.Fatalf("Parse(%q): %v", all, err)
	}
	return h, string(all[n:])
}
