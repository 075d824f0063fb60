package dhcp

import (
	"cmp"
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// Book has all leases, those that have ended included until somebody else gets
// the address, and what was offered. It is not for use by several at a time.
type Book struct {
	leases map[netip.Addr]edge.Lease
	// told are those of leases that this Book has given: by the clock as it was then.
	told   map[netip.Addr]bool
	offers map[netip.Addr]offer
	// addrs are those that each client has in leases, or is offered.
	addrs map[string][]netip.Addr
	// rivals are other servers by zone: which was heard of last, and until when that
	// matters.
	rivals map[string]Rival
	// full are networks that had no address for somebody new, and until when nobody
	// looks again: whoever sends many messages is not to have all of them searched for.
	full map[netip.Prefix]time.Time
}

// offer is an address that is held for a client.
type offer struct {
	client string
	mac    string
	until  time.Time
	probed bool // nobody is there
}

// Rival is another server that gives addresses on the same cable.
type Rival struct {
	Addr  netip.Addr
	Until time.Time // when it counts as gone unless it is heard of again
}

// NewBook makes a Book of the leases that there are.
func NewBook(leases []edge.Lease) *Book {
	b := &Book{leases: map[netip.Addr]edge.Lease{}, told: map[netip.Addr]bool{}, offers: map[netip.Addr]offer{}, addrs: map[string][]netip.Addr{}, rivals: map[string]Rival{}, full: map[netip.Prefix]time.Time{}}
	for _, l := range leases {
		b.put(l)
	}
	clear(b.told)
	return b
}

// clientOf is whose a lease is: a client is known by its identifier, or by its
// hardware address if it sends none. (RFC 2131 section 4.2)
func clientOf(l *edge.Lease) string {
	switch {
	case l.Declined:
		return ""
	case l.ClientID != "":
		return "id " + l.ClientID
	}
	return "mac " + l.MAC
}

func (b *Book) put(l edge.Lease) {
	b.remove(l.Addr)
	if l.Expires.IsZero() {
		return
	}
	b.leases[l.Addr], b.told[l.Addr] = l, true
	b.index(clientOf(&l), l.Addr)
}

func (b *Book) remove(a netip.Addr) {
	if l, ok := b.leases[a]; ok {
		delete(b.leases, a)
		delete(b.told, a)
		b.unindex(clientOf(&l), a)
	}
}

func (b *Book) index(client string, a netip.Addr) {
	if client != "" && !slices.Contains(b.addrs[client], a) {
		b.addrs[client] = append(b.addrs[client], a)
	}
}

// unindex forgets that an address is a client's, unless it is so in another way.
func (b *Book) unindex(client string, a netip.Addr) {
	if l, ok := b.leases[a]; ok && clientOf(&l) == client || b.offers[a].client == client {
		return
	}
	left := slices.DeleteFunc(b.addrs[client], func(o netip.Addr) bool { return o == a })
	if len(left) == 0 {
		delete(b.addrs, client)
		return
	}
	b.addrs[client] = left
}

func (b *Book) offer(a netip.Addr, o offer) {
	b.withdraw(a)
	b.offers[a] = o
	b.index(o.client, a)
}

func (b *Book) withdraw(a netip.Addr) {
	if o, ok := b.offers[a]; ok {
		delete(b.offers, a)
		b.unindex(o.client, a)
	}
}

// Leases are those that have not ended, sorted by address, with the addresses
// that are set aside. A name is that of one machine: of one that has it reserved,
// or else of the one that has had its lease for the longest time.
func (b *Book) Leases(now time.Time) []edge.Lease {
	all := []edge.Lease{}
	for _, l := range b.leases {
		if l.Expires.After(now) {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(x, y edge.Lease) int {
		reserved := func(l edge.Lease) int {
			if l.Reserved {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(reserved(x), reserved(y)), x.Begun.Compare(y.Begun), x.Addr.Compare(y.Addr))
	})
	named := map[string]bool{}
	for i := range all {
		switch name := all[i].Hostname; {
		case name == "":
		case named[name]:
			all[i].Hostname = ""
		default:
			named[name] = true
		}
	}
	slices.SortFunc(all, func(x, y edge.Lease) int { return x.Addr.Compare(y.Addr) })
	return all
}

// Next is when the next lease ends; zero: none does.
func (b *Book) Next(now time.Time) time.Time {
	var next time.Time
	for _, l := range b.leases {
		if l.Expires.After(now) && (next.IsZero() || l.Expires.Before(next)) {
			next = l.Expires
		}
	}
	return next
}

// Usage counts the addresses of a zone's pools, and those of them that somebody
// could get.
func (b *Book) Usage(z *Zone, now time.Time) (size, free int) {
	for i := range z.Networks {
		if !z.repeats(i) {
			size += z.Networks[i].size()
		}
	}
	free = size
	for a, l := range b.leases {
		if l.Expires.After(now) && z.pooled(a) {
			free--
		}
	}
	for _, r := range z.Reservations {
		if l, ok := b.leases[r.Address]; z.pooled(r.Address) && (!ok || !l.Expires.After(now)) {
			free--
		}
	}
	return size, free
}

// repeats says whether a network is one that an interface before has, too.
func (z *Zone) repeats(i int) bool {
	return slices.ContainsFunc(z.Networks[:i], func(o Network) bool { return o.Prefix == z.Networks[i].Prefix })
}

func (z *Zone) pooled(a netip.Addr) bool {
	return slices.ContainsFunc(z.Networks, func(n Network) bool { return n.pooled(a) })
}

// Rival is another server that was heard of in a zone; zero: none was lately.
func (b *Book) Rival(zone string, now time.Time) Rival {
	if r := b.rivals[zone]; r.Until.After(now) {
		return r
	}
	return Rival{}
}

// ClockSet is called when the clock was set forward, or back. Machines count the
// time of their leases from when they were told: what was told by the clock of
// before goes by the one of now. Leases of a process before this one are left
// alone, since a machine without a battery for its clock has begun with a wrong
// one. It returns what is to be kept of that.
func (b *Book) ClockSet(by time.Duration) []edge.Lease {
	var changes []edge.Lease
	for a := range b.told {
		l := b.leases[a]
		l.Begun, l.Expires = l.Begun.Add(by), l.Expires.Add(by)
		b.leases[a] = l
		changes = append(changes, l)
	}
	return changes
}

// Forget drops what no zone has any more: leases that have ended, of addresses
// that nobody gets now. It returns what is to be kept of that.
func (b *Book) Forget(zones []Zone, now time.Time) []edge.Lease {
	var changes []edge.Lease
	for a, l := range b.leases {
		given := slices.ContainsFunc(zones, func(z Zone) bool {
			return z.pooled(a) || slices.ContainsFunc(z.Reservations, func(r config.Reservation) bool { return r.Address == a })
		})
		if !given && !l.Expires.After(now) {
			changes = append(changes, edge.Lease{Addr: a})
		}
	}
	for _, l := range changes {
		b.remove(l.Addr)
	}
	for a, o := range b.offers {
		if !o.until.After(now) {
			b.withdraw(a)
		}
	}
	return changes
}

// standing is how an address stands to a client.
type standing int

const (
	available standing = iota // nobody has it who would have to give it up
	another                   // somebody else has it, or was offered it, or it is reserved
	aside                     // somebody was found there who was not given it
)

// standing of an address that is in a network of the client.
func (b *Book) standing(r *request, a netip.Addr) standing {
	res, mine := r.zone.reserved[a]
	if mine && !r.matches(&res) {
		return another
	}
	l, ok := b.leases[a]
	switch {
	case !ok || !l.Expires.After(r.now):
	case l.Declined:
		return aside
	case clientOf(&l) == r.client:
	case mine && l.MAC == r.mac && r.mac != "": // by another identifier: PXE's, an installer's
	default:
		return another
	}
	o, ok := b.offers[a]
	sameCard := mine && o.mac == r.mac && r.mac != ""
	if ok && o.until.After(r.now) && o.client != r.client && !sameCard {
		return another
	}
	return available
}

// reservation is that of a client, if it can have it now; nil: none.
func (b *Book) reservation(r *request) *config.Reservation {
	for i := range r.zone.Reservations {
		res := &r.zone.Reservations[i]
		if r.matches(res) && r.networkOf(res.Address) != nil && b.standing(r, res.Address) == available {
			return res
		}
	}
	return nil
}

// choose finds the address to offer to a client: the one that is reserved for it,
// the one that it has or had, the one that it asks for, one that nobody ever had,
// or the one that nobody has had for the longest time. (RFC 2131 section 4.3.1)
func (b *Book) choose(r *request) (netip.Addr, bool) {
	if res := b.reservation(r); res != nil {
		return res.Address, true
	}
	fits := func(a netip.Addr) bool {
		n := r.networkOf(a)
		return n != nil && n.pooled(a) && b.standing(r, a) == available
	}
	var best netip.Addr
	rank := func(a netip.Addr) time.Time { // what it has comes before what it had, and that before offers
		if l, ok := b.leases[a]; ok && clientOf(&l) == r.client {
			return l.Expires
		}
		return time.Time{}
	}
	for _, a := range b.addrs[r.client] {
		if fits(a) && (!best.IsValid() || rank(a).After(rank(best))) {
			best = a
		}
	}
	if best.IsValid() {
		return best, true
	}
	if r.requested.IsValid() && fits(r.requested) {
		return r.requested, true
	}
	first := r.networks[0].Prefix
	if b.full[first].After(r.now) {
		return netip.Addr{}, false
	}
	for _, n := range r.networks {
		if a, ok := b.fresh(r, n); ok {
			return a, true
		}
	}
	a, ok := b.stalest(r)
	if !ok {
		a, ok = b.declined(r)
	}
	if !ok {
		b.full[first] = r.now.Add(fullTime)
	}
	return a, ok
}

// declined is the address that was set aside first of those that somebody has
// declined, and is not set aside any more: who declines all that he is offered
// would leave nothing for others. It is looked at before it is offered, where that
// is done; what somebody was seen at so is not among them.
func (b *Book) declined(r *request) (netip.Addr, bool) {
	if !r.zone.Probe {
		return netip.Addr{}, false
	}
	var first edge.Lease
	for a, l := range b.leases {
		n := r.networkOf(a)
		if !l.Declined || l.MAC != "" || n == nil || !n.pooled(a) || first.Addr.IsValid() && cmp.Or(l.Begun.Compare(first.Begun), a.Compare(first.Addr)) > 0 {
			continue
		}
		if res, reserved := r.zone.reserved[a]; !reserved || r.matches(&res) {
			first = l
		}
	}
	b.remove(first.Addr)
	return first.Addr, first.Addr.IsValid()
}

// fresh is an address that nobody ever had. Where the search begins follows from
// the client: it would get the same one if all leases were lost.
func (b *Book) fresh(r *request, n *Network) (netip.Addr, bool) {
	total := 0
	for _, p := range n.Pools {
		total += config.RangeSize(p)
	}
	if total == 0 {
		return netip.Addr{}, false
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(r.client)) // it never fails (hash.Hash)
	for i := range total {
		a := nth(n.Pools, (int(h.Sum32()%uint32(total))+i)%total)
		if _, had := b.leases[a]; !had && !n.Taken[a] && b.standing(r, a) == available {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// nth is an address of ranges.
func nth(ranges []edge.Range, n int) netip.Addr {
	for _, r := range ranges {
		size := config.RangeSize(r)
		if n < size {
			b := r.First.As4()
			v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			v += uint32(n)
			return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
		}
		n -= size
	}
	return netip.Addr{}
}

// stalest is the address whose lease has ended first.
func (b *Book) stalest(r *request) (netip.Addr, bool) {
	var best edge.Lease
	for a, l := range b.leases {
		if l.Expires.After(r.now) {
			continue
		}
		n := r.networkOf(a)
		if n == nil || !n.pooled(a) || b.standing(r, a) != available {
			continue
		}
		if !best.Addr.IsValid() || cmp.Or(l.Expires.Compare(best.Expires), a.Compare(best.Addr)) < 0 {
			best = l
		}
	}
	return best.Addr, best.Addr.IsValid()
}

// label makes a name of what a machine calls itself: one label of DNS, or nothing.
func label(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(strings.TrimRight(name, "\x00")), ".")
	name = strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-':
			return c
		}
		return '-'
	}, name)
	name = strings.Trim(name, "-")
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-")
	}
	return name
}

func hexOf(id []byte) string { return hex.EncodeToString(id) }
