package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// scheme knows the two API groups that are spoken. The one that comes with
// client-go knows all of them, and they all end up in the binary.
var (
	scheme = newScheme()
	codecs = serializer.NewCodecFactory(scheme)
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	utilruntime.Must(metav1.AddMetaToScheme(s))
	utilruntime.Must(corev1.AddToScheme(s))
	utilruntime.Must(discoveryv1.AddToScheme(s))
	addRoutesToScheme(s)
	return s
}

// source is where the API server is, how to log in, and where that is written.
type source struct {
	config *rest.Config
	file   string // the kubeconfig; empty: in-cluster
}

// connection is a source with its REST clients.
type connection struct {
	source
	core, discovery rest.Interface
	routes          map[schema.GroupVersion]rest.Interface
}

// loadSource finds the API server: the file if there is one, else the cluster
// that gatehouse runs in as a Pod, else KUBECONFIG. It opens files only.
func loadSource(file string) (source, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: file}
	switch env := os.Getenv(clientcmd.RecommendedConfigPathEnvVar); {
	case file != "":
	case os.Getenv("KUBERNETES_SERVICE_HOST") != "":
		config, err := rest.InClusterConfig()
		if err != nil {
			return source{}, fmt.Errorf("kube: in-cluster: %w; mount the token of a ServiceAccount, or name a file in kubernetes.kubeconfig", err)
		}
		return finish(source{config: config})
	case env != "":
		file = env
		rules.ExplicitPath = ""
		rules.Precedence = filepath.SplitList(env)
	default:
		return source{}, errors.New("kube: no kubeconfig: not running in a cluster, and KUBECONFIG is not set; " +
			"name a file in kubernetes.kubeconfig (gatehouse kubeconfig writes one)")
	}
	kubeconfig, err := rules.Load()
	if errors.Is(err, fs.ErrNotExist) {
		return source{}, fmt.Errorf("kube: kubeconfig %s: no such file; gatehouse kubeconfig writes one", file)
	}
	if err != nil {
		return source{}, fmt.Errorf("kube: kubeconfig: %w", err)
	}
	if err := checkContext(kubeconfig); err != nil {
		return source{}, fmt.Errorf("kube: kubeconfig %s: %w", file, err)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*kubeconfig, kubeconfig.CurrentContext, nil, rules).ClientConfig()
	if err != nil {
		return source{}, fmt.Errorf("kube: kubeconfig %s: %w", file, err)
	}
	return finish(source{config: config, file: file})
}

// checkContext finds what client-go either accepts silently or reports without
// saying what would be right.
func checkContext(k *clientcmdapi.Config) error {
	contexts := slices.Sorted(maps.Keys(k.Contexts))
	if len(contexts) == 0 {
		return errors.New("no contexts: the file is empty or was not found; gatehouse kubeconfig writes one")
	}
	have := "have " + strings.Join(contexts, ", ")
	if k.CurrentContext == "" {
		return fmt.Errorf("no current-context; name one with kubectl config use-context (%s)", have)
	}
	c, ok := k.Contexts[k.CurrentContext]
	if !ok {
		return fmt.Errorf("current-context %q is not among its contexts; %s", k.CurrentContext, have)
	}
	cluster, ok := k.Clusters[c.Cluster]
	if !ok {
		return fmt.Errorf("context %q: no cluster named %q; have %s", k.CurrentContext, c.Cluster,
			cmp.Or(strings.Join(slices.Sorted(maps.Keys(k.Clusters)), ", "), "none"))
	}
	if cluster.Server == "" {
		return fmt.Errorf("cluster %q names no server; set it to the API server's URL, such as https://10.0.0.10:6443", c.Cluster)
	}
	if _, ok := k.AuthInfos[c.AuthInfo]; !ok {
		return fmt.Errorf("context %q: no user named %q; have %s", k.CurrentContext, c.AuthInfo,
			cmp.Or(strings.Join(slices.Sorted(maps.Keys(k.AuthInfos)), ", "), "none"))
	}
	return nil
}

