package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"e13.dev/gatehouse/internal/desired"
	"e13.dev/gatehouse/internal/edge"
	"e13.dev/gatehouse/internal/status"
)

// A plan that is compared knows what only the daemon knows: else it would give
// addresses anew, and open ports that other programs have.
func TestAPlanIsComparedAsIfItRan(t *testing.T) {
	held, given := netip.MustParseAddr("10.11.12.70"), netip.MustParseAddr("10.11.12.71")
	door := edge.Listen{Device: "eth1", Port: 22}
	in := desired.Inputs{Cluster: &edge.Cluster{Services: []edge.Service{{Namespace: "shop", Name: "web", UID: "u1"}}}}
	asIfRunning(&in, status.Status{
		Addresses: []status.Address{
			{Addr: held, Pool: "p", Zone: "home", Services: []string{"shop/old"}, State: status.AddressHeld},
			{Addr: given, Pool: "p", Zone: "home", Services: []string{"shop/web", "shop/api"}, State: status.AddressConflict, Conflict: "52:54:00:00:00:07"},
		},
		Exposures: []desired.Exposure{{Listens: []edge.Listen{door, {Device: "eth1", Port: 80}}}},
		Frontends: []status.Frontend{{Protocol: edge.TCP, Listen: "@eth1:22", Error: "in use"}, {Protocol: edge.TCP, Listen: "@eth1:80"}},
	})
	want := []edge.Allocation{
		{Addr: held, Pool: "p", Zone: "home", Service: "shop/old", Held: true},
		{Addr: given, Pool: "p", Zone: "home", Service: "shop/web", UID: "u1"},
		{Addr: given, Pool: "p", Zone: "home", Service: "shop/api"},
	}
	if !reflect.DeepEqual(in.Allocations, want) {
		t.Errorf("allocations %+v", in.Allocations)
	}
	if want := map[netip.Addr]edge.AddressState{given: {Conflict: "52:54:00:00:00:07"}}; !reflect.DeepEqual(in.Addresses, want) {
		t.Errorf("addresses %+v", in.Addresses)
	}
	if want := map[edge.Door]string{{Protocol: edge.TCP, Listen: door}: "in use"}; !reflect.DeepEqual(in.Doors, want) {
		t.Errorf("doors %+v", in.Doors)
	}
}

// A daemon that has not decided yet has not closed everything.
func TestNothingIsComparedWithWhatIsNotDecided(t *testing.T) {
	rows := []desired.Exposure{{Name: "shop/web:80"}}
	for name, c := range map[string]struct {
		status status.Status
		want   string
	}{
		"just begun":         {status.Status{}, "waiting for its first decision"},
		"no cluster":         {status.Status{NotReady: []string{"the Kubernetes API"}, Cluster: &status.Cluster{}, Exposures: rows}, "waiting for the Kubernetes API"},
		"stopping":           {status.Status{NotReady: []string{"its end: it is stopping"}}, "waiting for its end: it is stopping"},
		"ready":              {status.Status{Ready: true}, ""},
		"a port is taken":    {status.Status{NotReady: []string{"listeners that could not be opened: 1"}, Cluster: &status.Cluster{Synced: true}, Exposures: rows}, ""},
		"from the last time": {status.Status{NotReady: []string{"frontend git-ssh"}, Cluster: &status.Cluster{From: "/var/lib/gatehouse"}, Exposures: rows}, ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(c.status) }))
		daemon, err := newClient(server.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := running(t.Context(), daemon); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		server.Close()
	}
}
