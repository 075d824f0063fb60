// Package edge holds the nouns that every other package shares: zones, the
// frontends opened in them, the backends behind those, and what the cluster
// and the machine look like at one moment.
//
// It is plain data. It knows no Kubernetes client, no socket and no clock, so
// that what is decided from it can be decided anywhere: in the daemon, in
// `gatehouse plan`, in a test.
package edge

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// AnnotationPrefix starts every annotation that gatehouse reads on a Service.
const AnnotationPrefix = "gatehouse.e13.dev/"

// OldHealthInterval is the one annotation of l4proxy's service-announcer, in
// seconds, that is still read.
const OldHealthInterval = "l4proxy.e13.dev/health-interval"

// ExternalDNSHostname is the annotation of external-dns with the names of a
// Service, which is read where gatehouse answers questions for names.
const ExternalDNSHostname = "external-dns.alpha.kubernetes.io/hostname"

// Protocol is a transport protocol, in Kubernetes' spelling.
type Protocol string

// The transport protocols a Service port can name.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// DataPlane is what moves the bytes of a frontend.
type DataPlane string

// DataPlaneProxy is this program, which takes connections and makes new ones to
// the backends; DataPlaneNAT is the kernel, which rewrites the addresses of
// packets, also while this program does not run.
const (
	DataPlaneProxy DataPlane = "proxy"
	DataPlaneNAT   DataPlane = "nat"
)

// Target is what kind of backend a Service is served by.
type Target string

// The targets of a Service; TargetStatic is a backend written in a file.
const (
	TargetAuto     Target = "auto"
	TargetAddress  Target = "address"
	TargetNodePort Target = "nodePort"
	TargetPod      Target = "pod"
	TargetStatic   Target = "static"
)

// Pos is where in a file something was written. The zero Pos is nowhere.
// Line and Col count from 1.
type Pos struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Col  int    `json:"col,omitempty"`
}

// String prints FILE:LINE, the form used in the Why of a row.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// Problem is one thing the operator must know: where it is (a position in a
// file, or an object such as "service/shop/web"), what is wrong and what would
// be right. It is a value, so log, metrics, page and commands show the same one.
type Problem struct {
	Pos    Pos    `json:"pos,omitzero"`
	Object string `json:"object,omitempty"` // "service/shop/web", "interface/eth1", "zone/home"
	Path   string `json:"path,omitempty"`   // "frontends[0].port"
	What   string `json:"what"`
	Remedy string `json:"remedy,omitempty"` // what would be right
}

// String prints FILE:LINE:COL: path: what is wrong; what would be right.
func (p Problem) String() string {
	var b strings.Builder
	if p.Pos.File != "" {
		b.WriteString(p.Pos.File)
		if p.Pos.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Pos.Line, p.Pos.Col)
		}
		b.WriteString(": ")
	}
	for _, part := range []string{p.Object, p.Path} {
		if part != "" {
			b.WriteString(part + ": ")
		}
	}
	b.WriteString(p.What)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Zone is a network that clients come from, as a set of interfaces. A packet
// belongs to the zone of the interface it came in on, whatever its addresses.
type Zone struct {
	Name       string
	Interfaces []string
	Pos        Pos
}

// Interface is a network interface as the machine has it now.
type Interface struct {
	Name  string
	Index int
	Up    bool           // set up, and with a carrier
	Addrs []netip.Prefix // sorted, deprecated IPv6 ones last; link-local ones are left out
	// AnswersForOthers is true when the interface answers ARP for addresses of
	// other interfaces (net.ipv4.conf.*.arp_ignore is 0, the kernel's default).
	AnswersForOthers bool
}

// HostPort is where something listens, as an operator writes it: Host is an IP
// address or a name still to be resolved.
type HostPort struct {
	Host string
	Port uint16
}

// Addr returns the address if Host is one.
func (h HostPort) Addr() (netip.Addr, bool) {
	a, err := netip.ParseAddr(h.Host)
	return a.Unmap(), err == nil
}

