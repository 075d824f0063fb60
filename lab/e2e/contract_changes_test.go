package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A Service that is changed while it is used: what is still to be served goes on
// being served, connections that are there included, and what is not is closed.
func contractChangesInUse(t *testing.T, plane string) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, plane string)
	}{
		{"type", changesType},
		{"port", changesPort},
		{"policy", changesPolicy},
		{"target", changesTarget},
		{"zones", changesZones},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, plane)
		})
	}
}

// steady is a stream of new connections of which none may fail, and one that stays.
type steady struct {
	load *load
	kept dialog
}

func startSteady(t *testing.T, address string) steady {
	t.Helper()
	eventually(t, 15*time.Second, "open", opened("home1", address))
	return steady{startLoad("home1", address, 20), dialogWith(t, "home1", address, "")}
}

// holds fails the test if one connection failed, or the one that stays was cut.
func (s steady) holds(t *testing.T, when string) {
	t.Helper()
	s.kept.goesOn(t, when)
	s.load.end(t)
	for _, f := range s.load.failed {
		t.Errorf("%s: %s", when, f)
	}
}

// LoadBalancer, ClusterIP, LoadBalancer: closed at once, and open again. Who is
// there stays until the drain timeout, if one was set.
func changesType(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "type", plane, port, nil)
	create(t, s, ready, ready, ready)
	at := atHome(port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	kept := dialogWith(t, "home1", at, "")
	for _, kind := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort} {
		become(t, s, kind, nil)
		eventually(t, 15*time.Second, "closed as "+string(kind), closed("home1", at))
		kept.goesOn(t, "as "+string(kind))
		become(t, s, corev1.ServiceTypeLoadBalancer, "gatehouse.e13.dev/edge")
		eventually(t, 15*time.Second, "open again", opened("home1", at))
		kept.goesOn(t, "as LoadBalancer again")
	}
}

// Another port: the new one is open, the old one closed, its connections stay.
func changesPort(t *testing.T, plane string) {
	ns, port, next := room(t), freshPort(), freshPort()
	s := told(ns, "port", plane, port, nil)
	create(t, s, ready, ready, ready)
	at := atHome(port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	kept := dialogWith(t, "home1", at, "")
	ports := func(numbers ...int) {
		t.Helper()
		list := []map[string]any{}
		for _, n := range numbers {
			list = append(list, map[string]any{"name": fmt.Sprintf("p%d", n), "port": n, "targetPort": tellerPort, "protocol": "TCP"})
		}
		patch(t, s, map[string]any{"spec": map[string]any{"ports": list}})
		e := slice(s, ready, ready, ready)
		first := e.Ports[0]
		e.Ports = nil
		for _, n := range numbers {
			name, p := fmt.Sprintf("p%d", n), first
			p.Name = &name
			e.Ports = append(e.Ports, p)
		}
		putSlice(t, e)
	}
	ports(port, next)
	eventually(t, 15*time.Second, "the other port is open", opened("home1", atHome(next)))
	eventually(t, 15*time.Second, "the first still is", opened("home1", at))
	other := dialogWith(t, "home1", atHome(next), "")
	ports(next)
	eventually(t, 15*time.Second, "the first is closed", func() error {
		_, err := get("home1", at, time.Second)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("not refused: %v", err)
		}
		return nil
	})
	kept.goesOn(t, "after its port was closed")
	other.goesOn(t, "after the other port was closed")
	eventually(t, 15*time.Second, "the other is open", opened("home1", atHome(next)))
}

// externalTrafficPolicy, there and back, under load.
func changesPolicy(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "policy", plane, port, byNodePort(corev1.ServiceExternalTrafficPolicyCluster))
	create(t, s, ready, ready, absent)
	const two, all = "10.0.0.101=1 10.0.0.102=1", "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1"
	eventually(t, 15*time.Second, "all nodes are up", func() error { return want(weightsUp(t, port), all) })
	l := startSteady(t, atHome(port))
	for _, to := range []struct {
		policy  corev1.ServiceExternalTrafficPolicy
		weights string
	}{
		{corev1.ServiceExternalTrafficPolicyLocal, two},
		{corev1.ServiceExternalTrafficPolicyCluster, all},
	} {
		patch(t, s, map[string]any{"spec": map[string]any{"externalTrafficPolicy": to.policy}})
		eventually(t, 20*time.Second, "policy "+string(to.policy), func() error { return want(weightsUp(t, port), to.weights) })
	}
	l.holds(t, "the policy was changed")
}

// nodePort to pod and back, under load.
func changesTarget(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "target", plane, port, byNodePort(corev1.ServiceExternalTrafficPolicyLocal))
	create(t, s, ready, ready, ready)
	eventually(t, 15*time.Second, "all nodes are up", func() error { return want(weightsUp(t, port), "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1") })
	l := startSteady(t, atHome(port))
	for _, target := range []string{"pod", "nodePort", "auto"} {
		annotate(t, s, map[string]string{"gatehouse.e13.dev/target": target})
		eventually(t, 20*time.Second, "target "+target, func() error {
			f, _ := openAt(t, port)
			n := 0
			for _, b := range f.Backends {
				isPod := b.Addr[len("10.0.0.101:"):] == fmt.Sprint(tellerPort)
				if !b.Draining && b.State == "up" && isPod == (target == "pod") {
					n++
				}
			}
			return want(fmt.Sprint(n), "3")
		})
	}
	l.holds(t, "the target was changed")
}

// A zone more and a zone less: nothing happens to the one that stays.
func changesZones(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "zones", plane, port, nil)
	create(t, s, ready, ready, ready)
	l := startSteady(t, atHome(port))
	inCluster := fmt.Sprintf("%s:%d", clusterAddr, port)
	for range 2 {
		annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": "home,cluster"})
		eventually(t, 15*time.Second, "open in the cluster", opened("w1", inCluster))
		eventually(t, 15*time.Second, "both are in the status", ingressIs(t, ns, "zones", homeAddr+","+clusterAddr))
		annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": "home"})
		eventually(t, 15*time.Second, "closed in the cluster", closed("w1", inCluster))
		eventually(t, 15*time.Second, "one is in the status", ingressIs(t, ns, "zones", homeAddr))
	}
	l.holds(t, "a zone came and went")
}
