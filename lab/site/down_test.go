package site_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// remains lists everything on the machine that carries the lab's name.
func remains(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/run/netns/ghlab-" + name + "-*", "/dev/shm/gatehouse-lab/" + name, "/dev/shm/gatehouse-lab/" + name + ".lock"} {
		files, _ := filepath.Glob(pattern)
		found = append(found, files...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "ghlab-"+name+"-") || strings.Contains(line, "gatehouse-lab/"+name+"/") {
			found = append(found, "mount "+line)
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range cmdlines {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), "gatehouse-lab/"+name+"/") {
			found = append(found, f+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

// Two labs beside each other have the same addresses and do not notice; taking one down, in the middle of everything
// and with its agents killed, leaves nothing of it and the other one whole.
func TestTwoLabsAndNothingLeft(t *testing.T) {
	one := lab(t)
	const name = "labtesttwo"
	two, err := site.Up(t.Context(), site.Options{Name: name, ProxyMode: "iptables", PodRoutes: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = site.Down(context.Background(), name) })
	if _, err := site.Up(t.Context(), site.Options{Name: name}); !errors.Is(err, site.ErrUp) {
		t.Errorf("up again: %v", err)
	}
	port := deploy(t, one, "two", 3, webContainer)
	if err := two.Apply(t.Context(), "{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: ["+webContainer+"]}}"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, two, "wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
	url := "http://" + kubectl(t, two, "get", "pod", "web", "-o", "jsonpath={.status.podIP}") + ":8080/"
	if a, err := ask(two, "edge", url); err != nil || a.Pod != "web" {
		t.Errorf("with PodRoutes, the edge to a pod: %+v, %v", a, err)
	}
	if a, err := ask(one, "edge", url); err == nil && a.Pod == "web" {
		t.Error("the other lab reaches it too")
	}
	if out, err := two.Exec(t.Context(), "w1", "iptables-save", "-t", "nat"); err != nil || !strings.Contains(out, "KUBE-SERVICES") {
		t.Errorf("kube-proxy does not use iptables: %v", err)
	}
	if err := two.Run(t.Context(), "sleeper", "home1", nil, "sh", "-c", "sleep 1000 & sleep 1000"); err != nil {
		t.Fatal(err)
	}
	if err := two.Kill(t.Context(), "agent-w1"); err != nil {
		t.Fatal(err)
	}
	if err := site.RemoveNamespace("ghlab-" + name + "-w2"); err != nil {
		t.Fatal(err)
	}
	if len(remains(t, name)) == 0 {
		t.Fatal("remains() does not see a lab that is up, so what it finds later means nothing")
	}
	if err := two.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := remains(t, name); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	eventually(t, 30*time.Second, "the other lab", func() error {
		_, err := ask(one, "edge", "http://10.0.0.102:"+port+"/")
		return err
	})
}

// An Up that is killed leaves half a lab; Down removes it, and so does the next Up.
func TestDownAfterKilledUp(t *testing.T) {
	needLab(t)
	const name = "labtesthalf"
	t.Cleanup(func() { _ = site.Down(context.Background(), name) })
	program := filepath.Join(lab(t).Dir(), "bin", "lab")
	labkube := filepath.Join(lab(t).Dir(), "bin", "labkube")
	for _, marker := range []string{"lab.json", "logs/etcd.log", "logs/kube-scheduler.log"} {
		cmd := exec.Command(program, "up", "--name", name)
		cmd.Env = append(os.Environ(), "LABKUBE="+labkube)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Minute, marker, func() error {
			_, err := os.Stat(filepath.Join("/dev/shm/gatehouse-lab", name, marker))
			return err
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := site.Down(t.Context(), name); err != nil {
			t.Fatalf("killed at %s: %v", marker, err)
		}
		if left := remains(t, name); len(left) > 0 {
			t.Errorf("killed at %s, left behind:\n%s", marker, strings.Join(left, "\n"))
		}
	}
}

// A program that ends at once makes Up fail with what the program said, and nothing stays.
func TestUpThatFails(t *testing.T) {
	needLab(t)
	const name = "labtestfail"
	t.Cleanup(func() { _ = site.Down(context.Background(), name) })
	dir := t.TempDir()
	program, config := filepath.Join(dir, "gatehouse"), filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho \"my $1 config $3 is bad\"; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := site.Up(t.Context(), site.Options{Name: name, Gatehouse: program, Config: config})
	if err == nil || !strings.Contains(err.Error(), "gatehouse: not running") || !strings.Contains(err.Error(), "my run config "+config+" is bad") {
		t.Errorf("error: %v", err)
	}
	if left := remains(t, name); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if names, err := site.Names(); err != nil || slices.Contains(names, name) {
		t.Errorf("names: %v, %v", names, err)
	}
}
