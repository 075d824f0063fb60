package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Ports of the second gatehouse: its page, and what the tests open with it.
const (
	upgradeAdmin  = "127.0.0.1:9190"
	upgradeStatic = 8200
	upgradeKube   = 8201
	upgradeUDP    = 8202
)

// upgradable is a gatehouse of its own, whose program can be replaced.
type upgradable struct{ program, file, log string }

// runUpgradable runs a second gatehouse, which has a class of Services of its own.
func runUpgradable(t *testing.T, frontends string) *upgradable {
	t.Helper()
	kubeconfig, err := lab.TokenKubeconfig(t.Context(), "gatehouse", "gatehouse", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	name := "upgrade-" + strconv.Itoa(rand.IntN(1e6))
	u := &upgradable{program: filepath.Join(dir, "gatehouse"), file: filepath.Join(dir, "gatehouse.yaml"), log: lab.LogPath(name)}
	text := "apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth1]}}\n" +
		"kubernetes: {loadBalancerClass: gatehouse.e13.dev/upgrade, kubeconfig: " + kubeconfig + "}\n" +
		"admin: {listen: \"" + upgradeAdmin + "\"}\n" + frontends
	if err := os.WriteFile(u.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	u.install(t, gatehouse)
	if err := lab.Run(t.Context(), name, "edge", nil, u.program, "run", "-c", u.file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range u.processes(t) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if t.Failed() {
			data, _ := os.ReadFile(u.log)
			lines := strings.Split(strings.TrimSpace(string(data)), "\n")
			t.Logf("the log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
	u.awaitReady(t)
	return u
}

func (u *upgradable) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, "ready", func() error {
		resp, err := httpFrom("edge").Get("http://" + upgradeAdmin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return errors.New(readAll(resp))
		}
		return nil
	})
}

// install replaces the program as package managers do: by rename.
func (u *upgradable) install(t *testing.T, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	next := u.program + ".new"
	if err := os.WriteFile(next, data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, u.program); err != nil {
		t.Fatal(err)
	}
}

// processes are those that run the program, in whichever version.
func (u *upgradable) processes(t *testing.T) []int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, l := range links {
		exe, err := os.Readlink(l) // fails for zombies
		if err != nil || strings.TrimSuffix(exe, " (deleted)") != u.program {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(l, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func (u *upgradable) logged(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(u.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// upgrade sends the signal to a process and returns the one that takes its place.
func (u *upgradable) upgrade(t *testing.T, from int) (to int) {
	t.Helper()
	before := strings.Count(u.logged(t), "upgrade done")
	if err := syscall.Kill(from, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 20*time.Second, "an upgrade", func() error {
		log := u.logged(t)
		if strings.Count(log, "upgrade done") == before {
			return errors.New("it is not done")
		}
		_, pid, _ := strings.Cut(log[strings.LastIndex(log, "upgrade done"):], `"pid":`)
		_, err := fmt.Sscanf(pid, "%d", &to)
		return err
	})
	t.Logf("upgrade from process %d to %d in %d ms", from, to, took.Milliseconds())
	return to
}

// patient is a backend on a worker that answers as a client asks: a greeting, a
// long download, or a word for each word.
type patient struct{ stop chan struct{} } // ends the downloads

const (
	greeting  = "hello, who is there\n"
	blockSize = 64 << 10
)

// block is part n of every download.
func block(n int) []byte {
	b := make([]byte, blockSize)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}

// lastWord is how a download ends: with how many blocks there were.
func lastWord(blocks int) []byte { return fmt.Appendf(nil, "end after %d\n", blocks) }

func startPatient(t *testing.T, worker, addr string) *patient {
	t.Helper()
	p := &patient{stop: make(chan struct{})}
	listener := listen(t, worker, addr)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go p.answer(conn)
		}
	}()
	return p
}

func (p *patient) answer(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		word, err := r.ReadString('\n')
		switch {
		case err != nil:
			return
		case word == "hello\n":
			_, _ = io.WriteString(conn, greeting)
			return // the server closes first: the client's port is free at once
		case word == "download\n":
			p.upload(conn)
			return
		default:
			if _, err := io.WriteString(conn, word); err != nil {
				return
			}
		}
	}
}

func (p *patient) upload(conn net.Conn) {
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			_, _ = conn.Write(lastWord(n))
			return
		case <-pace.C:
		}
		if _, err := conn.Write(block(n)); err != nil {
			return
		}
	}
}

// download reads until the server has had enough; every byte has to be right.
func download(address string) error {
	conn, err := lab.Dialer("home1")(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "download\n"); err != nil {
		return err
	}
	got := make([]byte, blockSize)
	for n := 0; ; n++ {
		k, err := io.ReadFull(conn, got)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return want(string(got[:k]), string(lastWord(n)))
		}
		if err != nil {
			return fmt.Errorf("after %d blocks: %w", n, err)
		}
		if !bytes.Equal(got, block(n)) {
			return fmt.Errorf("block %d is not what was sent", n)
		}
	}
}

// flood makes new connections as fast as it can, and counts what fails.
type flood struct {
	stop    atomic.Bool
	began   time.Time
	workers sync.WaitGroup
	made    atomic.Int64

	mu     sync.Mutex
	failed []error
}

func startFlood(host, address string, workers int) *flood {
	f := &flood{began: time.Now()}
	for range workers {
		f.workers.Go(func() {
			// One thread stays in the host's network for all connections of a worker.
			err := lab.Do(host, func() error {
				for !f.stop.Load() {
					if err := greet(address); err != nil {
						f.fail(err)
					}
					f.made.Add(1)
				}
				return nil
			})
			if err != nil {
				f.fail(err)
			}
		})
	}
	return f
}

func (f *flood) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = append(f.failed, fmt.Errorf("after %s: %w", time.Since(f.began).Round(time.Millisecond), err))
}

func greet(address string) error {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != greeting {
		err = fmt.Errorf("the answer is %q", got)
	}
	return err
}

func (f *flood) finish(t *testing.T) {
	t.Helper()
	f.stop.Store(true)
	f.workers.Wait()
	t.Logf("%d connections, %.0f a second, %d failed", f.made.Load(), float64(f.made.Load())/time.Since(f.began).Seconds(), len(f.failed))
	if len(f.failed) > 0 {
		t.Errorf("%d of %d connections failed, first: %v", len(f.failed), f.made.Load(), f.failed[0])
	}
}

// talk is a connection on which a word is said now and then.
type talk struct {
	conn net.Conn
	read *bufio.Reader
}

func startTalk(t *testing.T, address string) talk {
	t.Helper()
	conn, err := lab.Dialer("home1")(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return talk{conn, bufio.NewReader(conn)}
}

func (c talk) say(t *testing.T, when string) {
	t.Helper()
	err := c.conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err == nil {
		_, err = fmt.Fprintln(c.conn, when)
	}
	var word string
	if err == nil {
		word, err = c.read.ReadString('\n')
	}
	if err != nil || word != when+"\n" {
		t.Fatalf("%s, a connection was cut: %q %v", when, word, err)
	}
}

// upgradeSite is what both tests of TCP upgrade: a static frontend, and a Service.
func upgradeSite(t *testing.T, pods int, backend string) (u *upgradable, ns, static, viaKube string) {
	t.Helper()
	ns = namespace(t)
	apply(t, deployment(ns, "web", "web", "", pods)+
		strings.Replace(service(ns, "web", "web", "home", "Cluster", upgradeKube), "gatehouse.e13.dev/edge", "gatehouse.e13.dev/upgrade", 1))
	awaitPods(t, ns, "web")
	u = runUpgradable(t, fmt.Sprintf("frontends: [{name: patient, zones: [home], port: %d, backends: [{address: %q}]}]\n", upgradeStatic, backend))
	static, viaKube = fmt.Sprintf("%s:%d", homeAddr, upgradeStatic), fmt.Sprintf("%s:%d", homeAddr, upgradeKube)
	eventually(t, 10*time.Second, "the Service is open", opened("home1", viaKube))
	eventually(t, 10*time.Second, "its status is written", func() error { return want(ingressOf(t, ns, "web"), homeAddr) })
	return u, ns, static, viaKube
}

// Promise 4, at its hardest: the program is replaced again and again while new
// connections come as fast as they can, downloads run and others wait. Nor does
// anybody hear of it by way of the cluster.
func TestUpgradeCutsNothing(t *testing.T) {
	backend := startPatient(t, "w1", "10.0.0.101:7100")
	u, ns, address, viaKube := upgradeSite(t, 2, "10.0.0.101:7100")
	version := func() string {
		return kubectl(t, "get", "service", "-n", ns, "web", "-o", "jsonpath={.metadata.resourceVersion}")
	}
	before := version()

	var idle []talk
	for range 50 {
		c := startTalk(t, address)
		c.say(t, "before")
		idle = append(idle, c)
	}
	downloads := make(chan error, 2)
	for range 2 {
		go func() { downloads <- download(address) }()
	}
	main := u.processes(t)[0]
	connections := startFlood("home1", address, 6)
	services := startLoad("home1", viaKube, 20)
	healthy, stopAsking := make(chan error, 1), make(chan struct{})
	go func() {
		for {
			select {
			case <-stopAsking:
				healthy <- nil
				return
			default:
			}
			resp, err := httpFrom("edge").Get("http://" + upgradeAdmin + "/healthz")
			if err != nil {
				healthy <- err
				return
			}
			resp.Body.Close()
		}
	}()
	for i := range 6 {
		u.install(t, gatehouse)
		main = u.upgrade(t, main)
		for _, c := range idle {
			c.say(t, fmt.Sprintf("after upgrade %d", i+1))
		}
		pause := time.NewTimer(300 * time.Millisecond)
		<-pause.C
	}
	connections.finish(t)
	services.finish(t)
	close(stopAsking)
	if err := <-healthy; err != nil {
		t.Errorf("/healthz failed: %v", err)
	}
	if got := u.processes(t); len(got) != 2 {
		t.Errorf("processes %v, want the first one, which has connections, and the last", got)
	}
	close(backend.stop)
	for range 2 {
		if err := <-downloads; err != nil {
			t.Errorf("download: %v", err)
		}
	}
	for _, c := range idle {
		c.say(t, "at the end")
		c.conn.Close()
	}
	eventually(t, 5*time.Second, "the first process has ended", func() error {
		return want(fmt.Sprint(u.processes(t)), fmt.Sprint([]int{main}))
	})
	if got := version(); got != before {
		t.Errorf("the Service was written during the upgrades:\n%s", kubectl(t, "get", "service", "-n", ns, "web", "-o", "yaml", "--show-managed-fields"))
	}
	if err := opened("home1", viaKube)(); err != nil {
		t.Error(err)
	}
}

// Whatever is wrong with the next program, the running one serves on and says
// what it was. The next try succeeds.
func TestFailedUpgradeChangesNothing(t *testing.T) {
	startPatient(t, "w1", "10.0.0.101:7101")
	u, _, address, viaKube := upgradeSite(t, 1, "10.0.0.101:7101")
	main := u.processes(t)[0]
	good, err := os.ReadFile(u.file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	scratch := filepath.Join(t.TempDir(), "program")
	program := func(text string) func() {
		return func() {
			write(scratch, []byte(text))
			u.install(t, scratch)
		}
	}
	nothing := func() {}
	server := kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
	apiServer, _, err := net.SplitHostPort(strings.TrimPrefix(server, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	route := func(what string) func() {
		return func() {
			if _, err := lab.Exec(context.Background(), "edge", "ip", "route", what, "unreachable", apiServer); err != nil {
				t.Error(err)
			}
		}
	}

	old := startTalk(t, address)
	connections := startFlood("home1", address, 2)
	services := startLoad("home1", viaKube, 20)
	for _, c := range []struct {
		name          string
		prepare, undo func()
		want          string
		within        time.Duration
	}{
		{"not a program", program("\x7fELF, but broken"), nothing, "exec format error", 5 * time.Second},
		{"a program that ends", program("#!/bin/sh\nexit 3\n"), nothing, "ended without a word", 5 * time.Second},
		{"no program", func() { os.Remove(u.program) }, nothing, "no such file", 5 * time.Second},
		{
			"a bad configuration", func() {
				u.install(t, gatehouse)
				write(u.file, bytes.Replace(good, []byte("[home]"), []byte("[hoem]"), 1))
			},
			func() { write(u.file, good) }, "its configuration is bad: " + u.file, 5 * time.Second,
		},
		{"no API server", route("add"), route("del"), "the cluster was not read within", 45 * time.Second},
	} {
		before := len(u.logged(t))
		c.prepare()
		if err := syscall.Kill(main, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		var line string
		eventually(t, c.within, c.name+" is said", func() error {
			for line = range strings.Lines(u.logged(t)[before:]) {
				if strings.Contains(line, "upgrade failed") {
					return nil
				}
			}
			return errors.New("not a word of it")
		})
		c.undo()
		if t.Log(c.name, line); !strings.Contains(line, c.want) {
			t.Errorf("%s: the log does not say %q", c.name, c.want)
		}
		if got := u.processes(t); !slices.Equal(got, []int{main}) {
			t.Errorf("%s: processes %v, want %d alone", c.name, got, main)
		}
		old.say(t, c.name)
	}
	u.awaitReady(t)
	next := u.upgrade(t, main)
	connections.finish(t)
	services.finish(t)
	old.say(t, "at the end")
	old.conn.Close()
	eventually(t, 5*time.Second, "the old process has ended", func() error {
		return want(fmt.Sprint(u.processes(t)), fmt.Sprint([]int{next}))
	})
}

// A UDP client keeps the backend that it had before the upgrade, and none of
// its datagrams is lost.
func TestUpgradeKeepsUDPSessions(t *testing.T) {
	const flows, upgrades = 40, 3
	var backends []string
	for i, worker := range []string{"w1", "w2", "w3"} {
		addr := fmt.Sprintf("10.0.0.10%d:7102", i+1)
		backends = append(backends, fmt.Sprintf("{address: %q}", addr))
		startNamed(t, worker, addr)
	}
	u := runUpgradable(t, fmt.Sprintf("frontends: [{name: udp, protocol: UDP, zones: [home], port: %d, backends: [%s]}]\n", upgradeUDP, strings.Join(backends, ", ")))
	main := u.processes(t)[0]

	stop := make(chan struct{})
	type outcome struct {
		backend string
		asked   int
		err     error
	}
	outcomes := make(chan outcome, flows)
	for range flows {
		conn, err := lab.Dialer("home1")(t.Context(), "udp", fmt.Sprintf("%s:%d", homeAddr, upgradeUDP))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			o := outcome{}
			defer func() { outcomes <- o }()
			buf := make([]byte, 100)
			for {
				select {
				case <-stop:
					return
				default:
				}
				question := fmt.Sprint(o.asked)
				_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
				if _, o.err = io.WriteString(conn, question); o.err != nil {
					return
				}
				n, err := conn.Read(buf)
				if o.err = err; err != nil {
					return
				}
				name, echo, _ := strings.Cut(string(buf[:n]), " ")
				if o.asked == 0 {
					o.backend = name
				}
				if name != o.backend || echo != question {
					o.err = fmt.Errorf("question %s to %s was answered %q", question, o.backend, buf[:n])
					return
				}
				o.asked++
				pause := time.NewTimer(5 * time.Millisecond)
				<-pause.C
			}
		}()
	}
	for range upgrades {
		pause := time.NewTimer(500 * time.Millisecond)
		<-pause.C
		main = u.upgrade(t, main)
	}
	pause := time.NewTimer(500 * time.Millisecond)
	<-pause.C
	close(stop)
	had, asked := map[string]bool{}, 0
	for range flows {
		o := <-outcomes
		had[o.backend] = true
		asked += o.asked
		if o.err != nil {
			t.Errorf("after %d answers: %v", o.asked, o.err)
		}
	}
	t.Logf("%d questions over %d upgrades", asked, upgrades)
	if len(had) < 2 {
		t.Errorf("all flows had the same backend: %v", had)
	}
	eventually(t, 5*time.Second, "the old processes have ended", func() error {
		return want(fmt.Sprint(u.processes(t)), fmt.Sprint([]int{main}))
	})
}

// startNamed answers each datagram with its own name and what was asked.
func startNamed(t *testing.T, worker, addr string) {
	t.Helper()
	var packets net.PacketConn
	err := lab.Do(worker, func() error {
		var err error
		packets, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { packets.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := packets.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = packets.WriteTo(append([]byte(worker+" "), buf[:n]...), from)
			}
		}
	}()
}
