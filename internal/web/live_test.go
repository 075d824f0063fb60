package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// However many listen, a Status is made once a second, and none while nobody
// does.
func TestOneLookForAllListeners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int64
		h := &hub{render: cut, status: func() status.Status {
			return status.Status{Version: fmt.Sprint(looks.Add(1))}
		}}
		time.Sleep(time.Minute)
		if n := looks.Load(); n != 0 {
			t.Fatalf("%d looks while nobody listens", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var told, ended atomic.Int64
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				err := h.follow(ctx, wish{words: []string{"", "shop"}[i%2], cards: 1}, func([]byte) error { told.Add(1); return nil })
				if errors.Is(err, context.Canceled) {
					ended.Add(1)
				}
			})
			time.Sleep(300 * time.Millisecond)
		}
		synctest.Wait()
		before, heard := looks.Load(), told.Load()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := looks.Load() - before; n < 9 || n > 10 {
			t.Errorf("%d looks in 10 s", n)
		}
		if n := told.Load() - heard; n < 90 || n > 100 {
			t.Errorf("10 listeners were told %d times in 10 s", n)
		}
		cancel()
		wg.Wait()
		// Who comes meanwhile sees what was made last.
		before = looks.Load()
		for range 100 {
			h.current()
			time.Sleep(9 * time.Millisecond)
		}
		if n := looks.Load() - before; n > 1 {
			t.Errorf("%d looks for 100 pages in 900 ms", n)
		}
		before = looks.Load()
		time.Sleep(time.Minute)
		if n := looks.Load() - before; n != 0 || ended.Load() != 10 || len(h.topics) != 0 {
			t.Errorf("%d looks after all have gone, %d ended, %d topics are left", n, ended.Load(), len(h.topics))
		}
	})
}

// Who listens is told what is new, and nothing else; what does not change has a
// beat.
func TestListenersAreToldWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now := status.Status{Ready: true, Config: status.Config{Current: true, LoadedAt: time.Now()}, StartedAt: time.Now(), Frontends: []status.Frontend{{Name: "a"}, {Name: "b"}}}
		change := func(f func()) { mu.Lock(); f(); mu.Unlock() }
		// Without the ages that go on.
		h := &hub{status: func() status.Status {
			mu.Lock()
			defer mu.Unlock()
			s := now
			s.StartedAt, s.Config.LoadedAt = time.Now(), time.Now()
			return s
		}, render: cut}
		heard := make(chan string, 100)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go h.follow(ctx, wish{cards: 40}, func(text []byte) error { heard <- string(text); return nil })
		read := func() (n news) {
			t.Helper()
			if err := json.Unmarshal([]byte(<-heard), &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		first := read()
		if len(first.Order) != 2 || len(first.HTML) != 11 || first.Title != "gatehouse" || first.Page != assets.version {
			t.Fatalf("first %d pieces, %v, %s", len(first.HTML), first.Order, first.Title)
		}
		start := time.Now()
		if text := <-heard; text != "" || time.Since(start) != beatEvery {
			t.Errorf("after %s: %q, want a beat", time.Since(start), text)
		}
		change(func() {
			now.Frontends = []status.Frontend{{Name: "a"}, {Name: "b", Traffic: status.Traffic{Accepted: 7}}}
		})
		if n := read(); n.Order != nil || n.None || n.Title != "" || n.Page != "" || len(n.HTML) != 1 || !strings.Contains(n.HTML[first.Order[1]], "<dd>7") {
			t.Errorf("of a number: %+v", n)
		}
		change(func() { now.Frontends = []status.Frontend{{Name: "c"}, {Name: "a"}} })
		if n := read(); len(n.Order) != 2 || n.Order[1] != first.Order[0] || n.HTML[n.Order[0]] == "" || n.HTML[n.Order[1]] != "" {
			t.Errorf("of another frontend: %+v", n)
		}
		change(func() { now.Frontends, now.Problems = nil, []edge.Problem{{What: "it burns"}} })
		if n := read(); !n.None || n.Title != "(1) gatehouse" || !strings.Contains(n.HTML["problems"], "it burns") {
			t.Errorf("of a problem: %+v", n)
		}
		change(func() { now.Problems = nil })
		if n := read(); n.None || n.Order != nil || n.Title != "gatehouse" || !strings.Contains(n.HTML["problems"], "no problems") {
			t.Errorf("of its end: %+v", n)
		}
	})
}

