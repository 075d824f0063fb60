package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

func advertNets(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func advertLines(all []advertised) (lines []string) {
	for _, a := range all {
		line := a.zone + " " + a.device
		if a.ra.Index == 0 {
			line += " down"
		}
		for _, p := range a.ra.Content.Prefixes {
			line += fmt.Sprintf(" %s %s/%s", p.Prefix, p.Valid, p.Preferred)
		}
		if a.ra.Content.Lifetime > 0 {
			line += " router " + a.ra.Content.Lifetime.String()
		}
		if a.ra.Content.Other {
			line += " more:"
		}
		for _, d := range a.dhcp6.Content.DNS {
			line += " dns " + d.String()
		}
		for _, n := range a.dhcp6.Content.NTP {
			line += " ntp " + n.String()
		}
		for _, s := range a.dhcp6.Content.Search {
			line += " " + s
		}
		lines = append(lines, line)
	}
	return lines
}

func TestWhatIsAdvertised(t *testing.T) {
	const half = 30 * time.Minute
	two := []edge.Interface{
		{Name: "eth0", Index: 2, Up: true, Addrs: advertNets("10.0.0.1/24", "2001:db8:7::1/64", "fd00:10::1/64", "fd00:10::99/64", "fd00:9::1/128")},
		{Name: "eth1", Index: 3, Up: true, Addrs: advertNets("10.11.12.1/24", "fd00:11::1/64")},
	}
	with := func(r config.RouterAdvertisements, change func(*config.Config)) *config.Config {
		c := &config.Config{
			Zones: []edge.Zone{{Name: "lan", Interfaces: []string{"eth0", "eth1", "eth9"}}, {Name: "other", Interfaces: []string{"eth2"}}},
			DHCP:  []config.DHCP{{Zone: "lan", RouterAdvertisements: &r}, {Zone: "other"}},
		}
		if change != nil {
			change(c)
		}
		return c
	}
	answers := func(c *config.Config) { c.DNS = &config.DNS{Zones: []string{"lan"}, Domain: "home.example"} }
	for _, c := range []struct {
		name       string
		config     *config.Config
		interfaces []edge.Interface
		want       string
		problems   string
	}{
		{
			"networks of addresses, but not of those of Services", with(config.RouterAdvertisements{Lifetime: half}, nil), two,
			"lan eth0 2001:db8:7::/64 1h30m0s/45m0s fd00:10::/64 1h30m0s/45m0s router 30m0s\nlan eth1 fd00:11::/64 1h30m0s/45m0s router 30m0s", "",
		},
		{
			"what is written, where there is an address in it",
			with(config.RouterAdvertisements{Prefixes: advertNets("fd00:11::/64", "fd00:12::/64")}, nil), two,
			"lan eth0\nlan eth1 fd00:11::/64 24h0m0s/4h0m0s",
			"fd00:12::/64 is not advertised: no interface of zone lan has an address in it; give one of them an address such as fd00:12::1/64",
		},
		{
			"this machine's DNS server, by an address of the site", with(config.RouterAdvertisements{}, answers), two[:1],
			"lan eth0 2001:db8:7::/64 1h30m0s/45m0s fd00:10::/64 1h30m0s/45m0s more: dns fd00:10::1 home.example", "",
		},
		{
			"what is said of DNS",
			with(config.RouterAdvertisements{DNS: []netip.Addr{netip.MustParseAddr("fd00::53")}, Search: []string{"a.example"}}, answers), two[1:],
			"lan eth1 fd00:11::/64 1h30m0s/45m0s more: dns fd00::53 a.example", "",
		},
		{
			"a time server",
			with(config.RouterAdvertisements{NTP: []netip.Addr{netip.MustParseAddr("fd00::7b")}}, nil), two[1:],
			"lan eth1 fd00:11::/64 1h30m0s/45m0s more: ntp fd00::7b", "",
		},
		{
			"no DNS server, and the domains of DHCP",
			with(config.RouterAdvertisements{DNS: []netip.Addr{}}, func(c *config.Config) { answers(c); c.DHCP[0].Options.Search = []string{"b.example"} }), two[1:],
			"lan eth1 fd00:11::/64 1h30m0s/45m0s more: b.example", "",
		},
		{
			"the domain of DHCP", with(config.RouterAdvertisements{}, func(c *config.Config) { c.DHCP[0].Options.Domain = "c.example" }), two[1:],
			"lan eth1 fd00:11::/64 1h30m0s/45m0s more: c.example", "",
		},
		{
			"a cable that is pulled", with(config.RouterAdvertisements{Lifetime: half}, answers),
			[]edge.Interface{{Name: "eth1", Index: 3, Addrs: advertNets("fd00:11::1/64")}},
			"lan eth1 down dns fd00:11::1 home.example", "",
		},
		{
			"no address", with(config.RouterAdvertisements{Lifetime: half}, nil),
			[]edge.Interface{{Name: "eth1", Index: 3, Up: true, Addrs: advertNets("10.0.0.1/24", "fd00::1/56")}},
			"lan eth1 router 30m0s",
			"eth1 has no IPv6 address in a network of 64 bits: machines there can make themselves none; give it one, such as fd00:10::1/64",
		},
	} {
		all, problems := toAdvertise(c.config, c.interfaces, map[netip.Addr]bool{
			netip.MustParseAddr("fd00:10::99"): true, netip.MustParseAddr("fd00:9::1"): true,
		})
		if got := strings.Join(advertLines(all), "\n"); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
		var texts []string
		for _, p := range problems {
			texts = append(texts, p.What+"; "+p.Remedy)
		}
		if got := strings.Join(texts, "\n"); got != c.problems {
			t.Errorf("%s: problems\n%s\nwant\n%s", c.name, got, c.problems)
		}
	}
	// An address of a Service alone makes no network.
	alone := []edge.Interface{{Name: "eth0", Index: 2, Up: true, Addrs: advertNets("fd00:10::99/64")}}
	all, _ := toAdvertise(with(config.RouterAdvertisements{}, answers), alone, map[netip.Addr]bool{netip.MustParseAddr("fd00:10::99"): true})
	if got := advertLines(all); !slices.Equal(got, []string{"lan eth0 more: home.example"}) {
		t.Errorf("%q", got)
	}
}
