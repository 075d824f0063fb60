package web

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// newRegistry holds the metrics of gatehouse and of its process.
func newRegistry(current func() status.Status) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{current})
	return r
}

// collector makes metrics of one Status at each scrape, so that they agree with
// the page, and rows that are gone leave no series behind.
type collector struct{ current func() status.Status }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gatehouse_"+name, help, labels, nil)
}

var (
	buildInfo      = desc("build_info", "Always 1; the version is a label.", "version")
	ready          = desc("ready", "1 when caches are synced and listeners are up.")
	configCurrent  = desc("config_last_reload_successful", "1 when the configuration files on disk are the ones that run.")
	configLoaded   = desc("config_last_reload_success_timestamp_seconds", "When the running configuration was read.")
	configProblems = desc("config_problems", "Problems in the configuration files on disk.")
	problems       = desc("problems", "All problems, those of the configuration files included.")
	kubeSynced     = desc("kubernetes_synced", "1 when Services, EndpointSlices and Nodes were read at least once.")
	kubeConnected  = desc("kubernetes_connected", "1 when the last request to the Kubernetes API went well.")
	kubeHeld       = desc("kubernetes_loss_held", "1 while the Kubernetes API lacks most of what was there, and is not believed.")
	kubeRequests   = desc("kubernetes_requests_total", "Requests to the Kubernetes API, by verb, resource and class of the answer (none: there was none).", "verb", "resource", "code")
	poolAddresses  = desc("pool_addresses", "Addresses of the pool: given to Services, held for who had them until a minute ago, free, or unusable.", "pool", "state")
	addresses      = desc("addresses", "Addresses that Services have or had until a minute ago, by how far they are: ready, pending, conflict, failed or held.", "pool", "state")
	exposures      = desc("exposures", "Service ports and static frontends by zone and whether they are open.", "zone", "open")
	clientSeen     = desc("exposure_client_address_seen", "1 when the backends of what is open see the client's own address.", "frontend", "zone", "protocol")
	// Those of others on this machine count in them.
	conntrackEntries = desc("conntrack_entries", "Entries that the kernel's table of connections has, all of this machine's.")
	conntrackLimit   = desc("conntrack_entries_limit", "How many entries it can have: with more, the kernel drops new connections.")

	// One that came through a shared door is a frontend's once its name is known:
	// it has then been accepted by both.
	ofFrontend = newTrafficDescs("frontend", "frontend", "data_plane")
	ofListener = newTrafficDescs("listener")
	routed     = ofListener.desc("connections_routed_total", "Connections given to the frontend that has their name, which counts them as accepted, too.")

	limit           = ofFrontend.desc("connections_limit", "How many connections there may be at a time; no series: any number.")
	clientLimit     = ofFrontend.desc("client_connections_limit", "How many connections one client address may have at a time; no series: any number.")
	clientRate      = ofFrontend.desc("client_connections_per_second_limit", "How many new connections a second one client address may open on average; no series: any number.")
	banTime         = ofFrontend.desc("ban_time_seconds", "How long a client is turned away that has opened more; no series: until it has slowed down.")
	banned          = ofFrontend.desc("banned_clients", "Clients that are turned away now for having opened more; no series: there is no ban time.")
	idleTimeout     = ofFrontend.desc("idle_timeout_seconds", "After how long without a byte a connection is closed; no series: never.")
	drainTimeout    = ofFrontend.desc("drain_timeout_seconds", "How long connections outlive a backend or frontend that is removed; no series: until they end by themselves.")
	affinityTimeout = ofFrontend.desc("affinity_timeout_seconds", "How long a client keeps its backend after its last connection has begun; no series: not for a time.")
	frontendInfo    = ofFrontend.desc("info", "Always 1; how backends are chosen and told the client's address are labels.", "balance", "send_proxy_protocol", "transparent")

	backendUp       = backendDesc("up", "1 when the backend is up, or counts as up because nothing asks it.")
	backendDraining = backendDesc("draining", "1 when the backend is gone, or has weight 0, and has connections left.")
	backendTotal    = backendDesc("connections_total", "Connections given to the backend.")
	backendActive   = backendDesc("connections_active", "Connections to the backend now.")
	backendFailures = backendDesc("failures_total", "Attempts to connect to the backend that failed; no series: the kernel moves the bytes, and makes none.")
	backendWeight   = backendDesc("weight", "What the backend is given of new connections, relative to the others of the frontend; 0: none.")
	backendShare    = backendDesc("share_ratio", "Part of new connections the backend should get, 0 to 1.")

	backendReceived        = backendDesc("received_bytes_total", "Bytes from clients to the backend, as the kernel counts them: whole packets; no series: gatehouse moves the bytes, and counts them by frontend.")
	backendSent            = backendDesc("sent_bytes_total", "Bytes from the backend to clients, counted likewise.")
	backendReceivedPackets = backendDesc("received_packets_total", "Packets from clients to the backend, counted likewise.")
	backendSentPackets     = backendDesc("sent_packets_total", "Packets from the backend to clients, counted likewise.")
)

