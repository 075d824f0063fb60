package desired

import (
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/pools"
)

// ground is what this machine has of each zone by itself: without the addresses of
// pools, which are on its interfaces as well.
type ground struct {
	networks map[string][]pools.Network
	own      map[string][]netip.Addr
	away     map[string]bool // an interface of the zone is missing, or has no address
	pools    map[string][]*config.Pool
	names    map[string][]string // of the zone's pools, where all Services may have addresses of all of them
}

// asking is a Service that is to be opened, if it may be.
type asking struct {
	*edge.Service
	own    bool // by its class
	chosen bool // by kubernetes.selector
	req    request
	no     refusal
	zones  map[string]*place // those that it may open
	vips   []netip.Addr      // addresses of pools that it has, in whatever zone it is open
	shut   refusal           // closes it everywhere
}

// place is where a Service is to be found in a zone.
type place struct {
	given    []pools.Given // with the interface that each is to be on
	own      []pools.Network
	failures []pools.Failure
	shut     refusal // closes it in this zone; its owner has been told
}

// stripPools tells addresses of pools from those that interfaces have for
// themselves: they are /32 and /128, and of a pool now or have been.
func (b *builder) stripPools(interfaces []edge.Interface) []edge.Interface {
	known := make(map[netip.Addr]bool, len(b.in.Addresses)+len(b.in.Allocations))
	for a := range b.in.Addresses {
		known[a] = true
	}
	for i := range b.in.Allocations {
		known[b.in.Allocations[i].Addr] = true
	}
	isPool := func(p netip.Prefix) bool {
		return p.IsSingleIP() && (known[p.Addr()] || b.poolOf(p.Addr()) != nil)
	}
	var stripped []edge.Interface
	for n, i := range interfaces {
		if !slices.ContainsFunc(i.Addrs, isPool) {
			continue
		}
		if stripped == nil {
			stripped = slices.Clone(interfaces)
		}
		for _, p := range i.Addrs {
			if isPool(p) {
				b.pooled[p.Addr()] = true
			}
		}
		stripped[n].Addrs = slices.DeleteFunc(slices.Clone(i.Addrs), isPool)
	}
	if stripped == nil {
		return interfaces
	}
	return stripped
}

// poolOf is the pool that has an address in its ranges, or nil.
func (b *builder) poolOf(a netip.Addr) *config.Pool {
	for i := range b.in.Config.Pools {
		p := &b.in.Config.Pools[i]
		if slices.ContainsFunc(p.Addresses, func(r edge.Range) bool { return r.Contains(a) }) {
			return p
		}
	}
	return nil
}

func (b *builder) look() {
	b.ground = ground{
		networks: map[string][]pools.Network{}, own: map[string][]netip.Addr{}, away: map[string]bool{},
		pools: map[string][]*config.Pool{}, names: map[string][]string{},
	}
	for _, z := range b.in.Config.Zones {
		for _, name := range z.Interfaces {
			i := b.devices[name]
			b.ground.away[z.Name] = b.ground.away[z.Name] || len(i.Addrs) == 0
			for _, p := range i.Addrs {
				b.ground.own[z.Name] = append(b.ground.own[z.Name], p.Addr())
				n := pools.Network{Zone: z.Name, Device: name, Prefix: p.Masked()}
				if !slices.Contains(b.ground.networks[z.Name], n) {
					b.ground.networks[z.Name] = append(b.ground.networks[z.Name], n)
				}
			}
		}
	}
	b.ground.own[""] = b.otherOwn()
	for i := range b.in.Config.Pools {
		p := &b.in.Config.Pools[i]
		b.ground.pools[p.Zone] = append(b.ground.pools[p.Zone], p)
	}
	for zone, some := range b.ground.pools {
		var names []string
		for _, p := range some {
			if p.Namespaces != nil || p.NamespaceLabels != "" || p.Labels != "" {
				names = nil
				break
			}
			names = append(names, p.Name)
		}
		b.ground.names[zone] = names
	}
}

