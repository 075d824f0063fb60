package soak

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options of a run.
type Options struct {
	Gatehouse string        // the program
	Dir       string        // for what it writes: soak.csv, soak.json, the configuration and the logs
	Duration  time.Duration // of the load
	Every     time.Duration // between samples
	Child     []string      // how to start this program so that it calls Child, which gets more arguments
	Log       io.Writer
}

// life is how long a connection that does little lives.
func (o Options) life() time.Duration { return max(min(o.Duration/30, 2*time.Minute), 3*time.Second) }

// Child is the client or a backend, in a process of its own.
func Child(args []string) error {
	if len(args) == 2 && args[0] == "backend" {
		return backend(args[1])
	}
	if len(args) == 2 && args[0] == "client" {
		life, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return runClient(life, os.Stdin, os.Stdout)
	}
	return fmt.Errorf("unexpected: %s", strings.Join(args, " "))
}

// The backends: three that are always there, two that are not, and one that never is.
var (
	steadyBackends = []string{"10.2.0.2", "10.2.0.3", "10.2.0.4"}
	roughBackends  = []string{"10.2.0.5", "10.2.0.6"}
)

const absentBackend = "10.2.0.99"

// What idle sessions live is what the run waits for in the end.
const sessionTimeout = 3 * time.Second

