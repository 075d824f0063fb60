package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/teardown"
)

const (
	openService = `{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","uid":"u1","resourceVersion":"7","finalizers":["gatehouse.e13.dev/closed"],
		"managedFields":[{"manager":"gatehouse","fieldsV1":{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}}]},
		"spec":{"type":"LoadBalancer"},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.70"}]},"conditions":[{"type":"gatehouse.e13.dev/Exposed","status":"True"}]}}`
	otherService = `{"kind":"Service","apiVersion":"v1","metadata":{"name":"api","namespace":"shop","uid":"u2","finalizers":["example.com/other"]},"spec":{"type":"LoadBalancer"}}`
)

// cluster is an API server with Services, and a kubeconfig that leads to it. A
// patch is answered with the code.
func cluster(t *testing.T, code int, services ...string) (kubeconfig string, patches *int) {
	t.Helper()
	patches = new(int)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPatch:
			*patches++
			w.WriteHeader(code)
			if code == 200 {
				fmt.Fprint(w, `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"8"}}`)
			} else {
				fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":"Forbidden","message":"services is forbidden"}`, code)
			}
		case strings.HasSuffix(r.URL.Path, "/services"):
			fmt.Fprintf(w, `{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[%s]}`, strings.Join(services, ","))
		default:
			fmt.Fprint(w, services[0])
		}
	}))
	t.Cleanup(s.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "` + s.URL + `"}}], users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, patches
}

// whoRuns says for the test what runs on this machine.
func whoRuns(t *testing.T, err error) {
	before := othersRun
	othersRun = func() error { return err }
	t.Cleanup(func() { othersRun = before })
}

func TestUninstallRefusesWhileGatehouseRuns(t *testing.T) {
	whoRuns(t, &teardown.RunningError{Pids: []int{42}})
	kubeconfig, patches := cluster(t, 200, openService)
	var out, errs bytes.Buffer
	if exit := Main([]string{"uninstall", "--kubeconfig", kubeconfig}, &out, &errs); exit != exitNo || *patches != 0 ||
		errs.String() != "gatehouse: gatehouse runs here (process 42), and would write all of it again; stop it first, with systemctl stop gatehouse or a signal\n" {
		t.Errorf("exit %d, %d patches: %s", exit, *patches, errs.String())
	}
	if exit := Main([]string{"uninstall", "--kubeconfig", kubeconfig, "--dry-run"}, &out, &errs); exit != exitOK {
		t.Errorf("dry run: exit %d: %s", exit, errs.String())
	}
}

func TestUninstall(t *testing.T) {
	whoRuns(t, nil)
	for _, tt := range []struct {
		name     string
		code     int
		services []string
		flags    []string
		exit     int
		patches  int
		out      string
	}{
		{
			"done", 200,
			[]string{openService, otherService},
			nil, exitOK, 1,
			"removed from service/shop/web: the finalizer, the address 10.11.12.70, the condition gatehouse.e13.dev/Exposed\n1 Service changed\n",
		},
		{
			"dry run", 200,
			[]string{openService, otherService},
			[]string{"--dry-run"},
			exitOK, 0,
			"would be removed from service/shop/web: the finalizer, the address 10.11.12.70, the condition gatehouse.e13.dev/Exposed\n1 Service would be changed\n",
		},
		{"nothing", 200, []string{otherService}, nil, exitOK, 0, "nothing to remove\n"},
		{
			"refused", 403,
			[]string{openService},
			nil, exitNo, 1,
			"not removed from service/shop/web: not allowed to patch services/status (403 Forbidden): services is forbidden; " +
				"have an administrator run gatehouse kubeconfig, and use the file that it writes\n0 Services changed, 1 failed\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kubeconfig, patches := cluster(t, tt.code, tt.services...)
			var out, errs bytes.Buffer
			if exit := Main(append([]string{"uninstall", "--kubeconfig", kubeconfig}, tt.flags...), &out, &errs); exit != tt.exit || out.String() != tt.out || *patches != tt.patches {
				t.Errorf("exit %d, %d patches, said %q and %q", exit, *patches, out.String(), errs.String())
			}
			out.Reset()
			if exit := Main(append([]string{"uninstall", "--kubeconfig", kubeconfig, "-o", "json"}, tt.flags...), &out, &errs); exit != tt.exit {
				t.Errorf("exit %d with JSON", exit)
			}
			var report uninstalled
			if err := json.Unmarshal(out.Bytes(), &report); err != nil || len(report.Services) != strings.Count(tt.out, "service/") || (report.Failed == 0) != (tt.exit == exitOK) || report.DryRun != (len(tt.flags) > 0) {
				t.Errorf("%v: %s", err, out.String())
			}
		})
	}
}

// The cluster is that of the configuration, unless another is named.
func TestUninstallFindsTheCluster(t *testing.T) {
	whoRuns(t, nil)
	kubeconfig, patches := cluster(t, 200, openService)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte("apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth1]}}\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs bytes.Buffer
	write("kubernetes: {kubeconfig: " + kubeconfig + "}\n")
	if exit := Main([]string{"uninstall", "-c", file}, &out, &errs); exit != exitOK || *patches != 1 {
		t.Errorf("exit %d, %d patches: %s", exit, *patches, errs.String())
	}
	write("kubernetes: {kubeconfig: /nosuch}\n")
	if exit := Main([]string{"uninstall", "-c", file}, &out, &errs); exit != exitNo || !strings.Contains(errs.String(), "/nosuch") {
		t.Errorf("exit %d: %s", exit, errs.String())
	}
	if exit := Main([]string{"uninstall", "-c", file, "--kubeconfig", kubeconfig}, &out, &errs); exit != exitOK || *patches != 2 {
		t.Errorf("exit %d, %d patches: %s", exit, *patches, errs.String())
	}
	write("")
	for _, tt := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"-c", file}, exitNo, "there is no kubernetes block"},
		{nil, exitUsage, "say which cluster"},
		{[]string{"-c", file, "-o", "yaml"}, exitUsage, "write table or json"},
	} {
		errs.Reset()
		if exit := Main(append([]string{"uninstall"}, tt.args...), &out, &errs); exit != tt.exit || !strings.Contains(errs.String(), tt.says) {
			t.Errorf("%q: exit %d: %s", tt.args, exit, errs.String())
		}
	}
}
