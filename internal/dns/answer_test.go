package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/edge"
)

var site = []edge.RecordSet{
	set("gatehouse.home.example", "A", "10.0.0.1"),
	set("nas.home.example", "A", "10.0.0.101"),
	set("nas.home.example", "AAAA", "fd00:10::101"),
	set("nas.home.example", "TXT", `"a box" "of disks"`),
	set("dkim.home.example", "TXT", `"v=DKIM1; k=rsa"`, `"`+strings.Repeat(`\"\000`, 127)+`x"`),
	set("web.shop.cluster.home.example", "A", "10.0.0.51", "10.0.0.52"),
	set("_http._tcp.web.shop.cluster.home.example", "SRV", "0 0 80 web.shop.cluster.home.example"),
	set("www.home.example", "CNAME", "web.shop.cluster.home.example"),
	set("blog.home.example", "CNAME", "pages.example.net"),
	set("a.home.example", "CNAME", "b.home.example"),
	set("b.home.example", "CNAME", "a.home.example"),
	set("*.apps.home.example", "A", "10.0.0.60"),
	set("*.alias.home.example", "CNAME", "nas.home.example"),
	set("deep.in.apps.home.example", "A", "10.0.0.61"),
	set("shop.example.org", "A", "10.0.0.51"),
	set("*.wild.example.org", "A", "10.0.0.52"),
	set("*.example.com", "A", "10.0.0.53"),
	set("own.ask.example.com", "A", "10.0.0.54"),
	set("*.own.ask.example.com", "A", "10.0.0.55"),
	set("printer.local", "A", "10.0.0.77"),
	set("101.0.0.10.in-addr.arpa", "PTR", "nas.home.example"),
	set("7.3.2.10.in-addr.arpa", "PTR", "far.home.example"),
}

func siteTable() *Table {
	return NewTable(site, TableOptions{
		Domains: []string{"home.example", "cluster.home.example"}, Reverse: prefixes("10.0.0.0/24", "fd00:10::/64", "198.51.100.64/26"),
		Forwards: []string{"corp.example", "sub.home.example", "ask.example.com", "ask2.example.com"}, NameServer: "gatehouse.home.example", TTL: time.Minute, Serial: 7,
	})
}

func (r Reply) text() string {
	m := &dns.Msg{Answer: r.Answer, Ns: r.Authority, Extra: r.Extra}
	m.Rcode, m.Authoritative = r.Rcode, r.Authoritative
	s := text(m)
	s = strings.ReplaceAll(s, "SOA gatehouse.home.example. nobody.invalid. 7 3600 600 86400 60", "SOA")
	if r.Asks {
		s += "\nask " + r.Ask
	}
	return s
}

