package web

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"e13.dev/gatehouse/internal/status"
)

// gathered are the families that a scrape has, by name, and the series of each.
func gathered(t *testing.T, s status.Status) map[string][]string {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(collector{func() status.Status { return s }})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			all[f.GetName()] = append(all[f.GetName()], strings.Join(labels, " "))
		}
	}
	return all
}

// What the sample does not show, no page and no dashboard has been seen with.
func TestEveryMetricHasASeries(t *testing.T) {
	have := gathered(t, sample())
	for _, m := range metrics {
		if len(have[m.name]) == 0 {
			t.Errorf("%s has no series", m.name)
		}
	}
}

func TestNamesOfMetrics(t *testing.T) {
	seen := map[string]bool{}
	labels := []string{
		"action", "backend", "balance", "code", "data_plane", "family", "from", "frontend", "how", "kind", "link", "listen", "open", "policy", "pool", "protocol",
		"reason", "resource", "result", "send_proxy_protocol", "server", "state", "to", "transparent", "type", "verb", "version", "zone",
	}
	for _, m := range metrics {
		if seen[m.name] {
			t.Errorf("%s is there twice", m.name)
		}
		seen[m.name] = true
		if !regexp.MustCompile(`^gatehouse(_[a-z]+|_dhcpv6)+$`).MatchString(m.name) {
			t.Errorf("%s: words of small letters are right", m.name)
		}
		if (m.kind == aCounter) != strings.HasSuffix(m.name, "_total") {
			t.Errorf("%s is a %s: counters, and they alone, end in _total", m.name, m.kind)
		}
		if m.kind == aHistogram && !strings.HasSuffix(m.name, "_seconds") {
			t.Errorf("%s is a histogram of seconds, and does not say so", m.name)
		}
		if regexp.MustCompile(`_(milliseconds|minutes|hours|ms|kb|mb|percent|count|sum|bucket)(_|$)`).MatchString(m.name) {
			t.Errorf("%s: seconds, bytes and ratios are right", m.name)
		}
		if !strings.HasSuffix(m.help, ".") || m.since == "" {
			t.Errorf("%s: its help is %q, since %q; a sentence and a version are right", m.name, m.help, m.since)
		}
		for _, l := range m.labels {
			if !slices.Contains(labels, l) {
				t.Errorf("%s: the label %s is new: how many values can it have? say so in metrics.md and add it here", m.name, l)
			}
		}
	}
}

// The docs promise how many series a backend costs.
func TestSeriesOfABackend(t *testing.T) {
	have := gathered(t, sample())
	count := func(words ...string) (n int) {
		for name, series := range have {
			for _, s := range series {
				if strings.HasPrefix(name, "gatehouse_backend_") && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(s, w) }) {
					n++
				}
			}
		}
		return n
	}
	if got := count("backend=10.0.0.102:30080", "data_plane=proxy"); got != seriesOfProxyBackend {
		t.Errorf("a backend of the relay has %d series, the docs say %d", got, seriesOfProxyBackend)
	}
	if got := count("backend=10.244.1.7:8443", "data_plane=nat"); got != seriesOfNATBackend {
		t.Errorf("a backend of nat has %d series, the docs say %d", got, seriesOfNATBackend)
	}
}

func TestMetricsDocsAreCurrent(t *testing.T) {
	have, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != MetricsDocs() {
		t.Error("docs/metrics.md is not what the code says: run make gen")
	}
}

// Rules that wait for something bad are silent if they ask for what there is not.
func TestQueriesNameWhatThereIs(t *testing.T) {
	labels := map[string][]string{}
	all := []string{"job", "instance", "le", "alertname", "alertstate"}
	for _, m := range metrics {
		all = append(all, m.labels...)
		labels[m.name] = slices.Concat(m.labels, []string{"job", "instance"})
		if m.kind == aHistogram {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				labels[m.name+part] = append(labels[m.name], "le")
			}
		}
	}
	var (
		selector = regexp.MustCompile(`\b(gatehouse_\w+)(?:\{([^}]*)\})?`)
		matcher  = regexp.MustCompile(`(\w+) ?(?:=~|!~|!=|=)`)
		grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring) \(([^)]*)\)`)
		quoted   = strings.NewReplacer(`\"`, `"`)
	)
	for _, file := range []string{"../../deploy/prometheus/rules.yaml", "../../deploy/prometheus/rules_test.yaml", "../../deploy/grafana/gatehouse.json", "metrics.md"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text, n := quoted.Replace(string(data)), 0
		for _, found := range selector.FindAllStringSubmatch(text, -1) {
			if found[0] == "gatehouse_backend_" {
				continue // of metric_relabel_configs
			}
			n++
			have, there := labels[found[1]]
			if !there {
				t.Errorf("%s asks for %s, which is no metric", file, found[1])
			}
			for _, l := range matcher.FindAllStringSubmatch(found[2], -1) {
				if there && !slices.Contains(have, l[1]) {
					t.Errorf("%s asks for %s by %s, a label that it has not", file, found[1], l[1])
				}
			}
		}
		for _, found := range grouping.FindAllStringSubmatch(text, -1) {
			for l := range strings.SplitSeq(found[1], ",") {
				if l = strings.TrimSpace(l); !slices.Contains(all, l) {
					t.Errorf("%s groups by %s, which is no label", file, l)
				}
			}
		}
		if n < 8 {
			t.Errorf("%s has %d names of metrics: the test does not read it right", file, n)
		}
	}
}

// Each alert says what it is about, and docs/troubleshooting.md has what to do,
// under its name.
func TestAlertsHaveRunbooks(t *testing.T) {
	rules, err := os.ReadFile("../../deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := strings.Split(string(rules), "- alert: ")[1:]
	if len(alerts) < 20 {
		t.Fatalf("there are %d alerts: the test does not read them right", len(alerts))
	}
	for _, text := range alerts {
		name, _, _ := strings.Cut(text, "\n")
		for _, part := range []string{"severity: ", "summary: ", "description: ", "runbook: docs/troubleshooting.md#" + strings.ToLower(name) + "\n"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no %q", name, part)
			}
		}
		if !regexp.MustCompile(`(?m)^#+ ` + name + `$`).Match(page) {
			t.Errorf("docs/troubleshooting.md has no heading %s", name)
		}
	}
}

func TestPanelsFitOnTheDashboard(t *testing.T) {
	data, err := os.ReadFile("../../deploy/grafana/gatehouse.json")
	if err != nil {
		t.Fatal(err)
	}
	type box struct{ X, Y, W, H int }
	var dashboard struct {
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     box
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	ids, places := map[int]bool{}, map[[2]int]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("panel %d, %q, %s: %d queries; a number and a title of its own, and queries, are right", p.ID, p.Title, p.Type, len(p.Targets))
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := places[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s is over %q at %d, %d, or beyond the edge", p.Title, other, x, y)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
	}
}
