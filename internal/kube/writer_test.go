package kube

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/internal/edge"
)

// writing runs f in a bubble, beside a client that writes what it is given.
func writing(t *testing.T, f func(api *fakeAPI, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api, c := newFakeAPI(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{}, 3)
		go func() { _ = c.writeStatuses(ctx); done <- struct{}{} }()
		go func() { _ = c.recordEvents(ctx); done <- struct{}{} }()
		go func() { api.decide(ctx); done <- struct{}{} }()
		f(api, c)
		cancel()
		<-done
		<-done
		<-done
	})
}

var atHome = ingressAt("10.11.12.32", "Proxy")

func asIs(*corev1.Service) {}

// open is the status of a Service that is open.
func open(name string, ingress ...edge.Ingress) edge.ServiceStatus {
	s := statusOf(name, ingress...)
	s.Finalizer = true
	s.Conditions = []edge.Condition{{Type: "gatehouse.e13.dev/Exposed", True: true, Reason: "Open", Message: "zone home"}}
	return s
}

// A life: opened, changed, deleted. Each step is one request, and none comes
// behind it.
func TestOneRequestForEachChange(t *testing.T) {
	writing(t, func(api *fakeAPI, c *Client) {
		api.put(asIs, "shop", "web")
		api.begin()
		step := func(what string, requests ...string) {
			t.Helper()
			time.Sleep(time.Hour)
			got := api.requests()
			if len(got) != len(requests) {
				t.Errorf("%s: %q", what, got)
				return
			}
			for i, r := range requests {
				if !strings.HasPrefix(got[i], r) {
					t.Errorf("%s: %q", what, got[i])
				}
			}
		}
		step("nothing was given")
		api.apply()
		step("the first time", "list services")
		api.apply(open("web", atHome))
		step("opened", "patch services/status shop/web")
		s := api.get("shop/web")
		if !slices.Equal(s.Finalizers, []string{Finalizer}) || len(s.Status.LoadBalancer.Ingress) != 1 || len(s.Status.Conditions) != 1 {
			t.Errorf("opened: %+v", s)
		}
		since := s.Status.Conditions[0].LastTransitionTime
		api.apply(open("web", atHome))
		step("the same again")

		partly := open("web", atHome)
		partly.Conditions = []edge.Condition{{Type: "gatehouse.e13.dev/Exposed", True: true, Reason: "PartlyOpen"}, {Type: "LoadBalancerPortsError", True: true, Reason: "PortConflict", Message: "81"}}
		api.apply(partly)
		step("another condition", "patch services/status shop/web")
		if s = api.get("shop/web"); len(s.Status.Conditions) != 2 {
			t.Errorf("conditions %+v", s.Status.Conditions)
		}
		for _, cond := range s.Status.Conditions {
			if same := cond.LastTransitionTime.Equal(&since); same != (cond.Type == "gatehouse.e13.dev/Exposed") || cond.LastTransitionTime.IsZero() {
				t.Errorf("%s is so since %s, the first was since %s", cond.Type, cond.LastTransitionTime, since)
			}
		}
		api.put(func(s *corev1.Service) {
			s.Status.Conditions = append(s.Status.Conditions, metav1.Condition{Type: "example.com/Other", Status: metav1.ConditionTrue})
		}, "shop", "web")
		api.apply(open("web", atHome))
		step("a condition less", "patch services/status shop/web")
		if s = api.get("shop/web"); len(s.Status.Conditions) != 2 || !slices.ContainsFunc(s.Status.Conditions, func(c metav1.Condition) bool { return c.Type == "example.com/Other" }) {
			t.Errorf("conditions %+v", s.Status.Conditions)
		}

		api.put(func(s *corev1.Service) { s.DeletionTimestamp = new(metav1.Now()) }, "shop", "web")
		step("deleted, and not closed yet")
		api.apply(statusOf("web"))
		step("closed", "patch services/status shop/web")
		if s = api.get("shop/web"); s.Name != "" {
			t.Errorf("still there: %+v", s)
		}
		if left, _ := c.state.takeLeft(c.state.turns); len(left) != 0 || len(c.state.done) != 0 {
			t.Errorf("%v is still to be released, %v was", left, c.state.done)
		}
	})
}

