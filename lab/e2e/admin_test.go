package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An ordinary user of the edge box, and a group.
const (
	ordinaryUser  = 4241
	ordinaryGroup = 4242
	adminPort     = 9182
)

// guarded is a gatehouse whose page is in a zone. It runs as an ordinary user,
// with the capabilities that the documentation names for the relay and no other.
type guarded struct {
	dir, file, token, socket, program string
}

func runGuarded(t *testing.T) *guarded {
	t.Helper()
	dir, err := os.MkdirTemp("", "guarded-") // t.TempDir is for root alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guarded{dir, filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "token"), filepath.Join(dir, "run", "api.sock"), filepath.Join(dir, "gatehouse")}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(g.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(gatehouse)
	if err != nil {
		t.Fatal(err)
	}
	g.replace(t, g.program, string(program), 0o755)
	g.replace(t, g.token, "the-first-token-of-the-lab\n", 0o640)
	g.write(t, "home")
	for _, path := range []string{filepath.Dir(g.socket), g.token} {
		if err := os.Chown(path, ordinaryUser, ordinaryGroup); err != nil {
			t.Fatal(err)
		}
	}
	if err := lab.Run(t.Context(), "guarded", "edge", nil, "setpriv", fmt.Sprintf("--reuid=%d", ordinaryUser), fmt.Sprintf("--regid=%d", ordinaryGroup), "--clear-groups", "--no-new-privs",
		"--bounding-set=-all,+net_bind_service,+net_raw", "--inh-caps=-all,+net_bind_service,+net_raw", "--ambient-caps=-all,+net_bind_service,+net_raw", g.program, "run", "-c", g.file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			data, _ := os.ReadFile(lab.LogPath("guarded"))
			t.Logf("the log:\n%s", data)
		}
		if err := lab.Stop(context.Background(), "guarded"); err != nil {
			t.Error(err)
		}
	})
	return g
}

// write makes the file, with a page in zones if there are any. The port below
// 1024 is what one of the capabilities is for.
func (g *guarded) write(t *testing.T, zones string) {
	t.Helper()
	admin := "socket: " + g.socket
	if zones != "" {
		admin += fmt.Sprintf(", zones: [%s], port: %d, tokenFile: %s", zones, adminPort, g.token)
	}
	g.replace(t, g.file, `apiVersion: gatehouse.e13.dev/v1
zones:
  home:     {interfaces: [eth1]}
  internet: {interfaces: [veth0]}
  cluster:  {interfaces: [eth0]}
admin: {`+admin+`}
frontends: [{name: low, zones: [home], port: 812, health: {interval: 0}, backends: [{address: "10.0.0.101:7"}]}]
`, 0o644)
}

func (g *guarded) replace(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if path == g.token {
		if err := os.Chown(path+".new", ordinaryUser, ordinaryGroup); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// page asks from a host of the site. 0: nobody answers.
func (g *guarded) page(host, address, token string) (code int, body string) {
	client := httpFrom(host)
	client.Timeout = 2 * time.Second
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s:%d/status.json", address, adminPort), nil)
	if err != nil {
		return 0, err.Error()
	}
	if token != "" {
		req.SetBasicAuth("somebody", token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data)
}

// The page in a zone is reached there, with the token, and from nowhere else by
// whatever address; what a file says of it counts at once, and so does the token.
func TestPageInAZone(t *testing.T) {
	t.Parallel()
	g := runGuarded(t)
	first, second := "the-first-token-of-the-lab", "the-second-token-of-the-lab"
	eventually(t, 10*time.Second, "at home, with the token", func() error {
		if code, body := g.page("home1", homeAddr, first); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	matrix := func(in string) {
		t.Helper()
		for _, r := range routes {
			for token, want := range map[string]int{first: http.StatusOK, "": http.StatusUnauthorized} {
				if r.zone != in {
					want = 0
				}
				if code, body := g.page(r.host, r.address, token); code != want {
					t.Errorf("from %s by %s, which is zone %s, token %q: %d, want %d: %s", r.host, r.address, r.zone, token, code, want, body)
				}
			}
		}
	}
	matrix("home")

	// The commands.
	status := func(host string, args ...string) (string, error) {
		return lab.Exec(t.Context(), host, append([]string{g.program, "status"}, args...)...)
	}
	url := fmt.Sprintf("http://%s:%d", homeAddr, adminPort)
	if out, err := status("home1", "--url", url, "--token-file", g.token); err != nil || !strings.Contains(out, "@eth1:812") {
		t.Errorf("with the token: %v\n%s", err, out)
	}
	if _, err := status("home1", "--url", url); err == nil || !strings.Contains(err.Error(), "wants a token") {
		t.Errorf("without the token: %v", err)
	}
	if out, err := status("edge", "-c", g.file); err != nil || !strings.Contains(out, "@eth1:812") {
		t.Errorf("by the socket: %v\n%s", err, out)
	}

	// Who may connect to the socket.
	as := func(user, group int, groups string) error {
		_, err := lab.Exec(t.Context(), "edge", "setpriv", fmt.Sprintf("--reuid=%d", user), fmt.Sprintf("--regid=%d", group), groups,
			g.program, "status", "--url", "unix:"+g.socket)
		return err
	}
	if err := as(65534, 65534, "--clear-groups"); err == nil || !strings.Contains(err.Error(), "you may not ask at "+g.socket) {
		t.Errorf("another user: %v", err)
	}
	if err := as(65534, 65534, fmt.Sprintf("--groups=%d", ordinaryGroup)); err != nil {
		t.Errorf("a member of the group: %v", err)
	}
	if err := as(ordinaryUser, ordinaryGroup, "--clear-groups"); err != nil {
		t.Errorf("its user: %v", err)
	}

	// A token that is replaced.
	g.replace(t, g.token, second, 0o640)
	for token, want := range map[string]int{first: http.StatusUnauthorized, second: http.StatusOK} {
		if code, body := g.page("home1", homeAddr, token); code != want {
			t.Errorf("token %q, after it was replaced by %q: %d %s", token, second, code, body)
		}
	}
	first = second

	// Another zone, and none.
	g.write(t, "cluster")
	eventually(t, 5*time.Second, "in the cluster", func() error {
		if code, body := g.page("w1", clusterAddr, second); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	matrix("cluster")
	g.write(t, "")
	eventually(t, 5*time.Second, "closed", func() error {
		if code, _ := g.page("w1", clusterAddr, second); code != 0 {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
	matrix("")
	if out, err := status("edge", "-c", g.file); err != nil || !strings.Contains(out, "@eth1:812") {
		t.Errorf("by the socket, at the end: %v\n%s", err, out)
	}
	if info, err := os.Stat(g.socket); err != nil || info.Mode().Perm() != 0o660 || info.Sys().(*syscall.Stat_t).Gid != ordinaryGroup {
		t.Errorf("the socket is %v %v", info, err)
	}
	log, err := os.ReadFile(lab.LogPath("guarded"))
	if err != nil || strings.Contains(string(log), "token-of-the-lab") {
		t.Errorf("a token is in the log (%v):\n%s", err, log)
	}
}
