package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// liar answers by UDP with what lie makes of each question, and by TCP, where
// tcp says so, with the truth: an address that ends in 7.
func liar(t *testing.T, tcp bool, lie func(q []byte) [][]byte) *upstream {
	t.Helper()
	port := freePort(t)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port)
	conn, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, m := range lie(buf[:n]) {
				_, _ = conn.WriteTo(m, from)
			}
		}
	}()
	if tcp {
		runStub(t, &dns.Server{Addr: at.String(), Net: "tcp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			say(q.Question[0].Name+" 60 IN A 198.51.100.7")(w, q)
		})})
	}
	return newUpstream(Upstream{Addr: at}, nil)
}

// tell is an answer to a question, changed, with an address that ends in last.
func tell(wire []byte, last byte, change func(*dns.Msg)) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(wire); err != nil {
		panic(err)
	}
	m := reply(q, q.Question[0].Name+" 60 IN A 198.51.100."+string('0'+rune(last)))
	if change != nil {
		change(m)
	}
	out, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return out
}

func lowerCase(m *dns.Msg) {
	m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	m.Answer[0].Header().Name = m.Question[0].Name
}

func TestUpstreamsThatLie(t *testing.T) {
	many := func(change func(*dns.Msg)) func([]byte) [][]byte {
		return func(q []byte) (all [][]byte) {
			for range wrongAnswers + 2 {
				all = append(all, tell(q, 6, change))
			}
			return all
		}
	}
	for name, c := range map[string]struct {
		lie  func([]byte) [][]byte
		want string // how the address ends
		tcp  bool
	}{
		"the truth":                  {func(q []byte) [][]byte { return [][]byte{tell(q, 5, nil)} }, "5", false},
		"another ID, then the truth": {func(q []byte) [][]byte { return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Id++ }), tell(q, 5, nil)} }, "5", false},
		"another name, then the truth": {func(q []byte) [][]byte {
			return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Question[0].Name = "x." }), tell(q, 5, nil)}
		}, "5", false},
		"another type, then the truth": {func(q []byte) [][]byte {
			return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Question[0].Qtype = 15 }), tell(q, 5, nil)}
		}, "5", false},
		"a question, then the truth": {func(q []byte) [][]byte {
			return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Response = false }), tell(q, 5, nil)}
		}, "5", false},
		"junk, then the truth": {func(q []byte) [][]byte { return [][]byte{{}, {1}, q[:12], tell(q, 5, nil)} }, "5", false},
		"no question, then the truth": {func(q []byte) [][]byte {
			return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Question = nil }), tell(q, 5, nil)}
		}, "5", false},
		"many wrong IDs":                 {many(func(m *dns.Msg) { m.Id++ }), "7", true},
		"another case":                   {many(lowerCase), "7", true},
		"another case, and no TCP":       {many(lowerCase), "6", false},
		"truncated":                      {func(q []byte) [][]byte { return [][]byte{tell(q, 6, func(m *dns.Msg) { m.Truncated = true })} }, "7", true},
		"truncated in the middle of one": {func(q []byte) [][]byte { a := tell(q, 6, nil); a = a[:len(a)-3]; a[2] |= 2; return [][]byte{a} }, "7", true},
	} {
		t.Run(name, func(t *testing.T) {
			u := liar(t, c.tcp, c.lie)
			m, err := u.ask(t.Context(), wireOf("some-quite-long-name.of.example.net"), dns.TypeA, false, false)
			if err != nil || len(m.Answer) != 1 {
				t.Fatalf("%v %v", err, m)
			}
			if got := m.Answer[0].(*dns.A).A.String(); !strings.HasSuffix(got, c.want) {
				t.Errorf("believed %s", got)
			}
			if got := m.Answer[0].Header().Name; !strings.EqualFold(got, "some-quite-long-name.of.example.net.") {
				t.Errorf("the answer is about %s", got)
			}
		})
	}
}

