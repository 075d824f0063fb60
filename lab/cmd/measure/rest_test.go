package main

import (
	"maps"
	"strings"
	"testing"
)

func TestCountRequests(t *testing.T) {
	const metrics = `# TYPE gatehouse_kubernetes_requests_total counter
gatehouse_kubernetes_requests_total{code="2xx",resource="services",verb="WATCH"} 3
gatehouse_kubernetes_requests_total{code="5xx",resource="services",verb="WATCH"} 1
gatehouse_kubernetes_requests_total{code="2xx",resource="services/status",verb="PATCH"} 1.2e+01
gatehouse_connections_total{frontend="a"} 5
`
	got, err := countRequests(strings.NewReader(metrics))
	want := map[string]float64{"WATCH services": 4, "PATCH services/status": 12}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}
