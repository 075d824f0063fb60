package desired

import "testing"

func TestAZoneIsNamedOnce(t *testing.T) {
	for what, want := range map[string]string{
		"it may not":                          "in zone home: it may not",
		"port 80 in zone home is taken":       "port 80 in zone home is taken",
		"10.0.0.1 is in no pool of zone home": "10.0.0.1 is in no pool of zone home",
		"port 80 in zone home2 is taken":      "in zone home: port 80 in zone home2 is taken",
		"in zone home-2, not here":            "in zone home: in zone home-2, not here",
		"in zone home2, and zone home":        "in zone home2, and zone home",
	} {
		if got := withZone("home", what); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := withZone("", "it may not"); got != "it may not" {
		t.Errorf("in no zone: %q", got)
	}
}
