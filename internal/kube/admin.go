package kube

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// AdminOptions say whose rights are used.
type AdminOptions struct {
	Kubeconfig string // path; empty: KUBECONFIG, then ~/.kube/config
	Context    string // empty: the file's current one
	UserAgent  string
}

// Admin prepares a cluster for gatehouse with the rights of whoever starts it.
// Unlike a Client it watches nothing, and each method is done when it returns.
type Admin struct {
	source
	conn      *connection
	userAgent string
	shown     *atomic.Pointer[x509.Certificate] // by the API server
}

// NewAdmin opens the kubeconfig. It asks nobody.
func NewAdmin(o AdminOptions) (*Admin, error) {
	src, err := loadAdmin(o.Kubeconfig, o.Context)
	if err != nil {
		return nil, err
	}
	a := &Admin{source: src, userAgent: o.UserAgent, shown: new(atomic.Pointer[x509.Certificate])}
	a.conn, err = a.connectAs(src)
	return a, err
}

// connectAs makes the REST clients, which note the certificate that they are shown.
func (a *Admin) connectAs(src source) (*connection, error) {
	src.config = rest.CopyConfig(src.config)
	src.config.Wrap(func(next http.RoundTripper) http.RoundTripper { return certificateNoter{next, a.shown} })
	return src.connect(a.userAgent, newRequestCounter())
}

type certificateNoter struct {
	next  http.RoundTripper
	shown *atomic.Pointer[x509.Certificate]
}

func (n certificateNoter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := n.next.RoundTrip(r)
	if err == nil && resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		n.shown.Store(resp.TLS.PeerCertificates[0])
	}
	return resp, err
}

// loadAdmin finds the kubeconfig as kubectl does, but for a cluster that it runs in.
func loadAdmin(file, context string) (source, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = file
	kubeconfig, err := rules.Load()
	if errors.Is(err, os.ErrNotExist) {
		return source{}, fmt.Errorf("kube: kubeconfig %s: no such file; name that of an administrator of the cluster", file)
	}
	if err != nil {
		return source{}, fmt.Errorf("kube: kubeconfig: %w", err)
	}
	if file == "" {
		file = strings.Join(rules.GetLoadingPrecedence(), ":")
		if len(kubeconfig.Contexts) == 0 {
			return source{}, fmt.Errorf("kube: no kubeconfig of an administrator: there is no context in %s; name a file with --kubeconfig FILE or in KUBECONFIG", file)
		}
	}
	if context != "" {
		kubeconfig.CurrentContext = context
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

// ServerURL is where the API server is for the administrator.
func (a *Admin) ServerURL() string { return a.server() }

// CheckServer says what is wrong with a URL of an API server.
func CheckServer(server string) error {
	_, err := checkServer(server)
	return err
}

// checkServer reads where the API server is for the box.
func checkServer(server string) (*url.URL, error) {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("%q is not the URL of an API server; write one such as https://10.0.0.10:6443", redacted(server))
	}
	return u, nil
}

// Kubeconfig is one for the box, with the token, and what to mind about it. An
// empty server is the administrator's own.
func (a *Admin) Kubeconfig(token Token, server string) (text []byte, warnings []string, err error) {
	cluster := &clientcmdapi.Cluster{Server: server, TLSServerName: a.config.ServerName}
	if server == "" {
		cluster.Server = a.config.Host
	}
	u, err := checkServer(cluster.Server)
	if err != nil {
		return nil, nil, fmt.Errorf("kube: the server: %w", err)
	}
	// Whom the administrator trusts for this server comes first: behind a load
	// balancer it need not be the cluster's own. With neither, it is whom the
	// system trusts, which holds for the same server alone.
	switch {
	case len(a.config.CAData) > 0:
		cluster.CertificateAuthorityData = a.config.CAData
	case a.config.Insecure || server != "":
		cluster.CertificateAuthorityData = token.CA
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		warnings = append(warnings, cluster.Server+" is this machine; if the box is another one, say with --server URL where it reaches the API server")
	}
	name := u.Hostname()
	if cluster.TLSServerName != "" {
		name = cluster.TLSServerName
	}
	if shown := a.shown.Load(); shown != nil && shown.VerifyHostname(name) != nil {
		warnings = append(warnings, fmt.Sprintf("the certificate that the API server shows here is not for %s: the box will not trust it there; "+
			"take an address or name that it is for (%s), or have it issued for %s, too", name, names(shown), name))
	}
	const user = "gatehouse"
	text, err = clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"cluster": cluster},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: {Token: token.Text}},
		Contexts:       map[string]*clientcmdapi.Context{user: {Cluster: "cluster", AuthInfo: user}},
		CurrentContext: user,
	})
	return text, warnings, err
}

// names are those that a certificate is for.
func names(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	return strings.Join(all, ", ")
}
