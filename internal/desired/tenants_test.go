package desired

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
)

// crowdPools has everything asked for that can be asked of pools, by more than
// they have.
func crowdPools(in *Inputs) {
	withPools(in)
	in.Config.Pools[0].Addresses = ranges("10.11.12.64-10.11.12.79", "10.11.12.90-10.11.12.90")
	in.Config.Kubernetes.Allow["internet"] = config.Allow{Who: config.Who{NamespaceLabels: "tier"}}
	in.Cluster.Namespaces = map[string]map[string]string{"shop": {"tier": "front"}, "a": {"tier": "back"}}
	for i := range in.Cluster.Services {
		s := &in.Cluster.Services[i]
		for name, values := range map[string][]string{
			"zones":       {"home,internet,cluster", "home", "cluster", "internet"},
			"sharing-key": {"", "", "a", "", "b"},
			"addresses":   {"", "", "", "spare", "", "10.11.12.70", "", "10.11.12.32", "", "", "192.0.2.1", "10.11.12.71,fd00:0:0:12::1001"},
		} {
			if v := values[i%len(values)]; v != "" {
				annotate(name, v)(s)
			}
		}
		s.Namespace = []string{"shop", "ingress-public", "a"}[i%3]
		s.UID = "uid-" + s.Key()
		s.IPFamilies, s.IPFamilyPolicy = []string{"IPv4", "IPv6"}[:1+i%2], []string{"", "PreferDualStack", "RequireDualStack"}[i%3]
		if i%5 == 0 {
			s.StatusOurs, s.Ingress = true, addressOf(fmt.Sprintf("10.11.12.%d", 64+i%9))
		}
	}
	in.Cluster.Services = append(in.Cluster.Services, service("shop/six", 99, annotate("zones", "internet"), families("SingleStack", "IPv6")))
	state, _ := Build(*in)
	for i, a := range state.Addresses {
		in.Addresses[a.Addr] = []edge.AddressState{{Ready: true}, {Ready: true}, {}, {Conflict: "52:54:00:12:34:56"}, {Error: "interface is down"}}[i%5]
	}
	in.Addresses[netip.MustParseAddr("10.11.12.70")] = edge.AddressState{Conflict: "52:54:00:12:34:56"} // is asked for
	in.Allocations = state.Allocations[:len(state.Allocations)/2]
	in.Allocations = append(slices.Clone(in.Allocations), keptBefore("10.11.12.90", "home-v4", "home", "shop/gone"))
}

// of is what a decision says of some Services.
func (s State) of(t *testing.T, namespace string) State {
	t.Helper()
	is := func(service string) bool { return strings.HasPrefix(service, namespace+"/") }
	var out State
	for _, e := range s.Exposures {
		if is(e.Service) {
			out.Exposures = append(out.Exposures, e)
		}
	}
	for _, f := range s.Frontends {
		if is(f.Name) {
			out.Frontends = append(out.Frontends, f)
		}
	}
	for _, a := range s.Addresses {
		if is(strings.TrimPrefix(a.Why, "service/")) {
			out.Addresses = append(out.Addresses, a)
		}
	}
	for _, a := range s.Allocations {
		if is(a.Service) {
			out.Allocations = append(out.Allocations, a)
		}
	}
	for _, st := range s.Statuses {
		if st.Namespace == namespace {
			out.Statuses = append(out.Statuses, st)
		}
	}
	if len(out.Exposures) == 0 {
		t.Fatal("there is nothing of namespace " + namespace)
	}
	return out
}

// open is what is open, and what clients know of that.
func (s State) open() State {
	out := State{Frontends: s.Frontends}
	for _, e := range s.Exposures {
		if e.Open {
			out.Exposures = append(out.Exposures, e)
		}
	}
	for _, st := range s.Statuses {
		out.Statuses = append(out.Statuses, edge.ServiceStatus{Name: st.Name, Ingress: st.Ingress})
	}
	return out
}

// doorsOf are the names that have each door: nobody else may have it too.
func doorsOf(s State) map[string]string {
	has := map[string]string{}
	for _, f := range s.Frontends {
		names := f.Hostnames
		if names == nil {
			names = []string{"(all)"}
		}
		for _, n := range names {
			has[fmt.Sprint(f.Door, " ", n)] += f.Name + " "
		}
	}
	return has
}

