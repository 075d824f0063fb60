// Command bench compares gatehouse's relay with its peers: HAProxy, nginx, a plain Go proxy, and the routed path
// without any balancer, which is the limit; and gatehouse with dataPlane: nat with that limit, with what conntrack takes
// of it and with a rule that somebody wrote by hand; and its firewall with one that somebody wrote. It needs root, for network namespaces, and nothing else of the lab.
//
// For each column and each repetition, all contenders run one after the other, each in fresh namespaces and in another
// order each time, so that what drifts on the machine hits all alike. Ratios are made within a repetition.
//
//	bench                                                     # all: half an hour
//	bench --only tcp-conn --contenders gatehouse,nginx --repeat 3 --duration 2s
//	bench --contenders routed,conntrack,dnat,gatehouse-nat    # what the kernel moves
//	bench --contenders routed,masquerade,gatehouse-firewall   # what a firewall with NAT takes
//	bench --only nat-apply,udp-64 --contenders gatehouse-nat,gatehouse-nat-1000,gatehouse-nat-10000
//	bench --only pingpong --gatehouse new=bin/gatehouse,old=/tmp/gatehouse
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/internal/bench/load"
	"e13.dev/gatehouse/lab/internal/bench/report"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// dispatch is bench itself, or one of the programs that it starts in a namespace.
func dispatch(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "client":
			return runClient(args[1:])
		case "backend":
			count, err := load.MapCounters(os.NewFile(3, "counters"))
			if err != nil {
				return err
			}
			return load.Backend(backendAddrs, count)
		case "iocopy":
			if len(args) != 3 {
				return errors.New("iocopy PORT BACKEND,...")
			}
			return runIOCopy(args[1], args[2])
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return bench(ctx, args)
}

func portText(port int) string { return strconv.Itoa(port) }

// runClient is the client in its namespace; its options are what the benchmark wrote.
func runClient(args []string) error {
	var o load.Options
	if len(args) != 1 {
		return errors.New("client OPTIONS")
	}
	if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
		return err
	}
	count, err := load.MapCounters(os.NewFile(3, "counters"))
	if err != nil {
		return err
	}
	return load.Client(o, count)
}

// settings are what the flags say.
type settings struct {
	only, contenders, gatehouse string
	repeat, idle, changes       int
	window, warm, settle        time.Duration
	output, congestion          string
	write, markers              string
	quick                       bool
}

func parse(args []string) (settings, error) {
	var s settings
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&s.only, "only", "", "columns, by parts of their names: "+strings.Join(columnNames(), ", "))
	f.StringVar(&s.contenders, "contenders", "", "who runs: "+strings.Join(everybody(), ", ")+"; also haproxy-auto")
	f.StringVar(&s.gatehouse, "gatehouse", "bin/gatehouse", "the binary, or several as NAME=PATH,NAME=PATH")
	f.IntVar(&s.repeat, "repeat", 5, "repetitions")
	f.DurationVar(&s.window, "duration", 2500*time.Millisecond, "how long each run is measured")
	f.StringVar(&s.output, "o", "", "json: print what was measured as JSON")
	f.StringVar(&s.write, "write", "", "also write the tables between the markers of this file")
	f.StringVar(&s.markers, "markers", "bench", "the markers' name: <!-- NAME: begin -->, <!-- NAME: end -->")
	// Nothing is lost on these cables, so what a congestion control adds is its timers: with BBR, bulk columns measure
	// how well the machine wakes up. Reno is on every machine.
	f.StringVar(&s.congestion, "congestion", "reno", "TCP congestion control of all hosts")
	f.BoolVar(&s.quick, "quick", false, "short runs, once: is everything in order?")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 {
		return s, fmt.Errorf("unexpected: %s", strings.Join(f.Args(), " "))
	}
	if s.output != "" && s.output != "json" {
		return s, fmt.Errorf("-o %s: only json is known", s.output)
	}
	s.warm, s.settle, s.idle, s.changes = 500*time.Millisecond, 3*time.Second, 5000, 3
	if s.quick {
		s.repeat, s.window, s.warm, s.settle, s.idle, s.changes = 1, 300*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond, 500, 2
	}
	return s, nil
}

func columnNames() []string {
	var names []string
	for _, c := range report.Columns {
		names = append(names, c.Name)
	}
	return names
}

