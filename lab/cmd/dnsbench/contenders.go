package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// contender is a server, configured to know the same names, to ask the same upstream and to keep what that says.
type contender struct {
	name    string
	command []string
}

func contenders(dir, gatehouse, coredns string) ([]contender, error) {
	var hosts, records strings.Builder
	for i := range names {
		name, addr := fmt.Sprintf("n%04d.home.example", i), fmt.Sprintf("10.9.%d.%d", 1+i/250, 1+i%250)
		fmt.Fprintf(&hosts, "%s %s\n", addr, name)
		fmt.Fprintf(&records, "    - {name: %s, address: %s}\n", name, addr)
	}
	files := map[string]string{
		"hosts": hosts.String(),
		"gatehouse.yaml": fmt.Sprintf("apiVersion: gatehouse.e13.dev/v1\nzones: {home: {interfaces: [eth0]}}\nadmin: {listen: \"127.0.0.1:9599\"}\ndns:\n  zones: [home]\n  domain: home.example\n"+
			"  upstreams: [\"127.0.0.1:%d\"]\n  ratePerClient: 0\n  cacheSize: 10000\n  records:\n%s", stubPort, records.String()),
		"Corefile": fmt.Sprintf(".:53 {\n  multisocket\n  hosts %s {\n    fallthrough\n  }\n  cache 3600\n  forward . 127.0.0.1:%d\n}\n", filepath.Join(dir, "hosts"), stubPort),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	for _, path := range []*string{&gatehouse, &coredns} {
		full, err := exec.LookPath(*path)
		if err != nil {
			return nil, err
		}
		if *path, err = filepath.Abs(full); err != nil {
			return nil, err
		}
	}
	return []contender{
		{"gatehouse", []string{gatehouse, "run", "-c", filepath.Join(dir, "gatehouse.yaml")}},
		{"dnsmasq", []string{
			"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--no-resolv", "--no-hosts", "--local-ttl=60",
			fmt.Sprintf("--server=127.0.0.1#%d", stubPort), "--cache-size=10000", "--addn-hosts=" + filepath.Join(dir, "hosts"), "--dns-forward-max=1000",
		}},
		{"CoreDNS", []string{coredns, "-conf", filepath.Join(dir, "Corefile"), "-quiet"}},
	}, nil
}
