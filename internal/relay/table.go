package relay

import (
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

const (
	defaultConnectTimeout = 3 * time.Second

	// A UDP session has no end of its own: RFC 4787, section 4.3 asks NATs for
	// two minutes or more, balancers of requests and answers need far less.
	defaultUDPIdleTimeout = 30 * time.Second
)

// table is what a new connection goes by: one frontend, made ready for
// choosing. It does not change; a door gets another one.
type table struct {
	name, zone string
	sources    []netip.Prefix
	anySource  bool
	proxies    []netip.Prefix // Frontend.AcceptProxyProtocol
	names      *names         // not nil: the door is shared, and this is no frontend's table
	edge.Terms
	vicinity *vicinity      // not nil: the frontend is transparent
	backends []edge.Backend // all, for Stats
	// Those that take connections. down are the last resort; nil: there is none.
	up, pending, down candidates
	dead              []netip.AddrPort // are down, while there are others
}

func (t *table) hasOthers() bool { return !t.up.none() || !t.pending.none() }

func newTable(f edge.Frontend) *table {
	t := &table{
		name:      f.Name,
		zone:      f.Zone,
		sources:   slices.Clone(f.SourceRanges),
		anySource: f.SourceRanges == nil,
		proxies:   slices.Clone(f.AcceptProxyProtocol),
		Terms:     f.Terms,
		backends:  slices.Clone(f.Backends),
	}
	if t.ConnectTimeout <= 0 {
		t.ConnectTimeout = defaultConnectTimeout
	}
	if t.IdleTimeout <= 0 && f.Protocol == edge.UDP {
		t.IdleTimeout = defaultUDPIdleTimeout
	}
	for _, b := range f.Backends {
		switch {
		case b.Weight <= 0:
		case b.State == edge.Up:
			t.up.add(b)
		case b.State == edge.Pending:
			t.pending.add(b)
		case !t.RefuseWhenDown:
			t.down.add(b)
		}
	}
	if t.hasOthers() {
		t.down = candidates{}
		for _, b := range f.Backends {
			if b.State == edge.Down {
				t.dead = append(t.dead, b.Addr)
			}
		}
	}
	return t
}

func (t *table) allows(source netip.Addr) bool {
	return t.anySource || slices.ContainsFunc(t.sources, func(p netip.Prefix) bool { return p.Contains(source) })
}

func (t *table) has(addr netip.AddrPort) bool {
	return slices.ContainsFunc(t.backends, func(b edge.Backend) bool { return b.Addr == addr })
}

// serves says whether new connections may go to a backend, when it is up.
func (t *table) serves(addr netip.AddrPort) bool {
	return slices.ContainsFunc(t.backends, func(b edge.Backend) bool { return b.Addr == addr && b.Weight > 0 })
}

// isProxy says whether a peer's connections begin with a PROXY protocol header.
func (t *table) isProxy(peer netip.Addr) bool {
	return len(t.proxies) > 0 && slices.ContainsFunc(t.proxies, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// fallen are the backends that are down, and were not in the table before.
func (t *table) fallen(before *table) (fallen []netip.AddrPort) {
	if before == nil {
		return nil
	}
	for _, b := range t.backends {
		if b.State == edge.Down && slices.ContainsFunc(before.backends, func(was edge.Backend) bool { return was.Addr == b.Addr && was.State != edge.Down }) {
			fallen = append(fallen, b.Addr)
		}
	}
	return fallen
}
