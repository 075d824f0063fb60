package desired

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// finish puts everything in its order, so that the order of the inputs shows nowhere.
func (b *builder) finish() {
	slices.SortFunc(b.state.Exposures, func(x, y Exposure) int {
		return cmp.Or(cmp.Compare(x.Zone, y.Zone), cmp.Compare(x.Port, y.Port), cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Name, y.Name))
	})
	slices.SortFunc(b.state.Frontends, func(x, y edge.Frontend) int {
		return cmp.Or(compareDoors(x.Door, y.Door), cmp.Compare(x.Name, y.Name), slices.Compare(x.Hostnames, y.Hostnames))
	})
	for p := range b.probes {
		b.state.Probes = append(b.state.Probes, p)
	}
	slices.SortFunc(b.state.Probes, compareProbes)
	b.hairpins()
	for _, r := range b.routes {
		b.state.Routes = append(b.state.Routes, r)
	}
	slices.SortFunc(b.state.Routes, func(x, y edge.Route) int { return comparePrefixes(x.Dst, y.Dst) })
	slices.SortFunc(b.state.Statuses, func(x, y edge.ServiceStatus) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	b.finishEvents()
	slices.SortFunc(b.problems, ComparePositions)
	b.problems = slices.Compact(b.problems)
}

// ComparePositions orders problems by file and position, then by object.
func ComparePositions(x, y edge.Problem) int {
	return cmp.Or(cmp.Compare(x.Pos.File, y.Pos.File), cmp.Compare(x.Pos.Line, y.Pos.Line), cmp.Compare(x.Pos.Col, y.Pos.Col),
		cmp.Compare(x.Object, y.Object), cmp.Compare(x.Path, y.Path), cmp.Compare(x.What, y.What), cmp.Compare(x.Remedy, y.Remedy))
}

func compareDoors(x, y edge.Door) int {
	return cmp.Or(cmp.Compare(x.Listen.Device, y.Listen.Device), cmp.Compare(x.Listen.Port, y.Listen.Port),
		x.Listen.Addr.Compare(y.Listen.Addr), cmp.Compare(x.Protocol, y.Protocol))
}

// compareProbes tells any two apart: they come out of a map.
func compareProbes(x, y edge.Probe) int {
	return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Kind, y.Kind), x.Through.Compare(y.Through), cmp.Compare(x.Interval, y.Interval),
		cmp.Compare(x.Timeout, y.Timeout), cmp.Compare(x.Rise, y.Rise), cmp.Compare(x.Fall, y.Fall), cmp.Compare(x.Type, y.Type),
		cmp.Compare(x.Port, y.Port), cmp.Compare(x.Path, y.Path), cmp.Compare(x.Host, y.Host), cmp.Compare(x.StatusMin, y.StatusMin),
		cmp.Compare(x.StatusMax, y.StatusMax), cmp.Compare(x.Send, y.Send), cmp.Compare(x.Expect, y.Expect), cmp.Compare(x.SendProxyProtocol, y.SendProxyProtocol))
}

func comparePrefixes(x, y netip.Prefix) int {
	return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
}

func objectOf(row Exposure) string {
	if row.Service != "" {
		return "service/" + row.Service
	}
	return "frontend/" + row.Name
}

// placeOf names where a row meets another, for people: what it wants, and what
// the other one has.
func placeOf(row Exposure, wants, has edge.Listen) string {
	switch {
	case row.Zone == "":
		return "at " + has.String()
	case ofPool(wants):
		return "at " + wants.Addr.String() + " in zone " + row.Zone
	case len(row.vips) > 0:
		return "at the interface's own address in zone " + row.Zone
	default:
		return "in zone " + row.Zone
	}
}

// inZone puts the zone in front of what is said of one port in it.
func inZone(row Exposure, what string) string {
	if row.Port == 0 {
		return what
	}
	return withZone(row.Zone, what)
}

// withZone puts a zone in front of what does not name it already.
func withZone(zone, what string) string {
	if zone == "" || NamesZone(what, zone) {
		return what
	}
	return "in zone " + zone + ": " + what
}

// NamesZone says whether a text says of which zone it is.
func NamesZone(text, zone string) bool {
	for _, after := range strings.Split(text, "zone "+zone)[1:] {
		if after == "" || !strings.ContainsAny(after[:1], "abcdefghijklmnopqrstuvwxyz0123456789-") {
			return true
		}
	}
	return false
}

func interfacesOf(listens []edge.Listen) string {
	var names []string
	for _, l := range listens {
		if !slices.Contains(names, l.Device) {
			names = append(names, l.Device)
		}
	}
	return strings.Join(names, ", ")
}

func addrsOf(i edge.Interface) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range i.Addrs {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}
