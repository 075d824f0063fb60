package links

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// The kinds of interfaces that are made here, as ip link calls them.
const (
	kindMacvlan = "macvlan"
	kindVLAN    = "vlan"
	kindBridge  = "bridge"
)

// lifeSlack is by how much the lifetime of an address may differ from that of the
// lease before it is set anew.
const lifeSlack = 5 * time.Second

// planner collects the steps that lead from what there is to what is wanted.
type planner struct {
	have     *machine
	links    []Link
	steps    []step
	problems []edge.Problem
	taken    map[string]string // ports, and their bridges
}

// plan says what is to be done next. It is done when there are no steps left: what
// needs an interface that is yet to be made comes after it is there. It is pure.
func plan(want Want, have *machine) (steps []step, problems []edge.Problem) {
	p := &planner{have: have, links: slices.Clone(want.Links), taken: map[string]string{}}
	for _, l := range p.links {
		if l.Bridge != nil {
			for _, port := range l.Bridge.Ports {
				p.taken[port] = l.Name
			}
		}
	}
	p.bound()
	p.removeDevices()
	for _, l := range p.links {
		p.device(l)
	}
	p.releasePorts()
	p.giveBack()
	wantedAddrs := p.addAddresses()
	p.removeAddresses(wantedAddrs)
	wantedRoutes := p.addRoutes()
	p.removeRoutes(wantedRoutes)
	return p.steps, p.problems
}

func (p *planner) do(s step) { p.steps = append(p.steps, s) }

