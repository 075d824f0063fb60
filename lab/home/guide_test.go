package home

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/internal/page"
)

const guide = "../../docs/guides/home.md"

// The commands of the guide are typed where their prompts say, one after the other, and print what it shows.
func TestTheGuide(t *testing.T) {
	blocks, err := page.Blocks(guide)
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	for name, target := range map[string]string{"gatehouse": gatehouse, "kubectl": filepath.Join(lab.Dir(), "bin", "kubectl")} {
		if err := os.Symlink(target, filepath.Join(programs, name)); err != nil {
			t.Fatal(err)
		}
	}
	expect, err := os.ReadFile(example + "expect.txt")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(lab.EdgeFiles(), "expect.txt"), expect, 0o600); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, b := range blocks {
		if b.NotRun != "" {
			continue
		}
		for _, c := range b.Commands() {
			n++
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
				out, err := typed(t, programs, c)
				wrong := c.Compare(out, err)
				if wrong == "" {
					t.Logf("%s: %s\n%s", c.Host, c.Line, out)
					break
				}
				if time.Now().After(deadline) || strings.Contains(c.Line, " apply ") || strings.Contains(c.Line, " confirm") {
					t.Fatalf("%s: %s: %s; it said:\n%s", c.Host, c.Line, wrong, out)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("the guide has %d commands: this test does not look right", n)
	}
}

// typed runs a line as a person does who sits at a machine, with the programs that are installed there.
func typed(t *testing.T, programs string, c page.Command) (string, error) {
	t.Helper()
	const etc = "/etc/gatehouse/"
	cmd, err := lab.Command(t.Context(), c.Host, "sh", "-c", strings.ReplaceAll(c.Line, etc, lab.EdgeFiles()+"/"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = lab.EdgeFiles()
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "HOME="+programs, "KUBECONFIG=")
	if c.Host != "edge" {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+lab.AdminKubeconfig())
	}
	out, err := cmd.CombinedOutput()
	return strings.ReplaceAll(string(out), lab.EdgeFiles()+"/", etc), err
}
