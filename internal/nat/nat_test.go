package nat

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/maglev"
	"e13.dev/gatehouse/internal/nft"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// newFake is an Applier of a table that is not in a kernel. What it reads there
// is what it was told.
func newFake() (*Applier, *knftables.Fake) {
	fake := knftables.NewFake(family, Table)
	a := New()
	a.nft.Open = func() (knftables.Interface, error) { return fake, nil }
	a.exists = func() (bool, error) { return fake.Table != nil, nil }
	a.read = func() (found, error) { return found{exists: fake.Table != nil, other: fake.Table != nil}, nil }
	a.prune = func(map[edge.Door]row) error { return nil }
	return a, fake
}

// rendered is what the table is made with.
func rendered(s State) string {
	a, fake := newFake()
	want := a.plan(s)
	tx := fake.NewTransaction()
	for _, o := range layout() {
		tx.Add(o)
	}
	addChains(tx, slices.Sorted(maps.Keys(want.chains)))
	addSteps(tx, difference(content{}, *want))
	return tx.String()
}

// The whole table, for a person to read. Of Maglev tables there are the first and
// the last slots.
func TestRender(t *testing.T) {
	var lines []string
	for line := range strings.Lines(rendered(mix())) {
		if fields := strings.Fields(line); fields[1] == "element" && strings.HasSuffix(fields[4], "-"+backends) {
			var slot int
			if _, err := fmt.Sscan(fields[slices.Index(fields, ":")-1], &slot); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if slot >= 8 && slot < 249 {
				continue
			}
		}
		lines = append(lines, line)
	}
	got, golden := strings.Join(lines, ""), filepath.Join("testdata", "mix.nft")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("rendered\n%s\nwant\n%s", got, want)
	}
}

func TestRenderIgnoresInputOrder(t *testing.T) {
	want := rendered(mix())
	for range 20 {
		s := mix()
		rand.Shuffle(len(s.Frontends), func(i, j int) { s.Frontends[i], s.Frontends[j] = s.Frontends[j], s.Frontends[i] })
		rand.Shuffle(len(s.Hairpins), func(i, j int) { s.Hairpins[i], s.Hairpins[j] = s.Hairpins[j], s.Hairpins[i] })
		for i := range s.Frontends {
			b, r := s.Frontends[i].Backends, s.Frontends[i].SourceRanges
			rand.Shuffle(len(b), func(i, j int) { b[i], b[j] = b[j], b[i] })
			rand.Shuffle(len(r), func(i, j int) { r[i], r[j] = r[j], r[i] })
		}
		// Not ours; and one too many for its door.
		s.Frontends = append(s.Frontends, with(frontend(edge.TCP, 81, "10.0.0.1:1"), func(f *edge.Frontend) { f.DataPlane = edge.DataPlaneProxy }),
			with(frontend(edge.TCP, 82, "10.0.0.1:1"), func(f *edge.Frontend) { f.Listen.Device = "" }))
		double := with(frontend(edge.TCP, 80, "10.0.0.1:1"), func(f *edge.Frontend) { f.Name = "z" })
		s.Frontends = slices.Insert(s.Frontends, rand.IntN(len(s.Frontends)), double)
		if got := rendered(s); got != want {
			t.Fatalf("in another order it is\n%s\nwant\n%s", got, want)
		}
	}
}

