package desired

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// onNAT has the kernel move all Services, and gives nodes their pod networks.
func onNAT(in *Inputs) {
	in.Config.Kubernetes.DataPlane, in.Config.Kubernetes.PodRoutes = edge.DataPlaneNAT, true
	podNetworks(in)
}

func podNetworks(in *Inputs) {
	for i := range in.Cluster.Nodes {
		in.Cluster.Nodes[i].PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", i+1))}
	}
}

// at moves a Service's only port.
func at(port uint16) func(*edge.Service) {
	return func(s *edge.Service) { s.Ports[0].Port = port }
}

// dualStack gives a Service, its pods and its nodes a second address.
func dualStack(in *Inputs) func(*edge.Service) {
	for i := range in.Cluster.Nodes {
		n := &in.Cluster.Nodes[i]
		n.Addrs = append(n.Addrs[:1:1], netip.MustParseAddr(fmt.Sprintf("fd00:0:0:1::%d", 101+i)))
	}
	return func(s *edge.Service) {
		s.IPFamilies = []string{"IPv6", "IPv4"}
		for i, e := range slices.Clone(s.Endpoints) {
			e.Addr = netip.MustParseAddrPort(fmt.Sprintf("[fd00:244:%c::%d]:8080", e.Node[1], i+10))
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

// ending has the pods of a node terminate.
func ending(node string) func(*edge.Service) {
	return func(s *edge.Service) {
		for i := range s.Endpoints {
			if e := &s.Endpoints[i]; e.Node == node {
				e.Ready, e.Terminating = false, true
			}
		}
	}
}

func TestScenariosOfTheKernel(t *testing.T) {
	for name, change := range map[string]func(*Inputs){
		"nat-targets": func(in *Inputs) {
			onNAT(in)
			address := func(s *edge.Service) {
				s.Class, s.Ingress = "metallb.io/metallb", []edge.Ingress{{IP: netip.MustParseAddr("10.0.0.240")}}
			}
			in.Cluster.Services = []edge.Service{
				service("a/node-port", 9, at(80)), service("b/cluster", 8, at(81), cluster), service("c/pods", 7, at(82), annotate("target", "pod")),
				service("d/address", 6, at(83), address), service("e/address-cluster", 5, at(84), address, cluster),
				service("f/relayed", 4, at(85), annotate("data-plane", "proxy")),
				service("g/nobody", 3, at(86), func(s *edge.Service) { s.Endpoints = nil }),
				service("h/nobody", 2, dns, func(s *edge.Service) { s.Endpoints, s.Ports = nil, s.Ports[1:] }),
			}
		},
		"nat-in-files": func(in *Inputs) {
			nat := func(name string, port uint16, line int, backends ...string) config.Frontend {
				f := static(name, port, line, backends...)
				f.DataPlane, f.Terms = edge.DataPlaneNAT, config.DefaultTerms
				return f
			}
			always, listen, here := nat("always", 82, 22, "10.0.0.7:80"), nat("listen", 0, 23, "10.0.0.7:80", "10.11.12.9:80"), nat("here", 84, 24, "10.0.0.1:80", "10.11.12.32:8080")
			always.Masquerade = true
			listen.Zones, listen.Listen = nil, &config.Listen{Device: "eth1", Port: 83}
			lo, sctp := nat("loopback", 85, 25), nat("sctp", 80, 26, "10.0.0.7:2905")
			lo.Backends = []config.Backend{{Address: edge.HostPort{Host: "self", Port: 80}, Weight: 1}}
			in.Hosts["self"] = netip.MustParseAddr("127.0.1.1")
			sctp.Protocol = edge.SCTP
			two := nat("two-networks", 86, 27, "10.0.0.7:80")
			two.Zones = []string{"home", "cluster"}
			in.Config.Zones[0].Interfaces = []string{"eth1", "veth0"} // in one network
			in.Config.Zones[1].Interfaces = nil
			in.Config.Frontends = []config.Frontend{nat("web", 80, 20, "10.0.0.7:80"), nat("neighbour", 81, 21, "10.11.12.7:80"), always, listen, here, lo, sctp, two}
		},
		"nat-by-annotation": func(in *Inputs) {
			k := in.Config.Kubernetes
			k.OfRelay = []config.Setting{
				{Key: "balance", Why: "does not compare", Pos: edge.Pos{File: "gatehouse.yaml", Line: 12, Col: 3}},
				{Key: "connectTimeout", Why: "does not wait", Pos: edge.Pos{File: "gatehouse.yaml", Line: 13, Col: 3}},
				{Key: "idleTimeout", Why: "has the kernel's", Pos: edge.Pos{File: "gatehouse.yaml", Line: 14, Col: 3}},
				{Key: "transparent", Why: "relays nothing", Pos: edge.Pos{File: "gatehouse.yaml", Line: 15, Col: 3}},
				{Key: "sendProxyProtocol", Why: "cannot send it", Pos: edge.Pos{File: "gatehouse.yaml", Line: 16, Col: 3}},
			}
			k.Terms = edge.Terms{Balance: edge.BalanceLeastConnections, IdleTimeout: time.Hour, Transparent: true, SendProxyProtocol: edge.ProxyProtocolV2}
			nat := annotate("data-plane", "nat")
			in.Cluster.Services = []edge.Service{
				service("a/header-expected", 9, at(80), nat), service("b/no-header", 8, at(81), nat, annotate("send-proxy-protocol", "none")),
				service("c/udp", 7, nat, dns, func(s *edge.Service) { s.Ports = s.Ports[1:] }),
				service("c/udp-header", 7, nat, annotate("send-proxy-protocol", "v2"), dns, func(s *edge.Service) { s.Ports = s.Ports[1:]; s.Ports[0].Port = 54 }),
				service("d/own-times", 6, at(82), nat, annotate("send-proxy-protocol", "none"), annotate("idle-timeout", "5m"), annotate("balance", "source")),
				service("e/names", 5, at(83), nat, annotate("hostnames", "git.example.org")),
				service("f/header", 4, at(84), nat, annotate("send-proxy-protocol", "v1")),
				service("g/transparent", 3, at(85), nat, annotate("transparent", "true")),
				service("h/least", 2, at(86), nat, annotate("balance", "leastConnections")),
			}
		},
		"nat-within-limits": func(in *Inputs) {
			k := in.Config.Kubernetes
			onNAT(in) // as no file says it together with limits
			k.OfRelay = []config.Setting{{Key: "acceptProxyProtocol", Why: "cannot take it off", Pos: edge.Pos{File: "gatehouse.yaml", Line: 12, Col: 3}}}
			in.Cluster.Services = []edge.Service{service("a/both", 9, dns), service("b/names", 8, annotate("hostnames", "git.example.org"))}
		},
		"nat-limits": func(in *Inputs) {
			in.Config.Kubernetes.OfRelay = []config.Setting{{Key: "maxRatePerClient", Why: "counts nothing", Pos: edge.Pos{File: "gatehouse.yaml", Line: 12, Col: 3}}}
			in.Cluster.Services = []edge.Service{service("a/web", 9, annotate("data-plane", "nat"), annotate("zones", "home,internet"), func(s *edge.Service) { s.Namespace = "shop" })}
		},
		"nat-sctp": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Services = []edge.Service{service("tel/sig", 0, func(s *edge.Service) {
				s.Ports = append(s.Ports, edge.ServicePort{Name: "sctp", Protocol: edge.SCTP, Port: 80, NodePort: 30080})
				for _, e := range slices.Clone(s.Endpoints) {
					e.PortName, e.Protocol = "sctp", edge.SCTP
					s.Endpoints = append(s.Endpoints, e)
				}
			})}
		},
		"nat-dual-stack": func(in *Inputs) {
			onNAT(in)
			both := dualStack(in)
			in.Cluster.Services = []edge.Service{
				service("a/pods", 9, at(80), both, annotate("target", "pod")), service("b/node-ports", 8, at(81), both), service("c/cluster", 7, at(82), both, cluster),
				service("d/one-missing", 6, at(83), both, annotate("target", "pod"), func(s *edge.Service) { s.Endpoints = s.Endpoints[:11] }),
				service("e/ipv6", 5, at(84), both, annotate("target", "pod"), func(s *edge.Service) { s.IPFamilies, s.Endpoints = []string{"IPv6"}, s.Endpoints[6:] }),
			}
		},
		"nat-dual-stack-health": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Services = []edge.Service{service("a/pods", 9, dualStack(in), annotate("target", "pod"))}
			state, _ := Build(*in)
			for _, p := range state.Probes { // IPv4 is lost, and of IPv6 two are
				if a := p.Addr.Addr(); a.Is4() || a == netip.MustParseAddr("fd00:244:3::13") || a == netip.MustParseAddr("fd00:244:3::14") {
					in.Health[p] = edge.Health{State: edge.Down, Error: "no route"}
				} else {
					in.Health[p] = edge.Health{State: edge.Up}
				}
			}
		},
		"nat-terminating": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Nodes[2].Leaving = true
			in.Cluster.Services = []edge.Service{
				service("a/pods", 9, at(80), annotate("target", "pod"), ending("w1"), func(s *edge.Service) { s.Endpoints[1].Ready, s.Endpoints[1].Terminating = false, true }),
				service("b/node-ports", 8, at(81), ending("w1"), func(s *edge.Service) { s.Endpoints[1].Ready, s.Endpoints[1].Terminating = false, true }),
				service("c/all", 7, at(82), annotate("target", "pod"), ending("w1"), ending("w2"), ending("w3")),
				service("d/not-serving", 6, at(83), annotate("target", "pod"), ending("w1"), func(s *edge.Service) { s.Endpoints[0].Serving = false }),
				service("e/relayed", 5, at(84), annotate("data-plane", "proxy"), annotate("target", "pod"), ending("w1")),
			}
		},
		"nat-same-side": func(in *Inputs) {
			onNAT(in)
			in.Interfaces = append(in.Interfaces, device("vip0", "10.0.0.5/32")) // is in no network
			toCluster := annotate("zones", "cluster")
			sticky := func(s *edge.Service) { s.AffinityTimeout = time.Hour }
			in.Cluster.Services = []edge.Service{
				service("a/hairpin", 9, at(80), toCluster), service("b/hairpin-pods", 8, at(81), toCluster, annotate("target", "pod")),
				service("c/sticky", 7, at(82), toCluster, sticky), service("d/sticky-across", 6, at(83), sticky),
				service("e/udp", 5, dns, toCluster, func(s *edge.Service) { s.Ports = s.Ports[1:] }),
			}
		},
		"nat-masquerade-always": func(in *Inputs) {
			onNAT(in)
			in.Config.Kubernetes.Masquerade = true
			in.Cluster.Services = []edge.Service{
				service("a/masked", 9, at(80)), service("b/relayed", 8, at(81), annotate("data-plane", "proxy")),
				service("c/sticky", 7, at(82), func(s *edge.Service) { s.AffinityTimeout = time.Hour }),
			}
		},
		"nat-cannot-be-had": func(in *Inputs) {
			onNAT(in)
			in.NoNAT = "the nft command is not installed"
			in.Cluster.Services = []edge.Service{service("a/web", 9), service("b/relayed", 8, at(81), annotate("data-plane", "proxy")), service("c/younger", 7, annotate("data-plane", "proxy"))}
		},
		"nat-without-forwarding": func(in *Inputs) {
			onNAT(in)
			in.NoForwarding4, in.NoForwarding6 = true, true
			in.Cluster.Services = []edge.Service{service("a/web", 9), service("b/nobody", 8, at(81), func(s *edge.Service) { s.Endpoints = nil })}
			here := static("here", 82, 20, "10.0.0.1:80", "10.0.0.7:80")
			here.DataPlane = edge.DataPlaneNAT
			in.Config.Frontends = []config.Frontend{here}
		},
		"nat-without-forwarding-of-ipv6": func(in *Inputs) {
			onNAT(in)
			in.NoForwarding6 = true
			in.Cluster.Services = []edge.Service{service("a/web", 9, dualStack(in), annotate("target", "pod"))}
		},
		"nat-on-a-node": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Nodes[1].Addrs[0] = netip.MustParseAddr("10.0.0.1")
			in.Cluster.Services = []edge.Service{service("a/web", 9), service("b/pods", 8, at(81), annotate("target", "pod"))}
		},
		"nat-door-is-taken": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Services = []edge.Service{service("a/web", 9), service("b/web", 8, at(22))}
			in.Doors[edge.Door{Protocol: edge.TCP, Listen: edge.Listen{Device: "eth1", Port: 22}}] = "listen on @eth1:22: address already in use: port 22 is held by sshd (process 512)"
		},
		"nat-conflicts-with-the-relay": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/nat", 2, annotate("data-plane", "nat")), service("b/relayed", 1), service("c/older", 9, at(81)), service("d/nat", 8, at(81), annotate("data-plane", "nat"))}
		},
		"pod-routes": func(in *Inputs) {
			in.Config.Kubernetes.PodRoutes = true
			podNetworks(in)
			pods := annotate("target", "pod")
			in.Cluster.Nodes[1].PodCIDRs = nil
			in.Cluster.Services = []edge.Service{
				service("a/one-unknown", 9, at(80), pods), service("b/node-port", 8, at(81), func(s *edge.Service) { s.Endpoints[0].Addr = netip.MustParseAddrPort("10.250.0.1:80") }),
				service("c/host-network", 7, at(82), pods, func(s *edge.Service) {
					s.Endpoints = s.Endpoints[:1]
					s.Endpoints[0].Addr = netip.MustParseAddrPort("10.0.0.101:80")
				}),
				service("d/no-node", 6, at(83), pods, func(s *edge.Service) { s.Endpoints = s.Endpoints[:1]; s.Endpoints[0].Node = "" }),
				service("e/connected", 5, at(84), pods, func(s *edge.Service) {
					s.Endpoints = s.Endpoints[:1]
					s.Endpoints[0].Addr = netip.MustParseAddrPort("10.0.0.77:80")
				}),
			}
		},
		"pod-routes-that-would-be-wrong": func(in *Inputs) {
			in.Config.Kubernetes.PodRoutes = true
			in.Cluster.Nodes[0].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
			in.Cluster.Nodes[1].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			in.Cluster.Nodes[2].PodCIDRs, in.Cluster.Nodes[2].Addrs = []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}, []netip.Addr{netip.MustParseAddr("fd00:0:0:1::103")}
			for i := range 3 {
				in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/on-w%d", i+1), 9-i, at(uint16(80+i)), annotate("target", "pod"), func(s *edge.Service) {
					s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e edge.Endpoint) bool { return e.Node != fmt.Sprintf("w%d", i+1) })
				}))
			}
		},
		"pod-routes-to-what-ends": func(in *Inputs) {
			in.Config.Kubernetes.PodRoutes = true
			podNetworks(in)
			in.Cluster.Services = []edge.Service{service("shop/web", 9, annotate("target", "pod"), ending("w1"), func(s *edge.Service) { s.Endpoints[1].Ready, s.Endpoints[2].Ready = false, false })}
		},
		"pod-routes-to-two-nodes": func(in *Inputs) {
			in.Config.Kubernetes.PodRoutes = true
			podNetworks(in)
			in.Cluster.Nodes[0].PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
			in.Cluster.Nodes[1].PodCIDRs = in.Cluster.Nodes[0].PodCIDRs
			in.Cluster.Services = []edge.Service{service("shop/web", 9, annotate("target", "pod"))}
		},
		"no-pod-routes": func(in *Inputs) {
			podNetworks(in)
			in.Cluster.Services = []edge.Service{service("shop/web", 9, annotate("target", "pod")), service("shop/odd", 8, at(81), annotate("target", "pod"), func(s *edge.Service) { s.Endpoints[0].Node = "" })}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			change(&in)
			golden(t, name, render(Build(in)))
		})
	}
}

