package dhcp

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Packet is a message as it came in.
type Packet struct {
	Device string
	Src    netip.Addr
	Dst    netip.Addr
	*dhcpv4.DHCPv4
}

// Result is what follows from a Packet.
type Result struct {
	// Reply is what is answered; nil: nothing. Kind is its type: of the two that are
	// acknowledgements, too.
	Reply *dhcpv4.DHCPv4
	To    Destination
	// Changes are to be kept before the Reply is sent.
	Changes []edge.Lease
	// News says that they are more than a lease that goes on.
	News bool
	// Probe is an address that somebody has to be looked for at before it is offered:
	// see Book.Probed, after which the same Packet is answered.
	Probe   netip.Addr
	Relayed bool // the Probe is not on the cable of the Packet's Device
	// Why there is no Reply, or a refusal.
	Why string
}

// Way is how a Reply gets to a client. (RFC 2131 section 4.1)
type Way uint8

// The ways. A machine that has no address yet cannot be asked for its hardware
// address: it is sent to that.
const (
	Broadcast Way = iota
	ToHardware
	ByRoute // to Addr, as any other datagram
)

// Destination is where a Reply goes.
type Destination struct {
	Way  Way
	Addr netip.AddrPort // of the client or the relay agent; of a broadcast that of all
	From netip.Addr     // this machine's
}

// request is a Packet as it is understood.
type request struct {
	*dhcpv4.DHCPv4
	zone     *Zone
	device   *Device
	now      time.Time
	networks []*Network // that the client may be in
	client   string     // as clientOf has it
	mac      string
	id       string // option 61 in hex
	hostname string // as the machine calls itself, in lower case; may have dots
	// Addresses in the message; zero: it has none.
	relay, ciaddr, requested, server, src netip.Addr
	self                                  netip.Addr // as what this server is known to the client
	relayInfo                             dhcpv4.Options
}

// understand reads a Packet; the text says why it is not answered.
func understand(z *Zone, p Packet, now time.Time) (*request, string) {
	if p.OpCode != dhcpv4.OpcodeBootRequest {
		return nil, "is no request"
	}
	r := &request{
		DHCPv4: p.DHCPv4, zone: z, device: z.device(p.Device), now: now, src: p.Src,
		relay: addr4(p.GatewayIPAddr), ciaddr: addr4(p.ClientIPAddr),
		requested: addr4(p.RequestedIPAddress()), server: addr4(p.ServerIdentifier()),
	}
	if r.device == nil {
		return nil, "came by no interface of the zone"
	}
	if len(p.ClientHWAddr) > 0 && slices.ContainsFunc(p.ClientHWAddr, func(b byte) bool { return b != 0 }) {
		r.mac = p.ClientHWAddr.String()
	}
	id := p.Options.Get(dhcpv4.OptionClientIdentifier)
	if len(id) > longestID {
		return nil, "does not say who asks"
	}
	if len(id) >= 2 { // a type, and something (RFC 2132 section 9.14)
		r.id = hexOf(id)
	}
	if r.mac == "" && r.id == "" {
		return nil, "does not say who asks"
	}
	r.client = clientOf(&edge.Lease{MAC: r.mac, ClientID: r.id})
	r.hostname = strings.ToLower(strings.TrimRight(p.HostName(), "\x00."))
	if r.hostname == "" {
		r.hostname = fqdn(p.Options.Get(dhcpv4.OptionFQDN))
	}
	link := r.relay
	if info := p.Options.Get(dhcpv4.OptionRelayAgentInformation); info != nil {
		r.relayInfo = dhcpv4.Options{}
		if r.relayInfo.FromBytes(info) != nil {
			r.relayInfo = nil // it goes back as it is all the same
		}
		if a := addr4(r.relayInfo.Get(dhcpv4.LinkSelectionSubOption)); a.IsValid() && r.relay.IsValid() {
			link = a // RFC 3527
		}
	}
	r.find(link)
	if len(r.networks) == 0 {
		return nil, "is of a network that nothing is given in"
	}
	r.self = r.networks[0].Self
	if !r.self.IsValid() {
		r.self = r.device.Addr
	}
	if slices.Contains(z.Own, p.Dst) && r.relay.IsValid() {
		r.self = p.Dst // the relay agent knows it by that
	}
	if a := addr4(r.relayInfo.Get(dhcpv4.ServerIdentifierOverrideSubOption)); a.IsValid() && r.relay.IsValid() {
		r.self = a // RFC 5107: the client is to talk to the relay agent
	}
	return r, ""
}