// Another version of the layout has another sum, in every rule.
func TestEveryRuleHasTheSum(t *testing.T) {
	n := 0
	for line := range strings.Lines(rendered(mix())) {
		if strings.HasPrefix(line, "add rule ") {
			n++
			if !strings.HasSuffix(line, " "+layoutSum()+"\"\n") {
				t.Errorf("without the sum: %s", line)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d rules", n)
	}
}

func TestRandomTable(t *testing.T) {
	for _, c := range []struct{ weights, want []int }{
		{[]int{1}, []int{1}},
		{[]int{7}, []int{1}},
		{[]int{1, 2, 3}, []int{1, 2, 3}},
		{[]int{100, 200, 300}, []int{1, 2, 3}},
		{[]int{1023, 1}, []int{1023, 1}},
		{[]int{1024, 1}, []int{1023, 1}},                // of 1,025
		{[]int{1000, 1001, 1002}, []int{341, 341, 342}}, // a third each
		{[]int{1, 1_000_000}, []int{0, 1024}},           // too little for a slot
		{slices.Repeat([]int{1}, 1024), slices.Repeat([]int{1}, 1024)},
		{slices.Repeat([]int{1}, 1500), slices.Repeat([]int{1}, 1500)},
	} {
		var b []maglev.Backend
		for i, w := range c.weights {
			b = append(b, maglev.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80), Weight: w})
		}
		got := make([]int, len(b))
		for _, addr := range randomTable(b) {
			got[slices.IndexFunc(b, func(b maglev.Backend) bool { return b.Addr == addr })]++
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("weights %v get slots %v, want %v", c.weights, got, c.want)
		}
	}
}

// Whatever the weights, nobody is a slot away from what is due.
func TestRandomTableIsFair(t *testing.T) {
	for range 300 {
		total, b := 0, make([]maglev.Backend, 1+rand.IntN(40))
		for i := range b {
			b[i] = maglev.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: 1 + rand.IntN(1<<rand.IntN(20))}
			total += b[i].Weight
		}
		table := randomTable(b)
		if len(table) > randomSlots {
			t.Fatalf("%d slots", len(table))
		}
		counts := map[netip.AddrPort]int{}
		for _, addr := range table {
			counts[addr]++
		}
		for _, b := range b {
			due := float64(b.Weight) * float64(len(table)) / float64(total)
			if off := float64(counts[b.Addr]) - due; off <= -1 || off >= 1 {
				t.Fatalf("%d slots where %.2f are due", counts[b.Addr], due)
			}
		}
	}
}

func TestOutermost(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"10.0.0.0/8", "10.0.0.0/8"},
		{"10.1.2.3/8", "10.0.0.0/8"},
		{"10.1.0.0/16 10.0.0.0/8 10.0.0.0/8 10.255.255.255/32 11.0.0.0/32", "10.0.0.0/8 11.0.0.0/32"},
		{"::/0 0.0.0.0/0 2001:db8::/32 192.0.2.1/32", "0.0.0.0/0 ::/0"},
		{"::ffff:192.0.2.0/120 192.0.2.7/32", "192.0.2.0/24"},
	} {
		var in []netip.Prefix
		for p := range strings.FieldsSeq(c.in) {
			in = append(in, netip.MustParsePrefix(p))
		}
		var got []string
		for _, p := range outermost(in) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("outermost(%s) = %v, want %s", c.in, got, c.want)
		}
	}
}

func TestDecodePrefix(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"10.0.0.0", "10.255.255.255", "10.0.0.0/8"},
		{"192.0.2.1", "192.0.2.1", "192.0.2.1/32"},
		{"0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"10.0.0.0", "10.0.127.255", "10.0.0.0/17"},
		{"10.0.0.1", "10.0.0.2", ""},
		{"10.0.0.1", "10.0.0.0", ""},
		{"2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::/32"},
		{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"},
	} {
		from, to := netip.MustParseAddr(c.from).AsSlice(), netip.MustParseAddr(c.to).AsSlice()
		p, err := decodePrefix(doorElement{nft.Element{Key: from, End: to}, from}, len(from))
		if c.want == "" && !errors.Is(err, errLayout) || c.want != "" && (err != nil || p.String() != c.want) {
			t.Errorf("%s to %s: %v, %v; want %q", c.from, c.to, p, err, c.want)
		}
	}
}

