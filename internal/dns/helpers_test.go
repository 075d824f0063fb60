package dns

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/edge"
)

// serve starts a Server on loopback, with config's zones, or one that all of
// loopback may ask.
func serve(t *testing.T, c Config) (*Server, string) {
	t.Helper()
	c.Port = freePort(t)
	if c.CacheSize == 0 {
		c.CacheSize = 1000
	}
	if c.TTL == 0 {
		c.TTL = time.Minute
	}
	if c.Zones == nil {
		c.Zones = []Zone{{Name: "home"}}
	}
	for i := range c.Zones {
		if c.Zones[i].Devices == nil {
			c.Zones[i].Devices = []Device{{}}
		}
		if c.Zones[i].Clients == nil {
			c.Zones[i].Clients = prefixes("127.0.0.0/8", "::1/128")
		}
	}
	begun, passed := time.Now(), new(atomic.Int64)
	s := New(slog.New(slog.DiscardHandler), Options{Now: func() time.Duration { return time.Since(begun) + time.Duration(passed.Load()) }})
	clocks.Store(s, passed)
	start(t, s)
	if failures := s.Apply(c); len(failures) > 0 {
		t.Fatal(failures)
	}
	return s, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), c.Port).String()
}

// clocks are of servers of serve.
var clocks sync.Map

// pass has time pass for a server.
func pass(s *Server, d time.Duration) {
	passed, _ := clocks.Load(s)
	passed.(*atomic.Int64).Add(int64(d))
}

func start(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		_ = s.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// again applies another configuration to a server of serve.
func again(t *testing.T, s *Server, change func(*Config)) {
	t.Helper()
	s.mu.Lock()
	c := s.config
	s.mu.Unlock()
	change(&c)
	if failures := s.Apply(c); len(failures) > 0 {
		t.Fatal(failures)
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 20 {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort(c.LocalAddr().String())
		l, err := net.Listen("tcp", at.String())
		_ = c.Close()
		if err == nil {
			_ = l.Close()
			return at.Port()
		}
	}
	t.Fatal("no port is free")
	return 0
}

// stub is an upstream that answers as its test wants.
type stub struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked []*dns.Msg
	by    []string // "udp" or "tcp", of each
}

func (u *stub) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.asked)
}

func (u *stub) upstream() Upstream { return Upstream{Addr: u.addr} }

// newStub starts an upstream by UDP and TCP.
func newStub(t *testing.T, answer func(w dns.ResponseWriter, q *dns.Msg)) *stub {
	t.Helper()
	u := &stub{addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), freePort(t))} // not that of clients
	handle := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.mu.Lock()
		u.asked = append(u.asked, q)
		u.by = append(u.by, w.RemoteAddr().Network())
		u.mu.Unlock()
		answer(w, q)
	})
	for _, network := range []string{"udp", "tcp"} {
		runStub(t, &dns.Server{Addr: u.addr.String(), Net: network, Handler: handle})
	}
	return u
}

func runStub(t *testing.T, server *dns.Server) {
	t.Helper()
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case <-started:
	case err := <-failed:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Shutdown() })
}

// newTLSStub starts an upstream by TLS.
func newTLSStub(t *testing.T, cert tls.Certificate, answer dns.HandlerFunc) *stub {
	t.Helper()
	u := &stub{addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), freePort(t))} // not that of clients
	runStub(t, &dns.Server{
		Addr: u.addr.String(), Net: "tcp-tls", TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			u.mu.Lock()
			u.asked = append(u.asked, q)
			u.mu.Unlock()
			answer(w, q)
		}),
	})
	return u
}

// say answers with records as a zone file has them.
func say(records ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(reply(q, records...)) }
}

// reply is an answer; records after "--" are of the authority section.
func reply(q *dns.Msg, records ...string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	to := &m.Answer
	for _, text := range records {
		if text == "--" {
			to = &m.Ns
			continue
		}
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		*to = append(*to, rr)
	}
	return m
}

// ask asks a server, by "udp" or "tcp".
func ask(t *testing.T, network, server, name string, qtype uint16, options ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	for _, o := range options {
		o(m)
	}
	c := &dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: 4096}
	r, _, err := c.Exchange(m, server)
	if err != nil {
		t.Fatalf("%s %s by %s: %v", name, dns.TypeToString[qtype], network, err)
	}
	return r
}

func withEDNS(size uint16, do bool) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, do) }
}

// text is an answer as a person reads it: code, flags, and records by section.
func text(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	for _, flag := range []struct {
		name string
		set  bool
	}{{"aa", m.Authoritative}, {"tc", m.Truncated}, {"ad", m.AuthenticatedData}} {
		if flag.set {
			b.WriteString(" " + flag.name)
		}
	}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if opt, ok := rr.(*dns.OPT); ok {
				for _, o := range opt.Option {
					b.WriteString(" ede=" + o.String())
				}
				continue
			}
			b.WriteString("\n" + []string{"", "authority ", "extra "}[i] + strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return b.String()
}

func set(name, kind string, data ...string) edge.RecordSet {
	return edge.RecordSet{Name: name, Type: kind, TTL: 60, Data: data}
}
