package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// A claim is a row that has a door, or some of the names behind one. Who comes
// first has it: the admin address, then the files in their order, then Services
// by age and name. Interfaces need not exist to be claimed, or a cable that is
// pulled would decide a conflict anew.
type claim struct {
	name    string // for people: "service shop/web", "frontend git-ssh (gatehouse.yaml:9)"
	service string
	whole   bool // it is gatehouse's own, and shares with nobody
}

// A door is what is claimed of one Listen.
type door struct {
	listen edge.Listen
	first  *claim            // who claimed it first
	names  map[string]*claim // who has which TLS server name; nil: first has all of it
	accept []netip.Prefix    // acceptProxyProtocol of all who share it
	pools  bool              // it is in the way of addresses of pools, too
}

// doorKey is where to look for doors that may be in the way: those at one
// address of a pool, or with the zero Addr all others.
type doorKey struct {
	protocol edge.Protocol
	port     uint16
	addr     netip.Addr
}

func keyOf(p edge.Protocol, l edge.Listen) doorKey {
	key := doorKey{protocol: p, port: l.Port}
	if ofPool(l) {
		key.addr = l.Addr
	}
	return key
}

// ofPool says whether a listen is at an address of a pool: only those have a
// device and an address.
func ofPool(l edge.Listen) bool { return l.Device != "" && l.Addr.IsValid() }

// near are the doors that may overlap with a listen. There can be ten thousand
// of one port.
func (b *builder) near(p edge.Protocol, l edge.Listen) []*door {
	others := b.doors[doorKey{protocol: p, port: l.Port}]
	switch {
	case ofPool(l):
		return slices.Concat(others, b.doors[keyOf(p, l)])
	case l.Device == "": // is of a file, and those come first
		for key, doors := range b.doors {
			if key.protocol == p && key.port == l.Port && key.addr.IsValid() {
				others = slices.Concat(others, doors)
			}
		}
	}
	return others
}

// A conflict is why a row cannot have a door.
type conflict struct {
	*door
	kind  conflictKind
	wants edge.Listen
}

type conflictKind int

const (
	taken       conflictKind = iota // both want all of it
	takenByName                     // the other ones have names, this one has not
	takenWhole                      // this one has names, the other one has not
	elsewhere                       // they overlap and are not the same
	otherProxy                      // they trust different proxies
)

// A loss is a hostname that somebody else has.
type loss struct {
	name string
	to   *claim
}

// taking are doors that a row has, with its names there.
type taking struct {
	listens []edge.Listen
	names   []string
}

// claimAll takes the doors of a row, and closes it if there are none: those at
// each of its addresses of pools, and those at what the interfaces have for
// themselves. A door that somebody else has keeps it from none of the others.
func (b *builder) claimAll(row *Exposure, accept []netip.Prefix, listens []edge.Listen) (got []taking) {
	groups := byAddress(listens)
	var reason, remedy string
	for _, group := range groups {
		names, lost, conflict := b.claim(*row, accept, group)
		if row.shut.code != "" {
			continue // it has them as soon as it may
		}
		why, what := "", ""
		switch {
		case conflict != nil:
			why, what = b.explain(*row, conflict)
		case len(lost) > 0:
			why, what = b.lose(*row, lost, group)
		}
		if conflict == nil && (len(names) > 0 || len(lost) == 0) {
			got = append(got, taking{group, names})
		}
		if reason == "" {
			reason, remedy = why, what
		} else if why != "" && why != reason {
			reason += ", and " + why
		}
	}
	switch {
	case row.shut.code != "":
		b.closedFor(*row, row.shut)
	case len(got) == 0:
		b.closed(*row, "PortConflict", reason, remedy)
	case reason != "":
		b.problem(edge.Problem{Object: objectOf(*row), What: reason, Remedy: remedy})
		if row.Service != "" {
			b.event(row.Service, true, "PortConflict", reason+"; "+remedy)
		}
		row.Notes, row.lacks = append(row.Notes, reason), reason
	}
	row.Hostnames = nil
	for _, t := range got {
		row.Hostnames = append(row.Hostnames, t.names...)
	}
	slices.Sort(row.Hostnames)
	row.Hostnames = slices.Compact(row.Hostnames)
	return got
}

// byAddress divides listens at addresses of pools, by those.
func byAddress(listens []edge.Listen) [][]edge.Listen {
	if !slices.ContainsFunc(listens, ofPool) {
		return [][]edge.Listen{listens}
	}
	var groups [][]edge.Listen
	for _, l := range listens {
		i := slices.IndexFunc(groups, func(g []edge.Listen) bool { return g[0].Addr == l.Addr })
		if i < 0 {
			i = len(groups)
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], l)
	}
	return groups
}

