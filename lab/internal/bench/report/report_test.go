package report

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s", path, got)
	}
}

func sample(column, contender string, rep int, values map[string]float64) Sample {
	return Sample{Column: column, Contender: contender, Repetition: rep, Values: values}
}

// The machine became twice as fast in the second repetition; the ratios must not notice.
func example() *Result {
	r := &Result{
		Date: "2026-11-22", Kernel: "6.18.0", Cores: 2, Processor: "A processor", Congestion: "reno", Window: "2.5s", Repeat: 2,
		Contenders: []Contender{
			{Name: Routed, Label: "routed"},
			{Name: HAProxy, Label: "HAProxy", Version: "2.6"},
			{Name: Nginx, Label: "nginx", Version: "1.22"},
			{Name: "gatehouse", Label: "gatehouse", Version: "v1", Subject: true},
		},
	}
	for rep, speed := range []float64{1, 2} {
		add := func(contender string, rate, cpu, backend float64) {
			v := map[string]float64{Rate: rate * speed, P50: 500 / speed, P99: 1200 / speed, Client: 3, Backend: backend, IdleShare: 5, Rest: 0.5, RestShare: 1 + float64(rep)}
			if cpu > 0 {
				v[CPU] = cpu
			}
			r.Samples = append(r.Samples, sample("tcp-pingpong-64", contender, rep, v))
		}
		add(Routed, 200, 0, 3.1)
		add(HAProxy, 100, 8, 3.2)
		add(Nginx, 110+float64(rep), 7, 3.3)
		add("gatehouse", 132, 6.5, 3.4)
		for contender, v := range map[string]map[string]float64{
			HAProxy: {Memory: 3, FDs: 2}, Nginx: {Memory: 9.6, FDs: 2}, "gatehouse": {Memory: 0.27, FDs: 2.004},
		} {
			r.Samples = append(r.Samples, sample("tcp-idle", contender, rep, v))
		}
		for contender, added := range map[string]float64{Nginx: 3, "gatehouse": -0.5} {
			without := map[string]float64{P50: 130 / speed, P99: 210 / speed, CPU: 60}
			with := map[string]float64{P50: 130/speed + added, P99: 210/speed + 1500*float64(rep), CPU: 60}
			r.Samples = append(r.Samples, sample("hello-paced", contender, rep, without), sample("tls-paced", contender, rep, with))
		}
		r.Samples = append(r.Samples, sample("hello-paced", HAProxy, rep, map[string]float64{P50: 140, P99: 1000, CPU: 70}))
		r.Samples = append(r.Samples, sample("udp-64", Nginx, rep, map[string]float64{Rate: 160, CPU: 6}))
	}
	r.Samples = append(r.Samples, Sample{Column: "tls-paced", Contender: HAProxy, Errors: 1, Complaint: "another backend"})
	r.Samples = append(r.Samples, Sample{Column: "udp-64", Contender: "gatehouse", Errors: 1, Complaint: "no answer"})
	return r
}

func TestReportReadsWell(t *testing.T) {
	t.Parallel()
	golden(t, "report.md", example().Markdown())
}

func TestRatiosAreWithinARepetitionAndToTheBetterPeer(t *testing.T) {
	t.Parallel()
	r := example()
	rate, ok := r.Ratio("tcp-pingpong-64", "gatehouse", Metric{Key: Rate}, peers...)
	if want := (Spread{Median: (132./110 + 132./111) / 2, Min: 132. / 111, Max: 132. / 110}); !ok || rate != want {
		t.Errorf("rate: %v, not %v", rate, want)
	}
	cpu, ok := r.Ratio("tcp-pingpong-64", "gatehouse", Metric{Key: CPU, Less: true}, peers...)
	if want := (Spread{Median: 6.5 / 7, Min: 6.5 / 7, Max: 6.5 / 7}); !ok || cpu != want {
		t.Errorf("CPU: %v, not %v", cpu, want)
	}
	if _, ok := r.Ratio("udp-64", "gatehouse", Metric{Key: Rate}, peers...); ok {
		t.Error("there is a ratio for a run that gave nothing")
	}
}

func TestWhatIsAddedIsWithinARepetition(t *testing.T) {
	t.Parallel()
	r := example()
	a := Additions[slices.IndexFunc(Additions, func(a Addition) bool { return a.With == "tls-paced" })]
	more, ok := r.Added(a, "gatehouse", P50)
	if want := (Spread{Median: -0.5, Min: -0.5, Max: -0.5}); !ok || more != want {
		t.Errorf("%v, %t; want %v, though the machine became twice as fast", more, ok, want)
	}
	if _, ok := r.Added(a, HAProxy, P50); ok {
		t.Error("there is a difference to a run that gave nothing")
	}
	for _, a := range Additions {
		for _, name := range []string{a.With, a.Without} {
			if !slices.ContainsFunc(Columns, func(c Column) bool { return c.Name == name }) {
				t.Errorf("%s is no column", name)
			}
		}
	}
}

