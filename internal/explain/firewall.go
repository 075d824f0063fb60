package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// anybody is who is meant where no client is named: addresses for documentation
// (RFC 5737, RFC 3849), of which no policy is.
var anybody = map[bool]netip.Addr{true: netip.MustParseAddr("198.51.100.77"), false: netip.MustParseAddr("2001:db8::77")}

// passage is what the firewall does with a packet, for all whom it may be from.
type passage struct {
	passes, drops *firewall.Verdict // for one of them each; nil: for nobody
	only          []string          // from whom it passes, if it does not for others
}

// ask asks the firewall about a packet that comes in with an origin. Who is not
// named may have any address that policies make a difference of.
func (e *engine) ask(o *origin, p firewall.Packet, ranges []netip.Prefix) passage {
	type from struct {
		addr netip.Addr
		text string
	}
	is4 := p.Dst.Is4()
	sources := []from{{o.client, ""}}
	if !o.client.IsValid() {
		sources = []from{{anybody[is4], ""}}
		for _, r := range e.Firewall.Rules {
			for _, s := range r.Fits.Sources {
				if s.Addr().Is4() == is4 && r.Policy >= 0 {
					sources = append(sources, from{s.Addr(), s.String()})
				}
			}
		}
	}
	if ranges != nil && !o.client.IsValid() { // others are turned away by these, which is said
		sources = nil
		for _, s := range ranges {
			if s.Addr().Is4() == is4 {
				sources = append(sources, from{s.Addr(), s.String()})
			}
		}
	}
	var all passage
	for _, s := range sources {
		p.Src = s.addr
		v := e.Firewall.Verdict(p)
		switch {
		case !v.Accept:
			all.drops = &v
		default:
			all.passes = &v
			if s.text != "" && !slices.Contains(all.only, s.text) {
				all.only = append(all.only, s.text)
			}
		}
	}
	return all
}

// toFirewall is a packet as the firewall sees it, to this machine.
func toFirewall(p packet) firewall.Packet {
	return firewall.Packet{In: p.device, Dst: p.to.Addr(), Protocol: p.protocol, SrcPort: 49152, DstPort: p.to.Port(), HopLimit: 64}
}

// admitted says that the firewall lets a connection to a door pass.
func (e *engine) admitted(c *chain, o *origin, f *edge.Frontend, to netip.Addr) {
	if c.over || e.Firewall == nil || o.local || len(o.devices) == 0 {
		return
	}
	if !to.IsValid() {
		to = f.Listen.Addr
	}
	device := f.Listen.Device
	if device == "" {
		device = o.devices[0]
	}
	if !to.IsValid() { // any of the interface
		to = anybody[!o.client.IsValid() || o.client.Is4()]
	}
	p := toFirewall(packet{device: device, to: netip.AddrPortFrom(to, f.Listen.Port), protocol: f.Protocol})
	if f.DataPlane == edge.DataPlaneNAT {
		p.Asked = netip.AddrPortFrom(to, f.Listen.Port)
	}
	got := e.ask(o, p, f.SourceRanges)
	switch {
	case got.passes == nil && got.drops == nil: // ranges of the other family, or none: said below
	case got.passes != nil:
		c.ok("firewall", sourceOfVerdict(*got.passes), "the firewall lets it pass: %s", e.reasonOf(*got.passes))
	case !o.client.IsValid() || f.SourceRanges == nil || within(f.SourceRanges, o.client):
		c.stop("firewall", sourceOfVerdict(*got.drops), e.remedyOfDrop(device, *got.drops), "the firewall drops it: %s", e.reasonOf(*got.drops))
	}
}

func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unlistened says what the firewall does with what is for none of gatehouse's
// doors, but may be for a program of this machine. It says nothing without one.
func (e *engine) unlistened(c *chain, o *origin, p packet, nothing, remedy string) (said bool) {
	if e.Firewall == nil || p.local {
		return false
	}
	got := e.ask(o, toFirewall(p), nil)
	if got.passes == nil {
		c.stop("firewall", sourceOfVerdict(*got.drops), remedy, "%s, and the firewall drops what comes there: %s", nothing, e.reasonOf(*got.drops))
		return true
	}
	if got.drops != nil {
		c.notAll("only from " + strings.Join(got.only, ", "))
	}
	c.ok("firewall", sourceOfVerdict(*got.passes), "the firewall lets it pass: %s", e.reasonOf(*got.passes))
	c.Summary = nothing + ", and the firewall lets it pass to this machine: whether one of its programs listens there is no business of gatehouse's"
	return true
}

