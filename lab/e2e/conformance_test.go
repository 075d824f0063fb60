package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// What is promised of a Service, whatever moves its bytes.
func TestConformance(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane, func(t *testing.T) {
			for _, c := range []struct {
				name string
				test func(t *testing.T, plane string)
			}{
				{"opens and closes within a second", opensAndClosesWithinASecond},
				{"opens through node ports", opensThroughNodePorts},
				{"targets", targets},
				{"several ports", severalPorts},
				{"300 ports", serviceWith300Ports},
				{"source ranges", sourceRanges},
				{"session affinity", sessionAffinity},
				{"the older keeps the port", olderServiceKeepsThePort},
				{"scaled to zero and back", scaledToZeroAndBack},
				{"a port that is held", portThatIsHeld},
				{"bad annotations", badAnnotations},
				{"UDP", udpServices},
				{"UDP client of a pod that goes", udpClientOfAPodThatGoes},
				{"UDP client that was there before", udpClientThatWasThereBefore},
				{"interfaces are followed", interfacesAreFollowed},
			} {
				t.Run(c.name, func(t *testing.T) { c.test(t, plane) })
			}
		})
	}
}

// echoed is a condition for eventually: a pod of lab/echo answers.
func echoed(host, address string) func() error {
	return func() error {
		c, err := ring(host, address)
		if c.conn != nil {
			c.conn.Close()
		}
		return err
	}
}

// All ports of a Service are open, TCP and UDP of one number as well. One that
// is taken away is closed, and the others do not notice.
func severalPorts(t *testing.T, plane string) {
	const port = 8140
	ns := namespace(t)
	ports := func(list string) string {
		manifest := annotated(service(ns, "echo", "echo", "home", "Local", port), "gatehouse.e13.dev/target: pod")
		head, _, _ := strings.Cut(manifest, "  ports:")
		return on(plane, head+"  ports: ["+list+"]\n")
	}
	const (
		first  = "{name: first, port: 8140, targetPort: 8080}"
		second = ", {name: second, port: 8141, targetPort: 8080}"
		udp    = ", {name: udp, protocol: UDP, port: 8140, targetPort: 8080}"
	)
	apply(t, echoPods(ns, "echo", "", 1))
	awaitPods(t, ns, "echo")
	apply(t, ports(first+second+udp))
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 5*time.Second, "the first port", echoed("home1", at))
	eventually(t, 5*time.Second, "the second port", echoed("home1", homeAddr+":8141"))
	eventually(t, 5*time.Second, "the UDP port", answers(t, "home1", at))
	before, err := ring("home1", at)
	if err != nil {
		t.Fatal(err)
	}
	defer before.conn.Close()
	apply(t, ports(first+udp))
	eventually(t, time.Second, "the second port is closed", func() error {
		if err := echoed("home1", homeAddr+":8141")(); !refused(err) {
			return fmt.Errorf("it answers: %v", err)
		}
		return nil
	})
	apply(t, ports(first+second))
	eventually(t, time.Second, "the second port is open again", echoed("home1", homeAddr+":8141"))
	eventually(t, time.Second, "the UDP port is closed", func() error {
		_, err := unanswered(asker(t, "home1", at))
		return err
	})
	if err := before.try("after all that"); err != nil {
		t.Errorf("a connection was cut: %v", err)
	}
}

// rowOf is what the status says of a Service: whether it is open, and if not why.
func rowOf(t *testing.T, service string) (isOpen bool, reason string) {
	t.Helper()
	for _, e := range statusNow(t).Exposures {
		if e.Service == service {
			return e.Open, e.Reason
		}
	}
	return false, "there is no row"
}

// closedFor is a condition for eventually: a Service is not open, for this reason.
func closedFor(t *testing.T, service, reason string) func() error {
	return func() error {
		if isOpen, why := rowOf(t, service); isOpen || !strings.Contains(why, reason) {
			return fmt.Errorf("open %v: %q", isOpen, why)
		}
		return nil
	}
}

