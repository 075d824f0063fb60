// Command fairness brings up a lab with one pod on w1, two on w2 and three on w3, sends new connections to them over
// several ways, and says which share each pod got and whom it took for the client: a table and a picture for
// docs/fairness.md. The kube-proxies on the nodes are real ones.
//
//	fairness --svg docs/fairness.svg --write docs/fairness.md
//	fairness --quick --only equal,proxy
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"e13.dev/gatehouse/lab/internal/bench/report"
	"e13.dev/gatehouse/lab/internal/fairness"
	"e13.dev/gatehouse/lab/site"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fairness:", err)
		os.Exit(1)
	}
}

// way is how connections get to the pods.
type way struct {
	name, label string
	annotations string // of the Service; empty: a frontend of the configuration, with its node ports
	policy      string
	equal       bool // shares are to be equal: with another result, the command fails
}

var ways = []way{
	{name: "equal", label: "each node the same, policy Local", policy: "Local"},
	{"nat-local", "gatehouse, nat, node ports, policy Local", "data-plane: nat, target: nodePort", "Local", true},
	{"nat-cluster", "gatehouse, nat, node ports, policy Cluster", "data-plane: nat, target: nodePort", "Cluster", true},
	{"nat-pod", "gatehouse, nat, straight to the pods", "data-plane: nat, target: pod", "Local", true},
	{"proxy", "gatehouse, proxy, node ports, policy Local", "data-plane: proxy, target: nodePort", "Local", true},
}

// protocol is what is spoken, and with which pods.
type protocol struct {
	name, image, probe string
	ask                func(from, to string, number int) (pod, client string, err error)
}

var protocols = []protocol{
	{"TCP", "web", "httpGet: {path: /, port: 8080}", overTCP},
	{"UDP", "echo", "tcpSocket: {port: 8080}", overUDP},
}

const (
	firstPort  = 8100  // of the ways, TCP and UDP of one at the same
	nodePorts  = 30100 // of the way without gatehouse's Service: TCP, and UDP after it
	namespace  = "fairness"
	clientHost = "home1"
)

// clients are the addresses that connections come from, in turn: the relay has 2,000 UDP sessions of one at a time, and
// these outlive their question. The first one is the host's anyway.
var clients = []string{"10.11.12.101", "10.11.12.111", "10.11.12.112", "10.11.12.113"}

// nodes have as many pods as their number.
var nodes = site.Workers

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("fairness", flag.ContinueOnError)
	bin := f.String("bin", "bin", "folder with gatehouse, lab and labkube")
	n := f.Int("connections", 6000, "over each way and protocol")
	only := f.String("only", "", "ways: "+strings.Join(names(), ", "))
	mode := f.String("proxy-mode", "nftables", "of kube-proxy")
	svg := f.String("svg", "", "also draw the picture into this file")
	write := f.String("write", "", "also write the table between the markers of this file, with a link to the picture")
	quick := f.Bool("quick", false, "600 connections: is everything in order?")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected: %s", f.Arg(0))
	}
	if *write != "" && *svg == "" {
		return errors.New("--write needs --svg, to link to")
	}
	if *quick {
		*n = 600
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	m := measurement{ctx: ctx, ways: chosen, connections: *n}
	spreads, err := m.measure(*bin, *mode)
	if err != nil {
		return err
	}
	text := m.heading(*mode) + "\n" + fairness.Table(spreads)
	fmt.Print(text)
	if *svg != "" {
		if err := os.WriteFile(*svg, []byte(fairness.Picture(spreads)), 0o644); err != nil {
			return err
		}
	}
	if *write != "" {
		link, err := filepath.Rel(filepath.Dir(*write), *svg)
		if err != nil {
			return err
		}
		page, err := os.ReadFile(*write)
		if err != nil {
			return err
		}
		// What the picture shows is in the table that follows it.
		changed, err := report.Between(string(page), "fairness", fmt.Sprintf("![The share of each pod over each of the ways in the table below](%s)\n\n%s", link, text))
		if err != nil {
			return fmt.Errorf("%s: %w", *write, err)
		}
		if err := os.WriteFile(*write, []byte(changed), 0o644); err != nil {
			return err
		}
	}
	return m.verdict(spreads)
}

func names() []string {
	var list []string
	for _, w := range ways {
		list = append(list, w.name)
	}
	return list
}

func choose(only string) ([]way, error) {
	if only == "" {
		return ways, nil
	}
	var chosen []way
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(names(), name)
		if i < 0 {
			return nil, fmt.Errorf("--only %s: no such way; there are %s", name, strings.Join(names(), ", "))
		}
		chosen = append(chosen, ways[i])
	}
	return chosen, nil
}

type measurement struct {
	ctx         context.Context
	lab         *site.Site
	ways        []way
	connections int
}

