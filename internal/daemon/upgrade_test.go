package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/handover"
)

// successor is set in the environment of a test binary that is to be the new
// program; its value is the configuration file.
const successor = "GATEHOUSE_TEST_SUCCESSOR"

// crashing instead of a file makes it take the sockets and die.
const crashing = "crashing"

func TestMain(m *testing.M) {
	if file := os.Getenv(successor); file != "" {
		succeed(file)
	}
	os.Exit(m.Run())
}

// succeed is what the run command does.
func succeed(file string) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
	previous, err := handover.Inherit("successor")
	if err != nil || previous == nil {
		log.Error("nothing inherited", "err", err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // should the test be killed
	defer cancel()
	if file == crashing {
		sockets, err := previous.Take(ctx)
		log.Info("crashing", "sockets", len(sockets), "err", err)
		time.Sleep(time.Second) // to be looked at
		os.Exit(1)
	}
	if err := New(Options{Files: []string{file}, Version: "successor", Log: log, Previous: previous}).Run(ctx); err != nil {
		log.Error("ended", "err", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// logged collects what a daemon logs.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
	out  io.Writer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	return l.out.Write(p)
}

func (l *logged) has(text string) func() error {
	return func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !strings.Contains(l.text.String(), text) {
			return fmt.Errorf("not in the log: %s", text)
		}
		return nil
	}
}

// upgradable runs a daemon that SIGUSR2 replaces with this test binary.
func upgradable(t *testing.T, file, nextFile string, more ...func(*Options)) (d *Daemon, log *logged, ended chan error, stop context.CancelFunc) {
	t.Helper()
	program, err := handover.Self()
	if err != nil {
		t.Fatal(err)
	}
	program.Env = append(program.Env, successor+"="+nextFile)
	log = &logged{out: t.Output()}
	o := Options{Files: []string{file}, Version: "first", Log: slog.New(slog.NewTextHandler(log, nil)), Program: program}
	for _, m := range more {
		m(&o)
	}
	d = New(o)
	ctx, stop := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- d.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		for range ended { // it logs until then
		}
	})
	return d, log, ended, stop
}

func signalSelf(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

// pageOf is who answers on a status page.
func pageOf(admin string) (version string, err error) {
	resp, err := http.Get("http://" + admin + "/status.json")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var s struct {
		Version string `json:"version"`
	}
	err = json.NewDecoder(resp.Body).Decode(&s)
	return s.Version, err
}

// endSuccessor ends the new program; it is no child of ours.
func endSuccessor(t *testing.T, log *logged) {
	t.Helper()
	log.mu.Lock()
	defer log.mu.Unlock()
	_, after, found := strings.Cut(log.text.String(), "upgrade done, this process drains\" pid=")
	if !found {
		return
	}
	pid := 0
	if _, err := fmt.Sscanf(after, "%d", &pid); err != nil || pid <= 1 {
		t.Errorf("no pid in the log: %v", err)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// The new program serves at the same addresses, without one refused connection
// or failed /healthz; the old one keeps its connections until they end, and
// ends then.
func TestUpgrade(t *testing.T) {
	one := echo(t, "one")
	front, admin := freeAddr(t), freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, front, one))
	notify := listenNotify(t)
	_, log, ended, _ := upgradable(t, file, file, func(o *Options) { o.NotifySocket = notify.path })
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "served", serves(front, "one"))
	eventually(t, "systemd knows", notify.heard("READY=1", "STATUS=open: 1, problems: 0"))
	old, _, err := dial(front)
	if err != nil {
		t.Fatal(err)
	}

	stop, done := make(chan struct{}), make(chan []error, 2)
	hammer := func(once func() error) {
		var errs []error
		for {
			select {
			case <-stop:
				done <- errs
				return
			default:
			}
			if err := once(); err != nil {
				errs = append(errs, err)
			}
		}
	}
	go hammer(serves(front, "one"))
	go hammer(func() error {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + admin + "/healthz")
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	})
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "the successor answers", func() error {
		if v, err := pageOf(admin); err != nil || v != "successor" {
			return fmt.Errorf("it is of %s (%w)", v, err)
		}
		return nil
	})
	eventually(t, "handed over", log.has("upgrade done"))
	eventually(t, "systemd knows the main process", notify.heard("MAINPID="))
	if err := notify.heard("STOPPING=1")(); err == nil {
		t.Error("systemd was told that the service stops")
	}
	for range 200 { // by the successor alone, once the old one has closed its doors
		if err := serves(front, "one")(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	for range 2 {
		if errs := <-done; len(errs) > 0 {
			t.Errorf("%d failed, first: %v", len(errs), errs[0])
		}
	}
	// An upgrade of what is replaced is refused.
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "refused", log.has("upgrade refused"))
	select {
	case err := <-ended:
		t.Fatalf("the old process has ended with a connection open: %v", err)
	default:
	}
	fmt.Fprintln(old, "still there?")
	if line, err := bufio.NewReader(old).ReadString('\n'); err != nil || line != "still there?\n" {
		t.Errorf("the connection was cut: %q %v", line, err)
	}
	_ = old.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the old process ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the old process does not end")
	}
	if err := serves(front, "one")(); err != nil {
		t.Error(err)
	}
}

