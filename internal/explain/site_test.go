package explain

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
)

// siteFile is the configuration of all tests. The lines are in the goldens.
const siteFile = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
  cluster:  {interfaces: [eth0]}
pools:
  - {name: small, zone: home, addresses: [10.11.12.64-10.11.12.65], labels: pool=small}
  - {name: theirs, zone: home, addresses: [10.11.12.80], labels: pool=theirs}
frontends:
  - name: git-ssh
    zones: [home]
    port: 22
    backends: [{address: "10.0.0.101:30022"}]
  - {name: everywhere, listen: ":8080", backends: [{address: "10.0.0.101:8080"}]}
  - {name: one-address, listen: "10.0.0.1:8081", backends: [{address: "10.0.0.101:8080"}]}
  - {name: looped, listen: "127.0.0.1:8082", backends: [{address: "10.0.0.101:8080"}]}
  - {name: named-host, listen: "edge.example.org:8083", backends: [{address: "10.0.0.101:8080"}]}
kubernetes:
  selector: "tier!=none"
  allow:
    internet: {namespaces: [public]}
  apiServer: {zones: [home]}
admin: {listen: "127.0.0.1:9180", zones: [cluster], tokenFile: /etc/gatehouse/token}
`

// site is what everything in these tests is decided from: eth0 10.0.0.1 faces the
// cluster, eth1 10.11.12.32 the home LAN, veth0 10.11.12.51 the Internet.
type site struct {
	desired.Inputs
	back map[netip.Addr]string
}

func newSite(t testing.TB, file string, services ...edge.Service) *site {
	t.Helper()
	c, problems := config.Parse([]config.File{{Name: "gatehouse.yaml", Data: []byte(file)}})
	if c == nil {
		t.Fatal(problems)
	}
	device := func(name string, addrs ...string) edge.Interface {
		i := edge.Interface{Name: name, Up: true}
		for _, a := range addrs {
			i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
		}
		return i
	}
	node := func(n int) edge.Node {
		return edge.Node{Name: fmt.Sprintf("w%d", n), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + n)})}}
	}
	s := &site{Inputs: desired.Inputs{
		Config: c,
		Interfaces: []edge.Interface{
			device("eth0", "10.0.0.1/24", "fd00:10::1/64"), device("eth1", "10.11.12.32/24", "fd00:11:12::32/64"), device("lo", "127.0.0.1/8", "::1/128"),
			device("veth0", "10.11.12.51/24"),
		},
		Cluster: &edge.Cluster{
			Services: services, Nodes: []edge.Node{node(1), node(2), node(3)},
			APIServers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.10:6443")},
		},
		Hosts: map[string]netip.Addr{"edge.example.org": netip.MustParseAddr("10.11.12.32")},
		Doors: map[edge.Door]string{}, Health: map[edge.Probe]edge.Health{},
	}, back: map[netip.Addr]string{netip.MustParseAddr("203.0.113.10"): "veth0", netip.MustParseAddr("172.17.0.2"): "docker0"}}
	return s
}

// facts decides, with each backend up but those that Health knows of.
func (s *site) facts() Facts {
	state, _ := desired.Settled(s.Inputs)
	for _, p := range state.Probes {
		if _, known := s.Health[p]; !known {
			s.Health[p] = edge.Health{State: edge.Up, Since: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)}
		}
	}
	state, _ = desired.Settled(s.Inputs)
	for _, a := range state.Addresses {
		for i := range s.Interfaces {
			if s.Interfaces[i].Name == a.Device {
				s.Interfaces[i].Addrs = append(s.Interfaces[i].Addrs, netip.PrefixFrom(a.Addr, a.Addr.BitLen()))
			}
		}
	}
	return Facts{
		Config: s.Config, Interfaces: s.Interfaces, Cluster: s.Cluster, Hosts: s.Hosts, State: state, Closed: s.Doors,
		Back: func(a netip.Addr) string { return s.back[a] },
	}
}

// down has all checks of an address fail.
func (s *site) down(addr string) {
	state, _ := desired.Settled(s.Inputs)
	for _, p := range state.Probes {
		if p.Addr.Addr().String() == addr {
			s.Health[p] = edge.Health{State: edge.Down, Error: "connection refused"}
		}
	}
}

// service is one of gatehouse's class for zone home, made age minutes before the
// others, with port 80 and a pod on w1, two on w2.
func service(key string, age int, change ...func(*edge.Service)) edge.Service {
	namespace, name, _ := strings.Cut(key, "/")
	s := edge.Service{
		Namespace: namespace, Name: name, UID: key, Class: config.DefaultClass, Created: time.Date(2026, 1, 1, 12, -age, 0, 0, time.UTC),
		Annotations: map[string]string{annZones: "home"}, Labels: map[string]string{}, Local: true, IPFamilies: []string{"IPv4"},
		Ports: []edge.ServicePort{{Name: "http", Protocol: edge.TCP, Port: 80, NodePort: 30080}},
	}
	for i, n := range []string{"w1", "w2", "w2"} {
		s.Endpoints = append(s.Endpoints, edge.Endpoint{
			PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort(fmt.Sprintf("10.244.%c.%d:8080", n[1], i+10)),
			Node: n, Pod: fmt.Sprintf("%s/%s-%d", namespace, name, i), Ready: true, Serving: true,
		})
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func annotate(name, value string) func(*edge.Service) {
	return func(s *edge.Service) { s.Annotations[edge.AnnotationPrefix+name] = value }
}

func port(n uint16) func(*edge.Service) { return func(s *edge.Service) { s.Ports[0].Port = n } }

func labelled(key, value string) func(*edge.Service) {
	return func(s *edge.Service) { s.Labels[key] = value }
}

// over has it speak another protocol than TCP.
func over(p edge.Protocol) func(*edge.Service) {
	return func(s *edge.Service) {
		s.Ports[0].Protocol = p
		for i := range s.Endpoints {
			s.Endpoints[i].Protocol = p
		}
	}
}

// kernel has the nat data plane move it.
func kernel(s *edge.Service) { annotate("data-plane", "nat")(s) }
