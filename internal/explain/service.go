package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

const apiServerName = config.APIServerName

// checks say which link of the chain a code of desired.Exposure is about.
var checks = map[string]string{
	"": "class", // not gatehouse's

	"AnnotationInvalid": "request", "SourceRangesInvalid": "source range",
	"NoZone": "zone", "UnknownZone": "zone", "ZoneNotAllowed": "allow",
	"PortConflict":  "port",
	"PoolExhausted": "address", "AddressNotInPool": "address", "AddressNotAllowed": "address", "AddressInUse": "address",
	"AddressConflict": "address", "AddressPending": "address", "FamilyMissing": "address", "NameNotResolved": "address",
	"CannotListen": "listener", "NoInterface": "listener",
	"ProtocolNotSupported": "data plane", "NotWithNAT": "data plane", "NoNAT": "data plane", "NoForwarding": "data plane", "NotTransparent": "data plane",
	"NoTarget": "backend",
}

func checkOf(code string) string { return cmp.Or(checks[code], "request") }

// sourceOf is where it is written what closes a row.
func sourceOf(e *engine, row *desired.Exposure) string {
	k := e.Config.Kubernetes
	if k == nil || row.Service == "" {
		return row.Why
	}
	switch row.Code {
	case "ZoneNotAllowed":
		return k.Allow[row.Zone].Pos.String()
	case "NoZone":
		if s := e.services[row.Service]; s != nil {
			if _, says := s.Annotations[annZones]; !says && len(k.DefaultZones) == 0 {
				return row.Why + ", " + k.At("defaultZones").String()
			}
		}
	}
	return row.Why
}

// remedyFor is what would open a row. There always is something.
func (e *engine) remedyFor(row *desired.Exposure) string {
	if have, ok := strings.CutPrefix(row.Remedy, "have "); ok {
		return "use one that there is: " + have
	}
	if row.Remedy != "" {
		return row.Remedy
	}
	switch row.Code {
	case "AddressPending":
		return "wait a moment: it opens once nobody else has answered for the address"
	case "":
		return e.remedyOfClass(row)
	}
	return "see the problems that gatehouse status prints"
}

// remedyOfClass is for Services that are not gatehouse's.
func (e *engine) remedyOfClass(row *desired.Exposure) string {
	s, k := e.services[row.Service], e.Config.Kubernetes
	switch {
	case s == nil || k == nil:
		return "create it with gatehouse's loadBalancerClass"
	case s.Deleting:
		return "create it anew"
	case s.Class != "" && s.Class != k.LoadBalancerClass:
		return fmt.Sprintf("create it anew with loadBalancerClass: %s (a class cannot be changed), or see why class %s gives it no address", k.LoadBalancerClass, s.Class)
	default:
		return fmt.Sprintf("give it the labels of kubernetes.selector, or change that (%s)", k.At("selector"))
	}
}

