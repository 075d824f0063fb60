package vip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

// Table is the name of both tables, of the families inet and arp.
const Table = "gatehouse-addresses"

// patience is how long nft may take for one transaction. It reads all tables of
// the machine first.
const patience = 10 * time.Second

// opening is a door as the wall sees it.
type opening struct {
	device   string // empty: whichever
	addr     netip.Addr
	protocol byte
	port     uint16
}

// content is what the wall is about.
type content struct {
	places   map[netip.Addr]string // the interface of each address
	openings map[opening]bool
}

// key is that of an element.
func (o opening) key() string {
	key := fmt.Sprintf("%s . %d . %d", o.addr, o.protocol, o.port)
	if o.device != "" {
		key = fmt.Sprintf("%q . %s", o.device, key)
	}
	return key
}

func (c content) equal(other content) bool {
	return maps.Equal(c.places, other.places) && maps.Equal(c.openings, other.openings)
}

func openingOf(d edge.Door) (opening, bool) {
	numbers := map[edge.Protocol]byte{edge.TCP: unix.IPPROTO_TCP, edge.UDP: unix.IPPROTO_UDP, edge.SCTP: unix.IPPROTO_SCTP}
	o := opening{d.Listen.Device, d.Listen.Addr.Unmap(), numbers[d.Protocol], d.Listen.Port}
	return o, o.addr.IsValid() && o.protocol != 0 && nameable(o.device)
}

// nameable says whether rules can name an interface: nft would take the star at
// the end for a wildcard.
func nameable(device string) bool {
	return len(device) < unix.IFNAMSIZ && !strings.ContainsAny(device, "\"\\*\n")
}

// wall keeps others from answering for addresses, and at them. It is for one
// goroutine at a time, and acts in the network namespace of the caller.
type wall struct {
	known    bool // what follows is what the kernel has
	exists   bool // one of the tables at least
	sound    bool // both, with the rules that they are to have
	elements map[element]bool
	openings []opening // that were read
	have     content   // that was applied; nothing, if it was read
}

// look finds out what the kernel has.
func (w *wall) look(ctx context.Context) (err error) {
	if w.known {
		return nil
	}
	if *w, err = readWall(ctx); err == nil {
		w.known = true
	}
	return err
}

// apply makes the kernel have what is wanted, and says whether that took a
// change. Of nothing the tables are removed.
func (w *wall) apply(ctx context.Context, want content) (changed bool, err error) {
	if err := w.look(ctx); err != nil {
		if len(want.places) == 0 {
			w.known = true // that there is no nft does not matter: nobody has asked for a wall
			return false, nil
		}
		return false, err
	}
	if w.sound && w.have.equal(want) {
		return false, nil
	}
	then := elements(want)
	var text string
	var parts []string
	switch {
	case len(want.places) == 0 && !w.exists:
		return false, nil
	case len(want.places) == 0:
		text = replacement(nil)
	case !w.sound:
		text, parts = replacement(layout()), commands("add", then)
	default:
		parts = slices.Concat(commands("delete", without(w.elements, then)), commands("add", without(then, w.elements)))
	}
	if changed = text != "" || len(parts) > 0; changed {
		w.known = false
		if err := load(ctx, text, parts); err != nil {
			return false, err
		}
	}
	exists := len(want.places) > 0
	*w = wall{known: true, exists: exists, sound: exists, elements: then, have: want}
	return changed, nil
}

