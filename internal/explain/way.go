package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// chain is a Way in the making.
type chain struct {
	Way
	over bool   // what stops it has been said, and the rest does not matter
	some bool   // not everybody gets further
	why  string // and why
}

// notAll says why not everybody gets further.
func (c *chain) notAll(why string) {
	if c.some = true; c.why != "" {
		c.why += "; "
	}
	c.why += why
}

func newChain(o *origin, to string) *chain {
	c := &chain{Way: Way{From: o.String(), Zone: o.zoneName(), To: to, Steps: slices.Clone(o.steps)}}
	if o.why != "" {
		c.over, c.Summary, c.Remedy = true, o.why, o.remedy
	}
	return c
}

func (c *chain) ok(check, source, format string, args ...any) {
	c.Steps = append(c.Steps, Step{check, true, fmt.Sprintf(format, args...), source})
}

// stop is the end of a chain. What is not over is said with a remedy.
func (c *chain) stop(check, source, remedy, format string, args ...any) {
	c.over, c.Summary, c.Remedy = true, fmt.Sprintf(format, args...), remedy
	c.Steps = append(c.Steps, Step{check, false, c.Summary, source})
}

func (c *chain) done() Way {
	switch {
	case c.over:
		c.Verdict = NotReachable
	case c.some:
		c.Verdict = Some
	default:
		c.Verdict = Reachable
	}
	return c.Way
}

// answer explains the ways from all origins to a target.
func (e *engine) answer(t target, origins []origin) ([]Way, error) {
	switch {
	case t.addr.IsValid():
		return e.toAddress(origins, netip.AddrPortFrom(t.addr, t.port), t.over(), "")
	case t.service != "":
		return e.toService(t, origins)
	case t.host != "":
		return e.toHost(t, origins)
	default:
		return e.toName(t, origins)
	}
}

// toAddress explains the ways to an address of this machine. name is the TLS
// server name that is said there, if it is known.
func (e *engine) toAddress(origins []origin, to netip.AddrPort, protocol edge.Protocol, name string) ([]Way, error) {
	addr := to.Addr()
	switch {
	case addr.IsUnspecified() || addr.IsMulticast():
		return nil, fmt.Errorf("%s is not an address to connect to; ask for one of this machine: %s", addr, e.ownAddresses())
	case !addr.IsLoopback() && e.holder[addr] == "" && !e.pooled[addr]:
		if ways, ok := e.toOther(origins, to, protocol); ok {
			return ways, nil
		}
		return nil, fmt.Errorf("%s is no address of this machine%s; ask for one of its own: %s", addr, e.whose(addr), e.ownAddresses())
	case addr.IsLoopback() && e.everybody:
		origins = append([]origin{e.itself(netip.Addr{})}, slices.DeleteFunc(slices.Clone(origins), func(o origin) bool { return o.local })...)
	}
	var ways []Way
	origins = e.reaching(origins, addr)
	for i := range origins {
		ways = append(ways, e.byDevices(&origins[i], to, protocol, name)...)
	}
	return ways, nil
}

// whose says of an address what is known of it.
func (e *engine) whose(addr netip.Addr) string {
	if pool := e.poolOf(addr); pool != "" {
		return ": it is of pool " + pool + ", and no Service has it"
	}
	for i := range e.State.Exposures {
		row := &e.State.Exposures[i]
		for _, b := range row.Backends {
			if b.Addr.Addr() == addr {
				return ", but of a backend of " + row.Name
			}
		}
	}
	if s := e.servedAt(addr); s != "" {
		return ": another controller has given it to service/" + s
	}
	return ""
}

func (e *engine) servedAt(addr netip.Addr) string {
	if e.Cluster == nil {
		return ""
	}
	for i := range e.Cluster.Services {
		s := &e.Cluster.Services[i]
		if slices.ContainsFunc(s.Ingress, func(in edge.Ingress) bool { return in.IP == addr }) {
			return s.Key()
		}
	}
	return ""
}

// ownAddresses are those that can be asked for, as text.
func (e *engine) ownAddresses() string {
	const most = 12
	var all []string
	for _, i := range e.Interfaces {
		for _, p := range i.Addrs {
			if !p.Addr().IsLoopback() {
				all = append(all, p.Addr().String())
			}
		}
	}
	switch {
	case len(all) == 0:
		return "it has none"
	case len(all) > most:
		return strings.Join(all[:most], ", ") + fmt.Sprintf(" and %d more", len(all)-most)
	}
	return strings.Join(all, ", ")
}

