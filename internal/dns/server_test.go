package dns

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/edge"
)

func home(sets ...edge.RecordSet) Config {
	return Config{Domain: "home.example", ServiceDomain: "cluster.home.example", NameServer: "gatehouse.home.example", Zones: []Zone{{Name: "home", Records: edge.Records{Sets: sets}}}}
}

func TestNamesOfTheSiteByUDPAndTCP(t *testing.T) {
	_, at := serve(t, home(site...))
	for _, network := range []string{"udp", "tcp"} {
		for range 2 { // from the table, from the cache
			r := ask(t, network, at, "NaS.hOmE.example", dns.TypeA)
			if got := text(r); got != "NOERROR aa\nNaS.hOmE.example. 60 IN A 10.0.0.101" {
				t.Errorf("by %s: %s", network, got)
			}
			if got := r.Question[0].Name; got != "NaS.hOmE.example." {
				t.Errorf("by %s: asked for %s", network, got)
			}
		}
	}
}

func TestChangedNamesAreAnsweredAtOnce(t *testing.T) {
	up := newStub(t, say("www.example.net. 300 IN A 198.51.100.7"))
	c := home(set("nas.home.example", "A", "10.0.0.101"))
	c.Upstreams = []Upstream{up.upstream()}
	s, at := serve(t, c)
	ask(t, "udp", at, "nas.home.example", dns.TypeA)
	ask(t, "udp", at, "www.example.net", dns.TypeA)
	again(t, s, func(c *Config) {
		zone := c.Zones[0]
		zone.Records.Sets = []edge.RecordSet{set("nas.home.example", "A", "10.0.0.102")}
		c.Zones = []Zone{zone}
	})
	if got := text(ask(t, "udp", at, "nas.home.example", dns.TypeA)); !strings.Contains(got, "10.0.0.102") {
		t.Error(got)
	}
	if ask(t, "udp", at, "www.example.net", dns.TypeA); up.count() != 1 {
		t.Errorf("the upstream was asked %d times: what others have said stays", up.count())
	}
	// A name that was others' and is the site's now.
	again(t, s, func(c *Config) {
		zone := c.Zones[0]
		zone.Records.Sets = []edge.RecordSet{set("www.example.net", "A", "10.0.0.9")}
		c.Zones = []Zone{zone}
	})
	if got := text(ask(t, "udp", at, "www.example.net", dns.TypeA)); !strings.Contains(got, "10.0.0.9") {
		t.Error(got)
	}
}

// What was an alias of the site's is what its owner says once it is not.
func TestAnAliasGoes(t *testing.T) {
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) { say(q.Question[0].Name+" 300 IN A 198.51.100.7")(w, q) })
	c := home(set("www.example.org", "CNAME", "pages.example.net"))
	c.Upstreams = []Upstream{up.upstream()}
	s, at := serve(t, c)
	if got := text(ask(t, "udp", at, "www.example.org", dns.TypeA)); !strings.Contains(got, "pages.example.net") {
		t.Fatal(got)
	}
	again(t, s, func(c *Config) {
		c.Zones = []Zone{{Name: c.Zones[0].Name, Devices: c.Zones[0].Devices, Clients: c.Zones[0].Clients}}
	})
	if got := text(ask(t, "udp", at, "www.example.org", dns.TypeA)); strings.Contains(got, "pages.example.net") {
		t.Error(got)
	}
}