// A port at which a program of this machine listens stays that program's, and
// the status says whose. When the program has ended, it is the Service's.
func portThatIsHeld(t *testing.T, plane string) {
	const port, other = 8150, 8151
	ns := namespace(t)
	program := listen(t, "edge", fmt.Sprintf(":%d", port))
	go func() {
		for {
			conn, err := program.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("the program\n"))
			conn.Close()
		}
	}()
	apply(t, deployment(ns, "web", "web", "", 1))
	awaitPods(t, ns, "web")
	apply(t, on(plane, annotated(service(ns, "held", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod")+
		annotated(service(ns, "free", "web", "home", "Local", other), "gatehouse.e13.dev/target: pod")))
	eventually(t, 2*time.Second, "the other Service is open", opened("home1", fmt.Sprintf("%s:%d", homeAddr, other)))
	holder := fmt.Sprintf("port %d is held by e2e.test (process %d)", port, os.Getpid())
	eventually(t, 5*time.Second, "the status says who holds the port", closedFor(t, ns+"/held", holder))
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	for range 10 {
		if c, err := ring("home1", at); err != nil || c.worker != "the program" {
			t.Fatalf("the program's port is answered %q: %v", c.worker, err)
		} else {
			c.conn.Close()
		}
	}
	program.Close()
	eventually(t, 20*time.Second, "it is open when the program has ended", opened("home1", at))
	eventually(t, 5*time.Second, "the status says so", func() error {
		if isOpen, why := rowOf(t, ns+"/held"); !isOpen {
			return errors.New(why)
		}
		return nil
	})
}

// An annotation that cannot be kept keeps the Service closed, and the status says
// which. Without it the Service is open.
func badAnnotations(t *testing.T, plane string) {
	const port = 8155
	ns := namespace(t)
	apply(t, deployment(ns, "web", "web", "", 1))
	awaitPods(t, ns, "web")
	apply(t, on(plane, annotated(service(ns, "web", "web", "home", "Local", port), "gatehouse.e13.dev/target: pod")))
	at := fmt.Sprintf("%s:%d", homeAddr, port)
	eventually(t, 2*time.Second, "open", opened("home1", at))
	type bad struct{ annotation, value, reason string }
	table := []bad{
		{"target", "sideways", `"sideways" is no target`},
		{"data-plane", "kernel", `"kernel"`},
		{"balance", "roundRobin", `"roundRobin"`},
		{"drain-timeout", "soon", `"soon" is no time`},
	}
	if plane == nat { // what only the relay can do
		table = append(table,
			bad{"balance", "leastConnections", "gatehouse.e13.dev/balance with annotation gatehouse.e13.dev/data-plane: nat"},
			bad{"send-proxy-protocol", "v2", "gatehouse.e13.dev/send-proxy-protocol"},
			bad{"transparent", "true", "gatehouse.e13.dev/transparent"},
			bad{"hostnames", "git.example.org", "gatehouse.e13.dev/hostnames"},
		)
	}
	set := func(name, value string) {
		t.Helper()
		kubectl(t, "annotate", "service", "-n", ns, "web", "--overwrite", "gatehouse.e13.dev/"+name+value)
	}
	good := map[string]string{"target": "=pod", "data-plane": "=" + plane}
	for _, b := range table {
		set(b.annotation, "="+b.value)
		eventually(t, 2*time.Second, b.annotation+": "+b.value+" is told", closedFor(t, ns+"/web", b.reason))
		if err := closed("home1", at)(); err != nil {
			t.Errorf("%s: %s: %v", b.annotation, b.value, err)
		}
		value := "-"
		if good[b.annotation] != "" {
			value = good[b.annotation]
		}
		set(b.annotation, value)
		eventually(t, time.Second, "open without "+b.annotation+": "+b.value, opened("home1", at))
	}
}
