package web

import (
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"e13.dev/gatehouse/internal/explain"
	"e13.dev/gatehouse/internal/status"
)

//go:embed page.html picture.html card.html explain.html page.css page.js
var files embed.FS

// assets are in each page, so that it is one file: a browser runs exactly these,
// whatever a name in the cluster smuggles in.
var assets = func() (a struct {
	CSS     template.CSS
	JS      template.JS
	version string // changes with them
	policy  string
},
) {
	read := func(name string) (text, hash string) {
		data, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(data)
		return string(data), base64.StdEncoding.EncodeToString(sum[:])
	}
	css, cssHash := read("page.css")
	js, jsHash := read("page.js")
	a.CSS, a.JS = template.CSS(css), template.JS(js) //nolint:gosec // they are this program's own
	a.version = cssHash[:8] + jsHash[:8]
	a.policy = "default-src 'none'; style-src 'sha256-" + cssHash + "'; script-src 'sha256-" + jsHash + "'; connect-src 'self'; img-src data:; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	return a
}()

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"css":      func() template.CSS { return assets.CSS },
	"js":       func() template.JS { return assets.JS },
	"percent":  percent,
	"bytes":    status.Bytes,
	"rate":     bytesPerSecond,
	"persec":   perSecond,
	"ago":      func(now, t time.Time) string { return ago(now.Sub(t)) },
	"until":    func(now, t time.Time) string { return status.Age(max(t.Sub(now), 0)) },
	"drain":    func(now time.Time, d status.Drain) string { return d.Ends(now) },
	"left":     func(now, until time.Time) string { return status.Age(max(until.Sub(now), 0)) + " more" },
	"words":    func(label any) string { return strings.ReplaceAll(fmt.Sprint(label), "_", " ") },
	"ask":      linkTo,
	"askabout": askAbout,
	"count":    func(n int, what string) string { return count(uint64(max(n, 0)), what) },
	"add":      func(a, b float64) float64 { return a + b },
}).ParseFS(files, "*.html"))

// cut makes the pieces of a view.
func cut(s status.Status, w wish, now time.Time) (*moment, error) {
	v := viewOf(s, w, now)
	m := &moment{Title: "gatehouse", Pieces: map[string]string{}}
	if n := len(v.Problems); n > 0 {
		m.Title = fmt.Sprintf("(%d) gatehouse", n)
	}
	piece := func(id, name string, data any) error {
		var b strings.Builder
		err := templates.ExecuteTemplate(&b, name, data)
		m.Pieces[id] = b.String()
		return err
	}
	for _, id := range []string{"state", "problems", "picture", "tally", "doors", "refused", "pools", "router", "ways"} {
		if err := piece(id, id, v); err != nil {
			return nil, err
		}
	}
	for _, c := range v.Cards {
		m.Order = append(m.Order, c.ID)
		if err := piece(c.ID, "card", c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// page is the state as it is now. Its script then asks for what changes; without
// it the page loads itself again.
func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	wanted := wishOf(r.URL.Query())
	now, at := s.hub.current()
	m, err := cut(now, wanted, at)
	if err != nil {
		s.fail(w, err)
		return
	}
	piece := func(id string) template.HTML { return template.HTML(m.Pieces[id]) } //nolint:gosec // a template has made it, and escaped what is in it
	data := struct {
		Title                                                                string
		Wish                                                                 wish
		Words                                                                string
		State, Problems, Picture, Tally, Doors, Refused, Pools, Router, Ways template.HTML
		Cards                                                                []template.HTML
	}{
		Title: m.Title, Wish: wanted, Words: wanted.words, State: piece("state"), Problems: piece("problems"), Picture: piece("picture"), Tally: piece("tally"),
		Doors: piece("doors"), Refused: piece("refused"), Pools: piece("pools"), Router: piece("router"), Ways: piece("ways"),
	}
	for _, id := range m.Order {
		data.Cards = append(data.Cards, piece(id))
	}
	s.html(w, r, http.StatusOK, "page.html", data)
}

// explained is a page with the answer to a question, or with what is wrong with
// it, and a form to ask another.
func (s *Server) explained(w http.ResponseWriter, r *http.Request) {
	q := explain.Question{From: strings.TrimSpace(r.URL.Query().Get("from")), To: strings.TrimSpace(r.URL.Query().Get("to"))}
	now, at := s.hub.current()
	data := struct {
		Question explain.Question
		Answer   *explain.Answer
		Error    string
		Now      time.Time
		Zones    []string
		Targets  []string
		Problems int
	}{Question: q, Now: at, Problems: len(now.Problems)}
	for _, e := range now.Exposures {
		if e.Zone != "" && !slices.Contains(data.Zones, e.Zone) {
			data.Zones = append(data.Zones, e.Zone)
		}
		if to := cmp.Or(e.Service, e.Name); len(data.Targets) < rowsShown && !slices.Contains(data.Targets, to) {
			data.Targets = append(data.Targets, to)
		}
	}
	slices.Sort(data.Zones)
	code := http.StatusOK
	if q.To != "" {
		answer, err := s.Explain(q)
		if err != nil {
			data.Error, code = err.Error(), http.StatusBadRequest
		} else {
			data.Answer = &answer
		}
	}
	s.html(w, r, code, "explain.html", data)
}

func (s *Server) html(w http.ResponseWriter, r *http.Request, code int, name string, data any) {
	var b strings.Builder
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		s.fail(w, err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", assets.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Add("Vary", "Accept-Encoding")
	var out io.Writer = w
	if takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer func() {
			if err := packed.Close(); err != nil {
				s.log.Debug("page not written", "err", err)
			}
		}()
		out = packed
	}
	w.WriteHeader(code)
	if _, err := io.WriteString(out, b.String()); err != nil {
		s.log.Debug("page not written", "err", err)
	}
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	s.log.Error("page not made", "err", err)
	http.Error(w, "the page cannot be made", http.StatusInternalServerError)
}
