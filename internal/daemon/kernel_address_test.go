package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/conntrack"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/netnstest"
)

var (
	poolAddr4 = netip.MustParseAddr("10.11.12.70")
	poolAddr6 = netip.MustParseAddr("fd12::70")
)

// atAddr is the same door at an address.
func atAddr(d edge.Door, addr netip.Addr) edge.Door {
	d.Listen.Addr = addr
	return d
}

func pooled(addrs ...netip.Addr) (all []edge.Address) {
	for _, a := range addrs {
		all = append(all, edge.Address{Addr: a, Device: "eth1"})
	}
	return all
}

// What is forgotten of the doors of an address is not of others with the port
// and the backends, and the other way round.
func TestFlowsToAddressesAreForgotten(t *testing.T) {
	ofPool, elsewhere := atAddr(homeDoor, poolAddr4), homeDoor
	elsewhere.Listen.Device = "eth0"
	both := []edge.Frontend{translated(homeDoor, up(pod1)), translated(ofPool, up(pod1)), translated(atAddr(elsewhere, poolAddr4), up(pod1))}
	udp := func(frontends []edge.Frontend) []edge.Frontend {
		frontends = slices.Clone(frontends)
		for i := range frontends {
			frontends[i].Protocol = edge.UDP
		}
		return frontends
	}
	for name, c := range map[string]struct {
		now       []edge.Frontend
		own, pool bool // flows there are forgotten
		after     time.Duration
	}{
		"nothing has changed":          {now: both},
		"the address has no door":      {now: both[:1], pool: true},
		"the others have none":         {now: both[1:], own: true},
		"another backend at it":        {now: []edge.Frontend{both[0], translated(ofPool, up(pod2))}, pool: true},
		"another backend elsewhere":    {now: []edge.Frontend{translated(homeDoor, up(pod2)), both[1], both[2]}, own: true},
		"down at it":                   {now: []edge.Frontend{both[0], translated(ofPool, down(pod1), up(pod2))}, pool: true},
		"closed at its own interface":  {now: []edge.Frontend{both[0], both[2]}, pool: true},
		"closed at another interface":  {now: both[:2], pool: true},
		"closed there for a while now": {now: both[:2], after: shutTime + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTestKernel(t)
			k.wants(udp(both)...)
			k.poolLocked(pooled(poolAddr4))
			k.wants(udp(c.now)...)
			k.poolLocked(nil) // it is free again
			for addr, want := range map[netip.Addr]bool{frontAddr.Addr(): c.own, poolAddr4: c.pool} {
				f := conntrack.Flow{Protocol: edge.UDP, Front: netip.AddrPortFrom(addr, 80), Backend: pod1, DNAT: true, Replied: true}
				if got := k.doomedLocked(f, time.Now().Add(c.after)); got != want {
					t.Errorf("the flow to %s is forgotten: %t, want %t", addr, got, want)
				}
			}
		})
	}
}

// An address belongs to doors that have it as long as one has a connection.
func TestAddressesOfWhoIsGone(t *testing.T) {
	k := newTestKernel(t)
	door := atAddr(homeDoor, poolAddr4)
	k.wants(translated(door, up(pod1)))
	k.wants(translated(homeDoor, up(pod1)))
	if got := k.poolLocked(nil); !slices.Equal(got, []netip.Addr{poolAddr4}) {
		t.Fatalf("for doors that have them are %v", got)
	}
	k.purges = 0
	flow := conntrack.Flow{Protocol: edge.TCP, State: conntrack.Established, Front: netip.AddrPortFrom(poolAddr4, 80), Backend: pod1}
	if k.forgetBackendsLocked([]conntrack.Flow{flow}); len(k.poolLocked(nil)) != 1 {
		t.Error("it is others' while it has a connection")
	}
	flow.Front = frontAddr // of the other
	if k.forgetBackendsLocked([]conntrack.Flow{flow}); len(k.poolLocked(nil)) != 0 {
		t.Errorf("without any it is still for doors that have it: %v", k.behind)
	}
	if got := k.poolLocked(pooled(poolAddr6)); !slices.Equal(got, []netip.Addr{poolAddr6}) || k.own[poolAddr6] != "eth1" {
		t.Errorf("for doors that have them are %v, own ones %v", got, k.own)
	}
}

// machine is what is known of the edge of a netnstest.Site.
func machine() []edge.Interface {
	return []edge.Interface{
		{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}},
		{Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.11.12.32/24"), netip.MustParsePrefix("fd12::32/64")}},
	}
}

