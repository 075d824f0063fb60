package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"e13.dev/gatehouse/deploy"
	"e13.dev/gatehouse/internal/config"
)

const chart = "helm/gatehouse"

// oneZone is the least that mode daemonset takes.
var oneZone = []string{"--set", "mode=daemonset", "--set-json", `config.zones={"home":{"interfaces":["eth1"]}}`}

// helm runs the program that scripts/helm has built.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	program := os.Getenv("GATEHOUSE_HELM")
	if program == "" {
		t.Skip("GATEHOUSE_HELM names no helm; make check builds one and runs this")
	}
	var out, say bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	// Nothing of whoever runs the test: no repositories, plugins or clusters.
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = &out, &say
	err = cmd.Run()
	return out.String(), say.String(), err
}

// render is what the chart makes of values, as objects by kind and name.
func render(t *testing.T, args ...string) map[string]map[string]any {
	t.Helper()
	out, say, err := helm(t, append([]string{"template", "gatehouse", chart, "--namespace", "gatehouse"}, args...)...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, say)
	}
	return objects(t, out)
}

func objects(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var o map[string]any
		switch err := decoder.Decode(&o); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("%v\n%s", err, text)
		case o != nil:
			meta := o["metadata"].(map[string]any)
			all[o["kind"].(string)+" "+meta["name"].(string)] = o
		}
	}
}

func kinds(all map[string]map[string]any) string {
	var names []string
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func TestChartIsClean(t *testing.T) {
	for name, args := range map[string][]string{"outside": nil, "daemonset": oneZone} {
		out, say, err := helm(t, append([]string{"lint", "--strict", chart, "--namespace", "gatehouse"}, args...)...)
		if err != nil || strings.Contains(out, "WARNING") || strings.Contains(say, "Fail:") {
			t.Errorf("%s: %v\n%s%s", name, err, out, say)
		}
	}
}

// The rights are written twice, and are the same.
func TestChartHasTheRightsOfTheManifests(t *testing.T) {
	want := objects(t, string(deploy.RBAC))
	delete(want, "Namespace gatehouse") // helm's --create-namespace makes it
	got := render(t)
	if kinds(got) != kinds(want) {
		t.Errorf("the chart has\n%s\nrbac.yaml has\n%s", kinds(got), kinds(want))
	}
	for name, o := range got {
		delete(o["metadata"].(map[string]any), "labels")
		if !reflect.DeepEqual(o, want[name]) {
			a, _ := json.MarshalIndent(o, "", " ")
			b, _ := json.MarshalIndent(want[name], "", " ")
			t.Errorf("%s is not that of rbac.yaml:\n%s\n%s", name, a, b)
		}
	}
	// Another release has the same rights, by other names, and its policy is about itself.
	other := render(t, slices.Concat(oneZone, []string{"--namespace", "edge", "--set", "nameOverride=second"})...)
	const names = "ClusterRole second, ClusterRoleBinding second, ConfigMap second, DaemonSet second, ServiceAccount second, " +
		"ValidatingAdmissionPolicy second.gatehouse.e13.dev, ValidatingAdmissionPolicyBinding second.gatehouse.e13.dev"
	if kinds(other) != names {
		t.Errorf("another release has %s", kinds(other))
	}
	if !reflect.DeepEqual(other["ClusterRole second"]["rules"], want["ClusterRole gatehouse"]["rules"]) {
		t.Error("its rights are others")
	}
	text, _ := json.Marshal(other)
	for _, has := range []string{"'system:serviceaccount:edge:second'", `"policyName":"second.gatehouse.e13.dev"`, `"subjects":[{"kind":"ServiceAccount","name":"second","namespace":"edge"}]`} {
		if !strings.Contains(string(text), has) {
			t.Errorf("it has no %s:\n%s", has, text)
		}
	}
	// Clusters without admission policies, and those who want none.
	for _, args := range [][]string{{"--kube-version", "1.29.3"}, {"--set", "admissionPolicy=false"}} {
		if got := kinds(render(t, args...)); strings.Contains(got, "Policy") || !strings.Contains(got, "Secret gatehouse-token") {
			t.Errorf("%q: %s", args, got)
		}
	}
}

// What values make of the configuration is what check accepts.
func TestChartConfiguration(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	text := `mode: daemonset
config:
  zones: {home: {interfaces: [eth1]}, internet: {interfaces: [eth2]}}
  kubernetes: {loadBalancerClass: example.com/second, allow: {internet: {namespaces: [public]}}, maxConnections: 2000000}
  pools: [{name: home, zone: home, addresses: [10.11.12.64/28]}]
  stopTimeout: 2m
adminPort: 9280
metrics: {zones: [home], tokenSecret: {name: scrape}, podMonitor: {enabled: true}}
stateHostPath: ""
`
	if err := os.WriteFile(values, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"least": oneZone, "more": {"-f", values}} {
		all := render(t, args...)
		data := all["ConfigMap gatehouse"]["data"].(map[string]any)["gatehouse.yaml"].(string)
		c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(data)}})
		if len(problems) > 0 {
			t.Fatalf("%s: %v\n%s", name, problems, data)
		}
		spec := all["DaemonSet gatehouse"]["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
		rendered, _ := json.Marshal(spec)
		pod := string(rendered)
		if c.Kubernetes == nil || c.Kubernetes.Kubeconfig != "" || c.StateDir != "/var/lib/gatehouse" || c.Admin.Socket != "/run/gatehouse/api.sock" {
			t.Errorf("%s: %s", name, data)
		}
		if grace := spec["terminationGracePeriodSeconds"].(float64); grace <= c.StopTimeout.Seconds() {
			t.Errorf("%s: it is killed after %v s and has %s to stop", name, grace, c.StopTimeout)
		}
		if name == "least" {
			for _, has := range []string{
				`"hostNetwork":true`, `"dnsPolicy":"ClusterFirstWithHostNet"`, `"capabilities":{"add":["NET_BIND_SERVICE","NET_ADMIN","NET_RAW"],"drop":["ALL"]}`,
				`"readOnlyRootFilesystem":true`, `"seccompProfile":{"type":"RuntimeDefault"}`, `"priorityClassName":"system-node-critical"`, `"nodeSelector":{"gatehouse.e13.dev/edge":"true"}`,
				`"hostPath":{"path":"/var/lib/gatehouse"`, `"httpGet":{"host":"127.0.0.1","path":"/readyz","port":"admin"}`,
			} {
				if !strings.Contains(pod, has) {
					t.Errorf("the Pod has no %s:\n%s", has, pod)
				}
			}
			if c.Admin.Listen != "127.0.0.1:9180" || len(c.Admin.Zones) > 0 || c.StopTimeout.Seconds() != 10 {
				t.Errorf("%+v", c.Admin)
			}
			continue
		}
		if c.Kubernetes.LoadBalancerClass != "example.com/second" || c.Kubernetes.MaxConnections != 2000000 || len(c.Pools) != 1 || len(c.Zones) != 2 {
			t.Errorf("%+v", c)
		}
		if c.Admin.Listen != "127.0.0.1:9280" || c.Admin.Port != 9280 || c.Admin.TokenFile != "/etc/gatehouse-token/token" || !slices.Equal(c.Admin.Zones, []string{"home"}) {
			t.Errorf("%+v", c.Admin)
		}
		monitor, _ := json.Marshal(all["PodMonitor gatehouse"]["spec"])
		if !strings.Contains(string(monitor), `"authorization":{"credentials":{"key":"token","name":"scrape"}}`) || !strings.Contains(pod, `"secret":{"defaultMode":256,"secretName":"scrape"}`) ||
			strings.Contains(pod, "hostPath") {
			t.Errorf("%s\n%s", monitor, pod)
		}
	}
}

