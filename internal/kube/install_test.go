package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// installAPI keeps objects by their path, as an API server does as far as
// installing goes. It fills a Secret when it is asked for it the second time.
type installAPI struct {
	*httptest.Server
	mu      sync.Mutex
	objects map[string]map[string]any
	asked   int // for the Secret
	tokens  int
	old     bool                                             // no admission policies
	log     []string                                         // "PATCH /api/v1/…?force=true"
	refuse  func(r *http.Request) (int, metav1.StatusReason) // or 0
	grants  func(verb, resource string) bool
}

func newInstallAPI(t *testing.T) (*installAPI, string) {
	t.Helper()
	api := &installAPI{objects: map[string]map[string]any{}}
	api.Server = httptest.NewTLSServer(api)
	t.Cleanup(api.Close)
	path := filepath.Join(t.TempDir(), "admin")
	trust(t, path, api.Server, "of an administrator")
	return api, path
}

func (a *installAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.log = append(a.log, r.Method+" "+r.URL.RequestURI())
	w.Header().Set("Content-Type", "application/json")
	if a.refuse != nil {
		if code, reason := a.refuse(r); code != 0 {
			status(code, reason, "refused")(w, r)
			return
		}
	}
	body, _ := io.ReadAll(r.Body)
	var answer any
	switch object := a.objects[r.URL.Path]; {
	case strings.HasSuffix(r.URL.Path, "/v1"):
		list := metav1.APIResourceList{}
		for _, name := range resources {
			if !a.old || !strings.HasPrefix(name, "validatingadmission") {
				list.APIResources = append(list.APIResources, metav1.APIResource{Name: name})
			}
		}
		answer = list
	case strings.HasSuffix(r.URL.Path, "/selfsubjectaccessreviews"):
		answer = a.review(r, body)
	case r.Method == http.MethodPatch:
		if object == nil {
			object = map[string]any{}
		}
		after := map[string]any{}
		if err := yaml.Unmarshal(body, &after); err != nil || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
			status(http.StatusBadRequest, metav1.StatusReasonBadRequest, "no YAML")(w, r)
			return
		}
		if data := object["data"]; data != nil { // somebody else's field
			after["data"] = data
		}
		after["metadata"].(map[string]any)["managedFields"] = []metav1.ManagedFieldsEntry{{Manager: fmt.Sprint(len(a.log))}}
		after["metadata"].(map[string]any)["resourceVersion"] = fmt.Sprint(len(a.log))
		if r.URL.Query().Get("dryRun") == "" {
			a.objects[r.URL.Path] = after
		}
		answer = after
	case object == nil:
		status(http.StatusNotFound, metav1.StatusReasonNotFound, "not found")(w, r)
		return
	case r.Method == http.MethodDelete:
		delete(a.objects, r.URL.Path)
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}
	default:
		if a.asked++; strings.HasSuffix(r.URL.Path, "/gatehouse-token") && object["data"] == nil && a.asked > 1 {
			a.tokens++
			object["data"] = map[string]any{"token": []byte(fmt.Sprintf("token %d", a.tokens)), "ca.crt": []byte("the cluster's own")}
		}
		answer = object
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (a *installAPI) review(r *http.Request, body []byte) any {
	var review struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			ResourceAttributes struct{ Verb, Group, Resource, Subresource string }
		} `json:"spec"`
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	_ = json.Unmarshal(body, &review)
	asked := review.Spec.ResourceAttributes
	resource := strings.TrimSuffix(asked.Resource+"/"+asked.Subresource, "/")
	review.Status.Allowed = strings.HasPrefix(r.Header.Get("Authorization"), "Bearer token ") && a.grants(asked.Verb, resource)
	return review
}

