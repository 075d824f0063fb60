package desired

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

// The site of all tests: eth0 10.0.0.1 faces the cluster, eth1 10.11.12.32 the
// home LAN, veth0 10.11.12.51 the Internet. Nodes w1 to w3 are 10.0.0.101 to
// .103 and hold 1, 2 and 3 pods of shop/web.
func site() Inputs {
	return Inputs{
		Config: &config.Config{
			Zones: []edge.Zone{
				{Name: "home", Interfaces: []string{"eth1"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 3, Col: 3}},
				{Name: "internet", Interfaces: []string{"veth0"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 4, Col: 3}},
				{Name: "cluster", Interfaces: []string{"eth0"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 5, Col: 3}},
			},
			Kubernetes: &config.Kubernetes{
				Health:            config.DefaultHealth,
				LoadBalancerClass: config.DefaultClass, FollowAddresses: true, Target: edge.TargetAuto,
				Allow: map[string]config.Allow{"internet": {Namespaces: []string{"shop", "ingress-public"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 9, Col: 13}}},
			},
		},
		Interfaces: []edge.Interface{
			device("eth0", "10.0.0.1/24", "fd00:0:0:1::1/64"), device("eth1", "10.11.12.32/24", "fd00:0:0:12::32/64"), device("veth0", "10.11.12.51/24"),
			device("lo", "127.0.0.1/8"),
		},
		Cluster: &edge.Cluster{Nodes: []edge.Node{node("w1", "10.0.0.101"), node("w2", "10.0.0.102"), node("w3", "10.0.0.103")}},
		Health:  map[edge.Probe]edge.Health{},
		Hosts:   map[string]netip.Addr{},
		Doors:   map[edge.Door]string{},
	}
}

func device(name string, addrs ...string) edge.Interface {
	i := edge.Interface{Name: name, Up: true}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return i
}