func TestSiteNames(t *testing.T) {
	table := siteTable()
	for _, c := range []struct{ name, qtype, want string }{
		{"nas.home.example", "A", "NOERROR aa\nnas.home.example. 60 IN A 10.0.0.101"},
		{"nas.home.example", "AAAA", "NOERROR aa\nnas.home.example. 60 IN AAAA fd00:10::101"},
		{"nas.home.example", "TXT", `NOERROR aa` + "\n" + `nas.home.example. 60 IN TXT "a box" "of disks"`},
		{"dkim.home.example", "TXT", `NOERROR aa` + "\n" + `dkim.home.example. 60 IN TXT "v=DKIM1; k=rsa"` + "\n" + `dkim.home.example. 60 IN TXT "` + strings.Repeat(`\"\000`, 127) + `x"`},
		{"nas.home.example", "MX", "NOERROR aa\nauthority home.example. 60 IN SOA"},
		{"nas.home.example", "ANY", "NOERROR aa\nnas.home.example. 60 IN HINFO \"RFC8482\" \"\""},
		{"nas2.home.example", "A", "NXDOMAIN aa\nauthority home.example. 60 IN SOA"},
		{"x.nas.home.example", "A", "NXDOMAIN aa\nauthority home.example. 60 IN SOA"},
		// Below the domain of exposures it is that one's.
		{"db.shop.cluster.home.example", "A", "NXDOMAIN aa\nauthority cluster.home.example. 60 IN SOA"},
		// The end of others' names only.
		{"shop.cluster.home.example", "A", "NOERROR aa\nauthority cluster.home.example. 60 IN SOA"},
		{"in.apps.home.example", "A", "NOERROR aa\nauthority home.example. 60 IN SOA"},
		{"web.shop.cluster.home.example", "A", "NOERROR aa\nweb.shop.cluster.home.example. 60 IN A 10.0.0.51\nweb.shop.cluster.home.example. 60 IN A 10.0.0.52"},
		{"_http._tcp.web.shop.cluster.home.example", "SRV", "NOERROR aa\n_http._tcp.web.shop.cluster.home.example. 60 IN SRV 0 0 80 web.shop.cluster.home.example.\n" +
			"extra web.shop.cluster.home.example. 60 IN A 10.0.0.51\nextra web.shop.cluster.home.example. 60 IN A 10.0.0.52"},
		// Aliases.
		{"www.home.example", "A", "NOERROR aa\nwww.home.example. 60 IN CNAME web.shop.cluster.home.example.\n" +
			"web.shop.cluster.home.example. 60 IN A 10.0.0.51\nweb.shop.cluster.home.example. 60 IN A 10.0.0.52"},
		{"www.home.example", "AAAA", "NOERROR aa\nwww.home.example. 60 IN CNAME web.shop.cluster.home.example.\nauthority cluster.home.example. 60 IN SOA"},
		{"www.home.example", "CNAME", "NOERROR aa\nwww.home.example. 60 IN CNAME web.shop.cluster.home.example."},
		{"blog.home.example", "A", "NOERROR aa\nblog.home.example. 60 IN CNAME pages.example.net.\nask pages.example.net"},
		{"a.home.example", "A", "SERVFAIL"},
		// Wildcards (RFC 4592).
		{"x.apps.home.example", "A", "NOERROR aa\nx.apps.home.example. 60 IN A 10.0.0.60"},
		{"y.x.apps.home.example", "A", "NOERROR aa\ny.x.apps.home.example. 60 IN A 10.0.0.60"},
		{"x.apps.home.example", "AAAA", "NOERROR aa\nauthority home.example. 60 IN SOA"},
		{"x.in.apps.home.example", "A", "NXDOMAIN aa\nauthority home.example. 60 IN SOA"},
		{"x.alias.home.example", "A", "NOERROR aa\nx.alias.home.example. 60 IN CNAME nas.home.example.\nnas.home.example. 60 IN A 10.0.0.101"},
		// The top of a zone.
		{"home.example", "SOA", "NOERROR aa\nhome.example. 60 IN SOA"},
		{"home.example", "NS", "NOERROR aa\nhome.example. 60 IN NS gatehouse.home.example.\nextra gatehouse.home.example. 60 IN A 10.0.0.1"},
		{"home.example", "A", "NOERROR aa\nauthority home.example. 60 IN SOA"},
		{"0.0.10.in-addr.arpa", "SOA", "NOERROR aa\n0.0.10.in-addr.arpa. 60 IN SOA"},
		// Addresses.
		{"101.0.0.10.in-addr.arpa", "PTR", "NOERROR aa\n101.0.0.10.in-addr.arpa. 60 IN PTR nas.home.example."},
		{"102.0.0.10.in-addr.arpa", "PTR", "NXDOMAIN aa\nauthority 0.0.10.in-addr.arpa. 60 IN SOA"},
		{"7.3.2.10.in-addr.arpa", "PTR", "NOERROR aa\n7.3.2.10.in-addr.arpa. 60 IN PTR far.home.example."},
		{"8.3.2.10.in-addr.arpa", "PTR", "NXDOMAIN\nauthority 10.in-addr.arpa. 60 IN SOA"},
		{"0.10.in-addr.arpa", "PTR", "NOERROR\nauthority 10.in-addr.arpa. 60 IN SOA"}, // 0.0.10 is below
		{"1.1.168.192.in-addr.arpa", "PTR", "NXDOMAIN\nauthority 168.192.in-addr.arpa. 60 IN SOA"},
		{"65.100.51.198.in-addr.arpa", "PTR", "NOERROR aa\nauthority 65.100.51.198.in-addr.arpa. 60 IN SOA"},
		{"8.8.8.8.in-addr.arpa", "PTR", "NOERROR\nask 8.8.8.8.in-addr.arpa"},
		// Names of others that lead elsewhere here.
		{"shop.example.org", "A", "NOERROR aa\nshop.example.org. 60 IN A 10.0.0.51"},
		{"shop.example.org", "AAAA", "NOERROR aa\nauthority shop.example.org. 60 IN SOA"},
		{"shop.example.org", "MX", "NOERROR\nask shop.example.org"},
		{"x.wild.example.org", "A", "NOERROR aa\nx.wild.example.org. 60 IN A 10.0.0.52"},
		{"example.org", "A", "NOERROR\nask example.org"},
		{"printer.local", "A", "NOERROR aa\nprinter.local. 60 IN A 10.0.0.77"},
		{"printer.local", "MX", "NOERROR aa\nauthority local. 60 IN SOA"},
		// Others' domains.
		{"x.corp.example", "A", "NOERROR\nask x.corp.example"},
		{"x.example.com", "A", "NOERROR aa\nx.example.com. 60 IN A 10.0.0.53"},
		// A wildcard does not stand for what others are asked for (RFC 4592 §4.2).
		{"x.ask.example.com", "A", "NOERROR\nask x.ask.example.com"},
		{"ask2.example.com", "A", "NOERROR\nask ask2.example.com"},
		{"x.y.ask2.example.com", "A", "NOERROR\nask x.y.ask2.example.com"},
		{"own.ask.example.com", "A", "NOERROR aa\nown.ask.example.com. 60 IN A 10.0.0.54"},
		{"x.own.ask.example.com", "A", "NOERROR aa\nx.own.ask.example.com. 60 IN A 10.0.0.55"},
		{"x.sub.home.example", "A", "NOERROR\nask x.sub.home.example"},
		{"www.example.net", "A", "NOERROR\nask www.example.net"},
		{"", "NS", "NOERROR\nask "},
		// Names that nobody is asked for.
		{"localhost", "A", "NOERROR\nlocalhost. 3600 IN A 127.0.0.1"},
		{"x.localhost", "AAAA", "NOERROR\nx.localhost. 3600 IN AAAA ::1"},
		{"localhost", "MX", "NOERROR\nauthority localhost. 60 IN SOA"},
		{"1.0.0.127.in-addr.arpa", "PTR", "NOERROR\n1.0.0.127.in-addr.arpa. 3600 IN PTR localhost."},
		{"x.invalid", "A", "NXDOMAIN\nauthority invalid. 60 IN SOA"},
		{"facebookcorewwwi.onion", "A", "NXDOMAIN\nauthority onion. 60 IN SOA"},
		{"x.home.arpa", "A", "NXDOMAIN\nauthority home.arpa. 60 IN SOA"},
		{"use-application-dns.net", "A", "NXDOMAIN\nauthority use-application-dns.net. 60 IN SOA"},
		{"_dns.resolver.arpa", "SVCB", "NOERROR\nauthority resolver.arpa. 60 IN SOA"},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa", "PTR", "NXDOMAIN\nauthority 8.e.f.ip6.arpa. 60 IN SOA"},
	} {
		if got := table.Answer(c.name, dns.StringToType[c.qtype]).text(); got != c.want {
			t.Errorf("%s %s:\n%s\nwant:\n%s", c.name, c.qtype, got, c.want)
		}
	}
}

