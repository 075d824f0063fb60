package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// allocateLoadBalancerNodePorts: false (KEP-1864): none is needed, the endpoints
// are reached themselves. Who asks for node ports all the same is told.
func contractNoNodePorts(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "none", plane, port, func(s *corev1.Service) { delete(s.Annotations, "gatehouse.e13.dev/target") })
	create(t, s, ready, ready, ready)
	eventually(t, 20*time.Second, "all endpoints answer", onlyBy("home1", atHome(port), "w1", "w2", "w3"))
	if n := serviceNow(t, ns, "none").Spec.Ports[0].NodePort; n != 0 {
		t.Fatalf("it has node port %d: nothing was shown", n)
	}
	annotate(t, s, map[string]string{"gatehouse.e13.dev/target": "nodePort"})
	eventually(t, 20*time.Second, "its owner is told", saidTo(t, ns, "none", "Warning NoTarget: target nodePort: the port has none (allocateLoadBalancerNodePorts: false)"))
	eventually(t, 15*time.Second, "it is closed", closed("home1", atHome(port)))
	eventually(t, 15*time.Second, "it has no address", ingressIs(t, ns, "none", ""))
}

// externalTrafficPolicy Cluster: any node takes connections for a pod on one, as
// long as its kube-proxy says that it is well.
func contractCluster(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	configured(t, withKubernetes("health: {interval: 1s}"))
	create(t, told(ns, "cluster", plane, port, byNodePort(corev1.ServiceExternalTrafficPolicyCluster)), ready, absent, absent)
	all := "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1"
	eventually(t, 15*time.Second, "all nodes are up", func() error { return want(weightsUp(t, port), all) })
	eventually(t, 20*time.Second, "the pod answers", onlyBy("home1", atHome(port), "w1"))
	noMore := edgeLoses(t, "contractcluster", "10.0.0.103 . 10256")
	eventually(t, 20*time.Second, "the node whose kube-proxy does not answer is down", backendIs(t, port, "10.0.0.103", "down", "healthz"))
	if plane == proxy { // with nat nobody counts
		noneTo(t, port, "10.0.0.103")
	}
	noMore()
	eventually(t, 20*time.Second, "it is up again", func() error { return want(weightsUp(t, port), all) })
}

// externalTrafficPolicy Local: nodes with ready pods get connections, each as
// many as it has pods. Endpoints that name no node are reached all the same.
func contractLocal(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	apply(t, deployment(ns, "one", "web", "w1", 1)+deployment(ns, "two", "web", "w2", 2)+on(plane, service(ns, "local", "web", "home", "Local", port)))

	t.Run("endpoints without a node", func(t *testing.T) {
		direct, through := freshPort(), freshPort()
		nowhere := func(s *corev1.Service) {
			makeService(t, s)
			e := slice(s, ready, ready, absent)
			for i := range e.Endpoints {
				e.Endpoints[i].NodeName = nil
			}
			putSlice(t, e)
		}
		nowhere(told(ns, "direct", plane, direct, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }))
		eventually(t, 20*time.Second, "they answer", onlyBy("home1", atHome(direct), "w1", "w2"))
		// kube-proxy takes none of them for local. Where something else reads the
		// node ports that knows better, all nodes are asked.
		nowhere(told(ns, "through", plane, through, byNodePort(corev1.ServiceExternalTrafficPolicyLocal)))
		eventually(t, 15*time.Second, "all nodes are asked", func() error {
			f, _ := openAt(t, through)
			if len(f.Backends) != 3 {
				return fmt.Errorf("there are %d backends", len(f.Backends))
			}
			return nil
		})
	})

	eventually(t, 40*time.Second, "nodes weigh what they hold", func() error { return want(weightsUp(t, port), "10.0.0.101=1 10.0.0.102=2") })
	// Which of its pods a node takes is up to its kube-proxy, which may be behind.
	eventually(t, 20*time.Second, "all pods answer", func() error {
		if pods := answeredBy(t, "home1", atHome(port), 60); len(pods) != 3 {
			return fmt.Errorf("these answer: %v; want three pods", pods)
		}
		return nil
	})
	kubectl(t, "scale", "deployment", "-n", ns, "two", "--replicas", "0")
	eventually(t, 20*time.Second, "the node without a pod has left", func() error { return want(weightsUp(t, port), "10.0.0.101=1") })
	if one := answeredBy(t, "home1", atHome(port), 20); len(one) != 1 {
		t.Errorf("these answer: %v", one)
	}
}

