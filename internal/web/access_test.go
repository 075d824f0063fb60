package web

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/status"
)

const secret = "correct-horse-battery-staple"

// site answers for a gatehouse that is not ready, for a reason.
func site(access Access, log *slog.Logger) http.Handler {
	s := New(Source{Status: func() status.Status { return status.Status{NotReady: []string{"the Kubernetes API"}} }}, log)
	return access.guard(s.Handler(), log)
}

func request(path string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = "10.11.12.5:4711"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	return r
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// With a token, who does not show it learns whether gatehouse lives and is
// ready, and nothing else.
func TestTokenIsAsked(t *testing.T) {
	handler := site(Access{Token: func() string { return secret }}, slog.New(slog.DiscardHandler))
	closed := site(Access{Token: func() string { return "" }}, slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		name, path, authorization string
		handler                   http.Handler
		want                      int
		says                      string // empty: nothing
	}{
		{"nothing shown", "/status.json", "", handler, 401, "token is wanted"},
		{"bearer", "/status.json", "Bearer " + secret, handler, 200, "notReady"},
		{"another spelling", "/status.json", "bEARER " + secret, handler, 200, "notReady"},
		{"password", "/status.json", basic("", secret), handler, 200, "notReady"},
		{"password of a user", "/status.json", basic("ann", secret), handler, 200, "notReady"},
		{"wrong", "/status.json", "Bearer " + secret + "r", handler, 401, "token is wanted"},
		{"a part of it", "/status.json", "Bearer " + secret[:20], handler, 401, "token is wanted"},
		{"as a user", "/status.json", basic(secret, ""), handler, 401, "token is wanted"},
		{"another scheme", "/status.json", "Digest " + secret, handler, 401, "token is wanted"},
		{"without a scheme", "/status.json", secret, handler, 401, "token is wanted"},
		{"the page", "/", "", handler, 401, "token is wanted"},
		{"metrics", "/metrics", "", handler, 401, "token is wanted"},
		{"what there is not", "/nothing", "", handler, 401, "token is wanted"},
		{"a way round", "/healthz/../status.json", "", handler, 401, "token is wanted"},
		{"health", "/healthz", "", handler, 200, ""},
		{"readiness", "/readyz", "", handler, 503, ""},
		{"readiness, shown", "/readyz", "Bearer " + secret, handler, 503, "waiting for the Kubernetes API"},
		{"readiness, wrong", "/readyz", "Bearer 1234567890123456", handler, 503, ""},
		{"no token in the file, nothing shown", "/status.json", "Bearer ", closed, 401, "token is wanted"},
		{"no token in the file, an empty password", "/status.json", basic("", ""), closed, 401, "token is wanted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(c.path)
			r.RemoteAddr = "192.0.2.1:1" // whose guesses are counted elsewhere
			if c.authorization != "" {
				r.Header.Set("Authorization", c.authorization)
			}
			w := httptest.NewRecorder()
			c.handler.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("%d, want %d: %s", w.Code, c.want, w.Body)
			}
			if body := w.Body.String(); !strings.Contains(body, c.says) || c.says == "" && body != "" || strings.Contains(body, secret) {
				t.Errorf("it says %q, want %q", body, c.says)
			}
			if asked := w.Header().Get("WWW-Authenticate") != ""; asked != (c.want == 401) {
				t.Errorf("WWW-Authenticate: %q", w.Header().Get("WWW-Authenticate"))
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q", name, got)
				}
			}
			if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
				t.Errorf("Content-Security-Policy: %q", csp)
			}
		})
	}
}

