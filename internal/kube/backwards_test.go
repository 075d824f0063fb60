package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An API server that comes back with older data says nothing to a watch from a
// later version, as etcd's would: what it has is read all the same. One that has
// the same or more is only watched.
func TestOlderDataIsRead(t *testing.T) {
	for _, row := range []struct {
		name   string
		after  int
		isRead bool
	}{{"older", 40, true}, {"the same", 100, false}, {"newer", 120, false}} {
		t.Run(row.name, func(t *testing.T) {
			var version, watches atomic.Int64
			version.Store(100)
			s := httptest.NewServer(beforeStreaming(func(w http.ResponseWriter, r *http.Request) {
				of := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
				if of != "nodes" {
					emptyLists(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				if r.URL.Query().Get("watch") != "" {
					watches.Add(1)
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					return
				}
				items := `{"metadata":{"name":"old"}}`
				if version.Load() == 100 {
					items += `,{"metadata":{"name":"new"}}`
				}
				fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"%d"},"items":[%s]}`, version.Load(), items)
			}))
			defer s.CloseClientConnections()
			c := client(t, s.URL)
			run(t, c)
			until(t, c, "read", func() bool { cluster, synced := c.Snapshot(); return synced && len(cluster.Nodes) == 2 })
			deadline := time.Now().Add(10 * time.Second)
			await := func(n int64) {
				for watches.Load() < n && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond)
				}
			}
			await(1)
			<-time.After(1100 * time.Millisecond) // a watch that ends sooner is taken for one that was never there
			version.Store(int64(row.after))
			before := watches.Load()
			s.CloseClientConnections()
			if row.isRead {
				until(t, c, "read anew", func() bool { cluster, _ := c.Snapshot(); return len(cluster.Nodes) == 1 })
				return
			}
			await(before + 1)
			if cluster, _ := c.Snapshot(); len(cluster.Nodes) != 2 || watches.Load() == before {
				t.Errorf("%d nodes, %d watches since; want both nodes, from a watch that goes on", len(cluster.Nodes), watches.Load()-before)
			}
		})
	}
}