func TestChartRefuses(t *testing.T) {
	daemonset := func(args ...string) []string { return append(slices.Clone(oneZone), args...) }
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--set", "mode=inside"}, "mode"},
		{[]string{"--set", "mode=daemonset"}, "config.zones is empty: say which interface of the node is which network"},
		{[]string{"--namespace", "other"}, "install it into the namespace gatehouse"},
		{[]string{"--set", "nameOverride=other"}, "without nameOverride"},
		{daemonset("--set", "colour=red"), "colour"},
		{daemonset("--set", "config.admin.listen=:80"), "config"},
		{daemonset("--set", "config.kubernetes.kubeconfig=/x"), "kubeconfig"},
		{daemonset("--set-json", `config.zones={"home":{}}`), "interfaces"},
		{daemonset("--set", "config.stopTimeout=1h30m"), "config.stopTimeout is 1h30m: write it as seconds (90s) or minutes (2m), or set terminationGracePeriodSeconds"},
		{daemonset("--set", "metrics.zones={lan}"), "there is no zone lan in config.zones; there are home"},
		{daemonset("--set", "metrics.zones={home}"), "metrics.tokenSecret.name"},
		{daemonset("--set", "metrics.podMonitor.enabled=true"), "Prometheus does not reach the loopback of a node"},
		{daemonset("--set", "capabilities={SYS_ADMIN}"), "capabilities"},
	} {
		_, say, err := helm(t, append([]string{"template", "gatehouse", chart, "--namespace", "gatehouse"}, tt.args...)...)
		if err == nil || !strings.Contains(say, tt.want) {
			t.Errorf("%q: %v\n%s\nwant %s", tt.args, err, say, tt.want)
		}
	}
}

// What can be set is in docs/helm.md.
func TestChartValuesAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile(filepath.Join("..", "docs", "helm.md"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	for _, path := range leaves("", values) {
		if !strings.Contains(string(docs), "`"+path+"`") {
			t.Errorf("docs/helm.md does not tell of %s", path)
		}
	}
}

// leaves are the paths of values; what is handed on as it is, is one.
func leaves(path string, v any) []string {
	m, ok := v.(map[string]any)
	if !ok || slices.Contains([]string{"config", "nodeSelector", "affinity", "resources", "podAnnotations", "updateStrategy", "metrics.podMonitor.labels"}, path) {
		return []string{path}
	}
	var all []string
	for key, inner := range m {
		all = append(all, leaves(strings.TrimPrefix(path+"."+key, "."), inner)...)
	}
	return all
}

// The values that docs/helm.md shows are good.
func TestChartExamplesOfTheDocs(t *testing.T) {
	docs, err := os.ReadFile(filepath.Join("..", "docs", "helm.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(docs), -1)
	for _, b := range blocks {
		values := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(values, []byte(b[1]), 0o600); err != nil {
			t.Fatal(err)
		}
		all := render(t, "--values", values)
		for name, o := range all {
			if !strings.HasPrefix(name, "ConfigMap ") {
				continue
			}
			data := o["data"].(map[string]any)["gatehouse.yaml"].(string)
			if _, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(data)}}); len(problems) > 0 {
				t.Errorf("%v\n%s", problems, data)
			}
		}
	}
	if len(blocks) != 2 {
		t.Errorf("%d examples, want 2", len(blocks))
	}
}
