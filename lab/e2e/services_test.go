package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// opened and closed are conditions for eventually.
func opened(host, address string) func() error {
	return func() error { _, err := get(host, address, 500*time.Millisecond); return err }
}

func closed(host, address string) func() error {
	return func() error {
		if _, err := get(host, address, 500*time.Millisecond); !refused(err) {
			return fmt.Errorf("%s still answers %s: %v", address, host, err)
		}
		return nil
	}
}

// Promise 5 and its reverse: within a second of what kubectl has done, a
// Service is open or closed. The edge of the lab has routes to the pods, so
// that kube-proxy, which rewrites its rules once a second at most, has no part
// in it; opensThroughNodePorts has it.
func opensAndClosesWithinASecond(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 3))
	awaitPods(t, ns, "web")
	at := homeAddr + ":8030"

	create := func() {
		t.Helper()
		apply(t, on(plane, annotated(service(ns, "web", "web", "home", "Local", 8030), "gatehouse.e13.dev/target: pod")))
		took := eventually(t, time.Second, "open after kubectl apply", opened("home1", at))
		t.Logf("open %d ms after kubectl apply returned", took.Milliseconds())
		if err := closed("inet", at)(); err != nil {
			t.Errorf("open from another zone: %v", err)
		}
		eventually(t, 2*time.Second, "the address in the status", func() error { return want(ingressOf(t, ns, "web"), homeAddr) })
	}
	for name, change := range map[string]func(){
		"deleted":            func() { kubectl(t, "delete", "service", "-n", ns, "web") },
		"annotation removed": func() { kubectl(t, "annotate", "service", "-n", ns, "web", "gatehouse.e13.dev/zones-") },
		"another zone": func() {
			kubectl(t, "annotate", "service", "-n", ns, "web", "--overwrite", "gatehouse.e13.dev/zones=cluster")
		},
		"type changed": func() {
			kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"type":"ClusterIP","loadBalancerClass":null,"externalTrafficPolicy":null}}`)
		},
		"class changed": func() { // by way of another type: the API lets it happen in no other way
			kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"type":"NodePort","loadBalancerClass":null}}`)
			kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/other"}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			create()
			change()
			took := eventually(t, time.Second, "closed", closed("home1", at))
			t.Logf("closed %d ms after kubectl returned", took.Milliseconds())
			if name != "deleted" {
				wanted := map[string]string{"another zone": clusterAddr}[name]
				eventually(t, 2*time.Second, "status", func() error { return want(ingressOf(t, ns, "web"), wanted) })
				kubectl(t, "delete", "service", "-n", ns, "web")
			}
		})
	}
}

// Through node ports a new Service is open as soon as the node ports are: when
// kube-proxy has written its rules for it.
func opensThroughNodePorts(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 3))
	awaitPods(t, ns, "web")
	for i, policy := range []string{"Local", "Cluster"} {
		name, port := fmt.Sprintf("web-%d", i), 8035+i
		apply(t, on(plane, service(ns, name, "web", "home", policy, port)))
		start := time.Now()
		nodePort := kubectl(t, "get", "service", "-n", ns, name, "-o", "jsonpath={.spec.ports[0].nodePort}")
		kubeProxy := make(chan time.Duration, 1)
		go func() {
			for time.Since(start) < 10*time.Second {
				if _, err := get("edge", "10.0.0.101:"+nodePort, 200*time.Millisecond); err == nil {
					break
				}
			}
			kubeProxy <- time.Since(start)
		}()
		eventually(t, 5*time.Second, "open through node ports", opened("home1", fmt.Sprintf("%s:%d", homeAddr, port)))
		took, bound := time.Since(start), <-kubeProxy
		t.Logf("policy %s: open %d ms after kubectl apply returned, the first node port after %d ms", policy, took.Milliseconds(), bound.Milliseconds())
		if took > bound+500*time.Millisecond {
			t.Errorf("gatehouse took %s, kube-proxy %s", took, bound)
		}
	}
}

