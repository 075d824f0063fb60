package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

type object = map[string]any

// apiServer is a Kubernetes API server, as far as it is asked here. It is away
// until it is told to serve.
type apiServer struct {
	addr   string
	server *http.Server

	mu      sync.Mutex
	version int
	kinds   map[string][]object // by resource
	writes  []string            // "PATCH /api/v1/namespaces/shop/services/web/status"
	gone    chan struct{}       // closed to end all watches, which are not to go on
	since   int                 // watches from before this version have to list again
}

var apiKinds = map[string][2]string{
	"/api/v1/services": {"services", "v1 ServiceList"}, "/api/v1/nodes": {"nodes", "v1 NodeList"},
	"/api/v1/namespaces":                       {"namespaces", "v1 NamespaceList"},
	"/apis/discovery.k8s.io/v1/endpointslices": {"endpointslices", "discovery.k8s.io/v1 EndpointSliceList"},
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	return &apiServer{addr: freeAddr(t), version: 10, kinds: map[string][]object{}, gone: make(chan struct{})}
}

// kubeconfig leads to it.
func (a *apiServer) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, path, fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],`+
		`"users":[{"name":"u","user":{}}],"clusters":[{"name":"c","cluster":{"server":"http://%s"}}]}`, a.addr))
	return path
}

// set makes a list all there is of a kind, so that whoever watches has to read
// it as a whole.
func (a *apiServer) set(resource string, all ...object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.since = a.version
	a.kinds[resource] = all
	close(a.gone)
	a.gone = make(chan struct{})
}

func (a *apiServer) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	a.server = &http.Server{Handler: a}
	go func() { _ = a.server.Serve(l) }()
	t.Cleanup(func() { a.server.Close() })
}

func (a *apiServer) stop() { a.server.Close() }

func (a *apiServer) written() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.writes...)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fail := func(code int, reason string) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
	}
	a.mu.Lock()
	version, since, gone := a.version, a.since, a.gone
	kind, known := apiKinds[r.URL.Path]
	all := a.kinds[kind[0]]
	if r.Method != http.MethodGet {
		body, _ := io.ReadAll(r.Body)
		a.writes = append(a.writes, r.Method+" "+r.URL.Path+" "+string(body))
	}
	a.mu.Unlock()
	q := r.URL.Query()
	switch {
	case r.Method != http.MethodGet:
		fmt.Fprint(w, `{"kind":"Service","apiVersion":"v1","metadata":{}}`)
	case !known:
		fail(404, "NotFound")
	case q.Get("sendInitialEvents") != "":
		fail(422, "Invalid")
	case q.Get("watch") != "":
		if from, _ := strconv.Atoi(q.Get("resourceVersion")); from < since {
			fail(410, "Expired")
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-gone:
		}
	default:
		api, name, _ := strings.Cut(kind[1], " ")
		if all == nil {
			all = []object{}
		}
		_ = json.NewEncoder(w).Encode(object{"kind": name, "apiVersion": api, "metadata": object{"resourceVersion": strconv.Itoa(version)}, "items": all})
	}
}

// serviceAt is a Service of one port, whose one pod is behind the node port of
// the one node.
func serviceAt(name string, port, nodePort int) (service, slice object) {
	meta := func(name string, more object) object {
		m := object{"namespace": "shop", "name": name, "uid": "u-" + name, "resourceVersion": "5", "creationTimestamp": "2026-11-22T12:00:00Z"}
		maps.Copy(m, more)
		return m
	}
	service = object{
		"metadata": meta(name, object{"annotations": object{"gatehouse.e13.dev/zones": "home", "gatehouse.e13.dev/target": "nodePort"}}),
		"spec": object{
			"type": "LoadBalancer", "loadBalancerClass": "gatehouse.e13.dev/edge", "ipFamilies": []string{"IPv4"},
			"ports": []object{{"port": port, "nodePort": nodePort, "protocol": "TCP"}},
		},
	}
	slice = object{
		"metadata":    meta(name+"-1", object{"labels": object{"kubernetes.io/service-name": name}}),
		"addressType": "IPv4", "ports": []object{{"port": 8080, "protocol": "TCP"}},
		"endpoints": []object{{"addresses": []string{"10.244.0.7"}, "nodeName": "w1", "conditions": object{"ready": true}}},
	}
	return service, slice
}

// announced is the Service as the API server has it once gatehouse has written
// its status.
func announced(service object, addr string) object {
	service, meta := maps.Clone(service), maps.Clone(service["metadata"].(object))
	meta["resourceVersion"] = "6"
	meta["managedFields"] = []object{{
		"manager": "gatehouse", "operation": "Update", "subresource": "status", "apiVersion": "v1", "fieldsType": "FieldsV1", "time": "2026-11-22T12:00:01Z",
		"fieldsV1": object{"f:status": object{"f:loadBalancer": object{"f:ingress": object{}}}},
	}}
	service["metadata"], service["status"] = meta, object{"loadBalancer": object{"ingress": []object{{"ip": addr, "ipMode": "Proxy"}}}}
	return service
}

func nodeAt(addr string) object {
	return object{
		"metadata": object{"name": "w1", "resourceVersion": "3"},
		"status":   object{"addresses": []object{{"type": "InternalIP", "address": addr}}},
	}
}
