package config

// A block is a map in a file: which fields it may have. The parser accepts
// exactly these, and docs/config.md is written from them.
type block struct {
	path   string // "frontends[].health"; empty: the top of the file
	format string // the apiVersion it belongs to
	doc    string
	// example is shown where an element of a list or map is something else.
	example string
	fields  []field
	later   []refusal // fields that are planned: refused, never ignored
	wrong   []refusal // fields of other formats, with their name in this one
}

// A field is one key of a block.
type field struct {
	key     string
	typ     string // in words
	def     string // what an absent field means, as it would be written; "required" if it may not be absent
	example string // of a value; shown where something else was found
	doc     string
}

// remedy shows how the field is written.
func (f *field) remedy() string { return "write " + f.key + ": " + f.example }

// of is the field with something more said of it.
func (f field) of(doc string) field {
	f.doc += " " + doc
	return f
}

// A refusal is a field that is known and not accepted.
type refusal struct{ key, remedy string }

const required = "required"

var topBlock = block{
	format: APIVersion,
	fields: []field{
		{"apiVersion", "text", required, APIVersion, "The format of the file: `" + APIVersion + "`, or `v1` for an l4proxy file."},
		{"links", "list", "`[]`", `[{name: eth0, addresses: [10.0.0.1/24]}]`, "Interfaces that gatehouse makes, or whose addresses it keeps, and routes. What is not in it is left to the system's own tools."},
		{"zones", "map of zones by name", "`{}`", "{home: {interfaces: [eth1]}}", "The networks that clients come from. A name has small letters, digits and `-`."},
		{"pools", "list", "`[]`", "[{name: home, zone: home, addresses: [10.11.12.64-10.11.12.79]}]", "Addresses that Services get for themselves. In a zone without a pool they share those of its interfaces, by port."},
		{"frontends", "list", "`[]`", `[{zones: [home], port: 22, backends: [{address: "10.0.0.101:22"}]}]`, "Static frontends. Kubernetes adds its own."},
		{"kubernetes", "map", "no cluster", "{defaultZones: [home]}", "The cluster whose Services are exposed; `{}` for all defaults."},
		{"dhcp", "map by zone name", "`{}`", "{home: {pools: [10.11.12.100-10.11.12.199]}}", "Zones whose machines get addresses from gatehouse, and IPv6 router advertisements."},
		{"dns", "map", "no DNS server", "{zones: [home], domain: home.example}", "A DNS server for zones, which knows the names of this site: of machines, nodes and Services."},
		{"stopTimeout", "duration, 100ms to 24h, or 0", "`10s`", "10s", "How long a gatehouse that stops waits for connections to end by themselves; what is left is cut. 0: at once."},
		{"stateDir", "name of a directory", "nothing is kept", "/var/lib/gatehouse", "Where the last good snapshot of the cluster is kept, so that a gatehouse that is started while the API server is away goes on from it, and the leases of `dhcp`, which needs it. It is made if it is not there."},
		{"admin", "map", "not served", `{listen: "127.0.0.1:9180"}`, "Where gatehouse tells about itself."},
		{"firewall", "map", "nothing is filtered", "{policies: [{from: home, to: self, ports: [ssh]}]}", "What may pass between zones and to this machine; with it, nothing else does."},
	},
	later: []refusal{
		{"announce", "leave it out"},
		{"bgp", "leave it out"},
	},
	wrong: []refusal{
		{"routes", "they belong to an interface: links: [{name: eth0, routes: [{to: 10.2.0.0/16, via: 10.0.0.9}]}]"},
		{"policies", "they are in the block firewall: {policies: [...]}"},
		{"nat", "a policy of the firewall has it: firewall: {policies: [{from: cluster, to: internet, allow: true, masquerade: true}]}"},
		{"hostnames", "each frontend has its own: frontends: [{hostnames: [git.example.org]}]"},
	},
}

var zoneBlock = block{
	path: "zones.NAME", format: APIVersion, example: "{interfaces: [eth1]}",
	doc: "A packet belongs to the zone of the interface it came in on, whatever its addresses.",
	fields: []field{
		{"interfaces", "list of interface names", required, "[eth1]", "The interfaces that make up the zone. An interface is in one zone at most."},
	},
}

