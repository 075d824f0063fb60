package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// gatehouse is stopped, killed and started: addresses stay where they are, what
// the kernel moves goes on, and each Service has its own again.
func poolRestart(t *testing.T) {
	ns := room(t)
	ports, addresses, versions := map[string]int{}, map[string]string{}, map[string]string{}
	for _, plane := range planes {
		ports[plane] = freshPort()
		create(t, told(ns, plane, plane, ports[plane], pooled("pool")), ready, ready, ready)
		addresses[plane] = given(t, ns, plane, 1)[0]
		eventually(t, 20*time.Second, "open", opened("home1", atPort(addresses[plane], ports[plane])))
		eventually(t, 20*time.Second, "the finalizer", finalized(t, ns, plane, true))
		eventually(t, 20*time.Second, "the condition", conditionIs(t, ns, plane, "gatehouse.e13.dev/Exposed", "True", "Open"))
		versions[plane] = serviceNow(t, ns, plane).ResourceVersion
	}
	moved := startSteady(t, atPort(addresses[nat], ports[nat]))
	for _, end := range []func(context.Context, string) error{lab.Stop, lab.Kill} {
		if err := end(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		for plane, address := range addresses {
			if err := want(onEdge(t, address), "eth1"); err != nil {
				t.Errorf("%s, with gatehouse ended: %v", plane, err)
			}
			if _, err := lab.Exec(t.Context(), "home2", "ping", "-c", "1", "-W", "2", address); err != nil {
				t.Errorf("%s, with gatehouse ended: %v", plane, err)
			}
		}
		if err := closed("w1", atPort(addresses[nat], ports[nat]))(); err != nil {
			t.Errorf("with gatehouse ended, from another zone: %v", err)
		}
		if err := lab.Start(t.Context(), "gatehouse"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "gatehouse is ready again", isReadyAgain)
		for plane, address := range addresses {
			eventually(t, 20*time.Second, "open again", opened("home1", atPort(address, ports[plane])))
			if s := serviceNow(t, ns, plane); s.ResourceVersion != versions[plane] {
				t.Errorf("%s was written to: %+v", plane, s)
			}
		}
	}
	moved.holds(t, "gatehouse was restarted")
	// A new one does not get what another has.
	create(t, told(ns, "new", proxy, freshPort(), pooled("pool")), ready, ready, ready)
	if address := given(t, ns, "new", 1)[0]; address == addresses[proxy] || address == addresses[nat] {
		t.Errorf("it is given %s, which another one has", address)
	}
}

// The cable of the home LAN is pulled and put back: Services keep their
// addresses, and whoever knows another machine by one of them by then is told.
func poolCable(t *testing.T) {
	ns, before := room(t), "02:00:00:00:00:98"
	at, addresses := map[string]string{}, map[string]string{}
	kept := map[string]dialog{}
	for _, plane := range planes {
		port := freshPort()
		create(t, told(ns, plane, plane, port, pooled("pool")), ready, ready, ready)
		addresses[plane] = given(t, ns, plane, 1)[0]
		at[plane] = atPort(addresses[plane], port)
		eventually(t, 20*time.Second, "open", opened("home1", at[plane]))
		kept[plane] = dialogWith(t, "home1", at[plane], "")
	}
	plugged := false
	plug := func() {
		plugged = true
		if err := lab.LinkUp("edge", "eth1"); err != nil {
			t.Error(err)
		}
	}
	if err := lab.LinkDown("edge", "eth1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !plugged {
			plug()
		}
	})
	eventually(t, 20*time.Second, "the edge box has noticed", func() error {
		state, err := lab.Exec(t.Context(), "edge", "cat", "/sys/class/net/eth1/carrier")
		if err == nil {
			err = want(strings.TrimSpace(state), "0")
		}
		return err
	})
	for plane, address := range addresses {
		if err := errors.Join(unserved("home1", at[plane])(), ingressIs(t, ns, plane, address)()); err != nil {
			t.Errorf("with the cable pulled: %v", err)
		}
		if _, err := lab.Exec(t.Context(), "home1", "ip", "neigh", "replace", address, "lladdr", before, "nud", "reachable", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	plug()
	mac := hardwareAddress(t, "edge", "eth1")
	for plane, address := range addresses {
		eventually(t, 20*time.Second, "home1 knows better, before it asks", func() error { return want(neighbour(t, "home1", "eth0", address), mac) })
		eventually(t, 20*time.Second, "open again", opened("home1", at[plane]))
		if err := ingressIs(t, ns, plane, address)(); err != nil {
			t.Error(err)
		}
		kept[plane].goesOn(t, "the cable was pulled and put back")
	}
}

// Addresses by request, of a pool by its name too, and what comes of asking for
// what one cannot have.
func poolRequest(t *testing.T) {
	ns := room(t)
	made := func(name string, change func(*corev1.Service)) (s *corev1.Service, port int) {
		t.Helper()
		port = freshPort()
		s = told(ns, name, proxy, port, change)
		create(t, s, ready, ready, ready)
		return s, port
	}
	has := func(name string, port int, address string) {
		t.Helper()
		eventually(t, 15*time.Second, name+" has what it asked for", ingressIs(t, ns, name, address))
		for a := range strings.SplitSeq(address, ",") {
			eventually(t, 20*time.Second, name+" is open", opened("home1", atPort(a, port)))
		}
	}
	s, port := made("exact", pooled("pool", asking(poolFree)))
	has("exact", port, poolFree)
	_, of := made("of-a-pool", pooled("pool", asking("asked")))
	has("of-a-pool", of, askedFirst)
	_, own := made("own", pooled("pool", asking(homeAddr)))
	has("own", own, homeAddr)
	for _, c := range []struct{ name, addresses, reason string }{
		{"in-use", poolFree, "AddressInUse"},
		{"in-no-pool", "10.11.12.250", "AddressNotInPool"},
		{"of-no-pool", "nobodys", "AnnotationInvalid"},
		{"not-allowed", smallAddr, "AddressNotAllowed"},
		{"of-another-zone", clusterAddr, "AddressNotInPool"},
	} {
		_, port := made(c.name, pooled("pool", asking(c.addresses)))
		eventually(t, 20*time.Second, c.name+": its owner is told", saidTo(t, ns, c.name, "Warning "+c.reason+": "))
		eventually(t, 20*time.Second, c.name+": the condition says so", conditionIs(t, ns, c.name, "gatehouse.e13.dev/Exposed", "False", c.reason))
		if err := errors.Join(ingressIs(t, ns, c.name, "")(), closed("home1", atHome(port))(), unserved("home1", atPort(poolFree, port))()); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// It asks for another one while it is used.
	kept := dialogWith(t, "home1", atPort(poolFree, port), "")
	annotate(t, s, map[string]string{"gatehouse.e13.dev/addresses": "10.11.12.233"})
	has("exact", port, "10.11.12.233")
	eventually(t, 20*time.Second, "closed at the one before", unserved("home1", atPort(poolFree, port)))
	kept.goesOn(t, "after the address was changed")
}

// Services with one key, in one namespace, have one address, and each its ports.
func poolSharing(t *testing.T, plane string) {
	ns := room(t)
	one, two := freshPort(), freshPort()
	create(t, told(ns, "one", plane, one, pooled("pool", sharing("mail"))), ready, ready, ready)
	address := given(t, ns, "one", 1)[0]
	create(t, told(ns, "two", plane, two, pooled("pool", sharing("mail"))), ready, ready, ready)
	eventually(t, 20*time.Second, "the other has the same", ingressIs(t, ns, "two", address))
	for _, port := range []int{one, two} {
		eventually(t, 20*time.Second, "both are open", opened("home1", atPort(address, port)))
	}
	anotherSecond(t, ns, "one")
	create(t, told(ns, "late", plane, one, pooled("pool", sharing("mail"))), ready, ready, ready)
	eventually(t, 20*time.Second, "one port, two Services", saidTo(t, ns, "late", "Warning PortConflict: "))
	if err := ingressIs(t, ns, "late", "")(); err != nil {
		t.Error(err)
	}
	create(t, told(ns, "other-key", plane, one, pooled("pool", sharing("web"))), ready, ready, ready)
	create(t, told(ns, "no-key", plane, one, pooled("pool")), ready, ready, ready)
	elsewhere := ns + "-2"
	makeNamespace(t, elsewhere)
	create(t, told(elsewhere, "two", plane, freshPort(), pooled("pool", sharing("mail"))), ready, ready, ready)
	seen := map[string]string{address: "one"}
	for name, at := range map[string]string{"other-key": ns, "no-key": ns, "two": elsewhere} {
		got := given(t, at, name, 1)[0]
		if seen[got] != "" {
			t.Errorf("%s/%s has %s, which is that of %s", at, name, got, seen[got])
		}
		seen[got] = at + "/" + name
	}
	// The first goes; the address stays with the others.
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the youngest has the port", ingressIs(t, ns, "late", address))
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(address, one)))
	if err := errors.Join(ingressIs(t, ns, "two", address)(), opened("home1", atPort(address, two))()); err != nil {
		t.Error(err)
	}
}

