package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// What an l4proxy file cannot say is left out of it, and the operator told.
func TestAnnounceLeavesOutWhatTheFileCannotSay(t *testing.T) {
	web := edge.Frontend{
		Door: edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 80}}, Name: "shop/web:80", Why: "service/shop/web",
		Backends: []edge.Backend{{Addr: netip.MustParseAddrPort("10.0.0.101:30080"), Weight: 1}, {Addr: netip.MustParseAddrPort("10.0.0.102:30080"), Weight: 1}},
	}
	for name, tc := range map[string]struct {
		change   func(*edge.Frontend)
		backends int // in the file; 0: the frontend is not in it
		problem  string
	}{
		"what it can say":         {func(*edge.Frontend) {}, 2, ""},
		"a frontend of a file":    {func(f *edge.Frontend) { f.Why = "gatehouse.yaml:4" }, 0, ""},
		"nobody is behind":        {func(f *edge.Frontend) { f.Backends = nil }, 0, ""},
		"UDP":                     {func(f *edge.Frontend) { f.Protocol = edge.UDP }, 0, "service/shop/web:80: left out: l4proxy speaks TCP only; use gatehouse run for it"},
		"only some clients":       {func(f *edge.Frontend) { f.SourceRanges = []netip.Prefix{} }, 0, "service/shop/web:80: left out: l4proxy knows no source ranges, and would open it to everybody; use gatehouse run for it"},
		"names":                   {func(f *edge.Frontend) { f.Hostnames = []string{"*"} }, 0, "service/shop/web:80: left out: l4proxy does not tell TLS server names apart; use gatehouse run for it"},
		"PROXY protocol sent":     {func(f *edge.Frontend) { f.SendProxyProtocol = edge.ProxyProtocolV2 }, 0, "service/shop/web:80: left out: l4proxy does not speak the PROXY protocol; use gatehouse run for it"},
		"PROXY protocol accepted": {func(f *edge.Frontend) { f.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }, 0, "service/shop/web:80: left out: l4proxy does not speak the PROXY protocol; use gatehouse run for it"},
		"no PROXY protocol":       {func(f *edge.Frontend) { f.SendProxyProtocol = edge.ProxyProtocolNone }, 2, ""},
		"one IPv6 backend of two": {func(f *edge.Frontend) { f.Backends[0].Addr = netip.MustParseAddrPort("[fd00::1]:80") }, 1, "service/shop/web:80: 1 IPv6 backends left out: l4proxy speaks IPv4 only; use gatehouse run for it"},
		"weights":                 {func(f *edge.Frontend) { f.Backends[0].Weight = 2 }, 2, "service/shop/web:80: its shares are not kept: l4proxy knows no weights, and gives every backend the same; use gatehouse run for it"},
	} {
		t.Run(name, func(t *testing.T) {
			f := web
			f.Backends = slices.Clone(web.Backends)
			tc.change(&f)
			frontends, left := announceable([]edge.Frontend{f})
			backends := 0
			for _, f := range frontends {
				backends += len(f.Backends)
			}
			problem := ""
			for _, p := range left {
				problem += p.String()
			}
			if backends != tc.backends || problem != tc.problem {
				t.Errorf("%d backends and %q, want %d and %q", backends, problem, tc.backends, tc.problem)
			}
		})
	}
}
