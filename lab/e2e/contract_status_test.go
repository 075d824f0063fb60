package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// patchStatus changes a Service by way of its status, as a field manager.
func patchStatus(t *testing.T, s *corev1.Service, manager string, change any) {
	t.Helper()
	text, err := json.Marshal(change)
	if err == nil {
		_, err = kube.CoreV1().Services(s.Namespace).Patch(t.Context(), s.Name, types.StrategicMergePatchType, text, metav1.PatchOptions{FieldManager: manager}, "status")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// become makes a Service one of another type; NodePort and ClusterIP have no class.
func become(t *testing.T, s *corev1.Service, kind corev1.ServiceType, class any) {
	t.Helper()
	spec := map[string]any{"type": kind, "loadBalancerClass": class}
	if kind == corev1.ServiceTypeClusterIP {
		spec["externalTrafficPolicy"], spec["allocateLoadBalancerNodePorts"] = nil, nil
	}
	if kind == corev1.ServiceTypeNodePort {
		spec["allocateLoadBalancerNodePorts"] = nil
	}
	patch(t, s, map[string]any{"spec": spec})
}

// ports[].error and condition LoadBalancerPortsError (KEP-1435): a port that
// cannot be served is named, the others are served.
func contractPortsError(t *testing.T, plane string) {
	ns := room(t)
	if plane == proxy {
		mixedProtocols(t, ns)
	}
	taken, free := freshPort(), freshPort()
	create(t, told(ns, "first", plane, taken, nil), ready, ready, ready)
	eventually(t, 20*time.Second, "open", opened("home1", atHome(taken)))
	two := told(ns, "second", plane, taken, func(s *corev1.Service) {
		p := s.Spec.Ports[0]
		s.Spec.Ports[0].Name, p.Name, p.Port = "taken", "free", int32(free)
		s.Spec.Ports = append(s.Spec.Ports, p)
	})
	anotherSecond(t, ns, "first")
	makeService(t, two)
	e := slice(two, ready, ready, ready)
	port := e.Ports[0]
	one, other := "taken", "free"
	e.Ports[0].Name, port.Name = &one, &other
	e.Ports = append(e.Ports, port)
	putSlice(t, e)
	eventually(t, 20*time.Second, "the other port is open", opened("home1", atHome(free)))
	eventually(t, 20*time.Second, "the port that is taken has an error", func() error {
		s := serviceNow(t, ns, "second")
		if len(s.Status.LoadBalancer.Ingress) != 1 {
			return fmt.Errorf("addresses: %+v", s.Status.LoadBalancer.Ingress)
		}
		said := map[int32]string{}
		for _, p := range s.Status.LoadBalancer.Ingress[0].Ports {
			said[p.Port] = "well"
			if p.Error != nil {
				said[p.Port] = *p.Error
			}
		}
		return want(fmt.Sprint(said), fmt.Sprint(map[int32]string{int32(taken): "gatehouse.e13.dev/PortConflict", int32(free): "well"}))
	})
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "second", corev1.LoadBalancerPortsError, "True", ""))
	eventually(t, 20*time.Second, "it is open in part", conditionIs(t, ns, "second", "gatehouse.e13.dev/Exposed", "True", "PartlyOpen"))
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "there is no error any more", func() error {
		s := serviceNow(t, ns, "second")
		for _, in := range s.Status.LoadBalancer.Ingress {
			for _, p := range in.Ports {
				if p.Error != nil {
					return errors.New(*p.Error)
				}
			}
		}
		return errors.Join(conditionIs(t, ns, "second", corev1.LoadBalancerPortsError, "", "")(),
			conditionIs(t, ns, "second", "gatehouse.e13.dev/Exposed", "True", "Open")())
	})
	eventually(t, 20*time.Second, "it is open", opened("home1", atHome(taken)))
}

// mixedProtocols is a Service with a port that only the kernel can move.
func mixedProtocols(t *testing.T, ns string) {
	t.Helper()
	port := freshPort()
	s := told(ns, "mixed", proxy, port, func(s *corev1.Service) {
		p := s.Spec.Ports[0]
		s.Spec.Ports[0].Name, p.Name, p.Protocol = "tcp", "sctp", corev1.ProtocolSCTP
		s.Spec.Ports = append(s.Spec.Ports, p)
	})
	makeService(t, s)
	e := slice(s, ready, ready, ready)
	name := "tcp"
	e.Ports[0].Name = &name
	putSlice(t, e)
	eventually(t, 20*time.Second, "the TCP port is open", opened("home1", atHome(port)))
	eventually(t, 20*time.Second, "the SCTP port has an error", func() error {
		for _, in := range serviceNow(t, ns, "mixed").Status.LoadBalancer.Ingress {
			for _, p := range in.Ports {
				if p.Protocol == corev1.ProtocolSCTP && p.Error != nil {
					return want(*p.Error, "gatehouse.e13.dev/ProtocolNotSupported")
				}
			}
		}
		return errors.New("it has none")
	})
	eventually(t, 20*time.Second, "the condition says so", conditionIs(t, ns, "mixed", corev1.LoadBalancerPortsError, "True", ""))
}

