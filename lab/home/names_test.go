package home

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/site"
)

// A name is what can be reached from where it is asked for.
func TestNames(t *testing.T) {
	for _, tt := range []struct{ host, question, want string }{
		// What is open at home is known at home, and what is public where it can be reached.
		{"home1", "nginx.ingress-home.cluster.home.example", "10.11.12.32"},
		{"home1", "nginx.ingress-home.cluster.home.example AAAA", "fd00:11:12::32"},
		{"home1", "git.home.example", "10.11.12.32"},
		{"home1", "tv.home.example", "10.11.12.32"},
		{"home1", "www.home.example", "NXDOMAIN"},
		{"w1", "www.home.example", "10.0.0.1"},
		{"w1", "git.home.example", "NXDOMAIN"},

		// Machines.
		{"w1", "nas.home.example", "10.0.0.20"},
		{"w1", "w3.home.example", "10.0.0.103"},
		{"w1", "-x 10.0.0.20", "nas.home.example."},
		{"w1", "cp.home.example", "10.0.0.10"},
		{"home1", "cp.home.example", "10.0.0.10"},
		{"home1", "nas.home.example", "NXDOMAIN"},
		{"home1", "w1.home.example", "NXDOMAIN"},

		// What is written down, what the home router knows, and the rest of the world.
		{"home1", "router.home.example", "10.11.12.1"},
		{"home1", "router.lan", "10.11.12.1"},
		{"home1", "www.example.net", "203.0.113.10"},
		{"w1", "www.example.net", "203.0.113.10"},
		{"w1", "blog.home.example", "www.example.net. 203.0.113.10"},
		{"home1", "no-such-thing.home.example", "NXDOMAIN"},

		// Somebody in the Internet says that his name is the storage box.
		{"home1", "rebind.example.net", ""},
	} {
		server := map[string]string{"home1": "10.11.12.32", "w1": "10.0.0.1"}[tt.host]
		eventually(t, 10*time.Second, tt.host+": "+tt.question, func() error {
			out := shell(t, tt.host, "dig +tries=1 +time=2 +noall +comments +answer @"+server+" "+tt.question)
			if got := answersOf(out); got != tt.want {
				return fmt.Errorf("%q, want %q:\n%s", got, tt.want, out)
			}
			return nil
		})
	}
	// As programs ask, with the search list that they were given.
	if out := shell(t, "w1", "getent hosts nas"); !strings.HasPrefix(out, "10.0.0.20 ") {
		t.Errorf("getent hosts nas: %s", out)
	}
	if out := shell(t, "home1", "getent ahostsv4 tv"); !strings.HasPrefix(out, "10.11.12.32 ") {
		t.Errorf("getent ahostsv4 tv: %s", out)
	}
}

// A browser at home goes to a name, and is there.
func TestABrowserGoesToAName(t *testing.T) {
	serveClients(t)
	page := shell(t, "home1", "chromium --headless --no-sandbox --disable-gpu --user-data-dir=$(mktemp -d) --dump-dom http://git.home.example/ 2>/dev/null")
	if !strings.Contains(page, `"pod":`) || !strings.Contains(page, "11.12.101:") && !strings.Contains(page, "11:12::101]:") {
		t.Errorf("it shows %s", page)
	}
	page = shell(t, "home1", "chromium --headless --no-sandbox --disable-gpu --user-data-dir=$(mktemp -d) --dump-dom http://www.home.example/ 2>/dev/null")
	if strings.Contains(page, `"pod":`) {
		t.Errorf("what is not open at home is shown: %s", page)
	}
}

// answersOf is what dig says that a name stands for, or why it stands for nothing.
func answersOf(out string) string {
	var data []string
	for line := range strings.Lines(out) {
		if _, status, ok := strings.Cut(line, "status: "); ok {
			if status, _, _ = strings.Cut(status, ","); status == "NXDOMAIN" {
				return status
			}
		}
		if fields := strings.Fields(line); len(fields) >= 5 && fields[0] != ";;" && fields[2] == "IN" {
			data = append(data, fields[4])
		}
	}
	return strings.Join(data, " ")
}

// The Internet asks in vain, also for names that are nobody's secret.
func TestTheInternetAsksInVain(t *testing.T) {
	for _, server := range []string{"203.0.113.1", "10.11.12.51", "10.11.12.32"} {
		for _, how := range []string{"+notcp", "+tcp"} {
			if out, err := lab.Exec(t.Context(), "inet", "dig", "+tries=1", "+time=1", how, "@"+server, "www.home.example"); err == nil {
				t.Errorf("dig %s @%s is answered:\n%s", how, server, out)
			}
		}
	}
}

// Each metric that the documents have of the router is there, and no other.
func TestTheRoutersMetrics(t *testing.T) {
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(docs), "\n### The router\n")
	section, _, _ := strings.Cut(rest, "\n### ")
	names := func(text, pattern string) []string {
		var all []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return all
	}
	want := names(section, "(?m)^\\| `(gatehouse_\\w+)` \\|")
	if len(want) < 15 {
		t.Fatalf("docs/metrics.md has %q of the router: the test does not read it right", want)
	}
	// What was asked and what was dropped is counted once there is something to count.
	shell(t, "home1", "dig +tries=1 +time=2 @10.11.12.32 www.example.net")
	if open, err := passes("inet", site.APIServer); open || err != nil {
		t.Errorf("the Internet reaches the API server: %v %v", open, err)
	}
	eventually(t, 10*time.Second, "a scrape has them all", func() error {
		text := shell(t, "edge", "curl -sS http://127.0.0.1:9180/metrics")
		got := names(text, `(?m)^# TYPE (gatehouse_(?:link|firewall|dhcp|dhcpv6|router|dns)_\w+) `)
		if !slices.Equal(got, want) {
			return fmt.Errorf("it has\n%q, want\n%q", got, want)
		}
		return nil
	})
}