// Who shows wrong tokens is refused for a minute, also with the right one; others
// are not, and nobody learns the tokens from the log.
func TestGuessesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		handler := site(Access{Token: func() string { return secret }}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		try := func(remote, token string) int {
			r := request("/status.json", "Authorization", "Bearer "+token)
			r.RemoteAddr = remote
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code
		}
		const wrong = "guess-guess-guess-guess"
		for i := range maxGuesses {
			if code := try(fmt.Sprintf("10.11.12.5:%d", 4000+i), wrong); code != 401 {
				t.Fatalf("guess %d: %d", i, code)
			}
		}
		for _, c := range []struct {
			remote, token string
			want          int
		}{
			{"10.11.12.5:4711", wrong, 429},
			{"10.11.12.5:4711", secret, 429}, // or guessing would go on
			{"[::ffff:10.11.12.5]:4711", secret, 429},
			{"10.11.12.6:4711", secret, 200},
		} {
			if code := try(c.remote, c.token); code != c.want {
				t.Errorf("%s: %d, want %d", c.remote, code, c.want)
			}
		}
		time.Sleep(guessTime)
		if code := try("10.11.12.5:4711", secret); code != 200 {
			t.Errorf("a minute later: %d", code)
		}
		if strings.Count(log.String(), "too many wrong tokens") != 1 || !strings.Contains(log.String(), "client=10.11.12.5") {
			t.Errorf("the log says\n%s", log.String())
		}
		if strings.Contains(log.String(), wrong) || strings.Contains(log.String(), secret) {
			t.Errorf("a token is in the log:\n%s", log.String())
		}
	})
}

// A /64 is one client, and however many there are, few are remembered.
func TestGuessersAreBounded(t *testing.T) {
	g, now := newGuesses(), time.Now()
	for i := range 3 * maxGuessers {
		g.wrong(clientOf(fmt.Sprintf("[2001:db8:%x::1]:1", i)), now)
	}
	if len(g.by) > maxGuessers {
		t.Errorf("%d are remembered", len(g.by))
	}
	g = newGuesses()
	for i := range maxGuesses {
		g.wrong(clientOf(fmt.Sprintf("[2001:db8::%x]:1", i)), now)
	}
	if !g.tooMany(clientOf("[2001:db8::ffff]:1"), now) || g.tooMany(clientOf("[2001:db8:0:1::1]:1"), now) {
		t.Error("it goes by other than the /64")
	}
}

// A page that somebody else's name leads here, or another site's, gets nothing.
func TestOtherSitesGetNothing(t *testing.T) {
	local := site(Access{Local: true}, slog.New(slog.DiscardHandler))
	open := site(Access{}, slog.New(slog.DiscardHandler))
	for _, c := range []struct {
		name    string
		handler http.Handler
		headers []string
		want    int
	}{
		{"localhost", local, []string{"Host", "localhost:9180"}, 200},
		{"localhost, forwarded from another port", local, []string{"Host", "LOCALHOST"}, 200},
		{"an address", local, []string{"Host", "127.0.0.1:9180"}, 200},
		{"an IPv6 address", local, []string{"Host", "[::1]:9180"}, 200},
		{"an IPv6 address, port 80", local, []string{"Host", "[::1]"}, 200},
		{"somebody's name", local, []string{"Host", "rebind.example.org:9180"}, 403},
		{"a name that begins so", local, []string{"Host", "localhost.example.org"}, 403},
		{"an address in a name", local, []string{"Host", "127.0.0.1.example.org:9180"}, 403},
		{"no name", local, []string{"Host", ""}, 403},
		{"any name at a socket", open, []string{"Host", "gatehouse"}, 200},
		{"a fetch of another site", open, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"}, 403},
		{"another port of this machine", open, []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}, 403},
		{"in a frame of another site", open, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		{"a link", open, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{"typed", open, []string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{"the page itself", open, []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			c.handler.ServeHTTP(w, request("/status.json", c.headers...))
			if w.Code != c.want {
				t.Errorf("%d, want %d", w.Code, c.want)
			}
			if got := w.Header().Values("Access-Control-Allow-Origin"); got != nil {
				t.Errorf("others may read it: %q", got)
			}
		})
	}
}

// What is sent along is not waited for, and connections have a number.
func TestNobodyIsWaitedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Source{Status: func() status.Status { return status.Status{} }}, slog.New(slog.DiscardHandler))
	go func() { _ = s.Serve(t.Context(), l, Access{Local: true}) }()
	connect := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(4 * time.Second)) // less than a header may take
		return conn
	}
	conn := connect()
	fmt.Fprintf(conn, "GET /status.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		t.Errorf("with a body to come: %q %v", answer, err)
	}
	conn = connect()
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 3*maxHeaderBytes))
	if answer, _ := io.ReadAll(conn); !bytes.HasPrefix(answer, []byte("HTTP/1.1 431 ")) {
		t.Errorf("with long headers: %q", answer)
	}
	for range maxConnections {
		conn := connect()
		fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := conn.Read(make([]byte, 12)); err != nil {
			t.Fatal(err)
		}
	}
	conn = connect()
	fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	var late net.Error
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("one more is not closed: %v", err)
	}
}