// find has the networks that the client may be in: that of its relay agent, those
// of the interface, or the one that it sends from by way of a router.
func (r *request) find(link netip.Addr) {
	for i := range r.zone.Networks {
		n := &r.zone.Networks[i]
		switch {
		case link.IsValid():
			if n.Prefix.Contains(link) {
				r.networks = append(r.networks, n)
				return
			}
		case n.Device == r.device.Name:
			r.networks = append(r.networks, n)
		}
	}
	if link.IsValid() || !r.ciaddr.IsValid() || r.networkOf(r.ciaddr) != nil {
		return
	}
	for i := range r.zone.Networks {
		// What is sent to this machine alone has come by the relay agent's network, if
		// it was not sent by a neighbour.
		if n := &r.zone.Networks[i]; n.Device == "" && n.Prefix.Contains(r.ciaddr) && r.src == r.ciaddr {
			r.networks = []*Network{n}
			return
		}
	}
}

// networkOf is the one of the client's networks that has an address, or nil.
func (r *request) networkOf(a netip.Addr) *Network {
	for _, n := range r.networks {
		if n.Prefix.Contains(a) {
			return n
		}
	}
	return nil
}

// matches says whether a reservation is for the client. A machine that calls
// itself as a node does is that one.
func (r *request) matches(res *config.Reservation) bool {
	if res.MAC != "" {
		return res.MAC == r.mac
	}
	if r.hostname == "" {
		return false
	}
	first, _, dotted := strings.Cut(r.hostname, ".")
	node, _, long := strings.Cut(res.Node, ".")
	switch {
	case r.hostname == res.Node:
		return true
	case dotted && long: // both say all
		return false
	}
	return first == node
}

// fqdn is the name in the option of RFC 4702, in either of its forms.
func fqdn(option []byte) string {
	const encoded = 0x04 // flag E
	if len(option) < 4 {
		return ""
	}
	name := option[3:]
	if option[0]&encoded == 0 {
		return strings.ToLower(strings.TrimRight(string(name), "\x00."))
	}
	var labels []string
	for len(name) > 0 && name[0] > 0 && int(name[0]) < len(name) && name[0] < 64 {
		labels = append(labels, string(name[1:1+name[0]]))
		name = name[1+name[0]:]
	}
	return strings.ToLower(strings.Join(labels, "."))
}

// ours says whether a message is for this server, by the identifier in it.
func (r *request) ours() bool {
	return r.server == r.self || slices.Contains(r.zone.Own, r.server)
}

// Answer decides on a Packet, and takes note of what was decided.
func (b *Book) Answer(z *Zone, p Packet, now time.Time) Result {
	r, why := understand(z, p, now)
	if r == nil {
		return Result{Why: why}
	}
	switch p.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return b.discover(r)
	case dhcpv4.MessageTypeRequest:
		return b.request(r)
	case dhcpv4.MessageTypeDecline:
		return b.decline(r)
	case dhcpv4.MessageTypeRelease:
		return b.release(r)
	case dhcpv4.MessageTypeInform:
		return b.inform(r)
	default:
		return Result{Why: "is not for servers"}
	}
}