// heading says what was done.
func (m *measurement) heading(mode string) string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it has no way to fail
	_, bound := fairness.ChiSquare(make([]int, 6))
	return fmt.Sprintf(`%s, Linux %s, %d cores, kube-proxy in %s mode: %s new connections over each way, by TCP and by UDP.
Chi-square is at most %.1f in all but one of 10,000 cases if the pods have equal shares; in bold, they have not.
`, time.Now().Format(time.DateOnly), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), mode, thousands(m.connections), bound)
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// verdict fails if the shares are not what they are to be.
func (m *measurement) verdict(spreads []fairness.Spread) error {
	var wrong []string
	for _, s := range spreads {
		i := slices.IndexFunc(m.ways, func(w way) bool { return w.label == s.Way })
		if s.Fair() != m.ways[i].equal {
			wrong = append(wrong, fmt.Sprintf("%s, %s: equal shares: %t", s.Way, s.Protocol, s.Fair()))
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

func (m *measurement) measure(bin, mode string) (spreads []fairness.Spread, err error) {
	dir, err := os.MkdirTemp("", "gatehouse-fairness-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	config := filepath.Join(dir, "gatehouse.yaml")
	if err := os.WriteFile(config, []byte(configuration(m.ways)), 0o600); err != nil {
		return nil, err
	}
	m.lab, err = site.Up(m.ctx, site.Options{
		Name: fmt.Sprintf("f%d", os.Getpid()), ProxyMode: mode, Lab: filepath.Join(bin, "lab"), Labkube: filepath.Join(bin, "labkube"),
		Gatehouse: filepath.Join(bin, "gatehouse"), Config: config, Manifests: []string{"deploy/rbac.yaml"}, Progress: os.Stderr,
	})
	if m.lab != nil {
		defer func() { err = errors.Join(err, m.lab.Down(context.WithoutCancel(m.ctx))) }()
	}
	if err != nil {
		return nil, err
	}
	for _, a := range clients[1:] {
		if _, err := m.lab.Exec(m.ctx, clientHost, "ip", "addr", "add", a+"/24", "dev", "eth0"); err != nil {
			return nil, err
		}
	}
	if err := m.lab.Apply(m.ctx, manifests(m.ways)); err != nil {
		return nil, err
	}
	for _, p := range protocols {
		for _, node := range nodes {
			if err := m.lab.AwaitDeployment(m.ctx, namespace, p.image+"-"+node, time.Minute); err != nil {
				return nil, err
			}
		}
	}
	for _, w := range m.ways {
		for _, p := range protocols {
			said, err := m.await(w, p)
			if err != nil {
				return nil, err
			}
			s, err := m.spread(w, p)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", w.label, p.name, err)
			}
			if saw := s.Clients[own] == m.connections; saw != said.own {
				return nil, fmt.Errorf("%s, %s: the pods see the client's own address: %t, but gatehouse says %q", w.label, p.name, saw, said.text)
			}
			s.Said = said.text
			spreads = append(spreads, s)
			fmt.Fprint(os.Stderr, fairness.Table([]fairness.Spread{s}))
		}
	}
	return spreads, nil
}

func port(w way) int { return firstPort + slices.Index(names(), w.name) }

// configuration has a frontend that gives each node the same, as who knows nothing of pods does. It is of the kernel's
// data plane, which leaves the clients' addresses as they are.
func configuration(chosen []way) string {
	text := `apiVersion: gatehouse.e13.dev/v1
zones:
  home: {interfaces: [eth1]}
kubernetes: {}
admin: {listen: "127.0.0.1:9180"}
`
	for _, w := range chosen {
		if w.annotations != "" {
			continue
		}
		text += "frontends:\n"
		for i, p := range protocols {
			text += fmt.Sprintf("  - name: %s-%s\n    zones: [home]\n    port: %d\n    protocol: %s\n    dataPlane: nat\n    backends:\n", w.name, p.image, port(w), p.name)
			for n := range nodes {
				text += fmt.Sprintf("      - address: 10.0.0.10%d:%d\n", n+1, nodePorts+i)
			}
		}
	}
	return text
}

func manifests(chosen []way) string {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + namespace + "}\n"
	for i, p := range protocols {
		for n, node := range nodes {
			text += fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s-%[2]s, namespace: %[3]s}
spec:
  replicas: %[4]d
  selector: {matchLabels: {app: %[1]s, node: %[2]s}}
  template:
    metadata: {labels: {app: %[1]s, node: %[2]s}}
    spec:
      nodeName: %[2]s
      containers:
        - name: %[1]s
          image: lab/%[1]s
          ports: [{containerPort: 8080}]
          readinessProbe: {%[5]s, periodSeconds: 1}
`, p.image, node, namespace, n+1, p.probe)
		}
		for _, w := range chosen {
			text += fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata:\n  name: %s-%s\n  namespace: %s\n", w.name, p.image, namespace)
			if w.annotations == "" {
				text += fmt.Sprintf("spec:\n  type: NodePort\n  externalTrafficPolicy: %s\n  selector: {app: %s}\n  ports: [{protocol: %s, port: 80, targetPort: 8080, nodePort: %d}]\n", w.policy, p.image, p.name, nodePorts+i)
				continue
			}
			text += "  annotations:\n    gatehouse.e13.dev/zones: home\n"
			for a := range strings.SplitSeq(w.annotations, ", ") {
				text += "    gatehouse.e13.dev/" + a + "\n"
			}
			text += fmt.Sprintf("spec:\n  type: LoadBalancer\n  loadBalancerClass: gatehouse.e13.dev/edge\n  externalTrafficPolicy: %s\n  selector: {app: %s}\n  ports: [{protocol: %s, port: %d, targetPort: 8080}]\n", w.policy, p.image, p.name, port(w))
		}
	}
	return text
}

// promise is what gatehouse says beforehand of whom the pods will take for the client.
type promise struct {
	text string
	own  bool // the client's own address
}

// await waits until gatehouse has all nodes or pods of a way up: before, some would get less than their share.
func (m *measurement) await(w way, p protocol) (promise, error) {
	name := w.name + "-" + p.image
	const limit = 30 * time.Second
	deadline := time.Now().Add(limit)
	for {
		said, err := m.up(name)
		if err == nil {
			return said, nil
		}
		if time.Now().After(deadline) {
			return said, fmt.Errorf("%s: not all backends are up after %s: %w", name, limit, err)
		}
		select {
		case <-m.ctx.Done():
			return said, m.ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// up tells what a frontend or Service still lacks.
func (m *measurement) up(name string) (promise, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.lab.Dialer("edge")}}
	resp, err := client.Get("http://127.0.0.1:9180/status.json")
	if err != nil {
		return promise{}, err
	}
	defer resp.Body.Close()
	var status struct {
		Exposures []struct {
			Name     string `json:"name"`
			Service  string `json:"service"`
			Open     bool   `json:"open"`
			Reason   string `json:"reason"`
			Backends []struct {
				Addr  string `json:"addr"`
				State string `json:"state"`
				Error string `json:"error"`
			} `json:"backends"`
			Shares     []json.RawMessage `json:"shares"`
			Client     string            `json:"clientAddress"`
			ClientSeen bool              `json:"clientAddressSeen"`
		} `json:"exposures"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return promise{}, err
	}
	for _, e := range status.Exposures {
		if e.Name != name && e.Service != namespace+"/"+name {
			continue
		}
		if !e.Open {
			return promise{}, fmt.Errorf("not open: %s", e.Reason)
		}
		if len(e.Backends) < len(nodes) {
			return promise{}, fmt.Errorf("%d backends", len(e.Backends))
		}
		if e.Service != "" && len(e.Shares) != pods() {
			return promise{}, fmt.Errorf("%d pods have a share", len(e.Shares))
		}
		for _, b := range e.Backends {
			if b.State != "up" {
				return promise{}, fmt.Errorf("backend %s is %s: %s", b.Addr, b.State, b.Error)
			}
		}
		return promise{text: e.Client, own: e.ClientSeen}, nil
	}
	return promise{}, errors.New("gatehouse does not know it")
}

// pods is how many there are of each kind: 1, 2, 3.
func pods() int { return len(nodes) * (len(nodes) + 1) / 2 }

// spread makes the connections, one after the other.
func (m *measurement) spread(w way, p protocol) (fairness.Spread, error) {
	address := fmt.Sprintf("%s:%d", site.EdgeHome, port(w))
	s := fairness.Spread{Way: w.label, Protocol: p.name, Clients: map[string]int{}}
	counts := map[string]int{}
	err := m.lab.Do(clientHost, func() error {
		for i := range m.connections {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			from := clients[i%len(clients)]
			pod, seen, err := p.ask(from, address, i)
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			counts[pod]++
			s.Clients[whose(seen, from)]++
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	records, err := m.lab.PodRecords()
	if err != nil {
		return s, err
	}
	for _, node := range nodes {
		n := fairness.Node{Name: node}
		for _, r := range records {
			if r.Namespace == namespace && strings.HasPrefix(r.Name, p.image+"-"+node+"-") {
				n.Pods = append(n.Pods, counts[r.Name])
				delete(counts, r.Name)
			}
		}
		s.Nodes = append(s.Nodes, n)
	}
	if len(counts) > 0 {
		return s, fmt.Errorf("pods that nobody knows have answered: %v", counts)
	}
	return s, nil
}

const own = "the client's own address"

// whose says whom the address is of that a pod saw, of a connection from the client's.
func whose(seen, client string) string {
	host, _, _ := strings.Cut(seen, ":")
	switch {
	case host == client:
		return own
	case host == site.EdgeCluster:
		return "gatehouse's address"
	case strings.HasPrefix(host, "10.0.0.10") || strings.HasPrefix(host, "10.244."):
		return "a node's address"
	}
	return host
}
