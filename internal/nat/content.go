package nat

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

// readContent reads the elements that are not written by packets.
func readContent() (content, error) {
	r := reader{map[edge.Door]*row{}}
	c := content{rows: map[edge.Door]row{}, hairpins: map[[2]string]bool{}, addresses: map[netip.Addr]bool{}, counting: map[lane]string{}}
	for _, n := range []names{wildcard, addressed(4), addressed(6)} {
		if err := r.readDoors(n); err != nil {
			return content{}, err
		}
		if err := r.readSlots(n); err != nil {
			return content{}, err
		}
	}
	for door, r := range r.rows {
		slices.SortFunc(r.sources, comparePrefixes)
		c.rows[door] = *r
	}
	return c, errors.Join(
		readElements(hairpins, func(e nft.Element) error {
			if len(e.Key) != 2*nameBytes {
				return errLayout
			}
			c.hairpins[[2]string{decodeName(e.Key), decodeName(e.Key[nameBytes:])}] = true
			return nil
		}),
		readElements(addresses+"4", c.readAddress),
		readElements(addresses+"6", c.readAddress),
		readElements(counting, func(e nft.Element) error {
			way, err := decodeLane(e.Key)
			if err == nil {
				c.counting[way], err = decodeVerdict(e.Value)
			}
			return err
		}),
	)
}

func (c *content) readAddress(e nft.Element) error {
	addr, ok := netip.AddrFromSlice(e.Key)
	if !ok {
		return errLayout
	}
	c.addresses[addr] = true
	return nil
}

