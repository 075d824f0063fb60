package changes

import (
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
)

const before = `apiVersion: gatehouse.e13.dev/v1
stateDir: /var/lib/gatehouse
zones: {home: {interfaces: [eth1]}, cluster: {interfaces: [eth0]}}
links:
  - {name: eth0, addresses: [10.0.0.1/24]}
firewall:
  policies:
    - {from: home, to: cluster, ports: [6443], destinations: [10.0.0.10]}
    - {from: home, to: self, ports: [ssh, ping]}
dhcp:
  cluster:
    pools: [10.0.0.150-10.0.0.199]
    reservations:
      - {mac: "02:00:00:00:00:10", address: 10.0.0.10, hostname: cp}
      - {node: w1, address: 10.0.0.101}
dns: {zones: [home], domain: home.example, upstreams: [9.9.9.9]}
`

// Each change of a file is told, whatever it is about, and nothing else.
func TestBlocks(t *testing.T) {
	parse := func(file string) *config.Config {
		c, problems := config.Parse([]config.File{{Name: "g.yaml", Data: []byte(file)}})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return c
	}
	for _, test := range []struct {
		name     string
		old, new string // replaced in the file
		want     string
	}{
		{"nothing", "links:", "# a comment moves what is below\nlinks:", ""},
		{"the way in", "ports: [ssh, ping]", "ports: [ping]", "firewall - home -> self: 22/TCP, ping + home -> self: ping"},
		{"shut", "ports: [6443], destinations", "allow: false, ports: [6443], destinations", "firewall - home -> cluster: 6443/TCP to 10.0.0.10 + home -> cluster: 6443/TCP to 10.0.0.10, dropped"},
		{"masqueraded", "destinations: [10.0.0.10]", "masquerade: true", "firewall - home -> cluster: 6443/TCP to 10.0.0.10 + home -> cluster: 6443/TCP, masqueraded"},
		{
			"another order", "    - {from: home, to: cluster, ports: [6443], destinations: [10.0.0.10]}\n    - {from: home, to: self, ports: [ssh, ping]}\n", "    - {from: home, to: self, ports: [ssh, ping]}\n    - {from: home, to: cluster, ports: [6443], destinations: [10.0.0.10]}\n",
			"firewall order of the policies: home -> self: 22/TCP, ping; home -> cluster: 6443/TCP to 10.0.0.10, was home -> cluster: 6443/TCP to 10.0.0.10; home -> self: 22/TCP, ping",
		},
		{
			"no firewall", before[strings.Index(before, "firewall:"):strings.Index(before, "dhcp:")], "",
			"firewall - home -> cluster: 6443/TCP to 10.0.0.10 - home -> self: 22/TCP, ping the block: none, was there: everything may pass that nobody else keeps",
		},
		{"an interface", "interfaces: [eth1]", "interfaces: [eth1, eth2]", "zones home: eth1, eth2, was eth1"},
		{"an address", "[10.0.0.1/24]", `[10.0.0.1/24, "fd00::1/64"]`, "link eth0 addresses: 10.0.0.1/24, fd00::1/64, was 10.0.0.1/24"},
		{"a switch", "addresses: [10.0.0.1/24]", "addresses: [10.0.0.1/24], forwarding: true, mtu: 1400", "link eth0 mtu: 1400, was none link eth0 forwarding: true, was false"},
		{"a link", "firewall:", "  - {name: eth1, addresses: [dhcp]}\nfirewall:", "link eth1 + name eth1 metric 101 dhcp defaultRoute true metric 101"},
		{"a pool", "150-10.0.0.199", "140-10.0.0.199", "dhcp of zone cluster pools: 10.0.0.140-10.0.0.199, was 10.0.0.150-10.0.0.199"},
		{"a time", "    pools:", "    leaseTime: 90m\n    pools:", "dhcp of zone cluster leaseTime: 1h30m, was 12h"},
		{"a reservation", "node: w1", "node: w2", "dhcp of zone cluster reservations: none, was node w1 address 10.0.0.101 dhcp of zone cluster reservations: node w2 address 10.0.0.101, was none"},
		{"a domain", "domain: home.example", "domain: haus.example", "dns domain: haus.example, was home.example dns serviceDomain: cluster.haus.example, was cluster.home.example"},
		{"a server", "[9.9.9.9]", "[1.1.1.1]", "dns upstreams: 1.1.1.1, was 9.9.9.9"},
		{"no server", "dns: {", "#", "dns - "},
	} {
		t.Run(test.name, func(t *testing.T) {
			after := strings.Replace(before, test.old, test.new, 1)
			if after == before {
				t.Fatal("the test changes nothing")
			}
			var got []string
			for _, b := range Blocks(parse(before), parse(after)) {
				for _, text := range b.Removed {
					got = append(got, "- "+text)
				}
				for _, text := range b.Added {
					got = append(got, "+ "+text)
				}
				if i := len(b.Removed) + len(b.Added); i > 0 {
					got = slices.Insert(got, len(got)-i, b.Name)
				}
				for _, d := range b.Differences {
					if b.Name != "firewall" || len(b.Removed) == 0 {
						got = append(got, b.Name)
					}
					got = append(got, d.String())
				}
			}
			if text := strings.Join(got, " "); text != test.want && (test.name != "no server" || !strings.HasPrefix(text, test.want)) {
				t.Errorf("got\n%s\nwant\n%s", text, test.want)
			}
		})
	}
}
