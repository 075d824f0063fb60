package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"e13.dev/gatehouse/lab/internal/bench/load"
	"e13.dev/gatehouse/lab/internal/bench/report"
)

// What the kernel itself moves: plain routing that remembers connections and a rule that somebody wrote, which say what
// there is to win, and gatehouse with dataPlane: nat.

// Columns of who the kernel moves packets for. References and sizes are left out of some, for the time that it takes.
var (
	natColumns       = []string{"tcp-pingpong-1", "tcp-pingpong-64", "tcp-download", "tcp-upload", "tcp-conn", "udp-64", "udp-1200", report.Apply}
	referenceColumns = []string{"tcp-pingpong-64", "tcp-download", "tcp-conn", "udp-64"}
	sizeColumns      = []string{"tcp-pingpong-64", "tcp-conn", "udp-64", report.Apply}
)

// sizes are how many frontends there are beside "one".
var sizes = []int{1000, 10000}

// stateful is the routed path with conntrack: one rule that asks for a connection's state is what turns it on.
func stateful() contender {
	return contender{
		Contender: report.Contender{Name: "conntrack", Label: "routed, stateful", Kernel: true},
		udp:       true, columns: referenceColumns,
		rules: func(int) string {
			return `table inet bench { chain forward { type filter hook forward priority filter; ct state established accept; }; }`
		},
	}
}

// byHand is the shortest balancer: one rule.
func byHand() contender {
	return contender{
		Contender: report.Contender{Name: report.ByHand, Label: "DNAT, by hand", Kernel: true},
		udp:       true, columns: referenceColumns, front: true,
		rules: func(port int) string {
			var list []string
			for i, b := range backends(port) {
				list = append(list, fmt.Sprintf("%d : %s", i, b.Addr()))
			}
			return fmt.Sprintf(`table ip bench { chain dstnat { type nat hook prerouting priority dstnat;
 iifname lan meta l4proto { tcp, udp } th dport %d dnat to numgen random mod %d map { %s }; }; }`, port, len(list), strings.Join(list, ", "))
		},
	}
}

// gatehouseNAT is one build of gatehouse, with so many frontends.
func gatehouseNAT(name, bin string, frontends int) (contender, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return contender{}, err
	}
	dir, err := os.MkdirTemp("", "gatehouse-bench-")
	if err != nil {
		return contender{}, err
	}
	defer os.RemoveAll(dir)
	file, err := write(dir, natFile, natConfig(load.EchoPort, backends(load.EchoPort)))
	if err != nil {
		return contender{}, err
	}
	if out, err := exec.Command(bin, "check", "-c", file).CombinedOutput(); err != nil {
		return contender{}, fmt.Errorf("%s check does not accept dataPlane: nat: %w: %s", bin, err, strings.TrimSpace(string(out)))
	}
	c := contender{
		Contender: report.Contender{
			Name: name + "-nat", Label: name + " nat", Version: version("gatehouse version ", bin, "--version"),
			Subject: true, Kernel: true, Frontends: frontends,
		},
		udp: true, columns: natColumns, front: true,
		argv: func(dir string, port int) ([]string, error) {
			file, err := write(dir, natFile, natConfig(port, backends(port)))
			argv := []string{bin, "run", "-c", file}
			for i, text := range moreFrontends(frontends - 1) {
				file, failed := write(dir, fmt.Sprintf("more-%d.yaml", i), text)
				argv, err = append(argv, "-c", file), errors.Join(err, failed)
			}
			return argv, err
		},
	}
	if frontends > 1 {
		c.Name += fmt.Sprintf("-%d", frontends)
		c.Label += ", " + thousands(frontends)
		c.columns = sizeColumns
	}
	return c, nil
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

const natFile = "gatehouse.yaml"

// Ports of the frontends that are only there.
const morePort = 10000

// moreAddrs are the backends of the other frontends: six, of which the last two serve nothing else.
var moreAddrs = slices.Concat(backendAddrs, addrs("10.2.0.6", "10.2.0.7"))

// doors are the TCP ports of the first, a middle and the last one of so many frontends.
func doors(port, frontends int) []int {
	list := []int{port}
	for _, i := range []int{frontends / 2, frontends - 2} {
		if i > 0 {
			list = append(list, morePort+i/2)
		}
	}
	return list
}

// natConfig is a configuration with the frontend that is measured.
func natConfig(port int, served []netip.AddrPort) string {
	return configHead + "zones:\n  lan: {interfaces: [lan]}\nfrontends:\n" + natFrontend(port, port == load.UDPPort, served)
}

const configHead = "apiVersion: gatehouse.e13.dev/v1\n"

func natFrontend(port int, udp bool, served []netip.AddrPort) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  - zones: [lan]\n    port: %d\n    dataPlane: nat\n    health: {interval: 0}\n", port)
	if udp {
		b.WriteString("    protocol: UDP\n")
	}
	b.WriteString("    backends:\n")
	for _, a := range served {
		fmt.Fprintf(&b, "      - address: %q\n", a)
	}
	return b.String()
}

// moreFrontends are so many others at ports of their own, TCP and UDP in turn, in files that are not too large for
// gatehouse.
func moreFrontends(n int) []string {
	const inFile = 2500
	var files []string
	for first := 0; first < n; first += inFile {
		var b strings.Builder
		b.WriteString(configHead + "frontends:\n")
		for i := first; i < min(first+inFile, n); i++ {
			if i%2 == 0 {
				b.WriteString(natFrontend(morePort+i/2, false, at(moreAddrs, load.EchoPort)))
			} else {
				b.WriteString(natFrontend(morePort+i/2, true, at(moreAddrs, load.UDPPort)))
			}
		}
		files = append(files, b.String())
	}
	return files
}
