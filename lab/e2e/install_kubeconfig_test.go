package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfigCommand runs gatehouse kubeconfig as an administrator, where the API
// server is, and returns both of its outputs.
func kubeconfigCommand(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd, err := lab.Command(t.Context(), "cp", append([]string{gatehouse, "kubeconfig", "--kubeconfig", lab.AdminKubeconfig()}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var out, say strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &say
	err = cmd.Run()
	return out.String(), say.String(), err
}

func mustKubeconfig(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := kubeconfigCommand(t, args...)
	if err != nil {
		t.Fatalf("gatehouse kubeconfig %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return stdout, stderr
}

// clientOf is one that logs in as a kubeconfig says.
func clientOf(t *testing.T, file string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	config.Dial = lab.Dialer("cp")
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// applyLines are those that say what was done with an object.
func applyLines(stderr string) string {
	var lines []string
	for line := range strings.Lines(stderr) {
		if object, _, ok := strings.Cut(line, " "); ok && strings.Contains(object, "/gatehouse") && !strings.HasPrefix(line, " ") && !strings.HasSuffix(object, ":") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

// Somebody with the rights of an administrator needs no more than the program:
// what it writes is all that a gatehouse on a box needs, and gives it no more.
func TestKubeconfigForTheBox(t *testing.T) {
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "box")
	// As in a cluster where the rights were applied before there was a policy.
	for _, object := range []string{"validatingadmissionpolicybinding/gatehouse.e13.dev", "validatingadmissionpolicy/gatehouse.e13.dev", "secret/gatehouse-token"} {
		kubectl(t, "delete", "-n", "gatehouse", "--ignore-not-found", object)
	}
	const missing = "secret/gatehouse-token created\nvalidatingadmissionpolicy/gatehouse.e13.dev created\nvalidatingadmissionpolicybinding/gatehouse.e13.dev created"
	const there = "namespace/gatehouse unchanged\nserviceaccount/gatehouse unchanged\nclusterrole/gatehouse unchanged\nclusterrolebinding/gatehouse unchanged\n"

	out, _ := mustKubeconfig(t, "--dry-run")
	for _, want := range []string{"# clusterrole/gatehouse is there already\n", "# secret/gatehouse-token would be created\n", "kind: ValidatingAdmissionPolicyBinding\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the dry run does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(kubectl(t, "get", "secret", "-n", "gatehouse", "-o", "name"), "gatehouse-token") {
		t.Error("the dry run has made the Secret")
	}
	// What it prints is what kubectl takes.
	cmd := lab.KubectlCommand(ctx, "apply", "--dry-run=server", "-f", "-")
	cmd.Stdin = strings.NewReader(out)
	if text, err := cmd.CombinedOutput(); err != nil || strings.Count(string(text), "\n") < 7 {
		t.Errorf("kubectl of what the dry run prints: %v\n%s", err, text)
	}

	_, said := mustKubeconfig(t, "--server", "https://10.0.0.10:6443", "-o", file)
	if got := applyLines(said); got != there+missing {
		t.Errorf("applied:\n%s", said)
	}
	for _, want := range []string{
		"get, list, watch services, nodes, namespaces, endpointslices, ingresses, gateways, httproutes, grpcroutes, tlsroutes\n", "patch services/status\n", "create, patch events\n",
		"create, update, patch, delete services\n", "get, list secrets\n",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "warning") {
		t.Errorf("warnings:\n%s", said)
	}
	t.Logf("%s", said)
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("the file: %v %v", info.Mode(), err)
	}
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	// It is there: nothing is done, and nothing is written.
	if _, said, err := kubeconfigCommand(t, "-o", file); err == nil || !strings.Contains(said, "is there already; give another file with -o, or write over it with --force") || applyLines(said) != "" {
		t.Errorf("over a file: %v\n%s", err, said)
	}
	// Again: nothing changes, and the token is the same.
	versions := func() string {
		return kubectl(t, "get", "-n", "gatehouse", "-o", "jsonpath={range .items[*]}{.kind} {.metadata.resourceVersion}{'\\n'}{end}",
			"secret/gatehouse-token", "serviceaccount/gatehouse", "clusterrole/gatehouse", "clusterrolebinding/gatehouse", "validatingadmissionpolicybinding/gatehouse.e13.dev")
	}
	before := versions()
	out, said = mustKubeconfig(t, "--server", "https://10.0.0.10:6443")
	if got := applyLines(said); got != there+strings.ReplaceAll(missing, "created", "unchanged") || out != string(first) || versions() != before {
		t.Errorf("again: not what there was\n%s%s\n%s\n%s", said, out, before, versions())
	}
	// Somebody has given it more in the ClusterRole, and it goes back to what is needed.
	kubectl(t, "patch", "clusterrole", "gatehouse", "--type=json", "-p", `[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}}]`)
	if _, said = mustKubeconfig(t); !strings.Contains(said, "clusterrole/gatehouse changed\n") || strings.Contains(said, "it may also") {
		t.Errorf("the role is not mended:\n%s", said)
	}
	// An address that the API server has no certificate for.
	if _, said = mustKubeconfig(t, "--server", "https://10.9.9.9:6443"); !strings.Contains(said, "is not for 10.9.9.9") {
		t.Errorf("no word about the certificate:\n%s", said)
	}

	box := clientOf(t, file)
	leastPrivilege(t, box)
	serveWith(t, file)

	// A new token; the old one is of no use any more.
	_, said = mustKubeconfig(t, "--rotate", "--force", "--server", "https://10.0.0.10:6443", "-o", file)
	if !strings.Contains(said, "the token that there was is revoked\n") {
		t.Errorf("rotated:\n%s", said)
	}
	if second, err := os.ReadFile(file); err != nil || string(second) == string(first) {
		t.Errorf("the token is the same (%v)", err)
	}
	// API servers keep what they know of a token for ten seconds.
	eventually(t, 30*time.Second, "the old token is revoked", func() error {
		_, err := box.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if apierrors.IsUnauthorized(err) {
			return nil
		}
		return fmt.Errorf("it may still list: %v", err)
	})
	if _, err := clientOf(t, file).CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil {
		t.Errorf("the new token: %v", err)
	}
}

// leastPrivilege tries what the token must not do.
func leastPrivilege(t *testing.T, box *kubernetes.Clientset) {
	t.Helper()
	ctx := t.Context()
	ns := namespace(t)
	apply(t, strings.ReplaceAll(service(ns, "theirs", "web", "home", "Cluster", 8991), "gatehouse.e13.dev/edge", "example.com/other"))
	if _, err := box.CoreV1().Services(ns).Get(ctx, "theirs", metav1.GetOptions{}); err != nil {
		t.Errorf("read a Service: %v", err)
	}
	// Each time to another value: what is so already, everybody may change.
	tries := 0
	for name, try := range map[string]func() error{
		"read a Secret": func() error {
			_, err := box.CoreV1().Secrets("gatehouse").Get(ctx, "gatehouse-token", metav1.GetOptions{})
			return err
		},
		"list Secrets": func() error {
			_, err := box.CoreV1().Secrets("").List(ctx, metav1.ListOptions{})
			return err
		},
		"list Pods": func() error { _, err := box.CoreV1().Pods("").List(ctx, metav1.ListOptions{}); return err },
		"change a spec": func() error {
			_, err := box.CoreV1().Services(ns).Patch(ctx, "theirs", types.MergePatchType, []byte(`{"spec":{"sessionAffinity":"ClientIP"}}`), metav1.PatchOptions{})
			return err
		},
		"change a label by way of the status": func() error {
			tries++
			change := fmt.Appendf(nil, `{"metadata":{"labels":{"a":"b%d"}}}`, tries)
			_, err := box.CoreV1().Services(ns).Patch(ctx, "theirs", types.MergePatchType, change, metav1.PatchOptions{}, "status")
			return err
		},
		"delete a Service": func() error { return box.CoreV1().Services(ns).Delete(ctx, "theirs", metav1.DeleteOptions{}) },
		"make a Pod": func() error {
			_, err := box.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
			return err
		},
		"change a Node": func() error {
			_, err := box.CoreV1().Nodes().Patch(ctx, "w1", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
			return err
		},
	} {
		// The policy is in force a moment after it was applied.
		eventually(t, 10*time.Second, "may not "+name, func() error {
			if err := try(); !apierrors.IsForbidden(err) {
				return fmt.Errorf("not forbidden: %v", err)
			}
			return nil
		})
	}
}

// serveWith runs a gatehouse on another box with the file, and sees a Service open.
func serveWith(t *testing.T, file string) {
	t.Helper()
	const class, port = "example.com/box", 8992
	ns := "kubeconfig-serves"
	makeNamespace(t, ns)
	config := filepath.Join(t.TempDir(), "box.yaml")
	text := fmt.Sprintf("apiVersion: gatehouse.e13.dev/v1\nzones: {cluster: {interfaces: [eth0]}}\n"+
		"kubernetes: {kubeconfig: %q, loadBalancerClass: %s, followAddresses: false}\n", file, class)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.Run(t.Context(), "box", "cp", nil, gatehouse, "run", "-c", config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Stop(context.Background(), "box"); err != nil {
			t.Error(err)
		}
	})
	apply(t, deployment(ns, "web", "web", "", 1)+strings.ReplaceAll(service(ns, "web", "web", "cluster", "Cluster", port), "gatehouse.e13.dev/edge", class))
	awaitPods(t, ns, "web")
	eventually(t, 15*time.Second, "the Service is open", opened("w1", fmt.Sprintf("10.0.0.10:%d", port)))
	if got := ingressOf(t, ns, "web"); !strings.Contains(got, "10.0.0.10") {
		t.Errorf("its status says %q", got)
	}
	// It writes its Events, too.
	eventually(t, 10*time.Second, "an Event", func() error {
		if events := eventsOf(t, ns, "web"); events == "" {
			return errors.New("none")
		}
		return nil
	})
	remove(t, "service", "-n", ns, "web")
	eventually(t, 10*time.Second, "the Service is gone", func() error {
		if left := kubectl(t, "get", "service", "-n", ns, "-o", "name"); left != "" {
			return fmt.Errorf("there is %s", left)
		}
		return nil
	})
}
