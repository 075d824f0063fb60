package dns

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/edge"
)

// Reply is what a Table says to a question.
type Reply struct {
	Rcode         int
	Authoritative bool
	Answer        []dns.RR
	Authority     []dns.RR
	Extra         []dns.RR
	// Ask is what others have to be asked for; they complete the Answer. Empty:
	// nothing.
	Ask string
	// Asks says that Ask is meant, also where that is the root.
	Asks bool
}

// Of a chain of aliases, so many are followed.
const maxAliases = 8

// Answer says what is known of a name, in lower case and without a dot at its
// end, and of a type (RFC 1034 §4.3.2).
func (t *Table) Answer(name string, qtype uint16) Reply {
	var r Reply
	for range maxAliases {
		target, more := t.step(&r, name, qtype)
		if !more {
			return r
		}
		name = target
	}
	return Reply{Rcode: dns.RcodeServerFailure} // they go in a circle
}

// step answers for one name, and returns the one that it is an alias of.
func (t *Table) step(r *Reply, name string, qtype uint16) (target string, more bool) {
	found, known := t.find(name)
	apex, kind := t.decides(name)
	if known && len(found.sets) > 0 {
		return t.fromNode(r, found, name, apex, kind, qtype)
	}
	switch kind {
	case cutOwn:
		r.Authoritative = len(r.Answer) == 0 || r.Authoritative
		switch {
		case name == apex:
			t.fromApex(r, name, qtype)
		case known: // only the end of others' names
			r.Authority = t.soa(apex)
		default:
			r.Rcode, r.Authority = dns.RcodeNameError, t.soa(apex)
		}
	case cutEmpty, cutNoData, cutLocalhost:
		t.fromSpecial(r, name, apex, kind, known, qtype)
	default:
		r.Ask, r.Asks = name, true
	}
	return "", false
}

// find returns the node of a name, or of the wildcard that stands for it (RFC
// 4592 §3.3.1): that below the closest name above it that exists. None stands for
// names that somebody else answers for from below it on (§4.2).
func (t *Table) find(name string) (*node, bool) {
	if n, ok := t.nodes[name]; ok {
		return n, true
	}
	if _, ok := t.cuts[name]; ok {
		return nil, false
	}
	for up, more := parent(name); more && up != ""; up, more = parent(up) {
		if n, ok := t.nodes["*."+up]; ok {
			return n, true
		}
		if _, ok := t.nodes[up]; ok {
			return nil, false
		}
		if _, ok := t.cuts[up]; ok {
			return nil, false
		}
	}
	return nil, false
}

// fromNode answers from records that there are.
func (t *Table) fromNode(r *Reply, n *node, name, apex string, kind cut, qtype uint16) (target string, more bool) {
	r.Authoritative = len(r.Answer) == 0 || r.Authoritative
	if qtype == dns.TypeANY {
		r.Answer = append(r.Answer, minimalAny(name, t.ttl))
		return "", false
	}
	if set := n.of(dns.TypeToString[qtype]); set != nil {
		r.Answer = append(r.Answer, rrs(set, name)...)
		if qtype == dns.TypeSRV {
			t.addTargets(r)
		}
		return "", false
	}
	if alias := n.of("CNAME"); alias != nil && len(alias.Data) > 0 {
		r.Answer = append(r.Answer, rrs(alias, name)...)
		return alias.Data[0], true
	}
	switch {
	case kind == cutOwn && name == apex:
		t.fromApex(r, name, qtype)
		return "", false
	case kind != cutNone && kind != cutForward:
		r.Authority = t.soa(apex)
		return "", false
	}
	// A name of somebody else's domain that leads elsewhere here. What is not
	// about where it leads (its mail, say) is as its owner says.
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB:
		r.Authority = t.soa(name)
	default:
		r.Authoritative = false
		r.Ask, r.Asks = name, true
	}
	return "", false
}

// fromApex answers what each zone has at its top.
func (t *Table) fromApex(r *Reply, apex string, qtype uint16) {
	switch qtype {
	case dns.TypeSOA:
		r.Answer = append(r.Answer, t.soa(apex)...)
	case dns.TypeNS:
		ns := &dns.NS{Hdr: header(apex, dns.TypeNS, t.ttl), Ns: t.ns + "."}
		r.Answer = append(r.Answer, ns)
		r.Extra = append(r.Extra, t.addresses(t.ns)...)
	case dns.TypeANY:
		r.Answer = append(r.Answer, minimalAny(apex, t.ttl))
	default:
		r.Authority = t.soa(apex)
	}
}