// The Service leaves the watch with the finalizer on it.
func TestAServiceOfAnotherTypeIsReleased(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		api.put(asIs, "shop", "web")
		api.begin()
		api.apply(open("web", atHome))
		time.Sleep(time.Minute)
		api.requests()
		api.put(func(s *corev1.Service) {
			s.Finalizers = append(s.Finalizers, "example.com/other")
			s.Spec.Type = corev1.ServiceTypeClusterIP // and an old API server that leaves the status as it is
		}, "shop", "web")
		time.Sleep(time.Hour)
		if got := api.requests(); len(got) != 2 || !strings.HasPrefix(got[0], "get services shop/web") || !strings.HasPrefix(got[1], "patch services/status shop/web") {
			t.Errorf("requests %q", got)
		}
		if s := api.get("shop/web"); !slices.Equal(s.Finalizers, []string{"example.com/other"}) || len(s.Status.LoadBalancer.Ingress) != 0 || len(s.Status.Conditions) != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// The finalizer stays until it was decided, without the Service, that its doors
// are closed; and after a list nothing is written that was decided before.
func TestWritesWaitForTheDecision(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		for _, name := range []string{"web", "mail"} {
			api.put(asIs, "shop", name)
		}
		api.begin()
		api.apply(open("mail", atHome), open("web", atHome))
		time.Sleep(time.Hour)
		api.requests()
		api.mu.Lock()
		api.decided = false // it takes its time
		api.mu.Unlock()
		quiet := func(what string) {
			t.Helper()
			time.Sleep(time.Minute)
			if got := api.requests(); len(got) > 0 {
				t.Errorf("%s: requests %q", what, got)
			}
		}
		api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, "shop", "web")
		quiet("it leaves")
		api.apply(open("mail", atHome))
		time.Sleep(time.Minute)
		if got := api.requests(); len(got) != 2 || !strings.HasPrefix(got[1], "patch services/status shop/web") {
			t.Errorf("decided: requests %q", got)
		}
		api.mu.Lock()
		api.decided = false
		api.mu.Unlock()
		api.put(func(s *corev1.Service) { s.Status, s.Finalizers, s.ManagedFields = corev1.ServiceStatus{}, nil, nil }, "shop", "mail")
		api.relist()
		quiet("a list")
		api.apply(open("mail", atHome))
		time.Sleep(time.Minute)
		if got := api.count("patch services/status shop/mail"); got != 1 {
			t.Errorf("decided: %d patches", got)
		}
	})
}

// While what was read is not believed nothing is written that was decided before:
// not to a Service that has its old status again, nor to one that is of another
// type by now.
func TestNothingIsWrittenWhileItIsWithheld(t *testing.T) {
	writing(t, func(api *fakeAPI, c *Client) {
		for _, name := range []string{"web", "mail"} {
			api.put(asIs, "shop", name)
		}
		api.begin()
		api.apply(open("web", atHome), open("mail", atHome))
		time.Sleep(time.Hour)
		api.requests()
		c.Withhold()
		api.mu.Lock()
		api.decided = false // as a daemon does that believes nothing
		api.mu.Unlock()
		api.put(func(s *corev1.Service) {
			s.Status, s.Finalizers, s.ManagedFields = corev1.ServiceStatus{}, nil, nil // of a backup
		}, "shop", "web")
		api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, "shop", "mail")
		api.relist()
		time.Sleep(time.Hour)
		if got := api.requests(); len(got) > 0 {
			t.Errorf("requests %q", got)
		}
		api.apply(open("web", atHome))
		time.Sleep(time.Hour)
		if s := api.get("shop/web"); len(s.Status.LoadBalancer.Ingress) != 1 {
			t.Errorf("once it is believed: %+v", s.Status)
		}
		if s := api.get("shop/mail"); len(s.Finalizers) > 0 {
			t.Errorf("once it is believed: %q", s.Finalizers)
		}
	})
}

