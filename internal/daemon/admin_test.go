package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/config"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/handover"
	"e13.dev/gatehouse/internal/relay"
)

const theToken = "correct-horse-battery-staple"

// overSocket is a client of a Unix socket.
func overSocket(path string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
}

func asks(client *http.Client, url, token string, want int) func() error {
	return func() error {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			if want == 0 {
				return nil
			}
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			return fmt.Errorf("%s answers %s, want %d", url, resp.Status, want)
		}
		return nil
	}
}

var once = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func adminFile(parts ...string) string {
	return "apiVersion: gatehouse.e13.dev/v1\nadmin: {" + strings.Join(parts, ", ") + "}\n"
}

// Each place follows the file by itself: what stays is not touched.
func TestPagesFollowTheFile(t *testing.T) {
	dir := t.TempDir()
	file, socket, other, tokenAt := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "api.sock"), filepath.Join(dir, "other.sock"), filepath.Join(dir, "token")
	address := freeAddr(t)
	_, port, _ := net.SplitHostPort(address)
	write(t, tokenAt, theToken+"\n")
	write(t, file, adminFile("listen: "+address, "socket: "+socket))
	d := start(t, file)
	eventually(t, "at the address", asks(once, "http://"+address+"/status.json", "", 200))
	eventually(t, "at the socket", asks(overSocket(socket), "http://localhost/status.json", "", 200))
	if info, err := os.Stat(socket); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("the socket is %v %v", info.Mode(), err)
	}
	first := fileOf(socket)

	t.Log("another address, which overlaps: the token is asked there")
	write(t, file, adminFile("listen: 0.0.0.0:"+port, "socket: "+socket, "tokenFile: "+tokenAt))
	eventually(t, "nobody gets in without", asks(once, "http://"+address+"/status.json", "", 401))
	eventually(t, "with it", asks(once, "http://"+address+"/status.json", theToken, 200))
	if fileOf(socket) != first {
		t.Error("the socket was made anew")
	}
	t.Log("the socket elsewhere")
	write(t, file, adminFile("listen: 0.0.0.0:"+port, "socket: "+other, "tokenFile: "+tokenAt))
	eventually(t, "at the other socket", asks(overSocket(other), "http://localhost/status.json", "", 200))
	if _, err := os.Stat(socket); err == nil {
		t.Error("the old socket is left")
	}
	t.Log("a directory that is emptied")
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	d.kick()
	eventually(t, "made again", asks(overSocket(other), "http://localhost/status.json", "", 200))
	t.Log("a directory that is not there, which is a problem and no more")
	write(t, file, adminFile("listen: 0.0.0.0:"+port, "socket: "+filepath.Join(dir, "no", "api.sock"), "tokenFile: "+tokenAt))
	eventually(t, "a problem", has(d, "admin.socket", "no status page at "+filepath.Join(dir, "no", "api.sock"), "RuntimeDirectory"))
	if err := asks(once, "http://"+address+"/status.json", theToken, 200)(); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "no"), 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "tried again", asks(overSocket(filepath.Join(dir, "no", "api.sock")), "http://localhost/status.json", "", 200))
	t.Log("nowhere")
	write(t, file, "apiVersion: gatehouse.e13.dev/v1\n")
	eventually(t, "closed", asks(once, "http://"+address+"/status.json", "", 0))
	eventually(t, "the socket is gone", func() error {
		if _, err := os.Stat(filepath.Join(dir, "no", "api.sock")); err == nil {
			return errors.New("it is left")
		}
		return nil
	})
}

// has waits for a problem of a field that says all of it.
func has(d *Daemon, path string, words ...string) func() error {
	return func() error {
		problems := d.Status().Problems
		for _, p := range problems {
			if p.Path == path && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(p.What+"; "+p.Remedy, w) }) {
				return nil
			}
		}
		return fmt.Errorf("no problem of %s with %q in %v", path, words, problems)
	}
}