// A pool with one address: who comes second is told, and not opened elsewhere.
// When the first has gone the address is its own for a while, also for another
// Service of its name; then it is the other's.
func poolExhausted(t *testing.T) {
	ns, port, next := room(t), freshPort(), freshPort()
	create(t, told(ns, "first", proxy, port, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "the first has it", ingressIs(t, ns, "first", smallAddr))
	anotherSecond(t, ns, "first")
	create(t, told(ns, "second", proxy, next, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "the second is told", saidTo(t, ns, "second", "Warning PoolExhausted: "))
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "second", "gatehouse.e13.dev/Exposed", "False", "PoolExhausted"))
	if err := errors.Join(ingressIs(t, ns, "second", "")(), closed("home1", atHome(next))(), unserved("home1", atPort(smallAddr, next))()); err != nil {
		t.Error(err)
	}
	leave := func() {
		t.Helper()
		err := kube.CoreV1().Services(ns).Delete(t.Context(), "first", metav1.DeleteOptions{})
		if err == nil {
			err = kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), "first", metav1.DeleteOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the first is gone", gone(t, ns, "first"))
	}
	leave()
	create(t, told(ns, "first", proxy, port, pooled("small")), ready, ready, ready)
	eventually(t, 20*time.Second, "who comes back has it again", ingressIs(t, ns, "first", smallAddr))
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(smallAddr, port)))
	leave()
	left := time.Now()
	took := eventually(t, 2*time.Minute, "the second has it", ingressIs(t, ns, "second", smallAddr))
	if took < 45*time.Second {
		t.Errorf("the address was free %s after the first had gone", time.Since(left))
	}
	eventually(t, 20*time.Second, "and is open", opened("home1", atPort(smallAddr, next)))
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "nobody has it: it is not on the edge box any more", func() error { return want(onEdge(t, smallAddr), "") })
	if answers := whoHas(t, "home1", "eth0", smallAddr); len(answers) > 0 {
		t.Errorf("%q answer for it", answers)
	}
}

