package daemon

import (
	"errors"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

// What a connection before has read is served until the present one has read
// its own, and is stale once that cannot be made.
func TestTheLastSnapshotGoesStale(t *testing.T) {
	var c cluster
	if v := c.look(); v.snapshot != nil || v.synced {
		t.Fatalf("before the first: %+v", v)
	}
	c.err = errors.New("no such file")
	if s := c.look().snapshot; s != nil {
		t.Fatalf("still before the first: %v", s)
	}
	first := &edge.Cluster{Nodes: []edge.Node{{Name: "w1"}}}
	c.last, c.err = first, nil
	if s := c.look().snapshot; s.Stale {
		t.Error("stale while the present connection is made")
	}
	c.err = errors.New("no such file")
	if v := c.look(); !v.snapshot.Stale || len(v.snapshot.Nodes) != 1 || v.synced || v.origin.staleSince.IsZero() {
		t.Errorf("%+v", v)
	}
	if first.Stale {
		t.Error("a snapshot that was handed out has changed")
	}
	c.err = nil
	if s := c.look().snapshot; !s.Stale {
		t.Error("fresh before the next one has been read")
	}
}
