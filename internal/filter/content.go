package filter

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/nft"
)

// content is what a table has in it.
type content struct {
	fixed    []knftables.Object
	zones    []string           // sets of interfaces, sorted
	counters []string           // of policies, each once
	policies []knftables.Object // rules
	// elements of each set, by id.
	elements map[string]map[string]element
}

// element is one of a set, for nft and as the kernel has it.
type element struct {
	text     []string // nil: it was read from the kernel
	key, end []byte   // end is nil, unless it is an interval
}

// id tells elements of a set apart.
func (e element) id() string { return string(e.key) + string(e.end) }

// contentOf says what a table is to have in it.
func contentOf(r *firewall.Ruleset) *content {
	c := &content{fixed: fixed(r.Rules), elements: map[string]map[string]element{}}
	for _, z := range r.Zones {
		c.zones = append(c.zones, zonePrefix+z.Name)
		for _, device := range z.Interfaces {
			e := new(element).name(device)
			c.add(zones, *e)
			c.add(zonePrefix+z.Name, *e)
		}
	}
	for _, a := range r.Own {
		c.add(numbered(own, numberOf(a)), *new(element).addr(a))
	}
	for _, p := range r.Pinholes {
		c.addPinhole(p)
	}
	for _, elements := range c.elements {
		outermost(elements)
	}
	c.addPolicies(r.Rules)
	return c
}

func (c *content) add(set string, e element) {
	if c.elements[set] == nil {
		c.elements[set] = map[string]element{}
	}
	c.elements[set][e.id()] = e
}

// keep takes over what is open. Networks of clients that have some in common with
// those that are wanted at the same door are not: no set of intervals takes both.
func (c *content) keep(have *found) {
	for set, elements := range have.elements {
		if !strings.HasPrefix(set, doors) && !strings.HasPrefix(set, translated) && !strings.HasPrefix(set, own) {
			continue
		}
		wanted := slices.SortedFunc(maps.Values(c.elements[set]), func(x, y element) int { return bytes.Compare(x.key, y.key) })
		for id, e := range elements {
			if _, there := c.elements[set][id]; there {
				continue
			}
			if overlaps(wanted, e) {
				e.text = textOf(e, numberIn(set)) // it is to be removed by itself, and not with all
				elements[id] = e
				continue
			}
			c.add(set, e)
		}
	}
}

// overlaps says whether an interval has something in common with one of others,
// which are sorted, and have nothing in common with each other.
func overlaps(others []element, e element) bool {
	if e.end == nil {
		return false
	}
	i, _ := slices.BinarySearchFunc(others, e.key, func(o element, key []byte) int { return bytes.Compare(o.end, key) })
	return i < len(others) && bytes.Compare(others[i].key, e.end) <= 0
}

