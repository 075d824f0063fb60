package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/netnstest"
)

// called is what a command prints, and its exit code.
func called(args ...string) string {
	var stdout, stderr strings.Builder
	code := Main(args, &stdout, &stderr)
	return fmt.Sprintf("%s%sexit code %d", stdout.String(), stderr.String(), code)
}

// What gatehouse leaves behind when it is killed goes, and not before.
func TestNetnsDown(t *testing.T) {
	netnstest.Run(t, func() {
		expect := func(want string) {
			t.Helper()
			if got := called("down"); !regexp.MustCompile("^" + want + "$").MatchString(got) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		site := netnstest.NewSite(t)
		netnstest.Mirror(t, site.Pod, 9000)
		expect("nothing to remove\nexit code 0")
		file := filepath.Join(t.TempDir(), "gatehouse.yaml")
		const text = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}}
admin: {listen: "127.0.0.1:9180"}
frontends:
  - {name: web, zones: [home], port: 80, dataPlane: nat, backends: [{address: "10.244.1.5:9000"}]}
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		gatehouse := exec.CommandContext(t.Context(), "gatehouse", "run", "-c", file)
		if err := gatehouse.Start(); err != nil {
			t.Fatal(err)
		}
		netnstest.Eventually(t, 10*time.Second, "gatehouse runs", func() bool {
			return strings.HasPrefix(called("status", "-c", file), "gatehouse      ready")
		})
		if seen, err := netnstest.LookIn(t, site.Home, "tcp", "10.11.12.32:80"); err != nil || seen != "10.11.12.7" {
			t.Errorf("the backend sees %q, %v; want the client's own address", seen, err)
		}
		moved := regexp.MustCompile(`web @eth1:80 nat +open +[01] +(\d\.\d +)?1 +\d+ B +\d+ B.*\n +10\.244\.1\.5:9000 +up +100\.0% +(100\.0% +)?[01] +(\d\.\d +)?1 +\d+ B +\d+ B`)
		netnstest.Eventually(t, 10*time.Second, "status shows what the kernel has moved", func() bool {
			return moved.MatchString(called("status", "-c", file))
		})
		expect(fmt.Sprintf("gatehouse: gatehouse runs here \\(process %d\\); stop it first, with systemctl stop gatehouse or a signal\nexit code 1", gatehouse.Process.Pid))
		if err := gatehouse.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = gatehouse.Wait()

		expect("removed nftables table inet gatehouse, which had TCP @eth1:80\nremoved 1 connection that the kernel followed\nexit code 0")
		expect("nothing to remove\nexit code 0")
	})
}

// Without the right to look, a command says so: down fails, and check, which
// may be asked anywhere, does not.
func TestNetnsWithoutTheRight(t *testing.T) {
	netnstest.Run(t, func() {
		file := filepath.Join(t.TempDir(), "nat.yaml")
		const text = `apiVersion: gatehouse.e13.dev/v1
zones: {home: {interfaces: [eth1]}}
frontends:
  - {name: web, zones: [home], port: 80, dataPlane: nat, backends: [{address: "10.0.0.101:80"}]}
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, want := called("check", "-c", file), file+": good\nexit code 0"; got != want {
			t.Errorf("with it: got %q, want %q", got, want)
		}
		if ruleset, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").CombinedOutput(); err != nil || len(ruleset) > 0 {
			t.Errorf("check has made %s, %v", ruleset, err)
		}
		for want, args := range map[string][]string{
			"gatehouse: down takes CAP_NET_ADMIN: run it as root\nexit status 1":                                             {"down"},
			"not looked at: whether this machine can do dataPlane: nat; that takes CAP_NET_ADMIN\n" + file + ": good\n<nil>": {"check", "-c", file},
		} {
			without := append([]string{"--bounding-set=-net_admin", "--inh-caps=-net_admin", "gatehouse"}, args...)
			out, err := exec.CommandContext(t.Context(), "setpriv", without...).CombinedOutput()
			if got := fmt.Sprintf("%s%v", out, err); got != want {
				t.Errorf("%v: got %q, want %q", args, got, want)
			}
		}
	})
}
