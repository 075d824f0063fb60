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
	if s, _, synced := c.look(); s != nil || synced {
		t.Fatalf("before the first: %v, %t", s, synced)
	}
	c.err = errors.New("no such file")
	if s, _, _ := c.look(); s != nil {
		t.Fatalf("still before the first: %v", s)
	}
	first := &edge.Cluster{Nodes: []edge.Node{{Name: "w1"}}}
	c.last, c.err = first, nil
	if s, _, _ := c.look(); s.Stale {
		t.Error("stale while the present connection is made")
	}
	c.err = errors.New("no such file")
	if s, _, synced := c.look(); !s.Stale || len(s.Nodes) != 1 || synced {
		t.Errorf("%+v, synced %t", s, synced)
	}
	if first.Stale {
		t.Error("a snapshot that was handed out has changed")
	}
	c.err = nil
	if s, _, _ := c.look(); !s.Stale {
		t.Error("fresh before the next one has been read")
	}
}
