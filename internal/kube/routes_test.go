package kube

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

// decoded reads an object as the API server sends it.
func decoded(t *testing.T, kind, text string) *route {
	t.Helper()
	var o routeObject
	must(t, json.Unmarshal([]byte(text), &o))
	return convertRoute(kind)(&o)
}

// balancer is a Service with addresses and ports.
func balancer(key string, ports []uint16, addrs ...string) edge.Service {
	namespace, name, _ := strings.Cut(key, "/")
	s := edge.Service{Namespace: namespace, Name: name}
	for _, p := range ports {
		s.Ports = append(s.Ports, edge.ServicePort{Protocol: edge.TCP, Port: p})
	}
	for _, a := range addrs {
		ip, _ := parseAddr(a)
		s.Ingress = append(s.Ingress, edge.Ingress{IP: ip})
	}
	return s
}

const gatewayText = `{"metadata":{"namespace":"gw","name":"edge"},"spec":{"gatewayClassName":"envoy","listeners":[
	{"name":"http","port":80},{"name":"shop","port":443,"hostname":"*.shop.example"}]},"status":{"addresses":[{"type":"IPAddress","value":"10.0.0.8"},{"type":"Hostname","value":"x"}]}}`

func httpRoute(hosts, section, accepted string) string {
	ref := `"name":"edge","namespace":"gw"`
	if section != "" {
		ref += fmt.Sprintf(`,"sectionName":%q`, section)
	}
	return fmt.Sprintf(`{"metadata":{"namespace":"shop","name":"web"},"spec":{"parentRefs":[{%s}],"hostnames":%s},
		"status":{"parents":[{"parentRef":{"group":"gateway.networking.k8s.io","kind":"Gateway",%s},"conditions":[{"type":"Accepted","status":%q}]}]}}`, ref, hosts, ref, accepted)
}

