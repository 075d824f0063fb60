package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/internal/edge"
)

const (
	defaultTimeout = time.Second
	// kube-proxy answers with some 300 bytes.
	maxAnswer = 8 << 10
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// ask makes one probe. Its errors go to the status page: they are short, and
// the same for the same cause.
func (p *Prober) ask(ctx context.Context, probe edge.Probe) error {
	timeout := probe.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var err error
	switch probe.Kind {
	case edge.ProbeBackend:
		err = p.askTCP(ctx, probe.Addr)
	case edge.ProbeHealthCheckNodePort:
		err = p.askHealthCheckNodePort(ctx, probe)
	default:
		return fmt.Errorf("no such probe: %q", probe.Kind)
	}
	var late net.Error
	if err != nil && ctx.Err() == context.DeadlineExceeded || errors.As(err, &late) && late.Timeout() {
		return fmt.Errorf("no answer within %v", timeout)
	}
	return plain(err)
}

// askTCP connects and closes.
//
// It closes in the ordinary way. A reset (SO_LINGER 0) would spare this
// machine a socket in TIME_WAIT for a minute after each probe, but a server
// that has accepted takes it for a failed client and says so: sshd logs an
// error each interval. The sockets cost little: a dozen per backend at an
// interval of 5 s, a few hundred bytes each, and never the last free port,
// because ports are used up per backend.
func (p *Prober) askTCP(ctx context.Context, addr netip.AddrPort) error {
	conn, err := p.dial(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	conn.Close() // nothing was sent that could be lost
	return nil
}

// askHealthCheckNodePort asks what kube-proxy answers for a Service with
// externalTrafficPolicy: Local: 200 while it sends connections to pods of its
// node, 503 when there are none.
func (p *Prober) askHealthCheckNodePort(ctx context.Context, probe edge.Probe) error {
	conn, err := p.dial(ctx, "tcp", probe.Addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	// Without net/http's Transport: it keeps goroutines and a pool for what is
	// one question, and logs by itself what servers of other protocols say.
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nUser-Agent: gatehouse\r\nConnection: close\r\n\r\n", probe.Addr); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), nil)
	if err != nil {
		return fmt.Errorf("healthCheckNodePort: %w", err)
	}
	defer resp.Body.Close()
	// The status says it all, but to close with bytes unread is a reset.
	_, _ = io.Copy(io.Discard, resp.Body)
	switch resp.StatusCode {
	case http.StatusOK:
		if probe.Through.IsValid() {
			return p.askTCP(ctx, probe.Through)
		}
		return nil
	case http.StatusServiceUnavailable:
		return errors.New("no ready pods there (healthCheckNodePort answers 503)")
	default:
		return fmt.Errorf("healthCheckNodePort answers %d", resp.StatusCode)
	}
}

// plain strips what the reader knows already (the address), or does not want to
// know (the local port).
func plain(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// isOwn says whether a probe failed for want of something here: that says
// nothing about the backend, and taking every backend down for it would make an
// outage of a shortage.
func isOwn(err error) bool {
	for _, own := range []syscall.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}
