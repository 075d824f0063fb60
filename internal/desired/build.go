// Package desired decides. Build takes snapshots of the configuration, the
// machine, the cluster and the health of backends, and returns everything that
// should be: which doors are open where, which backends are behind them with
// which weight, what the cluster should be told, and what is wrong.
//
// It is pure: no clock, no I/O, no memory of the last call, and the same input
// in any order gives the same output. Every row says why it exists; `plan`, the
// status page, events and logs are views of the same rows.
package desired

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Inputs are the snapshots that a State is decided from.
type Inputs struct {
	Config     *config.Config
	Interfaces []edge.Interface
	Cluster    *edge.Cluster              // nil: no cluster configured, or not read yet
	Hosts      map[string]netip.Addr      // names in the configuration, resolved
	Health     map[edge.Probe]edge.Health // what the probes found; a missing one is pending
	Doors      map[edge.Door]string       // doors that could not be opened, with the error
	// NoTransparency is why this machine cannot relay transparently; empty: it can.
	NoTransparency string
	// NoNAT is why this machine's kernel cannot do the nat data plane; empty: it
	// can.
	NoNAT string
	// Addresses say how far those of State.Addresses are; a missing one has not
	// been begun with.
	Addresses map[netip.Addr]edge.AddressState
	// Allocations are those of the last decision and what is held of before. The
	// status of Services says more: who has which address.
	Allocations []edge.Allocation
	// NoForwarding says that the kernel forwards no packets (ip_forward is 0), of
	// IPv4 and of IPv6.
	NoForwarding4, NoForwarding6 bool
}

// State is everything that should be.
type State struct {
	Exposures []Exposure           // sorted by zone, port, name
	Frontends []edge.Frontend      // the open ones, as the data plane takes them; sorted by door, then name
	Probes    []edge.Probe         // sorted, without duplicates
	Statuses  []edge.ServiceStatus // for Services that gatehouse owns
	Events    []edge.Event         // what the owners of Services should be told
	// Transparent says that clients' own addresses are wanted, whether or not they
	// can be had.
	Transparent bool
	// NAT says that the nat data plane is wanted, whether or not it can be had.
	NAT bool
	// Hairpins are pairs of interfaces in one network, from and to which packets of
	// the nat data plane may go: an interface and itself, or two (a MACVLAN and its
	// parent). Answers would not come back through this machine. Sorted.
	Hairpins [][2]string
	Routes   []edge.Route // to pods that are backends; sorted by Dst
	// Addresses of pools that are to be on this machine: those that Services have.
	// Sorted.
	Addresses   []edge.Address
	Allocations []edge.Allocation // who has which address of a pool, and what is held; sorted by address, then Service
	// Names are those that Services have beside the one that follows from their
	// namespace and name. Sorted. None without DNS.
	Names []Name
}

// Name is a domain name that Services have asked for, or that Ingresses and
// routes answer to which they serve.
type Name struct {
	Name string // in lower case, without a dot at its end; may begin with "*."
	// By are those who may have it, all of one namespace's wish. In each zone the
	// first one has it that is open there.
	By []NamedBy
}

// NamedBy is a Service that has a name.
type NamedBy struct {
	Service string // namespace/name
	Why     string // "service/shop/web", "ingress/shop/web"
}

