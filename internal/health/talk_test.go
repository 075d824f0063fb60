package health

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"e13.dev/gatehouse/internal/edge"
)

// lines is a log that tests read.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

func checked(t *testing.T, addr netip.AddrPort, check edge.HealthCheck) string {
	t.Helper()
	_, got := asksAt(t, edge.Probe{Kind: edge.ProbeBackend, Addr: addr, HealthCheck: check})
	return got
}

// certificate is one that nobody vouches for, and over since long ago.
func certificate(t *testing.T) (tls.Certificate, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert, certPEM, keyPEM
}

func TestHTTPCheck(t *testing.T) {
	var said lines
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RequestURI() {
		case "/":
			w.Header().Set("X", "root")
		case "/healthz?full=1":
			if r.Host != "shop.example.org" || r.Method != http.MethodGet || !r.Close {
				w.WriteHeader(http.StatusTeapot)
			}
		case "/address":
			if r.Host != r.Context().Value(http.LocalAddrContextKey).(net.Addr).String() {
				w.WriteHeader(http.StatusTeapot)
			}
		case "/moved":
			http.Redirect(w, r, "/healthz", http.StatusFound)
		case "/hints":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/large":
			_, _ = w.Write(make([]byte, maxAnswer/2))
		case "/endless":
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 1<<16))
			}
		case "/header":
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		case "/silent":
			<-r.Context().Done()
		case "/cut":
			panic(http.ErrAbortHandler)
		case "/reset":
			conn, _, _ := http.NewResponseController(w).Hijack()
			_ = conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	server.Config.ErrorLog = log.New(&said, "", 0)
	server.Start()
	defer server.Close()
	for _, c := range []struct {
		check edge.HealthCheck
		want  string
	}{
		{edge.HealthCheck{}, "ok"},
		{edge.HealthCheck{Path: "/healthz?full=1", Host: "shop.example.org"}, "ok"},
		{edge.HealthCheck{Path: "/address"}, "ok"},
		{edge.HealthCheck{Path: "/nowhere"}, "answered 404, want 200-399"},
		{edge.HealthCheck{Path: "/nowhere", StatusMin: 404, StatusMax: 404}, "ok"},
		{edge.HealthCheck{Path: "/", StatusMin: 204, StatusMax: 204}, "answered 200, want 204"},
		{edge.HealthCheck{Path: "/moved", StatusMin: 200, StatusMax: 299}, "answered 302, want 200-299"},
		{edge.HealthCheck{Path: "/moved", StatusMin: 200, StatusMax: 399}, "ok"},
		{edge.HealthCheck{Path: "/hints"}, "answered 503, want 200-399"},
		{edge.HealthCheck{Path: "/large"}, "ok"},
		{edge.HealthCheck{Path: "/endless"}, "ok"},
		{edge.HealthCheck{Path: "/header"}, "answered with more than 64 KiB of header"},
		{edge.HealthCheck{Path: "/silent"}, "no answer within 300ms"},
		{edge.HealthCheck{Path: "/cut"}, "closed the connection without an answer"},
		{edge.HealthCheck{Path: "/reset"}, "connection reset by peer"},
		{edge.HealthCheck{Path: "/ HTTP/1.0\r\nX: "}, `cannot ask for "/ HTTP/1.0\r\nX: " of "` + server.Listener.Addr().String() + `": a blank or control character`},
	} {
		c.check.Type = edge.CheckHTTP
		if got := checked(t, addrOf(server.Listener), c.check); got != c.want {
			t.Errorf("%s: got %q, want %q", c.check.Path, got, c.want)
		}
	}
	if said.String() != "" {
		t.Errorf("the server has complained: %s", said.String())
	}
}

// serve has each connection of a listener served, one goroutine for each.
func serve(t *testing.T, talk func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l := listenLoopback(t)
	go func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				talk(conn)
			}()
		}
	}()
	return addrOf(l)
}