// poolsFor are the names of a zone's pools that a Service may have addresses of,
// and of one of which that is not known yet.
func (b *builder) poolsFor(s *edge.Service, zone string) (names []string, unknown string) {
	if names := b.ground.names[zone]; names != nil {
		return names, ""
	}
	for _, p := range b.ground.pools[zone] {
		switch {
		case b.excluded(s, p.Who) == "":
			names = append(names, p.Name)
		case p.NamespaceLabels != "" && b.in.Cluster.Namespaces == nil:
			unknown = p.Name
		}
	}
	return names, unknown
}

// wants are the families that a Service is to have.
func wants(s *edge.Service) (ipv4, ipv6 bool) {
	if len(s.IPFamilies) == 0 {
		return true, false
	}
	return slices.Contains(s.IPFamilies, "IPv4"), slices.Contains(s.IPFamilies, "IPv6")
}

// assign gives every Service of ours its addresses, in each zone that it may
// open. They are sorted, oldest first.
func (b *builder) assign(services []asking) {
	b.look()
	in := pools.Input{
		Networks: b.allNetworks(), Away: b.ground.away, Own: b.ground.own, Before: b.in.Allocations, Unusable: b.inConflict(),
	}
	for _, p := range b.in.Config.Pools {
		in.Pools = append(in.Pools, pools.Pool{Name: p.Name, Zone: p.Zone, Ranges: p.Addresses, Auto: p.Auto})
	}
	none := len(in.Pools) == 0 // all share the interfaces' addresses
	has := make(map[string]bool, len(b.in.Allocations))
	for i := range b.in.Allocations {
		has[b.in.Allocations[i].UID] = true
	}
	for i := range services {
		// Who asks for what cannot be read keeps what it has until that is mended.
		if s := &services[i]; s.own && (s.no.code == "" || has[s.UID] || s.StatusOurs && len(s.Ingress) > 0) {
			none = none && len(s.req.addresses) == 0
			in.Wants = append(in.Wants, b.wantsOf(s)...)
		}
	}
	var r pools.Result
	if !none {
		r = pools.Assign(in)
		b.state.Allocations = r.Allocations
	}
	for i := range services {
		s := &services[i]
		for zone, at := range s.zones {
			if o, ok := r.Of[pools.Place{Service: s.Key(), Zone: zone}]; ok && s.own {
				at.given, at.own, at.failures = slices.Clone(o.Given), b.besideRouted(s, zone, o.Own), o.Failures
			} else {
				at.own = b.ownFor(s, zone)
			}
		}
		b.settle(s)
	}
	slices.SortFunc(b.state.Addresses, func(x, y edge.Address) int { return x.Addr.Compare(y.Addr) })
}

// besideRouted leaves out the networks whose interface's own address is not to
// serve a Service: where it has addresses that are sent here by a router, those
// take its place, for their family. Unless it is what was asked for.
func (b *builder) besideRouted(s *asking, zone string, own []pools.Network) []pools.Network {
	if len(own) == 0 || len(b.ground.pools[zone]) == 0 || b.ground.away[zone] {
		return own
	}
	isRouted := map[bool]bool{} // by whether it is IPv4
	may, _ := b.poolsFor(s.Service, zone)
	for _, p := range b.ground.pools[zone] {
		if !slices.Contains(may, p.Name) || !p.Auto && !slices.Contains(s.req.pools, p.Name) {
			continue
		}
		for _, r := range p.Addresses {
			if !slices.ContainsFunc(b.ground.networks[zone], func(n pools.Network) bool { return n.Prefix.Contains(r.First) || n.Prefix.Contains(r.Last) }) {
				isRouted[r.First.Is4()] = true
			}
		}
	}
	isAsked := func(a netip.Addr) bool { return slices.Contains(b.ground.own[zone], a) }
	if len(isRouted) == 0 || slices.ContainsFunc(s.req.addresses, isAsked) {
		return own
	}
	return slices.DeleteFunc(slices.Clone(own), func(n pools.Network) bool { return isRouted[n.Prefix.Addr().Is4()] })
}

