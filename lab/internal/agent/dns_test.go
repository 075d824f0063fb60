package agent

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestNames(t *testing.T) {
	lookup := func(name string) ([]netip.Addr, error) {
		switch name {
		case "web.home.svc.cluster.local.":
			return []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00:96::7")}, nil
		case "away.":
			return nil, errors.New("no API server")
		}
		return nil, errNoSuchName
	}
	for _, tt := range []struct {
		name  string
		kind  dnsmessage.Type
		want  string
		rcode dnsmessage.RCode
	}{
		{"web.home.svc.cluster.local.", dnsmessage.TypeA, "10.96.0.7", dnsmessage.RCodeSuccess},
		{"web.home.svc.cluster.local.", dnsmessage.TypeAAAA, "fd00:96::7", dnsmessage.RCodeSuccess},
		{"web.home.svc.cluster.local.", dnsmessage.TypeTXT, "", dnsmessage.RCodeSuccess},
		{"nobody.", dnsmessage.TypeA, "", dnsmessage.RCodeNameError},
		{"away.", dnsmessage.TypeA, "", dnsmessage.RCodeServerFailure},
	} {
		question := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(tt.name), Type: tt.kind, Class: dnsmessage.ClassINET}},
		}
		packed, err := question.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var reply dnsmessage.Message
		if err := reply.Unpack(answerDNS(packed, lookup)); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, a := range reply.Answers {
			switch b := a.Body.(type) {
			case *dnsmessage.AResource:
				got += netip.AddrFrom4(b.A).String()
			case *dnsmessage.AAAAResource:
				got += netip.AddrFrom16(b.AAAA).String()
			}
		}
		if got != tt.want || reply.RCode != tt.rcode || reply.ID != 77 || !reply.Response {
			t.Errorf("%s %s: %q, %s, want %q, %s (%+v)", tt.kind, tt.name, got, reply.RCode, tt.want, tt.rcode, reply.Header)
		}
	}
	if answerDNS([]byte("no question"), lookup) != nil {
		t.Error("an answer to what is no question")
	}
}
