package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"e13.dev/gatehouse/lab/site"
)

// apiFront stands between a gatehouse and real API servers, at an address of the
// edge's own, and does to requests what networks and busy servers do. It is the
// administrator to them.
type apiFront struct {
	server     *httptest.Server
	kubeconfig string
	to         atomic.Pointer[string]                          // host:port of the API server
	treat      atomic.Pointer[func(http.Handler) http.Handler] // what becomes of requests
	asked      atomic.Int64
}

func newAPIFront(t *testing.T) *apiFront {
	t.Helper()
	config, err := clientcmd.LoadFromFile(lab.AdminKubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	current := config.Contexts[config.CurrentContext]
	user, cluster := config.AuthInfos[current.AuthInfo], config.Clusters[current.Cluster]
	read := func(data []byte, file string) []byte {
		if len(data) == 0 {
			if data, err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	certificate, err := tls.X509KeyPair(read(user.ClientCertificateData, user.ClientCertificate), read(user.ClientKeyData, user.ClientKey))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	block, _ := pem.Decode(read(cluster.CertificateAuthorityData, cluster.CertificateAuthority))
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(ca)

	f := &apiFront{}
	f.switchTo(site.APIServer)
	f.behave(nil)
	// Without HTTP/2 each watch has a connection of its own, which ends with the client's.
	transport := &http.Transport{
		DialContext: lab.Dialer("edge"), TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, ServerName: "kubernetes"},
		MaxIdleConnsPerHost: 16,
	}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: *f.to.Load()}) },
		Transport:     transport,
		FlushInterval: -1, // watches
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
				conn.Close()
			}
		},
	}
	var listener net.Listener
	if err := lab.Do("edge", func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		(*f.treat.Load())(proxy).ServeHTTP(w, r)
	}))
	f.server.Listener.Close()
	f.server.Listener = listener
	f.server.Start()
	t.Cleanup(func() {
		f.behave(nil)
		f.server.CloseClientConnections()
		f.server.Close()
	})
	f.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://%s"}}]
users: [{name: nobody, user: {}}]
contexts: [{name: lab, context: {cluster: lab, user: nobody}}]
current-context: lab
`, listener.Addr())
	if err := os.WriteFile(f.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// switchTo has another API server answer from now on, and ends what goes on.
func (f *apiFront) switchTo(address string) {
	f.to.Store(&address)
	if f.server != nil {
		f.server.CloseClientConnections()
	}
}

// behave has requests be treated, nil: passed on; and ends what goes on.
func (f *apiFront) behave(treat func(http.Handler) http.Handler) {
	if treat == nil {
		treat = func(next http.Handler) http.Handler { return next }
	}
	f.treat.Store(&treat)
	if f.server != nil {
		f.server.CloseClientConnections()
	}
}

// cut ends connections without a word, as a machine that is switched off.
func cut(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if conn, _, err := w.(http.Hijacker).Hijack(); err == nil {
			conn.Close()
		}
	})
}

// slowly answers each request late.
func slowly(by time.Duration) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(by):
				next.ServeHTTP(w, r)
			}
		})
	}
}

// throttled asks for patience, as API priority and fairness does.
func throttled(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"TooManyRequests","code":429,"message":"too many requests"}`))
	})
}

// emptyAPIServer runs another control plane in the lab, without any object, and
// returns where it answers.
func emptyAPIServer(t *testing.T) (address string) {
	t.Helper()
	address = site.ControlPlane + ":7443"
	in := func(elem ...string) string { return filepath.Join(append([]string{lab.Dir()}, elem...)...) }
	for name, argv := range map[string][]string{
		"empty-etcd": {
			in("bin", "etcd"), "--name=empty", "--data-dir=" + in("etcd-empty"),
			"--listen-client-urls=http://127.0.0.1:12379", "--advertise-client-urls=http://127.0.0.1:12379",
			"--listen-peer-urls=http://127.0.0.1:12380", "--initial-advertise-peer-urls=http://127.0.0.1:12380",
			"--initial-cluster=empty=http://127.0.0.1:12380", "--unsafe-no-fsync", "--log-level=warn",
		},
		"empty-apiserver": {
			in("bin", "kube-apiserver"), "--etcd-servers=http://127.0.0.1:12379",
			"--advertise-address=" + site.ControlPlane, "--secure-port=7443",
			"--tls-cert-file=" + in("pki", "apiserver.crt"), "--tls-private-key-file=" + in("pki", "apiserver.key"),
			"--client-ca-file=" + in("pki", "ca.crt"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + in("pki", "tokens.key"), "--service-account-signing-key-file=" + in("pki", "tokens.key"),
			"--service-cluster-ip-range=" + site.ServiceNet, "--authorization-mode=Node,RBAC", "--shutdown-delay-duration=0s",
		},
	} {
		if err := lab.Run(t.Context(), name, "cp", nil, argv...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := lab.Kill(context.Background(), name); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, time.Minute, "the empty API server is there", func() error {
		_, err := lab.Exec(t.Context(), "cp", "curl", "-fsk", "https://"+address+"/readyz")
		return err
	})
	return address
}

// pause stops a component of the lab where it is; resume has it go on.
func pause(t *testing.T, component string) {
	t.Helper()
	signalComponent(t, component, syscall.SIGSTOP)
}
func resume(t *testing.T, component string) {
	t.Helper()
	signalComponent(t, component, syscall.SIGCONT)
}

func signalComponent(t *testing.T, name string, sig syscall.Signal) {
	t.Helper()
	s, err := lab.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.Components {
		if c.Name == name {
			if err := syscall.Kill(c.PID, sig); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no component named %s", name)
}

// compact makes etcd forget all that was before now, so that a watch from then
// cannot go on.
func compact(t *testing.T) {
	t.Helper()
	ask := func(path, body string) string {
		out, err := lab.Exec(t.Context(), "cp", "curl", "-fsS", "--max-time", "10", "-d", body, "http://127.0.0.1:2379/v3/kv/"+path)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	var now struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err := json.Unmarshal([]byte(ask("range", `{"key":"AA=="}`)), &now); err != nil {
		t.Fatal(err)
	}
	ask("compaction", `{"revision": "`+now.Header.Revision+`", "physical": true}`)
}
