package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
	corev1 "k8s.io/api/core/v1"
)

// Node changes (KEP-3458): that a node is not Ready is nothing against it, its
// endpoints and probes say what is. One that is to be deleted gets nothing new,
// and keeps what it has.
func contractNodeChanges(t *testing.T, plane string) {
	ns := room(t)
	const all, without = "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1", "10.0.0.101=1 10.0.0.103=1"
	local, cluster := freshPort(), freshPort()
	create(t, told(ns, "local", plane, local, byNodePort(corev1.ServiceExternalTrafficPolicyLocal)), ready, ready, ready)
	create(t, told(ns, "cluster", plane, cluster, byNodePort(corev1.ServiceExternalTrafficPolicyCluster)), ready, ready, ready)
	for _, port := range []int{local, cluster} {
		eventually(t, 15*time.Second, "all nodes are up", func() error { return want(weightsUp(t, port), all) })
	}
	eventually(t, 20*time.Second, "all are used", onlyBy("home1", atHome(local), site.Workers...))
	kept := dialogWith(t, "home1", atHome(local), "w2")

	for range 3 {
		patchNode(t, "w2", `{"status":{"conditions":[{"type":"Ready","status":"False","reason":"Flaps"}]}}`, "status")
		if isReady(t, "w2") {
			t.Fatal("the node is Ready: nothing is shown")
		}
		for _, port := range []int{local, cluster} {
			if err := onlyBy("home1", atHome(port), site.Workers...)(); err != nil {
				t.Errorf("with a node that is not Ready: %v", err)
			}
			// Whether they are up is for probes to say, which a busy machine delays.
			if f, _ := openAt(t, port); strings.Count(f.weights(), "=1") != 3 {
				t.Errorf("with a node that is not Ready, in turn are %s", f.weights())
			}
		}
		patchNode(t, "w2", `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Flaps"}]}}`, "status")
	}
	kept.goesOn(t, "after the node was not Ready")

	untaint := taint(t, "w2", "ToBeDeletedByClusterAutoscaler")
	for _, port := range []int{local, cluster} {
		eventually(t, 20*time.Second, "the node that is to be deleted has left", func() error { return want(weightsUp(t, port), without) })
	}
	eventually(t, 20*time.Second, "the others are used", onlyBy("home1", atHome(local), "w1", "w3"))
	kept.goesOn(t, "with a node that is to be deleted")
	untaint()
	for _, port := range []int{local, cluster} {
		eventually(t, 20*time.Second, "it is back", func() error { return want(weightsUp(t, port), all) })
	}
	kept.goesOn(t, "after it has come back")
}

// The label node.kubernetes.io/exclude-from-external-load-balancers: no new
// connections to the node, unless the operator knows better.
func contractExcludedNode(t *testing.T) {
	ns := room(t)
	const all, without = "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1", "10.0.0.101=1 10.0.0.102=1"
	ports := []int{}
	for i, plane := range planes {
		ports = append(ports, freshPort())
		create(t, told(ns, fmt.Sprintf("excluded-%d", i), plane, ports[i], byNodePort(corev1.ServiceExternalTrafficPolicyLocal)), ready, ready, ready)
	}
	is := func(weights string) {
		t.Helper()
		for _, port := range ports {
			eventually(t, 20*time.Second, "nodes", func() error { return want(weightsUp(t, port), weights) })
		}
	}
	is(all)
	eventually(t, 20*time.Second, "all are used", onlyBy("home1", atHome(ports[0]), site.Workers...))
	kept := dialogWith(t, "home1", atHome(ports[0]), "w3")
	label(t, "w3", "node.kubernetes.io/exclude-from-external-load-balancers")
	is(without)
	eventually(t, 20*time.Second, "the others are used", onlyBy("home1", atHome(ports[0]), "w1", "w2"))
	kept.goesOn(t, "with a node that is excluded")
	configured(t, withKubernetes("ignoreExcludeLabel: true"))
	is(all)
	eventually(t, 20*time.Second, "all are used", onlyBy("home1", atHome(ports[0]), site.Workers...))
}
