package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

const chart = "../../deploy/helm/gatehouse"

// helm runs the program that scripts/helm has built, as the admin, where the API server is.
func helm(ctx context.Context, t *testing.T, args ...string) (string, error) {
	t.Helper()
	program := os.Getenv("GATEHOUSE_HELM")
	if program == "" {
		t.Fatal("GATEHOUSE_HELM names no helm; make test-e2e builds one")
	}
	argv := append([]string{"env", "HOME=" + t.TempDir(), program, "--kubeconfig", lab.AdminKubeconfig()}, args...)
	return lab.Exec(ctx, "cp", argv...)
}

func mustHelm(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helm(t.Context(), t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// For a box outside, the chart makes what gatehouse kubeconfig makes: each finds
// nothing to do after the other.
func TestHelmForABoxOutside(t *testing.T) {
	mustKubeconfig(t) // without the chart
	if _, err := helm(t.Context(), t, "install", "gatehouse", chart, "--namespace", "gatehouse"); err == nil || !strings.Contains(err.Error(), "cannot be imported into the current release") {
		t.Errorf("over what is there already: %v", err)
	}
	t.Cleanup(func() { // the rights are those that the lab's gatehouse has
		remove(t, "secret", "-n", "gatehouse", "-l", "owner=helm")
	})
	out := mustHelm(t, "install", "gatehouse", chart, "--namespace", "gatehouse", "--take-ownership")
	if !strings.Contains(out, "STATUS: deployed") || !strings.Contains(out, "gatehouse kubeconfig --server https://API-SERVER:6443") {
		t.Errorf("%s", out)
	}
	out, _ = mustKubeconfig(t, "--dry-run")
	if n := strings.Count(out, " is there already\n"); n != 7 {
		t.Errorf("kubeconfig finds %d of 7 objects as they should be:\n%s", n, out)
	}
	if _, said := mustKubeconfig(t); strings.Contains(said, "changed\n") && strings.Count(said, "unchanged\n") != 7 {
		t.Errorf("%s", said)
	}
	out = mustHelm(t, "upgrade", "gatehouse", chart, "--namespace", "gatehouse", "--set", "admissionPolicy=true")
	if !strings.Contains(out, "REVISION: 2") {
		t.Errorf("%s", out)
	}
}

// In the cluster, the chart alone makes a gatehouse that opens a Service on its
// node, with the capabilities and the rights that it gives and no others.
func TestHelmInTheCluster(t *testing.T) {
	const ns, class, port = "helm-edge", "example.com/inside", 8993
	values := []string{
		chart, "--namespace", ns, "--set", "mode=daemonset,nameOverride=inside,config.kubernetes.loadBalancerClass=" + class,
		"--set", "config.kubernetes.followAddresses=false", "--set-json", `config.zones={"cluster":{"interfaces":["eth0"]}}`,
	}
	kubectl(t, "label", "node", "w1", "gatehouse.e13.dev/edge=true")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			out, err := lab.Kubectl(ctx, "get", "pods", "-n", ns, "-o", "yaml")
			t.Logf("%s %v", out, err)
			out, err = lab.Kubectl(ctx, "logs", "-n", ns, "daemonset/inside")
			t.Logf("%s %v", out, err)
		}
		if _, err := lab.Kubectl(ctx, "label", "node", "w1", "gatehouse.e13.dev/edge-"); err != nil {
			t.Error(err)
		}
		remove(t, "namespace", ns)
	})
	out := mustHelm(t, append([]string{"install", "inside", "--create-namespace", "--wait", "--timeout", "60s"}, values...)...)
	if !strings.Contains(out, "It is w1.") || strings.Contains(out, "WARNING") {
		t.Errorf("%s", out)
	}

	web := "helm-web"
	makeNamespace(t, web)
	apply(t, deployment(web, "web", "web", "", 2)+strings.ReplaceAll(service(web, "web", "web", "cluster", "Cluster", port), "gatehouse.e13.dev/edge", class))
	awaitPods(t, web, "web")
	eventually(t, 20*time.Second, "the Service is open", opened("w2", fmt.Sprintf("10.0.0.101:%d", port)))
	eventually(t, 10*time.Second, "its status", func() error {
		if got := ingressOf(t, web, "web"); !strings.Contains(got, "10.0.0.101") {
			return fmt.Errorf("it says %q", got)
		}
		return nil
	})
	// Who wrote it is the ServiceAccount of this release, by its token.
	if who := kubectl(t, "auth", "can-i", "patch", "services", "--subresource=status", "--as=system:serviceaccount:"+ns+":inside"); !strings.HasPrefix(who, "yes") {
		t.Error(who)
	}
	confined(t, ns)
	if out := kubectl(t, "exec", "-n", ns, "daemonset/inside", "--", "gatehouse", "status"); !strings.Contains(out, web+"/web") {
		t.Errorf("gatehouse status in the Pod:\n%s", out)
	}

	// Two nodes of one class would contest each other's Services.
	kubectl(t, "label", "node", "w2", "gatehouse.e13.dev/edge=true")
	out, err := helm(t.Context(), t, append([]string{"upgrade", "inside", "--dry-run=server"}, values...)...)
	kubectl(t, "label", "node", "w2", "gatehouse.e13.dev/edge-")
	if err != nil || !strings.Contains(out, "WARNING: 2 nodes have it: w1, w2.") {
		t.Errorf("%v\n%s", err, out)
	}

	remove(t, "service", "-n", web, "web")
	eventually(t, 10*time.Second, "the Service is gone", func() error {
		if left := kubectl(t, "get", "service", "-n", web, "-o", "name"); left != "" {
			return fmt.Errorf("there is %s", left)
		}
		return nil
	})
	mustHelm(t, "uninstall", "inside", "--namespace", ns, "--wait")
	for _, kind := range []string{"clusterrole", "clusterrolebinding", "validatingadmissionpolicy", "validatingadmissionpolicybinding"} {
		if left := kubectl(t, "get", kind, "-o", "name"); strings.Contains(left, "/inside") {
			t.Errorf("left behind: %s", left)
		}
	}
}

// confined fails unless the Pod's program has the capabilities that the chart
// gives, and no others.
func confined(t *testing.T, ns string) {
	t.Helper()
	records, err := lab.PodRecords()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.Namespace != ns {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Containers["gatehouse"].PID))
		if err != nil {
			t.Fatal(err)
		}
		// NET_BIND_SERVICE is 10, NET_ADMIN 12, NET_RAW 13 (linux/capability.h).
		for _, want := range []string{"CapPrm:\t0000000000003400\n", "CapEff:\t0000000000003400\n", "CapBnd:\t0000000000003400\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("it has not %q:\n%s", want, status)
			}
		}
		return
	}
	t.Error("there is no Pod")
}
