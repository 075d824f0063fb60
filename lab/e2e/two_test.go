package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Two gatehouses of one class write other addresses into one status. Both notice,
// say so, and leave it: nobody fights, and both serve on.
func TestTwoGatehousesOfOneClass(t *testing.T) {
	const port = 8690
	ns := namespace(t)
	b := runBesides(t, "second", "127.0.0.1:9199", "")
	// It is in the way of no other test, and has another address at home.
	text, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer(
		"loadBalancerClass: "+b.class, `loadBalancerClass: gatehouse.e13.dev/edge, selector: "two=yes"`,
		"home:     {interfaces: [eth1]}", "home:     {interfaces: [eth0]}", "cluster:  {interfaces: [eth0]}", "cluster:  {interfaces: [eth1]}",
	).Replace(string(text))
	if err := os.WriteFile(b.file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	both := strings.Replace(service(ns, "web", "web", "home", "Local", port), "  name: web\n", "  name: web\n  labels: {two: \"yes\"}\n", 1)
	apply(t, deployment(ns, "web", "web", "", 1)+both)
	awaitPods(t, ns, "web")
	eventually(t, 30*time.Second, "somebody says so", func() error {
		if events := eventsOf(t, ns, "web"); !strings.Contains(events, "Warning StatusContested") || !strings.Contains(events, "another gatehouse") {
			return errors.New(events)
		}
		return nil
	})
	version := func() string {
		return kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.metadata.resourceVersion}")
	}
	// The one that has written last may take a while to see the other's last word.
	last, since := version(), time.Now()
	eventually(t, time.Minute, "nobody writes any more", func() error {
		if now := version(); now != last {
			last, since = now, time.Now()
		}
		if quiet := time.Since(since); quiet < 5*time.Second {
			return fmt.Errorf("it was written %s ago", quiet)
		}
		return nil
	})
	for host, address := range map[string]string{"home1": homeAddr, "w1": clusterAddr} {
		if err := opened(host, fmt.Sprintf("%s:%d", address, port))(); err != nil {
			t.Error(err)
		}
	}
}