var frontendBlock = block{
	path: "frontends[]", format: APIVersion, example: `{zones: [home], port: 22, backends: [{address: "10.0.0.101:22"}]}`,
	doc: "A port opened in zones, or at a listen address, and where its connections go.",
	fields: []field{
		{"name", "text", "made from `zones` and `port`, or `listen`", "git-ssh", "What it is called in plan, status and metrics."},
		{"zones", "list of zone names", "none", "[home]", "Where it is open. Either `zones` and `port`, or `listen`."},
		{"port", "1 to 65535", "required with `zones`", "22", "The port opened in each of the zones."},
		{"listen", "listen address", "none", `"127.0.0.1:2222"`, "One listen address instead of zones: `\":2222\"` (every address), `\"127.0.0.1:2222\"`, `\"[::1]:2222\"`, `\"name:2222\"` or `\"@eth1:2222\"` (what comes in on eth1). Quote it: `@` and `[` mean something else in YAML."},
		{"protocol", "`TCP`, `UDP` or `SCTP`", "`TCP`", "TCP", "Transport protocol; SCTP only with `dataPlane: nat`. Of UDP, what one client port sends is a session: it keeps its backend until it is idle for `idleTimeout`, or with `dataPlane: nat` as long as the kernel says."},
		{"hostnames", "list of 1 to 64 hostnames", "the whole port", "[git.example.org]", "The TLS server names that it takes of what comes to its port, so that several frontends, all of them with hostnames, can have the same one in the same zone or at the same listen address: `git.example.org`; `\"*.example.org\"`, for one label or more in front of the rest; or `\"*\"`, for whatever else comes, what has no name and what is no TLS included. The most specific one counts. TLS is not terminated. Of UDP, the names of QUIC. Quote those that begin with `*`, which means something else in YAML."},
		dataPlaneField.of("`nat` needs `zones`, or a `listen` with an interface."),
		masqueradeField.of("Only with `dataPlane: nat`."),
		balanceField,
		{"affinityTimeout", "duration, 1s to 24h, or 0", "`0`", "10m", "With `balance: source`: how long a client keeps its backend after its last connection has begun, though other backends have come meanwhile. 0: the backend follows from the client's address and the backends that there are."},
		acceptProxyProtocolField,
		sendProxyProtocolField,
		transparentField,
		{"sourceRanges", "list of networks", "all", "[10.11.12.0/24]", "The client networks that may connect. Behind a proxy whose PROXY protocol header is accepted, the client is the one that the header names."},
		{"connectTimeout", "duration, 10ms to 2m", "`3s`", "3s", "How long a backend may take to accept a connection, before another one is tried. Not for UDP."},
		{"idleTimeout", "duration, 100ms to 8760h, or 0", "`0`; UDP: `30s`", "1h", "Close a connection after this long without a byte in either direction; 0: never. UDP sessions end in no other way, so that 0 is refused for them."},
		{"drainTimeout", "duration, 100ms to 8760h, or 0", "`0`", "5m", "How long connections outlive their backend, or this frontend, once it has left the configuration or has weight 0; then they are cut. 0: they end by themselves. A backend that is only down keeps its connections."},
		{"maxConnections", "0 to 10000000", "`20000`", "20000", "How many connections (UDP: sessions) there may be at a time, in each place where it listens; more are closed at once. 0: no limit."},
		{"maxConnectionsPerClient", "0 to 10000000", "`2000`", "2000", "Likewise, of one client address. Give it more where many clients share one, behind NAT or another proxy. 0: no limit."},
		maxRateField,
		banTimeField,
		{"health", "map", "the defaults below; UDP and SCTP: none", "{type: tcp, interval: 5s}", "How backends are probed, and what follows. UDP and SCTP backends are not probed, and count as up."},
		{"backends", "list", required, `[{address: "10.0.0.101:22"}]`, "Where connections go."},
	},
	wrong: []refusal{
		{"bind", "here it is called listen (bind is for files with apiVersion: v1)"},
		{"address", "here it is called listen"},
		{"healthInterval", "here it is health: {interval: 5s}"},
		{"timeout", "here it is called idleTimeout; how long a probe may take is health.timeout"},
	},
}

