package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"e13.dev/gatehouse/lab/internal/bench/load"
	"e13.dev/gatehouse/lab/internal/bench/report"
)

// applyRun measures how long it takes until the kernel has the rules: all of them, and those of a backend that changes.
// It is asked with packets, which do not depend on what the rules look like.
func (s settings) applyRun(ctx context.Context, st *stage, c contender, dir string, sample *report.Sample) error {
	const port = load.EchoPort
	argv, err := c.argv(dir, port)
	if err != nil {
		return err
	}
	start := time.Now()
	p, err := st.start(edgeHost, argv)
	if err != nil {
		return err
	}
	var targets []netip.AddrPort
	for _, port := range doors(port, c.Frontends) {
		targets = append(targets, netip.AddrPortFrom(edgeAddrs[0], uint16(port)))
	}
	if err := st.awaitAnswer(targets, p); err != nil {
		return err
	}
	v := sample.Values
	v[report.Open] = time.Since(start).Seconds()
	used, err := rest(ctx, p)
	if err != nil {
		return err
	}
	v[report.OpenCPU] = used.Seconds()
	if v[report.FirstRules], v[report.LaterRules], err = rulesOfAPacket(ctx, st, targets[0]); err != nil {
		return err
	}
	if used, err = rest(ctx, p); err != nil {
		return err
	}

	// A backend that refuses takes turns with one that answers, and the same file again comes in between.
	answering := netip.AddrPortFrom(backendAddrs[0], port)
	refusing := netip.AddrPortFrom(backendAddrs[0], load.NobodyPort)
	var took, changeCPU, rereadCPU []float64
	for i := range 2 * s.changes {
		served, answers := refusing, false
		if i%4 >= 2 {
			served, answers = answering, true
		}
		text := natConfig(port, []netip.AddrPort{served}) + fmt.Sprintf("# %d\n", i)
		start := time.Now()
		if err := replace(filepath.Join(dir, natFile), text); err != nil {
			return err
		}
		if err := p.hangUp(); err != nil {
			return err
		}
		if i%2 == 0 {
			if err := st.await(ctx, targets[0], answers); err != nil {
				return errors.Join(err, p.err())
			}
			took = append(took, time.Since(start).Seconds()*1e3)
		}
		now, err := rest(ctx, p)
		if err != nil {
			return err
		}
		cpu := (now - used).Seconds() * 1e3
		used = now
		if i%2 == 0 {
			changeCPU = append(changeCPU, cpu)
		} else {
			rereadCPU = append(rereadCPU, cpu)
		}
	}
	for key, values := range map[string][]float64{report.Change: took, report.ChangeCPU: changeCPU, report.RereadCPU: rereadCPU} {
		spread, _ := report.SpreadOf(values) // there are some
		v[key] = spread.Median
	}
	return p.err()
}

// replace writes a file in one go.
func replace(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// hangUp asks a program to read its files now.
func (p *process) hangUp() error {
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return fmt.Errorf("%s: %w", p.name, errors.Join(err, p.err()))
	}
	return nil
}

// await waits until a target takes connections, or refuses them.
func (s *stage) await(ctx context.Context, target netip.AddrPort, answers bool) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		var err error
		_ = s.in(clientHost, func() error { err = load.Try(target); return nil })
		if (err == nil) == answers {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: answers: %t, which is not to be: %w", target, !answers, err)
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// rest waits until a program has nothing to do, and returns what it and all that it has run have used so far.
func rest(ctx context.Context, p *process) (time.Duration, error) {
	const quiet = 300 * time.Millisecond
	deadline := time.Now().Add(20 * time.Second)
	before, err := p.used()
	for since := time.Now(); err == nil; {
		if err = pause(ctx, 50*time.Millisecond); err != nil {
			break
		}
		var now time.Duration
		if now, err = p.used(); err != nil {
			break
		}
		if now-before > 4*time.Millisecond { // what it does at rest is less
			before, since = now, time.Now()
		}
		if time.Since(since) > quiet {
			return now, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s is still at work after 20 s", p.name)
		}
	}
	return 0, errors.Join(err, p.err())
}

// used is the processor time of a program with all that it has run, whose part the kernel counts in hundredths of a
// second.
func (p *process) used() (time.Duration, error) {
	pid := p.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", pid, text)
	}
	ended := 0
	for _, f := range fields[13:15] { // cutime, cstime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ended += n
	}
	return cpuTime(family(pid)) + time.Duration(ended)*10*time.Millisecond, nil
}

// rulesOfAPacket has nftables trace a connection, and returns with how many rules the first packet from the client is
// compared, and a later one.
func rulesOfAPacket(ctx context.Context, st *stage, target netip.AddrPort) (first, later float64, err error) {
	rules := fmt.Sprintf(`table ip bench-trace { chain trace { type filter hook prerouting priority raw; tcp dport %d meta nftrace set 1; }; }`, target.Port())
	if err := st.filter(edgeHost, rules); err != nil {
		return 0, 0, err
	}
	monitor, err := st.start(edgeHost, []string{"nft", "monitor", "trace"})
	if err != nil {
		return 0, 0, err
	}
	monitor.stderr.grow(1 << 20)
	connect := func() error {
		if err := st.in(clientHost, func() error { return load.Try(target) }); err != nil {
			return err
		}
		return pause(ctx, 200*time.Millisecond)
	}
	// It first reads all rules that there are.
	for deadline := time.Now().Add(20 * time.Second); monitor.stderr.String() == ""; {
		if err := connect(); err != nil {
			return 0, 0, err
		}
		if time.Now().After(deadline) {
			return 0, 0, errors.New("nft monitor traces nothing")
		}
	}
	for text := ""; text != monitor.stderr.String(); {
		text = monitor.stderr.String()
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			return 0, 0, err
		}
	}
	before := len(monitor.stderr.String())
	if err := connect(); err != nil {
		return 0, 0, err
	}
	monitor.stop()
	st.procs = slices.DeleteFunc(st.procs, func(p *process) bool { return p == monitor })
	var chains string
	err = st.in(edgeHost, func() (err error) {
		chains, err = listChains()
		return err
	})
	if err == nil {
		err = st.filter(edgeHost, "delete table ip bench-trace")
	}
	if err != nil {
		return 0, 0, err
	}
	trace := monitor.stderr.String()[before:]
	counts := compared(trace, rulesByChain(chains))
	if len(counts) < 2 {
		return 0, 0, fmt.Errorf("traced %d packets of a connection: %s", len(counts), trace)
	}
	return float64(counts[0]), float64(counts[len(counts)-1]), nil
}
