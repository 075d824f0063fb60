package pools

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// dice makes up inputs in a world so small that everything collides. The bytes
// are those of a fuzzer, or of a generator.
type dice struct{ bytes []byte }

func (d *dice) n(n int) int {
	if len(d.bytes) == 0 {
		return 0
	}
	b := d.bytes[0]
	d.bytes = d.bytes[1:]
	return int(b) % n
}

func (d *dice) one(in int) bool { return d.n(in) == in-1 }

func (d *dice) some(of []string) (some []string) {
	for _, s := range of {
		if d.n(2) == 0 {
			some = append(some, s)
		}
	}
	return some
}

// world are the networks, pools and addresses that a made-up input has some of.
var (
	worldNetworks = []Network{
		{"home", "eth0", netip.MustParsePrefix("10.0.0.0/28")},
		{"home", "eth0", netip.MustParsePrefix("fd00::/64")},
		{"home", "eth1", netip.MustParsePrefix("10.0.0.8/30")},
		{"home", "wlan0", netip.MustParsePrefix("10.0.0.0/28")},
		{"dmz", "eth2", netip.MustParsePrefix("10.0.1.0/29")},
	}
	worldPools = []Pool{
		{Name: "a", Zone: "home", Ranges: []edge.Range{between("10.0.0.6", "10.0.0.9"), between("10.0.0.2", "10.0.0.3")}, Auto: true},
		{Name: "b", Zone: "home", Ranges: []edge.Range{between("10.0.0.11", "10.0.0.18"), between("fd00::", "fd00::2")}},
		{Name: "c", Zone: "home", Ranges: []edge.Range{between("fd00::10", "fd00::ffff:ffff:ffff"), between("fd01::1", "fd01::2")}, Auto: true},
		{Name: "d", Zone: "dmz", Ranges: []edge.Range{between("10.0.1.0", "10.0.1.3"), between("10.0.2.1", "10.0.2.1")}, Auto: true},
	}
	worldAddrs = addrs("10.0.0.2", "10.0.0.3", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.0.11", "10.0.0.12", "10.0.0.15", "10.0.0.16",
		"10.0.0.1", "10.0.0.10", "10.0.0.14", "10.0.1.0", "10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.6", "10.0.2.1", "10.9.9.9",
		"fd00::", "fd00::1", "fd00::2", "fd00::10", "fd00::11", "fd01::1", "fd01::2", "fd02::1")
)

func (d *dice) addr() netip.Addr { return worldAddrs[d.n(len(worldAddrs))] }

