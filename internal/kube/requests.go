package kube

import (
	"cmp"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Request is a kind of request to the API server, and how it went. It is
// comparable.
type Request struct {
	Verb     string // "get", "list", "watch", "create", "patch"
	Resource string // "services", "services/status", "events"
	Code     string // the class of the answer: "2xx", "4xx"; "none": there was none
}

// Requests are how many requests of each kind were sent since the start. A watch
// counts once it has begun. At rest there are no others: a watch that the API
// server ends (after five to ten minutes) goes on where it was.
func (c *Client) Requests() map[Request]uint64 { return c.requests.snapshot() }

type requestCounter struct {
	mu sync.Mutex
	n  map[Request]uint64
}

func newRequestCounter() *requestCounter { return &requestCounter{n: make(map[Request]uint64)} }

func (r *requestCounter) snapshot() map[Request]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.n)
}

func (r *requestCounter) count(req *http.Request, resp *http.Response) {
	kind := requestOf(req)
	kind.Code = "none"
	if resp != nil {
		kind.Code = strconv.Itoa(resp.StatusCode/100) + "xx"
	}
	r.mu.Lock()
	r.n[kind]++
	r.mu.Unlock()
}

// requestOf reads method and path as the API server does: /api/v1/services,
// /api/v1/namespaces/shop/services/web/status. Something may stand in front of
// it, of a proxy.
func requestOf(req *http.Request) Request {
	path := req.URL.Path
	_, rest, found := strings.Cut(path, "/apis/")
	if found {
		_, rest, _ = strings.Cut(rest, "/") // the group
	} else if _, rest, found = strings.Cut(path, "/api/"); !found {
		rest = ""
	}
	_, rest, _ = strings.Cut(rest, "/") // the version
	parts := strings.Split(rest, "/")
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	kind := Request{Resource: cmp.Or(parts[0], "other")}
	if len(parts) > 2 {
		kind.Resource += "/" + parts[2]
	}
	switch {
	case req.Method == http.MethodPost:
		kind.Verb = "create"
	case req.Method != http.MethodGet:
		kind.Verb = strings.ToLower(req.Method)
	case req.URL.Query().Get("watch") != "":
		kind.Verb = "watch"
	case len(parts) > 1:
		kind.Verb = "get"
	default:
		kind.Verb = "list"
	}
	return kind
}