// healthCheckNodePort: kube-proxy is asked there, and a node of which it says
// nothing gets no connections, whatever the EndpointSlice says.
func contractHealthCheckNodePort(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "checked", plane, port, byNodePort(corev1.ServiceExternalTrafficPolicyLocal))
	s.Annotations["gatehouse.e13.dev/health-interval"] = "1s"
	create(t, s, ready, ready, absent)
	both := "10.0.0.101=1 10.0.0.102=1"
	eventually(t, 15*time.Second, "both nodes are up", func() error { return want(weightsUp(t, port), both) })
	check := serviceNow(t, ns, "checked").Spec.HealthCheckNodePort
	resp, err := httpFrom("edge").Get(fmt.Sprintf("http://10.0.0.102:%d/", check))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("X-Load-Balancing-Endpoint-Weight") != "1" {
		t.Errorf("kube-proxy answers %s, %v", resp.Status, resp.Header)
	}
	noMore := edgeLoses(t, "contractcheck"+plane, fmt.Sprintf("10.0.0.102 . %d", check))
	eventually(t, 20*time.Second, "the node is down", backendIs(t, port, "10.0.0.102", "down", ""))
	if counts := answeredBy(t, "home1", atHome(port), 40); counts["w2"] > 0 {
		t.Errorf("it is given connections: %v", counts)
	}
	noMore()
	eventually(t, 20*time.Second, "both are up", func() error { return want(weightsUp(t, port), both) })
}

// Terminating endpoints (KEP-1669): ready ones first; those that serve while they
// terminate only if the whole Service has no other; what they have they keep.
func contractTerminating(t *testing.T, plane string) {
	for _, target := range []string{"pod", "nodePort"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			ns, port := room(t), freshPort()
			s := told(ns, "ending", plane, port, func(s *corev1.Service) {
				if target == "nodePort" {
					byNodePort(corev1.ServiceExternalTrafficPolicyLocal)(s)
				}
			})
			create(t, s, ready, ready, absent)
			at := atHome(port)
			const soon = 15 * time.Second
			eventually(t, soon, "both answer", onlyBy("home1", at, "w1", "w2"))
			first, second := dialogWith(t, "home1", at, "w1"), dialogWith(t, "home1", at, "w2")
			goOn := func(when string) {
				t.Helper()
				first.goesOn(t, when)
				second.goesOn(t, when)
			}
			set(t, s, terminating, ready, absent)
			eventually(t, soon, "new connections go to the ready one", onlyBy("home1", at, "w2"))
			goOn("with one terminating")
			set(t, s, terminating, terminating, absent)
			eventually(t, soon, "those that serve are used", onlyBy("home1", at, "w1", "w2"))
			goOn("with both terminating")
			set(t, s, terminating, notReady, absent)
			eventually(t, soon, "the one that serves is used", onlyBy("home1", at, "w1"))
			set(t, s, notReady, ready, absent)
			eventually(t, soon, "the one that is ready is used", onlyBy("home1", at, "w2"))
			goOn("with one not ready")
			set(t, s, ready, ready, absent)
			eventually(t, soon, "both answer again", onlyBy("home1", at, "w1", "w2"))
		})
	}
}