// byDevices is one Way where all interfaces of an origin lead the same way, and
// one for each otherwise.
func (e *engine) byDevices(o *origin, to netip.AddrPort, protocol edge.Protocol, name string) []Way {
	label := toText(to, protocol, name)
	if o.why != "" {
		return []Way{newChain(o, label).done()}
	}
	devices := o.devices
	if o.local {
		devices = []string{cmp.Or(e.holder[to.Addr()], "lo")}
	}
	var ways []Way
	var by []string
	for _, device := range devices {
		p := packet{device: device, local: o.local, to: to, protocol: protocol}
		way := e.follow(o, p, label, name)
		if n := len(ways); n > 0 && sameButDoor(ways[n-1], way) {
			continue
		}
		ways, by = append(ways, way), append(by, device)
	}
	for i := range ways {
		if len(ways) > 1 {
			ways[i].From += " by " + by[i]
		}
	}
	return ways
}

// sameButDoor says whether two ways lead to the same, each by its own interface.
func sameButDoor(x, y Way) bool {
	return x.Verdict == y.Verdict && x.Name == y.Name && x.Remedy == y.Remedy
}

func toText(to netip.AddrPort, protocol edge.Protocol, name string) string {
	text := to.String() + "/" + string(protocol)
	if name != "" {
		text += " as " + name
	}
	return text
}

// follow goes with a packet to where it ends.
func (e *engine) follow(o *origin, p packet, label, name string) Way {
	c := newChain(o, label)
	e.sayAddress(c, p)
	if c.over {
		return c.done()
	}
	door, behind, kernel := e.find(p)
	if len(behind) == 0 {
		if !e.adminAt(c, p) {
			e.nobody(c, o, p, kernel)
		}
		return c.done()
	}
	c.Door = door.String()
	f := choose(behind, name)
	switch names := hostnamesOf(behind); {
	case f == nil && name == "" && e.Closed[door] == "":
		e.byName(c, o, p, behind, names)
		return c.done()
	case f == nil && e.Closed[door] == "":
		c.stop("hostname", behind[0].Why, "give the name to one of the frontends there (hostnames), or one of them \"*\", for whatever else comes",
			"%s is shared by TLS server name, and nobody there has %s; there are %s", door, name, listed(names))
		return c.done()
	case f == nil:
		f = behind[0]
	case len(f.Hostnames) > 0 && name != "":
		e.intro(c, o, f)
		c.ok("hostname", f.Why, "%s of %s takes the TLS server name %s", f.Name, listed(f.Hostnames), name)
	case len(f.Hostnames) > 0:
		e.intro(c, o, f)
		others := slices.DeleteFunc(names, func(name string) bool { return slices.Contains(f.Hostnames, name) })
		c.ok("hostname", f.Why, "%s takes what names no TLS server, or one that nobody else has there; others have %s", f.Name, cmp.Or(listed(others), "none"))
	default:
		e.intro(c, o, f)
	}
	e.through(c, o, f, p.to.Addr())
	return c.done()
}

// sayAddress says what the address is that is spoken to.
func (e *engine) sayAddress(c *chain, p packet) {
	if c.over {
		return
	}
	addr := p.to.Addr()
	holder := e.holder[addr]
	switch {
	case addr.IsLoopback() && !p.local:
		c.stop("address", "", "ask from 127.0.0.1, which is this machine; for others it has to listen elsewhere", "%s is reached from this machine itself only", addr)
	case holder == "" && e.pooled[addr]:
		e.notHad(c, addr)
	case e.pooled[addr] && p.local:
		c.ok("address", "interface/"+holder, "%s is an address of a pool, on %s", addr, holder)
	case e.pooled[addr]:
		c.ok("address", "interface/"+holder, "%s is an address of a pool, on %s: it has a wall around it, with openings for what Services have open there", addr, holder)
	case addr.IsLoopback():
		c.ok("address", "interface/lo", "%s is this machine's own", addr)
	case p.local || holder == p.device:
		c.ok("address", "interface/"+holder, "%s is an address of %s", addr, holder)
	default:
		c.ok("address", "interface/"+holder, "%s is an address of %s; this machine takes packets for it from any interface, and what counts is that they come in by %s", addr, holder, p.device)
	}
}