// What keeps the new program from serving keeps the old one serving, and is in
// the log; the next try may succeed.
func TestUpgradeFails(t *testing.T) {
	one := echo(t, "one")
	front, admin := freeAddr(t), freeAddr(t)
	dir := t.TempDir()
	file, next := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "next.yaml")
	write(t, file, configFor(admin, front, one))
	write(t, next, "apiVersion: nothing\n")
	_, log, ended, stop := upgradable(t, file, next)
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "served", serves(front, "one"))
	conn, _, err := dial(front)
	if err != nil {
		t.Fatal(err)
	}
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "it begins", log.has("upgrade begins"))
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "a second one is refused", log.has("one is under way"))
	eventually(t, "failed", log.has("upgrade failed, this process serves on"))
	eventually(t, "with the reason", log.has("it gave up: "+errBadStart.Error()))
	if err := serves(front, "one")(); err != nil {
		t.Error(err)
	}
	if v, err := pageOf(admin); err != nil || v != "first" {
		t.Errorf("the page is of %s: %v", v, err)
	}
	fmt.Fprintln(conn, "still there?")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "still there?\n" {
		t.Errorf("the connection was cut: %q %v", line, err)
	}
	write(t, file, configFor(admin, front, echo(t, "two")))
	eventually(t, "files are still followed", serves(front, "two"))

	write(t, next, configFor(admin, front, one))
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "the second try", log.has("upgrade done"))
	// Told to stop, what was replaced waits no longer than what was not.
	stop()
	write(t, file, strings.Replace(configFor(admin, front, one), "frontends:", "stopTimeout: 1s\nfrontends:", 1))
	select {
	case err := <-ended:
		t.Errorf("it ended at once: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	_ = conn.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A connection that does not end is cut when the stop timeout is over, or at
// the second signal, and it is said how many were.
func TestStopTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		timeout string
		cut     bool
		want    string
	}{
		"timeout":       {"300ms", false, "the stop timeout of 300ms is over"},
		"second signal": {"1h", true, "told to stop a second time"},
	} {
		t.Run(name, func(t *testing.T) {
			one := echo(t, "one")
			front, admin := freeAddr(t), freeAddr(t)
			file := filepath.Join(t.TempDir(), "gatehouse.yaml")
			write(t, file, "stopTimeout: "+c.timeout+"\n"+configFor(admin, front, one))
			cut := make(chan struct{})
			notify := listenNotify(t)
			_, log, ended, stop := upgradable(t, file, file, func(o *Options) { o.Cut, o.NotifySocket = cut, notify.path })
			eventually(t, "served", serves(front, "one"))
			var conns []net.Conn
			for range 3 {
				conn, _, err := dial(front)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns = append(conns, conn)
			}
			stop()
			eventually(t, "stopping", log.has("connections=3"))
			eventually(t, "systemd knows", notify.heard("STOPPING=1"))
			signalSelf(t, syscall.SIGHUP) // does not end it
			if c.cut {
				close(cut)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("it ended with %v", err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("it does not end")
			}
			if err := log.has("3 connections cut: " + c.want)(); err != nil {
				t.Error(err)
			}
			if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client sees %v", err)
			}
		})
	}
}

// A program that dies with the sockets in its hands has done no harm: what was
// kept back for it, datagrams above all, is taken back.
func TestUpgradeCrashes(t *testing.T) {
	one, front, udp := echo(t, "one"), freeAddr(t), freeAddr(t)
	backend := whoAsks(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(freeAddr(t), front, one)+fmt.Sprintf("  - {name: udp, protocol: UDP, listen: %q, backends: [{address: %q}]}\n", udp, backend))
	d, log, _, stop := upgradable(t, file, crashing)
	eventually(t, "served", serves(front, "one"))
	retired := func() bool {
		d.kernel.mu.Lock()
		defer d.kernel.mu.Unlock()
		return d.kernel.retired
	}
	conn, err := net.Dial("udp", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before, err := ask(conn)
	if err != nil {
		t.Fatal(err)
	}
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "left alone", func() error {
		if !retired() {
			return errors.New("two processes look after the kernel's rules")
		}
		return nil
	})
	eventually(t, "failed", log.has("ended without a word"))
	eventually(t, "taken back", func() error {
		if retired() {
			return errors.New("nobody looks after the kernel's rules")
		}
		return nil
	})
	if after, err := ask(conn); err != nil || after != before {
		t.Errorf("the backend saw %s before and sees %s now (%v)", before, after, err)
	}
	if err := serves(front, "one")(); err != nil {
		t.Error(err)
	}
	stop()
}