// Two Services that want one port: the older has it, and both are told. When
// it goes, the other gets it. They are on different data planes: the port is one.
func olderServiceKeepsThePort(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "first", "first", "", 1)+deployment(ns, "second", "second", "", 1))
	awaitPods(t, ns, "first", "second")
	other := planes[1-slices.Index(planes, plane)]
	at := homeAddr + ":8040"
	apply(t, on(plane, service(ns, "zz-older", "first", "home", "Local", 8040)))
	eventually(t, 2*time.Second, "open", opened("home1", at))
	anotherSecond(t, ns, "zz-older")
	apply(t, on(other, service(ns, "aa-younger", "second", "home", "Local", 8040)))
	eventually(t, 3*time.Second, "both are told", func() error {
		if e := eventsOf(t, ns, "aa-younger"); !strings.Contains(e, "Warning PortConflict: TCP port 8040 in zone home is taken by service "+ns+"/zz-older, which is older") {
			return fmt.Errorf("the younger is told %q", e)
		}
		if e := eventsOf(t, ns, "zz-older"); !strings.Contains(e, "Warning PortConflict: service "+ns+"/aa-younger also wants TCP port 8040") {
			return fmt.Errorf("the older is told %q", e)
		}
		return nil
	})
	for range 20 {
		if a, err := get("home1", at, time.Second); err != nil || !strings.HasPrefix(a.Pod, "first") {
			t.Fatalf("the younger has the port: %+v %v", a, err)
		}
	}
	if got := ingressOf(t, ns, "aa-younger"); got != "" {
		t.Errorf("the younger has an address: %s", got)
	}
	kubectl(t, "delete", "service", "-n", ns, "zz-older")
	eventually(t, 3*time.Second, "the younger gets the port", func() error {
		a, err := get("home1", at, time.Second)
		if err == nil && !strings.HasPrefix(a.Pod, "second") {
			err = fmt.Errorf("answer from %s", a.Pod)
		}
		return err
	})
}

// anotherSecond waits until what is created is younger than a Service: creation
// has the resolution of a second, and with equal ones the name decides.
func anotherSecond(t *testing.T, ns, older string) {
	t.Helper()
	created := kubectl(t, "get", "service", "-n", ns, older, "-o", "jsonpath={.metadata.creationTimestamp}")
	eventually(t, 3*time.Second, "another second", func() error {
		if time.Now().UTC().Format(time.RFC3339) == created {
			return errors.New("still the same")
		}
		return nil
	})
}

func scaledToZeroAndBack(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 2, "--linger", "0s")+echoPods(ns, "echo", "", 2)+
		on(plane, service(ns, "web", "web", "home", "Local", 8050)+udpService(ns, "udp", "pod", 8050, "")))
	awaitPods(t, ns, "web", "echo")
	at := homeAddr + ":8050"
	eventually(t, 5*time.Second, "open", opened("home1", at))
	eventually(t, 5*time.Second, "open for UDP", answers(t, "home1", at))
	kubectl(t, "scale", "deployment", "-n", ns, "web", "echo", "--replicas", "0")
	eventually(t, 5*time.Second, "connections are closed at once", func() error {
		start := time.Now()
		_, err := get("home1", at, time.Second)
		if err == nil || time.Since(start) > 100*time.Millisecond {
			return fmt.Errorf("took %s: %v", time.Since(start), err)
		}
		return nil
	})
	eventually(t, 2*time.Second, "the status says why", func() error {
		if _, body := admin(t, "/status.json"); !strings.Contains(body, "service/"+ns+"/web") || !strings.Contains(body, "no endpoint is ready") {
			return errors.New("no such problem")
		}
		return nil
	})
	eventually(t, 5*time.Second, "datagrams are refused at once", func() error {
		how, err := unanswered(asker(t, "home1", at))
		if err == nil {
			err = want(how, "ICMP port unreachable")
		}
		return err
	})
	kubectl(t, "scale", "deployment", "-n", ns, "web", "echo", "--replicas", "2")
	awaitPods(t, ns, "web", "echo")
	eventually(t, 3*time.Second, "open again", opened("home1", at))
	eventually(t, 3*time.Second, "open again for UDP", answers(t, "home1", at))
}

