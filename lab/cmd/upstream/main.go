// Command upstream runs Kubernetes' own end-to-end tests of load balancers, [sig-network] LoadBalancers, in a lab with
// gatehouse in front of its cluster. The tests run on a host of the home LAN: what they know of gatehouse is a Service's
// status. It prints a table, and fails if a test fails that is not expected to.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// config opens whatever asks for a load balancer, as a cloud's would: to the home LAN, where the tests are, and to the
// cluster, whose pods they send there too.
const config = `apiVersion: gatehouse.e13.dev/v1
zones:
  home:    {interfaces: [eth1]}
  cluster: {interfaces: [eth0]}
kubernetes:
  classless: true
  defaultZones: [home, cluster]
pools: # each Service has addresses of its own, as in a cloud: tests run beside each other, and all want port 80
  - {name: home, zone: home, addresses: [10.11.12.64-10.11.12.79, fd00:11:12::1000/124]}
  - {name: cluster, zone: cluster, addresses: [10.0.0.64-10.0.0.79, fd00:10::1000/124]}
`

func main() {
	site.FindSystemPrograms()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "upstream:", err)
		os.Exit(1)
	}
}

type options struct {
	bin, focus, write, logs string
	limit                   time.Duration
}

func run(ctx context.Context) (err error) {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of gatehouse, lab, labkube, agnhost and upstream.test")
	flag.StringVar(&o.focus, "focus", "", "run only tests whose name has this regular expression in it")
	flag.StringVar(&o.write, "write", "", "write the table as a page to this file")
	flag.StringVar(&o.logs, "logs", "", "keep what the tests and gatehouse print in this directory; else only if a test fails, in a new one")
	flag.DurationVar(&o.limit, "limit", time.Hour, "give up after this time")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("what is %q", flag.Arg(0))
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatehouse-upstream-")
	if err != nil {
		return err
	}
	keep := o.logs != ""
	if keep {
		if err := os.MkdirAll(o.logs, 0o755); err != nil {
			return err
		}
	}
	results, err := o.inLab(ctx, dir)
	if keep || err != nil || bad(results) > 0 {
		if o.logs == "" {
			o.logs = dir
		} else {
			err = errors.Join(err, copyFiles(dir, o.logs))
		}
		fmt.Fprintf(os.Stderr, "logs: %s\n", o.logs)
	}
	if o.logs != dir {
		_ = os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	printTable(os.Stdout, results)
	if o.write != "" && o.focus == "" {
		if err := os.WriteFile(o.write, []byte(page(results)), 0o644); err != nil {
			return err
		}
	}
	if n := bad(results); n > 0 {
		return fmt.Errorf("%d tests did not end as expected", n)
	}
	return nil
}

func (o options) inLab(ctx context.Context, dir string) (results []result, err error) {
	file := filepath.Join(dir, "gatehouse.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	if err := ownWget(filepath.Join(dir, "path")); err != nil {
		return nil, err
	}
	agnhost := filepath.Join(o.bin, "agnhost")
	s, err := site.Up(ctx, site.Options{
		Name: fmt.Sprintf("upstream%d", os.Getpid()), Progress: os.Stderr,
		Lab: filepath.Join(o.bin, "lab"), Labkube: filepath.Join(o.bin, "labkube"),
		// One of the tests asks every address of a node for the health of an IPv4 Service.
		IPv4Nodes: true,
		Gatehouse: filepath.Join(o.bin, "gatehouse"), Config: file, Manifests: []string{filepath.Join(o.bin, "..", "deploy", "rbac.yaml")},
		Images: map[string][]string{
			"registry.k8s.io/e2e-test-images/agnhost": {agnhost},
			"registry.k8s.io/pause":                   {agnhost, "pause"},
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if data, rerr := os.ReadFile(s.LogPath("gatehouse")); rerr == nil {
			_ = os.WriteFile(filepath.Join(dir, "gatehouse.log"), data, 0o644)
		}
		err = errors.Join(err, s.Down(context.WithoutCancel(ctx)))
	}()
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	found := map[string]result{}
	if o.focus != "" {
		groups = []string{o.focus}
	}
	errs := make([]error, len(groups))
	lists := make([][]result, len(groups))
	began := time.Now()
	var wg sync.WaitGroup
	for i := range groups {
		wg.Go(func() { lists[i], errs[i] = o.group(ctx, s, dir, i, began) })
	}
	wg.Wait()
	for _, r := range slices.Concat(lists...) {
		found[r.name] = r
	}
	return slices.Collect(maps.Values(found)), errors.Join(errs...)
}

// groups run beside each other, as if by different users of the cluster: a regular expression of names each. The rolling
// updates wait for pods that take a minute to end, fifteen times each; the last group is what no other has.
var groups = []string{"rolling update.*Cluster", "rolling update.*Local", ""}

func (o options) group(ctx context.Context, s *site.Site, dir string, i int, began time.Time) ([]result, error) {
	report := filepath.Join(dir, fmt.Sprintf("report%d.json", i))
	focus := []string{`\[sig-network\] LoadBalancers`}
	var skip []string
	if groups[i] != "" {
		focus[0] += ".*" + groups[i]
	} else {
		skip = slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return g == "" })
	}
	for name, k := range expected {
		if k.state == notRun {
			_, name, _ = strings.Cut(name, " ") // the tags are between
			skip = append(skip, regexp.QuoteMeta(name))
		}
	}
	args := []string{
		"--kubeconfig=" + s.AdminKubeconfig(), "--kubectl-path=" + filepath.Join(s.Dir(), "bin", "kubectl"), "--provider=local",
		fmt.Sprintf("--num-nodes=%d", len(site.Workers)),
		"--ginkgo.json-report=" + report, "--ginkgo.v", "--ginkgo.no-color", "--ginkgo.timeout=" + o.limit.String(),
		"--ginkgo.focus=" + focus[0], "--ginkgo.skip=" + strings.Join(skip, "|"),
	}
	cmd, err := s.Command(ctx, "home1", append([]string{filepath.Join(o.bin, "upstream.test")}, args...)...)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, fmt.Sprintf("tests%d.log", i)))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Dir = dir
	cmd.Stdout = io.MultiWriter(log, &progress{out: os.Stderr, began: began})
	cmd.Stderr = cmd.Stdout
	ended := cmd.Run() // fails when a test does; the report says which
	data, err := os.ReadFile(report)
	if err != nil {
		return nil, fmt.Errorf("the tests have left no report (%w): %w", ended, err)
	}
	return read(data)
}