// outermost leaves out networks that are inside others: two may have opened one
// door, and the kernel takes no set in which intervals have something in common.
func outermost(elements map[string]element) {
	var all []element
	for _, e := range elements {
		if e.end != nil {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(x, y element) int { return cmp.Or(bytes.Compare(x.key, y.key), bytes.Compare(y.end, x.end)) })
	var last []byte
	for _, e := range all {
		if last != nil && bytes.Compare(e.end, last) <= 0 {
			delete(elements, e.id())
			continue
		}
		last = e.end
	}
}

// addPinhole adds what finds it, in one of the sets that fixed describes.
func (c *content) addPinhole(p firewall.Pinhole) {
	set := doors
	if p.Translated {
		set = translated
	}
	addressed, some := "", ""
	e := new(element).name(p.Device)
	if p.Addr.IsValid() {
		e.addr(p.Addr)
		addressed = strconv.Itoa(numberOf(p.Addr))
	}
	e.protocol(p.Protocol).port(p.Port)
	if p.Sources == nil {
		c.add(set+addressed, *e)
		return
	}
	some = from
	for _, network := range p.Sources {
		number := strconv.Itoa(numberOf(network.Addr()))
		switch addressed {
		case "":
			c.add(set+some+number, e.with(network))
		case number:
			c.add(set+addressed+some, e.with(network))
		}
	}
}

// addPolicies adds the rules of policies, and what counts them.
func (c *content) addPolicies(rules []firewall.Rule) {
	var l list
	seen := map[string]int{}
	last := -1 // no rule behind it masquerades
	for i := range rules {
		if rules[i].Masquerade {
			last = i
		}
	}
	for i := range rules {
		r := &rules[i]
		if r.Policy < 0 {
			continue
		}
		counter := counterOf(r, seen)
		c.counters = append(c.counters, counter)
		chain, comment := through, "policies["+strconv.Itoa(r.Policy)+"]"
		if r.Way == firewall.ToSelf {
			chain = toSelf
		}
		for _, fits := range matches(&r.Fits) {
			l.rule(chain, comment, "%s counter name %s %s", fits.text, counter, decision(r, fits))
			// What may not pass does not come here, nor what is for this machine.
			if r.Accept && r.Way == firewall.Through && i <= last {
				l.masquerade(comment, r, fits)
			}
		}
	}
	stamp(l, sumOf(l))
	c.policies = l
}

// masquerade gives what fits this machine's address, or ends the search for a
// policy that would.
func (l *list) masquerade(comment string, r *firewall.Rule, fits match) {
	if r.Masquerade && fits.version != 6 {
		l.rule(masquerade, comment, "%s meta nfproto ipv4 masquerade", fits.text)
	}
	if r.Masquerade && fits.version != 4 {
		l.rule(masquerade, comment, "%s ip6 saddr %s masquerade", fits.text, firewall.ULA)
	}
	l.rule(masquerade, comment, "%s accept", fits.text)
}

// counterOf names what counts a policy: for what it says, and not for where, so
// that others can come before it.
func counterOf(r *firewall.Rule, seen map[string]int) string {
	what := what(r)
	seen[what]++
	return counterPrefix + shortSum(what+" "+strconv.Itoa(seen[what]))
}

// what says all that a policy's rule is, but for its position.
func what(r *firewall.Rule) string {
	p := config.Policy{
		From: r.Fits.From.Zone, To: r.Fits.To.Zone, Services: r.Fits.Services, Sources: r.Fits.Sources, Destinations: r.Fits.Destinations,
	}
	if r.Way == firewall.ToSelf {
		p.To = config.Self
	}
	if !r.Accept {
		return p.String() + " dropped"
	}
	return p.String()
}

// Each part of a key takes a multiple of 4 bytes; what is shorter comes first.
const (
	nameBytes = 16 // IFNAMSIZ
	partBytes = 4
)

func (e *element) append(text string, key []byte) *element {
	e.text = append(e.text, text)
	e.key = append(e.key, key...)
	return e
}

func (e *element) name(device string) *element {
	key := make([]byte, nameBytes)
	copy(key, device)
	return e.append(quoted(device), key)
}

// quoted is a name as nft takes it: there are no escapes between the quotes, but
// for the asterisk that would otherwise stand for the rest of a name.
func quoted(name string) string {
	if before, ok := strings.CutSuffix(name, "*"); ok {
		name = before + `\*`
	}
	return `"` + name + `"`
}

func (e *element) addr(a netip.Addr) *element { return e.append(a.String(), a.AsSlice()) }

func (e *element) protocol(p edge.Protocol) *element {
	key := make([]byte, partBytes)
	key[0] = map[edge.Protocol]byte{edge.TCP: 6, edge.UDP: 17, edge.SCTP: 132}[p]
	return e.append(wordOf(p), key)
}

func (e *element) port(n uint16) *element {
	key := make([]byte, partBytes)
	binary.BigEndian.PutUint16(key, n)
	return e.append(strconv.Itoa(int(n)), key)
}

// with is the element with a network behind it.
func (e *element) with(p netip.Prefix) element {
	all := element{text: append([]string(nil), e.text...), key: append([]byte(nil), e.key...)}
	all.append(p.String(), p.Masked().Addr().AsSlice())
	all.end = append(append([]byte(nil), e.key...), lastOf(p)...)
	return all
}

// numberIn is the IP version of clients in the sets that say which they are, by the
// name: "doors-from4", "doors4-from".
func numberIn(set string) int {
	if strings.Contains(set, "6") {
		return 6
	}
	return 4
}

// textOf writes an element with clients of an IP version as nft takes it: the
// interface, an address of this version perhaps, the protocol, the port, the clients.
func textOf(e element, version int) []string {
	size := 4
	if version == 6 {
		size = 16
	}
	if len(e.key) < nameBytes+2*partBytes+size || len(e.end) != len(e.key) {
		return nil // somebody else's
	}
	rest, address := e.key[nameBytes:], 0
	if len(rest) == 2*partBytes+2*size {
		address = size
	}
	text := []string{quoted(nft.Text(e.key[:nameBytes]))}
	if a, ok := netip.AddrFromSlice(rest[:address]); ok {
		text = append(text, a.String())
	}
	rest = rest[address:]
	first, _ := netip.AddrFromSlice(rest[2*partBytes:])
	last, _ := netip.AddrFromSlice(e.end[len(e.end)-size:])
	text = append(text, strconv.Itoa(int(rest[0])), strconv.Itoa(int(binary.BigEndian.Uint16(rest[partBytes:]))))
	if first == last {
		return append(text, first.String())
	}
	return append(text, first.String()+"-"+last.String())
}

// lastOf is the last address of a network.
func lastOf(p netip.Prefix) []byte {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

func numberOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
