package config

var dhcpBlock = block{
	path: "dhcp.ZONE", format: APIVersion, example: "{pools: [10.0.0.100-10.0.0.199]}",
	doc: "What the machines of a zone get. They are served on the interfaces of the zone that have an IPv4 address in the network of a pool or a reservation. At least one of `pools`, `reservations`, `relayed` and `routerAdvertisements`; all but the last take `stateDir`.",
	fields: []field{
		{"pools", "list of ranges", "none", "[10.0.0.100-10.0.0.199]", "IPv4 addresses that machines get: `FIRST-LAST`, networks or addresses, 65536 in all at most. An address is in one pool, and not in one of Services."},
		{"leaseTime", "duration, 2m to 8760h", "`12h`", "12h", "How long a machine has its address; it asks again after half of that. A machine may ask for less."},
		{"reservations", "list", "`[]`", `[{mac: "02:00:00:00:00:11", address: 10.0.0.11}]`, "Addresses that are kept for one machine each, inside of a pool or outside."},
		{"relayed", "list", "`[]`", "[{network: 10.2.0.0/24, pools: [10.2.0.100-10.2.0.199]}]", "Networks behind relay agents, which ask by an interface of this zone."},
		{"options", "map", "the defaults below", "{domain: home.example}", "What machines are told beside their address."},
		{"probe", "true or false", "`true`", "true", "Whether an address is asked for (by ARP, behind a relay agent by ICMP) before it is offered, so that nobody gets one that somebody uses without a lease. It takes half a second."},
		{"routerAdvertisements", "map", "none", "{}", "What machines need for IPv6; `{}` for all defaults."},
	},
}

var reservationBlock = block{
	path: "dhcp.ZONE.reservations[]", format: APIVersion, example: `{mac: "02:00:00:00:00:11", address: 10.0.0.11}`,
	doc: "Either `mac` or `node`.",
	fields: []field{
		{"mac", "MAC address", "none", `"02:00:00:00:00:11"`, "Whose it is. Quote it: YAML takes some for numbers."},
		{"node", "name of a Kubernetes node", "none", "worker-1", "Whose it is: the machine that calls itself so when it asks. Who comes first keeps the address, by its MAC address, until the lease ends. A machine can call itself what it likes: use `mac` where machines are not trusted with that."},
		{"address", "IPv4 address", required, "10.0.0.11", "What it gets."},
		{"hostname", "name of one label", "`node`, or what the machine calls itself", "nas", "What it is called."},
	},
}

var relayedBlock = block{
	path: "dhcp.ZONE.relayed[]", format: APIVersion, example: "{network: 10.2.0.0/24, pools: [10.2.0.100-10.2.0.199]}",
	doc: "A network is known by the address of its relay agent (giaddr).",
	fields: []field{
		{"network", "IPv4 network", required, "10.2.0.0/24", "Where its machines are. The relay agent has an address in it."},
		{"router", "IPv4 address", "the relay agent", "10.2.0.1", "Their default route, unless `options.routers` says something else."},
		{"pools", "list of ranges", "none", "[10.2.0.100-10.2.0.199]", "IPv4 addresses of the network that machines get."},
	},
}

var dhcpOptionsBlock = block{
	path: "dhcp.ZONE.options", format: APIVersion, example: "{domain: home.example}",
	doc: "A machine is told what it asks for.",
	fields: []field{
		{"routers", "list of IPv4 addresses", "this machine's address in the network", "[10.0.0.1]", "Their default route; `[]`: none."},
		{"dns", "list of IPv4 addresses", "this machine's address in the network, if `dns.zones` has the zone", "[10.0.0.1]", "DNS servers; `[]`: none."},
		{"domain", "DNS name", "`dns.domain`", "home.example", "The domain that they are in."},
		{"search", "list of DNS names", "none", "[home.example, example.org]", "Domains that short names are looked for in (RFC 3397)."},
		{"ntp", "list of IPv4 addresses", "none", "[10.0.0.1]", "Servers that know the time."},
		{"mtu", "576 to 65535", "not said", "1500", "How long packets may be."},
		{"nextServer", "IPv4 address", "not said", "10.0.0.5", "Where machines that boot by PXE get their boot file (siaddr, and option 66)."},
		{"bootFile", "text", "not said", "pxelinux.0", "The boot file (in the field `file`, and as option 67)."},
	},
}

var advertisementsBlock = block{
	path: "dhcp.ZONE.routerAdvertisements", format: APIVersion, example: "{}",
	doc: "Machines make themselves addresses (SLAAC), and get the rest from the advertisements or by stateless DHCPv6.",
	fields: []field{
		{"prefixes", "list of IPv6 networks of 64 bits", "those of this machine's addresses in the zone", `["fd00:10::/64"]`, "What machines make addresses of."},
		{"lifetime", "duration, 30s to 18h, or 0", "`30m`", "30m", "How long this machine is a default router after it was last heard; 0: it is none."},
		{"dns", "list of IPv6 addresses", "this machine's address in the zone, if `dns.zones` has the zone", `["fd00:10::1"]`, "DNS servers (RFC 8106); `[]`: none."},
		{"search", "list of DNS names", "`options.search`, or else the domain", "[home.example]", "Domains that short names are looked for in."},
		{"ntp", "list of IPv6 addresses", "none", `["fd00:10::1"]`, "Time servers, told by DHCPv6 (RFC 5908)."},
		{"mtu", "1280 to 65535, or 0", "`0`", "1500", "How long packets may be; 0: not said."},
	},
}
