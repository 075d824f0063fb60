package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/proxyproto"
)

var testCertificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// tlsServer says its own name, and the one that it was asked for.
func tlsServer(t testing.TB, name string) edge.Backend {
	return upAt(server(t, func(c *net.TCPConn) {
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{testCertificate()}, NextProtos: []string{"acme-tls/1", "h2"}})
		if s.Handshake() == nil {
			fmt.Fprintf(s, "%s was asked for %s", name, s.ConnectionState().ServerName)
		}
		s.Close()
	}))
}

// sharing are frontends of one door. Each takes the names and has the backend.
func sharing(backends map[string]edge.Backend, hostnames map[string][]string) []edge.Frontend {
	var frontends []edge.Frontend
	for name, hosts := range hostnames {
		f := loopback(backends[name])
		f.Name, f.Hostnames = name, hosts
		frontends = append(frontends, f)
	}
	return frontends
}

// openShared applies frontends that share a door, and returns where it is.
func openShared(t testing.TB, r *Relay, frontends []edge.Frontend) netip.AddrPort {
	t.Helper()
	doors := r.Apply(frontends)
	for _, d := range doors {
		if d.Error != "" || d.Addr != doors[0].Addr {
			t.Fatalf("Apply = %+v, want one open door", doors)
		}
	}
	return doors[0].Addr
}

func askTLS(t testing.TB, addr netip.AddrPort, serverName string, protocols ...string) (string, error) {
	t.Helper()
	c := tls.Client(dial(t, addr), &tls.Config{ServerName: serverName, InsecureSkipVerify: true, NextProtos: protocols})
	defer c.Close()
	if err := c.Handshake(); err != nil {
		return "", err
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// statsOf are those of one frontend; the empty name is the door's own.
func statsOf(t testing.TB, r *Relay, name string) Stats {
	t.Helper()
	for _, s := range r.Stats() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no stats of %q in %+v", name, r.Stats())
	return Stats{}
}

func TestAServerNameDecidesWhoIsAsked(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{}
	for _, name := range []string{"git", "wild", "deep", "rest"} {
		backends[name] = tlsServer(t, name)
	}
	addr := openShared(t, r, sharing(backends, map[string][]string{
		"git": {"git.example.org"}, "wild": {"*.example.org"}, "deep": {"*.a.example.org", "a.example.org"}, "rest": {"*"},
	}))
	for asked, want := range map[string]string{
		"git.example.org": "git", "GIT.example.org": "git", "www.example.org": "wild", "a.b.example.org": "wild",
		"x.a.example.org": "deep", "a.example.org": "deep", "y.x.a.example.org": "deep",
		"example.org": "rest", "git.example.org.evil.net": "rest", "": "rest",
	} {
		got, err := askTLS(t, addr, asked)
		if err != nil || got != fmt.Sprintf("%s was asked for %s", want, asked) {
			t.Errorf("asked for %q: %q, %v; want %s", asked, got, err, want)
		}
	}
	// A certificate authority asks so, and wants no one else to answer (RFC 8737).
	if got, err := askTLS(t, addr, "git.example.org", "acme-tls/1"); err != nil || !strings.HasPrefix(got, "git ") {
		t.Errorf("tls-alpn-01: %q, %v", got, err)
	}
	if s := statsOf(t, r, "git"); s.Accepted != 3 || s.Names {
		t.Errorf("git: %+v, want 3 accepted", s)
	}
	if s := statsOf(t, r, ""); !s.Names || s.Accepted != 11 || s.Routed != 11 || s.Active != 0 {
		t.Errorf("the door: %+v, want 11 accepted and given away", s)
	}
}

// hello is what a TLS client begins with.
func clientHello(t testing.TB, serverName string) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: serverName, InsecureSkipVerify: true}).Handshake()
	}()
	defer client.Close()
	b := make([]byte, 4096)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// Byte by byte, and in as many TLS records: what is looked at more than once
