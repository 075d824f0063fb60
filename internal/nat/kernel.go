package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
)

// The kernel is read by netlink: nft would print all elements as text, which
// takes it seconds with many of them, and its text differs between versions.

// kernel is a connection to the kernel in the network namespace of the thread.
type kernel struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func openKernel() (kernel, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return kernel{}, err
	}
	return kernel{conn: conn, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}}, nil
}

func (k kernel) close() { _ = k.conn.CloseLasting() }

// exists says whether there is a table.
func (k kernel) exists() (bool, error) {
	tables, err := k.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == Table }), nil
}

func tableExists() (bool, error) {
	k, err := openKernel()
	if err != nil {
		return false, fmt.Errorf("nat: %w", explain(err))
	}
	defer k.close()
	exists, err := k.exists()
	if err != nil {
		return false, fmt.Errorf("nat: %w", explain(err))
	}
	return exists, nil
}

// readKernel reads the table.
func readKernel() (found, error) {
	k, err := openKernel()
	if err != nil {
		return found{}, err
	}
	defer k.close()
	f := found{}
	if f.exists, err = k.exists(); err != nil || !f.exists {
		return f, err
	}
	f.chains, err = k.chains()
	if err == nil {
		f.rows, f.hairpins, err = readRows()
	}
	if errors.Is(err, errLayout) {
		return found{exists: true, other: true}, nil
	}
	return f, err
}

// chains compares what is not elements with the layout, and returns the chains
// that are beside that.
func (k kernel) chains() (map[string]bool, error) {
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	sets, err := k.conn.GetSets(k.table)
	if err != nil {
		return nil, err
	}
	rules, err := readRules()
	if err != nil {
		return nil, err
	}
	beside, want, have := map[string]bool{}, outline(layout()), rules
	for _, c := range chains {
		if c.Table.Name != Table {
			continue
		}
		have = append(have, "chain "+c.Name)
		if madeWhenNeeded.MatchString(c.Name) {
			beside[c.Name] = true
			want = append(want, outline(chainOf(c.Name))...)
		}
	}
	for _, s := range sets {
		if !s.Anonymous {
			have = append(have, "set "+s.Name)
		}
	}
	// By what they belong to alone: the rules of a chain have an order.
	order := func(x, y string) int { return strings.Compare(head(x), head(y)) }
	slices.SortStableFunc(have, order)
	slices.SortStableFunc(want, order)
	if !slices.Equal(have, want) {
		return nil, errLayout
	}
	return beside, nil
}

// rules returns a line for each rule of the table, in their order in each chain.
func readRules() ([]string, error) {
	messages, err := dump(unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, attribute{unix.NFTA_RULE_TABLE, Table})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var lines []string
	for _, m := range messages {
		var table, chain, comment string
		for kind, value := range attributes(m) {
			switch kind {
			case unix.NFTA_RULE_TABLE:
				table = text(value)
			case unix.NFTA_RULE_CHAIN:
				chain = text(value)
			case unix.NFTA_RULE_USERDATA:
				comment, _ = userdata.GetString(value, userdata.TypeComment)
			}
		}
		if table == Table { // a kernel may list all
			lines = append(lines, "rule "+chain+" "+comment)
		}
	}
	return lines, nil
}

// outline is a line for each chain, set, map and rule; of a rule the comment.
func outline(objects []knftables.Object) []string {
	var lines []string
	for _, o := range objects {
		switch o := o.(type) {
		case *knftables.Chain:
			lines = append(lines, "chain "+o.Name)
		case *knftables.Set:
			lines = append(lines, "set "+o.Name)
		case *knftables.Map:
			lines = append(lines, "set "+o.Name)
		case *knftables.Rule:
			lines = append(lines, "rule "+o.Chain+" "+*o.Comment)
		}
	}
	return lines
}

func head(line string) string {
	if fields := strings.SplitN(line, " ", 3); fields[0] == "rule" {
		return fields[0] + " " + fields[1]
	}
	return line
}