// The token follows its file at once; while there is none nobody gets in, and a
// problem says why without saying what is in the file.
func TestTokenFollowsItsFile(t *testing.T) {
	dir := t.TempDir()
	file, tokenAt, address := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "token"), freeAddr(t)
	_, port, _ := net.SplitHostPort(address)
	write(t, file, adminFile("listen: 0.0.0.0:"+port, "tokenFile: "+tokenAt))
	d := start(t, file)
	url := "http://" + address + "/status.json"
	eventually(t, "no file", has(d, "admin.tokenFile", "no such file", "nobody is let in"))
	if err := asks(once, url, theToken, 401)(); err != nil {
		t.Error(err)
	}
	if err := asks(once, "http://"+address+"/healthz", "", 200)(); err != nil {
		t.Error(err)
	}
	replace := func(text string, mode fs.FileMode) {
		t.Helper()
		if err := os.WriteFile(tokenAt+".new", []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(tokenAt+".new", mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tokenAt+".new", tokenAt); err != nil {
			t.Fatal(err)
		}
	}
	replace("\n "+theToken+" \n", 0o600)
	if err := asks(once, url, theToken, 200)(); err != nil {
		t.Error(err)
	}
	eventually(t, "no problem", func() error {
		if p := d.Status().Problems; len(p) > 0 {
			return fmt.Errorf("%v", p)
		}
		return nil
	})
	replace("another-token-of-some-length", 0o600)
	for token, want := range map[string]int{theToken: 401, "another-token-of-some-length": 200} {
		if err := asks(once, url, token, want)(); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct{ text, says string }{
		{"short-secret", "fewer than 16 characters"},
		{"", "no token in it"},
		{"two words of a secret", "one word of printable"},
		{strings.Repeat("secret", 1000), "more than 4096 bytes"},
		{"geheimnis-\u00fc\u00fc\u00fc\u00fc\u00fc\u00fc", "one word of printable"},
	} {
		replace(c.text, 0o600)
		if err := asks(once, url, strings.TrimSpace(c.text), 401)(); err != nil && c.text != "" {
			t.Error(err)
		}
		eventually(t, c.says, has(d, "admin.tokenFile", c.says, "nobody is let in"))
		for _, p := range d.Status().Problems {
			if strings.Contains(fmt.Sprint(p), "secret") && c.text != "" {
				t.Errorf("it is told: %v", p)
			}
		}
	}
	t.Log("for everybody to read")
	replace(theToken, 0o644)
	eventually(t, "a problem", has(d, "admin.tokenFile", "can be read or written by every user", "chmod 640"))
	if err := asks(once, url, theToken, 200)(); err != nil {
		t.Error(err)
	}
}

// A port that somebody else has is a problem of the page alone, and is tried again.
func TestPageWaitsForItsPort(t *testing.T) {
	taken, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	front, one := freeAddr(t), echo(t, "one")
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, configFor(taken.Addr().String(), front, one))
	d := start(t, file)
	eventually(t, "served", serves(front, "one"))
	eventually(t, "a problem", has(d, "admin.listen", "no status page at "+taken.Addr().String(), "address already in use"))
	taken.Close()
	eventually(t, "a page", asks(once, "http://"+taken.Addr().String()+"/healthz", "", 200))
}

// A page at a loopback address is bound to that interface, which keeps it out of
// zones' way.
func TestLoopbackPageIsBoundToIt(t *testing.T) {
	address := freeAddr(t)
	file := filepath.Join(t.TempDir(), "gatehouse.yaml")
	write(t, file, strings.TrimSuffix(configFor(address), "frontends:\n"))
	start(t, file)
	eventually(t, "served", asks(once, "http://"+address+"/healthz", "", 200))
	_, port, _ := net.SplitHostPort(address)
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return bindTo(c, "lo") }}
	if l, err := lc.Listen(t.Context(), "tcp", ":"+port); err == nil {
		l.Close()
		t.Error("lo can be bound twice")
	}
	if l, err := net.Listen("tcp", ":"+port); err == nil {
		l.Close()
		t.Error("another program can listen there")
	}
}