// Of those connections one client has a part.
func TestNobodyTakesAllConnections(t *testing.T) {
	c := newCrowd(nil)
	one, other := netip.MustParseAddr("10.11.12.5"), netip.MustParseAddr("10.11.12.6")
	for i := range maxConnectionsPerClient {
		if !c.enter(one) {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if c.enter(one) {
		t.Error("one more is taken")
	}
	if !c.enter(other) {
		t.Error("somebody else is refused")
	}
	c.leave(one)
	if !c.enter(one) {
		t.Error("refused though one has ended")
	}
	for range maxConnectionsPerClient {
		c.leave(one)
	}
	c.leave(other)
	if c.all != 0 || len(c.of) != 0 {
		t.Errorf("%d, %v are left", c.all, c.of)
	}
}

// FuzzAuthorization: nobody gets in whose header does not have the token in its
// place, and everybody does who writes it as the RFCs say.
func FuzzAuthorization(f *testing.F) {
	for _, header := range []string{
		"", "Bearer", "Bearer ", "Bearer " + secret, "bearer  " + secret, "Bearer " + secret + " ", basic("", secret), basic("a:b", secret),
		basic(secret, ""), "Basic", "Basic " + secret, "Basic =", "Basic Og==", "Digest username=\"" + secret + "\"", secret, "Bearer " + secret + "," + secret,
	} {
		f.Add(header, secret, "ann")
	}
	f.Fuzz(func(t *testing.T, header, token, user string) {
		in := func(authorization string) bool {
			r := request("/status.json")
			r.Header["Authorization"] = []string{authorization}
			w := httptest.NewRecorder()
			Access{Token: func() string { return token }}.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
			return w.Code == 200
		}
		if in(header) {
			scheme, rest, _ := strings.Cut(header, " ")
			decoded, err := base64.StdEncoding.DecodeString(rest)
			_, password, _ := strings.Cut(string(decoded), ":")
			bearer := strings.EqualFold(scheme, "Bearer") && rest == token
			if !bearer && (!strings.EqualFold(scheme, "Basic") || err != nil || password != token) || token == "" {
				t.Errorf("%q is let in, and the token is %q", header, token)
			}
		}
		if token == "" {
			return
		}
		if !in("Bearer " + token) {
			t.Errorf("%q is not let in as a bearer token", token)
		}
		if !strings.Contains(user, ":") && !in(basic(user, token)) { // RFC 7617: a user name has no colon
			t.Errorf("%q is not let in as the password of %q", token, user)
		}
	})
}

// FuzzHost: a Host header that is let in names an address or localhost, as a
// browser would read it, and no name that can lead elsewhere.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"", "localhost", "localhost:9180", "127.0.0.1:9180", "[::1]:9180", "[::1]", "::1", "[fe80::1%25lo]:1", "localhost:", "localhost.", "a@localhost", "localhost:80:80", "[localhost]:80", "[[::1]]", "127.1", "0x7f.1"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !isLocal(host) {
			return
		}
		u, err := url.Parse("http://" + host + "/")
		if err != nil {
			return // no browser comes with that
		}
		name := u.Hostname()
		if _, err := netip.ParseAddr(name); err != nil && !strings.EqualFold(name, "localhost") {
			t.Errorf("%q is let in, which is the host %q", host, name)
		}
		if u.User != nil {
			t.Errorf("%q has a user", host)
		}
	})
}
