package kube

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reading has to fail for a while before anybody acts on it, and one answer
// ends that; whoever waits for news is told of both.
func TestStaleAfterAWhileOfFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, "https://127.0.0.1:1")
		away := errors.New("connection refused")
		kinds := c.kinds(c.state)
		told := func() bool {
			synctest.Wait()
			select {
			case <-c.Changed():
				return true
			default:
				return false
			}
		}
		for i, step := range []struct {
			after       time.Duration
			kind        int // of the three
			err         error
			stale, told bool
		}{
			{0, 0, away, false, false},
			{4900 * time.Millisecond, 0, away, false, false}, // the first failure counts
			{200 * time.Millisecond, 1, nil, true, true},     // another kind tells nothing of this one
			{time.Second, 0, nil, false, true},
			{time.Hour, 0, nil, false, false},
			// A server that comes and goes.
			{0, 1, away, false, false},
			{3 * time.Second, 1, nil, false, false},
			{0, 1, away, false, false},
			{3 * time.Second, 1, nil, false, false},
			{0, 1, away, false, false},
			{time.Minute, 1, apierrors.NewResourceExpired("too old resource version"), true, true},
			{0, 2, away, true, false},
			{time.Second, 1, nil, false, true},
			{time.Second, 2, apierrors.NewUnauthorized("expired"), false, false},
			{4 * time.Second, 1, nil, true, true}, // refused is not read
		} {
			time.Sleep(step.after)
			c.noteRead(t.Context(), kinds[step.kind], step.err)
			news := told()
			if s, _ := c.Snapshot(); s.Stale != step.stale || news != step.told {
				t.Errorf("step %d: stale %t, told %t", i, s.Stale, news)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		c.noteRead(ended, kinds[2], nil)
		if s, _ := c.Snapshot(); !s.Stale {
			t.Error("a request that was given up counts as an answer")
		}
	})
}

// The snapshot stays as it was while the API server is away, says so, and says
// no more of it once it is back.
func TestStaleWhileTheServerIsAway(t *testing.T) {
	var away atomic.Bool
	lists := beforeStreaming(emptyLists)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			status(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "etcd has no leader")(w, r)
			return
		}
		lists(w, r)
	}))
	defer s.CloseClientConnections()
	c := client(t, s.URL)
	run(t, c)
	fresh := func() bool {
		cluster, synced := c.Snapshot()
		return synced && !cluster.Stale
	}
	until(t, c, "fresh", fresh)
	away.Store(true)
	s.CloseClientConnections()
	until(t, c, "stale", func() bool {
		cluster, synced := c.Snapshot()
		return synced && cluster.Stale
	})
	away.Store(false)
	until(t, c, "fresh again", fresh)
}

// A server whose answers do not arrive any more is missed with the first watch
// that cannot be started: client-go would try ten times, a second and more each,
// and call it a watch.
func TestAWatchThatIsNotAnsweredIsToldAtOnce(t *testing.T) {
	var away atomic.Bool
	lists := beforeStreaming(emptyLists)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler) // the connection is closed
		}
		lists(w, r)
	}))
	defer s.CloseClientConnections()
	c := client(t, s.URL)
	run(t, c)
	until(t, c, "read", func() bool { _, synced := c.Snapshot(); return synced })
	away.Store(true)
	began := time.Now()
	s.CloseClientConnections()
	until(t, c, "told", func() bool { return len(c.Problems()) > 0 })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it was told after %s", took)
	}
}