func (p *planner) problem(l Link, remedy, format string, args ...any) {
	p.problems = append(p.problems, edge.Problem{Pos: l.Pos, Object: "link/" + l.Name, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (p *planner) wanted(name string) *Link {
	for i := range p.links {
		if p.links[i].Name == name {
			return &p.links[i]
		}
	}
	return nil
}

// kindOf is what gatehouse makes of a link; empty: it is there, or is not.
func kindOf(l Link) string {
	switch {
	case l.Macvlan != nil:
		return kindMacvlan
	case l.VLAN != nil:
		return kindVLAN
	case l.Bridge != nil:
		return kindBridge
	}
	return ""
}

func parentOf(l Link) string {
	switch {
	case l.Macvlan != nil:
		return l.Macvlan.Parent
	case l.VLAN != nil:
		return l.VLAN.Parent
	}
	return ""
}

// fits says whether an interface is what a link says; if not, what it is instead.
func (p *planner) fits(l Link, d *Device) (instead string, ok bool) {
	kind := kindOf(l)
	switch {
	case kind == "":
		return "", true
	case d.Kind != kind:
		return "of kind " + d.Kind, false
	case kind == kindBridge:
		return "", true
	case p.have.name(d.parent) != parentOf(l):
		return "a " + kind + " on " + cmp.Or(p.have.name(d.parent), "something else"), false
	case kind == kindMacvlan && d.mode != l.Macvlan.Mode:
		return "a macvlan of mode " + d.mode, false
	case kind == kindVLAN && d.vlan != l.VLAN.ID:
		return fmt.Sprintf("VLAN %d", d.vlan), false
	}
	return "", true
}

// removeDevices removes those of gatehouse's that nobody wants, or wants otherwise.
func (p *planner) removeDevices() {
	for i := range p.have.devices {
		d := &p.have.devices[i]
		if !d.Made {
			continue
		}
		if l := p.wanted(d.Name); l != nil && kindOf(*l) != "" {
			if _, fits := p.fits(*l, d); fits || p.unready(*l) {
				continue // without what it is to be on it stays as it is
			}
		}
		p.do(step{op: linkDel, device: d.Name})
	}
}

// unready says that a link cannot be made now.
func (p *planner) unready(l Link) bool {
	parent := parentOf(l)
	return parent != "" && p.have.device(parent) == nil
}

// device sees that an interface is there and as it should be.
func (p *planner) device(l Link) {
	d := p.have.device(l.Name)
	kind := kindOf(l)
	switch parent := parentOf(l); {
	case d == nil && kind == "":
		p.problem(l, "plug it in, or say what gatehouse is to make: macvlan, vlan or bridge", "there is no interface %s", l.Name)
		return
	case d == nil && p.unready(l):
		p.problem(l, "plug it in, or correct parent", "there is no interface %s for it to be on", parent)
		return
	case d == nil:
		p.do(step{op: linkAdd, device: l.Name, link: l})
		return
	}
	if instead, ok := p.fits(l, d); !ok {
		if !d.Made {
			p.problem(l, "ip link delete "+l.Name+", or give the link another name", "there is an interface of that name already, which is %s", instead)
		} else if p.unready(l) {
			p.problem(l, "plug it in, or correct parent", "there is no interface %s for it to be on", parentOf(l))
		}
		return
	}
	if l.Bridge != nil {
		p.ports(l, d)
		if d.stp != l.Bridge.STP {
			p.do(step{op: linkSTP, device: d.Name, on: l.Bridge.STP})
		}
	}
	if l.MAC != "" && d.MAC != l.MAC {
		p.do(step{op: linkMAC, device: d.Name, text: l.MAC})
	}
	if mtu := p.mtuOf(l, d); mtu != 0 && mtu != d.MTU {
		p.do(step{op: linkMTU, device: d.Name, n: mtu})
	}
	if parent := p.have.device(parentOf(l)); parent != nil && !parent.Up {
		p.do(step{op: linkUp, device: parent.Name})
	}
	if !d.Up {
		p.do(step{op: linkUp, device: d.Name})
	}
}

// mtuOf is the MTU that a link should have; 0: whatever it has.
func (p *planner) mtuOf(l Link, d *Device) int {
	own := cmp.Or(d.firstMTU, d.MTU)
	if parent := p.have.device(parentOf(l)); parent != nil && d.Made && l.DHCP != nil {
		own = parent.MTU // and not what another lease has made of it, of this process or of one before
		if l.MTU == 0 && !l.Asking && (l.Lease == nil || l.Lease.MTU == 0) {
			return own
		}
	}
	switch {
	case l.MTU != 0:
		return l.MTU
	case l.Lease != nil && l.Lease.MTU != 0:
		return min(l.Lease.MTU, own)
	}
	return d.firstMTU
}

// ports sees that a bridge has its ports.
func (p *planner) ports(l Link, bridge *Device) {
	for _, name := range l.Bridge.Ports {
		port := p.have.device(name)
		switch {
		case port == nil:
			p.problem(l, "plug it in, or take it out of ports", "its port %s is not there", name)
			continue
		case port.master != 0 && port.master != bridge.Index && !strings.HasPrefix(port.alias, portAlias):
			p.problem(l, "ip link set "+name+" nomaster, or take it out of ports", "its port %s belongs to %s", name, p.have.name(port.master))
			continue
		case port.master != bridge.Index:
			p.do(step{op: linkMaster, device: name, text: bridge.Name})
		}
		if port.master == bridge.Index && port.alias != portAlias+bridge.Name && strings.HasPrefix(port.alias, portAlias) {
			p.do(step{op: linkAlias, device: name, text: portAlias + bridge.Name})
		}
		if !port.Up {
			p.do(step{op: linkUp, device: name})
		}
	}
}

// releasePorts takes interfaces out of bridges that are no ports of them any more.
func (p *planner) releasePorts() {
	for _, d := range p.have.devices {
		bridge, ours := strings.CutPrefix(d.alias, portAlias)
		if !ours || p.taken[d.Name] != "" {
			continue
		}
		if d.master != 0 && p.have.name(d.master) == bridge {
			p.do(step{op: linkMaster, device: d.Name})
		}
		p.do(step{op: linkAlias, device: d.Name})
	}
}

// giveBack gives interfaces back what they were before, once nobody says otherwise.
func (p *planner) giveBack() {
	for _, d := range p.have.devices {
		l := p.wanted(d.Name)
		if d.firstMTU != 0 && l == nil && d.MTU != d.firstMTU {
			p.do(step{op: linkMTU, device: d.Name, n: d.firstMTU})
		}
		if d.firstMAC != "" && (l == nil || l.MAC == "") && d.MAC != d.firstMAC {
			p.do(step{op: linkMAC, device: d.Name, text: d.firstMAC})
		}
	}
}

// ready is the interface of a link, if it is there and what it should be.
func (p *planner) ready(l Link) *Device {
	d := p.have.device(l.Name)
	if d == nil {
		return nil
	}
	if _, ok := p.fits(l, d); !ok {
		return nil
	}
	return d
}

func (p *planner) addAddresses() (wanted map[mark]bool) {
	wanted = map[mark]bool{}
	for _, l := range p.links {
		d := p.ready(l)
		if d == nil {
			continue
		}
		for _, a := range l.Addresses {
			wanted[mark{d.Index, a}] = true
			p.address(l, d, a, Forever)
		}
		if l.Lease != nil && l.Lease.Valid > 0 {
			wanted[mark{d.Index, l.Lease.Addr}] = true
			p.address(l, d, l.Lease.Addr, l.Lease.Valid)
		}
	}
	return wanted
}

// address sees that an interface has an address.
func (p *planner) address(l Link, d *Device, addr netip.Prefix, valid time.Duration) {
	s := step{op: addrAdd, device: d.Name, addr: addr, n: l.Metric, valid: seconds(valid)}
	for _, a := range p.have.addresses {
		if a.addr.Addr() != addr.Addr() {
			continue
		}
		switch {
		case a.index != d.Index && !a.ours && !addr.Addr().IsLinkLocalUnicast():
			p.problem(l, "take it from there, or out of addresses", "its address %s is on interface %s, where somebody else has put it", addr.Addr(), p.have.name(a.index))
			return
		case a.index != d.Index || a.addr != addr:
			continue
		case a.failed:
			p.problem(l, "give one of the two another address", "another machine there has %s", addr.Addr())
			if a.ours {
				p.do(step{op: addrRenew, device: d.Name, addr: addr, n: l.Metric, valid: s.valid})
			}
			return
		case !a.ours, a.metric == l.Metric && sameLife(a.valid, s.valid):
			return
		default:
			s.op = addrChange
		}
	}
	p.do(s)
}

// seconds is a lifetime as the kernel counts it.
func seconds(d time.Duration) uint32 {
	s := int64(d.Round(time.Second) / time.Second)
	if d == Forever || s >= int64(forever) {
		return forever
	}
	return uint32(max(s, 1))
}

func sameLife(a, b uint32) bool {
	if a == forever || b == forever {
		return a == b
	}
	return max(a, b)-min(a, b) <= uint32(lifeSlack/time.Second)
}

func (p *planner) removeAddresses(wanted map[mark]bool) {
	for _, a := range p.have.addresses {
		if a.ours && !wanted[a.mark] && !p.goes(a.index) && !p.mayBeLeased(a.index, a.addr.Addr()) {
			p.do(step{op: addrDel, device: p.have.name(a.index), addr: a.addr})
		}
	}
}

// mayBeLeased says whether an address is there for a time, and of a link of which it
// is not known yet which address it is given.
func (p *planner) mayBeLeased(index int, addr netip.Addr) bool {
	l := p.wanted(p.have.name(index))
	return l != nil && l.Asking && l.DHCP != nil && slices.ContainsFunc(p.have.addresses, func(a address) bool {
		return a.index == index && a.addr.Addr() == addr && addr.Is4() && a.ours && a.valid != forever
	})
}

// goes says that an interface is removed with what it has.
func (p *planner) goes(index int) bool {
	name := p.have.name(index)
	return slices.ContainsFunc(p.steps, func(s step) bool { return s.op == linkDel && s.device == name })
}

// routesOf are the routes of a link.
func routesOf(l Link, d *Device) []Route {
	var routes []Route
	for _, r := range l.Routes {
		routes = append(routes, Route{To: r.To, Via: r.Via, Metric: r.Metric, index: d.Index})
	}
	if l.Lease == nil || l.Lease.Valid <= 0 || l.DHCP == nil {
		return routes
	}
	said := l.Lease.Routes
	if len(said) == 0 && l.Lease.Router.IsValid() { // RFC 3442: who has the one ignores the other
		said = []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.Lease.Router}}
	}
	add := func(r Route) {
		r.Metric, r.Source, r.index = l.DHCP.Metric, l.Lease.Addr.Addr(), d.Index
		if !slices.ContainsFunc(routes, func(o Route) bool { return o.To == r.To && o.Metric == r.Metric }) {
			routes = append(routes, r)
		}
	}
	for _, r := range said {
		if r.To.Bits() < leastSpecific && !l.DHCP.DefaultRoute {
			continue
		}
		if r.Via.IsUnspecified() { // on the cable itself
			r.Via = netip.Addr{}
		}
		if r.Via.IsValid() && !l.Lease.Addr.Contains(r.Via) && !slices.ContainsFunc(said, func(o Route) bool { return o.Via.IsUnspecified() && o.To.Contains(r.Via) }) {
			add(Route{To: netip.PrefixFrom(r.Via, 32)}) // a router outside the network, as some providers have it
		}
		add(r)
	}
	// Those that are neighbours come first: others go by them.
	slices.SortStableFunc(routes, func(a, b Route) int { return boolToInt(a.Via.IsValid()) - boolToInt(b.Via.IsValid()) })
	return routes
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *planner) addRoutes() (wanted []Route) {
	for _, l := range p.links {
		d := p.ready(l)
		if d == nil || !d.Up {
			continue // there are no routes by what is down
		}
		for _, r := range routesOf(l, d) {
			wanted = append(wanted, r)
			p.route(l, d, r)
		}
	}
	return wanted
}

// sameRoute says whether two routes differ in nothing but whose they are.
func sameRoute(a, b Route) bool {
	a.ours, b.ours = false, false
	return a == b
}

func (p *planner) route(l Link, d *Device, r Route) {
	s := step{op: routeAdd, device: d.Name, route: r}
	for _, have := range p.have.routes {
		if have.To != r.To || have.index != r.index {
			continue
		}
		switch {
		case sameRoute(have, r), !have.ours && have.Via == r.Via && have.Metric <= r.Metric:
			return
		case have.ours && have.Metric == r.Metric:
			s.op = routeChange
		}
	}
	if i := slices.IndexFunc(p.have.routes, func(o Route) bool {
		return o.To == r.To && o.Metric == r.Metric && !o.ours && (o.index != r.index || o.Via != r.Via)
	}); i >= 0 {
		p.problem(l, "remove that, or give this one another metric", "somebody else has a route to %s with metric %d, by %s", r.To, r.Metric, p.have.name(p.have.routes[i].index))
		return
	}
	p.do(s)
}

func (p *planner) removeRoutes(wanted []Route) {
	for _, have := range p.have.routes {
		if !have.ours || p.goes(have.index) || p.mayBeLeased(have.index, have.Source) {
			continue
		}
		replaced := slices.ContainsFunc(p.steps, func(s step) bool {
			return s.op == routeChange && s.route.To == have.To && s.route.Metric == have.Metric && s.route.index == have.index
		})
		if !replaced && !slices.ContainsFunc(wanted, func(r Route) bool { return sameRoute(have, r) }) {
			p.do(step{op: routeDel, device: p.have.name(have.index), route: have})
		}
	}
}