// Fields of static frontends and of all Services.
var (
	dataPlaneField = field{
		"dataPlane", "`proxy` or `nat`", "`proxy`", "proxy",
		"What moves the bytes. `proxy`: this program, which takes connections and makes new ones to the backends. `nat`: the kernel, which rewrites the addresses of packets, so that backends see the client's own; it reads nothing and counts against no limit, so that what is about TLS server names, the PROXY protocol, limits, idle times or the least connections cannot be asked for.",
	}
	masqueradeField = field{
		"masquerade", "`auto` or `always`", "`auto`", "auto",
		"Whose address the backends see. `auto`: the client's own, and this machine's where their answers would not come back through this machine: of clients in the network of the backend. `always`: this machine's, for backends whose way to clients is not through this machine.",
	}
	balanceField = field{
		"balance", "`random`, `leastConnections` or `source`", "`random`", "random",
		"How a backend is chosen for a new connection, among those that are up and by weight. `random`: any. `leastConnections`: of two taken at random, the one with fewer connections for its weight. `source`: the one that the client's address stands for, so that a client comes back to it; when a backend goes, only its clients move.",
	}
	acceptProxyProtocolField = field{
		"acceptProxyProtocol", "list of networks", "none", "[10.0.0.5/32]",
		"The networks of proxies in front of this machine. Their connections have to begin with a PROXY protocol header (v1 or v2), which says who the client is; a connection from elsewhere that begins with one is closed. The same for all frontends that share a port. TCP only.",
	}
	sendProxyProtocolField = field{
		"sendProxyProtocol", "`none`, `v1` or `v2`", "`none`", "v2",
		"Whether backends are told the client's address by a PROXY protocol header, which they have to expect. TCP only; not together with `transparent`.",
	}
	transparentField = field{
		"transparent", "true or false", "`false`", "true",
		"Whether connections come to backends from the client's own address. What the backends answer has to come back through this machine.",
	}
	maxRateField = field{
		"maxRatePerClient", "CONNECTIONS/TIME, 1 to 1000000 in 100ms to 24h", "any", "100/10s",
		"How many new connections (UDP: sessions) one client address may open in a time: `100/10s`, or `20/s`, `5/m`, `100/h`. What comes faster is closed at once.",
	}
	banTimeField = field{
		"banTime", "duration, 1s to 8760h, or 0", "`0`", "10m",
		"How long a client is turned away that has come faster than `maxRatePerClient`. 0: only until it has slowed down.",
	}
)

var healthFields = []field{
	{"type", "`tcp`, `tls`, `http`, `https` or `exchange`", "`tcp`", "tcp", "What a probe does. `tcp` connects. `tls` shakes hands, whatever the certificate. `http` and `https` ask for a path and want a status. `exchange` sends something, or only listens, and wants something back."},
	{"interval", "duration, 100ms to 24h, or 0", "`5s`", "5s", "Time between two probes; 0: no probes, the backend counts as up."},
	{"timeout", "duration, 10ms to 1m", "`1s`", "1s", "How long a probe may take."},
	{"rise", "1 to 100", "`1`", "1", "Successes in a row before a down backend is up."},
	{"fall", "1 to 100", "`2`", "2", "Failures in a row before an up backend is down."},
	{"port", "1 to 65535", "the backend's", "8080", "The port that is probed."},
	{"path", "text", "`/`", "/healthz", "Of `http` and `https`: what is asked for."},
	{"host", "hostname", "none", "git.example.org", "Of `http` and `https`: whom is asked for, instead of the backend's address. Of `https` and `tls`: the server name."},
	{"status", "status, or two with `-` between them", "`200-399`", "200-399", "Of `http` and `https`: which statuses are a success."},
	{"send", "text", "nothing", `"PING\r\n"`, "Of `exchange`: what is sent. In double quotes, `\\r\\n` ends a line."},
	{"expect", "text", "required with `exchange`", `"SSH-2.0"`, "Of `exchange`: what the answer has to contain."},
	{"whenAllDown", "`try` or `refuse`", "`try`", "try", "What becomes of connections while every backend is down. `try`: they are sent there all the same, since it may be the checks that are wrong. `refuse`: they are closed."},
	{"onDown", "`keep` or `close`", "`keep`", "keep", "What becomes of the connections of a backend that is found down: they go on as long as they can, or they are reset."},
}