// discover offers an address. (RFC 2131 section 4.3.1)
func (b *Book) discover(r *request) Result {
	a, ok := b.choose(r)
	if !ok {
		return Result{Why: "no address is left"}
	}
	l, has := b.leases[a]
	has = has && clientOf(&l) == r.client && l.Expires.After(r.now)
	o, held := b.offers[a]
	held = held && o.client == r.client && o.until.After(r.now)
	o = offer{client: r.client, mac: r.mac, until: r.now.Add(OfferTime), probed: held && o.probed}
	for _, other := range slices.Clone(b.addrs[r.client]) {
		if b.offers[other].client == r.client && other != a && r.networkOf(other) != nil {
			b.withdraw(other)
		}
	}
	b.offer(a, o)
	n := r.networkOf(a)
	if r.zone.Probe && !has && !o.probed {
		return Result{Probe: a, Relayed: n.Device == ""}
	}
	// Whoever is not the only server would keep addresses for machines that have
	// taken another's. (RFC 4039 section 3.1)
	if r.Options.Has(dhcpv4.OptionRapidCommit) && b.Rival(r.zone.Name, r.now) == (Rival{}) {
		result := b.grant(r, a)
		result.Reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRapidCommit, nil))
		return result
	}
	return Result{Reply: r.reply(dhcpv4.MessageTypeOffer, n, a, r.leaseTime()), To: r.way(a)}
}

// Probed says what was found at an address that a Packet has asked a look for: the
// hardware address of somebody, or nobody. What is returned is to be kept.
func (b *Book) Probed(z *Zone, a netip.Addr, somebody string, now time.Time) []edge.Lease {
	o, ok := b.offers[a]
	if !ok {
		return nil
	}
	if somebody == "" {
		o.probed = true
		b.offers[a] = o
		return nil
	}
	b.withdraw(a)
	if l, ok := b.leases[a]; ok && l.Expires.After(now) {
		return nil // it was given meanwhile
	}
	return b.setAside(z, a, somebody, now)
}

func (b *Book) setAside(z *Zone, a netip.Addr, by string, now time.Time) []edge.Lease {
	l := edge.Lease{Zone: z.Name, Addr: a, MAC: by, Begun: now.UTC(), Expires: now.Add(DeclineTime).UTC(), Declined: true}
	_, l.Reserved = z.reserved[a]
	b.put(l)
	return []edge.Lease{l}
}

// request is answered by what the client knows. (RFC 2131 section 4.3.2)
func (b *Book) request(r *request) Result {
	a := r.requested
	selecting := r.server.IsValid()
	switch {
	case selecting && !r.ours():
		for _, other := range slices.Clone(b.addrs[r.client]) {
			if b.offers[other].client == r.client && r.networkOf(other) != nil {
				b.withdraw(other)
			}
		}
		if !r.relay.IsValid() {
			b.rivals[r.zone.Name] = Rival{r.server, r.now.Add(rivalTime)}
		}
		return Result{Why: "is for another server"}
	case selecting && !a.IsValid():
		a = r.ciaddr // not as it should be, and clear
	case !selecting && r.ciaddr.IsValid(): // RENEWING or REBINDING
		a = r.ciaddr
	}
	if !a.IsValid() {
		return Result{Why: "asks for no address"}
	}
	n := r.networkOf(a)
	if n == nil {
		return r.refuse("wrong network")
	}
	switch b.standing(r, a) {
	case another:
		return r.refuse("address is another's")
	case aside:
		return r.refuse("address is in use")
	case available:
	}
	l, known := b.leases[a]
	known = known && clientOf(&l) == r.client
	res := b.reservation(r)
	switch {
	case res != nil && res.Address != a:
		return r.refuse("another address is reserved")
	case res == nil && !n.pooled(a):
		// It is not this server's to give; if it was once, the client has to go.
		if selecting || known {
			return r.refuse("address is not given any more")
		}
		return Result{Why: "is for an address that is not given here"}
	}
	if !selecting && !known && b.holds(r) {
		return r.refuse("another address is its own")
	}
	// An address of a pool that nobody has is granted to whoever has it by another
	// server's word, or by that of this one before all was lost: only this server
	// gives these.
	return b.grant(r, a)
}

// holds says whether the client has a lease in one of its networks.
func (b *Book) holds(r *request) bool {
	return slices.ContainsFunc(b.addrs[r.client], func(a netip.Addr) bool {
		l, ok := b.leases[a]
		return ok && clientOf(&l) == r.client && l.Expires.After(r.now) && r.networkOf(a) != nil
	})
}

