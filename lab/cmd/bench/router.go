package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/lab/internal/bench/report"
)

// What a firewall with NAT on the way out costs: the client's machines are inside, the backends are the Internet, and
// connections go to these themselves, under the edge's address.

var routerColumns = []string{"tcp-pingpong-64", "tcp-download", "tcp-upload", "tcp-conn"}

// masquerade is the shortest such firewall: answers pass, one way is open, and what takes it gets another address.
func masquerade() contender {
	return contender{
		Contender: report.Contender{Name: report.Masquerade, Label: "firewall, by hand", Kernel: true, Router: true},
		columns:   routerColumns,
		rules: func(int) string {
			return `table inet bench {
 chain forward { type filter hook forward priority filter; policy drop; ct state established accept; iifname lan oifname cluster accept; };
 chain post { type nat hook postrouting priority srcnat; iifname lan oifname cluster masquerade; };
}`
		},
	}
}

// gatehouseRouter is one build of gatehouse, with the same as a policy.
func gatehouseRouter(name, bin string) (contender, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return contender{}, err
	}
	dir, err := os.MkdirTemp("", "gatehouse-bench-")
	if err != nil {
		return contender{}, err
	}
	defer os.RemoveAll(dir)
	file, err := write(dir, natFile, routerConfig)
	if err != nil {
		return contender{}, err
	}
	if out, err := exec.Command(bin, "check", "-c", file).CombinedOutput(); err != nil {
		return contender{}, fmt.Errorf("%s check does not accept a firewall: %w: %s", bin, err, strings.TrimSpace(string(out)))
	}
	return contender{
		Contender: report.Contender{
			Name: name + "-firewall", Label: name + " firewall", Version: version("gatehouse version ", bin, "--version"),
			Subject: true, Kernel: true, Router: true,
		},
		columns: routerColumns,
		argv: func(dir string, _ int) ([]string, error) {
			file, err := write(dir, natFile, routerConfig)
			return []string{bin, "run", "-c", file}, err
		},
	}, nil
}

const routerConfig = configHead + `zones:
  inside: {interfaces: [lan]}
  outside: {interfaces: [cluster]}
firewall:
  policies: [{from: inside, to: outside, allow: true, masquerade: true}]
`

// awaitMasquerade waits until what goes to the backends gets another address: before, there is nothing to measure.
func (s *stage) awaitMasquerade(ctx context.Context, proxy *process) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		var rules bytes.Buffer
		cmd := exec.Command("nft", "list", "ruleset")
		cmd.Stdout = &rules
		err := errors.Join(s.in(edgeHost, cmd.Run), proxy.err())
		if err == nil && bytes.Contains(rules.Bytes(), []byte("masquerade")) {
			return nil
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("no rules that masquerade after 10 s; it said: %s", strings.ReplaceAll(proxy.stderr.String(), "\n", "; "))
		}
		if err != nil {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// inTurn returns the contenders in the order of a repetition: each is first once, and of the two firewalls either is
// before the other in every other one.
func inTurn(contenders []contender, repetition int) []contender {
	var out []contender
	for i := range contenders {
		out = append(out, contenders[(i+repetition)%len(contenders)])
	}
	hand := slices.IndexFunc(out, func(c contender) bool { return c.Name == report.Masquerade })
	subject := slices.IndexFunc(out, func(c contender) bool { return c.Router && c.Subject })
	if hand >= 0 && subject >= 0 && (hand < subject) != (repetition%2 == 0) {
		out[hand], out[subject] = out[subject], out[hand]
	}
	return out
}
