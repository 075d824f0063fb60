package nat

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/nft"
)

// Count is what the kernel has counted of one door and one backend since the
// table was made. Bytes are of IP packets, with their headers.
type Count struct {
	Door        edge.Door
	Backend     netip.AddrPort
	Connections uint64 // or UDP flows, as conntrack tells them apart

	PacketsToBackend, BytesToBackend uint64
	PacketsToClient, BytesToClient   uint64
}

// Counters returns what has been counted, sorted by door and backend. What has
// come through others' DNAT is there as well: the caller knows its doors. Of
// interfaces that are not there any more there is nothing.
func (a *Applier) Counters(context.Context) ([]Count, error) {
	if exists, err := tableExists(); err != nil || !exists {
		return nil, err
	}
	type flow struct {
		door    edge.Door
		backend netip.AddrPort
	}
	counts := map[flow]*Count{}
	err := visitCounted(func(_, what string, d edge.Door, backend netip.AddrPort, e nft.Element) {
		if d.Listen.Device == "" || !e.Counted {
			return
		}
		c := counts[flow{d, backend}]
		if c == nil {
			c = &Count{Door: d, Backend: backend}
			counts[flow{d, backend}] = c
		}
		// Assigned, not added: one that the kernel lists twice, as it may while a
		// set grows, is one.
		switch what {
		case connections:
			c.Connections = e.Packets
		case toBackends:
			c.PacketsToBackend, c.BytesToBackend = e.Packets, e.Bytes
		case toClients:
			c.PacketsToClient, c.BytesToClient = e.Packets, e.Bytes
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nat: read counters: %w", explain(err))
	}
	all := make([]Count, 0, len(counts))
	for _, c := range counts {
		all = append(all, *c)
	}
	slices.SortFunc(all, func(x, y Count) int {
		return cmp.Or(compareDoors(x.Door, y.Door), x.Backend.Compare(y.Backend))
	})
	return all, nil
}

// Forget deletes the counts that keep does not want, and those of interfaces
// that are gone. If packets still come for one, it begins again.
func (a *Applier) Forget(_ context.Context, keep func(edge.Door, netip.AddrPort) bool) error {
	k, err := openKernel()
	if err != nil {
		return fmt.Errorf("nat: forget counters: %w", explain(err))
	}
	defer k.close()
	if exists, err := k.exists(); err != nil || !exists {
		return err
	}
	err = k.remove(func() (map[string][]nft.Element, error) {
		unwanted := map[string][]nft.Element{}
		err := visitCounted(func(set, _ string, d edge.Door, backend netip.AddrPort, e nft.Element) {
			if d.Listen.Device == "" || !keep(d, backend) {
				unwanted[set] = append(unwanted[set], e)
			}
		})
		return unwanted, err
	})
	if err != nil {
		return fmt.Errorf("nat: forget counters: %w", explain(err))
	}
	return nil
}

// counted visits what is in the sets that count. The door of an interface that is
// gone has no device.
func visitCounted(visit func(set, what string, d edge.Door, backend netip.AddrPort, e nft.Element)) error {
	devices, err := interfaceNames()
	if err != nil {
		return err
	}
	for _, p := range protocols {
		for _, v := range versions {
			for _, n := range []names{wildcard, addressed(v.number)} {
				for _, what := range []string{connections, toBackends, toClients} {
					set := n.of(p.word, v.number, what)
					elements, err := nft.Elements(Table, set)
					if errors.Is(err, os.ErrNotExist) { // of another layout
						continue
					}
					if err != nil {
						return err
					}
					for _, e := range elements {
						if listen, backend, ok := decodeCounted(n, e.Key, v.bytes, devices); ok {
							visit(set, what, edge.Door{Protocol: p.protocol, Listen: listen}, backend, e)
						}
					}
				}
			}
		}
	}
	return nil
}

// decodeCounted takes apart the key of what is counted: the interface, the
// address and the port that the client used, and the backend.
func decodeCounted(n names, key []byte, addrBytes int, devices map[uint32]string) (listen edge.Listen, backend netip.AddrPort, ok bool) {
	size := n.addrBytes()
	if len(key) != 3*partBytes+size+addrBytes {
		return listen, backend, false
	}
	listen.Device = devices[binary.NativeEndian.Uint32(key)]
	key = key[partBytes:]
	if size > 0 {
		listen.Addr, _ = netip.AddrFromSlice(key[:size])
		key = key[size:]
	}
	listen.Port = binary.BigEndian.Uint16(key)
	return listen, decodeAddrPort(key[partBytes:], addrBytes), true
}