func TestAnswersOfOtherProtocols(t *testing.T) {
	ssh := serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2p1\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	garbage := serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\x1b[31m\u202e<b> "+strings.Repeat("\x00x", 1000)+"\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	})
	hangsUp := serve(t, func(*net.TCPConn) {})
	silent := serve(t, func(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) })
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	closed := listenLoopback(t)
	closed.Close()
	for _, c := range []struct {
		name string
		addr netip.AddrPort
		kind edge.CheckType
		want string
	}{
		{"ssh", ssh, edge.CheckHTTP, `malformed HTTP response "SSH-2.0-OpenSSH_9.2p1"`},
		{"ssh", ssh, edge.CheckTLS, "TLS handshake: tls: first record does not look like a TLS handshake"},
		{"http", addrOf(plain.Listener), edge.CheckHTTPS, "TLS handshake: tls: first record does not look like a TLS handshake"},
		{"hangs up", hangsUp, edge.CheckTLS, "closed the connection in the TLS handshake"},
		{"hangs up", hangsUp, edge.CheckExchange, "closed the connection without an answer"},
		{"silent", silent, edge.CheckTLS, "no answer within 300ms"},
		{"silent", silent, edge.CheckHTTPS, "no answer within 300ms"},
		{"silent", silent, edge.CheckHTTP, "no answer within 300ms"},
		{"silent", silent, edge.CheckExchange, "no answer within 300ms"},
		{"silent", silent, edge.CheckTCP, "ok"},
		{"closed", closed.Addr().(*net.TCPAddr).AddrPort(), edge.CheckHTTPS, "connection refused"},
		{"any", silent, "guess", `no such health check: "guess"`},
	} {
		if got := checked(t, c.addr, edge.HealthCheck{Type: c.kind, Expect: "x"}); got != c.want {
			// What a server does that hangs up at once is a reset if we were quicker.
			if c.name != "hangs up" || got != "connection reset by peer" {
				t.Errorf("%s, %s: got %q, want %q", c.name, c.kind, got, c.want)
			}
		}
	}
	got := checked(t, garbage, edge.HealthCheck{Type: edge.CheckHTTP})
	if !strings.HasPrefix(got, `malformed MIME header: missing colon: "\x1b[31m\u202e<b> \x00x`) || len([]rune(got)) > maxError+1 {
		t.Errorf("garbage: got %q", got)
	}
}

func TestTLSCheck(t *testing.T) {
	cert, _, _ := certificate(t)
	var said lines
	names, protocols := make(chan string, 1), make(chan string, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "git.example.org:8443" || r.URL.Path != "/ready" {
			w.WriteHeader(http.StatusMisdirectedRequest)
		}
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{cert},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			names <- hello.ServerName
			protocols <- strings.Join(hello.SupportedProtos, ",")
			return nil, nil
		},
	}
	server.Config.ErrorLog = log.New(&said, "", 0)
	server.StartTLS()
	for _, c := range []struct {
		check           edge.HealthCheck
		want            string
		name, protocols string
	}{
		{edge.HealthCheck{Type: edge.CheckTLS}, "ok", "", ""},
		{edge.HealthCheck{Type: edge.CheckTLS, Host: "git.example.org"}, "ok", "git.example.org", ""},
		{edge.HealthCheck{Type: edge.CheckTLS, Host: "192.0.2.1"}, "ok", "", ""},
		{edge.HealthCheck{Type: edge.CheckHTTPS, Path: "/ready", Host: "git.example.org:8443"}, "ok", "git.example.org", "http/1.1"},
		{edge.HealthCheck{Type: edge.CheckHTTPS, Path: "/ready"}, "answered 421, want 200-399", "", "http/1.1"},
	} {
		if got := checked(t, addrOf(server.Listener), c.check); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.check, got, c.want)
		}
		if name, protocols := <-names, <-protocols; name != c.name || protocols != c.protocols {
			t.Errorf("%+v: asked for %q and %q, want %q and %q", c.check, name, protocols, c.name, c.protocols)
		}
	}
	server.Close() // waits for the connections
	if said.String() != "" {
		t.Errorf("the server has complained: %s", said.String())
	}
}

func TestTLSCheckOfAnOldServer(t *testing.T) {
	cert, _, _ := certificate(t)
	addr := serve(t, func(conn *net.TCPConn) {
		c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10})
		_, _ = io.Copy(io.Discard, c)
	})
	if got := checked(t, addr, edge.HealthCheck{Type: edge.CheckTLS}); got != "ok" {
		t.Errorf("got %q", got)
	}
}