// goes to the backend once, as it came.
func TestAHelloInPieces(t *testing.T) {
	r := newRelay(t, Options{})
	whole := clientHello(t, "git.example.org")
	var records []byte
	for _, b := range whole[5:] {
		records = append(records, 0x16, 3, 1, 0, 1, b)
	}
	got := make(chan []byte, 1)
	backend := upAt(server(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- b
	}))
	addr := openShared(t, r, sharing(map[string]edge.Backend{"git": backend, "rest": upAt(refusing(t))}, map[string][]string{"git": {"git.example.org"}, "rest": {"*"}}))
	for name, sent := range map[string][]byte{"bytes": whole, "records": records} {
		c := dial(t, addr)
		for _, b := range sent {
			c.Write([]byte{b})
		}
		c.Write([]byte("more"))
		c.CloseWrite()
		if b := <-got; !bytes.Equal(b, append(sent, "more"...)) {
			t.Errorf("%s: the backend got %d bytes, want the %d of the hello and 4 more", name, len(b), len(sent))
		}
	}
}

func TestWhatHasNoNameIsTurnedAway(t *testing.T) {
	whole := clientHello(t, "git.example.org")
	for name, c := range map[string]struct {
		sent  []byte
		close bool
		want  Reason
	}{
		"http":              {[]byte("GET / HTTP/1.1\r\n\r\n"), false, NotTLS},
		"another name":      {clientHello(t, "www.example.org"), false, UnknownName},
		"no name":           {clientHello(t, ""), false, NotTLS},
		"half a hello":      {whole[:50], true, NotTLS},
		"nothing":           {nil, true, ClientGone},
		"a hello too large": {append([]byte{0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, make([]byte, 100)...), false, NotTLS},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, Options{})
			addr := openShared(t, r, sharing(map[string]edge.Backend{"git": upAt(greeter(t, "git"))}, map[string][]string{"git": {"git.example.org"}}))
			conn := dial(t, addr)
			conn.Write(c.sent)
			if c.close {
				conn.CloseWrite()
			}
			if got, err := io.ReadAll(conn); len(got) > 0 || err == nil && !c.close {
				t.Errorf("got %q, %v; want a reset", got, err)
			}
			netnstest.Eventually(t, patience, "it is counted", func() bool { return statsOf(t, r, "").Failures[c.want] == 1 })
			if s := statsOf(t, r, ""); s.Active != 0 || s.Routed != 0 {
				t.Errorf("Stats = %+v", s)
			}
		})
	}
}

func TestWhatIsNotTLSGoesToTheDefault(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openShared(t, r, sharing(map[string]edge.Backend{"git": upAt(refusing(t)), "rest": upAt(server(t, echo))}, map[string][]string{"git": {"git.example.org"}, "rest": {"*"}}))
	c := dial(t, addr)
	io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || line != "SSH-2.0-OpenSSH_9.9\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

// A frontend that joins or leaves a shared door touches none of the others, and
// its connections live on.
func TestFrontendsJoinAndLeaveASharedDoor(t *testing.T) {
	r := newRelay(t, Options{})
	backends := map[string]edge.Backend{"a": upAt(server(t, echo)), "b": upAt(server(t, echo))}
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	frontends := func(hostnames map[string][]string) []edge.Frontend {
		all := sharing(backends, hostnames)
		for i := range all {
			all[i].Listen = edge.Listen{Addr: at.Addr(), Port: at.Port()}
		}
		return all
	}
	talk := func(c *net.TCPConn) error {
		io.WriteString(c, "!")
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	open := func(name string) *net.TCPConn {
		c := dial(t, at)
		hello := clientHello(t, name)
		c.Write(hello)
		if _, err := io.ReadFull(c, make([]byte, len(hello))); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return c
	}
	openShared(t, r, frontends(map[string][]string{"a": {"a.test"}, "b": {"b.test"}}))
	a, b := open("a.test"), open("b.test")
	openShared(t, r, frontends(map[string][]string{"a": {"a.test", "b.test"}}))
	if err := errors.Join(talk(a), talk(b)); err != nil {
		t.Error(err)
	}
	if s := statsOf(t, r, "b"); !s.Draining || s.Active != 1 {
		t.Errorf("b: %+v, want it to drain", s)
	}
	open("b.test") // is a's now
	if s := statsOf(t, r, "a"); s.Active != 2 || s.Draining {
		t.Errorf("a: %+v, want 2 connections", s)
	}
	// Alone it has all of the door, whatever comes.
	whole := frontends(map[string][]string{"a": nil})
	openShared(t, r, whole)
	c := dial(t, at)
	if err := errors.Join(talk(a), talk(b), talk(c)); err != nil {
		t.Error(err)
	}
	a.Close()
	b.Close()
	netnstest.Eventually(t, patience, "what has drained is forgotten", func() bool {
		for _, s := range r.Stats() {
			if s.Name == "b" {
				return false
			}
		}
		return true
	})
	// And back.
	openShared(t, r, frontends(map[string][]string{"a": {"a.test"}, "b": {"b.test"}}))
	if err := talk(c); err != nil {
		t.Error(err)
	}
	open("b.test")
	if got, err := askRaw(t, at, "no hello"); got != "" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v; want a reset", got, err)
	}
}

func askRaw(t testing.TB, addr netip.AddrPort, say string) (string, error) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	io.WriteString(c, say)
	c.CloseWrite()
	got, err := io.ReadAll(c)
	return string(got), err
}

