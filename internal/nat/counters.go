package nat

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"e13.dev/gatehouse/internal/edge"
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
	k, err := openKernel()
	if err != nil {
		return nil, fmt.Errorf("nat: read counters: %w", explain(err))
	}
	defer k.close()
	if exists, err := k.exists(); err != nil || !exists {
		return nil, err
	}
	type flow struct {
		door    edge.Door
		backend netip.AddrPort
	}
	counts := map[flow]*Count{}
	err = k.counted(func(_, what string, d edge.Door, backend netip.AddrPort, e nftables.SetElement) {
		if d.Listen.Device == "" || e.Counter == nil {
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
			c.Connections = e.Counter.Packets
		case toBackends:
			c.PacketsToBackend, c.BytesToBackend = e.Counter.Packets, e.Counter.Bytes
		case toClients:
			c.PacketsToClient, c.BytesToClient = e.Counter.Packets, e.Counter.Bytes
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
	err = k.remove(func() (map[string][]nftables.SetElement, error) {
		unwanted := map[string][]nftables.SetElement{}
		err := k.counted(func(set, _ string, d edge.Door, backend netip.AddrPort, e nftables.SetElement) {
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
func (k kernel) counted(visit func(set, what string, d edge.Door, backend netip.AddrPort, e nftables.SetElement)) error {
	names, err := interfaceNames()
	if err != nil {
		return err
	}
	for _, p := range protocols {
		for _, v := range versions {
			for _, what := range []string{connections, toBackends, toClients} {
				set := of(p.word, v.number, what)
				elements, err := k.elements(set)
				if err != nil {
					return err
				}
				for _, e := range elements {
					// The interface, the port that the client used, and the backend.
					if len(e.Key) != 3*partBytes+v.bytes {
						continue
					}
					door := edge.Door{Protocol: p.protocol, Listen: edge.Listen{
						Device: names[binary.NativeEndian.Uint32(e.Key)],
						Port:   binary.BigEndian.Uint16(e.Key[partBytes:]),
					}}
					visit(set, what, door, decodeAddrPort(e.Key[2*partBytes:], v.bytes), e)
				}
			}
		}
	}
	return nil
}
