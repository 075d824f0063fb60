package web

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// metric is a family of series: how it is made, and what docs/metrics.md says of
// it.
type metric struct {
	*prometheus.Desc
	name, help string
	kind       kind
	labels     []string
	since      string // the version that has it first
}

type kind string

const (
	aGauge     kind = "gauge"
	aCounter   kind = "counter"
	aHistogram kind = "histogram"
)

const firstVersion = "0.1"

// metrics are all there are, in no order.
var metrics []*metric

func family(k kind, name, help string, labels ...string) *metric {
	m := &metric{name: "gatehouse_" + name, help: help, kind: k, labels: labels, since: firstVersion}
	m.Desc = prometheus.NewDesc(m.name, help, labels, nil)
	metrics = append(metrics, m)
	return m
}

func gauge(name, help string, labels ...string) *metric {
	return family(aGauge, name, help, labels...)
}

func counter(name, help string, labels ...string) *metric {
	return family(aCounter, name, help, labels...)
}

func histogram(name, help string, labels ...string) *metric {
	return family(aHistogram, name, help, labels...)
}

var (
	buildInfo = gauge("build_info", "Always 1; the version is a label.", "version")
	ready     = gauge("ready", "1 when caches are synced and listeners are up, as /readyz says.")
	problems  = gauge("problems", "Problems by what they are about, those of the configuration files included; /status.json and gatehouse status say which.", "kind")
	decisions = histogram("decision_duration_seconds", "Time from when something is noticed (a file, the cluster, an interface, a health check) until what follows from it is applied, the up to 20 ms included in which changes are gathered.")

	configCurrent  = gauge("config_last_reload_successful", "1 when the configuration files on disk are the ones that run.")
	configLoaded   = gauge("config_last_reload_success_timestamp_seconds", "When the running configuration was read.")
	configProblems = gauge("config_problems", "Problems in the configuration files on disk.")
	stateSaved     = gauge("state_saved_timestamp_seconds", "When the state directory was last written, which is done when something has changed; no series: not by this process.")

	kubeSynced    = gauge("kubernetes_synced", "1 when Services, EndpointSlices and Nodes were read at least once; no series, here and in the next ones: no cluster is configured.")
	kubeConnected = gauge("kubernetes_connected", "1 when the last request to the Kubernetes API went well.")
	kubeHeld      = gauge("kubernetes_loss_held", "1 while the Kubernetes API lacks most of what was there, and is not believed.")
	kubeSaved     = gauge("kubernetes_from_saved_state", "1 while decisions follow from the state directory, since the Kubernetes API was not read yet.")
	kubeServices  = gauge("kubernetes_services", "Services of type LoadBalancer that decisions follow from, those of other classes included.")
	kubeNodes     = gauge("kubernetes_nodes", "Nodes that decisions follow from.")
	kubeRequests  = counter("kubernetes_requests_total", "Requests to the Kubernetes API, by verb, resource and class of the answer (none: there was none). A write of a status is a patch of services/status, an Event a create of events.", "verb", "resource", "code")

	exposures       = gauge("exposures", "Service ports and static frontends by zone and whether they are open.", "zone", "open")
	exposuresClosed = gauge("exposures_closed", "Those that are not open by the reason, in the words of Events; zone is empty for what is in none.", "zone", "reason")
	clientSeen      = gauge("exposure_client_address_seen", "1 when the backends of what is open see the client's own address.", "frontend", "zone", "protocol")

	poolAddresses    = gauge("pool_addresses", "Addresses of the pool: given to Services, held for who had them until a minute ago, free, or unusable. 1.8e19 is: very many.", "pool", "family", "state")
	serviceAddresses = gauge("service_addresses", "Addresses of pools that Services have or had until a minute ago, by how far they are: ready, pending, conflict, failed or held.", "pool", "family", "state")

	// What this machine is for the machines of its zones.
	linkUp         = gauge("link_up", "1 when the interface is there as the configuration says, is up and has a carrier.", "link", "kind")
	linkLease      = gauge("link_lease_expiry_timestamp_seconds", "Until when a DHCP server has lent the interface its address; no series: it asks for none, or has none.", "link")
	firewallUp     = gauge("firewall_applied", "1 when the kernel has the rules that were decided; no series: there is no firewall.")
	firewallHoles  = gauge("firewall_pinholes", "What gatehouse has opened by itself: for Services, static frontends, and what it serves.")
	firewallPassed = counter("firewall_policy_packets_total", "Packets that the policy has decided, the first of connections; policies are numbered from 0 in file order, as in problems.", "policy", "action")
	firewallDrops  = counter("firewall_dropped_packets_total", "Packets that nothing lets pass, by the zone that they came from and the one that they wanted to; self is this machine, and an empty one an interface of no zone.", "from", "to")
	dhcpUp         = gauge("dhcp_up", "1 when DHCP is served in the zone.", "zone")
	dhcpAddresses  = gauge("dhcp_addresses", "Addresses of the zone's pools and reservations: leased, free, or declined (taken by somebody who was not given them).", "zone", "state")
	dhcpMessages   = counter("dhcp_messages_total", "DHCP messages that came and went, by type.", "zone", "type")
	adverts        = counter("router_advertisements_total", "Router advertisements, to everybody (periodic) or to those who asked (solicited).", "zone", "kind")
	dhcp6Replies   = counter("dhcpv6_replies_total", "Answers to those who asked by DHCPv6.", "zone")
	dnsUp          = gauge("dns_up", "1 when questions are answered in the zone.", "zone")
	dnsNames       = gauge("dns_names", "Names of this site that machines of the zone can ask for.", "zone")
	dnsQueries     = counter("dns_queries_total", "Questions by protocol.", "zone", "protocol")
	dnsAnswers     = counter("dns_responses_total", "Answers by their code, such as NOERROR or NXDOMAIN.", "zone", "code")
	dnsHow         = counter("dns_answered_total", "Questions by how they were answered: own (from this site's names), cache, forwarded, limited (not at all: the client asks too often) or rebinding (the answer was held back).", "zone", "how")
	dnsCached      = gauge("dns_cache_entries", "Answers that are kept.")
	dnsUpstreamUp  = gauge("dns_upstream_up", "1 when the server has answered lately.", "server")
	dnsUpstreamAll = counter("dns_upstream_queries_total", "Questions that the server was asked.", "server")
	dnsUpstreamBad = counter("dns_upstream_failures_total", "Those of them that it has not answered.", "server")

	// Those of others on this machine count in them.
	conntrackEntries = gauge("conntrack_entries", "Entries that the kernel's table of connections has, all of this machine's; no series: data plane nat is not used.")
	conntrackLimit   = gauge("conntrack_entries_limit", "How many entries it can have: with more, the kernel drops new connections.")
	natApplies       = histogram("nat_apply_duration_seconds", "How long it took to change the rules of data plane nat, each time that there was something to change, failures included.")
	natFailures      = counter("nat_apply_failures_total", "Changes to the rules of data plane nat that the kernel did not take; they are tried again.")
	natMended        = counter("nat_rules_mended_total", "How often somebody else had changed the rules of data plane nat, and they were put right.")

	healthChecks = histogram("health_check_duration_seconds", "How long health checks took, by result: passed or failed.", "result")

	// One that came through a shared door is a frontend's once its name is known:
	// it has then been accepted by both.
	ofFrontend = newTrafficMetrics("frontend", "frontend", "data_plane")
	ofListener = newTrafficMetrics("listener")
	routed     = ofListener.counter("connections_routed_total", "Connections given to the frontend that has their name, which counts them as accepted, too.")

	limit           = ofFrontend.gauge("connections_limit", "How many connections there may be at a time; no series: any number.")
	clientLimit     = ofFrontend.gauge("client_connections_limit", "How many connections one client address may have at a time; no series: any number.")
	clientRate      = ofFrontend.gauge("client_connections_per_second_limit", "How many new connections a second one client address may open on average; no series: any number.")
	banTime         = ofFrontend.gauge("ban_time_seconds", "How long a client is turned away that has opened more; no series: until it has slowed down.")
	banned          = ofFrontend.gauge("banned_clients", "Clients that are turned away now for having opened more; no series: there is no ban time.")
	idleTimeout     = ofFrontend.gauge("idle_timeout_seconds", "After how long without a byte a connection is closed; no series: never.")
	drainTimeout    = ofFrontend.gauge("drain_timeout_seconds", "How long connections outlive a backend or frontend that is removed; no series: until they end by themselves.")
	affinityTimeout = ofFrontend.gauge("affinity_timeout_seconds", "How long a client keeps its backend after its last connection has begun; no series: not for a time.")
	frontendInfo    = ofFrontend.gauge("info", "Always 1; how backends are chosen and told the client's address are labels.", "balance", "send_proxy_protocol", "transparent")

	backendUp       = ofBackend(aGauge, "up", "1 when the backend is up, or counts as up because nothing asks it.")
	backendSince    = ofBackend(aGauge, "state_change_timestamp_seconds", "Since when the backend is up, or down; no series: nothing asks it.")
	backendDraining = ofBackend(aGauge, "draining", "1 when the backend is gone, or has weight 0, and has connections left.")
	backendTotal    = ofBackend(aCounter, "connections_total", "Connections given to the backend.")
	backendActive   = ofBackend(aGauge, "connections_active", "Connections to the backend now.")
	backendFailures = ofBackend(aCounter, "failures_total", "Attempts to connect to the backend that failed; no series: the kernel moves the bytes, and makes none.")
	backendWeight   = ofBackend(aGauge, "weight", "What the backend is given of new connections, relative to the others of the frontend; 0: none.")
	backendShare    = ofBackend(aGauge, "share_ratio", "Part of new connections the backend should get, 0 to 1.")

	backendReceived        = ofBackend(aCounter, "received_bytes_total", "Bytes from clients to the backend, as the kernel counts them: whole packets; no series: gatehouse moves the bytes, and counts them by frontend.")
	backendSent            = ofBackend(aCounter, "sent_bytes_total", "Bytes from the backend to clients, counted likewise.")
	backendReceivedPackets = ofBackend(aCounter, "received_packets_total", "Packets from clients to the backend, counted likewise.")
	backendSentPackets     = ofBackend(aCounter, "sent_packets_total", "Packets from the backend to clients, counted likewise.")
)