// zonesAsked are the zones that a Service names, or that are named for it.
func (e *engine) zonesAsked(service string) []string {
	s := e.services[service]
	if s == nil || e.Config.Kubernetes == nil {
		return nil
	}
	text, says := s.Annotations[annZones]
	if !says {
		return slices.Clone(e.Config.Kubernetes.DefaultZones)
	}
	var zones []string
	for zone := range strings.SplitSeq(text, ",") {
		if zone = strings.TrimSpace(zone); zone != "" && !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	return zones
}

// intro says whose door it is that somebody has come to, and why that is there.
func (e *engine) intro(c *chain, _ *origin, f *edge.Frontend) {
	if c.over {
		return
	}
	row := e.rowOf(f)
	where := "in zone " + f.Zone
	if f.Zone == "" {
		where = "at " + f.Listen.String()
	}
	port := fmt.Sprintf("%s port %d %s", f.Protocol, f.Listen.Port, where)
	if len(f.Hostnames) > 0 {
		port = "the TLS server names " + listed(f.Hostnames) + " of " + port
	}
	if row.Service != "" {
		e.classSteps(c, row.Service)
		e.zoneSteps(c, row.Service, f.Zone)
		c.ok("port", f.Why, "service %s has %s", row.Service, port)
	} else {
		c.ok("port", f.Why, "frontend %s has %s", f.Name, port)
	}
}

// classSteps say why a Service is gatehouse's.
func (e *engine) classSteps(c *chain, service string) {
	s, k := e.services[service], e.Config.Kubernetes
	source := "service/" + service
	switch {
	case s == nil || k == nil:
	case s.Class != "" && s.Class == k.LoadBalancerClass:
		c.ok("class", source, "its loadBalancerClass %s is gatehouse's", s.Class)
	case s.Class == "" && k.Classless:
		c.ok("class", k.At("classless").String(), "it names no loadBalancerClass, and kubernetes.classless is on")
	default:
		c.ok("class", k.At("followAddresses").String(), "another controller has given it its address, which gatehouse follows (kubernetes.followAddresses)")
	}
}

// zoneSteps say that a Service asks for a zone, and why it may.
func (e *engine) zoneSteps(c *chain, service, zone string) {
	s, k := e.services[service], e.Config.Kubernetes
	if s == nil || k == nil {
		return
	}
	if _, says := s.Annotations[annZones]; says {
		c.ok("zone", "service/"+service, "it asks for zone %s (annotation %s)", strings.Join(e.zonesAsked(service), ", "), annZones)
	} else {
		c.ok("zone", k.At("defaultZones").String(), "it asks for no zone, so that it has zone %s (kubernetes.defaultZones)", strings.Join(k.DefaultZones, ", "))
	}
	if allow, limited := k.Allow[zone]; limited {
		c.ok("allow", allow.Pos.String(), "it may open zone %s (kubernetes.allow.%s)", zone, zone)
	} else {
		c.ok("allow", k.At("allow").String(), "everybody may open zone %s", zone)
	}
}

// toService explains the ways to the ports of a Service.
func (e *engine) toService(t target, origins []origin) ([]Way, error) {
	k := e.Config.Kubernetes
	switch {
	case k == nil:
		return nil, fmt.Errorf("there is no Service %s: the configuration has no kubernetes block; ask for an address and port, or a frontend of it", t.service)
	case e.Cluster == nil:
		return nil, fmt.Errorf("the Services of the cluster are not known yet; ask again once gatehouse status says that they are")
	}
	s := e.services[t.service]
	if s == nil {
		var have []string
		for key := range e.services {
			have = append(have, key)
		}
		slices.Sort(have)
		return nil, fmt.Errorf("there is no Service %s of type LoadBalancer; %s", t.service, config.Suggest(t.service, "have", have))
	}
	ports, err := portsAsked(s, t)
	if err != nil {
		return nil, err
	}
	var ways []Way
	for i := range origins {
		for _, port := range ports {
			ways = append(ways, e.toPort(&origins[i], s, port))
		}
	}
	return ways, nil
}

// portsAsked are the ports of a Service that are asked about.
func portsAsked(s *edge.Service, t target) ([]edge.ServicePort, error) {
	if t.port == 0 && t.portName == "" {
		return s.Ports, nil
	}
	var ports []edge.ServicePort
	var have []string
	for _, p := range s.Ports {
		text := fmt.Sprintf("%d/%s", p.Port, strings.ToLower(string(p.Protocol)))
		if p.Name != "" {
			text += " (" + p.Name + ")"
		}
		have = append(have, text)
		switch {
		case t.protocol != "" && p.Protocol != t.protocol:
		case t.portName != "" && p.Name == t.portName, t.portName == "" && p.Port == t.port:
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("service %s has no port %s; it has %s", s.Key(), strings.TrimPrefix(t.String(), s.Key()+":"), listed(have))
	}
	return ports, nil
}

// toPort explains the way to one port of a Service.
func (e *engine) toPort(o *origin, s *edge.Service, port edge.ServicePort) Way {
	label := fmt.Sprintf("%s:%d", s.Key(), port.Port)
	if port.Protocol != edge.TCP {
		label += "/" + string(port.Protocol)
	}
	c := newChain(o, label)
	if c.over {
		return c.done()
	}
	var rows []*desired.Exposure
	var refused *desired.Exposure
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		switch {
		case row.Service != s.Key():
		case row.Port == 0 && (row.Zone == "" || row.Zone == o.zoneName()):
			if refused == nil || row.Zone != "" {
				refused = row
			}
		case row.Port == port.Port && row.Protocol == port.Protocol && (row.Zone == o.zoneName() || o.local):
			rows = append(rows, row)
		}
	}
	switch {
	case len(rows) > 0:
		e.toRows(c, o, rows)
	case refused != nil && (refused.Zone != "" || refused.Code != "UnknownZone" || len(e.zonesAsked(s.Key())) == 1):
		e.refused(c, s.Key(), refused)
	case o.zone == nil:
		e.classSteps(c, s.Key())
		c.stop("zone", "interface/"+strings.Join(o.devices, ","), "ask from a zone", "%s is in no zone, and Services are open in zones", strings.Join(o.devices, ", "))
	default:
		e.classSteps(c, s.Key())
		row := desired.Exposure{Service: s.Key()}
		c.stop("zone", "service/"+s.Key(), e.openHere(&row, o.zone.Name), "it asks for zone %s, and not for %s", cmp.Or(strings.Join(e.zonesAsked(s.Key()), ", "), "none"), o.zone.Name)
	}
	return c.done()
}

// refused is for a Service of which no port is open in a zone.
func (e *engine) refused(c *chain, service string, row *desired.Exposure) {
	check := checkOf(row.Code)
	if row.Code != "" {
		e.classSteps(c, service)
	}
	if check == "allow" {
		c.ok("zone", row.Why, "it asks for zone %s (annotation %s)", strings.Join(e.zonesAsked(service), ", "), annZones)
	}
	c.stop(check, sourceOf(e, row), e.remedyFor(row), "%s", row.Reason)
}

// toRows follows the doors of rows, of which each is the same port in one zone:
// one, unless it is this machine itself that connects.
func (e *engine) toRows(c *chain, o *origin, rows []*desired.Exposure) {
	var last chain
	for n, row := range rows {
		c := *c
		c.Steps = slices.Clone(c.Steps)
		if e.toRow(&c, o, row); !c.over || n == len(rows)-1 {
			last = c
			break
		}
	}
	*c = last
}

func (e *engine) toRow(c *chain, o *origin, row *desired.Exposure) {
	if !row.Open {
		if row.Service != "" {
			e.classSteps(c, row.Service)
			e.zoneSteps(c, row.Service, row.Zone)
		}
		c.Name = row.Name
		c.stop(checkOf(row.Code), sourceOf(e, row), e.remedyFor(row), "%s", row.Reason)
		return
	}
	var found []*chain
	var at []string
	for _, p := range e.packetsTo(o, row) {
		door, behind, kernel := e.find(p)
		i := slices.IndexFunc(behind, func(f *edge.Frontend) bool { return f.Name == row.Name && f.Zone == row.Zone })
		way := *c
		way.Steps = slices.Clone(c.Steps)
		switch {
		case i >= 0:
			way.Door = door.String()
			e.sayAddress(&way, p)
			e.intro(&way, o, behind[i])
			if names := behind[i].Hostnames; len(names) > 0 {
				way.ok("hostname", behind[i].Why, "to those that name the TLS server %s", namesText(names))
			}
			e.through(&way, o, behind[i], p.to.Addr())
		case kernel != nil:
			e.nobody(&way, o, p, kernel)
		default:
			if e.sayAddress(&way, p); !way.over {
				way.stop("listener", row.Why, "see the problems that gatehouse status prints", "it is not open at %s by %s", p.to, p.device)
			}
		}
		found, at = append(found, &way), append(at, p.to.Addr().String())
	}
	best := max(0, slices.IndexFunc(found, func(w *chain) bool { return !w.over }))
	if len(found) == 0 {
		e.noAddress(c, o, row)
		return
	}
	worse := slices.IndexFunc(found, func(w *chain) bool { return w.over })
	*c = *found[best]
	c.To += " at " + listed(compact(slices.Clone(at)))
	if worse >= 0 && !c.over {
		c.some = true
		c.Steps = append(c.Steps, Step{"address", false, fmt.Sprintf("at %s it is not: %s", at[worse], found[worse].Summary), row.Why})
		c.Summary += fmt.Sprintf("; but not at %s: %s", at[worse], found[worse].Summary)
		c.Remedy = found[worse].Remedy
	}
	if i := slices.IndexFunc(found, func(w *chain) bool { return !w.over && w.some }); i > best {
		c.some = true
		c.Summary += fmt.Sprintf("; at %s %s", at[i], found[i].why)
		c.Remedy = cmp.Or(c.Remedy, found[i].Remedy)
	}
}

// namesText says whom a frontend takes by name.
func namesText(names []string) string {
	if i := slices.Index(names, "*"); i >= 0 {
		return listed(append(slices.Delete(slices.Clone(names), i, i+1), "that nobody else there has, or none"))
	}
	return listed(names)
}

func compact(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}

func (e *engine) noAddress(c *chain, o *origin, row *desired.Exposure) {
	if row.Service != "" {
		e.classSteps(c, row.Service)
		e.zoneSteps(c, row.Service, row.Zone)
	}
	if o.client.IsValid() && len(row.Addresses) > 0 {
		c.stop("address", row.Why, "give the Service both IP families, or use one that it has", "it has no address there that %s could connect to: it is at %s", o.client, addrsText(row.Addresses))
		return
	}
	c.stop("address", row.Why, "give the interface an address, or the zone a pool", "it listens there, and there is no address to connect to yet")
}

// packetsTo are those that somebody would send to a row who connects to each of
// its addresses.
func (e *engine) packetsTo(o *origin, row *desired.Exposure) []packet {
	var packets []packet
	add := func(device string, addr netip.Addr) {
		if o.client.IsValid() && o.client.Is4() != addr.Is4() {
			return
		}
		p := packet{device: device, local: o.local, to: netip.AddrPortFrom(addr, row.Port), protocol: row.Protocol}
		if !slices.Contains(packets, p) {
			packets = append(packets, p)
		}
	}
	for _, l := range row.Listens {
		devices := []string{l.Device}
		if l.Device == "" {
			devices = o.devices
		}
		if o.local {
			devices = []string{cmp.Or(l.Device, "lo")}
		}
		for _, device := range devices {
			switch {
			case !o.local && !slices.Contains(o.devices, device):
			case l.Addr.IsValid() && !l.Addr.IsUnspecified():
				add(device, l.Addr)
			default:
				for _, p := range e.devices[device].Addrs {
					if !e.pooled[p.Addr()] && (slices.Contains(row.Addresses, p.Addr()) || len(row.Addresses) == 0 || l.Device == "") {
						add(device, p.Addr())
					}
				}
			}
		}
	}
	return packets
}