// The targets of a Service, and both traffic policies, reach the pods.
func targets(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 2))
	awaitPods(t, ns, "web")
	port := 8060
	for _, policy := range []string{"Local", "Cluster"} {
		for _, target := range []string{"auto", "nodePort", "pod"} {
			port++
			name := strings.ToLower(policy + "-" + target)
			apply(t, on(plane, service(ns, name, "web", "home", policy, port)))
			kubectl(t, "annotate", "service", "-n", ns, name, "gatehouse.e13.dev/target="+target)
			eventually(t, 5*time.Second, name, opened("home1", fmt.Sprintf("%s:%d", homeAddr, port)))
		}
	}

	// Without node ports there are the pods.
	apply(t, on(plane, strings.Replace(service(ns, "no-node-port", "web", "home", "Local", 8070), "spec:\n", "spec:\n  allocateLoadBalancerNodePorts: false\n", 1)))
	eventually(t, 5*time.Second, "without a node port", opened("home1", homeAddr+":8070"))

	// The address that another controller has assigned: here a node port of a
	// worker stands for it, with the class of that controller.
	manifest := strings.Replace(service(ns, "followed", "web", "home", "Cluster", 8071), "gatehouse.e13.dev/edge", "example.com/other", 1)
	apply(t, on(plane, manifest))
	if err := closed("home1", homeAddr+":8071")(); err != nil {
		t.Errorf("a Service of another class, without an address, is open: %v", err)
	}
	for _, args := range [][]string{
		{"w1", "ip", "addr", "replace", "10.0.0.240/32", "dev", "lo"},
		{"edge", "ip", "route", "replace", "10.0.0.240/32", "via", "10.0.0.101"},
	} {
		if _, err := lab.Exec(t.Context(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "patch", "service", "-n", ns, "followed", "--subresource=status", "--type=merge", "-p",
		`{"status":{"loadBalancer":{"ingress":[{"ip":"10.0.0.240","ipMode":"VIP"}]}}}`)
	eventually(t, 5*time.Second, "the followed address", opened("home1", homeAddr+":8071"))
	if got := ingressOf(t, ns, "followed"); got != "10.0.0.240" {
		t.Errorf("the other controller's status was changed to %s", got)
	}
}

// A Service with very many ports is served whole.
func serviceWith300Ports(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 1))
	awaitPods(t, ns, "web")
	manifest := service(ns, "many", "web", "home", "Cluster", 9999)
	head, _, _ := strings.Cut(manifest, "  ports:")
	ports := []string{}
	for i := range 300 {
		ports = append(ports, fmt.Sprintf("{name: p%d, port: %d, targetPort: 8080}", i, 20000+i))
	}
	apply(t, on(plane, head+"  ports: ["+strings.Join(ports, ", ")+"]\n"))
	for _, port := range []int{20000, 20150, 20299} {
		eventually(t, 10*time.Second, "each port is open", opened("home1", fmt.Sprintf("%s:%d", homeAddr, port)))
	}
}

// The rights of gatehouse are those that it needs, and no more.
func TestRights(t *testing.T) {
	as := []string{"--as", "system:serviceaccount:gatehouse:gatehouse"}
	for _, may := range []string{"list services", "watch endpointslices.discovery.k8s.io", "get nodes", "watch ingresses.networking.k8s.io", "patch services --subresource=status", "create events", "patch events"} {
		if out, err := lab.Kubectl(t.Context(), append(append([]string{"auth", "can-i", "-A"}, strings.Fields(may)...), as...)...); err != nil {
			t.Errorf("gatehouse may not %s: %s %v", may, out, err)
		}
	}
	for _, not := range []string{"get secrets", "list pods", "get configmaps", "update services", "patch services", "delete services", "update services --subresource=status", "create services", "patch nodes", "list events", "create pods", "get leases.coordination.k8s.io"} {
		if out, err := lab.Kubectl(t.Context(), append(append([]string{"auth", "can-i", "-A"}, strings.Fields(not)...), as...)...); err == nil {
			t.Errorf("gatehouse may %s: %s", not, out)
		}
	}
}

// loadBalancerSourceRanges is enforced, for the client's own address.
func sourceRanges(t *testing.T, plane string) {
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 1)+
		on(plane, strings.Replace(service(ns, "web", "web", "home", "Local", 8130), "spec:\n", "spec:\n  loadBalancerSourceRanges: [10.11.12.101/32]\n", 1)))
	awaitPods(t, ns, "web")
	at := homeAddr + ":8130"
	eventually(t, 5*time.Second, "open for home1", opened("home1", at))
	if a, err := get("home2", at, time.Second); err == nil {
		t.Errorf("home2 may not connect, and %s answered it", a.Pod)
	}
	// This API server takes nothing that is no network; blanks it leaves to us.
	if _, err := lab.Kubectl(t.Context(), "patch", "service", "-n", ns, "web", "-p", `{"spec":{"loadBalancerSourceRanges":["10.11.12.102/24"]}}`); err == nil {
		t.Error("the API server takes what is no network: then a test is missing here of what we make of that")
	}
	kubectl(t, "patch", "service", "-n", ns, "web", "-p", `{"spec":{"loadBalancerSourceRanges":[" 10.11.12.102/32 "]}}`)
	eventually(t, time.Second, "open for home2", opened("home2", at))
	if a, err := get("home1", at, time.Second); err == nil {
		t.Errorf("home1 may not connect any more, and %s answered it", a.Pod)
	}
}
