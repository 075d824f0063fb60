package load

import (
	"bytes"
	"crypto/tls"
	"errors"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var errSeen = errors.New("seen")

// A server of crypto/tls is the judge: padded or not, it has to be a ClientHello.
func TestClientHelloIsOne(t *testing.T) {
	t.Parallel()
	const name = "git.example.org"
	hello, err := ClientHello(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(hello) != HelloSize {
		t.Errorf("it has %d bytes, not %d", len(hello), HelloSize)
	}
	client, server := net.Pipe()
	if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // lest a server wait for more
		t.Fatal(err)
	}
	go func() {
		defer client.Close()
		if _, err := client.Write(hello); err == nil {
			_, _ = client.Read(make([]byte, 100)) // the alert that the test's own error is told with
		}
	}()
	var got *tls.ClientHelloInfo
	err = tls.Server(server, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		got = h
		return nil, errSeen
	}}).Handshake()
	if !errors.Is(err, errSeen) {
		t.Fatalf("the server does not take it: %v", err)
	}
	if got.ServerName != name {
		t.Errorf("it is for %q, not %q", got.ServerName, name)
	}
	if !slices.Contains(got.SupportedCurves, tls.X25519MLKEM768) || !slices.Contains(got.Extensions, 21) {
		t.Errorf("it has key exchanges %v and extensions %v; those of a browser have X25519MLKEM768 and 21", got.SupportedCurves, got.Extensions)
	}
}

func TestClientHelloThatCannotBePadded(t *testing.T) {
	t.Parallel()
	hello, err := ClientHello("git.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pad(hello); err == nil || !strings.Contains(err.Error(), "1800 bytes already") {
		t.Errorf("too long: %v", err)
	}
	if _, err := pad(slices.Clone(hello[:1000])); err == nil || !strings.Contains(err.Error(), "extensions end at 1800 of 1000") {
		t.Errorf("cut off: %v", err)
	}
}

// The client has to notice another backend, and a byte that has changed on the way, in whatever pieces it all comes.
func TestWrongRoutesAndWrongBytesAreNoticed(t *testing.T) {
	t.Parallel()
	g := greeter{client: &client{Options: Options{Names: []string{"git.example.org", "www.example.net"}, ByName: true}}}
	for _, name := range g.Names {
		h, err := ClientHello(name)
		if err != nil {
			t.Fatal(err)
		}
		g.hellos, g.sums = append(g.hellos, h), append(g.sums, crc32.Checksum(h, castagnoli))
	}
	damaged := slices.Clone(g.hellos[0])
	damaged[HelloSize/2] ^= 1
	for _, c := range []struct {
		what  string
		id    byte // of the backend
		sent  []byte
		at    int // where it is cut in two
		name  int // that the client has asked for
		wrong string
	}{
		{"in one piece", 0, g.hellos[0], 0, 0, ""},
		{"in two segments", 1, g.hellos[1], firstSegment, 1, ""},
		{"after a single byte", 1, g.hellos[1], 1, 1, ""},
		{"the wrong backend", 1, g.hellos[0], 0, 0, "backend 1 has answered for git.example.org, which is that of backend 0"},
		{"a wrong bit", 0, damaged, firstSegment, 0, "something else has arrived"},
		{"somebody else's ClientHello", 1, g.hellos[0], 0, 1, "something else has arrived"},
	} {
		err := g.check(answer(t, c.id, c.sent, c.at), c.name)
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if err := g.check([]byte("HTTP/1.1 400"), 0); err == nil {
		t.Error("an answer of another length is taken")
	}
	g.ByName = false
	if err := g.check(answer(t, 1, g.hellos[0], 0), 0); err != nil {
		t.Errorf("any backend is right, and was not: %v", err)
	}
}

// answer is what a backend says to something that is sent in two pieces.
func answer(t *testing.T, id byte, sent []byte, at int) []byte {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	b := &backend{buf: make([]byte, 64<<10), count: new(Counters)}
	k := &peer{kind: hellos, id: id}
	for _, piece := range [][]byte{sent[:at], sent[at:]} {
		if _, errno := recv(pair[0], make([]byte, 1), 0); errno != syscall.EAGAIN {
			t.Fatalf("an answer to a part: %v", errno)
		}
		if len(piece) == 0 {
			continue
		}
		if n, errno := send(pair[0], piece); n != len(piece) {
			t.Fatal(errno)
		}
		if alive, errno := b.hello(pair[1], k, unix.EPOLLIN); !alive || errno != 0 {
			t.Fatalf("the backend gives up: %v", errno)
		}
	}
	got := make([]byte, 100)
	n, errno := recv(pair[0], got, 0)
	if errno != 0 || b.count.Ops != 1 || b.count.Errors != 0 {
		t.Fatalf("%d answers, %d errors: %v", b.count.Ops, b.count.Errors, errno)
	}
	return bytes.Clone(got[:n])
}

func TestBackendTakesNoMoreThanAClientHello(t *testing.T) {
	t.Parallel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	b := &backend{buf: make([]byte, 64<<10), count: new(Counters)}
	if n, errno := send(pair[0], make([]byte, HelloSize+1)); n != HelloSize+1 {
		t.Fatal(errno)
	}
	if alive, _ := b.hello(pair[1], &peer{}, unix.EPOLLIN); alive || b.count.Errors != 1 || b.count.Ops != 0 {
		t.Errorf("a byte too many: alive %t, %d errors, %d answers", alive, b.count.Errors, b.count.Ops)
	}
}
