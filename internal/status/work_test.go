package status

import (
	"reflect"
	"testing"
	"time"

	"e13.dev/gatehouse/internal/edge"
)

func TestTimingCountsIntoEveryBoundAbove(t *testing.T) {
	var got Timing
	for _, d := range []time.Duration{time.Millisecond, 30 * time.Millisecond, time.Minute} {
		got.Took(d)
	}
	want := Timing{Count: 3, Seconds: 60.031, Within: []uint64{1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestKindsOfProblems(t *testing.T) {
	for _, c := range []struct {
		p    edge.Problem
		want string
	}{
		{edge.Problem{Object: "service/shop/web"}, "service"},
		{edge.Problem{Object: "nat"}, "nat"},
		{edge.Problem{Pos: edge.Pos{File: "a.yaml", Line: 1}}, "configuration"},
		{edge.Problem{Path: "stateDir"}, "configuration"},
		{edge.Problem{Object: "gateway/of/later"}, "other"},
	} {
		if got := KindOf(c.p); got != c.want {
			t.Errorf("%+v is of %q, want %q", c.p, got, c.want)
		}
	}
}