func TestCachedUntilItsTimeIsOver(t *testing.T) {
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		switch strings.ToLower(q.Question[0].Name) {
		case "www.example.net.":
			_ = w.WriteMsg(reply(q, "www.example.net. 300 IN CNAME pages.example.net.", "pages.example.net. 200 IN A 198.51.100.7"))
		case "none.example.net.":
			m := reply(q, "--", "example.net. 900 IN SOA ns.example.net. x.example.net. 1 2 3 4 100")
			m.Rcode = dns.RcodeNameError
			_ = w.WriteMsg(m)
		case "zero.example.net.":
			_ = w.WriteMsg(reply(q, "zero.example.net. 0 IN A 198.51.100.8"))
		}
	})
	s, at := serve(t, Config{Upstreams: []Upstream{up.upstream()}})
	for range 2 {
		if got := text(ask(t, "udp", at, "www.example.net", dns.TypeA)); got != "NOERROR\nwww.example.net. 300 IN CNAME pages.example.net.\npages.example.net. 200 IN A 198.51.100.7" {
			t.Error(got)
		}
		// RFC 2308 §5: the smaller of the SOA's TTL and its minimum.
		if got := text(ask(t, "udp", at, "none.example.net", dns.TypeA)); got != "NXDOMAIN\nauthority example.net. 100 IN SOA ns.example.net. x.example.net. 1 2 3 4 100" {
			t.Error(got)
		}
	}
	if up.count() != 2 {
		t.Errorf("asked %d times, want 2", up.count())
	}
	pass(s, 50*time.Second)
	if got := text(ask(t, "udp", at, "www.example.net", dns.TypeA)); got != "NOERROR\nwww.example.net. 250 IN CNAME pages.example.net.\npages.example.net. 150 IN A 198.51.100.7" {
		t.Error(got)
	}
	pass(s, 60*time.Second)
	ask(t, "udp", at, "none.example.net", dns.TypeA)
	ask(t, "udp", at, "www.example.net", dns.TypeA)
	if up.count() != 3 {
		t.Errorf("asked %d times, want 3: one answer is over its time", up.count())
	}
	for range 2 {
		if got := text(ask(t, "udp", at, "zero.example.net", dns.TypeA)); got != "NOERROR\nzero.example.net. 0 IN A 198.51.100.8" {
			t.Error(got)
		}
	}
	if up.count() != 5 {
		t.Errorf("asked %d times, want 5: what has no time is not kept", up.count())
	}
}

func TestEDNS(t *testing.T) {
	_, at := serve(t, home(site...))
	r := ask(t, "udp", at, "nas.home.example", dns.TypeA, withEDNS(4096, true))
	if opt := r.IsEdns0(); opt == nil || opt.UDPSize() != udpSize || !opt.Do() || opt.Version() != 0 {
		t.Errorf("EDNS: %v", r.Extra)
	}
	if r := ask(t, "udp", at, "nas.home.example", dns.TypeA); r.IsEdns0() != nil {
		t.Error("EDNS to a client that has not said that it knows it")
	}
	r = ask(t, "udp", at, "nas.home.example", dns.TypeA, withEDNS(4096, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })
	if r.Rcode != dns.RcodeBadVers || len(r.Answer) != 0 {
		t.Errorf("version 1 of EDNS: %s", text(r))
	}
	r = ask(t, "udp", at, "nas.home.example", dns.TypeA, withEDNS(4096, false), func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) })
	if r.Rcode != dns.RcodeFormatError {
		t.Errorf("two OPT records: %s", text(r))
	}
}

func TestOddQuestions(t *testing.T) {
	_, at := serve(t, home(site...))
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		want   int
	}{
		"another class": {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"an update":     {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"two questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"no question":   {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		"a transfer":    {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		"mail agents":   {func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMAILA }, dns.RcodeNotImplemented},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if r := ask(t, network, at, "home.example", dns.TypeA, c.change); r.Rcode != c.want {
				t.Errorf("%s by %s: %s", name, network, text(r))
			}
		}
	}
	// Not recursive: what others have said is nobody's business.
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false }); r.Rcode != dns.RcodeRefused {
		t.Error(text(r))
	}
	if r := ask(t, "udp", at, "www.example.net", dns.TypeANY); text(r) != "NOERROR\nwww.example.net. 60 IN HINFO \"RFC8482\" \"\"" {
		t.Error(text(r))
	}
}

