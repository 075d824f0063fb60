package web

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"reflect"
	"regexp"
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
		Cluster: &status.Cluster{Synced: true, Services: 2, Nodes: 3, Requests: []status.Requests{{Verb: "watch", Resource: "services", Code: "2xx", Count: 301}}},
		Pools: []status.Pool{
			{Name: "home-v4", Zone: "home", Addresses: 16, Given: 2, Held: 1, Free: 11, Unusable: 2, Families: []status.PoolFamily{{Family: "ipv4", Addresses: 16, Given: 2, Held: 1, Free: 11, Unusable: 2}}},
			{Name: "home-v6", Zone: "home", Addresses: status.Many, Free: status.Many, Families: []status.PoolFamily{{Family: "ipv6", Addresses: status.Many, Free: status.Many}}},
		},
		Addresses: []status.Address{
			{Addr: netip.MustParseAddr("10.11.12.70"), Pool: "home-v4", Zone: "home", Device: "eth1", Services: []string{"shop/web", "shop/api"}, State: status.AddressReady},
			{Addr: netip.MustParseAddr("10.11.12.71"), Pool: "home-v4", Zone: "home", Device: "eth1", Services: []string{"shop/mail"}, State: status.AddressConflict, Conflict: "52:54:00:00:00:07"},
			{Addr: netip.MustParseAddr("10.11.12.72"), Pool: "home-v4", Zone: "home", Services: []string{"shop/old"}, State: status.AddressHeld, Until: time.Now().Add(40*time.Second + 400*time.Millisecond)},
		},
		Exposures: []desired.Exposure{
			{Name: "shop/web:80", Service: "shop/web", Zone: "home", Port: 80, Protocol: edge.TCP, Open: true, Why: "service/shop/web", ClientSeen: true},
			{Name: "shop/web:80", Service: "shop/web", Zone: "internet", Port: 80, Protocol: edge.TCP, Open: true, Why: "service/shop/web"},
			{Name: "shop/<b>:81", Service: "shop/b", Zone: "home", Port: 81, Code: "ProtocolNotSupported", Reason: "SCTP is not supported yet", Why: "service/shop/b"},
		},
		Frontends: []status.Frontend{{
			Name: "shop/web:80", Zone: "home", Protocol: edge.TCP, Listen: "@eth1:80", Health: "tcp every 5s", Balance: edge.BalanceRandom,
			Client:         "this machine's address: the connection is relayed",
			ClientRemedy:   "annotation gatehouse.e13.dev/send-proxy-protocol: v2 (if the application understands it), or annotation gatehouse.e13.dev/transparent: \"true\"",
			MaxConnections: 20000, MaxConnectionsPerClient: 2001, IdleTimeout: status.Duration(90 * time.Minute),
			Traffic: status.Traffic{
				Accepted: 7, Active: 2, Received: 1500, Sent: 3_000_000,
				Failures: map[string]uint64{"no_backend": 4},
				Waiting:  1, AcceptErrors: 11,
				Ended: map[status.Ending]uint64{status.Finished: 21, status.Reset: 22, status.IdleTimeout: 23, status.DrainTimeout: 24, status.Lost: 25, status.Cut: 0},
			},
			Drain: status.Drain{DrainTimeout: status.Duration(5 * time.Minute)},
			Backends: []status.Backend{
				{Addr: "10.0.0.101:30080", Node: "w1", State: edge.Up, Share: 0.25, Total: 3, Active: 2, Failures: 6},
				{Addr: "10.0.0.102:30080", State: edge.Down, Error: "connection refused", Since: time.Unix(1700000123, 0)},
				{Addr: "10.0.0.103:30080", State: status.Draining, Total: 9, Active: 8, Drain: status.DrainFrom(time.Now().Add(-time.Minute), 5*time.Minute)},
				{Addr: "10.0.0.104:30080", State: status.Draining, Active: 7, Drain: status.DrainFrom(time.Now().Add(-time.Hour), 0)},
			},
		}, {
			// On the same port: only the protocol tells the two apart.
			Name: "shop/web:80", Zone: "home", Protocol: edge.UDP, Listen: "@eth1:80", Balance: edge.BalanceRandom, IdleTimeout: status.Duration(30 * time.Second),
			Traffic: status.Traffic{
				Accepted: 31, Failures: map[string]uint64{"client_limit": 32}, Packets: &status.Packets{Received: 33, Sent: 34, Dropped: 35},
			},
			Backends: []status.Backend{{Addr: "10.0.0.101:30080", State: edge.Up, Unprobed: true, Share: 1}},
		}, {
			Name: "shop/git:443", Zone: "internet", Protocol: edge.TCP, Listen: "@veth0:443", Hostnames: []string{"git.example.org", "*.git.example.org"},
			Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, AcceptProxyProtocol: []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32")},
			MaxConnections: 20000, MaxRatePerClient: status.Rate{Connections: 100, Per: 10 * time.Second}, BanTime: status.Duration(time.Hour),
			Balance: edge.BalanceSource, AffinityTimeout: status.Duration(3 * time.Hour), SendProxyProtocol: edge.ProxyProtocolV2,
			Health: "http /healthz every 5s, wants 200-399", WhenAllDown: "refuse", OnDown: "close",
			Client: "the client's, in a PROXY protocol v2 header", ClientSeen: true,
			Traffic: status.Traffic{
				Accepted: 51, Active: 52, Received: 53, Sent: 54, Ended: map[status.Ending]uint64{status.BackendDown: 55},
				Failures: map[string]uint64{"rate_limit": 56, "banned": 57},
			},
			Bans: 5, Banned: []status.Ban{{Client: "203.0.113.7", Until: time.Now().Add(125 * time.Second)}, {Client: "2001:db8:1:2::/64", Until: time.Now().Add(time.Hour)}},
			Backends: []status.Backend{
				{Addr: "10.0.0.101:30443", Node: "w1", State: edge.Up, Weight: 2, Share: 1, Total: 58, Active: 52},
				{Addr: "10.0.0.102:30443", Node: "w2", State: edge.Down, Weight: 1, Error: "GET /healthz: 503"},
			},
		}, {
			Name: "rest", Zone: "internet", Protocol: edge.TCP, Listen: "@veth0:443", Hostnames: []string{"*"}, Balance: edge.BalanceLeastConnections, Transparent: true,
			Client: "the client's own", ClientSeen: true, Traffic: status.Traffic{Accepted: 61},
			BanTime: status.Duration(time.Minute), MaxRatePerClient: status.Rate{Connections: 20, Per: time.Second},
			Backends: []status.Backend{{Addr: "10.0.0.103:443", State: edge.Up, Weight: 1, Share: 1}},
		}, {
			Name: "old", Protocol: edge.TCP, Listen: "127.0.0.1:81", Traffic: status.Traffic{Active: 41}, Drain: status.DrainFrom(time.Now().Add(-time.Second), time.Hour),
		}, {
			Name: "shop/api:443", Zone: "home", DataPlane: edge.DataPlaneNAT, Protocol: edge.TCP, Listen: "@eth1:443", Balance: edge.BalanceSource,
			Client: "the client's own", ClientSeen: true,
			Traffic: status.Traffic{Accepted: 81, Active: 82, Received: 8300, Sent: 8400, Packets: &status.Packets{Received: 85, Sent: 86}},
			Backends: []status.Backend{
				{Addr: "10.244.1.7:8443", Node: "w1", State: edge.Up, Since: time.Unix(1700000124, 0), Weight: 1, Share: 1, Total: 87, Active: 88, Received: 8900, Sent: 9000, Packets: &status.Packets{Received: 91, Sent: 92}},
				{Addr: "10.244.2.7:8443", Node: "w2", State: status.Draining, Active: 93, Drain: status.DrainFrom(time.Now(), 0)},
			},
		}, {
			// It was relayed before.
			Name: "shop/api:443", Zone: "home", DataPlane: edge.DataPlaneProxy, Protocol: edge.TCP, Listen: "@eth1:443", Traffic: status.Traffic{Active: 94},
			Backends: []status.Backend{{Addr: "10.244.1.7:8443", State: status.Draining, Active: 94, Drain: status.DrainFrom(time.Now(), 0)}},
			Drain:    status.DrainFrom(time.Now(), 0),
		}},
		Work: &status.Work{
			Decisions:   status.Timing{Count: 3, Seconds: 0.05, Within: []uint64{0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3}},
			NATFailures: 131, NATMended: 132, ChecksPassed: status.Timing{Count: 133}, ChecksFailed: status.Timing{Count: 134},
			StateSavedAt: time.Unix(1700000456, 0),
		},
		Conntrack: &status.Conntrack{Entries: 240000, Max: 262144},
		Router:    sampleRouter(),
		Routes:    []edge.Route{{Dst: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.0.0.101"), Why: "node/w1"}},
		Listeners: []status.Listener{{
			Zone: "internet", Protocol: edge.TCP, Listen: "@veth0:443", Routed: 112, Traffic: status.Traffic{
				Accepted: 123, Active: 5, Waiting: 3, Failures: map[string]uint64{"not_tls": 71, "unknown_name": 72}, AcceptErrors: 73, Ended: map[status.Ending]uint64{status.Finished: 75},
			},
			Backends: []status.Backend{{Addr: "10.0.0.103:443", State: status.Draining, Active: 2, Drain: status.DrainFrom(time.Now(), 0)}},
		}, {
			Protocol: edge.UDP, Listen: "10.0.0.1:444", Drain: status.DrainFrom(time.Now(), 0),
			Traffic: status.Traffic{Waiting: 1, Packets: &status.Packets{Dropped: 74}},
		}},
		Problems: []edge.Problem{{Object: "service/shop/b", What: "SCTP is not supported yet"}},
	}
}

