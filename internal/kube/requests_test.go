package kube

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

func TestRequestOf(t *testing.T) {
	for _, tt := range []struct{ method, url, want string }{
		{"GET", "https://10.0.0.10:6443/api/v1/services?limit=500", "list services"},
		{"GET", "https://10.0.0.10:6443/api/v1/services?watch=true", "watch services"},
		{"GET", "https://10.0.0.10:6443/apis/discovery.k8s.io/v1/endpointslices?watch=true&sendInitialEvents=true", "watch endpointslices"},
		{"GET", "https://10.0.0.10:6443/api/v1/namespaces", "list namespaces"},
		{"GET", "https://10.0.0.10:6443/api/v1/namespaces/shop/services/web", "get services"},
		{"PATCH", "https://10.0.0.10:6443/api/v1/namespaces/shop/services/web/status?fieldManager=gatehouse", "patch services/status"},
		{"POST", "https://10.0.0.10:6443/api/v1/namespaces/shop/events", "create events"},
		{"PATCH", "https://rancher.example.org/k8s/clusters/c-1/api/v1/namespaces/shop/events/web.1", "patch events"},
		{"GET", "https://10.0.0.10:6443/", "list other"},
	} {
		req, err := http.NewRequest(tt.method, tt.url, nil)
		must(t, err)
		if r := requestOf(req); r.Verb+" "+r.Resource != tt.want {
			t.Errorf("%s %s: %+v", tt.method, tt.url, r)
		}
	}
}

// A watch that the API server ends goes on where it was: nothing is listed anew.
func TestNothingButWatchesAtRest(t *testing.T) {
	var watches atomic.Int32
	s := httptest.NewServer(beforeStreaming(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" && watches.Add(1) <= 9 {
			w.Header().Set("Content-Type", "application/json")
			w.(http.Flusher).Flush()
			<-time.After(1100 * time.Millisecond) // the time that the client gives it is up, as with a real one after minutes
			return
		}
		emptyLists(w, r)
	}))
	defer s.CloseClientConnections()
	c := client(t, s.URL)
	c.shortestWatch = time.Second
	run(t, c)
	until(t, c, "synced", func() bool { _, synced := c.Snapshot(); return synced })
	c.Apply(nil)
	deadline := time.Now().Add(20 * time.Second)
	for watches.Load() < 12 {
		if time.Now().After(deadline) {
			t.Fatalf("%d watches", watches.Load())
		}
		<-time.After(5 * time.Millisecond)
	}
	for r, n := range c.Requests() {
		want := map[Request]uint64{
			{"list", "services", "2xx"}: 2, // the second one for leftovers
			{"list", "nodes", "2xx"}:    1, {"list", "endpointslices", "2xx"}: 1,
		}[r]
		if n != want && r.Verb != "watch" {
			t.Errorf("%d times %+v", n, r)
		}
	}
	if n := c.Requests()[Request{"watch", "nodes", "4xx"}]; n != 1 {
		t.Errorf("a list was streamed %d times, which it cannot", n)
	}
	if c, _ := c.Snapshot(); c.Lists != 3 {
		t.Errorf("%d lists", c.Lists)
	}
}