func (s settings) columns() ([]report.Column, error) {
	if s.only == "" {
		return report.Columns, nil
	}
	var out []report.Column
	for _, c := range report.Columns {
		for part := range strings.SplitSeq(s.only, ",") {
			if strings.Contains(c.Name, part) {
				out = append(out, c)
				break
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--only %s: no such column; there are %s", s.only, strings.Join(columnNames(), ", "))
	}
	return out, nil
}

// everybody who runs if nobody is named. Those that are compared most run next to each other.
func everybody() []string {
	names := []string{report.Routed, "conntrack", report.ByHand, "gatehouse-nat"}
	for _, n := range sizes {
		names = append(names, fmt.Sprintf("gatehouse-nat-%d", n))
	}
	return append(names, report.Masquerade, "gatehouse-firewall", report.HAProxy, report.Nginx, report.IOCopy, "gatehouse")
}

// who returns the contenders. One that is not installed is said to be, and left out, unless it was asked for by name.
func (s settings) who() ([]contender, error) {
	wanted := strings.Split(s.contenders, ",")
	if s.contenders == "" {
		wanted = everybody()
	}
	var out []contender
	add := func(c contender, err error) error {
		switch {
		case err == nil:
			out = append(out, c)
		case s.contenders != "" || c.Subject:
			return err
		default:
			progress("left out: %v", err)
		}
		return nil
	}
	for _, name := range wanted {
		var err error
		switch name {
		case report.Routed:
			err = add(routed(), nil)
		case report.HAProxy:
			err = add(haproxy(name, "HAProxy", "option splice-request\n  option splice-response"))
		case "haproxy-auto":
			err = add(haproxy(name, "HAProxy, splice-auto", "option splice-auto"))
		case report.Nginx:
			err = add(nginx())
		case report.IOCopy:
			err = add(ioCopy())
		case "conntrack":
			err = add(stateful(), nil)
		case report.ByHand:
			err = add(byHand(), nil)
		case report.Masquerade:
			err = add(masquerade(), nil)
		case "gatehouse-firewall":
			for _, b := range s.builds() {
				err = errors.Join(err, add(gatehouseRouter(b.name, b.path)))
			}
		case "gatehouse":
			for _, b := range s.builds() {
				c, failed := gatehouse(b.name, b.path)
				c.Subject = true // without it, there is nothing to compare
				err = errors.Join(err, add(c, failed))
			}
		default:
			frontends, known := natFrontends(name)
			if !known {
				err = fmt.Errorf("--contenders %s: nobody of that name; there are %s", name, strings.Join(everybody(), ", "))
			}
			for _, b := range s.builds() {
				if known {
					err = errors.Join(err, add(gatehouseNAT(b.name, b.path, frontends)))
				}
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// natFrontends is how many frontends the contender of that name has.
func natFrontends(name string) (int, bool) {
	if name == "gatehouse-nat" {
		return 1, true
	}
	for _, n := range sizes {
		if name == fmt.Sprintf("gatehouse-nat-%d", n) {
			return n, true
		}
	}
	return 0, false
}

// build is a binary of gatehouse, and what it is called in the tables.
type build struct{ name, path string }

func (s settings) builds() []build {
	var list []build
	for entry := range strings.SplitSeq(s.gatehouse, ",") {
		name, path, ok := strings.Cut(entry, "=")
		if !ok {
			name, path = "gatehouse", entry
		}
		list = append(list, build{name, path})
	}
	return list
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "==> "+format+"\n", args...) }

// descriptors is how many each process may open; raiseLimit has found it out.
var descriptors uint64 = 1 << 17

// raiseLimit lets everybody open many files, or as many as this process may allow.
func raiseLimit() error {
	limit := syscall.Rlimit{Cur: descriptors, Max: descriptors}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		return nil
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	// It is set although the runtime has done so for this process: for the programs that it starts, the runtime would
	// put back what it found.
	limit.Cur = limit.Max
	descriptors = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

func bench(ctx context.Context, args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	r, err := s.measure(ctx)
	if err != nil {
		return err
	}
	if s.output == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", " ")
		if err := enc.Encode(r); err != nil {
			return err
		}
	} else {
		fmt.Print(r.Markdown())
	}
	if s.write != "" {
		return writeInto(s.write, s.markers, r)
	}
	return nil
}

func (s settings) measure(ctx context.Context) (*report.Result, error) {
	columns, err := s.columns()
	if err != nil {
		return nil, err
	}
	if err := raiseLimit(); err != nil {
		return nil, fmt.Errorf("raise the limit of open files: %w", err)
	}
	contenders, err := s.who()
	if err != nil {
		return nil, err
	}
	r := &report.Result{
		Date: time.Now().Format(time.DateOnly), Kernel: kernel(), Cores: runtime.NumCPU(), Processor: processor(),
		Congestion: s.congestion, Window: s.window.String(), Repeat: s.repeat,
	}
	for _, c := range contenders {
		r.Contenders = append(r.Contenders, c.Contender)
	}
	order := s.order(columns, contenders)
	start := time.Now()
	for done, t := range order {
		sample, err := s.run(ctx, t.contender, t.column)
		if ctx.Err() != nil {
			return nil, errors.New("interrupted")
		}
		if err != nil { // it is said, marked in the table, and no reason not to measure the others
			sample.Values, sample.Complaint = nil, err.Error()
			sample.Errors++
		}
		sample.Repetition = t.repetition
		r.Samples = append(r.Samples, sample)
		done++
		left := time.Since(start) / time.Duration(done) * time.Duration(len(order)-done)
		progress("%d of %d, %s left: %s %d/%d, %s: %s", done, len(order), left.Round(time.Second), t.column.Name, t.repetition+1, s.repeat, t.contender.Name, brief(t.column, sample))
	}
	return r, nil
}

// turn is who is measured with what.
type turn struct {
	column     report.Column
	contender  contender
	repetition int
}

// order returns who is measured one after the other. Columns that are compared with each other are neighbours there.
func (s settings) order(columns []report.Column, contenders []contender) []turn {
	var out []turn
	for _, group := range together(columns) {
		for rep := range s.repeat {
			for _, c := range inTurn(contenders, rep) {
				for j := range group {
					t := turn{group[(j+rep)%len(group)], c, rep}
					if runs(t.contender, t.column) && rep < most(t.contender, t.column) {
						out = append(out, t)
					}
				}
			}
		}
	}
	return out
}

// most is how often at most a contender is measured: many frontends take seconds to start.
func most(c contender, col report.Column) int {
	switch {
	case col.Name == report.Apply:
		return 2
	case c.Frontends > 1:
		return 3
	}
	return math.MaxInt
}

// together returns the columns in groups of those that are compared with each other.
func together(columns []report.Column) [][]report.Column {
	var groups [][]report.Column
	for _, c := range columns {
		belongs := func(group []report.Column) bool {
			return slices.ContainsFunc(report.Additions, func(a report.Addition) bool {
				return a.With == c.Name && slices.ContainsFunc(group, func(o report.Column) bool { return o.Name == a.Without })
			})
		}
		if i := slices.IndexFunc(groups, belongs); i >= 0 {
			groups[i] = append(groups[i], c)
		} else {
			groups = append(groups, []report.Column{c})
		}
	}
	return groups
}

func brief(col report.Column, s report.Sample) string {
	var parts []string
	for _, m := range col.Metrics {
		if v, ok := s.Values[m.Key]; ok {
			parts = append(parts, fmt.Sprintf("%.4g %s", v, m.Label))
		}
	}
	if s.Errors > 0 {
		parts = append(parts, fmt.Sprintf("%d ERRORS: %s", s.Errors, s.Complaint))
	}
	return strings.Join(parts, ", ")
}

// runs says whether a contender has a place in a column.
func runs(c contender, col report.Column) bool {
	if c.columns != nil {
		return slices.Contains(c.columns, col.Name)
	}
	if col.Name == report.Apply {
		return false
	}
	return (c.udp || !strings.HasPrefix(col.Name, "udp")) && (c.names || !loads[col.Name].ByName) && (c.argv != nil || col.Op != "")
}

// loads are the client's options for the columns.
var loads = map[string]struct {
	port int
	load.Options
}{
	"tcp-pingpong-1":  {load.EchoPort, load.Options{Mode: load.PingPong, Conns: 1, Size: 64}},
	"tcp-pingpong-64": {load.EchoPort, load.Options{Mode: load.PingPong, Conns: 64, Size: 64}},
	"tcp-download":    {load.SourcePort, load.Options{Mode: load.Download, Conns: 4}},
	"tcp-upload":      {load.SinkPort, load.Options{Mode: load.Upload, Conns: 4}},
	"tcp-conn":        {load.EchoPort, load.Options{Mode: load.Connect, Conns: 32}},
	"tcp-idle":        {load.EchoPort, load.Options{Mode: load.Idle, Size: 64}},
	"hello-conn":      {load.HelloPort, load.Options{Mode: load.Hello, Names: names, Conns: 32}},
	"tls-conn":        {load.NamePort, load.Options{Mode: load.Hello, Names: names, ByName: true, Conns: 32}},
	"hello-paced":     {load.HelloPort, load.Options{Mode: load.Hello, Names: names, Rate: 2000}},
	"tls-paced":       {load.NamePort, load.Options{Mode: load.Hello, Names: names, ByName: true, Rate: 2000}},
	"tls-split":       {load.NamePort, load.Options{Mode: load.Hello, Names: names, ByName: true, Rate: 2000, Pause: time.Millisecond}},
	report.Apply:      {load.EchoPort, load.Options{}},
	"udp-64":          {load.UDPPort, load.Options{Mode: load.UDP, Conns: 64, Size: 64, Window: 4}},
	"udp-1200":        {load.UDPPort, load.Options{Mode: load.UDP, Conns: 64, Size: 1200, Window: 4}},
}

// scene is one run of one contender: who is on the stage.
type scene struct {
	client, proxy, backend          *process
	clientCount, backendCount       *load.Counters
	clientPIDs, proxyPIDs, backPIDs []int
}

func (s settings) run(ctx context.Context, c contender, col report.Column) (sample report.Sample, err error) {
	sample = report.Sample{Column: col.Name, Contender: c.Name, Values: map[string]float64{}}
	st, err := newStage(s.congestion)
	if err != nil {
		return sample, err
	}
	defer st.close()
	if col.OneProcessor {
		if err := st.pin(); err != nil {
			return sample, err
		}
	}
	dir, err := os.MkdirTemp("", "gatehouse-bench-")
	if err != nil {
		return sample, err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return sample, err
	}
	l := loads[col.Name]
	sc := scene{}
	var clientFile, backendFile *os.File
	if sc.clientCount, clientFile, err = load.NewCounters(); err != nil {
		return sample, err
	}
	defer clientFile.Close()
	defer sc.clientCount.Unmap()
	if sc.backendCount, backendFile, err = load.NewCounters(); err != nil {
		return sample, err
	}
	defer backendFile.Close()
	defer sc.backendCount.Unmap()
	if sc.backend, err = st.start(backendHost, []string{self, "backend"}, backendFile); err != nil {
		return sample, err
	}
	if err := st.awaitAnswer(backends(l.port), sc.backend); err != nil {
		return sample, err
	}
	if col.Name == report.Apply {
		return sample, s.applyRun(ctx, st, c, dir, &sample)
	}
	if c.rules != nil {
		if err := st.filter(edgeHost, c.rules(l.port)); err != nil {
			return sample, err
		}
	}
	if c.argv != nil {
		argv, err := c.argv(dir, l.port)
		if err != nil {
			return sample, err
		}
		if sc.proxy, err = st.start(edgeHost, argv); err != nil {
			return sample, err
		}
	}
	targets := backends(l.port)
	switch {
	case c.Router && sc.proxy != nil:
		err = errors.Join(st.awaitMasquerade(ctx, sc.proxy), st.awaitAnswer(targets, sc.proxy))
	case c.argv != nil || c.front:
		targets = at(edgeAddrs, l.port)
		err = st.awaitAnswer(targets, sc.proxy)
	}
	if err != nil {
		return sample, err
	}
	if sc.proxy != nil && c.Kernel {
		// The kernel has the rules before the program has done all that there is to do when it starts.
		if _, err := rest(ctx, sc.proxy); err != nil {
			return sample, err
		}
	}
	if sc.client, err = s.startClient(st, self, l.Options, targets, clientFile); err != nil {
		return sample, err
	}
	if l.Mode == load.Idle {
		err = s.idleRun(ctx, sc, c.idleConns(s.idle), &sample)
	} else {
		err = s.trafficRun(ctx, sc, col, &sample)
	}
	if err != nil {
		return sample, err
	}
	var said []string
	for _, p := range []*process{sc.client, sc.proxy, sc.backend} {
		if p == nil {
			continue
		}
		if err := p.err(); err != nil {
			return sample, err
		}
		if text := p.stderr.String(); text != "" {
			said = append(said, strings.ReplaceAll(text, "\n", "; "))
		}
	}
	if sample.Errors > 0 {
		sample.Complaint = strings.Join(said, "; ")
	}
	return sample, nil
}

func (s settings) startClient(st *stage, self string, o load.Options, targets []netip.AddrPort, count *os.File) (*process, error) {
	o.Targets = targets
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return st.start(clientHost, []string{self, "client", string(text)}, count)
}

// moment is what everybody has done and used so far.
type moment struct {
	at                     time.Time
	client, backend        load.Counters
	clientCPU, proxy, back time.Duration
	machine                machine
}

func (sc *scene) look() (moment, error) {
	var m moment
	var err error
	if m.machine, err = machineTime(); err != nil {
		return m, err
	}
	m.at = time.Now()
	m.client, m.backend = *sc.clientCount, *sc.backendCount
	m.clientCPU, m.proxy, m.back = cpuTime(sc.clientPIDs), cpuTime(sc.proxyPIDs), cpuTime(sc.backPIDs)
	return m, nil
}

func (sc *scene) families() {
	sc.clientPIDs, sc.backPIDs = family(sc.client.cmd.Process.Pid), family(sc.backend.cmd.Process.Pid)
	if sc.proxy != nil {
		sc.proxyPIDs = family(sc.proxy.cmd.Process.Pid)
	}
}

func (s settings) trafficRun(ctx context.Context, sc scene, col report.Column, sample *report.Sample) error {
	if err := pause(ctx, s.warm); err != nil {
		return err
	}
	sc.families()
	a, err := sc.look()
	if err != nil {
		return err
	}
	if err := pause(ctx, s.window); err != nil {
		return err
	}
	b, err := sc.look()
	if err != nil {
		return err
	}
	seconds := b.at.Sub(a.at).Seconds()
	ops := float64(b.client.Ops - a.client.Ops)
	rate, perOp := ops/seconds/1e3, time.Microsecond
	if col.Op == "Gbit" {
		ops = float64(b.client.Bytes-a.client.Bytes+b.backend.Bytes-a.backend.Bytes) * 8 / 1e9
		rate, perOp = ops/seconds, time.Millisecond
	}
	sample.Errors = b.client.Errors + b.backend.Errors
	v := sample.Values
	v[report.Rate] = rate
	if ops > 0 {
		v[report.Client] = float64(b.clientCPU-a.clientCPU) / ops / float64(perOp)
		v[report.Backend] = float64(b.back-a.back) / ops / float64(perOp)
		if sc.proxy != nil {
			v[report.CPU] = float64(b.proxy-a.proxy) / ops / float64(perOp)
		}
	} else {
		sample.Errors++
	}
	if h := b.client.Latency.Sub(&a.client.Latency); h.Count() > 0 {
		v[report.P50] = float64(h.Quantile(0.5)) / 1e3
		v[report.P99] = float64(h.Quantile(0.99)) / 1e3
	}
	if all := b.machine.all - a.machine.all; all > 0 {
		available := seconds * float64(runtime.NumCPU()) * 1e9
		idle := (b.machine.idle - a.machine.idle) / all
		busy := (1 - idle) * available
		known := float64(b.clientCPU - a.clientCPU + b.proxy - a.proxy + b.back - a.back)
		rest := max(busy-known, 0)
		v[report.IdleShare] = idle * 100
		v[report.RestShare] = rest / available * 100
		v[report.Softirq] = (b.machine.softirq - a.machine.softirq) / all * 100
		if ops > 0 {
			v[report.Rest] = rest / ops / float64(perOp)
			v[report.Busy] = max(busy, known) / ops / float64(perOp)
		}
	}
	if strings.HasPrefix(col.Name, "udp") && ops > 0 {
		lost := float64(b.client.Lost - a.client.Lost)
		v[report.LostPerMil] = lost / (ops + lost) * 1e3
	}
	return nil
}

// idleRun first lets some connections come and go, so that what a proxy needs once does not count for what it needs
// for each.
func (s settings) idleRun(ctx context.Context, sc scene, conns int, sample *report.Sample) error {
	if err := sc.open(ctx, 64); err != nil {
		return err
	}
	if err := sc.open(ctx, 0); err != nil {
		return err
	}
	if err := pause(ctx, s.settle/3); err != nil {
		return err
	}
	sc.families()
	before, fdsBefore, err := memory(sc.proxyPIDs)
	if err != nil {
		return err
	}
	if err := sc.open(ctx, conns); err != nil {
		return err
	}
	if err := pause(ctx, s.settle); err != nil {
		return err
	}
	sc.families()
	after, fdsAfter, err := memory(sc.proxyPIDs)
	if err != nil {
		return err
	}
	sample.Values[report.Memory] = (after - before) / float64(conns)
	sample.Values[report.FDs] = float64(fdsAfter-fdsBefore) / float64(conns)
	sample.Errors = sc.clientCount.Errors + sc.backendCount.Errors
	return nil
}

// open has the client keep so many connections, and waits until it does.
func (sc *scene) open(ctx context.Context, n int) error {
	sc.clientCount.Expected = uint64(n)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if open := sc.clientCount.Open; open == uint64(n) {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d connections are open after 30 s", open, n)
		}
		if err := errors.Join(sc.client.err(), pause(ctx, 10*time.Millisecond)); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // not all architectures name it
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func writeInto(path, markers string, r *report.Result) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := report.Between(string(old), markers, r.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