// Exposure is one port of a Service, or one static frontend, in one zone: open
// with its backends, or closed with the reason.
type Exposure struct {
	Name      string         `json:"name"`              // "shop/web:80", "shop/dns:53/UDP", or the frontend's name
	Service   string         `json:"service,omitempty"` // namespace/name
	Zone      string         `json:"zone,omitempty"`    // empty: no zone (an explicit listen, or none asked for)
	Protocol  edge.Protocol  `json:"protocol"`
	Port      uint16         `json:"port"`
	Open      bool           `json:"open"`
	Code      string         `json:"code,omitempty"`   // of what is closed: one of a few words, those of Events
	Reason    string         `json:"reason,omitempty"` // why it is closed, or open without a backend
	Remedy    string         `json:"remedy,omitempty"`
	Listens   []edge.Listen  `json:"listens,omitempty"`
	Addresses []netip.Addr   `json:"addresses,omitempty"` // where clients of the zone find it now
	Hostnames []string       `json:"hostnames,omitempty"` // TLS server names; none: all of the port
	Sources   []netip.Prefix `json:"sourceRanges,omitempty"`
	Target    edge.Target    `json:"target,omitempty"`
	DataPlane edge.DataPlane `json:"dataPlane,omitempty"`
	Balance   edge.Balance   `json:"balance,omitempty"`
	Client    string         `json:"clientAddress,omitempty"` // what the backend sees as the client's address, and why
	// ClientSeen says whether that is the client's own; ClientRemedy what would
	// make it so.
	ClientSeen   bool           `json:"clientAddressSeen"`
	ClientRemedy string         `json:"clientAddressRemedy,omitempty"`
	Backends     []edge.Backend `json:"backends,omitempty"`
	Shares       []PodShare     `json:"shares,omitempty"` // of the pods whose share is known
	Notes        []string       `json:"notes,omitempty"`  // what else is to be known of an open row
	Why          string         `json:"why"`

	code   string        // Code, while it is decided
	at     []edge.Listen // those of Listens that could be opened
	of     policy
	behind *backing     // of a Service, while it is decided
	shut   refusal      // its owner has been told why it is closed, whoever has its doors
	here   []netip.Addr // addresses of pools that it has in this zone
	vips   []netip.Addr // and in all of its zones
	lacks  string       // it is open, and not at all of its addresses or for all of its names
}

// policy is what kube-proxy does with the connections to a Service.
type policy struct {
	local    bool // externalTrafficPolicy: Local
	affinity bool // sessionAffinity: ClientIP
}

// PodShare is the part of an exposure's new connections that one pod gets.
type PodShare struct {
	Pod   string  `json:"pod"`
	Node  string  `json:"node,omitempty"`
	Share float64 `json:"share"` // 0 to 1
}

type builder struct {
	in          Inputs // Interfaces are without addresses of pools
	zones       map[string]*edge.Zone
	devices     map[string]edge.Interface
	own         map[netip.Addr]bool // this machine's addresses, with those of pools
	pooled      map[netip.Addr]bool // those of pools among them
	ground      ground
	placed      map[netip.Addr]bool // of State.Addresses
	wanted      map[doorKey]bool    // ports that doors are wanted at; without addresses
	selectors   map[string]edge.Selector
	doors       map[doorKey][]*door
	nodes       map[string]*edge.Node
	state       State
	problems    []edge.Problem
	probes      map[edge.Probe]bool
	natDevices  map[string]bool      // on which rows of data plane nat are open
	podNetworks map[netip.Prefix]int // how many nodes have it
	routes      map[netip.Prefix]edge.Route
	wishes      []wish // for names
}

// Build decides what should be. The problems are sorted by position and object.
func Build(in Inputs) (State, []edge.Problem) {
	b := &builder{
		in:      in,
		zones:   map[string]*edge.Zone{},
		devices: map[string]edge.Interface{},
		own:     map[netip.Addr]bool{},
		pooled:  map[netip.Addr]bool{},
		doors:   map[doorKey][]*door{},
		nodes:   map[string]*edge.Node{},
		probes:  map[edge.Probe]bool{},

		placed:      map[netip.Addr]bool{},
		wanted:      map[doorKey]bool{},
		selectors:   map[string]edge.Selector{},
		natDevices:  map[string]bool{},
		podNetworks: map[netip.Prefix]int{},
		routes:      map[netip.Prefix]edge.Route{},
	}
	for _, i := range in.Interfaces {
		for _, p := range i.Addrs {
			b.own[p.Addr()] = true
		}
	}
	b.in.Interfaces = b.stripPools(in.Interfaces)
	for _, i := range b.in.Interfaces {
		b.devices[i.Name] = i
	}
	for i := range in.Config.Zones {
		z := &in.Config.Zones[i]
		b.zones[z.Name] = z
	}
	if in.Cluster != nil {
		for i := range in.Cluster.Nodes {
			n := &in.Cluster.Nodes[i]
			b.nodes[n.Name] = n
			for _, p := range n.PodCIDRs {
				b.podNetworks[p.Masked()]++
			}
		}
	}
	b.checkZones()
	b.claimAdmin()
	b.claimDNS()
	b.claimDHCP()
	for i := range in.Config.Frontends {
		b.static(&in.Config.Frontends[i])
	}
	if in.Config.Kubernetes != nil && in.Cluster != nil {
		b.apiServer()
		b.services()
		b.giveNames()
	}
	b.finish()
	for i := range b.state.Exposures {
		if e := &b.state.Exposures[i]; !e.Open {
			e.Code = e.code
		}
	}
	return b.state, b.problems
}