// Whatever is asked for, the shares of each IP family are a whole or nothing, and
// no pod is counted twice.
func TestSharesOfTheKernelAreOfOneFamily(t *testing.T) {
	in := site()
	onNAT(&in)
	both := dualStack(&in)
	for i := range 40 {
		in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("shop/s%d", i), i, both, at(uint16(1000+i)), func(s *edge.Service) {
			annotate("target", []string{"pod", "nodePort"}[i%2])(s)
			s.Local = i%4 < 2
			s.Endpoints = s.Endpoints[i%7 : len(s.Endpoints)-i%5]
		}))
	}
	state, _ := Build(in)
	for i, p := range state.Probes {
		in.Health[p] = edge.Health{State: []edge.BackendState{edge.Up, edge.Down, edge.Pending, edge.Down}[i%4]}
	}
	state, _ = Build(in)
	isWhole := func(x float64) bool { return math.Abs(x-1) < 1e-9 }
	for _, e := range state.Exposures {
		var sums [2]float64
		var has [2]bool
		for _, k := range e.Backends {
			f := family(k.Addr.Addr())
			sums[f] += k.Share
			has[f] = true
		}
		for f := range sums {
			if has[f] != isWhole(sums[f]) {
				t.Errorf("%s: %s backends (%t) have a share of %f", e.Name, familyNames[f], has[f], sums[f])
			}
		}
		pods, sum := map[string]bool{}, 0.0
		for _, p := range e.Shares {
			if pods[p.Pod] {
				t.Errorf("%s: %s is there twice", e.Name, p.Pod)
			}
			pods[p.Pod] = true
			sum += p.Share
		}
		if !isWhole(sum) {
			t.Errorf("%s: the pods have a share of %f", e.Name, sum)
		}
	}
}

// What the kernel gets is what it keeps: terms that it has no use for would move
// nothing and say something.
func TestTermsOfTheKernel(t *testing.T) {
	in := site()
	onNAT(&in)
	in.Config.Kubernetes.Terms = config.DefaultTerms
	k := in.Config.Kubernetes
	k.DrainTimeout, k.CloseWhenDown, k.RefuseWhenDown = time.Minute, true, true
	in.Cluster.Services = []edge.Service{service("shop/web", 0, annotate("idle-timeout", "1m"), func(s *edge.Service) { s.AffinityTimeout = time.Hour })}
	state, _ := Build(in)
	want := edge.Terms{
		DrainTimeout: time.Minute, CloseWhenDown: true, RefuseWhenDown: true, Balance: edge.BalanceSource, AffinityTimeout: time.Hour,
		SendProxyProtocol: edge.ProxyProtocolNone,
	}
	if len(state.Frontends) != 1 || state.Frontends[0].Terms != want || state.Frontends[0].DataPlane != edge.DataPlaneNAT {
		t.Errorf("got %+v, want %+v", state.Frontends, want)
	}
	if !state.NAT {
		t.Error("nat is not wanted")
	}
}