func (a *installAPI) count(prefix string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// rbac is the file that the program has in it.
func rbac(t *testing.T) []Manifest {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", "rbac.yaml"))
	must(t, err)
	all, err := Manifests(text)
	must(t, err)
	return all
}

func secretOf(t *testing.T, all []Manifest) Manifest {
	t.Helper()
	for _, m := range all {
		if m.Kind == "Secret" {
			return m
		}
	}
	t.Fatal("no Secret")
	return Manifest{}
}

func applied(t *testing.T, a *Admin, all []Manifest, dryRun bool) string {
	t.Helper()
	var lines []string
	must(t, a.Apply(t.Context(), all, dryRun, func(d Applied) { lines = append(lines, d.Object+" "+d.Did) }))
	return strings.Join(lines, "\n")
}

func TestApply(t *testing.T) {
	api, file := newInstallAPI(t)
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	all := rbac(t)
	const created = "namespace/gatehouse created\nserviceaccount/gatehouse created\nclusterrole/gatehouse created\nclusterrolebinding/gatehouse created\n" +
		"secret/gatehouse-token created\nvalidatingadmissionpolicy/gatehouse.e13.dev created\nvalidatingadmissionpolicybinding/gatehouse.e13.dev created"
	if got := applied(t, a, all, true); got != created || api.count("PATCH") != 0 {
		t.Errorf("dry run: %d writes\n%s", api.count("PATCH"), got)
	}
	if got := applied(t, a, all, false); got != created || api.count("PATCH") != 7 {
		t.Errorf("%d writes\n%s", api.count("PATCH"), got)
	}
	const path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/gatehouse"
	if api.count("PATCH "+path+"?fieldManager=gatehouse-install&force=true") != 1 {
		t.Errorf("not applied by its own field manager: %q", api.log)
	}
	if got, want := applied(t, a, all, false), strings.ReplaceAll(created, "created", "unchanged"); got != want {
		t.Errorf("again:\n%s", got)
	}
	api.objects[path]["rules"] = []any{}
	want := strings.Replace(strings.ReplaceAll(created, "created", "unchanged"), "clusterrole/gatehouse unchanged", "clusterrole/gatehouse changed", 1)
	for _, dryRun := range []bool{true, true, false} {
		if got := applied(t, a, all, dryRun); got != want {
			t.Errorf("changed by somebody, dry run %t:\n%s", dryRun, got)
		}
	}
	if len(api.objects[path]["rules"].([]any)) == 0 {
		t.Error("the rules are still gone")
	}
}

func TestApplyToAnOldCluster(t *testing.T) {
	api, file := newInstallAPI(t)
	api.old = true
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	got := applied(t, a, rbac(t), false)
	if !strings.HasSuffix(got, "secret/gatehouse-token created\nvalidatingadmissionpolicy/gatehouse.e13.dev skipped\nvalidatingadmissionpolicybinding/gatehouse.e13.dev skipped") ||
		api.count("PATCH") != 5 {
		t.Errorf("%d writes\n%s", api.count("PATCH"), got)
	}
}

func TestApplySaysWhatIsMissing(t *testing.T) {
	api, file := newInstallAPI(t)
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	for _, tt := range []struct {
		code   int
		reason metav1.StatusReason
		want   string
	}{
		{403, metav1.StatusReasonForbidden, "kube: not allowed to apply clusterrole/gatehouse (403 Forbidden): refused; this takes the rights of an administrator of the cluster (cluster-admin): name such a login with --kubeconfig FILE and --context NAME"},
		{401, metav1.StatusReasonUnauthorized, "kube: the API server SERVER refuses the login (401 Unauthorized): the token or certificate has expired or was revoked; log in anew, or name another kubeconfig with --kubeconfig FILE"},
	} {
		api.refuse = func(r *http.Request) (int, metav1.StatusReason) {
			if strings.HasSuffix(r.URL.Path, "/clusterroles/gatehouse") && r.Method == http.MethodPatch {
				return tt.code, tt.reason
			}
			return 0, ""
		}
		err = a.Apply(t.Context(), rbac(t), false, func(Applied) {})
		if err == nil || strings.ReplaceAll(err.Error(), api.URL, "SERVER") != tt.want {
			t.Errorf("%v\nwant\n%s", err, tt.want)
		}
	}
	api.Close()
	err = a.Apply(t.Context(), rbac(t), false, func(Applied) {})
	want := "kube: the API server " + api.URL + " cannot be reached: connection refused; check that it runs, and the server address in the kubeconfig " + file
	if err == nil || err.Error() != want {
		t.Errorf("away: %v\nwant\n%s", err, want)
	}
}

func TestTokenAndItsKubeconfig(t *testing.T) {
	_, file := newInstallAPI(t)
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	all := rbac(t)
	applied(t, a, all, false)
	secret := secretOf(t, all)
	token, err := a.Token(t.Context(), secret, func() {})
	must(t, err)
	again, err := a.Token(t.Context(), secret, func() {})
	must(t, err)
	if token.Text != "token 1" || again.Text != token.Text || string(token.CA) != "the cluster's own" {
		t.Errorf("token %+v, then %+v", token, again)
	}
	must(t, a.Delete(t.Context(), secret))
	must(t, a.Delete(t.Context(), secret))
	applied(t, a, all, false)
	if token, err = a.Token(t.Context(), secret, func() {}); err != nil || token.Text != "token 2" {
		t.Errorf("after the old one was revoked: %+v %v", token, err)
	}

	for _, tt := range []struct {
		name, server   string
		insecure, noCA bool
		wantServer, ca string
		warnings       int
		warning        string
	}{
		{name: "the administrator's server", wantServer: a.config.Host, ca: "admin", warnings: 1, warning: "is this machine"},
		{name: "another", server: "https://10.0.0.10:6443", ca: "admin", warnings: 1, warning: "is not for 10.0.0.10: the box will not trust it there; take an address or name that it is for (example.com, "},
		{name: "one that the certificate is for", server: "https://example.com", ca: "admin"},
		{name: "an administrator who trusts anybody", server: "https://example.com", insecure: true, noCA: true, ca: "the cluster's own"},
		{name: "an administrator who trusts whom the system trusts", wantServer: a.config.Host, noCA: true, ca: "", warnings: 1, warning: "is this machine"},
		{name: "that, and another server", server: "https://example.com", noCA: true, ca: "the cluster's own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			other := *a
			config := *a.config
			other.config = &config
			admins := string(config.CAData)
			if tt.noCA {
				config.CAData = nil
			}
			config.Insecure = tt.insecure
			text, warnings, err := other.Kubeconfig(token, tt.server)
			must(t, err)
			got, err := clientcmd.Load(text)
			must(t, err)
			cluster := got.Clusters["cluster"]
			want := strings.Replace(tt.ca, "admin", admins, 1)
			if server := cluster.Server; server != tt.server && server != tt.wantServer || string(cluster.CertificateAuthorityData) != want || cluster.InsecureSkipTLSVerify ||
				got.AuthInfos["gatehouse"].Token != "token 2" {
				t.Errorf("%s", text)
			}
			must(t, checkContext(got))
			if len(warnings) != tt.warnings || !strings.Contains(strings.Join(warnings, "\n"), tt.warning) {
				t.Errorf("warnings %q", warnings)
			}
		})
	}
	for _, server := range []string{"10.0.0.10:6443", "http://10.0.0.10", "https://", "https://me:secret@10.0.0.10"} {
		if _, _, err := a.Kubeconfig(token, server); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("server %q: %v", server, err)
		}
	}
}