// victims are Services of namespace shop that have what somebody might want: an
// address, a shared one, names, and ports of this machine's own address.
func victims() Inputs {
	in := site()
	withPools(&in)
	in.Config.Pools[0].Addresses = ranges("10.11.12.64-10.11.12.95")
	key := annotate("sharing-key", "mail")
	in.Cluster.Services = []edge.Service{
		service("shop/web", 59), service("shop/smtp", 58, key, at(25)), service("shop/imap", 57, key, at(143)),
		service("shop/git", 56, annotate("addresses", "10.11.12.32"), named("git.example.org")),
		service("shop/public", 55, annotate("zones", "internet,home"), at(8080)),
		service("shop/dual", 54, families("RequireDualStack", "IPv4", "IPv6"), annotate("addresses", "10.11.12.80,fd00:0:0:12::1010")),
		service("shop/own", 53, annotate("zones", "cluster"), at(443)),
		service("shop/by-hand", 52, annotate("zones", "cluster"), at(444), func(s *edge.Service) {
			s.Ports[0].NodePort, s.Endpoints = 0, []edge.Endpoint{{PortName: "http", Protocol: edge.TCP, Addr: netip.MustParseAddrPort("10.0.0.1:8053"), Ready: true}}
		}),
	}
	return in
}

// run makes a decision true: addresses appear, and statuses are written.
func run(in *Inputs) {
	state, _ := Settled(*in)
	appear(in, state)
	state, _ = Build(*in)
	in.Allocations = state.Allocations
	written := map[string]edge.ServiceStatus{}
	for _, st := range state.Statuses {
		written[st.Namespace+"/"+st.Name] = st
	}
	for i := range in.Cluster.Services {
		s := &in.Cluster.Services[i]
		if st, ok := written[s.Key()]; ok {
			s.StatusOurs, s.Ingress, s.Conditions, s.Finalizer = true, st.Ingress, st.Conditions, st.Finalizer
		}
	}
}

