package cli

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// Ten thousand Services, open or not, are printed in less than 0.1 s, as status
// --watch does each second. It was seconds when rows were looked up among all.
func BenchmarkPrintManyServices(b *testing.B) {
	var closed status.Status
	var open desired.State
	for i := range 10_000 {
		name := fmt.Sprintf("shop/s%d", i)
		reason := fmt.Sprintf("port 80 is that of service/shop/other%d", i)
		closed.Exposures = append(closed.Exposures, desired.Exposure{Name: name, Zone: "home", Service: name, Code: "PortConflict", Reason: reason})
		closed.Problems = append(closed.Problems, edge.Problem{Object: "service/" + name, What: reason})
		open.Exposures = append(open.Exposures, desired.Exposure{
			Name: name, Zone: "home", Service: name, Protocol: edge.TCP, Open: true, Client: "this machine's address",
			Backends: []edge.Backend{{Addr: netip.MustParseAddrPort("10.0.0.101:80"), Weight: 1}},
		})
		open.Frontends = append(open.Frontends, edge.Frontend{Name: name, Zone: "home", Door: edge.Door{Protocol: edge.TCP}})
	}
	one := status.Frontend{Name: "shop/s9999:80"} // and one with many pods
	for i := range 10_000 {
		one.Backends = append(one.Backends, status.Backend{
			Addr: fmt.Sprint(i), State: edge.Up, Share: 1e-4, Got: &status.Got{Connections: 1, Share: 1e-4, Wanted: 1e-4},
		})
	}
	for what, show := range map[string]func(io.Writer) error{
		"pods": func(out io.Writer) error {
			return printStatus(out, status.Status{Frontends: []status.Frontend{one}}, time.Now(), true)
		},
		"status": func(out io.Writer) error { return printStatus(out, closed, time.Now(), true) },
		"plan":   func(out io.Writer) error { return printPlan(out, open, closed.Problems) },
	} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				var text strings.Builder
				if err := show(&text); err != nil || !strings.Contains(text.String(), "shop/s9999") {
					b.Fatalf("%v, %d bytes", err, text.Len())
				}
			}
		})
	}
}

// Of what is said of a row that is not open, the problem says nothing new.
func TestProblemsThatRowsSay(t *testing.T) {
	said := reasonsOf([]desired.Exposure{{Name: "open"}, {Reason: "no zone named \"lan2\""}, {Reason: "short"}})
	for what, want := range map[string]bool{
		"short": true, "zone home: short": true, "no zone named \"lan2\"": true, "short of memory": false, "hort": false, "": false,
	} {
		if got := said.in(edge.Problem{What: what}); got != want {
			t.Errorf("%q: %t", what, got)
		}
	}
}
