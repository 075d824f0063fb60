package web

import (
	"cmp"
	"net/netip"
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

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.Desc
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.current()
	out := output{ch}
	out.set(buildInfo, 1, s.Version)
	out.set(ready, number(s.Ready))
	out.set(configCurrent, number(s.Config.Current))
	out.set(configLoaded, float64(s.Config.LoadedAt.Unix()))
	out.set(configProblems, float64(len(s.Config.Problems)))
	kinds := map[string]int{}
	for _, p := range s.Problems {
		kinds[status.KindOf(p)]++
	}
	for _, k := range status.ProblemKinds { // those that there are none of, too: they are seen to fall
		out.set(problems, float64(kinds[k]), k)
	}
	out.work(s.Work)
	out.cluster(s.Cluster)
	out.exposures(s)
	out.pools(s)
	out.router(s.Router)
	if c := s.Conntrack; c != nil {
		out.set(conntrackEntries, float64(c.Entries))
		out.set(conntrackLimit, float64(c.Max))
	}
	for i := range s.Frontends {
		out.frontend(&s.Frontends[i])
	}
	for _, l := range s.Listeners {
		labels := []string{l.Zone, string(l.Protocol), l.Listen}
		out.traffic(ofListener, edge.DataPlaneProxy, l.Error == "" && !l.Draining, l.Traffic, labels)
		out.count(routed, l.Routed, labels...)
	}
}

// output is where the series of one scrape go.
type output struct{ ch chan<- prometheus.Metric }

// set adds a gauge.
func (out output) set(m *metric, v float64, labels ...string) {
	out.ch <- prometheus.MustNewConstMetric(m.Desc, prometheus.GaugeValue, v, labels...)
}

// count adds a counter.
func (out output) count(m *metric, v uint64, labels ...string) {
	out.ch <- prometheus.MustNewConstMetric(m.Desc, prometheus.CounterValue, float64(v), labels...)
}

// time adds a histogram.
func (out output) time(m *metric, t status.Timing, labels ...string) {
	buckets := make(map[float64]uint64, len(status.TimingBounds))
	for i, bound := range status.TimingBounds {
		buckets[bound] = 0
		if i < len(t.Within) {
			buckets[bound] = t.Within[i]
		}
	}
	out.ch <- prometheus.MustNewConstHistogram(m.Desc, t.Count, t.Seconds, buckets, labels...)
}

func (out output) work(w *status.Work) {
	if w == nil {
		return
	}
	out.time(decisions, w.Decisions)
	out.time(natApplies, w.NATApplied)
	out.count(natFailures, w.NATFailures)
	out.count(natMended, w.NATMended)
	out.time(healthChecks, w.ChecksPassed, "passed")
	out.time(healthChecks, w.ChecksFailed, "failed")
	if !w.StateSavedAt.IsZero() {
		out.set(stateSaved, float64(w.StateSavedAt.Unix()))
	}
}

func (out output) cluster(c *status.Cluster) {
	if c == nil {
		return
	}
	out.set(kubeSynced, number(c.Synced))
	out.set(kubeConnected, number(c.Error == ""))
	out.set(kubeHeld, number(c.Held != nil))
	out.set(kubeSaved, number(c.From != ""))
	out.set(kubeServices, float64(c.Services))
	out.set(kubeNodes, float64(c.Nodes))
	for _, r := range c.Requests {
		out.count(kubeRequests, r.Count, r.Verb, r.Resource, r.Code)
	}
}

func (out output) exposures(s status.Status) {
	type reason struct{ zone, code string }
	opened, closed, reasons := map[string]int{}, map[string]int{}, map[reason]int{}
	for _, e := range s.Exposures {
		// A zone that has one of both has both, so that it is seen to be none.
		opened[e.Zone] += 0
		closed[e.Zone] += 0
		if e.Open {
			opened[e.Zone]++
			out.set(clientSeen, number(e.ClientSeen), e.Name, e.Zone, string(e.Protocol))
		} else {
			closed[e.Zone]++
			reasons[reason{e.Zone, cmp.Or(e.Code, "Other")}]++
		}
	}
	for zone, n := range opened {
		out.set(exposures, float64(n), zone, "true")
		out.set(exposures, float64(closed[zone]), zone, "false")
	}
	for r, n := range reasons {
		out.set(exposuresClosed, float64(n), r.zone, r.code)
	}
}