// Another machine has the address: it is not taken, and the event says who. When
// that one has gone the Service is open.
func poolTaken(t *testing.T) {
	ns, port := room(t), freshPort()
	home2 := func(verb string) error {
		_, err := lab.Exec(context.Background(), "home2", "ip", "addr", verb, takenAddr+"/24", "dev", "eth0")
		return err
	}
	if err := home2("add"); err != nil {
		t.Fatal(err)
	}
	there := true
	t.Cleanup(func() {
		if there {
			_ = home2("del")
		}
	})
	mac := hardwareAddress(t, "home2", "eth0")
	create(t, told(ns, "late", proxy, port, pooled("taken")), ready, ready, ready)
	eventually(t, 15*time.Second, "its owner is told by whom", func() error {
		for _, e := range eventsIn(t, ns, "late") {
			if strings.HasPrefix(e, "Warning AddressConflict: ") && strings.Contains(e, takenAddr) && strings.Contains(e, mac) {
				return nil
			}
		}
		return fmt.Errorf("the events are %q; want %s of %s", eventsIn(t, ns, "late"), takenAddr, mac)
	})
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "late", "gatehouse.e13.dev/Exposed", "False", "AddressConflict"))
	if err := errors.Join(ingressIs(t, ns, "late", "")(), want(onEdge(t, takenAddr), ""), closed("home1", atHome(port))()); err != nil {
		t.Error(err)
	}
	if answers := whoHas(t, "home1", "eth0", takenAddr); !slices.Equal(answers, []string{mac}) {
		t.Errorf("these answer for it: %q; want %s", answers, mac)
	}
	if err := home2("del"); err != nil {
		t.Fatal(err)
	}
	there = false
	took := eventually(t, 90*time.Second, "it has the address when the other one has gone", ingressIs(t, ns, "late", takenAddr))
	t.Logf("%.1f s after the other one has gone", took.Seconds())
	eventually(t, 20*time.Second, "open", opened("home1", atPort(takenAddr, port)))
}