// ownWget puts a wget before the machine's that tries once, as the image's does (it is busybox's): GNU's tries a closed
// port for minutes. Pods have the PATH of who makes the lab.
func ownWget(dir string) error {
	wget, err := exec.LookPath("wget")
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s --tries=1 \"$@\"\n", wget)
	if err := os.WriteFile(filepath.Join(dir, "wget"), []byte(script), 0o755); err != nil {
		return err
	}
	return os.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// progress shows which test begins, of all that the tests print.
type progress struct {
	out   io.Writer
	began time.Time
	rest  string
	rule  bool // the last line was the rule above a test's name
}

func (p *progress) Write(data []byte) (int, error) {
	lines := strings.Split(p.rest+string(data), "\n")
	p.rest = lines[len(lines)-1]
	for _, l := range lines[:len(lines)-1] {
		if name, ok := strings.CutPrefix(l, "[sig-network] "); ok && p.rule {
			fmt.Fprintf(p.out, "%5.0fs  %s\n", time.Since(p.began).Seconds(), short(name))
		}
		p.rule = strings.HasPrefix(l, "------")
	}
	return len(data), nil
}

func copyFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, e.Name()), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read takes what we want to know from ginkgo's report.
func read(data []byte) ([]result, error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			RunTime                 time.Duration
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("report of the tests: %w", err)
	}
	var results []result
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType != "It" {
				if r.State == "failed" || r.State == "panicked" {
					return nil, fmt.Errorf("%s failed: %s", r.LeafNodeType, r.Failure.Message)
				}
				continue
			}
			name := short(strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " "))
			if !strings.HasPrefix(name, "LoadBalancers ") {
				continue
			}
			// What is not in the focus is skipped without a message; a test that skips itself says why.
			if r.State == "skipped" && r.Failure.Message == "" {
				if expected[name].state != notRun {
					continue
				}
				r.State = notRun
			}
			results = append(results, result{name: name, state: r.State, message: r.Failure.Message, took: r.RunTime})
		}
	}
	return results, nil
}
