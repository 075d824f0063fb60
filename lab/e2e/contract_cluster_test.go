package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// loadBalancerClass (KEP-1959): the own one; those without, if the operator says
// so; and of others not a byte.
func contractClass(t *testing.T) {
	ns := room(t)
	own, other, none := freshPort(), freshPort(), freshPort()
	create(t, told(ns, "own", proxy, own, nil), ready, ready, ready)
	foreign := told(ns, "foreign", proxy, other, func(s *corev1.Service) {
		class := "example.com/other"
		s.Spec.LoadBalancerClass = &class
		s.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"}
	})
	create(t, foreign, ready, ready, ready)
	classless := told(ns, "classless", proxy, none, func(s *corev1.Service) { s.Spec.LoadBalancerClass = nil })
	create(t, classless, ready, ready, ready)
	version := serviceNow(t, ns, "foreign").ResourceVersion
	t.Cleanup(func() { // it is nobody's, so nobody takes it off
		_, err := kube.CoreV1().Services(ns).Patch(context.Background(), "foreign", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			t.Error(err)
		}
	})
	eventually(t, 20*time.Second, "the own one is open", opened("home1", atHome(own)))
	for _, port := range []int{other, none} {
		if err := closed("home1", atHome(port))(); err != nil {
			t.Error(err)
		}
	}
	configured(t, withKubernetes("classless: true"))
	eventually(t, 20*time.Second, "the one without a class is open", opened("home1", atHome(none)))
	eventually(t, 20*time.Second, "its status says so", ingressIs(t, ns, "classless", homeAddr))
	if err := closed("home1", atHome(other))(); err != nil {
		t.Error(err)
	}
	if err := writeConfig(withKubernetes("classless: false")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the one without a class is closed", closed("home1", atHome(none)))
	eventually(t, 20*time.Second, "its status is cleared", ingressIs(t, ns, "classless", ""))
	s := serviceNow(t, ns, "foreign")
	if s.ResourceVersion != version || len(eventsIn(t, ns, "foreign")) > 0 {
		t.Errorf("the one of another class was changed: %+v; %q", s, eventsIn(t, ns, "foreign"))
	}
	// A class can only be changed by way of another type.
	become(t, foreign, corev1.ServiceTypeClusterIP, nil)
	become(t, foreign, corev1.ServiceTypeLoadBalancer, "gatehouse.e13.dev/edge")
	eventually(t, 20*time.Second, "it is open when it is of the own class", opened("home1", atHome(other)))
	eventually(t, 20*time.Second, "and has an address", ingressIs(t, ns, "foreign", homeAddr))
	if now := serviceNow(t, ns, "foreign"); !slices.Contains(now.Finalizers, "service.kubernetes.io/load-balancer-cleanup") {
		t.Errorf("its finalizers are %q", now.Finalizers)
	}
}

// status.loadBalancer.ingress (KEP-1860): the address that clients use, and
// ipMode Proxy: nodes and pods that use it come to the edge box like anybody
// else, also if it is they whom they reach.
func contractIPMode(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	create(t, told(ns, "proxied", plane, port, func(s *corev1.Service) {
		byNodePort(corev1.ServiceExternalTrafficPolicyCluster)(s)
		s.Annotations["gatehouse.e13.dev/zones"] = "home,cluster"
	}), ready, ready, ready)
	eventually(t, 20*time.Second, "it has addresses", ingressIs(t, ns, "proxied", homeAddr+","+clusterAddr))
	for _, in := range serviceNow(t, ns, "proxied").Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeProxy || in.Hostname != "" {
			t.Errorf("an address is written as %+v", in)
		}
	}
	for _, address := range []string{homeAddr, clusterAddr} {
		at := fmt.Sprintf("%s:%d", address, port)
		eventually(t, 15*time.Second, "a node is answered at "+address, opened("w1", at))
		var before uint64
		// A kube-proxy that is behind refuses, and the kernel does not try another one.
		eventually(t, 20*time.Second, "a node is answered ten times at "+address, func() error {
			before = acceptedOn(t, "eth0", port)
			for range 10 {
				if _, err := get("w1", at, 5*time.Second); err != nil {
					return err
				}
			}
			return nil
		})
		// kube-proxy would take the address for itself, were the mode VIP.
		if plane != proxy {
			continue // nobody counts
		}
		eventually(t, 15*time.Second, "the edge box has taken them", func() error {
			if n := acceptedOn(t, "eth0", port) - before; n < 10 {
				return fmt.Errorf("%d connections", n)
			}
			return nil
		})
	}
}

