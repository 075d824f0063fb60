package filter

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

// The sets whose elements are what is open. A name that ends in a number is of
// that IP version.
const (
	zones      = "zones"      // the interfaces of all of them
	zonePrefix = "zone-"      // those of one: "zone-home"
	own        = "own"        // addresses at which only doors count that have them
	doors      = "doors"      // by interface, protocol and port; "doors4" by the address, too
	translated = "translated" // likewise, before the kernel rewrote it
	from       = "-from"      // with the networks of clients: "doors-from4", "doors4-from"
	dropped    = "dropped-"   // what was, by interface; packets write it
)

// The chains that follow from policies.
const (
	toSelf        = "policies-self"
	through       = "policies-through"
	masquerade    = "policies-masquerade"
	counterPrefix = "policy-"
)

// The base chains.
const (
	input       = "input"
	forward     = "forward"
	postrouting = "postrouting"
)

type version struct {
	number int
	word   string // of nft
	icmp   string
}

var versions = []version{{4, "ip", "icmp"}, {6, "ip6", "icmpv6"}}

var transports = []edge.Protocol{edge.TCP, edge.UDP, edge.SCTP}

// list collects objects in the order in which nft has to see them.
type list []knftables.Object

func (l *list) set(name, keyType string, flags ...knftables.SetFlag) {
	*l = append(*l, &knftables.Set{Name: name, Type: keyType, Flags: flags})
}

func (l *list) chain(name string) { *l = append(*l, &knftables.Chain{Name: name}) }

func (l *list) base(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, policy knftables.BaseChainPolicy) {
	*l = append(*l, &knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority, Policy: &policy})
}

func (l *list) rule(chain, what, format string, args ...any) {
	*l = append(*l, &knftables.Rule{Chain: chain, Rule: fmt.Sprintf(format, args...), Comment: &what})
}

// fixed is what is in the table whatever the policies say, made of the rules that
// are in every Ruleset. Each rule's comment ends in a sum of all of it, by which a
// table of another version of this program is known.
func fixed(rules []firewall.Rule) []knftables.Object {
	l := list{&knftables.Table{}}
	l.set(zones, "ifname")
	for _, v := range versions {
		l.set(numbered(own, v.number), addrType(v.number))
	}
	for _, name := range []string{doors, translated} {
		l.set(name, keyType(0))
		for _, v := range versions {
			l.set(numbered(name, v.number), keyType(v.number))
			l.set(numbered(name+from, v.number), keyType(0)+" . "+addrType(v.number), knftables.IntervalFlag)
			l.set(numbered(name, v.number)+from, keyType(v.number)+" . "+addrType(v.number), knftables.IntervalFlag)
		}
	}
	l.set(dropped+input, "ifname", knftables.DynamicFlag)
	l.set(dropped+forward, "ifname . ifname", knftables.DynamicFlag)
	for _, chain := range []string{toSelf, through, masquerade} {
		l.chain(chain)
	}
	l.pinholes()
	l.base(input, knftables.FilterType, knftables.InputHook, knftables.FilterPriority, knftables.DropPolicy)
	l.always(input, firewall.ToSelf, rules)
	l.rule(input, "policies", "jump "+toSelf)
	l.rule(input, firewall.Nothing, "update @%s { iifname counter } drop", dropped+input)
	l.base(forward, knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority, knftables.DropPolicy)
	l.always(forward, firewall.Through, rules)
	l.rule(forward, "policies", "jump "+through)
	l.rule(forward, firewall.Nothing, "update @%s { iifname . oifname counter } drop", dropped+forward)
	l.base(postrouting, knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority, knftables.AcceptPolicy)
	l.rule(postrouting, "no connection begins", "ct state != new accept")
	l.rule(postrouting, "no policy has let it pass", "ct status dnat jump "+translated)
	l.rule(postrouting, "policies", "jump "+masquerade)
	stamp(l, sumOf(l))
	return l
}

// always are the rules before any policy.
func (l *list) always(chain string, way firewall.Way, rules []firewall.Rule) {
	for i := range rules {
		r := &rules[i]
		if r.Policy >= 0 || r.Way&way == 0 {
			continue
		}
		for _, fits := range matches(&r.Fits) {
			l.rule(chain, r.Why, "%s", strings.TrimSpace(fits.text+" "+decision(r, fits)))
		}
	}
}

// decision is what a rule does with what fits.
func decision(r *firewall.Rule, fits match) string {
	switch {
	case fits.jump != "":
		return "jump " + fits.jump // where what is found is accepted
	case r.Accept:
		return "accept"
	default:
		return "drop"
	}
}

// pinholes are the chains that accept what is found in the sets.
func (l *list) pinholes() {
	l.chain(translated)
	for _, v := range versions {
		l.chain(numbered(doors, v.number))
		l.find(numbered(doors, v.number), "", doors, v, v.word+" daddr", "th dport")
		for _, protocol := range transports {
			// nft knows what a port of conntrack is after the protocol only.
			word := wordOf(protocol)
			chain := numbered(translated, v.number) + "-" + word
			l.chain(chain)
			l.find(chain, "meta l4proto "+word+" ", translated, v, "ct original "+v.word+" daddr", "ct original proto-dst")
			l.rule(translated, "by protocol", "meta nfproto ipv%d meta l4proto %s jump %s", v.number, word, chain)
		}
	}
}

// find looks for the address and port among the doors that have an address, and
// among others, unless it is an address at which those do not count.
func (l *list) find(chain, first, sets string, v version, addr, port string) {
	const open = "open"
	with, without := fmt.Sprintf("%siifname . %s . meta l4proto . %s", first, addr, port), fmt.Sprintf("%siifname . meta l4proto . %s", first, port)
	l.rule(chain, open, "%s @%s accept", with, numbered(sets, v.number))
	l.rule(chain, open+" to some", "%s . %s saddr @%s accept", with, v.word, numbered(sets, v.number)+from)
	l.rule(chain, "an address of its own", "%s @%s return", addr, numbered(own, v.number))
	l.rule(chain, open, "%s @%s accept", without, sets)
	l.rule(chain, open+" to some", "%s . %s saddr @%s accept", without, v.word, numbered(sets+from, v.number))
}

// keyType is that of what is open, with its address if it has one.
func keyType(version int) string {
	if version == 0 {
		return "ifname . inet_proto . inet_service"
	}
	return fmt.Sprintf("ifname . %s . inet_proto . inet_service", addrType(version))
}

func addrType(version int) string { return fmt.Sprintf("ipv%d_addr", version) }

func numbered(name string, version int) string { return name + strconv.Itoa(version) }

func wordOf(protocol edge.Protocol) string {
	if protocol == config.ICMP {
		return "icmp"
	}
	return strings.ToLower(string(protocol))
}

// stamp puts a sum behind the comments of rules.
func stamp(objects []knftables.Object, sum string) {
	for _, o := range objects {
		if r, ok := o.(*knftables.Rule); ok {
			r.Comment = new(*r.Comment + " " + sum)
		}
	}
}

// sumOf is short: it tells tables apart, and does not keep anybody from forging
// them.
func sumOf(objects []knftables.Object) string {
	tx := knftables.NewFake(knftables.InetFamily, Table).NewTransaction()
	for _, o := range objects {
		tx.Add(o)
	}
	return shortSum(tx.String())
}

func shortSum(text string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text))
	return fmt.Sprintf("%08x", h.Sum32())
}
