package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What plan --diff says of a file is what comes to pass with it, and of the one
// that runs it says nothing: with Services on both data planes, and with an
// address of a pool, of which others would be free, too.
func TestPlanDiff(t *testing.T) {
	kubeconfig, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	diff := func(file string) string {
		t.Helper()
		out, err := lab.Exec(t.Context(), "edge", "env", "KUBECONFIG="+kubeconfig, gatehouse, "plan", "-c", file, "--diff")
		if err != nil {
			t.Fatal(err, out)
		}
		return out
	}
	same := func() error {
		if out := diff(configFile); out != "nothing would change\n" {
			return errors.New(out)
		}
		return nil
	}
	ns := namespace(t)
	ports := map[string]int{proxy: freshPort(), nat: freshPort(), "pool": freshPort(), "file": freshPort()}
	manifests := deployment(ns, "web", "web", "w1", 1) + deployment(ns, "more", "web", "w2", 2) +
		service(ns, "web", "web", "home", "Local", ports[proxy]) + on(nat, service(ns, "moved", "web", "home", "Local", ports[nat])) +
		strings.Replace(service(ns, "pool", "web", "home", "Local", ports["pool"]), "  name: pool\n", "  name: pool\n  labels: {e2e: pool}\n", 1)
	apply(t, manifests)
	awaitPods(t, ns, "web", "more")
	for _, plane := range []string{proxy, nat} {
		eventually(t, 20*time.Second, plane+" is open", opened("home1", atHome(ports[plane])))
	}
	eventually(t, 30*time.Second, "what is open is as it is planned", same)

	changed := strings.Replace(config, "allow: {", "allow: {home: {namespaces: [nobody]}, ", 1) + fmt.Sprintf(`frontends:
  - {name: planned, zones: [home], port: %d, backends: [{address: "10.0.0.101:30001"}]}
`, ports["file"])
	next := filepath.Join(t.TempDir(), "next.yaml")
	if err := os.WriteFile(next, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	foretold := diff(next)
	for _, want := range []string{
		"zone home:\n",
		fmt.Sprintf("+ planned: opened at @eth1:%d, for 10.0.0.101:30001\n", ports["file"]),
		fmt.Sprintf("- %s/web:%d: closed at @eth1:%d: ", ns, ports[proxy], ports[proxy]),
		fmt.Sprintf("- %s/moved:%d: closed at @eth1:%d: ", ns, ports[nat], ports[nat]),
		fmt.Sprintf("- %s/pool:%d: closed at 10.11.12.2", ns, ports["pool"]),
	} {
		if !strings.Contains(foretold, want) {
			t.Errorf("there is no %q in\n%s", want, foretold)
		}
	}
	restoreConfig(t)
	if err := writeConfig(changed); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "what is open is as the other file has it", same)
	if _, err := get("home1", atHome(ports[proxy]), time.Second); !refused(err) {
		t.Errorf("what was to be closed is open: %v", err)
	}
	eventually(t, 10*time.Second, "what was to be opened is", func() error {
		for _, e := range statusNow(t).Exposures {
			if e.Name == "planned" {
				return nil
			}
		}
		return errors.New("it is not")
	})
}