func node(name, addr string) edge.Node {
	return edge.Node{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
}

// service is a Service of gatehouse's class, created age minutes before the
// others, with port 80 on node port 30080 and one pod on w1, two on w2, three on w3.
func service(key string, age int, change ...func(*edge.Service)) edge.Service {
	namespace, name, _ := strings.Cut(key, "/")
	s := edge.Service{
		Namespace: namespace, Name: name, UID: "uid-" + key, Class: config.DefaultClass,
		Created:     time.Date(2026, 1, 1, 12, -age, 0, 0, time.UTC),
		Annotations: map[string]string{"gatehouse.e13.dev/zones": "home"},
		Local:       true, HealthCheckNodePort: 32000, IPFamilies: []string{"IPv4"},
		Ports: []edge.ServicePort{{Name: "http", Protocol: edge.TCP, Port: 80, NodePort: 30080}},
	}
	for i, n := range []string{"w1", "w2", "w2", "w3", "w3", "w3"} {
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
	return func(s *edge.Service) { s.Annotations["gatehouse.e13.dev/"+name] = value }
}

// dns is one port for TCP and UDP: where the node port is open for both, and
// the pods answer both.
func dns(s *edge.Service) {
	s.Ports = []edge.ServicePort{
		{Name: "tcp", Protocol: edge.TCP, Port: 53, NodePort: 30053}, {Name: "udp", Protocol: edge.UDP, Port: 53, NodePort: 30053},
	}
	var endpoints []edge.Endpoint
	for _, e := range s.Endpoints {
		for _, p := range s.Ports {
			e.PortName, e.Protocol = p.Name, p.Protocol
			endpoints = append(endpoints, e)
		}
	}
	s.Endpoints = endpoints
}

// render prints a decision as a person would want to read it.
func render(state State, problems []edge.Problem) string {
	var b strings.Builder
	for _, e := range state.Exposures {
		fmt.Fprintf(&b, "%s %s %s/%d (%s)\n", or(e.Zone, "-"), e.Name, e.Protocol, e.Port, e.Why)
		if e.Open {
			fmt.Fprintf(&b, "  open on %v at %v, target %s\n", e.Listens, e.Addresses, e.Target)
		}
		if e.Reason != "" {
			fmt.Fprintf(&b, "  because %s", e.Reason)
			if e.Remedy != "" {
				fmt.Fprintf(&b, "; %s", e.Remedy)
			}
			b.WriteString("\n")
		}
		for _, backend := range e.Backends {
			fmt.Fprintf(&b, "  -> %s weight %d %s share %.3f %s\n", backend.Addr, backend.Weight, backend.State, backend.Share, backend.Node)
		}
		for _, p := range e.Shares {
			fmt.Fprintf(&b, "     %s %.4f\n", p.Pod, p.Share)
		}
	}
	for _, p := range state.Probes {
		fmt.Fprintf(&b, "probe %s\n", probeText(p))
	}
	for _, s := range state.Statuses {
		fmt.Fprintf(&b, "status %s/%s %+v\n", s.Namespace, s.Name, s.Ingress)
	}
	for _, e := range state.Events {
		fmt.Fprintf(&b, "event %s/%s warning=%v %s: %s\n", e.Namespace, e.Name, e.Warning, e.Reason, e.Message)
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

// probeText is what a probe asks where: the check, if it makes one at Addr, or
// who is asked and the check that is made through it.
func probeText(p edge.Probe) string {
	check := or(string(p.Type), string(edge.CheckTCP)) // an empty one is that
	if p.Path != "" {
		check += p.Path
	}
	if p.Kind == edge.ProbeBackend {
		return fmt.Sprintf("%s %s each %s", check, p.Addr, p.Interval)
	}
	text := fmt.Sprintf("%s %s each %s", p.Kind, p.Addr, p.Interval)
	if p.Through.IsValid() && check != string(edge.CheckTCP) {
		text += fmt.Sprintf(" and %s %s", check, p.Through)
	}
	return text
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Each scenario is a golden in testdata that says what was decided and why.
func TestBuildScenarios(t *testing.T) {
	for name, change := range map[string]func(*Inputs){
		"local-weighs-nodes-by-ready-pods": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
		},
		"cluster-policy-uses-every-node": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Local, s.HealthCheckNodePort = false, 0
				s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node == "w2" })
			})}
		},
		"pod-target": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("target", "pod"))}
		},
		"no-node-port-goes-to-pods": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Ports[0].NodePort = 0 })}
		},
		"node-port-asked-for-but-none": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("target", "nodePort"), func(s *edge.Service) { s.Ports[0].NodePort = 0 })}
		},
		"address-of-another-controller": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Class = "metallb.io/metallb"
				s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
			})}
		},
		"own-address-is-not-followed": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Class = ""
				s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.11.12.32"), Mode: "Proxy"}}
			})}
		},
		"not-ours": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/classless", 0, func(s *edge.Service) { s.Class = "" }),
				service("shop/foreign", 0, func(s *edge.Service) { s.Class = "example.com/lb" }),
			}
		},
		"addresses-not-followed": func(in *Inputs) {
			in.Config.Kubernetes.FollowAddresses = false
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Class = "metallb.io/metallb"
				s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
			})}
		},
		"classless-switch": func(in *Inputs) {
			in.Config.Kubernetes.Classless = true
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Class = "" })}
		},
		"selector": func(in *Inputs) {
			in.Config.Kubernetes.Selector = "expose=yes"
			in.Cluster.Services = []edge.Service{
				service("shop/web", 0), service("shop/yes", 1, func(s *edge.Service) { s.Labels = map[string]string{"expose": "yes"} }),
			}
		},
		"older-service-keeps-the-port": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/young", 1), service("b/old", 5, annotate("zones", "home,cluster"))}
		},
		"part-of-the-ports-in-conflict": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("b/old", 5), service("a/young", 1, func(s *edge.Service) {
				s.Ports = append(s.Ports, edge.ServicePort{Name: "https", Protocol: edge.TCP, Port: 443, NodePort: 30443},
					edge.ServicePort{Name: "quic", Protocol: edge.UDP, Port: 443, NodePort: 30444})
			})}
		},
		"tcp-and-udp-on-one-port": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns)}
		},
		"udp-with-cluster-policy-uses-nodes-with-pods": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns, func(s *edge.Service) {
				s.Local, s.HealthCheckNodePort, s.Ports = false, 0, s.Ports[1:]
				s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node == "w2" })
			})}
		},
		"udp-without-nodes-uses-every-node": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns, func(s *edge.Service) {
				s.Ports = s.Ports[1:]
				s.Endpoints = []edge.Endpoint{{PortName: "udp", Protocol: edge.UDP, Addr: netip.MustParseAddrPort("192.0.2.1:53"), Ready: true}}
			})}
		},
		"udp-pods-on-excluded-nodes-alone-are-reached-through-others": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns, func(s *edge.Service) {
				s.Local, s.HealthCheckNodePort, s.Ports = false, 0, s.Ports[1:]
				s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node != "w3" })
			})}
			in.Cluster.Nodes[2].Excluded = true
		},
		"udp-nobody-is-there": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("dns/dns", 0, dns, func(s *edge.Service) { s.Endpoints = nil }),
				service("dns/excluded", 1, annotate("zones", "cluster"), dns),
			}
			for i := range in.Cluster.Nodes {
				in.Cluster.Nodes[i].Excluded = true
			}
		},
		"udp-conflicts-with-udp-alone": func(in *Inputs) {
			udp := func(s *edge.Service) { dns(s); s.Ports = s.Ports[1:] }
			tcp := func(s *edge.Service) { dns(s); s.Ports = s.Ports[:1] }
			in.Cluster.Services = []edge.Service{service("a/old-udp", 3, udp), service("a/tcp", 2, tcp), service("a/young-udp", 1, udp)}
		},
		"sctp-is-refused": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Ports = append(s.Ports, edge.ServicePort{Name: "sctp", Protocol: edge.SCTP, Port: 80, NodePort: 30080})
			})}
		},
		"static-udp": func(in *Inputs) {
			in.Config.Frontends = []config.Frontend{
				{
					Name: "dns", Zones: []string{"home"}, Port: 53, Protocol: edge.UDP, Pos: edge.Pos{File: "gatehouse.yaml", Line: 20, Col: 5},
					Health:   config.DefaultHealth, // even then
					Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 53}, Weight: 1}, {Address: edge.HostPort{Host: "10.0.0.8", Port: 53}, Weight: 3}},
				},
				{
					Name: "nobody", Zones: []string{"home"}, Port: 54, Protocol: edge.UDP, Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 5},
					Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 53}}},
				},
			}
		},
		"file-wins-over-service": func(in *Inputs) {
			in.Config.Frontends = []config.Frontend{{
				Name: "old-web", Zones: []string{"home"}, Port: 80, Protocol: edge.TCP, Pos: edge.Pos{File: "gatehouse.yaml", Line: 20, Col: 5},
				Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 80}, Weight: 1}},
			}}
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
		},
		"no-zone-asked-for": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Annotations = nil })}
		},
		"default-zones": func(in *Inputs) {
			in.Config.Kubernetes.DefaultZones = []string{"cluster"}
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Annotations = nil }), service("shop/none", 1, annotate("zones", ""))}
		},
		"zone-with-spaces-and-unknown": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("zones", " home , lan2,home internet"))}
		},
		"zone-not-allowed": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("private/web", 0, annotate("zones", "home,internet"))}
		},
		"too-many-zones": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("zones", strings.Repeat("a,", 100)))}
		},
		"classless-switched-off-clears-the-status": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/was-ours", 0, func(s *edge.Service) {
					s.Class, s.StatusOurs = "", true
					s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.11.12.32"), Mode: "Proxy"}}
				}),
				// Another gatehouse's, of another class: it has the same field manager.
				service("shop/other", 1, func(s *edge.Service) {
					s.Class, s.StatusOurs = "gatehouse.e13.dev/other", true
					s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.20.30.40"), Mode: "Proxy"}}
				}),
			}
		},
		"own-service-with-a-foreign-address": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Ingress = []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}} })}
		},
		"addresses-that-lead-nowhere": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Class = "metallb.io/metallb"
				for _, a := range []string{"127.0.0.2", "0.0.0.0", "::", "fe80::1", "224.0.0.1", "10.11.12.51"} {
					s.Ingress = append(s.Ingress, edge.Ingress{IP: netip.MustParseAddr(a)})
				}
			})}
		},
		"dual-stack-pods-count-once": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.IPFamilies = []string{"IPv4", "IPv6"}
				for i, e := range s.Endpoints {
					e.Addr = netip.MustParseAddrPort(fmt.Sprintf("[fd00:244::%d]:8080", i+1))
					s.Endpoints = append(s.Endpoints, e)
				}
			})}
		},
		"one-interface-of-two-is-taken": func(in *Inputs) {
			in.Config.Zones[0].Interfaces = []string{"eth1", "veth0"}
			in.Config.Zones[1].Interfaces = nil
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
			in.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "veth0", Port: 80}}] = "listen on @veth0:80: address already in use"
		},
		"source-ranges": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/web", 0, func(s *edge.Service) { s.SourceRanges = []string{"10.11.12.0/24"} }),
				service("shop/bad", 1, annotate("zones", "cluster"), func(s *edge.Service) { s.SourceRanges = []string{"10.11.12.0/33"} }),
			}
		},
		"later-annotations-are-refused": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/a", 0, annotate("data-plane", "nat")), service("shop/b", 0, annotate("hostnames", "git.example.org")),
				service("shop/c", 0, annotate("data-plane", "proxy"), annotate("balance", "random"), annotate("send-proxy-protocol", "none")),
				service("shop/d", 0, annotate("target", "vip")), service("shop/e", 0, annotate("health-interval", "often")),
				service("shop/f", 0, annotate("idle-timeout", "30")), service("shop/g", 0, annotate("drain-timeout", "-1s")),
				service("shop/h", 0, annotate("idle-timeout", "1ms")), service("shop/i", 0, annotate("drain-timeout", "8761h")),
			}
		},
		"health-interval": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/a", 0, annotate("zones", "home"), annotate("health-interval", "2s")),
				service("shop/b", 0, annotate("zones", "cluster"), func(s *edge.Service) { s.Annotations["l4proxy.e13.dev/health-interval"] = "7" }),
				service("shop/c", 0, annotate("zones", "internet"), annotate("health-interval", "0")),
			}
		},
		"no-endpoints": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.Endpoints = nil })}
		},
		"terminating-is-the-last-resort": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/web", 0, func(s *edge.Service) {
					for i := range s.Endpoints {
						s.Endpoints[i].Ready, s.Endpoints[i].Terminating = false, true
					}
					s.Endpoints[5].Serving = false
				}),
				service("shop/part", 1, annotate("zones", "cluster"), func(s *edge.Service) {
					s.Endpoints[0].Ready, s.Endpoints[0].Terminating = false, true
				}),
			}
		},
		"excluded-and-leaving-nodes": func(in *Inputs) {
			in.Cluster.Nodes[0].Excluded, in.Cluster.Nodes[1].Leaving = true, true
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
		},
		"endpoints-without-a-node": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) {
				s.Endpoints = []edge.Endpoint{{PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort("192.0.2.1:80"), Ready: true}}
			})}
		},
		"health-moves-shares": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
			state, _ := Build(*in)
			in.Health[state.Probes[0]] = edge.Health{State: edge.Up}
			in.Health[state.Probes[1]] = edge.Health{State: edge.Down, Error: "answered 503"}
		},
		"every-backend-down": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
			state, _ := Build(*in)
			for _, p := range state.Probes {
				in.Health[p] = edge.Health{State: edge.Down, Error: "connection refused"}
			}
		},
		"interface-missing": func(in *Inputs) {
			in.Interfaces = in.Interfaces[:1]
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
		},
		"interface-down": func(in *Inputs) {
			in.Interfaces[1].Up = false
		},
		"interface-without-address": func(in *Inputs) {
			in.Interfaces[1].Addrs = nil
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
		},
		"dual-stack-in-order": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.IPFamilies = []string{"IPv6", "IPv4"} })}
		},
		"two-zones-share-a-network": func(in *Inputs) {
			in.Interfaces[1].AnswersForOthers = true
		},
		"port-taken-on-the-machine": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
			in.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 80}}] = "listen on @eth1:80: address already in use by nginx (pid 812)"
		},
		"admin-port-is-taken": func(in *Inputs) {
			in.Config.Admin = config.Admin{Listen: "127.0.0.1:9180", Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 9}}
			in.Config.Frontends = []config.Frontend{{
				Name: "clash", Listen: &config.Listen{Port: 9180}, Protocol: edge.TCP, Pos: edge.Pos{File: "gatehouse.yaml", Line: 20, Col: 5},
				Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 80}, Weight: 1}},
			}}
		},
		"static-names-and-weights": func(in *Inputs) {
			in.Hosts["nas"] = netip.MustParseAddr("10.0.0.9")
			in.Config.Frontends = []config.Frontend{
				{
					Name: "files", Listen: &config.Listen{Host: "nas", Port: 445}, Protocol: edge.TCP, Health: config.DefaultHealth, Pos: edge.Pos{File: "gatehouse.yaml", Line: 20, Col: 5},
					Backends: []config.Backend{
						{Address: edge.HostPort{Host: "nas", Port: 1445}, Weight: 3},
						{Address: edge.HostPort{Host: "10.0.0.8", Port: 1445}, Weight: 1},
						{Address: edge.HostPort{Host: "gone", Port: 1445}, Weight: 1, Pos: edge.Pos{File: "gatehouse.yaml", Line: 23, Col: 9}},
					},
				},
				{
					Name: "lost", Listen: &config.Listen{Host: "gone", Port: 446, Pos: edge.Pos{File: "gatehouse.yaml", Line: 25, Col: 9}}, Protocol: edge.TCP,
					Pos: edge.Pos{File: "gatehouse.yaml", Line: 24, Col: 5}, Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.8", Port: 1}, Weight: 1}},
				},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			change(&in)
			golden(t, name, render(Build(in)))
		})
	}
}

