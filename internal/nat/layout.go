package nat

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
)

// The maps and sets whose elements are what the configuration says. A name that
// ends in a number is of that IP version.
const (
	doors       = "doors"       // to the chain that chooses a backend
	frontends   = "frontends"   // every door of ours
	restricted  = "restricted"  // doors that only sources may use
	sources     = "sources"     // with the door
	hairpins    = "hairpins"    // pairs of interfaces
	masqueraded = "masqueraded" // doors
	remembered  = "remembered"  // doors, to the chain that remembers clients
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

var versions = []struct {
	number int
	word   string // of nft
	bytes  int
}{{4, "ip", 4}, {6, "ip6", 16}}

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
	// which it is anyway.
	affinity     = "affinity"
	affinityPort = "affinity-port"
)

// of names what is of one protocol and IP version: "tcp4-backends".
func of(protocol string, version int, what string) string {
	return fmt.Sprintf("%s%d-%s", protocol, version, what)
}

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
	for _, name := range []string{
		"tcp4-random-1", "tcp6-random-1", "tcp4-source-1", "tcp6-source-1", "tcp4-affinity-1", "tcp6-affinity-1", rememberChain("tcp", time.Second),
	} {
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

func (l *list) chain(name string) { *l = append(*l, &knftables.Chain{Name: name}) }

func (l *list) base(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) {
	*l = append(*l, &knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
}

func (l *list) rule(chain, what, format string, args ...any) {
	*l = append(*l, &knftables.Rule{Chain: chain, Rule: fmt.Sprintf(format, args...), Comment: &what})
}

const (
	doorType = "ifname . inet_proto . inet_service"
	// The door of a packet that has just come in, and of a connection.
	door   = "iifname . meta l4proto . th dport"
	doorCT = "iifname . meta l4proto . ct original proto-dst"
	opens  = "tcp flags & (fin|syn|rst|ack)" // == syn
	// All of a /64 is one client: the rest of its address it makes up.
	client6 = "@nh,64,64"
)

// fixed is the layout without the sum.
func fixed() []knftables.Object {
	l := list{&knftables.Table{}}
	for _, v := range versions {
		l = append(l,
			&knftables.Map{Name: doors + strconv.Itoa(v.number), Type: doorType + " : verdict"},
			&knftables.Set{Name: sources + strconv.Itoa(v.number), TypeOf: fmt.Sprintf("%s . %s saddr", door, v.word), Flags: []knftables.SetFlag{knftables.IntervalFlag}},
		)
	}
	for _, p := range protocols {
		for _, v := range versions {
			l = append(l, &knftables.Map{
				Name:   of(p.word, v.number, backends),
				TypeOf: fmt.Sprintf("iifname . %s dport . numgen random mod 2 : %s daddr . %s dport", p.word, v.word, p.word),
			})
		}
	}
	for _, name := range []string{frontends, restricted, masqueraded} {
		l.set(name, doorType)
	}
	l = append(l, &knftables.Map{Name: remembered, Type: doorType + " : verdict"})
	l.set(hairpins, "ifname . ifname")
	for _, p := range protocols {
		remembering := func(version int, name, keyAndData string) {
			l = append(l, &knftables.Map{
				Name: of(p.word, version, name), TypeOf: fmt.Sprintf("iif . %s dport . ", p.word) + keyAndData,
				Flags: []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag}, Size: new(uint64(affinityClients)),
			})
		}
		remembering(4, affinity, fmt.Sprintf("ip saddr : ip daddr . %s dport", p.word))
		remembering(6, affinity, client6+" : ip6 daddr")
		remembering(6, affinityPort, fmt.Sprintf(client6+" : %s dport", p.word))
	}
	// Without a size: room for as many as there can be would be made at once. They
	// are as many as doors have backends, whoever sends what.
	for _, p := range protocols {
		for _, v := range versions {
			for _, what := range []string{connections, toBackends, toClients} {
				l.set(of(p.word, v.number, what), fmt.Sprintf("iface_index . inet_service . ipv%d_addr . inet_service", v.number), knftables.DynamicFlag)
			}
		}
	}
	l.dstnat()
	l.input()
	l.forward()
	l.srcnat()
	return l
}

// dstnat sends what comes to a door to a backend, at any of this machine's
// addresses: it is the interface that counts. A chain of NAT sees the first
// packet of a connection alone. Of what is taken up in the middle, of a
// connection of the relay that the kernel had forgotten, nothing is rewritten.
func (l *list) dstnat() {
	const chain = "dstnat"
	l.base(chain, knftables.NATType, knftables.PreroutingHook, "dstnat - 10")
	l.rule(chain, "no connection begins", "meta l4proto tcp %s != syn return", opens)
	for _, v := range versions {
		l.rule(chain, "not from here", "meta nfproto ipv%d %s @%s %s . %s saddr != @%s%d return", v.number, door, restricted, door, v.word, sources, v.number)
	}
	for _, v := range versions {
		l.rule(chain, "doors", "meta nfproto ipv%d fib daddr type local %s vmap @%s%d", v.number, door, doors, v.number)
	}
}

// input turns away what would have been sent to a backend, if there were one for
// it, as if nothing listened: or something else might that listens at all
// interfaces.
func (l *list) input() {
	const chain = "input"
	l.base(chain, knftables.FilterType, knftables.InputHook, "filter - 10")
	l.rule(chain, "no connection begins", "ct state != new return")
	l.rule(chain, "for a backend on this machine", "ct status & dnat != 0 return")
	l.rule(chain, "no door", "%s != @%s return", door, frontends)
	l.rule(chain, "to a network", "fib daddr type != local return")
	l.rule(chain, "no backend", "meta l4proto tcp %s == syn reject with tcp reset", opens)
	l.rule(chain, "no backend", "meta l4proto { udp, sctp } reject with icmpx port-unreachable")
}

// forward counts what goes between clients and backends. Others' DNAT is counted
// as well: to look up whose it is would cost more, for each packet.
func (l *list) forward() {
	const chain = "forward"
	l.base(chain, knftables.FilterType, knftables.ForwardHook, "filter - 10")
	var to []string
	for _, p := range protocols {
		for _, v := range versions {
			name := of(p.word, v.number, toBackends)
			l.chain(name)
			l.rule(name, "count", "meta l4proto %s update @%s { iif . ct original proto-dst . %s daddr . th dport counter }", p.word, name, v.word)
			to = append(to, fmt.Sprintf("original . ipv%d . %s : goto %s", v.number, p.word, name))
			name = of(p.word, v.number, toClients)
			l.chain(name)
			l.rule(name, "count", "meta l4proto %s update @%s { oif . ct original proto-dst . %s saddr . th sport counter }", p.word, name, v.word)
			to = append(to, fmt.Sprintf("reply . ipv%d . %s : goto %s", v.number, p.word, name))
		}
	}
	l.rule(chain, "not to a backend", "ct status & dnat == 0 return")
	l.rule(chain, "count", "ct direction . meta nfproto . meta l4proto vmap { %s }", strings.Join(to, separator))
}

// srcnat sees the first packet of a connection once more, on its way out: it is
// counted, its client remembered, and its source rewritten where answers would
// not come back.
func (l *list) srcnat() {
	const chain = "srcnat"
	l.base(chain, knftables.NATType, knftables.PostroutingHook, "srcnat - 10")
	var to []string
	for _, p := range protocols {
		name := p.word + "-connection"
		// nft knows what a port of conntrack is after the protocol only.
		word := "meta l4proto " + p.word
		l.chain(name)
		l.rule(name, "no door", "%s %s != @%s return", word, doorCT, frontends)
		for _, v := range versions {
			l.rule(name, "count", "%s update @%s { iif . ct original proto-dst . %s daddr . th dport counter }", word, of(p.word, v.number, connections), v.word)
		}
		l.rule(name, "remember the client", "%s %s vmap @%s", word, doorCT, remembered)
		l.rule(name, "in one network", "iifname . oifname @%s masquerade", hairpins)
		l.rule(name, "as configured", "%s %s @%s masquerade", word, doorCT, masqueraded)
		to = append(to, fmt.Sprintf("%s : goto %s", p.word, name))
	}
	l.rule(chain, "not to a backend", "ct status & dnat == 0 return")
	l.rule(chain, "to a backend", "meta l4proto vmap { %s }", strings.Join(to, separator))
}

var madeWhenNeeded = regexp.MustCompile(`^(tcp|udp|sctp)([46])-(random|source|affinity)-([1-9][0-9]*)$|^(tcp|udp|sctp)-remember-([1-9][0-9]*m?s)$`)

// rememberChain is the name of the chain that remembers clients for a time.
func rememberChain(protocol string, timeout time.Duration) string {
	if timeout%time.Second == 0 {
		return fmt.Sprintf("%s-remember-%ds", protocol, timeout/time.Second)
	}
	return fmt.Sprintf("%s-remember-%dms", protocol, max(timeout/time.Millisecond, 1))
}

// next is the chain that another goes to; empty: none.
func next(chain string) string {
	if before, after, ok := strings.Cut(chain, "-affinity-"); ok {
		return before + "-source-" + after
	}
	return ""
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
	m := madeWhenNeeded.FindStringSubmatch(name)
	if m == nil {
		return nil
	}
	l := list{&knftables.Chain{Name: name}}
	protocol, version, kind, slots := m[1], m[2], m[3], m[4]
	ip, client := "ip", "ip saddr"
	if version == "6" {
		ip, client = "ip6", client6
	}
	switch kind {
	case "random":
		l.rule(name, "by weight", "dnat %s to iifname . %s dport . numgen random mod %s map @%s%s-%s", ip, protocol, slots, protocol, version, backends)
	case "source":
		l.rule(name, "by client", "dnat %s to iifname . %s dport . jhash %s mod %s seed %#x map @%s%s-%s", ip, protocol, client, slots, hashSeed, protocol, version, backends)
	case "affinity":
		key := fmt.Sprintf("iif . %s dport . %s", protocol, client)
		if version == "4" {
			l.rule(name, "as the last time", "dnat ip to %s map @%s", key, of(protocol, 4, affinity))
		} else {
			l.rule(name, "as the last time", "dnat ip6 to %s map @%s : %s map @%s", key, of(protocol, 6, affinity), key, of(protocol, 6, affinityPort))
		}
		l.rule(name, "for the first time", "goto %s", next(name))
	default:
		protocol, timeout := m[5], m[6]
		remember := func(version int, to, client, backend string) {
			l.rule(name, "remember the client", "meta nfproto ipv%d meta l4proto %s update @%s { iif . ct original proto-dst . %s timeout %s : %s }",
				version, protocol, of(protocol, version, to), client, timeout, backend)
		}
		remember(4, affinity, "ip saddr", "ip daddr . th dport")
		remember(6, affinity, client6, "ip6 daddr")
		remember(6, affinityPort, client6, "th dport")
	}
	return l
}
