package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/firewall"
)

const walledFile = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
  cluster:  {interfaces: [eth0]}
firewall:
  policies:
    - {from: cluster, to: internet, ports: [25], allow: false}
    - {from: cluster, to: internet, allow: true, masquerade: true}
    - {from: home, to: cluster, ports: [6443], destinations: [10.0.0.10]}
    - {from: home, to: self, ports: [ssh]}
    - {from: home, to: cluster, ports: [9100], sources: [10.11.12.7]}
frontends:
  - {name: git, zones: [home], port: 2222, backends: [{address: "10.0.0.101:22"}]}
  - {name: few, zones: [home], port: 2223, sourceRanges: [10.11.12.0/28], backends: [{address: "10.0.0.101:22"}]}
  - {name: moved, zones: [internet], port: 443, dataPlane: nat, backends: [{address: "10.0.0.101:443"}]}
  - {name: everywhere, listen: ":8080", backends: [{address: "10.0.0.101:8080"}]}
admin: {zones: [home], tokenFile: /etc/gatehouse/token}
`

// TestAnswersWithAFirewall holds what is said of it.
func TestAnswersWithAFirewall(t *testing.T) {
	s := newSite(t, walledFile)
	s.Interfaces = append(s.Interfaces, edge.Interface{Name: "wg0", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}})
	facts := s.facts()
	rules := firewall.Compile(firewall.Inputs{Config: s.Config, Frontends: facts.State.Frontends, Interfaces: s.Interfaces})
	facts.Firewall = &rules
	compareWith(t, "testdata/firewall.golden", func(b *strings.Builder) {
		for _, q := range []Question{
			{"home", "git"},
			{"home", "10.11.12.32:2222"},
			{"home", "few"},
			{"10.11.12.3", "10.11.12.32:2223"},
			{"10.11.12.99", "10.11.12.32:2223"},
			{"internet", "moved"},
			{"internet", "10.11.12.51:2222"},
			{"home", "10.11.12.32:22"},
			{"internet", "10.11.12.51:22"},
			{"10.9.0.7", "everywhere"},
			{"cluster", "everywhere"},
			{"home", "10.11.12.32:9180"},
			// Past this machine.
			{"home", "10.0.0.10:6443"},
			{"home", "10.0.0.11:6443"},
			{"home", "10.0.0.11:9100"},
			{"10.11.12.7", "10.0.0.11:9100"},
			{"internet", "10.0.0.10:6443"},
			{"cluster", "10.0.0.10:6443"},
			{"cluster", "203.0.113.10:443"},
			{"cluster", "203.0.113.10:25"},
			{"10.9.0.7", "10.0.0.10:6443"},
			{"home", "192.0.2.1:80"},
			{"", "10.0.0.10:6443"},
		} {
			fmt.Fprintf(b, "=== from %q to %q\n", q.From, q.To)
			answer, err := Explain(facts, q)
			if err != nil {
				fmt.Fprintln(b, "error:", err)
				continue
			}
			checkAnswer(t, answer)
			write(b, answer)
		}
	})
}
