// Package dns owns the DNS server of zones: its sockets, what it answers from
// the names of the site, what it asks of others, and what it keeps of that. It
// decides no names: each zone's come from its caller, whole, and a new table of
// them takes the place of the last without a question that is lost between.
//
//	server := dns.New(log, dns.Options{})
//	failures := server.Apply(dns.Config{Zones: ..., Domain: "home.example", Upstreams: ...})
//	err := server.Run(ctx)
//
// A question belongs to the zone of the interface that it came in on, whatever
// its addresses. The parts: Table answers from names (pure), cache keeps packed
// answers, pool asks upstreams, and the sockets' loops bring them together.
package dns

import (
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// Config is everything that a Server follows. The zero Config answers nobody.
type Config struct {
	Zones  []Zone
	Domain string // it is authoritative for; in lower case, no dot at its end
	// ServiceDomain likewise; it may be below Domain.
	ServiceDomain string
	// NameServer is what this server is called in SOA and NS records; it is among
	// the Records. Empty: localhost.
	NameServer string
	// Reverse are the networks whose PTR records are this site's.
	Reverse   []netip.Prefix
	Upstreams []Upstream // asked for what is not known here
	Forwards  []Forward
	// Rebinding are domains whose names may have inside addresses though an
	// upstream says so.
	Rebinding     []string
	TTL           time.Duration // of what this server says of its own: SOA, NS, negative answers
	CacheSize     int           // how many answers are kept, of all zones; 0: none
	RatePerClient int           // questions a second; 0: any number
	// Self are this machine's addresses. An upstream among them would ask itself.
	Self []netip.Addr
	// Port is where it answers; 0: 53.
	Port uint16
}

// Zone is where questions come from.
type Zone struct {
	Name    string
	Devices []Device
	// Clients are the networks that may ask. Link-local addresses always may.
	Clients []netip.Prefix
	Records edge.Records
}

// Device is a network interface. One that was taken away and made anew has the
// name, not the index.
type Device struct {
	Name  string // empty: all interfaces
	Index int
	// Addrs are where it answers if another server has an address of another
	// interface, so that it cannot have all of them: the kernel takes a socket for
	// all addresses of an interface and one for an address of any interface to be
	// in each other's way.
	Addrs []netip.Addr
}

// Upstream is a server that is asked. It is comparable.
type Upstream struct {
	Addr netip.AddrPort
	TLS  string // the name in its certificate (DNS over TLS, RFC 7858); empty: plain
}

// String prints the server as the status does: "9.9.9.9:853 (dns.quad9.net)".
func (u Upstream) String() string {
	if u.TLS != "" {
		return u.Addr.String() + " (" + u.TLS + ")"
	}
	return u.Addr.String()
}

// Forward is a domain that certain servers are asked for.
type Forward struct {
	Domain    string // in lower case, no dot at its end
	Upstreams []Upstream
}

const (
	// Most that is sent by UDP, whatever a client says that it can take: what
	// fits the smallest MTU of IPv6, so that nothing is fragmented (the flag day
	// of 2020), and an answer is never more than about thirty times its question.
	udpSize = 1232
	// Without EDNS (RFC 1035 §2.3.4).
	plainSize = 512
)
