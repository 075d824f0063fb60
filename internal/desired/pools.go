package desired

import (
	"cmp"
	"fmt"
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
				at.given, at.own, at.failures = slices.Clone(o.Given), o.Own, o.Failures
			} else {
				at.own = b.ownFor(s, zone)
			}
		}
		b.settle(s)
	}
	slices.SortFunc(b.state.Addresses, func(x, y edge.Address) int { return x.Addr.Compare(y.Addr) })
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

// settle decides where a Service is to be found with what it has got, and tells
// its owner. What it has no address for closes it: in a zone, or everywhere.
func (b *builder) settle(s *asking) {
	for i := range b.in.Config.Zones {
		z := &b.in.Config.Zones[i]
		at := s.zones[z.Name]
		if at == nil || !s.own {
			continue
		}
		for i := range at.given {
			g := &at.given[i]
			g.Device = b.deviceOf(z, *g)
			b.place(s, *g)
			if s.no.code == "" {
				b.event(s.Key(), false, "IPAllocated", fmt.Sprintf("%s of pool %s, in zone %s", g.Addr, g.Pool, z.Name))
			}
		}
		if s.no.code != "" {
			continue // it is closed, and its owner told of something else
		}
		for _, f := range at.failures {
			if f.Code == pools.AddressConflict {
				continue // it has the address, and its rows say what is wrong with it
			}
			why := refusal{f.Code, f.What, f.Remedy}
			b.tell(s, z.Name, why)
			if f.Code != pools.PoolExhausted { // it asks for it, and gets nothing else instead
				at.shut = cmp.Or(at.shut, why)
			}
		}
		b.settleFamilies(s, z.Name, at)
		for _, g := range at.given {
			if at.shut.code == "" && !slices.Contains(s.vips, g.Addr) {
				s.vips = append(s.vips, g.Addr)
			}
		}
	}
}

// place has an address on its interface, for the oldest of those who have it.
func (b *builder) place(s *asking, g pools.Given) {
	if !b.placed[g.Addr] {
		b.placed[g.Addr] = true
		b.state.Addresses = append(b.state.Addresses, edge.Address{Addr: g.Addr, Device: g.Device, Why: "service/" + s.Key()})
	}
}

// deviceOf is the interface that an address is to be on. In no network that is
// known it is in that of an interface which is away; or routed here by others,
// and then it does not matter which one it is.
func (b *builder) deviceOf(z *edge.Zone, g pools.Given) string {
	if g.Device != "" {
		return g.Device
	}
	if i := slices.IndexFunc(z.Interfaces, func(name string) bool { return len(b.devices[name].Addrs) == 0 }); i >= 0 {
		return z.Interfaces[i]
	}
	return z.Interfaces[0]
}

// settleFamilies closes a Service in a zone where it has nothing, and everywhere
// if it has to have what it does not have there. What an interface that is away
// will have is not known.
func (b *builder) settleFamilies(s *asking, zone string, at *place) {
	families := s.IPFamilies
	if len(families) == 0 {
		families = familyNames[:1]
	}
	for _, name := range families {
		is4 := name == "IPv4"
		if slices.ContainsFunc(at.given, func(g pools.Given) bool { return g.Addr.Is4() == is4 }) ||
			slices.ContainsFunc(at.own, func(n pools.Network) bool { return n.Prefix.Addr().Is4() == is4 }) {
			continue
		}
		nothing := len(at.given)+len(at.own) == 0 && at.shut.code == ""
		require := s.IPFamilyPolicy == "RequireDualStack" && s.shut.code == ""
		if !nothing && !require {
			continue
		}
		why := failureOf(at.failures, is4)
		if why.code == "" && b.ground.away[zone] {
			continue
		}
		if why.code == "" {
			why = refusal{familyMissing, fmt.Sprintf("no %s address in zone %s", name, zone), "give an interface of the zone one, or the zone a pool"}
			if require {
				why.reason += ", and ipFamilyPolicy is RequireDualStack"
				why.remedy += "; PreferDualStack makes do with one family"
			}
			b.tell(s, "", why)
		}
		if nothing {
			at.shut = why
		}
		if require {
			s.shut = why
		}
	}
}

// failureOf is why a Service has no address of a family, if that has been said.
func failureOf(failures []pools.Failure, is4 bool) refusal {
	for _, f := range failures {
		if f.Family == 0 || f.Family == 4 && is4 || f.Family == 6 && !is4 {
			return refusal{f.Code, f.What, f.Remedy}
		}
	}
	return refusal{}
}

// tell says why a Service is not open, once for all of its ports.
func (b *builder) tell(s *asking, zone string, why refusal) {
	where := ""
	if zone != "" {
		where = "in zone " + zone + ": "
	}
	b.event(s.Key(), true, why.code, where+why.reason+"; "+why.remedy)
	b.problem(edge.Problem{Object: "service/" + s.Key(), What: where + why.reason, Remedy: why.remedy})
}