// load makes one transaction of it all, or several where the kernel does not
// take that much: outside the first user namespace net.core.wmem_max bounds it.
func load(ctx context.Context, text string, parts []string) error {
	err := run(ctx, text+strings.Join(parts, ""))
	if err == nil || len(parts) == 0 || !strings.Contains(err.Error(), "Message too long") {
		return err
	}
	if text != "" {
		if err := run(ctx, text); err != nil {
			return err
		}
	}
	for _, part := range parts {
		if err := run(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, text string) error {
	_, err := command(ctx, text, "-f", "-")
	return err
}

func command(ctx context.Context, input string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", args...) //nolint:gosec // the arguments are of this package
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("nft: %w", ctx.Err())
	case stderr.Len() > 0:
		err = errors.New(stderr.String())
	}
	return nil, fmt.Errorf("nft: %w", nft.Explain(err))
}

// replacement replaces both tables, or removes them. That nft may not know
// "destroy" (1.0.6 does not) is why they are added before they are deleted.
func replacement(tables []string) string {
	var b strings.Builder
	for _, family := range []string{"inet", "arp"} {
		fmt.Fprintf(&b, "add table %s %s\ndelete table %s %s\n", family, Table, family, Table)
	}
	return b.String() + strings.Join(tables, "")
}

// layout is the tables without their elements, as text of nft. The comment of
// each rule ends in a sum of it all, by which it is known again: what nft prints
// of a rule differs between its versions.
var layout = sync.OnceValue(func() []string {
	sum := fnv.New32a()
	for _, table := range []string{inetTable, arpTable} {
		_, _ = sum.Write([]byte(table))
	}
	var tables []string
	for _, table := range []string{inetTable, arpTable} {
		tables = append(tables, strings.NewReplacer("TABLE", Table, "SUM", fmt.Sprintf("%08x", sum.Sum32())).Replace(table))
	}
	return tables
})

// An address of a pool can be reached through its openings, and not where
// something else listens at all addresses. It is the first packet of a
// connection of TCP that counts: what has begun may end, whatever has become of
// its opening. A fragment that is not the first has no port, and has to pass; without
// the first one it comes to nothing. (That a first one may be too short to have
// the flags is what RFC 1858 section 4 is about.) What this machine sends itself (lo) passes.
//
// There is nothing of conntrack in it, which would follow every connection then.
const inetTable = `table inet TABLE {
	set addresses4 {
		type ipv4_addr
	}
	set addresses6 {
		type ipv6_addr
	}
	set openings4 {
		type ifname . ipv4_addr . inet_proto . inet_service
	}
	set openings6 {
		type ifname . ipv6_addr . inet_proto . inet_service
	}
	set everywhere4 {
		type ipv4_addr . inet_proto . inet_service
	}
	set everywhere6 {
		type ipv6_addr . inet_proto . inet_service
	}
	chain prerouting {
		type filter hook prerouting priority -150
		policy accept
		iifname "lo" return comment "this machine itself SUM"
		ip daddr @addresses4 goto to4 comment "to an address of a pool SUM"
		ip6 daddr @addresses6 goto to6 comment "to an address of a pool SUM"
	}
	chain to4 {
		meta l4proto tcp ip frag-off & 0x1fff == 1 drop comment "the flags were not in the first fragment SUM"
		ip frag-off & 0x1fff != 0 return comment "not the first fragment SUM"
		ip daddr . meta l4proto . th dport @everywhere4 return comment "open at every interface SUM"
		tcp flags & (fin|syn|rst|ack) == syn iifname . ip daddr . meta l4proto . th dport != @openings4 reject with tcp reset comment "not open SUM"
		meta l4proto { udp, sctp } iifname . ip daddr . meta l4proto . th dport != @openings4 reject with icmp type port-unreachable comment "not open SUM"
	}
	chain to6 {
		meta l4proto tcp frag frag-off 1 drop comment "the flags were not in the first fragment SUM"
		frag frag-off != 0 return comment "not the first fragment SUM"
		ip6 daddr . meta l4proto . th dport @everywhere6 return comment "open at every interface SUM"
		tcp flags & (fin|syn|rst|ack) == syn iifname . ip6 daddr . meta l4proto . th dport != @openings6 reject with tcp reset comment "not open SUM"
		meta l4proto { udp, sctp } iifname . ip6 daddr . meta l4proto . th dport != @openings6 reject with icmpv6 type port-unreachable comment "not open SUM"
	}
}
`

// An address answers ARP at its own interface, also where the kernel would let
// all of them answer (arp_ignore=0). Where the way from it to somebody leads
// through another one, it is not named when that one asks for somebody's hardware
// address, or that somebody would learn the wrong one (arp_announce=0): the
// sender is nobody, as in a probe, which is answered all the same (RFC 5227
// section 2.1.1). For IPv6 the kernel is as strict by itself.
const arpTable = `table arp TABLE {
	set addresses {
		type ipv4_addr
	}
	set places {
		type ifname . ipv4_addr
	}
	chain input {
		type filter hook input priority 0
		policy accept
		arp operation request arp daddr ip @addresses iifname . arp daddr ip != @places drop comment "another interface's SUM"
	}
	chain output {
		type filter hook output priority 0
		policy accept
		arp operation request arp saddr ip @addresses oifname . arp saddr ip != @places arp saddr ip set 0.0.0.0 comment "another interface's SUM"
	}
}
`

// element is one of a set: "inet TABLE addresses4".
type element struct{ set, key string }

// elements says what is in the sets, of both tables.
func elements(c content) map[element]bool {
	all := make(map[element]bool, 3*len(c.places)+len(c.openings))
	version := func(a netip.Addr) string {
		if a.Is4() {
			return "4"
		}
		return "6"
	}
	for addr, device := range c.places {
		all[element{"inet " + Table + " addresses" + version(addr), addr.String()}] = true
		if addr.Is4() {
			all[element{"arp " + Table + " addresses", addr.String()}] = true
			all[element{"arp " + Table + " places", fmt.Sprintf("%q . %s", device, addr)}] = true
		}
	}
	for o := range c.openings {
		set := "everywhere"
		if o.device != "" {
			set = "openings"
		}
		all[element{"inet " + Table + " " + set + version(o.addr), o.key()}] = true
	}
	return all
}

func without(all, others map[element]bool) map[element]bool {
	rest := map[element]bool{}
	for e := range all {
		if !others[e] {
			rest[e] = true
		}
	}
	return rest
}

// commands has nft add or delete elements, some at a time, sorted. What is open
// comes before what is closed but for that.
func commands(verb string, all map[element]bool) []string {
	const most = 250 // fit in a message of 200 KB with room to spare
	sets := map[string][]string{}
	for e := range all {
		sets[e.set] = append(sets[e.set], e.key)
	}
	names := slices.SortedFunc(maps.Keys(sets), func(x, y string) int { return strings.Compare(y, x) })
	if verb == "delete" {
		slices.Reverse(names)
	}
	var text []string
	for _, name := range names {
		slices.Sort(sets[name])
		for some := range slices.Chunk(sets[name], most) {
			text = append(text, fmt.Sprintf("%s element %s { %s }\n", verb, name, strings.Join(some, ", ")))
		}
	}
	return text
}
