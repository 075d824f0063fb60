package prove

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// Broken is a statement that does not hold.
type Broken struct {
	Pos       edge.Pos `json:"pos"`
	Statement string   `json:"statement"`
	// Because says what does not hold, and by which rule.
	Because string `json:"because"`
}

// String prints FILE:LINE: statement; because why.
func (b Broken) String() string {
	return fmt.Sprintf("%s: %s; because %s", b.Pos, b.Statement, b.Because)
}

// Check returns those of the statements that do not hold, in their order.
func (s *Site) Check(statements []Statement) []Broken {
	broken := []Broken{}
	for _, st := range statements {
		zones := []string{st.From}
		if st.From == "" {
			zones = nil
			for _, z := range s.Rules.Zones {
				zones = append(zones, z.Name)
			}
		}
		for _, zone := range zones {
			if because := s.because(st, zone); because != "" {
				if st.From == "" {
					because = "from " + zone + ", " + because
				}
				broken = append(broken, Broken{st.Pos, st.Text, because})
				break
			}
		}
	}
	return broken
}

// because says why a statement does not hold from a zone. Empty: it does.
func (s *Site) because(st Statement, zone string) string {
	targets := st.Targets
	if st.Verb == Cannot && len(targets) == 0 {
		targets = s.all()
	}
	for _, t := range targets {
		var because string
		if st.Verb == Cannot {
			because = s.reached(st, zone, t)
		} else {
			because = s.notReached(st, zone, t)
		}
		if because != "" {
			return because
		}
	}
	if st.Verb == Only {
		return s.besides(st, zone)
	}
	return ""
}

// all is everything that there is.
func (s *Site) all() []Target {
	all := []Target{{Self: true}}
	for _, z := range s.Rules.Zones {
		all = append(all, Target{Zone: z.Name})
	}
	for i := range s.Rules.Own { // which self leaves out
		all = append(all, Target{Network: netip.PrefixFrom(s.Rules.Own[i], s.Rules.Own[i].BitLen())})
	}
	return all
}

// part is some of a target: boxes in a cell.
type part struct {
	to    string // a zone, or self
	boxes []box
}

// parts are where a target may be. sure is false if it is in one of them, and
// which one is not known.
func (s *Site) parts(st Statement, zone string, t Target) (all []part, sure bool, because string) {
	sources := spansOf(st.Sources)
	add := func(to string, destinations []span) {
		all = append(all, part{to, boxes(t.Services, sources, destinations)})
	}
	switch {
	case t.Self:
		add(config.Self, s.free)
		return all, true, ""
	case t.Zone != "":
		add(t.Zone, []span{all4, all6})
		return all, true, ""
	}
	at := spanOf(t.Network)
	if at.lo == at.hi && slices.Contains(s.owns, at.lo) {
		add(config.Self, []span{at})
		return all, true, ""
	}
	zones, known := s.zonesOf(at)
	if !known {
		for _, z := range s.Rules.Zones {
			zones = append(zones, z.Name)
		}
		if st.Verb == Cannot { // it could be one of this machine's that is not known yet
			add(config.Self, []span{at})
		}
	}
	if known && len(zones) == 0 && st.Verb != Cannot {
		return nil, true, at.String() + " is in a network of this machine that is in no zone: nothing new passes there"
	}
	if i := slices.Index(zones, zone); i >= 0 && len(s.devices(zone)) == 1 {
		// What comes in there does not leave there again.
		if zones = slices.Delete(slices.Clone(zones), i, i+1); len(zones) == 0 && known {
			return nil, true, at.String() + " is in zone " + zone + " itself: what goes there does not come by this machine"
		}
	}
	for _, z := range zones {
		add(z, []span{at})
	}
	if st.Verb == Cannot && known {
		// This machine is in its networks, too.
		for _, a := range s.owns {
			if touches(at, a) {
				add(config.Self, []span{single(a)})
			}
		}
	}
	return all, known && len(all) == 1, ""
}

