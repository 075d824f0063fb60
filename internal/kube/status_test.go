package kube

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"e13.dev/gatehouse/internal/edge"
)

func ingressAt(addr, mode string, ports ...edge.IngressPort) edge.Ingress {
	return edge.Ingress{IP: netip.MustParseAddr(addr), Mode: mode, Ports: ports}
}

func statusOf(name string, ingress ...edge.Ingress) edge.ServiceStatus {
	return edge.ServiceStatus{Namespace: "shop", Name: name, UID: "u-" + name, Ingress: ingress}
}

func TestStatusPatch(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const exposed = "gatehouse.e13.dev/Exposed"
	home := ingressAt("10.11.12.32", "Proxy")
	with := func(edit func(*edge.ServiceStatus)) edge.ServiceStatus {
		s := statusOf("web")
		edit(&s)
		return s
	}
	for _, tt := range []struct {
		name string
		want edge.ServiceStatus
		have edge.Service
		text string // behind the uid
	}{
		{"clear", statusOf("web"), edge.Service{Ingress: []edge.Ingress{home}}, `},"status":{"loadBalancer":{"ingress":[]}}}`},
		{
			"address and mode", statusOf("web", home),
			edge.Service{},
			`},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.32","ipMode":"Proxy"}]}}}`,
		},
		{
			"no mode", statusOf("web", ingressAt("fd00::32", "")),
			edge.Service{},
			`},"status":{"loadBalancer":{"ingress":[{"ip":"fd00::32"}]}}}`,
		},
		{
			"a name has no mode", statusOf("web", edge.Ingress{Hostname: "web.example.org", Mode: "Proxy"}),
			edge.Service{},
			`},"status":{"loadBalancer":{"ingress":[{"hostname":"web.example.org"}]}}}`,
		},
		{
			"ports", statusOf("web", ingressAt("10.11.12.32", "VIP", edge.IngressPort{Port: 80, Protocol: edge.TCP}, edge.IngressPort{Port: 5060, Protocol: edge.SCTP, Error: "ProtocolNotSupported"})),
			edge.Service{},
			`},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.32","ipMode":"VIP","ports":[{"port":80,"protocol":"TCP"},{"port":5060,"protocol":"SCTP","error":"ProtocolNotSupported"}]}]}}}`,
		},
		{
			"finalizer, with the address", with(func(s *edge.ServiceStatus) { s.Finalizer, s.Ingress = true, []edge.Ingress{home} }),
			edge.Service{},
			`,"finalizers":["gatehouse.e13.dev/closed"]},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.32","ipMode":"Proxy"}]}}}`,
		},
		{"released", statusOf("web"), edge.Service{Finalizer: true}, `,"$deleteFromPrimitiveList/finalizers":["gatehouse.e13.dev/closed"]}}`},
		{
			"released while it is deleted", statusOf("web"),
			edge.Service{Finalizer: true, Deleting: true},
			`,"$deleteFromPrimitiveList/finalizers":["gatehouse.e13.dev/closed"]}}`,
		},
		{"none is put on what is being deleted", with(func(s *edge.ServiceStatus) { s.Finalizer = true }), edge.Service{Deleting: true}, `}}`},
		{
			"a new condition", with(func(s *edge.ServiceStatus) {
				s.Conditions = []edge.Condition{{Type: exposed, True: true, Reason: "Open", Message: "m"}}
			}),
			edge.Service{},
			`},"status":{"conditions":[{"type":"gatehouse.e13.dev/Exposed","status":"True","reason":"Open","message":"m","lastTransitionTime":"2026-03-01T12:00:00Z"}]}}`,
		},
		{
			"another message, none at all: since when it is so stays", with(func(s *edge.ServiceStatus) {
				s.Conditions = []edge.Condition{{Type: exposed, True: true, Reason: "PartlyOpen"}}
			}),
			edge.Service{Conditions: []edge.Condition{{Type: exposed, True: true, Reason: "Open", Message: "m"}}},
			`},"status":{"conditions":[{"type":"gatehouse.e13.dev/Exposed","status":"True","reason":"PartlyOpen","message":""}]}}`,
		},
		{
			"it is not so any more", with(func(s *edge.ServiceStatus) {
				s.Conditions = []edge.Condition{{Type: exposed, Reason: "NoZone", Message: "m"}}
			}),
			edge.Service{Conditions: []edge.Condition{{Type: exposed, True: true, Reason: "Open", Message: "m"}}},
			`},"status":{"conditions":[{"type":"gatehouse.e13.dev/Exposed","status":"False","reason":"NoZone","message":"m","lastTransitionTime":"2026-03-01T12:00:00Z"}]}}`,
		},
		{
			"one is as it is, one goes", with(func(s *edge.ServiceStatus) {
				s.Conditions = []edge.Condition{{Type: exposed, True: true, Reason: "Open", Message: "m"}}
			}),
			edge.Service{Conditions: []edge.Condition{{Type: "LoadBalancerPortsError", True: true}, {Type: exposed, True: true, Reason: "Open", Message: "m"}}},
			`},"status":{"conditions":[{"type":"LoadBalancerPortsError","$patch":"delete"}]}}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, want := string(statusPatch(tt.want, &tt.have, now, false)), `{"metadata":{"uid":"u-web"`+tt.text; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
	exact := string(statusPatch(statusOf("web"), &edge.Service{Finalizer: true, ResourceVersion: "7"}, now, true))
	if !strings.HasPrefix(exact, `{"metadata":{"uid":"u-web","resourceVersion":"7",`) {
		t.Errorf("exact: %s", exact)
	}
}

func TestChanges(t *testing.T) {
	has := func(name string, ours bool, ingress ...edge.Ingress) edge.Service {
		return edge.Service{Namespace: "shop", Name: name, UID: "u-" + name, StatusOurs: ours, Ingress: ingress}
	}
	home, other := ingressAt("10.11.12.32", "Proxy"), ingressAt("10.11.12.51", "Proxy")
	for _, tt := range []struct {
		name string
		have edge.Service
		want []edge.ServiceStatus
		text string // of what is to be written
	}{
		{"new", has("web", false), []edge.ServiceStatus{statusOf("web", home)}, "shop/web: 10.11.12.32"},
		{"as it is", has("web", true, home), []edge.ServiceStatus{statusOf("web", home)}, ""},
		{"the API's default mode", has("web", true, ingressAt("10.11.12.32", "VIP")), []edge.ServiceStatus{statusOf("web", ingressAt("10.11.12.32", ""))}, ""},
		{
			"the API's default protocol", has("web", true, ingressAt("10.11.12.32", "VIP", edge.IngressPort{Port: 80, Protocol: edge.TCP})),
			[]edge.ServiceStatus{statusOf("web", ingressAt("10.11.12.32", "VIP", edge.IngressPort{Port: 80}))},
			"",
		},
		{"another mode", has("web", true, ingressAt("10.11.12.32", "VIP")), []edge.ServiceStatus{statusOf("web", home)}, "shop/web: 10.11.12.32"},
		{"another address", has("web", true, other), []edge.ServiceStatus{statusOf("web", home)}, "shop/web: 10.11.12.32"},
		{"another order", has("web", true, other, home), []edge.ServiceStatus{statusOf("web", home, other)}, "shop/web: 10.11.12.32 10.11.12.51"},
		{"a port error", has("web", true, home), []edge.ServiceStatus{statusOf("web", ingressAt("10.11.12.32", "Proxy", edge.IngressPort{Port: 80, Error: "PortConflict"}))}, "shop/web: 10.11.12.32"},
		{"written by another, owned by class", has("web", false, other), []edge.ServiceStatus{statusOf("web", home)}, "shop/web: 10.11.12.32"},
		{"nothing is said of it", has("web", true, home), nil, ""},
		{"owned and not exposed", has("web", true, home), []edge.ServiceStatus{statusOf("web")}, "shop/web: clear"},
		{"not ours", has("web", false, other), nil, ""},
		{"cleared already", has("web", true), nil, ""},
		{"another of the same name", has("web", false), []edge.ServiceStatus{{Namespace: "shop", Name: "web", UID: "u-before", Ingress: []edge.Ingress{home}}}, ""},
		{"the finalizer is missing", has("web", true, home), []edge.ServiceStatus{{Namespace: "shop", Name: "web", UID: "u-web", Finalizer: true, Ingress: []edge.Ingress{home}}}, "shop/web: 10.11.12.32"},
		{
			"the finalizer is missing, it is being deleted",
			edge.Service{Namespace: "shop", Name: "web", UID: "u-web", Deleting: true},
			[]edge.ServiceStatus{{Namespace: "shop", Name: "web", UID: "u-web", Finalizer: true}},
			"",
		},
		{
			"a condition is missing", has("web", true),
			[]edge.ServiceStatus{{Namespace: "shop", Name: "web", UID: "u-web", Conditions: []edge.Condition{{Type: "gatehouse.e13.dev/Exposed"}}}},
			"shop/web: clear",
		},
		{
			"the conditions are in another order",
			edge.Service{Namespace: "shop", Name: "web", UID: "u-web", Conditions: []edge.Condition{{Type: "B"}, {Type: "A"}}},
			[]edge.ServiceStatus{{Namespace: "shop", Name: "web", UID: "u-web", Conditions: []edge.Condition{{Type: "A"}, {Type: "B"}}}},
			"",
		},
		{
			"the one before and the one behind are others", has("web", false),
			[]edge.ServiceStatus{{Namespace: "a-b", Name: "web"}, {Namespace: "shop", Name: "a"}, statusOf("web", home), {Namespace: "shop", Name: "x"}},
			"shop/web: 10.11.12.32",
		},
		{"gone", has("api", false), []edge.ServiceStatus{statusOf("web", home)}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, ch := range changes([]edge.Service{tt.have}, tt.want) {
				text := ch.key + ":"
				for _, i := range ch.status.Ingress {
					text += " " + i.IP.String()
				}
				if len(ch.status.Ingress) == 0 {
					text += " clear"
				}
				got = append(got, text)
				if ch.status.UID != ch.have.UID {
					t.Errorf("uid %q", ch.status.UID)
				}
			}
			if strings.Join(got, "; ") != tt.text {
				t.Errorf("got %q, want %q", got, tt.text)
			}
		})
	}
}

func TestWriteProblems(t *testing.T) {
	all := writeProblems(map[string]*try{
		"shop/ok": {},
		"shop/a":  {problem: &edge.Problem{What: "away"}, global: true},
		"shop/b":  {problem: &edge.Problem{What: "away, in other words"}, global: true},
		"shop/c":  {problem: &edge.Problem{What: "c is refused"}},
		"shop/d":  {problem: &edge.Problem{What: "d is refused"}},
	})
	if got := fmt.Sprint(all); got != "[away c is refused d is refused]" {
		t.Errorf("got %s", got)
	}
}

func TestOtherObject(t *testing.T) {
	gk := schema.GroupKind{Kind: "Service"}
	invalid := func(path string) error {
		return apierrors.NewInvalid(gk, "web", field.ErrorList{field.Invalid(field.NewPath("metadata").Child(path), "x", "field is immutable")})
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("other"), false},
		{invalid("uid"), true},
		{invalid("name"), false},
		{apierrors.NewForbidden(corev1.Resource("services"), "web", nil), false},
	} {
		if got := otherObject(tt.err); got != tt.want {
			t.Errorf("%v: got %v", tt.err, got)
		}
	}
}
