package web

import (
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
	exposures      = desc("exposures", "Service ports and static frontends by zone and whether they are open.", "zone", "open")
	// Of UDP, a session is a connection.
	up              = frontendDesc("up", "1 when the frontend listens.")
	accepted        = frontendDesc("connections_total", "Connections accepted.")
	active          = frontendDesc("connections_active", "Connections now, draining ones included.")
	waiting         = frontendDesc("connections_waiting", "Those of the active connections that have no backend yet.")
	limit           = frontendDesc("connections_limit", "How many connections there may be at a time; no series: any number.")
	clientLimit     = frontendDesc("client_connections_limit", "How many connections one client address may have at a time; no series: any number.")
	idleTimeout     = frontendDesc("idle_timeout_seconds", "After how long without a byte a connection is closed; no series: never.")
	drainTimeout    = frontendDesc("drain_timeout_seconds", "How long connections outlive a backend or frontend that is removed; no series: until they end by themselves.")
	ended           = frontendDesc("connections_ended_total", "Connections that had a backend and ended: finished, reset by a side, after the idle_timeout or the drain_timeout, lost (a side did not answer any more), or cut when gatehouse stopped.", "how")
	failures        = frontendDesc("failures_total", "Connections that got no backend, by reason.", "reason")
	acceptErrors    = frontendDesc("accept_errors_total", "Failed attempts to accept a connection, for want of descriptors or memory.")
	received        = frontendDesc("received_bytes_total", "Bytes from clients.")
	sent            = frontendDesc("sent_bytes_total", "Bytes to clients.")
	receivedPackets = frontendDesc("received_packets_total", "UDP packets from clients that went on to a backend.")
	sentPackets     = frontendDesc("sent_packets_total", "UDP packets to clients.")
	droppedPackets  = frontendDesc("dropped_packets_total", "UDP packets dropped for want of a session, a backend or room.")

	backendUp       = backendDesc("up", "1 when the backend is up, or counts as up because nothing asks it.")
	backendDraining = backendDesc("draining", "1 when the backend is gone, or has weight 0, and has connections left.")
	backendTotal    = backendDesc("connections_total", "Connections given to the backend.")
	backendActive   = backendDesc("connections_active", "Connections to the backend now.")
	backendFailures = backendDesc("failures_total", "Attempts to connect to the backend that failed.")
	backendShare    = backendDesc("share_ratio", "Part of new connections the backend should get, 0 to 1.")
)

func frontendDesc(name, help string, more ...string) *prometheus.Desc {
	return desc("frontend_"+name, help, append([]string{"frontend", "zone", "protocol", "listen"}, more...)...)
}

func backendDesc(name, help string) *prometheus.Desc {
	return desc("backend_"+name, help, "frontend", "zone", "protocol", "listen", "backend")
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, ready, configCurrent, configLoaded, configProblems, problems, kubeSynced, kubeConnected, exposures,
		up, accepted, active, waiting, limit, clientLimit, idleTimeout, drainTimeout, ended, failures, acceptErrors,
		received, sent, receivedPackets, sentPackets, droppedPackets,
		backendUp, backendDraining, backendTotal, backendActive, backendFailures, backendShare,
	} {
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
	}
	type zoneOpen struct {
		zone string
		open bool
	}
	rows := map[zoneOpen]int{}
	for _, e := range s.Exposures {
		rows[zoneOpen{e.Zone, e.Open}]++
	}
	for k, n := range rows {
		gauge(exposures, float64(n), k.zone, map[bool]string{true: "true", false: "false"}[k.open])
	}
	for _, f := range s.Frontends {
		labels := []string{f.Name, f.Zone, string(f.Protocol), f.Listen}
		set := func(d *prometheus.Desc, v float64) { // 0 is: not set
			if v > 0 {
				gauge(d, v, labels...)
			}
		}
		gauge(up, number(f.Error == "" && !f.Draining), labels...)
		counter(accepted, f.Accepted, labels...)
		gauge(active, float64(f.Active), labels...)
		gauge(waiting, float64(f.Waiting), labels...)
		set(limit, float64(f.MaxConnections))
		set(clientLimit, float64(f.MaxConnectionsPerClient))
		set(idleTimeout, time.Duration(f.IdleTimeout).Seconds())
		set(drainTimeout, time.Duration(f.DrainTimeout).Seconds())
		for how, n := range f.Ended {
			counter(ended, n, append(labels, string(how))...)
		}
		for reason, n := range f.Failures {
			counter(failures, n, append(labels, reason)...)
		}
		counter(acceptErrors, f.AcceptErrors, labels...)
		counter(received, f.Received, labels...)
		counter(sent, f.Sent, labels...)
		if p := f.Packets; p != nil {
			counter(receivedPackets, p.Received, labels...)
			counter(sentPackets, p.Sent, labels...)
			counter(droppedPackets, p.Dropped, labels...)
		}
		for _, b := range f.Backends {
			labels := append(labels, b.Addr)
			gauge(backendUp, number(b.State == edge.Up), labels...)
			gauge(backendDraining, number(b.Draining), labels...)
			counter(backendTotal, b.Total, labels...)
			gauge(backendActive, float64(b.Active), labels...)
			counter(backendFailures, b.Failures, labels...)
			gauge(backendShare, b.Share, labels...)
		}
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
