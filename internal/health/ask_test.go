package health

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// asks makes a probe once, and returns its error or "ok".
func asks(t *testing.T, kind edge.ProbeKind, addr net.Addr) string {
	t.Helper()
	_, got := asksAt(t, edge.Probe{Kind: kind, Addr: addr.(*net.TCPAddr).AddrPort()})
	return got
}

func asksAt(t *testing.T, probe edge.Probe) (heard, string) {
	t.Helper()
	if probe.Timeout == 0 {
		probe.Timeout = 300 * time.Millisecond
	}
	told, err := New(slog.New(slog.DiscardHandler), Options{}).ask(t.Context(), probe)
	if err != nil {
		return told, err.Error()
	}
	return told, "ok"
}

func listenLoopback(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestTCPProbeConnectsAndSaysGoodbye(t *testing.T) {
	l := listenLoopback(t)
	if got := asks(t, edge.ProbeBackend, l.Addr()); got != "ok" {
		t.Errorf("probe of a listener: %s", got)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// An end, not a reset: servers log those.
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the server read %d bytes, %v; want the end", n, err)
	}
	l.Close()
	if got := asks(t, edge.ProbeBackend, l.Addr()); got != "connection refused" {
		t.Errorf("probe of a closed port: %s", got)
	}
}

func TestHealthCheckNodePort(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"ready": {func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || r.URL.Path != "/" || !r.Close {
				w.WriteHeader(http.StatusTeapot)
			}
			io.WriteString(w, `{"localEndpoints": 2}`)
		}, "ok"},
		"no pods": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
			"no ready pods there (healthCheckNodePort answers 503)",
		},
		"broken": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
			"healthCheckNodePort answers 500",
		},
		"elsewhere": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) },
			"healthCheckNodePort answers 302",
		},
		"silent": {
			func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			"no answer within 300ms",
		},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, strings.Repeat("x", 1<<16))
			}
		}, "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(c.handler)
			defer s.Close()
			if got := asks(t, edge.ProbeHealthCheckNodePort, s.Listener.Addr()); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	l := listenLoopback(t)
	l.Close()
	if got := asks(t, edge.ProbeHealthCheckNodePort, l.Addr()); got != "connection refused" {
		t.Errorf("closed port: %q", got)
	}
}

func TestWeightOfANode(t *testing.T) {
	for text, want := range map[string]int{
		"3": 3, "0": 0, "65535": 65535, "65536": 0, "-1": 0, "+1": 0, "1.5": 0, "many": 0, "99999999999999999999": 0, "": 0,
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Load-Balancing-Endpoint-Weight", text)
		}))
		told, got := asksAt(t, edge.Probe{Kind: edge.ProbeHealthCheckNodePort, Addr: addrOf(s.Listener)})
		if got != "ok" || told != (heard{endpoints: true, weight: want}) {
			t.Errorf("%q: got %+v, %s, want %d", text, told, got, want)
		}
		s.Close()
	}
}

func TestHealthz(t *testing.T) {
	status := map[string]int{"up": 200, "leaving": 503, "other": 404}
	for name, want := range map[string]string{
		"up":      "ok",
		"leaving": "its node is leaving, or kube-proxy there is behind (healthz answers 503)",
		"other":   "kube-proxy's healthz answers 404, want 200",
		"silent":  "kube-proxy's healthz: no answer within 300ms",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/healthz" || r.Method != http.MethodGet:
				w.WriteHeader(http.StatusTeapot)
			case name == "silent":
				<-r.Context().Done()
			default:
				w.WriteHeader(status[name])
			}
		}))
		if got := asks(t, edge.ProbeHealthz, s.Listener.Addr()); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		s.Close()
	}
	// No kube-proxy, and a node that is alive to say so.
	l := listenLoopback(t)
	l.Close()
	if got := asks(t, edge.ProbeHealthz, l.Addr()); got != "ok" {
		t.Errorf("closed port: got %q, want ok", got)
	}
	speaks := serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "hello\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	if got, want := asks(t, edge.ProbeHealthz, net.TCPAddrFromAddrPort(speaks)), `kube-proxy's healthz: malformed HTTP response "hello"`; got != want {
		t.Errorf("another protocol: got %q, want %q", got, want)
	}
}

// What the port of another protocol answers fits into a line of the status page.
func TestHealthCheckNodePortThatSpeaksSomethingElse(t *testing.T) {
	l := listenLoopback(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1\r\n")
			c.Close()
		}
	}()
	got := asks(t, edge.ProbeHealthCheckNodePort, l.Addr())
	if want := `healthCheckNodePort: malformed HTTP response "SSH-2.0-OpenSSH_9.2p1"`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// kube-proxy's word is for the Service, not for a port that was added since: a
// backend becomes up only when its node port takes a connection too. Once it
// is up, its pods are left in peace until a connection to it has failed.
func TestHealthCheckNodePortAndTheNodePortItself(t *testing.T) {
	says := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer says.Close()
	nodePort := listenLoopback(t)
	addr := nodePort.Addr().(*net.TCPAddr).AddrPort()
	nodePort.Close()

	p := New(slog.New(slog.DiscardHandler), Options{})
	go p.Run(t.Context())
	probe := edge.Probe{
		Kind: edge.ProbeHealthCheckNodePort, Addr: says.Listener.Addr().(*net.TCPAddr).AddrPort(), Through: addr,
		HealthCheck: edge.HealthCheck{Interval: 100 * time.Millisecond, Timeout: time.Second, Rise: 1, Fall: 2},
	}
	p.Apply([]edge.Probe{probe})
	await := func(state edge.BackendState, text string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			h := p.Snapshot()[probe]
			if h.State == state && h.Error == text {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("got %+v, want %s %q", h, state, text)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	await(edge.Pending, "connection refused")

	again, err := net.Listen("tcp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	var troubled atomic.Int64
	go func() {
		for {
			c, err := again.Accept()
			if err != nil {
				return
			}
			troubled.Add(1)
			c.Close()
		}
	}()
	await(edge.Up, "")
	for troubled.Load() == 0 { // the one that made it so may not have been accepted yet
		<-time.After(5 * time.Millisecond)
	}
	before := troubled.Load()
	<-time.After(500 * time.Millisecond) // five intervals
	if n := troubled.Load() - before; n != 0 {
		t.Errorf("the node port of a backend that is up was tried %d times", n)
	}
	again.Close()
	p.Suspect(probe.Through)
	await(edge.Down, "connection refused")
}