// A server that breaks the case of names is found out once, not at each question.
func TestCaseIsKeptFromThenOn(t *testing.T) {
	var byUDP atomic.Int32
	u := liar(t, false, func(q []byte) [][]byte {
		byUDP.Add(1)
		return [][]byte{tell(q, 5, lowerCase)}
	})
	for range 3 {
		if _, err := u.ask(t.Context(), wireOf("some-quite-long-name.of.example.net"), dns.TypeA, false, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := byUDP.Load(); n != 4 {
		t.Errorf("%d questions for 3 answers, want 4", n)
	}
}

// What is sent differs each time: ID, port and case.
func TestQuestionsCannotBeGuessed(t *testing.T) {
	name := wireOf("some-quite-long-name.of.example.net")
	ids, cases := map[uint16]bool{}, map[string]bool{}
	for range 100 {
		q := question(name, dns.TypeA, false, false, true, false)
		ids[binary.BigEndian.Uint16(q)] = true
		cases[string(q[headerSize:headerSize+len(name)])] = true
		if !strings.EqualFold(string(q[headerSize:headerSize+len(name)]), string(name)) {
			t.Fatalf("asks for %q", q)
		}
		if err := new(dns.Msg).Unpack(q); err != nil {
			t.Fatal(err)
		}
	}
	if len(ids) < 90 || len(cases) < 90 {
		t.Errorf("%d IDs, %d cases of 100 questions", len(ids), len(cases))
	}
}

// A datagram of somebody who is not asked does not come in.
func TestSpoofedSource(t *testing.T) {
	spoofed := make(chan struct{})
	var other net.PacketConn
	u := liar(t, false, func([]byte) [][]byte { return nil })
	victim, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	if other, err = net.ListenPacket("udp", "127.0.0.3:0"); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	u.Addr = netip.MustParseAddrPort(victim.LocalAddr().String())
	go func() {
		defer close(spoofed)
		buf := make([]byte, 4096)
		n, from, err := victim.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = other.WriteTo(tell(buf[:n], 6, nil), from) // all is right but who sends it
		_, _ = victim.WriteTo(tell(buf[:n], 5, nil), from)
	}()
	m, err := u.ask(t.Context(), wireOf("www.example.net"), dns.TypeA, false, false)
	if err != nil || !strings.HasSuffix(m.Answer[0].(*dns.A).A.String(), "5") {
		t.Errorf("%v %v", err, m)
	}
	<-spoofed
}

// Records that answer another question are not passed on.
func TestOnlyWhatWasAskedFor(t *testing.T) {
	q := new(dns.Msg)
	q.SetQuestion("www.example.net.", dns.TypeA)
	for _, c := range []struct {
		answer []string
		want   string
		ttl    time.Duration
	}{
		{
			[]string{"www.example.net. 60 IN A 198.51.100.1", "www.bank.example. 60 IN A 198.51.100.6", "--", "bank.example. 60 IN NS ns.evil.example."},
			"NOERROR\nwww.example.net. 60 IN A 198.51.100.1", time.Minute,
		},
		{
			[]string{"a.example.net. 50 IN A 198.51.100.1", "WWW.example.net. 60 IN CNAME A.example.net."},
			"NOERROR\nwww.example.net. 60 IN CNAME A.example.net.\na.example.net. 50 IN A 198.51.100.1", 50 * time.Second,
		},
		{[]string{"www.example.net. 60 IN CNAME www.example.net."}, "NOERROR\nwww.example.net. 60 IN CNAME www.example.net.", 0},
		{[]string{"www.example.net. 60 IN MX 1 mail.example.net."}, "NOERROR", 0},
		{[]string{"--", "example.com. 60 IN SOA a. b. 1 2 3 4 5"}, "NOERROR", 0},
		{[]string{"--", "net. 6000000 IN SOA a. b. 1 2 3 4 600000"}, "NOERROR\nauthority net. 10800 IN SOA a. b. 1 2 3 4 600000", 3 * time.Hour},
		{[]string{"www.example.net. 2147483647 IN A 198.51.100.1"}, "NOERROR\nwww.example.net. 86400 IN A 198.51.100.1", 24 * time.Hour},
		{
			[]string{"example.net. 60 IN DNAME example.org.", "www.example.net. 60 IN CNAME www.example.org.", "www.example.org. 60 IN A 198.51.100.1"},
			"NOERROR\nexample.net. 60 IN DNAME example.org.\nwww.example.net. 60 IN CNAME www.example.org.\nwww.example.org. 60 IN A 198.51.100.1", time.Minute,
		},
	} {
		m := reply(q, c.answer...)
		ttl := clean(m, "www.example.net", dns.TypeA, false)
		if got := text(m); got != c.want || ttl != c.ttl {
			t.Errorf("%q:\n%s\nfor %s, want:\n%s\nfor %s", c.answer, got, ttl, c.want, c.ttl)
		}
	}
}

func TestAskTheNextOne(t *testing.T) {
	down := Upstream{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), freePort(t))} // nobody is there
	failing := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	silent := liar(t, false, func([]byte) [][]byte { return nil }).Upstream
	good := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) { say(q.Question[0].Name+" 60 IN A 198.51.100.7")(w, q) })
	s, at := serve(t, Config{Upstreams: []Upstream{down, failing.upstream(), silent, good.upstream()}})
	for _, name := range []string{"a.example.net", "b.example.net", "c.example.net", "d.example.net"} {
		if r := ask(t, "udp", at, name, dns.TypeA); len(r.Answer) != 1 {
			t.Errorf("%s: %s", name, text(r))
		}
	}
	for _, u := range s.Stats().Upstreams {
		if u.Server == good.addr.String() && (!u.Up || u.Queries == 0) {
			t.Errorf("%+v", u)
		}
	}
	// Only a failure is to be had.
	s, at = serve(t, Config{Upstreams: []Upstream{failing.upstream()}})
	for range 3 {
		if r := ask(t, "udp", at, "a.example.net", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
			t.Error(text(r))
		}
	}
	if n := s.Stats().Upstreams[0].Queries; n > 2 {
		t.Errorf("asked %d times for what has just failed", n)
	}
}