// proxied is a server that tells what header it got, and what came behind it.
func proxied(t testing.TB) edge.Backend {
	return upAt(server(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		h, n, err := proxyproto.Parse(b)
		if err != nil {
			fmt.Fprintf(c, "no header: %q", b)
			return
		}
		fmt.Fprintf(c, "%s to %s: %s", h.Src, h.Dst, b[n:])
	}))
}

func TestBackendsAreToldTheClient(t *testing.T) {
	for _, version := range []edge.ProxyProtocol{edge.ProxyProtocolV1, edge.ProxyProtocolV2} {
		r := newRelay(t, Options{})
		f := loopback(proxied(t))
		f.SendProxyProtocol = version
		addr := openDoor(t, r, f)
		c := dial(t, addr)
		io.WriteString(c, "hello")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		if want := fmt.Sprintf("%s to %s: hello", c.LocalAddr(), addr); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", version, got, err, want)
		}
	}
}

func TestOnlyTrustedProxiesMaySayWhoTheClientIs(t *testing.T) {
	src, dst := netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443")
	v1 := string(proxyproto.AppendV1(nil, src, dst))
	v2 := string(proxyproto.AppendV2(nil, src, dst))
	start := func(t *testing.T, change func(*edge.Frontend)) (*Relay, netip.AddrPort) {
		r := newRelay(t, Options{})
		f := loopback(proxied(t))
		f.SendProxyProtocol = edge.ProxyProtocolV2
		f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		change(&f)
		return r, openDoor(t, r, f)
	}
	t.Run("trusted", func(t *testing.T) {
		for _, header := range []string{v1, v2} {
			_, addr := start(t, func(*edge.Frontend) {})
			if got, err := askRaw(t, addr, header+"hello"); got != "192.0.2.7:4711 to 203.0.113.1:443: hello" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		}
	})
	t.Run("the client's network counts", func(t *testing.T) {
		for network, want := range map[string]Reason{"127.0.0.0/8": SourceRange, "192.0.2.0/24": ""} {
			r, addr := start(t, func(f *edge.Frontend) { f.SourceRanges = []netip.Prefix{netip.MustParsePrefix(network)} })
			got, err := askRaw(t, addr, v2+"hello")
			if (want == "") != (err == nil) || settled(t, r).Failures[want] != uint64(len(want)/max(len(want), 1)) {
				t.Errorf("%s: got %q, %v, %v", network, got, err, settled(t, r).Failures)
			}
		}
	})
	t.Run("no header", func(t *testing.T) {
		r, addr := start(t, func(*edge.Frontend) {})
		if got, err := askRaw(t, addr, "hello"); got != "" || err == nil {
			t.Errorf("got %q, %v; want a reset", got, err)
		}
		if s := settled(t, r); s.Failures[ProxyHeader] != 1 {
			t.Errorf("failures = %v", s.Failures)
		}
	})
	t.Run("untrusted", func(t *testing.T) {
		for _, header := range []string{v1, v2} {
			r, addr := start(t, func(f *edge.Frontend) {
				f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			})
			c := dial(t, addr)
			for _, b := range []byte(header) { // it is not to be had in pieces, either
				if _, err := c.Write([]byte{b}); err != nil {
					break
				}
			}
			if got, _ := io.ReadAll(c); len(got) > 0 { // the reset may have been a write's
				t.Errorf("got %q", got)
			}
			if s := settled(t, r); s.Failures[ProxyUntrusted] != 1 {
				t.Errorf("failures = %v", s.Failures)
			}
			if got, err := askRaw(t, addr, "PROX"); !strings.HasSuffix(got, ": PROX") || err != nil {
				t.Errorf("what only looks like one: got %q, %v", got, err)
			}
		}
	})
	t.Run("a server that begins", func(t *testing.T) {
		_, addr := start(t, func(f *edge.Frontend) {
			f.SendProxyProtocol = edge.ProxyProtocolNone
			f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
			f.Backends = []edge.Backend{upAt(greeter(t, "220 mail"))}
		})
		if got, err := ask(t, addr); got != "220 mail" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("names", func(t *testing.T) {
		r := newRelay(t, Options{})
		frontends := sharing(map[string]edge.Backend{"git": proxied(t)}, map[string][]string{"git": {"git.example.org"}})
		frontends[0].SendProxyProtocol = edge.ProxyProtocolV1
		frontends[0].AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		addr := openShared(t, r, frontends)
		hello := string(clientHello(t, "git.example.org"))
		if got, err := askRaw(t, addr, v1+hello); got != "192.0.2.7:4711 to 203.0.113.1:443: "+hello || err != nil {
			t.Errorf("got %.60q, %v", got, err)
		}
	})
}

func TestAClientThatComesTooOftenIsBanned(t *testing.T) {
	r := newRelay(t, Options{})
	f := loopback(upAt(greeter(t, "hello")))
	f.MaxRatePerClient = edge.Rate{Connections: 3, Per: time.Hour}
	f.BanTime = time.Hour
	addr := openDoor(t, r, f)
	for i := range 6 {
		got, err := ask(t, addr)
		if (err == nil) != (i < 3) {
			t.Errorf("connection %d: %q, %v", i, got, err)
		}
	}
	s := settled(t, r)
	if s.Failures[RateLimit] != 1 || s.Failures[Banned] != 2 || s.Bans != 1 || len(s.Banned) != 1 ||
		s.Banned[0].Client != netip.MustParseAddr("127.0.0.1") || time.Until(s.Banned[0].Until) < 59*time.Minute {
		t.Errorf("Stats = %+v", s)
	}
	// Another frontend, or the same without a rate, knows nothing of it.
	f.MaxRatePerClient, f.BanTime = edge.Rate{}, 0
	r.Apply([]edge.Frontend{f})
	if got, err := ask(t, addr); got != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// Whatever clients do before they have said who they want: each is accounted
// for, and leaves nothing behind.
func TestClientsThatMisbehaveBeforeTheirName(t *testing.T) {
	r := newRelay(t, Options{})
	r.times.greeting = 200 * time.Millisecond
	frontends := sharing(map[string]edge.Backend{"git": upAt(server(t, echo))}, map[string][]string{"git": {"git.example.org"}})
	frontends[0].AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	addr := openShared(t, r, frontends)
	before := openDescriptors(t)
	hello := clientHello(t, "git.example.org")
	header := proxyproto.AppendV2(nil, netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443"))
	random := mathrand.New(mathrand.NewPCG(7, 8))
	const n = 500
	var clients sync.WaitGroup
	for range n {
		from, say := "127.0.0.1", hello
		if random.IntN(2) == 0 {
			from, say = "127.0.0.2", slices.Concat(header, hello)
		}
		say = bytes.Clone(say)
		if random.IntN(2) == 0 {
			say = say[:random.IntN(len(say)+1)]
		}
		if len(say) > 0 && random.IntN(4) == 0 {
			say[random.IntN(len(say))] ^= byte(1 + random.IntN(255))
		}
		at, how := random.IntN(len(say)+1), random.IntN(4)
		clients.Go(func() {
			d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			conn, err := d.Dial("tcp", addr.String())
			if err != nil {
				t.Error(err)
				return
			}
			c := conn.(*net.TCPConn)
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Write(say[:at])
			c.Write(say[at:])
			switch how {
			case 0:
				c.SetLinger(0) // a reset
			case 1:
				c.CloseWrite()
				io.Copy(io.Discard, c)
			case 2:
				c.Read(make([]byte, 1)) // until the relay ends it, or the echo comes
			}
		})
	}
	clients.Wait()
	netnstest.Eventually(t, patience, "all are gone", func() bool {
		return statsOf(t, r, "").Active == 0 && statsOf(t, r, "git").Active == 0 && r.live.Load() == 0
	})
	door, git := statsOf(t, r, ""), statsOf(t, r, "git")
	if door.Accepted != n || door.Routed != git.Accepted || git.Accepted == 0 {
		t.Errorf("accepted %d, routed %d, and the frontend has %d", door.Accepted, door.Routed, git.Accepted)
	}
	for _, s := range []Stats{door, git} {
		checkSums(t, s)
	}
	for _, why := range []Reason{NotTLS, ClientGone, HelloTimeout, ProxyHeader} {
		if door.Failures[why] == 0 {
			t.Errorf("none was turned away for %s: %v", why, door.Failures)
		}
	}
	netnstest.Eventually(t, patience, "no descriptor is left", func() bool { return openDescriptors(t) <= before })
}

// Who says nothing may be waiting for the server to begin.
func TestASilentClientIsGivenToTheDefault(t *testing.T) {
	r := newRelay(t, Options{})
	r.times.greeting = 100 * time.Millisecond
	backends := map[string]edge.Backend{"git": upAt(refusing(t)), "mail": upAt(greeter(t, "220 mail"))}
	addr := openShared(t, r, sharing(backends, map[string][]string{"git": {"git.example.org"}, "mail": {"*"}}))
	if got, err := ask(t, addr); got != "220 mail" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	// Half a hello is no silence.
	c := dial(t, addr)
	c.Write(clientHello(t, "git.example.org")[:100])
	if got, err := io.ReadAll(c); len(got) > 0 || err == nil {
		t.Errorf("got %q, %v; want a reset", got, err)
	}
	if s := statsOf(t, r, ""); s.Failures[HelloTimeout] != 1 {
		t.Errorf("Stats: %v", s.Failures)
	}
}

func TestClosingCutsWhoHasNotSaidTheirName(t *testing.T) {
	r := newRelay(t, Options{})
	addr := openShared(t, r, sharing(map[string]edge.Backend{"git": upAt(refusing(t))}, map[string][]string{"git": {"git.example.org"}}))
	c := dial(t, addr)
	netnstest.Eventually(t, patience, "it is accepted", func() bool { return statsOf(t, r, "").Waiting == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Close(ctx); err == nil {
		t.Error("Close has cut nobody")
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client got %v, want a reset", err)
	}
}

// The log is where an operator looks for who has had a port since when.
func TestTheLogSaysWhoHasWhichNames(t *testing.T) {
	var log bytes.Buffer
	r := newRelay(t, Options{})
	r.log = slog.New(slog.NewTextHandler(&log, nil)) // no client comes: nobody else writes
	said := func() string {
		defer log.Reset()
		var lines []string
		for line := range strings.Lines(log.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), "msg=")
			message, rest, _ := strings.Cut(line, " frontend=")
			message, _, _ = strings.Cut(message, " listen=")
			name, rest, _ := strings.Cut(rest, " ")
			if _, names, ok := strings.Cut(rest, "hostnames="); ok {
				names, _, _ = strings.Cut(names, " why=")
				name += " " + names
			}
			lines = append(lines, strings.TrimSuffix(strings.Trim(message, `"`)+": "+name, ": "))
		}
		slices.Sort(lines)
		return strings.Join(lines, "; ")
	}
	backend := upAt(netip.MustParseAddrPort("127.0.0.1:1"))
	backends := map[string]edge.Backend{"git": backend, "wiki": backend}
	shared := func(git ...string) []edge.Frontend {
		return sharing(backends, map[string][]string{"git": git, "wiki": {"wiki.example.org"}})
	}
	whole := sharing(backends, map[string][]string{"git": nil})[0]
	for _, step := range []struct {
		frontends []edge.Frontend
		want      string
	}{
		{shared("git.example.org"), "frontend opened: git [git.example.org]; frontend opened: wiki [wiki.example.org]"},
		{shared("git.example.org"), ""},
		{shared("code.example.org", "git.example.org"), `frontend takes names: git "[code.example.org git.example.org]"`},
		{[]edge.Frontend{whole}, "frontend closed: git; frontend closed: wiki; frontend takes the whole port: git"},
		{[]edge.Frontend{whole}, ""},
		{shared("git.example.org"), "frontend takes names: git [git.example.org]; frontend takes names: wiki [wiki.example.org]"},
		{nil, "frontend closed: git; frontend closed: wiki; listener closed"},
	} {
		r.Apply(step.frontends)
		if got := said(); got != step.want {
			t.Errorf("the log says %q, want %q", got, step.want)
		}
	}
}

// An urgent byte, which is not read, ends what can be looked at, and the
// client's end is behind it.
func TestAnUntrustedHeaderDoesNotHideBehindAnUrgentByte(t *testing.T) {
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, echo)))
	f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	addr := openDoor(t, r, f)
	header := proxyproto.AppendV1(nil, netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443"))
	for at := range 7 {
		c := dial(t, addr)
		c.Write(header[:at])
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { _ = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) }) // may be reset by now
		c.Write(header[at:])
		c.CloseWrite()
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("the urgent byte is behind %d others: the backend got %q", at, got)
		}
	}
	if s := settled(t, r); s.Failures[ProxyUntrusted] != 7 {
		t.Errorf("failures = %v", s.Failures)
	}
}

