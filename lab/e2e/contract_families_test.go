package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const homeAddr6 = "fd00:11:12::32"

// slice6 is the EndpointSlice of IPv6 of a bare Service.
func slice6(s *corev1.Service, conditions ...condition) *discoveryv1.EndpointSlice {
	e := slice(s, conditions...)
	e.Name, e.AddressType = s.Name+"-v6", discoveryv1.AddressTypeIPv6
	for i := range e.Endpoints {
		e.Endpoints[i].Addresses[0] = strings.Replace(e.Endpoints[i].Addresses[0], "10.0.0.", "fd00:10::", 1)
	}
	return e
}

// ofFamilies has a Service ask for IP families.
func ofFamilies(policy corev1.IPFamilyPolicy, families ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &policy, families }
}

// ipFamilyPolicy and ipFamilies (KEP-563): an address for each family of the
// Service, in its order, and they change with it.
func contractFamilies(t *testing.T, plane string) {
	ns := room(t)
	const v4, v6 = corev1.IPv4Protocol, corev1.IPv6Protocol
	const single, prefer, require = corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack
	both := map[string]string{home1Addr: homeAddr, "fd00:11:12::101": homeAddr6}
	made := map[string]*corev1.Service{}
	ports := map[string]int{}
	for _, c := range []struct {
		name      string
		change    func(*corev1.Service)
		addresses string
	}{
		{"single-v4", ofFamilies(single, v4), homeAddr},
		{"single-v6", ofFamilies(single, v6), homeAddr6},
		{"prefer-v4-v6", ofFamilies(prefer, v4, v6), homeAddr + "," + homeAddr6},
		{"prefer-v6-v4", ofFamilies(prefer, v6, v4), homeAddr6 + "," + homeAddr},
		{"require", ofFamilies(require, v4, v6), homeAddr + "," + homeAddr6},
		{"also-v4", ofFamilies(require, v6), homeAddr6 + "," + homeAddr},
	} {
		ports[c.name] = freshPort()
		made[c.name] = told(ns, c.name, plane, ports[c.name], c.change)
		makeService(t, made[c.name])
		for _, family := range serviceNow(t, ns, c.name).Spec.IPFamilies {
			if family == v4 {
				putSlice(t, slice(made[c.name], ready, ready, ready))
			} else {
				putSlice(t, slice6(made[c.name], ready, ready, ready))
			}
		}
		eventually(t, 20*time.Second, c.name+" has an address of each family", ingressIs(t, ns, c.name, c.addresses))
		for client, address := range both {
			if !strings.Contains(","+c.addresses+",", ","+address+",") {
				continue
			}
			at := net.JoinHostPort(address, fmt.Sprint(ports[c.name]))
			eventually(t, 20*time.Second, c.name+" is open at "+address, opened("home1", at))
			if a, err := get("home1", at, 2*time.Second); plane == nat && !strings.Contains(a.Client, client) {
				t.Errorf("%s sees %s, asked by %s: %v", at, a.Client, client, err)
			}
		}
	}

	// A family comes, and goes, while the other is used.
	s, at := made["single-v4"], atHome(ports["single-v4"])
	l := startSteady(t, at)
	for range 2 {
		patch(t, s, map[string]any{"spec": map[string]any{"ipFamilyPolicy": prefer, "ipFamilies": []string{"IPv4", "IPv6"}}})
		putSlice(t, slice6(s, ready, ready, ready))
		eventually(t, 20*time.Second, "the other family has come", ingressIs(t, ns, "single-v4", homeAddr+","+homeAddr6))
		eventually(t, 20*time.Second, "it is open", opened("home1", net.JoinHostPort(homeAddr6, fmt.Sprint(ports["single-v4"]))))
		patch(t, s, map[string]any{"spec": map[string]any{"ipFamilyPolicy": single, "ipFamilies": []string{"IPv4"}, "clusterIPs": serviceNow(t, ns, "single-v4").Spec.ClusterIPs[:1]}})
		eventually(t, 20*time.Second, "it has gone", ingressIs(t, ns, "single-v4", homeAddr))
	}
	l.holds(t, "a family came and went")
}

// A zone that has no IPv6: who requires both families is closed and told, who
// prefers them has the one.
func contractFamilyMissing(t *testing.T) {
	ns := room(t)
	for _, args := range [][]string{
		{"ip", "link", "add", "guest0", "link", "eth1", "type", "macvlan", "mode", "bridge"},
		{"ip", "addr", "add", "10.11.13.1/24", "dev", "guest0"},
		{"ip", "link", "set", "guest0", "up"},
	} {
		if _, err := lab.Exec(t.Context(), "edge", args...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { edgeRuns(t, "ip", "link", "del", "guest0") })
	configured(t, strings.Replace(config, "zones:\n", "zones:\n  guests:   {interfaces: [guest0]}\n", 1))
	guests := func(change func(*corev1.Service)) func(*corev1.Service) {
		return func(s *corev1.Service) {
			change(s)
			s.Annotations["gatehouse.e13.dev/zones"] = "guests"
		}
	}
	for _, c := range []struct {
		name      string
		change    func(*corev1.Service)
		addresses string
	}{
		{"require", ofFamilies(corev1.IPFamilyPolicyRequireDualStack, corev1.IPv4Protocol, corev1.IPv6Protocol), ""},
		{"prefer", ofFamilies(corev1.IPFamilyPolicyPreferDualStack, corev1.IPv6Protocol, corev1.IPv4Protocol), "10.11.13.1"},
		{"single-v6", ofFamilies(corev1.IPFamilyPolicySingleStack, corev1.IPv6Protocol), ""},
		{"single-v4", ofFamilies(corev1.IPFamilyPolicySingleStack, corev1.IPv4Protocol), "10.11.13.1"},
	} {
		port := freshPort()
		s := told(ns, c.name, proxy, port, guests(c.change))
		makeService(t, s)
		if c.name != "single-v6" {
			putSlice(t, slice(s, ready, ready, ready))
		}
		if c.name != "single-v4" {
			putSlice(t, slice6(s, ready, ready, ready))
		}
		if c.addresses == "" {
			eventually(t, 20*time.Second, c.name+": its owner is told", saidTo(t, ns, c.name, "Warning FamilyMissing: no IPv6 address in zone guests"))
			eventually(t, 20*time.Second, c.name+": the condition says so", conditionIs(t, ns, c.name, "gatehouse.e13.dev/Exposed", "False", "FamilyMissing"))
			if err := unserved("edge", fmt.Sprintf("10.11.13.1:%d", port))(); err != nil {
				t.Error(err)
			}
		}
		eventually(t, 20*time.Second, c.name+": addresses", ingressIs(t, ns, c.name, c.addresses))
	}
	edgeRuns(t, "ip", "addr", "add", "fd00:11:13::1/64", "dev", "guest0", "nodad")
	eventually(t, 20*time.Second, "who requires both has them now", ingressIs(t, ns, "require", "10.11.13.1,fd00:11:13::1"))
	eventually(t, 20*time.Second, "who prefers both has them now, in its order", ingressIs(t, ns, "prefer", "fd00:11:13::1,10.11.13.1"))
	edgeRuns(t, "ip", "addr", "del", "fd00:11:13::1/64", "dev", "guest0")
	eventually(t, 20*time.Second, "who requires both is closed again", ingressIs(t, ns, "require", ""))
}