// Settled is Build once the addresses of pools are on this machine: what will be
// open a moment later, unless somebody else has one of them.
func Settled(in Inputs) (State, []edge.Problem) {
	state, problems := Build(in)
	if len(state.Addresses) == 0 {
		return state, problems
	}
	states := make(map[netip.Addr]edge.AddressState, len(state.Addresses))
	for _, a := range state.Addresses {
		states[a.Addr] = edge.AddressState{Ready: true}
	}
	maps.Copy(states, in.Addresses)
	in.Addresses, in.Allocations = states, state.Allocations
	return Build(in)
}

// static decides one frontend of a file.
func (b *builder) static(f *config.Frontend) {
	row := Exposure{
		Name: f.Name, Protocol: f.Protocol, Port: f.Port, Hostnames: f.Hostnames, Sources: f.SourceRanges,
		Target: edge.TargetStatic, DataPlane: cmp.Or(f.DataPlane, edge.DataPlaneProxy), Why: f.Pos.String(),
	}
	proto := edge.Frontend{
		Name: f.Name, DataPlane: row.DataPlane, SourceRanges: f.SourceRanges, AcceptProxyProtocol: f.AcceptProxyProtocol,
		Terms: f.Terms, Health: f.Health, Why: row.Why,
	}
	row.Backends = b.staticBackends(f)
	if f.Listen == nil {
		for _, zone := range f.Zones {
			z := b.zones[zone]
			if z == nil {
				continue // config.Parse has refused it
			}
			row := row
			row.Zone = zone
			b.openInZone(row, proto, z)
		}
		return
	}
	row.Port = f.Listen.Port
	listen := edge.Listen{Device: f.Listen.Device, Port: f.Listen.Port}
	if f.Listen.Host != "" {
		addr, ok := b.resolve(f.Listen.Host)
		if !ok {
			b.problem(edge.Problem{
				Pos: f.Listen.Pos, What: fmt.Sprintf("frontend %s is closed: the name %q has no address", f.Name, f.Listen.Host),
				Remedy: "write the address to listen on, or make the name resolvable on this machine",
			})
			b.closed(row, "NameNotResolved", fmt.Sprintf("the name %q has no address", f.Listen.Host), "write the address to listen on")
			return
		}
		listen.Addr = addr
	}
	if listen.Device != "" {
		if _, ok := b.devices[listen.Device]; !ok {
			b.problem(edge.Problem{
				Pos: f.Listen.Pos, What: fmt.Sprintf("frontend %s is closed: no interface %q on this machine", f.Name, listen.Device),
				Remedy: "it opens when the interface appears; there are " + b.deviceNames(),
			})
		}
	}
	b.open(row, proto, []edge.Listen{listen})
}

func (b *builder) staticBackends(f *config.Frontend) []edge.Backend {
	var backends []edge.Backend
	for i, c := range f.Backends {
		addr, ok := b.resolve(c.Address.Host)
		if !ok {
			b.problem(edge.Problem{
				Pos: c.Pos, Object: "frontend/" + f.Name, Path: fmt.Sprintf("backends[%d].address", i),
				What:   fmt.Sprintf("the name %q has no address", c.Address.Host),
				Remedy: "the frontend goes on without this backend until it has one",
			})
			continue
		}
		backends = append(backends, b.probed(edge.Backend{
			Addr: netip.AddrPortFrom(addr, c.Address.Port), Weight: c.Weight, Target: edge.TargetStatic,
		}, f.Protocol, asked{check: f.Health, proxy: f.SendProxyProtocol}))
	}
	return finishBackends(backends)
}

func (b *builder) resolve(host string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), true
	}
	a, ok := b.in.Hosts[host]
	return a, ok
}

// openInZone opens a row on the interfaces of its zone.
func (b *builder) openInZone(row Exposure, proto edge.Frontend, z *edge.Zone) {
	var listens []edge.Listen
	for _, device := range z.Interfaces {
		listens = append(listens, edge.Listen{Device: device, Port: row.Port})
	}
	b.open(row, proto, listens)
}

