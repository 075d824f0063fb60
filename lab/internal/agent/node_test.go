package agent

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

func TestNodeAddresses(t *testing.T) {
	for ipv4, want := range map[bool]string{
		false: "InternalIP 10.0.0.101, InternalIP fd00:10::101, Hostname w1",
		true:  "InternalIP 10.0.0.101, Hostname w1",
	} {
		a := testAgent(t)
		a.cfg.IPv4Node = ipv4
		// Reported twice, as after five minutes: the patch must leave no address over, and find none twice.
		node := corev1.Node{}
		for range 2 {
			before, err := json.Marshal(node)
			if err != nil {
				t.Fatal(err)
			}
			patch, err := statusPatch(a.nodeStatus(&node))
			if err != nil {
				t.Fatal(err)
			}
			after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Node{})
			if err != nil {
				t.Fatal(err)
			}
			node = corev1.Node{}
			if err := json.Unmarshal(after, &node); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for _, addr := range node.Status.Addresses {
			got = append(got, string(addr.Type)+" "+addr.Address)
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("IPv4Node %v: %s, want %s", ipv4, strings.Join(got, ", "), want)
		}
	}
}

func TestControlPlaneTakesNoPods(t *testing.T) {
	a := testAgent(t)
	a.cfg.PodCIDR, a.cfg.PodCIDR6, a.cfg.ControlPlane = netip.Prefix{}, netip.Prefix{}, true
	node := a.node()
	if _, ok := node.Labels[corev1.LabelNodeExcludeBalancers]; !ok || len(node.Spec.Taints) != 1 || len(node.Spec.PodCIDRs) != 0 {
		t.Errorf("labels %v, %+v", node.Labels, node.Spec)
	}
	if ip, err := a.takeIP("x"); err == nil {
		t.Errorf("a pod of it has the address %s", ip)
	}
}
