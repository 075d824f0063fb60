package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// opened is a Service as gatehouse has left it.
func opened(s *corev1.Service) {
	s.Finalizers = []string{"example.com/other", Finalizer}
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "10.11.12.70"}}
	s.Status.Conditions = []metav1.Condition{{Type: "example.com/Other"}, {Type: "gatehouse.e13.dev/Exposed", Status: metav1.ConditionTrue}}
	ownedBy(s, FieldManager)
}

func TestUninstall(t *testing.T) {
	api, c := newFakeAPI(t)
	api.put(opened, "shop", "web")
	api.put(func(s *corev1.Service) {
		opened(s)
		s.DeletionTimestamp = new(metav1.Now())
		s.Finalizers = []string{Finalizer}
	}, "shop", "deleted")
	api.put(func(s *corev1.Service) {
		s.Spec.Type, s.Finalizers = corev1.ServiceTypeClusterIP, []string{Finalizer}
	}, "shop", "was-one")
	api.put(func(s *corev1.Service) { // of a cloud
		opened(s)
		s.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"}
		s.Status.Conditions = []metav1.Condition{{Type: "LoadBalancerPortsError"}}
		ownedBy(s, "cloud")
	}, "shop", "theirs")
	api.put(func(s *corev1.Service) { opened(s); ownedBy(s, "cloud") }, "shop", "taken-over")
	api.put(asIs, "shop", "new")
	before := api.get("shop/theirs").ResourceVersion

	const want = "shop/deleted: the finalizer, the address 10.11.12.70, the condition gatehouse.e13.dev/Exposed\n" +
		"shop/taken-over: the finalizer, the condition gatehouse.e13.dev/Exposed\n" +
		"shop/was-one: the finalizer\n" +
		"shop/web: the finalizer, the address 10.11.12.70, the condition gatehouse.e13.dev/Exposed\n"
	for _, dryRun := range []bool{true, false} {
		got := ""
		must(t, c.Uninstall(t.Context(), dryRun, func(c Cleaning) {
			got += c.Service + ": " + strings.Join(c.Removed, ", ") + c.Error + "\n"
		}))
		if got != want {
			t.Errorf("dry run %t:\n%s", dryRun, got)
		}
		if n := api.count("patch"); dryRun && n != 0 || !dryRun && n != 4 {
			t.Errorf("dry run %t: %d writes", dryRun, n)
		}
	}
	web := api.get("shop/web")
	if !slices.Equal(web.Finalizers, []string{"example.com/other"}) || len(web.Status.LoadBalancer.Ingress) != 0 || len(web.Status.Conditions) != 1 {
		t.Errorf("web: %+v", web)
	}
	if s := api.get("shop/deleted"); s.Name != "" {
		t.Errorf("still there: %+v", s)
	}
	if s := api.get("shop/taken-over"); len(s.Status.LoadBalancer.Ingress) != 1 {
		t.Errorf("somebody else's address is gone: %+v", s)
	}
	if s := api.get("shop/theirs"); s.ResourceVersion != before {
		t.Errorf("somebody else's: %+v", s)
	}
	must(t, c.Uninstall(t.Context(), false, func(c Cleaning) { t.Errorf("again: %+v", c) }))
}

// What cannot be written is named, and the rest is done; who is asked to wait waits.
func TestUninstallGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, c := newFakeAPI(t)
		for i := range 3 {
			api.put(opened, "shop", fmt.Sprint("web-", i))
		}
		busy := 2
		api.refuse = func(r *http.Request) http.HandlerFunc {
			switch {
			case r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "web-1"):
				return status(403, metav1.StatusReasonForbidden, "denied by a webhook")
			case r.Method == http.MethodPatch && busy > 0:
				busy--
				return func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", "7")
					http.Error(w, "later", http.StatusTooManyRequests)
				}
			}
			return nil
		}
		began := time.Now()
		var got []string
		must(t, c.Uninstall(t.Context(), false, func(c Cleaning) {
			got = append(got, fmt.Sprint(c.Service, " ", len(c.Removed), " ", strings.Contains(c.Error, "denied by a webhook")))
		}))
		if fmt.Sprint(got) != "[shop/web-0 3 false shop/web-1 0 true shop/web-2 3 false]" {
			t.Errorf("got %q", got)
		}
		if took := time.Since(began); took != 14*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