// A server that answers answers would talk with another one for ever.
func TestAnswersAreNotAnswered(t *testing.T) {
	_, at := serve(t, home(site...))
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := new(dns.Msg)
	m.SetQuestion("nas.home.example.", dns.TypeA)
	m.Response = true
	wire, _ := m.Pack()
	for _, junk := range [][]byte{wire, {}, {1, 2, 3}} {
		if _, err := conn.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	m.Response, m.Id = false, 4242
	wire, _ = m.Pack()
	_, _ = conn.Write(wire)
	buf := make([]byte, 512)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(buf); err != nil || n < 2 || binary.BigEndian.Uint16(buf) != 4242 {
		t.Errorf("%v: the first answer is %x, want that of the question", err, buf[:n])
	}
}

func TestLargeAnswersGoByTCP(t *testing.T) {
	var big []string
	for i := range 200 {
		big = append(big, fmt.Sprintf("10.1.0.%d", i))
	}
	_, at := serve(t, home(set("big.home.example", "A", big...)))
	for _, size := range []uint16{0, 512, 1232, 4096, 65535} {
		r := ask(t, "udp", at, "big.home.example", dns.TypeA, func(m *dns.Msg) {
			if size > 0 {
				m.SetEdns0(size, false)
			}
		})
		if !r.Truncated || len(r.Answer) != 0 {
			t.Errorf("%d bytes: %d records", size, len(r.Answer))
		}
	}
	if r := ask(t, "tcp", at, "big.home.example", dns.TypeA); r.Truncated || len(r.Answer) != 200 {
		t.Errorf("by TCP: %d records", len(r.Answer))
	}
}

// One connection, many questions at once; the answers are all there.
func TestPipelined(t *testing.T) {
	slow := make(chan struct{})
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-slow
		say("slow.example.net. 60 IN A 198.51.100.1")(w, q)
	})
	c := home(site...)
	c.Upstreams = []Upstream{up.upstream()}
	_, at := serve(t, c)
	conn, err := dns.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	for id, name := range []string{"slow.example.net.", "nas.home.example."} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		m.Id = uint16(id)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []uint16{1, 0} {
		r, err := conn.ReadMsg()
		if err != nil || r.Id != want || len(r.Answer) != 1 {
			t.Fatalf("%v: %v, want the answer to question %d", err, r, want)
		}
		if want == 1 {
			close(slow)
		}
	}
}

func TestTCPConnectionsPerClient(t *testing.T) {
	_, at := serve(t, home(site...))
	var conns []net.Conn
	for range mostConnsPerClient + 1 {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	last := conns[mostConnsPerClient]
	_ = last.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("one connection too many: %v", err)
	}
	_ = conns[0].Close()
	until(t, func() bool {
		c := &dns.Client{Net: "tcp"}
		m := new(dns.Msg)
		m.SetQuestion("nas.home.example.", dns.TypeA)
		r, _, err := c.Exchange(m, at)
		return err == nil && len(r.Answer) == 1
	})
}

// A connection that announces more than any question has is closed.
func TestLongQuestionByTCP(t *testing.T) {
	_, at := serve(t, home(site...))
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{0xff, 0xff})
	_ = conn.SetReadDeadline(time.Now().Add(tcpIdle / 2))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has not come")
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	c := home(site...)
	c.Zones[0].Clients = prefixes("10.0.0.0/24")
	_, at := serve(t, c)
	for _, network := range []string{"udp", "tcp"} {
		if r := ask(t, network, at, "nas.home.example", dns.TypeA); r.Rcode != dns.RcodeRefused || len(r.Answer) != 0 {
			t.Errorf("by %s: %s", network, text(r))
		}
	}
}

func TestTooManyQuestions(t *testing.T) {
	c := home(site...)
	c.RatePerClient = 5
	s, at := serve(t, c)
	conn, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := new(dns.Msg)
	m.SetQuestion("nas.home.example.", dns.TypeA)
	wire, _ := m.Pack()
	for range 100 {
		_, _ = conn.Write(wire)
	}
	until(t, func() bool { return s.Stats().Zones[0].UDP == 100 })
	full, slipped := 0, 0
	buf := make([]byte, 512)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := conn.Read(buf)
		if err != nil {
			break
		}
		r := new(dns.Msg)
		if err := r.Unpack(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if r.Truncated && len(r.Answer) == 0 {
			slipped++
		} else {
			full++
		}
	}
	limited := s.Stats().Zones[0].Limited
	if limited == 0 || full+int(limited) != 100 || slipped < int(limited)/2-1 || slipped > int(limited)/2+1 {
		t.Errorf("%d answered, %d limited, %d of these asked to come by TCP", full, limited, slipped)
	}
	if r := ask(t, "tcp", at, "nas.home.example", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("by TCP: %s", text(r))
	}
}

