package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/lab/internal/bench/load"
	"e13.dev/gatehouse/lab/internal/bench/report"
)

// TestMain is also the programs that the benchmark starts: they are its own binary, which is the test's here.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"client", "backend", "iocopy"}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestLabEveryContenderIsMeasuredWithoutErrors(t *testing.T) {
	if os.Getenv("GATEHOUSE_LAB") != "required" {
		t.Skip("needs root and the built programs; GATEHOUSE_LAB=required runs it")
	}
	bin := os.Getenv("LAB_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../../bin")
	}
	defer func(large []int) { sizes = large }(sizes)
	sizes = []int{100}
	s, err := parse([]string{"--quick", "--only", "pingpong,download,conn,idle,hello,tls,udp-64,nat", "--gatehouse", filepath.Join(bin, "gatehouse")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	r, err := s.measure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + r.Markdown())
	kernel := map[string]bool{report.Routed: true}
	for _, c := range r.Contenders {
		kernel[c.Name] = kernel[c.Name] || c.Kernel
	}
	measured, without := map[string]int{}, map[string]bool{}
	columns, err := s.columns()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range columns {
		if c.Name != report.Apply {
			without[c.Name] = true
		}
	}
	for _, sample := range r.Samples {
		if sample.Errors > 0 {
			t.Errorf("%s, %s: %d errors: %s", sample.Column, sample.Contender, sample.Errors, sample.Complaint)
		}
		key := report.Rate
		if sample.Column == "tcp-idle" {
			key = report.FDs // memory need not grow: it may have been there already
		}
		if sample.Column == report.Apply {
			key = report.ChangeCPU
		}
		if sample.Values[key] <= 0 {
			t.Errorf("%s, %s: %s is %g", sample.Column, sample.Contender, key, sample.Values[key])
		}
		if cpu, ok := sample.Values[report.CPU]; key == report.Rate && !kernel[sample.Contender] && (!ok || cpu <= 0) {
			t.Errorf("%s, %s: the proxy used no CPU", sample.Column, sample.Contender)
		}
		measured[sample.Column]++
		if sample.Contender == "gatehouse" {
			delete(without, sample.Column)
		}
	}
	if len(without) > 0 {
		t.Errorf("gatehouse was left out of %v", slices.Collect(maps.Keys(without)))
	}
	// HAProxy and nginx may not be installed, and HAProxy has no UDP.
	for column, least := range map[string]int{
		"tcp-pingpong-1": 4, "tcp-pingpong-64": 7, "tcp-download": 6, "tcp-conn": 7, "tcp-idle": 2, "hello-conn": 3, "hello-paced": 3, "udp-64": 7, report.Apply: 2,
	} {
		if measured[column] < least {
			t.Errorf("%s: %d contenders, not %d", column, measured[column], least)
		}
	}
}

