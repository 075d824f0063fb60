package host

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"e13.dev/gatehouse/internal/netnstest"
)

// A provider gives another IPv6 prefix: from the moment that the old one is
// deprecated the new one comes first, whichever of them is the lower.
func TestNetnsDeprecatedAddressesComeLast(t *testing.T) {
	netnstest.Run(t, func() {
		netnstest.Cable(t, nil, "eth0", netnstest.New(t), "eth0")
		old, now := "2001:db8:1::7/64", "2001:db8:2::7/64"
		netnstest.Addr(t, nil, "eth0", old)
		netnstest.Addr(t, nil, "eth0", now)
		netnstest.Addr(t, nil, "eth0", "10.0.0.1/24")
		o := newObserver()
		go func() { _ = o.Run(context.WithoutCancel(t.Context())) }()
		is := func(want ...string) func() bool {
			return func() bool {
				var all []netip.Prefix
				for _, w := range want {
					all = append(all, netip.MustParsePrefix(w))
				}
				return slices.Equal(snapshot(t, o)["eth0"].Addrs, all)
			}
		}
		netnstest.Eventually(t, patience, "both", is("10.0.0.1/24", old, now))
		for len(o.Changed()) > 0 {
			<-o.Changed()
		}
		ipCommand(t, "addr change "+old+" dev eth0 valid_lft 7200 preferred_lft 0")
		netnstest.Eventually(t, patience, "the new one first", is("10.0.0.1/24", now, old))
		<-o.Changed() // and it is told
		ipCommand(t, "addr change "+now+" dev eth0 valid_lft 7200 preferred_lft 0")
		netnstest.Eventually(t, patience, "both deprecated", is("10.0.0.1/24", old, now))
	})
}
