package daemon

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// from asks as a client in a namespace. want 0: nobody answers.
func from(t *testing.T, ns *netnstest.NS, host, token string, want int) func() error {
	return fromPort(t, ns, host, 9180, token, want)
}

func fromPort(t *testing.T, ns *netnstest.NS, host string, port int, token string, want int) func() error {
	return func() (err error) {
		ns.Do(t, func() {
			// By a thread that stays in the namespace, and so without the dialer of Go's http.
			args := []string{"-s", "-o", "/dev/null", "-g", "-m", "2", "-w", "%{http_code}"}
			if token != "" {
				args = append(args, "-H", "Authorization: Bearer "+token)
			}
			out, _ := exec.CommandContext(t.Context(), "curl", append(args, fmt.Sprintf("http://%s:%d/status.json", host, port))...).Output()
			if got := strings.TrimSpace(string(out)); got != fmt.Sprintf("%03d", want) {
				err = fmt.Errorf("%s answers %s, want %03d", host, got, want)
			}
		})
		return err
	}
}

// The page in a zone is there on the zone's interfaces, for who has the token;
// no address leads to it by others.
func TestNetnsPageInAZone(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		sh(t, "ip link set lo up")
		dir := t.TempDir()
		file, tokenAt := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "token")
		write(t, tokenAt, theToken)
		const zones = "zones: {home: {interfaces: [eth1]}, cluster: {interfaces: [eth0]}}\n"
		both := adminFile(`listen: "127.0.0.1:9180"`, "zones: [home]", "tokenFile: "+tokenAt) + zones
		write(t, file, both)
		d := start(t, file)
		for _, host := range []string{"10.11.12.32", "[fd12::32]"} {
			eventually(t, "at home, with the token", from(t, site.Home, host, theToken, http.StatusOK))
			for _, token := range []string{"", "a-token-that-is-wrong"} {
				if err := from(t, site.Home, host, token, http.StatusUnauthorized)(); err != nil {
					t.Error(err)
				}
			}
		}
		eventually(t, "here, at loopback", asks(once, "http://127.0.0.1:9180/status.json", "", http.StatusOK))
		closed := func(ns *netnstest.NS, hosts ...string) {
			t.Helper()
			for _, host := range hosts {
				if err := from(t, ns, host, theToken, 0)(); err != nil {
					t.Error(err)
				}
			}
		}
		t.Log("from the cluster, by every address")
		closed(site.Node, "10.0.0.1", "10.11.12.32", "[fd00::1]", "[fd12::32]")
		closed(site.Pod, "10.0.0.1", "10.11.12.32")

		t.Log("an interface that goes and comes back")
		netnstest.LinkDel(t, nil, "eth1")
		eventually(t, "closed there", func() error {
			d.deciding.Lock()
			defer d.deciding.Unlock()
			if len(d.pages) != 1 {
				return fmt.Errorf("%d pages", len(d.pages))
			}
			return nil
		})
		netnstest.Cable(t, nil, "eth1", site.Home, "eth0")
		netnstest.Addr(t, nil, "eth1", "10.11.12.32/24")
		netnstest.Addr(t, site.Home, "eth0", "10.11.12.7/24")
		eventually(t, "at home again", from(t, site.Home, "10.11.12.32", theToken, http.StatusOK))

		t.Log("another zone, then none")
		write(t, file, strings.Replace(both, "zones: [home]", "zones: [cluster]", 1))
		eventually(t, "in the cluster", from(t, site.Node, "10.0.0.1", theToken, http.StatusOK))
		closed(site.Home, "10.11.12.32", "10.0.0.1")
		write(t, file, adminFile(`listen: "127.0.0.1:9180"`)+zones)
		eventually(t, "closed", from(t, site.Node, "10.0.0.1", theToken, 0))
		if err := asks(&http.Client{Timeout: time.Second}, "http://127.0.0.1:9180/status.json", "", http.StatusOK)(); err != nil {
			t.Error(err)
		}
	})
}

// The page at loopback is for this machine, also where the kernel lets packets
// for 127.0.0.1 in from outside (kube-proxy may have it do so).
func TestNetnsLoopbackIsThisMachine(t *testing.T) {
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		sh(t, "ip link set lo up; sysctl -qw net.ipv4.conf.all.route_localnet=1")
		site.Node.Do(t, func() {
			sh(t, "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip addr flush dev lo; ip route flush table local dev lo; ip route add 127.0.0.1/32 via 10.0.0.1")
		})
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		write(t, file, "apiVersion: gatehouse.e13.dev/v1\nadmin: {listen: \"127.0.0.1:9180\"}\nfrontends: [{listen: \"127.0.0.1:9181\", backends: [{address: \"127.0.0.1:9180\"}]}]\n")
		start(t, file)
		eventually(t, "here", asks(once, "http://127.0.0.1:9180/status.json", "", http.StatusOK))
		// That the attack is one: what is bound to the address alone is reached by it.
		eventually(t, "a frontend at loopback, from outside", fromPort(t, site.Node, "127.0.0.1", 9181, "", http.StatusOK))
		if err := from(t, site.Node, "127.0.0.1", "", 0)(); err != nil {
			t.Error(err)
		}
	})
}
