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
				Health: config.DefaultHealth, HealthzPort: config.DefaultHealthzPort,
				LoadBalancerClass: config.DefaultClass, FollowAddresses: true, Target: edge.TargetAuto,
				Allow: map[string]config.Allow{"internet": {Who: config.Who{Namespaces: []string{"shop", "ingress-public"}}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 9, Col: 13}}},
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

// cluster is externalTrafficPolicy: Cluster.
func cluster(s *edge.Service) { s.Local, s.HealthCheckNodePort = false, 0 }

// named has its own name on port 443.
func named(hostnames string) func(*edge.Service) {
	return func(s *edge.Service) {
		s.Ports[0].Port = 443
		if hostnames != "" {
			annotate("hostnames", hostnames)(s)
		}
	}
}

// static is a frontend of a file, with backends of weight 1 that are probed.
func static(name string, port uint16, line int, backends ...string) config.Frontend {
	f := config.Frontend{
		Name: name, Zones: []string{"home"}, Port: port, Protocol: edge.TCP, Health: config.DefaultHealth,
		Pos: edge.Pos{File: "gatehouse.yaml", Line: line, Col: 5},
	}
	for _, addr := range backends {
		a := netip.MustParseAddrPort(addr)
		f.Backends = append(f.Backends, config.Backend{Address: edge.HostPort{Host: a.Addr().String(), Port: a.Port()}, Weight: 1})
	}
	return f
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
			fmt.Fprintf(&b, "  open on %v at %v, target %s, %s", e.Listens, e.Addresses, e.Target, e.Balance)
			if e.DataPlane != edge.DataPlaneProxy {
				fmt.Fprintf(&b, ", %s", e.DataPlane)
			}
			b.WriteString("\n")
			fmt.Fprintf(&b, "  sees %s", e.Client)
			if e.ClientRemedy != "" {
				fmt.Fprintf(&b, "; %s", e.ClientRemedy)
			}
			if e.ClientSeen {
				b.WriteString(" [seen]")
			}
			b.WriteString("\n")
		}
		if len(e.Hostnames) > 0 {
			fmt.Fprintf(&b, "  for %s\n", strings.Join(e.Hostnames, " "))
		}
		for _, note := range e.Notes {
			fmt.Fprintf(&b, "  note %s\n", note)
		}
		if e.Reason != "" {
			fmt.Fprintf(&b, "  because %s", e.Reason)
			if e.Remedy != "" {
				fmt.Fprintf(&b, "; %s", e.Remedy)
			}
			b.WriteString("\n")
		}
		for _, backend := range e.Backends {
			fmt.Fprintf(&b, "  -> %s weight %d %s share %.3f %s", backend.Addr, backend.Weight, backend.State, backend.Share, backend.Node)
			if backend.Error != "" {
				fmt.Fprintf(&b, " (%s)", backend.Error)
			}
			b.WriteString("\n")
		}
		for _, p := range e.Shares {
			fmt.Fprintf(&b, "     %s %.4f\n", p.Pod, p.Share)
		}
	}
	for _, f := range state.Frontends {
		if f.Terminating != nil {
			fmt.Fprintf(&b, "terminating at %s %s\n", f.Door, f.Terminating)
		}
	}
	for _, h := range state.Hairpins {
		fmt.Fprintf(&b, "hairpin %s\n", strings.Join(h[:], " to "))
	}
	for _, r := range state.Routes {
		fmt.Fprintf(&b, "route %s via %s (%s)\n", r.Dst, r.Via, r.Why)
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
	if p.Port != 0 {
		check += fmt.Sprintf(" at port %d", p.Port)
	}
	if p.Kind == edge.ProbeBackend {
		return fmt.Sprintf("%s %s each %s", check, p.Addr, p.Interval)
	}
	text := fmt.Sprintf("%s %s each %s", p.Kind, p.Addr, p.Interval)
	if check != string(edge.CheckTCP) {
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
				cluster(s)
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
				cluster(s)
				s.Ports = s.Ports[1:]
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
				cluster(s)
				s.Ports = s.Ports[1:]
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
		"transparency-cannot-be-had": func(in *Inputs) {
			in.NoTransparency = "the nft command is not installed"
			in.Cluster.Services = []edge.Service{
				service("a/git", 0, annotate("transparent", "true"), named("git.example.org")),
				service("b/wiki", 1, named("wiki.example.org")),
			}
			in.Config.Frontends = []config.Frontend{static("mail", 443, 20, "10.0.0.7:993")}
			in.Config.Frontends[0].Hostnames, in.Config.Frontends[0].Transparent = []string{"mail.example.org"}, true
		},
		"annotations-that-keep-it-closed": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/a", 0, annotate("data-plane", "kernel")), service("shop/b", 0, annotate("addresses", "10.11.12.70")),
				service("shop/c", 0, annotate("data-plane", "proxy"), annotate("balance", "random"), annotate("send-proxy-protocol", "none")),
				service("shop/d", 0, annotate("target", "vip")), service("shop/e", 0, annotate("health-interval", "often")),
				service("shop/f", 0, annotate("idle-timeout", "30")), service("shop/g", 0, annotate("drain-timeout", "-1s")),
				service("shop/h", 0, annotate("idle-timeout", "1ms")), service("shop/i", 0, annotate("drain-timeout", "8761h")),
			}
		},
		"annotations-that-are-wrong": func(in *Inputs) {
			for i, a := range [][2]string{
				{"hostnames", "git.example.org,*"}, // is right
				{"hostnames", ""},
				{"hostnames", "git.example.org:443"},
				{"balance", "fair"},
				{"send-proxy-protocol", "v3"},
				{"transparent", "yes"},
				{"health-check", "http:healthz"},
				{"health-check", "tls:/healthz"},
			} {
				in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/s%d", i), 0, annotate(a[0], a[1])))
			}
			in.Cluster.Services = append(in.Cluster.Services,
				service("shop/two-ways", 0, annotate("transparent", "true"), annotate("send-proxy-protocol", "v1")),
				service("shop/nat", 0, annotate("hostnames", "git.example.org"), annotate("data-plane", "nat")))
		},
		"annotations-that-nobody-reads": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("shop/near", 0, annotate("dataplane", "nat")),
				service("shop/far", 0, annotate("xyz", ""), annotate("ignore", "true")),
				service("shop/others", 0, func(s *edge.Service) { s.Annotations["example.org/dataplane"] = "nat" }),
			}
		},
		"names-share-a-port": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/git", 1, named("git.example.org")), service("b/wiki", 5, named("wiki.example.org,*.wiki.example.org")),
				service("c/rest", 0, named("*"), annotate("zones", "home,internet"), func(s *edge.Service) { s.Namespace = "shop" }),
			}
			in.Config.Frontends = []config.Frontend{static("mail", 443, 20, "10.0.0.7:993")}
			in.Config.Frontends[0].Hostnames = []string{"mail.example.org"}
		},
		"the-older-keeps-a-name": func(in *Inputs) {
			in.Config.Frontends = []config.Frontend{static("mail", 443, 20, "10.0.0.7:993")}
			in.Config.Frontends[0].Hostnames = []string{"imap.example.org", "mail.example.org"}
			in.Cluster.Services = []edge.Service{
				service("a/part", 1, named("git.example.org,wiki.example.org,mail.example.org")),
				service("b/old", 5, named("git.example.org")),
				service("c/nothing-left", 0, named("git.example.org,mail.example.org,imap.example.org,wiki.example.org")),
				service("d/whole", 0, named("")),
			}
		},
		"the-whole-port-is-taken": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/whole", 1, named("")), service("b/git", 0, named("git.example.org"))}
			in.Config.Admin = config.Admin{Zones: []string{"home"}, Port: 9180, Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 9}}
			in.Config.Frontends = []config.Frontend{static("admin", 9180, 20, "10.0.0.7:80"), static("whole", 444, 21, "10.0.0.7:80"), static("git", 444, 22, "10.0.0.7:80")}
			in.Config.Frontends[0].Hostnames = []string{"admin.example.org"}
			in.Config.Frontends[2].Hostnames = []string{"git.example.org"}
		},
		"names-are-shared-in-one-place-only": func(in *Inputs) {
			everywhere, there := static("everywhere", 0, 20, "10.0.0.7:80"), static("there", 0, 21, "10.0.0.7:80")
			everywhere.Zones, everywhere.Listen = nil, &config.Listen{Port: 443}
			there.Zones, there.Listen = nil, &config.Listen{Device: "eth1", Port: 444}
			everywhere.Hostnames, there.Hostnames = []string{"a.example.org"}, []string{"a.example.org"}
			in.Config.Frontends = []config.Frontend{everywhere, there}
			in.Cluster.Services = []edge.Service{service("b/git", 1, named("git.example.org"), func(s *edge.Service) {
				s.Ports = append(s.Ports, edge.ServicePort{Name: "http", Protocol: edge.TCP, Port: 444, NodePort: 30444})
			})}
		},
		"names-of-quic": func(in *Inputs) {
			in.Config.Kubernetes.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
			both := func(s *edge.Service) { dns(s); s.Ports[0].Port, s.Ports[1].Port = 443, 443 }
			in.Cluster.Services = []edge.Service{
				service("a/git", 1, both, annotate("hostnames", "git.example.org"), annotate("send-proxy-protocol", "v2")),
				service("b/wiki", 0, both, annotate("hostnames", "wiki.example.org")),
				service("c/git", 0, both, annotate("hostnames", "git.example.org"), func(s *edge.Service) { s.Ports = s.Ports[1:] }),
			}
		},
		"other-proxies-are-trusted": func(in *Inputs) {
			trusted := []netip.Prefix{netip.MustParsePrefix("10.11.12.2/32"), netip.MustParsePrefix("10.11.12.3/32")}
			in.Config.Frontends = []config.Frontend{static("mail", 443, 20, "10.0.0.7:993"), static("mail2", 443, 21, "10.0.0.7:993"), static("mail3", 443, 21, "10.0.0.7:993")}
			for i, name := range []string{"mail.example.org", "mail2.example.org", "mail3.example.org"} {
				in.Config.Frontends[i].Hostnames = []string{name}
				in.Config.Frontends[i].AcceptProxyProtocol = trusted
			}
			in.Config.Frontends[1].AcceptProxyProtocol = []netip.Prefix{trusted[1], trusted[0]} // the same
			in.Config.Frontends[2].AcceptProxyProtocol = trusted[:1]
			in.Cluster.Services = []edge.Service{service("a/git", 1, named("git.example.org"))}
		},
		"checks-of-each-kind": func(in *Inputs) {
			in.Config.Kubernetes.Health.Port = 9000
			files := static("files", 8080, 20, "10.0.0.7:80")
			files.Health = edge.HealthCheck{Type: edge.CheckHTTP, Interval: time.Second, Port: 81, Path: "/up", StatusMin: 200, StatusMax: 299}
			in.Config.Frontends = []config.Frontend{files}
			in.Cluster.Services = []edge.Service{
				service("a/http", 9, annotate("health-check", "http:/healthz"), annotate("health-interval", "2s")),
				service("b/pods", 8, annotate("zones", "cluster"), annotate("target", "pod")),
				service("c/tls", 7, annotate("zones", "internet"), annotate("target", "pod"), annotate("health-check", "tls"), func(s *edge.Service) { s.Namespace = "shop" }),
				service("d/node-port", 6, func(s *edge.Service) { s.Ports[0].Port = 81 }),
				service("e/udp", 6, dns, annotate("health-check", "http:/dns")),
				service("e/udp-port", 5, dns, annotate("zones", "cluster"), func(s *edge.Service) { s.Ports = s.Ports[1:] }),
				service("f/address", 5, func(s *edge.Service) {
					s.Ports[0].Port, s.Class, s.Ingress = 82, "metallb.io/metallb", []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
				}),
			}
		},
		"kube-proxy-tells-of-its-node": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/web", 2, cluster), service("b/web", 1, cluster, annotate("zones", "cluster"), annotate("health-check", "http:/up"), annotate("health-interval", "1s")),
				service("c/dns", 0, dns, cluster, func(s *edge.Service) { s.Ports = s.Ports[1:] }),
			}
			state, _ := Build(*in)
			for _, p := range state.Probes {
				h := edge.Health{State: edge.Up}
				switch p.Addr.String() {
				case "10.0.0.101:10256":
					h = edge.Health{State: edge.Down, Error: "healthz answers 503"}
				case "10.0.0.102:10256":
					continue // not known yet
				case "10.0.0.102:30080":
					h = edge.Health{State: edge.Down, Error: "connection refused"}
				}
				in.Health[p] = h
			}
		},
		"kube-proxy-is-not-asked": func(in *Inputs) {
			in.Config.Kubernetes.HealthzPort = 0
			in.Cluster.Services = []edge.Service{service("a/web", 0, cluster)}
		},
		"the-api-is-away": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/web", 2, func(s *edge.Service) { // w1 and w2
					s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node == "w3" })
				}),
				service("b/none", 1, annotate("zones", "cluster"), func(s *edge.Service) { s.Endpoints, s.HealthCheckNodePort = nil, 32001 }),
				service("c/policy", 1, annotate("zones", "internet"), cluster, func(s *edge.Service) { s.Namespace = "shop" }),
				service("d/unprobed", 0, annotate("health-interval", "0"), func(s *edge.Service) { s.Ports[0].Port = 81 }),
				service("e/ending", 0, func(s *edge.Service) {
					s.HealthCheckNodePort, s.Ports[0].Port = 32002, 82
					for i := range s.Endpoints {
						s.Endpoints[i].Ready, s.Endpoints[i].Terminating = false, true
					}
				}),
				service("f/dns", 0, dns, func(s *edge.Service) {
					s.HealthCheckNodePort, s.Ports = 32003, s.Ports[1:]
					s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node != "w1" })
				}),
			}
			in.Cluster.Nodes = append(in.Cluster.Nodes, node("w4", "10.0.0.104"), node("w5", "10.0.0.105"))
			in.Cluster.Nodes[4].Excluded = true
			in.Cluster.Stale = true
			state, _ := Build(*in)
			for _, p := range state.Probes {
				switch p.Addr.String() {
				case "10.0.0.101:32000": // one has left
					in.Health[p] = edge.Health{State: edge.Down, Error: "no ready pods there"}
				case "10.0.0.102:32000": // as it was
					in.Health[p] = edge.Health{State: edge.Up, Weight: 2}
				case "10.0.0.103:32000": // three have come
					in.Health[p] = edge.Health{State: edge.Up, Weight: 3}
				case "10.0.0.104:32000", "10.0.0.102:32003": // says no number
					in.Health[p] = edge.Health{State: edge.Up}
				case "10.0.0.101:32003":
					in.Health[p] = edge.Health{State: edge.Up, Weight: 7}
				}
			}
		},
		"every-backend-down-and-refused": func(in *Inputs) {
			in.Config.Kubernetes.RefuseWhenDown = true
			files := static("files", 8080, 20, "10.0.0.7:80", "10.0.0.8:80", "10.0.0.9:80")
			files.Backends[2].Weight = 0
			in.Config.Frontends = []config.Frontend{files}
			in.Cluster.Services = []edge.Service{service("shop/web", 0)}
			state, _ := Build(*in)
			for _, p := range state.Probes {
				in.Health[p] = edge.Health{State: edge.Down, Error: "connection refused"}
			}
		},
		"who-sees-the-client": func(in *Inputs) {
			add := func(key string, change ...func(*edge.Service)) {
				n := len(in.Cluster.Services)
				in.Cluster.Services = append(in.Cluster.Services, service(key, 60-n, append(change, func(s *edge.Service) { s.Ports[0].Port = uint16(8000 + n) })...))
			}
			transparent, v2 := annotate("transparent", "true"), annotate("send-proxy-protocol", "v2")
			address := func(s *edge.Service) {
				s.Class, s.Ingress = "metallb.io/metallb", []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
			}
			add("a/relayed")
			add("a/relayed-cluster", cluster)
			add("a/proxy", v2, cluster)
			add("b/local", transparent)
			add("b/cluster", transparent, cluster)
			add("b/pods", transparent, cluster, annotate("target", "pod"))
			add("b/address", transparent, address)
			add("b/address-cluster", transparent, address, cluster)
			add("c/same-side", transparent, annotate("zones", "cluster"))
			add("c/same-side-pods", transparent, annotate("zones", "cluster"), annotate("target", "pod"))
			add("c/same-side-address", transparent, address, annotate("zones", "cluster"))
			add("c/same-side-relayed", annotate("zones", "cluster"))
			add("d/no-ipv6", transparent, annotate("zones", "internet"), func(s *edge.Service) { s.Namespace = "shop" })
			add("e/udp", v2, dns, func(s *edge.Service) { s.Ports = s.Ports[1:] })
			add("e/udp-transparent", transparent, dns, func(s *edge.Service) { s.Ports = s.Ports[1:] })
			for i, backends := range [][]string{{"10.0.0.7:80"}, {"[fd00:0:0:1::7]:80"}, {"10.0.0.7:80", "[fd00:0:0:1::7]:80"}, {"10.11.12.7:80"}, {"127.0.0.1:80"}, {"10.0.0.1:80"}} {
				f := static(fmt.Sprintf("transparent-%d", i), uint16(9000+i), 20+i, backends...)
				f.Transparent = true
				in.Config.Frontends = append(in.Config.Frontends, f)
			}
			proxied, everywhere, loopback := static("proxied", 9100, 30, "10.0.0.7:80"), static("everywhere", 0, 31, "10.0.0.7:80"), static("address", 0, 32, "10.0.0.7:80")
			proxied.SendProxyProtocol = edge.ProxyProtocolV1
			everywhere.Zones, everywhere.Listen, everywhere.Transparent = nil, &config.Listen{Port: 9101}, true
			loopback.Zones, loopback.Listen, loopback.Transparent = nil, &config.Listen{Host: "10.0.0.1", Port: 9102}, true
			in.Config.Frontends = append(in.Config.Frontends, proxied, everywhere, loopback, static("relayed", 9103, 33, "10.0.0.7:80"))
		},
		"what-the-service-says-of-the-client-comes-first": func(in *Inputs) {
			in.Config.Kubernetes.Transparent = true
			in.Cluster.Services = []edge.Service{
				service("a/default", 2), service("b/proxy", 1, annotate("send-proxy-protocol", "v1"), named("")),
				service("c/none", 0, annotate("transparent", "false"), func(s *edge.Service) { s.Ports[0].Port = 81 }),
			}
		},
		"affinity": func(in *Inputs) {
			sticky := func(s *edge.Service) { s.AffinityTimeout = 3 * time.Hour }
			for i, change := range [][]func(*edge.Service){
				{annotate("target", "pod")},
				{},
				{cluster},
				{annotate("transparent", "true"), cluster},
				{annotate("balance", "random"), annotate("target", "pod")},
				{annotate("balance", "source"), annotate("target", "pod")},
				{annotate("transparent", "true"), annotate("zones", "cluster")},
			} {
				in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/s%d", i), 60-i, append(change, sticky, func(s *edge.Service) { s.Ports[0].Port = uint16(8000 + i) })...))
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
		"admin-in-zones": func(in *Inputs) {
			in.Config.Admin = config.Admin{Listen: "127.0.0.1:9180", Zones: []string{"home"}, Port: 9180, Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 9}}
			in.Config.Kubernetes.Allow = nil
			page := func(s *edge.Service) { s.Ports[0].Port = 9180 }
			in.Cluster.Services = []edge.Service{
				service("a/old", 9, page), // older than everything, and still not before it
				service("b/kernel", 1, page, annotate("data-plane", "nat")),
				service("c/elsewhere", 0, page, annotate("zones", "internet")),
				service("d/udp", 0, page, func(s *edge.Service) { s.Ports[0].Protocol = edge.UDP }),
			}
		},
		"dhcp-in-zones": func(in *Inputs) {
			in.Config.DHCP = []config.DHCP{
				{Zone: "home", Pools: []edge.Range{{First: netip.MustParseAddr("10.11.12.100"), Last: netip.MustParseAddr("10.11.12.199")}}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 9}},
				{Zone: "internet", RouterAdvertisements: &config.RouterAdvertisements{}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 31, Col: 9}}, // no server
			}
			in.Config.Kubernetes.Allow = nil
			boot := func(s *edge.Service) { s.Ports[0].Port, s.Ports[0].Protocol = 67, edge.UDP }
			in.Cluster.Services = []edge.Service{
				service("a/dhcp", 9, boot), // older than everything, and still not before it
				service("b/kernel", 1, boot, annotate("data-plane", "nat")),
				service("c/elsewhere", 0, boot, annotate("zones", "internet")),
				service("d/tcp", 0, func(s *edge.Service) { s.Ports[0].Port = 67 }),
				service("e/six", 9, func(s *edge.Service) { s.Ports[0].Port, s.Ports[0].Protocol = 547, edge.UDP }, annotate("zones", "internet")),
			}
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
		"node port, Cluster": {cluster, []string{
			"healthz 10.0.0.101:10256 through nothing", "healthz 10.0.0.102:10256 through nothing", "healthz 10.0.0.103:10256 through nothing",
		}},
		"node port, Cluster, no probes wanted": {func(s *edge.Service) { cluster(s); annotate("health-interval", "0")(s) }, nil},
		"pods": {annotate("target", "pod"), []string{
			"healthz 10.0.0.101:10256 through nothing", "healthz 10.0.0.102:10256 through nothing", "healthz 10.0.0.103:10256 through nothing",
		}},
		"pods, no probes wanted": {func(s *edge.Service) { annotate("target", "pod")(s); annotate("health-interval", "0")(s) }, nil},
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
				waits := b.Probe.IsValid() && b.Target != edge.TargetPod // of a pod's node only the silence counts
				if state, probe := b.State, b.Probe.IsValid(); probe != (len(tc.want) > 0) || waits == (state == edge.Up) {
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
	all := edge.Terms{
		ConnectTimeout: time.Second, IdleTimeout: 2 * time.Hour, DrainTimeout: 3 * time.Minute, MaxConnections: 4, MaxConnectionsPerClient: 5,
		MaxRatePerClient: edge.Rate{Connections: 6, Per: 7 * time.Second}, BanTime: 8 * time.Minute,
		Balance: edge.BalanceSource, AffinityTimeout: 9 * time.Minute, Transparent: true, RefuseWhenDown: true, CloseWhenDown: true,
	}
	proxied := all
	proxied.Transparent, proxied.SendProxyProtocol = false, edge.ProxyProtocolV2
	masqueraded := edge.Terms{Masquerade: true} // is for who asks for nat
	for v, i := reflect.ValueOf(all), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() && reflect.ValueOf(proxied).Field(i).IsZero() && reflect.ValueOf(masqueraded).Field(i).IsZero() {
			t.Errorf("Terms.%s is not tested", v.Type().Field(i).Name)
		}
	}
	change := func(of edge.Terms, f func(*edge.Terms)) edge.Terms {
		f(&of)
		return of
	}
	withoutProxy := change(proxied, func(t *edge.Terms) { t.SendProxyProtocol = edge.ProxyProtocolNone })
	for name, tc := range map[string]struct {
		terms       edge.Terms
		annotations map[string]string
		tcp, udp    edge.Terms
	}{
		"nothing is said":     {edge.Terms{}, nil, edge.Terms{}, edge.Terms{IdleTimeout: 30 * time.Second}},
		"the defaults":        {config.DefaultTerms, nil, config.DefaultTerms, with(config.DefaultTerms, 30*time.Second, 0)},
		"said for all":        {all, nil, all, all},
		"said for the kernel": {masqueraded, nil, edge.Terms{}, edge.Terms{IdleTimeout: 30 * time.Second}},
		"the Service speaks":  {all, map[string]string{"idle-timeout": "90s", "drain-timeout": "1h30m"}, with(all, 90*time.Second, 90*time.Minute), with(all, 90*time.Second, 90*time.Minute)},
		"the Service wants none": {
			all, map[string]string{"idle-timeout": "0", "drain-timeout": "0s"}, with(all, 0, 0), with(all, 30*time.Second, 0),
		},
		"an empty annotation says nothing": {all, map[string]string{"idle-timeout": "", "drain-timeout": ""}, all, all},
		"limits are not asked for": {all, map[string]string{
			"max-connections": "0", "connect-timeout": "9s", "max-rate-per-client": "1/s", "ban-time": "0", "accept-proxy-protocol": "0.0.0.0/0",
		}, all, all},
		"the PROXY protocol is for TCP": {proxied, nil, proxied, withoutProxy},
		"the Service wants another": {
			proxied,
			map[string]string{"balance": "leastConnections", "send-proxy-protocol": "v1"},
			change(proxied, func(t *edge.Terms) {
				t.Balance, t.AffinityTimeout, t.SendProxyProtocol = edge.BalanceLeastConnections, 0, edge.ProxyProtocolV1
			}),
			change(withoutProxy, func(t *edge.Terms) { t.Balance, t.AffinityTimeout = edge.BalanceLeastConnections, 0 }),
		},
		"the Service is not transparent": {
			all,
			map[string]string{"send-proxy-protocol": "v1"},
			change(all, func(t *edge.Terms) { t.Transparent, t.SendProxyProtocol = false, edge.ProxyProtocolV1 }),
			change(all, func(t *edge.Terms) { t.SendProxyProtocol = edge.ProxyProtocolNone }),
		},
		"the Service is transparent": {
			proxied,
			map[string]string{"transparent": "true"},
			change(withoutProxy, func(t *edge.Terms) { t.Transparent = true }), change(withoutProxy, func(t *edge.Terms) { t.Transparent = true }),
		},
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
					Name: "static", Zones: []string{"internet"}, Port: 53, Protocol: p, Terms: tc.terms,
					Backends: []config.Backend{{Address: edge.HostPort{Host: "10.0.0.7", Port: 53}, Weight: 1}},
				})
			}
			state, _ := Build(in)
			if len(state.Frontends) != 4 {
				t.Fatalf("got %d frontends", len(state.Frontends))
			}
			for _, f := range state.Frontends {
				want := map[edge.Protocol]edge.Terms{edge.TCP: tc.tcp, edge.UDP: tc.udp}[f.Protocol]
				if f.Zone == "internet" {
					want = tc.terms // as the file has it
					if f.Protocol == edge.UDP && want.SendProxyProtocol != "" {
						want.SendProxyProtocol = edge.ProxyProtocolNone
					}
				}
				if f.Terms != want {
					t.Errorf("%s %s: %+v, want %+v", f.Name, f.Protocol, f.Terms, want)
				}
			}
		})
	}
}

