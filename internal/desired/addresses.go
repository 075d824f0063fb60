package desired

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/pools"
)

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
	what := withZone(zone, why.reason)
	b.event(s.Key(), true, why.code, what+"; "+why.remedy)
	b.problem(edge.Problem{Object: "service/" + s.Key(), What: what, Remedy: why.remedy})
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
func (b *builder) without(s *asking, zone string) []refusal {
	at := s.zones[zone]
	if at == nil {
		return nil
	}
	var lacks []refusal
	for _, f := range at.failures {
		if f.Code != pools.AddressConflict { // waits says that
			lacks = append(lacks, refusal{f.Code, f.What, ""})
		}
	}
	for _, g := range at.given {
		if why := b.waits(g.Addr); why.code != "" {
			lacks = append(lacks, refusal{why.code, why.reason, ""})
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