// Whatever a younger Service of another namespace asks for or says of itself, it
// takes nothing from those that are there: no port, name or address. This holds
// while gatehouse runs, and when it starts and knows only what statuses say.
func TestTenantsCannotTakeWhatOthersHave(t *testing.T) {
	evil := func(change ...func(*edge.Service)) []edge.Service {
		return []edge.Service{service("evil/web", 0, change...)}
	}
	claims := func(addrs ...string) func(*edge.Service) {
		return func(s *edge.Service) { s.StatusOurs, s.Ingress = true, addressOf(addrs...) }
	}
	for name, attackers := range map[string][]edge.Service{
		"the port":                     evil(),
		"all ports":                    evil(func(s *edge.Service) { s.Ports = append(s.Ports, edge.ServicePort{Port: 443, Protocol: edge.TCP}) }),
		"the port everywhere":          evil(annotate("zones", "home,cluster,internet")),
		"the own address":              evil(annotate("addresses", "10.11.12.32"), at(443)),
		"the own address, all names":   evil(annotate("addresses", "10.11.12.32"), named("*")),
		"the name":                     evil(annotate("addresses", "10.11.12.32"), named("git.example.org")),
		"the name in capitals":         evil(annotate("addresses", "10.11.12.32"), named("GIT.example.org")),
		"the name by a wildcard":       evil(annotate("addresses", "10.11.12.32"), named("*.example.org")),
		"the address":                  evil(annotate("addresses", "10.11.12.64")),
		"the address, mapped":          evil(annotate("addresses", "::ffff:10.11.12.64")),
		"the address by the old field": evil(func(s *edge.Service) { s.LoadBalancerIP = "10.11.12.64" }),
		"each address":                 evil(annotate("addresses", "10.11.12.64,10.11.12.65,10.11.12.66,10.11.12.80,fd00:0:0:12::1010,198.51.100.0")),
		"the pool of others":           evil(annotate("addresses", "public"), annotate("zones", "internet")),
		"the key":                      evil(annotate("sharing-key", "mail"), at(26)),
		"the key with the namespace":   evil(annotate("sharing-key", "shop/mail"), at(25)),
		"the key, going up":            evil(annotate("sharing-key", "../shop/mail"), at(25)),
		"the key and the address":      evil(annotate("sharing-key", "mail"), annotate("addresses", "10.11.12.65"), at(26)),
		"a status that says so":        evil(claims("10.11.12.64", "10.11.12.65", "198.51.100.0")),
		"a status, and a request":      evil(claims("10.11.12.64"), annotate("addresses", "10.11.12.64")),
		"another's status":             evil(claims("10.11.12.64"), func(s *edge.Service) { s.StatusOurs = false }),
		"the UID":                      evil(func(s *edge.Service) { s.UID = "uid-shop/web" }),
		"the name of the Service":      {service("evil/shop", 0), service("sho/p/web", 0)},
		"another class": evil(func(s *edge.Service) {
			s.Class, s.Ingress = "metallb.io/metallb", addressOf("10.11.12.64", "10.11.12.32", "10.0.0.240")
		}),
		"another class, and an address": evil(annotate("addresses", "10.11.12.64"), func(s *edge.Service) { s.Class, s.Ingress = "metallb.io/metallb", addressOf("10.0.0.240") }),
		"deleting":                      evil(claims("10.11.12.64"), func(s *edge.Service) { s.Deleting, s.Finalizer = true, true }),
		"endpoints at the address":      evil(annotate("target", "pod"), func(s *edge.Service) { s.Endpoints[0].Addr = netip.MustParseAddrPort("10.11.12.64:9999") }),
		"the port of an endpoint":       evil(annotate("zones", "cluster"), at(8053)),
		"two families":                  evil(families("RequireDualStack", "IPv6", "IPv4"), annotate("addresses", "fd00:0:0:12::1010,10.11.12.80")),
		"no zone that is":               evil(annotate("zones", "home,nowhere"), annotate("addresses", "10.11.12.64")),
		"by the kernel":                 evil(annotate("data-plane", "nat"), annotate("addresses", "10.11.12.64")),
		"all of the pool": slices.Collect(func(yield func(edge.Service) bool) {
			for i := range 100 {
				if !yield(service(fmt.Sprintf("evil/web%d", i), 0)) {
					return
				}
			}
		}),
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restarted %t", name, restarted), func(t *testing.T) {
				in := victims()
				run(&in)
				want, _ := Build(in)
				if len(want.Addresses) != 6 || len(want.Frontends) < 8 {
					t.Fatalf("the victims have too little:\n%s", renderAddresses(want, nil))
				}
				if restarted {
					in.Allocations = nil
				}
				in.Cluster.Services = append(slices.Clone(in.Cluster.Services), attackers...)
				for range 3 { // and what it has got by then is of no use either
					got, problems := Build(in)
					if g, w := got.of(t, "shop"), want.of(t, "shop"); !reflect.DeepEqual(g, w) {
						t.Fatalf("namespace shop has\n%s\nand had\n%s", renderAddresses(g, problems), renderAddresses(w, nil))
					}
					for door, names := range doorsOf(got) {
						if strings.Contains(names, "shop/") && strings.Contains(names, "evil/") {
							t.Errorf("%s is of %s", door, names)
						}
					}
					for _, f := range got.Frontends {
						for _, k := range f.Backends {
							if k.Addr.Addr() == netip.MustParseAddr("10.11.12.64") {
								t.Errorf("%s leads to %s, which is this machine", f.Name, k.Addr)
							}
						}
					}
					run(&in)
				}
			})
		}
	}
}

