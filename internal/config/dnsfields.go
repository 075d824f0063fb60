package config

var dnsBlock = block{
	path: "dns", format: APIVersion, example: "{zones: [home], domain: home.example}",
	doc: "Answers the questions of the machines in zones: names of this site, with the addresses that the zone that asks can reach, and for all others those of upstream servers. UDP and TCP port 53 are taken there before Services get them. [More](dns.md), and [about names](dns-names.md).",
	fields: []field{
		{"zones", "list of zone names", required, "[home]", "Where it answers, on their interfaces only."},
		{"domain", "DNS name", required, "home.example", "The site's domain: machines are in it by their names. Others are not asked for it. `home.arpa` is for sites without a domain of their own (RFC 8375)."},
		{"serviceDomain", "DNS name", "`cluster.` and `domain`", "cluster.home.example", "Where Services are that are open, as SERVICE.NAMESPACE in it, and static frontends by their names. Others are not asked for it."},
		{"records", "list", "`[]`", "[{name: nas, address: 10.0.0.101}]", "Names that are written here. They come before all others."},
		{"upstreams", "list of servers", "those of /etc/resolv.conf", `["9.9.9.9", "tls://9.9.9.9#dns.quad9.net", "dhcp:veth0"]`, "Who is asked for other names, and in which order: `ADDRESS`, `ADDRESS:PORT`; with DNS over TLS `tls://ADDRESS#NAME` or `tls://ADDRESS:PORT#NAME`, where NAME is that in the server's certificate; `dhcp:LINK`: those that the DHCP server of one of `links` tells. `[]`: nobody."},
		{"forwards", "map of lists by domain", "`{}`", "{corp.example: [10.9.0.53]}", "Domains, with what is below them, for which other servers are asked. Written as `upstreams`."},
		{"rebinding", "list of DNS names", "`[]`", "[corp.example]", "Domains, with what is below them, whose names may have private addresses though an upstream says so. From all others such answers are held back: a web page must not reach machines of this site by a name of its own. `forwards` are among them by themselves."},
		{"ttl", "duration, 1s to 24h", "`60s`", "60s", "How long others may keep an answer about names of this site."},
		{"cacheSize", "0 to 1000000", "`10000`", "10000", "How many answers of upstreams are kept."},
		{"ratePerClient", "0 to 1000000", "`1000`", "1000", "How many questions one client address is answered in a second; 0: any number."},
		{"ingressClasses", "map of Services by class", "`{}`", "{public: ingress-public/nginx}", "Which Service, as NAMESPACE/NAME, takes the connections for the Ingresses of a class, or the Gateways of one. It is needed only where their status does not say it: without, it is the Service that has one of their addresses."},
		{"allow", "map by domain", "`{}`", "{example.org: {namespaces: [ingress-public]}}", "Who may have names in a domain and below it, with annotations, Ingresses and routes. A domain that is not named here, nor is below one that is: `domain` all, others nobody."},
	},
	wrong: []refusal{
		{"servers", "here they are called upstreams"},
		{"forwarders", "here they are called upstreams"},
		{"hosts", "here they are records: [{name: nas, address: 10.0.0.101}]"},
		{"listen", "it answers in zones: [home]"},
	},
}

var recordBlock = block{
	path: "dns.records[]", format: APIVersion, example: "{name: nas, address: 10.0.0.101}",
	doc: "A name, and one of `address`, `addresses`, `cname`, `srv` and `txt`. Names that do not end in `domain` or `serviceDomain` are in `domain`, unless they end in a dot.",
	fields: []field{
		{"name", "DNS name", required, "nas", "`nas`, `nas.home.example` or `nas.home.example.`; `www.example.org.` for one elsewhere; `@` for `domain` itself; `*.dev` for all names below that have nothing of their own."},
		{"address", "IP address", "none", "10.0.0.101", "What it stands for. The address gets the name, too (PTR)."},
		{"addresses", "list of IP addresses", "none", `[10.0.0.101, "fd00:10::101"]`, "Several of them, of either IP family."},
		{"cname", "DNS name", "none", "web.shop.cluster.home.example", "Another name that it stands for."},
		{"srv", "map", "none", "{target: mail, port: 143}", "Where a service is (RFC 2782). Its name begins like `_imap._tcp`."},
		{"txt", "list of texts", "none", `["v=spf1 -all"]`, "Texts, of 255 bytes each at most."},
		{"zones", "list of zone names", "all that can reach it", "[home]", "Where it is known. Without, one with addresses is known in the zones of which the firewall lets something through to them."},
	},
	wrong: []refusal{
		{"host", "here it is called name"},
		{"ip", "here it is called address"},
		{"a", "here it is called address"},
	},
}

var srvBlock = block{
	path: "dns.records[].srv", format: APIVersion, example: "{target: mail, port: 143}",
	fields: []field{
		{"target", "DNS name", required, "mail", "The machine that it is on."},
		{"port", "1 to 65535", required, "143", "Its port there."},
		{"priority", "0 to 65535", "`0`", "0", "Of several records of a name, those with the smallest are used first."},
		{"weight", "0 to 65535", "`0`", "0", "Its share among those of one priority."},
	},
}

var dnsAllowBlock = block{
	path: "dns.allow.DOMAIN", format: APIVersion, example: "{namespaces: [ingress-public]}",
	doc: "Which namespaces may have names there; `{}`: all.",
	fields: []field{
		{"namespaces", "list of namespaces", "all", "[ingress-public]", "Only these; `[]`: none."},
		{"namespaceLabels", "label selector", "none", `"tier=public"`, "Also namespaces whose labels match. Without `namespaces`: these alone."},
	},
	wrong: []refusal{
		{"labels", "write namespaces or namespaceLabels"},
	},
}
