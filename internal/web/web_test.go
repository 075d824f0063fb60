package web

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

func sample() status.Status {
	return status.Status{
		Version: "v1", StartedAt: time.Now().Add(-time.Minute), Ready: true,
		Config:  status.Config{Files: []string{"gatehouse.yaml"}, LoadedAt: time.Unix(1700000000, 0), Current: true},
		Cluster: &status.Cluster{Synced: true, Services: 2, Nodes: 3},
		Exposures: []desired.Exposure{
			{Name: "shop/web:80", Service: "shop/web", Zone: "home", Port: 80, Open: true, Why: "service/shop/web"},
			{Name: "shop/<b>:81", Service: "shop/b", Zone: "home", Port: 81, Reason: "UDP is not supported yet", Why: "service/shop/b"},
		},
		Frontends: []status.Frontend{{
			Name: "shop/web:80", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:80", Accepted: 7, Active: 2, Received: 1500, Sent: 3_000_000,
			Failures: map[string]uint64{"no_backend": 4},
			Backends: []status.Backend{{Addr: "10.0.0.101:30080", Node: "w1", State: edge.Up, Share: 0.25, Total: 3}, {Addr: "10.0.0.102:30080", State: edge.Down, Error: "connection refused"}},
		}},
		Problems: []edge.Problem{{Object: "service/shop/b", What: "UDP is not supported yet"}},
	}
}

func ask(t *testing.T, s status.Status, method, path string) (int, string) {
	t.Helper()
	server := httptest.NewServer(New(func() status.Status { return s }, slog.New(slog.DiscardHandler)).Handler())
	defer server.Close()
	req, err := http.NewRequest(method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestMetricsAreThoseOfTheStatus(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/metrics")
	for _, want := range []string{
		`gatehouse_build_info{version="v1"} 1`,
		`gatehouse_ready 1`,
		`gatehouse_config_last_reload_successful 1`,
		`gatehouse_config_last_reload_success_timestamp_seconds 1.7e+09`,
		`gatehouse_problems 1`,
		`gatehouse_kubernetes_synced 1`,
		`gatehouse_kubernetes_connected 1`,
		`gatehouse_exposures{open="true",zone="home"} 1`,
		`gatehouse_exposures{open="false",zone="home"} 1`,
		`gatehouse_frontend_up{frontend="shop/web:80",listen="@eth1:80",zone="home"} 1`,
		`gatehouse_frontend_connections_total{frontend="shop/web:80",listen="@eth1:80",zone="home"} 7`,
		`gatehouse_frontend_connections_active{frontend="shop/web:80",listen="@eth1:80",zone="home"} 2`,
		`gatehouse_frontend_received_bytes_total{frontend="shop/web:80",listen="@eth1:80",zone="home"} 1500`,
		`gatehouse_frontend_sent_bytes_total{frontend="shop/web:80",listen="@eth1:80",zone="home"} 3e+06`,
		`gatehouse_frontend_failures_total{frontend="shop/web:80",listen="@eth1:80",reason="no_backend",zone="home"} 4`,
		`gatehouse_backend_up{backend="10.0.0.101:30080",frontend="shop/web:80",listen="@eth1:80",zone="home"} 1`,
		`gatehouse_backend_up{backend="10.0.0.102:30080",frontend="shop/web:80",listen="@eth1:80",zone="home"} 0`,
		`gatehouse_backend_connections_total{backend="10.0.0.101:30080",frontend="shop/web:80",listen="@eth1:80",zone="home"} 3`,
		`gatehouse_backend_share_ratio{backend="10.0.0.101:30080",frontend="shop/web:80",listen="@eth1:80",zone="home"} 0.25`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(body)
	}
}

func TestReadyzSaysWhatIsWaitedFor(t *testing.T) {
	s := sample()
	if code, body := ask(t, s, "GET", "/readyz"); code != 200 || body != "ready\n" {
		t.Errorf("got %d %q", code, body)
	}
	s.Ready, s.NotReady = false, []string{"the Kubernetes API"}
	if code, body := ask(t, s, "GET", "/readyz"); code != 503 || body != "waiting for the Kubernetes API\n" {
		t.Errorf("got %d %q", code, body)
	}
	if code, _ := ask(t, s, "GET", "/healthz"); code != 200 {
		t.Errorf("/healthz answers %d while not ready", code)
	}
}

func TestPageEscapesWhatOthersWrote(t *testing.T) {
	code, body := ask(t, sample(), "GET", "/")
	if code != 200 || strings.Contains(body, "<b>") || !strings.Contains(body, "shop/&lt;b&gt;:81") {
		t.Errorf("got %d:\n%s", code, body)
	}
	for _, want := range []string{"UDP is not supported yet", "@eth1:80", "1.5 kB", "3.0 MB", "25.0 %", "connection refused"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	for _, path := range []string{"/", "/status.json", "/metrics", "/readyz"} {
		if code, _ := ask(t, sample(), "POST", path); code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s answers %d", path, code)
		}
	}
	if code, _ := ask(t, sample(), "GET", "/nothing"); code != http.StatusNotFound {
		t.Errorf("GET /nothing answers %d", code)
	}
}

func TestStatusJSONIsTheStatus(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/status.json")
	var got struct {
		Ready     bool
		Exposures []struct{ Name, Zone, Reason string }
		Frontends []struct{ AcceptedConnections uint64 }
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if !got.Ready || len(got.Exposures) != 2 || got.Exposures[1].Reason == "" || got.Frontends[0].AcceptedConnections != 7 {
		t.Errorf("got %+v", got)
	}
}
