package desired

import (
	"net/netip"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// What is written in a Service of another class is left alone, as it may be
// another gatehouse's, unless nobody can stand by it: it was ours, and by the
// time that it is seen again it is of another class.
func TestServiceOfAnotherClassIsLeftAlone(t *testing.T) {
	exposed := func(is bool) []edge.Condition {
		return []edge.Condition{{Type: conditionExposed, True: is, Reason: "Open"}}
	}
	for name, c := range map[string]struct {
		service edge.Service
		cleared bool
	}{
		"another gatehouse's, open":   {edge.Service{Conditions: exposed(true), StatusOurs: true, Ingress: []edge.Ingress{{IP: netip.MustParseAddr("192.0.2.1")}}}, false},
		"another gatehouse's, closed": {edge.Service{Conditions: exposed(false), Finalizer: true}, false},
		"ours until a moment ago":     {edge.Service{Conditions: exposed(true), Finalizer: true}, true},
		"nobody's":                    {edge.Service{}, false},
	} {
		in := site()
		c.service.Namespace, c.service.Name, c.service.UID, c.service.Class = "shop", "web", "u", "example.com/other"
		in.Cluster = &edge.Cluster{Services: []edge.Service{c.service}}
		state, _ := Build(in)
		var got []edge.ServiceStatus
		for _, s := range state.Statuses {
			if s.UID == "u" {
				got = append(got, s)
			}
		}
		switch {
		case !c.cleared && len(got) > 0:
			t.Errorf("%s: %+v is to be written", name, got)
		case c.cleared && (len(got) != 1 || got[0].Finalizer || len(got[0].Conditions) > 0 || len(got[0].Ingress) > 0):
			t.Errorf("%s: %+v is to be written, want nothing of ours", name, got)
		}
	}
}