// Doors of addresses beside one of all others, with one port and one pod: what
// there is of each is told, handed on to the next process, and ended for itself.
func TestNetnsDoorsOfAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 8080)
		netnstest.Addr(t, nil, "eth1", poolAddr4.String()+"/32")
		netnstest.Addr(t, nil, "eth1", poolAddr6.String()+"/128")
		to4, to6 := netip.MustParseAddrPort("10.244.1.5:8080"), netip.MustParseAddrPort("[fd44::5]:8080")
		dns := homeDoor
		dns.Protocol = edge.UDP
		state := stateOf()
		for _, door := range []edge.Door{homeDoor, dns} {
			state.Frontends = append(state.Frontends, translated(door, up(to4), up(to6)), translated(atAddr(door, poolAddr4), up(to4)), translated(atAddr(door, poolAddr6), up(to6)))
		}
		for i := range state.Frontends {
			state.Frontends[i].Name = "web"
		}
		state.Addresses = pooled(poolAddr4, poolAddr6)
		k := realKernel(t)
		k.open(t.Context(), state, machine())
		if _, problems := k.state(); len(problems) > 0 {
			t.Fatal(problems)
		}
		own4, own6 := netip.MustParseAddr("10.11.12.32"), netip.MustParseAddr("fd12::32")
		alive := map[netip.Addr]func(){}
		for _, a := range []netip.Addr{own4, own6, poolAddr4, poolAddr6} {
			alive[a], _ = talk(t, site, netip.AddrPortFrom(a, 80).String())
			if _, err := netnstest.LookIn(t, site.Home, "udp", netip.AddrPortFrom(a, 80).String()); err != nil {
				t.Fatal(err)
			}
		}
		tell := func(k *kernel) string {
			t.Helper()
			k.counted = time.Time{}
			var lines []string
			for door, row := range k.tell(t.Context()).now {
				for to, n := range row {
					lines = append(lines, fmt.Sprintf("%v %v %d of %d", door, to, n.active, n.Connections))
				}
			}
			slices.Sort(lines)
			return strings.Join(lines, "\n")
		}
		want := strings.Join([]string{
			"TCP 10.11.12.70:80@eth1 10.244.1.5:8080 1 of 1", "TCP @eth1:80 10.244.1.5:8080 1 of 1", "TCP @eth1:80 [fd44::5]:8080 1 of 1",
			"TCP [fd12::70]:80@eth1 [fd44::5]:8080 1 of 1", "UDP 10.11.12.70:80@eth1 10.244.1.5:8080 1 of 1", "UDP @eth1:80 10.244.1.5:8080 1 of 1",
			"UDP @eth1:80 [fd44::5]:8080 1 of 1", "UDP [fd12::70]:80@eth1 [fd44::5]:8080 1 of 1",
		}, "\n")
		if got := tell(k); got != want {
			t.Errorf("it tells of\n%s\nwant\n%s", got, want)
		}
		// The next process finds the same, once it knows which addresses are its own.
		ofPool := strings.ReplaceAll(strings.ReplaceAll(want, "@eth1:80 10.244.1.5:8080 1 of", "@eth1:80 10.244.1.5:8080 0 of"), "@eth1:80 [fd44::5]:8080 1 of", "@eth1:80 [fd44::5]:8080 0 of")
		k = realKernel(t)
		if k.hold(t.Context(), true, nil, state) {
			t.Error("it waits for what it knows")
		}
		if got := tell(k); got != ofPool {
			t.Errorf("before it has decided anything, the next process tells of\n%s\nwant\n%s", got, ofPool)
		}
		k.open(t.Context(), state, machine())
		if got := tell(k); got != want {
			t.Errorf("the next process tells of\n%s\nwant\n%s", got, want)
		}
		// One address has no door any more, and is nobody's.
		flows := func() string {
			t.Helper()
			all, err := conntrack.List(t.Context(), conntrack.Filter{DNAT: true})
			if err != nil {
				t.Fatal(err)
			}
			var fronts []string
			for _, f := range all {
				fronts = append(fronts, fmt.Sprintf("%s %s", f.Protocol, f.Front.Addr()))
			}
			slices.Sort(fronts)
			return strings.Join(fronts, " ")
		}
		less := state
		less.Addresses = pooled(poolAddr6)
		less.Frontends = slices.DeleteFunc(slices.Clone(state.Frontends), func(f edge.Frontend) bool { return f.Listen.Addr == poolAddr4 })
		k.open(t.Context(), less, machine())
		k.close(t.Context())
		if err := k.purgeLocked(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if got, want := flows(), "TCP 10.11.12.32 TCP 10.11.12.70 TCP fd12::32 TCP fd12::70 UDP 10.11.12.32 UDP fd12::32 UDP fd12::70"; got != want {
			t.Errorf("the kernel has flows to\n%s\nwant\n%s", got, want)
		}
		for _, a := range alive {
			a()
		}
		if text := sh(t, "nft list set inet gatehouse addresses4"); !strings.Contains(text, poolAddr4.String()) {
			t.Errorf("an address is others' that has a connection:\n%s", text)
		}
		// The doors of the other go to the relay, which takes what is UDP at once.
		for i := range less.Frontends {
			if less.Frontends[i].Listen.Addr == poolAddr6 {
				less.Frontends[i].DataPlane = edge.DataPlaneProxy
			}
		}
		k.open(t.Context(), less, machine())
		if text := sh(t, "nft list map inet gatehouse address-doors6"); !strings.Contains(text, poolAddr6.String()) {
			t.Errorf("nobody has the doors:\n%s", text)
		}
		k.close(t.Context())
		if text := sh(t, "nft list map inet gatehouse address-doors6"); strings.Contains(text, poolAddr6.String()) {
			t.Errorf("the kernel has doors of the relay:\n%s", text)
		}
		if text := sh(t, "nft list set inet gatehouse addresses6"); !strings.Contains(text, poolAddr6.String()) {
			t.Errorf("an address of the relay's is for doors that have none:\n%s", text)
		}
		if err := k.purgeLocked(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if got, want := flows(), "TCP 10.11.12.32 TCP 10.11.12.70 TCP fd12::32 TCP fd12::70 UDP 10.11.12.32 UDP fd12::32"; got != want {
			t.Errorf("the kernel has flows to\n%s\nwant\n%s", got, want)
		}
		for _, a := range alive {
			a()
		}
	})
}

