package config

import (
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
	exists := map[string]bool{}
	for _, z := range p.cfg.Zones {
		exists[z.Name] = true
	}
	for _, ref := range p.zoneRefs {
		if !exists[ref.text] {
			ref.at.problem("no zone named "+quote(ref.text), suggest(ref.text, "have", sorted(exists)))
		}
	}
}

// A claim is a TCP port that something in the files listens on: in a zone, on
// an interface, at an address, or everywhere.
type claim struct {
	zone, device, host string
	port               uint16
	text               string // how it is written
	at                 value
}

func (c *claim) everywhere() bool { return c.zone == "" && c.device == "" }

// claim notes what a frontend opens.
func (f *file) claim(fe *Frontend, listen value, zones []text) {
	if l := fe.Listen; l != nil {
		f.claims = append(f.claims, claim{device: l.Device, host: l.Host, port: l.Port, text: l.String(), at: listen})
	}
	if fe.Port == 0 {
		return
	}
	for _, z := range zones {
		f.claims = append(f.claims, claim{zone: z.text, port: fe.Port, text: "port " + strconv.Itoa(int(fe.Port)) + " in zone " + z.text, at: z.at})
	}
}

// checkOverlaps compares each claim with those before it.
func (p *parser) checkOverlaps() {
	byPort := map[uint16][]*claim{}
	for i := range p.claims {
		c := &p.claims[i]
		for _, earlier := range byPort[c.port] {
			if p.overlap(c, earlier) {
				c.at.problem(c.text+" overlaps with "+earlier.text, "the other one is at "+earlier.at.pos().String()+"; change the port of one of them")
				break
			}
		}
		byPort[c.port] = append(byPort[c.port], c)
	}
}

// overlap follows what the kernel refuses to bind twice (inet_csk_bind_conflict):
// two sockets conflict unless their devices differ, or their addresses do. So
// an address conflicts with every interface, whether the interface has it or not.
func (p *parser) overlap(a, b *claim) bool {
	return p.placesMeet(a, b) && hostsMeet(a.host, b.host)
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

// hostsMeet compares addresses, and names as far as one can without asking
// anybody what they stand for.
func hostsMeet(a, b string) bool {
	a, b = canonicalHost(a), canonicalHost(b)
	if a == b || a == "" || b == "" {
		return true
	}
	addrA, isA := edge.HostPort{Host: a}.Addr()
	addrB, isB := edge.HostPort{Host: b}.Addr()
	switch {
	case isA && isB:
		return addrA.Is4() == addrB.Is4() && (addrA.IsUnspecified() || addrB.IsUnspecified())
	case isA:
		return addrA.IsUnspecified()
	case isB:
		return addrB.IsUnspecified()
	}
	return false
}