// Servers log resets, and a reset is what they get whose words are not read to
// their end.
func TestConversationsEndWithoutAReset(t *testing.T) {
	cert, _, _ := certificate(t)
	// What a server sees that has more to say when its client has said goodbye.
	resets := make(chan bool, 1)
	ended := func(conn net.Conn, err error) {
		<-time.After(time.Millisecond)
		for range 2 { // the first is what brings the reset
			if err == nil {
				_, err = io.WriteString(conn, "one more thing")
			}
		}
		resets <- err != nil
	}
	for name, c := range map[string]struct {
		check edge.HealthCheck
		talk  func(*net.TCPConn)
	}{
		"TLS": {edge.HealthCheck{Type: edge.CheckTLS}, func(conn *net.TCPConn) {
			_, err := io.Copy(io.Discard, tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}))
			ended(conn, err)
		}},
		"exchange": {edge.HealthCheck{Type: edge.CheckExchange, Expect: "220"}, func(conn *net.TCPConn) {
			_, _ = io.WriteString(conn, strings.Repeat("220-what else there is to say\r\n", 500))
			_, err := io.Copy(io.Discard, conn)
			ended(conn, err)
		}},
	} {
		addr, n := serve(t, c.talk), 0
		for range 20 {
			if got := checked(t, addr, c.check); got != "ok" {
				t.Errorf("%s: got %q", name, got)
			}
			if <-resets {
				n++
			}
		}
		if n > 5 { // a busy machine may be later than partFor
			t.Errorf("%s: %d of 20 conversations ended with a reset", name, n)
		}
	}
}

// heardBytes keeps what a connection has brought.
type heardBytes struct {
	net.Conn
	all []byte
}

func (h *heardBytes) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.all = append(h.all, p[:n]...)
	return n, err
}

// OpenSSL calls a connection that just ends an error.
func TestTLSEndsWithCloseNotify(t *testing.T) {
	cert, _, _ := certificate(t)
	last := make(chan byte, 1)
	addr := serve(t, func(conn *net.TCPConn) {
		h := &heardBytes{Conn: conn}
		// In TLS 1.3 alerts look like data.
		_, _ = io.Copy(io.Discard, tls.Server(h, &tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12}))
		kind := byte(0)
		for record := h.all; len(record) >= 5; {
			kind = record[0]
			record = record[min(len(record), 5+int(record[3])<<8+int(record[4])):]
		}
		last <- kind
	})
	if got := checked(t, addr, edge.HealthCheck{Type: edge.CheckTLS}); got != "ok" {
		t.Errorf("got %q", got)
	}
	if kind := <-last; kind != 21 {
		t.Errorf("the last record is of type %d, want an alert (21)", kind)
	}
}

func TestErrorsFitIntoALine(t *testing.T) {
	for text, want := range map[string]string{
		"connection refused":                      "connection refused",
		"a\x1b[31mb\r\nc\x00d\u202ee\u2028f\xffg": "a?[31mb??c?d?e?f?g",
		strings.Repeat("ä", maxError):             strings.Repeat("ä", maxError),
		strings.Repeat("ä", maxError+1):           strings.Repeat("ä", maxError) + "…",
	} {
		if got := plain(errors.New(text)).Error(); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestExchange(t *testing.T) {
	mail := serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, "220 mail.example.org ESMTP\r\n")
		said := make([]byte, 512)
		for {
			n, err := conn.Read(said)
			if err != nil {
				return
			}
			answer := "502 no\r\n"
			if string(said[:n]) == "EHLO gatehouse\r\n" {
				answer = "250-mail.example.org\r\n250 STARTTLS\r\n"
			}
			_, _ = io.WriteString(conn, answer)
		}
	})
	cache := serve(t, func(conn *net.TCPConn) {
		said := make([]byte, 6)
		if _, err := io.ReadFull(conn, said); err == nil && string(said) == "PING\r\n" {
			_, _ = io.WriteString(conn, "+PONG\r\n")
		}
		_, _ = io.Copy(io.Discard, conn)
	})
	starts := serve(t, func(conn *net.TCPConn) { _, _ = io.WriteString(conn, "-LOADING\x1b[2J the dataset\r\nmore\r\n") })
	chatty := serve(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, strings.Repeat("blah\n", 1<<18))
	})
	for _, c := range []struct {
		addr         netip.AddrPort
		send, expect string
		want         string
	}{
		{mail, "", "220", "ok"},
		{mail, "", "220 mail.example.org ESMTP\r\n", "ok"},
		{mail, "EHLO gatehouse\r\n", "STARTTLS", "ok"},
		{mail, "", "250", `no "250" in the answer (first line: "220 mail.example.org ESMTP")`},
		{mail, "", "", "ok"},
		{cache, "PING\r\n", "+PONG", "ok"},
		{cache, "", "+PONG", "no answer within 300ms"},
		{starts, "", "+PONG", `no "+PONG" in the answer (first line: "-LOADING\x1b[2J the dataset")`},
		{chatty, "", "x", `no "x" in the answer (first line: "blah")`},
	} {
		got := checked(t, c.addr, edge.HealthCheck{Type: edge.CheckExchange, Send: c.send, Expect: c.expect})
		if got != c.want {
			t.Errorf("%q, %q: got %q, want %q", c.send, c.expect, got, c.want)
		}
	}
}