// sessionAffinity is source balance with the Service's timeout, unless the
// Service says otherwise.
func TestTermsOfAffinity(t *testing.T) {
	for name, tc := range map[string]struct {
		timeout time.Duration
		all     edge.Terms
		balance string // annotation
		want    edge.Terms
	}{
		"none":                  {0, edge.Terms{Balance: edge.BalanceRandom}, "", edge.Terms{Balance: edge.BalanceRandom}},
		"kept":                  {3 * time.Hour, edge.Terms{Balance: edge.BalanceRandom}, "", edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: 3 * time.Hour}},
		"comes first":           {time.Hour, edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: time.Minute}, "", edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: time.Hour}},
		"asked for in each way": {time.Hour, edge.Terms{}, "source", edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: time.Hour}},
		"not wanted":            {time.Hour, edge.Terms{Balance: edge.BalanceSource, AffinityTimeout: time.Minute}, "random", edge.Terms{Balance: edge.BalanceRandom}},
		"by address alone":      {0, edge.Terms{}, "source", edge.Terms{Balance: edge.BalanceSource}},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Config.Kubernetes.Terms = tc.all
			s := service("shop/web", 0, annotate("target", "pod"))
			s.AffinityTimeout = tc.timeout
			if tc.balance != "" {
				annotate("balance", tc.balance)(&s)
			}
			in.Cluster.Services = []edge.Service{s}
			state, _ := Build(in)
			if got := state.Frontends[0].Terms; got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