// open claims the doors of a row, and adds a frontend for each that can exist
// now.
func (b *builder) open(row Exposure, proto edge.Frontend, listens []edge.Listen) {
	nat := proto.DataPlane == edge.DataPlaneNAT
	if nat {
		proto.Terms = ofKernel(proto.Terms)
	}
	proxyAsked := proxies(proto.Terms)
	if row.Protocol != edge.TCP { // the PROXY protocol is for connections
		proto.AcceptProxyProtocol = nil
		if proxyAsked {
			proto.SendProxyProtocol = edge.ProxyProtocolNone
		}
	}
	proto.AcceptProxyProtocol = slices.Clone(proto.AcceptProxyProtocol)
	slices.SortFunc(proto.AcceptProxyProtocol, comparePrefixes)
	got := b.claimAll(&row, proto.AcceptProxyProtocol, listens)
	if len(got) == 0 {
		return
	}
	listens = nil
	var waiting []refusal
	for i := range got {
		got[i].listens, waiting = b.ready(got[i].listens, waiting)
		listens = append(listens, got[i].listens...)
	}
	if len(listens) == 0 && len(waiting) > 0 {
		b.await(row, waiting)
		return
	}
	row.Open = true
	row.Balance = cmp.Or(proto.Balance, edge.BalanceRandom)
	side := ""
	if !nat { // see masqueradingOf
		side = b.sameSide(row, listens)
	}
	blocked := proto.Transparent && side != ""
	proto.Transparent = proto.Transparent && !blocked
	if b.state.Transparent = b.state.Transparent || proto.Transparent; proto.Transparent && b.in.NoTransparency != "" {
		// Not served from this machine's address: who relies on the client's would
		// take everybody for one of its own.
		b.closed(row, "NotTransparent", "it is transparent: "+b.in.NoTransparency, `it opens once this machine has what that takes, which the problem "transparent" says`)
		return
	}
	var masked masquerading
	if nat {
		b.state.NAT = true
		if why := b.notByKernel(&row); why.reason != "" {
			b.closed(row, why.code, why.reason, why.remedy)
			return
		}
		masked = b.masqueradingOf(row, proto, listens)
		row.Backends, row.Shares = sharesByFamily(row.Backends, row.Shares, proto.RefuseWhenDown)
	} else {
		row.Backends, row.Shares = shares(row.Backends, row.Shares, proto.RefuseWhenDown)
	}
	if relayed := !proto.Transparent && !nat; row.of.affinity && (relayed || masked.all()) && atKubeProxy(row.Target) {
		b.affinityLost(row, side)
		row.Shares = nil
	}
	if row.behind != nil && nat {
		proto.Terminating = row.behind.terminating
	}
	var failed []string
	for i, l := range listens {
		door := edge.Door{Protocol: row.Protocol, Listen: l}
		if l.Device != "" {
			device, ok := b.devices[l.Device]
			if !ok {
				continue
			}
			if b.in.Doors[door] == "" {
				row.at = append(row.at, l)
				switch {
				case !l.Addr.IsValid():
					row.Addresses = append(row.Addresses, addrsOf(device)...)
				case slices.Contains(row.here, l.Addr) && !slices.Contains(row.Addresses, l.Addr):
					row.Addresses = append(row.Addresses, l.Addr)
				}
			}
		} else if l.Addr.IsValid() {
			row.Addresses = append(row.Addresses, l.Addr)
		}
		row.Listens = append(row.Listens, l)
		b.natDevices[l.Device] = b.natDevices[l.Device] || nat
		f := proto
		f.Door, f.Zone, f.Backends, f.Hostnames = door, row.Zone, row.Backends, namesAt(got, i)
		b.state.Frontends = append(b.state.Frontends, f)
		if err, bad := b.in.Doors[door]; bad {
			failed = append(failed, err)
		}
	}
	b.noteWaiting(&row, waiting)
	weighs := slices.ContainsFunc(row.Backends, func(b edge.Backend) bool { return b.Weight > 0 })
	switch {
	case len(row.Listens) == 0:
		row.Open, row.code = false, "NoInterface"
		row.Reason, row.Remedy = "no interface of it is on this machine: "+interfacesOf(listens), "it opens when one appears"
	case len(failed) > 0 && len(failed) == len(row.Listens):
		row.Open, row.code = false, "CannotListen"
		row.Reason, row.Remedy = failed[0], ListenRemedy(failed[0])
	case len(row.Backends) == 0 && row.Reason == "":
		row.Reason = "it has no backend; " + turnedAway(row.Protocol, row.DataPlane)
	case len(row.Backends) > 0 && !weighs && row.Target == edge.TargetNodePort:
		row.Reason = "no node says that it has a ready pod; " + turnedAway(row.Protocol, row.DataPlane)
	case len(row.Backends) > 0 && !weighs:
		row.Reason, row.Remedy = "every backend has weight 0; "+turnedAway(row.Protocol, row.DataPlane), "give one of them a weight"
	case len(row.Backends) > 0 && inTurn(row.Backends, false) == edge.Down && proto.RefuseWhenDown:
		row.Reason = "every backend fails its checks; " + turnedAway(row.Protocol, row.DataPlane)
		row.Remedy = "mend them, or the check; health.whenAllDown: try sends clients there all the same"
	case len(row.Backends) > 0 && inTurn(row.Backends, false) == edge.Down:
		row.Reason, row.Remedy = "every backend fails its checks; they are tried all the same", "mend them, or the check; health.whenAllDown: refuse turns clients away instead"
	}
	switch {
	case row.Open && nat:
		b.sayClientOfKernel(&row, masked)
		b.sayFamilies(&row)
	case row.Open:
		b.sayClient(&row, proto, listens, proxyAsked, side, blocked)
	}
	if row.Open {
		b.routesTo(&row)
	}
	if row.Reason != "" && (row.Open || row.code == "CannotListen") {
		b.problem(edge.Problem{Object: objectOf(row), What: inZone(row, row.Reason), Remedy: row.Remedy})
	}
	if row.Service != "" && (row.code == "CannotListen" || row.code == "NoInterface") {
		b.event(row.Service, true, row.code, inZone(row, row.Reason)+"; "+row.Remedy)
	}
	for _, err := range failed {
		if row.Open {
			b.problem(edge.Problem{Object: objectOf(row), What: err, Remedy: ListenRemedy(err)})
		}
	}
	row.behind = nil
	b.state.Exposures = append(b.state.Exposures, row)
}

