package config

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"e13.dev/gatehouse/internal/edge"
)

// A member is an interface of a zone, and where it says so.
type member struct {
	zone string
	pos  edge.Pos
}

// checkZoneNames runs when all files are read: a frontend may name a zone of a
// later file.
func (p *parser) checkZoneNames() {
	if p.zonesUnknown {
		return
	}
	for _, ref := range p.zoneRefs {
		if !p.zoneNamed[ref.text] {
			ref.at.problem("no zone named "+quote(ref.text), Suggest(ref.text, "have", slices.Sorted(maps.Keys(p.zoneNamed))))
		}
	}
}

// A claim is a port that something in the files listens on: in a zone, on an
// interface, at an address, or everywhere.
type claim struct {
	protocol           edge.Protocol
	zone, device, host string // host as canonicalHost has it
	port               uint16
	text               string // how it is written
	at                 value
	listen             string // host as it is written, but for its case
	sharing
}

// sharing is what lets frontends have the same port: the names that each takes
// of what comes there, and who may say in front of that who the client is.
type sharing struct {
	frontend value // absent: of something that has no hostnames
	named    bool  // it has hostnames, right or wrong
	names    []text
	accepts  []netip.Prefix // sorted
	acceptOK bool           // they have been read
	acceptAt value          // if absent: where it is missing
}

// sharing is that of a frontend.
func (m fields) sharing(names []text, accepts []netip.Prefix) sharing {
	_, named := m.keys["hostnames"]
	s := sharing{frontend: m.of, named: named, names: names, accepts: accepts, acceptOK: true}
	s.acceptAt = value{file: m.of.file, node: m.of.node, path: m.of.path + ".acceptProxyProtocol"}
	if v := m.get("acceptProxyProtocol"); !v.absent() {
		s.acceptAt, s.acceptOK = m.keys["acceptProxyProtocol"], len(accepts) > 0 && len(accepts) == len(v.node.Content)
	}
	return s
}

func (c *claim) everywhere() bool { return c.zone == "" && c.device == "" }

// claim notes what a frontend opens.
func (f *file) claim(fe *Frontend, listen value, zones []text, s sharing) {
	prefix := ""
	if fe.Protocol != edge.TCP {
		prefix = string(fe.Protocol) + " "
	}
	if l := fe.Listen; l != nil {
		f.claims = append(f.claims, claim{protocol: fe.Protocol, device: l.Device, host: canonicalHost(l.Host), port: l.Port, text: prefix + l.String(), at: listen, listen: strings.ToLower(l.Host), sharing: s})
	}
	if fe.Port == 0 {
		return
	}
	for _, z := range zones {
		if z.text != "" {
			f.claims = append(f.claims, claim{protocol: fe.Protocol, zone: z.text, port: fe.Port, text: prefix + "port " + strconv.Itoa(int(fe.Port)) + " in zone " + z.text, at: z.at, sharing: s})
		}
	}
}

// checkOverlaps compares each claim with those before it. It runs when all
// files are read, because a later one may say what an interface belongs to.
func (p *parser) checkOverlaps() {
	type door struct {
		protocol edge.Protocol
		port     uint16
	}
	byDoor := map[door][]*claim{}
	for i := range p.claims {
		c := &p.claims[i]
		if c.zone != "" && !p.zoneNamed[c.zone] {
			continue
		}
		at := door{c.protocol, c.port}
		for _, earlier := range byDoor[at] {
			if !p.overlap(c, earlier) || c.named && earlier.named && c.samePlace(earlier) {
				continue
			}
			c.at.fault(c.conflict(earlier))
			break
		}
		byDoor[at] = append(byDoor[at], c)
	}
	p.checkShared()
}

// samePlace says whether two claims on one port are one socket to share. Names
// of addresses are compared as they are written: what they stand for is
// nothing that a file says.
func (c *claim) samePlace(other *claim) bool {
	return c.zone == other.zone && c.device == other.device && c.listen == other.listen
}

// conflict says why two claims cannot both be.
func (c *claim) conflict(earlier *claim) *Fault {
	f := &Fault{c.text + " overlaps with " + earlier.text, "the other one is at " + earlier.at.pos().String() + "; change the port of one of them"}
	if c.text == earlier.text {
		f.What = c.text + " is taken twice"
	}
	if !c.named && !earlier.named || c.frontend.absent() || earlier.frontend.absent() {
		return f
	}
	switch {
	case !c.samePlace(earlier):
		f.Remedy += ", or open both at the same listen address or zone: names are shared only there"
	case c.named:
		f.Remedy = "the other one, at " + earlier.at.pos().String() + `, takes all of it; give it hostnames too, such as ["*"] for whatever else comes`
	default:
		f.Remedy = "the other one, at " + earlier.at.pos().String() + `, has hostnames; give this one hostnames too, such as ["*"] for whatever else comes`
	}
	return f
}

// checkShared looks at frontends that share a port by names: each name is that
// of one of them, and the header that comes before any name is that of all.
func (p *parser) checkShared() {
	type place struct {
		protocol             edge.Protocol
		zone, device, listen string
		port                 uint16
	}
	type name struct {
		place
		name string
	}
	taken := map[name]*text{}
	first := map[place]*claim{}
	said := map[*yaml.Node]bool{} // once, though two frontends meet in several zones
	for i := range p.claims {
		c := &p.claims[i]
		at := place{c.protocol, c.zone, c.device, c.listen, c.port}
		if !c.named || c.zone != "" && !p.zoneNamed[c.zone] {
			continue
		}
		for j := range c.names {
			n := &c.names[j]
			other, ok := taken[name{at, n.text}]
			switch {
			case !ok:
				taken[name{at, n.text}] = n
			case !said[n.at.node]:
				said[n.at.node] = true
				n.at.problem("hostname "+quote(n.text)+" of "+c.text+" is taken twice", "the other one is at "+other.at.pos().String()+"; keep one of them")
			}
		}
		other, ok := first[at]
		switch {
		case !ok:
			first[at] = c
		case other.acceptOK && c.acceptOK && !slices.Equal(other.accepts, c.accepts) && !said[c.acceptAt.node]:
			said[c.acceptAt.node] = true
			c.acceptAt.problem("the frontend at "+other.frontend.pos().String()+" shares "+c.text+", and accepts the PROXY protocol from other networks",
				"write the same networks in both, or remove it from both: the header comes before the name")
		}
	}
}

// overlap follows what the kernel refuses to bind twice (inet_csk_bind_conflict):
// two sockets conflict unless their devices differ, or their addresses do. So
// an address conflicts with every interface, whether the interface has it or
// not. Names are compared as far as one can without asking what they stand for.
func (p *parser) overlap(a, b *claim) bool {
	return (a.host == b.host || a.host == "" || b.host == "") && p.placesMeet(a, b)
}

func (p *parser) placesMeet(a, b *claim) bool {
	switch {
	case a.everywhere() || b.everywhere():
		return true
	case a.device != "" && b.device != "":
		return a.device == b.device
	case a.zone != "" && b.zone != "":
		return a.zone == b.zone
	case a.zone != "":
		return p.members[b.device].zone == a.zone
	default:
		return p.members[a.device].zone == b.zone
	}
}
