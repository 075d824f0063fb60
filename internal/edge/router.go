package edge

import (
	"net/netip"
	"time"
)

// Lease is an address that a machine of a zone has by DHCP.
type Lease struct {
	Zone     string     `json:"zone"`
	Addr     netip.Addr `json:"address"`
	MAC      string     `json:"mac"`                // "02:00:00:00:00:11"
	ClientID string     `json:"clientId,omitempty"` // option 61, in hex; empty: none was sent
	Hostname string     `json:"hostname,omitempty"` // in lower case, one label; that of the reservation, else as the machine calls itself
	Begun    time.Time  `json:"begun"`
	Expires  time.Time  `json:"expires"`
	Reserved bool       `json:"reserved,omitempty"`
	// Declined says that the address is nobody's until Expires: somebody answers there who was not given it.
	Declined bool `json:"declined,omitempty"`
}

// LinkLease is what a DHCP server has told this machine for one of its own interfaces.
type LinkLease struct {
	Link    string       `json:"link"`
	Addr    netip.Prefix `json:"address"`
	Router  netip.Addr   `json:"router,omitzero"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	Domain  string       `json:"domain,omitempty"`
	Server  netip.Addr   `json:"server"`
	Begun   time.Time    `json:"begun"`
	Expires time.Time    `json:"expires"`
}

// HostRule is a name that an Ingress or a Gateway's route answers to, and the Service that takes its connections.
type HostRule struct {
	Host    string // in lower case; "*.example.org" for names below; never empty
	Service string // namespace/name; empty: its status does not say
	Class   string // of the Ingress or the Gateway; empty: none
	Why     string // "ingress/shop/web", "httproute/shop/web"
	// Namespace is where the Ingress or route is, and Created when it was made: of two that want a name, the
	// older one's namespace has it.
	Namespace string
	Created   time.Time
}

// Records of one zone: what machines of that zone are answered.
type Records struct {
	Zone string
	Sets []RecordSet // sorted by name, then type; one for each name and type
}

// RecordSet is what one name has of one type, as a zone file writes it (RFC 1035 §5).
type RecordSet struct {
	Name string   `json:"name"` // "web.shop.cluster.home.example", in lower case, no dot at its end; may begin with "*."
	Type string   `json:"type"` // A, AAAA, PTR, SRV, CNAME, TXT
	TTL  uint32   `json:"ttl"`  // in seconds
	Data []string `json:"data"` // "10.0.0.11"; names have no dot at their end; sorted
	Why  string   `json:"why"`  // "service/shop/web", "gatehouse.yaml:14", "dhcp", "node/worker-1"
}
