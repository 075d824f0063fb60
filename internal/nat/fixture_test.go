package nat

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

// The frontends of the tests are in the zone of eth1.
func frontend(protocol edge.Protocol, port uint16, backends ...string) edge.Frontend {
	f := edge.Frontend{
		Door:      edge.Door{Protocol: protocol, Listen: edge.Listen{Device: "eth1", Port: port}},
		DataPlane: edge.DataPlaneNAT,
		Name:      fmt.Sprintf("shop/%s-%d", strings.ToLower(string(protocol)), port),
		Terms:     edge.Terms{Balance: edge.BalanceRandom},
	}
	for _, b := range backends {
		addr, weight := b, 1
		if before, after, ok := strings.Cut(b, "*"); ok {
			addr = before
			_, _ = fmt.Sscan(after, &weight)
		}
		f.Backends = append(f.Backends, edge.Backend{Addr: netip.MustParseAddrPort(addr), Weight: weight, State: edge.Up, Share: float64(weight)})
	}
	return f
}

// vip4 and vip6 are addresses of pools.
const (
	vip4 = "10.11.12.70"
	vip6 = "fd12::70"
)

// atAddr is the frontend at an address.
func atAddr(addr string, f edge.Frontend) edge.Frontend {
	f.Listen.Addr = netip.MustParseAddr(addr)
	f.Name += "@" + addr
	return f
}

func with(f edge.Frontend, change func(*edge.Frontend)) edge.Frontend {
	change(&f)
	return f
}

// mix has one of everything.
func mix() State {
	source := func(f *edge.Frontend) { f.Balance = edge.BalanceSource }
	affinity := func(f *edge.Frontend) { f.Balance, f.AffinityTimeout = edge.BalanceSource, 3*time.Hour }
	return State{
		Frontends: []edge.Frontend{
			frontend(edge.TCP, 80, "10.0.0.101:30080*1", "10.0.0.102:30080*2", "10.0.0.103:30080*3"),
			with(frontend(edge.TCP, 443, "10.0.0.101:30443*2", "10.0.0.102:30443*4", "[fd00::101]:30443"), func(f *edge.Frontend) {
				f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.64/26"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("198.51.100.7/32")}
			}),
			with(frontend(edge.TCP, 22), func(f *edge.Frontend) { f.SourceRanges = []netip.Prefix{} }),
			with(frontend(edge.UDP, 53, "10.244.1.5:53", "[fd00:10::5]:53"), source),
			with(frontend(edge.TCP, 5432, "10.244.1.6:5432", "10.244.2.6:5432", "[fd00:10::6]:5432"), affinity),
			with(frontend(edge.SCTP, 3868, "10.244.1.7:3868"), func(f *edge.Frontend) { f.Masquerade = true }),
			atAddr(vip4, frontend(edge.TCP, 80, "10.0.0.101:30081*2", "10.0.0.102:30081*1")),
			atAddr(vip6, with(frontend(edge.TCP, 80, "[fd00::101]:30081*1", "[fd00::102]:30081*1"), func(f *edge.Frontend) { f.Masquerade = true })),
			atAddr(vip4, with(frontend(edge.TCP, 443, "10.0.0.101:30444"), func(f *edge.Frontend) {
				f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
			})),
			atAddr(vip6, with(frontend(edge.TCP, 443), func(f *edge.Frontend) {
				f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
			})),
			atAddr(vip4, with(frontend(edge.TCP, 5432, "10.244.1.6:5433", "10.244.2.6:5433"), affinity)),
			atAddr(vip6, with(frontend(edge.UDP, 53, "[fd00:10::5]:54", "[fd00:10::6]:54"), affinity)),
			atAddr(vip6, with(frontend(edge.UDP, 53, "[fd00:10::5]:55"), func(f *edge.Frontend) { f.Listen.Device = "eth0" })),
		},
		Addresses: []netip.Addr{netip.MustParseAddr("10.11.12.71"), netip.MustParseAddr(vip6)},
		Hairpins:  [][2]string{{"eth0", "eth0"}, {"eth1", "eth0"}},
	}
}

func nftCommand(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func apply(t testing.TB, a *Applier, s State, wantChanged bool) {
	t.Helper()
	changed, err := a.Apply(t.Context(), s)
	if err != nil || changed != wantChanged {
		t.Fatalf("Apply = %t, %v; want %t", changed, err, wantChanged)
	}
}

func verify(t testing.TB, a *Applier, wantMended bool) {
	t.Helper()
	mended, err := a.Verify(t.Context())
	if err != nil || mended != wantMended {
		t.Fatalf("Verify = %t, %v; want %t", mended, err, wantMended)
	}
}