// One that is down is asked now and then, and used once it is back.
func TestUpstreamComesBack(t *testing.T) {
	u := newUpstream(Upstream{Addr: netip.MustParseAddrPort("192.0.2.1:53")}, nil)
	now := time.Now()
	for range downAfter {
		u.note(0, errNoAnswer)
	}
	if down, due, _ := u.place(now); !down || !due {
		t.Errorf("down is %t, due is %t", down, due)
	}
	if _, due, _ := u.place(now.Add(lookAfter / 2)); due {
		t.Error("tried again at once")
	}
	if _, due, _ := u.place(now.Add(lookAfter)); !due {
		t.Error("not tried again")
	}
	u.note(time.Millisecond, nil)
	if down, _, _ := u.place(now); down {
		t.Error("down though it has answered")
	}
}

// The fastest is asked first, and the others now and then.
func TestFastestFirst(t *testing.T) {
	slow, fast := newUpstream(Upstream{TLS: "slow"}, nil), newUpstream(Upstream{TLS: "fast"}, nil)
	p := &pool{servers: []*upstream{slow, fast}}
	slow.note(100*time.Millisecond, nil)
	fast.note(10*time.Millisecond, nil)
	first := map[*upstream]int{}
	for range 200 {
		_, order := p.order()
		first[order[0]]++
		if order[0] == slow {
			slow.note(100*time.Millisecond, nil)
		}
	}
	if first[fast] < 150 || first[slow] == 0 {
		t.Errorf("the fast one %d times, the slow one %d", first[fast], first[slow])
	}
}

// A question that comes back from who is asked it ends there, and is told of.
func TestLoop(t *testing.T) {
	var server atomic.Pointer[string]
	answers := make(chan *dns.Msg, 10)
	up := newStub(t, func(w dns.ResponseWriter, q *dns.Msg) {
		// It asks who asks it, from its own address.
		c := &dns.Client{Timeout: 5 * time.Second, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}}}
		m := new(dns.Msg)
		m.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
		if r, _, err := c.Exchange(m, *server.Load()); err == nil {
			answers <- r
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, r.Rcode))
		}
	})
	s, at := serve(t, Config{Upstreams: []Upstream{up.upstream()}})
	server.Store(&at)
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Error(text(r))
	}
	if r := <-answers; r.Rcode != dns.RcodeServerFailure {
		t.Error(text(r))
	}
	if u := s.Stats().Upstreams[0]; u.Error != Loop || u.Queries > 2 {
		t.Errorf("%+v", u)
	}
}

func TestNotItself(t *testing.T) {
	self := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for text, want := range map[string]bool{"10.0.0.1:53": false, "10.0.0.1:5353": true, "10.0.0.2:53": true, "[::ffff:10.0.0.1]:53": false} {
		if got := (Upstream{Addr: netip.MustParseAddrPort(text)}).Usable(self, 53); got != want {
			t.Errorf("%s: usable is %t", text, got)
		}
	}
	s, at := serve(t, Config{})
	again(t, s, func(c *Config) {
		c.Self = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		c.Upstreams = []Upstream{{Addr: netip.MustParseAddrPort(at)}}
	})
	if r := ask(t, "udp", at, "www.example.net", dns.TypeA); r.Rcode != dns.RcodeServerFailure {
		t.Error(text(r))
	}
	if got := s.Stats().Upstreams; len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

// How a question was spelled is nobody's business, also where a name of the
// answer ends in it.
func TestSpellingIsTakenBack(t *testing.T) {
	u := liar(t, false, func(q []byte) [][]byte {
		return [][]byte{tell(q, 5, func(m *dns.Msg) {
			m.Compress = true
			name := m.Question[0].Name
			m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: "pages." + name}}
		})}
	})
	m, err := u.ask(t.Context(), wireOf("some-quite-long-name.of.example.net"), dns.TypeA, false, false)
	if err != nil || m.Answer[0].(*dns.CNAME).Target != "pages.some-quite-long-name.of.example.net." {
		t.Errorf("%v %v", err, m)
	}
}
