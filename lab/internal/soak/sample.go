package soak

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Sample is gatehouse at one moment.
type Sample struct {
	Seconds     float64 `csv:"seconds"` // since the first sample
	Phase       string  `csv:"phase"`   // before, load, after
	RSS         float64 `csv:"rss_kib"`
	Heap        float64 `csv:"heap_kib"` // what Go has in use of it
	Descriptors float64 `csv:"descriptors"`
	Sockets     float64 `csv:"sockets"` // of the descriptors, like the next one
	Pipes       float64 `csv:"pipes"`   // ends of pipes
	Threads     float64 `csv:"threads"`
	Goroutines  float64 `csv:"goroutines"`
	Connections float64 `csv:"connections"` // there now
	Sessions    float64 `csv:"udp_sessions"`
	Made        float64 `csv:"connections_total"` // by all clients, sessions included
	CPU         float64 `csv:"cpu_seconds"`       // used by gatehouse so far
	CPUAll      float64 `csv:"cpu_seconds_all"`   // the load included
}

// phases of a run.
const (
	before = "before"
	during = "load"
	after  = "after"
)

func header() []string {
	var names []string
	for f := range reflect.TypeFor[Sample]().Fields() {
		names = append(names, f.Tag.Get("csv"))
	}
	return names
}

func (s Sample) row() []string {
	var out []string
	v := reflect.ValueOf(s)
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Float64:
			out = append(out, strconv.FormatFloat(f.Float(), 'f', -1, 64))
		default:
			out = append(out, f.String())
		}
	}
	return out
}

// ReadCSV reads what a run has written.
func ReadCSV(r io.Reader) ([]Sample, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 || strings.Join(rows[0], ",") != strings.Join(header(), ",") {
		return nil, errors.New("not the samples of a soak")
	}
	var out []Sample
	for i, row := range rows[1:] {
		var s Sample
		v := reflect.ValueOf(&s).Elem()
		for j, text := range row {
			f := v.Field(j)
			if f.Kind() != reflect.Float64 {
				f.SetString(text)
				continue
			}
			x, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+2, err)
			}
			f.SetFloat(x)
		}
		out = append(out, s)
	}
	return out, nil
}

// process fills in what /proc tells of a process.
func (s *Sample) process(pid int) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	rollup, err := os.ReadFile(dir + "smaps_rollup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(rollup)) {
		if _, err := fmt.Sscanf(line, "Rss: %f kB", &s.RSS); err == nil {
			break
		}
	}
	open, err := os.ReadDir(dir + "fd")
	if err != nil {
		return err
	}
	for _, f := range open {
		name, err := os.Readlink(filepath.Join(dir, "fd", f.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		s.Descriptors++
		switch {
		case strings.HasPrefix(name, "socket:"):
			s.Sockets++
		case strings.HasPrefix(name, "pipe:"):
			s.Pipes++
		}
	}
	threads, err := os.ReadDir(dir + "task")
	s.Threads = float64(len(threads))
	return err
}

// metrics fills in what gatehouse tells of itself.
func (s *Sample) metrics(text string) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if at := strings.LastIndexByte(line, '}'); at > 0 { // a label may have a space
			name, value = line[:at+1], strings.TrimSpace(line[at+1:])
		}
		x, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch {
		case name == "go_goroutines":
			s.Goroutines = x
		case name == "go_memstats_heap_inuse_bytes":
			s.Heap = x / 1024
		case !strings.HasPrefix(name, "gatehouse_frontend_connections_active{"):
		case strings.Contains(name, `protocol="UDP"`):
			s.Sessions += x
		default:
			s.Connections += x
		}
	}
}

// balance returns, of frontends that are there, how many connections were accepted, and how many of these are there,
// have ended, or got no backend: the same number, if nothing was lost count of.
func balance(metrics string) (accepted, accounted float64) {
	for line := range strings.Lines(metrics) {
		name, labels, found := strings.Cut(line, "{")
		if !found {
			continue
		}
		x, err := strconv.ParseFloat(strings.TrimSpace(labels[strings.LastIndexByte(labels, '}')+1:]), 64)
		if err != nil {
			continue
		}
		switch name {
		case "gatehouse_frontend_connections_total":
			accepted += x
		case "gatehouse_frontend_connections_active", "gatehouse_frontend_connections_ended_total", "gatehouse_frontend_failures_total":
			accounted += x
		}
	}
	return accepted, accounted
}

// cpuTime is what a process has used so far.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100, everywhere
}

// mode is the most frequent value, and of several such ones the least.
func mode(values []float64) (most float64) {
	times := map[float64]int{}
	for _, v := range values {
		times[v]++
	}
	for v, n := range times {
		if n > times[most] || n == times[most] && v < most {
			most = v
		}
	}
	return most
}

// fit is the straight line nearest to the points: y = at + slope·x.
func fit(x, y []float64) (at, slope float64) {
	var mx, my float64
	for i := range x {
		mx += x[i] / float64(len(x))
		my += y[i] / float64(len(y))
	}
	var xy, xx float64
	for i := range x {
		xy += (x[i] - mx) * (y[i] - my)
		xx += (x[i] - mx) * (x[i] - mx)
	}
	if xx > 0 {
		slope = xy / xx
	}
	return my - slope*mx, slope
}