// What is there under the name by then is none of ours, or a load balancer again.
func TestOnlyTheServiceThatHasLeftIsReleased(t *testing.T) {
	for name, becomes := range map[string]func(*corev1.Service){
		"another of its name": func(s *corev1.Service) { s.UID = "u-another" },
		"it is one again":     func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer },
		"of somebody else by now": func(s *corev1.Service) {
			s.Finalizers, s.Status.Conditions = nil, nil
			ownedBy(s, "cloud")
		},
	} {
		t.Run(name, func(t *testing.T) {
			writing(t, func(api *fakeAPI, c *Client) {
				api.put(asIs, "shop", "web")
				api.begin()
				api.apply(open("web", atHome))
				time.Sleep(time.Minute)
				api.requests()
				c.writer.mu.Lock() // the worker comes late
				api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, "shop", "web")
				api.put(becomes, "shop", "web")
				c.writer.mu.Unlock()
				time.Sleep(time.Hour)
				if got := api.requests(); slices.ContainsFunc(got, func(r string) bool { return strings.HasPrefix(r, "patch") }) || name == "it is one again" && len(got) != 0 {
					t.Errorf("requests %q", got)
				}
			})
		})
	}
}

// The watch has told that it left, and not yet that it is back.
func TestAServiceThatIsBackIsNotReleased(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		api.put(asIs, "shop", "web")
		api.begin()
		api.apply(open("web", atHome))
		time.Sleep(time.Minute)
		api.requests()
		api.delay(true)
		api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, "shop", "web")
		api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }, "shop", "web")
		api.mu.Lock()
		left := api.held[0]
		api.held = api.held[1:]
		api.mu.Unlock()
		left()
		time.Sleep(time.Hour)
		if got := api.requests(); len(got) != 1 || got[0] != "get services shop/web" {
			t.Errorf("requests %q", got)
		}
	})
}

// What has left while nobody watched is found in a list.
func TestLeftoversAreFound(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		clusterIP := func(s *corev1.Service) {
			s.Spec.Type, s.Finalizers = corev1.ServiceTypeClusterIP, []string{Finalizer}
		}
		for i := range 1200 {
			api.put(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, "a", fmt.Sprint("other-", i))
		}
		api.put(clusterIP, "shop", "web")
		api.put(func(s *corev1.Service) { s.Finalizers = []string{Finalizer} }, "shop", "balanced")
		api.begin()
		time.Sleep(time.Hour)
		if n := len(api.requests()); n != 0 {
			t.Errorf("%d requests before anything was decided", n)
		}
		api.apply()
		time.Sleep(time.Hour)
		if got := api.requests(); len(got) != 5 || got[0] != "list services" || got[2] != "list services" || got[3] != "get services shop/web" {
			t.Errorf("requests %q", got)
		}
		if f := api.get("shop/web").Finalizers; len(f) != 0 {
			t.Errorf("finalizers %q", f)
		}
		if f := api.get("shop/balanced").Finalizers; len(f) != 1 {
			t.Error("a load balancer of somebody else's was released")
		}
		// Read anew, again and again.
		for range 19 {
			api.put(clusterIP, "shop", "web")
			api.relist()
			time.Sleep(time.Minute)
		}
		if n := api.count("list"); n != 2*3 {
			t.Errorf("%d pages listed, though all was read anew each minute of 19", n)
		}
		time.Sleep(time.Hour)
		if f := api.get("shop/web").Finalizers; len(f) != 0 {
			t.Errorf("finalizers %q", f)
		}
		api.requests()
		time.Sleep(24 * time.Hour)
		if n := len(api.requests()); n != 0 {
			t.Errorf("%d requests in a day in which nothing happened", n)
		}
	})
}

