package e2e

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const ownFinalizer = "gatehouse.e13.dev/closed"

// asGatehouse is a client with the rights that deploy/rbac.yaml gives, and no
// others: with a token of its ServiceAccount.
func asGatehouse(t *testing.T) *kubernetes.Clientset {
	t.Helper()
	token, err := kube.CoreV1().ServiceAccounts("gatehouse").CreateToken(t.Context(), "gatehouse", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config, err := lab.RESTConfig("cp")
	if err != nil {
		t.Fatal(err)
	}
	config = rest.CopyConfig(config)
	config.CertData, config.KeyData, config.CertFile, config.KeyFile = nil, nil, "", ""
	config.BearerToken = token.Status.Token
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Of a Service, gatehouse's token changes the status and gatehouse's own
// finalizer, and nothing else: not by way of the Service, for which it has no
// right, nor by way of the status, which the API server takes labels,
// annotations and finalizers by as well.
func TestGatehouseChangesNothingElseOfAService(t *testing.T) {
	ns := namespace(t)
	gatehouse := asGatehouse(t)
	// Of another class, so that the gatehouse of the lab leaves it alone.
	apply(t, strings.ReplaceAll(service(ns, "web", "web", "home", "Cluster", 8990), "gatehouse.e13.dev/edge", "example.com/other"))
	const theirs = `{"metadata":{"labels":{"team":"shop"},"finalizers":["example.com/theirs"]},"status":{"conditions":[` +
		`{"type":"example.com/Theirs","status":"True","reason":"R","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	if _, err := kube.CoreV1().Services(ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(theirs), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	patch := func(body string, subresources ...string) (*corev1.Service, error) {
		return gatehouse.CoreV1().Services(ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "gatehouse"}, subresources...)
	}
	before, err := kube.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// The policy is in force a moment after it was applied.
	eventually(t, 10*time.Second, "the policy is in force", func() error {
		_, err := gatehouse.CoreV1().Services(ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "status")
		if err == nil {
			return errors.New("a label can be changed")
		}
		return nil
	})
	for name, body := range map[string]string{
		"a label":                      `{"metadata":{"labels":{"team":"other"}}}`,
		"a label less":                 `{"metadata":{"labels":{"team":null}}}`,
		"an annotation":                `{"metadata":{"annotations":{"gatehouse.e13.dev/zones":"internet"}}}`,
		"an owner":                     `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"w1","uid":"u"}]}}`,
		"another finalizer":            `{"metadata":{"finalizers":["example.com/another"]}}`,
		"another finalizer, and ours":  `{"metadata":{"finalizers":["example.com/another","` + ownFinalizer + `"]}}`,
		"another's finalizer released": `{"metadata":{"$deleteFromPrimitiveList/finalizers":["example.com/theirs"]}}`,
		"all finalizers released":      `{"metadata":{"finalizers":null}}`,
		"another condition":            `{"status":{"conditions":[{"type":"example.com/Another","status":"True"}]}}`,
		"another's condition":          `{"status":{"conditions":[{"type":"example.com/Theirs","status":"False"}]}}`,
		"another's condition removed":  `{"status":{"conditions":[{"type":"example.com/Theirs","$patch":"delete"}]}}`,
	} {
		for _, way := range [][]string{{"status"}, nil} {
			if _, err := patch(body, way...); !apierrors.IsForbidden(err) {
				t.Errorf("%s, by way of the Service's %q: %v", name, way, err)
			}
		}
	}
	// The spec is no part of what the API server takes with the status.
	if _, err := patch(`{"spec":{"sessionAffinity":"ClientIP"}}`, "status"); err != nil && !apierrors.IsForbidden(err) {
		t.Error(err)
	}
	if _, err := patch(`{"spec":{"sessionAffinity":"ClientIP"}}`); !apierrors.IsForbidden(err) {
		t.Errorf("the spec: %v", err)
	}
	after, err := kube.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || after.ResourceVersion != before.ResourceVersion {
		t.Errorf("the Service has changed: %v %+v", err, after)
	}

	got, err := patch(`{"metadata":{"finalizers":["`+ownFinalizer+`"]},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.99","ipMode":"Proxy"}]},"conditions":[`+
		`{"type":"gatehouse.e13.dev/Exposed","status":"True","reason":"Open","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`, "status")
	if err != nil || !slices.Contains(got.Finalizers, ownFinalizer) || len(got.Status.LoadBalancer.Ingress) != 1 || len(got.Status.Conditions) != 2 {
		t.Fatalf("its own finalizer and status: %v %+v", err, got)
	}
	got, err = patch(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["`+ownFinalizer+`"]},"status":{"loadBalancer":{"ingress":[]},"conditions":[`+
		`{"type":"gatehouse.e13.dev/Exposed","$patch":"delete"}]}}`, "status")
	if err != nil || !slices.Equal(got.Finalizers, []string{"example.com/theirs"}) || len(got.Status.LoadBalancer.Ingress) != 0 || len(got.Status.Conditions) != 1 {
		t.Errorf("released: %v %+v", err, got)
	}
	if _, err := kube.CoreV1().Services(ns).Patch(t.Context(), "web", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}