func (d *dice) addrs(most int) (list []netip.Addr) {
	for range d.n(most + 1) {
		if a := d.addr(); !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

func (d *dice) input() Input {
	in := Input{Own: map[string][]netip.Addr{}, Unusable: map[netip.Addr]string{}, Away: map[string]bool{}}
	for _, p := range worldPools {
		if !d.one(6) {
			in.Pools = append(in.Pools, p)
		}
	}
	for _, n := range worldNetworks {
		if !d.one(4) {
			in.Networks = append(in.Networks, n)
		}
	}
	if d.one(3) {
		in.Own["home"] = addrs("10.0.0.1", "10.0.0.10")
	}
	in.Away["home"] = d.one(4)
	for range d.n(4) {
		in.Unusable[d.addr()] = "somebody has it"
	}
	for i := range 1 + d.n(8) {
		in.Wants = append(in.Wants, d.wants(fmt.Sprintf("shop/%d", i))...)
	}
	for range d.n(10) {
		s := d.n(9)
		b := edge.Allocation{Addr: d.addr(), Zone: []string{"home", "dmz"}[d.n(2)], Service: fmt.Sprintf("shop/%d", s), UID: fmt.Sprintf("u%d", s), Held: d.one(3)}
		if d.one(5) {
			b.UID = "old"
		}
		in.Before = append(in.Before, b)
	}
	return in
}

func (d *dice) wants(service string) (wants []Want) {
	named, requested := []string(nil), []netip.Addr(nil)
	if d.one(3) {
		requested = d.addrs(2)
	}
	if d.one(4) {
		named = d.some([]string{"a", "b", "c", "d", "nobody's"})
	}
	status := d.addrs(3)
	key := []string{"", "", "shop/k", "shop/l"}[d.n(4)]
	v4, v6 := !d.one(5), d.one(2)
	for _, zone := range []string{"home", "dmz"} {
		if d.one(3) {
			continue
		}
		wants = append(wants, Want{
			Service: service, UID: "u" + service[len("shop/"):], Zone: zone, IPv4: v4, IPv6: v6, Pools: d.some([]string{"a", "b", "c", "d"}),
			Addresses: requested, Named: named, Key: key, Status: status,
		})
	}
	return wants
}

// next is the input after a decision: it has been taken, and what can be used
// is in the status.
func next(in Input, r Result) Input {
	in.Before = r.Allocations
	in.Wants = slices.Clone(in.Wants)
	for i := range in.Wants {
		w := &in.Wants[i]
		before := w.Status
		w.Status = nil
		for p, o := range r.Of {
			for _, g := range o.Given {
				if p.Service == w.Service && (in.Unusable[g.Addr] == "" || slices.Contains(before, g.Addr)) {
					w.Status = append(w.Status, g.Addr)
				}
			}
		}
		slices.SortFunc(w.Status, netip.Addr.Compare)
	}
	return in
}

func hold(t *testing.T, bytes []byte) {
	d := &dice{bytes}
	in := d.input()
	r := Assign(in)

	checkGiven(t, in, r)
	if again := Assign(next(in, r)); !reflect.DeepEqual(again, r) {
		t.Errorf("not the same once it is so:\n%+v\nbefore\n%+v", again, r)
	}
	checkOrder(t, in, r)
	checkArrival(t, next(in, r), r, d)
	if t.Failed() {
		t.Fatalf("%+v\n%+v", in, r)
	}
}

// checkGiven: each address is of a pool that the Service may have, in its zone,
// of a family that it wants, and nobody else's who does not share it; what is
// held is for who had it.
func checkGiven(t *testing.T, in Input, r Result) {
	type has struct {
		want *Want
		addr netip.Addr
	}
	var all []has
	want := map[edge.Allocation]bool{}
	for i := range in.Wants {
		w := &in.Wants[i]
		o, ok := r.Of[Place{w.Service, w.Zone}]
		if !ok {
			t.Errorf("%s has no outcome in %s", w.Service, w.Zone)
		}
		if !slices.IsSortedFunc(o.Given, func(a, b Given) int { return a.Addr.Compare(b.Addr) }) {
			t.Errorf("%s: not sorted: %v", w.Service, o.Given)
		}
		for _, g := range o.Given {
			all = append(all, has{w, g.Addr})
			want[edge.Allocation{Addr: g.Addr, Pool: g.Pool, Zone: w.Zone, Service: w.Service, UID: w.UID}] = true
			i := slices.IndexFunc(in.Pools, func(p Pool) bool { return p.Name == g.Pool })
			if i < 0 || in.Pools[i].Zone != w.Zone || !slices.Contains(w.Pools, g.Pool) ||
				!slices.ContainsFunc(in.Pools[i].Ranges, func(r edge.Range) bool { return r.Contains(g.Addr) }) {
				t.Errorf("%s has %v in %s", w.Service, g, w.Zone)
			}
			if g.Addr.Is4() && !w.IPv4 || g.Addr.Is6() && !w.IPv6 {
				t.Errorf("%s has %v of a family that it does not want", w.Service, g)
			}
			for _, own := range in.Own {
				if slices.Contains(own, g.Addr) {
					t.Errorf("%s has the machine's own %v", w.Service, g)
				}
			}
			kept := slices.ContainsFunc(in.Before, func(b edge.Allocation) bool {
				return b.Addr == g.Addr && b.Service == w.Service && b.Zone == w.Zone && b.UID == w.UID && !b.Held
			})
			held := slices.ContainsFunc(in.Before, func(b edge.Allocation) bool {
				return b.Addr == g.Addr && b.Held && b.Zone == in.Pools[i].Zone && b.Service != w.Service
			})
			again := slices.ContainsFunc(in.Before, func(b edge.Allocation) bool {
				return b.Addr == g.Addr && b.Service == w.Service
			})
			if in.Unusable[g.Addr] != "" && !again && !slices.Contains(w.Status, g.Addr) && !slices.Contains(w.Addresses, g.Addr) {
				t.Errorf("%s has %v, which cannot be used", w.Service, g)
			}
			if held && !kept && !again && w.Key == "" {
				t.Errorf("%s has %v, which is held for another one", w.Service, g)
			}
		}
		perSlot := map[string]int{}
		for _, n := range o.Own {
			perSlot[n.Device+n.Prefix.String()]++
			if perSlot[n.Device+n.Prefix.String()] > 1 || n.Zone != w.Zone {
				t.Errorf("%s: own %v", w.Service, o.Own)
			}
		}
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.addr == b.addr && (a.want.Key == "" || a.want.Key != b.want.Key) {
				t.Errorf("%s and %s have %s", a.want.Service, b.want.Service, a.addr)
			}
		}
	}
	if !slices.IsSortedFunc(r.Allocations, compareAllocations) {
		t.Errorf("not sorted: %v", r.Allocations)
	}
	for i, a := range r.Allocations {
		if i > 0 && a == r.Allocations[i-1] {
			t.Errorf("twice: %v", a)
		}
		if !a.Held {
			if !want[a] {
				t.Errorf("allocated, and not given: %v", a)
			}
			delete(want, a)
		} else if slices.ContainsFunc(all, func(h has) bool { return h.addr == a.Addr }) {
			t.Errorf("held, and given: %v", a)
		}
	}
	if len(want) > 0 {
		t.Errorf("given, and not allocated: %v", want)
	}
}

// checkOrder: the order of what was before says nothing, nor does that of the
// zones of one Service.
func checkOrder(t *testing.T, in Input, r Result) {
	r1 := rand.New(rand.NewPCG(1, 2))
	in.Before, in.Wants = slices.Clone(in.Before), slices.Clone(in.Wants)
	r1.Shuffle(len(in.Before), func(i, j int) { in.Before[i], in.Before[j] = in.Before[j], in.Before[i] })
	for i := 1; i < len(in.Wants); i++ {
		if in.Wants[i].Service == in.Wants[i-1].Service {
			in.Wants[i], in.Wants[i-1] = in.Wants[i-1], in.Wants[i]
		}
	}
	if again := Assign(in); !reflect.DeepEqual(again, r) {
		t.Errorf("another order gives\n%+v\nnot\n%+v", again, r)
	}
}

// checkArrival: nobody loses, or gets, an address because another one arrives, as the oldest or the
// youngest.
func checkArrival(t *testing.T, in Input, r Result, d *dice) {
	news := d.wants("shop/new")
	for i := range news {
		news[i].UID = "new"
	}
	for _, wants := range [][]Want{slices.Concat(news, in.Wants), slices.Concat(in.Wants, news)} {
		with := in
		with.Wants = wants
		got := Assign(with)
		checkGiven(t, with, got)
		for _, w := range in.Wants {
			p := Place{w.Service, w.Zone}
			for _, g := range r.Of[p].Given {
				if !slices.Contains(got.Of[p].Given, g) {
					t.Errorf("%s loses %v to %+v", w.Service, g, news)
				}
			}
		}
	}
}

func TestAssignHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	bytes := make([]byte, 300)
	for range 5000 {
		for i := range bytes {
			bytes[i] = byte(r.Uint32())
		}
		hold(t, bytes)
	}
}

