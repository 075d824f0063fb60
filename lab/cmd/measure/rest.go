package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// requests are how many gatehouse has sent to the API server so far, by verb and
// resource.
func (m measurement) requests() (map[string]float64, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.lab.Dialer("edge")}}
	resp, err := client.Get("http://127.0.0.1:9180/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return countRequests(resp.Body)
}

// countRequests reads gatehouse_kubernetes_requests_total from what /metrics says.
func countRequests(metrics io.Reader) (map[string]float64, error) {
	sent := map[string]float64{}
	lines := bufio.NewScanner(metrics)
	for lines.Scan() {
		rest, ours := strings.CutPrefix(lines.Text(), "gatehouse_kubernetes_requests_total{")
		labels, value, ok := strings.Cut(rest, "} ")
		if !ours || !ok {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, err
		}
		label := func(name string) string {
			_, after, _ := strings.Cut(labels, name+`="`)
			text, _, _ := strings.Cut(after, `"`)
			return text
		}
		sent[label("verb")+" "+label("resource")] += n
	}
	return sent, lines.Err()
}

// atRest counts what gatehouse asks of the API server while nothing changes.
func (m measurement) atRest(services int, during time.Duration) error {
	before, err := m.requests()
	if err != nil {
		return err
	}
	if len(before) == 0 {
		return fmt.Errorf("gatehouse counts no requests")
	}
	fmt.Fprintf(os.Stderr, "counting requests for %s\n", during)
	time.Sleep(during)
	after, err := m.requests()
	if err != nil {
		return err
	}
	var said []string
	var sum float64
	for _, what := range slices.Sorted(maps.Keys(after)) {
		n := after[what] - before[what]
		if n == 0 {
			continue
		}
		said = append(said, fmt.Sprintf("%s %.0f", what, n))
		if !strings.HasPrefix(strings.ToLower(what), "watch") {
			sum += n
		}
	}
	if len(said) == 0 {
		said = []string{"none"}
	}
	fmt.Printf("%d Services at rest for %s: requests to the API server: %s; without watches %.3f per Service and hour\n",
		services, during, strings.Join(said, ", "), sum/float64(services)/during.Hours())
	return nil
}

// churn changes endpoints at a steady rate, each time of another Service, and
// says what that costs gatehouse.
func (m measurement) churn(services, rate int, during time.Duration) error {
	_, before, err := m.gatehouse()
	if err != nil {
		return err
	}
	slices := m.kube.DiscoveryV1().EndpointSlices("default")
	failed := make(chan error, 1)
	limit := make(chan struct{}, 16)
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	start := time.Now()
	n := 0
	for ; time.Since(start) < during; n++ {
		<-tick.C
		limit <- struct{}{}
		name := fmt.Sprintf("many-%04d", n*37%services)
		patch := fmt.Sprintf(`[{"op":"replace","path":"/endpoints/0/conditions/ready","value":%t}]`, n/services%2 == 1)
		go func() {
			defer func() { <-limit }()
			if _, err := slices.Patch(m.ctx, name, "application/json-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}()
	}
	took := time.Since(start)
	select {
	case err := <-failed:
		return err
	default:
	}
	rss, after, err := m.gatehouse()
	if err != nil {
		return err
	}
	fmt.Printf("%d Services, %d endpoints, %.0f endpoint changes a second for %s: RSS %.1f MB, CPU %.1f %% of a core (health checks included)\n",
		services, 10*services, float64(n)/took.Seconds(), took.Round(time.Second), rss, 100*(after-before).Seconds()/took.Seconds())
	return nil
}