// Listen is what a frontend's socket is bound to. It is comparable: two
// frontends with the same protocol and Listen are the same door.
type Listen struct {
	Device string     `json:"device,omitempty"` // interface (SO_BINDTODEVICE); empty: any
	Addr   netip.Addr `json:"addr,omitzero"`    // zero: every address, IPv4 and IPv6
	Port   uint16     `json:"port"`
}

// String prints the form that the file takes: ":80", "10.0.0.1:80", "@eth1:80".
func (l Listen) String() string {
	port := strconv.Itoa(int(l.Port))
	switch {
	case l.Addr.IsValid() && l.Device != "":
		return netip.AddrPortFrom(l.Addr, l.Port).String() + "@" + l.Device
	case l.Addr.IsValid():
		return netip.AddrPortFrom(l.Addr, l.Port).String()
	case l.Device != "":
		return "@" + l.Device + ":" + port
	default:
		return ":" + port
	}
}

// Door identifies a listening socket.
type Door struct {
	Protocol Protocol `json:"protocol"`
	Listen   Listen   `json:"listen"`
}

// String prints PROTOCOL LISTEN: "TCP @eth1:80".
func (d Door) String() string { return string(d.Protocol) + " " + d.Listen.String() }

// Frontend is one door, or some of the names behind one, and where what comes
// through it goes: all that a data plane has to know.
type Frontend struct {
	Door
	DataPlane DataPlane // empty: DataPlaneProxy
	Name      string    // "shop/web:80" or "shop/dns:53/UDP" for a Service, or the name in the file
	Zone      string    // empty for a static frontend with an explicit listen
	// Hostnames are the TLS server names that the frontend takes of what comes
	// through its door, which it then shares with others: "git.example.org";
	// "*.example.org", for one label or more in front of the rest; or "*", for
	// whatever else comes, what has no name included. They are in lower case and
	// sorted. Of a UDP frontend they are those of QUIC. Empty: all of the door.
	Hostnames []string
	// SourceRanges are the client networks that may connect. nil: all;
	// empty but not nil: none.
	SourceRanges []netip.Prefix
	// AcceptProxyProtocol are the networks of proxies in front of this machine,
	// whose connections begin with a PROXY protocol header. It is the same for
	// all frontends of a door.
	AcceptProxyProtocol []netip.Prefix
	Terms
	Health   HealthCheck // how the backends are probed
	Backends []Backend   // sorted by address
	// Terminating are former backends of DataPlaneNAT that still serve what they
	// have, and are to keep it; they get nothing new. Sorted.
	Terminating []netip.AddrPort
	Why         string // "service/shop/web", "gatehouse.yaml:14"
}

// Terms are what the connections of a frontend are held to. Of a UDP frontend
// these are sessions. They are comparable.
type Terms struct {
	ConnectTimeout time.Duration // for one backend; 0: the data plane's default
	IdleTimeout    time.Duration // close after this long without a byte; 0: never (UDP: 30 s)
	// DrainTimeout is how long connections outlive their backend or their
	// frontend, once that has left the configuration or the cluster. 0: until
	// they end by themselves.
	DrainTimeout time.Duration
	// At a time; 0: no limit.
	MaxConnections          int
	MaxConnectionsPerClient int  // of one client address
	MaxRatePerClient        Rate // new ones of one client address; the zero Rate: any number
	// BanTime is how long a client is turned away that has come faster than
	// MaxRatePerClient. 0: only until it has slowed down.
	BanTime time.Duration

	Balance Balance
	// AffinityTimeout is how long a client keeps its backend after its last
	// connection has begun, though others have come meanwhile. It is for
	// BalanceSource. 0: its backend follows from its address alone.
	AffinityTimeout time.Duration

	SendProxyProtocol ProxyProtocol
	// Transparent connections come to the backend from the client's own address.
	Transparent bool

	// Masquerade has all backends of DataPlaneNAT see this machine's address: for
	// where their answers to clients' own do not come back through this machine.
	// Where that is known it is done anyway.
	Masquerade bool

	// RefuseWhenDown turns clients away when every backend is down. Otherwise
	// those are tried all the same: it may be the checks that are wrong.
	RefuseWhenDown bool
	// CloseWhenDown resets the connections of a backend that is found down.
	CloseWhenDown bool
}