// configuration is one of many; 0 is the one that a run begins and ends with.
func configuration(n int) string {
	if n%7 == 6 {
		return "apiVersion: gatehouse.e13.dev/v1\nzones: {lan: {interfaces: [lan]}}\nfrontends: [{name: steady"
	}
	backends := func(weights ...any) string {
		var out []string
		for i := 0; i < len(weights); i += 2 {
			out = append(out, fmt.Sprintf("{address: \"%s:%d\", weight: %d}", weights[i], backendPort, weights[i+1]))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	steady := backends(steadyBackends[0], 1, steadyBackends[1], 1)
	switch n % 5 {
	case 1:
		steady = backends(steadyBackends[0], 3, steadyBackends[1], 1)
	case 2:
		steady = backends(steadyBackends[0], 1, steadyBackends[1], 1, steadyBackends[2], 2)
	case 3:
		steady = backends(steadyBackends[1], 1, steadyBackends[2], 1)
	case 4:
		steady = backends(steadyBackends[0], 0, steadyBackends[1], 1)
	}
	rough := backends(roughBackends[0], 1, roughBackends[1], 1)
	switch n % 4 {
	case 1:
		rough = backends(roughBackends[0], 1, roughBackends[1], 1, absentBackend, 1)
	case 2:
		rough = backends(roughBackends[0], 1)
	}
	var b strings.Builder
	b.WriteString("apiVersion: gatehouse.e13.dev/v1\nzones: {lan: {interfaces: [lan]}}\nadmin: {listen: \"127.0.0.1:9180\"}\nstopTimeout: 1s\nfrontends:\n")
	frontend := func(name string, port int, more, backends string) {
		fmt.Fprintf(&b, "  - {name: %s, zones: [lan], port: %d, %s, backends: %s}\n", name, port, more, backends)
	}
	frontend("steady", steadyPort, "health: {interval: 2s}", steady)
	frontend("rough", roughPort, "health: {interval: 1s}, drainTimeout: 2s, idleTimeout: 20s, connectTimeout: 1s", rough)
	frontend("steady-udp", datagrams, "protocol: UDP, idleTimeout: "+sessionTimeout.String(), steady)
	frontend("limited", limitedPort, fmt.Sprintf("maxConnectionsPerClient: %d, maxConnections: 100", clientLimit), backends(steadyBackends[0], 1))
	frontend("nobody-udp", nobodyUDP, "protocol: UDP, idleTimeout: 2s", fmt.Sprintf("[{address: \"%s:%d\"}]", steadyBackends[0], backendPort+1))
	frontend("rough-udp", roughUDP, "protocol: UDP, drainTimeout: 1s, idleTimeout: 2s", rough)
	for i := range 3 {
		if n%(i+2) == 1 {
			frontend(fmt.Sprintf("spell-%d", i), spellPort+i, "connectTimeout: 1s", steady)
		}
	}
	return b.String()
}

type run struct {
	o       Options
	hosts   *hosts
	began   time.Time
	edge    http.Client
	gate    *process
	client  *process
	heard   chan said // what the client says, except for counts
	steady  []*process
	csv     *csv.Writer
	verbose func(format string, args ...any)

	mu      sync.Mutex // guards what follows
	rough   []*process
	spent   time.Duration // by processes that are gone
	counts  said
	reloads int
	kills   int
	samples []Sample
}

// Run does all of it. It fails if the run could not be made; what it has found is in the result.
func Run(ctx context.Context, o Options) (*Result, error) {
	hosts, err := newHosts()
	if err != nil {
		return nil, err
	}
	defer hosts.close()
	r := &run{o: o, hosts: hosts, began: time.Now(), heard: make(chan said, 10)}
	r.edge = http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: hosts.dialer(edgeHost)}}
	r.verbose = func(format string, args ...any) {
		fmt.Fprintf(o.Log, "%s  %s\n", time.Since(r.began).Round(time.Second), fmt.Sprintf(format, args...))
	}
	file, err := os.Create(filepath.Join(o.Dir, "soak.csv"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r.csv = csv.NewWriter(file)
	_ = r.csv.Write(header()) // an error stays, and is asked for with each sample
	defer r.stopAll()
	if err := r.startAll(ctx); err != nil {
		return nil, err
	}
	return r.measure(ctx)
}

func (r *run) startAll(ctx context.Context) error {
	complaints, err := os.Create(filepath.Join(r.o.Dir, "load.log"))
	if err != nil {
		return err
	}
	defer complaints.Close()
	child := func(host int, args ...string) (*process, error) {
		return r.hosts.start(host, complaints, slices.Concat(r.o.Child, args)...)
	}
	for _, addr := range steadyBackends {
		p, err := child(backendHost, "backend", addr)
		if err != nil {
			return err
		}
		r.steady = append(r.steady, p)
	}
	for _, addr := range roughBackends {
		p, err := child(backendHost, "backend", addr)
		if err != nil {
			return err
		}
		r.rough = append(r.rough, p)
	}
	if r.client, err = child(clientHost, "client", r.o.life().String()); err != nil {
		return err
	}
	go r.listen()

	config := filepath.Join(r.o.Dir, "gatehouse.yaml")
	if err := os.WriteFile(config, []byte(configuration(0)), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(r.o.Dir, "gatehouse.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	if r.gate, err = r.hosts.start(edgeHost, log, r.o.Gatehouse, "run", "-c", config); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := r.get(ctx, "/readyz")
		if err == nil {
			return nil
		}
		if err := errors.Join(r.gate.err(), ctx.Err()); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("gatehouse is not ready: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (r *run) stopAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range slices.Concat([]*process{r.gate, r.client}, r.steady, r.rough) {
		if p != nil {
			p.stop()
		}
	}
}

func (r *run) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9180"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := r.edge.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return string(body), err
}

// listen hears what the client says.
func (r *run) listen() {
	defer close(r.heard)
	for lines := json.NewDecoder(bufio.NewReader(r.client.out)); ; {
		var s said
		if err := lines.Decode(&s); err != nil {
			return
		}
		r.mu.Lock()
		r.counts = s
		r.mu.Unlock()
		if s.Event != "counts" {
			r.heard <- s
		}
	}
}

// tell gives the client a word, and waits until it has obeyed.
func (r *run) tell(ctx context.Context, word string) error {
	if _, err := fmt.Fprintln(r.client.in, word); err != nil {
		return err
	}
	select {
	case s, ok := <-r.heard:
		if !ok || s.Event != word+" done" {
			return fmt.Errorf("the client ended instead of %q", word)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *run) look(ctx context.Context, phase string) (Sample, error) {
	s := Sample{Seconds: time.Since(r.began).Seconds(), Phase: phase}
	// Before the scrape, which is a connection and a goroutine itself.
	if err := s.process(r.gate.pid()); err != nil {
		return s, errors.Join(r.gate.err(), err)
	}
	text, err := r.get(ctx, "/metrics")
	if err != nil {
		return s, err
	}
	s.metrics(text)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.counts.Counts {
		s.Made += float64(n.Done + n.Failed + n.Excused)
	}
	all := r.spent + cpuTime(os.Getpid())
	for _, p := range slices.Concat([]*process{r.gate, r.client}, r.steady, r.rough) {
		all += cpuTime(p.pid())
	}
	s.CPU, s.CPUAll = cpuTime(r.gate.pid()).Seconds(), all.Seconds()
	return s, nil
}

// sample is a look that is written down.
func (r *run) sample(ctx context.Context, phase string) (Sample, error) {
	s, err := r.look(ctx, phase)
	if err != nil {
		return s, err
	}
	r.samples = append(r.samples, s)
	_ = r.csv.Write(s.row())
	r.csv.Flush()
	return s, r.csv.Error()
}

// A look may meet a health probe, which is a descriptor and a goroutine, and how many goroutines a scrape has itself
// is a matter of luck. What most of so many looks have found is what is there.
const looks = 40

// rest is what gatehouse has when nothing happens. It waits until the sessions of UDP have ended.
func (r *run) rest(ctx context.Context, phase string) (Sample, error) {
	wait := time.NewTimer(sessionTimeout + 1500*time.Millisecond)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return Sample{}, ctx.Err()
	}
	most, err := r.sample(ctx, phase)
	if err != nil {
		return most, err
	}
	found := []Sample{most}
	for len(found) < looks {
		time.Sleep(50 * time.Millisecond)
		s, err := r.look(ctx, phase)
		if err != nil {
			return most, err
		}
		found = append(found, s)
	}
	for _, field := range []func(*Sample) *float64{
		func(s *Sample) *float64 { return &s.Descriptors }, func(s *Sample) *float64 { return &s.Sockets },
		func(s *Sample) *float64 { return &s.Pipes }, func(s *Sample) *float64 { return &s.Goroutines },
	} {
		var values []float64
		for _, s := range found {
			values = append(values, *field(&s))
		}
		*field(&most) = mode(values)
	}
	return most, nil
}

func (r *run) measure(ctx context.Context) (*Result, error) {
	if _, err := r.sample(ctx, before); err != nil {
		return nil, err
	}
	r.verbose("everything once")
	if err := r.round(ctx); err != nil {
		return nil, err
	}
	result := &Result{Started: r.began.UTC().Truncate(time.Second), Duration: r.o.Duration.String()}
	var err error
	if result.Before, err = r.rest(ctx, before); err != nil {
		return nil, err
	}
	r.verbose("at rest: %s", result.Before)

	if err := r.tell(ctx, "start"); err != nil {
		return nil, err
	}
	loaded, cancel := context.WithTimeout(ctx, r.o.Duration)
	defer cancel()
	var helpers sync.WaitGroup
	helpers.Go(func() { r.reconfigure(loaded) })
	helpers.Go(func() { r.harass(loaded) })
	tick := time.NewTicker(r.o.Every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-loaded.Done():
		}
		if loaded.Err() != nil {
			break
		}
		s, err := r.sample(ctx, during)
		if err != nil {
			cancel()
			helpers.Wait()
			return nil, err
		}
		if n%30 == 0 {
			r.verbose("%s", s)
		}
	}
	helpers.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	r.verbose("the load ends")
	if err := r.tell(ctx, "stop"); err != nil {
		return nil, err
	}
	if _, err := r.sample(ctx, after); err != nil {
		return nil, err
	}
	if err := r.round(ctx); err != nil {
		return nil, err
	}
	if result.After, err = r.rest(ctx, after); err != nil {
		return nil, err
	}
	r.verbose("at rest: %s", result.After)
	metrics, err := r.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	result.Accepted, result.Accounted = balance(metrics)
	r.mu.Lock()
	defer r.mu.Unlock()
	result.Loads, result.Complaints, result.Reloads, result.Kills = maps.Clone(r.counts.Counts), r.counts.Complaints, r.reloads, r.kills
	result.Samples = r.samples
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return nil, err
	}
	return result, os.WriteFile(filepath.Join(r.o.Dir, "soak.json"), append(text, '\n'), 0o644)
}

// round is everything once: each kind of load, and a few configurations.
func (r *run) round(ctx context.Context) error {
	var configurations sync.WaitGroup
	configurations.Go(func() {
		for _, n := range []int{2, 6, 3, 0} {
			r.configure(n)
			time.Sleep(700 * time.Millisecond)
		}
	})
	defer configurations.Wait()
	return r.tell(ctx, "round")
}

// reconfigure changes the configuration every few seconds, and leaves the first one.
func (r *run) reconfigure(ctx context.Context) {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			r.configure(0)
			return
		case <-tick.C:
			r.configure(n)
		}
	}
}

