package cli

import (
	"net/netip"
	"reflect"
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
