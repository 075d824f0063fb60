package nat

import (
	"testing"

	"e13.dev/gatehouse/internal/netnstest"
)

// The kernel takes everything, and what it has is what was meant.
func TestNetnsAdopt(t *testing.T) {
	netnstest.Run(t, func() {
		a := New()
		apply(t, a, State{}, false)
		apply(t, a, mix(), true)
		apply(t, a, mix(), false)
		verify(t, a, false)
		lacking, err := Lacking(t.Context())
		t.Log(lacking, err)
		apply(t, New(), mix(), false)
	})
}