// What is handed over comes out as it went in: each place, and which socket is its.
func TestPagesAreHandedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	socket, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := pages{
		{place: place{Socket: path}, listener: socket},
		{place: place{Listen: "127.0.0.1:9180"}, listener: tcp},
		{place: place{Device: "eth1", Ifindex: 7, Port: 9180}, listener: tcp},
	}
	sockets, err := pack(relay.Handover{}, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if kinds := []string{sockets[0].Kind, sockets[1].Kind, sockets[2].Kind}; !slices.Equal(kinds, []string{adminPlace, adminSocket, adminPlace}) || string(sockets[1].About) != `{"listen":"127.0.0.1:9180"}` {
		t.Errorf("a version before would not understand %q %s", kinds, sockets[1].About)
	}
	_, out, _, err := unpack(sockets)
	if err != nil || len(out) != len(in) {
		t.Fatal(out, err)
	}
	for i := range in {
		if out[i].place != in[i].place || out[i].listener.Addr().String() != in[i].listener.Addr().String() {
			t.Errorf("%+v came out as %+v", in[i].place, out[i].place)
		}
	}
	in.close()
	out.close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("its name went with the old one: ", err)
	}
	if _, _, _, err := unpack([]handover.Socket{{Kind: adminPlace, About: []byte(`7`), File: os.Stdin}}); err == nil {
		t.Error("taken")
	}
}

// An upgrade keeps the Unix socket, by name and without a refused connection; the
// one that ends last takes it away.
func TestUpgradeKeepsTheSocket(t *testing.T) {
	dir := t.TempDir()
	file, socket, front := filepath.Join(dir, "gatehouse.yaml"), filepath.Join(dir, "api.sock"), freeAddr(t)
	admin := freeAddr(t)
	write(t, file, strings.Replace(configFor(admin, front, echo(t, "one")), "admin: {", "admin: {socket: "+socket+", ", 1))
	_, log, ended, _ := upgradable(t, file, file)
	t.Cleanup(func() { endSuccessor(t, log) })
	eventually(t, "at the socket", asks(overSocket(socket), "http://localhost/healthz", "", 200))
	before := fileOf(socket)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := asks(overSocket(socket), "http://localhost/healthz", "", 200)(); err != nil {
				done <- err
				return
			}
		}
	}()
	signalSelf(t, syscall.SIGUSR2)
	eventually(t, "handed over", log.has("upgrade done"))
	if err := <-ended; err != nil {
		t.Errorf("the old process ended with %v", err)
	}
	for range 50 {
		if err := asks(overSocket(socket), "http://localhost/healthz", "", 200)(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("refused: %v", err)
	}
	if fileOf(socket) != before {
		t.Error("it was made anew")
	}
	if v, err := pageOf(admin); err != nil || v != "successor" {
		t.Errorf("%s %v", v, err)
	}
}

// Where the page is wanted follows from the files and the interfaces.
func TestPlacesFollowInterfaces(t *testing.T) {
	c := &config.Config{
		Zones: []edge.Zone{{Name: "home", Interfaces: []string{"eth1", "eth3"}}, {Name: "lan", Interfaces: []string{"eth0"}}},
		Admin: config.Admin{Listen: "127.0.0.1:9180", Socket: "/run/s", Zones: []string{"home"}, Port: 9180},
	}
	for _, s := range []struct {
		interfaces []edge.Interface
		want       string
	}{
		{nil, "[127.0.0.1:9180 /run/s]"},
		{[]edge.Interface{{Name: "eth0", Index: 2}, {Name: "eth1", Index: 3}}, "[127.0.0.1:9180 /run/s @eth1:9180]"},
		{[]edge.Interface{{Name: "eth3", Index: 4}, {Name: "eth1", Index: 3}}, "[127.0.0.1:9180 /run/s @eth1:9180 @eth3:9180]"},
	} {
		if got := fmt.Sprint(placesOf(c, s.interfaces)); got != s.want {
			t.Errorf("%s, want %s", got, s.want)
		}
	}
	same := []edge.Interface{{Name: "eth1", Index: 3}}
	back := []edge.Interface{{Name: "eth1", Index: 9}}
	if placesOf(c, same)[2] == placesOf(c, back)[2] {
		t.Error("an interface that came back is taken for the one that went")
	}
}
