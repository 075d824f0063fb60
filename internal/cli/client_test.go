package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
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
