package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// withPools gives the zone home addresses of both families, the zone cluster some
// that have to be asked for, and the namespace shop some that are routed here.
func withPools(in *Inputs) {
	in.Config.Pools = []config.Pool{
		{Name: "home-v4", Zone: "home", Addresses: ranges("10.11.12.64-10.11.12.67"), Auto: true, Pos: edge.Pos{File: "gatehouse.yaml", Line: 11, Col: 5}},
		{Name: "home-v6", Zone: "home", Addresses: ranges("fd00:0:0:12::1000-fd00:0:0:12::10ff"), Auto: true, Pos: edge.Pos{File: "gatehouse.yaml", Line: 12, Col: 5}},
		{Name: "spare", Zone: "home", Addresses: ranges("10.11.12.96-10.11.12.97"), Pos: edge.Pos{File: "gatehouse.yaml", Line: 13, Col: 5}},
		{Name: "public", Zone: "internet", Addresses: ranges("198.51.100.0-198.51.100.15"), Auto: true, Who: config.Who{Namespaces: []string{"shop"}}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 14, Col: 5}},
	}
	in.Config.Kubernetes.Finalizer = true
	in.Addresses = map[netip.Addr]edge.AddressState{}
}

func ranges(texts ...string) (all []edge.Range) {
	for _, t := range texts {
		first, last, _ := strings.Cut(t, "-")
		all = append(all, edge.Range{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)})
	}
	return all
}

func families(policy string, of ...string) func(*edge.Service) {
	return func(s *edge.Service) { s.IPFamilyPolicy, s.IPFamilies = policy, of }
}

func addressOf(texts ...string) (ingress []edge.Ingress) {
	for _, t := range texts {
		ingress = append(ingress, edge.Ingress{IP: netip.MustParseAddr(t), Mode: "Proxy"})
	}
	return ingress
}

// keptBefore is what a Service has had.
func keptBefore(addr, pool, zone, service string) edge.Allocation {
	return edge.Allocation{Addr: netip.MustParseAddr(addr), Pool: pool, Zone: zone, Service: service, UID: "uid-" + service}
}

// appear puts addresses of pools where they are to be, as Linux then says it.
func appear(in *Inputs, state State) {
	in.Addresses = map[netip.Addr]edge.AddressState{}
	for i := range in.Interfaces {
		in.Interfaces[i].Addrs = slices.DeleteFunc(slices.Clone(in.Interfaces[i].Addrs), netip.Prefix.IsSingleIP)
		for _, a := range state.Addresses {
			if a.Device == in.Interfaces[i].Name {
				in.Interfaces[i].Addrs = append(in.Interfaces[i].Addrs, netip.PrefixFrom(a.Addr, a.Addr.BitLen()))
				in.Addresses[a.Addr] = edge.AddressState{Ready: true}
			}
		}
	}
	in.Allocations = state.Allocations
}

// renderAddresses is what render says, without what is behind the doors, and
// what it does not say of addresses and statuses.
func renderAddresses(state State, problems []edge.Problem) string {
	var b strings.Builder
	for line := range strings.Lines(render(state, problems)) {
		if !slices.ContainsFunc([]string{"  ->", "  sees", "     ", "probe ", "status "}, func(p string) bool { return strings.HasPrefix(line, p) }) {
			b.WriteString(line)
		}
	}
	for _, a := range state.Addresses {
		fmt.Fprintf(&b, "address %s on %s (%s)\n", a.Addr, a.Device, a.Why)
	}
	for _, a := range state.Allocations {
		fmt.Fprintf(&b, "allocation %s of %s in %s for %s", a.Addr, a.Pool, a.Zone, a.Service)
		if a.Held {
			b.WriteString(", held")
		}
		b.WriteString("\n")
	}
	for _, s := range state.Statuses {
		fmt.Fprintf(&b, "status %s/%s finalizer=%t\n", s.Namespace, s.Name, s.Finalizer)
		for _, i := range s.Ingress {
			fmt.Fprintf(&b, "  %s %s %v\n", i.IP, i.Mode, i.Ports)
		}
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "  %s=%t %s: %s\n", c.Type, c.True, c.Reason, c.Message)
		}
	}
	return b.String()
}

