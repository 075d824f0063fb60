package web

import (
	"cmp"
	_ "embed" // for metricsIntro
	"fmt"
	"slices"
	"strings"
)

// What docs/metrics.md says before its tables.
//
//go:embed metrics.md
var metricsIntro string

// sections are the headings of docs/metrics.md, and how the names of metrics
// below them begin. The first that fits has a metric.
var sections = []struct {
	title    string
	prefixes []string
}{
	{"Frontends", []string{"frontend_"}},
	{"Shared ports", []string{"listener_"}},
	{"Backends", []string{"backend_", "health_"}},
	{"What is open", []string{"exposure"}},
	{"Addresses of pools", []string{"pool_", "service_"}},
	{"Kubernetes", []string{"kubernetes_"}},
	{"The router", []string{"link_", "firewall_", "dhcp", "router_", "dns_"}},
	{"The kernel", []string{"conntrack_", "nat_"}},
	{"The process", []string{""}},
}

// How many series a backend has at most, in words for people.
const (
	seriesOfProxyBackend = 8
	seriesOfNATBackend   = 11
)

// MetricsDocs is the content of docs/metrics.md, written from the metrics that
// are exported.
func MetricsDocs() string {
	var b strings.Builder
	b.WriteString(strings.NewReplacer(
		"SERIES_PROXY", fmt.Sprint(seriesOfProxyBackend), "SERIES_NAT", fmt.Sprint(seriesOfNATBackend),
	).Replace(metricsIntro))
	left := slices.SortedFunc(slices.Values(metrics), func(x, y *metric) int { return cmp.Compare(x.name, y.name) })
	b.WriteString("\n## All of them\n")
	for _, section := range sections {
		isOfIt := func(m *metric) bool {
			return slices.ContainsFunc(section.prefixes, func(p string) bool { return strings.HasPrefix(m.name, "gatehouse_"+p) })
		}
		fmt.Fprintf(&b, "\n### %s\n\n| name | type | unit | labels | what it says | since |\n|---|---|---|---|---|---|\n", section.title)
		for _, m := range left {
			if isOfIt(m) {
				m.document(&b)
			}
		}
		left = slices.DeleteFunc(left, isOfIt)
	}
	b.WriteString("\nBesides there are those of the Go runtime (`go_…`) and of the process (`process_cpu_seconds_total`, `process_resident_memory_bytes`,\n" +
		"`process_open_fds`, `process_start_time_seconds` and others), as every program written in Go has them.\n")
	return b.String()
}

func (m *metric) document(b *strings.Builder) {
	var labels []string
	for _, l := range m.labels {
		labels = append(labels, "`"+l+"`")
	}
	help := strings.ReplaceAll(m.help, "|", `\|`)
	fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s | %s |\n", m.name, m.kind, m.unit(), strings.Join(labels, ", "), help, m.since)
}

// unit is what the name says it is counted in.
func (m *metric) unit() string {
	switch {
	case strings.HasPrefix(m.help, "1 when "), strings.HasPrefix(m.help, "1 while "):
		return "0 or 1"
	case strings.HasPrefix(m.help, "Always 1"):
		return "1"
	case strings.HasSuffix(m.name, "_timestamp_seconds"):
		return "seconds since 1970"
	case strings.Contains(m.name, "_per_second"):
		return "connections a second"
	case strings.HasSuffix(m.name, "_ratio"):
		return "0 to 1"
	}
	for _, unit := range []string{
		"seconds", "bytes", "packets", "connections", "addresses", "clients", "requests", "entries", "exposures", "problems", "services", "nodes",
	} {
		if slices.Contains(strings.Split(m.name, "_"), unit) {
			return unit
		}
	}
	if m.kind == aCounter {
		return "times"
	}
	return ""
}