func TestHosts(t *testing.T) {
	ingress := `{"metadata":{"namespace":"shop","name":"web"},"spec":{"ingressClassName":"public","rules":[{"host":"WWW.shop.example"},{"host":"*.shop.example"},{}]},
		"status":{"loadBalancer":{"ingress":[{"ip":"10.0.0.7"},{"hostname":"x"}]}}}`
	web := []uint16{80, 443}
	for name, tc := range map[string]struct {
		ingress, route string
		services       []edge.Service
		want           []string
	}{
		"by the address of its status": {
			ingress, "",
			[]edge.Service{balancer("in/nginx", web, "10.0.0.7", "192.0.2.7"), balancer("other/web", web, "10.0.0.9")},
			[]string{"*.shop.example in/nginx public ingress/shop/web", "www.shop.example in/nginx public ingress/shop/web"},
		},
		"the one that has a port of the web": {
			ingress, "",
			[]edge.Service{balancer("in/nginx", web, "10.0.0.7"), balancer("other/db", []uint16{5432}, "10.0.0.7")},
			[]string{"*.shop.example in/nginx public ingress/shop/web", "www.shop.example in/nginx public ingress/shop/web"},
		},
		"the one that has no other address": {
			ingress, "",
			[]edge.Service{balancer("in/nginx", web, "10.0.0.7"), balancer("other/web", web, "10.0.0.7", "10.0.0.9")},
			[]string{"*.shop.example in/nginx public ingress/shop/web", "www.shop.example in/nginx public ingress/shop/web"},
		},
		"two that may be meant": {
			ingress, "",
			[]edge.Service{balancer("in/nginx", web, "10.0.0.7"), balancer("other/web", web, "10.0.0.7")},
			[]string{"*.shop.example  public ingress/shop/web", "www.shop.example  public ingress/shop/web"},
		},
		"an old class, and no address": {
			`{"metadata":{"namespace":"shop","name":"web","annotations":{"kubernetes.io/ingress.class":"old"}},"spec":{"rules":[{"host":"a.example"}]}}`, "", nil,
			[]string{"a.example  old ingress/shop/web"},
		},
		"a route at all listeners of a Gateway": {
			"", httpRoute(`["a.shop.example","b.example"]`, "", "True"),
			[]edge.Service{balancer("gw/envoy", web, "10.0.0.8")},
			[]string{"a.shop.example gw/envoy envoy httproute/shop/web", "b.example gw/envoy envoy httproute/shop/web"},
		},
		"a route at one listener, whose names are wider": {
			"", httpRoute(`["a.shop.example","b.example","shop.example"]`, "shop", "True"),
			[]edge.Service{balancer("gw/envoy", web, "10.0.0.8")},
			[]string{"a.shop.example gw/envoy envoy httproute/shop/web"},
		},
		"a route without names has those of the listener": {
			"", httpRoute(`[]`, "", "True"),
			[]edge.Service{balancer("gw/envoy", web, "10.0.0.8")},
			[]string{"*.shop.example gw/envoy envoy httproute/shop/web"},
		},
		"a route that no Gateway has accepted": {"", httpRoute(`["a.shop.example"]`, "", "False"), []edge.Service{balancer("gw/envoy", web, "10.0.0.8")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			routes := map[string]map[string]*route{"gateways": {"gw/edge": decoded(t, "gateway", gatewayText)}}
			if tc.ingress != "" {
				routes["ingresses"] = map[string]*route{"shop/web": decoded(t, "ingress", tc.ingress)}
			}
			if tc.route != "" {
				routes["httproutes"] = map[string]*route{"shop/web": decoded(t, "httproute", tc.route)}
			}
			var got []string
			for _, h := range hostsOf(routes, tc.services) {
				if h.Namespace != "shop" {
					t.Errorf("%s is of namespace %s", h.Host, h.Namespace)
				}
				got = append(got, fmt.Sprintf("%s %s %s %s", h.Host, h.Service, h.Class, h.Why))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// routesAPI is an API server with one Ingress and one Gateway's route, which
// gives or has them, or not.
type routesAPI struct {
	mu       sync.Mutex
	forbid   bool // Ingresses and routes
	young    int  // how many requests are answered as by one that has just learned of them
	gateways bool // the Gateway API is there
	cut      chan struct{}
}

func (a *routesAPI) set(forbid, gateways bool) {
	a.mu.Lock()
	a.forbid, a.gateways = forbid, gateways
	close(a.cut)
	a.cut = make(chan struct{})
	a.mu.Unlock()
}

func (a *routesAPI) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	forbid, gateways, cut := a.forbid, a.gateways, a.cut
	young := a.young > 0 && strings.HasSuffix(r.URL.Path, "routes")
	if young {
		a.young--
	}
	a.mu.Unlock()
	group := strings.Contains(r.URL.Path, gatewayGroup)
	resource := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	w.Header().Set("Content-Type", "application/json")
	switch {
	case group && !gateways:
		status(404, metav1.StatusReasonNotFound, "the server could not find the requested resource")(w, r)
	case resource == "v1" && group:
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"gateway.networking.k8s.io/v1","resources":[{"name":"gateways"},{"name":"httproutes"}]}`)
	case strings.HasPrefix(resource, "v1"):
		status(404, metav1.StatusReasonNotFound, "the server could not find the requested resource")(w, r)
	case !group && resource != "ingresses":
		emptyLists(w, r)
	case young:
		status(429, metav1.StatusReasonTooManyRequests, "storage is (re)initializing")(w, r)
	case forbid:
		status(403, metav1.StatusReasonForbidden, resource+` is forbidden: User "gatehouse" cannot list it`)(w, r)
	case r.URL.Query().Get("watch") != "":
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-cut: // as an API server that is restarted
		}
	default:
		kind, version, item := "Ingress", networkingGroup+"/v1", `{"metadata":{"namespace":"shop","name":"web"},"spec":{"ingressClassName":"public","rules":[{"host":"www.example"}]}}`
		switch resource {
		case "gateways":
			kind, version, item = "Gateway", gatewayGroup+"/v1", gatewayText
		case "httproutes":
			kind, version, item = "HTTPRoute", gatewayGroup+"/v1", httpRoute(`["route.example"]`, "", "True")
		}
		fmt.Fprintf(w, `{"kind":"%sList","apiVersion":%q,"metadata":{"resourceVersion":"5"},"items":[%s]}`, kind, version, item)
	}
}

// TestRoutesMayBeMissing has all else read where Ingresses and routes are not
// given, or not there; and has them read once they are.
func TestRoutesMayBeMissing(t *testing.T) {
	api := &routesAPI{forbid: true, cut: make(chan struct{})}
	s := httptest.NewTLSServer(beforeStreaming(api.serve))
	defer s.CloseClientConnections()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	trust(t, path, s, "token")
	c, err := New(Options{Kubeconfig: path, Logger: slog.New(slog.DiscardHandler), Routes: true})
	must(t, err)
	c.servedInterval = 50 * time.Millisecond
	run(t, c)
	hosts := func() (names []string) {
		cluster, _ := c.Snapshot()
		for _, h := range cluster.Hosts {
			names = append(names, h.Host)
		}
		return names
	}
	until(t, c, "synced with a problem", func() bool {
		_, synced := c.Snapshot()
		return synced && len(c.Problems()) == 1
	})
	if p := c.Problems()[0]; !strings.HasPrefix(p.What, "the hosts of Ingresses and routes are not known: not allowed to list ingresses (403 Forbidden)") ||
		p.Remedy != "have an administrator run gatehouse kubeconfig, and use the file that it writes; everything else goes on" {
		t.Errorf("problem %s", p)
	}
	c.fresh.mu.Lock()
	if len(c.fresh.failing) > 0 {
		t.Errorf("it is taken for an outage: %v", c.fresh.failing)
	}
	c.fresh.mu.Unlock()

	api.set(false, false)
	until(t, c, "the host of the Ingress", func() bool { return cmp.Equal(hosts(), []string{"www.example"}) && len(c.Problems()) == 0 })
	api.young = 2
	api.set(false, true)
	until(t, c, "the host of the route", func() bool {
		if p := c.Problems(); len(p) > 0 {
			t.Errorf("the API server has just learned of it: %v", p)
		}
		return cmp.Equal(hosts(), []string{"route.example", "www.example"})
	})
	api.set(false, false)
	until(t, c, "the Gateway API gone again", func() bool { return cmp.Equal(hosts(), []string{"www.example"}) })
	if p := c.Problems(); len(p) > 0 {
		t.Errorf("problems %v", p)
	}
}

// TestRoutesAreListedOnce for commands, as far as they are given.
func TestRoutesAreListedOnce(t *testing.T) {
	for _, forbid := range []bool{false, true} {
		api := &routesAPI{forbid: forbid, gateways: true, cut: make(chan struct{})}
		s := httptest.NewTLSServer(http.HandlerFunc(api.serve))
		path := filepath.Join(t.TempDir(), "kubeconfig")
		trust(t, path, s, "token")
		c, err := New(Options{Kubeconfig: path, Logger: slog.New(slog.DiscardHandler), Routes: true})
		must(t, err)
		cluster, err := c.List(t.Context())
		must(t, err)
		if want := map[bool]int{false: 2, true: 0}[forbid]; len(cluster.Hosts) != want {
			t.Errorf("forbidden %t: hosts %v", forbid, cluster.Hosts)
		}
		s.CloseClientConnections()
		s.Close()
	}
}