// Two that write the same status: the one gives way, says who it is, and looks
// again now and then.
func TestAContestEnds(t *testing.T) {
	writing(t, func(api *fakeAPI, c *Client) {
		rival := "cloud-controller"
		rivalry := func() { // answers each of our writes a moment later
			for _, r := range api.requests() {
				if strings.HasPrefix(r, "patch services/status") {
					time.Sleep(100 * time.Millisecond)
					api.put(func(s *corev1.Service) {
						s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
						ownedBy(s, rival)
					}, "shop", "web")
				}
			}
		}
		api.put(asIs, "shop", "web")
		api.begin()
		want := open("web", atHome)
		api.apply(want)
		sent := func() (n int) {
			for r, m := range c.Requests() {
				if r.Verb == "patch" && r.Resource == "services/status" {
					n += int(m)
				}
			}
			return n
		}
		before := 0
		during := func(d time.Duration) int {
			for end := time.Now().Add(d); time.Now().Before(end); {
				rivalry()
				time.Sleep(500 * time.Millisecond)
			}
			n := sent() - before
			before += n
			return n
		}
		if n := during(9 * time.Minute); n != 3 {
			t.Errorf("%d writes until it gave way", n)
		}
		const text = `service/shop/web: status.loadBalancer: "cloud-controller" keeps changing it; gatehouse writes nothing there for 10 minutes, or until the Service changes; ` +
			"let one of both own the Service: set another loadBalancerClass, or take the class from the other"
		if p := c.Problems(); len(p) != 1 || p[0].String() != text {
			t.Errorf("problems %v", p)
		}
		if n := during(time.Hour); n < 5 || n > 7 {
			t.Errorf("%d writes in an hour of contest", n)
		}
		// Something changes: the Service, or what is wanted.
		api.put(func(s *corev1.Service) { s.Annotations = map[string]string{"gatehouse.e13.dev/zones": "home"} }, "shop", "web")
		if n := during(30 * time.Second); n != 3 {
			t.Errorf("%d writes after the Service has changed", n)
		}
		rival = FieldManager
		want = open("web", ingressAt("10.11.12.33", "Proxy"))
		api.apply(want)
		if n := during(30 * time.Second); n != 3 {
			t.Errorf("%d writes after another wish", n)
		}
		if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0].What, "another gatehouse of the same loadBalancerClass keeps") {
			t.Errorf("problems %v", p)
		}
		// The other one is gone.
		time.Sleep(15 * time.Minute)
		if p := c.Problems(); len(p) != 0 || api.get("shop/web").Status.LoadBalancer.Ingress[0].IP != "10.11.12.33" {
			t.Errorf("problems %v, %v", p, api.get("shop/web").Status)
		}
	})
}

func TestAContestIsToldInAnEvent(t *testing.T) {
	writing(t, func(api *fakeAPI, c *Client) {
		api.put(asIs, "shop", "web")
		api.begin()
		api.apply(open("web", atHome))
		var told []string
		for range 200 {
			for _, r := range api.requests() {
				if strings.HasPrefix(r, "create events") {
					told = append(told, r)
				}
			}
			api.put(func(s *corev1.Service) { s.Finalizers = nil }, "shop", "web")
			time.Sleep(time.Second)
		}
		if len(told) != 1 || !strings.Contains(told[0], "StatusContested") {
			t.Errorf("told %q", told)
		}
		if p := c.Problems(); len(p) != 1 || !strings.Contains(p[0].String(), "metadata.finalizers: another controller keeps changing it") {
			t.Errorf("problems %v", p)
		}
	})
}

// Somebody else writes now and then, or something else: that is no contest.
func TestNoContest(t *testing.T) {
	for name, tt := range map[string]struct {
		each time.Duration
		edit func(*corev1.Service)
	}{
		"the status, every two minutes": {2 * time.Minute, func(s *corev1.Service) { s.Status.LoadBalancer.Ingress = nil }},
		"an annotation, each second":    {time.Second, func(s *corev1.Service) { s.Annotations = map[string]string{"example.com/at": time.Now().String()} }},
	} {
		t.Run(name, func(t *testing.T) {
			writing(t, func(api *fakeAPI, c *Client) {
				api.put(asIs, "shop", "web")
				api.begin()
				api.apply(open("web", atHome))
				for range 20 {
					time.Sleep(tt.each)
					api.put(tt.edit, "shop", "web")
				}
				time.Sleep(tt.each)
				if p := c.Problems(); len(p) != 0 || len(api.get("shop/web").Status.LoadBalancer.Ingress) != 1 {
					t.Errorf("problems %v, status %+v", p, api.get("shop/web").Status)
				}
			})
		})
	}
}

// The watch tells late of a write: what it tells of before is not somebody
// else's doing, and nothing is written twice.
func TestALateWatchIsNoRival(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		api.put(asIs, "shop", "web")
		api.begin()
		api.delay(true)
		for i := range 5 { // of which the watch has yet to tell
			api.put(func(s *corev1.Service) { s.Annotations = map[string]string{"gatehouse.e13.dev/x": fmt.Sprint(i)} }, "shop", "web")
		}
		api.apply(open("web", atHome))
		time.Sleep(time.Hour)
		api.mu.Lock()
		held := api.held
		api.held = nil
		api.mu.Unlock()
		for _, tell := range held {
			tell()
			api.apply(open("web", atHome))
			time.Sleep(time.Second)
		}
		if n := api.count("patch"); n != 1 {
			t.Errorf("%d writes", n)
		}
	})
}

