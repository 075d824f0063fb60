package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// On the edge of the site init finds what the picture of the site shows.
func TestInitOnTheEdge(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	mustKubeconfig(t, "-o", kubeconfig)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	cmd, err := lab.Command(t.Context(), "edge", gatehouse, "init", "--kubeconfig", kubeconfig, "-o", file)
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\n  home: {interfaces: [eth1]}\n", "\n  internet: {interfaces: [veth0]}\n", "\n  cluster: {interfaces: [eth0]}\n",
		"have the router forward public ports to " + internetAddr + "\n", "it leads to the API server 10.0.0.10, 4 nodes\n", "\n  kubeconfig: " + kubeconfig + "\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("it has no %q:\n%s", want, text)
		}
	}
	// As it is, it is right; and plan asks the cluster with it.
	for _, command := range []string{"check", "plan"} {
		if out, err := lab.Exec(t.Context(), "edge", gatehouse, command, "-c", file); err != nil {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
}
