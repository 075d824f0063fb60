// Package web serves what gatehouse says of itself: /healthz, /readyz,
// /metrics, /status.json, and a page that follows what happens. It reads only:
// there is nothing here that changes anything, but for what an Operator may have
// done by way of a Unix socket. Who is answered is said by the Access of each
// listener.
package web

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

// Source is who is told about.
type Source struct {
	Status func() status.Status
	// Explain answers a question, or says what about it is none.
	Explain func(explain.Question) (explain.Answer, error)
}

// Server serves what a Source says.
type Server struct {
	Source
	log *slog.Logger
	hub hub
}

// New returns a server that listens nowhere yet.
func New(source Source, log *slog.Logger) *Server {
	return &Server{Source: source, log: log, hub: hub{status: source.Status, render: cut}}
}

// answerTime is how long Serve goes on with what was asked before its end.
const answerTime = time.Second

// What a client may keep the server waiting with: headers alone, since nobody
// has anything to send.
const (
	headerTime     = 5 * time.Second
	maxHeaderBytes = 16 << 10
)

// Serve answers those on the listener who have access, until ctx ends, and
// closes the listener then. Whoever has connected by then is answered: the
// listener may be another process's too, and a probe must not fail because it
// met this one. (Server.Shutdown would drop the requests that it finds being
// read.)
func (s *Server) Serve(ctx context.Context, listener net.Listener, access Access) error {
	var connections sync.WaitGroup
	server := &http.Server{
		Handler: s.handlerFor(access), ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: headerTime, MaxHeaderBytes: maxHeaderBytes, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		// Whoever listens to events goes when ctx ends; nothing else asks a request
		// for its context.
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withPeer,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				connections.Add(1)
			case http.StateClosed, http.StateHijacked:
				connections.Done()
			default:
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	defer func() { _ = server.Close() }()
	if err := server.Serve(newCrowd(listener)); ctx.Err() == nil {
		return fmt.Errorf("admin: %w", err)
	}
	server.SetKeepAlivesEnabled(false) // and closes those that are idle
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		connections.Wait()
	}()
	select {
	case <-answered:
	case <-time.After(answerTime):
	}
	return ctx.Err()
}

// handlerFor is what stands at a listener.
func (s *Server) handlerFor(access Access) http.Handler {
	site := access.guard(s.Handler(), s.log)
	if access.Operator == nil {
		return site
	}
	return operators{Operator: *access.Operator, log: s.log, next: site}
}

// Handler is the whole site.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /status.json", s.json)
	mux.HandleFunc("GET /explain.json", s.explain)
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(s.Status), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /explain", s.explained)
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /{$}", s.page)
	return mux
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	now := s.Status()
	if now.Ready {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	for _, reason := range now.NotReady {
		fmt.Fprintln(w, "waiting for", reason)
	}
}

func (s *Server) json(w http.ResponseWriter, _ *http.Request) { s.write(w, s.Status()) }

// explain answers /explain.json?from=ZONE&to=HOST:PORT. A question that is none
// is a 400 with one line that says why.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	answer, err := s.Explain(explain.Question{From: r.FormValue("from"), To: r.FormValue("to")})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.write(w, answer)
}

func (s *Server) write(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(what); err != nil {
		s.log.Debug("answer not written", "err", err)
	}
}
