package dns

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"e13.dev/gatehouse/internal/edge"
)

// Table is what the machines of one zone are answered from the site's names. It
// is pure, and is not changed once it is made.
type Table struct {
	nodes map[string]*node // by name, in lower case, without a dot at its end
	// cuts are the names from which on somebody answers: this server, with its
	// own names or since nobody is to be asked, or others. The longest one that a
	// name ends in decides.
	cuts map[string]cut
	ns   string // this server's name
	ttl  uint32
	// serial of the zones (RFC 1035 §3.3.13).
	serial uint32
}

// node is a name that there is. One without sets is only the end of others'
// names (an empty non-terminal, RFC 8020).
type node struct{ sets []edge.RecordSet }

func (n *node) of(kind string) *edge.RecordSet {
	for i := range n.sets {
		if n.sets[i].Type == kind {
			return &n.sets[i]
		}
	}
	return nil
}

type cut int

const (
	cutNone    cut = iota // the upstreams that are asked for everything
	cutOwn                // authoritative
	cutForward            // those of a Forward
	cutEmpty              // nobody is asked: there is nothing of that name
	cutLocalhost
	cutNoData // likewise, and the names are there
)

// TableOptions are what a Table is made of beside names.
type TableOptions struct {
	Domains    []string       // that the server is authoritative for
	Reverse    []netip.Prefix // likewise, the names of their addresses
	Forwards   []string       // domains that others are asked for
	NameServer string         // this server's name, among the names of the zone; empty: localhost
	TTL        time.Duration
	Serial     uint32
}

// NewTable makes the table of a zone's names.
func NewTable(records []edge.RecordSet, o TableOptions) *Table {
	t := &Table{nodes: make(map[string]*node, len(records)), cuts: maps.Clone(special), ns: cmp.Or(o.NameServer, "localhost"), ttl: uint32(o.TTL / time.Second), serial: o.Serial}
	for _, domain := range o.Forwards {
		t.cuts[domain] = cutForward
	}
	for _, network := range o.Reverse {
		for _, name := range reverseZones(network) {
			t.cuts[name] = cutOwn
		}
	}
	for _, domain := range o.Domains {
		if domain != "" {
			t.cuts[domain] = cutOwn
		}
	}
	for _, r := range records {
		n := t.node(r.Name)
		n.sets = append(n.sets, r)
	}
	for name, kind := range t.cuts {
		if kind == cutOwn {
			t.node(name)
		}
	}
	return t
}

// node returns that of a name, and makes it, with those above it: they exist
// if it does.
func (t *Table) node(name string) *node {
	n := t.nodes[name]
	if n == nil {
		n = &node{}
		t.nodes[name] = n
		for up, more := parent(name); more && up != ""; up, more = parent(up) {
			if t.nodes[up] != nil {
				break
			}
			t.nodes[up] = &node{}
		}
	}
	return n
}

// parent is the name without its first label; false: it had none.
func parent(name string) (string, bool) {
	if name == "" {
		return "", false
	}
	at, end := dns.NextLabel(name, 0) // which knows of dots that are part of a label
	if end {
		return "", true
	}
	return name[at:], true
}

// below says whether name is domain or ends in its labels.
func below(name, domain string) bool {
	for len(name) > len(domain) {
		name, _ = parent(name)
	}
	return name == domain
}

// decides returns who answers for a name, and from which name on.
func (t *Table) decides(name string) (string, cut) {
	for {
		if c, ok := t.cuts[name]; ok {
			return name, c
		}
		up, more := parent(name)
		if !more {
			return "", cutNone
		}
		name = up
	}
}

// reverseZones are the names of the addresses of a network (RFC 1035 §3.5, RFC
// 3596 §2.5): one, or where its length is not that of a label, those of its parts.
func reverseZones(network netip.Prefix) []string {
	network = network.Masked()
	step, format := 8, "%d."
	if network.Addr().Is6() {
		step, format = 4, "%x."
	}
	length := (network.Bits() + step - 1) / step * step
	if length == 0 {
		length = step
	}
	raw := network.Addr().AsSlice()
	var names []string
	for i := range 1 << (length - network.Bits()) {
		var b strings.Builder
		for bits := length; bits > 0; bits -= step {
			label := int(raw[(bits-1)/8])
			if step == 4 {
				if bits%8 == 0 {
					label &= 0xf
				} else {
					label >>= 4
				}
			}
			if bits == length {
				label |= i
			}
			fmt.Fprintf(&b, format, label)
		}
		if step == 8 {
			b.WriteString("in-addr.arpa")
		} else {
			b.WriteString("ip6.arpa")
		}
		names = append(names, b.String())
	}
	return names
}
