package daemon

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
	"e13.dev/gatehouse/internal/status"
)

// addressRows puts who has which address beside how far that is.
func addressRows(state desired.State, allocations []laststate.Allocation, states map[netip.Addr]edge.AddressState) []status.Address {
	devices := make(map[netip.Addr]string, len(state.Addresses))
	for _, a := range state.Addresses {
		devices[a.Addr] = a.Device
	}
	type place struct {
		addr netip.Addr
		zone string
	}
	at := map[place]int{}
	var rows []status.Address
	for _, a := range allocations {
		key := place{a.Addr, a.Zone}
		i, again := at[key]
		if !again {
			i = len(rows)
			at[key] = i
			rows = append(rows, status.Address{Addr: a.Addr, Pool: a.Pool, Zone: a.Zone, State: status.AddressHeld})
		}
		row := &rows[i]
		switch {
		case !a.Held:
			if row.State == status.AddressHeld { // somebody has it still, or again
				row.Services, row.Until = nil, time.Time{}
			}
			row.Services = append(row.Services, a.Service)
			row.Device = devices[a.Addr]
			row.State, row.Conflict, row.Error = howFar(states[a.Addr])
		case row.State == status.AddressHeld:
			row.Services = append(row.Services, a.Service)
			if until := a.Left.Add(holdAddresses); until.After(row.Until) {
				row.Until = until
			}
		}
	}
	return rows
}

func howFar(s edge.AddressState) (state status.AddressState, conflict, err string) {
	switch {
	case s.Ready:
		return status.AddressReady, s.Conflict, s.Error
	case s.Conflict != "":
		return status.AddressConflict, s.Conflict, s.Error
	case s.Error != "":
		return status.AddressFailed, "", s.Error
	}
	return status.AddressPending, "", ""
}

// poolRows say how much of each pool is used.
func poolRows(pools []config.Pool, interfaces []edge.Interface, allocations []laststate.Allocation, states map[netip.Addr]edge.AddressState) []status.Pool {
	given, held := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, a := range allocations {
		if a.Held {
			held[a.Addr] = true
		} else {
			given[a.Addr] = true
		}
	}
	unusable := map[netip.Addr]bool{}
	for _, i := range interfaces {
		for _, p := range i.Addrs {
			if p.IsSingleIP() { // of a pool, as likely as not
				continue
			}
			for _, a := range append(ofNetwork(p), p.Addr()) {
				unusable[a] = true
			}
		}
	}
	for a, s := range states {
		if s.Conflict != "" {
			unusable[a] = true
		}
	}
	var rows []status.Pool
	for _, p := range pools {
		row := status.Pool{Name: p.Name, Zone: p.Zone}
		for _, family := range []string{"ipv4", "ipv6"} {
			f, ok := familyOf(p, family, given, held, unusable)
			if !ok {
				continue
			}
			row.Families = append(row.Families, f)
			row.Addresses, row.Free = add64(row.Addresses, f.Addresses), add64(row.Free, f.Free)
			row.Given += f.Given
			row.Held += f.Held
			row.Unusable += f.Unusable
		}
		rows = append(rows, row)
	}
	return rows
}

// familyOf says how much of a pool's addresses of one family is used, if it has
// such.
func familyOf(p config.Pool, family string, given, held, unusable map[netip.Addr]bool) (row status.PoolFamily, ok bool) {
	row.Family = family
	var ranges []edge.Range
	for _, r := range p.Addresses {
		if r.First.Is4() == (family == "ipv4") {
			ranges = append(ranges, r)
			row.Addresses = add64(row.Addresses, sizeOf(r))
		}
	}
	contains := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(r edge.Range) bool { return r.Contains(a) })
	}
	for a := range given {
		if contains(a) {
			row.Given++
		}
	}
	for a := range held {
		if contains(a) && !given[a] {
			row.Held++
		}
	}
	for a := range unusable {
		if contains(a) && !given[a] && !held[a] {
			row.Unusable++
		}
	}
	row.Free = row.Addresses
	if used := row.Given + row.Held + row.Unusable; row.Addresses != status.Many {
		row.Free -= min(used, row.Addresses)
	}
	return row, len(ranges) > 0
}

// ofNetwork are the addresses that a network has for itself: of IPv4 the first
// and the last, unless it is a link of two (RFC 3021); of IPv6 the first, which is
// the routers' (RFC 4291, 2.6.1).
func ofNetwork(p netip.Prefix) []netip.Addr {
	if p.Addr().BitLen()-p.Bits() < 2 {
		return nil
	}
	first := p.Masked().Addr()
	if !first.Is4() {
		return []netip.Addr{first}
	}
	last := first.As4()
	for i := p.Bits(); i < 32; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	return []netip.Addr{first, netip.AddrFrom4(last)}
}

// sizeOf is how many addresses a range has, at most status.Many.
func sizeOf(r edge.Range) uint64 {
	first, last := r.First.As16(), r.Last.As16()
	half := func(a [16]byte, from int) (n uint64) {
		for _, b := range a[from : from+8] {
			n = n<<8 | uint64(b)
		}
		return n
	}
	low, borrow := bits.Sub64(half(last, 8), half(first, 8), 0)
	high, _ := bits.Sub64(half(last, 0), half(first, 0), borrow)
	if high > 0 {
		return status.Many
	}
	return add64(low, 1)
}

// add64 adds, at most to status.Many.
func add64(x, y uint64) uint64 {
	sum, carry := bits.Add64(x, y, 0)
	if carry > 0 {
		return status.Many
	}
	return sum
}