func TestClientKey(t *testing.T) {
	for a, want := range map[string]string{"10.0.0.7": "10.0.0.7", "fd00:1:2:3:4::5": "fd00:1:2:3::", "fe80::17": "fe80::17"} {
		if got := clientKey(netip.MustParseAddr(a)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}

func TestRebindingIsHeldBack(t *testing.T) {
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		switch q.Question[0].Qtype {
		case dns.TypeHTTPS:
			say(name+" 60 IN HTTPS 1 . alpn=h2 ipv4hint=10.0.0.1")(w, q)
		case dns.TypeAAAA:
			say(name+" 60 IN AAAA ::ffff:10.0.0.1", name+" 60 IN AAAA fd00:7::5", name+" 60 IN AAAA 2001:db8:8::5")(w, q)
		default:
			say(name+" 60 IN A 10.0.0.1", name+" 60 IN A 9.9.9.9")(w, q)
		}
	})
	c := home(set("ours.home.example", "CNAME", "elsewhere.example.net"))
	c.Upstreams = []Upstream{up.upstream()}
	c.Forwards = []Forward{{"corp.example", []Upstream{up.upstream()}}}
	c.Rebinding = []string{"lab.example.net"}
	s, at := serve(t, c)
	for _, q := range []struct {
		name, qtype string
		want        int
	}{
		{"evil.example", "A", 1},
		{"evil.example", "AAAA", 1},
		{"evil.example", "HTTPS", 0},
		{"x.lab.example.net", "A", 2},
		{"x.corp.example", "A", 2},
		{"x.corp.example", "HTTPS", 1},
		{"notlab.example.net", "A", 1},
		{"ours.home.example", "A", 3}, // an alias that the site itself has made
	} {
		r := ask(t, "udp", at, q.name, dns.StringToType[q.qtype])
		if len(r.Answer) != q.want || r.Rcode != dns.RcodeSuccess {
			t.Errorf("%s %s: %s, want %d records", q.name, q.qtype, text(r), q.want)
		}
	}
	if got := s.Stats().Zones[0].Rebinding; got != 4 {
		t.Errorf("held back %d times, want 4", got)
	}
	// What is kept was answered by the list of before.
	again(t, s, func(c *Config) { c.Rebinding = nil })
	if r := ask(t, "udp", at, "x.lab.example.net", dns.TypeA); len(r.Answer) != 1 {
		t.Errorf("not in the list any more: %s", text(r))
	}
	if r := ask(t, "udp", at, "evil.example", dns.TypeHTTPS, withEDNS(1232, false)); !strings.Contains(text(r), "Filtered") {
		t.Error(text(r))
	}
}

func TestForwards(t *testing.T) {
	others, corp := newStub(t, say()), newStub(t, func(w dns.ResponseWriter, q *dns.Msg) { say(q.Question[0].Name+" 60 IN A 10.9.0.1")(w, q) })
	c := home(site...)
	c.Upstreams = []Upstream{others.upstream()}
	c.Forwards = []Forward{{"corp.example", []Upstream{corp.upstream()}}, {"9.10.in-addr.arpa", []Upstream{corp.upstream()}}}
	_, at := serve(t, c)
	ask(t, "udp", at, "git.corp.example", dns.TypeA)
	ask(t, "udp", at, "1.0.9.10.in-addr.arpa", dns.TypePTR)
	if corp.count() != 2 || others.count() != 0 {
		t.Errorf("its servers were asked %d times, and others %d", corp.count(), others.count())
	}
}