// reasonOf is the Why of a verdict, without the position that is its source.
func (e *engine) reasonOf(v firewall.Verdict) string {
	if v.Rule >= 0 && e.Firewall.Rules[v.Rule].Fits.Pinholes != firewall.NoPinhole {
		return "opened for " + v.Why
	}
	return strings.TrimSuffix(v.Why, " ("+v.Pos.String()+")")
}

func sourceOfVerdict(v firewall.Verdict) string {
	if v.Pos.File == "" {
		return ""
	}
	return v.Pos.String()
}

func (e *engine) remedyOfDrop(device string, v firewall.Verdict) string {
	switch {
	case e.Firewall.ZoneOf(device) == "":
		return fmt.Sprintf("interface %s is in no zone, and nothing new comes in there: give it one", device)
	case v.Pos.File != "":
		return "a policy before it has to let it pass: " + v.Pos.String()
	}
	return "a policy has to let it pass (firewall.policies)"
}

// toOther explains the ways to an address that is not this machine's, which the
// firewall stands before. ok is false if nothing is known of where it is.
func (e *engine) toOther(origins []origin, to netip.AddrPort, protocol edge.Protocol) (ways []Way, ok bool) {
	if e.Firewall == nil {
		return nil, false
	}
	out, how := e.leaves(to.Addr())
	if out == "" {
		return nil, false
	}
	for i := range origins {
		if o := &origins[i]; !o.local {
			ways = append(ways, e.pastFirewall(o, to, protocol, out, how))
		}
	}
	return ways, len(ways) > 0
}

// leaves is the interface by which this machine sends to an address, and how that
// is known.
func (e *engine) leaves(to netip.Addr) (device, how string) {
	if e.Back != nil {
		if device := e.Back(to); device != "" {
			return device, fmt.Sprintf("the route to %s leaves by %s", to, device)
		}
	}
	for _, i := range e.Interfaces {
		for _, p := range i.Addrs {
			if !p.IsSingleIP() && p.Contains(to) && !to.IsLoopback() {
				return i.Name, fmt.Sprintf("%s is in %s, the network of %s", to, p.Masked(), i.Name)
			}
		}
	}
	return "", ""
}

func (e *engine) pastFirewall(o *origin, to netip.AddrPort, protocol edge.Protocol, out, how string) Way {
	c := newChain(o, toText(to, protocol, ""))
	if c.over {
		return c.done()
	}
	if zone := e.zoneOf[out]; zone != "" {
		how += ", to zone " + zone
	} else {
		how += ", which is in no zone"
	}
	c.ok("address", "interface/"+out, "%s is no address of this machine: %s", to.Addr(), how)
	if len(o.devices) == 1 && o.devices[0] == out {
		c.stop("address", "interface/"+out, "it is not up to this machine who reaches it from there", "%s is in the network that it comes from: nothing of it comes by this machine", to.Addr())
		return c.done()
	}
	p := toFirewall(packet{device: o.devices[0], to: to, protocol: protocol})
	p.Out = out
	got := e.ask(o, p, nil)
	switch {
	case got.passes == nil:
		remedy := e.remedyOfDrop(o.devices[0], *got.drops)
		if from, zone := o.zoneName(), e.zoneOf[out]; got.drops.Pos.File == "" && from != "" && zone != "" {
			remedy = fmt.Sprintf("if it is to be reached: policies: [{from: %s, to: %s, ports: [%s], destinations: [%s]}]", from, zone,
				config.PortRange{Protocol: protocol, First: to.Port(), Last: to.Port()}, to.Addr())
		}
		c.stop("firewall", sourceOfVerdict(*got.drops), remedy, "the firewall drops it: %s", e.reasonOf(*got.drops))
		return c.done()
	case got.drops != nil:
		why := "only from " + strings.Join(got.only, ", ")
		if slices.Contains(got.only, "") || len(got.only) == 0 {
			why = "not from everywhere: " + e.reasonOf(*got.drops)
		}
		c.notAll(why)
	}
	c.ok("firewall", sourceOfVerdict(*got.passes), "the firewall lets it pass: %s", e.reasonOf(*got.passes))
	if got.passes.Masquerade {
		c.ok("client address", "", "it leaves with the address that this machine has on %s", out)
	}
	c.Summary = "the firewall lets it pass to " + out + "; who answers there is not gatehouse's business"
	if c.some {
		c.Summary += "; " + c.why
	}
	return c.done()
}
