package relay

import (
	"net"
	"net/netip"
	"slices"

	"e13.dev/gatehouse/internal/edge"
)

// vicinity is what has to be known of this machine to tell whether a backend's
// answers to a client's own address come here. It does not change; each Apply
// makes new ones for the tables of transparent frontends.
type vicinity struct {
	own      map[netip.Addr]bool
	networks []netip.Prefix // that this machine has an address in
	// speaker is the address of this machine that a backend would see otherwise:
	// it is in the network by which the backend is reached.
	speaker map[netip.Addr]netip.Addr
}

// table is newTable, with the vicinity that a transparent frontend needs.
func (m *machine) table(f edge.Frontend) *table {
	t := newTable(f)
	if f.Transparent {
		if m.vicinity == nil {
			m.vicinity = look()
		}
		t.vicinity = m.vicinity.of(f.Backends)
	}
	return t
}

func look() *vicinity {
	v := &vicinity{own: map[netip.Addr]bool{}}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return v
	}
	for _, a := range addrs {
		network, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(network.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		bits, _ := network.Mask.Size()
		v.own[addr] = true
		v.networks = append(v.networks, netip.PrefixFrom(addr, bits).Masked())
	}
	return v
}

// of is the vicinity with regard to some backends.
func (v *vicinity) of(backends []edge.Backend) *vicinity {
	w := &vicinity{own: v.own, networks: v.networks, speaker: make(map[netip.Addr]netip.Addr, len(backends))}
	for _, b := range backends {
		if to := b.Addr.Addr(); !w.speaker[to].IsValid() {
			w.speaker[to] = speaker(b.Addr)
		}
	}
	return w
}

// speaker asks the kernel for the address that it would speak from. Nothing is
// sent.
func speaker(to netip.AddrPort) netip.Addr {
	fd, errno := datagramSocket(familyOf(to.Addr()))
	if errno != 0 {
		return netip.Addr{}
	}
	defer closeFD(fd)
	if connect(fd, to) != 0 {
		return netip.Addr{} // there is no way to it now
	}
	return boundTo(int(fd)).Addr()
}

// seesClient says whether a backend can be connected to from the client's own
// address, so that its answers come here:
//
//   - both are of one family;
//   - the client's address is one host's, and means the same everywhere: it is no
//     loopback or link-local one, nor what else a PROXY protocol header may name;
//   - the client is somewhere else: it is neither this machine, whose own
//     address is what the backend sees anyway, nor the backend, a pod that reaches
//     itself by its Service and would answer itself;
//   - the backend is somewhere else: what this machine answers never comes in;
//   - the client is not in the network by which the backend is reached, since
//     answers take the direct way there.
//
// A nil vicinity, which a frontend has that is not transparent, sees nobody.
func (v *vicinity) seesClient(client, backend netip.Addr) bool {
	if v == nil || client == backend || client.Is4() != backend.Is4() {
		return false
	}
	if !client.IsGlobalUnicast() || backend.IsLoopback() || v.own[client] || v.own[backend] {
		return false
	}
	by := v.speaker[backend]
	return !slices.ContainsFunc(v.networks, func(p netip.Prefix) bool {
		return p.Contains(client) && (p.Contains(backend) || p.Contains(by))
	})
}
