package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// most is how many others are named that may have been meant.
const most = 3

// adminAt says whether a packet is for gatehouse's own status page.
func (e *engine) adminAt(c *chain, p packet) bool {
	a := e.Config.Admin
	field := ""
	listen, isListening := a.ListenAddr()
	switch {
	case p.protocol != edge.TCP || e.walled(p):
	case p.to.Port() == a.Port && slices.Contains(a.Zones, e.zoneOf[p.device]):
		field = "admin.zones"
	case !isListening || listen.Port() != p.to.Port():
	case a.OnLoopback() && p.local && p.to.Addr() == listen.Addr(), !a.OnLoopback() && (listen.Addr().IsUnspecified() || listen.Addr() == p.to.Addr()):
		field = "admin.listen"
	}
	if field == "" {
		return false
	}
	c.Name = field
	c.ok("listener", a.Pos.String(), "gatehouse itself listens there (%s)", field)
	c.Summary = "it is the status page of gatehouse itself (" + field + ")"
	if a.TokenFile != "" && (!p.local || !p.to.Addr().IsLoopback()) {
		c.Summary += ", which asks for a token"
	}
	return true
}

// nobody says why no door of gatehouse is where a packet comes to. What is said
// last decides.
func (e *engine) nobody(c *chain, o *origin, p packet, kernel *edge.Frontend) {
	zone := e.zoneOf[p.device]
	if kernel != nil {
		c.stop("data plane", kernel.Why, "data plane proxy takes connections from this machine, too",
			"%s is there by data plane nat, which sees what comes in by an interface, and nothing that this machine sends to itself", kernel.Name)
		return
	}
	said := len(c.Steps)
	e.adminElsewhere(c, p)
	e.openElsewhere(c, p, zone)
	e.refusedThere(c, p, zone)
	e.closedThere(c, p, zone)
	e.otherAddress(c, p, zone)
	if len(c.Steps) > said {
		return
	}
	remedy := fmt.Sprintf("to open it, write a frontend with zones: [%s] and port: %d, or a Service with that port that asks for zone %s", zone, p.to.Port(), zone)
	if zone == "" {
		remedy = fmt.Sprintf("to open it, write a frontend with listen: %q", edge.Listen{Device: p.device, Port: p.to.Port()})
	}
	where := "on " + p.device
	if zone != "" {
		where = "in zone " + zone
	}
	nothing := fmt.Sprintf("gatehouse has nothing at %s port %d %s", p.protocol, p.to.Port(), where)
	if e.unlistened(c, o, p, nothing, remedy) {
		return
	}
	c.stop("port", "", remedy, "%s; what programs of this machine itself listen there is no business of gatehouse's", nothing)
}

// adminElsewhere is for who looks for the status page.
func (e *engine) adminElsewhere(c *chain, p packet) {
	a := e.Config.Admin
	listen, isListening := a.ListenAddr()
	switch {
	case p.protocol != edge.TCP || p.to.Port() != listen.Port() && (p.to.Port() != a.Port || len(a.Zones) == 0):
	case isListening && a.OnLoopback() && listen.Port() == p.to.Port():
		c.stop("listener", a.Pos.String(), "ask on this machine itself, or write admin.zones with a tokenFile", "the status page of gatehouse listens at %s, for this machine itself only", listen)
	case isListening && listen.Port() == p.to.Port():
		c.stop("listener", a.Pos.String(), "ask there", "the status page of gatehouse listens at %s", listen)
	default:
		c.stop("listener", a.Pos.String(), "ask from there, or add the zone to admin.zones", "the status page of gatehouse is in zone %s", strings.Join(a.Zones, ", "))
	}
}

// openElsewhere names rows that have the port open in other zones.
func (e *engine) openElsewhere(c *chain, p packet, zone string) {
	named := 0
	seen := map[string]bool{}
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		if !row.Open || row.Port != p.to.Port() || row.Protocol != p.protocol || row.Zone == zone || seen[row.Name] || named == most {
			continue
		}
		if e.hasRow(row.Name, zone) { // which says why
			continue
		}
		seen[row.Name] = true
		named++
		if row.Zone == "" {
			e.listensElsewhere(c, p, row)
			continue
		}
		c.stop("zone", row.Why, e.openHere(row, zone), "%s is open in zone %s, and not %s", row.Name, strings.Join(e.zonesOf(row.Name), ", "), hereText(zone))
	}
}

