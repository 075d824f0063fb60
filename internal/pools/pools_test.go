package pools

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// A house: two networks, one of them with IPv6; a pool of four addresses and one
// that is far larger than memory in the first, one of two on request only, and
// one that is routed here.
func house() Input {
	return Input{
		Pools: []Pool{
			{Name: "v4", Zone: "home", Ranges: []edge.Range{between("10.1.0.12", "10.1.0.13"), between("10.1.0.8", "10.1.0.9")}, Auto: true},
			{Name: "v6", Zone: "home", Ranges: []edge.Range{between("fd01::1:0", "fd01::ffff:ffff:ffff:ffff")}, Auto: true},
			{Name: "few", Zone: "home", Ranges: []edge.Range{between("10.1.0.20", "10.1.0.21")}},
			{Name: "routed", Zone: "public", Ranges: []edge.Range{between("192.0.2.1", "192.0.2.2")}, Auto: true},
		},
		Networks: []Network{
			{"home", "eth0", netip.MustParsePrefix("10.1.0.1/24")},
			{"home", "eth0", netip.MustParsePrefix("fd01::1/64")},
			{"home", "eth1", netip.MustParsePrefix("10.2.0.1/24")},
			{"public", "ppp0", netip.MustParsePrefix("198.51.100.7/32")},
		},
		Own: map[string][]netip.Addr{"home": addrs("10.1.0.1", "fd01::1", "10.2.0.1"), "public": addrs("198.51.100.7")},
	}
}

var everyPool = []string{"v4", "v6", "few", "routed"}

// want is one of a house, of IPv4 in zone home: "web addresses=10.1.0.9,few key=k status=10.1.0.8 zone=public families=46 pools=v4 uid=2".
func want(text string) Want {
	words := strings.Fields(text)
	w := Want{Service: "shop/" + words[0], UID: "uid-" + words[0], Zone: "home", IPv4: true, Pools: everyPool}
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "addresses":
			for part := range strings.SplitSeq(value, ",") {
				if a, err := netip.ParseAddr(part); err == nil {
					w.Addresses = append(w.Addresses, a)
				} else {
					w.Named = append(w.Named, part)
				}
			}
		case "key":
			w.Key = "shop/" + value
		case "status":
			w.Status = addrs(strings.Split(value, ",")...)
		case "zone":
			w.Zone = value
		case "families":
			w.IPv4, w.IPv6 = strings.Contains(value, "4"), strings.Contains(value, "6")
		case "pools":
			w.Pools = strings.Split(value, ",")
		case "uid":
			w.UID = value
		default:
			panic("want: " + word)
		}
	}
	return w
}

// before is an allocation in zone home: "web 10.1.0.8", "web 10.1.0.8 held".
func before(text string) edge.Allocation {
	f := append(strings.Fields(text), "")
	return edge.Allocation{Addr: netip.MustParseAddr(f[1]), Pool: "renamed", Zone: "home", Service: "shop/" + f[0], UID: "uid-" + f[0], Held: f[2] == "held"}
}

// outcome is what a want has got, in a line each.
func outcome(o Outcome) (lines []string) {
	for _, g := range o.Given {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s of %s %s", g.Addr, g.Pool, g.Device)))
	}
	for _, n := range o.Own {
		lines = append(lines, "own "+n.Device+" "+n.Prefix.Masked().String())
	}
	for _, f := range o.Failures {
		lines = append(lines, fmt.Sprintf("%s %d: %s; %s", f.Code, f.Family, f.What, f.Remedy))
	}
	return lines
}

