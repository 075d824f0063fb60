package dns

import (
	"fmt"
	"net/netip"
)

// special are names that nobody is asked for, unless the configuration says
// otherwise.
var special = specialNames()

func specialNames() map[string]cut {
	names := map[string]cut{
		"localhost": cutLocalhost, // RFC 6761 §6.3
		// Names that are never there, or mean something to other protocols than
		// this one: whoever asks upstreams for them tells strangers what it looks for.
		"invalid":   cutEmpty, // RFC 6761 §6.4
		"test":      cutEmpty, // RFC 6761 §6.2
		"onion":     cutEmpty, // RFC 7686 §2
		"local":     cutEmpty, // RFC 6762 §22.1
		"alt":       cutEmpty, // RFC 9476 §3
		"internal":  cutEmpty, // reserved by ICANN for networks of their own, 2024
		"home.arpa": cutEmpty, // RFC 8375 §4
		// Where this server's encrypted brother would be; there is none (RFC 9462 §6.4).
		"resolver.arpa": cutNoData,
		// Browsers that find it missing ask this server, and not one of their
		// own, which does not know the site's names.
		"use-application-dns.net": cutEmpty,
	}
	// RFC 6303 §4, RFC 7793: the names of addresses that mean nothing outside.
	for _, network := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24",
		"192.168.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32",
		"::/128", "::1/128", "fd00::/8", "fe80::/10", "2001:db8::/32",
	} {
		for _, name := range reverseZones(netip.MustParsePrefix(network)) {
			names[name] = cutEmpty
		}
	}
	return names
}

// localhosts are the addresses whose name is localhost.
var localhosts = map[string]bool{
	reverseName(netip.MustParseAddr("127.0.0.1")): true,
	reverseName(netip.IPv6Loopback()):             true,
}

// reverseName is the name whose PTR record names addr.
func reverseName(addr netip.Addr) string {
	return reverseZones(netip.PrefixFrom(addr, addr.BitLen()))[0]
}

// inside says that an address is nobody's outside of a site: no name from
// outside should stand for it. Those of IPv6 that are not private may: who has
// them gives them names in public, and nobody guesses them.
func inside(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, p := range innerNetworks {
		if p.Contains(addr) {
			return true
		}
	}
	if nat64.Contains(addr) {
		raw := addr.As16()
		return inside(netip.AddrFrom4([4]byte(raw[12:])))
	}
	return false
}

var (
	innerNetworks = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
		"::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10")
	nat64 = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: leads to the IPv4 address at its end
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			panic(fmt.Sprintf("dns: %v", err)) // a constant of ours
		}
		list = append(list, p)
	}
	return list
}