// trafficDescs are the series of what comes through frontends, or through the
// doors that they share. Of UDP, a session is a connection. Where the kernel
// moves the bytes, some are not known, and have no series.
type trafficDescs struct {
	family string
	labels []string

	up, accepted, active, waiting, ended, failures, acceptErrors *prometheus.Desc
	received, sent, receivedPackets, sentPackets, droppedPackets *prometheus.Desc
}

func newTrafficDescs(family string, more ...string) trafficDescs {
	d := trafficDescs{family: family, labels: append(more, "zone", "protocol", "listen")}
	d.up = d.desc("up", "1 when the "+family+" listens.")
	d.accepted = d.desc("connections_total", "Connections accepted, or forwarded by the kernel (nat).")
	d.active = d.desc("connections_active", "Connections now, draining ones included; of nat, entries of the kernel's table of connections.")
	d.waiting = d.desc("connections_waiting", "Those of the active connections that have no backend yet.")
	d.ended = d.desc("connections_ended_total", "Connections that had a backend and ended: finished, reset by a side, after the idle_timeout or the drain_timeout, lost (a side did not answer any more), with a backend that was found down (backend_down), or cut when gatehouse stopped.", "how")
	d.failures = d.desc("failures_total", "Connections that got no backend, by reason.", "reason")
	d.acceptErrors = d.desc("accept_errors_total", "Failed attempts to accept a connection, for want of descriptors or memory.")
	d.received = d.desc("received_bytes_total", "Bytes from clients; of nat, those of whole packets.")
	d.sent = d.desc("sent_bytes_total", "Bytes to clients; of nat, those of whole packets.")
	d.receivedPackets = d.desc("received_packets_total", "Packets from clients that went on to a backend, of UDP and of nat.")
	d.sentPackets = d.desc("sent_packets_total", "Packets to clients, of UDP and of nat.")
	d.droppedPackets = d.desc("dropped_packets_total", "UDP packets dropped for want of a session, a backend or room.")
	return d
}

func (d trafficDescs) desc(name, help string, more ...string) *prometheus.Desc {
	return desc(d.family+"_"+name, help, slices.Concat(d.labels, more)...)
}

func (d trafficDescs) all() []*prometheus.Desc {
	return []*prometheus.Desc{
		d.up, d.accepted, d.active, d.waiting, d.ended, d.failures, d.acceptErrors,
		d.received, d.sent, d.receivedPackets, d.sentPackets, d.droppedPackets,
	}
}