// What the data plane gets of a door that is shared, and of one that is not.
func TestFrontendsOfOneDoor(t *testing.T) {
	in := site()
	trusted := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	in.Config.Kubernetes.AcceptProxyProtocol = trusted
	both := func(s *edge.Service) { dns(s); s.Ports[0].Port, s.Ports[1].Port = 443, 443 }
	in.Cluster.Services = []edge.Service{
		service("b/wiki", 3, both, annotate("hostnames", "Wiki.Example.org,*.wiki.example.org")),
		service("a/git", 2, both, annotate("hostnames", "git.example.org,wiki.example.org")),
		service("c/web", 1),
	}
	state, _ := Build(in)
	var got []string
	for _, f := range state.Frontends {
		got = append(got, fmt.Sprintf("%s %s %v accepts %v", f.Door, f.Name, f.Hostnames, f.AcceptProxyProtocol))
	}
	want := []string{
		"TCP @eth1:80 c/web:80 [] accepts [10.0.0.0/8 192.0.2.0/24]",
		"TCP @eth1:443 a/git:443 [git.example.org] accepts [10.0.0.0/8 192.0.2.0/24]",
		"TCP @eth1:443 b/wiki:443 [*.wiki.example.org wiki.example.org] accepts [10.0.0.0/8 192.0.2.0/24]",
		"UDP @eth1:443 a/git:443/UDP [git.example.org] accepts []",
		"UDP @eth1:443 b/wiki:443/UDP [*.wiki.example.org wiki.example.org] accepts []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("frontends\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if trusted[0].Bits() != 24 {
		t.Error("the configuration was changed")
	}
}

// Transparent connections that could not work are not made; what the data plane
// gets and what is said of it are one.
func TestTransparentWhereItWorks(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Inputs)
		want   bool
	}{
		"across this machine": {func(*Inputs) {}, true},
		"backends beside the clients": {func(in *Inputs) {
			in.Cluster.Services[0].Annotations["gatehouse.e13.dev/zones"] = "cluster"
		}, false},
		"one backend of three beside the clients": {func(in *Inputs) {
			in.Cluster.Nodes[2].Addrs[0] = netip.MustParseAddr("10.11.12.103")
		}, false},
		"a pod on a node beside the clients": {func(in *Inputs) {
			annotate("target", "pod")(&in.Cluster.Services[0])
			in.Cluster.Nodes[2].Addrs = append(in.Cluster.Nodes[2].Addrs, netip.MustParseAddr("fd00:0:0:12::103"))
		}, false},
		"the zone has another interface, there": {func(in *Inputs) {
			in.Config.Zones[0].Interfaces, in.Config.Zones[2].Interfaces = []string{"eth1", "eth0"}, nil
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("transparent", "true"))}
			tc.change(&in)
			state, _ := Build(in)
			if len(state.Frontends) == 0 {
				t.Fatal("no frontend")
			}
			for _, f := range state.Frontends {
				if e := state.Exposures[0]; f.Transparent != tc.want || e.ClientSeen != tc.want {
					t.Errorf("transparent %t; seen %t: %s", f.Transparent, e.ClientSeen, e.Client)
				}
			}
		})
	}
}

