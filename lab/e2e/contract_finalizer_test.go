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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// edgeRuns runs a program on the edge box, also when the test is over.
func edgeRuns(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lab.Exec(context.Background(), "edge", args...)
	if err != nil {
		t.Error(err)
	}
	return out
}

// finalized is a condition for eventually: gatehouse's finalizer is on a Service,
// or not.
func finalized(t *testing.T, ns, name string, is bool) func() error {
	return func() error {
		if all := serviceNow(t, ns, name).Finalizers; slices.Contains(all, ownFinalizer) != is {
			return fmt.Errorf("its finalizers are %q", all)
		}
		return nil
	}
}

// gone is a condition for eventually.
func gone(t *testing.T, ns, name string) func() error {
	return func() error {
		if _, err := kube.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	}
}

// The finalizer (KEP-980), of an own name: on Services that are open, off when
// they leave. Who waits until a Service is deleted knows that it is closed.
func contractFinalizer(t *testing.T, plane string) {
	ns, port := room(t), freshPort()
	s := told(ns, "final", plane, port, func(s *corev1.Service) { s.Finalizers = []string{"example.com/other"} })
	create(t, s, ready, ready, ready)
	t.Cleanup(func() { dropFinalizers(t, ns, "final") })
	at := atHome(port)
	eventually(t, 20*time.Second, "open", opened("home1", at))
	eventually(t, 20*time.Second, "it has the finalizer", finalized(t, ns, "final", true))
	if all := serviceNow(t, ns, "final").Finalizers; slices.Contains(all, "service.kubernetes.io/load-balancer-cleanup") || !slices.Contains(all, "example.com/other") {
		t.Errorf("its finalizers are %q", all)
	}
	for _, kind := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort} {
		become(t, s, kind, nil)
		eventually(t, 20*time.Second, "not as "+string(kind), finalized(t, ns, "final", false))
		become(t, s, corev1.ServiceTypeLoadBalancer, "gatehouse.e13.dev/edge")
		eventually(t, 20*time.Second, "again", finalized(t, ns, "final", true))
	}
	annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": ""})
	eventually(t, 20*time.Second, "not while it is open nowhere", finalized(t, ns, "final", false))
	annotate(t, s, map[string]string{"gatehouse.e13.dev/zones": "home"})
	eventually(t, 20*time.Second, "again", finalized(t, ns, "final", true))
	eventually(t, 20*time.Second, "open", opened("home1", at))

	// Somebody else's finalizer keeps it: then it is closed, and gatehouse's is off.
	if err := kube.CoreV1().Services(ns).Delete(t.Context(), "final", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "off", finalized(t, ns, "final", false))
	if err := closed("home1", at)(); err != nil {
		t.Errorf("the finalizer was off before the port was closed: %v", err)
	}
	if all := serviceNow(t, ns, "final").Finalizers; !slices.Equal(all, []string{"example.com/other"}) {
		t.Errorf("its finalizers are %q", all)
	}
	dropFinalizers(t, ns, "final")

	// Deleted, and then at once not open any more: as often as one likes.
	for i := range 5 {
		name, port := fmt.Sprintf("again-%d", i), freshPort()
		create(t, told(ns, name, plane, port, nil), ready, ready, ready)
		eventually(t, 20*time.Second, "open", opened("home1", atHome(port)))
		eventually(t, 20*time.Second, "it has the finalizer", finalized(t, ns, name, true))
		if err := kube.CoreV1().Services(ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "deleted", gone(t, ns, name))
		if err := closed("home1", atHome(port))(); err != nil {
			t.Errorf("it was gone before the port was closed: %v", err)
		}
	}
}