// randomState has doors that come and go and change from one to the next.
func randomState(r *rand.Rand) State {
	var s State
	for i := range 24 {
		if r.IntN(4) == 0 {
			continue
		}
		f := frontend([]edge.Protocol{edge.TCP, edge.UDP, edge.SCTP}[r.IntN(3)], uint16(i%8+1))
		switch i / 8 {
		case 1:
			f = atAddr(vip4, f)
		case 2:
			f = atAddr(vip6, f)
		}
		for i := range r.IntN(5) {
			addr := []string{"10.0.0.%d:80", "[fd00::%d]:80"}[r.IntN(2)]
			f.Backends = append(f.Backends, edge.Backend{Addr: netip.MustParseAddrPort(fmt.Sprintf(addr, i+1)), Weight: 1 + r.IntN(5), Share: float64(r.IntN(4))})
		}
		switch r.IntN(3) {
		case 0:
			f.Balance = edge.BalanceSource
		case 1:
			f.Balance, f.AffinityTimeout = edge.BalanceSource, time.Duration(1+r.IntN(2))*1500*time.Millisecond
		}
		if r.IntN(2) == 0 {
			f.SourceRanges = []netip.Prefix{}
			for _, p := range []string{"10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32"} {
				if r.IntN(2) == 0 {
					f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(p))
				}
			}
		}
		f.Masquerade = r.IntN(2) == 0
		s.Frontends = append(s.Frontends, f)
	}
	if r.IntN(3) == 0 { // none is of this machine
		s.Frontends = slices.DeleteFunc(s.Frontends, func(f edge.Frontend) bool { return f.Listen.Addr.IsValid() })
	}
	for _, addr := range []string{vip4, vip6, "10.11.12.71"} {
		if r.IntN(4) == 0 {
			s.Addresses = append(s.Addresses, netip.MustParseAddr(addr))
		}
	}
	for _, pair := range [][2]string{{"eth0", "eth0"}, {"eth1", "eth0"}} {
		if r.IntN(2) == 0 {
			s.Hairpins = append(s.Hairpins, pair)
		}
	}
	return s
}

// elementLines are those of a fake's dump, sorted.
func elementLines(dump string) string {
	var lines []string
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "add element ") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// However a state was come to, the table is the one that is made of it at once.
func TestApplyByDifference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	a, fake := newFake()
	for i := range 200 {
		s := randomState(r)
		_, err := a.Apply(t.Context(), s)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		fresh, other := newFake()
		if _, err := fresh.Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if got, want := elementLines(fake.Dump()), elementLines(other.Dump()); got != want {
			t.Fatalf("%d: by steps it is\n%s\nat once\n%s", i, got, want)
		}
		apply(t, a, s, false)
		if i%50 == 49 {
			if err := a.collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, want := chainsOf(fake), chainsOf(other); got != want {
				t.Fatalf("%d: once it is cleared up there are the chains\n%s\nwant\n%s", i, got, want)
			}
		}
	}
	apply(t, a, State{}, true)
	for line := range strings.Lines(elementLines(fake.Dump())) {
		if !strings.Contains(line, " "+counting+" ") || strings.Contains(line, addressPrefix) {
			t.Errorf("left behind: %s", line)
		}
	}
	if removed, err := a.Remove(t.Context()); !removed || err != nil || fake.Table != nil {
		t.Errorf("Remove = %t, %v", removed, err)
	}
	if removed, err := a.Remove(t.Context()); removed || err != nil {
		t.Errorf("Remove again = %t, %v", removed, err)
	}
}

func chainsOf(fake *knftables.Fake) string {
	return strings.Join(slices.Sorted(maps.Keys(fake.Table.Chains)), "\n")
}

// One backend more is a few commands.
func TestChangesAreSmall(t *testing.T) {
	a, _ := newFake()
	before := a.plan(many(1000))
	a.want = before
	s := many(1000)
	s.Frontends[500].Backends[0].Addr = netip.MustParseAddrPort("10.0.0.9:80")
	steps := difference(*before, *a.plan(s))
	if n := commands(steps); n != 2 {
		t.Errorf("another address of one backend is %d commands, want 2: a slot is replaced", n)
	}
}

