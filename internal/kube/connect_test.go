package kube

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"e13.dev/gatehouse/internal/edge"
)

const kubeconfigText = `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "SERVER", certificate-authority-data: "CA"}}]
users: [{name: gatehouse, user: {token: "TOKEN"}}]
contexts: [{name: lab, context: {cluster: lab, user: gatehouse}}]
current-context: lab
`

func writeKubeconfig(t testing.TB, path, server, token string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(strings.NewReplacer("SERVER", server, "TOKEN", token, "CA", "").Replace(kubeconfigText)), 0o600))
}

// trust puts the certificate of s into a kubeconfig; client-go sends tokens over
// TLS only.
func trust(t testing.TB, path string, s *httptest.Server, token string) {
	t.Helper()
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	must(t, os.WriteFile(path, []byte(strings.NewReplacer("SERVER", s.URL, "TOKEN", token, "CA", ca).Replace(kubeconfigText)), 0o600))
}

func client(t testing.TB, server string) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, server, "secret")
	c, err := New(Options{Kubeconfig: path, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	return c
}

func TestNewSaysWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	edit := func(old, new string) string {
		return strings.Replace(strings.Replace(kubeconfigText, `"CA"`, `""`, 1), old, new, 1)
	}
	for _, tt := range []struct {
		name, file string
		env        map[string]string
		want       string // DIR is replaced
	}{
		{"nothing", "", nil, "kube: no kubeconfig: not running in a cluster, and KUBECONFIG is not set; name a file in kubernetes.kubeconfig (gatehouse kubeconfig writes one)"},
		{"no such file", filepath.Join(dir, "missing"), nil, "kube: kubeconfig DIR/missing: no such file; gatehouse kubeconfig writes one"},
		{
			"no such file in KUBECONFIG", "",
			map[string]string{"KUBECONFIG": filepath.Join(dir, "missing")},
			"kube: kubeconfig DIR/missing: no contexts: the file is empty or was not found; gatehouse kubeconfig writes one",
		},
		{"empty", file("empty", ""), nil, "kube: kubeconfig DIR/empty: no contexts: the file is empty or was not found; gatehouse kubeconfig writes one"},
		{"not YAML", file("text", "hello: ["), nil, "kube: kubeconfig: error loading config file \"DIR/text\": yaml: line 1: did not find expected node content"},
		{
			"no current context", file("nocurrent", edit("current-context: lab", "")), nil,
			"kube: kubeconfig DIR/nocurrent: no current-context; name one with kubectl config use-context (have lab)",
		},
		{
			"no such context", file("context", edit("current-context: lab", "current-context: prod")), nil,
			`kube: kubeconfig DIR/context: current-context "prod" is not among its contexts; have lab`,
		},
		{
			"no such cluster", file("cluster", edit("{cluster: lab,", "{cluster: prod,")), nil,
			`kube: kubeconfig DIR/cluster: context "lab": no cluster named "prod"; have lab`,
		},
		{
			"no such user", file("user", edit("user: gatehouse}}", "user: admin}}")), nil,
			`kube: kubeconfig DIR/user: context "lab": no user named "admin"; have gatehouse`,
		},
		{
			"no server", file("server", edit(`server: "SERVER", `, "")), nil,
			`kube: kubeconfig DIR/server: cluster "lab" names no server; set it to the API server's URL, such as https://10.0.0.10:6443`,
		},
		{
			"no such certificate", file("cert", edit(`token: "TOKEN"`, `client-certificate: nosuch.crt, client-key: nosuch.key`)), nil,
			"kube: kubeconfig DIR/cert: invalid configuration: [unable to read client-cert DIR/nosuch.crt for gatehouse due to open DIR/nosuch.crt: no such file or directory, " +
				"unable to read client-key DIR/nosuch.key for gatehouse due to open DIR/nosuch.key: no such file or directory]",
		},
		{
			"no certificate in it", file("ca", strings.NewReplacer("SERVER", "https://10.0.0.10:6443", "CA", "bm9uZQ==").Replace(kubeconfigText)), nil,
			"kube: kubeconfig DIR/ca: unable to load root certificates: unable to parse bytes as PEM block",
		},
		{
			"in-cluster, no token", "",
			map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"},
			"kube: in-cluster: open /var/run/secrets/kubernetes.io/serviceaccount/token: no such file or directory; mount the token of a ServiceAccount, or name a file in kubernetes.kubeconfig",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, k := range []string{"KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"} {
				t.Setenv(k, tt.env[k])
			}
			_, err := New(Options{Kubeconfig: tt.file, Logger: slog.New(slog.DiscardHandler)})
			if want := strings.ReplaceAll(tt.want, "DIR", dir); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestNewStartsNothing(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	key, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	must(t, err)
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"crt": {Type: "CERTIFICATE", Bytes: s.Certificate().Raw}, "key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	// client-go watches certificate files, with a goroutine that nothing ends.
	text := strings.NewReplacer("SERVER", s.URL, `token: "TOKEN"`, "client-certificate: crt, client-key: key",
		`certificate-authority-data: "CA"`, "certificate-authority: crt").Replace(kubeconfigText)
	path := filepath.Join(dir, "kubeconfig")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	before := runtime.NumGoroutine()
	_, err = New(Options{Kubeconfig: path, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	if after := runtime.NumGoroutine(); after > before { // those of other tests end when they like
		t.Errorf("%d goroutines, %d before", after, before)
	}
}

func TestKubeconfigFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, path, "https://10.0.0.10:6443", "secret")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", path+":/nonexistent")
	c, err := New(Options{Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	if c.conn.Load().server() != "https://10.0.0.10:6443" {
		t.Errorf("server %s", c.conn.Load().server())
	}
}

// status answers as the API server does when it refuses.
func status(code int, reason metav1.StatusReason, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
			Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
		})
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	refused := httptest.NewServer(nil)
	refused.Close()
	untrusted := httptest.NewUnstartedServer(status(500, "", ""))
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	defer untrusted.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	forbidden := `services is forbidden: User "system:serviceaccount:gatehouse:gatehouse" cannot list resource "services" in API group "" at the cluster scope`
	for _, tt := range []struct {
		name    string
		handler http.Handler
		server  string
		want    string // SERVER is replaced
	}{
		{
			"expired token", status(401, metav1.StatusReasonUnauthorized, "Unauthorized"), "",
			"kube: the API server SERVER refuses the login (401 Unauthorized): the token or certificate has expired or was revoked; renew it in the kubeconfig FILE; the file is read again by itself",
		},
		{
			"no role", status(403, metav1.StatusReasonForbidden, forbidden), "",
			"kube: not allowed to list services (403 Forbidden): " + forbidden + "; have an administrator run gatehouse kubeconfig, and use the file that it writes",
		},
		{
			"broken", status(500, metav1.StatusReasonInternalError, "etcd has no leader\nand so on"), "",
			"kube: cannot list services: the API server SERVER answers 500: etcd has no leader; it is tried again; if it stays, look into the log of the API server",
		},
		{
			"not running", nil, refused.URL,
			"kube: the API server SERVER cannot be reached: connection refused; check that it runs, and the server address in the kubeconfig FILE",
		},
		{
			"another authority", nil, untrusted.URL,
			"kube: the API server SERVER is not trusted: x509: certificate signed by unknown authority; put its address and the certificate authority that signed its certificate into the kubeconfig FILE",
		},
		{
			"no answer", nil, "http://" + silent.Addr().String(),
			"kube: the API server SERVER cannot be reached: no answer; check that it runs, and the server address in the kubeconfig FILE",
		},
		{
			"no such name", nil, "http://nosuch.invalid",
			"kube: the API server SERVER cannot be reached: no address found for nosuch.invalid; check that it runs, and the server address in the kubeconfig FILE",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := tt.server
			if tt.handler != nil {
				s := httptest.NewServer(tt.handler)
				defer s.Close()
				server = s.URL
			}
			c := client(t, server)
			patience := 10 * time.Second
			if server == "http://"+silent.Addr().String() {
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			err := c.listAll(ctx, c.kinds(newState(func() {}))[0])
			got := fmt.Sprintf("kube: %s", c.conn.Load().explain("list services", err))
			got = strings.Replace(got, problemObject+": ", "", 1)
			if want := strings.NewReplacer("SERVER", server, "FILE", c.file).Replace(tt.want); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestListNamesTheProblem(t *testing.T) {
	s := httptest.NewServer(status(401, metav1.StatusReasonUnauthorized, "Unauthorized"))
	defer s.Close()
	_, err := client(t, s.URL).List(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "kube: the API server "+s.URL+" refuses the login (401 Unauthorized)") {
		t.Errorf("got %v", err)
	}
}

// run starts the client and returns what stops it and waits for it.
func run(t *testing.T, c *Client) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// until waits for the client to tell of a state of affairs.
func until(t *testing.T, c *Client, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-c.Changed():
		case <-deadline:
			t.Fatalf("never: %s; problems %v", what, c.Problems())
		}
	}
}

// emptyLists answers lists with none, and holds watches open.
func emptyLists(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("watch") != "" {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	kind := map[string]string{"services": "ServiceList", "nodes": "NodeList", "endpointslices": "EndpointSliceList"}[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
	version := "v1"
	if kind == "EndpointSliceList" {
		version = "discovery.k8s.io/v1"
	}
	fmt.Fprintf(w, `{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"5"},"items":[]}`, kind, version)
}

// beforeStreaming answers as API servers did that cannot stream lists.
func beforeStreaming(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("sendInitialEvents") != "" {
			status(422, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")(w, r)
			return
		}
		next(w, r)
	}
}

func TestARenewedTokenIsPickedUp(t *testing.T) {
	s := httptest.NewTLSServer(beforeStreaming(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer renewed" {
			status(401, metav1.StatusReasonUnauthorized, "Unauthorized")(w, r)
			return
		}
		emptyLists(w, r)
	}))
	defer s.CloseClientConnections()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	trust(t, path, s, "expired")
	c, err := New(Options{Kubeconfig: path, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	run(t, c)
	until(t, c, "a problem", func() bool { return len(c.Problems()) == 1 })
	if got := c.Problems()[0].What; !strings.Contains(got, "refuses the login") {
		t.Errorf("problem %s", got)
	}
	trust(t, path, s, "renewed")
	until(t, c, "synced without a problem", func() bool {
		_, synced := c.Snapshot()
		return synced && len(c.Problems()) == 0
	})
}

func TestOldAPIServers(t *testing.T) {
	var selected atomic.Int32
	s := httptest.NewServer(beforeStreaming(func(w http.ResponseWriter, r *http.Request) {
		if f := r.URL.Query().Get("fieldSelector"); f != "" {
			selected.Add(1)
			status(400, metav1.StatusReasonBadRequest, `Unable to find "/v1, Resource=services" that match label selector "", field selector "`+f+
				`": "spec.type" is not a known field selector: only "metadata.name", "metadata.namespace"`)(w, r)
			return
		}
		emptyLists(w, r)
	}))
	defer s.CloseClientConnections()
	c := client(t, s.URL)
	run(t, c)
	until(t, c, "synced", func() bool {
		_, synced := c.Snapshot()
		return synced
	})
	if n := selected.Load(); n != 1 {
		t.Errorf("asked %d times for what it cannot do", n)
	}
	if p := c.Problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

// 410 Gone means that the watch is too far behind; all is read anew.
func TestGoneIsNoProblem(t *testing.T) {
	var gone atomic.Bool
	var watches atomic.Int32 // of the three kinds
	s := httptest.NewServer(beforeStreaming(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			if !gone.Swap(true) {
				status(410, metav1.StatusReasonExpired, "too old resource version: 5 (100)")(w, r)
				return
			}
			watches.Add(1)
		}
		emptyLists(w, r)
	}))
	defer s.CloseClientConnections()
	c := client(t, s.URL)
	run(t, c)
	until(t, c, "synced", func() bool {
		_, synced := c.Snapshot()
		return synced
	})
	// Nobody tells of a watch that goes on.
	for deadline := time.Now().Add(10 * time.Second); watches.Load() < 3; <-time.After(5 * time.Millisecond) {
		if p := c.Problems(); len(p) != 0 || time.Now().After(deadline) {
			t.Fatalf("no watch after 410; problems %v", p)
		}
	}
	if p := c.Problems(); len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

func TestReconnectKeepsALoginThatHasNotChanged(t *testing.T) {
	c := client(t, "https://127.0.0.1:1")
	before := c.conn.Load()
	c.reconnect()
	must(t, os.WriteFile(c.file, []byte("half a fi"), 0o600))
	c.reconnect()
	if c.conn.Load() != before {
		t.Error("the connection was replaced")
	}
	writeKubeconfig(t, c.file, "https://127.0.0.1:2", "secret")
	c.reconnect()
	if c.conn.Load().server() != "https://127.0.0.1:2" {
		t.Errorf("server %s", c.conn.Load().server())
	}
}

// Being away is one problem, however many requests fail of it; it takes the
// place of what was wrong before, and ends with the first answer, even a refusal.
func TestReachIsOneProblem(t *testing.T) {
	c := client(t, "https://127.0.0.1:1")
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	noRoute := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no"))
	for i, step := range []struct {
		doing string
		err   error
		want  string
	}{
		{"list services", forbidden, "403"},
		{"list services", refused, "connection refused"},
		{"watch nodes", refused, "connection refused"},
		{"watch nodes", noRoute, "no answer"},
		{"watch nodes", context.DeadlineExceeded, "no answer"},
		{"list services", forbidden, "403"},
		{"watch services", nil, "403"},
		{"watch nodes", apierrors.NewResourceExpired("too old resource version"), "403"}, // is no problem
		{"list services", nil, ""},
	} {
		c.observe(t.Context(), step.doing, step.err)
		p := c.Problems()
		if step.want == "" && len(p) == 0 {
			continue
		}
		if len(p) != 1 || !strings.Contains(p[0].What, step.want) {
			t.Errorf("step %d: %v", i, p)
		}
	}
}

func TestTheSameProblemIsToldOnce(t *testing.T) {
	c := client(t, "https://127.0.0.1:1")
	away := edge.Problem{Object: problemObject, What: "away"}
	told := func() bool {
		select {
		case <-c.Changed():
			return true
		default:
			return false
		}
	}
	for i, step := range []struct {
		doing string
		now   []edge.Problem
		told  bool
		count int
	}{
		{"list services", []edge.Problem{away}, true, 1},
		{"list services", []edge.Problem{away}, false, 1},
		{"list nodes", []edge.Problem{away}, true, 1},
		{"list nodes", []edge.Problem{{What: "other"}}, true, 2},
		{"list services", nil, true, 1},
		{"list services", nil, false, 1},
		{"list nodes", nil, true, 0},
	} {
		c.report(step.doing, step.now...)
		if got := told(); got != step.told || len(c.Problems()) != step.count {
			t.Errorf("step %d: told %v, problems %v", i, got, c.Problems())
		}
	}
}
