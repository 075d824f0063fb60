package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/kube"
)

// What the command line can be blamed for is said before the cluster is asked.
func TestKubeconfigAsksNobodyInVain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "box")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--dry-run", "--rotate"}, exitUsage, "--dry-run and --rotate: give one of them"},
		{[]string{"--server", "10.0.0.10:6443"}, exitUsage, `--server: "10.0.0.10:6443" is not the URL of an API server; write one such as https://10.0.0.10:6443`},
		{[]string{"-o", file}, exitNo, file + " is there already; give another file with -o, or write over it with --force"},
		{[]string{"-o", filepath.Join(file, "below")}, exitNo, "not a directory"},
		{[]string{"-o", filepath.Join(filepath.Dir(file), "none", "box"), "--rotate"}, exitNo, "write " + filepath.Join(filepath.Dir(file), "none", "box") + ": no such file or directory"},
		{[]string{"-o", filepath.Dir(file), "--force"}, exitNo, filepath.Dir(file) + " is a directory; give a file with -o"},
		{nil, exitNo, "kube: kubeconfig NONE: no such file; name that of an administrator of the cluster"},
	} {
		var stdout, stderr bytes.Buffer
		none := filepath.Join(t.TempDir(), "none")
		code := Main(append([]string{"kubeconfig", "--kubeconfig", none}, tt.args...), &stdout, &stderr)
		if code != tt.code || !strings.Contains(stderr.String(), strings.ReplaceAll(tt.want, "NONE", none)) || stdout.Len() > 0 {
			t.Errorf("%q: %d, %s\nwant %d, %s", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

// Before a token is revoked that is in use, it is seen that there can be a
// kubeconfig with the new one.
func TestKubeconfigIsForAServerThatTheBoxCanUse(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer server.Close()
	admin := filepath.Join(t.TempDir(), "admin")
	config := `{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: "` + server.URL + `"}}], users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}`
	if err := os.WriteFile(admin, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := Main([]string{"kubeconfig", "--kubeconfig", admin, "--rotate"}, &stdout, &stderr)
	if code != exitNo || asked > 0 || !strings.Contains(stderr.String(), "say with --server URL where the box reaches it") {
		t.Errorf("%d, asked %d times: %s", code, asked, stderr.String())
	}
}

func TestKubeconfigTellsRights(t *testing.T) {
	rights := func(granted func(r kube.Right) bool) []kube.Right {
		all := []kube.Right{
			{Verb: "get", Resource: "services", Wanted: true},
			{Verb: "list", Resource: "services", Wanted: true},
			{Verb: "get", Resource: "nodes", Wanted: true},
			{Verb: "list", Resource: "nodes", Wanted: true},
			{Verb: "patch", Resource: "services/status", Wanted: true},
			{Verb: "get", Resource: "secrets"},
			{Verb: "list", Resource: "secrets"},
			{Verb: "patch", Resource: "services"},
		}
		for i := range all {
			all[i].Granted = granted(all[i])
		}
		return all
	}
	for _, tt := range []struct {
		name    string
		granted func(r kube.Right) bool
		want    string
		no      bool
	}{
		{
			"as it should be", func(r kube.Right) bool { return r.Wanted },
			"the token may  get, list services, nodes\n               patch services/status\nand may not    get, list secrets\n               patch services\n", false,
		},
		{"too much", func(kube.Right) bool { return true }, "warning: it may also get secrets, list secrets, patch services, which gatehouse does not need", false},
		{"too little", func(r kube.Right) bool { return r.Wanted && r.Verb != "patch" }, "the token may not patch services/status, which gatehouse needs", true},
	} {
		var say bytes.Buffer
		k := kubeconfigCommand{say: &say}
		if err := k.tellRights(rights(tt.granted)); (err != nil) != tt.no || !strings.Contains(say.String(), tt.want) {
			t.Errorf("%s: %v\n%s\nwant %s", tt.name, err, say.String(), tt.want)
		}
	}
}

// A file with a secret is there as a whole, and for nobody else at any time.
func TestWriteNew(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "box")
	if err := writeNew(file, []byte("first"), 0o600, false); err != nil {
		t.Fatal(err)
	}
	if err := writeNew(file, []byte("second"), 0o600, false); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over it: %v", err)
	}
	elsewhere := filepath.Join(dir, "elsewhere")
	link := filepath.Join(dir, "link")
	if err := os.WriteFile(elsewhere, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if err := writeNew(link, []byte("third"), 0o600, false); err == nil {
		t.Error("over a link")
	}
	if err := writeNew(link, []byte("third"), 0o600, true); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{file: "first", elsewhere: "theirs", link: "third"} {
		text, err := os.ReadFile(name)
		info, lerr := os.Lstat(name)
		if err != nil || lerr != nil || string(text) != want || name != elsewhere && info.Mode() != 0o600 {
			t.Errorf("%s: %q, %v %v %v", name, text, info, err, lerr)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
