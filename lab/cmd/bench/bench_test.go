package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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
	s, err := parse([]string{"--quick", "--only", "pingpong,download,conn,idle,udp-64", "--gatehouse", filepath.Join(bin, "gatehouse")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := s.measure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + r.Markdown())
	measured := map[string]int{}
	for _, sample := range r.Samples {
		if sample.Errors > 0 {
			t.Errorf("%s, %s: %d errors: %s", sample.Column, sample.Contender, sample.Errors, sample.Complaint)
		}
		key := report.Rate
		if sample.Column == "tcp-idle" {
			key = report.FDs // memory need not grow: it may have been there already
		}
		if sample.Values[key] <= 0 {
			t.Errorf("%s, %s: %s is %g", sample.Column, sample.Contender, key, sample.Values[key])
		}
		if cpu, ok := sample.Values[report.CPU]; key == report.Rate && sample.Contender != report.Routed && (!ok || cpu <= 0) {
			t.Errorf("%s, %s: the proxy used no CPU", sample.Column, sample.Contender)
		}
		measured[sample.Column]++
	}
	// HAProxy and nginx may not be installed, and HAProxy has no UDP.
	for column, least := range map[string]int{"tcp-pingpong-1": 3, "tcp-pingpong-64": 3, "tcp-download": 3, "tcp-conn": 3, "tcp-idle": 2, "udp-64": 2} {
		if measured[column] < least {
			t.Errorf("%s: %d contenders, not %d", column, measured[column], least)
		}
	}
}

func TestFlagsNameColumnsAndContenders(t *testing.T) {
	s, err := parse([]string{"--only", "pingpong,conn"})
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