// configure writes another configuration, as editors do. gatehouse finds that by itself; now and then it is told.
func (r *run) configure(n int) {
	file := filepath.Join(r.o.Dir, "gatehouse.yaml")
	err := os.WriteFile(file+".new", []byte(configuration(n)), 0o600)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		r.verbose("the configuration: %v", err)
	}
	if n%3 == 0 {
		r.gate.signal(syscall.SIGHUP)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reloads++
}

// harass kills and stops the rough backends, and leaves them well.
func (r *run) harass(ctx context.Context) {
	pause := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		}
	}
	for n := 0; pause(4 * time.Second); n++ {
		which := n / 2 % len(roughBackends)
		r.mu.Lock()
		p := r.rough[which]
		r.kills++
		r.mu.Unlock()
		if n%2 == 0 {
			p.signal(syscall.SIGSTOP)
			pause(4 * time.Second)
			p.signal(syscall.SIGCONT)
			continue
		}
		spent := cpuTime(p.pid())
		p.stop()
		pause(4 * time.Second)
		next, err := r.hosts.start(backendHost, io.Discard, slices.Concat(r.o.Child, []string{"backend", roughBackends[which]})...)
		if err != nil {
			r.verbose("a backend: %v", err)
			return
		}
		r.mu.Lock()
		r.rough[which], r.spent = next, r.spent+spent
		r.mu.Unlock()
	}
}
