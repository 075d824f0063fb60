package config

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// DNSPort is where DNS servers listen (RFC 1035 section 4.2).
const DNSPort = 53

// DNSTLSPort is where they do for DNS over TLS (RFC 7858 section 3.1).
const DNSTLSPort = 853

// OwnName is what this machine is called in the site's domain.
const OwnName = "gatehouse"

// What dns has where nothing is said.
const (
	DefaultDNSTTL           = time.Minute
	DefaultDNSCacheSize     = 10_000
	DefaultDNSRatePerClient = 1000
)

// dnsRefs are what a dns block names of other blocks, which may be in a later file.
type dnsRefs struct {
	links []text // dhcp:LINK
}

// dns reads the block of that name.
func (f *file) dns(v value, pos edge.Pos) {
	d := &DNS{TTL: DefaultDNSTTL, CacheSize: DefaultDNSCacheSize, RatePerClient: DefaultDNSRatePerClient, Pos: pos}
	f.cfg.DNS = d
	m, ok := v.fields(&dnsBlock)
	if !ok {
		return
	}
	zones := m.need("zones")
	if zones.emptyList() {
		zones.problem("a DNS server that answers nowhere", "write zones: [NAME], or remove dns")
	}
	names := f.zoneNames(zones)
	d.Zones = plain(names)
	for _, z := range names {
		for _, p := range []edge.Protocol{edge.UDP, edge.TCP} {
			f.claims = append(f.claims, claim{protocol: p, zone: z.text, port: DNSPort, text: "DNS (" + string(p) + " port 53) in zone " + z.text, at: z.at})
		}
	}
	domain := m.need("domain")
	parsed(domain, &d.Domain, parseDomain)
	if d.Domain != "" {
		d.ServiceDomain = "cluster." + d.Domain
	}
	services := m.get("serviceDomain")
	if parsed(services, &d.ServiceDomain, parseDomain); !services.absent() && d.ServiceDomain == d.Domain && d.Domain != "" {
		services.problem("Services would be called like machines", "write one below it, such as cluster."+d.Domain+", or leave it out")
	}
	for _, r := range m.get("records").list() {
		f.record(r, d)
	}
	f.checkRecords()
	d.Upstreams = f.upstreams(m.get("upstreams"))
	f.forwards(m.get("forwards"), d)
	d.Rebinding = plain(m.get("rebinding").parsedTexts(parseDNSName))
	m.get("ttl").duration(&d.TTL, time.Second, 24*time.Hour, false)
	m.get("cacheSize").int(&d.CacheSize, 0, 1_000_000)
	m.get("ratePerClient").int(&d.RatePerClient, 0, 1_000_000)
	for _, e := range m.get("ingressClasses").entries() {
		if d.IngressClasses == nil {
			d.IngressClasses = map[string]string{}
		}
		var service string
		if parsed(e.value, &service, parseServiceKey); service != "" {
			d.IngressClasses[e.key] = service
		}
	}
	f.dnsAllow(m.get("allow"), d)
}

// dnsAllow reads who may have names in which domain.
func (f *file) dnsAllow(v value, d *DNS) {
	for _, e := range v.entries() {
		domain, flt := parseDNSName(e.key)
		if flt != nil {
			e.keyAt.fault(flt)
			continue
		}
		if first, ok := d.Allow[domain]; ok {
			e.keyAt.problem("defined twice", "the first is at "+first.Pos.String()+"; keep one of them")
			continue
		}
		m, ok := e.value.fields(&dnsAllowBlock)
		if !ok {
			continue
		}
		if d.Allow == nil {
			d.Allow = map[string]Allow{}
		}
		allow := Allow{Pos: e.keyAt.pos()}
		m.namespaces(&allow.Who)
		d.Allow[domain] = allow
	}
}

// forwards reads the servers of domains.
func (f *file) forwards(v value, d *DNS) {
	for _, e := range v.entries() {
		domain, flt := parseDNSName(e.key)
		if flt != nil {
			e.keyAt.fault(flt)
			continue
		}
		if domain == d.Domain || domain == d.ServiceDomain {
			e.keyAt.problem(quote(domain)+" is this site's, for which nobody else is asked", "write a domain below it, or another one")
			continue
		}
		if i := slices.IndexFunc(d.Forwards, func(o Forward) bool { return o.Domain == domain }); i >= 0 {
			e.keyAt.problem("defined twice", "the first is at "+d.Forwards[i].Pos.String()+"; keep one of them")
			continue
		}
		if e.value.emptyList() {
			e.value.problem("nobody is asked", "write the servers, such as [10.9.0.53], or remove it")
		}
		d.Forwards = append(d.Forwards, Forward{Domain: domain, Upstreams: f.upstreams(e.value), Pos: e.keyAt.pos()})
	}
}