func TestAResetOfAnUntrustedClientIsAReset(t *testing.T) {
	got := make(chan error, 1)
	r := newRelay(t, Options{})
	f := loopback(upAt(server(t, func(c *net.TCPConn) {
		io.WriteString(c, "!")
		_, err := io.ReadAll(c)
		got <- err
	})))
	f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	addr := openDoor(t, r, f)
	for range 20 {
		c := dial(t, addr)
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
		c.Close()
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the backend got %v, want a reset", err)
		}
	}
}

// Whom a client wants is not known, and the door changes.
func TestADoorChangesBeforeAClientHasSaidItsName(t *testing.T) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	named := loopback(upAt(greeter(t, "220 mail")))
	named.Listen, named.Hostnames = edge.Listen{Addr: at.Addr(), Port: at.Port()}, []string{"a.test"}
	whole := named
	whole.Hostnames = nil
	forbidden := named
	forbidden.SourceRanges = []netip.Prefix{}
	fromProxies := whole
	fromProxies.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for name, c := range map[string]struct {
		before, then []edge.Frontend
		want         string
	}{
		"and is one frontend's":       {[]edge.Frontend{named}, []edge.Frontend{whole}, "220 mail"},
		"and closes":                  {[]edge.Frontend{named}, nil, ""},
		"and is closed to the client": {[]edge.Frontend{named}, []edge.Frontend{forbidden}, ""},
		"and trusts no proxies":       {[]edge.Frontend{fromProxies}, []edge.Frontend{whole}, "220 mail"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRelay(t, Options{})
			openShared(t, r, c.before)
			conn := dial(t, at)
			netnstest.Eventually(t, patience, "it is accepted", func() bool {
				return slices.ContainsFunc(r.Stats(), func(s Stats) bool { return s.Waiting == 1 })
			})
			began := time.Now()
			r.Apply(c.then)
			got, err := io.ReadAll(conn)
			if string(got) != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("that took %v", took)
			}
		})
	}
}

