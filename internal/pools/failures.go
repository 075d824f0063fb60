package pools

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

const annotation = edge.AnnotationPrefix + "addresses"

func family(addr netip.Addr) int {
	if addr.Is6() {
		return 6
	}
	return 4
}

func (s *slot) family() int {
	if s.ipv6 {
		return 6
	}
	return 4
}

func conflict(addr netip.Addr, reason string) Failure {
	return Failure{
		AddressConflict, fmt.Sprintf("%s cannot be used: %s", addr, reason),
		"take the address from who else has it, or ask for another one with " + annotation, family(addr),
	}
}

// inUse is what a Service is told that asks for an address of somebody else.
func (a *assignment) inUse(addr netip.Addr) Failure {
	f := Failure{
		AddressInUse, "", "ask for another one with " + annotation + ", or have both Services of one namespace share it by the annotation " + edge.AnnotationPrefix + "sharing-key",
		family(addr),
	}
	if o := a.owners[addr]; o != nil {
		f.What = fmt.Sprintf("%s is the address of service/%s", addr, o.Service)
		return f
	}
	f.What = fmt.Sprintf("%s was the address of service/%s until just now", addr, a.held[addr][0])
	f.Remedy = "wait a minute: then it is free"
	return f
}

func notAllowed(addr netip.Addr, p *Pool) Failure {
	return Failure{
		AddressNotAllowed, fmt.Sprintf("%s is of pool %s, which this Service may not use", addr, p.Name),
		allow(p), family(addr),
	}
}

func poolNotAllowed(p *Pool) Failure {
	return Failure{AddressNotAllowed, fmt.Sprintf("this Service may not use pool %s", p.Name), allow(p), 0}
}

func allow(p *Pool) string {
	return fmt.Sprintf("ask for another one with %s, or let pool %s serve it: by its namespaces, namespaceLabels and labels", annotation, p.Name)
}

// notInPool says what an address is that no pool gives, where that is known.
func notInPool(addr netip.Addr, what string, zones []string) Failure {
	if what == "" {
		what = "is in no pool of " + inZones(zones)
	}
	return Failure{
		AddressNotInPool, fmt.Sprintf("%s %s", addr, what),
		"ask for an address of a pool with " + annotation + ", or add it to a pool", family(addr),
	}
}

func noPool(name string, zones []string) Failure {
	return Failure{AddressNotInPool, fmt.Sprintf("there is no pool %s in %s", name, inZones(zones)), "name another one in " + annotation, 0}
}

func noFamily(p *Pool, w *Want) Failure {
	has := "IPv4"
	switch {
	case w.IPv4 && w.IPv6:
		has = "IPv4 or IPv6"
	case w.IPv6:
		has = "IPv6"
	}
	return Failure{
		AddressNotInPool, fmt.Sprintf("pool %s has no %s address", p.Name, has),
		fmt.Sprintf("add some to it, or name another one in %s", annotation), 0,
	}
}

func familyNotWanted(addr netip.Addr) Failure {
	return Failure{
		AddressNotAllowed, fmt.Sprintf("%s is an IPv%d address, and this Service has no IPv%[2]d", addr, family(addr)),
		"set ipFamilyPolicy: PreferDualStack, or take it out of " + annotation, family(addr),
	}
}

func inZones(zones []string) string {
	zones = slices.Sorted(slices.Values(zones))
	if len(zones) == 1 {
		return "zone " + zones[0]
	}
	return "zones " + list(zones)
}

func list(of []string) string {
	if len(of) == 1 {
		return of[0]
	}
	return strings.Join(of[:len(of)-1], ", ") + " and " + of[len(of)-1]
}

// exhausted says of segments of a slot that nothing of them is free.
func exhausted(slot *slot, of func(*segment) bool) Failure {
	var names []string
	total, given, held := 0, 0, 0
	mixed := false
	for _, s := range slot.segments {
		if !of(s) {
			continue
		}
		if !slices.Contains(names, s.pool.Name) {
			names = append(names, s.pool.Name)
		}
		total, given, held = saturate(total, s.size()), given+s.given, held+s.held
		mixed = mixed || slices.ContainsFunc(s.pool.Ranges, func(r edge.Range) bool { return r.First.Is4() == slot.ipv6 })
	}
	f := Failure{Code: PoolExhausted, Family: slot.family()}
	kind, where := "free address", ""
	if mixed {
		kind = fmt.Sprintf("free IPv%d address", slot.family())
	}
	if len(slot.networks) > 0 {
		where = " in " + slot.prefix.String()
	}
	noun, has := "pool ", "has"
	if len(names) > 1 {
		noun, has = "pools ", "have"
	}
	f.What = fmt.Sprintf("%s%s %s no %s%s", noun, list(names), has, kind, where)
	f.Remedy = fmt.Sprintf("add addresses to pool %s or delete a Service; %d of %d are given", names[0], given, total)
	if held > 0 {
		f.Remedy += fmt.Sprintf(", %d soon free", held)
	}
	if rest := total - given - held; rest > 0 {
		f.Remedy += fmt.Sprintf(", %d cannot be used", rest)
	}
	return f
}

// size is how many addresses a segment has; math.MaxInt: that many or more.
func (s *segment) size() int {
	first, last := s.first.As16(), s.last.As16()
	hi := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	lo, from := binary.BigEndian.Uint64(last[8:]), binary.BigEndian.Uint64(first[8:])
	if lo < from {
		hi--
	}
	if n := lo - from; hi == 0 && n < math.MaxInt {
		return int(n) + 1
	}
	return math.MaxInt
}

func saturate(a, b int) int {
	if a > math.MaxInt-b {
		return math.MaxInt
	}
	return a + b
}
