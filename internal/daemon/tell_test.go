package daemon

import (
	"context"
	"net/netip"
	"reflect"
	"testing"

	"e13.dev/gatehouse/internal/edge"
)

func TestEventsAreToldOnce(t *testing.T) {
	opened := edge.Event{Namespace: "shop", Name: "web", Reason: "ZoneOpened", Message: "open in zone home at 10.11.12.32, port 80"}
	conflict := edge.Event{Namespace: "shop", Name: "web", Warning: true, Reason: "PortConflict", Message: "taken"}
	fresh := &edge.Cluster{Services: []edge.Service{{Namespace: "shop", Name: "web"}}}
	known := &edge.Cluster{Services: []edge.Service{{
		Namespace: "shop", Name: "web", StatusOurs: true, Ingress: []edge.Ingress{{IP: netip.MustParseAddr("10.11.12.32")}},
	}}}
	for name, tc := range map[string]struct {
		cluster *edge.Cluster
		steps   [][]edge.Event // what each decision says
		want    [][]edge.Event // what is told of it
	}{
		"a thing is said when it begins": {
			fresh,
			[][]edge.Event{{opened}, {opened}, {opened, conflict}, {opened}},
			[][]edge.Event{{opened}, nil, {conflict}, nil},
		},
		"and again when it comes back": {
			fresh,
			[][]edge.Event{{conflict}, nil, {conflict}},
			[][]edge.Event{{conflict}, nil, {conflict}},
		},
		"a restart says nothing new of what is open, but warns": {
			known,
			[][]edge.Event{{opened, conflict}},
			[][]edge.Event{{conflict}},
		},
		"a change after a restart is said": {
			known,
			[][]edge.Event{nil, {opened}},
			[][]edge.Event{nil, {opened}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var l eventLog
			for i, events := range tc.steps {
				if got := l.fresh(events, tc.cluster); !reflect.DeepEqual(got, tc.want[i]) {
					t.Errorf("decision %d: told %v, want %v", i, got, tc.want[i])
				}
			}
		})
	}
}

func TestSlotRunsOneTaskAtATime(t *testing.T) {
	var s slot
	running := map[string]int{}
	events := make(chan string)
	task := func(name string) func(context.Context) {
		return func(ctx context.Context) {
			events <- "+" + name
			<-ctx.Done()
			events <- "-" + name
		}
	}
	set := func(key string) { s.set(t.Context(), key, task(key)) }
	set("a")
	if e := <-events; e != "+a" {
		t.Fatal(e)
	}
	set("a") // the same again changes nothing
	if !s.holds("a") || s.holds("b") {
		t.Error("it does not hold what was set")
	}
	done := make(chan struct{})
	go func() { set("b"); close(done) }()
	for _, want := range []string{"-a", "+b"} {
		e := <-events
		running[e]++
		if e != want {
			t.Fatalf("got %s, want %s: the old task must have ended before the new one starts", e, want)
		}
	}
	<-done
	go s.stop()
	if e := <-events; e != "-b" {
		t.Fatal(e)
	}
	if running["+a"] != 0 {
		t.Error("setting the same key started the task again")
	}
}