// Rate is a number of connections in a time. The zero Rate is no limit.
type Rate struct {
	Connections int
	Per         time.Duration
}

// String prints the form that the file takes: "100/10s".
func (r Rate) String() string {
	per := r.Per.String()
	for _, zero := range []string{"0s", "0m"} {
		if cut := strings.TrimSuffix(per, zero); strings.HasSuffix(cut, "m") || strings.HasSuffix(cut, "h") {
			per = cut
		}
	}
	return strconv.Itoa(r.Connections) + "/" + per
}

// Balance is how a backend is chosen for a new connection, among those that are
// up and with regard to their weights.
type Balance string

// BalanceRandom takes any; BalanceLeastConnections, of two taken at random, the
// one with fewer connections for its weight; BalanceSource the one that the
// client's address stands for (rendezvous hashing).
const (
	BalanceRandom           Balance = "random"
	BalanceLeastConnections Balance = "leastConnections"
	BalanceSource           Balance = "source"
)

// ProxyProtocol is a version of the PROXY protocol.
type ProxyProtocol string

// The versions of the PROXY protocol.
const (
	ProxyProtocolNone ProxyProtocol = "none"
	ProxyProtocolV1   ProxyProtocol = "v1"
	ProxyProtocolV2   ProxyProtocol = "v2"
)

// BackendState says whether a backend takes new connections.
type BackendState string

// A backend is pending until a check has first succeeded: the data plane uses
// pending backends only where no backend that is up takes the connection, and
// those that are down only where all are, and not with Terms.RefuseWhenDown.
const (
	Up      BackendState = "up"
	Pending BackendState = "pending"
	Down    BackendState = "down"
)

// Backend is where a connection can go.
type Backend struct {
	Addr   netip.AddrPort `json:"addr"`
	Weight int            `json:"weight"` // share of new connections relative to the others; 0: none
	State  BackendState   `json:"state"`
	Error  string         `json:"error,omitempty"` // why it is not up
	Target Target         `json:"target"`
	Node   string         `json:"node,omitempty"`
	Pods   []string       `json:"pods,omitempty"` // namespace/name of the pods it stands for, where known
	Share  float64        `json:"share"`          // of new connections, 0 to 1, given the states
	Since  time.Time      `json:"since,omitzero"` // when it got into the State; zero: nothing asks it
	Probe  netip.AddrPort `json:"-"`              // where its health is asked for; zero: nowhere
}

// HealthCheck is how backends are probed. It is comparable.
type HealthCheck struct {
	Type     CheckType     // empty: CheckTCP
	Interval time.Duration // between two probes; 0: no probes, the backend counts as up
	Timeout  time.Duration
	Rise     int    // successes in a row before a down backend is up
	Fall     int    // failures in a row before an up backend is down
	Port     uint16 // 0: that of the backend
	// Of CheckHTTP and CheckHTTPS. The Host is also the server name of CheckHTTPS
	// and CheckTLS; empty: the address, and no server name.
	Path, Host           string
	StatusMin, StatusMax int // that are a success
	// Of CheckExchange: what is sent, if anything, and what the answer has to
	// contain.
	Send, Expect string
}

// CheckType is what a health check does.
type CheckType string

// CheckTCP connects; CheckTLS shakes hands, whatever the certificate; CheckHTTP
// and CheckHTTPS ask for a path and want a status; CheckExchange sends
// something and wants something back.
const (
	CheckTCP      CheckType = "tcp"
	CheckTLS      CheckType = "tls"
	CheckHTTP     CheckType = "http"
	CheckHTTPS    CheckType = "https"
	CheckExchange CheckType = "exchange"
)

// ProbeKind is how a probe asks.
type ProbeKind string