// rows reads the elements.
func readRows() (map[edge.Door]row, map[[2]string]bool, error) {
	rows, pairs := map[edge.Door]*row{}, map[[2]string]bool{}
	at := func(d edge.Door) *row {
		if rows[d] == nil {
			rows[d] = new(row)
		}
		return rows[d]
	}
	each := func(set string, visit func(edge.Door, doorElement) error) error {
		elements, err := elementsOf(set)
		if err != nil {
			return err
		}
		for _, e := range elements {
			door, rest, err := decodeDoor(e.key)
			if err == nil {
				err = visit(door, doorElement{e, rest})
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	for _, v := range versions {
		version := strconv.Itoa(v.number)
		way := func(r *row) *way {
			if v.number == 4 {
				return &r.v4
			}
			return &r.v6
		}
		for _, err := range []error{
			each(doors+version, func(d edge.Door, e doorElement) (err error) {
				way(at(d)).chain, err = decodeVerdict(e.value)
				return err
			}),
			each(sources+version, func(d edge.Door, e doorElement) error {
				prefix, err := decodePrefix(e, v.bytes)
				at(d).sources = append(at(d).sources, prefix)
				return err
			}),
		} {
			if err != nil {
				return nil, nil, err
			}
		}
	}
	for _, p := range protocols {
		for _, v := range versions {
			elements, err := elementsOf(of(p.word, v.number, backends))
			if err != nil {
				return nil, nil, err
			}
			for _, e := range elements {
				door, slot, backend, err := decodeSlot(p.protocol, e, v.bytes)
				if err != nil {
					return nil, nil, err
				}
				w := &at(door).v4
				if v.number == 6 {
					w = &at(door).v6
				}
				if missing := slot + 1 - len(w.slots); missing > 0 {
					w.slots = append(w.slots, make([]netip.AddrPort, missing)...)
				}
				w.slots[slot] = backend
			}
		}
	}
	for _, err := range []error{
		each(frontends, func(d edge.Door, _ doorElement) error { at(d).open = true; return nil }),
		each(restricted, func(d edge.Door, _ doorElement) error { at(d).restricted = true; return nil }),
		each(masqueraded, func(d edge.Door, _ doorElement) error { at(d).masqueraded = true; return nil }),
		each(remembered, func(d edge.Door, e doorElement) (err error) {
			at(d).remember, err = decodeVerdict(e.value)
			return err
		}),
	} {
		if err != nil {
			return nil, nil, err
		}
	}
	elements, err := elementsOf(hairpins)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range elements {
		if len(e.key) != 2*nameBytes {
			return nil, nil, errLayout
		}
		pairs[[2]string{decodeName(e.key), decodeName(e.key[nameBytes:])}] = true
	}
	decoded := make(map[edge.Door]row, len(rows))
	for door, r := range rows {
		slices.SortFunc(r.sources, comparePrefixes)
		decoded[door] = *r
	}
	return decoded, pairs, nil
}

// doorElement is one whose key begins with a door.
type doorElement struct {
	element
	rest []byte // of the key
}

// Each part of a key takes a multiple of 4 bytes; what is shorter comes first.
const (
	nameBytes = 16 // IFNAMSIZ
	partBytes = 4
	mostSlots = 1 << 16
)

// decodeDoor takes the interface, the protocol and the port off a key.
func decodeDoor(key []byte) (edge.Door, []byte, error) {
	if len(key) < nameBytes+2*partBytes {
		return edge.Door{}, nil, errLayout
	}
	protocol, err := decodeProtocol(key[nameBytes])
	port := binary.BigEndian.Uint16(key[nameBytes+partBytes:])
	return edge.Door{Protocol: protocol, Listen: edge.Listen{Device: decodeName(key), Port: port}}, key[nameBytes+2*partBytes:], err
}

func decodeName(b []byte) string {
	name, _, _ := strings.Cut(string(b[:nameBytes]), "\x00")
	return name
}

func decodeProtocol(number byte) (edge.Protocol, error) {
	for _, p := range protocols {
		if p.number == number {
			return p.protocol, nil
		}
	}
	return "", errLayout
}

// decodeVerdict returns the chain that a verdict goes or jumps to.
func decodeVerdict(b []byte) (string, error) {
	for kind, value := range attributes(b) {
		if kind == unix.NFTA_VERDICT_CHAIN {
			return text(value), nil
		}
	}
	return "", errLayout
}

// decodeSlot takes apart an element of a map of backends: the interface, the port
// and the slot.
func decodeSlot(protocol edge.Protocol, e element, addrBytes int) (edge.Door, int, netip.AddrPort, error) {
	if len(e.key) != nameBytes+2*partBytes || len(e.value) != addrBytes+partBytes {
		return edge.Door{}, 0, netip.AddrPort{}, errLayout
	}
	slot := binary.NativeEndian.Uint32(e.key[nameBytes+partBytes:])
	if slot >= mostSlots {
		return edge.Door{}, 0, netip.AddrPort{}, errLayout
	}
	door := edge.Door{Protocol: protocol, Listen: edge.Listen{Device: decodeName(e.key), Port: binary.BigEndian.Uint16(e.key[nameBytes:])}}
	return door, int(slot), decodeAddrPort(e.value, addrBytes), nil
}

// decodeAddrPort decodes an address and the port behind it, from a slice that is
// long enough.
func decodeAddrPort(b []byte, addrBytes int) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(b[:addrBytes])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[addrBytes:]))
}