var healthBlock = block{
	path: "frontends[].health", format: APIVersion,
	doc:    "What is probed, how often, and what follows when a backend is down.",
	fields: healthFields,
}

var backendBlock = block{
	path: "frontends[].backends[]", format: APIVersion, example: `{address: "10.0.0.101:22"}`,
	fields: []field{
		{"address", "HOST:PORT", required, `"10.0.0.101:22"`, "An IP address or a host name, and a port. IPv6 addresses in brackets: `\"[fd00::1]:22\"`."},
		{"weight", "0 to 65535", "`1`", "1", "Its share of new connections relative to the other backends; 0: none."},
	},
}

var kubernetesBlock = block{
	path: "kubernetes", format: APIVersion,
	doc: "Services of type LoadBalancer are exposed in the zones that they ask for.",
	fields: []field{
		{"kubeconfig", "file name", "in-cluster, then KUBECONFIG", "/etc/gatehouse/kubeconfig", "How to reach the cluster."},
		{"loadBalancerClass", "text", "`" + DefaultClass + "`", DefaultClass, "Services with this spec.loadBalancerClass are gatehouse's own."},
		{"classless", "true or false", "`false`", "false", "Also own Services that name no class."},
		{"followAddresses", "true or false", "`true`", "true", "Also expose Services whose address another controller assigned."},
		{"selector", "label selector", "all", `"app in (web, api), !internal"`, "Look only at Services whose labels match."},
		{"defaultZones", "list of zone names", "`[]`", "[home]", "Where a Service is open that does not say. None: nothing is open unless it asks."},
		{"allow", "map by zone name", "`{}`", "{internet: {namespaces: [ingress-public]}}", "Who may ask for a zone. A zone that is not named here may be asked for by all."},
		dataPlaneField.of("The annotation `gatehouse.e13.dev/data-plane` comes first."),
		masqueradeField.of("For Services whose data plane is nat."),
		{"podRoutes", "true or false", "`true`", "true", "Whether to keep routes to the pod networks of the nodes whose pods are backends (`target: pod`), via the nodes. Routes that are there already are left alone."},
		{"connectTimeout", "duration, 10ms to 2m", "`3s`", "3s", "How long a backend may take to accept a connection, before another one is tried."},
		{"idleTimeout", "duration, 100ms to 8760h, or 0", "`0`", "1h", "Close a connection after this long without a byte in either direction. 0: never, and UDP sessions after 30s. A time that is given holds for both protocols. The annotation `gatehouse.e13.dev/idle-timeout` comes first."},
		{"drainTimeout", "duration, 100ms to 8760h, or 0", "`0`", "5m", "How long connections outlive their pod, node or Service once it is gone, or has no ready pod any more; then they are cut. 0: they end by themselves. The annotation `gatehouse.e13.dev/drain-timeout` comes first."},
		{"maxConnections", "0 to 10000000", "`20000`", "20000", "How many connections (UDP: sessions) one port of a Service may have at a time, on each interface; more are closed at once. 0: no limit."},
		{"maxConnectionsPerClient", "0 to 10000000", "`2000`", "2000", "Likewise, of one client address. 0: no limit."},
		maxRateField,
		banTimeField,
		balanceField.of("The annotation `gatehouse.e13.dev/balance` comes first."),
		acceptProxyProtocolField,
		sendProxyProtocolField.of("The annotation `gatehouse.e13.dev/send-proxy-protocol` comes first."),
		transparentField.of("The annotation `gatehouse.e13.dev/transparent` comes first."),
		{"health", "map", "the defaults below", "{type: tcp, interval: 5s}", "How backends are probed, and what follows. The annotations `gatehouse.e13.dev/health-check` and `gatehouse.e13.dev/health-interval` come first."},
		{"healthzPort", "0 to 65535", "`10256`", "10256", "The port at which kube-proxy says of each node whether it takes connections; 0: it is not asked."},
		{"ignoreExcludeLabel", "true or false", "`false`", "true", "Use nodes with the label `node.kubernetes.io/exclude-from-external-load-balancers` like all others: kubeadm puts it on control-plane nodes, and a cluster of one node has no other."},
		{"finalizer", "true or false", "`true`", "true", "Put the finalizer `gatehouse.e13.dev/closed` on Services that are open, so that deleting one ends once it is closed. `gatehouse uninstall` takes it off all of them."},
		{"apiServer", "map", "not opened", "{zones: [home]}", "Opens the cluster's API servers in zones."},
		{"holdLosses", "duration, 1s to 24h, or 0", "`5m`", "5m", "How long a list that suddenly lacks more than half of the Services, endpoints or nodes is not believed: the API server may have come up with the wrong data. A problem says so meanwhile; SIGHUP (`systemctl reload`) believes it. 0: it is believed at once. What is seen to be deleted is always believed."},
		{"target", "`auto`, `address`, `nodePort` or `pod`", "`auto`", "auto", "What serves a Service: the address another controller assigned, node ports, or pods. `auto`: the first of these that there is."},
	},
	wrong: []refusal{
		{"hostnames", "each Service says it itself, with the annotation gatehouse.e13.dev/hostnames"},
		{"affinityTimeout", "each Service says it itself, with sessionAffinity: ClientIP"},
		{"sourceRanges", "each Service says it itself, with loadBalancerSourceRanges"},
	},
}

