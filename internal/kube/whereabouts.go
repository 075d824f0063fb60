package kube

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Whereabouts of a cluster, as a kubeconfig leads to it.
type Whereabouts struct {
	Server string       // the API server's host: a name or an address
	Nodes  []netip.Addr // the internal addresses of all nodes, of both families
	Count  int          // of nodes
}

// WhereaboutsOf asks the API server for the addresses of the nodes. It says
// where the API server is even if that does not answer, which is the error.
func WhereaboutsOf(ctx context.Context, kubeconfig, userAgent string) (Whereabouts, error) {
	src, err := loadSource(kubeconfig)
	if err != nil {
		return Whereabouts{}, err
	}
	conn, err := src.connect(userAgent, newRequestCounter())
	if err != nil {
		return Whereabouts{}, err
	}
	w := Whereabouts{}
	host := src.config.Host
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	if u, err := url.Parse(host); err == nil {
		w.Server = u.Hostname()
	}
	var nodes corev1.NodeList
	if err := conn.core.Get().Resource("nodes").Do(ctx).Into(&nodes); err != nil {
		p := src.explain("list nodes", err)
		return w, fmt.Errorf("kube: %s; %s", p.What, p.Remedy)
	}
	w.Count = len(nodes.Items)
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				w.Nodes = append(w.Nodes, ip)
			}
		}
	}
	return w, nil
}
