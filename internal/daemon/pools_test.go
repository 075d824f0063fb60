package daemon

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/laststate"
	"e13.dev/gatehouse/internal/status"
)

func TestPoolRows(t *testing.T) {
	addr := netip.MustParseAddr
	pool := func(name string, ranges ...string) config.Pool {
		p := config.Pool{Name: name, Zone: "home"}
		for i := 0; i < len(ranges); i += 2 {
			p.Addresses = append(p.Addresses, edge.Range{First: addr(ranges[i]), Last: addr(ranges[i+1])})
		}
		return p
	}
	interfaces := []edge.Interface{{Name: "eth1", Addrs: []netip.Prefix{
		netip.MustParsePrefix("10.0.0.5/24"), netip.MustParsePrefix("10.0.1.4/31"), netip.MustParsePrefix("fd00::5/64"),
		netip.MustParsePrefix("10.0.0.7/32"), // of a pool
	}}}
	allocations := []laststate.Allocation{
		{Allocation: allocation("10.0.0.7", "shop/web", "1")},
		{Allocation: allocation("10.0.0.7", "shop/api", "2")},
		{Allocation: held("10.0.0.7")},
		{Allocation: held("10.0.0.8")},
		{Allocation: held("10.0.0.8")},
	}
	states := map[netip.Addr]edge.AddressState{addr("10.0.0.9"): {Conflict: "52:54:00:00:00:07"}, addr("10.0.0.7"): {Conflict: "52:54:00:00:00:08"}}
	got := poolRows([]config.Pool{
		pool("net", "10.0.0.0", "10.0.0.15", "10.0.0.250", "10.0.0.255"), pool("link", "10.0.1.4", "10.0.1.5"),
		pool("six", "fd00::", "fd00::ffff"), pool("half", "fd01::", "fd01::ffff:ffff:ffff:ffff"), pool("all", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), pool("one", "10.9.0.1", "10.9.0.1"),
	}, interfaces, allocations, states)
	want := []status.Pool{
		{Name: "net", Zone: "home", Addresses: 22, Given: 1, Held: 1, Free: 16, Unusable: 4}, // .0, .255, .5 and .9
		{Name: "link", Zone: "home", Addresses: 2, Free: 1, Unusable: 1},
		{Name: "six", Zone: "home", Addresses: 65536, Free: 65534, Unusable: 2},
		{Name: "half", Zone: "home", Addresses: status.Many, Free: status.Many},
		{Name: "all", Zone: "home", Addresses: status.Many, Free: status.Many, Unusable: 2},
		{Name: "one", Zone: "home", Addresses: 1, Free: 1},
	}

	for i := range want {
		families := got[i].Families
		got[i].Families = nil
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("got  %+v\nwant %+v", got[i], want[i])
		}
		if f := families[0]; len(families) == 1 && (f.Addresses != want[i].Addresses || f.Given != want[i].Given || f.Held != want[i].Held || f.Free != want[i].Free || f.Unusable != want[i].Unusable) {
			t.Errorf("%s: its only family is %+v, want what all of it is", want[i].Name, f)
		}
	}
	// The families apart.
	wantFamilies := []status.PoolFamily{
		{Family: "ipv4", Addresses: 4, Given: 1, Held: 1, Free: 1, Unusable: 1},
		{Family: "ipv6", Addresses: 16, Free: 14, Unusable: 2},
	}
	if both := poolRows([]config.Pool{pool("both", "10.0.0.6", "10.0.0.9", "fd00::", "fd00::f")}, interfaces, allocations, states)[0]; !slices.Equal(both.Families, wantFamilies) || both.Free != 15 || both.Addresses != 20 {
		t.Errorf("got %+v, want the families %+v", both, wantFamilies)
	}
}

func held(addr string) edge.Allocation {
	a := allocation(addr, "shop/old", "9")
	a.Held = true
	return a
}

// An address that several have, or one that one of them has left, is one row.
func TestAddressRows(t *testing.T) {
	addr := netip.MustParseAddr
	got := addressRows(desired.State{Addresses: []edge.Address{{Addr: addr("10.0.0.7"), Device: "eth1"}}}, []laststate.Allocation{
		{Allocation: held("10.0.0.7")},
		{Allocation: allocation("10.0.0.7", "shop/api", "2")},
		{Allocation: allocation("10.0.0.7", "shop/web", "1")},
		{Allocation: held("10.0.0.8")},
	}, map[netip.Addr]edge.AddressState{addr("10.0.0.7"): {Ready: true}})
	for i := range got {
		got[i].Until = got[i].Until.Round(0)
	}
	want := []status.Address{
		{Addr: addr("10.0.0.7"), Pool: "home", Zone: "home", Device: "eth1", Services: []string{"shop/api", "shop/web"}, State: status.AddressReady},
		{Addr: addr("10.0.0.8"), Pool: "home", Zone: "home", Services: []string{"shop/old"}, State: status.AddressHeld, Until: laststate.Allocation{}.Left.Add(holdAddresses)},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for want, s := range map[status.AddressState]edge.AddressState{
		status.AddressReady: {Ready: true}, status.AddressPending: {}, status.AddressFailed: {Error: "x"}, status.AddressConflict: {Conflict: "y", Error: "x"},
	} {
		if got, _, _ := howFar(s); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
	}
}