// small takes what a process in a user namespace can send.
type small struct {
	*knftables.Fake
	most    int
	ran     []int // commands
	between func()
}

func (s *small) Run(ctx context.Context, tx *knftables.Transaction) error {
	n := strings.Count(tx.String(), "element ")
	if n > s.most {
		return errors.New("netlink: Error: Could not process rule: Message too long")
	}
	s.ran = append(s.ran, n)
	err := s.Fake.Run(ctx, tx)
	s.between()
	return err
}

// Where a transaction cannot be large it is many, and no client meets half a
// door: it is closed meanwhile.
func TestApplyInParts(t *testing.T) {
	a, fake := newFake()
	nft := &small{Fake: fake, most: 600, between: func() {}}
	a.nft.Open = func() (knftables.Interface, error) { return nft, nil }
	s := many(400)
	big := frontend(edge.TCP, 65000)
	for i := range 1000 {
		big.Backends = append(big.Backends, edge.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 80), Weight: 1, Share: 1})
	}
	s.Frontends = append(s.Frontends, big)
	key := `doors4 { "eth1" . tcp . 65000`
	nft.between = func() {
		dump := fake.Dump()
		if n := strings.Count(dump, `tcp4-backends { "eth1" . 65000 . `); strings.Contains(dump, key) && n != len(big.Backends) {
			t.Errorf("the door is open with %d slots of %d", n, len(big.Backends))
		}
	}
	apply(t, a, s, true)
	if len(nft.ran) < 5 {
		t.Errorf("it took transactions of %v elements", nft.ran)
	}
	fresh, other := newFake()
	apply(t, fresh, s, true)
	if elementLines(fake.Dump()) != elementLines(other.Dump()) || !strings.Contains(fake.Dump(), key) {
		t.Error("in parts it is another table than at once")
	}
	big.Backends = big.Backends[:700]
	s.Frontends[400] = big
	apply(t, a, s, true)
	fresh, other = newFake()
	apply(t, fresh, s, true)
	if elementLines(fake.Dump()) != elementLines(other.Dump()) {
		t.Error("in parts it becomes another table than at once")
	}
}

// What fails is tried once more, after a look at what is there.
func TestApplyReadsAgainAfterAnError(t *testing.T) {
	a, fake := newFake()
	apply(t, a, mix(), true)
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	apply(t, a, with2(mix(), 8080), true)
	fresh, other := newFake()
	apply(t, fresh, with2(mix(), 8080), true)
	if elementLines(fake.Dump()) != elementLines(other.Dump()) {
		t.Errorf("it has become\n%s", fake.Dump())
	}
}

func TestClientsAreForgottenWithTheirBackend(t *testing.T) {
	affinity := func(backends ...string) State {
		return State{Frontends: []edge.Frontend{with(frontend(edge.TCP, 80, backends...), func(f *edge.Frontend) {
			f.Balance, f.AffinityTimeout = edge.BalanceSource, time.Hour
		})}}
	}
	a, _ := newFake()
	pruned := 0
	a.prune = func(map[edge.Door]row) error { pruned++; return nil }
	for i, c := range []struct {
		s    State
		want int
	}{
		{affinity("10.0.0.1:80", "10.0.0.2:80"), 1}, // whatever was there before
		{affinity("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"), 0},
		{affinity("10.0.0.1:80", "10.0.0.3:80"), 1},
		{affinity("10.0.0.1:80", "10.0.0.3:80*5"), 0},
		{State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, "10.0.0.1:80", "10.0.0.3:80")}}, 1},
		{State{Frontends: []edge.Frontend{frontend(edge.TCP, 80, "10.0.0.1:80")}}, 0},
		{affinity("10.0.0.1:80"), 0},
		{State{}, 1},
	} {
		pruned = 0
		if _, err := a.Apply(t.Context(), c.s); err != nil {
			t.Fatal(err)
		}
		if pruned != c.want {
			t.Errorf("change %d: looked for clients to forget %d times, want %d", i, pruned, c.want)
		}
	}
	// What a process before has remembered is looked at, also if Adopt was first.
	before, there := a.have, New()
	there.nft.Open, there.prune = a.nft.Open, a.prune
	there.read = func() (found, error) { return before, nil }
	if _, _, err := there.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	pruned = 0
	apply(t, there, State{}, false)
	if pruned != 1 {
		t.Errorf("after a restart: looked for clients to forget %d times", pruned)
	}
}

