package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	defaultTimeout = time.Second
	maxError       = 160 // characters
	// kube-proxy counts the endpoints that it has on its node. More pods than
	// this are on none.
	maxEndpoints = 1<<16 - 1
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// heard is what a probe was told beside whether it succeeded.
type heard struct {
	endpoints bool // how many kube-proxy has on its node: so many
	weight    int
	silence   bool // nothing at all
	confirmed bool // by kube-proxy: its node takes connections
}

// ask makes one probe. Its errors go to the status page and to the log: they
// are short, without control characters, and the same for the same cause.
func (p *Prober) ask(ctx context.Context, probe edge.Probe) (heard, error) {
	timeout := probe.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var told heard
	var err error
	switch probe.Kind {
	case edge.ProbeBackend:
		err = p.check(ctx, probe.Addr, probe)
	case edge.ProbeHealthCheckNodePort:
		told, err = p.askHealthCheckNodePort(ctx, probe)
	case edge.ProbeHealthz:
		told.confirmed, err = p.askHealthz(ctx, probe.Addr)
	default:
		err = fmt.Errorf("no such probe: %q", probe.Kind)
	}
	told.silence = isTimeout(err) || isSilence(err)
	if isTimeout(err) {
		err = fmt.Errorf("no answer within %v", timeout)
		if probe.Kind == edge.ProbeHealthz {
			err = fmt.Errorf("kube-proxy's healthz: %w", err) // the backend itself may well answer
		}
	}
	return told, plain(err)
}

// check makes the HealthCheck of a probe at an address. Its Port is in the
// address already.
func (p *Prober) check(ctx context.Context, addr netip.AddrPort, probe edge.Probe) error {
	check := probe.HealthCheck
	if isConnect(check.Type) {
		return p.connect(ctx, addr)
	}
	return p.talk(ctx, addr, func(conn net.Conn) (err error) {
		if err := introduce(conn, probe.SendProxyProtocol); err != nil {
			return err
		}
		if check.Type == edge.CheckTLS || check.Type == edge.CheckHTTPS {
			if conn, err = handshake(conn, check); err != nil {
				return err
			}
		}
		switch check.Type {
		case edge.CheckTLS:
		case edge.CheckHTTP, edge.CheckHTTPS:
			err = askHTTP(conn, addr, check)
		case edge.CheckExchange:
			err = exchange(conn, check.Send, check.Expect)
		default:
			return fmt.Errorf("no such health check: %q", check.Type)
		}
		part(ctx, conn)
		return err
	})
}

// isConnect says whether all that a check does is to connect.
func isConnect(t edge.CheckType) bool { return t == "" || t == edge.CheckTCP }

// connect connects and closes.
//
// It closes in the ordinary way. A reset (SO_LINGER 0) would spare this
// machine a socket in TIME_WAIT for a minute after each probe, but a server
// that has accepted takes it for a failed client and says so: sshd logs an
// error each interval. The sockets cost little: a dozen per backend at an
// interval of 5 s, a few hundred bytes each, and never the last free port,
// because ports are used up per backend.
func (p *Prober) connect(ctx context.Context, addr netip.AddrPort) error {
	conn, err := p.open(ctx, addr)
	if err != nil {
		return err
	}
	conn.Close() // nothing was sent that could be lost
	return nil
}

// open connects to an address, and not to itself: a connect to a port of this
// machine that nothing listens on succeeds if it is made from that very port,
// which the kernel may choose (simultaneous open, RFC 9293, section 3.5).
func (p *Prober) open(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	conn, err := p.dial(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	if here, ok := conn.LocalAddr().(*net.TCPAddr); ok && here.AddrPort() == addr {
		conn.Close()
		return nil, unix.ECONNREFUSED
	}
	return conn, nil
}

// talk connects and has a conversation, which is over at the latest when ctx
// is: reads and writes then fail as late.
func (p *Prober) talk(ctx context.Context, addr netip.AddrPort, say func(net.Conn) error) error {
	conn, err := p.open(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return say(conn)
}

// askHealthCheckNodePort asks what kube-proxy answers for a Service with
// externalTrafficPolicy: Local: 200 while it sends connections to pods of its
// node, 503 when there are none.
func (p *Prober) askHealthCheckNodePort(ctx context.Context, probe edge.Probe) (told heard, err error) {
	err = p.talk(ctx, probe.Addr, func(conn net.Conn) error {
		status, header, err := get(conn, hostOf(probe.Addr), "/")
		part(ctx, conn)
		if err != nil {
			return fmt.Errorf("healthCheckNodePort: %w", err)
		}
		switch status {
		case http.StatusOK:
			// What is no such number is none: 0.
			told.endpoints = true
			n, err := strconv.ParseUint(header.Get("X-Load-Balancing-Endpoint-Weight"), 10, 64)
			if err == nil && n <= maxEndpoints {
				told.weight = int(n)
			}
			return nil
		case http.StatusServiceUnavailable:
			told.endpoints = true
			return errors.New("no ready pods there (healthCheckNodePort answers 503)")
		default:
			return fmt.Errorf("healthCheckNodePort answers %d", status)
		}
	})
	if err == nil && probe.Through.IsValid() {
		err = p.check(ctx, probe.Through, probe)
	}
	return told, err
}

// askHealthz asks kube-proxy how its node is. It answers 503 when it has not
// written its rules for a while, and when the node is about to be deleted
// (KEP-3836). Confirmed says that it was kube-proxy.
func (p *Prober) askHealthz(ctx context.Context, addr netip.AddrPort) (confirmed bool, err error) {
	err = p.talk(ctx, addr, func(conn net.Conn) error {
		status, _, err := get(conn, hostOf(addr), "/healthz")
		part(ctx, conn)
		switch {
		case err != nil:
			return fmt.Errorf("kube-proxy's healthz: %w", err)
		case status == http.StatusServiceUnavailable:
			return errors.New("its node is leaving, or kube-proxy there is behind (healthz answers 503)")
		case status != http.StatusOK:
			return fmt.Errorf("kube-proxy's healthz answers %d, want 200", status)
		}
		return nil
	})
	if errors.Is(err, unix.ECONNREFUSED) {
		return false, nil // there is no kube-proxy, and the node is alive
	}
	return err == nil, err
}

// isSilence says whether an error means that packets are lost on the way, which
// a router there may have said.
func isSilence(err error) bool {
	return errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}

func isTimeout(err error) bool {
	late, ok := errors.AsType[net.Error](err)
	return ok && late.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// plain strips what the reader knows already (the address), or does not want to
// know (the local port, what a stranger's server says at length).
func plain(err error) error {
	if err == nil {
		return nil
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return errors.New(printable(err.Error(), maxError))
}

// printable is a text in one line of so many characters.
func printable(text string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n > most {
			return b.String() + "…"
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// ofConnection is what is said of a connection that could not be made.
func ofConnection(err error) error {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return errors.New("refused a connection")
	case isTimeout(err):
		return errors.New("did not answer a connection")
	default:
		return fmt.Errorf("did not take a connection: %w", plain(err))
	}
}

// isOwn says whether a probe failed for want of something here: that says
// nothing about the backend, and taking every backend down for it would make an
// outage of a shortage.
func isOwn(err error) bool {
	for _, own := range []syscall.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL, unix.EADDRINUSE} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}
