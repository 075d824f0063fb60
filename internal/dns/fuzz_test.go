package dns

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Whatever comes, an answer is only given to a question, is about that very
// question, and is no longer than the client takes.
func FuzzQuestion(f *testing.F) {
	s := New(slog.New(slog.DiscardHandler), Options{})
	c := home(site...)
	c.TTL, c.CacheSize = time.Minute, 1000
	c.Zones[0].Clients = prefixes("10.0.0.0/8")
	if failures := s.Apply(c); failures != nil {
		f.Fatal(failures)
	}
	l := &udpLoop{server: s, zone: s.zones["home"]}
	for _, name := range []string{"nas.home.example.", ".", "WWW.home.example.", "x.apps.home.example.", `a\.b.home.example.`, "localhost.", "www.example.net."} {
		for _, edns := range []bool{false, true} {
			m := new(dns.Msg)
			m.SetQuestion(name, dns.TypeA)
			if edns {
				m.SetEdns0(1232, true)
			}
			wire, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := bytes.Clone(msg)
		out, reply, later := l.one(l.zone.view.Load(), prefixes("10.0.0.7/32")[0].Addr(), msg, nil, s.now())
		if !bytes.Equal(before, msg) {
			t.Fatal("the question was changed")
		}
		if later {
			if !reply.Asks || wireOf(reply.Ask) == nil {
				t.Fatalf("asks for %q", reply.Ask)
			}
			return
		}
		if len(msg) < headerSize || msg[2]&0x80 != 0 {
			if len(out) > 0 {
				t.Fatalf("an answer to no question: %x", out)
			}
			return
		}
		if len(out) < headerSize || out[0] != msg[0] || out[1] != msg[1] || out[2]&0x80 == 0 {
			t.Fatalf("not an answer: %x", out)
		}
		limit := plainSize
		if l.q.edns {
			limit = udpSize
		}
		if len(out) > limit {
			t.Fatalf("an answer of %d bytes", len(out))
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatalf("%v: %x", err, out)
		}
		if binary.BigEndian.Uint16(out[4:]) == 1 && !bytes.Equal(out[headerSize:l.q.nameEnd+4], msg[headerSize:l.q.nameEnd+4]) {
			t.Fatalf("the answer to another question: %x", out)
		}
		if m.Rcode == dns.RcodeSuccess && len(m.Question) != 1 {
			t.Fatalf("an answer without a question: %x", out)
		}
	})
}

// Whatever an upstream sends, it is the answer to what was asked, or refused;
// and what is made of it can be read and has nothing inside.
func FuzzAnswer(f *testing.F) {
	name := wireOf("www.example.net")
	q := question(name, dns.TypeA, false, false, false, false)
	for _, records := range [][]string{
		{"www.example.net. 60 IN A 198.51.100.1", "www.example.net. 60 IN A 10.0.0.1"},
		{"www.example.net. 60 IN CNAME a.example.net.", "a.example.net. 60 IN A 198.51.100.1"},
		{"--", "example.net. 60 IN SOA a. b. 1 2 3 4 5"},
		{"example.net. 60 IN DNAME example.org.", "www.example.net. 60 IN CNAME www.example.org."},
	} {
		asked := new(dns.Msg)
		if err := asked.Unpack(q); err != nil {
			f.Fatal(err)
		}
		wire, err := reply(asked, records...).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire[2:], true)
		f.Add(wire[2:], false)
	}
	f.Fuzz(func(t *testing.T, rest []byte, do bool) {
		msg := append(bytes.Clone(q[:2]), rest...)
		if answers(msg, q, len(name)) != nil {
			return
		}
		m, err := unpackAnswer(msg, name)
		if err != nil {
			return
		}
		ttl := clean(m, "www.example.net", dns.TypeA, do)
		if ttl < 0 || ttl > mostTTL*time.Second {
			t.Fatalf("kept for %s", ttl)
		}
		holdBack(m)
		for _, rr := range m.Answer {
			if a, ok := rr.(*dns.A); ok && len(a.A) == 4 && a.A[0] == 10 {
				t.Fatalf("passed on: %s", rr)
			}
		}
		parsed := &query{}
		if what, _ := parsed.parse(q, 1); what != take {
			t.Fatal("our own question is not understood")
		}
		out := message(parsed, "www.example.net")
		out.Answer, out.Ns = m.Answer, m.Ns
		p, err := pack(out)
		if err != nil {
			return
		}
		wire := p.appendTo(nil, q, parsed, time.Hour, dns.MaxMsgSize)
		read := new(dns.Msg)
		if err := read.Unpack(wire); err != nil {
			t.Fatalf("%v: %x", err, wire)
		}
		if len(read.Answer) != len(m.Answer) || !strings.EqualFold(read.Question[0].Name, "www.example.net.") {
			t.Fatalf("%s, of %s", read, m)
		}
	})
}