func FuzzAssign(f *testing.F) {
	f.Add([]byte("00000000000000000000000000000000000000000000"))
	f.Fuzz(hold)
}

func BenchmarkAssign(b *testing.B) {
	const n = 10000
	wide := func(first, last string) []edge.Range { return []edge.Range{between(first, last)} }
	for name, ranges := range map[string][]edge.Range{
		"plenty": append(wide("10.0.0.1", "10.3.255.254"), between("fd00::1", "fd00::ffff:ffff:ffff:ffff")),
		"full":   append(wide("10.0.0.1", "10.0.39.17"), between("fd00::1", "fd00::2711")), // 10,001 of both, one of them a network's
		"short":  append(wide("10.0.0.1", "10.0.19.137"), between("fd00::1", "fd00::1389")),
	} {
		in := Input{Pools: []Pool{{Name: "p", Zone: "home", Ranges: ranges, Auto: true}}, Networks: []Network{{"home", "eth0", netip.MustParsePrefix("10.0.0.0/8")}}}
		for i := range n {
			in.Wants = append(in.Wants, Want{Service: fmt.Sprintf("shop/%05d", i), UID: fmt.Sprint(i), Zone: "home", IPv4: true, IPv6: true, Pools: []string{"p"}})
		}
		b.Run(name+"/new", func(b *testing.B) {
			for b.Loop() {
				Assign(in)
			}
		})
		kept := next1(in, Assign(in))
		b.Run(name+"/kept", func(b *testing.B) {
			for b.Loop() {
				Assign(kept)
			}
		})
	}
}

// next1 is next for inputs that are large.
func next1(in Input, r Result) Input {
	in.Before = r.Allocations
	in.Wants = slices.Clone(in.Wants)
	for i := range in.Wants {
		w := &in.Wants[i]
		for _, g := range r.Of[Place{w.Service, w.Zone}].Given {
			w.Status = append(w.Status, g.Addr)
		}
	}
	return in
}

func between(first, last string) edge.Range {
	return edge.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func addrs(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}