// publishNotReadyAddresses: the EndpointSlice then says that pods are ready which
// are not, and what it says holds.
func contractNotReadyAddresses(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	pods := strings.Replace(deployment(ns, "web", "web", "", 1), "httpGet: {path: /, port: 8080}", "httpGet: {path: /, port: 8099}", 1)
	manifest := annotated(service(ns, "unready", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod")
	apply(t, pods+on(plane, strings.Replace(manifest, "spec:\n", "spec:\n  publishNotReadyAddresses: true\n", 1)))
	eventually(t, 40*time.Second, "the pod answers", opened("home1", atHome(port)))
	d, err := kube.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || d.Status.ReadyReplicas != 0 {
		t.Fatalf("%d pods are ready: nothing was shown: %v", d.Status.ReadyReplicas, err)
	}
	s := serviceNow(t, ns, "unready")
	patch(t, s, map[string]any{"spec": map[string]any{"publishNotReadyAddresses": false}})
	eventually(t, 20*time.Second, "not without", unserved("home1", atHome(port)))
}

// sessionAffinity ClientIP: a client keeps its endpoint for timeoutSeconds, though
// another one would be its own by now. The API server fills in three hours where
// nothing is said.
func contractAffinity(t *testing.T, plane string) {
	ns := room(t)
	made := map[string]*corev1.Service{}
	ports := map[string]int{"short": freshPort(), "long": freshPort()}
	first, second := map[string]string{}, map[string]string{}
	who := func(name string) string {
		t.Helper()
		for by := range answeredBy(t, "home1", atHome(ports[name]), 1) {
			return by
		}
		return ""
	}
	for name, port := range ports {
		made[name] = told(ns, name, plane, port, func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			if name == "short" {
				seconds := int32(1)
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
			}
		})
		create(t, made[name], ready, ready, ready)
		const all = "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1"
		eventually(t, 20*time.Second, "all are up", func() error { return want(weightsUp(t, port), all) })
		eventually(t, 20*time.Second, "open", opened("home1", atHome(port)))
		first[name] = who(name)
		others := []condition{ready, ready, ready}
		others[int(first[name][1]-'1')] = absent
		set(t, made[name], others...)
		eventually(t, 20*time.Second, "without its endpoint the client is with another one", func() error {
			if second[name] = who(name); second[name] == first[name] {
				return errors.New(first[name])
			}
			return nil
		})
		set(t, made[name], ready, ready, ready)
		eventually(t, 20*time.Second, "all are up again", func() error { return want(weightsUp(t, port), all) })
	}
	if n := *serviceNow(t, ns, "long").Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds; n != 10800 {
		t.Errorf("the API server says %d s", n)
	}
	// Rounds that are longer than the short timeout: who comes back later is new.
	rounds := time.NewTicker(1500 * time.Millisecond)
	defer rounds.Stop()
	over := false
	for range 20 {
		if counts := answeredBy(t, "home1", atHome(ports["long"]), 5); counts[second["long"]] != 5 {
			t.Fatalf("the client was with %s, and now %v answer", second["long"], counts)
		}
		if over = who("short") == first["short"]; over {
			return
		}
		<-rounds.C
	}
	t.Errorf("twenty times after the timeout the client was with %s, and not back with %s", second["short"], first["short"])
}

// loadBalancerSourceRanges (kubernetes#109575): both IP families, and nobody at
// all if one of them cannot be read. None: everybody.
func contractSourceRanges(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "ranges", plane, port, func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = []string{home1Addr + "/32", "fd00:11:12::101/128"}
	})
	create(t, s, ready, ready, ready)
	at := atHome(port)
	eventually(t, 20*time.Second, "open to the one", opened("home1", at))
	if err := unserved("home2", at)(); err != nil {
		t.Error(err)
	}
	if plane == proxy { // with nat a client of another family finds nobody anyway
		at := net.JoinHostPort("fd00:11:12::32", fmt.Sprint(port))
		eventually(t, 20*time.Second, "open to the one by IPv6", opened("home1", at))
		if err := unserved("home2", at)(); err != nil {
			t.Errorf("IPv6: %v", err)
		}
	}
	patch(t, s, map[string]any{"spec": map[string]any{"loadBalancerSourceRanges": nil}})
	eventually(t, 15*time.Second, "open to all", opened("home2", at))

	// The API server looks at the old annotation, too, unless it comes with the status.
	const old = "service.beta.kubernetes.io/load-balancer-source-ranges"
	setOld := func(value any) {
		t.Helper()
		patchStatus(t, s, "e2e", map[string]any{"metadata": map[string]any{"annotations": map[string]any{old: value}}})
	}
	setOld("10.11.12.0/24, everybody")
	eventually(t, 15*time.Second, "its owner is told", saidTo(t, ns, "ranges", `Warning SourceRangesInvalid: loadBalancerSourceRanges: "everybody" is no network`))
	for _, host := range []string{"home1", "home2"} {
		eventually(t, 15*time.Second, "closed to "+host, unserved(host, at))
	}
	setOld("10.11.12.102/32")
	eventually(t, 15*time.Second, "open to the other", opened("home2", at))
	if err := unserved("home1", at)(); err != nil {
		t.Error(err)
	}
	setOld(nil)
	eventually(t, 15*time.Second, "open to all again", opened("home1", at))
}

