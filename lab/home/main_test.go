// Package home tests that examples/home is what docs/guides/home.md says: a whole
// site, from nothing, with that one configuration on a box that nobody else has
// configured.
//
// Machines get their addresses from gatehouse before there is a cluster, the
// cluster starts on them, and everything below is seen from where the people and
// machines of the site are.
package home

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

const example = "../../examples/home/"

var (
	lab       *site.Site
	gatehouse string // the program
)

func TestMain(m *testing.M) {
	required := os.Getenv("GATEHOUSE_LAB") == "required"
	if os.Geteuid() != 0 || !required {
		if required {
			fmt.Fprintln(os.Stderr, "home: the lab needs root")
			os.Exit(1)
		}
		fmt.Println("home: skipped; make test-e2e runs these tests, as root")
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "home:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	gatehouse = filepath.Join(bin, "gatehouse")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	lab, err = site.Up(ctx, site.Options{
		Name: fmt.Sprintf("home%d", os.Getpid()), Lab: filepath.Join(bin, "lab"), Labkube: filepath.Join(bin, "labkube"),
		Bare: true, Gatehouse: gatehouse, Config: example + "gatehouse.yaml", Manifests: []string{"../../deploy/rbac.yaml"}, Progress: os.Stdout,
	})
	if lab != nil {
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if code != 0 || err != nil {
				keepLog()
			}
			err = errors.Join(err, lab.Down(ctx))
		}()
	}
	if err != nil {
		return 0, err
	}
	if err := controllers(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// keepLog prints the end of gatehouse's log, which goes with the lab.
func keepLog() {
	data, err := os.ReadFile(lab.LogPath("gatehouse"))
	if err != nil {
		fmt.Println("no log of gatehouse:", err)
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	fmt.Printf("--- the last lines of gatehouse's log\n%s\n", strings.Join(lines[max(0, len(lines)-60):], "\n"))
}

// controllers are the two ingress controllers of the example: its Services, and pods of the lab behind them.
func controllers(ctx context.Context) error {
	manifests := ""
	for _, name := range []string{"ingress-public", "ingress-home"} {
		manifests += fmt.Sprintf(`---
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx, namespace: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
        - name: web
          image: lab/web
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, name, pods)
	}
	if err := lab.Apply(ctx, manifests); err != nil {
		return err
	}
	if _, err := lab.Kubectl(ctx, "apply", "-f", example+"services.yaml"); err != nil {
		return err
	}
	for _, name := range []string{"ingress-public", "ingress-home"} {
		if err := lab.AwaitDeployment(ctx, name, "nginx", time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// pods of each controller: more than there are nodes, so that no two nodes are alike.
const pods = 5

// answer is what a pod of lab/web says of itself and of the connection.
type answer struct{ Pod, Node, Client string }

// get makes one request over one new connection from a host of the site.
func get(host, address string) (answer, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Dialer(host)}}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("answer from %s: %w", address, err)
	}
	return a, nil
}

// passes says whether a host's first packet gets to somebody who answers it, be it with a refusal.
func passes(host, address string) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	conn, err := lab.Dialer(host)(ctx, "tcp", address)
	if err == nil {
		return true, conn.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true, nil
	}
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) {
		return false, nil
	}
	return false, err
}

// eventually polls until the condition holds.
func eventually(t *testing.T, limit time.Duration, what string, holds func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}

// shell runs a line on a host and returns what it printed, without the last newline.
func shell(t *testing.T, host, line string) string {
	t.Helper()
	out, err := lab.Exec(t.Context(), host, "sh", "-c", line)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