// namesAt are the names that a row has at the n-th of its listens.
func namesAt(got []taking, n int) []string {
	for _, t := range got {
		if n < len(t.listens) {
			return t.names
		}
		n -= len(t.listens)
	}
	return nil
}

// claim takes all the doors of a row at one address, or none and returns why. Of its hostnames
// it takes those that nobody has at one of the doors, and returns the others.
func (b *builder) claim(row Exposure, accept []netip.Prefix, listens []edge.Listen) (names []string, lost []loss, _ *conflict) {
	var shared []*door
	for _, l := range listens {
		for _, d := range b.near(row.Protocol, l) {
			at := l
			if d.pools && ofPool(l) {
				at.Addr = netip.Addr{}
			}
			if !overlap(at, d.listen) {
				continue
			}
			kind := taken
			switch byName := len(row.Hostnames) > 0; {
			case !byName && d.names == nil:
			case !byName:
				kind = takenByName
			case d.names == nil:
				kind = takenWhole
			case l != d.listen:
				kind = elsewhere
			case !slices.Equal(accept, d.accept):
				kind = otherProxy
			default:
				shared = append(shared, d)
				continue
			}
			return nil, nil, &conflict{d, kind, l}
		}
	}
	for _, name := range row.Hostnames {
		if i := slices.IndexFunc(shared, func(d *door) bool { return d.names[name] != nil }); i >= 0 {
			lost = append(lost, loss{name, shared[i].names[name]})
			continue
		}
		names = append(names, name)
	}
	if len(lost) > 0 && len(names) == 0 {
		return nil, lost, nil
	}
	c := &claim{name: "frontend " + row.Name + " (" + row.Why + ")", service: row.Service}
	if row.Service != "" {
		c.name = "service " + row.Service
	}
	for _, l := range listens {
		i := slices.IndexFunc(shared, func(d *door) bool { return d.listen == l })
		var d *door
		if i >= 0 {
			d = shared[i]
		} else {
			d = &door{listen: l, first: c, accept: accept}
			if len(names) > 0 {
				d.names = map[string]*claim{}
			}
			key := keyOf(row.Protocol, l)
			b.doors[key] = append(b.doors[key], d)
		}
		for _, name := range names {
			d.names[name] = c
		}
	}
	return names, lost, nil
}

// overlap says whether two doors are in each other's way: one with no device is
// on each of them, and one with no address likewise; but what comes for an
// address of a pool is its Services' alone.
func overlap(x, y edge.Listen) bool {
	if x.Port != y.Port || x.Device != "" && y.Device != "" && x.Device != y.Device {
		return false
	}
	if ofPool(x) && y.Device != "" || ofPool(y) && x.Device != "" {
		return x.Addr == y.Addr
	}
	return !x.Addr.IsValid() || !y.Addr.IsValid() || x.Addr == y.Addr
}

// explain says why a row cannot have a door, and tells who has it.
func (b *builder) explain(row Exposure, c *conflict) (reason, remedy string) {
	place := fmt.Sprintf("%s port %d %s", row.Protocol, row.Port, placeOf(row, c.wants, c.listen))
	reason = place + " is taken by " + c.first.name
	older := row.Service != "" && c.first.service != ""
	if older {
		reason += ", which is older"
	}
	remedy = "use another port or zone for one of the two"
	told := ""
	switch c.kind {
	case taken:
	case takenByName:
		reason = place + " is shared by TLS server name, first by " + c.first.name
		remedy = "give this one its names in " + hostnamesOf(row.Service) + ", or another port or zone"
	case takenWhole:
		if c.first.whole {
			break
		}
		reason += ", for all TLS server names"
		remedy = "give that one its names in " + hostnamesOf(c.first.service) + ", or use another port or zone for one of the two"
		told = "; they can share it if this one names its own in " + hostnamesOf(c.first.service)
	case elsewhere:
		reason += ", at " + c.listen.String()
		remedy = "names share a port only where both listen at the same place: use zones for both, or the same listen"
	case otherProxy:
		reason += ", which accepts the PROXY protocol from other networks"
		remedy = "give both the same acceptProxyProtocol"
	}
	if older {
		b.event(c.first.service, true, "PortConflict", fmt.Sprintf("service %s also wants %s port %d %s; it stays closed there, this one is older and keeps it%s",
			row.Service, row.Protocol, row.Port, placeOf(row, c.wants, c.listen), told))
	}
	return reason, remedy
}