// A network that cannot be read closes the Service: not one client, let alone
// all of them, comes in by mistake.
func TestSourceRangesThatAreNone(t *testing.T) {
	for _, ranges := range [][]string{{"10.11.12.0/33"}, {"10.11.12.0/24", "everywhere"}, {""}} {
		in := site()
		in.Cluster.Services = []edge.Service{service("shop/web", 0, func(s *edge.Service) { s.SourceRanges = ranges })}
		state, problems := Build(in)
		if len(state.Frontends) != 0 || len(state.Exposures) != 1 || state.Exposures[0].Open || len(problems) != 1 {
			t.Errorf("%q: %s", ranges, render(state, problems))
		}
		if len(state.Events) != 1 || state.Events[0].Reason != "SourceRangesInvalid" {
			t.Errorf("%q: events %v", ranges, state.Events)
		}
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

// crowded is a site where much is asked for that cannot all be.
func crowded() Inputs {
	in := site()
	in.Interfaces[1].AnswersForOthers, in.Interfaces[2].Up = true, false
	for i := range 60 {
		in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/s%d", i), i%4, func(s *edge.Service) {
			s.Annotations["gatehouse.e13.dev/zones"] = []string{"home", "home,internet", "cluster", "lan2", ""}[i%5]
			s.Ports[0].Port = uint16(80 + i%7)
			s.Ports = append(s.Ports, edge.ServicePort{Name: "http", Protocol: edge.TCP, Port: uint16(180 + i%7), NodePort: uint16(31000 + i)},
				edge.ServicePort{Name: "http", Protocol: []edge.Protocol{edge.UDP, edge.SCTP}[i%2], Port: uint16(180 + i%7), NodePort: uint16(31000 + i)})
			for name, values := range map[string][]string{
				"hostnames":    {"", "a.example.org", "a.example.org,b.example.org", "c.example.org,*", "*.example.org,b.example.org,c.example.org"},
				"transparent":  {"", "", "true"},
				"target":       {"", "pod", "nodePort"},
				"health-check": {"", "http:/up", "tls", "http:/down"},
				"data-plane":   {"nat", "", "", "proxy", ""},
			} {
				if v := values[i/5%len(values)]; v != "" { // of each zone some
					annotate(name, v)(s)
				}
			}
			s.Local, s.HealthCheckNodePort = i%3 != 0, uint16(32000+i)
			s.AffinityTimeout = time.Duration(i%2) * time.Hour
			for k := range i % 4 {
				s.Endpoints[k].Ready, s.Endpoints[k].Terminating = false, true
			}
		}))
	}
	everywhere := static("everywhere", 0, 20, "10.0.0.7:443")
	everywhere.Zones, everywhere.Listen = nil, &config.Listen{Device: "eth1", Port: 81}
	everywhere.Hostnames = []string{"b.example.org"}
	kernel := static("kernel", 82, 21, "10.0.0.7:80", "[fd00:0:0:1::7]:80", "10.11.12.7:80")
	kernel.DataPlane = edge.DataPlaneNAT
	in.Config.Frontends = []config.Frontend{everywhere, kernel}
	in.Config.Kubernetes.PodRoutes = true
	in.Config.Kubernetes.OfRelay = []config.Setting{{Key: "idleTimeout", Why: "has idle timeouts"}}
	for i := range in.Cluster.Nodes {
		n := &in.Cluster.Nodes[i]
		n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1))}
	}
	return in
}

