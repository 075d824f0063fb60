package config

import (
	"maps"
	"slices"
	"strconv"

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
			ref.at.problem("no zone named "+quote(ref.text), suggest(ref.text, "have", slices.Sorted(maps.Keys(p.zoneNamed))))
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
}

func (c *claim) everywhere() bool { return c.zone == "" && c.device == "" }

// claim notes what a frontend opens.
func (f *file) claim(fe *Frontend, listen value, zones []text) {
	prefix := ""
	if fe.Protocol == edge.UDP {
		prefix = "UDP "
	}
	if l := fe.Listen; l != nil {
		f.claims = append(f.claims, claim{protocol: fe.Protocol, device: l.Device, host: canonicalHost(l.Host), port: l.Port, text: prefix + l.String(), at: listen})
	}
	if fe.Port == 0 {
		return
	}
	for _, z := range zones {
		if z.text != "" {
			f.claims = append(f.claims, claim{protocol: fe.Protocol, zone: z.text, port: fe.Port, text: prefix + "port " + strconv.Itoa(int(fe.Port)) + " in zone " + z.text, at: z.at})
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
			if !p.overlap(c, earlier) {
				continue
			}
			what := c.text + " overlaps with " + earlier.text
			if c.text == earlier.text {
				what = c.text + " is taken twice"
			}
			c.at.problem(what, "the other one is at "+earlier.at.pos().String()+"; change the port of one of them")
			break
		}
		byDoor[at] = append(byDoor[at], c)
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