// lose tells both of the hostnames that a row does not get. It returns that in
// words, with what can be done.
func (b *builder) lose(row Exposure, lost []loss, listens []edge.Listen) (reason, remedy string) {
	var order []*claim
	names := map[*claim][]string{}
	for _, l := range lost {
		if names[l.to] == nil {
			order = append(order, l.to)
		}
		names[l.to] = append(names[l.to], l.name)
	}
	place := fmt.Sprintf("%s port %d %s", row.Protocol, row.Port, placeOf(row, listens[0], listens[0]))
	var parts []string
	for _, other := range order {
		part := hostnames(names[other])
		verb := " are"
		if len(names[other]) == 1 {
			verb = " is"
		}
		if len(parts) == 0 {
			part += " at " + place
		}
		part += verb + " taken by " + other.name
		if row.Service != "" && other.service != "" {
			part += ", which is older"
			b.event(other.service, true, "PortConflict", fmt.Sprintf("service %s also wants %s at %s; this one is older and keeps it", row.Service, hostnames(names[other]), place))
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", and "), "give each name to one of them, or use another port or zone"
}

// hostnames says them with the noun.
func hostnames(names []string) string {
	if len(names) == 1 {
		return "hostname " + names[0]
	}
	return "hostnames " + strings.Join(names, ", ")
}

// hostnamesOf is where the hostnames of a Service are written, or of a static
// frontend.
func hostnamesOf(service string) string {
	if service == "" {
		return "hostnames"
	}
	return "annotation " + annHostnames
}

// claimAdmin keeps frontends off the ports of the status page. In its zones that
// is the port of whole interfaces: an address of a pool that is there is no
// other place.
func (b *builder) claimAdmin() {
	admin := b.in.Config.Admin
	take := func(field string, l edge.Listen) {
		key := doorKey{protocol: edge.TCP, port: l.Port}
		b.doors[key] = append(b.doors[key], &door{
			listen: l, first: &claim{name: "admin." + field + " (" + admin.Pos.String() + ")", whole: true}, pools: field == "zones",
		})
	}
	if ap, ok := admin.ListenAddr(); ok {
		l := edge.Listen{Addr: ap.Addr(), Port: ap.Port()}
		if admin.OnLoopback() {
			l = edge.Listen{Device: "lo", Port: ap.Port()} // which it is bound to
		}
		take("listen", l)
	}
	for _, name := range admin.Zones {
		if z := b.zones[name]; z != nil { // else config.Parse has refused it
			for _, device := range z.Interfaces {
				take("zones", edge.Listen{Device: device, Port: admin.Port})
			}
		}
	}
}

// claimDHCP keeps frontends off the ports of this machine's DHCP servers in their
// zones: only one of the two would get what clients send.
func (b *builder) claimDHCP() {
	for i := range b.in.Config.DHCP {
		d := &b.in.Config.DHCP[i]
		z := b.zones[d.Zone]
		if z == nil {
			continue // config.Parse has refused it
		}
		take := func(port uint16) {
			key := doorKey{protocol: edge.UDP, port: port}
			for _, device := range z.Interfaces {
				b.doors[key] = append(b.doors[key], &door{
					listen: edge.Listen{Device: device, Port: port}, first: &claim{name: "dhcp." + d.Zone + " (" + d.Pos.String() + ")"}, pools: true,
				})
			}
		}
		if d.Gives() {
			take(config.DHCPPort)
		}
		if d.RouterAdvertisements != nil {
			take(config.DHCPv6Port)
		}
	}
}

// claimDNS keeps frontends off the port of the DNS server in its zones, which is
// likewise that of whole interfaces.
func (b *builder) claimDNS() {
	d := b.in.Config.DNS
	if d == nil {
		return
	}
	for _, name := range d.Zones {
		z := b.zones[name]
		if z == nil {
			continue // config.Parse has refused it
		}
		for _, device := range z.Interfaces {
			for _, p := range []edge.Protocol{edge.UDP, edge.TCP} {
				key := doorKey{protocol: p, port: config.DNSPort}
				b.doors[key] = append(b.doors[key], &door{
					listen: edge.Listen{Device: device, Port: config.DNSPort}, first: &claim{name: "dns.zones (" + d.Pos.String() + ")", whole: true}, pools: true,
				})
			}
		}
	}
}
