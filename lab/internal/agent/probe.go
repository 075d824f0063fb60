package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"e13.dev/gatehouse/lab/site"
)

type probeResult struct {
	name  string
	pid   int
	ready bool
}

// eager is how often a container is asked until it has been ready once. A kubelet would wait for the period; the
// difference is only that tests wait less.
const eager = 50 * time.Millisecond

// probe decides about readiness from now on: at once without a readiness probe, else as that says.
func (p *pod) probe(ctx context.Context, c *container) {
	spec := c.spec.ReadinessProbe
	if spec == nil {
		c.ready = true
		return
	}
	c.ready = false
	ctx, c.stop = context.WithCancel(ctx)
	ask := p.question(c, spec)
	name, pid := c.spec.Name, c.rec.PID
	go func() {
		period := time.Duration(max(1, orDefault(spec.PeriodSeconds, 10))) * time.Second
		timeout := time.Duration(max(1, spec.TimeoutSeconds)) * time.Second
		timer := time.NewTimer(time.Duration(spec.InitialDelaySeconds) * time.Second)
		defer timer.Stop()
		ready, seenReady, streak := false, false, int32(0)
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			askCtx, cancel := context.WithTimeout(ctx, timeout)
			answer := ask(askCtx) == nil
			cancel()
			threshold := orDefault(spec.SuccessThreshold, 1)
			if ready {
				threshold = orDefault(spec.FailureThreshold, 3)
			}
			if answer == ready {
				streak = 0
			} else if streak++; streak >= threshold {
				ready, streak, seenReady = answer, 0, true
				select {
				case p.probes <- probeResult{name, pid, ready}:
				case <-ctx.Done():
					return
				}
			}
			wait := period
			if !seenReady {
				wait = min(period, eager)
			}
			timer.Reset(wait)
		}
	}()
}

func orDefault(v, def int32) int32 {
	if v == 0 {
		return def
	}
	return v
}

func (p *pod) probed(r probeResult) {
	for _, c := range p.containers {
		if c.spec.Name == r.name && c.rec.PID == r.pid && c.running {
			c.ready = r.ready
		}
	}
}

// question returns what to ask, as a function that returns nil for yes.
func (p *pod) question(c *container, spec *corev1.Probe) func(context.Context) error {
	switch {
	case spec.HTTPGet != nil:
		return p.httpQuestion(c, spec.HTTPGet)
	case spec.TCPSocket != nil:
		address := net.JoinHostPort(orString(spec.TCPSocket.Host, p.rec.IP), portOf(c.spec, spec.TCPSocket.Port))
		return func(ctx context.Context) error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			return conn.Close()
		}
	case spec.Exec != nil:
		netns := p.rec.Netns
		argv := spec.Exec.Command
		return func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			if netns == "" {
				return cmd.Run()
			}
			if err := site.InNetns(site.NetnsPath(netns), cmd.Start); err != nil {
				return err
			}
			return cmd.Wait()
		}
	}
	return func(context.Context) error { return fmt.Errorf("the lab does not know this kind of probe") }
}

func (p *pod) httpQuestion(c *container, get *corev1.HTTPGetAction) func(context.Context) error {
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a kubelet does not verify either
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	scheme := strings.ToLower(orString(string(get.Scheme), "http"))
	url := fmt.Sprintf("%s://%s/%s", scheme,
		net.JoinHostPort(orString(get.Host, p.rec.IP), portOf(c.spec, get.Port)), strings.TrimPrefix(get.Path, "/"))
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "kube-probe/1.36")
		for _, h := range get.HTTPHeaders {
			if http.CanonicalHeaderKey(h.Name) == "Host" {
				req.Host = h.Value
				continue
			}
			req.Header.Add(h.Name, h.Value)
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return fmt.Errorf("%s answers %d", url, resp.StatusCode)
		}
		return nil
	}
}

func orString(v, def string) string {
	if v == "" {
		return def
	}
	return v
}

// portOf resolves a port's name.
func portOf(spec corev1.Container, port intstr.IntOrString) string {
	if port.Type == intstr.Int {
		return strconv.Itoa(port.IntValue())
	}
	for _, p := range spec.Ports {
		if p.Name == port.StrVal {
			return strconv.Itoa(int(p.ContainerPort))
		}
	}
	return port.StrVal
}