// More frontends are compared with the same program that has one, in the same repetition.
func TestWhatTheKernelMovesHasTablesOfItsOwn(t *testing.T) {
	t.Parallel()
	r := &Result{Contenders: []Contender{
		{Name: Routed, Label: "routed"},
		{Name: ByHand, Label: "DNAT, by hand", Kernel: true},
		{Name: "gatehouse-nat", Label: "gatehouse nat", Subject: true, Kernel: true, Frontends: 1},
		{Name: "gatehouse-nat-1000", Label: "gatehouse nat, 1,000", Subject: true, Kernel: true, Frontends: 1000},
		{Name: HAProxy, Label: "HAProxy"},
		{Name: "gatehouse", Label: "gatehouse", Subject: true},
	}}
	for rep, speed := range []float64{1, 2, 3} {
		for contender, rate := range map[string]float64{Routed: 40, ByHand: 32, "gatehouse-nat": 31, "gatehouse-nat-1000": 30, HAProxy: 24, "gatehouse": 26} {
			v := map[string]float64{Rate: rate * speed, P50: 900, P99: 1200, Client: 20, Backend: 15, Rest: 2, Busy: 2000 / rate, IdleShare: 5}
			if contender == HAProxy || contender == "gatehouse" {
				v[CPU] = 40
			}
			r.Samples = append(r.Samples, sample("tcp-conn", contender, rep, v))
		}
		for contender, n := range map[string]float64{"gatehouse-nat": 1, "gatehouse-nat-1000": 30} {
			r.Samples = append(r.Samples, sample(Apply, contender, rep, map[string]float64{Open: 0.1 * n, OpenCPU: 0.05 * n, Change: 220, ChangeCPU: 20 * n, RereadCPU: 15 * n, FirstRules: 7, LaterRules: 3}))
		}
	}
	golden(t, "kernel.md", r.Markdown())
}

func TestTwoBuildsAreComparedWithEachOther(t *testing.T) {
	t.Parallel()
	r := &Result{Contenders: []Contender{{Name: "new", Label: "new", Subject: true}, {Name: "old", Label: "old", Subject: true}}}
	for rep := range 2 {
		r.Samples = append(r.Samples, sample("tcp-conn", "new", rep, map[string]float64{Rate: 15, CPU: 40}), sample("tcp-conn", "old", rep, map[string]float64{Rate: 12, CPU: 50}))
	}
	golden(t, "builds.md", r.Main())
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, Spread{2, 1, 9}},
		{[]float64{4, 1, 9, 2}, Spread{3, 1, 9}},
	} {
		if got, ok := SpreadOf(c.values); !ok || got != c.want {
			t.Errorf("%v: %v, not %v", c.values, got, c.want)
		}
	}
	if _, ok := SpreadOf(nil); ok {
		t.Error("nothing has a median")
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{
		0: "0", 0.271: "0.27", 1: "1", 2.004: "2", 9.999: "10.0", 12.34: "12.3", 99.97: "100", 1234.5: "1,234", 1234567: "1,234,567", -0.5: "-0.5", -1234: "-1,234",
	} {
		if got := number(v); got != want {
			t.Errorf("%g is shown as %q, not %q", v, got, want)
		}
	}
}

func TestBetweenReplacesOnlyWhatIsBetween(t *testing.T) {
	t.Parallel()
	const begin, end = "<!-- bench: begin -->", "<!-- bench: end -->"
	const others = "<!-- builds: begin -->\nothers\n<!-- builds: end -->\n"
	got, err := Between(others+begin+"\nold\n"+end+"\nafter\n", "bench", "new\n\n")
	if want := others + begin + "\nnew\n" + end + "\nafter\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	again, err := Between(got, "bench", "new")
	if err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", begin, end + "\n" + begin, others} {
		if _, err := Between(bad, "bench", "new"); err == nil || !strings.Contains(err.Error(), begin) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A firewall is compared with the one by hand, and is in no other table; its rate has a target of its own.
func TestRouters(t *testing.T) {
	r := example()
	r.Contenders = append(r.Contenders,
		Contender{Name: Masquerade, Label: "firewall, by hand", Kernel: true, Router: true},
		Contender{Name: "gatehouse-firewall", Label: "gatehouse firewall", Subject: true, Kernel: true, Router: true},
		Contender{Name: "slow-firewall", Label: "slow firewall", Subject: true, Kernel: true, Router: true})
	main, processors := r.Main(), r.Processors()
	for rep, speed := range []float64{1, 2} {
		for contender, rate := range map[string]float64{Masquerade: 100, "gatehouse-firewall": 97, "slow-firewall": 96.9} {
			r.Samples = append(r.Samples, sample("tcp-conn", contender, rep, map[string]float64{Rate: rate * speed, P50: 500, P99: 900, Busy: 4, Client: 1}))
		}
	}
	golden(t, "router.md", r.Routers())
	if r.Main() != main || r.Processors() != processors || r.Forwarded() != "" {
		t.Error("a firewall is in a table of balancers")
	}
	if example().Routers() != "" {
		t.Error("a table of firewalls without any")
	}
}
