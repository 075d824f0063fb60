package nat

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

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
	s := newServing(rows, names)
	return k.remove(func() (map[string][]nft.Element, error) {
		stale := map[string][]nft.Element{}
		for _, p := range protocols {
			err := errors.Join(
				s.stale4(stale, wildcard, p.word, p.protocol), s.stale6(stale, wildcard, p.word, p.protocol),
				s.stale4(stale, addressed(4), p.word, p.protocol), s.stale6(stale, addressed(6), p.word, p.protocol),
			)
			if err != nil {
				return nil, err
			}
		}
		return stale, nil
	})
}

// serving says which backends clients may be remembered with.
type serving struct {
	rows    map[edge.Door]row
	devices map[uint32]string              // the names of interfaces
	told    map[told][]netip.AddrPort      // of doors that have an address of IPv6, sorted
	sorted  map[edge.Door][]netip.AddrPort // of the others, as far as asked for
}

func newServing(rows map[edge.Door]row, devices map[uint32]string) serving {
	s := serving{rows, devices, map[told][]netip.AddrPort{}, map[edge.Door][]netip.AddrPort{}}
	for door, row := range rows {
		if namesOf(door).version == 6 && row.remembers() {
			at := toldOf(door)
			s.told[at] = append(s.told[at], row.backends()...) // at another interface, too
		}
	}
	for _, backends := range s.told {
		slices.SortFunc(backends, netip.AddrPort.Compare)
	}
	return s
}

// has says whether the door that a key begins with remembers clients with that
// backend.
func (s serving) has(n names, protocol edge.Protocol, key []byte, backend netip.AddrPort) bool {
	if n.version == 6 {
		at := told{protocol, binary.BigEndian.Uint16(key[partBytes:]), binary.NativeEndian.Uint32(key)}
		_, found := slices.BinarySearchFunc(s.told[at], backend, netip.AddrPort.Compare)
		return found
	}
	door := edge.Door{Protocol: protocol, Listen: edge.Listen{Device: s.devices[binary.NativeEndian.Uint32(key)]}}
	key = key[partBytes:]
	if n.version == 4 {
		door.Listen.Addr = netip.AddrFrom4([4]byte(key))
		key = key[partBytes:]
	}
	door.Listen.Port = binary.BigEndian.Uint16(key)
	if door.Listen.Device == "" || !s.rows[door].remembers() {
		return false
	}
	if _, ok := s.sorted[door]; !ok {
		s.sorted[door] = s.rows[door].backends()
	}
	_, found := slices.BinarySearchFunc(s.sorted[door], backend, netip.AddrPort.Compare)
	return found
}

// What a key takes that is remembered by, at least: the door and the client.
const clientKeyBytes = 3 * partBytes

func (s serving) stale4(stale map[string][]nft.Element, n names, word string, protocol edge.Protocol) error {
	const addrBytes = 4
	set := n.of(word, 4, affinity)
	elements, err := nft.Elements(Table, set)
	for _, e := range elements {
		if len(e.Key) < clientKeyBytes || len(e.Value) != addrBytes+partBytes || !s.has(n, protocol, e.Key, decodeAddrPort(e.Value, addrBytes)) {
			stale[set] = append(stale[set], e)
		}
	}
	return err
}

// stale6 knows that a backend of IPv6 is in two maps, by the same key.
func (s serving) stale6(stale map[string][]nft.Element, n names, word string, protocol edge.Protocol) error {
	const addrBytes = 16
	set, setPort := n.of(word, 6, affinity), n.of(word, 6, affinityPort)
	v6, err6 := nft.Elements(Table, set)
	ports, errPort := nft.Elements(Table, setPort)
	if err := errors.Join(err6, errPort); err != nil {
		return err
	}
	addrs := map[string][]byte{}
	for _, e := range v6 {
		addrs[string(e.Key)] = e.Value
	}
	sound := map[string]bool{}
	for _, e := range ports {
		addr := addrs[string(e.Key)]
		if len(e.Key) >= clientKeyBytes && len(addr) == addrBytes && len(e.Value) >= 2 && s.has(n, protocol, e.Key, decodeAddrPort(slices.Concat(addr, e.Value), addrBytes)) {
			sound[string(e.Key)] = true
		} else {
			stale[setPort] = append(stale[setPort], e)
		}
	}
	for _, e := range v6 {
		if !sound[string(e.Key)] {
			stale[set] = append(stale[set], e)
		}
	}
	return nil
}
