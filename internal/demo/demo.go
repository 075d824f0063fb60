// Package demo shows the main job on one machine, without root or a cluster:
// three sample backends on loopback, a gatehouse in front of them, and requests
// through it.
package demo

import (
	"context"
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
	"time"

	"e13.dev/gatehouse/internal/daemon"
)

// onceRequests is how many requests `demo --once` sends.
const onceRequests = 300

// The backends stand for nodes that hold one, two and three pods: with these
// weights every pod gets a sixth of the connections.
var weights = []int{1, 2, 3}

// Options say where the demo prints and when it ends.
type Options struct {
	Out     io.Writer
	Once    bool // send a fixed number of requests and return
	Live    bool // Out is a terminal: redraw in place
	Version string
}

// Run shows the demo until ctx ends, or once.
func Run(ctx context.Context, opts Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var addrs []string
	for i := range weights {
		addr, stop, err := startBackend(fmt.Sprintf("backend-%d", i+1))
		if err != nil {
			return fmt.Errorf("demo: start a sample backend: %w", err)
		}
		defer stop()
		addrs = append(addrs, addr)
	}
	dir, err := os.MkdirTemp("", "gatehouse-demo-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer os.RemoveAll(dir)
	front, admin := freePort("8080", opts.Once), freePort("9180", opts.Once)
	file := filepath.Join(dir, "gatehouse.yaml")
	if err := os.WriteFile(file, configFor(front, admin, addrs), 0o600); err != nil {
		return fmt.Errorf("demo: %w", err)
	}

	d := daemon.New(daemon.Options{Files: []string{file}, Version: opts.Version, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	if err := waitReady(ctx, admin, done); err != nil {
		return err
	}
	fmt.Fprintf(opts.Out, "gatehouse listens on %s, in front of three backends with weights 1, 2 and 3\n(nodes with one, two and three pods: each pod gets a sixth).\n\n", front)
	counts := &counter{got: make([]int, len(weights))}
	if opts.Once {
		for range onceRequests {
			if err := counts.request(ctx, front); err != nil {
				return fmt.Errorf("demo: a request through gatehouse failed: %w", err)
			}
		}
		fmt.Fprintln(opts.Out, counts.table())
	} else {
		fmt.Fprintf(opts.Out, "  try it:         curl http://%s/\n  status page:    http://%s/\n  configuration:  %s (edit it, and see the page)\n\nCtrl-C ends it.\n\n", front, admin, file)
		show(ctx, opts, counts, front)
	}
	cancel()
	return <-done
}

func configFor(front, admin string, backends []string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: gatehouse.e13.dev/v1\nfrontends:\n  - name: demo\n    listen: %q\n    health: {interval: 1s, timeout: 500ms}\n    backends:\n", front)
	for i, addr := range backends {
		fmt.Fprintf(&b, "      - {address: %q, weight: %d}\n", addr, weights[i])
	}
	fmt.Fprintf(&b, "admin: {listen: %q}\n", admin)
	return []byte(b.String())
}

// startBackend serves a line of text with the backend's name.
func startBackend(name string) (addr string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s\n", name)
	})}
	go server.Serve(listener) //nolint:errcheck // it ends with the demo
	return listener.Addr().String(), func() { _ = server.Close() }, nil
}

// freePort returns the preferred port on loopback, or another if it is taken
// or if the demo should be in nobody's way.
func freePort(preferred string, other bool) string {
	if !other {
		if l, err := net.Listen("tcp", "127.0.0.1:"+preferred); err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:" + preferred // gatehouse will say what is wrong with it
	}
	defer l.Close()
	return l.Addr().String()
}

func waitReady(ctx context.Context, admin string, done <-chan error) error {
	deadline := time.After(10 * time.Second)
	for {
		if resp, err := http.Get("http://" + admin + "/readyz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-done:
			return fmt.Errorf("demo: gatehouse ended: %w", err)
		case <-deadline:
			return errors.New("demo: gatehouse was not ready after 10 s")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// counter counts which backend answered.
type counter struct {
	mu     sync.Mutex
	got    []int
	failed int
}

func (c *counter) request(ctx context.Context, front string) error {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+front+"/", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err == nil {
		defer resp.Body.Close()
		var n int
		if _, err = fmt.Fscanf(resp.Body, "hello from backend-%d", &n); err == nil && (n < 1 || n > len(c.got)) {
			err = fmt.Errorf("an answer from backend %d", n)
		}
		if err == nil {
			c.mu.Lock()
			c.got[n-1]++
			c.mu.Unlock()
			return nil
		}
	}
	c.mu.Lock()
	c.failed++
	c.mu.Unlock()
	return err
}

func (c *counter) table() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	total, sum := 0, 0
	for i, n := range c.got {
		total += n
		sum += weights[i]
	}
	var b strings.Builder
	for i, n := range c.got {
		share := float64(n) / float64(max(total, 1))
		fmt.Fprintf(&b, "  backend-%d  weight %d  wanted %4.1f %%  got %4.1f %%  %5d  %s\n", i+1, weights[i], 100*float64(weights[i])/float64(sum), 100*share, n, strings.Repeat("█", int(40*share+0.5)))
	}
	fmt.Fprintf(&b, "  %d requests, %d failed", total+c.failed, c.failed)
	return b.String()
}

// show sends 20 requests a second and prints the table each second, in place
// on a terminal.
func show(ctx context.Context, opts Options, counts *counter, front string) {
	request := time.NewTicker(50 * time.Millisecond)
	defer request.Stop()
	draw := time.NewTicker(time.Second)
	defer draw.Stop()
	lines := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-request.C:
			_ = counts.request(ctx, front) // counted, and shown as failed
		case <-draw.C:
			table := counts.table()
			if opts.Live && lines > 0 {
				fmt.Fprintf(opts.Out, "\x1b[%dA\x1b[J", lines)
			}
			fmt.Fprintln(opts.Out, table)
			lines = strings.Count(table, "\n") + 1
		}
	}
}
