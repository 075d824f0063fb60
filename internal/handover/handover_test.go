package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role says which new program the test binary plays when it is started as one.
const role = "HANDOVER_TEST_ROLE"

func TestMain(m *testing.M) {
	if r := os.Getenv(role); r != "" {
		play(r)
		return
	}
	os.Exit(m.Run())
}

// play is a new program. The one that is good answers one connection on each
// socket with what it knows of it.
func play(role string) {
	switch role {
	case "silent":
		select {}
	case "crashes":
		os.Exit(3)
	}
	p, err := Inherit("v9")
	if err != nil || p == nil {
		fmt.Fprintln(os.Stderr, "inherit:", p, err)
		os.Exit(1)
	}
	if os.Getenv(variable) != "" {
		p.GiveUp(errors.New(variable + " is left for children"))
	}
	if role == "gives up" {
		p.GiveUp(errors.New("the configuration is bad"))
		os.Exit(1)
	}
	if role == "hangs" {
		select {}
	}
	sockets, err := p.Take(context.Background())
	if err != nil {
		p.GiveUp(err)
		os.Exit(1)
	}
	if role == "crashes with the sockets" {
		os.Exit(4)
	}
	if err := p.Serving(context.Background()); err != nil {
		os.Exit(1)
	}
	done := make(chan struct{})
	for _, s := range sockets {
		go func() {
			defer func() { done <- struct{}{} }()
			l, err := net.FileListener(s.File)
			if err != nil {
				return
			}
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "%s %s", s.Kind, s.About)
			_ = conn.Close()
		}()
	}
	for range sockets {
		<-done
	}
}

func program(t *testing.T, as string) Program {
	t.Helper()
	p, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	p.Env = append(p.Env, role+"="+as, variable+"=77") // ours must win over what is there
	return p
}

func listeners(t *testing.T, n int) (all []net.Listener, sockets []Socket) {
	t.Helper()
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
		sockets = append(sockets, Socket{Kind: "door", About: fmt.Appendf(nil, `"number %d"`, i), File: f})
	}
	return all, sockets
}