// Many who ask the same at once are one question upstream.
func TestSameQuestionsAreOne(t *testing.T) {
	release := make(chan struct{})
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release // one is let go; the end lets all
		say("www.example.net. 60 IN A 198.51.100.7")(w, q)
	})
	s, at := serve(t, Config{Upstreams: []Upstream{up.upstream()}})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if r := ask(t, "udp", at, "www.example.net", dns.TypeA); len(r.Answer) != 1 {
				t.Error(text(r))
			}
		})
	}
	defer sync.OnceFunc(func() { close(release) })()
	until(t, func() bool { return s.Stats().Zones[0].Forwarded == 50 })
	release <- struct{}{}
	all.Wait()
	// Once, and once more where the machine was slow.
	if n := up.count(); n > 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestStaleWhileNobodyAnswers(t *testing.T) {
	var mu sync.Mutex
	down := false
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			m := new(dns.Msg)
			_ = w.WriteMsg(m.SetRcode(q, dns.RcodeServerFailure))
			return
		}
		say(q.Question[0].Name+" 300 IN A 198.51.100.7")(w, q)
	})
	set := func(v bool) { mu.Lock(); defer mu.Unlock(); down = v }
	s, at := serve(t, Config{Upstreams: []Upstream{up.upstream()}})
	ask(t, "udp", at, "www.example.net", dns.TypeA)
	set(true)
	pass(s, time.Hour)
	for range 2 {
		r := ask(t, "udp", at, "www.example.net", dns.TypeA, withEDNS(1232, false))
		if got := text(r); !strings.HasPrefix(got, "NOERROR\nwww.example.net. 30 IN A 198.51.100.7") || !strings.Contains(got, "Stale") {
			t.Error(got)
		}
	}
	// Nobody is asked again so soon.
	failures := up.count()
	ask(t, "udp", at, "www.example.net", dns.TypeA)
	if n := up.count(); n != failures {
		t.Errorf("asked %d times more, right after a failure", n-failures)
	}
	if r := ask(t, "udp", at, "other.example.net", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Error(text(r))
	}
	set(false)
	pass(s, time.Minute)
	if got := text(ask(t, "udp", at, "www.example.net", dns.TypeA)); got != "NOERROR\nwww.example.net. 300 IN A 198.51.100.7" {
		t.Error(got)
	}
	set(true)
	pass(s, 48*time.Hour)
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("two days later: %s", text(r))
	}
}

func TestDNSSECIsPassedOn(t *testing.T) {
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := reply(q, "www.example.net. 300 IN A 198.51.100.7")
		m.AuthenticatedData = true
		if opt := q.IsEdns0(); opt != nil && opt.Do() {
			m = reply(q, "www.example.net. 300 IN A 198.51.100.7", "www.example.net. 300 IN RRSIG A 13 3 300 20300101000000 20200101000000 1 example.net. c2lnbmF0dXJl")
			m.AuthenticatedData = true
		}
		_ = w.WriteMsg(m)
	})
	_, at := serve(t, Config{Upstreams: []Upstream{up.upstream()}})
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA); len(r.Answer) != 1 || r.AuthenticatedData {
		t.Errorf("to who does not ask for it: %s", text(r))
	}
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA, withEDNS(1232, true)); len(r.Answer) != 2 || !r.AuthenticatedData {
		t.Errorf("to who does: %s", text(r))
	}
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = true }); !r.CheckingDisabled {
		t.Errorf("CD: %s", text(r))
	}
	up.mu.Lock()
	if last := up.asked[len(up.asked)-1]; !last.CheckingDisabled {
		t.Error("CD was not passed on")
	}
	up.mu.Unlock()
	far := &upstream{Upstream: Upstream{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}
	if far.trusted() {
		t.Error("AD of who is asked in the open counts")
	}
}

// certificate makes one for a name, and who has signed it.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestUpstreamByTLS(t *testing.T) {
	cert, roots := certificate(t, "dns.example")
	var mu sync.Mutex
	conns := map[string]bool{}
	up := newTLSStub(t, cert, func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		conns[w.RemoteAddr().String()] = true
		mu.Unlock()
		say(q.Question[0].Name+" 60 IN A 198.51.100.7")(w, q)
	})
	s, at := serve(t, Config{})
	s.opts.Roots = roots
	again(t, s, func(c *Config) { c.Upstreams = []Upstream{{Addr: up.addr, TLS: "dns.example"}} })
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if r := ask(t, "udp", at, fmt.Sprintf("www%d.example.net", i), dns.TypeA); len(r.Answer) != 1 {
				t.Error(text(r))
			}
		})
	}
	all.Wait()
	mu.Lock()
	if len(conns) != 1 {
		t.Errorf("%d connections for 20 questions", len(conns))
	}
	mu.Unlock()
	up.mu.Lock()
	if wire, _ := up.asked[0].Pack(); len(wire)%128 != 0 {
		t.Errorf("a question of %d bytes, which its length tells", len(wire))
	}
	up.mu.Unlock()
	// The certificate of somebody else.
	again(t, s, func(c *Config) { c.Upstreams = []Upstream{{Addr: up.addr, TLS: "other.example"}} })
	if r := ask(t, "udp", at, "www.example.org", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("of somebody else: %s", text(r))
	}
	if stats := s.Stats().Upstreams[0]; !strings.Contains(stats.Error, "other.example") {
		t.Errorf("it says %q", stats.Error)
	}
}

