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
	name, zone     string
	sources        []netip.Prefix
	anySource      bool
	connectTimeout time.Duration
	idleTimeout    time.Duration
	drainTimeout   time.Duration
	maxConnections int            // 0: no limit
	maxPerClient   int            // 0: no limit
	backends       []edge.Backend // all, for Stats
	up, pending    []edge.Backend // those that take connections
}

func newTable(f edge.Frontend) *table {
	t := &table{
		name:           f.Name,
		zone:           f.Zone,
		sources:        slices.Clone(f.SourceRanges),
		anySource:      f.SourceRanges == nil,
		connectTimeout: f.ConnectTimeout,
		idleTimeout:    f.IdleTimeout,
		drainTimeout:   f.DrainTimeout,
		maxConnections: f.MaxConnections,
		maxPerClient:   f.MaxConnectionsPerClient,
		backends:       slices.Clone(f.Backends),
	}
	if t.connectTimeout <= 0 {
		t.connectTimeout = defaultConnectTimeout
	}
	if t.idleTimeout <= 0 && f.Protocol == edge.UDP {
		t.idleTimeout = defaultUDPIdleTimeout
	}
	for _, b := range f.Backends {
		switch {
		case b.Weight <= 0:
		case b.State == edge.Up:
			t.up = append(t.up, b)
		case b.State == edge.Pending:
			t.pending = append(t.pending, b)
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

// choose picks a backend that has not been tried, each with the probability of
// its weight among those left. Pending ones are chosen from when none that is
// up is left: for the connection at hand one that could not be dialled is not
// up, whatever the last probe said. random(n) is uniform in [0, n).
func (t *table) choose(tried []netip.AddrPort, random func(n uint64) uint64) (edge.Backend, bool) {
	if b, ok := pick(t.up, tried, random); ok {
		return b, true
	}
	return pick(t.pending, tried, random)
}

func pick(from []edge.Backend, tried []netip.AddrPort, random func(n uint64) uint64) (edge.Backend, bool) {
	var total uint64
	for i := range from {
		if len(tried) == 0 || !slices.Contains(tried, from[i].Addr) {
			total += uint64(from[i].Weight)
		}
	}
	if total == 0 {
		return edge.Backend{}, false
	}
	at := random(total)
	for i := range from {
		if len(tried) > 0 && slices.Contains(tried, from[i].Addr) {
			continue
		}
		if w := uint64(from[i].Weight); at >= w {
			at -= w
			continue
		}
		return from[i], true
	}
	panic("relay: a random number was not below its bound")
}