// finish reads the certificate files, so that client-go need not: it would
// watch them with a goroutine that never ends. They are read again when the
// API server stops to accept them (see Client.reconnect).
func finish(s source) (source, error) {
	c := s.config
	if err := rest.LoadTLSFiles(c); err != nil {
		return source{}, fmt.Errorf("kube: %s: %w", s.name(), err)
	}
	if _, err := rest.TLSConfigFor(c); err != nil {
		return source{}, fmt.Errorf("kube: %s: %w", s.name(), err)
	}
	return s, nil
}

func (s source) server() string { return redacted(s.config.Host) }

// redacted is an address without the password that it may hold: it goes into
// logs, Events and the status page.
func redacted(host string) string {
	if u, err := url.Parse(host); err == nil {
		return u.Redacted()
	}
	return host
}

// name says where the configuration comes from.
func (s source) name() string {
	if s.file == "" {
		return "in-cluster configuration"
	}
	return "kubeconfig " + s.file
}

// sameLogin says whether both lead to the same server with the same login.
func (s source) sameLogin(other source) bool {
	a, b := rest.CopyConfig(s.config), rest.CopyConfig(other.config)
	a.Proxy, b.Proxy = nil, nil // functions are never equal
	return reflect.DeepEqual(a, b)
}

// connect makes the REST clients. It sends nothing and starts nothing.
func (s source) connect(userAgent string, requests *requestCounter) (*connection, error) {
	c := rest.CopyConfig(s.config)
	c.UserAgent = userAgent
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// The default of 5 requests a second would need minutes to write the status
	// of a few hundred Services. That the API server is not overrun is a matter of
	// how many requests are made at a time, and of its own word (429).
	c.QPS, c.Burst = 400, 800
	c.WarningHandler = rest.NoWarnings{}
	// A server that comes back is found quickly only if attempts to reach it
	// end quickly; a watch sends nothing, so only probes can tell that the
	// other side is gone (after 14 s; client-go's own HTTP/2 ping needs 45 s).
	// They are not sent while something waits for its acknowledgement, such as
	// the status of a Service: that has as long.
	const gone = 14 * time.Second
	c.Dial = (&net.Dialer{
		Timeout:         2 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3},
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			if cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(gone.Milliseconds()))
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}).DialContext
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return observer{next, requests} })

	http, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("kube: %s: %w", s.name(), err)
	}
	conn := &connection{source: s}
	if conn.core, err = groupClient(c, http, "/api", corev1.SchemeGroupVersion); err != nil {
		return nil, fmt.Errorf("kube: %s: %w", s.name(), err)
	}
	if conn.discovery, err = groupClient(c, http, "/apis", discoveryv1.SchemeGroupVersion); err != nil {
		return nil, fmt.Errorf("kube: %s: %w", s.name(), err)
	}
	plain := rest.CopyConfig(c)
	plain.ContentType, plain.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	conn.routes = make(map[schema.GroupVersion]rest.Interface)
	for _, gv := range routeVersions() {
		if conn.routes[gv], err = groupClient(plain, http, "/apis", gv); err != nil {
			return nil, fmt.Errorf("kube: %s: %w", s.name(), err)
		}
	}
	return conn, nil
}

func groupClient(c *rest.Config, http *http.Client, path string, group schema.GroupVersion) (rest.Interface, error) {
	c = rest.CopyConfig(c)
	c.APIPath = path
	c.GroupVersion = &group
	c.NegotiatedSerializer = codecs.WithoutConversion()
	return rest.RESTClientForConfigAndClient(c, http)
}

// observer counts requests, and notes how one went for those who ask by
// withOutcome: client-go answers a watch that cannot be started with an empty
// watch and no error, which would look as if the API server had been reached.
type observer struct {
	next     http.RoundTripper
	requests *requestCounter
}

type outcomeKey struct{}

func withOutcome(ctx context.Context) (context.Context, *error) {
	outcome := new(error)
	return context.WithValue(ctx, outcomeKey{}, outcome), outcome
}

// RoundTrip implements http.RoundTripper.
func (o observer) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := o.next.RoundTrip(req)
	o.requests.count(req, resp)
	if outcome, ok := req.Context().Value(outcomeKey{}).(*error); ok {
		*outcome = err
	}
	return resp, err
}

// WrappedRoundTripper lets client-go find the transport below.
func (o observer) WrappedRoundTripper() http.RoundTripper { return o.next }