const (
	familyMissing  = "FamilyMissing"
	addressPending = "AddressPending"
)

// listensOf are where a Service listens in a zone: at the addresses that its
// interfaces have for themselves where those serve it, and at all that it has of
// pools, in whatever zone. Whoever comes from this zone may come by any of them.
func (b *builder) listensOf(s *asking, z *edge.Zone, port uint16) []edge.Listen {
	at := s.zones[z.Name]
	listens := make([]edge.Listen, 0, len(z.Interfaces)*(1+len(s.vips)))
	for _, device := range z.Interfaces {
		if b.ownServes(s, at, device, z.Name) {
			listens = append(listens, edge.Listen{Device: device, Port: port})
		}
		for _, a := range s.vips {
			listens = append(listens, edge.Listen{Device: device, Addr: a, Port: port})
		}
		for _, g := range at.given {
			if at.shut.code != "" { // to be claimed
				listens = append(listens, edge.Listen{Device: device, Addr: g.Addr, Port: port})
			}
		}
	}
	return listens
}

// ownServes says whether the addresses that an interface has for itself serve a
// Service. Where they do, they do so whatever their family, and before they are
// there: a lease that is renewed closes nothing.
func (b *builder) ownServes(s *asking, at *place, device, zone string) bool {
	on := func(n pools.Network) bool { return n.Device == device }
	if slices.ContainsFunc(at.own, on) {
		return true
	}
	if len(at.given)+len(at.failures) > 0 {
		return false
	}
	return !slices.ContainsFunc(b.ownFor(s, zone), on)
}

// waits is why an address of a pool does not serve yet; the zero refusal: it
// does.
func (b *builder) waits(a netip.Addr) refusal {
	switch state := b.in.Addresses[a]; {
	case state.Ready:
		return refusal{}
	case state.Conflict != "":
		return refusal{pools.AddressConflict, fmt.Sprintf("%s is used by %s", a, state.Conflict), "give that machine another address, or keep this one out of the pool; it opens once nobody else answers for it"}
	case state.Error != "":
		return refusal{addressPending, fmt.Sprintf("%s cannot be had yet: %s", a, state.Error), "it is tried again"}
	default:
		return refusal{addressPending, fmt.Sprintf("%s is being asked for: whether somebody else has it", a), ""}
	}
}

// ready leaves the listens that can be opened, as far as their addresses go, and
// adds why the others cannot, each once.
func (b *builder) ready(listens []edge.Listen, waiting []refusal) (open []edge.Listen, _ []refusal) {
	if !slices.ContainsFunc(listens, ofPool) {
		return listens, waiting
	}
	for _, l := range listens {
		if _, isThere := b.devices[l.Device]; ofPool(l) && isThere {
			if why := b.waits(l.Addr); why.code != "" {
				if !slices.Contains(waiting, why) {
					waiting = append(waiting, why)
				}
				continue
			}
		}
		open = append(open, l)
	}
	return open, waiting
}

// await closes a row until it has one of its addresses. That somebody else has
// one comes first: waiting does not help there.
func (b *builder) await(row Exposure, waiting []refusal) {
	why := waiting[0]
	if i := slices.IndexFunc(waiting, func(w refusal) bool { return w.code == pools.AddressConflict }); i >= 0 {
		why = waiting[i]
	}
	b.closedFor(row, why)
	b.sayWaiting(row, waiting)
}

// without is what a Service lacks in a zone where it is open.
func (b *builder) without(s *asking, zone string) []string {
	at := s.zones[zone]
	if at == nil {
		return nil
	}
	var lacks []string
	for _, f := range at.failures {
		if f.Code != pools.AddressConflict {
			lacks = append(lacks, f.What)
		}
	}
	for _, g := range at.given {
		if why := b.waits(g.Addr); why.code != "" {
			lacks = append(lacks, why.reason)
		}
	}
	return lacks
}

// noteWaiting says of an open row which of its addresses it does without.
func (b *builder) noteWaiting(row *Exposure, waiting []refusal) {
	for _, w := range waiting {
		row.Notes = append(row.Notes, w.reason)
	}
	b.sayWaiting(*row, waiting)
}

// sayWaiting tells of addresses that will not come by waiting a moment.
func (b *builder) sayWaiting(row Exposure, waiting []refusal) {
	for _, w := range waiting {
		if w.code == pools.AddressConflict {
			b.event(row.Service, true, w.code, w.reason+"; "+w.remedy)
		}
		if w.remedy != "" {
			b.problem(edge.Problem{Object: objectOf(row), What: w.reason, Remedy: w.remedy})
		}
	}
}
