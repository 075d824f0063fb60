package dns

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// An answer is asked for anew after a day at the latest, that something is not
	// there after three hours (RFC 2308 §5), and that nobody could say after a
	// short while (RFC 9520 §3.2: at least a second).
	mostTTL     = 24 * 60 * 60
	negativeTTL = 3 * 60 * 60
	failureTTL  = 2 * time.Second
)

// clean takes out of an upstream's answer what does not answer the question:
// records of other names than those that a chain of aliases leads to, all that
// is additional, and DNSSEC that was not asked for. It returns how long the
// answer may be kept.
func clean(m *dns.Msg, name string, qtype uint16, do bool) (ttl time.Duration) {
	name = name + "."
	chain := []string{name}
	var answer []dns.RR
	rest := m.Answer
	// A pass for each alias: servers need not have them in order.
	for len(chain) <= 2*maxAliases {
		at := chain[len(chain)-1]
		next := ""
		for _, rr := range rest {
			h := rr.Header()
			h.Name = strings.ToLower(h.Name)
			switch rr := rr.(type) {
			case *dns.CNAME:
				if h.Name == at && qtype != dns.TypeCNAME {
					next = strings.ToLower(rr.Target)
				}
			case *dns.DNAME:
				// The CNAME that is made of it comes with it.
				if h.Name != at && strings.HasSuffix(at, "."+h.Name) {
					answer = append(answer, rr)
					continue
				}
			case *dns.RRSIG:
				if !do && qtype != dns.TypeRRSIG {
					continue
				}
				if rr.TypeCovered == dns.TypeDNAME && strings.HasSuffix(at, "."+h.Name) {
					answer = append(answer, rr)
					continue
				}
			}
			if h.Name == at && h.Class == dns.ClassINET && (h.Rrtype == qtype || h.Rrtype == dns.TypeCNAME || h.Rrtype == dns.TypeRRSIG || h.Rrtype == dns.TypeDNAME) {
				answer = append(answer, rr)
			}
		}
		if next == "" || slices.Contains(chain, next) {
			break
		}
		chain = append(chain, next)
	}
	m.Answer, m.Extra = answer, nil
	last := chain[len(chain)-1]
	m.Ns = slices.DeleteFunc(m.Ns, func(rr dns.RR) bool {
		switch rr.Header().Rrtype {
		case dns.TypeSOA:
			return !dns.IsSubDomain(rr.Header().Name, last)
		case dns.TypeNSEC, dns.TypeNSEC3, dns.TypeRRSIG:
			return !do
		default:
			return true
		}
	})
	return lifetime(m, qtype)
}

// lifetime bounds the TTLs of a message, and returns the smallest.
func lifetime(m *dns.Msg, qtype uint16) time.Duration {
	least := uint32(mostTTL)
	answered := false
	for _, rr := range m.Answer {
		h := rr.Header()
		h.Ttl = min(h.Ttl, mostTTL)
		least = min(least, h.Ttl)
		answered = answered || h.Rrtype == qtype
	}
	negative := m.Rcode == dns.RcodeNameError || !answered
	found := false
	for _, rr := range m.Ns {
		h := rr.Header()
		if soa, ok := rr.(*dns.SOA); ok && negative {
			h.Ttl = min(h.Ttl, soa.Minttl, negativeTTL) // RFC 2308 §5
			found = true
		}
		h.Ttl = min(h.Ttl, mostTTL)
		least = min(least, h.Ttl)
	}
	if negative && !found {
		return 0 // how long that will be so, nobody says
	}
	return time.Duration(least) * time.Second
}

// holdBack takes the addresses out of an answer that no outside name should
// stand for, and says whether there were any: who has a browser look at a page
// could have it talk to the router's own (DNS rebinding).
func holdBack(m *dns.Msg) bool {
	bad := func(raw []byte) bool {
		addr, ok := netip.AddrFromSlice(raw)
		return ok && inside(addr)
	}
	before := len(m.Answer)
	m.Answer = slices.DeleteFunc(m.Answer, func(rr dns.RR) bool {
		switch rr := rr.(type) {
		case *dns.A:
			return bad(rr.A)
		case *dns.AAAA:
			return bad(rr.AAAA)
		case *dns.HTTPS:
			return badHints(rr.Value, bad)
		case *dns.SVCB:
			return badHints(rr.Value, bad)
		}
		return false
	})
	return len(m.Answer) != before
}

func badHints(values []dns.SVCBKeyValue, bad func([]byte) bool) bool {
	for _, v := range values {
		switch v := v.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range v.Hint {
				if bad(ip) {
					return true
				}
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range v.Hint {
				if bad(ip) {
					return true
				}
			}
		}
	}
	return false
}
