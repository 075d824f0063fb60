package web

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/status"
	"e13.dev/gatehouse/internal/trial"
)

// operated counts what was asked for.
type operated struct{ applied, confirmed, reverted, told int }

func (o *operated) operator() *Operator {
	return &Operator{
		Apply: func(offer trial.Offer, by string) (trial.State, error) {
			o.applied++
			if len(offer.Files) == 0 {
				return trial.State{}, errors.New("no file was given")
			}
			return trial.State{Last: by}, nil
		},
		Confirm: func(string) error { o.confirmed++; return nil },
		Revert:  func(string) error { o.reverted++; return nil },
		Trial:   func() trial.State { o.told++; return trial.State{} },
	}
}

// Root and our own user may change what runs, at a Unix socket, and nobody else
// anywhere.
func TestOnlyOperatorsChangeWhatRuns(t *testing.T) {
	const offer = `{"files":[{"name":"a","path":"","data":"YQ=="}],"seconds":0}`
	own := uint32(os.Geteuid())
	for _, c := range []struct {
		name, method, path, kind, body string
		uid                            any // nil: not known
		want                           int
		says                           string
	}{
		{"root", "POST", "/apply", "application/json", offer, uint32(0), 200, `"last":"uid 0"`},
		{"our user", "POST", "/apply", "application/json; charset=utf-8", offer, own, 200, "last"},
		{"another", "POST", "/apply", "application/json", offer, own + 1, 403, "only root"},
		{"unknown", "POST", "/apply", "application/json", offer, nil, 403, "only root"},
		{"another confirms", "POST", "/confirm", "application/json", `{"id":"x"}`, own + 1, 403, "only root"},
		{"another reverts", "POST", "/revert", "application/json", `{"id":"x"}`, own + 1, 403, "only root"},
		{"another looks", "GET", "/trial", "", "", own + 1, 403, "only root"},
		{"root confirms", "POST", "/confirm", "application/json", `{"id":"x"}`, uint32(0), 200, "files"},
		{"root reverts", "POST", "/revert", "application/json", `{"id":"x"}`, uint32(0), 200, "files"},
		{"root looks", "GET", "/trial", "", "", uint32(0), 200, "files"},
		{"a form", "POST", "/apply", "application/x-www-form-urlencoded", offer, uint32(0), 415, "application/json"},
		{"a GET", "GET", "/apply", "", "", uint32(0), 405, "POST"},
		{"a POST", "POST", "/trial", "application/json", "{}", uint32(0), 405, "GET"},
		{"rubbish", "POST", "/apply", "application/json", "{", uint32(0), 409, "not understood"},
		{"an unknown field", "POST", "/confirm", "application/json", `{"id":"x","force":true}`, uint32(0), 409, "not understood"},
		{"a refusal", "POST", "/apply", "application/json", "{}", uint32(0), 409, "no file was given"},
		{"the rest is the site's", "GET", "/healthz", "", "", own + 1, 200, "ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o operated
			s := New(Source{Status: func() status.Status { return status.Status{} }}, slog.New(slog.DiscardHandler))
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header.Set("Content-Type", c.kind)
			if c.body == "" {
				r.Body, r.ContentLength = http.NoBody, 0
			}
			if c.uid != nil {
				r = r.WithContext(context.WithValue(r.Context(), peerKey{}, c.uid))
			}
			w := httptest.NewRecorder()
			s.handlerFor(Access{Operator: o.operator()}).ServeHTTP(w, r)
			if w.Code != c.want || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("%s %s: %d %q, want %d with %q", c.method, c.path, w.Code, w.Body, c.want, c.says)
			}
			if c.want == 403 && o != (operated{}) {
				t.Errorf("it was done all the same: %+v", o)
			}
		})
	}
}

// The kernel says who has connected to a socket; over TCP nobody is an operator.
func TestOperatorsComeByTheSocket(t *testing.T) {
	var o operated
	s := New(Source{Status: func() status.Status { return status.Status{} }}, slog.New(slog.DiscardHandler))
	post := func(l net.Listener, access Access) (int, string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l, access) }()
		defer func() { cancel(); <-ended }()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial(l.Addr().Network(), l.Addr().String())
		}}}
		resp, err := client.Post("http://127.0.0.1/confirm", "application/json", strings.NewReader(`{"id":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if code, body := post(unix, Access{Operator: o.operator()}); code != 200 || o.confirmed != 1 {
		t.Errorf("at the socket: %d %s", code, body)
	}
	for name, access := range map[string]Access{"as it is": {Local: true}, "with an operator by mistake": {Operator: o.operator()}} {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if code, body := post(tcp, access); code == 200 || o.confirmed != 1 {
			t.Errorf("over TCP, %s: %d %s", name, code, body)
		}
	}
}