// ProbeBackend makes the HealthCheck at Addr. ProbeHealthCheckNodePort sends
// GET / and wants 200: what kube-proxy answers once it has programmed a Service
// that has endpoints on its node. That says nothing of a port that was added
// since, so that a backend which is not up also has to pass the HealthCheck
// (Through); and each time if that is more than to connect. ProbeHealthz sends
// GET /healthz, where kube-proxy answers something else than 200 while its node
// takes no connections: it is leaving, or not programmed. Who refuses the
// connection is no kube-proxy, and who has never answered may be behind a
// firewall: neither says anything against the node.
const (
	ProbeBackend             ProbeKind = "backend"
	ProbeHealthCheckNodePort ProbeKind = "healthCheckNodePort"
	ProbeHealthz             ProbeKind = "healthz"
)

// Probe is one health check of one address. It is comparable: frontends that
// ask for the same probe share it.
type Probe struct {
	Kind    ProbeKind
	Addr    netip.AddrPort
	Through netip.AddrPort // of a ProbeHealthCheckNodePort: where the HealthCheck is made; zero: nowhere
	// SendProxyProtocol is what a HealthCheck begins with that does more than to
	// connect, where the backend expects that. Empty: nothing.
	SendProxyProtocol ProxyProtocol
	HealthCheck
}

// Health is what a probe has found.
type Health struct {
	State BackendState
	Error string // of the last probe; empty after a success
	// Weight is how many ready endpoints kube-proxy has on the node, as a
	// ProbeHealthCheckNodePort was last told by X-Load-Balancing-Endpoint-Weight.
	// 0: it was not told.
	Weight int
	// Silent says of a failure that nothing came back: the packets are lost, here
	// or behind the address.
	Silent bool
	// Confirmed says that kube-proxy itself has answered a ProbeHealthz with 200,
	// so that its node is alive and takes connections.
	Confirmed bool
	// Since is when it got into the State. The zero time: it is not known.
	Since time.Time
}

// Route leads to the pods of a node. It is comparable.
type Route struct {
	Dst netip.Prefix `json:"dst"` // masked
	Via netip.Addr   `json:"via"` // the node, in a network of this machine
	Why string       `json:"why"` // "node/w1"
}

// Cluster is what the Kubernetes API says at one moment.
type Cluster struct {
	Services []Service // type LoadBalancer only
	Nodes    []Node
	// APIServers are the ready endpoints of the Service default/kubernetes: what
	// the API servers say of themselves. Sorted.
	APIServers []netip.AddrPort
	// Namespaces are the labels of each namespace; nil: they are not read, since
	// nothing in the configuration asks for them.
	Namespaces map[string]map[string]string
	// Hosts are the names that Ingresses and Gateways' routes answer to, as far as
	// it is known which Service serves them; sorted by host, then Service. nil: they
	// are not read, since nothing in the configuration asks for them.
	Hosts []HostRule
	// Lists counts how often one of these was read as a whole, and not followed by
	// a watch: what is missing afterwards was not seen to be deleted.
	Lists int
	// Stale says that the API does not answer now, and this is the last that it
	// said.
	Stale bool
}

// Service is a Service of type LoadBalancer with its endpoints.
type Service struct {
	Namespace, Name, UID string
	ResourceVersion      string
	Created              time.Time
	Class                string            // spec.loadBalancerClass; empty: none
	Annotations          map[string]string // only those that gatehouse reads
	Labels               map[string]string
	Local                bool   // externalTrafficPolicy: Local
	HealthCheckNodePort  uint16 // 0: none
	// AffinityTimeout is that of sessionAffinity: ClientIP. 0: there is none.
	AffinityTimeout time.Duration
	SourceRanges    []string
	IPFamilies      []string // "IPv4", "IPv6", in the Service's order
	IPFamilyPolicy  string   // "SingleStack", "PreferDualStack", "RequireDualStack"; empty: not said
	LoadBalancerIP  string   // spec.loadBalancerIP, deprecated since Kubernetes 1.24
	Ports           []ServicePort
	Endpoints       []Endpoint
	Ingress         []Ingress // status.loadBalancer.ingress
	// StatusBy is the field manager that has written Ingress last; empty: it is not
	// known. StatusOurs says that it was gatehouse.
	StatusBy   string
	StatusOurs bool
	Conditions []Condition // of status.conditions, those of types that gatehouse writes
	Finalizer  bool        // gatehouse's own is on it
	Deleting   bool
}

