// Package guides runs what the guides of the documentation show, word for word:
// their files are written, their commands run on the machines of the lab's site
// that the prompts name, and what they print is compared.
//
// In the lab stand in for what a real box has: for systemd, the lab, which
// starts gatehouse; for scp, a copy; for images of the Internet, programs of the
// lab; for /etc/gatehouse, a directory.
package guides

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/internal/page"
	"e13.dev/gatehouse/lab/site"
)

const etc = "/etc/gatehouse/"

var (
	lab       *site.Site
	gatehouse string // the program
	work      string // the directory that commands run in
)

func TestMain(m *testing.M) {
	required := os.Getenv("GATEHOUSE_LAB") == "required"
	if os.Geteuid() != 0 || !required {
		if required {
			fmt.Fprintln(os.Stderr, "guides: the lab needs root")
			os.Exit(1)
		}
		fmt.Println("guides: skipped; make test-e2e runs these tests, as root")
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "guides:", err)
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
	if work, err = os.MkdirTemp("", "gatehouse-guides-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	if err := os.Mkdir(filepath.Join(work, "etc"), 0o700); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	labProgram := filepath.Join(bin, "lab")
	lab, err = site.Up(ctx, site.Options{
		Name: fmt.Sprintf("guides%d", os.Getpid()), Lab: labProgram, Labkube: filepath.Join(bin, "labkube"), Progress: os.Stdout,
		// Both take --port, and answer with the name of the pod and the client's address.
		Images: map[string][]string{"traefik/whoami": {labProgram, "_pod", "web"}},
	})
	if lab != nil {
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if downErr := lab.Down(ctx); err == nil {
				err = downErr
			}
		}()
	}
	if err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// guides are the pages in the order in which they are run: the first one makes
// the rights and the kubeconfig that all others need. Before each, what it
// takes for granted is there.
var guides = []struct {
	page  string
	given string // manifests
	then  func(t *testing.T, said []string)
}{
	{page: "guides/five-minutes.md"},
	{page: "guides/two-ingress-controllers.md", given: namespace("ingress-public") + namespace("ingress-home") +
		pods("ingress-public", "app.kubernetes.io/name: traefik", "web", 8000) + pods("ingress-home", "app.kubernetes.io/name: traefik", "web", 8000)},
	{page: "guides/mail-server.md", given: namespace("mail") + pods("mail", "app: mail", "web", 2587), then: func(t *testing.T, said []string) {
		if last := said[len(said)-1]; !strings.Contains(last, "203.0.113.10") {
			t.Errorf("the mail server does not see the client 203.0.113.10: %s", last)
		}
	}},
	{page: "guides/one-port-for-many.md", given: namespace("git") + namespace("chat") +
		pods("git", "app: git", "tls", 8443) + pods("chat", "app: chat", "tls", 8443)},
	{page: "guides/instead-of-metallb.md", given: pods("default", "app: web", "web", 8080)},
	{page: "guides/beside-metallb.md"},
	{page: "guides/k3s.md"},
	{page: "guides/from-l4proxy.md"},
	{page: "guides/from-haproxy.md"},
	{page: "guides/from-nginx-stream.md"},
	{page: "troubleshooting.md", given: fiveMinutes},
	{page: "api.md", given: fiveMinutes},
}

// fiveMinutes is for what goes on from where the first guide has ended.
const fiveMinutes = "five minutes"

func TestGuides(t *testing.T) {
	for i, g := range guides {
		ok := t.Run(filepath.Base(g.page), func(t *testing.T) { runGuide(t, g.page, g.given, g.then) })
		if !ok && i == 0 {
			t.Fatal("without what the first guide makes the others have nothing to go on")
		}
	}
}

// Every guide is run.
func TestAllGuidesAreRun(t *testing.T) {
	files, err := filepath.Glob("../../docs/guides/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	listed := map[string]bool{"guides/home.md": true} // by the tests of the package home, whose lab is that site
	for _, g := range guides {
		listed[g.page] = true
	}
	for _, f := range files {
		if page := "guides/" + filepath.Base(f); !listed[page] {
			t.Errorf("docs/%s is not in the list of those that are run", page)
		}
	}
}

func namespace(name string) string {
	return "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n"
}

// pods is a Deployment of two pods of a program of the lab.
func pods(namespace, label, program string, port int) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: given, namespace: %s}
spec:
  replicas: 2
  selector: {matchLabels: {%s}}
  template:
    metadata: {labels: {%s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: given
          image: lab/%s
          args: [--port, "%d", --linger, 0s]
          readinessProbe: {tcpSocket: {port: %d}, periodSeconds: 1}
`, namespace, label, label, program, port, port)
}

func runGuide(t *testing.T, name, given string, then func(*testing.T, []string)) {
	var applied []string
	if given == fiveMinutes {
		for _, b := range blocksOf(t, "guides/five-minutes.md") {
			b.save(t)
		}
		startGatehouse(t)
		applied = append(applied, "web.yaml")
		mustRun(t, "cp", "kubectl apply -f web.yaml && kubectl rollout status deployment web")
	} else if given != "" {
		write(t, "given.yaml", given)
		applied = append(applied, "given.yaml")
		mustRun(t, "cp", "kubectl apply -f given.yaml")
	}
	defer func() {
		for _, file := range applied {
			// What was given takes its time to go, and is in nobody's way.
			mustRun(t, "cp", fmt.Sprintf("kubectl delete --ignore-not-found --wait=%t -f %s", file != "given.yaml", file))
		}
	}()
	var said []string
	commands := 0
	for _, b := range blocksOf(t, name) {
		if b.NotRun != "" {
			continue
		}
		b.save(t)
		for _, c := range b.commands() {
			commands++
			if file, ok := strings.CutPrefix(c.Line, "kubectl apply -f "); ok {
				applied = append(applied, file)
			}
			start := time.Now()
			said = append(said, c.run(t))
			t.Logf("%s: %s (%.1fs)\n%s", c.Host, c.Line, time.Since(start).Seconds(), said[len(said)-1])
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	t.Logf("%d commands", commands)
	if then != nil {
		then(t, said)
	}
}

// block is a piece of code in a page.
type block struct{ page.Block }

func blocksOf(t *testing.T, name string) []block {
	t.Helper()
	all, err := page.Blocks(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []block
	for _, b := range all {
		out = append(out, block{b})
	}
	return out
}

// save writes a file that is shown with its name in the first line.
func (b block) save(t *testing.T) {
	t.Helper()
	if name := b.File(); name != "" {
		write(t, name, b.Text)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(here(name), []byte(strings.ReplaceAll(text, etc, here(etc))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// here is where a file of the page is in the lab.
func here(name string) string {
	if rest, ok := strings.CutPrefix(name, etc); ok {
		return filepath.Join(work, "etc") + "/" + rest
	}
	return filepath.Join(work, name)
}

// command is one line of a block, with what it is said to print.
type command struct{ page.Command }

func (b block) commands() []command {
	var all []command
	for _, c := range b.Commands() {
		all = append(all, command{c})
	}
	return all
}

// patience is how long the site has to become as a page says that it is.
const patience = 20 * time.Second

// run runs a command until it prints what the page shows; what changes
// something is run once.
func (c command) run(t *testing.T) string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		out, err := c.once(t)
		wrong := c.Compare(out, err)
		if wrong == "" {
			return out
		}
		if c.changes() || time.Now().After(deadline) {
			t.Errorf("%s: %s: %s; it said:\n%s", c.Host, c.Line, wrong, out)
			return out
		}
	}
}

func (c command) changes() bool {
	return regexp.MustCompile(`kubectl.* (apply|annotate|delete) |^(scp|systemctl|gatehouse kubeconfig) `).MatchString(c.Line)
}

func (c command) once(t *testing.T) (string, error) {
	t.Helper()
	switch words := strings.Fields(c.Line); {
	case words[0] == "scp":
		data, err := os.ReadFile(here(words[1]))
		_, name, _ := strings.Cut(words[2], ":")
		if err == nil {
			err = os.WriteFile(here(name), data, 0o600)
		}
		return "", err
	case words[0] == "systemctl" && words[len(words)-1] == "gatehouse" && words[1] == "reload":
		awaitReload(t)
		return "", nil
	case words[0] == "systemctl" && words[len(words)-1] == "gatehouse":
		startGatehouse(t)
		return "", nil
	}
	out, err := shell(t, c.Host, c.Line)
	return strings.ReplaceAll(out, here(etc), etc), err
}

func mustRun(t *testing.T, host, line string) {
	t.Helper()
	if out, err := shell(t, host, line); err != nil {
		t.Errorf("%s: %s: %v; it said:\n%s", host, line, err, out)
	}
}

// shell runs a line on a host, with what a person would have there.
func shell(t *testing.T, host, line string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	programs := filepath.Join(work, "programs")
	if err := os.MkdirAll(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"gatehouse": gatehouse, "kubectl": filepath.Join(lab.Dir(), "bin", "kubectl")} {
		if err := os.Symlink(target, filepath.Join(programs, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	cmd, err := lab.Command(ctx, host, "sh", "-c", strings.ReplaceAll(line, etc, here(etc)))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "HOME="+work, "KUBECONFIG=")
	if host == "cp" {
		cmd.Env = append(cmd.Env, "KUBECONFIG="+lab.AdminKubeconfig())
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// startGatehouse is what systemd does: it makes /run/gatehouse, starts the
// program, and returns when it is ready.
func startGatehouse(t *testing.T) {
	t.Helper()
	mustRun(t, "edge", "mkdir -p -m 750 /run/gatehouse")
	if err := lab.RunGatehouse(t.Context(), gatehouse, here(etc+"gatehouse.yaml")); err != nil {
		t.Fatal(err)
	}
	awaitReload(t)
}

// awaitReload waits until what is in the file runs: files are watched, so that
// nobody has to tell.
func awaitReload(t *testing.T) {
	t.Helper()
	info, err := os.Stat(here(etc + "gatehouse.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: lab.Dialer("edge")}}
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		loaded, err := loadedAt(&client)
		if err == nil && loaded.After(info.ModTime()) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what is in the file since %s does not run: it is of %s (%v); log:\n%s", info.ModTime(), loaded, err, tail(lab.LogPath("gatehouse")))
		}
	}
}

func tail(file string) string {
	out, _ := exec.Command("tail", "-n", "20", file).CombinedOutput()
	return string(out)
}
