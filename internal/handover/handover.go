// Package handover lets a program take the place of the one that runs, with its
// sockets. It owns how the two find each other, what they say and how
// descriptors travel between them. What the sockets are for is known to those
// who use it.
//
// The running program:
//
//	next, err := program.Start(ctx)       // it runs, and speaks our protocol
//	err = next.AwaitReady(ctx)            // it has all but the sockets
//	err = next.Give(ctx, sockets)         // it serves
//	next.Farewell()                       // or, after an error, next.Abort()
//
// The one that comes:
//
//	previous, err := handover.Inherit(version) // nil: started by somebody else
//	sockets, err := previous.Take(ctx)
//	err = previous.Serving(ctx)                // or previous.GiveUp(err)
//
// Until it says that it serves, the new program may end in any way; the old one
// has lost nothing then.
package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is what this program speaks. It changes when a program of before
// would misunderstand one of after.
const Protocol = 1

// variable names, in the environment of the new program, the descriptor that
// leads to the old one.
const variable = "GATEHOUSE_HANDOVER_FD"

const (
	// The kernel passes no more descriptors in one message (SCM_MAX_FD).
	maxFiles = 253
	// A message has to fit into the socket's buffer, which is 208 KiB unless
	// somebody has changed net.core.wmem_default.
	maxBatch   = 48 << 10
	maxMessage = 128 << 10
)

// Socket is a descriptor, and what is to be known of it.
type Socket struct {
	Kind  string          `json:"kind"`
	About json.RawMessage `json:"about,omitempty"`
	File  *os.File        `json:"-"`
}

// Close closes the files of sockets. The sockets live on in other processes.
func Close(sockets []Socket) {
	for _, s := range sockets {
		_ = s.File.Close()
	}
}

// kind says what a message means.
type kind string

const (
	hello    kind = "hello"    // new: I am here
	ready    kind = "ready"    // new: give me the sockets
	batch    kind = "sockets"  // old: some of them
	taken    kind = "taken"    // new: give me more
	all      kind = "all"      // old: that was all of them
	serving  kind = "serving"  // new: I accept connections
	farewell kind = "farewell" // old: I do not any more, and write nothing
	failed   kind = "failed"   // new: I give up, because
)

var kinds = []kind{hello, ready, batch, taken, all, serving, farewell, failed}

// message is one packet.
type message struct {
	Kind     kind     `json:"kind"`
	Protocol int      `json:"protocol,omitempty"` // of hello
	Version  string   `json:"version,omitempty"`  // of hello
	Reason   string   `json:"reason,omitempty"`   // of failed
	Total    int      `json:"total,omitempty"`    // of all: how many sockets there were
	Sockets  []Socket `json:"sockets,omitempty"`  // of sockets: one for each descriptor, in their order
}

// parse reads a message that came with so many descriptors.
func parse(data []byte, descriptors int) (message, error) {
	var m message
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&m); err != nil {
		return message{}, fmt.Errorf("message not understood: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return message{}, errors.New("message not understood: something follows it")
	}
	if !slices.Contains(kinds, m.Kind) {
		return message{}, fmt.Errorf("message not understood: there is no kind %q", m.Kind)
	}
	if len(m.Sockets) != descriptors {
		return message{}, fmt.Errorf("a message about %d sockets came with %d descriptors", len(m.Sockets), descriptors)
	}
	if m.Kind != batch && descriptors > 0 {
		return message{}, fmt.Errorf("a message of kind %s came with descriptors", m.Kind)
	}
	for _, s := range m.Sockets {
		if s.Kind == "" {
			return message{}, errors.New("a socket came without its kind")
		}
	}
	return m, nil
}

// conn is one end of the SOCK_SEQPACKET socket between the two: a packet is a
// message, and its descriptors cannot get away from it.
type conn struct{ *net.UnixConn }

func newConn(f *os.File) (conn, error) {
	defer f.Close() // net has its own copy
	c, err := net.FileConn(f)
	if err != nil {
		return conn{}, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return conn{}, fmt.Errorf("descriptor %d is not a Unix socket", f.Fd())
	}
	return conn{u}, nil
}

// within makes what f sends and receives end with ctx.
func (c conn) within(ctx context.Context, f func() error) error {
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

func (c conn) send(m message) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	descriptors := make([]int, len(m.Sockets))
	for i, s := range m.Sockets {
		descriptors[i] = int(s.File.Fd())
	}
	var rights []byte
	if len(descriptors) > 0 {
		rights = unix.UnixRights(descriptors...)
	}
	_, _, err = c.WriteMsgUnix(data, rights, nil)
	return err
}

// receive returns the next message. What it returns an error for has left no
// descriptor open.
func (c conn) receive() (m message, err error) {
	data, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, rightsN, flags, _, err := c.ReadMsgUnix(data, rights)
	if err != nil {
		return message{}, err
	}
	files, err := filesOf(rights[:rightsN])
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	switch {
	case err != nil:
		return message{}, err
	case flags&unix.MSG_TRUNC != 0:
		return message{}, fmt.Errorf("a message is longer than %d bytes", maxMessage)
	case flags&unix.MSG_CTRUNC != 0:
		return message{}, errors.New("descriptors were lost on the way; is the limit of open files (LimitNOFILE) reached?")
	}
	if m, err = parse(data[:n], len(files)); err != nil {
		return message{}, err
	}
	for i := range m.Sockets {
		m.Sockets[i].File = files[i]
	}
	return m, nil
}

func filesOf(rights []byte) ([]*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("descriptors not understood: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		descriptors, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("descriptors not understood: %w", err)
		}
		for _, fd := range descriptors {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

// expect receives a message of the kind. That the other side gives up, or is
// gone, is an error.
func (c conn) expect(want kind) (message, error) {
	m, err := c.receive()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return message{}, errGone
	case err != nil:
		return message{}, err
	case m.Kind == failed:
		return message{}, fmt.Errorf("it gave up: %s", m.Reason)
	case m.Kind != want:
		Close(m.Sockets)
		return message{}, fmt.Errorf("it said %q where %q was expected", m.Kind, want)
	}
	return m, nil
}

// errGone is that the other process has ended, or has closed its end.
var errGone = errors.New("it has ended without a word")

// batches splits sockets into what one message can carry.
func batches(sockets []Socket) [][]Socket {
	var out [][]Socket
	size := 0
	for _, s := range sockets {
		cost := len(s.Kind) + len(s.About) + 32
		last := len(out) - 1
		if last < 0 || len(out[last]) == maxFiles || size+cost > maxBatch {
			out, size, last = append(out, nil), 0, last+1
		}
		out[last] = append(out[last], s)
		size += cost
	}
	return out
}
