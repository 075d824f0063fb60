package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"e13.dev/gatehouse/lab/internal/bench/load"
	"e13.dev/gatehouse/lab/internal/bench/report"
)

// contender is somebody who takes the client's traffic to the backends.
type contender struct {
	report.Contender
	udp   bool
	names bool   // it can choose the backend by TLS server name
	greed uint64 // descriptors that it needs for a connection; 0: two
	// columns are those that it runs in; nil: all that it can.
	columns []string
	// front says that clients go to the edge's addresses, though no program listens there.
	front bool
	// rules returns nftables for the edge; nil: none.
	rules func(port int) string
	// argv returns the program for a port, whose files go into dir; nil: none is needed.
	argv func(dir string, port int) ([]string, error)
}

// idleConns is how many idle connections it can hold within the limit of open files, at most n.
func (c contender) idleConns(n int) int {
	return min(n, int((descriptors-200)/max(c.greed, 2)))
}

func tcpServers(format string, port int) string {
	var b strings.Builder
	for i, a := range backends(port) {
		fmt.Fprintf(&b, format, i, a)
	}
	return b.String()
}

func write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// find is exec.LookPath that also looks where Debian keeps servers.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

func version(prefix string, argv ...string) string {
	out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput() // what cannot say its version says nothing
	for line := range strings.Lines(string(out)) {
		if _, v, ok := strings.Cut(line, prefix); ok {
			if fields := strings.Fields(v); len(fields) > 0 {
				return fields[0]
			}
		}
	}
	return ""
}

func routed() contender {
	return contender{Contender: report.Contender{Name: report.Routed, Label: "routed"}, udp: true}
}

// haproxy is told to splice always and has large pipes where it is about bulk data: with "option splice-auto" version
// 2.6 copies here, and moves a quarter of it. That is haproxy-auto, for who wants to see it.
func haproxy(name, label, bulk string) (contender, error) {
	bin, err := find("haproxy")
	if err != nil {
		return contender{}, err
	}
	return contender{
		Contender: report.Contender{Name: name, Label: label, Version: version("HAProxy version ", bin, "-v")},
		names:     true,
		argv: func(dir string, port int) ([]string, error) {
			splice, maxconn, pipes := "", descriptors/2-500, ""
			if port == load.SourcePort || port == load.SinkPort {
				// Pipes count against the limit of open files too.
				splice, maxconn, pipes = bulk, 1000, "tune.pipesize 1048576"
			}
			rules, servers := "  default_backend back\n", "backend back\n  balance roundrobin\n"+tcpServers("  server s%d %s\n", port)
			if port == load.NamePort {
				rules, servers = haproxyNames(port)
			}
			file, err := write(dir, "haproxy.cfg", fmt.Sprintf(`
global
  nbthread %d
  maxconn %d
  %s
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  %s
frontend front
  bind :%d backlog 65535 shards by-thread
%s%s`, runtime.NumCPU(), maxconn, pipes, splice, port, rules, servers))
			return []string{bin, "-db", "-f", file}, err
		},
	}, nil
}

func haproxyNames(port int) (rules, servers string) {
	rules = "  tcp-request inspect-delay 5s\n  tcp-request content accept if { req.ssl_hello_type 1 }\n"
	for i, b := range backends(port) {
		rules += fmt.Sprintf("  use_backend b%d if { req.ssl_sni -i %s }\n", i, names[i])
		servers += fmt.Sprintf("backend b%d\n  server s %s\n", i, b)
	}
	return rules, servers
}

func nginx() (contender, error) {
	bin, err := find("nginx")
	if err != nil {
		return contender{}, err
	}
	const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(module); err != nil {
		return contender{}, err
	}
	return contender{
		Contender: report.Contender{Name: report.Nginx, Label: "nginx", Version: version("nginx/", bin, "-v")},
		udp:       true,
		names:     true,
		argv: func(dir string, port int) ([]string, error) {
			listen, more := fmt.Sprintf("%d reuseport backlog=65535", port), "tcp_nodelay on;"
			switch port {
			case load.SourcePort, load.SinkPort:
				more += " proxy_buffer_size 256k;"
			case load.UDPPort:
				listen, more = fmt.Sprintf("%d udp reuseport rcvbuf=4m sndbuf=4m", port), ""
			}
			pass, upstreams := "back", "  upstream back {\n"+tcpServers("    server %[2]s;\n", port)+"  }\n"
			if port == load.NamePort {
				pass, upstreams = nginxNames(port)
				more += " ssl_preread on;"
			}
			file, err := write(dir, "nginx.conf", fmt.Sprintf(`
load_module %s;
daemon off;
user root;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr error;
events { worker_connections %d; }
stream {
  access_log off;
%s  server {
    listen %s;
    proxy_pass %s;
    proxy_connect_timeout 5s;
    proxy_timeout 1h;
    %s
  }
}
`, module, runtime.NumCPU(), dir, descriptors, upstreams, listen, pass, more))
			return []string{bin, "-e", "stderr", "-p", dir, "-c", file}, err
		},
	}, nil
}

