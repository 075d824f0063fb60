package web

import (
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
	accepted       = desc("frontend_connections_total", "Connections accepted.", "frontend", "zone", "listen")
	active         = desc("frontend_connections_active", "Connections now, draining ones included.", "frontend", "zone", "listen")
	received       = desc("frontend_received_bytes_total", "Bytes from clients, of connections that ended.", "frontend", "zone", "listen")
	sent           = desc("frontend_sent_bytes_total", "Bytes to clients, of connections that ended.", "frontend", "zone", "listen")
	failures       = desc("frontend_failures_total", "Connections that failed, by reason.", "frontend", "zone", "listen", "reason")
	up             = desc("frontend_up", "1 when the frontend listens.", "frontend", "zone", "listen")
	backendUp      = desc("backend_up", "1 when the backend is up.", "frontend", "zone", "listen", "backend")
	backendTotal   = desc("backend_connections_total", "Connections given to the backend.", "frontend", "zone", "listen", "backend")
	backendShare   = desc("backend_share_ratio", "Part of new connections the backend should get, 0 to 1.", "frontend", "zone", "listen", "backend")
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, ready, configCurrent, configLoaded, configProblems, problems, kubeSynced, kubeConnected, exposures,
		accepted, active, received, sent, failures, up, backendUp, backendTotal, backendShare,
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
		labels := []string{f.Name, f.Zone, f.Listen}
		gauge(up, number(f.Error == ""), labels...)
		counter(accepted, f.Accepted, labels...)
		gauge(active, float64(f.Active), labels...)
		counter(received, f.Received, labels...)
		counter(sent, f.Sent, labels...)
		for reason, n := range f.Failures {
			counter(failures, n, append(labels, reason)...)
		}
		for _, b := range f.Backends {
			labels := append(labels, b.Addr)
			gauge(backendUp, number(b.State == edge.Up), labels...)
			counter(backendTotal, b.Total, labels...)
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
