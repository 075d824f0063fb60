package kube

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

// A node has an address of each family, and is one node.
func TestWhereaboutsCountNodesAndNotAddresses(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"NodeList","apiVersion":"v1","items":[
			{"metadata":{"name":"w1"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.101"},{"type":"InternalIP","address":"fd00::101"},{"type":"Hostname","address":"w1"}]}},
			{"metadata":{"name":"w2"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.102"},{"type":"InternalIP","address":"fd00::102"}]}}]}`))
	}))
	defer s.Close()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	trust(t, path, s, "secret")
	w, err := WhereaboutsOf(t.Context(), path, "gatehouse/test")
	must(t, err)
	if w.Server != "127.0.0.1" || len(w.Nodes) != 4 || w.Count != 2 {
		t.Errorf("%+v, want 127.0.0.1 with 4 addresses of 2 nodes", w)
	}
}
