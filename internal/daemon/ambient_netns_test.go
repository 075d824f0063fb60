package daemon

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/netnstest"
	"e13.dev/gatehouse/internal/status"
)

// ambientConfig is open with the right of each capability.
const ambientConfig = `apiVersion: gatehouse.e13.dev/v1
admin: {listen: "127.0.0.1:9180"}
zones: {home: {interfaces: [eth1]}}
stopTimeout: 0s
frontends:
  - {name: high, zones: [home], port: 8080, backends: [{address: "10.244.1.5:8080"}]}
  - {name: low, zones: [home], port: 80, backends: [{address: "10.244.1.5:8080"}]}
  - {name: kernel, zones: [home], port: 81, dataPlane: nat, backends: [{address: "10.244.1.5:8080"}]}
  - {name: transparent, zones: [home], port: 82, transparent: true, backends: [{address: "10.244.1.5:8080"}]}
`

// The capabilities that the documentation names are enough, as ambient ones and
// for who has no other; with fewer, what needs them is closed and says so, and the
// rest serves.
func TestNetnsAmbientCapabilities(t *testing.T) {
	const ambient = "GATEHOUSE_TEST_AMBIENT"
	if file := os.Getenv(ambient); file != "" {
		start(t, file)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the test is over
		return
	}
	netnstest.Run(t, func() {
		site := netnstest.NewSite(t)
		sh(t, "ip link set lo up")
		netnstest.Mirror(t, site.Pod, 8080)
		const relayed, client = "10.0.0.1", "10.11.12.7" // whom the pod sees
		for _, c := range []struct {
			name         string
			capabilities []string
			sees         map[int]string // by port; others are closed
			says         []string       // of the problems
		}{
			{"all", []string{"net_bind_service", "net_raw", "net_admin"}, map[int]string{8080: relayed, 80: relayed, 81: client, 82: client}, nil},
			{
				"without the network's administration",
				[]string{"net_bind_service", "net_raw"},
				map[int]string{8080: relayed, 80: relayed},
				[]string{"CAP_NET_ADMIN"},
			},
			{
				"without low ports",
				[]string{"net_raw", "net_admin"},
				map[int]string{8080: relayed, 81: client},
				[]string{"a port below 1024 needs CAP_NET_BIND_SERVICE"},
			},
			{"none", nil, map[int]string{8080: relayed}, []string{"a port below 1024 needs CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "gatehouse.yaml")
				write(t, file, ambientConfig)
				set := "-all"
				for _, name := range c.capabilities {
					set += ",+" + name
				}
				// root has no rights of its own here (noroot), as every other user.
				cmd := exec.CommandContext(t.Context(), "setpriv", "--securebits=+noroot,+noroot_locked", "--no-new-privs",
					"--inh-caps="+set, "--ambient-caps="+set, "--bounding-set="+set, os.Args[0], "-test.run=^TestNetnsAmbientCapabilities$", "-test.v")
				cmd.Env = append(os.Environ(), ambient+"="+file)
				end, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				var said strings.Builder
				cmd.Stdout, cmd.Stderr = &said, &said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer func() {
					end.Close()
					if err := cmd.Wait(); err != nil || t.Failed() {
						t.Errorf("%v\n%s", err, said.String())
					}
					sh(t, "nft delete table inet gatehouse 2>/dev/null; conntrack -F 2>/dev/null; true")
				}()
				eventually(t, "it tells", func() error {
					s, err := statusAt("127.0.0.1:9180")
					if err != nil {
						return err
					}
					problems := fmt.Sprint(s.Problems)
					for _, words := range c.says {
						if !strings.Contains(problems, words) {
							return fmt.Errorf("no problem says %q: %s", words, problems)
						}
					}
					if len(c.says) == 0 && len(s.Problems) > 0 {
						return fmt.Errorf("problems: %s", problems)
					}
					for _, e := range s.Exposures {
						if open := c.sees[int(e.Port)] != ""; e.Open != open {
							return fmt.Errorf("%s is open: %t; %s", e.Name, e.Open, e.Reason)
						}
					}
					return nil
				})
				for _, port := range []int{8080, 80, 81, 82} {
					at := fmt.Sprintf("10.11.12.32:%d", port)
					if want := c.sees[port]; want != "" {
						eventually(t, at, sees(t, site.Home, "tcp", at, want))
					} else if got, err := netnstest.LookIn(t, site.Home, "tcp", at); err == nil {
						t.Errorf("%s is open, and the pod sees %s", at, got)
					}
				}
			})
		}
	})
}

func statusAt(address string) (s status.Status, err error) {
	resp, err := http.Get("http://" + address + "/status.json")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}