// A UDP port is probed where something else than the port tells of it, and
// never by connecting to it.
func TestProbesOfUDP(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*edge.Service)
		want   []string
	}{
		"node port, Local": {func(*edge.Service) {}, []string{
			"healthCheckNodePort 10.0.0.101:32000 through nothing", "healthCheckNodePort 10.0.0.102:32000 through nothing",
			"healthCheckNodePort 10.0.0.103:32000 through nothing",
		}},
		"node port, Local, TCP beside it": {func(s *edge.Service) {
			s.Ports = append(s.Ports, edge.ServicePort{Name: "udp", Protocol: edge.TCP, Port: 53, NodePort: 30053})
			for _, e := range s.Endpoints {
				e.Protocol = edge.TCP
				s.Endpoints = append(s.Endpoints, e)
			}
		}, []string{
			"healthCheckNodePort 10.0.0.101:32000 through nothing", "healthCheckNodePort 10.0.0.101:32000 through 10.0.0.101:30053",
			"healthCheckNodePort 10.0.0.102:32000 through nothing", "healthCheckNodePort 10.0.0.102:32000 through 10.0.0.102:30053",
			"healthCheckNodePort 10.0.0.103:32000 through nothing", "healthCheckNodePort 10.0.0.103:32000 through 10.0.0.103:30053",
		}},
		"node port, Local, no probes wanted": {annotate("health-interval", "0"), nil},
		"node port, Local, all terminating": {func(s *edge.Service) {
			for i := range s.Endpoints {
				s.Endpoints[i].Ready, s.Endpoints[i].Terminating = false, true
			}
		}, nil},
		"node port, Cluster": {func(s *edge.Service) { s.Local, s.HealthCheckNodePort = false, 0 }, nil},
		"pods":               {annotate("target", "pod"), nil},
		"address": {func(s *edge.Service) {
			s.Class, s.Ingress = "metallb.io/metallb", []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns, func(s *edge.Service) {
				s.Ports = s.Ports[1:]
				s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Protocol != edge.UDP })
			}, tc.change)}
			state, _ := Build(in)
			var got []string
			for _, p := range state.Probes {
				through := "nothing"
				if p.Through.IsValid() {
					through = p.Through.String()
				}
				got = append(got, fmt.Sprintf("%s %s through %s", p.Kind, p.Addr, through))
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("probes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			udp := state.Frontends[slices.IndexFunc(state.Frontends, func(f edge.Frontend) bool { return f.Protocol == edge.UDP })]
			for _, b := range udp.Backends {
				if state, probe := b.State, b.Probe.IsValid(); probe != (len(tc.want) > 0) || probe == (state == edge.Up) {
					t.Errorf("%s is %s, probed: %t", b.Addr, state, probe)
				}
			}
			if len(udp.Backends) == 0 {
				t.Error("no backends")
			}
		})
	}
}