// A Service of another class gets nothing of a pool, nor one that follows the
// address of another controller.
func poolForeign(t *testing.T) {
	ns, port := room(t), freshPort()
	foreign := func(s *corev1.Service) {
		class := "example.com/other"
		s.Spec.LoadBalancerClass = &class
		delete(s.Annotations, "gatehouse.e13.dev/target")
	}
	s := told(ns, "foreign", proxy, port, pooled("pool", foreign))
	s.Spec.Ports[0].Port = int32(port)
	create(t, s, ready, ready, ready)
	create(t, told(ns, "asks", proxy, freshPort(), pooled("pool", foreign, asking("10.11.12.227"))), ready, ready, ready)
	// Its address is that of a worker, where its own controller would have it.
	patchStatus(t, s, "example-controller", map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []map[string]any{{"ip": "10.0.0.101"}}}}})
	create(t, told(ns, "later", proxy, freshPort(), pooled("pool")), ready, ready, ready)
	if address := given(t, ns, "later", 1)[0]; address == "10.11.12.227" {
		t.Error("the address that it asked for was given to the next one")
	}
	for _, name := range []string{"foreign", "asks"} {
		now := serviceNow(t, ns, name)
		if len(now.Finalizers) > 0 || len(now.Status.Conditions) > 0 || len(eventsIn(t, ns, name)) > 1 {
			t.Errorf("%s was written to: %+v, %q", name, now, eventsIn(t, ns, name))
		}
	}
	if err := want(onEdge(t, "10.11.12.227"), ""); err != nil {
		t.Error(err)
	}
	if err := ingressIs(t, ns, "foreign", "10.0.0.101")(); err != nil {
		t.Error(err)
	}
	eventually(t, 20*time.Second, "it is followed, at the own address", func() error {
		if isOpen, why := rowOf(t, ns+"/foreign"); !isOpen {
			return errors.New(why)
		}
		return nil
	})
}

// spec.loadBalancerIP (deprecated since 1.24) asks for an address as the annotation
// does, which comes first.
func contractLoadBalancerIP(t *testing.T, plane string) {
	ns, port, other := room(t), freshPort(), freshPort()
	field, annotation := "10.11.12.224", "10.11.12.225"
	if plane == nat {
		field, annotation = "10.11.12.222", "10.11.12.223"
	}
	with := func(s *corev1.Service) { s.Spec.LoadBalancerIP = field }
	create(t, told(ns, "field", plane, port, pooled("pool", with)), ready, ready, ready)
	eventually(t, 15*time.Second, "it has it", ingressIs(t, ns, "field", field))
	eventually(t, 20*time.Second, "open", opened("home1", atPort(field, port)))
	create(t, told(ns, "both", plane, other, pooled("pool", with, asking(annotation))), ready, ready, ready)
	eventually(t, 15*time.Second, "the annotation comes first", ingressIs(t, ns, "both", annotation))
	eventually(t, 20*time.Second, "open", opened("home1", atPort(annotation, other)))
}
