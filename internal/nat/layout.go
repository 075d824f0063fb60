package nat

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
)

// The maps and sets whose elements are what the configuration says. A name that
// ends in a number is of that IP version. Those of doors that have an address
// have names of their own; see names.
const (
	doors       = "doors"       // to the chain that chooses a backend
	frontends   = "frontends"   // every door of ours
	restricted  = "restricted"  // doors that only sources may use
	sources     = "sources"     // with the door
	hairpins    = "hairpins"    // pairs of interfaces
	masqueraded = "masqueraded" // doors
	remembered  = "remembered"  // doors, to the chain that remembers clients
	addresses   = "addresses"   // what goes to them is for doors that have them alone
	counting    = "counting"    // to the chain that counts what is forwarded
)

// affinityClients is how many clients are remembered. Those that come when there
// are as many get the backend that their address stands for.
const affinityClients = 65536

// The seed of jhash, which is the same on every machine.
const hashSeed = 0x67686f75

var protocols = []struct {
	protocol edge.Protocol
	word     string
	number   byte
}{{edge.TCP, "tcp", 6}, {edge.UDP, "udp", 17}, {edge.SCTP, "sctp", 132}}

var versions = []version{{4, "ip", 4}, {6, "ip6", 16}}

// What is counted of each protocol and IP version, in a set each: a set of one
// protocol has a smaller key and no other's entries to pass.
const (
	connections = "connections"
	toBackends  = "to-backends"
	toClients   = "to-clients"
)

// Maps of each protocol and IP version.
const (
	// backends are found by door and slot. In one map for all protocols, the type of
	// a backend's port would be "th dport", and nft 1.0.6 cannot add rules to a table
	// that has such a map.
	backends = "backends"
	// Which backend a client had last, as packets have written it there. Of IPv6 the
	// port is apart: what is written by packets has a key of at most 16 bytes, and
	// data of as many, since nft 1.0.6 mixes up or runs over longer ones. That is
	// also why there is a map for each protocol, and a client of IPv6 is a /64,
	// which it is anyway; and why a door's address of IPv6 is a hash there.
	affinity     = "affinity"
	affinityPort = "affinity-port"
)

// layout returns what is in the table whatever the configuration says. Each
// rule's comment says what it is for, and ends in a sum of the whole layout, by
// which a table of another version of this program is known.
var layout = sync.OnceValue(func() []knftables.Object {
	objects := fixed()
	sum := layoutSum()
	for _, o := range objects {
		stamp(o, sum)
	}
	return objects
})

// layoutSum is short: it tells versions apart, and does not keep anybody from
// forging them. It is of one example of each chain that is made when needed, too.
var layoutSum = sync.OnceValue(func() string {
	objects := fixed()
	for _, name := range exampleChains() {
		objects = append(objects, chainObjects(name)...)
	}
	tx := knftables.NewFake(family, Table).NewTransaction()
	for _, o := range objects {
		tx.Add(o)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(tx.String()))
	return fmt.Sprintf("%08x", h.Sum32())
})

// exampleChains are one of each kind of those that are made when needed.
func exampleChains() []string {
	examples := []string{wildcard.rememberChain("tcp", time.Second)}
	for _, v := range versions {
		for _, n := range []names{wildcard, addressed(v.number)} {
			for _, kind := range []string{random, source, affine} {
				examples = append(examples, n.chain("tcp", v.number, kind, 2))
			}
		}
		examples = append(examples, addressed(v.number).rememberChain("tcp", time.Second))
	}
	return examples
}

func stamp(o knftables.Object, sum string) {
	if r, ok := o.(*knftables.Rule); ok {
		r.Comment = new(*r.Comment + " " + sum)
	}
}

// separator of verdicts; knftables.Fake takes a comma for the end of a chain's name.
const separator = " , "

// list collects objects in the order in which nft has to see them.
type list []knftables.Object

func (l *list) set(name, keyType string, flags ...knftables.SetFlag) {
	*l = append(*l, &knftables.Set{Name: name, Type: keyType, Flags: flags})
}

func (l *list) verdicts(name, keyType string) {
	*l = append(*l, &knftables.Map{Name: name, Type: keyType + " : verdict"})
}

func (l *list) chain(name string) { *l = append(*l, &knftables.Chain{Name: name}) }