// A site may have a domain that is special elsewhere.
func TestOwnDomainBeforeSpecial(t *testing.T) {
	table := NewTable([]edge.RecordSet{set("nas.home.arpa", "A", "10.0.0.3")}, TableOptions{Domains: []string{"home.arpa"}, TTL: time.Minute})
	if r := table.Answer("nas.home.arpa", dns.TypeA); len(r.Answer) != 1 || !r.Authoritative {
		t.Errorf("nas.home.arpa: %s", r.text())
	}
	if r := table.Answer("x.home.arpa", dns.TypeA); r.Rcode != dns.RcodeNameError || !r.Authoritative {
		t.Errorf("x.home.arpa: %s", r.text())
	}
}

func TestReverseZones(t *testing.T) {
	for network, want := range map[string]string{
		"10.0.0.0/8": "10.in-addr.arpa", "10.1.0.0/16": "1.10.in-addr.arpa", "10.1.2.0/23": "2.1.10.in-addr.arpa 3.1.10.in-addr.arpa",
		"192.0.2.4/31": "4.2.0.192.in-addr.arpa 5.2.0.192.in-addr.arpa", "fd00::/8": "d.f.ip6.arpa",
		"2001:db8:0:12::/63": "2.1.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa 3.1.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
		"fe80::/10":          "8.e.f.ip6.arpa 9.e.f.ip6.arpa a.e.f.ip6.arpa b.e.f.ip6.arpa",
	} {
		if got := strings.Join(reverseZones(netip.MustParsePrefix(network)), " "); got != want {
			t.Errorf("%s: %s, want %s", network, got, want)
		}
	}
	for _, addr := range []string{"10.0.0.101", "fd00:10::101"} {
		want, err := dns.ReverseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := reverseName(netip.MustParseAddr(addr)) + "."; got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestInside(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "192.168.1.1": true, "172.31.0.1": true, "172.32.0.1": false, "127.0.0.1": true, "169.254.1.1": true, "0.0.0.0": true,
		"100.64.0.1": true, "9.9.9.9": false, "::1": true, "fd12::1": true, "fe80::1": true, "::ffff:10.0.0.1": true, "::ffff:9.9.9.9": false,
		"2001:db8:7::1": false, "64:ff9b::a00:1": true, "64:ff9b::909:909": false,
	} {
		if got := inside(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: inside is %t, want %t", addr, got, want)
		}
	}
}

// The order of records makes no difference, but within a set.
func TestTableIgnoresOrder(t *testing.T) {
	shuffled := slices.Clone(site)
	slices.Reverse(shuffled)
	o := TableOptions{Domains: []string{"home.example"}, Forwards: []string{"corp.example"}, TTL: time.Minute}
	a, b := NewTable(site, o), NewTable(shuffled, o)
	for _, r := range site {
		for _, name := range []string{r.Name, "x." + r.Name} {
			for _, qtype := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeANY} {
				if one, other := a.Answer(name, qtype).text(), b.Answer(name, qtype).text(); one != other {
					t.Errorf("%s: %s, or %s", name, one, other)
				}
			}
		}
	}
}

// A dot in a label is none between labels: x\.corp.example is nobody's of corp.example.
func TestExemptKnowsLabels(t *testing.T) {
	v := &view{own: []string{"corp.example"}}
	for name, want := range map[string]bool{
		"corp.example": true, "x.corp.example": true, `a\.b.corp.example`: true, "xcorp.example": false, `x\.corp.example`: false, "example": false, "": false,
	} {
		if got := v.exempt(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
