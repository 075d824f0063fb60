// Package prove says what a firewall lets pass, for every zone, address and port,
// and whether that is as somebody has written down that it has to be. It is pure:
// it reads the rules that the kernel is given, and tries no packet.
//
//	site := prove.New(prove.Inputs{Config: c, Rules: firewall.Compile(in), Exposures: state.Exposures, Interfaces: in.Interfaces})
//	m := site.Matrix()
//	broken := site.Check(statements)
//
// Packets are handled in boxes: a protocol, a range of ports, a range of sources
// and one of destinations. What a rule lets pass is a few boxes, less those of the
// rules before it; so what is said is said of each packet in them, and none is
// left out. It is about the first packet of a connection (answers follow it), and
// not about what every network needs, which Matrix lists as Always.
package prove

import (
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// Inputs are what is to be proved of.
type Inputs struct {
	Config     *config.Config
	Rules      firewall.Ruleset
	Exposures  []desired.Exposure
	Interfaces []edge.Interface // with the addresses that they have, or will have
}

// Site is what Inputs say, ready to be asked.
type Site struct {
	Inputs
	holes  map[hole][]*firewall.Pinhole
	inZone map[string][]*firewall.Pinhole
	free   []span // addresses that no frontend has for itself
	owns   []netip.Addr
	passed map[[2]string][]passage // by from and to
}

// hole is what a pinhole is found by.
type hole struct {
	protocol edge.Protocol
	device   string
	at       netip.AddrPort
}

// New prepares a Site.
func New(in Inputs) *Site {
	s := &Site{Inputs: in, holes: map[hole][]*firewall.Pinhole{}, inZone: map[string][]*firewall.Pinhole{}, passed: map[[2]string][]passage{}}
	for i := range s.Rules.Pinholes {
		p := &s.Rules.Pinholes[i]
		k := hole{p.Protocol, p.Device, netip.AddrPortFrom(p.Addr, p.Port)}
		s.holes[k] = append(s.holes[k], p)
		zone := s.Rules.ZoneOf(p.Device)
		s.inZone[zone] = append(s.inZone[zone], p)
	}
	s.free, s.owns = s.elsewhere(), s.owned()
	for _, from := range s.Rules.Zones {
		s.passed[[2]string{from.Name, config.Self}] = s.policies(from.Name, config.Self)
		for _, to := range s.Rules.Zones {
			s.passed[[2]string{from.Name, to.Name}] = s.policies(from.Name, to.Name)
		}
	}
	return s
}

// Matrix is who reaches what.
type Matrix struct {
	Zones []string `json:"zones"`
	// Cells are for each zone, and to each zone and this machine.
	Cells     []Cell     `json:"cells"`
	Exposures []Exposure `json:"exposures"`
	// Always are what passes whatever the policies are, in words.
	Always []string `json:"always"`
	// Unzoned are the interfaces that are in no zone: nothing passes there.
	Unzoned []string `json:"unzoned,omitempty"`
	// Idle are the policies that decide nothing: all that they are about is decided by those before them.
	Idle []string `json:"idle,omitempty"`
}

// Cell is what is let pass from one zone to another, or to this machine.
type Cell struct {
	From string `json:"from"`
	To   string `json:"to"` // a zone, or "self"
	// Everything says that each packet passes.
	Everything bool   `json:"everything"`
	Passes     []Pass `json:"passes"` // by what; none: nothing does
}

// Pass is what one rule lets pass in a cell.
type Pass struct {
	Why        string    `json:"why"` // "home -> cluster: 6443/TCP (gatehouse.yaml:14)", "service/shop/web"
	Pos        edge.Pos  `json:"pos,omitzero"`
	Interface  string    `json:"interface,omitempty"` // of what gatehouse opens: there
	Passing    []Passing `json:"passing"`             // after what rules before it drop
	Except     []string  `json:"except,omitempty"`    // those rules, where they drop some of it
	Masquerade bool      `json:"masquerade,omitempty"`

	opened bool
}

// Passing are connections to ports from addresses to addresses.
type Passing struct {
	Ports       []string `json:"ports"`  // "6443/TCP", "ping", "all of TCP", "everything"
	Source      string   `json:"source"` // an address, a network, or a range
	Destination string   `json:"destination"`
}

// Exposure is something that is open, and from which zones it is reached.
type Exposure struct {
	Name string   `json:"name"` // "shop/web:80"
	From []Access `json:"from"` // none: nobody reaches it
}

// Access is a zone from which an exposure is reached.
type Access struct {
	Zone    string         `json:"zone"`
	At      []string       `json:"at"`                // addresses and ports, or interfaces and ports
	Sources []netip.Prefix `json:"sources,omitempty"` // only from there; absent: all of the zone
}

// way is where a cell goes: a zone, or this machine.
func way(to string) firewall.Way {
	if to == config.Self {
		return firewall.ToSelf
	}
	return firewall.Through
}

func fits(z firewall.ZoneMatch, zone string) bool {
	return z == firewall.ZoneMatch{} || z.Any || z.Zone == zone
}

// ordinary says whether a rule is about first packets of connections that
// somebody makes.
func ordinary(r *firewall.Rule) bool {
	m := &r.Fits
	return m.In == "" && (m.States == nil || slices.Contains(m.States, firewall.New)) &&
		m.HopLimit == 0 && m.Number == 0 && m.ICMP == nil && m.SrcPort == 0
}

// passage is what a policy lets pass.
type passage struct {
	rule   int
	boxes  []box
	except []int // rules that drop some of it
}

// passages are those of the policies, in their order.
func (s *Site) passages(from, to string) []passage { return s.passed[[2]string{from, to}] }

func (s *Site) policies(from, to string) []passage {
	var all []passage
	var dropped []box
	var droppers []int // parallel to dropped
	for i := range s.Rules.Rules {
		r := &s.Rules.Rules[i]
		of, applies := boxesOfRule(r, from, to)
		if !applies {
			continue
		}
		if !r.Accept {
			for _, b := range of {
				dropped, droppers = append(dropped, b), append(droppers, i)
			}
			continue
		}
		p := passage{rule: i}
		for k, d := range dropped {
			if _, some := overlaps(of, []box{d}); some && !slices.Contains(p.except, droppers[k]) {
				p.except = append(p.except, droppers[k])
			}
		}
		if p.boxes = subtract(of, dropped); len(p.boxes) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// boxesOfRule are what a policy is about between two zones, if it is.
func boxesOfRule(r *firewall.Rule, from, to string) (of []box, applies bool) {
	m := &r.Fits
	if r.Way&way(to) == 0 || !ordinary(r) || m.Pinholes != firewall.NoPinhole || !fits(m.From, from) || to != config.Self && !fits(m.To, to) {
		return nil, false
	}
	of = boxes(m.Services, spansOf(m.Sources), spansOf(m.Destinations))
	if m.IsIP != 0 {
		of = slices.DeleteFunc(of, func(b box) bool { return b.src.is4() != (m.IsIP == 4) })
	}
	return of, true
}

// idle are the policies that nothing is left for, in file order.
func (s *Site) idle() (all []string) {
	decides := map[int]bool{} // by policy
	for _, from := range s.Rules.Zones {
		for _, to := range append(slices.Clone(s.Rules.Zones), firewall.Zone{Name: config.Self}) {
			var before []box
			for i := range s.Rules.Rules {
				r := &s.Rules.Rules[i]
				of, applies := boxesOfRule(r, from.Name, to.Name)
				if !applies || r.Policy < 0 {
					continue
				}
				decides[r.Policy] = decides[r.Policy] || len(subtract(of, before)) > 0
				before = append(before, of...)
			}
		}
	}
	for i := range s.Rules.Rules {
		r := &s.Rules.Rules[i]
		if does, known := decides[r.Policy]; known && !does && !slices.Contains(all, r.Why) {
			all = append(all, r.Why)
		}
	}
	return all
}

// pinholes are what is opened at the interfaces of a zone. What is translated
// there is asked for at this machine, wherever it goes then.
func (s *Site) pinholes(zone string) []*firewall.Pinhole { return s.inZone[zone] }

// boxesOf are what comes through a pinhole.
func (s *Site) boxesOf(p *firewall.Pinhole) []box {
	to := []span{single(p.Addr)}
	if !p.Addr.IsValid() {
		to = s.free
	}
	return boxes([]config.PortRange{{Protocol: p.Protocol, First: p.Port, Last: p.Port}}, spansOf(p.Sources), to)
}

// elsewhere are the addresses that no frontend has for itself: those between
// Own, which are sorted.
func (s *Site) elsewhere() (all []span) {
	for _, rest := range []span{all4, all6} {
		more := true
		for _, own := range s.Rules.Own {
			if _, in := rest.overlap(single(own)); !in {
				continue
			}
			if own != rest.lo {
				all = append(all, span{rest.lo, own.Prev()})
			}
			if more = own != rest.hi; !more {
				break
			}
			rest.lo = own.Next()
		}
		if more {
			all = append(all, rest)
		}
	}
	return all
}

// Matrix says what passes between all zones, and to this machine.
func (s *Site) Matrix() Matrix {
	m := Matrix{Cells: []Cell{}, Exposures: []Exposure{}, Always: []string{}, Unzoned: s.Rules.Unzoned, Idle: s.idle()}
	for _, z := range s.Rules.Zones {
		m.Zones = append(m.Zones, z.Name)
	}
	for _, from := range m.Zones {
		for _, to := range append(slices.Clone(m.Zones), config.Self) {
			m.Cells = append(m.Cells, s.cell(from, to))
		}
	}
	m.Exposures = append(m.Exposures, s.exposures()...)
	for _, r := range s.Rules.Rules {
		if r.Accept && r.Policy < 0 && r.Fits.Pinholes == firewall.NoPinhole && !slices.Contains(m.Always, r.Why) {
			m.Always = append(m.Always, r.Why)
		}
	}
	return m
}

func (s *Site) cell(from, to string) Cell {
	c := Cell{From: from, To: to, Passes: []Pass{}}
	if to == config.Self {
		for _, p := range s.pinholes(from) {
			passing := described(boxes([]config.PortRange{{Protocol: p.Protocol, First: p.Port, Last: p.Port}}, spansOf(p.Sources), pinholeAddr(p)))
			c.Passes = append(c.Passes, Pass{Why: p.Why, Interface: p.Device, Passing: passing, opened: true})
		}
	}
	left := boxes(nil, []span{all4, all6}, []span{all4, all6})
	for _, p := range s.passages(from, to) {
		r := &s.Rules.Rules[p.rule]
		pass := Pass{Why: r.Why, Pos: r.Pos, Passing: described(p.boxes), Masquerade: r.Masquerade}
		for _, i := range p.except {
			pass.Except = append(pass.Except, s.Rules.Rules[i].Why)
		}
		c.Passes = append(c.Passes, pass)
		left = subtract(left, p.boxes)
	}
	c.Everything = len(left) == 0
	return c
}

// pinholeAddr is where a pinhole is; one without an address is at each that no
// frontend has for itself, which is too much to say.
func pinholeAddr(p *firewall.Pinhole) []span {
	if p.Addr.IsValid() {
		return []span{single(p.Addr)}
	}
	return []span{all4, all6}
}

// exposures are those that are open, by name, with who reaches them.
func (s *Site) exposures() []Exposure {
	at := map[string]int{}
	var all []Exposure
	for i := range s.Exposures {
		e := &s.Exposures[i]
		if !e.Open {
			continue
		}
		k, known := at[e.Name]
		if !known {
			k = len(all)
			at[e.Name] = k
			all = append(all, Exposure{Name: e.Name, From: []Access{}})
		}
		for _, z := range s.Rules.Zones {
			if a, reached := s.access(e, z.Name); reached {
				all[k].From = append(all[k].From, a)
			}
		}
	}
	slices.SortFunc(all, func(x, y Exposure) int { return strings.Compare(x.Name, y.Name) })
	return all
}

// access says how an exposure is reached from a zone.
func (s *Site) access(e *desired.Exposure, zone string) (Access, bool) {
	a := Access{Zone: zone}
	reached := false
	for _, p := range s.holesOf(e, zone) {
		reached = true
		if p.Sources != nil && !slices.Equal(a.Sources, p.Sources) {
			a.Sources = append(a.Sources, p.Sources...)
		}
		where := edge.Listen{Device: p.Device, Port: p.Port}.String()
		if p.Addr.IsValid() {
			where = netip.AddrPortFrom(p.Addr, p.Port).String()
		}
		if !slices.Contains(a.At, where) {
			a.At = append(a.At, where)
		}
	}
	slices.SortFunc(a.Sources, firewall.ComparePrefixes)
	a.Sources = slices.Compact(a.Sources)
	return a, reached
}

// holesOf are the pinholes of an exposure in a zone.
func (s *Site) holesOf(e *desired.Exposure, zone string) []*firewall.Pinhole {
	var all []*firewall.Pinhole
	if e.Zone != "" && e.Zone != zone {
		return nil
	}
	for _, l := range e.Listens {
		devices := []string{l.Device}
		if l.Device == "" {
			devices = s.devices(zone)
		}
		for _, device := range devices {
			if s.Rules.ZoneOf(device) != zone {
				continue
			}
			for _, p := range s.holes[hole{e.Protocol, device, netip.AddrPortFrom(l.Addr.Unmap(), l.Port)}] {
				if p.Why == e.Why && !slices.Contains(all, p) {
					all = append(all, p)
				}
			}
		}
	}
	return all
}

func (s *Site) devices(zone string) []string {
	for _, z := range s.Rules.Zones {
		if z.Name == zone {
			return z.Interfaces
		}
	}
	return nil
}

// zonesOf are which zones addresses may be in: those of the most specific networks
// of this machine that have it. known is false where none does.
func (s *Site) zonesOf(at span) (zones []string, known bool) {
	best := -1
	for _, n := range s.networks() {
		if !n.prefix.Contains(at.lo) || !n.prefix.Contains(at.hi) || n.prefix.Bits() < best {
			continue
		}
		if n.prefix.Bits() > best {
			best, zones = n.prefix.Bits(), nil
		}
		if zone := s.Rules.ZoneOf(n.device); zone != "" && !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	slices.Sort(zones)
	return zones, best >= 0
}

// network leads out by an interface.
type network struct {
	prefix netip.Prefix
	device string
}

// networks are those that this machine is in, or has routes to by its
// configuration. Where an interface has only the addresses that are written down,
// those that it has now are not asked: it may be another machine.
func (s *Site) networks() []network {
	var all []network
	written := map[string]bool{}
	for _, l := range s.Config.Links {
		for _, a := range l.Addresses {
			all = append(all, network{a.Masked(), l.Name})
		}
		for _, r := range l.Routes {
			all = append(all, network{r.To.Masked(), l.Name})
		}
		written[l.Name] = isWritten(l)
	}
	for _, i := range s.Interfaces {
		if written[i.Name] {
			continue
		}
		for _, a := range i.Addrs {
			all = append(all, network{a.Masked(), i.Name})
		}
	}
	return slices.DeleteFunc(all, func(n network) bool { return n.prefix.Bits() == 0 }) // a default route says nothing
}

// owned are this machine's addresses, as far as they are known.
func (s *Site) owned() []netip.Addr {
	all := slices.Clone(s.Rules.Own)
	written := map[string]bool{}
	for _, l := range s.Config.Links {
		for _, p := range l.Addresses {
			all = append(all, p.Addr())
		}
		written[l.Name] = isWritten(l)
	}
	for _, i := range s.Interfaces {
		for _, p := range i.Addrs {
			if !written[i.Name] {
				all = append(all, p.Addr())
			}
		}
	}
	for i := range s.Exposures {
		for _, l := range s.Exposures[i].Listens {
			if s.Exposures[i].Open && l.Addr.IsValid() {
				all = append(all, l.Addr.Unmap())
			}
		}
	}
	return all
}

// isWritten says whether a link has the addresses that are written down, and no
// others.
func isWritten(l config.Link) bool { return len(l.Addresses) > 0 && l.DHCP == nil && !l.AcceptRA }