// acceptedOn is how many connections a frontend has taken that listens on an
// interface.
func acceptedOn(t *testing.T, device string, port int) (n uint64) {
	t.Helper()
	_, body := admin(t, "/status.json")
	var s struct {
		Frontends []frontendNow `json:"frontends"`
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Frontends {
		if strings.Contains(f.Listen, device) && strings.HasSuffix(f.Listen, fmt.Sprintf(":%d", port)) {
			n += f.Accepted
		}
	}
	return n
}

// externalIPs (KEP-5707) are not opened, and not in the status.
func contractExternalIPs(t *testing.T, plane string) {
	ns, port, nowhere := room(t), freshPort(), freshPort()
	with := func(name string, port int, address, zones string) *corev1.Service {
		return told(ns, name, plane, port, func(s *corev1.Service) {
			s.Spec.ExternalIPs, s.Annotations["gatehouse.e13.dev/zones"] = []string{address}, zones
		})
	}
	create(t, with("other", port, "10.11.12.77", "home"), ready, ready, ready)
	create(t, with("nowhere", nowhere, homeAddr, ""), ready, ready, ready)
	eventually(t, 20*time.Second, "open at the own address", opened("home1", atHome(port)))
	eventually(t, 20*time.Second, "which is all that its status has", ingressIs(t, ns, "other", homeAddr))
	if a, err := get("home1", net.JoinHostPort("10.11.12.77", fmt.Sprint(port)), time.Second); err == nil {
		t.Errorf("%s answers at the external address", a.Pod)
	}
	eventually(t, 20*time.Second, "who asks for no zone is told", saidTo(t, ns, "nowhere", "Warning NoZone"))
	if err := closed("home1", atHome(nowhere))(); err != nil {
		t.Error(err)
	}
}

// kube-proxies of either mode (KEP-5343) are behind node ports in one cluster;
// what a node is changed to is found again, and nothing of kube-proxy's is touched.
func contractKubeProxyMode(t *testing.T) {
	ns := room(t)
	ports := map[string]int{}
	made := map[string]*corev1.Service{}
	for _, plane := range planes {
		for _, policy := range []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceExternalTrafficPolicyCluster} {
			name := strings.ToLower(plane + "-" + string(policy))
			ports[name] = freshPort()
			made[name] = told(ns, name, plane, ports[name], byNodePort(policy))
			create(t, made[name], ready, ready, ready)
		}
	}
	const all = "10.0.0.101=1 10.0.0.102=1 10.0.0.103=1"
	answer := func(when string) {
		t.Helper()
		for name, port := range ports {
			eventually(t, 30*time.Second, when+", "+name+" has all nodes", func() error { return want(weightsUp(t, port), all) })
			eventually(t, 30*time.Second, when+", "+name+" is answered by all", onlyBy("home1", atHome(port), "w1", "w2", "w3"))
		}
	}
	modes := func() string {
		var is []string
		for _, worker := range []string{"w1", "w3"} {
			resp, err := httpFrom(worker).Get("http://127.0.0.1:10249/proxyMode")
			if err != nil {
				return err.Error()
			}
			is = append(is, readAll(resp))
			resp.Body.Close()
		}
		return strings.Join(is, " ")
	}
	answer("with nftables")
	file := lab.Dir() + "/config/kube-proxy-w3.yaml"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(text string) {
		err := os.WriteFile(file, []byte(text), 0o644)
		if err := errors.Join(err, lab.Stop(context.Background(), "kube-proxy-w3"), lab.Start(context.Background(), "kube-proxy-w3")); err != nil {
			t.Error(err)
		}
	}
	restored := false
	t.Cleanup(func() {
		if !restored {
			restart(string(before))
		}
	})
	restart(strings.Replace(string(before), "mode: nftables", "mode: iptables", 1))
	eventually(t, 30*time.Second, "the modes are two", func() error { return want(modes(), "nftables iptables") })
	answer("with iptables on one node")
	restart(string(before))
	restored = true
	answer("with nftables again")
	tables, err := lab.Exec(t.Context(), "edge", "nft", "list", "tables")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(tables) {
		if line = strings.TrimSpace(line); !strings.Contains(line, "gatehouse") && !strings.HasSuffix(line, " site") {
			t.Errorf("there is %s on the edge box", line)
		}
	}
}