// whoAsks is a UDP backend that answers with the address that it was asked from.
func whoAsks(t *testing.T) (addr string) {
	t.Helper()
	backend, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := backend.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = backend.WriteTo([]byte(from.String()), from)
			}
		}
	}()
	return backend.LocalAddr().String()
}

func ask(conn net.Conn) (string, error) {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// Hundreds of doors and sessions do not fit into one message; each UDP client
// keeps its session, which shows in the port that the backend sees.
func TestUpgradeOfManySockets(t *testing.T) {
	const doors, sessions = 300, 700
	backend := whoAsks(t)
	one := echo(t, "one")
	var pairs []string
	var reserved []net.Listener
	for range doors {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		reserved = append(reserved, l)
		pairs = append(pairs, l.Addr().String(), one)
	}
	front := freeAddr(t)
	for _, l := range reserved {
		_ = l.Close()
	}
	admin := freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(admin, pairs...)+fmt.Sprintf("  - {name: udp, protocol: UDP, listen: %q, backends: [{address: %q}]}\n", front, backend))
	_, log, ended, _ := upgradable(t, file, file)
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "served", serves(pairs[0], "one"))
	clients := map[net.Conn]string{}
	for range sessions {
		conn, err := net.Dial("udp", front)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if clients[conn], err = ask(conn); err != nil {
			t.Fatal(err)
		}
	}
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "handed over", log.has("upgrade done"))
	if err := <-ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	for conn, was := range clients {
		if now, err := ask(conn); err != nil || now != was {
			t.Fatalf("the backend saw %s before and sees %s now (%v)", was, now, err)
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if err := serves(pairs[i], "one")(); err != nil {
			t.Fatal(err)
		}
	}
}

// What the old process had open can be in the way of what the new one is to
// open, for a moment.
func TestUpgradeToAnotherConfiguration(t *testing.T) {
	one := echo(t, "one")
	front, admin := freeAddr(t), freeAddr(t)
	_, port, _ := net.SplitHostPort(front)
	dir := t.TempDir()
	file, next := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "next.yaml")
	write(t, file, configFor(admin, front, one))
	write(t, next, configFor(admin, "0.0.0.0:"+port, one))
	_, log, _, _ := upgradable(t, file, next)
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "served", serves(front, "one"))
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "handed over", log.has("upgrade done"))
	done := time.Now()
	eventually(t, "open at all addresses", serves("127.0.0.2:"+port, "one"))
	if took := time.Since(done); took > retryInterval/2 {
		t.Errorf("it took %s", took)
	}
}

// systemd is told that a reload has begun, and that it is over, also when the
// files are bad.
func TestReloadIsNotified(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(freeAddr(t), freeAddr(t), echo(t, "one")))
	notify := listenNotify(t)
	_, _, _, stop := upgradable(t, file, file, func(o *Options) { o.NotifySocket = notify.path })
	eventually(t, "started", notify.heard("READY=1"))
	for _, text := range []string{configFor(freeAddr(t)), "apiVersion: nothing\n"} {
		notify.forget()
		write(t, file, text)
		signalSelf(t, syscall.SIGHUP)
		eventually(t, "reloading", notify.heard("RELOADING=1"))
		eventually(t, "reloaded", notify.heard("READY=1"))
	}
	eventually(t, "what is bad", notify.heard("the configuration on disk is bad: "+file))
	stop()
}

// notifications is the socket that systemd listens on.
type notifications struct {
	path string
	mu   sync.Mutex
	text string
}

func listenNotify(t *testing.T) *notifications {
	t.Helper()
	n := &notifications{path: fmt.Sprintf("@gatehouse-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := conn.Read(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.text += string(buf[:k]) + "\n"
			n.mu.Unlock()
		}
	}()
	return n
}

func (n *notifications) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.text = ""
}

func (n *notifications) heard(texts ...string) func() error {
	return func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, text := range texts {
			if !strings.Contains(n.text, text) {
				return fmt.Errorf("%q is not in\n%s", text, n.text)
			}
		}
		return nil
	}
}

// Sockets of a kind that this version does not know are closed; what cannot be
// read closes everything.
func TestUnpack(t *testing.T) {
	open := func() *os.File {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	door, later := open(), open()
	h, p, _, err := unpack([]handover.Socket{{Kind: doorSocket, About: []byte(`{"ifindex":3}`), File: door}, {Kind: "later", File: later}})
	if err != nil || len(h.Doors) != 1 || h.Doors[0].Ifindex != 3 || h.Doors[0].File != door || len(p) != 0 {
		t.Errorf("%+v %+v %v", h, p, err)
	}
	if err := later.Close(); !errors.Is(err, os.ErrClosed) {
		t.Error("a socket of an unknown kind is left open")
	}
	bad := open()
	if _, _, _, err := unpack([]handover.Socket{{Kind: doorSocket, About: []byte(`{}`), File: door}, {Kind: sessionSocket, About: []byte(`7`), File: bad}}); err == nil {
		t.Error("taken")
	}
	for _, f := range []*os.File{door, bad} {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Error("a socket is left open")
		}
	}
}
