package host

import (
	"context"
	"io"

	"e13.dev/gatehouse/internal/edge"
)

// Routes are the routes to the pods of the cluster's nodes, in the main table.
type Routes struct{}

// Apply makes the machine have the routes, and no other of ours, as far as it
// can, and says whether that took a change.
func (Routes) Apply(want []edge.Route) (problems []edge.Problem, changed bool) {
	return nil, false
}

// Remove takes them away, and says whether there was something to take.
func (Routes) Remove() (changed bool, err error) { return false, nil }

// Present says whether there is a route of ours.
func (Routes) Present() (bool, error) { return false, nil }

// WatchRoutes calls changed each time that routes of ours may be gone, or that
// one may be had which could not be had before. It returns when ctx ends, or
// when the kernel does not tell.
func WatchRoutes(ctx context.Context, changed func()) error {
	<-ctx.Done()
	return ctx.Err()
}

// Forwarding says for which families the machine is a router.
func Forwarding() (ipv4, ipv6 bool) { return true, true }

// CheckIn says that a gatehouse runs in this network namespace, for Running to
// find until it is closed. It goes with its process, however that ends.
func CheckIn() (io.Closer, error) { return io.NopCloser(nil), nil }

// Running returns the processes that have checked in, this one included.
func Running() (pids []int, err error) { return nil, nil }