// grant gives a lease, or more time of it.
func (b *Book) grant(r *request, a netip.Addr) Result {
	n := r.networkOf(a)
	length := r.leaseTime()
	l := edge.Lease{
		Zone: r.zone.Name, Addr: a, MAC: r.mac, ClientID: r.id, Hostname: label(r.hostname),
		Begun: r.now.UTC(), Expires: r.now.Add(length).UTC(),
	}
	old, ok := b.leases[a]
	goesOn := ok && clientOf(&old) == r.client && old.Expires.After(r.now)
	if goesOn {
		l.Begun = old.Begun
		if l.Hostname == "" {
			l.Hostname = old.Hostname // who renews need not say it again
		}
	}
	if res, ok := r.zone.reserved[a]; ok {
		l.Reserved, l.Hostname = true, r.named(&res, l.Hostname)
	}
	changes, news := []edge.Lease{l}, !goesOn || old.Hostname != l.Hostname || old.Reserved != l.Reserved || old.MAC != l.MAC
	for _, other := range slices.Clone(b.addrs[r.client]) {
		if other == a || r.networkOf(other) == nil {
			continue
		}
		if b.offers[other].client == r.client {
			b.withdraw(other)
		}
		if old, ok := b.leases[other]; ok && clientOf(&old) == r.client && old.Expires.After(r.now) {
			old.Expires = r.now.UTC() // one lease in a network
			b.put(old)
			changes = append(changes, old)
		}
	}
	b.withdraw(a)
	b.put(l)
	return Result{Reply: r.reply(dhcpv4.MessageTypeAck, n, a, length), To: r.way(a), Changes: changes, News: news || len(changes) > 1}
}

// named is what a machine with a reservation is called.
func (r *request) named(res *config.Reservation, said string) string {
	switch {
	case res.Hostname != "":
		return res.Hostname
	case res.Node != "":
		return label(res.Node)
	}
	return said
}

// decline sets an address aside that the client has found somebody at. (RFC 2131
// section 4.3.3)
func (b *Book) decline(r *request) Result {
	a := r.requested
	l, ok := b.leases[a]
	mine := ok && clientOf(&l) == r.client && l.Expires.After(r.now) || b.offers[a].client == r.client
	if !a.IsValid() || !mine || r.server.IsValid() && !r.ours() {
		return Result{Why: "declines what it does not have"}
	}
	b.withdraw(a)
	return Result{Changes: b.setAside(r.zone, a, "", r.now), News: true, Why: "needs no answer"}
}

// release ends a lease. (RFC 2131 section 4.3.4)
func (b *Book) release(r *request) Result {
	l, ok := b.leases[r.ciaddr]
	if !ok || clientOf(&l) != r.client || !l.Expires.After(r.now) || r.server.IsValid() && !r.ours() {
		return Result{Why: "releases what it does not have"}
	}
	l.Expires = r.now.UTC()
	b.put(l)
	return Result{Changes: []edge.Lease{l}, News: true, Why: "needs no answer"}
}

// inform tells options to a machine that has its address from elsewhere. (RFC
// 2131 section 4.3.5)
func (b *Book) inform(r *request) Result {
	a := r.ciaddr
	if !a.IsValid() {
		a = r.src // as some do
	}
	n := r.networkOf(a)
	if n == nil {
		return Result{Why: "is of a network that nothing is given in"}
	}
	reply := r.reply(dhcpv4.MessageTypeAck, n, netip.Addr{}, 0)
	to := Destination{Way: ByRoute, Addr: netip.AddrPortFrom(a, dhcpv4.ClientPort), From: r.self}
	if !r.relay.IsValid() && n.Device != "" && r.mac != "" {
		to.Way = ToHardware
	}
	return Result{Reply: reply, To: to}
}

// leaseTime is what the client gets: less than all if it asks for less.
func (r *request) leaseTime() time.Duration {
	if asked := r.IPAddressLeaseTime(r.zone.LeaseTime); asked < r.zone.LeaseTime {
		return max(asked, min(shortestLease, r.zone.LeaseTime))
	}
	return r.zone.LeaseTime
}
