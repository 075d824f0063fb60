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
	for _, tt := range []struct {
		name string
		in   edge.ServiceStatus
		want string
	}{
		{"clear", statusOf("web"), `{"metadata":{"uid":"u-web"},"status":{"loadBalancer":{"ingress":[]}}}`},
		{
			"address and mode", statusOf("web", ingressAt("10.11.12.32", "Proxy")),
			`{"metadata":{"uid":"u-web"},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.32","ipMode":"Proxy"}]}}}`,
		},
		{
			"no mode", statusOf("web", ingressAt("fd00::32", "")),
			`{"metadata":{"uid":"u-web"},"status":{"loadBalancer":{"ingress":[{"ip":"fd00::32"}]}}}`,
		},
		{
			"a name has no mode", statusOf("web", edge.Ingress{Hostname: "web.example.org", Mode: "Proxy"}),
			`{"metadata":{"uid":"u-web"},"status":{"loadBalancer":{"ingress":[{"hostname":"web.example.org"}]}}}`,
		},
		{
			"ports", statusOf("web", ingressAt("10.11.12.32", "VIP", edge.IngressPort{Port: 80, Protocol: edge.TCP}, edge.IngressPort{Port: 5060, Protocol: edge.SCTP, Error: "ProtocolNotSupported"})),
			`{"metadata":{"uid":"u-web"},"status":{"loadBalancer":{"ingress":[{"ip":"10.11.12.32","ipMode":"VIP","ports":[{"port":80,"protocol":"TCP"},{"port":5060,"protocol":"SCTP","error":"ProtocolNotSupported"}]}]}}}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(statusPatch(tt.in)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
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

// A write that is in effect is not repeated before the watch has told of it,
// and one that another controller undoes is repeated more and more slowly.
func TestWritesAreNotRepeatedInHaste(t *testing.T) {
	now := time.Unix(0, 0)
	svc := &edge.Service{Namespace: "shop", Name: "web", ResourceVersion: "1"}
	ch := change{"shop/web", statusOf("web", ingressAt("10.11.12.32", "Proxy")), svc}
	tr := &try{}
	write := func() { tr.status, tr.version, tr.at, tr.written = ch.status, svc.ResourceVersion, now, true }

	if !tr.due(ch, now) {
		t.Fatal("the first write is not due")
	}
	write()
	for range 3 {
		if now = now.Add(time.Minute); tr.due(ch, now) {
			t.Error("due again, though the Service has not changed since")
		}
	}
	var delays []string
	for i := range 6 {
		svc.ResourceVersion = fmt.Sprint(i + 2) // another controller's write
		began := now
		for !tr.due(ch, now) {
			now = now.Add(500 * time.Millisecond)
		}
		delays = append(delays, now.Sub(began).String())
		write()
	}
	if got := strings.Join(delays, " "); got != "1s 2s 4s 8s 16s 16s" {
		t.Errorf("delays %s", got)
	}
	if tr.problem == nil || tr.problem.String() != "service/shop/web: status.loadBalancer: another controller keeps changing it; "+
		"let one of both own the Service: set another loadBalancerClass, or take the class from the other" {
		t.Errorf("problem %v", tr.problem)
	}
	ch.status = statusOf("web", ingressAt("10.11.12.51", "Proxy"))
	if !tr.due(ch, now) || tr.problem != nil {
		t.Error("another wish has to wait")
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
