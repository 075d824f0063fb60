package status

import (
	"net/netip"

	"e13.dev/gatehouse/internal/edge"
)

// Router is what this machine is for the machines of its zones, beside what it
// opens; each part is nil without its block in the configuration.
type Router struct {
	Firewall *Firewall  `json:"firewall,omitempty"`
	Links    []Link     `json:"links,omitempty"` // in file order
	DHCP     []DHCPZone `json:"dhcp,omitempty"`  // in file order
	DNS      *DNS       `json:"dns,omitempty"`
	// Advertised is what machines are told of IPv6, in file order.
	Advertised []Advertised `json:"advertised,omitempty"`
}

// Firewall is what the packet filter has done since its rules were last loaded.
type Firewall struct {
	Applied  bool     `json:"applied"`         // the kernel has the rules that were decided
	Error    string   `json:"error,omitempty"` // why it has not
	Policies []Policy `json:"policies"`        // in file order
	// Pinholes are what gatehouse opens by itself: doors, and its own services.
	Pinholes int `json:"pinholes"`
	// Dropped packets, by where they came from and where they wanted to: zone names, "self", or "" for an
	// interface of no zone. Sorted.
	Dropped []Dropped `json:"dropped,omitempty"`
}

// Policy is one of the firewall's with what it has decided.
type Policy struct {
	What    string   `json:"what"` // "home -> cluster: 6443/TCP"
	Allow   bool     `json:"allow"`
	Packets uint64   `json:"packets"` // the first of connections
	Pos     edge.Pos `json:"pos"`
}

// Dropped is what was let pass nowhere.
type Dropped struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Packets uint64 `json:"packets"`
}

// Link is an interface that gatehouse keeps.
type Link struct {
	Name  string          `json:"name"`
	Kind  string          `json:"kind"` // "macvlan", "vlan", "bridge", or what it is without gatehouse
	Made  bool            `json:"made"` // by gatehouse
	Up    bool            `json:"up"`
	Addrs []netip.Prefix  `json:"addresses,omitempty"` // those that it has
	Lease *edge.LinkLease `json:"lease,omitempty"`     // nil: it asks for none, or has none
	Error string          `json:"error,omitempty"`
}

// DHCPZone is what was given to the machines of a zone.
type DHCPZone struct {
	Zone     string            `json:"zone"`
	Size     int               `json:"size"` // addresses of its pools
	Free     int               `json:"free"`
	Leases   []edge.Lease      `json:"leases"`             // sorted by address
	Messages map[string]uint64 `json:"messages,omitempty"` // by type: "DISCOVER", "OFFER", ...; what came and what went
	Error    string            `json:"error,omitempty"`    // why it does not serve
}

// Advertised is what the machines of an interface are told by router advertisements and stateless DHCPv6.
type Advertised struct {
	Zone      string         `json:"zone"`
	Interface string         `json:"interface"`
	Prefixes  []netip.Prefix `json:"prefixes,omitempty"` // that machines make themselves addresses of
	// Deprecated prefixes were advertised before: nobody is to open new connections from addresses in them.
	Deprecated []netip.Prefix `json:"deprecated,omitempty"`
	Sent       uint64         `json:"sent"`            // advertisements to everybody
	Answered   uint64         `json:"answered"`        // to those who asked
	Requests   uint64         `json:"requests"`        // of DHCPv6
	Replies    uint64         `json:"replies"`         // likewise
	Error      string         `json:"error,omitempty"` // why they are not told
}

// DNS is what was asked and answered.
type DNS struct {
	Zones     []DNSZone  `json:"zones"` // in file order
	Upstreams []Upstream `json:"upstreams"`
	Cached    int        `json:"cached"` // answers that are kept
}

// DNSZone is what the machines of a zone have asked.
type DNSZone struct {
	Zone      string            `json:"zone"`
	Names     int               `json:"names"`               // of this site that it knows
	Queries   map[string]uint64 `json:"queries,omitempty"`   // by protocol: "UDP", "TCP"
	Answers   map[string]uint64 `json:"answers,omitempty"`   // by code: "NOERROR", "NXDOMAIN", ...
	Own       uint64            `json:"own"`                 // answered from this site's names
	CacheHits uint64            `json:"cacheHits"`           // from the cache
	Forwarded uint64            `json:"forwarded"`           // by asking an upstream
	Limited   uint64            `json:"limited"`             // not answered: their clients ask too often
	Rebinding uint64            `json:"rebinding,omitempty"` // answers that were held back: an outside name had an inside address
	Error     string            `json:"error,omitempty"`     // why it does not answer there
}

// Upstream is a server that is asked.
type Upstream struct {
	Server  string `json:"server"` // "9.9.9.9:853 (dns.quad9.net)"
	Up      bool   `json:"up"`
	Queries uint64 `json:"queries"`
	Failed  uint64 `json:"failed"`
	Error   string `json:"error,omitempty"` // the last one
}