// While the cluster cannot be read, a door of a file does not take what comes to
// the addresses of Services that are not known.
func TestNetnsAddressesOfAClusterThatIsNotRead(t *testing.T) {
	netnstest.Run(t, func() {
		web := translated(homeDoor, up(pod1))
		web.Name = "web"
		state := stateOf(web)
		before := realKernel(t)
		before.open(t.Context(), desired.State{NAT: true, Frontends: state.Frontends, Addresses: pooled(poolAddr4, poolAddr6)}, machine())
		k := realKernel(t)
		k.hold(t.Context(), false, nil, state)
		k.since = k.since.Add(-kernelHold)
		for _, c := range []struct {
			read bool
			want []netip.Addr
		}{{false, []netip.Addr{poolAddr4, poolAddr6}}, {false, []netip.Addr{poolAddr4, poolAddr6}}, {true, nil}} {
			if k.hold(t.Context(), c.read, nil, state) {
				t.Fatal("it waits forever")
			}
			k.open(t.Context(), state, machine())
			found := realKernel(t).nat
			if _, _, err := found.Adopt(t.Context()); err != nil || !slices.Equal(found.Addresses(), c.want) {
				t.Errorf("with the cluster read (%t), for doors that have them are %v, %v; want %v", c.read, found.Addresses(), err, c.want)
			}
		}
	})
}

// What a program had of the UDP of a door's address comes to the kernel, which
// has nothing to do with what comes to others.
func TestNetnsFlowsOfBeforeADoorOfAnAddress(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, nil, 80)
		netnstest.Addr(t, nil, "eth1", poolAddr4.String()+"/32")
		k, door, other := realKernel(t), homeDoor, homeDoor
		door.Protocol, other.Listen.Port = edge.UDP, 81
		state := stateOf(translated(other, up(pod1)))
		k.open(t.Context(), state, machine()) // conntrack begins
		site.Home.Do(t, func() {
			for _, addr := range []string{"10.11.12.32:80", "10.11.12.70:80"} {
				c, err := net.Dial("udp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Write([]byte("who am I")); err != nil {
					t.Fatal(err)
				}
			}
		})
		fronts := func() (addrs []netip.Addr) {
			t.Helper()
			all, err := conntrack.List(t.Context(), conntrack.Filter{Protocol: edge.UDP})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range all {
				if f.Front.Port() == 80 {
					addrs = append(addrs, f.Front.Addr())
				}
			}
			return addrs
		}
		netnstest.Eventually(t, 10*time.Second, "both are tracked", func() bool { return len(fronts()) == 2 })
		state.Frontends = append(state.Frontends, translated(atAddr(door, poolAddr4), up(pod1)))
		state.Addresses = pooled(poolAddr4)
		k.open(t.Context(), state, machine())
		if err := k.purgeUntranslatedLocked(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fronts(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("10.11.12.32")}) {
			t.Errorf("left are flows to %v", got)
		}
	})
}