// upstreams reads servers. An empty list is not nil.
func (f *file) upstreams(v value) []Upstream {
	if v.absent() {
		return nil
	}
	ups := []Upstream{}
	for _, t := range v.texts(nil) {
		u, flt := ParseUpstream(t.text)
		if flt != nil {
			t.at.fault(flt)
			continue
		}
		u.Pos = t.at.pos()
		same := func(o Upstream) bool { return o.Addr == u.Addr && o.Link == u.Link && o.TLS == u.TLS }
		if i := slices.IndexFunc(ups, same); i >= 0 {
			t.at.problem(quote(t.text)+" is in the list twice", "the first is at "+ups[i].Pos.String())
			continue
		}
		if u.Link != "" {
			f.dnsRefs.links = append(f.dnsRefs.links, text{u.Link, t.at})
		}
		ups = append(ups, u)
	}
	return ups
}

// ParseUpstream reads a server that is asked: "9.9.9.9", "9.9.9.9:5353",
// "[2620:fe::fe]:53", "tls://9.9.9.9#dns.quad9.net", "dhcp:veth0".
func ParseUpstream(s string) (Upstream, *Fault) {
	const remedy = `write an IP address such as 9.9.9.9, or "tls://9.9.9.9#dns.quad9.net" for DNS over TLS, or "dhcp:LINK" for those that DHCP tells`
	if link, ok := strings.CutPrefix(s, dhcpWord+":"); ok {
		return Upstream{Link: link}, checkInterface(link)
	}
	var u Upstream
	port := uint16(DNSPort)
	server, secure := strings.CutPrefix(s, "tls://")
	host, name, named := strings.Cut(server, "#")
	switch scheme, _, ok := strings.Cut(s, "://"); {
	case secure:
		port = DNSTLSPort
		if !named {
			return u, &Fault{quote(s) + " does not say whose certificate it has to have", "write the server's name behind it: " + quote(s+"#dns.quad9.net")}
		}
		var flt *Fault
		if u.TLS, flt = parseDNSName(name); flt != nil {
			return u, &Fault{quote(name) + " is not a name that a server's certificate has", "write one such as " + quote("tls://"+host+"#dns.quad9.net")}
		}
	case ok:
		return u, &Fault{"servers are not asked by " + scheme, remedy}
	case named:
		return u, &Fault{quote(s) + " has the name of a certificate, and is asked without TLS", "write " + quote("tls://"+s) + ", or " + quote(host)}
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		u.Addr = netip.AddrPortFrom(a.Unmap(), port)
	} else if ap, err := netip.ParseAddrPort(host); err == nil {
		u.Addr = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	switch a := u.Addr.Addr(); {
	case !a.IsValid():
		return Upstream{}, &Fault{quote(s) + " is no server", remedy}
	case a.IsUnspecified() || a.IsMulticast() || u.Addr.Port() == 0:
		return Upstream{}, &Fault{quote(s) + " is no server's address", remedy}
	}
	return u, nil
}

// String prints what the file would say.
func (u Upstream) String() string {
	if u.Link != "" {
		return dhcpWord + ":" + u.Link
	}
	port, prefix, suffix := uint16(DNSPort), "", ""
	if u.TLS != "" {
		port, prefix, suffix = DNSTLSPort, "tls://", "#"+u.TLS
	}
	if u.Addr.Port() == port {
		return prefix + u.Addr.Addr().String() + suffix
	}
	return prefix + u.Addr.String() + suffix
}

// parseDomain reads a domain that a site can be authoritative for.
func parseDomain(s string) (string, *Fault) {
	name, flt := parseDNSName(s)
	switch {
	case flt != nil:
		return "", flt
	case name == "local":
		return "", &Fault{`"local" is for multicast DNS (RFC 6762), and machines ask no server for it`, "write home.arpa (RFC 8375), or a domain of yours"}
	case name == "localhost" || strings.HasSuffix(name, ".arpa") && name != "home.arpa" && !strings.HasSuffix(name, ".home.arpa"):
		return "", &Fault{quote(name) + " means something else everywhere", "write home.arpa (RFC 8375), or a domain of yours"}
	case len(name) > maxDomain:
		return "", &Fault{quote(name) + " leaves no room for names", "write a domain of " + strconv.Itoa(maxDomain) + " bytes or less"}
	}
	return name, nil
}

// maxDomain leaves room for _PORT._PROTOCOL.SERVICE.NAMESPACE. of Kubernetes in a
// name of 253 bytes.
const maxDomain = 253 - (17 + 6 + 2*64)

// parseServiceKey reads NAMESPACE/NAME.
func parseServiceKey(s string) (string, *Fault) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || !dnsLabel.MatchString(namespace) || !dnsLabel.MatchString(name) {
		return "", &Fault{quote(s) + " is not a Service", "write NAMESPACE/NAME, such as ingress-public/nginx"}
	}
	return s, nil
}

// checkDNS runs when all files are read: links may be in a later one.
func (p *parser) checkDNS() {
	for _, ref := range p.dnsRefs.links {
		asks := map[string]bool{}
		for i := range p.cfg.Links {
			if p.cfg.Links[i].DHCP != nil {
				asks[p.cfg.Links[i].Name] = true
			}
		}
		if !asks[ref.text] {
			ref.at.problem("no link "+quote(ref.text)+" that asks for an address by DHCP", "write links: [{name: "+ref.text+", addresses: [dhcp]}], or the servers; "+Suggest(ref.text, "links that do:", slices.Sorted(maps.Keys(asks))))
		}
	}
}