// What was said while a listener did not read is told all at once.
func TestSlowListenersMissNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		h := &hub{render: cut, status: func() status.Status {
			var s status.Status
			for i := range n.Load() {
				s.Frontends = append(s.Frontends, status.Frontend{Name: fmt.Sprint(i)})
			}
			return s
		}}
		read := make(chan string)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go h.follow(ctx, wish{cards: 40}, func(text []byte) error { read <- string(text); return nil })
		<-read
		pieces := map[string]bool{}
		for range 5 {
			n.Add(1)
			time.Sleep(2 * time.Second)
		}
		var order []string
		for len(order) < 5 {
			var got news
			if err := json.Unmarshal([]byte(<-read), &got); err != nil {
				t.Fatal(err)
			}
			for id := range got.HTML {
				pieces[id] = true
			}
			order = got.Order
		}
		for _, id := range order {
			if !pieces[id] {
				t.Errorf("card %s was never told", id)
			}
		}
		go func() {
			for range read { // until the test ends
			}
		}()
		cancel()
		synctest.Wait()
		close(read)
	})
}

// eventsOf asks for the events of a server.
func eventsOf(t *testing.T, url string) (*http.Response, *bufio.Reader) {
	t.Helper()
	resp, err := http.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp, bufio.NewReader(resp.Body)
}

// The timeouts of the server are for answers that end.
func TestEventsOutliveTimeouts(t *testing.T) {
	var n atomic.Int64
	site := New(Source{Status: func() status.Status { return status.Status{Version: fmt.Sprint(n.Add(1))} }}, slog.New(slog.DiscardHandler))
	server := httptest.NewUnstartedServer(site.Handler())
	server.Config.ReadTimeout, server.Config.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	resp, lines := eventsOf(t, server.URL)
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type %q", got)
	}
	for range 3 {
		text, err := lines.ReadString('\n')
		if err != nil || !strings.HasPrefix(text, `data: {"`) {
			t.Fatalf("%v: %.100q", err, text)
		}
		if end, err := lines.ReadString('\n'); err != nil || end != "\n" {
			t.Fatal("an event has no end")
		}
	}
}

func TestListenersAreBounded(t *testing.T) {
	site := New(Source{Status: sample}, slog.New(slog.DiscardHandler))
	server := httptest.NewServer(site.Handler())
	t.Cleanup(server.Close)
	defer http.DefaultClient.CloseIdleConnections()
	var last *http.Response
	for range mostListeners {
		last, _ = eventsOf(t, server.URL)
		if last.StatusCode != http.StatusOK {
			t.Fatal(last.Status)
		}
	}
	if resp, _ := eventsOf(t, server.URL); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one more: %s", resp.Status)
	}
	last.Body.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if resp, _ := eventsOf(t, server.URL); resp.StatusCode == http.StatusOK {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("no place after one has gone")
		}
	}
	if code, _ := get(t, server.URL+"/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	server.CloseClientConnections()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Status
}

// Whoever listens does not hold up the end.
func TestServeEndsThoughSomebodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- New(Source{Status: sample}, slog.New(slog.DiscardHandler)).Serve(ctx, listener, Access{})
	}()
	_, lines := eventsOf(t, "http://"+listener.Addr().String())
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || time.Since(start) >= answerTime { // which it would wait
		t.Errorf("ended after %s with %v", time.Since(start), err)
	}
}

func TestWhoTakesGzip(t *testing.T) {
	for accepts, want := range map[string]bool{"": false, "gzip": true, "deflate, gzip, br": true, "gzip;q=0": false, "gzip; q=0.5": true, "xgzip": false} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", accepts)
		if got := takesGzip(r); got != want {
			t.Errorf("%q: %v", accepts, got)
		}
	}
}
