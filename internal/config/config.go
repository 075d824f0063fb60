// Package config turns the bytes of configuration files into a Config, or into
// every problem they have, each with its position. It opens nothing: no file,
// no socket, no name is resolved.
package config

import (
	"net/netip"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// APIVersion is what a gatehouse file says in apiVersion.
const APIVersion = "gatehouse.e13.dev/v1"

// DefaultClass is the loadBalancerClass that gatehouse owns unless told otherwise.
const DefaultClass = "gatehouse.e13.dev/edge"

// DefaultHealth is how backends are probed where nothing else is said.
var DefaultHealth = edge.HealthCheck{Type: edge.CheckTCP, Interval: 5 * time.Second, Timeout: time.Second, Rise: 1, Fall: 2}

// DefaultHealthzPort is where kube-proxy says whether its node takes
// connections (--healthz-bind-address).
const DefaultHealthzPort = 10256

// DefaultAPIServerPort is where API servers listen, and are opened.
const DefaultAPIServerPort = 6443

// DefaultHoldLosses is long enough for somebody who watches to see it, or for an
// API server that came up with the wrong data to be put right.
const DefaultHoldLosses = 5 * time.Minute

// DefaultStopTimeout is how long a stopping gatehouse waits for connections.
const DefaultStopTimeout = 10 * time.Second

// Connections can be given no time at all, or one between these: less is a
// mistake, such as milliseconds where seconds were meant, and more is for ever.
const (
	ShortestTimeout = 100 * time.Millisecond
	LongestTimeout  = 365 * 24 * time.Hour
)

// DefaultUDPIdleTimeout is when a UDP session ends of which nothing else is
// said: most are one question and one answer, and nothing else ends them.
const DefaultUDPIdleTimeout = 30 * time.Second

// DefaultTerms hold for connections where nothing else is said. The limits keep
// one client from taking all there is, and all clients from taking the
// machine's descriptors and memory.
var DefaultTerms = edge.Terms{
	ConnectTimeout: 3 * time.Second, MaxConnections: 20000, MaxConnectionsPerClient: 2000,
	Balance: edge.BalanceRandom, SendProxyProtocol: edge.ProxyProtocolNone,
}

// Config is what all files together say.
type Config struct {
	Zones      []edge.Zone // in file order
	Frontends  []Frontend  // in file order
	Pools      []Pool      // in file order; no two overlap
	Kubernetes *Kubernetes // nil: no cluster
	Admin      Admin
	Firewall   *Firewall // nil: gatehouse filters nothing
	Links      []Link    // in file order
	DHCP       []DHCP    // in file order; a zone once
	DNS        *DNS      // nil: gatehouse answers no questions
	// StateDir is where the last good snapshot of the cluster and DHCP leases are kept;
	// empty: nowhere.
	StateDir string
	// StopTimeout is how long connections may go on when gatehouse stops; what
	// is left then is cut.
	StopTimeout time.Duration
}

// Frontend is a static frontend.
type Frontend struct {
	Name         string // given, or made from the listen address
	Zones        []string
	Listen       *Listen // instead of Zones and Port
	Port         uint16  // with Zones
	Protocol     edge.Protocol
	Hostnames    []string       // TLS server names, as edge.Frontend has them; nil: the whole port
	SourceRanges []netip.Prefix // nil: all
	// AcceptProxyProtocol are the networks of proxies that connect with a header.
	AcceptProxyProtocol []netip.Prefix
	DataPlane           edge.DataPlane
	Health              edge.HealthCheck // of a UDP frontend: none
	edge.Terms
	Backends []Backend
	Pos      edge.Pos
}

// Listen is an explicit listen address: ":80", "10.0.0.1:80", "[::1]:80",
// "name:80" or "@eth1:80".
type Listen struct {
	Device string // "@eth1:80"
	Host   string // IP address or name; empty: every address
	Port   uint16
	Pos    edge.Pos
}

// Backend is a static backend.
type Backend struct {
	Address edge.HostPort
	Weight  int // 0 to 65535; 1 if absent
	Pos     edge.Pos
}

// Kubernetes is the block of that name. Absent fields have their defaults.
type Kubernetes struct {
	Kubeconfig        string // empty: in-cluster, then KUBECONFIG
	LoadBalancerClass string
	Classless         bool
	FollowAddresses   bool
	Selector          string // label selector; valid
	DefaultZones      []string
	Allow             map[string]Allow // by zone; a zone that is not a key may be asked for by all
	Target            edge.Target
	DataPlane         edge.DataPlane
	PodRoutes         bool // keep routes to the pods of each node while pods are backends
	edge.Terms             // of all Services; what a Service says for itself comes first
	// OfRelay are those of its fields that ask for what the kernel cannot do: of no
	// effect for a Service that asks for data plane nat.
	OfRelay             []Setting
	AcceptProxyProtocol []netip.Prefix
	Health              edge.HealthCheck
	HealthzPort         uint16 // of kube-proxy on each node; 0: it is not asked
	// IgnoreExcludeLabel uses nodes with the label
	// node.kubernetes.io/exclude-from-external-load-balancers like others.
	IgnoreExcludeLabel bool
	Finalizer          bool       // put gatehouse's on Services that are open
	APIServer          *APIServer // nil: not opened
	// HoldLosses is how long a list that suddenly lacks most of what was there is
	// not believed; 0: it is believed at once.
	HoldLosses time.Duration
	Pos        edge.Pos
	// Keys are where its fields are written. One that is not there has its default.
	Keys map[string]edge.Pos
}

// At is where a field is written, or the block if it is not.
func (k *Kubernetes) At(key string) edge.Pos {
	if pos, ok := k.Keys[key]; ok {
		return pos
	}
	return k.Pos
}

// Setting is a field that is there, and that the nat data plane cannot keep.
type Setting struct {
	Key string // "maxConnections"
	Why string // follows "data plane nat": "does not count connections ..."
	Pos edge.Pos
}

// Allow says who may ask for a zone.
type Allow struct {
	Who
	Pos edge.Pos
}

// Who is a choice of Services: those of the namespaces named, or whose labels
// match (if neither is said, of all), as far as their own labels match. The zero
// Who is everybody.
type Who struct {
	Namespaces      []string // nil: not said
	NamespaceLabels string   // label selector, valid; empty: not said
	Labels          string   // label selector of Services, valid; empty: all
}

// Pool is a set of addresses that Services get for themselves.
type Pool struct {
	Name      string
	Zone      string
	Addresses []edge.Range // in file order; no two overlap, in this pool or another
	Who
	Auto bool // Services get one without asking for it
	Pos  edge.Pos
}

// APIServerName is what the frontend of an APIServer is called.
const APIServerName = "kubernetes-api"

// APIServer opens the control plane's API servers in zones.
type APIServer struct {
	Zones []string
	Port  uint16
	Pos   edge.Pos
}

// Admin is where the status page, metrics and health of gatehouse itself are served.
// What listens on loopback or at the Socket asks nobody who he is; the Socket's
// permissions say who may. Everywhere else it takes the token in TokenFile.
type Admin struct {
	Listen string // host:port; empty: not served there
	Socket string // the path of a Unix socket; empty: none
	// Zones are those in which it is served, on their interfaces only, at Port.
	Zones     []string
	Port      uint16
	TokenFile string // empty: there is none, and it is served on this machine only
	Pos       edge.Pos
}

// File is one configuration file: the name it is reported by and its content.
type File struct {
	Name string
	Data []byte
}

// Zone returns the zone with that name, or nil.
func (c *Config) Zone(name string) *edge.Zone {
	for i := range c.Zones {
		if c.Zones[i].Name == name {
			return &c.Zones[i]
		}
	}
	return nil
}