var kubernetesHealthBlock = block{
	path: "kubernetes.health", format: APIVersion,
	doc:    "As of a static frontend, for all Services.",
	fields: healthFields,
}

// Fields that choose Services.
var whoFields = []field{
	{"namespaces", "list of namespaces", "all", "[ingress-public]", "Only Services in these namespaces; `[]`: in none."},
	{"namespaceLabels", "label selector", "none", `"tier=public"`, "Also Services in namespaces whose labels match. Without `namespaces`: in these alone."},
	{"labels", "label selector", "all", `"expose=yes"`, "Of these, only Services whose own labels match. Who may create a Service may give it any label."},
}

var allowBlock = block{
	path: "kubernetes.allow.ZONE", format: APIVersion, example: "{namespaces: [ingress-public]}",
	doc:    "Which Services may ask for the zone. At least one of the fields.",
	fields: whoFields,
}

var apiServerBlock = block{
	path: "kubernetes.apiServer", format: APIVersion, example: "{zones: [home]}",
	doc: "Connections are spread over the API servers that answer `/readyz`: those that the cluster names as endpoints of its Service `default/kubernetes`, or else its control-plane nodes.",
	fields: []field{
		{"zones", "list of zone names", required, "[home]", "Where they are open, and nowhere else."},
		{"port", "1 to 65535", "`6443`", "6443", "The port opened in each of the zones."},
	},
}

var poolBlock = block{
	path: "pools[]", format: APIVersion, example: "{name: home, zone: home, addresses: [10.11.12.64-10.11.12.79]}",
	doc: "A Service gets one of these for itself in each network of the zone, for each of its IP families. This machine answers for it by ARP and NDP there, and only for what is open.",
	fields: append([]field{
		{"name", "text", required, "home", "What it is called in events and metrics. It has small letters, digits and `-`."},
		{"zone", "zone name", required, "home", "The zone that its addresses are in. Services get them that ask for the zone."},
		{"addresses", "list of ranges", required, "[10.11.12.64-10.11.12.79]", "`FIRST-LAST`, networks or addresses, of either IP family. An address is in one pool at most. Keep them out of your DHCP server's range."},
		{"auto", "true or false", "`true`", "true", "Whether a Service gets an address without asking. Otherwise it asks with the annotation `gatehouse.e13.dev/addresses`, for an address or for the pool by its name."},
	}, whoFields...),
}