// A server closes a connection when nobody expects it.
func TestUpstreamClosesConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := &dns.Conn{Conn: conn}
			if q, err := c.ReadMsg(); err == nil { // one answer, and good-bye
				_ = c.WriteMsg(reply(q, q.Question[0].Name+" 60 IN A 198.51.100.7"))
			}
			_ = conn.Close()
		}
	}()
	u := newUpstream(Upstream{Addr: netip.MustParseAddrPort(l.Addr().String())}, nil)
	for i := range 5 {
		m, err := u.byStream(t.Context(), wireOf(fmt.Sprintf("www%d.example.net", i)), dns.TypeA, false, false)
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("question %d: %v", i, err)
		}
	}
}

func TestApplyTakesAwayWhatGoes(t *testing.T) {
	s, at := serve(t, home(site...))
	again(t, s, func(c *Config) { c.Zones = nil })
	conn, err := net.Dial("tcp", at)
	if err == nil {
		conn.Close()
		t.Error("still open")
	}
	l, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

// One client whose names take their time does not have all of what may wait.
func TestOneClientDoesNotHaveAllThatWaits(t *testing.T) {
	release := make(chan struct{})
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if strings.HasPrefix(strings.ToLower(q.Question[0].Name), "slow") {
			<-release
		}
		say(q.Question[0].Name+" 60 IN A 198.51.100.7")(w, q)
	})
	defer close(release)
	c := home()
	c.Upstreams = []Upstream{up.upstream()}
	s, at := serve(t, c)
	_, port, _ := net.SplitHostPort(at)
	hostile, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer hostile.Close()
	for i := range mostAsked + 100 {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("slow%d.example.net.", i), dns.TypeA)
		wire, _ := m.Pack()
		if _, err := hostile.Write(wire); err != nil {
			t.Fatal(err)
		}
		if i%100 == 99 { // what has room in the socket
			until(t, func() bool { return s.Stats().Zones[0].UDP > uint64(i) })
		}
	}
	until(t, func() bool { return s.Stats().Zones[0].Limited >= 100 })
	// Somebody else, from another address.
	r := ask(t, "tcp", net.JoinHostPort("::1", port), "www.example.net", dns.TypeA)
	if len(r.Answer) != 1 {
		t.Errorf("another client: %s", text(r))
	}
}

// A door that is closed does not wait for questions whose answers are awaited.
func TestApplyWhileQuestionsWait(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	up := newStub(t, func(dns.ResponseWriter, *dns.Msg) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-release
	})
	defer close(release)
	c := home(site...)
	c.Upstreams = []Upstream{up.upstream()}
	s, at := serve(t, c)
	conn, err := dns.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range mostPipelined * 4 {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("www%d.example.net.", i), dns.TypeA)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	<-asked
	closed := make(chan struct{})
	go func() {
		s.Apply(Config{})
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("the door does not close")
	}
}

func TestPortIsTaken(t *testing.T) {
	port := freePort(t)
	l, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	s := New(slog.New(slog.DiscardHandler), Options{})
	start(t, s)
	c := Config{Port: port, Zones: []Zone{{Name: "home", Devices: []Device{{}}}}}
	failures := s.Apply(c)
	if len(failures) != 1 || failures[0].Err.Error() != "UDP: another server has the port" {
		t.Errorf("%v", failures)
	}
	_ = l.Close()
	if failures := s.Apply(c); len(failures) > 0 {
		t.Errorf("%v", failures)
	}
}

func TestTenThousandNames(t *testing.T) {
	var sets []edge.RecordSet
	for i := range 10000 {
		sets = append(sets, set(fmt.Sprintf("n%05d.home.example", i), "A", netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String()))
	}
	s, at := serve(t, home(sets...))
	conn, err := dns.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 10000 {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("n%05d.home.example.", i), dns.TypeA)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		r, err := conn.ReadMsg()
		if err != nil || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != fmt.Sprintf("10.2.%d.%d", i>>8, i&255) {
			t.Fatalf("%d: %v %v", i, err, r)
		}
	}
	if n := s.Stats(); n.Cached > 1000+cacheShards || n.Zones[0].Names != 10000 {
		t.Errorf("%d answers are kept, %d names", n.Cached, n.Zones[0].Names)
	}
}
