package cli

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/config"
)

// Whoever is turned away reads why.
func TestWhoIsTurnedAwayIsToldWhy(t *testing.T) {
	for code, want := range map[int]string{
		http.StatusUnauthorized:    "wants a token: give the file that has it with --token-file FILE",
		http.StatusTooManyRequests: ": why it is so",
		http.StatusForbidden:       ": why it is so",
		http.StatusBadRequest:      "why it is so",
		http.StatusNotFound:        "that is no gatehouse, or an older one",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "why it is so", code) }))
		c, err := newClient(server.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.get(t.Context(), "/status.json", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %s", code, err, want)
		}
		server.Close()
	}
}

// The token may be in the URL, as a password: nobody reads it in a message.
func TestPasswordsOfURLsAreNotTold(t *testing.T) {
	for where, want := range map[string]string{
		"http://me:secret@127.0.0.1:1/":     "nothing listens at http://127.0.0.1:1/",
		"me:secret@127.0.0.1:1":             "nothing listens at 127.0.0.1:1:",
		"ftp://me:secret@127.0.0.1:1":       `--url "ftp://127.0.0.1:1": write the URL`,
		"http://me:secret%zz@127.0.0.1:1/a": `--url "http://127.0.0.1:1/a": write the URL`,
		"http://127.0.0.1:1/@":              "nothing listens at http://127.0.0.1:1/@",
	} {
		c, err := newClient(where, "")
		if err == nil {
			_, err = c.get(t.Context(), "/status.json", nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", where, err, want)
		}
	}
}

// Who has shown a token is not told to show one.
func TestTheWrongTokenIsCalledWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("of last year, too long"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer server.Close()
	c, err := newClient(server.URL, file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.get(t.Context(), "/status.json", nil); err == nil || !strings.Contains(err.Error(), "wants another token") || strings.Contains(err.Error(), "last year") {
		t.Error(err)
	}
}

// Only of a socket is it its group that decides.
func TestWhoMayNotAskIsToldWhy(t *testing.T) {
	for where, want := range map[string]string{"unix:/run/x.sock": "who is in the group of that socket may", "http://127.0.0.1:1": "does not answer: permission"} {
		c, err := newClient(where, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.silence(fs.ErrPermission); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", where, err)
		}
	}
}

// A socket that could not be made, or is only in the new files, is no reason not to
// ask where the daemon listens too.
func TestTheListenAddressIsAskedWhereThereIsNoSocket(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.sock")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.sock")
	for _, c := range []struct{ socket, listen, want string }{
		{there, "127.0.0.1:9180", there},
		{missing, "127.0.0.1:9180", "127.0.0.1:9180"},
		{missing, "", missing},
		{"", "127.0.0.1:9180", "127.0.0.1:9180"},
	} {
		client, err := (&whom{}).clientOf(&config.Config{Admin: config.Admin{Socket: c.socket, Listen: c.listen}})
		if err != nil || client.where != c.want {
			t.Errorf("socket %q, listen %q: %v (%v) is asked, want %s", c.socket, c.listen, client, err, c.want)
		}
	}
}