func manyServices(api *fakeAPI, n int) (want []edge.ServiceStatus) {
	for i := range n {
		name := fmt.Sprintf("web-%04d", i)
		api.put(asIs, "shop", name)
		want = append(want, open(name, atHome))
	}
	return want
}

func TestAThousandAreOpenedInSeconds(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		want := manyServices(api, 1000)
		api.begin()
		api.apply(want...)
		time.Sleep(3 * time.Second) // the API server itself takes no time here
		if n := api.count("patch"); n != 1000 {
			t.Errorf("%d of 1000 written after 3 s", n)
		}
	})
}

// An API server that has too much to do is left alone for as long as it says.
func TestRetryAfterIsHonoured(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		want := manyServices(api, 1000)
		api.begin()
		api.refuse = func(*http.Request) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "30")
				http.Error(w, "Too many requests, please try again later.", http.StatusTooManyRequests)
			}
		}
		api.apply(want...)
		time.Sleep(29 * time.Second)
		if n := api.count("patch"); n == 0 || n > 2*concurrentWrites {
			t.Errorf("%d writes while it asks to wait", n)
		}
		api.mu.Lock()
		api.refuse = nil
		api.mu.Unlock()
		time.Sleep(3 * time.Second)
		if n := api.count("patch"); n != 1000 {
			t.Errorf("%d of 1000 written afterwards", n)
		}
	})
}

// All writes fail: that is one problem, and few requests.
func TestWritesThatAllFail(t *testing.T) {
	for name, code := range map[string]int{"no right": 403, "no disk": 500} {
		t.Run(name, func(t *testing.T) {
			writing(t, func(api *fakeAPI, c *Client) {
				want := manyServices(api, 1000)
				api.begin()
				api.refuse = func(r *http.Request) http.HandlerFunc {
					if r.Method != http.MethodPatch {
						return nil
					}
					return status(code, map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 500: metav1.StatusReasonInternalError}[code], "no")
				}
				api.apply(want...)
				time.Sleep(10 * time.Minute)
				if n := api.count("patch"); n < 100 || n > 500 {
					t.Errorf("%d writes in ten minutes, of 1000 Services", n)
				}
				if p := c.Problems(); len(p) != 1 {
					t.Errorf("%d problems", len(p))
				}
				api.mu.Lock()
				api.refuse = nil
				api.mu.Unlock()
				time.Sleep(2 * time.Minute)
				if n := api.count("patch"); n != 1000 || len(c.Problems()) != 0 {
					t.Errorf("%d of 1000 written afterwards, problems %v", n, c.Problems())
				}
			})
		})
	}
}

// Some Services are refused, by an admission webhook: the others are written.
func TestSomeWritesThatFail(t *testing.T) {
	writing(t, func(api *fakeAPI, _ *Client) {
		want := manyServices(api, 100)
		api.begin()
		api.refuse = func(r *http.Request) http.HandlerFunc {
			if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/web-00") && !strings.Contains(r.URL.Path, "/web-009") {
				return status(403, metav1.StatusReasonForbidden, "admission webhook denied the request")
			}
			return nil
		}
		api.apply(want...)
		time.Sleep(2 * time.Minute)
		for i := 90; i < 100; i++ {
			if key := fmt.Sprintf("shop/web-%04d", i); len(api.get(key).Status.LoadBalancer.Ingress) == 0 {
				t.Errorf("%s is not written", key)
			}
		}
	})
}

func BenchmarkApplyWithoutAChange(b *testing.B) {
	const n = 10_000
	c := client(b, "https://127.0.0.1:1")
	services := c.state.serviceIntake()
	var want []edge.ServiceStatus
	for i := range n {
		name := fmt.Sprintf("web-%05d", i)
		must(b, services.Add(namedService("shop", name, "1")))
		want = append(want, edge.ServiceStatus{Namespace: "shop", Name: name, UID: "uid-shop-" + name})
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Apply(want)
		c.writeDue(b.Context())
	}
}
