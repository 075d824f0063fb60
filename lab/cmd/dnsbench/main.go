// Command dnsbench compares gatehouse's DNS server with dnsmasq and CoreDNS: how many questions a second each answers, from
// names of the site and from its cache, what a question costs it, and how long the slowest of a hundred waits while it is
// asked at a fixed rate. It needs root, for two network namespaces with a cable between them, and dnsperf.
//
// For each repetition all contenders run one after the other, in another order each time, with everything fresh. The table
// has the medians of what they did, and of the ratios that were made within a repetition.
//
//	dnsbench                                     # all: ten minutes
//	dnsbench --repeat 1 --duration 1s
//	dnsbench --write docs/benchmarks.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"e13.dev/gatehouse/lab/internal/bench/report"
)

const (
	serverAddr = "10.9.0.1"
	stubPort   = 5300
	names      = 1000 // of each kind
	// rate is how many questions a second are asked where it is about how long they take.
	rate = 10000
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "stub":
		err = stub()
	case len(os.Args) == 4 && os.Args[1] == "pace":
		err = pace(os.Args[2], os.Args[3])
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = bench(ctx, os.Args[1:])
		stop()
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "dnsbench:", err)
		os.Exit(1)
	}
}

// load is what is asked.
type load struct{ name, what, suffix string }

var loads = []load{
	{"own", "names of the site", "home.example"},
	{"cache", "cache hits", "example.net"},
}

// measured is what one contender did in one run.
type measured struct {
	perSecond float64
	cpu       float64 // µs a question
	p50, p99  float64 // µs, at rate
	lost      float64
}

func bench(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("dnsbench", flag.ContinueOnError)
	repeat := f.Int("repeat", 5, "repetitions")
	duration := f.Duration("duration", 3*time.Second, "how long each run is measured")
	gatehouse := f.String("gatehouse", "bin/gatehouse", "the binary")
	coredns := f.String("coredns", ".tools/coredns", "likewise")
	only := f.String("contenders", "", "who runs, if not all: gatehouse,dnsmasq,CoreDNS; what is measured is then printed, and no table")
	write := f.String("write", "", "also write the table between the markers of this file")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dnsbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	who, err := contenders(dir, *gatehouse, *coredns)
	if err != nil {
		return err
	}
	if *only != "" {
		who = slices.DeleteFunc(who, func(c contender) bool { return !slices.Contains(strings.Split(*only, ","), c.name) })
	}
	s, err := newStage(ctx, dir)
	defer s.close()
	if err != nil {
		return err
	}
	runs := map[string][]measured{} // by load and contender
	for i := range *repeat {
		order := slices.Clone(who)
		for range i % len(order) {
			order = append(order[1:], order[0])
		}
		for _, c := range order {
			fmt.Fprintf(os.Stderr, "==> %d/%d %s\n", i+1, *repeat, c.name)
			if err := s.run(ctx, c, *duration, runs); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	if *only != "" {
		return nil
	}
	text := table(who, runs, *repeat, *duration)
	fmt.Print(text)
	if *write == "" {
		return nil
	}
	doc, err := os.ReadFile(*write)
	if err != nil {
		return err
	}
	changed, err := report.Between(string(doc), "dns", text)
	if err != nil {
		return err
	}
	return os.WriteFile(*write, []byte(changed), 0o644)
}

// stage is two hosts with a cable, and an upstream that knows every name.
type stage struct {
	dir            string
	client, server string // namespaces
	stub           *exec.Cmd
}

func newStage(ctx context.Context, dir string) (*stage, error) {
	pid := strconv.Itoa(os.Getpid())
	s := &stage{dir: dir, client: "dnsbench-c-" + pid, server: "dnsbench-s-" + pid}
	for _, line := range []string{
		"netns add " + s.client, "netns add " + s.server,
		"-n " + s.client + " link add eth0 type veth peer name eth0 netns " + s.server,
		"-n " + s.client + " addr add 10.9.0.2/24 dev eth0", "-n " + s.server + " addr add " + serverAddr + "/24 dev eth0",
		"-n " + s.client + " link set eth0 up", "-n " + s.server + " link set eth0 up", "-n " + s.server + " link set lo up",
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return s, fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	s.stub = s.in(ctx, s.server, self, "stub")
	return s, s.stub.Start()
}

// in is a command in a namespace.
func (s *stage) in(ctx context.Context, ns string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (s *stage) close() {
	if s.stub != nil && s.stub.Process != nil {
		_ = s.stub.Process.Kill()
		_ = s.stub.Wait()
	}
	for _, ns := range []string{s.client, s.server} {
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
}

// run starts a contender, asks it everything once, and measures.
func (s *stage) run(ctx context.Context, c contender, duration time.Duration, runs map[string][]measured) error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.in(ctx, s.server, c.command...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for _, l := range loads {
		if err := s.warm(ctx, l); err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w: %s", err, text)
		}
		m, err := s.measure(ctx, cmd.Process.Pid, l, duration)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "    %s: %.0f/s, %.2f µs of CPU, p50 %.0f, p99 %.0f µs, %.0f lost\n", l.name, m.perSecond, m.cpu, m.p50, m.p99, m.lost)
		runs[l.name+" "+c.name] = append(runs[l.name+" "+c.name], m)
	}
	return nil
}

// warm asks for each name until all are answered.
func (s *stage) warm(ctx context.Context, l load) error {
	var last string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, err := s.in(ctx, s.client, "dnsperf", "-s", serverAddr, "-d", s.questions(l), "-n", "1", "-q", "20", "-t", "1", "-O", "suppress=timeout").CombinedOutput()
		if last = string(out); err == nil && number(last, `Queries completed:\s+(\d+)`) == names && strings.Contains(last, "NOERROR "+strconv.Itoa(names)) {
			return nil
		}
	}
	return fmt.Errorf("does not answer: %s", last[max(0, len(last)-600):])
}

func (s *stage) questions(l load) string {
	path := filepath.Join(s.dir, l.name)
	if _, err := os.Stat(path); err != nil {
		var b strings.Builder
		for i := range names {
			fmt.Fprintf(&b, "n%04d.%s A\n", i, l.suffix)
		}
		_ = os.WriteFile(path, []byte(b.String()), 0o600)
	}
	return path
}

func number(text, pattern string) float64 {
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	return n
}

func (s *stage) measure(ctx context.Context, pid int, l load, duration time.Duration) (measured, error) {
	seconds := strconv.Itoa(max(1, int(duration.Seconds())))
	before := cpuTime(pid)
	out, err := s.in(ctx, s.client, "dnsperf", "-s", serverAddr, "-d", s.questions(l), "-l", seconds, "-c", "16", "-q", "100", "-t", "1").CombinedOutput()
	if err != nil {
		return measured{}, fmt.Errorf("dnsperf: %w: %s", err, out)
	}
	used := cpuTime(pid) - before
	text := string(out)
	m := measured{perSecond: number(text, `Queries per second:\s+([\d.]+)`), lost: number(text, `Queries lost:\s+(\d+)`)}
	m.cpu = float64(used.Microseconds()) / number(text, `Queries completed:\s+(\d+)`)
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	out, err = s.in(ctx, s.client, self, "pace", l.suffix, seconds).CombinedOutput()
	if err != nil {
		return m, fmt.Errorf("pace: %w: %s", err, out)
	}
	_, err = fmt.Sscan(string(out), &m.p50, &m.p99)
	return m, err
}