// What a Service says for itself comes before what is said for all; the limits
// are the operator's alone.
func TestTermsOfConnections(t *testing.T) {
	all := edge.Terms{ConnectTimeout: time.Second, IdleTimeout: 2 * time.Hour, DrainTimeout: 3 * time.Minute, MaxConnections: 4, MaxConnectionsPerClient: 5}
	for name, tc := range map[string]struct {
		terms       edge.Terms
		annotations map[string]string
		tcp, udp    edge.Terms
	}{
		"nothing is said":    {edge.Terms{}, nil, edge.Terms{}, edge.Terms{IdleTimeout: 30 * time.Second}},
		"the defaults":       {config.DefaultTerms, nil, config.DefaultTerms, with(config.DefaultTerms, 30*time.Second, 0)},
		"said for all":       {all, nil, all, all},
		"the Service speaks": {all, map[string]string{"idle-timeout": "90s", "drain-timeout": "1h30m"}, with(all, 90*time.Second, 90*time.Minute), with(all, 90*time.Second, 90*time.Minute)},
		"the Service wants none": {
			all, map[string]string{"idle-timeout": "0", "drain-timeout": "0s"}, with(all, 0, 0), with(all, 30*time.Second, 0),
		},
		"an empty annotation says nothing": {all, map[string]string{"idle-timeout": "", "drain-timeout": ""}, all, all},
		"limits are not asked for":         {all, map[string]string{"max-connections": "0", "connect-timeout": "9s"}, all, all},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Config.Kubernetes.Terms = tc.terms
			s := service("dns/dns", 0, dns)
			for k, v := range tc.annotations {
				annotate(k, v)(&s)
			}
			in.Cluster.Services = []edge.Service{s}
			for _, p := range []edge.Protocol{edge.TCP, edge.UDP} {
				in.Config.Frontends = append(in.Config.Frontends, config.Frontend{
					Name: "static", Zones: []string{"cluster"}, Port: 53, Protocol: p, Terms: tc.terms,
					Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 53}, Weight: 1}},
				})
			}
			state, _ := Build(in)
			if len(state.Frontends) != 4 {
				t.Fatalf("got %d frontends", len(state.Frontends))
			}
			for _, f := range state.Frontends {
				want := map[edge.Protocol]edge.Terms{edge.TCP: tc.tcp, edge.UDP: tc.udp}[f.Protocol]
				if f.Zone == "cluster" {
					want = tc.terms // as the file has it
				}
				if f.Terms != want {
					t.Errorf("%s %s: %+v, want %+v", f.Name, f.Protocol, f.Terms, want)
				}
			}
		})
	}
}