// A decision is made from what it is given, which stays as it is.
func TestBuildLeavesItsInputsAlone(t *testing.T) {
	in := crowded()
	in.Cluster.Stale = true
	in.Config.Kubernetes.AcceptProxyProtocol = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	before := crowded()
	before.Cluster.Stale, before.Config.Kubernetes.AcceptProxyProtocol = true, slices.Clone(in.Config.Kubernetes.AcceptProxyProtocol)
	first, _ := Build(in)
	if !reflect.DeepEqual(in, before) {
		t.Error("the inputs were changed")
	}
	if again, _ := Build(in); !reflect.DeepEqual(first, again) {
		t.Error("the same inputs decide otherwise the second time")
	}
}

// Promise 7: which event came first shows nowhere.
func TestBuildIgnoresInputOrder(t *testing.T) {
	for _, stale := range []bool{false, true} {
		t.Run(fmt.Sprintf("stale %t", stale), func(t *testing.T) {
			in := crowded()
			in.Cluster.Stale = stale
			ignoresOrder(t, in)
		})
	}
	t.Run("pools", func(t *testing.T) {
		in := crowded()
		crowdPools(&in)
		ignoresOrder(t, in)
	})
}

func ignoresOrder(t *testing.T, in Inputs) {
	first, _ := Build(in)
	for i, p := range first.Probes {
		in.Health[p] = edge.Health{State: []edge.BackendState{edge.Up, edge.Down, edge.Pending}[i%3], Weight: i % 4}
	}
	shared := map[edge.Door]int{}
	most := 0
	for _, f := range first.Frontends {
		shared[f.Door]++
		most = max(most, shared[f.Door])
	}
	if most < 2 {
		t.Fatalf("doors are shared by %d at most", most)
	}
	if in.Config.Pools != nil {
		codes := map[string]bool{}
		for _, e := range first.Events {
			codes[e.Reason] = true
		}
		for _, code := range []string{"IPAllocated", "PoolExhausted", "AddressInUse", "AddressNotInPool", "AddressConflict", "FamilyMissing", "PortConflict"} {
			if !codes[code] {
				t.Errorf("nobody is told %s", code)
			}
		}
	}
	want, wantProblems := Build(in)
	terminating := func(f edge.Frontend) bool { return len(f.Terminating) > 1 }
	if !slices.ContainsFunc(want.Frontends, terminating) || len(want.Hairpins) < 2 || len(want.Routes) < 2 {
		t.Fatal("nothing of the kernel's is tested")
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		shuffled := in
		shuffled.Interfaces = slices.Clone(in.Interfaces)
		shuffled.Cluster = &edge.Cluster{Services: slices.Clone(in.Cluster.Services), Nodes: slices.Clone(in.Cluster.Nodes), Stale: in.Cluster.Stale, Namespaces: in.Cluster.Namespaces}
		shuffled.Allocations = slices.Clone(in.Allocations)
		r.Shuffle(len(shuffled.Allocations), func(i, j int) {
			shuffled.Allocations[i], shuffled.Allocations[j] = shuffled.Allocations[j], shuffled.Allocations[i]
		})
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

// BenchmarkBuild is how long one change of anything takes to be decided.
func BenchmarkBuild(b *testing.B) {
	for _, plane := range []edge.DataPlane{edge.DataPlaneProxy, edge.DataPlaneNAT} {
		for _, target := range []edge.Target{edge.TargetNodePort, edge.TargetPod} {
			for _, services := range []int{1000, 10000} {
				in := many(services)
				in.Config.Kubernetes.DataPlane, in.Config.Kubernetes.Target = plane, target
				b.Run(fmt.Sprintf("%s/%s/%d", plane, target, services), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						Build(in)
					}
				})
			}
		}
	}
	for _, services := range []int{1000, 10000} {
		in := many(services)
		withPools(&in)
		in.Interfaces[1] = device("eth1", "10.12.0.1/16")
		in.Config.Pools[0].Addresses = ranges("10.12.1.0-10.12.255.255")
		for i := range in.Cluster.Services {
			in.Cluster.Services[i].Ports[0].Port = 443
		}
		run(&in)
		b.Run(fmt.Sprintf("pools/%d", services), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if state, _ := Build(in); len(state.Frontends) < services {
					b.Fatal("not all of them are open")
				}
			}
		})
	}
}