func TestTokenThatIsNotFilledIn(t *testing.T) {
	api, file := newInstallAPI(t)
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	all := rbac(t)
	applied(t, a, all, false)
	api.mu.Lock()
	api.asked = -1000
	api.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := a.Token(ctx, secretOf(t, all), cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("not told that it takes a while, or no end: %v", err)
	}
}

func TestRights(t *testing.T) {
	api, file := newInstallAPI(t)
	a, err := NewAdmin(AdminOptions{Kubeconfig: file})
	must(t, err)
	wanted, err := RightsOf(rbac(t))
	must(t, err)
	if len(wanted) != 30 {
		t.Errorf("%d rights: %v", len(wanted), wanted)
	}
	asked := 0
	api.grants = func(verb, resource string) bool {
		asked++
		switch verb + " " + resource {
		case "patch services/status":
			return asked > 20 // the role is new
		case "get secrets":
			return true // by somebody else
		}
		for _, r := range wanted {
			if r.Verb == verb && r.Resource == resource {
				return true
			}
		}
		return false
	}
	got, err := a.Rights(t.Context(), Token{Text: "token 1"}, wanted)
	must(t, err)
	if len(got) != len(wanted)+len(beyond) {
		t.Errorf("%d answers", len(got))
	}
	for _, r := range got {
		if want := r.Wanted || r.String() == "get secrets"; r.Granted != want {
			t.Errorf("%s: granted %t, want %t", r, r.Granted, want)
		}
	}
}

// The administrator's kubeconfig is found as kubectl finds it.
func TestNewAdminSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "two")
	must(t, os.WriteFile(file, []byte(strings.NewReplacer(`"CA"`, `""`, "SERVER", "https://10.0.0.10:6443", "TOKEN", "t",
		"contexts: [", "contexts: [{name: other, context: {cluster: lab, user: gatehouse}}, ").Replace(kubeconfigText)), 0o600))
	for _, tt := range []struct{ name, file, context, env, want string }{
		{"by name", file, "", "", ""},
		{"by the environment", "", "", filepath.Join(dir, "missing") + ":" + file, ""},
		{"another context", file, "other", "", ""},
		{"no such context", file, "third", "", `kube: kubeconfig DIR/two: current-context "third" is not among its contexts; have lab, other`},
		{"no such file", filepath.Join(dir, "missing"), "", "", "kube: kubeconfig DIR/missing: no such file; name that of an administrator of the cluster"},
		{"nothing", "", "", filepath.Join(dir, "missing"), "kube: no kubeconfig of an administrator: there is no context in DIR/missing; name a file with --kubeconfig FILE or in KUBECONFIG"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.env)
			a, err := NewAdmin(AdminOptions{Kubeconfig: tt.file, Context: tt.context})
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			} else if a.ServerURL() != "https://10.0.0.10:6443" {
				got = a.ServerURL()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// Inside of the cluster it is the chart that gives rights, and no file.
func TestForbiddenToAPod(t *testing.T) {
	src := source{config: &rest.Config{Host: "https://10.96.0.1:443"}}
	p := src.explain("list services", apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no")))
	if want := "give the ServiceAccount of the Pod the ClusterRole that the Helm chart has for it"; p.Remedy != want {
		t.Errorf("%q, want %q", p.Remedy, want)
	}
}