// A balancer that does not look at names sends two of three connections to the wrong backend: what is measured then is
// not what it is taken for.
func TestLabAWrongRouteIsNoMeasurement(t *testing.T) {
	if os.Getenv("GATEHOUSE_LAB") != "required" {
		t.Skip("needs root; GATEHOUSE_LAB=required runs it")
	}
	s, err := parse([]string{"--quick", "--only", "tls"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ioCopy()
	if err != nil {
		t.Fatal(err)
	}
	columns, err := s.columns()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, col := range columns {
		if _, err := s.run(ctx, c, col); err == nil || !strings.Contains(err.Error(), "has answered for") {
			t.Errorf("%s: %v", col.Name, err)
		}
	}
}

func TestOrderTakesTurnsAndKeepsWhatIsComparedTogether(t *testing.T) {
	column := func(name string) report.Column {
		return report.Columns[slices.IndexFunc(report.Columns, func(c report.Column) bool { return c.Name == name })]
	}
	program := func(string, int) ([]string, error) { return nil, nil }
	contenders := []contender{
		{Contender: report.Contender{Name: "a"}, argv: program, names: true},
		{Contender: report.Contender{Name: "b"}, argv: program, names: true},
		{Contender: report.Contender{Name: "nameless"}, argv: program},
	}
	s := settings{repeat: 2}
	var got []string
	for _, turn := range s.order([]report.Column{column("tcp-conn"), column("hello-conn"), column("tls-conn"), column("tls-split")}, contenders) {
		got = append(got, fmt.Sprintf("%s %s %d", turn.column.Name, turn.contender.Name, turn.repetition))
	}
	want := []string{
		"tcp-conn a 0", "tcp-conn b 0", "tcp-conn nameless 0",
		"tcp-conn b 1", "tcp-conn nameless 1", "tcp-conn a 1",
		"hello-conn a 0", "tls-conn a 0", "hello-conn b 0", "tls-conn b 0", "hello-conn nameless 0",
		"tls-conn b 1", "hello-conn b 1", "hello-conn nameless 1", "tls-conn a 1", "hello-conn a 1",
		"tls-split a 0", "tls-split b 0",
		"tls-split b 1", "tls-split a 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestManyFrontendsAreMeasuredLessOften(t *testing.T) {
	s := settings{repeat: 5}
	counts := map[string]int{}
	contenders := []contender{
		{Contender: report.Contender{Name: "one", Frontends: 1}, columns: natColumns},
		{Contender: report.Contender{Name: "many", Frontends: 1000}, columns: sizeColumns},
		{Contender: report.Contender{Name: report.ByHand}, columns: referenceColumns},
	}
	for _, turn := range s.order(report.Columns, contenders) {
		counts[turn.contender.Name+" "+turn.column.Name]++
	}
	want := map[string]int{
		"one tcp-pingpong-1": 5, "one tcp-pingpong-64": 5, "one tcp-download": 5, "one tcp-upload": 5, "one tcp-conn": 5, "one udp-64": 5, "one udp-1200": 5, "one nat-apply": 2,
		"many tcp-pingpong-64": 3, "many tcp-conn": 3, "many udp-64": 3, "many nat-apply": 2,
		"dnat tcp-pingpong-64": 5, "dnat tcp-download": 5, "dnat tcp-conn": 5, "dnat udp-64": 5,
	}
	if !maps.Equal(counts, want) {
		t.Errorf("%v, want %v", counts, want)
	}
}

func TestFlagsNameColumnsAndContenders(t *testing.T) {
	s, err := parse([]string{"--only", "pingpong,tcp-conn"})
	if err != nil {
		t.Fatal(err)
	}
	columns, err := s.columns()
	var names []string
	for _, c := range columns {
		names = append(names, c.Name)
	}
	if want := []string{"tcp-pingpong-1", "tcp-pingpong-64", "tcp-conn"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v; want %v", names, err, want)
	}
	if s, err := parse([]string{"--contenders", "dnat,gatehouse-nat-7"}); err == nil {
		if _, err = s.who(); err == nil {
			t.Error("gatehouse-nat-7 is a contender")
		}
	}
	for _, bad := range []settings{{only: "quic"}, {contenders: "envoy"}} {
		if _, err := bad.columns(); bad.only != "" && err == nil {
			t.Errorf("%q is a column", bad.only)
		}
		if _, err := bad.who(); bad.contenders != "" && err == nil {
			t.Errorf("%q is a contender", bad.contenders)
		}
	}
	for name := range loads {
		if !slices.Contains(columnNames(), name) {
			t.Errorf("%s is no column", name)
		}
	}
	if len(loads) != len(report.Columns) {
		t.Errorf("%d columns have a load, not %d", len(loads), len(report.Columns))
	}
}

// Of a chain that a rule ended, the rules after it were not looked at; of one that none ended, all were.
func TestRulesThatAPacketIsComparedWithAreCounted(t *testing.T) {
	chains := rulesByChain(`table ip other {
	set s {
		type ipv4_addr
		elements = { 10.0.0.1 }
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established accept
		ip daddr 10.0.0.1 drop
	}
}
table inet gatehouse {
	chain random4-4 {
		dnat ip to iifname . th dport . numgen random mod 4 map @backends4
	}
	chain dstnat {
		type nat hook prerouting priority dstnat - 10; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return
		fib daddr type local iifname . meta l4proto . th dport vmap @doors4
		counter
	}
}
`)
	const trace = `trace id aa ip bench-trace trace rule tcp dport 801 meta nftrace set 1 (verdict continue)
trace id aa inet gatehouse dstnat packet: iif "lan" ip saddr 10.1.0.2
trace id aa inet gatehouse dstnat rule fib daddr type local iifname . meta l4proto . th dport vmap @doors4 (verdict goto random4-4)
trace id aa inet gatehouse random4-4 rule dnat ip to iifname . th dport . numgen random mod 4 map @backends4 (verdict accept)
trace id aa ip other forward packet: iif "lan" oif "cluster"
trace id aa ip other forward verdict continue
trace id aa ip other forward policy accept
trace id bb ip other forward packet: iif "lan" oif "cluster"
trace id bb ip other forward rule ct state established accept (verdict accept)
`
	if got, want := compared(trace, chains), []int{2 + 1 + 2, 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestEveryFrontendHasADoorOfItsOwn(t *testing.T) {
	for _, n := range []int{1, 2, 3, 1000, 10000} {
		text := natConfig(load.EchoPort, backends(load.EchoPort))
		for _, more := range moreFrontends(n - 1) {
			if len(more) > 1<<20 {
				t.Errorf("a file of %d bytes: gatehouse takes 1 MiB", len(more))
			}
			text += more
		}
		seen := map[string]bool{}
		for part := range strings.SplitSeq(text, "  - zones: ") {
			_, rest, ok := strings.Cut(part, "port: ")
			if !ok {
				continue
			}
			port, _, _ := strings.Cut(rest, "\n")
			seen[fmt.Sprintf("%s %t", port, strings.Contains(part, "protocol: UDP"))] = true
		}
		if len(seen) != n {
			t.Errorf("%d frontends have %d doors", n, len(seen))
		}
		for _, port := range doors(load.EchoPort, n) {
			if !seen[fmt.Sprintf("%d false", port)] {
				t.Errorf("of %d frontends, none is at TCP port %d", n, port)
			}
		}
	}
}

// Each of the two firewalls is before the other in every other repetition.
func TestFirewallsTakeTurns(t *testing.T) {
	for _, all := range [][]string{{report.Masquerade, "gatehouse-firewall"}, {report.Routed, report.Masquerade, "gatehouse-firewall"}, {report.Routed, report.Masquerade, "gatehouse-firewall", report.Nginx}} {
		var contenders []contender
		for _, name := range all {
			contenders = append(contenders, contender{Contender: report.Contender{Name: name, Router: name == report.Masquerade || name == "gatehouse-firewall", Subject: name == "gatehouse-firewall"}})
		}
		first := map[string]int{}
		for rep := range 2 * len(all) {
			var names []string
			for _, c := range inTurn(contenders, rep) {
				names = append(names, c.Name)
			}
			i, j := slices.Index(names, report.Masquerade), slices.Index(names, "gatehouse-firewall")
			first[names[min(i, j)]]++
			if sorted := slices.Sorted(slices.Values(names)); !slices.Equal(sorted, slices.Sorted(slices.Values(all))) {
				t.Fatalf("repetition %d has %v", rep, names)
			}
		}
		if first[report.Masquerade] != len(all) {
			t.Errorf("of %v, in %d repetitions, these are first: %v", all, 2*len(all), first)
		}
	}
}