func with(t edge.Terms, idle, drain time.Duration) edge.Terms {
	t.IdleTimeout, t.DrainTimeout = idle, drain
	return t
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update after reading it):\n--- want\n%s--- got\n%s", path, want, got)
	}
}

// Promise 7: which event came first shows nowhere.
func TestBuildIgnoresInputOrder(t *testing.T) {
	in := site()
	in.Interfaces[1].AnswersForOthers, in.Interfaces[2].Up = true, false
	for i := range 30 {
		in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/s%d", i), i%4, func(s *edge.Service) {
			s.Annotations["gatehouse.e13.dev/zones"] = []string{"home", "home,internet", "cluster", "lan2", ""}[i%5]
			s.Ports[0].Port = uint16(80 + i%7)
			s.Ports = append(s.Ports, edge.ServicePort{Name: "http", Protocol: edge.TCP, Port: uint16(180 + i%7), NodePort: uint16(31000 + i)},
				edge.ServicePort{Name: "http", Protocol: []edge.Protocol{edge.UDP, edge.SCTP}[i%2], Port: uint16(180 + i%7), NodePort: uint16(31000 + i)})
		}))
	}
	want, wantProblems := Build(in)
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		shuffled := in
		shuffled.Interfaces = slices.Clone(in.Interfaces)
		shuffled.Cluster = &edge.Cluster{Services: slices.Clone(in.Cluster.Services), Nodes: slices.Clone(in.Cluster.Nodes)}
		r.Shuffle(len(shuffled.Interfaces), func(i, j int) {
			shuffled.Interfaces[i], shuffled.Interfaces[j] = shuffled.Interfaces[j], shuffled.Interfaces[i]
		})
		r.Shuffle(len(shuffled.Cluster.Nodes), func(i, j int) {
			shuffled.Cluster.Nodes[i], shuffled.Cluster.Nodes[j] = shuffled.Cluster.Nodes[j], shuffled.Cluster.Nodes[i]
		})
		r.Shuffle(len(shuffled.Cluster.Services), func(i, j int) {
			s := shuffled.Cluster.Services
			s[i], s[j] = s[j], s[i]
		})
		for i := range shuffled.Cluster.Services {
			endpoints := slices.Clone(shuffled.Cluster.Services[i].Endpoints)
			r.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
			shuffled.Cluster.Services[i].Endpoints = endpoints
		}
		got, gotProblems := Build(shuffled)
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotProblems, wantProblems) {
			t.Fatalf("seed %d: another order of the inputs decides otherwise:\n--- in order\n%s--- shuffled\n%s", seed, render(want, wantProblems), render(got, gotProblems))
		}
	}
}

// The wall between zones: no frontend is bound to a device outside the zones asked for.
func TestFrontendsAreBoundToTheDevicesOfTheirZone(t *testing.T) {
	in := site()
	in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("zones", "home")), service("shop/pub", 1, annotate("zones", "internet"))}
	state, _ := Build(in)
	if len(state.Frontends) != 2 {
		t.Fatalf("got %d frontends, want 2", len(state.Frontends))
	}
	for _, f := range state.Frontends {
		want := map[string]string{"home": "eth1", "internet": "veth0"}[f.Zone]
		if f.Listen.Device != want {
			t.Errorf("%s in zone %s is bound to %q, want %q", f.Name, f.Zone, f.Listen.Device, want)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	in := site()
	for i := range 1000 {
		s := service(fmt.Sprintf("ns%d/s", i), i)
		s.Ports[0].Port = uint16(1000 + i)
		s.Endpoints = append(s.Endpoints, s.Endpoints[:4]...)
		in.Cluster.Services = append(in.Cluster.Services, s)
	}
	b.ReportAllocs()
	for b.Loop() {
		Build(in)
	}
}
