package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// prometheusProgram finds a program of Debian's package, where scripts/deps has
// unpacked it or where it is installed.
func prometheusProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../.tools/prometheus/usr/bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if path, err = exec.LookPath(name); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	return path
}

// prometheus is a Prometheus on a node that reads the lab's gatehouse each second
// through zone cluster, with the repository's configuration and rules.
type prometheus struct {
	address string
	scrapes *time.Ticker
}

const prometheusHost = "w1"

func startPrometheus(t *testing.T, tokenFile string) prometheus {
	t.Helper()
	data, err := os.ReadFile("../../deploy/prometheus/prometheus.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs("../../deploy/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	// Whatever else there is goes in as it is.
	for old, now := range map[string]string{
		"scrape_interval: 15s": "scrape_interval: 1s", "evaluation_interval: 15s": "evaluation_interval: 1s",
		"- rules.yaml": "- " + rules, `"192.0.2.1:9180"`: `"` + clusterAddr + `:9180"`, "/etc/prometheus/gatehouse.token": tokenFile,
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("prometheus.yaml has no %q", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := prometheus{"127.0.0.1:9290", time.NewTicker(time.Second)}
	t.Cleanup(p.scrapes.Stop)
	program := prometheusProgram(t, "prometheus")
	if err := lab.Run(t.Context(), "prometheus", prometheusHost, nil, program, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.address, "--log.level=warn"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "prometheus"); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 20*time.Second, "gatehouse is read", func() error {
		if n, err := p.query(`up{job="gatehouse"} == 1`); n != 1 {
			return fmt.Errorf("up has %d series: %w", n, err)
		}
		return nil
	})
	return p
}

// get asks the HTTP API.
func (p prometheus) get(path string, query url.Values, data any) error {
	resp, err := httpFrom(prometheusHost).Get("http://" + p.address + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Warnings      []string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" || len(answer.Warnings) > 0 {
		return fmt.Errorf("%s: %s %q", answer.Status, answer.Error, answer.Warnings)
	}
	return nil
}

// query says how many series a query gives that have a number.
func (p prometheus) query(q string) (series int, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get("query", url.Values{"query": {q}}, &data); err != nil {
		return 0, err
	}
	for _, r := range data.Result {
		if r.Value[1] != "NaN" {
			series++
		}
	}
	return series, nil
}

type rule struct{ Name, Query, Type, Health, LastError string }

// rules are those that Prometheus has read, each evaluated at least once.
func (p prometheus) rules(t *testing.T) (rules []rule) {
	t.Helper()
	eventually(t, 15*time.Second, "rules are evaluated", func() error {
		var data struct{ Groups []struct{ Rules []rule } }
		if err := p.get("rules", nil, &data); err != nil {
			return err
		}
		rules = nil
		for _, g := range data.Groups {
			rules = append(rules, g.Rules...)
		}
		for _, r := range rules {
			if r.Health != "ok" {
				return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
		if len(rules) < 25 {
			return fmt.Errorf("there are only %d", len(rules))
		}
		return nil
	})
	return rules
}

// dashboardQueries are all that the dashboard asks, by the panel that does.
func dashboardQueries(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile("../../deploy/grafana/gatehouse.json")
	if err != nil {
		t.Fatal(err)
	}
	type query struct{ Expr, Query string }
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []query
		}
		Annotations struct {
			List []struct{ Name, Expr string }
		}
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := map[string]string{}
	for _, p := range dashboard.Panels {
		for i, target := range p.Targets {
			queries[fmt.Sprintf("panel %s, query %d", p.Title, i)] = target.Expr
		}
	}
	for _, a := range dashboard.Annotations.List {
		if a.Expr != "" {
			queries["annotation "+a.Name] = a.Expr
		}
	}
	values := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type == "query" {
			queries["variable "+v.Name] = values.ReplaceAllString(v.Definition, "group by ($2) ($1)")
		}
	}
	if len(queries) < 60 {
		t.Fatalf("the dashboard has %d queries: the test does not read it right", len(queries))
	}
	// As Grafana does it, with everything chosen, and a scrape each second.
	for where, q := range queries {
		queries[where] = strings.NewReplacer("$__rate_interval", "4s", "$__range", "5m", "$job", ".*", "$instance", ".*", "$zone", ".*", "$frontend", ".*").Replace(q)
	}
	return queries
}

// docsQueries are the examples of docs/metrics.md, and the names in its tables,
// but for the router's, which the site of lab/home has.
func docsQueries(t *testing.T) (queries map[string]string, names map[string]bool) {
	t.Helper()
	data, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	queries, names = map[string]string{}, map[string]bool{}
	for i, m := range regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
		queries[fmt.Sprintf("docs/metrics.md, query %d", i)] = m[1]
	}
	before, rest, _ := strings.Cut(string(data), "\n### The router\n")
	_, after, found := strings.Cut(rest, "\n### ")
	if !found {
		t.Fatal("docs/metrics.md has no section of the router")
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `(gatehouse_\\w+)` \\|").FindAllStringSubmatch(before+after, -1) {
		names[m[1]] = true
	}
	if len(queries) < 8 || len(names) < 60 {
		t.Fatalf("docs/metrics.md has %d queries and %d metrics: the test does not read it right", len(queries), len(names))
	}
	return queries, names
}

// exported are the names of the families of a scrape, which promtool has read.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	_, body := admin(t, "/metrics")
	check := exec.CommandContext(t.Context(), prometheusProgram(t, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(body)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (gatehouse_\w+) `).FindAllStringSubmatch(body, -1) {
		names[m[1]] = true
	}
	return names
}

// What the rules say of series that are made up, in the words of promtool.
func TestPrometheusRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}, {"check", "config", "--syntax-only", "prometheus.yaml"}} {
		c := exec.CommandContext(t.Context(), prometheusProgram(t, "promtool"), args...)
		c.Dir = "../../deploy/prometheus"
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("promtool %q: %v\n%s", args, err, out)
		}
	}
}

// A real Prometheus reads a gatehouse that does all that it can: each query of the
// dashboard, of the rules and of the docs has an answer, no alert fires while all
// is well, and those fire whose cause the test makes.
func TestPrometheus(t *testing.T) {
	ns, dir := namespace(t), t.TempDir() // which goes once it is not written to any more
	restoreConfig(t)
	front := newAPIFront(t)
	apply(t, deployment(ns, "web", "web", "", 3)+tlsPods(ns, "git", 1)+
		service(ns, "relayed", "web", "home,cluster", "Local", 8450)+on(nat, service(ns, "forwarded", "web", "home", "Local", 8451))+
		strings.Replace(service(ns, "pooled", "web", "home", "Local", 8452), "  annotations:", "  labels: {e2e: pool}\n  annotations:", 1)+
		named(ns, "git", "git", "git.example.org", "TCP", "UDP"))
	awaitPods(t, ns, "web", "git")
	for service, pods := range map[string]int{ns + "/relayed": 3, ns + "/forwarded": 3, ns + "/pooled": 3, ns + "/git": 1} {
		eventually(t, 15*time.Second, service+" is up", func() error { return allUp(t, service, pods) })
	}
	address := given(t, ns, "pooled", 1)[0]
	backend := "10.0.0.101:" + kubectl(t, "get", "service", "-n", ns, "relayed", "-o", "jsonpath={.spec.ports[0].nodePort}")
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("of-the-edge-and-its-prometheus\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another way to the same cluster, which can be taken away.
	well := strings.Replace(config, "kubernetes:\n", "stateDir: "+filepath.Join(dir, "state")+"\nkubernetes:\n  kubeconfig: "+front.kubeconfig+"\n", 1) + `frontends:
  - {name: limited, zones: [home], port: 8453, maxConnections: 1, maxConnectionsPerClient: 1, maxRatePerClient: 3/1s, banTime: 1s,
     idleTimeout: 1h, drainTimeout: 1h, balance: source, affinityTimeout: 10m, backends: [{address: "` + backend + `"}]}
`
	well = strings.Replace(well, `admin: {listen: "127.0.0.1:9180"}`, `admin: {listen: "127.0.0.1:9180", zones: [cluster], tokenFile: `+token+`}`, 1)
	if err := writeConfig(well); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the frontend with limits is open", opened("home1", homeAddr+":8453"))
	p := startPrometheus(t, token)
	rules := p.rules(t)
	queries, documented := docsQueries(t)
	maps.Copy(queries, dashboardQueries(t))
	for _, r := range rules {
		if r.Type == "recording" {
			queries["rule "+r.Name] = r.Query
		}
	}
	names := map[string]bool{}
	// Whatever has had an answer is done with: some ask for what is wrong.
	answered := func() error {
		<-p.scrapes.C // there is no news before
		var empty []string
		for where, q := range queries {
			n, err := p.query(q)
			if err != nil {
				t.Fatalf("%s: %v\n%s", where, err, q)
			}
			if n > 0 {
				delete(queries, where)
			} else {
				empty = append(empty, where+":\n"+q)
			}
		}
		if len(empty) > 0 {
			slices.Sort(empty)
			return fmt.Errorf("%d queries have no answer:\n%s", len(empty), strings.Join(empty, "\n"))
		}
		return nil
	}

	var loads []*load
	for host, at := range map[string]string{"home1": homeAddr + ":8450", "w1": clusterAddr + ":8450", "home2": homeAddr + ":8451", "router": address + ":8452"} {
		loads = append(loads, startLoad(host, at, 10))
	}
	strangers := make(chan struct{})
	go func() { // of shared ports, and of what is limited
		defer close(strangers)
		for range 20 {
			_, _ = getTLS("home1", homeAddr+":443", "git.example.org", nil)
			_, _ = getTLS("home1", homeAddr+":443", "nobody.example.org", nil)
			_, _ = get("home1", homeAddr+":8453", time.Second)
		}
	}()
	apply(t, on(nat, service(ns, "later", "web", "home", "Local", 8457))) // something to write to the cluster and to the kernel
	if _, err := getQUIC(t, "home1", homeAddr+":443", "git.example.org"); err != nil {
		t.Error(err)
	}
	// All but those that ask for what is wrong.
	ofTrouble := regexp.MustCompile(`^(panel (Alerts|Closed, by reason|Attempts to connect that failed|Connections that got no backend, by reason), |rule gatehouse:frontend_failures:|docs/metrics.md, query 5$)`)
	eventually(t, 20*time.Second, "queries have answers", func() error {
		if err := answered(); err != nil && slices.ContainsFunc(slices.Collect(maps.Keys(queries)), func(where string) bool { return !ofTrouble.MatchString(where) }) {
			return err
		}
		return nil
	})
	eventually(t, 20*time.Second, "no alert while all is well", func() error {
		<-p.scrapes.C
		for _, r := range rules {
			if r.Type != "alerting" {
				continue
			}
			if n, err := p.query(r.Query); n > 0 || err != nil {
				_, problems := admin(t, "/status.json")
				return fmt.Errorf("%s: %d, %w\n%s", r.Name, n, err, problems[max(0, len(problems)-2000):])
			}
		}
		return nil
	})
	<-strangers
	maps.Copy(names, exported(t))

	// One cause for as many alerts as may be.
	listener := listen(t, "edge", "0.0.0.0:8455")
	defer listener.Close()
	if err := writeConfig(well + `  - {name: dead, zones: [home], port: 8454, health: {interval: 200ms}, backends: [{address: "10.0.0.101:1"}]}
  - {name: taken, zones: [home], port: 8455, backends: [{address: "` + backend + `"}]}
`); err != nil {
		t.Fatal(err)
	}
	apply(t, service(ns, "refused", "web", "internet", "Local", 8456))
	held := converse(t, "home1", homeAddr+":8453")
	held.ask(t)
	dead := startLoad("home1", homeAddr+":8454", 20)
	fires := func(limit time.Duration, alerts ...string) {
		t.Helper()
		for _, name := range alerts {
			i := slices.IndexFunc(rules, func(r rule) bool { return r.Name == name })
			if i < 0 {
				t.Fatalf("there is no rule %s", name)
			}
			eventually(t, limit, name+" fires", func() error {
				<-p.scrapes.C
				if n, err := p.query(rules[i].Query); n == 0 {
					return fmt.Errorf("nothing for %s: %w", rules[i].Query, err)
				}
				return nil
			})
		}
	}
	fires(20*time.Second, "GatehouseBackendDown", "GatehouseFrontendWithoutBackend", "GatehouseFrontendNotListening", "GatehouseNotReady",
		"GatehouseServiceClosed", "GatehouseProblem", "GatehouseConnectionLimit", "GatehouseConnectionFailures")
	eventually(t, 20*time.Second, "every query has had its answer", answered)
	maps.Copy(names, exported(t))
	front.behave(cut)
	if err := writeConfig("zones: ["); err != nil {
		t.Fatal(err)
	}
	fires(20*time.Second, "GatehouseConfigBad", "GatehouseKubernetesAway")
	front.behave(nil)
	dead.end(t)
	for _, l := range loads {
		if l.end(t); len(l.failed) > 0 {
			t.Errorf("%d connections failed, first: %s", len(l.failed), l.failed[0])
		}
	}
	if !maps.Equal(names, documented) {
		for name := range documented {
			if !names[name] {
				t.Errorf("docs/metrics.md has %s, which no scrape has", name)
			}
		}
		for name := range names {
			if !documented[name] {
				t.Errorf("docs/metrics.md lacks %s: run make gen", name)
			}
		}
	}
	alerting := 0
	for _, r := range rules {
		if r.Type == "alerting" {
			alerting++
		}
	}
	t.Logf("%d rules, %d of them alerts, %d metrics", len(rules), alerting, len(documented))
}
