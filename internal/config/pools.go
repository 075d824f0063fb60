package config

import (
	"net/netip"
	"strings"

	"e13.dev/gatehouse/internal/edge"
)

// A pooled range is one of a pool, and where it says so.
type pooledRange struct {
	edge.Range
	pool string
	at   value
}

// pool reads one of pools.
func (f *file) pool(v value) {
	m, ok := v.fields(&poolBlock)
	if !ok {
		return
	}
	p := Pool{Auto: true, Pos: v.pos()}
	name := m.need("name")
	name.checked(&p.Name, func(s string) *Fault { return checkLabel("pool name", s) })
	for _, other := range f.cfg.Pools {
		if p.Name != "" && other.Name == p.Name {
			name.problem("two pools are called "+quote(p.Name), "the other one is at "+other.Pos.String()+"; give one of them another name")
		}
	}
	zone := m.need("zone")
	if s, ok := zone.text(); ok {
		p.Zone = s
		f.zoneRefs = append(f.zoneRefs, text{s, zone})
	}
	addresses := m.need("addresses")
	if addresses.emptyList() {
		addresses.problem("a pool without addresses", "write ranges or networks, such as addresses: [10.11.12.64-10.11.12.79]")
	}
	for _, t := range addresses.texts(nil) {
		r, flt := parseRange(t.text)
		if flt != nil {
			t.at.fault(flt)
			continue
		}
		if other := f.pooledBefore(r); other != nil {
			where := "of this pool"
			if other.pool != p.Name {
				where = "of pool " + other.pool
			}
			t.at.problem(quote(t.text)+" overlaps with "+other.String()+" "+where, "the other one is at "+other.at.pos().String()+"; an address belongs to one pool")
			continue
		}
		f.pooled = append(f.pooled, pooledRange{r, p.Name, t.at})
		p.Addresses = append(p.Addresses, r)
	}
	m.who(&p.Who)
	m.get("auto").bool(&p.Auto)
	f.cfg.Pools = append(f.cfg.Pools, p)
}

// pooledBefore is a range of a pool that has some of the same addresses.
func (p *parser) pooledBefore(r edge.Range) *pooledRange {
	for i := range p.pooled {
		if o := &p.pooled[i]; o.Contains(r.First) || o.Contains(r.Last) || r.Contains(o.First) {
			return o
		}
	}
	return nil
}

// who reads a choice of Services.
func (m fields) who(w *Who) {
	m.namespaces(w)
	m.get("labels").checked(&w.Labels, checkSomeSelector)
}

// namespaces reads a choice of namespaces.
func (m fields) namespaces(w *Who) {
	if v := m.get("namespaces"); !v.absent() {
		w.Namespaces = plain(v.texts(func(s string) *Fault { return checkLabel("namespace", s) }))
		if w.Namespaces == nil {
			w.Namespaces = []string{} // nobody, which is not the same as not said
		}
	}
	m.get("namespaceLabels").checked(&w.NamespaceLabels, checkSomeSelector)
}

// checkSomeSelector refuses an empty selector, too: who wrote it meant something.
func checkSomeSelector(s string) *Fault {
	if strings.TrimSpace(s) == "" {
		return &Fault{"an empty selector says nothing", "write one such as \"tier=public\", or leave it out"}
	}
	return checkSelector(s)
}

// parseRange reads FIRST-LAST, a network, or an address.
func parseRange(s string) (edge.Range, *Fault) {
	const right = "write FIRST-LAST, a network or an address: 10.11.12.64-10.11.12.79, 10.11.12.64/28, fd00:11:12::1000/120"
	var r edge.Range
	switch first, last, isRange := strings.Cut(s, "-"); {
	case isRange:
		var ok1, ok2 bool
		r.First, ok1 = poolAddress(first)
		r.Last, ok2 = poolAddress(last)
		switch {
		case !ok1 || !ok2:
			return r, &Fault{quote(s) + " is not a range of addresses", right}
		case r.First.BitLen() != r.Last.BitLen():
			return r, &Fault{quote(s) + " begins with an address of one IP family and ends with one of the other", right}
		case r.Last.Less(r.First):
			return r, &Fault{quote(s) + " ends before it begins", "write " + r.Last.String() + "-" + r.First.String()}
		}
	case strings.Contains(s, "/"):
		p, flt := parseNetwork(s)
		if flt != nil {
			return r, flt
		}
		r = edge.Range{First: p.Addr(), Last: lastOf(p)}
	default:
		a, ok := poolAddress(s)
		if !ok {
			return r, &Fault{quote(s) + " is not an address", right}
		}
		r = edge.Range{First: a, Last: a}
	}
	for _, kind := range []struct {
		what  string
		net   string
		among func(netip.Addr) bool
	}{
		{"loopback", "127.0.0.0/8", netip.Addr.IsLoopback},
		{"multicast", "224.0.0.0/4", netip.Addr.IsMulticast},
		{"multicast", "ff00::/8", netip.Addr.IsMulticast},
		{"link-local", "169.254.0.0/16", netip.Addr.IsLinkLocalUnicast},
		{"link-local", "fe80::/10", netip.Addr.IsLinkLocalUnicast},
		{"unspecified", "0.0.0.0/8", isThisNetwork},
		{"unspecified", "::/128", isThisNetwork},
		{"broadcast", "255.255.255.255/32", isThisNetwork},
	} {
		if kind.among(r.First) || kind.among(r.Last) || r.Contains(netip.MustParsePrefix(kind.net).Addr()) {
			return r, &Fault{quote(s) + " has " + kind.what + " addresses, which nobody can be given", "write addresses of the zone's network"}
		}
	}
	return r, nil
}

// isThisNetwork says whether an address stands for no machine at all.
func isThisNetwork(a netip.Addr) bool {
	return a.Is4() && a.As4()[0] == 0 || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// poolAddress reads an address; a zone or IPv4 in IPv6 has no place in a pool.
func poolAddress(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	return a, err == nil && a.Zone() == "" && !a.Is4In6()
}

// lastOf is the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// apiServer reads where the API servers are opened.
func (f *file) apiServer(v value, pos edge.Pos) *APIServer {
	m, ok := v.fields(&apiServerBlock)
	if !ok {
		return nil
	}
	a := &APIServer{Port: DefaultAPIServerPort, Pos: pos}
	if first, taken := f.names[APIServerName]; taken {
		v.problem("its frontend is called "+quote(APIServerName)+", and so is another", "the other one is at "+first.pos.String()+"; give that another name")
	} else {
		f.names[APIServerName] = named{pos, false}
	}
	zones := m.need("zones")
	if zones.emptyList() {
		zones.problem("an API server without zones", "write zones: [cluster], or remove apiServer")
	}
	names := f.zoneNames(zones)
	a.Zones = plain(names)
	var port int
	if m.get("port").int(&port, 1, 65535) {
		a.Port = uint16(port)
	}
	f.claim(&Frontend{Protocol: edge.TCP, Port: a.Port}, value{}, names, sharing{})
	return a
}