// Where clients are remembered a hash stands for an address of IPv6. Of two with
// the same, one has its clients go where their address says.
func TestAddressesWithTheSameHash(t *testing.T) {
	seen := map[uint32]netip.Addr{}
	var one, other netip.Addr
	for i := uint32(0); ; i++ {
		b := netip.MustParseAddr("fd12::").As16()
		binary.BigEndian.PutUint32(b[12:], i)
		addr := netip.AddrFrom16(b)
		if before, ok := seen[hashOfAddr(addr)]; ok {
			one, other = before, addr
			break
		}
		seen[hashOfAddr(addr)] = addr
	}
	remembers := func(addrs []netip.Addr, ports ...uint16) (got []bool) {
		var s State
		for i, addr := range addrs {
			s.Frontends = append(s.Frontends, with(frontend(edge.TCP, ports[i], "[fd00::1]:80", "[fd00::2]:80"), func(f *edge.Frontend) {
				f.Listen.Addr, f.Balance, f.AffinityTimeout = addr, edge.BalanceSource, time.Hour
			}))
		}
		a, _ := newFake()
		want := a.plan(s)
		for _, f := range s.Frontends {
			row := want.rows[f.Door]
			if row.remembers() != strings.Contains(row.v6.chain, "-"+affine+"-") || len(row.v6.slots) == 0 {
				t.Errorf("%v: %q, %q", f.Door, row.remember, row.v6.chain)
			}
			got = append(got, row.remembers())
		}
		return got
	}
	for _, c := range []struct {
		addrs []netip.Addr
		want  []bool
	}{{[]netip.Addr{one, other}, []bool{true, false}}, {[]netip.Addr{other, one}, []bool{false, true}}} {
		if got := remembers(c.addrs, 80, 80); !slices.Equal(got, c.want) {
			t.Errorf("%v remember clients: %v", c.addrs, got)
		}
	}
	if got := remembers([]netip.Addr{other, one}, 80, 81); !slices.Equal(got, []bool{true, true}) {
		t.Errorf("at other ports %v and %v remember clients: %v", other, one, got)
	}
}

// Bytes of the kernel are taken as they come.
func FuzzParseElement(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 4, 0, 1, 0})
	f.Add([]byte{12, 0, 2, 0x80, 8, 0, 2, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for _, value := range nft.Attributes(b) {
			total += len(value)
		}
		if total > len(b) {
			t.Errorf("%d bytes of attributes in %d", total, len(b))
		}
		e := nft.ParseElement(b)
		for _, n := range []names{wildcard, addressed(4), addressed(6)} {
			if _, _, err := decodeDoor(n, e.Key); err == nil && len(e.Key) < nameBytes+n.addrBytes() {
				t.Errorf("a door of %d bytes", len(e.Key))
			}
			_, _, _, _ = decodeSlot(n, edge.TCP, e, 4, func(uint32, edge.Door) string { return "eth1" })
			_, _, _ = decodeCounted(n, e.Key, 4, nil)
		}
		_, _ = decodeVerdict(e.Value)
		_, _ = decodeLane(e.Key)
		_, _ = decodePrefix(doorElement{e, e.Key}, 4)
	})
}