// conditionIs is a condition for eventually: a Service has a condition of this
// type, status and, if it is not empty, reason; no status: it has none.
func conditionIs(t *testing.T, ns, name, kind, status, reason string) func() error {
	return func() error {
		s := serviceNow(t, ns, name)
		for _, c := range s.Status.Conditions {
			if c.Type == kind {
				if string(c.Status) != status || reason != "" && c.Reason != reason {
					return fmt.Errorf("%s is %s, %s: %s", kind, c.Status, c.Reason, c.Message)
				}
				return nil
			}
		}
		if status != "" {
			return fmt.Errorf("there is no condition %s", kind)
		}
		return nil
	}
}

// The status is written through the subresource, under gatehouse's name, when it
// changes and not otherwise. It is cleared when the Service leaves. What others
// have written beside it stays, and with somebody who writes it too nobody fights.
func contractStatus(t *testing.T) {
	t.Run("what does not change is not written", contractQuietStatus)
	t.Run("cleared when type or class leave", contractStatusCleared)
	t.Run("another controller", contractContested)
}

func contractQuietStatus(t *testing.T) {
	t.Parallel()
	ns, port := room(t), freshPort()
	s := told(ns, "quiet", proxy, port, nil)
	create(t, s, ready, ready, ready)
	eventually(t, 20*time.Second, "it has an address", ingressIs(t, ns, "quiet", homeAddr))
	eventually(t, 20*time.Second, "it has a condition", conditionIs(t, ns, "quiet", "gatehouse.e13.dev/Exposed", "True", "Open"))
	written := serviceNow(t, ns, "quiet")
	for _, f := range written.ManagedFields {
		var fields map[string]any
		if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &fields); err != nil {
			t.Fatal(err)
		}
		if _, status := fields["f:status"]; f.Manager == "gatehouse" && status && f.Subresource != "status" || f.Manager != "gatehouse" && status {
			t.Errorf("the status was written by %s, subresource %q", f.Manager, f.Subresource)
		}
	}
	for _, with := range [][]condition{{ready, notReady, ready}, {ready, absent, terminating}, {notReady, notReady, notReady}, {ready, ready, ready}} {
		set(t, s, with...)
		eventually(t, 15*time.Second, "gatehouse has seen the change", func() error {
			f, _ := openAt(t, port)
			n := 0
			for _, b := range f.Backends {
				if !b.Draining {
					n++
				}
			}
			ready := strings.Count(fmt.Sprint(with), fmt.Sprint(ready))
			return want(fmt.Sprint(n), fmt.Sprint(ready))
		})
	}
	for range 3 {
		if err := syscall.Kill(componentPID(t, "gatehouse"), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	// Something that follows: then what came before has been decided.
	other := told(ns, "later", proxy, freshPort(), nil)
	create(t, other, ready, ready, ready)
	eventually(t, 20*time.Second, "what follows is decided", ingressIs(t, ns, "later", homeAddr))
	if now := serviceNow(t, ns, "quiet"); now.ResourceVersion != written.ResourceVersion {
		t.Errorf("it was written again: %+v, before %+v", now, written)
	}
}

func contractStatusCleared(t *testing.T) {
	t.Parallel()
	ns, port := room(t), freshPort()
	s := told(ns, "leaves", proxy, port, nil)
	create(t, s, ready, ready, ready)
	ours := func() error {
		return errors.Join(ingressIs(t, ns, "leaves", homeAddr)(), conditionIs(t, ns, "leaves", "gatehouse.e13.dev/Exposed", "True", "Open")())
	}
	cleared := func() error {
		return errors.Join(ingressIs(t, ns, "leaves", "")(), conditionIs(t, ns, "leaves", "gatehouse.e13.dev/Exposed", "", "")(),
			want(strings.Join(serviceNow(t, ns, "leaves").Finalizers, ","), ""))
	}
	eventually(t, 20*time.Second, "it has an address", ours)
	patchStatus(t, s, "e2e", map[string]any{"status": map[string]any{"conditions": []metav1.Condition{{
		Type: "example.com/Seen", Status: metav1.ConditionTrue, Reason: "Seen", LastTransitionTime: metav1.Now(),
	}}}})
	for name, leave := range map[string]func(){
		"ClusterIP": func() { become(t, s, corev1.ServiceTypeClusterIP, nil) },
		"NodePort":  func() { become(t, s, corev1.ServiceTypeNodePort, nil) },
		"another class": func() {
			become(t, s, corev1.ServiceTypeClusterIP, nil)
			become(t, s, corev1.ServiceTypeLoadBalancer, "example.com/other")
		},
	} {
		leave()
		eventually(t, 20*time.Second, name+": it is cleared", cleared)
		eventually(t, 15*time.Second, name+": it is closed", closed("home1", atHome(port)))
		if err := conditionIs(t, ns, "leaves", "example.com/Seen", "True", "Seen")(); err != nil {
			t.Errorf("%s: somebody else's: %v", name, err)
		}
		become(t, s, corev1.ServiceTypeClusterIP, nil)
		become(t, s, corev1.ServiceTypeLoadBalancer, "gatehouse.e13.dev/edge")
		eventually(t, 20*time.Second, name+": it is back", ours)
		eventually(t, 15*time.Second, name+": it is open again", opened("home1", atHome(port)))
		if err := conditionIs(t, ns, "leaves", "example.com/Seen", "True", "Seen")(); err != nil {
			t.Errorf("%s and back: somebody else's: %v", name, err)
		}
	}
}

// contractContested plays another controller, which wants an address of its own
// in the status, and never gives in.
func contractContested(t *testing.T) {
	t.Parallel()
	ns, port := room(t), freshPort()
	const theirs = "192.0.2.1"
	s := told(ns, "wanted", proxy, port, nil)
	create(t, s, ready, ready, ready)
	eventually(t, 20*time.Second, "it has an address", ingressIs(t, ns, "wanted", homeAddr))
	insist := func() (again bool) {
		t.Helper()
		if ingressIs(t, ns, "wanted", theirs)() == nil {
			return false
		}
		patchStatus(t, s, "example-controller", map[string]any{"status": map[string]any{"loadBalancer": map[string]any{
			"ingress": []map[string]any{{"ip": theirs, "ipMode": "VIP"}},
		}}})
		return true
	}
	written := 0
	eventually(t, 60*time.Second, "its owner is told who else writes", func() error {
		if insist() {
			written++
		}
		return saidTo(t, ns, "wanted", "Warning StatusContested: ")()
	})
	for _, e := range eventsIn(t, ns, "wanted") {
		if strings.Contains(e, "StatusContested") && !strings.Contains(e, "example-controller") {
			t.Errorf("the event does not say who: %s", e)
		}
	}
	eventually(t, 20*time.Second, "the problems say who", func() error {
		if problems := problemsOf(t, ns+"/wanted"); !strings.Contains(problems, "example-controller") {
			return fmt.Errorf("they are %q", problems)
		}
		return nil
	})
	t.Logf("the other one has written %d times", written)
	if written > 5 {
		t.Errorf("it was fought with: written %d times", written)
	}
	// It is decided anew, and left alone; clients are served all the same.
	insist()
	set(t, s, ready, ready, absent)
	eventually(t, 15*time.Second, "decided anew", func() error { return want(weightsUp(t, port), "10.0.0.101=1 10.0.0.102=1") })
	other := told(ns, "later", proxy, freshPort(), nil)
	create(t, other, ready, ready, ready)
	eventually(t, 20*time.Second, "what follows is decided", ingressIs(t, ns, "later", homeAddr))
	if err := ingressIs(t, ns, "wanted", theirs)(); err != nil {
		t.Errorf("it is fought with: %v", err)
	}
	eventually(t, 20*time.Second, "clients are served", opened("home1", atHome(port)))
	// Whoever changes the Service may have ended it.
	annotate(t, s, map[string]string{"gatehouse.e13.dev/drain-timeout": "1h"})
	eventually(t, 15*time.Second, "after a change it is written again", ingressIs(t, ns, "wanted", homeAddr))
}

// Events say what happened once, and how often; who breaks and mends a Service
// all the time does not fill the cluster with them.
func contractEvents(t *testing.T) {
	ns, port := room(t), freshPort()
	s := told(ns, "told", proxy, port, nil)
	create(t, s, ready, ready, ready)
	eventually(t, 20*time.Second, "where it is open", saidTo(t, ns, "told", fmt.Sprintf("Normal ZoneOpened: open in zone home at %s, port %d", homeAddr, port)))
	const rounds = 6
	for range rounds {
		annotate(t, s, map[string]string{"gatehouse.e13.dev/target": "sideways"})
		eventually(t, 15*time.Second, "closed", closed("home1", atHome(port)))
		annotate(t, s, map[string]string{"gatehouse.e13.dev/target": "pod"})
		eventually(t, 15*time.Second, "open", opened("home1", atHome(port)))
	}
	eventually(t, 15*time.Second, "each thing is one event, and counted", func() error {
		list, err := kube.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		counts := map[string]int32{}
		for _, e := range list.Items {
			if e.Source.Component != "gatehouse" || e.ReportingController != "gatehouse" || e.InvolvedObject.UID == "" {
				return fmt.Errorf("an event of %q, on %+v", e.Source.Component, e.InvolvedObject)
			}
			if _, twice := counts[e.Reason]; twice {
				return fmt.Errorf("%s is there twice", e.Reason)
			}
			counts[e.Reason] = e.Count
		}
		if len(counts) != 2 || counts["AnnotationInvalid"] < rounds || counts["ZoneOpened"] < rounds {
			return fmt.Errorf("there are %v", counts)
		}
		return nil
	})
}