// turnedAway is what happens to clients that nobody is there for.
func turnedAway(p edge.Protocol, plane edge.DataPlane) string {
	switch nat := plane == edge.DataPlaneNAT; {
	case nat && p == edge.TCP:
		return "connections are refused"
	case nat:
		return "packets are refused"
	case p == edge.UDP:
		return "packets are dropped"
	default:
		return "connections are closed at once"
	}
}

// ListenRemedy is for what the data plane says of a door that it cannot open, which
// mostly says it all.
func ListenRemedy(err string) string {
	if strings.Contains(err, "in use") {
		return "stop what has the port, or use another"
	}
	return "it is tried again"
}

// closedFor adds a row that is not open, and tells nobody.
func (b *builder) closedFor(row Exposure, why refusal) {
	row.Open, row.code, row.Reason, row.Remedy = false, why.code, why.reason, why.remedy
	row.Backends, row.Shares, row.Target, row.DataPlane, row.behind = nil, nil, "", "", nil
	b.state.Exposures = append(b.state.Exposures, row)
}

// closed adds a row that is not open, and tells whoever has to know.
func (b *builder) closed(row Exposure, code, reason, remedy string) {
	b.closedFor(row, refusal{code, reason, remedy})
	if row.Service != "" {
		text := reason
		if remedy != "" {
			text += "; " + remedy
		}
		b.event(row.Service, true, code, text)
	}
	if code == "PortConflict" || row.Service != "" {
		b.problem(edge.Problem{Object: objectOf(row), What: inZone(row, reason), Remedy: remedy})
	}
}

func (b *builder) problem(p edge.Problem) { b.problems = append(b.problems, p) }

// event tells the owner of a Service something. UIDs are filled in at the end.
func (b *builder) event(service string, warning bool, code, message string) {
	namespace, name, _ := strings.Cut(service, "/")
	b.state.Events = append(b.state.Events, edge.Event{Namespace: namespace, Name: name, Warning: warning, Reason: code, Message: message})
}