// open are the boxes of what passes from a zone to another, or to this machine,
// as far as it may touch what is asked for.
func (s *Site) open(zone, device, to string, asked []box) []box {
	var all []box
	if to == config.Self {
		for _, p := range s.pinholes(zone) {
			if device != "" && p.Device != device || !slices.ContainsFunc(asked, func(b box) bool {
				return b.protocol == p.Protocol && b.first <= p.Port && p.Port <= b.last && (!p.Addr.IsValid() || touches(b.dst, p.Addr))
			}) {
				continue
			}
			all = append(all, s.boxesOf(p)...)
		}
	}
	for _, p := range s.passages(zone, to) {
		all = append(all, p.boxes...)
	}
	return all
}

func touches(at span, a netip.Addr) bool {
	_, is := at.overlap(single(a))
	return is
}

// reached says that something of a target is, which should not be.
func (s *Site) reached(st Statement, zone string, t Target) string {
	if t.Name != "" {
		return s.exposureReached(st, zone, t)
	}
	parts, _, because := s.parts(st, zone, t)
	if because != "" {
		return because
	}
	for _, p := range parts {
		if common, any := overlaps(p.boxes, s.open(zone, "", p.to, p.boxes)); any {
			return s.says(zone, p.to, common) + " may pass: " + s.decider(zone, p.to, common)
		}
	}
	return ""
}

// notReached says that something of a target is not, which should be.
func (s *Site) notReached(st Statement, zone string, t Target) string {
	if t.Name != "" {
		return s.exposureNotReached(st, zone, t)
	}
	parts, sure, because := s.parts(st, zone, t)
	if because != "" {
		return because
	}
	why := t.Text + " leads nowhere from there"
	for _, p := range parts {
		left := s.lacking(zone, p)
		if len(left) == 0 {
			if !sure {
				return ""
			}
			continue
		}
		why = s.says(zone, p.to, left[0]) + " is dropped: " + s.decider(zone, p.to, left[0])
		if sure {
			return why
		}
	}
	if sure && len(parts) > 0 {
		return ""
	}
	return why
}

// lacking is what of a part is not let pass by one of the zone's interfaces.
func (s *Site) lacking(zone string, p part) []box {
	for _, device := range s.devices(zone) {
		if left := subtract(p.boxes, s.open(zone, device, p.to, p.boxes)); len(left) > 0 {
			return left
		}
	}
	return nil
}

// says prints what passes, or does not.
func (s *Site) says(zone, to string, b box) string {
	return b.String() + " from zone " + zone + " to " + map[bool]string{true: "this machine", false: "zone " + to}[to == config.Self]
}

// decider is the rule that decides about a packet of a box: the first one that
// fits it.
func (s *Site) decider(zone, to string, b box) string {
	for _, device := range s.devices(zone) {
		p := packet(device, b)
		if to != config.Self {
			out := s.devices(to)
			if len(out) == 0 {
				continue
			}
			p.Out = out[0]
		}
		v := s.Rules.Verdict(p)
		if v.Why == firewall.Nothing {
			// Where the kernel rewrites it, it is let pass by what it was sent to.
			p.Asked = netip.AddrPortFrom(p.Dst, p.DstPort)
			if to == config.Self && s.Rules.Verdict(p).Accept {
				v = s.Rules.Verdict(p)
			}
		}
		return v.Why
	}
	return firewall.Nothing
}

// packet is one of a box: the first by every measure.
func packet(device string, b box) firewall.Packet {
	p := firewall.Packet{In: device, Src: b.src.lo, Dst: b.dst.lo, Protocol: b.protocol, DstPort: b.first, SrcPort: 49152, HopLimit: 64}
	switch {
	case b.protocol == config.ICMP && b.src.is4():
		p.SrcPort, p.ICMPType = 0, firewall.EchoRequest4
	case b.protocol == config.ICMP:
		p.SrcPort, p.ICMPType = 0, firewall.EchoRequest6
	case b.protocol == other:
		p.SrcPort, p.Number = 0, 47 // GRE
	}
	return p
}

// exposuresOf are those that a target means.
func (s *Site) exposuresOf(t Target) (all []*desired.Exposure) {
	for i := range s.Exposures {
		e := &s.Exposures[i]
		if e.Service != t.Name && e.Name != t.Name {
			continue
		}
		if t.Services == nil || slices.ContainsFunc(t.Services, func(r config.PortRange) bool {
			return r.Protocol == e.Protocol && r.First <= e.Port && e.Port <= r.Last
		}) {
			all = append(all, e)
		}
	}
	return all
}

