package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
	"e13.dev/gatehouse/internal/nat"
	"e13.dev/gatehouse/internal/netnstest"
)

// The verdicts of the evaluator are those of the kernel: random rules, loaded one
// after the other as a daemon would, and random packets, really sent, which come
// out where the evaluator lets them, with the source that it says, and nowhere
// else. GATEHOUSE_SEED repeats a run.
func TestNetnsTheKernelAgrees(t *testing.T) {
	netnstest.Run(t, func() {
		seed := uint64(time.Now().UnixNano())
		if s := os.Getenv("GATEHOUSE_SEED"); s != "" {
			seed, _ = strconv.ParseUint(s, 10, 64)
		}
		t.Logf("GATEHOUSE_SEED=%d", seed)
		const ruleSets, packets = 40, 40
		c := newCrossing(t, seed)
		for range ruleSets {
			c.newRules(t)
			for range packets {
				c.sendOne(t)
			}
			c.settle(t)
			c.answer(t)
			c.settle(t)
			if t.Failed() {
				t.Fatalf("the rules were made of\n%s\nopen: %+v", c.file, c.rules.Pinholes)
			}
		}
		t.Logf("%d packets: %d accepted, %d of them masqueraded, %d dropped; by what: %v", c.next, c.accepted, c.masqueraded, c.dropped, c.by)
		// What was to be seen of all that can be.
		for what, n := range map[string]int{"accepted": c.accepted, "masqueraded": c.masqueraded, "dropped": c.dropped, "answered": c.answers} {
			if n < packets/4 {
				t.Errorf("%d packets were %s: the rules are not random enough", n, what)
			}
		}
	})
}

// crossing is an edge with four cables, the last of which is in no zone.
//
//	ethN of the edge: 10.0.N.1, fd00:N::1, and 10.0.N.70, fd00:N::70 as of a pool
type crossing struct {
	*wire
	random  *rand.Rand
	applier *Applier
	nat     *nat.Applier

	file      string
	rules     firewall.Ruleset
	frontends []edge.Frontend
	expected  map[uint32]expectation // of what is to arrive
	seen      []passed               // of this rule set, to be answered
	policies  []uint64               // what each has to count
	next      uint32

	accepted, masqueraded, dropped, answers int
	by                                      map[string]int
}

// expectation is where a packet is to arrive.
type expectation struct {
	at       string
	src, dst netip.Addr // zero: not looked at
	other    netip.Addr // that src may be instead: of two addresses the kernel takes either
	what     string
	of       *passed // to be answered once it is there
}

// passed is a packet that has gone through the edge.
type passed struct {
	packet sent
	asked  netip.Addr // what it was sent to
	out    string
	seen   arrival
}

const devices = 4

func device(n int) string { return "eth" + strconv.Itoa(n) }