// A server that says a byte each tenth of a second, in time that costs nothing.
func TestTrickle(t *testing.T) {
	const greeting = "220 ready\r\n"
	const page = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
	for _, c := range []struct {
		text  string
		check edge.HealthCheck
		want  string
		took  time.Duration
	}{
		{greeting, edge.HealthCheck{Type: edge.CheckExchange, Expect: "ready"}, "ok", 900 * time.Millisecond},
		{greeting, edge.HealthCheck{Type: edge.CheckExchange, Expect: "ready\r\n"}, `no "ready\r\n" in the answer (first line: "220 ready")`, time.Second},
		{page, edge.HealthCheck{Type: edge.CheckHTTP}, "no answer within 1s", time.Second},
		{page, edge.HealthCheck{Type: edge.CheckHTTP, Timeout: 5 * time.Second}, "ok", 5 * time.Second},
		{page, edge.HealthCheck{Type: edge.CheckTLS}, "TLS handshake: tls: first record does not look like a TLS handshake", 500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := New(slog.New(slog.DiscardHandler), Options{})
			p.dial = func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, there) }()
				go func() {
					for i := range len(c.text) {
						<-time.After(100 * time.Millisecond)
						if _, err := io.WriteString(there, c.text[i:i+1]); err != nil {
							break
						}
					}
				}()
				return here, nil
			}
			began := time.Now()
			_, err := p.ask(t.Context(), edge.Probe{Kind: edge.ProbeBackend, Addr: tcpProbe(1).Addr, HealthCheck: c.check})
			if err == nil {
				err = errors.New("ok")
			}
			took := time.Since(began)
			wait(time.Second) // for the server to notice
			if err.Error() != c.want || took < c.took || took > c.took+partFor {
				t.Errorf("%s, %q: got %q after %v, want %q after %v", c.check.Type, c.check.Expect, err, took, c.want, c.took)
			}
		})
	}
}

// As it would be with HAProxy's accept-proxy, or nginx' proxy_protocol.
func TestChecksBeginWithAProxyProtocolHeader(t *testing.T) {
	for version, header := range map[edge.ProxyProtocol]string{
		"": "", edge.ProxyProtocolNone: "", edge.ProxyProtocolV1: "PROXY UNKNOWN\r\n",
		edge.ProxyProtocolV2: "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
	} {
		got := make(chan string, 1)
		addr := serve(t, func(conn *net.TCPConn) {
			said := make([]byte, len(header)+4)
			_, _ = io.ReadFull(conn, said)
			got <- string(said)
			_, _ = io.WriteString(conn, "PONG")
		})
		_, result := asksAt(t, edge.Probe{
			Kind: edge.ProbeBackend, Addr: addr, SendProxyProtocol: version,
			HealthCheck: edge.HealthCheck{Type: edge.CheckExchange, Send: "PING", Expect: "PONG"},
		})
		if said := <-got; said != header+"PING" || result != "ok" {
			t.Errorf("%q: sent %q, %s", version, said, result)
		}
	}
}

// stream answers with given bytes, in parts of a size, and counts what is read.
type stream struct {
	answer []byte
	part   int
	read   int
}

func (s *stream) Write(p []byte) (int, error) { return len(p), nil }
func (s *stream) Read(p []byte) (int, error) {
	if len(s.answer) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.part)], s.answer)
	s.answer = s.answer[n:]
	s.read += n
	return n, nil
}