func backendDesc(name, help string) *prometheus.Desc {
	return desc("backend_"+name, help, "frontend", "data_plane", "zone", "protocol", "listen", "backend")
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(ofFrontend.all(), ofListener.all(), []*prometheus.Desc{
		buildInfo, ready, configCurrent, configLoaded, configProblems, problems, kubeSynced, kubeConnected, kubeHeld, kubeRequests, poolAddresses, addresses,
		exposures, clientSeen, conntrackEntries, conntrackLimit,
		routed, limit, clientLimit, clientRate, banTime, banned, idleTimeout, drainTimeout, affinityTimeout, frontendInfo,
		backendUp, backendDraining, backendTotal, backendActive, backendFailures, backendWeight, backendShare,
		backendReceived, backendSent, backendReceivedPackets, backendSentPackets,
	}) {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.current()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(buildInfo, 1, s.Version)
	gauge(ready, number(s.Ready))
	gauge(configCurrent, number(s.Config.Current))
	gauge(configLoaded, float64(s.Config.LoadedAt.Unix()))
	gauge(configProblems, float64(len(s.Config.Problems)))
	gauge(problems, float64(len(s.Problems)))
	if s.Cluster != nil {
		gauge(kubeSynced, number(s.Cluster.Synced))
		gauge(kubeConnected, number(s.Cluster.Error == ""))
		gauge(kubeHeld, number(s.Cluster.Held != nil))
		for _, r := range s.Cluster.Requests {
			counter(kubeRequests, r.Count, r.Verb, r.Resource, r.Code)
		}
	}
	c.collectPools(s, gauge)
	if c := s.Conntrack; c != nil {
		gauge(conntrackEntries, float64(c.Entries))
		gauge(conntrackLimit, float64(c.Max))
	}
	type zoneOpen struct {
		zone string
		open bool
	}
	rows := map[zoneOpen]int{}
	for _, e := range s.Exposures {
		rows[zoneOpen{e.Zone, e.Open}]++
		if e.Open {
			gauge(clientSeen, number(e.ClientSeen), e.Name, e.Zone, string(e.Protocol))
		}
	}
	for k, n := range rows {
		gauge(exposures, float64(n), k.zone, strconv.FormatBool(k.open))
	}
	traffic := func(d trafficDescs, by edge.DataPlane, open bool, t status.Traffic, labels []string) {
		gauge(d.up, number(open), labels...)
		counter(d.accepted, t.Accepted, labels...)
		gauge(d.active, float64(t.Active), labels...)
		counter(d.received, t.Received, labels...)
		counter(d.sent, t.Sent, labels...)
		if p := t.Packets; p != nil {
			counter(d.receivedPackets, p.Received, labels...)
			counter(d.sentPackets, p.Sent, labels...)
		}
		if by == edge.DataPlaneNAT {
			return // the kernel does not say more
		}
		gauge(d.waiting, float64(t.Waiting), labels...)
		for how, n := range t.Ended {
			counter(d.ended, n, slices.Concat(labels, []string{string(how)})...)
		}
		for reason, n := range t.Failures {
			counter(d.failures, n, slices.Concat(labels, []string{reason})...)
		}
		counter(d.acceptErrors, t.AcceptErrors, labels...)
		if p := t.Packets; p != nil {
			counter(d.droppedPackets, p.Dropped, labels...)
		}
	}
	for _, f := range s.Frontends {
		// One that has moved to the kernel has two rows while the relay still has
		// connections.
		dataPlane := string(cmp.Or(f.DataPlane, edge.DataPlaneProxy))
		labels := []string{f.Name, dataPlane, f.Zone, string(f.Protocol), f.Listen}
		set := func(d *prometheus.Desc, v float64) { // 0 is: not set
			if v > 0 {
				gauge(d, v, labels...)
			}
		}
		traffic(ofFrontend, f.DataPlane, f.Error == "" && !f.Draining, f.Traffic, labels)
		set(limit, float64(f.MaxConnections))
		set(clientLimit, float64(f.MaxConnectionsPerClient))
		set(clientRate, f.MaxRatePerClient.PerSecond())
		if f.BanTime > 0 {
			set(banTime, time.Duration(f.BanTime).Seconds())
			gauge(banned, float64(f.Bans), labels...)
		}
		set(idleTimeout, time.Duration(f.IdleTimeout).Seconds())
		set(drainTimeout, time.Duration(f.DrainTimeout).Seconds())
		set(affinityTimeout, time.Duration(f.AffinityTimeout).Seconds())
		if f.Balance != "" { // else it is removed
			proxyProtocol := string(cmp.Or(f.SendProxyProtocol, edge.ProxyProtocolNone))
			gauge(frontendInfo, 1, slices.Concat(labels, []string{string(f.Balance), proxyProtocol, strconv.FormatBool(f.Transparent)})...)
		}
		for _, b := range f.Backends {
			labels := append(labels, b.Addr)
			gauge(backendUp, number(b.State == edge.Up), labels...)
			gauge(backendDraining, number(b.Draining), labels...)
			counter(backendTotal, b.Total, labels...)
			gauge(backendActive, float64(b.Active), labels...)
			gauge(backendWeight, float64(b.Weight), labels...)
			gauge(backendShare, b.Share, labels...)
			if f.DataPlane != edge.DataPlaneNAT {
				counter(backendFailures, b.Failures, labels...)
				continue
			}
			counter(backendReceived, b.Received, labels...)
			counter(backendSent, b.Sent, labels...)
			if p := b.Packets; p != nil {
				counter(backendReceivedPackets, p.Received, labels...)
				counter(backendSentPackets, p.Sent, labels...)
			}
		}
	}
	for _, l := range s.Listeners {
		labels := []string{l.Zone, string(l.Protocol), l.Listen}
		traffic(ofListener, edge.DataPlaneProxy, l.Error == "" && !l.Draining, l.Traffic, labels)
		counter(routed, l.Routed, labels...)
	}
}

func (collector) collectPools(s status.Status, gauge func(d *prometheus.Desc, v float64, labels ...string)) {
	for _, p := range s.Pools {
		for state, n := range map[string]uint64{"given": p.Given, "held": p.Held, "free": p.Free, "unusable": p.Unusable} {
			gauge(poolAddresses, float64(n), p.Name, state)
		}
	}
	type poolState struct {
		pool  string
		state status.AddressState
	}
	counts := map[poolState]int{}
	for _, p := range s.Pools {
		for _, state := range status.AddressStates {
			counts[poolState{p.Name, state}] = 0 // so that a count that falls to none is seen to
		}
	}
	for _, a := range s.Addresses {
		counts[poolState{a.Pool, a.State}]++
	}
	for k, n := range counts {
		gauge(addresses, float64(n), k.pool, string(k.state))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
