package web

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"e13.dev/gatehouse/internal/status"
)

const (
	// lookEvery is how often a Status is made for those who listen: all of them
	// together.
	lookEvery = time.Second
	// beatEvery is how often a listener hears something, though nothing changed.
	beatEvery = 15 * time.Second
	// mostListeners is how many there may be at a time. Each costs a connection
	// and what it was told last.
	mostListeners = 32
	// tellTime is how long a listener may take to read what it is told.
	tellTime = 10 * time.Second
)

// moment is the page at a time, in pieces that can be put in place one by one.
type moment struct {
	Title  string
	Order  []string // the IDs of the cards
	Pieces map[string]string
}

// news is what of a moment a listener has not been told, as JSON for it.
type news struct {
	Page  string            `json:"page,omitempty"` // which scripts and styles go with it
	Title string            `json:"title,omitempty"`
	Order []string          `json:"order,omitempty"`
	None  bool              `json:"none,omitempty"` // Order is empty
	HTML  map[string]string `json:"html,omitempty"`
}

// since is what is new in m to somebody who has seen before; nil: nothing.
func (m *moment) since(before *moment) *news {
	n := &news{HTML: map[string]string{}}
	if before == nil {
		n.Page, before = assets.version, &moment{Title: "-", Order: []string{"-"}}
	}
	for id, html := range m.Pieces {
		if before.Pieces[id] != html {
			n.HTML[id] = html
		}
	}
	if m.Title != before.Title {
		n.Title = m.Title
	}
	if !slices.Equal(m.Order, before.Order) {
		n.Order, n.None = m.Order, len(m.Order) == 0
	}
	if len(n.HTML) == 0 && n.Title == "" && n.Order == nil && !n.None {
		return nil
	}
	return n
}

// hub makes a moment a second for each wish that somebody has, and none while
// nobody listens.
type hub struct {
	status func() status.Status
	render func(status.Status, wish, time.Time) (*moment, error)

	mu        sync.Mutex
	topics    map[wish]*topic
	listeners int
	end       chan struct{} // closed when nobody listens any more

	looking sync.Mutex // held while a Status is made
	last    status.Status
	lastAt  time.Time
}

// topic is what is made for those who have the same wish.
type topic struct {
	listeners int
	now       *moment
	changed   chan struct{} // closed when now is another one
}

var errTooMany = errors.New("too many pages are open: close one, or ask for status.json")

// current is a Status that is a second old at most.
func (h *hub) current() (status.Status, time.Time) {
	h.looking.Lock()
	defer h.looking.Unlock()
	// The ticker is not exact, and is not to find that of its last tick.
	if now := time.Now(); now.Sub(h.lastAt) >= lookEvery-lookEvery/10 {
		h.last, h.lastAt = h.status(), now
	}
	return h.last, h.lastAt
}

// join returns what is made for a wish. leave has to be called afterwards.
func (h *hub) join(w wish) (*topic, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listeners >= mostListeners {
		return nil, errTooMany
	}
	if h.topics == nil {
		h.topics = map[wish]*topic{}
	}
	t := h.topics[w]
	if t == nil {
		t = &topic{changed: make(chan struct{})}
		h.topics[w] = t
	}
	t.listeners++
	if h.listeners++; h.listeners == 1 {
		h.end = make(chan struct{})
		go h.look(h.end)
	}
	return t, nil
}

func (h *hub) leave(w wish) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.topics[w]; t.listeners == 1 {
		delete(h.topics, w)
	} else {
		t.listeners--
	}
	if h.listeners--; h.listeners == 0 {
		close(h.end)
	}
}

// look makes moments until nobody listens.
func (h *hub) look(end <-chan struct{}) {
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		select {
		case <-end:
			return
		case <-again.C:
		}
		h.mu.Lock()
		wishes := slices.Collect(maps.Keys(h.topics))
		h.mu.Unlock()
		s, at := h.current()
		for _, w := range wishes {
			m, err := h.render(s, w, at)
			if err == nil {
				h.tell(w, m)
			}
		}
	}
}

func (h *hub) tell(w wish, m *moment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topics[w]
	if t == nil || m.since(t.now) == nil {
		return
	}
	t.now = m
	close(t.changed)
	t.changed = make(chan struct{})
}

// latest is the newest moment for a wish, and what is closed when it is not that
// any more.
func (h *hub) latest(w wish, t *topic) (*moment, <-chan struct{}, error) {
	h.mu.Lock()
	now, changed := t.now, t.changed
	h.mu.Unlock()
	if now != nil {
		return now, changed, nil
	}
	s, at := h.current()
	m, err := h.render(s, w, at)
	if err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.now == nil {
		t.now = m
	}
	return t.now, t.changed, nil
}

// follow tells what is new, until ctx ends or telling fails. An empty text is a
// beat.
func (h *hub) follow(ctx context.Context, w wish, tell func(text []byte) error) error {
	t, err := h.join(w)
	if err != nil {
		return err
	}
	defer h.leave(w)
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	var told *moment
	for {
		now, changed, err := h.latest(w, t)
		if err != nil {
			return err
		}
		if n := now.since(told); n != nil {
			text, err := json.Marshal(n)
			if err != nil {
				return err
			}
			if err := tell(text); err != nil {
				return err
			}
			told = now
			beat.Reset(beatEvery)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-beat.C:
			if err := tell(nil); err != nil {
				return err
			}
		}
	}
}

// events tells a page what has changed, as server-sent events, until it goes or
// the server ends.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	var out io.Writer = w
	flush := control.Flush
	begun := false
	err := s.hub.follow(r.Context(), wishOf(r.URL.Query()), func(text []byte) error {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("X-Accel-Buffering", "no") // of an nginx in front
			if takesGzip(r) {
				w.Header().Set("Content-Encoding", "gzip")
				packed := gzip.NewWriter(w)
				out, flush = packed, func() error { return errors.Join(packed.Flush(), control.Flush()) }
			}
		}
		// The WriteTimeout of the server is for an answer that ends.
		if err := control.SetWriteDeadline(time.Now().Add(tellTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		line := []byte("event: beat\ndata:\n\n")
		if text != nil {
			line = slices.Concat([]byte("data: "), text, []byte("\n\n"))
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
		return flush()
	})
	switch {
	case begun:
		s.log.Debug("page does not listen any more", "err", err)
	case errors.Is(err, errTooMany):
		w.Header().Set("Retry-After", "30")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case r.Context().Err() == nil:
		s.log.Debug("page not made", "err", err)
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
	}
}

func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		if name, weight, _ := strings.Cut(strings.TrimSpace(part), ";"); name == "gzip" && strings.ReplaceAll(weight, " ", "") != "q=0" {
			return true
		}
	}
	return false
}
