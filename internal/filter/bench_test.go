package filter

import (
	"fmt"
	"testing"

	"e13.dev/gatehouse/internal/firewall"
)

// BenchmarkNetnsApply has the kernel filter for so many doors: all of them anew, one of them
// changed, and nothing. It changes the network namespace that it runs in: unshare -Urn,
// or unshare -n for whoever is root, which takes one transaction.
func BenchmarkNetnsApply(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		in := many(b, n)
		all := firewall.Compile(in)
		port := in.Frontends[0].Listen.Port
		in.Frontends[0].Listen.Port = 999
		changed := firewall.Compile(in)
		in.Frontends[0].Listen.Port = port
		a := New()
		remove := func() {
			if _, err := a.Remove(b.Context()); err != nil {
				b.Skip(err)
			}
		}
		remove()
		b.Run(fmt.Sprintf("load/%d", n), func(b *testing.B) {
			for b.Loop() {
				remove()
				apply(b, a, all, true)
			}
		})
		b.Run(fmt.Sprintf("one/%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				apply(b, a, []firewall.Ruleset{changed, all}[i%2], true)
			}
		})
		b.Run(fmt.Sprintf("verify/%d", n), func(b *testing.B) {
			for b.Loop() {
				verify(b, a, false)
			}
		})
		b.Run(fmt.Sprintf("compile/%d", n), func(b *testing.B) {
			for b.Loop() {
				firewall.Compile(in)
			}
		})
		remove()
	}
}
