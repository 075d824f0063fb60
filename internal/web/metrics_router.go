package web

import (
	"maps"
	"strconv"

	"e13.dev/gatehouse/internal/status"
)

// dhcpKinds are the messages of RFC 2131 §3.1, as status.DHCPZone calls them.
var dhcpKinds = []string{"DISCOVER", "OFFER", "REQUEST", "ACK", "NAK", "DECLINE", "RELEASE", "INFORM"}

func (out output) router(r status.Router) {
	for _, l := range r.Links {
		out.set(linkUp, number(l.Well()), l.Name, l.Kind)
		if l.Lease != nil {
			out.set(linkLease, float64(l.Lease.Expires.Unix()), l.Name)
		}
	}
	if f := r.Firewall; f != nil {
		out.set(firewallUp, number(f.Applied))
		out.set(firewallHoles, float64(f.Pinholes))
		for i, p := range f.Policies {
			action := "drop"
			if p.Allow {
				action = "accept"
			}
			out.count(firewallPassed, p.Packets, strconv.Itoa(i), action)
		}
		for _, d := range f.Dropped {
			out.count(firewallDrops, d.Packets, d.From, d.To)
		}
	}
	for _, z := range r.DHCP {
		out.set(dhcpUp, number(z.Error == ""), z.Zone)
		for state, n := range map[string]int{"leased": z.Leased(), "declined": z.Declined(), "free": z.Free} {
			out.set(dhcpAddresses, float64(n), z.Zone, state)
		}
		messages := maps.Clone(z.Messages)
		if messages == nil {
			messages = map[string]uint64{}
		}
		for _, kind := range dhcpKinds { // those that there were none of, too: rates are from the first one on
			messages[kind] += 0
		}
		for kind, n := range messages {
			out.count(dhcpMessages, n, z.Zone, kind)
		}
	}
	out.advertised(r.Advertised)
	if d := r.DNS; d != nil {
		out.dns(*d)
	}
}

// advertised adds up the interfaces of each zone.
func (out output) advertised(all []status.Advertised) {
	type counts struct{ sent, answered, replies uint64 }
	zones := map[string]counts{}
	for _, a := range all {
		c := zones[a.Zone]
		zones[a.Zone] = counts{c.sent + a.Sent, c.answered + a.Answered, c.replies + a.Replies}
	}
	for zone, c := range zones {
		out.count(adverts, c.sent, zone, "periodic")
		out.count(adverts, c.answered, zone, "solicited")
		out.count(dhcp6Replies, c.replies, zone)
	}
}

func (out output) dns(d status.DNS) {
	for _, z := range d.Zones {
		out.set(dnsUp, number(z.Error == ""), z.Zone)
		out.set(dnsNames, float64(z.Names), z.Zone)
		for protocol, n := range z.Queries {
			out.count(dnsQueries, n, z.Zone, protocol)
		}
		for code, n := range z.Answers {
			out.count(dnsAnswers, n, z.Zone, code)
		}
		for how, n := range map[string]uint64{"own": z.Own, "cache": z.CacheHits, "forwarded": z.Forwarded, "limited": z.Limited, "rebinding": z.Rebinding} {
			out.count(dnsHow, n, z.Zone, how)
		}
	}
	out.set(dnsCached, float64(d.Cached))
	for _, u := range d.Upstreams {
		out.set(dnsUpstreamUp, number(u.Up), u.Server)
		out.count(dnsUpstreamAll, u.Queries, u.Server)
		out.count(dnsUpstreamBad, u.Failed, u.Server)
	}
}