// decodePrefix makes a prefix of the interval from the key to its end. The
// kernel has an end for all of a concatenation; those of the door are no
// intervals.
func decodePrefix(e doorElement, addrBytes int) (netip.Prefix, error) {
	if len(e.rest) != addrBytes {
		return netip.Prefix{}, errLayout
	}
	last := e.rest
	if e.end != nil {
		if len(e.end) != len(e.key) || !slices.Equal(e.end[:len(e.key)-addrBytes], e.key[:len(e.key)-addrBytes]) {
			return netip.Prefix{}, errLayout
		}
		last = e.end[len(e.end)-addrBytes:]
	}
	from, _ := netip.AddrFromSlice(e.rest)
	to, _ := netip.AddrFromSlice(last)
	for bits := 0; bits <= from.BitLen(); bits++ {
		p := netip.PrefixFrom(from, bits)
		if p.Masked() == p && p.Contains(to) && endOf(p) == to {
			return p, nil
		}
	}
	return netip.Prefix{}, errLayout
}

// endOf is the last address of a prefix.
func endOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if host := 8*(i+1) - p.Bits(); host >= 8 {
			b[i] = 0xff
		} else if host > 0 {
			b[i] |= 1<<host - 1
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// forgetClients deletes what is remembered of clients whose backend is not one
// of the door's any more.
func forgetClients(rows map[edge.Door]row) error {
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	names, err := interfaceNames()
	if err != nil {
		return err
	}
	serving := map[edge.Door][]netip.AddrPort{}
	serves := func(protocol edge.Protocol, key []byte, backend netip.AddrPort) bool {
		device, there := names[binary.NativeEndian.Uint32(key)]
		door := edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Port: binary.BigEndian.Uint16(key[partBytes:])}}
		if !there || !rows[door].remembers() {
			return false
		}
		if _, ok := serving[door]; !ok {
			serving[door] = rows[door].backends()
		}
		_, found := slices.BinarySearchFunc(serving[door], backend, netip.AddrPort.Compare)
		return found
	}
	return k.remove(func() (map[string][]element, error) {
		stale := map[string][]element{}
		for _, p := range protocols {
			set4, set6, setPort := of(p.word, 4, affinity), of(p.word, 6, affinity), of(p.word, 6, affinityPort)
			v4, err4 := elementsOf(set4)
			v6, err6 := elementsOf(set6)
			ports, errPort := elementsOf(setPort)
			if err := errors.Join(err4, err6, errPort); err != nil {
				return nil, err
			}
			for _, e := range v4 {
				if len(e.key) < 2*partBytes || len(e.value) != 4+partBytes || !serves(p.protocol, e.key, decodeAddrPort(e.value, 4)) {
					stale[set4] = append(stale[set4], e)
				}
			}
			// A backend of IPv6 is in two maps, by the same key.
			addrs := map[string][]byte{}
			for _, e := range v6 {
				addrs[string(e.key)] = e.value
			}
			sound := map[string]bool{}
			for _, e := range ports {
				addr := addrs[string(e.key)]
				if len(e.key) >= 2*partBytes && len(addr) == 16 && len(e.value) >= 2 && serves(p.protocol, e.key, decodeAddrPort(slices.Concat(addr, e.value), 16)) {
					sound[string(e.key)] = true
				} else {
					stale[setPort] = append(stale[setPort], e)
				}
			}
			for _, e := range v6 {
				if !sound[string(e.key)] {
					stale[set6] = append(stale[set6], e)
				}
			}
		}
		return stale, nil
	})
}

// remove deletes the elements of sets that find has found. Those that have timed
// out, or were deleted by somebody else, in the meantime make all of it fail: it
// is tried again.
func (k kernel) remove(find func() (map[string][]element, error)) (err error) {
	const (
		attempts = 5
		together = 500 // elements, in a message of at most 64 KiB
	)
	for range attempts {
		found, e := find()
		if e != nil {
			return e
		}
		err = nil
		for name, elements := range found {
			for part := range slices.Chunk(elements, together) {
				keys := make([]nftables.SetElement, len(part))
				for i := range part {
					keys[i].Key = part[i].key
				}
				e := k.conn.SetDeleteElements(&nftables.Set{Table: k.table, Name: name}, keys)
				if e == nil {
					e = k.conn.Flush()
				}
				if e != nil {
					err = errors.Join(err, fmt.Errorf("delete elements of %s: %w", name, e))
				}
			}
		}
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return err
}

// interfaceNames returns the names of this machine's interfaces by index.
func interfaceNames() (map[uint32]string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for _, i := range interfaces {
		names[uint32(i.Index)] = i.Name
	}
	return names, nil
}