func TestAssign(t *testing.T) {
	const (
		elsewhere = "ask for another one with gatehouse.e13.dev/addresses"
		share     = ", or have both Services of one namespace share it by the annotation gatehouse.e13.dev/sharing-key"
		conflict  = "take the address from who else has it, or " + elsewhere
		allowFew  = elsewhere + ", or let pool few serve it: by its namespaces, namespaceLabels and labels"
		inPool    = "ask for an address of a pool with gatehouse.e13.dev/addresses, or add it to a pool"
		own1      = "own eth1 10.2.0.0/24"
	)
	for name, test := range map[string]struct {
		before   string // separated by commas
		wants    string // likewise; "in zone" is one of its words
		unusable string
		change   func(*Input)
		gets     map[string][]string // by the name of the Service, or NAME@ZONE
		held     string
	}{
		"the lowest, of each family and network, and the own address where there is no pool": {
			wants: "a families=46; b; c; d; e families=46",
			gets: map[string][]string{
				"a": {"10.1.0.8 of v4 eth0", "fd01::1:0 of v6 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}, "c": {"10.1.0.12 of v4 eth0", own1}, "d": {"10.1.0.13 of v4 eth0", own1},
				"e": {"fd01::1:1 of v6 eth0", own1, "PoolExhausted 4: pool v4 has no free address in 10.1.0.0/24; add addresses to pool v4 or delete a Service; 4 of 4 are given"},
			},
		},
		"what it may not use is not for it": {
			wants: "a pools=few",
			gets:  map[string][]string{"a": {"own eth0 10.1.0.0/24", own1}},
		},
		"what is routed has no device": {
			wants: "a zone=public; b zone=public; c zone=public; d zone=public pools=v4",
			gets: map[string][]string{
				"a@public": {"192.0.2.1 of routed", "own ppp0 198.51.100.7/32"}, "b@public": {"192.0.2.2 of routed", "own ppp0 198.51.100.7/32"},
				"c@public": {"own ppp0 198.51.100.7/32", "PoolExhausted 4: pool routed has no free address; add addresses to pool routed or delete a Service; 2 of 2 are given"},
				"d@public": {"own ppp0 198.51.100.7/32"},
			},
		},
		"who had one keeps it, against older ones": {
			before: "c 10.1.0.8; b 10.1.0.9 held", wants: "a status=10.1.0.8; b; c",
			gets: map[string][]string{"a": {"10.1.0.12 of v4 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}, "c": {"10.1.0.8 of v4 eth0", own1}},
		},
		"after the first status, the older one has it": {
			wants: "a; b status=10.1.0.12; c status=10.1.0.12",
			gets:  map[string][]string{"a": {"10.1.0.8 of v4 eth0", own1}, "b": {"10.1.0.12 of v4 eth0", own1}, "c": {"10.1.0.9 of v4 eth0", own1}},
		},
		"who leaves is waited for, and comes back as another one": {
			before: "gone 10.1.0.8; back 10.1.0.9; late 10.1.0.12 held", wants: "a status=10.1.0.8; b addresses=10.1.0.12; back uid=2",
			gets: map[string][]string{
				"a": {"10.1.0.13 of v4 eth0", own1}, "back": {"10.1.0.9 of v4 eth0", own1},
				"b": {own1, "AddressInUse 4: 10.1.0.12 was the address of service/shop/late until just now; wait a minute: then it is free"},
			},
			held: "10.1.0.8 v4 gone, 10.1.0.12 v4 late",
		},
		"what is held counts when all are gone": {
			before: "gone 10.1.0.8", wants: "a; b; c; d",
			gets: map[string][]string{"d": {own1, "PoolExhausted 4: pool v4 has no free address in 10.1.0.0/24; add addresses to pool v4 or delete a Service; 3 of 4 are given, 1 soon free"}},
			held: "10.1.0.8 v4 gone",
		},
		"a request takes the place of what it had there": {
			before: "a 10.1.0.8; a fd01::5:5", wants: "a families=46 addresses=10.1.0.20; b",
			gets: map[string][]string{"a": {"10.1.0.20 of few eth0", "fd01::5:5 of v6 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}},
			held: "10.1.0.8 v4 a",
		},
		"what it has asked for it keeps when it asks no more": {
			before: "a 10.1.0.20", wants: "a", gets: map[string][]string{"a": {"10.1.0.20 of few eth0", own1}},
		},
		"a pool by name": {
			before: "b 10.1.0.21; c 10.1.0.8", wants: "a addresses=few; b addresses=few; c addresses=few; d addresses=10.1.0.21,few",
			gets: map[string][]string{
				"a": {"10.1.0.20 of few eth0", own1}, "b": {"10.1.0.21 of few eth0", own1},
				"c": {own1, "PoolExhausted 4: pool few has no free address in 10.1.0.0/24; add addresses to pool few or delete a Service; 2 of 2 are given"},
				"d": {own1, "AddressInUse 4: 10.1.0.21 is the address of service/shop/b; " + elsewhere + share},
			},
			held: "10.1.0.8 v4 c",
		},
		"two pools by name are two addresses, for who prefers two families as well": {
			wants: "a addresses=few,v4; b addresses=v4,v6",
			gets:  map[string][]string{"a": {"10.1.0.8 of v4 eth0", "10.1.0.20 of few eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}},
		},
		"requests that cannot be met leave nothing in their place": {
			before: "e 10.1.0.9; b 10.1.0.12",
			wants:  "a addresses=10.1.0.77; b addresses=172.16.0.1; c addresses=10.1.0.20 pools=v4; d addresses=nope; e addresses=few pools=v4; f addresses=v6; g addresses=fd01::5:5; h addresses=10.1.0.255; i addresses=10.2.0.9",
			gets: map[string][]string{
				"a": {own1, "AddressNotInPool 4: 10.1.0.77 is in no pool of zone home; " + inPool},
				"b": {"AddressNotInPool 4: 172.16.0.1 is in no pool of zone home; " + inPool},
				"c": {own1, "AddressNotAllowed 4: 10.1.0.20 is of pool few, which this Service may not use; " + allowFew},
				"d": {"AddressNotInPool 0: there is no pool nope in zone home; name another one in gatehouse.e13.dev/addresses"},
				"e": {own1, "AddressNotAllowed 0: this Service may not use pool few; " + allowFew},
				"f": {"AddressNotInPool 0: pool v6 has no IPv4 address; add some to it, or name another one in gatehouse.e13.dev/addresses"},
				"g": {"10.1.0.8 of v4 eth0", own1, "AddressNotAllowed 6: fd01::5:5 is an IPv6 address, and this Service has no IPv6; set ipFamilyPolicy: PreferDualStack, or take it out of gatehouse.e13.dev/addresses"},
				"h": {own1, "AddressNotInPool 4: 10.1.0.255 is the broadcast address of 10.1.0.0/24; " + inPool},
				"i": {"10.1.0.13 of v4 eth0", "AddressNotInPool 4: 10.2.0.9 is in no pool of zone home; " + inPool},
			},
			held: "10.1.0.9 v4 e, 10.1.0.12 v4 b",
		},
		"an interface's own address, on request": {
			before: "a 10.1.0.8", wants: "a addresses=10.1.0.1; b addresses=10.2.0.1",
			gets: map[string][]string{"a": {"own eth0 10.1.0.0/24", own1}, "b": {"10.1.0.9 of v4 eth0", own1}},
			held: "10.1.0.8 v4 a",
		},
		"a request is for the zone that has it": {
			wants: "a addresses=192.0.2.2,few; a zone=public addresses=192.0.2.2,few; b addresses=172.16.0.1; b zone=public addresses=172.16.0.1",
			gets: map[string][]string{
				"a": {"10.1.0.20 of few eth0", own1}, "a@public": {"192.0.2.2 of routed", "own ppp0 198.51.100.7/32"},
				"b":        {"AddressNotInPool 4: 172.16.0.1 is in no pool of zones home and public; " + inPool},
				"b@public": {"AddressNotInPool 4: 172.16.0.1 is in no pool of zones home and public; " + inPool},
			},
		},
		"with the same key": {
			wants: "a key=k; b key=other; c key=k; d addresses=10.1.0.8 key=k; e addresses=10.1.0.8; f addresses=few key=k; g addresses=few key=k",
			gets: map[string][]string{
				"a": {"10.1.0.8 of v4 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}, "c": {"10.1.0.8 of v4 eth0", own1}, "d": {"10.1.0.8 of v4 eth0", own1},
				"e": {own1, "AddressInUse 4: 10.1.0.8 is the address of service/shop/a; " + elsewhere + share},
				"f": {"10.1.0.20 of few eth0", own1}, "g": {"10.1.0.20 of few eth0", own1},
			},
		},
		"who has no key any more goes, unless it is the older one": {
			before: "a 10.1.0.8; b 10.1.0.8; c 10.1.0.8", wants: "a key=k; b; c key=k",
			gets: map[string][]string{"a": {"10.1.0.8 of v4 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}, "c": {"10.1.0.8 of v4 eth0", own1}},
		},
		"what somebody has is not held for another one": {
			before: "a 10.1.0.8 held; b 10.1.0.8", wants: "a; b",
			gets: map[string][]string{"a": {"10.1.0.9 of v4 eth0", own1}, "b": {"10.1.0.8 of v4 eth0", own1}},
		},
		"one of a pool by name is enough": {
			before: "a 10.1.0.20; a 10.1.0.21", wants: "a addresses=few status=10.1.0.21",
			gets: map[string][]string{"a": {"10.1.0.21 of few eth0", own1}},
			held: "10.1.0.20 few a",
		},
		"a status in IPv6's writing": {
			wants: "a status=::ffff:10.1.0.12", gets: map[string][]string{"a": {"10.1.0.12 of v4 eth0", own1}},
		},
		"a network in another one, and a network of two": {
			wants: "a",
			change: func(in *Input) {
				in.Networks = append(in.Networks, Network{Zone: "home", Device: "eth2", Prefix: netip.MustParsePrefix("10.1.0.8/30")}, Network{Zone: "home", Device: "eth3", Prefix: netip.MustParsePrefix("10.4.0.0/31")})
				in.Pools[2].Auto = true
				in.Pools[2].Ranges = append(in.Pools[2].Ranges, between("10.4.0.1", "10.4.0.1"))
			},
			gets: map[string][]string{"a": {"10.1.0.9 of v4 eth2", "10.1.0.12 of v4 eth0", "10.4.0.1 of few eth3", own1}},
		},
		"of what is routed it keeps one, with all interfaces there": {
			before: "a 10.3.0.2; a 10.3.0.1", wants: "a status=10.3.0.2,10.3.0.1; b; b zone=public",
			change: func(in *Input) { in.Pools[0].Ranges = []edge.Range{between("10.3.0.1", "10.3.0.3")} },
			gets:   map[string][]string{"a": {"10.3.0.2 of v4", "own eth0 10.1.0.0/24", own1}, "b": {"10.3.0.3 of v4", "own eth0 10.1.0.0/24", own1}},
			held:   "10.3.0.1 v4 a",
		},
		"a key later changes nothing": {
			before: "a 10.1.0.8; b 10.1.0.9", wants: "a key=k; b key=k",
			gets: map[string][]string{"a": {"10.1.0.8 of v4 eth0", own1}, "b": {"10.1.0.9 of v4 eth0", own1}},
		},
		"what somebody else answers for": {
			before: "b 10.1.0.9; c 10.1.0.13", wants: "a; b; c status=10.1.0.13; d addresses=10.1.0.20", unusable: "10.1.0.8 10.1.0.9 10.1.0.13 10.1.0.20",
			gets: map[string][]string{
				"a": {own1, "PoolExhausted 4: pool v4 has no free address in 10.1.0.0/24; add addresses to pool v4 or delete a Service; 2 of 4 are given, 2 cannot be used"},
				"b": {"10.1.0.12 of v4 eth0", own1},
				"c": {"10.1.0.13 of v4 eth0", own1, "AddressConflict 4: 10.1.0.13 cannot be used: 52:54:00:00:00:01 has it; " + conflict},
				"d": {"10.1.0.20 of few eth0", own1, "AddressConflict 4: 10.1.0.20 cannot be used: 52:54:00:00:00:01 has it; " + conflict},
			},
			change: func(in *Input) { in.Wants = []Want{in.Wants[1], in.Wants[0], in.Wants[2], in.Wants[3]} },
		},
		"what it had and somebody else answers for is better than nothing": {
			before: "a 10.1.0.8; b 10.1.0.9", wants: "a; b; c", unusable: "10.1.0.8 10.1.0.9 10.1.0.12 10.1.0.13",
			gets: map[string][]string{
				"a": {"10.1.0.8 of v4 eth0", own1, "AddressConflict 4: 10.1.0.8 cannot be used: 52:54:00:00:00:01 has it; " + conflict},
				"b": {"10.1.0.9 of v4 eth0", own1, "AddressConflict 4: 10.1.0.9 cannot be used: 52:54:00:00:00:01 has it; " + conflict},
				"c": {own1, "PoolExhausted 4: pool v4 has no free address in 10.1.0.0/24; add addresses to pool v4 or delete a Service; 2 of 4 are given, 2 cannot be used"},
			},
		},
		"with the interface away, and a pool in each network": {
			before: "a 10.1.0.9; a 10.2.0.50", wants: "a; b; c addresses=10.1.0.20",
			change: func(in *Input) {
				in.Pools = append(in.Pools, Pool{Name: "second", Zone: "home", Ranges: []edge.Range{between("10.2.0.50", "10.2.0.59")}, Auto: true})
				in.Networks = nil
				for i := range in.Wants {
					in.Wants[i].Pools = append(slices.Clone(everyPool), "second")
				}
			},
			gets: map[string][]string{"a": {"10.1.0.9 of v4", "10.2.0.50 of second"}, "b": {"10.1.0.8 of v4"}, "c": {"10.1.0.20 of few"}},
		},
		"with the interface away, and what it had before that": {
			before: "web 10.1.0.8 held; web 10.1.0.20; again 10.1.0.9 held; again 10.1.0.21 held",
			wants:  "web; again uid=2", change: func(in *Input) { in.Networks = nil },
			gets: map[string][]string{"web": {"10.1.0.20 of few"}, "again": {"10.1.0.9 of v4", "10.1.0.21 of few"}}, // in two networks, for all that is known
			held: "10.1.0.8 v4 web",
		},
		"with one of two interfaces away": {
			before: "a 10.1.0.9; a 10.2.0.50; a 10.1.0.12", wants: "a",
			change: func(in *Input) {
				in.Pools = append(in.Pools, Pool{Name: "second", Zone: "home", Ranges: []edge.Range{between("10.2.0.50", "10.2.0.59"), between("10.3.0.1", "10.3.0.1")}, Auto: true})
				in.Networks = in.Networks[:1]
				in.Away = map[string]bool{"home": true}
				in.Wants[0].Pools = append(slices.Clone(everyPool), "second")
			},
			gets: map[string][]string{"a": {"10.1.0.9 of v4 eth0", "10.2.0.50 of second"}},
			held: "10.1.0.12 v4 a",
		},
		"a pool that is gone, a family, a permission": {
			before: "a 10.1.0.99; b fd01::5:5; c 10.1.0.8", wants: "a; b; c pools=few",
			gets: map[string][]string{"a": {"10.1.0.9 of v4 eth0", own1}, "b": {"10.1.0.12 of v4 eth0", own1}, "c": {"own eth0 10.1.0.0/24", own1}},
			held: "10.1.0.8 v4 c, fd01::5:5 v6 b",
		},
		"two interfaces in one network are as one": {
			wants: "a; b pools=few",
			change: func(in *Input) {
				in.Networks = append([]Network{in.Networks[0], {"home", "wlan0", netip.MustParsePrefix("10.1.0.2/24")}}, in.Networks[1:]...)
			},
			gets: map[string][]string{"a": {"10.1.0.8 of v4 eth0", own1}, "b": {"own eth0 10.1.0.0/24", "own wlan0 10.1.0.0/24", own1}},
		},
		"addresses that a network or the machine has for itself are never given": {
			before: "a 10.1.0.255", wants: "a status=10.1.0.1; b; c families=6",
			change: func(in *Input) {
				in.Pools = []Pool{
					{Name: "v4", Zone: "home", Ranges: []edge.Range{between("10.1.0.0", "10.1.0.3"), between("10.1.0.255", "10.1.0.255")}, Auto: true},
					{Name: "v6", Zone: "home", Ranges: []edge.Range{between("fd01::", "fd01::2")}, Auto: true},
				}
			},
			gets: map[string][]string{"a": {"10.1.0.2 of v4 eth0", own1}, "b": {"10.1.0.3 of v4 eth0", own1}, "c": {"fd01::2 of v6 eth0"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := house()
			for text := range strings.SplitSeq(test.wants, "; ") {
				in.Wants = append(in.Wants, want(text))
			}
			if test.before != "" {
				for text := range strings.SplitSeq(test.before, "; ") {
					in.Before = append(in.Before, before(text))
				}
			}
			in.Unusable = map[netip.Addr]string{}
			for a := range strings.FieldsSeq(test.unusable) {
				in.Unusable[netip.MustParseAddr(a)] = "52:54:00:00:00:01 has it"
			}
			if test.change != nil {
				test.change(&in)
			}
			r := Assign(in)
			for who, want := range test.gets {
				p := Place{"shop/" + who, "home"}
				if name, zone, ok := strings.Cut(who, "@"); ok {
					p = Place{"shop/" + name, zone}
				}
				if got := outcome(r.Of[p]); !slices.Equal(got, want) {
					t.Errorf("%s has\n  %s\nwant\n  %s", who, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
				}
			}
			var held []string
			for _, a := range r.Allocations {
				if a.Held {
					held = append(held, a.Addr.String()+" "+a.Pool+" "+strings.TrimPrefix(a.Service, "shop/"))
				}
			}
			if got := strings.Join(held, ", "); got != test.held {
				t.Errorf("held: %s\nwant  %s", got, test.held)
			}
		})
	}
}

func TestLastOf(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.0.0.0/8": "10.255.255.255", "10.0.0.0/30": "10.0.0.3", "10.0.0.1/32": "10.0.0.1", "0.0.0.0/0": "255.255.255.255",
		"fd00::/63": "fd00::1:ffff:ffff:ffff:ffff", "fd00::/128": "fd00::", "::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := lastOf(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("lastOf(%s) = %s, want %s", prefix, got, want)
		}
	}
}

func TestSegmentSize(t *testing.T) {
	for r, want := range map[edge.Range]int{
		between("10.0.0.1", "10.0.0.1"): 1, between("0.0.0.0", "255.255.255.255"): 1 << 32, between("fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::"): 2,
		between("fd00::", "fd00::7fff:ffff:ffff:fffd"): 1<<63 - 2, between("fd00::", "fd00::ffff:ffff:ffff:ffff"): 1<<63 - 1, between("fd00::", "fe00::"): 1<<63 - 1,
	} {
		if got := (&segment{first: r.First, last: r.Last}).size(); got != want {
			t.Errorf("size of %v = %d, want %d", r, got, want)
		}
	}
}