// listensElsewhere is for a row with a listen of its own, which is not where a
// packet comes to.
func (e *engine) listensElsewhere(c *chain, p packet, row *desired.Exposure) {
	at := listensText(row.Listens)
	if e.walled(p) {
		c.stop("address", row.Why, "connect to an address that is of no pool", "%s listens at %s, and %s is an address of a pool: only the Services that have it are reached there", row.Name, at, p.to.Addr())
		return
	}
	c.stop("address", row.Why, "connect there, or change its listen ("+row.Why+")", "%s listens at %s, and not at %s by %s", row.Name, at, p.to.Addr(), p.device)
}

func hereText(zone string) string {
	if zone == "" {
		return "here"
	}
	return "in zone " + zone
}

func listensText(listens []edge.Listen) string {
	var texts []string
	for _, l := range listens {
		texts = append(texts, l.String())
	}
	return listed(texts)
}

// openHere is what would open a row in one zone more.
func (e *engine) openHere(row *desired.Exposure, zone string) string {
	switch {
	case zone == "":
		return "ask from one of those zones"
	case row.Service == "" && row.Name == apiServerName:
		return fmt.Sprintf("if it is to be open there, add %s to kubernetes.apiServer.zones (%s)", zone, row.Why)
	case row.Service == "":
		return fmt.Sprintf("if it is to be open there, add %s to its zones (%s)", zone, row.Why)
	}
	namespace, name, _ := strings.Cut(row.Service, "/")
	zones := append(e.zonesAsked(row.Service), zone)
	remedy := fmt.Sprintf("if it is to be open there: kubectl annotate --overwrite service -n %s %s %s=%s", namespace, name, annZones, strings.Join(zones, ","))
	if k := e.Config.Kubernetes; k != nil {
		if allow, limited := k.Allow[zone]; limited {
			remedy += fmt.Sprintf(" (kubernetes.allow.%s says who may, %s)", zone, allow.Pos)
		}
	}
	return remedy
}

const annZones = edge.AnnotationPrefix + "zones"

// zonesOf are the zones in which a row of that name is open.
func (e *engine) zonesOf(name string) []string {
	var zones []string
	for i := range e.State.Exposures {
		if row := &e.State.Exposures[i]; row.Name == name && row.Open && row.Zone != "" {
			zones = append(zones, row.Zone)
		}
	}
	return zones
}

func (e *engine) hasRow(name, zone string) bool {
	return e.wanted[rowKey{zone: zone, name: name}]
}

// refusedThere names Services that have the port, and are not open in a zone for
// what they ask for.
func (e *engine) refusedThere(c *chain, p packet, zone string) {
	named := 0
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		s := e.services[row.Service]
		if row.Port != 0 || s == nil || row.Zone != "" && row.Zone != zone || named == most {
			continue
		}
		if !slices.ContainsFunc(s.Ports, func(port edge.ServicePort) bool { return port.Port == p.to.Port() && port.Protocol == p.protocol }) {
			continue
		}
		named++
		c.stop(checkOf(row.Code), sourceOf(e, row), e.remedyFor(row), "service %s has the port, and is not open: %s", row.Service, row.Reason)
	}
}

// closedThere names rows that want the port there and do not have it.
func (e *engine) closedThere(c *chain, p packet, zone string) {
	named := 0
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		if row.Open || row.Port != p.to.Port() || row.Protocol != p.protocol || row.Zone != zone && row.Zone != "" || named == most {
			continue
		}
		named++
		c.stop(checkOf(row.Code), sourceOf(e, row), e.remedyFor(row), "%s is closed: %s", row.Name, row.Reason)
	}
}

// otherAddress names rows that have the port open in the same zone, at other
// addresses.
func (e *engine) otherAddress(c *chain, p packet, zone string) {
	named := 0
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		if !row.Open || row.Port != p.to.Port() || row.Protocol != p.protocol || row.Zone != zone || named == most {
			continue
		}
		at := listensText(row.Listens)
		if len(row.Addresses) > 0 {
			at = addrsText(row.Addresses)
		}
		named++
		why := "address"
		text := "%s is open there at %s, and not at %s"
		if e.walled(p) {
			text += ", which is an address of a pool: only the Services that have it are reached there"
		}
		c.stop(why, row.Why, "connect to "+at, text, row.Name, at, p.to.Addr())
	}
}

func addrsText(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return listed(texts)
}
