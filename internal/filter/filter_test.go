package filter

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(text)}})
	if c == nil {
		t.Fatal(problems)
	}
	return c
}

func door(plane edge.DataPlane, protocol edge.Protocol, device, at string, port uint16, sources ...string) edge.Frontend {
	f := edge.Frontend{Door: edge.Door{Protocol: protocol, Listen: edge.Listen{Device: device, Port: port}}, DataPlane: plane, Why: "service/shop/web"}
	if at != "" {
		f.Listen.Addr = netip.MustParseAddr(at)
	}
	for _, s := range sources {
		f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(s))
	}
	return f
}

const siteFile = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}, internet: {interfaces: [veth0]}, cluster: {interfaces: [eth0, eth2]}}
firewall:
  policies:
    - {from: cluster, to: internet, ports: [25], allow: false}
    - {from: cluster, to: internet, allow: true, masquerade: true}
    - {from: home, to: cluster, ports: [6443, 8000-8010, 8005-8020, 53/UDP], destinations: [10.0.0.10, "fd00::10"]}
    - {from: home, to: self, ports: [ssh, ping], sources: [10.11.12.0/28]}
    - {from: any, to: self, ports: [ping, ntp]}
    - {from: home, to: any, ports: [2905/SCTP], sources: [10.11.12.0/24]}
admin: {zones: [home], tokenFile: /etc/gatehouse/token}
`

func siteRules(t testing.TB) firewall.Ruleset {
	t.Helper()
	return firewall.Compile(firewall.Inputs{
		Config: parse(t, siteFile),
		Frontends: []edge.Frontend{
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "", 80),
			door(edge.DataPlaneProxy, edge.TCP, "eth1", "10.11.12.70", 443),
			door(edge.DataPlaneProxy, edge.TCP, "veth0", "", 8443, "192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"),
			door(edge.DataPlaneNAT, edge.UDP, "veth0", "", 53),
			door(edge.DataPlaneNAT, edge.TCP, "eth1", "fd12::71", 80, "fd12::/64", "10.0.0.0/8"),
		},
		Addresses: []netip.Addr{netip.MustParseAddr("10.11.12.72")},
	})
}

// The whole table, as nft is given it.
func TestRender(t *testing.T) {
	tx := knftables.NewFake(knftables.InetFamily, Table).NewTransaction()
	rules := siteRules(t)
	for _, o := range Render(&rules) {
		tx.Add(o)
	}
	got, golden := tx.String(), filepath.Join("testdata", "site.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("rendered\n%swant\n%s", got, want)
	}
	for line := range strings.Lines(got) {
		if strings.HasPrefix(line, "add rule ") && !strings.HasSuffix(line, "\"\n") {
			t.Errorf("without a comment: %s", line)
		}
	}
}

func command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