func (t *Table) fromSpecial(r *Reply, name, apex string, kind cut, known bool, qtype uint16) {
	const ttl = 3600
	switch {
	case kind == cutLocalhost && qtype == dns.TypeA:
		r.Answer = append(r.Answer, &dns.A{Hdr: header(name, qtype, ttl), A: []byte{127, 0, 0, 1}})
	case kind == cutLocalhost && qtype == dns.TypeAAAA:
		r.Answer = append(r.Answer, &dns.AAAA{Hdr: header(name, qtype, ttl), AAAA: netip.IPv6Loopback().AsSlice()})
	case localhosts[name] && qtype == dns.TypePTR:
		r.Answer = append(r.Answer, &dns.PTR{Hdr: header(name, qtype, ttl), Ptr: "localhost."})
	case name == apex && qtype == dns.TypeSOA:
		r.Answer = append(r.Answer, t.soa(apex)...)
	case kind == cutEmpty && !known && !localhosts[name]:
		r.Rcode, r.Authority = dns.RcodeNameError, t.soa(apex)
	default:
		r.Authority = t.soa(apex)
	}
}

// soa is the start of authority of a zone of ours. Its minimum is how long it
// may be remembered that something is not there (RFC 2308 §4).
func (t *Table) soa(apex string) []dns.RR {
	return []dns.RR{&dns.SOA{
		Hdr: header(apex, dns.TypeSOA, t.ttl), Ns: t.ns + ".", Mbox: "nobody.invalid.", Serial: t.serial,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: t.ttl,
	}}
}

// addTargets adds the addresses of servers that were answered (RFC 2782).
func (t *Table) addTargets(r *Reply) {
	var seen []string
	for _, rr := range r.Answer {
		srv, ok := rr.(*dns.SRV)
		if !ok || slices.Contains(seen, srv.Target) || len(seen) == maxAliases {
			continue
		}
		seen = append(seen, srv.Target)
		r.Extra = append(r.Extra, t.addresses(srv.Target[:len(srv.Target)-1])...)
	}
}

func (t *Table) addresses(name string) []dns.RR {
	n, ok := t.find(name)
	if !ok {
		return nil
	}
	var list []dns.RR
	for _, kind := range []string{"A", "AAAA"} {
		if set := n.of(kind); set != nil {
			list = append(list, rrs(set, name)...)
		}
	}
	return list
}

// minimalAny is all that is said to who wants everything (RFC 8482 §4.2).
func minimalAny(name string, ttl uint32) dns.RR {
	return &dns.HINFO{Hdr: header(name, dns.TypeHINFO, ttl), Cpu: "RFC8482"}
}

func header(name string, rtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name + ".", Rrtype: rtype, Class: dns.ClassINET, Ttl: ttl}
}

// rrs are the records of a set, of the name that was asked for: that of a
// wildcard is another one. What cannot be read is left out; it is the site's own.
func rrs(set *edge.RecordSet, name string) []dns.RR {
	list := make([]dns.RR, 0, len(set.Data))
	for _, data := range set.Data {
		if rr := record(set, name, data); rr != nil {
			list = append(list, rr)
		}
	}
	return list
}

func record(set *edge.RecordSet, name, data string) dns.RR {
	h := header(name, dns.StringToType[set.Type], set.TTL)
	switch set.Type {
	case "A", "AAAA":
		addr, err := netip.ParseAddr(data)
		if err != nil || addr.Is4() != (set.Type == "A") {
			return nil
		}
		if set.Type == "A" {
			return &dns.A{Hdr: h, A: addr.AsSlice()}
		}
		return &dns.AAAA{Hdr: h, AAAA: addr.AsSlice()}
	case "PTR":
		return &dns.PTR{Hdr: h, Ptr: dns.Fqdn(data)}
	case "CNAME":
		return &dns.CNAME{Hdr: h, Target: dns.Fqdn(data)}
	default: // SRV and TXT are as a zone file writes them, but for the dot
		if set.Type == "SRV" {
			data = dns.Fqdn(data)
		}
		rr, err := dns.NewRR(". " + set.Type + " " + data)
		if err != nil || rr == nil {
			return nil
		}
		*rr.Header() = h
		return rr
	}
}