func (l *list) base(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) {
	*l = append(*l, &knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
}

func (l *list) rule(chain, what, format string, args ...any) {
	*l = append(*l, &knftables.Rule{Chain: chain, Rule: fmt.Sprintf(format, args...), Comment: &what})
}

const opens = "tcp flags & (fin|syn|rst|ack)" // == syn

// fixed is the layout without the sum.
func fixed() []knftables.Object {
	l := list{&knftables.Table{}}
	l.ofDoors(wildcard)
	l.set(hairpins, "ifname . ifname")
	l.ofPackets(wildcard)
	for _, v := range versions {
		l.set(addresses+strconv.Itoa(v.number), fmt.Sprintf("ipv%d_addr", v.number))
		l.ofDoors(addressed(v.number))
		l.ofPackets(addressed(v.number))
	}
	// With a size the kernel knows how few they are, and takes a faster set.
	l = append(l, &knftables.Map{Name: counting, TypeOf: "ct direction . meta nfproto . meta l4proto : verdict", Size: new(uint64(len(lanes())))})
	l.dstnat()
	l.input()
	l.forward()
	l.srcnat()
	return l
}

// ofDoors are the maps and sets of what the configuration says of doors.
func (l *list) ofDoors(n names) {
	for _, v := range n.versions() {
		l.verdicts(n.set(doors, v.number), n.doorType())
		*l = append(*l, &knftables.Set{Name: n.set(sources, v.number), TypeOf: fmt.Sprintf("%s . %s saddr", n.door(), v.word), Flags: []knftables.SetFlag{knftables.IntervalFlag}})
	}
	for _, p := range protocols {
		for _, v := range n.versions() {
			*l = append(*l, &knftables.Map{
				Name:   n.of(p.word, v.number, backends),
				TypeOf: fmt.Sprintf("%s . numgen random mod 2 : %s daddr . %s dport", n.slotsType(p.word), v.word, p.word),
			})
		}
	}
	for _, name := range []string{frontends, restricted, masqueraded} {
		l.set(n.set(name, 0), n.doorType())
	}
	l.verdicts(n.set(remembered, 0), n.doorType())
}

// ofPackets are the maps and sets of what packets write.
func (l *list) ofPackets(n names) {
	for _, p := range protocols {
		remembering := func(version int, name, keyAndData string) {
			*l = append(*l, &knftables.Map{
				Name: n.of(p.word, version, name), TypeOf: keyAndData,
				Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: new(uint64(affinityClients)),
			})
		}
		for _, v := range n.versions() {
			if v.number == 4 {
				remembering(4, affinity, fmt.Sprintf("%s : ip daddr . %s dport", n.clientType(p.word, 4), p.word))
			} else {
				remembering(6, affinity, n.clientType(p.word, 6)+" : ip6 daddr")
				remembering(6, affinityPort, fmt.Sprintf("%s : %s dport", n.clientType(p.word, 6), p.word))
			}
		}
	}
	// Without a size: room for as many as there can be would be made at once. They
	// are as many as doors have backends, whoever sends what.
	for _, p := range protocols {
		for _, v := range n.versions() {
			for _, what := range []string{connections, toBackends, toClients} {
				l.set(n.of(p.word, v.number, what), n.countedType(v.number), knftables.DynamicFlag)
			}
		}
	}
}

// dstnat sends what comes to a door to a backend, at any of this machine's
// addresses that no door has for itself: it is the interface that counts. A chain
// of NAT sees the first packet of a connection alone. Of what is taken up in the
// middle, of a connection of the relay that the kernel had forgotten, nothing is
// rewritten.
func (l *list) dstnat() {
	const chain = "dstnat"
	for _, v := range versions {
		n := addressed(v.number)
		l.chain(n.name(chain))
		l.choose(n.name(chain), n)
	}
	l.base(chain, knftables.NATType, knftables.PreroutingHook, "dstnat - 10")
	l.rule(chain, "no connection begins", "meta l4proto tcp %s != syn return", opens)
	for _, v := range versions {
		l.rule(chain, "an address of doors", "meta nfproto ipv%d %s daddr @%s%d goto %s", v.number, v.word, addresses, v.number, addressed(v.number).name(chain))
	}
	l.choose(chain, wildcard)
}

func (l *list) choose(chain string, n names) {
	for _, v := range n.versions() {
		l.rule(chain, "not from here", "meta nfproto ipv%d %s @%s %s . %s saddr != @%s return", v.number, n.door(), n.set(restricted, 0), n.door(), v.word, n.set(sources, v.number))
	}
	for _, v := range n.versions() {
		l.rule(chain, "doors", "meta nfproto ipv%d fib daddr type local %s vmap @%s", v.number, n.door(), n.set(doors, v.number))
	}
}

// input turns away what would have been sent to a backend, if there were one for
// it, as if nothing listened: or something else might that listens at all
// interfaces.
func (l *list) input() {
	const (
		chain  = "input"
		refuse = "refuse"
	)
	l.chain(refuse)
	l.rule(refuse, "no backend", "meta l4proto tcp %s == syn reject with tcp reset", opens)
	l.rule(refuse, "no backend", "meta l4proto { udp, sctp } reject with icmpx port-unreachable")
	for _, v := range versions {
		n := addressed(v.number)
		l.chain(n.name(chain))
		l.rule(n.name(chain), "a door", "meta nfproto ipv%d %s @%s goto %s", v.number, n.door(), n.set(frontends, 0), refuse)
	}
	l.base(chain, knftables.FilterType, knftables.InputHook, "filter - 10")
	l.rule(chain, "no connection begins", "ct state != new return")
	l.rule(chain, "for a backend on this machine", "ct status & dnat != 0 return")
	for _, v := range versions {
		l.rule(chain, "an address of doors", "meta nfproto ipv%d %s daddr @%s%d goto %s", v.number, v.word, addresses, v.number, addressed(v.number).name(chain))
	}
	l.rule(chain, "no door", "%s != @%s return", wildcard.door(), frontends)
	l.rule(chain, "to a network", "fib daddr type != local return")
	l.rule(chain, "a door", "goto %s", refuse)
}

// forward counts what goes between clients and backends. Others' DNAT is counted
// as well: to look up whose it is would cost more, for each packet. Whether a
// client has used an address of doors is looked up only while there are any: the
// map says which chain counts.
func (l *list) forward() {
	const chain = "forward"
	l.base(chain, knftables.FilterType, knftables.ForwardHook, "filter - 10")
	for _, way := range lanes() {
		v := way.version
		word := wordOfVersion(v)
		iface, backend := "iif", word+" daddr . th dport"
		if way.reply {
			iface, backend = "oif", word+" saddr . th sport"
		}
		for _, n := range []names{wildcard, addressed(v)} {
			name := way.chain(n)
			l.chain(name)
			if n.version != 0 {
				l.rule(name, "no address of doors", "ct original %s daddr != @%s%d goto %s", word, addresses, v, way.chain(wildcard))
			}
			l.rule(name, "count", "meta l4proto %s update @%s { %s . %s . %s counter }", way.protocol, name, iface, n.portCT(), backend)
		}
	}
	l.rule(chain, "not to a backend", "ct status & dnat == 0 return")
	l.rule(chain, "count", "ct direction . meta nfproto . meta l4proto vmap @%s", counting)
}

// srcnat sees the first packet of a connection once more, on its way out: it is
// counted, its client remembered, and its source rewritten where answers would
// not come back.
func (l *list) srcnat() {
	const chain = "srcnat"
	l.base(chain, knftables.NATType, knftables.PostroutingHook, "srcnat - 10")
	l.rule(chain, "not to a backend", "ct status & dnat == 0 return")
	for _, v := range versions {
		l.rule(chain, "from an address of doors", "ct original %s daddr @%s%d meta l4proto vmap { %s }", v.word, addresses, v.number, l.connections(addressed(v.number)))
	}
	l.rule(chain, "to a backend", "meta l4proto vmap { %s }", l.connections(wildcard))
}

// connections makes the chains of each protocol, and returns the verdicts that
// lead there.
func (l *list) connections(n names) string {
	var to []string
	for _, p := range protocols {
		name := n.connectionChain(p.word)
		// nft knows what a port of conntrack is after the protocol only.
		word := "meta l4proto " + p.word
		l.chain(name)
		l.rule(name, "no door", "%s %s != @%s return", word, n.doorCT(), n.set(frontends, 0))
		for _, v := range n.versions() {
			l.rule(name, "count", "%s update @%s { iif . %s . %s daddr . th dport counter }", word, n.of(p.word, v.number, connections), n.portCT(), v.word)
		}
		l.rule(name, "remember the client", "%s %s vmap @%s", word, n.doorCT(), n.set(remembered, 0))
		l.rule(name, "in one network", "iifname . oifname @%s masquerade", hairpins)
		l.rule(name, "as configured", "%s %s @%s masquerade", word, n.doorCT(), n.set(masqueraded, 0))
		to = append(to, fmt.Sprintf("%s : goto %s", p.word, name))
	}
	return strings.Join(to, separator)
}

// chainOf returns a chain that is made when it is needed, with its rules.
func chainOf(name string) []knftables.Object {
	objects := chainObjects(name)
	for _, o := range objects {
		stamp(o, layoutSum())
	}
	return objects
}

func chainObjects(name string) []knftables.Object {
	c, ok := parseChain(name)
	if !ok {
		return nil
	}
	l := list{&knftables.Chain{Name: name}}
	client := clientOf(c.version)
	switch to := c.of(c.protocol, c.version, backends); c.kind {
	case random:
		l.rule(name, "by weight", "dnat %s to %s . numgen random mod %s map @%s", wordOfVersion(c.version), c.slots(c.protocol), c.argument, to)
	case source:
		l.rule(name, "by client", "dnat %s to %s . jhash %s mod %s seed %#x map @%s", wordOfVersion(c.version), c.slots(c.protocol), client, c.argument, hashSeed, to)
	case affine:
		key := c.client(c.protocol, c.version)
		if c.version == 4 {
			l.rule(name, "as the last time", "dnat ip to %s map @%s", key, c.of(c.protocol, 4, affinity))
		} else {
			l.rule(name, "as the last time", "dnat ip6 to %s map @%s : %s map @%s", key, c.of(c.protocol, 6, affinity), key, c.of(c.protocol, 6, affinityPort))
		}
		l.rule(name, "for the first time", "goto %s", next(name))
	case remembering:
		for _, v := range c.versions() {
			remember := func(to, backend string) {
				l.rule(name, "remember the client", "meta nfproto ipv%d meta l4proto %s update @%s { %s timeout %s : %s }",
					v.number, c.protocol, c.of(c.protocol, v.number, to), c.clientCT(v.number), c.argument, backend)
			}
			if v.number == 4 {
				remember(affinity, "ip daddr . th dport")
			} else {
				remember(affinity, "ip6 daddr")
				remember(affinityPort, "th dport")
			}
		}
	}
	return l
}