// many are Services with a port of their own each, and ten endpoints.
func many(services int) Inputs {
	in := site()
	podNetworks(&in)
	in.Config.Kubernetes.PodRoutes = true
	for i := range services {
		s := service(fmt.Sprintf("ns%d/s", i), i)
		s.Ports[0].Port = uint16(1000 + i)
		s.Endpoints = append(s.Endpoints, s.Endpoints[:4]...)
		in.Cluster.Services = append(in.Cluster.Services, s)
	}
	return in
}

// A pod that is not asked itself is down when its node is: when nobody there
// answers, not when kube-proxy there is behind, which is not in the pod's way.
func TestUDPPodsOfASilentNodeAreDown(t *testing.T) {
	for name, tc := range map[string]struct {
		health edge.Health
		want   edge.BackendState
	}{
		"silent":               {edge.Health{State: edge.Down, Error: "timeout", Silent: true}, edge.Down},
		"kube-proxy is behind": {edge.Health{State: edge.Down, Error: "healthz answers 503"}, edge.Up},
		"not known yet":        {edge.Health{State: edge.Pending}, edge.Up},
		"well":                 {edge.Health{State: edge.Up, Confirmed: true}, edge.Up},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			in.Cluster.Services = []edge.Service{service("dns/dns", 0, dns, annotate("target", "pod"))}
			state, _ := Build(in)
			in.Health = map[edge.Probe]edge.Health{}
			for _, p := range state.Probes {
				if p.Kind == edge.ProbeHealthz && p.Addr.Addr() == netip.MustParseAddr("10.0.0.101") {
					in.Health[p] = tc.health
				}
			}
			state, _ = Build(in)
			for _, f := range state.Frontends {
				if f.Protocol != edge.UDP {
					continue
				}
				for _, b := range f.Backends {
					want := edge.Up
					if b.Node == "w1" {
						want = tc.want
					}
					if b.State != want {
						t.Errorf("%s on %s is %s, want %s", b.Addr, b.Node, b.State, want)
					}
				}
			}
		})
	}
}