func (b *builder) allNetworks() []pools.Network {
	var all []pools.Network
	for _, z := range b.in.Config.Zones {
		all = append(all, b.ground.networks[z.Name]...)
	}
	return all
}

// ownFor are the networks of a zone that a Service without addresses of pools is
// served in.
func (b *builder) ownFor(s *asking, zone string) []pools.Network {
	ipv4, ipv6 := wants(s.Service)
	all := b.ground.networks[zone]
	isWanted := func(n pools.Network) bool { return n.Prefix.Addr().Is4() && ipv4 || n.Prefix.Addr().Is6() && ipv6 }
	if !slices.ContainsFunc(all, func(n pools.Network) bool { return !isWanted(n) }) {
		return all
	}
	var own []pools.Network
	for _, n := range all {
		if isWanted(n) {
			own = append(own, n)
		}
	}
	return own
}

// otherOwn are the addresses of interfaces that are in no zone: this machine's
// own, and nobody may ask for them.
func (b *builder) otherOwn() []netip.Addr {
	inZone := map[string]bool{}
	for _, z := range b.in.Config.Zones {
		for _, name := range z.Interfaces {
			inZone[name] = true
		}
	}
	var own []netip.Addr
	for _, i := range b.in.Interfaces {
		if !inZone[i.Name] {
			own = append(own, addrsOf(i)...)
		}
	}
	return own
}

// inConflict are addresses that somebody else answers for.
func (b *builder) inConflict() map[netip.Addr]string {
	of := map[netip.Addr]string{}
	for a, state := range b.in.Addresses {
		if !state.Ready && state.Conflict != "" {
			of[a] = "it is used by " + state.Conflict
		}
	}
	return of
}

// wantsOf is what a Service wants in each zone that it may open.
func (b *builder) wantsOf(s *asking) []pools.Want {
	if len(s.zones) == 0 {
		return nil
	}
	ipv4, ipv6 := wants(s.Service)
	var status []netip.Addr
	if s.StatusOurs {
		for _, in := range s.Ingress {
			if in.IP.IsValid() {
				status = append(status, in.IP)
			}
		}
	}
	addresses, named := b.ofOpenZones(s)
	all := make([]pools.Want, 0, len(s.zones))
	for _, zone := range s.req.zones {
		at := s.zones[zone]
		if at == nil {
			continue
		}
		names, unknown := b.poolsFor(s.Service, zone)
		if unknown != "" { // until then it must not have the interface's own instead
			at.shut = refusal{addressPending, "the labels of namespaces are not known yet, and with them whether it has an address of pool " + unknown, "it opens once they have been read"}
		}
		all = append(all, pools.Want{
			Service: s.Key(), UID: s.UID, Zone: zone, IPv4: ipv4, IPv6: ipv6, Pools: names,
			Addresses: addresses, Named: named, Key: s.req.key, Status: status,
		})
	}
	return all
}

// ofOpenZones leaves out what belongs to a zone that the Service asks for and may
// not open: it is told of that.
func (b *builder) ofOpenZones(s *asking) (addresses []netip.Addr, named []string) {
	isShut := func(zone string) bool { return slices.Contains(s.req.zones, zone) && s.zones[zone] == nil }
	for _, a := range s.req.addresses {
		shut := slices.ContainsFunc(s.req.zones, func(zone string) bool {
			p := b.poolOf(a)
			return isShut(zone) && (p != nil && p.Zone == zone || slices.Contains(b.ground.own[zone], a))
		})
		if !shut {
			addresses = append(addresses, a)
		}
	}
	for _, name := range s.req.pools {
		p := b.in.Config.Pools[slices.IndexFunc(b.in.Config.Pools, func(p config.Pool) bool { return p.Name == name })]
		if !isShut(p.Zone) {
			named = append(named, name)
		}
	}
	return addresses, named
}