func dropFinalizers(t *testing.T, ns, name string) {
	t.Helper()
	_, err := kube.CoreV1().Services(ns).Patch(context.Background(), name, "application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

// Where gatehouse does not run, `gatehouse uninstall` takes out of the cluster
// what it has written there, so that no namespace hangs.
func contractUninstall(t *testing.T) {
	ns, deleted := room(t), "contract-deleted"
	port, other, changed := freshPort(), freshPort(), freshPort()
	if _, err := kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: deleted}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create(t, told(ns, "stays", proxy, port, nil), ready, ready, ready)
	create(t, told(deleted, "goes", proxy, other, nil), ready, ready, ready)
	becomes := told(ns, "becomes", proxy, changed, nil)
	create(t, becomes, ready, ready, ready)
	foreign := told(ns, "foreign", proxy, freshPort(), func(s *corev1.Service) {
		class := "example.com/other"
		s.Spec.LoadBalancerClass = &class
	})
	create(t, foreign, ready, ready, ready)
	patchStatus(t, foreign, "example-controller", map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": []map[string]any{{"ip": "192.0.2.1"}}}}})
	for at, names := range map[string][]string{ns: {"stays", "becomes"}, deleted: {"goes"}} {
		for _, name := range names {
			eventually(t, 20*time.Second, name+" has an address", ingressIs(t, at, name, homeAddr))
			eventually(t, 20*time.Second, name+" has the finalizer", finalized(t, at, name, true))
		}
	}
	if err := lab.Stop(t.Context(), "gatehouse"); err != nil {
		t.Fatal(err)
	}
	started := false
	start := func() {
		started = true
		if err := lab.Start(context.Background(), "gatehouse"); err != nil {
			t.Error(err)
		}
		eventually(t, 20*time.Second, "gatehouse is ready again", isReadyAgain)
	}
	t.Cleanup(func() {
		if !started {
			start()
		}
	})
	become(t, becomes, corev1.ServiceTypeClusterIP, nil)
	if err := kube.CoreV1().Namespaces().Delete(t.Context(), deleted, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "it is being deleted, and kept", func() error {
		s, err := kube.CoreV1().Services(deleted).Get(t.Context(), "goes", metav1.GetOptions{})
		if err == nil && s.DeletionTimestamp == nil {
			err = errors.New("not deleted yet")
		}
		return err
	})
	version := serviceNow(t, ns, "foreign").ResourceVersion
	kubeconfig, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	uninstall := func(args ...string) string {
		t.Helper()
		out, err := lab.Exec(t.Context(), "edge", append([]string{gatehouse, "uninstall", "--kubeconfig", kubeconfig}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("uninstall %s:\n%s", strings.Join(args, " "), out)
		return out
	}
	for _, name := range []string{ns + "/stays", ns + "/becomes", deleted + "/goes"} {
		if out := uninstall("--dry-run"); !strings.Contains(out, name) || strings.Contains(out, ns+"/foreign") {
			t.Errorf("--dry-run says:\n%s", out)
		}
	}
	if err := finalized(t, ns, "stays", true)(); err != nil {
		t.Errorf("--dry-run: %v", err)
	}
	uninstall()
	for _, name := range []string{"stays", "becomes"} {
		err := errors.Join(finalized(t, ns, name, false)(), ingressIs(t, ns, name, "")(), conditionIs(t, ns, name, "gatehouse.e13.dev/Exposed", "", "")())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	eventually(t, 20*time.Second, "the namespace is gone", func() error {
		if _, err := kube.CoreV1().Namespaces().Get(t.Context(), deleted, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
	if s := serviceNow(t, ns, "foreign"); s.ResourceVersion != version {
		t.Errorf("the one of another class was changed: %+v", s)
	}
	if out := uninstall(); strings.Contains(out, ns+"/") {
		t.Errorf("there was something left: %s", out)
	}
	start()
	eventually(t, 20*time.Second, "a gatehouse that comes back does as ever", ingressIs(t, ns, "stays", homeAddr))
	eventually(t, 20*time.Second, "with its finalizer", finalized(t, ns, "stays", true))
	eventually(t, 20*time.Second, "open", opened("home1", atHome(port)))

	// What changed or was deleted while it was away is let go of when it is back.
	if err := lab.Stop(t.Context(), "gatehouse"); err != nil {
		t.Fatal(err)
	}
	started = false
	leaves := serviceNow(t, ns, "stays")
	become(t, leaves, corev1.ServiceTypeClusterIP, nil)
	start()
	eventually(t, 20*time.Second, "it is let go of", finalized(t, ns, "stays", false))
}
