package home

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// prove runs gatehouse prove on the box against expectations, and returns the lines that are broken, with why.
func prove(t *testing.T, expect string) map[int]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "expect.txt")
	if err := os.WriteFile(file, []byte(expect), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := lab.Exec(t.Context(), "edge", "sh", "-c", fmt.Sprintf("%s prove -c %s --expect %s 2>&1", gatehouse, lab.EdgeConfig(), file))
	broken := map[int]string{}
	for _, m := range regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(file)+`:(\d+): (.*)$`).FindAllStringSubmatch(out, -1) {
		line, _ := strconv.Atoi(m[1])
		broken[line] = m[2]
	}
	var exit *exec.ExitError
	if err == nil && len(broken) > 0 || err != nil && (len(broken) == 0 || !errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("it ends with %v, and %d broken lines:\n%s", err, len(broken), out)
	}
	return broken
}

// What the example promises is so, and what it does not promise is noticed.
func TestTheExampleIsProved(t *testing.T) {
	text, err := os.ReadFile(example + "expect.txt")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "all that is expected holds", func() error {
		if broken := prove(t, string(text)); len(broken) > 0 {
			return fmt.Errorf("%v", broken)
		}
		return nil
	})
	broken := prove(t, "home can reach 10.0.0.20:2049\ninternet cannot reach ingress-public/nginx:80\nhome can reach 10.0.0.10:6443\n")
	if len(broken) != 2 || broken[1] == "" || broken[2] == "" {
		t.Errorf("of three expectations, of which two are wrong, these are broken: %v", broken)
	}
}

// What is proved is what happens: for zones, machines and ports, each with a real connection.
func TestProofAndNetworkAgree(t *testing.T) {
	type question struct{ zone, host, target, address string }
	var all []question
	self := map[string]string{"home": "10.11.12.32", "internet": "10.11.12.51", "cluster": "10.0.0.1"}
	hosts := map[string]string{"home": "home1", "internet": "inet", "cluster": "w1"}
	for zone, host := range hosts {
		for _, port := range []string{"22", "53", "443", "2049", "6443", "9180"} {
			all = append(all, question{zone, host, "self:" + port, self[zone] + ":" + port})
		}
		for _, service := range []string{"ingress-public/nginx:80", "ingress-home/nginx:80"} {
			open := map[string]string{"home": "ingress-home/nginx:80", "internet": "ingress-public/nginx:80", "cluster": "ingress-public/nginx:80"}
			if open[zone] == service {
				all = append(all, question{zone, host, service, self[zone] + ":80"})
			}
		}
		machines := []string{"10.0.0.10", "10.0.0.20", "10.0.0.101"}
		if zone == "cluster" { // its own machines it reaches without this one
			machines = []string{"10.11.12.101", "203.0.113.10"}
		}
		for _, machine := range machines {
			for _, port := range []string{"22", "53", "80", "2049", "6443", "10250"} {
				all = append(all, question{zone, host, machine + ":" + port, machine + ":" + port})
			}
		}
	}
	expect := ""
	for _, q := range all {
		expect += fmt.Sprintf("%s can reach %s\n", q.zone, q.target)
	}
	broken := prove(t, expect)
	var waits sync.WaitGroup
	for i, q := range all {
		waits.Go(func() {
			got, err := passes(q.host, q.address)
			if _, no := broken[i+1]; err != nil || got == no {
				t.Errorf("%s to %s: it gets through: %v (%v); proved: %v %s", q.zone, q.target, got, err, !no, broken[i+1])
			}
		})
	}
	waits.Wait()
	yes := len(all) - len(broken)
	t.Logf("%d connections, of which %d get through", len(all), yes)
	if yes < 8 || yes > len(all)/2+8 {
		t.Errorf("%s", strings.TrimSpace(fmt.Sprintf("%d of %d get through: this test sees too little of one kind", yes, len(all))))
	}
}
