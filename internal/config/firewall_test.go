package config

import (
	"slices"
	"testing"
)

// FuzzParseServices: what is accepted is printed as it could have been written,
// and what is not says what would be right.
func FuzzParseServices(f *testing.F) {
	for _, s := range []string{"6443", "53/UDP", "8000-8010/SCTP", "ping", "dns", "80-", "-", "0", "070", "22/ICMP", "1-65535"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ranges, flt := ParseServices(s)
		if (flt == nil) == (len(ranges) == 0) || flt != nil && (flt.What == "" || flt.Remedy == "") {
			t.Fatalf("%q: %v, %v", s, ranges, flt)
		}
		for _, r := range ranges {
			again, flt := ParseServices(r.String())
			if flt != nil || !slices.Equal(again, []PortRange{r}) || r.Last < r.First || r.Protocol != ICMP && r.First == 0 {
				t.Errorf("%q is %+v, which is printed as %q: %v, %v", s, r, r, again, flt)
			}
		}
	})
}