func sampleRouter() status.Router {
	return status.Router{
		Firewall: &status.Firewall{
			Applied: true, Pinholes: 7, Policies: []status.Policy{
				{What: "cluster -> internet: everything", Allow: true, Packets: 201, Pos: edge.Pos{File: "gatehouse.yaml", Line: 12, Col: 7}},
				{What: "home -> cluster: 10.0.0.10 22/TCP", Packets: 202, Pos: edge.Pos{File: "gatehouse.yaml", Line: 13, Col: 7}},
			},
			Dropped: []status.Dropped{{From: "", To: "self", Packets: 203}, {From: "internet", To: "cluster", Packets: 204}},
		},
		Links: []status.Link{
			{Name: "eth0", Kind: "device", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
			{Name: "veth0", Kind: "macvlan", Made: true, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.11.12.51/24")}, Lease: &edge.LinkLease{Server: netip.MustParseAddr("10.11.12.1"), Expires: time.Now().Add(90 * time.Minute)}},
		},
		DHCP: []status.DHCPZone{{
			Zone: "cluster", Size: 100, Free: 98, Messages: map[string]uint64{"DISCOVER": 205, "ACK": 206}, Leases: []edge.Lease{
				{Zone: "cluster", Addr: netip.MustParseAddr("10.0.0.11"), MAC: "02:00:00:00:00:11", Hostname: "worker-1", Reserved: true, Expires: time.Now().Add(11*time.Hour + 90*time.Second)},
				{Zone: "cluster", Addr: netip.MustParseAddr("10.0.0.100"), MAC: "02:00:00:00:00:42", Hostname: "<i>tv", Expires: time.Now().Add(time.Hour)},
				{Zone: "cluster", Addr: netip.MustParseAddr("10.0.0.101"), Declined: true, Expires: time.Now().Add(time.Hour)},
			},
		}, {Zone: "lab", Error: "interface eth2 has no IPv4 address"}},
		Advertised: []status.Advertised{{Zone: "cluster", Interface: "eth0", Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:10::/64")}, Sent: 5, Answered: 4, Requests: 3, Replies: 2}},
		DNS: &status.DNS{
			Zones:     []status.DNSZone{{Zone: "home", Names: 12, Queries: map[string]uint64{"UDP": 207, "TCP": 1}, Answers: map[string]uint64{"NOERROR": 200, "NXDOMAIN": 8}, Own: 20, CacheHits: 180, Forwarded: 8, Limited: 3, Rebinding: 2}},
			Upstreams: []status.Upstream{{Server: "9.9.9.9:853 (dns.quad9.net)", Up: true, Queries: 8}, {Server: "10.11.12.1:53", Queries: 4, Failed: 4, Error: "no answer within 2s"}},
			Cached:    321,
		},
	}
}

func ask(t *testing.T, s status.Status, method, path string) (int, string) {
	t.Helper()
	server := httptest.NewServer(New(Source{Status: func() status.Status { return s }}, slog.New(slog.DiscardHandler)).Handler())
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
		`gatehouse_problems{kind="service"} 1`,
		`gatehouse_problems{kind="nat"} 0`,
		`gatehouse_kubernetes_synced 1`,
		`gatehouse_kubernetes_connected 1`,
		`gatehouse_exposures{open="true",zone="home"} 1`,
		`gatehouse_exposures{open="true",zone="internet"} 1`,
		`gatehouse_exposures{open="false",zone="home"} 1`,
		`gatehouse_exposures{open="false",zone="internet"} 0`,
		`gatehouse_exposures_closed{reason="ProtocolNotSupported",zone="home"} 1`,
		`gatehouse_frontend_up{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1`,
		`gatehouse_frontend_connections_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 7`,
		`gatehouse_frontend_connections_active{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 2`,
		`gatehouse_frontend_received_bytes_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1500`,
		`gatehouse_frontend_sent_bytes_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 3e+06`,
		`gatehouse_frontend_failures_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",reason="no_backend",zone="home"} 4`,
		`gatehouse_backend_up{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1`,
		`gatehouse_backend_up{backend="10.0.0.102:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 0`,
		`gatehouse_backend_connections_total{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 3`,
		`gatehouse_backend_share_ratio{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 0.25`,
		`gatehouse_frontend_connections_waiting{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1`,
		`gatehouse_frontend_connections_limit{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 20000`,
		`gatehouse_frontend_client_connections_limit{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 2001`,
		`gatehouse_frontend_idle_timeout_seconds{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 5400`,
		`gatehouse_frontend_idle_timeout_seconds{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",zone="home"} 30`,
		`gatehouse_frontend_drain_timeout_seconds{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 300`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="finished",listen="@eth1:80",protocol="TCP",zone="home"} 21`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="reset",listen="@eth1:80",protocol="TCP",zone="home"} 22`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="idle_timeout",listen="@eth1:80",protocol="TCP",zone="home"} 23`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="drain_timeout",listen="@eth1:80",protocol="TCP",zone="home"} 24`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="lost",listen="@eth1:80",protocol="TCP",zone="home"} 25`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/web:80",how="cut",listen="@eth1:80",protocol="TCP",zone="home"} 0`,
		`gatehouse_frontend_accept_errors_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 11`,
		`gatehouse_frontend_connections_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",zone="home"} 31`,
		`gatehouse_frontend_failures_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",reason="client_limit",zone="home"} 32`,
		`gatehouse_frontend_received_packets_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",zone="home"} 33`,
		`gatehouse_frontend_sent_packets_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",zone="home"} 34`,
		`gatehouse_frontend_dropped_packets_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP",zone="home"} 35`,
		`gatehouse_frontend_up{data_plane="proxy",frontend="old",listen="127.0.0.1:81",protocol="TCP",zone=""} 0`,
		`gatehouse_backend_connections_active{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 2`,
		`gatehouse_backend_failures_total{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 6`,
		`gatehouse_backend_draining{backend="10.0.0.101:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 0`,
		`gatehouse_backend_draining{backend="10.0.0.103:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1`,
		`gatehouse_backend_up{backend="10.0.0.103:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 0`,
		`gatehouse_backend_weight{backend="10.0.0.101:30443",data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",zone="internet"} 2`,
		`gatehouse_frontend_connections_ended_total{data_plane="proxy",frontend="shop/git:443",how="backend_down",listen="@veth0:443",protocol="TCP",zone="internet"} 55`,
		`gatehouse_frontend_failures_total{data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",reason="banned",zone="internet"} 57`,
		`gatehouse_frontend_client_connections_per_second_limit{data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",zone="internet"} 10`,
		`gatehouse_frontend_ban_time_seconds{data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",zone="internet"} 3600`,
		`gatehouse_frontend_banned_clients{data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",zone="internet"} 5`,
		`gatehouse_frontend_banned_clients{data_plane="proxy",frontend="rest",listen="@veth0:443",protocol="TCP",zone="internet"} 0`,
		`gatehouse_frontend_affinity_timeout_seconds{data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",zone="internet"} 10800`,
		`gatehouse_frontend_info{balance="source",data_plane="proxy",frontend="shop/git:443",listen="@veth0:443",protocol="TCP",send_proxy_protocol="v2",transparent="false",zone="internet"} 1`,
		`gatehouse_frontend_info{balance="leastConnections",data_plane="proxy",frontend="rest",listen="@veth0:443",protocol="TCP",send_proxy_protocol="none",transparent="true",zone="internet"} 1`,
		`gatehouse_exposure_client_address_seen{frontend="shop/web:80",protocol="TCP",zone="home"} 1`,
		`gatehouse_exposure_client_address_seen{frontend="shop/web:80",protocol="TCP",zone="internet"} 0`,
		`gatehouse_listener_up{listen="@veth0:443",protocol="TCP",zone="internet"} 1`,
		`gatehouse_listener_up{listen="10.0.0.1:444",protocol="UDP",zone=""} 0`,
		`gatehouse_listener_connections_total{listen="@veth0:443",protocol="TCP",zone="internet"} 123`,
		`gatehouse_listener_connections_active{listen="@veth0:443",protocol="TCP",zone="internet"} 5`,
		`gatehouse_listener_connections_waiting{listen="@veth0:443",protocol="TCP",zone="internet"} 3`,
		`gatehouse_listener_connections_routed_total{listen="@veth0:443",protocol="TCP",zone="internet"} 112`,
		`gatehouse_listener_failures_total{listen="@veth0:443",protocol="TCP",reason="not_tls",zone="internet"} 71`,
		`gatehouse_listener_accept_errors_total{listen="@veth0:443",protocol="TCP",zone="internet"} 73`,
		`gatehouse_listener_dropped_packets_total{listen="10.0.0.1:444",protocol="UDP",zone=""} 74`,
		`gatehouse_frontend_info{balance="source",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",send_proxy_protocol="none",transparent="false",zone="home"} 1`,
		`gatehouse_frontend_up{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 1`,
		`gatehouse_frontend_connections_total{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 81`,
		`gatehouse_frontend_connections_active{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 82`,
		`gatehouse_frontend_received_bytes_total{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 8300`,
		`gatehouse_frontend_sent_bytes_total{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 8400`,
		`gatehouse_frontend_received_packets_total{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 85`,
		`gatehouse_frontend_sent_packets_total{data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 86`,
		`gatehouse_backend_connections_total{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 87`,
		`gatehouse_backend_connections_active{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 88`,
		`gatehouse_backend_received_bytes_total{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 8900`,
		`gatehouse_backend_sent_bytes_total{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 9000`,
		`gatehouse_backend_received_packets_total{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 91`,
		`gatehouse_backend_sent_packets_total{backend="10.244.1.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 92`,
		`gatehouse_backend_draining{backend="10.244.2.7:8443",data_plane="nat",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 1`,
		`gatehouse_frontend_connections_active{data_plane="proxy",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 94`,
		`gatehouse_backend_connections_active{backend="10.244.1.7:8443",data_plane="proxy",frontend="shop/api:443",listen="@eth1:443",protocol="TCP",zone="home"} 94`,
		`gatehouse_kubernetes_loss_held 0`,
		`gatehouse_kubernetes_requests_total{code="2xx",resource="services",verb="watch"} 301`,
		`gatehouse_pool_addresses{family="ipv4",pool="home-v4",state="given"} 2`,
		`gatehouse_pool_addresses{family="ipv4",pool="home-v4",state="held"} 1`,
		`gatehouse_pool_addresses{family="ipv4",pool="home-v4",state="free"} 11`,
		`gatehouse_pool_addresses{family="ipv4",pool="home-v4",state="unusable"} 2`,
		`gatehouse_pool_addresses{family="ipv6",pool="home-v6",state="free"} 1.8446744073709552e+19`,
		`gatehouse_service_addresses{family="ipv4",pool="home-v4",state="ready"} 1`,
		`gatehouse_service_addresses{family="ipv4",pool="home-v4",state="conflict"} 1`,
		`gatehouse_service_addresses{family="ipv4",pool="home-v4",state="held"} 1`,
		`gatehouse_service_addresses{family="ipv4",pool="home-v4",state="pending"} 0`,
		`gatehouse_service_addresses{family="ipv6",pool="home-v6",state="ready"} 0`,
		`gatehouse_backend_state_change_timestamp_seconds{backend="10.0.0.102:30080",data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP",zone="home"} 1.700000123e+09`,
		`gatehouse_decision_duration_seconds_bucket{le="0.01"} 2`,
		`gatehouse_decision_duration_seconds_bucket{le="0.1"} 3`,
		`gatehouse_decision_duration_seconds_bucket{le="+Inf"} 3`,
		`gatehouse_decision_duration_seconds_sum 0.05`,
		`gatehouse_nat_apply_duration_seconds_bucket{le="5"} 0`,
		`gatehouse_nat_apply_duration_seconds_count 0`,
		`gatehouse_nat_apply_failures_total 131`,
		`gatehouse_nat_rules_mended_total 132`,
		`gatehouse_health_check_duration_seconds_count{result="passed"} 133`,
		`gatehouse_health_check_duration_seconds_count{result="failed"} 134`,
		`gatehouse_state_saved_timestamp_seconds 1.700000456e+09`,
		`gatehouse_kubernetes_services 2`,
		`gatehouse_kubernetes_nodes 3`,
		`gatehouse_kubernetes_from_saved_state 0`,
		`gatehouse_conntrack_entries 240000`,
		`gatehouse_conntrack_entries_limit 262144`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	// Nothing is said of what is not limited, and of packets where there are none.
	for _, none := range []string{
		`connections_limit{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP"`, `drain_timeout_seconds{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="UDP"`,
		`idle_timeout_seconds{data_plane="proxy",frontend="old"`, `info{balance="",`, `banned_clients{data_plane="proxy",frontend="shop/web:80"`, `client_address_seen{frontend="shop/<b>:81"`,
		// Whoever comes from outside makes no series, and no address has one.
		"10.11.12.7", "52:54",
		"203.0.113", "2001:db8",
		`packets_total{data_plane="proxy",frontend="shop/web:80",listen="@eth1:80",protocol="TCP"`,
		// The kernel does not say it, and a relay's backend is not counted apart.
		`waiting{data_plane="nat",frontend="shop/api:443"`, `accept_errors_total{data_plane="nat",frontend="shop/api:443"`, `dropped_packets_total{data_plane="nat",frontend="shop/api:443"`,
		`failures_total{backend="10.244.1.7:8443",data_plane="nat"`, `received_bytes_total{backend="10.0.0.101:30080"`, `packets_total{backend="10.244.2.7:8443"`,
	} {
		if strings.Contains(body, none) {
			t.Errorf("there is %s", none)
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

func TestNothingCanBeChanged(t *testing.T) {
	for _, path := range []string{"/", "/events", "/explain", "/status.json", "/metrics", "/readyz"} {
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
	type drain struct {
		Draining                     bool
		ActiveConnections            uint64
		DrainTimeout                 string
		DrainingSince, DrainingUntil time.Time
	}
	var got struct {
		Ready     bool
		Exposures []struct{ Name, Zone, Reason string }
		Frontends []struct {
			drain
			AcceptedConnections, WaitingConnections, MaxConnections uint64
			DataPlane, IdleTimeout, DrainTimeout                    string
			EndedConnections, Packets                               map[string]uint64
			Hostnames, AcceptProxyProtocol                          []string
			MaxRatePerClient, BanTime, Balance, AffinityTimeout     string
			Health, WhenAllDown, OnDown, SendProxyProtocol          string
			Transparent, ClientAddressSeen                          bool
			ClientAddress, ClientAddressRemedy                      string
			Bans                                                    int
			Banned                                                  []struct{ Client, Until string }
			Backends                                                []drain
		}
		Conntrack struct{ Entries, Max int }
		Routes    []struct{ Dst, Via, Why string }
		Listeners []struct {
			Zone, Protocol, Listen                                     string
			AcceptedConnections, WaitingConnections, RoutedConnections uint64
			Failures                                                   map[string]uint64
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if !got.Ready || len(got.Exposures) != 3 || got.Exposures[2].Reason == "" || got.Frontends[0].AcceptedConnections != 7 {
		t.Errorf("got %+v", got)
	}
	f, udp := got.Frontends[0], got.Frontends[1]
	if f.WaitingConnections != 1 || f.MaxConnections != 20000 || f.IdleTimeout != "1h30m" || f.DrainTimeout != "5m" || f.EndedConnections["lost"] != 25 || f.Draining {
		t.Errorf("got %+v", f)
	}
	if f.Packets != nil || udp.Packets["dropped"] != 35 || udp.DrainTimeout != "" {
		t.Errorf("packets: %v and %v", f.Packets, udp.Packets)
	}
	git, rest := got.Frontends[2], got.Frontends[3]
	if git.Hostnames[1] != "*.git.example.org" || git.AcceptProxyProtocol[0] != "203.0.113.9/32" || git.MaxRatePerClient != "100/10s" || git.BanTime != "1h" ||
		git.Balance != "source" || git.AffinityTimeout != "3h" || git.Health != "http /healthz every 5s, wants 200-399" || git.WhenAllDown != "refuse" ||
		git.OnDown != "close" || git.SendProxyProtocol != "v2" || git.Transparent || !rest.Transparent || rest.SendProxyProtocol != "" ||
		!git.ClientAddressSeen || git.ClientAddress == "" || f.ClientAddressSeen || f.ClientAddressRemedy == "" ||
		git.Bans != 5 || git.Banned[1].Client != "2001:db8:1:2::/64" || git.Banned[1].Until == "" || udp.MaxRatePerClient != "" {
		t.Errorf("got %+v\nand %+v", git, rest)
	}
	if l := got.Listeners[0]; l.Zone != "internet" || l.Protocol != "TCP" || l.Listen != "@veth0:443" || l.AcceptedConnections != 123 ||
		l.WaitingConnections != 3 || l.RoutedConnections != 112 || l.Failures["not_tls"] != 71 {
		t.Errorf("got %+v", l)
	}
	if nat := got.Frontends[5]; nat.DataPlane != "nat" || nat.Packets["received"] != 85 || len(nat.Packets) != 2 || nat.EndedConnections != nil {
		t.Errorf("what the kernel moves: %+v", nat)
	}
	if c := got.Conntrack; c.Entries != 240000 || c.Max != 262144 || len(got.Routes) != 1 || got.Routes[0].Via != "10.0.0.101" || got.Routes[0].Dst != "10.244.1.0/24" {
		t.Errorf("got %+v %+v", c, got.Routes)
	}
	if b := f.Backends[0]; b != (drain{ActiveConnections: 2}) {
		t.Errorf("a backend that is there: %+v", b)
	}
	b := f.Backends[2]
	if !b.Draining || b.ActiveConnections != 8 || b.DrainTimeout != "5m" || b.DrainingUntil.Sub(b.DrainingSince) != 5*time.Minute {
		t.Errorf("a draining backend: %+v", b)
	}
	if b := f.Backends[3]; !b.Draining || b.DrainTimeout != "" || b.DrainingSince.IsZero() || !b.DrainingUntil.IsZero() {
		t.Errorf("a backend that drains until its connections end: %+v", b)
	}
}

// What is served can be read again: gatehouse status does.
func TestStatusJSONIsReadBack(t *testing.T) {
	_, body := ask(t, sample(), "GET", "/status.json")
	var read status.Status
	if err := json.Unmarshal([]byte(body), &read); err != nil {
		t.Fatal(err)
	}
	if _, again := ask(t, read, "GET", "/status.json"); again != body {
		t.Errorf("read back it is\n%s\nwant\n%s", again, body)
	}
}

// docs/api.md has every field, in backquotes, or docs/commands.md if plan says it,
// too; docs/metrics.md is generated.
func TestWhatIsSaidIsDocumented(t *testing.T) {
	var data []byte
	for _, name := range []string{"api.md", "commands.md"} {
		page, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, page...)
	}
	documented := map[string]bool{}
	for _, code := range regexp.MustCompile("`[^`\n]+`").FindAllString(string(data), -1) {
		for _, word := range regexp.MustCompile(`\w+`).FindAllString(code, -1) {
			documented[word] = true
		}
	}
	fields := map[string]bool{}
	jsonFields(reflect.TypeFor[status.Status](), fields)
	for name := range fields {
		if !documented[name] {
			t.Errorf("docs/api.md does not say what the field %s is", name)
		}
	}
	if len(fields) < 60 {
		t.Errorf("%d fields: the test does not look right", len(fields))
	}
}

// jsonFields collects the names that a type's fields have in JSON.
func jsonFields(of reflect.Type, names map[string]bool) {
	switch of.Kind() {
	case reflect.Pointer, reflect.Slice:
		jsonFields(of.Elem(), names)
	case reflect.Struct:
		if of.PkgPath() == "time" || of.PkgPath() == "net/netip" {
			return
		}
		for _, f := range reflect.VisibleFields(of) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				names[name] = true
				jsonFields(f.Type, names)
			}
		}
	default:
	}
}