func readElements(set string, visit func(nft.Element) error) error {
	elements, err := nft.Elements(Table, set)
	if err != nil {
		return err
	}
	for _, e := range elements {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// reader collects what there is of each door.
type reader struct{ rows map[edge.Door]*row }

func (r reader) at(d edge.Door) *row {
	if r.rows[d] == nil {
		r.rows[d] = new(row)
	}
	return r.rows[d]
}

func (r *row) way(version int) *way {
	if version == 4 {
		return &r.v4
	}
	return &r.v6
}

// readDoors reads what is found by a door.
func (r reader) readDoors(n names) error {
	each := func(set string, visit func(*row, doorElement) error) error {
		return readElements(set, func(e nft.Element) error {
			door, rest, err := decodeDoor(n, e.Key)
			if err != nil {
				return err
			}
			return visit(r.at(door), doorElement{e, rest})
		})
	}
	errs := []error{
		each(n.set(frontends, 0), func(r *row, _ doorElement) error { r.open = true; return nil }),
		each(n.set(restricted, 0), func(r *row, _ doorElement) error { r.restricted = true; return nil }),
		each(n.set(masqueraded, 0), func(r *row, _ doorElement) error { r.masqueraded = true; return nil }),
		each(n.set(remembered, 0), func(r *row, e doorElement) (err error) {
			r.remember, err = decodeVerdict(e.Value)
			return err
		}),
	}
	for _, v := range n.versions() {
		errs = append(errs,
			each(n.set(doors, v.number), func(r *row, e doorElement) (err error) {
				r.way(v.number).chain, err = decodeVerdict(e.Value)
				return err
			}),
			each(n.set(sources, v.number), func(r *row, e doorElement) error {
				prefix, err := decodePrefix(e, v.bytes)
				r.sources = append(r.sources, prefix)
				return err
			}))
	}
	return errors.Join(errs...)
}

// readSlots reads the backends of the doors that were read.
func (r reader) readSlots(n names) error {
	devices := map[uint32][]string{}
	if n.version == 6 {
		seen := map[string]bool{}
		for door := range r.rows {
			if name := door.Listen.Device; !seen[name] {
				seen[name] = true
				devices[hashOfDevice(name)] = append(devices[hashOfDevice(name)], name)
			}
		}
	}
	device := func(hash uint32, at edge.Door) string {
		for _, name := range devices[hash] {
			if at.Listen.Device = name; r.rows[at] != nil {
				return name
			}
		}
		return ""
	}
	for _, p := range protocols {
		for _, v := range n.versions() {
			err := readElements(n.of(p.word, v.number, backends), func(e nft.Element) error {
				door, slot, backend, err := decodeSlot(n, p.protocol, e, v.bytes, device)
				if err != nil {
					return err
				}
				w := r.at(door).way(v.number)
				if missing := slot + 1 - len(w.slots); missing > 0 {
					w.slots = append(w.slots, make([]netip.AddrPort, missing)...)
				}
				w.slots[slot] = backend
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// doorElement is one whose key begins with a door.
type doorElement struct {
	nft.Element
	rest []byte // of the key
}

// Each part of a key takes a multiple of 4 bytes; what is shorter comes first.
const (
	nameBytes = 16 // IFNAMSIZ
	partBytes = 4
	mostSlots = 1 << 16
)

// decodeDoor takes the interface, the address, the protocol and the port off a
// key.
func decodeDoor(n names, key []byte) (edge.Door, []byte, error) {
	size := n.addrBytes()
	if len(key) < nameBytes+size+2*partBytes {
		return edge.Door{}, nil, errLayout
	}
	listen := edge.Listen{Device: decodeName(key)}
	key = key[nameBytes:]
	if size > 0 {
		listen.Addr, _ = netip.AddrFromSlice(key[:size])
		key = key[size:]
	}
	protocol, err := decodeProtocol(key[0])
	listen.Port = binary.BigEndian.Uint16(key[partBytes:])
	return edge.Door{Protocol: protocol, Listen: listen}, key[2*partBytes:], err
}

// addrBytes is how long the address of these doors is.
func (n names) addrBytes() int {
	if n.version == 0 {
		return 0
	}
	return versionNumber(n.version).bytes
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
	for kind, value := range nft.Attributes(b) {
		if kind == unix.NFTA_VERDICT_CHAIN {
			return nft.Text(value), nil
		}
	}
	return "", errLayout
}

// decodeSlot takes apart an element of a map of backends: the door and the slot.
// device says which interface it is whose hash is there and not its name.
func decodeSlot(n names, protocol edge.Protocol, e nft.Element, addrBytes int, device func(hash uint32, at edge.Door) string) (edge.Door, int, netip.AddrPort, error) {
	key, first, size := e.Key, nameBytes, n.addrBytes()
	if n.version == 6 {
		first = partBytes
	}
	if len(key) != first+size+2*partBytes || len(e.Value) != addrBytes+partBytes {
		return edge.Door{}, 0, netip.AddrPort{}, errLayout
	}
	door := edge.Door{Protocol: protocol, Listen: edge.Listen{Port: binary.BigEndian.Uint16(key[first+size:])}}
	if size > 0 {
		door.Listen.Addr, _ = netip.AddrFromSlice(key[first : first+size])
	}
	if n.version == 6 {
		door.Listen.Device = device(binary.NativeEndian.Uint32(key), door)
	} else {
		door.Listen.Device = decodeName(key)
	}
	slot := binary.NativeEndian.Uint32(key[first+size+partBytes:])
	if slot >= mostSlots || door.Listen.Device == "" {
		return edge.Door{}, 0, netip.AddrPort{}, errLayout
	}
	return door, int(slot), decodeAddrPort(e.Value, addrBytes), nil
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
	if e.End != nil {
		if len(e.End) != len(e.Key) || !slices.Equal(e.End[:len(e.Key)-addrBytes], e.Key[:len(e.Key)-addrBytes]) {
			return netip.Prefix{}, errLayout
		}
		last = e.End[len(e.End)-addrBytes:]
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

// decodeLane takes apart a key of the map that says what counts.
func decodeLane(key []byte) (lane, error) {
	const reply = 1 // IP_CT_DIR_REPLY
	families := map[byte]int{unix.NFPROTO_IPV4: 4, unix.NFPROTO_IPV6: 6}
	if len(key) != 3*partBytes {
		return lane{}, errLayout
	}
	protocol, err := decodeProtocol(key[2*partBytes])
	way := lane{key[0] == reply, families[key[partBytes]], wordOf(protocol)}
	if way.version == 0 {
		return lane{}, errLayout
	}
	return way, err
}