func (out output) pools(s status.Status) {
	type key struct {
		pool, family string
		state        status.AddressState
	}
	counts := map[key]int{}
	for _, p := range s.Pools {
		for _, f := range p.Families {
			for state, n := range map[string]uint64{"given": f.Given, "held": f.Held, "free": f.Free, "unusable": f.Unusable} {
				out.set(poolAddresses, float64(n), p.Name, f.Family, state)
			}
			for _, state := range status.AddressStates {
				counts[key{p.Name, f.Family, state}] = 0 // so that a count that falls to none is seen to
			}
		}
	}
	for _, a := range s.Addresses {
		counts[key{a.Pool, familyOf(a.Addr), a.State}]++
	}
	for k, n := range counts {
		out.set(serviceAddresses, float64(n), k.pool, k.family, string(k.state))
	}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

func (out output) traffic(m trafficMetrics, by edge.DataPlane, open bool, t status.Traffic, labels []string) {
	out.set(m.up, number(open), labels...)
	out.count(m.accepted, t.Accepted, labels...)
	out.set(m.active, float64(t.Active), labels...)
	out.count(m.received, t.Received, labels...)
	out.count(m.sent, t.Sent, labels...)
	if p := t.Packets; p != nil {
		out.count(m.receivedPackets, p.Received, labels...)
		out.count(m.sentPackets, p.Sent, labels...)
	}
	if by == edge.DataPlaneNAT {
		return // the kernel does not say more
	}
	out.set(m.waiting, float64(t.Waiting), labels...)
	for how, n := range t.Ended {
		out.count(m.ended, n, slices.Concat(labels, []string{string(how)})...)
	}
	for reason, n := range t.Failures {
		out.count(m.failures, n, slices.Concat(labels, []string{reason})...)
	}
	out.count(m.acceptErrors, t.AcceptErrors, labels...)
	if p := t.Packets; p != nil {
		out.count(m.droppedPackets, p.Dropped, labels...)
	}
}

func (out output) frontend(f *status.Frontend) {
	// One that has moved to the kernel has two rows while the relay still has
	// connections.
	dataPlane := string(cmp.Or(f.DataPlane, edge.DataPlaneProxy))
	labels := []string{f.Name, dataPlane, f.Zone, string(f.Protocol), f.Listen}
	set := func(m *metric, v float64) { // 0 is: not set
		if v > 0 {
			out.set(m, v, labels...)
		}
	}
	out.traffic(ofFrontend, f.DataPlane, f.Error == "" && !f.Draining, f.Traffic, labels)
	set(limit, float64(f.MaxConnections))
	set(clientLimit, float64(f.MaxConnectionsPerClient))
	set(clientRate, f.MaxRatePerClient.PerSecond())
	if f.BanTime > 0 {
		set(banTime, time.Duration(f.BanTime).Seconds())
		out.set(banned, float64(f.Bans), labels...)
	}
	set(idleTimeout, time.Duration(f.IdleTimeout).Seconds())
	set(drainTimeout, time.Duration(f.DrainTimeout).Seconds())
	set(affinityTimeout, time.Duration(f.AffinityTimeout).Seconds())
	if f.Balance != "" { // else it is removed
		proxyProtocol := string(cmp.Or(f.SendProxyProtocol, edge.ProxyProtocolNone))
		out.set(frontendInfo, 1, slices.Concat(labels, []string{string(f.Balance), proxyProtocol, strconv.FormatBool(f.Transparent)})...)
	}
	for i := range f.Backends {
		out.backend(&f.Backends[i], f.DataPlane, slices.Concat(labels, []string{f.Backends[i].Addr}))
	}
}

func (out output) backend(b *status.Backend, by edge.DataPlane, labels []string) {
	out.set(backendUp, number(b.State == edge.Up), labels...)
	if !b.Since.IsZero() {
		out.set(backendSince, float64(b.Since.Unix()), labels...)
	}
	out.set(backendDraining, number(b.Draining), labels...)
	out.count(backendTotal, b.Total, labels...)
	out.set(backendActive, float64(b.Active), labels...)
	out.set(backendWeight, float64(b.Weight), labels...)
	out.set(backendShare, b.Share, labels...)
	if by != edge.DataPlaneNAT {
		out.count(backendFailures, b.Failures, labels...)
		return
	}
	out.count(backendReceived, b.Received, labels...)
	out.count(backendSent, b.Sent, labels...)
	if p := b.Packets; p != nil {
		out.count(backendReceivedPackets, p.Received, labels...)
		out.count(backendSentPackets, p.Sent, labels...)
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
