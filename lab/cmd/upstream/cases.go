package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type result struct {
	name    string
	state   string // ginkgo's: passed, failed, skipped, ...
	message string
	took    time.Duration
}

// a known is what we expect of a test that is not simply to pass, and why.
type known struct {
	state   string // skipped or failed
	why     string
	instead string // the test of ours that stands for it
}

// expected has the tests that do not pass, by name.
var expected = map[string]known{
	"LoadBalancers should handle load balancer cleanup finalizer for service": {
		state: notRun,
		why: "wants the finalizer service.kubernetes.io/load-balancer-cleanup, which is the cloud controller manager's: " +
			"with two who take it off, a Service goes too early. Ours is gatehouse.e13.dev/closed",
		instead: "TestContract/finalizer in lab/e2e",
	},
	"LoadBalancers ExternalTrafficPolicy: Local should work for type=LoadBalancer": {
		state:   "skipped",
		why:     "skips itself where the status says ipMode Proxy: what the source address is then is not decided (kubernetes/kubernetes#123714)",
		instead: "TestTransparent in lab/e2e: the pods see the client's own address if that is asked for",
	},
	"LoadBalancers ExternalTrafficPolicy: Local should work from pods": {
		state:   "skipped",
		why:     "skips itself where the status says ipMode Proxy",
		instead: "TestHairpin in lab/e2e",
	},
}

// notRun is the state of a test that is not even tried: it would wait for many minutes for what does not come.
const notRun = "not run"

var tags = regexp.MustCompile(` ?\[[^\]]*\]`)

// short is a test's name without [sig-network], [Feature:LoadBalancer] and the like.
func short(name string) string { return strings.TrimSpace(tags.ReplaceAllString(name, "")) }

func bad(results []result) int {
	n := 0
	for _, r := range results {
		if !r.asExpected() {
			n++
		}
	}
	return n
}

func (r result) asExpected() bool {
	if k, ok := expected[r.name]; ok {
		return r.state == k.state
	}
	return r.state == "passed"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func (r result) remark() string {
	k, ok := expected[r.name]
	switch {
	case ok && r.asExpected():
		return k.why
	case ok:
		return "expected: " + k.state + "; " + firstLine(r.message)
	}
	return firstLine(r.message)
}

func printTable(out io.Writer, results []result) {
	slices.SortFunc(results, func(a, b result) int { return strings.Compare(a.name, b.name) })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	count := map[string]int{}
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%.0fs\t%s\t%s\n", r.state, r.took.Seconds(), r.name, r.remark())
		count[r.state]++
	}
	w.Flush()
	fmt.Fprintf(out, "%d passed, %d skipped, %d not run, %d not as expected\n", count["passed"], count["skipped"], count[notRun], bad(results))
}

// page is docs/upstream-tests.md.
func page(results []result) string {
	var b strings.Builder
	b.WriteString(`# Kubernetes' own tests of load balancers

Kubernetes has end-to-end tests of what a Service of type LoadBalancer is to do, written for the load balancers of clouds:
[sig-network] LoadBalancers, in test/e2e/network/loadbalancer.go. ` + "`make upstream`" + ` (as root) builds those of the release that the lab is
made of and runs them in [the lab](lab.md): the tests are on a machine in the home LAN, the pods are where they always are, and
gatehouse is between them. Nothing of the tests is changed. What stands for their container image is built from the same source.

This page is written by that run, with ` + "`lab/cmd/upstream/cases.go`" + ` for the remarks.

| test | ends | remark |
|---|---|---|
`)
	for _, r := range results {
		remark := r.remark()
		if k, ok := expected[r.name]; ok && k.instead != "" {
			remark += ". Instead: " + k.instead
		}
		fmt.Fprintf(&b, "| %s | %s |%s |\n", r.name, r.state, strings.TrimRight(" "+strings.ReplaceAll(remark, "|", "\\|"), " "))
	}
	return b.String()
}