func TestScenariosOfPools(t *testing.T) {
	both := families("RequireDualStack", "IPv6", "IPv4")
	for name, change := range map[string]func(*Inputs){
		"pools-give-addresses": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/web", 9), service("b/both", 8, both), service("c/from-the-cluster", 7, annotate("zones", "home,cluster")),
				service("shop/public", 6, annotate("zones", "internet")), service("ingress-public/web", 5, annotate("zones", "internet")),
				service("d/own", 4, annotate("zones", "cluster"), at(81)),
			}
		},
		"pools-beside-the-page": func(in *Inputs) { // which takes its port on the whole interface
			in.Config.Admin = config.Admin{Zones: []string{"home"}, Port: 9180, Pos: edge.Pos{File: "gatehouse.yaml", Line: 30, Col: 9}}
			in.Cluster.Services = []edge.Service{service("a/web", 1, func(s *edge.Service) {
				s.Ports = append(s.Ports, edge.ServicePort{Name: "page", Protocol: edge.TCP, Port: 9180, NodePort: 30918})
			})}
		},
		"pools-before-they-are-there": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/new", 9), service("b/asked", 8), service("c/conflict", 7, annotate("addresses", "10.11.12.97")),
				service("d/error", 6, annotate("addresses", "10.11.12.67")), service("e/part", 5, families("PreferDualStack", "IPv4", "IPv6")),
				service("f/known", 4, annotate("zones", "home,cluster"), annotate("addresses", "spare"), func(s *edge.Service) { s.StatusOurs, s.Ingress, s.Finalizer = true, addressOf("10.11.12.96"), true }),
			}
			for a, state := range map[string]edge.AddressState{
				"10.11.12.65": {}, "10.11.12.97": {Conflict: "52:54:00:12:34:56"}, "10.11.12.67": {Error: "interface eth1 is down"},
				"10.11.12.66": {Ready: true},
			} {
				in.Addresses[netip.MustParseAddr(a)] = state
			}
		},
		"pools-not-there-for-a-moment": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/web", 9, func(s *edge.Service) { s.StatusOurs, s.Ingress, s.Finalizer = true, addressOf("10.11.12.66"), true })}
			in.Addresses[netip.MustParseAddr("10.11.12.66")] = edge.AddressState{Error: "somebody has removed it"}
		},
		"pools-two-interfaces": func(in *Inputs) {
			in.Interfaces = append(in.Interfaces, device("eth2", "fd00:0:0:13::1/64"))
			in.Config.Zones[0].Interfaces = []string{"eth1", "eth2"}
			in.Cluster.Services = []edge.Service{
				service("a/four", 9), service("a/both", 8, families("RequireDualStack", "IPv4", "IPv6")), service("a/own", 7, at(81), annotate("addresses", "10.11.12.32")),
				// What somebody else has written in its status is nobody's word.
				service("a/says", 6, func(s *edge.Service) { s.Ingress = addressOf("10.11.12.67") }),
			}
		},
		"pools-second-interface-away": func(in *Inputs) {
			in.Config.Zones[0].Interfaces = []string{"eth1", "eth2"}
			in.Config.Pools = append(in.Config.Pools, config.Pool{Name: "other", Zone: "home", Addresses: ranges("10.11.13.64-10.11.13.79", "10.11.14.64-10.11.14.79"), Auto: true})
			in.Cluster.Services = []edge.Service{service("a/web", 9)}
			in.Allocations = []edge.Allocation{
				keptBefore("10.11.12.65", "home-v4", "home", "a/web"), keptBefore("10.11.13.64", "other", "home", "a/web"), keptBefore("10.11.14.64", "other", "home", "a/web"),
			}
		},
		"pools-half-of-what-is-asked": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/web", 9, annotate("zones", "home,cluster"), annotate("addresses", "10.11.12.66,fd00:0:0:99::1"), families("PreferDualStack", "IPv4", "IPv6"))}
		},
		"pools-conflict-moves-who-is-new": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{service("a/new", 9)}
			in.Allocations = []edge.Allocation{keptBefore("10.11.12.64", "home-v4", "home", "a/new")}
			in.Addresses[netip.MustParseAddr("10.11.12.64")] = edge.AddressState{Conflict: "52:54:00:12:34:56"}
			in.Addresses[netip.MustParseAddr("10.11.12.65")] = edge.AddressState{Ready: true}
		},
		"pools-used-up": func(in *Inputs) {
			for i := range 5 {
				in.Cluster.Services = append(in.Cluster.Services, service(fmt.Sprintf("a/web%d", i), 9-i, families("PreferDualStack", "IPv4", "IPv6")))
			}
			in.Cluster.Services = append(in.Cluster.Services, service("a/single", 4), service("a/require", 3, families("RequireDualStack", "IPv4", "IPv6"), annotate("zones", "home,cluster")))
		},
		"pools-requests": func(in *Inputs) {
			ask := func(text string) func(*edge.Service) { return annotate("addresses", text) }
			in.Config.Kubernetes.Allow["cluster"] = config.Allow{Who: config.Who{Labels: "tier=front"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 10, Col: 13}}
			in.Cluster.Services = []edge.Service{
				service("a/one", 29, ask("10.11.12.66, fd00:0:0:12::1001"), families("PreferDualStack", "IPv4", "IPv6")),
				service("b/taken", 28, ask("10.11.12.66")), service("b/nowhere", 27, ask("192.0.2.1")), service("b/pool-of-others", 26, ask("public"), annotate("zones", "home,internet")),
				service("b/address-of-others", 25, ask("198.51.100.3"), annotate("zones", "home")), service("c/own", 24, ask("10.11.12.32"), at(81)),
				service("c/pool", 23, ask("spare")), service("d/old-field", 22, func(s *edge.Service) { s.LoadBalancerIP = "10.11.12.65" }),
				service("d/annotation-first", 21, ask(""), func(s *edge.Service) { s.LoadBalancerIP = "10.11.12.200" }),
				service("d/old-field-wrong", 20, func(s *edge.Service) { s.LoadBalancerIP = "spare" }),
				service("e/unknown", 19, ask("spare,pool1")), service("e/scoped", 18, ask("fe80::1%eth1")), service("e/many", 17, ask(strings.Repeat("10.11.12.64,", 64))),
				service("e/key", 16, annotate("sharing-key", strings.Repeat("k", 254))),
				service("f/foreign", 15, ask("10.11.12.67"), func(s *edge.Service) { s.Class, s.Ingress = "metallb.io/metallb", addressOf("10.0.0.240") }),
				service("f/foreign-old-field", 14, at(82), func(s *edge.Service) {
					s.Class, s.Ingress, s.LoadBalancerIP = "metallb.io/metallb", addressOf("10.0.0.241"), "10.0.0.241"
				}),
				service("g/zone-not-allowed", 13, ask("10.0.0.1"), annotate("zones", "home,cluster")),
				service("g/allowed", 12, ask("10.0.0.1"), annotate("zones", "cluster"), func(s *edge.Service) { s.Labels = map[string]string{"tier": "front"} }),
				service("h/machine", 11, ask("10.99.0.1")),
			}
			in.Config.Pools = append(in.Config.Pools, config.Pool{Name: "odd", Zone: "home", Addresses: ranges("10.99.0.1-10.99.0.1")})
			in.Interfaces = append(in.Interfaces, device("wg0", "10.99.0.1/24"))
		},
		"pools-shared": func(in *Inputs) {
			key := annotate("sharing-key", "mail")
			in.Cluster.Services = []edge.Service{
				service("a/smtp", 9, key, at(25)), service("a/imap", 8, key, at(143)), service("a/late", 7, key, at(25)),
				service("b/smtp", 6, key, at(25)), service("a/alone", 5, at(25)),
			}
		},
		"pools-names-on-one-address": func(in *Inputs) {
			key := annotate("sharing-key", "web")
			in.Cluster.Services = []edge.Service{service("a/git", 9, key, named("git.example.org")), service("a/wiki", 8, key, named("wiki.example.org,git.example.org"))}
		},
		"pools-part-of-the-doors": func(in *Inputs) {
			in.Config.Pools = slices.Delete(in.Config.Pools, 1, 2) // without home-v6
			both, key := families("PreferDualStack", "IPv4", "IPv6"), annotate("sharing-key", "web")
			in.Cluster.Services = []edge.Service{
				service("a/older", 9, both), service("b/younger", 8, both), service("b/dns", 7, dns, both),
				service("shop/one", 6, annotate("zones", "internet")), service("shop/two", 5, annotate("zones", "internet")),
				service("a/git", 4, key, both, named("git.example.org")), service("a/wiki", 3, key, both, named("wiki.example.org,git.example.org")),
				service("c/git", 2, both, named("git.example.org,c.example.org")),
			}
		},
		"pools-open-at-those-of-another-zone": func(in *Inputs) { // the own address has gone to the older one, or the pool is used up
			in.Config.Pools = append(in.Config.Pools, config.Pool{Name: "one", Zone: "internet", Addresses: ranges("10.11.12.90-10.11.12.90"), Auto: true})
			in.Cluster.Services = []edge.Service{
				service("a/older", 9, annotate("zones", "cluster")), service("b/younger", 8, annotate("zones", "home,cluster")),
				service("ingress-public/has-it", 7, annotate("zones", "internet")), service("ingress-public/comes-late", 6, annotate("zones", "home,internet")),
			}
		},
		"pools-routed": func(in *Inputs) { // in place of the interface's own, unless that is asked for
			in.Cluster.Services = []edge.Service{
				service("shop/routed", 9, annotate("zones", "internet")),
				service("shop/asks", 8, annotate("zones", "internet"), annotate("addresses", "10.11.12.51")),
				service("shop/both", 7, annotate("zones", "internet"), families("PreferDualStack", "IPv4", "IPv6")),
			}
		},
		"pools-families": func(in *Inputs) {
			in.Cluster.Services = []edge.Service{
				service("a/require", 9, families("RequireDualStack", "IPv4", "IPv6"), annotate("zones", "home,internet"), func(s *edge.Service) { s.Namespace = "shop" }),
				service("b/younger", 8, annotate("zones", "internet"), families("SingleStack", "IPv4"), func(s *edge.Service) { s.Namespace = "ingress-public" }),
				service("shop/prefer", 7, annotate("zones", "internet"), families("PreferDualStack", "IPv6", "IPv4"), at(81)),
				service("shop/six", 6, annotate("zones", "internet,cluster"), families("SingleStack", "IPv6"), at(82)),
			}
		},
		"pools-interface-away": func(in *Inputs) {
			in.Interfaces = slices.Delete(in.Interfaces, 1, 2) // eth1
			in.Cluster.Services = []edge.Service{
				service("a/web", 9, annotate("zones", "home,cluster"), families("RequireDualStack", "IPv4", "IPv6"), func(s *edge.Service) { s.Finalizer = true }), service("b/own", 8, at(81), annotate("addresses", "spare")),
			}
			in.Allocations = []edge.Allocation{keptBefore("10.11.12.66", "home-v4", "home", "a/web"), keptBefore("fd00:0:0:12::1005", "home-v6", "home", "a/web")}
		},
		"pools-beside-files": func(in *Inputs) {
			in.Config.Frontends = []config.Frontend{static("own", 80, 20, "10.0.0.7:80"), static("everywhere", 0, 21, "10.0.0.7:80"), static("there", 0, 22, "10.0.0.7:80")}
			in.Config.Frontends[1].Zones, in.Config.Frontends[1].Listen = nil, &config.Listen{Port: 81}
			in.Config.Frontends[2].Zones, in.Config.Frontends[2].Listen = nil, &config.Listen{Host: "10.11.12.64", Port: 82}
			in.Cluster.Services = []edge.Service{service("a/web", 9, func(s *edge.Service) {
				for i := range 2 {
					s.Ports = append(s.Ports, edge.ServicePort{Name: "http", Protocol: edge.TCP, Port: uint16(81 + i), NodePort: 30081})
				}
			})}
		},
		"pools-nat": func(in *Inputs) {
			onNAT(in)
			in.Cluster.Services = []edge.Service{
				service("a/web", 9, annotate("zones", "home,cluster"), annotate("target", "pod")), service("b/relayed", 8, annotate("data-plane", "proxy"), annotate("zones", "home,cluster"), at(81)),
				service("c/sticky", 7, annotate("zones", "cluster"), at(82)),
			}
		},
		"pools-who-leaves": func(in *Inputs) {
			left := func(s *edge.Service) {
				s.StatusOurs, s.Finalizer, s.Ingress = true, true, addressOf("10.11.12.64")
				s.Conditions = []edge.Condition{{Type: conditionExposed, True: true, Reason: "Open", Message: "zone home at 10.11.12.64, port 80"}}
			}
			other := func(s *edge.Service) { s.Class, s.Ingress = "gatehouse.e13.dev/other", addressOf("10.20.30.40") }
			in.Config.Kubernetes.Selector = "!private"
			hidden := func(s *edge.Service) { s.Labels = map[string]string{"private": ""} }
			deleting := func(s *edge.Service) { s.Deleting = true }
			in.Cluster.Services = []edge.Service{
				service("a/deleting", 19, left, deleting), service("a/deleting-closed", 18, deleting), service("b/classless", 17, left, func(s *edge.Service) { s.Class = "" }),
				service("c/others", 16, left, other), service("c/others-deleting", 15, left, other, deleting), service("c/others-deleting-free", 14, other, deleting),
				service("d/hidden", 13, left, hidden), service("d/hidden-elsewhere", 12, left, hidden, func(s *edge.Service) { s.Ingress = addressOf("10.20.30.40") }),
				service("d/hidden-deleting", 12, left, hidden, deleting, func(s *edge.Service) { s.Ingress = addressOf("10.20.30.40") }),
				service("e/no-zone-any-more", 11, left, annotate("zones", "")), service("f/new", 10),
			}
			in.Allocations = []edge.Allocation{keptBefore("10.11.12.64", "home-v4", "home", "a/deleting"), keptBefore("10.11.12.65", "home-v4", "home", "a/gone")}
		},
		"pools-closed-by-a-mistake": func(in *Inputs) {
			wrong := func(s *edge.Service) { s.SourceRanges = []string{"10.11.12.0/33"} }
			in.Cluster.Services = []edge.Service{
				service("a/new", 9, wrong), service("a/open", 8, wrong), service("a/known", 7, annotate("addresses", "10.11.12.67,nothing"), func(s *edge.Service) { s.StatusOurs, s.Ingress = true, addressOf("10.11.12.67") }),
				service("b/asks", 6, annotate("addresses", "10.11.12.65")),
			}
			in.Allocations = []edge.Allocation{keptBefore("10.11.12.65", "home-v4", "home", "a/open")}
		},
		"pools-shared-with-a-mistake": func(in *Inputs) { // who shares an address keeps it, too
			key := annotate("sharing-key", "mail")
			in.Cluster.Services = []edge.Service{service("shop/smtp", 9, key, annotate("addresses", "10.11.12.6x")), service("shop/imap", 8, key, at(81))}
			in.Allocations = []edge.Allocation{keptBefore("10.11.12.65", "home-v4", "home", "shop/smtp"), keptBefore("10.11.12.65", "home-v4", "home", "shop/imap")}
		},
		"pools-no-finalizer": func(in *Inputs) {
			in.Config.Kubernetes.Finalizer = false
			in.Cluster.Services = []edge.Service{service("a/web", 9, func(s *edge.Service) { s.Finalizer = true })}
		},
		"pools-for-some": func(in *Inputs) {
			in.Config.Pools[0].Who = config.Who{Namespaces: []string{"a"}, NamespaceLabels: "tier in (front)", Labels: "expose!=no"}
			in.Config.Kubernetes.Allow["cluster"] = config.Allow{Who: config.Who{NamespaceLabels: "tier=front"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 10, Col: 13}}
			in.Cluster.Namespaces = map[string]map[string]string{"a": {}, "b": {"tier": "front"}, "c": {"tier": "back"}}
			no := func(s *edge.Service) { s.Labels = map[string]string{"expose": "no"} }
			in.Cluster.Services = []edge.Service{
				service("a/named", 9), service("b/labelled", 8), service("c/neither", 7, at(81)), service("a/not-this-one", 6, no, at(82)),
				service("b/cluster", 5, annotate("zones", "cluster")), service("a/cluster", 4, annotate("zones", "cluster"), at(81)), service("a/nowhere", 3, annotate("zones", "")),
				service("a/asks", 2, no, annotate("addresses", "home-v4")), service("d/unknown", 1, annotate("zones", "cluster"), at(82)),
			}
		},
		"pools-namespaces-not-known": func(in *Inputs) {
			in.Config.Pools[0].Who = config.Who{NamespaceLabels: "!private"}
			in.Config.Kubernetes.Allow["cluster"] = config.Allow{Who: config.Who{NamespaceLabels: "!private"}, Pos: edge.Pos{File: "gatehouse.yaml", Line: 10, Col: 13}}
			in.Cluster.Services = []edge.Service{service("a/web", 9, annotate("zones", "home,cluster"))}
		},
		"api-server": func(in *Inputs) {
			in.Config.Kubernetes.APIServer = &config.APIServer{Zones: []string{"home", "cluster"}, Port: 6443, Pos: edge.Pos{File: "gatehouse.yaml", Line: 15, Col: 3}}
			in.Cluster.APIServers = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.11:6443"), netip.MustParseAddrPort("10.0.0.10:6443")}
			in.Cluster.Services = []edge.Service{service("a/web", 9, at(6443)), service("b/web", 9, at(6443), annotate("zones", "cluster"))}
		},
		"api-server-by-nodes": func(in *Inputs) {
			in.Config.Kubernetes.APIServer = &config.APIServer{Zones: []string{"home"}, Port: 443, Pos: edge.Pos{File: "gatehouse.yaml", Line: 15, Col: 3}}
			in.Cluster.Nodes[0].ControlPlane, in.Cluster.Nodes[2].ControlPlane = true, true
			in.Cluster.Nodes[2].Addrs = append(in.Cluster.Nodes[2].Addrs, netip.MustParseAddr("fd00:0:0:1::103"))
		},
		"api-server-is-this-machine": func(in *Inputs) {
			in.Config.Kubernetes.APIServer = &config.APIServer{Zones: []string{"home"}, Port: 6443, Pos: edge.Pos{File: "gatehouse.yaml", Line: 15, Col: 3}}
			in.Cluster.APIServers = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443")}
		},
		"api-server-unknown": func(in *Inputs) {
			in.Config.Kubernetes.APIServer = &config.APIServer{Zones: []string{"home"}, Port: 6443, Pos: edge.Pos{File: "gatehouse.yaml", Line: 15, Col: 3}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := site()
			withPools(&in)
			change(&in)
			if name == "pools-nat" || name == "api-server" { // it matters whom backends see
				state, problems := Settled(in)
				golden(t, name, render(state, problems)+renderAddresses(state, nil))
			} else if len(in.Addresses) > 0 {
				golden(t, name, renderAddresses(Build(in)))
			} else {
				golden(t, name, renderAddresses(Settled(in)))
			}
		})
	}
}