func address(version, network, n int) netip.Addr {
	if version == 4 {
		return netip.AddrFrom4([4]byte{10, 0, byte(network), byte(n)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", network, n))
}

const pooled = 70

func newCrossing(t *testing.T, seed uint64) *crossing {
	netnstest.Setting(t, nil, "net/ipv4/ip_forward", "1")
	netnstest.Setting(t, nil, "net/ipv6/conf/all/forwarding", "1")
	var hosts []*host
	for n := range devices {
		h := &host{device: device(n), ipv4: address(4, n, 1), ns: netnstest.New(t)}
		netnstest.Cable(t, nil, h.device, h.ns, "eth0")
		for _, last := range []int{1, pooled} {
			netnstest.Addr(t, nil, h.device, address(4, n, last).String()+"/24")
			netnstest.Addr(t, nil, h.device, address(6, n, last).String()+"/64")
		}
		hosts = append(hosts, h)
	}
	for _, name := range []string{"all", "default", "eth0", "eth1", "eth2", "eth3"} {
		netnstest.Setting(t, nil, "net/ipv4/conf/"+name+"/rp_filter", "0")
		netnstest.Setting(t, nil, "net/ipv4/conf/"+name+"/send_redirects", "0")
	}
	c := &crossing{
		wire: newWire(t, hosts), random: rand.New(rand.NewPCG(seed, 0)), applier: New(), nat: nat.New(),
		expected: map[uint32]expectation{}, by: map[string]int{},
	}
	for n, h := range hosts {
		for _, version := range []int{4, 6} {
			for last := 2; last < 8; last++ {
				command(t, "ip", "neigh", "replace", address(version, n, last).String(), "lladdr", h.mac.String(), "dev", h.device, "nud", "permanent")
			}
		}
	}
	command(t, "ip", "route", "add", "default", "via", address(4, 2, 2).String())
	command(t, "ip", "-6", "route", "add", "default", "via", address(6, 2, 2).String())
	// Somebody else translates as well, which opens nothing.
	command(t, "nft", `table ip theirs { chain dstnat { type nat hook prerouting priority dstnat; tcp dport 7777 dnat to 10.0.2.4:80; }; }`)
	// One processor has one queue: what is sent later comes later.
	runtime.LockOSThread()
	var one, may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if may.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	return c
}

// pick returns one of them.
func pick[T any](c *crossing, of ...T) T { return of[c.random.IntN(len(of))] }

func (c *crossing) some(most int, of ...string) string {
	n := 1 + c.random.IntN(most)
	var some []string
	for range n {
		if one := pick(c, of...); !slices.Contains(some, one) {
			some = append(some, one)
		}
	}
	return "[" + strings.Join(some, ", ") + "]"
}

// newFile writes a file that a person could.
func (c *crossing) newFile() string {
	zones := pick(c, "a: {interfaces: [eth0]}, b: {interfaces: [eth1, eth2]}", "a: {interfaces: [eth0]}, b: {interfaces: [eth1]}, c: {interfaces: [eth2]}", "c: {interfaces: [eth2, eth0]}, b: {interfaces: [eth1]}")
	names := []string{"any"}
	for _, name := range []string{"a", "b", "c"} {
		if strings.Contains(zones, name+": ") {
			names = append(names, name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: gatehouse.e13.dev/v1\nzones: {%s}\nfirewall:\n  policies:\n", zones)
	networks := []string{
		"10.0.0.0/24", "10.0.1.5", "10.0.2.0/30", "10.0.0.0/8", "198.51.100.0/24", `"fd00:0::/64"`, `"fd00:1::5"`, `"fd00::/16"`, `"2001:db8::/32"`, "0.0.0.0/0", `"::/0"`,
	}
	for range c.random.IntN(7) {
		to := pick(c, append(names, "self", "self")...)
		fmt.Fprintf(&b, "    - {from: %s, to: %s", pick(c, names...), to)
		if c.random.IntN(3) > 0 {
			fmt.Fprintf(&b, ", ports: %s", c.some(4, "22", "80", "443/TCP", "dns", "123/UDP", "8000-8010", "8005-8020", "8000-8010/UDP", "ping", "2905/SCTP", "68/UDP"))
		} else {
			fmt.Fprintf(&b, ", allow: true")
		}
		if c.random.IntN(3) == 0 {
			fmt.Fprintf(&b, ", sources: %s", c.some(3, networks...))
		}
		if c.random.IntN(3) == 0 {
			fmt.Fprintf(&b, ", destinations: %s", c.some(3, networks...))
		}
		switch {
		case c.random.IntN(5) == 0 && !strings.Contains(b.String()[strings.LastIndex(b.String(), "\n"):], "allow"):
			b.WriteString(", allow: false")
		case to != "self" && c.random.IntN(2) == 0:
			b.WriteString(", masquerade: true")
		}
		b.WriteString("}\n")
	}
	if c.random.IntN(3) == 0 { // what others before let pass, too
		b.WriteString("    - {from: any, to: any, allow: true, masquerade: true}\n")
	}
	if strings.HasSuffix(b.String(), "policies:\n") {
		b.WriteString("    []\n")
	}
	if c.random.IntN(3) == 0 {
		fmt.Fprintf(&b, "admin: {zones: [b], port: %d, tokenFile: /etc/gatehouse/token}\n", pick(c, 80, 8003))
	}
	return b.String()
}

// newRules loads other rules.
func (c *crossing) newRules(t *testing.T) {
	t.Helper()
	var parsed *config.Config
	for parsed == nil { // sources and destinations may be of different families
		c.file = c.newFile()
		parsed, _ = config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(c.file)}})
	}
	in := firewall.Inputs{Config: parsed}
	c.newFrontends()
	in.Frontends = c.frontends
	if c.random.IntN(2) == 0 {
		in.Addresses = []netip.Addr{address(4, 1, pooled), address(6, 0, pooled)}
	}
	c.rules = firewall.Compile(in)
	if _, err := c.nat.Apply(t.Context(), nat.State{Frontends: c.frontends, Addresses: in.Addresses}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.applier.Apply(t.Context(), &c.rules, false); err != nil {
		t.Fatalf("%v\n%s", err, c.file)
	}
	if c.random.IntN(4) == 0 {
		if mended, err := c.applier.Verify(t.Context()); err != nil || mended {
			t.Fatalf("the table is not what was made: mended %t, %v\n%s", mended, err, c.file)
		}
	}
	if c.random.IntN(4) == 0 {
		c.applier = New() // another process, which goes on
	}
	counts, err := c.applier.Counts()
	if err != nil {
		t.Fatal(err)
	}
	c.policies = make([]uint64, len(parsed.Firewall.Policies))
	copy(c.policies, counts.Policies)
	c.seen = nil
}

func (c *crossing) newFrontends() {
	c.frontends = nil
	taken := map[string]bool{}
	for range c.random.IntN(8) {
		n := c.random.IntN(devices)
		version := pick(c, 4, 6)
		f := door(pick(c, edge.DataPlaneProxy, edge.DataPlaneNAT), pick(c, edge.TCP, edge.TCP, edge.UDP), device(n), "", pick(c, uint16(80), 443, 8001, 22))
		switch c.random.IntN(4) {
		case 0, 1:
		case 2:
			f.Listen.Addr = address(version, n, pooled)
		case 3:
			f.DataPlane, f.Listen.Device, f.Listen.Addr = edge.DataPlaneProxy, "", pick(c, address(version, n, 1), netip.IPv4Unspecified(), netip.IPv6Unspecified())
		}
		if c.random.IntN(3) == 0 {
			f.SourceRanges = []netip.Prefix{pick(c, netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("0.0.0.0/0"))}
			if c.random.IntN(2) == 0 {
				f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("10.0.0.0/8"))
			}
		}
		// Whoever is at one address is in the way of those at all of them.
		key := fmt.Sprint(f.Protocol, f.Listen.Port, f.Listen.Device != "" && f.Listen.Addr.IsValid(), f.Listen.Addr, f.Listen.Device)
		if f.Listen.Device == "" {
			key = fmt.Sprint(f.Protocol, f.Listen.Port, false, netip.Addr{}, device(n))
		}
		if taken[key] {
			continue
		}
		taken[key] = true
		f.Name, f.Why = key, key
		if f.DataPlane == edge.DataPlaneNAT {
			f.Balance = edge.BalanceRandom
			for _, version := range []int{4, 6} {
				to := netip.AddrPortFrom(address(version, c.random.IntN(devices), 2+c.random.IntN(4)), pick(c, uint16(80), 9000))
				f.Backends = append(f.Backends, edge.Backend{Addr: to, Weight: 1, State: edge.Up, Share: 1})
			}
		}
		c.frontends = append(c.frontends, f)
	}
}

// out is the interface by which the edge sends something; empty: to itself.
func out(dst netip.Addr) string {
	if dst.IsMulticast() {
		return ""
	}
	for n := range devices {
		for _, version := range []int{4, 6} {
			switch {
			case dst == address(version, n, 1), dst == address(version, n, pooled):
				return ""
			case netip.PrefixFrom(address(version, n, 1), map[int]int{4: 24, 6: 64}[version]).Contains(dst):
				return device(n)
			}
		}
	}
	return device(2)
}

// translate is what data plane nat does with the first packet of a connection:
// sends it elsewhere, or turns it away if it is a door where it may not come in.
func (c *crossing) translate(in string, p sent) (to netip.AddrPort, refused bool) {
	if out(p.dst) != "" || p.dst.IsMulticast() {
		return netip.AddrPort{}, false
	}
	own := slices.Contains(c.natAddresses(), p.dst)
	for _, f := range c.frontends {
		if f.DataPlane != edge.DataPlaneNAT || f.Listen.Device != in || f.Protocol != p.protocol || f.Listen.Port != p.dport {
			continue
		}
		if f.Listen.Addr.IsValid() != own || own && f.Listen.Addr != p.dst {
			continue
		}
		if f.SourceRanges != nil && !slices.ContainsFunc(f.SourceRanges, func(n netip.Prefix) bool { return n.Contains(p.src) }) {
			return netip.AddrPort{}, true
		}
		for _, b := range f.Backends {
			if b.Addr.Addr().Is4() == p.dst.Is4() {
				return b.Addr, false
			}
		}
	}
	return netip.AddrPort{}, false
}

// natAddresses are those at which only doors count that have them.
func (c *crossing) natAddresses() []netip.Addr {
	addrs := slices.Clone(c.nat.Addresses())
	for _, f := range c.frontends {
		if f.DataPlane == edge.DataPlaneNAT && f.Listen.Addr.IsValid() {
			addrs = append(addrs, f.Listen.Addr)
		}
	}
	return addrs
}

// farAddress is one of a machine far away.
func farAddress(version int) netip.Addr {
	if version == 4 {
		return netip.MustParseAddr("198.51.100.7")
	}
	return netip.MustParseAddr("2001:db8::7")
}

// newPacket makes one that the kernel itself has nothing against.
func (c *crossing) newPacket() (in string, p sent, state firewall.State) {
	n := c.random.IntN(devices)
	version := pick(c, 4, 6)
	if c.random.IntN(2) == 0 {
		if in, p, ok := c.aimedPacket(version); ok {
			return in, p, firewall.New
		}
	}
	far := farAddress(version)
	c.next++
	p = sent{id: 0x67680000 + c.next, hops: 64, sport: uint16(20000 + c.next%40000)}
	p.src = pick(c, address(version, n, 2+c.random.IntN(4)), address(version, n, 5), address(version, c.random.IntN(devices), 2+c.random.IntN(4)), far)
	m := c.random.IntN(devices)
	p.dst = pick(c, address(version, m, 1), address(version, m, pooled), address(version, n, 1), address(version, m, 2+c.random.IntN(4)), address(version, m, 5), far.Next())
	p.dport = pick(c, uint16(22), 53, 80, 80, 123, 443, 8000, 8001, 8003, 8010, 8011, 8020, 8021, 2905)
	switch kind := c.random.IntN(24); {
	case kind < 9:
		p.protocol, p.tcpFlags = edge.TCP, syn
	case kind < 14:
		p.protocol = edge.UDP
	case kind < 17:
		p.protocol, p.icmpType = config.ICMP, map[int]byte{4: 8, 6: 128}[version]
	case kind < 18:
		p.protocol, p.icmpType = config.ICMP, map[int]byte{4: 13, 6: 139}[version] // a timestamp; node information
	case kind < 19:
		p.protocol = edge.SCTP
	case kind < 20:
		p.protocol, p.tcpFlags, state = edge.TCP, syn|ack, firewall.Invalid
	case kind < 21:
		p.protocol, p.tcpFlags, p.dport = edge.TCP, syn, 7777
	case kind < 22 && version == 6:
		p.protocol, p.icmpType, state = config.ICMP, pick(c, byte(133), 134, 135, 136), firewall.Untracked
		p.hops = pick(c, byte(255), 254, 64)
	case kind < 23 && version == 6:
		p.protocol, p.icmpType, state = config.ICMP, pick(c, byte(130), 131, 143), firewall.Untracked
		p.dst, p.hops = netip.MustParseAddr("ff02::1"), pick(c, byte(1), 64)
	case kind < 23:
		p.number, p.dst, p.hops = unix.IPPROTO_IGMP, netip.MustParseAddr("224.0.0.1"), pick(c, byte(1), 64)
	case version == 6:
		p.protocol, p.sport, p.dport = edge.UDP, 547, 546
		p.dst, p.src = address(6, n, 1), pick(c, netip.MustParseAddr(fmt.Sprintf("fe80::%x", c.next)), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", c.next)))
	default:
		p.protocol, p.sport, p.dport, p.dst = edge.UDP, 67, 68, address(4, n, 1)
		p.src = netip.AddrFrom4([4]byte{10, byte(1 + c.next>>16), byte(c.next >> 8), byte(c.next)})
	}
	if p.protocol == config.ICMP || p.protocol == "" {
		p.sport, p.dport = 0, 0
	}
	return device(n), p, state
}

// aimedPacket makes one that a policy or a door is about, or nearly so.
func (c *crossing) aimedPacket(version int) (in string, p sent, ok bool) {
	c.next++
	p = sent{id: 0x67680000 + c.next, hops: 64, sport: uint16(20000 + c.next%40000), tcpFlags: syn}
	from, m := c.random.IntN(devices), c.random.IntN(devices)
	p.src = address(version, from, 2+c.random.IntN(4))
	if c.random.IntN(2) == 0 && len(c.rules.Pinholes) > 0 {
		hole := pick(c, c.rules.Pinholes...)
		if hole.Addr.IsValid() && hole.Addr.Is4() != (version == 4) {
			return "", p, false
		}
		p.dst, p.protocol, p.dport = pick(c, address(version, m, 1), address(version, m, pooled)), hole.Protocol, hole.Port
		if hole.Addr.IsValid() && c.random.IntN(4) > 0 {
			p.dst = hole.Addr
		}
		return hole.Device, p, true
	}
	var policies []firewall.Rule
	for _, r := range c.rules.Rules {
		if r.Policy >= 0 {
			policies = append(policies, r)
		}
	}
	if len(policies) == 0 {
		return "", p, false
	}
	fits := pick(c, policies...).Fits
	by := func(z firewall.ZoneMatch) int {
		for {
			n := c.random.IntN(devices)
			if zone := c.rules.ZoneOf(device(n)); z.Zone == "" || z.Zone == zone {
				return n
			}
		}
	}
	from, m = by(fits.From), by(fits.To)
	p.src, p.dst = address(version, from, 2+c.random.IntN(4)), address(version, m, 2+c.random.IntN(4))
	if c.random.IntN(4) == 0 {
		p.src = farAddress(version)
	}
	if fits.To == (firewall.ZoneMatch{}) {
		p.dst = address(version, m, 1)
	}
	p.protocol, p.dport = edge.UDP, uint16(1+c.random.IntN(9000))
	if fits.Services != nil {
		s := pick(c, fits.Services...)
		p.protocol, p.dport = s.Protocol, s.First+uint16(c.random.IntN(int(s.Last-s.First)+1))
		if c.random.IntN(8) == 0 && s.Protocol != config.ICMP {
			p.dport = s.Last + 1
		}
	}
	if p.protocol == config.ICMP {
		p.sport, p.dport, p.icmpType = 0, 0, map[int]byte{4: 8, 6: 128}[version]
	}
	return device(from), p, true
}

// sendOne sends a packet and says what is to become of it.
func (c *crossing) sendOne(t *testing.T) {
	t.Helper()
	in, p, state := c.newPacket()
	asks := firewall.Packet{
		In: in, Out: out(p.dst), Src: p.src, Dst: p.dst, Protocol: p.protocol, SrcPort: p.sport, DstPort: p.dport,
		ICMPType: p.icmpType, HopLimit: p.hops, Number: p.number, State: state,
	}
	refused := false
	if state == firewall.New {
		var to netip.AddrPort
		to, refused = c.translate(in, p)
		if p.protocol == edge.TCP && p.dport == 7777 && p.dst.Is4() {
			to = netip.MustParseAddrPort("10.0.2.4:80")
		}
		if to.IsValid() {
			asks.Asked, asks.Dst, asks.DstPort, asks.Out = netip.AddrPortFrom(p.dst, p.dport), to.Addr(), to.Port(), out(to.Addr())
		}
	}
	v := c.rules.Verdict(asks)
	what := fmt.Sprintf("%s -> %q %s", in, asks.Out, describe(p))
	if asks.Asked.IsValid() {
		what += fmt.Sprintf(", translated to %s:%d", asks.Dst, asks.DstPort)
	}
	what += ": " + v.Why
	c.by[strings.SplitN(v.Why, " ", 2)[0]]++
	if !refused && v.Rule >= 0 {
		if policy := c.rules.Rules[v.Rule].Policy; policy >= 0 {
			c.policies[policy]++
		}
	}
	if v.Accept && !refused {
		c.accepted++
		e := expectation{at: asks.Out, src: p.src, dst: asks.Dst, what: what}
		if asks.Out != "" && state == firewall.New {
			e.of = &passed{packet: p, asked: p.dst, out: asks.Out}
		}
		if v.Masquerade {
			c.masqueraded++
			e.src, e.other = masqueradeOf(asks.Out, p.src)
		}
		c.expected[p.id] = e
	} else {
		c.dropped++
		c.expected[p.id] = expectation{at: "nowhere", what: what}
	}
	c.send(t, in, p)
}

// masqueradeOf is the address that a packet gets.
func masqueradeOf(out string, src netip.Addr) (one, other netip.Addr) {
	n, _ := strconv.Atoi(strings.TrimPrefix(out, "eth"))
	version := 6
	if src.Is4() {
		version = 4
	}
	return address(version, n, 1), address(version, n, pooled)
}

func describe(p sent) string {
	return fmt.Sprintf("%s %s:%d -> %s:%d type %d flags %#x hops %d id %#x", p.protocol, p.src, p.sport, p.dst, p.dport, p.icmpType, p.tcpFlags, p.hops, p.id)
}

// settle waits until all that was sent has come where it should, and sees that
// nothing else has come.
func (c *crossing) settle(t *testing.T) {
	t.Helper()
	c.fence(t)
	open := 0
	for _, e := range c.expected {
		if e.at != "nowhere" {
			open++
		}
	}
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	for {
		var a arrival
		if open > 0 {
			select {
			case a = <-c.arrivals:
			case <-patience.C:
				for _, e := range c.expected {
					if e.at != "nowhere" {
						t.Errorf("the kernel drops what is to come to %q: %s", e.at, e.what)
					}
				}
				return
			}
		} else {
			select {
			case a = <-c.arrivals:
			default:
				c.checkCounts(t)
				return
			}
		}
		e, known := c.expected[a.id]
		switch {
		case !known:
			continue // somebody else's, or seen: a packet to several sockets
		case e.at != a.at:
			t.Errorf("comes to %q and should come to %q: %s", a.at, e.at, e.what)
		case e.src.IsValid() && a.src.Unmap() != e.src && a.src != e.other:
			t.Errorf("comes from %s and should come from %s: %s", a.src, e.src, e.what)
		case e.dst.IsValid() && a.packet != nil && a.dst != e.dst:
			t.Errorf("comes for %s and should come for %s: %s", a.dst, e.dst, e.what)
		case e.of != nil:
			e.of.seen = a
			c.seen = append(c.seen, *e.of)
		}
		if e.at != "nowhere" {
			open--
			delete(c.expected, a.id) // what is to come nowhere, is not to come later either
		}
	}
}

// checkCounts compares what policies have counted.
func (c *crossing) checkCounts(t *testing.T) {
	t.Helper()
	counts, err := c.applier.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if counts.Policies != nil && !slices.Equal(counts.Policies, c.policies) {
		t.Errorf("policies have counted %d, want %d", counts.Policies, c.policies)
	}
}

// answer sends answers and errors back, through what was let pass, whatever the
// policies say.
func (c *crossing) answer(t *testing.T) {
	t.Helper()
	for _, s := range c.seen {
		c.next++
		c.answers++
		back := sent{id: 0x67680000 + c.next, hops: 64, src: s.seen.dst, dst: s.seen.src, protocol: s.packet.protocol}
		sport, dport := portsOf(s.seen.packet)
		back.sport, back.dport = dport, sport
		e := expectation{at: out(s.packet.src), src: s.asked, dst: s.packet.src}
		switch {
		case c.random.IntN(3) == 0 && s.packet.protocol == edge.UDP:
			back.protocol, back.icmpType, back.icmpCode = config.ICMP, 3, 3
			if back.src.Is6() {
				back.icmpType, back.icmpCode = 1, 4
			}
			back.inner = s.seen.packet
		case s.packet.protocol == edge.TCP:
			back.tcpFlags, back.acks = syn|ack, s.packet.id
		case s.packet.protocol == edge.UDP:
		default:
			continue
		}
		e.what = "an answer to " + describe(s.packet) + ": " + describe(back)
		c.expected[back.id] = e
		c.send(t, s.out, back)
	}
	c.seen = nil
}

// portsOf reads the ports behind an IP header.
func portsOf(b []byte) (sport, dport uint16) {
	size := 40
	if b[0]>>4 == 4 {
		size = int(b[0]&15) * 4
	}
	return binary.BigEndian.Uint16(b[size:]), binary.BigEndian.Uint16(b[size+2:])
}