// Key is namespace/name.
func (s *Service) Key() string { return s.Namespace + "/" + s.Name }

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16 // 0: none allocated
}

// Endpoint is one address behind one port of a Service. Slices are merged and
// duplicates gone.
type Endpoint struct {
	PortName string // which ServicePort
	Protocol Protocol
	Addr     netip.AddrPort
	Node     string // empty where the slice names none
	Pod      string // namespace/name; empty where the slice names none
	Ready    bool
	Serving  bool
	// Terminating endpoints get connections only while the Service has no
	// ready one and they are still Serving (KEP-1669).
	Terminating bool
}

// Ingress is one entry of status.loadBalancer.ingress.
type Ingress struct {
	IP       netip.Addr // zero for a hostname entry
	Hostname string
	Mode     string // ipMode: "VIP", "Proxy" or empty
	Ports    []IngressPort
}

// IngressPort reports how one port is served (KEP-1435). Error is empty, or a
// CamelCase reason.
type IngressPort struct {
	Port     uint16
	Protocol Protocol
	Error    string
}

// Condition is one of status.conditions.
type Condition struct {
	Type    string // "gatehouse.e13.dev/Exposed", "LoadBalancerPortsError"
	True    bool   // status: "True", otherwise "False"
	Reason  string // CamelCase
	Message string
}

// Node is a cluster node. Whether it is Ready is not said: that flaps, and its
// endpoints and probes say what matters (KEP-3458).
type Node struct {
	Name  string
	Addrs []netip.Addr // InternalIPs, in the Node's order
	// PodCIDRs are the networks of its pods: spec.podCIDRs, in the Node's order.
	PodCIDRs []netip.Prefix
	// Excluded is the label node.kubernetes.io/exclude-from-external-load-balancers.
	Excluded bool
	// Leaving is the taint ToBeDeletedByClusterAutoscaler: no new connections.
	Leaving bool
	// ControlPlane is the label node-role.kubernetes.io/control-plane, or the old
	// one, node-role.kubernetes.io/master.
	ControlPlane bool
}

// ServiceStatus is what gatehouse wants to be written in a Service that it owns,
// or has owned: no ingress and no condition means that they are cleared.
type ServiceStatus struct {
	Namespace, Name, UID string
	Ingress              []Ingress
	Conditions           []Condition // of the types that gatehouse writes; sorted by type
	// Finalizer says that gatehouse's own is to be on it: deleting the Service ends
	// once its frontends are closed.
	Finalizer bool
}

// Range is a range of addresses of one family, both ends included. It is
// comparable.
type Range struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Contains says whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String prints FIRST-LAST, or the address if it is one.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Address is an address of a pool that is to be on an interface of this
// machine, which answers for it there and nowhere else.
type Address struct {
	Addr   netip.Addr `json:"addr"`
	Device string     `json:"device"`
	Why    string     `json:"why"` // "service/shop/web"
}

// AddressState is how far an Address is.
type AddressState struct {
	// Ready: it is on the interface, and was announced. Otherwise it is being
	// asked for, or cannot be had, for the Error.
	Ready bool
	// Conflict is the hardware address of somebody else who answers for it, or says
	// that somebody else has put it on this machine; empty: nobody does.
	Conflict string
	Error    string
}

// Allocation is an address of a pool that a Service has, or had until a while
// ago: that one may have it again, and nobody else.
type Allocation struct {
	Addr    netip.Addr `json:"addr"`
	Pool    string     `json:"pool"`
	Zone    string     `json:"zone"`
	Service string     `json:"service"` // namespace/name
	UID     string     `json:"uid"`
	// Held: no Service has it now, and it is not free yet.
	Held bool `json:"held,omitempty"`
}

// Event is something to tell the owner of a Service.
type Event struct {
	Namespace, Name, UID string
	Warning              bool
	Reason               string // CamelCase: "ZoneOpened", "PortConflict"
	Message              string
}