// showable fails if an error is not one for the status page.
func showable(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := plain(err).Error()
	if text == "" || len([]rune(text)) > maxError+1 {
		t.Errorf("an error of %d characters: %q", len([]rune(text)), text)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		t.Errorf("an error that does not print: %q", text)
	}
}

func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), uint16(7))
	f.Add([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n"), uint16(1))
	f.Add([]byte("HTTP/1.1 100 \r\n\r\n"), uint16(0))
	f.Add([]byte("SSH-2.0-\x1b[31m\xff\r\n"), uint16(1000))
	f.Fuzz(func(t *testing.T, answer []byte, part uint16) {
		// What goes on for ever is cut.
		s := &stream{answer: append(answer, bytes.Repeat(answer, 2*maxAnswer/(len(answer)+1))...), part: int(part) + 1}
		status, header, err := get(s, "192.0.2.1:80", "/")
		showable(t, err)
		if s.read > maxAnswer {
			t.Errorf("%d bytes were read, want at most %d", s.read, maxAnswer)
		}
		if (err == nil) != (header != nil && status >= 101) {
			t.Errorf("status %d, header %v, and the error %v", status, header, err)
		}
		if err == nil && !strings.Contains(string(answer)+string(answer), "HTTP/") {
			t.Errorf("%q is an answer", answer)
		}
	})
}

func FuzzExchange(f *testing.F) {
	f.Add([]byte("220 ready\r\n"), "ready", uint16(0), false)
	f.Add([]byte("aaaaaab"), "aab", uint16(1), false)
	f.Add([]byte{0xff, 0x1b, '\n'}, "\xe2\x80\xae", uint16(2), true)
	f.Add([]byte{}, "", uint16(2), true)
	f.Add([]byte("0123456789"), "90123", uint16(4999), true)
	f.Add([]byte("0123456789"), "03", uint16(14999), true)
	f.Fuzz(func(t *testing.T, answer []byte, expect string, part uint16, endless bool) {
		if endless {
			answer = append(answer, bytes.Repeat(answer, 2*maxAnswer/(len(answer)+1))...)
		}
		s := &stream{answer: answer, part: int(part) + 1}
		err := exchange(s, "", expect)
		showable(t, err)
		if s.read > maxAnswer {
			t.Errorf("%d bytes were read, want at most %d", s.read, maxAnswer)
		}
		seen := answer[:min(len(answer), maxAnswer)]
		if want := len(seen) > 0 && strings.Contains(string(seen), expect); want != (err == nil) {
			t.Errorf("%q in %q: %v", expect, seen, err)
		}
	})
}

// A server that answers whatever and never ends is given up at the deadline.
func FuzzAnswersEndInTime(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"), byte(0))
	f.Add([]byte("220 ready"), byte(1))
	f.Add([]byte("\x16\x03\x03\x00\x02"), byte(2))
	f.Add([]byte("\x15\x03\x01\x00\x02\x01\x00"), byte(3))
	f.Fuzz(func(t *testing.T, answer []byte, which byte) {
		kinds := []edge.CheckType{edge.CheckHTTP, edge.CheckExchange, edge.CheckTLS, edge.CheckHTTPS}
		synctest.Test(t, func(t *testing.T) {
			p := New(slog.New(slog.DiscardHandler), Options{})
			p.dial = func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, there) }()
				go func() {
					for _, err := there.Write(answer); err == nil; _, err = there.Write(append(answer, 'x')) {
						<-time.After(10 * time.Millisecond)
					}
				}()
				return here, nil
			}
			began := time.Now()
			_, err := p.ask(t.Context(), edge.Probe{
				Kind: edge.ProbeBackend, Addr: tcpProbe(1).Addr,
				HealthCheck: edge.HealthCheck{Type: kinds[int(which)%len(kinds)], Timeout: time.Second, Expect: "ready"},
			})
			showable(t, err)
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v", took)
			}
			wait(time.Second) // for the server to notice
		})
	})
}

func TestSelfConnectIsARefusal(t *testing.T) {
	l := listenLoopback(t)
	l.Close()
	p := New(slog.New(slog.DiscardHandler), Options{})
	p.dial = (&net.Dialer{LocalAddr: l.Addr()}).DialContext
	_, err := p.ask(t.Context(), edge.Probe{Kind: edge.ProbeBackend, Addr: addrOf(l)})
	if want := "connection refused"; fmt.Sprint(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