// notHad is for an address that a Service is to have, and that is not there.
func (e *engine) notHad(c *chain, addr netip.Addr) {
	for _, a := range e.State.Addresses {
		if a.Addr != addr {
			continue
		}
		for i := range e.State.Exposures {
			if row := &e.State.Exposures[i]; "service/"+row.Service == a.Why && !row.Open {
				c.stop("address", a.Why, e.remedyFor(row), "%s is for %s, and not on this machine: %s", addr, row.Service, row.Reason)
				return
			}
		}
		c.stop("address", a.Why, "wait a moment: it is asked for, and taken if nobody else has it", "%s is for %s, and not on this machine yet", addr, a.Why)
		return
	}
	c.stop("address", "interface/", "ask for an address of this machine: "+e.ownAddresses(), "%s is of a pool, and no Service has it now", addr)
}

// byName is for a door that is shared, where no name is said.
func (e *engine) byName(c *chain, o *origin, p packet, behind []*edge.Frontend, names []string) {
	c.some = true
	c.Steps = append(c.Steps, Step{"hostname", true, "it is shared by TLS server name: " + listed(names), behind[0].Why})
	closed := 0
	for _, f := range behind {
		one := newChain(o, "")
		e.through(one, o, f, p.to.Addr())
		way := one.done()
		if way.Verdict == NotReachable {
			closed++
		}
		c.Steps = append(c.Steps, Step{"hostname", way.Verdict != NotReachable, fmt.Sprintf("%s: %s", listed(f.Hostnames), way.Summary), f.Why})
	}
	if closed == len(behind) {
		c.over = true
	}
	c.Summary = fmt.Sprintf("it depends on the TLS server name: %s; who names none, or another one, is turned away", listed(names))
	c.Remedy = "ask for one of the names, as in " + exampleOf(names[0]) + ":" + fmt.Sprint(p.to.Port())
}

func exampleOf(hostname string) string { return strings.Replace(hostname, "*.", "www.", 1) }

// listed are names as text, not too many of them.
func listed(names []string) string {
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// through follows a connection from the door of a frontend to its backends.
func (e *engine) through(c *chain, o *origin, f *edge.Frontend, to netip.Addr) {
	if c.over {
		return
	}
	row := e.rowOf(f)
	door := f.Door
	c.Door, c.Name = door.String(), f.Name
	if err := e.Closed[door]; err != "" {
		c.stop("listener", f.Why, cmp.Or(row.Remedy, desired.ListenRemedy(err)), "%s is not open on this machine: %s", door, err)
		return
	}
	c.ok("listener", f.Why, "%s is open on this machine", door)
	e.wayBack(c, o, f, to)
	e.admitted(c, o, f, to)
	e.sources(c, o, f, to)
	e.bans(c, o, f, to)
	e.plane(c, f, row)
	e.backends(c, f, row, to)
	if c.over {
		return
	}
	if row.Client != "" {
		c.ok("client address", f.Why, "the backend sees %s", row.Client)
	}
	c.Summary = fmt.Sprintf("%s takes it, for %s", f.Name, countOf(c.Backend))
	if c.some {
		c.Summary += "; " + c.why
	}
}

// wayBack says whether an answer finds out by the interface that the relay's socket
// is bound to. Of IPv4 the kernel takes everybody for a neighbour there.
func (e *engine) wayBack(c *chain, o *origin, f *edge.Frontend, to netip.Addr) {
	device := f.Listen.Device
	if c.over || o.local || e.Leaves == nil || device == "" || f.DataPlane == edge.DataPlaneNAT || to.Is4() {
		return
	}
	const remedy = "give the interface a route to its clients: ip -6 route add NETWORK dev %s"
	client := o.client
	if !client.IsValid() { // somebody of the network of the address
		if i := slices.IndexFunc(e.devices[device].Addrs, func(p netip.Prefix) bool { return p.Addr() == to && !p.IsSingleIP() }); i >= 0 {
			client = e.devices[device].Addrs[i].Masked().Addr()
			for range 4 { // which this machine has not itself
				if client = client.Next(); e.holder[client] == "" {
					break
				}
			}
		}
	}
	switch {
	case !client.IsValid() || client == to || e.Leaves(client, device):
	case o.client.IsValid():
		c.stop("listener", "interface/"+device, fmt.Sprintf(remedy, device), "no route leads to %s by %s, so that answers find no way out of what listens there", client, device)
	default:
		what := fmt.Sprintf("no route leads to the network of %s by %s: answers to clients there find no way out of what listens", to, device)
		c.notAll(what)
		c.Steps = append(c.Steps, Step{"listener", false, what, "interface/" + device})
		c.Remedy = fmt.Sprintf(remedy, device)
	}
}

// countOf says how many backends get connections.
func countOf(backends []Receiver) string {
	n := 0
	for _, b := range backends {
		if b.Share > 0 {
			n++
		}
	}
	if n == 1 {
		return "one backend"
	}
	return fmt.Sprintf("%d backends", n)
}