// The same, for whatever comes of chance.
func TestYoungerServicesChangeNothingForOlderOnes(t *testing.T) {
	pick := func(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }
	random := func(r *rand.Rand, key string, age int) edge.Service {
		return service(key, age, func(s *edge.Service) {
			var texts []string
			for range 1 + r.IntN(3) {
				texts = append(texts, pick(r, fmt.Sprintf("10.11.12.%d", 60+r.IntN(24)), fmt.Sprintf("fd00:0:0:12::10%02x", r.IntN(4)), "home-v4", "spare", "10.11.12.32", "10.0.0.1", "198.51.100.1"))
			}
			for _, a := range [][]string{
				{"zones", "home", "home,cluster", "internet", "cluster,internet,home", "nowhere,home"},
				{"addresses", "", "", strings.Join(texts, ",")},
				{"sharing-key", "", "", "a", "b", "shop/a"},
				{"hostnames", "", "", "git.example.org", "*.example.org", "git.example.org,wiki.example.org", "*"},
				{"data-plane", "", "", "nat"},
				{"target", "", "pod"},
			} {
				if v := pick(r, a[1:]...); v != "" {
					annotate(a[0], v)(s)
				}
			}
			s.Ports[0].Port = uint16(80 + r.IntN(3))
			if r.IntN(4) == 0 {
				s.LoadBalancerIP = texts[0]
			}
			if r.IntN(4) == 0 {
				s.StatusOurs, s.Ingress = r.IntN(4) > 0, addressOf(fmt.Sprintf("10.11.12.%d", 64+r.IntN(16)))
			}
			s.IPFamilies, s.IPFamilyPolicy = []string{"IPv4", "IPv6"}[:1+r.IntN(2)], pick(r, "SingleStack", "PreferDualStack", "RequireDualStack")
			s.Deleting, s.Finalizer = r.IntN(9) == 0, r.IntN(2) == 0
			s.Class = pick(r, s.Class, s.Class, s.Class, "", "metallb.io/metallb")
			if r.IntN(5) == 0 {
				s.Endpoints[0].Addr = netip.MustParseAddrPort(pick(r, "10.11.12.64:80", "10.0.0.1:81", "10.11.12.32:80"))
			}
		})
	}
	changed := 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		in := site()
		withPools(&in)
		in.Config.Pools[0].Addresses = ranges("10.11.12.64-10.11.12.72")
		in.Config.Kubernetes.Allow = map[string]config.Allow{"cluster": {Who: config.Who{Namespaces: []string{"shop", "evil"}}}}
		in.Config.Pools[2].Who = config.Who{Namespaces: []string{"shop"}}
		for i := range 8 {
			in.Cluster.Services = append(in.Cluster.Services, random(r, fmt.Sprintf("shop/s%d", i), 20+r.IntN(40)))
		}
		run(&in)
		run(&in) // who has asked in vain has seen that
		// When gatehouse starts without what it has kept, statuses are all there is:
		// who has none has lost nothing.
		restarted := r.IntN(3) == 0
		if restarted {
			in.Allocations = nil
		}
		want, _ := Build(in)
		for i := range 1 + r.IntN(8) {
			in.Cluster.Services = append(in.Cluster.Services, random(r, fmt.Sprintf("evil/s%d", i), r.IntN(19)))
		}
		r.Shuffle(len(in.Cluster.Services), func(i, j int) {
			s := in.Cluster.Services
			s[i], s[j] = s[j], s[i]
		})
		got, problems := Build(in)
		g, w := got.of(t, "shop"), want.of(t, "shop")
		if restarted {
			g, w = g.open(), w.open()
		}
		if !reflect.DeepEqual(g, w) {
			t.Fatalf("seed %d: namespace shop has\n%s\nand had\n%s", seed, renderAddresses(g, problems), renderAddresses(w, nil))
		}
		changed += len(got.Frontends) - len(want.Frontends)
		in.Allocations = got.Allocations
		if again, _ := Build(in); !maps.Equal(addressesOf(got), addressesOf(again)) {
			t.Fatalf("seed %d: decided again there is\n%s\nand was\n%s", seed, renderAddresses(again, nil), renderAddresses(got, nil))
		}
	}
	if changed == 0 {
		t.Error("nobody younger has ever opened anything")
	}
}

func addressesOf(s State) map[string]bool {
	has := map[string]bool{}
	for _, a := range s.Allocations {
		has[fmt.Sprintf("%s %s %t", a.Addr, a.Service, a.Held)] = true
	}
	return has
}

// A Service that is deleted and made again has its address again, though it is
// younger than who has asked for it meanwhile.
func TestAddressesAreHeldForWhoComesBack(t *testing.T) {
	in := victims()
	run(&in)
	gone := in.Cluster.Services[0]
	in.Cluster.Services = append(slices.Clone(in.Cluster.Services[1:]), service("evil/web", 9, annotate("addresses", "10.11.12.64")))
	state, _ := Build(in)
	if i := slices.IndexFunc(state.Allocations, func(a edge.Allocation) bool { return a.Addr == netip.MustParseAddr("10.11.12.64") }); i < 0 || !state.Allocations[i].Held {
		t.Fatalf("10.11.12.64 is not held:\n%s", renderAddresses(state, nil))
	}
	in.Allocations = state.Allocations
	gone.UID, gone.Created, gone.StatusOurs, gone.Ingress = "new", gone.Created.Add(time.Hour*1000), false, nil
	in.Cluster.Services = append(in.Cluster.Services, gone)
	state, _ = Build(in)
	for _, a := range state.Allocations {
		if a.Addr == netip.MustParseAddr("10.11.12.64") && (a.Service != "shop/web" || a.UID != "new" || a.Held) {
			t.Errorf("it is %+v", a)
		}
	}
}