// The proxy has said who the client is, and the client nothing.
func TestASilentClientOfAProxyIsGivenToTheDefault(t *testing.T) {
	r := newRelay(t, Options{})
	r.times.greeting = 100 * time.Millisecond
	frontends := sharing(map[string]edge.Backend{"mail": upAt(greeter(t, "220 mail"))}, map[string][]string{"mail": {"*"}})
	frontends[0].AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	addr := openShared(t, r, frontends)
	c := dial(t, addr)
	c.Write(proxyproto.AppendV2(nil, netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443")))
	if got, err := io.ReadAll(c); string(got) != "220 mail" || err != nil {
		t.Errorf("got %q, %v; failures %v", got, err, statsOf(t, r, "").Failures)
	}
}

// A client that was counted by its own address turns out to be a proxy.
func TestAProxyIsNotCountedAsAClient(t *testing.T) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	frontends := sharing(map[string]edge.Backend{"mail": upAt(server(t, echo))}, map[string][]string{"mail": {"*"}})
	frontends[0].Listen = edge.Listen{Addr: at.Addr(), Port: at.Port()}
	frontends[0].MaxConnectionsPerClient = 1
	r := newRelay(t, Options{})
	openShared(t, r, frontends)
	c := dial(t, at)
	netnstest.Eventually(t, patience, "it is accepted", func() bool { return statsOf(t, r, "").Waiting == 1 })
	direct := frontends[0].AcceptProxyProtocol
	frontends[0].AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	openShared(t, r, frontends)
	header := proxyproto.AppendV2(nil, netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443"))
	c.Write(header)
	say(t, c, "hello")
	c.Close()
	netnstest.Eventually(t, patience, "it is over", func() bool { return statsOf(t, r, "mail").Active == 0 })
	frontends[0].AcceptProxyProtocol = direct
	openShared(t, r, frontends)
	if got, err := askRaw(t, at, "hello"); got != "hello" || err != nil {
		t.Errorf("got %q, %v; failures %v", got, err, statsOf(t, r, "").Failures)
	}
}

// Those that a frontend had when all of the door was its own.
func TestADoorIsSharedWhileConnectionsAreThere(t *testing.T) {
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	whole := loopback(upAt(server(t, echo)))
	whole.Name, whole.Listen = "a", edge.Listen{Addr: at.Addr(), Port: at.Port()}
	shared := func(f edge.Frontend) edge.Frontend {
		f.Hostnames = []string{"*", "a.test"}
		return f
	}
	t.Run("limits", func(t *testing.T) {
		f := whole
		f.MaxConnections, f.MaxConnectionsPerClient = 1, 1
		r := newRelay(t, Options{})
		openDoor(t, r, f)
		before := dial(t, at)
		say(t, before, "before")
		openShared(t, r, []edge.Frontend{shared(f)})
		after := dial(t, at)
		say(t, after, "after")
		say(t, before, "still")
		if got, err := ask(t, at); err == nil {
			t.Errorf("got %q from a frontend that has one already", got)
		}
		if s := statsOf(t, r, "a"); s.Active != 1 {
			t.Errorf("Stats = %+v", s)
		}
	})
	t.Run("idle", func(t *testing.T) {
		f := whole
		f.IdleTimeout = 300 * time.Millisecond
		r := newRelay(t, Options{})
		openDoor(t, r, f)
		before := dial(t, at)
		say(t, before, "before")
		openShared(t, r, []edge.Frontend{shared(f)})
		if _, err := before.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want it to end because it is idle", err)
		}
	})
	t.Run("held", func(t *testing.T) {
		f := whole
		backend := refusing(t)
		f.Backends = []edge.Backend{inState(upAt(backend), edge.Pending)}
		r := newRelay(t, Options{})
		openDoor(t, r, f)
		c := dial(t, at)
		io.WriteString(c, "hello")
		netnstest.Eventually(t, patience, "it is held", func() bool { return statsOf(t, r, "a").Backends[0].Failures[Refused] > 0 })
		openShared(t, r, []edge.Frontend{shared(f)})
		startAt(t, backend, echo)
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); string(got) != "hello" || err != nil {
			t.Errorf("got %q, %v; %+v", got, err, r.Stats())
		}
		for _, s := range r.Stats() {
			checkSums(t, s)
		}
	})
}