// trafficDistribution (KEP-4444, KEP-3015) is about traffic in the cluster: who
// comes from outside gets every endpoint, whatever its hints.
func contractTrafficDistribution(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "close", plane, port, func(s *corev1.Service) {
		near := "PreferSameNode"
		s.Spec.TrafficDistribution = &near
	})
	makeService(t, s)
	e := slice(s, ready, ready, ready)
	for i := range e.Endpoints {
		e.Endpoints[i].Hints = &discoveryv1.EndpointHints{
			ForNodes: []discoveryv1.ForNode{{Name: "w1"}}, ForZones: []discoveryv1.ForZone{{Name: "elsewhere"}},
		}
	}
	putSlice(t, e)
	eventually(t, 20*time.Second, "all endpoints answer", onlyBy("home1", atHome(port), "w1", "w2", "w3"))
	eventually(t, 20*time.Second, "all alike", func() error { return want(weightsUp(t, port), "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1") })
}

// EndpointSlices: several are one, and an endpoint in two of them counts once.
// Those of a Service without a selector are somebody's own, and an Endpoints
// object (KEP-4974) is what Kubernetes makes of it. Pods may have different
// numbers for a port that a Service names.
func contractSlices(t *testing.T, plane string) {
	ns := room(t)
	t.Run("merged", func(t *testing.T) {
		t.Parallel()
		port := freshPort()
		s := told(ns, "merged", plane, port, nil)
		create(t, s, ready, absent, absent)
		second, third := slice(s, ready, ready, absent), slice(s, absent, absent, ready)
		second.Name, third.Name = "merged-2", "merged-3"
		putSlice(t, second)
		putSlice(t, third)
		eventually(t, 20*time.Second, "each endpoint counts once", func() error { return want(weightsUp(t, port), "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1") })
		eventually(t, 15*time.Second, "all answer", onlyBy("home1", atHome(port), "w1", "w2", "w3"))
		// An endpoint is there as long as it is in one of them.
		if err := kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), "merged", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := kube.DiscoveryV1().EndpointSlices(ns).Delete(t.Context(), "merged-3", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 15*time.Second, "two are left", onlyBy("home1", atHome(port), "w1", "w2"))
	})
	t.Run("Endpoints", func(t *testing.T) {
		t.Parallel()
		port := freshPort()
		makeService(t, told(ns, "mirrored", plane, port, nil))
		node := "w2"
		_, err := kube.CoreV1().Endpoints(ns).Create(t.Context(), &corev1.Endpoints{ //nolint:staticcheck // that it is deprecated is what this is about
			ObjectMeta: metav1.ObjectMeta{Name: "mirrored"},
			Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // likewise
				Addresses: []corev1.EndpointAddress{{IP: "10.0.0.102", NodeName: &node}},
				Ports:     []corev1.EndpointPort{{Port: tellerPort}},
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, 15*time.Second, "the mirrored endpoint answers", onlyBy("home1", atHome(port), "w2"))
	})
	t.Run("named ports", func(t *testing.T) {
		t.Parallel()
		direct, through := freshPort(), freshPort()
		pods := ""
		for i, node := range []string{"w1", "w2"} {
			number := fmt.Sprint(8091 + i)
			pods += strings.NewReplacer("ports: [{containerPort: 8080}]", "ports: [{name: web, containerPort: "+number+"}]", "port: 8080", "port: "+number).
				Replace(deployment(ns, "named-"+node, "named", node, 1))
		}
		byName := func(manifest string) string {
			return on(plane, strings.Replace(manifest, "targetPort: 8080", "targetPort: web", 1))
		}
		apply(t, pods+byName(annotated(service(ns, "direct", "named", "home", "Local", direct), "gatehouse.e13.dev/target: pod"))+
			byName(service(ns, "through", "named", "home", "Local", through)))
		for _, port := range []int{direct, through} {
			eventually(t, 40*time.Second, "both answer", func() error {
				nodes := map[string]bool{}
				for range 20 {
					a, err := get("home1", atHome(port), time.Second)
					if err != nil {
						return err
					}
					nodes[a.Node] = true
				}
				if len(nodes) != 2 {
					return fmt.Errorf("only %v", nodes)
				}
				return nil
			})
		}
		f, _ := openAt(t, direct)
		numbers := map[string]bool{}
		for _, b := range f.Backends {
			_, number, _ := net.SplitHostPort(b.Addr)
			numbers[number] = true
		}
		if !numbers["8091"] || !numbers["8092"] {
			t.Errorf("the backends have the ports %v", numbers)
		}
	})
}