// More sockets than one message carries arrive, each with what belongs to it,
// and a connection that nobody has accepted yet is accepted by the new program.
func TestGive(t *testing.T) {
	const n = 2*maxFiles + 40
	all, sockets := listeners(t, n)
	waiting, err := net.Dial("tcp", all[300].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	next, err := program(t, "good").Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if next.Version != "v9" || next.PID() <= 1 {
		t.Errorf("it is version %q, pid %d", next.Version, next.PID())
	}
	if err := next.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.Give(t.Context(), sockets); err != nil {
		t.Fatal(err)
	}
	Close(sockets)
	for _, l := range all {
		_ = l.Close()
	}
	next.Farewell()
	for i, l := range all {
		conn := waiting
		if i != 300 {
			if conn, err = net.Dial("tcp", l.Addr().String()); err != nil {
				t.Fatalf("socket %d of %d is closed: %v", i, n, err)
			}
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 100)
		k, err := conn.Read(buf)
		if want := fmt.Sprintf("door %q", fmt.Sprint("number ", i)); err != nil || string(buf[:k]) != want {
			t.Fatalf("socket %d is known as %s (%v), want %s", i, buf[:k], err, want)
		}
		_ = conn.Close()
	}
}

// Whatever the new program does instead of serving is an error with a reason,
// and it is gone afterwards, with its copies of the sockets.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("\x00\x01\x02"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		program Program
		limit   time.Duration
		want    string
	}{
		"not there":                {Program{Path: filepath.Join(dir, "nothing"), Args: []string{"x"}}, time.Minute, "no such file or directory"},
		"not a program":            {Program{Path: garbage, Args: []string{"x"}}, time.Minute, "exec format error"},
		"another program":          {Program{Path: script, Args: []string{"x"}}, time.Minute, "ended without a word"},
		"a crash before hello":     {program(t, "crashes"), time.Minute, "ended without a word"},
		"no hello":                 {program(t, "silent"), 200 * time.Millisecond, "time is up"},
		"a reason":                 {program(t, "gives up"), time.Minute, "it gave up: the configuration is bad"},
		"not ready":                {program(t, "hangs"), 500 * time.Millisecond, "time is up"},
		"a crash with the sockets": {program(t, "crashes with the sockets"), time.Minute, "ended without a word"},
	} {
		t.Run(name, func(t *testing.T) {
			all, sockets := listeners(t, 3)
			defer Close(sockets)
			ctx, cancel := context.WithTimeoutCause(t.Context(), c.limit, errors.New("time is up"))
			defer cancel()
			pid := 0
			err := func() error {
				next, err := c.program.Start(ctx)
				if err != nil {
					return err
				}
				defer next.Abort()
				pid = next.PID()
				if err := next.AwaitReady(ctx); err != nil {
					return err
				}
				return next.Give(ctx, sockets)
			}()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if pid != 0 && !ended(pid) {
				t.Errorf("process %d still runs", pid)
			}
			// Nothing is lost: the sockets are ours, and nobody else answers.
			for _, l := range all {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := l.Accept(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// ended says whether a process is gone, or is a zombie that waits for our parent.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return len(state) > 0 && state[0] == 'Z'
}

// pair is both ends in one process.
func pair(t testing.TB) (next *Next, previous *Previous) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newConn(os.NewFile(uintptr(fds[0]), "old"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := newConn(os.NewFile(uintptr(fds[1]), "new"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return &Next{conn: a}, &Previous{conn: b}
}

// The old program goes away in the middle: the new one must not serve.
func TestPreviousEnds(t *testing.T) {
	_, sockets := listeners(t, 2)
	for name, old := range map[string]func(c conn){
		"before the sockets": func(conn) {},
		"among the sockets":  func(c conn) { _ = c.send(message{Kind: batch, Sockets: sockets}) },
		"with sockets missing": func(c conn) {
			_ = c.send(message{Kind: batch, Sockets: sockets})
			_ = c.send(message{Kind: all, Total: 3})
			_, _ = c.receive()
			_, _ = c.receive()
		},
	} {
		t.Run(name, func(t *testing.T) {
			next, previous := pair(t)
			before := openFiles(t)
			go func() {
				old(next.conn)
				_ = next.conn.Close()
			}()
			if got, err := previous.Take(t.Context()); err == nil {
				t.Errorf("took %d sockets", len(got))
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d descriptors are open, before it were %d", after, before)
			}
		})
	}
	next, previous := pair(t)
	_ = next.conn.Close()
	if err := previous.Serving(t.Context()); err == nil {
		t.Error("serves, though the program before it has taken everything back")
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAnotherProtocol(t *testing.T) {
	next, previous := pair(t)
	if err := previous.conn.send(message{Kind: hello, Protocol: Protocol + 1, Version: "v10"}); err != nil {
		t.Fatal(err)
	}
	err := next.greet(t.Context())
	if err == nil || !strings.Contains(err.Error(), "v10, which hands over by protocol 2, and this one by protocol 1: restart instead") {
		t.Errorf("got %v", err)
	}
}

func TestInherit(t *testing.T) {
	if p, err := Inherit("v1"); p != nil || err != nil {
		t.Errorf("without the variable: %v %v", p, err)
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, value := range []string{"x", "-1", "", strconv.Itoa(int(f.Fd())), "1000000"} {
		t.Setenv(variable, value)
		if p, err := Inherit("v1"); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("with %q: %v %v", value, p, err)
		}
		if _, set := os.LookupEnv(variable); set {
			t.Error("the variable is left for children")
		}
	}
}

// The path by which a program was started, not the file that it was.
func TestSelfKeepsTheLink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "current")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	was := os.Args[0]
	t.Cleanup(func() { os.Args[0] = was })
	for arg, want := range map[string]string{link: link, "gatehouse: worker": exe, "sh": exe} {
		os.Args[0] = arg
		if p, err := Self(); err != nil || p.Path != want {
			t.Errorf("called as %s: %s %v, want %s", arg, p.Path, err, want)
		}
	}
}

func TestBatches(t *testing.T) {
	long := json.RawMessage(`"` + strings.Repeat("x", maxBatch/4) + `"`)
	for name, c := range map[string]struct {
		sockets []Socket
		want    []int
	}{
		"none":            {nil, nil},
		"as many as fit":  {make([]Socket, maxFiles), []int{maxFiles}},
		"one more":        {make([]Socket, maxFiles+1), []int{maxFiles, 1}},
		"long texts":      {slices.Repeat([]Socket{{About: long}}, 7), []int{3, 3, 1}},
		"one is too long": {[]Socket{{About: bytes.Repeat(long, 8)}, {}}, []int{1, 1}},
	} {
		var got []int
		for _, b := range batches(c.sockets) {
			got = append(got, len(b))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Whatever comes out of the socket: it is refused, or means the same when it is
// written again; each descriptor belongs to one socket, or is closed.
func FuzzReceive(f *testing.F) {
	for _, m := range []message{
		{Kind: hello, Protocol: 1, Version: "v1"},
		{Kind: ready},
		{Kind: all, Total: 3},
		{Kind: failed, Reason: "x"},
		{Kind: batch, Sockets: []Socket{{Kind: "door", About: json.RawMessage(`{"port":80}`)}}},
	} {
		data, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint8(len(m.Sockets)))
	}
	f.Add([]byte(`{"kind":"ready"}{"kind":"ready"}`), uint8(0))
	f.Add([]byte(`{"kind":"sockets","sockets":[null]}`), uint8(1))
	f.Add([]byte{}, uint8(3))
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, descriptors uint8) {
		if len(data) > maxMessage+100 {
			t.Skip()
		}
		next, previous := pair(t)
		before := openFiles(t)
		var rights []byte
		if n := int(descriptors) % 5; n > 0 {
			rights = unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...)
		}
		if _, _, err := next.conn.WriteMsgUnix(data, rights, nil); err != nil {
			t.Skip(err)
		}
		m, err := previous.conn.receive()
		if err != nil {
			if m.Kind != "" || err.Error() == "" {
				t.Errorf("refused as %q, but returned as %+v", err, m)
			}
		} else {
			if len(m.Sockets) != int(descriptors)%5 {
				t.Errorf("%d sockets of %d descriptors", len(m.Sockets), int(descriptors)%5)
			}
			again, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			same, err := parse(again, len(m.Sockets))
			if err != nil {
				t.Fatalf("written again it is refused: %v\n%s", err, again)
			}
			if third, _ := json.Marshal(same); !bytes.Equal(third, again) {
				t.Errorf("written again it is another:\n%s\n%s", again, third)
			}
			Close(m.Sockets)
		}
		if after := openFiles(t); after > before { // fewer: what earlier tests have dropped is collected
			t.Errorf("%d descriptors are open, before it were %d", after, before)
		}
	})
}