// Unknown are the statements that hold since there is no such Service or frontend,
// or it has no such port: nobody reaches it, and perhaps its name is misspelt.
func (s *Site) Unknown(statements []Statement) (all []string) {
	for _, st := range statements {
		for _, t := range st.Targets {
			if st.Verb == Cannot && t.Name != "" && len(s.exposuresOf(t)) == 0 {
				all = append(all, st.Pos.String()+": there is no Service or frontend "+t.Text+", so nobody reaches it")
			}
		}
	}
	return all
}

// exposureReached says that an exposure is open in a zone. Of one that does not
// exist nothing is.
func (s *Site) exposureReached(st Statement, zone string, t Target) string {
	for _, e := range s.exposuresOf(t) {
		if !e.Open {
			continue
		}
		for _, p := range s.holesOf(e, zone) {
			if common, any := overlaps(s.boxesOf(p), boxes(nil, spansOf(st.Sources), []span{all4, all6})); any {
				return e.Name + " is open there: " + s.says(zone, config.Self, common) + " may pass, for " + p.Why
			}
		}
	}
	return ""
}

// exposureNotReached says that an exposure is not open in a zone, or not to all
// of it.
func (s *Site) exposureNotReached(st Statement, zone string, t Target) string {
	found := s.exposuresOf(t)
	if len(found) == 0 {
		return "there is no Service or frontend " + t.Text
	}
	why := t.Text + " is not open in zone " + zone
	reached := false
	for _, e := range found {
		if e.Zone != "" && e.Zone != zone {
			continue
		}
		if !e.Open {
			return e.Name + " is not open there: " + e.Reason
		}
		holes := s.holesOf(e, zone)
		if len(holes) == 0 {
			continue
		}
		reached = true
		for _, p := range holes {
			if p.Sources == nil {
				continue
			}
			if left := subtract(asSources(st.Sources, p), asSources(p.Sources, p)); len(left) > 0 {
				return e.Name + " is open there only for clients from " + listed(p.Sources)
			}
		}
	}
	if reached {
		return ""
	}
	return why
}

// asSources are boxes that differ in sources only, of the families that a pinhole
// has.
func asSources(from []netip.Prefix, p *firewall.Pinhole) []box {
	to := []span{all4, all6}
	if p.Addr.IsValid() {
		to = []span{single(p.Addr)}
	}
	return boxes([]config.PortRange{{Protocol: p.Protocol, First: p.Port, Last: p.Port}}, spansOf(from), to)
}

func listed(networks []netip.Prefix) string {
	var words []string
	for _, n := range networks {
		words = append(words, spanOf(n).String())
	}
	return strings.Join(words, ", ")
}

// besides says what is reached besides the targets.
func (s *Site) besides(st Statement, zone string) string {
	allowed := map[string][]box{}
	holes := map[*firewall.Pinhole]bool{}
	sources := spansOf(st.Sources)
	for _, t := range st.Targets {
		if t.Name != "" {
			for _, e := range s.exposuresOf(t) {
				for _, p := range s.holesOf(e, zone) {
					holes[p] = true
				}
			}
			continue
		}
		parts, _, _ := s.parts(st, zone, t)
		for _, p := range parts {
			allowed[p.to] = append(allowed[p.to], p.boxes...)
		}
	}
	everything := boxes(nil, sources, []span{all4, all6})
	for _, p := range s.pinholes(zone) {
		if holes[p] {
			continue
		}
		var of []box
		for _, b := range s.boxesOf(p) {
			for _, e := range everything {
				if common, any := b.overlap(e); any {
					of = append(of, common)
				}
			}
		}
		if left := subtract(of, allowed[config.Self]); len(left) > 0 {
			return s.says(zone, config.Self, left[0]) + " may pass, too: " + p.Why
		}
	}
	to := []string{config.Self}
	for _, z := range s.Rules.Zones {
		to = append(to, z.Name)
	}
	for _, t := range to {
		for _, p := range s.passages(zone, t) {
			for _, b := range p.boxes {
				for _, e := range everything {
					common, any := b.overlap(e)
					if !any {
						continue
					}
					if left := subtract([]box{common}, allowed[t]); len(left) > 0 {
						return s.says(zone, t, left[0]) + " may pass, too: " + s.Rules.Rules[p.rule].Why
					}
				}
			}
		}
	}
	return ""
}