var adminBlock = block{
	path: "admin", format: APIVersion, example: `{listen: "127.0.0.1:9180"}`,
	doc: "Where the status page, `/status.json`, `/explain.json`, `/metrics`, `/healthz` and `/readyz` are served. They are read only. At least one of `listen`, `socket` and `zones`.",
	fields: []field{
		{"listen", "ADDRESS:PORT", "not there", `"127.0.0.1:9180"`, "An IP address or `localhost`, and a port. A loopback address asks for no token; every other one takes `tokenFile`."},
		{"socket", "full name of a socket", "none", "/run/gatehouse/api.sock", "A Unix socket for commands on this machine. It is made with mode 0660 in a directory that is there: the user that gatehouse runs as may ask, and that user's group."},
		{"zones", "list of zone names", "`[]`", "[home]", "Also in these zones, on their interfaces only, and only with the token. The port is taken there before Services get it."},
		{"port", "1 to 65535", "`9180`", "9180", "The port in the zones."},
		{"tokenFile", "file name", "none", "/etc/gatehouse/token", "The file with the token that has to be shown, of 16 characters or more: as `Authorization: Bearer TOKEN`, or as the password that a browser asks for (with any user name). Everybody else must not be able to read it. A token that is replaced counts at once. Required where somebody is asked for it."},
	},
}

var l4Block = block{
	format: L4ProxyVersion,
	doc:    "Files of l4proxy are accepted as they are.",
	fields: []field{
		{"apiVersion", "text", required, L4ProxyVersion, "`" + L4ProxyVersion + "`"},
		{"frontends", "list", "`[]`", `[{bind: ":1313", backends: [{address: "localhost:1314"}]}]`, "Ports and where their connections go."},
	},
	wrong: []refusal{
		{"zones", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"kubernetes", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"admin", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"stopTimeout", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"stateDir", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"pools", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"firewall", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"dhcp", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
		{"dns", "write it in a file with apiVersion: " + APIVersion + "; both files can be given"},
	},
}

var l4FrontendBlock = block{
	path: "frontends[]", format: L4ProxyVersion, example: `{bind: ":1313", backends: [{address: "localhost:1314"}]}`,
	fields: []field{
		{"bind", "listen address", required, `":1313"`, "Where it listens: `\":1313\"`, `\"10.0.0.1:1313\"`, `\"hostname:1313\"` or `\"@lo:1313\"`."},
		{"backends", "list", required, `[{address: "localhost:1314"}]`, "Where connections go."},
		{"healthInterval", "seconds", "`5`", "5", "Time between two probes; 0: no probes."},
		{"timeout", "duration", "`0`", "30s", "Close a connection after this long without a byte; 0: never. The other limits of a frontend are the defaults above."},
	},
	wrong: []refusal{
		{"listen", "in an l4proxy file it is called bind"},
		{"health", "in an l4proxy file it is healthInterval: seconds"},
	},
}

var l4BackendBlock = block{
	path: "frontends[].backends[]", format: L4ProxyVersion, example: `{address: "localhost:1314"}`,
	fields: []field{
		{"address", "HOST:PORT", required, `"localhost:1314"`, "An IP address or a host name, and a port."},
	},
	wrong: []refusal{
		{"weight", "weights need a file with apiVersion: " + APIVersion},
	},
}

// blocks are all of them, in the order that the documentation has.
var blocks = []*block{
	&topBlock, &linkBlock, &macvlanBlock, &vlanBlock, &bridgeBlock, &linkRouteBlock, &zoneBlock, &poolBlock, &frontendBlock, &healthBlock, &backendBlock, &kubernetesBlock, &kubernetesHealthBlock, &allowBlock, &apiServerBlock, &adminBlock, &firewallBlock, &policyBlock,
	&dhcpBlock, &reservationBlock, &relayedBlock, &dhcpOptionsBlock, &advertisementsBlock,
	&dnsBlock, &recordBlock, &srvBlock, &dnsAllowBlock,
	&l4Block, &l4FrontendBlock, &l4BackendBlock,
}

// field returns the field with that key, or nil.
func (b *block) field(key string) *field {
	for i := range b.fields {
		if b.fields[i].key == key {
			return &b.fields[i]
		}
	}
	return nil
}

func (b *block) keys() []string {
	keys := make([]string, len(b.fields))
	for i, f := range b.fields {
		keys[i] = f.key
	}
	return keys
}