// Frontends share a door, have it alone, join and leave it, and change their
// terms while clients of every kind come. Nothing is counted twice or never.
func TestADoorIsSharedAndAloneUnderLoad(t *testing.T) {
	r := newRelay(t, Options{})
	r.times.greeting = 300 * time.Millisecond
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	good, bad := upAt(server(t, echo)), refusing(t)
	hellos := [][]byte{clientHello(t, "a.test"), clientHello(t, "b.test"), clientHello(t, "")}
	header := proxyproto.AppendV2(nil, netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("203.0.113.1:443"))
	random := mathrand.New(mathrand.NewPCG(1, 2))
	frontends := func() []edge.Frontend {
		var all []edge.Frontend
		for name, hosts := range map[string][]string{"a": {"a.test"}, "b": {"b.test"}, "c": {"*"}} {
			if random.IntN(3) == 0 {
				continue
			}
			f := loopback(good, inState(upAt(bad), []edge.BackendState{edge.Up, edge.Pending, edge.Down}[random.IntN(3)]))
			f.Name, f.Hostnames, f.Listen = name, hosts, edge.Listen{Addr: at.Addr(), Port: at.Port()}
			f.MaxConnections, f.MaxConnectionsPerClient = random.IntN(2)*100, random.IntN(2)*20
			f.Balance = []edge.Balance{edge.BalanceRandom, edge.BalanceLeastConnections, edge.BalanceSource}[random.IntN(3)]
			all = append(all, f)
		}
		var proxies []netip.Prefix
		if random.IntN(2) == 0 {
			proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		}
		for i := range all {
			all[i].AcceptProxyProtocol = proxies
		}
		if len(all) > 0 && random.IntN(3) == 0 {
			all = all[:1]
			all[0].Hostnames = nil
		}
		return all
	}
	var stop atomic.Bool
	var clients sync.WaitGroup
	for i := range 12 {
		random := mathrand.New(mathrand.NewPCG(3, uint64(i)))
		clients.Go(func() {
			for !stop.Load() {
				conn, err := net.DialTimeout("tcp", at.String(), time.Second)
				if err != nil {
					continue
				}
				c := conn.(*net.TCPConn)
				c.SetDeadline(time.Now().Add(200 * time.Millisecond))
				say := slices.Clone(hellos[random.IntN(3)])
				if random.IntN(2) == 0 {
					say = slices.Concat(header, say)
				}
				if random.IntN(4) == 0 {
					say = say[:random.IntN(len(say))]
				}
				c.Write(say)
				switch random.IntN(3) {
				case 0:
					c.SetLinger(0)
				case 1:
					c.CloseWrite()
					io.Copy(io.Discard, c)
				case 2:
					io.ReadFull(c, make([]byte, len(say)))
				}
				c.Close()
			}
		})
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		r.Apply(frontends())
		for _, s := range r.Stats() {
			checkSums(t, s)
		}
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	clients.Wait()
	last := sharing(map[string]edge.Backend{"a": good, "b": good, "c": good}, map[string][]string{"a": {"a.test"}, "b": {"b.test"}, "c": {"*"}})
	for i := range last {
		last[i].Listen = edge.Listen{Addr: at.Addr(), Port: at.Port()}
		last[i].Balance = edge.BalanceLeastConnections
	}
	r.Apply(last)
	netnstest.Eventually(t, patience, "all are gone", func() bool {
		r.Stats()
		return r.live.Load() == 0
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for d := range r.allLocked() {
		if d.active.Load() != 0 || d.asking.Load() != 0 || len(d.clients.of) != 0 || len(d.askers.of) != 0 {
			t.Errorf("%v: active %d, asking %d, clients %v, askers %v", d.key, d.active.Load(), d.asking.Load(), d.clients.of, d.askers.of)
		}
		for addr, n := range d.loads {
			if n.Load() != 0 {
				t.Errorf("%s has %d connections", addr, n.Load())
			}
		}
	}
	for _, l := range r.loops {
		l.call(func() {
			if len(l.doors) > len(r.doors)+len(last) || l.load.Load() != 0 {
				t.Errorf("a loop has %d doors, load %d", len(l.doors), l.load.Load())
			}
			for _, tl := range l.doors {
				for addr, b := range tl.backends {
					if b.users != 0 {
						t.Errorf("%s has %d users", addr, b.users)
					}
				}
			}
		})
	}
}