func nginxNames(port int) (pass, upstreams string) {
	list := ""
	for i, b := range backends(port) {
		list += fmt.Sprintf("    %s b%d;\n", names[i], i)
		upstreams += fmt.Sprintf("  upstream b%d { server %s; }\n", i, b)
	}
	return "$chosen", upstreams + "  map $ssl_preread_server_name $chosen {\n" + list + "  }\n"
}

func ioCopy() (contender, error) {
	self, err := os.Executable()
	return contender{
		Contender: report.Contender{Name: report.IOCopy, Label: "Go, io.Copy", Version: strings.TrimPrefix(runtime.Version(), "go")},
		udp:       true,
		greed:     6, // with the two pipes of splice
		argv: func(_ string, port int) ([]string, error) {
			var list []string
			for _, b := range backends(port) {
				list = append(list, b.String())
			}
			return []string{self, "iocopy", fmt.Sprint(port), strings.Join(list, ",")}, nil
		},
	}, err
}

// gatehouse is one build of it. What its configuration does not know yet is left out of it: builds from before there
// was a field can be compared with later ones.
func gatehouse(name, bin string) (contender, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return contender{}, err
	}
	if _, err := os.Stat(bin); err != nil {
		return contender{}, fmt.Errorf("%w (make build makes it)", err)
	}
	dir, err := os.MkdirTemp("", "gatehouse-bench-")
	if err != nil {
		return contender{}, err
	}
	defer os.RemoveAll(dir)
	var fields []string
	accepts := func(port int, fields []string) bool {
		file, err := write(dir, "check.yaml", gatehouseConfig(port, fields))
		return err == nil && exec.Command(bin, "check", "-c", file).Run() == nil
	}
	if !accepts(load.EchoPort, nil) {
		return contender{}, fmt.Errorf("%s check does not accept the benchmark's configuration", bin)
	}
	for _, f := range []string{"maxConnections: 0", "maxConnectionsPerClient: 0"} {
		if accepts(load.EchoPort, append(slices.Clone(fields), f)) {
			fields = append(fields, f)
		}
	}
	named := accepts(load.NamePort, fields)
	if !named {
		progress("%s knows no hostnames: it is left out where the backend is chosen by server name", name)
	}
	return contender{
		Contender: report.Contender{Name: name, Label: name, Version: version("gatehouse version ", bin, "--version"), Subject: true},
		udp:       accepts(load.UDPPort, fields),
		names:     named,
		argv: func(dir string, port int) ([]string, error) {
			file, err := write(dir, "gatehouse.yaml", gatehouseConfig(port, fields))
			return []string{bin, "run", "-c", file}, err
		},
	}, nil
}

func gatehouseConfig(port int, fields []string) string {
	more := ""
	if port == load.UDPPort {
		more = "    protocol: UDP\n"
	}
	for _, f := range fields {
		more += "    " + f + "\n"
	}
	text := `apiVersion: gatehouse.e13.dev/v1
zones:
  lan: {interfaces: [lan]}
frontends:
`
	frontend := func(more, backends string) {
		text += fmt.Sprintf("  - zones: [lan]\n    port: %d\n    health: {interval: 0}\n%s    backends:\n%s", port, more, backends)
	}
	if port != load.NamePort {
		frontend(more, tcpServers("      - address: \"%[2]s\"\n", port))
		return text
	}
	for i, b := range backends(port) {
		frontend(fmt.Sprintf("    name: b%d\n    hostnames: [%s]\n%s", i, names[i], more), fmt.Sprintf("      - address: %q\n", b))
	}
	return text
}
