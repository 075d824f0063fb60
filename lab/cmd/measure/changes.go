package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"e13.dev/gatehouse/lab/site"
)

// changes takes an endpoint out of a Service and puts it back, over and over,
// each time of another Service, and measures until the kernel's table has that:
// from before the API server is told, to when the kernel tells of the element.
func (m measurement) changes(services, rounds int) error {
	const burst = 10
	if !m.kernel {
		if _, err := m.lab.Kubectl(m.ctx, append([]string{"annotate", "--all", "services", "--overwrite"}, ofKernel...)...); err != nil {
			return err
		}
	}
	if err := m.stopProxies(); err != nil {
		return err
	}
	told, err := m.watchTable()
	if err != nil {
		return err
	}
	defer told.close()
	if err := told.quiet(m.ctx); err != nil { // all of them are in the kernel
		return err
	}
	_, before, err := m.gatehouse()
	if err != nil {
		return err
	}
	var took []time.Duration
	slices := m.kube.DiscoveryV1().EndpointSlices("default")
	for i := range rounds {
		slice, err := slices.Get(m.ctx, fmt.Sprintf("many-%04d", (i/2*37)%services), metav1.GetOptions{})
		if err != nil {
			return err
		}
		ready := slice.Endpoints[0].Conditions.Ready
		*ready = !*ready
		start := time.Now()
		if _, err := slices.Update(m.ctx, slice, metav1.UpdateOptions{}); err != nil {
			return err
		}
		at, err := told.next(m.ctx)
		if err != nil {
			return fmt.Errorf("change %d: %w", i, err)
		}
		took = append(took, at.Sub(start))
		if err := told.quiet(m.ctx); err != nil {
			return err
		}
		if i%burst == 0 {
			fmt.Fprintf(os.Stderr, "\r%d/%d changes ", i+1, rounds)
		}
	}
	fmt.Fprintln(os.Stderr)
	_, after, err := m.gatehouse()
	if err != nil {
		return err
	}
	fmt.Printf("%d Services, %d endpoints, data plane nat: an endpoint changes → the kernel has it: median %s, p99 %s, most %s of %d; CPU of gatehouse %s each, without nft\n",
		services, 10*services, quantile(took, 50), quantile(took, 99), quantile(took, 100), rounds, ((after - before) / time.Duration(rounds)).Round(time.Millisecond))
	return nil
}

// stopProxies ends the kube-proxies, which would be on other machines, and here
// take the processors at each change.
func (m measurement) stopProxies() error {
	for _, w := range site.Workers {
		if err := m.lab.Stop(m.ctx, "kube-proxy-"+w); err != nil {
			return err
		}
	}
	return nil
}

// tableEvents are the kernel's notifications of changes in the edge's rules.
type tableEvents struct{ socket *os.File }

func (m measurement) watchTable() (t tableEvents, err error) {
	return t, m.lab.Do("edge", func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("watch the table: %w", err)
		}
		t.socket = os.NewFile(uintptr(fd), "netlink")
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
}

func (t tableEvents) close() { _ = t.socket.Close() }

// next waits for a change of a table named gatehouse.
func (t tableEvents) next(ctx context.Context) (time.Time, error) {
	deadline := time.Now().Add(30 * time.Second)
	buffer := make([]byte, 1<<20)
	for ctx.Err() == nil {
		if err := t.socket.SetReadDeadline(deadline); err != nil {
			return time.Time{}, err
		}
		n, err := t.socket.Read(buffer)
		at := time.Now()
		if errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("nothing has changed in the kernel: %w", err)
		}
		if bytes.Contains(buffer[:n], []byte("gatehouse\x00")) {
			return at, nil
		}
	}
	return time.Time{}, ctx.Err()
}

// quiet waits until the table has not changed for some time.
func (t tableEvents) quiet(ctx context.Context) error {
	buffer := make([]byte, 1<<20)
	for ctx.Err() == nil {
		if err := t.socket.SetReadDeadline(time.Now().Add(quietTime)); err != nil {
			return err
		}
		switch _, err := t.socket.Read(buffer); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			return err
		}
	}
	return ctx.Err()
}