// trafficMetrics are the series of what comes through frontends, or through the
// doors that they share. Of UDP, a session is a connection. Where the kernel
// moves the bytes, some are not known, and have no series.
type trafficMetrics struct {
	of     string
	labels []string

	up, accepted, active, waiting, ended, failures, acceptErrors *metric
	received, sent, receivedPackets, sentPackets, droppedPackets *metric
}

func newTrafficMetrics(of string, more ...string) trafficMetrics {
	m := trafficMetrics{of: of, labels: append(more, "zone", "protocol", "listen")}
	m.up = m.gauge("up", "1 when the "+of+" listens.")
	m.accepted = m.counter("connections_total", "Connections accepted, or forwarded by the kernel (nat).")
	m.active = m.gauge("connections_active", "Connections now, draining ones included; of nat, entries of the kernel's table of connections.")
	m.waiting = m.gauge("connections_waiting", "Those of the active connections that have no backend yet.")
	m.ended = m.counter("connections_ended_total", "Connections that had a backend and ended: finished, reset by a side, after the idle_timeout or the drain_timeout, lost (a side did not answer any more), with a backend that was found down (backend_down), or cut when gatehouse stopped.", "how")
	m.failures = m.counter("failures_total", "Connections that got no backend, by reason.", "reason")
	m.acceptErrors = m.counter("accept_errors_total", "Failed attempts to accept a connection, for want of descriptors or memory.")
	m.received = m.counter("received_bytes_total", "Bytes from clients; of nat, those of whole packets.")
	m.sent = m.counter("sent_bytes_total", "Bytes to clients; of nat, those of whole packets.")
	m.receivedPackets = m.counter("received_packets_total", "Packets from clients that went on to a backend, of UDP and of nat.")
	m.sentPackets = m.counter("sent_packets_total", "Packets to clients, of UDP and of nat.")
	m.droppedPackets = m.counter("dropped_packets_total", "UDP packets dropped for want of a session, a backend or room.")
	return m
}

func (m trafficMetrics) gauge(name, help string, more ...string) *metric {
	return gauge(m.of+"_"+name, help, slices.Concat(m.labels, more)...)
}

func (m trafficMetrics) counter(name, help string, more ...string) *metric {
	return counter(m.of+"_"+name, help, slices.Concat(m.labels, more)...)
}

func ofBackend(k kind, name, help string) *metric {
	return family(k, "backend_"+name, help, "frontend", "data_plane", "zone", "protocol", "listen", "backend")
}
